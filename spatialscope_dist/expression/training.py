"""Training of a network: deterministic by seed, stopped by held-out cells, resumable to the bit, divisible.

A batch is made of a fixed number of logical shards. Each shard's cells and noise depend on (seed, objective, step,
shard) only, and the shards' gradients are added up in order of shard, so the weights do not depend on how many
processes worked them out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.expression.acceleration import acceleration_for
from spatialscope_dist.expression.device import working_device
from spatialscope_dist.expression.objectives import Objective, TrainingData, put
from spatialscope_dist.expression.training_state import Hooks, TrainingState, in_order, initial_state
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

N_SHARDS = 4
_WARM_UP, _LAST_RATE, _CLIP = 100, 0.02, 1.0
_HELD_OUT_ROWS, _HELD_OUT_PART = 1024, 256
_FEW_CELLS = 2000

Gradients = list[NDArray[np.float32]]  # of the logical shards, (shards,) of (weights + 1,): last the loss
Exchange = Callable[[Sequence[int], Gradients], Gradients]


def own_all(shards: Sequence[int], gradients: Gradients) -> Gradients:
    """Return the gradients of all shards when one process has them all."""
    return gradients


@dataclass(frozen=True)
class Share:
    """The logical shards this process works out, and how it gets the gradients of all of them."""

    shards: Sequence[int] = tuple(range(N_SHARDS))
    exchange: Exchange = own_all


def fit(
    objective: Objective,
    data: TrainingData,
    options: TrainOptions,
    *,
    seed: int,
    state: TrainingState | None = None,
    hooks: Hooks | None = None,
    share: Share | None = None,
) -> TrainingState:
    """Return the state after training; `best` holds the averaged weights with the lowest held-out loss.

    A run continued from a checkpoint gives the same bytes as one never stopped.

    Parameters
    ----------
    objective
        network and loss.
    data
        reference cells.
    options
        of the optimiser.
    seed
        of the study.
    state
        to continue from; None: from the start.
    hooks
        called at every check and checkpoint.
    share
        what this process works out of every batch; None: all.

    Raises
    ------
    StageFailed
        When the loss is no longer a number.
    """
    hooks, share = hooks or Hooks(), share or Share()
    untrained = objective.shape.draw(seed=seed)
    state = in_order(state, list(untrained)) if state else initial_state(untrained)
    run = _Run(objective, data, options, seed, state)
    started = time.perf_counter()
    while run.step < objective.max_steps and not run.state.stopped:
        run.advance(share.exchange(share.shards, [run.gradient(shard) for shard in share.shards]))
        last = run.step == objective.max_steps
        if run.step % run.pace.check_every_steps == 0 or last:
            hooks.row(run.check() | {"seconds": round(time.perf_counter() - started, 3)})
        if run.step % options.checkpoint_every_steps == 0 or last or run.state.stopped:
            hooks.checkpoint(run.snapshot())
    return run.snapshot()


@dataclass(frozen=True)
class Pace:
    """Settings of the optimiser that depend on the number of training cells."""

    batch_cells: int
    learning_rate: float
    weight_decay: float
    check_every_steps: int


def pace_for(n_cells: int, options: TrainOptions) -> Pace:
    """Return the optimiser's settings; small references overfit in few steps, so theirs are smaller and watched."""
    if n_cells >= _FEW_CELLS:
        return Pace(options.batch_cells, options.learning_rate, options.weight_decay, options.check_every_steps)
    checks = max(1, options.check_every_steps // 4)
    return Pace(max(1, options.batch_cells // 2), options.learning_rate / 4, 10 * options.weight_decay, checks)


class _Run:
    """Torch side of a training run."""

    def __init__(
        self, objective: Objective, data: TrainingData, options: TrainOptions, seed: int, state: TrainingState
    ) -> None:
        import torch

        self.objective, self.data, self.options, self.seed = objective, data, options, seed
        self.state, self.step, self.losses = state, state.step, list(state.train_loss)
        device = working_device()
        self.parameters = {n: put(v, device).requires_grad_() for n, v in state.parameters.items()}
        self.average = {n: put(v, device) for n, v in state.average.items()}
        self.acceleration = acceleration_for(options, device)
        self.loss, self.scaler = self.acceleration.faster(objective.loss), self.acceleration.scaler()
        self.pace = pace_for(len(data.train), options)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=self.pace.learning_rate, weight_decay=self.pace.weight_decay, foreach=False
        )
        if state.loss_scaling:
            self.scaler.load_state_dict(state.loss_scaling)
        taken = state.step - state.loss_scaling.get("steps_left_out", 0)
        for name, tensor in self.parameters.items():
            self.optimiser.state[tensor] = {
                "step": torch.tensor(float(taken)),
                "exp_avg": put(state.first_moment[name], device),
                "exp_avg_sq": put(state.second_moment[name], device),
            }

    def gradient(self, shard: int) -> NDArray[np.float32]:
        """Return the gradient of a logical shard's loss, (weights + 1,), and the loss itself at the end."""
        import torch

        random = generator(self.seed, "train", self.objective.name, self.step, shard)
        rows = random.choice(self.data.train, max(1, self.pace.batch_cells // N_SHARDS))
        with self.acceleration.autocast():
            loss = self.loss(self.parameters, self.objective.batch(rows, random))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StageFailed(_diverged(self.step, self.options, "loss", value))
        gradients = torch.autograd.grad(self.scaler.scale(loss), list(self.parameters.values()), materialize_grads=True)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.detach().reshape(1)])
        return _array(flat)

    def advance(self, gradients: Gradients) -> None:
        """Take one optimiser step with the gradients of all logical shards, in order."""
        import torch

        total = gradients[0].copy()
        for gradient in gradients[1:]:
            total += gradient
        total /= len(gradients)
        place = 0
        for tensor in self.parameters.values():
            size = tensor.numel()
            tensor.grad = put(total[place : place + size].reshape(tensor.shape), tensor.device)
            place += size
        self.optimiser.param_groups[0]["lr"] = self.pace.learning_rate * _rate(self.step, self.objective.max_steps)
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), _CLIP, foreach=False))
        if not (
            math.isfinite(norm) or self.scaler.is_enabled()
        ):  # scaled gradients may overflow: that step is left out
            raise StageFailed(_diverged(self.step, self.options, "gradient", norm))
        self.scaler.step(self.optimiser)
        self.scaler.update()
        keep = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                self.average[name].lerp_(tensor, 1 - keep)
        self.losses.append(float(total[-1]))
        self.step += 1

    def check(self) -> dict[str, float]:
        """Return the losses of this check and note whether held-out cells still gain."""
        held_out = self.held_out_loss()
        row = {"step": self.step, "loss": float(np.mean(self.losses)), "held_out": held_out}
        self.losses = []
        state = self.state
        if held_out < state.best_held_out:
            best = {name: _array(tensor) for name, tensor in self.average.items()}
            self.state = replace(state, best=best, best_held_out=held_out, best_step=self.step, checks_without_gain=0)
        else:
            without = state.checks_without_gain + 1
            self.state = replace(state, checks_without_gain=without, stopped=without >= self.options.patience_checks)
        return row

    def held_out_loss(self) -> float:
        """Return the loss of the averaged weights on held-out cells (training cells when none are held out)."""
        import torch

        random = generator(self.seed, "held_out_loss", self.objective.name)  # the same draws at every check
        pool = self.data.held_out if len(self.data.held_out) else self.data.train
        rows = random.choice(pool, _HELD_OUT_ROWS)
        losses = []
        with torch.no_grad():
            for part in np.array_split(rows, max(1, len(rows) // _HELD_OUT_PART)):
                losses.append(float(self.objective.loss(self.average, self.objective.batch(part, random))))
        return float(np.mean(losses))

    def snapshot(self) -> TrainingState:
        """Return the whole state as NumPy arrays."""
        moments = [self.optimiser.state[tensor] for tensor in self.parameters.values()]
        names = list(self.parameters)
        return replace(
            self.state,
            step=self.step,
            parameters={name: _array(tensor) for name, tensor in self.parameters.items()},
            average={name: _array(tensor) for name, tensor in self.average.items()},
            first_moment={n: _array(m["exp_avg"]) for n, m in zip(names, moments, strict=True)},
            second_moment={n: _array(m["exp_avg_sq"]) for n, m in zip(names, moments, strict=True)},
            train_loss=list(self.losses),
            loss_scaling=self._loss_scaling(int(moments[0]["step"])),
        )

    def _loss_scaling(self, steps_taken: int) -> dict[str, float]:
        if not self.scaler.is_enabled():
            return {}
        return self.scaler.state_dict() | {"steps_left_out": self.step - steps_taken}


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy of a tensor's values in this process's memory."""
    return np.array(tensor.detach().cpu().numpy())


def _rate(step: int, max_steps: int) -> float:
    # Linear warm-up, then a cosine down to 2 % of the learning rate.
    warm = min(1.0, (step + 1) / min(_WARM_UP, max(1, max_steps // 4)))
    return warm * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / max_steps)))


def _diverged(step: int, options: TrainOptions, what: str, value: float) -> str:
    return (
        f"train: the {what} became {value} at step {step} (learning_rate {options.learning_rate}); expected a number. "
        "Lower train.learning_rate or raise train.noise_min; the last checkpoint is kept."
    )
