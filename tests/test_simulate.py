from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from spatialscope_dist.errors import BadInput
from spatialscope_dist.simulate import (
    Nuclei,
    SimulatedStudy,
    SimulationSettings,
    draw_histology,
    draw_labels,
    simulate,
    write_once,
    write_study,
)
from spatialscope_dist.simulate.settings import LAYER_COMPOSITION, NUCLEUS_RADIUS_UM, NUCLEUS_STAIN, TYPE_NAMES
from spatialscope_dist.simulate.tissue import layer_shares, place_spots, smooth_field, tissue_cover


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate(SimulationSettings(n_spots=40), seed=3)


def test_simulate__spot_counts_are_the_sum_of_captured_cells(study: SimulatedStudy) -> None:
    captured, total = study.cell_captured.toarray(), np.zeros(study.spot_counts.shape, dtype=np.int64)
    for cell, spot in enumerate(study.cell_spot):
        if spot >= 0:
            total[spot] += captured[cell]
    np.testing.assert_array_equal(study.spot_counts.toarray(), total)


def test_simulate__capture_never_exceeds_the_cell_and_follows_the_platform_effect(study: SimulatedStudy) -> None:
    true, seen = study.cell_counts, study.cell_captured
    assert (true - seen).min() >= 0
    share = np.asarray(seen.sum(axis=0)).ravel() / np.maximum(np.asarray(true.sum(axis=0)).ravel(), 1)
    expected = np.minimum(study.settings.capture * study.genes.platform_effect, 0.95)
    frequent = np.asarray(true.sum(axis=0)).ravel() > 2000
    assert frequent.sum() > 50
    np.testing.assert_allclose(share[frequent], expected[frequent], atol=0.05)


def test_simulate__cells_lie_in_tissue_apart_and_in_the_right_spot(study: SimulatedStudy) -> None:
    nuclei, settings = study.nuclei, study.settings
    assert (tissue_cover(nuclei.centres_um, study.spots_um, settings) > 0.5).all()
    radii = np.sqrt(nuclei.semi_axes_um.prod(axis=1))
    pairs = cKDTree(nuclei.centres_um).query_pairs(15.0, output_type="ndarray")
    gaps = np.linalg.norm(nuclei.centres_um[pairs[:, 0]] - nuclei.centres_um[pairs[:, 1]], axis=1)
    assert (gaps >= settings.nucleus_gap * (radii[pairs[:, 0]] + radii[pairs[:, 1]]) - 1e-9).all()
    for cell, spot in enumerate(study.cell_spot[:200]):
        distance = np.linalg.norm(study.spots_um - nuclei.centres_um[cell], axis=1)
        assert spot == (distance.argmin() if distance.min() <= settings.spot_diameter_um / 2 else -1)
    per_spot = np.bincount(study.cell_spot[study.cell_spot >= 0], minlength=settings.n_spots)
    assert 3 < per_spot.mean() < 7


def test_simulate__same_seed_same_bytes_other_seed_other_study(study: SimulatedStudy) -> None:
    again, other = simulate(study.settings, seed=3), simulate(study.settings, seed=4)
    assert again.image.tobytes() == study.image.tobytes()
    assert (again.spot_counts != study.spot_counts).nnz == 0
    assert (again.reference_counts != study.reference_counts).nnz == 0
    assert other.image.shape == study.image.shape
    assert (other.spot_counts != study.spot_counts).nnz > 0


def test_simulate__counts_are_overdispersed_and_types_differ(study: SimulatedStudy) -> None:
    counts, types = study.reference_counts.toarray().astype(float), study.reference_types
    members = counts[types == TYPE_NAMES.index("oligodendrocyte")]
    profile = members / members.sum(axis=1, keepdims=True) * 1000
    busy = profile.mean(axis=0) > 3
    assert np.median(profile[:, busy].var(axis=0) / profile[:, busy].mean(axis=0)) > 1.5
    means = np.stack([counts[types == kind].sum(axis=0) for kind in range(len(TYPE_NAMES))])
    log_means = np.log1p(means / means.sum(axis=1, keepdims=True) * 1e4)
    alike = np.corrcoef(log_means)
    upper, deep = TYPE_NAMES.index("excitatory_upper"), TYPE_NAMES.index("excitatory_deep")
    assert alike[upper, deep] > alike[upper, TYPE_NAMES.index("microglia")]


