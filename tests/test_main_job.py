"""What a finished run leaves: contract files, readable by the ecosystem, within the plan."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import small_study
from tests.conftest import Finished


@pytest.fixture(scope="module")
def section(finished: Finished):  # noqa: ANN201
    import spatialdata

    return spatialdata.read_zarr(finished.output / "sections" / "demo.zarr")


def test_section__has_the_contracts_elements(section) -> None:  # noqa: ANN001
    assert {"spots", "cells"} <= set(section.tables)
    assert "nuclei" in section.labels
    assert "he" in section.images
    assert {"spot_circles", "nucleus_polygons"} <= set(section.shapes)


def test_cells__columns_values_and_types(section, finished: Finished) -> None:  # noqa: ANN001
    cells = section.tables["cells"]
    wanted = {"cell_id", "spot_id", "section", "cell_type", "cell_type_map", "cell_type_positional"}
    assert wanted | {"cell_type_composition", "confidence", "margin", "status"} <= set(cells.obs)
    assert isinstance(cells.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert cells.X.dtype == np.float32
    assert np.isfinite(cells.X).all()
    assert (cells.X >= 0).all()
    assert set(cells.layers) == {"sd", "q05", "q95"}
    low, high = cells.layers["q05"], cells.layers["q95"]
    assert (low <= np.ceil(cells.X)).all()
    assert (high >= np.floor(cells.X)).all()
    assert low.sum() < cells.X.sum() < high.sum()
    assert cells.obsm["spatial"].shape == (cells.n_obs, 2)
    assert {"gene", "measured", "platform_effect"} <= set(cells.var)
    assert cells.obs_names.is_unique


def test_cells__add_up_to_what_the_spots_have(section) -> None:  # noqa: ANN001
    cells, spots = section.tables["cells"], section.tables["spots"]
    assert cells.obs["spot_id"].value_counts().to_dict() == {
        spot: n for spot, n in zip(spots.obs["spot_id"], spots.obs["n_cells"], strict=True) if n
    }


def test_spots__raw_counts_and_proportions(section) -> None:  # noqa: ANN001
    spots = section.tables["spots"]
    assert np.array_equal(spots.X.data, np.round(spots.X.data))
    assert np.array_equal(np.asarray(spots.X.sum(1)).ravel(), spots.obs["total_counts"])
    assert spots.obsm["proportions"].shape == (spots.n_obs, len(spots.uns["spatialscope"]["cell_types"]))
    typed = spots.obs["n_cells"].to_numpy() > 0
    assert np.allclose(spots.obsm["proportions"][typed].sum(1), 1, atol=1e-4)


def test_labels__agree_with_nuclei(section) -> None:  # noqa: ANN001
    painted = np.unique(section.labels["nuclei"].data.compute())
    assert set(painted) - {0} <= set(section.shapes["nucleus_polygons"].index)
    assert len(painted) > 0.95 * len(section.shapes["nucleus_polygons"])


def test_section__works_in_scanpy_and_squidpy(section) -> None:  # noqa: ANN001
    import scanpy as sc
    import squidpy as sq

    cells = section.tables["cells"].copy()
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=5)
    sq.gr.spatial_neighbors(cells, coord_type="generic", delaunay=True)
    kept = cells.obs["cell_type"].value_counts()
    assert cells.obsp["spatial_connectivities"].shape == (cells.n_obs, cells.n_obs)
    assert kept.sum() == cells.n_obs


def test_summary__accuracy_and_costs(finished: Finished) -> None:
    accuracy = finished.summary["accuracy"]
    assert accuracy["nuclei_found"] >= 0.9
    assert accuracy["nuclei_false"] <= 0.1
    assert accuracy["expression_cosine"] >= accuracy["type_mean_cosine"]
    assert 0 <= accuracy["composition_error"] < 0.5
    assert Path(finished.summary["report"]).exists()


def test_summary__memory_stays_within_the_plan(finished: Finished) -> None:
    for stage, row in finished.summary["stages"].items():
        if row["peak_rss_bytes"]:
            assert row["peak_rss_bytes"] <= row["projected_peak_bytes"], stage


def test_report__stands_alone(finished: Finished) -> None:
    html = (finished.output / "report" / "index.html").read_text()
    assert html.count("data:image/png;base64,") >= 6
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_output__nothing_is_written_beside_the_study(finished: Finished) -> None:
    names = {path.name for path in finished.study.parent.iterdir()}
    assert names == {"study.toml", "counts.h5ad", "image.tif", "reference.h5ad", "truth.h5ad", "pairs.csv"}


def test_plan__refuses_what_does_not_fit(finished: Finished, tmp_path: Path) -> None:
    command = small_study.command(finished.study, tmp_path / "out")
    command[command.index("3GiB")] = "0.5GiB"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3
    assert "--memory-limit" in done.stderr
    assert not (tmp_path / "out").exists()


def test_status__reports_every_stage(finished: Finished) -> None:
    done = subprocess.run(
        [small_study.COMMAND, "status", str(finished.study), "--output", str(finished.output), "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    stages = json.loads(done.stdout)["stages"]
    assert stages["decompose"]["done"] == stages["decompose"]["total"] > 0
