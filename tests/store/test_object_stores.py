"""What the output's files are written with, on two S3 servers of different make."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spatialscope_dist.errors import BadInput, StoreError
from spatialscope_dist.location import local_copy, located
from spatialscope_dist.store.documents import write_bytes, write_json
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.lock import LEASE_S
from spatialscope_dist.store.place import held
from spatialscope_dist.store.switch import replacing_folder
from tests.object_store import ObjectStore, served, used
from tests.seaweed import Seaweed, seaweed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seaweed, ObjectStore]]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectStore, Path]]:
    """moto's server, and the file in which it notes what it is asked."""
    folder = tmp_path_factory.mktemp("moto")
    with served(folder / "cache", log=folder / "requests") as store:
        yield store, folder / "requests"


@pytest.fixture(params=["moto", "seaweed"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    running = request.getfixturevalue("noted")[0] if request.param == "moto" else request.getfixturevalue("server")[1]
    with used(running):
        yield running


def test_lease__one_run_at_a_time_and_dead_ones_let_go(store: ObjectStore) -> None:
    root = located(f"{store.bucket}/held")
    with held(root), pytest.raises(StoreError, match="another run is writing"), held(root):
        pass
    lock = root / "ledger" / "lock"
    assert not lock.exists()
    elsewhere = {"host": "another", "pid": 1, "run": "x", "time": time.time()}
    write_json(lock, elsewhere)
    with pytest.raises(StoreError, match="another run is writing"), held(root):
        pass
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for dead in ({**elsewhere, "time": time.time() - LEASE_S - 1}, {**elsewhere, "host": socket.gethostname()}):
        write_json(lock, {**dead, "pid": gone.pid})
        with held(root):
            assert json.loads(lock.read_bytes())["pid"] == os.getpid()


def test_replacing_folder__leaves_the_new_content_alone(store: ObjectStore) -> None:
    target = located(f"{store.bucket}/switched/folder")
    for names in (("root.json", "inner/old.json"), ("root.json", "inner/new.json")):
        with replacing_folder(target) as fresh:
            for name in names:
                write_json(fresh / name, name)
    left = [str(path).removeprefix(f"{target}/") for path in sorted(target.rglob("*.json"))]
    assert left == ["inner/new.json", "root.json"]


def test_replacing_folder__scratch_that_is_full_keeps_the_old_content(
    store: ObjectStore, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = located(f"{store.bucket}/kept/folder")
    with replacing_folder(target) as fresh:
        write_json(fresh / "root.json", "old")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    full = pytest.raises(StoreError, match=r"no room to assemble it \(No space left on device\).*TMPDIR")
    with full, replacing_folder(target) as fresh:
        fresh.mkdir()
        (fresh / "root.json").write_bytes(bytes(4 << 20))
    assert json.loads((target / "root.json").read_bytes()) == "old"
    assert list(small_disk.iterdir()) == []


def test_writes__that_fail_say_what_to_do(store: ObjectStore) -> None:
    import pandas as pd

    from spatialscope_dist.store.arrays import write_array
    from spatialscope_dist.store.frames import write_frame_parts

    gone = located("s3://No_such-bucket/out")
    for write in (
        lambda: write_bytes(gone / "a.json", b"{}"),
        lambda: write_array(gone / "a.zarr", np.zeros(3), axes=("row",)),
        lambda: write_frame_parts(gone / "a.parquet", iter([pd.DataFrame({"a": [1]})])),
    ):
        with pytest.raises(StoreError, match=r"cannot be written \(.*bucket.*\). Free space, mend the access"):
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


def test_local_copy__that_may_not_be_read_says_what_to_do(server: tuple[Seaweed, ObjectStore]) -> None:
    nobody = ObjectStore(server[0].address, server[0].environment("nobody", "unknown"))
    with used(nobody), pytest.raises(StoreError, match=r"cannot be fetched \(.*\). Give every process access"):
        local_copy(located(f"{nobody.bucket}/inputs/table.csv"))


def test_local_copy__of_a_folder(store: ObjectStore) -> None:
    source = located(f"{store.bucket}/model")
    for name in ("config.json", "weights/a.h5"):
        (source / name).write_bytes(name.encode())
    copy = local_copy(source)
    assert copy.name == "model"
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == {
        "config.json",
        "weights/a.h5",
    }


def test_file_hash__follows_the_content_whatever_its_name_in_the_store(store: ObjectStore) -> None:
    ledger = Ledger(located(f"{store.bucket}/hashed/ledger"))
    slide, other = located(f"{store.bucket}/hashed/a/slide.tif"), located(f"{store.bucket}/hashed/b/slide.tif")
    slide.write_bytes(b"pixels")
    other.write_bytes(b"pixels")
    before = ledger.file_hash(slide)
    assert ledger.file_hash(other) == before
    slide.write_bytes(b"pixelz")
    assert ledger.file_hash(slide) != before
    slide.write_bytes(b"pixels")
    assert ledger.file_hash(slide) == before
    assert not ledger.root.exists()  # nothing was read, so nothing is remembered


def test_file_hash__reads_no_object(noted: tuple[ObjectStore, Path]) -> None:
    store, requests = noted
    with used(store):
        slide = located(f"{store.bucket}/slides/a.tif")
        slide.write_bytes(bytes(1 << 20))
        Ledger(located(f"{store.bucket}/ledger")).file_hash(slide)
    lines = requests.read_text().splitlines()
    assert any("PUT /tissue/slides/a.tif" in line for line in lines)
    assert not any("GET /tissue/slides/a.tif" in line for line in lines)


def test_credentials__of_a_role_by_a_token_as_pods_have_them(noted: tuple[ObjectStore, Path], tmp_path: Path) -> None:
    store, requests = noted
    token = tmp_path / "token"
    token.write_text("header.claims.signature")
    role = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/spatialscope"}
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    environment = {name: value for name, value in store.environment.items() if name not in keys}
    program = f"""
from spatialscope_dist.location import located
from spatialscope_dist.store.documents import read_json, write_json
path = located("{store.bucket}/by/role.json")
write_json(path, [1])
assert read_json(path) == [1]
"""
    command = [sys.executable, "-c", program]
    subprocess.run(command, env={**environment, **role, "HOME": str(tmp_path)}, check=True, timeout=120)
    assert "POST / " in requests.read_text()  # the token service


def test_located__carries_no_credentials_to_other_processes(store: ObjectStore) -> None:
    path = located(f"{store.bucket}/inputs")
    assert not path.joinpath("none").exists()  # by now it has a client, which has credentials
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert store.environment[name].encode() not in pickle.dumps(path)


def test_located__refuses_credentials_in_a_url() -> None:
    with pytest.raises(BadInput, match="credentials in a URL") as caught:
        located("s3://key:hidden@bucket/folder")
    assert "hidden" not in str(caught.value)


def test_located__refuses_what_fsspec_cannot_open() -> None:
    with pytest.raises(BadInput, match="nonsense"):
        located("nonsense://bucket/folder")
    assert located("file:///data/study") == Path("/data/study")


def test_writes__to_a_store_that_went_away_fail_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else it would be asked for some more seconds
    with seaweed(tmp_path) as (server, going), used(going):
        root = located(f"{going.bucket}/output")
        run = held(root)
        run.__enter__()
        server.kill()
        with pytest.raises(StoreError, match=r"b.json: cannot be written .*run again"):
            write_json(root / "b.json", 1)
        run.__exit__(None, None, None)  # nothing of its own to say
