"""The rollout: its two twins tell the same story, ends are told as they were, and what was stored stays as it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.data import rollout as data
from flatirons.envs.ingraph import InGraph
from flatirons.types import ArraySpec, Discrete, Policy, TimeStep, Transition

LIMIT = 4


@dataclasses.dataclass(frozen=True)
class Climb:
    """obs = (height, steps since the start); action a climbs 1 + a and pays that much; at height 6 it is over, after 4 steps it is cut."""

    max_episode_steps: int | None = LIMIT

    @property
    def obs_spec(self) -> ArraySpec:
        return ArraySpec((2,))

    @property
    def action_spec(self) -> Discrete:
        return Discrete(2)

    def init(self, key: Any) -> Any:
        return jnp.zeros(2) + 0.0 * jax.random.uniform(key, (2,))

    def step(self, key: Any, state: Any, action: Any) -> Any:
        climbed = 1.0 + action.astype(jnp.float32)
        state = state + jnp.stack([climbed, jnp.float32(1.0)])
        return state, climbed, state[0] >= 6.0

    def observe(self, state: Any) -> Any:
        return state

    def legal(self, state: Any) -> Any:
        return ()


class HostClimb(gymnasium.Env):
    """The same on the host, by someone who has one buffer for all observations and scribbles on it."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.buffer = np.zeros(2, np.float32)
        self.at = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at[:] = 0.0
        self.buffer[:] = self.at
        return self.buffer, {}

    def step(self, action: Any) -> Any:
        self.buffer[:] = -99.0
        self.at += (1 + action, 1)
        self.buffer[:] = self.at
        return self.buffer, float(1 + action), bool(self.at[0] >= 6), False, {}


def counting_policy(config: Any, task: Any, actor: Any, *, greedy: bool) -> Policy:
    """Action 0 for five decisions, then 1 for five, and so on; its memory counts the decisions. `actor` is an offset per environment."""

    def act(key: Any, timestep: TimeStep, carry: Any) -> Any:
        action = ((carry + actor) // 5 % 2).astype(jnp.int32)
        return action, carry + 1, {"count": carry, "seen": timestep.obs * 2.0}

    return Policy(lambda num_envs: jnp.zeros(num_envs, jnp.int32), act)


def _start(task: Any) -> data.Collector:
    return data.start(task, jnp.zeros(task.num_envs, jnp.int32), jax.random.key(0))


def _host(num_envs: int) -> Any:
    return envs.make(lambda: gymnasium.wrappers.TimeLimit(HostClimb(), LIMIT), num_envs)


OFFSET = jnp.array([0, 2, 7])


def _collect(task: Any, lengths: tuple[int, ...]) -> tuple[list[Transition], list[Any]]:
    collector = _start(task)
    trajectories, sums = [], []
    for n in lengths:
        collector, trajectory, episodes = data.rollout(None, task, counting_policy, OFFSET, collector, n)
        trajectories.append(trajectory)
        sums.append(episodes)
    return trajectories, sums


def _joined(parts: list[Transition]) -> Transition:
    return jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *parts)


def _by_hand(num_steps: int) -> list[list[dict[str, Any]]]:
    """The whole story, per environment, in plain Python."""
    streams = []
    for offset in np.asarray(OFFSET):
        height, steps, first, rows = 0, 0, True, []
        for t in range(num_steps):
            action = (t + int(offset)) // 5 % 2
            row = {"obs": (height, steps), "action": action, "reward": 1 + action, "first": first}
            height, steps = height + 1 + action, steps + 1
            terminated = height >= 6
            truncated = steps >= LIMIT and not terminated
            rows.append(row | {"next_obs": (height, steps), "terminated": terminated, "truncated": truncated})
            first = terminated or truncated
            if first:
                height, steps = 0, 0
        streams.append(rows)
    return streams


LENGTHS = (7, 7, 16)


@pytest.fixture(scope="module", params=["in-graph", "host"])
def collected(request: pytest.FixtureRequest) -> Any:
    task = InGraph(Climb(), 3) if request.param == "in-graph" else _host(3)
    yield request.param, *_collect(task, LENGTHS)
    task.close()


def test_a_trajectory_is_what_happened(collected: Any) -> None:
    _, parts, _ = collected
    whole = _joined(parts)
    # Gymnasium's time limit may say both at once.
    whole = whole._replace(truncated=whole.truncated & ~whole.terminated)
    story = _by_hand(sum(LENGTHS))
    for name in ("obs", "action", "reward", "first", "next_obs", "terminated", "truncated"):
        expected = np.array([[row[name] for row in rows] for rows in story]).swapaxes(0, 1)
        np.testing.assert_array_equal(whole._asdict()[name], expected, err_msg=name)
    assert whole.terminated.any() and whole.truncated.any(), "the story has both kinds of end"
    assert whole.legal == ()


