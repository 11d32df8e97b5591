"""Hashes of the nuclei of one image, however it is divided and whatever fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import tifffile

from benchmarks.he_mosaic import read_fields, write_mosaic
from benchmarks.segmentation_setting import COMMAND, GIB, data_folder, model_folder, save, slide_of
from spatialscope_dist.steps.slide_spec import WINDOW

SMALL_WINDOW = 512
COMMANDS = (512, 1), (1024, 2), (4096, 2)
LOADED_BYTES = 400 << 20


@dataclass
class Killer:
    """Kills the busiest worker while windows are predicted, once some units are finished if there are several."""

    units: Path
    n_units: int
    note: dict[str, Any] = field(default_factory=dict)

    def strike(self) -> None:
        """Wait, end one worker with SIGKILL and note how far prediction was."""
        wanted = min(2, self.n_units - 1)
        while self._finished() < wanted:
            time.sleep(0.02)
        if not wanted:
            time.sleep(0.5)
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if child.memory_info().rss > LOADED_BYTES] or children
        before = [sum(process.cpu_times()[:2]) for process in workers]
        time.sleep(0.1)
        used = [sum(process.cpu_times()[:2]) - start for process, start in zip(workers, before, strict=True)]
        os.kill(workers[int(np.argmax(used))].pid, signal.SIGKILL)
        self.note = {
            "signal": "SIGKILL",
            "predict_units_done": self._finished(),
            "predict_units": self.n_units,
            "worker_was_busy": max(used) > 0.02,
        }

    def _finished(self) -> int:
        return len(list(self.units.glob("predict_*.json")))


def invariance(shape: tuple[int, int], tiles: Sequence[int], workers: Sequence[int]) -> None:
    """Hash the nuclei and labels for every tile and worker count, without a fault and with a worker killed.

    Windows are small, so that tiles group them differently; then the command, whose windows are large.
    """
    from spatialscope_dist.engine.cluster import ClusterSettings
    from spatialscope_dist.engine.events import Events
    from spatialscope_dist.engine.pool import Pool

    rows: list[dict[str, Any]] = []
    commands: list[dict[str, Any]] = []
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
                        print(json.dumps(rows[-1]), flush=True)
                        _save_hashes(shape, rows, commands)
            finally:
                pool.close()
        for tile, count in COMMANDS:
            commands.append({"tile": tile, "workers": count, **_hash_command(image, tile, count)})
            print(json.dumps(commands[-1]), flush=True)
            _save_hashes(shape, rows, commands)


def _save_hashes(shape: tuple[int, int], rows: list[dict[str, Any]], commands: list[dict[str, Any]]) -> None:
    result: dict[str, Any] = {"image_pixels": list(shape)}
    for name, runs, window in (("units", rows, SMALL_WINDOW), ("segment_image_command", commands, WINDOW)):
        distinct = {part: sorted({row[part] for row in runs}) for part in ("nuclei_sha256", "labels_sha256")}
        one = all(len(hashes) == 1 for hashes in distinct.values())
        result[name] = {"window": window, "runs": len(runs), "one_hash": one, "distinct": distinct, "rows": runs}
    save("invariance", result)


def _hash_one(image: Path, pool: Any, *, tile: int, fault: bool) -> dict[str, Any]:
    from spatialscope_dist.steps.slide import segment_slide
    from spatialscope_dist.steps.slide_windows import predict_windows
    from spatialscope_dist.store.ledger import Units

    with tempfile.TemporaryDirectory() as folder:
        units = Units(Path(folder) / "units")
        about: dict[str, Any] = {}

        def workers(function: Callable[..., Any], arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
            run = partial(pool.map, function, arguments, ledger_units=units, framework="tensorflow")
            if function is not predict_windows:
                return dict(run())
            about["tasks"] = len(arguments)
            killer = Killer(units.folder, len(arguments))
            thread = threading.Thread(target=killer.strike) if fault else None
            if thread is not None:
                thread.start()
            done = dict(run())
            if thread is not None:
                thread.join()
                about["killed"] = killer.note
            return done

        start = time.perf_counter()
        slide = replace(slide_of(image, Path(folder), tile=tile), window=SMALL_WINDOW)
        found = segment_slide(slide, workers)
        seconds = round(time.perf_counter() - start, 1)
        hashes = _hashes(Path(folder))
    return {"killed": None, **about, "nuclei": found["nuclei"], "seconds": seconds, **hashes}


def _hash_command(image: Path, tile: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out, nuclei = Path(folder) / "labels.tif", Path(folder) / "nuclei.parquet"
        options = ["--model", model_folder(), "--nuclei", nuclei, "--tile", tile, "--workers", workers]
        command = [COMMAND, "segment-image", image, out, *options, "--memory-limit", "3GiB"]
        subprocess.run([str(part) for part in command], check=True)
        frame = pd.read_parquet(nuclei)
        hashes = _digests([frame[column].to_numpy() for column in frame.columns], [tifffile.imread(out)])
    return {"nuclei": len(frame), **hashes}


def _hashes(folder: Path) -> dict[str, str]:
    from spatialscope_dist.store.arrays import read_array

    frame = pd.read_parquet(folder / "nuclei.parquet")
    nuclei = [frame[column].to_numpy() for column in frame.columns] + [read_array(folder / "polygons.zarr")]
    return _digests(nuclei, [read_array(folder / "labels.zarr")])


def _digests(nuclei: list[Any], labels: list[Any]) -> dict[str, str]:
    parts = {"nuclei_sha256": nuclei, "labels_sha256": labels}
    return {
        name: hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in arrays)).hexdigest()
        for name, arrays in parts.items()
    }
