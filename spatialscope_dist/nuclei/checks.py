"""Whether an image suits nucleus segmentation, told before anything runs."""

from __future__ import annotations

from spatialscope_dist.errors import Problem
from spatialscope_dist.options import SegmentOptions

WITHOUT_IMAGE = (
    "Give the full-resolution image, or leave the image out: give nuclei = FILE.csv, or let identify "
    "estimate the cells of each spot from its UMI."
)


def image_problems(where: str, pixel_size_um: float | None, options: SegmentOptions) -> tuple[list[Problem], list[str]]:
    """Return the problems and the warnings about segmenting an image of that pixel size.

    Parameters
    ----------
    where : str
        Names the image in messages.
    pixel_size_um : float or None
        µm per pixel, None when neither the study nor the image tells.
    options : SegmentOptions
        Coarsest pixel size allowed and warned about.
    """
    if pixel_size_um is None:
        remedy = "Write pixel_size_um into the study's [[section]] (segment-image: --pixel-size-um)."
        return [Problem(where, "no pixel size in the image's metadata", "µm per pixel", remedy)], []
    if pixel_size_um > options.max_pixel_size_um:
        found = f"{pixel_size_um:.3g} µm per pixel, too coarse to see nuclei"
        return [Problem(where, found, f"at most {options.max_pixel_size_um:g} µm per pixel", WITHOUT_IMAGE)], []
    if pixel_size_um > options.warn_pixel_size_um:
        text = (
            f"{where}: {pixel_size_um:.3g} µm per pixel is coarse (better at most {options.warn_pixel_size_um:g}); "
            f"it is enlarged to {options.model_pixel_size_um:g} and small nuclei may be missed."
        )
        return [], [text]
    return [], []


def channel_problems(
    where: str, image_channels: int, model_channels: int | None, *, channel: int | None = None
) -> list[Problem]:
    """Return what is wrong with giving an image of so many channels, or one of them, to the model.

    A model whose channels are not known, None, takes any.
    """
    if channel is not None:
        if channel < image_channels:
            return []
        found = f"{image_channels} channels"
        return [Problem(where, found, f"a channel {channel}, counted from 0", "Correct [segment] channel.")]
    if model_channels in (None, image_channels) or (image_channels, model_channels) == (1, 3):
        return []
    remedy = (
        "Give an image or a [segment] model that match (2D_versatile_he: RGB, 2D_versatile_fluo: one channel), "
        "or name the nuclear stain by [segment] channel."
    )
    return [Problem(where, f"{image_channels} channels", f"{model_channels}, as the model takes", remedy)]
