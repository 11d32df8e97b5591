"""Accuracy of a section against its truth, read from the stages' outputs in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.panel import positions_in
from spatialscope_dist.report.accuracy import LocatedCells, cosines, match_same_type, score_nuclei, score_types
from spatialscope_dist.steps.section_view import SectionFolders
from spatialscope_dist.store.arrays import open_array, read_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame

if TYPE_CHECKING:
    import pandas as pd

    from spatialscope_dist.expression.profiles import ReferenceProfiles

Index = NDArray[np.int64]
SPOTS_AT_ONCE = 256
BASELINES = ("type_mean", "proportional")


def score_section(folders: SectionFolders, *, model: Path | None) -> dict[str, float]:
    """Return the accuracy of one section, {} when no truth is given; runs on a worker."""
    if not (folders.ingest / "truth.parquet").exists():
        return {}
    size = read_json(folders.ingest / "section.json")["pixel_size_um"] or 1.0
    spots = read_frame(folders.ingest / "spots.parquet", columns=["spot_id"])["spot_id"]
    row_of = {str(name): row for row, name in enumerate(spots)}
    planted = read_frame(folders.ingest / "truth.parquet")
    rows = np.array([row_of.get(str(name), -1) for name in planted["spot_id"]], dtype=np.int64)
    truth = _located(planted, rows, size)
    scores: dict[str, float] = {}
    if folders.segment is not None:
        nuclei = read_frame(folders.segment / "nuclei.parquet", columns=["y_px", "x_px"])
        scores |= score_nuclei(truth.positions_um, nuclei.to_numpy(np.float64) * size)
    if folders.identify is None:
        return scores
    frame = read_frame(folders.identify / "cells.parquet", columns=["spot_row", "y_px", "x_px", "cell_type"])
    cells = _located(frame, frame["spot_row"].to_numpy(np.int64), size)
    scores |= score_types(truth, cells)
    if folders.decompose is not None and model is not None:
        scores |= _score_expression(folders, model, *match_same_type(truth, cells))
    return scores


def _located(frame: pd.DataFrame, rows: Index, size: float) -> LocatedCells:
    places = frame[["y_px", "x_px"]].to_numpy(np.float64) * size
    return LocatedCells(places, rows, frame["cell_type"].to_numpy(dtype=str))


def _score_expression(folders: SectionFolders, model: Path, planted: Index, found: Index) -> dict[str, float]:
    """Return the mean cosine of the result and of the baselines on the same matched cells."""
    from spatialscope_dist.expression.model import load_model

    assert folders.decompose is not None
    trained = load_model(model, read_json(model / "model.json")["weights_sha256"])
    table = open_counts(folders.ingest / "truth.zarr")
    columns = positions_in(table.genes, trained.genes)
    known = columns >= 0
    # planted cells may lie anywhere in the table of a simulated section, which is small enough to hold
    true_counts = table.rows(0, table.shape[0])[:, columns[known]]
    mean = open_array(folders.decompose / "mean.zarr")
    cell_spots = np.asarray(read_array(folders.decompose / "cell_spots.zarr"), dtype=np.int64)
    sums = dict.fromkeys(("expression", *BASELINES), 0.0)
    n_scored = 0
    order = np.argsort(found, kind="stable")
    planted, found = planted[order], found[order]
    for low, high in _cell_blocks(cell_spots):
        those = slice(*np.searchsorted(found, [low, high]))
        if those.start == those.stop:
            continue
        truth = true_counts[planted[those]].toarray()
        estimates = _baselines(folders, trained.profiles, trained.genes, low=low, high=high)
        estimates["expression"] = np.nan_to_num(np.asarray(mean[low:high], dtype=np.float64))
        for name, values in estimates.items():
            sums[name] += float(cosines(values[found[those] - low][:, known], truth).sum())
        n_scored += those.stop - those.start
    scores = {f"{name}_cosine": total / max(n_scored, 1) for name, total in sums.items()}
    return {**scores, "cells_scored": float(n_scored)}


def _cell_blocks(cell_spots: Index) -> list[tuple[int, int]]:
    """Return runs of cells that hold whole spots, some spots at a time; cells are in order of spots."""
    starts = np.flatnonzero(np.diff(cell_spots, prepend=-1))[::SPOTS_AT_ONCE]
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(cell_spots)], strict=True))


def _baselines(
    folders: SectionFolders, profiles: ReferenceProfiles, genes: tuple[str, ...], *, low: int, high: int
) -> dict[str, NDArray[np.float64]]:
    """Return what the baselines say about cells low:high, whole spots; (cells, genes) each."""
    from spatialscope_dist.expression.allocation import SpotCells
    from spatialscope_dist.expression.baselines import BASELINES as FUNCTIONS

    assert folders.decompose is not None
    types = np.asarray(open_array(folders.decompose / "cell_types.zarr")[low:high], dtype=np.int64)
    rows = np.asarray(open_array(folders.decompose / "cell_spots.zarr")[low:high], dtype=np.int64)
    typed = types >= 0
    spot_rows, n_cells = np.unique(rows[typed], return_counts=True)
    spots = SpotCells(
        counts=open_counts(folders.ingest / "counts.zarr").panel_rows(spot_rows, genes),
        first=np.r_[0, np.cumsum(n_cells)].astype(np.int64),
        types=types[typed],
        keys=np.zeros(len(spot_rows), np.int64),
        exposure=np.asarray(read_array(folders.decompose / "exposure.zarr"), np.float32),
    )
    estimates = {}
    for name in BASELINES:
        values = np.zeros((high - low, len(genes)))
        values[typed] = FUNCTIONS[name](spots, profiles).mean
        estimates[name] = values
    return estimates
