"""Segmenting one slide on workers: what `segment` and `segment-image` share.

prepare (model, tissue) → percentiles → candidates per task of windows → suppression in rounds of
blocks → outlines, ids and label shards. Every unit opens the image by path, writes its own files
whole, and returns little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.geometry.tiles import WindowGrid
from spatialscope_dist.nuclei.stardist_model import ModelFacts
from spatialscope_dist.steps.slide_audit import audit_borders, edge_summary
from spatialscope_dist.steps.slide_morphology import measure_morphology
from spatialscope_dist.steps.slide_nuclei import paint_labels_of, settle_nuclei
from spatialscope_dist.steps.slide_spec import Slide, Workers
from spatialscope_dist.steps.slide_suppression import suppress_in_rounds
from spatialscope_dist.steps.slide_windows import predict_windows, prepare, slide_percentiles
from spatialscope_dist.store.documents import remove_tree

_TOTALS = ("candidates", "windows_widened", "candidates_beyond_wide_halo")


def segment_slide(slide: Slide, workers: Workers) -> dict[str, Any]:
    """Return counts of what was found; leaves nuclei.parquet, polygons.zarr and labels.zarr in the slide's folder.

    `damaged` holds the places that could not be looked at, with the reasons.

    Raises
    ------
    BadInput
        When image and model do not fit together or nothing of the image can be read.
    """
    workers, n_units = _counting(workers)
    prepared = workers(prepare, {"prepare": {"slide": slide}})["prepare"]
    facts = ModelFacts(**prepared["model"])
    level = prepared["level"]
    slide = replace(slide, **level | {"level_shape": tuple(level["level_shape"])})
    grid, wanted = slide.grid(facts), prepared["windows"]
    low, high = slide_percentiles(slide, workers)
    predicted = workers(predict_windows, _tasks_of(slide, grid, wanted, stretch=(low, high)))
    damaged = _damaged(slide, list(predicted.values()), n_windows=len(wanted))
    bounds = {name: done["bounds"] for name, done in predicted.items() if done["candidates"]}
    rounds, n_rounds = suppress_in_rounds(slide, workers, bounds, threshold=slide.thresholds(facts)[1])
    settled, bands = settle_nuclei(slide, workers, rounds, facts=facts)
    measure_morphology(slide, workers, bands)
    painted = paint_labels_of(slide, workers, bands, grid=grid)
    audit = audit_borders(slide, workers, wanted, bands, stretch=(low, high))
    remove_tree(slide.folder / "candidates")
    audit |= {**edge_summary(painted), "nuclei_crossing_cores": settled.pop("crossing")}
    return {
        **settled,
        **{total: sum(done[total] for done in predicted.values()) for total in _TOTALS},
        "border_audit": audit,
        "windows": len(grid),
        "windows_predicted": len(wanted) - len(damaged),
        "damaged": damaged,
        "suppression_rounds": n_rounds,
        "tissue_share": prepared["tissue_share"],
        "percentiles": [low, high],
        "thresholds": slide.thresholds(facts),
        "scale": slide.scale,
        "level": slide.level,
        "level_factor": slide.level_factor,
        "tasks": n_units(),
    }


def _tasks_of(
    slide: Slide, grid: WindowGrid, wanted: list[int], *, stretch: tuple[float, float]
) -> dict[str, dict[str, Any]]:
    of_interest = set(wanted)
    chosen = {
        f"predict_{slide.options.tile}_{task}": [index for index in windows if index in of_interest]
        for task, windows in grid.tasks(slide.options.tile).items()
    }
    return {
        name: {"slide": slide, "name": name, "windows": windows, "low": stretch[0], "high": stretch[1]}
        for name, windows in chosen.items()
        if windows
    }


def _damaged(slide: Slide, predicted: list[dict[str, Any]], *, n_windows: int) -> dict[str, str]:
    damaged = {place: reason for done in predicted for place, reason in done["damaged"].items()}
    if n_windows and len(damaged) == n_windows:
        found = f"no window that can be read ({next(iter(damaged.values()))})"
        raise BadInput(Problem(slide.image, found, "a whole image file", "Copy or export the image again."))
    return damaged


def _counting(workers: Workers) -> tuple[Workers, Callable[[], int]]:
    counts: list[int] = []

    def counting(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
        counts.append(len(units))
        return workers(function, units)

    return counting, lambda: sum(counts)
