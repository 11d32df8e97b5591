"""Stage `train`: the conditional score model of the study, trained on its reference; eq. (7)-(9)."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.expression.count_denoiser import DenoiserShape
from spatialscope_dist.expression.residual_network import TORCH_WORKER_BYTES, settle_torch
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json, write_bytes, write_json
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.switch import replacing_folder

if TYPE_CHECKING:
    from spatialscope_dist.expression.objectives import Objective, TrainingData
    from spatialscope_dist.expression.training_state import TrainingState

    Trained = dict[str, tuple[Objective, TrainingState]]  # by network

NAME = "train"
VERSION = 2
_FILES = ("weights.safetensors", "model.json")
_STORED_SHARE = 0.5  # of the panel's entries of a reference that are not zero, at most


def items(context: Context) -> list[str]:
    """Return the one item: a study has one model."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: a study always has a reference."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the reference's key, the seed and the options a model depends on."""
    return {
        "reference": context.upstream_key("reference", "study"),
        "seed": context.study.seed,
        "options": context.study.options.train.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task: the panel's counts, the network with its moments, and the activations of a batch."""
    options, facts, genes = context.study.options.train, context.facts, context.largest_panel()
    weights = 4 * DenoiserShape(genes, options.width, options.n_blocks).n_parameters()
    counts = int(8 * _STORED_SHARE * facts.n_reference_cells * genes)
    batch = 4 * options.batch_cells * (24 * genes + 24 * options.width * options.n_blocks)
    peak = TORCH_WORKER_BYTES + 2 * counts + 12 * weights + 2 * batch + 8 * 12 * facts.n_types * genes
    return StagePlan(tasks=1, peak_bytes=peak, disk_bytes=16 * weights + 30 * facts.n_types * genes)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Train on a worker; a run that was stopped goes on from its last checkpoint."""
    reference = context.upstream("reference", "study")
    unit = {
        "reference": reference,
        "output": output,
        "options": context.study.options.train,
        "seed": context.study.seed,
    }
    units = context.ledger.units(NAME, item, output)
    done = context.pool.map(train_model, {"model": unit}, ledger_units=units, framework="torch", gpu=True)
    _publish_model(output, context.place.model)
    return StageOutcome(done=1, total=1, metrics=done["model"])


def _publish_model(output: Path, target: Path) -> None:
    """Put the model where users look for it: weights and description change together or not at all."""
    with replacing_folder(target) as fresh:
        for file in sorted(output.iterdir()):
            if file.name in _FILES or file.name.startswith("training"):
                write_bytes(fresh / file.name, file.read_bytes())


def train_model(*, reference: Path, output: Path, options: TrainOptions, seed: int) -> dict[str, Any]:
    """Write model, curves and checkpoints and return what was reached; runs on a worker."""
    settle_torch()
    genes = read_json(reference / "panel.json")["genes"]
    types = read_json(reference / "types.json")
    data = read_training_data(reference, genes, types, share=options.held_out, seed=seed)
    trained: Trained = {
        name: _train_network(name, data, output, options=options, seed=seed) for name in options.networks
    }
    summary = _summary(trained, data, options=options, seed=seed)
    _write_model(output, trained, data, genes=genes, types=types, options=options, summary=summary)
    write_json(output / "summary.json", summary)
    return summary


def _train_network(
    name: str, data: TrainingData, output: Path, *, options: TrainOptions, seed: int
) -> tuple[Objective, TrainingState]:
    from spatialscope_dist.expression.device import working_device
    from spatialscope_dist.expression.objectives import OBJECTIVES
    from spatialscope_dist.expression.training import fit
    from spatialscope_dist.expression.training_state import Hooks, unpack_state

    objective = OBJECTIVES[name](data, options, working_device())
    saved = output / f"checkpoint_{name}.safetensors"
    state = unpack_state(saved.read_bytes()) if saved.exists() else None
    curve = _Curve(output, name, first=name == options.networks[0], upto=state.step if state else 0)
    hooks = Hooks(row=curve.add, checkpoint=curve.save)
    return objective, fit(objective, data, options, seed=seed, state=state, hooks=hooks)


def read_training_data(reference: Path, genes: list[str], types: list[str], *, share: float, seed: int) -> TrainingData:
    """Return the panel's counts of all reference cells, their types and the split (worker)."""
    from spatialscope_dist.expression.objectives import TrainingData
    from spatialscope_dist.expression.profiles import reference_profiles, split_cells

    place = {name: number for number, name in enumerate(types)}
    names = read_frame(reference / "cells.parquet", columns=["cell_type"])["cell_type"]
    codes = np.array([place[str(name)] for name in names], np.int64)
    counts = _panel_counts(open_counts(reference / "reference.zarr"), genes)
    train, held_out = split_cells(codes, share=share, seed=seed)
    profiles = reference_profiles(counts, codes, n_types=len(types), rows=train)
    return TrainingData(counts, codes, train, held_out, profiles)


def _panel_counts(counts: Counts, genes: list[str]) -> sp.csr_matrix:
    columns: NDArray[np.int64] = positions_in(counts.genes, genes)
    return sp.csr_matrix(sp.vstack([block[:, columns] for _, block in counts.blocks()], format="csr"))


class _Curve:
    """The training curve and the checkpoints of a network, in the stage's output folder."""

    def __init__(self, output: Path, name: str, *, first: bool, upto: int) -> None:
        self._output, self._name = output, name
        self._file = output / ("training.jsonl" if first else f"training_{name}.jsonl")
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        self._rows = [row for row in map(json.loads, text.splitlines()) if row["step"] <= upto]
        self._before = self._rows[-1]["seconds"] if self._rows else 0.0

    def add(self, row: dict[str, float]) -> None:
        """Add one row; the file is whole after every row."""
        self._rows.append(row | {"seconds": round(self._before + row["seconds"], 3)})
        write_bytes(self._file, "".join(json.dumps(row) + "\n" for row in self._rows).encode())

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint."""
        from spatialscope_dist.expression.training_state import describe_state, pack_state

        write_bytes(self._output / f"checkpoint_{self._name}.safetensors", pack_state(state))
        write_json(self._output / f"checkpoint_{self._name}.json", describe_state(state))


def _summary(trained: Trained, data: TrainingData, *, options: TrainOptions, seed: int) -> dict[str, Any]:
    networks = {
        name: {
            "steps": state.step,
            "stopped_early": state.stopped,
            "best_step": state.best_step,
            "best_held_out_loss": state.best_held_out,
        }
        for name, (_, state) in trained.items()
    }
    return {
        "seed": seed,
        "held_out_share": options.held_out,
        "train_cells": len(data.train),
        "held_out_cells": len(data.held_out),
        "genes": data.counts.shape[1],
        "types": data.profiles.mean_log.shape[0],
        "networks": networks,
    }


def _write_model(
    output: Path,
    trained: Trained,
    data: TrainingData,
    *,
    genes: list[str],
    types: list[str],
    options: TrainOptions,
    summary: dict[str, Any],
) -> None:
    from spatialscope_dist.expression.model import ExpressionModel, Network, pack_model

    versions = {name: version(name) for name in ("spatialscope_dist", "torch", "numpy", "safetensors")}
    model = ExpressionModel(
        genes=tuple(genes),
        types=tuple(types),
        networks={name: Network(objective.shape, state.best) for name, (objective, state) in trained.items()},
        noise_range=(options.noise_min, options.noise_max),
        profiles=data.profiles,
        training=summary | {"options": options.model_dump(mode="json"), "versions": versions},
    )
    weights, document = pack_model(model)
    write_bytes(output / "weights.safetensors", weights)
    write_json(output / "model.json", document)
