"""Worker steps of `identify` over all cells of an item: graph, blocks, sweeps, margins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.engine.halo import HaloBlock, SweepHistory, sweep_blocks
from spatialscope_dist.location import local_copy, located
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.randomness import key_of, spot_keys
from spatialscope_dist.steps.typing_checkpoints import keep_descent, keep_samples, read_descent, read_samples
from spatialscope_dist.steps.typing_fit import Arrays, SectionTask, batches, load, save
from spatialscope_dist.store.arrays import load_npy
from spatialscope_dist.store.frames import read_frame

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.potts import Block
    from spatialscope_dist.celltypes.spot_updates import Prior
    from spatialscope_dist.geometry.neighbours import Graph

LABEL_BYTES = np.dtype(np.int16).itemsize
Runner = Callable[[Callable[..., Any], list[dict[str, Any]]], list[Any]]


@dataclass(frozen=True)
class SweepTask:
    """What a worker needs to know of the sweeps of an item; paths, not data."""

    sections: tuple[SectionTask, ...]
    work: Path
    options: IdentifyOptions
    seed: int
    n_blocks: int

    @property
    def blocks(self) -> list[Path]:
        """Files of the blocks."""
        return [self.work / f"block-{self.n_blocks}-{number}.npz" for number in range(self.n_blocks)]

    @property
    def field(self) -> Path:
        """File with the energy of each candidate of every cell by its nucleus alone; there only where that is used."""
        return self.work / "field.npy"


def connect_cells(task: SweepTask) -> dict[str, Any]:
    """Write neighbours, colours, blocks, first labels and candidates of all cells (worker)."""
    from spatialscope_dist.geometry.blocks import assign_blocks
    from spatialscope_dist.geometry.colouring import greedy_colouring
    from spatialscope_dist.geometry.neighbours import quotient_graph, radius_graph

    points, n_cells, keys = _places(task)
    graph = radius_graph(points, mean_degree=task.options.n_neighbors)
    spot = np.repeat(np.arange(len(n_cells)), n_cells)
    spots = quotient_graph(graph, spot, n_groups=len(n_cells))
    colours = greedy_colouring(spots, keys)
    owners = assign_blocks(_spot_centres(points, spot, len(n_cells)), n_cells, n_blocks=task.n_blocks)
    caches = [load(path, "types", "slots") for path, _, _ in _cache_files(task)]
    slots = max(cache["types"].shape[1] for cache in caches)
    types = np.concatenate([_widen(cache["types"], slots) for cache in caches])
    candidates = types[spot].astype(np.int16)
    first = np.concatenate([cache["slots"] for cache in caches])
    save(
        task.work / f"graph-{task.n_blocks}.npz",
        indptr=graph.indptr,
        indices=graph.indices,
        spot_indptr=spots.indptr,
        spot_indices=spots.indices,
        colours=colours,
        owners=owners,
        keys=keys,
        n_cells=n_cells,
        candidates=candidates,
        labels=candidates[np.arange(len(spot)), first] if len(spot) else np.zeros(0, np.int16),
        mean_degree=np.float64(graph.mean_degree),
    )
    return {
        "mean_degree": graph.mean_degree,
        "neighbours_in_other_sections": _between_sections(task, graph, spot),
        "radius_um": graph.radius_um,
        "colours": int(colours.max(initial=-1)) + 1,
        "candidates_per_spot": float((types[n_cells > 0] >= 0).sum(axis=1).mean()) if n_cells.any() else 0.0,
    }


def _between_sections(task: SweepTask, graph: Graph, spot: NDArray[np.int64]) -> float:
    """Return the share of neighbours that lie in another section."""
    n_spots = [len(load(section.work / "spots.npz", "n_cells")["n_cells"]) for section in task.sections]
    section = np.repeat(np.arange(len(n_spots), dtype=np.int16), n_spots)[spot]
    other = section[graph.indices] != np.repeat(section, np.diff(graph.indptr))
    return float(other.mean()) if len(other) else 0.0


def _places(task: SweepTask) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return positions (z, y, x) of all cells, z stretched, cells of all spots, keys of all spots."""
    points, n_cells, keys = [], [], []
    for section in task.sections:
        cells = read_frame(section.work / "cells.parquet", columns=["z_um", "y_um", "x_um"])
        ids = read_frame(section.ingest / "spots.parquet", columns=["spot_id"])["spot_id"]
        points.append(cells[["z_um", "y_um", "x_um"]].to_numpy(float) * [task.options.z_scale, 1.0, 1.0])
        n_cells.append(load(section.work / "spots.npz", "n_cells")["n_cells"])
        keys.append(spot_keys(section.section, ids))
    return np.concatenate(points), np.concatenate(n_cells), np.concatenate(keys)


