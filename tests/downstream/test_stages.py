from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spatialscope_dist.options import DifferentialOptions
from spatialscope_dist.readers.pairs import read_pairs
from spatialscope_dist.stages import differential, interact, variable
from spatialscope_dist.store.frames import read_frame
from tests.report.oracle import Oracle, write_oracle

FEW = DifferentialOptions(n_basis=4)
CONTACT = {"max_edge_um": 40.0, "min_cells": 8}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return write_oracle(tmp_path_factory.mktemp("downstream"), n_spots=60)


def interactions(oracle: Oracle, folder: Path, ranges: list[tuple[int, int]]) -> pd.DataFrame:
    pairs = oracle.study.options.interact.pairs
    assert pairs is not None
    assert oracle.folders.identify is not None
    assert oracle.folders.decompose is not None
    assert oracle.folders.reference is not None
    done = interact.prepare_section(
        section="demo",
        cells=oracle.folders.identify,
        decompose=oracle.folders.decompose,
        reference=oracle.folders.reference,
        pairs=[*read_pairs(Path(pairs)), ("NotThere", "Lig01")],
        target=folder,
        seed=0,
    )
    assert done["pairs"] == 20
    for low, high in ranges:
        interact.permute_block(folder=folder, block=0, low=low, high=high, contact=CONTACT)
    interact.tabulate_section(folder=folder, n_blocks=1, ranges=ranges, contact=CONTACT)
    return read_frame(folder / "table.parquet")


def test_interact__same_table_however_permutations_and_pairs_are_divided(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = interactions(oracle, tmp_path / "whole", [(0, 60)])
    parts = interactions(oracle, tmp_path / "parts", [(0, 25), (25, 60)])
    pd.testing.assert_frame_equal(whole, parts)
    assert len(whole) > 0
    assert whole["p_adjusted"].between(0, 1).all()
    monkeypatch.setattr(interact, "_PAIRS_PER_UNIT", 7)
    folder = tmp_path / "whole"
    for block in range(3):
        interact.permute_block(folder=folder, block=block, low=0, high=60, contact=CONTACT)
    interact.tabulate_section(folder=folder, n_blocks=3, ranges=[(0, 60)], contact=CONTACT)
    pd.testing.assert_frame_equal(whole, read_frame(folder / "table.parquet"))


def test_interact__no_pair_in_the_panel_gives_an_empty_table(oracle: Oracle, tmp_path: Path) -> None:
    interactions(oracle, tmp_path / "s", [(0, 1)])
    done = interact.tabulate_section(folder=tmp_path / "s", n_blocks=0, ranges=[(0, 1)], contact=CONTACT)
    assert done["selected"] == 0
    assert len(read_frame(tmp_path / "s" / "table.parquet")) == 0


def test_variable__both_tests_and_fewer_genes_beyond_composition(oracle: Oracle, tmp_path: Path) -> None:
    done = variable.find_section(
        ingest=oracle.folders.ingest,
        identify=oracle.folders.identify,
        target=tmp_path / "v.parquet",
        min_spots=10,
        adjust_depth=True,
    )
    table = read_frame(tmp_path / "v.parquet")
    assert set(table["test"]) == {"over_tissue", "beyond_cell_types"}
    assert table["p"].between(0, 1).all()
    assert done["tested"] == (table["test"] == "over_tissue").sum()
    plain = variable.find_section(
        ingest=oracle.folders.ingest, identify=None, target=tmp_path / "p.parquet", min_spots=10, adjust_depth=False
    )
    assert "beyond_cell_types" not in plain


def changes(oracle: Oracle, target: Path, **wanted: Any) -> pd.DataFrame:
    folders = oracle.folders
    differential.find_changes(
        ingest=folders.ingest, cells=folders.identify, reference=folders.reference, target=target, **wanted
    )
    return read_frame(target)


def test_differential__blocks_of_genes_do_not_matter(oracle: Oracle, tmp_path: Path) -> None:
    assert oracle.folders.identify is not None
    assert oracle.folders.reference is not None
    tested = differential._tested_types(oracle.folders.identify, oracle.folders.reference, 15)
    genes = differential._tested_genes(oracle.folders.reference, tested, 40)
    assert len(tested) >= 4
    whole = changes(oracle, tmp_path / "w.parquet", tested=tested[:2], genes=genes[:40], options=FEW)
    parts = [
        changes(oracle, tmp_path / f"{low}.parquet", tested=tested[:2], genes=genes[low : low + 20], options=FEW)
        for low in (0, 20)
    ]
    joined = pd.concat(parts).sort_values(["cell_type", "gene"], ignore_index=True)
    pd.testing.assert_frame_equal(whole.sort_values(["cell_type", "gene"], ignore_index=True), joined)
    finished = differential._finish(whole.assign(section="demo"))
    assert finished["p_adjusted"].ge(finished["p"]).all()
    assert np.isfinite(finished["statistic"]).all()


def test_differential__no_tested_type_or_gene_gives_an_empty_table(oracle: Oracle, tmp_path: Path) -> None:
    assert len(changes(oracle, tmp_path / "a.parquet", tested=[], genes=["Gene0001"], options=FEW)) == 0
    assert len(changes(oracle, tmp_path / "b.parquet", tested=["astrocyte"], genes=["NotThere"], options=FEW)) == 0
