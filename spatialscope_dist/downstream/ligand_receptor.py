"""Ligand-receptor interactions of touching cells, tested by permuting cells within their type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import Delaunay, QhullError

from spatialscope_dist.downstream.multiple_testing import adjust_within
from spatialscope_dist.randomness import philox

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Index = NDArray[np.int64]

PSEUDO_EXPRESSION = 0.1
LIBRARY_SCALE = 6000.0
#: Differences below this are ties: sums of the same cells in another order.
TIE = 1e-9


@dataclass(frozen=True)
class ContactGroups:
    """Cells of one type that touch another type, for every ordered pair of types that meet.

    ``types`` (groups, 2), (own type, touched type) indices; ``reverse`` (groups,), row of the opposite pair;
    ``membership`` (groups, cells), 1 for the members; ``sizes`` (groups,).
    """

    types: Index
    reverse: Index
    membership: sparse.csr_matrix
    sizes: Index


@dataclass(frozen=True)
class NullSummary:
    """Sums over permutations of the null scores, (groups, pairs): total, times ≥ and times ≤ the observed score."""

    total: Array
    n_greater: Index
    n_less: Index
    n_permutations: int

    def plus(self, other: NullSummary) -> NullSummary:
        """Return the summary of both sets of permutations."""
        return NullSummary(
            self.total + other.total,
            self.n_greater + other.n_greater,
            self.n_less + other.n_less,
            self.n_permutations + other.n_permutations,
        )


def contact_graph(positions_um: Array, *, max_edge_um: float) -> sparse.csr_matrix:
    """Return the Delaunay graph of the cells, (cells, cells) symmetric 0/1 int8, without edges above ``max_edge_um``.

    Parameters
    ----------
    positions_um
        (cells, 2), (y, x) µm.
    max_edge_um
        Longer edges are not contacts, µm.
    """
    count = len(positions_um)
    empty = sparse.coo_matrix((np.zeros(0, np.int8), (np.zeros(0, int), np.zeros(0, int))), (count, count)).tocsr()
    # sorted first: ties among cocircular points are then broken the same way for any order of the cells
    order = np.lexsort((positions_um[:, 1], positions_um[:, 0]))
    if count < 3:
        return empty
    try:
        corners = order[Delaunay(positions_um[order]).simplices]
    except QhullError:  # all cells on one line
        return empty
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
    lengths = np.linalg.norm(positions_um[edges[:, 0]] - positions_um[edges[:, 1]], axis=1)
    edges = edges[lengths <= max_edge_um]
    ends = np.concatenate([edges, edges[:, ::-1]])
    graph = sparse.csr_matrix((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    graph.data[:] = 1
    return graph


def find_contacts(graph: sparse.csr_matrix, types: Index, *, n_types: int, min_cells: int) -> ContactGroups:
    """Return the contact groups of every ordered pair of types with at least ``min_cells`` cells on both sides.

    Parameters
    ----------
    graph
        (cells, cells), contacts.
    types
        (cells,), index of the cell's type.
    n_types
        Number of types.
    min_cells
        Smallest number of cells of each type that touch the other.
    """
    count = len(types)
    one_hot = sparse.csr_matrix((np.ones(count, dtype=np.int32), (np.arange(count), types)), shape=(count, n_types))
    touched = (graph.astype(np.int32) @ one_hot).tocoo()
    group = types[touched.row] * n_types + touched.col
    sizes = np.bincount(group, minlength=n_types * n_types)
    mirrored = np.arange(n_types * n_types).reshape(n_types, n_types).T.ravel()
    kept = np.flatnonzero((sizes >= max(min_cells, 1)) & (sizes[mirrored] >= max(min_cells, 1)))
    row_of = np.full(n_types * n_types, -1, dtype=np.int64)
    row_of[kept] = np.arange(len(kept))
    inside = row_of[group] >= 0
    entries = (np.ones(int(inside.sum())), (row_of[group[inside]], touched.row[inside]))
    membership = sparse.csr_matrix(entries, shape=(len(kept), count))
    pairs = np.stack([kept // n_types, kept % n_types], axis=1).astype(np.int64)
    return ContactGroups(pairs, row_of[mirrored[kept]], membership, sizes[kept].astype(np.int64))


def normalise(counts: Array, totals: Array) -> Array:
    """Return log2(1 + 6000 · counts / total), (cells, genes): Giotto's default normalisation.

    Parameters
    ----------
    counts
        (cells, genes), counts of some genes.
    totals
        (cells,), counts over all genes of the panel.
    """
    scale = LIBRARY_SCALE / np.maximum(totals, 1e-12)
    return np.asarray(np.log2(1 + counts * scale[:, None]))


def score_interactions(groups: ContactGroups, expression: Array, ligands: Index, receptors: Index) -> Array:
    """Return LR(A, B) of every group and pair, (groups, pairs).

    LR = mean of the ligand in A-cells touching B + mean of the receptor in B-cells touching A.

    Parameters
    ----------
    groups
        A-cells touching B.
    expression
        (cells, genes), normalised.
    ligands, receptors
        (pairs,), columns of ``expression``.
    """
    means = (groups.membership @ expression) / groups.sizes[:, None]
    return np.asarray(means[:, ligands] + means[groups.reverse][:, receptors])


def permute_within_types(types: Index, keys: Index, permutation: int) -> Index:
    """Return for every cell the row of the cell whose expression it is given, (cells,).

    A uniform permutation inside each type, drawn from the cells' own keys: it depends on the cells and on the number of
    the permutation, not on the order of the rows.

    Parameters
    ----------
    types
        (cells,), index of the type.
    keys
        (cells,), one 63-bit key per cell (``randomness.spot_keys``).
    permutation
        Number of the permutation.
    """
    high, low, _, _ = philox(keys, (permutation, 0, 0, 0))
    receivers = np.lexsort((keys, types))
    givers = np.lexsort((keys, low, high, types))
    rows = np.empty(len(types), dtype=np.int64)
    rows[receivers] = givers
    return rows


def summarise_null(
    groups: ContactGroups,
    expression: Array,
    pairs: tuple[Index, Index],
    *,
    types: Index,
    keys: Index,
    permutations: range,
) -> NullSummary:
    """Return what a range of permutations says about the scores of every group and pair.

    Parameters
    ----------
    groups, expression
        As in :func:`score_interactions`.
    pairs
        Ligand and receptor columns, each (pairs,).
    types, keys
        As in :func:`permute_within_types`.
    permutations
        Numbers of the permutations; ranges add up by :meth:`NullSummary.plus`.
    """
    observed = score_interactions(groups, expression, *pairs)
    total = np.zeros_like(observed)
    n_greater, n_less = np.zeros(observed.shape, dtype=np.int64), np.zeros(observed.shape, dtype=np.int64)
    for number in permutations:
        shuffled = expression[permute_within_types(types, keys, number)]
        null = score_interactions(groups, shuffled, *pairs)
        total += null
        n_greater += null >= observed - TIE
        n_less += null <= observed + TIE
    return NullSummary(total, n_greater, n_less, len(permutations))


def p_values(null: NullSummary) -> Array:
    """Return two-sided permutation p-values, (groups, pairs): 2 (1 + rarer side) / (1 + permutations), at most 1."""
    rarer = np.minimum(null.n_greater, null.n_less)
    return np.minimum(2 * (1 + rarer) / (1 + null.n_permutations), 1.0)


def tabulate_interactions(
    groups: ContactGroups,
    observed: Array,
    null: NullSummary,
    *,
    expressed: NDArray[np.int64],
    type_names: Sequence[str],
    pair_names: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """Return one row per ordered type pair and ligand-receptor pair, strongest first.

    log2fc = log2((LR + 0.1) / (mean null + 0.1)); p adjusted over the ligand-receptor pairs of each type pair, as
    Giotto does; PI = log2fc · (-log10 p_adjusted); ``selected`` is the paper's filter (p_adjusted < 0.25,
    |log2fc| > 0.1, at least 10 cells with the ligand and 10 with the receptor, LR > 0.5).

    Parameters
    ----------
    groups, observed, null
        Of one section.
    expressed
        (groups, pairs, 2), cells of the group with the ligand and of the opposite group with the receptor.
    type_names, pair_names
        Names behind the indices; pairs as (ligand, receptor).
    """
    import pandas as pd

    n_groups, n_pairs = observed.shape
    group, pair = np.repeat(np.arange(n_groups), n_pairs), np.tile(np.arange(n_pairs), n_groups)
    mean_null = null.total / max(null.n_permutations, 1)
    log2fc = np.log2((observed + PSEUDO_EXPRESSION) / (mean_null + PSEUDO_EXPRESSION)).ravel()
    p = p_values(null).ravel()
    adjusted = adjust_within(p, group)
    names = np.array(type_names, dtype=object)
    table = pd.DataFrame(
        {
            "sender": names[groups.types[group, 0]],
            "receiver": names[groups.types[group, 1]],
            "ligand": np.array([ligand for ligand, _ in pair_names], dtype=object)[pair],
            "receptor": np.array([receptor for _, receptor in pair_names], dtype=object)[pair],
            "n_senders": groups.sizes[group],
            "n_receivers": groups.sizes[groups.reverse[group]],
            "n_ligand_cells": expressed[..., 0].ravel(),
            "n_receptor_cells": expressed[..., 1].ravel(),
            "statistic": observed.ravel(),
            "mean_null": mean_null.ravel(),
            "log2fc": log2fc,
            "p": p,
            "p_adjusted": adjusted,
            "interaction_score": log2fc * -np.log10(adjusted),
        }
    )
    enough = (table["n_ligand_cells"] >= 10) & (table["n_receptor_cells"] >= 10) & (table["statistic"] > 0.5)
    table["selected"] = enough & (table["p_adjusted"] < 0.25) & (table["log2fc"].abs() > 0.1)
    keys = ["selected", "interaction_score", "sender", "receiver", "ligand", "receptor"]
    return table.sort_values(keys, ascending=[False, False, True, True, True, True], ignore_index=True)


def count_expressing(groups: ContactGroups, expression: Array, ligands: Index, receptors: Index) -> Index:
    """Return the cells with the ligand and, in the opposite group, with the receptor, (groups, pairs, 2).

    A cell counts when its normalised expression is at least 0.5: estimated means are never exactly zero.
    """
    counts = groups.membership @ (expression >= 0.5).astype(np.float64)
    return np.stack([counts[:, ligands], counts[groups.reverse][:, receptors]], axis=2).astype(np.int64)
