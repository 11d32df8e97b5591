"""What `identify` finds on a benchmark, by the functions its workers call, without a study: seconds instead of minutes.

The keys of random draws are those of the study that `typing_studies.write_study` writes, and so are the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks.typing_studies import Bench
from spatialscope_dist.celltypes import labelling, multisets, potts, signatures
from spatialscope_dist.celltypes.adaptation import SpotSample
from spatialscope_dist.celltypes.likelihood import LikelihoodTable
from spatialscope_dist.celltypes.marginals import Samples, sample_marginals
from spatialscope_dist.celltypes.overdispersion import sample_spots
from spatialscope_dist.celltypes.platform_effect import platform_effect
from spatialscope_dist.celltypes.platform_match import match_platforms, trust
from spatialscope_dist.celltypes.rctd import fit_weights_as_rctd
from spatialscope_dist.celltypes.section_model import fit_section_model
from spatialscope_dist.celltypes.spot_updates import Prior
from spatialscope_dist.celltypes.weights import fit_weights
from spatialscope_dist.geometry.blocks import sweep_closure
from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import quotient_graph, radius_graph
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.panel import positions_in
from spatialscope_dist.randomness import key_of, spot_keys


@dataclass(frozen=True)
class Typed:
    """What was found: labels (cells,) and shares (spots, types), as numbers of the benchmark's types."""

    labels: dict[str, NDArray[np.int64]]
    proportions: NDArray[np.float64]
    weights: NDArray[np.float64]
    about: list[dict[str, Any]]


@dataclass(frozen=True)
class _Fitted:
    """One section before the sweeps."""

    weights: NDArray[np.float64]
    rna_per_cell: NDArray[np.float64]
    cache: multisets.MultisetCache
    about: dict[str, Any]


def type_bench(bench: Bench, reference: str, options: IdentifyOptions, *, seed: int = 0) -> Typed:
    """Return what `identify` finds with these options; cells must be in the order of their spots."""
    n_cells = np.bincount(bench["cell_spot"], minlength=len(bench["Y"])).astype(np.int64)
    sections = np.unique(bench["spot_sec"])
    rows = [np.flatnonzero(bench["spot_sec"] == number) for number in sections]
    present = np.unique(bench[f"ref_{reference}_label"])
    fitted = [
        _fit(bench, reference, options, spots=mine, n_cells=n_cells, seed=seed, most=int(n_cells.max()))
        for mine in rows
    ]
    weights = np.concatenate([one.weights for one in fitted])
    shares = np.concatenate([one.weights / one.rna_per_cell for one in fitted])
    cache = _joined([one.cache for one in fitted])
    labels, marginal = _sweep(bench, cache, weights, options, seed=seed)
    soft = labelling.blend_proportions(marginal, shares, np.ones(len(present)), share=options.weights_in_proportions)
    return Typed(
        {name: present[found] for name, found in labels.items()},
        _spread(soft, present, len(bench["types"])),
        _spread(weights / weights.sum(axis=1, keepdims=True), present, len(bench["types"])),
        [one.about for one in fitted],
    )


def _spread(shares: NDArray[np.float64], present: NDArray[np.int64], n_types: int) -> NDArray[np.float64]:
    everywhere = np.zeros((len(shares), n_types))
    everywhere[:, present] = shares
    return everywhere


def _fit(
    bench: Bench,
    reference: str,
    options: IdentifyOptions,
    *,
    spots: NDArray[np.int64],
    n_cells: NDArray[np.int64],
    seed: int,
    most: int,
) -> _Fitted:
    """Return weights and multiset energies of a section's spots."""
    compat, name = options.rctd_compat, f"s{bench['spot_sec'][spots[0]]}"
    present, label = np.unique(bench[f"ref_{reference}_label"], return_inverse=True)
    learnt = signatures.type_signatures([sp.csr_matrix(bench[f"ref_{reference}_X"])], label, len(present))
    place = positions_in(bench[f"ref_{reference}_genes"].astype(str).tolist(), bench["genes"].astype(str).tolist())
    columns = np.flatnonzero(place >= 0)
    shrunk = signatures.shrink(learnt.profiles, learnt.umi, shrinkage_umi=0.0 if compat else options.shrinkage_umi)
    profiles, counts = shrunk[:, place[columns]], bench["Y"][spots].astype(np.int64)
    totals, counts = counts.sum(axis=1), counts[:, columns]
    sums = counts.sum(axis=0)
    lists = signatures.gene_lists(profiles, bench["genes"][columns].astype(str).tolist(), sums)
    effect = platform_effect(sums, int(totals.sum()), profiles, lists.platform).effect
    match = match_platforms(effect[lists.platform], sums[lists.platform], platform="auto")
    counts = np.ascontiguousarray(counts[:, lists.regression])
    keys = spot_keys(f"overdispersion {seed} {name}", [f"spot{row}" for row in spots])
    chosen = sample_spots(keys, totals)
    model = fit_section_model(
        SpotSample(counts[chosen], totals[chosen], keys[chosen]),
        np.ascontiguousarray((profiles * effect)[:, lists.regression]),
        match,
        adapt="off" if compat else options.adapt,
        kind=options.likelihood,
        max_count=int(counts.max()),
        rctd_compat=compat,
    )
    weights = (fit_weights_as_rctd if compat else fit_weights)(counts, totals, model.profiles, model.table).weights
    rna = learnt.umi / np.maximum(learnt.n_cells, 1)
    about = {"platform_spread": round(match.spread, 3), "adapted": bool(np.isfinite(model.stiffness))}
    return _energies(
        (counts, totals, n_cells[spots], weights),
        model.profiles,
        model.table,
        rna / rna.mean() if match.same and not compat else np.ones(len(rna)),
        options=options,
        most=most,
        about=about | {"same_platform": match.same, "overdispersion": model.table.overdispersion},
    )


