"""Stage `ingest`: takes a section's counts, places, image, given nuclei and truth into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.readers.checks import pixel_size_of, study_naming
from spatialscope_dist.readers.image_views import viewing_factors
from spatialscope_dist.readers.images import LazyImage, open_image
from spatialscope_dist.readers.matrix import block_bytes
from spatialscope_dist.readers.naming import genes_under
from spatialscope_dist.readers.nuclei_table import MEASURES, read_nuclei_table
from spatialscope_dist.readers.sections import counts_files, image_file, read_spots
from spatialscope_dist.readers.table import SpotTable, Table
from spatialscope_dist.readers.truth import read_truth
from spatialscope_dist.stages.context import Context, StageOutcome, StagePlan
from spatialscope_dist.steps.pixels import IMAGE_SHARD, store_image, store_view
from spatialscope_dist.store.arrays import open_group
from spatialscope_dist.store.counts import CountsWriter
from spatialscope_dist.store.documents import write_json
from spatialscope_dist.store.frames import write_frame
from spatialscope_dist.study import SectionSpec

NAME = "ingest"
VERSION = 3
_PROCESS_BYTES = 460 << 20  # a Python worker with NumPy, pandas, h5py and zarr
_DECODER_BYTES_PER_PX = 4  # Pillow keeps RGB in four bytes
_BLOCKS_IN_FLIGHT = 4


def items(context: Context) -> list[str]:
    """Return the sections."""
    return [section.name for section in context.study.sections]


def skip_reason(context: Context, item: str) -> str | None:
    """Return None: every section is taken in."""
    return None


def inputs(context: Context, item: str) -> dict[str, Any]:
    """Return the hashes of the input files and what of the study file changes the result."""
    section = context.study.section(item)
    image = image_file(section)
    files = {path.name: context.ledger.file_hash(path) for path in counts_files(section)}
    for role, path in (("image", image), ("nuclei", section.nuclei), ("truth", section.truth)):
        if path is not None:
            files[role] = context.ledger.file_hash(path)
    return {
        "files": files,
        "image": None if image is None else str(image),
        "platform": section.platform,
        "pixel_size_um": section.pixel_size_um,
        "spot_diameter_um": section.diameter_um,
        "genes": study_naming(context.study).sections[item],
        "min_total_counts": context.study.options.ingest.min_total_counts,
        "n_cells_column": context.study.options.identify.n_cells_column,
    }


def plan(context: Context, item: str) -> StagePlan:
    """Return the tasks and the larger of decoding the image and reading a block of counts."""
    section = context.study.section(item)
    facts = context.facts.sections[item]
    frames = 200 * facts.n_spots + 120 * facts.n_genes + (400 * facts.n_cells if section.nuclei or section.truth else 0)
    peak = block_bytes(facts.n_spots, facts.n_genes) + frames
    disk = 4 * facts.n_stored + 100 * facts.n_spots + 60 * facts.n_genes
    if facts.image_shape is not None:
        channels, height, width = facts.image_shape
        blocks = _BLOCKS_IN_FLIGHT * channels * IMAGE_SHARD**2
        peak = max(peak, blocks + (0 if facts.image_is_tiled else _DECODER_BYTES_PER_PX * height * width))
        view = channels * height * width * min(1.0, (facts.pixel_size_um or 1.0) / 2.0) ** 2
        disk += int(1.4 * view) + (0 if facts.image_is_tiled else channels * height * width)
    return StagePlan(tasks=len(_units(section, Path())), peak_bytes=_PROCESS_BYTES + peak, disk_bytes=disk)


def run(context: Context, item: str, output: Path) -> StageOutcome:
    """Take one section in: counts.zarr, spots.parquet, image.zarr, view.zarr and section.json."""
    section = context.study.section(item)
    units = _units(section, output)
    options = context.study.options
    units["counts"] |= {
        "naming": study_naming(context.study).sections[item],
        "min_total_counts": options.ingest.min_total_counts,
        "n_cells_column": options.identify.n_cells_column,
    }
    done = context.pool.map(
        take_in,
        {unit: {"what": unit, **arguments} for unit, arguments in units.items()},
        ledger_units=context.ledger.units(NAME, item, output),
    )
    counts = done["counts"]
    damaged = done["image"].pop("damaged") if "image" in done else {}
    about = {
        "name": section.name,
        "platform": section.platform,
        "pixel_size_um": counts["pixel_size_um"],
        "spot_diameter_um": section.diameter_um,
        "image": done.get("image"),
    }
    write_json(output / "section.json", about)
    return StageOutcome(done=len(units), total=len(units), failed=damaged, metrics=counts)


def _units(section: SectionSpec, output: Path) -> dict[str, dict[str, Any]]:
    wanted = {"counts": True, "image": image_file(section) is not None}
    wanted |= {"nuclei": section.nuclei is not None, "truth": section.truth is not None}
    return {unit: {"section": section, "output": output} for unit, there in wanted.items() if there}


def take_in(what: str, **arguments: Any) -> dict[str, Any]:
    """Return what one part of a section came to, after writing it."""
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "counts": take_counts,
        "image": take_image,
        "nuclei": take_nuclei,
        "truth": take_truth,
    }
    return parts[what](**arguments)


def take_counts(
    section: SectionSpec, output: Path, *, naming: str, min_total_counts: int, n_cells_column: str | None
) -> dict[str, Any]:
    """Write counts.zarr, genes.parquet and spots.parquet; return their sizes and the pixel size."""
    spots = read_spots(section, n_cells_column=n_cells_column)
    genes = genes_under(spots.namings, naming)
    totals = write_table(spots, output / "counts.zarr", genes)
    write_frame(output / "genes.parquet", pd.DataFrame({"gene": genes, **_other_names(spots)}))
    scale = _scale(spots)
    status = np.where(totals < min_total_counts, "low_counts", "ok")
    frame = pd.DataFrame({"spot_id": list(spots.row_names)})
    frame["y_px"], frame["x_px"] = spots.positions_px.T
    frame["y_um"], frame["x_um"] = spots.positions_px.T * scale
    frame["total_counts"] = totals
    frame["status"] = status
    if spots.n_cells is not None:
        frame["n_cells_given"] = spots.n_cells.astype(np.int64)
    write_frame(output / "spots.parquet", frame)
    return {
        "n_spots": len(frame),
        "n_genes": len(genes),
        "total_counts": int(totals.sum()),
        "low_counts": int((status == "low_counts").sum()),
        "pixel_size_um": None if spots.image is None and section.pixel_size_um is None else scale,
    }


def write_table(table: Table, path: Path, genes: tuple[str, ...]) -> NDArray[np.int64]:
    """Write a table of raw counts block by block and return the sum of each row, (rows,)."""
    writer = CountsWriter(path, genes)
    totals = [np.zeros(0, dtype=np.int64)]
    for block in table.raw_blocks():
        writer.append(block)
        totals.append(np.asarray(block.sum(axis=1), dtype=np.int64).ravel())
    writer.close(table.row_names)
    return np.concatenate(totals)


def take_image(section: SectionSpec, output: Path) -> dict[str, Any]:
    """Write view.zarr, and image.zarr of an image that cannot be read by region; return the image's facts."""
    spots = read_spots(section)
    assert spots.image is not None
    image = open_image(spots.image)
    kind, path = image.format, spots.image
    if not image.is_tiled:
        kind, path = "zarr", output / "image.zarr"
        store_image(image, path)
        image = open_image(path)
    damage = write_view(image, output / "view.zarr", pixel_size_um=_scale(spots))
    about = {"path": str(path), "format": kind, "shape": list(image.shape), "dtype": image.dtype.name}
    return {**about, "damaged": damage}


