"""JSON documents, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from spatialscope_dist.errors import StoreError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises
    ------
    StoreError
        When the file cannot be written, for example on a full disk; the old content is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path}: cannot be written ({error}). Free space or choose another --output, then run again."
        ) from error


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically; NumPy scalars and arrays become numbers and lists."""
    text = json.dumps(document, indent=1, sort_keys=True, default=_plain)
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Return the JSON document of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
