"""Tasks that need a memory: hidden velocities, in-graph and on a host, and the random maze."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs, systems
from flatirons.envs import maze
from flatirons.envs.ingraph import InGraph
from flatirons.systems import ppo
from flatirons.types import FlatironsError


@pytest.mark.parametrize(("name", "kept"), [("CartPole-v1", [0, 2]), ("Pendulum-v1", [0, 1]), ("Acrobot-v1", [0, 1, 2, 3])])
def test_only_velocities_are_hidden_and_nothing_else_changes(name: str, kept: list[int]) -> None:
    whole: Any = envs.make(name, 2, seed=3)
    hidden: Any = envs.make(f"no-velocity:{name}", 2, seed=3)
    assert hidden.spec.obs.shape == (len(kept),) and hidden.spec.max_episode_steps == whole.spec.max_episode_steps
    np.testing.assert_array_equal(hidden.current.obs, whole.current.obs[:, kept])
    box = name.startswith("Pendulum")
    for step in range(250):
        action: Any = np.full((2, 1), np.sin(step), np.float32) if box else np.array([step % 2, 1], np.int32)
        (outcome, now), (expected, then) = hidden.step(action), whole.step(action)
        np.testing.assert_array_equal(outcome.next_obs, expected.next_obs[:, kept])
        np.testing.assert_array_equal(now.obs, then.obs[:, kept])
        for a, b in zip(
            (outcome.reward, outcome.terminated, outcome.truncated), (expected.reward, expected.terminated, expected.truncated)
        ):
            np.testing.assert_array_equal(a, b)
    in_graph: Any = envs.make(f"no-velocity:jax:{name}", 3)
    twin: Any = envs.make(f"jax:{name}", 3)
    assert in_graph.in_graph and in_graph.name == f"no-velocity:jax:{name}" and in_graph.spec.obs.shape == (len(kept),)
    key = jax.random.key(0)
    seen, all_of_it = in_graph.observe(in_graph.reset(key)).obs, twin.observe(twin.reset(key)).obs
    np.testing.assert_array_equal(seen, all_of_it[:, jnp.array(kept)])
    assert in_graph.resized(5).num_envs == 5 and in_graph.resized(3) == in_graph
    for task in (whole, hidden):
        task.close()


def test_mujocos_velocities_are_hidden() -> None:
    pytest.importorskip("mujoco")
    for name in ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Swimmer-v5", "InvertedPendulum-v5"):
        import gymnasium

        env: Any = gymnasium.make(name).unwrapped
        obs, _ = env.reset(seed=0)
        task: Any = envs.make(f"no-velocity:{name}")
        num = task.spec.obs.shape[0]
        assert len(obs) - num == env.data.qvel.size
        np.testing.assert_allclose(obs[num:], np.clip(env.data.qvel, -10, 10), atol=1e-9)
        task.close()
        env.close()


def test_which_velocities_is_asked_is_known_or_said() -> None:
    with pytest.raises(FlatironsError, match="velocities is not known; no-velocity: knows CartPole"):
        envs.make("no-velocity:FrozenLake-v1")
    with pytest.raises(FlatironsError, match="'no-velocity:CartPole-v9' is unknown"):
        envs.make("no-velocity:CartPole-v9")
    with pytest.raises(FlatironsError, match="no option 'weight'"):
        envs.make("no-velocity:jax:CartPole-v1", weight=3)
    assert all(finding.level != "error" for finding in envs.check("no-velocity:jax:Pendulum-v1"))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("no-velocity:HalfCheetah-v5", {"exclude_current_positions_from_observation": False}, "leave it out"),
        ("no-velocity:HalfCheetah-v5", {"frame_skip": 0}, "does not take these options: ZeroDivisionError"),
        ("no-velocity:HalfCheetah-v5", {"xml_file": "nope.xml"}, "does not take these options: OSError"),
        ("no-velocity:CartPole-v1", {"max_episode_steps": 0}, "does not take these options"),
        ("no-velocity:CartPole-v1", {"max_episode_steps": "a few"}, "give a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], why: str) -> None:
    if "HalfCheetah" in name:
        pytest.importorskip("mujoco", reason="needs flatirons[mujoco]")
    with pytest.raises(FlatironsError, match=why):
        envs.make(name, 1, **options)


def test_they_get_presets_with_a_memory() -> None:
    for name in ("no-velocity:CartPole-v1", "no-velocity:jax:CartPole-v1", "no-velocity:jax:Pendulum-v1"):
        preset = systems.choose_preset(ppo, name)
        assert preset is not None and ppo.PRESETS[preset].config["lstm"] > 0
        config = ppo.Config(**ppo.PRESETS[preset].config)
        ppo.check(config, envs.make(name, config.num_envs))


def test_a_policy_with_a_memory_is_trained_saved_and_asked(tmp_path: Any) -> None:
    small: dict[str, Any] = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "num_epochs": 2, "lstm": 8, "hidden": (8,)}
    on_host = fi.train("ppo", "no-velocity:CartPole-v1", out=tmp_path / "a", quiet=True, total_steps=96, stop_at=64, **small)
    assert on_host.evaluate(episodes=2)["episodes"] == 2
    assert fi.resume(tmp_path / "a", quiet=True).step == 96
    loaded = fi.load(tmp_path / "a")
    actions = [loaded.policy([0.01 * t, 0.02], first=t == 0) for t in range(5)]
    assert actions == [loaded.policy([0.01 * t, 0.02], first=t == 0) for t in range(5)], "`first` begins with a blank memory"
    whole = fi.train("ppo", "no-velocity:jax:CartPole-v1", out=tmp_path / "b", quiet=True, total_steps=96, **small)
    fi.train("ppo", "no-velocity:jax:CartPole-v1", out=tmp_path / "c", quiet=True, total_steps=96, stop_at=32, **small)
    again = fi.resume(tmp_path / "c", quiet=True)
    for x, y in zip(jax.tree.leaves(whole.actor), jax.tree.leaves(again.actor), strict=True):
        np.testing.assert_array_equal(x, y)
    other = fi.train(
        "ppo",
        "no-velocity:jax:CartPole-v1",
        out=tmp_path / "d",
        quiet=True,
        from_run=tmp_path / "b",
        **small | {"num_envs": 4},
        total_steps=64,
    )
    assert other.step == 64, "a warm start takes what was learnt and no memory of other environments"


# --------------------------------------------------------------------------------------------------------------- the maze


def _reachable(state: maze.MazeState, size: int) -> tuple[int, int]:
    """(cells reached from the corner, ways between cells) by a search of our own."""
    north, west = np.asarray(state.open_north), np.asarray(state.open_west)
    found, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        row, column = waiting.pop()
        around = [
            ((row - 1, column), north[row, column]),
            ((row + 1, column), row + 1 < size and north[row + 1, column]),
            ((row, column - 1), west[row, column]),
            ((row, column + 1), column + 1 < size and west[row, column + 1]),
        ]
        new = {cell for cell, is_open in around if is_open} - found
        found |= new
        waiting += new
    return len(found), int(north.sum() + west.sum())


def test_every_cell_of_a_maze_is_reached_by_one_way() -> None:
    env = maze.RandomMaze(size=6)
    walls = set()
    for seed in range(20):
        state = env.init(jax.random.key(seed))
        assert _reachable(state, 6) == (36, 35), "a tree over all cells"
        walls.add(np.asarray(state.open_north).tobytes())
    assert len(walls) == 20


def test_walls_stop_the_goal_pays_once_and_stays() -> None:
    env = maze.RandomMaze(size=4)
    step, total = jax.jit(env.step), 0.0
    state = env.init(jax.random.key(1))
    goal, moves = np.asarray(state.goal), np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    rng = np.random.default_rng(0)
    for t in range(400):
        open_ways = np.asarray(env.observe(state))[:4] > 0
        action = int(rng.integers(4))
        before, at_goal = np.asarray(state.place), bool(env.observe(state)[-1])
        state, reward, terminated = step(jax.random.key(t), state, jnp.int32(action))
        after = np.asarray(state.place)
        assert (np.asarray(state.goal) == goal).all() and not terminated and ((after >= 0) & (after < 4)).all()
        if not at_goal:
            np.testing.assert_array_equal(after, before + moves[action] * open_ways[action])
            assert float(reward) == float((after == goal).all())
        else:
            assert float(reward) == 0.0
        total += float(reward)
    assert total > 3
    assert all(finding.level == "ok" for finding in envs.check("jax:RandomMaze-v0"))
    task = InGraph(env, 2)
    assert task.spec.max_episode_steps == 100 and task.spec.obs.shape == (13,)
