"""The workers of a run: started on first use, shared by everything that runs at one time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING

from spatialscope_dist.engine.cluster import ClusterSettings, close_client, open_client
from spatialscope_dist.errors import BadInput, ClusterLost, Problem

if TYPE_CHECKING:
    from distributed import Client

SCHEDULER_LOST = (
    "the Dask scheduler no longer answers. What was committed is kept; run the same command again to continue."
)
_WINDOW_PER_SLOT = 2


@dataclass(frozen=True)
class Slots:
    """How many units may be in flight, and what a worker must offer to be given one."""

    window: int
    resources: dict[str, float] | None


@dataclass
class Workers:
    """One client at a time.

    TensorFlow and torch never share a process of ours: the local cluster is replaced when the framework changes,
    after the work that uses the old one has ended. A scheduler we attached to is left as it is.
    """

    settings: ClusterSettings
    _client: Client | None = field(default=None, repr=False)
    _kind: tuple[str | None, bool] = (None, False)
    _users: int = 0
    _stopped: bool = False
    _turn: Condition = field(default_factory=Condition, repr=False)
    _report_file: Path | None = None
    _report: ExitStack | None = field(default=None, repr=False)

    @contextmanager
    def borrowed(self, framework: str | None, *, gpu: bool) -> Iterator[Client]:
        """Yield the client of workers that suit a framework; it is not replaced meanwhile."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or not self._users or self._suits(framework, gpu))
            if self._stopped:
                raise ClusterLost("the run was stopped. What was committed is kept; run again to continue.")
            if not self._suits(framework, gpu):
                self._close()
            if self._client is None:
                self._client, self._kind = open_client(self.settings, gpu=gpu), (framework, gpu)
            self._begin_report()
            client, self._users = self._client, self._users + 1
        try:
            yield client
        finally:
            with self._turn:
                self._users -= 1
                self._turn.notify_all()

    def connect(self) -> None:
        """Attach to the scheduler that was asked for; workers of our own start on first use.

        Raises
        ------
        BadInput
            When the scheduler does not answer, or its workers run other software.
        """
        if self.settings.scheduler is not None and self._client is None:
            self._client = open_client(self.settings)

    @contextmanager
    def reported(self, file: Path | None) -> Iterator[None]:
        """Write Dask's performance report of everything that runs meanwhile to `file`, when one is given."""
        self._report_file = file
        try:
            yield
        finally:
            self._end_report()
            self._report_file = None

    def stop(self) -> None:
        """Stop the workers, if any are running, and start no others."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        self._close()

    def _close(self) -> None:
        self._end_report()
        if self._client is not None:
            close_client(self._client)
            self._client = None

    def _suits(self, framework: str | None, gpu: bool) -> bool:  # noqa: FBT001
        if self._client is None:
            return False
        return self.settings.scheduler is not None or framework == "any" or self._kind == (framework, gpu)

    def _begin_report(self) -> None:
        from distributed import performance_report

        if self._report_file is not None and self._report is None:
            self._report_file.parent.mkdir(parents=True, exist_ok=True)
            self._report = ExitStack()
            self._report.enter_context(performance_report(str(self._report_file)))

    def _end_report(self) -> None:
        report, self._report = self._report, None
        if report is None:
            return
        if self._client is not None and self._client.status == "running":
            report.close()
        else:
            logging.getLogger(__name__).warning("%s is not written: the scheduler is lost", self._report_file)


def slots_of(client: Client, *, gpu: bool, gpus: int | None) -> Slots:
    """Return the window for the workers there are now: twice the GPUs they offer, or twice their threads.

    Tasks that name a resource are never queued by the scheduler, so the window is all that holds them back.

    Raises
    ------
    BadInput
        When GPUs were asked for and no worker of the scheduler offers one.
    ClusterLost
        When the scheduler does not answer.
    """
    found = client.scheduler_info(n_workers=-1)
    if "workers" not in found:
        raise ClusterLost(SCHEDULER_LOST)
    workers = found["workers"].values()
    offered = sum(int(worker["resources"].get("GPU", 0)) for worker in workers)
    if gpu and gpus and not offered:
        remedy = "Start workers with --resources GPU=1, or leave --gpus out to use the CPU."
        raise BadInput(Problem("--gpus", "no worker that offers the resource GPU", f"{gpus}", remedy))
    if gpu and offered:
        return Slots(_WINDOW_PER_SLOT * offered, {"GPU": 1})
    return Slots(_WINDOW_PER_SLOT * max(1, sum(worker["nthreads"] for worker in workers)), None)


def require_bokeh() -> None:
    """Raise when the package that draws Dask's performance reports is missing.

    Raises
    ------
    BadInput
        Saying how it is installed.
    """
    if find_spec("bokeh") is None:
        remedy = "pip install 'spatialscope_dist[cluster]', or leave --performance-reports out."
        raise BadInput(Problem("--performance-reports", "no package bokeh", "it to be installed", remedy))
