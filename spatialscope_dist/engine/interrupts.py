"""Loaded by every worker of our own: an interruption, and its end, are the driver's to answer."""

from __future__ import annotations

import logging
import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Let Ctrl-C, which a terminal sends to all processes, pass this one by, and end without last words.

    The driver closes it, and says what failed: on a busy machine a heartbeat finds the scheduler gone first, which
    Dask would print with a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
