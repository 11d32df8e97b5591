"""A slide of which a part cannot be read: the rest is segmented, and what was not looked at is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.options import SegmentOptions
from spatialscope_dist.readers.images import open_image
from spatialscope_dist.simulate import SimulationSettings, simulate
from spatialscope_dist.steps.damaged import MendedImage, readable_parts
from spatialscope_dist.steps.pixels import store_view
from spatialscope_dist.steps.slide import segment_slide
from spatialscope_dist.steps.slide_spec import Slide
from spatialscope_dist.store.arrays import read_array

TILE = 256
COMMAND = Path(sys.executable).with_name("spatialscope")


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """Return a simulated section, (y, x, 3)."""
    return simulate(SimulationSettings(n_spots=12), seed=3).image.transpose(1, 2, 0)


def _write(path: Path, image: NDArray[np.uint8], damaged: tuple[int, ...]) -> Path:
    tifffile.imwrite(path, image, tile=(TILE, TILE), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = [(page.dataoffsets[number], page.databytecounts[number]) for number in damaged]
    with path.open("r+b") as handle:
        for start, size in places:
            handle.seek(start)
            handle.write(b"\xff" * size)
    return path


def _in_process(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: function(**arguments) for name, arguments in units.items()}


def _slide(path: Path, folder: Path) -> Slide:
    image = open_image(path)
    store_view(image, folder / "view.zarr", factor=4)
    options = SegmentOptions(model="demo", model_pixel_size_um=0.5)
    return Slide(str(path), image.shape, 0.5, str(folder / "view.zarr"), 4.0, options, str(folder), window=512)


def test_readable_parts__all_but_the_damaged_tile(image: NDArray[np.uint8], tmp_path: Path) -> None:
    opened = open_image(_write(tmp_path / "i.tif", image, (6,)))
    across = -(-image.shape[1] // TILE)
    y0, x0 = 6 // across * TILE, 6 % across * TILE
    box = Box(0, 1024, 0, 1024)
    seen = np.zeros(box.shape, int)
    for part, found in readable_parts(lambda place: opened.read(*place), box):
        seen[part.slices] += 1 if isinstance(found, str) else 2
        if not isinstance(found, str):
            np.testing.assert_array_equal(found, image.transpose(2, 0, 1)[:, part.slices[0], part.slices[1]])
    expected = np.full(box.shape, 2)
    expected[y0 : y0 + TILE, x0 : x0 + TILE] = 1
    np.testing.assert_array_equal(seen, expected)


def test_mended_image__is_black_where_damaged(image: NDArray[np.uint8], tmp_path: Path) -> None:
    mended = MendedImage(open_image(_write(tmp_path / "i.tif", image, (0,))))
    pixels = mended.read(100, 400, 100, 400)
    assert not pixels[:, : TILE - 100, : TILE - 100].any()
    np.testing.assert_array_equal(pixels[:, TILE - 100 :], image.transpose(2, 0, 1)[:, TILE:400, 100:400])
    np.testing.assert_array_equal(pixels[:, :, TILE - 100 :], image.transpose(2, 0, 1)[:, 100:400, TILE:400])
    assert all("damaged" in reason for reason in mended.damage.values())


def test_segment_slide__windows_that_cannot_be_read_are_told(image: NDArray[np.uint8], tmp_path: Path) -> None:
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    sound = segment_slide(_slide(_write(tmp_path / "whole.tif", image, ()), whole), _in_process)
    found = segment_slide(_slide(_write(tmp_path / "hurt.tif", image, (14,)), hurt), _in_process)
    assert sound["damaged"] == {}
    assert list(found["damaged"]) == ["image rows 464 to 880, columns 464 to 880"]
    assert "damaged or unreadable" in next(iter(found["damaged"].values()))
    assert found["windows_predicted"] == sound["windows_predicted"] - 1
    one, other = (pd.read_parquet(folder / "nuclei.parquet")[["y_px", "x_px"]] for folder in (whole, hurt))
    inside = [((places > 480) & (places < 860)).all(axis=1).sum() for places in (one, other)]
    beyond = [((places < 440) | (places > 900)).any(axis=1).sum() for places in (one, other)]
    assert inside[0] > 20
    assert inside[1] == 0
    assert beyond[1] == pytest.approx(beyond[0], rel=0.05)  # percentiles are those of what can be read
    assert not read_array(hurt / "labels.zarr")[480:860, 480:860].any()


def test_segment_slide__nothing_can_be_read(image: NDArray[np.uint8], tmp_path: Path) -> None:
    path = _write(tmp_path / "i.tif", image[:300, :300], tuple(range(4)))
    with pytest.raises(BadInput, match=r"readable pixels"):
        segment_slide(_slide(path, tmp_path), _in_process)


def test_segment_image__exit_code_4_and_the_reason(image: NDArray[np.uint8], tmp_path: Path) -> None:
    wide = np.tile(image[600:856, 384:1152], (1, 3, 1))
    path = _write(tmp_path / "i.tif", wide, (0,))
    out = tmp_path / "labels.tif"
    options = ["--model", "demo", "--pixel-size-um", "0.25", "--workers", "1", "--set", "segment.prob_threshold=0.5"]
    command = [COMMAND, "segment-image", path, out, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 4, done.stderr
    assert "not looked at: image rows 0 to 256, columns 0 to 1488: " in done.stderr
    labels = tifffile.imread(out)
    assert not labels[:, :1450].any()
    assert labels[:, 1500:].any()
