"""Signatures adapted to a section: one step written out, keyed thinning, gain only where something is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.celltypes.adaptation import (
    SpotSample,
    adapt_signatures,
    held_out_gain,
    is_worth_adapting,
    shared_counts,
    thin_by_half,
)
from spatialscope_dist.celltypes.likelihood import likelihood_table
from spatialscope_dist.celltypes.platform_match import match_platforms
from spatialscope_dist.celltypes.section_model import fit_section_model
from spatialscope_dist.randomness import spot_keys

KEYS = spot_keys("section", [f"spot{i}" for i in range(400)])


def _section(*, deviation, n_spots=400, n_genes=60, n_types=4, seed=0):
    """Return a sample of spots, and the signatures a reference of another technology shows."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.full(n_genes, 0.3), n_types) + 1e-4
    shown = true * np.exp(rng.normal(0, deviation, true.shape))
    weights = rng.dirichlet(np.full(n_types, 0.5), n_spots)
    counts = rng.poisson(600 * weights @ true * np.exp(rng.normal(0, 0.3, (n_spots, n_genes))))
    return SpotSample(counts, counts.sum(1), KEYS[:n_spots]), shown, true


def test_shared_counts__written_out():
    rng = np.random.default_rng(1)
    counts, exposure = rng.poisson(5, (3, 4)).astype(float), rng.gamma(1, 10, (3, 2))
    exposure[1, 0], profiles, shape = 0.0, rng.dirichlet(np.ones(4), 2).T, 2.5
    given, seen = shared_counts(counts, exposure, profiles, shape)
    for gene in range(4):
        for k in range(2):
            expected, exposed = 0.0, 0.0
            for i in range(3):
                rate = sum(exposure[i, j] * profiles[gene, j] for j in range(2))
                expected += counts[i, gene] * exposure[i, k] * profiles[gene, k] / rate
                exposed += exposure[i, k] * (shape + counts[i, gene]) / (shape + rate)
            assert given[gene, k] == pytest.approx(expected, rel=1e-6)
            assert seen[gene, k] == pytest.approx(exposed, rel=1e-6)


def test_thin_by_half__keyed_binomial_halves():
    counts = np.tile([0, 1, 7, 32, 33, 300], (400, 1))
    kept = thin_by_half(counts, KEYS)
    assert ((kept >= 0) & (kept <= counts)).all()
    assert kept[:, 5].mean() == pytest.approx(150, abs=3 * np.sqrt(75 / 400))
    assert kept[:, 5].var() == pytest.approx(75, rel=0.25)
    assert np.array_equal(thin_by_half(counts[5:9], KEYS[5:9]), kept[5:9])


def test_adapt_signatures__nearer_to_the_truth_and_stiff_ones_stay():
    sample, shown, true = _section(deviation=0.8)
    table = likelihood_table(0.5, max_count=int(sample.counts.max()))
    adapted = adapt_signatures(sample, shown, table, stiffness=2.0)
    telling = true > 2e-3

    def distance(profiles):
        logs = np.log(profiles / profiles.sum(1, keepdims=True))[telling]
        return np.std(logs - np.log(true)[telling])

    assert distance(adapted) < 0.5 * distance(shown)
    stiff = adapt_signatures(sample, shown, table, stiffness=1e9)
    assert np.abs(stiff / shown - 1).max() < 1e-3


def test_held_out_gain__only_where_the_reference_is_wrong():
    for deviation, helps in ((0.8, True), (0.0, False)):
        sample, shown, _ = _section(deviation=deviation)
        table = likelihood_table(0.5, max_count=int(sample.counts.max()))
        assert is_worth_adapting(*held_out_gain(sample, shown, table, stiffness=2.0)) is helps


def test_held_out_gain__few_spots_tell_nothing():
    sample, shown, _ = _section(deviation=0.8, n_spots=20)
    table = likelihood_table(0.5, max_count=int(sample.counts.max()))
    assert not is_worth_adapting(*held_out_gain(sample, shown, table, stiffness=2.0))


def test_match_platforms__spread_decides_unless_told():
    totals = np.full(200, 1000)
    alike, unlike = np.exp(np.random.default_rng(2).normal(0, 1, (2, 200)) * [[0.2], [1.1]])
    assert match_platforms(alike, totals, platform="auto").same
    assert not match_platforms(unlike, totals, platform="auto").same
    assert match_platforms(unlike, totals, platform="same").same
    assert match_platforms(alike, totals, platform="auto").stiffness == np.inf
    assert 1 < match_platforms(unlike, totals, platform="auto").stiffness < 5
    assert match_platforms(unlike, np.full(200, 3), platform="auto").spread == 0


def test_fit_section_model__adapts_by_itself_or_as_told():
    sample, shown, _ = _section(deviation=0.8)
    match = match_platforms(np.exp(np.random.default_rng(3).normal(0, 1.1, 200)), np.full(200, 1000), platform="auto")
    ways = {"kind": "heavy_tailed", "max_count": int(sample.counts.max())}
    auto = fit_section_model(sample, shown, match, adapt="auto", **ways)
    off = fit_section_model(sample, shown, match, adapt="off", **ways)
    told = fit_section_model(sample, shown, match, adapt=match.stiffness, **ways)
    assert auto.gain > 2 * auto.gain_error
    assert np.array_equal(auto.profiles, told.profiles)
    assert told.gain is None
    assert np.array_equal(off.profiles, shown)
    assert auto.table.overdispersion < off.table.overdispersion
