"""Normal numbers: their law, and that each has one address."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from thermokron.model import normals
from thermokron.model.normals import ALIGNMENT, SEGMENT, Normals


def drawn(count, *, seed=0, purpose=0, stream=0, first=0):
    out = np.empty((1, count))
    Normals().draw(seed, purpose, range(stream, stream + 1), first, out)
    return out[0]


def test_no_two_draws_share_numbers():
    """Seeds, purposes and streams have sequences that do not meet, neighbours and the largest."""
    edges = (0, 1, 2**63 - 1)
    values = np.concatenate(
        [
            drawn(64, seed=seed, purpose=purpose, stream=stream, first=first)
            for seed, stream in itertools.product(edges, edges)
            for purpose in (0, 1)
            for first in (0, 64, 2**40)
        ]
    )
    # float32 has few enough values for some to come twice
    assert len(np.unique(values)) > values.size - 10


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1001, SEGMENT, 3 * SEGMENT + 5])
def test_a_number_depends_on_its_address_alone(monkeypatch, count):
    """Not on how many are drawn, for how many streams, where from, or in which segments."""
    whole = drawn(4 * SEGMENT, seed=4, purpose=1, stream=9)
    for first in (0, ALIGNMENT, 5 * ALIGNMENT):
        expected = whole[first : first + count]
        some = {"seed": 4, "purpose": 1, "stream": 9, "first": first}
        np.testing.assert_array_equal(drawn(count, **some), expected)
        together = np.empty((5, count))
        Normals().draw(4, 1, range(7, 12), first, together)
        np.testing.assert_array_equal(together[2], expected)
        assert len({row.tobytes() for row in together}) == 5
    monkeypatch.setattr(normals, "SEGMENT", SEGMENT // 4)
    np.testing.assert_array_equal(drawn(count, seed=4, purpose=1, stream=9), whole[:count])


def test_numbers_are_normal_and_independent(chance):
    """Frequencies in 256 equal parts, powers, and products of neighbours; 4 million numbers."""
    count = 2**22
    x = drawn(count, seed=1)
    parts = np.bincount(np.floor(scipy.stats.norm.cdf(x) * 256).astype(int), minlength=256)
    assert np.sum((parts - count / 256) ** 2) / (count / 256) < chance.upper(np.ones(255))
    assert abs(x.sum()) / np.sqrt(count) < chance.sigmas
    for power in (2, 4):  # of moments 1 and 3, variances 2 and 96
        mean, variance = {2: (1, 2), 4: (3, 96)}[power]
        assert abs(np.sum(x**power - mean)) / np.sqrt(count * variance) < chance.sigmas
    square = x**2 - 1
    for lag in (1, 2, 3, 8, SEGMENT // 2, SEGMENT):
        assert abs(x[lag:] @ x[:-lag]) / np.sqrt(count) < chance.sigmas
        assert abs(square[lag:] @ square[:-lag]) / np.sqrt(4 * count) < chance.sigmas


def test_tails_are_as_long_as_they_should_be(chance):
    """So many beyond 4, and beyond 4.75, of 16 million."""
    count = 2**24
    x = np.abs(drawn(count, seed=2))
    for limit in (4.0, 4.75):
        expected = 2 * scipy.stats.norm.sf(limit) * count
        assert abs(np.count_nonzero(x > limit) - expected) < chance.sigmas * np.sqrt(expected)


@pytest.mark.parametrize("bits", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("angle", [0, 2**31, 2**31 - 1])
def test_the_extreme_words_make_finite_numbers(bits, angle):
    word = np.array([[bits | angle << 32]], np.uint64)
    out = np.empty((1, 2))
    Normals()._transform(word, out)
    assert np.isfinite(out).all()
    radius = np.sqrt(-2 * np.log((bits + 0.5) / 2**32))
    assert np.hypot(*out[0]) == pytest.approx(radius, rel=1e-5, abs=1e-3)
    assert radius < 6.77
