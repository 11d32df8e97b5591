from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spatialscope_dist.report.borders import border_block
from spatialscope_dist.report.charts import draw_costs, draw_energy, draw_interactions
from spatialscope_dist.report.contents import build_page
from spatialscope_dist.report.drawing import extent_of, figure, map_axes, round_length, to_png
from spatialscope_dist.report.maps import draw_cells, draw_composition, draw_marker, draw_nuclei, draw_slide
from spatialscope_dist.report.numbers import duration
from spatialscope_dist.report.page import Block, Page, Picture, Table, render_page
from spatialscope_dist.report.palette import COLOURS, OTHER_COLOUR, choose_styles, with_legend
from spatialscope_dist.report.training import draw_training
from spatialscope_dist.report.views import SectionView, StageView, StudyView
from spatialscope_dist.simulate.settings import TYPE_NAMES
from spatialscope_dist.stages.report import average_scores, build_report, stage_views
from spatialscope_dist.steps.section_view import Limits, MarkerChoice, choose_marker, view_section
from spatialscope_dist.steps.truth import _cell_blocks, score_section
from spatialscope_dist.store.arrays import write_array
from spatialscope_dist.store.documents import write_json
from spatialscope_dist.store.frames import read_frame
from spatialscope_dist.store.ledger import Entry, Ledger
from tests.report.oracle import Oracle, write_oracle
from tests.small_study import COMMAND

LIMITS = Limits(max_image_px=800, max_points=40000, seed=0)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return write_oracle(tmp_path_factory.mktemp("oracle"), n_spots=40)


@pytest.fixture(scope="module")
def section(oracle: Oracle) -> SectionView:
    return view_section(oracle.folders, limits=LIMITS, marker=None)


def picture_size(picture: Picture) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture.png)).size


def write_ledger(folder: Path) -> Ledger:
    ledger = Ledger(folder)
    cost = {"seconds": 3.0, "cpu_seconds": 2.0, "peak_rss_bytes": 1 << 29, "projected_peak_bytes": 1 << 30}
    ledger.commit(Entry("k", "ingest", "demo", 1, {}, 3, 3, cost=cost))
    ledger.commit(Entry("k", "identify", "demo", 1, {}, 2, 3, failed={"spot00007": "no finite weights"}, cost=cost))
    ledger.skip("interact", "study", "no ligand-receptor pairs: give [interact] pairs = FILE.csv")
    return ledger


def build(oracle: Oracle, folder: Path, **missing: None) -> tuple[dict[str, Any], str]:
    shared = {"reference": oracle.folders.reference, "train": None, "interact": None}
    shared |= {"variable": None, "differential": None}
    folders = dataclasses.replace(oracle.folders, **missing)
    page = folder / "report" / "index.html"
    done = build_report(
        about={
            "name": "demo",
            "seed": 5,
            "options": {"identify": {"labels": "composition"}},
            "marker": None,
            "embedding": "pca",
            "reference": "reference.h5ad",
        },
        sections=[folders],
        limits=LIMITS,
        shared=shared,
        ledger=write_ledger(folder / "ledger").root,
        page=page,
    )
    return done, page.read_text(encoding="utf-8")


def test_build_report__stands_alone_and_says_everything(oracle: Oracle, tmp_path: Path) -> None:
    done, text = build(oracle, tmp_path)
    without_pictures = re.sub(r'src="data:image/png;base64,[^"]+"', "", text)
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", without_pictures)
    assert text.count('src="data:image/png;base64,') >= 8
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == text.count("<img ")
    for words in (
        "Accuracy against the truth",
        "Cell types in space",
        "One gene before and after",
        "which estimator, and why",
        "Best on rehearsed spots.",
        "the looks of nuclei help to type them: 0.2 nats.",
        "no finite weights",
        "no ligand-receptor pairs",
        "0.50 GiB",
        "composition",
        "numpy",
    ):
        assert words in without_pictures, words
    assert "nobody measured" not in text
    assert done["accuracy"]["nuclei_found"] == 1
    assert done["accuracy"]["cell_type_accuracy"] == 1


