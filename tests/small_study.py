"""A small simulated study and the command that runs it, for tests of the whole pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("spatialscope"))
QUICK = {
    "train.max_steps": 200,
    "decompose.n_chains": 2,
    "decompose.calibration_spots": 30,
    "interact.n_permutations": 50,
    "report.embedding": "pca",
}


def write_small_study(folder: Path, *, n_spots: int = 19, seed: int = 3) -> Path:
    """Simulate a section into `folder` and return its study file."""
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    write_study(simulate(SimulationSettings(n_spots=n_spots), seed=seed), folder)
    return folder / "study.toml"


def quick_settings(settings: dict[str, Any] | None = None) -> list[str]:
    """Return the options that make a run quick."""
    chosen = {**QUICK, **(settings or {})}
    return [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]


def command(study: Path, output: Path, *extra: str, settings: dict[str, Any] | None = None) -> list[str]:
    """Return the command line of a quick run."""
    options = [*quick_settings(settings), *extra]
    return [COMMAND, "run", str(study), "--output", str(output), "--memory-limit", "3GiB", "--json", *options]


def run(study: Path, output: Path, *extra: str, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Run the study and return its events, the summary last; fails the test when the run fails."""
    done = subprocess.run(
        command(study, output, *extra, settings=settings), capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def hashes(output: Path) -> Any:
    """Return the content hashes of a finished run."""
    return json.loads((output / "hashes.json").read_text())
