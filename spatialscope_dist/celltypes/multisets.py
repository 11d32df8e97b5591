"""Candidate types of a spot and the likelihood of every multiset of its labels, computed once.

The likelihood of a spot depends on how many of its cells have each type, not on which: eq. (4). A
multiset is a tuple of counts over the spot's candidates with sum M; its place in the cache is its
colexicographic rank. Energies are whole numbers of `QUANTUM` nats, so that sums and comparisons
are exact and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup, add_log_likelihoods

QUANTUM = 2.0**-20
MIN_CANDIDATES = 3
MAX_CANDIDATES = 12


@dataclass(frozen=True)
class Candidates:
    """Types a spot's cells may have.

    Attributes
    ----------
    types : (spots, slots), type indices, ascending within a spot; -1 in unused slots
    size : (spots,), number of candidates
    """

    types: NDArray[np.int64]
    size: NDArray[np.int64]


@dataclass(frozen=True)
class MultisetCache:
    """Energies of all multisets of each spot.

    Attributes
    ----------
    candidates : candidate types of each spot
    n_cells : (spots,), cells of each spot
    start : (spots + 1,), where each spot's energies begin
    energy : flat, −log likelihood in quanta, by colexicographic rank of the multiset
    """

    candidates: Candidates
    n_cells: NDArray[np.int64]
    start: NDArray[np.int64]
    energy: NDArray[np.int64]


def choose_candidates(
    weights: NDArray[np.float64], n_cells: NDArray[np.int64], *, max_cells: int, max_multisets: int
) -> Candidates:
    """Return the candidate types of each spot.

    A type is a candidate when w_ik > min(Σ_k w / (2 max M), Σ_k w / 5), the
    three strongest always; the weakest are dropped while the multisets exceed `max_multisets`.

    Parameters
    ----------
    weights : (spots, types), RCTD weights
    n_cells : (spots,), M
    max_cells : largest M of the section
    """
    n_spots, n_types = weights.shape
    order = np.argsort(-weights, axis=1, kind="stable")
    total = weights.sum(axis=1)
    threshold = np.minimum(total / (2.0 * max(max_cells, 1)), total / 5.0)
    size = np.maximum((weights > threshold[:, None]).sum(axis=1), MIN_CANDIDATES)
    size = np.minimum(size, min(n_types, MAX_CANDIDATES)).astype(np.int64)
    while True:
        over = (size > 1) & (n_multisets(n_cells, size) > max_multisets)
        if not over.any():
            break
        size[over] -= 1
    slots = int(size.max()) if n_spots else 1
    types = order[:, :slots].astype(np.int64)
    types[np.arange(slots)[None] >= size[:, None]] = n_types
    types.sort(axis=1)
    types[types == n_types] = -1
    return Candidates(types, size)


def n_multisets(n_cells: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many multisets of `n_cells` labels out of `size` types there are, (spots,).

    Values are capped at 2**62.
    """
    count = np.ones(len(n_cells))
    for j in range(1, int(size.max(initial=1))):
        count = np.where(j < size, np.rint(count * (n_cells + j) / j), count)
    return np.minimum(count, 2.0**62).astype(np.int64)


