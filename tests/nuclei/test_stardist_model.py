"""StarDist models: described without TensorFlow, refused with a reason, exact in windows."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spatialscope_dist.geometry.tiles import Box, WindowGrid
from spatialscope_dist.nuclei.candidates import concatenate, window_candidates
from spatialscope_dist.nuclei.normalise import histogram_percentiles, intensity_histogram, normalise
from spatialscope_dist.nuclei.paint import paint_labels
from spatialscope_dist.nuclei.polygons import Nuclei, trace_nuclei
from spatialscope_dist.nuclei.resample import WindowSource
from spatialscope_dist.nuclei.stardist_model import (
    DEMO_FOLDER,
    load_network,
    model_problems,
    read_model_facts,
    resolve_model,
)
from spatialscope_dist.nuclei.suppression import suppress


def test_read_model_facts__demo() -> None:
    facts = read_model_facts(DEMO_FOLDER)
    assert (facts.n_channels, facts.n_rays, facts.align, facts.halo) == (3, 32, 16, 48)
    assert 0 < facts.prob_threshold < 1


def test_read_model_facts__official_architecture(data: Path) -> None:
    facts = read_model_facts(data.parent / "models" / "he_hybrid")
    assert (facts.align, facts.halo, facts.prob_threshold, facts.nms_threshold) == (16, 96, 0.6, 0.3)


def test_model_problems__each_way_to_be_wrong(tmp_path: Path) -> None:
    assert model_problems("demo") == []
    assert model_problems(str(DEMO_FOLDER)) == []
    (absent,) = model_problems(str(tmp_path / "absent"))
    assert "[segment] model = PATH" in str(absent)
    (empty,) = model_problems(str(tmp_path))
    assert "without config.json, thresholds.json, weights_best.h5" in str(empty)
    shutil.copytree(DEMO_FOLDER, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "n_dim": 3}))
    (odd,) = model_problems(str(tmp_path / "odd"))
    assert "unreadable config.json" in str(odd)
    assert resolve_model("demo") == DEMO_FOLDER


def test_model_problems__official_model_already_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "StarDist2D" / "2D_versatile_he" / "2D_versatile_he"
    shutil.copytree(DEMO_FOLDER, folder)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert resolve_model("2D_versatile_he") == folder


def _in_windows(image: np.ndarray, folder: Path, window: int) -> Nuclei:
    facts, network = read_model_facts(folder), load_network(str(folder))
    low, high = histogram_percentiles(intensity_histogram(image), (1.0, 99.8))
    grid = WindowGrid(image.shape[1:], window=window, halo=facts.halo, align=facts.align)
    parts = []
    for one in grid:
        source = WindowSource(one.box, image.shape[1:], 1.0)
        pixels = normalise(source.resample(image[:, source.region.slices[0], source.region.slices[1]]), low, high)
        parts.append(window_candidates(*network.predict(pixels), window=one, grid=grid, threshold=facts.prob_threshold))
    found = concatenate(parts)
    survivors = suppress(
        found.points, found.probability, lambda rows: found.distances[rows], threshold=facts.nms_threshold
    )
    return trace_nuclei(survivors, scale=1.0)


def _panoptic_quality(true: np.ndarray, found: np.ndarray) -> float:
    """Return PQ at IoU > 0.5 of two label images."""
    n_true, n_found = int(true.max()), int(found.max())
    table = np.bincount((true.astype(np.int64) * (n_found + 1) + found).ravel(), minlength=(n_true + 1) * (n_found + 1))
    table = table.reshape(n_true + 1, n_found + 1)
    union = table.sum(1)[1:, None] + table.sum(0)[None, 1:] - table[1:, 1:]
    quality = table[1:, 1:] / np.maximum(union, 1)
    return float(quality[quality > 0.5].sum() / ((n_true + n_found) / 2))


@pytest.mark.parametrize(("height", "width"), [(400, 430), (211, 300)])
def test_windows__equal_one_prediction_of_the_whole_image(data: Path, height: int, width: int) -> None:
    from csbdeep.utils import normalize
    from PIL import Image

    field = np.asarray(Image.open(data / "nuclei" / "TCGA-44-2665-01B-06-BS6.png").convert("RGB"))[:height, :width]
    folder = data.parent / "models" / "he_hybrid"
    nuclei = _in_windows(np.ascontiguousarray(field.transpose(2, 0, 1)), folder, window=256)
    with contextlib.redirect_stdout(io.StringIO()):
        from stardist.models import StarDist2D

        whole = StarDist2D(None, name="he_hybrid", basedir=str(folder.parent))
        labels, details = whole.predict_instances(normalize(field, 1, 99.8))
    assert len(nuclei) == len(details["prob"]) > 50
    box = Box(0, height, 0, width)
    painted = paint_labels(nuclei.polygons, np.arange(1, len(nuclei) + 1), rank=nuclei.paint_rank, box=box)
    assert _panoptic_quality(labels, painted) >= 0.9999
