"""Maps of a section: the slide, nuclei, cells by type, composition of spots, one gene before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.report.drawing import (
    Extent,
    extent_of,
    figure,
    map_axes,
    map_size,
    point_area,
    scatter_types,
    to_png,
    type_legend,
)
from spatialscope_dist.report.page import Picture
from spatialscope_dist.report.palette import SEQUENTIAL, Style
from spatialscope_dist.report.views import CropView, ImageView, MarkerView, SectionView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
CELL_DIAMETER_UM = 8.0
SKEWED = 6.0


def section_extent(section: SectionView) -> Extent:
    """Return the extent in µm that every map of a section shares: its spots and a margin."""
    return extent_of(places(section.spots), 0.75 * section.spot_diameter_um + 10)


def places(frame: object) -> Array:
    """Return (y, x) µm of the rows of a frame, (rows, 2)."""
    return np.asarray(frame[["y_um", "x_um"]], dtype=np.float64)  # type: ignore[index]


def draw_slide(section: SectionView) -> Picture:
    """Return the slide where the spots are, beside the spots' total counts."""
    extent = section_extent(section)
    assert section.overview is not None
    with figure(1, 2, size=map_size(extent, columns=2, extra=0.7)) as (drawn, axes):
        _show(axes[0], section.overview)
        map_axes(axes[0], extent, title="Histology")
        if section.crop is not None:
            _box(axes[0], section.crop.image)
        map_axes(axes[1], extent, title="Total counts per spot")
        drawn.draw_without_rendering()
        _colour_spots(axes[1], section, section.spots["total_counts"].to_numpy(np.float64), "UMI", skewed="log")
        caption = (
            f"{section.name}: histology and the {_number(len(section.spots), section.n_spots, 'spots')}, same field "
            "and orientation (rows of the image run down). "
            + ("The box is enlarged below. " if section.crop is not None else "")
            + "Colours end at the 99th percentile (a logarithmic scale begins at the 1st)."
        )
        return Picture(to_png(drawn), caption, f"histology and total counts of {section.name}")


