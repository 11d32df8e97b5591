"""Environment and Dask settings of the processes work runs in, whoever starts them.

`python -m spatialscope_dist.engine.environment` prints them as shell commands, for a scheduler and workers that stand
by themselves.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

DASK: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-ttl": "15m",
    "distributed.scheduler.no-workers-timeout": "15m",
    # What a run that has left a scheduler had asked for is kept for an hour otherwise, 1 kB a task.
    "distributed.scheduler.events-cleanup-delay": "1m",
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.admin.large-graph-warning-threshold": "100MB",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # Samples of what runs and of the machine are kept for every second of an hour: memory that grows with time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.log-length": 60,
    # Every connection keeps its last messages, each up to a megabyte, and with them arguments and results of tasks.
    "distributed.admin.low-level-log-length": 16,
    # A worker that is started anew on a busy machine takes longer than the 15 s after which it would be given up.
    "distributed.deploy.lost-worker-timeout": "15m",
}

DASK_STANDING: dict[str, Any] = {**DASK, "distributed.scheduler.preload": ["spatialscope_dist.engine.forgetting"]}

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
_FRAMEWORKS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def of_worker(gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a worker that is to see one GPU, none when it is empty, or whatever there is."""
    shown = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return {**dict.fromkeys(_ONE_THREAD, "1"), **_FRAMEWORKS, **shown}


def of_standing_cluster() -> dict[str, str]:
    """Return the environment of a scheduler and workers a run attaches to: that of workers, and Dask's settings."""
    return {**of_worker(), **{_variable(name): str(value) for name, value in DASK_STANDING.items()}}


def _variable(name: str) -> str:
    return f"DASK_{name}".upper().replace(".", "__").replace("-", "_")


def exported() -> list[str]:
    """Return the environment of a standing cluster as commands of a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in of_standing_cluster().items()]


if __name__ == "__main__":
    sys.stdout.write("\n".join(exported()) + "\n")
