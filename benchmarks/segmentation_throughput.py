"""CPU seconds of one segmented image beside StarDist's own two ways, one thread each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tifffile

from benchmarks.he_mosaic import read_fields, write_mosaic
from benchmarks.segmentation_setting import data_folder, load_stardist, model_folder, normalised, save, slide_of

THREADED = "OMP_NUM", "OPENBLAS_NUM", "NUMBA_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"
ONE_THREAD = {f"{name}_THREADS": "1" for name in THREADED}


@dataclass
class Counted:
    """A network call that adds up its pixels and CPU seconds."""

    call: Callable[..., Any]
    axes: tuple[int, int]
    pixels: int = 0
    cpu: float = 0.0

    def __call__(self, window: Any, *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = self.call(window, *arguments, **options)
        self.cpu += time.process_time() - start
        self.pixels += window.shape[self.axes[0]] * window.shape[self.axes[1]]
        return result

    def take(self) -> tuple[int, float]:
        """Return pixels and seconds since the last call."""
        taken, self.pixels, self.cpu = (self.pixels, self.cpu), 0, 0.0
        return taken


def throughput(size: int, repeats: int) -> None:
    """Time our segmentation of one image and StarDist's two ways, one thread, in turn, in this process."""
    from spatialscope_dist.nuclei.stardist_model import Network, load_network

    stardist, ours = load_stardist(), load_network(str(model_folder()))
    network = Counted(stardist.keras_model.predict, (1, 2))
    stardist.keras_model.predict = network
    window = Counted(partial(Network.predict, ours), (1, 2))
    ours.predict = window  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "slide.tif"
        write_mosaic(image, read_fields(data_folder()), (size, size))
        tiles = max(1, size // 1024)
        whole: Callable[..., Any] = partial(stardist.predict_instances, n_tiles=(tiles, tiles, 1))
        block = min(2048, size // 16 * 16)
        settings = {"axes": "YXC", "block_size": block, "min_overlap": 128, "context": 96}
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "segment_slide": lambda: _time_ours(image, window),
            "predict_instances": lambda: _time_stardist(whole, image, network),
            "predict_instances_big": lambda: _time_stardist(
                partial(stardist.predict_instances_big, show_progress=False, **settings), image, network
            ),
        }
        small = Path(folder) / "small.tif"
        write_mosaic(small, read_fields(data_folder()), (1200, 1200))
        _time_ours(small, window, tile=1024)  # several blocks, so that nothing is compiled while it is timed
        _time_stardist(stardist.predict_instances, small, network)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                rows[name].append(way())
                print(name, json.dumps(rows[name][-1]))
        save("throughput", _throughput_result(rows, size))


def _time_ours(image: Path, window: Counted, *, tile: int = 2048) -> dict[str, Any]:
    """Everything from the TIFF to nuclei.parquet, polygons.zarr and labels.zarr, border audit included."""
    from spatialscope_dist.steps.slide import segment_slide

    phases: dict[str, float] = {}
    network: dict[str, tuple[int, float]] = {}

    def workers(function: Callable[..., Any], units: dict[str, dict[str, Any]]) -> dict[str, Any]:
        start = time.process_time()
        done = {name: function(**arguments) for name, arguments in units.items()}
        phases[function.__name__] = phases.get(function.__name__, 0.0) + time.process_time() - start
        network[function.__name__] = window.take()
        return done

    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        found = segment_slide(slide_of(image, Path(folder), tile=tile), workers)
        total = time.process_time() - start
    pixels, seconds = network["predict_windows"]
    return {
        "cpu_seconds": round(total, 2),
        "network_cpu_seconds": round(seconds, 2),
        "network_pixels": pixels,
        "audit_cpu_seconds": round(phases["compare_shifted"], 2) if "compare_shifted" in phases else 0.0,
        "nuclei": found["nuclei"],
        "cpu_seconds_by_step": {name: round(value, 2) for name, value in phases.items()},
    }


def _time_stardist(predict: Callable[..., Any], image: Path, network: Counted) -> dict[str, Any]:
    """Read, normalise, predict; nothing is written."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        _, details = predict(normalised(tifffile.imread(image)), **_quiet(predict))
    total = time.process_time() - start
    pixels, seconds = network.take()
    return {
        "cpu_seconds": round(total, 2),
        "network_cpu_seconds": round(seconds, 2),
        "network_pixels": pixels,
        "nuclei": len(details["points"]),
    }


def _quiet(predict: Callable[..., Any]) -> dict[str, Any]:
    return {} if "show_progress" in getattr(predict, "keywords", {}) else {"show_tile_progress": False}


def _throughput_result(rows: dict[str, list[dict[str, Any]]], size: int) -> dict[str, Any]:
    """Return the best of each way, and how ours compares.

    Expected: StarDist's own CPU seconds per network pixel times the pixels our windows see, and the rest of its work
    (reading, normalising, suppression, labels). Our network call is the cheaper one per pixel; against its own seconds,
    `overhead_beyond_own_network` is what all the rest adds.
    """
    best = {name: min(runs, key=lambda run: run["cpu_seconds"]) for name, runs in rows.items()}
    for run in best.values():
        run["mpx_per_cpu_second"] = round(size**2 / 1e6 / run["cpu_seconds"], 3)
    ours, whole = best["segment_slide"], best["predict_instances"]
    per_pixel = whole["network_cpu_seconds"] / whole["network_pixels"]
    rest = whole["cpu_seconds"] - whole["network_cpu_seconds"]
    expected = per_pixel * ours["network_pixels"] + rest
    without_halo = per_pixel * size**2 + rest
    return {
        "image_pixels": [size, size],
        "threads": 1,
        "best": best,
        "halo_pixels_over_image": {name: round(run["network_pixels"] / size**2 - 1, 4) for name, run in best.items()},
        "cpu_over_stardist": round(ours["cpu_seconds"] / whole["cpu_seconds"] - 1, 4),
        "cpu_over_stardist_big": round(ours["cpu_seconds"] / best["predict_instances_big"]["cpu_seconds"] - 1, 4),
        "halo_share_of_expected_cpu": round(1 - without_halo / expected, 4),
        "overhead_beyond_halo": round(ours["cpu_seconds"] / expected - 1, 4),
        "overhead_beyond_own_network": round(ours["cpu_seconds"] / (ours["network_cpu_seconds"] + rest) - 1, 4),
        "overhead_beyond_halo_and_audit": round((ours["cpu_seconds"] - ours["audit_cpu_seconds"]) / expected - 1, 4),
        "cpu_seconds_beside_network": {
            name: round(run["cpu_seconds"] - run["network_cpu_seconds"], 2) for name, run in best.items()
        },
        "network_seconds_per_pixel_over_stardist": round(
            ours["network_cpu_seconds"] / ours["network_pixels"] / per_pixel - 1, 4
        ),
        "all_runs": rows,
    }


def one_thread_from_the_start() -> None:
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        arguments = [sys.executable, "-m", "benchmarks.segmentation", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **ONE_THREAD})
