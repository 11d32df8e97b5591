"""The Slurm scripts, without Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from dask.utils import parse_bytes

from spatialscope_dist.engine import environment
from spatialscope_dist.engine.cluster import ClusterSettings as Settings
from spatialscope_dist.engine.cluster import close_client, open_client
from tests import small_study

SLURM = Path(__file__).parents[2] / "deploy" / "slurm"


@pytest.fixture(scope="module")
def workers() -> ModuleType:
    pytest.importorskip("dask_jobqueue", reason="needs `pip install 'spatialscope_dist[deploy]'`")
    spec = spec_from_file_location("slurm_workers", SLURM / "workers.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.local_cluster
@pytest.mark.parametrize("gpu", [False, True])
def test_job_script__asks_for_what_the_worker_offers(workers: ModuleType, tmp_path: Path, gpu: bool) -> None:
    job = workers.WorkerJob("short", hours=2, memory_gib=6, gpu=gpu)
    with workers.open_cluster(job, tmp_path / "scheduler.json") as cluster:
        script = cluster.job_script()
    limit = re.search(r"--memory-limit (\S+)", script)
    asked = re.search(r"^#SBATCH --mem=(\S+)$", script, flags=re.M)
    assert limit is not None
    assert asked is not None
    assert parse_bytes(limit[1]) == 6 << 30
    assert parse_bytes(asked[1] + "iB") == 7 << 30
    assert "#SBATCH -p short" in script
    assert "#SBATCH -t 2:00:00" in script
    assert "--lifetime 110m" in script
    assert "--nthreads 1" in script
    assert ("#SBATCH --gpus=1" in script, "--resources GPU=1" in script) == (gpu, gpu)
    lines = [line for line in script.splitlines() if line.startswith("export ")]
    exported = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert exported.items() >= environment.of_standing_cluster().items()


@pytest.mark.local_cluster
def test_scheduler_file__is_private__and_what_a_run_attaches_to(workers: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with workers.open_cluster(workers.WorkerJob("short"), file) as cluster:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["address"] == cluster.scheduler_address
        client = open_client(Settings(workers=1, memory_limit_bytes=1 << 30, scheduler=str(file)))
        assert client.scheduler.address == cluster.scheduler_address
        close_client(client)


# Slurm's srun starts the command once per task; this one starts it once, and notes it.
SRUN = '#!/bin/sh\n[ "$1" = --kill-on-bad-exit=0 ] && shift\necho "$@" >"$NOTED"\nexec "$@"\n'


@pytest.mark.local_cluster
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_batch_script__runs_a_study__and_leaves_nothing_behind(tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("dask", "spatialscope"):
        (programs / name).symlink_to(Path(sys.executable).with_name(name))
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    meeting, noted = tmp_path / "meeting", tmp_path / "noted"
    meeting.mkdir()
    study = small_study.write_small_study(tmp_path / "input")
    given = {"VENV": str(tmp_path / "venv"), "SLURM_GPUS_PER_TASK": "1", "NOTED": str(noted)}
    command = ["bash", str(SLURM / "run.sbatch"), str(study), str(tmp_path / "out"), "--until", "ingest"]
    environment = {**os.environ, **given, "SPATIALSCOPE_MEETING": str(meeting)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--resources GPU=1" in noted.read_text()
    events = [json.loads(line) for line in (tmp_path / "out" / "ledger" / "tasks.jsonl").read_text().splitlines()]
    assert {event.get("unit") for event in events if event.get("stage") == "ingest"} >= {"counts", "image"}
    assert list(meeting.iterdir()) == []


def test_batch_script__memory_limit__is_below_what_is_asked_for() -> None:
    text = (SLURM / "run.sbatch").read_text()
    limit = re.search(r"--memory-limit (\S+)", text)
    asked = re.search(r"^#SBATCH --mem-per-cpu=(\S+)$", text, flags=re.M)
    assert limit is not None
    assert asked is not None
    assert parse_bytes(limit[1]) < parse_bytes(asked[1] + "iB")
