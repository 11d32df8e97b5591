"""The score network: told the noise level and the type's mean profile mu_k, a vector, eq. (8)-(9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spatialscope_dist.expression.noise import preconditioning
from spatialscope_dist.expression.residual_network import (
    DenseShape,
    block_layers,
    dense,
    modulation,
    residual_blocks,
    sinusoids,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NetworkShape(DenseShape):
    """Sizes of the score network."""

    n_genes: int
    width: int
    n_blocks: int
    n_frequencies: int = 16

    def layers(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) of every dense layer by name."""
        return {
            "genes_in": (self.n_genes, self.width),
            "noise": (2 * self.n_frequencies, self.width),
            "profile": (self.n_genes, self.width),
            "genes_out": (self.width, self.n_genes),
        } | block_layers(self.width, self.n_blocks)

    def denoise(
        self, parameters: Mapping[str, Tensor], noisy: Tensor, *, level: Tensor, types: Tensor, profiles: Tensor
    ) -> Tensor:
        """Return the expected noiseless value, (rows, genes): `denoise`."""
        return denoise(parameters, noisy, level=level, types=types, profiles=profiles)


def denoise(
    parameters: Mapping[str, Tensor], noisy: Tensor, *, level: Tensor, types: Tensor, profiles: Tensor
) -> Tensor:
    """Return the expected noiseless value, (rows, genes), of noisy log1p - mu_k in units of the data's sd.

    Parameters
    ----------
    parameters
        weights and biases by name.
    noisy
        (rows, genes), noiseless value + level * standard normal.
    level
        (rows, 1), noise level in units of the data's sd.
    types
        (rows,), index of the cell type.
    profiles
        (types, genes), mu_k: mean log1p count of each type.
    """
    from torch.nn import functional

    keep, out, shrink, code = preconditioning(level)  # each (rows, 1)
    profile = dense(parameters, "profile", profiles)  # (types, genes) -> (types, width)
    waves = sinusoids(code, parameters["noise.weight"].shape[1] // 2)  # (rows, 1) -> (rows, 2 * frequencies)
    told = functional.silu(dense(parameters, "noise", waves) + profile[types])  # (rows, width)
    hidden = dense(parameters, "genes_in", noisy * shrink)  # (rows, genes) -> (rows, width)
    predicted = residual_blocks(parameters, hidden, modulation(parameters, told))  # (rows, genes)
    restored: Tensor = keep * noisy + out * predicted  # (rows, genes)
    return restored
