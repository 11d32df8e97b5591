"""Runs that are killed or interrupted continue, redo only what was in flight, and end with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.kills import Command, Undisturbed, held, kill_once, output_hashes
from tests import small_study
from tests.conftest import Finished

MANY_UNITS = {"segment.tile": 512, "identify.batch_spots": 4, "decompose.rows_per_shard": 16}


def until(stage: str) -> list[str]:
    """Return the options that run up to a stage, and that stage alone when its inputs are there."""
    return ["--until", stage, "--workers", "2"]


@contextmanager
def started(study: Path, output: Path, stage: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]]:
    """Yield a running study and its events."""
    command = small_study.command(study, output, *until(stage), settings=MANY_UNITS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process, (json.loads(line) for line in process.stdout)


def wait_for_unit(events: Iterator[dict[str, Any]], stage: str) -> None:
    """Read events until a unit of the stage is committed."""
    current = None
    for event in events:
        current = event["stage"] if event["event"] == "stage" else current
        if event["event"] == "unit" and current == stage:
            return
    pytest.fail(f"the run ended before a unit of {stage} was committed")


def without(finished: Finished, output: Path, stage: str) -> Path:
    """Copy a finished study as it was before a stage had run."""
    shutil.copytree(finished.output, output)
    for folder in ("ledger", "work", "ledger/units"):
        shutil.rmtree(output / folder / stage)
    return output


def before(stage: str, finished: Finished, folder: Path) -> Path:
    """Return an output folder in which the stage is the next to run."""
    return folder / "out" if stage == "segment" else without(finished, folder / "out", stage)


def results_of(output: Path, stage: str) -> dict[str, str]:
    names = {"segment": ("labels", "nuclei"), "decompose": ("expression", "expression_sd")}[stage]
    return {name: small_study.hashes(output)["demo"][name] for name in names}


@pytest.mark.parametrize("stage", ["segment", pytest.param("decompose", marks=pytest.mark.slow)])
def test_run__worker_killed_mid_stage_changes_nothing(finished: Finished, tmp_path: Path, stage: str) -> None:
    output = before(stage, finished, tmp_path)
    with started(finished.study, output, stage) as (process, events):
        wait_for_unit(events, stage)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]
        os.kill(workers[0].pid, signal.SIGKILL)
        assert list(events)[-1]["event"] == "summary"
    assert process.returncode == 0
    assert results_of(output, stage) == results_of(finished.output, stage)


@pytest.mark.parametrize(("stage", "kind", "seed"), [("identify", "scheduler", 1), ("interact", "worker", 0)])
def test_run__killed_redoes_at_most_what_was_in_flight(
    finished: Finished, tmp_path: Path, stage: str, kind: str, seed: int
) -> None:
    output = without(finished, tmp_path / "out", stage)
    line = small_study.command(finished.study, output, *until(stage), settings=MANY_UNITS)
    units = {"identify": 10, "interact": 2}[stage]  # one of the first so many, and at once
    expected = Undisturbed(dict.fromkeys(map(str, range(units)), 0.0), output_hashes(finished.output, stage))
    outcome = kill_once(kind, Command(line, output, stage), expected, seed=seed, folder=tmp_path)
    assert held(kind, outcome), outcome


@pytest.mark.parametrize(("stage", "how"), [("segment", signal.SIGINT), ("decompose", signal.SIGKILL)])
def test_run__stopped_then_resumed(finished: Finished, tmp_path: Path, stage: str, how: signal.Signals) -> None:
    output = before(stage, finished, tmp_path)
    with started(finished.study, output, stage) as (process, events):
        wait_for_unit(events, stage)
        children = psutil.Process(process.pid).children(recursive=True)
        assert_status_shows_progress(finished.study, output, stage, process)
        process.send_signal(how)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=90)[1], "workers outlive the run"
    events = small_study.run(finished.study, output, *until(stage), settings=MANY_UNITS)
    (committed,) = [event for event in events if event["event"] == "committed" and event["stage"] == stage]
    assert committed["units_resumed"] >= 1
    assert results_of(output, stage) == results_of(finished.output, stage)


def assert_status_shows_progress(study: Path, output: Path, stage: str, process: subprocess.Popen[str]) -> None:
    """Ask for the status of a run that is held still meanwhile, so that only the question could change a file."""
    command = [small_study.COMMAND, "status", str(study), "--output", str(output), "--json"]
    process.send_signal(signal.SIGSTOP)
    try:
        before = {path: path.stat().st_mtime_ns for path in (output / "ledger").rglob("*")}
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        after = {path: path.stat().st_mtime_ns for path in (output / "ledger").rglob("*")}
    finally:
        process.send_signal(signal.SIGCONT)
    assert after == before
    row = json.loads(answer.stdout)["stages"][stage]
    assert row["waiting"] == ["demo"]
    assert 1 <= row["units_committed"] == row["done"]


def test_run__disk_that_is_full_fails_in_words_and_is_resumed(finished: Finished, tmp_path: Path) -> None:
    output = without(finished, tmp_path / "out", "decompose")
    command = small_study.command(finished.study, output, *until("decompose"), settings=MANY_UNITS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        wait_for_unit(map(json.loads, process.stdout), "decompose")
        for one in (driver := psutil.Process(process.pid), *driver.children(recursive=True)):
            one.rlimit(psutil.RLIMIT_FSIZE, (1024, -1))  # no file may grow beyond it: errors as of a full disk
        text = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "File too large" in text
    assert "run again" in text
    assert "Traceback" not in text
    small_study.run(finished.study, output, *until("decompose"), settings=MANY_UNITS)
    assert results_of(output, "decompose") == results_of(finished.output, "decompose")


def test_run__training_resumes_from_its_checkpoint(finished: Finished, tmp_path: Path) -> None:
    output = without(finished, tmp_path / "out", "train")
    settings = {"train.checkpoint_every_steps": 40}
    command = small_study.command(finished.study, output, *until("train"), settings=settings)
    deadline = time.monotonic() + 300
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(output.glob("work/train/study/*/checkpoint_counts.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert not psutil.wait_procs(children, timeout=90)[1], "workers outlive the run"
    small_study.run(finished.study, output, *until("train"), settings=settings)
    weights = [(folder / "model" / "weights.safetensors").read_bytes() for folder in (output, finished.output)]
    assert weights[0] == weights[1]


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
    output = tmp_path / "copy"
    shutil.copytree(finished.output, output)
    events = small_study.run(finished.study, output, *until("decompose"), settings={"decompose.n_steps": 4})
    assert [event["stage"] for event in events if event["event"] == "committed"] == ["decompose"]
    unchanged = {event["stage"] for event in events if event["event"] == "unchanged"}
    assert unchanged == {"ingest", "align", "segment", "reference", "identify", "train"}
