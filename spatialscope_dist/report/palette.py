"""Colours, markers and hatches of cell types: told apart by people with any colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Okabe & Ito 2008, with two of Tol's dark tones for yellow and black: small points show on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#332288", "#882255")
MARKERS = ("o", "^", "s")
HATCHES = ("", "////", "....")
#: Towards which grey level, and how far, a colour goes when it returns.
MIXTURES = ((0, 0.0), (255, 0.5), (0, 0.45))
OTHER = "other types"
OTHER_COLOUR = "#B0B0B0"
MAX_TYPES = len(COLOURS) * len(MARKERS)

#: Perceptually uniform and safe for all colour vision.
SEQUENTIAL = "viridis"


@dataclass(frozen=True)
class Style:
    """How one type is drawn."""

    colour: str
    marker: str
    hatch: str


def choose_styles(type_counts: Mapping[str, int], order: Sequence[str]) -> dict[str, Style]:
    """Return a style for every type, the same in every picture of a study.

    The most frequent types get the plain colours; from the ninth on a colour returns as a tint, from the seventeenth
    on as a shade, each with another marker and hatch; types beyond the twenty-fourth share grey.

    Parameters
    ----------
    type_counts
        Cells of each type, over all sections.
    order
        All type names; breaks ties.
    """
    ranked = sorted(order, key=lambda name: (-type_counts.get(name, 0), order.index(name)))
    styles: dict[str, Style] = {}
    for rank, name in enumerate(ranked):
        turn, colour = divmod(rank, len(COLOURS))
        if turn < len(MARKERS):
            styles[name] = Style(_mix(COLOURS[colour], *MIXTURES[turn]), MARKERS[turn], HATCHES[turn])
        else:
            styles[name] = Style(OTHER_COLOUR, "o", "")
    return styles


def _mix(colour: str, level: int, amount: float) -> str:
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round((1 - amount) * part + amount * level):02X}" for part in parts)


def with_legend(styles: Mapping[str, Style]) -> list[str]:
    """Return the types that have a style of their own, in order of rank; the others are drawn as 'other types'."""
    return [name for name, style in styles.items() if style.colour != OTHER_COLOUR]
