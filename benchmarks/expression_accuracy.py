"""Accuracy and speed of decomposition and imputation on spots simulated from real cells, beside all baselines.

`python -m benchmarks.expression_accuracy [mop|seqfish|starmap …] [--spot-seeds 1 2 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.expression_data import (
    SOURCES,
    Split,
    choose_for,
    load_scorer,
    split_source,
    spots_of,
    train_model,
    write_model,
)
from benchmarks.provenance import provenance
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
    parser.add_argument("--keep", type=Path, help="folder for the trained models, for expression_robustness")
    arguments = parser.parse_args()
    if "SPATIALSCOPE_DATA" not in os.environ:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    settle_torch()
    data = Path(os.environ["SPATIALSCOPE_DATA"])
    scorer = load_scorer(data)
    file = HERE / "results" / "expression_accuracy.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.sources:
        for so_far in measure(scorer, name, data, spot_seeds=arguments.spot_seeds, keep=arguments.keep):
            results[name] = about("expression_accuracy") | so_far
            file.write_text(json.dumps(results, indent=1) + "\n")


def about(command: str) -> dict[str, Any]:
    """Return how a result came about, and the settings of the sampler it was measured with."""
    return {
        **provenance(" ".join([command, *sys.argv[1:]])),
        "settings": DecomposeOptions().model_dump(include={"count_chains", "count_sweeps", "count_burn_in"}),
    }


def measure(
    scorer: ModuleType, name: str, data: Path, *, spot_seeds: list[int], keep: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield training cost, imputation, and the settings measured so far, of one data set."""
    source = SOURCES[name]
    split = split_source(scorer, source, data)
    model, cost = train_model(split, TrainOptions())
    print(name, cost, flush=True)
    if keep is not None:
        write_model(model, keep / name)
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
                whole = seed == spot_seeds[0]
                rows.append(row | measure_spots(scorer, simulated, split, model, whole=whole))
                show(name, rows[-1])
                yield {"training": cost, "spots": rows, "imputation": imputed}


def measure_spots(
    scorer: ModuleType, simulated: Any, split: Split, model: ExpressionModel, *, whole: bool
) -> dict[str, Any]:
    """Return the scores of estimators on the same spots, which one `auto` chose, and its gain over proportional.

    A whole row has all estimators, and coverage and speed of the count denoiser.
    """
    options, spots = DecomposeOptions(), spots_of(simulated, split)
    choice = choose_for(spots, split, model)
    names = candidates(model) if whole else [*BASELINES, "counts"]
    means = estimate_all(spots, model, options, names=sorted({*names, choice.estimator}))
    row = {
        "auto": choice.estimator,
        "reason": choice.reason,
        "scores": {name: score(scorer, simulated, mean) for name, mean in means.items()},
        "auto_over_proportional": gain(scorer, simulated, means[choice.estimator], means["proportional"]),
    }
    if whole:
        row["coverage_90"] = coverage(scorer, simulated, spots, model)
        row["cells_per_cpu_second"] = {f"R={chains}": speed(spots, model, chains=chains) for chains in (8, 4, 2)}
    return row


def gain(scorer: ModuleType, simulated: Any, mean: Any, rival: Any) -> dict[str, float]:
    """Return the mean paired gain in cosine over cells that share their spot, and its standard error."""
    cosines = []
    for values in (mean, rival):
        order = scorer.match_exchangeable(values, simulated.truth, simulated.spot, simulated.label)
        product = (values[order] * simulated.truth).sum(axis=1)
        length = np.linalg.norm(values[order], axis=1) * np.linalg.norm(simulated.truth, axis=1)
        cosines.append(product / np.maximum(length, 1e-12))
    gained = (cosines[0] - cosines[1])[simulated.m > 1]
    return {"mean": round(float(gained.mean()), 4), "error": round(float(gained.std() / len(gained) ** 0.5), 4)}


def coverage(scorer: ModuleType, simulated: Any, spots: SpotCells, model: ExpressionModel) -> dict[str, float]:
    """Return how often 90 % intervals of 20 draws hold the truth, by the scorer, and with ties broken at random.

    An interval of counts includes its ends, so on sparse data even the exact posterior's holds more than 90 %. The rank
    of the truth among the draws, ties broken at random, does not: its central 90 % hold 90 % when draws are right.
    """
    draws = draw_counts(spots, model, DecomposeOptions(count_chains=5)).draws  # four sweeps of each are kept
    found = scorer.coverage(draws, simulated.truth, simulated.spot, simulated.label, simulated.y)
    matched = [scorer.match_exchangeable(one, simulated.truth, simulated.spot, simulated.label) for one in draws]
    lined_up = np.stack([one[order] for one, order in zip(draws, matched, strict=True)])
    used = (simulated.y[simulated.spot] > 0) & (simulated.m > 1)[:, None]
    below = (lined_up < simulated.truth - 1e-6).sum(axis=0)[used]
    tied = (np.abs(lined_up - simulated.truth) <= 1e-6).sum(axis=0)[used]
    rank = (below + np.random.default_rng(0).random(len(below)) * (tied + 1)) / (len(draws) + 1)
    central = (rank > 0.05) & (rank < 0.95)
    return {
        "share": round(found["coverage"], 4),
        "width": round(found["width"], 2),
        "share_ties_at_random": round(float(central.mean()), 4),
    }


def speed(spots: SpotCells, model: ExpressionModel, *, chains: int) -> int:
    """Return how many cells the count denoiser decomposes a CPU second with so many chains."""
    started = time.process_time()
    sample_counts(spots, model, DecomposeOptions(count_chains=chains))
    return round(len(spots.types) / (time.process_time() - started))


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
    print(setting, row["reason"], row.get("coverage_90", ""), row.get("cells_per_cpu_second", ""), flush=True)
    for estimator, scores in row["scores"].items():
        print(f"  {estimator:22s}", *scores.values(), "<- auto" if estimator == row["auto"] else "", flush=True)


if __name__ == "__main__":
    main()
