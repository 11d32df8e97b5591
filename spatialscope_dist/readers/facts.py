"""Sizes of a study's inputs, read from file headers only."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy, storage_errors
from spatialscope_dist.readers.images import open_image
from spatialscope_dist.readers.sections import counts_files
from spatialscope_dist.readers.spaceranger import MATRIX
from spatialscope_dist.study import Facts, ReferenceSpec, SectionFacts, SectionSpec, Study

_CELLS_PER_SPOT = 8.0  # at 55 µm, a common density; projections of disk and tasks only


def read_facts(study: Study) -> Facts:
    """Return the sizes of every section and of the reference.

    Raises
    ------
    BadInput
        When a file's header cannot be read.
    """
    problems: list[Problem] = []
    sections: dict[str, SectionFacts] = {}
    reference = (0, 0, 0)
    for section in study.sections:
        try:
            sections[section.name] = _section_facts(section, study.options.identify.n_cells_column)
        except storage_errors(KeyError) as error:
            source = section.counts or section.spaceranger
            problems.append(_unreadable(f"[[section]] {section.name}: {source}", error))
    try:
        reference = _reference_facts(study.reference)
    except storage_errors(KeyError) as error:
        problems.append(_unreadable(f"[reference] {study.reference.path}", error))
    if problems:
        raise BadInput(problems)
    return Facts(sections, *reference)


def _unreadable(where: str, error: Exception) -> Problem:
    return Problem(where, f"a file that cannot be read ({error})", "a whole file", "Copy or download it again.")


def _section_facts(section: SectionSpec, n_cells_column: str | None) -> SectionFacts:
    n_spots, n_genes, n_stored = _matrix_size(section)
    n_cells = _cells(section, n_spots, n_cells_column)
    if section.image is None:
        return SectionFacts(n_spots, n_genes, n_stored, n_cells)
    image = open_image(section.image)
    return SectionFacts(
        n_spots,
        n_genes,
        n_stored,
        n_cells,
        image_shape=image.shape,
        image_is_tiled=image.is_tiled,
        pixel_size_um=section.pixel_size_um or image.pixel_size_um,
    )


def _cells(section: SectionSpec, n_spots: int, n_cells_column: str | None) -> int:
    """Return the cells that are given, or a guess."""
    if section.nuclei is not None:
        with local_copy(section.nuclei).open(newline="") as handle:
            return max(0, sum(1 for _ in csv.reader(handle)) - 1)
    if n_cells_column is not None and section.image is None and section.counts is not None:
        with h5py.File(local_copy(section.counts)) as file:
            if isinstance(file["obs"].get(n_cells_column), h5py.Dataset):
                return int(file["obs"][n_cells_column][:].sum())
    area = (section.diameter_um / 55.0) ** 2
    return n_spots if section.platform == "merfish" else round(n_spots * max(1.0, _CELLS_PER_SPOT * area))


def _matrix_size(section: SectionSpec) -> tuple[int, int, int]:
    if section.spaceranger is not None:
        matrix = next((path for path in counts_files(section) if path.name.endswith(MATRIX)), None)
        if matrix is None:
            raise FileNotFoundError(f"no {MATRIX} in {section.spaceranger}")
        with h5py.File(local_copy(matrix)) as file:
            n_genes, n_spots = (int(size) for size in file["matrix/shape"][:])
            return n_spots, n_genes, int(file["matrix/data"].shape[0])
    assert section.counts is not None
    return _h5ad_size(section.counts)


def _h5ad_size(path: Path) -> tuple[int, int, int]:
    with h5py.File(local_copy(path)) as file:
        matrix = file["X"]
        if isinstance(matrix, h5py.Group):
            n_rows, n_genes = (int(size) for size in matrix.attrs["shape"])
            return n_rows, n_genes, int(matrix["data"].shape[0])
        n_rows, n_genes = (int(size) for size in matrix.shape)
        return n_rows, n_genes, n_rows * n_genes


def _reference_facts(reference: ReferenceSpec) -> tuple[int, int, int]:
    n_cells, n_genes, _ = _h5ad_size(reference.path)
    with h5py.File(local_copy(reference.path)) as file:
        column = file["obs"][reference.cell_type]
        n_types = len(column["categories"]) if isinstance(column, h5py.Group) else len(set(column[:]))
    return n_cells, n_genes, n_types
