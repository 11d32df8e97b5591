"""What one task cost, measured in the process that ran it."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialscope_dist.errors import SpatialScopeError

_TRIM_EVERY_CPU_S = 10  # of a process; it takes 5 to 50 ms


@dataclass(frozen=True)
class Measured:
    """A task's result with its cost; `failure` is the error when it can never succeed.

    `started` is in seconds since 1970, `process` is host:pid.
    """

    result: Any
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    failure: SpatialScopeError | None = None
    started: float = 0.0
    process: str = ""

    def about(self) -> dict[str, Any]:
        """Return when and where it ran and what it cost, for a log."""
        return {
            "started": round(self.started, 3),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "process": self.process,
        }


def measured(function: Callable[..., Any], arguments: dict[str, Any]) -> Measured:
    """Return the function's result with wall time, CPU time and peak memory of this process.

    An error this package raises on purpose is final and comes back as `failure`; anything else
    propagates, so that the scheduler may retry it elsewhere.
    """
    _reset_peak_rss()
    started, wall, cpu = time.time(), time.perf_counter(), time.process_time()
    try:
        result, failure = function(**arguments), None
    except SpatialScopeError as error:
        result, failure = None, error
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    if cpu // _TRIM_EVERY_CPU_S != (cpu + cpu_seconds) // _TRIM_EVERY_CPU_S:
        _return_freed_memory()
    process = f"{socket.gethostname()}:{os.getpid()}"
    return Measured(result, seconds, cpu_seconds, peak_rss_bytes(), failure, started, process)


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process since it was last reset, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _reset_peak_rss() -> None:
    # Linux only: lets each stage report its own peak in processes that outlive a stage.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger(__name__).debug("peak memory cannot be reset here; it counts from process start")


def _return_freed_memory() -> None:
    # glibc keeps what is freed between blocks still in use: a worker that lives through many runs grew by 5 MiB a run.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
