"""Train and decompose on a small study whose upstream outputs are written by the store's own functions."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import BLENDS
from spatialscope_dist.expression.objectives import OBJECTIVES
from spatialscope_dist.expression.process_exchange import Meeting
from spatialscope_dist.expression.training import fit
from spatialscope_dist.expression.training_state import Hooks, pack_state
from spatialscope_dist.options import DecomposeOptions, TrainOptions
from spatialscope_dist.stages import decompose, train
from spatialscope_dist.stages.context import Context
from spatialscope_dist.stages.decompose import SectionTask
from spatialscope_dist.store.arrays import read_array, write_array
from spatialscope_dist.store.counts import write_counts
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame, write_frame
from spatialscope_dist.store.ledger import Entry, Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Facts, SectionFacts, Study

TYPES = ["astro", "micro", "neuron"]
GENES = [f"g{number:02d}" for number in range(40)]
SECTION_GENES = ["extra", *GENES[::-1][:36]]  # other order, four genes missing, one unknown
TRAIN = TrainOptions(
    width=24,
    n_blocks=1,
    max_steps=60,
    score_steps=60,
    batch_cells=64,
    check_every_steps=20,
    checkpoint_every_steps=20,
    patience_checks=9,
)
DECOMPOSE = DecomposeOptions(n_steps=3, n_chains=3, calibration_spots=20, rows_per_shard=32)
UNTYPED_SPOT = 7


def write_reference(folder: Path, random: np.random.Generator) -> np.ndarray:
    means = random.gamma(0.8, 3.0, (3, len(GENES))) + 0.05
    types = np.repeat(np.arange(3), 70)
    counts = sp.csr_matrix(random.poisson(means[types] * random.gamma(6, 1 / 6, (len(types), 1))))
    write_counts(folder / "reference.zarr", counts, [f"c{number}" for number in range(len(types))], GENES)
    names = [TYPES[kind] for kind in types]
    write_frame(
        folder / "cells.parquet", pd.DataFrame({"cell_id": np.arange(len(types)).astype(str), "cell_type": names})
    )
    write_json(folder / "types.json", TYPES)
    write_json(folder / "genes.json", GENES)
    write_json(folder / "panel.json", {"genes": GENES[2:]})
    return means


def write_section(ingest: Path, identify: Path, means: np.ndarray, random: np.random.Generator) -> None:
    n_cells = random.integers(0, 5, 60)
    n_cells[UNTYPED_SPOT] = 2
    rows, types = np.repeat(np.arange(60), n_cells), random.integers(0, 3, n_cells.sum())
    truth = random.poisson(means[types])
    totals = np.zeros((60, len(GENES)), int)
    np.add.at(totals, rows, truth)
    measured = np.c_[random.poisson(3, 60), random.binomial(totals, 0.5)[:, ::-1][:, :36]]
    ids = [f"spot{number}" for number in range(60)]
    write_counts(ingest / "counts.zarr", sp.csr_matrix(measured), ids, SECTION_GENES)
    write_frame(ingest / "spots.parquet", pd.DataFrame({"spot_id": ids, "status": "ok"}))
    names = np.array(TYPES, dtype=object)[types]
    names[rows == UNTYPED_SPOT] = None
    cells = pd.DataFrame({"cell_id": np.arange(len(rows)).astype(str), "spot_row": rows, "cell_type": names})
    write_frame(identify / "cells.parquet", cells)
    effect = np.where(np.isin(GENES, SECTION_GENES), 1.0, np.nan)
    effect[5] = 0.5
    write_array(identify / "platform_effect.zarr", effect, axes=("gene",))


@dataclass(frozen=True)
class Small:
    """Folders of the upstream outputs."""

    reference: Path
    ingest: Path
    identify: Path
    model: Path

    def task(self, output: Path, options: DecomposeOptions = DECOMPOSE) -> SectionTask:
        sha = read_json(self.model / "model.json")["weights_sha256"]
        return SectionTask("A", self.ingest, self.identify, self.reference, self.model, sha, output, options, 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    root = tmp_path_factory.mktemp("small")
    folders = Small(root / "reference", root / "ingest", root / "identify", root / "model")
    random = np.random.default_rng(0)
    means = write_reference(folders.reference, random)
    write_section(folders.ingest, folders.identify, means, random)
    train.train_model(reference=folders.reference, output=folders.model, options=TRAIN, seed=0)
    return folders


def decompose_all(task: SectionTask) -> dict[str, np.ndarray]:
    n_cells = decompose.prepare_section(task=task)["n_cells"]
    rows = task.options.rows_per_shard
    shards = range(0, n_cells, rows)
    for low in reversed(shards):
        decompose.decompose_rows(task=task, low=low, high=min(low + rows, n_cells))
    decompose._join_spots(task, [f"rows_{rows}_{low // rows:06d}" for low in shards])
    names = ("mean", *read_json(task.output / "layers.json"))
    return {name: read_array(task.output / f"{name}.zarr") for name in names}


def test_train_model__leaves_a_whole_model(small):
    document = read_json(small.model / "model.json")
    assert document["genes"] == GENES[2:]
    assert document["types"] == TYPES
    assert np.array(document["mu"]).shape == (3, 38)
    assert document["training"]["versions"]["torch"]
    rows = [json.loads(line) for line in (small.model / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    assert set(rows[0]) == {"step", "loss", "held_out", "seconds"}


def test_train_model__a_killed_run_goes_on_to_the_same_bytes(small, tmp_path):
    saved = []
    with train._training_data(small.reference, GENES[2:], TYPES, share=TRAIN.held_out, seed=0) as data:
        objective = OBJECTIVES["counts"](data, TRAIN, torch.device("cpu"))
        fit(objective, data, TRAIN, seed=0, hooks=Hooks(checkpoint=lambda state: saved.append(pack_state(state))))
    (tmp_path / "checkpoint_counts.safetensors").write_bytes(saved[1])  # killed after step 40, before the other network
    shutil.copy(small.model / "training.jsonl", tmp_path)
    train.train_model(reference=small.reference, output=tmp_path, options=TRAIN, seed=0)
    for name in ("weights.safetensors", "model.json", "checkpoint_counts.safetensors", "checkpoint_score.safetensors"):
        assert (tmp_path / name).read_bytes() == (small.model / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 61, 5))


def test_train_model__two_processes_give_the_same_bytes(small, tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(
            target=train.train_model,
            kwargs={
                "reference": small.reference,
                "output": tmp_path,
                "options": TRAIN,
                "seed": 0,
                "meeting": Meeting(tmp_path / "meeting", rank, 2),
            },
        )
        for rank in (0, 1)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(300)
    assert [job.exitcode for job in jobs] == [0, 0]
    for name in ("weights.safetensors", "checkpoint_counts.safetensors", "checkpoint_score.safetensors"):
        assert (tmp_path / name).read_bytes() == (small.model / name).read_bytes()


def test_train_model__goes_on_from_a_given_model(small, tmp_path):
    options = TRAIN.model_copy(update={"start_from": small.model, "max_steps": 5, "score_steps": 5})
    train.train_model(reference=small.reference, output=tmp_path, options=options, seed=0)
    first = json.loads((tmp_path / "training.jsonl").read_text().splitlines()[0])
    cold = json.loads((small.model / "training.jsonl").read_text().splitlines()[0])
    assert first["step"] == cold["step"] == 5
    assert first["held_out"] < cold["held_out"]
    other = options.model_copy(update={"width": 32})
    with pytest.raises(BadInput, match=r"train\.start_from"):
        train.train_model(reference=small.reference, output=tmp_path / "other", options=other, seed=0)


@pytest.mark.parametrize("estimator", ["counts", "score", "shrinkage", "counts+proportional"])
def test_decompose_rows__same_bytes_for_any_shard_size(small, tmp_path, estimator):
    results = []
    for rows in (16, 23, 4096):
        options = DECOMPOSE.model_copy(update={"rows_per_shard": rows, "estimator": estimator})
        task = small.task(tmp_path / str(rows), options)
        results.append(decompose_all(task) | {"spots": read_frame(task.output / "spots.parquet")})
    for other in results[1:]:
        for name in ("mean", "sd", "q05", "q95"):
            assert np.array_equal(other[name], results[0][name], equal_nan=True), name
        pd.testing.assert_frame_equal(other["spots"], results[0]["spots"])


def test_decompose_rows__cells_exposures_and_spots(small, tmp_path):
    task = small.task(tmp_path)
    prepared = decompose.prepare_section(task=task)
    assert set(prepared["candidates"]) == {*BASELINES, "counts", "score", *BLENDS}
    assert prepared["genes"] == 38
    assert prepared["measured_genes"] == 36
    assert 0.4 < prepared["capture"] < 0.6
    mean = decompose_all(task)["mean"]
    cells, spots = read_frame(small.identify / "cells.parquet"), read_frame(tmp_path / "spots.parquet")
    untyped = cells["cell_type"].isna().to_numpy()
    assert np.isnan(mean[untyped]).all()
    assert np.isfinite(mean[~untyped]).all()
    assert (mean[~untyped] >= 0).all()
    has_cells = np.bincount(cells["spot_row"], minlength=60) > 0
    assert spots["spot_id"].tolist() == [f"spot{number}" for number in range(60)]
    assert (spots["status"] == np.where(has_cells, "ok", "no_cells")).drop(UNTYPED_SPOT).all()
    assert spots["status"][UNTYPED_SPOT] == "untyped"
    assert spots["residual"][has_cells].drop(UNTYPED_SPOT).notna().all()
    measured = read_json(tmp_path / "measured.json")
    assert measured == [gene in SECTION_GENES for gene in GENES[2:]]
    exposure = read_array(tmp_path / "exposure.zarr")
    assert np.isclose(exposure[3] / exposure[4], 0.5)  # the platform effect of g05
    assert (exposure[~np.array(measured)] == 0).all()


def test_decompose_rows__quantiles_are_off_the_mean_on_both_sides(small, tmp_path):
    found = decompose_all(small.task(tmp_path / "with"))
    typed = np.isfinite(found["mean"])
    assert np.array_equal(np.isfinite(found["q05"]), typed)
    assert (found["q05"][typed] <= np.ceil(found["mean"][typed])).all()
    assert (found["q95"][typed] >= np.floor(found["mean"][typed])).all()
    assert (found["q05"][typed] < found["q95"][typed]).mean() > 0.3
    none = small.task(tmp_path / "without", DECOMPOSE.model_copy(update={"quantiles": ()}))
    without = decompose_all(none)
    assert set(without) == {"mean", "sd"}
    assert all(np.array_equal(without[name], found[name], equal_nan=True) for name in without)


def test_decompose_rows__a_failed_spot_is_a_status(small, tmp_path):
    # Algorithm 1 without its clips diverges on counts.
    unclipped = {"estimator": "score", "sampler": "langevin", "langevin_clip": False, "langevin_levels": 20}
    task = small.task(tmp_path, DECOMPOSE.model_copy(update=unclipped))
    n_cells = decompose.prepare_section(task=task)["n_cells"]
    done = [decompose.decompose_rows(task=task, low=low, high=min(low + 32, n_cells)) for low in range(0, n_cells, 32)]
    decompose._join_spots(task, [f"rows_32_{number:06d}" for number in range(len(done))])
    failed = {spot: reason for part in done for spot, reason in part["failed"].items()}
    assert failed
    assert all("not a number" in reason for reason in failed.values())
    spots = read_frame(tmp_path / "spots.parquet").set_index("spot_id")
    assert set(spots.index[spots["status"].str.startswith("failed")]) == set(failed)
    assert spots.loc[list(failed), "residual"].isna().all()
    cells = read_frame(small.identify / "cells.parquet")
    of_failed = cells["spot_row"].isin([int(spot.removeprefix("spot")) for spot in failed]).to_numpy()
    for name in ("mean", "sd", "q05", "q95"):
        assert np.isnan(read_array(tmp_path / f"{name}.zarr")[of_failed]).all()


def context_of(small: Small, root: Path, pool: Pool, options: DecomposeOptions) -> Context:
    place, ledger = Place(root), Ledger(Place(root).ledger)
    section = {"name": "A", "counts": Path("a.h5ad")}
    study = Study.model_validate(
        {
            "file": root / "study.toml",
            "output": root,
            "head": {"name": "small"},
            "sections": (section,),
            "reference": {"path": root / "reference.h5ad"},
            "options": {"train": TRAIN, "decompose": options},
        }
    )
    for stage, item, folder in (("reference", "study", small.reference), ("ingest", "A", small.ingest)):
        _commit(ledger, place, stage, item, folder)
    _commit(ledger, place, "identify", "A", small.identify, below="A")
    facts = Facts({"A": SectionFacts(60, 37, 60 * 20, 130)}, 210, 40, 3)
    return Context(study, place, ledger, pool, pool.events, facts)


def _commit(ledger: Ledger, place: Place, stage: str, item: str, folder: Path, below: str = "") -> None:
    key = f"{stage}-{item}"
    output = place.output(stage, item, key)
    if not output.exists():
        shutil.copytree(folder, output / below)
    ledger.commit(Entry(key, stage, item, 1, {}, 1, 1))


@pytest.mark.local_cluster
def test_run__train_and_decompose_on_a_worker(small, tmp_path, pool):
    context = context_of(small, tmp_path, pool, DECOMPOSE)
    for stage, item in ((train, "study"), (decompose, "A")):
        assert stage.items(context) == [item]
        assert stage.skip_reason(context, item) is None
        key = f"{stage.NAME}-key"
        output = context.place.output(stage.NAME, item, key)
        output.mkdir(parents=True)
        pool.take_cost()
        outcome = stage.run(context, item, output)
        peak, planned = pool.take_cost().peak_rss_bytes, stage.plan(context, item)
        assert peak <= planned.peak_bytes <= 3 * peak
        assert outcome.done == outcome.total
        assert not outcome.failed
        context.ledger.commit(Entry(key, stage.NAME, item, 1, stage.inputs(context, item), outcome.done, outcome.total))
        assert stage.run(context, item, output) == outcome  # every unit is committed: nothing runs again
        assert pool.take_cost().units_run == 0
    assert (context.place.model / "weights.safetensors").read_bytes() == (
        small.model / "weights.safetensors"
    ).read_bytes()
    alone = decompose_all(small.task(tmp_path / "alone"))
    assert np.array_equal(read_array(output / "mean.zarr"), alone["mean"], equal_nan=True)


@pytest.mark.local_cluster
def test_run__shard_size_changed_and_changed_back_between_interruptions(small, tmp_path, pool):
    context = context_of(small, tmp_path, pool, DECOMPOSE)
    _commit(context.ledger, context.place, "train", "study", small.model)
    output = context.place.output("decompose", "A", "key")
    output.mkdir(parents=True)
    decompose.run(context, "A", output)
    whole = read_array(output / "mean.zarr")
    other = context_of(small, tmp_path, pool, DECOMPOSE.model_copy(update={"rows_per_shard": 23}))
    units = context.ledger.units("decompose", "A", output)
    unit = {"prepare_23": {"task": decompose._task(other, "A", output)}}
    pool.map(decompose.prepare_section, unit, ledger_units=units, framework="torch")  # killed after this
    decompose.run(context, "A", output)
    assert np.array_equal(read_array(output / "mean.zarr"), whole, equal_nan=True)
    assert np.isfinite(whole).any()


def test_inputs__hold_no_option_that_only_divides_the_work(small, tmp_path, pool):
    base = context_of(small, tmp_path, pool, DECOMPOSE)
    divided = context_of(small, tmp_path, pool, DECOMPOSE.model_copy(update={"rows_per_shard": 64}))
    other = context_of(small, tmp_path, pool, DECOMPOSE.model_copy(update={"n_chains": 4}))
    assert decompose.inputs(base, "A") == decompose.inputs(divided, "A") != decompose.inputs(other, "A")
    assert "checkpoint_every_steps" not in train.inputs(base, "study")["options"]
