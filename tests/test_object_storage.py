"""A study whose files lie in an object store: inputs, output and the study file at s3://, on a server of our own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from spatialscope_dist.errors import BadInput, StoreError
from spatialscope_dist.location import local_copy, located
from tests import small_study
from tests.conftest import Finished
from tests.object_store import ObjectStore, served

UNTIL_TYPED = ["--workers", "2", "--until", "identify"]
TYPED = ("labels", "nuclei", "cells")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server and this process's credentials for it, which the runs it starts inherit."""
    import s3fs

    with served(tmp_path_factory.mktemp("cache")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running
        for files in s3fs.S3FileSystem._cache.values():
            if getattr(files, "_s3", None) is not None:  # left open, it complains when the process ends
                s3fs.S3FileSystem.close_session(files.loop, files._s3)
        s3fs.S3FileSystem.clear_instance_cache()


@dataclass(frozen=True)
class Remote:
    """A study that was read from and written to the store, its driver killed on the way."""

    study: str
    output: str
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def remote(finished: Finished, store: ObjectStore) -> Remote:
    """The small study with everything in the store: killed within its second stage, then run until cells are typed."""
    study, output = f"{store.bucket}/input", f"{store.bucket}/output"
    store.files().put(str(finished.study.parent), study, recursive=True)
    command = small_study.command(located(study), located(output), *UNTIL_TYPED)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        stage = None
        for event in map(json.loads, process.stdout):
            stage = event["stage"] if event["event"] == "stage" else stage
            if stage == "segment" and event["event"] == "unit":
                break
        else:
            pytest.fail("the run ended before a unit of segment was committed")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=90)[1], "workers outlive the run"
    return Remote(study, output, small_study.run(located(study), located(output), *UNTIL_TYPED))


def test_run__same_hashes_as_on_a_disk_after_a_kill(remote: Remote, finished: Finished) -> None:
    (there, here) = (small_study.hashes(located(output))["demo"] for output in (remote.output, str(finished.output)))
    assert there == {name: here[name] for name in TYPED}
    (committed,) = [event for event in remote.events if event["event"] == "committed" and event["stage"] == "segment"]
    assert committed["units_resumed"] >= 1


def test_run__finished_study_is_left_alone(remote: Remote, store: ObjectStore) -> None:
    before = store.files().find(remote.output, detail=True)
    events = small_study.run(located(remote.study), located(remote.output), *UNTIL_TYPED)
    assert not events[-1]["changed"]
    assert store.files().find(remote.output, detail=True) == before


def test_status__of_a_study_in_the_store(remote: Remote) -> None:
    command = [small_study.COMMAND, "status", remote.study, "--output", remote.output, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads(done.stdout)["stages"]
    for stage in ("ingest", "segment", "reference", "identify"):
        assert rows[stage]["done"] == rows[stage]["total"] > 0
    assert rows["train"]["waiting"] == ["study"]


def test_sections__open_with_spatialdata_after_download(
    remote: Remote, finished: Finished, store: ObjectStore, tmp_path: Path
) -> None:
    import spatialdata

    store.files().get(f"{remote.output}/sections/demo.zarr", str(tmp_path / "demo.zarr"), recursive=True)
    fetched = spatialdata.read_zarr(tmp_path / "demo.zarr")
    local = spatialdata.read_zarr(finished.output / "sections" / "demo.zarr")
    assert {name for _, name, _ in fetched.gen_elements()} == {name for _, name, _ in local.gen_elements()}
    types = [store.tables["cells"].obs["cell_type"].astype(str).tolist() for store in (fetched, local)]
    assert types[0] == types[1]
    np.testing.assert_array_equal(np.asarray(fetched.labels["nuclei"]), np.asarray(local.labels["nuclei"]))


def test_run__writes_no_credentials_and_fetches_no_image(remote: Remote, store: ObjectStore) -> None:
    secret = store.environment["AWS_SECRET_ACCESS_KEY"].encode()
    contents = store.files().cat(store.files().find(remote.output))
    assert not [name for name, content in contents.items() if secret in content]
    fetched = {path.suffix for path in Path(store.environment["SPATIALSCOPE_CACHE"]).rglob("*") if path.is_file()}
    assert ".h5ad" in fetched
    assert not fetched & {".tif", ".tiff"}


def refused(study: Any, output: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: value for name, value in changed.items() if value is not None}}
    for name in [name for name, value in changed.items() if value is None]:
        del environment[name]
    command = small_study.command(study, located(output), *UNTIL_TYPED)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_run__says_that_the_bucket_is_missing(finished: Finished, store: ObjectStore) -> None:
    done = refused(finished.study, "s3://no-such-bucket/out")
    assert done.returncode == 2
    assert "s3://no-such-bucket/out: found The specified bucket does not exist" in done.stderr
    assert "Create the bucket" in done.stderr
    assert not store.files().exists("s3://no-such-bucket")


