from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spatialscope_dist.engine.halo import HaloBlock, SweepHistory, sweep_blocks
from tests.engine.work import add_neighbours


def swept(run: Any, blocks: list[HaloBlock], start: np.ndarray, *, max_sweeps: int) -> SweepHistory:
    history = SweepHistory(start)
    for _ in sweep_blocks(run, blocks, history, max_sweeps=max_sweeps):
        pass
    return history


def run_here(arguments: list[dict[str, Any]]) -> list[Any]:
    return [add_neighbours(**item) for item in arguments]


def blocks_of(n_cells: int, n_blocks: int) -> list[HaloBlock]:
    blocks = []
    for own in np.array_split(np.arange(n_cells), n_blocks):
        left = np.maximum(own - 1, 0)
        blocks.append(HaloBlock(np.concatenate([own, left]), {"own": own.tolist(), "left": left.tolist()}))
    return blocks


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 12])
def test_sweep_blocks__same_history_for_any_division(n_blocks: int) -> None:
    start = np.zeros(12, dtype=np.int64)
    start[0] = 5
    history = swept(run_here, blocks_of(12, n_blocks), start, max_sweeps=50)
    assert history.state.tolist() == [5] * 12
    assert history.changes == [1] * 11 + [0]
    assert history.stable
    assert sum(history.extras[0]) == 10


@pytest.mark.parametrize("n_blocks", [1, 3, 12])
def test_sweep_blocks__goes_on_where_it_stopped_over_other_blocks(n_blocks: int) -> None:
    start = np.zeros(12, dtype=np.int64)
    start[0] = 5
    stopped = swept(run_here, blocks_of(12, 4), start, max_sweeps=5)
    kept = SweepHistory(stopped.state, stopped.changes, stopped.extras, stopped.touched)
    *_, history = sweep_blocks(run_here, blocks_of(12, n_blocks), kept, max_sweeps=50)
    assert history.changes == [1] * 11 + [0]
    assert history.state.tolist() == [5] * 12
    assert list(sweep_blocks(run_here, blocks_of(12, n_blocks), history, max_sweeps=50)) == []


def test_sweep_blocks__blocks_whose_inputs_did_not_change_rest() -> None:
    calls: list[int] = []

    def counted(arguments: list[dict[str, Any]]) -> list[Any]:
        calls.append(len(arguments))
        return run_here(arguments)

    start = np.zeros(12, dtype=np.int64)
    start[0] = 5
    swept(counted, blocks_of(12, 4), start, max_sweeps=50)
    assert calls[0] == 4
    assert max(calls[1:]) <= 2


def test_sweep_blocks__stops_at_the_limit() -> None:
    start = np.zeros(12, dtype=np.int64)
    start[0] = 5
    history = swept(run_here, blocks_of(12, 3), start, max_sweeps=4)
    assert len(history.changes) == 4
    assert not history.stable