def _spot_centres(points: NDArray[np.float64], spot: NDArray[np.int64], n_spots: int) -> NDArray[np.float64]:
    """Return the mean (y, x) of each spot's cells, (spots, 2); 0 for spots without cells."""
    size = np.maximum(np.bincount(spot, minlength=n_spots), 1)
    sums = [np.bincount(spot, weights=points[:, axis], minlength=n_spots) for axis in (1, 2)]
    return np.stack(sums, axis=1) / size[:, None]


def _widen(types: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    return np.pad(types, ((0, 0), (0, slots - types.shape[1])), constant_values=-1)


def _cache_files(task: SweepTask) -> list[tuple[Path, int, int]]:
    """Return (file, first spot, last + 1) of the multiset caches, spots counted over all sections."""
    files, offset = [], 0
    for section in task.sections:
        n_spots = len(load(section.work / "spots.npz", "n_cells")["n_cells"])
        for low, high in batches(n_spots, task.options.batch_spots):
            files.append((section.cache_file(low), offset + low, offset + high))
        offset += n_spots
    return files


def write_block(task: SweepTask, number: int) -> dict[str, Any]:
    """Write the arrays of one block (worker); only its own and recomputed spots' caches are kept."""
    from spatialscope_dist.celltypes.potts import build_block, updated_spots
    from spatialscope_dist.geometry.blocks import sweep_closure
    from spatialscope_dist.geometry.neighbours import Graph

    found = load(task.work / f"graph-{task.n_blocks}.npz")
    spot_graph = Graph(found["spot_indptr"], found["spot_indices"])
    closure = sweep_closure(spot_graph, found["colours"], np.flatnonzero(found["owners"] == number))
    spots = updated_spots(closure, found["colours"])
    block = build_block(
        closure,
        spots,
        _cache_of(task, spots, found),
        graph=Graph(found["indptr"], found["indices"]),
        cell_start=np.concatenate([[0], np.cumsum(found["n_cells"])]),
        keys=found["keys"],
        field=load_npy(task.field) if task.field.exists() else None,
    )
    save(task.blocks[number], **block._asdict())
    return {"cells": len(block.cells), "spots": len(spots), "own_spots": len(closure.own)}


def _cache_of(task: SweepTask, spots: NDArray[np.int64], graph: Arrays) -> Any:
    """Return candidates and multiset energies of some spots, in their order."""
    from spatialscope_dist.celltypes.multisets import Candidates, MultisetCache

    slots = graph["candidates"].shape[1]
    types, size = np.full((len(spots), slots), -1, np.int64), np.ones(len(spots), np.int64)
    lengths, parts = np.zeros(len(spots), np.int64), []
    for path, low, high in _cache_files(task):
        mine = np.flatnonzero((spots >= low) & (spots < high))
        if not len(mine):
            continue
        cache, rows = load(path), spots[mine] - low
        types[mine], size[mine], lengths[mine] = (
            _widen(cache["types"], slots)[rows],
            cache["size"][rows],
            cache["sizes"][rows],
        )
        start = np.concatenate([[0], np.cumsum(cache["sizes"])])
        parts.append((mine, cache["energy"][_ranges(start[rows], lengths[mine])]))
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    energy = np.zeros(ends[-1], np.int64)
    for mine, values in parts:
        energy[_ranges(ends[mine], lengths[mine])] = values
    return MultisetCache(Candidates(types, size), graph["n_cells"][spots], ends, energy)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start on, as many as its length says, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths), np.int64)


def sweep_all(task: SweepTask, run: Runner) -> dict[str, Any]:
    """Write the labels and how often each was seen; return energies and changes per sweep.

    Sweeps that were kept before a kill are not done again.
    `run` maps a function over a list of arguments, in order: on workers, or right here.
    """
    graph = load(task.work / f"graph-{task.n_blocks}.npz", "labels", "candidates", "mean_degree")
    prior = _prior(task, float(graph["mean_degree"]))
    reads = [load(path, "cells")["cells"] for path in task.blocks]
    history = _descend(task, run, reads, graph["labels"], prior=prior)
    seen = _sample(task, run, reads, history.state, candidates=graph["candidates"], prior=prior)
    calls = [
        {"path": str(path), "state": history.state[cells], "prior": prior}
        for path, cells in zip(task.blocks, reads, strict=True)
    ]
    gaps = np.full(len(history.state), np.nan)
    for cells, values in run(block_margins, calls):
        gaps[cells] = values
    save(task.work / "labels.npz", map=history.state, seen=seen, candidates=graph["candidates"], margin=gaps)
    return {"energy": _energies(history), "changes": history.changes, "converged": history.stable}


def _prior(task: SweepTask, mean_degree: float) -> Prior:
    from spatialscope_dist.celltypes.potts import pair_energy
    from spatialscope_dist.celltypes.spot_updates import Prior

    stream = key_of("gibbs", task.seed) & 0xFFFFFFFF
    degree = mean_degree if task.options.potts == "mean" else float(mean_degree > 0)
    return Prior(pair_energy(task.options.smoothness, degree), stream)


