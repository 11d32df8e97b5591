"""Histology images, read by region: tiff, ome-tiff, svs and other slides, zarr; jpg and png whole.

Regions are (c, y, x) in source pixels, or in pixels of a coarser level the file holds. RGBA becomes
RGB, white where it is fully transparent (slides are so outside what was scanned); colours are taken
as stored, an ICC profile is not applied. Images hold open files and do not pickle: a worker opens
the path again.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem, StoreError
from spatialscope_dist.geometry.tiles import Box, shard_boxes
from spatialscope_dist.location import is_remote, local_copy, located, opened_in_parts, storage_errors
from spatialscope_dist.readers.image_levels import Level, is_reduction, level_factor
from spatialscope_dist.readers.pixel_sizes import aperio_um, ngff_um, ome_um, tiff_um

Pixels = NDArray[np.integer[Any]]

RASTER = (".jpg", ".jpeg", ".png", ".bmp")
TIFF = (".tif", ".tiff", ".svs", ".btf", ".qptiff")
VENDOR = (".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi")
DTYPES = ("uint8", "uint16")
MAX_CHUNK_BYTES = 64_000_000
MAX_CHANNELS = 64


class LazyImage(ABC):
    """An image of which nothing but the header has been read.

    Attributes
    ----------
    path : Path
    format : str
        "tiff", "openslide", "zarr" or "raster".
    shape : tuple of int
        (channels, height, width).
    dtype : numpy.dtype
        uint8 or uint16.
    pixel_size_um : float or None
        µm per pixel by the file's metadata.
    is_tiled : bool
        Whether regions can be read without decoding the whole image.
    levels : tuple of Level
        Full resolution first, then the coarser ones the file holds.
    """

    format: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pixel_size_um: float | None = None
    is_tiled: bool = True
    _coarser: tuple[tuple[int, int], ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions that can be read, full one first."""
        shape = self.shape[1], self.shape[2]
        return Level(shape, 1.0), *(Level(size, level_factor(shape, size)) for size in self._coarser)

    def read(self, y0: int, y1: int, x0: int, x1: int, *, level: int = 0) -> Pixels:
        """Return the pixels of rows y0 ≤ y < y1 and columns x0 ≤ x < x1 of a level, (channels, y, x).

        Raises
        ------
        BadInput
            When the file is damaged there.
        """
        with _refusing_damage(self.path):
            return np.ascontiguousarray(self._read(Box(y0, y1, x0, x1), level))

    @abstractmethod
    def _read(self, box: Box, level: int) -> Pixels: ...


def _without_alpha(planes: Pixels) -> Pixels:
    """Return RGB of RGBA, (channels, y, x), white where nothing is seen at all."""
    if len(planes) != 4:
        return planes
    white = np.iinfo(planes.dtype).max
    return np.where(planes[3:] == 0, planes.dtype.type(white), planes[:3])


def open_image(path: Path) -> LazyImage:
    """Return the image at `path`, its header read.

    Raises
    ------
    BadInput
        When there is no file, it is no image, is damaged, or holds something other than one
        8- or 16-bit plane of up to 64 channels.
    """
    path = located(path)
    if not path.exists():
        raise BadInput(Problem(str(path), "no file", "an image", "Check the path."))
    with _refusing_damage(path):
        image = _opener(path)(path)
    if image.dtype.name not in DTYPES:
        remedy = "Convert the image to 8 bits per channel."
        raise BadInput(Problem(str(path), f"{image.dtype.name} pixels", "8- or 16-bit integers", remedy))
    return image


def _opener(path: Path) -> type[LazyImage]:
    suffix = path.suffix.lower()
    if path.is_dir() and suffix != ".mrxs":
        return ZarrImage
    if suffix in RASTER:
        return RasterImage
    if suffix in TIFF:
        return TiffImage
    if suffix in VENDOR:
        return OpenSlideImage
    known = ", ".join((*RASTER, *TIFF, ".zarr", *VENDOR))
    raise BadInput(Problem(str(path), f"a file ending in '{suffix}'", f"one of {known}", "Convert the image."))


@contextlib.contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    import tifffile

    damage = (EOFError, SyntaxError, RuntimeError, ValueError, LookupError, struct.error, zlib.error)
    try:
        yield
    except storage_errors(*damage, tifffile.TiffFileError) as error:
        if is_remote(path) and isinstance(error, storage_errors()):  # the way there failed, which is no damage
            remedy = "Mend the access or the file, then run again."
            raise StoreError(f"{path}: cannot be read ({error}). {remedy}") from error
        found = f"a damaged or unreadable image ({error})"
        remedy = "Copy or export the image again; `spatialscope check` tells whether it is whole."
        raise BadInput(Problem(str(path), found, "a whole image file", remedy)) from error


