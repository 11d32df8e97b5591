"""Stage ingest: what a user has becomes counts, places, pixels and truth in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.stages import align, ingest
from spatialscope_dist.store.arrays import open_array, read_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame
from tests import given_files as given

pytestmark = pytest.mark.local_cluster


def ingested(folder: Path, pool: Pool) -> tuple[Path, Any]:
    context = given.context_of(folder, pool)
    output = folder / "ingested"
    outcome = ingest.run(context, "A", output)
    return output, outcome


def test_run__image_nuclei_and_truth(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, nuclei="nuclei.csv", truth="truth.h5ad", z_um=3.0)
    text = "cell_id,spot_id,x,y,z,cell_type\nc1,spot3,10,20,5,astro\nc2,,30,40,6,neuron\n"
    (tmp_path / "nuclei.csv").write_text(text)
    given.write_spots(tmp_path / "truth.h5ad", cell_type=["astro"] * 12, spot_id=["spot1", "", *["spot2"] * 10])
    output, outcome = ingested(tmp_path, pool)
    assert (outcome.done, outcome.total, outcome.failed) == (4, 4, {})

    spots = read_frame(output / "spots.parquet")
    assert list(spots) == ["spot_id", "y_px", "x_px", "y_um", "x_um", "total_counts", "status"]
    assert (spots[["x_px", "y_px"]].to_numpy() == given.spot_places()).all()
    assert (spots[["x_um", "y_um"]].to_numpy() == given.spot_places() * 0.5).all()
    assert (spots["total_counts"].to_numpy() == given.spot_counts().sum(axis=1)).all()
    counts = open_counts(output / "counts.zarr")
    assert (counts.rows(0, 12).toarray() == given.spot_counts()).all()
    assert counts.genes == given.GENES
    assert counts.row_names(0, 12) == list(spots["spot_id"])

    about = read_json(output / "section.json")
    assert about["image"] == {
        "path": str(output / "image.zarr"),
        "format": "zarr",
        "shape": [3, 400, 400],
        "dtype": "uint8",
    }
    assert (about["pixel_size_um"], about["spot_diameter_um"], about["platform"]) == (0.5, 30.0, "visium")
    pixels = np.asarray(Image.open(tmp_path / "he.png")).transpose(2, 0, 1)
    assert (read_array(output / "image.zarr") == pixels).all()
    view = read_array(output / "view.zarr" / "0")
    assert view.shape == (3, 100, 100)
    assert read_json(output / "view.zarr" / "zarr.json")["attributes"]["scale"] == 4
    assert np.abs(view - pixels.reshape(3, 100, 4, 100, 4).mean(axis=(2, 4))).max() <= 0.5

    cells = read_frame(output / "given_nuclei.parquet")
    assert cells.to_dict("list") == {
        "cell_id": ["c1", "c2"],
        "spot_id": ["spot3", None],
        "y_px": [20.0, 40.0],
        "x_px": [10.0, 30.0],
        "z_um": [5.0, 6.0],
        "cell_type": ["astro", "neuron"],
    }
    truth = read_frame(output / "truth.parquet")
    assert truth["spot_id"][:3].tolist() == ["spot1", None, "spot2"]
    assert (truth[["x_px", "y_px"]].to_numpy() == given.spot_places()).all()
    assert (open_counts(output / "truth.zarr").rows(0, 12).toarray() == given.spot_counts()).all()


def test_run__without_image_units_are_um(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, image=False)
    values = given.spot_counts()
    values[4] = 0
    given.write_spots(tmp_path / "spots.h5ad", values=values, n=np.arange(12))
    given.write_study(
        tmp_path,
        section={"name": "A", "counts": "spots.h5ad"},
        more="[identify]\nn_cells_column = 'n'",
    )
    output, outcome = ingested(tmp_path, pool)
    about = read_json(output / "section.json")
    assert (about["image"], about["pixel_size_um"], about["spot_diameter_um"]) == (None, None, 55.0)
    spots = read_frame(output / "spots.parquet")
    assert (spots["x_um"] == spots["x_px"]).all()
    assert spots["status"].tolist() == ["ok"] * 4 + ["low_counts"] + ["ok"] * 7
    assert spots["n_cells_given"].tolist() == list(range(12))
    assert outcome.metrics["low_counts"] == 1
    assert not (output / "view.zarr").exists()


def test_run__resumes_and_measures_within_plan(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path)
    context = given.context_of(tmp_path, pool)
    pool.take_cost()
    ingest.run(context, "A", tmp_path / "out" / "work" / "key")
    first = pool.take_cost()
    assert (first.units_run, first.units_resumed) == (2, 0)
    assert first.peak_rss_bytes <= ingest.plan(context, "A").peak_bytes <= 4 * first.peak_rss_bytes
    ingest.run(context, "A", tmp_path / "out" / "work" / "key")
    again = pool.take_cost()
    assert (again.units_run, again.units_resumed) == (0, 2)


def test_inputs__content_not_place(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path)
    before = ingest.inputs(given.context_of(tmp_path, pool), "A")
    assert ingest.inputs(given.context_of(tmp_path, pool), "A") == before
    given.write_reference(tmp_path / "reference.h5ad", values=np.ones((given.N_CELLS, 30), np.int32))
    assert ingest.inputs(given.context_of(tmp_path, pool), "A") == before
    given.write_spots(tmp_path / "spots.h5ad", values=given.spot_counts() + 1)
    assert ingest.inputs(given.context_of(tmp_path, pool), "A") != before


def test_align__given_transform(tmp_path: Path, pool: Pool) -> None:
    given.write_sound_study(tmp_path, transform=[[0, -1, 5], [1, 0, 7], [0, 0, 1]], z_um=10.0)
    context = given.context_of(tmp_path, pool)
    align.run(context, "A", tmp_path / "aligned")
    document = read_json(tmp_path / "aligned" / "transform.json")
    assert document == {"affine_um": [[0, -1, 5], [1, 0, 7], [0, 0, 1]], "z_um": 10.0}
    assert align.inputs(context, "A")["z_um"] == 10.0


def test_run__real_visium_section(tmp_path: Path, pool: Pool, data: Path) -> None:
    given.write_reference(tmp_path / "reference.h5ad", genes=[f"ENSG{i:011d}" for i in range(30)])
    given.write_study(tmp_path, section={"name": "A", "spaceranger": data / "sections" / "151673"})
    output, outcome = ingested(tmp_path, pool)
    assert outcome.metrics["n_spots"] == 3639
    counts = open_counts(output / "counts.zarr")
    assert counts.shape == (3639, 5000)
    about = read_json(output / "section.json")
    assert about["image"]["shape"] == [3, 600, 600]
    assert about["pixel_size_um"] == pytest.approx(16.1, abs=0.05)
    assert open_array(output / "view.zarr" / "0").shape == (3, 600, 600)
    spots = read_frame(output / "spots.parquet")
    assert (spots["total_counts"].to_numpy() == np.asarray(counts.rows(0, 3639).sum(axis=1)).ravel()).all()
    pitch = pd.Series(spots["x_um"].sort_values().unique()).diff().median()
    assert pitch < 100
    assert spots[["x_px", "y_px"]].max().max() < 600
