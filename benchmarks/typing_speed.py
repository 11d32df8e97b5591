"""CPU seconds of every step of typing, and spots per core-second, beside RCTD's own way to σ and weights.

    SPATIALSCOPE_DATA=… python -m benchmarks.typing_speed [--bench mpoa:section] [--spots 10000] [--repeats 3]

One thread, compiled kernels warm, counts in memory: the functions of `celltypes` as `identify` calls them, without
reading, writing and workers (`typing_scale` measures those). `--spots` lays copies of the section side by side.
The median of the repeats is kept; without arguments, both references of mpoa become results/typing_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks import typing_studies as studies
from spatialscope_dist.celltypes import adaptation, labelling, marginals, multisets, potts, rctd, signatures
from spatialscope_dist.celltypes.likelihood import LikelihoodTable, likelihood_table
from spatialscope_dist.celltypes.overdispersion import estimate_overdispersion, sample_spots
from spatialscope_dist.celltypes.platform_effect import platform_effect
from spatialscope_dist.celltypes.platform_match import PlatformMatch, match_platforms, trust
from spatialscope_dist.celltypes.section_model import fit_section_model
from spatialscope_dist.celltypes.spot_updates import Prior
from spatialscope_dist.celltypes.weights import fit_weights
from spatialscope_dist.geometry.blocks import sweep_closure
from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import quotient_graph, radius_graph
from spatialscope_dist.options import IdentifyOptions
from spatialscope_dist.randomness import spot_keys

NAMES = ("mpoa:section", "mpoa:scrna")
OPTIONS = IdentifyOptions()
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
T = TypeVar("T")


class Clock:
    """CPU seconds of this process by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, step: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return what the call returns; add its CPU seconds to the step."""
        start = time.process_time()
        result = call(*arguments, **options)
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - start
        return result


def repeat_section(bench: studies.Bench, n_spots: int) -> studies.Bench:
    """Return the section with copies of itself to its right, cut after `n_spots` spots, cells in spot order."""
    order = np.argsort(bench["cell_spot"], kind="stable")
    cells = {name: bench[name][order] for name in ("cell_spot", "cell_xy")}
    width = np.ptp(cells["cell_xy"][:, 0]) + float(bench["grid"])
    n_copies = -(-n_spots // len(bench["Y"]))
    copies = np.arange(n_copies)
    spot = (cells["cell_spot"][None] + copies[:, None] * len(bench["Y"])).ravel()
    shift = np.stack([copies * width, np.zeros(n_copies)], axis=1)
    kept = spot < n_spots
    return {
        **bench,
        "Y": np.tile(bench["Y"], (n_copies, 1))[:n_spots],
        "cell_spot": spot[kept],
        "cell_xy": (cells["cell_xy"][None] + shift[:, None]).reshape(-1, 2)[kept],
    }


class Section:
    """A section and its reference, reduced to the genes that tell types apart."""

    def __init__(self, bench: studies.Bench, reference: str, clock: Clock) -> None:
        self.bench = bench
        self.totals = bench["Y"].sum(axis=1).astype(np.int64)
        self.keys = spot_keys("speed", [str(row) for row in range(len(self.totals))])
        self.n_cells = np.bincount(bench["cell_spot"], minlength=len(self.totals)).astype(np.int64)
        known = {name: column for column, name in enumerate(bench[f"ref_{reference}_genes"])}
        columns = np.array([column for column, name in enumerate(bench["genes"]) if name in known])
        genes = bench["genes"][columns]
        learnt = signatures.type_signatures(
            [sp.csr_matrix(bench[f"ref_{reference}_X"])], bench[f"ref_{reference}_label"], len(bench["types"])
        )
        self.rna = learnt.umi / np.maximum(learnt.n_cells, 1)
        self.raw = learnt.profiles[:, [known[name] for name in genes]]
        self.umi, self.genes = learnt.umi, list(genes)
        self.counts = bench["Y"][:, columns].astype(np.int64)
        self.match = clock.time("platform effect", self._renormalise)
        self.max_count = int(self.counts.max())

    def _renormalise(self) -> PlatformMatch:
        profiles = signatures.shrink(self.raw, self.umi, shrinkage_umi=OPTIONS.shrinkage_umi)
        sums = self.counts.sum(axis=0)
        lists = signatures.gene_lists(profiles, self.genes, sums)
        effect = platform_effect(sums, int(self.totals.sum()), profiles, lists.platform).effect
        self.counts = np.ascontiguousarray(self.counts[:, lists.regression])
        self.profiles = np.ascontiguousarray((profiles * effect)[:, lists.regression])
        return match_platforms(effect[lists.platform], sums[lists.platform], platform="auto")

    def sample(self) -> adaptation.SpotSample:
        """Return the spots σ and signatures are learnt from."""
        chosen = sample_spots(self.keys, self.totals)
        return adaptation.SpotSample(self.counts[chosen], self.totals[chosen], self.keys[chosen])


def measure(bench: studies.Bench, reference: str) -> dict[str, Any]:
    """Return CPU seconds by step, spots per core-second, and the same of RCTD's own way."""
    clock = Clock()
    section = Section(bench, reference, clock)
    sample = section.sample()
    asked = (sample, section.profiles, section.match)
    fixed: dict[str, Any] = {"kind": OPTIONS.likelihood, "max_count": section.max_count}
    clock.time("σ", fit_section_model, *asked, adapt="off", **fixed)
    model = clock.time("σ and adaptation", fit_section_model, *asked, adapt=OPTIONS.adapt, **fixed)
    # Where nothing is adapted the model is the search for σ, and it was only timed twice.
    adapting = max(0.0, clock.seconds.pop("σ and adaptation") - clock.seconds["σ"])
    clock.seconds["adaptation and its guard"] = adapting
    weights = clock.time("weights", fit_weights, section.counts, section.totals, model.profiles, model.table).weights
    cells = _sweep(section, model.profiles, model.table, weights, clock)
    compat = _as_rctd(section, sample)
    ours = sum(clock.seconds[step] for step in ("σ", "weights"))
    total = sum(clock.seconds.values())
    return {
        "spots": len(section.counts),
        "genes": section.counts.shape[1],
        "types": len(section.profiles),
        "cells": cells,
        "overdispersion": model.table.overdispersion,
        "adapted": bool(np.isfinite(model.stiffness)),
        "cpu_seconds": {step: round(seconds, 4) for step, seconds in clock.seconds.items()},
        "cpu_seconds_together": round(total, 4),
        "spots_per_core_second": round(len(section.counts) / total),
        "spots_per_core_second_of_σ_and_weights": round(len(section.counts) / ours),
        "as_rctd": compat,
    }


