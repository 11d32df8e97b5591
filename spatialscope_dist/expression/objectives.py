"""What the networks are trained for: denoising score matching, eq. (8), and binomial thinning of counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.expression.count_denoiser import (
    DenoiserShape,
    TypeTables,
    predict,
    remainder_loss,
    tell,
    type_tables,
)
from spatialscope_dist.expression.gene_unet import UNetShape
from spatialscope_dist.expression.noise import loss_weight
from spatialscope_dist.expression.profiles import CellRows, ReferenceProfiles
from spatialscope_dist.expression.score_network import NetworkShape
from spatialscope_dist.options import TrainOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SEEN = (0.02, 0.95)  # range of the share of a cell's counts that is seen
_SPARSE_SHARE, _SPARSER = 0.25, 0.3  # a quarter of the samples sees three tenths of that
_DOUBTFUL_SHARE = 0.25  # of the samples are told that their type may be wrong, and some are
_HIDING_SHARE, _MOST_HIDDEN = 0.3, 0.6  # three tenths of the samples hide up to that share of the genes

Batch = tuple["Tensor", ...]


@dataclass(frozen=True)
class TrainingData:
    """Reference cells to train on and to hold out.

    Attributes
    ----------
    counts
        (cells, genes), raw counts; library sizes stay as they are.
    types
        (cells,), index of the cell type.
    train, held_out
        row numbers.
    profiles
        statistics of the training cells.
    """

    counts: CellRows
    types: NDArray[np.integer]
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    profiles: ReferenceProfiles


class Objective(Protocol):
    """A network and its loss."""

    @property
    def name(self) -> str:
        """Of the network."""

    @property
    def max_steps(self) -> int:
        """Optimiser steps at most."""

    @property
    def shape(self) -> NetworkShape | UNetShape | DenoiserShape:
        """Sizes of the network."""

    def batch(self, rows: NDArray[np.intp], random: np.random.Generator) -> Batch:
        """Return these cells with noise drawn from `random`, on the device."""

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean loss of a batch; nothing but torch, so that it can be compiled."""


@dataclass(frozen=True)
class ScoreMatching:
    """Denoising score matching over noise levels, in the preconditioning of Karras et al. 2022."""

    data: TrainingData
    options: TrainOptions
    device: torch.device
    name: ClassVar[str] = "score"

    @property
    def max_steps(self) -> int:
        """Optimiser steps at most."""
        return min(self.options.score_steps, self.options.max_steps)

    @property
    def shape(self) -> NetworkShape | UNetShape:
        """Sizes of the network."""
        n_genes = self.data.counts.shape[1]
        if self.options.score_network == "unet":
            return UNetShape(n_genes, self.options.unet_channels, self.options.unet_levels)
        return NetworkShape(n_genes, self.options.width, self.options.n_blocks)

    def batch(self, rows: NDArray[np.intp], random: np.random.Generator) -> Batch:
        """Return noisy and clean values, (rows, genes), noise levels, types and mu_k."""
        profiles, types = self.data.profiles, self.data.types[rows].astype(np.int64)
        counts = self.data.counts[rows].toarray().astype(np.float32)
        clean = put((np.log1p(counts) - profiles.mean_log[types]) / profiles.scale, self.device)
        low, high = math.log(self.options.noise_min), math.log(self.options.noise_max)
        level = put(np.exp(random.uniform(low, high, (len(rows), 1))).astype(np.float32), self.device)
        noisy = clean + level * put(random.standard_normal(clean.shape, dtype=np.float32), self.device)
        return noisy, clean, level, put(types, self.device), put(profiles.mean_log, self.device)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the weighted mean squared error of denoised cells."""
        noisy, clean, level, types, mean_log = batch
        restored = self.shape.denoise(parameters, noisy, level=level, types=types, profiles=mean_log)
        loss: Tensor = (loss_weight(level) * (restored - clean) ** 2).mean()
        return loss


@dataclass(frozen=True)
class Thinned:
    """Cells of which part is seen: (rows, genes) each; `level`, (rows, 1), is the share of counts seen."""

    seen: NDArray[np.float32]
    remainder: NDArray[np.float32]
    visible: NDArray[np.float32]
    level: NDArray[np.float32]


def thin(counts: sp.csr_matrix, random: np.random.Generator) -> Thinned:
    """Return a binomial sample of every cell's counts, some with genes hidden altogether."""
    n_rows, n_genes = counts.shape
    level = random.uniform(*_SEEN, n_rows)
    level = np.where(random.random(n_rows) < _SPARSE_SHARE, _SPARSER * level, level)
    sample = random.binomial(np.rint(counts.data).astype(np.int64), np.repeat(level, np.diff(counts.indptr)))
    hidden = np.where(random.random(n_rows) < _HIDING_SHARE, random.uniform(0, _MOST_HIDDEN, n_rows), 0.0)
    visible = (random.random((n_rows, n_genes), dtype=np.float32) >= hidden[:, None]).astype(np.float32)
    thinned = sp.csr_matrix((sample.astype(np.float32), counts.indices, counts.indptr), counts.shape)
    seen = thinned.toarray() * visible
    remainder = counts.toarray().astype(np.float32) - seen
    return Thinned(seen, remainder, visible, level[:, None].astype(np.float32))


@dataclass(frozen=True)
class BinomialThinning:
    """Predict the counts of a cell that a binomial sample leaves out."""

    data: TrainingData
    options: TrainOptions
    device: torch.device
    name: ClassVar[str] = "counts"

    @property
    def max_steps(self) -> int:
        """Optimiser steps at most."""
        return self.options.max_steps

    @property
    def shape(self) -> DenoiserShape:
        """Sizes of the network."""
        return DenoiserShape(self.data.counts.shape[1], self.options.width, self.options.n_blocks)

    def batch(self, rows: NDArray[np.intp], random: np.random.Generator) -> Batch:
        """Return seen counts, remainder, visible genes, (rows, genes), level, label errors, types and their tables."""
        doubtful = random.random(len(rows)) < _DOUBTFUL_SHARE
        errors = np.where(doubtful, random.uniform(0, self.options.label_errors, len(rows)), 0.0)
        wrong = random.random(len(rows)) < errors
        n_types, own = len(self.data.profiles.mean_log), self.data.types[rows]
        types = np.where(wrong, random.integers(0, n_types, len(rows)), own).astype(np.int64)
        cells = thin(self.data.counts[rows], random)
        parts = (cells.seen, cells.remainder, cells.visible, cells.level, errors[:, None].astype(np.float32), types)
        return *(put(part, self.device) for part in parts), *type_tables(self.data.profiles, self.device)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of what was not seen."""
        seen, remainder, visible, level, errors, types, *tables = batch
        told = tell(parameters, TypeTables(*tables), types=types, level=level, visible=visible, label_errors=errors)
        rates = predict(parameters, seen.log1p(), seen.sum(dim=1, keepdim=True), told)
        return remainder_loss(rates, remainder, 1 - level * visible)


def put(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of the values as a tensor on the device."""
    import torch

    return torch.from_numpy(np.array(values)).to(device)


OBJECTIVES: Mapping[str, type[ScoreMatching] | type[BinomialThinning]] = {
    "counts": BinomialThinning,
    "score": ScoreMatching,
}
