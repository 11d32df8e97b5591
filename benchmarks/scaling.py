"""What the engine itself costs, how it scales while its tasks wait, and a run on data larger than all workers' memory.

    python -m benchmarks.scaling [tasks] [weak] [larger_than_memory]

`tasks`: CPU milliseconds of scheduler, driver and worker for each of many tasks that do nothing, through the engine's
own bounded fan-out; scheduler and worker are processes of their own. `weak`: the same number of units per worker for 1,
2, 4 and 8 workers, each unit a wait instead of work (simulated latency: a core is not needed), so that what is left is
the engine's overhead; the workers are warm before time is taken. `larger_than_memory`: the command `segment-image` on a
slide whose pixels are three times the memory of its workers together (classical nuclei: the network plays no part).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.kills import attached
from benchmarks.provenance import provenance
from benchmarks.watched import MIB, watch
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("spatialscope")
N_TASKS, THREADS = 20_000, (1, 16)
UNITS_PER_WORKER, WAIT_S, WORKERS = 16, 2.0, (1, 2, 4, 8)
EDGE_PX, TILE_PX, TISSUE_TILES = 34_304, 512, 4  # edge of the tissue, in tiles
SLIDE_WORKERS, SLIDE_LIMIT_MIB = 2, 512


def nothing() -> None:
    """Do nothing (worker)."""


def wait(seconds: float) -> None:
    """Wait as for a GPU or a slow disk (worker)."""
    time.sleep(seconds)


def cost_of_tasks() -> list[dict[str, Any]]:
    """Return the CPU time of one task in each process, and how the scheduler's memory grows, for few and many slots."""
    return [cost_of_a_task(threads, N_TASKS) for threads in THREADS]


def cost_of_a_task(threads: int, n_tasks: int) -> dict[str, Any]:
    """Return what empty tasks cost on two workers of so many threads."""
    with tempfile.TemporaryDirectory() as folder, attached(Path(folder) / "c", workers=2, threads=threads) as cluster:
        pool = Pool(ClusterSettings(2, GIB, scheduler=str(cluster.file)), Events())
        pool.map(nothing, {f"warm{number}": {} for number in range(200)})
        processes = {
            "scheduler": [psutil.Process(cluster.process.pid)],
            "workers": [psutil.Process(worker.pid) for worker in cluster.workers],
            "driver": [psutil.Process()],
        }
        before, start = {name: _cpu(them) for name, them in processes.items()}, time.perf_counter()
        memory = processes["scheduler"][0].memory_info().rss
        pool.map(nothing, {f"u{number}": {} for number in range(n_tasks)})
        seconds = time.perf_counter() - start
        used = {name: 1000 * (_cpu(them) - before[name]) / n_tasks for name, them in processes.items()}
        growth = (processes["scheduler"][0].memory_info().rss - memory) / n_tasks
        pool.close()
    return {
        "tasks": n_tasks,
        "slots": 2 * threads,
        **{f"{name}_cpu_ms_per_task": round(value, 3) for name, value in used.items()},
        "scheduler_bytes_per_finished_task": round(growth, 1),
        "wall_seconds": round(seconds, 1),
    }


def _cpu(processes: list[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def weak_scaling() -> list[dict[str, Any]]:
    """Return the efficiency for each number of workers: seconds of waiting over seconds taken."""
    rows = []
    for workers in WORKERS:
        pool = Pool(ClusterSettings(workers, GIB), Events())
        try:
            pool.map(wait, {f"warm{number}": {"seconds": 0.2} for number in range(4 * workers)})
            start = time.perf_counter()
            pool.map(wait, {f"u{number}": {"seconds": WAIT_S} for number in range(UNITS_PER_WORKER * workers)})
            seconds = time.perf_counter() - start
        finally:
            pool.close()
        ideal = UNITS_PER_WORKER * WAIT_S
        rows.append({"workers": workers, "seconds": round(seconds, 2), "efficiency": round(ideal / seconds, 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def larger_than_memory() -> dict[str, Any]:
    """Return what `segment-image` needs on a slide of three times its workers' memory, on mostly glass."""
    limit = SLIDE_WORKERS * SLIDE_LIMIT_MIB * MIB
    with tempfile.TemporaryDirectory() as name:
        slide, labels = Path(name) / "slide.tif", Path(name) / "labels.tif"
        write_slide(slide)
        options = ["--model", "watershed", "--pixel-size-um", "0.5", "--set", "segment.model_pixel_size_um=0.5"]
        options += ["--set", "segment.normalise_over=tissue"]  # of which there is far less than one percent
        cluster = ["--workers", str(SLIDE_WORKERS), "--memory-limit", f"{SLIDE_LIMIT_MIB}MiB"]
        seen = watch([PROGRAM, "segment-image", slide, labels, *options, *cluster])
    pixels = 3 * EDGE_PX**2
    return {
        "edge_px": EDGE_PX,
        "data_gib": round(pixels / GIB, 2),
        "memory_limit_of_all_workers_gib": round(limit / GIB, 2),
        "data_over_memory": round(pixels / limit, 2),
        **seen.summary(),
    }


def write_slide(path: Path) -> None:
    """Write a tiled slide: glass, and in its middle some tissue with nuclei."""
    import tifffile
    from imagecodecs import jpeg8_encode

    from spatialscope_dist.simulate import SimulationSettings, simulate

    shape = (TILE_PX, TILE_PX)
    drawn = np.moveaxis(simulate(SimulationSettings(n_spots=37), seed=4).image, 0, 2)
    low = [(length - TILE_PX) // 2 for length in drawn.shape[:2]]
    tissue = np.ascontiguousarray(drawn[low[0] : low[0] + TILE_PX, low[1] : low[1] + TILE_PX])
    glass = np.full((*shape, 3), 243, np.uint8)
    encoded = {"tissue": jpeg8_encode(tissue, level=90), "glass": jpeg8_encode(glass, level=90)}
    across = EDGE_PX // TILE_PX
    middle = range((across - TISSUE_TILES) // 2, (across + TISSUE_TILES) // 2)

    def tiles() -> Iterator[bytes]:
        for row, column in itertools.product(range(across), repeat=2):
            yield encoded["tissue" if row in middle and column in middle else "glass"]

    about = {"shape": (EDGE_PX, EDGE_PX, 3), "dtype": np.uint8, "photometric": "rgb", "tile": shape}
    tifffile.imwrite(path, tiles(), **about, compression="jpeg", bigtiff=True)


def document(results: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """Return the results with what they were made by."""
    return provenance(" ".join(["scaling", *given])) | results


def main() -> None:
    """Run the named parts, all of them when none is named, and keep what was measured of the others."""
    parts = {"tasks": cost_of_tasks, "weak": weak_scaling, "larger_than_memory": larger_than_memory}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(parts))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scaling.json")
    given = parser.parse_args()
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    for name in given.parts:
        kept[name] = document({"measured": parts[name]()}, [name])
        print(name, json.dumps(kept[name]["measured"]), flush=True)
        given.results.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
