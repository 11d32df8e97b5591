"""Poisson-lognormal likelihood of a count, by quadrature, without a cap on counts or rates.

With t the logarithm of the cell's own rate,

    Q(y, λ) = ∫ Poisson(y; e^t) h_σ(t − log λ) dt,

and the trapezoid rule over t converges geometrically, so one matrix product gives the table for
all counts and rates of interest. ∂log Q/∂log λ comes from the same integral with y − e^t inside.
Look-ups are cubic Hermite in log λ. Counts above `DENSE_COUNTS` share rows at geometric counts and
are interpolated at equal y/λ, where Q depends on y only through its Poisson width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr

Density = Literal["heavy_tailed", "normal"]

DENSE_COUNTS = 256
MIN_RATE = 1e-4  # RCTD's floor on expected counts
_ROW_RATIO = 1.03
_LOG_Q_FLOOR = -660.0
_JOIN = 3.0  # the normal core ends here, in units of the overdispersion


class Lookup(NamedTuple):
    """The parts of a table the compiled look-up takes; see LikelihoodTable."""

    counts: NDArray[np.float64]
    log_q: NDArray[np.float64]
    slope: NDArray[np.float64]
    first: float
    step: float


@dataclass(frozen=True)
class LikelihoodTable:
    """Table of log Q and its slope in log λ for one overdispersion.

    Attributes
    ----------
    overdispersion : σ_ε
    counts : (rows,), count of each row: 0, 1, …, DENSE_COUNTS, then geometric
    log_q : (rows, grid), log Q at the grid of log rates
    slope : (rows, grid), ∂ log Q / ∂ log λ there
    first_log_rate, log_rate_step : the grid
    """

    overdispersion: float
    counts: NDArray[np.float64]
    log_q: NDArray[np.float64]
    slope: NDArray[np.float64]
    first_log_rate: float
    log_rate_step: float

    @property
    def lookup(self) -> Lookup:
        """Return the arrays the compiled look-up takes."""
        return Lookup(self.counts, self.log_q, self.slope, self.first_log_rate, self.log_rate_step)

    def lookup_for(self, counts: NDArray[Any]) -> Lookup:
        """Return the look-up, having made sure that it covers these counts.

        Raises
        ------
        ValueError : when a count lies beyond the table's last row
        """
        if counts.size and float(counts.max()) > self.counts[-1]:
            message = f"found a count of {counts.max():g}; expected at most {self.counts[-1]:g}, the table's last row"
            raise ValueError(message)
        return self.lookup


def density(z: NDArray[np.float64], overdispersion: float, kind: Density) -> NDArray[np.float64]:
    """Return h_σ(z), the density of ε (method section 2.4).

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
    n_rows = int(np.ceil(np.log(max_count / DENSE_COUNTS) / np.log(_ROW_RATIO))) + 1
    return np.concatenate([dense, DENSE_COUNTS * _ROW_RATIO ** np.arange(1, n_rows + 1)])


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
    step = min(0.05, overdispersion / 4.0)
    n_fine = int(np.ceil(step / min(0.02, overdispersion / 5.0, 1.0 / np.sqrt(counts[-1]))))
    fine = step / n_fine
    first = np.log(MIN_RATE)
    last = np.log(max(10.0 * counts[-1], 1e4))
    n_rates = int(np.ceil((last - first) / step)) + 1
    below, above = int(np.ceil(12.0 / fine)), int(np.ceil(3.0 / fine))
    logs = first + fine * np.arange(-below, (n_rates - 1) * n_fine + above + 1)
    noise = _noise_matrix(len(logs), n_rates, n_fine, below, density_at=(overdispersion, kind, fine))
    poisson = np.exp(counts[:, None] * logs[None] - np.exp(logs)[None] - gammaln(counts + 1.0)[:, None])
    q = poisson @ noise
    weighted = (poisson * (counts[:, None] - np.exp(logs)[None])) @ noise
    floor = np.exp(_LOG_Q_FLOOR)
    known = q > floor
    return LikelihoodTable(
        overdispersion=float(overdispersion),
        counts=counts,
        log_q=np.log(np.where(known, q, floor)),
        slope=np.where(known, weighted / np.where(known, q, 1.0), 0.0),
        first_log_rate=float(first),
        log_rate_step=float(step),
    )


