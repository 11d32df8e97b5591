"""The score network: a residual MLP told the noise level and the type's mean profile, eq. (8)-(9).

Gene order carries no meaning, so the published convolution over genes is replaced by dense layers; every
residual block is modulated (FiLM, Perez et al. 2018) by the noise level and by a linear map of the vector mu_k.
Parameters are a plain dictionary of arrays: what is trained, averaged, saved and loaded is the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.noise import preconditioning
from spatialscope_dist.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

TORCH_WORKER_BYTES = 720 << 20  # process with distributed, zarr, torch and compiled kernels loaded


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of the score network."""

    n_genes: int
    width: int
    n_blocks: int
    n_frequencies: int = 16

    def layers(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) of every dense layer by name."""
        sizes = {
            "genes_in": (self.n_genes, self.width),
            "noise": (2 * self.n_frequencies, self.width),
            "profile": (self.n_genes, self.width),
            "genes_out": (self.width, self.n_genes),
        }
        for block in range(self.n_blocks):
            sizes[f"block{block}.modulate"] = (self.width, 2 * self.width)
            sizes[f"block{block}.first"] = (self.width, self.width)
            sizes[f"block{block}.second"] = (self.width, self.width)
        return sizes

    def n_parameters(self) -> int:
        """Return the number of weights and biases."""
        return sum(inputs * outputs + outputs for inputs, outputs in self.layers().values())


def settle_torch() -> None:
    """Make torch repeat itself: one thread, deterministic kernels (call once per worker process)."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)


def initial_parameters(shape: NetworkShape, *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return untrained parameters by name; the output layer is zero, so step 0 predicts the type mean."""
    parameters = {}
    for name, (inputs, outputs) in shape.layers().items():
        bound = 0.0 if name == "genes_out" else inputs**-0.5
        random = generator(seed, "initial_parameters", name)
        parameters[f"{name}.weight"] = random.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
        parameters[f"{name}.bias"] = np.zeros(outputs, np.float32)
    return parameters


def denoise(
    parameters: Mapping[str, Tensor], noisy: Tensor, *, level: Tensor, types: Tensor, profiles: Tensor
) -> Tensor:
    """Return the expected noiseless value, (rows, genes), of noisy log1p - mu_k in units of the data's sd.

    Parameters
    ----------
    parameters
        weights and biases by name (`initial_parameters`).
    noisy
        (rows, genes), noiseless value + level * standard normal.
    level
        (rows, 1), noise level in units of the data's sd.
    types
        (rows,), index of the cell type.
    profiles
        (types, genes), mu_k: mean log1p count of each type.
    """
    keep, out, shrink, code = preconditioning(level)  # each (rows, 1)
    predicted = _network(parameters, noisy * shrink, code=code, types=types, profiles=profiles)
    restored: Tensor = keep * noisy + out * predicted  # (rows, genes)
    return restored


def _network(
    parameters: Mapping[str, Tensor], genes: Tensor, *, code: Tensor, types: Tensor, profiles: Tensor
) -> Tensor:
    from torch.nn import functional

    def dense(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    width = parameters["genes_in.weight"].shape[0]
    profile = dense("profile", profiles)  # (types, genes) -> (types, width)
    waves = _sinusoids(code, parameters["noise.weight"].shape[1] // 2)  # (rows, 1) -> (rows, 2 * frequencies)
    told = functional.silu(dense("noise", waves) + profile[types])  # (rows, width)
    hidden = dense("genes_in", genes)  # (rows, genes) -> (rows, width)
    block = 0
    while f"block{block}.first.weight" in parameters:
        scale, shift = dense(f"block{block}.modulate", told).chunk(2, dim=1)  # (rows, 2 width) -> twice (rows, width)
        inner = functional.layer_norm(hidden, (width,)) * (1 + scale) + shift  # (rows, width)
        inner = functional.silu(dense(f"block{block}.first", inner))  # (rows, width)
        hidden = hidden + dense(f"block{block}.second", inner)  # (rows, width)
        block += 1
    return dense("genes_out", functional.layer_norm(hidden, (width,)))  # (rows, width) -> (rows, genes)


def _sinusoids(code: Tensor, n_frequencies: int) -> Tensor:
    import torch

    frequencies = torch.logspace(-1, 2, n_frequencies, base=2.0, dtype=code.dtype, device=code.device) * np.pi
    angle = code * frequencies  # (rows, frequencies); code runs over about [-1, 0.75]
    return torch.cat([angle.sin(), angle.cos()], dim=1)
