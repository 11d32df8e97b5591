"""StarDist's network in torch, reading the same Keras weights: one framework for workers with a GPU.

The layers and their names are those of csbdeep's U-Net as StarDist 2D builds it (Schmidt et al. 2018).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.nuclei.stardist_model import REMEDY, WEIGHTS

if TYPE_CHECKING:
    import torch

#: Layer name → kernel (out, in, height, width) and bias (out,), in the order the model names them.
Layers = dict[str, "tuple[torch.Tensor, torch.Tensor]"]


class TorchNetwork:
    """A loaded model; lives in one process and is never pickled."""

    def __init__(self, folder: str) -> None:
        import torch

        self._config: Mapping[str, Any] = json.loads((Path(folder) / "config.json").read_text())
        if self._config["unet_batch_norm"]:
            raise ValueError("batch normalisation, which the torch backend does not read")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._layers = read_layers(Path(folder), self._device)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def predict(self, window: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return probability (rows, columns) and distances (rows, columns, rays) on the model's grid.

        Parameters
        ----------
        window : ndarray
            (channels, y, x) float32, normalised; height and width multiples of the model's `align`.
        """
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(window))[None].to(self._device)
            probability, distances = self._forward(pixels.contiguous(memory_format=torch.channels_last))
            return probability[0, 0].cpu().numpy(), distances[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from torch.nn.functional import interpolate, max_pool2d

        config = self._config
        per_level, depth = config["unet_n_conv_per_depth"], config["unet_n_depth"]
        grid, pool = np.array(config["grid"]), tuple(config["unet_pool"])
        before = (name for name in self._layers if name.startswith("conv2d"))
        pooled = np.ones(2, int)
        while (pooled < grid).any():  # (1, channels, y, x) → (1, filters, y / grid, x / grid)
            factor = 1 + (grid > pooled)
            for _ in range(per_level):
                x = self._relu(next(before), x)
            x = max_pool2d(x, tuple(factor))
            pooled *= factor
        skips = []
        for level in range(depth):  # each level: twice the filters, half the edge
            for number in range(per_level):
                x = self._relu(f"down_level_{level}_no_{number}", x)
            skips.append(x)
            x = max_pool2d(x, pool)
        for number in (*range(per_level - 1), per_level):
            x = self._relu(f"middle_{number}", x)
        for level in reversed(range(depth)):
            x = torch.cat([interpolate(x, scale_factor=pool, mode="nearest"), skips[level]], dim=1)
            for number in (*range(per_level - 1), per_level):
                x = self._relu(f"up_level_{level}_no_{number}", x)
        if config["net_conv_after_unet"] > 0:
            x = self._relu("features", x)
        return torch.sigmoid(self._convolve("prob", x)), self._convolve("dist", x)

    def _relu(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._convolve(name, x).relu_()

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import conv2d

        kernel, bias = self._layers[name]
        return conv2d(x, kernel, bias, padding="same")


def read_layers(folder: Path, device: torch.device) -> Layers:
    """Return the convolutions of a StarDist folder's Keras h5, in the model's order.

    Raises
    ------
    OSError, KeyError
        When the file is no Keras weight file.
    """
    import h5py
    import torch

    path = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    layers: Layers = {}
    with h5py.File(path) as file:
        for name in (_text(name) for name in file.attrs["layer_names"]):
            names = [_text(weight) for weight in file[name].attrs["weight_names"]]
            if not names:
                continue
            kernel, bias = (np.asarray(file[name][weight]) for weight in names)
            stored = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))).to(device)
            layers[name] = stored.contiguous(memory_format=torch.channels_last), torch.from_numpy(bias).to(device)
    return layers


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


@cache
def load_torch_network(folder: str) -> TorchNetwork:
    """Return the model of a folder in torch, loaded once per process.

    Raises
    ------
    BadInput
        When the weights cannot be read.
    """
    try:
        return TorchNetwork(folder)
    except (OSError, KeyError, ValueError) as error:
        problem = Problem(folder, f"weights that cannot be loaded ({error})", "StarDist 2D weights", REMEDY)
        raise BadInput(problem) from error
