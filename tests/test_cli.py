from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import given_files as given

COMMAND = str(Path(sys.executable).with_name("spatialscope"))
HEAVY = ("torch", "tensorflow", "distributed", "spatialdata", "pandas", "zarr")


def spatialscope(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("code", ["import spatialscope_dist", "import spatialscope_dist.cli"])
def test_import__loads_nothing_heavy(code: str) -> None:
    program = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_version_and_help() -> None:
    assert spatialscope("--version").stdout.startswith("spatialscope 0.")
    shown = spatialscope("--help").stdout
    for command in ("new", "check", "plan", "run", "status", "report", "demo", "segment-image", "decompose"):
        assert command in shown


def test_public_names_resolve() -> None:
    import spatialscope_dist

    for name in spatialscope_dist.__all__:
        assert getattr(spatialscope_dist, name) is not None


def test_run__missing_study_is_exit_2(tmp_path: Path) -> None:
    done = spatialscope("run", tmp_path)
    assert done.returncode == 2
    assert "spatialscope new" in done.stderr


def test_run__unknown_option_is_exit_2() -> None:
    assert spatialscope("run", "x", "--colour", "red").returncode == 2


def test_new__refuses_two_sources(tmp_path: Path) -> None:
    done = spatialscope("new", tmp_path / "s.toml", "--reference", "r.h5ad", "--cell-type", "t")
    assert done.returncode == 2
    assert "--counts" in done.stderr


def test_status__of_a_study_never_run(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[[section]]\nname="A"\ncounts="a.h5ad"\n[reference]\npath="r.h5ad"\n')
    done = spatialscope("status", tmp_path, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["stages"]["segment"]["done"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.toml"]


def test_run__unknown_stage_is_exit_2_and_names_the_stages(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    done = spatialscope("run", tmp_path, "--output", tmp_path / "out", "--until", "segmentation", "--json")
    assert done.returncode == 2
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 2)
    assert "'segmentation'" in done.stderr
    assert "ingest, align, segment" in done.stderr
    assert not (tmp_path / "out").exists()


def test_run__unreachable_scheduler_is_exit_2(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    done = spatialscope("run", tmp_path, "--output", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert not (tmp_path / "out").exists()


def test_run__unwritable_output_is_exit_2(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    (tmp_path / "file").write_text("in the way")
    done = spatialscope("run", tmp_path, "--output", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "--output DIR" in done.stderr


def test_run__quarantined_items_are_exit_4(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    command = ("run", tmp_path, "--output", tmp_path / "out", "--until", "ingest", "--workers", 1, "--json")
    assert spatialscope(*command).returncode == 0
    note = tmp_path / "out" / "ledger" / "ingest" / "A.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"failed": {"spot3": "not a number"}}))
    done = spatialscope(*command)
    assert done.returncode == 4
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["event"] == "summary"
    assert summary["stages"]["ingest"]["failed"] == 1
    assert not summary["changed"]
    assert "spot3" in spatialscope("status", tmp_path, "--output", tmp_path / "out").stdout


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_run__interrupted_is_exit_130_and_says_how_to_go_on(tmp_path: Path, how: str) -> None:
    given.write_sound_study(tmp_path, image=False)
    command = [COMMAND, "run", tmp_path, "--output", tmp_path / "out", "--workers", "1", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "committed":
            break
    if how == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    else:
        process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors


def test_run__disk_too_small_is_refused_by_the_plan(tmp_path: Path, small_disk: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    done = spatialscope("run", tmp_path, "--output", small_disk / "out", "--memory-limit", "4GiB")
    assert done.returncode == 3
    assert "disk" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_write__full_disk_keeps_what_was_there(small_disk: Path) -> None:
    import numpy as np

    from spatialscope_dist.errors import StoreError
    from spatialscope_dist.store.arrays import write_array
    from spatialscope_dist.store.documents import read_json, write_json

    write_json(small_disk / "a.json", {"kept": True})
    noise = np.random.default_rng(0).integers(0, 2**62, 1 << 18)
    with pytest.raises(StoreError, match="No space left on device"):
        write_array(small_disk / "b.zarr", noise, axes=("entry",))
    with pytest.raises(StoreError, match="No space left on device"):
        write_json(small_disk / "a.json", {"kept": "x" * (1 << 20)})
    assert read_json(small_disk / "a.json") == {"kept": True}
