"""Image and model that do not go together are refused by `check`, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from spatialscope_dist.readers.checks import study_problems
from spatialscope_dist.study import load_study
from tests.small_study import write_small_study


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with an RGB image."""
    return write_small_study(tmp_path_factory.mktemp("study"), n_spots=7)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["segment.model=2D_versatile_fluo"], "3 channels; expected 1"),
        (["segment.channel=3"], "3 channels; expected a channel 3"),
        (["segment.model=2D_versatile_fluo", "segment.channel=2"], None),
        (["segment.model=2D_versatile_he"], None),
        (["segment.model=/no/such/model"], None),  # told by the check of the model
    ],
)
def test_study_problems__channels_of_image_and_model(study_file: Path, settings: list[str], found: str | None) -> None:
    problems, _ = study_problems(load_study(study_file, settings=settings))
    told = [str(problem) for problem in problems if "channels" in str(problem)]
    assert len(told) == (found is not None)
    assert found is None or found in told[0]
