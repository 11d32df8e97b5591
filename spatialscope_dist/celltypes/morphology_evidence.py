"""Whether nuclei of different types look different: held-out evidence against nuclei exchanged with neighbours.

Most spots teach what nuclei look like; how much better that foretells the measures in the others, given
their counts, is the evidence. It must exceed that of the same nuclei exchanged among a few
neighbouring spots, which keeps the staining of the place and breaks the link to the counts. Exchange
inside a spot would change nothing: counts know no order of the cells, so neither does their evidence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.morphology import Sample, learn_looks, look_posterior
from spatialscope_dist.geometry.blocks import assign_blocks
from spatialscope_dist.randomness import philox

PARTS = 4
SPOTS_EXCHANGED = 8
STANDARD_ERRORS = 3.0


class Evidence(NamedTuple):
    """Held-out evidence of the measures, nats per cell.

    Attributes
    ----------
    gain, gain_error : what knowing the types' looks adds to the log density of the measures, standard error
    exchanged : the same with nuclei exchanged among neighbouring spots
    excess_error : standard error of gain − exchanged, over spots
    """

    gain: float
    gain_error: float
    exchanged: float
    excess_error: float

    @property
    def convinces(self) -> bool:
        """Whether the gain is above zero and above that of exchanged nuclei by three standard errors."""
        excess = self.gain - self.exchanged
        return self.gain > STANDARD_ERRORS * self.gain_error and excess > STANDARD_ERRORS * self.excess_error

    @property
    def verdict(self) -> str:
        """The decision and its figures, in words."""
        start = (
            "the looks of nuclei help to type them" if self.convinces else "the looks of nuclei tell no types, unused"
        )
        gain = f"{self.gain:.3f} ± {self.gain_error:.3f} nats per cell on spots held out"
        return f"{start}: {gain}, {self.exchanged:.3f} with nuclei exchanged among neighbouring spots"


def weigh_evidence(sample: Sample, keys: NDArray[np.int64]) -> Evidence:
    """Return the held-out evidence of a sample's measures.

    Parameters
    ----------
    sample : the spots
    keys : (spots,), random keys: they say which part a spot is held out with, and how nuclei are exchanged
    """
    gain = _held_out(sample, keys)
    partners = _exchange(sample, keys)
    exchanged = _held_out(replace(sample, measures=sample.measures[partners]), keys)
    n_spots, n_cells = len(keys), max(len(sample.spot), 1)

    def error(values: NDArray[np.float64]) -> float:
        return float(values.std() * np.sqrt(n_spots) / n_cells)

    return Evidence(float(gain.sum() / n_cells), error(gain), float(exchanged.sum() / n_cells), error(gain - exchanged))


def _held_out(sample: Sample, keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log evidence of each spot's measures under looks learnt from the other parts, (spots,)."""
    evidence = np.zeros(len(keys))
    for part in range(PARTS):
        inside = keys % PARTS == part
        looks = learn_looks(sample, learnt_from=~inside)
        evidence[inside] = look_posterior(sample, looks).log_evidence[inside]
    return evidence


def _exchange(sample: Sample, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cell whose measures each cell gets, (cells,): any of a few neighbouring spots."""
    n_groups = -(-len(keys) // SPOTS_EXCHANGED)
    group = assign_blocks(sample.places, sample.cache.n_cells, n_blocks=n_groups)[sample.spot]
    rank = np.arange(len(sample.spot)) - np.searchsorted(sample.spot, sample.spot)
    drawn = philox(keys[sample.spot], (rank, 0, 0, 0))[0]
    partners = np.empty(len(group), np.int64)
    partners[np.argsort(group, kind="stable")] = np.lexsort((drawn, group))
    return partners
