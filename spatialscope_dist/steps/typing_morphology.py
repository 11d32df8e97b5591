"""Worker steps of `identify` that let nuclei speak: what those of each type look like, and the field of every cell."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.readers.nuclei_table import MEASURES
from spatialscope_dist.steps.typing_fit import SectionTask, batches, load, save
from spatialscope_dist.steps.typing_sweeps import SweepTask
from spatialscope_dist.store.documents import read_json, write_bytes
from spatialscope_dist.store.frames import read_columns, read_frame

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.morphology import Sample
    from spatialscope_dist.celltypes.multisets import MultisetCache

SAMPLE_SPOTS = 4096
FEWEST_NUCLEI = 100
_CELLS_AT_ONCE = 1 << 16


def learn_morphology(task: SectionTask) -> dict[str, Any]:
    """Write what the nuclei of each type look like if that tells types; return whether, and the evidence (worker).

    Learnt from at most 4,096 spots, chosen by their keys.
    """
    from spatialscope_dist.celltypes.morphology import learn_looks, robust_scale
    from spatialscope_dist.celltypes.morphology_evidence import weigh_evidence

    names, measures = _nucleus_measures(task)
    spots, keys = _sample_spots(task)
    measures = measures[_cells_of(task, spots)]
    kept = np.flatnonzero(np.isfinite(measures).sum(axis=0) >= FEWEST_NUCLEI)
    if len(kept) == 0:
        return {"used": False, "reason": f"fewer than {FEWEST_NUCLEI} nuclei are measured"}
    scale = robust_scale(measures[:, kept])
    kept, scale = kept[scale.spread > 0], scale.take(scale.spread > 0)
    sample = _sample(task, spots, scale.standardise(measures[:, kept]))
    evidence = weigh_evidence(sample, keys)
    if evidence.convinces:
        looks = learn_looks(sample)
        save(_looks_file(task), kept=kept, **_prefixed("scale", asdict(scale)), **_prefixed("looks", asdict(looks)))
    about = {"measures": [names[column] for column in kept], "nuclei": int(sample.known.sum())}
    return {"used": evidence.convinces, "reason": evidence.verdict, **about, **evidence._asdict()}


def _prefixed(kind: str, parts: dict[str, Any]) -> dict[str, Any]:
    return {f"{kind}_{name}": values for name, values in parts.items()}


def _parts(stored: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}_"): part for name, part in stored.items() if name.startswith(f"{kind}_")}


def _looks_file(task: SectionTask) -> Path:
    return task.work / "looks.npz"


def _nucleus_measures(task: SectionTask) -> tuple[list[str], NDArray[np.float64]]:
    """Return names and values, (cells, measures), of the section's cells; no measures when nobody took any."""
    given = task.ingest / "given_nuclei.parquet"
    if given.exists():
        return _given_measures(task, given)
    measured = None if task.segment is None else task.segment / "morphology.parquet"
    if measured is None or not measured.exists():
        return [], np.empty((_n_cells(task).sum(), 0))
    frame = read_frame(measured).drop(columns="nucleus_id")
    rows = read_frame(task.work / "cells.parquet", columns=["nucleus_id"])["nucleus_id"].to_numpy(np.int64) - 1
    return list(frame.columns), frame.to_numpy()[rows].astype(np.float64)


def _given_measures(task: SectionTask, given: Path) -> tuple[list[str], NDArray[np.float64]]:
    from pyarrow import array, compute

    table = read_columns(given)
    names = [name for name in table.column_names if name.startswith(MEASURES)]
    ids = array(read_frame(task.work / "cells.parquet", columns=["cell_id"])["cell_id"], "string")
    rows = compute.index_in(ids, table["cell_id"].cast("string")).to_numpy().astype(np.int64)
    values = [table[name].to_numpy()[rows] for name in names]
    return names, np.array(values, np.float64).reshape(len(names), len(rows)).T


def _n_cells(task: SectionTask) -> NDArray[np.int64]:
    return np.asarray(load(task.work / "spots.npz", "n_cells")["n_cells"], np.int64)


