"""Drawing that every picture shares: map axes in µm with y down, scale bars, legends, PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.report.palette import OTHER, OTHER_COLOUR, Style, with_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Extent = tuple[float, float, float, float]

DPI = 130
STYLE: Any = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def figure(rows: int, columns: int, *, size: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure without any window system and its axes, left to right, top to bottom."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn, list(drawn.subplots(rows, columns, squeeze=False).ravel())


def to_png(drawn: Figure) -> bytes:
    """Return the figure as PNG bytes, the same for the same drawing."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawn.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def extent_of(points_um: Array, margin_um: float) -> Extent:
    """Return (top, bottom, left, right) in µm around (points, 2) (y, x) positions."""
    if len(points_um) == 0:
        return (0.0, 1.0, 0.0, 1.0)
    low, high = points_um.min(axis=0) - margin_um, points_um.max(axis=0) + margin_um
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def map_size(extent: Extent, *, columns: int = 1, width: float = 9.4, extra: float = 0.0) -> tuple[float, float]:
    """Return a figure size, inches, for ``columns`` maps of this extent beside each other; ``extra`` for legends."""
    top, bottom, left, right = extent
    shape = (bottom - top) / max(right - left, 1e-9)
    one = (width - extra) / columns
    return width, float(np.clip(one * shape + 0.45, 2.4, 9.0))


def map_axes(axes: Axes, extent: Extent, *, title: str = "") -> None:
    """Set up a map: equal scale, y down as in the image, a scale bar in µm instead of ticks."""
    top, bottom, left, right = extent
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, loc="left")
    _scale_bar(axes, extent)


def _scale_bar(axes: Axes, extent: Extent) -> None:
    """Draw a bar of a round length, near a fifth of the width, below the map."""
    from matplotlib.lines import Line2D

    width = extent[3] - extent[2]
    length = round_length(width / 5)
    share = length / max(width, 1e-9)
    bar = Line2D([0, share], [-0.025, -0.025], color="black", lw=2.2, transform=axes.transAxes, clip_on=False)
    bar.set_solid_capstyle("butt")
    axes.add_line(bar)
    text = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    axes.text(share + 0.015, -0.025, text, transform=axes.transAxes, ha="left", va="center", fontsize=8)


def round_length(length: float) -> float:
    """Return the largest of 1, 2, 5 × 10ⁿ that is not above the length."""
    power = 10.0 ** np.floor(np.log10(max(length, 1e-9)))
    return float(next(step for step in (5 * power, 2 * power, power) if step <= length * (1 + 1e-9)))


def point_area(axes: Axes, extent: Extent, diameter_um: float, *, smallest: float = 1.3) -> float:
    """Return the scatter size, points², of a marker of this diameter on the map; never below ``smallest`` points."""
    drawn = axes.figure
    assert drawn is not None
    box = axes.get_position()
    inches = min(
        box.width * drawn.get_figure(root=True).get_figwidth() / max(extent[3] - extent[2], 1e-9),
        box.height * drawn.get_figure(root=True).get_figheight() / max(extent[1] - extent[0], 1e-9),
    )
    return float(max(diameter_um * inches * 72, smallest) ** 2)


def scatter_types(
    axes: Axes,
    positions_um: Array,
    types: Sequence[str],
    *,
    styles: Mapping[str, Style],
    area: float,
    edge: float = 0.0,
) -> None:
    """Draw cells by type, with a white ``edge``; rare types last, so that they are not hidden under frequent ones."""
    names = np.asarray(types, dtype=str)
    for name in [OTHER, *styles]:
        chosen = names == name
        if name == OTHER or not chosen.any():
            continue
        style = styles[name]
        axes.scatter(
            positions_um[chosen, 1],
            positions_um[chosen, 0],
            s=area * (1.0 if style.marker == "o" else 1.25),
            c=style.colour,
            marker=style.marker,
            linewidths=edge,
            edgecolors="white" if edge else "none",
            zorder=4 if edge else 1,
            rasterized=True,
        )


def type_legend(drawn: Figure, styles: Mapping[str, Style], present: Sequence[str]) -> None:
    """Draw the legend of the types present to the right of the figure."""
    from matplotlib.lines import Line2D

    shown = [name for name in with_legend(styles) if name in set(present)]
    handles: list[Any] = [
        Line2D([], [], ls="", marker=styles[n].marker, ms=6, mew=0, color=styles[n].colour, label=n) for n in shown
    ]
    if set(present) - set(shown):
        handles.append(Line2D([], [], ls="", marker="o", ms=6, mew=0, color=OTHER_COLOUR, label=OTHER))
    columns = 1 if len(handles) <= 24 else 2
    drawn.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5, ncols=columns)
