"""Real S3 servers on the loopback interface, each in a process of its own.

moto's server keeps its objects in memory and asks nobody who they are: `with served(...) as store`. SeaweedFS keeps
them on disk and checks who asks; it can be killed and started again: `tests/seaweed.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import sys
from logging import ERROR, INFO, basicConfig, getLogger
from moto.server import ThreadedMotoServer
basicConfig(filename=sys.argv[1] or None)
getLogger("werkzeug").setLevel(INFO if sys.argv[1] else ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"http://{host}:{port}", flush=True)
sys.stdin.read()
server.stop()
"""


@dataclass(frozen=True)
class ObjectStore:
    """A running server, its bucket, and the environment of processes that may use it."""

    address: str
    environment: dict[str, str]
    bucket: str = "s3://tissue"

    def files(self) -> Any:
        """Return the fsspec file system of the server."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.address,
            use_listings_cache=False,
        )


def environment_of(address: str, *, key: str, secret: str, cache: Path) -> dict[str, str]:
    """Return the environment of a process that asks a server in somebody's name."""
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    place = {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true", "SPATIALSCOPE_CACHE": str(cache)}
    return {**os.environ, **keys, **place}


@contextmanager
def served(cache: Path, *, log: Path | None = None) -> Iterator[ObjectStore]:
    """Yield moto's server with one bucket; files that are fetched are kept in `cache`, requests noted in `log`."""
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    program = [sys.executable, "-c", _PROGRAM, str(log or "")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, text=True, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        store = ObjectStore(address, environment_of(address, key="tester", secret="kept-out-of-files", cache=cache))
        store.files().mkdir(store.bucket)
        try:
            yield store
        finally:
            process.communicate()


@contextmanager
def used(store: ObjectStore) -> Iterator[ObjectStore]:
    """Give this process, and those it starts, a store's environment while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        _close_clients()
        yield store
        _close_clients()


def _close_clients() -> None:
    """Forget the clients made so far; left open, they complain when the process ends."""
    import s3fs

    for files in s3fs.S3FileSystem._cache.values():
        if getattr(files, "_s3", None) is not None:
            s3fs.S3FileSystem.close_session(files.loop, files._s3)
    s3fs.S3FileSystem.clear_instance_cache()
