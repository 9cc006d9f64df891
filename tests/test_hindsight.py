"""Hindsight experience replay: which goals are given, by brute force over the stored episodes; and goals through Gymnasium's door."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gs

from flatirons import envs, systems
from flatirons.data import hindsight
from flatirons.data import replay as memory
from flatirons.envs import robotics
from flatirons.run import evaluate
from flatirons.systems import ddpg, sac
from flatirons.types import ArraySpec, Box, FlatironsError, Spec, Transition

LIMIT = 5


def reward_of(achieved: Any, desired: Any) -> jax.Array:
    """0 where the goal is reached, -1 elsewhere."""
    return -(jnp.abs(achieved[..., 0] - desired[..., 0]) > 0.5).astype(jnp.float32)


SPEC = Spec(
    {"observation": ArraySpec((1,)), "achieved_goal": ArraySpec((1,)), "desired_goal": ArraySpec((1,))},
    Box((-1.0,), (1.0,)),
    LIMIT,
    goal_reward=reward_of,
)


def _stored(lengths: list[int], capacity: int) -> tuple[memory.Replay, dict[int, tuple[int, int]]]:
    """A replay of episodes whose achieved goal after step t of episode e is 100 e + t + 1; desired is -1. Also place -> (episode, step)."""
    replay, places, at = memory.create(SPEC, 1, capacity), {}, 0
    for episode, length in enumerate(lengths):
        for step in range(length):
            numbers = [np.full((1, 1, 1), 100.0 * episode + t, np.float32) for t in (step, step + 1)]
            obs, next_obs = ({"observation": x, "achieved_goal": x, "desired_goal": np.full_like(x, -1.0)} for x in numbers)
            last = step == length - 1
            flags = [np.array([[flag]]) for flag in (last and episode % 2 == 0, last and episode % 2 == 1, step == 0)]
            row = Transition(obs, np.zeros((1, 1, 1), np.float32), np.full((1, 1), -1.0, np.float32), next_obs, *flags, (), ())
            replay = memory.add(replay, SPEC, jax.tree.map(jnp.asarray, row))
            places[at % capacity] = (episode, step)
            at += 1
    return replay, places


@pytest.mark.parametrize("capacity", [100, 16])
def test_goals_come_from_later_in_the_same_episode(capacity: int) -> None:
    lengths = [5, 3, 5, 1, 4, 2, 5, 3]  # 28 transitions; the last episode's end is there, too
    replay, places = _stored(lengths, capacity)
    size = int(replay.size[0])
    newest = [(int(replay.next) - 1 - age) % capacity for age in range(size)]
    draws = 400
    start = jnp.repeat(jnp.array(newest), draws)
    env = jnp.zeros_like(start)
    plain = memory.read_at(replay, SPEC, start, env, 0.9)
    found = hindsight.relabelled(replay, SPEC, jax.random.key(0), plain, start, env, 4)
    goals = np.asarray(found.obs["desired_goal"])[:, 0].reshape(size, draws)
    rewards = np.asarray(found.reward).reshape(size, draws)
    assert abs(np.mean(goals != -1.0) - 0.8) < 0.01, "four of five pursue another goal"
    np.testing.assert_array_equal(found.obs["desired_goal"], found.next_obs["desired_goal"])
    np.testing.assert_array_equal(found.obs["observation"], plain.obs["observation"])
    for row, place in enumerate(newest):
        episode, step = places[place]
        later = 100.0 * episode + np.arange(step + 1, lengths[episode] + 1)
        given, counts = np.unique(goals[row][goals[row] != -1.0], return_counts=True)
        np.testing.assert_array_equal(given, later)
        assert counts.min() > 0.6 * counts.sum() / len(later), "each with equal chance"
        reached = goals[row] == later[0]
        np.testing.assert_array_equal(rewards[row], np.where(reached, 0.0, -1.0))


def test_a_running_episode_is_looked_at_up_to_its_newest_transition() -> None:
    replay, places = _stored([3, 4], 50)
    running = replay._replace(terminated=jnp.zeros_like(replay.terminated).at[2].set(True), truncated=jnp.zeros_like(replay.truncated))
    start = jnp.full(200, 4)  # the second of the four
    plain = memory.read_at(running, SPEC, start, start * 0, 0.9)
    goals = hindsight.relabelled(running, SPEC, jax.random.key(1), plain, start, start * 0, 10**6).obs["desired_goal"]
    assert places[4] == (1, 1) and set(np.asarray(goals)[:, 0].tolist()) == {102.0, 103.0, 104.0}


@dataclasses.dataclass(frozen=True)
class Line:
    """A point in [-1, 1] that moves by its action towards a goal: in-graph, reward 0 at the goal and -1 elsewhere."""

    max_episode_steps: int | None = 10
    obs_spec = SPEC.obs
    action_spec = Box((-0.3,), (0.3,))

    def init(self, key: Any) -> Any:
        """The point at 0, a goal anywhere."""
        return jnp.zeros(1), jax.random.uniform(key, (1,), minval=-1.0)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        """Move."""
        del key
        at = jnp.clip(state[0] + action, -1.0, 1.0)
        return (at, state[1]), self.goal_reward(at, state[1]), jnp.zeros((), bool)

    def observe(self, state: Any) -> Any:
        """Where it is and should be."""
        return {"observation": state[0], "achieved_goal": state[0], "desired_goal": state[1]}

    def legal(self, state: Any) -> tuple[()]:
        """All are."""
        del state
        return ()

    def goal_reward(self, achieved: Any, desired: Any) -> jax.Array:
        """Within 0.1."""
        return -(jnp.abs(achieved[..., 0] - desired[..., 0]) > 0.1).astype(jnp.float32)


@pytest.mark.parametrize("module", [ddpg, sac])
def test_a_goal_reached_by_accident_teaches_to_reach_others(module: Any, tmp_path: Any) -> None:
    import flatirons as fi

    rates = {"critic_learning_rate": 3e-3} if module is ddpg else {"temperature": 0.02, "automatic_temperature": False}
    run = fi.train(
        module, Line(), seed=0, out=tmp_path / "run", quiet=True, total_steps=4_000, num_envs=4, train_every=16, gradient_steps=8,
        batch_size=64, buffer_size=4_000, learning_starts=256, random_steps=256, learning_rate=3e-3, gamma=0.9, tau=0.05, hidden=(32, 32),
        her_goals=4, **rates,
    )  # fmt: skip
    result = run.evaluate(episodes=50, seed=1)
    assert result["success"] >= 0.9


def test_tasks_without_goals_are_refused_in_a_sentence() -> None:
    config = sac.Config(her_goals=4)
    with pytest.raises(FlatironsError, match="her_goals needs observations with achieved_goal and desired_goal"):
        sac.check(config, envs.make("jax:Pendulum-v1", 1))
    line: Any = envs.make(Line(), 1)
    line.spec = dataclasses.replace(line.spec, goal_reward=None)
    with pytest.raises(FlatironsError, match="what reward of Line another goal would have earned"):
        ddpg.check(ddpg.Config(her_goals=4), line)
    line.spec = dataclasses.replace(line.spec, goal_reward=reward_of, max_episode_steps=None)
    with pytest.raises(FlatironsError, match="has no time limit"):
        ddpg.check(ddpg.Config(her_goals=4), line)


def test_success_is_left_out_where_a_wrapper_hides_the_goal() -> None:
    whole, flat = (Threshold(), gymnasium.wrappers.FlattenObservation(Threshold()))
    last, unsaid = np.array([0.0, -1.0]), np.full(2, np.nan)
    assert evaluate._success(envs.make(whole), last, unsaid) == {"success": 0.5}
    made = envs.make(flat)
    assert made.spec.goal_reward is not None and evaluate._success(made, last, unsaid) == {}
    assert evaluate._success(made, last, np.array([1.0, 1.0])) == {"success": 1.0}, "which the environment itself says"


def test_a_last_reward_stands_for_a_goal_reached_only_where_it_can_be_nothing_else() -> None:
    task, unsaid = envs.make(Line(), 1), np.full(2, np.nan)

    def success(rule: Any, *last: float) -> dict[str, float]:
        held: Any = SimpleNamespace(spec=dataclasses.replace(task.spec, goal_reward=rule))
        return evaluate._success(held, np.array(last), unsaid)

    sparse = task.spec.goal_reward
    assert success(sparse, 0.0, -1.0) == {"success": 0.5}
    assert success(sparse, -0.01, -1.01) == {}, "actions cost, so that 0 is never earned"
    assert success(lambda achieved, desired: -jnp.abs(achieved - desired)[..., 0], -0.01, 0.0) == {}, "dense"
    assert success(lambda achieved, desired: jnp.zeros(len(desired)), 0.0, 0.0) == {}, "the same everywhere"


class Threshold(gymnasium.Env):
    """What Gymnasium-Robotics' tasks look like from outside."""

    action_space = gs.Box(-1, 1, (2,), np.float32)
    observation_space = gs.Dict({name: gs.Box(-9, 9, (2,), np.float32) for name in ("observation", *hindsight.GOALS)})
    reward_type, distance_threshold = "sparse", 0.05

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {name: np.zeros(2, np.float32) for name in self.observation_space}, {}


