"""Decomposition when what it is told is wrong or unusual: the default beside all baselines.

`python -m benchmarks.expression_robustness` writes results/expression_robustness.json: numbers of cells off by a fifth,
types of other frequencies than the reference's, one to twelve cells a spot, and a reference of another technology.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks.expression_accuracy import about
from benchmarks.expression_data import (
    SOURCES,
    Split,
    choose_for,
    load_scorer,
    read_model,
    split_source,
    spots_of,
    train_model,
)
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import estimate_all
from spatialscope_dist.expression.model import ExpressionModel
from spatialscope_dist.expression.objectives import TrainingData
from spatialscope_dist.expression.profiles import reference_profiles, split_cells
from spatialscope_dist.expression.residual_network import settle_torch
from spatialscope_dist.options import DecomposeOptions, TrainOptions

HERE = Path(__file__).parent
CAPTURES = (1.0, 0.2)
TRAINING = TrainOptions(networks=("counts",))
FEWEST_OF_TYPE = 10  # training cells left of every second type


@dataclass(frozen=True)
class Case:
    """Simulated spots, and the cells that methods are told of: spot and label of each."""

    name: str
    simulated: Any
    spot: NDArray[np.int64]
    label: NDArray[Any]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, help="folder of `expression_accuracy --keep`: mop is not trained again")
    models = parser.parse_args().models
    if "SPATIALSCOPE_DATA" not in os.environ:
        sys.exit("SPATIALSCOPE_DATA is not set: real data is not available")
    settle_torch()
    data = Path(os.environ["SPATIALSCOPE_DATA"])
    scorer = load_scorer(data)
    results = about("expression_robustness") | {"cases": []}
    kept = None if models is None else read_model(models / "mop")
    for part in (
        on_one_source(scorer, data, kept),
        across_technologies(scorer, data),
        with_few_of_a_type(scorer, data),
    ):
        for row in part:
            results["cases"].append(row)
            print(json.dumps(row), flush=True)
            (HERE / "results" / "expression_robustness.json").write_text(json.dumps(results, indent=1) + "\n")


def on_one_source(scorer: ModuleType, data: Path, kept: ExpressionModel | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of mop: reference and spots of one data set."""
    split = split_source(scorer, SOURCES["mop"], data)
    model = (
        train_model(split, TRAINING)[0] if kept is None else replace(kept, networks={"counts": kept.networks["counts"]})
    )
    for capture in CAPTURES:
        usual = scorer.simulate_spots(split.test, seed=1, capture=capture, spots_per_m=20, same_spots_per_m=20)
        evenly = one_per_type(split.test, at_most=10)
        mostly = dominated(split.test, share=0.8)
        cases = [
            told_rightly("as the accuracy table", usual),
            cells_lost(usual, share=0.2),
            cells_added(usual, share=0.2),
            told_rightly("types equally frequent", spots_from(scorer, evenly, capture)),
            told_rightly("four fifths of one type", spots_from(scorer, mostly, capture)),
        ]
        cases += [
            told_rightly(f"{m} cells a spot", spots_from(scorer, split.test, capture, sizes=(m,)))
            for m in (2, 4, 8, 12)
        ]
        for case in cases:
            yield {"case": case.name, "capture": capture} | measure(scorer, case, split, model)


