"""Gene names: symbols or identifiers, whichever reference and sections share."""

from __future__ import annotations

from spatialscope_dist.readers.naming import choose_naming, genes_under
from spatialscope_dist.readers.table import make_unique

SYMBOLS, IDS = ["GAPDH", "ACTB", "TP53"], ["ENSG1", "ENSG2", "ENSG3"]
BOTH = {"index": SYMBOLS, "gene_ids": IDS}


def test_choose_naming__own_names_when_they_agree() -> None:
    chosen = choose_naming(BOTH, {"A": BOTH, "B": {"index": SYMBOLS}})
    assert (chosen.reference, chosen.sections) == ("index", {"A": "index", "B": "index"})


def test_choose_naming__section_follows_reference() -> None:
    assert choose_naming({"index": IDS}, {"A": BOTH}).sections == {"A": "gene_ids"}


def test_choose_naming__reference_follows_sections() -> None:
    chosen = choose_naming(BOTH, {"A": {"index": IDS}, "B": BOTH})
    assert (chosen.reference, chosen.sections) == ("gene_ids", {"A": "index", "B": "gene_ids"})


def test_choose_naming__nothing_shared_keeps_own_names() -> None:
    chosen = choose_naming({"index": ["x"]}, {"A": BOTH})
    assert (chosen.reference, chosen.sections) == ("index", {"A": "index"})


def test_make_unique__as_anndata() -> None:
    import warnings

    import anndata.utils
    import pandas as pd

    names = ("A", "A", "B", "A-1", "A", "B")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = anndata.utils.make_index_unique(pd.Index(names))
    assert list(make_unique(names)) == list(expected)


def test_genes_under__other_naming_is_made_unique() -> None:
    assert genes_under({"index": IDS, "gene_name": ["A", "A", "B"]}, "gene_name") == ("A", "A-1", "B")
