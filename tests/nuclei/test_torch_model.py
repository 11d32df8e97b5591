"""StarDist weights in torch: the same numbers and the same nuclei as in TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialscope_dist.errors import BadInput
from spatialscope_dist.geometry.tiles import WindowGrid
from spatialscope_dist.nuclei.candidates import owned_candidates
from spatialscope_dist.nuclei.polygons import trace_nuclei
from spatialscope_dist.nuclei.stardist_model import DEMO_FOLDER, load_network
from spatialscope_dist.nuclei.suppression import suppress
from spatialscope_dist.nuclei.torch_model import load_torch_network
from spatialscope_dist.nuclei.window_models import load_model


def _field(data: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(data / "nuclei" / "TCGA-44-2665-01B-06-BS6.png").convert("RGB"))[:512, :512]
    low, high = np.percentile(pixels, (1, 99.8))
    return ((pixels.transpose(2, 0, 1) - low) / (high - low)).astype(np.float32)


@pytest.mark.parametrize("model", ["he_hybrid", "demo"])
def test_torch_network__equals_tensorflow(data: Path, model: str) -> None:
    folder = str(DEMO_FOLDER if model == "demo" else data.parent / "models" / model)
    field = _field(data)
    expected, found = load_network(folder).predict(field), load_torch_network(folder).predict(field)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1e-4


def test_torch_network__same_nuclei_on_a_real_field(data: Path) -> None:
    field, folder = _field(data), str(data.parent / "models" / "he_hybrid")
    grid = WindowGrid((512, 512))
    traced = []
    for backend in ("tensorflow", "torch"):
        model = load_model(folder, backend)
        found = model.propose(field, threshold=model.facts.prob_threshold)
        found = owned_candidates(found, window=grid[0], grid=grid, border=model.facts.border)
        kept = suppress(found.points, found.probability, lambda rows, f=found: f.distances[rows], threshold=0.3)
        traced.append(trace_nuclei(kept, scale=1.0))
    one, other = traced
    assert len(one) == len(other) > 50
    np.testing.assert_array_equal(one.peaks, other.peaks)
    np.testing.assert_allclose(one.polygons, other.polygons, atol=1e-3)


def test_load_torch_network__no_weights(tmp_path: Path) -> None:
    for name in ("config.json", "thresholds.json"):
        (tmp_path / name).write_bytes((DEMO_FOLDER / name).read_bytes())
    (tmp_path / "weights_best.h5").write_bytes(b"none")
    with pytest.raises(BadInput, match="weights that cannot be loaded"):
        load_torch_network(str(tmp_path))