class TiffImage(LazyImage):
    """A TIFF, OME-TIFF or SVS through tifffile; the first series and its pyramid."""

    format = "tiff"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import tifffile

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        self._file = tifffile.TiffFile(opened_in_parts(path))
        weakref.finalize(self, self._file.close)
        series = self._file.series[0]
        page = series.keyframe
        self._require_whole()
        self._axes = series.axes
        self._levels, self._opened = [0], dict[int, Any]()
        pixels = self._level(0)
        lengths = dict(zip(self._axes, pixels.shape, strict=True))
        planes = {axis: length for axis, length in lengths.items() if axis not in "YXSC" and length > 1}
        channels = lengths.get("S", 1) * lengths.get("C", 1)
        if planes or channels > MAX_CHANNELS or page.photometric.name == "PALETTE":
            found = f"a {page.photometric.name} image of axes {self._axes} {pixels.shape}"
            remedy = "Export one plane, RGB or fluorescence channels."
            raise BadInput(Problem(str(path), found, f"one plane of 1 to {MAX_CHANNELS} channels", remedy))
        self._has_alpha = channels == 4 and (lengths.get("S", 1) == 4 or page.photometric.name == "RGB")
        self.shape = (3 if self._has_alpha else channels, lengths["Y"], lengths["X"])
        self.dtype = np.dtype(pixels.dtype)
        self.is_tiled = int(np.prod(pixels.chunks)) * self.dtype.itemsize <= MAX_CHUNK_BYTES
        self.pixel_size_um = self._pixel_size()
        self._find_levels()

    def _level(self, number: int) -> Any:
        if number not in self._opened:
            store = self._file.series[0].aszarr(level=self._levels[number], maxworkers=1)
            self._opened[number] = _open_zarr(store)
        return self._opened[number]

    def _find_levels(self) -> None:
        full, found = (self.shape[1], self.shape[2]), []
        for number, level in enumerate(self._file.series[0].levels[1:], start=1):
            lengths = dict(zip(level.axes, level.shape, strict=True))
            size = lengths["Y"], lengths["X"]
            if level.axes == self._axes and level.dtype == self.dtype and is_reduction(full, size):
                found.append(size)
                self._levels.append(number)
        self._coarser = tuple(found)

    def _require_whole(self) -> None:
        size = self.path.stat().st_size
        for page in self._file.series[0].levels[0].pages:
            ends = np.add(page.dataoffsets, page.databytecounts) if page is not None else np.zeros(1)
            if len(ends) and int(ends.max()) > size:
                raise ValueError(f"the file ends at byte {size}, its pixels at byte {int(ends.max())}")

    def _pixel_size(self) -> float | None:
        page = self._file.series[0].keyframe
        description = page.description or ""
        if self._file.is_ome:
            return ome_um(self._file.ome_metadata or "")
        return aperio_um(description) or tiff_um(
            description, page.resolution[0], page.resolutionunit.name, is_imagej=self._file.is_imagej
        )

    def _read(self, box: Box, level: int) -> Pixels:
        index = tuple(
            {"Y": box.slices[0], "X": box.slices[1]}.get(axis, slice(None) if axis in "SC" else 0)
            for axis in self._axes
        )
        block = np.asarray(self._level(level)[index])
        kept = [axis for axis in self._axes if axis in "YXSC"]
        order = [kept.index(axis) for axis in ("S", "C", "Y", "X") if axis in kept]
        planes: Pixels = block.transpose(order).reshape(-1, *box.shape)
        return _without_alpha(planes) if self._has_alpha else planes


class OpenSlideImage(LazyImage):
    """A vendor's slide through OpenSlide, RGB."""

    format = "openslide"
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import openslide

        try:
            self._slide = openslide.OpenSlide(local_copy(path))
        except openslide.OpenSlideError as error:
            raise ValueError(str(error)) from error
        weakref.finalize(self, self._slide.close)
        width, height = self._slide.dimensions
        self.shape = (3, height, width)
        size = self._slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
        self.pixel_size_um = float(size) if size else None
        sizes = [(high, wide) for wide, high in self._slide.level_dimensions]
        self._numbers = [0, *(n for n, size in enumerate(sizes) if n and is_reduction((height, width), size))]
        self._coarser = tuple(sizes[number] for number in self._numbers[1:])

    def _read(self, box: Box, level: int) -> Pixels:
        import openslide

        factor = self.levels[level].factor
        corner = round(box.x0 * factor), round(box.y0 * factor)
        try:
            region = self._slide.read_region(corner, self._numbers[level], box.shape[::-1])
        except openslide.OpenSlideError as error:
            raise ValueError(str(error)) from error
        return _without_alpha(np.asarray(region).transpose(2, 0, 1))


