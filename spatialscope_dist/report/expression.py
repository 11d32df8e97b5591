"""What the report says of expression: the estimator and why, how the networks learnt, how well they generate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatialscope_dist.report import wording
from spatialscope_dist.report.embeddings import draw_decomposed, draw_generated
from spatialscope_dist.report.numbers import sentence
from spatialscope_dist.report.page import Block, Table
from spatialscope_dist.report.palette import Style
from spatialscope_dist.report.training import draw_training
from spatialscope_dist.report.views import StudyView


def expression_blocks(study: StudyView, styles: Mapping[str, Style]) -> Iterator[Block]:
    """Yield which estimator was used, what the cells look like, and how good the networks are."""
    if any(section.decompose for section in study.sections) or study.training:
        yield _estimators(study)
    if study.decomposed is not None:
        pictures = [draw_decomposed(study.decomposed, styles)]
        yield Block("Cells by their estimated expression", pictures=pictures, level=3)
    if study.training:
        yield Block("How the networks learnt", [wording.TRAINING], pictures=[draw_training(study.training)], level=3)
    if study.quality:
        pictures = [] if study.generated is None else [draw_generated(study.generated, styles)]
        yield Block("How well cells are generated", [wording.QUALITY], [_quality(study.quality)], pictures, level=3)


def _estimators(study: StudyView) -> Block:
    notes, tables = [], []
    for section in study.sections:
        summary = section.decompose
        if not summary:
            continue
        used = estimator_name(summary.get("estimator", "?"))
        notes.append(f"{section.name}: {used} was used. " + sentence(summary.get("reason", "")))
        candidates = summary.get("candidates", {})
        if candidates:
            tables.append(_candidates(section.name, candidates, str(summary.get("estimator"))))
    levels = study.options.get("decompose", {}).get("quantiles", ())
    if levels:
        notes.append(
            f"Each cell's counts have quantiles {', '.join(f'{level:g}' for level in levels)} beside mean and sd. They "
            "come from integer draws at the depth of the reference: they hold the count a cell would show, not only "
            "its mean, given that its type is right."
        )
    return Block("Expression: which estimator, and why", notes, tables)


def _candidates(name: str, candidates: Mapping[str, Any], chosen: str) -> Table:
    keys = sorted({key for scores in candidates.values() if isinstance(scores, Mapping) for key in scores})
    ranked = sorted(candidates, key=lambda one: -_score(candidates[one]))
    rows = []
    for one in ranked:
        scores = candidates[one] if isinstance(candidates[one], Mapping) else {"cosine": candidates[one]}
        scored = [_four_digits(scores.get(key)) for key in keys or ["cosine"]]
        rows.append([estimator_name(one) + (", used" if one == chosen else ""), *scored])
    caption = (
        f"{name}: estimators on spots simulated from held-out reference cells; cosine of estimated and true expression "
        "of a cell, 1 = exact."
    )
    return Table(["estimator", *(wording.SCORES.get(key, key) for key in keys or ["cosine"])], rows, caption)


def estimator_name(name: object) -> str:
    """Return an estimator in words."""
    return wording.ESTIMATORS.get(str(name), str(name))


def _score(scores: Any) -> float:
    value = scores.get("cosine", 0.0) if isinstance(scores, Mapping) else scores
    return float(value) if value is not None else 0.0


def _four_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _quality(quality: Mapping[str, float]) -> Table:
    """Return what tells generated from held-out cells, beside what tells training cells from them."""
    rows = [
        [text, f"{quality[name]:.3f}", f"{quality[f'floor_{name}']:.3f}"]
        for name, text in wording.GENERATIVE.items()
        if name in quality
    ]
    caption = f"{quality['n_cells']:,.0f} generated cells of the types of as many held-out reference cells."
    return Table(["difference from held-out cells", "generated cells", "training cells"], rows, caption)
