"""The published kind of score network, for comparison: a 1-D convolutional U-Net over genes in the panel's order.

Gene order carries no meaning, so this costs a hundred times the operations of `score_network` for nothing known; the
noise level modulates every block, and mu_k is a second input channel beside the noisy values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.noise import preconditioning
from spatialscope_dist.expression.residual_network import sinusoids
from spatialscope_dist.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

_KERNEL, _GROUPS = 3, 8


@dataclass(frozen=True)
class UNetShape:
    """Sizes of the U-Net: channels double at each of the levels, whose length halves."""

    n_genes: int
    channels: int
    n_levels: int
    n_frequencies: int = 16

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight by layer: (outputs, inputs) or (outputs, inputs, kernel)."""
        told = 4 * self.channels
        sizes: dict[str, tuple[int, ...]] = {
            "noise": (told, 2 * self.n_frequencies),
            "genes_in": (self.channels, 2, _KERNEL),
            "genes_out": (1, self.channels, _KERNEL),
        }
        before = self.channels
        for level in range(self.n_levels):
            after = self.channels << level
            sizes |= _block(f"down{level}", before, after, told)
            before = after
        sizes |= _block("middle", before, before, told)
        for level in reversed(range(self.n_levels)):
            after = self.channels << level
            sizes |= _block(f"up{level}", before + after, after, told)
            before = after
        return sizes

    def n_parameters(self) -> int:
        """Return the number of weights and biases."""
        return sum(int(np.prod(size)) + size[0] for size in self.sizes().values())

    def draw(self, *, seed: int) -> dict[str, NDArray[np.float32]]:
        """Return untrained parameters by name; the output layer is zero."""
        parameters = {}
        for name, size in self.sizes().items():
            bound = 0.0 if name == "genes_out" else float(np.prod(size[1:])) ** -0.5
            random = generator(seed, "initial_parameters", name)
            parameters[f"{name}.weight"] = random.uniform(-bound, bound, size).astype(np.float32)
            parameters[f"{name}.bias"] = np.zeros(size[0], np.float32)
        return parameters

    def denoise(
        self, parameters: Mapping[str, Tensor], noisy: Tensor, *, level: Tensor, types: Tensor, profiles: Tensor
    ) -> Tensor:
        """Return the expected noiseless value, (rows, genes); arguments as in `score_network.denoise`."""
        from torch.nn import functional

        keep, out, shrink, code = preconditioning(level)  # each (rows, 1)
        told = functional.silu(
            functional.linear(sinusoids(code, self.n_frequencies), parameters["noise.weight"], parameters["noise.bias"])
        )
        channels = (noisy * shrink)[:, None], profiles[types][:, None]  # (rows, 1, genes) each
        predicted = self._network(parameters, channels, told)[:, : noisy.shape[1]]
        restored: Tensor = keep * noisy + out * predicted
        return restored

    def _network(self, parameters: Mapping[str, Tensor], channels: tuple[Tensor, Tensor], told: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        value = functional.pad(torch.cat(channels, dim=1), (0, -self.n_genes % (1 << self.n_levels)))
        value = _convolve(parameters, "genes_in", value)  # (rows, channels, genes)
        skipped = []
        for level in range(self.n_levels):
            value = _apply(parameters, f"down{level}", value, told)
            skipped.append(value)
            value = functional.avg_pool1d(value, 2)
        value = _apply(parameters, "middle", value, told)
        for level in reversed(range(self.n_levels)):
            value = torch.cat([value.repeat_interleave(2, dim=2), skipped[level]], dim=1)
            value = _apply(parameters, f"up{level}", value, told)
        return _convolve(parameters, "genes_out", value)[:, 0]


def _block(name: str, inputs: int, outputs: int, told: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.first": (outputs, inputs, _KERNEL),
        f"{name}.told": (2 * outputs, told),
        f"{name}.second": (outputs, outputs, _KERNEL),
    }


def _convolve(parameters: Mapping[str, Tensor], name: str, value: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.conv1d(value, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=_KERNEL // 2)


def _apply(parameters: Mapping[str, Tensor], name: str, value: Tensor, told: Tensor) -> Tensor:
    """Return a modulated residual block's values, (rows, outputs, length)."""
    from torch.nn import functional

    value = _convolve(parameters, f"{name}.first", value)
    modulated = functional.linear(told, parameters[f"{name}.told.weight"], parameters[f"{name}.told.bias"])
    scale, shift = modulated[:, :, None].chunk(2, dim=1)
    inner = functional.group_norm(value, _GROUPS) * (1 + scale) + shift
    return value + _convolve(parameters, f"{name}.second", functional.silu(inner))
