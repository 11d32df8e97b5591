"""Platform effect: what one technology sees of a gene compared with another (RCTD)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.quadratic import damped_newton_steps

_MAX_ITERATIONS = 100
_MIN_CHANGE = 1e-4
_DAMPING = 0.3


@dataclass(frozen=True)
class PlatformEffect:
    """Composition of the pooled section and the effect on every gene.

    Attributes
    ----------
    proportions : (types,), π̄, sums to one
    effect : (genes,), exp(γ); 1 where it cannot be estimated
    n_replaced : genes whose effect was 0, infinite or undefined and became 1
    """

    proportions: NDArray[np.float64]
    effect: NDArray[np.float64]
    n_replaced: int


class SectionTotals(NamedTuple):
    """Counts of one section over all its spots.

    Attributes
    ----------
    positions : (measured,), the measured genes' places among the reference's genes
    gene_totals : (measured,), b_g, raw counts
    total : N, raw counts over all genes of the section
    """

    positions: NDArray[np.int64]
    gene_totals: NDArray[np.int64]
    total: int


def pool_sections(sections: Iterable[SectionTotals], n_genes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return b_g and N_g of sections together, each (genes,): a gene's sections are those that measure it.

    Whole numbers, added section by section: one platform effect for sections of one chemistry.
    """
    gene_totals, totals = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64)
    for section in sections:
        gene_totals[section.positions] += section.gene_totals
        totals[section.positions] += section.total
    return gene_totals, totals


def bulk_proportions(
    gene_totals: NDArray[np.int64],
    total: int | NDArray[np.int64],
    profiles: NDArray[np.float64],
    *,
    min_total: int = 10,
) -> NDArray[np.float64]:
    """Return the proportions π̄ of the types in all spots pooled, (types,), summing to one.

    Minimises Σ_g [ln(N Σ_k π_k μ_kg) − ln b_g]² over π ≥ 0 and genes with b_g ≥ `min_total`
    (RCTD, Cable et al. 2022).

    Parameters
    ----------
    gene_totals : (genes,), b_g, raw counts over all spots, platform-effect genes
    total : N, raw counts of all spots over all genes; or N_g, (genes,), of the sections that measure the gene
    profiles : (types, genes), signatures
    """
    n_types = len(profiles)
    used = (gene_totals >= min_total) & (profiles.sum(axis=0) > 0)
    pi = np.full(n_types, 1.0 / n_types)
    if not used.any():
        return pi
    depth = np.broadcast_to(np.asarray(total, np.float64), used.shape)[used]
    expected_one, log_found = profiles[:, used] * depth, np.log(gene_totals[used])
    floor = np.maximum(1e-4, depth * 1e-7)
    for _ in range(_MAX_ITERATIONS):
        expected = np.maximum(pi @ expected_one, floor)
        miss = np.log(expected) - log_found
        gradient = expected_one @ (2.0 * miss / expected)
        hessian = (expected_one * (2.0 * (1.0 - miss) / expected**2)) @ expected_one.T
        new = damped_newton_steps(gradient[None], (hessian + hessian.T)[None] / 2.0, pi[None], damping=_DAMPING)[0]
        change = float(np.abs(new - pi).sum())
        pi = new
        if change <= _MIN_CHANGE:
            break
    total_pi = float(pi.sum())
    return pi / total_pi if total_pi > 0 else np.full(n_types, 1.0 / n_types)


def platform_effect(
    gene_totals: NDArray[np.int64],
    total: int | NDArray[np.int64],
    profiles: NDArray[np.float64],
    fitted_on: NDArray[np.int64],
) -> PlatformEffect:
    """Return exp(γ_g) = (b_g / N) / Σ_k π̄_k μ_kg of every shared gene (RCTD, Cable et al. 2022).

    Parameters
    ----------
    gene_totals : (genes,), raw counts over all spots, all shared genes
    total : N, raw counts of all spots over all genes; or N_g, (genes,), as from `pool_sections`
    profiles : (types, genes), signatures over the same genes
    fitted_on : indices of the genes the composition is fitted on (RCTD's platform list)
    """
    chosen = np.asarray(fitted_on, np.int64)
    depth = np.broadcast_to(np.asarray(total, np.int64), gene_totals.shape)
    proportions = bulk_proportions(gene_totals[chosen], depth[chosen], profiles[:, chosen])
    expected = proportions @ profiles
    usable = (expected > 0) & (gene_totals > 0)
    effect = np.where(usable, gene_totals / np.maximum(depth, 1) / np.where(expected > 0, expected, 1.0), 1.0)
    return PlatformEffect(proportions, effect, int((~usable).sum()))
