"""Segmenting a slide: the same nuclei however it is divided; cells per spot; `segment-image`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy.spatial import cKDTree

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.errors import BadInput
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.image_levels import level_for
from spatialscope_dist.readers.image_views import viewing_blocks
from spatialscope_dist.readers.images import OpenSlideImage, open_image
from spatialscope_dist.segment_image import segment_one_image
from spatialscope_dist.simulate import SimulatedStudy, SimulationSettings, simulate
from spatialscope_dist.stages.segment import count_cells
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_spec import WINDOW, Slide
from spatialscope_dist.steps.slide_windows import at_level
from spatialscope_dist.store.arrays import create_array, read_array, write_array, write_region
from tests.plug_ins import install_plug_in

RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    """Return a simulated section of four windows at 0.5 µm per pixel."""
    return simulate(SimulationSettings(n_spots=12), seed=3)


def _in_process(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: function(**arguments) for name, arguments in units.items()}


def _in_process_backwards(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: function(**units[name]) for name in reversed(units)}


def _slide(study: SimulatedStudy, folder: Path, *, window: int = 1024, **options: Any) -> Slide:
    shape = study.image.shape
    image = folder / "image.zarr"
    create_array(image, shape=shape, dtype=np.uint8, chunks=(3, 256, 256), axes=("c", "y", "x"))
    write_region(image, tuple(slice(0, length) for length in shape), study.image)
    ((_, view),) = viewing_blocks(open_image(image), 4)
    write_array(folder / "view.zarr", view, axes=("c", "y", "x"))
    return Slide(
        image=str(image),
        shape=shape,
        pixel_size_um=0.5,
        view=str(folder / "view.zarr"),
        view_factor=4.0,
        options=SegmentOptions(model="demo", model_pixel_size_um=0.5, **options),
        output=str(folder / "out"),
        window=window,
    )


def _digests(folder: Path) -> dict[str, str]:
    frame = pd.read_parquet(folder / "nuclei.parquet")
    arrays = {name: read_array(folder / f"{name}.zarr") for name in ("labels", "polygons")}
    arrays |= {column: frame[column].to_numpy() for column in frame.columns}
    return {name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() for name, values in arrays.items()}


@pytest.fixture(scope="module")
def segmented(study: SimulatedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of the section segmented window by window."""
    slide = _slide(study, tmp_path_factory.mktemp("segmented"), tile=1024)
    assert segment_slide(slide, _in_process)["windows"] == 4
    return slide.folder


def test_segment_slide__same_bytes_for_two_tiles_and_orders(
    study: SimulatedStudy, segmented: Path, tmp_path: Path
) -> None:
    slide = _slide(study, tmp_path, tile=4096)
    segment_slide(slide, _in_process_backwards)
    assert _digests(slide.folder) == _digests(segmented)
    assert not (slide.folder / "candidates").exists()


def test_segment_slide__audits_the_borders_of_cores(study: SimulatedStudy, tmp_path: Path) -> None:
    audit = segment_slide(_slide(study, tmp_path), _in_process)["border_audit"]
    assert (audit["shifted_windows"], audit["shifted_agreement"]) == (1, 1.0)
    assert audit["nuclei_crossing_cores"] > 5
    assert audit["straight_edge_score"] == pytest.approx(1.0, abs=3 * audit["straight_edge_error"])


