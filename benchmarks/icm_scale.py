"""Sweeps over one to ten million cells: time, bytes exchanged, memory and labels for 1 to 64 blocks.

    python -m benchmarks.icm_scale [1 4 10] [--blocks 1 4 16 64] [--cells-per-spot 3.6] [--workers 2] [--gibbs 4]

Cells lie around the spots of a square lattice, ten neighbours each, three candidate types per spot, patches of one
mixture. One block is swept in one task; several are swept by `steps.typing_sweeps.sweep_all` on worker processes, a
block read from its file by whichever worker takes it. Results become results/icm_scale.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import typing_studies as studies
from spatialscope_dist.celltypes.multisets import QUANTUM, Candidates, MultisetCache, n_multisets, next_multiset
from spatialscope_dist.celltypes.potts import build_block, updated_spots
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.geometry.blocks import Closure, assign_blocks, sweep_closure
from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import Graph, quotient_graph, radius_graph
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.steps import typing_checkpoints, typing_sweeps
from spatialscope_dist.steps.typing_fit import load, save

MILLION, MIB = 1_000_000, 1 << 20
SLOTS, TYPES, PATCH, PITCH_UM, REACH_UM, STIFFNESS = 3, 9, 24, 45.0, 20.0, 0.6
Clock = Callable[[], float]


@dataclass
class Tissue:
    """Everything the blocks are cut from, and what it cost to make."""

    graph: Graph
    spots: Graph
    n_cells: NDArray[np.int64]
    keys: NDArray[np.int64]
    colours: NDArray[np.int64]
    centres: NDArray[np.float64]
    cache: MultisetCache
    labels: NDArray[np.int16]
    candidates: NDArray[np.int16]
    seconds: dict[str, float] = field(default_factory=dict)


def make_tissue(n_cells: int, per_spot: float) -> Tissue:
    """Return cells on a lattice of spots with noisy energies around a planted composition."""
    rng = np.random.default_rng(n_cells)
    n_spots = int(n_cells / per_spot)
    side = int(np.ceil(np.sqrt(n_spots)))
    sizes = np.ones(n_spots, np.int64) if per_spot == 1 else np.maximum(1, rng.poisson(per_spot, n_spots))
    places = np.stack(np.divmod(np.arange(n_spots), side), axis=1)
    patch = (places // PATCH) @ np.array([side // PATCH + 1, 1])
    mixtures = np.sort(rng.permuted(np.tile(np.arange(TYPES), (patch.max() + 1, 1)), axis=1)[:, :SLOTS], axis=1)
    shares = rng.dirichlet(np.full(SLOTS, 0.5), patch.max() + 1)
    spot = np.repeat(np.arange(n_spots), sizes)
    truth = (rng.random(len(spot))[:, None] > shares[patch[spot]].cumsum(axis=1)[:, :-1]).sum(axis=1)
    reach = PITCH_UM / 2 if per_spot == 1 else REACH_UM
    points = places[spot] * PITCH_UM + rng.uniform(-reach, reach, (len(spot), 2))
    seconds: dict[str, float] = {}
    clock = time.process_time()
    graph = radius_graph(points, mean_degree=IdentifyOptions().n_neighbors)
    seconds["radius_graph"], clock = time.process_time() - clock, time.process_time()
    spots = quotient_graph(graph, spot, n_groups=n_spots)
    seconds["quotient_graph"], clock = time.process_time() - clock, time.process_time()
    keys = spot_keys("A", [f"spot{row}" for row in range(n_spots)])
    colours = greedy_colouring(spots, keys)
    seconds["keys_and_colours"] = time.process_time() - clock
    candidates = mixtures[patch]
    first = np.where(rng.random(len(spot)) < 0.5, truth, rng.integers(0, SLOTS, len(spot)))
    of_cell = candidates[spot].astype(np.int16)
    return Tissue(
        graph=graph,
        spots=spots,
        n_cells=sizes,
        keys=keys,
        colours=colours,
        centres=places * PITCH_UM,
        cache=_energies(sizes, candidates, np.stack([np.bincount(spot, truth == k, n_spots) for k in range(SLOTS)], 1)),
        labels=of_cell[np.arange(len(spot)), first],
        candidates=of_cell,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def _energies(sizes: NDArray[np.int64], types: NDArray[np.int64], planted: NDArray[np.float64]) -> MultisetCache:
    """Return energies that rise with the distance from a noisy reading of the planted composition."""
    rng = np.random.default_rng(1)
    seen = planted + rng.normal(0, 0.7, planted.shape)
    start = np.concatenate([[0], np.cumsum(n_multisets(sizes, np.full(len(sizes), SLOTS)))]).astype(np.int64)
    energy = np.empty(start[-1], np.int64)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        tallies = _tallies(int(size))
        away = sum((seen[rows, k, None] - tallies[None, :, k]) ** 2 for k in range(SLOTS))
        energy[start[rows][:, None] + np.arange(len(tallies))] = np.rint(STIFFNESS * away / QUANTUM)
    return MultisetCache(Candidates(types, np.full(len(sizes), SLOTS)), sizes, start, energy)


def _tallies(size: int) -> NDArray[np.int64]:
    tally, rows = np.array([0] * (SLOTS - 1) + [size]), []
    while True:
        rows.append(tally.copy())
        if not next_multiset(tally, SLOTS):
            return np.array(rows)


def _rows_of(cache: MultisetCache, spots: NDArray[np.int64]) -> MultisetCache:
    lengths = np.diff(cache.start)[spots]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(ends[-1]) + np.repeat(cache.start[spots] - ends[:-1], lengths)
    some = Candidates(cache.candidates.types[spots], cache.candidates.size[spots])
    return MultisetCache(some, cache.n_cells[spots], ends, cache.energy[places])


def write_blocks(tissue: Tissue, task: typing_sweeps.SweepTask) -> dict[str, Any]:
    """Write the files the sweeps read; return what dividing costs."""
    owners = assign_blocks(tissue.centres, tissue.n_cells, n_blocks=task.n_blocks)
    start = np.concatenate([[0], np.cumsum(tissue.n_cells)]).astype(np.int64)
    ring = recomputed = read = 0
    closing = written = 0.0
    for number, path in enumerate(task.blocks):
        clock = time.process_time()
        closure = sweep_closure(tissue.spots, tissue.colours, np.flatnonzero(owners == number))
        closing += time.process_time() - clock
        ring += _ring(tissue.spots, closure)
        recomputed, read = recomputed + len(closure.recomputed), read + len(closure.read)
        clock = time.process_time()
        order = updated_spots(closure, tissue.colours)
        cache = _rows_of(tissue.cache, order)
        known: dict[str, Any] = {"graph": tissue.graph, "cell_start": start, "keys": tissue.keys}
        save(path, **build_block(closure, order, cache, **known)._asdict())
        written += time.process_time() - clock
    graph: dict[str, Any] = {"labels": tissue.labels, "candidates": tissue.candidates, "n_cells": tissue.n_cells}
    graph |= {"owners": owners, "mean_degree": tissue.graph.mean_degree}
    save(task.work / f"graph-{task.n_blocks}.npz", **graph)
    n_spots = len(tissue.n_cells)
    return {
        "ring_share": round(ring / n_spots, 4),
        "recomputed_share": round(recomputed / n_spots, 4),
        "halo_share": round((recomputed + read) / n_spots, 4),
        "closure_cpu_seconds": round(closing, 2),
        "writing_cpu_seconds": round(written, 2),
        "block_mib": round(max(path.stat().st_size for path in task.blocks) / MIB, 1),
    }


def _ring(spots: Graph, closure: Closure) -> int:
    """Return how many spots of others are neighbours of a block's own."""
    mine = np.zeros(spots.n_nodes, bool)
    mine[closure.own] = True
    near = np.zeros(spots.n_nodes, bool)
    near[spots.indices[np.repeat(mine, np.diff(spots.indptr))]] = True
    return int((near & ~mine).sum())


