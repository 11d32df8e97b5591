"""Where files lie: in folders of this machine or, named by a URL (s3://, gs://, az://, …), in an object store.

`located` makes a path of either, and both kinds go by pathlib's interface. What differs between them is known here and
in `store` only: nothing is renamed in an object store, and an object is seen whole or not at all. Credentials and
addresses are never part of a path: every process takes them from its own environment.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import PlainSerializer, PlainValidator

from spatialscope_dist.errors import BadInput, Problem, StoreError

_IN_PART = 1 << 20  # bytes fetched around what is read of an object that is read by region


def located(name: str | Path) -> Path:
    """Return the path of a file name or a URL.

    A URL gives a path of universal_pathlib that remembers no listings, since other processes write there too.

    Raises
    ------
    BadInput
        When the URL carries credentials, or the package that knows its kind is not installed.
    """
    if not isinstance(name, str):
        return name
    scheme, separator, rest = name.partition("://")
    if not separator or scheme == "file":
        return Path(rest or name)
    if "@" in rest.partition("/")[0]:
        remedy = "Leave them out: every process takes them from its own environment."
        raise BadInput(Problem(f"{scheme}://…", "credentials in a URL", "a URL without them", remedy))
    try:
        return _remote(scheme, name)
    except (ImportError, ValueError) as error:
        remedy = "Install the package that fsspec names, or correct the URL."
        raise BadInput(Problem(name, str(error), "a URL that fsspec can open", remedy)) from error


def _remote(scheme: str, name: str) -> Path:
    from fsspec import get_filesystem_class
    from upath import UPath

    get_filesystem_class(scheme)  # UPath would ask for it only when it is used
    return cast(Path, UPath(name, use_listings_cache=False).resolve())


def is_remote(path: Path) -> bool:
    """Return whether a path is one in an object store."""
    return not isinstance(path, Path)


def within(folder: Path, path: Path) -> Path:
    """Return the path itself when it says all, else the one below the folder."""
    path = path.expanduser()
    if path.is_absolute():
        return path
    return located(f"{folder}/{path.as_posix()}") if is_remote(folder) else folder / path


def _as_location(value: Any) -> Path:
    if isinstance(value, str):
        return located(value)
    if not (isinstance(value, Path) or hasattr(value, "fs")):
        raise ValueError("expected a path or a URL")
    return cast(Path, value)


Location = Annotated[Path, PlainValidator(_as_location), PlainSerializer(str)]


def storage_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return what reading and writing may raise: OSError, what the client of S3 has beside once loaded, and `more`."""
    client: Any = sys.modules.get("botocore.exceptions")
    return (OSError, *more) if client is None else (OSError, client.BotoCoreError, client.ClientError, *more)


def content_mark(path: Path) -> str:
    """Return a text that changes when a file is written anew: its place, its size, and its time or the store's tag."""
    if is_remote(path):
        remote = cast(Any, path)
        info = remote.fs.info(remote.path)
        return f"{path}\x1f{info['size']}\x1f{_version(info)}"
    stat = path.stat()
    return f"{path.resolve()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1f{stat.st_ino}"


def content_tag(path: Path) -> str | None:
    """Return what a store itself says of an object's content, with its size; None when it says nothing to rely on.

    A strong entity tag (RFC 9110, 8.8.3) is the same only for the same bytes. It may differ for the same bytes, for
    example when they were sent in other parts: then work is done again that need not have been.
    """
    if not is_remote(path):
        return None
    remote = cast(Any, path)
    info = remote.fs.info(remote.path)
    tag = _tag(info)
    return None if tag is None or tag.startswith("W/") else f"{tag} {info['size']}"


def opened_in_parts(path: Path) -> Any:
    """Return what a reader by region opens: the path, or for an object a file that fetches little around each part."""
    if not is_remote(path):
        return path
    return cast(Any, path).open("rb", block_size=_IN_PART, cache_type="readahead")


def files_below(path: Path) -> list[Path]:
    """Return the files below a folder in the order of their names; a file alone is itself."""
    if is_remote(path):
        remote = cast(Any, path)
        names = remote.fs.find(remote.path)
        return [located(remote.fs.unstrip_protocol(name)) for name in sorted(names)]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def local_copy(path: Path) -> Path:
    """Return a path on this machine with the content of a file or folder.

    What lies in an object store is fetched once and kept in this machine's cache (`fetched.py`), under a name made
    from its URL, sizes and versions; a copy is there whole or not at all.

    Raises
    ------
    FileNotFoundError
        When there is nothing at the URL.
    StoreError
        When it cannot be fetched, or there is no room for it.
    """
    if not is_remote(path):
        return path
    from spatialscope_dist.fetched import kept_copy

    try:
        key, size, fetch = _copy_of(cast(Any, path))
        return kept_copy(key, path.name, size, fetch)
    except FileNotFoundError:
        raise
    except storage_errors() as error:
        remedy = "Give every process access to it by its environment, then run again."
        raise StoreError(f"{path}: cannot be fetched ({error}). {remedy}") from error


def _copy_of(remote: Any) -> tuple[str, int, Callable[[Path], None]]:
    """Return the key of a copy of a file or folder, its bytes, and what fetches it to a given place."""
    found: dict[str, dict[str, Any]] = remote.fs.find(remote.path, detail=True)
    if not found:
        raise FileNotFoundError(f"nothing at {remote}")
    about = json.dumps({name: [info["size"], _version(info)] for name, info in found.items()}, sort_keys=True)

    def fetch(target: Path) -> None:
        for name, info in found.items():
            _fetch(remote, name, Path(f"{target}{name.removeprefix(remote.path.rstrip('/'))}"), info["size"])

    key = hashlib.sha256(f"{remote}\x1f{about}".encode()).hexdigest()[:32]
    return key, sum(info["size"] for info in found.values()), fetch


def _version(info: dict[str, Any]) -> str:
    """Return what tells one content of an object from the next: the store's tag, else the time it was written."""
    times = (info.get(name) for name in ("LastModified", "mtime", "created"))
    return _tag(info) or str(next((time for time in times if time is not None), ""))


def _tag(info: dict[str, Any]) -> str | None:
    return next((str(info[name]) for name in ("ETag", "etag", "md5") if info.get(name)), None)


def _fetch(remote: Any, name: str, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    remote.fs.get_file(name, str(target))
    if target.stat().st_size != size:
        raise OSError(f"{target.stat().st_size} bytes of {name} arrived, the store holds {size}")
