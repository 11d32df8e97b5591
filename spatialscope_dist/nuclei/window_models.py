"""What finds nuclei in a window: the one interface between a slide and a model.

A model looks at one window, (channels, y, x) float32 in which the slide's low and high
percentiles are 0 and 1, and proposes nuclei anywhere in it: as star-convex polygons with a
probability (`WindowModel`), or as a label image that is turned into such polygons (`LabelModel`).
Everything else is the same for all models: which window owns a nucleus (the one whose core holds
its peak pixel), looking again with a wider halo, suppression, ids, painting. Windows are fixed, so
the nuclei of any model are the same for every tile and worker count, as long as what it returns
depends on the pixels of the window alone.

Built in: StarDist folders and official names, `watershed` (a classical method that needs no
weights). Own models: `model = "plugin:NAME"`, NAME being an entry point of an installed package in
the group `spatialscope_dist.window_models` that gives a `LabelModel` or anything with `facts` and
`propose`. A study file can thus choose among installed models but never name code to run; the
module's file is part of the result's key.

Examples
--------
A plug-in is a few lines in an installed package::

    from spatialscope_dist.nuclei.window_models import LabelModel, label_facts

    def find(pixels):                       # (channels, y, x) float32
        return my_labels(pixels)            # (y, x) integers, 0 = background

    model = LabelModel(label_facts(n_channels=3, halo=96), find)

and in its pyproject.toml::

    [project.entry-points."spatialscope_dist.window_models"]
    mine = "my_package.my_module:model"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.nuclei import stardist_model
from spatialscope_dist.nuclei.candidates import MIN_DISTANCE, Candidates, dense_candidates
from spatialscope_dist.nuclei.stardist_model import OFFICIAL, ModelFacts, load_network, read_model_facts, resolve_model
from spatialscope_dist.nuclei.watershed import watershed_labels

WATERSHED = "watershed"
N_RAYS = 32
LABEL_OVERLAP = 0.3
PLUG_INS = "spatialscope_dist.window_models"
_PREFIX = "plugin:"
_STEP = 0.5


class WindowModel(Protocol):
    """Finds nuclei in a window."""

    @property
    def facts(self) -> ModelFacts:
        """What windows the model wants."""

    def propose(self, pixels: NDArray[np.float32], *, threshold: float) -> Candidates:
        """Return nuclei more probable than `threshold`, in pixels of the window, for (channels, y, x) pixels."""


@dataclass(frozen=True)
class LabelModel:
    """A model that labels the pixels of a window.

    Parameters
    ----------
    facts : ModelFacts
        See `label_facts`.
    find : callable
        Returns (y, x) integers, 0 = background, for (channels, y, x) float32.
    """

    facts: ModelFacts
    find: Callable[[NDArray[np.float32]], NDArray[np.integer[Any]]]

    def propose(self, pixels: NDArray[np.float32], *, threshold: float) -> Candidates:
        """Return the labelled objects as polygons of probability 1, in pixels of the window."""
        return label_polygons(self.find(pixels))


@dataclass(frozen=True)
class _StarDist:
    facts: ModelFacts
    network: stardist_model.Predictor

    def propose(self, pixels: NDArray[np.float32], *, threshold: float) -> Candidates:
        probability, distances = self.network.predict(pixels)
        step = pixels.shape[1] // probability.shape[0]
        return dense_candidates(probability, distances, step=step, threshold=threshold)


def label_facts(*, n_channels: int, halo: int, align: int = 16) -> ModelFacts:
    """Return the facts of a model that labels pixels.

    Parameters
    ----------
    n_channels : int
        Channels it takes.
    halo : int
        Pixels around a pixel its decision looks at, no less than the largest nucleus.
    align : int
        Windows start at multiples of it.
    """
    return ModelFacts("", n_channels, N_RAYS, align, -(-halo // align) * align, 0.0, LABEL_OVERLAP, 16)


def label_polygons(labels: NDArray[np.integer[Any]]) -> Candidates:
    """Return a star-convex polygon for each object of a label image, (y, x), by rays from its innermost pixel."""
    from scipy import ndimage

    flat = labels.ravel()
    order = np.flatnonzero(flat)
    inside = ndimage.distance_transform_edt(_interior(labels)).ravel()
    order = order[np.lexsort((order, -inside[order], flat[order]))]
    _, first = np.unique(flat[order], return_index=True)
    points = np.stack(np.unravel_index(order[first], labels.shape), axis=1).astype(np.int32)
    return Candidates(points, _rays(labels, points), np.ones(len(points), np.float32))


def _interior(labels: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    framed = np.pad(labels, 1)
    middle = framed[1:-1, 1:-1]
    same = [framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]]
    inner: NDArray[np.bool_] = (middle > 0) & np.logical_and.reduce([middle == other for other in same])
    return inner


def _rays(labels: NDArray[np.integer[Any]], points: NDArray[np.int32]) -> NDArray[np.float32]:
    angles = np.linspace(0, 2 * np.pi, N_RAYS, endpoint=False)
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    own = labels[points[:, 0], points[:, 1]][:, None]
    reach = np.full((len(points), N_RAYS), MIN_DISTANCE, np.float32)
    alive = np.ones(reach.shape, np.bool_)
    distance = 0.0
    while alive.any():
        distance += _STEP
        place = np.rint(points[:, None, :] + distance * directions).astype(np.int64)
        seen = ((place >= 0) & (place < labels.shape)).all(axis=2)
        y, x = (np.clip(place[..., axis], 0, labels.shape[axis] - 1) for axis in (0, 1))
        alive &= seen & (labels[y, x] == own)
        reach[alive] = distance
    return reach


_WATERSHED = LabelModel(label_facts(n_channels=3, halo=96), watershed_labels)


def is_plug_in(model: str) -> bool:
    """Return whether a model choice names a plug-in."""
    return model.startswith(_PREFIX)


def model_files(model: str) -> Path | None:
    """Return the file or folder a model choice depends on; None when its name says all."""
    if model == WATERSHED or model in OFFICIAL:
        return None
    if is_plug_in(model):
        entry = _entry(model)
        spec = None if entry is None else importlib.util.find_spec(entry.module)
        return None if spec is None or spec.origin is None else Path(spec.origin)
    return stardist_model.model_folder(model)


def model_problems(model: str, *, where: str = "[segment] model") -> list[Problem]:
    """Return what is wrong with a model choice, without loading it."""
    if model == WATERSHED:
        return []
    if is_plug_in(model):
        return [] if _entry(model) else [_no_plug_in(model, where)]
    return stardist_model.model_problems(model, where=where)


def _entry(model: str) -> EntryPoint | None:
    return next(iter(entry_points(group=PLUG_INS, name=model.removeprefix(_PREFIX))), None)


def _no_plug_in(model: str, where: str) -> Problem:
    names = sorted(entry_points(group=PLUG_INS).names)
    expected = f"an installed one ({', '.join(names) or 'there are none'})"
    return Problem(where, f"no plug-in {model!r}", expected, "Install the package that has it, or correct the name.")


def model_framework(model: str, backend: str) -> str | None:
    """Return the framework the model's workers load: 'tensorflow', 'torch' or None."""
    return None if model == WATERSHED or is_plug_in(model) else backend