def _descend(
    task: SweepTask, run: Runner, reads: list[NDArray[np.int64]], labels: NDArray[np.int16], *, prior: Prior
) -> SweepHistory:
    blocks = [
        HaloBlock(cells, {"path": str(path), "prior": prior}) for path, cells in zip(task.blocks, reads, strict=True)
    ]

    def one_round(calls: list[dict[str, Any]]) -> list[Any]:
        return run(descend, calls)

    history, every = read_descent(task.work, labels), task.options.checkpoint_every_sweeps
    for _ in sweep_blocks(one_round, blocks, history, max_sweeps=task.options.max_sweeps):
        if history.stable or len(history.changes) % every == 0:
            keep_descent(task.work, history)
    return history


def _sample(
    task: SweepTask,
    run: Runner,
    reads: list[NDArray[np.int64]],
    labels: NDArray[np.int16],
    *,
    candidates: NDArray[np.int16],
    prior: Prior,
) -> NDArray[np.uint32]:
    from spatialscope_dist.celltypes.marginals import sample_marginals

    if task.options.gibbs_sweeps == 0:
        return np.asarray(candidates == labels[:, None], np.uint32)

    def one_round(calls: list[dict[str, Any]]) -> list[Any]:
        arguments = [
            {"path": str(task.blocks[number]), "prior": prior, **call}
            for number, call in ((call.pop("block"), call) for call in calls)
        ]
        return run(sample, arguments)

    blocks = list(zip(reads, _own_cells(task), strict=True))
    samples, every = read_samples(task.work, labels, n_slots=candidates.shape[1]), task.options.checkpoint_every_sweeps
    burn_in, kept = task.options.gibbs_burn_in, task.options.gibbs_sweeps
    for _ in sample_marginals(one_round, blocks, samples, burn_in=burn_in, kept=kept):
        if samples.sweeps % every == 0:
            keep_samples(task.work, samples)
    return samples.sums


def _own_cells(task: SweepTask) -> list[NDArray[np.int64]]:
    """Return the cells each block answers for."""
    graph = load(task.work / f"graph-{task.n_blocks}.npz", "owners", "n_cells")
    owner = np.repeat(graph["owners"].astype(np.int32), graph["n_cells"])
    return [np.flatnonzero(owner == number) for number in range(task.n_blocks)]


def _energies(history: SweepHistory) -> list[float]:
    """Return the energy before the first and after every sweep, nats."""
    from spatialscope_dist.celltypes.multisets import QUANTUM

    quanta = [sum(before for before, _ in history.extras[0]) // 2] if history.extras else [0]
    for extras in history.extras:
        quanta.append(quanta[-1] + sum(change for _, change in extras))
    return [value * QUANTUM for value in quanta]


def sweep_here(task: SweepTask) -> dict[str, Any]:
    """Do all sweeps in this process, each block's arrays read once (worker)."""
    blocks = {str(path): _block(str(path)) for path in task.blocks}

    def run(function: Callable[..., Any], calls: list[dict[str, Any]]) -> list[Any]:
        return [function(**call, block=blocks[call["path"]]) for call in calls]

    return sweep_all(task, run)


def descend(
    path: str,
    state: NDArray[np.int16],
    prior: Prior,
    touched: NDArray[np.bool_] | None,
    block: Block | None = None,
) -> tuple[Any, Any, Any]:
    """Return changed cells, their labels and (twice the energy before, its change) of one block (worker)."""
    from spatialscope_dist.celltypes.potts import descend_block

    block = block or _block(path)
    swept = descend_block(block, state, prior, touched)
    return block.cells[swept.changed], swept.labels, (swept.before, swept.change)


def sample(  # noqa: PLR0913
    path: str, state: NDArray[np.int16], prior: Prior, *, sweep: int, kept: bool, block: Block | None = None
) -> tuple[Any, Any, Any]:
    """Return changed cells, labels and, when kept, own cells' probabilities after a block's Gibbs sweep (worker)."""
    from spatialscope_dist.celltypes.potts import sample_block

    block = block or _block(path)
    swept = sample_block(block, state, prior, sweep=sweep)
    return block.cells[swept.changed], swept.labels, swept.shares if kept else None


def block_margins(path: str, state: NDArray[np.int16], prior: Prior, block: Block | None = None) -> tuple[Any, Any]:
    """Return own cells of one block and their margins (worker)."""
    from spatialscope_dist.celltypes.potts import margins, own_cells

    block = block or _block(path)
    mine = own_cells(block)
    return block.cells[mine], margins(block, state, prior)[mine]


def _block(path: str) -> Block:
    from spatialscope_dist.celltypes.potts import Block

    # Asked for in every sweep: from an object store each machine fetches it once.
    return Block(**load(local_copy(located(path))))
