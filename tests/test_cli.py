from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
