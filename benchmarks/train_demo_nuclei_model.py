"""Train the small StarDist model of `spatialscope demo` on simulated sections, and measure it on unseen ones.

    python benchmarks/train_demo_nuclei_model.py [--output spatialscope_dist/nuclei/demo_model]

It knows nothing but images of `spatialscope_dist.simulate`: for the demo and tests, never for real
tissue. A few minutes on two cores. Writes config.json, thresholds.json, weights_best.h5 and
PROVENANCE.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialscope_dist.nuclei.normalise import histogram_percentiles, intensity_histogram, normalise
from spatialscope_dist.simulate import SimulatedStudy, SimulationSettings, draw_labels, simulate

PIXEL_SIZE_UM = 0.5
TRAIN_SEEDS, HELD_OUT_SEEDS, TEST_SEEDS = range(1000, 1008), range(1100, 1102), range(1200, 1203)
EPOCHS, STEPS = 40, 50
MATCH_UM = 3.0

logger = logging.getLogger("train_demo_nuclei_model")


def example(seed: int, n_spots: int) -> tuple[NDArray[np.float32], NDArray[np.int32], SimulatedStudy]:
    """Return a normalised section image (y, x, c), its labels (y, x), and the section."""
    study = simulate(SimulationSettings(n_spots=n_spots, pixel_size_um=PIXEL_SIZE_UM), seed=seed)
    low, high = histogram_percentiles(intensity_histogram(study.image), (1.0, 99.8))
    nuclei = study.nuclei
    labels = draw_labels(
        nuclei.centres_um,
        nuclei.semi_axes_um,
        nuclei.angles_rad,
        shape=study.image.shape[1:],
        pixel_size_um=PIXEL_SIZE_UM,
    )
    return normalise(study.image, low, high).transpose(1, 2, 0), labels, study


def augment(image: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the pair turned, mirrored, and changed in brightness and noise."""
    turns = np.random.randint(4)  # noqa: NPY002 (StarDist draws its patches from the same generator)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if np.random.rand() < 0.5:  # noqa: NPY002
        image, labels = image[:, ::-1], labels[:, ::-1]
    gain, shift = np.random.uniform(0.85, 1.15), np.random.uniform(-0.1, 0.1)  # noqa: NPY002
    noise = np.random.normal(0, 0.02, image.shape)  # noqa: NPY002
    return (image * gain + shift + noise).astype(np.float32), labels.copy()


def train(folder: Path) -> Any:
    """Return the trained model, saved in `folder`."""
    import tensorflow as tf
    from stardist.models import Config2D, StarDist2D

    tf.keras.utils.set_random_seed(0)
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=3,
        unet_n_depth=2,
        unet_n_filter_base=16,
        net_conv_after_unet=64,
        train_patch_size=(160, 160),
        train_batch_size=4,
        train_learning_rate=1e-3,
        train_epochs=EPOCHS,
        train_steps_per_epoch=STEPS,
        train_reduce_lr={"factor": 0.5, "patience": 6, "min_delta": 0},
        train_tensorboard=False,
    )
    model = StarDist2D(config, name=folder.name, basedir=str(folder.parent))
    pairs = [example(seed, 19)[:2] for seed in TRAIN_SEEDS]
    held_out = [example(seed, 7)[:2] for seed in HELD_OUT_SEEDS]
    images, labels = ([pair[part] for pair in pairs] for part in (0, 1))
    validation = tuple([pair[part] for pair in held_out] for part in (0, 1))
    model.train(images, labels, validation_data=validation, augmenter=augment)
    model.optimize_thresholds(*validation)
    return model


def measure(model: Any) -> dict[str, float]:
    """Return shares of planted nuclei found and of found nuclei that are false, on unseen sections."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    planted = found = matched = 0
    for seed in TEST_SEEDS:
        image, _, study = example(seed, 37)
        _, details = model.predict_instances(image)
        centres = details["points"] * PIXEL_SIZE_UM
        distance = cdist(study.nuclei.centres_um, centres)
        rows, columns = linear_sum_assignment(np.minimum(distance, MATCH_UM))
        matched += int((distance[rows, columns] < MATCH_UM).sum())
        planted, found = planted + len(distance), found + len(centres)
    return {"planted": planted, "nuclei_found": matched / planted, "nuclei_false": 1 - matched / found}


def main() -> None:
    """Train, measure, and write the model folder."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("spatialscope_dist/nuclei/demo_model"))
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "demo_model"
        measured = measure(train(folder))
        logger.info("unseen sections: %s", measured)
        output.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "thresholds.json", "weights_best.h5"):
            shutil.copy(folder / name, output / name)
    weights = (output / "weights_best.h5").read_bytes()
    provenance = {
        "what": "small StarDist 2D model for `spatialscope demo` and tests; not for real tissue",
        "trained_on": f"spatialscope_dist.simulate, 19 spots, seeds {TRAIN_SEEDS.start}-{TRAIN_SEEDS.stop - 1}",
        "script": "benchmarks/train_demo_nuclei_model.py",
        "pixel_size_um": PIXEL_SIZE_UM,
        "normalisation": "percentiles 1 and 99.8 of the whole image, jointly over channels",
        "unseen_sections": measured,
        "sha256_weights_best.h5": hashlib.sha256(weights).hexdigest(),
    }
    (output / "PROVENANCE.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
