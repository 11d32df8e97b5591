"""What the report shows of a section, read from the stages' outputs in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.location import located, within
from spatialscope_dist.randomness import generator
from spatialscope_dist.readers.images import open_image
from spatialscope_dist.report.views import CropView, ImageView, MarkerView, SectionView, UncertaintyView
from spatialscope_dist.store.arrays import open_array, open_group, read_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
CROP_IN_DIAMETERS, CROP_UM = 4.5, (150.0, 300.0)
CROP_QUANTILE = 0.75
SHOWN_BLOCKS = 8
MARKER_SPECIFICITY, MARKER_FREQUENCY = 2 / 3, 0.02


@dataclass(frozen=True)
class SectionFolders:
    """Outputs of the stages for one section; None where a stage was skipped. ``identify`` is the section's own."""

    name: str
    ingest: Path
    segment: Path | None
    identify: Path | None
    decompose: Path | None
    reference: Path | None


@dataclass(frozen=True)
class Limits:
    """How much is drawn: longest edge of a slide picture, points of a map, and the seed of random subsets."""

    max_image_px: int
    max_points: int
    seed: int


@dataclass(frozen=True)
class MarkerChoice:
    """A gene, the type it marks, and the type's share of its expression summed over types, in [0, 1]."""

    gene: str
    cell_type: str
    specificity: float

    def words(self, total: float) -> str:
        """Return why the gene is shown; ``total`` is its UMI in the section."""
        return (
            f"a marker of {self.cell_type} ({self.specificity:.0%} of its expression summed over the reference's "
            f"types; {total:,.0f} UMI in the section)"
        )


def view_section(folders: SectionFolders, *, limits: Limits, marker: str | None) -> SectionView:
    """Return what is drawn of one section; runs on a worker."""
    about = read_json(folders.ingest / "section.json")
    size = about["pixel_size_um"] or 1.0
    spots = _spots(folders, size)
    shown = _subset(len(spots), limits, "spots", folders.name)
    cells = None if folders.identify is None else read_frame(folders.identify / "cells.parquet")
    drawn = None if cells is None else _subset(len(cells), limits, "cells", folders.name)
    nuclei = None if folders.segment is None else read_frame(folders.segment / "nuclei.parquet")
    identify = {} if folders.identify is None else read_json(folders.identify / "summary.json")
    return SectionView(
        name=folders.name,
        spot_diameter_um=float(about["spot_diameter_um"]),
        n_spots=len(spots),
        spots=spots.iloc[shown],
        n_nuclei=None if nuclei is None else len(nuclei),
        n_cells=0 if cells is None else len(cells),
        cells=None if cells is None or drawn is None else _placed(cells.iloc[drawn], size),
        proportions=_proportions(folders, shown),
        type_counts={} if cells is None else {str(k): int(v) for k, v in cells["cell_type"].value_counts().items()},
        overview=_overview(folders, spots, about, limits),
        crop=_crop(folders, spots, about, nuclei=nuclei, cells=cells),
        marker=_marker(folders, cells, shown=shown, drawn=drawn, wanted=marker),
        uncertainty=_uncertainty(folders),
        energy=[float(value) for value in identify.get("energy", [])],
        residuals=None if folders.decompose is None else _column(folders.decompose / "spots.parquet", "residual"),
        confidence=None if cells is None or "confidence" not in cells else cells["confidence"].to_numpy(np.float64),
        segment={} if folders.segment is None else read_json(folders.segment / "summary.json"),
        identify=identify,
        decompose={} if folders.decompose is None else read_json(folders.decompose / "summary.json"),
    )


def _subset(count: int, limits: Limits, what: str, section: str) -> NDArray[np.int64]:
    """Return the rows that are drawn, ascending: all, or a random subset."""
    if count <= limits.max_points:
        return np.arange(count)
    rng = generator(limits.seed, "report", section, what)
    return np.sort(rng.choice(count, limits.max_points, replace=False))


def _placed(frame: pd.DataFrame, size: float) -> pd.DataFrame:
    """Return a frame with y_um and x_um in the section's own µm: aligned coordinates are not those of the image."""
    return frame.assign(y_um=frame["y_px"] * size, x_um=frame["x_px"] * size)


def _spots(folders: SectionFolders, size: float) -> pd.DataFrame:
    spots = _placed(read_frame(folders.ingest / "spots.parquet"), size)
    for folder in (folders.identify, folders.segment):
        if folder is not None and (folder / "spots.parquet").exists():
            more = read_frame(folder / "spots.parquet")
            spots = spots.assign(**{name: more[name].to_numpy() for name in ("n_cells", "status") if name in more})
            break
    return spots


def _column(path: Path, name: str) -> Array | None:
    frame = read_frame(path)
    return frame[name].to_numpy(np.float64) if name in frame else None


