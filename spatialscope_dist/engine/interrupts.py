"""Loaded by every worker of our own: an interruption is the driver's to answer."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Let Ctrl-C, which a terminal sends to all processes, pass this one by; the driver closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
