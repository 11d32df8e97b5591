from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.expression.objectives import OBJECTIVES
from spatialscope_dist.expression.training import N_SHARDS, Share, fit
from spatialscope_dist.expression.training_state import Hooks, describe_state, in_order, pack_state, unpack_state
from spatialscope_dist.options import TrainOptions

OPTIONS = TrainOptions(
    width=16,
    n_blocks=1,
    max_steps=40,
    score_steps=40,
    batch_cells=64,
    learning_rate=4e-3,
    check_every_steps=40,
    checkpoint_every_steps=20,
)


def train(data, options=OPTIONS, *, name="counts", seed=0, **others):
    return fit(OBJECTIVES[name](data, options, torch.device("cpu")), data, options, seed=seed, **others)


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__resumed_from_a_checkpoint_gives_the_same_bytes(reference, name):
    saved, rows = [], []
    hooks = Hooks(row=rows.append, checkpoint=lambda state: saved.append(pack_state(state)))
    whole = train(reference.data(), name=name, hooks=hooks)
    assert [unpack_state(content).step for content in saved] == [20, 40]
    resumed_rows = []
    hooks = Hooks(row=resumed_rows.append)
    resumed = train(reference.data(), name=name, state=unpack_state(saved[0]), hooks=hooks)
    assert pack_state(resumed) == pack_state(whole) == saved[1]
    without_time = [{key: row[key] for key in ("step", "loss", "held_out")} for row in rows]
    assert [{key: row[key] for key in ("step", "loss", "held_out")} for row in resumed_rows] == without_time[2:]


def test_fit__depends_on_the_seed(reference):
    short = OPTIONS.model_copy(update={"max_steps": 3})
    states = [train(reference.data(), short, seed=seed) for seed in (0, 0, 1)]
    assert pack_state(states[0]) == pack_state(states[1])
    assert pack_state(states[0]) != pack_state(states[2])


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__learns_and_keeps_the_best_average(reference, name):
    rows = []
    more = {"max_steps": 300, "score_steps": 300, "width": 32, "learning_rate": 1.2e-2, "patience_checks": 100}
    state = train(reference.data(), OPTIONS.model_copy(update=more), name=name, hooks=Hooks(row=rows.append))
    assert state.best_held_out == min(row["held_out"] for row in rows)
    assert state.best_held_out < rows[0]["held_out"] - 0.01


def test_fit__stops_when_held_out_cells_no_longer_gain(reference):
    options = OPTIONS.model_copy(update={"max_steps": 400, "learning_rate": 0.6, "patience_checks": 2})
    checkpoints = []
    state = train(reference.data(), options, hooks=Hooks(checkpoint=checkpoints.append))
    assert state.stopped
    assert state.step < 400
    assert checkpoints[-1].stopped
    assert train(reference.data(), options, state=state).step == state.step


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__a_loss_that_is_no_number_stops_with_a_message(reference, name):
    data = reference.data()
    bad = data.profiles.mean_log.copy()
    bad[:, 0] = np.nan
    profiles = type(data.profiles)(**(data.profiles.arrays() | {"mean_log": bad}))
    with pytest.raises(StageFailed, match=r"loss became nan at step 0 .*learning_rate"):
        train(type(data)(data.counts, data.types, data.train, data.held_out, profiles), name=name)


def test_fit__shards_worked_out_apart_give_the_same_bytes(reference):
    """Two processes, each with half of the logical shards, run in step as two threads."""
    whole = train(reference.data(), OPTIONS)
    barrier, box = threading.Barrier(2), {}

    def exchange(shards, gradients):
        box.update(zip(shards, gradients, strict=True))
        barrier.wait()
        everything = [box[shard] for shard in range(N_SHARDS)]
        barrier.wait()
        return everything

    with ThreadPoolExecutor(2) as threads:
        halves = [
            threads.submit(train, reference.data(), OPTIONS, share=Share(shards, exchange))
            for shards in ((0, 1), (2, 3))
        ]
    assert [pack_state(half.result()) for half in halves] == [pack_state(whole)] * 2


def test_fit__the_order_of_a_files_arrays_means_nothing(reference):
    state = train(reference.data(), OPTIONS.model_copy(update={"max_steps": 2}))
    more = OPTIONS.model_copy(update={"max_steps": 5})
    turned = in_order(state, sorted(state.parameters, reverse=True))
    sent = {}
    for name, one in (("as it was", state), ("turned", turned)):
        keep = Share(range(N_SHARDS), lambda shards, own, name=name: sent.setdefault(name, own))
        train(reference.data(), more, state=one, share=keep)
    assert all(np.array_equal(*pair) for pair in zip(*sent.values(), strict=True))


def test_unpack_state__round_trip(reference):
    state = train(reference.data(), OPTIONS.model_copy(update={"max_steps": 2}))
    again = unpack_state(pack_state(state))
    assert describe_state(again) == describe_state(state)
    assert again.train_loss == state.train_loss
    assert all(np.array_equal(again.first_moment[name], values) for name, values in state.first_moment.items())


@pytest.mark.parametrize("name", ["counts", "score"])
def test_fit__a_gradient_that_is_no_number_reaches_no_checkpoint(reference, name):
    """The loss may still be a number when its gradient no longer is: weights that follow it can never recover."""
    saved, options = [], OPTIONS.model_copy(update={"checkpoint_every_steps": 1})

    def broken_at_step_three(shards, gradients):
        if len(saved) == 3:
            gradients[1][7] = np.nan
        return gradients

    hooks, share = Hooks(checkpoint=saved.append), Share(range(N_SHARDS), broken_at_step_three)
    with pytest.raises(StageFailed, match=r"gradient became nan at step 3 .*last checkpoint is kept"):
        train(reference.data(), options, name=name, hooks=hooks, share=share)
    assert [state.step for state in saved] == [1, 2, 3]
    assert all(np.isfinite(values).all() for values in saved[-1].parameters.values())
    assert train(reference.data(), options, name=name, state=saved[-1]).step == 40
