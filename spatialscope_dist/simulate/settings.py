"""Settings of the simulated study, fixed before any method is scored on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Cell types in the order of the composition tables; the tree is (excitatory, inhibitory), (glia), (vessel, immune).
TYPE_NAMES = (
    "astrocyte",
    "endothelial",
    "excitatory_deep",
    "excitatory_upper",
    "inhibitory_pvalb",
    "inhibitory_sst",
    "microglia",
    "oligodendrocyte",
)

#: Ancestors of each type in the similarity tree: (branch, group).
TYPE_TREE = (
    ("glia", "macroglia"),
    ("other", "vessel"),
    ("neuron", "excitatory"),
    ("neuron", "excitatory"),
    ("neuron", "inhibitory"),
    ("neuron", "inhibitory"),
    ("other", "immune"),
    ("glia", "macroglia"),
)

#: Composition of each layer, top to bottom: (layers, types), rows sum to 1.
LAYER_COMPOSITION = (
    (0.46, 0.16, 0.02, 0.10, 0.04, 0.06, 0.12, 0.04),
    (0.14, 0.08, 0.04, 0.48, 0.09, 0.08, 0.05, 0.04),
    (0.12, 0.08, 0.26, 0.22, 0.13, 0.08, 0.05, 0.06),
    (0.12, 0.07, 0.48, 0.03, 0.07, 0.11, 0.05, 0.07),
    (0.16, 0.08, 0.06, 0.01, 0.02, 0.03, 0.08, 0.56),
)

#: Mean radius of each type's nucleus in µm, and mean RNA content relative to the average cell.
NUCLEUS_RADIUS_UM = (3.6, 3.0, 4.8, 4.4, 4.1, 4.1, 2.8, 3.2)
RELATIVE_SIZE = (0.8, 0.6, 1.7, 1.5, 1.3, 1.2, 0.5, 0.7)

#: Haematoxylin of each type's nucleus relative to the average one, where types differ in it: neurons are pale.
NUCLEUS_STAIN = (0.85, 1.05, 0.7, 0.75, 0.85, 0.95, 1.3, 1.2)


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of one simulated study; every value is fixed up front, with its reason.

    Parameters
    ----------
    n_spots
        Spots of the section. Spots are 55 µm wide on a hexagonal lattice of 100 µm pitch (10x Visium).
    spot_diameter_um, pitch_um
        Geometry of the array, µm.
    pixel_size_um
        µm per pixel of the image (20x objective).
    glass_border_um
        White glass around the tissue, µm.
    cells_per_mm2
        Density of nuclei; 2,300/mm² gives about 5 cells per spot (1-10), as in cortex sections of 10 µm.
    nucleus_radius_cv, nucleus_aspect_max
        Spread of nucleus radii inside a type; largest ratio of the axes.
    nucleus_looks
        What types differ in: the size of their nuclei, size and stain, or, as a control, in size and stain but with
        every nucleus looking like one of a random cell of the section.
    nucleus_gap
        Two nuclei are never closer than this multiple of the sum of their mean radii (sections overlap a little).
    layer_blur
        Softness of the layers' borders, in layer thicknesses.
    clump_log_odds, clump_length_um
        Strength (sd of log odds) and length of local clumping of types.
    n_genes
        Genes measured by both technologies.
    base_log_sd, branch_log_sd, group_log_sd, type_log_sd
        Spread over genes of log expression, and of the differences between branches, groups and types of the tree.
    branch_gene_share, group_gene_share, type_gene_share
        Share of the genes that differ at each level of the tree.
    reference_library, library_log_sd
        Mean counts of an average cell on these genes in the reference; sd of log library size within a type.
    dispersion_shape
        Shape of the negative binomial (variance = mean + mean²/shape).
    programmes_per_type, programme_gene_share, programme_log_sd
        Low-rank variation within a type: expression programmes, share of genes each moves, sd of their loadings.
    programme_spatial_share, programme_length_um
        Share of the variance of programme scores that follows a smooth field, and the field's length.
    gradient_genes_per_type, gradient_log_range
        Genes of each type that follow a left-right gradient, and their log change from edge to edge.
    n_pairs, n_decoy_pairs, contact_um, pair_log_effect
        Planted ligand-receptor pairs, pairs listed but not planted, distance of contact, log increase in contact.
    capture
        Share of a cell's reference-platform counts seen by the spots.
    platform_log_sd
        sd over genes of the log platform effect between the two technologies (RCTD finds 0.3-0.7 on real pairs).
    n_reference_cells
        Cells of the reference; drawn with other proportions than the section's.
    """

    n_spots: int = 150
    spot_diameter_um: float = 55.0
    pitch_um: float = 100.0
    pixel_size_um: float = 0.5
    glass_border_um: float = 120.0
    cells_per_mm2: float = 2300.0
    nucleus_radius_cv: float = 0.12
    nucleus_aspect_max: float = 1.6
    nucleus_looks: Literal["size", "size and stain", "shuffled"] = "size"
    nucleus_gap: float = 1.05
    layer_blur: float = 0.18
    clump_log_odds: float = 0.8
    clump_length_um: float = 45.0
    n_genes: int = 500
    base_log_sd: float = 1.1
    branch_log_sd: float = 0.8
    group_log_sd: float = 0.8
    type_log_sd: float = 1.0
    branch_gene_share: float = 0.15
    group_gene_share: float = 0.12
    type_gene_share: float = 0.12
    reference_library: float = 1500.0
    library_log_sd: float = 0.35
    dispersion_shape: float = 5.0
    programmes_per_type: int = 3
    programme_gene_share: float = 0.15
    programme_log_sd: float = 0.6
    programme_spatial_share: float = 0.5
    programme_length_um: float = 250.0
    gradient_genes_per_type: int = 6
    gradient_log_range: float = 2.0
    n_pairs: int = 5
    n_decoy_pairs: int = 15
    contact_um: float = 20.0
    pair_log_effect: float = 1.1
    capture: float = 0.35
    platform_log_sd: float = 0.4
    n_reference_cells: int = 2500
