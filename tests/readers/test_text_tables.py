"""Text tables: given nuclei and ligand-receptor pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from spatialscope_dist.errors import BadInput
from spatialscope_dist.readers.nuclei_table import read_nuclei_table
from spatialscope_dist.readers.pairs import read_pairs


def test_read_nuclei_table__names_stay_text(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("x,y,spot_id,cell_id,z,cell_type\n1.5,2,007,1,3,T cell\n4,5,,2,6,B cell\n")
    cells = read_nuclei_table(tmp_path / "n.csv", section="A")
    assert cells["spot_id"].tolist() == ["007", None]
    assert cells["cell_id"].tolist() == ["1", "2"]
    assert cells[["y", "x", "z"]].to_numpy().tolist() == [[2, 1.5, 3], [5, 4, 6]]
    assert cells["cell_type"].tolist() == ["T cell", "B cell"]


def test_read_nuclei_table__binary_file(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(BadInput, match=r"n\.csv"):
        read_nuclei_table(tmp_path / "n.csv", section="A")


@pytest.mark.parametrize(
    "content",
    [
        "ligand,receptor\nA,B\nC,D\nA,B\n",
        "mouseLigand\tmouseReceptor\nA\tB\nC\tD\n",
        "receptor;x;ligand\nB;1;A\nD;2;C\n",
    ],
)
def test_read_pairs__separators_and_names(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    assert read_pairs(tmp_path / "p.txt") == [("A", "B"), ("C", "D")]


def test_read_pairs__real_file(data: Path) -> None:
    pairs = read_pairs(data / "pairs" / "giotto_mouse_ligand_receptors.txt")
    assert pairs[0] == ("A2m", "Lrp1")
    assert len(pairs) > 500
