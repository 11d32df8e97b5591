"""Every block of the README is run, or read as what it is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from spatialscope_dist.study import load_study
from tests import small_study
from tests.conftest import Finished

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def commands() -> list[list[str]]:
    lines = [line for text in blocks("bash") for line in text.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_toml_block__loads(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "study.toml").write_text(text)
    assert load_study(tmp_path).sections[0].name == "A1"


def test_make_targets__exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.M)


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "spatialscope"], ids=lambda words: words[1])
def test_spatialscope_lines__run_on_a_real_study(words: list[str], finished: Finished, tmp_path: Path) -> None:
    given = {"study.toml": finished.study, "A1/outs": "outs", "A1.tif": "image.tif", "ref.h5ad": "reference.h5ad"}
    arguments = [str(given.get(word, word)) for word in words[1:]]
    if words[1] == "new":
        arguments[1] = str(tmp_path / "new.toml")
    elif words[1] in {"run", "status"}:
        arguments += ["--output", str(finished.output)]
    if words[1] == "run":
        arguments += small_study.quick_settings()
    done = subprocess.run([small_study.COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_python_block__runs_on_a_finished_study(finished: Finished) -> None:
    (text,) = blocks("python")
    program = text.replace("my_study/sections/A1.zarr", str(finished.output / "sections" / "demo.zarr"))
    names: dict[str, object] = {}
    exec(compile(program, "README", "exec"), names)  # the README's own text
    assert names["cells"].n_obs > 0  # type: ignore[attr-defined]