def _energies(
    spots: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    profiles: NDArray[np.float64],
    table: LikelihoodTable,
    rna: NDArray[np.float64],
    *,
    options: IdentifyOptions,
    most: int,
    about: dict[str, Any],
) -> _Fitted:
    counts, totals, n_cells, weights = spots
    trusted = trust(same=about["same_platform"] or options.rctd_compat)
    candidates = multisets.choose_candidates(weights, n_cells, max_cells=most, max_multisets=options.max_multisets)
    field = trusted.weights_field * multisets.weights_field(weights, candidates)
    mixture = multisets.MixtureModel(profiles, rna, table, temper=trusted.temper)
    exposure = totals * weights.sum(axis=1)
    cache = multisets.cache_multisets(counts, exposure, n_cells, candidates, mixture, field=field)
    return _Fitted(weights, rna, cache, about)


def _joined(caches: list[multisets.MultisetCache]) -> multisets.MultisetCache:
    slots = max(cache.candidates.types.shape[1] for cache in caches)
    types = [
        np.pad(cache.candidates.types, ((0, 0), (0, slots - cache.candidates.types.shape[1])), constant_values=-1)
        for cache in caches
    ]
    sizes = np.concatenate([np.diff(cache.start) for cache in caches])
    candidates = multisets.Candidates(
        np.concatenate(types), np.concatenate([cache.candidates.size for cache in caches])
    )
    return multisets.MultisetCache(
        candidates,
        np.concatenate([cache.n_cells for cache in caches]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([cache.energy for cache in caches]),
    )


def _in_order(cache: multisets.MultisetCache, spots: NDArray[np.int64]) -> multisets.MultisetCache:
    parts = [cache.energy[cache.start[spot] : cache.start[spot + 1]] for spot in spots]
    return multisets.MultisetCache(
        multisets.Candidates(cache.candidates.types[spots], cache.candidates.size[spots]),
        cache.n_cells[spots],
        np.concatenate([[0], np.cumsum([len(part) for part in parts])]),
        np.concatenate(parts),
    )


def _sweep(
    bench: Bench,
    cache: multisets.MultisetCache,
    weights: NDArray[np.float64],
    options: IdentifyOptions,
    *,
    seed: int,
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.float64]]:
    """Return labels by kind and the expected shares of the types."""
    spot = bench["cell_spot"]
    points = np.column_stack([bench["cell_z"], bench["cell_xy"][:, 1], bench["cell_xy"][:, 0]]).astype(float)
    graph = radius_graph(points, mean_degree=options.n_neighbors)
    spots = quotient_graph(graph, spot, n_groups=len(cache.n_cells))
    keys = np.concatenate(
        [
            spot_keys(f"s{number}", [f"spot{row}" for row in np.flatnonzero(bench["spot_sec"] == number)])
            for number in np.unique(bench["spot_sec"])
        ]
    )
    colours = greedy_colouring(spots, keys)
    closure = sweep_closure(spots, colours, np.arange(len(cache.n_cells)))
    order = potts.updated_spots(closure, colours)
    start = np.concatenate([[0], np.cumsum(cache.n_cells)]).astype(np.int64)
    block = potts.build_block(closure, order, _in_order(cache, order), graph=graph, cell_start=start, keys=keys)
    prior = Prior(potts.pair_energy(options.smoothness, graph.mean_degree), key_of("gibbs", seed) & 0xFFFFFFFF)
    candidates = cache.candidates.types[spot].astype(np.int16)
    best = candidates[np.arange(len(spot)), multisets.first_labels(weights, cache)]
    for _ in range(options.max_sweeps):
        swept = potts.descend_block(block, best, prior)
        best[swept.changed] = swept.labels
        if len(swept.changed) == 0:
            break

    def run(calls: list[dict[str, Any]]) -> list[Any]:
        swept = [potts.sample_block(block, call["state"], prior, sweep=call["sweep"]) for call in calls]
        return [
            (one.changed, one.labels, one.shares if call["kept"] else None)
            for one, call in zip(swept, calls, strict=True)
        ]

    sums = np.asarray(candidates == best[:, None], np.uint32)
    if options.gibbs_sweeps:
        cells = [(block.cells, block.cells)]
        kept = {"burn_in": options.gibbs_burn_in, "kept": options.gibbs_sweeps}
        *_, samples = sample_marginals(run, cells, Samples.begin(best, n_slots=candidates.shape[1]), **kept)
        sums = samples.sums
    found = labelling.label_cells(sums, candidates, start, n_types=weights.shape[1])
    labels = {"map": best, "positional": found.positional, "composition": found.composition}
    return labels, found.proportions
