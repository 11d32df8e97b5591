"""Options of the stages: the only home of defaults, bounds, units and their sources.

How a section is aligned is said in its own table of the study file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StageOptions(BaseModel):
    """Base of one stage's options: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestOptions(StageOptions):
    """How counts are taken in."""

    min_total_counts: int = Field(
        1, ge=0, description="spots with fewer raw counts get the status 'low_counts' and are not typed"
    )


class SegmentOptions(StageOptions):
    """Nucleus segmentation (StarDist, Schmidt et al. 2018) and assignment to spots."""

    model: str = Field(
        "2D_versatile_he",
        description="official StarDist 2D name, StarDist folder, 'demo', 'watershed', or 'plugin:NAME'",
    )
    backend: Literal["tensorflow", "torch"] = Field(
        "tensorflow", description="what runs StarDist weights; torch: the same nuclei, and GPU workers need no other"
    )
    model_pixel_size_um: float = Field(
        0.25, gt=0, description="µm per pixel the model was trained at; the image is rescaled to it"
    )
    channel: int | None = Field(
        None, ge=0, description="the one channel of the image to look at, counted from 0; None: all, as the model takes"
    )
    tile: int = Field(
        2048,
        ge=512,
        le=8192,
        description="edge of one task in model pixels; groups fixed windows, never changes the result",
    )
    prob_threshold: float | None = Field(None, gt=0, lt=1, description="None: the model's own")
    nms_threshold: float | None = Field(None, gt=0, lt=1, description="None: the model's own")
    normalise_over: Literal["image", "tissue"] = Field(
        "image", description="pixels the global percentiles are taken over"
    )
    percentiles: tuple[float, float] = Field((1.0, 99.8), description="joint over channels, exact over the whole image")
    tissue_mask: Literal["auto", "off"] = Field("auto", description="windows without tissue are not predicted")
    max_pixel_size_um: float = Field(1.0, gt=0, description="coarser images are refused")
    warn_pixel_size_um: float = Field(0.5, gt=0, description="coarser images are warned about")
    max_cells_per_spot: int | None = Field(
        None, ge=1, description="None: ceil(20·(spot diameter / 55 µm)²); dropped cells are reported"
    )


class ReferenceOptions(StageOptions):
    """Single-cell reference: signatures and gene panel."""

    n_variable_genes: int = Field(1000, ge=0, description="highly variable genes in the panel of genes = 'auto'")
    n_markers_per_type: int = Field(30, ge=0, description="marker genes per type in the panel of genes = 'auto'")
    min_cells_warn: int = Field(25, ge=2, description="types with fewer cells are warned about (RCTD)")


class IdentifyOptions(StageOptions):
    """Cell type identification, SpatialScope eq. (3)-(6), with RCTD's platform effect."""

    smoothness: float = Field(2.0, ge=0, description="Potts ν; measured best 2-3, the paper uses 10")
    potts: Literal["mean", "sum"] = Field(
        "mean",
        description="what ν multiplies: the pairs of different neighbours, over the mean number of neighbours as the "
        "authors' program does, or their sum as the paper writes it (10 times stronger)",
    )
    n_neighbors: int = Field(10, ge=1, description="mean degree of the radius graph of cells")
    z_scale: float = Field(
        1.0,
        ge=0,
        description="micrometre of depth counted as this many in the plane when neighbours are sought across sections",
    )
    likelihood: Literal["heavy_tailed", "normal"] = Field(
        "heavy_tailed", description="density of ε in the Poisson-lognormal model"
    )
    shrinkage_umi: float = Field(300.0, ge=0, description="UMI of the mean profile mixed into each signature")
    platform_effect: Literal["section", "shared"] = Field(
        "section", description="of each section, or one of all sections of the study (same chemistry)"
    )
    weights_on: Literal["cpu", "gpu"] = Field(
        "cpu", description="gpu: weights by torch where a worker has a GPU; equal within 1e-6"
    )
    adapt: Literal["auto", "off"] | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description="signatures follow the section: κ = 1/τ², τ the expected type-specific deviation; auto: from the "
        "spread of the platform effect, where held-out spots are then explained better",
    )
    rna_per_cell: Literal["auto", "reference", "equal"] = Field(
        "auto", description="RNA of a cell by type, from the reference or equal; auto: reference when of one technology"
    )
    temper: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="power of the likelihood; auto: 1, or 0.6 when the technologies differ"
    )
    weights_field: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="multiple of −log(w + 0.02) added for each label; auto: 0, or 1 when the technologies differ",
    )
    weights_in_proportions: float = Field(
        0.5, ge=0, le=1, description="share of RCTD's weights in the soft proportions; measured best 0.3-0.5"
    )
    rctd_compat: bool = Field(
        default=False,
        description="weights as R spacexr finds them: caps and its steps, no shrinkage, adaptation or RNA amounts",
    )
    labels: Literal["map", "positional", "composition"] = Field(
        "composition",
        description="which labelling becomes cells.cell_type; composition: spots keep the mix of types they most "
        "probably have (composition error .16-.35 in five benchmarks, where positional labels have .35-.45 for .05-.09 "
        "less positional error)",
    )
    morphology: Literal["auto", "off"] = Field(
        "auto",
        description="the looks of measured nuclei, learnt by type within the section, help to type its cells; auto: "
        "where they foretell held-out nuclei from the counts",
    )
    max_sweeps: int = Field(30, ge=1, description="ICM sweeps at most")
    gibbs_sweeps: int = Field(60, ge=0, description="kept Gibbs sweeps for the marginals")
    gibbs_burn_in: int = Field(15, ge=0, description="Gibbs sweeps dropped")
    checkpoint_every_sweeps: int = Field(
        5, ge=1, description="sweeps between checkpoints of the labels; never changes the result"
    )
    max_multisets: int = Field(
        3000, ge=1, description="label multisets per spot; the weakest candidate type is dropped beyond it"
    )
    n_blocks: int = Field(
        0,
        ge=0,
        description="spatial blocks of the sweep; 0 = chosen from the number of cells; never changes the result",
    )
    max_cells_per_spot: int | None = Field(
        None, ge=1, description="cap of n_cells estimated from UMI; None as in segment"
    )
    n_cells_column: str | None = Field(None, description="obs column of the counts that gives the cells of each spot")
    batch_spots: int = Field(512, ge=1, description="spots per task of the weights fit; never changes the result")


