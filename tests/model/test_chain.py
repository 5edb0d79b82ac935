"""Chains in blocks are the recursion that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.model.chain import BEYOND_ALL_RAILS, CHUNK, Chain

RATES = np.array([-1e-3, 0.0, 1e-4, 0.01, 0.3, 2.0, 50.0])


def in_blocks(chain, inputs, last, length, count):
    """States (K, samples, n) from inputs in the order of time, by one call of each step."""
    vectors, samples, n = inputs.shape
    blocks = inputs.reshape(vectors, -1, count, length, n).transpose(0, 1, 4, 3, 2).copy()
    ends = chain.ends(blocks)
    finals = chain.finals(ends, last, length)
    out = np.empty_like(blocks)
    chain.complete(blocks, ends, finals, last, out)
    np.testing.assert_allclose(out[..., -1, -1], finals, rtol=1e-9)
    return out.transpose(0, 1, 4, 3, 2).reshape(vectors, samples, n)


@pytest.mark.parametrize("interval", [0.05, 1.0, 20.0])
@pytest.mark.parametrize(
    ("length", "count", "blocks"),
    [(CHUNK - 1, 1, 1), (CHUNK, 1, 3), (CHUNK, 7, 2), (CHUNK, 64, 1), (3, 5, 4)],
)
def test_blocks_are_the_recursion(interval, length, count, blocks):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, blocks * length * count, len(RATES)))
    last = rng.standard_normal((2, len(RATES)))
    expected, state = np.empty_like(inputs), last
    for j in range(inputs.shape[1]):
        state = np.exp(-RATES * interval) * state + inputs[:, j]
        expected[:, j] = state
    found = in_blocks(Chain(RATES, interval), inputs, last, length, count)
    # of sums in another order
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_without_memory_inputs_are_states():
    chain = Chain(RATES[4:], 1000.0)
    assert not chain.remembers
    inputs = np.random.default_rng(0).standard_normal((1, 2, 3, CHUNK, 4))
    ends = chain.ends(inputs)
    np.testing.assert_array_equal(ends, inputs[..., -1, :])
    np.testing.assert_array_equal(chain.finals(ends, np.ones((1, 3)), CHUNK), ends[..., -1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [-0.1, -3.0, -1e6])
def test_what_grows_is_held_and_keeps_its_sign(rate):
    chain = Chain(np.array([rate, 1.0]), 1.0)
    last = np.array([[-1e3, 0.0]])
    for _ in range(40):
        inputs = np.random.default_rng(0).standard_normal((1, 1024, 2))
        states = in_blocks(chain, inputs, last, CHUNK, 64)
        assert (states[..., 0] < 0.0).all()
        assert np.abs(states[..., 0]).max() <= BEYOND_ALL_RAILS
        assert np.abs(states[..., 1]).max() < 10.0
        last = states[:, -1]
    assert last[0, 0] == -BEYOND_ALL_RAILS
