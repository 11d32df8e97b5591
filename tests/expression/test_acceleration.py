from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from spatialscope_dist.expression.acceleration import acceleration_for
from spatialscope_dist.expression.objectives import OBJECTIVES
from spatialscope_dist.expression.training import _Run, fit
from spatialscope_dist.expression.training_state import Hooks, initial_state, pack_state, unpack_state
from spatialscope_dist.options import TrainOptions

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPTIONS = TrainOptions(
    width=16,
    n_blocks=1,
    max_steps=12,
    score_steps=12,
    batch_cells=64,
    check_every_steps=24,
    checkpoint_every_steps=6,
    mixed_precision="off",
    compiled="off",
)


def train(data, options, *, name="counts", **others):
    return fit(OBJECTIVES[name](data, options, CPU), data, options, seed=0, **others)


def change(state, other):
    """Return the largest difference of weights, relative to how far training moved them."""
    moved = max(np.abs(state.parameters[name] - values).max() for name, values in state.first_moment.items())
    return max(np.abs(state.parameters[n] - other.parameters[n]).max() for n in state.parameters) / moved


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__auto_changes_no_byte_on_a_cpu(reference, name):
    auto = OPTIONS.model_copy(update={"mixed_precision": "auto", "compiled": "auto"})
    states = [train(reference.data(), options, name=name) for options in (OPTIONS, auto)]
    assert pack_state(states[0]) == pack_state(states[1])


@pytest.mark.parametrize("name", ["counts", "score"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fit__reduced_precision_learns_nearly_the_same(reference, name, precision):
    plain = train(reference.data(), OPTIONS, name=name)
    reduced = train(reference.data(), OPTIONS.model_copy(update={"mixed_precision": precision}), name=name)
    assert 0 < change(plain, reduced) < 0.3
    assert reduced.best_held_out == pytest.approx(plain.best_held_out, rel=0.01)
    assert all(values.dtype == np.float32 for values in reduced.parameters.values())


def test_fit__half_precision_resumed_gives_the_same_bytes(reference):
    saved, options = [], OPTIONS.model_copy(update={"mixed_precision": "float16"})
    whole = train(reference.data(), options, hooks=Hooks(checkpoint=lambda state: saved.append(pack_state(state))))
    assert whole.loss_scaling["scale"] > 1
    assert pack_state(train(reference.data(), options, state=unpack_state(saved[0]))) == pack_state(whole)


def test_advance__a_step_whose_scaled_gradient_overflows_is_left_out(reference):
    options = OPTIONS.model_copy(update={"mixed_precision": "float16"})
    objective = OBJECTIVES["counts"](reference.data(), options, CPU)
    run = _Run(objective, reference.data(), options, 0, initial_state(objective.shape.draw(seed=0)))
    gradients = [run.gradient(shard) for shard in range(4)]
    before, scale = run.snapshot(), run.scaler.get_scale()
    run.advance([np.full_like(gradients[0], np.inf), *gradients[1:]])
    after = run.snapshot()
    assert all(np.array_equal(after.parameters[name], values) for name, values in before.parameters.items())
    assert run.scaler.get_scale() == scale / 2
    assert after.loss_scaling["steps_left_out"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, between graphs
def test_fit__compiled_losses_are_the_same_to_rounding(reference):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none here")
    for name in ("counts", "score"):
        plain = train(reference.data(), OPTIONS, name=name)
        compiled = train(reference.data(), OPTIONS.model_copy(update={"compiled": "on"}), name=name)
        assert change(plain, compiled) < 1e-2


def test_acceleration_for__auto_is_for_gpus_only():
    assert acceleration_for(TrainOptions(), CPU).precision is None
    assert not acceleration_for(TrainOptions(), CPU).compiled
    assert acceleration_for(TrainOptions(), GPU).compiled
    assert acceleration_for(TrainOptions(), GPU).precision in {torch.bfloat16, torch.float16}
    assert acceleration_for(TrainOptions(mixed_precision="off", compiled="off"), GPU).precision is None
