"""From surviving candidates to nuclei on disk: traced per block, numbered per band of rows, painted per shard.

A band is some rows of the source, as many pixels whatever the slide's width; the nuclei whose
centroids lie in it are sorted by (y, x), and the sizes of the bands before it give their ids.
Nothing holds more than a few bands, but for the area of each nucleus of the slide (their median).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.geometry.tiles import Box, WindowGrid, shard_boxes
from spatialscope_dist.nuclei.border_audit import EdgeCounts, core_lines, crosses_cores, edge_counts
from spatialscope_dist.nuclei.candidates import Candidates, polygon_bounds
from spatialscope_dist.nuclei.paint import overlaps_box, paint_labels
from spatialscope_dist.nuclei.polygons import Nuclei, in_canonical_order, join_nuclei, trace_nuclei
from spatialscope_dist.nuclei.stardist_model import ModelFacts
from spatialscope_dist.steps.slide_spec import LABEL_CHUNK, LABEL_SHARD, Slide, Workers, save_array
from spatialscope_dist.steps.slide_suppression import load_kept
from spatialscope_dist.store.arrays import create_array, load_npy, write_region
from spatialscope_dist.store.frames import write_frame_parts

BAND_PIXELS = 1 << 25
BATCH_ROWS = 16_384


#: Number of a band, how many nuclei it holds, the id before its first, and the rows its polygons touch.
Band = dict[str, Any]


def settle_nuclei(
    slide: Slide, workers: Workers, rounds: dict[str, int], *, facts: ModelFacts
) -> tuple[dict[str, Any], list[Band]]:
    """Return what was found and where it lies; leaves nuclei.parquet and polygons.zarr in the slide's folder.

    Parameters
    ----------
    slide : Slide
        Its `candidates` folder holds the blocks.
    workers : callable
        Runs the units.
    rounds : dict
        The round of each block's final state.
    facts : ModelFacts
        Rays and halo of the model.
    """
    blocks = {
        f"trace_{name}": {"slide": slide, "name": name, "last": last, "grid": slide.grid(facts)}
        for name, last in sorted(rounds.items())
    }
    traced = workers(trace_block, blocks)
    members: dict[int, list[str]] = {}
    for unit, arguments in blocks.items():
        for band in traced[unit]["bands"]:
            members.setdefault(int(band), []).append(str(arguments["name"]))
    units = {f"band_{band:05d}": {"slide": slide, "band": band, "names": members[band]} for band in sorted(members)}
    sorted_bands = workers(sort_band, units)
    bands: list[Band] = []
    for unit, arguments in units.items():
        first = bands[-1]["first"] + bands[-1]["nuclei"] if bands else 0
        bands.append({"band": arguments["band"], "first": first, **sorted_bands[unit]})
    written = workers(write_nuclei, {"write": {"slide": slide, "bands": bands, "n_rays": facts.n_rays}})["write"]
    totals = ("nuclei", "crossing", "nuclei_beyond_halo")
    return {**{total: sum(done[total] for done in traced.values()) for total in totals}, **written}, bands


def trace_block(slide: Slide, name: str, last: int, grid: WindowGrid) -> dict[str, Any]:
    """Write the outlines of a block's survivors (worker)."""
    kept = load_kept(slide.folder / "candidates", name, last)
    found = trace_nuclei(kept, scale=slide.scale)
    _save(slide.folder / "candidates" / name, found)
    numbers, counts = np.unique(_bands(found, slide), return_counts=True)
    return {
        "nuclei": len(found),
        "crossing": int(crosses_cores(polygon_bounds(kept), grid).sum()),
        "nuclei_beyond_halo": int((kept.distances > grid.halo).any(axis=1).sum()),
        "bands": dict(zip(map(str, numbers.tolist()), counts.tolist(), strict=True)),
    }


