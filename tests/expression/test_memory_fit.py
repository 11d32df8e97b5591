from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialscope_dist.expression import samplers, split_gibbs
from spatialscope_dist.expression.memory_fit import CELLS_PER_BLOCK, cells_at_once, within_memory
from spatialscope_dist.expression.samplers import failed_spots, sample_score
from spatialscope_dist.expression.split_gibbs import sample_counts
from spatialscope_dist.options import DecomposeOptions

OPTIONS = DecomposeOptions(n_steps=3, n_chains=4, count_chains=3)
SAMPLERS = {
    "score": (sample_score, samplers, "score_posterior"),
    "counts": (sample_counts, split_gibbs, "counts_posterior"),
}


@pytest.fixture(scope="module")
def crowded(spots):
    """Spots of up to five cells, and one with seventy: more than a block holds."""
    n_cells, counts = spots.n_cells.copy(), spots.counts.copy()
    n_cells[17], counts[17] = 70, 14 * counts[17]
    types = np.arange(n_cells.sum()) % 4
    return replace(spots, counts=counts, first=np.r_[0, np.cumsum(n_cells)].astype(np.int64), types=types)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample__same_bytes_for_any_batch_size(crowded, model, name):
    sample = SAMPLERS[name][0]
    small = sample(crowded, model, OPTIONS)
    for size in (1, 128, 1024):
        other = sample(crowded, model, OPTIONS, batch_cells=size)
        assert np.array_equal(other.mean, small.mean)
        assert np.array_equal(other.sd, small.sd)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample__batches_too_large_for_the_memory_are_halved_to_the_same_bytes(crowded, model, name, monkeypatch):
    sample, module, posterior = SAMPLERS[name]
    whole, work, sizes = sample(crowded, model, OPTIONS), getattr(module, posterior), []

    def on_a_small_device(spots, *arguments, **named):
        sizes.append(len(spots.types))
        if len(spots.types) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return work(spots, *arguments, **named)

    monkeypatch.setattr(module, posterior, on_a_small_device)
    halved = sample(crowded, model, OPTIONS, batch_cells=256)
    assert max(sizes) > 100
    assert np.flatnonzero(failed_spots(halved, crowded)).tolist() == [17]  # its seventy cells never fit
    others = crowded.spot != 17
    assert np.array_equal(halved.mean[others], whole.mean[others])
    assert np.array_equal(halved.sd[others], whole.sd[others])


def test_within_memory__any_other_error_is_one(spots):
    def broken(part):
        raise RuntimeError("not about memory")

    with pytest.raises(RuntimeError, match="not about memory"):
        list(within_memory(spots.alike(64), broken))


def test_within_memory__every_cell_once_and_in_its_place(spots):
    def work(part):
        if len(part.counts) > 3:
            raise MemoryError
        return part.types

    found = np.full(len(spots.types), -1)
    for cells, part, types in within_memory(spots.batches(64), work):
        assert (found[cells] == -1).all()
        assert np.array_equal(part.types, types)
        found[cells] = types
    assert np.array_equal(found, spots.types)


def test_cells_at_once__a_block_on_a_cpu():
    assert cells_at_once(torch.device("cpu"), n_genes=500, n_chains=8) == CELLS_PER_BLOCK