def test_run__says_that_credentials_are_missing(finished: Finished, store: ObjectStore, tmp_path: Path) -> None:
    absent = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": str(tmp_path)}
    done = refused(finished.study, f"{store.bucket}/other", **absent)
    assert done.returncode == 2
    assert "Unable to locate credentials" in done.stderr
    assert "credentials for it by its environment" in done.stderr


def test_lease__one_run_at_a_time_and_dead_ones_let_go(store: ObjectStore) -> None:
    from spatialscope_dist.store.documents import write_json
    from spatialscope_dist.store.lock import LEASE_S
    from spatialscope_dist.store.place import held

    root = located(f"{store.bucket}/held")
    with held(root), pytest.raises(StoreError, match="another run is writing"), held(root):
        pass
    lock = root / "ledger" / "lock"
    assert not lock.exists()
    elsewhere = {"host": "another", "pid": 1, "run": "x", "time": time.time()}
    write_json(lock, elsewhere)
    with pytest.raises(StoreError), held(root):
        pass
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for dead in ({**elsewhere, "time": time.time() - LEASE_S - 1}, {**elsewhere, "host": socket.gethostname()}):
        write_json(lock, {**dead, "pid": gone.pid})
        with held(root):
            assert json.loads(lock.read_bytes())["pid"] == os.getpid()


def test_replacing_folder__leaves_the_new_content_alone(store: ObjectStore) -> None:
    from spatialscope_dist.store.documents import write_json
    from spatialscope_dist.store.switch import replacing_folder

    target = located(f"{store.bucket}/switched/folder")
    for names in (("root.json", "inner/old.json"), ("root.json", "inner/new.json")):
        with replacing_folder(target) as fresh:
            for name in names:
                write_json(fresh / name, name)
    assert [str(path).removeprefix(f"{target}/") for path in sorted(target.rglob("*.json"))] == [
        "inner/new.json",
        "root.json",
    ]


def test_writes__that_fail_say_what_to_do(store: ObjectStore) -> None:
    import pandas as pd

    from spatialscope_dist.store.arrays import write_array
    from spatialscope_dist.store.documents import write_bytes
    from spatialscope_dist.store.frames import write_frame_parts

    gone = located("s3://no-such-bucket/out")
    for write in (
        lambda: write_bytes(gone / "a.json", b"{}"),
        lambda: write_array(gone / "a.zarr", np.zeros(3), axes=("row",)),
        lambda: write_frame_parts(gone / "a.parquet", iter([pd.DataFrame({"a": [1]})])),
    ):
        with pytest.raises(StoreError, match=r"cannot be written \(The specified bucket does not exist\)"):
            write()


def test_local_copy__is_fetched_once_and_anew_when_it_changed(store: ObjectStore) -> None:
    source = located(f"{store.bucket}/inputs/table.csv")
    source.write_bytes(b"a,b\n1,2\n")
    first = local_copy(source)
    assert first.read_bytes() == b"a,b\n1,2\n"
    assert local_copy(source) == first
    source.write_bytes(b"a,b\n3,4\n")
    assert local_copy(source).read_bytes() == b"a,b\n3,4\n"
    with pytest.raises(FileNotFoundError, match="nothing at"):
        local_copy(located(f"{store.bucket}/inputs/none.csv"))


def test_located__refuses_credentials_in_a_url() -> None:
    with pytest.raises(BadInput, match="credentials in a URL") as caught:
        located("s3://key:hidden@bucket/folder")
    assert "hidden" not in str(caught.value)


def test_located__refuses_what_fsspec_cannot_open() -> None:
    with pytest.raises(BadInput, match="nonsense"):
        located("nonsense://bucket/folder")
    assert located("file:///data/study") == Path("/data/study")


def test_writes__to_a_store_that_went_away_fail_in_words(tmp_path: Path) -> None:
    import s3fs

    from spatialscope_dist.store.documents import write_json
    from spatialscope_dist.store.place import held

    with pytest.MonkeyPatch.context() as patch:
        with served(tmp_path) as going:
            for name, value in going.environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            root = located(f"{going.bucket}/output")
            run = held(root)
            run.__enter__()
        with pytest.raises(StoreError, match=r"b.json: cannot be written .*run again"):
            write_json(root / "b.json", 1)
        run.__exit__(None, None, None)  # nothing of its own to say
    s3fs.S3FileSystem.clear_instance_cache()