def test_true_successors_and_first_flags(collected: Any) -> None:
    _, parts, _ = collected
    whole = _joined(parts)
    ended = whole.terminated | whole.truncated
    assert whole.first[0].all()
    np.testing.assert_array_equal(whole.first[1:], ended[:-1])
    np.testing.assert_array_equal(whole.obs[1:][~ended[:-1]], whole.next_obs[:-1][~ended[:-1]])
    assert (whole.obs[1:][ended[:-1]] == 0.0).all(), "the next episode begins at the start"
    assert (whole.next_obs[ended][:, 1] >= 3).all(), "and the last one's successor is not that start"


def test_memory_and_extras_go_along(collected: Any) -> None:
    _, parts, _ = collected
    whole = _joined(parts)
    np.testing.assert_array_equal(whole.extras["count"], np.broadcast_to(np.arange(sum(LENGTHS))[:, None], (sum(LENGTHS), 3)))
    np.testing.assert_array_equal(whole.extras["seen"], 2.0 * whole.obs)


def test_episodes_equal_a_recount(collected: Any) -> None:
    _, parts, sums = collected
    returns, lengths = np.zeros(3), np.zeros(3)
    for part, episodes in zip(parts, sums, strict=True):
        count, return_sum, length_sum = 0, 0.0, 0.0
        for t in range(part.reward.shape[0]):
            returns += np.asarray(part.reward[t])
            lengths += 1
            ended = np.asarray(part.terminated[t] | part.truncated[t])
            count, return_sum, length_sum = count + ended.sum(), return_sum + returns[ended].sum(), length_sum + lengths[ended].sum()
            returns[ended] = lengths[ended] = 0
        assert (int(episodes.count), float(episodes.return_sum), int(episodes.length_sum)) == (count, return_sum, length_sum)
        assert count > 0, "episodes that run over from one rollout into the next count too"


def test_twins_agree_in_shapes_and_dtypes() -> None:
    host = _host(3)
    a, b = (_collect(task, (3,))[0][0] for task in (InGraph(Climb(), 3), host))
    host.close()
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype) or pytest.fail(f"{x.shape} {x.dtype}, {y.shape} {y.dtype}"), a, b)


def test_what_a_host_environment_rewrites_is_not_seen_in_stored_rows() -> None:
    task = _host(3)
    collector, trajectory, _ = data.rollout(None, task, counting_policy, OFFSET, _start(task), 5)
    kept = jax.tree.map(np.copy, trajectory)
    learn = jax.jit(lambda t: jax.tree.map(jnp.sum, t))
    dispatched = learn(trajectory)
    for _ in range(3):
        collector, _, _ = data.rollout(None, task, counting_policy, OFFSET, collector, 5)
    task.close()
    jax.tree.map(np.testing.assert_array_equal, trajectory, kept)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.sum(y), rtol=1e-6), dispatched, kept)


def test_a_reset_host_task_forgets_the_interrupted_episodes() -> None:
    # A second training on a task, or a resumed one: episodes that the reset cut must not be counted into the new ones.
    task = _host(3)
    _, trajectory, _ = data.rollout(None, task, counting_policy, OFFSET, _start(task), 2)
    assert not (trajectory.terminated | trajectory.truncated).any()
    task.reset(0)
    _, trajectory, episodes = data.rollout(None, task, counting_policy, OFFSET, _start(task), 4)
    task.close()
    assert trajectory.first[0].all()
    assert int(episodes.count) == 3 and int(episodes.length_sum) <= 3 * LIMIT


class Falling(Climb):
    """What it shows of the top, where an episode ends, is NaN."""

    def observe(self, state: Any) -> Any:
        return jnp.where(state[0] >= 6.0, jnp.nan, state)


def test_a_last_observation_that_is_no_number_is_counted() -> None:
    for env, broken in ((Climb(), 0), (Falling(), 2)):
        task = InGraph(env, 1)
        _, trajectory, episodes = data.rollout(None, task, counting_policy, jnp.array([5]), _start(task), 3)
        assert trajectory.terminated.tolist() == [[False], [False], [True]] and int(episodes.broken) == broken
        assert bool(jnp.isfinite(trajectory.obs).all()), "the row's own observations tell nothing of it"


def test_an_in_graph_rollout_is_one_computation_under_jit_and_vmap() -> None:
    task = InGraph(Climb(), 3)
    run = jax.jit(lambda c: data.rollout(None, task, counting_policy, OFFSET, c, 6))
    a, b = (data.start(task, jnp.zeros(3, jnp.int32), jax.random.key(s)) for s in (0, 1))
    both = jax.tree.map(lambda *xs: jnp.stack(xs), a, b)
    _, trajectories, episodes = jax.jit(jax.vmap(run))(both)
    for i, one in enumerate((a, b)):
        _, trajectory, single = run(one)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), trajectories, trajectory)
        assert int(episodes.count[i]) == int(single.count)
