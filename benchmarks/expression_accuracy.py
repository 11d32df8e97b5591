"""Accuracy and speed of decomposition and imputation on spots simulated from real cells, beside all baselines.

`python -m benchmarks.expression_accuracy [mop|seqfish|starmap …] [--spot-seeds 1 2 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.expression_data import SOURCES, Split, choose_for, load_scorer, split_source, spots_of, train_model
from spatialscope_dist.expression.allocation import SpotCells
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import candidates, estimate_all
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.residual_network import settle_torch
from spatialscope_dist.expression.split_gibbs import draw_counts, sample_counts
from spatialscope_dist.options import DecomposeOptions, TrainOptions

HERE = Path(__file__).parent


def main() -> None:
    """Measure and write results/expression_accuracy.json, one entry per data set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="*", default=list(SOURCES))
    parser.add_argument("--spot-seeds", nargs="+", type=int, default=[1])
    arguments = parser.parse_args()
    if "SPATIALSCOPE_DATA" not in os.environ:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    settle_torch()
    data = Path(os.environ["SPATIALSCOPE_DATA"])
    scorer = load_scorer(data)
    file = HERE / "results" / "expression_accuracy.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.sources:
        results[name] = about() | measure(scorer, name, data, spot_seeds=arguments.spot_seeds)
        file.write_text(json.dumps(results, indent=1) + "\n")


def about() -> dict[str, Any]:
    """Return how a result came about."""
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "command": " ".join(["python -m benchmarks.expression_accuracy", *sys.argv[1:]]),
        "commit": os.environ.get("BENCHMARK_COMMIT") or shown.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": "2 shared cores; times are CPU seconds of one thread",
        "settings": DecomposeOptions().model_dump(include={"count_chains", "count_sweeps", "count_burn_in"}),
    }


def measure(scorer: ModuleType, name: str, data: Path, *, spot_seeds: list[int]) -> dict[str, Any]:
    """Return training cost, accuracy of every setting, coverage, imputation and speed on one data set."""
    source = SOURCES[name]
    split = split_source(scorer, source, data)
    model, cost = train_model(split, TrainOptions())
    print(name, cost, flush=True)
    imputed, rows = impute(scorer, split, model), []
    print(imputed, flush=True)
    for seed in spot_seeds:
        for wrong in source.wrong_labels:
            for capture in source.captures if wrong == 0 else (1.0, 0.2):
                simulated = scorer.simulate_spots(
                    split.test,
                    seed=seed,
                    capture=capture,
                    wrong_labels=wrong,
                    spots_per_m=source.spots_per_m,
                    same_spots_per_m=source.spots_per_m,
                )
                row = {"spot_seed": seed, "capture": capture, "wrong_labels": wrong}
                names = candidates(model) if seed == spot_seeds[0] else [*BASELINES, "counts"]
                rows.append(row | measure_spots(scorer, simulated, split, model, names=names))
                show(name, rows[-1])
    return {"training": cost, "spots": rows, "imputation": imputed}


def measure_spots(
    scorer: ModuleType, simulated: Any, split: Split, model: ExpressionModel, *, names: list[str]
) -> dict[str, Any]:
    """Return the scores of estimators on the same spots, which one `auto` chose, coverage and speed.

    Coverage and speed are those of the count denoiser; coverage from 20 draws (10 chains).
    """
    options, spots = DecomposeOptions(), spots_of(simulated, split)
    choice = choose_for(spots, split, model)
    means = estimate_all(spots, model, options, names=sorted({*names, choice.estimator}))
    scores = {name: score(scorer, simulated, mean) for name, mean in means.items()}
    started = time.process_time()
    sample_counts(spots, model, options)
    seconds = time.process_time() - started
    several = draw_counts(spots, model, options.model_copy(update={"count_chains": 10}))
    covered = scorer.coverage(several.draws, simulated.truth, simulated.spot, simulated.label, simulated.y)
    return {
        "auto": choice.estimator,
        "reason": choice.reason,
        "scores": scores,
        "coverage_90": {"share": round(covered["coverage"], 4), "width": round(covered["width"], 2)},
        "cells_per_cpu_second": round(len(spots.types) / seconds),
    }


def score(scorer: ModuleType, simulated: Any, mean: Any) -> dict[str, float]:
    """Return the scorer's numbers over cells that share their spot, and the cosine of cells of unique label."""
    several = simulated.m > 1
    unique = scorer.unique_label(simulated.spot, simulated.label, simulated.m)
    parts = (mean, simulated.truth, simulated.spot, simulated.label, simulated.label_true)
    numbers = scorer.score_cells(*parts, several)
    chosen = {key: numbers[key] for key in ("cosine", "r_within", "r_within_norm", "rmse_log1p")}
    chosen["unique_cosine"] = scorer.score_cells(*parts, unique)["cosine"]
    chosen["duplicated_cosine"] = scorer.score_cells(*parts, several & ~unique)["cosine"]
    return {key: round(value, 4) for key, value in chosen.items()}


def impute(scorer: ModuleType, split: Split, model: ExpressionModel) -> dict[str, dict[str, float]]:
    """Return the scores of genes hidden from cells alone in their spot, by one evaluation and by size times mean."""
    cells, genes = scorer.simulate_imputation(split.test, seed=1)
    truth = scorer.dense_counts(split.test[cells])
    labels = split.test.obs["cell_type"].astype(str).to_numpy()[cells]
    types = np.array([split.types.index(name) for name in labels], np.int64)
    exposure = np.ones(truth.shape[1], np.float32)
    exposure[genes] = 0
    rows = np.arange(len(cells) + 1)
    spots = SpotCells(truth, rows, types, np.zeros(len(cells), np.int64), exposure)
    started = time.process_time()
    means = {"counts": sample_counts(spots, model, DecomposeOptions()).mean}
    seconds = time.process_time() - started
    means |= estimate_all(spots, model, DecomposeOptions(), names=["type_mean", "sized"])
    scores = {}
    for name, mean in means.items():
        found = scorer.score_imputation(mean[:, genes], truth[:, genes], labels)
        scores[name] = {key: round(float(value), 4) for key, value in found.items()}
    scores["counts"]["cells_per_cpu_second"] = round(len(cells) / seconds)
    return scores


def show(name: str, row: dict[str, Any]) -> None:
    """Print one row as it is measured."""
    setting = f"{name} seed {row['spot_seed']} capture {row['capture']} wrong {row['wrong_labels']}"
    print(setting, row["reason"], row["coverage_90"], row["cells_per_cpu_second"], "cells/CPU-s", flush=True)
    for estimator, scores in row["scores"].items():
        print(f"  {estimator:22s}", *scores.values(), "<- auto" if estimator == row["auto"] else "", flush=True)


if __name__ == "__main__":
    main()
