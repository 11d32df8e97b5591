"""Events of a run: one call, any number of listeners (progress bar, JSON lines, log file)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

Listener = Callable[[dict[str, Any]], None]

_LOGGED = {"unit", "committed", "failed"}


@dataclass(frozen=True)
class Events:
    """Tells every listener what happens, one event at a time; `fields` are added to each."""

    listeners: tuple[Listener, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    _one_at_a_time: Lock = field(default_factory=Lock, repr=False, compare=False)

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event, a dict with its name and fields, to every listener."""
        with self._one_at_a_time:
            for listener in self.listeners:
                listener({"event": event, **self.fields, **fields})

    def about(self, **fields: str) -> Events:
        """Return events to the same listeners that carry these fields as well."""
        return replace(self, fields={**self.fields, **fields})

    def heard_by(self, listener: Listener) -> Events:
        """Return events to the same listeners and one more."""
        return replace(self, listeners=(*self.listeners, listener))


@dataclass(frozen=True)
class TaskLog:
    """Listener that appends what ran, where, when and at what cost to a file of JSON lines."""

    file: Path

    def __call__(self, event: dict[str, Any]) -> None:
        """Append an event of a task or of an item; other events are not kept."""
        if event["event"] not in _LOGGED:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"time": round(time.time(), 3), **event}, default=str) + "\n")
