"""Every input that cannot be used is refused before anything is written, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from spatialscope_dist import pipeline
from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.errors import BadInput
from spatialscope_dist.readers.checks import study_problems
from tests import given_files as given


def refusal(folder: Path) -> str:
    """Run the study and return the message it was refused with; nothing may have been written."""
    with pytest.raises(BadInput) as caught:
        pipeline.run(given.load(folder), ClusterSettings(1, 4 << 30), Events())
    assert caught.value.exit_code == 2
    assert not (folder / "out").exists()
    for problem in caught.value.problems:
        assert problem.where
        assert problem.found
        assert problem.expected
        assert problem.remedy
    return str(caught.value)


@dataclass(frozen=True)
class Case:
    """One way to spoil a sound study, and words the message must have."""

    spoil: Callable[[Path], Any]
    words: tuple[str, ...]
    section: dict[str, Any] | None = None
    more: str = ""
    reference: str = ""


def spots(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: given.write_spots(folder / "spots.h5ad", **changes)


def reference(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: given.write_reference(folder / "reference.h5ad", **changes)


def with_value(value: float) -> np.ndarray:
    counts = given.spot_counts().astype(np.float32)
    counts[-1, -1] = value
    return counts


def cut(name: str, share: float = 0.6) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return spoil


def damage_chunk(folder: Path) -> None:
    table = anndata.read_h5ad(folder / "spots.h5ad")
    table.write_h5ad(folder / "spots.h5ad", compression="gzip")
    with h5py.File(folder / "spots.h5ad") as file:
        place = file["X/data"].id.get_chunk_info(0).byte_offset
    with (folder / "spots.h5ad").open("r+b") as handle:
        handle.seek(place)
        handle.write(b"\x00" * 64)


def without_places(folder: Path) -> None:
    table = anndata.read_h5ad(folder / "spots.h5ad")
    table.obsm["X_pca"] = table.obsm["spatial"]
    del table.obsm["spatial"]
    table.write_h5ad(folder / "spots.h5ad")


def log_beside_counts(folder: Path) -> None:
    table = anndata.read_h5ad(folder / "spots.h5ad")
    table.layers["counts"] = table.X.copy()
    table.X = np.log1p(table.X.astype(np.float32))
    table.write_h5ad(folder / "spots.h5ad")


def nuclei(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "nuclei.csv").write_text(text)


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


LOWER = [gene.capitalize() for gene in given.GENES]
ENSEMBL = [f"ENSG{number:011d}" for number in range(30)]
ONE_CELL = ["astro"] * 20 + ["neuron"] * 19 + ["tuft"]
TWICE = [f"spot{max(i, 1)}" for i in range(given.N_SPOTS)]
NOWHERE = given.spot_places() * np.array([np.nan, 1.0])
WITH_NUCLEI = {"nuclei": "nuclei.csv"}
PAIRS = "[interact]\npairs = 'pairs.csv'"

CASES = {
    "log_normalised": Case(
        spots(values=np.log1p(given.spot_counts()).astype(np.float32)), ("fractions", "log-normalised", "raw counts")
    ),
    "log_beside_counts": Case(log_beside_counts, ("log-normalised", "layers/counts", "whole numbers")),
    "log_reference": Case(
        reference(values=np.random.default_rng(0).random((given.N_CELLS, 30)).astype(np.float32) + 0.01),
        ("reference: reference.h5ad", "log-normalised"),
    ),
    "normalised": Case(spots(values=given.spot_counts() * np.float32(40.25)), ("normalised, not raw",)),
    "negative": Case(spots(values=with_value(-1)), ("1 of 360 values negative", "raw counts")),
    "missing": Case(spots(values=with_value(np.nan)), ("1 of 360 values missing", "NaN")),
    "all_zero": Case(
        spots(values=np.zeros((given.N_SPOTS, 30), np.int32)), ("no counts at all in 12 rows × 30 genes",)
    ),
    "symbols_and_identifiers": Case(
        spots(genes=ENSEMBL), ("0 genes shared", "spots use Ensembl ids", "reference gene symbols", "GENE0")
    ),
    "species": Case(spots(genes=LOWER), ("0 genes shared", "different species", "GAPDH", "orthologues")),
    "other_genes": Case(spots(genes=[f"X{i}" for i in range(30)]), ("0 genes shared", "X0", "GENE0")),
    "repeated_genes": Case(
        spots(genes=["GENE1", *given.GENES[1:]]), ("1 genes more than once: GENE1", "var_names_make_unique")
    ),
    "repeated_barcodes": Case(spots(names=TWICE), ("barcodes", "more than once: spot1", "obs_names_make_unique")),
    "no_type_column": Case(reference(column="annotation"), ("no obs column 'cell_type'", "annotation", "cell_type in")),
    "one_cell": Case(reference(labels=ONE_CELL), ("cell type 'tuft'", "1 cell", "at least 2")),
    "one_type": Case(reference(labels=["astro"] * given.N_CELLS), ("1 cell types", "at least two")),
    "unlabelled": Case(reference(labels=[None, None, *given.reference_labels()[2:]]), ("2 of 40 cells without",)),
    "no_places": Case(without_places, ('no obsm["spatial"]', "X_pca")),
    "lost_places": Case(spots(places=NOWHERE), ("12 of 12 spots without coordinates",)),
    "one_place": Case(spots(places=np.full((given.N_SPOTS, 2), 7.0)), ("all 12 spots at one place",)),
    "outside": Case(spots(places=given.spot_places() + 250), ("% of the spots outside he.png", "400 wide")),
    "other_resolution": Case(spots(places=given.spot_places() * 2), ("at least 1.5 times as large", "resolution")),
    "exchanged": Case(
        lambda folder: (
            given.write_spots(folder / "spots.h5ad", places=given.spot_places() + [0, 180]),
            _crop(folder, width=480, height=320),
        ),
        ("outside he.png", "With x and y exchanged every spot lies inside"),
    ),
    "overlapping_spots": Case(spots(), ("spots 4 µm apart", "30 µm wide", "pixel_size_um"), {"pixel_size_um": 0.05}),
    "no_pixel_size": Case(spots(), ("no pixel size", "pixel_size_um"), {"pixel_size_um": None}),
    "coarse_image": Case(
        spots(),
        ("he.png at 16 µm per pixel", "at most 1 µm per pixel", "full-resolution image"),
        {"pixel_size_um": 16.0},
    ),
    "cut_image": Case(cut("he.png"), ("he.png", "damaged")),
    "no_image_in_file": Case(text("he.png", "no image IEND"), ("he.png", "damaged")),
    "missing_image": Case(spots(), ("gone.png", "no file"), {"image": "gone.png"}),
    "cut_h5ad": Case(cut("spots.h5ad"), ("spots.h5ad", "cut short or damaged", "download it again")),
    "cut_reference": Case(cut("reference.h5ad", 0.3), ("reference.h5ad", "cut short or damaged")),
    "damaged_h5ad": Case(damage_chunk, ("spots.h5ad", "cut short or damaged")),
    "empty_h5ad": Case(text("spots.h5ad", ""), ("spots.h5ad", "cut short or damaged")),
    "missing_counts": Case(spots(), ("gone.h5ad", "no such file"), {"counts": "gone.h5ad"}),
    "missing_folder": Case(spots(), ("no folder", "Space Ranger"), {"counts": None, "spaceranger": "gone"}),
    "empty_folder": Case(
        lambda folder: (folder / "run").mkdir(),
        ("no filtered_feature_bc_matrix.h5", "tissue_positions", "scalefactors_json"),
        {"counts": None, "spaceranger": "run"},
    ),
    "nuclei_columns": Case(nuclei("spot,x,y\na,1,2\n"), ("no column spot_id, cell_id", "spot, x, y"), WITH_NUCLEI),
    "nuclei_unknown_spot": Case(
        nuclei("spot_id,cell_id,x,y\nspotX,c1,1,2\nspot1,c2,1,2\n"), ("1 spot_id that are not", "spotX"), WITH_NUCLEI
    ),
    "nuclei_twice": Case(
        nuclei("spot_id,cell_id,x,y\nspot1,c1,1,2\nspot1,c1,1,2\n"), ("1 cell_id more than once (c1)",), WITH_NUCLEI
    ),
    "nuclei_nan": Case(
        nuclei("spot_id,cell_id,x,y\nspot1,c1,?,2\nspot1,c2,1,2\n"), ("1 of 2 cells without a number",), WITH_NUCLEI
    ),
    "nuclei_types": Case(
        nuclei("spot_id,cell_id,x,y,cell_type\nspot1,c1,1,2,Astro\nspot1,c2,1,2,\n"),
        ("1 of 2 cells without cell_type", "the reference does not have: Astro", "astro, micro, neuron"),
        WITH_NUCLEI,
    ),
    "no_nuclei": Case(spots(), ("no file", "gone.csv"), {"nuclei": "gone.csv"}),
    "pairs_columns": Case(text("pairs.csv", "a,b\nGENE0,GENE1\n"), ("the columns a, b", "ligand"), more=PAIRS),
    "pairs_other_species": Case(
        text("pairs.csv", "ligand,receptor\nGene0,Gene1\n"), ("none of the 1 pairs", "but for case"), more=PAIRS
    ),
    "no_pairs": Case(spots(), ("no file", "pairs.csv"), more=PAIRS),
    "gene_file": Case(text("genes.txt", "TP53\n"), ("none of the 1 genes", "TP53"), reference="genes = 'genes.txt'"),
    "no_gene_file": Case(spots(), ("genes.txt", "one gene a line"), reference="genes = 'genes.txt'"),
    "no_cells_column": Case(
        spots(total=[1] * given.N_SPOTS), ("no obs column 'n'", "total"), more="[identify]\nn_cells_column = 'n'"
    ),
    "broken_cells_column": Case(
        spots(n=[1.5, *[2.0] * 11]),
        ("1 spots without a whole number of cells: spot0",),
        more="[identify]\nn_cells_column = 'n'",
    ),
    "transform": Case(spots(), ("invertible affine",), {"transform": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]}),
    "paste": Case(spots(), ("the first section aligned", "transform"), {"align": "paste"}),
}


def _crop(folder: Path, *, width: int, height: int) -> None:
    from PIL import Image

    Image.new("RGB", (width, height)).save(folder / "he.png")


@pytest.mark.parametrize("name", CASES)
def test_run__refuses(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    given.write_sound_study(tmp_path)
    section = {"name": "A", "counts": "spots.h5ad", "image": "he.png", "pixel_size_um": 0.5, "spot_diameter_um": 30.0}
    given.write_study(tmp_path, section=section | (case.section or {}), more=case.more, reference=case.reference)
    case.spoil(tmp_path)
    message = refusal(tmp_path)
    for word in case.words:
        assert word in message


def test_study_problems__sound_study_has_none(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path)
    problems, warnings = study_problems(given.load(tmp_path))
    assert problems == []
    assert len(warnings) == 1
    assert "fewer than 25 cells" in warnings[0]


def test_study_problems__all_at_once(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, nuclei="nuclei.csv", pixel_size_um=None)
    given.write_spots(tmp_path / "spots.h5ad", values=with_value(-2), genes=["GENE1", *given.GENES[1:]])
    given.write_reference(tmp_path / "reference.h5ad", labels=ONE_CELL)
    nuclei("spot_id,cell_id,x\n")(tmp_path)
    message = refusal(tmp_path)
    for word in ("negative", "more than once", "'tuft'", "no column y", "no pixel size"):
        assert word in message


def test_study_problems__resolution_warning_and_no_image(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, pixel_size_um=0.7)
    problems, warnings = study_problems(given.load(tmp_path))
    assert problems == []
    assert any("0.7 µm per pixel" in warning for warning in warnings)
    given.write_sound_study(tmp_path, image=False)
    assert study_problems(given.load(tmp_path))[0] == []


def test_study_problems__coarse_image_is_fine_with_given_nuclei(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path, pixel_size_um=16.0, nuclei="nuclei.csv")
    pd.DataFrame({"spot_id": ["spot0", None], "cell_id": ["a", "b"], "x": [1, 2], "y": [3, 4]}).to_csv(
        tmp_path / "nuclei.csv", index=False
    )
    assert study_problems(given.load(tmp_path))[0] == []


def test_study_problems__few_spots_outside_are_warned_about(tmp_path: Path) -> None:
    given.write_sound_study(tmp_path)
    places = np.tile(given.spot_places(), (3, 1)) + np.repeat([0.0, 3.0, 6.0], given.N_SPOTS)[:, None]
    places[0] = (-5, 10)
    values = np.tile(given.spot_counts(), (3, 1))
    given.write_spots(tmp_path / "spots.h5ad", values=values, places=places, names=[f"s{i}" for i in range(36)])
    given.write_study(
        tmp_path,
        section={"name": "A", "counts": "spots.h5ad", "image": "he.png", "pixel_size_um": 0.5, "platform": "slideseq"},
    )
    problems, warnings = study_problems(given.load(tmp_path))
    assert problems == []
    assert any("3% of the spots outside" in warning for warning in warnings)


def test_study_problems__loads_no_framework(tmp_path: Path) -> None:
    import subprocess
    import sys

    given.write_sound_study(tmp_path)
    code = (
        "import sys; from spatialscope_dist.study import load_study;"
        "from spatialscope_dist.readers.checks import study_problems;"
        f"study_problems(load_study({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'tensorflow', 'distributed', 'spatialdata') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
