"""Given nuclei: a CSV with one row per cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy

REQUIRED = ("spot_id", "cell_id", "x", "y")
OPTIONAL = ("z", "cell_type")
MEASURES = "nucleus_"


def read_nuclei_table(path: Path, *, section: str) -> pd.DataFrame:
    """Return the given cells: cell_id, spot_id (None outside spots), y, x [, z] [, cell_type] [, nucleus_…].

    Coordinates are in the units of the counts; z in µm. Rows keep the order of the file. Columns whose names begin
    with nucleus_ are measures of the nuclei, numbers in any unit; NaN where they are not.

    Raises
    ------
    BadInput
        When the file cannot be read or lacks a column.
    """
    where = f"section {section}: nuclei {path.name}"
    expected = f"a CSV with the columns {', '.join(REQUIRED)} and, if known, {', '.join(OPTIONAL)}, {MEASURES}…"
    if not path.is_file():
        raise BadInput(Problem(where, f"no file {path}", expected, "Correct the path."))
    try:
        table = pd.read_csv(local_copy(path), dtype=str, skipinitialspace=True)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        found = f"a file that cannot be read ({str(error).splitlines()[0]})"
        raise BadInput(Problem(where, found, expected, "Write it as comma-separated UTF-8 text.")) from error
    absent = [name for name in REQUIRED if name not in table.columns]
    if absent:
        found = f"no column {', '.join(absent)}; the columns are {', '.join(map(str, table.columns))}"
        raise BadInput(Problem(where, found, expected, "Rename or add columns."))
    cells = pd.DataFrame({"cell_id": _text(table["cell_id"]), "spot_id": _text(table["spot_id"])})
    for name in ("y", "x", "z"):
        if name in table.columns:
            cells[name] = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
    for name in table.columns:
        if str(name).startswith(MEASURES) and name != "nucleus_id":
            cells[name] = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
    if "cell_type" in table.columns:
        cells["cell_type"] = _text(table["cell_type"])
    return cells


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), None)
