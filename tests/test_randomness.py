from __future__ import annotations

import numpy as np
import pytest

from spatialscope_dist.randomness import generator, key_of, philox, spot_keys, to_unit

# Random123 1.14 (Salmon et al. 2011), file kat_vectors, lines "philox4x32 10": counter, key, result.
KNOWN = [
    ((0x00000000,) * 4, (0x00000000, 0x00000000), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def as_key(low: int, high: int) -> np.int64:
    return np.uint64(high << 32 | low).astype(np.int64)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox__known_answers(counter, key, result):
    words = philox(as_key(*key), tuple(np.int64(word) for word in counter))
    assert tuple(int(word) for word in words) == result


def test_philox__numpy_and_torch_bits_are_equal():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**63 - 1, 500, dtype=np.int64)
    counters = [random.integers(0, 2**32, 500, dtype=np.int64) for _ in range(4)]
    ours = philox(keys, tuple(counters))
    theirs = philox(torch.from_numpy(keys), tuple(map(torch.from_numpy, counters)))
    for word, other in zip(ours, theirs, strict=True):
        assert np.array_equal(word, other.numpy())


def test_philox__broadcasts_and_reduces_counters_modulo_2_32():
    keys = np.arange(3, dtype=np.int64)[:, None]
    words = philox(keys, (np.arange(4, dtype=np.int64)[None, :], 0, 1, 2))
    assert words[0].shape == (3, 4)
    alone = philox(np.int64(2), (np.int64(3), 0, 1, 2))
    assert all(int(word[2, 3]) == int(one) for word, one in zip(words, alone, strict=True))
    wrapped = philox(np.int64(2), (np.int64(3 + 2**32), 2**32, 1, 2))
    assert [int(word) for word in wrapped] == [int(word) for word in alone]


def test_philox__uniform():
    unit = to_unit(np.concatenate(philox(np.int64(7), (np.arange(50_000, dtype=np.int64), 0, 0, 0))))
    assert 0 < unit.min() < 1e-4
    assert 1 - 1e-4 < unit.max() < 1
    assert abs(unit.mean() - 0.5) < 0.003
    assert abs(unit.var() - 1 / 12) < 0.001


def test_key_of__depends_on_every_part_and_their_borders():
    keys = {key_of(0, "a", "b"), key_of(1, "a", "b"), key_of(0, "ab"), key_of(0, "a", "c"), key_of("0", "a", "b", "")}
    assert len(keys) == 5
    assert all(0 <= key < 2**63 for key in keys)


def test_spot_keys__do_not_depend_on_the_other_spots():
    keys = spot_keys("B4", ["s1", "s2", "s3"])
    assert keys.dtype == np.int64
    assert spot_keys("B4", ["s3"])[0] == keys[2]
    assert spot_keys("B5", ["s3"])[0] != keys[2]


def test_generator__repeats_by_purpose():
    assert generator(0, "a").integers(1 << 40) == generator(0, "a").integers(1 << 40)
    assert generator(0, "a").integers(1 << 40) != generator(0, "b").integers(1 << 40)
