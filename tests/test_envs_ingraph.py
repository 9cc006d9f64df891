"""In-graph environments: classic control against Gymnasium, MinAtar against pgx, and what InGraph adds: limits, resets, checks."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.envs import classic, minatar, spaces
from flatirons.envs.ingraph import EnvState, InGraph
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete

# --------------------------------------------------------------------------------------------------------------- classic


def _random_states(name: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """States over the whole space and beyond the ends, as float32 so that both sides start from the same numbers."""
    spans = {
        "CartPole-v1": ([-2.5, -3, -0.22, -3.5], [2.5, 3, 0.22, 3.5]),
        "Acrobot-v1": ([-np.pi, -np.pi, -4 * np.pi, -9 * np.pi], [np.pi, np.pi, 4 * np.pi, 9 * np.pi]),
        "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
        "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
        "Pendulum-v1": ([-3 * np.pi, -8], [3 * np.pi, 8]),
    }
    low, high = spans[name]
    states = rng.uniform(low, high, (count, len(low)))
    if name.startswith("MountainCar"):
        states[:20, 0] = rng.uniform(-1.2, -1.15, 20)  # the left wall
        states[:20, 1] = -0.07
    return states.astype(np.float32)


@pytest.mark.parametrize("name", classic.ENVS)
def test_classic_steps_equal_gymnasiums(name: str) -> None:
    env = classic.ENVS[name]
    rng = np.random.default_rng(0)
    count = 600
    states = _random_states(name, rng, count)
    if isinstance(env.action_spec, Box):
        actions = rng.uniform(env.action_spec.low, env.action_spec.high, (count, 1)).astype(np.float32)
    else:
        actions = rng.integers(0, env.action_spec.n, count).astype(np.int32)

    @jax.jit
    def ours(states: Any, actions: Any) -> Any:
        new, reward, terminated = jax.vmap(partial(env.step, jax.random.key(0)))(states, actions)
        return jax.vmap(env.observe)(new), reward, terminated

    theirs: Any = gymnasium.make(name).unwrapped
    theirs.reset(seed=0)
    expected = []
    for state, action in zip(states, actions, strict=True):
        theirs.state, theirs.steps_beyond_terminated = state.astype(np.float64), None
        expected.append(theirs.step(action)[:3])
    their_obs, their_reward, their_terminated = (np.array(part) for part in zip(*expected, strict=True))
    assert name == "Pendulum-v1" or 0 < their_terminated.sum() < count

    # In double precision the formulas themselves are compared: what is left is Gymnasium's rounding of its observation.
    with jax.enable_x64(True):
        obs, reward, terminated = ours(states.astype(np.float64), actions)
    np.testing.assert_allclose(obs, their_obs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reward, their_reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(terminated, their_terminated)
    # In single precision, which is what runs, rounding is added; near its top speeds one step of Acrobot magnifies it a hundredfold.
    obs, reward, terminated = ours(states, actions)
    tolerance = 1e-3 if name == "Acrobot-v1" else 1e-5
    np.testing.assert_allclose(obs, their_obs, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(reward, their_reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(terminated, their_terminated)


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"])
def test_classic_trajectories_equal_gymnasiums(name: str) -> None:
    """A whole episode, errors adding up; Acrobot is chaotic and is compared step by step alone."""
    task = InGraph(classic.ENVS[name], 1, name)
    theirs = gymnasium.make(name)
    theirs.reset(seed=3)
    env = task.reset(jax.random.key(3))
    world: Any = theirs.unwrapped
    world.state = np.asarray(env.inner[0], np.float64)
    rng = np.random.default_rng(1)
    step = jax.jit(task.step)
    for _ in range(1000):
        if isinstance(task.spec.action, Box):
            action = rng.uniform(task.spec.action.low, task.spec.action.high, 1).astype(np.float32)
        else:
            action = np.int32(rng.integers(task.spec.action.n))  # type: ignore[union-attr]
        env, outcome = step(jax.random.key(0), env, np.asarray(action)[None])
        obs, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_allclose(outcome.next_obs[0], obs, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(outcome.reward[0], float(reward), rtol=1e-3, atol=1e-3)
        assert (bool(outcome.terminated[0]), bool(outcome.truncated[0])) == (terminated, truncated and not terminated)
        if terminated or truncated:
            return
    pytest.fail("the episode never ended")


@pytest.mark.parametrize("name", classic.ENVS)
def test_classic_specs_and_limits_equal_gymnasiums(name: str) -> None:
    env = classic.ENVS[name]
    theirs = gymnasium.make(name)
    their_obs: Any = spaces.obs_spec(theirs.observation_space)
    assert (env.obs_spec.shape, env.obs_spec.dtype) == (their_obs.shape, their_obs.dtype)
    np.testing.assert_allclose([env.obs_spec.low, env.obs_spec.high], [their_obs.low, their_obs.high], rtol=1e-6)
    assert env.action_spec == spaces.action_spec(theirs.action_space)
    assert theirs.spec is not None
    assert env.max_episode_steps == theirs.spec.max_episode_steps
    assert env.max_episode_steps == {"Acrobot-v1": 500, "CartPole-v1": 500, "Pendulum-v1": 200, "MountainCar-v0": 200}.get(name, 999)


@pytest.mark.parametrize("name", classic.ENVS)
def test_classic_starts_are_distributed_as_gymnasiums(name: str) -> None:
    env = classic.ENVS[name]
    theirs: Any = gymnasium.make(name).unwrapped
    theirs.reset(seed=0)
    expected = []
    for _ in range(2000):
        theirs.reset()
        expected.append(np.array(theirs.state, np.float64))
    expected = np.array(expected)
    batch = np.asarray(env.init_batch(jax.random.key(0), 2000))
    one_by_one = np.asarray(jax.vmap(env.init)(jax.random.split(jax.random.key(1), 2000)))
    span = np.ptp(expected, axis=0)
    for starts in (batch, one_by_one):
        np.testing.assert_array_less(np.abs(starts.min(0) - expected.min(0)), 0.02 * span + 1e-9)
        np.testing.assert_array_less(np.abs(starts.max(0) - expected.max(0)), 0.02 * span + 1e-9)
        np.testing.assert_array_less(np.abs(starts.mean(0) - expected.mean(0)), 0.05 * span + 1e-9)
        np.testing.assert_array_less(np.abs(starts.std(0) - expected.std(0)), 0.05 * span + 1e-9)
        assert len(np.unique(starts[:, 0])) > 1900


# --------------------------------------------------------------------------------------------------------------- InGraph


class _Count(NamedTuple):
    position: Any
    seed: Any


@dataclasses.dataclass(frozen=True)
class Counter:
    """Adds the action to a position that starts at 0; terminated at `goal` or beyond. The seed is a random number, new in each episode."""

    goal: int = 3
    max_episode_steps: int | None = 5
    fault: str = ""

    @property
    def obs_spec(self) -> Any:
        return {"position": ArraySpec((1,), "int32"), "seed": ArraySpec(())}

    @property
    def action_spec(self) -> Discrete:
        return Discrete(2)

    def init(self, key: Any) -> _Count:
        return _Count(jnp.zeros((), jnp.int32), jax.random.uniform(key))

    def step(self, key: Any, state: _Count, action: Any) -> tuple[Any, Any, Any]:
        position = state.position + action
        seed = state.seed
        if self.fault == "state dtype":
            position = position.astype(jnp.float32)
        terminated = position >= self.goal
        state = _Count(position, seed)
        if self.fault == "state structure":
            return tuple(state), jnp.float32(0), terminated
        if self.fault == "reward":
            return state, position, terminated
        if self.fault == "terminated":
            return state, jnp.float32(0), terminated.astype(jnp.float32)
        return state, jax.random.uniform(key), terminated

    def observe(self, state: _Count) -> Any:
        if self.fault == "obs structure":
            return state.position
        if self.fault == "obs shape":
            return {"position": state.position, "seed": state.seed}
        return {"position": state.position[None], "seed": state.seed}

    def legal(self, state: _Count) -> Any:
        return jnp.stack([jnp.ones((), bool), state.position < self.goal])


@partial(jax.jit, static_argnums=0)
def _played(task: InGraph, actions: Any, key: Any) -> Any:
    def body(env: EnvState, x: Any) -> tuple[EnvState, Any]:
        step_key, action = x
        timestep = task.observe(env)
        env, outcome = task.step(step_key, env, action)
        return env, (timestep._replace(model=()), outcome)

    start, steps = jax.random.split(key)
    return jax.lax.scan(body, task.reset(start), (jax.random.split(steps, len(actions)), actions))[1]


def _play(task: InGraph, actions: Any, key: int = 0) -> tuple[Any, Any]:
    """TimeSteps `[T, B]` and Outcomes `[T, B]` under the given actions."""
    return jax.tree.map(np.asarray, _played(task, actions, jax.random.key(key)))


def test_time_limit_reset_and_true_successor() -> None:
    # Stream 0 walks to the goal in three steps, stream 1 never moves, stream 2 reaches the goal exactly at the limit of five.
    actions = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 0]], np.int32)
    timesteps, outcome = _play(InGraph(Counter(), 3), actions)
    np.testing.assert_array_equal(timesteps.first.T, [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(outcome.terminated.T, [[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(outcome.truncated.T, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(timesteps.obs["position"][..., 0].T, [[0, 1, 2, 0, 1, 2], [0] * 6, [0, 0, 0, 1, 2, 0]])
    np.testing.assert_array_equal(outcome.next_obs["position"][..., 0].T, [[1, 2, 3, 1, 2, 3], [0] * 6, [0, 0, 1, 2, 3, 0]])
    assert outcome.truncated.dtype == outcome.terminated.dtype == bool
    assert timesteps.legal.shape == (6, 3, 2)
    # A new episode has a new start, drawn apart for each stream; within an episode, and in next_obs, it stays.
    seeds = timesteps.obs["seed"]
    np.testing.assert_array_equal(outcome.next_obs["seed"], seeds)
    assert len(np.unique(seeds)) == 6
    # Each stream and step has randomness of its own.
    assert len(np.unique(outcome.reward)) == outcome.reward.size


def test_no_time_limit_never_truncates() -> None:
    _, outcome = _play(InGraph(Counter(max_episode_steps=None), 2), np.zeros((50, 2), np.int32))
    assert not outcome.truncated.any() and outcome.truncated.dtype == bool


def test_same_key_same_trajectory_and_other_key_another() -> None:
    task = InGraph(Counter(), 4)
    actions = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.int32)
    one, two, other = (_play(task, actions, key)[1].next_obs["seed"] for key in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.isin(one, other).any()


def test_every_episode_starts_anew() -> None:
    actions = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.int32)
    timesteps, _ = _play(InGraph(Counter(), 4), actions)
    assert timesteps.first.sum() > 40
    assert len(np.unique(timesteps.obs["seed"])) == timesteps.first.sum()


def test_both_ways_to_restart_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    actions = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.int32)
    branching = _play(InGraph(classic.CartPole(), 4), actions)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    straight = _play(InGraph(classic.CartPole(), 4, "another name, another trace"), actions)
    for a, b in zip(jax.tree.leaves(branching), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_runs_under_vmap_over_seeds() -> None:
    task = InGraph(classic.CartPole(), 2)
    keys = jax.random.split(jax.random.key(0), 3)
    play = jax.jit(jax.vmap(lambda key: task.step(key, task.reset(key), jnp.zeros(2, jnp.int32))))
    env, outcome = play(keys)
    assert outcome.reward.shape == (3, 2) and env.steps.shape == (3, 2)


def test_a_policy_can_plan_from_the_model() -> None:
    task = InGraph(classic.CartPole(), 2)
    env, step = task.reset(jax.random.key(0)), jax.jit(task.step)
    action = jnp.zeros(2, jnp.int32)
    imagined, _ = step(jax.random.key(1), task.observe(env).model, action)
    real, _ = step(jax.random.key(1), env, action)
    np.testing.assert_array_equal(imagined.inner, real.inner)


def test_box_actions_are_clipped_at_the_door() -> None:
    task = InGraph(classic.Pendulum(), 1)
    env, step = task.reset(jax.random.key(0)), jax.jit(task.step)
    wild, bound = (step(jax.random.key(0), env, jnp.full((1, 1), torque))[1] for torque in (50.0, 2.0))
    np.testing.assert_array_equal(wild.next_obs, bound.next_obs)
    np.testing.assert_array_equal(wild.reward, bound.reward)


def test_equal_tasks_share_a_trace() -> None:
    traces = []

    @partial(jax.jit, static_argnums=0)
    def start(task: InGraph, key: Any) -> Any:
        traces.append(task)
        return task.reset(key)

    for num_envs in (2, 2, 3):
        start(InGraph(classic.CartPole(), num_envs, "cart"), jax.random.key(0))
    assert len(traces) == 2
    assert InGraph(classic.CartPole()) != InGraph(classic.CartPole(max_episode_steps=7))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("state dtype", r"float32\[\] for state\.position where init returns int32\[\]"),
        ("state structure", "state of structure"),
        ("reward", r"reward of int32\[\]; return a float32 scalar"),
        ("terminated", r"terminated of float32\[\]; return a bool scalar"),
        ("obs structure", "obs_spec"),
        ("obs shape", r"int32\[\] where obs_spec says int32\[1\]"),
    ],
)
def test_an_environment_that_breaks_its_word_is_told_so(fault: str, says: str) -> None:
    task = InGraph(Counter(fault=fault), 2, "counter")
    with pytest.raises(FlatironsError, match=says):
        jax.eval_shape(lambda key: task.step(key, task.reset(key), jnp.zeros(2, jnp.int32)), jax.random.key(0))


def test_bad_arguments_are_told_so() -> None:
    with pytest.raises(FlatironsError, match="num_envs is 0"):
        InGraph(classic.CartPole(), 0)
    with pytest.raises(FlatironsError, match="max_episode_steps is 0"):
        InGraph(classic.CartPole(max_episode_steps=0))
    with pytest.raises(FlatironsError, match="_Count lacks"):
        InGraph(_Count(0, 0))  # type: ignore[arg-type]
    task = InGraph(classic.CartPole(), 2, "cart")
    env = task.reset(jax.random.key(0))
    for action in (jnp.zeros(2), jnp.zeros(3, jnp.int32), jnp.zeros((2, 1), jnp.int32)):
        with pytest.raises(FlatironsError, match=r"cart takes integer actions of shape \(2,\)"):
            task.step(jax.random.key(0), env, action)
    swing = InGraph(classic.Pendulum(), 2, "swing")
    with pytest.raises(FlatironsError, match=r"swing takes float actions of shape \(2, 1\)"):
        swing.step(jax.random.key(0), swing.reset(jax.random.key(0)), jnp.zeros((2, 1), jnp.int32))


def test_multi_discrete_actions() -> None:
    @dataclasses.dataclass(frozen=True)
    class Pair(Counter):
        @property
        def action_spec(self) -> Any:
            return MultiDiscrete((2, 3))

        def step(self, key: Any, state: _Count, action: Any) -> tuple[Any, Any, Any]:
            return super().step(key, state, action.sum())

    task = InGraph(Pair(), 2)
    actions = jnp.array([[1, 2], [0, 1]], jnp.int32)
    outcome = jax.jit(lambda key: task.step(key, task.reset(key), actions)[1])(jax.random.key(0))
    np.testing.assert_array_equal(outcome.next_obs["position"], [[3], [1]])
    np.testing.assert_array_equal(outcome.terminated, [True, False])


# --------------------------------------------------------------------------------------------------------------- MinAtar

pytest.importorskip("pgx_minatar")

# These games take longer to compile than to play.
_QUICK_COMPILE: Any = {"xla_backend_optimization_level": 0}


def _pgx_game(name: str, **options: Any) -> Any:
    game = name.removeprefix("minatar-")
    module = importlib.import_module(f"pgx_minatar.{game}")
    return vars(module)["MinAtar" + game.title().replace("_", "")](**options)


@pytest.mark.parametrize("name", minatar.NAMES)
def test_minatar_equals_pgx(name: str) -> None:
    """The same keys and actions, stream by stream, through pgx's own step and through ours: all that reaches a learner is equal."""
    theirs = _pgx_game(name, use_minimal_action_set=False, sticky_action_prob=0.1)
    ours = minatar.make(name)
    num_steps, num_envs = 150, 16
    actions = np.random.default_rng(0).integers(0, 6, (num_steps, num_envs)).astype(np.int32)

    def play(init: Any, step: Any) -> Any:
        def run() -> Any:
            starts = jax.vmap(init)(jax.random.split(jax.random.key(0), num_envs))
            keys = jax.random.split(jax.random.key(1), (num_steps, num_envs))
            return jax.lax.scan(lambda state, x: jax.vmap(step)(state, *x), starts, (keys, actions))[1]

        return jax.tree.map(np.asarray, jax.jit(run, compiler_options=_QUICK_COMPILE)())

    def their_step(state: Any, key: Any, action: Any) -> Any:
        state = theirs.step(state, action, key)
        return state, (state.observation, state.rewards[0], state.terminated)

    def our_step(state: Any, key: Any, action: Any) -> Any:
        state, reward, terminated = ours.step(key, state, action)
        return state, (ours.observe(state), reward, terminated)

    expected, got = play(theirs.init, their_step), play(ours.init, our_step)
    # Ours is not asked beyond an episode's end, where pgx stands still.
    alive = np.cumsum(expected[2], axis=0) - expected[2] == 0
    assert got[0].dtype == np.uint8 and got[0].shape[2:] == ours.obs_spec.shape and got[0].max() == 1
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a[alive], b[alive])
    assert alive.sum() > 100 and got[0][alive].std(axis=0).any()


