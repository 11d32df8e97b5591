"""Runs stages over their items: together where they do not depend on one another; one that fails leaves the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from spatialscope_dist.engine.pool import Cost
from spatialscope_dist.errors import ClusterLost, SpatialScopeError, StageFailed
from spatialscope_dist.location import is_remote
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, Stage, StageOutcome
from spatialscope_dist.store.documents import make_folder, remove_tree
from spatialscope_dist.store.ledger import Entry, content_key
from spatialscope_dist.study import Study

_QUARANTINED = 4
_AT_ONCE = 8
# Placing a section may start from the place of the one before it.
_ONE_BY_ONE = ("align",)
# What all sections share depends on their inputs, never on whether one of them could be worked through.
_OF_ALL_SECTIONS = ("reference", "train")
_TYPED_TOGETHER_FROM = STAGES.index("identify")


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

    def add(self, entry: Entry) -> None:
        """Count one committed item of a stage."""
        row = self._row(entry.stage)
        for name in ("seconds", "cpu_seconds"):
            row[name] = round(row[name] + entry.cost[name], 3)
        for name in ("peak_rss_bytes", "projected_peak_bytes"):
            row[name] = max(row[name], entry.cost[name])
        row["done"] += entry.done
        row["total"] += entry.total
        row["failed"] += len(entry.failed)

    def add_failure(self, stage: str) -> None:
        """Count one item that failed as a whole."""
        row = self._row(stage)
        row["total"] += 1
        row["failed"] += 1

    def _row(self, stage: str) -> dict[str, Any]:
        numbers = ("peak_rss_bytes", "projected_peak_bytes", "done", "total", "failed")
        empty = {"seconds": 0.0, "cpu_seconds": 0.0, **dict.fromkeys(numbers, 0)}
        return self.stages.setdefault(stage, empty)


@dataclass(frozen=True)
class _Job:
    """One item that is to be run: its key, what it depends on, where its output goes."""

    item: str
    key: str
    inputs: dict[str, Any]
    output: Path


def without_fallen_sections(context: Context, stage: str, failures: Mapping[str, str]) -> Context:
    """Return the context of a stage with the sections that are left; what all sections share sees them all."""
    left = [section for section in context.study.sections if section.name not in failures]
    if stage in _OF_ALL_SECTIONS or len(left) == len(context.study.sections):
        return context
    return replace(context, study=context.study.model_copy(update={"sections": tuple(left)}))


def fallen_sections(study: Study, failed: Mapping[str, Mapping[str, str]], *, before: str) -> dict[str, str]:
    """Return the sections a stage goes on without, with the reason, from the failed items of the stages before it.

    The sections of a stack are typed together: when one of them fails, none of them is typed.
    """
    position = STAGES.index(before)
    fallen: dict[str, str] = {}
    for stage in STAGES[:position]:
        for item, reason in failed.get(stage, {}).items():
            together = study.stacks().get(item, (item,))
            if position >= _TYPED_TOGETHER_FROM and item in {section.name for section in study.sections}:
                together = study.stacks()[study.stack_of(item)]
            fallen |= {name: fallen.get(name, f"{stage} of {item} failed: {reason}") for name in together}
    return fallen


def run_stage(stage: Stage, context: Context, summary: Summary, projected: int) -> None:
    """Run a stage for every item that is left; an item that fails is a status, and the others go on.

    Raises
    ------
    SpatialScopeError
        When every item failed, or the scheduler is lost.
    """
    context.events.emit("stage", stage=stage.NAME)
    context = _with_what_is_left(stage, context)
    chosen = [item for item in stage.items(context) if not _skipped(stage, context, item)]
    errors: dict[str, SpatialScopeError] = {}
    size = 1 if stage.NAME in _ONE_BY_ONE else max(1, len(chosen))
    for start in range(0, len(chosen), size):
        errors |= _run_items(stage, context, chosen[start : start + size], summary, projected=projected)
    if errors and len(errors) == len(chosen):
        raise _failure(errors)


def _run_items(
    stage: Stage, context: Context, items: Sequence[str], summary: Summary, *, projected: int
) -> dict[str, SpatialScopeError]:
    """Run items together and commit each when it is done; return the errors of those that failed."""
    ended: dict[str, Entry | SpatialScopeError] = {}
    jobs = []
    for item in items:
        try:
            jobs += [_job(stage, context, item)]
        except SpatialScopeError as error:
            ended[item] = error
            _note_failure(stage, context, item, str(error))
    for job, outcome in _together(stage, context, [job for job in jobs if job is not None], projected=projected):
        ended[job.item] = outcome
        if isinstance(outcome, Entry):
            _commit(context, outcome)
        else:
            _note_failure(stage, context, job.item, str(outcome))
    for item in items:
        _count(stage, context, item, ended.get(item), summary)
    return {item: outcome for item, outcome in ended.items() if isinstance(outcome, SpatialScopeError)}


def _count(
    stage: Stage, context: Context, item: str, outcome: Entry | SpatialScopeError | None, summary: Summary
) -> None:
    summary.changed |= outcome is not None
    current = outcome or context.ledger.current(stage.NAME, item)
    if isinstance(current, Entry):
        summary.add(current)
    elif current is not None:
        summary.add_failure(stage.NAME)


def _failure(errors: dict[str, SpatialScopeError]) -> SpatialScopeError:
    if len(errors) == 1:
        return next(iter(errors.values()))
    return StageFailed("every item failed:\n" + "\n".join(f"- {item}: {error}" for item, error in errors.items()))


def _with_what_is_left(stage: Stage, context: Context) -> Context:
    """Return the context without sections that failed before; the stage's items of those are skipped, saying why."""
    failed = {name: context.ledger.failures(name) for name in STAGES}
    fallen = fallen_sections(context.study, failed, before=stage.NAME)
    reduced = without_fallen_sections(context, stage.NAME, fallen)
    for item in set(stage.items(context)) - set(stage.items(reduced)):
        names = context.study.stacks().get(item, (item,))
        _withdraw(stage, context, item, next(fallen[name] for name in names if name in fallen))
    return reduced


