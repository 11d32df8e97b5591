"""Stage `train`: the generative model of the study, trained on its reference: count denoiser, and eq. (7)-(9)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.expression.count_denoiser import DenoiserShape
from spatialscope_dist.expression.gene_unet import UNetShape
from spatialscope_dist.expression.residual_network import TORCH_WORKER_BYTES, settle_torch
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import generator
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json, write_bytes, write_json
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.packed_rows import pack_rows
from spatialscope_dist.store.switch import replacing_folder

if TYPE_CHECKING:
    from spatialscope_dist.expression.model import ExpressionModel
    from spatialscope_dist.expression.objectives import Objective, TrainingData
    from spatialscope_dist.expression.process_exchange import Meeting
    from spatialscope_dist.expression.training import Share
    from spatialscope_dist.expression.training_state import TrainingState

    Trained = dict[str, tuple[Objective, TrainingState]]  # by network

NAME = "train"
VERSION = 3
_ATTEMPTS = 3  # of several processes, before one goes on alone
_FILES = ("weights.safetensors", "model.json")
_ROWS_AT_ONCE = 1024
_QUALITY_CELLS, _FEWEST_FOR_QUALITY = 1000, 40
_STORED_SHARE = 0.5  # of the panel's entries of a reference that are not zero, at most


def items(context: Context) -> list[str]:
    """Return the one item: a study has one model."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: a study always has a reference."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the reference's key, the seed and the options a model depends on."""
    options = context.study.options.train
    return {
        "reference": context.upstream_key("reference", "study"),
        "seed": context.study.seed,
        "options": options.model_dump(mode="json", exclude={"checkpoint_every_steps", "processes", "start_from"}),
        "start_from": None if options.start_from is None else _weights_of(options.start_from),
    }


def _weights_of(folder: Path) -> str:
    return str(read_json(folder / "model.json")["weights_sha256"])