def test_minatar_through_the_batch_resets_and_truncates() -> None:
    task = InGraph(minatar.make("minatar-breakout", max_episode_steps=20), 8, "pgx:minatar-breakout")
    actions = np.random.default_rng(0).integers(0, 6, (200, 8)).astype(np.int32)
    timesteps, outcome = _play(task, actions)
    assert task.spec.action == Discrete(6) and task.spec.max_episode_steps == 20
    ended = outcome.terminated | outcome.truncated
    assert outcome.terminated.any() and outcome.truncated.any() and not (outcome.terminated & outcome.truncated).any()
    np.testing.assert_array_equal(timesteps.first[1:], ended[:-1])
    # A start shows all thirty bricks and the ball in a corner of row 3; the two corners both occur.
    starts = timesteps.obs[timesteps.first]
    assert (starts[..., 3].sum((1, 2)) == 30).all() and (starts[:, 3, [0, 9], 1].sum(1) == 1).all()
    assert 0 < starts[:, 3, 0, 1].mean() < 1
    # The stream goes on from next_obs unless it ended there.
    np.testing.assert_array_equal(timesteps.obs[1:][~ended[:-1]], outcome.next_obs[:-1][~ended[:-1]])


@pytest.mark.parametrize(("sticky", "share"), [(0.0, 0.0), (0.1, 0.1)])
def test_sticky_repeat_as_often_as_said(sticky: float, share: float) -> None:
    """From Breakout's start (last action 0) the paddle fails to move right exactly where the last action was repeated."""
    env = minatar.make("minatar-breakout", sticky=sticky)
    start = jax.jit(env.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4000)
    new, _, _ = jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))(keys, start, jnp.int32(3))
    stayed = np.asarray(new["_pos"] == start["_pos"]).mean()
    assert abs(stayed - share) < 0.02


