"""Publishing: assembles `sections/NAME.zarr` from immutable stage outputs and puts it in its place last."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialscope_dist.panel import positions_in
from spatialscope_dist.store.arrays import open_array, open_group, read_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json, remove_tree
from spatialscope_dist.store.frames import read_frame, read_rows
from spatialscope_dist.store.publish_circles import fill_circles
from spatialscope_dist.store.switch import copy_tree, replacing_folder

_ROWS_AT_ONCE = 1 << 15
_CELL_UM = 8.0  # drawn size of a cell whose outline is not known


@dataclass(frozen=True)
class SectionSources:
    """Folders of the stage outputs a published section is made of, and facts that go with it.

    `genes` is the panel; `types` the columns of proportions and weights; `notes` goes to `uns`.
    """

    name: str
    ingest: Path
    diameter_um: float
    segment: Path | None = None
    identify: Path | None = None
    decompose: Path | None = None
    reference: Path | None = None
    types: list[str] = field(default_factory=list)
    genes: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def publish_section(sources: SectionSources, target: Path) -> dict[str, Any]:
    """Write the SpatialData of a section and return its sizes.

    The new store is complete on this machine before it takes the place of the old one: SpatialData writes
    to no object store. One element is in memory at a time, tables are copied block by block, and pixels are
    linked, not copied, where the file system allows it.
    """
    import anndata
    import dask
    import spatialdata
    from zarr.errors import ZarrUserWarning

    here = dask.config.set(scheduler="synchronous")  # a worker's task must not wait for tasks of its own
    sizes: dict[str, int] = {}
    replacing = replacing_folder(target)
    with replacing as fresh, here, anndata.settings.override(auto_shard_zarr_v3=True), warnings.catch_warnings():
        # Zarr remarks on consolidated metadata and on the parquet files SpatialData keeps inside its store,
        # SpatialData on tables whose shapes are on disk only.
        warnings.simplefilter("ignore", ZarrUserWarning)
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        store = spatialdata.SpatialData()
        store.write(fresh, consolidate_metadata=False)
        for name, make in _elements(sources).items():
            store[name] = make()
            sizes[name] = len(store[name])
            store.write_element(name)
            del store[name]
        for name, (places, key, diameter_um) in _circles_of(sources).items():
            radius = diameter_um / _pixel_size(sources) / 2
            fill_circles(fresh / "shapes" / name / "shapes.parquet", places, key, radius=radius)
        if sources.segment is not None:
            _link_labels(sources.segment / "labels.zarr", fresh)
        store.write_consolidated_metadata()
    return {"spots": sizes["spots"], "cells": sizes.get("cells", 0)}


def _elements(sources: SectionSources) -> dict[str, Callable[[], Any]]:
    """Return what makes each element of a section, by the element's name."""
    scale = _pixel_size(sources)
    made: dict[str, Callable[[], Any]] = {
        name: partial(_first_circles, places, key, scale) for name, (places, key, _) in _circles_of(sources).items()
    }
    made["spots"] = lambda: _spots_table(sources)
    if sources.segment is not None:
        segment = sources.segment
        made["nucleus_polygons"] = lambda: _polygons(segment, scale)
        made["nuclei"] = lambda: _empty_labels(segment, scale)
    if sources.identify is not None:
        cells = sources.identify / "cells.parquet"
        made["cells"] = lambda: _cells_table(sources, cells)
    if (sources.ingest / "view.zarr").exists():
        made["he"] = lambda: _image(sources.ingest / "view.zarr", scale)
    return made


def _circles_of(sources: SectionSources) -> dict[str, tuple[Path, str, float]]:
    """Return the file of places, the column of names and the diameter in µm of each element of circles."""
    circles = {"spot_circles": (sources.ingest / "spots.parquet", "spot_id", sources.diameter_um)}
    if sources.identify is not None and sources.segment is None:
        circles["cell_centres"] = (sources.identify / "cells.parquet", "cell_id", _CELL_UM)
    return circles


def _pixel_size(sources: SectionSources) -> float:
    return float(read_json(sources.ingest / "section.json")["pixel_size_um"] or 1.0)


