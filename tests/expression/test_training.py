from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.expression.training import Hooks, describe_state, fit, pack_state, unpack_state
from spatialscope_dist.options import TrainOptions

OPTIONS = TrainOptions(
    width=16, n_blocks=1, max_steps=40, batch_cells=32, check_every_steps=10, checkpoint_every_steps=20
)


def test_fit__resumed_from_a_checkpoint_gives_the_same_bytes(reference):
    saved, rows = [], []
    hooks = Hooks(row=rows.append, checkpoint=lambda state: saved.append(pack_state(state)))
    whole = fit(reference.data(), OPTIONS, seed=0, hooks=hooks)
    assert [unpack_state(content).step for content in saved] == [20, 40]
    resumed_rows = []
    resumed = fit(reference.data(), OPTIONS, seed=0, state=unpack_state(saved[0]), hooks=Hooks(row=resumed_rows.append))
    assert pack_state(resumed) == pack_state(whole) == saved[1]
    without_time = [{key: row[key] for key in ("step", "loss", "held_out")} for row in rows]
    assert [{key: row[key] for key in ("step", "loss", "held_out")} for row in resumed_rows] == without_time[2:]


def test_fit__depends_on_the_seed(reference):
    short = OPTIONS.model_copy(update={"max_steps": 3})
    states = [fit(reference.data(), short, seed=seed) for seed in (0, 0, 1)]
    assert pack_state(states[0]) == pack_state(states[1])
    assert pack_state(states[0]) != pack_state(states[2])


def test_fit__learns_and_keeps_the_best_average(reference):
    rows = []
    options = OPTIONS.model_copy(update={"max_steps": 300, "width": 32, "learning_rate": 3e-3, "patience_checks": 100})
    state = fit(reference.data(), options, seed=0, hooks=Hooks(row=rows.append))
    assert state.best_held_out == min(row["held_out"] for row in rows)
    assert state.best_held_out < rows[0]["held_out"] - 0.02


def test_fit__stops_when_held_out_cells_no_longer_gain(reference):
    options = OPTIONS.model_copy(update={"max_steps": 400, "learning_rate": 0.3, "patience_checks": 2})
    checkpoints = []
    state = fit(reference.data(), options, seed=0, hooks=Hooks(checkpoint=checkpoints.append))
    assert state.stopped
    assert state.step < 400
    assert checkpoints[-1].stopped
    assert fit(reference.data(), options, seed=0, state=state).step == state.step


def test_fit__a_loss_that_is_no_number_stops_with_a_message(reference):
    data = reference.data()
    bad = data.profiles.mean_log.copy()
    bad[0, 0] = np.nan
    profiles = type(data.profiles)(**(data.profiles.arrays() | {"mean_log": bad}))
    with pytest.raises(StageFailed, match=r"loss became nan at step 0 .*learning_rate"):
        fit(type(data)(data.counts, data.types, data.train, data.held_out, profiles), OPTIONS, seed=0)


def test_unpack_state__round_trip(reference):
    state = fit(reference.data(), OPTIONS.model_copy(update={"max_steps": 2}), seed=0)
    again = unpack_state(pack_state(state))
    assert describe_state(again) == describe_state(state)
    assert again.train_loss == state.train_loss
    assert all(np.array_equal(again.first_moment[name], values) for name, values in state.first_moment.items())
