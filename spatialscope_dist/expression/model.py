"""The trained model as one self-contained thing: what it is made of, and its two files."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.expression.count_denoiser import DenoiserShape
from spatialscope_dist.expression.gene_unet import UNetShape
from spatialscope_dist.expression.profiles import ReferenceProfiles
from spatialscope_dist.expression.score_network import NetworkShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 2
_PROFILE = "profile."
Shape = NetworkShape | UNetShape | DenoiserShape


@dataclass(frozen=True)
class Network:
    """Sizes and averaged (EMA) weights, by name, of one network."""

    shape: Shape
    parameters: Mapping[str, NDArray[np.float32]]

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(np.array(values)) for name, values in self.parameters.items()}

    def on(self, device: torch.device | None) -> dict[str, Tensor]:
        """Return the weights as tensors on a device."""
        return {name: tensor.to(device) for name, tensor in self._tensors.items()}


@dataclass(frozen=True)
class ExpressionModel:
    """The trained networks and the reference profiles they were trained on.

    Attributes
    ----------
    genes, types
        names, in the order of the arrays.
    networks
        "counts": the count denoiser; "score": the score network; one of them may be missing.
    noise_range
        smallest and largest noise level the score network was trained on, in units of the data's sd.
    profiles
        statistics of the training cells per type.
    training
        seed, held-out share, steps, losses, versions: how it came about.
    """

    genes: tuple[str, ...]
    types: tuple[str, ...]
    networks: Mapping[str, Network]
    noise_range: tuple[float, float]
    profiles: ReferenceProfiles
    training: Mapping[str, Any]

    def denoiser(self, types: NDArray[np.int64], *, device: torch.device | None = None) -> Denoiser:
        """Return the score model's denoiser of rows whose cell types are `types`, (rows,)."""
        import torch

        network = self.networks["score"]
        assert not isinstance(network.shape, DenoiserShape)
        return Denoiser(
            network.shape,
            network.on(device),
            torch.from_numpy(np.array(types, np.int64)).to(device),
            torch.from_numpy(np.array(self.profiles.mean_log)).to(device),
            self.noise_range,
        )


@dataclass(frozen=True)
class Denoiser:
    """The network for a fixed set of rows; call it with noisy values and one noise level."""

    shape: NetworkShape | UNetShape
    parameters: Mapping[str, Tensor]
    types: Tensor
    profiles: Tensor
    noise_range: tuple[float, float]

    def __call__(self, noisy: Tensor, level: float) -> Tensor:
        """Return the expected noiseless value, (rows, genes), units of the data's sd, at one noise level.

        Beyond the trained range the input is brought to the nearest trained level: above it hardly anything is
        left of the signal, below it hardly anything of the noise.
        """
        import torch

        trained = min(max(level, self.noise_range[0]), self.noise_range[1])
        scaled = noisy if level <= trained else noisy * ((trained**2 + 1) ** 0.5 / (level**2 + 1) ** 0.5)
        levels = torch.full((len(noisy), 1), trained, dtype=noisy.dtype, device=noisy.device)
        with torch.no_grad():
            return self.shape.denoise(self.parameters, scaled, level=levels, types=self.types, profiles=self.profiles)


def pack_model(model: ExpressionModel) -> tuple[bytes, dict[str, Any]]:
    """Return the contents of weights.safetensors and model.json; no pickle anywhere."""
    from safetensors.numpy import save

    tensors = {
        f"{kind}.{name}": np.ascontiguousarray(values)
        for kind, network in model.networks.items()
        for name, values in network.parameters.items()
    }
    tensors |= {_PROFILE + name: np.ascontiguousarray(values) for name, values in model.profiles.arrays().items()}
    weights = save(tensors)
    document = {
        "format": FORMAT,
        "genes": list(model.genes),
        "types": list(model.types),
        "networks": {kind: asdict(network.shape) for kind, network in model.networks.items()},
        "noise_range": list(model.noise_range),
        "data_scale": float(model.profiles.scale[0]),
        "mu": [[float(str(value)) for value in row] for row in model.profiles.mean_log],
        "mean_total_counts": [float(total) for total in model.profiles.mean_counts.sum(axis=1)],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(model.training),
    }
    return weights, document


def unpack_model(weights: bytes, document: Mapping[str, Any]) -> ExpressionModel:
    """Return the model of the two files' contents.

    Raises
    ------
    BadInput
        When the files are of another format or do not belong together.
    """
    from safetensors.numpy import load

    if document.get("format") != FORMAT:
        remedy = "Train again with this version: spatialscope run STUDY --from train."
        raise BadInput(Problem("model.json", f"format {document.get('format')!r}", f"format {FORMAT}", remedy))
    digest = hashlib.sha256(weights).hexdigest()
    if digest != document["weights_sha256"]:
        remedy = "Copy both files of one trained model."
        raise BadInput(Problem("weights.safetensors", f"SHA-256 {digest[:12]}…", "the one in model.json", remedy))
    tensors = load(weights)
    low, high = document["noise_range"]
    networks = {
        kind: Network(_shape_of(kind, shape), _of_prefix(tensors, f"{kind}."))
        for kind, shape in document["networks"].items()
    }
    return ExpressionModel(
        tuple(document["genes"]),
        tuple(document["types"]),
        networks,
        (low, high),
        ReferenceProfiles(**_of_prefix(tensors, _PROFILE)),
        document["training"],
    )


def _shape_of(kind: str, sizes: Mapping[str, int]) -> Shape:
    if kind == "counts":
        return DenoiserShape(**sizes)
    return UNetShape(**sizes) if "channels" in sizes else NetworkShape(**sizes)


def _of_prefix(tensors: Mapping[str, NDArray[np.float32]], prefix: str) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


@functools.lru_cache(maxsize=1)
def load_model(folder: Path, weights_sha256: str) -> ExpressionModel:
    """Return the model in a folder; kept in the process under its path and the hash of its weights.

    Raises
    ------
    BadInput
        When the folder holds another model, or files of another format.
    """
    document = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if document.get("weights_sha256") != weights_sha256:
        remedy = "Run train again, or put the model back."
        raise BadInput(Problem(str(folder / "model.json"), "another model", f"weights {weights_sha256[:12]}…", remedy))
    return unpack_model((folder / "weights.safetensors").read_bytes(), document)