def write_view(image: LazyImage, path: Path, *, pixel_size_um: float) -> dict[str, str]:
    """Return the reasons of damaged places; writes the viewing levels, 2 µm per pixel and coarser by halves."""
    factors = viewing_factors((image.shape[1], image.shape[2]), pixel_size_um=pixel_size_um)
    group = open_group(path, mode="w")
    group.attrs["scale"] = factors[0]
    group.attrs["scales"] = list(factors)
    damage: dict[str, str] = {}
    for number, factor in enumerate(factors):
        source, reduced = (image, factor) if number == 0 else (open_image(path / str(number - 1)), 2)
        damage |= store_view(source, path / str(number), factor=reduced)
    return damage


def take_nuclei(section: SectionSpec, output: Path) -> dict[str, Any]:
    """Write given_nuclei.parquet; return how many there are."""
    assert section.nuclei is not None
    cells = read_nuclei_table(section.nuclei, section=section.name)
    to_px = read_spots(section).given_to_px
    frame = cells[["cell_id", "spot_id"]].assign(y_px=cells["y"] * to_px, x_px=cells["x"] * to_px)
    if "z" in cells:
        frame["z_um"] = cells["z"]
    if "cell_type" in cells:
        frame["cell_type"] = cells["cell_type"]
    frame = frame.join(cells.filter(like=MEASURES))
    write_frame(output / "given_nuclei.parquet", frame)
    return {"n_nuclei": len(frame)}


def take_truth(section: SectionSpec, output: Path) -> dict[str, Any]:
    """Write truth.parquet and truth.zarr; return how many cells are known."""
    assert section.truth is not None
    truth = read_truth(section.truth, section=section.name)
    to_px = read_spots(section).given_to_px
    write_table(truth, output / "truth.zarr", truth.genes)
    places = truth.cells.assign(y_px=truth.cells["y"] * to_px, x_px=truth.cells["x"] * to_px)
    write_frame(output / "truth.parquet", places[["cell_id", "cell_type", "spot_id", "y_px", "x_px"]])
    return {"n_cells": len(places)}


def _scale(spots: SpotTable) -> float:
    size = pixel_size_of(spots, None if spots.image is None else open_image(spots.image))
    assert size is not None, "checked before the run"
    return size


def _other_names(spots: SpotTable) -> dict[str, tuple[str, ...]]:
    return {f"name_{naming}": names for naming, names in spots.namings.items()}
