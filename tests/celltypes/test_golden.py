"""Weights of R spacexr 2.2.1 on its own vignette (Slide-seq cerebellum, 19 types, full mode)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from spatialscope_dist.celltypes.likelihood import likelihood_table
from spatialscope_dist.celltypes.overdispersion import estimate_overdispersion
from spatialscope_dist.celltypes.platform_effect import platform_effect
from spatialscope_dist.celltypes.signatures import gene_lists, type_signatures
from spatialscope_dist.celltypes.weights import fit_weights


def test_fit_weights__agrees_with_r_spacexr(data: Path):
    import anndata

    reference = anndata.read_h5ad(data / "reference/ref_cerebellum_snrna_vignette.h5ad")
    beads = anndata.read_h5ad(data / "spatial/slideseq_cerebellum_vignette.h5ad")
    with (data / "golden/vignette/r_weights.csv").open() as handle:
        rows = list(csv.reader(handle))[1:]
    golden = {row[0]: np.array(row[1:], float) for row in rows}
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
    chosen = lists.regression
    scaled, counts = (profiles * effect)[:, chosen], counts[:, chosen]
    overdispersion = estimate_overdispersion(counts, totals, scaled, max_count=int(counts.max()))
    table = likelihood_table(overdispersion, max_count=int(counts.max()))
    found = fit_weights(counts, totals, scaled, table)

    expected = np.array([golden[name] for name in beads.obs_names[kept]])
    assert found.converged.mean() > 0.9
    assert np.abs(found.weights - expected).max() < 0.03
    assert np.median(np.abs(found.weights - expected)) < 1e-3
    assert np.corrcoef(found.weights.ravel(), expected.ravel())[0, 1] > 0.999
