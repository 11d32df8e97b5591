"""RCTD's full weights on a GPU: the steps of `weights`, for many spots at once, in torch float64.

Every spot follows the same path as in `weights` up to rounding, so both end within 1e-6 of each
other. Spots go in micro-batches of one fixed size: a spot's bytes do not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.likelihood import (
    DENSE_COUNTS,
    EXPONENT_BIAS,
    FIRST_EXPONENT,
    MANTISSA_BITS,
    MIN_RATE,
    ROW_RATIO,
    LikelihoodTable,
)
from spatialscope_dist.celltypes.quadratic import NEGLIGIBLE, TOLERANCE
from spatialscope_dist.celltypes.weights import (
    DESCENT,
    MAX_ITERATIONS,
    MIN_CHANGE,
    MOST_FALL,
    RIDGE,
    ROUNDING,
    SHORTEST,
    SpotWeights,
    finite_profiles,
)

if TYPE_CHECKING:
    from torch import Tensor

_SPOTS_AT_ONCE = 1024


def has_gpu() -> bool:
    """Return whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def fit_weights_on(
    device: str,
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    profiles: NDArray[np.float64],
    table: LikelihoodTable,
) -> SpotWeights:
    """Return the weights `weights.fit_weights` finds, within 1e-6, computed on a torch device.

    Parameters
    ----------
    device : 'cuda', or 'cpu'
    counts, totals, profiles, table : as in `weights.fit_weights`

    Raises
    ------
    ValueError : as `weights.fit_weights`
    """
    import torch

    lookup = table.lookup_for(np.asarray(counts))
    signatures = torch.as_tensor(finite_profiles(profiles), device=device)
    on_device = (torch.as_tensor(part, device=device) for part in (lookup.counts, lookup.cubic, lookup.last))
    rows = _Rows(lookup.bits, *on_device)
    parts = []
    for low in range(0, max(len(counts), 1), _SPOTS_AT_ONCE):
        some = np.zeros((_SPOTS_AT_ONCE, signatures.shape[1]), np.int64)
        depth = np.ones(_SPOTS_AT_ONCE)
        n = len(counts[low : low + _SPOTS_AT_ONCE])
        some[:n], depth[:n] = counts[low : low + n], totals[low : low + n]
        spots = _Spots(torch.as_tensor(some, device=device), torch.as_tensor(depth, device=device)[:, None])
        parts.append([found[:n].cpu().numpy() for found in _fit(spots, signatures, rows, n)])
    return SpotWeights(*(np.concatenate(of_all) for of_all in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Spots:
    """Counts (spots, genes) and totals (spots, 1)."""

    counts: Tensor
    totals: Tensor


@dataclass(frozen=True)
class _Rows:
    """A `likelihood.Lookup` on the device."""

    bits: int
    counts: Tensor
    cubic: Tensor
    last: Tensor

    def at(self, row: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log Q, ∂ and ∂² in λ of each rate within its row; linear in log λ beyond the table."""
        import torch

        shift, n_cells = MANTISSA_BITS - self.bits, 1 << self.bits
        bits = rates.view(torch.int64)
        cell = (bits >> shift) - ((EXPONENT_BIAS + FIRST_EXPONENT) << self.bits)
        inside = cell.clamp(0, self.cubic.shape[1] - 1)
        s = (bits & ((1 << shift) - 1)).double() / (1 << shift)  # torch divides integers in float32
        per_rate = (n_cells + (inside & (n_cells - 1)) + s) / rates
        c0, c1, c2, c3 = self.cubic[row, inside].unbind(-1)
        value = c0 + s * (c1 + s * (c2 + s * c3))
        first = (c1 + s * (2.0 * c2 + 3.0 * s * c3)) * per_rate
        second = (2.0 * c2 + 6.0 * s * c3) * per_rate**2
        beyond, (end, slope) = cell > inside, self.last[row].unbind(-1)
        octaves = FIRST_EXPONENT + (self.cubic.shape[1] >> self.bits)
        further = end + slope * (torch.log(rates) - octaves * np.log(2.0))
        return (
            torch.where(beyond, further, value),
            torch.where(beyond, slope / rates, first),
            torch.where(beyond, -slope / rates**2, second),
        )


def _terms(spots: _Spots, rates: Tensor, table: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_g log Q (spots,) and its derivatives in each λ, (spots, genes) twice."""
    import torch

    value, first, second = table.at(spots.counts.clamp(max=min(DENSE_COUNTS, len(table.counts) - 1)), rates)
    large = spots.counts > DENSE_COUNTS
    if bool(large.any()):
        count, rate = spots.counts[large].double(), rates[large]
        row = DENSE_COUNTS + (torch.log(count / DENSE_COUNTS) / np.log(ROW_RATIO)).long()
        row = row.clamp(DENSE_COUNTS, len(table.counts) - 2)
        share = torch.log(count / table.counts[row]) / torch.log(table.counts[row + 1] / table.counts[row])
        sums = [torch.zeros_like(rate) for _ in range(3)]
        for side, weight in ((0, 1.0 - share), (1, share)):
            ratio = table.counts[row + side] / count
            for power, part in enumerate(table.at(row + side, (rate * ratio).clamp(min=MIN_RATE))):
                sums[power] = sums[power] + weight * part * ratio**power
        value[large], first[large], second[large] = sums
    return value.sum(dim=1), first, second


def _expected(spots: _Spots, profiles: Tensor, weights: Tensor) -> Tensor:
    floor = (spots.totals * 1e-7).clamp(min=MIN_RATE)
    return (weights @ profiles * spots.totals).maximum(floor)


def _fit(spots: _Spots, profiles: Tensor, table: _Rows, n_real: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, whether converged, and log likelihoods; spots beyond `n_real` only fill the batch."""
    import torch

    n_types = len(profiles)
    weights = profiles.new_full((len(spots.counts), n_types), 1.0 / n_types)
    products = (profiles[:, None] * profiles).reshape(n_types * n_types, -1).T.contiguous()
    value, first, second = _terms(spots, _expected(spots, profiles, weights), table)
    converged = torch.zeros_like(value, dtype=torch.bool)
    moving = torch.isfinite(value)
    weights[~moving] = torch.nan
    moving[n_real:] = False
    for _ in range(MAX_ITERATIONS):
        gradient = -spots.totals * (first @ profiles.T)
        step = _direction(gradient, second, spots.totals, products, weights)
        rise, change = -(gradient * step).sum(dim=1), step.abs().sum(dim=1)
        length, most = torch.ones_like(value), MOST_FALL * weights.sum(dim=1)
        while bool((long := moving & (length * -step.sum(dim=1) > most)).any()):
            length[long] *= 0.5
        searching = moving.clone()
        while bool(searching.any()):
            new = (weights + length[:, None] * step).clamp(min=0.0)
            new_value, new_first, new_second = _terms(spots, _expected(spots, profiles, new), table)
            enough = searching & (new_value >= value + DESCENT * length * rise - ROUNDING * value.abs())
            weights[enough], value[enough] = new[enough], new_value[enough]
            first[enough], second[enough] = new_first[enough], new_second[enough]
            converged |= enough & (change <= MIN_CHANGE)
            moving &= ~(searching & ~enough & (length < SHORTEST))
            searching &= ~enough & moving
            length[searching] *= 0.5
        moving &= ~converged
        if not bool(moving.any()):
            break
    return weights, converged, value


def _direction(gradient: Tensor, second: Tensor, totals: Tensor, products: Tensor, weights: Tensor) -> Tensor:
    """Return the steps to the minima of the quadratic models within w ≥ 0, (spots, types)."""
    n_types = weights.shape[1]
    allowed = (weights > 0.0) | (gradient < 0.0)
    square = (totals**2)[:, :, None]
    hessian = -square * (second @ products).reshape(-1, n_types, n_types)
    target, definite = _minimise_nonnegative(hessian, gradient, weights, allowed)
    if not bool(definite.all()):
        clipped = -square * (second.clamp(max=0.0) @ products).reshape(-1, n_types, n_types)
        diagonal = clipped.diagonal(dim1=1, dim2=2)
        diagonal += RIDGE * (diagonal + 1.0)
        other, _ = _minimise_nonnegative(clipped, gradient, weights, allowed)
        target[~definite] = other[~definite]
    return target - weights


def _minimise_nonnegative(hessian: Tensor, gradient: Tensor, weights: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return `quadratic.minimise_nonnegative` of each spot's model, (spots, types), and whether it is definite."""
    import torch

    linear = (hessian @ weights[:, :, None])[:, :, 0] - gradient
    u, free = weights.clone(), weights > 0.0
    tolerance = TOLERANCE * (linear.abs() * allowed).amax(dim=1)
    busy = torch.isfinite(linear).all(dim=1)
    definite = busy.clone()
    for _ in range(10 * u.shape[1] + 10):
        both = free[:, :, None] & free[:, None]
        matrix = torch.where(both, hessian, 0.0) + torch.diag_embed((~free).double())
        lower, info = torch.linalg.cholesky_ex(
            torch.where(busy[:, None, None], matrix, torch.eye(u.shape[1]).to(matrix))
        )
        definite &= info == 0
        busy &= definite
        solution = torch.cholesky_solve((linear * free)[:, :, None], lower)[:, :, 0]
        met = free & (solution <= 0.0)
        share = torch.where(met, torch.where(u > 0.0, u / (u - solution), 0.0), 1.0).amin(dim=1).clamp(max=1.0)
        moved = torch.where(free, u + share[:, None] * (solution - u), u)
        dropped = met & (share < 1.0)[:, None] & (moved <= NEGLIGIBLE)
        u = torch.where(busy[:, None], torch.where(dropped, 0.0, moved), u)
        descent = torch.where(allowed & (u == 0.0), linear - (hessian @ u[:, :, None])[:, :, 0], -torch.inf)
        largest, best = descent.max(dim=1)
        full = share == 1.0
        wanted = busy & full & (largest > tolerance)
        free = free & ~dropped
        free[wanted, best[wanted]] = True
        busy &= ~full | wanted
        if not bool(busy.any()):
            break
    return u, definite
