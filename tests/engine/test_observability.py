"""What an operator can watch: Dask's report of a stage, metrics for Prometheus."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from tests.engine import work

pytestmark = pytest.mark.local_cluster


def test_reported__page_of_what_ran_and_metrics_of_the_scheduler(tmp_path: Path) -> None:
    pool, page = Pool(ClusterSettings(1, GIB), Events()), tmp_path / "report" / "ingest.html"
    try:
        with pool.workers.reported(page):
            pool.map(work.square, {f"u{number}": {"number": number} for number in range(3)})
            with pool.workers.borrowed(None, gpu=False) as client:
                port = client.cluster.scheduler.http_server.port
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    text = answer.read().decode()
        pool.map(work.square, {"after": {"number": 1}})
    finally:
        pool.close()
    assert "number of tasks: 3" in page.read_text().lower()
    for name in ("dask_scheduler_workers", "dask_scheduler_tasks", "dask_scheduler_tasks_suspicious_total"):
        assert name in text
