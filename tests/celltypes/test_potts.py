"""Potts: energies by brute force, falling ICM, exact Gibbs marginals, same labels for any blocks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from spatialscope_dist.celltypes.keyed_random import philox_words
from spatialscope_dist.celltypes.marginals import Samples, sample_marginals
from spatialscope_dist.celltypes.multisets import (
    QUANTUM,
    Candidates,
    MultisetCache,
    binomials,
    multiset_rank,
    n_multisets,
)
from spatialscope_dist.celltypes.potts import (
    SHARE_UNITS,
    build_block,
    descend_block,
    margins,
    own_cells,
    pair_energy,
    sample_block,
    updated_spots,
)
from spatialscope_dist.celltypes.spot_updates import Prior
from spatialscope_dist.engine.halo import HaloBlock, SweepHistory, sweep_blocks
from spatialscope_dist.geometry.blocks import assign_blocks, sweep_closure
from spatialscope_dist.geometry.colouring import greedy_colouring
from spatialscope_dist.geometry.neighbours import quotient_graph, radius_graph
from spatialscope_dist.randomness import philox, spot_keys


class Tissue:
    """A random tissue with random multiset energies."""

    def __init__(self, n_spots, *, max_cells=4, n_types=5, slots=3, scale=2.0, seed=0, field=0.0):
        rng = np.random.default_rng(seed)
        self.n_cells = rng.integers(0, max_cells + 1, n_spots)
        self.n_cells[0] = max_cells
        self.centres = rng.uniform(0, 12 * np.sqrt(n_spots), (n_spots, 2))
        self.spot = np.repeat(np.arange(n_spots), self.n_cells)
        points = self.centres[self.spot] + rng.normal(0, 3, (len(self.spot), 2))
        types = np.sort(np.argsort(rng.random((n_spots, n_types)), axis=1)[:, :slots], axis=1)
        size = np.full(n_spots, slots)
        sizes = np.where(self.n_cells > 0, n_multisets(self.n_cells, size), 0)
        start = np.concatenate([[0], np.cumsum(sizes)])
        energy = np.rint(rng.normal(0, scale, start[-1]) / QUANTUM).astype(np.int64)
        self.cache = MultisetCache(Candidates(types, size), self.n_cells, start, energy)
        self.graph = radius_graph(points, mean_degree=4)
        self.spot_graph = quotient_graph(self.graph, self.spot, n_groups=n_spots)
        self.keys = spot_keys("s", [str(i) for i in range(n_spots)])
        self.colours = greedy_colouring(self.spot_graph, self.keys)
        self.cell_start = np.concatenate([[0], np.cumsum(self.n_cells)])
        self.labels = types[self.spot, rng.integers(0, slots, len(self.spot))].astype(np.int16)
        self.prior = Prior(pair_energy(3.0, self.graph.mean_degree), 17)
        own = np.rint(rng.normal(0, field, (len(self.spot), slots)) / QUANTUM).astype(np.int64)
        self.field = own if field else None

    def blocks(self, n_blocks):
        assigned = assign_blocks(self.centres, self.n_cells, n_blocks=n_blocks)
        return [self.block(np.flatnonzero(assigned == b)) for b in range(n_blocks)]

    def block(self, own):
        closure = sweep_closure(self.spot_graph, self.colours, own)
        spots = updated_spots(closure, self.colours)
        sizes = np.diff(self.cache.start)[spots]
        parts = [self.cache.energy[self.cache.start[s] : self.cache.start[s + 1]] for s in spots]
        cache = MultisetCache(
            Candidates(self.cache.candidates.types[spots], self.cache.candidates.size[spots]),
            self.n_cells[spots],
            np.concatenate([[0], np.cumsum(sizes)]),
            np.concatenate(parts) if parts else np.zeros(0, np.int64),
        )
        known = {"graph": self.graph, "cell_start": self.cell_start, "keys": self.keys, "field": self.field}
        return build_block(closure, spots, cache, **known)

    def energy(self, labels):
        """Return the energy, written out."""
        total = 0
        for s in range(len(self.n_cells)):
            mine = labels[self.cell_start[s] : self.cell_start[s + 1]]
            types = self.cache.candidates.types[s]
            tally = np.array([(mine == t).sum() for t in types])
            if len(mine):
                total += self.cache.energy[self.cache.start[s] + multiset_rank(tally, len(types), binomials(30, 8))]
        if self.field is not None:
            slots = (self.cache.candidates.types[self.spot] == labels[:, None]).argmax(axis=1)
            total += self.field[np.arange(len(labels)), slots].sum()
        rows = np.repeat(np.arange(len(labels)), np.diff(self.graph.indptr))
        return int(total + self.prior.pair_energy * (labels[rows] != labels[self.graph.indices]).sum() // 2)

    def descend(self, n_blocks, max_sweeps=30):
        blocks = self.blocks(n_blocks)

        def run(calls):
            results = []
            for call in calls:
                block = blocks[call["number"]]
                swept = descend_block(block, call["state"], self.prior, call["touched"])
                results.append((block.cells[swept.changed], swept.labels, (swept.before, swept.change)))
            return results

        halo = [HaloBlock(block.cells, {"number": number}) for number, block in enumerate(blocks)]
        *_, history = sweep_blocks(run, halo, SweepHistory(self.labels), max_sweeps=max_sweeps)
        return history

    def marginals(self, n_blocks, *, burn_in=3, kept=10, reverse=False):
        blocks = self.blocks(n_blocks)

        def run(calls):
            order = list(reversed(range(len(calls)))) if reverse else range(len(calls))
            results = {}
            for i in order:
                block = blocks[calls[i]["block"]]
                swept = sample_block(block, calls[i]["state"], self.prior, sweep=calls[i]["sweep"])
                results[i] = (block.cells[swept.changed], swept.labels, swept.shares if calls[i]["kept"] else None)
            return [results[i] for i in range(len(calls))]

        cells = [(block.cells, block.cells[own_cells(block)]) for block in blocks]
        slots = self.cache.candidates.types.shape[1]
        start = Samples.begin(self.labels, n_slots=slots)
        *_, samples = sample_marginals(run, cells, start, burn_in=burn_in, kept=kept)
        return samples.sums


def test_philox_words__same_bits_as_the_vectorised_ones():
    keys = np.array([3, 2**62 + 12345, 987654321987654321])
    words = philox(keys, (np.int64([5, 6, 7]), 2**31 + 5, 3, 99))
    for i, key in enumerate(keys):
        assert philox_words(key, 5 + i, 2**31 + 5, 3, 99) == tuple(int(word[i]) for word in words)


@pytest.mark.parametrize("field", [0.0, 1.5])
@pytest.mark.parametrize("max_cells", [4, 9])
def test_descend_block__energy_written_out_and_never_rising(max_cells, field):
    tissue = Tissue(60, max_cells=max_cells, seed=max_cells, field=field)
    history = tissue.descend(3)
    assert history.stable
    energies = [sum(before for before, _ in history.extras[0]) // 2]
    for extras in history.extras:
        energies.append(energies[-1] + sum(change for _, change in extras))
    assert energies[0] == tissue.energy(tissue.labels)
    assert energies[-1] == tissue.energy(history.state)
    assert all(later <= earlier for earlier, later in zip(energies[:-1], energies[1:], strict=True))
    assert energies[-1] < energies[0]


@pytest.mark.parametrize("field", [0.0, 1.5])
def test_descend_block__single_spot_is_the_brute_force_minimum(field):
    tissue = Tissue(1, max_cells=5, seed=2, field=field)
    found = tissue.descend(1).state
    best = min(
        (np.array(labels, np.int16) for labels in product(tissue.cache.candidates.types[0], repeat=5)),
        key=tissue.energy,
    )
    assert tissue.energy(found) == tissue.energy(best)


@pytest.mark.parametrize("max_cells", [3, 8])
def test_descend_block__spots_that_rest_would_not_have_changed(max_cells):
    tissue = Tissue(400, max_cells=max_cells, seed=11)
    (block,) = tissue.blocks(1)
    state, changes = tissue.labels[block.cells].copy(), []
    while not changes or changes[-1]:
        swept = descend_block(block, state, tissue.prior)
        state[swept.changed] = swept.labels
        changes.append(len(swept.changed))
    history = tissue.descend(4, max_sweeps=100)
    assert history.changes == changes
    assert len(changes) > 3
    assert np.array_equal(history.state[block.cells], state)


@pytest.mark.parametrize("field", [0.0, 1.5])
@pytest.mark.parametrize("max_cells", [3, 8])
def test_descend_block__same_labels_for_any_blocks(max_cells, field):
    tissue = Tissue(400, max_cells=max_cells, seed=5, field=field)
    whole = tissue.descend(1)
    for n_blocks in (2, 5, 16):
        divided = tissue.descend(n_blocks)
        assert np.array_equal(divided.state, whole.state)
        assert divided.changes == whole.changes
        totals = [
            [sum(column) for column in zip(*extra, strict=True)] for extra in (divided.extras[0], whole.extras[0])
        ]
        assert totals[0] == totals[1]


@pytest.mark.parametrize("field", [0.0, 1.5])
def test_sample_marginals__same_for_any_blocks_and_order(field):
    tissue = Tissue(200, max_cells=7, seed=6, field=field)
    whole = tissue.marginals(1)
    assert np.abs(whole.sum(axis=1) / SHARE_UNITS - 10).max() < 0.01
    for n_blocks in (2, 5, 16):
        assert np.array_equal(tissue.marginals(n_blocks, reverse=n_blocks == 5), whole)


@pytest.mark.parametrize("field", [0.0, 1.5])
@pytest.mark.parametrize("max_cells", [2, 6])
def test_sample_marginals__exact_enumeration(max_cells, field):
    tissue = Tissue(3 if max_cells == 2 else 1, max_cells=max_cells, slots=3, scale=0.7, seed=8, field=field)
    options = [tissue.cache.candidates.types[s] for s in tissue.spot]
    probability = np.zeros((len(options), 3))
    for slots in product(range(3), repeat=len(options)):
        labels = np.array([types[s] for types, s in zip(options, slots, strict=True)], np.int16)
        weight = np.exp(-tissue.energy(labels) * QUANTUM)
        probability[np.arange(len(options)), slots] += weight
    probability /= probability.sum(1, keepdims=True)
    found = tissue.marginals(1, burn_in=20, kept=6000) / 6000 / SHARE_UNITS
    assert np.abs(found - probability).max() < 0.03


@pytest.mark.parametrize("field", [0.0, 1.5])
def test_margins__gap_written_out(field):
    tissue = Tissue(30, seed=9, field=field)
    labels = tissue.descend(1).state
    (block,) = tissue.blocks(1)
    gaps = margins(block, labels[block.cells], tissue.prior)
    assert own_cells(block).all()
    for cell in range(0, len(labels), 7):
        others = []
        for t in tissue.cache.candidates.types[tissue.spot[cell]]:
            changed = labels.copy()
            changed[cell] = t
            if t != labels[cell]:
                others.append(tissue.energy(changed))
        assert gaps[cell] == pytest.approx((min(others) - tissue.energy(labels)) * QUANTUM)
        assert gaps[cell] >= 0
