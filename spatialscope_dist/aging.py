"""Why outputs that are there would be made again: what of their inputs, options or files differs by now."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from spatialscope_dist.errors import SpatialScopeError
from spatialscope_dist.location import storage_errors
from spatialscope_dist.stages.context import Context, Stage
from spatialscope_dist.store.ledger import UNREAD, Entry, content_key

_HASH = re.compile(r"[0-9a-f]{64}")
_SHOWN = 40


def aged_outputs(stages: Sequence[tuple[Stage, Context]]) -> dict[str, dict[str, str]]:
    """Return the reason by stage and item for every committed output that the next run would make again.

    `stages` come in the order they run, each with the context it would run in; what is made from an output that has
    aged has aged too.
    """
    reasons: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}  # of the outputs that have aged: stage and item
    for stage, context in stages:
        items = stage.items(context)
        found = reasons.setdefault(stage.NAME, {})
        for entry in (entry for entry in context.ledger.entries(stage.NAME) if entry.item in items):
            reason = _own_reason(stage, context, entry) or _inherited(entry, keys)
            if reason:
                found[entry.item] = reason
                keys[entry.key] = f"{stage.NAME} of {entry.item}"
    return reasons


def _own_reason(stage: Stage, context: Context, entry: Entry) -> str | None:
    output, published = context.place.output(entry.stage, entry.item, entry.key), context.place.published(entry.stage)
    if not output.exists() or not (published is None or published.exists()):
        return "what it had made is gone"
    try:
        left_out = stage.skip_reason(context, entry.item)
        if left_out is not None:
            return f"left out from now on: {left_out}"
        inputs = json.loads(json.dumps(stage.inputs(context, entry.item), default=str))
    except storage_errors(SpatialScopeError) as error:
        return f"its inputs cannot be read: {error}"
    if entry.version != stage.VERSION:
        return f"made by version {entry.version} of the stage, which is now {stage.VERSION}"
    if content_key(stage.NAME, stage.VERSION, inputs) == entry.key:
        return None
    return "; ".join(_differences(entry.inputs, inputs)) or "made from other inputs"


def _inherited(entry: Entry, keys: dict[str, str]) -> str | None:
    made_from = json.dumps(entry.inputs)
    return next((f"made from {origin}" for key, origin in keys.items() if f'"{key}"' in made_from), None)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a sentence for everything that differs between two JSON documents."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        if now == UNREAD:
            yield f"{name} was written anew and may hold something else"
        elif any(isinstance(value, str) and _HASH.fullmatch(value) for value in (before, now)):
            yield f"{name} changed"
        else:
            yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
