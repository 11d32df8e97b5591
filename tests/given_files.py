"""Small input files of a study, sound by default, each spoilable in one way."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.readers.facts import read_facts
from spatialscope_dist.stages.context import Context
from spatialscope_dist.store.ledger import Ledger
from spatialscope_dist.store.place import Place
from spatialscope_dist.study import Study, load_study

GENES = tuple(f"GENE{number}" for number in range(30))
N_SPOTS, N_CELLS = 12, 40
IMAGE_PX = 400


def spot_counts(n_genes: int = len(GENES)) -> np.ndarray:
    return np.random.default_rng(1).poisson(2.0, (N_SPOTS, n_genes)).astype(np.int32) + 1


def spot_places() -> np.ndarray:
    """(x, y) in pixels: 4 × 3 spots, 80 px apart."""
    return np.array([(60 + 80 * (i % 4), 60 + 80 * (i // 4)) for i in range(N_SPOTS)], dtype=float)


def write_spots(
    path: Path,
    *,
    values: Any = None,
    genes: Sequence[str] = GENES,
    names: Sequence[str] | None = None,
    places: np.ndarray | None = None,
    **columns: Any,
) -> Path:
    values = spot_counts(len(genes)) if values is None else values
    index = list(names) if names is not None else [f"spot{i}" for i in range(N_SPOTS)]
    warnings.filterwarnings("ignore", message=".*names are not unique")
    table = anndata.AnnData(
        sp.csr_matrix(values) if isinstance(values, np.ndarray) else values,
        obs=pd.DataFrame(columns, index=index),
        var=pd.DataFrame(index=list(genes)),
    )
    table.obsm["spatial"] = spot_places() if places is None else places
    table.write_h5ad(path)
    return path


def reference_labels() -> list[Any]:
    return ["astro"] * 14 + ["micro"] * 13 + ["neuron"] * 13


def write_reference(
    path: Path, *, values: Any = None, genes: Sequence[str] = GENES, labels: Any = None, column: str = "cell_type"
) -> Path:
    values = np.random.default_rng(2).poisson(1.5, (N_CELLS, len(genes))).astype(np.int32) if values is None else values
    obs = pd.DataFrame({column: pd.Categorical(reference_labels() if labels is None else labels)})
    obs.index = pd.Index([f"cell{i}" for i in range(N_CELLS)])
    anndata.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(path)
    return path


def write_image(path: Path, *, size: int = IMAGE_PX) -> Path:
    pixels = np.random.default_rng(3).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_sound_study(folder: Path, *, image: bool = True, **section: Any) -> Path:
    """Write every file of a sound study and return study.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    write_spots(folder / "spots.h5ad")
    write_reference(folder / "reference.h5ad")
    entries: dict[str, Any] = {"name": "A", "counts": "spots.h5ad"}
    if image:
        write_image(folder / "he.png")
        entries |= {"image": "he.png", "pixel_size_um": 0.5, "spot_diameter_um": 30.0}
    entries |= section
    return write_study(folder, section=entries)


def write_study(folder: Path, *, section: dict[str, Any], reference: str = "", more: str = "") -> Path:
    lines = [f"{key} = {_toml(value)}" for key, value in section.items() if value is not None]
    text = "[study]\nname = 't'\n[[section]]\n" + "\n".join(lines)
    text += f"\n[reference]\npath = 'reference.h5ad'\n{reference}\n{more}\n"
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def load(folder: Path) -> Study:
    return load_study(folder / "study.toml", output=folder / "out")


def context_of(folder: Path, pool: Pool) -> Context:
    """What a stage is given for the study in the folder."""
    study = load(folder)
    place = Place(study.output)
    return Context(study, place, Ledger(place.ledger), pool, Events(), read_facts(study))


def _toml(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str | Path) else str(value)
