"""What both networks share: a residual MLP whose blocks are modulated (FiLM, Perez et al. 2018).

Gene order carries no meaning, so the published convolution over genes is replaced by dense layers. Parameters are a
plain dictionary of arrays: what is trained, averaged, saved and loaded is the same thing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

TORCH_WORKER_BYTES = 720 << 20  # process with distributed, zarr, torch and compiled kernels loaded

Modulation = list[tuple["Tensor", "Tensor"]]  # scale and shift of every block, (rows, width)


def settle_torch() -> None:
    """Make torch repeat itself: one thread, deterministic kernels (call once per worker process)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA refuses to be deterministic
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; products are in full precision by default


def block_layers(width: int, n_blocks: int) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of the residual blocks' dense layers by name."""
    sizes = {}
    for block in range(n_blocks):
        sizes[f"block{block}.modulate"] = (width, 2 * width)
        sizes[f"block{block}.first"] = (width, width)
        sizes[f"block{block}.second"] = (width, width)
    return sizes


class DenseShape(ABC):
    """Sizes of a network of dense layers."""

    @abstractmethod
    def layers(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) of every dense layer by name."""

    def n_parameters(self) -> int:
        """Return the number of weights and biases."""
        return sum(inputs * outputs + outputs for inputs, outputs in self.layers().values())

    def draw(self, *, seed: int) -> dict[str, NDArray[np.float32]]:
        """Return untrained parameters by name; the output layer is zero, so step 0 predicts what is built in."""
        return draw_parameters(self.layers(), seed=seed)


def draw_parameters(layers: Mapping[str, tuple[int, int]], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return untrained parameters by name; the layer `genes_out` is zero, so step 0 predicts what is built in."""
    parameters = {}
    for name, (inputs, outputs) in layers.items():
        bound = 0.0 if name == "genes_out" else inputs**-0.5
        random = generator(seed, "initial_parameters", name)
        parameters[f"{name}.weight"] = random.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
        parameters[f"{name}.bias"] = np.zeros(outputs, np.float32)
    return parameters


def dense(parameters: Mapping[str, Tensor], name: str, value: Tensor) -> Tensor:
    """Return weight · value + bias of the layer of that name."""
    from torch.nn import functional

    return functional.linear(value, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def modulation(parameters: Mapping[str, Tensor], told: Tensor) -> Modulation:
    """Return scale and shift of every block, from what the network is told, (rows, width)."""
    out, block = [], 0
    while f"block{block}.modulate.weight" in parameters:
        scale, shift = dense(parameters, f"block{block}.modulate", told).chunk(2, dim=1)  # twice (rows, width)
        out.append((1 + scale, shift))
        block += 1
    return out


def residual_blocks(parameters: Mapping[str, Tensor], hidden: Tensor, modulated: Modulation) -> Tensor:
    """Return the output layer's values, (rows, outputs), of hidden values, (rows, width)."""
    import torch
    from torch.nn import functional

    width = hidden.shape[1:]
    for block, (scale, shift) in enumerate(modulated):
        inner = torch.addcmul(shift, functional.layer_norm(hidden, width), scale)  # (rows, width)
        inner = functional.silu(dense(parameters, f"block{block}.first", inner))  # (rows, width)
        hidden = hidden + dense(parameters, f"block{block}.second", inner)  # (rows, width)
    return dense(parameters, "genes_out", functional.layer_norm(hidden, width))  # (rows, width) -> (rows, outputs)


def sinusoids(code: Tensor, n_frequencies: int) -> Tensor:
    """Return sines and cosines, (rows, 2 frequencies), of a code, (rows, 1), that runs over about [-1, 1]."""
    import torch

    frequencies = torch.logspace(-1, 2, n_frequencies, base=2.0, dtype=code.dtype, device=code.device) * np.pi
    angle = code * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=1)