def _noise_matrix(
    n_logs: int, n_rates: int, n_fine: int, below: int, *, density_at: tuple[float, Density, float]
) -> NDArray[np.float64]:
    """Return h_σ(t − log λ) dt for all t (rows) and log λ (columns): a Toeplitz matrix, strided."""
    overdispersion, kind, fine = density_at
    offsets = np.arange(-below - (n_rates - 1) * n_fine, n_logs - below, dtype=np.float64)
    values = density(offsets * fine, overdispersion, kind) * fine
    item = values.strides[0]
    view = np.lib.stride_tricks.as_strided(
        values[(n_rates - 1) * n_fine :], shape=(n_logs, n_rates), strides=(item, -n_fine * item), writeable=False
    )
    return np.ascontiguousarray(view)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _row_value(
    log_q: NDArray[np.float64], slope: NDArray[np.float64], row: int, position: float, step: float
) -> tuple[float, float, float]:
    """Return log Q, ∂ and ∂² in log λ at a grid position; linear beyond either end of the grid."""
    last = log_q.shape[1] - 1
    if position <= 0.0:
        return log_q[row, 0] + slope[row, 0] * position * step, slope[row, 0], 0.0
    if position >= last:
        return log_q[row, last] + slope[row, last] * (position - last) * step, slope[row, last], 0.0
    left = int(position)
    s = position - left
    a, b = log_q[row, left], log_q[row, left + 1]
    da, db = slope[row, left] * step, slope[row, left + 1] * step
    c2 = 3.0 * (b - a) - 2.0 * da - db
    c3 = 2.0 * (a - b) + da + db
    value = a + s * (da + s * (c2 + s * c3))
    first = (da + s * (2.0 * c2 + 3.0 * s * c3)) / step
    return value, first, (2.0 * c2 + 6.0 * s * c3) / (step * step)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def log_likelihood(count: float, log_rate: float, table: Lookup) -> tuple[float, float, float]:
    """Return log Q(y, λ) and its first and second derivative in log λ (compiled)."""
    position = (log_rate - table.first) / table.step
    if count <= DENSE_COUNTS:
        dense: tuple[float, float, float] = _row_value(table.log_q, table.slope, int(count), position, table.step)
        return dense
    row = DENSE_COUNTS + int(np.log(count / DENSE_COUNTS) / np.log(_ROW_RATIO))
    row = min(max(row, DENSE_COUNTS), len(table.counts) - 2)
    below, above = table.counts[row], table.counts[row + 1]
    share = np.log(count / below) / np.log(above / below)
    low = _row_value(table.log_q, table.slope, row, position - np.log(count / below) / table.step, table.step)
    high = _row_value(table.log_q, table.slope, row + 1, position - np.log(count / above) / table.step, table.step)
    return (
        low[0] + share * (high[0] - low[0]),
        low[1] + share * (high[1] - low[1]),
        low[2] + share * (high[2] - low[2]),
    )


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _log_likelihoods(counts: NDArray[np.float64], log_rates: NDArray[np.float64], table: Lookup) -> NDArray[np.float64]:
    out = np.empty((len(counts), 3))
    for i in range(len(counts)):
        out[i, 0], out[i, 1], out[i, 2] = log_likelihood(counts[i], log_rates[i], table)
    return out


def log_likelihoods(
    counts: NDArray[np.float64], rates: NDArray[np.float64], table: LikelihoodTable
) -> NDArray[np.float64]:
    """Return log Q and its two derivatives in log λ for pairs of counts and rates, (pairs, 3).

    Parameters
    ----------
    counts : (pairs,), raw counts
    rates : (pairs,), expected counts; values below 1e-4 are raised to it
    table : likelihood table
    """
    log_rates = np.log(np.maximum(np.asarray(rates, np.float64), MIN_RATE))
    found = np.asarray(counts, np.float64)
    values: NDArray[np.float64] = _log_likelihoods(found, log_rates, table.lookup_for(found))
    return values
