"""A commented study file for the inputs a user has."""

from __future__ import annotations

import json
import os
from pathlib import Path

from spatialscope_dist.errors import BadInput, Problem

_TEMPLATE = """\
# Paths are relative to this file; ${{NAME}} is taken from the environment.
[study]
name = {name}
seed = 0                        # every random draw derives from it

[[section]]
name = {section}
{source}
platform = "visium"             # visium | slideseq | merfish
{image}
{nuclei}
# spot_diameter_um = 55.0       # Visium 55; older arrays 100
# z_um = 0.0                    # height in a stack of sections

[reference]
path = {reference}              # raw counts
cell_type = {cell_type}         # obs column
platform = "auto"               # same | different technology from the sections | auto
genes = "auto"                  # auto (markers + variable + ligands/receptors) | all | file with one gene a line

# [segment]
# model = "2D_versatile_he"     # or the path of a StarDist model folder
# [identify]
# smoothness = 3.0
# [decompose]
# sampler = "preconditioned"    # or "langevin"
# [interact]
# pairs = "ligand_receptor.csv" # columns ligand, receptor
"""


def write_study_file(file: Path, inputs: dict[str, Path | None], *, cell_type: str) -> None:
    """Write a study file for the inputs that are not None: spaceranger or counts, image, nuclei, reference.

    Raises
    ------
    BadInput
        When the file exists already, or not exactly one of spaceranger and counts is given.
    """
    if file.exists():
        raise BadInput(Problem(str(file), "a file that exists", "a new file", "Choose another name or remove it."))
    counts, spaceranger = inputs["counts"], inputs["spaceranger"]
    if (counts is None) == (spaceranger is None):
        raise BadInput(Problem("new", "both or neither", "one of --counts and --spaceranger", "Give exactly one."))
    source = counts or spaceranger
    assert source is not None
    file.parent.mkdir(parents=True, exist_ok=True)

    def relative(path: Path | None) -> str:
        return json.dumps(os.path.relpath(path, file.parent)) if path is not None else '"…"'

    def optional(key: str, path: Path | None) -> str:
        return f"{'' if path is not None else '# '}{key} = {relative(path)}"

    image = optional("image", inputs["image"])
    if inputs["image"] is not None:
        image += "\n# pixel_size_um = 0.5         # needed when the image does not say it"
    file.write_text(
        _TEMPLATE.format(
            name=json.dumps(file.parent.resolve().name or "study"),
            section=json.dumps(source.stem.replace(" ", "_")),
            source=f"{'counts' if counts is not None else 'spaceranger'} = {relative(source)}",
            image=image,
            nuclei=optional("nuclei", inputs["nuclei"]),
            reference=relative(inputs["reference"]),
            cell_type=json.dumps(cell_type),
        ),
        encoding="utf-8",
    )
