"""Numbers and sentences as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

GIB = 1 << 30


def rows_of(table: pd.DataFrame, columns: Sequence[str]) -> list[list[str]]:
    """Return the columns of a frame as rows of text."""
    return [[number(value) for value in row] for row in table[list(columns)].itertuples(index=False)]


def number(value: Any) -> str:
    """Return a number with three digits or so, text as it is, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    size = float(value)
    if not np.isfinite(size):
        return "–"
    return f"{size:.1e}" if 0 < abs(size) < 1e-3 else f"{size:.3g}" if abs(size) < 100 else f"{size:,.0f}"


def memory(size: float) -> str:
    """Return a size in GiB, a dash for none."""
    return f"{size / GIB:.2f} GiB" if size else "–"


def sentence(text: object) -> str:
    """Return text that begins with a capital and ends with a full stop."""
    words = str(text).strip()
    words = words[:1].upper() + words[1:]
    return words if not words or words.endswith(".") else words + "."


def duration(seconds: float) -> str:
    """Return a time for people: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
