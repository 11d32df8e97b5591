"""Identify with measured nuclei: fewer wrong cells, the same for any division, unmoved by looks that say nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spatialscope_dist.steps.typing_morphology import MEASURES
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame, write_frame
from tests.stages.test_identify import TYPES, Case

MEANS = 1.5 * np.array([[-1.0, 0.3, 0.0], [1.0, -0.5, 0.0], [0.0, 1.2, 0.0], [0.2, 0.0, 1.5]])


def looks_of(types: np.ndarray, *, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = MEANS[types] + rng.normal(0, 1, (len(types), 3))
    return pd.DataFrame({"area": np.exp(values[:, 0]), "stain": values[:, 1], "flat": 1.0, "texture": values[:, 2]})


def give_measures(case: Case, name: str, looks: pd.DataFrame) -> None:
    """Add measures to a section's given nuclei; the last one lies in no spot."""
    file = case.root / "work" / "ingest" / name / "ingest" / "given_nuclei.parquet"
    nuclei = read_frame(file)
    measured = pd.concat([looks, looks.iloc[:1]], ignore_index=True).add_prefix(MEASURES)
    write_frame(file, nuclei.join(measured))


def segment(case: Case, name: str, looks: pd.DataFrame) -> None:
    """Make a section's given nuclei segmented ones, numbered by (y, x), with a table of their measures."""
    file = case.root / "work" / "ingest" / name / "ingest" / "given_nuclei.parquet"
    nuclei = read_frame(file).assign(row=np.arange(len(looks) + 1)).sort_values(["y_px", "x_px"])
    file.unlink()
    folder, ids = case.commit("segment", name), np.arange(1, len(nuclei) + 1)
    write_frame(folder / "nuclei.parquet", nuclei.drop(columns="cell_id").assign(nucleus_id=ids, is_cell=True))
    rows = np.minimum(nuclei["row"], len(looks) - 1)
    write_frame(folder / "morphology.parquet", looks.iloc[rows].assign(nucleus_id=ids).astype("float32"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, pool) -> Case:
    """Return two stacked sections: measures of given nuclei in one, of segmented ones in the other."""
    case = Case(tmp_path_factory.mktemp("measured"), pool, nuclei="places")
    give_measures(case, "A", looks_of(case.planted["A"].types, seed=1))
    segment(case, "B", looks_of(case.planted["B"].types, seed=2))
    return case


def wrong(case: Case, output, kind: str) -> float:
    found = [read_frame(output / name / "cells.parquet")[f"cell_type_{kind}"] for name in case.names]
    rows = [np.argsort(case.planted[name].rows, kind="stable") for name in case.names]
    if case.ledger.current("segment", "B"):  # cells of a spot in the order of the segmented nuclei
        rows[1] = np.lexsort((*case.planted["B"].yx.T[::-1], case.planted["B"].rows))
    truth = [np.array(TYPES)[case.planted[name].types[order]] for name, order in zip(case.names, rows, strict=True)]
    return float((np.concatenate(found) != np.concatenate(truth)).mean())


def test_run__looks_of_nuclei_order_the_cells_of_spots(measured):
    (_, without), (_, with_looks) = measured.run("off", morphology="off"), measured.run("auto")
    verdicts = read_json(with_looks / "summary.json")["morphology"]
    assert "morphology" not in read_json(without / "summary.json")
    for name in measured.names:
        assert verdicts[name]["used"], verdicts[name]["reason"]
        prefix = MEASURES if name == "A" else ""
        assert verdicts[name]["measures"] == [f"{prefix}{one}" for one in ("area", "stain", "texture")]
    for kind in ("positional", "composition", "map"):
        assert wrong(measured, with_looks, kind) < 0.7 * wrong(measured, without, kind)


@pytest.mark.parametrize("division", [{"n_blocks": 4}, {"batch_spots": 7, "n_blocks": 3}])
def test_run__same_result_for_any_division_with_looks(measured, division):
    _, whole = measured.run("whole" + "".join(division))
    _, divided = measured.run("-".join(map(str, division.values())), **division)
    for part in ("energy", "morphology"):
        assert read_json(divided / "summary.json")[part] == read_json(whole / "summary.json")[part]
    for name in measured.names:
        one, other = (read_frame(output / name / "cells.parquet") for output in (whole, divided))
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_run__shuffled_looks_change_nothing(tmp_path, pool):
    case = Case(tmp_path, pool, nuclei="places", names=("A",))
    rng = np.random.default_rng(3)
    give_measures(case, "A", looks_of(rng.permutation(case.planted["A"].types), seed=3))
    (_, without), (_, with_looks) = case.run("off", morphology="off"), case.run("auto")
    assert not read_json(with_looks / "summary.json")["morphology"]["A"]["used"]
    one, other = (read_frame(output / "A" / "cells.parquet") for output in (without, with_looks))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
