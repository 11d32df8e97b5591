"""Keyed, counter-based randomness: a draw depends on what it is for, never on who makes it.

Philox 4x32-10 (Salmon et al., SC 2011) written with 64-bit integer arithmetic that NumPy and
torch share, so the raw bits are the same on CPU and GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def key_of(*parts: object) -> int:
    """Return the 64-bit BLAKE2b key (0 ≤ key < 2**63) of the parts' text."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def spot_keys(section: str, spot_ids: Iterable[str]) -> NDArray[np.int64]:
    """Return one key per spot, (spots,), from section name and spot id."""
    return np.array([key_of(section, spot_id) for spot_id in spot_ids], dtype=np.int64)


def philox(key: Any, counter: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Return four 32-bit words (in int64) per element for keys and counters.

    Arguments are int64 scalars or broadcastable int64 arrays (NumPy or torch); the key's two
    32-bit halves are the Philox key, each counter word is taken modulo 2**32.

    Examples
    --------
    >>> import numpy as np
    >>> words = philox(np.int64([1, 2]), (np.int64([0, 0]), 0, 0, 0))
    >>> words[0].shape
    (2,)
    """
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    c0, c1, c2, c3 = (word & _MASK for word in counter)
    for _ in range(10):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Any) -> tuple[Any, Any]:
    # 16-bit halves keep every product below 2**63, so int64 never overflows.
    low, high = constant & 0xFFFF, constant >> 16
    bottom = low * (word & 0xFFFF)
    middle = low * (word >> 16) + high * (word & 0xFFFF) + (bottom >> 16)
    return (high * (word >> 16) + (middle >> 16)) & _MASK, ((middle << 16) | (bottom & 0xFFFF)) & _MASK


def to_unit(word: Any) -> Any:
    """Return a 32-bit word as a number strictly between 0 and 1."""
    return (word + 0.5) / 4294967296.0


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """Return a NumPy generator for one named purpose: serial work that is never divided."""
    return np.random.Generator(np.random.Philox(key=key_of(seed, *purpose)))
