"""Pictures of cells placed beside cells of like expression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spatialscope_dist.report.drawing import figure, scatter_types, to_png, type_legend
from spatialscope_dist.report.page import Picture
from spatialscope_dist.report.palette import Style
from spatialscope_dist.report.views import EmbeddingView

REAL, GENERATED = "#6B7680", "#D55E00"


def draw_generated(view: EmbeddingView, styles: Mapping[str, Style]) -> Picture:
    """Return held-out and generated cells on one map, by kind and by type; `view.generated` says which is which."""
    assert view.generated is not None
    with figure(1, 2, size=(9.4, 3.9)) as (drawn, axes):
        for chosen, colour, text in ((~view.generated, REAL, "held-out"), (view.generated, GENERATED, "generated")):
            points = view.points[chosen]
            axes[0].scatter(points[:, 1], points[:, 0], s=5, c=colour, lw=0, alpha=0.7, label=text, rasterized=True)
        axes[0].legend(frameon=False, markerscale=2.5, loc="best", fontsize=8)
        scatter_types(axes[1], view.points, view.types, styles=styles, area=5)
        type_legend(drawn, styles, view.types)
        for panel, title in zip(axes, ("by origin", "by type"), strict=True):
            _bare(panel, view, title)
        caption = (
            f"{int((~view.generated).sum()):,} held-out reference cells and as many generated ones of the same types, "
            f"{_how(view)}. Where colours mix, generated cells look like real ones; an island of one colour is a state "
            "that is missing or made up."
        )
        return Picture(to_png(drawn), caption, "generated and held-out cells")


def draw_decomposed(view: EmbeddingView, styles: Mapping[str, Style]) -> Picture:
    """Return cells of the sections by their estimated expression, coloured by type."""
    with figure(1, 1, size=(6.6, 4.0)) as (drawn, axes):
        type_legend(drawn, styles, view.types)
        scatter_types(axes[0], view.points, view.types, styles=styles, area=6)
        _bare(axes[0], view, "")
        caption = (
            f"{len(view.points):,} cells of the sections by posterior mean expression, {_how(view)}. Estimates lean on "
            "the type given to a cell: that types lie apart does not show that they are right."
        )
        return Picture(to_png(drawn), caption, "decomposed cells by type")


def _how(view: EmbeddingView) -> str:
    return f"placed by {view.method} (log counts of equal total, 30 principal components)"


def _bare(panel, view: EmbeddingView, title: str) -> None:  # type: ignore[no-untyped-def]
    panel.set_title(title, loc="left")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_xlabel(f"{view.method} 1")
    panel.set_ylabel(f"{view.method} 2")
    spread = np.ptp(view.points, axis=0)
    panel.set_box_aspect(float(np.clip(spread[0] / max(spread[1], 1e-9), 0.7, 1.0)))
