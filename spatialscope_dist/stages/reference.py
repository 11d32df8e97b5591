"""Stage `reference`: signatures of the cell types and the gene panel of the study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from spatialscope_dist.celltypes.signatures import (
    Signatures,
    marker_genes,
    small_types,
    type_problems,
    type_signatures,
    variable_genes,
)
from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import located
from spatialscope_dist.panel import positions_in
from spatialscope_dist.readers.checks import read_gene_file, study_naming
from spatialscope_dist.readers.matrix import block_bytes, row_ranges
from spatialscope_dist.readers.naming import genes_under
from spatialscope_dist.readers.pairs import read_pairs
from spatialscope_dist.readers.reference import read_reference
from spatialscope_dist.readers.sections import read_spots
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.counts import Counts, CountsWriter, open_counts
from spatialscope_dist.store.documents import write_json
from spatialscope_dist.store.frames import read_frame, write_frame
from spatialscope_dist.store.publish_reference import publish_reference
from spatialscope_dist.study import ReferenceSpec, Study

NAME = "reference"
VERSION = 2
_PROCESS_BYTES = 320 << 20  # a Python worker with NumPy, SciPy, pandas, h5py and zarr
_BLOCK_ENTRIES = 1 << 20


@dataclass(frozen=True)
class PanelRequest:
    """What the gene panel is chosen from.

    Parameters
    ----------
    genes
        'auto', 'all', or a list of genes.
    measured
        Genes of any section, under the names of the reference.
    imputed
        Some section has single cells with a measured panel: its other genes are imputed, so every
        gene of the reference may enter.
    always
        Genes of measured panels: they enter whatever their rank.
    paired
        Genes of the given ligand-receptor pairs.
    n_variable, n_markers
        Variable genes, and markers per type, of 'auto'.
    """

    genes: str | tuple[str, ...]
    measured: tuple[str, ...]
    imputed: bool
    always: tuple[str, ...]
    paired: tuple[str, ...]
    n_variable: int
    n_markers: int


@dataclass(frozen=True)
class Panel:
    """The gene panel: positions in the reference, ascending; markers of each type; genes by origin."""

    positions: NDArray[np.int64]
    markers: list[NDArray[np.int64]]
    origins: dict[str, int]


def items(context: Context) -> list[str]:
    """Return 'study': there is one reference."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every study has a reference."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the hash of the reference, the genes the sections measure, and the panel's options."""
    study = context.study
    reference = study.reference
    genes = reference.genes
    listed = genes not in {"auto", "all"}
    pairs = study.options.interact.pairs if genes == "auto" else None
    measured, always = _measured_genes(study)
    return {
        "reference": context.ledger.file_hash(reference.path),
        "cell_type": reference.cell_type,
        "naming": study_naming(study).reference,
        "genes": context.ledger.file_hash(located(genes)) if listed else genes,
        "pairs": None if pairs is None else context.ledger.file_hash(located(pairs)),
        "measured": hashlib.sha256("\n".join((*measured, "", *always)).encode()).hexdigest(),
        "imputed": _imputed(study),
        "n_variable_genes": reference.n_variable_genes,
        "n_markers_per_type": reference.n_markers_per_type,
        "min_cells_warn": reference.min_cells_warn,
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return the tasks and the memory of a block of cells beside the signatures."""
    facts = context.facts
    signatures = 40 * facts.n_types * facts.n_reference_genes
    names = 400 * facts.n_reference_cells + 1000 * facts.n_reference_genes
    peak = block_bytes(facts.n_reference_cells, facts.n_reference_genes) + signatures + names
    stored = context.study.reference.path.stat().st_size
    return StagePlan(tasks=3, peak_bytes=_PROCESS_BYTES + peak, disk_bytes=4 * stored + 2 * signatures)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Write counts, signatures and panel, then publish `reference.zarr`."""
    study = context.study
    units = context.ledger.units(NAME, item, output)
    counts = {"spec": study.reference, "naming": study_naming(study).reference, "output": output}
    context.pool.map(take_counts, {"counts": counts}, ledger_units=units)
    chosen = {"request": _request(study), "few": study.reference.min_cells_warn, "output": output}
    done = context.pool.map(write_signatures, {"signatures": chosen}, ledger_units=units)
    context.pool.map(publish_reference, {"publish": {"output": output, "target": context.place.reference}})
    return StageOutcome(done=3, total=3, metrics=done["signatures"])


def take_counts(spec: ReferenceSpec, naming: str, output: Path) -> dict[str, Any]:
    """Write reference.zarr, genes.json, cells.parquet and types.json; return their sizes."""
    reference = read_reference(spec)
    genes = genes_under(reference.namings, naming)
    writer = CountsWriter(output / "reference.zarr", genes)
    for block in reference.raw_blocks():
        writer.append(block)
    writer.close(reference.row_names)
    write_json(output / "genes.json", list(genes))
    frame = pd.DataFrame({"cell_id": reference.row_names, "cell_type": reference.labels})
    write_frame(output / "cells.parquet", frame)
    write_json(output / "types.json", reference.types)
    return {"n_cells": len(frame), "n_genes": len(genes), "n_types": len(reference.types)}


def write_signatures(request: PanelRequest, few: int, output: Path) -> dict[str, Any]:
    """Write signatures.zarr, panel.json and summary.json; return the summary.

    Raises
    ------
    BadInput
        When a type has fewer than two cells with counts, or no gene is left for the panel.
    """
    counts = open_counts(output / "reference.zarr")
    labels = read_frame(output / "cells.parquet")["cell_type"].to_numpy(str)
    types, label = np.unique(labels, return_inverse=True)
    names = [str(name) for name in types]
    signatures = type_signatures(_blocks(counts), label.astype(np.int64), len(names))
    problems = type_problems(names, signatures.n_cells)
    if problems:
        raise BadInput(problems)
    panel = choose_panel(signatures, counts.genes, request)
    if len(panel.positions) == 0:
        found = "no gene for the panel in both reference and sections"
        raise BadInput(Problem("reference", found, "at least one", "Set genes in [reference] to 'all' or a file."))
    write_array(output / "signatures.zarr", signatures.profiles, axes=("type", "gene"))
    genes = np.array(counts.genes, dtype=object)
    markers = {name: genes[found].tolist() for name, found in zip(names, panel.markers, strict=True)}
    write_json(output / "panel.json", {"genes": genes[panel.positions].tolist(), "markers": markers})
    sizes = zip(names, signatures.n_cells.tolist(), signatures.umi.tolist(), strict=True)
    summary = {
        "n_cells": counts.shape[0],
        "n_genes": counts.shape[1],
        "panel_genes": len(panel.positions),
        "panel_origins": panel.origins,
        "types": {name: {"cells": cells, "umi": umi} for name, cells, umi in sizes},
        "types_with_few_cells": small_types(names, signatures.n_cells, below=few),
    }
    write_json(output / "summary.json", summary)
    return summary


def choose_panel(signatures: Signatures, genes: Sequence[str], request: PanelRequest) -> Panel:
    """Return the gene panel, in the order of the reference.

    Only genes the reference counts at all, and that some section measures, may enter; where a
    section's unmeasured genes are imputed, every gene of the reference may.
    """
    counted = signatures.gene_totals > 0
    allowed = counted & (_among(genes, request.measured) | request.imputed)
    candidates = np.flatnonzero(allowed)
    if request.genes == "all":
        chosen = {"all": allowed}
    elif isinstance(request.genes, tuple):
        chosen = {"listed": allowed & _among(genes, request.genes)}
    else:
        chosen = {
            "markers": _mask(len(genes), *_markers(signatures, genes, candidates, request.n_markers)),
            "variable": _most_variable(signatures, genes, allowed, request.n_variable),
            "ligands_receptors": allowed & _among(genes, request.paired),
            "measured_in_situ": allowed & _among(genes, request.always),
        }
    union = np.logical_or.reduce(list(chosen.values()))
    positions = np.flatnonzero(union).astype(np.int64)
    markers = _markers(signatures, genes, positions, request.n_markers)
    return Panel(positions, markers, {name: int(mask.sum()) for name, mask in chosen.items()})


def _markers(
    signatures: Signatures, genes: Sequence[str], candidates: NDArray[np.int64], per_type: int
) -> list[NDArray[np.int64]]:
    names = [genes[i] for i in candidates]
    found = marker_genes(signatures.profiles[:, candidates], names, per_type=per_type)
    return [candidates[places] for places in found]


def _most_variable(
    signatures: Signatures, genes: Sequence[str], allowed: NDArray[np.bool_], n_genes: int
) -> NDArray[np.bool_]:
    ranked = variable_genes(signatures, genes, n_genes=len(genes))
    return _mask(len(genes), ranked[allowed[ranked]][:n_genes])


def _mask(length: int, *positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros(length, dtype=bool)
    for chosen in positions:
        mask[chosen] = True
    return mask


def _among(genes: Sequence[str], wanted: Sequence[str]) -> NDArray[np.bool_]:
    places = positions_in(genes, wanted)
    return _mask(len(genes), places[places >= 0])


def _blocks(counts: Counts) -> Iterator[sp.csr_matrix[Any]]:
    for low, high in row_ranges(counts.entries(), _BLOCK_ENTRIES):
        yield counts.rows(low, high)


def _request(study: Study) -> PanelRequest:
    spec = study.reference
    measured, always = _measured_genes(study)
    listed = spec.genes not in {"auto", "all"}
    pairs = study.options.interact.pairs if spec.genes == "auto" else None
    return PanelRequest(
        genes=tuple(read_gene_file(located(spec.genes))) if listed else spec.genes,
        measured=measured,
        imputed=_imputed(study),
        always=always,
        paired=() if pairs is None else tuple(sorted({gene for pair in read_pairs(located(pairs)) for gene in pair})),
        n_variable=spec.n_variable_genes,
        n_markers=spec.n_markers_per_type,
    )


def _imputed(study: Study) -> bool:
    return any(section.platform == "merfish" for section in study.sections)


def _measured_genes(study: Study) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the genes any section measures, and those of measured panels, sorted."""
    naming = study_naming(study)
    measured: set[str] = set()
    in_situ: set[str] = set()
    for section in study.sections:
        genes = genes_under(read_spots(section).namings, naming.sections[section.name])
        measured.update(genes)
        if section.platform == "merfish":
            in_situ.update(genes)
    return tuple(sorted(measured)), tuple(sorted(in_situ))
