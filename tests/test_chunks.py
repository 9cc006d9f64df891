"""Means over parts of many rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.core import chunks
from flatirons.core.chunks import mean_over_chunks
from flatirons.systems import ppo

ROWS = {"x": jnp.arange(48.0).reshape(24, 2), "y": jnp.arange(24)}


def _mean(rows):
    return {"mean": jnp.mean(rows["x"] ** 2, axis=0), "last": jnp.mean(rows["y"].astype(jnp.float32))}


@pytest.mark.parametrize("size", [1, 6, 8, 24, 100])
def test_a_mean_over_parts_is_the_mean(size):
    found = mean_over_chunks(_mean, ROWS, size=size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, _mean(ROWS))


def test_rows_that_no_part_divides_stay_whole():
    seen = []
    mean_over_chunks(lambda rows: (seen.append(rows["x"].shape), jnp.float32(0))[1], ROWS, size=7)
    assert seen == [(24, 2)]


def test_ppo_learns_the_same_from_a_minibatch_in_parts(monkeypatch):
    """A step in parts of 16 rows is the step in one; the advantages are standardised over all 64, not over each part."""
    config = ppo.Config(num_envs=8, num_steps=16, num_epochs=1, num_minibatches=2, hidden=(8,), total_steps=128)
    task = envs.make("jax:CartPole-v1", 8)
    state = ppo.init(config, task, jax.random.key(0))
    steps = []
    for size in (chunks.ROWS, 16):
        monkeypatch.setattr(chunks, "ROWS", size)
        steps.append(ppo.step(config, task, state)[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *steps)