def plan(context: Context, item: str) -> StagePlan:
    """Return one task: the panel's counts, the network with its moments, and the activations of a batch."""
    options, facts, genes = context.study.options.train, context.facts, context.largest_panel()
    weights = 4 * DenoiserShape(genes, options.width, options.n_blocks).n_parameters()
    if options.score_network == "unet":
        weights = max(weights, 4 * UNetShape(genes, options.unet_channels, options.unet_levels).n_parameters())
    cells = 200 * facts.n_reference_cells  # names, types, sizes; counts stay on disk
    block = int(24 * _STORED_SHARE * _ROWS_AT_ONCE * max(genes, facts.n_reference_genes))
    batch = 4 * options.batch_cells * (24 * genes + 24 * options.width * options.n_blocks)
    if options.score_network == "unet":
        batch = max(batch, 12 * options.batch_cells * options.unet_channels * genes)
    peak = TORCH_WORKER_BYTES + cells + block + 12 * weights + 2 * batch + 8 * 12 * facts.n_types * genes
    return StagePlan(tasks=1, peak_bytes=peak, disk_bytes=16 * weights + 30 * facts.n_types * genes)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Train on a worker, or on several together; a run that was stopped goes on from its last checkpoint."""
    reference = context.upstream("reference", "study")
    unit: dict[str, Any] = {
        "reference": reference,
        "output": output,
        "options": context.study.options.train,
        "seed": context.study.seed,
    }
    reachable = isinstance(output, Path)  # processes meet in a folder; object stores have none
    n_processes = min(context.study.options.train.processes, context.pool.settings.workers) if reachable else 1
    metrics = _train_together(context, unit, n_processes) if n_processes > 1 else None
    if metrics is None:
        units = context.ledger.units(NAME, item, output)
        done = context.pool.map(train_model, {"model": unit}, ledger_units=units, framework="torch", gpu=True)
        metrics = done["model"]
    _publish_model(output, context.place.model)
    return StageOutcome(done=1, total=1, metrics=metrics)


def _train_together(context: Context, unit: dict[str, Any], n_processes: int) -> dict[str, Any] | None:
    """Return what several processes reached; None when one was lost in every attempt.

    Each attempt goes on from the last checkpoint. No unit is committed alone: a process that went on by itself would
    wait for the others.
    """
    from spatialscope_dist.expression.process_exchange import Meeting

    for _ in range(_ATTEMPTS):
        folder = unit["output"] / f".meeting_{time.time_ns()}"
        ranks = {f"process_{n}": unit | {"meeting": Meeting(folder, n, n_processes)} for n in range(n_processes)}
        done = context.pool.map(train_with_others, ranks, framework="torch", gpu=True)
        for left in unit["output"].glob(".meeting_*"):
            rmtree(left)
        lost = [reached["peer_lost"] for reached in done.values() if "peer_lost" in reached]
        if not lost:
            return dict(done["process_0"])
        logging.getLogger(__name__).warning("%s; going on from the last checkpoint", lost[0])
    return None


def _publish_model(output: Path, target: Path) -> None:
    """Put the model where users look for it: weights and description change together or not at all."""
    with replacing_folder(target) as fresh:
        for file in sorted(output.iterdir()):
            if file.name in _FILES or file.name.startswith("training"):
                write_bytes(fresh / file.name, file.read_bytes())


def train_with_others(**arguments: Any) -> dict[str, Any]:
    """Return what `train_model` does, or {"peer_lost": why}: this attempt is over, not the training (worker)."""
    from spatialscope_dist.expression.process_exchange import PeerLost

    try:
        return train_model(**arguments)
    except PeerLost as error:
        return {"peer_lost": str(error)}


def train_model(
    *, reference: Path, output: Path, options: TrainOptions, seed: int, meeting: Meeting | None = None
) -> dict[str, Any]:
    """Write model, curves and checkpoints and return what was reached; runs on a worker.

    Of several processes the first writes; the others only work out their share of every batch.
    """
    from spatialscope_dist.expression.process_exchange import Meeting, joined

    settle_torch()
    meeting = meeting or Meeting(output, 0, 1)
    if meeting.n_processes > 1:
        meeting.start()
    genes = read_json(reference / "panel.json")["genes"]
    types = read_json(reference / "types.json")
    trained: Trained = {}
    with _training_data(reference, genes, types, share=options.held_out, seed=seed) as data:
        for name in options.networks:
            with joined(meeting, name) as share:
                job = _Job(name, data, options, seed, output)
                trained[name] = job.run(share, writes=meeting.rank == 0)
        if meeting.rank > 0:
            return {}
        model = _model(trained, data, genes=genes, types=types, options=options)
        summary = _summary(trained, data, options=options, seed=seed)
        if "counts" in trained and len(data.held_out) >= _FEWEST_FOR_QUALITY:
            summary["quality"] = _quality(model, data, output, seed=seed)
    _write_model(output, model, options=options, summary=summary)
    write_json(output / "summary.json", summary)
    return summary


@contextmanager
def _training_data(
    reference: Path, genes: list[str], types: list[str], *, share: float, seed: int
) -> Iterator[TrainingData]:
    """Yield the panel's counts of all reference cells, in a local file, with their types and the split (worker)."""
    from spatialscope_dist.expression.objectives import TrainingData
    from spatialscope_dist.expression.profiles import reference_profiles, split_cells

    codes = _type_codes(reference, types)
    table = open_counts(reference / "reference.zarr")
    columns: NDArray[np.int64] = positions_in(table.genes, genes)
    with TemporaryDirectory() as folder:
        blocks = (sp.csr_matrix(block[:, columns]) for _, block in table.blocks(_ROWS_AT_ONCE))
        counts = pack_rows(blocks, Path(folder) / "rows", n_genes=len(genes))
        train, held_out = split_cells(codes, share=share, seed=seed)
        profiles = reference_profiles(counts, codes, n_types=len(types), rows=train)
        try:
            yield TrainingData(counts, codes, train, held_out, profiles)
        finally:
            counts.close()


def _type_codes(reference: Path, types: list[str]) -> NDArray[np.int32]:
    """Return the index of each reference cell's type, (cells,); their names are let go of."""
    place = {name: number for number, name in enumerate(types)}
    names = read_frame(reference / "cells.parquet", columns=["cell_type"])["cell_type"]
    return np.fromiter((place[str(name)] for name in names), np.int32, len(names))


