"""Nuclei as polygons in source pixels: outline, area, centroid, canonical order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates
from spatialscope_dist.nuclei.resample import source_coordinates


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one image, numbered by (y, x) of their centroids: nucleus_id = row + 1.

    Parameters
    ----------
    polygons : ndarray
        (nuclei, rays, 2) float32, outline (y, x) in source pixels, pixel centres at integers.
    centroids : ndarray
        (nuclei, 2) float64, centre of mass of the polygon (y, x), source pixels.
    areas : ndarray
        (nuclei,) float64, source pixels squared.
    probability : ndarray
        (nuclei,) float32.
    paint_rank : ndarray
        (nuclei,) int32: 0 is painted last and wins where polygons overlap.
    """

    polygons: NDArray[np.float32]
    centroids: NDArray[np.float64]
    areas: NDArray[np.float64]
    probability: NDArray[np.float32]
    paint_rank: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.polygons)


def trace_nuclei(survivors: Candidates, *, scale: float) -> Nuclei:
    """Return nuclei in canonical (y, x) order from surviving candidates, strongest first.

    Parameters
    ----------
    survivors : Candidates
        Result of `suppress`, in model pixels.
    scale : float
        Model pixels per source pixel.
    """
    polygons = outline(survivors, scale=scale)
    areas, centroids = measure(polygons)
    order = np.lexsort((np.arange(len(polygons)), centroids[:, 1], centroids[:, 0]))
    return Nuclei(polygons[order], centroids[order], areas[order], survivors.probability[order], order.astype(np.int32))


def outline(candidates: Candidates, *, scale: float) -> NDArray[np.float32]:
    """Return vertices c + d_k (sin φ_k, cos φ_k), (candidates, rays, 2) as (y, x) in source pixels."""
    n_rays = candidates.distances.shape[1]
    angles = np.linspace(0, 2 * np.pi, n_rays, endpoint=False)
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    vertices = candidates.points[:, None, :] + candidates.distances[:, :, None].astype(np.float64) * directions
    return source_coordinates(vertices, scale).astype(np.float32)


def measure(polygons: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return areas (nuclei,) and centroids (nuclei, 2) by the shoelace formula, in the polygons' unit."""
    origin = polygons.mean(axis=1, dtype=np.float64)
    local = polygons.astype(np.float64) - origin[:, None, :]
    following = np.roll(local, -1, axis=1)
    cross = local[..., 1] * following[..., 0] - following[..., 1] * local[..., 0]
    area = cross.sum(axis=1) / 2
    moment = ((local + following) * cross[..., None]).sum(axis=1) / 6
    offset = np.divide(moment, area[:, None], out=np.zeros_like(origin), where=np.abs(area)[:, None] > 1e-9)
    return np.abs(area), origin + offset
