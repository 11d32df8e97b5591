"""Checks of places: do the spots lie on the image, and does the pixel size make sense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.findings import Findings
from spatialscope_dist.readers.table import SpotTable
from spatialscope_dist.study import SectionSpec

_OUTSIDE = 0.05  # share of spots beyond the image's edge that is refused
_OVERLAP = 0.5  # neighbours closer than this multiple of the diameter cannot be spots


def check_positions(spots: SpotTable, findings: Findings) -> bool:
    """Note coordinates that are missing or all the same; return whether they can be used."""
    lost = np.asarray(~np.isfinite(spots.positions_px).all(axis=1))
    expected = "a place (x, y) for every spot"
    if len(spots.positions_px) != len(spots.row_names):
        found = f"{len(spots.positions_px)} places for {len(spots.row_names)} spots"
        findings.problem(spots.where, found, expected, "Write the file again.")
        return False
    if lost.any():
        found = f"{int(lost.sum())} of {len(lost)} spots without coordinates (NaN)"
        findings.problem(spots.where, found, expected, "Remove these spots or complete the coordinates.")
        return False
    if len(lost) > 1 and (np.ptp(spots.positions_px, axis=0) == 0).all():
        found = f"all {len(lost)} spots at one place, {spots.positions_px[0, ::-1].tolist()}"
        findings.problem(spots.where, found, expected, 'Put the coordinates into obsm["spatial"].')
        return False
    return True


def check_on_image(
    spots: SpotTable, height: int, width: int, *, pixel_size_um: float | None, findings: Findings
) -> None:
    """Note spots that lie outside the image, with the likely cause."""
    outside = _share_outside(spots.positions_px, height, width)
    if outside == 0:
        return
    low, high = spots.positions_px.min(axis=0), spots.positions_px.max(axis=0)
    image = spots.image.name if spots.image is not None else "the image"
    found = (
        f"{outside:.0%} of the spots outside {image}: x {low[1]:.0f} to {high[1]:.0f} and y {low[0]:.0f} to "
        f"{high[0]:.0f}, the image is {width} wide and {height} high (pixels)"
    )
    if outside <= _OUTSIDE:
        findings.warn(f"{spots.where}: {found}")
        return
    hint = _cause(spots.positions_px, height, width, pixel_size_um)
    remedy = f"{hint}Give coordinates in pixels of this image, or the image they were measured on."
    findings.problem(spots.where, found, "spots in pixels of the image, (x, y) from its upper left corner", remedy)


def check_spacing(section: SectionSpec, spots: SpotTable, pixel_size_um: float, findings: Findings) -> None:
    """Note Visium spots that would overlap: a wrong pixel size or wrong units."""
    if section.platform != "visium" or len(spots.positions_px) < 2:
        return
    distance = np.asarray(cKDTree(spots.positions_px).query(spots.positions_px, k=2)[0])
    pitch = float(np.median(distance[:, 1])) * pixel_size_um
    diameter = section.diameter_um
    found = f"spots {pitch:.3g} µm apart (median), {diameter:g} µm wide, at {pixel_size_um:g} µm per unit"
    if pitch < _OVERLAP * diameter:
        remedy = "Correct pixel_size_um or spot_diameter_um, or the units of the coordinates."
        findings.problem(spots.where, found, "spots that lie side by side", remedy)
    elif pitch < 0.85 * diameter:
        findings.warn(f"{spots.where}: {found}: the spots overlap")


def check_resolution(
    section: SectionSpec, spots: SpotTable, pixel_size_um: float, options: SegmentOptions, findings: Findings
) -> None:
    """Note an image too coarse to see nuclei in, when nuclei are to be found in it."""
    if section.nuclei is not None or section.platform == "merfish" or spots.n_cells is not None:
        return
    image = spots.image.name if spots.image is not None else "the image"
    found = f"{image} at {pixel_size_um:.3g} µm per pixel"
    if pixel_size_um <= options.warn_pixel_size_um:
        return
    if pixel_size_um <= options.max_pixel_size_um:
        findings.warn(f"{spots.where}: {found}; nuclei are found less well above {options.warn_pixel_size_um:g} µm")
        return
    remedy = (
        "Give the full-resolution image with image and pixel_size_um, or given cells with nuclei, or leave the image "
        "out: the cells of each spot are then estimated from its counts."
    )
    expected = f"at most {options.max_pixel_size_um:g} µm per pixel to find nuclei"
    if spots.image_is_given:
        findings.problem(spots.where, found, expected, remedy)
    else:
        findings.warn(f"{spots.where}: {found}; {expected}: no nuclei are looked for in it. {remedy}")


def _share_outside(positions: NDArray[np.float64], height: int, width: int) -> float:
    inside = np.asarray((positions >= 0).all(axis=1) & (positions < [height, width]).all(axis=1))
    return float(1 - inside.mean()) if len(inside) else 0.0


def _cause(positions: NDArray[np.float64], height: int, width: int, pixel_size_um: float | None) -> str:
    if _share_outside(positions[:, ::-1], height, width) == 0:
        return "With x and y exchanged every spot lies inside. "
    if (positions < 0).any():
        return "Some coordinates are negative: they count from another corner or origin. "
    if pixel_size_um is not None and _share_outside(positions / pixel_size_um, height, width) == 0:
        return f"Divided by pixel_size_um ({pixel_size_um:g}) every spot lies inside: these look like µm. "
    shrink = float((positions.max(axis=0) / [height, width]).max())
    return f"The coordinates belong to an image at least {shrink:.3g} times as large: another resolution, or µm. "
