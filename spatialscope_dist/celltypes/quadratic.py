"""Small quadratic programmes with non-negative unknowns, compiled."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_SINGULAR = 1e-12  # a pivot below this share of the diagonal: not positive definite
NEGLIGIBLE = 1e-15  # an unknown this small has met its bound
TOLERANCE = 1e-10  # of the largest linear term: a gain from freeing an unknown that is none
_MIN_EIGENVALUE = 1e-3  # RCTD's floor on the eigenvalues of the Hessian
_RIDGE = 1e-7  # RCTD adds it to the diagonal of the normalised Hessian


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def minimise_nonnegative(matrix: NDArray[np.float64], vector: NDArray[np.float64], u: NDArray[np.float64]) -> bool:
    """Move u to the u ≥ 0 that minimises ½ uᵀ D u − cᵀ u; False where D is not positive definite there.

    Active set: unknowns that are positive at the start are free; the optimum of the free ones is
    approached up to the first bound, then the bound unknown that lowers the objective fastest is freed.

    Parameters
    ----------
    matrix : (n, n), D, symmetric
    vector : (n,), c
    u : (n,), feasible start, changed in place
    """
    n = len(vector)
    members, lower, solution = np.empty(n, np.int64), np.empty((n, n)), np.empty(n)
    size = 0
    largest = 0.0
    for i in range(n):
        largest = max(largest, abs(vector[i]))
        if u[i] > 0.0:
            members[size] = i
            size += 1
    for _ in range(10 * n + 10):
        bound = True
        while bound and size > 0:
            if not _solve(solution, matrix, vector, members[:size], lower):
                return False
            bound, size = _step_to_bound(u, solution, members, size)
        best = _most_wanted(matrix, vector, u, members[:size], TOLERANCE * largest)
        if best < 0:
            break
        members[size] = best
        size += 1
    return True


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _solve(
    solution: NDArray[np.float64],
    matrix: NDArray[np.float64],
    vector: NDArray[np.float64],
    members: NDArray[np.int64],
    lower: NDArray[np.float64],
) -> bool:
    """Write the solution of the members' equations, (members,), by Cholesky factorisation; False if not definite."""
    for i in range(len(members)):
        for j in range(i + 1):
            total = matrix[members[i], members[j]]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if j < i:
                lower[i, j] = total / lower[j, j]
            elif total > _SINGULAR * matrix[members[i], members[i]]:
                lower[i, i] = np.sqrt(total)
            else:
                return False
        total = vector[members[i]]
        for k in range(i):
            total -= lower[i, k] * solution[k]
        solution[i] = total / lower[i, i]
    for i in range(len(members) - 1, -1, -1):
        total = solution[i]
        for k in range(i + 1, len(members)):
            total -= lower[k, i] * solution[k]
        solution[i] = total / lower[i, i]
    return True


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _step_to_bound(
    u: NDArray[np.float64], solution: NDArray[np.float64], members: NDArray[np.int64], size: int
) -> tuple[bool, int]:
    """Move the free unknowns towards their solution, up to the first bound; (met a bound, unknowns still free)."""
    step = 1.0
    for i in range(size):
        if solution[i] <= 0.0:
            here = u[members[i]]
            step = min(step, here / (here - solution[i]) if here > 0.0 else 0.0)
    kept = 0
    for i in range(size):
        unknown = members[i]
        moved = u[unknown] + step * (solution[i] - u[unknown])
        if step < 1.0 and solution[i] <= 0.0 and moved <= NEGLIGIBLE:
            u[unknown] = 0.0
        else:
            u[unknown] = moved
            members[kept] = unknown
            kept += 1
    return step < 1.0, kept


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _most_wanted(
    matrix: NDArray[np.float64],
    vector: NDArray[np.float64],
    u: NDArray[np.float64],
    members: NDArray[np.int64],
    tolerance: float,
) -> int:
    """Return the bound unknown whose release lowers the objective fastest, -1 when none does."""
    best, largest = -1, tolerance
    for i in range(len(vector)):
        if u[i] == 0.0:
            descent = vector[i]
            for member in members:
                descent -= matrix[i, member] * u[member]
            if descent > largest:
                best, largest = i, descent
    return best


def nearest_definite(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrices with eigenvalues below 1e-3 raised to 1e-3 (RCTD's psd), (problems, n, n)."""
    values, vectors = np.linalg.eigh(matrices)
    raised: NDArray[np.float64] = (vectors * np.maximum(values, _MIN_EIGENVALUE)[:, None]) @ vectors.transpose(0, 2, 1)
    return raised


def damped_newton_steps(
    gradients: NDArray[np.float64], hessians: NDArray[np.float64], weights: NDArray[np.float64], *, damping: float
) -> NDArray[np.float64]:
    """Return the weights after one damped step of each quadratic model within w ≥ 0, (problems, n).

    Parameters
    ----------
    gradients, hessians : (problems, n), (problems, n, n), of the objectives to minimise
    weights : (problems, n), current, ≥ 0
    damping : share of the full step that is taken (RCTD: 0.3)
    """
    matrices = nearest_definite(hessians)
    norms = np.sqrt((matrices**2).sum(axis=(1, 2)))
    matrices = matrices / norms[:, None, None] + _RIDGE * np.eye(weights.shape[1])
    linear = (matrices @ weights[:, :, None])[:, :, 0] - gradients / norms[:, None]
    targets = weights.copy()
    _minimise_each(matrices, linear, targets)
    stepped: NDArray[np.float64] = np.maximum(weights + damping * (targets - weights), 0.0)
    return stepped


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _minimise_each(matrices: NDArray[np.float64], vectors: NDArray[np.float64], u: NDArray[np.float64]) -> None:
    for problem in range(len(u)):
        minimise_nonnegative(matrices[problem], vectors[problem], u[problem])
