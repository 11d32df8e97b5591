"""One simulated study: a section, its reference and the truth about both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from spatialscope_dist.randomness import generator, key_of
from spatialscope_dist.simulate.genes import CellStates, GeneModel, capture_counts, draw_counts, draw_genes
from spatialscope_dist.simulate.histology import draw_histology
from spatialscope_dist.simulate.settings import TYPE_NAMES, SimulationSettings
from spatialscope_dist.simulate.tissue import (
    Nuclei,
    place_spots,
    scatter_nuclei,
    section_extent_um,
    smooth_field,
    tissue_cover,
    type_probabilities,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedStudy:
    """A section with its image and spot counts, a reference, and the truth.

    Attributes
    ----------
    image
        (c, y, x) uint8, H&E-like.
    spots_um
        (spots, 2), (y, x) µm.
    spot_counts
        (spots, genes), raw counts of the section's technology: the sum of ``cell_captured`` over a spot's cells.
    nuclei
        All planted nuclei, inside and outside spots.
    cell_spot
        (cells,), row of the spot whose circle holds the cell's centre, -1 outside.
    cell_counts
        (cells, genes), true counts before capture, on the reference's platform.
    cell_captured
        (cells, genes), the part of them that the section's technology saw, platform effect included.
    reference_counts, reference_types
        (reference cells, genes) raw counts and (reference cells,) type index.
    """

    settings: SimulationSettings
    seed: int
    image: NDArray[np.uint8]
    spots_um: Array
    spot_counts: sparse.csr_matrix
    nuclei: Nuclei
    states: CellStates
    cell_spot: NDArray[np.int64]
    cell_counts: sparse.csr_matrix
    cell_captured: sparse.csr_matrix
    genes: GeneModel
    reference_counts: sparse.csr_matrix
    reference_types: NDArray[np.int64]


def simulate(settings: SimulationSettings, *, seed: int) -> SimulatedStudy:
    """Return one simulated study; the same settings and seed give the same study, byte for byte.

    Examples
    --------
    >>> study = simulate(SimulationSettings(n_spots=7), seed=0)
    >>> study.spot_counts.shape
    (7, 500)
    """
    spots = place_spots(settings)
    nuclei = _draw_cells(settings, spots, seed)
    states = _draw_states(settings, nuclei, np.array(section_extent_um(spots, settings)), seed)
    genes = draw_genes(settings, generator(seed, "simulate", "genes"))
    library = settings.reference_library
    counts = draw_counts(genes, states, settings, library=library, rng=generator(seed, "simulate", "counts"))
    captured = capture_counts(
        counts, genes.platform_effect, capture=settings.capture, rng=generator(seed, "simulate", "capture")
    )
    cell_spot = assign_to_spots(nuclei.centres_um, spots, settings.spot_diameter_um)
    reference_types, reference_counts = _draw_reference(settings, genes, states, seed)
    return SimulatedStudy(
        settings=settings,
        seed=seed,
        image=_draw_image(settings, spots, nuclei, seed),
        spots_um=spots,
        spot_counts=_sum_per_spot(captured, cell_spot, len(spots)),
        nuclei=nuclei,
        states=states,
        cell_spot=cell_spot,
        cell_counts=counts,
        cell_captured=captured,
        genes=genes,
        reference_counts=reference_counts,
        reference_types=reference_types,
    )


def assign_to_spots(points_um: Array, spots_um: Array, diameter_um: float) -> NDArray[np.int64]:
    """Return the row of the spot whose circle holds each point, (points,); -1 outside every spot."""
    distance, nearest = cKDTree(spots_um).query(points_um)
    return np.where(distance <= diameter_um / 2, nearest, -1).astype(np.int64)


def _draw_cells(settings: SimulationSettings, spots: Array, seed: int) -> Nuclei:
    rng = generator(seed, "simulate", "cells")
    extent = np.array(section_extent_um(spots, settings))
    n_wanted = rng.poisson(settings.cells_per_mm2 * extent.prod() / 1e6)
    candidates = rng.uniform(0, 1, (int(1.25 * n_wanted) + 10, 2)) * extent
    in_tissue = tissue_cover(candidates, spots, settings) > 0.5
    seeds = [key_of(seed, "simulate", "types", index) for index in range(len(TYPE_NAMES) + 1)]
    candidates = candidates[in_tissue]
    cumulative = type_probabilities(candidates, extent, settings, seeds).cumsum(axis=1)
    types = (rng.uniform(0, 1, len(candidates))[:, None] > cumulative[:, :-1]).sum(axis=1)
    nuclei, _ = scatter_nuclei(candidates, types.astype(np.int64), rng, settings=settings)
    # the density of the section is met by keeping the earliest, which is a uniform choice
    n_tissue = int(n_wanted * in_tissue.mean())
    keep = slice(0, n_tissue)
    return nuclei.take(keep)


def _draw_states(settings: SimulationSettings, nuclei: Nuclei, extent: Array, seed: int) -> CellStates:
    rng = generator(seed, "simulate", "states")
    n_cells, share = len(nuclei.types), settings.programme_spatial_share
    scores = np.sqrt(1 - share) * rng.standard_normal((n_cells, settings.programmes_per_type))
    for programme in range(settings.programmes_per_type):
        for kind in range(len(TYPE_NAMES)):
            members = np.flatnonzero(nuclei.types == kind)
            field_rng = generator(seed, "simulate", "programme", TYPE_NAMES[kind], programme)
            field = smooth_field(nuclei.centres_um[members], settings.programme_length_um, field_rng)
            scores[members, programme] += np.sqrt(share) * field
    contact = np.zeros((n_cells, len(TYPE_NAMES)), dtype=bool)
    pairs = cKDTree(nuclei.centres_um).query_pairs(settings.contact_um, output_type="ndarray")
    contact[pairs[:, 0], nuclei.types[pairs[:, 1]]] = True
    contact[pairs[:, 1], nuclei.types[pairs[:, 0]]] = True
    return CellStates(nuclei.types, scores, nuclei.centres_um[:, 1] / extent[1] - 0.5, contact)


def _draw_reference(
    settings: SimulationSettings, genes: GeneModel, section: CellStates, seed: int
) -> tuple[NDArray[np.int64], sparse.csr_matrix]:
    """Return types (cells,) and counts (cells, genes) of reference cells: other cells, in the same range of states."""
    rng = generator(seed, "simulate", "reference")
    shares = rng.dirichlet(np.full(len(TYPE_NAMES), 8.0))
    types = rng.choice(len(TYPE_NAMES), settings.n_reference_cells, p=0.7 * shares + 0.3 / len(TYPE_NAMES))
    scores = rng.standard_normal((len(types), settings.programmes_per_type))
    side = rng.uniform(-0.5, 0.5, len(types))
    contact = np.zeros((len(types), len(TYPE_NAMES)), dtype=bool)
    for kind in range(len(TYPE_NAMES)):
        members = types == kind
        touched = section.contact[section.types == kind]
        rates = touched.mean(axis=0) if len(touched) else np.zeros(len(TYPE_NAMES))
        contact[members] = rng.random((int(members.sum()), len(TYPE_NAMES))) < rates
    states = CellStates(types.astype(np.int64), scores, side, contact)
    return states.types, draw_counts(genes, states, settings, library=settings.reference_library, rng=rng)


def _draw_image(settings: SimulationSettings, spots: Array, nuclei: Nuclei, seed: int) -> NDArray[np.uint8]:
    extent = section_extent_um(spots, settings)
    shape = (int(np.ceil(extent[0] / settings.pixel_size_um)), int(np.ceil(extent[1] / settings.pixel_size_um)))
    step_um = 4.0
    lattice = [np.arange(0, span + 2 * step_um, step_um) for span in extent]
    points = np.stack(np.meshgrid(*lattice, indexing="ij"), axis=-1).reshape(-1, 2)
    coarse = tissue_cover(points, spots, settings).reshape(len(lattice[0]), len(lattice[1]))
    cover = coarse
    for axis in range(2):
        position = np.arange(shape[axis]) * settings.pixel_size_um / step_um
        lower = position.astype(np.intp)
        weight = (position - lower).reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)
        cover = np.take(cover, lower, axis) * (1 - weight) + np.take(cover, lower + 1, axis) * weight
    return draw_histology(
        nuclei,
        shape=shape,
        pixel_size_um=settings.pixel_size_um,
        rng=generator(seed, "simulate", "image"),
        tissue=cover,
    )


def _sum_per_spot(captured: sparse.csr_matrix, cell_spot: NDArray[np.int64], n_spots: int) -> sparse.csr_matrix:
    inside = np.flatnonzero(cell_spot >= 0)
    ones = np.ones(len(inside), dtype=np.int64)
    membership = sparse.csr_matrix((ones, (cell_spot[inside], inside)), shape=(n_spots, captured.shape[0]))
    return sparse.csr_matrix((membership @ captured).astype(np.int32))
