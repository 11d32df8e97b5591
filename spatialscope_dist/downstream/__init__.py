"""Analyses of the finished cells and spots: pure functions on arrays.

- ``ligand_receptor``: LR(A, B) = mean of the ligand in A-cells touching B + mean of the receptor in B-cells touching A,
  against cells permuted within their type (Giotto ``spatCellCellcom``, Dries et al. 2021).
- ``spatially_variable``: non-parametric covariance test of each gene with transformed coordinates (SPARK-X, Zhu, Sun &
  Zhou 2021).
- ``spatial_de``: log mean of a spot = log Σ_k w_k μ_kg exp(B α_kg) + γ_g, test of α_kg = 0 (C-SIDE, Cable et al. 2022).
"""
