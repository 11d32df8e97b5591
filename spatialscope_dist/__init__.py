"""spatialscope_dist: single-cell, whole-transcriptome maps from spatial transcriptomics sections."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("spatialscope_dist")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_PUBLIC = {
    "Study": "spatialscope_dist.study",
    "load_study": "spatialscope_dist.study",
    "check": "spatialscope_dist.pipeline",
    "plan": "spatialscope_dist.pipeline",
    "run": "spatialscope_dist.pipeline",
    "status": "spatialscope_dist.pipeline",
    "BadInput": "spatialscope_dist.errors",
}

__all__ = ["BadInput", "Study", "__version__", "check", "load_study", "plan", "run", "status"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spatialscope_dist' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