def test_the_threshold_rule_is_read_off_the_environment() -> None:
    rule: Any = robotics.goal_reward(Threshold())
    np.testing.assert_array_equal(rule(jnp.array([[0.0, 0.0], [0.03, 0.03]]), jnp.array([[0.0, 0.06], [0.0, 0.0]])), [-1.0, 0.0])
    dense = Threshold()
    dense.reward_type = "dense"
    assert robotics.goal_reward(dense) is None and robotics.goal_reward(gymnasium.make("CartPole-v1").unwrapped) is None


def test_a_rule_with_rotations_is_not_taken_for_a_distance() -> None:
    pytest.importorskip("gymnasium_robotics")
    task: Any = envs.make("HandManipulateBlockRotateZ-v1", 1)
    assert set(hindsight.GOALS) <= set(task.spec.obs)
    with pytest.raises(FlatironsError, match="what reward of HandManipulateBlockRotateZ-v1 another goal would have earned"):
        sac.check(sac.Config(her_goals=4), task)
    task.close()


def test_goals_are_exchanged_by_itself_only_where_their_reward_is_known() -> None:
    sparse = [f"Fetch{name}-v4" for name in ("Reach", "Push", "Slide", "PickAndPlace")]
    for module, own in ((sac, "sac-her"), (ddpg, "ddpg-her")):
        assert [systems.choose_preset(module, name) for name in sparse] == [own, *[f"{own}-objects"] * 3]
        assert {systems.choose_preset(module, name.replace("-", "Dense-")) for name in sparse} == {None}


