"""What the report says of the borders of the segmentation: whether dividing the slide left a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatialscope_dist.report.page import Block, Table
from spatialscope_dist.report.views import StudyView

_HEADER = [
    "section",
    "windows looked at",
    "nuclei crossing a border",
    "straight edges at borders ÷ elsewhere",
    "agreement with a shifted grid",
    "nuclei larger than the overlap",
]


def border_block(study: StudyView) -> Iterator[Block]:
    """Yield one block with a row per segmented section, nothing when no section was segmented."""
    rows = [_row(section.name, section.segment) for section in study.sections if "border_audit" in section.segment]
    if not rows:
        return
    notes = [
        "The slide is looked at window by window. A nucleus on the border of two windows must be found once and whole: "
        "outlines must not run straight along borders more often than elsewhere (a ratio above 1 by more than its "
        "error would show cuts), and windows placed half a step aside must find the same nuclei."
    ]
    yield Block("Borders of the segmentation", notes, [Table(_HEADER, rows)], level=3)


def _row(name: str, summary: Mapping[str, Any]) -> list[str]:
    audit = summary["border_audit"]
    score, error, agreement = (
        audit[key] for key in ("straight_edge_score", "straight_edge_error", "shifted_agreement")
    )
    return [
        name,
        f"{summary['windows_predicted']:,} of {summary['windows']:,}",
        f"{audit['nuclei_crossing_cores']:,}",
        "–" if score is None else f"{score:.2f} ± {error or 0:.2f}",
        "–" if agreement is None else f"{agreement:.4f} ({audit['shifted_nuclei']:,} nuclei)",
        f"{summary['nuclei_beyond_halo']:,} ({summary['windows_widened']:,} windows looked at again)",
    ]
