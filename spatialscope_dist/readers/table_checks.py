"""Checks of tables: are these raw counts, are names unique, do genes and types fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.celltypes.signatures import small_types, type_problems
from spatialscope_dist.panel import duplicates, looks_like_ensembl, same_but_for_case
from spatialscope_dist.readers.findings import Findings, some
from spatialscope_dist.readers.naming import Naming, genes_under
from spatialscope_dist.readers.table import LARGEST_COUNT, ReferenceTable, SpotTable, Table

_LOG_MAX = 30.0  # log1p of any depth lies below
_MIN_SHARED, _MIN_SHARE = 20, 0.1


@dataclass
class ValueSummary:
    """What one pass over a matrix found."""

    n_values: int = 0
    n_missing: int = 0
    n_negative: int = 0
    n_fractions: int = 0
    largest: float = 0.0
    total: float = 0.0

    def add(self, values: NDArray[np.number]) -> None:
        """Count one piece of values."""
        finite = np.isfinite(values)
        usable = values[finite]
        self.n_values += values.size
        self.n_missing += int(values.size - usable.size)
        self.n_negative += int((usable < 0).sum())
        self.n_fractions += int((usable != np.rint(usable)).sum())
        self.largest = max(self.largest, float(usable.max(initial=0)))
        self.total += float(usable.sum(dtype=np.float64))


def check_values(table: Table, findings: Findings) -> None:
    """Note values that are no raw counts; reads the matrix once, by blocks."""
    summary = ValueSummary()
    before = len(findings.problems)
    with findings.collecting():
        for values in table.matrix.values():
            summary.add(values)
    if len(findings.problems) > before:
        return
    expected = "raw counts: whole numbers from 0 up"
    place = f"; {some(table.other_matrices)} of this file holds whole numbers" if table.other_matrices else ""
    if summary.n_missing:
        found = f"{summary.n_missing} of {summary.n_values} values missing or infinite (NaN)"
        findings.problem(table.where, found, expected, f"Give the raw counts{place}.")
    if summary.n_negative:
        found = f"{summary.n_negative} of {summary.n_values} values negative: scaled or corrected data"
        findings.problem(table.where, found, expected, f"Give the raw counts in X{place}.")
    elif summary.n_fractions:
        kind = "log-normalised" if summary.largest < _LOG_MAX else "normalised, not raw"
        found = f"{summary.n_fractions} of {summary.n_values} values with fractions, largest {summary.largest:.4g}"
        remedy = f"Give the raw counts in X{place}; round expected counts (RSEM, SoupX) yourself."
        findings.problem(table.where, f"{found}: these look {kind}", expected, remedy)
    if summary.largest > LARGEST_COUNT:
        found = f"a value of {summary.largest:.4g}"
        findings.problem(table.where, found, f"counts up to {LARGEST_COUNT}", "Give the raw counts.")
    if summary.total == 0 and not summary.n_missing:
        found = f"no counts at all in {table.matrix.shape[0]} rows × {table.matrix.shape[1]} genes"
        findings.problem(table.where, found, expected, "Give the file that holds the counts.")


def check_names(table: Table, findings: Findings, *, rows: str) -> None:
    """Note repeated genes and repeated rows ('barcodes' of spots or cells)."""
    for what, names, remedy in (
        ("genes", table.genes, "Sum their counts or rename them (anndata: var_names_make_unique)."),
        (rows, table.row_names, "Rename them (anndata: obs_names_make_unique)."),
    ):
        twice = duplicates(names)
        if twice:
            findings.problem(
                table.where, f"{len(twice)} {what} more than once: {some(twice)}", f"unique {what}", remedy
            )
    for naming, names in table.namings.items():
        if len(names) != table.matrix.shape[1]:
            found = f"{len(names)} gene names ({naming}) for {table.matrix.shape[1]} columns"
            findings.problem(table.where, found, "one name for each column", "Write the file again.")
    if len(table.row_names) != table.matrix.shape[0]:
        found = f"{len(table.row_names)} {rows} for {table.matrix.shape[0]} rows"
        findings.problem(table.where, found, "one name for each row", "Write the file again.")


def check_overlap(
    reference: ReferenceTable, spots: SpotTable, naming: Naming, section: str, findings: Findings
) -> None:
    """Note genes that reference and section do not share, with the likely cause."""
    known = genes_under(reference.namings, naming.reference)
    measured = genes_under(spots.namings, naming.sections[section])
    shared = len(set(known) & set(measured))
    smaller = min(len(known), len(measured))
    if shared >= _MIN_SHARED or shared >= _MIN_SHARE * smaller > 0:
        return
    found = f"{shared} genes shared by {spots.where} ({len(measured)} genes) and {reference.where} ({len(known)} genes)"
    expected = f"at least {_MIN_SHARED} shared genes"
    styles = [("Ensembl ids" if looks_like_ensembl(names) else "gene symbols") for names in (measured, known)]
    examples = f"spots: {some(measured[:3])}; reference: {some(known[:3])}"
    same = same_but_for_case(known, measured)
    if styles[0] != styles[1]:
        found = f"{found}: the spots use {styles[0]}, the reference {styles[1]} ({examples})"
        remedy = (
            "Use the same kind of names in both, or add the other kind as a column of var (gene_ids or gene_symbols)."
        )
    elif same > 2 * shared:
        species = "the two files look like different species (human symbols are GAPDH, mouse symbols Gapdh)"
        found = f"{found}; {same} more are the same but for upper and lower case: {species} ({examples})"
        remedy = "Use a reference of the section's species, or map genes to their orthologues."
    else:
        found = f"{found} ({examples})"
        remedy = "Use a reference that measures the genes of the section, named in the same way."
    findings.problem(f"genes of section {section}", found, expected, remedy)


def check_labels(reference: ReferenceTable, findings: Findings, *, column: str, few: int) -> None:
    """Note missing labels and types of one cell; warn about types of fewer than `few` cells."""
    missing = sum(label is None for label in reference.labels)
    if missing:
        found = f"{missing} of {len(reference.labels)} cells without a value in {column!r}"
        findings.problem(reference.where, found, "a cell type for every cell", "Remove these cells or label them.")
    names, counts = np.unique([label for label in reference.labels if label is not None], return_counts=True)
    types = [str(name) for name in names]
    findings.problems.extend(type_problems(types, counts, where=reference.where))
    if len(types) < 2:
        found = f"{len(types)} cell types in {column!r}"
        findings.problem(reference.where, found, "at least two", "Name another column with cell_type in [reference].")
    thin = small_types(types, counts, below=few)
    if thin:
        sizes = dict(zip(types, counts.tolist(), strict=True))
        listed = some(f"{name} ({sizes[name]})" for name in thin)
        findings.warn(f"{reference.where}: types of fewer than {few} cells have uncertain signatures: {listed}")


def check_given_cells(spots: SpotTable, findings: Findings) -> None:
    """Note values of the column of cells per spot that are no whole numbers."""
    if spots.n_cells is None:
        return
    bad = ~np.isfinite(spots.n_cells) | (spots.n_cells < 0) | (spots.n_cells != np.rint(spots.n_cells))
    if bad.any():
        names = some(spots.row_names[i] for i in np.flatnonzero(bad))
        found = f"{int(bad.sum())} spots without a whole number of cells: {names}"
        findings.problem(spots.where, found, "a whole number from 0 up", "Correct identify.n_cells_column.")


def check_nuclei(cells: pd.DataFrame, spots: SpotTable, types: Sequence[str], where: str, findings: Findings) -> None:
    """Note given nuclei that cannot be placed, named twice, or have types the reference lacks."""
    expected = "one row for each cell, with its place"
    if cells.empty:
        findings.problem(where, "no cell", expected, "Give at least one row.")
    twice = duplicates([str(name) for name in cells["cell_id"].dropna()])
    unnamed = int(cells["cell_id"].isna().sum())
    if twice or unnamed:
        found = f"{len(twice)} cell_id more than once ({some(twice) or 'none'}) and {unnamed} empty"
        findings.problem(where, found, "unique cell_id", "Rename them.")
    coordinates = [name for name in ("y", "x", "z") if name in cells.columns]
    lost = int((~np.isfinite(cells[coordinates].to_numpy(np.float64))).any(axis=1).sum())
    if lost:
        found = f"{lost} of {len(cells)} cells without a number in {', '.join(coordinates)}"
        findings.problem(where, found, expected, "Remove these rows or complete them.")
    unknown = sorted(set(cells["spot_id"].dropna()) - set(spots.row_names))
    if unknown:
        found = f"{len(unknown)} spot_id that are not in the counts: {some(unknown)}"
        findings.problem(where, found, f"names like {some(spots.row_names[:2])}", "Use the obs_names of the counts.")
    if "cell_type" in cells.columns:
        _check_given_types(cells, types, where, findings)


def _check_given_types(cells: pd.DataFrame, types: Sequence[str], where: str, findings: Findings) -> None:
    missing = int(cells["cell_type"].isna().sum())
    if missing:
        found = f"{missing} of {len(cells)} cells without cell_type"
        findings.problem(where, found, "a type for every cell, or no such column", "Complete it or remove the column.")
    unknown = sorted(set(cells["cell_type"].dropna()) - set(types))
    if unknown and types:
        found = f"types the reference does not have: {some(unknown)}"
        findings.problem(where, found, f"one of {some(types)}", "Rename the types or the reference's.")
