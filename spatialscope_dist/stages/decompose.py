"""Stage `decompose`: the counts of each spot split into its cells; eq. (10)-(14), Algorithm 1.

prepare (exposures, choice of the estimator, tables) → one unit per shard of cells → spots.parquet. A spot
whose cells lie in two shards is computed in both, and each writes its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.expression.residual_network import TORCH_WORKER_BYTES
from spatialscope_dist.options import DecomposeOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import generator, spot_keys
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.steps.rehearsal import REHEARSED_CELLS, choose_estimator, draw_compositions
from spatialscope_dist.store.arrays import create_array, open_array, read_array, write_array, write_region
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame, write_frame

if TYPE_CHECKING:
    from spatialscope_dist.expression.allocation import SpotCells
    from spatialscope_dist.expression.estimators import Interval
    from spatialscope_dist.expression.model import ExpressionModel

NAME = "decompose"
VERSION = 4
_CHUNK_ROWS = 256
_COMPILER_BYTES = 140 << 20  # of the sweep's compiled loops
_FAILED = "failed: the estimate is not a number"
_UNTYPED = "untyped"
_NO_CELLS = "no_cells"


@dataclass(frozen=True)
class SectionTask:
    """What a worker needs to know of a section; paths, not data."""

    section: str
    ingest: Path
    identify: Path
    reference: Path
    model: Path
    weights_sha256: str
    output: Path
    options: DecomposeOptions
    seed: int

    def expression_model(self) -> ExpressionModel:
        """Return the model, kept in the process."""
        from spatialscope_dist.expression.model import load_model
        from spatialscope_dist.expression.residual_network import settle_torch

        settle_torch()
        return load_model(self.model, self.weights_sha256)


def items(context: Context) -> list[str]:
    """Return the sections."""
    return [section.name for section in context.study.sections]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section that is typed is decomposed."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the keys of counts, cells and model, the seed and the options the result depends on."""
    study = context.study
    return {
        "section": item,
        "ingest": context.upstream_key("ingest", item),
        "identify": context.cells_key(item),
        "train": context.upstream_key("train", "study"),
        "seed": study.seed,
        "options": study.options.decompose.model_dump(mode="json", exclude={"rows_per_shard"}),
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task per shard and one before; memory of a shard, of a batch of spots and of the tables."""
    options, facts = context.study.options.decompose, context.facts
    section, genes = facts.sections[item], context.largest_panel()
    layers = 2 + len(options.quantiles)
    shard = 4 * options.rows_per_shard * genes * (4 + 2 * layers)
    chains = max(options.n_chains, options.langevin_chains, 2 * options.count_chains)
    kept = options.count_chains * (options.count_sweeps - options.count_burn_in)
    drawn_from = 6 * (kept + chains) if options.quantiles else 0
    batch = 4 * 64 * genes * (12 * chains + drawn_from)
    rehearsal = 4 * REHEARSED_CELLS * genes * 12
    tables = 40 * section.n_cells + 300 * section.n_spots + 200 * facts.n_reference_cells
    blocks = 12 * 4096 * min(section.n_genes, 4 * section.n_stored // max(section.n_spots, 1))
    model = 40 * facts.n_types * genes + 12 * context.study.options.train.width * genes
    peak = TORCH_WORKER_BYTES + _COMPILER_BYTES + model + tables + blocks + batch + max(shard, rehearsal)
    shards = -(-section.n_cells // options.rows_per_shard)
    return StagePlan(tasks=shards + 1, peak_bytes=peak, disk_bytes=4 * layers * section.n_cells * genes)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Prepare the section, decompose every shard of its cells, join the spots."""
    task = _task(context, item, output)
    rows = task.options.rows_per_shard
    units = context.ledger.units(NAME, item, output)
    if any(unit.split("_")[1] != str(rows) for unit in units.committed()):
        # A run that goes on with another shard size makes the arrays anew: nothing of the earlier size is left.
        units.forget()
    first = context.pool.map(
        prepare_section, {f"prepare_{rows}": {"task": task}}, ledger_units=units, framework="torch", gpu=True
    )
    prepared = first[f"prepare_{rows}"]
    shards = {
        f"rows_{rows}_{low // rows:06d}": {"task": task, "low": low, "high": min(low + rows, prepared["n_cells"])}
        for low in range(0, prepared["n_cells"], rows)
    }
    done = context.pool.map(decompose_rows, shards, ledger_units=units, framework="torch", gpu=True)
    failed = {spot: reason for unit in shards for spot, reason in done[unit]["failed"].items()}
    summary = prepared | {"failed_spots": len(failed), "residual": _join_spots(task, list(shards))}
    write_json(output / "summary.json", summary)
    return StageOutcome(done=len(done) + 1, total=len(shards) + 1, failed=failed, metrics=summary)


def _task(context: Context, item: str, output: Path) -> SectionTask:
    study = context.study
    folders = {
        "ingest": context.upstream("ingest", item),
        "identify": context.cells_of(item),
        "reference": context.upstream("reference", "study"),
        "model": context.upstream("train", "study"),
    }
    known = {name: folder for name, folder in folders.items() if folder is not None}
    return SectionTask(
        section=item,
        ingest=known["ingest"],
        identify=known["identify"],
        reference=known["reference"],
        model=known["model"],
        weights_sha256=read_json(known["model"] / "model.json")["weights_sha256"],
        output=output,
        options=study.options.decompose,
        seed=study.seed,
    )


def prepare_section(*, task: SectionTask) -> dict[str, Any]:
    """Write the cells' spots and types, the exposures and empty results; return the chosen estimator (worker)."""
    from spatialscope_dist.expression.baselines import capture_estimate, exposures

    model = task.expression_model()
    cells = read_frame(task.identify / "cells.parquet", columns=["spot_row", "cell_type"])
    place = {name: number for number, name in enumerate(model.types)}
    types = np.array([place.get(name, -1) for name in cells["cell_type"]], np.int64)
    spot_rows = cells["spot_row"].to_numpy(np.int64)
    counts = open_counts(task.ingest / "counts.zarr")
    effect = _panel_effect(task, counts, model)
    of_type = np.bincount(types[types >= 0], minlength=len(model.types)).astype(np.float64)
    totals = _panel_totals(counts, np.unique(spot_rows[types >= 0]), model)
    capture = capture_estimate(totals, of_type, profiles=model.profiles, effect=effect)
    exposure = exposures(capture, effect)
    random = generator(task.seed, "compositions", task.section)
    compositions = draw_compositions(spot_rows, types, n_spots=task.options.calibration_spots, random=random)
    choice = choose_estimator(
        task.reference, model, compositions, exposure=exposure, options=task.options, seed=task.seed
    )
    _write_tables(task, types, spot_rows, exposure=exposure)
    write_json(task.output / "measured.json", (effect > 0).tolist())
    write_json(task.output / "estimator.json", {"estimator": choice.estimator})
    return {
        "estimator": choice.estimator,
        "reason": choice.reason,
        "candidates": {
            name: {"cosine": value, "unique_cosine": _number(choice.unique_cosines[name])}
            for name, value in choice.cosines.items()
        },
        "rehearsed_cells": choice.n_cells,
        "sampler": task.options.sampler,
        "capture": capture,
        "n_cells": len(cells),
        "untyped_cells": int((types < 0).sum()),
        "genes": len(model.genes),
        "measured_genes": int((effect > 0).sum()),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _panel_effect(task: SectionTask, counts: Counts, model: ExpressionModel) -> NDArray[np.float32]:
    """Return exp(gamma) of the panel's genes, (genes,): 1 where it could not be estimated, 0 where not measured."""
    at = positions_in(read_json(task.reference / "genes.json"), model.genes)
    effect = np.asarray(read_array(task.identify / "platform_effect.zarr"), np.float64)[at]
    known = np.isfinite(effect) & (effect > 0) & (at >= 0)
    measured = positions_in(counts.genes, model.genes) >= 0
    return np.where(measured, np.where(known, effect, 1.0), 0.0).astype(np.float32)


def _panel_totals(counts: Counts, spot_rows: NDArray[np.int64], model: ExpressionModel) -> NDArray[np.float64]:
    """Return the counts of the panel's genes summed over spots with typed cells, (genes,)."""
    used = np.zeros(counts.shape[0], bool)
    used[spot_rows] = True
    total = np.zeros(counts.shape[1])
    for low, block in counts.blocks():
        total += np.asarray(block[used[low : low + block.shape[0]]].sum(axis=0), np.float64).ravel()
    at = positions_in(counts.genes, model.genes)
    return np.where(at >= 0, total[at], 0.0)


def _write_tables(
    task: SectionTask, types: NDArray[np.int64], spot_rows: NDArray[np.int64], *, exposure: NDArray[np.float32]
) -> None:
    rows, genes = task.options.rows_per_shard, len(exposure)
    chunk = _CHUNK_ROWS if rows % _CHUNK_ROWS == 0 else rows
    for name, values in (("cell_types", types), ("cell_spots", spot_rows)):
        write_array(task.output / f"{name}.zarr", values, axes=("cell",), chunks=(rows,))
    write_array(task.output / "exposure.zarr", exposure, axes=("gene",))
    write_json(task.output / "layers.json", list(layer_names(task.options)))
    for name in ("mean", *layer_names(task.options)):
        create_array(
            task.output / f"{name}.zarr",
            shape=(len(types), genes),
            dtype=np.float32,
            chunks=(chunk, genes),
            shards=(rows, genes),
            axes=("cell", "gene"),
            fill=np.nan,
        )


def layer_names(options: DecomposeOptions) -> tuple[str, ...]:
    """Return what is written beside the mean: sd and, for level 0.05, q05.

    Examples
    --------
    >>> layer_names(DecomposeOptions(quantiles=(0.025, 0.5)))
    ('sd', 'q025', 'q50')
    """
    return ("sd", *(f"q{f'{level:g}'[2:]:0<2}" for level in options.quantiles))


def decompose_rows(*, task: SectionTask, low: int, high: int) -> dict[str, Any]:
    """Write the estimate of cells low:high and the spots whose first cell is among them (worker)."""
    import pandas as pd

    from spatialscope_dist.expression.allocation import residuals
    from spatialscope_dist.expression.samplers import failed_spots

    model = task.expression_model()
    shard = _read_shard(task, low, high, model=model)
    name = read_json(task.output / "estimator.json")["estimator"]
    estimate, quantiles = _estimate(shard.spots, model, task.options, name=name)
    failed = failed_spots(estimate, shard.spots)
    for layer, values in zip(("mean", *layer_names(task.options)), (*estimate, *quantiles), strict=True):
        rows = shard.own(values, failed)
        write_region(task.output / f"{layer}.zarr", (slice(low, high), slice(0, rows.shape[1])), rows)
    status = np.where(failed, _FAILED, np.where(shard.spots.n_cells > 0, "ok", _UNTYPED))
    frame = pd.DataFrame(
        {
            "spot_row": shard.spot_rows,
            "residual": np.where(failed, np.nan, residuals(estimate.mean, shard.spots)),
            "status": status,
        }
    )[shard.owned]
    write_frame(
        task.output / "parts" / f"rows_{task.options.rows_per_shard}_{low // task.options.rows_per_shard:06d}.parquet",
        frame,
    )
    ids = [shard.spot_ids[number] for number in np.flatnonzero(failed & shard.owned)]
    return {"cells": high - low, "failed": dict.fromkeys(ids, _FAILED)}


def _estimate(spots: SpotCells, model: ExpressionModel, options: DecomposeOptions, *, name: str) -> Interval:
    from spatialscope_dist.expression import estimators

    if options.quantiles:
        return estimators.estimate_with_quantiles(spots, model, options, name=name)
    empty = np.empty((0, len(spots.types), len(model.genes)), np.float32)
    return estimators.Interval(estimators.estimate_spots(spots, model, options, name=name), empty)


@dataclass(frozen=True)
class _Shard:
    """Whole spots that touch a shard of cells; `typed` are the cells of `spots` among all their cells."""

    spots: SpotCells
    spot_rows: NDArray[np.int64]
    spot_ids: list[str]
    owned: NDArray[np.bool_]  # (spots,), first cell lies in the shard
    typed: NDArray[np.bool_]  # (cells of these spots,)
    offset: int  # cells before the shard
    n_cells: int  # of the shard

    def own(self, values: NDArray[np.float32], failed: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the shard's own rows of (typed cells, genes) values; NaN for cells without an estimate."""
        rows = np.full((len(self.typed), values.shape[1]), np.nan, np.float32)
        rows[self.typed] = np.where(failed[self.spots.spot][:, None], np.nan, values)
        return rows[self.offset : self.offset + self.n_cells]


def _read_shard(task: SectionTask, low: int, high: int, *, model: ExpressionModel) -> _Shard:
    from spatialscope_dist.expression.allocation import SpotCells
    from spatialscope_dist.expression.noise import chain_keys

    begin, cell_spots, cell_types = _whole_spots(task, low, high)
    spot_rows, first = np.unique(cell_spots, return_index=True)
    typed = cell_types >= 0
    n_typed = np.add.reduceat(typed.astype(np.int64), first)
    counts = open_counts(task.ingest / "counts.zarr")
    first_row = int(spot_rows[0])
    names = counts.row_names(first_row, int(spot_rows[-1]) + 1)
    ids = [names[row - first_row] for row in spot_rows]
    spots = SpotCells(
        counts=counts.panel_rows(spot_rows, model.genes),
        first=np.r_[0, np.cumsum(n_typed)].astype(np.int64),
        types=cell_types[typed],
        keys=chain_keys(task.seed, spot_keys(task.section, ids)),
        exposure=np.asarray(read_array(task.output / "exposure.zarr"), np.float32),
    )
    return _Shard(spots, spot_rows, ids, first + begin >= low, typed, low - begin, high - low)


def _whole_spots(task: SectionTask, low: int, high: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return the first cell, and spots and types of the cells, of all spots that touch cells low:high."""
    spots, types = open_array(task.output / "cell_spots.zarr"), open_array(task.output / "cell_types.zarr")
    begin, end, step = low, high, task.options.rows_per_shard
    first, last = int(spots[low]), int(spots[high - 1])  # type: ignore[arg-type]
    while begin > 0:
        part = np.asarray(spots[max(0, begin - step) : begin])
        begin -= int((part == first).sum())
        if part[0] != first:
            break
    while end < spots.shape[0]:
        part = np.asarray(spots[end : end + step])
        end += int((part == last).sum())
        if part[-1] != last:
            break
    return begin, np.asarray(spots[begin:end], np.int64), np.asarray(types[begin:end], np.int64)


def _join_spots(task: SectionTask, shards: list[str]) -> dict[str, float] | None:
    """Write spots.parquet for all spots of the section and return quantiles of the residual."""
    import pandas as pd

    frame = pd.DataFrame({"spot_id": read_frame(task.ingest / "spots.parquet", columns=["spot_id"])["spot_id"]})
    frame["residual"], frame["status"] = np.nan, _NO_CELLS
    for shard in shards:
        part = read_frame(task.output / "parts" / f"{shard}.parquet")
        for name in ("residual", "status"):
            frame.loc[part["spot_row"].to_numpy(), name] = part[name].to_numpy()
    write_frame(task.output / "spots.parquet", frame)
    known = frame["residual"].dropna()
    return {"median": float(known.median()), "largest": float(known.max())} if len(known) else None
