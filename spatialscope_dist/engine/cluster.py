"""Where the work runs: processes on this machine, or a running Dask scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialscope_dist.errors import BadInput, Problem

if TYPE_CHECKING:
    from distributed import Client

GIB = 1 << 30
_CONNECT_TIMEOUT_S = 15
_RESTART_TIMEOUT_S = 15
_CLOSE_TIMEOUT_S = 20


@dataclass(frozen=True)
class ClusterSettings:
    """How many processes of what size, or the scheduler to attach to.

    `memory_limit_bytes` is the limit of one worker process. `gpus` None means as many as found.
    """

    workers: int
    memory_limit_bytes: int
    scheduler: str | None = None
    gpus: int | None = None

    @classmethod
    def of_this_machine(
        cls,
        *,
        workers: int | None = None,
        memory_limit: str | None = None,
        scheduler: str | None = None,
        gpus: int | None = None,
    ) -> ClusterSettings:
        """Return settings with what was not given taken from this machine.

        Raises
        ------
        BadInput
            When a number is out of range or the memory limit cannot be read.
        """
        import psutil

        count = workers if workers is not None else max(1, len(os.sched_getaffinity(0)))
        if count < 1:
            raise BadInput(Problem("--workers", str(count), "1 or more", "Leave it out to use every core."))
        if gpus is not None and gpus < 0:
            raise BadInput(Problem("--gpus", str(gpus), "0 or more", "Leave it out to use every GPU."))
        share = int(psutil.virtual_memory().total * 0.9 / count)
        limit = _bytes(memory_limit) if memory_limit else min(4 * GIB, share)
        return cls(count, limit, scheduler, gpus)


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this machine shows, without loading a framework."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def open_client(settings: ClusterSettings, *, gpu: bool = False) -> Client:
    """Return a client of the scheduler to attach to, or of a new cluster on this machine.

    With `gpu` and GPUs present, the new cluster has one process per GPU, each offering the
    resource GPU = 1; otherwise it has `workers` processes of one thread.

    Raises
    ------
    BadInput
        When the scheduler address does not answer.
    """
    import dask

    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 3,
            "distributed.scheduler.worker-ttl": "15m",
            "distributed.scheduler.no-workers-timeout": "15m",
            "distributed.worker.multiprocessing-method": "spawn",
            "distributed.admin.large-graph-warning-threshold": "100MB",
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
        }
    )
    return _attach(settings.scheduler) if settings.scheduler else _local(settings, gpu=gpu)


def close_client(client: Client) -> None:
    """Close the client, and the cluster when it is ours.

    A cluster that is closed just when a dead worker is started anew may wait for ever: the start is waited for,
    and closing has a limit; what it leaves behind ends with this process.
    """
    cluster: Any = client.cluster
    if cluster is None:
        client.close()
        return
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(len(cluster.workers), timeout=_RESTART_TIMEOUT_S)
    client.close()
    try:
        cluster.close(timeout=_CLOSE_TIMEOUT_S)
    except TimeoutError:
        logging.getLogger(__name__).warning("workers did not stop within %d s", _CLOSE_TIMEOUT_S)


def _attach(scheduler: str) -> Client:
    from distributed import Client

    timeout = f"{_CONNECT_TIMEOUT_S}s"
    try:
        if Path(scheduler).is_file():
            return Client(scheduler_file=scheduler, timeout=timeout)
        return Client(scheduler, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        remedy = "Start `dask scheduler`, check the address and the network, or leave --scheduler out to run here."
        problem = Problem(
            "--scheduler", f"{scheduler!r}, which does not answer ({error})", "a running Dask scheduler", remedy
        )
        raise BadInput(problem) from error


def _local(settings: ClusterSettings, *, gpu: bool) -> Client:
    from distributed import Client, Nanny, Scheduler, SpecCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)
    gpus = (settings.gpus if settings.gpus is not None else count_gpus()) if gpu else 0
    specs: dict[int, dict[str, Any]] = {}
    for number in range(gpus or settings.workers):
        options: dict[str, Any] = {
            "nthreads": 1,
            "memory_limit": settings.memory_limit_bytes,
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.ERROR,
            "preload": [f"{__package__}.interrupts"],
            "env": _environment(number if gpus and count_gpus() else None),
        }
        if gpus:
            options["resources"] = {"GPU": 1}
        specs[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    return Client(SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.ERROR))


def _environment(gpu: int | None) -> dict[str, str]:
    threads = dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NUMBA_NUM_THREADS",
            "TF_NUM_INTRAOP_THREADS",
            "TF_NUM_INTEROP_THREADS",
        ),
        "1",
    )
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return {**threads, **quiet, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})}


def _bytes(text: str) -> int:
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(text))
    except ValueError as error:
        raise BadInput(
            Problem("--memory-limit", repr(text), "a size such as 4GiB", "Write a number and a unit.")
        ) from error
    if size < GIB // 2:
        raise BadInput(Problem("--memory-limit", text, "at least 0.5GiB", "A worker needs that much to start."))
    return size
