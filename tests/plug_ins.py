"""Installs a small plug-in package into a folder that a test puts on the path."""

from __future__ import annotations

from pathlib import Path


def install_plug_in(folder: Path, name: str, model: str) -> None:
    """Write a module whose `model` is the given expression, and the metadata of an installed package."""
    (folder / f"{name}_nuclei.py").write_text(
        "from scipy import ndimage\n"
        "from spatialscope_dist.nuclei.window_models import LabelModel, label_facts\n"
        f"model = {model}\n"
    )
    about = folder / f"{name}_nuclei-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-nuclei\nVersion: 1.0\n")
    group = "[spatialscope_dist.window_models]"
    (about / "entry_points.txt").write_text(f"{group}\n{name} = {name}_nuclei:model\n")
