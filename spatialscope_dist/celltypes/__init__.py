"""Cell types of the cells of a spot: SpatialScope eq. (3)-(6) on RCTD's warm start.

The count of gene g in spot i is Poisson-lognormal around the mean signature of the spot's cells,

    y_ig | λ_ig ~ Poisson(N_i λ_ig),
    log λ_ig = α_i + log((1/M_i) Σ_m μ_{k_im, g}) + γ_g + ε_ig,   ε ~ h(·/σ)/σ,       (3)-(4)

and the labels k of neighbouring cells are tied by a Potts prior,

    U(k) = (ν / mean degree) Σ_{neighbour pairs} 1[k ≠ k'].                            (5)

In reading order: `signatures` (μ, gene lists) → `platform_effect` (γ) → `platform_match` (one
technology or two) → `likelihood` (Q tables) → `weights` (RCTD's w, α) → `overdispersion` (σ) →
`adaptation` (signatures that follow the section) → `section_model` (these together) →
`cell_counts` (M without an image) → `multisets` (candidates and cached likelihoods) → `morphology`
(looks of the types' nuclei, where `morphology_evidence` finds them telling) → `potts` (exact-block
ICM) → `marginals` (Gibbs) → `labelling` (the three outputs, soft proportions, confidence). Every
function takes and returns in-memory arrays.
"""
