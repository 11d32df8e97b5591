"""Hashes of the labels, however the cells are divided, wherever the blocks run, and whatever fails.

    SPATIALSCOPE_DATA=… python -m benchmarks.typing_invariance [mpoa:section]

Stage `identify` for 1, 4, 16 and 64 blocks on 1, 2 and 4 worker processes and on threads of one process, each without
a fault and, where there are several blocks, with a worker process killed in the middle of a sweep. Hashed are the
three labellings, confidences, margins, proportions and the energy of every sweep.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import typing_studies as studies
from benchmarks.faults import kill_busiest_worker
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.readers.facts import read_facts
from spatialscope_dist.stages import identify
from spatialscope_dist.stages.context import Context
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import load_study

BLOCKS, WORKERS, KILLED_ROUNDS, DELAY_S = (1, 4, 16, 64), (1, 2, 4), (2, 14), 0.05
FEW_SWEEPS = ["identify.gibbs_burn_in=3", "identify.gibbs_sweeps=12"]  # enough to show a difference


class FaultyPool(Pool):
    """A pool whose busiest worker process is killed in the middle of chosen rounds."""

    rounds = 0
    kills = 0

    def sweep(
        self, function: Callable[..., Any], arguments: list[dict[str, Any]], *, framework: str | None = None
    ) -> list[Any]:
        """Run one round, with a kill when its turn has come."""
        self.rounds += 1
        if self.rounds not in KILLED_ROUNDS:
            return super().sweep(function, arguments, framework=framework)
        killer = threading.Timer(DELAY_S, self._kill)
        killer.start()
        results = super().sweep(function, arguments, framework=framework)
        killer.join()
        return results

    def _kill(self) -> None:
        kill_busiest_worker()
        self.kills += 1


@contextmanager
def settings_for(workers: int, *, threads: bool) -> Iterator[ClusterSettings]:
    """Yield settings of worker processes, or of threads in this process behind a scheduler to attach to."""
    if not threads:
        yield ClusterSettings(workers, 2 * GIB)
        return
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=workers, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        yield ClusterSettings(workers, 2 * GIB, scheduler=cluster.scheduler_address)


def hashes(output: Path, section: str) -> dict[str, Any]:
    """Return SHA-256 of everything `identify` found, and how many sweeps it took."""
    cells = pd.read_parquet(output / section / "cells.parquet")
    summary = read_json(output / "summary.json")
    numbers = [cells[name].to_numpy(float) for name in ("confidence", "margin")]
    parts = {
        "labels": "\n".join(cells[list(studies.LABELS)].agg("|".join, axis=1)).encode(),
        "floats": b"".join(part.tobytes() for part in [*numbers, read_array(output / section / "proportions.zarr")]),
        "energy": np.asarray(summary["energy"], float).tobytes(),
    }
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def measure(name: str) -> list[dict[str, Any]]:
    """Return one row per division and fault."""
    file, reference = name.split(":")
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / f"{file}.npz")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        study = studies.write_study(bench, reference, Path(scratch) / "study")
        place = Path(scratch) / "out"
        subprocess.run([studies.COMMAND, "run", study, "--output", place, "--until", "reference"], check=True)
        for threads, workers in [(False, count) for count in WORKERS] + [(True, 2), (True, 4)]:
            with settings_for(workers, threads=threads) as settings:
                for faulty in (False,) if threads else (False, True):
                    pool = (FaultyPool if faulty else Pool)(settings, Events())
                    for blocks in BLOCKS:
                        if faulty and blocks == 1:
                            continue  # one block is swept in one task: nothing is exchanged
                        row = {"blocks": blocks, "workers": workers, "threads": threads}
                        rows.append(row | _run(study, place, pool, blocks=blocks, number=len(rows)))
                        print(json.dumps(rows[-1]), flush=True)
                    pool.close()
    return rows


def _run(file: Path, place: Path, pool: Pool, *, blocks: int, number: int) -> dict[str, Any]:
    study = load_study(file, output=place, settings=[*FEW_SWEEPS, f"identify.n_blocks={blocks}"])
    ledger, section = Ledger(Place(place).ledger), study.sections[0].name
    context = Context(study, Place(place), ledger, pool, Events(), read_facts(study))
    output = place / "work" / "identify" / section / f"run{number}"
    output.mkdir(parents=True)
    if isinstance(pool, FaultyPool):
        pool.rounds = pool.kills = 0
    start = time.perf_counter()
    identify.run(context, section, output)
    seconds = round(time.perf_counter() - start, 1)
    return {"kills": getattr(pool, "kills", 0), "seconds": seconds, **hashes(output, section)}


def main() -> None:
    """Hash the labels of one benchmark for every division."""
    name = sys.argv[1] if len(sys.argv) > 1 else "mpoa:section"
    rows = measure(name)
    distinct = {part: sorted({row[part] for row in rows}) for part in ("labels", "floats", "energy")}
    one = all(len(found) == 1 for found in distinct.values())
    result = {"benchmark": name, "runs": len(rows), "one_hash": one, "distinct": distinct, "rows": rows}
    studies.save_result("typing_invariance", f"typing_invariance {name}", result)
    print("one hash" if one else "hashes differ")


if __name__ == "__main__":
    main()
