"""Identify on two small sections whose upstream outputs are written by the store's own functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spatialscope_dist.celltypes.signatures import type_signatures
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.stages import identify
from spatialscope_dist.stages.context import Context
from spatialscope_dist.steps.typing_fit import batches, fit_batch
from spatialscope_dist.steps.typing_list import list_cells
from spatialscope_dist.steps.typing_model import prepare_section
from spatialscope_dist.store.arrays import read_array, write_array
from spatialscope_dist.store.counts import write_counts
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame, write_frame
from spatialscope_dist.store.ledger import Entry, Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Facts, SectionFacts, SectionSpec, Study, StudyHead, StudyOptions

TYPES = ["astro", "micro", "neuron", "oligo"]
GENES = [f"g{number:02d}" for number in range(60)]
MEASURED = ["extra", *GENES[::-1][:50], "mt-Nd1"]
SPOTS = 64
QUICK = {"gibbs_sweeps": 20, "gibbs_burn_in": 5}


@dataclass
class Planted:
    """The cells of a simulated section."""

    rows: np.ndarray
    types: np.ndarray
    yx: np.ndarray


def write_reference(folder: Path, means: np.ndarray, random: np.random.Generator) -> None:
    types = np.repeat(np.arange(4), 60)
    counts = sp.csr_matrix(random.poisson(means[types]))
    write_counts(folder / "reference.zarr", counts, [f"c{i}" for i in range(len(types))], GENES)
    signatures = type_signatures([counts], types, 4)
    write_array(folder / "signatures.zarr", signatures.profiles, axes=("type", "gene"))
    sizes = {name: {"cells": 60, "umi": int(signatures.umi[k])} for k, name in enumerate(TYPES)}
    write_json(folder / "types.json", TYPES)
    write_json(folder / "genes.json", GENES)
    write_json(folder / "summary.json", {"types": sizes})


def write_section(folder: Path, means: np.ndarray, random: np.random.Generator, *, nuclei: str) -> Planted:
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2) * 100.0 + 50
    n_cells = random.integers(1, 6, SPOTS)
    n_cells[[3, 9]] = 0, 2
    rows = np.repeat(np.arange(SPOTS), n_cells)
    yx = centres[rows] + random.uniform(-20, 20, (len(rows), 2))
    layer = np.minimum((yx[:, 0] // 200).astype(int), 3)
    types = np.where(random.random(len(rows)) < 0.7, layer, random.integers(0, 4, len(rows)))
    counts = np.zeros((SPOTS, 60), int)
    np.add.at(counts, rows, random.poisson(means[types] * 0.5))
    counts[9] = 0
    shown = np.c_[random.poisson(2, SPOTS), counts[:, ::-1][:, :50], np.zeros(SPOTS, int)]
    shown[9, 0], shown[5] = 9, 0
    ids = [f"spot{number}" for number in range(SPOTS)]
    write_counts(folder / "counts.zarr", sp.csr_matrix(shown), ids, MEASURED)
    spots = pd.DataFrame({"spot_id": ids, "total_counts": shown.sum(1)})
    spots["y_um"], spots["x_um"] = centres.T
    spots["y_px"], spots["x_px"] = centres.T / 0.5
    spots["status"] = np.where(shown.sum(1) < 1, "low_counts", "ok")
    write_frame(folder / "spots.parquet", spots)
    write_json(folder / "section.json", {"pixel_size_um": 0.5})
    if nuclei != "none":
        given = pd.DataFrame({"cell_id": [f"n{i}" for i in range(len(rows))], "spot_id": np.array(ids)[rows]})
        given["y_px"], given["x_px"] = yx.T / 0.5
        given.loc[len(given)] = ["far", None, 9999.0, 9999.0]
        if nuclei != "places":
            given["cell_type"] = [*np.array(TYPES, object)[types], TYPES[0]]
            given.loc[0, "cell_type"] = nuclei if nuclei != "types" else given.loc[0, "cell_type"]
        write_frame(folder / "given_nuclei.parquet", given)
    return Planted(rows, types, yx)


@pytest.fixture(scope="module")
def pool():
    pool = Pool(ClusterSettings(2, 2 * GIB), Events())
    yield pool
    pool.close()


class Case:
    """A study in a folder whose upstream stages are committed."""

    def __init__(self, root: Path, pool: Pool, *, nuclei: str, names: tuple[str, ...] = ("A", "B")) -> None:
        random = np.random.default_rng(7)
        means = random.gamma(0.4, 8.0, (4, 60)) + 0.05
        self.root, self.pool, self.names = root, pool, names
        self.ledger = Ledger(root / "ledger")
        write_reference(self.commit("reference", "study"), means, random)
        self.planted = {}
        for depth, name in enumerate(names):
            self.planted[name] = write_section(self.commit("ingest", name), means, random, nuclei=nuclei)
            transform = {"affine_um": np.eye(3).tolist(), "z_um": 20.0 * depth}
            write_json(self.commit("align", name) / "transform.json", transform)

    def commit(self, stage: str, item: str) -> Path:
        self.ledger.commit(Entry(stage, stage, item, 1, {}, 1, 1))
        return Place(self.root).output(stage, item, stage)

    def context(self, **options: Any) -> Context:
        sections = tuple(
            SectionSpec(name=name, counts=Path("counts.h5ad"), z_um=20.0 * depth if len(self.names) > 1 else None)
            for depth, name in enumerate(self.names)
        )
        study = Study(
            file=self.root / "study.toml",
            output=self.root,
            head=StudyHead(),
            sections=sections,
            reference={"path": Path("reference.h5ad")},
            options=StudyOptions(identify=IdentifyOptions(**{**QUICK, **options})),
        )
        facts = Facts({name: SectionFacts(SPOTS, 52, 3000, 190) for name in self.names}, 240, 60, 4)
        return Context(study, Place(self.root), self.ledger, self.pool, Events(), facts)

    def run(self, folder: str, *, resumed: bool = False, **options: Any) -> tuple[Any, Path]:
        context = self.context(**options)
        (item,) = identify.items(context)
        output = self.root / "work" / "identify" / item / folder
        output.mkdir(parents=True, exist_ok=resumed)
        return identify.run(context, item, output), output


@pytest.fixture(scope="module")
def stack(tmp_path_factory, pool) -> Case:
    return Case(tmp_path_factory.mktemp("stack"), pool, nuclei="places")


@pytest.fixture(scope="module")
def typed(stack):
    return stack.run("first")


def test_run__types_most_cells_and_keeps_those_it_knows_nothing_of(stack, typed):
    outcome, output = typed
    assert outcome.failed == {}
    assert read_json(output / "summary.json")["sections"]["A"]["spots_without_telling_counts"] == 2
    for name in stack.names:
        cells, spots = read_frame(output / name / "cells.parquet"), read_frame(output / name / "spots.parquet")
        truth = stack.planted[name]
        assert cells["spot_row"].tolist() == truth.rows.tolist()
        assert np.allclose(cells[["y_um", "x_um"]], truth.yx)
        assert (cells["cell_type_positional"] == np.array(TYPES)[truth.types]).mean() > 0.7
        assert cells["cell_id"].is_unique
        assert (cells["cell_type"] == cells["cell_type_composition"]).all()
        assert cells["confidence"].between(0, 1).all()
        assert (cells["margin"].dropna() >= 0).all()
        assert spots["status"][[3, 5, 9]].tolist() == ["low_counts", "low_counts", "low_counts"]
        assert spots["n_cells"].tolist() == np.bincount(truth.rows, minlength=SPOTS).tolist()
        shares = read_array(output / name / "proportions.zarr")
        assert np.allclose(shares.sum(1), spots["n_cells"] > 0, atol=1e-6)
        assert np.isnan(read_array(output / name / "weights.zarr")[[5, 9]]).all()
        effect = read_array(output / name / "platform_effect.zarr")
        assert np.isfinite(effect[10:]).all()
        assert np.isnan(effect[:10]).all()


def test_run__summary_and_falling_energy(typed):
    _, output = typed
    summary = read_json(output / "summary.json")
    assert summary["types"] == TYPES
    assert summary["converged"]
    energy = summary["energy"]
    assert len(energy) == summary["n_sweeps"] + 1
    assert all(later <= earlier for earlier, later in zip(energy[:-1], energy[1:], strict=True))
    assert summary["sections"]["A"]["nuclei_outside_spots"] == 1
    assert not (output / ".work").exists()


def test_run__depth_decides_about_neighbours_in_other_sections(stack, typed):
    shares = [read_json(typed[1] / "summary.json")["neighbours_in_other_sections"]]
    for z_scale in (0.0, 50.0):
        _, output = stack.run(f"z-{z_scale}", z_scale=z_scale, gibbs_sweeps=0)
        shares.append(read_json(output / "summary.json")["neighbours_in_other_sections"])
    as_it_is, flat, far = shares
    assert far == 0.0
    assert 0.1 < as_it_is < flat
    assert flat == pytest.approx(0.5, abs=0.1)


def test_run__one_platform_effect_for_all_sections(stack, typed):
    _, output = stack.run("shared", platform_effect="shared")
    shared = [read_array(output / name / "platform_effect.zarr") for name in stack.names]
    own = [read_array(typed[1] / name / "platform_effect.zarr") for name in stack.names]
    assert np.array_equal(*shared, equal_nan=True)
    assert not np.array_equal(*own, equal_nan=True)
    low, high = np.sort(own, axis=0)
    between = (shared[0] >= 0.97 * low) & (shared[0] <= 1.03 * high)
    assert between[10:].mean() > 0.9


def test_inputs__sections_that_share_a_platform_effect_depend_on_each_other(stack):
    own, shared = (identify.inputs(stack.context(platform_effect=kind), "stack") for kind in ("section", "shared"))
    assert own["together"] == []
    assert shared["together"] == ["ingest", "ingest"]


def test_fit_batch__without_a_gpu_the_compiled_kernels_are_used():
    from spatialscope_dist.celltypes.gpu import has_gpu
    from spatialscope_dist.celltypes.weights import fit_weights
    from spatialscope_dist.steps.typing_fit import weights_fitter

    if has_gpu():
        pytest.skip("this machine has a GPU")
    assert weights_fitter(IdentifyOptions(weights_on="gpu")) is fit_weights


@pytest.mark.parametrize("division", [{"n_blocks": 4}, {"batch_spots": 7}, {"n_blocks": 3, "batch_spots": 40}])
def test_run__same_result_for_any_blocks_and_batches(stack, typed, division):
    outcome, output = stack.run("-".join(map(str, division.values())), **division)
    assert outcome.failed == typed[0].failed
    assert read_json(output / "summary.json")["energy"] == read_json(typed[1] / "summary.json")["energy"]
    for name in stack.names:
        for table in ("cells", "spots"):
            pd.testing.assert_frame_equal(
                read_frame(output / name / f"{table}.parquet"),
                read_frame(typed[1] / name / f"{table}.parquet"),
                check_exact=True,
            )
        for array in ("proportions", "weights", "platform_effect"):
            assert np.array_equal(
                read_array(output / name / f"{array}.zarr"),
                read_array(typed[1] / name / f"{array}.zarr"),
                equal_nan=True,
            )


def test_list_cells__batches_of_another_size_leave_the_first_alone(stack, tmp_path):
    tasks = [identify._section_task(stack.context(batch_spots=size), "A", tmp_path) for size in (25, 40)]
    prepare_section(tasks[0])
    for task in tasks:
        for low, high in batches(SPOTS, task.options.batch_spots):
            fit_batch(task, low, high)
    counted = [list_cells(task, task.options.batch_spots) for task in tasks]
    assert counted[0] == counted[1]


def test_inputs__ignore_how_the_work_is_divided(stack):
    assert identify.inputs(stack.context(), "stack") == identify.inputs(
        stack.context(n_blocks=9, batch_spots=3), "stack"
    )
    assert identify.inputs(stack.context(), "stack") != identify.inputs(stack.context(smoothness=1.0), "stack")
    assert identify.plan(stack.context(), "stack").peak_bytes > 0


def test_run__given_types_are_kept(tmp_path, pool):
    case = Case(tmp_path, pool, nuclei="types", names=("A",))
    _, output = case.run("given")
    cells = read_frame(output / "A" / "cells.parquet")
    assert (cells["cell_type"] == np.array(TYPES)[case.planted["A"].types]).all()
    assert (cells["confidence"] == 1).all()
    assert np.isfinite(read_array(output / "A" / "platform_effect.zarr")).any()
    assert np.isfinite(read_array(output / "A" / "weights.zarr")[0]).all()


def test_run__unknown_given_type(tmp_path, pool):
    case = Case(tmp_path, pool, nuclei="purkinje", names=("A",))
    with pytest.raises(BadInput, match="purkinje"):
        case.run("unknown")


def test_run__counts_cells_without_nuclei(tmp_path, pool):
    case = Case(tmp_path, pool, nuclei="none", names=("A",))
    _, output = case.run("counted")
    spots, cells = read_frame(output / "A" / "spots.parquet"), read_frame(output / "A" / "cells.parquet")
    planted = np.bincount(case.planted["A"].rows, minlength=SPOTS)
    usable = spots["status"] == "ok"
    assert (spots["n_cells"][usable] >= 1).all()
    assert spots["n_cells"][5] == 0
    assert np.corrcoef(spots["n_cells"][usable], planted[usable])[0, 1] > 0.5
    assert len(cells) == spots["n_cells"].sum()
    assert cells["nucleus_id"].isna().all()
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2) * 100.0 + 50
    offset = np.linalg.norm(cells[["y_um", "x_um"]].to_numpy() - centres[cells["spot_row"]], axis=1)
    assert offset.max() <= 27.5