class TrainOptions(StageOptions):
    """The generative model of expression: count denoiser, and conditional score network, eq. (7)-(9)."""

    networks: tuple[Literal["counts", "score"], ...] = Field(
        ("counts", "score"), min_length=1, description="what to train: the count denoiser, the score network, or both"
    )
    width: int = Field(256, ge=16, description="hidden units")
    n_blocks: int = Field(2, ge=1, description="residual blocks")
    max_steps: int = Field(1200, ge=1, description="optimiser steps of a network at most")
    score_steps: int = Field(600, ge=1, description="optimiser steps of the score network at most")
    score_network: Literal["mlp", "unet"] = Field(
        "mlp", description="of the score model: residual MLP, or a 1-D convolutional U-Net over genes as published"
    )
    unet_channels: int = Field(32, ge=8, multiple_of=8, description="channels of the U-Net at full length")
    unet_levels: int = Field(4, ge=1, description="levels of the U-Net; channels double, length halves")
    batch_cells: int = Field(256, ge=8, description="cells per optimiser step")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW; warmed up, then falling by a cosine")
    weight_decay: float = Field(1e-3, ge=0, description="of AdamW")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights, which are the ones used")
    noise_min: float = Field(0.02, gt=0, description="smallest noise level, in units of the data's sd")
    noise_max: float = Field(20.0, gt=0, description="largest noise level, in units of the data's sd")
    label_errors: float = Field(
        0.1, ge=0, lt=1, description="largest rate of wrong types the count denoiser learns to work with"
    )
    held_out: float = Field(0.1, gt=0, lt=0.5, description="share of reference cells for early stopping")
    start_from: Path | None = Field(
        None, description="folder of a trained model of the same gene panel and sizes to go on from"
    )
    processes: int = Field(1, ge=1, le=4, description="workers that train a network together; never changes the result")
    mixed_precision: Literal["auto", "off", "bfloat16", "float16"] = Field(
        "auto", description="of training; auto: bfloat16 on GPUs that have it, float16 on others, off on CPUs"
    )
    compiled: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the losses (torch.compile; needs a C++ compiler); auto: on GPUs only"
    )
    check_every_steps: int = Field(100, ge=1, description="steps between evaluations on held-out cells")
    checkpoint_every_steps: int = Field(200, ge=1, description="steps between checkpoints; never changes the result")
    patience_checks: int = Field(4, ge=1, description="held-out evaluations without gain before stopping")


