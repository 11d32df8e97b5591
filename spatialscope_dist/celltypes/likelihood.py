"""Poisson-lognormal likelihood of a count, by quadrature, without a cap on counts or rates.

With t the logarithm of the cell's own rate,

    Q(y, λ) = ∫ Poisson(y; e^t) h_σ(t − log λ) dt,

and the trapezoid rule over t converges geometrically, so one matrix product gives the table for
all counts and rates of interest. ∂log Q/∂log λ comes from the same integral with y − e^t inside.
Between rates, log Q is a cubic (Hermite) in λ. The rates of the table are 2^e (1 + j/2^b): the cell
of a rate is then read off the bits of the number, without a logarithm. Counts above `DENSE_COUNTS`
share rows at geometric counts and are interpolated at equal y/λ, where Q depends on y only
through its Poisson width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr

Density = Literal["heavy_tailed", "normal"]

DENSE_COUNTS = 256
MIN_RATE = 1e-4  # RCTD's floor on expected counts
FIRST_EXPONENT = -14  # 2**-14 < MIN_RATE
ROW_RATIO = 1.03
_LOG_Q_FLOOR = -660.0
# Largest step of t. The normal density is smooth: the trapezoid rule converges geometrically. The kink
# of the heavy-tailed one leaves a relative error of 1e-4 at this step.
_STEP: dict[Density, float] = {"heavy_tailed": 0.02, "normal": 0.04}
# Poisson factors e^-this below their peak are left out; the normal density may fall as fast as they do.
_NEGLIGIBLE: dict[Density, float] = {"heavy_tailed": 50.0, "normal": 720.0}
_JOIN = 3.0  # the normal core ends here, in units of the overdispersion
MANTISSA_BITS = 52
EXPONENT_BIAS = 1023


class Lookup(NamedTuple):
    """A table of log Q as the compiled look-up takes it.

    Attributes
    ----------
    counts : (rows,), count of each row: 0, 1, …, DENSE_COUNTS, then geometric
    cubic : (rows, cells, 4), coefficients of log Q in the position within a cell of rates
    last : (rows, 2), log Q at the end of the table and ∂ log Q / ∂ log λ there
    bits : b, cells per octave of rates are 2^b
    """

    counts: NDArray[np.float64]
    cubic: NDArray[np.float64]
    last: NDArray[np.float64]
    bits: int


@dataclass(frozen=True)
class LikelihoodTable:
    """Table of log Q for one overdispersion σ_ε."""

    overdispersion: float
    lookup: Lookup

    def lookup_for(self, counts: NDArray[Any]) -> Lookup:
        """Return the look-up, having made sure that it covers these counts.

        Raises
        ------
        ValueError : when a count lies beyond the table's last row
        """
        largest = float(self.lookup.counts[-1])
        if counts.size and float(counts.max()) > largest:
            message = f"found a count of {counts.max():g}; expected at most {largest:g}, the table's last row"
            raise ValueError(message)
        return self.lookup


def density(z: NDArray[np.float64], overdispersion: float, kind: Density) -> NDArray[np.float64]:
    """Return h_σ(z), the density of ε in eq. (4).

    heavy_tailed (RCTD): h(u) = C φ(u) for |u| < 3, C a/(|u| − c)² beyond, c = 7/3, a = (4/9) φ(3),
    C such that it integrates to one; u = z/σ.
    """
    u = np.abs(z) / overdispersion
    core = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    if kind == "normal":
        return np.asarray(core / overdispersion)
    at_join = np.exp(-0.5 * _JOIN**2) / np.sqrt(2 * np.pi)
    shift = _JOIN - 2.0 / _JOIN
    scale = (_JOIN - shift) ** 2 * at_join
    norm = 1.0 / (1.0 + 2.0 * (scale / (_JOIN - shift) - float(ndtr(-_JOIN))))
    tail = scale / np.maximum(u - shift, 1e-6) ** 2
    return np.asarray(norm * np.where(u < _JOIN, core, tail) / overdispersion)


def table_counts(max_count: int) -> NDArray[np.float64]:
    """Return the counts that get a row of their own: all small ones, then geometric, (rows,)."""
    dense = np.arange(min(max(max_count, 1), DENSE_COUNTS) + 1, dtype=np.float64)
    if max_count <= DENSE_COUNTS:
        return dense
    n_rows = int(np.ceil(np.log(max_count / DENSE_COUNTS) / np.log(ROW_RATIO))) + 1
    return np.concatenate([dense, DENSE_COUNTS * ROW_RATIO ** np.arange(1, n_rows + 1)])


def likelihood_table(
    overdispersion: float, *, kind: Density = "heavy_tailed", max_count: int = 1000
) -> LikelihoodTable:
    """Return the table of Q for one overdispersion, good for counts up to `max_count`.

    Parameters
    ----------
    overdispersion : σ_ε, natural-log units
    kind : density of ε
    max_count : largest count of the section; it sets the rows and the range of rates
    """
    counts = table_counts(max_count)
    bits = int(np.clip(np.ceil(np.log2(4.0 * np.log(2.0) / overdispersion)), 4, 6))
    finest = min(_STEP[kind], overdispersion / 5.0, 1.0 / np.sqrt(counts[-1]))
    poisson = _poisson(max_count, int(np.ceil(np.log(2.0) / finest)), kind)
    noise = _noise_matrix(poisson, bits, density_of=(overdispersion, kind))
    q, weighted = np.empty((2, len(counts), noise.shape[1]))
    for rows, columns, values in poisson.groups:
        q[rows], weighted[rows] = np.split(values @ noise[columns], 2)
    floor = np.exp(_LOG_Q_FLOOR)
    known = q > floor
    log_q = np.log(np.where(known, q, floor))
    slope = np.where(known, weighted / np.where(known, q, 1.0), 0.0)
    last = np.stack([log_q[:, -1], slope[:, -1]], axis=1)
    return LikelihoodTable(float(overdispersion), Lookup(counts, _cubics(log_q, slope, bits), last, bits))


@dataclass(frozen=True)
class _Poisson:
    """Poisson(y; e^t) and its derivative in t where they are not negligible; the same for every σ.

    Attributes
    ----------
    logs : (steps,), t, evenly spaced, `per_octave` steps per doubling of the rate
    n_octaves : octaves of rates in the table, from 2**FIRST_EXPONENT
    groups : (rows, steps of t, values of those rows followed by their derivatives in t)
    """

    logs: NDArray[np.float64]
    per_octave: int
    n_octaves: int
    groups: tuple[tuple[slice, slice, NDArray[np.float64]], ...]


@lru_cache(maxsize=2)
def _poisson(max_count: int, per_octave: int, kind: Density) -> _Poisson:
    counts = table_counts(max_count)
    n_octaves = int(np.ceil(np.log2(max(10.0 * counts[-1], 1e4)))) - FIRST_EXPONENT
    fine = np.log(2.0) / per_octave
    below, above = int(np.ceil(12.0 / fine)), int(np.ceil(3.0 / fine))
    logs = fine * (FIRST_EXPONENT * per_octave + np.arange(-below, n_octaves * per_octave + above + 1))
    edges = [
        0,
        *np.searchsorted(counts, 4.0 ** np.arange(np.ceil(np.log(counts[-1] + 1.0) / np.log(4.0)))),
        len(counts),
    ]
    groups = []
    for low, high in pairwise(edges):
        ends = counts[[low, high - 1], None]
        below_peak = ends * np.log(np.maximum(ends, 1.0)) - ends - (ends * logs - np.exp(logs))
        near = np.flatnonzero((below_peak < _NEGLIGIBLE[kind]).any(axis=0))
        window = slice(int(near[0]), int(near[-1]) + 1)
        t, y = logs[None, window], counts[low:high, None]
        values = np.exp(y * t - np.exp(t) - gammaln(y + 1.0))
        groups.append((slice(int(low), int(high)), window, np.concatenate([values, values * (y - np.exp(t))])))
    return _Poisson(logs, per_octave, n_octaves, tuple(groups))


def _noise_matrix(poisson: _Poisson, bits: int, *, density_of: tuple[float, Density]) -> NDArray[np.float64]:
    """Return h_σ(t − log λ) dt for all t (rows) and the rates of the table (columns).

    Octaves are whole numbers of steps of t apart, so one run of values serves all octaves of a
    place within them: row t, octave o of the matrix is row t − o · per_octave of `values`.
    """
    n_cells, (n_octaves, per_octave) = 1 << bits, (poisson.n_octaves, poisson.per_octave)
    step = poisson.logs[1] - poisson.logs[0]
    reach = np.arange(-n_octaves * per_octave, len(poisson.logs)) * step + poisson.logs[0]
    offset = FIRST_EXPONENT * np.log(2.0) + np.log1p(np.arange(n_cells) / n_cells)
    values = np.ascontiguousarray(density(reach[:, None] - offset, *density_of) * step)
    windows = sliding_window_view(values, n_octaves * per_octave + 1, axis=0)[:, :, ::-per_octave]
    by_octave = np.ascontiguousarray(windows.transpose(0, 2, 1)).reshape(len(poisson.logs), -1)
    return by_octave[:, : n_octaves * n_cells + 1]


def _cubics(log_q: NDArray[np.float64], slope: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Return cubic Hermite coefficients in the position s ∈ [0, 1) of every cell, (rows, cells, 4)."""
    relative = np.tile(1.0 / ((1 << bits) + np.arange(1 << bits)), (log_q.shape[1] - 1) >> bits)
    left, right = log_q[:, :-1], log_q[:, 1:]
    from_left = slope[:, :-1] * relative
    from_right = slope[:, 1:] * relative / (1.0 + relative)
    second = 3.0 * (right - left) - 2.0 * from_left - from_right
    third = 2.0 * (left - right) + from_left + from_right
    return np.ascontiguousarray(np.stack([left, from_left, second, third], axis=2))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _in_row(table: Lookup, row: int, rate: float, rate_bits: int) -> tuple[float, float, float]:
    """Return log Q, ∂ and ∂² in λ within one row; linear in log λ beyond the table."""
    shift = MANTISSA_BITS - table.bits
    cell = (rate_bits >> shift) - ((EXPONENT_BIAS + FIRST_EXPONENT) << table.bits)
    if cell >= table.cubic.shape[1]:
        beyond = np.log(rate) - (FIRST_EXPONENT + (table.cubic.shape[1] >> table.bits)) * np.log(2.0)
        slope = table.last[row, 1]
        return table.last[row, 0] + slope * beyond, slope / rate, -slope / (rate * rate)
    s = (rate_bits & ((1 << shift) - 1)) / (1 << shift)
    width = rate / ((1 << table.bits) + (cell & ((1 << table.bits) - 1)) + s)
    c0, c1, c2, c3 = table.cubic[row, cell]
    value = c0 + s * (c1 + s * (c2 + s * c3))
    return value, (c1 + s * (2.0 * c2 + 3.0 * s * c3)) / width, (2.0 * c2 + 6.0 * s * c3) / (width * width)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _shared_row(count: float, counts: NDArray[np.float64]) -> tuple[int, float]:
    """Return the row below a large count and how far the count lies towards the next row."""
    row = DENSE_COUNTS + int(np.log(count / DENSE_COUNTS) / np.log(ROW_RATIO))
    row = min(max(row, DENSE_COUNTS), len(counts) - 2)
    return row, np.log(count / counts[row]) / np.log(counts[row + 1] / counts[row])


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _between_rows(
    table: Lookup, count: int, rate: float, scaled: NDArray[np.float64], scaled_bits: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return what `_in_row` returns, of a count without a row of its own; the last two are views of one scratch."""
    row, share = _shared_row(float(count), table.counts)
    value, first, second = 0.0, 0.0, 0.0
    for side in range(2):
        ratio = table.counts[row + side] / count
        scaled[0] = max(rate * ratio, MIN_RATE)
        one, its_first, its_second = _in_row(table, row + side, scaled[0], scaled_bits[0])
        weight = share if side else 1.0 - share
        value += weight * one
        first += weight * its_first * ratio
        second += weight * its_second * ratio * ratio
    return value, first, second


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def log_likelihood_into(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    counts: NDArray[np.int64],
    rates: NDArray[np.float64],
    table: Lookup,
) -> float:
    """Return Σ log Q of pairs of counts and rates; write its derivatives in each λ, (pairs,) (compiled).

    `rates` are at least MIN_RATE. One pass without branches, which the compiler turns into vector
    instructions; counts and rates that need more than one cell of the table come in a second pass.
    """
    shift = MANTISSA_BITS - table.bits
    base = (EXPONENT_BIAS + FIRST_EXPONENT) << table.bits
    n_cells, rest, unit = 1 << table.bits, (1 << shift) - 1, 1.0 / (1 << shift)
    cubic, last_cell, last_row = table.cubic, table.cubic.shape[1] - 1, min(DENSE_COUNTS, len(table.counts) - 1)
    rate_bits = rates.view(np.int64)
    total, all_usual = 0.0, True
    for i in range(len(counts)):
        cell = (rate_bits[i] >> shift) - base
        usual = (counts[i] <= last_row) & (cell <= last_cell)
        all_usual &= usual
        row, column = min(counts[i], last_row), min(cell, last_cell)
        s = (rate_bits[i] & rest) * unit
        per_rate = (n_cells + (cell & (n_cells - 1)) + s) / rates[i]
        c1, c2, c3 = cubic[row, column, 1], cubic[row, column, 2], cubic[row, column, 3]
        value = cubic[row, column, 0] + s * (c1 + s * (c2 + s * c3))
        total += value if usual else 0.0
        first[i] = (c1 + s * (2.0 * c2 + 3.0 * s * c3)) * per_rate
        second[i] = (2.0 * c2 + 6.0 * s * c3) * per_rate * per_rate
    return total if all_usual else total + _unusual_into(first, second, counts, rates, table)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _unusual_into(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    counts: NDArray[np.int64],
    rates: NDArray[np.float64],
    table: Lookup,
) -> float:
    """Return Σ log Q of the pairs beyond the table's end or without a row of their own; write their derivatives."""
    scaled = np.empty(1)
    scaled_bits = scaled.view(np.int64)
    rate_bits = rates.view(np.int64)
    end = 2.0 ** (FIRST_EXPONENT + (table.cubic.shape[1] >> table.bits))
    total = 0.0
    for i in range(len(counts)):
        if counts[i] <= DENSE_COUNTS and rates[i] < end:
            continue
        if counts[i] <= DENSE_COUNTS:
            value, first[i], second[i] = _in_row(table, counts[i], rates[i], rate_bits[i])
        else:
            value, first[i], second[i] = _between_rows(table, counts[i], rates[i], scaled, scaled_bits)
        total += value
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def add_log_likelihoods(
    total: NDArray[np.float64], count: float, rates: NDArray[np.float64], table: Lookup, weight: float
) -> None:
    """Add weight · log Q of one count at many rates to `total`, (rates,) (compiled).

    `rates` are raised to MIN_RATE in place.
    """
    if count > DENSE_COUNTS:
        row, share = _shared_row(count, table.counts)
        low = rates * (table.counts[row] / count)
        high = rates * (table.counts[row + 1] / count)
        _add_row(total, row, low, table, weight * (1.0 - share))
        _add_row(total, row + 1, high, table, weight * share)
    else:
        _add_row(total, int(count), rates, table, weight)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _add_row(total: NDArray[np.float64], row: int, rates: NDArray[np.float64], table: Lookup, weight: float) -> None:
    shift = MANTISSA_BITS - table.bits
    first = (EXPONENT_BIAS + FIRST_EXPONENT) << table.bits
    rest, unit = (1 << shift) - 1, 1.0 / (1 << shift)
    cubic = table.cubic[row]
    rate_bits = rates.view(np.int64)
    for i in range(len(rates)):
        rates[i] = max(rates[i], MIN_RATE)
        cell = (rate_bits[i] >> shift) - first
        if cell >= len(cubic):
            total[i] += weight * _in_row(table, row, rates[i], rate_bits[i])[0]
            continue
        s = (rate_bits[i] & rest) * unit
        total[i] += weight * (cubic[cell, 0] + s * (cubic[cell, 1] + s * (cubic[cell, 2] + s * cubic[cell, 3])))


def log_likelihoods(
    counts: NDArray[np.float64], rates: NDArray[np.float64], table: LikelihoodTable
) -> NDArray[np.float64]:
    """Return log Q and its first and second derivative in λ for pairs of counts and rates, (pairs, 3).

    Parameters
    ----------
    counts : (pairs,), raw counts
    rates : (pairs,), expected counts; values below 1e-4 are raised to it
    table : likelihood table
    """
    found = np.asarray(counts, np.int64)
    out = np.empty((len(found), 3))
    _each_log_likelihood(out, found, np.maximum(rates, MIN_RATE), table.lookup_for(found))
    return out


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _each_log_likelihood(
    out: NDArray[np.float64], counts: NDArray[np.int64], rates: NDArray[np.float64], table: Lookup
) -> None:
    for i in range(len(counts)):
        one = slice(i, i + 1)
        out[i, 0] = log_likelihood_into(out[i, 1:2], out[i, 2:3], counts[one], rates[one], table)
