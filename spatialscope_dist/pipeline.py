"""What the commands do with the stages: check, plan, run, status; and publishing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from spatialscope_dist.aging import aged_outputs
from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events, TaskLog
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.engine.workers import require_bokeh
from spatialscope_dist.errors import BadInput, Problem, RefusedByPlan, SpatialScopeError
from spatialscope_dist.location import is_remote, storage_errors
from spatialscope_dist.publishing import PUBLISHED_AFTER, projected_bytes, publish
from spatialscope_dist.running import Summary, fallen_sections, run_stages, without_fallen_sections
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, Stage
from spatialscope_dist.store.ledger import Ledger, content_key
from spatialscope_dist.store.place import Place, held, require_writable
from spatialscope_dist.study import Facts, Study


def stage_module(name: str) -> Stage:
    """Return the module of a stage.

    Raises
    ------
    BadInput
        When there is no stage of that name.
    """
    if name not in STAGES:
        raise BadInput(Problem("stage", repr(name), f"one of {', '.join(STAGES)}", "Choose one of these."))
    return cast(Stage, import_module(f"spatialscope_dist.stages.{name}"))


def check(study: Study) -> list[str]:
    """Return the warnings about a study's inputs.

    Raises
    ------
    BadInput
        With every problem found in any input.
    """
    from spatialscope_dist.nuclei.window_models import model_problems
    from spatialscope_dist.readers.checks import study_problems

    problems, warnings = study_problems(study)
    if any(section.image is not None and section.nuclei is None for section in study.sections):
        problems += model_problems(study.options.segment.model)
    if problems:
        raise BadInput(problems)
    return warnings


def plan(study: Study, settings: ClusterSettings, *, stages: Sequence[str] = STAGES) -> dict[str, dict[str, int]]:
    """Return tasks, projected peak bytes of a worker and bytes on disk of every stage."""
    context = _context(study, settings, Events())
    return {name: _stage_plan(stage_module(name), context) for name in stages}


def refuse_what_does_not_fit(planned: dict[str, dict[str, int]], settings: ClusterSettings, root: Path) -> None:
    """Raise when a stage's projected memory exceeds a worker's limit or the disk is too small.

    Raises
    ------
    RefusedByPlan
        Naming every stage that does not fit.
    """
    limit = settings.memory_limit_bytes
    misfits = [
        f"- {name}: a worker needs {_gib(row['peak_bytes'])}, --memory-limit is {_gib(limit)}. "
        "Give fewer --workers with a larger --memory-limit."
        for name, row in planned.items()
        if row["peak_bytes"] > limit
    ]
    misfits += _short_of_disk(sum(row["disk_bytes"] for row in planned.values()), root)
    if misfits:
        raise RefusedByPlan("The plan does not fit:\n" + "\n".join(misfits))


def _short_of_disk(planned_bytes: int, root: Path) -> list[str]:
    if is_remote(root):  # has no end that could be asked for
        return []
    # What an earlier run left is part of what the plan counts: a run that goes on needs only the rest.
    needed = max(0, planned_bytes - Place(root).stored_bytes())
    folder = next(parent for parent in (root, *root.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return []
    remedy = "Free space or give another --output."
    return [f"- disk: {_gib(needed)} are needed at {root}, {_gib(free)} are free. {remedy}"]


def run(
    study: Study,
    settings: ClusterSettings,
    events: Events,
    *,
    first: str | None = None,
    until: str | None = None,
    performance_reports: bool = False,
) -> Summary:
    """Run the stages from `first` to `until` and return what was done.

    Stages whose content key is committed are not run again. What every task cost is appended to
    `ledger/tasks.jsonl`; with `performance_reports`, Dask's own report of every stage is written beside the page.

    Raises
    ------
    BadInput
        When an input cannot be used; nothing is written then.
    RefusedByPlan
        When memory or disk do not suffice; nothing is written then.
    StageFailed
        When a stage cannot finish; what it had committed is kept.
    StoreError
        When another run is writing to the same folder.
    """
    chosen = _between(first, until)
    for warning in check(study):
        events.emit("warning", text=warning)
    planned = plan(study, settings, stages=chosen)
    refuse_what_does_not_fit(planned, settings, study.output)
    place = Place(study.output)
    if not is_remote(study.output):  # nothing can be appended to an object
        events = events.heard_by(TaskLog(place.task_log))
    if performance_reports:
        require_bokeh()
    context = _context(study, settings, events)
    context.pool.connect()
    require_writable(study.output)
    with held(study.output):
        return _run_stages(context, chosen, planned, context.place.performance if performance_reports else None)


def _run_stages(
    context: Context, chosen: Sequence[str], planned: dict[str, dict[str, int]], reports: Path | None
) -> Summary:
    _keep_to_the_study(context)
    _require_earlier(context, STAGES[: STAGES.index(chosen[0])])
    if chosen == ["report"]:
        context.ledger.forget("report", "study")
    summary = Summary()
    peaks = {name: planned[name]["peak_bytes"] for name in chosen}

    def publish_after(name: str) -> None:
        if name in PUBLISHED_AFTER:
            summary.unpublished = publish(context)

    try:
        # A report of Dask's is one of everything that runs meanwhile: with reports, stages run one by one.
        for span in [chosen] if reports is None else [[name] for name in chosen]:
            with context.pool.workers.reported(None if reports is None else reports / f"{span[0]}.html"):
                stages = [stage_module(name) for name in span]
                run_stages(stages, context, summary, peaks, finished=publish_after)
        summary.unpublished = publish(context)
    finally:
        context.pool.close()
    _conclude(context, summary)
    return summary


def status(study: Study) -> dict[str, dict[str, Any]]:
    """Return per stage what is done of what and found, which items failed, what waits, and what has aged, and why.

    An item that waits counts with the units it has committed, of those the plan gives it.
    """
    context = _reading_context(study)
    readable = bool(context.facts.sections)  # else nobody knows what a run would do
    failed = {name: context.ledger.failures(name) for name in STAGES}
    aged = aged_outputs([_seen_by(stage_module(name), context, failed) for name in STAGES if readable])
    return {name: {**_stage_status(stage_module(name), context), "aged": aged.get(name, {})} for name in STAGES}


def _stage_status(stage: Stage, context: Context) -> dict[str, Any]:
    ledger, items = context.ledger, stage.items(context)
    entries = [entry for entry in ledger.entries(stage.NAME) if entry.item in items]
    skipped = {item: reason for item, reason in ledger.skips(stage.NAME).items() if item in items}
    failed = {item: reason for item, reason in ledger.failures(stage.NAME).items() if item in items}
    settled = {entry.item for entry in entries} | set(skipped)
    waiting = {item: ledger.count_units(stage.NAME, item) for item in items if item not in settled}
    left = sum(max(units, _planned_units(stage, context, item)) for item, units in waiting.items())
    return {
        "done": sum(entry.done for entry in entries) + sum(waiting.values()),
        "total": sum(entry.total for entry in entries) + left,
        "items": sorted(entry.item for entry in entries),
        "metrics": {entry.item: entry.metrics for entry in entries},
        "waiting": sorted(waiting),
        "failed": {
            **{f"{entry.item}/{unit}": reason for entry in entries for unit, reason in entry.failed.items()},
            **failed,
        },
        "skipped": skipped,
        "units_committed": sum(ledger.count_units(stage.NAME, item) for item in items),
    }


def _planned_units(stage: Stage, context: Context, item: str) -> int:
    if not context.facts.sections:
        return 1
    return 0 if stage.skip_reason(context, item) is not None else stage.plan(context, item).tasks


def _reading_context(study: Study) -> Context:
    """Return a context to look with; inputs that cannot be read just now leave it without facts."""
    settings, place = ClusterSettings(workers=1, memory_limit_bytes=0), Place(study.output)
    ledger = Ledger(place.ledger, only_looks=True)
    try:
        return replace(_context(study, settings, Events()), ledger=ledger)
    except storage_errors(SpatialScopeError):
        return Context(study, place, ledger, Pool(settings, Events()), Events(), Facts({}, 0, 0, 0))


def _context(study: Study, settings: ClusterSettings, events: Events) -> Context:
    from spatialscope_dist.readers.facts import read_facts

    place = Place(study.output)
    return Context(study, place, Ledger(place.ledger), Pool(settings, events), events, read_facts(study))


def _between(first: str | None, until: str | None) -> list[str]:
    for name in (first, until):
        if name is not None:
            stage_module(name)
    low = STAGES.index(first) if first else 0
    high = STAGES.index(until) if until else len(STAGES) - 1
    if low > high:
        raise BadInput(Problem("--from/--until", f"{first} after {until}", "--from before --until", "Swap them."))
    return list(STAGES[low : high + 1])


def _keep_to_the_study(context: Context) -> None:
    for name in STAGES:
        context.ledger.keep_only(name, stage_module(name).items(context))


def _require_earlier(context: Context, names: tuple[str, ...]) -> None:
    failed = {name: context.ledger.failures(name) for name in names}
    missing = [
        f"{name} of {item}"
        for name in names
        for item in _items_left(stage_module(name), context, failed)
        if stage_module(name).skip_reason(context, item) is None and context.upstream(name, item) is None
    ]
    if missing:
        raise BadInput(
            Problem("--from", f"not yet run: {', '.join(missing)}", "earlier stages done", "Leave --from out.")
        )
    aged = [
        f"{entry.stage} of {entry.item}"
        for name in names
        for entry in context.ledger.entries(name)
        if entry.key != _key(stage_module(name), context, entry.item)
    ]
    if aged:
        text = f"made with other options or inputs, and used as they are: {', '.join(aged)}"
        context.events.emit("warning", text=f"{text}. Leave --from out to renew them.")


def _items_left(stage: Stage, context: Context, failed: dict[str, dict[str, str]]) -> list[str]:
    """Return the items of a stage without those that failed, and those of sections that had failed before."""
    _, seen = _seen_by(stage, context, failed)
    return [item for item in stage.items(seen) if item not in failed.get(stage.NAME, {})]


def _seen_by(stage: Stage, context: Context, failed: dict[str, dict[str, str]]) -> tuple[Stage, Context]:
    """Return a stage with the context it would run in: without sections that failed before."""
    fallen = fallen_sections(context.study, failed, before=stage.NAME)
    return stage, without_fallen_sections(context, stage.NAME, fallen)


def _key(stage: Stage, context: Context, item: str) -> str:
    return content_key(stage.NAME, stage.VERSION, stage.inputs(context, item))


def _stage_plan(stage: Stage, context: Context) -> dict[str, int]:
    plans = [stage.plan(context, item) for item in stage.items(context) if stage.skip_reason(context, item) is None]
    published = [projected_bytes(context)] if plans and stage.NAME in PUBLISHED_AFTER else []
    return {
        "tasks": sum(one.tasks for one in plans),
        "peak_bytes": max([*(one.peak_bytes for one in plans), *published], default=0),
        "disk_bytes": sum(one.disk_bytes for one in plans),
    }


def _conclude(context: Context, summary: Summary) -> None:
    summary.stages = {name: summary.stages[name] for name in STAGES if name in summary.stages}
    trained, entry = context.ledger.current("train", "study"), context.ledger.current("report", "study")
    summary.generative_quality = {} if trained is None else trained.metrics.get("quality", {})
    if entry is not None and context.place.report.exists():
        summary.report = context.place.report
        summary.accuracy = entry.metrics.get("accuracy", {})


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
