"""Runs stages over their items: together where none waits for another; one that fails leaves the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from spatialscope_dist.engine.pool import Cost
from spatialscope_dist.errors import ClusterLost, SpatialScopeError, StageFailed
from spatialscope_dist.location import is_remote
from spatialscope_dist.ordering import OF_ALL_SECTIONS, WHOLE, Node, what_waits
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, Stage, StageOutcome
from spatialscope_dist.store.documents import make_folder, remove_tree
from spatialscope_dist.store.ledger import Entry, content_key
from spatialscope_dist.study import Study

_QUARANTINED = 4
_AT_ONCE = 8
_FRAMEWORKS = {"segment": "nuclei", "train": "torch", "decompose": "torch"}
_TYPED_TOGETHER_FROM = STAGES.index("identify")


@dataclass
class Summary:
    """What a run did: per stage cost and counts, where the report is, accuracy when truth is given.

    `generative_quality` says how cells drawn from the model differ from held-out ones (`expression.quality.Quality`);
    `unpublished` why users do not find a section's results, by section.
    """

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: Path | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    generative_quality: dict[str, float] = field(default_factory=dict)
    changed: bool = False
    unpublished: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 4 when some items were quarantined."""
        failed = self.unpublished or any(stage["failed"] for stage in self.stages.values())
        return _QUARANTINED if failed else 0

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

    stage: Stage
    context: Context
    item: str
    key: str
    inputs: dict[str, Any]
    output: Path


def without_fallen_sections(context: Context, stage: str, failures: Mapping[str, str]) -> Context:
    """Return the context of a stage with the sections that are left; what all sections share sees them all."""
    left = [section for section in context.study.sections if section.name not in failures]
    if stage in OF_ALL_SECTIONS or len(left) == len(context.study.sections):
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


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    summary: Summary,
    projected: Mapping[str, int],
    *,
    finished: Callable[[str], None],
) -> None:
    """Run every item that is left of some stages, each as soon as what it needs is there.

    An item that fails is a status, and the others go on. Up to eight run at a time, those of later stages first;
    one alone runs right here. `finished` is called when all items of a stage have ended, before an item that waits
    for all of them begins.

    Raises
    ------
    SpatialScopeError
        When every item of a stage failed, or the scheduler is lost.
    """
    course = _Course({stage.NAME: stage for stage in stages}, context, summary, finished)
    waits = what_waits(context.study, course.items, apart=_apart(course.stages, context))
    order = TopologicalSorter(waits)
    order.prepare()
    ready: list[Node] = []
    under_way = _UnderWay()
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=_turn)
        if ready and under_way.jobs < _AT_ONCE:
            node = ready.pop(0)
            job = course.begin(*node)
            if job is not None and (ready or under_way.jobs):
                under_way.start(job, projected[job.stage.NAME])
                continue
            if job is not None:
                course.end(job, _attempt(job, projected[job.stage.NAME]))
        else:
            job, outcome = under_way.next_ended()
            course.end(job, outcome)
            node = job.stage.NAME, job.item
        order.done(node)


def _turn(node: Node) -> tuple[bool, int]:
    """Return what decides who is first: stages that have ended, then items of later stages."""
    stage, item = node
    return item != WHOLE, -STAGES.index(stage)


def _apart(stages: Mapping[str, Stage], context: Context) -> list[list[str]]:
    """Return groups of stages that must not run at one time: where workers are ours, those of other frameworks."""
    if context.pool.settings.scheduler is not None:
        return []
    groups: dict[str, list[str]] = {}
    for name, stage in stages.items():
        idle = all(stage.skip_reason(context, item) is not None for item in stage.items(context))
        groups.setdefault("" if idle else _FRAMEWORKS.get(name, ""), []).append(name)
    return list(groups.values())


@dataclass
class _UnderWay:
    """Jobs that run side by side, each in a thread of its own."""

    jobs: int = 0
    _ended: SimpleQueue[tuple[_Job, Future[Entry | SpatialScopeError]]] = field(default_factory=SimpleQueue)

    def start(self, job: _Job, projected: int) -> None:
        """Run a job beside the others."""
        self.jobs += 1
        # A daemon: an interruption is not held up by what it waits for; units it finishes meanwhile are whole.
        Thread(target=self._work, args=(job, projected), daemon=True).start()

    def next_ended(self) -> tuple[_Job, Entry | SpatialScopeError]:
        """Return a job that has ended, and what became of it."""
        job, done = self._ended.get()
        self.jobs -= 1
        return job, done.result()

    def _work(self, job: _Job, projected: int) -> None:
        done = Future[Entry | SpatialScopeError]()
        try:
            done.set_result(_attempt(job, projected))
        except BaseException as error:  # noqa: BLE001  # raised again where the run waits for it
            done.set_exception(error)
        self._ended.put((job, done))


