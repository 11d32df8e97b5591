"""Units that look at the image: tissue, intensities, candidates of windows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.geometry.tiles import Box, Window, shard_boxes
from spatialscope_dist.location import located
from spatialscope_dist.nuclei.candidates import (
    Candidates,
    beyond_sight,
    concatenate,
    owned_candidates,
    polygon_bounds,
)
from spatialscope_dist.nuclei.checks import channel_problems
from spatialscope_dist.nuclei.normalise import BINS, histogram_percentiles, intensity_histogram, normalise
from spatialscope_dist.nuclei.resample import WindowSource
from spatialscope_dist.nuclei.stardist_model import ModelFacts
from spatialscope_dist.nuclei.suppression import union_bounds
from spatialscope_dist.nuclei.tissue import tissue_mask, windows_with_tissue
from spatialscope_dist.nuclei.window_models import load_model, model_facts
from spatialscope_dist.readers.image_levels import level_for
from spatialscope_dist.readers.images import LazyImage, open_image
from spatialscope_dist.steps.damaged import place_name, readable_parts
from spatialscope_dist.steps.slide_spec import Slide, Workers, mask_at, save_array
from spatialscope_dist.steps.slide_suppression import PARTS
from spatialscope_dist.store.arrays import load_npy, read_array

HISTOGRAM_BOX = 4096
WIDER = 3  # halos a piece of a core is given when an object reaches past one
_LEAST_CONTRAST = 16  # grey levels; stained tissue spans 100 and more


def prepare(slide: Slide) -> dict[str, Any]:
    """Return the model's facts and the windows to predict; writes the tissue mask (worker).

    Raises
    ------
    BadInput
        When the model cannot be had or takes another number of channels.
    """
    facts = model_facts(slide.options.model)
    problems = channel_problems(slide.image, slide.shape[0], facts.n_channels, channel=slide.options.channel)
    if problems:
        raise BadInput(problems)
    slide = at_level(slide)
    grid = slide.grid(facts)
    windows, share = list(range(len(grid))), 1.0
    bright = slide.shape[0] == 3 and slide.options.channel is None
    if slide.view is not None and slide.options.tissue_mask == "auto" and bright:
        mask = tissue_mask(read_array(located(slide.view)), pixel_size_um=slide.pixel_size_um * slide.view_factor)
        save_array(slide.folder / "tissue.npy", mask)
        windows = windows_with_tissue(grid, mask, view_pixels_per_model_pixel=1 / (slide.scale * slide.view_factor))
        share = float(mask.mean())
    level = {"level": slide.level, "level_shape": slide.level_shape, "level_factor": slide.level_factor}
    return {"model": facts.__dict__, "windows": windows, "tissue_share": share, "level": level}


def at_level(slide: Slide) -> Slide:
    """Return the slide with the level of the image to read: the coarsest that is fine enough for the model."""
    image = open_image(located(slide.image))
    number = level_for(image.levels, slide.pixel_size_um, slide.options.model_pixel_size_um)
    chosen = image.levels[number]
    return replace(slide, level=number, level_shape=chosen.shape, level_factor=chosen.factor)


def slide_percentiles(slide: Slide, workers: Workers) -> tuple[float, float]:
    """Return the two intensities that become 0 and 1, exact over the whole image or its tissue.

    Raises
    ------
    BadInput
        When no pixel of it can be read, or percentiles of the image say nothing of the little tissue on it.
    """
    boxes = shard_boxes(slide.read_shape, HISTOGRAM_BOX)
    units = {f"histogram_{number:05d}": {"slide": slide, "box": box} for number, box in enumerate(boxes)}
    units = {name: {**arguments, "name": name} for name, arguments in units.items()}
    workers(count_intensities, units)
    total = sum(load_npy(slide.folder / "histograms" / f"{name}.npy") for name in units)
    if not np.any(total):
        remedy = "Copy or export the image again, or normalise over the image."
        raise BadInput(Problem(slide.image, "no pixel to take percentiles of", "readable pixels, with tissue", remedy))
    low, high = histogram_percentiles(np.asarray(total), slide.options.percentiles)
    if slide.options.normalise_over == "image" and high - low < _LEAST_CONTRAST and _shows_tissue(slide):
        # The low percentile is glass as well: every nucleus would be darker than 0, and none would be found.
        found = f"intensities {low:g} to {high:g} at its percentiles {slide.options.percentiles}: nearly all is glass"
        remedy = 'Set segment.normalise_over = "tissue", or cut the image to its tissue.'
        raise BadInput(Problem(slide.image, found, f"a contrast of {_LEAST_CONTRAST} or more", remedy))
    return low, high


def _shows_tissue(slide: Slide) -> bool:
    mask = slide.folder / "tissue.npy"
    return bool(mask.exists() and load_npy(mask).any())


def count_intensities(slide: Slide, name: str, box: Box) -> dict[str, Any]:
    """Write the intensity histogram of one box of the image (worker)."""
    image = open_image(located(slide.image))
    mask = slide.folder / "tissue.npy"
    tissue = load_npy(mask) if slide.options.normalise_over == "tissue" and mask.exists() else None
    histogram = np.zeros(BINS[image.dtype.name], np.int64)
    for part, pixels in readable_parts(partial(slide.read, image), Box(*box)):
        if not isinstance(pixels, str):
            where = None if tissue is None else mask_at(tissue, part, slide.view_factor / slide.level_factor)
            histogram += intensity_histogram(pixels, where=where)
    save_array(slide.folder / "histograms" / f"{name}.npy", histogram)
    return {"pixels": int(histogram.sum())}


def predict_windows(slide: Slide, name: str, windows: list[int], low: float, high: float) -> dict[str, Any]:
    """Write the candidates of the windows' cores (worker).

    A core with an object that reaches past what its window saw is looked at again in pieces, each
    with a wider halo; which cores those are depends on the image only, not on the task. A window
    whose pixels cannot be read proposes nothing, and its core is told with the reason.
    """
    look = Look(slide, low, high)
    parts, beyond, damaged = [], list[int](), dict[str, str]()
    for index in windows:
        window = look.grid[index]
        try:
            found, past = look.thorough_candidates(window)
        except BadInput as error:
            damaged[place_name(Box(*(round(edge / slide.scale) for edge in window.core)))] = str(error)
            continue
        parts.append(found)
        beyond += past
    found = concatenate(parts, n_rays=look.facts.n_rays)
    bounds = polygon_bounds(found)
    for part in PARTS:
        save_array(slide.folder / "candidates" / f"{name}.{part}.npy", getattr(found, part))
    save_array(slide.folder / "candidates" / f"{name}.bounds.npy", bounds)
    return {
        "windows": len(windows),
        "candidates": len(found),
        "bounds": union_bounds(bounds).tolist() if len(found) else None,
        "windows_widened": len(beyond),
        "candidates_beyond_wide_halo": sum(beyond),
        "damaged": damaged,
    }


class Look:
    """A model and an image, opened once for all windows of a task."""

    def __init__(self, slide: Slide, low: float, high: float) -> None:
        self._model = load_model(slide.options.model, slide.options.backend)
        self.facts: ModelFacts = self._model.facts
        self.grid = slide.grid(self.facts)
        self._image: LazyImage = open_image(located(slide.image))
        self._slide, self._low, self._high = slide, low, high
        self._threshold = slide.thresholds(self.facts)[0]

    def thorough_candidates(self, window: Window) -> tuple[Candidates, list[int]]:
        """Return the candidates of the core; if it was looked at twice, how many reached past the second look too.

        Raises
        ------
        BadInput
            When the image is damaged there.
        """
        found = self.candidates(window)
        if not self.beyond_sight(found, window):
            return found, []
        pieces = self.grid.pieces(window, WIDER * self.facts.halo)
        closer = [self.candidates(piece) for piece in pieces]
        return concatenate(closer), [sum(map(self.beyond_sight, closer, pieces))]

    def candidates(self, window: Window) -> Candidates:
        """Return the candidates of the window's core."""
        slide = self._slide
        source = WindowSource(window.box, slide.read_shape, slide.read_scale)
        pixels = normalise(source.resample(slide.read(self._image, source.region)), self._low, self._high)
        if pixels.shape[0] != self.facts.n_channels:  # grey for a model of colours
            pixels = np.repeat(pixels, self.facts.n_channels, axis=0)
        found = self._model.propose(pixels, threshold=self._threshold)
        return owned_candidates(found, window=window, grid=self.grid, border=self.facts.border)

    def beyond_sight(self, found: Candidates, window: Window) -> int:
        """Return how many polygons reach past what the window saw though the image goes on there."""
        return int(beyond_sight(found, window=window, grid=self.grid).sum())