@pytest.mark.parametrize(
    "missing",
    [
        {"segment": None},
        {"decompose": None},
        {"identify": None, "decompose": None},
        {"segment": None, "identify": None, "decompose": None, "reference": None},
    ],
)
def test_build_report__tolerates_missing_stages(oracle: Oracle, tmp_path: Path, missing: dict[str, None]) -> None:
    _, text = build(oracle, tmp_path, **missing)
    assert "</html>" in text
    assert ("One gene before and after" in text) == ("decompose" not in missing)
    assert ("Nuclei found" in text or "nuclei in a field" in text) == ("segment" not in missing)


def test_view_section__places_match_the_image(oracle: Oracle, section: SectionView) -> None:
    assert section.crop is not None
    assert section.overview is not None
    image, simulated = section.crop.image, oracle.simulated
    top, left = (round(edge / image.pixel_size_um) for edge in image.corner_um)
    height, width = image.pixels.shape[:2]
    part = np.moveaxis(simulated.image[:, top : top + height, left : left + width], 0, -1)
    np.testing.assert_array_equal(image.pixels, part)
    centres = np.array([outline.mean(axis=0) for outline in section.crop.outlines])
    rows = np.rint(centres / image.pixel_size_um).astype(int) - [top, left]
    inside = ((rows >= 0) & (rows < [height, width])).all(axis=1)
    assert image.pixels[rows[inside, 0], rows[inside, 1], 0].mean() < image.pixels[..., 0].mean() - 40
    truth = {int(n): name for n, name in zip(*_nuclei_types(oracle), strict=True)}
    assert {kind for kind in section.crop.types if kind} <= set(truth.values())


def _nuclei_types(oracle: Oracle) -> tuple[list[int], list[str]]:
    assert oracle.folders.identify is not None
    cells = read_frame(oracle.folders.identify / "cells.parquet")
    return cells["nucleus_id"].tolist(), cells["cell_type"].tolist()


def test_view_section__large_sections_are_subsampled_the_same_way_each_time(oracle: Oracle) -> None:
    few = Limits(max_image_px=300, max_points=25, seed=0)
    first, second = (view_section(oracle.folders, limits=few, marker=None) for _ in range(2))
    assert first.cells is not None
    assert second.cells is not None
    assert len(first.spots) == 25
    assert len(first.cells) == 25 < first.n_cells
    pd.testing.assert_frame_equal(first.cells, second.cells)
    assert first.proportions is not None
    assert first.proportions.shape == (25, len(TYPE_NAMES))
    assert first.overview is not None
    assert max(first.overview.pixels.shape[:2]) <= 301
    styles = choose_styles(first.type_counts, TYPE_NAMES)
    assert "a random subset" in draw_cells(first, styles).caption


def test_view_section__marker_is_the_asked_gene_or_the_best_of_the_commonest_type(
    oracle: Oracle, section: SectionView
) -> None:
    assert section.marker is not None
    assert "a marker of" in section.marker.reason
    typed = np.isfinite(section.marker.predicted)
    assert np.corrcoef(section.marker.predicted[typed], section.marker.spots[typed])[0, 1] > 0.8
    assert section.marker.predicted[typed].sum() == pytest.approx(section.marker.spots.sum(), rel=0.3)
    asked = view_section(oracle.folders, limits=LIMITS, marker="Gene0042")
    assert asked.marker is not None
    assert asked.marker.gene == "Gene0042"
    column = oracle.simulated.genes.names.index("Gene0042")
    np.testing.assert_array_equal(asked.marker.spots, oracle.simulated.spot_counts[:, column].toarray().ravel())
    assert asked.marker.reason == "chosen in the options"


def test_choose_marker__specific_and_well_measured_of_a_frequent_type(tmp_path: Path) -> None:
    genes = ["housekeeping", "weak", "good", "rare", "other"]
    profiles = np.array([[9.0, 1.0, 4.0, 0.0, 1.0], [8.0, 0.0, 1.0, 0.0, 9.0], [9.0, 0.0, 0.0, 5.0, 0.0]])
    write_array(tmp_path / "signatures.zarr", profiles, axes=("type", "gene"))
    write_json(tmp_path / "genes.json", genes)
    write_json(tmp_path / "types.json", ["A", "B", "C"])
    write_json(tmp_path / "panel.json", {"genes": genes, "markers": {"A": genes[:3], "B": ["other"], "C": ["rare"]}})
    totals = {"housekeeping": 900.0, "weak": 4.0, "good": 100.0, "rare": 800.0, "other": 0.0}
    cells = {"A": 600, "B": 390, "C": 10}
    assert choose_marker(tmp_path, cells, totals) == MarkerChoice("good", "A", 0.8)
    assert choose_marker(tmp_path, cells, {"weak": 4.0, "housekeeping": 900.0}) == MarkerChoice("weak", "A", 1.0)
    assert choose_marker(tmp_path, {"C": 3}, totals) == MarkerChoice("rare", "C", 1.0)
    assert choose_marker(tmp_path, cells, {"other": 0.0}) is None
    assert choose_marker(tmp_path, cells, {}) is None


