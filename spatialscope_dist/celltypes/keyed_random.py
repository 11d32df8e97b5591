"""Philox words inside compiled loops: the same bits as `randomness.philox`."""

from __future__ import annotations

import numba
import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLY_0, _MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_ADD_0, _ADD_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def philox_words(key: int, counter_0: int, counter_1: int, counter_2: int, counter_3: int) -> tuple[int, int, int, int]:
    """Return four 32-bit words of Philox 4x32-10 for a 64-bit key and a counter (compiled)."""
    k0, k1 = np.uint64(key) & _LOW, (np.uint64(key) >> _HALF) & _LOW
    c0, c1 = np.uint64(counter_0) & _LOW, np.uint64(counter_1) & _LOW
    c2, c3 = np.uint64(counter_2) & _LOW, np.uint64(counter_3) & _LOW
    for _ in range(10):
        first, second = _MULTIPLY_0 * c0, _MULTIPLY_1 * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & _LOW, (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _ADD_0) & _LOW, (k1 + _ADD_1) & _LOW
    return int(c0), int(c1), int(c2), int(c3)
