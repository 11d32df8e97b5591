"""One sweep of split Gibbs over a micro-batch, as compiled loops over the counts that are not zero."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import SpotCells
from spatialscope_dist.expression.keyed_counts import STREAM_WORDS, compiled_draws

Float = NDArray[np.float32]


class Measured(NamedTuple):
    """Counts of whole spots that are not zero, spot after spot: those of spot i are starts[i]:starts[i + 1]."""

    keys: NDArray[np.int64]
    first: NDArray[np.int64]
    starts: NDArray[np.int64]
    genes: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, spots: SpotCells) -> Measured:
        """Return the measured counts of the spots."""
        whole = np.rint(spots.measured).astype(np.int64)
        spot, gene = np.nonzero(whole)
        starts = np.r_[0, np.cumsum(np.bincount(spot, minlength=len(whole)))].astype(np.int64)
        return cls(spots.keys, spots.first, starts, gene, whole[spot, gene])


class Prior(NamedTuple):
    """Gamma distributions of expression: mean and shape, (chains, cells, genes) each, reference counts."""

    rate: Float
    shape: Float


class Seen(NamedTuple):
    """What the denoiser sees: log1p of counts, (chains, cells, genes), and their sums, (chains, cells)."""

    logs: Float
    totals: Float


class Scales(NamedTuple):
    """Per gene, (genes,): exposure relative to the capture, reference counts per count, share not captured."""

    relative: Float
    per_count: Float
    missing: Float


class Sums(NamedTuple):
    """Sums over kept sweeps, (chains, cells, genes): means, integer draws, their squares, variance of the unseen."""

    means: Float
    draws: Float
    squares: Float
    variances: Float


def empty_sums(shape: tuple[int, ...]) -> Sums:
    """Return sums before the first kept sweep."""
    return Sums(*(np.zeros(shape, np.float32) for _ in range(4)))


@functools.cache
def sweep_kernel() -> Any:
    """Return the compiled sweep: number, measured, prior, seen, sums, scales, kept.

    Draws a Gamma variate around every cell's expected expression, splits the counts in proportion, halves the
    allocated counts into `seen` and, when `kept`, adds the sweep to the sums. Streams are (spot; gene, pair of
    chains, sweep); the second chain of a pair mirrors the first, so that the mean over chains varies less.
    """
    import numba

    draws = compiled_draws()
    begin, mirror, gamma, split, halve = draws.begin, draws.mirror, draws.gamma, draws.split, draws.halve
    add_unseen = _add_unseen()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def sweep(number: int, measured: Any, prior: Any, seen: Any, sums: Any, scales: Any, kept: Any) -> None:
        widest = np.diff(measured.first).max()
        stream = np.zeros(STREAM_WORDS, np.uint64)
        weights, given = np.empty(widest), np.empty(widest, np.int64)
        seen.totals[:] = 0
        if kept:
            add_unseen(prior, sums, scales)
        for chain in range(prior.rate.shape[0]):
            for spot in range(len(measured.keys)):
                low = measured.first[spot]
                n_cells = measured.first[spot + 1] - low
                for entry in range(measured.starts[spot], measured.starts[spot + 1]):
                    gene, count = measured.genes[entry], measured.counts[entry]
                    begin(stream, measured.keys[spot], gene, chain // 2, number)
                    if chain % 2:
                        mirror(stream)
                    total = 0.0
                    for cell in range(n_cells):
                        rate, shape = prior.rate[chain, low + cell, gene], prior.shape[chain, low + cell, gene]
                        total += rate
                        weights[cell] = rate * gamma(stream, np.float64(shape)) / shape
                    split(stream, count, weights, given, n_cells)
                    for cell in range(n_cells):
                        place = (chain, low + cell, gene)
                        part = halve(stream, given[cell]) / scales.relative[gene]
                        seen.logs[place] = math.log1p(part)
                        seen.totals[chain, low + cell] += part
                        if kept:
                            captured = given[cell] * scales.per_count[gene]
                            unseen = scales.missing[gene] * prior.rate[place]
                            sums.means[place] += count * prior.rate[place] / total * scales.per_count[gene]
                            sums.draws[place] += captured
                            sums.squares[place] += captured * (captured + 2 * unseen)

    return sweep


def _add_unseen() -> Any:
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def add_unseen(prior: Any, sums: Any, scales: Any) -> None:
        if not (scales.missing > 0).any():
            return
        n_chains, n_cells, n_genes = prior.rate.shape
        for chain in range(n_chains):
            for cell in range(n_cells):
                for gene in range(n_genes):
                    unseen = scales.missing[gene] * prior.rate[chain, cell, gene]
                    sums.means[chain, cell, gene] += unseen
                    sums.draws[chain, cell, gene] += unseen
                    sums.squares[chain, cell, gene] += unseen * unseen
                    sums.variances[chain, cell, gene] += unseen + unseen * unseen / prior.shape[chain, cell, gene]

    return add_unseen
