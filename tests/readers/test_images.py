"""Images: every format gives the same pixels by region; damage and wrong content are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.readers.image_levels import level_for
from spatialscope_dist.readers.image_views import viewing_blocks, viewing_factors, viewing_shape
from spatialscope_dist.readers.images import decoded_blocks, open_image

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (3, 300, 420), dtype=np.uint8)
HWC = np.ascontiguousarray(PIXELS.transpose(1, 2, 0))


def _tiled(path: Path) -> None:
    resolution = (1 / 0.5e-4, 1 / 0.5e-4)
    tifffile.imwrite(
        path, HWC, photometric="rgb", tile=(128, 128), compression="zlib", resolution=resolution, resolutionunit=3
    )


def _stripped(path: Path) -> None:
    tifffile.imwrite(path, HWC, photometric="rgb", resolution=(72, 72), resolutionunit=2)


def _rgba(path: Path) -> None:
    alpha = np.full((*HWC.shape[:2], 1), 255, np.uint8)
    tifffile.imwrite(path, np.concatenate([HWC, alpha], axis=2), photometric="rgb", extrasamples=["unassalpha"])


def _ome(path: Path) -> None:
    metadata = {"axes": "CYX", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(path, PIXELS, tile=(128, 128), photometric="minisblack", metadata=metadata)


def _png(path: Path) -> None:
    Image.fromarray(HWC).save(path)


def _zarr(path: Path) -> None:
    array = zarr.create_array(str(path), shape=PIXELS.shape, dtype="uint8", chunks=(3, 128, 128))
    array[...] = PIXELS


def _ngff(path: Path) -> None:
    group = zarr.open_group(str(path), mode="w")
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    axes = [{"name": "c"}, {"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("0", shape=PIXELS.shape, dtype="uint8", chunks=(3, 128, 128))[...] = PIXELS


WRITERS: dict[str, tuple[Callable[[Path], None], float | None, bool]] = {
    "tiled.tif": (_tiled, 0.5, True),
    "stripped.tiff": (_stripped, None, True),
    "rgba.tif": (_rgba, None, True),
    "image.ome.tif": (_ome, 0.5, True),
    "image.png": (_png, None, False),
    "image.zarr": (_zarr, None, True),
    "ngff.zarr": (_ngff, 0.5, True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_open_image__every_format_reads_the_same_region(tmp_path: Path, name: str) -> None:
    write, pixel_size_um, is_tiled = WRITERS[name]
    write(tmp_path / name)
    image = open_image(tmp_path / name)
    assert image.shape == (3, 300, 420)
    assert image.dtype == np.uint8
    assert image.pixel_size_um == (None if pixel_size_um is None else pytest.approx(pixel_size_um))
    assert image.is_tiled == is_tiled
    np.testing.assert_array_equal(image.read(100, 290, 7, 300), PIXELS[:, 100:290, 7:300])


def test_open_image__grey_and_sixteen_bit(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (50, 60), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(HWC[..., 0]).save(tmp_path / "grey.jpg", quality=95)
    for name in ("deep.tif", "deep.png"):
        image = open_image(tmp_path / name)
        assert (image.shape, image.dtype) == ((1, 50, 60), np.uint16)
        np.testing.assert_array_equal(image.read(10, 50, 0, 20)[0], deep[10:50, :20])
    assert open_image(tmp_path / "grey.jpg").shape == (1, 300, 420)


def test_open_image__aperio_svs(data: Path) -> None:
    path = data / "slides" / "CMU-1-Small-Region.svs"
    image = open_image(path)
    assert image.shape == (3, 2967, 2220)
    assert image.pixel_size_um == pytest.approx(0.499)
    import openslide

    with openslide.OpenSlide(path) as slide:
        other = np.asarray(slide.read_region((1000, 1500), 0, (300, 200)))[..., :3].transpose(2, 0, 1)
    assert np.abs(image.read(1500, 1700, 1000, 1300).astype(int) - other).mean() < 2


@pytest.mark.parametrize("name", ["tiled.tif", "stripped.tiff", "image.png", "image.jpg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_open_image__cut_off(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    Image.fromarray(HWC).save(path) if name == "image.jpg" else WRITERS[name][0](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match="damaged or unreadable"):
        open_image(path)


@pytest.mark.parametrize("name", ["image.tif", "image.jpg", "image.png", "image.svs", "image.ndpi", "image.zarr"])
def test_open_image__no_image_at_all(tmp_path: Path, name: str) -> None:
    if name == "image.zarr":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"these are not pixels" * 100)
    with pytest.raises(BadInput, match="damaged or unreadable"):
        open_image(tmp_path / name)


def test_open_image__wrong_content(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((20, 20), np.float32))
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((7, 20, 20), np.uint8), metadata={"axes": "ZYX"})
    (tmp_path / "image.xyz").touch()
    with pytest.raises(BadInput, match="float32 pixels"):
        open_image(tmp_path / "float.tif")
    with pytest.raises(BadInput, match="one plane"):
        open_image(tmp_path / "stack.tif")
    with pytest.raises(BadInput, match="no file"):
        open_image(tmp_path / "absent.tif")
    with pytest.raises(BadInput, match="one of"):
        open_image(tmp_path / "image.xyz")


@pytest.mark.parametrize("name", ["image.png", "tiled.tif"])
def test_decoded_blocks__cover_the_image(tmp_path: Path, name: str) -> None:
    WRITERS[name][0](tmp_path / name)
    seen = np.zeros_like(PIXELS)
    for box, block in decoded_blocks(open_image(tmp_path / name), size=128):
        seen[:, box.slices[0], box.slices[1]] = block
    np.testing.assert_array_equal(seen, PIXELS)


def test_viewing_factors__two_micrometres_or_the_image_itself() -> None:
    assert viewing_factors((9923, 9272), pixel_size_um=0.688) == (3, 6, 12)
    assert viewing_factors((40_000, 40_000), pixel_size_um=0.25) == (8, 16, 32, 64)
    assert viewing_factors((600, 569), pixel_size_um=17.0) == (1,)


@pytest.mark.parametrize("factor", [1, 3, 7])
def test_viewing_blocks__area_mean(tmp_path: Path, factor: int) -> None:
    _zarr(tmp_path / "image.zarr")
    shape = viewing_shape((300, 420), factor)
    level = np.zeros((3, *shape), np.uint8)
    for box, block in viewing_blocks(open_image(tmp_path / "image.zarr"), factor, size=40):
        level[:, box.slices[0], box.slices[1]] = block
    for y, x in ((0, 0), (shape[0] - 1, shape[1] - 1), (11, 30)):
        part = PIXELS[:, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        np.testing.assert_allclose(level[:, y, x], part.mean(axis=(1, 2)), atol=0.5)
    assert Box(0, 1, 0, 1).shape == (1, 1)


def _halved(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(3, pixels.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4)).astype(np.uint8)


def _pyramid_tiff(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "tile": (64, 64)}
        file.write(HWC, subifds=1, resolution=(1 / 0.125e-4, 1 / 0.125e-4), resolutionunit=3, **options)
        file.write(_halved(PIXELS).transpose(1, 2, 0), subfiletype=1, **options)


def _pyramid_zarr(path: Path) -> None:
    group = zarr.open_group(str(path), mode="w")
    for name, pixels in (("0", PIXELS), ("1", _halved(PIXELS))):
        group.create_array(name, shape=pixels.shape, dtype="uint8", chunks=(3, 64, 64))[...] = pixels
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    scale = [{"type": "scale", "scale": [1.0, 0.125, 0.125]}]
    levels = [{"path": name, "coordinateTransformations": scale} for name in "01"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}


@pytest.mark.parametrize(("name", "write"), [("p.tif", _pyramid_tiff), ("p.zarr", _pyramid_zarr)])
def test_levels__are_read_by_region(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    image = open_image(tmp_path / name)
    assert [(level.shape, level.factor) for level in image.levels] == [((300, 420), 1.0), ((150, 210), 2.0)]
    np.testing.assert_array_equal(image.read(20, 90, 100, 210, level=1), _halved(PIXELS)[:, 20:90, 100:210])
    assert [level_for(image.levels, 0.125, size) for size in (0.1, 0.125, 0.2, 0.245, 0.25, 2.0)] == [0, 0, 0, 1, 1, 1]


def test_levels__a_label_or_macro_picture_is_none(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        file.write(HWC, photometric="rgb", subifds=1)
        file.write(HWC[:150, :100], photometric="rgb", subfiletype=1)
    assert len(open_image(tmp_path / "p.tif").levels) == 1


def test_open_image__transparent_is_white(tmp_path: Path) -> None:
    rgba = np.concatenate([HWC, np.full((300, 420, 1), 255, np.uint8)], axis=2)
    rgba[:100, :50] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 300, 420), dtype="uint8", chunks=(4, 64, 64))
    array[...] = rgba.transpose(2, 0, 1)
    expected = PIXELS.copy()
    expected[:, :100, :50] = 255
    for name in ("a.png", "a.tif", "a.zarr"):
        image = open_image(tmp_path / name)
        assert image.shape == (3, 300, 420)
        np.testing.assert_array_equal(image.read(0, 300, 0, 420), expected)


@pytest.mark.parametrize("n_channels", [2, 4, 7])
def test_open_image__fluorescence_channels_are_kept(tmp_path: Path, n_channels: int) -> None:
    planes = RNG.integers(0, 65535, (n_channels, 60, 70), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "f.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    image = open_image(tmp_path / "f.ome.tif")
    assert image.shape == (n_channels, 60, 70)
    np.testing.assert_array_equal(image.read(10, 40, 5, 70), planes[:, 10:40, 5:70])
