"""Time and memory of `identify` from ten thousand spots to a million, on simulated counts.

    python -m benchmarks.typing_scale [10000 100000 1000000] [--genes 110] [--umi 520] [--gibbs 60]
        [--workers 2] [--memory 3GiB]

Spots of 3.6 cells on a square grid, nine types in patches, half the counts zero: the shape of the mpoa benchmark.
With `--genes 2000 --umi 115` one entry in twenty is stored. Every size goes through the installed command with a plan
that must fit; results become results/typing_scale.json, or typing_scale_GENES.json for other numbers of genes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks import typing_studies as studies
from benchmarks.watched import watch

N_TYPES, MEAN_CELLS, PITCH_UM, PATCH = 9, 3.6, 45.0, 12
USUAL_GENES = 110
ROWS_AT_ONCE = 20_000


def profiles(n_genes: int) -> NDArray[np.float64]:
    """Return one profile per type, (types, genes), with markers that overlap between types."""
    rng = np.random.default_rng(5)
    common = rng.gamma(0.6, 1.0, n_genes)
    own = common * np.exp(rng.normal(0, 1.2, (N_TYPES, n_genes)))
    return np.asarray(own / own.sum(axis=1, keepdims=True))


def simulate(n_spots: int, n_genes: int, folder: Path, *, umi: float) -> Path:
    """Return the study file of a simulated section and its reference, written with them."""
    rng = np.random.default_rng(n_spots)
    side = int(np.ceil(np.sqrt(n_spots)))
    patches = rng.dirichlet(np.full(N_TYPES, 0.3), size=(side // PATCH + 1) ** 2)
    n_cells = np.maximum(1, rng.poisson(MEAN_CELLS, n_spots))
    places = np.stack(np.divmod(np.arange(n_spots), side), axis=1)
    patch = (places // PATCH) @ np.array([side // PATCH + 1, 1])
    depth = umi * profiles(n_genes)
    _write_spots(folder / "spots.h5ad", patches[patch], n_cells, places * PITCH_UM, depth)
    labels = np.repeat(np.arange(N_TYPES), 60)
    obs = pd.DataFrame({"cell_type": [f"type{k}" for k in labels]})
    _table(sp.csr_matrix(rng.poisson(3000 * profiles(n_genes)[labels])), obs, n_genes).write_h5ad(folder / "ref.h5ad")
    lines = ["[study]", 'name = "scale"', "[[section]]", 'name = "s0"', 'counts = "spots.h5ad"', 'platform = "visium"']
    lines += [f"spot_diameter_um = {PITCH_UM}", "[reference]", 'path = "ref.h5ad"', 'cell_type = "cell_type"']
    (folder / "study.toml").write_text("\n".join([*lines, "[identify]", 'n_cells_column = "n_cells"']) + "\n")
    return folder / "study.toml"


def _write_spots(
    path: Path,
    shares: NDArray[np.float64],
    n_cells: NDArray[np.int64],
    places: NDArray[Any],
    depth: NDArray[np.float64],
) -> None:
    import dask
    import dask.array

    blocks = [
        dask.array.from_delayed(
            dask.delayed(_counts)(low, shares[low : low + ROWS_AT_ONCE], n_cells[low : low + ROWS_AT_ONCE], depth),
            shape=(len(shares[low : low + ROWS_AT_ONCE]), depth.shape[1]),
            meta=sp.csr_matrix((0, depth.shape[1]), dtype=np.int32),
        )
        for low in range(0, len(shares), ROWS_AT_ONCE)
    ]
    table = _table(dask.array.concatenate(blocks), pd.DataFrame({"n_cells": n_cells}), depth.shape[1])
    table.obsm["spatial"] = places.astype(float)
    with dask.config.set(scheduler="synchronous"):
        table.write_h5ad(path)


def _counts(
    low: int, shares: NDArray[np.float64], n_cells: NDArray[np.int64], depth: NDArray[np.float64]
) -> sp.csr_matrix[Any]:
    rng = np.random.default_rng([low, depth.shape[1]])
    mixture = rng.multinomial(n_cells, shares) / n_cells[:, None]
    return sp.csr_matrix(rng.poisson(mixture @ depth).astype(np.int32))


def _table(counts: Any, obs: pd.DataFrame, n_genes: int) -> Any:
    import anndata

    obs.index = pd.Index([f"r{row}" for row in range(len(obs))])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)]))


def measure(n_spots: int, *, n_genes: int, umi: float, workers: int, memory: str, gibbs: int) -> dict[str, Any]:
    """Return what `run --until identify` cost for one size."""
    with tempfile.TemporaryDirectory() as scratch:
        study = simulate(n_spots, n_genes, Path(scratch), umi=umi)
        command = [studies.COMMAND, "run", study, "--until", "identify", "--workers", workers, "--memory-limit", memory]
        command += ["--set", f"identify.gibbs_sweeps={gibbs}"]
        seen = watch([*map(str, command), "--json"], output=Path(scratch) / "events.jsonl")
        events = [json.loads(line) for line in (Path(scratch) / "events.jsonl").read_text().splitlines()]
    stages = events[-1]["stages"]
    return {
        "spots": n_spots,
        "genes": n_genes,
        "umi": umi,
        "gibbs_sweeps": gibbs,
        **seen.summary(),
        "stages": {name: stages[name] for name in ("ingest", "identify")},
        "spots_per_core_second": round(n_spots / stages["identify"]["cpu_seconds"], 1),
    }


def main() -> None:
    """Measure the sizes asked for, smallest first."""
    parser = argparse.ArgumentParser("benchmarks.typing_scale")
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=USUAL_GENES)
    parser.add_argument("--umi", type=float, default=520.0, help="mean counts of a spot")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--gibbs", type=int, default=60, help="kept sweeps; they cost time, not memory")
    chosen = parser.parse_args()
    rows = []
    for size in sorted(chosen.sizes):
        told = {name: getattr(chosen, name) for name in ("umi", "workers", "memory", "gibbs")}
        rows.append(measure(size, n_genes=chosen.genes, **told))
        print(json.dumps(rows[-1]), flush=True)
        result = {"workers": chosen.workers, "memory_limit": chosen.memory, "sizes": rows}
        name = "typing_scale" if chosen.genes == USUAL_GENES else f"typing_scale_{chosen.genes}"
        studies.save_result(name, " ".join(["typing_scale", *sys.argv[1:]]), result)


if __name__ == "__main__":
    main()