def test_segment_slide__an_object_larger_than_the_halo_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug_in(
        tmp_path, "bright", "LabelModel(label_facts(n_channels=1, halo=32), lambda p: ndimage.label(p[0] > 0.5)[0])"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    y, x = np.mgrid[0:300, 0 : WINDOW + 76]
    image = (200 * ((y - 150) ** 2 + (x - WINDOW + 39) ** 2 < 60**2)).astype(np.uint8)[None]
    write_array(tmp_path / "i.zarr", image, axes=("c", "y", "x"))
    options = SegmentOptions(model="plugin:bright")
    slide = Slide(str(tmp_path / "i.zarr"), image.shape, 0.25, None, 1.0, options, str(tmp_path / "out"))
    found = segment_slide(slide, _in_process)
    assert (found["nuclei"], found["windows_widened"], found["candidates_beyond_wide_halo"]) == (1, 1, 0)
    assert found["nuclei_beyond_halo"] == 1
    labels = read_array(slide.folder / "labels.zarr")
    assert 2 * ((labels > 0) & (image[0] > 0)).sum() / ((labels > 0).sum() + (image > 0).sum()) > 0.97


@pytest.mark.parametrize(("model", "backend"), [("watershed", "tensorflow"), ("demo", "torch")])
def test_segment_slide__same_bytes_for_two_tiles_with_another_model(
    study: SimulatedStudy, segmented: Path, tmp_path: Path, model: str, backend: str
) -> None:
    found = []
    for tile, order in ((1024, _in_process), (4096, _in_process_backwards)):
        slide = _slide(study, tmp_path / str(tile), tile=tile)
        options = slide.options.model_copy(update={"model": model, "backend": backend})
        segment_slide(replace(slide, options=options), order)
        found.append(slide.folder)
    assert _digests(found[0]) == _digests(found[1])
    one, planted = pd.read_parquet(found[0] / "nuclei.parquet"), study.nuclei.centres_um
    assert (cKDTree(one[["y_um", "x_um"]]).query(planted)[0] < 3.0).mean() > 0.7
    if backend == "torch":
        other = pd.read_parquet(segmented / "nuclei.parquet")
        np.testing.assert_allclose(one[["y_px", "x_px"]], other[["y_px", "x_px"]], atol=1e-2)


def test_segment_slide__finds_the_planted_nuclei(study: SimulatedStudy, segmented: Path) -> None:
    found = pd.read_parquet(segmented / "nuclei.parquet")[["y_um", "x_um"]].to_numpy()
    planted = study.nuclei.centres_um
    assert (cKDTree(found).query(planted)[0] < 3.0).mean() >= 0.9
    assert (cKDTree(planted).query(found)[0] < 3.0).mean() >= 0.9


def test_segment_slide__blank_slide(study: SimulatedStudy, tmp_path: Path) -> None:
    slide = _slide(study, tmp_path)
    write_array(tmp_path / "view.zarr", np.full((3, 400, 400), 240, np.uint8), axes=("c", "y", "x"))
    found = segment_slide(slide, _in_process)
    assert (found["nuclei"], found["windows_predicted"]) == (0, 0)
    assert not read_array(slide.folder / "labels.zarr").any()


def test_segment_slide__grey_image_with_rgb_model(study: SimulatedStudy, tmp_path: Path) -> None:
    grey = study.image.mean(axis=0, keepdims=True).astype(np.uint8)[:, :600, :600]
    write_array(tmp_path / "grey.zarr", grey, axes=("c", "y", "x"))
    options = SegmentOptions(model="demo", model_pixel_size_um=0.5)
    slide = Slide(str(tmp_path / "grey.zarr"), grey.shape, 0.5, None, 1.0, options, str(tmp_path / "out"))
    assert segment_slide(slide, _in_process)["windows_predicted"] == 1


def test_segment_slide__reads_the_level_that_suits_the_model(
    study: SimulatedStudy, segmented: Path, tmp_path: Path
) -> None:
    fine = study.image.repeat(2, axis=1).repeat(2, axis=2)
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        for number, pixels in enumerate((fine, study.image)):
            more = {"subifds": 1} if number == 0 else {"subfiletype": 1}
            file.write(pixels.transpose(1, 2, 0), photometric="rgb", tile=(256, 256), compression="zlib", **more)
    options = SegmentOptions(model="demo", model_pixel_size_um=0.5)
    slide = Slide(str(tmp_path / "p.tif"), fine.shape, 0.25, None, 1.0, options, str(tmp_path / "out"))
    found = segment_slide(slide, _in_process)
    assert (found["level"], found["level_factor"], found["scale"]) == (1, 2.0, 0.5)
    one, other = (pd.read_parquet(folder / "nuclei.parquet") for folder in (slide.folder, segmented))
    np.testing.assert_allclose(one[["y_px", "x_px"]], 2 * other[["y_px", "x_px"]] + 0.5, atol=1e-3)
    np.testing.assert_allclose(one["area_um2"], other["area_um2"], rtol=1e-4)
    assert read_array(slide.folder / "labels.zarr").shape == fine.shape[1:]


def test_segment_slide__one_channel_of_a_fluorescence_image(data: Path, tmp_path: Path) -> None:
    y, x = np.mgrid[0:256, 0:256]
    centres = [(40, 40), (40, 150), (120, 90), (200, 60), (190, 200)]
    dapi = sum(60_000 * np.exp(-((((y - cy) ** 2 + (x - cx) ** 2) / 140.0) ** 2)) for cy, cx in centres) + 900
    planes = np.stack([RNG.integers(0, 60_000, (256, 256)), dapi]).astype(np.uint16)
    write_array(tmp_path / "f.zarr", planes, axes=("c", "y", "x"))
    model = str(data.parent / "models" / "fluo_hybrid")
    for channel, grey in ((1, planes), (None, planes[1:]), (0, (planes[1:] // 257).astype(np.uint8))):
        folder = tmp_path / f"{channel}"
        write_array(folder / "f.zarr", grey, axes=("c", "y", "x"))
        options = SegmentOptions(model=model, model_pixel_size_um=0.5, channel=channel)
        slide = Slide(str(folder / "f.zarr"), grey.shape, 0.5, None, 1.0, options, str(folder))
        assert segment_slide(slide, _in_process)["nuclei"] == len(centres)
        places = pd.read_parquet(folder / "nuclei.parquet")[["y_px", "x_px"]].to_numpy()
        assert cKDTree(places).query(centres)[0].max() < 3
    refused = Slide(str(tmp_path / "f.zarr"), planes.shape, 0.5, None, 1.0, options, str(tmp_path / "no"))
    with pytest.raises(BadInput, match=r"2 channels.*channel"):
        segment_slide(replace(refused, options=SegmentOptions(model=model)), _in_process)
    with pytest.raises(BadInput, match="channel 5"):
        segment_slide(replace(refused, options=SegmentOptions(model=model, channel=5)), _in_process)


def test_count_cells__every_spot_is_kept_and_dropped_cells_are_counted(tmp_path: Path) -> None:
    nuclei = pd.DataFrame(
        {"y_um": [0.0, 1.0, 2.0, 50.0, 101.0], "x_um": 0.0, "probability": np.float32([0.9, 0.5, 0.7, 0.8, 0.6])}
    )
    spots = pd.DataFrame({"spot_id": ["a", "b", "c"], "y_um": [0.0, 100.0, 300.0], "x_um": 0.0})
    nuclei.to_parquet(tmp_path / "nuclei.parquet")
    spots.to_parquet(tmp_path / "in.parquet")
    paths = {"nuclei": str(tmp_path / "nuclei.parquet"), "spots": str(tmp_path / "in.parquet")}
    counted = count_cells(**paths, output=str(tmp_path), diameter_um=55.0, cap=2)
    found = pd.read_parquet(tmp_path / "nuclei.parquet")
    assert found["spot_id"].fillna("").tolist() == ["a", "a", "a", "", "b"]
    assert found["is_cell"].tolist() == [True, False, True, False, True]
    per_spot = pd.read_parquet(tmp_path / "spots.parquet")
    assert per_spot[["n_nuclei", "n_cells"]].to_numpy().tolist() == [[3, 2], [1, 1], [0, 0]]
    assert (counted["dropped_by_cap"], counted["spots_without_nucleus"]) == (1, 1)


def test_count_cells__sections_that_share_spot_ids_are_counted_apart(tmp_path: Path) -> None:
    spots = pd.DataFrame({"spot_id": ["a", "b"], "y_um": [0.0, 10.0], "x_um": 0.0})
    spots.to_parquet(tmp_path / "in.parquet")
    counts = []
    for section, places in (("one", [0.0, 0.5, 10.0]), ("two", [10.0, 40.0])):
        nuclei = pd.DataFrame({"y_um": places, "x_um": 0.0, "probability": np.float32(0.9)})
        (tmp_path / section).mkdir()
        nuclei.to_parquet(tmp_path / section / "nuclei.parquet", row_group_size=2)
        paths = {"nuclei": str(tmp_path / section / "nuclei.parquet"), "spots": str(tmp_path / "in.parquet")}
        count_cells(**paths, output=str(tmp_path / section), diameter_um=10.0, cap=5)
        counts.append(pd.read_parquet(tmp_path / section / "spots.parquet")["n_cells"].tolist())
        assert pd.read_parquet(tmp_path / section / "nuclei.parquet")["y_um"].tolist() == places
    assert counts == [[2, 1], [0, 1]]


def test_at_level__a_vendors_slide_of_one_level(data: Path, tmp_path: Path) -> None:
    path = data / "slides" / "CMU-1-Small-Region.svs"
    for image in (open_image(path), OpenSlideImage(path)):
        assert level_for(image.levels, 0.499, 0.25) == 0
    model = str(data.parent / "models" / "he_hybrid")
    slide = Slide(str(path), (3, 2967, 2220), 0.499, None, 1.0, SegmentOptions(model=model), str(tmp_path))
    chosen = at_level(slide)
    assert (chosen.level, chosen.level_factor, chosen.level_shape) == (0, 1.0, (2967, 2220))
    assert chosen.scale == pytest.approx(1.996)
    coarse = at_level(replace(slide, pixel_size_um=0.1))  # no level of the file comes nearer
    assert coarse.level == 0


def test_segment_one_image__equals_the_stage_with_two_workers(study: SimulatedStudy, tmp_path: Path) -> None:
    slide = _slide(study, tmp_path / "stage", window=WINDOW)
    segment_slide(slide, _in_process)
    Image.fromarray(study.image.transpose(1, 2, 0)).save(tmp_path / "image.png")
    # called 0.25 µm per pixel, the model's nominal size, so that nothing is rescaled
    count, damaged = segment_one_image(
        tmp_path / "image.png",
        tmp_path / "labels.tif",
        ClusterSettings(workers=2, memory_limit_bytes=4 << 30),
        options=SegmentOptions(model="demo", tile=1024),
        pixel_size_um=0.25,
        nuclei=tmp_path / "nuclei.parquet",
    )
    labels = tifffile.imread(tmp_path / "labels.tif")
    assert count == labels.max() > 100
    assert damaged == {}
    np.testing.assert_array_equal(labels, read_array(slide.folder / "labels.zarr"))
    columns = ["nucleus_id", "y_px", "x_px", "probability"]
    one, other = pd.read_parquet(tmp_path / "nuclei.parquet"), pd.read_parquet(slide.folder / "nuclei.parquet")
    pd.testing.assert_frame_equal(one[columns], other[columns])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_segment_one_image__refuses_before_starting_workers(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "image.png")
    demo, fluorescence = SegmentOptions(model="demo"), SegmentOptions(model="2D_versatile_fluo")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("too coarse", {"pixel_size_um": 17.0}),
        ("--pixel-size-um", {}),
        ("no such folder", {"out": tmp_path / "a" / "o.tif", "pixel_size_um": 0.5}),
        ("no such folder", {"nuclei": tmp_path / "a" / "n.parquet", "pixel_size_um": 0.5}),
        ("3 channels; expected 1", {"options": fluorescence, "pixel_size_um": 0.5}),
        ("a channel 3", {"options": demo.model_copy(update={"channel": 3}), "pixel_size_um": 0.5}),
    ]
    for message, given in cases:
        arguments: dict[str, Any] = {"out": tmp_path / "o.tif", "options": demo, **given}
        with pytest.raises(BadInput, match=message):
            segment_one_image(tmp_path / "image.png", cluster=ClusterSettings(1, 4 << 30), **arguments)
    assert not (tmp_path / "o.tif").exists()
