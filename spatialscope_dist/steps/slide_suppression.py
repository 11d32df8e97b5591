"""Suppression over a slide in rounds of blocks: a block is the candidates of one task of windows.

States are files by round: a block of round r reads what its neighbours had decided in earlier
rounds, never what they are deciding, so rounds are reproducible and can be taken up again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.candidates import Candidates
from spatialscope_dist.nuclei.certainty import DROPPED, KEPT, UNDECIDED
from spatialscope_dist.nuclei.suppression import Standing, decide_block, meets, union_bounds
from spatialscope_dist.steps.slide_spec import Slide, Workers, save_array
from spatialscope_dist.store.arrays import load_npy

PARTS = ("points", "distances", "probability")

#: Block name → the round that wrote its state last, None before its first.
Rounds = dict[str, int | None]


def suppress_in_rounds(
    slide: Slide, workers: Workers, bounds: dict[str, list[int]], *, threshold: float
) -> tuple[dict[str, int], int]:
    """Return the round of each block's final state, and how many rounds there were.

    Parameters
    ----------
    slide : Slide
        Its `candidates` folder holds the blocks.
    workers : callable
        Runs the units.
    bounds : dict
        Box that holds all polygons of each block with candidates, model pixels.
    threshold : float
        Largest allowed overlap.
    """
    neighbours = _neighbours(bounds)
    rounds: Rounds = dict.fromkeys(bounds)
    undecided: dict[str, int] = {}
    active = set(bounds)
    number = 0
    while active:
        units: dict[str, dict[str, Any]] = {
            f"suppress_{number:03d}_{name}": {
                "slide": slide,
                "name": name,
                "number": number,
                "rounds": {other: rounds[other] for other in (name, *neighbours[name])},
                "threshold": threshold,
            }
            for name in sorted(active)
        }
        done = workers(decide_candidates, units)
        results = {unit["name"]: done[key] for key, unit in units.items()}
        rounds |= dict.fromkeys(results, number)
        changed = {name for name, result in results.items() if result["decided"]}
        undecided |= {name: result["undecided"] for name, result in results.items()}
        active = {name for name, left in undecided.items() if left and changed.intersection(neighbours[name])}
        number += 1
    return {name: last for name, last in rounds.items() if last is not None}, number


def _neighbours(bounds: dict[str, list[int]]) -> dict[str, list[str]]:
    names = sorted(bounds)
    boxes = np.array([bounds[name] for name in names], np.int64).reshape(-1, 4)
    near = {name: np.flatnonzero(meets(boxes, box)) for name, box in zip(names, boxes, strict=True)}
    return {name: [names[row] for row in rows if names[row] != name] for name, rows in near.items()}


def decide_candidates(slide: Slide, name: str, number: int, rounds: Rounds, threshold: float) -> dict[str, Any]:
    """Write what a block can decide in one round (worker)."""
    blocks = _Blocks(slide.folder / "candidates", name, rounds)
    before = blocks.state(name)
    after = before
    if (before == UNDECIDED).any():
        standing, own = blocks.standing()
        after = before.copy()
        after[blocks.live(name)] = decide_block(standing, own, blocks.distances, threshold=threshold)
    save_array(slide.folder / "candidates" / f"{name}.state{number:03d}.npy", after)
    return {
        "decided": int((before != after).sum()),
        "undecided": int((after == UNDECIDED).sum()),
        "kept": int((after == KEPT).sum()),
    }


def load_kept(folder: Path, name: str, last: int) -> Candidates:
    """Return the candidates of a block that survived."""
    rows = np.flatnonzero(load_npy(folder / f"{name}.state{last:03d}.npy") == KEPT)
    stored = {part: load_npy(folder / f"{name}.{part}.npy") for part in PARTS}
    return Candidates(**{part: values[rows] for part, values in stored.items()})


class _Blocks:
    """A block's candidates that still matter, and those of its neighbours that meet them."""

    def __init__(self, folder: Path, name: str, rounds: Rounds) -> None:
        self._folder, self._name, self._rounds = folder, name, rounds
        self._rows: list[tuple[str, NDArray[np.int64]]] = []
        self._fetched: dict[tuple[str, str], NDArray[Any]] = {}

    def _load(self, name: str, part: str) -> NDArray[Any]:
        if (name, part) in self._fetched:
            return self._fetched[name, part]
        values = load_npy(self._folder / f"{name}.{part}.npy")
        if not isinstance(values, np.memmap):  # came from an object store: once is enough
            self._fetched[name, part] = values
        return values

    def state(self, name: str) -> NDArray[np.uint8]:
        """Return the state of all candidates of a block."""
        last = self._rounds[name]
        if last is None:
            return np.zeros(len(self._load(name, "probability")), np.uint8)
        return self._load(name, f"state{last:03d}")

    def live(self, name: str) -> NDArray[np.int64]:
        """Return the rows of a block's candidates that are not dropped."""
        return np.flatnonzero(self.state(name) != DROPPED)

    def standing(self) -> tuple[Standing, NDArray[np.bool_]]:
        """Return the candidates to look at and which are the block's own (the first ones)."""
        own = self.live(self._name)
        undecided = np.flatnonzero(self.state(self._name) == UNDECIDED)
        reach = union_bounds(self._load(self._name, "bounds")[undecided])
        self._rows = [(self._name, own)]
        for name in self._rounds:
            if name != self._name:
                rows = self.live(name)
                self._rows.append((name, rows[meets(self._load(name, "bounds")[rows], reach)]))
        state = np.concatenate([self.state(name)[rows] for name, rows in self._rows])
        is_own = np.zeros(len(state), np.bool_)
        is_own[: len(own)] = True
        return Standing(self._gather("points"), self._gather("probability"), self._gather("bounds"), state), is_own

    def _gather(self, part: str) -> NDArray[Any]:
        return np.concatenate([self._load(name, part)[rows] for name, rows in self._rows])

    def distances(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the (n, rays) distances of candidates of `standing`, in the order asked for."""
        starts = np.cumsum([0, *(len(rows) for _, rows in self._rows)])
        result = np.empty((len(index), self._load(self._name, "distances").shape[1]), np.float32)
        for number, (name, rows) in enumerate(self._rows):
            here = np.flatnonzero((index >= starts[number]) & (index < starts[number + 1]))
            if len(here):
                result[here] = self._load(name, "distances")[rows[index[here] - starts[number]]]
        return result
