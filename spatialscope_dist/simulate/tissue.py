"""The simulated tissue: spots, layers, cells and their nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from spatialscope_dist.simulate.settings import LAYER_COMPOSITION, NUCLEUS_RADIUS_UM, NUCLEUS_STAIN, SimulationSettings

Array = NDArray[np.float64]
N_WAVES = 96
#: Tissue reaches this far beyond the outermost spots' centres, in pitches.
TISSUE_REACH = 1.1


@dataclass(frozen=True)
class Nuclei:
    """Ellipses of nuclei.

    Attributes
    ----------
    centres_um
        (nuclei, 2), (y, x) µm; pixel (i, j) of an image is centred at (i, j) · pixel size.
    semi_axes_um
        (nuclei, 2), long and short semi-axis in µm.
    angles_rad
        (nuclei,), angle of the long axis from the y axis towards the x axis.
    types
        (nuclei,), indices.
    stain
        (nuclei,), haematoxylin relative to the average nucleus.
    """

    centres_um: Array
    semi_axes_um: Array
    angles_rad: Array
    types: NDArray[np.int64]
    stain: Array

    def take(self, rows: slice | NDArray[np.int64]) -> Nuclei:
        """Return some of the nuclei, in the order of `rows`."""
        return Nuclei(*(getattr(self, part)[rows] for part in self.__dataclass_fields__))


def smooth_field(points_um: Array, length_um: float, rng: np.random.Generator) -> Array:
    """Return a Gaussian random field at the points, (points,), mean 0 and variance 1 over fields.

    Random Fourier features of the squared-exponential kernel (Rahimi & Recht 2007).
    """
    waves = rng.standard_normal((N_WAVES, 2)) / length_um
    phases = rng.uniform(0, 2 * np.pi, N_WAVES)
    field = np.zeros(len(points_um))
    for wave, phase in zip(waves, phases, strict=True):
        field += np.cos(points_um @ wave + phase)
    return np.asarray(field * np.sqrt(2 / N_WAVES))


def place_spots(settings: SimulationSettings) -> Array:
    """Return spot centres, (spots, 2) (y, x) µm, row by row: the lattice points nearest the middle of the section."""
    reach = int(np.ceil(np.sqrt(settings.n_spots))) + 3
    rows, columns = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij")
    y = (rows * settings.pitch_um * np.sqrt(3) / 2).ravel()
    x = ((columns + 0.5 * (rows % 2)) * settings.pitch_um).ravel()
    # a rounded square rather than a disc, as tissue blocks are
    distance = (np.abs(y) ** 4 + np.abs(x + 1e-3) ** 4) ** 0.25
    chosen = np.sort(np.argsort(distance, kind="stable")[: settings.n_spots])
    centres = np.stack([y[chosen], x[chosen]], axis=1)
    return np.asarray(centres - centres.min(axis=0) + settings.glass_border_um + settings.pitch_um * TISSUE_REACH)


def section_extent_um(spots_um: Array, settings: SimulationSettings) -> tuple[float, float]:
    """Return the (y, x) extent in µm of the image that holds the spots, tissue and glass border."""
    far = spots_um.max(axis=0) + settings.glass_border_um + settings.pitch_um * TISSUE_REACH
    return float(far[0]), float(far[1])


def tissue_cover(points_um: Array, spots_um: Array, settings: SimulationSettings) -> Array:
    """Return the share of tissue at points, (points,) in [0, 1]: within reach of a spot, soft edge of 6 µm."""
    distance, _ = cKDTree(spots_um).query(points_um)
    return np.clip((settings.pitch_um * TISSUE_REACH - distance) / 6.0 + 0.5, 0, 1)


def layer_shares(depth: Array, blur: float) -> Array:
    """Return the share of every layer at relative depths in [0, 1], (points, layers); rows sum to 1."""
    n_layers = len(LAYER_COMPOSITION)
    middles = (np.arange(n_layers) + 0.5) / n_layers
    logits = -(((depth[:, None] - middles) * n_layers) ** 2) / (4 * blur)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def type_probabilities(points_um: Array, extent_um: Array, settings: SimulationSettings, seeds: list[int]) -> Array:
    """Return the probability of every cell type at points, (points, types): wavy layers with local clumping.

    ``seeds`` holds one seed for the layers' waves and one for each type's clumps.
    """
    wave = smooth_field(points_um, 0.3 * float(extent_um.max()), np.random.default_rng(seeds[0]))
    depth = np.clip(points_um[:, 0] / extent_um[0] + 0.05 * wave, 0, 1)
    log_odds = np.log(layer_shares(depth, settings.layer_blur) @ np.array(LAYER_COMPOSITION))
    for index, seed in enumerate(seeds[1:]):
        clump = smooth_field(points_um, settings.clump_length_um, np.random.default_rng(seed))
        log_odds[:, index] += settings.clump_log_odds * clump
    odds = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def scatter_nuclei(
    candidates_um: Array, types: NDArray[np.int64], rng: np.random.Generator, *, settings: SimulationSettings
) -> tuple[Nuclei, NDArray[np.int64]]:
    """Return nuclei at candidate positions, earlier ones first, dropping those that would overlap, and the kept rows.

    Parameters
    ----------
    candidates_um
        (candidates, 2), (y, x) µm.
    types
        (candidates,), index of the type, which sets the mean radius.
    rng
        Source of size, shape and angle.
    settings
        What types differ in, spread of radii, aspect, and the gap between nuclei.
    """
    count = len(candidates_um)
    spread = np.exp(settings.nucleus_radius_cv * rng.standard_normal(count))
    looks = types
    if settings.nucleus_looks == "shuffled":
        looks = rng.permutation(types)
    radii = np.array(NUCLEUS_RADIUS_UM)[looks] * spread
    aspect = 1 + (settings.nucleus_aspect_max - 1) * rng.beta(1.6, 2.2, count)
    angles = rng.uniform(0, np.pi, count)
    kept = _keep_apart(candidates_um, radii, settings.nucleus_gap)
    axes = np.stack([radii * np.sqrt(aspect), radii / np.sqrt(aspect)], axis=1)
    stain = np.ones(count) if settings.nucleus_looks == "size" else np.array(NUCLEUS_STAIN)[looks]
    return Nuclei(candidates_um, axes, angles, types, stain).take(kept), kept


def _keep_apart(points: Array, radii: Array, gap: float) -> NDArray[np.int64]:
    pairs = cKDTree(points).query_pairs(2 * float(radii.max()) * gap, output_type="ndarray")
    distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    pairs = pairs[distance < gap * (radii[pairs[:, 0]] + radii[pairs[:, 1]])]
    alive = np.ones(len(points), dtype=bool)
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if alive[first]:
            alive[second] = False
    return np.flatnonzero(alive)
