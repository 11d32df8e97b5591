"""Memory and CPU time of a command and of every process it starts."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

INTERVAL_S = 0.1
MIB = 1 << 20


@dataclass
class Watched:
    """What was seen of a command; sizes in bytes."""

    seconds: float = 0.0
    finished: bool = False
    peak_together: int = 0
    driver: int = 0
    children: dict[int, int] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)

    @property
    def peak_worker(self) -> int:
        """Largest resident memory of one process the command started."""
        return max(self.children.values(), default=0)

    def look(self, root: psutil.Process) -> None:
        """Note what the processes hold now."""
        together = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                rss, times = process.memory_info().rss, process.cpu_times()
            except psutil.Error:
                continue
            together += rss
            self.cpu[process.pid] = times.user + times.system
            if process.pid == root.pid:
                self.driver = max(self.driver, rss)
            else:
                self.children[process.pid] = max(self.children.get(process.pid, 0), rss)
        self.peak_together = max(self.peak_together, together)

    def summary(self) -> dict[str, Any]:
        """Return the peaks in MiB and the times in seconds."""
        return {
            "finished": self.finished,
            "wall_seconds": round(self.seconds, 1),
            "cpu_seconds": round(sum(self.cpu.values()), 1),
            "peak_rss_worker_mib": round(self.peak_worker / MIB),
            "peak_rss_driver_mib": round(self.driver / MIB),
            "peak_rss_together_mib": round(self.peak_together / MIB),
        }


def watch(command: list[str | Path], *, limit_s: float | None = None, output: Path | None = None) -> Watched:
    """Return what a command cost; it is ended, with `finished` False, when it takes longer than the limit.

    What it prints goes to `output` when that is given.

    Raises
    ------
    subprocess.CalledProcessError
        When the command fails.
    """
    seen, start = Watched(), time.perf_counter()
    with (
        contextlib.nullcontext() if output is None else output.open("wb") as printed,
        subprocess.Popen([str(part) for part in command], stdout=printed) as process,
    ):
        root = psutil.Process(process.pid)
        while process.poll() is None:
            seen.look(root)
            seen.seconds = time.perf_counter() - start
            if limit_s is not None and seen.seconds > limit_s:
                _end(process, root)
                return seen
            time.sleep(INTERVAL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seen.finished = True
    return seen


def _end(process: subprocess.Popen[bytes], root: psutil.Process) -> None:
    started = root.children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in started:
        if child.is_running():
            child.kill()
