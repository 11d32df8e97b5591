"""Claims of the threat model in DESIGN.md; those about TLS and addresses are in tests/engine/test_clusters.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import spatialscope_dist
from spatialscope_dist import pipeline
from spatialscope_dist.engine.cluster import GIB, ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.errors import BadInput
from spatialscope_dist.study import load_study
from tests import given_files as given

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
EXECUTORS = {"eval", "exec", "compile", "__import__"}
SOURCES = sorted(Path(spatialscope_dist.__file__).parent.rglob("*.py"))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            yield source.name, node


def test_package__unpickles_nothing() -> None:
    found = []
    for name, node in nodes():
        if isinstance(node, ast.Import):
            found += [(name, one.name) for one in node.names if one.name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            found.append((name, str(node.module)))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append((name, "allow_pickle"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            found.append((name, "torch.load"))
    assert len(SOURCES) > 100
    assert found == []


def test_package__executes_no_text_and_no_shell() -> None:
    found = [
        (name, ast.unparse(node))
        for name, node in nodes()
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in EXECUTORS | {"os.system", "os.popen"}
            or any(keyword.arg == "shell" for keyword in node.keywords)
        )
    ]
    assert found == []


@pytest.mark.parametrize("value", ["$(touch pwned)", "`touch pwned`", "__import__('os').system('touch pwned')"])
def test_load_study__text_that_looks_like_code_stays_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = given.write_sound_study(tmp_path, image=False)
    text = file.read_text().replace("path = 'reference.h5ad'", f'path = "{value}"')
    file.write_text(text)
    study = load_study(file)
    assert str(study.reference.path).endswith(value)
    with pytest.raises(BadInput):
        pipeline.check(study)
    assert not (tmp_path / "pwned").exists()


def test_run__writes_in_the_output_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        found = [path for path in tmp_path.rglob("*") if path.is_file() and "out" not in path.parts]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    given.write_sound_study(tmp_path / "input", image=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files()
    study = load_study(tmp_path / "input", output=tmp_path / "out")
    pipeline.run(study, ClusterSettings(1, 2 * GIB), Events(), until="reference")
    assert (tmp_path / "out" / "reference.zarr").exists()
    assert files() == before
