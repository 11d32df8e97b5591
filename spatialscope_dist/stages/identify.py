"""Stage `identify`: the types of all cells of a section, or of a stack of sections together."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, comb
from pathlib import Path
from typing import Any

from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.steps.typing_cells import finish_section
from spatialscope_dist.steps.typing_fit import SectionTask, batches, cache_batch, fit_batch
from spatialscope_dist.steps.typing_list import list_cells
from spatialscope_dist.steps.typing_model import prepare_section
from spatialscope_dist.steps.typing_morphology import learn_morphology, write_field
from spatialscope_dist.steps.typing_sweeps import (
    LABEL_BYTES,
    SweepTask,
    connect_cells,
    sweep_all,
    sweep_here,
    write_block,
)
from spatialscope_dist.store.documents import read_json, remove_tree, write_json
from spatialscope_dist.store.frames import count_rows
from spatialscope_dist.study import SectionFacts

NAME = "identify"
VERSION = 6
_NOT_CONTENT = {"n_blocks", "batch_spots", "checkpoint_every_sweeps"}
_WORK = ".work"  # no section has a name like that
_DROPPED = ".work-dropped.json"
_CELLS_PER_BLOCK = 500_000
_CELLS_IN_ONE_BLOCK = 1_000_000
_SLOTS = 6  # candidate types of a spot: 3 to 6 in most sections
_PART_BYTES = 120_000_000  # a part of the cells as a frame
_PROCESS_BYTES = 560 << 20  # a Python worker with NumPy, SciPy, pandas, zarr, and Numba compiling kernels


@dataclass
class _Steps:
    """Runs named units on workers and counts them."""

    context: Context
    item: str
    output: Path
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def start_anew_without_work(self) -> None:
        """Forget finished units when what they wrote for later units is gone."""
        dropped = self.output / _DROPPED
        if dropped.exists() or not (self.output / _WORK).exists():
            self.context.ledger.units(NAME, self.item, self.output).forget()
            remove_tree(self.output / _WORK)
            dropped.unlink(missing_ok=True)

    def map(self, function: Any, units: dict[str, dict[str, Any]], *, on_gpu: bool = False) -> dict[str, Any]:
        """Return the results by unit; finished units are not run again."""
        ledger = self.context.ledger.units(NAME, self.item, self.output)
        framework = "torch" if on_gpu else None
        results = self.context.pool.map(function, units, ledger_units=ledger, framework=framework, gpu=on_gpu)
        self.done += len(units)
        return results


def items(context: Context) -> list[str]:
    """Return the sections that stand alone and the stack of those with a depth."""
    return list(context.study.stacks())


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section is typed."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return upstream keys, options and seed; batches and blocks do not change the result."""
    study = context.study
    sections = study.stacks()[item]
    return {
        "sections": {
            name: {
                **{stage: context.upstream_key(stage, name) for stage in ("ingest", "align", "segment")},
                "platform": study.section(name).platform,
                "diameter_um": study.section(name).diameter_um,
            }
            for name in sections
        },
        "reference": context.upstream_key("reference", "study"),
        "reference_platform": study.reference.platform,
        "together": [context.upstream_key("ingest", name) for name in _together(context)],
        "options": study.options.identify.model_dump(mode="json", exclude=_NOT_CONTENT),
        "seed": study.seed,
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return the tasks, the largest of a batch, the graph and the sweeps, and the bytes kept."""
    facts, options = context.facts, context.study.options.identify
    sections = [facts.sections[name] for name in context.study.stacks()[item]]
    n_cells, n_spots = sum(s.n_cells for s in sections), sum(s.n_spots for s in sections)
    n_blocks = _n_blocks(options.n_blocks, n_cells)
    genes = min(min(s.n_genes for s in sections), facts.n_reference_genes)
    multisets = _multisets(n_cells, n_spots, options.max_multisets)
    slots, degree, types = _SLOTS, options.n_neighbors, facts.n_types
    batch = min(options.batch_spots, n_spots) * (40 * genes + 16 * multisets) + 40 * n_spots
    counted = max(_block_of_counts(s) for s in sections)
    prepared = 60_000_000 + 1000 * 80 * genes + 60 * types * facts.n_reference_genes + 250 * n_spots + counted
    listed = max(s.n_cells * 250 + s.n_spots * (300 + 40 * types) for s in sections) + _PART_BYTES
    graph = n_cells * (220 + 16 * degree + 12 * slots) + n_spots * 400
    swept = (n_cells * (60 + 48 * degree) + n_spots * (200 + 24 * multisets)) // n_blocks + n_cells * (60 + 16 * slots)
    peak = _PROCESS_BYTES + max(batch + counted, prepared, listed, graph, swept)
    tasks = sum(2 * ceil(s.n_spots / options.batch_spots) + 4 for s in sections) + n_blocks + 3
    disk = n_cells * (300 + 24 * degree) + n_spots * (100 + 20 * facts.n_types + 16 * multisets)
    return StagePlan(tasks=tasks, peak_bytes=int(peak), disk_bytes=int(disk))


def _multisets(n_cells: int, n_spots: int, most: int) -> int:
    return min(most, comb(ceil(n_cells / max(n_spots, 1)) + 3, 3))


def _block_of_counts(section: SectionFacts) -> int:
    return 24 * 4096 * ceil(section.n_stored / max(section.n_spots, 1))


def _n_blocks(wanted: int, n_cells: int) -> int:
    if wanted:
        return wanted
    return 1 if n_cells <= _CELLS_IN_ONE_BLOCK else ceil(n_cells / _CELLS_PER_BLOCK)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Fit every section, list its cells, sweep over all of them, write the labels.

    Units that are done, and sweeps that were kept, are not done again.

    Raises
    ------
    BadInput
        When a section shares no telling gene with the reference, or given types are unknown.
    """
    steps = _Steps(context, item, output)
    steps.start_anew_without_work()
    tasks = {name: _section_task(context, name, output) for name in context.study.stacks()[item]}
    sections = _fit_sections(steps, tasks)
    n_cells = {name: int(about["cells"]) for name, about in sections.items()}
    given = all(about["types_given"] for about in sections.values())
    swept = {"energy": [], "n_sweeps": 0} if given else _sweep(steps, tasks, sections)
    labels = None if given else output / _WORK / "labels.npz"
    offset = 0
    for name, task in tasks.items():
        unit = {f"{name}-finish": {"task": task, "labels": labels, "offset": offset}}
        sections[name] |= steps.map(finish_section, unit)[f"{name}-finish"]
        offset += n_cells[name]
    summary = {"types": read_json(_folder(context, "reference", "study") / "types.json"), "sections": sections, **swept}
    summary["options"] = context.study.options.identify.model_dump(mode="json", exclude=_NOT_CONTENT)
    write_json(output / "summary.json", summary)
    for name in tasks:
        write_json(output / name / "summary.json", {**summary, **sections[name]})
    _drop_work(output)
    return StageOutcome(done=steps.done, total=steps.done, failed=steps.failed, metrics=_metrics(summary))


def _drop_work(output: Path) -> None:
    # Noted first: a half-deleted folder must not pass for work that later units can go on with.
    write_json(output / _DROPPED, True)  # noqa: FBT003
    remove_tree(output / _WORK)


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    dropped = ("types", "options")
    return {name: value for name, value in summary.items() if name not in dropped}


def _section_task(context: Context, name: str, output: Path) -> SectionTask:
    section = context.study.section(name)
    return SectionTask(
        section=name,
        platform=section.platform,
        diameter_um=section.diameter_um,
        ingest=_folder(context, "ingest", name),
        reference=_folder(context, "reference", "study"),
        align=_folder(context, "align", name),
        segment=context.upstream("segment", name),
        together=tuple(_folder(context, "ingest", one) for one in _together(context)),
        reference_platform=context.study.reference.platform,
        work=output / _WORK / name,
        target=output / name,
        options=context.study.options.identify,
        seed=context.study.seed,
    )


def _together(context: Context) -> list[str]:
    """Return the sections that share one platform effect, in the study's order; none when each has its own."""
    shared = context.study.options.identify.platform_effect == "shared"
    names = [section.name for section in context.study.sections if shared]
    return [name for name in names if context.upstream("ingest", name) is not None]


def _folder(context: Context, stage: str, item: str) -> Path:
    folder = context.upstream(stage, item)
    assert folder is not None, f"{stage} runs before identify"
    return folder


def _fit_sections(steps: _Steps, tasks: dict[str, SectionTask]) -> dict[str, dict[str, Any]]:
    """Return what is known of every section after its weights are fitted and its cells listed."""
    sections = {
        name: dict(steps.map(prepare_section, {f"{name}-prepare": {"task": task}})) for name, task in tasks.items()
    }
    about = {name: result[f"{name}-prepare"] for name, result in sections.items()}
    for name, task in tasks.items():
        batch = task.options.batch_spots
        spans = list(batches(count_rows(task.ingest / "spots.parquet"), batch))
        units = {f"{name}-weights-{batch}-{low}": {"task": task, "low": low, "high": high} for low, high in spans}
        fitted = steps.map(fit_batch, units, on_gpu=task.options.weights_on == "gpu")
        failed = {spot: reason for unit in units for spot, reason in fitted[unit]["failed"].items()}
        steps.failed |= {f"{name}/{spot}": reason for spot, reason in failed.items()}
        about[name] |= {
            "failed_spots": len(failed),
            "not_converged_spots": sum(fitted[unit]["not_converged"] for unit in units),
            "spots_without_telling_counts": sum(fitted[unit]["no_telling_counts"] for unit in units),
        }
        about[name] |= steps.map(list_cells, {f"{name}-cells-{batch}": {"task": task, "batch": batch}})[
            f"{name}-cells-{batch}"
        ]
    return about


def _sweep(steps: _Steps, tasks: dict[str, SectionTask], sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the energies of the sweeps over all cells of the item, after writing their labels."""
    options = steps.context.study.options.identify
    n_cells = sum(about["cells"] for about in sections.values())
    max_cells = max(about["max_cells"] for about in sections.values())
    task = SweepTask(
        sections=tuple(tasks.values()),
        work=steps.output / _WORK,
        options=options,
        seed=steps.context.study.seed,
        n_blocks=_n_blocks(options.n_blocks, n_cells),
    )
    batch = options.batch_spots
    caches = {
        f"{name}-cache-{batch}-{low}": {"task": one, "low": low, "high": high, "max_cells": max_cells}
        for name, one in tasks.items()
        for low, high in batches(count_rows(one.ingest / "spots.parquet"), batch)
    }
    cached = steps.map(cache_batch, caches)
    tag = f"{task.n_blocks}-{batch}"
    graph = steps.map(connect_cells, {f"graph-{tag}": {"task": task}})[f"graph-{tag}"]
    morphology = _morphology(steps, task, tag)
    blocks = {f"block-{tag}-{number}": {"task": task, "number": number} for number in range(task.n_blocks)}
    halo = _halo(steps.map(write_block, blocks))
    if task.n_blocks == 1:
        swept = steps.map(sweep_here, {f"sweeps-{tag}": {"task": task}})[f"sweeps-{tag}"]
    else:
        swept = sweep_all(task, lambda function, calls: steps.context.pool.sweep(function, calls))
    multisets = sum(cached[unit]["multisets"] for unit in caches)
    return {**graph, **swept, **halo, **morphology, "multisets": multisets, "n_sweeps": len(swept["changes"])}


def _morphology(steps: _Steps, task: SweepTask, tag: str) -> dict[str, Any]:
    """Return by section whether the looks of nuclei help to type its cells, and why."""
    if task.options.morphology == "off":
        return {}
    batch = task.options.batch_spots
    units = {f"{one.section}-morphology-{batch}": {"task": one} for one in task.sections}
    learnt = steps.map(learn_morphology, units)
    if any(verdict["used"] for verdict in learnt.values()):
        steps.map(write_field, {f"field-{tag}": {"task": task}})
    return {"morphology": {one.section: learnt[f"{one.section}-morphology-{batch}"] for one in task.sections}}


def _halo(blocks: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Return what dividing the sweep costs: labels sent to the blocks, and spots updated by more than one."""
    total = {name: sum(block[name] for block in blocks.values()) for name in ("cells", "spots", "own_spots")}
    return {
        "blocks": len(blocks),
        "bytes_per_sweep": LABEL_BYTES * total["cells"] if len(blocks) > 1 else 0,
        "redundant_updates": total["spots"] / max(total["own_spots"], 1) - 1.0,
    }
