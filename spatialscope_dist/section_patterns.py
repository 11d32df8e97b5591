"""One [[section]] table for many sections: a pattern of files becomes a table for each match."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spatialscope_dist.errors import Problem
from spatialscope_dist.location import located, within

_PATTERN = re.compile(r"[*?\[]")
_SOURCES = ("counts", "spaceranger")


def expand_patterns(tables: list[Any], folder: Path, problems: list[Problem]) -> list[Any]:
    """Return the section tables with one for each match of a pattern, in the order of the matches' names.

    `counts = "slides/*.h5ad"` (or `spaceranger = "runs/*"`) names every section after its file or folder; in its
    other values, `{name}` stands for that name. Tables without a pattern are left as they are. A pattern that
    matches nothing, or comes with a name, is added to `problems`.
    """
    expanded: list[Any] = []
    for table in tables:
        key = next((key for key in _SOURCES if _is_pattern(table, key)), None)
        expanded += [table] if key is None else _matches(table, key, folder, problems)
    return expanded


def _is_pattern(table: Any, key: str) -> bool:
    return isinstance(table, dict) and isinstance(table.get(key), str) and _PATTERN.search(table[key]) is not None


def _matches(table: dict[str, Any], key: str, folder: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    where, pattern = f"[[section]] {key}", table[key]
    if "name" in table:
        found = f"the pattern {pattern!r} and one name, {table['name']!r}"
        problems.append(Problem(where, found, "names from the files", "Leave name out, or give one file."))
        return []
    fixed, rest = _split(pattern)
    files = sorted(within(folder, located(fixed)).glob(rest))
    if not files:
        problems.append(Problem(where, f"nothing that matches {pattern!r}", "files", "Correct the pattern."))
    return [_named(table, _name(file)) | {key: str(file)} for file in files]


def _split(pattern: str) -> tuple[str, str]:
    """Return the folder before the first part with a wildcard, and the rest."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if _PATTERN.search(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[first:])


def _name(file: Path) -> str:
    return file.name.removesuffix(".h5ad").removesuffix(".zarr")


def _named(table: dict[str, Any], name: str) -> dict[str, Any]:
    filled = {key: value.replace("{name}", name) if isinstance(value, str) else value for key, value in table.items()}
    return {"name": name, **filled}
