"""Worker step of `identify` that writes the labels of a section's cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.panel import positions_in
from spatialscope_dist.steps.typing_fit import Arrays, SectionTask, batches, load
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame, read_rows, write_frame, write_frame_parts

_SPOTS_AT_ONCE = 1 << 14


def finish_section(task: SectionTask, labels: Path | None, offset: int) -> dict[str, Any]:
    """Write cells.parquet, spots.parquet, proportions.zarr and weights.zarr of a section (worker).

    Parameters
    ----------
    task : the section
    labels : file with the labels of all cells of the item; None when types are given
    offset : where the section's cells begin in it
    """
    spots = load(task.work / "spots.npz")
    types = np.array(read_json(task.reference / "types.json"), dtype=object)
    status = np.where(spots["fitted"], "ok", np.where(spots["lost"], "not_fitted", "low_counts")).astype(object)
    start = np.concatenate([[0], np.cumsum(spots["n_cells"])]).astype(np.int64)
    proportions = np.zeros((len(status), len(types)), np.float32)
    by_type: Counter[str] = Counter()

    def parts() -> Iterator[pd.DataFrame]:
        found = None if labels is None else load(labels)
        for low, high in batches(len(status), _SPOTS_AT_ONCE):
            begin, end = int(start[low]), int(start[high])
            cells, n_cells = read_rows(task.work / "cells.parquet", begin, end), spots["n_cells"][low:high]
            if found is None:
                cells, proportions[low:high] = _given_types(cells, n_cells, types)
            else:
                mine = {name: values[offset + begin : offset + end] for name, values in found.items()}
                cells, shares = _new_types(cells, n_cells, types, mine, chosen=task.options.labels)
                weights = np.where(spots["fitted"][low:high, None], spots["weights"][low:high], np.nan)
                proportions[low:high] = _soft(task, shares, weights)
            cells["status"] = status[cells["spot_row"].to_numpy(np.int64)]
            by_type.update(cells["cell_type"])
            yield cells[_COLUMNS]

    write_frame_parts(task.target / "cells.parquet", parts())
    write_array(task.target / "proportions.zarr", proportions, axes=("spot", "type"))
    _write_spots(task, spots, status)
    return {"cells_by_type": {name: by_type[name] for name in types}}


def _soft(task: SectionTask, shares: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    from spatialscope_dist.celltypes.labelling import blend_proportions

    rna = load(task.work / "model.npz", "rna_per_cell")["rna_per_cell"]
    return blend_proportions(shares, weights, rna, share=task.options.weights_in_proportions)


def _write_spots(task: SectionTask, spots: Arrays, status: NDArray[np.object_]) -> None:
    fitted = spots["fitted"]
    weights = np.where(fitted[:, None], spots["weights"], np.nan).astype(np.float32)
    alpha = np.full(len(weights), np.nan)
    alpha[fitted] = np.log(spots["weights"][fitted].sum(axis=1))
    ids = read_frame(task.ingest / "spots.parquet", columns=["spot_id"])["spot_id"]
    frame = pd.DataFrame({"spot_id": ids, "n_cells": spots["n_cells"], "alpha": alpha, "status": status})
    write_frame(task.target / "spots.parquet", frame)
    write_array(task.target / "weights.zarr", weights, axes=("spot", "type"))


_COLUMNS = [
    "cell_id",
    "spot_id",
    "spot_row",
    "rank",
    "section",
    "y_px",
    "x_px",
    "y_um",
    "x_um",
    "z_um",
    "cell_type",
    "cell_type_map",
    "cell_type_positional",
    "cell_type_composition",
    "confidence",
    "margin",
    "status",
    "nucleus_id",
]


def _given_types(
    cells: pd.DataFrame, n_cells: NDArray[np.int64], types: NDArray[np.object_]
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    for kind in ("map", "positional", "composition"):
        cells[f"cell_type_{kind}"] = cells["cell_type"]
    cells["confidence"], cells["margin"] = 1.0, np.nan
    numbers = positions_in(types.tolist(), cells["cell_type"].tolist())
    proportions = np.zeros((len(n_cells), len(types)))
    np.add.at(proportions, (np.repeat(np.arange(len(n_cells)), n_cells), numbers), 1.0)
    return cells, proportions / np.maximum(n_cells, 1)[:, None]


def _new_types(
    cells: pd.DataFrame, n_cells: NDArray[np.int64], types: NDArray[np.object_], found: Arrays, *, chosen: str
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    from spatialscope_dist.celltypes.labelling import confidence, label_cells

    candidates = found["candidates"]
    cell_start = np.concatenate([[0], np.cumsum(n_cells)]).astype(np.int64)
    labelling = label_cells(found["seen"], candidates, cell_start, n_types=len(types))
    kinds = {"map": found["map"], "positional": labelling.positional, "composition": labelling.composition}
    for kind, numbers in kinds.items():
        cells[f"cell_type_{kind}"] = types[numbers]
    cells["cell_type"] = types[kinds[chosen]]
    cells["confidence"] = confidence(kinds[chosen], labelling.probability, candidates)
    cells["margin"] = found["margin"]
    return cells, labelling.proportions
