"""Publishing the reference: `reference.zarr`, an AnnData with counts, types, signatures and panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatialscope_dist.store.arrays import read_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.switch import replacing_folder


def publish_reference(output: Path, target: Path) -> dict[str, Any]:
    """Write the AnnData of a reference stage output and return its sizes.

    Counts go from block to block; the new folder is complete before it takes the place of the old one.
    """
    import anndata
    import zarr
    from anndata.io import sparse_dataset, write_elem

    counts = open_counts(output / "reference.zarr")
    settings = anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False)
    with replacing_folder(target) as fresh, settings:
        group = zarr.open_group(str(fresh), mode="w", zarr_format=3)
        write_elem(group, "/", _without_counts(output, counts))
        for low, block in counts.blocks(1024):
            if low == 0:
                write_elem(group, "X", block)
            else:
                sparse_dataset(group["X"]).append(block)
    return {"cells": counts.shape[0], "genes": counts.shape[1]}


def _without_counts(output: Path, counts: Counts) -> Any:
    import anndata

    types = read_json(output / "types.json")
    panel = read_json(output / "panel.json")
    cells = read_frame(output / "cells.parquet")
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(cells["cell_type"].to_numpy(str), categories=types)},
        index=cells["cell_id"].to_numpy(str),
    )
    var = pd.DataFrame(index=list(counts.genes))
    var["in_panel"] = var.index.isin(panel["genes"])
    table = anndata.AnnData(obs=obs, var=var)
    # Type names may hold a slash, which no key of a Zarr store may: names are values here, never keys.
    table.varm["signatures"] = read_array(output / "signatures.zarr").T
    table.uns["cell_types"] = np.array(types, dtype=str)
    table.uns["panel"] = np.array(panel["genes"], dtype=str)
    ranked = [(name, gene) for name in types for gene in panel["markers"][name]]
    table.uns["markers"] = pd.DataFrame(ranked, columns=["cell_type", "gene"]).set_index(
        pd.Index([str(row) for row in range(len(ranked))])
    )
    return table
