"""Where everything of a study's output lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import is_remote, storage_errors
from spatialscope_dist.store.documents import make_folder
from spatialscope_dist.store.lock import file_lock, lease


@dataclass(frozen=True)
class Place:
    """The output folder of a study; nothing is written outside it."""

    root: Path

    def output(self, stage: str, item: str, key: str) -> Path:
        """Return the folder of one immutable stage output."""
        return self.root / "work" / stage / item / key[:16]

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.root / "ledger"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.root / "model"

    @property
    def reference(self) -> Path:
        """The published reference AnnData."""
        return self.root / "reference.zarr"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report" / "index.html"

    @property
    def hashes(self) -> Path:
        """SHA-256 of the results in canonical order."""
        return self.root / "hashes.json"

    @property
    def task_log(self) -> Path:
        """Where every task's time, place and cost is noted, one JSON object a line."""
        return self.root / "ledger" / "tasks.jsonl"

    @property
    def performance(self) -> Path:
        """Folder of Dask's performance reports, one page a stage."""
        return self.root / "report" / "performance"

    def section(self, name: str) -> Path:
        """Return the published SpatialData of a section."""
        return self.root / "sections" / f"{name}.zarr"

    def table(self, name: str) -> Path:
        """Return a study-wide parquet table, for example 'interactions'."""
        return self.root / f"{name}.parquet"

    def published(self, stage: str) -> Path | None:
        """Return what a study-wide stage puts where users look for it, None for the other stages."""
        places = {
            "reference": self.reference,
            "train": self.model,
            "interact": self.table("interactions"),
            "variable": self.table("variable_genes"),
            "differential": self.table("spatial_de"),
            "report": self.report,
        }
        return places.get(stage)

    def stored_bytes(self) -> int:
        """Return the bytes the stage outputs take so far."""
        files = (path for path in (self.root / "work").rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)


def require_writable(root: Path) -> None:
    """Create the folder and prove that it can be written.

    Raises
    ------
    BadInput
        When the folder cannot be created or a file in it cannot be written.
    """
    probe = root / f".writable-{os.getpid()}"
    try:
        make_folder(root)
        probe.write_bytes(b"")
        probe.unlink()
    except storage_errors() as error:
        remedy = "Give a folder you may write with --output DIR, or free space."
        if is_remote(root):
            remedy = "Create the bucket, and give every process credentials for it by its environment, or another URL."
        raise BadInput(Problem(str(root), str(error), "a writable output folder", remedy)) from error


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold the output for one run; a killed process lets go of it, in an object store when its lease ends.

    Raises
    ------
    StoreError
        When another run holds it.
    """
    hold = lease if is_remote(root) else file_lock
    with hold(root / "ledger" / "lock"):
        yield
