"""Bulk-synchronous sweeps over blocks that read a halo and own a core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """The state after the last sweep, what each sweep changed, and what the blocks that ran in it said.

    `touched` marks the ids that the last sweep changed; None before the first.
    """

    state: NDArray[Any]
    changes: list[int] = field(default_factory=list)
    extras: list[list[Any]] = field(default_factory=list)
    touched: NDArray[np.bool_] | None = None

    @property
    def stable(self) -> bool:
        """Whether the last sweep changed nothing."""
        return bool(self.changes) and self.changes[-1] == 0


def sweep_blocks(
    run: Callable[[list[dict[str, Any]]], list[Any]],
    blocks: Sequence[HaloBlock],
    history: SweepHistory,
    *,
    max_sweeps: int,
) -> Iterator[SweepHistory]:
    """Yield the history, grown by one sweep each time, until nothing changes or there are `max_sweeps`.

    `run` maps a list of arguments to results `(changed global ids, new values, extra)` in order;
    added to a block's own arguments are `state`, what it reads, and `touched`, which of that the last
    sweep changed, None in the first. Every block of a sweep sees the state the sweep began with; a
    block whose inputs did not change in the last sweep rests, because its output could not change
    either. A history that was kept goes on as if it had never stopped, over whatever blocks.
    """
    while len(history.changes) < max_sweeps and not history.stable:
        touched = history.touched
        active = [block for block in blocks if touched is None or touched[block.reads].any()]
        results = run([_call(block, history.state, touched) for block in active])
        new = history.state.copy()
        for ids, values, _ in results:
            new[ids] = values
        history.touched = new != history.state
        history.state = new
        history.changes.append(int(history.touched.sum()))
        history.extras.append([extra for _, _, extra in results])
        yield history


def _call(block: HaloBlock, state: NDArray[Any], touched: NDArray[np.bool_] | None) -> dict[str, Any]:
    seen = {"state": state[block.reads], "touched": None if touched is None else touched[block.reads]}
    return {**block.arguments, **seen}
