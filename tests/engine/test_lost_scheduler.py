"""A scheduler that is killed ends the run in words, whatever the driver was doing; what was committed is kept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import Attached, attached
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import ClusterLost
from spatialscope_dist.store.ledger import Units
from tests.engine import work

pytestmark = pytest.mark.local_cluster


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialscope_dist.engine.cluster._CONNECT_TIMEOUT_S", 2)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Attached]:
    with attached(tmp_path / "cluster", workers=1) as running:
        yield running


def pool_of(cluster: Attached) -> Pool:
    return Pool(ClusterSettings(1, GIB, scheduler=str(cluster.file)), Events())


def kill(cluster: Attached) -> None:
    os.kill(cluster.process.pid, signal.SIGKILL)
    cluster.process.wait()


@pytest.mark.parametrize("seconds_later", [0.0, 3.0])
def test_map__scheduler_killed_while_the_driver_was_busy(
    cluster: Attached, tmp_path: Path, seconds_later: float
) -> None:
    pool = pool_of(cluster)
    with pool.workers.reported(tmp_path / "report.html"):
        assert pool.map(work.square, {"before": {"number": 3}}) == {"before": 9}
        kill(cluster)
        time.sleep(seconds_later)  # not yet noticed; given up
        with pytest.raises(ClusterLost, match=r"no longer answers.*run the same command again"):
            pool.map(work.square, {"after": {"number": 3}})
        pool.close()
    assert not (tmp_path / "report.html").exists()


def test_map__scheduler_killed_while_units_run(cluster: Attached, tmp_path: Path) -> None:
    pool, log = pool_of(cluster), Units(tmp_path / "units")
    units = {f"u{number}": {"folder": str(tmp_path), "number": number} for number in range(40)}

    def kill_after_some(event: dict[str, object]) -> None:
        if event.get("done") == 3:
            kill(cluster)

    pool.events = Events((kill_after_some,))
    with pytest.raises(ClusterLost):
        pool.map(work.wait_a_little, units, ledger_units=log)
    pool.close()
    assert 3 <= len(log.committed()) < 40
    assert all(log.committed()[unit] == 10 * units[unit]["number"] for unit in log.committed())
