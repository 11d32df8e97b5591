"""Running schedulers are reached with certificates and by file; other versions on workers are named; TLS by option."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from distributed import Client, Security
from distributed.versions import VersionMismatchWarning

from spatialscope_dist.engine.cluster import GIB, ClusterSettings, close_client, open_client
from spatialscope_dist.engine.encryption import Certificates, security_of
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput
from tests.engine import work

pytestmark = pytest.mark.local_cluster


def write_certificates(folder: Path) -> Certificates:
    """Write an authority, a certificate and its key, made for this test."""
    folder.mkdir()
    made = Security.temporary()
    files = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for name, text in files.items():
        (folder / f"{name}.pem").write_text(text)
    return Certificates(*(folder / f"{name}.pem" for name in files))


@contextmanager
def dask(program: str, certificates: Certificates, *options: str, path: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running `dask scheduler` or `dask worker`."""
    files = certificates
    tls = ["--tls-ca-file", str(files.ca), "--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    places = [part for part in (path, os.environ.get("PYTHONPATH", "")) if part]
    with subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{program}", *tls, "--no-dashboard", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until(ready: object, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    assert callable(ready)
    while not ready():
        assert time.monotonic() < deadline, "it did not start in time"
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """A scheduler that speaks TLS, its certificates, and the file its address is in."""

    certificates: Certificates
    file: Path

    def settings(self, certificates: Certificates | None) -> ClusterSettings:
        return ClusterSettings(1, GIB, scheduler=str(self.file), certificates=certificates)

    def count_workers(self) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(scheduler_file=str(self.file), security=security_of(self.certificates))
        with client:
            return len(client.scheduler_info()["workers"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("tls")
    certificates, file = write_certificates(folder / "ours"), folder / "scheduler.json"
    here = ["--host", "127.0.0.1", "--port", "0", "--protocol", "tls", "--scheduler-file", str(file)]
    with dask("scheduler", certificates, *here):
        wait_until(file.exists)
        yield Cluster(certificates, file)


def worker_options(cluster: Cluster, folder: Path) -> list[str]:
    file, scratch = str(cluster.file), str(folder)
    return ["--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--local-directory", scratch]


def test_connect__reaches_a_tls_scheduler_by_its_file(cluster: Cluster, tmp_path: Path) -> None:
    with dask("worker", cluster.certificates, *worker_options(cluster, tmp_path)):
        wait_until(lambda: cluster.count_workers() == 1)
        pool = Pool(cluster.settings(cluster.certificates), Events())
        pool.connect()
        assert pool.map(work.square, {"three": {"number": 3}}) == {"three": 9}
        pool.close()


def test_connect__names_what_differs_on_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    for name, version in (("numpy", "1.0.0"), ("spatialscope_dist", "9.9.9")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with dask("worker", cluster.certificates, *worker_options(cluster, tmp_path), path=str(tmp_path)):
        wait_until(lambda: cluster.count_workers() == 1)
        with pytest.raises(BadInput) as refused:
            Pool(cluster.settings(cluster.certificates), Events()).connect()
    assert len(refused.value.problems) == 2
    numpy, ours = sorted(str(problem) for problem in refused.value.problems)
    assert "worker tls://" in numpy
    assert "numpy: found 1.0.0; expected" in numpy
    assert "spatialscope_dist: found 9.9.9; expected" in ours
    assert "one container image" in ours


def test_connect__tls_without_certificates_says_how_to_give_them(cluster: Cluster) -> None:
    with pytest.raises(BadInput, match=r"tls://.* but no certificates.*--tls-ca"):
        Pool(cluster.settings(None), Events()).connect()


def test_connect__certificates_of_another_authority_are_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spatialscope_dist.engine.cluster._CONNECT_TIMEOUT_S", 2)
    with pytest.raises(BadInput, match="does not answer"):
        Pool(cluster.settings(write_certificates(tmp_path / "others")), Events()).connect()


def test_given__names_every_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(BadInput) as refused:
        Certificates.given(tmp_path / "ca.pem", tmp_path / "none.pem", None)
    assert [problem.where for problem in refused.value.problems] == ["--tls-cert", "--tls-key"]


def test_open_client__encrypted_workers_refuse_plain_connections() -> None:
    client = open_client(ClusterSettings(1, GIB, encrypted=True))
    try:
        assert client.submit(work.square, 4).result() == 16
        address = client.cluster.scheduler_address
        workers = list(client.scheduler_info()["workers"])
        assert all(one.startswith("tls://127.0.0.1:") for one in (address, *workers))
        with pytest.raises(OSError, match="Timed out|in <TCP>|closed|reset"):
            Client(address.replace("tls://", "tcp://"), timeout="2s")
    finally:
        close_client(client)


def test_open_client__everything_listens_on_this_machine_only() -> None:
    client = open_client(ClusterSettings(1, GIB))
    try:
        [worker] = [psutil.Process(nanny.pid) for nanny in client.cluster.workers.values()]
        for process in (psutil.Process(), worker):
            listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert listening
            assert set(listening) <= {"127.0.0.1", "::1"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")
    finally:
        close_client(client)
