"""Stage `differential`: spatial differential expression within cell types, every section (C-SIDE, non-parametric)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.options import DifferentialOptions
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame, write_frame

if TYPE_CHECKING:
    import pandas as pd

NAME = "differential"
VERSION = 2

_PROCESS_BYTES = 320 << 20  # a Python worker with NumPy, SciPy, pandas and zarr
_GENES_PER_UNIT = 100


def items(context: Context) -> list[str]:
    """Return the one item: the table of all sections."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section is typed."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return keys of counts, composition and signatures, and the options."""
    study = context.study
    return {
        "ingest": {s.name: context.upstream_key("ingest", s.name) for s in study.sections},
        "identify": {s.name: context.cells_key(s.name) for s in study.sections},
        "reference": context.upstream_key("reference", "study"),
        "options": study.options.differential.model_dump(mode="json"),
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task per hundred genes; memory for counts of those genes and the regression of one gene."""
    facts, options = context.facts, context.study.options.differential
    columns = facts.n_types * (options.n_basis + 1)
    peak = max(8 * s.n_spots * (6 * _GENES_PER_UNIT + 4 * columns) for s in facts.sections.values())
    n_genes = min(options.max_genes * facts.n_types, facts.n_reference_genes)
    tasks = len(facts.sections) * -(-n_genes // _GENES_PER_UNIT)
    return StagePlan(tasks=tasks, peak_bytes=_PROCESS_BYTES + peak, disk_bytes=100 * n_genes * facts.n_types)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Test blocks of genes of every section on workers, then adjust and join."""
    import pandas as pd

    options = context.study.options.differential
    reference = context.upstream("reference", "study")
    units: dict[str, dict[str, Any]] = {}
    for section in context.study.sections:
        cells = context.cells_of(section.name)
        if cells is None or reference is None:
            continue
        tested = _tested_types(cells, reference, options.min_cells_per_type)
        genes = _tested_genes(reference, tested, options.max_genes)
        for number, low in enumerate(range(0, len(genes), _GENES_PER_UNIT)):
            units[f"{section.name}.{number:04d}"] = {
                "ingest": context.upstream("ingest", section.name),
                "cells": cells,
                "reference": reference,
                "target": output / f"{section.name}.{number:04d}.parquet",
                "tested": tested,
                "genes": genes[low : low + _GENES_PER_UNIT],
                "options": options,
            }
    done = context.pool.map(find_changes, units, ledger_units=context.ledger.units(NAME, item, output))
    parts = [read_frame(unit["target"]).assign(section=name.rsplit(".", 1)[0]) for name, unit in units.items()]
    table = _finish(pd.concat(parts, ignore_index=True)) if parts else _empty()
    write_frame(output / "spatial_de.parquet", table)
    write_frame(context.place.table("spatial_de"), table)
    found = int((table["p_adjusted"] < 0.05).sum())
    return StageOutcome(len(done), len(units), metrics={"tests": len(table), "found": found})


def _tested_types(cells: Path, reference: Path, min_cells: int) -> list[str]:
    """Return the types with enough cells, in the order of the reference."""
    frequency = read_frame(cells / "cells.parquet", columns=["cell_type"])["cell_type"].value_counts()
    return [name for name in read_json(reference / "types.json") if frequency.get(name, 0) >= min_cells]


def _tested_genes(reference: Path, tested: Sequence[str], max_genes: int) -> list[str]:
    """Return the panel genes among the highest of any tested type, in panel order."""
    panel, types = read_json(reference / "panel.json")["genes"], read_json(reference / "types.json")
    high: set[str] = set()
    for name in tested:
        high.update(_highest(reference, panel, types.index(name), max_genes))
    return [gene for gene in panel if gene in high]


def _highest(reference: Path, panel: Sequence[str], row: int, max_genes: int) -> list[str]:
    genes = read_json(reference / "genes.json")
    column = {gene: number for number, gene in enumerate(genes)}
    profile = read_array(reference / "signatures.zarr")[row, [column[gene] for gene in panel]]
    return [panel[index] for index in np.argsort(-profile, kind="stable")[:max_genes] if profile[index] > 0]


def find_changes(
    *,
    ingest: Path,
    cells: Path,
    reference: Path,
    target: Path,
    tested: list[str],
    genes: list[str],
    options: DifferentialOptions,
) -> dict[str, Any]:
    """Write the tests of some genes in one section; runs on a worker."""
    import pandas as pd

    from spatialscope_dist.downstream.spatial_de import Evidence, choose_n_basis, find_spatial_change, smooth_basis

    spots, weights = read_frame(ingest / "spots.parquet"), read_array(cells / "weights.zarr").astype(np.float64)
    used = np.isfinite(weights).all(axis=1) & (np.nan_to_num(weights).sum(axis=1) > 0)
    types, present = read_json(reference / "types.json"), _measured(ingest, cells, reference, genes)
    exposure = weights[used] * spots["total_counts"].to_numpy(np.float64)[used, None]
    rows = np.array([types.index(name) for name in tested], dtype=np.int64)
    n_functions = choose_n_basis(options.n_basis, n_spots=int(used.sum()), n_types=max(len(tested), 1))
    places = spots[["y_um", "x_um"]].to_numpy(np.float64)[used]
    counts = _columns(ingest, [gene for gene in genes if gene in present])[used]
    profiles = np.stack([present[gene] for gene in genes if gene in present], axis=1) if present else None
    if profiles is None or n_functions == 0 or not tested:
        write_frame(target, _empty().drop(columns=["section", "p_adjusted"]))
        return {"tests": 0}
    basis, evidence = smooth_basis(places, n_functions), Evidence(options.min_expected_counts, options.min_count_share)
    result = find_spatial_change(counts, exposure, profiles, basis=basis, tested=rows, evidence=evidence)
    kept = [gene for gene in genes if gene in present]
    table = pd.DataFrame(
        {
            "cell_type": np.repeat(np.array(tested, dtype=object), len(kept)),
            "gene": np.tile(np.array(kept, dtype=object), len(tested)),
            "statistic": result.statistic.ravel(),
            "n_basis": n_functions,
            "expected_counts": result.expected_counts.ravel(),
            "log2_sd": result.log2_sd.ravel(),
            "p": result.p.ravel(),
        }
    )
    table = table.dropna(subset=["p"])
    write_frame(target, table)
    return {"tests": len(table)}


def _measured(ingest: Path, cells: Path, reference: Path, genes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return profiles on the section's platform, gene to (types,), of the genes the section measured."""
    column = {gene: number for number, gene in enumerate(read_json(reference / "genes.json"))}
    effect = read_array(cells / "platform_effect.zarr")
    signatures = read_array(reference / "signatures.zarr")
    measured = set(open_counts(ingest / "counts.zarr").genes)
    chosen = [gene for gene in genes if gene in measured and np.isfinite(effect[column[gene]])]
    return {gene: signatures[:, column[gene]] * effect[column[gene]] for gene in chosen}


def _columns(ingest: Path, genes: Sequence[str]) -> NDArray[np.float64]:
    """Return the counts of some genes, (spots, genes), read by blocks of spots."""
    counts = open_counts(ingest / "counts.zarr")
    column = {gene: number for number, gene in enumerate(counts.genes)}
    chosen = [column[gene] for gene in genes]
    blocks = [np.asarray(block[:, chosen].todense(), dtype=np.float64) for _, block in counts.blocks()]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(genes)))


def _finish(table: pd.DataFrame) -> pd.DataFrame:
    from spatialscope_dist.downstream.multiple_testing import adjust_within

    table = table.assign(p_adjusted=adjust_within(table["p"].to_numpy(), table["section"].to_numpy(dtype=str)))
    return table.sort_values(["section", "p", "cell_type", "gene"], ignore_index=True)[list(_empty().columns)]


def _empty() -> pd.DataFrame:
    import pandas as pd

    text, number = pd.Series(dtype=object), pd.Series(dtype=float)
    return pd.DataFrame(
        {
            "section": text,
            "cell_type": text,
            "gene": text,
            "statistic": number,
            "n_basis": number,
            "expected_counts": number,
            "log2_sd": number,
            "p": number,
            "p_adjusted": number,
        }
    )
