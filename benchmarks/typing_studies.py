"""Spots binned from single cells (data/benchmarks/*.npz) as studies: what users would hand in, and what came out.

Cells of the truth become given nuclei, so the number of cells per spot is known and typing alone is measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.provenance import provenance

COMMAND = Path(sys.executable).with_name("spatialscope")
LABELS = ("cell_type", "cell_type_map", "cell_type_positional", "cell_type_composition")
Bench = dict[str, NDArray[Any]]


def data_folder() -> Path:
    """Return the folder of real data."""
    folder = os.environ.get("SPATIALSCOPE_DATA")
    if not folder:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    return Path(folder)


def scorer(name: str) -> ModuleType:
    """Return a scorer that lies beside the data, loaded from its path."""
    spec = importlib.util.spec_from_file_location(name, data_folder().parent / "score" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_bench(path: Path) -> Bench:
    """Return the arrays of one benchmark file."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def write_study(bench: Bench, reference: str, folder: Path, *, platform: str = "auto") -> Path:
    """Return the study file of a benchmark and one of its references, written with its inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[study]", 'name = "typing"', "seed = 0"]
    sections = np.unique(bench["spot_sec"])
    for number in sections:
        lines += _write_section(bench, int(number), folder, stacked=len(sections) > 1)
    types, labels = bench["types"].astype(str), bench[f"ref_{reference}_label"]
    _write_h5ad(
        folder / "reference.h5ad",
        bench[f"ref_{reference}_X"],
        bench[f"ref_{reference}_genes"],
        pd.DataFrame({"cell_type": types[labels]}, index=[f"ref{row}" for row in range(len(labels))]),
    )
    lines += ["[reference]", 'path = "reference.h5ad"', 'cell_type = "cell_type"', f'platform = "{platform}"']
    file = folder / "study.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def _write_section(bench: Bench, number: int, folder: Path, *, stacked: bool) -> list[str]:
    spots, cells = np.flatnonzero(bench["spot_sec"] == number), np.flatnonzero(bench["cell_sec"] == number)
    name = f"s{number}"
    places = bench["spot_xy"][spots]
    obs = pd.DataFrame(index=[f"spot{row}" for row in spots])
    _write_h5ad(folder / f"{name}.h5ad", bench["Y"][spots], bench["genes"], obs, places)
    nuclei = pd.DataFrame(
        {
            "spot_id": [f"spot{row}" for row in bench["cell_spot"][cells]],
            "cell_id": [f"cell{row}" for row in cells],
            "x": bench["cell_xy"][cells, 0],
            "y": bench["cell_xy"][cells, 1],
        }
    )
    nuclei.to_csv(folder / f"{name}.csv", index=False)
    lines = ["[[section]]", f'name = "{name}"', f'counts = "{name}.h5ad"', f'nuclei = "{name}.csv"']
    lines += ['platform = "visium"', f"spot_diameter_um = {float(bench['grid'])}"]
    return lines + ([f"z_um = {float(bench['cell_z'][cells][0])}"] if stacked else [])


def _write_h5ad(
    path: Path, counts: NDArray[Any], genes: NDArray[Any], obs: pd.DataFrame, places: NDArray[Any] | None = None
) -> None:
    import anndata
    import scipy.sparse as sp

    table = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes.astype(str)))
    if places is not None:
        table.obsm["spatial"] = np.asarray(places, float)
    table.write_h5ad(path)


def run_study(file: Path, output: Path, *, settings: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """Return the summary of `identify` on a study; a second run in one folder redoes only what changed."""
    text = file.read_text().splitlines()
    text[2] = f"seed = {seed}"
    file.write_text("\n".join(text) + "\n")
    chosen = [part for setting in settings for part in ("--set", setting)]
    command = [COMMAND, "run", file, "--output", output, "--until", "identify", "--workers", "1", "--json", *chosen]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    summary: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return summary


def read_result(bench: Bench, output: Path) -> dict[str, NDArray[Any]]:
    """Return labels by column, (cells,) in the order of the truth, and proportions and weights, (spots, types)."""
    import anndata

    types = bench["types"].astype(str)
    found = {column: np.full(len(bench["cell_type"]), -1) for column in LABELS}
    found |= {name: np.zeros((len(bench["Y"]), len(types))) for name in ("proportions", "weights")}
    for number in np.unique(bench["spot_sec"]):
        section = output / "sections" / f"s{number}.zarr" / "tables"
        cells, spots = anndata.read_zarr(section / "cells"), anndata.read_zarr(section / "spots")
        rows = cells.obs["cell_id"].astype(str).str.removeprefix("cell").astype(int).to_numpy()
        for column in LABELS:
            found[column][rows] = np.searchsorted(types, cells.obs[column].astype(str).to_numpy())
        rows = spots.obs["spot_id"].astype(str).str.removeprefix("spot").astype(int).to_numpy()
        columns = np.searchsorted(types, [str(name) for name in spots.uns["spatialscope"]["cell_types"]])
        for name in ("proportions", "weights"):
            found[name][rows[:, None], columns[None]] = np.nan_to_num(np.asarray(spots.obsm[name]))
    return found


def rounded(weights: NDArray[np.float64], n_cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return whole numbers of cells of each type, (spots, types), by largest remainder of the weights.

    In random order in their spots these are the labels of StarDist+RCTD.
    """
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300) * n_cells[:, None]
    whole = np.floor(share).astype(np.int64)
    order = np.argsort(-(share - whole), axis=1, kind="stable")
    left = n_cells - whole.sum(axis=1)
    np.put_along_axis(
        whole, order, np.take_along_axis(whole, order, 1) + (np.arange(whole.shape[1]) < left[:, None]), 1
    )
    return whole


def labels_of(composition: NDArray[np.int64], bench: Bench) -> NDArray[np.int64]:
    """Return labels, (cells,), with the spots' composition; which cell gets which is arbitrary."""
    labels = np.empty(len(bench["cell_spot"]), np.int64)
    order = np.argsort(bench["cell_spot"], kind="stable")
    labels[order] = np.concatenate([np.repeat(np.arange(composition.shape[1]), row) for row in composition])
    return labels


def save_result(name: str, command: str, result: dict[str, Any]) -> None:
    """Write a result to results/NAME.json with where it comes from."""
    here = Path(__file__).parent
    (here / "results" / f"{name}.json").write_text(json.dumps(provenance(command) | result, indent=1) + "\n")
