"""Labels of cells under likelihood and Potts prior: sweeps over blocks of spots in colour order.

    E(k) = Σ_spots −log p(y_i | multiset of the spot's labels) + Σ_cells field(cell, k)
           + β Σ_{neighbour pairs} 1[k ≠ k'],

β = ν / mean degree, one constant for every pair, so neighbour sums are whole numbers and E is one
energy (eq. 5). The field is what else is known of a cell, such as the look of its nucleus. All
energies are whole numbers of QUANTUM nats: a sweep can never raise E, and labels are identical on
every machine and for every division into blocks.

A sweep visits spots by ascending colour and changes all labels of a spot together: exactly, over
all ordered labellings, when there are few, else two cells at a time (eq. 6).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.multisets import QUANTUM, MultisetCache, binomials, multiset_rank
from spatialscope_dist.celltypes.spot_updates import Prior, cell_energies, descend_spot, sample_spot, tally_slots
from spatialscope_dist.geometry.blocks import Closure
from spatialscope_dist.geometry.neighbours import Graph

SHARE_UNITS = 10_000  # whole numbers, so that sums over sweeps do not depend on their order


class Block(NamedTuple):
    """What one block of spots needs for sweeps; a plain bundle of arrays, saved as such.

    Attributes
    ----------
    cells : (known cells,), global positions of own, recomputed and read cells, ascending
    first : (spots,), where each updated spot's cells begin among `cells`; spots in colour order
    n_cells, size, key, start : (spots,), cells, candidates, random key, offset into `energy`
    own : (spots,), whether the block answers for the spot
    types : (spots, slots), candidate types
    energy : flat, multiset energies in quanta
    indptr, indices : neighbours of `cells` as positions among `cells`; empty rows for read cells
    field : (known cells, slots), energy of each candidate for the cell alone, in quanta; or (0, slots): none
    """

    cells: NDArray[np.int64]
    first: NDArray[np.int64]
    n_cells: NDArray[np.int64]
    size: NDArray[np.int64]
    key: NDArray[np.int64]
    start: NDArray[np.int64]
    own: NDArray[np.bool_]
    types: NDArray[np.int64]
    energy: NDArray[np.int64]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    field: NDArray[np.int64]


class Swept(NamedTuple):
    """Result of one sweep of a block.

    Attributes
    ----------
    changed : (changes,), positions among the block's cells of own cells whose label changed
    labels : (changes,), their new labels
    before : twice the block's share of the energy before the first sweep, in quanta; 0 for later ones
    change : change of the energy through own spots, in quanta
    shares : (own cells, slots), probability each candidate had when it was drawn, in SHARE_UNITS; of a
        Gibbs sweep only
    """

    changed: NDArray[np.int64]
    labels: NDArray[np.int16]
    before: int
    change: int
    shares: NDArray[np.uint16]


def pair_energy(smoothness: float, mean_degree: float) -> int:
    """Return β = ν / mean degree in quanta."""
    return round(smoothness / mean_degree / QUANTUM) if mean_degree > 0 else 0


def updated_spots(closure: Closure, colours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the spots a block updates, own and recomputed, in colour order."""
    spots = np.sort(np.concatenate([closure.own, closure.recomputed]))
    return np.asarray(spots[np.argsort(colours[spots], kind="stable")])


def build_block(
    closure: Closure,
    spots: NDArray[np.int64],
    cache: MultisetCache,
    *,
    graph: Graph,
    cell_start: NDArray[np.int64],
    keys: NDArray[np.int64],
    field: NDArray[np.integer] | None = None,
) -> Block:
    """Return the arrays of one block.

    Parameters
    ----------
    closure : own, recomputed and read spots
    spots : updated spots in colour order (`updated_spots`)
    cache : multiset energies of exactly these spots, in this order
    graph : neighbours of all cells
    cell_start : (all spots + 1,), where each spot's cells begin; a spot's cells are contiguous
    keys : (all spots,), random keys
    field : (all cells, slots), energy of each candidate for the cell alone, in quanta; None: no field
    """
    known = np.sort(np.concatenate([closure.own, closure.recomputed, closure.read]))
    cells = _concatenate_ranges(cell_start[known], cell_start[known + 1])
    updated = _concatenate_ranges(cell_start[np.sort(spots)], cell_start[np.sort(spots) + 1])
    degree = np.zeros(len(cells), np.int64)
    rows = np.searchsorted(cells, updated)
    degree[rows] = graph.indptr[updated + 1] - graph.indptr[updated]
    indptr = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(degree, out=indptr[1:])
    halves = _concatenate_ranges(graph.indptr[updated], graph.indptr[updated + 1])
    return Block(
        cells=cells,
        first=np.searchsorted(cells, cell_start[spots]).astype(np.int64),
        n_cells=cache.n_cells,
        size=cache.candidates.size,
        key=keys[spots],
        start=cache.start[:-1].copy(),
        own=np.isin(spots, closure.own),
        types=cache.candidates.types,
        energy=cache.energy,
        indptr=indptr,
        indices=np.searchsorted(cells, graph.indices[halves]).astype(np.int64),
        field=np.zeros((0, cache.candidates.types.shape[1]), np.int64)
        if field is None
        else field[cells].astype(np.int64),
    )