def test_simulate__image_is_dark_at_nuclei_pink_in_tissue_white_on_glass(study: SimulatedStudy) -> None:
    image = np.moveaxis(study.image, 0, -1).astype(float)
    pixels = np.rint(study.nuclei.centres_um / study.settings.pixel_size_um).astype(int)
    at_nuclei = image[pixels[:, 0], pixels[:, 1]].mean(axis=0)
    assert image[:60, :60].min() > 215
    assert at_nuclei[0] < 140
    assert at_nuclei[0] < at_nuclei[2]
    middle = image[image.shape[0] // 2 - 100 : image.shape[0] // 2 + 100, 500:700].mean(axis=(0, 1))
    assert middle[0] > middle[2] > middle[1]


def test_simulate__planted_pair_rises_in_contact(study: SimulatedStudy) -> None:
    pair = study.genes.pairs[0]
    column = study.genes.names.index(pair.ligand)
    sender, receiver = TYPE_NAMES.index(pair.sender), TYPE_NAMES.index(pair.receiver)
    senders = study.states.types == sender
    touching = senders & study.states.contact[:, receiver]
    share = study.cell_counts[:, column].toarray().ravel() / np.asarray(study.cell_counts.sum(axis=1)).ravel()
    assert share[touching].mean() > 1.8 * share[senders & ~touching].mean()


def test_place_spots__pitch_and_number() -> None:
    settings = SimulationSettings(n_spots=91)
    spots = place_spots(settings)
    assert spots.shape == (91, 2)
    nearest = cKDTree(spots).query(spots, k=2)[0][:, 1]
    np.testing.assert_allclose(nearest, 100.0)


def test_layer_shares__rows_sum_to_one_and_middle_of_layer_wins() -> None:
    shares = layer_shares(np.linspace(0, 1, 21), 0.18)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    n_layers = len(LAYER_COMPOSITION)
    middles = (np.arange(n_layers) + 0.5) / n_layers
    assert (layer_shares(middles, 0.18).argmax(axis=1) == np.arange(n_layers)).all()
    np.testing.assert_allclose(np.array(LAYER_COMPOSITION).sum(axis=1), 1)


def test_smooth_field__unit_variance_and_smooth() -> None:
    points = np.random.default_rng(0).uniform(0, 5000, (4000, 2))
    field = smooth_field(points, 100.0, np.random.default_rng(1))
    assert 0.8 < field.std() < 1.2
    shifted = smooth_field(points + [5.0, 0.0], 100.0, np.random.default_rng(1))
    assert np.corrcoef(field, shifted)[0, 1] > 0.99


def test_draw_labels__one_ellipse_has_its_area_and_nearest_wins() -> None:
    centres, axes = np.array([[20.0, 20.0], [20.0, 26.0]]), np.array([[6.0, 4.0], [6.0, 4.0]])
    labels = draw_labels(centres[:1], axes[:1], np.array([0.3]), shape=(80, 80), pixel_size_um=0.5)
    assert (labels == 1).sum() * 0.25 == pytest.approx(np.pi * 24, rel=0.05)
    both = draw_labels(centres, axes, np.zeros(2), shape=(80, 80), pixel_size_um=0.5)
    assert both[40, 44] == 1
    assert both[40, 49] == 2


def one_nucleus(n: int = 1, **parts: object) -> Nuclei:
    shape = {"centres_um": np.zeros((n, 2)), "semi_axes_um": np.tile([5.0, 4.0], (n, 1)), "angles_rad": np.zeros(n)}
    return Nuclei(**{**shape, "types": np.zeros(n, np.int64), "stain": np.ones(n), **parts})


def test_draw_histology__cut_nucleus_at_the_edge_and_none_at_all() -> None:
    rng = np.random.default_rng(0)
    image = draw_histology(one_nucleus(), shape=(64, 48), pixel_size_um=0.5, rng=rng)
    assert image.shape == (3, 64, 48)
    assert image[0, 0, 0] < image[0, 40, 40] - 40
    blank = draw_histology(one_nucleus(0), shape=(32, 32), pixel_size_um=0.5, rng=rng, tissue=np.zeros((32, 32)))
    assert blank.min() > 215


def test_draw_histology__more_stain_is_darker() -> None:
    inside = []
    for stain in (0.7, 1.3):
        nucleus = one_nucleus(centres_um=np.array([[16.0, 16.0]]), stain=np.array([stain]))
        image = draw_histology(nucleus, shape=(64, 64), pixel_size_um=0.5, rng=np.random.default_rng(1))
        inside.append(image[:, 28:37, 28:37].mean())
    assert inside[1] < inside[0] - 15


@pytest.mark.parametrize("looks", ["size", "size and stain", "shuffled"])
def test_simulate__looks_of_nuclei_go_with_types_unless_shuffled(looks: str) -> None:
    nuclei = simulate(SimulationSettings(n_spots=20, nucleus_looks=looks), seed=3).nuclei
    radii = np.sqrt(nuclei.semi_axes_um.prod(axis=1))
    by_size = np.corrcoef(radii, np.array(NUCLEUS_RADIUS_UM)[nuclei.types])[0, 1]
    assert by_size < 0.15 if looks == "shuffled" else by_size > 0.7
    assert (np.ptp(nuclei.stain) == 0) == (looks == "size")
    assert (nuclei.stain == np.array(NUCLEUS_STAIN)[nuclei.types]).all() == (looks == "size and stain")


def test_write_study__files_agree_with_each_other(study: SimulatedStudy, tmp_path: Path) -> None:
    import anndata
    import tifffile

    path = write_study(study, tmp_path / "demo")
    folder = path.parent
    spots, truth = anndata.read_h5ad(folder / "counts.h5ad"), anndata.read_h5ad(folder / "truth.h5ad")
    reference = anndata.read_h5ad(folder / "reference.h5ad")
    image = tifffile.imread(folder / "image.tif")
    assert image.shape == (*study.image.shape[1:], 3)
    assert set(truth.obs["spot_id"]) - {""} <= set(spots.obs_names)
    assert (spots.var_names == truth.var_names).all()
    assert set(reference.obs["cell_type"]) == set(TYPE_NAMES)
    captured = truth.layers["captured"]
    row = spots.obs_names[5]
    total = np.asarray(captured[(truth.obs["spot_id"] == row).to_numpy()].sum(axis=0)).ravel()
    np.testing.assert_array_equal(total, spots.X[5].toarray().ravel())
    np.testing.assert_allclose(truth.obsm["spatial"], truth.obs[["x_px", "y_px"]])
    assert (spots.obsm["spatial"] < [image.shape[1], image.shape[0]]).all()
    pairs = json.loads(truth.uns["planted_pairs"])
    listed = (folder / "pairs.csv").read_text().split()
    assert listed[0] == "ligand,receptor"
    assert all(f"{pair['ligand']},{pair['receptor']}" in listed for pair in pairs)
    assert 'truth = "truth.h5ad"' in path.read_text()


def test_write_once__goes_on_with_the_same_study_and_refuses_another(tmp_path: Path) -> None:
    settings = SimulationSettings(n_spots=7)
    file = write_once(settings, tmp_path, seed=1)
    before = file.stat().st_mtime_ns
    assert write_once(settings, tmp_path, seed=1).stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="seed 1.*seed 2"):
        write_once(settings, tmp_path, seed=2)
