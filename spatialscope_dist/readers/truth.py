"""The known truth of a simulated or curated section: an h5ad with one row per cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.readers.h5ad import (
    columns_of,
    element,
    frame_group,
    index_of,
    main_matrix,
    missing_text,
    namings_of,
)
from spatialscope_dist.readers.matrix import reading
from spatialscope_dist.readers.table import Table


@dataclass(frozen=True)
class TruthTable(Table):
    """True cells of a section.

    Attributes
    ----------
    cells : one row per cell: cell_id, cell_type, spot_id (None outside spots), y, x in the units of the counts
    """

    cells: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_truth(path: Path, *, section: str) -> TruthTable:
    """Return the true cells of a section; obs needs cell_type, spot_id and places (obsm["spatial"], or x_px and y_px).

    Raises
    ------
    BadInput
        When the file cannot be read or lacks a column.
    """
    where = f"section {section}: truth {path.name}"
    with reading(path) as handle:
        obs = frame_group(handle, "obs", where)
        placed = "spatial" in handle.get("obsm", {})
        needed = ["cell_type", "spot_id", *([] if placed else ["x_px", "y_px"])]
        absent = [name for name in needed if name not in columns_of(obs)]
        if absent:
            found = f"no obs column {', '.join(absent)}; the columns are {', '.join(columns_of(obs))}"
            raise BadInput(
                Problem(where, found, "the columns of a truth file", "Add them, or remove truth from the study.")
            )
        place = np.asarray(element(handle["obsm"]["spatial"])) if placed else None
        cells = pd.DataFrame(
            {
                "cell_id": index_of(obs),
                "cell_type": missing_text(element(obs["cell_type"])),
                "spot_id": missing_text(element(obs["spot_id"])),
                "y": np.asarray(element(obs["y_px"]) if place is None else place[:, 1], dtype=np.float64),
                "x": np.asarray(element(obs["x_px"]) if place is None else place[:, 0], dtype=np.float64),
            }
        )
        return TruthTable(
            where=where,
            matrix=main_matrix(path, handle, where),
            row_names=index_of(obs),
            namings=namings_of(handle, where),
            cells=cells,
        )