def _concatenate_ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    lengths = stops - starts
    total = int(lengths.sum())
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return np.asarray(np.arange(total) + offsets, np.int64)


def descend_block(
    block: Block, labels: NDArray[np.int16], prior: Prior, touched: NDArray[np.bool_] | None = None
) -> Swept:
    """Return what one sweep of iterated conditional modes changes in the block's own spots.

    Pure and idempotent. With the closure in the block, the result equals that of a sweep over all
    spots, for any division into blocks (`geometry.blocks.sweep_closure`). A spot rests when neither
    its cells nor their neighbours changed in the last sweep or before it in this one: it chose its
    labels with all of them as they are, and would choose them again.

    Parameters
    ----------
    block : the block
    labels : (known cells,), type of each of the block's cells before the sweep
    prior : Potts prior
    touched : (known cells,), cells the last sweep changed; None in the first one
    """
    stirred = np.ones(len(labels), bool) if touched is None else touched.copy()
    before = int(_doubled_energy(block, np.asarray(labels, np.int64), prior)) if touched is None else 0
    return _swept(block, labels, prior, sweep=-1, stirred=stirred)._replace(before=before)


def sample_block(block: Block, labels: NDArray[np.int16], prior: Prior, *, sweep: int) -> Swept:
    """Return what one Gibbs sweep changes in the block's own spots; draws keyed by spot and sweep.

    Parameters
    ----------
    block, labels, prior : as in descend_block
    sweep : number of the sweep, ≥ 0
    """
    return _swept(block, labels, prior, sweep=sweep, stirred=np.ones(len(labels), bool))


def _swept(block: Block, labels: NDArray[np.int16], prior: Prior, *, sweep: int, stirred: NDArray[np.bool_]) -> Swept:
    old = np.asarray(labels, np.int64)
    shares = np.zeros((len(old) if sweep >= 0 else 0, block.types.shape[1]), np.uint16)
    new, change = _sweep(block, old, prior, sweep, _binomials_of(block), shares, stirred)
    own = own_cells(block)
    changed = np.flatnonzero((new != old) & own)
    return Swept(changed, new[changed].astype(np.int16), 0, int(change), shares[own] if sweep >= 0 else shares)


def own_cells(block: Block) -> NDArray[np.bool_]:
    """Return which of the block's cells belong to its own spots, (known cells,)."""
    mask = np.zeros(len(block.cells), bool)
    mask[_concatenate_ranges(block.first[block.own], (block.first + block.n_cells)[block.own])] = True
    return mask


def margins(block: Block, labels: NDArray[np.int16], prior: Prior) -> NDArray[np.float64]:
    """Return the energy gap of each known cell to its second best label, (known cells,), nats.

    All other labels stay; NaN for cells that are not the block's own or have one candidate.
    """
    gaps: NDArray[np.float64] = _margins(block, np.asarray(labels, np.int64), prior, _binomials_of(block))
    gaps[~own_cells(block)] = np.nan
    return gaps