def cache_multisets(
    counts: NDArray[np.int64],
    exposure: NDArray[np.float64],
    profiles: NDArray[np.float64],
    n_cells: NDArray[np.int64],
    candidates: Candidates,
    table: LikelihoodTable,
) -> MultisetCache:
    """Return −log likelihood of every multiset of labels of each spot.

    log λ_ig = α_i + log((1/M_i) Σ_m μ_{k_im, g}) + γ_g (eq. 4).

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    exposure : (spots,), N_i exp(α_i); 0 gives every multiset the same energy (prior only)
    profiles : (types, genes), signatures with the platform effect in them
    n_cells : (spots,), M_i
    """
    sizes = np.where(n_cells > 0, n_multisets(n_cells, candidates.size), 0)
    start = np.zeros(len(n_cells) + 1, np.int64)
    np.cumsum(sizes, out=start[1:])
    energy = _cache(
        np.ascontiguousarray(counts, np.float64),
        np.asarray(exposure, np.float64),
        np.ascontiguousarray(profiles, np.float64),
        np.asarray(n_cells, np.int64),
        candidates.types,
        candidates.size,
        start,
        table.lookup_for(np.asarray(counts)),
    )
    return MultisetCache(candidates, np.asarray(n_cells, np.int64), start, energy)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def binomials(top: int, bottom: int) -> NDArray[np.int64]:
    """Return the table of binomial coefficients C(n, j), (top + 1, bottom + 1), capped at 2**60."""
    table = np.zeros((top + 1, bottom + 1), np.int64)
    for n in range(top + 1):
        table[n, 0] = 1
        for j in range(1, min(n, bottom) + 1):
            table[n, j] = min(table[n - 1, j - 1] + table[n - 1, j], 1 << 60)
    return table


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def multiset_rank(tally: NDArray[np.int64], size: int, choose: NDArray[np.int64]) -> int:
    """Return the colexicographic rank of a multiset given by its counts, (size,)."""
    rank, partial = 0, 0
    for j in range(1, size):
        partial += tally[j - 1]
        rank += choose[partial + j - 1, j]
    return rank


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def next_multiset(tally: NDArray[np.int64], size: int) -> bool:
    """Change the counts to those of the next rank; False after the last one.

    In partial sums s_j the next rank raises the first s_j that is below s_{j+1} and zeroes those
    before it.
    """
    before = 0
    for j in range(size - 1):
        before += tally[j]
        if tally[j + 1] > 0:
            for i in range(j + 1):
                tally[i] = 0
            tally[j] = before + 1
            tally[j + 1] -= 1
            return True
    return False


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _spot_energies(
    counts: NDArray[np.float64],
    rates_of: NDArray[np.float64],
    n_cells: int,
    energy: NDArray[np.int64],
    table: Lookup,
) -> None:
    size, n_sets = len(rates_of), len(energy)
    tallies = np.empty((size, n_sets))
    tally = np.zeros(size, np.int64)
    tally[size - 1] = n_cells
    for rank in range(n_sets):
        for slot in range(size):
            tallies[slot, rank] = tally[slot]
        next_multiset(tally, size)
    total, rates = np.zeros(n_sets), np.empty(n_sets)
    for gene in range(len(counts)):
        rates[:] = 0.0
        for slot in range(size):
            share = rates_of[slot, gene]
            for rank in range(n_sets):
                rates[rank] += tallies[slot, rank] * share
        add_log_likelihoods(total, counts[gene], rates, table, -1.0)
    for rank in range(n_sets):
        energy[rank] = int(np.rint(total[rank] / QUANTUM))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _cache(  # noqa: PLR0913
    counts: NDArray[np.float64],
    exposure: NDArray[np.float64],
    profiles: NDArray[np.float64],
    n_cells: NDArray[np.int64],
    types: NDArray[np.int64],
    sizes: NDArray[np.int64],
    start: NDArray[np.int64],
    table: Lookup,
) -> NDArray[np.int64]:
    energy = np.zeros(start[-1], np.int64)
    for spot in range(len(counts)):
        if n_cells[spot] == 0 or exposure[spot] <= 0.0:
            continue
        size = sizes[spot]
        share = np.empty((size, profiles.shape[1]))
        for slot in range(size):
            for gene in range(profiles.shape[1]):
                share[slot, gene] = profiles[types[spot, slot], gene] * exposure[spot] / n_cells[spot]
        _spot_energies(counts[spot], share, n_cells[spot], energy[start[spot] : start[spot + 1]], table)
    return energy


def first_labels(weights: NDArray[np.float64], cache: MultisetCache) -> NDArray[np.int64]:
    """Return the starting label of every cell as a candidate slot, (cells,), spots one after another.

    The spot's weights times M, rounded by largest remainder, given to its cells in slot order.
    """
    parts = []
    for spot, n_cells in enumerate(cache.n_cells):
        if n_cells:
            types = cache.candidates.types[spot, : cache.candidates.size[spot]]
            parts.append(np.repeat(np.arange(len(types)), round_to_total(weights[spot, types], int(n_cells))))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def round_to_total(amounts: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return whole numbers in proportion to `amounts` that sum to `total` (largest remainder).

    Equal remainders go to the lower index; amounts that are all zero count as equal.
    """
    known = np.maximum(np.nan_to_num(amounts), 0.0)
    share = known / known.sum() if known.sum() > 0 else np.full(len(known), 1.0 / len(known))
    exact = np.round(share * total, 9)
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole
