"""Robustness of typing, as the paper's tables: what happens when the inputs are not what they should be.

    SPATIALSCOPE_DATA=… python -m benchmarks.typing_robustness [condition …]

Conditions change one thing of mpoa (MERFISH, spots binned from cells): a type missing from the reference, 20 % of
the cells missed or found twice, spots of 260 counts or of all counts, a coarser grid, references from the same
cells, another section, or another technology. `dataset10`: the public benchmark's spots with a reference that shares no
cell with them, beside ten published results. Ours is the default configuration, seed 0; RCTD is `rctd_compat`,
its weights rounded to whole cells in random order (StarDist+RCTD). All but Dataset 10 run in memory.
Results become results/typing_robustness.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import dataset10
from benchmarks import typing_studies as studies
from benchmarks.typing_in_memory import type_bench
from spatialscope_dist.options import IdentifyOptions

# Runs the script that builds the benchmarks with another grid or depth; it lies beside the data and is not ours.
_BUILD = """
import runpy, sys
script, folder, grid, umi = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
sys.argv = [script, folder]
made = runpy.run_path(script, run_name="made")
inside = made["mpoa"].__globals__
build = inside["build"]
inside["build"] = lambda name, a, label, xy, sec, z, g, depth, refs: build(
    name, a, label, xy, sec, z, grid, None if umi == "all" else int(umi), refs)
inside["OUT"] = folder + "/"
made["mpoa"](name="mpoa")
"""


def built(*, grid: float = 45.0, umi: str = "520") -> studies.Bench:
    """Return mpoa on another grid or at another depth."""
    script = studies.data_folder().parent / "score" / "make_spots.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _BUILD, str(script), folder, str(grid), umi]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ})
        return studies.load_bench(Path(folder) / "mpoa.npz")


def without_type(bench: studies.Bench, reference: str, name: str) -> studies.Bench:
    """Return the benchmark with no cell of a type in the reference."""
    kept = bench[f"ref_{reference}_label"] != bench["types"].tolist().index(name)
    parts = {f"ref_{reference}_{part}": bench[f"ref_{reference}_{part}"][kept] for part in ("X", "label")}
    return bench | parts


def miscounted(bench: studies.Bench, *, share: float) -> studies.Bench:
    """Return the benchmark with a share of its cells missed (< 0) or found twice (> 0); spots keep one at least."""
    random, cells = np.random.default_rng(0), np.arange(len(bench["cell_type"]))
    chosen = random.random(len(cells)) < abs(share)
    if share < 0:
        first = np.unique(bench["cell_spot"], return_index=True)[1]
        chosen[first] = False
        rows = cells[~chosen]
    else:
        rows = np.sort(np.concatenate([cells, cells[chosen]]))
    fields = [name for name in bench if name.startswith("cell_")]
    return bench | {name: bench[name][rows] for name in fields}


def score(bench: studies.Bench, reference: str, truth: studies.Bench, *, as_rctd: bool) -> dict[str, float]:
    """Return PCC and RMSE of the shares and, where cells were not miscounted, the errors of the labels."""
    options = IdentifyOptions(rctd_compat=as_rctd, gibbs_sweeps=0 if as_rctd else IdentifyOptions().gibbs_sweeps)
    found = type_bench(bench, reference, options)
    scored = studies.scorer("score_types").score
    shares = found.weights if as_rctd else found.proportions
    figures = {key: scored(truth, None, shares)[key] for key in ("pcc", "rmse")}
    if len(bench["cell_type"]) == len(truth["cell_type"]):
        n_cells = np.bincount(truth["cell_spot"])
        rounded = scored(truth, studies.labels_of(studies.rounded(shares, n_cells), truth)) if as_rctd else {}
        positional = rounded or scored(truth, found.labels["positional"])
        composition = rounded or scored(truth, found.labels["composition"])
        figures |= {"err": positional["err_shuf" if as_rctd else "err"], "cerr": composition["cerr"]}
    return {key: round(float(value), 4) for key, value in figures.items()} | {"sections": found.about}


def conditions() -> dict[str, Callable[[], tuple[studies.Bench, str, studies.Bench]]]:
    """Return what gives (inputs, reference, truth) of each condition."""
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / "mpoa.npz")

    def plain(reference: str) -> Callable[[], Any]:
        return lambda: (bench, reference, bench)

    def changed(change: Callable[[], studies.Bench], reference: str) -> Callable[[], Any]:
        return lambda: (change(), reference, bench)

    def rebuilt(**how: Any) -> Callable[[], Any]:
        def make() -> Any:
            other = built(**how)
            return other, "section", other

        return make

    return {
        "reference: the same cells": plain("paired"),
        "reference: another section": plain("section"),
        "reference: scRNA-seq": plain("scrna"),
        "astrocytes missing from the reference": changed(
            lambda: without_type(bench, "section", "Astrocyte"), "section"
        ),
        "excitatory neurons missing from the reference": changed(
            lambda: without_type(bench, "section", "Excitatory"), "section"
        ),
        "20 % of the cells missed": changed(lambda: miscounted(bench, share=-0.2), "section"),
        "20 % of the cells found twice": changed(lambda: miscounted(bench, share=0.2), "section"),
        "260 counts per spot": rebuilt(umi="260"),
        "all counts of the cells": rebuilt(umi="all"),
        "grid of 65 µm": rebuilt(grid=65.0),
    }


def main(arguments: list[str]) -> None:
    """Measure the named conditions, all when none is named."""
    parser = argparse.ArgumentParser("benchmarks.typing_robustness")
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args(arguments).names
    results: dict[str, Any] = {}
    for name, make in conditions().items():
        if chosen and name not in chosen:
            continue
        bench, reference, truth = make()
        results[name] = {
            "ours": score(bench, reference, truth, as_rctd=False),
            "rctd": score(bench, reference, truth, as_rctd=True),
            "floor_err": round(studies.scorer("score_types").score(truth, truth["cell_type"])["err_shuf"], 4),
        }
        print(name, json.dumps(results[name]), flush=True)
    if not chosen or "dataset10" in chosen:
        results["dataset10"] = dataset10.compare()
        print("dataset10", json.dumps(results["dataset10"]), flush=True)
    if not chosen:
        studies.save_result("typing_robustness", "typing_robustness", {"conditions": results})


if __name__ == "__main__":
    main(sys.argv[1:])
