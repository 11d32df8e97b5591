"""A scheduler that stands for long keeps nothing of runs that have ended."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from distributed import Client, Event, LocalCluster

from spatialscope_dist.engine.forgetting import forget_ended_spans

pytestmark = pytest.mark.local_cluster


@pytest.fixture
def client() -> Iterator[Client]:
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


def spans_after(client: Client, *, before: float) -> int:
    """Return how many spans the scheduler knows once those that ended before a time are dropped."""

    def forget(dask_scheduler: object = None) -> int:
        forget_ended_spans(dask_scheduler, before=before)
        spans = dask_scheduler.extensions["spans"]  # type: ignore[attr-defined]
        found = {len(kept) for kept in (spans.spans, spans.root_spans, spans.spans_search_by_name["default",])}
        assert found == {len(spans.spans_search_by_tag["default"])}
        return found.pop()

    count: int = client.run_on_scheduler(forget)
    return count


def wait_until_forgotten(client: Client) -> None:
    deadline = time.monotonic() + 20
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_forget_ended_spans__those_of_tasks_that_are_gone(client: Client) -> None:
    for number in range(3):
        futures = client.map(abs, [number], key=f"call{number}")
        client.gather(futures)
        del futures
        wait_until_forgotten(client)
    assert spans_after(client, before=0.0) == 3
    assert spans_after(client, before=time.time() + 60) == 0
    assert client.submit(abs, -4).result() == 4, "the scheduler goes on"


def test_forget_ended_spans__not_those_of_tasks_that_run_or_are_wanted(client: Client) -> None:
    event = Event("go", client=client)
    kept = client.submit(abs, -1, key="kept")
    assert kept.result() == 1
    running = client.submit(event.wait, 30, key="running", pure=False)
    assert spans_after(client, before=time.time() + 60) > 0
    event.set()
    assert running.result()
    assert spans_after(client, before=time.time() + 60) > 0
    del kept, running
    wait_until_forgotten(client)
    assert spans_after(client, before=time.time() + 60) == 0