def _proportions(folders: SectionFolders, shown: NDArray[np.int64]) -> Array | None:
    if folders.identify is None or not (folders.identify / "proportions.zarr").exists():
        return None
    return np.asarray(read_array(folders.identify / "proportions.zarr"), dtype=np.float64)[shown]


def _overview(
    folders: SectionFolders, spots: pd.DataFrame, about: Mapping[str, Any], limits: Limits
) -> ImageView | None:
    """Return the part of the slide that holds the spots, from the finest viewing level that is not too large."""
    levels = folders.ingest / "view.zarr"
    if about["image"] is None or not levels.exists():
        return None
    attributes: Any = open_group(levels).attrs
    factors = [float(factor) for factor in attributes["scales"]]
    margin = 1.0 * float(about["spot_diameter_um"]) / about["pixel_size_um"] + 20
    places = spots[["y_px", "x_px"]].to_numpy(np.float64)
    low, high = np.maximum(places.min(axis=0) - margin, 0), places.max(axis=0) + margin
    edge = float((high - low).max())
    level = next((n for n, factor in enumerate(factors) if edge / factor <= limits.max_image_px), len(factors) - 1)
    array, factor = open_array(levels / str(level)), factors[level]
    top, left = (int(value // factor) for value in low)
    bottom, right = (int(-(-value // factor)) for value in high)
    step = max(1, int(np.ceil(edge / factor / limits.max_image_px)))
    pixels = np.asarray(array[:, top:bottom, left:right])[:, ::step, ::step]
    scale = factor * about["pixel_size_um"]
    return ImageView(_rgb(pixels), (top * scale, left * scale), scale * step)


def _rgb(pixels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return (y, x, 3) uint8 of (channels, y, x): one channel as grey, 16 bits brought to 8."""
    if pixels.dtype != np.uint8:
        pixels = (pixels / max(int(pixels.max(initial=1)), 1) * 255).astype(np.uint8)
    three = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.ascontiguousarray(np.moveaxis(three, 0, -1)).astype(np.uint8)


def _crop(
    folders: SectionFolders,
    spots: pd.DataFrame,
    about: Mapping[str, Any],
    *,
    nuclei: pd.DataFrame | None,
    cells: pd.DataFrame | None,
) -> CropView | None:
    """Return a small field at full resolution, denser in nuclei than those around three spots in four."""
    if about["image"] is None or nuclei is None or not len(nuclei) or folders.segment is None:
        return None
    from scipy.spatial import cKDTree

    size = float(about["pixel_size_um"])
    side = float(np.clip(CROP_IN_DIAMETERS * about["spot_diameter_um"], *CROP_UM)) / size
    places, found = spots[["y_px", "x_px"]].to_numpy(np.float64), nuclei[["y_px", "x_px"]].to_numpy(np.float64)
    near = np.atleast_1d(cKDTree(found).query_ball_point(places, side / 2, p=np.inf, return_length=True))
    height, width = about["image"]["shape"][1:]
    centre = places[np.argsort(near, kind="stable")[int(CROP_QUANTILE * (len(near) - 1))]]
    top = int(np.clip(centre[0] - side / 2, 0, max(height - side, 0)))
    left = int(np.clip(centre[1] - side / 2, 0, max(width - side, 0)))
    bottom, right = min(int(top + side), height), min(int(left + side), width)
    inside = _within(found, (top, bottom, left, right))
    pixels = open_image(within(folders.ingest, located(about["image"]["path"]))).read(top, bottom, left, right)
    return CropView(
        ImageView(_rgb(pixels), (top * size, left * size), size),
        _outlines(folders.segment / "polygons.zarr", inside, size),
        _types_of(nuclei.iloc[inside], cells),
        places[_within(places, (top, bottom, left, right))] * size,
    )


def _within(points: Array, box: tuple[int, int, int, int]) -> NDArray[np.int64]:
    top, bottom, left, right = box
    inside = (points[:, 0] >= top) & (points[:, 0] < bottom) & (points[:, 1] >= left) & (points[:, 1] < right)
    return np.flatnonzero(inside)


def _outlines(path: Path, rows: NDArray[np.int64], size: float) -> list[Array]:
    """Return the polygons of some nuclei in µm; rows lie close together, since nuclei are in (y, x) order."""
    if not len(rows):
        return []
    first, last = int(rows[0]), int(rows[-1])
    slab = np.asarray(open_array(path)[first : last + 1], dtype=np.float64)
    return [slab[row - first] * size for row in rows]


def _types_of(nuclei: pd.DataFrame, cells: pd.DataFrame | None) -> list[str]:
    if cells is None or "nucleus_id" not in cells:
        return [""] * len(nuclei)
    known = cells.dropna(subset=["nucleus_id"])
    types = dict(zip(known["nucleus_id"].astype(int), known["cell_type"].astype(str), strict=True))
    return [types.get(int(number), "") for number in nuclei["nucleus_id"]]


def choose_marker(reference: Path, type_counts: Mapping[str, int], totals: Mapping[str, float]) -> MarkerChoice | None:
    """Return the marker of a frequent type that is specific and well measured: highest specificity times total UMI.

    Specificity is the type's share of the gene's expression summed over the types of the reference. Types of at least
    2 % of the cells and genes of a specificity of at least two thirds are preferred.

    Parameters
    ----------
    type_counts
        Cells of each type in the section.
    totals
        UMI in the section of each gene that may be shown.
    """
    markers, types = read_json(reference / "panel.json").get("markers", {}), read_json(reference / "types.json")
    column = {gene: number for number, gene in enumerate(read_json(reference / "genes.json"))}
    pairs = [(name, gene) for name in types for gene in markers.get(name, []) if gene in totals and totals[gene] > 0]
    pairs = [pair for pair in pairs if type_counts.get(pair[0], 0) > 0]
    if not pairs:
        return None
    profiles = read_array(reference / "signatures.zarr")[:, [column[gene] for _, gene in pairs]]
    rows = [types.index(name) for name, _ in pairs]
    specificity = profiles[rows, np.arange(len(pairs))] / np.maximum(profiles.sum(axis=0), 1e-300)
    frequent = np.array([type_counts[name] for name, _ in pairs]) >= MARKER_FREQUENCY * sum(type_counts.values())
    preferred = 2.0 * frequent + (specificity >= MARKER_SPECIFICITY)
    measured = specificity * np.array([totals[gene] for _, gene in pairs])
    best = int(np.lexsort((-measured, -preferred))[0])
    return MarkerChoice(pairs[best][1], pairs[best][0], float(specificity[best]))


def _marker(
    folders: SectionFolders,
    cells: pd.DataFrame | None,
    *,
    shown: NDArray[np.int64],
    drawn: NDArray[np.int64] | None,
    wanted: str | None,
) -> MarkerView | None:
    """Return one gene in the drawn spots and cells, read by blocks."""
    if folders.decompose is None or folders.reference is None or cells is None or drawn is None:
        return None
    counts, panel = open_counts(folders.ingest / "counts.zarr"), read_json(folders.reference / "panel.json")["genes"]
    frequency = {str(k): int(v) for k, v in cells["cell_type"].value_counts().items()}
    totals = dict(zip(counts.genes, np.asarray(counts.column_sums(), dtype=np.float64).tolist(), strict=True))
    totals = {gene: totals[gene] for gene in panel if gene in totals}
    chosen = None if wanted in totals else choose_marker(folders.reference, frequency, totals)
    gene = wanted if chosen is None else chosen.gene
    if gene not in totals:
        return None
    reason = "chosen in the options" if chosen is None else chosen.words(totals[gene])
    column = counts.genes.index(gene)
    in_spots = np.concatenate([np.asarray(block[:, [column]].todense()).ravel() for _, block in counts.blocks()])
    mean, place = open_array(folders.decompose / "mean.zarr"), panel.index(gene)
    rows = (mean.shards or mean.chunks)[0]
    parts = [np.asarray(mean[low : low + rows, place]) for low in range(0, mean.shape[0], rows)]
    in_cells = np.concatenate([np.atleast_1d(part) for part in parts]).astype(np.float64)
    in_cells = np.nan_to_num(in_cells)
    spot_rows = cells["spot_row"].to_numpy(np.int64)
    exposure = float(np.asarray(read_array(folders.decompose / "exposure.zarr"))[place])
    predicted = np.asarray(np.bincount(spot_rows, in_cells, len(in_spots)) * exposure, dtype=np.float64)
    predicted[np.bincount(spot_rows, minlength=len(in_spots)) == 0] = np.nan
    return MarkerView(gene, reason, in_spots[shown].astype(np.float64), predicted[shown], in_cells[drawn])


def _uncertainty(folders: SectionFolders) -> UncertaintyView | None:
    """Return mean and sd of entries with at least one count, from a few whole chunks spread over the section."""
    if folders.decompose is None:
        return None
    mean, sd = open_array(folders.decompose / "mean.zarr"), open_array(folders.decompose / "sd.zarr")
    rows = min(mean.chunks[0], 256)
    starts = np.unique(np.linspace(0, max(mean.shape[0] - rows, 0), SHOWN_BLOCKS).astype(int) // rows * rows)
    means = np.concatenate([np.asarray(mean[low : low + rows]).ravel() for low in starts]).astype(np.float64)
    sds = np.concatenate([np.asarray(sd[low : low + rows]).ravel() for low in starts]).astype(np.float64)
    kept = np.isfinite(means) & np.isfinite(sds) & (means >= 1)
    return UncertaintyView(means[kept], sds[kept]) if kept.any() else None
