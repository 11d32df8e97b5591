"""Choosing the estimator of a section on spots rehearsed with held-out reference cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.frames import read_frame

if TYPE_CHECKING:
    from spatialscope_dist.expression.choice import Choice, Rehearsal
    from spatialscope_dist.expression.model import ExpressionModel

REHEARSED_CELLS = 1000  # at most
_FEWEST_SPOTS = 10  # with the section's own compositions; else random ones are added


def draw_compositions(
    spot_rows: NDArray[np.int64], types: NDArray[np.int64], *, n_spots: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return the types of the cells of spots drawn from a section, those with several cells if there are any.

    Parameters
    ----------
    spot_rows
        (cells,), spot of each cell, ascending.
    types
        (cells,), index of the cell type, -1 for cells without one.
    n_spots
        spots to draw, at most.
    random
        source of the draw.
    """
    rows, kinds = spot_rows[types >= 0], types[types >= 0]
    if not len(rows):
        return []
    spots, first, n_cells = np.unique(rows, return_index=True, return_counts=True)
    order = random.permutation(len(spots))
    order = order[n_cells[order] > 1] if (n_cells > 1).any() else order
    order = order[:n_spots]
    keep = np.cumsum(n_cells[order]) <= max(REHEARSED_CELLS, n_cells[order[0]])
    return [kinds[first[spot] : first[spot] + n_cells[spot]] for spot in order[keep]]


def choose_estimator(
    reference: Path,
    model: ExpressionModel,
    compositions: list[NDArray[np.int64]],
    *,
    exposure: NDArray[np.float32],
    options: DecomposeOptions,
    seed: int,
) -> Choice:
    """Return the estimator that does best on spots like the section's, made of held-out reference cells."""
    from spatialscope_dist.expression.choice import Choice, choose

    rehearsal = _rehearse(reference, model, compositions, exposure=exposure, seed=seed) if compositions else None
    if rehearsal is None:
        estimator = "proportional" if options.estimator == "auto" else options.estimator
        return Choice(estimator, "too few cells to rehearse with: proportional allocation unless set otherwise")
    return choose(rehearsal, model, options)


def _rehearse(
    reference: Path,
    model: ExpressionModel,
    compositions: list[NDArray[np.int64]],
    *,
    exposure: NDArray[np.float32],
    seed: int,
) -> Rehearsal | None:
    """Return simulated spots; None when no reference cells were held out."""
    from spatialscope_dist.expression.choice import draw_cells, random_compositions, rehearse
    from spatialscope_dist.expression.profiles import split_cells

    names = read_frame(reference / "cells.parquet", columns=["cell_type"])["cell_type"]
    place = {name: number for number, name in enumerate(model.types)}
    types = np.array([place[str(name)] for name in names], np.int64)
    _, pool = split_cells(types, share=model.training["held_out_share"], seed=model.training["seed"])
    if not len(pool):
        return None
    drawn = draw_cells(compositions, pool, types, seed=seed)
    if len(drawn) < _FEWEST_SPOTS:
        sizes = [len(composition) for composition in compositions]
        drawn += draw_cells(random_compositions(sizes, pool, types, seed=seed), pool, types, seed=seed)
    rows = np.concatenate(drawn)
    cells = _reference_rows(open_counts(reference / "reference.zarr"), rows, model)
    n_cells = np.array([len(spot) for spot in drawn])
    return rehearse(cells, types[rows], n_cells=n_cells, exposure=exposure, seed=seed)


def _reference_rows(counts: Counts, rows: NDArray[np.intp], model: ExpressionModel) -> NDArray[np.float32]:
    columns = positions_in(counts.genes, model.genes)
    out = np.empty((len(rows), len(columns)), np.float32)
    for low, block in counts.blocks():
        mine = np.flatnonzero((rows >= low) & (rows < low + block.shape[0]))
        if len(mine):
            out[mine] = block[rows[mine] - low][:, columns].toarray()
    return out