def test_ramping_makes_space_invaders_faster() -> None:
    """With the last alien about to be hit, the next wave comes and moves sooner, as in the original."""
    env = minatar.make("minatar-space_invaders", sticky=0.0)
    state = jax.jit(env.init)(jax.random.key(0))
    before = int(state["_enemy_move_interval"])
    state = {
        **state,
        "_alien_map": jnp.zeros((10, 10), bool).at[4, 5].set(True),
        "_f_bullet_map": jnp.zeros((10, 10), bool).at[5, 5].set(True),
    }
    state, reward, terminated = jax.jit(env.step)(jax.random.key(0), state, jnp.int32(0))
    assert float(reward) == 1.0 and not bool(terminated)
    assert int(state["_ramp_index"]) == 1 and int(state["_enemy_move_interval"]) == before - 1
    assert int(state["_alien_map"].sum()) == 24


def test_minimal_actions_as_in_pgx() -> None:
    for name in minatar.NAMES:
        env = minatar.make(name, minimal_actions=True)
        theirs = _pgx_game(name, use_minimal_action_set=True) if name != "minatar-seaquest" else None
        assert env.action_spec == Discrete(len(theirs.legal_action_mask) if theirs is not None else 6)
    env = minatar.make("minatar-breakout", minimal_actions=True, sticky=0.0)
    new, _, _ = jax.jit(lambda key: env.step(key, env.init(key), jnp.int32(2)))(jax.random.key(0))
    assert env.observe(new)[9, 5, 0] == 1, "action 2 of Breakout's three is right"


def test_minatar_made_within_jit_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a process that has not imported the game yet.
    monkeypatch.delitem(sys.modules, "pgx_minatar.freeway", raising=False)
    minatar._pgx.cache_clear()
    minatar._template.cache_clear()

    def start(key: Any) -> Any:
        env = minatar.make("minatar-freeway")
        return env.observe(env.step(key, env.init(key), jnp.int32(2))[0])

    jax.eval_shape(start, jax.random.key(0))
    assert jax.jit(lambda key: start(key))(jax.random.key(0)).shape == (10, 10, 7)
    minatar._pgx.cache_clear()
    minatar._template.cache_clear()


def test_minatar_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlatironsError, match="'minatar-pong'"):
        minatar.make("minatar-pong")
    with pytest.raises(FlatironsError, match=r"sticky is 1\.5"):
        minatar.make("minatar-breakout", sticky=1.5)
    monkeypatch.setitem(sys.modules, "pgx_minatar.asterix", None)
    minatar._pgx.cache_clear()
    with pytest.raises(FlatironsError, match=r"pip install 'flatirons\[games\]'"):
        minatar.make("minatar-asterix")
