"""Stage `align`: places every section in common micrometre coordinates.

A section's place is given, or found by PASTE (Zeira et al. 2022, optional dependency): a fused
Gromov-Wasserstein coupling of its spots with those of the section before it, then a rigid map.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.geometry.sections import mapped, rigid_map
from spatialscope_dist.panel import positions_in
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame

NAME = "align"
VERSION = 1
_PROCESS_BYTES = 420 << 20  # a Python worker with anndata, scikit-learn and POT
_MATRICES = 14  # of (spots, spots) doubles held by the coupling's solver
_N_GENES = 1000


def items(context: Context) -> list[str]:
    """Return the sections; one that is aligned follows the section it is aligned with."""
    return [section.name for section in context.study.sections]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section has a place, its own coordinates when nothing is given."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the given transform and depth, or what the alignment depends on."""
    section = context.study.section(item)
    given = {"z_um": section.z_um, "align": section.align}
    if section.align == "given":
        return given | {"transform": [list(row) for row in section.transform]}
    before = _before(context, item)
    keys = {"ingest": item, "ingest of the section before": before}
    return given | {
        **{name: context.upstream_key("ingest", section) for name, section in keys.items()},
        "place of the section before": context.upstream_key(NAME, before),
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task; aligning holds dense matrices of spots by spots."""
    if context.study.section(item).align == "given":
        return StagePlan(tasks=1, peak_bytes=0, disk_bytes=4096)
    n_spots = [context.facts.sections[name].n_spots for name in (item, _before(context, item))]
    dense = 8 * (_MATRICES * max(n_spots) ** 2 + 6 * sum(n_spots) * _N_GENES)
    return StagePlan(tasks=1, peak_bytes=_PROCESS_BYTES + dense, disk_bytes=4096)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Write transform.json: (x, y, 1) in the section's µm → common µm, and the depth."""
    section = context.study.section(item)
    affine = np.array(section.transform, dtype=np.float64)
    metrics: dict[str, Any] = {}
    if section.align == "paste":
        before = _before(context, item)
        folders = {"moving": context.upstream("ingest", item), "fixed": context.upstream("ingest", before)}
        found = context.pool.map(align_with, {item: folders}, ledger_units=context.ledger.units(NAME, item, output))
        place = context.upstream(NAME, before)
        assert place is not None
        affine = np.array(read_json(place / "transform.json")["affine_um"]) @ np.array(found[item]["affine_um"])
        metrics = {"aligned_with": before, **found[item]}
    write_json(output / "transform.json", {"affine_um": affine.tolist(), "z_um": section.z_um or 0.0})
    return StageOutcome(done=1, total=1, metrics=metrics)


def align_with(moving: Path, fixed: Path) -> dict[str, Any]:
    """Return the rigid map of one section's µm onto another's, and the rotation in degrees."""
    with _only_numpy(), contextlib.redirect_stdout(io.StringIO()):
        paste = import_module("paste")
        tables = _comparable(moving, fixed)
        coupling = paste.pairwise_align(tables[1], tables[0], alpha=0.1)
    places = [np.asarray(table.obsm["spatial"]) for table in tables]
    affine = rigid_map(places[0], places[1], np.asarray(coupling, dtype=np.float64))
    apart = np.linalg.norm(places[1][:, None] - mapped(affine, places[0])[None], axis=2)
    return {
        "affine_um": affine.tolist(),
        "rotation_degrees": float(np.degrees(np.arctan2(affine[1, 0], affine[0, 0]))),
        "coupled_distance_um": float((apart * coupling).sum() / coupling.sum()),
    }


def _before(context: Context, item: str) -> str:
    names = items(context)
    return names[names.index(item) - 1]


def _comparable(*folders: Path) -> list[Any]:
    """Return the sections as AnnData over the genes both count most, ties by name."""
    import anndata

    tables = [open_counts(folder / "counts.zarr") for folder in folders]
    totals = [dict(zip(table.genes, table.column_sums().tolist(), strict=True)) for table in tables]
    shared = sorted(set(tables[0].genes) & set(tables[1].genes))
    genes = sorted(shared, key=lambda gene: (-min(total[gene] for total in totals), gene))[:_N_GENES]
    return [
        anndata.AnnData(
            np.concatenate([block[:, positions_in(table.genes, genes)].toarray() for _, block in table.blocks(1024)])[
                _usable(folder)
            ].astype(np.float64),
            obsm={"spatial": _places(folder)[_usable(folder)]},
            var=pd.DataFrame(index=genes),
        )
        for folder, table in zip(folders, tables, strict=True)
    ]


def _usable(folder: Path) -> NDArray[np.bool_]:
    return np.asarray(read_frame(folder / "spots.parquet", ["status"])["status"] == "ok")


def _places(folder: Path) -> NDArray[np.float64]:
    return read_frame(folder / "spots.parquet", ["x_um", "y_um"]).to_numpy(np.float64)


@contextlib.contextmanager
def _only_numpy() -> Iterator[None]:
    """Keep POT from importing every array library it finds, each hundreds of megabytes."""
    switches = {f"POT_BACKEND_DISABLE_{name}": "1" for name in ("PYTORCH", "TENSORFLOW", "JAX", "CUPY")}
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
