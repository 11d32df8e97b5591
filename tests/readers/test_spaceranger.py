"""Space Ranger folders: old and new layouts, pixel size from the lattice, the same as spatialdata-io reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spatialscope_dist.errors import BadInput
from spatialscope_dist.readers.sections import counts_files, image_file, read_spots
from spatialscope_dist.readers.spaceranger import lattice_pixel_um, read_spaceranger
from spatialscope_dist.study import SectionSpec
from tests.given_files import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder as Space Ranger 2 writes it: 4 × 6 spots, 0.5 µm per pixel, 90 % of them under tissue."""
    import h5py

    run = tmp_path / "run"
    (run / "spatial").mkdir(parents=True)
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (20, 5)).astype(np.int32))
    with h5py.File(run / "filtered_feature_bc_matrix.h5", "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(counts, name)
        file["matrix/shape"] = np.array([5, 20], np.int32)
        file["matrix/barcodes"] = np.array([f"B{i:02d}-1" for i in range(20)], "S")
        file["matrix/features/id"] = np.array([f"ENSG{i}" for i in range(5)], "S")
        file["matrix/features/name"] = np.array(["A", "B", "A", "C", "CD3"], "S")
        file["matrix/features/feature_type"] = np.array(["Gene Expression"] * 4 + ["Antibody Capture"], "S")
        file["matrix/features/genome"] = np.array(["GRCh38"] * 5, "S")
    rows = [(row, 2 * col + row % 2) for row in range(4) for col in range(6)]
    places = pd.DataFrame(rows, columns=["array_row", "array_col"])
    places.insert(0, "in_tissue", 1)
    places.insert(0, "barcode", [f"B{i:02d}-1" for i in range(24)])
    places["pxl_row_in_fullres"] = np.rint(100 + places["array_row"] * 50 * 3**0.5 / 0.5).astype(int)
    places["pxl_col_in_fullres"] = np.rint(200 + places["array_col"] * 50 / 0.5).astype(int)
    places.to_csv(run / "spatial" / "tissue_positions.csv", index=False)
    factors = {"spot_diameter_fullres": 130.0, "tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05}
    (run / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    write_image(run / "spatial" / "tissue_lowres_image.png", size=70)
    return run


def test_read_spaceranger__new_layout(folder: Path) -> None:
    spots = read_spaceranger(SectionSpec(name="A", spaceranger=folder))
    assert spots.genes == ("A", "B", "A-1", "C")
    assert spots.namings["gene_ids"] == ("ENSG0", "ENSG1", "ENSG2", "ENSG3")
    assert "1 features" in spots.notes[0]
    assert spots.matrix.shape == (20, 4)
    assert spots.image == folder / "spatial" / "tissue_lowres_image.png"
    assert spots.given_to_px == 0.05
    assert spots.positions_px[0].tolist() == [5.0, 10.0]
    assert spots.pixel_size_um == pytest.approx(10, rel=1e-3)


def test_read_spaceranger__given_image_is_full_resolution(folder: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "he.png")
    spots = read_spaceranger(SectionSpec(name="A", spaceranger=folder, image=image))
    assert spots.pixel_size_um == pytest.approx(0.5, rel=1e-3)
    assert spots.positions_px[0].tolist() == [100.0, 200.0]
    copied = tmp_path / "V1_tissue_hires_image.png"
    shutil.copy(image, copied)
    assert read_spaceranger(SectionSpec(name="A", spaceranger=folder, image=copied)).given_to_px == 0.2


def test_read_spaceranger__hires_before_lowres_and_none(folder: Path) -> None:
    write_image(folder / "spatial" / "tissue_hires_image.png")
    section = SectionSpec(name="A", spaceranger=folder)
    assert read_spaceranger(section).given_to_px == 0.2
    assert image_file(section) == folder / "spatial" / "tissue_hires_image.png"
    for name in ("tissue_hires_image.png", "tissue_lowres_image.png"):
        (folder / "spatial" / name).unlink()
    spots = read_spaceranger(section)
    assert (spots.image, spots.given_to_px) == (None, 1.0)
    assert spots.pixel_size_um == pytest.approx(0.5, rel=1e-3)


def test_read_spaceranger__old_positions_outs_and_prefix(folder: Path) -> None:
    expected = read_spaceranger(SectionSpec(name="A", spaceranger=folder))
    positions = folder / "spatial" / "tissue_positions.csv"
    lines = positions.read_text().splitlines()[1:]
    (folder / "spatial" / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    positions.unlink()
    (folder / "filtered_feature_bc_matrix.h5").rename(folder / "V1_filtered_feature_bc_matrix.h5")
    folder.rename(folder.parent / "outs")
    section = SectionSpec(name="A", spaceranger=folder.parent)
    spots = read_spaceranger(section)
    assert (spots.positions_px == expected.positions_px).all()
    assert [path.name for path in counts_files(section)] == [
        "V1_filtered_feature_bc_matrix.h5",
        "scalefactors_json.json",
        "tissue_positions_list.csv",
    ]


def test_read_spaceranger__refuses_wrong_pixel_size(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"pixel_size_um = 0\.25, that is a spot pitch of 50 µm"):
        read_spaceranger(SectionSpec(name="A", spaceranger=folder, pixel_size_um=0.25))
    given = read_spaceranger(SectionSpec(name="A", spaceranger=folder, pixel_size_um=0.51))
    assert given.pixel_size_um == pytest.approx(0.51 / 0.05)


def test_read_spaceranger__refuses_positions_of_another_run(folder: Path) -> None:
    path = folder / "spatial" / "tissue_positions.csv"
    path.write_text(path.read_text().replace("B03-1", "X03-1"))
    with pytest.raises(BadInput, match="1 of 20 barcodes without a position, for example B03-1"):
        read_spaceranger(SectionSpec(name="A", spaceranger=folder))


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_lattice_pixel_um__rotated_and_mirrored(degrees: float) -> None:
    rows = np.array([(row, 2 * col + row % 2) for row in range(5) for col in range(5)])
    um = rows * [50 * 3**0.5, 50]
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pixels = um @ turn.T * [1, -1] / 0.37
    columns = ["array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    frame = pd.DataFrame(np.hstack([rows, pixels]), columns=columns)
    assert lattice_pixel_um(frame) == pytest.approx(0.37)
    assert lattice_pixel_um(frame.iloc[:2]) is None


def test_read_spaceranger__real_section_as_spatialdata_io_reads_it(data: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata_io

        table = spatialdata_io.visium(data / "sections" / "151673", dataset_id="s").tables["table"]
    spots = read_spots(SectionSpec(name="s", spaceranger=data / "sections" / "151673"))
    assert list(table.obs_names) == list(spots.row_names)
    assert list(table.var_names) == list(spots.genes)
    assert list(table.var["gene_ids"]) == list(spots.namings["gene_ids"])
    assert np.allclose(table.obsm["spatial"][:, ::-1] * spots.given_to_px, spots.positions_px)
    assert (sp.vstack(list(spots.raw_blocks())) != table.X).nnz == 0
    assert spots.pixel_size_um is not None
    assert spots.pixel_size_um * spots.given_to_px == pytest.approx(65 / 89.7, rel=2e-3)


def test_read_facts__any_layout(folder: Path, tmp_path: Path) -> None:
    from spatialscope_dist.readers.facts import read_facts
    from tests import given_files as given

    given.write_reference(tmp_path / "reference.h5ad")
    (folder / "filtered_feature_bc_matrix.h5").rename(folder / "V1_filtered_feature_bc_matrix.h5")
    given.write_study(tmp_path, section={"name": "A", "spaceranger": "run"})
    facts = read_facts(given.load(tmp_path)).sections["A"]
    assert (facts.n_spots, facts.n_genes) == (20, 5)


def test_read_spots__no_column_of_cells(folder: Path) -> None:
    with pytest.raises(BadInput, match="counts as h5ad for identify.n_cells_column"):
        read_spots(SectionSpec(name="A", spaceranger=folder), n_cells_column="n")