@dataclass
class _Course:
    """Some stages under way: which items were tried, and which failed."""

    stages: dict[str, Stage]
    context: Context
    summary: Summary
    finished: Callable[[str], None]
    items: dict[str, list[str]] = field(init=False)
    tried: Counter[str] = field(default_factory=Counter)
    errors: dict[str, dict[str, SpatialScopeError]] = field(init=False)
    failed: dict[str, dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.items = {name: stage.items(self.context) for name, stage in self.stages.items()}
        self.errors = {}
        # What failed in an earlier run is tried again, where its stage is one of these.
        self.failed = {name: self.context.ledger.failures(name) for name in STAGES if name not in self.stages}

    def begin(self, name: str, item: str) -> _Job | None:
        """Return what is to be done for an item, None when nothing is; or conclude a stage."""
        stage = self.stages[name]
        if name not in self.errors:
            self.errors[name] = {}
            self.context.events.emit("stage", stage=name)
        if item == WHOLE:
            self._conclude(name)
            return None
        context = self._left(stage, item)
        if context is None or _skipped(stage, context, item):
            return None
        self.tried[name] += 1
        try:
            job = _job(stage, context, item)
        except SpatialScopeError as error:
            self._note(stage, item, error)
            return None
        if job is None:
            _count(stage, context, item, None, self.summary)
        return job

    def end(self, job: _Job, outcome: Entry | SpatialScopeError) -> None:
        """Commit what a job made, or note why it failed."""
        if isinstance(outcome, SpatialScopeError):
            self._note(job.stage, job.item, outcome)
            return
        _commit(self.context, outcome)
        _count(job.stage, self.context, job.item, outcome, self.summary)

    def _note(self, stage: Stage, item: str, error: SpatialScopeError) -> None:
        self.errors[stage.NAME][item] = error
        self.failed.setdefault(stage.NAME, {})[item] = str(error)
        _note_failure(stage, self.context, item, str(error))
        _count(stage, self.context, item, error, self.summary)

    def _conclude(self, name: str) -> None:
        errors = self.errors[name]
        if errors and len(errors) == self.tried[name]:
            raise _failure(errors)
        self.finished(name)

    def _left(self, stage: Stage, item: str) -> Context | None:
        """Return the context without sections that failed before; None when the item is of one: it is skipped."""
        fallen = fallen_sections(self.context.study, self.failed, before=stage.NAME)
        reduced = without_fallen_sections(self.context, stage.NAME, fallen)
        if item in stage.items(reduced):
            return reduced
        names = self.context.study.stacks().get(item, (item,))
        _withdraw(stage, self.context, item, next(fallen[name] for name in names if name in fallen))
        return None


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
    return _Job(stage, context, item, key, inputs, output)


def _withdraw_published(context: Context, current: Entry) -> None:
    """Let an output stop counting before another takes its place where users look: no store switches it at once."""
    context.ledger.forget_made_from(current.key, STAGES)
    context.ledger.forget(current.stage, current.item)


def _attempt(job: _Job, projected: int) -> Entry | SpatialScopeError:
    about = {"stage": job.stage.NAME, "item": job.item}
    pool, events = job.context.pool.branch(**about), job.context.events.about(**about)
    start = time.perf_counter()
    try:
        outcome = job.stage.run(replace(job.context, pool=pool, events=events), job.item, job.output)
    except ClusterLost:
        raise
    except SpatialScopeError as error:
        return error
    return _entry(job, outcome, _cost(pool.take_cost(), time.perf_counter() - start, projected))


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


def _entry(job: _Job, outcome: StageOutcome, cost: dict[str, Any]) -> Entry:
    return Entry(
        key=job.key,
        stage=job.stage.NAME,
        item=job.item,
        version=job.stage.VERSION,
        inputs=job.inputs,
        done=outcome.done,
        total=outcome.total,
        failed=outcome.failed,
        metrics=outcome.metrics,
        cost=cost,
    )
