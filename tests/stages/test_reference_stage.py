"""Stage reference: signatures, the gene panel and the published AnnData."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from spatialscope_dist.celltypes.signatures import Signatures, type_signatures
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput
from spatialscope_dist.stages import reference as stage
from spatialscope_dist.stages.reference import PanelRequest, choose_panel
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame
from tests import given_files as given

GENES = tuple("abcdefghij")


@pytest.fixture
def signatures() -> Signatures:
    """Two types: genes a, b mark the first, c the second; j is never counted."""
    import scipy.sparse as sp

    rates = np.array([[9, 5, 0, 3, 3, 3, 3, 3, 3, 0], [0, 0, 9, 3, 3, 3, 3, 3, 3, 0]])
    labels = np.repeat([0, 1], 30)
    return type_signatures([sp.csr_matrix(np.random.default_rng(0).poisson(rates[labels]))], labels, 2)


def request(**changes: object) -> PanelRequest:
    nothing = PanelRequest(genes="auto", measured=GENES, imputed=False, always=(), paired=(), n_variable=0, n_markers=1)
    return replace(nothing, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ac"),
        ({"n_markers": 2}, "abc"),
        ({"measured": tuple("bcd")}, "bc"),
        ({"measured": tuple("bcd"), "imputed": True}, "ac"),
        ({"measured": tuple("bcd"), "imputed": True, "always": tuple("bd")}, "abcd"),
        ({"paired": ("h", "j", "x")}, "ach"),
        ({"genes": "all"}, "abcdefghi"),
        ({"genes": "all", "measured": ("d", "j")}, "d"),
        ({"genes": ("i", "x", "b", "j")}, "bi"),
        ({"n_markers": 0, "n_variable": 9}, "abcdefghi"),
        ({"measured": ("x",)}, ""),
    ],
)
def test_choose_panel__cases(signatures: Signatures, changes: dict[str, object], expected: str) -> None:
    panel = choose_panel(signatures, GENES, request(**changes))
    assert "".join(GENES[i] for i in panel.positions) == expected
    assert all(set(markers) <= set(panel.positions) for markers in panel.markers)


def test_run__outputs_and_published_reference(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, image=False)
    given.write_spots(tmp_path / "spots.h5ad", genes=[*given.GENES[3:], "OTHER"], values=given.spot_counts(28))
    context = given.context_of(tmp_path, pool)
    output = tmp_path / "out" / "work" / "key"
    pool.take_cost()
    outcome = stage.run(context, "study", output)
    cost = pool.take_cost()
    assert cost.peak_rss_bytes <= stage.plan(context, "study").peak_bytes <= 4 * cost.peak_rss_bytes
    source = anndata.read_h5ad(tmp_path / "reference.h5ad")
    counts = open_counts(output / "reference.zarr")
    assert (counts.rows(0, 40) != source.X).nnz == 0
    assert read_json(output / "genes.json") == list(given.GENES)
    types = read_json(output / "types.json")
    assert types == ["astro", "micro", "neuron"]
    cells = read_frame(output / "cells.parquet")
    assert cells["cell_type"].tolist() == given.reference_labels()
    values = source.X.toarray()
    shares = values / values.sum(axis=1, keepdims=True)
    expected = [shares[cells["cell_type"] == name].mean(axis=0) for name in types]
    assert np.allclose(read_array(output / "signatures.zarr"), expected, rtol=1e-12)
    panel = read_json(output / "panel.json")
    assert panel["genes"] == list(given.GENES[3:])
    assert set(panel["markers"]) == set(types)
    assert outcome.metrics["types"]["astro"]["cells"] == 14
    assert outcome.metrics["types_with_few_cells"] == types

    published = anndata.read_zarr(context.place.reference)
    assert (published.X != source.X).nnz == 0
    assert published.obs["cell_type"].tolist() == given.reference_labels()
    assert np.allclose(published.varm["signatures"].T, expected)
    assert list(published.uns["cell_types"]) == types
    assert list(published.uns["panel"]) == panel["genes"]
    assert published.var["in_panel"].sum() == 27


def test_run__type_names_with_slashes(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, image=False)
    labels = [name.replace("astro", "astro/radial glia") for name in given.reference_labels()]
    given.write_reference(tmp_path / "reference.h5ad", labels=labels)
    context = given.context_of(tmp_path, pool)
    stage.run(context, "study", tmp_path / "out" / "work" / "key")
    stage.run(context, "study", tmp_path / "out" / "work" / "key")
    published = anndata.read_zarr(context.place.reference)
    assert set(published.obs["cell_type"]) == {"astro/radial glia", "micro", "neuron"}


def test_run__type_without_counts_is_refused(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, image=False)
    values = np.ones((given.N_CELLS, 30), np.int32)
    values[:13] = 0
    given.write_reference(tmp_path / "reference.h5ad", values=values)
    with pytest.raises(BadInput, match="cell type 'astro': found 1 cell"):
        stage.run(given.context_of(tmp_path, pool), "study", tmp_path / "out" / "work" / "key")


def test_inputs__genes_of_sections_not_their_counts(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, image=False)
    before = stage.inputs(given.context_of(tmp_path, pool), "study")
    given.write_spots(tmp_path / "spots.h5ad", values=given.spot_counts() + 1)
    assert stage.inputs(given.context_of(tmp_path, pool), "study") == before
    given.write_spots(tmp_path / "spots.h5ad", genes=given.GENES[:25], values=given.spot_counts(25))
    assert stage.inputs(given.context_of(tmp_path, pool), "study") != before
