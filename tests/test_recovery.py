"""Runs that are killed or interrupted continue and end with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import small_study
from tests.conftest import Finished


def events_of(process: subprocess.Popen[str]) -> Iterator[dict[str, object]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def worker_pids(process: subprocess.Popen[str]) -> list[int]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("stage", ["segment", "decompose"])
def test_run__worker_killed_mid_stage_changes_nothing(finished: Finished, tmp_path: Path, stage: str) -> None:
    command = small_study.command(finished.study, tmp_path, "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = False
    current = None
    for event in events_of(process):
        current = event["stage"] if event["event"] == "stage" else current
        if event["event"] == "unit" and current == stage and not killed:
            os.kill(worker_pids(process)[0], signal.SIGKILL)
            killed = True
    assert process.wait(timeout=600) == 0, process.stderr.read() if process.stderr else ""
    assert killed
    assert small_study.hashes(tmp_path) == small_study.hashes(finished.output)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_run__interrupted_then_resumed(finished: Finished, tmp_path: Path, how: signal.Signals) -> None:
    command = small_study.command(finished.study, tmp_path, "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    seen = []
    for event in events_of(process):
        seen.append(event)
        if event["event"] == "committed" and event["stage"] == "identify":
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(how)
            break
    code = process.wait(timeout=120)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    psutil.wait_procs(children, timeout=60)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "segment").rglob("*") if path.is_file()}
    events = small_study.run(finished.study, tmp_path, "--workers", "2")
    unchanged = {event["stage"] for event in events if event["event"] == "unchanged"}
    assert {"ingest", "segment", "reference", "identify"} <= unchanged
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before, "committed work was written again"
    assert small_study.hashes(tmp_path) == small_study.hashes(finished.output)


def test_run__training_resumes_from_its_checkpoint(finished: Finished, tmp_path: Path) -> None:
    settings = {"train.checkpoint_every_steps": 40}
    command = small_study.command(finished.study, tmp_path, "--workers", "1", settings=settings)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("work/train/study/*/checkpoint.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=60)
    small_study.run(finished.study, tmp_path, "--workers", "1", settings=settings)
    assert (
        small_study.hashes(tmp_path)["demo"]["expression"] == small_study.hashes(finished.output)["demo"]["expression"]
    )


def test_run__finished_study_does_nothing_and_says_so(finished: Finished) -> None:
    done = subprocess.run(
        [part for part in small_study.command(finished.study, finished.output) if part != "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "Nothing to do" in done.stdout


def test_run__changing_one_option_reruns_only_what_depends_on_it(finished: Finished, tmp_path: Path) -> None:
    import shutil

    output = tmp_path / "copy"
    shutil.copytree(finished.output, output)
    events = small_study.run(finished.study, output, "--workers", "1", settings={"decompose.n_steps": 4})
    committed = [event["stage"] for event in events if event["event"] == "committed"]
    unchanged = {event["stage"] for event in events if event["event"] == "unchanged"}
    assert committed[0] == "decompose"
    assert {"ingest", "segment", "reference", "identify", "train"} <= unchanged