def _spots_table(sources: SectionSources) -> Any:
    import anndata

    spots = read_frame(sources.ingest / "spots.parquet")
    counts = open_counts(sources.ingest / "counts.zarr")
    names = spots["spot_id"].astype(str).to_numpy(object)
    obs = pd.DataFrame({"spot_id": names, "n_cells": _cells_per_spot(sources, spots)}, index=names)
    obs["total_counts"] = spots["total_counts"].to_numpy(np.int64)
    obs["status"] = pd.Categorical(spots["status"])
    if sources.identify is not None:
        obs["status"] = pd.Categorical(read_frame(sources.identify / "spots.parquet", columns=["status"])["status"])
    table = anndata.AnnData(_lazy_counts(counts), obs=obs, var=pd.DataFrame(index=list(counts.genes)))
    table.obsm["spatial"] = spots[["x_um", "y_um"]].to_numpy(float)
    if sources.identify is not None:
        for name in ("proportions", "weights"):
            table.obsm[name] = read_array(sources.identify / f"{name}.zarr")
    table.uns["spatialscope"] = _plain_notes({**sources.notes, "cell_types": sources.types})
    return _annotate(table, "spot_circles", "spot_id")


def _lazy_counts(counts: Counts) -> Any:
    """Return the counts as a Dask array of sparse blocks, written elsewhere block by block."""
    import dask.array

    n_rows, n_genes = counts.shape
    if n_rows == 0:
        return counts.rows(0, 0)
    lows = range(0, n_rows, _ROWS_AT_ONCE)
    blocks = [
        dask.array.from_delayed(
            dask.delayed(counts.rows)(low, min(low + _ROWS_AT_ONCE, n_rows)),
            shape=(min(_ROWS_AT_ONCE, n_rows - low), n_genes),
            meta=counts.rows(0, 0),
        )
        for low in lows
    ]
    return dask.array.concatenate(blocks, axis=0)


def _cells_per_spot(sources: SectionSources, spots: pd.DataFrame) -> NDArray[np.int64]:
    for folder in (sources.identify, sources.segment):
        if folder is not None:
            return read_frame(folder / "spots.parquet")["n_cells"].to_numpy(np.int64)
    return np.zeros(len(spots), dtype=np.int64)


def _cells_table(sources: SectionSources, path: Path) -> Any:
    import anndata

    def column(name: str) -> pd.Series[Any]:
        # One by one: the text of millions of cells takes far more as a frame than as categories.
        return read_frame(path, columns=[name])[name]

    names = column("cell_id").to_numpy(object)
    obs = pd.DataFrame({"cell_id": names, "spot_id": column("spot_id").to_numpy(object)}, index=names)
    obs["section"] = pd.Categorical(column("section"))
    for name in ("cell_type", "cell_type_map", "cell_type_positional", "cell_type_composition"):
        obs[name] = pd.Categorical(column(name), categories=sources.types)
    for name in ("confidence", "margin"):
        obs[name] = column(name).to_numpy(float)
    obs["status"] = pd.Categorical(_status(sources, column("status"), obs["spot_id"]))
    if sources.segment is not None:
        obs["nucleus_id"] = column("nucleus_id").to_numpy(np.int64)
        obs = obs.assign(**_measures(sources.segment, obs["nucleus_id"].to_numpy()))
    places = read_frame(path, columns=["x_um", "y_um", "z_um"])
    if places["z_um"].nunique() <= 1:
        places = places[["x_um", "y_um"]]
    if sources.decompose is None:
        table = anndata.AnnData(obs=obs)
    else:
        var = pd.DataFrame(_panel_columns(sources), index=sources.genes)
        table = anndata.AnnData(_lazy(sources.decompose / "mean.zarr"), obs=obs, var=var)
        for name in read_json(sources.decompose / "layers.json"):
            table.layers[name] = _lazy(sources.decompose / f"{name}.zarr")
    table.obsm["spatial"] = places.to_numpy(float)
    table.uns["spatialscope"] = _plain_notes(sources.notes)
    if sources.segment is None:
        return _annotate(table, "cell_centres", "cell_id")
    return _annotate(table, "nucleus_polygons", "nucleus_id")


