"""New labels of one spot, everything outside it fixed: the best ones, or drawn ones.

A labelling's energy is that of its multiset, that of every cell alone (its field and its neighbours
outside the spot), and −β for every pair of equal neighbours inside.

All labellings of the spot's cells are compared when there are few; otherwise two cells at a time
(SpatialScope eq. 6), every pair in turn or each cell with a random partner.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.keyed_random import philox_words
from spatialscope_dist.celltypes.multisets import QUANTUM, multiset_rank

EXACT_LABELLINGS = 5000
EXACT_DRAWS = 256
_MAX_CELLS_EXACT = 12


class Prior(NamedTuple):
    """Potts prior and random stream of a sweep.

    Attributes
    ----------
    pair_energy : β in quanta
    stream : word that separates seeds
    """

    pair_energy: int
    stream: int


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def tally_slots(slots: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return how many cells have each slot, (size,)."""
    tally = np.zeros(size, np.int64)
    for slot in slots:
        tally[slot] += 1
    return tally


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def cell_energies(slots: NDArray[np.int64], alone: NDArray[np.int64], inside: NDArray[np.bool_], beta: int) -> int:
    """Return the energy of a spot's labels beyond their multiset's: each cell's own, −β per equal pair inside."""
    total = 0
    for m in range(len(slots)):
        total += alone[m, slots[m]]
        for other in range(m):
            if inside[m, other] and slots[m] == slots[other]:
                total -= beta
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _n_labellings(n_cells: int, size: int) -> int:
    count = 1
    for _ in range(n_cells):
        count *= size
        if count > EXACT_LABELLINGS:
            return count
    return count


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _labelling_energies(
    energy: NDArray[np.int64],
    alone: NDArray[np.int64],
    inside: NDArray[np.bool_],
    beta: int,
    choose: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the energy of every ordered labelling of a spot, last cell fastest, up to a constant."""
    n_cells, size = alone.shape
    count = _n_labellings(n_cells, size)
    out = np.empty(count, np.int64)
    slots = np.zeros(n_cells, np.int64)
    partial = np.zeros(n_cells + 1, np.int64)
    tally = np.zeros(size, np.int64)
    tally[0] = n_cells
    level = 0
    for number in range(count):
        for m in range(level, n_cells):
            partial[m + 1] = partial[m] + alone[m, slots[m]]
            for other in range(m):
                if inside[m, other] and slots[m] == slots[other]:
                    partial[m + 1] -= beta
        out[number] = energy[multiset_rank(tally, size, choose)] + partial[n_cells]
        level = n_cells - 1
        while level >= 0:
            tally[slots[level]] -= 1
            slots[level] += 1
            if slots[level] < size:
                tally[slots[level]] += 1
                break
            slots[level] = 0
            tally[0] += 1
            level -= 1
    return out


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _number_of(slots: NDArray[np.int64], size: int) -> int:
    number = 0
    for slot in slots:
        number = number * size + slot
    return number


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _set_number(slots: NDArray[np.int64], size: int, number: int) -> None:
    for m in range(len(slots) - 1, -1, -1):
        slots[m] = number % size
        number //= size


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _probabilities(energies: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return probabilities ∝ exp(−energy)."""
    lowest = energies.min()
    chances = np.empty(len(energies))
    total = 0.0
    for number in range(len(energies)):
        chances[number] = np.exp(-(energies[number] - lowest) * QUANTUM)
        total += chances[number]
    for number in range(len(energies)):
        chances[number] /= total
    return chances


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _draw(chances: NDArray[np.float64], uniform: float) -> int:
    """Return an index drawn with these probabilities."""
    partial = 0.0
    for number in range(len(chances)):
        partial += chances[number]
        if partial > uniform:
            return number
    return len(chances) - 1


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _add_marginals(shares: NDArray[np.float64], chances: NDArray[np.float64]) -> None:
    """Add the probability of every label of every cell, (cells, slots), from that of all labellings."""
    n_cells, size = shares.shape
    slots = np.zeros(n_cells, np.int64)
    for chance in chances:
        for m in range(n_cells):
            shares[m, slots[m]] += chance
        for m in range(n_cells - 1, -1, -1):
            slots[m] += 1
            if slots[m] < size:
                break
            slots[m] = 0


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _pair_energies(
    pair: tuple[int, int],
    slots: NDArray[np.int64],
    energy: NDArray[np.int64],
    alone: NDArray[np.int64],
    inside: NDArray[np.bool_],
    beta: int,
    choose: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the energies of all labels of two cells, the others fixed, (size²,), up to a constant."""
    one, two = pair
    size = alone.shape[1]
    around = np.zeros((2, size), np.int64)
    for slot in range(size):
        around[0, slot], around[1, slot] = alone[one, slot], alone[two, slot]
    for m in range(len(slots)):
        if m not in (one, two):
            around[0, slots[m]] -= beta * inside[one, m]
            around[1, slots[m]] -= beta * inside[two, m]
    tally = tally_slots(slots, size)
    tally[slots[one]] -= 1
    tally[slots[two]] -= 1
    out = np.empty(size * size, np.int64)
    for a in range(size):
        tally[a] += 1
        for b in range(size):
            tally[b] += 1
            both = beta if inside[one, two] and a == b else 0
            out[a * size + b] = energy[multiset_rank(tally, size, choose)] + around[0, a] + around[1, b] - both
            tally[b] -= 1
        tally[a] -= 1
    return out


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def descend_spot(
    slots: NDArray[np.int64],
    energy: NDArray[np.int64],
    alone: NDArray[np.int64],
    inside: NDArray[np.bool_],
    beta: int,
    choose: NDArray[np.int64],
) -> None:
    """Lower the spot's energy in place: best of all labellings, or pair by pair; ties keep labels."""
    n_cells, size = alone.shape
    if n_cells <= _MAX_CELLS_EXACT and _n_labellings(n_cells, size) <= EXACT_LABELLINGS:
        energies = _labelling_energies(energy, alone, inside, beta, choose)
        best = np.argmin(energies)
        if energies[best] < energies[_number_of(slots, size)]:
            _set_number(slots, size, best)
        return
    for one in range(n_cells):
        for two in range(one + 1, n_cells):
            energies = _pair_energies((one, two), slots, energy, alone, inside, beta, choose)
            best = np.argmin(energies)
            if energies[best] < energies[slots[one] * size + slots[two]]:
                slots[one], slots[two] = best // size, best % size


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def sample_spot(  # noqa: PLR0913
    slots: NDArray[np.int64],
    energy: NDArray[np.int64],
    alone: NDArray[np.int64],
    inside: NDArray[np.bool_],
    prior: Prior,
    choose: NDArray[np.int64],
    key: int,
    sweep: int,
) -> NDArray[np.float64]:
    """Draw the spot's labels in place: all at once, or each cell with a random partner.

    Returns the probability every label of every cell had when it was drawn, (cells, slots): its mean
    over sweeps has the mean of the drawn labels and a smaller variance (Rao-Blackwell).
    """
    n_cells, size = alone.shape
    shares = np.zeros((n_cells, size))
    if n_cells <= _MAX_CELLS_EXACT and _n_labellings(n_cells, size) <= EXACT_DRAWS:
        word = philox_words(key, sweep, 0, 0, prior.stream)[0]
        chances = _probabilities(_labelling_energies(energy, alone, inside, prior.pair_energy, choose))
        _set_number(slots, size, _draw(chances, (word + 0.5) / 4294967296.0))
        _add_marginals(shares, chances)
        return shares
    for one in range(n_cells):
        words = philox_words(key, sweep, one + 1, 0, prior.stream)
        two = (one + 1 + words[1] % (n_cells - 1)) % n_cells
        energies = _pair_energies((one, two), slots, energy, alone, inside, prior.pair_energy, choose)
        chances = _probabilities(energies)
        number = _draw(chances, (words[0] + 0.5) / 4294967296.0)
        slots[one], slots[two] = number // size, number % size
        for pair in range(len(chances)):
            shares[one, pair // size] += chances[pair]
    return shares
