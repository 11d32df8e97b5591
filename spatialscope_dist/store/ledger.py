"""The ledger: which outputs are complete, keyed by the content they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
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

    def forget(self) -> None:
        """Forget all units: what they wrote is gone, or about to be."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
        (self.root / "skipped" / entry.stage / f"{entry.item}.json").unlink(missing_ok=True)

    def entries(self, stage: str) -> list[Entry]:
        """Return the committed outputs of a stage, by item."""
        return [Entry(**read_json(path)) for path in sorted((self.root / stage).glob("[!.]*.json"))]

    def forget(self, stage: str, item: str) -> None:
        """Drop the current output of an item, so that it is made anew."""
        self._path(stage, item).unlink(missing_ok=True)

    def forget_made_from(self, key: str, stages: Sequence[str]) -> None:
        """Drop the current outputs of `stages` that were made from the one with that key, or from those made from it.

        Their units are forgotten too: they are no progress towards what takes their place.
        """
        for entry in [entry for stage in stages for entry in self.entries(stage)]:
            if f'"{key}"' in json.dumps(entry.inputs):
                self.forget(entry.stage, entry.item)
                shutil.rmtree(self.root / "units" / entry.stage / entry.item, ignore_errors=True)
                self.forget_made_from(entry.key, stages)

    def keep_only(self, stage: str, items: Collection[str]) -> None:
        """Drop the outputs and skips of items that the study no longer has."""
        for folder in (self.root / stage, self.root / "skipped" / stage):
            for path in folder.glob("[!.]*.json"):
                if path.stem not in items:
                    path.unlink(missing_ok=True)

    def skip(self, stage: str, item: str, reason: str) -> None:
        """Note that a stage has nothing to do for an item; an earlier output no longer counts."""
        self.forget(stage, item)
        if self.skips(stage).get(item) != reason:
            write_json(self.root / "skipped" / stage / f"{item}.json", reason)

    def skips(self, stage: str) -> dict[str, str]:
        """Return the reasons of skipped items."""
        folder = self.root / "skipped" / stage
        return {path.stem: str(read_json(path)) for path in sorted(folder.glob("[!.]*.json"))}

    def units(self, stage: str, item: str, output: Path) -> Units:
        """Return the record of finished units of an output folder (named by its key)."""
        return Units(self.root / "units" / stage / item / output.name)

    def count_units(self, stage: str, item: str) -> int:
        """Return how many units of an item are committed, of the run that went furthest, for a live view."""
        runs = (self.root / "units" / stage / item).glob("*")
        return max((sum(1 for _ in run.glob("[!.]*.json")) for run in runs), default=0)

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
