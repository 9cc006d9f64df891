"""REINFORCE: the exact gradient by enumeration, what a baseline does to it, and every episode counted once and whole."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.core import resources
from flatirons.data import rollout as data
from flatirons.nets import actor_critic
from flatirons.systems import reinforce
from flatirons.types import Discrete, FlatironsError, Spec, Transition

# A world of two decisions: state 0, then state 1 or 2 by the action; rewards of (state, action).
REWARD = 5.0 + np.array([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
GAMMA = 0.9


def _world() -> Any:
    """A task with its three states as observations and two actions; it is not played."""
    task = envs.make("mdp:FrozenLake-v1", 1)
    task.spec = Spec(task.spec.obs, Discrete(2), max_episode_steps=2)
    return task


def test_the_expected_gradient_is_exact_and_a_baseline_lowers_its_variance() -> None:
    variance = {baseline: _variance_of_an_exact_gradient(baseline) for baseline in (False, True)}
    assert variance[True] < 0.8 * variance[False]


def _variance_of_an_exact_gradient(baseline: bool) -> float:
    """Checks that the estimate's mean over all episodes is the gradient; its variance."""
    task = _world()
    config = reinforce.Config(
        num_envs=1, num_steps=2, gamma=GAMMA, discount_states=True, hidden=(6,), total_steps=20, baseline=baseline, value_coef=0.0
    )
    params = jax.jit(functools.partial(actor_critic.init_params, config, task))(jax.random.key(1))
    params["policy"] = jax.tree.map(lambda x: 40.0 * x, params["policy"])  # a policy with preferences
    shape = jax.tree.leaves(task.spec.obs)[0].shape

    def obs(states: Any) -> Any:
        return jnp.asarray(states, task.spec.obs.dtype).reshape((-1, *shape))

    @jax.jit
    def pi(params: Any) -> jax.Array:
        return jax.nn.softmax(actor_critic.distribution(config, task, params, obs([0, 1, 2]), ()).logits)

    def expected_return(params: Any) -> Any:
        p, total = pi(params), 0.0
        for a, b in itertools.product((0, 1), (0, 1)):
            total += p[0, a] * p[1 + a, b] * (REWARD[0, a] + GAMMA * REWARD[1 + a, b])
        return total

    @jax.jit
    def estimate(params: Any, rows: Transition) -> Any:
        batch = reinforce.whole_episodes(config, task, params, rows, 2)
        return jax.grad(lambda q: reinforce.loss(config, task, q, batch)[0])(params)

    if baseline:
        params = _with_values(config, task, params, obs([0, 1, 2]), pi(params))
    exact = jax.jit(jax.grad(expected_return))(params)
    p, mean, square = pi(params), 0.0, 0.0
    found: Any = jax.tree.map(jnp.zeros_like, params)
    for a, b in itertools.product((0, 1), (0, 1)):
        rows = Transition(
            obs=obs([0, 1 + a]).reshape((2, 1, *shape)),
            action=jnp.array([[a], [b]]),
            reward=jnp.array([[REWARD[0, a]], [REWARD[1 + a, b]]]),
            next_obs=obs([1 + a, 0]).reshape((2, 1, *shape)),
            terminated=jnp.array([[False], [True]]),
            truncated=jnp.zeros((2, 1), bool),
            first=jnp.array([[True], [False]]),
            legal=(),
            extras=(),
        )
        grads = estimate(params, rows)
        chance = p[0, a] * p[1 + a, b]
        found = jax.tree.map(lambda x, g, c=chance: x - c * g, found, grads)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads["policy"])])
        mean, square = mean + chance * flat, square + chance * flat**2
    for name in ("torso", "policy"):
        for x, y in zip(jax.tree.leaves(found[name]), jax.tree.leaves(exact[name]), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    return float(np.sum(square - mean**2))


def _with_values(config: Any, task: Any, params: Any, obs: Any, p: Any) -> Any:
    """The parameters with the policy's own values as the baseline."""
    later = jnp.sum(p[1:] * REWARD[1:], axis=1)
    values = jnp.concatenate([jnp.sum(p[:1] * (REWARD[0] + GAMMA * later)[None], axis=1), later])

    def descend(params: Any, _: Any) -> Any:
        grads = jax.grad(lambda q: jnp.sum(jnp.square(actor_critic.value(config, task, q, obs) - values)))(params)
        return jax.tree.map(lambda x, g: x - 0.05 * g, params, grads), ()

    return jax.jit(lambda params: jax.lax.scan(descend, params, length=2000)[0])(params)


def test_every_ended_episode_counts_once_and_whole() -> None:
    task = envs.make("jax:CartPole-v1", 3)
    config = reinforce.Config(num_envs=3, num_steps=7, gamma=0.9, baseline=False, hidden=(4,), total_steps=21 * 100)
    state = jax.jit(functools.partial(reinforce.init, config, task))(jax.random.key(0))
    batches, rows = [], []

    @jax.jit
    def step(state: Any) -> Any:
        seen = []

        def spying(config: Any, task: Any, state: Any, experience: Any) -> Any:
            together = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), state.running, experience)
            seen.append((reinforce.whole_episodes(config, task, state.params, together, 7), experience))
            return reinforce.update(config, task, state, experience)

        return reinforce.step(config, task, state, update=spying)[0], seen[0]

    for _ in range(12):
        state, (batch, experience) = step(state)
        batches.append(batch)
        rows.append(experience)
    reward, ended = (np.concatenate([getattr(r, name) for r in rows]) for name in ("reward", "terminated"))
    expected = []
    for env in range(3):
        begin = 0
        for end in np.flatnonzero(ended[:, env]):
            episode = reward[begin : end + 1, env]
            expected += [sum(0.9**k * r for k, r in enumerate(episode[t:])) for t in range(len(episode))]
            begin = end + 1
    counted = [np.asarray(b.target)[np.asarray(b.weight) > 0] for b in batches]
    np.testing.assert_allclose(sorted(np.concatenate(counted)), sorted(expected), rtol=1e-4)
    for b in batches:
        # 1 / ended episodes for each of their decisions
        weight = np.asarray(b.weight)
        assert weight.max() <= 1.0 and len({round(float(w), 6) for w in weight[weight > 0]}) <= 1


