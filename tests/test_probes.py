"""The probe environments keep what they promise: their `solution` is what dynamic programming finds in the environment itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.envs import probes
from flatirons.envs.ingraph import InGraph
from flatirons.types import Box, Discrete

GAMMA = 0.9


def _actions(env: Any) -> Any:
    """Every action of a Discrete probe; for the continuous one a grid that contains its best."""
    spec = env.action_spec
    return np.linspace(spec.low[0], spec.high[0], 41, dtype=np.float32)[:, None] if isinstance(spec, Box) else np.arange(spec.n)


def _optimum(env: Any, state: Any, depth: int, gamma: float) -> tuple[float, list[int]]:
    """Value by full expansion to `depth` decisions, and the indices of the best actions. Dynamics are deterministic; limits are ignored."""
    if depth == 0:
        return 0.0, []
    returns = []
    for action in jnp.asarray(_actions(env)):
        new, reward, terminated = env.step(jax.random.key(0), state, action)
        returns.append(float(reward) + (0.0 if terminated else gamma * _optimum(env, new, depth - 1, gamma)[0]))
    return max(returns), [i for i, value in enumerate(returns) if value > max(returns) - 1e-6]


def _states(env: Any) -> list[Any]:
    """Every state that a decision is taken in, found by playing."""
    found: dict[bytes, Any] = {}
    waiting = [env.init(jax.random.key(seed)) for seed in range(8)]
    while waiting:
        state = waiting.pop()
        if (name := np.asarray(state).tobytes()) in found:
            continue
        found[name] = state
        for action in jnp.asarray(_actions(env)):
            new, _, terminated = env.step(jax.random.key(0), state, action)
            if not terminated:
                waiting.append(new)
    return list(found.values())


@pytest.mark.parametrize("name", [name for name in probes.ENVS if name != "constant-reward"])
def test_solution_is_the_optimum(name: str) -> None:
    env = probes.ENVS[name]
    solution = env.solution(GAMMA)
    states = _states(env)
    assert len(states) == len(solution.obs)
    for state in states:
        row = np.flatnonzero((solution.obs == np.asarray(env.observe(state))).all(axis=-1))
        assert len(row) == 1
        value, best = _optimum(env, state, 5, GAMMA)
        np.testing.assert_allclose(solution.value[row[0]], value, atol=1e-6)
        if solution.action is None:
            assert len(best) == len(_actions(env)), "no action matters"
        else:
            assert len(best) == 1
            np.testing.assert_allclose(solution.action[row[0]], _actions(env)[best[0]], atol=1e-6)


@pytest.mark.parametrize("name", probes.ENVS)
def test_specs(name: str) -> None:
    env = probes.ENVS[name]
    solution = env.solution(0.99)
    assert solution.obs.shape[1:] == env.obs_spec.shape and solution.obs.dtype == solution.value.dtype == np.float32
    assert solution.obs.min() >= env.obs_spec.low and solution.obs.max() <= env.obs_spec.high
    assert env.action_spec == (Box((-2.0,), (2.0,)) if name == "continuous" else Discrete(2))
    assert hash(env) == hash(type(env)())


def test_constant_reward_is_truncated_for_ever_and_never_terminated() -> None:
    env = probes.ENVS["constant-reward"]
    task = InGraph(env, 2)
    state = task.reset(jax.random.key(0))
    step = jax.jit(task.step)
    for turn in range(1, 31):
        state, outcome = step(jax.random.key(turn), state, jnp.zeros(2, jnp.int32))
        assert not outcome.terminated.any() and (outcome.reward == 1.0).all()
        assert (outcome.truncated == (turn % 10 == 0)).all()
        np.testing.assert_array_equal(outcome.next_obs, task.observe(state).obs)
    np.testing.assert_allclose(env.solution(0.99).value, [100.0], rtol=1e-6)
    # What the probe is for: the sum over one episode, which is what a learner that ends there finds for the first step, is far away.
    assert sum(0.99**k for k in range(10)) < 10


def test_random_probes_show_both_observations_equally_often() -> None:
    for name in ("obs-reward", "obs-action"):
        obs = InGraph(probes.ENVS[name], 1000).reset(jax.random.key(0)).inner
        assert set(np.asarray(obs)) == {-1.0, 1.0} and abs(float(obs.mean())) < 0.1


def test_corridor_walls_and_limit() -> None:
    task = InGraph(probes.ENVS["corridor"], 1)
    state = task.reset(jax.random.key(0))
    step = jax.jit(task.step)
    for turn in range(1, 21):
        state, outcome = step(jax.random.key(0), state, jnp.zeros(1, jnp.int32))
        assert bool(outcome.truncated[0]) == (turn == 20) and float(outcome.reward[0]) == 0.0
    for turn in range(4):
        state, outcome = step(jax.random.key(0), state, jnp.ones(1, jnp.int32))
        assert bool(outcome.terminated[0]) == (turn == 3) and float(outcome.reward[0]) == (turn == 3)
    np.testing.assert_array_equal(outcome.next_obs, [[0, 0, 0, 0, 1]])
