"""A real Visium section in Space Ranger layout: refused for its picture, then run without one."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spatialscope_dist.errors import BadInput
from spatialscope_dist.pipeline import check
from spatialscope_dist.readers.sections import read_spots
from spatialscope_dist.study import SectionSpec, load_study
from tests import small_study

LAYERS = ("L1", "L3", "L5", "WM")


def write_layer_reference(section: Path, path: Path) -> None:
    """Write single cells thinned from the spots of four manually drawn layers."""
    table = read_spots(SectionSpec(name="s", spaceranger=section))
    counts = sp.vstack(list(table.raw_blocks())).tocsr()
    layers = pd.read_csv(section / "layers.csv", index_col=0)["layer"].reindex(table.row_names).astype(str).to_numpy()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.choice(np.flatnonzero(layers == layer), 40) for layer in LAYERS])
    cells = counts[rows].copy()
    cells.data = rng.binomial(cells.data, 0.3)
    cells.eliminate_zeros()
    obs = pd.DataFrame({"cell_type": layers[rows]}, index=[f"cell{number}" for number in range(len(rows))])
    anndata.AnnData(cells, obs=obs, var=pd.DataFrame(index=list(table.genes))).write_h5ad(path)


def write_study(folder: Path, section: Path, extra: str = "") -> Path:
    reference = folder / "reference.h5ad"
    write_layer_reference(section, reference)
    file = folder / "study.toml"
    head = f'[[section]]\nname = "DLPFC"\nspaceranger = "{section}"\n{extra}\n'
    panel = "n_variable_genes = 100\nn_markers_per_type = 20\n"
    file.write_text(f'{head}[reference]\npath = "{reference}"\ncell_type = "cell_type"\n{panel}')
    return file


def test_check__refuses_to_segment_the_coarse_picture(data: Path, tmp_path: Path) -> None:
    section = data / "sections" / "151673"
    picture = f'image = "{section}/spatial/tissue_lowres_image.png"'
    with pytest.raises(BadInput) as caught:
        check(load_study(write_study(tmp_path, section, picture)))
    message = str(caught.value)
    for words in ("µm per pixel", "at most 1 µm", "full-resolution image", "nuclei"):
        assert words in message


def test_run__counts_of_cells_estimated_from_umi(data: Path, tmp_path: Path) -> None:
    import spatialdata

    study = write_study(tmp_path, data / "sections" / "151673")
    events = small_study.run(study, tmp_path / "out", "--workers", "2", "--until", "identify")
    assert any(event["event"] == "skipped" and event["stage"] == "segment" for event in events)
    section = spatialdata.read_zarr(tmp_path / "out" / "sections" / "DLPFC.zarr")
    cells, spots = section.tables["cells"], section.tables["spots"]
    assert spots.n_obs == 3639
    assert cells.n_obs == spots.obs["n_cells"].sum() > 3639
    layers = pd.read_csv(data / "sections" / "151673" / "layers.csv", index_col=0)["layer"]
    known = layers.reindex(spots.obs["spot_id"]).astype(str).to_numpy()
    for number, layer in enumerate(spots.uns["spatialscope"]["cell_types"]):
        shares = spots.obsm["proportions"][:, number]
        assert shares[known == layer].mean() > 1.1 * shares[known != layer].mean(), layer