@dataclass
class Rounds:
    """What was exchanged in each round, and what it cost."""

    pool: Pool | None
    costs: list[dict[str, Any]] = field(default_factory=list)

    def run(self, function: Callable[..., Any], calls: list[dict[str, Any]]) -> list[Any]:
        """Run one round on the workers."""
        assert self.pool is not None
        results = self.pool.sweep(function, calls)
        cost = self.pool.take_cost()
        self.costs.append(
            {
                "step": function.__name__,
                "tasks": len(calls),
                "cpu_seconds": cost.cpu_seconds,
                "bytes_out": sum(
                    part.nbytes for call in calls for part in call.values() if isinstance(part, np.ndarray)
                ),
                "bytes_back": _bytes(part for result in results for part in result),
                "peak_mib": round(cost.peak_rss_bytes / MIB),
            }
        )
        return results


def _bytes(parts: Iterable[Any]) -> int:
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


class Watch(threading.Thread):
    """Notes the largest resident memory of this process while it lives."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.going = 0, True

    def run(self) -> None:
        """Look ten times a second."""
        while self.going:
            self.peak = max(self.peak, psutil.Process().memory_info().rss)
            time.sleep(0.1)


def sweep(tissue: Tissue, folder: Path, *, n_blocks: int, pool: Pool, gibbs: int) -> dict[str, Any]:
    """Return what the sweeps of one division cost, and the hash of what they found."""
    folder.mkdir()
    options = IdentifyOptions(gibbs_burn_in=2, gibbs_sweeps=gibbs)
    task = typing_sweeps.SweepTask((), folder, options, seed=0, n_blocks=n_blocks)
    row: dict[str, Any] = {"cells": len(tissue.labels), "spots": len(tissue.n_cells), "blocks": n_blocks}
    row |= write_blocks(tissue, task)
    pool.take_cost()
    if n_blocks == 1:
        found = pool.map(typing_sweeps.sweep_here, {"sweeps": {"task": task}})["sweeps"]
        cost = pool.take_cost()
        row |= {"cpu_seconds": round(cost.cpu_seconds, 1), "worker_peak_mib": round(cost.peak_rss_bytes / MIB)}
    else:
        rounds, watch = Rounds(pool), Watch()
        watch.start()
        before = psutil.Process().memory_info().rss
        found = typing_sweeps.sweep_all(task, rounds.run)
        watch.going = False
        row |= _of_rounds(rounds.costs, n_blocks) | {"driver_growth_mib": round((watch.peak - before) / MIB)}
    stored = load(folder / "labels.npz")
    digest = hashlib.sha256(b"".join(stored[name].tobytes() for name in ("map", "seen", "margin"))).hexdigest()
    return row | {"icm_sweeps": len(found["changes"]), "changes": found["changes"], "labels_sha256": digest}


def _of_rounds(costs: list[dict[str, Any]], n_blocks: int) -> dict[str, Any]:
    icm = [cost for cost in costs if cost["step"] == "descend"]
    drawn = [cost for cost in costs if cost["step"] == "sample"]
    return {
        "icm_cpu_seconds": [round(cost["cpu_seconds"], 2) for cost in icm],
        "icm_tasks": [cost["tasks"] for cost in icm],
        "tasks_skipped_share": round(1 - sum(cost["tasks"] for cost in icm) / (n_blocks * len(icm)), 3),
        "icm_bytes": [cost["bytes_out"] + cost["bytes_back"] for cost in icm],
        "gibbs_cpu_seconds": round(float(np.median([cost["cpu_seconds"] for cost in drawn])), 2),
        "gibbs_bytes": max(cost["bytes_out"] + cost["bytes_back"] for cost in drawn),
        "cpu_seconds": round(sum(cost["cpu_seconds"] for cost in costs), 1),
        "worker_peak_mib": max(cost["peak_mib"] for cost in costs),
    }


def time_in_memory(folder: Path, *, n_cells: int) -> dict[str, float]:
    """Return CPU seconds of each sweep of the one block held in this process, of reading it, and of keeping states."""
    from spatialscope_dist.celltypes.marginals import Samples
    from spatialscope_dist.celltypes.potts import Block, descend_block, sample_block
    from spatialscope_dist.engine.halo import SweepHistory

    clock = time.process_time()
    block = Block(**load(folder / "block-1-0.npz"))
    times: dict[str, Any] = {"read": time.process_time() - clock}
    graph = load(folder / "graph-1.npz", "labels", "mean_degree")
    task = typing_sweeps.SweepTask((), folder, IdentifyOptions(), 0, 1)
    prior, labels = typing_sweeps._prior(task, float(graph["mean_degree"])), graph["labels"]
    descend_block(block, labels, prior)  # compiled before it is timed
    times["icm"], touched, first = [], None, labels.copy()
    while touched is None or touched.any():
        clock = time.process_time()
        swept = descend_block(block, labels, prior, touched)
        times["icm"].append(round(time.process_time() - clock, 3))
        labels[swept.changed] = swept.labels
        touched = np.zeros(len(labels), bool)
        touched[swept.changed] = True
    clock = time.process_time()
    descend_block(block, first, prior, np.ones(len(labels), bool))
    times["icm_without_rests"] = time.process_time() - clock
    clock = time.process_time()
    sample_block(block, labels, prior, sweep=0)
    times["gibbs"] = time.process_time() - clock
    clock = time.process_time()
    typing_checkpoints.keep_descent(folder, SweepHistory(labels, [1], [[(0, 0)]], np.zeros(n_cells, bool)))
    times["keep_descent"], clock = time.process_time() - clock, time.process_time()
    typing_checkpoints.keep_samples(folder, Samples.begin(labels, n_slots=SLOTS))
    times["keep_samples"] = time.process_time() - clock
    return {name: value if isinstance(value, list) else round(value, 3) for name, value in times.items()}


def main() -> None:
    """Measure the sizes asked for, smallest first."""
    parser = argparse.ArgumentParser("benchmarks.icm_scale")
    parser.add_argument("millions", nargs="*", type=float, default=[1, 4, 10])
    parser.add_argument("--blocks", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--cells-per-spot", type=float, default=3.6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gibbs", type=int, default=4)
    parser.add_argument("--name", default="icm_scale")
    chosen = parser.parse_args()
    sizes: list[dict[str, Any]] = []
    for millions in sorted(chosen.millions):
        tissue = make_tissue(int(millions * MILLION), chosen.cells_per_spot)
        pool, rows = Pool(ClusterSettings(chosen.workers, 6 * GIB), Events()), []
        with tempfile.TemporaryDirectory() as scratch:
            for n_blocks in chosen.blocks:
                folder = Path(scratch) / str(n_blocks)
                rows.append(sweep(tissue, folder, n_blocks=n_blocks, pool=pool, gibbs=chosen.gibbs))
                print(json.dumps(rows[-1]), flush=True)
                if n_blocks > 1:
                    shutil.rmtree(folder)
            one = time_in_memory(Path(scratch) / "1", n_cells=len(tissue.labels)) if 1 in chosen.blocks else {}
        pool.close()
        same = len({row["labels_sha256"] for row in rows}) == 1
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        sizes.append({"millions": millions, "making": tissue.seconds, "in_memory": one, "one_hash": same, "rows": rows})
        print(json.dumps({"making": tissue.seconds, "in_memory": one, "one_hash": same, "peak_mib": peak}), flush=True)
        told = {name: getattr(chosen, name) for name in ("cells_per_spot", "workers", "gibbs")}
        studies.save_result(chosen.name, f"icm_scale {chosen.millions}", told | {"sizes": sizes})


if __name__ == "__main__":
    main()
