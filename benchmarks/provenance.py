"""How a result came about: command, commit, date, machine."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def commit() -> str:
    """Return the commit that is measured: of this checkout, or BENCHMARK_COMMIT where it is an exported one."""
    line = ["git", "rev-parse", "--short", "HEAD"]
    shown = subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return os.environ.get("BENCHMARK_COMMIT") or shown.stdout.strip()


def provenance(command: str) -> dict[str, Any]:
    """Return what is written first in a result; `command` is what follows `python -m benchmarks.`."""
    return {
        "command": f"python -m benchmarks.{command}",
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{len(os.sched_getaffinity(0))} shared cores",
        "load_average": round(os.getloadavg()[0], 1),
    }
