"""Everything a training run needs to go on after a kill, and its one file; no pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]
_SETS = ("parameters", "average", "first_moment", "second_moment", "best")


@dataclass
class TrainingState:
    """Weights, their average, Adam's moments, the best weights so far, and where the run stands.

    `loss_scaling` is that of half precision: its scale and the steps left out for overflowing; else empty.
    """

    step: int
    parameters: Arrays
    average: Arrays
    first_moment: Arrays
    second_moment: Arrays
    best: Arrays
    best_held_out: float = math.inf
    best_step: int = 0
    checks_without_gain: int = 0
    stopped: bool = False
    train_loss: list[float] = field(default_factory=list)
    loss_scaling: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """Called while training: `row` with step, loss, held_out, seconds; `checkpoint` with the state."""

    row: Callable[[dict[str, float]], None] = lambda row: None
    checkpoint: Callable[[TrainingState], None] = lambda state: None


def initial_state(parameters: Arrays) -> TrainingState:
    """Return the state before the first step, of untrained or given weights."""
    zeros = {name: np.zeros_like(values) for name, values in parameters.items()}
    return TrainingState(0, parameters, dict(parameters), zeros, dict(zeros), dict(parameters))


def in_order(state: TrainingState, names: Sequence[str]) -> TrainingState:
    """Return the state with its arrays in this order of their names.

    Files give them back in any order, another one in every process; gradients travel as one row of numbers.
    """
    parts: dict[str, Any] = {part: {name: getattr(state, part)[name] for name in names} for part in _SETS}
    return replace(state, **parts)


def pack_state(state: TrainingState) -> bytes:
    """Return a checkpoint as safetensors: the arrays, and the rest as metadata, so it is one atomic file."""
    from safetensors.numpy import save

    arrays = {f"{part}/{name}": values for part in _SETS for name, values in getattr(state, part).items()}
    numbers = describe_state(state) | {"train_loss": state.train_loss}
    numbers |= {"loss_scaling": state.loss_scaling} if state.loss_scaling else {}
    content: bytes = save(arrays, metadata={"state": json.dumps(numbers)})
    return content


def describe_state(state: TrainingState) -> dict[str, Any]:
    """Return the numbers of a checkpoint, without its arrays."""
    best = state.best_held_out if math.isfinite(state.best_held_out) else None
    return {
        "step": state.step,
        "best_held_out": best,
        "best_step": state.best_step,
        "checks_without_gain": state.checks_without_gain,
        "stopped": state.stopped,
    }


def unpack_state(content: bytes) -> TrainingState:
    """Return the state of a checkpoint."""
    from safetensors.numpy import load

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    numbers: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    if numbers["best_held_out"] is None:
        numbers["best_held_out"] = math.inf
    arrays = load(content)
    for part in _SETS:
        numbers[part] = {n.removeprefix(f"{part}/"): v for n, v in arrays.items() if n.startswith(f"{part}/")}
    return TrainingState(**numbers)
