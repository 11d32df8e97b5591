"""Workers shared by the tests of the stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One worker process for the tests of a file."""
    shared = Pool(ClusterSettings(1, 2 << 30), Events())
    yield shared
    shared.close()
