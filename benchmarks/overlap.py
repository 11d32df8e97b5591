"""Sections of one study at different stages at one time, and the same bytes as stage after stage.

    python -m benchmarks.overlap [--workers 2] [--until identify]

Three simulated sections of 7, 37 and 61 spots, once on workers of our own, where the stages of one framework follow
those of another, and once on a running scheduler, whose workers take whatever there is. The tasks' own times, as noted
in ledger/tasks.jsonl, say which stages of different sections ran at one time. Results become results/overlap.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks import typing_studies as studies

SECTIONS = {"A": 7, "B": 37, "C": 61}


def write_study(folder: Path) -> Path:
    """Return the study file of three simulated sections that share the reference of the first."""
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    lines = ["[study]", 'name = "overlap"']
    for name, n_spots in SECTIONS.items():
        write_study(simulate(SimulationSettings(n_spots=n_spots), seed=n_spots), folder / name)
        lines += ["[[section]]", f'name = "{name}"', f'counts = "{name}/counts.h5ad"', 'platform = "visium"']
        lines += [f'image = "{name}/image.tif"', "pixel_size_um = 0.5", "spot_diameter_um = 55.0"]
    lines += ["[reference]", 'path = "A/reference.h5ad"', 'cell_type = "cell_type"']
    lines += ["[segment]", 'model = "demo"', "model_pixel_size_um = 0.5", "[train]", "max_steps = 200"]
    (folder / "study.toml").write_text("\n".join(lines) + "\n")
    return folder / "study.toml"


def run(study: Path, output: Path, *options: str) -> dict[str, Any]:
    """Return what one run took, the hashes of its results and which stages of two sections overlapped."""
    start = time.perf_counter()
    command = [studies.COMMAND, "run", study, "--output", output, "--memory-limit", "3GiB", "--json", *options]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / "ledger" / "tasks.jsonl").read_text().splitlines()]
    tasks = [line for line in lines if line["event"] == "unit" and line.get("item") in SECTIONS]
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "hashes": json.loads((output / "hashes.json").read_text()),
        "overlaps": overlaps(tasks),
    }


def overlaps(tasks: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds that tasks of different stages of different sections ran at one time."""
    found: dict[str, float] = {}
    for one, other in combinations(sorted(tasks, key=lambda task: task["stage"]), 2):
        if one["stage"] == other["stage"] or one["item"] == other["item"]:
            continue
        ends = [task["started"] + task["seconds"] for task in (one, other)]
        both = min(ends) - max(one["started"], other["started"])
        if both > 0:
            name = f"{one['stage']} of {one['item']} with {other['stage']} of {other['item']}"
            found[name] = round(found.get(name, 0.0) + both, 2)
    return found


def main() -> None:
    """Run the study both ways and compare."""
    from distributed import LocalCluster

    parser = argparse.ArgumentParser("benchmarks.overlap")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--until", default="identify")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        study = write_study(Path(scratch))
        until = ["--until", chosen.until]
        own = run(study, Path(scratch) / "own", *until, "--workers", str(chosen.workers))
        cluster = LocalCluster(n_workers=chosen.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        try:
            attached = run(study, Path(scratch) / "attached", *until, "--scheduler", cluster.scheduler_address)
        finally:
            with contextlib.suppress(TimeoutError):  # a busy machine ends processes late
                cluster.close(timeout=60)
    same = own.pop("hashes") == attached.pop("hashes")
    result = {"workers": chosen.workers, "same_hashes": same, "own_workers": own, "running_scheduler": attached}
    studies.save_result("overlap", f"overlap --workers {chosen.workers} --until {chosen.until}", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
