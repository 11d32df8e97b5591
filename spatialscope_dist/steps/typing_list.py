"""Worker step of `identify` that lists a section's cells: which there are, in which spot, where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.steps.typing_fit import BY_BATCH, SectionTask, batches, known_weights, load, save
from spatialscope_dist.steps.typing_model import rna_of_types
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_columns, read_frame, write_frame_parts

_SLIDESEQ_CELLS = 2
_CELLS_AT_ONCE = 1 << 16
_SPOTS_PER_CHUNK = 1 << 14
_COLUMNS = ["cell_id", "y_px", "x_px", "z_um", "nucleus_id", "cell_type"]


@dataclass(frozen=True)
class FoundCells:
    """Cells that lie in spots, spot by spot.

    Attributes
    ----------
    source : where they come from, in words
    spot : (cells,), row of each cell's spot, ascending
    part : returns what is known of the cells of a slice
    left_out : nuclei that lie in no spot
    """

    source: str
    spot: NDArray[np.int64]
    part: Callable[[slice], pd.DataFrame]
    left_out: int


def list_cells(task: SectionTask, batch: int) -> dict[str, Any]:
    """Write the section's cells and, for every spot, n_cells, weights and exposure (worker).

    Cells are the given nuclei, else the segmented ones, else as many as a column says or as counts
    and composition suggest, laid out evenly in their spot.
    """
    spots = read_frame(task.ingest / "spots.parquet")
    parts = [load(task.weights_file(low)) for low, _ in batches(len(spots), batch)]
    weights = np.concatenate([part["weights"] for part in parts])
    lost = np.concatenate([part["lost"] for part in parts])
    found = _cells(task, spots, weights)
    n_cells = np.bincount(found.spot, minlength=len(spots)).astype(np.int64)
    n_typed = _write_cells(task, found, spots["spot_id"].astype(str).to_numpy(object), n_cells)
    fitted = np.isfinite(weights).all(axis=1)
    mean = weights[fitted].mean(axis=0) if fitted.any() else np.full(weights.shape[1], 1.0 / weights.shape[1])
    filled = known_weights(weights, mean)
    exposure = np.where(fitted, spots["total_counts"].to_numpy(float) * filled.sum(axis=1), 0.0)
    about = {"weights": filled, "mean_weights": mean, "exposure": exposure, "fitted": fitted, "lost": lost}
    save(task.work / "spots.npz", n_cells=n_cells, **about)
    for name, values in zip(BY_BATCH, (n_cells, exposure), strict=True):
        write_array(task.work / f"{name}.zarr", values, axes=("spot",), chunks=(_SPOTS_PER_CHUNK,))
    return {
        "cells": len(found.spot),
        "cells_from": found.source,
        "nuclei_outside_spots": found.left_out,
        "max_cells": int(n_cells.max(initial=0)),
        "spots_without_cells": int((n_cells == 0).sum()),
        "types_given": n_typed == len(found.spot),
    }


def _cells(task: SectionTask, spots: pd.DataFrame, weights: NDArray[np.float64]) -> FoundCells:
    given = task.ingest / "given_nuclei.parquet"
    if given.exists():
        return _nuclei("given nuclei", given, spots["spot_id"])
    if task.segment is not None:
        return _nuclei("segmented nuclei", task.segment / "nuclei.parquet", spots["spot_id"])
    source, n_cells = _counted(task, spots, weights)
    pixels, rows = _laid_out(task, spots, n_cells), np.repeat(np.arange(len(spots)), n_cells)
    return FoundCells(source, rows, lambda some: pd.DataFrame(pixels[some], columns=["y_px", "x_px"]), 0)


def _nuclei(source: str, path: Path, spot_ids: pd.Series) -> FoundCells:
    """Return the nuclei of a file that lie in spots, held as an Arrow table: far smaller than a frame of objects."""
    import pyarrow
    import pyarrow.compute

    table = read_columns(path)
    if "is_cell" in table.column_names:
        table = table.filter(table["is_cell"])
    place = pyarrow.compute.index_in(table["spot_id"].cast("string"), pyarrow.array(spot_ids.astype(str)))
    rows = place.fill_null(-1).to_numpy().astype(np.int64)
    order = np.argsort(rows, kind="stable")[int((rows < 0).sum()) :]
    table = table.select([name for name in _COLUMNS if name in table.column_names])
    return FoundCells(source, rows[order], lambda some: table.take(order[some]).to_pandas(), len(rows) - len(order))


def _counted(task: SectionTask, spots: pd.DataFrame, weights: NDArray[np.float64]) -> tuple[str, NDArray[np.int64]]:
    from spatialscope_dist.celltypes.cell_counts import estimate_cell_counts

    usable = (spots["status"] == "ok").to_numpy() & (spots["total_counts"] > 0).to_numpy()
    if "n_cells_given" in spots:
        return "a column of the counts", spots["n_cells_given"].to_numpy(np.int64)
    n_cells = np.zeros(len(spots), np.int64)
    if task.platform == "merfish":
        n_cells[usable] = 1
        return "one cell per location", n_cells
    n_cells[usable] = estimate_cell_counts(
        spots["total_counts"].to_numpy(np.int64)[usable],
        weights[usable],
        spots[["y_um", "x_um"]].to_numpy(float)[usable],
        rna_of_types(task),
        max_cells=_cap(task),
    )
    return "counts and composition", n_cells


def _cap(task: SectionTask) -> int:
    if task.options.max_cells_per_spot is not None:
        return task.options.max_cells_per_spot
    return _SLIDESEQ_CELLS if task.platform == "slideseq" else int(np.ceil(20.0 * (task.diameter_um / 55.0) ** 2))


def _laid_out(task: SectionTask, spots: pd.DataFrame, n_cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where cells that nobody saw are put, (cells, 2), (y, x) pixels."""
    from spatialscope_dist.celltypes.cell_counts import place_cells

    keys = spot_keys(task.section, spots["spot_id"])
    centres = spots[["y_um", "x_um"]].to_numpy(float)
    offsets = place_cells(centres, n_cells, keys, radius_um=task.diameter_um / 2) - np.repeat(centres, n_cells, axis=0)
    pixels = np.repeat(spots[["y_px", "x_px"]].to_numpy(float), n_cells, axis=0)
    placed: NDArray[np.float64] = pixels + offsets / _pixel_size(task)
    return placed


