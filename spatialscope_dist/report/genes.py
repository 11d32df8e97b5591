"""What the report says of genes: interactions, genes that vary over the tissue, genes that change inside a type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spatialscope_dist.report import wording
from spatialscope_dist.report.charts import draw_interactions
from spatialscope_dist.report.numbers import rows_of
from spatialscope_dist.report.page import Block, Table
from spatialscope_dist.report.views import StudyView

if TYPE_CHECKING:
    import pandas as pd

TOP_ROWS = 20


def interaction_blocks(study: StudyView) -> Iterator[Block]:
    """Yield the ligand-receptor interactions, if they were tested."""
    table = study.interactions
    if table is None:
        return
    kept = table[table["selected"]] if len(table) else table
    notes = [
        f"{len(kept):,} of {len(table):,} tests pass the filter (adjusted p < 0.25, |log2 fold change| > 0.1, at least "
        "10 cells with the ligand and with the receptor). Cells touch when a Delaunay edge joins them. Expression of "
        "cells in one spot is estimated jointly, so p-values describe these estimates, not independent measurements."
    ]
    if not len(kept):
        yield Block("Ligand-receptor interactions", notes)
        return
    top = kept.sort_values("interaction_score", ascending=False).head(TOP_ROWS)
    columns = ["section", "sender", "receiver", "ligand", "receptor", "log2fc", "p", "p_adjusted", "interaction_score"]
    header = ["section", "sender", "receiver", "ligand", "receptor", "log2 FC", "p", "adjusted p", "score"]
    rows = rows_of(top, columns)
    yield Block("Ligand-receptor interactions", notes, [Table(header, rows)], [draw_interactions(top)])


def gene_blocks(study: StudyView) -> Iterator[Block]:
    """Yield the genes that vary in space, if they were tested."""
    parts = [*_variable(study.variable_genes), *_changing(study)]
    if parts:
        tables = [table for _, table in parts if table is not None]
        yield Block("Genes that vary in space", [note for note, _ in parts], tables)


def _variable(table: pd.DataFrame | None) -> Iterator[tuple[str, Table | None]]:
    """Yield what each test of spatially variable genes found, in words and as a table."""
    if table is None or not len(table):
        return
    for test, text in (
        ("over_tissue", "vary over the tissue"),
        ("beyond_cell_types", "vary beyond what cell type composition explains"),
    ):
        part = table[table["test"] == test]
        if not len(part):
            continue
        found = part[part["p_adjusted"] < 0.05].sort_values(["p", "gene"])
        note = f"{len(found):,} of {len(part):,} tested genes {text} (SPARK-X, adjusted p < 0.05)."
        best = found.head(TOP_ROWS // 2).assign(kernel=lambda frame: frame["kernel"].map(wording.kernel_name))
        rows = rows_of(best, ["section", "gene", "kernel", "p", "p_adjusted"])
        header = ["section", "gene", "strongest pattern", "p", "adjusted p"]
        yield note, Table(header, rows, f"Genes that {text}: {_first(rows, found)}") if rows else None


def _changing(study: StudyView) -> Iterator[tuple[str, Table | None]]:
    """Yield what the tests inside cell types found, in words and as a table."""
    table, options = study.spatial_de, study.options.get("differential", {})
    if table is None:
        return
    found = table[table["p_adjusted"] < 0.05].sort_values(["p", "gene"])
    note = (
        f"{len(found):,} of {len(table):,} tested pairs of cell type and gene change over the tissue inside the type "
        "(C-SIDE model, adjusted p < 0.05)."
    )
    if options:
        note += (
            f" Pairs are tested where the type accounts for at least {options['min_expected_counts']:g} UMI and "
            f"{options['min_count_share']:.0%} of the gene in the section; the spots cannot tell of the others."
        )
    columns = {"section": "section", "cell_type": "cell type", "gene": "gene", "expected_counts": "UMI from the type"}
    columns |= {"log2_sd": "spread, log2", "p": "p", "p_adjusted": "adjusted p"}
    header = [text for name, text in columns.items() if name in table]
    rows = rows_of(found.head(TOP_ROWS // 2), [name for name in columns if name in table])
    caption = (
        f"Genes that change inside a cell type: {_first(rows, found)}. Spread: standard deviation of the fitted log2 "
        "change over the type's cells, drawn towards 0 where counts are few; 1 is a doubling."
    )
    yield note, Table(header, rows, caption) if rows else None


def _first(rows: Sequence[Sequence[str]], found: pd.DataFrame) -> str:
    return "all" if len(rows) == len(found) else f"the first {len(rows)}"
