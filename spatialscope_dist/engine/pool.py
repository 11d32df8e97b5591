"""Runs a function over named units on workers: bounded in flight, resumable, measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from spatialscope_dist.engine.cluster import ClusterSettings, close_client, open_client
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.measure import Measured, measured
from spatialscope_dist.errors import BadInput, StageFailed

if TYPE_CHECKING:
    from distributed import Client, Future

_RETRIES = 2


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
    """Workers that are started on first use and shared by the stages of a run.

    TensorFlow and torch never share a process of ours: the local cluster is replaced when the
    framework changes. A scheduler we attached to is left as it is.
    """

    settings: ClusterSettings
    events: Events
    cost: Cost = field(default_factory=Cost)
    _client: Client | None = field(default=None, repr=False)
    _kind: tuple[str | None, bool] = (None, False)

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

        Units committed in `ledger_units` are not run again. At most two units per worker are in
        flight, so neither the scheduler nor the driver holds more than that. `framework` is
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
        for unit, task in self._stream(function, waiting, framework=framework, gpu=gpu):
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
            self.events.emit("unit", unit=unit, done=len(done), total=total, seconds=round(task.seconds, 3))
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
            When the scheduler does not answer.
        """
        if self.settings.scheduler is not None and self._client is None:
            self._client = open_client(self.settings)

    def close(self) -> None:
        """Stop the workers, if any are running."""
        if self._client is not None:
            close_client(self._client)
            self._client = None

    def take_cost(self) -> Cost:
        """Return the cost since the last call and start counting anew."""
        cost, self.cost = self.cost, Cost()
        return cost

    def _open(self, framework: str | None, gpu: bool) -> Client:  # noqa: FBT001
        ours = self.settings.scheduler is None
        if self._client is not None and ours and framework != "any" and self._kind != (framework, gpu):
            self.close()
        if self._client is None:
            self._client = open_client(self.settings, gpu=gpu)
            self._kind = (framework, gpu)
        return self._client

    def _stream(
        self, function: Callable[..., Any], units: dict[str, dict[str, Any]], *, framework: str | None, gpu: bool
    ) -> Iterator[tuple[str, Measured | str]]:
        from distributed import as_completed

        client = self._open(framework, gpu)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        offers_gpu = any(worker["resources"].get("GPU") for worker in workers.values())
        resources = {"GPU": 1} if gpu and offers_gpu else None
        window = 2 * max(1, sum(worker["nthreads"] for worker in workers.values()))
        waiting = iter(units.items())

        def submit(items: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Future]:
            for unit, arguments in items:
                future = client.submit(measured, function, arguments, pure=False, retries=_RETRIES, resources=resources)
                names[future.key] = unit
                yield future

        names: dict[str, str] = {}
        running = as_completed(submit(islice(waiting, window)))
        for future in running:
            outcome = _outcome(future)
            future.release()
            for refill in submit(islice(waiting, 1)):
                running.add(refill)
            yield names.pop(future.key), outcome


def _outcome(future: Future) -> Measured | str:
    if future.status == "finished":
        result: Measured = future.result()
        return result
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return (
            "every worker that ran it died; expected to finish within the memory limit of a worker. "
            "Give fewer --workers with a larger --memory-limit, and look for what else ends processes here."
        )
    return f"{type(error).__name__}: {error}"
