"""Denoising score matching, eq. (8): deterministic by seed, stopped by held-out cells, resumable to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.expression.device import working_device
from spatialscope_dist.expression.noise import loss_weight
from spatialscope_dist.expression.profiles import ReferenceProfiles
from spatialscope_dist.expression.score_network import NetworkShape, denoise, initial_parameters
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

Arrays = dict[str, NDArray[np.float32]]
_WARM_UP, _LAST_RATE, _CLIP = 100, 0.02, 1.0
_HELD_OUT_ROWS = 1024
_SETS = ("parameters", "average", "first_moment", "second_moment", "best")


@dataclass(frozen=True)
class TrainingData:
    """Reference cells to train on and to hold out.

    Attributes
    ----------
    counts
        (cells, genes), raw counts; library sizes stay as they are.
    types
        (cells,), index of the cell type.
    train, held_out
        row numbers.
    profiles
        statistics of the training cells.
    """

    counts: sp.csr_matrix
    types: NDArray[np.integer]
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    profiles: ReferenceProfiles


@dataclass
class TrainingState:
    """Everything a run needs to go on: weights, their average, Adam's moments, the best weights so far."""

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


@dataclass(frozen=True)
class Hooks:
    """Called while training: `row` with step, loss, held_out, seconds; `checkpoint` with the state."""

    row: Callable[[dict[str, float]], None] = lambda row: None
    checkpoint: Callable[[TrainingState], None] = lambda state: None


def initial_state(shape: NetworkShape, *, seed: int) -> TrainingState:
    """Return the state before the first step."""
    parameters = initial_parameters(shape, seed=seed)
    zeros = {name: np.zeros_like(values) for name, values in parameters.items()}
    return TrainingState(0, parameters, dict(parameters), zeros, dict(zeros), dict(parameters))


def fit(
    data: TrainingData,
    options: TrainOptions,
    *,
    seed: int,
    state: TrainingState | None = None,
    hooks: Hooks | None = None,
) -> TrainingState:
    """Return the state after training; `best` holds the averaged weights with the lowest held-out loss.

    Batch, noise levels and noise of a step depend on (seed, step) only, so a run continued from a checkpoint
    gives the same bytes as one never stopped.

    Parameters
    ----------
    data
        reference cells.
    options
        network and optimiser.
    seed
        of the study.
    state
        to continue from; None: from the start.
    hooks
        called at every check and checkpoint.

    Raises
    ------
    StageFailed
        When the loss is no longer a number.
    """
    hooks = hooks or Hooks()
    shape = NetworkShape(data.counts.shape[1], options.width, options.n_blocks)
    run = _Run(data, options, seed, state or initial_state(shape, seed=seed))
    started = time.perf_counter()
    while run.step < options.max_steps and not run.state.stopped:
        run.advance()
        last = run.step == options.max_steps
        if run.step % options.check_every_steps == 0 or last:
            hooks.row(run.check() | {"seconds": round(time.perf_counter() - started, 3)})
        if run.step % options.checkpoint_every_steps == 0 or last or run.state.stopped:
            hooks.checkpoint(run.snapshot())
    return run.snapshot()


class _Run:
    """Torch side of a training run."""

    def __init__(self, data: TrainingData, options: TrainOptions, seed: int, state: TrainingState) -> None:
        import torch

        self.data, self.options, self.seed, self.state, self.step = data, options, seed, state, state.step
        self.device = working_device()
        self.parameters = {n: self._put(v).requires_grad_() for n, v in state.parameters.items()}
        self.average = {n: self._put(v) for n, v in state.average.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
        )
        self.profiles = self._put(data.profiles.mean_log)
        self.losses = list(state.train_loss)
        if state.step:
            for name, tensor in self.parameters.items():
                self.optimiser.state[tensor] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": self._put(state.first_moment[name]),
                    "exp_avg_sq": self._put(state.second_moment[name]),
                }

    def _put(self, values: NDArray[Any]) -> Tensor:
        """Return a copy of the values as a tensor on the working device."""
        import torch

        return torch.from_numpy(np.array(values)).to(self.device)

    def advance(self) -> None:
        """Take one optimiser step."""
        import torch

        random = generator(self.seed, "train", self.step)
        rows = random.choice(self.data.train, self.options.batch_cells)
        loss = self._loss(self.parameters, rows, random)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StageFailed(_diverged(self.step, self.options, value))
        self.optimiser.param_groups[0]["lr"] = self.options.learning_rate * _rate(self.step, self.options.max_steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), _CLIP, foreach=False)
        self.optimiser.step()
        keep = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                self.average[name].lerp_(tensor, 1 - keep)
        self.losses.append(value)
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

        random = generator(self.seed, "held_out_loss")  # the same cells, levels and noise at every check
        pool = self.data.held_out if len(self.data.held_out) else self.data.train
        rows = random.choice(pool, _HELD_OUT_ROWS)
        losses = []
        with torch.no_grad():
            for part in np.array_split(rows, max(1, len(rows) // 256)):
                losses.append(float(self._loss(self.average, part, random)))
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
        )

    def _loss(self, parameters: Mapping[str, Tensor], rows: NDArray[np.intp], random: np.random.Generator) -> Tensor:

        clean, types = self._cells(rows)  # (rows, genes)
        low, high = math.log(self.options.noise_min), math.log(self.options.noise_max)
        level = self._put(np.exp(random.uniform(low, high, (len(rows), 1))).astype(np.float32))
        noisy = clean + level * self._put(random.standard_normal(clean.shape, dtype=np.float32))
        restored = denoise(parameters, noisy, level=level, types=types, profiles=self.profiles)
        loss: Tensor = (loss_weight(level) * (restored - clean) ** 2).mean()
        return loss

    def _cells(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:

        profiles = self.data.profiles
        counts = self.data.counts[rows].toarray().astype(np.float32)
        clean = (np.log1p(counts) - profiles.mean_log[self.data.types[rows]]) / profiles.scale
        return self._put(clean), self._put(self.data.types[rows].astype(np.int64))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy of a tensor's values in this process's memory."""
    return np.array(tensor.detach().cpu().numpy())


def _rate(step: int, max_steps: int) -> float:
    # Linear warm-up, then a cosine down to 2 % of the learning rate.
    warm = min(1.0, (step + 1) / min(_WARM_UP, max(1, max_steps // 4)))
    return warm * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / max_steps)))


def _diverged(step: int, options: TrainOptions, loss: float) -> str:
    return (
        f"train: the loss became {loss} at step {step} (learning_rate {options.learning_rate}); expected a number. "
        "Lower train.learning_rate or raise train.noise_min; the last checkpoint is kept."
    )


def pack_state(state: TrainingState) -> bytes:
    """Return a checkpoint as safetensors: the arrays, and the rest as metadata, so it is one atomic file."""
    from safetensors.numpy import save

    arrays = {f"{part}/{name}": values for part in _SETS for name, values in getattr(state, part).items()}
    content: bytes = save(
        arrays, metadata={"state": json.dumps(describe_state(state) | {"train_loss": state.train_loss})}
    )
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
