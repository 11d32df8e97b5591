"""Writing a simulated study as the files a user would have, with the truth beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.simulate.settings import TYPE_NAMES, SimulationSettings

if TYPE_CHECKING:
    from spatialscope_dist.simulate.study import SimulatedStudy

TRUTH_SCALE = "true counts of every planted cell before capture, on the platform of the reference"

HEADLINE = "# A simulated section with known truth: {n_spots} spots, seed {seed}; written by `spatialscope demo`."
STUDY_TOML = """\
{headline}
[study]
name = "demo"
seed = {seed}

[[section]]
name = "demo"
counts = "counts.h5ad"
platform = "visium"
image = "image.tif"
pixel_size_um = {pixel_size_um}
spot_diameter_um = {spot_diameter_um}
truth = "truth.h5ad"

[reference]
path = "reference.h5ad"
cell_type = "cell_type"
platform = "different"
genes = "auto"

[segment]
model = "demo"                 # StarDist model trained on simulated images, part of the package
model_pixel_size_um = 0.5

[interact]
pairs = "pairs.csv"
"""


def write_once(settings: SimulationSettings, folder: Path, *, seed: int) -> Path:
    """Return the path of study.toml in ``folder`` after simulating and writing the study, unless it is there already.

    Raises
    ------
    BadInput
        When the folder holds another study.
    """
    from spatialscope_dist.simulate.study import simulate

    file, headline = folder / "study.toml", HEADLINE.format(n_spots=settings.n_spots, seed=seed)
    if not file.exists():
        return write_study(simulate(settings, seed=seed), folder)
    found = file.read_text(encoding="utf-8").partition("\n")[0]
    if found != headline:
        raise BadInput(Problem(str(file), found.lstrip("# "), headline.lstrip("# "), "Give another folder."))
    return file


def write_study(simulated: SimulatedStudy, folder: Path) -> Path:
    """Return the path of study.toml after writing the whole study into ``folder``, made when missing.

    Writes ``image.tif`` (tiled, pixel size in its tags), ``counts.h5ad`` (obsm["spatial"] (x, y) in pixels of the
    image), ``reference.h5ad`` (obs["cell_type"]), ``pairs.csv`` (ligand, receptor), ``truth.h5ad`` (one row per planted
    cell; see ``uns["scale"]``) and ``study.toml``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_image(simulated, folder / "image.tif")
    _write_counts(simulated, folder / "counts.h5ad")
    _write_reference(simulated, folder / "reference.h5ad")
    _write_truth(simulated, folder / "truth.h5ad")
    pairs = [(pair.ligand, pair.receptor) for pair in simulated.genes.pairs] + list(simulated.genes.decoys)
    lines = ["ligand,receptor", *(f"{ligand},{receptor}" for ligand, receptor in sorted(pairs))]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    settings = simulated.settings
    text = STUDY_TOML.format(
        headline=HEADLINE.format(n_spots=settings.n_spots, seed=simulated.seed),
        seed=simulated.seed,
        pixel_size_um=settings.pixel_size_um,
        spot_diameter_um=settings.spot_diameter_um,
    )
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def _write_image(simulated: SimulatedStudy, path: Path) -> None:
    import tifffile

    size = simulated.settings.pixel_size_um
    tifffile.imwrite(
        path,
        np.ascontiguousarray(np.moveaxis(simulated.image, 0, -1)),
        photometric="rgb",
        tile=(512, 512),
        compression="zlib",
        resolution=(1e4 / size, 1e4 / size),
        resolutionunit="CENTIMETER",
        metadata={"PhysicalSizeX": size, "PhysicalSizeY": size, "unit": "um"},
    )


def _write_counts(simulated: SimulatedStudy, path: Path) -> None:
    import anndata
    import pandas as pd

    spots = anndata.AnnData(
        X=simulated.spot_counts,
        obs=pd.DataFrame(index=spot_names(len(simulated.spots_um))),
        var=pd.DataFrame(index=list(simulated.genes.names)),
    )
    spots.obsm["spatial"] = simulated.spots_um[:, ::-1] / simulated.settings.pixel_size_um
    spots.write_h5ad(path, compression="gzip")


def _write_reference(simulated: SimulatedStudy, path: Path) -> None:
    import anndata
    import pandas as pd

    names = np.array(TYPE_NAMES)[simulated.reference_types]
    index = [f"ref{row + 1:05d}" for row in range(len(names))]
    cells = anndata.AnnData(
        X=simulated.reference_counts,
        obs=pd.DataFrame({"cell_type": pd.Categorical(names)}, index=index),
        var=pd.DataFrame(index=list(simulated.genes.names)),
    )
    cells.write_h5ad(path, compression="gzip")


def _write_truth(simulated: SimulatedStudy, path: Path) -> None:
    import anndata
    import pandas as pd

    nuclei, size = simulated.nuclei, simulated.settings.pixel_size_um
    spots = np.array([*spot_names(len(simulated.spots_um)), ""])
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(TYPE_NAMES)[nuclei.types], categories=list(TYPE_NAMES)),
            "spot_id": spots[simulated.cell_spot],
            "x_px": nuclei.centres_um[:, 1] / size,
            "y_px": nuclei.centres_um[:, 0] / size,
            "long_axis_um": nuclei.semi_axes_um[:, 0],
            "short_axis_um": nuclei.semi_axes_um[:, 1],
            "angle_rad": nuclei.angles_rad,
        },
        index=[f"cell{row + 1:06d}" for row in range(len(nuclei.types))],
    )
    genes = simulated.genes
    var = pd.DataFrame({"platform_effect": genes.platform_effect}, index=list(genes.names))
    truth = anndata.AnnData(X=simulated.cell_counts, obs=obs, var=var)
    truth.layers["captured"] = simulated.cell_captured
    truth.obsm["spatial"] = nuclei.centres_um[:, ::-1] / size
    truth.obsm["programmes"] = simulated.states.scores
    truth.varm["gradient"] = sparse.csr_matrix(genes.gradient.T)
    truth.uns["scale"] = TRUTH_SCALE
    truth.uns["capture"] = simulated.settings.capture
    truth.uns["type_names"] = list(TYPE_NAMES)
    truth.uns["planted_pairs"] = json.dumps([dataclasses.asdict(pair) for pair in genes.pairs])
    truth.uns["settings"] = json.dumps(dataclasses.asdict(simulated.settings))
    truth.write_h5ad(path, compression="gzip")


def spot_names(count: int) -> list[str]:
    """Return the names of the spots, in row order."""
    return [f"spot{row + 1:05d}" for row in range(count)]
