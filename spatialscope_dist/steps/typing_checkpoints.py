"""Where the sweeps of an item stand, kept on disk so that a killed run goes on from there.

Two files, each replaced whole: of the descent (ICM), whose last state is also its result, and of the
samples (Gibbs). They hold states of all cells, so they serve any division into blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.engine.halo import SweepHistory
from spatialscope_dist.steps.typing_fit import load, save

if TYPE_CHECKING:
    from spatialscope_dist.celltypes.marginals import Samples


def read_descent(folder: Path, labels: NDArray[np.int16]) -> SweepHistory:
    """Return the history that was kept last, one that begins at `labels` when none was."""
    path = folder / "descent.npz"
    if not path.exists():
        return SweepHistory(labels)
    kept = load(path)
    about = json.loads(str(kept["about"]))
    return SweepHistory(kept["state"], about["changes"], about["extras"], kept["touched"])


def keep_descent(folder: Path, history: SweepHistory) -> None:
    """Write the history in the place of the one that was kept before."""
    about = json.dumps({"changes": history.changes, "extras": history.extras})
    save(folder / "descent.npz", state=history.state, touched=history.touched, about=np.array(about))


def read_samples(folder: Path, labels: NDArray[np.int16], *, n_slots: int) -> Samples:
    """Return the chain that was kept last, one that begins at `labels` when none was."""
    from spatialscope_dist.celltypes.marginals import Samples

    path = folder / "samples.npz"
    if not path.exists():
        return Samples.begin(labels, n_slots=n_slots)
    kept = load(path)
    return Samples(kept["labels"], kept["sums"], int(kept["sweeps"]))


def keep_samples(folder: Path, samples: Samples) -> None:
    """Write the chain in the place of the one that was kept before."""
    save(folder / "samples.npz", labels=samples.labels, sums=samples.sums, sweeps=np.int64(samples.sweeps))
