"""Hashes of the nuclei of one image, however it is divided and whatever fails."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.faults import kill_busiest_worker
from benchmarks.he_mosaic import read_fields, write_mosaic
from benchmarks.segmentation_setting import GIB, data_folder, save, slide_of


@dataclass
class Killer:
    """Kills the busiest worker while windows are predicted."""

    units: Path
    after_s: float = 0.4
    note: dict[str, Any] = field(default_factory=dict)

    def strike(self) -> None:
        """End one worker with SIGKILL and note how far prediction was."""
        done = len(list(self.units.glob("predict_*.json")))
        self.note = {"signal": "SIGKILL", "predict_units_done": done, "worker_was_busy": kill_busiest_worker()}


def invariance(shape: tuple[int, int], tiles: Sequence[int], workers: Sequence[int]) -> None:
    """Hash the nuclei and labels for every tile and worker count, without a fault and with a worker killed."""
    from spatialscope_dist.engine.cluster import ClusterSettings
    from spatialscope_dist.engine.events import Events
    from spatialscope_dist.engine.pool import Pool

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "slide.tif"
        write_mosaic(image, read_fields(data_folder()), shape)
        for count in workers:
            pool = Pool(ClusterSettings(count, 3 * GIB), Events())
            try:
                for tile in tiles:
                    for fault in (False, True):
                        row = _hash_one(image, pool, tile=tile, fault=fault)
                        rows.append({"tile": tile, "workers": count, **row})
                        print(json.dumps(rows[-1]))
                        _save_hashes(shape, rows)
            finally:
                pool.close()


def _save_hashes(shape: tuple[int, int], rows: list[dict[str, Any]]) -> None:
    distinct = {name: sorted({row[name] for row in rows}) for name in ("nuclei_sha256", "labels_sha256")}
    result = {"image_pixels": list(shape), "runs": len(rows), "distinct": distinct}
    save("invariance", {**result, "one_hash": all(len(hashes) == 1 for hashes in distinct.values()), "rows": rows})


def _hash_one(image: Path, pool: Any, *, tile: int, fault: bool) -> dict[str, Any]:
    from spatialscope_dist.steps.slide import segment_slide
    from spatialscope_dist.steps.slide_windows import predict_windows
    from spatialscope_dist.store.ledger import Units

    with tempfile.TemporaryDirectory() as folder:
        units = Units(Path(folder) / "units")
        notes: list[dict[str, Any]] = []

        def workers(function: Callable[..., Any], arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
            run = partial(pool.map, function, arguments, ledger_units=units, framework="tensorflow")
            if not fault or function is not predict_windows:
                return dict(run())
            killer = Killer(units.folder)
            timer = threading.Timer(killer.after_s, killer.strike)
            timer.start()
            done = dict(run())
            timer.join()
            notes.append({**killer.note, "predict_units": len(arguments)})
            return done

        start = time.perf_counter()
        found = segment_slide(slide_of(image, Path(folder), tile=tile), workers)
        seconds = round(time.perf_counter() - start, 1)
        hashes = _hashes(Path(folder))
    return {"killed": notes[0] if notes else None, "nuclei": found["nuclei"], "seconds": seconds, **hashes}


def _hashes(folder: Path) -> dict[str, str]:
    from spatialscope_dist.store.arrays import read_array

    frame = pd.read_parquet(folder / "nuclei.parquet")
    nuclei = [frame[column].to_numpy() for column in frame.columns] + [read_array(folder / "polygons.zarr")]
    parts = {"nuclei_sha256": nuclei, "labels_sha256": [read_array(folder / "labels.zarr")]}
    return {
        name: hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in arrays)).hexdigest()
        for name, arrays in parts.items()
    }
