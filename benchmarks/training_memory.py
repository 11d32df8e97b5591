"""Peak memory and cost of the stage `train` on references of growing size, 2,000 genes of which 5 % are stored.

`python -m benchmarks.training_memory [CELLS …]`: each size in a process of its own, few steps, since a step's memory
does not depend on the number of cells. Sizes measured before are kept.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.provenance import provenance
from spatialscope_dist.engine.measure import measured
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.stages import train
from spatialscope_dist.store.counts import CountsWriter
from spatialscope_dist.store.documents import write_json
from spatialscope_dist.store.frames import write_frame

HERE = Path(__file__).parent
FILE = HERE / "results" / "training_memory.json"
GENES, STORED, TYPES, BLOCK = 2000, 100, 30, 10_000
OPTIONS = TrainOptions(max_steps=20, score_steps=20, check_every_steps=20, checkpoint_every_steps=20)


def main() -> None:
    """Measure and write results/training_memory.json."""
    sizes = [int(size) for size in sys.argv[1:]] or [50_000, 200_000, 800_000]
    before = json.loads(FILE.read_text())["sizes"] if FILE.exists() else []
    rows = [row for row in before if row["cells"] not in sizes]
    for n_cells in sizes:
        rows.append(in_new_process(n_cells))
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: int(row["cells"]))
    slope = np.polyfit([row["cells"] for row in rows], [row["peak_bytes"] for row in rows], 1)
    results = {
        **provenance(" ".join(["training_memory", *sys.argv[1:]])),
        "sizes": rows,
        "bytes_per_cell": round(float(slope[0])),
        "extrapolated_not_measured": {"cells": 5_000_000, "peak_bytes": round(float(np.polyval(slope, 5e6)))},
    }
    FILE.write_text(json.dumps(results, indent=1) + "\n")


def in_new_process(n_cells: int) -> dict[str, Any]:
    """Return what training on a synthetic reference of so many cells cost."""
    folder = Path(tempfile.mkdtemp())
    try:
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        for work in (write_reference, train_on):
            process = context.Process(target=work, args=(folder, n_cells, answers))
            process.start()
            found = answers.get()
            process.join()
        return dict(found)
    finally:
        shutil.rmtree(folder)


def write_reference(folder: Path, n_cells: int, answers: Any) -> None:
    """Write a reference as the stage `reference` leaves it, block by block."""
    random, genes = np.random.default_rng(0), [f"g{number}" for number in range(GENES)]
    writer = CountsWriter(folder / "reference" / "reference.zarr", genes)
    for low in range(0, n_cells, BLOCK):
        size = min(BLOCK, n_cells - low)
        at = random.integers(0, GENES, size * STORED)
        counts = random.geometric(0.4, size * STORED).astype(np.int32)
        writer.append(sp.csr_matrix((counts, at, np.arange(size + 1) * STORED), shape=(size, GENES)))
    names = [f"cell{number}" for number in range(n_cells)]
    writer.close(names)
    types = [f"type{number:02d}" for number in range(TYPES)]
    kinds = np.array(types, dtype=object)[random.integers(0, TYPES, n_cells)]
    write_frame(folder / "reference" / "cells.parquet", pd.DataFrame({"cell_id": names, "cell_type": kinds}))
    write_json(folder / "reference" / "types.json", types)
    write_json(folder / "reference" / "genes.json", genes)
    write_json(folder / "reference" / "panel.json", {"genes": genes})
    answers.put({})


def train_on(folder: Path, n_cells: int, answers: Any) -> None:
    """Train a few steps and report peak memory and CPU time, as the engine measures a task's."""
    arguments = {"reference": folder / "reference", "output": folder / "model", "options": OPTIONS, "seed": 0}
    done = measured(train.train_model, arguments)
    stored = sum(file.stat().st_size for file in (folder / "reference").rglob("*") if file.is_file())
    cost = {"peak_bytes": done.peak_rss_bytes, "cpu_seconds": round(done.cpu_seconds, 1), "reference_bytes": stored}
    answers.put({"cells": n_cells} | cost)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
