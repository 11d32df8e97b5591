"""Real references split into training and test cells, spots simulated from the test cells, and their scores."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp

from spatialscope_dist.expression.allocation import SpotCells
from spatialscope_dist.expression.baselines import capture_estimate, exposures
from spatialscope_dist.expression.choice import Choice, Rehearsal, choose, draw_cells, random_compositions, rehearse
from spatialscope_dist.expression.device import working_device
from spatialscope_dist.expression.model import ExpressionModel, Network, pack_model, unpack_model
from spatialscope_dist.expression.noise import chain_keys
from spatialscope_dist.expression.objectives import OBJECTIVES, TrainingData
from spatialscope_dist.expression.profiles import reference_profiles, split_cells
from spatialscope_dist.expression.training import fit
from spatialscope_dist.options import DecomposeOptions, TrainOptions
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.steps.rehearsal import draw_compositions


@dataclass(frozen=True)
class Source:
    """A labelled data set: its file, the share of test cells, spots per stratum, and what is measured on it."""

    file: str
    test_share: float
    spots_per_m: int
    captures: tuple[float, ...]
    wrong_labels: tuple[float, ...] = (0.0,)


SOURCES = {
    "mop": Source("reference/ref_mop_snrna.h5ad", 0.25, 40, (1.0, 0.5, 0.2), (0.0, 0.1)),
    "seqfish": Source("spatial/seqfishplus_cortex_svz.h5ad", 0.35, 20, (1.0, 0.2)),
    "starmap": Source("spatial/starmap_visp_BY3.h5ad", 0.35, 20, (1.0, 0.2)),
}


def load_scorer(data: Path) -> ModuleType:
    """Return the scorer beside the data folder."""
    spec = importlib.util.spec_from_file_location(
        "score_decomposition", data.parent / "score" / "score_decomposition.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Split:
    """Training cells and test cells of a source, one panel of genes."""

    data: TrainingData
    types: list[str]
    test: Any


def split_source(scorer: ModuleType, source: Source, data: Path, *, seed: int = 0) -> Split:
    """Return training and test cells as the scorer divides them."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = anndata.read_h5ad(data / source.file)
        table.obs_names_make_unique()
    train, test = scorer.split_cells(table, seed, source.test_share)
    genes = scorer.select_genes(table[train])
    counts = sp.csr_matrix(scorer.dense_counts(table[train][:, genes]))
    labels = table.obs["cell_type"].astype(str).to_numpy()[train]
    types, codes = np.unique(labels, return_inverse=True)
    kept, held_out = split_cells(codes, share=TrainOptions().held_out, seed=seed)
    profiles = reference_profiles(counts, codes, n_types=len(types), rows=kept)
    return Split(TrainingData(counts, codes, kept, held_out, profiles), types.tolist(), table[test][:, genes].copy())


def train_model(split: Split, options: TrainOptions, *, seed: int = 0) -> tuple[ExpressionModel, dict[str, Any]]:
    """Return the trained model, and CPU seconds and best step of each network."""
    networks, cost = {}, {}
    for name in options.networks:
        objective, started = OBJECTIVES[name](split.data, options, working_device()), time.process_time()
        state = fit(objective, split.data, options, seed=seed)
        networks[name] = Network(objective.shape, state.best)
        cost[name] = {
            "cpu_seconds": round(time.process_time() - started, 1),
            "steps": state.step,
            "best_step": state.best_step,
            "weights": objective.shape.n_parameters(),
        }
    genes = tuple(map(str, range(split.data.counts.shape[1])))
    noise = (options.noise_min, options.noise_max)
    return ExpressionModel(genes, tuple(split.types), networks, noise, split.data.profiles, {"seed": seed}), cost


def write_model(model: ExpressionModel, folder: Path) -> None:
    """Write a model to a folder."""
    weights, document = pack_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "model.json").write_text(json.dumps(document))


def read_model(folder: Path) -> ExpressionModel:
    """Return the model in a folder."""
    return unpack_model((folder / "weights.safetensors").read_bytes(), json.loads((folder / "model.json").read_text()))


def spots_of(simulated: Any, split: Split) -> SpotCells:
    """Return the simulated spots as decompose sees them: labels as given, capture estimated."""
    n_genes, profiles = simulated.y.shape[1], split.data.profiles
    types = np.array([split.types.index(name) for name in simulated.label], np.int64)
    of_type = np.bincount(types, minlength=len(split.types)).astype(np.float64)
    effect = np.ones(n_genes, np.float32)
    capture = capture_estimate(simulated.y.sum(axis=0), of_type, profiles=profiles, effect=effect)
    first = np.r_[0, np.cumsum(np.bincount(simulated.spot))].astype(np.int64)
    keys = chain_keys(0, spot_keys("benchmark", map(str, range(len(simulated.y)))))
    return SpotCells(simulated.y, first, types, keys, exposures(capture, effect))


def rehearsal_of(spots: SpotCells, split: Split, *, seed: int = 0) -> Rehearsal:
    """Return spots like these made of held-out training cells, as `steps.rehearsal` makes them for a section."""
    data, options = split.data, DecomposeOptions()
    random = np.random.default_rng(seed)
    asked = draw_compositions(spots.spot, spots.types, n_spots=options.calibration_spots, random=random)
    drawn = draw_cells(asked, data.held_out, data.types, seed=seed)
    if len(drawn) < 10:
        sizes = [len(composition) for composition in asked]
        more = random_compositions(sizes, data.held_out, data.types, seed=seed)
        drawn += draw_cells(more, data.held_out, data.types, seed=seed)
    rows, n_cells = np.concatenate(drawn), np.array([len(cells) for cells in drawn])
    counts = data.counts[rows].toarray().astype(np.float32)
    return rehearse(counts, data.types[rows], n_cells=n_cells, exposure=spots.exposure, seed=seed)


def choose_for(spots: SpotCells, split: Split, model: ExpressionModel) -> Choice:
    """Return what `decompose.estimator = "auto"` chooses for these spots."""
    return choose(rehearsal_of(spots, split), model, DecomposeOptions())
