"""The page: headings, text, tables and pictures, rendered to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption (what is drawn, units, what was left out) and a short text for screen readers."""

    png: bytes
    caption: str
    alt: str

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; columns that hold numbers are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers only."""
        columns = list(zip(*self.rows, strict=True)) if self.rows else [()] * len(self.header)
        return [bool(column) and all(_is_number(cell) for cell in column) for column in columns]


@dataclass(frozen=True)
class Block:
    """One part of the page; ``notes`` are paragraphs, ``level`` 2 or 3."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    level: int = 2


@dataclass(frozen=True)
class Page:
    """The whole report: ``cards`` are (number, what it counts) at the top."""

    title: str
    subtitle: str
    cards: Sequence[tuple[str, str]]
    blocks: Sequence[Block] = field(default_factory=tuple)


def render_page(page: Page) -> str:
    """Return the page as one HTML document without external addresses."""
    import jinja2

    folder = Path(str(resources.files("spatialscope_dist.report") / "templates"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return str(environment.get_template("report.html.j2").render(page=page))


def _is_number(cell: str) -> bool:
    stripped = cell.strip().lstrip("<>≈-−+").replace(",", "").rstrip("%")
    unit_free = stripped.split(" ")[0]
    if stripped in {"", "–"}:
        return True
    try:
        float(unit_free)
    except ValueError:
        return False
    return True
