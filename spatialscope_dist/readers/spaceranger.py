"""Space Ranger output folders of 10x Visium, versions 1 to 3.

spatialdata-io reads the same folder, but the whole matrix and both pictures at once and only when
all of them are there; here the matrix stays in its file, and a test holds the two readings equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy
from spatialscope_dist.readers.matrix import MatrixFile, reading
from spatialscope_dist.readers.table import INDEX, SpotTable, make_unique
from spatialscope_dist.study import SectionSpec

MATRIX = "filtered_feature_bc_matrix.h5"
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv")
_HIRES, _LOWRES = "tissue_hires_image.png", "tissue_lowres_image.png"
_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_COLUMN_PITCH_UM, _ROW_PITCH_UM = 50.0, 50.0 * 3**0.5  # hexagonal lattice of 100 µm; rows hold every other column
_REPORTED_DIAMETER_UM = 65.0  # spot_diameter_fullres includes a margin around the 55 µm spot
_TOLERANCE = 0.15


@dataclass(frozen=True)
class _Folder:
    """Files of one Space Ranger folder; absent ones are None."""

    matrix: Path
    positions: Path
    scale_factors: Path
    picture: Path | None


def read_spaceranger(section: SectionSpec) -> SpotTable:
    """Return the spots of a section given as a Space Ranger folder.

    Positions are in pixels of the image: the one the study gives, else the folder's hires or lowres
    picture, else of the full-resolution image that Space Ranger was run on. The pixel size comes from
    the lattice of the array, whose pitch is 100 µm.

    Raises
    ------
    BadInput
        When a file is missing, damaged or does not fit the others.
    """
    assert section.spaceranger is not None
    where = f"section {section.name}: {section.spaceranger.name}"
    folder = _find(section.spaceranger, where)
    matrix, barcodes, namings, notes = _read_matrix(folder.matrix, where)
    spots = _positions(folder.positions, where)
    absent = [barcode for barcode in barcodes if barcode not in spots.index]
    if absent:
        found = f"{len(absent)} of {len(barcodes)} barcodes without a position, for example {absent[0]}"
        remedy = "Use the positions and the matrix of one run."
        raise BadInput(Problem(where, found, f"every barcode in {folder.positions.name}", remedy))
    spots = spots.loc[list(barcodes)]
    image, scale = _image_and_scale(section, folder, where)
    full_um, note = _full_pixel_um(section, spots, folder, scale=scale, where=where)
    full_px = spots[["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy(np.float64)
    return SpotTable(
        where=where,
        matrix=matrix,
        row_names=barcodes,
        namings=namings,
        positions_px=full_px * scale,
        pixel_size_um=full_um / scale,
        image=image,
        image_is_given=section.image is not None,
        given_to_px=scale,
        notes=(*notes, *note),
    )


def files_of(folder: Path) -> list[Path]:
    """Return the files of a Space Ranger folder that a section is read from, those that exist."""
    home = _home(folder)
    names = ("scalefactors_json.json", *_POSITIONS, _HIRES, _LOWRES)
    candidates = [*_matrices(home), *(home / "spatial" / name for name in names)]
    return [path for path in candidates if path.is_file()]


def picture_of(folder: Path) -> Path | None:
    """Return the largest picture of the tissue in a Space Ranger folder, None without one."""
    pictures = [_home(folder) / "spatial" / name for name in (_HIRES, _LOWRES)]
    return next((path for path in pictures if path.is_file()), None)


def _home(folder: Path) -> Path:
    outs = folder / "outs"
    return outs if not _matrices(folder) and outs.is_dir() else folder


def _matrices(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{MATRIX}")) if folder.is_dir() else []


def _find(folder: Path, where: str) -> _Folder:
    if not folder.is_dir():
        raise BadInput(Problem(where, f"no folder {folder}", "a Space Ranger output folder", "Correct the path."))
    home = _home(folder)
    spatial = home / "spatial"
    matrices = _matrices(home)
    positions = [spatial / name for name in _POSITIONS if (spatial / name).is_file()]
    scale_factors = spatial / "scalefactors_json.json"
    absent = [
        name
        for name, there in (
            (MATRIX, bool(matrices)),
            ("spatial/tissue_positions.csv (or tissue_positions_list.csv)", bool(positions)),
            ("spatial/scalefactors_json.json", scale_factors.is_file()),
        )
        if not there
    ]
    if absent or len(matrices) > 1:
        found = (
            f"no {', no '.join(absent)}"
            if absent
            else f"{len(matrices)} matrices: {', '.join(m.name for m in matrices)}"
        )
        remedy = f"Give the folder `outs` of one spaceranger run ({folder} was looked at)."
        raise BadInput(Problem(where, found, "a whole Space Ranger output folder", remedy))
    return _Folder(matrices[0], positions[0], scale_factors, picture_of(folder))


def _read_matrix(
    path: Path, where: str
) -> tuple[MatrixFile, tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    with reading(path) as handle:
        if "matrix/features/name" not in handle:
            expected = f"{MATRIX} of Space Ranger 1.0 or newer"
            raise BadInput(Problem(where, f"{path.name} without matrix/features", expected, "Give that file."))
        group = handle["matrix"]
        n_genes, n_spots = (int(size) for size in group["shape"][:])
        kinds = np.array(_text(group["features/feature_type"]))
        keep = np.flatnonzero(kinds == "Gene Expression")
        columns = None if len(keep) == len(kinds) else tuple(keep.tolist())
        # 10x stores (features, barcodes) by columns: read the other way round these are rows of spots.
        matrix = MatrixFile(path, "matrix", "csr", (n_spots, n_genes), int(group["data"].shape[0]), columns)
        names, ids = (_text(group[f"features/{name}"]) for name in ("name", "id"))
        namings = {
            INDEX: make_unique(tuple(names[i] for i in keep)),
            "gene_ids": make_unique(tuple(ids[i] for i in keep)),
        }
        dropped = len(kinds) - len(keep)
        notes = (f"{where}: {dropped} features that are no genes (antibodies, …) are left out",) if dropped else ()
        return matrix, tuple(_text(group["barcodes"])), namings, notes


def _text(dataset: h5py.Dataset) -> list[str]:
    return [str(value, "utf-8") if isinstance(value, bytes) else str(value) for value in dataset[:]]


def _positions(path: Path, where: str) -> pd.DataFrame:
    try:
        frame = pd.read_csv(local_copy(path), header=None, names=list(_COLUMNS), dtype=str)
        if frame["in_tissue"].iloc[0] == "in_tissue":
            frame = frame.iloc[1:]
        numbers = frame[list(_COLUMNS[1:])].astype(np.float64)
    except (ValueError, IndexError, OSError) as error:
        found = f"{path.name} that cannot be read ({str(error).splitlines()[0]})"
        expected = f"columns {', '.join(_COLUMNS)}"
        raise BadInput(Problem(where, found, expected, "Take the file from the Space Ranger folder.")) from error
    return numbers.set_index(pd.Index(frame["barcode"].to_numpy(str)))


def _image_and_scale(section: SectionSpec, folder: _Folder, where: str) -> tuple[Path | None, float]:
    try:
        factors = json.loads(folder.scale_factors.read_text())
        scales = {_HIRES: float(factors["tissue_hires_scalef"]), _LOWRES: float(factors["tissue_lowres_scalef"])}
    except (ValueError, KeyError, TypeError) as error:
        found = f"{folder.scale_factors.name} that cannot be used ({error!r})"
        raise BadInput(
            Problem(where, found, "tissue_hires_scalef and tissue_lowres_scalef", "Take the original.")
        ) from error
    if section.image is not None:
        ending = next((name for name in scales if section.image.name.endswith(name)), None)
        return section.image, scales[ending] if ending else 1.0
    return (None, 1.0) if folder.picture is None else (folder.picture, scales[folder.picture.name])


def _full_pixel_um(
    section: SectionSpec, spots: pd.DataFrame, folder: _Folder, *, scale: float, where: str
) -> tuple[float, tuple[str, ...]]:
    """Return µm per full-resolution pixel, and a note when only the spot diameter could tell it."""
    measured = lattice_pixel_um(spots)
    note: tuple[str, ...] = ()
    if measured is None:
        diameter = float(json.loads(folder.scale_factors.read_text()).get("spot_diameter_fullres", np.nan))
        measured = _REPORTED_DIAMETER_UM / diameter
        note = (f"{where}: too few spots for the lattice; the pixel size is taken from the spot diameter",)
    given = section.pixel_size_um
    if given is None:
        return measured, note
    full = given * scale if section.image is not None else given
    if abs(full / measured - 1) > _TOLERANCE:
        found = f"pixel_size_um = {given:g}, that is a spot pitch of {100 * full / measured:.0f} µm"
        expected = f"{measured / (scale if section.image is not None else 1):.4g}, that is 100 µm (Visium)"
        remedy = "Correct pixel_size_um, or leave it out: the lattice of the spots tells it."
        raise BadInput(Problem(where, found, expected, remedy))
    return full, ()


def lattice_pixel_um(spots: pd.DataFrame) -> float | None:
    """Return µm per full-resolution pixel from the spots' lattice, None when they are too few.

    A linear map is fitted from lattice places in µm to pixels; its determinant gives the area, and
    so the size, of a pixel, however the picture is rotated or mirrored.
    """
    lattice: NDArray[np.float64] = np.stack(
        [spots["array_row"] * _ROW_PITCH_UM, spots["array_col"] * _COLUMN_PITCH_UM], axis=1
    )
    pixels = spots[["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy(np.float64)
    lattice = lattice - lattice.mean(axis=0)
    if len(spots) < 3 or np.linalg.matrix_rank(lattice) < 2:
        return None
    linear, *_ = np.linalg.lstsq(lattice, pixels - pixels.mean(axis=0), rcond=None)
    area = abs(float(np.linalg.det(linear)))
    return None if area == 0 else float(area**-0.5)