def _binomials_of(block: Block) -> NDArray[np.int64]:
    size = int(block.size.max(initial=1))
    choose: NDArray[np.int64] = binomials(int(block.n_cells.max(initial=0)) + size, size)
    return choose


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _doubled_energy(block: Block, labels: NDArray[np.int64], prior: Prior) -> int:
    choose = binomials(block.n_cells.max() + block.types.shape[1] if len(block.n_cells) else 1, block.types.shape[1])
    total = 0
    for spot in range(len(block.first)):
        if not block.own[spot] or block.n_cells[spot] == 0:
            continue
        slots = _slots(block, labels, spot)
        tally = tally_slots(slots, block.size[spot])
        total += 2 * block.energy[block.start[spot] + multiset_rank(tally, block.size[spot], choose)]
        for cell in range(block.first[spot], block.first[spot] + block.n_cells[spot]):
            for position in range(block.indptr[cell], block.indptr[cell + 1]):
                if labels[block.indices[position]] != labels[cell]:
                    total += prior.pair_energy
        if len(block.field):
            for m in range(block.n_cells[spot]):
                total += 2 * block.field[block.first[spot] + m, slots[m]]
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _slots(block: Block, labels: NDArray[np.int64], spot: int) -> NDArray[np.int64]:
    """Return the candidate slot of each of a spot's labels, (cells of the spot,)."""
    slots = np.zeros(block.n_cells[spot], np.int64)
    for m in range(len(slots)):
        for slot in range(block.size[spot]):
            if block.types[spot, slot] == labels[block.first[spot] + m]:
                slots[m] = slot
    return slots


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _surroundings(
    block: Block, labels: NDArray[np.int64], spot: int, beta: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return alone[m, slot], field − β · equal neighbours outside the spot, and inside[m, m'], pairs within."""
    first, n_cells, size = block.first[spot], block.n_cells[spot], block.size[spot]
    alone = np.zeros((n_cells, size), np.int64)
    if len(block.field):
        alone += block.field[first : first + n_cells, :size]
    inside = np.zeros((n_cells, n_cells), np.bool_)
    for m in range(n_cells):
        for position in range(block.indptr[first + m], block.indptr[first + m + 1]):
            other = block.indices[position]
            if first <= other < first + n_cells:
                inside[m, other - first] = True
                continue
            for slot in range(size):
                if block.types[spot, slot] == labels[other]:
                    alone[m, slot] -= beta
    return alone, inside


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _sweep(  # noqa: PLR0913
    block: Block,
    old: NDArray[np.int64],
    prior: Prior,
    sweep: int,
    choose: NDArray[np.int64],
    shares: NDArray[np.uint16],
    stirred: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], int]:
    """Return the labels after a sweep and own spots' change of energy; a Gibbs sweep (≥ 0) fills `shares`.

    `stirred` marks the cells that the last sweep changed, and then those that this one changes.
    """
    labels = old.copy()
    change = 0
    for spot in range(len(block.first)):
        mine = slice(block.first[spot], block.first[spot] + block.n_cells[spot])
        if block.n_cells[spot] == 0 or block.size[spot] == 1:
            shares[mine, 0] = SHARE_UNITS
            continue
        if sweep < 0 and not _is_stirred(block, stirred, spot):
            continue
        energy = block.energy[block.start[spot] :]
        alone, inside = _surroundings(block, labels, spot, prior.pair_energy)
        slots = _slots(block, labels, spot)
        before = energy[multiset_rank(tally_slots(slots, block.size[spot]), block.size[spot], choose)]
        before += cell_energies(slots, alone, inside, prior.pair_energy)
        if sweep < 0:
            descend_spot(slots, energy, alone, inside, prior.pair_energy, choose)
        else:
            drawn = sample_spot(slots, energy, alone, inside, prior, choose, block.key[spot], sweep)
            shares[mine, : block.size[spot]] = np.rint(drawn * SHARE_UNITS).astype(np.uint16)
        if block.own[spot]:
            after = energy[multiset_rank(tally_slots(slots, block.size[spot]), block.size[spot], choose)]
            change += after + cell_energies(slots, alone, inside, prior.pair_energy) - before
        for m in range(block.n_cells[spot]):
            label = block.types[spot, slots[m]]
            if labels[block.first[spot] + m] != label:
                labels[block.first[spot] + m] = label
                stirred[block.first[spot] + m] = True
    return labels, change


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _is_stirred(block: Block, stirred: NDArray[np.bool_], spot: int) -> bool:
    """Return whether one of a spot's cells or of their neighbours is marked."""
    for cell in range(block.first[spot], block.first[spot] + block.n_cells[spot]):
        if stirred[cell]:
            return True
        for position in range(block.indptr[cell], block.indptr[cell + 1]):
            if stirred[block.indices[position]]:
                return True
    return False


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _margins(block: Block, labels: NDArray[np.int64], prior: Prior, choose: NDArray[np.int64]) -> NDArray[np.float64]:
    gaps = np.full(len(block.cells), np.nan)
    for spot in range(len(block.first)):
        size = block.size[spot]
        if not block.own[spot] or block.n_cells[spot] == 0 or size == 1:
            continue
        energy = block.energy[block.start[spot] :]
        alone, inside = _surroundings(block, labels, spot, prior.pair_energy)
        slots = _slots(block, labels, spot)
        for m in range(block.n_cells[spot]):
            kept, best, current = slots[m], np.int64(1) << 62, np.int64(0)
            for slot in range(size):
                slots[m] = slot
                value = energy[multiset_rank(tally_slots(slots, size), size, choose)]
                value += cell_energies(slots, alone, inside, prior.pair_energy)
                if slot == kept:
                    current = value
                else:
                    best = min(best, value)
            slots[m] = kept
            gaps[block.first[spot] + m] = (best - current) * QUANTUM
    return gaps
