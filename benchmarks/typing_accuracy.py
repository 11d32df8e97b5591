"""Accuracy of `identify` on spots with truth, beside StarDist+RCTD, the authors' setting, and the floor.

    SPATIALSCOPE_DATA=… python -m benchmarks.accuracy celltypes [mpoa:scrna …] [--set identify.option=value …]

One default configuration for all benchmarks; every run goes through the installed command. `err` is the share of
cells with a wrong label (positional labels), `cerr` that with the best order inside each spot (composition labels),
PCC and RMSE are of the soft proportions over all (spot, type); ours is the mean over Gibbs seeds 0-2. Without
`--set`, results become results/typing_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import typing_studies as studies

NAMES = ("mpoa:scrna", "mpoa:section", "mpfc1:section", "visp:paired", "mpfc3d:paired")
SEEDS = (0, 1, 2)
RCTD = ("identify.rctd_compat=true", "identify.gibbs_sweeps=0")
AUTHORS = (*RCTD, "identify.smoothness=10", "identify.potts=mean", "identify.temper=1", "identify.weights_field=0")
MUST = {
    "mpoa:scrna": (0.48, 0.205, 0.865, 0.113),
    "mpoa:section": (0.452, 0.162, 0.898, 0.102),
    "mpfc1:section": (0.555, 0.350, 0.780, 0.117),
    "visp:paired": (0.41, 0.200, 0.900, 0.080),
    "mpfc3d:paired": (0.49, 0.292, 0.837, 0.102),
}
FIGURES = ("err", "cerr", "pcc", "rmse")


def measure(name: str, *, settings: tuple[str, ...], compared: bool) -> dict[str, Any]:
    """Return the figures of one benchmark and reference."""
    file, reference = name.split(":")
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / f"{file}.npz")
    score = studies.scorer("score_types").score
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        study = studies.write_study(bench, reference, folder / "study")
        runs = [_scores(score, bench, study, folder / "ours", settings, seed) for seed in SEEDS]
        result: dict[str, Any] = {
            "ours": {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]},
            "ours_by_seed": runs,
            "floor_err_true_composition_in_random_order": round(score(bench, bench["cell_type"])["err_shuf"], 4),
            "must": dict(zip(FIGURES, MUST[name], strict=True)) if name in MUST else None,
        }
        if compared:
            result["stardist_rctd"] = _rctd(score, bench, study, folder / "rctd")
            authors = _scores(score, bench, study, folder / "authors", AUTHORS, 0)
            result["authors_nu10"] = {key: authors[f"map_{key}"] for key in ("err", "cerr")}
    return result


def _scores(score: Any, bench: studies.Bench, study: Path, output: Path, settings: Any, seed: int) -> dict[str, float]:
    summary = studies.run_study(study, output, settings=settings, seed=seed)
    found = studies.read_result(bench, output)
    by = {column: score(bench, found[column]) for column in studies.LABELS}
    soft = score(bench, None, found["proportions"])
    figures = {
        "err": by["cell_type_positional"]["err"],
        "cerr": by["cell_type_composition"]["cerr"],
        "pcc": soft["pcc"],
        "rmse": soft["rmse"],
        "default_err": by["cell_type"]["err"],
        "default_cerr": by["cell_type"]["cerr"],
        "map_err": by["cell_type_map"]["err"],
        "map_cerr": by["cell_type_map"]["cerr"],
        "positional_cerr": by["cell_type_positional"]["cerr"],
        "composition_err": by["cell_type_composition"]["err"],
        "cpu_seconds": summary["stages"]["identify"]["cpu_seconds"],
    }
    return {key: round(float(value), 4) for key, value in figures.items()}


def _rctd(score: Any, bench: studies.Bench, study: Path, output: Path) -> dict[str, float]:
    """Return the figures of RCTD's weights, rounded to whole cells in random order (expected error)."""
    studies.run_study(study, output, settings=RCTD)
    weights = studies.read_result(bench, output)["weights"]
    n_cells = np.bincount(bench["cell_spot"], minlength=len(bench["Y"]))
    labels = score(bench, studies.labels_of(studies.rounded(weights, n_cells), bench))
    soft = score(bench, None, weights)
    figures = {"err": labels["err_shuf"], "cerr": labels["cerr"], "pcc": soft["pcc"], "rmse": soft["rmse"]}
    return {key: round(float(value), 4) for key, value in figures.items()}


def main(arguments: list[str]) -> None:
    """Measure the named benchmarks, all when none is named."""
    parser = argparse.ArgumentParser("benchmarks.accuracy celltypes")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--set", dest="settings", action="append", default=[])
    chosen = parser.parse_args(arguments)
    results = {}
    for name in chosen.names:
        results[name] = measure(name, settings=tuple(chosen.settings), compared=not chosen.settings)
        print(name, json.dumps({key: value for key, value in results[name].items() if key != "ours_by_seed"}))
    if not chosen.settings and set(chosen.names) == set(NAMES):
        studies.save_result("typing_accuracy", "accuracy celltypes", {"benchmarks": results})
