"""Quantiles of a cell's counts: an estimator's mean and sd stand for integer draws, and these are made here.

A draw shares the measured counts out among the cells of a spot by a multinomial split, in proportion to expected
expression and a Gamma variate around it, and adds a Poisson count of what was not captured. Quantiles of continuous
replicates would be far too narrow. Where a spot has no counts of a gene nothing is shared out, and the quantile is
that of the distribution itself. Entry by entry of a micro-batch, so no draws are kept; every draw is keyed by (spot,
gene, estimator) and does not depend on the spots beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import SpotCells, missing
from spatialscope_dist.expression.keyed_counts import STREAM_WORDS, compiled_draws

Float = NDArray[np.float32]

UNTIED, FILLED, SCALED = 0, 1, 2
_SMALL_MEAN, _LARGEST, _MOST_STEPS = 10.0, 1e9, 50.0
_STREAMS = 1 << 30  # as the number of a sweep: apart from the streams of the sweeps


class Spread(NamedTuple):
    """What an estimator draws counts from; draw d is made with component d modulo their number.

    Attributes
    ----------
    rate
        (components, cells or more, genes), expected reference counts.
    shape
        as `rate`, shape of the Gamma distribution around it; 0: no variation.
    order
        (components, cells), row of each component that stands for the cell (`allocation.align_chains`).
    tie
        how measured counts enter. UNTIED: not at all; FILLED: they are shared out, and what was not captured is
        drawn from the rate; SCALED: what was not captured is drawn in proportion to the counts shared out.
    """

    rate: Float
    shape: Float
    order: NDArray[np.int64]
    tie: int

    @classmethod
    def of(cls, rate: Float, *, shape: Float | None = None, tie: int = FILLED) -> Spread:
        """Return the spread of an estimator with one component, from (cells, genes) arrays."""
        certain = np.zeros_like(rate) if shape is None else shape
        return cls(rate[None], certain[None], np.arange(len(rate))[None], tie)


class _Pool(NamedTuple):
    """Spreads put together; the components of spread p are starts[p]:starts[p + 1]."""

    rate: Float
    shape: Float
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    ties: NDArray[np.int64]


class _Spots(NamedTuple):
    """A micro-batch: measured counts, (spots, genes), first cells and keys; per gene exposure and share not seen."""

    counts: NDArray[np.int64]
    first: NDArray[np.int64]
    keys: NDArray[np.int64]
    exposure: Float
    missing: Float


def _pooled(spreads: Sequence[Spread], spots: SpotCells) -> tuple[_Pool, _Spots]:
    n_cells = len(spots.types)
    rate, shape = (
        np.concatenate([_finite(part[:, :n_cells]) for part in parts])
        for parts in zip(*((spread.rate, spread.shape) for spread in spreads), strict=True)
    )
    starts = np.r_[0, np.cumsum([len(spread.rate) for spread in spreads])].astype(np.int64)
    order = np.concatenate([spread.order for spread in spreads]).astype(np.int64)
    counts = np.rint(spots.measured).astype(np.int64)
    batch = _Spots(counts, spots.first, spots.keys, spots.exposure.astype(np.float32), missing(spots.exposure))
    return _Pool(rate, shape, order, starts, np.array([spread.tie for spread in spreads], np.int64)), batch


def _finite(values: Float) -> Float:
    # A sampler that diverged must not stop the draws; its spots are quarantined by their estimate.
    return np.clip(np.nan_to_num(values, nan=0.0), 0, _LARGEST).astype(np.float32)


def quantiles(spreads: Sequence[Spread], spots: SpotCells, *, levels: Sequence[float], n_draws: int) -> Float:
    """Return quantiles, (levels, cells, genes) reference counts, of the pooled draws of estimators.

    Of n draws the quantile of level q is the one of rank q (n + 1), rounded away from the middle: the interval between
    two levels then holds one more such draw at least as often as they say.

    Parameters
    ----------
    spreads
        of each estimator; all weigh the same.
    spots
        of these cells.
    levels
        in (0, 1).
    n_draws
        per estimator.
    """
    pool, batch = _pooled(spreads, spots)
    total = n_draws * len(spreads)
    ranks = np.array([math.floor(q * (total + 1)) if q < 0.5 else math.ceil(q * (total + 1)) for q in levels], np.int64)
    out = np.zeros((len(levels), len(spots.types), batch.counts.shape[1]), np.float32)
    if len(spots.types) and len(levels):
        _quantile_kernel()(batch, pool, n_draws, np.clip(ranks, 1, total) - 1, np.array(levels), out)
    return out


def draw(spreads: Sequence[Spread], spots: SpotCells, *, n_draws: int) -> Float:
    """Return the draws, (draws, cells, genes) reference counts; arguments as of `quantiles`."""
    pool, batch = _pooled(spreads, spots)
    out = np.zeros((n_draws * len(spreads), len(spots.types), batch.counts.shape[1]), np.float32)
    if len(spots.types):
        _draw_kernel()(batch, pool, n_draws, out)
    return out


@functools.cache
def _quantile_kernel() -> Any:
    """Return the compiled loop that fills quantiles: spots, pool, draws, ranks, levels, out."""
    import numba

    draw_entry, fill_unseen = _draw_entry(), _fill_unseen()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def fill(spots: Any, pool: Any, n_draws: Any, ranks: Any, levels: Any, out: Any) -> None:
        values = np.empty((np.diff(spots.first).max(), n_draws * len(pool.ties)), np.float32)
        for spot in range(len(spots.keys)):
            low, high = spots.first[spot], spots.first[spot + 1]
            for gene in range(spots.counts.shape[1]):
                if fill_unseen(spots, pool, spot, gene, levels, out):
                    continue
                draw_entry(spots, pool, spot, gene, n_draws, values)
                for cell in range(low, high):
                    row = values[cell - low]
                    row.sort()
                    for level in range(len(ranks)):
                        out[level, cell, gene] = row[ranks[level]]

    return fill


@functools.cache
def _draw_kernel() -> Any:
    """Return the compiled loop that keeps every draw: spots, pool, draws, out."""
    import numba

    draw_entry = _draw_entry()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def fill(spots: Any, pool: Any, n_draws: Any, out: Any) -> None:
        values = np.empty((np.diff(spots.first).max(), n_draws * len(pool.ties)), np.float32)
        for spot in range(len(spots.keys)):
            low, high = spots.first[spot], spots.first[spot + 1]
            for gene in range(spots.counts.shape[1]):
                draw_entry(spots, pool, spot, gene, n_draws, values)
                for cell in range(low, high):
                    out[:, cell, gene] = values[cell - low]

    return fill


def _chances() -> tuple[Any, Any]:
    """Return compiled chances of counts not captured of a cell, component by component: of 0, and of one more."""
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def begin(spots: Any, pool: Any, cell: Any, gene: Any, terms: Any, means: Any) -> None:
        """Fill mean and weighted chance of 0 of every component of what was not captured of a cell."""
        for part in range(len(pool.ties)):
            first, last = pool.starts[part], pool.starts[part + 1]
            rest = 1.0 if pool.ties[part] == UNTIED else spots.missing[gene]
            if pool.ties[part] == SCALED and spots.exposure[gene] > 0.0:
                rest = 0.0
            for at in range(first, last):
                mean, shape = rest * pool.rate[at, cell, gene], pool.shape[at, cell, gene]
                chance = math.exp(-mean) if shape == 0.0 else (1.0 + mean / shape) ** -shape
                means[at], terms[at] = mean, chance / ((last - first) * len(pool.ties))

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def step(pool: Any, cell: Any, gene: Any, terms: Any, means: Any, k: Any) -> Any:
        """Bring the terms from the chance of k - 1 to that of k, and return their sum."""
        total = 0.0
        for at in range(len(terms)):
            shape = np.float64(pool.shape[at, cell, gene])
            odds = means[at] if shape == 0.0 else means[at] / (shape + means[at]) * (k - 1 + shape)
            terms[at] *= odds / k
            total += terms[at]
        return total

    return begin, step


def _fill_unseen() -> Any:
    import numba

    begin, step = _chances()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def fill_unseen(spots: Any, pool: Any, spot: Any, gene: Any, levels: Any, out: Any) -> bool:
        """Fill the quantiles of a gene that the spot has no counts of; False when it has, or has too many to step."""
        if spots.counts[spot, gene] > 0:
            return False
        terms, means = np.empty(len(pool.rate)), np.empty(len(pool.rate))
        for cell in range(spots.first[spot], spots.first[spot + 1]):
            begin(spots, pool, cell, gene, terms, means)
            if means.max() > _MOST_STEPS:
                return False
            k, reached, highest = 0, terms.sum(), levels.max()
            while reached < highest:
                for level in range(len(levels)):
                    out[level, cell, gene] += reached < levels[level]
                k += 1
                reached += step(pool, cell, gene, terms, means, k)
        return True

    return fill_unseen


def _count_around() -> tuple[Any, Any]:
    """Return compiled draws of (a rate, a count) around an expectation, of a Gamma shape; 0: no variation."""
    import numba

    compiled = compiled_draws()
    gamma, uniform, poisson = compiled.gamma, compiled.uniform, compiled.poisson

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def vary(stream: Any, rate: Any, shape: Any) -> Any:
        return rate * gamma(stream, np.float64(shape)) / shape if shape > 0.0 else np.float64(rate)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def count_around(stream: Any, mean: Any, shape: Any) -> Any:
        # A negative binomial, or a Poisson: by inversion when it is small.
        if mean >= _SMALL_MEAN:
            return poisson(stream, vary(stream, mean, shape))
        odds = mean / (shape + mean) if mean > 0.0 else 0.0
        left, term, k = uniform(stream), math.exp(-mean) if shape == 0.0 else (1.0 - odds) ** shape, 0
        while left > term and term > 0.0:
            left -= term
            term *= mean / (k + 1) if shape == 0.0 else odds * (k + shape) / (k + 1)
            k += 1
        return k

    return vary, count_around


def _draw_entry() -> Any:
    import numba

    compiled = compiled_draws()
    begin, split = compiled.begin, compiled.split
    vary, count_around = _count_around()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def share_out(stream: Any, rates: Any, shapes: Any, count: Any, weights: Any, given: Any) -> None:
        """Fill given[cell] with a draw of what each cell of a spot holds of the count."""
        given[:] = 0
        if count > 0:
            for cell in range(len(given)):
                weights[cell] = vary(stream, rates[cell], shapes[cell])
            split(stream, count, weights, given, len(given))

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def draw_entry(spots: Any, pool: Any, spot: Any, gene: Any, n_draws: Any, values: Any) -> None:
        """Fill values[cell, draw] of the spot's cells, estimator after estimator."""
        low, high, exposure = spots.first[spot], spots.first[spot + 1], np.float64(spots.exposure[gene])
        stream, weights = np.zeros(STREAM_WORDS, np.uint64), np.empty(high - low)
        given = np.empty(high - low, np.int64)
        for part in range(len(pool.ties)):
            first, tie = pool.starts[part], pool.ties[part]
            tied = 0 if tie == UNTIED else spots.counts[spot, gene]
            rest = 1.0 if tie == UNTIED else np.float64(spots.missing[gene])
            begin(stream, spots.keys[spot], gene, part, _STREAMS)
            for number in range(n_draws):
                at = first + number % (pool.starts[part + 1] - first)
                rates, shapes = pool.rate[at, low:high, gene], pool.shape[at, low:high, gene]
                share_out(stream, rates, shapes, tied, weights, given)
                for cell in range(high - low):
                    row = pool.order[at, low + cell] - low
                    mean, shape = rest * rates[row], np.float64(shapes[row])
                    captured = np.float64(given[row])
                    if tie == SCALED and exposure > 0.0:
                        mean, shape = captured * rest / exposure, captured
                    unseen = count_around(stream, mean, shape) if mean > 0.0 else 0
                    values[cell, part * n_draws + number] = captured / max(exposure, 1.0) + unseen

    return draw_entry