def band_rows(width: int) -> int:
    """Return how many rows of a slide of that width make a band."""
    return max(1, BAND_PIXELS // width)


def _bands(found: Nuclei, slide: Slide) -> NDArray[np.int64]:
    _, height, width = slide.shape
    rows = band_rows(width)
    return np.clip(np.floor(found.centroids[:, 0] / rows), 0, (height - 1) // rows).astype(np.int64)


def sort_band(slide: Slide, band: int, names: list[str]) -> dict[str, Any]:
    """Write the nuclei of one band in canonical order (worker)."""
    parts = []
    for name in names:
        found = load_traced(slide, name)
        parts.append(found.take(np.flatnonzero(_bands(found, slide) == band)))
    nuclei = in_canonical_order(parts)
    _save(slide.folder / "candidates" / f"band{band:05d}", nuclei)
    rows = nuclei.polygons[..., 0]
    return {"nuclei": len(nuclei), "rows": [float(rows.min()), float(rows.max())]}


def _save(path: Path, found: Nuclei) -> None:
    for part in Nuclei.__dataclass_fields__:
        save_array(path.with_name(f"{path.name}.traced_{part}.npy"), getattr(found, part))


def load_traced(slide: Slide, name: str) -> Nuclei:
    """Return the nuclei of a block or band, left on disk until used."""
    path, parts = slide.folder / "candidates", Nuclei.__dataclass_fields__
    return Nuclei(*(load_npy(path / f"{name}.traced_{part}.npy") for part in parts))


def write_nuclei(slide: Slide, bands: list[Band], n_rays: int) -> dict[str, Any]:
    """Write the table and the outlines of all nuclei, piece by piece (worker)."""
    polygons = slide.folder / "polygons.zarr"
    total = sum(band["nuclei"] for band in bands)
    size = max(1, min(total, BATCH_ROWS)), n_rays, 2
    axes = ("nucleus", "ray", "coordinate")
    create_array(polygons, shape=(total, n_rays, 2), dtype=np.float32, chunks=size, axes=axes)
    areas = [np.empty(0)]

    def frames() -> Iterator[pd.DataFrame]:
        first = 0
        for batch in _batches(slide, bands, n_rays):
            if len(batch):
                write_region(
                    polygons, (slice(first, first + len(batch)), slice(0, n_rays), slice(0, 2)), batch.polygons
                )
            frame = _frame(batch, slide.pixel_size_um, first=first)
            areas.append(frame["area_um2"].to_numpy())
            first += len(batch)
            yield frame

    write_frame_parts(slide.folder / "nuclei.parquet", frames())
    return {"median_area_um2": float(np.median(np.concatenate(areas))) if total else None}


def _batches(slide: Slide, bands: list[Band], n_rays: int) -> Iterator[Nuclei]:
    none = Candidates(np.empty((0, 2), np.int32), np.empty((0, n_rays), np.float32), np.empty(0, np.float32))
    waiting = trace_nuclei(none, scale=1.0)
    for band in bands:
        found = load_traced(slide, f"band{band['band']:05d}")
        waiting = join_nuclei([waiting, found])
        while len(waiting) >= BATCH_ROWS:
            yield waiting.take(slice(0, BATCH_ROWS))
            waiting = waiting.take(slice(BATCH_ROWS, None))
    if len(waiting) or not bands:
        yield waiting


def _frame(nuclei: Nuclei, um: float, *, first: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "nucleus_id": np.arange(first + 1, first + len(nuclei) + 1),
            "y_px": nuclei.centroids[:, 0],
            "x_px": nuclei.centroids[:, 1],
            "y_um": nuclei.centroids[:, 0] * um,
            "x_um": nuclei.centroids[:, 1] * um,
            "area_um2": nuclei.areas * um**2,
            "probability": nuclei.probability,
        }
    )


def paint_labels_of(slide: Slide, workers: Workers, bands: list[Band], *, grid: WindowGrid) -> list[dict[str, Any]]:
    """Return the results of all shards; leaves labels.zarr in the slide's folder."""
    shape = slide.shape[1], slide.shape[2]
    labels = slide.folder / "labels.zarr"
    if not (labels / "zarr.json").exists():
        sizes = (LABEL_CHUNK, LABEL_CHUNK), (LABEL_SHARD, LABEL_SHARD)
        create_array(labels, shape=shape, dtype=np.uint32, chunks=sizes[0], shards=sizes[1], axes=("y", "x"))
    units = {}
    for number, box in enumerate(shard_boxes(shape, LABEL_SHARD)):
        near = [band for band in bands if band["rows"][0] < box.y1 + 1 and band["rows"][1] >= box.y0 - 1]
        units[f"paint_{number:05d}"] = {"slide": slide, "box": box, "bands": near, "grid": grid}
    return list(workers(paint_shard, units).values())


def paint_shard(slide: Slide, box: Box, bands: list[Band], grid: WindowGrid) -> dict[str, Any]:
    """Write one shard of the label image; return how often outlines cut core borders in it (worker)."""
    box = Box(*box)
    found, ids = [], [np.empty(0, np.int64)]
    for band in bands:
        nuclei = load_traced(slide, f"band{band['band']:05d}")
        near = overlaps_box(nuclei.polygons, box)
        found.append(nuclei.take(near))
        ids.append(band["first"] + near + 1)
    numbers = np.concatenate(ids)
    if len(numbers) == 0:
        return {"nuclei": 0, "edges": EdgeCounts()}
    together = join_nuclei(found)
    labels = paint_labels(together.polygons, numbers, rank=together.paint_rank, box=box)
    write_region(slide.folder / "labels.zarr", box.slices, labels)
    lines = core_lines(grid.rows, slide.scale), core_lines(grid.columns, slide.scale)
    return {"nuclei": len(numbers), "edges": edge_counts(labels, box, *lines)}
