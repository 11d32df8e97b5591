"""A slide of which nearly all is glass: its nuclei are found, or it is said why they cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from spatialscope_dist.simulate import SimulationSettings, simulate

COMMAND = Path(sys.executable).with_name("spatialscope")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with tissue on half a percent of it."""
    tissue = simulate(SimulationSettings(n_spots=7), seed=3).image.transpose(1, 2, 0)
    middle = [length // 2 for length in tissue.shape[:2]]
    pixels = np.full((4096, 4096, 3), 243, np.uint8)
    pixels[1000:1300, 1000:1300] = tissue[middle[0] - 150 : middle[0] + 150, middle[1] - 150 : middle[1] + 150]
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    return path


def segment(slide: Path, folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    line = [
        str(COMMAND),
        "segment-image",
        str(slide),
        str(folder / "labels.tif"),
        "--nuclei",
        str(folder / "n.parquet"),
    ]
    line += ["--model", "watershed", "--pixel-size-um", "0.5", "--workers", "1"]
    chosen = [part for text in ("model_pixel_size_um=0.5", *settings) for part in ("--set", f"segment.{text}")]
    return subprocess.run([*line, *chosen], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.local_cluster
def test_segment_image__percentiles_of_glass_are_refused(slide: Path, tmp_path: Path) -> None:
    done = segment(slide, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "nearly all is glass" in done.stderr
    assert 'segment.normalise_over = "tissue"' in done.stderr
    assert not (tmp_path / "labels.tif").exists()


@pytest.mark.local_cluster
def test_segment_image__percentiles_of_tissue_find_its_nuclei(slide: Path, tmp_path: Path) -> None:
    done = segment(slide, tmp_path, "normalise_over=tissue")
    assert done.returncode == 0, done.stderr
    nuclei = pd.read_parquet(tmp_path / "n.parquet")
    assert len(nuclei) > 10
    assert nuclei[["y_px", "x_px"]].to_numpy().min() > 980
    assert nuclei[["y_px", "x_px"]].to_numpy().max() < 1320
