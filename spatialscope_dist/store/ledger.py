"""The ledger: which outputs are complete, keyed by the content they depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialscope_dist.store.documents import read_json, write_json

_BLOCK = 1 << 22


def content_key(stage: str, version: int, inputs: dict[str, Any]) -> str:
    """Return the key of a result: the SHA-256 of the stage, its version and everything it depends on."""
    text = json.dumps({"stage": stage, "version": version, "inputs": inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One committed stage output."""

    key: str
    stage: str
    item: str
    version: int
    inputs: dict[str, Any]
    done: int
    total: int
    failed: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Units:
    """Finished units of one stage output, one small file each."""

    folder: Path

    def committed(self) -> dict[str, Any]:
        """Return the results of the committed units."""
        return {path.stem: read_json(path) for path in sorted(self.folder.glob("[!.]*.json"))}

    def commit(self, unit: str, result: Any) -> None:
        """Note that a unit is complete; called after its chunks are on disk."""
        write_json(self.folder / f"{unit}.json", result)


@dataclass(frozen=True)
class Ledger:
    """Entries by stage and item under one folder."""

    root: Path

    def current(self, stage: str, item: str) -> Entry | None:
        """Return the committed output that is current, None when there is none."""
        path = self._path(stage, item)
        return Entry(**read_json(path)) if path.exists() else None

    def commit(self, entry: Entry) -> None:
        """Make an output the current one: the last write of a stage."""
        write_json(self._path(entry.stage, entry.item), entry.__dict__)

    def withdraw(self, stage: str, item: str) -> None:
        """Forget the current output of an item that is now skipped."""
        self._path(stage, item).unlink(missing_ok=True)

    def units(self, stage: str, item: str, output: Path) -> Units:
        """Return the record of finished units of an output folder (named by its key)."""
        return Units(self.root / "units" / stage / item / output.name)

    def file_hash(self, path: Path) -> str:
        """Return the SHA-256 of a file or folder of files, remembered while size and time stay the same."""
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode() + self._one_hash(file).encode())
        return digest.hexdigest()

    def _one_hash(self, file: Path) -> str:
        stat = file.stat()
        mark = hashlib.sha256(f"{file.resolve()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}".encode()).hexdigest()
        memory = self.root / "files" / f"{mark}.json"
        if memory.exists():
            return str(read_json(memory))
        digest = hashlib.sha256()
        with file.open("rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
        write_json(memory, digest.hexdigest())
        return digest.hexdigest()

    def _path(self, stage: str, item: str) -> Path:
        return self.root / stage / f"{item}.json"
