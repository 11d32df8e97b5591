"""`status` says what the next run would make again, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from spatialscope_dist import pipeline
from spatialscope_dist.study import load_study
from tests import small_study
from tests.conftest import Finished


def aged(study: Path, output: Path, **settings: Any) -> dict[str, dict[str, str]]:
    given = small_study.quick_settings(settings)[1::2]
    rows = pipeline.status(load_study(study, output=output, settings=given))
    return {stage: row["aged"] for stage, row in rows.items() if row["aged"]}


def test_status__nothing_has_aged_after_a_run(finished: Finished) -> None:
    assert aged(finished.study, finished.output) == {}


def test_status__option_and_what_depends_on_it(finished: Finished) -> None:
    found = aged(finished.study, finished.output, **{"decompose.n_chains": 3})
    assert found["decompose"] == {"demo": "options.n_chains was 2, is 3"}
    assert found["interact"] == {"study": "made from decompose of demo"}
    assert found["report"] == {"study": "options.decompose.n_chains was 2, is 3"}
    assert set(found) == {"decompose", "interact", "report"}


def test_status__of_inputs_that_were_moved_and_one_that_changed(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.study.parent, tmp_path / "input")
    with (tmp_path / "input" / "pairs.csv").open("a") as pairs:
        pairs.write("gene_1,gene_2\n")
    remembered = sorted((finished.output / "ledger" / "files").iterdir())
    found = aged(tmp_path / "input", finished.output)
    assert "files" not in found["ingest"]["demo"]
    assert found["ingest"]["demo"].startswith("image was ")
    assert found["segment"] == {"demo": "made from ingest of demo"}
    assert "pairs changed" in found["interact"]["study"]
    assert sorted((finished.output / "ledger" / "files").iterdir()) == remembered


def test_status__of_inputs_that_are_gone(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.study.parent, tmp_path / "input")
    for counts in (tmp_path / "input").glob("*.h5ad"):
        counts.unlink()
    rows = pipeline.status(load_study(tmp_path / "input", output=finished.output))
    assert rows["decompose"]["items"] == ["demo"]
    assert not any(row["aged"] for row in rows.values())


def test_status__output_that_was_deleted(finished: Finished, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(finished.output, output)
    shutil.rmtree(output / "work" / "variable")
    assert aged(finished.study, output) == {
        "variable": {"study": "what it had made is gone"},
        "report": {"study": "made from variable of study"},
    }


def test_status__says_so_in_the_terminal(finished: Finished) -> None:
    command = [small_study.COMMAND, "status", str(finished.study), "--output", str(finished.output)]
    options = small_study.quick_settings({"variable.min_cells": 11})
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=wide, check=True, timeout=300)
    assert "study: will be made again, options.min_cells was 10, is 11" in done.stdout
    assert "study: will be made again, options.variable.min_cells was 10, is 11" in done.stdout
