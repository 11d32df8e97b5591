"""Random counts keyed by what they are for: Gamma, binomial and multinomial draws on Philox bits.

Every gene of every spot has its own stream of words, key = spot, counter = (block, gene, chain, sweep), so a draw
depends neither on the spots beside it nor on how many words another gene needed. A mirrored stream gives the
complements of its words: what is large in one is small in the other, and the mean of both varies less (antithetic
variates, Hammersley & Morton 1956). All draws are exact but for the resolution of 32-bit uniforms.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

STREAM_WORDS = 11  # key, four counter words, words used, four words, mask that mirrors
_FEW = 16  # counts are placed one by one up to here, by binomials beyond


class Draws(NamedTuple):
    """Compiled functions of a stream; compiling takes seconds, so it waits until they are needed."""

    begin: Any
    mirror: Any
    uniform: Any
    normal: Any
    gamma: Any
    binomial: Any
    halve: Any
    split: Any
    poisson: Any


@functools.cache
def compiled_draws() -> Draws:
    """Return the compiled functions."""
    begin, mirror, word = _stream()
    uniform = _uniform(word)
    normal = _normal(uniform)
    binomial = _binomial(uniform)
    return Draws(
        begin,
        mirror,
        uniform,
        normal,
        _gamma(uniform, normal),
        binomial,
        _halve(word, binomial),
        _split(uniform, binomial),
        _poisson(uniform),
    )


def _stream() -> tuple[Any, Any, Any]:
    # Philox 4x32-10 as in randomness.philox, one scalar loop.
    import numba

    mask, half, one = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def begin(stream: Any, key: Any, gene: Any, chain: Any, sweep: Any) -> None:
        stream[0], stream[1] = np.uint64(key), np.uint64(0)
        stream[2], stream[3], stream[4] = np.uint64(gene), np.uint64(chain), np.uint64(sweep)
        stream[5], stream[10] = np.uint64(4), np.uint64(0)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def mirror(stream: Any) -> None:
        stream[10] = mask

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def word(stream: Any) -> Any:
        if stream[5] == np.uint64(4):
            k0, k1 = stream[0] & mask, stream[0] >> half
            c0, c1, c2, c3 = stream[1], stream[2], stream[3], stream[4]
            for _ in range(10):
                p0, p1 = m0 * c0, m1 * c2
                c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
                k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
            stream[6], stream[7], stream[8], stream[9] = c0, c1, c2, c3
            stream[1] += one
            stream[5] = np.uint64(0)
        stream[5] += one
        return stream[np.int64(stream[5]) + 5] ^ stream[10]

    return begin, mirror, word


def _uniform(word: Any) -> Any:
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def uniform(stream: Any) -> Any:
        return (np.float64(word(stream)) + 0.5) / 4294967296.0

    return uniform


def _normal(uniform: Any) -> Any:
    # Inverse of the distribution function by rational approximations (Acklam 2003; relative error below 1.2e-9): unlike
    # Box-Muller one uniform suffices, and a mirrored one gives minus the value.
    import numba

    a0, a1, a2 = -3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02
    a3, a4, a5 = 1.383577518672690e02, -3.066479806614716e01, 2.506628277459239e00
    b0, b1, b2 = -5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02
    b3, b4 = 6.680131188771972e01, -1.328068155288572e01
    c0, c1, c2 = -7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00
    c3, c4, c5 = -2.549732539343734e00, 4.374664141464968e00, 2.938163982698783e00
    d0, d1, d2, d3 = 7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00, 3.754408661907416e00

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def normal(stream: Any) -> Any:
        u = uniform(stream)
        q = u - 0.5
        if abs(q) <= 0.47575:
            r = q * q
            over = ((((a0 * r + a1) * r + a2) * r + a3) * r + a4) * r + a5
            return over * q / (((((b0 * r + b1) * r + b2) * r + b3) * r + b4) * r + 1.0)
        t = math.sqrt(-2.0 * math.log(min(u, 1.0 - u)))
        tail = ((((c0 * t + c1) * t + c2) * t + c3) * t + c4) * t + c5
        tail /= (((d0 * t + d1) * t + d2) * t + d3) * t + 1.0
        return tail if q < 0.0 else -tail

    return normal


def _gamma(uniform: Any, normal: Any) -> Any:
    # Marsaglia & Tsang 2000; below shape 1 a draw of shape + 1 times u^(1/shape).
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def gamma(stream: Any, shape: Any) -> Any:
        boost = 1.0
        if shape < 1.0:
            boost = uniform(stream) ** (1.0 / shape)
            shape += 1.0
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = normal(stream)
            v = (1.0 + c * x) ** 3
            if v <= 0.0:
                continue
            u = uniform(stream)
            if u < 1.0 - 0.0331 * x**4 or math.log(u) < 0.5 * x * x + d * (1.0 - v + math.log(v)):
                return boost * d * v

    return gamma


def _binomial_by_rejection(uniform: Any) -> Any:
    # Transformed rejection (BTRS, Hörmann 1993).
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def rejection(stream: Any, n: Any, p: Any) -> Any:
        spread = math.sqrt(n * p * (1.0 - p))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * p
        alpha, accept = (2.83 + 5.1 / b) * spread, 0.92 - 4.2 / b
        mode = math.floor((n + 1) * p)
        peak = math.lgamma(mode + 1.0) + math.lgamma(n - mode + 1.0)
        while True:
            v, u = uniform(stream), uniform(stream) - 0.5
            near = 0.5 - abs(u)
            k = math.floor((2.0 * a / near + b) * u + n * p + 0.5)
            if near >= 0.07 and v <= accept:
                return np.int64(k)
            if k < 0 or k > n:
                continue
            height = peak - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0) + (k - mode) * math.log(p / (1.0 - p))
            if math.log(v * alpha / (a / (near * near) + b)) <= height:
                return np.int64(k)

    return rejection


def _binomial(uniform: Any) -> Any:
    # Sequential inversion for small means, else rejection.
    import numba

    rejection = _binomial_by_rejection(uniform)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def inversion(stream: Any, n: Any, p: Any) -> Any:
        odds = p / (1.0 - p)
        left = uniform(stream)
        term = (1.0 - p) ** n
        k = 0
        while left > term and k < n:
            left -= term
            k += 1
            term *= (n - k + 1) / k * odds
        return k

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def binomial(stream: Any, n: Any, p: Any) -> Any:
        if n == 0 or p <= 0.0:
            return np.int64(0)
        if p >= 1.0:
            return np.int64(n)
        rare = min(p, 1.0 - p)
        k = np.int64(inversion(stream, n, rare)) if n * rare < 10.0 else rejection(stream, n, rare)
        return k if p <= 0.5 else np.int64(n) - k

    return binomial


def _halve(word: Any, binomial: Any) -> Any:
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def halve(stream: Any, n: Any) -> Any:
        """Return a draw from Binomial(n, 1/2): the ones among n random bits."""
        if n > 128:
            return binomial(stream, n, 0.5)
        ones = np.int64(0)
        while n > 0:
            bits = word(stream)
            if n < 32:
                bits &= (np.uint64(1) << np.uint64(n)) - np.uint64(1)
            while bits:
                bits &= bits - np.uint64(1)
                ones += 1
            n -= 32
        return ones

    return halve


def _split(uniform: Any, binomial: Any) -> Any:
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def split(stream: Any, count: Any, weights: Any, out: Any, n_parts: Any) -> None:
        """Fill out[:n_parts] with a multinomial split of `count` in proportion to the weights."""
        total = 0.0
        for part in range(n_parts):
            total += weights[part]
            out[part] = 0
        if count <= _FEW:
            for _ in range(count):
                left, part = uniform(stream) * total, 0
                while part < n_parts - 1 and left >= weights[part]:
                    left -= weights[part]
                    part += 1
                out[part] += 1
            return
        for part in range(n_parts - 1):
            share = weights[part] / total if total > 0.0 else 1.0
            out[part] = binomial(stream, count, min(share, 1.0))
            count -= out[part]
            total -= weights[part]
        out[n_parts - 1] = count

    return split


def _poisson(uniform: Any) -> Any:
    # Sequential inversion for small means, else transformed rejection (PTRS, Hörmann 1993).
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def inversion(stream: Any, mean: Any) -> Any:
        left, term, k = uniform(stream), math.exp(-mean), 0
        while left > term and term > 0.0:
            left -= term
            k += 1
            term *= mean / k
        return k

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def poisson(stream: Any, mean: Any) -> Any:
        if mean < 10.0:
            return inversion(stream, mean)
        b = 0.931 + 2.53 * math.sqrt(mean)
        a = -0.059 + 0.02483 * b
        alpha, accept = 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2.0)
        while True:
            u, v = uniform(stream) - 0.5, uniform(stream)
            near = 0.5 - abs(u)
            k = math.floor((2.0 * a / near + b) * u + mean + 0.43)
            if near >= 0.07 and v <= accept:
                return int(k)
            if k < 0 or (near < 0.013 and v > near):
                continue
            height = k * math.log(mean) - mean - math.lgamma(k + 1.0)
            if math.log(v * alpha / (a / (near * near) + b)) <= height:
                return int(k)

    return poisson
