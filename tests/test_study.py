from __future__ import annotations

from pathlib import Path

import pytest

from spatialscope_dist.errors import BadInput
from spatialscope_dist.study import load_study
from spatialscope_dist.study_template import write_study_file

GOOD = """
[study]
name = "t"
[[section]]
name = "A"
counts = "a.h5ad"
[reference]
path = "${SOMEWHERE}/r.h5ad"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def test_load_study__paths_environment_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    study = load_study(write(tmp_path, GOOD).parent, settings=["identify.smoothness=2.5", "segment.model=models/mine"])
    assert study.sections[0].counts == tmp_path / "a.h5ad"
    assert study.reference.path == Path("/data/r.h5ad")
    assert study.options.identify.smoothness == 2.5
    assert study.options.segment.model == str(tmp_path / "models/mine")
    assert study.output == tmp_path
    assert study.sections[0].diameter_um == 55.0


def test_load_study__every_problem_at_once_with_valid_keys(tmp_path: Path) -> None:
    text = GOOD.replace('counts = "a.h5ad"', 'counts = "a.h5ad"\ncolour = "red"\nplatform = "vizium"')
    text += "\n[segmnt]\ntile = 1\n[segment]\ntile = 5\n"
    with pytest.raises(BadInput) as caught:
        load_study(write(tmp_path, text))
    message = str(caught.value)
    assert len(caught.value.problems) == 5
    for part in ("SOMEWHERE", "[segmnt]", "colour", "spot_diameter_um", "'vizium'", "greater than or equal to 512"):
        assert part in message


def test_load_study__counts_and_spaceranger_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    with pytest.raises(BadInput, match="exactly one of counts"):
        load_study(write(tmp_path, GOOD.replace('counts = "a.h5ad"', "")))


@pytest.mark.parametrize("text", ["[study", "name = ", "\x00"])
def test_load_study__invalid_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="invalid TOML"):
        load_study(write(tmp_path, text))


def test_load_study__no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="spatialscope new"):
        load_study(tmp_path)


def test_stacks__sections_with_a_height_are_typed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    more = (
        '[[section]]\nname = "B"\ncounts = "b.h5ad"\nz_um = 0\n[[section]]\nname = "C"\ncounts = "c.h5ad"\nz_um = 10\n'
    )
    study = load_study(write(tmp_path, GOOD + more))
    assert study.stacks() == {"stack": ("B", "C"), "A": ("A",)}
    assert study.stack_of("C") == "stack"


def test_write_study_file__what_it_writes_loads(tmp_path: Path) -> None:
    file = tmp_path / "mine" / "study.toml"
    inputs = {
        "counts": tmp_path / "s.h5ad",
        "spaceranger": None,
        "image": tmp_path / "i.tif",
        "nuclei": None,
        "reference": tmp_path / "r.h5ad",
    }
    write_study_file(file, inputs, cell_type="label")
    study = load_study(file)
    assert study.reference.cell_type == "label"
    assert study.sections[0].image is not None
    assert study.sections[0].image.resolve() == (tmp_path / "i.tif").resolve()
    with pytest.raises(BadInput, match="exists"):
        write_study_file(file, inputs, cell_type="label")


def test_load_study__set_cannot_change_a_list_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    with pytest.raises(BadInput, match="--set"):
        load_study(write(tmp_path, GOOD), settings=["section.name=B"])


def test_load_study__no_section_has_the_name_of_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    sections = "".join(
        f'[[section]]\nname = "{name}"\ncounts = "a.h5ad"\n{depth}\n'
        for name, depth in (("A", "z_um = 0.0"), ("B", "z_um = 9.0"), ("stack", ""))
    )
    with pytest.raises(BadInput, match="name of a stack"):
        load_study(write(tmp_path, sections + "[reference]\npath = 'r.h5ad'\n"))


def test_load_study__a_pattern_is_one_section_for_each_match(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("s2", "s10", "s1.x"):
        (tmp_path / "slides" / f"{name}.h5ad").touch()
    head = '[[section]]\ncounts = "slides/s*.h5ad"\nimage = "he/{name}.tif"\npixel_size_um = 0.5\n'
    study = load_study(write(tmp_path, head + "[reference]\npath = 'r.h5ad'\n"))
    assert [section.name for section in study.sections] == ["s1.x", "s10", "s2"]
    assert [section.counts for section in study.sections] == sorted((tmp_path / "slides").iterdir())
    assert [section.image for section in study.sections] == [tmp_path / "he" / f"{s.name}.tif" for s in study.sections]
    assert {section.pixel_size_um for section in study.sections} == {0.5}


@pytest.mark.parametrize(
    ("lines", "message"),
    [('counts = "none/*.h5ad"', "nothing that matches"), ('name = "A"\ncounts = "*.h5ad"', "Leave name out")],
)
def test_load_study__a_pattern_that_cannot_be_used_is_a_problem(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "a.h5ad").touch()
    with pytest.raises(BadInput, match=message):
        load_study(write(tmp_path, f"[[section]]\n{lines}\n[reference]\npath = 'r.h5ad'\n"))
