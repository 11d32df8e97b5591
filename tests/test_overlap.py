"""Items start when what they wait for has ended: stages of different sections at one time, none too early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.errors import BadInput, Problem, StageFailed
from spatialscope_dist.ordering import WHOLE, what_waits
from spatialscope_dist.running import Summary, run_stages
from spatialscope_dist.stages import STAGES
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Facts, SectionSpec, Study, StudyHead, StudyOptions

SECTIONS = ("A", "B", "C")
WHOLE_STUDY = ("reference", "train", "interact", "variable", "differential", "report")
PATIENCE_S = 30


def study_in(root: Path, **options: Any) -> Study:
    return Study(
        file=root / "study.toml",
        output=root,
        head=StudyHead(),
        sections=tuple(SectionSpec(name=name, counts=Path("counts.h5ad")) for name in SECTIONS),
        reference={"path": Path("reference.h5ad")},
        options=StudyOptions(**options),
    )


@dataclass
class Step:
    """A stage whose work is a function of the item, and that notes when items begin and end."""

    NAME: str
    seen: list[tuple[str, str, str]]
    work: Callable[[str], None] = lambda item: None
    VERSION: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def items(self, context: Context) -> list[str]:
        return ["study"] if self.NAME in WHOLE_STUDY else [section.name for section in context.study.sections]

    def skip_reason(self, context: Context, item: str) -> str | None:
        return None

    def inputs(self, context: Context, item: str) -> dict[str, Any]:
        return {"item": item}

    def plan(self, context: Context, item: str) -> StagePlan:
        return StagePlan(1, 0, 0)

    def run(self, context: Context, item: str, output: Path) -> StageOutcome:
        with self.lock:
            self.seen.append(("begin", self.NAME, item))
        self.work(item)
        with self.lock:
            self.seen.append(("end", self.NAME, item))
        return StageOutcome(1, 1)


def run(root: Path, work: dict[str, Callable[[str], None]], *, scheduler: str | None = "tcp://some") -> list[Any]:
    """Run the stages up to `decompose`, and return what began, ended and was concluded, in order."""
    seen: list[Any] = []
    stages = [Step(name, seen, work.get(name, lambda item: None)) for name in STAGES[: STAGES.index("interact")]]
    pool = Pool(ClusterSettings(1, GIB, scheduler=scheduler), Events())
    context = Context(study_in(root), Place(root), Ledger(root / "ledger"), pool, Events(), Facts({}, 0, 0, 0))
    peaks = dict.fromkeys(STAGES, 0)
    run_stages(stages, context, Summary(), peaks, finished=lambda name: seen.append(("finished", name)))
    return seen


def test_run_stages__typing_of_one_section_goes_on_beside_segmentation_of_another(tmp_path: Path) -> None:
    typed = threading.Event()

    def segment(item: str) -> None:
        if item == "C":
            assert typed.wait(PATIENCE_S), "identify of A waits for what it does not need"

    def identify(item: str) -> None:
        if item == "A":
            typed.set()

    seen = run(tmp_path, {"segment": segment, "identify": identify})
    assert seen.index(("end", "identify", "A")) < seen.index(("end", "segment", "C"))
    assert seen.index(("finished", "identify")) < min(seen.index(("begin", "decompose", name)) for name in SECTIONS)
    assert [event[1] for event in seen if event[0] == "finished"][-1] == "decompose"


def test_run_stages__frameworks_follow_one_another_on_workers_of_our_own(tmp_path: Path) -> None:
    seen = run(tmp_path, {}, scheduler=None)
    last = max(seen.index(("end", "segment", name)) for name in SECTIONS)
    assert last < min(seen.index(("begin", "identify", name)) for name in SECTIONS)
    assert max(seen.index(("end", "identify", name)) for name in SECTIONS) < seen.index(("begin", "train", "study"))


def test_run_stages__a_section_that_fails_late_leaves_those_that_went_ahead(tmp_path: Path) -> None:
    typed = threading.Event()

    def segment(item: str) -> None:
        if item == "B":
            typed.wait(PATIENCE_S)
            raise BadInput(Problem("image", "a hole", "none", "Mend it."))

    seen = run(tmp_path, {"segment": segment, "identify": lambda item: typed.set()})
    assert ("begin", "identify", "B") not in seen
    ledger = Ledger(tmp_path / "ledger")
    assert list(ledger.failures("segment")) == ["B"]
    assert ledger.skips("identify")["B"].startswith("segment of B failed")
    assert sorted(entry.item for entry in ledger.entries("decompose")) == ["A", "C"]


def test_run_stages__ends_when_every_item_of_a_stage_failed(tmp_path: Path) -> None:
    def fail(item: str) -> None:
        raise BadInput(Problem("image", "a hole", "none", "Mend it."))

    with pytest.raises(StageFailed, match=r"every item failed:\n- [ABC]: "):
        run(tmp_path, {"segment": fail})


def test_what_waits__shared_platform_effect_waits_for_every_section(tmp_path: Path) -> None:
    items = {"ingest": list(SECTIONS), "identify": list(SECTIONS)}
    own = what_waits(study_in(tmp_path), items)
    assert own["identify", "A"] == {("ingest", "A")}
    shared = what_waits(study_in(tmp_path, identify={"platform_effect": "shared"}), items)
    assert ("ingest", WHOLE) in shared["identify", "A"]
