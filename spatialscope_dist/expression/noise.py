"""Noise: levels, preconditioning, and Gaussian draws keyed by what they are for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.randomness import key_of, philox, to_unit

if TYPE_CHECKING:
    from torch import Tensor


def falling_levels(n_levels: int, *, largest: float, smallest: float, rho: float = 7.0) -> NDArray[np.float64]:
    """Return noise levels, (levels,), in units of the data's sd, falling: Karras et al. 2022, eq. (5).

    Examples
    --------
    >>> falling_levels(3, largest=20.0, smallest=0.05).round(3).tolist()
    [20.0, 2.188, 0.05]
    """
    if n_levels == 1:
        return np.array([smallest])
    place = np.arange(n_levels) / (n_levels - 1)
    return np.asarray((largest ** (1 / rho) + place * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho)


def geometric_levels(n_levels: int, *, largest: float, smallest: float) -> NDArray[np.float64]:
    """Return noise levels, (levels,), falling by one ratio: SpatialScope, Algorithm 1 (Song & Ermon 2019)."""
    return np.geomspace(largest, smallest, n_levels)


def preconditioning(level: Any) -> tuple[Any, Any, Any, Any]:
    """Return (skip, out, in, noise) factors of a level for data of unit sd: Karras et al. 2022, table 1.

    The denoiser is skip * x + out * F(in * x, noise). Takes and returns numbers, arrays or tensors.
    """
    total = level * level + 1.0
    root = total**0.5
    logarithm = level.log() if hasattr(level, "log") else np.log(level)
    return 1.0 / total, level / root, 1.0 / root, logarithm / 4.0


def loss_weight(level: Any) -> Any:
    """Return the weight 1 + 1/level² that gives every level the same share of the loss: Karras et al. 2022."""
    return 1.0 + 1.0 / (level * level)


def chain_keys(seed: int, spot_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the Philox key of each spot, (spots,), for this study seed and for decomposition only."""
    return np.asarray(spot_keys, dtype=np.int64) ^ np.int64(key_of(seed, "decompose"))


def keyed_normals(
    keys: NDArray[np.int64], ranks: NDArray[np.int64], *, n_chains: int, step: int, n_genes: int
) -> NDArray[np.float32]:
    """Return standard normal draws, (chains, cells, genes), each fixed by (key, rank, chain, step, gene).

    Parameters
    ----------
    keys
        (cells,), key of the cell's spot (`chain_keys`).
    ranks
        (cells,), rank of the cell in its spot.
    n_chains
        posterior replicates.
    step
        number of the draw within the sampler.
    n_genes
        genes of the panel.
    """
    out = np.empty((n_chains, len(keys), n_genes), np.float32)
    _normal_kernel()(np.ascontiguousarray(keys, np.int64), np.ascontiguousarray(ranks, np.int64), step, out)
    return out


def keyed_normals_torch(keys: Tensor, ranks: Tensor, *, n_chains: int, step: int, n_genes: int) -> Tensor:
    """Return the draws of `keyed_normals` computed on the tensors' device (same bits, rounded alike)."""
    import torch

    device = keys.device
    chains = torch.arange(n_chains, device=device)[:, None, None]
    fours = torch.arange((n_genes + 3) // 4, device=device)[None, None, :]
    words = philox(keys[None, :, None], (fours, ranks[None, :, None], chains, torch.tensor(step, device=device)))
    units = [to_unit(word.to(torch.float64)) for word in words]
    pairs = [_box_muller(units[0], units[1], torch), _box_muller(units[2], units[3], torch)]
    draws = torch.stack([pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]], dim=-1)  # (chains, cells, fours, 4)
    return draws.reshape(n_chains, len(keys), -1)[:, :, :n_genes].to(torch.float32)


def _box_muller(first: Any, second: Any, library: Any) -> tuple[Any, Any]:
    radius, angle = library.sqrt(-2.0 * library.log(first)), 2.0 * np.pi * second
    return radius * library.cos(angle), radius * library.sin(angle)


@functools.cache
def _normal_kernel() -> Callable[..., None]:
    # Philox 4x32-10 as in randomness.philox, one scalar loop: about twenty times faster than array arithmetic.
    import numba

    mask = np.uint64(0xFFFFFFFF)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    half = np.uint64(32)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def words(key: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
        k0, k1 = key & mask, key >> half
        for _ in range(10):
            p0, p1 = m0 * c0, m1 * c2
            c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
            k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
        return c0, c1, c2, c3

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def fill(keys: Any, ranks: Any, step: Any, out: Any) -> None:
        n_chains, n_cells, n_genes = out.shape
        four = np.empty(4)
        for chain in range(n_chains):
            for cell in range(n_cells):
                for start in range(0, n_genes, 4):
                    u0, u1, u2, u3 = words(
                        np.uint64(keys[cell]),
                        np.uint64(start // 4),
                        np.uint64(ranks[cell]),
                        np.uint64(chain),
                        np.uint64(step),
                    )
                    radius = np.sqrt(-2.0 * np.log((np.float64(u0) + 0.5) / 4294967296.0))
                    angle = 2.0 * np.pi * ((np.float64(u1) + 0.5) / 4294967296.0)
                    four[0], four[1] = radius * np.cos(angle), radius * np.sin(angle)
                    radius = np.sqrt(-2.0 * np.log((np.float64(u2) + 0.5) / 4294967296.0))
                    angle = 2.0 * np.pi * ((np.float64(u3) + 0.5) / 4294967296.0)
                    four[2], four[3] = radius * np.cos(angle), radius * np.sin(angle)
                    for offset in range(min(4, n_genes - start)):
                        out[chain, cell, start + offset] = four[offset]

    return fill  # type: ignore[no-any-return]
