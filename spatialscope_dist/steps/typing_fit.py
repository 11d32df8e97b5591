"""Worker steps of `identify` that treat one section: model, weights, cells, multiset caches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.store.arrays import read_array, write_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json, write_bytes
from spatialscope_dist.store.frames import read_frame

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SectionTask:
    """What a worker needs to know of a section; paths, not data.

    Attributes
    ----------
    section, platform, diameter_um : from the study
    ingest, reference, align : folders of upstream stages
    segment : folder of the segmentation, None without an image
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
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def load(path: Path, *names: str) -> Arrays:
    """Return the named arrays of a file written by `save`, all of them when none is named."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in names or stored.files}


def batches(n_spots: int, batch: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of consecutive batches of spots."""
    for low in range(0, n_spots, batch):
        yield low, min(low + batch, n_spots)


def prepare_section(task: SectionTask) -> dict[str, Any]:
    """Write platform effect, regression profiles, overdispersion and likelihood table (worker)."""
    from spatialscope_dist.celltypes.likelihood import likelihood_table
    from spatialscope_dist.celltypes.overdispersion import estimate_overdispersion, sample_spots
    from spatialscope_dist.celltypes.platform_effect import platform_effect
    from spatialscope_dist.celltypes.signatures import gene_lists

    spots = read_frame(task.ingest / "spots.parquet", columns=["spot_id", "total_counts", "status"])
    totals = spots["total_counts"].to_numpy(np.int64)
    used = (spots["status"] == "ok").to_numpy() & (totals > 0)
    counts = open_counts(task.ingest / "counts.zarr")
    profiles, columns, positions = _shared_profiles(task, counts)
    sums, largest = _gene_moments(counts, used)
    genes = [counts.genes[column] for column in columns]
    lists = gene_lists(profiles, genes, sums[columns])
    if len(lists.regression) == 0:
        raise BadInput(_no_genes(task.section, len(genes)))
    effect = platform_effect(sums[columns], int(totals[used].sum()), profiles, lists.platform)
    chosen = columns[lists.regression]
    scaled = np.ascontiguousarray((profiles * effect.effect)[:, lists.regression])
    max_count = int(largest[chosen].max())
    keys = spot_keys(f"overdispersion {task.seed} {task.section}", spots["spot_id"])
    sampled = np.flatnonzero(used)[sample_spots(keys[used], totals[used])]
    sample = _rows(counts, sampled, chosen)
    kind = task.options.likelihood
    found = estimate_overdispersion(sample, totals[sampled], scaled, kind=kind, max_count=max_count)
    table = likelihood_table(found, kind=kind, max_count=max_count)
    everywhere = np.full(len(read_json(task.reference / "genes.json")), np.nan)
    everywhere[positions] = effect.effect
    write_array(task.target / "platform_effect.zarr", everywhere, axes=("gene",))
    save(task.work / "model.npz", columns=chosen, profiles=scaled, used=used, **_table_arrays(table))
    return {
        "overdispersion": found,
        "overdispersion_spots": len(sampled),
        "shared_genes": len(genes),
        "regression_genes": len(chosen),
        "platform_genes": len(lists.platform),
        "platform_effects_replaced": effect.n_replaced,
        "largest_count": max_count,
    }


