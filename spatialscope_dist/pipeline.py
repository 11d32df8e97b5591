"""What the commands do with the stages: check, plan, run, status; and publishing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Cost, Pool
from spatialscope_dist.errors import BadInput, Problem, RefusedByPlan
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, Stage, StageOutcome
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.hashes import section_hashes
from spatialscope_dist.store.ledger import Entry, Ledger, content_key
from spatialscope_dist.store.place import Place, require_writable
from spatialscope_dist.store.publish import SectionSources, finish_switch, publish_section
from spatialscope_dist.study import Study

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
    from spatialscope_dist.nuclei.stardist_model import model_problems
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
    needed = sum(row["disk_bytes"] for row in planned.values())
    folder = next(parent for parent in (root, *root.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        misfits.append(
            f"- disk: {_gib(needed)} are needed at {root}, {_gib(free)} are free. Free space or give another --output."
        )
    if misfits:
        raise RefusedByPlan("The plan does not fit:\n" + "\n".join(misfits))


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
    """
    chosen = _between(first, until)
    for warning in check(study):
        events.emit("warning", text=warning)
    planned = plan(study, settings, stages=chosen)
    refuse_what_does_not_fit(planned, settings, study.output)
    context = _context(study, settings, events)
    context.pool.connect()
    require_writable(study.output)
    _require_earlier(context, STAGES[: STAGES.index(chosen[0])])
    if chosen == ["report"]:
        context.ledger.forget("report", "study")
    summary = Summary()
    try:
        for name in chosen:
            _run_stage(stage_module(name), context, summary, planned[name]["peak_bytes"])
            if name in _PUBLISH_AFTER or name == chosen[-1]:
                _publish(context)
    finally:
        context.pool.close()
    _conclude(context, summary)
    return summary


def status(study: Study) -> dict[str, dict[str, Any]]:
    """Return per stage what is done of what, which items failed and why, and what is out of date."""
    ledger = Ledger(Place(study.output).ledger)
    rows: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        entries = ledger.entries(name)
        failed = {f"{entry.item}/{unit}": reason for entry in entries for unit, reason in entry.failed.items()}
        rows[name] = {
            "done": sum(entry.done for entry in entries),
            "total": sum(entry.total for entry in entries),
            "items": sorted(entry.item for entry in entries),
            "failed": failed,
            "skipped": ledger.skips(name),
            "units_committed": ledger.count_units(name),
        }
    return rows


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
            context.ledger.skip(stage.NAME, item, reason)
            context.events.emit("skipped", stage=stage.NAME, item=item, reason=reason)
            continue
        entry = _run_item(stage, context, item, projected)
        summary.changed |= entry is not None
        current = entry or context.ledger.current(stage.NAME, item)
        if current is not None:
            summary.add(stage.NAME, current)


def _run_item(stage: Stage, context: Context, item: str, projected: int) -> Entry | None:
    """Run one item and commit it; return None when its output is already there."""
    inputs = stage.inputs(context, item)
    key = content_key(stage.NAME, stage.VERSION, inputs)
    output = context.place.output(stage.NAME, item, key)
    current = context.ledger.current(stage.NAME, item)
    if current is not None and current.key == key and output.exists():
        context.events.emit("unchanged", stage=stage.NAME, item=item)
        return None
    output.mkdir(parents=True, exist_ok=True)
    context.pool.take_cost()
    start = time.perf_counter()
    outcome = stage.run(context, item, output)
    cost = _cost(context.pool.take_cost(), time.perf_counter() - start, projected)
    entry = _entry(stage, item, key, inputs, outcome=outcome, cost=cost)
    context.ledger.commit(entry)
    _forget_older(output)
    context.events.emit(
        "committed",
        stage=stage.NAME,
        item=item,
        done=outcome.done,
        total=outcome.total,
        failed=len(outcome.failed),
        **cost,
    )
    return entry


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


def _forget_older(output: Path) -> None:
    for sibling in output.parent.iterdir():
        if sibling != output:
            shutil.rmtree(sibling, ignore_errors=True)


def _publish(context: Context) -> None:
    """Assemble every section whose stage outputs changed since it was last published."""
    units: dict[str, dict[str, Any]] = {}
    keys: dict[Path, str] = {}
    for section in context.study.sections:
        target = context.place.section(section.name)
        finish_switch(target)
        inputs = {name: context.upstream_key(name, item) for name, item in _sources_of(context, section.name)}
        key = content_key("publish", 1, inputs)
        mark = context.ledger.root / "publish" / f"{section.name}.json"
        if inputs["ingest"] is None or (target.exists() and mark.exists() and read_json(mark) == key):
            continue
        units[section.name] = {"sources": _section_sources(context, section.name), "target": target}
        keys[mark] = key
    if not units:
        return
    context.pool.map(publish_section, units, framework="any")
    folders = {name: unit["sources"] for name, unit in units.items()}
    hashing = {
        name: {"segment": s.segment, "identify": s.identify, "decompose": s.decompose} for name, s in folders.items()
    }
    hashes = context.pool.map(section_hashes, hashing, framework="any")
    known = read_json(context.place.hashes) if context.place.hashes.exists() else {}
    write_json(context.place.hashes, {**known, **hashes})
    for mark, key in keys.items():
        write_json(mark, key)
    context.pool.take_cost()


def _sources_of(context: Context, section: str) -> Iterator[tuple[str, str]]:
    yield from (("ingest", section), ("segment", section), ("decompose", section), ("reference", "study"))
    yield "identify", context.study.stack_of(section)


def _section_sources(context: Context, section: str) -> SectionSources:
    folders = {name: context.upstream(name, item) for name, item in _sources_of(context, section)}
    reference, identify, ingest = folders["reference"], folders["identify"], folders["ingest"]
    assert ingest is not None
    notes: dict[str, Any] = {"seed": context.study.seed, "study": context.study.name}
    notes["options"] = context.study.options.model_dump(mode="json")
    if identify is not None:
        notes["identify"] = read_json(identify / "summary.json")
    if folders["decompose"] is not None:
        notes["decompose"] = read_json(folders["decompose"] / "summary.json")
    return SectionSources(
        name=section,
        ingest=ingest,
        diameter_um=context.study.section(section).diameter_um,
        segment=folders["segment"],
        identify=None if identify is None else identify / section,
        decompose=folders["decompose"],
        reference=reference,
        types=[] if reference is None else read_json(reference / "types.json"),
        genes=[] if reference is None else read_json(reference / "panel.json")["genes"],
        notes=notes,
    )


def _conclude(context: Context, summary: Summary) -> None:
    entry = context.ledger.current("report", "study")
    if entry is not None and context.place.report.exists():
        summary.report = context.place.report
        summary.accuracy = entry.metrics.get("accuracy", {})


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
