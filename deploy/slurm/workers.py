"""Workers that Slurm starts one job at a time, and a scheduler file for `spatialscope run --scheduler FILE`.

Run it on a login or service node that the compute nodes can reach, and stop it with Ctrl-C:

    python deploy/slurm/workers.py scheduler.json --partition cpu --jobs 16
    python deploy/slurm/workers.py scheduler.json --partition gpu --jobs 4 --gpu
"""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster

from spatialscope_dist.engine import environment


@dataclass(frozen=True)
class WorkerJob:
    """One Slurm job: one worker process of one thread, with one GPU or none."""

    partition: str
    hours: int = 12
    memory_gib: int = 8
    gpu: bool = False

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `SLURMCluster` for such jobs."""
        # The worker ends by itself before Slurm kills it, so that what it computes is not lost.
        arguments = ["--lifetime", f"{self.hours * 60 - 10}m", "--lifetime-stagger", "5m", "--no-dashboard"]
        return {
            "queue": self.partition,
            "cores": 1,
            "processes": 1,
            # Of the process; Slurm is asked for one GiB more, for the interpreter's own and the nanny.
            "memory": f"{self.memory_gib}GiB",
            "job_mem": f"{self.memory_gib + 1}G",
            "walltime": f"{self.hours}:00:00",
            "local_directory": "${TMPDIR:-/tmp}",
            "death_timeout": 600,
            "job_extra_directives": ["--gpus=1"] if self.gpu else [],
            "worker_extra_args": [*arguments, *(["--resources", "GPU=1"] if self.gpu else [])],
            "job_script_prologue": environment.exported(),
        }


def open_cluster(job: WorkerJob, scheduler_file: Path, *, interface: str | None = None) -> SLURMCluster:
    """Return a cluster without workers yet; its scheduler has written `scheduler_file`, readable by its owner only."""
    scheduler = {"scheduler_file": str(scheduler_file), "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    if interface is not None:
        scheduler["interface"] = interface
    dask.config.set(environment.DASK_STANDING)
    before = os.umask(0o077)
    try:
        return SLURMCluster(**job.options(), interface=interface, scheduler_options=scheduler)
    finally:
        os.umask(before)


def main() -> None:
    """Keep workers running until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheduler_file", type=Path)
    parser.add_argument("--partition", required=True)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--hours", type=int, default=12)
    parser.add_argument("--memory-gib", type=int, default=8)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--interface", help="network interface that compute nodes reach, for example ib0")
    given = parser.parse_args()
    job = WorkerJob(given.partition, hours=given.hours, memory_gib=given.memory_gib, gpu=given.gpu)
    with open_cluster(job, given.scheduler_file, interface=given.interface) as cluster:
        # Adaptive with equal bounds: a job that ended is followed by another.
        cluster.adapt(minimum_jobs=given.jobs, maximum_jobs=given.jobs)
        threading.Event().wait()


if __name__ == "__main__":
    main()
