from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from spatialscope_dist.downstream.ligand_receptor import (
    ContactGroups,
    contact_graph,
    count_expressing,
    find_contacts,
    normalise,
    p_values,
    permute_within_types,
    score_interactions,
    summarise_null,
    tabulate_interactions,
)
from spatialscope_dist.randomness import spot_keys

N_TYPES = 3
LIGANDS, RECEPTORS = np.array([0, 2, 4]), np.array([1, 3, 5])


def section(seed: int, cells: int = 300) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    keys = spot_keys("s", [f"cell{index}" for index in range(cells)])
    return rng.uniform(0, 200, (cells, 2)), rng.integers(0, N_TYPES, cells), keys


def contacts(positions: NDArray[np.float64], types: NDArray[np.int64]) -> ContactGroups:
    return find_contacts(contact_graph(positions, max_edge_um=40), types, n_types=N_TYPES, min_cells=10)


def test_contact_graph__symmetric_short_and_the_same_for_any_order() -> None:
    positions, _, _ = section(0)
    graph = contact_graph(positions, max_edge_um=25)
    assert (graph != graph.T).nnz == 0
    rows, columns = graph.nonzero()
    assert np.linalg.norm(positions[rows] - positions[columns], axis=1).max() <= 25
    order = np.random.default_rng(1).permutation(len(positions))
    assert (contact_graph(positions[order], max_edge_um=25) != graph[order][:, order]).nnz == 0


@pytest.mark.parametrize("positions", [np.zeros((0, 2)), np.ones((2, 2)), np.c_[np.arange(9.0), np.arange(9.0)]])
def test_contact_graph__too_few_or_collinear_cells_touch_nobody(positions: NDArray[np.float64]) -> None:
    assert contact_graph(positions, max_edge_um=50).nnz == 0


def test_score_interactions__scalar_reference() -> None:
    positions, types, _ = section(2, cells=80)
    graph = contact_graph(positions, max_edge_um=40).toarray()
    groups = find_contacts(contact_graph(positions, max_edge_um=40), types, n_types=N_TYPES, min_cells=1)
    expression = np.random.default_rng(3).gamma(1, 1, (80, 6))
    scores = score_interactions(groups, expression, LIGANDS, RECEPTORS)
    assert len(groups.types) == N_TYPES**2
    for (own, other), row in zip(groups.types, scores, strict=True):
        left = [c for c in range(80) if types[c] == own and any(graph[c, d] and types[d] == other for d in range(80))]
        right = [c for c in range(80) if types[c] == other and any(graph[c, d] and types[d] == own for d in range(80))]
        for pair in range(3):
            ligand = sum(expression[c, LIGANDS[pair]] for c in left) / len(left)
            receptor = sum(expression[c, RECEPTORS[pair]] for c in right) / len(right)
            assert row[pair] == pytest.approx(ligand + receptor)


def test_permute_within_types__keeps_types_and_does_not_depend_on_row_order() -> None:
    _, types, keys = section(4)
    rows = permute_within_types(types, keys, 7)
    assert sorted(rows) == list(range(300))
    assert (types[rows] == types).all()
    assert (rows != permute_within_types(types, keys, 8)).any()
    order = np.random.default_rng(0).permutation(300)
    shuffled = permute_within_types(types[order], keys[order], 7)
    assert (keys[order][shuffled] == keys[rows][order]).all()


def test_permute_within_types__uniform() -> None:
    _, types, keys = section(4, cells=12)
    types[:] = 0
    given = np.array([permute_within_types(types, keys, number)[3] for number in range(1200)])
    assert stats.chisquare(np.bincount(given, minlength=12)).pvalue > 0.01


def test_summarise_null__blocks_of_permutations_add_up_and_row_order_does_not_matter() -> None:
    positions, types, keys = section(5)
    expression = np.random.default_rng(6).gamma(1, 1, (300, 6))
    groups = contacts(positions, types)
    whole = summarise_null(groups, expression, (LIGANDS, RECEPTORS), types=types, keys=keys, permutations=range(30))
    parts = [
        summarise_null(groups, expression, (LIGANDS, RECEPTORS), types=types, keys=keys, permutations=part)
        for part in (range(12), range(12, 30))
    ]
    joined = parts[0].plus(parts[1])
    np.testing.assert_array_equal(whole.n_greater, joined.n_greater)
    np.testing.assert_allclose(whole.total, joined.total)
    order = np.random.default_rng(7).permutation(300)
    other = summarise_null(
        contacts(positions[order], types[order]),
        expression[order],
        (LIGANDS, RECEPTORS),
        types=types[order],
        keys=keys[order],
        permutations=range(30),
    )
    np.testing.assert_array_equal(whole.n_greater, other.n_greater)
    np.testing.assert_array_equal(whole.n_less, other.n_less)


def test_p_values__uniform_when_nothing_is_planted() -> None:
    found = []
    for seed in range(12):
        positions, types, keys = section(100 + seed, cells=400)
        expression = np.random.default_rng(seed).gamma(1, 1, (400, 6))
        null = summarise_null(
            contacts(positions, types), expression, (LIGANDS, RECEPTORS), types=types, keys=keys, permutations=range(99)
        )
        # group (0, 1) and pair 0 only: independent between seeds and not within
        found.append(p_values(null)[1, :])
    assert stats.kstest(np.concatenate(found), "uniform").pvalue > 0.01


def test_tabulate_interactions__planted_pair_comes_first() -> None:
    positions, types, keys = section(8, cells=500)
    rng = np.random.default_rng(9)
    counts = rng.poisson(3.0, (500, 6)).astype(float)
    # short contacts only, so that most A-cells touch no B-cell: the ligand rises in those that do
    groups = find_contacts(contact_graph(positions, max_edge_um=8), types, n_types=N_TYPES, min_cells=10)
    row = [tuple(pair) for pair in groups.types].index((0, 1))
    near = groups.membership[row].toarray().ravel() > 0
    counts[near, 2] += rng.poisson(20.0, near.sum())
    expression = normalise(counts, np.full(500, 2000.0))
    observed = score_interactions(groups, expression, LIGANDS, RECEPTORS)
    null = summarise_null(groups, expression, (LIGANDS, RECEPTORS), types=types, keys=keys, permutations=range(200))
    table = tabulate_interactions(
        groups,
        observed,
        null,
        expressed=count_expressing(groups, expression, LIGANDS, RECEPTORS),
        type_names=["A", "B", "C"],
        pair_names=[("L0", "R0"), ("L1", "R1"), ("L2", "R2")],
    )
    top = table.iloc[0]
    assert (top["sender"], top["receiver"], top["ligand"], top["receptor"]) == ("A", "B", "L1", "R1")
    assert top["selected"]
    assert top["p"] == pytest.approx(2 / 201)
    assert top["log2fc"] > 0.1
    assert table["n_ligand_cells"].le(table["n_senders"]).all()


def test_find_contacts__too_few_cells_leave_no_group() -> None:
    positions, types, _ = section(1, cells=20)
    assert len(find_contacts(contact_graph(positions, max_edge_um=40), types, n_types=3, min_cells=15).types) == 0