def test_fetch_steps_under_mujoco_4_and_its_reward_is_our_rule() -> None:
    pytest.importorskip("gymnasium_robotics")
    task: Any = envs.make("FetchReach-v4", 1, seed=3)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        outcome, _ = task.step(rng.uniform(-1, 1, (1, 4)).astype(np.float32))
        found = float(
            task.spec.goal_reward(jnp.asarray(outcome.next_obs["achieved_goal"]), jnp.asarray(outcome.next_obs["desired_goal"]))[0]
        )
        assert found == float(outcome.reward[0])
        seen.add(found)
    assert task.spec.max_episode_steps == 50 and seen
    task.close()


@pytest.mark.parametrize("name", ["FetchReach-v4", "FetchPush-v4", "HandReach-v3"])
def test_envpools_goals_are_rewarded_by_our_rule(name: str) -> None:
    pytest.importorskip("envpool")
    task: Any = envs.make(f"envpool:{name}", 3, seed=3)
    rng, rewarded = np.random.default_rng(0), jax.jit(task.spec.goal_reward)
    for _ in range(60):
        outcome, _ = task.step(rng.uniform(-1, 1, (3, *task.spec.action.shape)).astype(np.float32))
        np.testing.assert_array_equal(rewarded(outcome.next_obs["achieved_goal"], outcome.next_obs["desired_goal"]), outcome.reward)
    task.close()
    for other in (name.replace("-", "Dense-"), "HandManipulateBlockRotateZ-v1"):
        task = envs.make(f"envpool:{other}", 1)
        assert task.spec.goal_reward is None
        task.close()


def test_fetch_can_be_wrapped() -> None:
    pytest.importorskip("gymnasium_robotics")
    task: Any = envs.make("discrete:FetchReach-v4", 1)
    assert task.spec.action.n == 3**4 and set(hindsight.GOALS) <= set(task.spec.obs)
    task.close()
