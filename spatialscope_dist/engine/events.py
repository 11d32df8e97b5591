"""Events of a run: one call, any number of listeners (progress bar, JSON lines, log file)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Events:
    """Tells every listener what happens; holds no state of its own."""

    listeners: tuple[Listener, ...] = ()

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event, a dict with its name and fields, to every listener."""
        for listener in self.listeners:
            listener({"event": event, **fields})
