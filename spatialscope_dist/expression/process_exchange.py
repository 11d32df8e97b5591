"""Gradients of a batch's logical shards, swapped between processes that train one network together.

A process that dies takes the attempt with it: its connections are reset, and whoever waits for it gives up within
seconds (`PeerLost`). Nothing is mended in place; all begin again from the last checkpoint, at a new meeting place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.expression.training import N_SHARDS, Gradients, Share

_PATIENCE_TO_START_S = 60.0
_PATIENCE_TO_MEET_S = 600.0  # reading a large reference takes one process longer than another
_PATIENCE = timedelta(seconds=120)  # for a process that is silent; one that died is noticed at once
_LOOK_EVERY_S = 0.05
_BROKEN = "broken"


class PeerLost(StageFailed):
    """A process of a joint training is gone, so that the others cannot go on."""


@dataclass(frozen=True)
class Meeting:
    """Which process of a joint training this is, and the folder where they find one another, new for every attempt."""

    folder: Path
    rank: int
    n_processes: int

    def start(self) -> None:
        """Wait until every process has begun.

        Raises
        ------
        PeerLost
            When this process was here before (it died and was started again: the others cannot wait for what it
            knew), when another found that, or when one does not come.
        """
        self.meet("start", patience_s=_PATIENCE_TO_START_S)

    def meet(self, place: str, *, patience_s: float = _PATIENCE_TO_MEET_S) -> None:
        """Wait until every process is at this place; errors as of `start`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            (self.folder / f"{place}_{self.rank}").touch(exist_ok=False)
        except FileExistsError:
            self._leave(f"process {self.rank} died and was started again")
        latest = time.monotonic() + patience_s
        while missing := self._missing(place):
            if (self.folder / _BROKEN).exists():
                self._leave("another process is gone")
            if time.monotonic() > latest:
                self._leave(f"processes {missing} did not come within {patience_s:g} s")
            time.sleep(_LOOK_EVERY_S)

    def _leave(self, why: str) -> NoReturn:
        (self.folder / _BROKEN).touch()  # so that nobody waits for this one
        raise PeerLost(f"train: {why}")

    def _missing(self, place: str) -> list[int]:
        return [rank for rank in range(self.n_processes) if not (self.folder / f"{place}_{rank}").exists()]


def shards_of(rank: int, n_processes: int) -> list[int]:
    """Return the logical shards of a process; together the processes have each shard once."""
    return list(range(N_SHARDS))[rank::n_processes]


@contextmanager
def joined(meeting: Meeting, place: str) -> Iterator[Share]:
    """Yield this process's share of every batch while all processes are connected.

    Every process then takes the same step with the same sum, so nothing else has to be sent and the weights are the
    same, to the bit, as those of one process.

    Raises
    ------
    PeerLost
        When another process does not come, or is gone.
    """
    from torch import distributed

    if meeting.n_processes == 1:
        yield Share()
        return
    meeting.meet(place)
    with _naming_losses():
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting.folder / place}",
            rank=meeting.rank,
            world_size=meeting.n_processes,
            timeout=_PATIENCE,
        )
    try:
        own = shards_of(meeting.rank, meeting.n_processes)
        yield Share(own, lambda shards, gradients: _swap(shards, gradients, meeting.n_processes))
        meeting.meet(f"{place}_end")  # who hangs up while another still reads takes its last step from it
    finally:
        distributed.destroy_process_group()


@contextmanager
def _naming_losses() -> Iterator[None]:
    """Turn what gloo raises when a connection is reset or stays silent into an error of ours."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed has no class of its own for these
        raise PeerLost(f"train: another process is gone ({error})") from error


def _swap(shards: Sequence[int], own: Gradients, n_processes: int) -> Gradients:
    """Return the gradients of all logical shards, in order."""
    import torch
    from torch import distributed

    most = -(-N_SHARDS // n_processes)  # equal sizes: processes with fewer shards send zeros
    sent = torch.zeros((most, len(own[0])))
    sent[: len(own)] = torch.from_numpy(np.stack(own))
    received = [torch.empty_like(sent) for _ in range(n_processes)]
    with _naming_losses():
        distributed.all_gather(received, sent)
    found = {
        shard: received[rank][place].numpy()
        for rank in range(n_processes)
        for place, shard in enumerate(shards_of(rank, n_processes))
    }
    return [found[shard] for shard in range(N_SHARDS)]
