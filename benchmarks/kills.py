"""Kill one process of a run while a stage is at work, run the same command again, and count what was redone.

Which unit is waited for, and how long after its start the kill comes, is drawn from a seed. Every start of a unit is
noted by the workers themselves (`executions.py`), so work that is lost and done again is seen, whoever did it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import executions
from spatialscope_dist.engine import environment

KINDS = ("worker", "scheduler", "driver")
WORKERS = 2
_LOOK_S = 0.002
_PATIENCE_S = 600
_ENDED_BY_LOSS = 1
_TIMED = ("training",)  # curves hold seconds


@dataclass(frozen=True)
class Command:
    """A command line that runs a stage of a study whose earlier stages are done, and where it writes."""

    line: list[str]
    output: Path
    stage: str


@dataclass(frozen=True)
class Undisturbed:
    """What a stage does when nobody disturbs it: seconds of every unit, and what its output is."""

    unit_seconds: dict[str, float]
    hashes: dict[str, str]


@dataclass
class Outcome:
    """What a kill did."""

    unit: str
    after_s: float
    in_flight: int
    redone: int
    equal: bool
    seconds: float
    codes: list[int | None] = field(default_factory=list)
    says: str = ""


def output_hashes(output: Path, stage: str) -> dict[str, str]:
    """Return the SHA-256 of every file a stage wrote and of the study's own hashes; files that hold times count not."""
    kept = [path for path in sorted((output / "work" / stage).rglob("*")) if path.is_file()]
    hashes = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in kept
        if not path.name.startswith(_TIMED)
    }
    return {**hashes, "hashes.json": hashlib.sha256((output / "hashes.json").read_bytes()).hexdigest()}


def undisturbed(command: Command, folder: Path) -> Undisturbed:
    """Return what the stage does when it is run to its end."""
    log = folder / "undisturbed.jsonl"
    done = subprocess.run(command.line, env=_noted(log), stdout=subprocess.PIPE, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    units = {event["unit"]: event["seconds"] for event in events if event["event"] == "unit"}
    return Undisturbed(units, output_hashes(command.output, command.stage))


def kill_once(kind: str, command: Command, expected: Undisturbed, *, seed: int, folder: Path) -> Outcome:
    """Kill the worker, scheduler or driver of a run while the stage is at work, and return what became of it."""
    draw, start, log = random.Random(f"{command.stage} {seed}"), time.perf_counter(), folder / "executions.jsonl"
    number = draw.randrange(len(expected.unit_seconds))
    place = attached if kind == "scheduler" else _nothing_attached
    with place(folder / "first", log) as cluster, _started(command, cluster, log) as process:
        begun = _wait_for_start(log, number, process)
        _wait_within(log, begun, draw.random() * expected.unit_seconds.get(begun["unit"], 0.0))
        victims = {"worker": begun["process"], "driver": process.pid, "scheduler": cluster and cluster.process.pid}
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(int(victims[kind] or 0), signal.SIGKILL)
        struck, committed = time.time(), _committed(command)
        events = [json.loads(line) for line in process.stdout or ()]
        # Without driver or scheduler nothing more is given to a worker, but what was under way to one still arrives.
        until = struck if kind == "worker" else time.time()
        given = {note["unit"] for note in notes(log, "given") if note["time"] <= until}
    codes = [process.returncode]
    assert not psutil.wait_procs(children, timeout=90)[1], "workers outlive the run"
    if kind != "worker":
        with place(folder / "second", log) as cluster, _started(command, cluster, log) as process:
            assert process.stdout is not None
            process.stdout.read()
        codes.append(process.returncode)
    units = _committed(command)  # all of the stage, by now; what is published is no unit of it
    starts = Counter(note["unit"] for note in notes(log, "started") if note["unit"] in units)
    return Outcome(
        unit=begun["unit"],
        after_s=round(struck - begun["time"], 3),
        in_flight=len((given & units) - committed),
        redone=sum(starts.values()) - len(starts),
        equal=output_hashes(command.output, command.stage) == expected.hashes,
        seconds=round(time.perf_counter() - start, 1),
        codes=codes,
        says=next((event["text"] for event in events if event["event"] == "error"), ""),
    )


def held(kind: str, outcome: Outcome) -> bool:
    """Return whether a run took the kill as it should: resumed or went on, redid at most what was in flight."""
    codes = {"worker": [0], "scheduler": [_ENDED_BY_LOSS, 0], "driver": [-signal.SIGKILL, 0]}[kind]
    said = kind != "scheduler" or "scheduler no longer answers" in outcome.says
    return outcome.equal and outcome.redone <= outcome.in_flight and outcome.codes == codes and said


@dataclass(frozen=True)
class Attached:
    """A Dask scheduler with workers of its own, each a process."""

    file: Path
    process: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextlib.contextmanager
def attached(folder: Path, log: Path | None = None, *, workers: int = WORKERS, threads: int = 1) -> Iterator[Attached]:
    """Yield a running scheduler and its workers of one thread, or more; they are ended with the block."""
    folder.mkdir(parents=True)
    file, settings = folder / "scheduler.json", {**_noted(log), **environment.of_standing_cluster()}
    here = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    started = [_dask("scheduler", here, settings)]
    try:
        _wait(lambda: file.exists() and file.read_text().rstrip().endswith("}"), started[0])
        options = ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
        for number in range(workers):
            line = ["--scheduler-file", str(file), "--name", str(number), "--memory-limit", "3GiB", *options]
            started.append(_dask("worker", line, settings))
        yield Attached(file, started[0], started[1:])
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _nothing_attached(_folder: Path, _log: Path) -> Iterator[None]:
    yield None


def _dask(program: str, options: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", f"distributed.cli.dask_{program}", *options]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _noted(log: Path | None) -> dict[str, str]:
    threads = environment.of_worker()
    if log is None:
        return {**os.environ, **threads}
    preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([executions.__file__]), executions.FILE: str(log)}
    return {**os.environ, **threads, **preload}


@contextlib.contextmanager
def _started(command: Command, cluster: Attached | None, log: Path) -> Iterator[subprocess.Popen[str]]:
    line = [*command.line, *(["--scheduler", str(cluster.file)] if cluster else [])]
    with (
        log.with_name("stderr.txt").open("a") as said,
        subprocess.Popen(line, env=_noted(log), stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.wait(timeout=_PATIENCE_S)


def notes(log: Path, event: str) -> list[dict[str, Any]]:
    """Return what workers have noted so far: units given to them, started or ended."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [note for note in whole if note["event"] == event]


def _wait_for_start(log: Path, number: int, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the note of the start with that number."""
    _wait(lambda: len(notes(log, "started")) > number, process)
    return notes(log, "started")[number]


def _wait_within(log: Path, begun: dict[str, Any], seconds: float) -> None:
    """Wait so long, or until the unit has ended, so that the stage is still at work then."""
    while time.time() < begun["time"] + seconds:
        if begun["unit"] in {note["unit"] for note in notes(log, "ended")}:
            return
        time.sleep(_LOOK_S)


def _committed(command: Command) -> set[str]:
    """Return the units whose marker is written."""
    return {path.stem for path in (command.output / "ledger" / "units" / command.stage).rglob("[!.]*.json")}


def _wait(ready: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before it was to be killed")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.args} did not come so far")
        time.sleep(_LOOK_S)
