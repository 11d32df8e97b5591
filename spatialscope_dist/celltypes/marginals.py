"""Posterior marginals of the labels by Gibbs sweeps over blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_marginals(
    run: Callable[[list[dict[str, Any]]], list[Any]],
    blocks: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    labels: NDArray[np.int16],
    *,
    n_slots: int,
    burn_in: int,
    kept: int,
) -> NDArray[np.uint32]:
    """Return the sum over kept sweeps of the probability of each candidate, (cells, slots), in SHARE_UNITS.

    A label is drawn with probabilities that are known: their mean is that of the drawn labels, and
    varies less (Rao-Blackwell). Every block of a sweep sees the labels the sweep began with; `run`
    maps, for every block, the arguments `block`, `state`, `sweep` and `kept` to (changed cells, new
    labels, probabilities of its own cells, None in a sweep that is not kept), in any order of work.

    Parameters
    ----------
    run : runs one sweep of the listed blocks, results in the order of the list
    blocks : for each block, the cells whose labels it reads and its own cells
    labels : (cells,), types to start from
    n_slots : candidates of a cell at most
    burn_in, kept : sweeps dropped and kept
    """
    state = labels.copy()
    sums = np.zeros((len(labels), n_slots), np.uint32)
    for sweep in range(burn_in + kept):
        wanted = {"sweep": sweep, "kept": sweep >= burn_in}
        calls = [{"block": number, "state": state[reads], **wanted} for number, (reads, _) in enumerate(blocks)]
        new = state.copy()
        for (_, own), (changed, values, shares) in zip(blocks, run(calls), strict=True):
            new[changed] = values
            if shares is not None:
                sums[own] += shares
        state = new
    return sums
