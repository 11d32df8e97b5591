"""Hundreds of sections in one study: what each costs the driver, a rerun, `status`, and one section more.

    python -m benchmarks.sections [25 200] [--workers 2] [--until interact]

Simulated sections of 19 spots with their images, named by one pattern, with one reference and one model. Memory and
CPU time of the driver are those of the process of the command; it holds the scheduler. Results become
results/sections.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import typing_studies as studies
from benchmarks.soak import SETTINGS
from benchmarks.watched import MIB, Watched, watch

N_SPOTS = 19


def add_section(folder: Path, number: int) -> None:
    """Write counts and image of one more section; the reference is that of section 0."""
    from spatialscope_dist.simulate import SimulationSettings, simulate, write_study

    made = folder / "made"
    write_study(simulate(SimulationSettings(n_spots=N_SPOTS), seed=number), made)
    (made / "counts.h5ad").rename(folder / "slides" / f"S{number:04d}.h5ad")
    (made / "image.tif").rename(folder / "he" / f"S{number:04d}.tif")
    if number == 0:
        (made / "reference.h5ad").rename(folder / "reference.h5ad")


def write_study(folder: Path, n_sections: int) -> Path:
    """Return the study file of so many simulated sections."""
    (folder / "slides").mkdir(parents=True)
    (folder / "he").mkdir()
    for number in range(n_sections):
        add_section(folder, number)
    lines = ["[study]", 'name = "sections"', "[[section]]", 'counts = "slides/*.h5ad"', 'image = "he/{name}.tif"']
    lines += ['platform = "visium"', "pixel_size_um = 0.5", "spot_diameter_um = 55.0", "[segment]", 'model = "demo"']
    lines += ["model_pixel_size_um = 0.5", "[reference]", 'path = "reference.h5ad"', 'cell_type = "cell_type"']
    (folder / "study.toml").write_text("\n".join(lines) + "\n")
    return folder / "study.toml"


def ran(study: Path, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a run cost, and its summary."""
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    printed = study.with_name("events.jsonl")
    line = [studies.COMMAND, "run", study, "--memory-limit", "3GiB", "--json", *options, *settings]
    seen = watch([str(part) for part in line], output=printed)
    events = [json.loads(text) for text in printed.read_text().splitlines()]
    committed = sum(event["event"] == "committed" for event in events)
    return {**cost(seen), "committed_items": committed}, events[-1]


def cost(seen: Watched) -> dict[str, Any]:
    """Return time and memory, those of the driver apart."""
    driver = next(iter(seen.cpu.values()))
    workers = sum(seen.cpu.values()) - driver
    about = {"seconds": seen.seconds, "driver_cpu_seconds": driver, "worker_cpu_seconds": workers}
    return {name: round(value, 1) for name, value in about.items()} | {
        "peak_rss_driver_mib": round(seen.driver / MIB),
        "peak_rss_worker_mib": round(seen.peak_worker / MIB),
    }


def measure(n_sections: int, *, workers: int, until: str) -> dict[str, Any]:
    """Return the costs of one study: made, run again, looked at, and run with one section more."""
    with tempfile.TemporaryDirectory() as scratch:
        study = write_study(Path(scratch), n_sections)
        options = ["--workers", str(workers), "--until", until]
        first, summary = ran(study, *options)
        again, _ = ran(study, *options)
        start = time.perf_counter()
        watch([str(studies.COMMAND), "status", str(study), "--json"], output=study.with_name("status.json"))
        status_s = time.perf_counter() - start
        add_section(Path(scratch), n_sections)
        more, _ = ran(study, *options)
    stages = {name: (row["cpu_seconds"], row["done"], row["failed"]) for name, row in summary["stages"].items()}
    return {
        "sections": n_sections,
        "first": first,
        "again": again,
        "status_seconds": round(status_s, 1),
        "one_more": more,
        "cpu_seconds_done_failed": stages,
    }


def main() -> None:
    """Measure the sizes asked for."""
    parser = argparse.ArgumentParser("benchmarks.sections")
    parser.add_argument("sizes", nargs="*", type=int, default=[25, 200])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--until", default="interact")
    chosen = parser.parse_args()
    rows = []
    for size in chosen.sizes:
        rows.append(measure(size, workers=chosen.workers, until=chosen.until))
        print(json.dumps(rows[-1]), flush=True)
        shown = " ".join(map(str, chosen.sizes))
        command = f"sections {shown} --workers {chosen.workers} --until {chosen.until}"
        studies.save_result("sections", command, {"sizes": rows})


if __name__ == "__main__":
    main()
