"""Stage align by PASTE: a turned, thinned copy of a section is put back; needs the optional package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import anndata
import numpy as np
import pytest

from spatialscope_dist.readers.checks import study_problems
from spatialscope_dist.stages import align, ingest
from spatialscope_dist.study import SectionSpec
from tests import given_files as given


@pytest.fixture
def paste() -> None:
    """PASTE, or a skip."""
    try:
        distribution("paste-modern")
    except PackageNotFoundError:
        pytest.skip("paste-modern is not installed (extra 'align')")


@pytest.mark.usefixtures("paste")
@pytest.mark.filterwarnings("ignore")
def test_align_with__turned_copy_of_a_real_section(tmp_path: Path, data: Path) -> None:
    source = anndata.read_h5ad(data / "spatial" / "st_breast_layer1.h5ad")
    turned = source.copy()
    angle = 0.9
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned.obsm["spatial"] = source.obsm["spatial"] @ turn.T + [40.0, -7.0]
    turned.X.data[:] = np.random.default_rng(0).binomial(source.X.data, 0.5)
    for name, table in (("a", source), ("b", turned)):
        table.write_h5ad(tmp_path / f"{name}.h5ad")
        section = SectionSpec(name=name, counts=tmp_path / f"{name}.h5ad")
        ingest.take_counts(section, tmp_path / name, naming="index", min_total_counts=1, n_cells_column=None)
    found = align.align_with(tmp_path / "b", tmp_path / "a")
    assert found["rotation_degrees"] == pytest.approx(-np.degrees(angle), abs=1)
    back = np.c_[turned.obsm["spatial"], np.ones(turned.n_obs)] @ np.array(found["affine_um"]).T
    assert np.abs(back[:, :2] - source.obsm["spatial"]).max() < 0.5


def test_study_problems__paste(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, image=False)
    sections = "".join(
        f"[[section]]\nname = '{name}'\ncounts = 'spots.h5ad'\nalign = '{align}'\n{more}\n"
        for name, align, more in (
            ("A", "given", ""),
            ("B", "paste", ""),
            ("C", "paste", "transform = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]"),
        )
    )
    (tmp_path / "study.toml").write_text(f"{sections}[reference]\npath = 'reference.h5ad'\n")
    messages = [str(problem) for problem in study_problems(given.load(tmp_path))[0]]
    assert any("section C: align" in message and "one of them" in message for message in messages)
    installed = not any("PASTE is not installed" in message for message in messages)
    try:
        distribution("paste-modern")
    except PackageNotFoundError:
        assert not installed
    else:
        assert installed
