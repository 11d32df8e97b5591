"""Gene panels: ordered, unique gene names and where each lies in another list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def positions_in(genes: Sequence[str], panel: Sequence[str]) -> NDArray[np.int64]:
    """Return for each panel gene its position in `genes`, (panel genes,), -1 where absent.

    Examples
    --------
    >>> positions_in(["A", "B", "C"], ["C", "X"]).tolist()
    [2, -1]
    """
    place = {gene: index for index, gene in enumerate(genes)}
    return np.array([place.get(gene, -1) for gene in panel], dtype=np.int64)


def duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    seen: set[str] = set()
    twice: set[str] = set()
    for name in names:
        (twice if name in seen else seen).add(name)
    return sorted(twice)


def looks_like_ensembl(genes: Sequence[str]) -> bool:
    """Return whether most names are Ensembl gene identifiers (ENSG…, ENSMUSG…)."""
    return bool(genes) and sum(gene.startswith("ENS") for gene in genes) > len(genes) / 2


def same_but_for_case(genes: Sequence[str], panel: Sequence[str]) -> int:
    """Return how many panel genes match only when letter case is ignored (human against mouse)."""
    exact = set(genes)
    lowered = {gene.lower() for gene in genes}
    return sum(gene not in exact and gene.lower() in lowered for gene in panel)
