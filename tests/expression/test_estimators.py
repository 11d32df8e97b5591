from __future__ import annotations

from dataclasses import replace

import numpy as np

from spatialscope_dist.expression.allocation import Estimate
from spatialscope_dist.expression.baselines import BASELINES
from spatialscope_dist.expression.estimators import BLENDS, blend, candidates, estimate_all, estimate_spots
from spatialscope_dist.options import DecomposeOptions

OPTIONS = DecomposeOptions(count_chains=2, count_sweeps=2, count_burn_in=0, n_steps=2, n_chains=2)


def test_candidates__only_what_the_networks_allow(model):
    assert candidates(model) == [*BASELINES, "counts", "score", *BLENDS]
    without = replace(model, networks={"counts": model.networks["counts"]})
    assert candidates(without) == [*BASELINES, "counts", "counts+shrinkage", "counts+proportional"]


def test_estimate_all__same_as_one_by_one(spots, model):
    names = candidates(model)
    together = estimate_all(spots, model, OPTIONS, names=names)
    for name in names:
        assert np.array_equal(together[name], estimate_spots(spots, model, OPTIONS, name=name).mean)


def test_blend__lines_up_equal_cells_and_widens_where_parts_differ(spots):
    pair = replace(
        spots, counts=spots.counts[:1], first=np.array([0, 2]), types=np.zeros(2, np.int64), keys=spots.keys[:1]
    )
    one, other = np.eye(2, 37, dtype=np.float32), np.ones((2, 37), np.float32)
    swapped = blend({"a": Estimate(one, 0 * one), "b": Estimate(one[::-1], 0 * one)}, pair, name="a+b")
    assert np.array_equal(swapped.mean, one)
    assert (swapped.sd == 0).all()
    mixed = blend({"a": Estimate(0 * one, other), "b": Estimate(2 * other, other)}, pair, name="a+b")
    assert np.allclose(mixed.mean, 1)
    assert np.allclose(mixed.sd, 2**0.5)
