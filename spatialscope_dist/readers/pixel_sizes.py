"""µm per pixel as image metadata state it; None when they do not, or state a print resolution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0}
UM |= {"nm": 1e-3, "nanometer": 1e-3, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6, "meter": 1e6}
_TIFF_UM = {"INCH": 25_400.0, "CENTIMETER": 10_000.0, "MILLIMETER": 1_000.0, "MICROMETER": 1.0}
_LARGEST_UM = 10.0  # 72 to 600 dpi in a header are print resolutions: 42 µm and more


def aperio_um(description: str) -> float | None:
    """Return µm per pixel of an Aperio image description ("MPP = 0.4990").

    Examples
    --------
    >>> aperio_um("Aperio Image Library|AppMag = 20|MPP = 0.4990|Left = 25")
    0.499
    """
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    return _plausible(float(found.group(1))) if found else None


def ome_um(xml: str) -> float | None:
    """Return µm per pixel (PhysicalSizeX) of OME-XML."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    for element in root.iter():
        if element.tag.endswith("Pixels") and "PhysicalSizeX" in element.attrib:
            unit = UM.get(element.attrib.get("PhysicalSizeXUnit", "µm"))
            return None if unit is None else _plausible(float(element.attrib["PhysicalSizeX"]) * unit)
    return None


def tiff_um(description: str, pixels_per_unit: float, unit: str, *, is_imagej: bool = False) -> float | None:
    """Return µm per pixel of TIFF resolution tags, unit by tag or by ImageJ's description."""
    if pixels_per_unit <= 0:
        return None
    if is_imagej:
        found = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        name = found.group(1).strip().replace("\\u00B5", "µ") if found else ""
        return _plausible(UM[name] / pixels_per_unit) if name in UM else None
    return _plausible(_TIFF_UM[unit] / pixels_per_unit) if unit in _TIFF_UM else None


def ngff_um(multiscales: Mapping[str, Any]) -> float | None:
    """Return µm per pixel along x of the first level of OME-NGFF metadata."""
    axes = [axis for axis in multiscales.get("axes", ()) if isinstance(axis, Mapping)]
    place = next((number for number, axis in enumerate(axes) if axis.get("name") == "x"), None)
    if place is None or axes[place].get("unit") not in UM:
        return None
    for transform in multiscales["datasets"][0].get("coordinateTransformations", ()):
        if transform.get("type") == "scale":
            return _plausible(float(transform["scale"][place]) * UM[axes[place]["unit"]])
    return None


def _plausible(size_um: float) -> float | None:
    return size_um if 0 < size_um <= _LARGEST_UM else None