def _sweep(
    section: Section,
    profiles: NDArray[np.float64],
    table: LikelihoodTable,
    weights: NDArray[np.float64],
    clock: Clock,
) -> int:
    """Time multisets, graph, sweeps and labels; return the number of cells."""
    n_cells, of_cell = section.n_cells, section.bench["cell_spot"]
    trusted = trust(same=section.match.same)
    rna = section.rna / section.rna.mean() if trusted.rna_per_cell else np.ones(len(profiles))
    candidates, cache = clock.time("multisets", _multisets, section, profiles, table, weights, rna)
    cell_start = np.concatenate([[0], np.cumsum(n_cells)]).astype(np.int64)
    block, mean_degree = clock.time("graph", _block, section, cache, cell_start)
    prior = Prior(potts.pair_energy(OPTIONS.smoothness, mean_degree), 0)
    types = candidates.types[of_cell].astype(np.int16)
    labels = types[np.arange(len(of_cell)), multisets.first_labels(weights, cache)]

    def descend() -> None:
        for _ in range(OPTIONS.max_sweeps):
            swept = potts.descend_block(block, labels, prior)
            labels[swept.changed] = swept.labels
            if len(swept.changed) == 0:
                break

    def sample(calls: list[dict[str, Any]]) -> list[Any]:
        swept = [potts.sample_block(block, call["state"], prior, sweep=call["sweep"]) for call in calls]
        return [(one.changed, one.labels, one.shares) for one in swept]

    clock.time("ICM", descend)
    kept: dict[str, Any] = {"burn_in": OPTIONS.gibbs_burn_in, "kept": OPTIONS.gibbs_sweeps}
    whole = [(block.cells, block.cells)]
    samples = marginals.Samples.begin(labels, n_slots=types.shape[1])
    clock.time("Gibbs", lambda: list(marginals.sample_marginals(sample, whole, samples, **kept)))
    clock.time("labels", labelling.label_cells, samples.sums, types, cell_start, n_types=len(profiles))
    return len(of_cell)


