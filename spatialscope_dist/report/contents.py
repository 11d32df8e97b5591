"""What the report says: blocks of text, tables and pictures made from the views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spatialscope_dist.report import wording
from spatialscope_dist.report.borders import border_block
from spatialscope_dist.report.charts import draw_costs, draw_energy, draw_type_shares, draw_uncertainty
from spatialscope_dist.report.expression import estimator_name, expression_blocks
from spatialscope_dist.report.genes import gene_blocks, interaction_blocks
from spatialscope_dist.report.maps import draw_cells, draw_composition, draw_marker, draw_nuclei, draw_slide
from spatialscope_dist.report.numbers import duration, memory, number
from spatialscope_dist.report.page import Block, Page, Table
from spatialscope_dist.report.palette import Style, choose_styles
from spatialscope_dist.report.views import SectionView, StudyView

MAX_FAILED_ROWS = 40


def build_page(study: StudyView) -> Page:
    """Return the whole report of a study."""
    counts: dict[str, int] = {}
    for section in study.sections:
        for name, count in section.type_counts.items():
            counts[name] = counts.get(name, 0) + int(count)
    styles = choose_styles(counts, list(study.types))
    blocks = [_overview(study), *_accuracy(study)]
    for section in study.sections:
        blocks += _section(section, study, styles)
    blocks += [*border_block(study), *_types(study, styles), *expression_blocks(study, styles)]
    blocks += [*interaction_blocks(study), *gene_blocks(study)]
    blocks += [_quarantine(study), _costs(study), _settings(study)]
    subtitle = f"spatialscope_dist {study.version}, seed {study.seed}"
    return Page(f"Single cells of {study.name}", subtitle, _cards(study), blocks)


def _cards(study: StudyView) -> list[tuple[str, str]]:
    nuclei = [section.n_nuclei for section in study.sections if section.n_nuclei is not None]
    seconds = sum(stage.cost.get("seconds", 0.0) for stage in study.stages)
    cards = [
        (f"{len(study.sections):,}", "section" if len(study.sections) == 1 else "sections"),
        (f"{sum(section.n_spots for section in study.sections):,}", "spots"),
    ]
    if nuclei:
        cards.append((f"{sum(nuclei):,}", "nuclei found"))
    if any(section.n_cells for section in study.sections):
        cards.append((f"{sum(section.n_cells for section in study.sections):,}", "cells typed"))
        cards.append((f"{len(study.types):,}", "cell types"))
    if study.n_panel_genes is not None:
        cards.append((f"{study.n_panel_genes:,}", "genes per cell"))
    return [*cards, (duration(seconds), "run time")]


def _overview(study: StudyView) -> Block:
    header = ["section", "spots", "nuclei found", "cells typed", "cells per spot (median)", "UMI per spot (median)"]
    header.append("expression by")
    rows = []
    for section in study.sections:
        spots = section.spots
        per_spot = spots["n_cells"].dropna().tolist() if "n_cells" in spots else []
        rows.append(
            [
                section.name,
                f"{section.n_spots:,}",
                "–" if section.n_nuclei is None else f"{section.n_nuclei:,}",
                f"{section.n_cells:,}" if section.n_cells else "–",
                f"{np.median(per_spot):.0f}" if len(per_spot) else "–",
                f"{spots['total_counts'].median():,.0f}",
                estimator_name(section.decompose.get("estimator", "–")),
            ]
        )
    notes = ["Cells are typed where spots measured counts; nuclei between spots are found but stay without a type."]
    if not any(section.n_nuclei for section in study.sections):
        notes = []
    if study.reference is not None and study.n_reference_cells is not None:
        notes.append(
            f"Reference: {study.reference}, {study.n_reference_cells:,} cells of {len(study.types)} types. Only types "
            "of the reference can be found: cells of the section that the reference lacks get the nearest type it has."
        )
    skipped = [[s.name, item, reason] for s in study.stages for item, reason in s.skipped.items()]
    tables = [Table(header, rows)]
    if skipped:
        tables.append(Table(["stage", "item", "why"], skipped, "Stages that had nothing to do"))
    return Block("Summary", notes, tables)


def _accuracy(study: StudyView) -> Iterator[Block]:
    if not study.accuracy:
        return
    rows = [[text, f"{study.accuracy[name]:.3f}"] for name, text in wording.ACCURACY.items() if name in study.accuracy]
    scored = study.accuracy.get("cells_scored")
    notes = [
        "This study has a known truth. Nuclei are matched one to one within 4 µm. Expression is compared, for every "
        "estimator, on the same cells: those whose type is present in their spot, matched to the nearest true cell of "
        "that type; the cosine runs over the genes of the panel."
    ]
    if scored is not None:
        notes.append(f"{int(scored):,} cells are compared in expression.")
    yield Block("Accuracy against the truth", notes, [Table(["what", "value"], rows)])


def _section(section: SectionView, study: StudyView, styles: Mapping[str, Style]) -> list[Block]:
    title = "Maps" if len(study.sections) == 1 else f"Maps of {section.name}"
    slide, cells = [], []
    if section.overview is not None:
        slide.append(draw_slide(section))
    if section.crop is not None:
        slide.append(draw_nuclei(section.crop, styles, name=section.name, spot_diameter_um=section.spot_diameter_um))
    if section.cells is not None and len(section.cells):
        cells.append(draw_cells(section, styles))
    composition = [] if section.proportions is None else [draw_composition(section, study.types, styles)]
    marker = [] if section.marker is None or section.cells is None else [draw_marker(section)]
    blocks = [Block(title, pictures=slide)]
    if section.overview is None:
        blocks = [Block(title, ["This section has no image; cells are placed where the study or the model puts them."])]
    if cells or composition:
        blocks.append(Block("Cell types in space", pictures=cells + composition, level=3))
    if marker:
        blocks.append(Block("One gene before and after", pictures=marker, level=3))
    return blocks


def _types(study: StudyView, styles: Mapping[str, Style]) -> Iterator[Block]:
    typed = [section for section in study.sections if section.type_counts]
    if not typed:
        return
    header = ["section", "overdispersion σ", "sweeps", "labels used", "cells of probability ≥ 0.5", "of ≥ 0.9"]
    rows = []
    for section in typed:
        sure = section.confidence
        shares = ["–", "–"] if sure is None else [f"{np.mean(sure >= level):.0%}" for level in (0.5, 0.9)]
        sweeps = section.identify.get("n_sweeps", max(len(section.energy) - 1, 0))
        labels = str(study.options.get("identify", {}).get("labels", "–"))
        labels = wording.LABELLINGS.get(labels, labels)
        rows.append([section.name, number(section.identify.get("overdispersion")), str(sweeps), labels, *shares])
    pictures = [draw_type_shares(typed, styles)]
    with_energy = [section for section in typed if len(section.energy)]
    if with_energy:
        pictures.append(draw_energy(with_energy))
    pictures += [picture for section in typed if (picture := draw_uncertainty(section)) is not None]
    notes = [
        "Counts alone seldom tell which of two neighbouring nuclei in one spot has which type: read the composition of "
        "a spot as the result, and the type of a single nucleus with its probability."
    ]
    notes += [f"{section.name}: {text}." for section in typed if (text := _looks_of_nuclei(section))]
    if study.few_cells:
        few = ", ".join(f"{name} ({count:,})" for name, count in study.few_cells.items())
        notes.append(
            f"Types known from few reference cells, whose profiles, and so whose shares, are uncertain: {few}."
        )
    yield Block("Cell types and how sure they are", notes, [Table(header, rows)], pictures)


def _looks_of_nuclei(section: SectionView) -> str | None:
    """Return whether the looks of nuclei helped to type the cells of a section; None where nobody measured them."""
    verdict = section.identify.get("morphology", {}).get(section.name, {})
    if "measures" not in verdict:
        return None
    text = str(verdict["reason"])
    if "excess_error" in verdict:
        from spatialscope_dist.celltypes.morphology_evidence import STANDARD_ERRORS

        more, error = verdict["gain"] - verdict["exchanged"], verdict["excess_error"]
        text += f" ({more:+.3f} ± {error:.3f}; both gains must exceed {STANDARD_ERRORS:g} standard errors)"
    return text


def _quarantine(study: StudyView) -> Block:
    rows = [[stage.name, unit, reason] for stage in study.stages for unit, reason in stage.failed.items()]
    low = [
        [section.name, wording.STATUSES.get(str(name), str(name)), f"{count:,}"]
        for section in study.sections
        if "status" in section.spots
        for name, count in section.spots["status"].value_counts().items()
        if name != "ok"
    ]
    if not rows and not low:
        return Block("Quarantined items", ["None: every spot, cell and unit of work finished."])
    tables = []
    if rows:
        caption = "" if len(rows) <= MAX_FAILED_ROWS else f"The first {MAX_FAILED_ROWS} of {len(rows):,}"
        tables.append(Table(["stage", "item", "reason"], rows[:MAX_FAILED_ROWS], caption))
    if low:
        tables.append(Table(["section", "status", "spots"], low, "Spots that are kept but were not used"))
    return Block("Quarantined items", tables=tables)


def _costs(study: StudyView) -> Block:
    header = ["stage", "done", "wall time", "CPU time", "peak memory", "projected", "failed"]
    rows = [
        [
            stage.name,
            f"{stage.done}/{stage.total}",
            duration(stage.cost.get("seconds", 0.0)),
            duration(stage.cost.get("cpu_seconds", 0.0)),
            memory(stage.cost.get("peak_rss_bytes", 0)),
            memory(stage.cost.get("projected_peak_bytes", 0)),
            str(len(stage.failed)),
        ]
        for stage in study.stages
        if stage.cost
    ]
    pictures = [draw_costs(study.stages)] if rows else []
    notes = ["Memory is the largest resident size of one worker process; the report itself is not included."]
    return Block("Time and memory", notes, [Table(header, rows)], pictures)


def _settings(study: StudyView) -> Block:
    rows = [[stage, name, _plain(value)] for stage, table in study.options.items() for name, value in table.items()]
    versions = [[name, version] for name, version in study.versions.items()]
    tables = [Table(["stage", "option", "value"], rows, "Options of this run")]
    return Block("Options and versions", tables=[*tables, Table(["library", "version"], versions, "Versions")])


def _plain(value: Any) -> str:
    return "default" if value is None else str(value)
