"""Exact posterior of the labels of single spots, no prior between cells: forward and backward over tallies.

    p(k | y, f) ∝ exp(−E(multiset of k)) Π_m L_m(k_m)

The energy E depends on how many cells have each type only, so the tally of the first m labels is all
that the rest needs to know of them: sums over all labellings take a pass over the multisets of 0 … M
cells, whose place is their colexicographic rank (`multisets`).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.multisets import QUANTUM, MultisetCache, binomials, next_multiset


class Posterior(NamedTuple):
    """Posterior of the labels of spots.

    Attributes
    ----------
    shares : (cells, slots), probability of each candidate; 0 in unused slots
    log_evidence : (spots,), log Σ_k exp(−E) Π L − log Σ_k exp(−E): what the factors add, nats
    """

    shares: NDArray[np.float64]
    log_evidence: NDArray[np.float64]


def spot_posteriors(cache: MultisetCache, factors: NDArray[np.float64]) -> Posterior:
    """Return the posterior of each spot's labels and the log evidence of the factors.

    Parameters
    ----------
    cache : multiset energies of the spots
    factors : (cells, slots), L > 0 of each candidate, spots one after another; unused slots are ignored
    """
    size = int(cache.candidates.size.max(initial=1))
    choose = binomials(int(cache.n_cells.max(initial=0)) + size, size)
    shares = np.zeros(factors.shape)
    log_evidence = np.zeros(len(cache.n_cells))
    _posteriors(cache.n_cells, cache.candidates.size, cache.start, cache.energy, factors, choose, shares, log_evidence)
    return Posterior(shares, log_evidence)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _posteriors(  # noqa: PLR0913
    n_cells: NDArray[np.int64],
    sizes: NDArray[np.int64],
    start: NDArray[np.int64],
    energy: NDArray[np.int64],
    factors: NDArray[np.float64],
    choose: NDArray[np.int64],
    shares: NDArray[np.float64],
    log_evidence: NDArray[np.float64],
) -> None:
    first = 0
    for spot in range(len(n_cells)):
        last, size = first + n_cells[spot], sizes[spot]
        if n_cells[spot] > 0:
            of_spot = energy[start[spot] : start[spot + 1]]
            log_evidence[spot] = _posterior(of_spot, factors[first:last, :size], choose, shares[first:last, :size])
        first = last


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _posterior(
    energy: NDArray[np.int64], factors: NDArray[np.float64], choose: NDArray[np.int64], shares: NDArray[np.float64]
) -> float:
    """Fill the shares of one spot's cells and return the log evidence of their factors."""
    n_cells, size = factors.shape
    likelihood = np.exp(-(energy - energy.min()) * QUANTUM)
    begin, children = _tallies(n_cells, size, choose)
    plain = _backward(likelihood, np.ones((n_cells, size)), begin, children)[0]
    scaled, log_scale = factors.copy(), 0.0
    for m in range(n_cells):
        log_scale += np.log(factors[m].max())
        scaled[m] /= factors[m].max()
    ahead = _backward(likelihood, scaled, begin, children)
    behind = np.zeros(begin[n_cells + 1])
    behind[0] = 1.0
    for m in range(n_cells):
        for row in range(begin[m], begin[m + 1]):
            for slot in range(size):
                child, weight = children[row, slot], behind[row] * scaled[m, slot]
                behind[child] += weight
                shares[m, slot] += weight * ahead[child]
        shares[m] /= shares[m].sum()
    return float(np.log(ahead[0]) - np.log(plain) + log_scale)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _backward(
    likelihood: NDArray[np.float64],
    factors: NDArray[np.float64],
    begin: NDArray[np.int64],
    children: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return, for every tally of the first m cells, the summed weight of all labels of the others."""
    n_cells, size = factors.shape
    ahead = np.zeros(begin[n_cells + 1])
    ahead[begin[n_cells] :] = likelihood
    for m in range(n_cells - 1, -1, -1):
        for row in range(begin[m], begin[m + 1]):
            for slot in range(size):
                ahead[row] += factors[m, slot] * ahead[children[row, slot]]
    return ahead


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _tallies(n_cells: int, size: int, choose: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the tallies of 0 … M cells begin and, of each, the place with one more of every slot.

    One more of slot s raises the partial sums behind it, and with them the terms of the rank.
    """
    begin = np.zeros(n_cells + 2, np.int64)
    for m in range(n_cells + 1):
        begin[m + 1] = begin[m] + choose[m + size - 1, size - 1]
    children = np.zeros((begin[n_cells], size), np.int64)
    tally = np.zeros(size, np.int64)
    for m in range(n_cells):
        tally[:] = 0
        tally[size - 1] = m
        for rank in range(begin[m + 1] - begin[m]):
            place, partial = begin[m + 1] + rank, m
            for slot in range(size - 1, -1, -1):
                children[begin[m] + rank, slot] = place
                partial -= tally[slot]
                if slot:
                    place += choose[partial + slot, slot] - choose[partial + slot - 1, slot]
            next_multiset(tally, size)
    return begin, children
