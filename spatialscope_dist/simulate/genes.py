"""Simulated genes: profiles on a tree of types, expression programmes, gradients, pairs, counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spatialscope_dist.simulate.settings import RELATIVE_SIZE, TYPE_NAMES, TYPE_TREE, SimulationSettings

Array = NDArray[np.float64]
CELLS_PER_DRAW = 4096


@dataclass(frozen=True)
class PlantedPair:
    """A ligand of one type that rises in contact with another type, whose receptor rises too."""

    ligand: str
    receptor: str
    sender: str
    receiver: str


@dataclass(frozen=True)
class GeneModel:
    """What the genes do, before any cell is drawn.

    ``log_profile`` (types, genes), natural log of relative expression; ``loadings`` (types, programmes, genes);
    ``gradient`` (types, genes), log change from the left edge to the right edge; ``platform_effect`` (genes,), section
    over reference; ``pairs`` planted, ``decoys`` only listed.
    """

    names: tuple[str, ...]
    log_profile: Array
    loadings: Array
    gradient: Array
    platform_effect: Array
    pairs: tuple[PlantedPair, ...]
    decoys: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CellStates:
    """What drives the expression of each cell.

    ``types`` (cells,), indices; ``scores`` (cells, programmes); ``side`` (cells,), -0.5 left to 0.5 right;
    ``contact`` (cells, types), True where a cell of that type touches this cell.
    """

    types: NDArray[np.int64]
    scores: Array
    side: Array
    contact: NDArray[np.bool_]


def draw_genes(settings: SimulationSettings, rng: np.random.Generator) -> GeneModel:
    """Return the genes of one simulated study."""
    n_genes, n_types = settings.n_genes, len(TYPE_NAMES)
    log_profile = _tree_profiles(settings, rng)
    moved = rng.random((n_types, settings.programmes_per_type, n_genes)) < settings.programme_gene_share
    loadings = moved * rng.normal(0, settings.programme_log_sd, moved.shape)
    names, pairs, decoys = _draw_pairs(settings, log_profile, rng)
    gradient = _draw_gradients(settings, log_profile, rng)
    platform = np.exp(rng.normal(0, settings.platform_log_sd, n_genes))
    return GeneModel(names, log_profile, loadings, gradient, platform, pairs, decoys)


def _tree_profiles(settings: SimulationSettings, rng: np.random.Generator) -> Array:
    n_genes = settings.n_genes
    log_profile = np.tile(rng.normal(0, settings.base_log_sd, n_genes), (len(TYPE_NAMES), 1))
    levels = (
        ([branch for branch, _ in TYPE_TREE], settings.branch_gene_share, settings.branch_log_sd),
        ([group for _, group in TYPE_TREE], settings.group_gene_share, settings.group_log_sd),
        (list(TYPE_NAMES), settings.type_gene_share, settings.type_log_sd),
    )
    for members, share, log_sd in levels:
        for name in sorted(set(members)):
            # markers are gained more often than lost: the mean of the change is above 0
            change = (rng.random(n_genes) < share) * rng.normal(0.8 * log_sd, log_sd, n_genes)
            log_profile[[index for index, member in enumerate(members) if member == name]] += change
    return np.asarray(log_profile - np.log(np.exp(log_profile).sum(axis=1, keepdims=True)))


def _draw_pairs(
    settings: SimulationSettings, log_profile: Array, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[PlantedPair, ...], tuple[tuple[str, str], ...]]:
    n_listed = settings.n_pairs + settings.n_decoy_pairs
    # ligands and receptors are genes of middling expression: seen in spots, yet not markers of one type
    middling = np.argsort(np.abs(log_profile.mean(axis=0) - np.quantile(log_profile.mean(axis=0), 0.7)), kind="stable")
    genes = rng.permutation(middling[: 2 * n_listed])
    names = [f"Gene{index + 1:04d}" for index in range(settings.n_genes)]
    for index in range(n_listed):
        names[genes[2 * index]] = f"Lig{index + 1:02d}"
        names[genes[2 * index + 1]] = f"Rec{index + 1:02d}"
    partners = [
        ("astrocyte", "endothelial"),
        ("oligodendrocyte", "excitatory_deep"),
        ("excitatory_upper", "astrocyte"),
        ("excitatory_deep", "inhibitory_sst"),
        ("microglia", "oligodendrocyte"),
    ]
    pairs = tuple(
        PlantedPair(f"Lig{index + 1:02d}", f"Rec{index + 1:02d}", *partners[index % len(partners)])
        for index in range(settings.n_pairs)
    )
    decoys = tuple((f"Lig{index + 1:02d}", f"Rec{index + 1:02d}") for index in range(settings.n_pairs, n_listed))
    return tuple(names), pairs, decoys


def _draw_gradients(settings: SimulationSettings, log_profile: Array, rng: np.random.Generator) -> Array:
    gradient = np.zeros_like(log_profile)
    for row, profile in zip(gradient, log_profile, strict=True):
        expressed = np.argsort(-profile, kind="stable")[: settings.n_genes // 3]
        chosen = rng.choice(expressed, settings.gradient_genes_per_type, replace=False)
        row[chosen] = settings.gradient_log_range * rng.choice([-1.0, 1.0], len(chosen))
    return gradient


def draw_counts(
    model: GeneModel, states: CellStates, settings: SimulationSettings, *, library: float, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Return raw counts on the reference's platform, (cells, genes) int32: negative binomial around each cell's rates.

    Parameters
    ----------
    model, states, settings
        Genes, cells and spreads.
    library
        Mean counts of the average cell.
    rng
        Source of library sizes and counts.
    """
    planted = _planted_rows(model)
    blocks = []
    for start in range(0, len(states.types), CELLS_PER_DRAW):
        rows = slice(start, start + CELLS_PER_DRAW)
        types = states.types[rows]
        log_rate = model.log_profile[types] + states.side[rows, None] * model.gradient[types]
        for kind in np.unique(types):
            members = types == kind
            log_rate[members] += states.scores[rows][members] @ model.loadings[kind]
        for kind, partner, gene in planted:
            raised = (types == kind) & states.contact[rows, partner]
            log_rate[raised, gene] += settings.pair_log_effect
        rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
        rate /= rate.sum(axis=1, keepdims=True)
        size = np.array(RELATIVE_SIZE)[types] * np.exp(settings.library_log_sd * rng.standard_normal(len(types)))
        mean = library * size[:, None] * rate
        shape = settings.dispersion_shape
        blocks.append(sparse.csr_matrix(rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape)).astype(np.int32)))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


def _planted_rows(model: GeneModel) -> list[tuple[int, int, int]]:
    """Return (type, touching type, gene) of every planted rise."""
    column = {name: index for index, name in enumerate(model.names)}
    kind = {name: index for index, name in enumerate(TYPE_NAMES)}
    rows = []
    for pair in model.pairs:
        rows.append((kind[pair.sender], kind[pair.receiver], column[pair.ligand]))
        rows.append((kind[pair.receiver], kind[pair.sender], column[pair.receptor]))
    return rows


def capture_counts(
    counts: sparse.csr_matrix, platform_effect: Array, *, capture: float, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Return the counts the section's technology sees, (cells, genes) int32: binomial thinning by capture · effect.

    The probability is capped at 0.95: a technology cannot see more molecules than there are.
    """
    seen = counts.copy()
    probability = np.minimum(capture * platform_effect, 0.95)
    seen.data = rng.binomial(counts.data, probability[counts.indices]).astype(np.int32)
    seen.eliminate_zeros()
    return seen
