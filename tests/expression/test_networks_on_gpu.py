"""What must hold on a GPU. Skipped without one; the same code paths run on the CPU in the other tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.memory_fit import CELLS_PER_BLOCK, cells_at_once
from spatialscope_dist.expression.noise import chain_keys, keyed_normals, keyed_normals_torch
from spatialscope_dist.expression.objectives import OBJECTIVES
from spatialscope_dist.expression.samplers import failed_spots, sample_score
from spatialscope_dist.expression.split_gibbs import sample_counts
from spatialscope_dist.expression.training import fit
from spatialscope_dist.expression.training_state import Hooks, pack_state, unpack_state
from spatialscope_dist.options import DecomposeOptions, TrainOptions
from spatialscope_dist.randomness import philox

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

GPU, CPU = torch.device("cuda"), torch.device("cpu")
FAST = DecomposeOptions(n_steps=3, n_chains=4, count_chains=4)
LANGEVIN = FAST.model_copy(update={"sampler": "langevin", "langevin_levels": 6, "langevin_noise_max": 5.0})
SHORT = TrainOptions(
    width=32,
    n_blocks=1,
    max_steps=40,
    score_steps=40,
    batch_cells=64,
    check_every_steps=20,
    checkpoint_every_steps=20,
)


def test_philox__same_raw_bits():
    keys, counters = chain_keys(3, np.arange(50)), np.arange(50)
    here, there = (
        philox(
            torch.from_numpy(keys).to(device),
            tuple(torch.from_numpy(counters + number).to(device) for number in range(4)),
        )
        for device in (CPU, GPU)
    )
    assert all(torch.equal(mine, theirs.cpu()) for mine, theirs in zip(here, there, strict=True))


def test_keyed_normals__same_draws():
    keys, ranks = chain_keys(3, np.arange(9)), np.arange(9) % 2
    ours = keyed_normals(keys, ranks, n_chains=3, step=5, n_genes=11)
    on_gpu = (torch.from_numpy(values).to(GPU) for values in (keys, ranks))
    theirs = keyed_normals_torch(*on_gpu, n_chains=3, step=5, n_genes=11)
    assert np.allclose(ours, theirs.cpu().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("sample", "options"),
    [(sample_score, FAST), (sample_score, LANGEVIN), (sample_counts, FAST)],
    ids=["preconditioned", "langevin", "counts"],
)
def test_sample__as_on_the_cpu_and_the_same_bytes_for_any_batch_size(spots, model, sample, options):
    here, there = (sample(spots, model, options, device=device) for device in (CPU, GPU))
    # A count is drawn otherwise where rounding moves a draw over its edge: nearly all cells agree, not all.
    apart = np.abs(here.mean - there.mean).max(axis=1) / here.mean.max(axis=1)
    assert np.mean(apart < 1e-3) > 0.9
    assert here.mean.mean() == pytest.approx(there.mean.mean(), rel=1e-3)
    for size in (1, 64, 1024):
        again = sample(spots, model, options, device=GPU, batch_cells=size)
        assert np.array_equal(again.mean, there.mean)


def test_sample_score__a_device_that_is_too_small_is_used_in_halves(spots, model):
    whole = sample_score(spots, model, FAST, device=GPU)
    many = 50
    first = np.r_[0, np.cumsum(np.tile(spots.n_cells, many))].astype(np.int64)
    crowd = replace(
        spots,
        counts=np.tile(spots.counts, (many, 1)),
        first=first,
        types=np.tile(spots.types, many),
        keys=np.tile(spots.keys, many),
    )
    torch.cuda.empty_cache()
    held, (_, total) = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((held + (24 << 20)) / total)
    try:
        halved = sample_score(crowd, model, FAST, device=GPU, batch_cells=1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not failed_spots(halved, crowd).any()
    assert np.array_equal(halved.mean, np.tile(whole.mean, (many, 1)))


def test_cells_at_once__whole_blocks_that_fit():
    size = cells_at_once(GPU, n_genes=2000, n_chains=8)
    assert size % CELLS_PER_BLOCK == 0
    assert size >= CELLS_PER_BLOCK
    assert cells_at_once(GPU, n_genes=10**9, n_chains=8) == CELLS_PER_BLOCK


@pytest.mark.parametrize("name", ["counts", "score"])
@pytest.mark.parametrize("precision", ["off", "bfloat16", "float16"])
def test_fit__learns_as_on_the_cpu_and_resumes_to_the_same_bytes(reference, name, precision):
    data, saved = reference.data(), []
    options = SHORT.model_copy(update={"mixed_precision": precision, "compiled": "off"})
    hooks = Hooks(checkpoint=lambda state: saved.append(pack_state(state)))
    here = fit(OBJECTIVES[name](data, options, GPU), data, options, seed=0, hooks=hooks)
    resumed = fit(OBJECTIVES[name](data, options, GPU), data, options, seed=0, state=unpack_state(saved[0]))
    assert pack_state(resumed) == pack_state(here)
    assert here.best_held_out < unpack_state(saved[0]).best_held_out


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__compiled_and_mixed_by_default(reference, name):
    data, plain = reference.data(), SHORT.model_copy(update={"mixed_precision": "off", "compiled": "off"})
    losses = [
        fit(OBJECTIVES[name](data, options, GPU), data, options, seed=0).best_held_out for options in (SHORT, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