def _shared_profiles(
    task: SectionTask, counts: Counts
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return shrunk signatures of shared genes, their columns in the counts, their place in the reference."""
    from spatialscope_dist.celltypes.signatures import shrink

    summary = read_json(task.reference / "summary.json")["types"]
    types = read_json(task.reference / "types.json")
    umi = np.array([summary[name]["umi"] for name in types], np.int64)
    profiles = shrink(read_array(task.reference / "signatures.zarr"), umi, shrinkage_umi=task.options.shrinkage_umi)
    place = positions_in(read_json(task.reference / "genes.json"), counts.genes)
    columns = np.flatnonzero(place >= 0).astype(np.int64)
    return profiles[:, place[columns]], columns, place[columns].astype(np.int64)


def _no_genes(section: str, n_shared: int) -> Problem:
    return Problem(
        f"section {section}: counts",
        f"{n_shared} genes shared with the reference, none of which tells cell types apart",
        "genes that differ between types and are counted at least 3 times",
        "Check that reference and section are of one tissue and use one kind of gene names.",
    )


def _gene_moments(counts: Counts, used: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sum and maximum of each gene over the used spots, (genes,)."""
    sums, largest = np.zeros(counts.shape[1], np.int64), np.zeros(counts.shape[1], np.int64)
    for low, block in counts.blocks():
        kept = block[used[low : low + block.shape[0]]]
        if kept.shape[0]:
            sums += np.asarray(kept.sum(axis=0), np.int64).ravel()
            largest = np.maximum(largest, kept.max(axis=0).toarray().ravel().astype(np.int64))
    return sums, largest


def _rows(counts: Counts, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    parts = [np.zeros((0, len(columns)), np.int64)]
    for low, block in counts.blocks():
        mine = rows[(rows >= low) & (rows < low + block.shape[0])] - low
        if len(mine):
            parts.append(block[mine][:, columns].toarray().astype(np.int64))
    return np.concatenate(parts)


def _table_arrays(table: Any) -> Arrays:
    lookup = table.lookup._asdict()
    arrays: Arrays = {f"table_{name}": np.asarray(value) for name, value in lookup.items()}
    return {**arrays, "overdispersion": np.asarray(table.overdispersion)}


def _table(model: Arrays) -> Any:
    from spatialscope_dist.celltypes.likelihood import LikelihoodTable, Lookup

    parts = {name: model[f"table_{name}"] for name in ("counts", "cubic", "last")}
    return LikelihoodTable(float(model["overdispersion"]), Lookup(**parts, bits=int(model["table_bits"])))


def fit_batch(task: SectionTask, low: int, high: int) -> dict[str, Any]:
    """Write the weights of spots low:high; return the spots that could not be fitted (worker)."""
    from spatialscope_dist.celltypes.weights import fit_weights

    model = load(task.work / "model.npz")
    spots = read_frame(task.ingest / "spots.parquet", columns=["spot_id", "total_counts"]).iloc[low:high]
    totals = spots["total_counts"].to_numpy(np.int64)
    counts = open_counts(task.ingest / "counts.zarr").rows(low, high)[:, model["columns"]].toarray().astype(np.int64)
    used = model["used"][low:high]
    fitted = used & (counts.sum(axis=1) > 0)
    weights = np.full((high - low, len(model["profiles"])), np.nan)
    fit = fit_weights(counts[fitted], totals[fitted], model["profiles"], _table(model))
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


def cache_batch(task: SectionTask, low: int, high: int, max_cells: int) -> dict[str, Any]:
    """Write candidates and multiset energies of spots low:high (worker)."""
    from spatialscope_dist.celltypes.multisets import MixtureModel, cache_multisets, choose_candidates, first_labels

    model, spots = load(task.work / "model.npz"), load(task.work / "spots.npz")
    counts = open_counts(task.ingest / "counts.zarr").rows(low, high)[:, model["columns"]].toarray().astype(np.int64)
    n_cells, weights = spots["n_cells"][low:high], spots["weights"][low:high]
    candidates = choose_candidates(weights, n_cells, max_cells=max_cells, max_multisets=task.options.max_multisets)
    known = spots["exposure"][low:high]
    mixture = MixtureModel(model["profiles"], np.ones(len(model["profiles"])), _table(model))
    cache = cache_multisets(np.where(known[:, None] > 0, counts, 0), known, n_cells, candidates, mixture)
    save(
        task.cache_file(low),
        types=candidates.types,
        size=candidates.size,
        sizes=np.diff(cache.start),
        energy=cache.energy,
        slots=first_labels(weights, cache),
    )
    return {"multisets": len(cache.energy), "candidates": int(candidates.size.sum())}
