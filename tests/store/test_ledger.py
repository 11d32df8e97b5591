from __future__ import annotations

import os
from pathlib import Path

import pytest

from spatialscope_dist.errors import BadInput, StoreError
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.ledger import UNREAD, Entry, Ledger, content_key
from spatialscope_dist.store.place import held, require_writable
from spatialscope_dist.store.switch import finish_switch, switch_in


def entry(key: str) -> Entry:
    return Entry(key=key, stage="segment", item="A", version=1, inputs={}, done=3, total=3)


def test_content_key__changes_with_anything_it_depends_on() -> None:
    base = content_key("segment", 1, {"image": "x", "options": {"a": 1}})
    assert base == content_key("segment", 1, {"options": {"a": 1}, "image": "x"})
    assert base != content_key("segment", 2, {"image": "x", "options": {"a": 1}})
    assert base != content_key("segment", 1, {"image": "x", "options": {"a": 2}})


def test_ledger__commit_skip_forget(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.current("segment", "A") is None
    ledger.commit(entry("k1"))
    assert ledger.current("segment", "A") == entry("k1")
    ledger.skip("segment", "A", "no image")
    assert ledger.current("segment", "A") is None
    assert ledger.skips("segment") == {"A": "no image"}
    ledger.commit(entry("k2"))
    assert ledger.skips("segment") == {}
    assert [one.key for one in ledger.entries("segment")] == ["k2"]


def test_file_hash__follows_content_not_name_of_folder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    first = tmp_path / "a.txt"
    first.write_text("one")
    before = ledger.file_hash(first)
    assert ledger.file_hash(first) == before
    first.write_text("other")
    assert ledger.file_hash(first) != before


def test_write_json__failed_write_keeps_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    write_json(path, {"a": 1})

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_require_writable__names_the_folder_and_the_way_out(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(BadInput, match="--output"):
        require_writable(blocked / "out")


@pytest.mark.parametrize("cut", ["before", "between", "after"])
def test_switch_in__a_kill_leaves_the_old_or_the_new(tmp_path: Path, cut: str) -> None:
    target, fresh = tmp_path / "s.zarr", tmp_path / ".s.zarr.new"
    for folder, text in ((target, "old"), (fresh, "new")):
        folder.mkdir()
        (folder / "content").write_text(text)
    ready, old = tmp_path / ".s.zarr.ready", tmp_path / ".s.zarr.old"
    if cut == "before":
        finish_switch(target)
        assert (target / "content").read_text() == "old"
        return
    if cut == "between":
        fresh.rename(ready)
        target.rename(old)
        finish_switch(target)
    else:
        switch_in(fresh, target)
        assert not old.exists()
    assert (target / "content").read_text() == "new"


def test_held__second_run_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(StoreError, match="another run is writing"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_file_hash__ledger_that_only_looks_reads_no_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialscope_dist.store.ledger._AT_A_GLANCE", 3)
    slide, small, root = tmp_path / "slide.tif", tmp_path / "pairs.csv", tmp_path / "ledger"
    slide.write_bytes(b"pixels")
    small.write_bytes(b"a,b")
    looking = Ledger(root, only_looks=True)
    assert looking.file_hash(slide) == UNREAD
    seen = looking.file_hash(small)
    assert not root.exists()
    known = Ledger(root).file_hash(slide)
    assert looking.file_hash(slide) == known
    assert Ledger(root).file_hash(small) == seen
    os.utime(slide, (1, 1))
    assert looking.file_hash(slide) == UNREAD
    assert Ledger(root).file_hash(slide) == known
