"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real data; tests that need it are skipped when it is not given."""
    folder = os.environ.get("SPATIALSCOPE_DATA")
    if not folder:
        pytest.skip("SPATIALSCOPE_DATA is not set: real data is not available")
    return Path(folder)
