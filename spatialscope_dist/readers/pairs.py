"""Ligand-receptor pairs: a text table with a ligand and a receptor column."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import local_copy


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return (ligand, receptor) pairs in the order of the file, each once.

    Columns are recognised by 'ligand' and 'receptor' in their names; commas, tabs and semicolons
    separate them.

    Raises
    ------
    BadInput
        When the file cannot be read, lacks a column or holds no pair.
    """
    where = f"interact.pairs: {path.name}"
    expected = "a CSV with a ligand and a receptor column"
    if not path.is_file():
        raise BadInput(Problem(where, f"no file {path}", expected, "Correct the path."))
    try:
        path = local_copy(path)
        with path.open(encoding="utf-8") as handle:
            first = handle.readline()
        separator = max(",\t;", key=first.count)
        table = pd.read_csv(path, sep=separator, dtype=str, skipinitialspace=True)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        found = f"a file that cannot be read ({str(error).splitlines()[0]})"
        raise BadInput(Problem(where, found, expected, "Write it as UTF-8 text.")) from error
    columns = [_column(table, word) for word in ("ligand", "receptor")]
    if columns[0] is None or columns[1] is None:
        found = f"the columns {', '.join(map(str, table.columns)) or 'none'}"
        raise BadInput(Problem(where, found, expected, "Name the columns ligand and receptor."))
    pairs = table[columns].dropna()
    if pairs.empty:
        raise BadInput(Problem(where, "no pair", expected, "Add pairs, or remove interact.pairs."))
    return list(dict.fromkeys(zip(pairs.iloc[:, 0].str.strip(), pairs.iloc[:, 1].str.strip(), strict=True)))


def _column(table: pd.DataFrame, word: str) -> str | None:
    matching = [str(name) for name in table.columns if word in str(name).lower()]
    exact = [name for name in matching if name.lower() == word]
    return next(iter(exact or matching), None)
