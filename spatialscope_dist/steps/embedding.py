"""Cells on a plane, for the report: generated beside held-out reference cells, and a sample of those decomposed."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from spatialscope_dist.report.views import EmbeddingView
from spatialscope_dist.steps.section_view import SectionFolders
from spatialscope_dist.store.arrays import open_array, read_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame

Method = Literal["umap", "pca"]
Float = NDArray[np.float64]
N_COMPONENTS, N_NEIGHBOURS = 30, 15
MAX_CELLS, N_RUNS = 2000, 8


def principal_components(counts: NDArray[np.floating], *, n_components: int = N_COMPONENTS) -> Float:
    """Return principal components, (cells, components), of log1p counts brought to one total (their median).

    Examples
    --------
    >>> principal_components(np.array([[4.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), n_components=1).round(2).tolist()
    [[-0.92], [-0.92], [1.84]]
    """
    total = counts.sum(axis=1, dtype=np.float64, keepdims=True)
    logs = np.log1p(counts * (np.median(total) / np.maximum(total, 1e-9)))
    logs -= logs.mean(axis=0)
    n_kept = min(n_components, *logs.shape)
    last = len(logs) - 1
    values, vectors = scipy.linalg.eigh(logs @ logs.T, subset_by_index=(last - n_kept + 1, last))
    found = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1]
    largest = found[np.abs(found).argmax(axis=0), np.arange(n_kept)]
    return np.asarray(found * np.where(largest < 0, -1.0, 1.0))


def embed(counts: NDArray[np.floating], *, method: Method, seed: int) -> tuple[Float, str]:
    """Return places of cells on a plane, (cells, 2), and the name of what placed them (few cells: PCA).

    One thread and a fixed seed: the same places for the same cells on one machine.
    """
    components = principal_components(counts)
    if method == "pca" or len(counts) <= N_NEIGHBOURS + 1:
        return np.pad(components, ((0, 0), (0, 2)))[:, :2], "PCA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap remarks on islands that are not connected, and on its one thread
        placed = _umap()(n_neighbors=N_NEIGHBOURS, random_state=seed, n_jobs=1).fit_transform(components)
    return np.asarray(placed, np.float64), "UMAP"


def _umap() -> Any:
    """Return the class UMAP without what the package's first page imports: TensorFlow, a gigabyte of memory."""
    if "umap" not in sys.modules:
        found = importlib.util.find_spec("umap")
        assert found is not None
        assert found.submodule_search_locations is not None
        package = types.ModuleType("umap")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["umap"] = package
    from umap.umap_ import UMAP

    return UMAP


def view_generated(model: Path | None, *, method: Method, seed: int) -> EmbeddingView | None:
    """Return generated and held-out cells on one plane, None when the model was not measured."""
    if model is None or not (model / "generated.zarr").exists():
        return None
    held_out, generated = (read_array(model / f"{name}.zarr") for name in ("held_out", "generated"))
    names = [str(name) for name in read_json(model / "quality_types.json")]
    points, used = embed(np.concatenate([held_out, generated]), method=method, seed=seed)
    return EmbeddingView(points, names + names, used, np.arange(len(points)) >= len(held_out))


def view_decomposed(sections: Sequence[SectionFolders], *, method: Method, seed: int) -> EmbeddingView | None:
    """Return a sample of the sections' cells by their mean expression, None when nothing was decomposed."""
    done = [folders for folders in sections if folders.decompose is not None and folders.identify is not None]
    if not done:
        return None
    parts = [_some_cells(folders, max(MAX_CELLS // len(done), N_RUNS)) for folders in done[: MAX_CELLS // N_RUNS]]
    means = np.concatenate([means for means, _ in parts])
    kinds = [kind for _, some in parts for kind in some]
    if len(means) <= 2:
        return None
    points, used = embed(means, method=method, seed=seed)
    return EmbeddingView(points, kinds, used)


def _some_cells(folders: SectionFolders, n_cells: int) -> tuple[NDArray[np.float32], list[str]]:
    """Return mean expression and types of a few runs of cells spread over a section."""
    assert folders.decompose is not None
    assert folders.identify is not None
    mean = open_array(folders.decompose / "mean.zarr")
    length = n_cells // N_RUNS
    starts = np.unique(np.linspace(0, max(mean.shape[0] - length, 0), N_RUNS).astype(int))
    rows = np.unique(np.concatenate([np.arange(low, min(low + length, mean.shape[0])) for low in starts]))
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    values = np.concatenate([np.asarray(mean[int(run[0]) : int(run[-1]) + 1]) for run in runs if len(run)])
    kinds = read_frame(folders.identify / "cells.parquet", columns=["cell_type"])["cell_type"].astype(str)
    known = np.isfinite(values).all(axis=1) & (values.sum(axis=1) > 0)
    return values[known], kinds.iloc[rows].to_numpy(object)[known].tolist()
