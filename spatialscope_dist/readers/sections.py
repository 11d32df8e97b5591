"""One door to the spots of a section, whatever files the study names."""

from __future__ import annotations

from pathlib import Path

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.readers.h5ad import read_counts_h5ad
from spatialscope_dist.readers.spaceranger import files_of, picture_of, read_spaceranger
from spatialscope_dist.readers.table import SpotTable
from spatialscope_dist.study import SectionSpec


def read_spots(section: SectionSpec, *, n_cells_column: str | None = None) -> SpotTable:
    """Return the spots of a section; `n_cells_column` names an obs column of an h5ad.

    Raises
    ------
    BadInput
        When a file is missing, damaged or lacks a part.
    """
    if section.spaceranger is not None:
        if n_cells_column is not None:
            where = f"section {section.name}: {section.spaceranger.name}"
            remedy = "Leave it out, or give the counts as h5ad with that column."
            raise BadInput(Problem(where, "no obs columns", "counts as h5ad for identify.n_cells_column", remedy))
        return read_spaceranger(section)
    return read_counts_h5ad(section, n_cells_column=n_cells_column)


def counts_files(section: SectionSpec) -> list[Path]:
    """Return the files the spots of a section are read from, without the image."""
    if section.spaceranger is not None:
        return [path for path in files_of(section.spaceranger) if path.suffix != ".png"]
    assert section.counts is not None
    return [section.counts]


def image_file(section: SectionSpec) -> Path | None:
    """Return the image of a section: the one the study gives, or the one in its Space Ranger folder."""
    if section.image is None and section.spaceranger is not None:
        return picture_of(section.spaceranger)
    return section.image
