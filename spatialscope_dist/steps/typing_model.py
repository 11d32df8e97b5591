"""Worker step of `identify` that learns a section's model: platform effect, signatures, overdispersion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import spot_keys
from spatialscope_dist.steps.typing_fit import Arrays, SectionTask, save, table_arrays
from spatialscope_dist.steps.typing_platform import gene_moments, read_totals, shared_effect, shrunk_signatures
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.counts import Counts, open_counts
from spatialscope_dist.store.documents import read_json

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.adaptation import SpotSample
    from spatialscope_dist.celltypes.platform_match import PlatformMatch
    from spatialscope_dist.celltypes.section_model import SectionModel


def prepare_section(task: SectionTask) -> dict[str, Any]:
    """Write platform effect and the section's model; return what was found (worker)."""
    from spatialscope_dist.celltypes.platform_effect import platform_effect
    from spatialscope_dist.celltypes.platform_match import match_platforms
    from spatialscope_dist.celltypes.signatures import gene_lists

    spots, totals, used = read_totals(task.ingest)
    counts = open_counts(task.ingest / "counts.zarr")
    profiles, columns, positions = _shared_profiles(task, counts)
    sums, largest = gene_moments(counts, used)
    genes, sums = [counts.genes[column] for column in columns], sums[columns]
    lists = gene_lists(profiles, genes, sums)
    if len(lists.regression) == 0:
        raise BadInput(_no_genes(task.section, len(genes)))
    effect = (
        shared_effect(task, positions)
        if task.together
        else platform_effect(sums, int(totals[used].sum()), profiles, lists.platform)
    )
    match = match_platforms(effect.effect[lists.platform], sums[lists.platform], platform=task.reference_platform)
    _write_effect(task, effect.effect, positions)
    chosen = columns[lists.regression]
    keys = spot_keys(f"overdispersion {task.seed} {task.section}", spots["spot_id"])
    sample = _sample(counts, np.flatnonzero(used), totals, keys, columns=chosen)
    scaled = np.ascontiguousarray((profiles * effect.effect)[:, lists.regression])
    model = _learn(task, sample, scaled, match, max_count=int(largest[chosen].max()))
    mixture = _mixture(task, match)
    learnt = {"columns": chosen, "profiles": model.profiles, "used": used, **table_arrays(model.table)}
    save(task.work / "model.npz", **learnt, **mixture)
    return {
        "shared_genes": len(genes),
        "regression_genes": len(chosen),
        "platform_genes": len(lists.platform),
        "platform_effects_replaced": effect.n_replaced,
        "largest_count": int(largest[chosen].max()),
        "overdispersion_spots": len(sample.totals),
        "temper": float(mixture["temper"]),
        **_described(match, model),
    }


def _write_effect(task: SectionTask, effect: NDArray[np.float64], positions: NDArray[np.int64]) -> None:
    everywhere = np.full(len(read_json(task.reference / "genes.json")), np.nan)
    everywhere[positions] = effect
    write_array(task.target / "platform_effect.zarr", everywhere, axes=("gene",))


def _sample(
    counts: Counts,
    used: NDArray[np.int64],
    totals: NDArray[np.int64],
    keys: NDArray[np.int64],
    *,
    columns: NDArray[np.int64],
) -> SpotSample:
    """Return the spots the model is learnt from, chosen by key among the used ones."""
    from spatialscope_dist.celltypes.adaptation import SpotSample
    from spatialscope_dist.celltypes.overdispersion import sample_spots

    chosen = used[sample_spots(keys[used], totals[used])]
    return SpotSample(_rows(counts, chosen, columns), totals[chosen], keys[chosen])


def _learn(
    task: SectionTask, sample: SpotSample, scaled: NDArray[np.float64], match: PlatformMatch, *, max_count: int
) -> SectionModel:
    from spatialscope_dist.celltypes.section_model import fit_section_model

    options = task.options
    adapt = "off" if options.rctd_compat else options.adapt
    return fit_section_model(
        sample,
        scaled,
        match,
        adapt=adapt,
        kind=options.likelihood,
        max_count=max_count,
        rctd_compat=options.rctd_compat,
    )


def _mixture(task: SectionTask, match: PlatformMatch) -> Arrays:
    """Return RNA per cell, temper and field of the weights, as options and platforms say."""
    from spatialscope_dist.celltypes.platform_match import trust

    options = task.options
    trusted = trust(same=match.same or options.rctd_compat)
    known = trusted.rna_per_cell if options.rna_per_cell == "auto" else options.rna_per_cell == "reference"
    rna = rna_of_types(task)
    return {
        "rna_per_cell": rna / rna.mean() if known and not options.rctd_compat else np.ones(len(rna)),
        "temper": np.asarray(trusted.temper if options.temper == "auto" else options.temper),
        "weights_field": np.asarray(
            trusted.weights_field if options.weights_field == "auto" else options.weights_field
        ),
    }


def rna_of_types(task: SectionTask) -> NDArray[np.float64]:
    """Return the mean raw counts of a reference cell of each type, (types,)."""
    summary = read_json(task.reference / "summary.json")["types"]
    sizes = [summary[name] for name in read_json(task.reference / "types.json")]
    return np.array([size["umi"] / max(size["cells"], 1) for size in sizes])


def _described(match: PlatformMatch, model: SectionModel) -> dict[str, Any]:
    return {
        "overdispersion": model.table.overdispersion,
        "platform_spread": match.spread,
        "same_platform": match.same,
        "adapted": bool(np.isfinite(model.stiffness)),
        "adaptation_gain": model.gain,
        "adaptation_gain_error": model.gain_error,
    }


def _shared_profiles(
    task: SectionTask, counts: Counts
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return shrunk signatures of shared genes, their columns in the counts, their place in the reference."""
    place = positions_in(read_json(task.reference / "genes.json"), counts.genes)
    columns = np.flatnonzero(place >= 0).astype(np.int64)
    return shrunk_signatures(task)[:, place[columns]], columns, place[columns].astype(np.int64)


def _no_genes(section: str, n_shared: int) -> Problem:
    return Problem(
        f"section {section}: counts",
        f"{n_shared} genes shared with the reference, none of which tells cell types apart",
        "genes that differ between types and are counted at least 3 times",
        "Check that reference and section are of one tissue and use one kind of gene names.",
    )


def _rows(counts: Counts, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    parts = [np.zeros((0, len(columns)), np.int64)]
    for low, block in counts.blocks():
        mine = rows[(rows >= low) & (rows < low + block.shape[0])] - low
        if len(mine):
            parts.append(block[mine][:, columns].toarray().astype(np.int64))
    return np.concatenate(parts)
