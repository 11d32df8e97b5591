"""A section that cannot be worked through is a status; the others finish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import h5py
import pytest

from spatialscope_dist import pipeline
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.errors import StageFailed
from spatialscope_dist.running import Summary, fallen_sections
from spatialscope_dist.study import Study, load_study
from tests import given_files as given

SECTIONS = ("A", "B", "C")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of three sections."""
    given.write_sound_study(tmp_path, image=False)
    for name in SECTIONS:
        anndata.read_h5ad(given.write_spots(tmp_path / "spots.h5ad")).write_h5ad(
            tmp_path / f"{name}.h5ad", compression="gzip"
        )
    tables = "\n".join(f"[[section]]\nname = '{name}'\ncounts = '{name}.h5ad'" for name in SECTIONS)
    (tmp_path / "study.toml").write_text(f"{tables}\n[reference]\npath = 'reference.h5ad'\n")
    return tmp_path


def damage(file: Path) -> None:
    """Overwrite the counts in a file whose names and shapes stay readable."""
    with h5py.File(file) as handle:
        place = handle["X/data"].id.get_chunk_info(0)
    with file.open("r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(b"\xff" * place.size)


def study_in(folder: Path) -> Study:
    return load_study(folder, output=folder / "out")


def run(folder: Path, *, spoilt: tuple[str, ...] = ()) -> tuple[Summary, list[dict[str, Any]]]:
    """Run up to the reference; the counts of `spoilt` sections break between the checks and the first stage."""
    seen: list[dict[str, Any]] = []

    def spoil(event: dict[str, Any]) -> None:
        seen.append(event)
        if event == {"event": "stage", "stage": "ingest"}:
            for name in spoilt:
                damage(folder / f"{name}.h5ad")

    return pipeline.run(study_in(folder), ClusterSettings(1, 2 * GIB), Events((spoil,)), until="reference"), seen


def items(events: list[dict[str, Any]], event: str, stage: str) -> list[str]:
    return sorted(one["item"] for one in events if one["event"] == event and one["stage"] == stage)


def test_run__a_section_that_fails_leaves_the_others(folder: Path) -> None:
    shutil.copy(folder / "B.h5ad", folder / "kept.h5ad")
    summary, events = run(folder, spoilt=("B",))
    assert summary.exit_code == 4
    assert items(events, "committed", "ingest") == items(events, "committed", "align") == ["A", "C"]
    assert items(events, "skipped", "align") == ["B"]
    assert summary.stages["ingest"]["failed"] == 1
    assert (summary.stages["ingest"]["done"], summary.stages["ingest"]["total"]) == (2, 3)
    assert items(events, "committed", "reference") == ["study"]
    rows = pipeline.status(study_in(folder))
    assert "B.h5ad" in rows["ingest"]["failed"]["B"]
    assert rows["align"]["skipped"]["B"].startswith("ingest of B failed: ")
    shutil.move(folder / "kept.h5ad", folder / "B.h5ad")
    summary, events = run(folder)
    assert summary.exit_code == 0
    assert items(events, "committed", "ingest") == items(events, "committed", "align") == ["B"]
    assert items(events, "committed", "reference") == [], "what all sections share does not depend on a failure"
    rows = pipeline.status(study_in(folder))
    assert not any(row["failed"] or row["aged"] for row in rows.values())


def test_run__a_section_that_cannot_be_published_leaves_the_others(folder: Path) -> None:
    run(folder)
    hashes = (folder / "out" / "hashes.json").read_text()
    published = folder / "out" / "sections"
    shutil.rmtree(published)
    kept = next((folder / "out" / "work" / "ingest" / "B").rglob("spots.parquet"))
    whole_file = kept.read_bytes()
    kept.write_bytes(whole_file[: len(whole_file) // 2])
    summary, events = run(folder)
    assert summary.exit_code == 4
    assert list(summary.unpublished) == items(events, "failed", "publish") == ["B"]
    assert list(json.loads((folder / "out" / "hashes.json").read_text())) == ["A", "C"]
    assert sorted(path.name for path in published.iterdir() if path.suffix == ".zarr") == ["A.zarr", "C.zarr"]
    kept.write_bytes(whole_file)
    summary, _ = run(folder)
    assert (summary.exit_code, summary.unpublished) == (0, {})
    assert (published / "B.zarr").exists()
    assert (folder / "out" / "hashes.json").read_text() == hashes


def test_run__ends_when_no_section_is_left(folder: Path) -> None:
    with pytest.raises(StageFailed, match=r"every item failed:\n- [ABC]: "):
        run(folder, spoilt=SECTIONS)


def test_run__notes_what_every_task_cost(folder: Path) -> None:
    run(folder)
    lines = [json.loads(line) for line in (folder / "out" / "ledger" / "tasks.jsonl").read_text().splitlines()]
    tasks = [line for line in lines if line["event"] == "unit" and line.get("stage") == "ingest"]
    assert sorted(task["item"] for task in tasks) == list(SECTIONS)
    for task in tasks:
        assert task["seconds"] > 0
        assert task["peak_rss_bytes"] > 50 << 20
        assert task["started"] <= task["time"]
        assert ":" in task["process"]
    assert [line["item"] for line in lines if line["event"] == "committed" and line["stage"] == "reference"] == [
        "study"
    ]


def test_fallen_sections__a_stack_is_typed_whole_or_not_at_all(folder: Path) -> None:
    file = folder / "study.toml"
    file.write_text(
        file.read_text().replace("name = 'A'", "name = 'A'\nz_um = 0.0").replace("name = 'B'", "name = 'B'\nz_um = 9.0")
    )
    study = study_in(folder)
    failed = {"ingest": {"B": "broken"}}
    assert fallen_sections(study, failed, before="segment") == {"B": "ingest of B failed: broken"}
    assert sorted(fallen_sections(study, failed, before="identify")) == ["A", "B"]
    assert sorted(fallen_sections(study, {"identify": {"stack": "broken"}}, before="decompose")) == ["A", "B"]
    assert fallen_sections(study, failed, before="ingest") == {}
