"""The count denoiser: what is left of a cell's counts, given a binomial sample of them.

Binomial thinning is to counts what Gaussian noise is to real numbers: of a cell's counts x each is seen with
probability alpha, and the network predicts the rest, x - seen ~ negative binomial with mean (1 - alpha) rate and shape
phi. Type mean and cell size are built in, and the output layer starts at zero, so that step 0 is the type's mean
profile times the size the seen counts show:

    log rate_g = log mean_kg + log((sum seen + 20) / (sum alpha mean_k + 20)) + f_0 + f_g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialscope_dist.expression.profiles import ReferenceProfiles
from spatialscope_dist.expression.residual_network import (
    DenseShape,
    Modulation,
    block_layers,
    dense,
    modulation,
    residual_blocks,
    sinusoids,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LARGEST_LEVEL = 0.95  # of the share of counts seen in training
_SIZE_PRIOR = 20.0  # counts' weight of size 1
_LARGEST_LOG_CHANGE, _LOG_SHAPES = 6.0, (-3.0, 7.0)


@dataclass(frozen=True)
class DenoiserShape(DenseShape):
    """Sizes of the count denoiser."""

    n_genes: int
    width: int
    n_blocks: int
    n_frequencies: int = 16

    def layers(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) of every dense layer by name."""
        return {
            "genes_in": (self.n_genes, self.width),
            "hidden_in": (self.n_genes, self.width),
            "size_in": (2, self.width),
            "noise": (2 * self.n_frequencies, self.width),
            "label_errors": (1, self.width),
            "profile": (self.n_genes, self.width),
            "genes_out": (self.width, 2 * self.n_genes + 1),
        } | block_layers(self.width, self.n_blocks)


class TypeTables(NamedTuple):
    """What is known of the types, (types, genes) each: mu_k, log of mean counts, mean counts, log of dispersion."""

    mean_log: Tensor
    log_means: Tensor
    means: Tensor
    log_shapes: Tensor


class Told(NamedTuple):
    """What the network is told of its rows besides the counts they show."""

    modulated: Modulation
    hidden: Tensor  # (rows, width), of hidden genes
    expected: Tensor  # (rows, 1), counts expected to be seen of a cell of size 1
    log_means: Tensor  # (rows, genes)
    log_shapes: Tensor  # (rows, genes)

    def repeat(self, times: int) -> Told:
        """Return the same for the rows several times over."""
        modulated = [(scale.repeat(times, 1), shift.repeat(times, 1)) for scale, shift in self.modulated]
        return Told(modulated, *(part.repeat(times, 1) for part in self[1:]))

    def split(self, n_rows: int) -> list[Told]:
        """Return the same for consecutive blocks of so many rows."""
        starts = range(0, len(self.expected), n_rows)

        def part(values: Tensor, low: int) -> Tensor:
            return values[low : low + n_rows]

        return [
            Told(
                [(part(scale, low), part(shift, low)) for scale, shift in self.modulated],
                *(part(v, low) for v in self[1:]),
            )
            for low in starts
        ]


class Rates(NamedTuple):
    """Expected expression and its spread: logs of mean and of Gamma shape, (rows, genes) each, reference counts."""

    log_rate: Tensor
    log_shape: Tensor


