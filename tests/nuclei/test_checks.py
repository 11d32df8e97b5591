"""Images that cannot be segmented are refused with what to do."""

from __future__ import annotations

from spatialscope_dist.nuclei.checks import channel_problems, image_problems
from spatialscope_dist.options import SegmentOptions

OPTIONS = SegmentOptions()


def test_image_problems__coarse_image_is_refused() -> None:
    (problem,), warnings = image_problems("image", 17.0, OPTIONS)
    assert "17 µm per pixel" in str(problem)
    assert "at most 1 µm" in str(problem)
    assert "nuclei = FILE.csv" in str(problem)
    assert "UMI" in str(problem)
    assert not warnings


def test_image_problems__soft_image_is_warned_about() -> None:
    problems, (warning,) = image_problems("image", 0.688, OPTIONS)
    assert not problems
    assert "0.688" in warning


def test_image_problems__fine_image_and_unknown_size() -> None:
    assert image_problems("image", 0.25, OPTIONS) == ([], [])
    (problem,), _ = image_problems("image", None, OPTIONS)
    assert "pixel_size_um" in str(problem)


def test_channel_problems__grey_may_become_rgb() -> None:
    assert channel_problems("image", 1, 3) == []
    assert channel_problems("image", 3, 3) == []
    assert len(channel_problems("image", 3, 1)) == 1
