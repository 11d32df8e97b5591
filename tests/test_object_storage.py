"""Paths, writes, folders and leases in an object store, on a server of our own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spatialscope_dist.errors import BadInput, StoreError
from spatialscope_dist.location import local_copy, located
from tests.object_store import ObjectStore, served


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server and this process's credentials for it, which the runs it starts inherit."""
    import s3fs

    with served(tmp_path_factory.mktemp("cache")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


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
