"""How alike the technologies of reference and section are, and what of the reference may be trusted.

The platform effects γ_g of one technology with itself scatter little; of two technologies they scatter
by a factor of two and more. Their spread decides what holds between the two: RNA amounts of cells are
comparable within a technology only, and the effect differs between types (second order) where it
differs much between genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Platform = Literal["same", "different", "auto"]

SAME_SPREAD = float(np.log(2.0))  # measured: 0.10-0.52 within a technology, 1.09 between MERFISH and 10x
_MIN_TOTAL = 10
_LARGEST_STIFFNESS = 200.0  # deviations below 7 % are not worth learning


@dataclass(frozen=True)
class PlatformMatch:
    """What is assumed about reference and section.

    Attributes
    ----------
    spread : standard deviation of γ over genes
    same : whether both are of one technology
    """

    spread: float
    same: bool

    @property
    def stiffness(self) -> float:
        """Return κ = 1/τ² of the prior of type-specific effects, τ = ½ spread²; inf: none expected.

        A small platform effect acts on all types alike; what acts on types differently is of second
        order in it.
        """
        stiffness = 4.0 / max(self.spread, 1e-3) ** 4
        return stiffness if stiffness <= _LARGEST_STIFFNESS else float("inf")


def match_platforms(
    effect: NDArray[np.float64], gene_totals: NDArray[np.int64], *, platform: Platform
) -> PlatformMatch:
    """Return the spread of the platform effect and whether the technologies are the same.

    Parameters
    ----------
    effect : (genes,), exp(γ) of the platform-effect genes
    gene_totals : (genes,), their raw counts over all spots; genes below 10 are left out
    platform : what the study says; 'auto': same when γ spreads by less than a factor of two
    """
    used = (gene_totals >= _MIN_TOTAL) & (effect > 0)
    spread = float(np.log(effect[used]).std()) if used.any() else 0.0
    return PlatformMatch(spread, spread < SAME_SPREAD if platform == "auto" else platform == "same")


@dataclass(frozen=True)
class Trust:
    """What is taken from a reference.

    Attributes
    ----------
    rna_per_cell : whether its RNA amounts of the types hold in the section
    temper : power of the likelihood of whole cells
    weights_field : multiple of −log(w + 0.02) that speaks for a label beside the likelihood
    """

    rna_per_cell: bool
    temper: float
    weights_field: float


def trust(*, same: bool) -> Trust:
    """Return what is taken from a reference of the same technology, or of another one.

    With another technology, signatures are wrong in places, and a likelihood of whole cells takes
    every wrong gene at full weight; RCTD's weights, free to be fractions, suffer less. Measured on
    MERFISH typed with 10x: temper 0.6 with the field lowers err .485 → .462, cerr .199 → .190;
    with references of the same technology it raises cerr by .01 to .03.
    """
    if same:
        return Trust(rna_per_cell=True, temper=1.0, weights_field=0.0)
    return Trust(rna_per_cell=False, temper=0.6, weights_field=1.0)
