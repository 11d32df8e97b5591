"""Stage `interact`: ligand-receptor interactions of touching cells in every section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.location import located
from spatialscope_dist.randomness import key_of
from spatialscope_dist.readers.pairs import read_pairs
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.arrays import open_array, read_array, write_array
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import join_sections, read_frame, write_frame

if TYPE_CHECKING:
    from spatialscope_dist.downstream.ligand_receptor import ContactGroups, NullSummary

NAME = "interact"
VERSION = 1

_PROCESS_BYTES = 320 << 20  # a Python worker with NumPy, SciPy, pandas and zarr
#: Fixed, so that sums over permutations are the same for any number of workers.
_PERMUTATIONS_PER_UNIT = 100
_PAIRS_PER_UNIT = 100


def items(context: Context) -> list[str]:
    """Return the one item: the table of all sections."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return why nothing is tested: no pairs are given."""
    if context.study.options.interact.pairs is None:
        return "no ligand-receptor pairs: give [interact] pairs = FILE.csv"
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return keys of cells and expression, the content of the pairs, seed and options."""
    study = context.study
    options = study.options.interact
    assert options.pairs is not None
    return {
        "identify": {s.name: context.cells_key(s.name) for s in study.sections},
        "decompose": {s.name: context.upstream_key("decompose", s.name) for s in study.sections},
        "reference": context.upstream_key("reference", "study"),
        "pairs": context.ledger.file_hash(located(options.pairs)),
        "options": options.model_dump(mode="json", exclude={"pairs"}),
        "seed": study.seed,
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return tasks per section, block of pairs and block of permutations; memory for expression and its shuffle."""
    options, facts = context.study.options.interact, context.facts
    n_pairs = len(read_pairs(located(options.pairs))) if options.pairs is not None else 0
    n_genes = 2 * min(n_pairs, _PAIRS_PER_UNIT)
    blocks = -(-max(n_pairs, 1) // _PAIRS_PER_UNIT) * -(-options.n_permutations // _PERMUTATIONS_PER_UNIT)
    scores = 8 * 8 * facts.n_types**2 * _PAIRS_PER_UNIT
    peak = max(s.n_cells * (3 * 8 * n_genes + 1500) for s in facts.sections.values()) + scores
    disk = sum(8 * s.n_cells * 2 * n_pairs for s in facts.sections.values())
    return StagePlan(tasks=len(facts.sections) * (blocks + 2), peak_bytes=_PROCESS_BYTES + peak, disk_bytes=disk)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Prepare every section, permute in blocks on workers, then join."""
    options, sections = context.study.options.interact, _sections(context)
    assert options.pairs is not None
    listed = read_pairs(located(options.pairs))
    units = context.ledger.units(NAME, item, output)
    preparing = {
        f"{name}.prepare": {
            "section": name,
            "cells": cells,
            "decompose": decompose,
            "reference": reference,
            "pairs": listed,
            "target": output / name,
            "seed": context.study.seed,
        }
        for name, (cells, decompose, reference) in sections.items()
    }
    prepared = context.pool.map(prepare_section, preparing, ledger_units=units)
    n_pairs = {name: int(prepared[f"{name}.prepare"]["pairs"]) for name in sections}
    blocks, joins = _block_units(context, output, n_pairs), _join_units(context, output, n_pairs)
    context.pool.map(permute_block, blocks, ledger_units=units)
    tables = context.pool.map(tabulate_section, joins, ledger_units=units)
    table = join_sections({name: output / name / "table.parquet" for name in sections})
    write_frame(output / "interactions.parquet", table)
    write_frame(context.place.table("interactions"), table)
    total = len(prepared) + len(blocks) + len(joins)
    found = {name.removesuffix(".table"): row for name, row in tables.items()}
    return StageOutcome(total, total, metrics={"listed": len(listed), "sections": found})


def _contact(context: Context) -> dict[str, Any]:
    options = context.study.options.interact
    return {"max_edge_um": options.max_edge_um, "min_cells": options.min_cells}


def _ranges(context: Context) -> list[tuple[int, int]]:
    """Return the first and last + 1 permutation of every block."""
    n_permutations = context.study.options.interact.n_permutations
    starts = range(0, n_permutations, _PERMUTATIONS_PER_UNIT)
    return [(low, min(low + _PERMUTATIONS_PER_UNIT, n_permutations)) for low in starts]


def _block_units(context: Context, output: Path, n_pairs: dict[str, int]) -> dict[str, dict[str, Any]]:
    return {
        f"{name}.pairs{block:04d}.permutations{low:06d}": {
            "folder": output / name,
            "block": block,
            "low": low,
            "high": high,
            "contact": _contact(context),
        }
        for name, pairs in n_pairs.items()
        for block in range(-(-pairs // _PAIRS_PER_UNIT))
        for low, high in _ranges(context)
    }


def _join_units(context: Context, output: Path, n_pairs: dict[str, int]) -> dict[str, dict[str, Any]]:
    return {
        f"{name}.table": {
            "folder": output / name,
            "n_blocks": -(-pairs // _PAIRS_PER_UNIT),
            "ranges": _ranges(context),
            "contact": _contact(context),
        }
        for name, pairs in n_pairs.items()
    }


def _sections(context: Context) -> dict[str, tuple[Path, Path, Path]]:
    """Return folders of cells, expression and reference of the sections that have them."""
    found: dict[str, tuple[Path, Path, Path]] = {}
    for section in context.study.sections:
        cells, decompose = context.cells_of(section.name), context.upstream("decompose", section.name)
        reference = context.upstream("reference", "study")
        if cells is not None and decompose is not None and reference is not None:
            found[section.name] = (cells, decompose, reference)
    return found


def prepare_section(
    *,
    section: str,
    cells: Path,
    decompose: Path,
    reference: Path,
    pairs: list[tuple[str, str]],
    target: Path,
    seed: int,
) -> dict[str, Any]:
    """Write the expression of the pairs' genes, the cells' places, types and keys; runs on a worker."""
    from spatialscope_dist.downstream.ligand_receptor import normalise

    panel = {gene: number for number, gene in enumerate(read_json(reference / "panel.json")["genes"])}
    kept = [(ligand, receptor) for ligand, receptor in pairs if ligand in panel and receptor in panel]
    genes = sorted({gene for pair in kept for gene in pair}, key=lambda gene: panel[gene])
    columns = [panel[gene] for gene in genes]
    frame = read_frame(cells / "cells.parquet")
    mean = open_array(decompose / "mean.zarr")
    rows_per_read = (mean.shards or mean.chunks)[0]
    expression = np.zeros((len(frame), len(genes)))
    for low in range(0, len(frame), rows_per_read):
        block = np.nan_to_num(np.asarray(mean[low : low + rows_per_read], dtype=np.float64))
        expression[low : low + rows_per_read] = normalise(block[:, columns], block.sum(axis=1))
    types = read_json(reference / "types.json")
    keys = [key_of(seed, "interact", section, cell) for cell in frame["cell_id"]]
    write_array(target / "expression.zarr", expression, axes=("cell", "gene"))
    write_array(target / "places_um.zarr", frame[["y_um", "x_um"]].to_numpy(np.float64), axes=("cell", "axis"))
    code = {name: number for number, name in enumerate(types)}
    write_array(target / "types.zarr", frame["cell_type"].map(code).to_numpy(np.int64), axes=("cell",))
    write_array(target / "keys.zarr", np.array(keys, dtype=np.int64), axes=("cell",))
    write_json(target / "names.json", {"types": types, "genes": genes, "pairs": kept})
    return {"cells": len(frame), "pairs": len(kept)}


def permute_block(*, folder: Path, block: int, low: int, high: int, contact: dict[str, Any]) -> dict[str, Any]:
    """Write the sums of one block of permutations for one block of pairs; runs on a worker."""
    from spatialscope_dist.downstream.ligand_receptor import summarise_null

    groups, types = _groups(folder, contact)
    expression, pairs = _expression(folder, block)
    keys = read_array(folder / "keys.zarr")
    null = summarise_null(groups, expression, pairs, types=types, keys=keys, permutations=range(low, high))
    stem = folder / f"null-{block:04d}-{low:06d}"
    for name in ("total", "n_greater", "n_less"):
        write_array(stem / name, getattr(null, name), axes=("group", "pair"))
    return {"permutations": high - low}


def tabulate_section(
    *, folder: Path, n_blocks: int, ranges: list[tuple[int, int]], contact: dict[str, Any]
) -> dict[str, Any]:
    """Write the table of one section from its blocks; runs on a worker."""
    from spatialscope_dist.downstream.ligand_receptor import count_expressing, score_interactions, tabulate_interactions

    groups, _ = _groups(folder, contact)
    names = read_json(folder / "names.json")
    observed, expressed, nulls = [], [], []
    for block in range(n_blocks):
        expression, pairs = _expression(folder, block)
        observed.append(score_interactions(groups, expression, *pairs))
        expressed.append(count_expressing(groups, expression, *pairs))
        nulls.append(_joined_null(folder, block, ranges))
    shape = (len(groups.types), 0)
    table = tabulate_interactions(
        groups,
        np.concatenate(observed, axis=1) if observed else np.zeros(shape),
        _side_by_side(nulls, shape),
        expressed=np.concatenate(expressed, axis=1) if expressed else np.zeros((*shape, 2), dtype=np.int64),
        type_names=names["types"],
        pair_names=[(ligand, receptor) for ligand, receptor in names["pairs"]],
    )
    write_frame(folder / "table.parquet", table)
    return {"type_pairs": len(groups.types), "pairs": len(names["pairs"]), "selected": int(table["selected"].sum())}


def _groups(folder: Path, contact: dict[str, Any]) -> tuple[ContactGroups, NDArray[np.int64]]:
    from spatialscope_dist.downstream.ligand_receptor import contact_graph, find_contacts

    types = read_array(folder / "types.zarr")
    graph = contact_graph(read_array(folder / "places_um.zarr"), max_edge_um=contact["max_edge_um"])
    n_types = len(read_json(folder / "names.json")["types"])
    return find_contacts(graph, types, n_types=n_types, min_cells=contact["min_cells"]), types


def _expression(folder: Path, block: int) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the expression of one block of pairs' genes, and the pairs' columns in it."""
    names = read_json(folder / "names.json")
    pairs = names["pairs"][block * _PAIRS_PER_UNIT : (block + 1) * _PAIRS_PER_UNIT]
    column = {gene: number for number, gene in enumerate(names["genes"])}
    wanted = sorted({column[gene] for pair in pairs for gene in pair})
    place = {number: index for index, number in enumerate(wanted)}
    expression = read_array(folder / "expression.zarr")[:, wanted]
    ligands = np.array([place[column[ligand]] for ligand, _ in pairs], dtype=np.int64)
    receptors = np.array([place[column[receptor]] for _, receptor in pairs], dtype=np.int64)
    return expression, (ligands, receptors)


def _joined_null(folder: Path, block: int, ranges: list[tuple[int, int]]) -> NullSummary:
    from spatialscope_dist.downstream.ligand_receptor import NullSummary

    parts = []
    for low, high in ranges:
        stem = folder / f"null-{block:04d}-{low:06d}"
        total, greater, less = (read_array(stem / name) for name in ("total", "n_greater", "n_less"))
        parts.append(NullSummary(total, greater, less, high - low))
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.plus(part)
    return joined


def _side_by_side(nulls: list[NullSummary], shape: tuple[int, int]) -> NullSummary:
    from spatialscope_dist.downstream.ligand_receptor import NullSummary

    if not nulls:
        empty = np.zeros(shape, dtype=np.int64)
        return NullSummary(np.zeros(shape), empty, empty, 1)
    return NullSummary(
        np.concatenate([null.total for null in nulls], axis=1),
        np.concatenate([null.n_greater for null in nulls], axis=1),
        np.concatenate([null.n_less for null in nulls], axis=1),
        nulls[0].n_permutations,
    )
