"""Files and folders of the output: JSON documents and other content, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import numpy as np

from spatialscope_dist.errors import StoreError
from spatialscope_dist.location import files_below, is_remote, storage_errors


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises
    ------
    StoreError
        When the file cannot be written, for example on a full disk; the old content is kept.
    """
    if is_remote(path):
        with refusing_to_write(path):
            cast(Any, path).fs.pipe_file(cast(Any, path).path, content)
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def refusing_to_write(path: Path) -> Iterator[None]:
    """Turn what a full disk or an object store raises within the block into an error that says what to do.

    Raises
    ------
    StoreError
        When the block cannot write.
    """
    try:
        yield
    except storage_errors() as error:
        remedy = "Free space, mend the access or choose another --output, then run again."
        raise StoreError(f"{path}: cannot be written ({error}). {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file of this machine to write; when the block ends well, its content takes the place of `path`.

    Raises
    ------
    StoreError
        When it cannot be written; the old content is kept.
    """
    if is_remote(path):
        with refusing_to_write(path), tempfile.TemporaryDirectory(prefix="spatialscope-") as scratch:
            yield (partial := Path(scratch) / path.name)
            cast(Any, path).fs.put_file(str(partial), cast(Any, path).path)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    try:
        with refusing_to_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; object stores have none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and everything below it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        with refusing_to_write(path):
            cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically; NumPy scalars and arrays become numbers and lists."""
    text = json.dumps(document, indent=1, sort_keys=True, default=_plain)
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Return the JSON document of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_folder(folder: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """Return the JSON documents of a folder by name, in the order of the names; those of an object store at once.

    With `names`, only these are read, as far as they are there.
    """
    if not is_remote(folder):
        found = (path for path in sorted(folder.glob("[!.]*.json")) if names is None or path.stem in names)
        return {path.stem: read_json(path) for path in found}
    here = (path for path in files_below(folder) if path.parent == folder)
    paths = {cast(Any, path).path: path for path in here if names is None or path.stem in names}
    contents = cast(Any, folder).fs.cat(list(paths)) if paths else {}
    return {path.stem: json.loads(contents[name]) for name, path in paths.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path) or hasattr(value, "fs"):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