def _skipped(stage: Stage, context: Context, item: str) -> bool:
    reason = stage.skip_reason(context, item)
    if reason is not None:
        _withdraw(stage, context, item, reason)
    return reason is not None


def _withdraw(stage: Stage, context: Context, item: str, reason: str) -> None:
    """Note that a stage is skipped; what it made before, and what was made from that, no longer counts."""
    _drop(stage, context, item)
    context.ledger.skip(stage.NAME, item, reason)
    context.events.emit("skipped", stage=stage.NAME, item=item, reason=reason)


def _note_failure(stage: Stage, context: Context, item: str, reason: str) -> None:
    """Note that an item failed; what was made of it with other options or inputs no longer counts."""
    _drop(stage, context, item)
    context.ledger.fail(stage.NAME, item, reason)
    context.events.emit("failed", stage=stage.NAME, item=item, reason=reason)


def _drop(stage: Stage, context: Context, item: str) -> None:
    before, published = context.ledger.current(stage.NAME, item), context.place.published(stage.NAME)
    if before is not None:
        context.ledger.forget_made_from(before.key, STAGES)
        context.ledger.forget(stage.NAME, item)
    if published is not None and published.is_file():
        published.unlink()


def _job(stage: Stage, context: Context, item: str) -> _Job | None:
    """Return what is to be done for an item, None when its output is already there."""
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
    return _Job(item, key, inputs, output)


def _withdraw_published(context: Context, current: Entry) -> None:
    """Let an output stop counting before another takes its place where users look: no store switches it at once."""
    context.ledger.forget_made_from(current.key, STAGES)
    context.ledger.forget(current.stage, current.item)


def _together(
    stage: Stage, context: Context, jobs: Sequence[_Job], *, projected: int
) -> Iterator[tuple[_Job, Entry | SpatialScopeError]]:
    """Yield each job with what became of it, as they end; up to eight run at a time, one alone runs right here."""
    if len(jobs) == 1:
        yield jobs[0], _attempt(stage, context, jobs[0], projected)
        return
    waiting: SimpleQueue[_Job] = SimpleQueue()
    ended: SimpleQueue[tuple[_Job, Future[Entry | SpatialScopeError]]] = SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        while not waiting.empty():
            job, done = waiting.get(), Future[Entry | SpatialScopeError]()
            try:
                done.set_result(_attempt(stage, context, job, projected))
            except BaseException as error:  # noqa: BLE001  # raised again where the run waits for it
                done.set_exception(error)
            ended.put((job, done))

    # Daemons: an interruption is not held up by what they wait for; units they finish meanwhile are whole.
    for _ in range(min(_AT_ONCE, len(jobs))):
        Thread(target=work, daemon=True).start()
    for _ in jobs:
        job, done = ended.get()
        yield job, done.result()


def _attempt(stage: Stage, context: Context, job: _Job, projected: int) -> Entry | SpatialScopeError:
    events = context.events.about(stage=stage.NAME, item=job.item)
    pool = context.pool.branch(stage=stage.NAME, item=job.item)
    start = time.perf_counter()
    try:
        outcome = stage.run(replace(context, pool=pool, events=events), job.item, job.output)
    except ClusterLost:
        raise
    except SpatialScopeError as error:
        return error
    cost = _cost(pool.take_cost(), time.perf_counter() - start, projected)
    return _entry(stage, job, outcome, cost)


def _commit(context: Context, entry: Entry) -> None:
    """Make an output the current one: first what was made from the old one stops counting, last the old one goes."""
    before = context.ledger.current(entry.stage, entry.item)
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


def _entry(stage: Stage, job: _Job, outcome: StageOutcome, cost: dict[str, Any]) -> Entry:
    return Entry(
        key=job.key,
        stage=stage.NAME,
        item=job.item,
        version=stage.VERSION,
        inputs=job.inputs,
        done=outcome.done,
        total=outcome.total,
        failed=outcome.failed,
        metrics=outcome.metrics,
        cost=cost,
    )
