"""Folders that take the place of others: switched in by rename on this machine, laid object by object in a store."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from spatialscope_dist.errors import StoreError
from spatialscope_dist.location import files_below, is_remote
from spatialscope_dist.store.documents import refusing_to_write


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder of this machine; when the block ends well, it takes the place of `target`.

    On this machine by rename: readers see the old folder or the new. An object store has no such switch: there the
    old root goes first and the new root comes last, and who opens the folder in between finds none.

    Raises
    ------
    StoreError
        When it cannot be written.
    """
    if is_remote(target):
        with _scratch_for(target) as fresh:
            yield fresh
            with refusing_to_write(target):
                _lay(fresh, target)
        return
    finish_switch(target)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with _saying_when_full(target, "Free space or choose another --output, then run again."):
        fresh.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
    switch_in(fresh, target)


@contextmanager
def _scratch_for(target: Path) -> Iterator[Path]:
    where = tempfile.gettempdir()
    remedy = f"Free space in {where}, or set TMPDIR of the workers to a folder on a larger disk; then run again."
    with _saying_when_full(target, remedy), tempfile.TemporaryDirectory(prefix="spatialscope-", dir=where) as scratch:
        yield Path(scratch) / target.name


@contextmanager
def _saying_when_full(target: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StoreError(f"{target}: no room to assemble it ({error.strerror}). {remedy}") from error


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder to a new place on this machine; files of this machine are linked where it allows it."""
    if is_remote(source):
        for file in files_below(source):
            place = target / str(file).removeprefix(f"{source}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            cast(Any, file).fs.get_file(cast(Any, file).path, str(place))
        return
    shutil.copytree(source, target, copy_function=_link)


def _lay(fresh: Path, target: Path) -> None:
    remote = cast(Any, target)
    old = {str(path).removeprefix(f"{target}/") for path in files_below(target)}
    new = {str(path.relative_to(fresh)): path for path in files_below(fresh)}
    roots = [name for name in new if "/" not in name]
    inner = [name for name in new if "/" in name]
    gone = [f"{remote.path}/{name}" for name in old if "/" not in name or name not in new]
    if gone:
        remote.fs.rm(gone)
    for names in (inner, roots):
        if names:
            remote.fs.put([str(new[name]) for name in names], [f"{remote.path}/{name}" for name in names])


def switch_in(fresh: Path, target: Path) -> None:
    """Put a complete folder in the place of an old one; `finish_switch` mends a kill in between."""
    ready, old = target.with_name(f".{target.name}.ready"), target.with_name(f".{target.name}.old")
    shutil.rmtree(ready, ignore_errors=True)
    fresh.rename(ready)
    finish_switch(target)
    shutil.rmtree(old, ignore_errors=True)


def finish_switch(target: Path) -> None:
    """Finish a switch that was cut short: after this the target is the old folder or the new, whole."""
    if is_remote(target):
        return
    ready, old = target.with_name(f".{target.name}.ready"), target.with_name(f".{target.name}.old")
    if ready.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        ready.rename(target)
    elif old.exists() and not target.exists():
        old.rename(target)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
