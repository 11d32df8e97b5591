"""What a training step costs in one process and in several together: gradients, their swap, and the optimiser.

`python -m benchmarks.training_processes`: the count denoiser of 500 genes, 256 cells a step, on synthetic counts.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.provenance import provenance
from spatialscope_dist.expression.objectives import OBJECTIVES, TrainingData
from spatialscope_dist.expression.process_exchange import Meeting, joined
from spatialscope_dist.expression.profiles import reference_profiles, split_cells
from spatialscope_dist.expression.residual_network import settle_torch
from spatialscope_dist.expression.training import fit
from spatialscope_dist.options import TrainOptions

HERE = Path(__file__).parent
CELLS, GENES, TYPES, STEPS = 4000, 500, 20, 60
OPTIONS = TrainOptions(max_steps=STEPS, check_every_steps=10_000, checkpoint_every_steps=10_000)


def main() -> None:
    """Measure and write results/training_processes.json."""
    context, rows = multiprocessing.get_context("spawn"), []
    for n_processes in (1, 2):
        answers, folder = context.Queue(), Path(tempfile.mkdtemp())
        jobs = [context.Process(target=work, args=(folder, rank, n_processes, answers)) for rank in range(n_processes)]
        for job in jobs:
            job.start()
        found = [answers.get() for _ in jobs]
        for job in jobs:
            job.join()
        mean = {key: round(float(np.mean([one[key] for one in found])), 2) for key in found[0]}
        rows.append({"processes": n_processes} | mean)
        print(rows[-1], flush=True)
    results = {
        **provenance("training_processes"),
        "times": "CPU milliseconds of each process",
        "gradient_bytes_of_a_step": 4 * 4 * (OBJECTIVES["counts"](data(), OPTIONS, None).shape.n_parameters() + 1),
        "per_step": rows,
    }
    (HERE / "results" / "training_processes.json").write_text(json.dumps(results, indent=1) + "\n")


def data() -> TrainingData:
    """Return synthetic counts of cells of several types."""
    random = np.random.default_rng(0)
    means, types = random.gamma(0.5, 1.5, (TYPES, GENES)), random.integers(0, TYPES, CELLS)
    counts = sp.csr_matrix(random.poisson(means[types]))
    train, held_out = split_cells(types, share=0.1, seed=0)
    profiles = reference_profiles(counts, types, n_types=TYPES, rows=train)
    return TrainingData(counts, types, train, held_out, profiles)


def work(folder: Path, rank: int, n_processes: int, answers: Any) -> None:
    """Train, and report milliseconds per step: of CPU and clock in all, and within the swap of gradients."""
    import torch

    settle_torch()
    known, spent = data(), {"cpu": 0.0, "clock": 0.0}
    objective = OBJECTIVES["counts"](known, OPTIONS, torch.device("cpu"))
    with joined(Meeting(folder, rank, n_processes), "counts") as share:
        timed = replace(share, exchange=timing(share.exchange, spent))
        cpu, clock = time.process_time(), time.perf_counter()
        fit(objective, known, OPTIONS, seed=0, share=timed)
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    parts = {"cpu_ms": cpu, "clock_ms": clock, "swap_cpu_ms": spent["cpu"], "swap_clock_ms": spent["clock"]}
    answers.put({name: 1e3 * seconds / STEPS for name, seconds in parts.items()})


def timing(exchange: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Return the same exchange that adds up what it takes."""

    def timed(shards: Any, gradients: Any) -> Any:
        cpu, clock = time.process_time(), time.perf_counter()
        done = exchange(shards, gradients)
        spent["cpu"] += time.process_time() - cpu
        spent["clock"] += time.perf_counter() - clock
        return done

    return timed


if __name__ == "__main__":
    sys.exit(main())
