"""Work for GPUs goes to the workers that offer one, other work to all of them; which GPUs a process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Nanny, Scheduler, SpecCluster

from spatialscope_dist.engine.cluster import GIB, ClusterSettings, visible_gpus
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.engine.workers import slots_of
from spatialscope_dist.errors import BadInput
from tests.engine import work

pytestmark = pytest.mark.local_cluster

UNITS: dict[str, dict[str, object]] = {f"u{number}": {} for number in range(8)}


@pytest.fixture(scope="module")
def mixed() -> Iterator[SpecCluster]:
    """A cluster of two workers, one of which declares a GPU."""
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    options = {**here, "nthreads": 1, "memory_limit": GIB}
    workers = {
        "cpu": {"cls": Nanny, "options": options},
        "gpu": {"cls": Nanny, "options": {**options, "resources": {"GPU": 1}}},
    }
    scheduler = {"cls": Scheduler, "options": {**here, "dashboard": False}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        yield cluster


def processes(cluster: SpecCluster, *, gpu: bool, gpus: int | None = None) -> set[int]:
    """Return the processes that units run in."""
    pool = Pool(ClusterSettings(1, GIB, scheduler=cluster.scheduler_address, gpus=gpus), Events())
    try:
        return {process for process, _ in pool.map(work.where, UNITS, gpu=gpu).values()}
    finally:
        pool.close()


def test_map__gpu_work_only_where_one_is_offered(mixed: SpecCluster) -> None:
    assert processes(mixed, gpu=True) == {mixed.workers["gpu"].pid}
    assert processes(mixed, gpu=True, gpus=1) == {mixed.workers["gpu"].pid}


def test_map__other_work_everywhere(mixed: SpecCluster) -> None:
    assert processes(mixed, gpu=False) == {nanny.pid for nanny in mixed.workers.values()}


def test_slots_of__twice_the_gpus_or_twice_the_threads(mixed: SpecCluster) -> None:
    pool = Pool(ClusterSettings(1, GIB, scheduler=mixed.scheduler_address), Events())
    try:
        with pool.workers.borrowed(None, gpu=True) as client:
            on_gpu, anywhere = (slots_of(client, gpu=gpu, gpus=None) for gpu in (True, False))
    finally:
        pool.close()
    assert (on_gpu.window, on_gpu.resources) == (2, {"GPU": 1})
    assert (anywhere.window, anywhere.resources) == (4, None)


@pytest.fixture
def machine_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as far as the program that lists them says."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-aa)'\necho 'GPU 1: other (UUID: GPU-bb)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("left", "expected"),
    [(None, ["0", "1"]), ("1", ["1"]), ("GPU-bb, 0", ["GPU-bb", "0"]), ("", []), ("0,-1,1", ["0"])],
)
@pytest.mark.usefixtures("machine_with_gpus")
def test_visible_gpus__those_that_were_left_to_us(
    monkeypatch: pytest.MonkeyPatch, left: str | None, expected: list[str]
) -> None:
    if left is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
    assert visible_gpus() == expected


@pytest.mark.usefixtures("machine_with_gpus")
@pytest.mark.parametrize(("gpus", "expected"), [(None, {"1", "0"}), (0, {""})])
def test_map__one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int | None, expected: set[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    pool = Pool(ClusterSettings(1, GIB, gpus=gpus), Events())
    try:
        places = set(pool.map(work.where, UNITS, gpu=True).values())
    finally:
        pool.close()
    assert {shown for _, shown in places} == expected
    assert len(places) == len(expected)


@pytest.mark.usefixtures("machine_with_gpus")
def test_of_this_machine__refuses_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClusterSettings.of_this_machine(gpus=2).gpus == 2
    assert ClusterSettings.of_this_machine(gpus=3, scheduler="tcp://127.0.0.1:1").gpus == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(BadInput, match="--gpus: found 1 GPUs that may be used here; expected 2"):
        ClusterSettings.of_this_machine(gpus=2)
