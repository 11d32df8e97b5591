"""The border audit of a slide: corners of cores predicted again from their middle, edges counted while painting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box, Window
from spatialscope_dist.nuclei.border_audit import EdgeCounts, corner_window, count_matches, straight_edge_score
from spatialscope_dist.nuclei.suppression import suppress
from spatialscope_dist.steps.slide_nuclei import Band, load_traced
from spatialscope_dist.steps.slide_spec import Slide, Workers
from spatialscope_dist.steps.slide_windows import Look

MOST_WINDOWS = 8
ONE_WINDOW_IN = 50


def audit_borders(
    slide: Slide, workers: Workers, windows: Sequence[int], bands: list[Band], *, stretch: tuple[float, float]
) -> dict[str, Any]:
    """Return how well nuclei agree with those of windows around corners where cores meet, on a sample of them.

    Parameters
    ----------
    slide : Slide
        Segmented, its `candidates` folder still there.
    workers : callable
        Runs the units.
    windows : sequence of int
        Windows that were predicted.
    bands : list of Band
        Where the nuclei are.
    stretch : tuple of float
        Intensities that become 0 and 1.
    """
    n_sampled = min(MOST_WINDOWS, -(-len(windows) // ONE_WINDOW_IN))
    places = [len(windows) * (2 * number + 1) // (2 * n_sampled) for number in range(n_sampled)]
    units = {
        f"audit_{windows[place]:06d}": {"slide": slide, "index": windows[place], "bands": bands, "stretch": stretch}
        for place in places
    }
    done = list(workers(compare_shifted, units).values())
    total = sum(result["nuclei"] + result["shifted"] for result in done)
    return {
        "shifted_windows": sum(result["moved"] for result in done),
        "shifted_nuclei": sum(result["shifted"] for result in done),
        "shifted_agreement": 2 * sum(result["matches"] for result in done) / total if total else None,
    }


def edge_summary(painted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the straight-edge score of all shards together."""
    counts = EdgeCounts(*(sum(shard["edges"][part] for shard in painted) for part in range(4)))
    score, error = straight_edge_score(counts) or (None, None)
    return {"straight_edge_score": score, "straight_edge_error": error, **counts._asdict()}


def compare_shifted(slide: Slide, index: int, bands: list[Band], stretch: tuple[float, float]) -> dict[str, Any]:
    """Return how many nuclei a shifted window finds and how many of the slide's are the same (worker)."""
    look = Look(slide, *stretch)
    window = corner_window(look.grid[index], look.grid)
    if window is None:
        return {"moved": 0, "nuclei": 0, "shifted": 0, "matches": 0}
    try:
        found = look.candidates(Window(index, window.box, window.box))
    except BadInput:  # damaged there, which was told when the windows were predicted
        return {"moved": 0, "nuclei": 0, "shifted": 0, "matches": 0}
    threshold = slide.thresholds(look.facts)[1]
    kept = suppress(found.points, found.probability, lambda rows: found.distances[rows], threshold=threshold)
    shifted = kept.points[_inside(kept.points, window.core)]
    there = _peaks(slide, bands, window.core)
    matches = count_matches(shifted.astype(np.float64), there.astype(np.float64))
    return {"moved": 1, "nuclei": len(there), "shifted": len(shifted), "matches": matches}


def _peaks(slide: Slide, bands: list[Band], core: Box) -> NDArray[np.int32]:
    low, high = core.y0 / slide.scale, core.y1 / slide.scale
    parts = [np.empty((0, 2), np.int32)]
    for band in bands:
        if band["rows"][0] < high and band["rows"][1] > low:
            peaks = load_traced(slide, f"band{band['band']:05d}").peaks
            parts.append(peaks[_inside(peaks, core)])
    return np.concatenate(parts)


def _inside(points: NDArray[np.int32], box: Box) -> NDArray[np.bool_]:
    y, x = points.T
    result: NDArray[np.bool_] = (y >= box.y0) & (y < box.y1) & (x >= box.x0) & (x < box.x1)
    return result
