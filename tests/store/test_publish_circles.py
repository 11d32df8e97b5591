"""Circles written part by part are those of geopandas and SpatialData."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import spatialdata
from geopandas.testing import assert_geodataframe_equal
from spatialdata.models import ShapesModel

from spatialscope_dist.store.documents import write_json
from spatialscope_dist.store.frames import write_frame
from spatialscope_dist.store.publish import SectionSources, _first_circles
from spatialscope_dist.store.publish_circles import fill_circles

RADIUS = 27.5
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def places(n_places: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    names = pd.array([f"spot {row}" for row in range(n_places)], dtype="string")
    return pd.DataFrame({"spot_id": names, "y_px": random.normal(0, 1e4, n_places), "x_px": np.arange(n_places) / 7})


def written(folder: Path, frame: pd.DataFrame) -> Any:
    """Return circles as they are read from a store they were filled into."""
    write_json(folder / "section.json", {"pixel_size_um": 0.5})
    write_frame(folder / "spots.parquet", frame)
    sources = SectionSources(name="A", ingest=folder, diameter_um=55.0)
    store = spatialdata.SpatialData(shapes={"spots": _first_circles(folder / "spots.parquet", "spot_id", 0.5)})
    store.write(folder / "A.zarr")
    file = folder / "A.zarr" / "shapes" / "spots" / "shapes.parquet"
    fill_circles(file, sources.ingest / "spots.parquet", "spot_id", radius=RADIUS)
    return spatialdata.read_zarr(folder / "A.zarr")["spots"]


@pytest.mark.parametrize("n_places", [1, 70_000])
def test_fill_circles__as_if_all_had_been_objects(tmp_path: Path, n_places: int) -> None:
    frame = places(n_places)
    points = geopandas.points_from_xy(frame["x_px"], frame["y_px"])
    wanted = geopandas.GeoDataFrame(
        {"radius": np.full(n_places, RADIUS)}, geometry=points, index=frame["spot_id"].to_numpy(str)
    )
    found = written(tmp_path, frame)
    assert_geodataframe_equal(found, ShapesModel.parse(wanted), check_like=True)
    assert spatialdata.get_extent(found, coordinate_system="um")["x"][0] == pytest.approx(0.5 * -RADIUS)