def draw_nuclei(crop: CropView, styles: Mapping[str, Style], *, name: str, spot_diameter_um: float) -> Picture:
    """Return a part of the slide as it is, and with the outlines of the nuclei coloured by cell type."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    image = crop.image
    height, width = (side * image.pixel_size_um for side in image.pixels.shape[:2])
    extent = (image.corner_um[0], image.corner_um[0] + height, image.corner_um[1], image.corner_um[1] + width)
    present = [kind for kind in crop.types if kind]
    with figure(1, 2, size=map_size(extent, columns=2, extra=1.6 if present else 0.0)) as (drawn, axes):
        for panel, title in zip(axes, ("Histology", "Nuclei found"), strict=True):
            _show(panel, image)
            map_axes(panel, extent, title=title)
        lines = [np.concatenate([outline, outline[:1]])[:, ::-1] for outline in crop.outlines]
        colours = [styles[kind].colour if kind in styles else "white" for kind in crop.types]
        widths = [1.8 if kind in styles else 0.7 for kind in crop.types]
        axes[1].add_collection(LineCollection(lines, colors=colours, linewidths=widths))
        centres = np.array([outline.mean(axis=0) for outline in crop.outlines]).reshape(-1, 2)
        scatter_types(axes[1], centres, crop.types, styles=styles, area=16, edge=0.5)
        for y, x in crop.spots_um:
            for colour, dashes, thick in (("white", "-", 2.6), ("black", (0, (4, 3)), 1.3)):
                ring = Circle((x, y), spot_diameter_um / 2, fill=False, ls=dashes, ec=colour, lw=thick, zorder=3)
                axes[1].add_patch(ring)
        if present:
            type_legend(drawn, styles, present)
        caption = (
            f"{name}: {len(crop.outlines)} nuclei in a field of {width:.0f} × {height:.0f} µm. Dashed circles are "
            "spots; nuclei inside bear the colour and marker of their cell type; others, outside every spot, have thin "
            "white outlines and no type."
        )
        return Picture(to_png(drawn), caption, f"nuclei of {name}")


def draw_cells(section: SectionView, styles: Mapping[str, Style]) -> Picture:
    """Return the map of cells by type."""
    assert section.cells is not None
    extent = section_extent(section)
    with figure(1, 1, size=map_size(extent, width=8.4, extra=1.9)) as (drawn, axes):
        map_axes(axes[0], extent)
        types = section.cells["cell_type"].astype(str).tolist()
        type_legend(drawn, styles, types)
        drawn.draw_without_rendering()
        area = point_area(axes[0], extent, CELL_DIAMETER_UM, smallest=_smallest(len(section.cells)))
        scatter_types(axes[0], places(section.cells), types, styles=styles, area=area)
        note = _number(len(section.cells), section.n_cells, "cells")
        caption = f"{section.name}: {note} at the places of their nuclei, by cell type. Points mark places, not sizes."
        return Picture(to_png(drawn), caption, f"cells of {section.name} by type")


def draw_composition(section: SectionView, types: Sequence[str], styles: Mapping[str, Style]) -> Picture:
    """Return one small map per frequent type: its share of every spot."""
    assert section.proportions is not None
    mean = np.nan_to_num(section.proportions).mean(axis=0)
    chosen = np.argsort(-mean, kind="stable")[: min(8, len(types))]
    extent = section_extent(section)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = map_size(extent, columns=columns, extra=0.8)
    top, diameter = _top(section.proportions[:, chosen].ravel()), _readable(section)
    with figure(rows, columns, size=(width, min(height * rows, 10.0))) as (drawn, axes):
        for panel in axes[len(chosen) :]:
            panel.set_visible(False)
        for panel, kind in zip(axes, chosen, strict=False):
            map_axes(panel, extent, title=types[kind])
        drawn.draw_without_rendering()
        for panel, kind in zip(axes, chosen, strict=False):
            points = _spots(panel, section, section.proportions[:, kind], (0.0, top), diameter_um=diameter)
        bar = drawn.colorbar(points, ax=axes[: len(chosen)], shrink=0.6, pad=0.01, aspect=30, extend="max")
        bar.set_label("share of the spot")
        more = f"the {len(chosen)} most frequent of {len(types)} types" if len(types) > len(chosen) else "all types"
        caption = (
            f"{section.name}: share of each cell type in every spot (posterior mean), {more}. One scale from 0 to "
            f"{top:.2f}, the 99th percentile of the shares shown; higher shares have the last colour. "
            + ("Spots are drawn larger than they are." if diameter > section.spot_diameter_um else "")
        )
        return Picture(to_png(drawn), caption, f"composition of the spots of {section.name}")


def draw_marker(section: SectionView) -> Picture:
    """Return one gene before (counts of spots), as its cells sum up, and after (expression of cells)."""
    assert section.marker is not None
    assert section.cells is not None
    marker, extent, diameter = section.marker, section_extent(section), _readable(section)
    with figure(1, 3, size=map_size(extent, columns=3, width=10.6, extra=2.4)) as (drawn, axes):
        for panel, title in zip(axes, ("measured in spots", "sum of the cells", "in single cells"), strict=True):
            map_axes(panel, extent, title=f"{marker.gene}, {title}")
        drawn.draw_without_rendering()
        limits = (0.0, max(_top(marker.spots), _top(marker.predicted)))
        for panel, values in zip(axes, (marker.spots, marker.predicted), strict=False):
            points = _spots(panel, section, values, limits, diameter_um=diameter)
        drawn.colorbar(points, ax=axes[:2], shrink=0.7, pad=0.01, extend="max").set_label("UMI per spot")
        order = np.argsort(marker.cells, kind="stable")
        spots = places(section.cells)[order]
        area = point_area(axes[2], extent, CELL_DIAMETER_UM, smallest=_smallest(len(spots)))
        values, top = marker.cells[order], _top(marker.cells)
        points = axes[2].scatter(
            spots[:, 1], spots[:, 0], s=area, c=values, vmin=0, vmax=top, cmap=SEQUENTIAL, linewidths=0
        )
        drawn.colorbar(points, ax=axes[2], shrink=0.7, pad=0.01, extend="max").set_label("counts per cell")
        caption = (
            f"{section.name}: {marker.gene}, {marker.reason}. Left: UMI of whole spots as measured. Middle: UMI "
            f"expected from the cells of each spot, same scale{_agreement(marker)}. Right: estimated (posterior mean) "
            "counts of single cells at the depth of the reference, hence another scale; high cells are drawn last. "
            "Scales end at the 99th percentile."
        )
        return Picture(to_png(drawn), caption, f"{marker.gene} in spots and cells of {section.name}")


def _agreement(marker: MarkerView) -> str:
    both = np.isfinite(marker.predicted)
    measured, predicted = marker.spots[both], marker.predicted[both]
    if len(measured) < 3 or measured.std() == 0 or predicted.std() == 0:
        return ""
    return f" (correlation with the measured {np.corrcoef(measured, predicted)[0, 1]:.2f})"


def _show(axes: Axes, view: ImageView) -> None:
    height, width = (side * view.pixel_size_um for side in view.pixels.shape[:2])
    top, left = view.corner_um
    axes.imshow(view.pixels, extent=(left, left + width, top + height, top), interpolation="antialiased")


def _box(axes: Axes, view: ImageView) -> None:
    from matplotlib.patches import Rectangle

    height, width = (side * view.pixel_size_um for side in view.pixels.shape[:2])
    corner = (view.corner_um[1], view.corner_um[0])
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec="black", lw=1.6))


def _colour_spots(
    axes: Axes,
    section: SectionView,
    values: Array,
    label: str,
    *,
    skewed: str = "linear",
    diameter_um: float | None = None,
) -> None:
    """Colour spots by a value; ``skewed`` = 'log' uses a logarithmic scale where a few spots tower over the rest."""
    from matplotlib.colors import LogNorm

    points, beyond = _spots(axes, section, values, (0.0, _top(values)), diameter_um=diameter_um), "max"
    positive = values[values > 0]
    if skewed == "log" and len(positive) and _top(values) > SKEWED * float(np.median(positive)):
        low = max(float(np.percentile(positive, 1)), 1.0)
        points.set_norm(LogNorm(vmin=low, vmax=_top(values), clip=True))
        label, beyond = f"{label} (log scale)", "both"
    drawn = axes.figure
    assert drawn is not None
    drawn.colorbar(points, ax=axes, shrink=0.7, pad=0.01, extend=beyond).set_label(label)


def _spots(  # type: ignore[no-untyped-def]
    axes: Axes,
    section: SectionView,
    values: Array,
    limits: tuple[float, float],
    *,
    diameter_um: float | None = None,
):
    """Draw spots as circles, of their true size unless another is given, coloured by a value."""
    from matplotlib.collections import EllipseCollection

    centres = places(section.spots)
    size = np.full(len(centres), diameter_um or section.spot_diameter_um)
    circles = EllipseCollection(
        size, size, np.zeros(len(centres)), units="xy", offsets=centres[:, ::-1], offset_transform=axes.transData
    )
    circles.set_array(np.ma.masked_invalid(values))
    circles.set_cmap(SEQUENTIAL)
    circles.set_clim(*limits)
    axes.add_collection(circles)
    return circles


def _readable(section: SectionView) -> float:
    """Return a diameter, µm, at which spots nearly touch, where gaps wider than half a spot would leave them tiny."""
    from scipy.spatial import cKDTree

    centres = places(section.spots)
    if len(centres) < 2:
        return section.spot_diameter_um
    distances, _ = cKDTree(centres).query(centres, k=[2])
    pitch = float(np.median(np.asarray(distances)))
    return max(section.spot_diameter_um, min(0.85 * pitch, 4 * section.spot_diameter_um))


def _smallest(count: int) -> float:
    """Return the smallest diameter of a point, in points, at which this many are seen and do not hide each other."""
    return 3.4 if count < 2000 else 2.2 if count < 10000 else 1.3


def _top(values: Array) -> float:
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite, 99)) if len(finite) else 1.0
    return high if high > 0 else max(float(finite.max(initial=0.0)), 1.0)


def _number(drawn: int, total: int, what: str) -> str:
    return f"{total:,} {what}" if drawn == total else f"{drawn:,} of {total:,} {what} (a random subset, for legibility)"
