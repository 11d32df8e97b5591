"""Spots worked out in batches that fit in memory: sized by what a GPU has free, halved when that was too much."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import SpotCells

if TYPE_CHECKING:
    import torch

CELLS_PER_BLOCK = 64  # rows of a network's call: one fixed number of cells, so that a batch's size changes no bit
_MOST_BLOCKS = 64
_SHARE_OF_FREE, _ARRAYS = 0.5, 16  # of (chains, cells, genes), alive at one time
Result = TypeVar("Result")


def cells_at_once(device: torch.device, *, n_genes: int, n_chains: int) -> int:
    """Return how many cells a batch may have: one block on a CPU, as many as half of its free memory holds on a GPU."""
    import torch

    if device.type != "cuda":
        return CELLS_PER_BLOCK
    free, _ = torch.cuda.mem_get_info(device)
    blocks = int(_SHARE_OF_FREE * free) // (4 * _ARRAYS * n_genes * n_chains * CELLS_PER_BLOCK)
    return CELLS_PER_BLOCK * min(max(blocks, 1), _MOST_BLOCKS)


def within_memory(
    batches: Iterable[tuple[NDArray[np.intp] | slice, SpotCells]], work: Callable[[SpotCells], Result]
) -> Iterator[tuple[NDArray[np.intp], SpotCells, Result | None]]:
    """Yield (cells, spots, what `work` makes of the spots); a batch that does not fit in memory is halved.

    A spot that alone does not fit gives None: it is left without an estimate, the others are not.
    """
    for cells, spots in batches:
        numbers = np.arange(cells.start, cells.stop) if isinstance(cells, slice) else cells
        yield from _halved(numbers, spots, work)


def _halved(
    cells: NDArray[np.intp], spots: SpotCells, work: Callable[[SpotCells], Result]
) -> Iterator[tuple[NDArray[np.intp], SpotCells, Result | None]]:
    result, n_spots = _attempt(spots, work), len(spots.counts)
    if result is not None or n_spots == 1:
        yield cells, spots, result
        return
    for low, high in ((0, n_spots // 2), (n_spots // 2, n_spots)):
        yield from _halved(cells[spots.first[low] : spots.first[high]], spots.part(low, high), work)


def _attempt(spots: SpotCells, work: Callable[[SpotCells], Result]) -> Result | None:
    import torch

    try:
        return work(spots)
    except (torch.OutOfMemoryError, MemoryError):
        shape = len(spots.counts), len(spots.types), spots.counts.shape[1]
        logging.getLogger(__name__).warning("%d spots with %d cells × %d genes do not fit in memory", *shape)
    # Only here, when the error and the tensors its frames held are gone, is there something to give back.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
