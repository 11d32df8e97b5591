"""What an operator can watch: Dask's report of a stage, metrics for Prometheus."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from tests.engine import work

pytestmark = pytest.mark.local_cluster
DEPLOY = Path(__file__).parents[2] / "deploy"


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_reported__page_of_what_ran_and_metrics_of_the_scheduler(tmp_path: Path) -> None:
    pool, page = Pool(ClusterSettings(1, GIB), Events()), tmp_path / "report" / "ingest.html"
    try:
        with pool.workers.reported(page):
            pool.map(work.square, {f"u{number}": {"number": number} for number in range(3)})
            with pool.workers.borrowed(None, gpu=False) as client:
                workers = client.scheduler_info(n_workers=-1)["workers"].values()
                ports = [client.cluster.scheduler.http_server.port, *(one["services"]["dashboard"] for one in workers)]
                text = "".join(metrics(port) for port in ports)
        pool.map(work.square, {"after": {"number": 1}})
    finally:
        pool.close()
    assert "number of tasks: 3" in page.read_text().lower()
    explained = set(re.findall(r"dask_(?:scheduler|worker)_\w+", (DEPLOY / "README.md").read_text()))
    assert len(explained) > 5
    assert explained <= set(re.findall(r"^# TYPE (\w+)", text, flags=re.M))
