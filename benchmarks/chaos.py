"""Ten seeded kills of every distributed stage: a worker, the scheduler, the driver in turn.

    python -m benchmarks.chaos [--seeds N] [--stages NAME …] [--from-seed N]

A small simulated study is run stage by stage without disturbance. Then, for every stage and seed, the study as it was
before that stage is copied, the command is started and one of its processes gets SIGKILL while a unit of the stage
runs (`kills.py`); the same command is run again. The table says what was in flight, what was redone, and whether every
byte is that of the undisturbed run. Scheduler kills use `dask scheduler` and two `dask worker`, since the scheduler of
local workers lives in the driver.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kills import KINDS, WORKERS, Command, Undisturbed, held, kill_once, undisturbed
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
PROGRAM = str(Path(sys.executable).with_name("spatialscope"))
STAGES = ("segment", "identify", "train", "decompose", "interact")
N_SPOTS, STUDY_SEED = 37, 3
SETTINGS = {
    "segment.tile": 512,
    "segment.backend": "torch",
    "identify.batch_spots": 8,
    "train.width": 64,
    "train.max_steps": 60,
    "train.score_steps": 30,
    "train.checkpoint_every_steps": 10,
    "decompose.rows_per_shard": 16,
    "decompose.estimator": "counts",
    "interact.n_permutations": 1000,
}


def command(study: Path, output: Path, stage: str) -> Command:
    """Return the command that runs the study until the stage is done."""
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    line = [PROGRAM, "run", str(study), "--output", str(output), "--until", stage, "--json", *settings]
    return Command([*line, "--workers", str(WORKERS), "--memory-limit", "3GiB"], output, stage)


def run_undisturbed(study: Path, folder: Path) -> dict[str, Undisturbed]:
    """Return what each stage does; the study as it was before STAGE is left in `folder/before-STAGE`."""
    output, expected = folder / "whole", {}
    for stage in STAGES:
        if stage == "segment":
            subprocess.run(command(study, output, "align").line, stdout=subprocess.DEVNULL, check=True)
        elif stage == "identify":
            subprocess.run(command(study, output, "reference").line, stdout=subprocess.DEVNULL, check=True)
        shutil.copytree(output, folder / f"before-{stage}")
        expected[stage] = undisturbed(command(study, output, stage), folder)
    return expected


def trial(study: Path, folder: Path, stage: str, expected: Undisturbed, *, seed: int) -> dict[str, Any]:
    """Return one row of the table."""
    kind, place = KINDS[seed % len(KINDS)], folder / f"{stage}-{seed}"
    shutil.copytree(folder / f"before-{stage}", place / "out")
    outcome = kill_once(kind, command(study, place / "out", stage), expected, seed=seed, folder=place)
    shutil.rmtree(place)
    units = len(expected.unit_seconds)
    return {"stage": stage, "kind": kind, "seed": seed, "units": units, **asdict(outcome), "held": held(kind, outcome)}


def main() -> None:
    """Run the trials and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--from-seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "chaos.json")
    given = parser.parse_args()
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(simulate(SimulationSettings(n_spots=N_SPOTS), seed=STUDY_SEED), folder / "in")
        study, start = folder / "in" / "study.toml", time.perf_counter()
        expected = run_undisturbed(study, folder)
        whole = round(time.perf_counter() - start, 1)
        for stage in given.stages:
            for seed in range(given.from_seed, given.from_seed + given.seeds):
                rows.append(trial(study, folder, stage, expected[stage], seed=seed))
                print(json.dumps(rows[-1]), flush=True)
                given.results.write_text(json.dumps(document(rows, whole), indent=1) + "\n")


def document(rows: list[dict[str, Any]], whole: float) -> dict[str, Any]:
    """Return the table with what it was made by."""
    return {
        **provenance("chaos"),
        "undisturbed_seconds": whole,
        "kills": len(rows),
        "held": sum(row["held"] for row in rows),
        "equal": sum(row["equal"] for row in rows),
        "redone": sum(row["redone"] for row in rows),
        "in_flight": sum(row["in_flight"] for row in rows),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
