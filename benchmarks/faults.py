"""Faults made on purpose: real worker processes of this run, ended with SIGKILL."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil

_LOOK_S = 0.1


def worker_processes() -> list[psutil.Process]:
    """Return the worker processes started from this one."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def kill_busiest_worker() -> bool:
    """Kill the worker that uses most CPU time just now, and return whether it was at work."""
    workers = worker_processes()
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    time.sleep(_LOOK_S)
    used = [sum(worker.cpu_times()[:2]) - start for worker, start in zip(workers, before, strict=True)]
    os.kill(workers[int(np.argmax(used))].pid, signal.SIGKILL)
    return max(used) > _LOOK_S / 4
