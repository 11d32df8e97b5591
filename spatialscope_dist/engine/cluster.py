"""Where the work runs: processes on this machine, or a running Dask scheduler."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialscope_dist.engine import environment
from spatialscope_dist.engine.encryption import (
    Certificates,
    require_certificates,
    security_of,
    temporary_security,
)
from spatialscope_dist.engine.versions import require_same_versions
from spatialscope_dist.errors import BadInput, Problem

if TYPE_CHECKING:
    from distributed import Client, Security

GIB = 1 << 30
_CONNECT_TIMEOUT_S = 15
_CLOSE_TIMEOUT_S = 60


@dataclass(frozen=True)
class ClusterSettings:
    """How many processes of what size, or the scheduler to attach to.

    `memory_limit_bytes` is the limit of one worker process. `gpus` None means as many as found. `certificates` are
    for the scheduler to attach to; with `encrypted`, workers of our own speak TLS with certificates of one run.
    """

    workers: int
    memory_limit_bytes: int
    scheduler: str | None = None
    gpus: int | None = None
    certificates: Certificates | None = None
    encrypted: bool = False

    @classmethod
    def of_this_machine(
        cls,
        *,
        workers: int | None = None,
        memory_limit: str | None = None,
        scheduler: str | None = None,
        gpus: int | None = None,
        certificates: Certificates | None = None,
        encrypted: bool = False,
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
        if gpus and scheduler is None and gpus > (found := len(visible_gpus())):
            remedy = "Give as many as there are, or leave it out to use what is found."
            raise BadInput(Problem("--gpus", f"{found} GPUs that may be used here", str(gpus), remedy))
        share = int(psutil.virtual_memory().total * 0.9 / count)
        limit = _bytes(memory_limit) if memory_limit else min(4 * GIB, share)
        return cls(count, limit, scheduler, gpus, certificates, encrypted)


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs this process may use, each as CUDA_VISIBLE_DEVICES names it; loads no framework."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    found = [str(number) for number in range(sum(line.startswith("GPU ") for line in listing.stdout.splitlines()))]
    # nvidia-smi shows all of the machine; a batch system or its user may have left us only some.
    left = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or left is None:
        return found
    return list(takewhile(lambda name: name not in {"", "-1"}, (name.strip() for name in left.split(","))))


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

    dask.config.set(environment.DASK)
    if settings.scheduler is None:
        return _local(settings, gpu=gpu)
    return _attach(settings.scheduler, security_of(settings.certificates))


def close_client(client: Client) -> None:
    """Close the client, and the cluster when it is ours; closing has a limit, far above what it takes."""
    cluster: Any = client.cluster
    client.close()
    if cluster is None:
        return
    try:
        cluster.close(timeout=_CLOSE_TIMEOUT_S)
    except TimeoutError:
        logging.getLogger(__name__).warning("workers did not stop within %d s", _CLOSE_TIMEOUT_S)


def _attach(scheduler: str, security: Security) -> Client:
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    # A scheduler that is lost later is said in words of our own, without Dask's traceback before them.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        address = _address(scheduler)
        require_certificates(address, security)
        with warnings.catch_warnings():
            # Said below, for more packages and with what to do.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(address, timeout=f"{_CONNECT_TIMEOUT_S}s", security=security)
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        remedy = "Start `dask scheduler`, check the address and the network, or leave --scheduler out to run here."
        problem = Problem(
            "--scheduler", f"{scheduler!r}, which does not answer ({error})", "a running Dask scheduler", remedy
        )
        raise BadInput(problem) from error
    try:
        require_same_versions(client)
    except BadInput:
        client.close()
        raise
    return client


def _address(scheduler: str) -> str:
    """Return the address a scheduler file holds, or the address itself."""
    file = Path(scheduler)
    return str(json.loads(file.read_text())["address"]) if file.is_file() else scheduler


def _local(settings: ClusterSettings, *, gpu: bool) -> Client:
    import dask
    from distributed import Client, Scheduler, SpecCluster

    from spatialscope_dist.engine.nanny import SteadyNanny

    logging.getLogger("distributed").setLevel(logging.ERROR)
    security = temporary_security() if settings.encrypted else None
    secured = {} if security is None else {"security": security, "protocol": "tls://"}
    devices = visible_gpus() if gpu else []
    gpus = (len(devices) if settings.gpus is None else settings.gpus) if gpu else 0
    shown = dict(enumerate(devices[:gpus]))
    specs: dict[int, dict[str, Any]] = {}
    for number in range(gpus or settings.workers):
        options: dict[str, Any] = {
            "nthreads": 1,
            "memory_limit": settings.memory_limit_bytes,
            "host": "127.0.0.1",
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.ERROR,
            # Those that a site or its operator has configured stay.
            "preload": [f"{__package__}.interrupts", *dask.config.get("distributed.worker.preload")],
            "env": environment.of_worker(shown.get(number, "") if devices else None),
            **secured,
        }
        if gpus:
            options["resources"] = {"GPU": 1}
        specs[number] = {"cls": SteadyNanny, "options": options}
    # Drawing the dashboard would cost every run a second of imports; its server still answers for metrics.
    here = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0", **secured}
    scheduler = {"cls": Scheduler, "options": here}
    return Client(SpecCluster(workers=specs, scheduler=scheduler, security=security, silence_logs=logging.ERROR))


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
