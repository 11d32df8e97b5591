"""Algorithm 1 of SpatialScope beside the other estimators: accuracy, network evaluations, operations and speed.

`python -m benchmarks.expression_langevin [--models FOLDER] [--only NAME …]`, 130 cells of mop: five spots per stratum,
125 cells share theirs. `--models` keeps trained networks between calls, `--only` measures some settings again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.expression_accuracy import score
from benchmarks.expression_data import SOURCES, Split, load_scorer, split_source, spots_of, train_model
from benchmarks.provenance import provenance
from spatialscope_dist.expression.allocation import SpotCells
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import estimate_spots
from spatialscope_dist.expression.langevin import Schedule
from spatialscope_dist.expression.model import ExpressionModel, pack_model, unpack_model
from spatialscope_dist.expression.residual_network import settle_torch
from spatialscope_dist.options import DecomposeOptions, TrainOptions

FILE = Path(__file__).parent / "results" / "expression_langevin.json"
AUTHORS = {"evaluations": 3483, "mac_per_evaluation": 5.49e9, "genes": 2195}
PAPER = DecomposeOptions(estimator="score", sampler="langevin")
REDUCED_UNET = TrainOptions(networks=("score",), score_network="unet", unet_channels=8, score_steps=200)


@dataclass(frozen=True)
class Setting:
    """An estimator, its options and the captures it is measured at."""

    estimator: str
    options: DecomposeOptions = DecomposeOptions()
    captures: tuple[float, ...] = (1.0, 0.2)
    unet: bool = False


SETTINGS = {
    **{name: Setting(name) for name in BASELINES},
    "counts (default)": Setting("counts"),
    "counts, R=2": Setting("counts", DecomposeOptions(count_chains=2)),
    "score, fast": Setting("score"),
    "score, Algorithm 1": Setting("score", PAPER),
    "score, Algorithm 1, noiseless last step": Setting("score", PAPER.model_copy(update={"langevin_final_step": True})),
    "score, Algorithm 1, L=58": Setting("score", PAPER.model_copy(update={"langevin_levels": 58}), (1.0,)),
    "score, Algorithm 1, L=58, no clips": Setting(
        "score", PAPER.model_copy(update={"langevin_levels": 58, "langevin_clip": False}), (1.0,)
    ),
    "U-Net, fast": Setting("score", unet=True),
}


def main() -> None:
    """Measure and write results/expression_langevin.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    if "SPATIALSCOPE_DATA" not in os.environ:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    settle_torch()
    data = Path(os.environ["SPATIALSCOPE_DATA"])
    scorer = load_scorer(data)
    split = split_source(scorer, SOURCES["mop"], data)
    results = json.loads(FILE.read_text()) if FILE.exists() else {"settings": {}, "training": {}}
    results = (
        provenance(" ".join(["expression_langevin", *sys.argv[1:]]))
        | {"authors": AUTHORS}
        | {key: results[key] for key in ("training", "settings")}
    )
    for name in arguments.only:
        setting = SETTINGS[name]
        options, kept = (REDUCED_UNET, "unet") if setting.unet else (TrainOptions(), "mlp")
        model, cost = trained(split, options, arguments.models / kept if arguments.models else None)
        results["training"][kept] = cost
        results["settings"][name] = measure(scorer, split, model, setting)
        FILE.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results["settings"][name]), flush=True)


def trained(split: Split, options: TrainOptions, folder: Path | None) -> tuple[ExpressionModel, dict[str, Any]]:
    """Return a model, trained or read from the folder, and what its training cost."""
    if folder is not None and (folder / "model.json").exists():
        document = json.loads((folder / "model.json").read_text())
        return unpack_model((folder / "weights.safetensors").read_bytes(), document), document["training"]
    model, cost = train_model(split, options)
    print(cost, flush=True)
    if folder is not None:
        weights, document = pack_model(replace(model, training=cost))
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(weights)
        (folder / "model.json").write_text(json.dumps(document))
    return model, cost


def measure(scorer: Any, split: Split, model: ExpressionModel, setting: Setting) -> dict[str, Any]:
    """Return scores by capture, and evaluations, operations and speed of the network."""
    found: dict[str, Any] = {}
    for capture in setting.captures:
        simulated = scorer.simulate_spots(split.test, seed=1, capture=capture, spots_per_m=5, same_spots_per_m=5)
        spots = spots_of(simulated, split)
        started = time.process_time()
        mean = estimate_spots(spots, model, setting.options, name=setting.estimator).mean
        seconds = time.process_time() - started
        failed = int((~np.isfinite(mean).all(axis=1)).sum())
        found[f"capture {capture}"] = {"failed_cells": failed} if failed else score(scorer, simulated, mean)
        found["cells_per_cpu_second"] = round(len(spots.types) / seconds, 1)
    if setting.estimator in model.networks:
        found |= operations(spots, model, setting)
    return found


def operations(spots: SpotCells, model: ExpressionModel, setting: Setting) -> dict[str, Any]:
    """Return network evaluations and multiply-adds per cell, and how many times the authors' that is.

    Multiply-adds are counted by torch while the estimator works, padding included; Algorithm 1 at two levels, the rest
    in proportion. `ratio_at_same_genes` is for as many genes as the authors' figure.
    """
    options, of_all = setting.options, 1.0
    counts = setting.estimator == "counts"
    per_chain = options.count_sweeps if counts else options.n_steps
    chains = options.count_chains if counts else options.n_chains
    if not counts and options.sampler == "langevin":
        per_chain, chains = Schedule.of(options).n_evaluations, options.langevin_chains
        short = options.model_copy(update={"langevin_levels": 2, "langevin_steps": 1, "langevin_final_step": False})
        options, of_all = short, per_chain / 2
    macs = of_all * counted(lambda: estimate_spots(spots, model, options, name=setting.estimator)) / len(spots.types)
    theirs = AUTHORS["evaluations"] * AUTHORS["mac_per_evaluation"]
    shape = model.networks[setting.estimator].shape
    wider = weights_of(replace(shape, n_genes=int(AUTHORS["genes"]))) / weights_of(shape)
    return {
        "evaluations_per_cell": per_chain * chains,
        "mac_per_cell": round(macs),
        "ratio_to_authors": round(theirs / macs),
        "ratio_at_same_genes": round(theirs / (macs * wider)),
    }


def weights_of(shape: Any) -> float:
    """Return what multiply-adds of an evaluation are in proportion to: dense weights, or genes of a convolution."""
    return float(shape.n_parameters() if hasattr(shape, "layers") else shape.n_genes)


def counted(work: Callable[[], Any]) -> float:
    """Return the multiply-adds of matrix products and convolutions while `work` runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, np.errstate(all="ignore"):  # two levels leave noise in the counts
        work()
    return counter.get_total_flops() / 2


if __name__ == "__main__":
    main()
