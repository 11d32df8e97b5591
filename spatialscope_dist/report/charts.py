"""Charts: how types are shared out, how the optimisers went, how sure the results are, what the run cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.report.drawing import figure, to_png
from spatialscope_dist.report.page import Picture
from spatialscope_dist.report.palette import Style
from spatialscope_dist.report.views import SectionView, StageView

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
INK, SECOND = "#0072B2", "#D55E00"
GIB = 1 << 30


def draw_type_shares(sections: Sequence[SectionView], styles: Mapping[str, Style]) -> Picture:
    """Return one stacked bar per section: the share of every cell type."""
    with figure(1, 1, size=(9.4, 0.9 + 0.34 * len(sections) + 0.22 * (len(styles) // 4 + 1))) as (drawn, axes):
        panel, left = axes[0], np.zeros(len(sections))
        totals = np.array([max(sum(section.type_counts.values()), 1) for section in sections], dtype=np.float64)
        for name, style in styles.items():
            share = np.array([section.type_counts.get(name, 0) for section in sections]) / totals
            panel.barh(
                range(len(sections)),
                share,
                left=left,
                color=style.colour,
                hatch=style.hatch,
                edgecolor="white",
                lw=0.6,
                label=name,
            )
            left += share
        panel.set_yticks(range(len(sections)), [section.name for section in sections])
        panel.set_ylim(len(sections) - 0.4, -0.6)
        panel.set_xlim(0, 1)
        panel.set_xlabel("share of cells")
        drawn.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
        return Picture(to_png(drawn), "Share of every cell type among the cells of each section.", "cell type shares")


def draw_energy(sections: Sequence[SectionView]) -> Picture:
    """Return the energy of the labelling after every sweep, relative to the last."""
    from matplotlib.ticker import MaxNLocator

    with figure(1, 1, size=(5.6, 3.0)) as (drawn, axes):
        markers = ("o", "^", "s", "D", "v")
        for number, section in enumerate(sections):
            values = np.asarray(section.energy, dtype=np.float64)
            axes[0].plot(
                range(len(values)), values - values[-1], marker=markers[number % 5], ms=4, lw=1.4, label=section.name
            )
        axes[0].set_xlabel("sweep")
        axes[0].set_ylabel("energy above the last sweep (nats)")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(sections) > 1:
            axes[0].legend(frameon=False)
        caption = (
            "Energy of the cell type labels (negative log likelihood plus smoothness) after every sweep; sweep 0 is "
            "the start. It must never rise, and ends flat when the labels are stable."
        )
        return Picture(to_png(drawn), caption, "energy per sweep")


def draw_uncertainty(section: SectionView) -> Picture | None:
    """Return how sure types and expression are, None when nothing is known."""
    panels = [section.confidence is not None, section.uncertainty is not None, section.residuals is not None]
    if not any(panels):
        return None
    with figure(1, sum(panels), size=(3.2 * sum(panels), 2.8)) as (drawn, axes):
        waiting = iter(axes)
        if section.confidence is not None:
            _histogram(next(waiting), section.confidence, (0, 1), "probability of the given type", "cells")
        if section.uncertainty is not None:
            _spread(next(waiting), section.uncertainty.mean, section.uncertainty.sd)
        if section.residuals is not None:
            values = section.residuals[np.isfinite(section.residuals)]
            high = max(float(np.percentile(values, 99)) if len(values) else 1.0, 1e-6)
            _histogram(next(waiting), np.minimum(values, high), (0, high), "distance from measured counts", "spots")
        caption = (
            f"{section.name}: "
            + "; ".join(
                text
                for text, shown in zip(
                    (
                        "probability of each cell's type from the sampled labellings",
                        "posterior sd of expression against its mean (random entries of at least one count; "
                        "the line is Poisson noise)",
                        "how far the cells of a spot are from adding up to its counts, Σ |measured − predicted| / Σ "
                        "measured over genes (0 = exactly; where genes have few counts, noise alone gives 1 to 2)",
                    ),
                    panels,
                    strict=True,
                )
                if shown
            )
            + "."
        )
        return Picture(to_png(drawn), caption, f"uncertainty of {section.name}")


def _histogram(axes, values: Array, limits: tuple[float, float], label: str, what: str) -> None:  # type: ignore[no-untyped-def]
    finite = values[np.isfinite(values)]
    axes.hist(finite, bins=30, range=limits, color=INK)
    axes.set_xlabel(label)
    axes.set_ylabel(what)


def _spread(axes, mean: Array, sd: Array) -> None:  # type: ignore[no-untyped-def]
    axes.hexbin(mean, np.maximum(sd, 1e-3), xscale="log", yscale="log", gridsize=32, bins="log", cmap="Blues", mincnt=1)
    line = np.array([mean.min(), mean.max()])
    axes.plot(line, np.sqrt(line), color=SECOND, lw=1.2)
    axes.set_xlabel("mean (counts per cell)")
    axes.set_ylabel("posterior sd (counts)")


def draw_costs(stages: Sequence[StageView]) -> Picture:
    """Return wall time of every stage, and its peak memory against the projection."""
    shown = [stage for stage in stages if stage.cost]
    places = np.arange(len(shown))
    with figure(1, 2, size=(9.4, 1.1 + 0.3 * len(shown))) as (drawn, axes):
        axes[0].barh(places, [stage.cost.get("seconds", 0.0) for stage in shown], color=INK)
        axes[0].set_xlabel("wall time (s)")
        axes[0].set_yticks(places, [stage.name for stage in shown])
        measured = [stage.cost.get("peak_rss_bytes", 0) / GIB for stage in shown]
        projected = [stage.cost.get("projected_peak_bytes", 0) / GIB for stage in shown]
        axes[1].barh(places, projected, color="#D9E2EA", label="projected before the run")
        axes[1].barh(places, measured, color=INK, height=0.42, label="measured")
        axes[1].set_xlabel("peak memory of one worker process (GiB)")
        axes[1].set_yticks(places, [])
        drawn.legend(
            *axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=8
        )
        for panel in axes:
            panel.invert_yaxis()
        caption = "Wall time and peak memory of every stage; measured memory should stay within the projection."
        return Picture(to_png(drawn), caption, "time and memory per stage")


def draw_interactions(table: pd.DataFrame) -> Picture:
    """Return the strongest ligand-receptor pairs as dots: colour = log2 fold change, area = -log10 adjusted p."""
    pair = (table["ligand"] + " → " + table["receptor"]).to_numpy()
    types = (table["sender"] + " → " + table["receiver"]).to_numpy()
    if "section" in table and table["section"].nunique() > 1:
        types = (table["section"] + ": ").to_numpy() + types
    rows, columns = list(dict.fromkeys(pair)), list(dict.fromkeys(types))
    strength = -np.log10(table["p_adjusted"].to_numpy(np.float64))
    change = table["log2fc"].to_numpy(np.float64)
    bound = max(float(np.abs(change).max(initial=0.0)), 0.1)
    slanted = 0.055 * max(len(name) for name in columns)
    size = (max(4.6 + 0.3 * len(columns), 5.6), max(0.9 + slanted + 0.27 * len(rows), slanted + 2.6))
    with figure(1, 1, size=size) as (drawn, axes):
        panel, highest = axes[0], max(float(strength.max(initial=0.0)), 1e-9)
        area = 20 + 110 * strength / highest
        x, y = [columns.index(name) for name in types], [rows.index(name) for name in pair]
        dots = panel.scatter(
            x, y, s=area, c=change, cmap="RdBu_r", vmin=-bound, vmax=bound, edgecolors="#404040", lw=0.5
        )
        panel.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xlim(-0.7, len(columns) - 0.3)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(color="#E3E7EA", lw=0.6)
        panel.set_axisbelow(True)
        drawn.colorbar(dots, ax=panel, pad=0.02).set_label("log2 fold change\nover permuted cells")
        handles, labels = dots.legend_elements(
            "sizes", num=3, color="#808080", fmt="{x:.2f}", func=lambda s: (np.asarray(s) - 20) / 110 * highest
        )
        drawn.legend(handles, labels, title="−log10\nadjusted p", loc="outside right upper", frameon=False, fontsize=8)
        caption = (
            "Strongest ligand → receptor pairs by sender → receiver type. Colour: log2 fold change against cells "
            "permuted within their type; area grows with -log10 of the adjusted p-value."
        )
        return Picture(to_png(drawn), caption, "ligand-receptor interactions")