def tell(
    parameters: Mapping[str, Tensor],
    tables: TypeTables,
    *,
    types: Tensor,
    level: Tensor,
    visible: Tensor,
    label_errors: Tensor,
) -> Told:
    """Return what the network is told of its rows; the same for every draw of their counts.

    Parameters
    ----------
    parameters
        weights and biases by name.
    tables
        of the types.
    types
        (rows,), index of the cell type.
    level
        (rows, 1), alpha: the share of a cell's counts that is seen.
    visible
        (rows, genes), 1 for genes that are seen, 0 for those that are not.
    label_errors
        (rows, 1), probability that the type is wrong.
    """
    from torch.nn import functional

    profile = dense(parameters, "profile", tables.mean_log)  # (types, genes) -> (types, width)
    code = level.clamp(max=_LARGEST_LEVEL).log() / 4.0 + 0.5  # (rows, 1)
    waves = sinusoids(code, parameters["noise.weight"].shape[1] // 2)  # (rows, 2 * frequencies)
    doubt = dense(parameters, "label_errors", (label_errors * 20).log1p())  # (rows, width)
    told = functional.silu(dense(parameters, "noise", waves) + profile[types] + doubt)  # (rows, width)
    expected = level * (visible * tables.means[types]).sum(dim=1, keepdim=True)  # (rows, 1)
    hidden = _hidden_genes(parameters, visible)
    return Told(modulation(parameters, told), hidden, expected, tables.log_means[types], tables.log_shapes[types])


def _hidden_genes(parameters: Mapping[str, Tensor], visible: Tensor) -> Tensor:
    """Return what the network is told of hidden genes, (rows, width): zero for rows that see all."""
    rows = (visible < 1).any(dim=1).nonzero()[:, 0]
    weight = parameters["hidden_in.weight"]
    told = visible.new_zeros((len(visible), len(weight)))
    return told.index_copy(0, rows, ((1 - visible[rows]) @ weight.T).to(told.dtype)) if len(rows) else told


def predict(parameters: Mapping[str, Tensor], logs: Tensor, totals: Tensor, told: Told) -> Rates:
    """Return expected expression of the cells of which these counts are seen.

    Parameters
    ----------
    parameters
        weights and biases by name.
    logs
        (rows, genes), log(seen count + 1); 0 for hidden genes.
    totals
        (rows, 1), seen counts of the row.
    told
        of the rows (`tell`).
    """
    import torch

    size = torch.log((totals + _SIZE_PRIOR) / (told.expected + _SIZE_PRIOR))  # (rows, 1)
    depth = torch.cat([size, told.expected.log1p() / 4.0], dim=1)  # (rows, 2)
    hidden = dense(parameters, "genes_in", logs) + dense(parameters, "size_in", depth) + told.hidden
    out = residual_blocks(parameters, hidden, told.modulated)  # (rows, 2 genes + 1)
    n_genes = logs.shape[1]
    change = (out[:, :n_genes] + out[:, 2 * n_genes :]).clamp(-_LARGEST_LOG_CHANGE, _LARGEST_LOG_CHANGE)
    log_shape = (told.log_shapes + out[:, n_genes : 2 * n_genes]).clamp(*_LOG_SHAPES)
    return Rates(told.log_means + size + change, log_shape)


def remainder_loss(rates: Rates, remainder: Tensor, left: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of what was not seen, negative binomial, without its constant.

    Parameters
    ----------
    rates
        expected expression, (rows, genes).
    remainder
        (rows, genes), counts that were not seen.
    left
        (rows, genes), share of the counts that was not seen: 1 - alpha, 1 for hidden genes.
    """
    import torch

    log_mean = rates.log_rate + left.log()
    # log(phi / (phi + m)) and log(m / (phi + m)), m the mean
    none = -torch.nn.functional.softplus(log_mean - rates.log_shape)
    loss = -(rates.log_shape.exp() * none).sum()
    row, gene = torch.nonzero(remainder, as_tuple=True)
    count, shape = remainder[row, gene], rates.log_shape[row, gene].exp()
    some = torch.lgamma(count + shape) - torch.lgamma(shape)
    some = some + count * (log_mean[row, gene] - rates.log_shape[row, gene] + none[row, gene])
    return (loss - some.sum()) / remainder.numel()


def type_tables(profiles: ReferenceProfiles, device: torch.device | None = None) -> TypeTables:
    """Return the tables of the types on a device."""
    import torch

    means = np.maximum(profiles.mean_counts, 1e-6)
    values = (profiles.mean_log, np.log(means), means, np.log(profiles.dispersion))
    return TypeTables(*(torch.from_numpy(np.array(value, np.float32)).to(device) for value in values))
