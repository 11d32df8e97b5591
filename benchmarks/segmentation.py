"""Nuclei of real H&E: quality beside StarDist, throughput, invariance, memory.

    SPATIALSCOPE_DATA=… python -m benchmarks.segmentation quality|throughput|invariance|memory

Images are the fields of data/nuclei, or mosaics of them (`he_mosaic.py`), at 0.25 µm per pixel; the weights are
models/he_hybrid beside the data. Each command writes results/segmentation_NAME.json, after every row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from benchmarks.he_mosaic import PIXEL_SIZE_UM, read_fields, write_mosaic
from benchmarks.provenance import commit
from benchmarks.segmentation_invariance import invariance
from benchmarks.segmentation_rescaled import rescaled_crops
from benchmarks.segmentation_setting import (
    COMMAND,
    HERE,
    data_folder,
    load_stardist,
    model_folder,
    normalised,
    save,
)
from benchmarks.segmentation_throughput import one_thread_from_the_start, throughput
from benchmarks.watched import watch


def quality(shape: tuple[int, int]) -> None:
    """Score our labels and those of one whole-image StarDist call on the five fields, and both on a mosaic of them.

    A field is one window of ours; the mosaic is many, and has no truth.
    """
    score, stardist = load_scorer(), load_stardist()
    rows: dict[str, Any] = {}
    result = {"fields": rows}
    for image in sorted((data_folder() / "nuclei").glob("*.png")):
        truth = tifffile.imread(image.with_name(f"{image.stem}_label.tif"))
        ours, whole, rows[image.stem] = _compare(image, stardist, score)
        rows[image.stem]["segment_image"] = _rounded(score(truth, ours))
        rows[image.stem]["stardist_whole_image"] = _rounded(score(truth, whole))
        print(image.stem, json.dumps(rows[image.stem]))
        save("quality", {"mean": _mean_scores(rows), **result})
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "mosaic.tif"
        write_mosaic(image, read_fields(data_folder()), shape)
        mosaic = {"pixels": list(shape), **_compare(image, stardist, score)[2]}
    print("mosaic", json.dumps(mosaic))
    crops = rescaled_crops(stardist, score, _command_labels)
    print("her2_B4", json.dumps(crops))
    save("quality", {"mean": _mean_scores(rows), "mosaic": mosaic, "her2_B4_crops": crops, **result})


def load_scorer() -> Callable[[Any, Any], dict[str, Any]]:
    """Return the function that scores a label image, (true, predicted), from the script beside the data."""
    spec = importlib.util.spec_from_file_location("score_nuclei", data_folder().parent / "score" / "score_nuclei.py")
    assert spec is not None
    assert spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    score: Callable[[Any, Any], dict[str, Any]] = scorer.score
    return score


def _compare(image: Path, stardist: Any, score: Callable[[Any, Any], dict[str, Any]]) -> tuple[Any, Any, Any]:
    ours = _command_labels(image)
    pixels = tifffile.imread(image) if image.suffix == ".tif" else np.asarray(Image.open(image).convert("RGB"))
    whole, _ = stardist.predict_instances(normalised(pixels), show_tile_progress=False)
    between = score(whole, ours)
    return (
        ours,
        whole,
        {
            "nuclei": {"segment_image": between["n_predicted"], "stardist_whole_image": between["n_true"]},
            "pq_between": round(between["pq"], 6),
            "pixels_that_differ_in_foreground": int(((whole > 0) != (ours > 0)).sum()),
        },
    )


def _command_labels(image: Path, pixel_size_um: float = PIXEL_SIZE_UM) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.tif"
        where = ["--model", model_folder(), "--pixel-size-um", str(pixel_size_um), "--workers", "1"]
        subprocess.run([COMMAND, "segment-image", image, out, *where], check=True)
        return tifffile.imread(out)


def _rounded(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) for name, value in scores.items()}


def _mean_scores(rows: dict[str, Any]) -> dict[str, Any]:
    methods = ("segment_image", "stardist_whole_image")
    means = {
        method: {
            name: round(float(np.mean([row[method][name] for row in rows.values()])), 5)
            for name in ("dice", "aji", "pq", "n_predicted")
        }
        for method in methods
    }
    return {**means, "pq_between": round(float(np.mean([row["pq_between"] for row in rows.values()])), 6)}


def memory(sizes: Sequence[int], tissue_share: float, limit_s: float | None) -> None:
    """Segment square slides of growing size with two workers of 3 GiB; what was measured before is kept."""
    path = HERE / "results" / "segmentation_memory.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["slides"] if path.exists() else []
    for size in sizes:
        about = {"edge_px": size, "tissue_share": tissue_share}
        with tempfile.TemporaryDirectory() as folder:
            measured = measure_slide(size, Path(folder), tissue_share=tissue_share, limit_s=limit_s)
        rows = [row for row in rows if any(row[name] != value for name, value in about.items())]
        rows.append({**about, "commit": commit(), **measured})
        rows.sort(key=lambda row: (row["tissue_share"], row["edge_px"]))
        print(json.dumps(about | measured), flush=True)
        save("memory", {"workers": 2, "memory_limit_per_worker": "3GiB", "slides": rows, **flatness(rows)})


def measure_slide(
    size: int, folder: Path, *, tissue_share: float = 1.0, limit_s: float | None = None
) -> dict[str, Any]:
    """Return memory, time and nuclei of `segment-image` on a synthetic slide of `size`² pixels."""
    image, nuclei = folder / "slide.tif", folder / "nuclei.parquet"
    write_mosaic(image, read_fields(data_folder()), (size, size), jpeg=True, tissue_share=tissue_share)
    options = ["--model", model_folder(), "--nuclei", nuclei, "--workers", "2", "--memory-limit", "3GiB"]
    seen = watch([COMMAND, "segment-image", image, folder / "labels.tif", *options], limit_s=limit_s)
    found = len(pd.read_parquet(nuclei, columns=["nucleus_id"])) if seen.finished else None
    raw, on_disk = 3 * size * size / 1e9, image.stat().st_size / 1e9
    return {"raw_gb": round(raw, 2), "tiff_gb": round(on_disk, 2), **seen.summary(), "nuclei": found}


def flatness(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest over the smallest peak of finished slides, nothing when fewer than two finished."""
    done = [row for row in rows if row["finished"]]
    names = ("peak_rss_worker_mib", "peak_rss_driver_mib", "peak_rss_together_mib")
    peaks = {name: [row[name] for row in done] for name in names if len(done) > 1}
    return {f"{name}_ratio": round(max(values) / min(values), 3) for name, values in peaks.items()}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    compared = commands.add_parser("quality")
    compared.add_argument("--shape", type=int, nargs=2, default=(2500, 2400))
    timed = commands.add_parser("throughput")
    timed.add_argument("--size", type=int, default=4096)
    timed.add_argument("--repeats", type=int, default=1)
    same = commands.add_parser("invariance")
    same.add_argument("--shape", type=int, nargs=2, default=(2500, 1856))
    same.add_argument("--tiles", type=int, nargs="+", default=(512, 1024, 2048))
    same.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4))
    large = commands.add_parser("memory")
    large.add_argument("--sizes", type=int, nargs="+", default=(10_000, 20_000, 40_000))
    large.add_argument("--tissue-share", type=float, default=1.0)
    large.add_argument("--limit-s", type=float, default=None)
    chosen = parser.parse_args()
    if chosen.name == "quality":
        quality(tuple(chosen.shape))
    elif chosen.name == "throughput":
        one_thread_from_the_start()
        throughput(chosen.size, chosen.repeats)
    elif chosen.name == "invariance":
        invariance(tuple(chosen.shape), chosen.tiles, chosen.workers)
    else:
        memory(chosen.sizes, chosen.tissue_share, chosen.limit_s)


if __name__ == "__main__":
    main()
