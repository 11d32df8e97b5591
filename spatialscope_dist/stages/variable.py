"""Stage `variable`: spatially variable genes of every section (SPARK-X), over the tissue and beyond composition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.frames import join_sections, read_frame, write_frame

NAME = "variable"
VERSION = 1

_PROCESS_BYTES = 320 << 20  # a Python worker with NumPy, SciPy, pandas and zarr
_KERNEL_COLUMNS = 22


def items(context: Context) -> list[str]:
    """Return the one item: the table of all sections."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: counts are always there."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return keys of counts and composition, and the options."""
    study = context.study
    return {
        "ingest": {s.name: context.upstream_key("ingest", s.name) for s in study.sections},
        "identify": {s.name: context.cells_key(s.name) for s in study.sections},
        "options": study.options.variable.model_dump(mode="json"),
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task per section; memory for the kernels of all its spots and the sums of all its genes."""
    sections = context.facts.sections.values()
    types = context.facts.n_types + 2
    peak = max(8 * (4 * s.n_spots + 3 * s.n_genes) * (_KERNEL_COLUMNS + types) for s in sections)
    rows = sum(s.n_genes for s in sections)
    return StagePlan(tasks=len(sections), peak_bytes=_PROCESS_BYTES + peak, disk_bytes=200 * rows)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Test every section on a worker and join the tables."""
    study, options = context.study, context.study.options.variable
    units: dict[str, dict[str, Any]] = {
        section.name: {
            "ingest": context.upstream("ingest", section.name),
            "identify": context.cells_of(section.name),
            "target": output / "sections" / f"{section.name}.parquet",
            "min_spots": options.min_cells,
            "adjust_depth": options.adjust_depth,
        }
        for section in study.sections
    }
    done = context.pool.map(find_section, units, ledger_units=context.ledger.units(NAME, item, output))
    table = join_sections({name: unit["target"] for name, unit in units.items()})
    for target in (output / "variable_genes.parquet", context.place.table("variable_genes")):
        write_frame(target, table)
    return StageOutcome(done=len(done), total=len(units), metrics={"sections": dict(done)})


def find_section(
    *, ingest: Path, identify: Path | None, target: Path, min_spots: int, adjust_depth: bool
) -> dict[str, Any]:
    """Write the tests of one section and return how many genes vary; runs on a worker."""
    import pandas as pd

    from spatialscope_dist.downstream.spatially_variable import build_kernels, find_variable_genes, sum_genes

    spots = read_frame(ingest / "spots.parquet")
    used = (spots["status"] == "ok").to_numpy()
    counts = open_counts(ingest / "counts.zarr")
    places = spots[["y_um", "x_um"]].to_numpy(np.float64)
    depth = spots[["total_counts"]].to_numpy(np.float64) if adjust_depth else np.zeros((len(spots), 0))
    tests: dict[str, NDArray[np.float64]] = {"over_tissue": depth}
    if identify is not None:
        proportions = np.nan_to_num(read_array(identify / "proportions.zarr").astype(np.float64))
        tests["beyond_cell_types"] = np.concatenate([depth, proportions], axis=1)
    tables = []
    for name, covariates in tests.items():
        kernels = build_kernels(places[used], covariates[used])
        sums = sum_genes(_used_rows(counts, used), kernels, n_genes=counts.shape[1])
        table = find_variable_genes(sums, kernels, genes=counts.genes, min_spots=min_spots)
        tables.append(table.assign(test=name))
    joined = pd.concat(tables, ignore_index=True)
    write_frame(target, joined)
    significant = joined[joined["p_adjusted"] < 0.05].groupby("test").size()
    return {"tested": len(tables[0]), **{name: int(significant.get(name, 0)) for name in tests}}


def _used_rows(counts: Counts, used: NDArray[np.bool_]) -> Iterator[tuple[int, sparse.csr_matrix]]:
    start = 0
    for low, block in counts.blocks():
        kept = block[used[low : low + block.shape[0]]]
        yield start, kept
        start += kept.shape[0]
