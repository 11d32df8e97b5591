"""The model of a section: signatures, overdispersion and table, learnt from a sample of its spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.celltypes.adaptation import SpotSample, adapt_signatures, held_out_gain, is_worth_adapting
from spatialscope_dist.celltypes.likelihood import Density, LikelihoodTable, likelihood_table
from spatialscope_dist.celltypes.overdispersion import estimate_overdispersion
from spatialscope_dist.celltypes.platform_match import PlatformMatch

Adapt = Literal["auto", "off"] | float


@dataclass(frozen=True)
class SectionModel:
    """What is learnt of a section before its spots are fitted.

    Attributes
    ----------
    profiles : (types, genes), signatures with the platform effect in them, adapted or not
    table : likelihood table at the section's overdispersion
    stiffness : κ of the adaptation; inf: not adapted
    gain, gain_error : of held-out log likelihood per spot by adaptation; None when not asked
    """

    profiles: NDArray[np.float64]
    table: LikelihoodTable
    stiffness: float
    gain: float | None = None
    gain_error: float | None = None


def fit_section_model(
    sample: SpotSample,
    profiles: NDArray[np.float64],
    match: PlatformMatch,
    *,
    adapt: Adapt,
    kind: Density,
    max_count: int,
    rctd_compat: bool = False,
) -> SectionModel:
    """Return signatures and overdispersion of a section.

    Parameters
    ----------
    sample : some spots of the section
    profiles : (types, genes), shrunk signatures with the platform effect in them
    match : how alike reference and section are
    adapt : 'off'; κ; or 'auto': κ of `match`, when held-out spots are better explained with it
    kind, max_count : of the likelihood tables
    rctd_compat : σ the way RCTD finds it
    """

    def table_for(signatures: NDArray[np.float64]) -> LikelihoodTable:
        found = estimate_overdispersion(
            sample.counts, sample.totals, signatures, kind=kind, max_count=max_count, rctd_compat=rctd_compat
        )
        return likelihood_table(found, kind=kind, max_count=max_count)

    table = table_for(profiles)
    stiffness = _asked(adapt, match)
    if not np.isfinite(stiffness):
        return SectionModel(profiles, table, stiffness)
    tested: tuple[float, float] | tuple[None, None] = (None, None)
    if adapt == "auto":
        gain, error = tested = held_out_gain(sample, profiles, table, stiffness=stiffness)
        if not is_worth_adapting(gain, error):
            return SectionModel(profiles, table, float("inf"), gain, error)
    adapted = adapt_signatures(sample, profiles, table, stiffness=stiffness)
    return SectionModel(adapted, table_for(adapted), stiffness, *tested)


def _asked(adapt: Adapt, match: PlatformMatch) -> float:
    if isinstance(adapt, str):
        return match.stiffness if adapt == "auto" else float("inf")
    return float(adapt)