def with_few_of_a_type(scorer: ModuleType, data: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of mop with every second type cut down in the reference."""
    whole = split_source(scorer, SOURCES["mop"], data)
    types, random = whole.data.types, np.random.default_rng(0)
    kept = np.ones(len(types), bool)
    for kind in range(0, len(whole.types), 2):
        mine = random.permutation(np.flatnonzero(types == kind))
        kept[mine[FEWEST_OF_TYPE:]] = False
    split = resplit(whole.data.counts[np.flatnonzero(kept)], types[kept], whole.types, whole.test)
    model, _ = train_model(split, TRAINING)
    for capture in CAPTURES:
        case = told_rightly("every second type has ten reference cells", spots_from(scorer, whole.test, capture))
        yield {"case": case.name, "capture": capture} | measure(scorer, case, split, model)


def across_technologies(scorer: ModuleType, data: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of spots of MERFISH cells with a droplet reference, and with MERFISH of another slice."""
    import anndata

    cells = anndata.read_h5ad(data / "spatial/merfish_mpoa_bregma_m0.29.h5ad")
    for name, file in (
        ("MERFISH spots, scRNA-seq reference", "reference/ref_mpoa_scrna.h5ad"),
        ("MERFISH spots, MERFISH reference of another slice", "spatial/merfish_mpoa_bregma_0.06.h5ad"),
    ):
        reference = anndata.read_h5ad(data / file)
        split = unpaired(scorer, reference, cells)
        model, _ = train_model(split, TRAINING)
        for capture in CAPTURES:
            case = told_rightly(name, spots_from(scorer, split.test, capture))
            yield {"case": case.name, "capture": capture} | measure(scorer, case, split, model, effect=True)


def spots_from(scorer: ModuleType, cells: Any, capture: float, *, sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> Any:
    """Return spots of these numbers of cells, as the accuracy table's but smaller."""
    same = {"same_m": ()} if len(sizes) == 1 else {"same_spots_per_m": 20}
    return scorer.simulate_spots(cells, seed=1, capture=capture, m_values=sizes, spots_per_m=20, **same)


def told_rightly(name: str, simulated: Any) -> Case:
    """Return the case that methods are told every cell."""
    return Case(name, simulated, simulated.spot, simulated.label)


def cells_lost(simulated: Any, *, share: float) -> Case:
    """Return the case that this share of the cells is not told; every spot keeps its first."""
    random = np.random.default_rng(3)
    first = np.r_[True, simulated.spot[1:] != simulated.spot[:-1]]
    kept = first | (random.random(len(first)) >= share * len(first) / (~first).sum())
    return Case("a fifth of the cells not counted", simulated, simulated.spot[kept], simulated.label[kept])


def cells_added(simulated: Any, *, share: float) -> Case:
    """Return the case that this share of cells too many is told, of a type of the same spot."""
    random = np.random.default_rng(4)
    extra = np.flatnonzero(random.random(len(simulated.spot)) < share)
    partner = np.array([random.choice(np.flatnonzero(simulated.spot == simulated.spot[cell])) for cell in extra])
    spot = np.r_[simulated.spot, simulated.spot[extra]]
    label = np.r_[simulated.label, simulated.label[partner]]
    order = np.argsort(spot, kind="stable")
    return Case("a fifth of cells too many", simulated, spot[order], label[order])


def one_per_type(cells: Any, *, at_most: int) -> Any:
    """Return cells of which every type has at most so many."""
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    return cells[np.sort(np.concatenate([np.flatnonzero(labels == kind)[:at_most] for kind in np.unique(labels)]))]


def dominated(cells: Any, *, share: float) -> Any:
    """Return cells of which this share is of the commonest type."""
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    kinds, sizes = np.unique(labels, return_counts=True)
    most = np.flatnonzero(labels == kinds[sizes.argmax()])
    others = np.random.default_rng(5).permutation(np.flatnonzero(labels != kinds[sizes.argmax()]))
    return cells[np.sort(np.r_[most, others[: round(len(most) * (1 - share) / share)]])]


def resplit(counts: sp.csr_matrix, types: NDArray[np.integer], names: list[str], test: Any) -> Split:
    """Return a split of given training cells."""
    kept, held_out = split_cells(types, share=TrainOptions().held_out, seed=0)
    profiles = reference_profiles(counts, types, n_types=len(names), rows=kept)
    return Split(TrainingData(counts, types, kept, held_out, profiles), names, test)


def unpaired(scorer: ModuleType, reference: Any, cells: Any) -> Split:
    """Return one data set to train on and cells of another to make spots of: shared genes, shared broad types."""
    genes = [gene for gene in reference.var_names if gene in set(cells.var_names)]
    kinds = sorted(set(reference.obs["cell_type_broad"].astype(str)) & set(cells.obs["cell_type_broad"].astype(str)))
    tables = []
    for table in (reference, cells):
        mine = table[:, genes][table.obs["cell_type_broad"].astype(str).isin(kinds).to_numpy()].copy()
        mine.obs["cell_type"] = mine.obs["cell_type_broad"].astype(str)
        tables.append(mine[np.asarray(mine.X.sum(axis=1)).ravel() >= 10].copy())
    codes = np.array([kinds.index(name) for name in tables[0].obs["cell_type"]], np.int64)
    return resplit(sp.csr_matrix(scorer.dense_counts(tables[0])), codes, kinds, tables[1])


def measure(
    scorer: ModuleType, case: Case, split: Split, model: ExpressionModel, *, effect: bool = False
) -> dict[str, Any]:
    """Return the scores of the default and of every baseline on the same spots."""
    told = replace(case.simulated, spot=case.spot, label=case.label)
    spots = spots_of(told, split)
    if effect:
        spots = replace(spots, exposure=gene_exposures(told, split))
    choice = choose_for(spots, split, model)
    means = estimate_all(spots, model, DecomposeOptions(), names=sorted({*BASELINES, choice.estimator}))
    # Another technology's counts are the reference's times the exposure.
    scale = np.where(spots.exposure > 0, spots.exposure, 1.0) if effect else np.float32(1)
    scores = {name: score(scorer, case, mean * scale) for name, mean in means.items()}
    best = max(BASELINES, key=lambda name: scores[name]["cosine"])
    gain = scores[choice.estimator]["cosine"] - scores[best]["cosine"]
    return {"auto": choice.estimator, "best_baseline": best, "gain": round(gain, 4), "scores": scores}


def gene_exposures(told: Any, split: Split) -> NDArray[np.float32]:
    """Return counts per reference count of every gene, (genes,), from the labels; few counts are shrunk to all genes.

    In a study the platform effect comes from typing (eq. (5)); this is its share that given labels leave.
    """
    of_type = np.array([(told.label == name).sum() for name in split.types], np.float64)
    expected = of_type @ split.data.profiles.mean_counts.astype(np.float64)
    seen = told.y.sum(axis=0).astype(np.float64)
    overall = seen.sum() / expected.sum()
    return ((seen + 20 * overall) / (expected + 20)).astype(np.float32)


def score(scorer: ModuleType, case: Case, mean: Any) -> dict[str, float]:
    """Return the scorer's numbers over the cells that share their spot, each beside the estimate it is matched to."""
    simulated = case.simulated
    several = simulated.m > 1 if (simulated.m > 1).any() else np.ones(len(simulated.m), bool)
    cells, estimates = matched(mean, case)
    used = several[cells]
    cells, estimates = cells[used], estimates[used]
    alone = np.arange(len(cells)).astype(str)  # matched already: no two are exchangeable
    labels = simulated.label_true[cells]
    found = scorer.score_cells(mean[estimates], simulated.truth[cells], simulated.spot[cells], alone, labels)
    return {key: round(float(found[key]), 4) for key in ("cosine", "r_within", "r_within_norm")}


def matched(mean: Any, case: Case) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return pairs (true cell, estimated cell) of one spot and label, of the largest sum of cosines."""
    unit = [
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (case.simulated.truth, mean)
    ]
    groups: dict[tuple[int, str], tuple[list[int], list[int]]] = {}
    for side, (spot, label) in enumerate(((case.simulated.spot, case.simulated.label), (case.spot, case.label))):
        for number, key in enumerate(zip(spot.tolist(), label.tolist(), strict=True)):
            groups.setdefault(key, ([], []))[side].append(number)
    pairs = []
    for true, estimated in groups.values():
        if true and estimated:
            row, column = linear_sum_assignment(-(unit[0][true] @ unit[1][estimated].T))
            pairs += list(zip(np.array(true)[row], np.array(estimated)[column], strict=True))
    pairs.sort()
    return np.array([one for one, _ in pairs]), np.array([other for _, other in pairs])


if __name__ == "__main__":
    main()
