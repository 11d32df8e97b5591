"""Peak memory of segmenting a slide does not grow with the slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.segmentation import measure_slide

SMALL_PX, LARGE_PX = 5_000, 10_000
TISSUE_SHARE = 0.35


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_segment_image__peak_memory_is_flat_from_5k_to_10k(data: Path, tmp_path: Path) -> None:
    assert (data / "nuclei").is_dir()
    peaks = []
    for size in (SMALL_PX, LARGE_PX):
        folder = tmp_path / str(size)
        folder.mkdir()
        peaks.append(measure_slide(size, folder, tissue_share=TISSUE_SHARE))
    small, large = peaks
    assert large["nuclei"] > 3 * small["nuclei"]
    for process in ("worker", "driver"):
        name = f"peak_rss_{process}_mib"
        assert large[name] <= 1.1 * small[name], (small, large)
    assert large["peak_rss_worker_mib"] < 3 * 1024
