"""Copies of remote files on this machine: fetched once, kept within bounds, those in use left alone.

Every entry is a folder named by its key. A process holds a shared lock on the entries it uses, an exclusive one while
it fetches or removes, so that of several processes one fetches and the others wait, and nothing in use goes away. The
system lets go of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from spatialscope_dist.errors import BadInput, Problem, StoreError

_GIB = 1 << 30
_ENTRY = re.compile(r"[0-9a-f]{32}")
_LOOK_EVERY_S = 0.02
_WHOLE, _PART = "content", "part"
_FORGOTTEN_AFTER_S = 6 * 3600.0  # a worker may live for weeks; no unit works that long without asking again

_locks: dict[Path, tuple[int, float]] = {}  # of this process, by entry: file descriptor and when it was last asked for
_turn = threading.Lock()


def kept_copy(key: str, name: str, size: int, fetch: Callable[[Path], None]) -> Path:
    """Return the file or folder `name` of an entry; `fetch` makes it when it is not there, whole or not at all.

    Before anything is fetched, entries that no process uses go, the least recently used first, until what is kept
    fits in the bound: `SPATIALSCOPE_CACHE_GIB`, or half of the disk space that nothing else takes.

    Raises
    ------
    StoreError
        When it cannot be written here.
    """
    entry = _cache() / key
    kept = entry / _WHOLE / name
    with _turn:
        _let_go()
        if entry in _locks:
            if kept.exists():
                _hold(entry, _locks[entry][0])
                return kept
            os.close(_locks.pop(entry)[0])  # someone removed it by hand
    descriptor = _locked(entry, kept, size, fetch)
    with _turn:
        if entry in _locks:  # another thread was first
            os.close(_locks[entry][0])
        _hold(entry, descriptor)
    return kept


def _hold(entry: Path, descriptor: int) -> None:
    os.utime(entry)  # when it was last used
    _locks[entry] = (descriptor, time.monotonic())


def _let_go() -> None:
    for entry, (descriptor, asked) in list(_locks.items()):
        if time.monotonic() - asked > _FORGOTTEN_AFTER_S:
            os.close(descriptor)
            del _locks[entry]


def _locked(entry: Path, kept: Path, size: int, fetch: Callable[[Path], None]) -> int:
    """Return the descriptor of a shared lock on an entry that holds what it should.

    The shared lock waits for whoever fetches or removes. The exclusive one is never waited for: users of what was
    fetched meanwhile may keep theirs for hours.
    """
    while True:
        entry.mkdir(exist_ok=True)
        descriptor = os.open(entry, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is(descriptor, entry) and kept.exists():
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            if not _locked_alone(descriptor):
                time.sleep(_LOOK_EVERY_S)
            elif _is(descriptor, entry) and not kept.exists():
                _make_room(entry.parent, size)
                _fetch(kept, size, fetch)
        finally:
            os.close(descriptor)


def _locked_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(descriptor: int, entry: Path) -> bool:
    """Return whether a descriptor is that of the folder now at `entry`, not of one that was removed since."""
    try:
        return os.path.samestat(os.fstat(descriptor), entry.stat())
    except FileNotFoundError:
        return False


def _fetch(kept: Path, size: int, fetch: Callable[[Path], None]) -> None:
    part = kept.parent.with_name(_PART)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        fetch(part / kept.name)
        part.rename(kept.parent)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        remedy = "Free space, or set SPATIALSCOPE_CACHE to a folder on a larger disk; then run again."
        raise StoreError(f"{kept.parents[2]}: no room for {kept.name} of {size} bytes. {remedy}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_room(cache: Path, size: int) -> None:
    """Remove entries that no process uses, the least recently used first, until `size` more bytes fit."""
    entries = sorted((path for path in cache.iterdir() if _ENTRY.fullmatch(path.name)), key=_last_used)
    sizes = {entry: _bytes_below(entry) for entry in entries}
    held = sum(sizes.values())
    bound = _bound(held + shutil.disk_usage(cache).free)
    for entry in entries:
        if held + size <= bound:
            return
        if _removed(entry):
            held -= sizes[entry]


def _removed(entry: Path) -> bool:
    """Remove an entry unless a process uses it, and return whether it is gone."""
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _locked_alone(descriptor):
            return False
        if (entry / _WHOLE).exists():  # a kill from here on leaves a part, never something that passes for whole
            shutil.rmtree(entry / _PART, ignore_errors=True)
            (entry / _WHOLE).rename(entry / _PART)
        shutil.rmtree(entry, ignore_errors=True)
    finally:
        os.close(descriptor)
    return True


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes_below(entry: Path) -> int:
    total = 0
    for folder, _, names in os.walk(entry):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def _bound(available: int) -> int:
    given = os.environ.get("SPATIALSCOPE_CACHE_GIB")
    if given is None:
        return available // 2
    try:
        return int(float(given) * _GIB)
    except ValueError as error:
        problem = Problem("SPATIALSCOPE_CACHE_GIB", repr(given), "a number", "For example 50.")
        raise BadInput(problem) from error


def _cache() -> Path:
    """Return the folder for fetched files: `SPATIALSCOPE_CACHE`, or one in the machine's temporary folder."""
    chosen = os.environ.get("SPATIALSCOPE_CACHE")
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"spatialscope-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to another user. Set SPATIALSCOPE_CACHE to a folder of your own.")
    return folder