def test_a_termination_in_a_time_limits_step_has_nothing_after_it() -> None:
    task = envs.make("jax:CartPole-v1", 1)
    config = reinforce.Config(num_envs=1, num_steps=2, gamma=0.5, baseline=True, hidden=(4,), total_steps=200)
    params = jax.jit(functools.partial(reinforce.init, config, task))(jax.random.key(0)).params
    one, flag = jnp.ones((2, 1)), jnp.array([[False], [True]])
    obs = jnp.ones((2, 1, 4))
    for terminated in (flag, ~flag & flag):
        rows = Transition(obs, one.astype(jnp.int32), one, obs, terminated, flag, ~flag, (), ())
        batch = reinforce.whole_episodes(config, task, params, rows, 2)
        after = 0.0 if terminated.any() else float(actor_critic.value(config, task, params, obs[-1])[0])
        assert after != 0.0 or terminated.any()
        np.testing.assert_allclose(batch.target, [1.0 + 0.5 + 0.25 * after, 1.0 + 0.5 * after], rtol=1e-5)


def test_a_memory_is_recomputed_as_it_was_acted_with() -> None:
    """Greedy decisions, made one by one from each episode's start, are those that the loss sees in whole trajectories."""
    task = envs.make("jax:CartPole-v1", 2)
    config = reinforce.Config(num_envs=2, num_steps=60, hidden=(4,), lstm=8, memory_head=(4,), memory_skip=True, total_steps=1200)
    state = jax.jit(functools.partial(reinforce.init, config, task))(jax.random.key(2))
    state.params["policy"] = jax.tree.map(lambda x: 100.0 * x, state.params["policy"])

    def greedy(*arguments: Any, greedy: bool) -> Any:
        return reinforce.policy(*arguments, greedy=True)

    @jax.jit
    def decide(state: Any) -> Any:
        return data.rollout(config, task, greedy, reinforce.actor(state), state.collector, 60)[1]

    experience = decide(state)
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.asarray(b, a.dtype)]), state.running, experience)
    batch = jax.jit(lambda s: reinforce.whole_episodes(config, task, s.params, rows, 60))(state)
    pi, b, _ = jax.jit(lambda s: reinforce._judged(config, task, s.params, batch))(state)
    assert len({*np.asarray(experience.action).ravel().tolist()}) == 2 and np.asarray(experience.first).sum() > 4
    np.testing.assert_array_equal(pi.mode()[-60:], experience.action)
    # R - b, for which b is judged in the same pass.
    counts = np.asarray(batch.weight) > 0
    np.testing.assert_allclose(np.asarray(batch.advantage)[counts], np.asarray(batch.target - b)[counts], atol=1e-4)
    after, _ = jax.jit(functools.partial(reinforce.update, config, task))(state._replace(collector=()), experience)
    memory = after.params["memory"]["w"] - state.params["memory"]["w"]
    assert float(jnp.max(jnp.abs(memory))) > 0 and bool(jnp.all(jnp.isfinite(memory)))


