"""A small study on disk whose typing and expression are the truth with noise: what the later stages read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from spatialscope_dist.readers.checks import study_naming
from spatialscope_dist.simulate import SimulatedStudy, SimulationSettings, simulate, write_study
from spatialscope_dist.simulate.settings import TYPE_NAMES
from spatialscope_dist.stages import ingest, reference
from spatialscope_dist.steps.section_view import SectionFolders
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.frames import read_frame, write_frame
from spatialscope_dist.study import Study, load_study

N_RAYS = 16


@dataclass(frozen=True)
class Oracle:
    study: Study
    simulated: SimulatedStudy
    folders: SectionFolders


def write_oracle(folder: Path, *, n_spots: int = 60, seed: int = 5) -> Oracle:
    """Simulate a study and write what ingest, segment, reference, identify and decompose would leave."""
    simulated = simulate(SimulationSettings(n_spots=n_spots), seed=seed)
    study = load_study(write_study(simulated, folder / "input"), output=folder / "output")
    work = folder / "work"
    folders = SectionFolders(
        "demo", work / "ingest", work / "segment", work / "identify", work / "decompose", work / "reference"
    )
    naming = study_naming(study)
    _ingest(study, folders.ingest, naming.sections["demo"])
    _reference(study, folders, naming.reference)
    _segment(simulated, folders)
    _identify(simulated, folders)
    _decompose(simulated, folders)
    return Oracle(study, simulated, folders)


def _ingest(study: Study, output: Path, naming: str) -> None:
    section = study.sections[0]
    counts = ingest.take_counts(section, output, naming=naming, min_total_counts=1, n_cells_column=None)
    image = ingest.take_image(section, output)
    ingest.take_truth(section, output)
    about = {"name": "demo", "platform": "visium", "pixel_size_um": counts["pixel_size_um"]}
    write_json(output / "section.json", {**about, "spot_diameter_um": 55.0, "image": image})


def _reference(study: Study, folders: SectionFolders, naming: str) -> None:
    assert folders.reference is not None
    reference.take_counts(study.reference, naming, folders.reference)
    reference.write_signatures(reference._request(study), 25, folders.reference)


def _segment(simulated: SimulatedStudy, folders: SectionFolders) -> None:
    assert folders.segment is not None
    nuclei, size = simulated.nuclei, simulated.settings.pixel_size_um
    order = np.lexsort((nuclei.centres_um[:, 1], nuclei.centres_um[:, 0]))
    turn = np.linspace(0, 2 * np.pi, N_RAYS, endpoint=False)
    long, short = nuclei.semi_axes_um[order, :1] * np.cos(turn), nuclei.semi_axes_um[order, 1:] * np.sin(turn)
    cosine, sine = np.cos(nuclei.angles_rad[order, None]), np.sin(nuclei.angles_rad[order, None])
    outline = np.stack([long * cosine - short * sine, long * sine + short * cosine], axis=2)
    polygons = ((outline + nuclei.centres_um[order, None]) / size).astype(np.float32)
    spot_ids = np.array([*read_frame(folders.ingest / "spots.parquet")["spot_id"], None], dtype=object)
    frame = pd.DataFrame({"nucleus_id": np.arange(1, len(order) + 1), "spot_id": spot_ids[simulated.cell_spot[order]]})
    frame["y_um"], frame["x_um"] = nuclei.centres_um[order].T
    frame["y_px"], frame["x_px"] = nuclei.centres_um[order].T / size
    write_frame(folders.segment / "nuclei.parquet", frame)
    write_array(folders.segment / "polygons.zarr", polygons, axes=("nucleus", "ray", "axis"))
    write_json(folders.segment / "summary.json", {"nuclei": len(frame)})


def _cells(simulated: SimulatedStudy) -> np.ndarray:
    """Return the planted cells inside spots, in the order of identify: spot row, then place."""
    inside = np.flatnonzero(simulated.cell_spot >= 0)
    return inside[np.argsort(simulated.cell_spot[inside], kind="stable")]


def _identify(simulated: SimulatedStudy, folders: SectionFolders) -> None:
    assert folders.identify is not None
    rows, nuclei, size = _cells(simulated), simulated.nuclei, simulated.settings.pixel_size_um
    spots = read_frame(folders.ingest / "spots.parquet")
    spot_rows, types = simulated.cell_spot[rows], np.array(TYPE_NAMES)[nuclei.types[rows]]
    first = np.searchsorted(spot_rows, spot_rows)
    order = np.lexsort((nuclei.centres_um[:, 1], nuclei.centres_um[:, 0]))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    frame = pd.DataFrame(
        {
            "cell_id": [
                f"{spots['spot_id'][spot]}_{rank}"
                for spot, rank in zip(spot_rows, np.arange(len(rows)) - first, strict=True)
            ],
            "spot_id": spots["spot_id"].to_numpy()[spot_rows],
            "spot_row": spot_rows,
            "rank": np.arange(len(rows)) - first,
            "y_px": nuclei.centres_um[rows, 0] / size,
            "x_px": nuclei.centres_um[rows, 1] / size,
            "y_um": nuclei.centres_um[rows, 0],
            "x_um": nuclei.centres_um[rows, 1],
            "cell_type": types,
            "confidence": np.random.default_rng(0).uniform(0.3, 1.0, len(rows)),
            "nucleus_id": number[rows],
        }
    )
    write_frame(folders.identify / "cells.parquet", frame)
    composition = np.zeros((len(spots), len(TYPE_NAMES)))
    np.add.at(composition, (spot_rows, nuclei.types[rows]), 1)
    n_cells = composition.sum(axis=1)
    shares = composition / np.maximum(n_cells, 1)[:, None]
    write_array(folders.identify / "proportions.zarr", shares.astype(np.float32), axes=("spot", "type"))
    write_array(folders.identify / "weights.zarr", shares.astype(np.float32), axes=("spot", "type"))
    frame = pd.DataFrame({"spot_id": spots["spot_id"], "n_cells": n_cells.astype(int), "status": "ok"})
    write_frame(folders.identify / "spots.parquet", frame)
    write_array(folders.identify / "platform_effect.zarr", simulated.genes.platform_effect, axes=("gene",))
    looks = {"used": True, "reason": "the looks of nuclei help to type them: 0.2 nats", "measures": ["area_um2"]}
    write_json(
        folders.identify / "summary.json",
        {
            "overdispersion": 0.3,
            "energy": [900.0, 700.0, 690.0, 690.0],
            "n_sweeps": 3,
            "morphology": {folders.name: looks, "another": {"used": False, "reason": "nobody measured"}},
        },
    )


def _decompose(simulated: SimulatedStudy, folders: SectionFolders) -> None:
    assert folders.decompose is not None
    assert folders.reference is not None
    rows, panel = _cells(simulated), read_json(folders.reference / "panel.json")["genes"]
    columns = [simulated.genes.names.index(gene) for gene in panel]
    truth = simulated.cell_counts[rows][:, columns].toarray()
    mean = np.random.default_rng(1).gamma(6, (truth + 0.2) / 6).astype(np.float32)
    for name, values in (("mean", mean), ("sd", np.sqrt(mean + 0.1))):
        write_array(folders.decompose / f"{name}.zarr", values, axes=("cell", "gene"), chunks=(64, len(panel)))
    write_array(folders.decompose / "cell_types.zarr", simulated.nuclei.types[rows], axes=("cell",))
    write_array(folders.decompose / "cell_spots.zarr", simulated.cell_spot[rows], axes=("cell",))
    exposure = (simulated.settings.capture * simulated.genes.platform_effect[columns]).astype(np.float32)
    write_array(folders.decompose / "exposure.zarr", exposure, axes=("gene",))
    spots = read_frame(folders.ingest / "spots.parquet")
    residual = np.random.default_rng(2).gamma(2, 0.02, len(spots))
    write_frame(folders.decompose / "spots.parquet", pd.DataFrame({"spot_id": spots["spot_id"], "residual": residual}))
    candidates = {"model": {"cosine": 0.91}, "proportional": {"cosine": 0.88}, "type_mean": {"cosine": 0.84}}
    summary = {"estimator": "model", "reason": "best on rehearsed spots", "candidates": candidates, "capture": 0.35}
    write_json(folders.decompose / "summary.json", summary)