def _sample_spots(task: SectionTask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows, ascending, and keys of the spots that teach: fitted ones with cells, lowest keys first."""
    known = load(task.work / "spots.npz", "n_cells", "exposure")
    able = np.flatnonzero((known["n_cells"] > 0) & (known["exposure"] > 0))
    ids = read_frame(task.ingest / "spots.parquet", columns=["spot_id"])["spot_id"].iloc[able]
    keys = spot_keys(f"morphology {task.seed} {task.section}", ids)
    chosen = np.sort(np.argsort(keys, kind="stable")[:SAMPLE_SPOTS])
    return able[chosen], keys[chosen]


def _cells_of(task: SectionTask, spots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the section's cells that lie in some spots, spot by spot."""
    n_cells = _n_cells(task)
    first = (np.cumsum(n_cells) - n_cells)[spots]
    counts = n_cells[spots]
    return np.asarray(np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum()), np.int64)


def _sample(task: SectionTask, spots: NDArray[np.int64], measures: NDArray[np.float64]) -> Sample:
    from spatialscope_dist.celltypes.morphology import Sample

    places = read_frame(task.ingest / "spots.parquet", columns=["y_um", "x_um"]).to_numpy(np.float64)
    n_types = len(read_json(task.reference / "types.json"))
    return Sample(_cache_of(task, spots), places[spots], measures, n_types)


def _cache_of(task: SectionTask, spots: NDArray[np.int64]) -> MultisetCache:
    """Return the multiset energies of some spots of a section, ascending."""
    from spatialscope_dist.celltypes.multisets import Candidates, MultisetCache

    n_cells, types, sizes, energies = _n_cells(task), [], [], []
    for low, high in batches(len(n_cells), task.options.batch_spots):
        rows = spots[(spots >= low) & (spots < high)] - low
        cache = load(task.cache_file(low))
        ends = np.cumsum(cache["sizes"])
        types.append(cache["types"][rows])
        sizes.append(cache["size"][rows])
        energies += [
            cache["energy"][end - size : end] for end, size in zip(ends[rows], cache["sizes"][rows], strict=True)
        ]
    slots = max(batch.shape[1] for batch in types)
    wide = [np.pad(batch, ((0, 0), (0, slots - batch.shape[1])), constant_values=-1) for batch in types]
    start = np.cumsum([0, *map(len, energies)]).astype(np.int64)
    candidates = Candidates(np.concatenate(wide), np.concatenate(sizes))
    return MultisetCache(candidates, n_cells[spots], start, np.concatenate(energies))


def write_field(task: SweepTask) -> dict[str, Any]:
    """Write the energy of each candidate of every cell by its nucleus alone, (cells, slots), in quanta (worker)."""
    candidates = load(task.work / f"graph-{task.n_blocks}.npz", "candidates")["candidates"]
    energy = np.zeros(candidates.shape, np.int32)
    first = 0
    for section in task.sections:
        last = first + int(_n_cells(section).sum())
        if _looks_file(section).exists():
            _fill(section, energy[first:last], candidates[first:last])
        first = last
    buffer = io.BytesIO()
    np.save(buffer, energy, allow_pickle=False)
    write_bytes(task.field, buffer.getvalue())
    return {"cells": len(energy)}


def _fill(task: SectionTask, energy: NDArray[np.int32], candidates: NDArray[np.int16]) -> None:
    from spatialscope_dist.celltypes.morphology import Looks, Scale, cell_field, nearest_spots

    stored = load(_looks_file(task))
    looks, scale = Looks(**_parts(stored, "looks")), Scale(**_parts(stored, "scale"))
    _, measures = _nucleus_measures(task)
    places = read_frame(task.ingest / "spots.parquet", columns=["y_um", "x_um"]).to_numpy(np.float64)
    trend, n_cells = looks.trend(nearest_spots(looks.places, places)), _n_cells(task)
    spot = np.repeat(np.arange(len(n_cells)), n_cells)
    for low in range(0, len(energy), _CELLS_AT_ONCE):
        some = slice(low, low + _CELLS_AT_ONCE)
        flat = scale.standardise(measures[some][:, stored["kept"]]) - trend[spot[some]]
        energy[some] = cell_field(looks, flat, candidates[some].astype(np.int64))
