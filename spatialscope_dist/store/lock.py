"""One run at a time: a lock on a file of this machine, a lease on an object of a store."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from spatialscope_dist.errors import StoreError
from spatialscope_dist.location import storage_errors

LEASE_S = 120.0


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a file; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    StoreError
        When another process holds it.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:  # leaves the file as it is: a run with nothing to do writes nothing
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(path) from error
        yield


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold an object by creating it, which a store lets one of several do, and by renewing it while the block runs.

    A lease that is not renewed any more is taken over: at once when its process ran on this machine and is gone,
    else when it is older than `LEASE_S` by the clocks of the machines, which are to agree within half of that.

    Raises
    ------
    StoreError
        When another run holds it.
    """
    own = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}
    if not _create(path, own):
        if not _abandoned(_read(path)):
            raise _taken(path)
        path.unlink(missing_ok=True)
        if not _create(path, own):
            raise _taken(path)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, own, stop), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        with suppress(*storage_errors()):  # a store that is out of reach frees it when the lease ends
            if _read(path).get("run") == own["run"]:
                path.unlink(missing_ok=True)


def _create(path: Path, own: dict[str, Any]) -> bool:
    remote = cast(Any, path)
    try:
        remote.fs.pipe_file(remote.path, _stamped(own), mode="create")
    except OSError:  # stores refuse in different words, and a request whose answer was lost is sent again
        held = _read(path)
        if not held:
            raise
        return bool(held.get("run") == own["run"])
    return True


def _renew(path: Path, own: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        with suppress(*storage_errors()):  # the next turn may reach the store again
            if _read(path).get("run") != own["run"]:
                return
            path.write_bytes(_stamped(own))


def _stamped(own: dict[str, Any]) -> bytes:
    return json.dumps({**own, "time": time.time()}).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return held


def _abandoned(held: dict[str, Any]) -> bool:
    if held.get("host") == socket.gethostname() and not _runs(int(held["pid"])):
        return True
    return time.time() - float(held.get("time", 0.0)) > LEASE_S


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(path: Path) -> StoreError:
    return StoreError(f"{path.parent.parent}: another run is writing here. Wait for it, or give another --output.")
