"""Stage `segment`: nuclei of a section's image, their polygons and labels, and how many cells each spot holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput
from spatialscope_dist.location import located, within
from spatialscope_dist.nuclei.assign import assign_to_spots, default_cap, keep_most_probable
from spatialscope_dist.nuclei.checks import image_problems
from spatialscope_dist.nuclei.window_models import model_files, model_framework, model_problems
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_costs import projected_disk_bytes, projected_peak_bytes, projected_tasks
from spatialscope_dist.steps.slide_spec import VIEW_PIXELS, Slide
from spatialscope_dist.store.arrays import open_group
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame, read_frame_parts, write_frame, write_frame_parts

NAME = "segment"
VERSION = 5
_NOT_CONTENT = {"tile", "warn_pixel_size_um", "max_pixel_size_um"}


def items(context: Context) -> list[str]:
    """Return the sections."""
    return [section.name for section in context.study.sections]


def skip_reason(context: Context, item: str) -> str | None:
    """Return why the section is not segmented, None when it is."""
    section, options = context.study.section(item), context.study.options
    if section.nuclei is not None:
        return "nuclei are given"
    if section.image is None:
        return "no full-resolution image"
    if section.platform == "merfish":
        return "every location is one cell"
    size = context.facts.sections[item].pixel_size_um
    if options.identify.n_cells_column is not None and size is not None and size > options.segment.max_pixel_size_um:
        return f"cells per spot are given, and the image is coarse ({size:.3g} µm per pixel)"
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return what the nuclei depend on: the section, the model's content, the options but for the tile."""
    options = context.study.options.segment
    files = model_files(options.model)
    return {
        "ingest": context.upstream_key("ingest", item),
        "model": options.model if files is None else context.ledger.file_hash(files),
        "options": options.model_dump(mode="json", exclude={*_NOT_CONTENT, "model"}),
        "spot_diameter_um": context.study.section(item).diameter_um,
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return the projected tasks, memory of a worker and bytes on disk."""
    facts, options = context.facts.sections[item], context.study.options.segment
    if facts.image_shape is None or facts.pixel_size_um is None:
        return StagePlan(0, 0, 0)
    size = facts.image_shape, facts.pixel_size_um
    return StagePlan(projected_tasks(*size, options), projected_peak_bytes(*size, options), projected_disk_bytes(*size))


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Find the section's nuclei and give them to its spots.

    Raises
    ------
    BadInput
        When the image is too coarse, or it or the model cannot be read.
    """
    ingest = context.upstream("ingest", item)
    assert ingest is not None
    section = read_json(ingest / "section.json")
    options = context.study.options.segment
    problems, _ = image_problems(f"[[section]] {item}: image", section["pixel_size_um"], options)
    problems += model_problems(options.model)
    if problems:
        raise BadInput(problems)
    slide = _slide(context, item, ingest=ingest, section=section, output=output)
    units = context.ledger.units(NAME, item, output)
    framework = model_framework(options.model, options.backend)

    def workers(function: Any, arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return context.pool.map(function, arguments, ledger_units=units, framework=framework, gpu=framework == "torch")

    metrics = segment_slide(slide, workers)
    damaged = metrics.pop("damaged")
    spot = {"diameter_um": section["spot_diameter_um"], "cap": options.max_cells_per_spot}
    where = {"nuclei": str(output / "nuclei.parquet"), "spots": str(ingest / "spots.parquet"), "output": str(output)}
    metrics |= workers(count_cells, {"assign": {**where, **spot}})["assign"]
    metrics["windows_damaged"] = len(damaged)
    write_json(output / "summary.json", {**metrics, "model": options.model})
    n_tasks = metrics["tasks"] + 1
    return StageOutcome(done=n_tasks, total=n_tasks, failed=damaged, metrics=metrics)


def _slide(context: Context, item: str, *, ingest: Path, section: dict[str, Any], output: Path) -> Slide:
    image = section["image"]
    view, factor = _view(ingest / "view.zarr")
    return Slide(
        image=str(within(ingest, located(image["path"]))),
        shape=tuple(image["shape"]),
        pixel_size_um=section["pixel_size_um"],
        view=view,
        view_factor=factor,
        options=context.study.options.segment,
        output=str(output),
    )


def _view(levels: Path) -> tuple[str | None, float]:
    group: Any = open_group(levels)
    for number, factor in enumerate(group.attrs["scales"]):
        if math.prod(group[str(number)].shape[1:]) <= VIEW_PIXELS:
            return str(levels / str(number)), float(factor)
    return None, 1.0


def count_cells(nuclei: str, spots: str, output: str, diameter_um: float, cap: int | None) -> dict[str, Any]:
    """Write which spot holds each nucleus and how many cells each spot gets (worker).

    `nuclei.parquet` gains spot_id (null outside spots) and is_cell (inside a spot and within the
    cap); `spots.parquet` has n_nuclei and n_cells for every spot, in ingest's order.
    """
    found, places = read_frame(located(nuclei), columns=["y_um", "x_um", "probability"]), read_frame(located(spots))
    rows = assign_to_spots(
        found[["y_um", "x_um"]].to_numpy(), places[["y_um", "x_um"]].to_numpy(), radius_um=diameter_um / 2
    )
    limit = cap if cap is not None else default_cap(diameter_um)
    is_cell = keep_most_probable(rows, found["probability"].to_numpy(), cap=limit)
    n_nuclei = np.bincount(rows[rows >= 0], minlength=len(places))
    n_cells = np.bincount(rows[is_cell], minlength=len(places))
    counts = pd.DataFrame({"spot_id": places["spot_id"], "n_nuclei": n_nuclei, "n_cells": n_cells})
    assigned = _assigned(located(nuclei), places["spot_id"], rows, is_cell)
    write_frame_parts(located(output) / "nuclei.parquet", assigned)
    write_frame(located(output) / "spots.parquet", counts)
    return {
        "nuclei_in_spots": int((rows >= 0).sum()),
        "cells": int(n_cells.sum()),
        "dropped_by_cap": int(n_nuclei.sum() - n_cells.sum()),
        "cap": int(limit),
        "spots_without_nucleus": int((n_nuclei == 0).sum()),
    }


def _assigned(
    nuclei: Path, spot_ids: pd.Series, rows: NDArray[np.int64], is_cell: NDArray[np.bool_]
) -> Iterator[pd.DataFrame]:
    ids = spot_ids.astype(object).to_numpy()
    start = 0
    for part in read_frame_parts(nuclei):
        here = slice(start, start + len(part))
        part["spot_id"] = pd.array([ids[row] if row >= 0 else None for row in rows[here]], dtype="string")
        part["is_cell"] = is_cell[here]
        start = here.stop
        yield part