class ZarrImage(LazyImage):
    """A Zarr array (c, y, x) or (y, x), or the levels of an OME-NGFF group."""

    format = "zarr"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        group = node = _open_zarr(str(path))
        axes: list[str] = []
        paths: list[str] = []
        labels: list[str] = []
        if not hasattr(node, "shape"):
            attributes: dict[str, Any] = dict(node.attrs)
            scales: Any = attributes.get("ome", attributes)["multiscales"][0]
            axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales.get("axes", ())]
            self.pixel_size_um = ngff_um(scales)
            paths = [level["path"] for level in scales["datasets"]]
            labels = _channel_names(attributes.get("ome", attributes))
            node = group[paths[0]]
        self._axes = axes or list(node.metadata.dimension_names or "cyx"[-node.ndim :])
        lengths = dict(zip(self._axes, node.shape, strict=True))
        if any(length > 1 for axis, length in lengths.items() if axis not in "yxc"):
            raise ValueError(f"axes {self._axes} of lengths {node.shape}: one plane is expected")
        channels = lengths.get("c", 1)
        # Four planes are RGBA unless their names say otherwise.
        self._has_alpha = channels == 4 and (not labels or labels[-1].lower() in ("a", "alpha", "3"))
        self.shape = (3 if self._has_alpha else channels, lengths["y"], lengths["x"])
        self.dtype = np.dtype(node.dtype)
        sizes = [dict(zip(self._axes, group[name].shape, strict=True)) for name in paths]
        shapes = [(size["y"], size["x"]) for size in sizes]
        coarse = [n for n, size in enumerate(shapes) if n and is_reduction((self.shape[1], self.shape[2]), size)]
        self._coarser = tuple(shapes[number] for number in coarse)
        self._pixels = [node, *(group[paths[number]] for number in coarse)]

    def _read(self, box: Box, level: int) -> Pixels:
        slices = {"y": box.slices[0], "x": box.slices[1], "c": slice(None)}
        block = np.asarray(self._pixels[level][tuple(slices.get(axis, 0) for axis in self._axes)])
        kept = [axis for axis in self._axes if axis in "cyx"]
        planes = block.transpose([kept.index(axis) for axis in "cyx" if axis in kept]).reshape(-1, *box.shape)
        return _without_alpha(planes) if self._has_alpha else planes


def _channel_names(attributes: dict[str, Any]) -> list[str]:
    return [str(channel.get("label", "")) for channel in attributes.get("omero", {}).get("channels", ())]


def _open_zarr(store: Any) -> Any:
    import zarr

    return zarr.open(store, mode="r")


class RasterImage(LazyImage):
    """A JPEG, PNG or BMP: only the whole image can be decoded, so it is decoded once and kept by `decoded_blocks`."""

    format = "raster"
    is_tiled = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _require_end(path)
        with _open_raster(path) as picture:
            mode = picture.mode
            self.shape = (1 if mode in ("L", "1", "I;16") else 3, picture.height, picture.width)
        self.dtype = np.dtype(np.uint16 if mode == "I;16" else np.uint8)

    def _read(self, box: Box, level: int) -> Pixels:
        return self._crops([box])[0]

    def _crops(self, boxes: list[Box]) -> list[Pixels]:
        with _open_raster(self.path) as picture:
            return [self._crop(picture, box) for box in boxes]

    def _crop(self, picture: Any, box: Box) -> Pixels:
        region = picture.crop((box.x0, box.y0, box.x1, box.y1))
        if self.dtype == np.uint8:
            seen = "RGBA" if region.has_transparency_data else "RGB"
            region = region.convert("L" if self.shape[0] == 1 else seen)
        pixels = np.asarray(region).astype(self.dtype, copy=False)
        return pixels[None] if pixels.ndim == 2 else _without_alpha(pixels.transpose(2, 0, 1))

    def blocks(self, size: int) -> Iterator[tuple[Box, Pixels]]:
        """Return every block of edge `size`, the image being decoded once."""
        with _refusing_damage(self.path), _open_raster(self.path) as picture:
            for box in shard_boxes((self.shape[1], self.shape[2]), size):
                yield box, np.ascontiguousarray(self._crop(picture, box))


@contextlib.contextmanager
def _open_raster(path: Path) -> Iterator[Any]:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(local_copy(path)) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _require_end(path: Path) -> None:
    marks = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}
    mark = marks.get(path.suffix.lower())
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 65536))
        if mark is not None and mark not in handle.read():
            raise ValueError("the file is cut off before the image ends")


def decoded_blocks(image: LazyImage, *, size: int = 2048) -> Iterator[tuple[Box, Pixels]]:
    """Return every (box, (channels, y, x) pixels) of edge `size`, row by row, for writing an image to Zarr.

    An image that cannot be read by region is decoded once, whole: height × width × channels bytes.

    Raises
    ------
    BadInput
        When the file is damaged.
    """
    if isinstance(image, RasterImage):
        yield from image.blocks(size)
        return
    shape = image.shape[1], image.shape[2]
    whole = None if image.is_tiled else image.read(0, shape[0], 0, shape[1])
    for box in shard_boxes(shape, size):
        yield box, (image.read(*box) if whole is None else whole[:, box.slices[0], box.slices[1]])
