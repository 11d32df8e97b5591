"""Loaded by every worker of a watched run: notes which process is given, starts and ends which unit, as JSON lines.

Dask loads it when `distributed.worker.preload` names this file; the lines go to the file SPATIALSCOPE_EXECUTIONS names.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

FILE = "SPATIALSCOPE_EXECUTIONS"
_EVENTS = {"released": "given", "executing": "ended", "to executing": "started"}


class Executions(WorkerPlugin):
    """Appends a line when a task is given to this process, when it begins to run, and when it has ended."""

    name = "executions"

    def __init__(self, file: Path) -> None:
        self.file = file

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Note what Dask says of a task; ours are named (function and call, unit)."""
        event = _EVENTS.get(start) or _EVENTS.get(f"to {finish}")
        if event is not None and isinstance(key, tuple):
            about = {"event": event, "unit": key[1], "time": time.time(), "process": os.getpid()}
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(about) + "\n")


async def dask_setup(worker: Any) -> None:
    """Begin to note what this worker runs."""
    await worker.plugin_add(plugin=Executions(Path(os.environ[FILE])))
