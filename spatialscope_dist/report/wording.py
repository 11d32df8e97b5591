"""Names of the results in words: what tables and pictures call an estimator, a score, a kernel, a status."""

from __future__ import annotations

from collections.abc import Mapping

ACCURACY: Mapping[str, str] = {
    "nuclei_found": "planted nuclei found (share)",
    "nuclei_false": "found nuclei that were not planted (share)",
    "cell_type_accuracy": "matched cells with the right type (share)",
    "random_order_accuracy": "the same for the true composition in random order (share)",
    "composition_error": "composition error of spots, 1 − Σ min / Σ M",
    "expression_cosine": "expression, cosine with the truth: this result",
    "type_mean_cosine": "expression, cosine: type mean",
    "proportional_cosine": "expression, cosine: proportional allocation",
}

ESTIMATORS: Mapping[str, str] = {
    "counts": "count denoiser (posterior mean)",
    "score": "score model (posterior mean)",
    "counts+shrinkage": "mean of count denoiser and shrinkage",
    "counts+proportional": "mean of count denoiser and proportional allocation",
    "counts+score": "mean of count denoiser and score model",
    "sized+counts+score": "mean of sized allocation, count denoiser and score model",
    "model": "score model (posterior mean)",
    "type_mean": "mean of the cell's type",
    "proportional": "proportional allocation",
    "sized": "proportional allocation with cell sizes",
    "shrinkage": "Gamma-Poisson shrinkage to the type mean",
}

SCORES: Mapping[str, str] = {
    "cosine": "cosine, all cells",
    "unique_cosine": "cosine, cells alone of their type in the spot",
}

NETWORKS: Mapping[str, str] = {"counts": "count denoiser", "score": "score model"}

LOSSES: Mapping[str, str] = {
    "counts": "−log likelihood of hidden counts",
    "score": "score-matching loss",
}

TRAINING = (
    "Read the curve of held-out cells: it should fall and end flat, and the star marks the weights that are used (a "
    "running average); a curve of training cells far below it tells of a small reference, learnt by heart in part."
)

QUALITY = (
    "Cells drawn from the count denoiser are compared with reference cells it was not trained on; what training cells "
    "differ by is the best a model could do, and where both columns are alike, nothing is left to gain. The first two "
    "rows are relative errors of each type's mean and standard deviation of log counts, the third is the mean error of "
    "correlations between genes, the last is how well a linear classifier tells the two apart: 0.5 is chance, 1 always."
)

GENERATIVE: Mapping[str, str] = {
    "mean_error": "mean of each type, relative error",
    "sd_error": "standard deviation of each type, relative error",
    "correlation_error": "correlations between genes, mean error",
    "auc": "classifier that tells them apart, area under the curve",
}

STATUSES: Mapping[str, str] = {
    "low_counts": "too few counts",
    "not_fitted": "composition could not be fitted",
    "no_cells": "no cells",
}

LABELLINGS: Mapping[str, str] = {
    "map": "most probable labelling",
    "positional": "most probable type of each cell",
    "composition": "spot's composition, placed on its cells",
}


def kernel_name(name: str) -> str:
    """Return a SPARK-X kernel in words: number 1 is the shortest of five lengths, number 5 the longest."""
    kind, _, number = name.partition("_")
    words = {"linear": "linear trend", "gaussian": "Gaussian", "cosine": "periodic"}.get(kind, kind)
    return f"{words}, length {number} of 5" if number else words