def test_maps__are_pictures_with_captions(section: SectionView) -> None:
    styles = choose_styles(section.type_counts, TYPE_NAMES)
    assert section.crop is not None
    pictures = [
        draw_slide(section),
        draw_nuclei(section.crop, styles, name="demo", spot_diameter_um=55.0),
        draw_cells(section, styles),
        draw_composition(section, TYPE_NAMES, styles),
        draw_marker(section),
    ]
    assert section.proportions is not None
    assert f"{np.percentile(section.proportions, 99):.2f}" in pictures[3].caption
    assert "field of 248 × 248 µm" in pictures[1].caption
    for picture in pictures:
        width, height = picture_size(picture)
        assert 500 < width < 2000
        assert 200 < height < 2000
        assert "demo" in picture.caption


def test_map_axes__y_runs_down_and_scale_is_equal() -> None:
    with figure(1, 1, size=(4, 4)) as (drawn, axes):
        map_axes(axes[0], extent_of(np.array([[0.0, 0.0], [100.0, 300.0]]), 10.0))
        assert axes[0].get_ylim() == (110.0, -10.0)
        assert axes[0].get_xlim() == (-10.0, 310.0)
        assert axes[0].get_aspect() == 1
        assert [text.get_text() for text in axes[0].texts] == ["50 µm"]
        assert to_png(drawn) == to_png(drawn)


@pytest.mark.parametrize(("length", "expected"), [(64, 50), (50, 50), (249, 200), (1300, 1000), (0.7, 0.5)])
def test_round_length__one_two_five(length: float, expected: float) -> None:
    assert round_length(length) == pytest.approx(expected)


def test_choose_styles__frequent_types_first_then_markers_then_grey() -> None:
    names = [f"type{number:02d}" for number in range(30)]
    styles = choose_styles({name: 30 - number for number, name in enumerate(names)}, names)
    assert [styles[name].colour for name in names[:8]] == list(COLOURS)
    assert len({styles[name].colour for name in names[:8]}) == 8
    assert styles["type00"].marker != styles["type08"].marker
    assert len({styles[name].colour for name in names[:24]}) == 24
    assert styles["type29"].colour == OTHER_COLOUR
    assert with_legend(styles) == names[:24]


def test_charts__are_pictures() -> None:
    training = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "held_out": [3.1, np.nan, 1.2]})
    spots = pd.DataFrame({"y_um": [0.0], "x_um": [0.0], "total_counts": [1.0]})
    view = SectionView("a", 55.0, 1, spots, energy=[3.0, 2.0, 2.0])
    cost = {"seconds": 1.0, "peak_rss_bytes": 1 << 28, "projected_peak_bytes": 1 << 29}
    table = pd.DataFrame(
        {
            "sender": ["a", "b"],
            "receiver": ["b", "a"],
            "ligand": ["L", "L"],
            "receptor": ["R", "S"],
            "log2fc": [0.4, -0.2],
            "p_adjusted": [0.01, 1.0],
        }
    )
    pictures = [
        draw_training({"counts": training, "score": training}),
        draw_energy([view]),
        draw_costs([StageView("ingest", 1, 1, cost, {}, {})]),
        draw_interactions(table),
    ]
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)


def test_build_page__study_with_nothing_done() -> None:
    study = StudyView("empty", 0, "0.1.0", [], [], [StageView("ingest", 0, 0, {}, {}, {"a": "no counts"})])
    text = render_page(build_page(study))
    assert "no counts" in text
    assert "None: every spot" in text


