"""Posterior samplers under the score network: the cells of a spot given its counts, eq. (10)-(12).

Both work on micro-batches of whole spots padded to one fixed number of cells, draw every random number by
(seed, spot, rank, chain, step, gene), and add up cells in order of rank: the result of a spot does not depend
on the spots computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import Estimate, SpotCells, align_chains, combine_chains, sum_cells
from spatialscope_dist.expression.device import working_device
from spatialscope_dist.expression.intervals import FILLED, Spread
from spatialscope_dist.expression.langevin import Guidance, Schedule, anneal, depth_factors
from spatialscope_dist.expression.memory_fit import CELLS_PER_BLOCK, cells_at_once, within_memory
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.noise import falling_levels, keyed_normals, keyed_normals_torch
from spatialscope_dist.options import DecomposeOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FIRST_LEVEL, _LAST_LEVEL = 20.0, 0.05


def sample_score(
    spots: SpotCells,
    model: ExpressionModel,
    options: DecomposeOptions,
    *,
    device: torch.device | None = None,
    batch_cells: int | None = None,
) -> Estimate:
    """Return posterior mean and sd of every cell, (cells, genes) reference counts, by the sampler of the options.

    `device` is where torch works; None: `device.working_device`. `batch_cells` is how many cells are worked out at one
    time, which changes no bit; None: as many as suit the device. Spots that do not fit in memory are NaN.
    """
    mean = np.full((len(spots.types), spots.counts.shape[1]), np.nan, np.float32)
    sd = mean.copy()
    device = device or working_device()
    n_chains = options.n_chains if options.sampler == "preconditioned" else options.langevin_chains
    size = batch_cells or cells_at_once(device, n_genes=spots.counts.shape[1], n_chains=n_chains)
    batches = ((cells, part) for cells, part in spots.batches(size) if len(part.types))
    for cells, _, found in within_memory(batches, lambda part: score_posterior(part, model, options, device=device)):
        if found is not None:
            mean[cells], sd[cells] = found[0]
    return Estimate(mean, sd)


def score_posterior(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, device: torch.device | None = None
) -> tuple[Estimate, Spread]:
    """Return mean and sd of the cells of one micro-batch, and the replicates, around which counts are drawn."""
    sampler = _preconditioned if options.sampler == "preconditioned" else _langevin
    return sampler(_batch(spots, model, device=device or working_device()), options)


@dataclass(frozen=True)
class _Batch:
    """Whole spots on a device; `cells` rows are padded to a fixed multiple."""

    spots: SpotCells
    model: ExpressionModel
    padded: SpotCells
    mean_log: Tensor  # (cells, genes)
    ceiling: Tensor  # (genes,)
    floor: Tensor  # (cells, genes)
    measured: Tensor  # (spots, genes)
    exposure: Tensor  # (genes,)
    keys: NDArray[np.int64]
    ranks: NDArray[np.int64]

    def normals(self, step: int, *, n_chains: int) -> Tensor:
        """Return the keyed draws of a step, (chains, cells, genes)."""
        import torch

        sizes = {"n_chains": n_chains, "step": step, "n_genes": self.mean_log.shape[1]}
        if self.mean_log.device.type == "cpu":
            return torch.from_numpy(keyed_normals(self.keys, self.ranks, **sizes))
        there = self.mean_log.device
        keys, ranks = torch.from_numpy(self.keys).to(there), torch.from_numpy(self.ranks).to(there)
        return keyed_normals_torch(keys, ranks, **sizes)

    def denoiser(self, *, n_chains: int) -> Callable[[Tensor, float], Tensor]:
        """Return the denoiser of (chains, cells, genes) at a level, in units of the data's sd."""
        import torch

        types, n_rows = np.tile(self.padded.types, n_chains), CELLS_PER_BLOCK * n_chains
        blocks = types.reshape(-1, n_rows)  # of one fixed shape, whatever the batch's
        networks = [self.model.denoiser(block, device=self.mean_log.device) for block in blocks]

        def restored(noisy: Tensor, level: float) -> Tensor:
            rows = torch.split(noisy.reshape(-1, noisy.shape[-1]), n_rows)  # (chains * cells, genes)
            done = [network(part, level) for network, part in zip(networks, rows, strict=True)]
            return torch.cat(done).reshape(noisy.shape)

        return restored

    def rates(self, logs: Tensor) -> Tensor:
        """Return expected counts, (chains, cells, genes), of log1p values, kept within what the reference knows."""
        import torch

        return torch.maximum(torch.expm1(torch.minimum(logs, self.ceiling)), self.floor)

    def fill_in(self, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, (chains, cells, genes): `allocation.fill_in` on the device."""
        spot = self.spots.spot
        n_cells = len(spot)
        share = rates / 1.0
        total = sum_cells(rates[:, :n_cells], self.spots)
        share[:, :n_cells] = rates[:, :n_cells] / total[:, spot]
        measured = share.new_zeros(rates.shape[1:])
        measured[:n_cells] = self.measured[spot]
        per_count = self.exposure.clamp(min=1.0)
        captured, unseen = measured * share / per_count, (1.0 - self.exposure).clamp(min=0.0) * rates
        return captured + unseen, captured * (1 - share) / per_count + unseen

    def finish(self, means: Tensor, variances: Tensor, rates: Tensor) -> tuple[Estimate, Spread]:
        """Return mean and sd of the real cells over the chains, and what their counts are drawn from."""
        n_cells = len(self.spots.types)
        mean, variance, rate = (part[:, :n_cells].cpu().numpy() for part in (means, variances, rates))
        order = align_chains(mean, self.spots)
        return combine_chains(mean, variance, order), Spread(rate, np.zeros_like(rate), order, FILLED)


def _batch(spots: SpotCells, model: ExpressionModel, *, device: torch.device) -> _Batch:
    import torch

    extra = -len(spots.types) % CELLS_PER_BLOCK
    types = np.concatenate([spots.types, np.zeros(extra, np.int64)])
    zeros = np.zeros(extra, np.int64)

    def put(values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

    profiles = model.profiles
    return _Batch(
        spots=spots,
        model=model,
        padded=SpotCells(spots.counts, spots.first, types, spots.keys, spots.exposure),
        mean_log=put(profiles.mean_log[types]),
        ceiling=put(profiles.ceiling),
        floor=put(1e-3 * profiles.mean_counts[types] + 1e-6),
        measured=put(spots.measured),
        exposure=put(spots.exposure),
        keys=np.concatenate([spots.keys[spots.spot], zeros]),
        ranks=np.concatenate([spots.rank, zeros]),
    )


def _preconditioned(batch: _Batch, options: DecomposeOptions) -> tuple[Estimate, Spread]:
    """Denoise, make the cells add up to what was measured, put fresh noise on, at falling levels.

    The levels and the preconditioned denoiser are those of Karras et al. 2022; denoising followed by a step
    towards the data and re-noising is DiffPIR (Zhu et al. 2023), the step here being the exact split of the
    measured counts in proportion to the denoised expression.
    """
    n_chains, scale = options.n_chains, float(batch.model.profiles.scale[0])
    levels = falling_levels(options.n_steps, largest=_FIRST_LEVEL, smallest=_LAST_LEVEL).tolist()
    restored = batch.denoiser(n_chains=n_chains)
    noisy = levels[0] * batch.normals(0, n_chains=n_chains)  # (chains, cells, genes)
    for step, level in enumerate(levels):
        rates = batch.rates(restored(noisy, level) * scale + batch.mean_log)
        means, variances = batch.fill_in(rates)
        if step + 1 < len(levels):
            clean = (means.log1p() - batch.mean_log) / scale
            noisy = clean + levels[step + 1] * batch.normals(step + 1, n_chains=n_chains)
    return batch.finish(means, variances, rates)


def _langevin(batch: _Batch, options: DecomposeOptions) -> tuple[Estimate, Spread]:
    """Algorithm 1 (`langevin`) on log1p - mu_k, at the depth of the reference; then back to what was measured."""
    import torch

    scale = float(batch.model.profiles.scale[0])
    n_chains, n_cells = options.langevin_chains, len(batch.spots.types)
    restored = batch.denoiser(n_chains=n_chains)
    seen = (batch.exposure > 0).float()
    factor = torch.from_numpy(depth_factors(batch.spots, batch.model.profiles)).to(seen.device)  # (spots, 1)
    target = batch.measured / batch.exposure.clamp(min=1e-12) * seen * factor

    def score(x: Tensor, level: float) -> Tensor:
        return (restored(x / scale, level / scale) * scale - x) / level**2

    x = anneal(
        score,
        Guidance(target, seen, batch.mean_log, batch.spots, options.langevin_clip),
        batch.mean_log.new_zeros((n_chains, *batch.mean_log.shape)),
        schedule=Schedule.of(options),
        normals=lambda step: batch.normals(step, n_chains=n_chains),
    )
    rates = (x + batch.mean_log).expm1().clamp(min=0.0)
    rates[:, :n_cells] /= factor[batch.spots.spot]
    return batch.finish(rates, batch.fill_in(rates + batch.floor)[1], rates + batch.floor)


def failed_spots(estimate: Estimate, spots: SpotCells) -> NDArray[np.bool_]:
    """Return which spots, (spots,), have a cell whose estimate is not a number."""
    bad = ~(np.isfinite(estimate.mean).all(axis=1) & np.isfinite(estimate.sd).all(axis=1))
    return np.bincount(spots.spot[bad], minlength=len(spots.counts)) > 0
