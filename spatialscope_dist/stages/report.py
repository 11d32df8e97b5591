"""Stage `report`: one HTML page that stands alone, and the accuracy when the truth is given."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.steps.embedding import MAX_CELLS, view_decomposed, view_generated
from spatialscope_dist.steps.section_view import Limits, SectionFolders, view_section
from spatialscope_dist.store.documents import read_json, write_bytes, write_json
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd

    from spatialscope_dist.report.views import StageView, StudyView

NAME = "report"
VERSION = 3

_PROCESS_BYTES = 420 << 20  # a Python worker with NumPy, SciPy, pandas, zarr and matplotlib
_UMAP_BYTES = 160 << 20  # with its compiled loops
_BEFORE = STAGES[: STAGES.index(NAME)]
_TABLES = {"interact": "interactions", "variable": "variable_genes", "differential": "spatial_de"}
_LIBRARIES = ("anndata", "dask", "numpy", "scipy", "spatialdata", "stardist", "tensorflow", "torch", "zarr")


def items(context: Context) -> list[str]:
    """Return the one item: the report of the study."""
    return ["study"]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: there is always something to report."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the keys of every stage's current outputs, and the options, which the page shows."""
    ledger = context.ledger
    return {
        "outputs": {stage: {entry.item: entry.key for entry in ledger.entries(stage)} for stage in _BEFORE},
        "skipped": {stage: ledger.skips(stage) for stage in _BEFORE},
        "failed": {stage: ledger.failures(stage) for stage in _BEFORE},
        "options": context.study.options.model_dump(mode="json"),
        "seed": context.study.seed,
        "names": [context.study.name, *(section.name for section in context.study.sections)],
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return one task; memory for frames of one section, one shard of expression, embedded cells and the pictures."""
    options, facts = context.study.options.report, context.facts
    pictures = 48 * options.max_image_px**2
    cells = max(600 * s.n_cells + 500 * s.n_spots + 100 * s.n_genes for s in facts.sections.values())
    shard = 8 * context.study.options.decompose.rows_per_shard * facts.n_reference_genes
    embedded = 24 * MAX_CELLS * (context.largest_panel() + MAX_CELLS) if options.embedding != "off" else 0
    embedded += _UMAP_BYTES if options.embedding == "umap" else 0
    return StagePlan(tasks=1, peak_bytes=_PROCESS_BYTES + pictures + cells + max(shard, embedded), disk_bytes=20 << 20)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Build the page on a worker and put it where users look for it."""
    study = context.study
    sections = [folders for section in study.sections if (folders := _folders(context, section.name)) is not None]
    options = study.options.report
    unit = {
        "about": {
            "name": study.name,
            "seed": study.seed,
            "options": study.options.model_dump(mode="json"),
            "marker": options.marker_gene,
            "embedding": options.embedding,
            "reference": study.reference.path.name,
        },
        "sections": sections,
        "limits": Limits(options.max_image_px, options.max_points, study.seed),
        "shared": {stage: context.upstream(stage, "study") for stage in ("reference", "train", *_TABLES)},
        "ledger": context.ledger.root,
        "page": context.place.report,
    }
    # not entered in the ledger as a unit: `spatialscope report` builds the page anew
    done = context.pool.map(build_report, {"page": unit})
    accuracy = done["page"]["accuracy"]
    write_json(output / "accuracy.json", accuracy)
    return StageOutcome(done=1, total=1, metrics={"accuracy": accuracy, "bytes": done["page"]["bytes"]})


def _folders(context: Context, section: str) -> SectionFolders | None:
    ingest = context.upstream("ingest", section)
    if ingest is None:
        return None
    return SectionFolders(
        name=section,
        ingest=ingest,
        segment=context.upstream("segment", section),
        identify=context.cells_of(section),
        decompose=context.upstream("decompose", section),
        reference=context.upstream("reference", "study"),
    )


def build_report(
    *,
    about: dict[str, Any],
    sections: Sequence[SectionFolders],
    limits: Limits,
    shared: dict[str, Path | None],
    ledger: Path,
    page: Path,
) -> dict[str, Any]:
    """Write the page and return the accuracy and its size; runs on a worker."""
    from spatialscope_dist.report.contents import build_page
    from spatialscope_dist.report.page import render_page
    from spatialscope_dist.steps.truth import score_section

    views = []
    for folders in sections:
        scores = score_section(folders, model=shared["train"])
        view = view_section(folders, limits=limits, marker=about["marker"])
        views.append(dataclasses.replace(view, accuracy=scores))
    accuracy = average_scores([dict(view.accuracy) for view in views])
    study = _study_view(about, views, shared, stages=stage_views(Ledger(ledger)), accuracy=accuracy)
    if about["embedding"] != "off":
        method, seed = about["embedding"], about["seed"]
        study = dataclasses.replace(
            study,
            generated=view_generated(shared["train"], method=method, seed=seed),
            decomposed=view_decomposed(sections, method=method, seed=seed),
        )
    text = render_page(build_page(study))
    write_bytes(page, text.encode())
    return {"accuracy": accuracy, "bytes": len(text)}


def average_scores(sections: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every score over the sections that have it; numbers of cells are added."""
    names = sorted({name for scores in sections for name in scores})
    joined: dict[str, float] = {}
    for name in names:
        values = [scores[name] for scores in sections if name in scores]
        joined[name] = sum(values) if name == "cells_scored" else sum(values) / len(values)
    return joined


def _study_view(
    about: dict[str, Any],
    views: list[Any],
    shared: dict[str, Path | None],
    *,
    stages: list[StageView],
    accuracy: dict[str, float],
) -> StudyView:
    from spatialscope_dist.report.views import StudyView

    reference = shared["reference"]
    summary = {} if reference is None else read_json(reference / "summary.json")
    tables = {name: _table(shared, stage, name) for stage, name in _TABLES.items()}
    return StudyView(
        name=about["name"],
        seed=about["seed"],
        version=_version("spatialscope_dist"),
        types=[] if reference is None else read_json(reference / "types.json"),
        sections=views,
        stages=stages,
        training=_training(shared["train"]),
        quality=_quality(shared["train"]),
        options=about["options"],
        versions={"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
        reference=about["reference"],
        n_reference_cells=summary.get("n_cells"),
        few_cells={name: summary["types"][name]["cells"] for name in summary.get("types_with_few_cells", [])},
        n_panel_genes=None if reference is None else len(read_json(reference / "panel.json")["genes"]),
        accuracy=accuracy,
        interactions=tables["interactions"],
        variable_genes=tables["variable_genes"],
        spatial_de=tables["spatial_de"],
    )


def _table(shared: dict[str, Path | None], stage: str, name: str) -> pd.DataFrame | None:
    folder = shared[stage]
    return None if folder is None else read_frame(folder / f"{name}.parquet")


def _training(folder: Path | None) -> dict[str, pd.DataFrame]:
    """Return the training curve of each network; that of the first has no name of its own."""
    import pandas as pd

    if folder is None or not (folder / "training.jsonl").exists():
        return {}
    curves = {}
    for number, name in enumerate(read_json(folder / "model.json")["training"]["options"]["networks"]):
        file = folder / ("training.jsonl" if number == 0 else f"training_{name}.jsonl")
        if file.exists():
            curves[name] = pd.DataFrame([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    return curves


def _quality(folder: Path | None) -> dict[str, float]:
    return {} if folder is None else dict(read_json(folder / "model.json")["training"].get("quality", {}))


def stage_views(ledger: Ledger) -> list[StageView]:
    """Return what the ledger knows of every stage before this one."""
    from spatialscope_dist.report.views import StageView

    views = []
    for name in _BEFORE:
        entries = ledger.entries(name)
        cost: dict[str, float] = {}
        for entry in entries:
            for key, value in entry.cost.items():
                joined = max if key.endswith("_bytes") else sum
                cost[key] = joined((cost.get(key, 0.0), value))
        failed = {f"{entry.item}: {unit}": reason for entry in entries for unit, reason in entry.failed.items()}
        failed |= ledger.failures(name)
        done, total = sum(entry.done for entry in entries), sum(entry.total for entry in entries)
        views.append(StageView(name, done, total, cost, failed, ledger.skips(name)))
    return views


def _version(library: str) -> str:
    names = (library, f"{library}-cpu") if library == "tensorflow" else (library,)
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"
