"""StarDist models: resolved by name or folder, described without TensorFlow, run window by window.

The only place that imports tensorflow, and only when a window is predicted; `torch_model` runs the
same weights without it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy, located
from spatialscope_dist.nuclei.candidates import BORDER

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo_model"
OFFICIAL = ("2D_versatile_he", "2D_versatile_fluo", "2D_paper_dsb2018", "2D_demo")
REMEDY = "Give a StarDist model folder: [segment] model = PATH."
WEIGHTS = ("weights_best.h5", "weights_last.h5", "weights_now.h5")
BASE_ALIGN = 16
TENSORFLOW_BYTES = 1_200_000_000


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder's config.json and thresholds.json say.

    Parameters
    ----------
    folder : str
        The model folder.
    n_channels, n_rays : int
        Input channels and rays per polygon.
    align : int
        Windows start at multiples of this many model pixels.
    halo : int
        Model pixels around a pixel that its prediction looks at, rounded up to `align`.
    prob_threshold, nms_threshold : float
        The model's own optimum.
    n_filters : int
        Feature maps of the first level: what memory is projected from.
    border : int
        Model pixels at the border of the image that propose nothing.
    """

    folder: str
    n_channels: int
    n_rays: int
    align: int
    halo: int
    prob_threshold: float
    nms_threshold: float
    n_filters: int
    border: int = 0


def model_folder(model: str) -> Path | None:
    """Return the folder of a model on this machine, None for an official model not fetched yet."""
    if model == DEMO:
        return DEMO_FOLDER
    if model in OFFICIAL:
        home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
        cached = home / "models" / "StarDist2D" / model / model
        return cached if (cached / "config.json").exists() else None
    folder = located(model).expanduser()
    return local_copy(folder) if folder.is_dir() else folder


def model_problems(model: str, *, where: str = "[segment] model") -> list[Problem]:
    """Return what is wrong with a model choice, without loading TensorFlow."""
    folder = model_folder(model)
    if folder is None:
        return [] if _network_reachable() else [_no_network(model, where)]
    names = ", ".join((*OFFICIAL, DEMO))
    if not folder.is_dir():
        return [Problem(where, f"'{model}', which is no folder", f"a StarDist model folder or one of {names}", REMEDY)]
    missing = [name for name in ("config.json", "thresholds.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(WEIGHTS[0])
    if missing:
        return [Problem(where, f"{folder} without {', '.join(missing)}", "a StarDist model folder", REMEDY)]
    try:
        facts = read_model_facts(folder)
    except (KeyError, TypeError, ValueError) as error:
        return [Problem(where, f"{folder} with an unreadable config.json ({error})", "a StarDist 2D model", REMEDY)]
    if facts.n_channels not in (1, 3):
        return [Problem(where, f"a model of {facts.n_channels} channels", "1 or 3 channels", REMEDY)]
    return []


def read_model_facts(folder: Path) -> ModelFacts:
    """Return what the model folder says about itself.

    Raises
    ------
    KeyError, ValueError
        When config.json or thresholds.json is not a StarDist 2D model's.
    """
    config = json.loads((folder / "config.json").read_text())
    thresholds = json.loads((folder / "thresholds.json").read_text())
    if config["n_dim"] != 2 or config["backbone"] != "unet":
        raise ValueError(f"n_dim {config['n_dim']}, backbone {config['backbone']}")
    pool = max(config["unet_pool"]) ** config["unet_n_depth"] * max(config["grid"])
    align = int(np.lcm(BASE_ALIGN, pool))
    return ModelFacts(
        folder=str(folder),
        n_channels=int(config["n_channel_in"]),
        n_rays=int(config["n_rays"]),
        align=align,
        halo=-(-receptive_radius(config) // align) * align,
        prob_threshold=float(thresholds["prob"]),
        nms_threshold=float(thresholds["nms"]),
        n_filters=int(config["unet_n_filter_base"]),
        border=BORDER * max(config["grid"]),
    )


def receptive_radius(config: Mapping[str, Any]) -> int:
    """Return how many pixels away the network looks: the sum over its convolutions of half-width times step."""
    half, convolutions = max(config["unet_kernel_size"]) // 2, config["unet_n_conv_per_depth"]
    step = max(config["grid"])
    radius = sum(convolutions * half * 2**level for level in range(int(np.log2(step))))
    pool, depth = max(config["unet_pool"]), config["unet_n_depth"]
    radius += 2 * sum(convolutions * half * step * pool**level for level in range(depth))
    radius += convolutions * half * step * pool**depth
    return int(radius + (half * step if config["net_conv_after_unet"] > 0 else 0))


def resolve_model(model: str) -> Path:
    """Return the folder of a model, fetching an official one by StarDist's own registry when needed.

    Raises
    ------
    BadInput
        When the model does not exist, is incomplete, or cannot be fetched.
    """
    problems = model_problems(model)
    if problems:
        raise BadInput(problems)
    folder = model_folder(model)
    return _fetch(model) if folder is None else folder


def _fetch(model: str) -> Path:
    _import_tensorflow(1)
    from csbdeep.models.pretrained import get_model_folder
    from stardist.models import StarDist2D

    with _silence():
        return Path(get_model_folder(StarDist2D, model))


def _network_reachable() -> bool:
    try:
        socket.create_connection(("github.com", 443), timeout=5).close()
    except OSError:
        return False
    return True


def _no_network(model: str, where: str) -> Problem:
    return Problem(where, f"'{model}', not on this machine, and no network to fetch it", "a reachable model", REMEDY)


class Predictor(Protocol):
    """A network that looks at a window, whatever framework runs it."""

    def predict(self, window: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return probability (rows, columns) and distances (rows, columns, rays) of a (channels, y, x) window."""


class Network:
    """A loaded model; lives in one process and is never pickled."""

    def __init__(self, folder: str, threads: int) -> None:
        _import_tensorflow(threads)
        from stardist.models import StarDist2D

        path = Path(folder)
        with _silence():
            self._model = StarDist2D(None, name=path.name, basedir=str(path.parent)).keras_model

    def predict(self, window: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return probability (rows, columns) and distances (rows, columns, rays) on the model's grid.

        Parameters
        ----------
        window : ndarray
            (channels, y, x) float32, normalised; height and width multiples of the model's `align`.
        """
        outputs = self._model.predict_on_batch(np.ascontiguousarray(window.transpose(1, 2, 0))[None])
        return np.asarray(outputs[0])[0, ..., 0], np.asarray(outputs[1])[0]


@cache
def load_network(folder: str, *, threads: int = 1) -> Network:
    """Return the model of a folder, loaded once per process.

    Raises
    ------
    BadInput
        When the weights cannot be read.
    """
    try:
        return Network(folder, threads)
    except (OSError, ValueError) as error:
        problem = Problem(folder, f"weights that cannot be loaded ({error})", "StarDist 2D weights", REMEDY)
        raise BadInput(problem) from error


def _import_tensorflow(threads: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _silence():
        import stardist.models  # noqa: F401
        import tensorflow as tf
    # Once TensorFlow has run an operation its thread pools are fixed.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # TensorFlow's C++ code writes notices straight to file descriptor 2, whatever its log level.
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
