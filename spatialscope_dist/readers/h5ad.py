"""AnnData files (.h5ad): counts of spots, single-cell references, truth of simulated sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.readers.matrix import MatrixFile, matrix_of, reading
from spatialscope_dist.readers.table import INDEX, SpotTable
from spatialscope_dist.study import SectionSpec

_NAMINGS = (
    "gene_ids",
    "gene_id",
    "ensembl",
    "ensembl_id",
    "ensembl_ids",
    "ensemblid",
    "feature_id",
    "gene",
    "genes",
    "gene_name",
    "gene_names",
    "gene_symbol",
    "gene_symbols",
    "symbol",
    "symbols",
    "feature_name",
)


def read_counts_h5ad(section: SectionSpec, *, n_cells_column: str | None = None) -> SpotTable:
    """Return the spots of a section given as h5ad; obsm["spatial"] is (x, y) in the file, (y, x) here.

    Raises
    ------
    BadInput
        When the file cannot be read or has no obsm["spatial"].
    """
    path = section.counts
    assert path is not None
    where = f"section {section.name}: {path.name}"
    with reading(path) as handle:
        matrix = main_matrix(path, handle, where)
        obs = frame_group(handle, "obs", where)
        positions = _positions(handle, where)
        cells = None if n_cells_column is None else _numbers(obs, n_cells_column, where)
        return SpotTable(
            where=where,
            matrix=matrix,
            row_names=index_of(obs),
            namings=namings_of(handle, where),
            other_matrices=other_matrices(handle),
            positions_px=positions,
            pixel_size_um=_unit_um(section),
            image=section.image,
            n_cells=cells,
        )


def main_matrix(path: Path, handle: h5py.File, where: str) -> MatrixFile:
    """Return the matrix X of an AnnData file.

    Raises
    ------
    BadInput
        When there is none.
    """
    matrix = matrix_of(path, handle, "X")
    if matrix is None:
        raise BadInput(Problem(where, "no matrix X", "an AnnData file with raw counts in X", "Put the counts into X."))
    return matrix


def frame_group(handle: h5py.File, name: str, where: str) -> h5py.Group:
    """Return the group of a data frame (obs or var).

    Raises
    ------
    BadInput
        When the file was written by a program too old to be read here.
    """
    group = handle[name]
    if not isinstance(group, h5py.Group) or "_index" not in group.attrs:
        found = f"{name} in a layout older than anndata 0.7"
        remedy = "Open the file with anndata.read_h5ad and write it again."
        raise BadInput(Problem(where, found, "a file written by anndata 0.7 or newer", remedy))
    return group


def index_of(frame: h5py.Group) -> tuple[str, ...]:
    """Return the row names of a data frame."""
    return text_of(frame, str(frame.attrs["_index"]))


def text_of(frame: h5py.Group, column: str) -> tuple[str, ...]:
    """Return a column as text; 'nan' where a value is missing."""
    return tuple(np.asarray(element(frame[column])).astype(str).tolist())


def element(node: Any) -> Any:
    """Return one element of an AnnData file: a column, an array, a frame."""
    from anndata.io import read_elem

    return read_elem(node)


def columns_of(frame: h5py.Group) -> list[str]:
    """Return the names of a frame's columns, without its index."""
    return [str(name) for name in frame.attrs.get("column-order", ())]


def namings_of(handle: h5py.File, where: str) -> dict[str, tuple[str, ...]]:
    """Return gene names by naming: the file's own, then columns of var that hold symbols or identifiers."""
    var = frame_group(handle, "var", where)
    namings = {INDEX: index_of(var)}
    for column in columns_of(var):
        if column.lower() in _NAMINGS:
            names = element(var[column])
            if getattr(names, "dtype", None) is not None and np.asarray(names).dtype.kind in "OUST":
                missing = _missing(names)
                own = namings[INDEX]
                namings[column] = tuple(own[i] if missing[i] else str(names[i]) for i in range(len(own)))
    return namings


def other_matrices(handle: h5py.File) -> tuple[str, ...]:
    """Return the places beside X whose first values are whole numbers: likely the raw counts."""
    layers = handle.get("layers")
    places = [f"layers/{name}" for name in layers] if isinstance(layers, h5py.Group) else []
    found = []
    for place in [*places, "raw/X"]:
        matrix = matrix_of(Path(handle.filename), handle, place)
        if matrix is None:
            continue
        node = handle[place]
        first = node[:64].ravel() if matrix.layout == "dense" else node["data"][: 1 << 16]
        if len(first) and np.array_equal(first, np.rint(first)) and first.min() >= 0:
            found.append(place)
    return tuple(found)


def _missing(values: Any) -> NDArray[np.bool_]:
    import pandas as pd

    return np.asarray(pd.isna(values), dtype=bool)


def missing_text(values: Any) -> tuple[str | None, ...]:
    """Return labels as text, None where one is missing or empty."""
    missing = _missing(values)
    texts = [None if gone else str(value).strip() for value, gone in zip(values, missing, strict=True)]
    return tuple(text or None for text in texts)


def _positions(handle: h5py.File, where: str) -> NDArray[np.float64]:
    obsm = handle.get("obsm")
    names = list(obsm) if isinstance(obsm, h5py.Group) else []
    expected = 'obsm["spatial"], (spots, 2): x and y in pixels of the image, or µm without an image'
    if "spatial" not in names:
        found = f'no obsm["spatial"]; obsm holds {", ".join(names) or "nothing"}'
        raise BadInput(Problem(where, found, expected, 'Put the coordinates into obsm["spatial"].'))
    values = np.asarray(element(handle["obsm"]["spatial"]), dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        found = f'obsm["spatial"] of shape {values.shape}'
        raise BadInput(Problem(where, found, expected, "Give two columns."))
    return values[:, 1::-1].copy()


def _numbers(obs: h5py.Group, column: str, where: str) -> NDArray[np.float64]:
    if column not in obs:
        found = f"no obs column {column!r}; the columns are {', '.join(columns_of(obs)) or 'none'}"
        remedy = "Correct identify.n_cells_column, or leave it out to estimate the cells of each spot."
        raise BadInput(Problem(where, found, "the column named by identify.n_cells_column", remedy))
    import pandas as pd

    return np.asarray(pd.to_numeric(pd.Series(np.asarray(element(obs[column]))), errors="coerce"), dtype=np.float64)


def _unit_um(section: SectionSpec) -> float | None:
    return section.pixel_size_um if section.image is not None else section.pixel_size_um or 1.0