@dataclass(frozen=True)
class _Job:
    """The training of one network."""

    name: str
    data: TrainingData
    options: TrainOptions
    seed: int
    output: Path

    def run(self, share: Share, *, writes: bool) -> tuple[Objective, TrainingState]:
        """Return the network's objective and its state after training."""
        from spatialscope_dist.expression.device import working_device
        from spatialscope_dist.expression.objectives import OBJECTIVES
        from spatialscope_dist.expression.training import fit
        from spatialscope_dist.expression.training_state import Hooks, unpack_state

        objective = OBJECTIVES[self.name](self.data, self.options, working_device())
        saved = self.output / f"checkpoint_{self.name}.safetensors"
        state = unpack_state(saved.read_bytes()) if saved.exists() else self._given_start(objective)
        curve = _Curve(
            self.output, self.name, first=self.name == self.options.networks[0], upto=state.step if state else 0
        )
        hooks = Hooks(row=curve.add, checkpoint=curve.save) if writes else None
        done = fit(objective, self.data, self.options, seed=self.seed, state=state, hooks=hooks, share=share)
        return objective, done

    def _given_start(self, objective: Objective) -> TrainingState | None:
        from spatialscope_dist.expression.model import load_model
        from spatialscope_dist.expression.training_state import initial_state

        if self.options.start_from is None:
            return None
        given = load_model(self.options.start_from, _weights_of(self.options.start_from))
        network = given.networks.get(self.name)
        if network is None:
            return None
        if network.shape != objective.shape:
            raise BadInput(
                Problem(
                    "train.start_from",
                    f"a {self.name} network of {network.shape}",
                    f"one of {objective.shape}",
                    "Give a model of the same gene panel, width and blocks, or none.",
                )
            )
        return initial_state({name: np.array(values) for name, values in network.parameters.items()})


def _quality(model: ExpressionModel, data: TrainingData, output: Path, *, seed: int) -> dict[str, Any]:
    """Return how cells drawn from the count denoiser differ from held-out cells; both are kept (worker)."""
    from spatialscope_dist.expression.quality import generate_cells, measure_quality

    random = generator(seed, "quality")
    rows = np.sort(random.choice(data.held_out, min(len(data.held_out), _QUALITY_CELLS), replace=False))
    types = data.types[rows].astype(np.int64)
    by_type = {int(kind): data.train[data.types[data.train] == kind] for kind in np.unique(types)}
    others = np.array([random.choice(by_type[int(kind)]) for kind in types])
    held_out, generated = data.counts[rows].toarray().astype(np.float32), generate_cells(model, types, seed=seed)
    for name, values in (("held_out", held_out), ("generated", generated)):
        write_array(output / f"{name}.zarr", values, axes=("cell", "gene"))
    write_json(output / "quality_types.json", [model.types[kind] for kind in types])
    found = measure_quality(
        held_out,
        types,
        generated=generated,
        training=data.counts[others].toarray().astype(np.float32),
        seed=seed,
    )
    return asdict(found)


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


def _model(
    trained: Trained, data: TrainingData, *, genes: list[str], types: list[str], options: TrainOptions
) -> ExpressionModel:
    from spatialscope_dist.expression.model import ExpressionModel, Network

    return ExpressionModel(
        genes=tuple(genes),
        types=tuple(types),
        networks={name: Network(objective.shape, state.best) for name, (objective, state) in trained.items()},
        noise_range=(options.noise_min, options.noise_max),
        profiles=data.profiles,
        training={},
    )


def _write_model(output: Path, model: ExpressionModel, *, options: TrainOptions, summary: dict[str, Any]) -> None:
    from spatialscope_dist.expression.model import pack_model

    versions = {name: version(name) for name in ("spatialscope_dist", "torch", "numpy", "safetensors")}
    kept = options.model_dump(mode="json", exclude={"checkpoint_every_steps", "processes", "start_from"})
    weights, document = pack_model(replace(model, training=summary | {"options": kept, "versions": versions}))
    write_bytes(output / "weights.safetensors", weights)
    write_json(output / "model.json", document)
