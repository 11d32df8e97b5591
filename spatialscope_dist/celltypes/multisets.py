"""Candidate types of a spot and the likelihood of every multiset of its labels, computed once.

The likelihood of a spot depends on how many of its cells have each type, not on which: eq. (4). A
multiset is a tuple of counts over the spot's candidates with sum M; its place in the cache is its
colexicographic rank. Energies are whole numbers of `QUANTUM` nats, so that sums and comparisons
are exact and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup, add_log_likelihoods

QUANTUM = 2.0**-20
MIN_CANDIDATES = 3
MAX_CANDIDATES = 12
_LEAST_SHARE = 0.02  # weights below it are noise of the fit


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


@dataclass(frozen=True)
class MixtureModel:
    """What the cells of a spot add to its counts.

    Attributes
    ----------
    profiles : (types, genes), signatures with the platform effect in them
    rna_per_cell : (types,), RNA of a cell of each type, in any unit
    table : likelihood table at the section's overdispersion
    temper : power t the likelihood is raised to; below 1 where the model is known to be wrong
    """

    profiles: NDArray[np.float64]
    rna_per_cell: NDArray[np.float64]
    table: LikelihoodTable
    temper: float = 1.0


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


def weights_field(weights: NDArray[np.float64], candidates: Candidates) -> NDArray[np.float64]:
    """Return −log(p_ik + 0.02) of each candidate, p the spot's RCTD weights as shares, (spots, slots), nats."""
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    of_candidate = np.take_along_axis(share, np.maximum(candidates.types, 0), axis=1)
    return np.asarray(np.where(candidates.types >= 0, -np.log(of_candidate + _LEAST_SHARE), 0.0))


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
    n_cells: NDArray[np.int64],
    candidates: Candidates,
    model: MixtureModel,
    *,
    field: NDArray[np.float64] | None = None,
) -> MultisetCache:
    """Return the energy of every multiset of labels of each spot.

    t · (−log likelihood) + Σ_m field_{k_m}, with the rates of eq. (4) and cells that hold s_k RNA,

        log λ_ig = α_i + log(Σ_m s_{k_im} μ_{k_im, g} / Σ_m s_{k_im}) + γ_g.

    Parameters
    ----------
    counts : (spots, genes), raw counts of the regression genes
    exposure : (spots,), N_i exp(α_i); 0 leaves out the likelihood and the field (prior only)
    n_cells : (spots,), M_i
    model : signatures, RNA per cell, table and temper
    field : (spots, slots), nats each cell with that candidate adds
    """
    sizes = np.where(n_cells > 0, n_multisets(n_cells, candidates.size), 0)
    start = np.zeros(len(n_cells) + 1, np.int64)
    np.cumsum(sizes, out=start[1:])
    energy = _cache(
        _Spots(
            np.ascontiguousarray(counts, np.float64),
            np.asarray(exposure, np.float64),
            np.asarray(n_cells, np.int64),
            candidates.types,
            candidates.size,
            np.zeros(candidates.types.shape) if field is None else np.asarray(field, np.float64),
        ),
        np.ascontiguousarray(model.profiles, np.float64),
        np.asarray(model.rna_per_cell, np.float64),
        start,
        model.table.lookup_for(np.asarray(counts)),
        model.temper,
    )
    return MultisetCache(candidates, np.asarray(n_cells, np.int64), start, energy)


class _Spots(NamedTuple):
    """What the compiled loop reads of the spots, arguments of `cache_multisets`."""

    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]
    n_cells: NDArray[np.int64]
    types: NDArray[np.int64]
    size: NDArray[np.int64]
    field: NDArray[np.float64]


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
def _all_tallies(n_cells: int, size: int, n_sets: int) -> NDArray[np.float64]:
    """Return the counts of every multiset by rank, (size, multisets)."""
    tallies = np.empty((size, n_sets))
    tally = np.zeros(size, np.int64)
    tally[size - 1] = n_cells
    for rank in range(n_sets):
        for slot in range(size):
            tallies[slot, rank] = tally[slot]
        next_multiset(tally, size)
    return tallies


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _log_likelihoods_of(
    counts: NDArray[np.float64], profiles: NDArray[np.float64], shares: NDArray[np.float64], table: Lookup
) -> NDArray[np.float64]:
    """Return the log likelihood at rates shares · profiles, (multisets,); shares (size, multisets)."""
    n_sets = shares.shape[1]
    total, rates = np.zeros(n_sets), np.empty(n_sets)
    for gene in range(len(counts)):
        rates[:] = 0.0
        for slot in range(len(shares)):
            profile = profiles[slot, gene]
            for rank in range(n_sets):
                rates[rank] += shares[slot, rank] * profile
        add_log_likelihoods(total, counts[gene], rates, table, 1.0)
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _cache(
    spots: _Spots,
    profiles: NDArray[np.float64],
    rna: NDArray[np.float64],
    start: NDArray[np.int64],
    table: Lookup,
    temper: float,
) -> NDArray[np.int64]:
    energy = np.zeros(start[-1], np.int64)
    for spot in range(len(spots.counts)):
        if spots.n_cells[spot] == 0 or spots.exposure[spot] <= 0.0:
            continue
        size = spots.size[spot]
        types = spots.types[spot, :size]
        tallies = _all_tallies(spots.n_cells[spot], size, start[spot + 1] - start[spot])
        field = np.zeros(tallies.shape[1])
        amount = np.zeros(tallies.shape[1])
        for slot in range(size):
            field += tallies[slot] * spots.field[spot, slot]
            tallies[slot] *= rna[types[slot]]
            amount += tallies[slot]
        for slot in range(size):
            tallies[slot] *= spots.exposure[spot] / amount
        found = _log_likelihoods_of(spots.counts[spot], profiles[types], tallies, table)
        for rank in range(len(found)):
            energy[start[spot] + rank] = int(np.rint((field[rank] - temper * found[rank]) / QUANTUM))
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
