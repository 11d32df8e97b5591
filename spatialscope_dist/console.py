"""What the terminal shows: progress, tables, the summary; JSON lines instead when asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from spatialscope_dist.engine.events import Events

if TYPE_CHECKING:
    from spatialscope_dist.running import Summary

_ACCURACY = {
    "nuclei_found": "planted nuclei found",
    "nuclei_false": "false nuclei",
    "cell_type_accuracy": "cell-type accuracy",
    "random_order_accuracy": "… of the true composition in random order",
    "composition_error": "composition error",
    "expression_cosine": "expression cosine, ours",
    "type_mean_cosine": "expression cosine, type mean",
    "proportional_cosine": "expression cosine, proportional allocation",
}


@contextmanager
def progress(*, as_json: bool) -> Iterator[Events]:
    """Yield events that end up as JSON lines on stdout, or as a progress display on stderr."""
    if as_json:
        yield Events((_json_line,))
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield Events((_Display(display),))


def show_plan(planned: dict[str, dict[str, int]], limit_bytes: int) -> None:
    """Print the plan as a table on stdout."""
    table = Table(title=f"Plan (limit of one worker: {_gib(limit_bytes)})")
    for heading in ("stage", "tasks", "peak of a worker", "disk"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, row in planned.items():
        table.add_row(name, str(row["tasks"]), _gib(row["peak_bytes"]), _gib(row["disk_bytes"]))
    Console().print(table)


def show_status(rows: dict[str, dict[str, Any]]) -> None:
    """Print what is done per stage, and every item that failed or has aged, with its reason."""
    table = Table(title="Status")
    for heading in ("stage", "done", "note"):
        table.add_column(heading)
    for name, row in rows.items():
        notes = [f"{item}: skipped, {reason}" for item, reason in row["skipped"].items()]
        notes += [f"{item}: {reason}" for item, reason in row["failed"].items()]
        notes += [f"{item}: will be made again, {reason}" for item, reason in row["aged"].items()]
        notes += [_quality(found["quality"]) for found in row["metrics"].values() if found.get("quality")]
        table.add_row(name, f"{row['done']}/{row['total']}", "\n".join(notes))
    Console().print(table)


def show_summary(summary: Summary) -> None:
    """Print time, memory and accuracy of a run, and where the report is."""
    console = Console()
    if not summary.changed:
        console.print("Nothing to do: every stage is up to date.")
    table = Table()
    for heading in ("stage", "seconds", "CPU seconds", "peak memory", "projected", "done", "failed"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, row in summary.stages.items():
        sizes = (_gib(row["peak_rss_bytes"]), _gib(row["projected_peak_bytes"]))
        done = f"{row['done']}/{row['total']}"
        table.add_row(name, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", *sizes, done, str(row["failed"]))
    console.print(table)
    for section, reason in summary.unpublished.items():
        console.print(f"{section} is not published: {reason}", soft_wrap=True)
    for name, text in _ACCURACY.items():
        if name in summary.accuracy:
            console.print(f"{text}: {summary.accuracy[name]:.4f}")
    if summary.generative_quality:
        console.print(_quality(summary.generative_quality))
    if summary.report is not None:
        console.print(f"Report: {summary.report}", soft_wrap=True)


def _quality(quality: dict[str, float]) -> str:
    return (
        f"generated against held-out cells: classifier AUC {quality['auc']:.2f} (training cells "
        f"{quality['floor_auc']:.2f}, 0.5 is chance), error of means {quality['mean_error']:.2f} "
        f"({quality['floor_mean_error']:.2f}), of correlations {quality['correlation_error']:.2f} "
        f"({quality['floor_correlation_error']:.2f})"
    )


def _json_line(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event, default=str) + "\n")
    sys.stdout.flush()


class _Display:
    """Turns events into one progress line per stage."""

    def __init__(self, display: Progress) -> None:
        self.display = display
        self.lines: dict[str, TaskID] = {}
        self.items: dict[str, dict[str, tuple[int, int]]] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "stage":
            self.lines[event["stage"]] = self.display.add_task(event["stage"], total=None)
        elif kind in {"unit", "committed"} and event.get("stage") in self.lines:
            done = event["total"] if kind == "committed" else event["done"]
            self._move(event["stage"], event["item"], done, event["total"])
        elif kind == "skipped":
            self.display.console.print(f"{event['stage']} {event['item']}: skipped, {event['reason']}")
        elif kind == "failed":
            self.display.console.print(f"{event['stage']} {event['item']}: failed, {event['reason']}")
        elif kind == "unchanged":
            self.display.console.print(f"{event['stage']} {event['item']}: up to date")
        elif kind == "warning":
            self.display.console.print(f"warning: {event['text']}")

    def _move(self, stage: str, item: str, done: int, total: int) -> None:
        """Show the units of all items of a stage together."""
        items = self.items.setdefault(stage, {})
        items[item] = (done, total)
        sums = [sum(column) for column in zip(*items.values(), strict=True)]
        self.display.update(self.lines[stage], completed=sums[0], total=sums[1])


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
