"""What the report is given: plain arrays and frames, small enough to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageView:
    """A part of the slide: ``pixels`` (y, x, 3) uint8, its upper left corner (y, x) µm, and µm per pixel."""

    pixels: NDArray[np.uint8]
    corner_um: tuple[float, float]
    pixel_size_um: float


@dataclass(frozen=True)
class CropView:
    """A small part of the slide at full resolution with the nuclei found in it.

    ``outlines`` one (points, 2) (y, x) µm polygon per nucleus; ``types`` their cell type, '' for nuclei outside spots.
    """

    image: ImageView
    outlines: Sequence[Array]
    types: Sequence[str]
    spots_um: Array


@dataclass(frozen=True)
class MarkerView:
    """One gene before and after: ``spots`` (drawn spots,) raw counts, ``cells`` (drawn cells,) mean counts.

    ``predicted`` (drawn spots,) raw counts that the spot's cells sum to, NaN without cells; ``reason`` says in words
    why this gene.
    """

    gene: str
    reason: str
    spots: Array
    predicted: Array
    cells: Array


@dataclass(frozen=True)
class UncertaintyView:
    """A seeded subset of entries with a mean of at least one count: (entries,) mean and sd."""

    mean: Array
    sd: Array


@dataclass(frozen=True)
class EmbeddingView:
    """Cells on a plane: ``points`` (cells, 2), their ``types``, and which are ``generated`` ones, if any are."""

    points: Array
    types: Sequence[str]
    method: str
    generated: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class SectionView:
    """One section.

    ``spots`` and ``cells`` are frames of what is drawn (columns y_um, x_um in the section's own µm, y down; spots:
    total_counts, n_cells, status; cells: cell_type, confidence), subsets of ``n_spots`` and ``n_cells`` when large;
    ``proportions`` (drawn spots, types). Parts that a skipped stage would have made are None.
    """

    name: str
    spot_diameter_um: float
    n_spots: int
    spots: pd.DataFrame
    n_nuclei: int | None = None
    n_cells: int = 0
    cells: pd.DataFrame | None = None
    proportions: Array | None = None
    type_counts: Mapping[str, int] = field(default_factory=dict)
    overview: ImageView | None = None
    crop: CropView | None = None
    marker: MarkerView | None = None
    uncertainty: UncertaintyView | None = None
    energy: Sequence[float] = ()
    residuals: Array | None = None
    confidence: Array | None = None
    segment: Mapping[str, Any] = field(default_factory=dict)
    identify: Mapping[str, Any] = field(default_factory=dict)
    decompose: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageView:
    """One stage of the run: cost as in the ledger, failures by unit, reasons of skipped items."""

    name: str
    done: int
    total: int
    cost: Mapping[str, float]
    failed: Mapping[str, str]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class StudyView:
    """The whole study.

    ``few_cells``: reference cells of each type that has too few for a sure profile; ``training``: curves by network;
    ``quality``: how generated differ from held-out cells (`expression.quality.Quality`).
    """

    name: str
    seed: int
    version: str
    types: Sequence[str]
    sections: Sequence[SectionView]
    stages: Sequence[StageView]
    training: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    generated: EmbeddingView | None = None
    decomposed: EmbeddingView | None = None
    interactions: pd.DataFrame | None = None
    variable_genes: pd.DataFrame | None = None
    spatial_de: pd.DataFrame | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    n_reference_cells: int | None = None
    few_cells: Mapping[str, int] = field(default_factory=dict)
    n_panel_genes: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
