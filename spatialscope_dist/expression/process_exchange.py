"""Gradients of a batch's logical shards, swapped between processes that train one network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np

from spatialscope_dist.expression.training import N_SHARDS, Gradients, Share

_PATIENCE = timedelta(seconds=300)  # for the other processes: one that died ends the wait


def shards_of(rank: int, n_processes: int) -> list[int]:
    """Return the logical shards of a process; together the processes have each shard once."""
    return list(range(N_SHARDS))[rank::n_processes]


@contextmanager
def joined(meeting_place: Path, *, rank: int, n_processes: int) -> Iterator[Share]:
    """Yield this process's share of every batch while all processes are connected.

    Every process then takes the same step with the same sum, so nothing else has to be sent and the weights are the
    same, to the bit, as those of one process.

    Parameters
    ----------
    meeting_place
        file all processes can reach, new for every attempt.
    rank, n_processes
        which one this is, of how many.
    """
    from torch import distributed

    if n_processes == 1:
        yield Share()
        return
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=n_processes, timeout=_PATIENCE
    )
    try:
        yield Share(shards_of(rank, n_processes), lambda shards, own: _swap(shards, own, n_processes))
    finally:
        distributed.destroy_process_group()


def _swap(shards: Sequence[int], own: Gradients, n_processes: int) -> Gradients:
    """Return the gradients of all logical shards, in order."""
    import torch
    from torch import distributed

    most = -(-N_SHARDS // n_processes)  # equal sizes: processes with fewer shards send zeros
    sent = torch.zeros((most, len(own[0])))
    sent[: len(own)] = torch.from_numpy(np.stack(own))
    received = [torch.empty_like(sent) for _ in range(n_processes)]
    distributed.all_gather(received, sent)
    found = {
        shard: received[rank][place].numpy()
        for rank in range(n_processes)
        for place, shard in enumerate(shards_of(rank, n_processes))
    }
    return [found[shard] for shard in range(N_SHARDS)]
