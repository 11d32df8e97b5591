"""Functions the engine's tests run on workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from spatialscope_dist.errors import BadInput, Problem, StoreError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 1:
        raise StoreError("number one cannot be stored")
    return number


def refuse_input() -> None:
    raise BadInput(Problem("file", "a", "b", "Do c."))


def crash() -> None:
    raise ZeroDivisionError("division by zero")


def flaky(folder: str) -> int:
    """Fail once, as a network would."""
    mark = Path(folder) / "tried"
    if not mark.exists():
        mark.touch()
        raise OSError("connection lost")
    return 7


def die_once(folder: str, number: int) -> int:
    """Kill the worker process the first time unit 2 runs."""
    mark = Path(folder) / "died"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number * 10


def allocate(megabytes: int) -> int:
    block = np.ones(megabytes << 20, dtype=np.uint8)
    return int(block[:10].sum())


def process_and_modules() -> dict[str, object]:
    import sys

    return {"pid": os.getpid(), "torch": "torch" in sys.modules}


def add_neighbours(
    *, state: np.ndarray, touched: np.ndarray | None, own: list[int], left: list[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each cell takes the larger of itself and its left neighbour: a wave that needs many sweeps."""
    size = len(own)
    values = np.maximum(state[:size], state[size:])
    return np.array(own), values, int(values.sum())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_a_little(folder: str, number: int) -> int:
    time.sleep(0.05)
    return number * 10


def where() -> tuple[int, str]:
    """Return this process and the GPUs it is shown."""
    time.sleep(0.1)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "not said")
