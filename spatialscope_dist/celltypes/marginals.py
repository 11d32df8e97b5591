"""Posterior marginals of the labels by Gibbs sweeps over blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Samples:
    """Where a chain of Gibbs sweeps stands.

    Attributes
    ----------
    labels : (cells,), types after the last sweep
    sums : (cells, slots), probability of each candidate summed over kept sweeps, in SHARE_UNITS
    sweeps : sweeps done
    """

    labels: NDArray[np.int16]
    sums: NDArray[np.uint32]
    sweeps: int = 0

    @classmethod
    def begin(cls, labels: NDArray[np.int16], *, n_slots: int) -> Samples:
        """Return the chain before its first sweep."""
        return cls(labels, np.zeros((len(labels), n_slots), np.uint32))


def sample_marginals(
    run: Callable[[list[dict[str, Any]]], list[Any]],
    blocks: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    samples: Samples,
    *,
    burn_in: int,
    kept: int,
) -> Iterator[Samples]:
    """Yield the chain, one sweep further each time, until all sweeps are done.

    A label is drawn with probabilities that are known: their mean is that of the drawn labels, and
    varies less (Rao-Blackwell). Every block of a sweep sees the labels the sweep began with; `run`
    maps, for every block, the arguments `block`, `state`, `sweep` and `kept` to (changed cells, new
    labels, probabilities of its own cells, None in a sweep that is not kept), in any order of work.
    Draws are keyed by the sweep: a chain that was kept goes on as if it had never stopped.

    Parameters
    ----------
    run : runs one sweep of the listed blocks, results in the order of the list
    blocks : for each block, the cells whose labels it reads and its own cells
    samples : where the chain stands; its sums are added to in place
    burn_in, kept : sweeps dropped and kept
    """
    while samples.sweeps < burn_in + kept:
        wanted = {"sweep": samples.sweeps, "kept": samples.sweeps >= burn_in}
        state = samples.labels
        calls = [{"block": number, "state": state[reads], **wanted} for number, (reads, _) in enumerate(blocks)]
        new = state.copy()
        for (_, own), (changed, values, shares) in zip(blocks, run(calls), strict=True):
            new[changed] = values
            if shares is not None:
                samples.sums[own] += shares
        samples.labels = new
        samples.sweeps += 1
        yield samples
