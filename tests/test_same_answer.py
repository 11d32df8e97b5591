"""The result depends on data, options and seed; never on how the work was divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import small_study
from tests.conftest import Finished

DIVISIONS = {
    "one worker": (["--workers", "1"], {}),
    "other tiles, blocks and batches": (
        ["--workers", "2"],
        {"segment.tile": 1024, "identify.n_blocks": 4, "identify.batch_spots": 7, "decompose.rows_per_shard": 32},
    ),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_run__same_hashes_for_another_division(finished: Finished, tmp_path: Path, name: str) -> None:
    extra, settings = DIVISIONS[name]
    small_study.run(finished.study, tmp_path, *extra, settings=settings)
    assert small_study.hashes(tmp_path) == small_study.hashes(finished.output)