def test_what_belongs_to_a_memory_is_refused_without_one() -> None:
    for settings, message in (
        ({"memory_head": (4,)}, "memory_head.*lstm=0 has none"), ({"memory_skip": True}, "memory_skip=True.*lstm=0 has none"),
        ({"lstm": -1}, "lstm=-1 must be at least 0"),
    ):  # fmt: skip
        with pytest.raises(FlatironsError, match=message):
            reinforce.check(reinforce.Config(num_envs=2, total_steps=20_000, **settings), envs.make("jax:CartPole-v1", 2))


@pytest.mark.parametrize("normalise", [False, True])
def test_no_step_is_taken_where_no_episode_ended(normalise: bool) -> None:
    task = envs.make("jax:CartPole-v1", 2)
    config = reinforce.Config(num_envs=2, num_steps=2, hidden=(4,), normalise_advantage=normalise, total_steps=400)
    state = jax.jit(functools.partial(reinforce.init, config, task))(jax.random.key(0))
    after, _ = jax.jit(functools.partial(reinforce.step, config, task))(state)
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_interrupted_episode_does_not_count() -> None:
    task = envs.make("jax:CartPole-v1", 2)
    config = reinforce.Config(num_envs=2, num_steps=5, hidden=(4,), total_steps=400)
    state = jax.jit(functools.partial(reinforce.init, config, task))(jax.random.key(0))
    step = jax.jit(functools.partial(reinforce.step, config, task))
    state, _ = step(state)
    state = reinforce.interrupted(state)
    rows = jax.tree.map(lambda x: jnp.concatenate([x, x[-5:]]), state.running)
    rows = rows._replace(terminated=rows.terminated.at[-5:].set(False).at[-1].set(True))
    batch = reinforce.whole_episodes(config, task, state.params, rows, 5)
    assert int(jnp.sum(batch.weight > 0)) == 10, "the five new rows of both, none of those before"


def test_episodes_that_do_not_fit_with_their_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row: two observations of 4 floats, action, reward, three flags. 500 rows run, and an update has them 3 times and 10 new ones."""
    task = envs.make("jax:CartPole-v1", 2)
    needed = (3 * 500 + 10) * 2 * (2 * 16 + 4 + 4 + 3)
    for available, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(resources, "memory_available", lambda available=available: available)
        if fits:
            reinforce.check(reinforce.Config(num_envs=2, num_steps=10), task)
        else:
            with pytest.raises(FlatironsError, match=r"episodes of up to 500 decisions in 2 environments and the batch of them"):
                reinforce.check(reinforce.Config(num_envs=2, num_steps=10), task)


def test_a_task_without_a_limit_is_refused() -> None:
    task = envs.make("jax:CartPole-v1", 2)
    task.spec = type(task.spec)(task.spec.obs, task.spec.action, None)
    with pytest.raises(FlatironsError, match="no limit to their length"):
        reinforce.check(reinforce.Config(num_envs=2), task)
