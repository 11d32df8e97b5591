"""Nuclei as polygons in source pixels: outline, area, centroid, canonical order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates, canonical_order
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
    peaks : ndarray
        (nuclei, 2) int32, the pixel (y, x) that proposed the nucleus, model pixels.
    """

    polygons: NDArray[np.float32]
    centroids: NDArray[np.float64]
    areas: NDArray[np.float64]
    probability: NDArray[np.float32]
    peaks: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.polygons)

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Nuclei:
        """Return the nuclei of an index or mask, in its order."""
        return Nuclei(*(getattr(self, part)[index] for part in self.__dataclass_fields__))

    @property
    def paint_rank(self) -> NDArray[np.int64]:
        """Place of each nucleus by strength, (nuclei,): 0 is painted last and wins where polygons overlap."""
        rank = np.empty(len(self), np.int64)
        rank[canonical_order(self.peaks, self.probability)] = np.arange(len(self))
        return rank


def trace_nuclei(survivors: Candidates, *, scale: float) -> Nuclei:
    """Return nuclei in canonical (y, x) order from surviving candidates in any order.

    Parameters
    ----------
    survivors : Candidates
        Result of the suppression, in model pixels.
    scale : float
        Model pixels per source pixel.
    """
    polygons = outline(survivors, scale=scale)
    areas, centroids = measure(polygons)
    return in_canonical_order([Nuclei(polygons, centroids, areas, survivors.probability, survivors.points)])


def in_canonical_order(parts: Sequence[Nuclei]) -> Nuclei:
    """Return the nuclei of all parts by (y, x) of their centroids; at one place the stronger comes first."""
    together = join_nuclei(parts)
    y, x = together.centroids.T
    return together.take(np.lexsort((together.paint_rank, x, y)))


def join_nuclei(parts: Sequence[Nuclei]) -> Nuclei:
    """Return the nuclei of all parts, one after the other."""
    names = Nuclei.__dataclass_fields__
    return Nuclei(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


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
