"""Algorithm 1 of SpatialScope: annealed Langevin dynamics under the score network and the counts of a spot.

What the paper leaves open is as in its authors' program: the residual is clipped to ±1 and its gradient to ±2, at the
depth of the reference, before the weight 1/level is put on. (Clipped after it, guidance dies out at the small levels.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import SpotCells, sum_cells
from spatialscope_dist.expression.noise import geometric_levels
from spatialscope_dist.expression.profiles import ReferenceProfiles
from spatialscope_dist.options import DecomposeOptions

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_RESIDUAL, _LARGEST_GRADIENT = 1.0, 2.0


@dataclass(frozen=True)
class Schedule:
    """Settings of annealed Langevin dynamics."""

    levels: NDArray[np.float64]
    steps_per_level: int
    step_ratio: float  # step size over squared noise level
    final_step: bool = False

    @classmethod
    def of(cls, options: DecomposeOptions) -> Schedule:
        """Return the schedule the options ask for."""
        levels = geometric_levels(
            options.langevin_levels, largest=options.langevin_noise_max, smallest=options.langevin_noise_min
        )
        return cls(levels, options.langevin_steps, options.langevin_step_size, options.langevin_final_step)

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the network, of one chain."""
        return len(self.levels) * self.steps_per_level + self.final_step


def anneal(
    score: Callable[[Any, float], Any],
    guidance: Callable[[Any, float], Any],
    start: Any,
    *,
    schedule: Schedule,
    normals: Callable[[int], Any],
) -> Any:
    """Return the last state of annealed Langevin dynamics, SpatialScope Algorithm 1 (Song & Ermon 2019).

    At each level x += eta (score + guidance) + sqrt(2 eta) noise, eta = step_ratio * level². The optional final
    step adds level² * score without noise.

    Parameters
    ----------
    score, guidance
        gradients of the log prior at a noise level and of the log likelihood, same shape as the state.
    start
        initial state.
    schedule
        levels, steps and step size.
    normals
        standard normal draws of a numbered step.
    """
    x, step = start, 0
    for level in schedule.levels.tolist():
        size = schedule.step_ratio * level**2
        for _ in range(schedule.steps_per_level):
            x = x + size * (score(x, level) + guidance(x, level)) + (2 * size) ** 0.5 * normals(step)
            step += 1
    if schedule.final_step:
        x = x + level**2 * score(x, level)
    return x


@dataclass(frozen=True)
class Guidance:
    """Gradient of the log likelihood of spots: their cells' expm1(x + mu_k) should add up to the target, eq. (11).

    Attributes
    ----------
    target
        (spots, genes), counts at the depth of the reference (`depth_factors`).
    seen
        (genes,), 1 for measured genes, 0 for others: these are guided by nothing.
    mean_log
        (cells or more, genes), mu_k; rows beyond the spots' cells are padding.
    spots
        which cells are whose.
    clip
        whether residual and gradient are clipped.
    """

    target: Tensor
    seen: Tensor
    mean_log: Tensor
    spots: SpotCells
    clip: bool

    def __call__(self, x: Tensor, level: float) -> Tensor:
        """Return the gradient, (chains, cells or more, genes); its variance is the noise level, as the authors'."""
        n_cells = len(self.spots.types)
        slope = (x + self.mean_log)[:, :n_cells].exp()  # d expm1(x + mu) / dx
        residual = (self.target - sum_cells(slope - 1, self.spots)) * self.seen  # (chains, spots, genes)
        if self.clip:
            residual = residual.clamp(-_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
        gradient = x.new_zeros(x.shape)
        gradient[:, :n_cells] = residual[:, self.spots.spot] * slope
        if self.clip:
            gradient = gradient.clamp(-_LARGEST_GRADIENT, _LARGEST_GRADIENT)
        return gradient / level


def depth_factors(spots: SpotCells, profiles: ReferenceProfiles) -> NDArray[np.float32]:
    """Return what brings each spot's y / exp(gamma) to M_i times the depth of reference cells, (spots, 1).

    The depth is that of the measured genes, and of the cells' own types. (One depth for all types, in the paper: there
    all reference cells are brought to it.)
    """
    seen = spots.exposure > 0
    expected = profiles.mean_counts[:, seen].sum(axis=1, dtype=np.float64)[spots.types]  # (cells,)
    total = (spots.counts[:, seen] / spots.exposure[seen]).sum(axis=1, dtype=np.float64)
    return np.asarray(sum_cells(expected[:, None], spots) / np.maximum(total, 1e-9)[:, None], np.float32)
