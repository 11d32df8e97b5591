"""Worker steps of `identify` that treat batches of a section's spots: weights, multiset caches."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.location import is_remote
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.store.arrays import open_array
from spatialscope_dist.store.counts import open_counts
from spatialscope_dist.store.documents import replacing
from spatialscope_dist.store.frames import read_rows

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.platform_match import Platform
    from spatialscope_dist.celltypes.weights import SpotWeights

Arrays = dict[str, NDArray[Any]]
BY_BATCH = "n_cells", "exposure"  # of every spot, in arrays of which a batch reads its own rows


@dataclass(frozen=True)
class SectionTask:
    """What a worker needs to know of a section; paths, not data.

    Attributes
    ----------
    section, platform, diameter_um : from the study
    ingest, reference, align : folders of upstream stages
    segment : folder of the segmentation, None without an image
    together : folders of ingest of all sections that share one platform effect; empty: each has its own
    reference_platform : 'same' or 'different' technology of the reference, or 'auto'
    work : folder for what later steps need
    target : folder of the section's results
    options, seed : of the study
    """

    section: str
    platform: str
    diameter_um: float
    ingest: Path
    reference: Path
    align: Path
    segment: Path | None
    together: tuple[Path, ...]
    reference_platform: Platform
    work: Path
    target: Path
    options: IdentifyOptions
    seed: int

    def weights_file(self, low: int) -> Path:
        """Return where the weights of the batch from spot `low` lie; batches of other sizes have other files."""
        return self.work / f"weights-{self.options.batch_spots}-{low}.npz"

    def cache_file(self, low: int) -> Path:
        """Return where the multisets of the batch from spot `low` lie."""
        return self.work / f"cache-{self.options.batch_spots}-{low}.npz"


def save(path: Path, **arrays: Any) -> None:
    """Write arrays to one file, atomically."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path, *names: str) -> Arrays:
    """Return the named arrays of a file written by `save`, all of them when none is named."""
    source = io.BytesIO(path.read_bytes()) if is_remote(path) else path
    with np.load(source, allow_pickle=False) as stored:
        return {name: stored[name] for name in names or stored.files}


def batches(n_spots: int, batch: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of consecutive batches of spots."""
    for low in range(0, n_spots, batch):
        yield low, min(low + batch, n_spots)


def table_arrays(table: Any) -> Arrays:
    """Return a likelihood table as arrays to save."""
    lookup = table.lookup._asdict()
    arrays: Arrays = {f"table_{name}": np.asarray(value) for name, value in lookup.items()}
    return {**arrays, "overdispersion": np.asarray(table.overdispersion)}


def _table(model: Arrays) -> Any:
    from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup

    parts = {name: model[f"table_{name}"] for name in ("counts", "cubic", "last")}
    return LikelihoodTable(float(model["overdispersion"]), Lookup(**parts, bits=int(model["table_bits"])))


def fit_batch(task: SectionTask, low: int, high: int) -> dict[str, Any]:
    """Write the weights of spots low:high; return the spots that could not be fitted (worker)."""
    model = load(task.work / "model.npz")
    spots = read_rows(task.ingest / "spots.parquet", low, high, columns=["spot_id", "total_counts"])
    totals = spots["total_counts"].to_numpy(np.int64)
    counts = open_counts(task.ingest / "counts.zarr").rows(low, high)[:, model["columns"]].toarray().astype(np.int64)
    used = model["used"][low:high]
    fitted = used & (counts.sum(axis=1) > 0)
    weights = np.full((high - low, len(model["profiles"])), np.nan)
    fit = weights_fitter(task.options)(counts[fitted], totals[fitted], model["profiles"], _table(model))
    weights[fitted] = fit.weights
    lost = fitted & ~(np.isfinite(weights).all(axis=1) & (np.nan_to_num(weights).sum(axis=1) > 0))
    weights[lost] = np.nan
    save(task.weights_file(low), weights=weights, lost=lost)
    ids = spots["spot_id"].to_numpy(str)
    return {
        "failed": {str(spot): "the weights are not finite" for spot in ids[lost]},
        "not_converged": int((~fit.converged).sum()),
        "no_telling_counts": int((used & ~fitted).sum()),
    }


def known_weights(weights: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights, (spots, types), with the section's mean where a spot has none of its own."""
    return np.where(np.isfinite(weights).all(axis=1, keepdims=True), weights, mean)


def weights_fitter(options: IdentifyOptions) -> Callable[..., SpotWeights]:
    """Return the function that fits weights: as RCTD does, on a GPU where the option asks and there is one, or here."""
    if options.rctd_compat:
        from spatialscope_dist.celltypes.rctd import fit_weights_as_rctd

        return fit_weights_as_rctd
    if options.weights_on == "gpu":
        from spatialscope_dist.celltypes.gpu import fit_weights_on, has_gpu

        if has_gpu():
            return partial(fit_weights_on, "cuda")
    from spatialscope_dist.celltypes.weights import fit_weights

    return fit_weights


def cache_batch(task: SectionTask, low: int, high: int, max_cells: int) -> dict[str, Any]:
    """Write candidates and multiset energies of spots low:high (worker)."""
    from spatialscope_dist.celltypes.multisets import (
        MixtureModel,
        cache_multisets,
        choose_candidates,
        first_labels,
        weights_field,
    )

    model, mean = load(task.work / "model.npz"), load(task.work / "spots.npz", "mean_weights")["mean_weights"]
    counts = open_counts(task.ingest / "counts.zarr").rows(low, high)[:, model["columns"]].toarray().astype(np.int64)
    n_cells, known = (np.asarray(open_array(task.work / f"{name}.zarr")[low:high]) for name in BY_BATCH)
    weights = known_weights(load(task.weights_file(low), "weights")["weights"], mean)
    candidates = choose_candidates(weights, n_cells, max_cells=max_cells, max_multisets=task.options.max_multisets)
    mixture = MixtureModel(model["profiles"], model["rna_per_cell"], _table(model), temper=float(model["temper"]))
    field = float(model["weights_field"]) * weights_field(weights, candidates)
    counts = np.where(known[:, None] > 0, counts, 0)
    cache = cache_multisets(counts, known, n_cells, candidates, mixture, field=field)
    save(
        task.cache_file(low),
        types=candidates.types,
        size=candidates.size,
        sizes=np.diff(cache.start),
        energy=cache.energy,
        slots=first_labels(weights, cache),
    )
    return {"multisets": len(cache.energy), "candidates": int(candidates.size.sum())}
