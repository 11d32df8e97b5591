"""h5ad files: names, places, labels; never the whole matrix."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from spatialscope_dist.errors import BadInput
from spatialscope_dist.readers.h5ad import read_counts_h5ad
from spatialscope_dist.readers.reference import read_reference
from spatialscope_dist.readers.truth import read_truth
from spatialscope_dist.study import ReferenceSpec, SectionSpec
from tests import given_files as files


def test_read_counts_h5ad__places_and_counts(tmp_path: Path) -> None:
    path = files.write_spots(tmp_path / "s.h5ad", n=np.arange(12.0))
    spots = read_counts_h5ad(SectionSpec(name="A", counts=path), n_cells_column="n")
    assert spots.row_names[:2] == ("spot0", "spot1")
    assert spots.genes == files.GENES
    assert (spots.positions_px == files.spot_places()[:, ::-1]).all()
    assert spots.pixel_size_um == 1.0
    assert spots.n_cells is not None
    assert spots.n_cells.tolist() == list(range(12))
    blocks = list(spots.raw_blocks())
    assert blocks[0].dtype == np.int32
    assert (sp.vstack(blocks).toarray() == files.spot_counts()).all()


def test_read_counts_h5ad__other_gene_names(tmp_path: Path) -> None:
    path = files.write_spots(tmp_path / "s.h5ad")
    table = anndata.read_h5ad(path)
    table.var["Gene_Symbol"] = ["S", None, *[f"S{i}" for i in range(28)]]
    table.var["length"] = 3
    table.write_h5ad(path)
    namings = read_counts_h5ad(SectionSpec(name="A", counts=path)).namings
    assert list(namings) == ["index", "Gene_Symbol"]
    assert namings["Gene_Symbol"][:3] == ("S", "GENE1", "S0")


def test_read_counts_h5ad__whole_floats_are_counts(tmp_path: Path) -> None:
    path = files.write_spots(tmp_path / "s.h5ad", values=files.spot_counts().astype(np.float64))
    assert next(read_counts_h5ad(SectionSpec(name="A", counts=path)).raw_blocks()).dtype == np.int32


def test_raw_blocks__refuses_fractions(tmp_path: Path) -> None:
    path = files.write_spots(tmp_path / "s.h5ad", values=files.spot_counts() + np.float32(0.5))
    with pytest.raises(BadInput, match="among the counts"):
        list(read_counts_h5ad(SectionSpec(name="A", counts=path)).raw_blocks())


def test_read_reference__labels(tmp_path: Path) -> None:
    path = files.write_reference(tmp_path / "r.h5ad", labels=[None, " x ", *files.reference_labels()[2:]])
    reference = read_reference(ReferenceSpec(path=path))
    assert reference.labels[:3] == (None, "x", "astro")
    assert reference.types == ["astro", "micro", "neuron", "x"]


def test_read_truth__needs_columns(tmp_path: Path) -> None:
    path = files.write_spots(tmp_path / "t.h5ad", cell_type=["a"] * 12)
    with pytest.raises(BadInput, match="no obs column spot_id"):
        read_truth(path, section="A")
    path = files.write_spots(tmp_path / "t.h5ad", cell_type=["a"] * 12, spot_id=["s", "", *["s"] * 10])
    cells = read_truth(path, section="A").cells
    assert cells["spot_id"][:2].tolist() == ["s", None]
    assert cells["x"][1] == 140
