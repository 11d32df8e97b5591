"""A study whose files lie in an object store: inputs, output and the study file at s3://, on a server of our own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from spatialscope_dist.errors import BadInput
from spatialscope_dist.location import located
from spatialscope_dist.store.place import require_writable
from tests import small_study
from tests.conftest import Finished
from tests.object_store import ObjectStore, used
from tests.seaweed import KEYS, Seaweed, seaweed

DIVIDED = {"segment.tile": 512, "decompose.rows_per_shard": 16}
WORKERS = ["--workers", "2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seaweed, ObjectStore]]:
    """A server that keeps its objects when it is killed, and its owner's environment for this process."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as (running, store), used(store):
        yield running, store


@pytest.fixture(scope="module")
def store(server: tuple[Seaweed, ObjectStore]) -> ObjectStore:
    return server[1]


@dataclass(frozen=True)
class Ended:
    """A run that has ended, by itself or not."""

    returncode: int
    events: list[dict[str, Any]]
    errors: str


@dataclass(frozen=True)
class Remote:
    """A study that was read from and written to the store: the store was killed on the way, then the driver."""

    study: str
    output: str
    without_store: Ended
    killed: Ended
    last: list[dict[str, Any]]

    def status(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        command = [small_study.COMMAND, "status", self.study, "--output", self.output, "--json"]
        options = small_study.quick_settings(settings)
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=300)
        stages: dict[str, Any] = json.loads(done.stdout)["stages"]
        return stages


def run_until_unit(study: str, output: str, stage: str, then: Any) -> Ended:
    """Run the study; when a unit of a stage is committed call `then`, and wait until the run has ended."""
    command = small_study.command(located(study), located(output), *WORKERS, settings=DIVIDED)
    events: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            if (events[-1]["event"], events[-1].get("stage")) == ("unit", stage):
                break
        else:
            pytest.fail(f"the run ended before a unit of {stage} was committed")
        workers = psutil.Process(process.pid).children(recursive=True)
        then(process)
        rest, errors = process.communicate(timeout=300)
    assert not psutil.wait_procs(workers, timeout=90)[1], "workers outlive the run"
    events += [json.loads(line) for line in rest.splitlines() if line.endswith("}")]
    return Ended(process.returncode, events, errors)


@pytest.fixture(scope="module")
def remote(finished: Finished, server: tuple[Seaweed, ObjectStore]) -> Remote:
    """The small study with everything in the store, run three times: until a report is there."""
    running, store = server
    study, output = f"{store.bucket}/input", f"{store.bucket}/output"
    store.files().put(str(finished.study.parent), study, recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "2")  # else a store that is gone would be asked for some more seconds
        without_store = run_until_unit(study, output, "segment", lambda process: running.kill())
    running.start()
    killed = run_until_unit(study, output, "decompose", lambda process: process.kill())
    last = small_study.run(located(study), located(output), *WORKERS, settings=DIVIDED)
    return Remote(study, output, without_store, killed, last)


def test_run__store_that_goes_away_is_a_clear_failure(remote: Remote) -> None:
    ended = remote.without_store
    assert ended.returncode == 1
    assert "run again" in ended.errors
    assert "Traceback" not in ended.errors


def test_run__every_hash_is_that_of_a_run_on_a_disk(remote: Remote, finished: Finished) -> None:
    there, here = (small_study.hashes(located(output)) for output in (remote.output, str(finished.output)))
    assert there == here
    expression = {"expression", "expression_sd", "expression_q05", "expression_q95"}
    assert set(there["demo"]) == {"labels", "nuclei", "cells", *expression}


def test_run__continues_after_the_store_and_after_the_driver_died(remote: Remote) -> None:
    assert remote.killed.returncode == -signal.SIGKILL
    for events, stage in ((remote.killed.events, "segment"), (remote.last, "decompose")):
        (committed,) = [event for event in events if event["event"] == "committed" and event["stage"] == stage]
        assert committed["units_resumed"] >= 1


def test_run__finished_study_is_left_alone(remote: Remote, store: ObjectStore) -> None:
    before = store.files().find(remote.output, detail=True)
    events = small_study.run(located(remote.study), located(remote.output), *WORKERS, settings=DIVIDED)
    assert not events[-1]["changed"]
    assert events[-1]["report"] == f"{remote.output}/report/index.html"
    assert store.files().find(remote.output, detail=True) == before


def test_status__of_a_study_in_the_store(remote: Remote) -> None:
    rows = remote.status(DIVIDED)
    assert {name for name, row in rows.items() if row["done"] != row["total"] or row["waiting"]} == set()
    assert rows["decompose"]["done"] > 0
    assert not any(row["aged"] or row["failed"] for row in rows.values())