def test_render_page__escapes_names_and_aligns_numbers() -> None:
    table = Table(["gene", "p"], [["<b>", "0.01"], ["x & y", "–"]])
    text = render_page(Page("t <i>", "s", [("1", "section")], [Block("b", ["a < b"], [table])]))
    assert "&lt;b&gt;" in text
    assert "<i>" not in text
    assert '<td class="number">0.01</td>' in text
    assert table.numeric == [False, True]


def test_score_section__no_truth_no_scores(oracle: Oracle, tmp_path: Path) -> None:
    assert oracle.folders.reference is not None
    without = dataclasses.replace(oracle.folders, ingest=tmp_path)
    assert score_section(without, model=None) == {}


def test_cell_blocks__hold_whole_spots() -> None:
    spots = np.repeat(np.arange(700), np.random.default_rng(0).integers(1, 6, 700))
    blocks = _cell_blocks(spots)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == len(spots)
    for (_, end), (start, _) in zip(blocks[:-1], blocks[1:], strict=True):
        assert end == start
        assert spots[end - 1] != spots[start]


def test_average_scores__means_over_sections_and_sums_of_cells() -> None:
    scores = [{"nuclei_found": 1.0, "cells_scored": 5.0}, {"nuclei_found": 0.5, "cells_scored": 7.0}, {}]
    assert average_scores(scores) == {"nuclei_found": 0.75, "cells_scored": 12.0}


def test_stage_views__join_the_items_of_a_stage(tmp_path: Path) -> None:
    ledger = write_ledger(tmp_path)
    ledger.commit(Entry("k", "ingest", "other", 1, {}, 1, 1, cost={"seconds": 4.0, "peak_rss_bytes": 5}))
    views = {view.name: view for view in stage_views(ledger)}
    assert views["ingest"].cost["seconds"] == 7
    assert views["ingest"].cost["peak_rss_bytes"] == 1 << 29
    assert views["ingest"].done == 4
    assert views["identify"].failed == {"demo: spot00007": "no finite weights"}
    assert "study" in views["interact"].skipped


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (75, "75 s"), (600, "10.0 min"), (9000, "2.5 h")])
def test_duration__for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_finished_run__report_and_accuracy(finished: Any) -> None:
    accuracy = finished.summary["accuracy"]
    assert set(accuracy) >= {
        "nuclei_found",
        "nuclei_false",
        "cell_type_accuracy",
        "composition_error",
        "expression_cosine",
        "type_mean_cosine",
        "proportional_cosine",
    }
    assert all(0 <= value <= 1 for name, value in accuracy.items() if name != "cells_scored")
    text = Path(finished.summary["report"]).read_text(encoding="utf-8")
    for words in (
        "Ligand-receptor interactions",
        "generated and held-out cells",
        "decomposed cells by type",
        "area under the curve",
        "How the networks learnt",
    ):
        assert words in text, words
    assert json.loads(json.dumps(accuracy)) == accuracy
    quality = finished.summary["generative_quality"]
    assert 0.4 < quality["auc"] <= 1
    assert json.loads((finished.output / "model" / "model.json").read_text())["training"]["quality"] == quality
    command = [COMMAND, "status", str(finished.study), "--output", str(finished.output)]
    status = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout
    assert json.loads(status)["stages"]["train"]["metrics"]["study"]["quality"] == quality
    assert "classifier" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_border_block__a_row_per_segmented_section() -> None:

    audit = {"straight_edge_score": 0.98, "straight_edge_error": 0.05, "nuclei_crossing_cores": 12}
    audit |= {"shifted_agreement": None, "shifted_nuclei": 0}
    summary = {
        "border_audit": audit,
        "windows": 9,
        "windows_predicted": 4,
        "nuclei_beyond_halo": 1,
        "windows_widened": 2,
    }
    spots = pd.DataFrame({"y_um": [0.0], "x_um": [0.0], "total_counts": [3]})
    sections = [SectionView("a", 55.0, 1, spots, segment=summary), SectionView("b", 55.0, 1, spots)]
    (block,) = border_block(StudyView("s", 0, "0.1.0", [], sections, []))
    (row,) = block.tables[0].rows
    assert row == ["a", "4 of 9", "12", "0.98 ± 0.05", "–", "1 (2 windows looked at again)"]
