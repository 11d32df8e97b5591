"""Workers of our own stop quietly, on a busy machine and just after one was killed."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from distributed import Client, Status

from spatialscope_dist.engine.cluster import GIB, ClusterSettings, close_client, open_client
from tests.engine import work

pytestmark = pytest.mark.local_cluster


def started(workers: int) -> tuple[Client, list[psutil.Process]]:
    """Return the client of new workers that have worked, and their processes."""
    client = open_client(ClusterSettings(workers, GIB))
    assert client.submit(work.square, 3).result() == 9
    return client, [psutil.Process(nanny.pid) for nanny in client.cluster.workers.values()]


def test_close_client__quiet_when_the_machine_is_too_busy_to_see_a_worker_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, [process] = started(1)
    process.send_signal(signal.SIGSTOP)  # a worker that gets no time to stop when asked
    loop = client.loop
    loop.add_callback(lambda: loop.call_later(0.5, time.sleep, 6))  # nor has the driver time to see it killed
    close_client(client)
    assert not psutil.pid_exists(process.pid)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("state", ["just killed", "starting anew"])
def test_close_client__quiet_after_a_worker_was_killed(caplog: pytest.LogCaptureFixture, state: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    client, processes = started(2)
    os.kill(processes[0].pid, signal.SIGKILL)
    nanny = next(one for one in client.cluster.workers.values() if one.pid in (None, processes[0].pid))
    deadline = time.monotonic() + 30
    while state == "starting anew" and nanny.process.status != Status.starting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    close_client(client)
    left = set(psutil.Process().children(recursive=True)) - before
    assert [child for child in left if "spawn_main" in " ".join(child.cmdline())] == []
    assert [record.getMessage() for record in caplog.records] == []
