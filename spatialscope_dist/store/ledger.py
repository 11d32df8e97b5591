"""The ledger: which outputs are complete, keyed by the content they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialscope_dist.location import content_mark, content_tag, files_below
from spatialscope_dist.store.documents import read_json, read_json_folder, remove_tree, write_json

UNREAD = "not read since it was written"
_BLOCK = 1 << 22
_AT_A_GLANCE = 1 << 26  # bytes of a file that is hashed in a fraction of a second


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

    def committed(self, units: Collection[str] | None = None) -> dict[str, Any]:
        """Return the results of the committed units, of those asked for when they are named."""
        return read_json_folder(self.folder, units)

    def commit(self, unit: str, result: Any) -> None:
        """Note that a unit is complete; called after its chunks are on disk."""
        write_json(self.folder / f"{unit}.json", result)

    def forget(self) -> None:
        """Forget all units: what they wrote is gone, or about to be."""
        remove_tree(self.folder)


@dataclass(frozen=True)
class Ledger:
    """Entries by stage and item under one folder; one that only looks writes nothing and reads no slide."""

    root: Path
    only_looks: bool = False

    def current(self, stage: str, item: str) -> Entry | None:
        """Return the committed output that is current, None when there is none."""
        path = self._path(stage, item)
        return Entry(**read_json(path)) if path.exists() else None

    def commit(self, entry: Entry) -> None:
        """Make an output the current one: the last write of a stage."""
        write_json(self._path(entry.stage, entry.item), entry.__dict__)
        for state in ("skipped", "failed"):
            (self.root / state / entry.stage / f"{entry.item}.json").unlink(missing_ok=True)

    def entries(self, stage: str) -> list[Entry]:
        """Return the committed outputs of a stage, by item."""
        return [Entry(**document) for document in read_json_folder(self.root / stage).values()]

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
                remove_tree(self.root / "units" / entry.stage / entry.item)
                self.forget_made_from(entry.key, stages)

    def keep_only(self, stage: str, items: Collection[str]) -> None:
        """Drop the outputs, skips and failures of items that the study no longer has."""
        for folder in (self.root / stage, self.root / "skipped" / stage, self.root / "failed" / stage):
            for path in folder.glob("[!.]*.json"):
                if path.stem not in items:
                    path.unlink(missing_ok=True)

    def skip(self, stage: str, item: str, reason: str) -> None:
        """Note that a stage has nothing to do for an item; an earlier output no longer counts."""
        self.forget(stage, item)
        (self.root / "failed" / stage / f"{item}.json").unlink(missing_ok=True)
        if self.skips(stage).get(item) != reason:
            write_json(self.root / "skipped" / stage / f"{item}.json", reason)

    def skips(self, stage: str) -> dict[str, str]:
        """Return the reasons of skipped items."""
        return {item: str(reason) for item, reason in read_json_folder(self.root / "skipped" / stage).items()}

    def fail(self, stage: str, item: str, reason: str) -> None:
        """Note that an item failed as a whole; the next run tries it again."""
        (self.root / "skipped" / stage / f"{item}.json").unlink(missing_ok=True)
        write_json(self.root / "failed" / stage / f"{item}.json", reason)

    def failures(self, stage: str) -> dict[str, str]:
        """Return the reasons of items that failed when they were last tried."""
        return {item: str(reason) for item, reason in read_json_folder(self.root / "failed" / stage).items()}

    def units(self, stage: str, item: str, output: Path) -> Units:
        """Return the record of finished units of an output folder (named by its key)."""
        return Units(self.root / "units" / stage / item / output.name)

    def count_units(self, stage: str, item: str) -> int:
        """Return how many units of an item are committed, of the run that went furthest, for a live view."""
        runs = (self.root / "units" / stage / item).glob("*")
        return max((sum(1 for _ in run.glob("[!.]*.json")) for run in runs), default=0)

    def file_hash(self, path: Path) -> str:
        """Return what identifies the content of a file or folder of files.

        Files of this machine are hashed once, and remembered while place, size, time and inode stay the same. Of an
        object the store's own tag is taken, so that nobody has to read it; what has none is hashed as well. A ledger
        that only looks writes nothing, and returns `UNREAD` rather than read a large file.
        """
        digest = hashlib.sha256()
        for file in files_below(path):
            one = content_tag(file) or self._one_hash(file)
            if one == UNREAD:
                return UNREAD
            digest.update(file.name.encode() + one.encode())
        return digest.hexdigest()

    def _one_hash(self, file: Path) -> str:
        mark = hashlib.sha256(content_mark(file).encode()).hexdigest()
        memory = self.root / "files" / f"{mark}.json"
        if memory.exists():
            return str(read_json(memory))
        if self.only_looks and file.stat().st_size > _AT_A_GLANCE:
            return UNREAD
        digest = hashlib.sha256()
        with file.open("rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
        if not self.only_looks:
            write_json(memory, digest.hexdigest())
        return digest.hexdigest()

    def _path(self, stage: str, item: str) -> Path:
        return self.root / stage / f"{item}.json"
