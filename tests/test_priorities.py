"""The sum tree against plain sums, and prioritised replay against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.data import priorities
from flatirons.systems import dqn


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 100])
def test_the_tree_is_a_running_sum(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    tree, leaves = priorities.create(capacity), np.zeros(capacity)
    assert priorities.num_bytes(capacity) == tree.nbytes
    for _ in range(20):
        place = rng.integers(0, capacity, 7)
        place = np.unique(place)
        value = rng.choice([0.0, 0.5, 1.0, 3.0], len(place))
        leaves[place] = value
        tree = priorities.write(tree, jnp.asarray(place), jnp.asarray(value, jnp.float32))
        np.testing.assert_allclose(priorities.total(tree), leaves.sum(), rtol=1e-6)
        np.testing.assert_array_equal(priorities.read(tree, jnp.arange(capacity)), leaves)
        if leaves.sum():
            mass = rng.uniform(0, leaves.sum() * (1 - 1e-6), 50)
            found = np.asarray(priorities.find(tree, jnp.asarray(mass, jnp.float32)))
            np.testing.assert_array_equal(found, np.searchsorted(np.cumsum(leaves), mass, side="right"))


def test_draws_are_in_proportion_and_never_of_nothing() -> None:
    tree = priorities.write(priorities.create(6), jnp.arange(6), jnp.array([1.0, 0.0, 2.0, 0.0, 5.0, 0.0]))
    drawn = np.concatenate([priorities.draw(tree, jax.random.key(i), 64) for i in range(100)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / len(drawn), [0.125, 0, 0.25, 0, 0.625, 0], atol=0.02)
    assert (np.asarray(priorities.find(tree, jnp.full(3, 1e9))) == 4).all(), "beyond the end is the last that has any"


def test_a_prioritised_replay_holds_what_can_be_sampled() -> None:
    """After every turn exactly the transitions of the replay have mass, also once the ring has gone round."""
    config = dqn.Config(
        num_envs=2, train_every=8, gradient_steps=2, batch_size=8, buffer_size=64, learning_starts=16, hidden=(8,), prioritised=True
    )
    task = envs.make("jax:CartPole-v1", 2)
    state = dqn.init(config, task, jax.random.key(0))
    step = jax.jit(lambda s: dqn.step(config, task, s), donate_argnums=0)
    for _ in range(20):
        state, metrics = step(state)
        replay = state.replay
        ages = np.arange(32)[:, None]
        held = np.zeros((32, 2), bool)
        at = (int(replay.next) - 1 - ages) % 32
        held[at[:, 0]] = ages < np.asarray(replay.size)[None]
        mass = np.asarray(priorities.read(state.priorities.tree, jnp.arange(64))).reshape(32, 2)
        np.testing.assert_array_equal(mass > 0, held)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics)) and "errors" not in metrics
    assert (np.unique(mass[held]).size > 5) and float(state.priorities.largest) >= 1.0


def test_priority_exponent_0_and_beta_1_are_the_uniform_loss() -> None:
    """With alpha = 0 all priorities are 1 and all weights are 1: the first update differs from the uniform one only by its draw."""
    task = envs.make("jax:CartPole-v1", 1)
    settings = {"num_envs": 1, "train_every": 4, "batch_size": 4, "buffer_size": 64, "learning_starts": 0, "hidden": (8,)}
    config = dqn.Config(**settings, prioritised=True, priority_exponent=0.0)
    state = dqn.init(config, task, jax.random.key(0))
    state, metrics = jax.jit(lambda s: dqn.step(config, task, s))(state)
    mass = np.asarray(priorities.read(state.priorities.tree, jnp.arange(64)))
    np.testing.assert_array_equal(mass, np.r_[np.ones(4), np.zeros(60)])
    # Stratified draws from four equal shares of four equal masses: each transition once, so the gradient is the full batch's.
    plain = dqn.Config(**settings)
    replayed = dqn.init(plain, task, jax.random.key(0))
    from flatirons.data import replay as memory

    sampled = memory.read_at(state.replay, task.spec, jnp.arange(4), jnp.zeros(4, jnp.int32), plain.gamma)
    batch = dqn.Batch(sampled.obs, sampled.action, dqn.targets(plain, task, replayed.params, replayed.target, sampled))
    np.testing.assert_allclose(metrics["loss"], dqn.loss(plain, task, replayed.params, batch)[0], rtol=1e-5)
