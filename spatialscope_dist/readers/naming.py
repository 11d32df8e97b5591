"""Which gene names a study goes by: symbols or identifiers, whichever reference and sections share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spatialscope_dist.readers.table import INDEX, make_unique

Namings = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Naming:
    """The naming chosen for the reference and for each section."""

    reference: str
    sections: dict[str, str]


def choose_naming(reference: Namings, sections: Mapping[str, Namings]) -> Naming:
    """Return the namings under which reference and sections share most genes.

    The reference's own names are kept unless another of its namings shares more than twice as many
    genes with the section it fits least; each section then takes the naming that shares most with
    the reference, its own names at a tie.

    Examples
    --------
    >>> spots = {"index": ["GAPDH", "ACTB"], "gene_ids": ["ENSG1", "ENSG2"]}
    >>> choose_naming({"index": ["ENSG2", "ENSG3"]}, {"B4": spots}).sections
    {'B4': 'gene_ids'}
    """
    best, best_shared = INDEX, _least_shared(reference[INDEX], sections)
    for name, genes in reference.items():
        shared = _least_shared(genes, sections)
        if shared > 2 * best_shared:
            best, best_shared = name, shared
    known = set(reference[best])
    return Naming(best, {section: _closest(known, namings) for section, namings in sections.items()})


def genes_under(namings: Namings, naming: str) -> tuple[str, ...]:
    """Return the gene names under a naming, unique unless they are the file's own."""
    names = tuple(namings[naming])
    return names if naming == INDEX else make_unique(names)


def _least_shared(genes: Sequence[str], sections: Mapping[str, Namings]) -> int:
    known = set(genes)
    shared = (max(len(known.intersection(names)) for names in namings.values()) for namings in sections.values())
    return min(shared, default=0)


def _closest(genes: set[str], namings: Namings) -> str:
    return max(namings, key=lambda naming: (len(genes.intersection(namings[naming])), naming == INDEX))
