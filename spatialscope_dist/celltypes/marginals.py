"""Posterior marginals of the labels by Gibbs sweeps over blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_marginals(
    run: Callable[[list[dict[str, Any]]], list[Any]],
    reads: Sequence[NDArray[np.int64]],
    labels: NDArray[np.int16],
    *,
    candidates: NDArray[np.int16],
    burn_in: int,
    kept: int,
) -> NDArray[np.uint16]:
    """Return how often each cell had each of its candidates in the kept sweeps, (cells, slots).

    Every block of a sweep sees the labels the sweep began with; `run` maps, for every block, the
    arguments `block`, `state` and `sweep` to (changed cells, new labels), in any order of work.

    Parameters
    ----------
    run : runs one sweep of the listed blocks, results in the order of the list
    reads : for each block, the cells whose labels it reads
    labels : (cells,), types to start from
    candidates : (cells, slots), candidate types of each cell, -1 in unused slots
    burn_in, kept : sweeps dropped and counted
    """
    state = labels.copy()
    seen = np.zeros(candidates.shape, np.uint16)
    for sweep in range(burn_in + kept):
        calls = [{"block": number, "state": state[cells], "sweep": sweep} for number, cells in enumerate(reads)]
        new = state.copy()
        for changed, values in run(calls):
            new[changed] = values
        state = new
        if sweep >= burn_in:
            seen += candidates == state[:, None]
    return seen
