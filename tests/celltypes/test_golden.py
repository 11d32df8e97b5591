"""Numbers of R spacexr 2.2.1: its vignette (full mode) and 300 hippocampus beads (scores of one and two types)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from spatialscope_dist.celltypes.likelihood import likelihood_table
from spatialscope_dist.celltypes.overdispersion import estimate_overdispersion
from spatialscope_dist.celltypes.platform_effect import platform_effect
from spatialscope_dist.celltypes.rctd import MAX_COUNT, fit_weights_as_rctd
from spatialscope_dist.celltypes.signatures import gene_lists, type_signatures
from spatialscope_dist.celltypes.weights import fit_weights


@pytest.fixture(scope="module")
def vignette(data: Path) -> dict[str, Any]:
    """Slide-seq cerebellum, 19 types: counts, totals and profiles from raw input, and R's weights."""
    import anndata

    reference = anndata.read_h5ad(data / "reference/ref_cerebellum_snrna_vignette.h5ad")
    beads = anndata.read_h5ad(data / "spatial/slideseq_cerebellum_vignette.h5ad")
    with (data / "golden/vignette/r_weights.csv").open() as handle:
        golden = {row[0]: np.array(row[1:], float) for row in list(csv.reader(handle))[1:]}
    types = sorted(set(reference.obs["cell_type"].astype(str)), key=str.lower)  # R's factor order
    labels = np.array([types.index(name) for name in reference.obs["cell_type"].astype(str)])
    signatures = type_signatures([sp.csr_matrix(reference.X)], labels, len(types))
    genes = [gene for gene in beads.var_names if gene in set(reference.var_names)]
    profiles = signatures.profiles[:, reference.var_names.get_indexer(genes)]
    all_counts = sp.csr_matrix(beads.X).toarray().astype(np.int64)
    kept = all_counts.sum(1) >= 100  # RCTD's UMI_min
    totals = all_counts[kept].sum(1)
    counts = all_counts[kept][:, beads.var_names.get_indexer(genes)]
    lists = gene_lists(profiles, genes, counts.sum(0))
    effect = platform_effect(counts.sum(0), int(totals.sum()), profiles, lists.platform).effect
    expected = np.array([golden[name] for name in beads.obs_names[kept]])
    return {
        "spots": (counts[:, lists.regression], totals, (profiles * effect)[:, lists.regression]),
        "weights": expected,
    }


def _deep(spots: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    counts, totals, profiles = spots
    return counts[totals >= 300], totals[totals >= 300], profiles  # RCTD's UMI_min_sigma


def test_rctd_compat__vignette_of_r_spacexr(vignette: dict[str, Any]):
    overdispersion = estimate_overdispersion(*_deep(vignette["spots"]), rctd_compat=True)
    found = fit_weights_as_rctd(*vignette["spots"], likelihood_table(overdispersion, max_count=MAX_COUNT))
    difference = np.abs(found.weights - vignette["weights"])
    assert found.converged.all()
    assert np.median(difference) < 1e-6
    assert difference.max() < 1e-3


def test_fit_weights__vignette_of_r_spacexr(vignette: dict[str, Any]):
    counts, totals, profiles = vignette["spots"]
    overdispersion = estimate_overdispersion(*_deep(vignette["spots"]), max_count=int(counts.max()))
    table = likelihood_table(overdispersion, max_count=int(counts.max()))
    found = fit_weights(counts, totals, profiles, table)
    difference = np.abs(found.weights - vignette["weights"])
    assert np.median(difference) < 1e-3
    assert difference.max() < 4e-3  # RCTD stops this far from the optimum
    assert np.corrcoef(found.weights.ravel(), vignette["weights"].ravel())[0, 1] > 0.999


def test_rctd_compat__scores_of_hippocampus_beads(data: Path):
    with np.load(data / "golden/hippocampus_pixels/inputs.npz", allow_pickle=False) as stored:
        inputs = {name: stored[name] for name in stored.files}
    with (data / "golden/hippocampus_pixels/r_results.csv").open() as handle:
        rows = {row["barcode"]: row for row in csv.DictReader(handle)}
    profiles, types = inputs["profiles"].T, list(inputs["cell_types"])
    table = likelihood_table(float(inputs["sigma"]), max_count=MAX_COUNT)
    misses: dict[str, list[float]] = {"min_score": [], "singlet_score": []}
    for bead, barcode in enumerate(inputs["barcodes"]):
        row = rows[str(barcode)]
        if row["spot_class"] == "reject":  # its singlet score is of another type
            continue
        chosen = [types.index(row["first_type"]), types.index(row["second_type"])]
        for score, members in (("min_score", chosen), ("singlet_score", chosen[:1])):
            one = slice(bead, bead + 1)
            found = fit_weights_as_rctd(inputs["counts"][one], inputs["nUMI"][one], profiles[members], table)
            misses[score].append(abs(-found.log_likelihoods[0] - float(row[score])))
    # Of about 2,000 nats; R's own table is interpolated between 2,536 rates.
    assert len(misses["min_score"]) == 277
    for miss in misses.values():
        assert np.median(miss) < 0.1
        assert max(miss) < 1.5
