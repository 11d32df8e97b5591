"""What the looks of nuclei add to typing: `python -m benchmarks.accuracy morphology [planted] [image]`.

planted: spots binned from single cells, whose cells bring four measures drawn by type, as columns of the given
nuclei, at three levels of overlap of the types; controls: measures shuffled over the section, a smooth staining that
knows no type, and measures shuffled inside the spots, which no evidence from counts can notice. image: a simulated
section with an H&E image, segmented with the demo model, its nuclei measured. The stages run at default options, their
units one after another in this process. Results become results/typing_morphology_{planted,image}.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import typing_studies as studies
from spatialscope_dist import pipeline
from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.measure import Measured, measured
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.readers.facts import read_facts
from spatialscope_dist.stages.context import Context
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import load_study

Array = NDArray[np.float64]
NAMES = ("mpoa:section", "mpoa:scrna", "mpfc1:section", "visp:paired")
OVERLAPS = {"weak": 0.9, "medium": 0.75, "strong": 0.5}
N_MEASURES = 4
LABELS = ("positional", "composition")
N_SPOTS = 150


class PoolHere(Pool):
    """Workers that are this process, so that a small study costs no start of others."""

    def _stream(self, function: Callable[..., Any], units: Any, **_: Any) -> Iterator[tuple[str, Measured | str]]:
        for name, arguments in units.items():
            yield name, measured(function, arguments)


def typed_here(study_file: Path, output: Path, *, settings: tuple[str, ...] = ()) -> Context:
    """Return the context of a study whose stages have run as far as its cells are typed."""
    study = load_study(study_file, output=output, settings=settings)
    place, events = Place(study.output), Events()
    pool = PoolHere(ClusterSettings(1, 3 << 30), events)
    context = Context(study, place, Ledger(place.ledger), pool, events, read_facts(study))
    for name in pipeline.STAGES[: pipeline.STAGES.index("identify") + 1]:
        stage = pipeline.stage_module(name)
        for item in stage.items(context):
            if stage.skip_reason(context, item) is None:
                pipeline._run_item(stage, context, item, 0)
    return context


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


def planted(name: str, seeds: list[int]) -> dict[str, Any]:
    """Return the figures of every case of one benchmark and reference, means over Gibbs seeds."""
    file, reference = name.split(":")
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / f"{file}.npz")
    score, looks = studies.scorer("score_types").score, PlantedLooks(bench)
    floor = score(bench, bench["cell_type"])["err_shuf"]
    result: dict[str, Any] = {"floor_err_true_composition_in_random_order": round(floor, 4)}
    with tempfile.TemporaryDirectory() as scratch:
        study = studies.write_study(bench, reference, Path(scratch) / "study")
        given = {path: pd.read_csv(path) for path in study.parent.glob("s*.csv")}
        for case, draw in looks.cases().items():
            _write_measures(given, None if draw is None else draw())
            runs = [_scored(score, bench, study, Path(scratch) / "out", seed) for seed in seeds]
            result[case] = {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}
            print(name, case, json.dumps(result[case]), flush=True)
    return result


def _write_measures(given: dict[Path, pd.DataFrame], measures: Array | None) -> None:
    for path, frame in given.items():
        rows = frame["cell_id"].str.removeprefix("cell").astype(int)
        columns = {} if measures is None else {f"nucleus_{at}": column[rows] for at, column in enumerate(measures.T)}
        frame.assign(**columns).to_csv(path, index=False)


def _scored(score: Any, bench: studies.Bench, study: Path, output: Path, seed: int) -> dict[str, float]:
    context = typed_here(study, output, settings=(f"study.seed={seed}",))
    folder = context.cells_of(context.study.sections[0].name)
    assert folder is not None
    cells, types = read_frame(folder / "cells.parquet"), bench["types"].astype(str)
    rows = cells["cell_id"].str.removeprefix("cell").astype(int).to_numpy()
    figures = {}
    for kind in LABELS:
        labels = np.empty(len(rows), np.int64)
        labels[rows] = np.searchsorted(types, cells[f"cell_type_{kind}"].astype(str).to_numpy())
        scores = score(bench, labels)
        figures |= {f"{kind}_err": scores["err"], f"{kind}_cerr": scores["cerr"]}
    soft = score(bench, None, read_array(folder / "proportions.zarr"))
    figures |= {"pcc": soft["pcc"], "rmse": soft["rmse"], "used": float(_verdict(context)["used"])}
    return {**figures, "cpu_seconds": _entry(context).cost["cpu_seconds"]}


def _entry(context: Context) -> Any:
    (entry,) = context.ledger.entries("identify")
    return entry


def _verdict(context: Context) -> dict[str, Any]:
    """Return whether the looks of nuclei were used in the one section, with the evidence."""
    (verdict,) = _entry(context).metrics["morphology"].values()
    return dict(verdict)


def image(looks: str, seed: int) -> dict[str, Any]:
    """Return the figures of a simulated section with its image, cells typed with and without their looks."""
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    simulated = simulate(SimulationSettings(n_spots=N_SPOTS, nucleus_looks=looks), seed=seed)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        study = write_study(simulated, Path(scratch) / "study")
        for morphology in ("off", "auto"):
            setting = (f"identify.morphology={morphology}",)
            context = typed_here(study, Path(scratch) / "out", settings=setting)
            result[morphology] = _matched(simulated, context)
        result["evidence"] = _verdict(context)
    print(looks, seed, json.dumps(result), flush=True)
    return result


def _matched(simulated: Any, context: Context) -> dict[str, float]:
    """Return the errors of the typed cells that are, mutually, the nearest of a planted nucleus within 4 µm."""
    from scipy.spatial import cKDTree

    from spatialscope_dist.simulate.settings import TYPE_NAMES

    folder = context.cells_of("demo")
    assert folder is not None
    cells = read_frame(folder / "cells.parquet")
    places = cells[["y_um", "x_um"]].to_numpy(float)
    distance, planted = cKDTree(simulated.nuclei.centres_um).query(places)
    _, found = cKDTree(places).query(simulated.nuclei.centres_um)
    mine = np.flatnonzero((distance < 4.0) & (found[planted] == np.arange(len(places))))
    true, spot = simulated.nuclei.types[planted[mine]], cells["spot_id"].astype(str).to_numpy()[mine]
    figures: dict[str, float] = {"cells": len(places), "matched": len(mine)}
    spots, row = np.unique(spot, return_inverse=True)
    shape = len(spots), len(TYPE_NAMES)
    tally = np.zeros(shape)
    np.add.at(tally, (row, true), 1)
    floor = 1 - ((tally**2).sum(axis=1) / tally.sum(axis=1)).sum() / tally.sum()
    figures["floor_err_true_composition_in_random_order"] = round(float(floor), 4)
    for kind in LABELS:
        labels = np.searchsorted(TYPE_NAMES, cells[f"cell_type_{kind}"].astype(str).to_numpy()[mine])
        given = np.zeros(shape)
        np.add.at(given, (row, labels), 1)
        figures[f"{kind}_err"] = round(float((labels != true).mean()), 4)
        figures[f"{kind}_cerr"] = round(float(1 - np.minimum(given, tally).sum() / tally.sum()), 4)
    return figures


def main(arguments: list[str]) -> None:
    """Measure the named parts, both when none is named."""
    parser = argparse.ArgumentParser("benchmarks.accuracy morphology")
    parser.add_argument("parts", nargs="*", default=["planted", "image"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    chosen = parser.parse_args(arguments)
    seeds = {"seeds": chosen.seeds}
    if "planted" in chosen.parts:
        overlaps = {"mean_bhattacharyya_coefficient_of_types": OVERLAPS, "measures": N_MEASURES}
        result = {name: planted(name, chosen.seeds) for name in NAMES}
        about = {**overlaps, **seeds, "benchmarks": result}
        studies.save_result("typing_morphology_planted", "accuracy morphology planted", about)
    if "image" in chosen.parts:
        kinds = ("size", "size and stain", "shuffled")
        cases = {looks: [image(looks, seed) for seed in chosen.seeds] for looks in kinds}
        about = {"spots": N_SPOTS, **seeds, "looks": cases}
        studies.save_result("typing_morphology_image", "accuracy morphology image", about)
