"""What `identify` needs of all spots of a section: sums over genes, and the platform effect from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.panel import positions_in
from spatialscope_dist.steps.typing_fit import SectionTask
from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.platform_effect import PlatformEffect, SectionTotals


def read_totals(ingest: Path) -> tuple[pd.DataFrame, NDArray[np.int64], NDArray[np.bool_]]:
    """Return the spots of a section, their raw counts, and which of them are used."""
    spots = read_frame(ingest / "spots.parquet", columns=["spot_id", "total_counts", "status"])
    totals = spots["total_counts"].to_numpy(np.int64)
    return spots, totals, (spots["status"] == "ok").to_numpy() & (totals > 0)


def gene_moments(counts: Counts, used: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sum and maximum of each gene over the used spots, (genes,)."""
    sums, largest = np.zeros(counts.shape[1], np.int64), np.zeros(counts.shape[1], np.int64)
    for low, block in counts.blocks():
        kept = block[used[low : low + block.shape[0]]]
        if kept.shape[0]:
            sums += np.asarray(kept.sum(axis=0), np.int64).ravel()
            largest = np.maximum(largest, kept.max(axis=0).toarray().ravel().astype(np.int64))
    return sums, largest


def shrunk_signatures(task: SectionTask) -> NDArray[np.float64]:
    """Return the signatures of all genes of the reference, shrunk as the options say, (types, genes)."""
    from spatialscope_dist.celltypes.signatures import shrink

    summary = read_json(task.reference / "summary.json")["types"]
    umi = np.array([summary[name]["umi"] for name in read_json(task.reference / "types.json")], np.int64)
    shrinkage = 0.0 if task.options.rctd_compat else task.options.shrinkage_umi
    return shrink(read_array(task.reference / "signatures.zarr"), umi, shrinkage_umi=shrinkage)


def shared_effect(task: SectionTask, positions: NDArray[np.int64]) -> PlatformEffect:
    """Return one platform effect for all sections of the study, at the reference's genes in `positions`.

    Every section comes to the same numbers by itself: whole numbers are added, in the order of sections.
    """
    from spatialscope_dist.celltypes.platform_effect import PlatformEffect, platform_effect, pool_sections
    from spatialscope_dist.celltypes.signatures import gene_lists

    genes, profiles = read_json(task.reference / "genes.json"), shrunk_signatures(task)
    sums, depths = pool_sections((_section_totals(folder, genes) for folder in task.together), len(genes))
    measured = np.flatnonzero(depths)
    lists = gene_lists(profiles[:, measured], [genes[gene] for gene in measured], sums[measured])
    found = platform_effect(sums[measured], depths[measured], profiles[:, measured], lists.platform)
    effect = np.ones(len(genes))
    effect[measured] = found.effect
    return PlatformEffect(found.proportions, effect[positions], found.n_replaced)


def _section_totals(ingest: Path, genes: list[str]) -> SectionTotals:
    from spatialscope_dist.celltypes.platform_effect import SectionTotals

    _, totals, used = read_totals(ingest)
    counts = open_counts(ingest / "counts.zarr")
    place = positions_in(genes, counts.genes)
    shared = place >= 0
    return SectionTotals(place[shared], gene_moments(counts, used)[0][shared], int(totals[used].sum()))
