"""Worker steps of `identify` that list a section's cells and write their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.steps.typing_fit import SectionTask, batches, load, save
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame, write_frame

_SLIDESEQ_CELLS = 2
_PLACE = ["cell_id", "spot_row", "y_px", "x_px", "z_um", "nucleus_id", "cell_type"]


def list_cells(task: SectionTask, batch: int) -> dict[str, Any]:
    """Write the section's cells and, for every spot, n_cells, weights and exposure (worker).

    Cells are the given nuclei, else the segmented ones, else as many as a column says or as counts
    and composition suggest, laid out evenly in their spot.
    """
    spots = read_frame(task.ingest / "spots.parquet")
    parts = [load(task.weights_file(low)) for low, _ in batches(len(spots), batch)]
    weights = np.concatenate([part["weights"] for part in parts])
    lost = np.concatenate([part["lost"] for part in parts])
    source, cells, left_out = _cells(task, spots, weights)
    cells = _in_order(cells, spots, task)
    n_cells = np.bincount(cells["spot_row"], minlength=len(spots)).astype(np.int64)
    fitted = np.isfinite(weights).all(axis=1)
    mean = weights[fitted].mean(axis=0) if fitted.any() else np.full(weights.shape[1], 1.0 / weights.shape[1])
    filled = np.where(fitted[:, None], weights, mean)
    exposure = np.where(fitted, spots["total_counts"].to_numpy(float) * filled.sum(axis=1), 0.0)
    typed = cells["cell_type"].notna()
    if typed.any():
        _require_known_types(task, cells)
    write_frame(task.work / "cells.parquet", cells)
    save(task.work / "spots.npz", n_cells=n_cells, weights=filled, exposure=exposure, fitted=fitted, lost=lost)
    return {
        "cells": len(cells),
        "cells_from": source,
        "nuclei_outside_spots": left_out,
        "max_cells": int(n_cells.max(initial=0)),
        "spots_without_cells": int((n_cells == 0).sum()),
        "types_given": bool(typed.all()),
    }


def _cells(task: SectionTask, spots: pd.DataFrame, weights: NDArray[np.float64]) -> tuple[str, pd.DataFrame, int]:
    """Return where the cells come from, the cells that lie in spots, and how many do not."""
    place = pd.Series(np.arange(len(spots)), index=spots["spot_id"].astype(str))
    given = task.ingest / "given_nuclei.parquet"
    if given.exists():
        found, source = read_frame(given), "given nuclei"
    elif task.segment is not None:
        found, source = read_frame(task.segment / "nuclei.parquet"), "segmented nuclei"
        found = found[found["is_cell"]]
    else:
        source, n_cells = _counted(task, spots, weights)
        return source, _laid_out(task, spots, n_cells), 0
    rows = found["spot_id"].map(place)
    inside = rows.notna().to_numpy()
    cells = found[inside].copy()
    cells["spot_row"] = rows[inside].astype(np.int64)
    return source, cells, int((~inside).sum())


def _counted(task: SectionTask, spots: pd.DataFrame, weights: NDArray[np.float64]) -> tuple[str, NDArray[np.int64]]:
    from spatialscope_dist.celltypes.cell_counts import estimate_cell_counts

    usable = (spots["status"] == "ok").to_numpy() & (spots["total_counts"] > 0).to_numpy()
    if "n_cells_given" in spots:
        return "a column of the counts", spots["n_cells_given"].to_numpy(np.int64)
    n_cells = np.zeros(len(spots), np.int64)
    if task.platform == "merfish":
        n_cells[usable] = 1
        return "one cell per location", n_cells
    summary = read_json(task.reference / "summary.json")["types"]
    sizes = [summary[name] for name in read_json(task.reference / "types.json")]
    depths = np.array([size["umi"] / max(size["cells"], 1) for size in sizes])
    n_cells[usable] = estimate_cell_counts(
        spots["total_counts"].to_numpy(np.int64)[usable],
        weights[usable],
        spots[["y_um", "x_um"]].to_numpy(float)[usable],
        depths,
        max_cells=_cap(task),
    )
    return "counts and composition", n_cells


def _cap(task: SectionTask) -> int:
    if task.options.max_cells_per_spot is not None:
        return task.options.max_cells_per_spot
    return _SLIDESEQ_CELLS if task.platform == "slideseq" else int(np.ceil(20.0 * (task.diameter_um / 55.0) ** 2))


def _laid_out(task: SectionTask, spots: pd.DataFrame, n_cells: NDArray[np.int64]) -> pd.DataFrame:
    from spatialscope_dist.celltypes.cell_counts import place_cells

    keys = spot_keys(task.section, spots["spot_id"])
    centres = spots[["y_um", "x_um"]].to_numpy(float)
    offsets = place_cells(centres, n_cells, keys, radius_um=task.diameter_um / 2) - np.repeat(centres, n_cells, axis=0)
    rows = np.repeat(np.arange(len(spots)), n_cells)
    pixels = spots[["y_px", "x_px"]].to_numpy(float)[rows] + offsets / _pixel_size(task)
    return pd.DataFrame({"spot_row": rows, "y_px": pixels[:, 0], "x_px": pixels[:, 1]})


def _pixel_size(task: SectionTask) -> float:
    return float(read_json(task.ingest / "section.json")["pixel_size_um"] or 1.0)


def _in_order(cells: pd.DataFrame, spots: pd.DataFrame, task: SectionTask) -> pd.DataFrame:
    """Return the cells sorted by spot, ranked within it, with positions in common micrometres."""
    cells = cells.reindex(columns=_PLACE).sort_values("spot_row", kind="stable", ignore_index=True)
    rows = cells["spot_row"].to_numpy(np.int64)
    first = np.searchsorted(rows, np.arange(len(spots)))
    rank = np.arange(len(cells)) - first[rows]
    ids = spots["spot_id"].astype(str).to_numpy(object)[rows]
    named = cells["cell_id"].notna().to_numpy()
    made = [f"{spot}_{number}" for spot, number in zip(ids, rank, strict=True)]
    cells["cell_id"] = np.where(named, cells["cell_id"].astype(object), np.array(made, object))
    cells["spot_id"], cells["rank"], cells["section"] = ids, rank, task.section
    transform = read_json(task.align / "transform.json")
    size = _pixel_size(task)
    local = np.column_stack([cells["x_px"] * size, cells["y_px"] * size, np.ones(len(cells))])
    common = local @ np.asarray(transform["affine_um"], float).T
    cells["y_um"], cells["x_um"] = common[:, 1], common[:, 0]
    cells["z_um"] = cells["z_um"].astype(float).fillna(0.0) + float(transform["z_um"])
    cells["nucleus_id"] = cells["nucleus_id"].astype("Int64")
    cells["cell_type"] = cells["cell_type"].astype(object).where(cells["cell_type"].notna(), None)
    return cells


def _require_known_types(task: SectionTask, cells: pd.DataFrame) -> None:
    types = read_json(task.reference / "types.json")
    unknown = sorted(set(cells["cell_type"].dropna()) - set(types))
    if unknown:
        found = f"cell types that the reference does not have: {', '.join(unknown[:8])}"
        remedy = "Rename them in the nuclei file, or leave cell_type out to have the cells typed."
        raise BadInput(Problem(f"section {task.section}: nuclei", found, f"some of {', '.join(types)}", remedy))


def finish_section(task: SectionTask, labels: Path | None, offset: int) -> dict[str, Any]:
    """Write cells.parquet, spots.parquet, proportions.zarr and weights.zarr of a section (worker).

    Parameters
    ----------
    task : the section
    labels : file with the labels of all cells of the item; None when types are given
    offset : where the section's cells begin in it
    """
    cells = read_frame(task.work / "cells.parquet")
    spots = load(task.work / "spots.npz")
    types = np.array(read_json(task.reference / "types.json"), dtype=object)
    if labels is None:
        cells, proportions = _given_types(cells, spots["n_cells"], types)
    else:
        cells, proportions = _new_types(cells, spots["n_cells"], types, labels=labels, offset=offset, task=task)
    status = np.where(spots["fitted"], "ok", np.where(spots["lost"], "not_fitted", "low_counts")).astype(object)
    cells["status"] = status[cells["spot_row"]]
    weights = np.where(spots["fitted"][:, None], spots["weights"], np.nan).astype(np.float32)
    alpha = np.full(len(weights), np.nan)
    alpha[spots["fitted"]] = np.log(spots["weights"][spots["fitted"]].sum(axis=1))
    ids = read_frame(task.ingest / "spots.parquet", columns=["spot_id"])["spot_id"]
    frame = pd.DataFrame({"spot_id": ids, "n_cells": spots["n_cells"], "alpha": alpha, "status": status})
    write_frame(task.target / "cells.parquet", cells[_COLUMNS])
    write_frame(task.target / "spots.parquet", frame)
    write_array(task.target / "weights.zarr", weights, axes=("spot", "type"))
    write_array(task.target / "proportions.zarr", proportions.astype(np.float32), axes=("spot", "type"))
    counts = cells["cell_type"].value_counts()
    return {"cells_by_type": {name: int(counts.get(name, 0)) for name in types}}


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
    np.add.at(proportions, (cells["spot_row"].to_numpy(np.int64), numbers), 1.0)
    return cells, proportions / np.maximum(n_cells, 1)[:, None]


def _new_types(
    cells: pd.DataFrame,
    n_cells: NDArray[np.int64],
    types: NDArray[np.object_],
    *,
    labels: Path,
    offset: int,
    task: SectionTask,
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    from spatialscope_dist.celltypes.labelling import confidence, label_cells

    found = load(labels)
    mine = slice(offset, offset + len(cells))
    candidates = found["candidates"][mine]
    cell_start = np.concatenate([[0], np.cumsum(n_cells)]).astype(np.int64)
    labelling = label_cells(found["seen"][mine], candidates, cell_start, n_types=len(types))
    kinds = {"map": found["map"][mine], "positional": labelling.positional, "composition": labelling.composition}
    for kind, numbers in kinds.items():
        cells[f"cell_type_{kind}"] = types[numbers]
    chosen = kinds[task.options.labels]
    cells["cell_type"] = types[chosen]
    cells["confidence"] = confidence(chosen, labelling.probability, candidates)
    cells["margin"] = found["margin"][mine]
    return cells, labelling.proportions
