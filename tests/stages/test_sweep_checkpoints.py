"""A run that is killed in the middle of the sweeps goes on from the last state that was kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events, TaskLog
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame
from tests.stages.test_identify import Case

BURN_IN, MARGINS = 4, 1
IN_BLOCKS = {"n_blocks": 2, "gibbs_sweeps": 24, "checkpoint_every_sweeps": 5}
IN_ONE_TASK = {"n_blocks": 1, "gibbs_sweeps": 2500, "checkpoint_every_sweeps": 25}
ROUND = "000000"  # the first block is in every round of Gibbs sweeps


def options_of(division: dict[str, int]) -> dict[str, int]:
    return {**division, "gibbs_burn_in": BURN_IN}


def log_of(case: Case) -> Path:
    return case.root / "tasks.jsonl"


def drive(root: str, division: dict[str, int]) -> None:
    """Type a small stack in a process that may be killed; every task that ends is noted."""
    pool = Pool(ClusterSettings(2, 2 * GIB), Events())
    case = Case(Path(root), pool, nuclei="places")
    pool.events = Events((TaskLog(log_of(case)),))
    case.run("first", **options_of(division))


@contextmanager
def driven(root: Path, division: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a driver once it has kept a state of its Gibbs sweeps."""
    program = f"from tests.stages.test_sweep_checkpoints import drive; drive({str(root)!r}, {division!r})"
    with subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2]) as driver:
        deadline = time.monotonic() + 120
        while not list(root.glob("work/identify/stack/first/.work/samples.npz")):
            assert driver.poll() is None, "the driver ended before a state was kept"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield driver


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def rounds_in(log: Path) -> int:
    return log.read_text().count(f'"unit": "{ROUND}"')


def results(case: Case, folder: str) -> dict[str, Any]:
    output = case.root / "work" / "identify" / "stack" / folder
    frames = {name: read_frame(output / name / "cells.parquet") for name in case.names}
    return {"frames": frames, "summary": read_json(output / "summary.json")}


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["summary"] == wanted["summary"]
    for name, frame in wanted["frames"].items():
        pd.testing.assert_frame_equal(found["frames"][name], frame, check_exact=True)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(ClusterSettings(2, 2 * GIB), Events())
    yield shared
    shared.close()


def test_sweep__killed_driver_redoes_no_more_than_one_interval(tmp_path: Path, pool: Pool) -> None:
    with driven(tmp_path, IN_BLOCKS) as driver:
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]
    case = Case(tmp_path, pool, nuclei="places")
    work = case.root / "work" / "identify" / "stack" / "first" / ".work"
    assert sorted(file.name for file in work.glob("[ds]*.npz")) == ["descent.npz", "samples.npz"]
    before = rounds_in(log_of(case))
    pool.events = Events((TaskLog(tmp_path / "resumed.jsonl"),))
    case.run("first", resumed=True, **options_of(IN_BLOCKS))
    pool.events = Events()
    case.run("undisturbed", **options_of(IN_BLOCKS))
    assert_equal(results(case, "first"), results(case, "undisturbed"))
    descent = results(case, "first")["summary"]["n_sweeps"]
    everything = descent + BURN_IN + IN_BLOCKS["gibbs_sweeps"] + MARGINS
    again = before + rounds_in(tmp_path / "resumed.jsonl") - everything
    assert 0 <= again <= IN_BLOCKS["checkpoint_every_sweeps"] + 1, (
        "more than one interval, and the round in flight, was done again"
    )


def test_sweep__killed_worker_goes_on_in_the_middle_of_its_task(tmp_path: Path, pool: Pool) -> None:
    with driven(tmp_path, IN_ONE_TASK) as driver:
        kept = tmp_path / "work" / "identify" / "stack" / "first" / ".work" / "samples.npz"
        busiest = max(workers_of(driver), key=lambda one: sum(one.cpu_times()[:2]))
        os.kill(busiest.pid, signal.SIGKILL)
        with np.load(kept) as state:
            sweeps = int(state["sweeps"])
        assert sweeps < BURN_IN + IN_ONE_TASK["gibbs_sweeps"], "it was killed too late"
        earlier = kept.stat().st_mtime_ns
        while driver.poll() is None and kept.exists() and kept.stat().st_mtime_ns == earlier:
            time.sleep(0.001)
        with np.load(kept) as state:
            assert int(state["sweeps"]) >= sweeps + IN_ONE_TASK["checkpoint_every_sweeps"], "it began anew"
    assert driver.returncode == 0
    case = Case(tmp_path, pool, nuclei="places")
    case.run("undisturbed", **options_of(IN_ONE_TASK))
    assert_equal(results(case, "first"), results(case, "undisturbed"))
