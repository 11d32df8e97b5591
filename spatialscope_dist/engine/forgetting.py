"""Loaded by schedulers that stand by themselves: Dask's records of what has ended are dropped in time."""

from __future__ import annotations

import time
from typing import Any

_EVERY_MS = 60_000
_KEPT_S = 900  # a worker not heard of for so long is lost (worker-ttl): nobody reports of an older span


def dask_setup(scheduler: Any) -> None:
    """Look once a minute for what can be dropped."""
    from tornado.ioloop import PeriodicCallback

    PeriodicCallback(lambda: forget_ended_spans(scheduler, before=time.time() - _KEPT_S), _EVERY_MS).start()


def forget_ended_spans(scheduler: Any, *, before: float) -> None:
    """Drop the spans that ended before a time, seconds since 1970, and whose tasks are all forgotten.

    Dask keeps a span, with task groups and metadata, for every call of `Client.map` until the scheduler ends
    (dask/distributed#7977): some 2 kB a call.
    """
    known = scheduler.extensions.get("spans")
    for root in [] if known is None else list(known.root_spans):
        if root.stop >= before or any(group.name in scheduler.task_groups for group in root.traverse_groups()):
            continue
        known.root_spans.remove(root)
        for span in root.traverse_spans():
            del known.spans[span.id]
            known.spans_search_by_name[span.name].remove(span)
            for tag in span.name:
                known.spans_search_by_tag[tag].remove(span)