class DecomposeOptions(StageOptions):
    """Posterior decomposition of spots into cells, eq. (10)-(12), Algorithm 1."""

    estimator: str = Field(
        "auto",
        pattern=r"^(auto|(counts|score|proportional|type_mean|sized|shrinkage)"
        r"(\+(counts|score|proportional|type_mean|sized|shrinkage))*)$",
        description="auto: best on simulated spots of held-out reference cells; counts: count denoiser with split "
        "Gibbs; score: score network; or a baseline; names joined by + are averaged",
    )
    count_chains: int = Field(
        8, ge=1, description="posterior replicates R of split Gibbs, in mirrored pairs; 4 is twice as fast"
    )
    count_sweeps: int = Field(6, ge=2, description="sweeps of split Gibbs; more chains gain more than more sweeps")
    count_burn_in: int = Field(2, ge=0, description="sweeps of split Gibbs dropped")
    label_errors: float = Field(
        0.03, ge=0, le=0.5, description="share of wrong cell types the count denoiser reckons with"
    )
    sampler: Literal["preconditioned", "langevin"] = Field(
        "preconditioned",
        description="of the score network: fast preconditioned sampler, or annealed Langevin dynamics (Algorithm 1)",
    )
    n_steps: int = Field(6, ge=1, description="noise levels of the preconditioned sampler")
    n_chains: int = Field(8, ge=2, description="posterior replicates R of the preconditioned sampler")
    langevin_levels: int = Field(232, ge=2, description="noise levels L of Algorithm 1")
    langevin_steps: int = Field(5, ge=1, description="T of Algorithm 1")
    langevin_step_size: float = Field(0.1, gt=0, description="η_0/σ_L², Algorithm 1")
    langevin_chains: int = Field(3, ge=2, description="posterior replicates R of Algorithm 1")
    langevin_noise_max: float = Field(50.0, gt=0, description="largest noise level, in log1p counts")
    langevin_noise_min: float = Field(0.01, gt=0, description="smallest noise level, in log1p counts")
    langevin_clip: bool = Field(
        default=True,
        description="clip residual to ±1 and gradient to ±2, as the authors' program; without it the dynamics diverge "
        "on counts (every spot fails)",
    )
    langevin_final_step: bool = Field(default=False, description="one more noiseless step, as the authors' program")
    rows_per_shard: int = Field(1024, ge=16, description="cells per output shard = per task; never changes the result")
    quantiles: tuple[Annotated[float, Field(ge=0.001, le=0.999)], ...] = Field(
        (0.05, 0.95), description="levels of the quantiles of each cell's counts that are written; [] for none"
    )
    quantile_draws: int = Field(
        20, ge=10, description="integer draws a quantile comes from, of each estimator in a blend"
    )
    calibration_spots: int = Field(
        240, ge=10, description="spots simulated from held-out reference cells to choose the estimator"
    )

    @model_validator(mode="after")
    def _enough_draws(self) -> DecomposeOptions:
        tail = min((min(level, 1 - level) for level in self.quantiles), default=0.5)
        if tail * (self.quantile_draws + 1) < 1 - 1e-9:
            raise ValueError(
                f"quantile_draws must be at least {1 / tail - 1:.0f} for the level {tail:g} or {1 - tail:g}"
            )
        return self


class InteractOptions(StageOptions):
    """Ligand-receptor interactions of touching cells (Giotto spatCellCellcom)."""

    pairs: str | None = Field(None, description="CSV with a ligand and a receptor column")
    n_permutations: int = Field(500, ge=10, description="permutations of cells within their type (Giotto: 500-1000)")
    max_edge_um: float = Field(
        40.0, gt=0, description="longer Delaunay edges, for example across gaps, are not contacts"
    )
    min_cells: int = Field(10, ge=1, description="cells of each type touching the other, at least")


class VariableOptions(StageOptions):
    """Spatially variable genes (SPARK-X)."""

    min_cells: int = Field(10, ge=1, description="genes expressed in fewer spots are not tested")
    adjust_depth: bool = Field(
        default=True, description="project total counts out of genes and coordinates; false as SPARK-X was published"
    )


class DifferentialOptions(StageOptions):
    """Cell-type-specific spatial differential expression (C-SIDE, non-parametric)."""

    n_basis: int = Field(15, ge=3, description="smooth basis functions; fewer when a section has few spots")
    min_cells_per_type: int = Field(30, ge=1, description="types with fewer cells keep one profile and are not tested")
    max_genes: int = Field(500, ge=1, description="highest-expressed panel genes tested per type")
    min_expected_counts: float = Field(
        20.0,
        ge=0,
        description="counts of the gene in the section that the type must account for; with fewer, p-values under "
        "the null are not uniform (measured: right from 20 on, far too small below 5)",
    )
    min_count_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the gene's counts that the type must account for; below it the change cannot be told "
        "from that of the other types",
    )


class ReportOptions(StageOptions):
    """The HTML report."""

    marker_gene: str | None = Field(
        None, description="gene of the before/after picture; None: the most telling marker of a frequent type"
    )
    max_image_px: int = Field(1600, ge=200, description="longest edge of a picture of the slide")
    embedding: Literal["umap", "pca", "off"] = Field(
        "umap", description="how cells are placed by expression; umap takes some 20 CPU seconds and 150 MB, pca one"
    )
    max_points: int = Field(40000, ge=1000, description="cells or spots drawn in one picture; above it a seeded subset")
