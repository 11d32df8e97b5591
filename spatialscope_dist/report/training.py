"""Training curves of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spatialscope_dist.report import wording
from spatialscope_dist.report.drawing import figure, to_png
from spatialscope_dist.report.page import Picture

if TYPE_CHECKING:
    import pandas as pd

INK, SECOND = "#0072B2", "#D55E00"


def draw_training(curves: Mapping[str, pd.DataFrame]) -> Picture:
    """Return the loss of every network over its steps, on training and on held-out cells."""
    with figure(1, len(curves), size=(4.7 * len(curves), 3.0)) as (drawn, axes):
        for panel, (name, curve) in zip(axes, curves.items(), strict=True):
            panel.plot(curve["step"], curve["loss"], color=INK, lw=1.0, alpha=0.8, label="training cells")
            if "held_out" in curve:
                held = curve.dropna(subset=["held_out"])
                panel.plot(held["step"], held["held_out"], color=SECOND, lw=1.6, label="held-out cells")
                best = held.nsmallest(1, "held_out")
                panel.plot(best["step"], best["held_out"], color=SECOND, marker="*", ms=12, ls="", label="used")
            panel.set_title(wording.NETWORKS.get(name, name), loc="left")
            panel.set_xlabel("optimiser step")
            panel.set_ylabel(wording.LOSSES.get(name, "loss"))
        axes[0].legend(frameon=False)
        caption = "Loss of each network while it was trained: lower is better, but not to be compared between networks."
        return Picture(to_png(drawn), caption, "training curves")
