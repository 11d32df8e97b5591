"""What the looks of nuclei add to typing: `python -m benchmarks.accuracy morphology [planted] [image]`.

planted: spots binned from single cells, whose cells bring four measures drawn by type, as columns of the given
nuclei, at three levels of overlap of the types; controls: measures shuffled over the section, a smooth staining that
knows no type, and measures shuffled inside the spots, which no evidence from counts can notice. image: a simulated
section with an H&E image, segmented with the demo model, its nuclei measured. Everything goes through the installed
command, at default options. Results become results/typing_morphology_{planted,image}.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import typing_studies as studies

Array = NDArray[np.float64]
SEEDS = {"mpoa:section": (0, 1, 2), "mpoa:scrna": (0,), "mpfc1:section": (0,), "visp:paired": (0,)}
OVERLAPS = {"weak": 0.9, "medium": 0.75, "strong": 0.5}
N_MEASURES = 4
LABELS = ("positional", "composition")
N_SPOTS = 150


class PlantedLooks:
    """Measures of the cells of a benchmark, drawn by type: Gaussians of one correlation, of random mean and spread."""

    def __init__(self, bench: studies.Bench) -> None:
        rng = np.random.default_rng(1)
        self.bench, self.types, n_types = bench, bench["cell_type"], len(bench["types"])
        self.share = np.bincount(self.types, minlength=n_types) / len(self.types)
        self._directions = rng.normal(0, 1, (n_types, N_MEASURES))
        self._spread = np.exp(rng.normal(0, 0.15, n_types))
        self._root = np.linalg.cholesky(0.6 * np.eye(N_MEASURES) + 0.4)
        self._noise = rng.normal(0, 1, (len(self.types), N_MEASURES)) @ self._root.T
        self._rng = rng

    def overlap(self, distance: float) -> float:
        """Return the mean Bhattacharyya coefficient of two cells' types when they differ: 1 = alike, 0 = apart."""
        covariance = self._root @ self._root.T
        total = weight = 0.0
        for one in range(len(self.share)):
            for other in range(one):
                mean = (self._spread[one] ** 2 + self._spread[other] ** 2) / 2
                away = distance * (self._directions[one] - self._directions[other])
                exponent = away @ np.linalg.solve(mean * covariance, away) / 8
                spread = (mean / (self._spread[one] * self._spread[other])) ** (-N_MEASURES / 2)
                pairs = self.share[one] * self.share[other]
                total, weight = total + pairs * spread * np.exp(-exponent), weight + pairs
        return total / weight

    def draw(self, overlap: float) -> Array:
        """Return measures, (cells, measures), of types that overlap so much."""
        low, high = 0.0, 20.0
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if self.overlap(middle) > overlap else (low, middle)
        return high * self._directions[self.types] + self._spread[self.types][:, None] * self._noise

    def staining(self) -> Array:
        """Return a smooth field of the place, (cells, measures), about as strong as the differences of cells."""
        places = self.bench["cell_xy"]
        scaled = (places - places.mean(axis=0)) / places.std(axis=0)
        return np.sin(2 * scaled @ np.random.default_rng(2).normal(0, 1, (2, N_MEASURES)))

    def shuffled(self, measures: Array) -> Array:
        """Return the measures of other cells of the section."""
        return measures[np.random.default_rng(3).permutation(len(measures))]

    def shuffled_inside_spots(self, measures: Array) -> Array:
        """Return the measures of other cells of the same spot."""
        spot = self.bench["cell_spot"]
        order = np.lexsort((np.random.default_rng(4).random(len(spot)), spot))
        shuffled = np.empty_like(measures)
        shuffled[np.argsort(spot, kind="stable")] = measures[order]
        return shuffled

    def cases(self) -> dict[str, Callable[[], Array] | None]:
        """Return what is drawn in each case; None: nothing is measured."""
        linked = {name: (lambda overlap=overlap: self.draw(overlap)) for name, overlap in OVERLAPS.items()}
        return {
            "no measures": None,
            **linked,
            "medium, uneven staining": lambda: self.draw(OVERLAPS["medium"]) + self.staining(),
            "medium, shuffled in the section": lambda: self.shuffled(self.draw(OVERLAPS["medium"])),
            "uneven staining only": lambda: self._noise + self.staining(),
            "medium, shuffled inside spots": lambda: self.shuffled_inside_spots(self.draw(OVERLAPS["medium"])),
        }


