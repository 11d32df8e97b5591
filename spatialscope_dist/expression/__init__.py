"""Gene expression of single cells inside spots: the conditional score model and what it is compared with.

The equations are those of SpatialScope (Wan et al., Nature Communications 2023).

* Eq. (7)-(9): a score network of x = log(count + 1) - mu_k given the type's mean profile mu_k, trained by
  denoising score matching (`score_network`, `training`), in the preconditioning of Karras et al. 2022 (`noise`).
* Eq. (10)-(12), Algorithm 1: posterior sampling of the cells of a spot given its counts (`samplers`):
  annealed Langevin dynamics as published, and a preconditioned sampler of few evaluations whose cells add up
  to the measured counts (`allocation`).
* Eq. (13)-(14): genes that were not measured are read off the posterior (exposure 0 in `allocation`).
* What a network has to beat: type means, proportional allocation, sized and shrunk variants (`baselines`).
* Held-out reference cells, put together into spots, say which estimator is used (`choice`).

Words: the *exposure* of a gene is the number of counts measured per count in the reference (capture times
platform effect exp(gamma_g)); 0 means not measured. Results are in reference counts.
"""