def _multisets(
    section: Section,
    profiles: NDArray[np.float64],
    table: LikelihoodTable,
    weights: NDArray[np.float64],
    rna: NDArray[np.float64],
) -> tuple[multisets.Candidates, multisets.MultisetCache]:
    trusted, n_cells = trust(same=section.match.same), section.n_cells
    candidates = multisets.choose_candidates(
        weights, n_cells, max_cells=int(n_cells.max()), max_multisets=OPTIONS.max_multisets
    )
    field = trusted.weights_field * multisets.weights_field(weights, candidates)
    model = multisets.MixtureModel(profiles, rna, table, temper=trusted.temper)
    exposure = section.totals * weights.sum(axis=1)
    return candidates, multisets.cache_multisets(section.counts, exposure, n_cells, candidates, model, field=field)


def _block(
    section: Section, cache: multisets.MultisetCache, cell_start: NDArray[np.int64]
) -> tuple[potts.Block, float]:
    """Return the whole section as one block, its spots in colour order, and the mean degree."""
    n_spots = len(section.counts)
    graph = radius_graph(section.bench["cell_xy"], mean_degree=OPTIONS.n_neighbors)
    spots = quotient_graph(graph, section.bench["cell_spot"], n_groups=n_spots)
    colours = greedy_colouring(spots, section.keys)
    closure = sweep_closure(spots, colours, np.arange(n_spots))
    order = potts.updated_spots(closure, colours)
    energies = [cache.energy[cache.start[spot] : cache.start[spot + 1]] for spot in order]
    inside = multisets.MultisetCache(
        multisets.Candidates(cache.candidates.types[order], cache.candidates.size[order]),
        cache.n_cells[order],
        np.concatenate([[0], np.cumsum([len(part) for part in energies])]).astype(np.int64),
        np.concatenate(energies),
    )
    block = potts.build_block(closure, order, inside, graph=graph, cell_start=cell_start, keys=section.keys)
    return block, graph.mean_degree


def _as_rctd(section: Section, sample: adaptation.SpotSample) -> dict[str, float]:
    """Return the cost of σ and weights as R spacexr finds them, with our kernels."""
    clock = Clock()
    spots = (section.counts, section.totals, section.profiles)
    found = clock.time("σ", estimate_overdispersion, sample.counts, sample.totals, section.profiles, rctd_compat=True)
    table = likelihood_table(found, max_count=rctd.MAX_COUNT)
    clock.time("weights", rctd.fit_weights_as_rctd, *spots, table)
    seconds = {step: round(value, 4) for step, value in clock.seconds.items()}
    together = sum(clock.seconds.values())
    return {**seconds, "overdispersion": found, "spots_per_core_second": round(len(section.counts) / together)}


def run(name: str, n_spots: int | None, repeats: int) -> dict[str, Any]:
    """Return the repeat of median cost of one benchmark and reference, and the peak memory of this process."""
    file, reference = name.split(":")
    bench = studies.load_bench(studies.data_folder() / "benchmarks" / f"{file}.npz")
    measure(repeat_section(bench, 200), reference)  # compiles
    section = repeat_section(bench, n_spots or len(bench["Y"]))
    results = sorted((measure(section, reference) for _ in range(repeats)), key=lambda one: one["cpu_seconds_together"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**results[len(results) // 2], "peak_rss_mib": round(peak / 1024)}


def main() -> None:
    """Measure one benchmark, or both references of mpoa."""
    parser = argparse.ArgumentParser("benchmarks.typing_speed")
    parser.add_argument("--bench", choices=(*NAMES, "mpfc1:section", "visp:paired"))
    parser.add_argument("--spots", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # NumPy asks once, when it is imported
        os.execve(sys.executable, sys.orig_argv, os.environ | ONE_THREAD)
    names = (chosen.bench,) if chosen.bench else NAMES
    results = {name: run(name, chosen.spots, chosen.repeats) for name in names}
    print(json.dumps(results, indent=1, ensure_ascii=False))
    if chosen.bench is None and chosen.spots is None:
        studies.save_result("typing_speed", "typing_speed", {"benchmarks": results})


if __name__ == "__main__":
    main()