def _measures(segment: Path, nuclei: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Return the measures of some nuclei by their names in the published table."""
    measured = read_frame(segment / "morphology.parquet").drop(columns="nucleus_id")
    return {f"nucleus_{name}": measured[name].to_numpy()[nuclei - 1] for name in measured}


def _status(sources: SectionSources, typed: pd.Series[Any], spot_ids: pd.Series[Any]) -> NDArray[np.object_]:
    """Return the status of each cell, (cells,): that of its decomposition when that failed."""
    if sources.decompose is None:
        return typed.to_numpy(object)
    by_spot = read_frame(sources.decompose / "spots.parquet").set_index("spot_id")["status"]
    expressed = spot_ids.map(by_spot).fillna("ok").to_numpy(object)
    return np.where(expressed == "ok", typed.to_numpy(object), expressed)


def _lazy(path: Path) -> Any:
    """Return an array that is read shard by shard when it is written elsewhere."""
    import dask.array

    array = open_array(path)
    return dask.array.from_array(array, chunks=array.shards or array.chunks)


def _panel_columns(sources: SectionSources) -> dict[str, Any]:
    assert sources.identify is not None
    assert sources.decompose is not None
    assert sources.reference is not None
    measured = np.asarray(read_json(sources.decompose / "measured.json"), dtype=bool)
    effect = read_array(sources.identify / "platform_effect.zarr")
    place = positions_in(read_json(sources.reference / "genes.json"), sources.genes)
    return {"gene": sources.genes, "measured": measured, "platform_effect": effect[place]}


def _annotate(table: Any, region: str, key: str) -> Any:
    from spatialdata.models import TableModel

    table.obs["region"] = pd.Categorical.from_codes(np.zeros(table.n_obs, np.int8), pd.Index([region]))
    return TableModel.parse(table, region=region, region_key="region", instance_key=key)


def _to_coordinates(scale: float, factor: float = 1.0) -> dict[str, Any]:
    """Return transformations to source pixels ('global') and to micrometres ('um')."""
    from spatialdata.transformations import Identity, Scale

    pixels = Identity() if factor == 1.0 else Scale([factor, factor], axes=("x", "y"))
    return {"global": pixels, "um": Scale([factor * scale, factor * scale], axes=("x", "y"))}


def _first_circles(path: Path, key: str, scale: float) -> Any:
    """Return the first of many circles: they carry what an element needs besides, and are replaced by all of them."""
    import geopandas
    from spatialdata.models import ShapesModel

    places = read_rows(path, 0, 1, columns=[key, "x_px", "y_px"])
    points = geopandas.points_from_xy(places["x_px"], places["y_px"])
    frame = geopandas.GeoDataFrame({"radius": np.ones(len(places))}, geometry=points, index=places[key].to_numpy(str))
    return ShapesModel.parse(frame, transformations=_to_coordinates(scale))


def _polygons(segment: Path, scale: float) -> Any:
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel

    nuclei = read_frame(segment / "nuclei.parquet")
    outlines = read_array(segment / "polygons.zarr")[..., ::-1].astype(float)
    geometry = shapely.polygons(np.concatenate([outlines, outlines[:, :1]], axis=1))
    columns = nuclei[["area_um2", "probability", "spot_id", "y_px", "x_px"]].reset_index(drop=True)
    frame = geopandas.GeoDataFrame(columns, geometry=list(geometry))
    frame.index = pd.Index(nuclei["nucleus_id"].to_numpy(np.int64))
    return ShapesModel.parse(frame, transformations=_to_coordinates(scale))


def _image(view: Path, scale: float) -> Any:
    from spatialdata.models import Image2DModel

    level = open_group(view)
    factor = float(level.attrs["scale"])  # type: ignore[arg-type]
    pixels = np.asarray(level["0"][...])  # type: ignore[index]
    halvings = [2] * max(0, int(np.log2(max(1, min(pixels.shape[1:]) / 256))))
    model = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=halvings or None, c_coords=["r", "g", "b"])
    from spatialdata.transformations import set_transformation

    set_transformation(model, _to_coordinates(scale, factor), set_all=True)
    return model


def _empty_labels(segment: Path, scale: float) -> Any:
    import dask.array
    from spatialdata.models import Labels2DModel

    labels = open_array(segment / "labels.zarr")
    zeros = dask.array.zeros(labels.shape, dtype=labels.dtype, chunks=(4096, 4096))
    return Labels2DModel.parse(zeros, dims=("y", "x"), transformations=_to_coordinates(scale))


def _link_labels(source: Path, store: Path) -> None:
    """Put the painted label array in the place of the empty one that carries its metadata."""
    element = store / "labels" / "nuclei"
    place = element / _first_level(element)
    remove_tree(place)
    copy_tree(source, place)


def _first_level(element: Path) -> str:
    attributes = read_json(element / "zarr.json")["attributes"]
    return str(attributes["ome"]["multiscales"][0]["datasets"][0]["path"])


def _plain_notes(notes: dict[str, Any]) -> dict[str, Any]:
    """Return the notes as nested dicts of what anndata can write: lists become arrays, "/" in names "|"."""
    plain: dict[str, Any] = {}
    for key, value in notes.items():
        name = key.replace("/", "|")
        if isinstance(value, dict):
            plain[name] = _plain_notes(value)
        elif isinstance(value, list | tuple):
            plain[name] = np.asarray(value) if value else np.zeros(0)
        else:
            plain[name] = "" if value is None else value
    return plain