def test_report_and_sections__open_after_download(
    remote: Remote, finished: Finished, store: ObjectStore, tmp_path: Path
) -> None:
    import spatialdata

    for name in ("report", "sections"):
        store.files().get(f"{remote.output}/{name}", str(tmp_path / name), recursive=True)
    here, there = ((folder / "report" / "index.html").read_text() for folder in (finished.output, tmp_path))
    assert there.rstrip().endswith("</html>")
    assert [there.count(tag) for tag in ("<section", "<img", "<svg")] == [
        here.count(tag) for tag in ("<section", "<img", "<svg")
    ]
    fetched = spatialdata.read_zarr(tmp_path / "sections" / "demo.zarr")
    local = spatialdata.read_zarr(finished.output / "sections" / "demo.zarr")
    assert {name for _, name, _ in fetched.gen_elements()} == {name for _, name, _ in local.gen_elements()}
    cells = [section.tables["cells"] for section in (fetched, local)]
    assert cells[0].obs["cell_type"].astype(str).tolist() == cells[1].obs["cell_type"].astype(str).tolist()
    np.testing.assert_array_equal(np.asarray(cells[0].X), np.asarray(cells[1].X))
    np.testing.assert_array_equal(np.asarray(fetched.labels["nuclei"]), np.asarray(local.labels["nuclei"]))


def test_run__tells_nobody_its_credentials_and_fetches_no_image(remote: Remote, store: ObjectStore) -> None:
    secret = KEYS["owner"]
    contents = store.files().cat(store.files().find(remote.output))
    assert not [name for name, content in contents.items() if secret.encode() in content]
    for ended in (remote.without_store, remote.killed):
        assert secret not in ended.errors
        assert secret not in json.dumps(ended.events)
    assert secret not in json.dumps(remote.last)
    fetched = {path.suffix for path in Path(store.environment["SPATIALSCOPE_CACHE"]).rglob("*") if path.is_file()}
    assert ".h5ad" in fetched
    assert not fetched & {".tif", ".tiff"}


@pytest.mark.slow
def test_run__changed_option_reruns_what_status_foretells(remote: Remote) -> None:
    changed = {**DIVIDED, "interact.n_permutations": 60}
    foretold = {stage: row["aged"] for stage, row in remote.status(changed).items() if row["aged"]}
    before = small_study.QUICK["interact.n_permutations"]
    assert foretold["interact"] == {"study": f"options.n_permutations was {before}, is 60"}
    events = small_study.run(located(remote.study), located(remote.output), *WORKERS, settings=changed)
    assert [event["stage"] for event in events if event["event"] == "committed"] == ["interact", "report"]
    assert set(foretold) == {"interact", "report"}


@contextmanager
def dask(program: str, file: Path, *options: str, environment: dict[str, str]) -> Iterator[None]:
    """Run a `dask scheduler` or `dask worker` that meet by a scheduler file."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(file), "--no-dashboard"]
    with subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_run__workers_ask_in_their_own_name(
    finished: Finished, server: tuple[Seaweed, ObjectStore], tmp_path: Path
) -> None:
    file, output = tmp_path / "scheduler.json", f"{server[1].bucket}/attached"
    owner, reader = (server[0].environment(name) for name in ("owner", "reader"))
    attached = ["--scheduler", str(file), "--until", "ingest"]
    command = small_study.command(finished.study, located(output), *attached)
    alone = ["--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
    with dask("scheduler", file, "--host", "127.0.0.1", "--port", "0", environment=owner):
        with dask("worker", file, *alone, environment=reader):
            done = subprocess.run(command, env=owner, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 1
        assert "cannot be written (Access Denied.). Free space, mend the access" in done.stderr
        with dask("worker", file, *alone, environment=owner):
            done = subprocess.run(command, env=owner, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert KEYS["owner"] not in done.stdout + done.stderr


def refused(study: Any, output: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = small_study.command(study, located(output), *WORKERS, "--until", "ingest")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_run__says_that_it_may_not_write(finished: Finished, server: tuple[Seaweed, ObjectStore]) -> None:
    output = f"{server[1].bucket}/refused"
    done = refused(finished.study, output, server[0].environment("reader"))
    assert done.returncode == 2
    assert f"{output}: found Access Denied.; expected a writable output folder" in done.stderr
    assert "give every process credentials for it by its environment" in done.stderr
    assert not server[1].files().exists(output)


def test_run__says_that_the_study_cannot_be_read(remote: Remote, server: tuple[Seaweed, ObjectStore]) -> None:
    done = refused(remote.study, remote.output, server[0].environment("nobody", "unknown"))
    assert done.returncode == 2
    assert f"{remote.study}: found The access key ID you provided does not exist" in done.stderr
    assert "expected a study file that can be read" in done.stderr


@pytest.mark.parametrize(
    ("name", "secret", "found"),
    [
        ("nobody", "unknown", "access key ID you provided does not exist"),
        ("owner", "a wrong one", "Check your key and signing method"),
        ("", "", "Unable to locate credentials"),
    ],
)
def test_output__with_wrong_or_absent_credentials_is_refused(
    server: tuple[Seaweed, ObjectStore], tmp_path: Path, name: str, secret: str, found: str
) -> None:
    given = {**server[0].environment(name, secret), "HOME": str(tmp_path)}
    for key in () if name else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del given[key]
    with used(ObjectStore(server[1].address, given)) as store, pytest.raises(BadInput, match=found):
        require_writable(located(f"{store.bucket}/refused"))
