"""Finite MDPs: what the arrays refuse, that steps are drawn from them, Gymnasium's tables, and the door `mdp:NAME`."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.envs import mdp
from flatirons.envs.ingraph import InGraph
from flatirons.systems import dqn, ppo
from flatirons.types import ArraySpec, Discrete, FlatironsError

P = np.array([[[0.0, 0.3, 0.7], [1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
R = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])


def with_row(state: int, action: int, row: list[float]) -> np.ndarray:
    changed = P.copy()
    changed[state, action] = row
    return changed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            dict(transition=with_row(1, 0, [0.5, 0.4, 0.0]), reward=R),
            "state 1, action 0 have probabilities that sum to 0.9, not to 1; give",
        ),
        (dict(transition=0.5 * P, reward=R), r"state 0, action 0 .* sum to 0.5, .*and 5 more rows"),
        (dict(transition=with_row(2, 1, [1.5, -0.5, 0.0]), reward=R), "state 2, action 1 hold the negative probability -0.5"),
        (dict(transition=with_row(0, 1, [float("nan"), 0.0, 1.0]), reward=R), "probability holds NaN or infinity at state 0, action 1"),
        (dict(transition=P[:2], reward=R), r"transition has shape \[2, 2, 3\]"),
        (dict(transition=P, reward=R.T), r"reward has shape \[2, 3\].*reward \[3\], \[3, 2\] or"),
        (dict(transition=P, reward=R, start=[0.5, 0.4, 0.0]), "start: have probabilities that sum to 0.9"),
        (dict(transition=P, reward=R, start=[1.0]), r"start has shape \[1\].*each of the 3 states"),
        (dict(transition=P, reward=R, terminal=[True]), r"terminal \[1\].*give terminal \[3\]"),
        (dict(transition=P, reward=R, legal_actions=[[True, True], [False, False], [True, True]]), "state 1 has no legal action"),
    ],
)
def test_what_the_arrays_refuse(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(FlatironsError, match=words) as caught:
        mdp.from_arrays(**arguments)
    assert "\n" not in str(caught.value)


def test_what_a_table_refuses() -> None:
    good = {0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(0.5, 0, 1.0, True), (0.5, 1, 0.0, False)]}}
    made = mdp.from_table(good, [1.0, 0.0])
    assert made.probability.shape == (2, 1, 2) and made.goes_on[1, 0].sum() == 0.5
    with pytest.raises(FlatironsError, match="next_state is 7 at state 0, action 0, outcome 0; states are numbered 0 to 1"):
        mdp.from_table({**good, 0: {0: [(1.0, 7, 0.0, False)]}}, [1.0, 0.0])
    with pytest.raises(FlatironsError, match="no full row of actions for state 1"):
        mdp.from_table({**good, 1: {1: good[1][0]}}, [1.0, 0.0])
    with pytest.raises(FlatironsError, match=r"state 1, action 0 have probabilities that sum to 0\.5"):
        mdp.from_table({**good, 1: {0: good[1][0][:1]}}, [1.0, 0.0])


def test_rows_within_rounding_are_divided_by_their_sum() -> None:
    third = np.full((3, 2, 3), 1 / 3, np.float32)
    made = mdp.from_arrays(third, R)
    assert made.probability.dtype == np.float64
    np.testing.assert_allclose(made.probability.sum(-1), 1.0, rtol=0, atol=1e-15)


def test_arrays_are_a_value() -> None:
    one, other = mdp.from_arrays(P, R), mdp.from_arrays(P.copy(), R.copy())
    assert one == other and hash(one) == hash(other) and InGraph(one, 2) == InGraph(other, 2)
    assert one != mdp.from_arrays(P, R + 1.0) and one != mdp.from_arrays(P, R, start=[1.0, 0.0, 0.0])
    assert one != dataclasses.replace(one, max_episode_steps=3)
    with pytest.raises(ValueError, match="read-only"):
        one.reward[0, 0, 0] = 5.0


def test_dense_views() -> None:
    made = mdp.from_arrays(P, R, terminal=[False, False, True])
    assert made.probability.shape == (3, 2, 2), "no more outcomes than a row has successors"
    np.testing.assert_allclose(made.expected_reward, R)
    expected = P.copy()
    expected[:, :, 2] = 0.0
    np.testing.assert_allclose(made.transition, expected)
    np.testing.assert_allclose(made.start, [0.5, 0.5, 0.0], err_msg="uniform over the states that are no end")
    by_successor = mdp.from_arrays(P, np.arange(18.0).reshape(3, 2, 3))
    np.testing.assert_allclose(by_successor.expected_reward, (P * np.arange(18.0).reshape(3, 2, 3)).sum(-1))


def test_steps_are_drawn_from_the_arrays() -> None:
    draws = 20_000
    # Impossible outcomes at the front, in the middle and at the end.
    probability = np.array([[[0.0, 0.25, 0.0, 0.75, 0.0]]])
    one = mdp.MDP(probability, np.zeros((1, 1, 5)), np.arange(5.0)[None, None], np.array([[[0, 0, 0, 1, 0]]]), np.ones(1))
    step = jax.jit(jax.vmap(one.step, in_axes=(0, None, None)))
    state, reward, terminated = step(jax.random.split(jax.random.key(0), draws), jnp.int32(0), jnp.int32(0))
    assert set(np.asarray(reward)) == {1.0, 3.0} and reward.dtype == jnp.float32 and state.dtype == jnp.int32
    np.testing.assert_allclose(np.mean(np.asarray(reward) == 1.0), 0.25, atol=0.015)
    np.testing.assert_array_equal(terminated, reward == 3.0)


def test_starts_are_drawn_from_the_start() -> None:
    taxi = mdp.make("Taxi-v4")
    drawn = np.asarray(taxi.init_batch(jax.random.key(0), 30_000))
    counts = np.bincount(drawn, minlength=500)
    assert (counts[taxi.start == 0] == 0).all() and (taxi.start > 0).sum() == 300
    np.testing.assert_allclose(counts[taxi.start > 0], 100, atol=60)
    assert int(mdp.make("FrozenLake-v1").init(jax.random.key(0))) == 0


def test_gymnasiums_tables_row_by_row() -> None:
    for name in mdp.TOY_TEXT:
        table: Any = gymnasium.make(name, disable_env_checker=True).unwrapped
        made = mdp.make(name)
        assert made.max_episode_steps == gymnasium.spec(name).max_episode_steps
        for state in range(made.num_states):
            for action in range(made.num_actions):
                expected: dict[Any, float] = {}
                found: dict[Any, float] = {}
                for p, successor, reward, ends in table.P[state][action]:
                    expected[int(successor), float(reward), bool(ends)] = expected.get((int(successor), float(reward), bool(ends)), 0.0) + p
                arrays = (a[state, action] for a in (made.next_state, made.reward, made.terminated, made.probability))
                for successor, reward, ends, p in zip(*arrays, strict=True):
                    if p > 0:
                        key = (int(successor), float(reward), bool(ends))
                        found[key] = found.get(key, 0.0) + p
                assert found.keys() == {key for key, p in expected.items() if p > 0}
                assert all(abs(found[key] - expected[key]) < 1e-12 for key in found)


def test_the_in_graph_twin_has_the_spec_of_the_host() -> None:
    host, twin = envs.make("FrozenLake-v1", 2), envs.make("mdp:FrozenLake-v1", 2)
    assert twin.in_graph and (twin.spec.obs, twin.spec.action, twin.spec.max_episode_steps) == (
        host.spec.obs,
        host.spec.action,
        host.spec.max_episode_steps,
    )
    host.close()


def test_own_processes() -> None:
    walk = mdp.random_walk()
    np.testing.assert_allclose(np.linalg.solve(np.eye(5) - walk.transition[:, 0], walk.expected_reward[:, 0]), np.arange(1, 6) / 6)
    biased = mdp.maximisation_bias()
    assert biased.action_spec == Discrete(10) and biased.obs_spec == ArraySpec((), "int32", 0, 1)
    assert biased.allowed.sum(1).tolist() == [2, 10]
    task: Any = envs.make("mdp:maximisation-bias", 4000)
    state = task.reset(jax.random.key(0))
    np.testing.assert_array_equal(task.observe(state).legal[0], [True] * 2 + [False] * 8)
    step = jax.jit(task.step)
    state, outcome = step(jax.random.key(1), state, jnp.ones(4000, jnp.int32))
    assert (outcome.next_obs == 1).all() and (outcome.reward == 0).all() and not outcome.terminated.any()
    state, outcome = step(jax.random.key(2), state, jnp.full(4000, 7))
    assert outcome.terminated.all() and abs(float(outcome.reward.mean()) + 0.1) < 0.06 and abs(float(outcome.reward.std()) - 1.0) < 0.06
    random = mdp.random_mdp(0, 5, 3, num_successors=2)
    assert random == mdp.random_mdp(0, 5, 3, num_successors=2) != mdp.random_mdp(1, 5, 3, num_successors=2)
    assert all(len(set(row)) == 2 for row in random.next_state.reshape(-1, 2))


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("mdp:FrozenLak-v1", {}, "did you mean mdp:FrozenLake-v1"),
        ("mdp:zzz", {}, "mdp: has FrozenLake-v1"),
        ("mdp:CartPole-v1", {}, "no transition table"),
        ("mdp:FrozenLake-v1", {"slippy": True}, "does not take these options"),
        ("mdp:FrozenLake-v1", {"max_episode_steps": "ten"}, "give a whole number or none"),
        ("mdp:random-walk", {"length": 3}, "does not take these options"),
        ("mdp:maximisation-bias", {"num_actions": 1}, "at least 2 actions"),
        ("mdp:maximisation-bias", {"num_actions": 2.5}, "give a whole number"),
    ],
)
def test_the_door_names_what_is_wrong(task: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FlatironsError, match=words) as caught:
        envs.make(task, **options)
    assert "\n" not in str(caught.value)


def test_the_door_takes_options_and_arrays() -> None:
    def behind(task: str, **options: Any) -> mdp.MDP:
        return vars(envs.make(task, **options))["env"]

    assert behind("mdp:FrozenLake-v1", is_slippery=False).probability.max(-1).min() == 1.0
    assert behind("mdp:FrozenLake-v1", map_name="8x8").num_states == 64
    assert behind("mdp:FrozenLake-v1", max_episode_steps=7).max_episode_steps == 7
    assert behind("mdp:random-walk", max_episode_steps=9).max_episode_steps == 9
    own = mdp.from_arrays(P, R, max_episode_steps=5)
    task: Any = envs.make(own, 3)
    assert task.in_graph and task.env is own and task.spec.max_episode_steps == 5


@pytest.mark.parametrize("name", ["FrozenLake-v1", "maximisation-bias", "random-walk"])
def test_the_checker_finds_nothing(name: str) -> None:
    assert not [finding for finding in envs.check(f"mdp:{name}") if finding.level != "ok"]


@pytest.mark.parametrize("module", [ppo, dqn], ids=["ppo", "dqn"])
def test_other_systems_step_on_it(module: Any) -> None:
    settings = {"num_minibatches": 2} if module is ppo else {"buffer_size": 64, "batch_size": 4}
    config = module.Config(num_envs=4, hidden=(8,), **settings)
    task = envs.make("mdp:Taxi-v4", 4)
    module.check(config, task)
    _, metrics = jax.eval_shape(lambda key: module.step(config, task, module.init(config, task, key)), jax.random.key(0))
    assert "loss" in metrics
