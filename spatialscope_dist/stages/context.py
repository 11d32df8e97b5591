"""What every stage is given, and the shape every stage module has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Facts, Study


@dataclass(frozen=True)
class StagePlan:
    """Projection made before anything runs."""

    tasks: int
    peak_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class StageOutcome:
    """What a stage did for one item."""

    done: int
    total: int
    failed: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Everything a stage may use: the study, where to write, the ledger, the workers, events.

    `facts` holds the sizes of the inputs: `plan` works from them, before anything has run.
    """

    study: Study
    place: Place
    ledger: Ledger
    pool: Pool
    events: Events
    facts: Facts

    def upstream(self, stage: str, item: str) -> Path | None:
        """Return the folder of an upstream stage's committed output, None when it has none."""
        key = self.upstream_key(stage, item)
        return None if key is None else self.place.output(stage, item, key)

    def upstream_key(self, stage: str, item: str) -> str | None:
        """Return the content key of an upstream stage's committed output."""
        entry = self.ledger.current(stage, item)
        return None if entry is None else entry.key

    def cells_of(self, section: str) -> Path | None:
        """Return the folder of a section's cells, None before it is typed: a section is typed within its stack."""
        typed = self.upstream("identify", self.study.stack_of(section))
        return None if typed is None else typed / section

    def cells_key(self, section: str) -> str | None:
        """Return the content key of a section's cells."""
        return self.upstream_key("identify", self.study.stack_of(section))

    def largest_panel(self) -> int:
        """Return the most genes the panel can have, for projections made before it is chosen."""
        spec, facts = self.study.reference, self.facts
        if spec.genes != "auto":
            return facts.n_reference_genes
        pairs = 1000 if self.study.options.interact.pairs else 0
        targeted = [section.name for section in self.study.sections if section.platform == "merfish"]
        always = max((facts.sections[name].n_genes for name in targeted), default=0)
        chosen = spec.n_variable_genes + spec.n_markers_per_type * facts.n_types + pairs + always
        return min(facts.n_reference_genes, chosen)


class Stage(Protocol):
    """A stage module: `stages/NAME.py` has exactly these names."""

    NAME: str
    VERSION: int

    def items(self, context: Context) -> list[str]:
        """Return what the stage runs over: sections, stacks or 'study'."""

    def skip_reason(self, context: Context, item: str) -> str | None:
        """Return why the stage has nothing to do for the item, None when it has."""

    def inputs(self, context: Context, item: str) -> dict[str, Any]:
        """Return everything the result depends on, as JSON."""

    def plan(self, context: Context, item: str) -> StagePlan:
        """Return the projected tasks, peak memory of a worker process and bytes on disk."""

    def run(self, context: Context, item: str, output: Path) -> StageOutcome:
        """Do the work and leave the result in `output`."""
