"""Stage `align`: places every section in common micrometre coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.documents import write_json

NAME = "align"
VERSION = 1
_PROCESS_BYTES = 250 << 20


def items(context: Context) -> list[str]:
    """Return the sections."""
    return [section.name for section in context.study.sections]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section has a place, its own coordinates when nothing is given."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the given transform and depth."""
    section = context.study.section(item)
    return {"transform": [list(row) for row in section.transform], "z_um": section.z_um, "align": section.align}


def plan(context: Context, item: str) -> StagePlan:
    """Return one small task, done by the driver."""
    return StagePlan(tasks=1, peak_bytes=_PROCESS_BYTES, disk_bytes=4096)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Write transform.json: (x, y, 1) in the section's µm → common µm, and the depth."""
    section = context.study.section(item)
    affine = [list(row) for row in section.transform]
    write_json(output / "transform.json", {"affine_um": affine, "z_um": section.z_um or 0.0})
    return StageOutcome(done=1, total=1)
