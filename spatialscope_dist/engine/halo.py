"""Bulk-synchronous sweeps over blocks that read a halo and own a core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HaloBlock:
    """One block: the global ids whose state it reads (own, then halo), and its arguments."""

    reads: NDArray[np.int64]
    arguments: dict[str, Any]


@dataclass
class SweepHistory:
    """The state after the last sweep, and what each sweep changed and summed."""

    state: NDArray[Any]
    changes: list[int] = field(default_factory=list)
    extras: list[list[Any]] = field(default_factory=list)

    @property
    def stable(self) -> bool:
        """Whether the last sweep changed nothing."""
        return bool(self.changes) and self.changes[-1] == 0


def sweep_blocks(
    run: Callable[[list[dict[str, Any]]], list[Any]],
    blocks: Sequence[HaloBlock],
    state: NDArray[Any],
    *,
    max_sweeps: int,
) -> SweepHistory:
    """Return the history of sweeps until nothing changes or `max_sweeps` is reached.

    `run` maps a list of arguments to results `(changed global ids, new values, extra)` in order.
    Every block of a sweep sees the state the sweep began with; a block whose inputs did not
    change in the last sweep is not run again, because its output could not change either.
    """
    history = SweepHistory(state.copy())
    last: list[Any] = [None] * len(blocks)
    touched = np.ones(len(state), dtype=bool)
    for sweep in range(max_sweeps):
        active = [number for number, block in enumerate(blocks) if last[number] is None or touched[block.reads].any()]
        calls = [{**blocks[n].arguments, "state": history.state[blocks[n].reads], "sweep": sweep} for n in active]
        for number, result in zip(active, run(calls), strict=True):
            last[number] = result
        touched = np.zeros(len(state), dtype=bool)
        new = history.state.copy()
        for number in active:
            ids, values, _ = last[number]
            new[ids] = values
        touched = new != history.state
        history.state = new
        history.changes.append(int(touched.sum()))
        history.extras.append([result[2] for result in last])
        if history.stable:
            break
    return history
