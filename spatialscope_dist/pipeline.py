"""What the commands do with the stages: check, plan, run, status; and publishing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Cost, Pool
from spatialscope_dist.errors import BadInput, Problem, RefusedByPlan, SpatialScopeError
from spatialscope_dist.location import is_remote, storage_errors
from spatialscope_dist.publishing import publish
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, Stage, StageOutcome
from spatialscope_dist.store.documents import make_folder, remove_tree
from spatialscope_dist.store.ledger import Entry, Ledger, content_key
from spatialscope_dist.store.place import Place, held, require_writable
from spatialscope_dist.study import Facts, Study

_PUBLISH_AFTER = ("identify", "decompose")
_QUARANTINED = 4


@dataclass
class Summary:
    """What a run did: per stage cost and counts, where the report is, accuracy when truth is given."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: Path | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    changed: bool = False

    @property
    def exit_code(self) -> int:
        """0, or 4 when some items were quarantined."""
        return _QUARANTINED if any(stage["failed"] for stage in self.stages.values()) else 0

    def add(self, stage: str, entry: Entry) -> None:
        """Count one committed item of a stage."""
        row = self.stages.setdefault(
            stage,
            {
                "seconds": 0.0,
                "cpu_seconds": 0.0,
                "peak_rss_bytes": 0,
                "projected_peak_bytes": 0,
                "done": 0,
                "total": 0,
                "failed": 0,
            },
        )
        for name in ("seconds", "cpu_seconds"):
            row[name] = round(row[name] + entry.cost[name], 3)
        for name in ("peak_rss_bytes", "projected_peak_bytes"):
            row[name] = max(row[name], entry.cost[name])
        row["done"] += entry.done
        row["total"] += entry.total
        row["failed"] += len(entry.failed)


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
) -> Summary:
    """Run the stages from `first` to `until` and return what was done.

    Stages whose content key is committed are not run again.

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
    context = _context(study, settings, events)
    context.pool.connect()
    require_writable(study.output)
    with held(study.output):
        return _run_stages(context, chosen, planned)


def _run_stages(context: Context, chosen: Sequence[str], planned: dict[str, dict[str, int]]) -> Summary:
    _keep_to_the_study(context)
    _require_earlier(context, STAGES[: STAGES.index(chosen[0])])
    if chosen == ["report"]:
        context.ledger.forget("report", "study")
    summary = Summary()
    try:
        for name in chosen:
            _run_stage(stage_module(name), context, summary, planned[name]["peak_bytes"])
            if name in _PUBLISH_AFTER or name == chosen[-1]:
                publish(context)
    finally:
        context.pool.close()
    _conclude(context, summary)
    return summary


def status(study: Study) -> dict[str, dict[str, Any]]:
    """Return per stage what is done of what, which items failed and why, and what waits.

    An item that waits counts with the units it has committed, of those the plan gives it.
    """
    context = _reading_context(study)
    return {name: _stage_status(stage_module(name), context) for name in STAGES}


def _stage_status(stage: Stage, context: Context) -> dict[str, Any]:
    ledger, items = context.ledger, stage.items(context)
    entries = [entry for entry in ledger.entries(stage.NAME) if entry.item in items]
    skipped = {item: reason for item, reason in ledger.skips(stage.NAME).items() if item in items}
    settled = {entry.item for entry in entries} | set(skipped)
    waiting = {item: ledger.count_units(stage.NAME, item) for item in items if item not in settled}
    left = sum(max(units, _planned_units(stage, context, item)) for item, units in waiting.items())
    return {
        "done": sum(entry.done for entry in entries) + sum(waiting.values()),
        "total": sum(entry.total for entry in entries) + left,
        "items": sorted(entry.item for entry in entries),
        "waiting": sorted(waiting),
        "failed": {f"{entry.item}/{unit}": reason for entry in entries for unit, reason in entry.failed.items()},
        "skipped": skipped,
        "units_committed": sum(ledger.count_units(stage.NAME, item) for item in items),
    }


def _planned_units(stage: Stage, context: Context, item: str) -> int:
    if not context.facts.sections:
        return 1
    return 0 if stage.skip_reason(context, item) is not None else stage.plan(context, item).tasks


def _reading_context(study: Study) -> Context:
    """Return a context to look with; inputs that cannot be read just now leave it without facts."""
    settings = ClusterSettings(workers=1, memory_limit_bytes=0)
    try:
        return _context(study, settings, Events())
    except storage_errors(SpatialScopeError):
        place = Place(study.output)
        return Context(study, place, Ledger(place.ledger), Pool(settings, Events()), Events(), Facts({}, 0, 0, 0))


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
    missing = [
        f"{name} of {item}"
        for name in names
        for item in stage_module(name).items(context)
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


def _key(stage: Stage, context: Context, item: str) -> str:
    return content_key(stage.NAME, stage.VERSION, stage.inputs(context, item))


def _stage_plan(stage: Stage, context: Context) -> dict[str, int]:
    plans = [stage.plan(context, item) for item in stage.items(context) if stage.skip_reason(context, item) is None]
    return {
        "tasks": sum(one.tasks for one in plans),
        "peak_bytes": max((one.peak_bytes for one in plans), default=0),
        "disk_bytes": sum(one.disk_bytes for one in plans),
    }


def _run_stage(stage: Stage, context: Context, summary: Summary, projected: int) -> None:
    context.events.emit("stage", stage=stage.NAME)
    for item in stage.items(context):
        reason = stage.skip_reason(context, item)
        if reason is not None:
            _withdraw(stage, context, item, reason)
            context.events.emit("skipped", stage=stage.NAME, item=item, reason=reason)
            continue
        entry = _run_item(stage, context, item, projected)
        summary.changed |= entry is not None
        current = entry or context.ledger.current(stage.NAME, item)
        if current is not None:
            summary.add(stage.NAME, current)


def _withdraw(stage: Stage, context: Context, item: str, reason: str) -> None:
    """Note that a stage is skipped; what it made before, and what was made from that, no longer counts."""
    before, published = context.ledger.current(stage.NAME, item), context.place.published(stage.NAME)
    if before is not None:
        context.ledger.forget_made_from(before.key, STAGES)
    context.ledger.skip(stage.NAME, item, reason)
    if published is not None:
        published.unlink(missing_ok=True)


def _run_item(stage: Stage, context: Context, item: str, projected: int) -> Entry | None:
    """Run one item and commit it; return None when its output is already there."""
    inputs = stage.inputs(context, item)
    key = content_key(stage.NAME, stage.VERSION, inputs)
    output, published = context.place.output(stage.NAME, item, key), context.place.published(stage.NAME)
    current = context.ledger.current(stage.NAME, item)
    whole = output.exists() and (published is None or published.exists())
    if current is not None and current.key == key and whole:
        context.events.emit("unchanged", stage=stage.NAME, item=item)
        return None
    if not output.exists():
        # Units noted for an output that was deleted since have left nothing to go on with.
        context.ledger.units(stage.NAME, item, output).forget()
    make_folder(output)
    if current is not None and published is not None and is_remote(published):
        _withdraw_published(context, current)
    context.pool.take_cost()
    start = time.perf_counter()
    outcome = stage.run(context, item, output)
    cost = _cost(context.pool.take_cost(), time.perf_counter() - start, projected)
    entry = _entry(stage, item, key, inputs, outcome=outcome, cost=cost)
    _commit(context, entry, current)
    return entry


def _withdraw_published(context: Context, current: Entry) -> None:
    """Let an output stop counting before another takes its place where users look: no store switches it at once."""
    context.ledger.forget_made_from(current.key, STAGES)
    context.ledger.forget(current.stage, current.item)


def _commit(context: Context, entry: Entry, before: Entry | None) -> None:
    """Make an output the current one: first what was made from the old one stops counting, last the old one goes."""
    if before is not None and before.key != entry.key:
        context.ledger.forget_made_from(before.key, STAGES)
    context.ledger.commit(entry)
    output = context.place.output(entry.stage, entry.item, entry.key)
    for sibling in output.parent.iterdir():
        if sibling != output:
            context.ledger.units(entry.stage, entry.item, sibling).forget()
            remove_tree(sibling)
    counts = {"done": entry.done, "total": entry.total, "failed": len(entry.failed)}
    context.events.emit("committed", stage=entry.stage, item=entry.item, **counts, **entry.cost)


def _cost(cost: Cost, seconds: float, projected: int) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
        "peak_rss_bytes": cost.peak_rss_bytes,
        "projected_peak_bytes": projected,
        "units_run": cost.units_run,
        "units_resumed": cost.units_resumed,
    }


def _entry(
    stage: Stage, item: str, key: str, inputs: dict[str, Any], *, outcome: StageOutcome, cost: dict[str, Any]
) -> Entry:
    return Entry(
        key=key,
        stage=stage.NAME,
        item=item,
        version=stage.VERSION,
        inputs=inputs,
        done=outcome.done,
        total=outcome.total,
        failed=outcome.failed,
        metrics=outcome.metrics,
        cost=cost,
    )


def _conclude(context: Context, summary: Summary) -> None:
    entry = context.ledger.current("report", "study")
    if entry is not None and context.place.report.exists():
        summary.report = context.place.report
        summary.accuracy = entry.metrics.get("accuracy", {})


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
