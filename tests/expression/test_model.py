from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spatialscope_dist.errors import BadInput
from spatialscope_dist.expression.model import load_model, pack_model, unpack_model


def test_pack_model__round_trip_through_files(model, tmp_path):
    weights, document = pack_model(model)
    (tmp_path / "weights.safetensors").write_bytes(weights)
    (tmp_path / "model.json").write_text(json.dumps(document))
    again = load_model(tmp_path, document["weights_sha256"])
    assert again.genes == model.genes
    assert again.types == model.types
    assert again.noise_range == model.noise_range
    for name, values in model.profiles.arrays().items():
        assert np.array_equal(getattr(again.profiles, name), values)
    assert list(again.networks) == ["score", "counts"]
    for kind, network in model.networks.items():
        assert again.networks[kind].shape == network.shape
        found = again.networks[kind].parameters
        assert all(np.array_equal(found[name], values) for name, values in network.parameters.items())
    assert np.array_equal(np.array(document["mu"], np.float32), model.profiles.mean_log)
    assert load_model(tmp_path, document["weights_sha256"]) is again
    with pytest.raises(BadInput, match="another model"):
        load_model(tmp_path, "0" * 64)


def test_unpack_model__refuses_files_that_do_not_belong_together(model):
    weights, document = pack_model(model)
    with pytest.raises(BadInput, match="SHA-256"):
        unpack_model(weights + b" ", document)
    with pytest.raises(BadInput, match="format 99"):
        unpack_model(weights, document | {"format": 99})


def test_denoiser__levels_beyond_the_trained_range(model):
    denoiser = model.denoiser(np.array([0, 1]))
    noisy = torch.randn(2, len(model.genes))
    assert torch.equal(denoiser(noisy, 0.001), denoiser(noisy, 0.02))
    far = denoiser(100.0 * noisy, 100.0)
    assert torch.isfinite(far).all()
    assert torch.allclose(far, denoiser(100.0 * noisy * (401 / 10001) ** 0.5, 20.0), atol=1e-4)
