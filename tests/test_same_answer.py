"""The result depends on data, options and seed; never on how the work was divided."""

from __future__ import annotations

from pathlib import Path

from tests import small_study
from tests.conftest import Finished

OTHER_DIVISION = {
    "segment.tile": 1024,
    "identify.n_blocks": 4,
    "identify.batch_spots": 7,
    "decompose.rows_per_shard": 32,
    "train.checkpoint_every_steps": 70,
}


def test_run__same_hashes_for_another_division_by_one_worker(finished: Finished, tmp_path: Path) -> None:
    small_study.run(finished.study, tmp_path, "--workers", "1", "--until", "decompose", settings=OTHER_DIVISION)
    assert small_study.hashes(tmp_path) == small_study.hashes(finished.output)
