"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import small_study


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real data; tests that need it are skipped when it is not given."""
    folder = os.environ.get("SPATIALSCOPE_DATA")
    if not folder:
        pytest.skip("SPATIALSCOPE_DATA is not set: real data is not available")
    return Path(folder)


@dataclass(frozen=True)
class Finished:
    """A small study that was run from raw input to report."""

    study: Path
    output: Path
    events: list[dict[str, Any]]

    @property
    def summary(self) -> dict[str, Any]:
        return self.events[-1]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small study, run once with two workers; tests only read it."""
    folder = tmp_path_factory.mktemp("small")
    study = small_study.write_small_study(folder / "input")
    output = folder / "output"
    return Finished(study, output, small_study.run(study, output, "--workers", "2"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)
