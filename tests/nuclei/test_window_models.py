"""Window models: label objects become polygons; the watershed baseline; models of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.draw import polygon

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import Box
from spatialscope_dist.nuclei.paint import paint_labels
from spatialscope_dist.nuclei.polygons import outline
from spatialscope_dist.nuclei.watershed import watershed_labels
from spatialscope_dist.nuclei.window_models import (
    label_polygons,
    load_model,
    model_facts,
    model_files,
    model_framework,
    model_problems,
)
from tests.plug_ins import install_plug_in


def _ellipses(seed: int) -> np.ndarray:
    labels, rng = np.zeros((200, 240), np.int32), np.random.default_rng(seed)
    for number, (cy, cx) in enumerate([(30, 40), (32, 62), (100, 100), (150, 200), (5, 120), (170, 30)], start=1):
        turn, long, short = rng.uniform(0, 3), rng.uniform(10, 14), rng.uniform(7, 10)
        angle = np.linspace(0, 2 * np.pi, 60)
        y, x = long * np.sin(angle), short * np.cos(angle)
        rows, columns = polygon(cy + y * np.cos(turn) - x * np.sin(turn), cx + y * np.sin(turn) + x * np.cos(turn))
        inside = (rows >= 0) & (labels[np.clip(rows, 0, 199), np.clip(columns, 0, 239)] == 0)
        labels[rows[inside], columns[inside]] = number
    return labels


@pytest.mark.parametrize("seed", range(3))
def test_label_polygons__give_the_labels_back(seed: int) -> None:
    labels = _ellipses(seed)
    found = label_polygons(labels)
    assert len(found) == 6
    ids = labels[found.points[:, 0], found.points[:, 1]]
    assert sorted(ids) == [1, 2, 3, 4, 5, 6]
    painted = paint_labels(outline(found, scale=1.0), ids, rank=np.arange(6), box=Box(0, 200, 0, 240))
    for label in ids:
        both = ((painted == label) & (labels == label)).sum()
        assert 2 * both / ((painted == label).sum() + (labels == label).sum()) > 0.93


def test_label_polygons__nothing() -> None:
    assert len(label_polygons(np.zeros((20, 30), np.int32))) == 0


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_watershed__finds_most_nuclear_pixels_of_a_real_field(data: Path) -> None:
    stem = data / "nuclei" / "TCGA-44-2665-01B-06-BS6"
    pixels = np.asarray(Image.open(f"{stem}.png").convert("RGB"))[:600, :600]
    truth = tifffile.imread(f"{stem}_label.tif")[:600, :600]
    low, high = np.percentile(pixels, (1, 99.8))
    labels = watershed_labels(((pixels.transpose(2, 0, 1) - low) / (high - low)).astype(np.float32))
    assert _dice(labels > 0, truth > 0) > 0.6
    assert 0.6 < labels.max() / len(np.unique(truth)) < 1.6


def test_watershed__bright_nuclei_of_a_grey_image_and_a_blank_one() -> None:
    labels = _ellipses(1)
    bright = np.where(labels > 0, 0.9, 0.05).astype(np.float32)[None]
    assert _dice(watershed_labels(bright) > 0, labels > 0) > 0.85
    assert not watershed_labels(np.full((3, 64, 64), 0.5, np.float32)).any()


def test_load_model__a_plug_in_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug_in(
        tmp_path, "mine", "LabelModel(label_facts(n_channels=1, halo=20), lambda pixels: (pixels[0] > 0.5).astype(int))"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model_problems("plugin:mine") == []
    assert model_files("plugin:mine") == tmp_path / "mine_nuclei.py"
    assert model_framework("plugin:mine", "tensorflow") is None
    assert (model_facts("plugin:mine").n_channels, model_facts("plugin:mine").halo) == (1, 32)
    pixels = np.zeros((1, 64, 64), np.float32)
    pixels[0, 20:30, 20:40] = 1
    assert len(load_model("plugin:mine").propose(pixels, threshold=0.0)) == 1
    (problem,) = model_problems("plugin:other")
    assert "installed one (mine)" in problem.expected
    with pytest.raises(BadInput, match="plugin:other"):
        load_model("plugin:other")


def test_model_problems__a_study_cannot_name_code_to_run() -> None:
    (problem,) = model_problems("os:system")
    assert "os:system" in problem.found
