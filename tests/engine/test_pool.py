from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput, StageFailed
from spatialscope_dist.store.ledger import Units
from tests.engine import work


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(ClusterSettings(2, 2 * GIB), Events())
    yield shared
    shared.close()


def numbers(count: int) -> dict[str, dict[str, int]]:
    return {f"unit-{number}": {"number": number} for number in range(count)}


def test_map__returns_every_result(pool: Pool) -> None:
    done = pool.map(work.square, numbers(9))
    assert done == {f"unit-{number}": number**2 for number in range(9)}


def test_map__runs_only_what_is_not_committed(pool: Pool, tmp_path: Path) -> None:
    log = Units(tmp_path)
    log.commit("unit-1", 99)
    pool.take_cost()
    done = pool.map(work.square, numbers(3), ledger_units=log)
    assert done["unit-1"] == 99
    assert log.committed() == {"unit-0": 0, "unit-1": 99, "unit-2": 4}
    cost = pool.take_cost()
    assert (cost.units_run, cost.units_resumed) == (2, 1)


def test_map__failed_unit_is_a_status(pool: Pool) -> None:
    done = pool.map(work.refuse, numbers(3), stop_on_failure=False)
    assert sorted(done) == ["unit-0", "unit-2"]
    assert "cannot be stored" in done.failed["unit-1"]


def test_map__failure_stops_and_keeps_what_was_committed(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="unit-1: number one"):
        pool.map(work.refuse, numbers(2), ledger_units=Units(tmp_path))


def test_map__workers_of_another_framework_start_after_a_failure() -> None:
    failing = Pool(ClusterSettings(1, 2 * GIB), Events())
    try:
        with pytest.raises(StageFailed) as kept:
            failing.map(work.refuse, numbers(2))
        assert failing.map(work.square, numbers(3), framework="torch")["unit-2"] == 4
    finally:
        failing.close()
    assert "number one" in str(kept.value)


def test_map__unexpected_error_names_its_type(pool: Pool) -> None:
    with pytest.raises(StageFailed, match="ZeroDivisionError"):
        pool.map(work.crash, {"only": {}})


def test_map__bad_input_found_on_a_worker_stays_bad_input(pool: Pool) -> None:
    with pytest.raises(BadInput, match=r"found a; expected b. Do c\."):
        pool.map(work.refuse_input, {"only": {}})


def test_map__passing_fault_is_retried(pool: Pool, tmp_path: Path) -> None:
    assert pool.map(work.flaky, {"only": {"folder": str(tmp_path)}}) == {"only": 7}


def test_map__killed_worker_loses_nothing(tmp_path: Path) -> None:
    pool = Pool(ClusterSettings(2, 2 * GIB), Events())
    units = {f"u{number}": {"folder": str(tmp_path), "number": number} for number in range(6)}
    try:
        done = pool.map(work.die_once, units)
    finally:
        pool.close()
    assert (tmp_path / "died").exists()
    assert done == {f"u{number}": 10 * number for number in range(6)}


def test_map__unit_that_ends_every_worker_says_what_to_try() -> None:
    pool = Pool(ClusterSettings(1, 2 * GIB), Events())
    try:
        with pytest.raises(StageFailed, match="only: every worker that ran it died.*--memory-limit"):
            pool.map(work.die, {"only": {}})
    finally:
        pool.close()


def test_map__peak_memory_is_measured_per_task(pool: Pool) -> None:
    pool.take_cost()
    pool.map(work.allocate, {"large": {"megabytes": 400}})
    large = pool.take_cost().peak_rss_bytes
    pool.map(work.allocate, {"small": {"megabytes": 1}})
    small = pool.take_cost().peak_rss_bytes
    assert large > 400 << 20
    assert small < large - (300 << 20)


def test_map__frameworks_never_share_processes() -> None:
    pool = Pool(ClusterSettings(1, 2 * GIB), Events())
    try:
        first = pool.map(work.process_and_modules, {"a": {}}, framework="tensorflow")["a"]["pid"]
        same = pool.map(work.process_and_modules, {"a": {}}, framework="any")["a"]["pid"]
        other = pool.map(work.process_and_modules, {"a": {}}, framework="torch")["a"]["pid"]
    finally:
        pool.close()
    assert first == same
    assert first != other


def test_map__unreachable_scheduler_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialscope_dist.engine.cluster._CONNECT_TIMEOUT_S", 1)
    pool = Pool(ClusterSettings(1, GIB, scheduler="tcp://127.0.0.1:9"), Events())
    with pytest.raises(BadInput, match="does not answer"):
        pool.map(work.square, numbers(1))


def test_map__attaches_to_a_running_scheduler() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        pool = Pool(ClusterSettings(1, GIB, scheduler=cluster.scheduler_address), Events())
        assert pool.map(work.square, numbers(3))["unit-2"] == 4
        pool.close()
        assert cluster.scheduler_info["workers"], "closing our client must leave the cluster running"


def test_map__many_slots_are_refilled_in_batches__never_beyond_two_units_a_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, known, original = [], [], Client.map

    def noted(client: Client, *arguments: Any, key: list[Any], **options: Any) -> Any:
        if "batch_size" in options:  # else Dask's own call for a part of a batch
            sent.append(len(key))
        return original(client, *arguments, key=key, **options)

    monkeypatch.setattr(Client, "map", noted)
    options = {"processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=16, **options) as cluster:
        watching = Events((lambda event: known.append(len(cluster.scheduler.tasks)),))
        attached = Pool(ClusterSettings(1, GIB, scheduler=cluster.scheduler_address), watching)
        done = attached.map(work.square, numbers(203))
        attached.close()
    assert done == {f"unit-{number}": number**2 for number in range(203)}
    assert max(known) <= 32
    assert (sent[0], sum(sent)) == (32, 203)
    assert min(sent[:-1]) >= 4


def test_map__gpu_work_goes_to_workers_that_offer_it() -> None:
    pool = Pool(ClusterSettings(2, GIB, gpus=1), Events())
    try:
        done = pool.map(work.process_and_modules, {f"{n}": {} for n in range(4)}, gpu=True)
        assert len({result["pid"] for result in done.values()}) == 1
    finally:
        pool.close()


@pytest.mark.parametrize("memory_limit", ["12 apples", "1MB"])
def test_of_this_machine__refuses_bad_memory_limits(memory_limit: str) -> None:
    with pytest.raises(BadInput, match="--memory-limit"):
        ClusterSettings.of_this_machine(memory_limit=memory_limit)


def test_of_this_machine__refuses_a_negative_number_of_gpus() -> None:
    with pytest.raises(BadInput, match="--gpus"):
        ClusterSettings.of_this_machine(gpus=-1)
