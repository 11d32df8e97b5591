"""A real S3 server on the loopback interface (moto's), in a process of its own: `with served(...) as store`."""

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


@contextmanager
def served(cache: Path, *, log: Path | None = None) -> Iterator[ObjectStore]:
    """Yield a server with one bucket; files that are fetched are kept in `cache`, requests noted in `log`."""
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    program = [sys.executable, "-c", _PROGRAM, str(log or "")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, text=True, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        keys = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "kept-out-of-files",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        place = {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true", "SPATIALSCOPE_CACHE": str(cache)}
        store = ObjectStore(address, {**os.environ, **keys, **place})
        store.files().mkdir(store.bucket)
        try:
            yield store
        finally:
            process.communicate()