@cache
def load_model(model: str, backend: str = "tensorflow") -> WindowModel:
    """Return a model ready to look at windows, loaded once per process.

    Raises
    ------
    BadInput
        When there is no such model or it cannot be read.
    """
    if model == WATERSHED:
        return _WATERSHED
    if is_plug_in(model):
        return _plugged_in(model)
    folder = resolve_model(model)
    return _StarDist(read_model_facts(folder), _network(folder, backend))


def _network(folder: Path, backend: str) -> stardist_model.Predictor:
    if backend == "tensorflow":
        return load_network(str(folder))
    from spatialscope_dist.nuclei.torch_model import load_torch_network

    return load_torch_network(str(folder))


def model_facts(model: str) -> ModelFacts:
    """Return what windows a model wants, without loading a framework.

    Raises
    ------
    BadInput
        When there is no such model or it cannot be had.
    """
    if model == WATERSHED or is_plug_in(model):
        return load_model(model).facts
    return read_model_facts(resolve_model(model))


def model_channels(model: str) -> int | None:
    """Return how many channels a model takes, None when it is not on this machine or cannot be read."""
    if model in OFFICIAL:
        return 3 if model.endswith("_he") else 1
    return None if model_problems(model) else model_facts(model).n_channels


def _plugged_in(model: str) -> WindowModel:
    entry = _entry(model)
    if entry is None:
        raise BadInput(_no_plug_in(model, "[segment] model"))
    try:
        found: WindowModel = entry.load()
    except (ImportError, AttributeError) as error:
        problem = Problem("[segment] model", f"{model!r} ({error})", "an importable object", "Mend its package.")
        raise BadInput(problem) from error
    return found