def _pixel_size(task: SectionTask) -> float:
    return float(read_json(task.ingest / "section.json")["pixel_size_um"] or 1.0)


def _write_cells(
    task: SectionTask, found: FoundCells, spot_ids: NDArray[np.object_], n_cells: NDArray[np.int64]
) -> int:
    """Write the cells part by part, and return how many have a given type.

    Raises
    ------
    BadInput
        When a given type is unknown.
    """
    n_typed = 0
    unknown: set[str] = set()
    known = set(read_json(task.reference / "types.json"))
    first = np.concatenate([[0], np.cumsum(n_cells)])

    def parts() -> Iterator[pd.DataFrame]:
        nonlocal n_typed
        for low in range(0, max(len(found.spot), 1), _CELLS_AT_ONCE):
            some = slice(low, low + _CELLS_AT_ONCE)
            rows = found.spot[some]
            rank = np.arange(low, low + len(rows)) - first[rows]
            cells = _described(task, found.part(some), spot_ids[rows], rows, rank)
            given = cells["cell_type"].dropna()
            n_typed += len(given)
            unknown.update(set(given) - known)
            yield cells

    write_frame_parts(task.work / "cells.parquet", parts())
    if unknown:
        raise BadInput(_unknown_types(task, sorted(unknown), sorted(known)))
    return n_typed


def _described(
    task: SectionTask,
    cells: pd.DataFrame,
    spot_ids: NDArray[np.object_],
    rows: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> pd.DataFrame:
    """Return cells with their names, spots and ranks, and positions in common micrometres."""
    cells = cells.reindex(columns=_COLUMNS)
    made = np.array([f"{spot}_{number}" for spot, number in zip(spot_ids, rank, strict=True)], object)
    cells["cell_id"] = cells["cell_id"].astype(object).where(cells["cell_id"].notna(), made)
    cells["spot_row"], cells["spot_id"], cells["rank"], cells["section"] = rows, spot_ids, rank, task.section
    transform = read_json(task.align / "transform.json")
    size = _pixel_size(task)
    local = np.column_stack([cells["x_px"] * size, cells["y_px"] * size, np.ones(len(cells))])
    common = local @ np.asarray(transform["affine_um"], float).T
    cells["y_um"], cells["x_um"] = common[:, 1], common[:, 0]
    cells["z_um"] = cells["z_um"].astype(float).fillna(0.0) + float(transform["z_um"])
    cells["nucleus_id"] = cells["nucleus_id"].astype("Int64")
    cells["cell_type"] = cells["cell_type"].astype(object).where(cells["cell_type"].notna(), None)
    return cells.astype(dict.fromkeys(("cell_id", "spot_id", "section", "cell_type"), "string"))


def _unknown_types(task: SectionTask, unknown: list[str], known: list[str]) -> Problem:
    found = f"cell types that the reference does not have: {', '.join(unknown[:8])}"
    remedy = "Rename them in the nuclei file, or leave cell_type out to have the cells typed."
    return Problem(f"section {task.section}: nuclei", found, f"some of {', '.join(known)}", remedy)
