"""Segmenting one slide on workers: what `segment` and `segment-image` share.

prepare (model, tissue) → percentiles → candidates per task of windows → suppression in rounds of
blocks → outlines, ids and label shards. Every unit opens the image by path, writes its own files
whole, and returns little.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from spatialscope_dist.nuclei.stardist_model import ModelFacts
from spatialscope_dist.steps.slide_audit import audit_borders, edge_summary
from spatialscope_dist.steps.slide_morphology import measure_morphology
from spatialscope_dist.steps.slide_nuclei import paint_labels_of, settle_nuclei
from spatialscope_dist.steps.slide_spec import Slide, Workers
from spatialscope_dist.steps.slide_suppression import suppress_in_rounds
from spatialscope_dist.steps.slide_windows import predict_windows, prepare, slide_percentiles


def segment_slide(slide: Slide, workers: Workers) -> dict[str, Any]:
    """Return counts of what was found; leaves nuclei.parquet, polygons.zarr and labels.zarr in the slide's folder.

    Raises
    ------
    BadInput
        When image and model do not fit together or cannot be read.
    """
    workers, n_units = _counting(workers)
    prepared = workers(prepare, {"prepare": {"slide": slide}})["prepare"]
    facts = ModelFacts(**prepared["model"])
    shape = prepared["level"].pop("level_shape")
    slide = replace(slide, level_shape=tuple(shape), **prepared["level"])
    low, high = slide_percentiles(slide, workers)
    wanted = set(prepared["windows"])
    tasks = slide.grid(facts).tasks(slide.options.tile)
    units = {
        name: {"slide": slide, "name": name, "windows": chosen, "low": low, "high": high}
        for task, windows in tasks.items()
        if (chosen := [index for index in windows if index in wanted])
        and (name := f"predict_{slide.options.tile}_{task}")
    }
    predicted = workers(predict_windows, units)
    bounds = {name: done["bounds"] for name, done in predicted.items() if done["candidates"]}
    rounds, n_rounds = suppress_in_rounds(slide, workers, bounds, threshold=slide.thresholds(facts)[1])
    settled, bands = settle_nuclei(slide, workers, rounds, facts=facts)
    measure_morphology(slide, workers, bands)
    painted = paint_labels_of(slide, workers, bands, grid=slide.grid(facts))
    audit = audit_borders(slide, workers, sorted(wanted), bands, stretch=(low, high))
    shutil.rmtree(slide.folder / "candidates", ignore_errors=True)
    counted = {
        total: sum(done[total] for done in predicted.values())
        for total in ("candidates", "windows_widened", "candidates_beyond_wide_halo")
    }
    audit |= {**edge_summary(painted), "nuclei_crossing_cores": settled.pop("crossing")}
    counted["nuclei_beyond_halo"] = settled.pop("beyond_halo")
    return {
        **settled,
        **counted,
        "border_audit": audit,
        "windows": len(slide.grid(facts)),
        "windows_predicted": len(wanted),
        "suppression_rounds": n_rounds,
        "tissue_share": prepared["tissue_share"],
        "percentiles": [low, high],
        "thresholds": slide.thresholds(facts),
        "scale": slide.scale,
        "level": slide.level,
        "level_factor": slide.level_factor,
        "tasks": n_units(),
    }


def _counting(workers: Workers) -> tuple[Workers, Callable[[], int]]:
    counts: list[int] = []

    def counting(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
        counts.append(len(units))
        return workers(function, units)

    return counting, lambda: sum(counts)
