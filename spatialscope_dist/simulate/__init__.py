"""A section with known truth: tissue, image, nuclei, cell types, expression, reference.

The settings are fixed before any sampler is scored on what they produce; see
:class:`~spatialscope_dist.simulate.settings.SimulationSettings`.
"""

from spatialscope_dist.simulate.histology import draw_histology, draw_labels
from spatialscope_dist.simulate.settings import SimulationSettings
from spatialscope_dist.simulate.study import SimulatedStudy, simulate
from spatialscope_dist.simulate.tissue import Nuclei, scatter_nuclei
from spatialscope_dist.simulate.writing import write_once, write_study

__all__ = [
    "Nuclei",
    "SimulatedStudy",
    "SimulationSettings",
    "draw_histology",
    "draw_labels",
    "scatter_nuclei",
    "simulate",
    "write_once",
    "write_study",
]
