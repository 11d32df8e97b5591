"""Runs a function over named units on workers: bounded in flight, resumable, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.measure import Measured, measured
from spatialscope_dist.engine.workers import SCHEDULER_LOST, Workers, slots_of
from spatialscope_dist.errors import BadInput, ClusterLost, StageFailed
from spatialscope_dist.location import storage_errors

if TYPE_CHECKING:
    from distributed import Future

_RETRIES = 2
# On many workers what has ended is made up for in batches: a task then costs the scheduler 1.25 ms instead of 3.5.
_REFILLS_PER_WINDOW, _PER_MESSAGE = 8, 32
_LOOK_EVERY_S = 15  # how soon workers that joined or left change what is in flight


class UnitLog(Protocol):
    """Remembers the units of a stage that were finished before."""

    def committed(self, units: Collection[str] | None = None) -> dict[str, Any]:
        """Return the results of the units committed so far, of those asked for when they are named."""

    def commit(self, unit: str, result: Any) -> None:
        """Note that a unit's output is complete."""


class Done(dict[str, Any]):
    """Results by unit; `failed` holds the reasons of units that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}


@dataclass
class Cost:
    """Cost of everything run since it was last taken."""

    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    units_run: int = 0
    units_resumed: int = 0

    def add(self, task: Measured) -> None:
        """Count one finished task."""
        self.cpu_seconds += task.cpu_seconds
        self.peak_rss_bytes = max(self.peak_rss_bytes, task.peak_rss_bytes)
        self.units_run += 1


@dataclass
class Pool:
    """Runs units on the workers of a run and counts what they cost."""

    settings: ClusterSettings
    events: Events
    cost: Cost = field(default_factory=Cost)
    workers: Workers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.settings)

    def branch(self, **about: str) -> Pool:
        """Return a pool on the same workers with a cost of its own; `about` is added to each of its events."""
        branched = Pool(self.settings, self.events.about(**about))
        branched.workers = self.workers
        return branched

    def map(
        self,
        function: Callable[..., Any],
        units: dict[str, dict[str, Any]],
        *,
        ledger_units: UnitLog | None = None,
        framework: str | None = None,
        gpu: bool = False,
        stop_on_failure: bool = True,
    ) -> Done:
        """Return the result of `function(**arguments)` for every unit.

        Units committed in `ledger_units` are not run again. At most two units per worker (or GPU) are in flight, so
        neither the scheduler nor the driver holds more than that; workers that join get their share. `framework` is
        'tensorflow', 'torch', None, or 'any' for work that may share whatever processes there are.

        Raises
        ------
        StageFailed
            When a unit fails for good and `stop_on_failure` is set; finished units stay committed.
        """
        done = Done()
        before = ledger_units.committed(units) if ledger_units is not None else {}
        done.update({unit: before[unit] for unit in units if unit in before})
        self.cost.units_resumed += len(done)
        waiting = {unit: arguments for unit, arguments in units.items() if unit not in done}
        if not waiting:
            return done
        total = len(units)
        # Closed here, not when an error that is kept lets go of it: until then the workers count as borrowed.
        with closing(self._stream(function, waiting, framework=framework, gpu=gpu)) as stream:
            for unit, task in stream:
                error = StageFailed(task) if isinstance(task, str) else task.failure
                if error is not None:
                    done.failed[unit] = str(error)
                    if stop_on_failure:
                        raise error if isinstance(error, BadInput) else StageFailed(f"{unit}: {error}")
                    continue
                assert isinstance(task, Measured)
                self.cost.add(task)
                done[unit] = task.result
                if ledger_units is not None:
                    ledger_units.commit(unit, task.result)
                self.events.emit("unit", unit=unit, done=len(done), total=total, **task.about())
        return done

    def sweep(
        self, function: Callable[..., Any], arguments: list[dict[str, Any]], *, framework: str | None = None
    ) -> list[Any]:
        """Return the results of one bulk-synchronous round, in the order of `arguments`."""
        done = self.map(function, {f"{number:06d}": item for number, item in enumerate(arguments)}, framework=framework)
        return [done[unit] for unit in sorted(done)]

    def connect(self) -> None:
        """Attach to the scheduler that was asked for; workers of our own start on first use.

        Raises
        ------
        BadInput
            When the scheduler does not answer, or its workers run other software.
        """
        self.workers.connect()

    def close(self) -> None:
        """Stop the workers, if any are running; nothing can be run any more."""
        self.workers.stop()

    def take_cost(self) -> Cost:
        """Return the cost since the last call and start counting anew."""
        cost, self.cost = self.cost, Cost()
        return cost

    def _stream(
        self, function: Callable[..., Any], units: dict[str, dict[str, Any]], *, framework: str | None, gpu: bool
    ) -> Generator[tuple[str, Measured | str], None, None]:
        from distributed import as_completed

        with self.workers.borrowed(framework, gpu=gpu) as client:
            names: dict[Any, str] = {}
            waiting = iter(units.items())
            slots, looked = slots_of(client, gpu=gpu, gpus=self.settings.gpus), time.monotonic()
            # Dask's reports and metrics group tasks by the name of their function.
            call = f"{function.__name__}-{uuid4().hex}"

            def submit() -> list[Future]:
                if client.status == "closed":
                    raise ClusterLost(SCHEDULER_LOST)
                room = slots.window - len(names)
                if names and room < slots.window // _REFILLS_PER_WINDOW:
                    return []
                batch = dict(islice(waiting, max(0, room)))
                if not batch:
                    return []
                keys = [(call, unit) for unit in batch]
                names.update(zip(keys, batch, strict=True))
                arguments = [function] * len(batch), list(batch.values())
                options = {"key": keys, "retries": _RETRIES, "resources": slots.resources, "batch_size": _PER_MESSAGE}
                futures: list[Future] = client.map(measured, *arguments, **options)
                return futures

            running = as_completed(submit())
            for future in running:
                outcome, unit = _outcome(future), names.pop(future.key)
                future.release()
                if time.monotonic() - looked > _LOOK_EVERY_S:
                    slots, looked = slots_of(client, gpu=gpu, gpus=self.settings.gpus), time.monotonic()
                for refill in submit():
                    running.add(refill)
                yield unit, outcome


def _outcome(future: Future) -> Measured | str:
    try:
        if future.status == "finished":
            result: Measured = future.result()
            return result
        error = future.exception()
    except (CancelledError, OSError) as lost:  # the connection went while the result was fetched
        raise ClusterLost(SCHEDULER_LOST) from lost
    if error is None:  # all futures are cancelled once the scheduler does not answer
        raise ClusterLost(SCHEDULER_LOST)
    if type(error).__name__ == "KilledWorker":
        return (
            "every worker that ran it died; expected to finish within the memory limit of a worker. "
            "Give fewer --workers with a larger --memory-limit, and look for what else ends processes here."
        )
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, storage_errors()):
        return f"{what}. Check disk, access and network of the workers, then run again."
    return what
