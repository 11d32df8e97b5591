"""What counts as current when options change, come back, or outputs are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spatialscope_dist import pipeline, running
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.ledger import Entry, Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Study, load_study
from tests import given_files as given

SETTINGS = ClusterSettings(1, 4 * GIB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    given.write_sound_study(tmp_path, image=False)
    return tmp_path


def study_in(folder: Path, *settings: str) -> Study:
    return load_study(folder, output=folder / "out", settings=settings)


def run(folder: Path, *settings: str, **limits: Any) -> tuple[pipeline.Summary, list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    summary = pipeline.run(study_in(folder, *settings), SETTINGS, Events((seen.append,)), **limits)
    return summary, seen


def committed(events: list[dict[str, Any]]) -> list[str]:
    return [event["stage"] for event in events if event["event"] == "committed"]


def entry(stage: str, key: str, made_from: dict[str, Any]) -> Entry:
    return Entry(key=key, stage=stage, item="A", version=1, inputs=made_from, done=1, total=1)


def test_run__an_option_that_comes_back_is_worked_out_again(folder: Path) -> None:
    for least in (1, 5, 1):
        run(folder, f"ingest.min_total_counts={least}", until="ingest")
        [output] = (folder / "out" / "work" / "ingest" / "A").iterdir()
        assert open_counts(output / "counts.zarr").shape == (given.N_SPOTS, len(given.GENES))
    assert len(list((folder / "out" / "ledger" / "units" / "ingest" / "A").iterdir())) == 1


def test_run__a_stage_output_that_was_deleted_is_made_again(folder: Path) -> None:
    import shutil

    run(folder, until="ingest")
    shutil.rmtree(folder / "out" / "work")
    _, events = run(folder, until="ingest")
    assert committed(events) == ["ingest"]
    [output] = (folder / "out" / "work" / "ingest" / "A").iterdir()
    assert (output / "spots.parquet").exists()


def test_run__what_was_made_from_an_older_output_no_longer_counts(folder: Path) -> None:
    run(folder, until="reference")
    ledger = Ledger(Place(study_in(folder).output).ledger)
    taken_in = ledger.current("ingest", "A")
    assert taken_in is not None
    ledger.commit(entry("identify", "k", {"sections": {"A": {"ingest": taken_in.key}}}))
    _, events = run(folder, "ingest.min_total_counts=5", until="align")
    assert committed(events) == ["ingest"]
    rows = pipeline.status(study_in(folder))
    assert rows["identify"]["waiting"] == ["A"]
    assert rows["reference"]["done"] == rows["reference"]["total"] == 3, "the reference does not depend on it"


def test_run__a_published_reference_that_was_deleted_comes_back(folder: Path) -> None:
    import shutil

    run(folder, until="reference")
    shutil.rmtree(folder / "out" / "reference.zarr")
    run(folder, until="reference")
    assert (folder / "out" / "reference.zarr" / "zarr.json").exists()


def test_run__earlier_stages_of_other_options_are_named(folder: Path) -> None:
    run(folder, until="align")
    _, events = run(folder, "ingest.min_total_counts=5", first="reference", until="reference")
    [text] = [event["text"] for event in events if event["event"] == "warning" and "--from" in event["text"]]
    assert "ingest of A" in text


def test_run__nothing_is_written_when_nothing_is_to_do(folder: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}

    run(folder, until="reference")
    before = times()
    summary, _ = run(folder, until="reference")
    assert not summary.changed
    assert times() == before


def test_withdraw__removes_the_table_of_a_stage_that_is_skipped_now(folder: Path) -> None:
    context = pipeline._context(study_in(folder), SETTINGS, Events())
    table = context.place.table("interactions")
    table.parent.mkdir(parents=True)
    table.write_bytes(b"old")
    context.ledger.commit(Entry(key="k", stage="interact", item="study", version=1, inputs={}, done=1, total=1))
    running._withdraw(pipeline.stage_module("interact"), context, "study", "no pairs")
    assert not table.exists()
    assert context.ledger.current("interact", "study") is None


def test_forget_made_from__goes_on_to_what_was_made_from_that(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit(entry("ingest", "k1", {}))
    ledger.commit(entry("identify", "k2", {"sections": {"A": {"ingest": "k1"}}}))
    ledger.commit(entry("decompose", "k3", {"identify": "k2"}))
    ledger.commit(entry("train", "k4", {"reference": "k0"}))
    ledger.units("decompose", "A", tmp_path / "k3").commit("rows", {})
    ledger.forget_made_from("k1", pipeline.STAGES)
    assert ledger.count_units("decompose", "A") == 0, "old units are no progress"
    left = [stage for stage in pipeline.STAGES if ledger.current(stage, "A") is not None]
    assert left == ["ingest", "train"]


def test_status__counts_the_units_of_a_stopped_stage(folder: Path) -> None:
    study = study_in(folder)
    place = Place(study.output)
    Ledger(place.ledger).units("identify", "A", place.output("identify", "A", "0" * 64)).commit("A-prepare", {})
    row = pipeline.status(study)["identify"]
    assert (row["done"], row["waiting"]) == (1, ["A"])
    assert row["total"] > 1


def test_status__items_the_study_no_longer_has_do_not_count(folder: Path) -> None:
    ledger = Ledger(Place(study_in(folder).output).ledger)
    ledger.commit(Entry(key="k", stage="ingest", item="B", version=1, inputs={}, done=5, total=5))
    assert pipeline.status(study_in(folder))["ingest"]["items"] == []
    json.dumps(pipeline.status(study_in(folder)))


def test_refuse__a_run_that_goes_on_needs_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    free = shutil.disk_usage(tmp_path)
    planned = {"ingest": {"tasks": 1, "peak_bytes": 0, "disk_bytes": 900}}
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "stored").write_bytes(b"x" * 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=450))
    pipeline.refuse_what_does_not_fit(planned, SETTINGS, tmp_path)


def test_report_inputs__hold_the_names_the_page_shows(folder: Path) -> None:
    keys = []
    for name in ("t", "other"):
        file = folder / "study.toml"
        file.write_text(file.read_text().replace("name = 't'", f"name = '{name}'"))
        context = pipeline._context(study_in(folder), SETTINGS, Events())
        keys.append(pipeline._key(pipeline.stage_module("report"), context, "study"))
    assert keys[0] != keys[1]
