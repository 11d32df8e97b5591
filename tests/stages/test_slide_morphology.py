"""Nuclei of a segmented slide are measured: one row each, the same for any tile, near the planted shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.images import open_image
from spatialscope_dist.simulate import SimulatedStudy, SimulationSettings, simulate
from spatialscope_dist.steps import slide_morphology
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_spec import Slide
from spatialscope_dist.store.arrays import create_array, write_region


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    """Return a small simulated section whose types differ in size and stain of their nuclei."""
    return simulate(SimulationSettings(n_spots=7), seed=4)


def _segmented(study: SimulatedStudy, folder: Path, *, backwards: bool = False, channel: int | None = None) -> Path:
    shape = study.image.shape
    create_array(folder / "i.zarr", shape=shape, dtype=np.uint8, chunks=(3, 256, 256), axes=("c", "y", "x"))
    write_region(folder / "i.zarr", tuple(slice(0, length) for length in shape), study.image)
    model = "demo" if channel is None else "watershed"
    options = SegmentOptions(model=model, model_pixel_size_um=0.5, tile=4096 if backwards else 1024, channel=channel)
    assert open_image(folder / "i.zarr").shape == shape
    slide = Slide(str(folder / "i.zarr"), shape, 0.5, None, 1.0, options, str(folder / "out"))

    def workers(function, units):
        names = list(reversed(units)) if backwards else list(units)
        return {name: function(**units[name]) for name in names}

    segment_slide(slide, workers)
    return slide.folder


@pytest.fixture(scope="module")
def segmented(study: SimulatedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of the segmented section."""
    return _segmented(study, tmp_path_factory.mktemp("one"))


def test_measure_morphology__one_row_per_nucleus_near_the_planted(study: SimulatedStudy, segmented: Path) -> None:
    nuclei, looks = (pd.read_parquet(segmented / f"{name}.parquet") for name in ("nuclei", "morphology"))
    assert looks["nucleus_id"].tolist() == nuclei["nucleus_id"].tolist()
    np.testing.assert_allclose(looks["area_um2"], nuclei["area_um2"], rtol=1e-5)
    assert looks.notna().all().all()
    distance, planted = cKDTree(study.nuclei.centres_um).query(nuclei[["y_um", "x_um"]])
    sure = distance < 2.0
    area = np.pi * study.nuclei.semi_axes_um[planted].prod(axis=1)
    assert np.corrcoef(np.log(area[sure]), np.log(looks["area_um2"][sure]))[0, 1] > 0.85
    assert looks["haematoxylin_mean"].median() > 0.2
    assert looks["eccentricity"].between(0, 1).all()


def test_measure_morphology__same_bytes_for_other_tiles_orders_and_squares(
    study: SimulatedStudy, segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_morphology, "SQUARE_PX", 300)
    other = _segmented(study, tmp_path, backwards=True)
    pd.testing.assert_frame_equal(
        pd.read_parquet(other / "morphology.parquet"),
        pd.read_parquet(segmented / "morphology.parquet"),
        check_exact=True,
    )


def test_measure_morphology__intensity_of_the_chosen_channel(study: SimulatedStudy, tmp_path: Path) -> None:
    looks = pd.read_parquet(_segmented(study, tmp_path, channel=0) / "morphology.parquet")
    assert "haematoxylin_mean" not in looks
    assert looks["intensity_mean"].between(0, 1).all()
    assert looks["intensity_sd"].median() > 0
