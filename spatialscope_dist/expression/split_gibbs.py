"""Split Gibbs: the cells of a spot given its counts, by turns of exact allocation and expected expression.

Each sweep draws, per chain, (1) half of every cell's allocated counts; (2) from the count denoiser, expected expression
given that half, and a Gamma draw around it; (3) a multinomial split of the spot's measured counts in proportion to
these draws. Halving keeps a cell from holding on to what it was given by chance. The estimate is Rao-Blackwellised: the
mean over sweeps and chains of measured count times share of the expected expression, plus the part not captured. The
sd is that of integer draws, so it covers the truth, not its mean. A cell alone in its spot needs no chain: one
evaluation gives what was not captured or not measured of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.allocation import Estimate, SpotCells, align_chains, missing
from spatialscope_dist.expression.count_denoiser import Rates, Told, predict, tell, type_tables
from spatialscope_dist.expression.device import working_device
from spatialscope_dist.expression.intervals import FILLED, Spread, draw
from spatialscope_dist.expression.memory_fit import CELLS_PER_BLOCK, cells_at_once, within_memory
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.sweep_kernels import (
    Measured,
    Prior,
    Scales,
    Seen,
    Sums,
    empty_sums,
    sweep_kernel,
)
from spatialscope_dist.options import DecomposeOptions

if TYPE_CHECKING:
    import torch

_KEEP = 0.5  # share of a cell's allocated counts the denoiser sees

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Posterior:
    """Mean and sd of cells, and integer draws, (draws, cells, genes), chains lined up; all reference counts."""

    estimate: Estimate
    draws: Float


def sample_counts(
    spots: SpotCells,
    model: ExpressionModel,
    options: DecomposeOptions,
    *,
    device: torch.device | None = None,
    batch_cells: int | None = None,
) -> Estimate:
    """Return posterior mean and sd of every cell, (cells, genes) reference counts, under the count denoiser.

    `device` and `batch_cells` as of `samplers.sample_score`.
    """
    mean = np.full((len(spots.types), spots.counts.shape[1]), np.nan, np.float32)
    sd = mean.copy()
    device = device or working_device()
    size = batch_cells or cells_at_once(device, n_genes=spots.counts.shape[1], n_chains=options.count_chains)
    work = functools.partial(counts_posterior, model=model, options=options, device=device)
    for cells, _, found in within_memory(spots.alike(size), work):
        if found is not None:
            mean[cells], sd[cells] = found[0]
    return Estimate(mean, sd)


def counts_posterior(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, device: torch.device | None = None
) -> tuple[Estimate, Spread]:
    """Return mean and sd of the cells of one micro-batch (`SpotCells.alike`), and what their draws are made of."""
    kind = _Alone if len(spots.types) == len(spots.counts) else _Together
    return kind(spots, model, options, device or working_device()).posterior()


def draw_counts(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, device: torch.device | None = None
) -> Posterior:
    """Return the posterior of every cell with all its integer draws (memory: draws × cells × genes)."""
    shape = (len(spots.types), spots.counts.shape[1])
    n_draws = options.count_chains * (options.count_sweeps - options.count_burn_in)
    mean, sd = np.empty(shape, np.float32), np.empty(shape, np.float32)
    draws = np.empty((n_draws, *shape), np.float32)
    for cells, batch in _batches(spots, model, options, device or working_device()):
        (mean[cells], sd[cells]), spread = batch.posterior()
        draws[:, cells] = draw([spread], batch.spots, n_draws=n_draws)
    return Posterior(Estimate(mean, sd), draws)


def _batches(
    spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, device: torch.device
) -> Iterator[tuple[NDArray[np.intp], _Alone | _Together]]:
    for cells, part in spots.alike(CELLS_PER_BLOCK):
        kind = _Alone if len(part.types) == len(part.counts) else _Together
        yield cells, kind(part, model, options, device)


class _Batch:
    """Whole spots, their cells padded to a fixed number of rows."""

    def __init__(
        self, spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, device: torch.device
    ) -> None:
        self.spots, self.model, self.options, self.device = spots, model, options, device
        self.n_rows = len(spots.types) + -len(spots.types) % CELLS_PER_BLOCK
        self.measured, self.scales = Measured.of(spots), _scales(spots, model)
        self.parameters = model.networks["counts"].on(device)

    def told(self, *, keep: float, n_chains: int) -> Told:
        """Return what the denoiser is told of the rows of all chains, of which it sees a share of the counts."""
        import torch

        types = np.zeros(self.n_rows, np.int64)
        types[: len(self.spots.types)] = self.spots.types
        seen = (self.spots.exposure > 0).astype(np.float32)
        told = tell(
            self.parameters,
            type_tables(self.model.profiles, self.device),
            types=torch.from_numpy(types).to(self.device),
            level=torch.full((self.n_rows, 1), keep * self.scales.capture, device=self.device),
            visible=torch.from_numpy(seen).to(self.device).expand(self.n_rows, -1),
            label_errors=torch.full((self.n_rows, 1), self.options.label_errors, device=self.device),
        )
        return told.repeat(n_chains)

    def expect(self, seen: Seen, told: Told) -> Rates:
        """Return expected expression of cells, (chains * cells, genes), given the counts seen."""
        import torch

        n_rows = CELLS_PER_BLOCK * len(seen.logs)  # a call of the network has one fixed shape, whatever the batch's
        logs, totals = torch.from_numpy(seen.logs.reshape(-1, seen.logs.shape[2])), torch.from_numpy(seen.totals)
        parts = (torch.split(values.to(self.device), n_rows) for values in (logs, totals.reshape(-1, 1)))
        blocks = zip(*parts, told.split(n_rows), strict=True)
        rates = [predict(self.parameters, *block) for block in blocks]
        return Rates(*(torch.cat(parts) for parts in zip(*rates, strict=True)))

    def prior(self, rates: Rates, n_chains: int) -> Prior:
        """Return mean and shape as arrays, (chains, cells, genes)."""
        shape = (n_chains, self.n_rows, -1)
        return Prior(*(value.exp().reshape(shape).cpu().numpy() for value in rates))


class _Together(_Batch):
    """Spots with several cells: split Gibbs."""

    def posterior(self) -> tuple[Estimate, Spread]:
        """Return mean and sd of the cells, and the expectations of the kept sweeps."""
        import torch

        n_chains, n_sweeps = self.options.count_chains, self.options.count_sweeps
        shape = (n_chains, self.n_rows, self.spots.counts.shape[1])
        seen = Seen(np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32))
        sums, priors, sweep = empty_sums(shape), [], sweep_kernel()
        with torch.inference_mode():
            told = self.told(keep=_KEEP, n_chains=n_chains)
            rates = Rates(told.log_means, told.log_shapes)
            for number in range(n_sweeps + 1):
                prior, kept = self.prior(rates, n_chains), number > self.options.count_burn_in
                sweep(number, self.measured, prior, seen, sums, self.scales.of_genes, kept)
                if kept:
                    priors.append(prior)
                if number < n_sweeps:
                    rates = self.expect(seen, told)
        return self._combine(sums, priors)

    def _combine(self, sums: Sums, priors: list[Prior]) -> tuple[Estimate, Spread]:
        n_cells, n_kept = len(self.spots.types), len(priors)
        means = sums.means[:, :n_cells] / np.float32(n_kept)
        order = align_chains(means, self.spots)
        n_draws = np.float32(n_kept * len(means))
        mean = np.take_along_axis(means, order[:, :, None], axis=1).mean(axis=0)
        first, second, extra = (
            np.take_along_axis(part[:, :n_cells], order[:, :, None], axis=1).sum(axis=0) / n_draws
            for part in (sums.draws, sums.squares, sums.variances)
        )
        sd = np.sqrt(np.maximum(second - first**2, 0) + extra)
        rate, shape = (np.concatenate(parts) for parts in zip(*priors, strict=True))
        return Estimate(mean, sd), Spread(rate, shape, np.tile(order, (n_kept, 1)), FILLED)


class _Alone(_Batch):
    """Cells alone in their spot: what was not captured or not measured of them, by one evaluation."""

    def posterior(self) -> tuple[Estimate, Spread]:
        """Return mean and sd of the cells, and the expectation they come from."""
        import torch

        n_cells, genes = len(self.spots.types), self.scales.of_genes
        values = np.zeros((1, self.n_rows, self.spots.counts.shape[1]), np.float32)
        values[0, :n_cells] = self.spots.measured / genes.relative
        seen = Seen(np.log1p(values), values.sum(axis=2))
        with torch.inference_mode():
            prior = self.prior(self.expect(seen, self.told(keep=1.0, n_chains=1)), 1)
        captured, unseen = self.spots.measured * genes.per_count, prior.rate[0, :n_cells] * genes.missing
        sd = np.sqrt(unseen + unseen**2 / prior.shape[0, :n_cells])
        return Estimate(captured + unseen, sd), Spread.of(prior.rate[0, :n_cells], shape=prior.shape[0, :n_cells])


class _Scaling(NamedTuple):
    """Capture of the section, and the scales of its genes."""

    capture: float
    of_genes: Scales


def _scales(spots: SpotCells, model: ExpressionModel) -> _Scaling:
    # Capture: exposure averaged over expected counts, at most 1; counts are brought to it gene by gene.
    visible = spots.exposure > 0
    weight = np.where(visible, model.profiles.mean_counts.mean(axis=0, dtype=np.float64), 0.0)
    capture = min(float(weight @ spots.exposure) / float(weight.sum()), 1.0) if visible.any() else 1.0
    relative = np.where(visible, spots.exposure / capture, 1.0).astype(np.float32)
    per_count = (1.0 / np.maximum(spots.exposure, 1.0)).astype(np.float32)
    return _Scaling(capture, Scales(relative, per_count, missing(spots.exposure)))