def planted(name: str) -> dict[str, Any]:
    """Return the figures of every case of one benchmark and reference, means over Gibbs seeds."""
    file, reference = name.split(":")
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / f"{file}.npz")
    score, looks = studies.scorer("score_types").score, PlantedLooks(bench)
    result: dict[str, Any] = {
        "floor_err_true_composition_in_random_order": round(score(bench, bench["cell_type"])["err_shuf"], 4),
        "seeds": list(SEEDS[name]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        study = studies.write_study(bench, reference, Path(scratch) / "study")
        given = {path: pd.read_csv(path) for path in study.parent.glob("s*.csv")}
        for case, draw in looks.cases().items():
            _write_measures(given, None if draw is None else draw())
            runs = [_scored(score, bench, study, Path(scratch) / "out", seed) for seed in SEEDS[name]]
            result[case] = {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}
            print(name, case, json.dumps(result[case]), flush=True)
    return result


def _write_measures(given: dict[Path, pd.DataFrame], measures: Array | None) -> None:
    for path, frame in given.items():
        rows = frame["cell_id"].str.removeprefix("cell").astype(int)
        columns = {} if measures is None else {f"nucleus_{at}": column[rows] for at, column in enumerate(measures.T)}
        frame.assign(**columns).to_csv(path, index=False)


def _scored(score: Any, bench: studies.Bench, study: Path, output: Path, seed: int) -> dict[str, float]:
    summary = studies.run_study(study, output, seed=seed)
    found = studies.read_result(bench, output)
    figures = {}
    for kind in LABELS:
        scores = score(bench, found[f"cell_type_{kind}"])
        figures |= {f"{kind}_err": scores["err"], f"{kind}_cerr": scores["cerr"]}
    soft = score(bench, None, found["proportions"])
    figures |= {"pcc": soft["pcc"], "rmse": soft["rmse"], "used": float(all(v["used"] for v in _verdicts(output)))}
    return {**figures, "cpu_seconds": summary["stages"]["identify"]["cpu_seconds"]}


def _verdicts(output: Path) -> list[dict[str, Any]]:
    entries = [json.loads(path.read_text()) for path in (output / "ledger" / "identify").glob("[!.]*.json")]
    return [verdict for entry in entries for verdict in entry["metrics"].get("morphology", {}).values()]


def image(looks: str, seed: int) -> dict[str, Any]:
    """Return the figures of a simulated section with its image, cells typed with and without their looks."""
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    simulated = simulate(SimulationSettings(n_spots=N_SPOTS, nucleus_looks=looks), seed=seed)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        study = write_study(simulated, Path(scratch) / "study")
        study.write_text(
            study.read_text().partition("\n")[2]
        )  # without its headline: `run_study` sets the seed by line
        for morphology in ("off", "auto"):
            output = Path(scratch) / "out"
            studies.run_study(study, output, settings=(f"identify.morphology={morphology}",), seed=seed)
            result[morphology] = _matched(simulated, output)
        result["evidence"] = _verdicts(output)[0]
    print(looks, seed, json.dumps(result), flush=True)
    return result


def _matched(simulated: Any, output: Path) -> dict[str, float]:
    """Return the errors of the typed cells that are, mutually, the nearest of a planted nucleus within 4 µm."""
    import anndata
    from scipy.spatial import cKDTree

    from spatialscope_dist.simulate.settings import TYPE_NAMES

    obs = anndata.read_zarr(output / "sections" / "demo.zarr" / "tables" / "cells")
    places = np.asarray(obs.obsm["spatial"])[:, ::-1]
    distance, planted = cKDTree(simulated.nuclei.centres_um).query(places)
    _, found = cKDTree(places).query(simulated.nuclei.centres_um)
    mine = np.flatnonzero((distance < 4.0) & (found[planted] == np.arange(len(places))))
    true, spot = simulated.nuclei.types[planted[mine]], obs.obs["spot_id"].astype(str).to_numpy()[mine]
    figures: dict[str, float] = {"cells": len(places), "matched": len(mine)}
    spots, row = np.unique(spot, return_inverse=True)
    shape = len(spots), len(TYPE_NAMES)
    tally = np.zeros(shape)
    np.add.at(tally, (row, true), 1)
    floor = 1 - ((tally**2).sum(axis=1) / tally.sum(axis=1)).sum() / tally.sum()
    figures["floor_err_true_composition_in_random_order"] = round(float(floor), 4)
    for kind in LABELS:
        labels = np.searchsorted(TYPE_NAMES, obs.obs[f"cell_type_{kind}"].astype(str).to_numpy()[mine])
        given = np.zeros(shape)
        np.add.at(given, (row, labels), 1)
        figures[f"{kind}_err"] = round(float((labels != true).mean()), 4)
        figures[f"{kind}_cerr"] = round(float(1 - np.minimum(given, tally).sum() / tally.sum()), 4)
    return figures


def main(arguments: list[str]) -> None:
    """Measure the named parts, both when none is named."""
    parser = argparse.ArgumentParser("benchmarks.accuracy morphology")
    parser.add_argument("parts", nargs="*", default=["planted", "image"])
    parts = parser.parse_args(arguments).parts
    if "planted" in parts:
        overlaps = {"mean_bhattacharyya_coefficient_of_types": OVERLAPS, "measures": N_MEASURES}
        result = {name: planted(name) for name in SEEDS}
        studies.save_result(
            "typing_morphology_planted", "accuracy morphology planted", {**overlaps, "benchmarks": result}
        )
    if "image" in parts:
        cases = {looks: [image(looks, seed) for seed in (0, 1, 2)] for looks in ("size", "size and stain", "shuffled")}
        studies.save_result("typing_morphology_image", "accuracy morphology image", {"spots": N_SPOTS, "looks": cases})
