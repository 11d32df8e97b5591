"""The public benchmark's Dataset 10 (STARmap visual cortex, 189 simulated spots) typed with an honest reference.

The published methods were given the Allen single-cell atlas of the same cortex area. Here the reference is a
single-nucleus atlas of another area (motor cortex, 132 shared genes of 882), the only one at hand that holds no
cell of the tissue: its L5 IT Rspo1 nuclei stand for layer 4 (Tasic et al. 2018: L4 IT Rspo1), smooth muscle is missing.
All methods are scored by the same code here. DestVI's rows, as published, bear no relation to the truth.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import typing_studies as studies

METHODS = (
    "Cell2location",
    "DSTG",
    "DestVI",
    "RCTD",
    "SPOTlight",
    "STRIDE",
    "Seurat",
    "SpatialDWLS",
    "Stereoscope",
    "Tangram",
)
TYPES = {
    "Astro": "Astro",
    "Endo": "Endo",
    "ExcitatoryL2and3": "Excitatory L2/3",
    "ExcitatoryL4": "Excitatory L4",
    "ExcitatoryL5": "Excitatory L5",
    "ExcitatoryL6": "Excitatory L6",
    "Micro": "Micro",
    "Olig": "Olig",
    "Pvalb": "Inhibitory Pvalb",
    "Smc": "Smc",
    "Sst": "Inhibitory Sst",
    "Vip": "Inhibitory Vip",
}
_OF_BROAD = {
    "L2/3 IT": "Excitatory L2/3",
    "L5 IT": "Excitatory L5",
    "L5 ET": "Excitatory L5",
    "L5/6 NP": "Excitatory L5",
    "L6 CT": "Excitatory L6",
    "L6 IT": "Excitatory L6",
    "L6 IT Car3": "Excitatory L6",
    "Oligo": "Olig",
    "Macrophage/Microglia": "Micro",
    "Pvalb": "Inhibitory Pvalb",
    "Sst": "Inhibitory Sst",
    "Vip": "Inhibitory Vip",
    "Lamp5": "Inhibitory Other",
}
_PITCH_UM = 75.0


def _folder() -> Path:
    return studies.data_folder() / "published" / "starmap_dataset10"


def truth() -> NDArray[np.float64]:
    """Return true shares of the twelve types, (spots, types), of all cells of the spot."""
    cells = pd.read_csv(_folder() / "combined_spot_clusters.txt", sep="\t", index_col=0)
    return (cells[list(TYPES)].to_numpy().T / cells.sum(axis=1).to_numpy()).T


def published(method: str) -> NDArray[np.float64]:
    """Return the shares of the twelve types as published, (spots, types)."""
    table = _table(method)
    plain = {_plain(str(name)): name for name in table.columns}
    columns = [next(plain[key] for key in plain if key.endswith(_plain(name))) for name in TYPES.values()]
    numeric = table.select_dtypes("number")
    known = [name for name in numeric.columns if "max" not in str(name) and "cell_ID" not in str(name)]
    total = numeric[known].to_numpy(float).sum(axis=1, keepdims=True)
    return np.asarray(table[columns].to_numpy(float) / np.where(total > 0, total, 1.0))


def _table(method: str) -> pd.DataFrame:
    file = _folder() / f"published_{method}_result.txt"
    if method != "DSTG":
        return pd.read_csv(file, sep=None, engine="python", index_col=0)
    # Without a header; in the order of SpatialDWLS every column is most correlated with its own type.
    return pd.read_csv(file, header=None, names=list(_table("SpatialDWLS").columns.drop("cell_ID")))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def figures(shares: NDArray[np.float64], *, only: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Return PCC per type and per spot (means; 0 where undefined) and RMSE over the twelve types."""
    true, found = truth(), np.nan_to_num(shares)
    if only is not None:
        true, found = true[:, only], found[:, only]

    def mean_pcc(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        pairs = zip(a, b, strict=True)
        values = [np.corrcoef(x, y)[0, 1] if x.std() > 0 and y.std() > 0 else 0.0 for x, y in pairs]
        return round(float(np.mean(values)), 3)

    rmse = round(float(np.sqrt(((true - found) ** 2).mean())), 3)
    return {"pcc_per_type": mean_pcc(true.T, found.T), "pcc_per_spot": mean_pcc(true, found), "rmse": rmse}


def ours(scratch: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return our proportions and RCTD's weights as shares of the twelve types, and the number of shared genes."""
    import anndata

    counts = pd.read_csv(_folder() / "combined_spatial_count.txt", sep="\t")
    places = pd.read_csv(_folder() / "combined_Locations.txt", sep="\t").to_numpy(float) * _PITCH_UM
    n_cells = pd.read_csv(_folder() / "combined_cell_counts.txt", sep="\t", index_col=0)["cell_count"].to_numpy()
    obs = pd.DataFrame({"n_cells": n_cells}, index=[f"spot{row}" for row in range(len(counts))])
    studies._write_h5ad(scratch / "s0.h5ad", counts.to_numpy(int), counts.columns.to_numpy(str), obs, places)
    reference = anndata.read_h5ad(studies.data_folder() / "reference" / "ref_mop_snrna.h5ad")
    broad = reference.obs["cell_type_broad"].astype(str)
    types = broad.map(lambda name: _OF_BROAD.get(name, name))
    types[reference.obs["cell_type"].astype(str).str.startswith("L5 IT Rspo1")] = "Excitatory L4"
    reference.obs["cell_type"] = types.to_numpy(str)
    reference.write_h5ad(scratch / "reference.h5ad")
    (scratch / "study.toml").write_text(_STUDY)
    studies.run_study(scratch / "study.toml", scratch / "output")
    spots = anndata.read_zarr(scratch / "output" / "sections" / "s0.zarr" / "tables" / "spots")
    names = [str(name) for name in spots.uns["spatialscope"]["cell_types"]]
    columns = [names.index(name) if name in names else -1 for name in TYPES.values()]
    shared = len({gene.lower() for gene in counts.columns} & {str(gene).lower() for gene in reference.var_names})

    def chosen(values: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = np.nan_to_num(values)
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        return np.where(np.array(columns) >= 0, shares[:, columns], 0.0)

    return chosen(np.asarray(spots.obsm["proportions"])), chosen(np.asarray(spots.obsm["weights"])), shared


_STUDY = f"""[study]
name = "dataset10"
seed = 0
[[section]]
name = "s0"
counts = "s0.h5ad"
platform = "visium"
spot_diameter_um = {_PITCH_UM}
[reference]
path = "reference.h5ad"
cell_type = "cell_type"
[identify]
n_cells_column = "n_cells"
"""


def compare() -> dict[str, Any]:
    """Return the figures of ours and of the published methods, over twelve types and over those we had."""
    with tempfile.TemporaryDirectory() as scratch:
        proportions, weights, shared = ours(Path(scratch))
    had = proportions.sum(axis=0) > 0
    rows = {"ours": proportions, "our RCTD weights": weights} | {method: published(method) for method in METHODS}
    return {
        "reference": "single nuclei of the motor cortex; the published methods: single cells of the same area",
        "shared_genes": shared,
        "types_of_the_reference": int(had.sum()),
        "twelve_types": {name: figures(shares) for name, shares in rows.items()},
        "types_in_the_reference_only": {name: figures(shares, only=had) for name, shares in rows.items()},
    }
