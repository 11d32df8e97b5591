"""Memory of driver, scheduler and worker while the main job runs over and over in the same three processes.

    python -m benchmarks.soak [--minutes M]

A small simulated study goes from raw input to report, into a new folder each time, on one attached scheduler with one
worker of one thread; the driver is this process, which calls what `spatialscope run` calls. After every run, resident
memory, open files and threads of the three processes are noted. The slope is Theil and Sen's (the median of the slopes
between all pairs of runs) over the second half of the runs: caches fill in the first. Scheduler and worker have the
settings `spatialscope_dist.engine.environment` prints for those that stand by themselves.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.kills import Attached, attached
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
MIB = 1 << 20
N_SPOTS, STUDY_SEED = 19, 3
SETTINGS = {
    "segment.backend": "torch",
    "segment.tile": 512,
    "identify.batch_spots": 8,
    "train.width": 64,
    "train.max_steps": 30,
    "train.score_steps": 20,
    "decompose.rows_per_shard": 16,
    "decompose.estimator": "counts",
    "interact.n_permutations": 200,
}


def runs(study: Path, output: Path, cluster: Attached) -> Iterator[dict[str, float]]:
    """Run the study for ever, each time from the start; yield what the processes hold after each run."""
    from spatialscope_dist import pipeline
    from spatialscope_dist.engine.cluster import ClusterSettings
    from spatialscope_dist.engine.events import Events
    from spatialscope_dist.study import load_study

    limits = ClusterSettings.of_this_machine(workers=1, memory_limit="3GiB", scheduler=str(cluster.file))
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    processes = {"driver": os.getpid(), "scheduler": cluster.process.pid, "worker": cluster.workers[0].pid}
    first = None
    while True:
        shutil.rmtree(output, ignore_errors=True)
        start = time.perf_counter()
        summary = pipeline.run(load_study(study, output=output, settings=settings), limits, Events())
        assert summary.report is not None
        hashes = (output / "hashes.json").read_text()
        first = first or hashes
        assert hashes == first, "another run gave other results"
        yield {"seconds": round(time.perf_counter() - start, 1), **held(processes)}


def held(processes: dict[str, int]) -> dict[str, float]:
    """Return resident MiB, open files and threads of the processes."""
    gc.collect()
    found: dict[str, float] = {}
    for name, number in processes.items():
        process = psutil.Process(number)
        found[f"{name}_mib"] = round(process.memory_info().rss / MIB, 2)
        found[f"{name}_files"], found[f"{name}_threads"] = process.num_fds(), process.num_threads()
    return found


def slope(values: list[float]) -> float:
    """Return the median of the slopes between all pairs of values, per run."""
    return median((b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2))


def document(rows: list[dict[str, float]], minutes: float) -> dict[str, Any]:
    """Return what was seen, and how memory, open files and threads grow over the second half of the runs."""
    half = rows[len(rows) // 2 :]
    growth = {name: round(slope([row[name] for row in half]), 4) for name in rows[0]} if len(half) > 1 else {}
    return {
        **provenance("soak"),
        "minutes": round(minutes, 1),
        "runs": len(rows),
        "growth_per_run_second_half": growth,
        "rows": rows,
    }


def main() -> None:
    """Run for so long and write what was seen after every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=32.0)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "soak.json")
    given = parser.parse_args()
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    with tempfile.TemporaryDirectory() as name, attached(Path(name) / "cluster", workers=1) as cluster:
        write_study(simulate(SimulationSettings(n_spots=N_SPOTS), seed=STUDY_SEED), Path(name) / "in")
        rows, start = [], time.monotonic()
        for row in runs(Path(name) / "in" / "study.toml", Path(name) / "out", cluster):
            minutes = (time.monotonic() - start) / 60
            rows.append({"minutes": round(minutes, 1), **row})
            print(json.dumps(rows[-1]), flush=True)
            given.results.write_text(json.dumps(document(rows, minutes), indent=1) + "\n")
            if minutes > given.minutes:
                return


if __name__ == "__main__":
    main()
