"""Small quadratic programmes with non-negative unknowns, compiled."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_MIN_EIGENVALUE = 1e-3  # RCTD's floor on the eigenvalues of the Hessian


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _solve_passive(
    matrix: NDArray[np.float64], vector: NDArray[np.float64], members: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """Return the solution of the members' equations by Cholesky factorisation, (size,)."""
    lower = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            total = matrix[members[i], members[j]]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            lower[i, j] = np.sqrt(max(total, 1e-300)) if i == j else total / lower[j, j]
    solution = np.empty(size)
    for i in range(size):
        total = vector[members[i]]
        for k in range(i):
            total -= lower[i, k] * solution[k]
        solution[i] = total / lower[i, i]
    for i in range(size - 1, -1, -1):
        total = solution[i]
        for k in range(i + 1, size):
            total -= lower[k, i] * solution[k]
        solution[i] = total / lower[i, i]
    return solution


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def minimise_nonnegative(
    matrix: NDArray[np.float64], vector: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the u ≥ 0 that minimises ½ uᵀ D u − cᵀ u, by an active set started at `start`.

    Parameters
    ----------
    matrix : (n, n), D, positive definite
    vector : (n,), c
    start : (n,), feasible; its positive entries are the first passive set
    """
    n = len(vector)
    u = start.copy()
    passive = u > 0.0
    tolerance = 1e-12 * (np.abs(vector).max() + 1e-300)
    for _ in range(10 * n + 10):
        for _ in range(n + 1):
            if _move_to_optimum(matrix, vector, u, passive):
                break
        best = _most_wanted(matrix, vector, u, passive, tolerance)
        if best < 0:
            break
        passive[best] = True
    return u


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _move_to_optimum(
    matrix: NDArray[np.float64], vector: NDArray[np.float64], u: NDArray[np.float64], passive: NDArray[np.bool_]
) -> bool:
    """Move u towards the passive set's optimum, up to the first bound; whether it was reached."""
    members = np.flatnonzero(passive)
    solution = _solve_passive(matrix, vector, members, len(members))
    step = 1.0
    for i in range(len(members)):
        if solution[i] <= 0.0:
            drop = u[members[i]] - solution[i]
            step = min(step, u[members[i]] / drop if drop > 0.0 else 0.0)
    for i in range(len(members)):
        u[members[i]] += step * (solution[i] - u[members[i]])
        if step < 1.0 and solution[i] <= 0.0 and u[members[i]] <= 1e-15:
            u[members[i]] = 0.0
            passive[members[i]] = False
    return step == 1.0


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _most_wanted(
    matrix: NDArray[np.float64],
    vector: NDArray[np.float64],
    u: NDArray[np.float64],
    passive: NDArray[np.bool_],
    tolerance: float,
) -> int:
    """Return the bound unknown whose release lowers the objective fastest, -1 when none does."""
    best, largest = -1, tolerance
    for i in range(len(vector)):
        if not passive[i]:
            gradient = vector[i]
            for j in range(len(vector)):
                gradient -= matrix[i, j] * u[j]
            if gradient > largest:
                best, largest = i, gradient
    return best


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _is_definite(matrix: NDArray[np.float64], margin: float) -> bool:
    n = len(matrix)
    lower = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j] - (margin if i == j else 0.0)
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                lower[i, i] = np.sqrt(total)
            else:
                lower[i, j] = total / lower[j, j]
    return True


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def nearest_definite(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrix with eigenvalues below 1e-3 raised to 1e-3 (RCTD's psd)."""
    if _is_definite(matrix, _MIN_EIGENVALUE):
        return matrix.copy()
    values, vectors = np.linalg.eigh(matrix)
    raised = np.maximum(values, _MIN_EIGENVALUE)
    return np.ascontiguousarray((vectors * raised) @ vectors.T)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def damped_newton_step(
    gradient: NDArray[np.float64], hessian: NDArray[np.float64], weights: NDArray[np.float64], damping: float
) -> NDArray[np.float64]:
    """Return the weights after one damped step of the quadratic model within w ≥ 0.

    Parameters
    ----------
    gradient, hessian : (types,), (types, types), of the objective to minimise
    weights : (types,), current, ≥ 0
    damping : share of the full step that is taken (RCTD: 0.3)
    """
    matrix = nearest_definite(hessian)
    norm = np.sqrt((matrix * matrix).sum())
    matrix /= norm
    for k in range(len(weights)):
        matrix[k, k] += 1e-7
    target = minimise_nonnegative(matrix, matrix @ weights - gradient / norm, weights)
    stepped: NDArray[np.float64] = np.maximum(weights + damping * (target - weights), 0.0)
    return stepped
