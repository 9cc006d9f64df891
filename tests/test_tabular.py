"""Tabular methods: planners against hand, enumeration and linear solves, Algorithm 1 and its bound; learners by hand and in the limit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs, systems
from flatirons.__main__ import main
from flatirons.core import exploration
from flatirons.envs import mdp
from flatirons.envs.ingraph import InGraph
from flatirons.run.solve import solve
from flatirons.systems import tabular
from flatirons.types import ArraySpec, FlatironsError, Spec, Transition

ALIAS = np.array([0, 0, 1, 1, 2, 2])


def benchmark() -> Any:
    from benchmarks.tabular import run

    return run


def random_policy(seed: int, states: int, actions: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(actions), states)


# ------------------------------------------------------------------------------------------------------------- planners


def two_cells() -> mdp.MDP:
    """State 0: action 0 stays for 1, action 1 goes to state 1 for 0. State 1: action 0 ends with 10, action 1 goes back for 0."""
    table = {
        0: {0: [(1.0, 0, 1.0, False)], 1: [(1.0, 1, 0.0, False)]},
        1: {0: [(1.0, 1, 10.0, True)], 1: [(1.0, 0, 0.0, False)]},
    }
    return mdp.from_table(table, [1.0, 0.0])


@pytest.mark.parametrize("method", [tabular.value_iteration, tabular.q_value_iteration])
@pytest.mark.parametrize(("gamma", "v"), [(0.5, [5.0, 10.0]), (0.95, [20.0, 19.0]), (0.0, [1.0, 10.0])])
def test_optimal_values_by_hand(method: Any, gamma: float, v: list[float]) -> None:
    # gamma 0.5: leaving gives 0 + 5, staying 1 / (1 - 0.5) = 2. gamma 0.95: staying gives 20, so going back from 1 gives 19 > 10.
    plan = method(two_cells(), gamma)
    np.testing.assert_allclose(plan.v, v, atol=1e-9)
    np.testing.assert_allclose(plan.q[0], [1.0 + gamma * v[0], gamma * v[1]], atol=1e-9)
    np.testing.assert_allclose(plan.q[1], [10.0, gamma * v[0]], atol=1e-9)
    np.testing.assert_array_equal(plan.policy.argmax(1), plan.q.argmax(1))


def test_the_first_sweeps_by_hand() -> None:
    # V_1 = (1, 10), V_2 = (max(1 + 0.9, 9), 10), V_3 = the same.
    assert tabular.value_iteration(two_cells(), 0.9, tolerance=1.0).history[:3] == (0.0, 1.0, 9.0)
    assert tabular.q_value_iteration(two_cells(), 0.9, tolerance=1.0).history[:3] == (0.0, 1.0, 9.0)


@pytest.mark.parametrize("seed", range(5))
def test_optimal_values_are_the_best_of_all_deterministic_policies(seed: int) -> None:
    process = mdp.random_mdp(seed, 4, 3)
    policies = [np.eye(3)[list(choice)] for choice in itertools.product(range(3), repeat=4)]
    best = np.max([tabular.evaluate_policy(process, pi, 0.9) for pi in policies], axis=0)
    plan = tabular.value_iteration(process, 0.9)
    np.testing.assert_allclose(plan.v, best, atol=1e-8)
    np.testing.assert_allclose(tabular.evaluate_policy(process, plan.policy, 0.9), best, atol=1e-8)


def test_policy_evaluation_and_visitation_equal_their_series() -> None:
    process, pi, gamma = mdp.random_mdp(3, 5, 3), random_policy(0, 5, 3), 0.8
    v, rho, at = np.zeros(5), np.zeros(5), process.start
    for t in range(300):
        v = np.sum(pi * tabular.lookahead(process, v, gamma), axis=1)
        rho = rho + gamma**t * at
        at = at @ np.einsum("sa,sat->st", pi, process.transition)
    np.testing.assert_allclose(tabular.evaluate_policy(process, pi, gamma), v, atol=1e-12)
    np.testing.assert_allclose(tabular.visitation(process, pi, gamma), rho, atol=1e-12)
    assert rho.sum() == pytest.approx(1 / (1 - gamma)), "unnormalised"


@pytest.mark.parametrize("name", ["FrozenLake-v1", "FrozenLake8x8-v1"])
@pytest.mark.parametrize("number", range(5))
def test_frozen_lake_exactly(name: str, number: int) -> None:
    b = benchmark()
    gamma, (values, returns, best) = b.DISCOUNTS[number], b.KNOWN[name]
    process = mdp.make(name)
    for plan in (tabular.value_iteration(process, gamma), tabular.q_value_iteration(process, gamma)):
        np.testing.assert_allclose(plan.v, b.values_by_linear_solve(name, plan.policy, gamma), rtol=0, atol=1e-8)
        assert abs(process.start @ plan.v - values[number]) < 5.1e-7
        assert process.max_episode_steps is not None
        assert abs(tabular.finite_horizon(process, process.max_episode_steps, plan.policy) - returns[number]) < 5.1e-5
        assert abs(tabular.finite_horizon(process, process.max_episode_steps) - best) < 5.1e-5


def test_taxi_and_cliff_exactly() -> None:
    taxi, cliff = mdp.make("Taxi-v4"), mdp.make("CliffWalking-v1")
    v = tabular.value_iteration(taxi, 1.0).v
    assert abs(taxi.start @ v - 7.93) < 1e-8
    assert (v[taxi.start > 0].min(), v[taxi.start > 0].max()) == pytest.approx((3.0, 15.0), abs=1e-8)
    assert abs(cliff.start @ tabular.value_iteration(cliff, 1.0).v + 13.0) < 1e-8


def test_illegal_actions_are_never_chosen() -> None:
    process = dataclasses.replace(two_cells(), legal_actions=np.array([[True, False], [True, True]]))
    plan = tabular.value_iteration(process, 0.5)
    np.testing.assert_allclose(plan.v, [2.0, 10.0], atol=1e-9)
    for found in (plan, tabular.monotonic_policy_iteration(process, 0.5), tabular.soft_policy_iteration(process, 0.5)):
        assert found.policy[0].tolist() == [1.0, 0.0]


def test_finite_horizon_by_hand() -> None:
    # Three decisions: two ones and then nothing, or one and the way to 10, or the way to 10 at once.
    assert tabular.finite_horizon(two_cells(), 3) == 11.0
    assert tabular.finite_horizon(two_cells(), 3, np.eye(2)[[0, 0]]) == 3.0
    assert tabular.finite_horizon(two_cells(), 1) == 1.0


def test_what_planners_refuse() -> None:
    process = two_cells()
    with pytest.raises(FlatironsError, match=r"gamma is 1.5"):
        tabular.value_iteration(process, 1.5)
    with pytest.raises(FlatironsError, match=r"not settled after 500 iterations; give a gamma below 1"):
        tabular.value_iteration(process, 1.0, max_iterations=500)
    with pytest.raises(FlatironsError, match="may go on for ever"):
        tabular.evaluate_policy(process, np.eye(2)[[0, 0]], 1.0)
    with pytest.raises(FlatironsError, match="discount below 1"):
        tabular.monotonic_policy_iteration(process, 1.0)
    with pytest.raises(FlatironsError, match="C is at least 0"):
        tabular.monotonic_policy_iteration(process, 0.9, penalty=-1.0)
    with pytest.raises(FlatironsError, match="look alike"):
        tabular.monotonic_policy_iteration(process, 0.9, alias=np.array([0, 0]), policy=np.array([[0.5, 0.5], [0.4, 0.6]]))
    with pytest.raises(FlatironsError, match="alpha is above 0"):
        tabular.soft_policy_iteration(process, 0.9, temperature=0.0)


# ------------------------------------------------------------------------------------------- Algorithm 1 of the TRPO paper


def test_cost_of_another_policy_by_the_identity() -> None:
    for seed in range(20):
        process, old, new = mdp.random_mdp(seed, 5, 3), random_policy(seed, 5, 3), random_policy(seed + 100, 5, 3)
        advantage = tabular.advantage(process, old, 0.9)
        np.testing.assert_allclose(np.sum(old * advantage, axis=1), 0.0, atol=1e-12)
        expected = tabular.eta(process, old, 0.9) + np.sum(tabular.visitation(process, new, 0.9)[:, None] * new * advantage)
        assert abs(tabular.eta(process, new, 0.9) - expected) < 1e-10


def test_the_surrogate_matches_eta_to_first_order() -> None:
    process, old, other = mdp.random_mdp(1, 5, 3), random_policy(1, 5, 3), random_policy(2, 5, 3)
    assert tabular.surrogate(process, old, old, 0.9) == pytest.approx(tabular.eta(process, old, 0.9), abs=1e-12)
    gaps = []
    for h in (1e-2, 1e-3, 1e-4):
        new = (1 - h) * old + h * other
        gaps.append(abs(tabular.eta(process, new, 0.9) - tabular.surrogate(process, old, new, 0.9)))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(100, rel=0.1)
    slope = (tabular.surrogate(process, old, other, 0.9) - tabular.eta(process, old, 0.9)) * 1e-2
    assert gaps[0] < 0.1 * abs(slope)


def test_kl_and_penalty_by_hand() -> None:
    old, new = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    assert tabular.max_kl(old, new) == pytest.approx(max(0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2)))
    assert tabular.max_kl(new, old) == np.inf and tabular.max_kl(old, old) == 0.0
    # Always staying in two_cells at 0.5: V = (2, 10) with action 0 in state 1. A(0, 1) = 2 - 5, A(1, 1) = 10 - 1: epsilon is 9.
    pi = np.eye(2)[[0, 0]]
    np.testing.assert_allclose(tabular.advantage(two_cells(), pi, 0.5), [[0.0, -3.0], [0.0, 9.0]])
    assert tabular.penalty_coefficient(two_cells(), pi, 0.5) == pytest.approx(2 * 9 * 0.5 / 0.25)


def test_the_bound_holds_and_needs_its_penalty() -> None:
    rows = benchmark().bound(pairs=400)["rows"]
    assert all(row["reached"] for row in rows), rows


@pytest.mark.parametrize("penalty", [1e-2, 0.3, 3.0, 100.0, 1e5])
def test_the_step_is_the_minimum(penalty: float) -> None:
    rng = np.random.default_rng(0)
    slope, old = rng.normal(size=(4, 3)), random_policy(1, 4, 3)
    slope[3] = 2.0  # nothing to gain in this row
    new = tabular.trust_region_step(slope, old, penalty, np.ones((4, 3), bool))

    def objective(pi: np.ndarray) -> float:
        return float(np.sum(slope * (pi - old)) + penalty * tabular.max_kl(old, pi))

    np.testing.assert_allclose(new.sum(1), 1.0, atol=1e-12)
    assert objective(new) < 0.0
    np.testing.assert_array_equal(new[3], old[3])
    kls = [tabular.max_kl(old[i : i + 1], new[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(kls, kls[0], rtol=1e-4, err_msg="every row that gains uses the whole of delta")
    for scale in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
        for _ in range(100):
            moved = new * np.exp(scale * rng.normal(size=new.shape))
            assert objective(moved / moved.sum(1, keepdims=True)) > objective(new) - 1e-12


def test_the_step_of_one_row_of_two_actions_equals_a_search() -> None:
    slope, old, penalty = np.array([[0.0, 1.0]]), np.array([[0.3, 0.7]]), 2.0
    grid = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    values = (1 - grid) + penalty * (0.3 * np.log(0.3 / grid) + 0.7 * np.log(0.7 / (1 - grid)))
    found = tabular.trust_region_step(slope, old, penalty, np.ones((1, 2), bool))
    assert found[0, 0] == pytest.approx(grid[values.argmin()], abs=2e-6)


def test_steps_of_many_problems_at_once_equal_single_ones() -> None:
    rng = np.random.default_rng(1)
    slope, old, penalty = rng.normal(size=(6, 4, 3)), rng.dirichlet(np.ones(3), (6, 4)), 10.0 ** rng.uniform(-1, 4, 6)
    together = tabular.trust_region_step(slope, old, penalty, np.ones((6, 4, 3), bool))
    for i in range(6):
        alone = tabular.trust_region_step(slope[i], old[i], penalty[i], np.ones((4, 3), bool))
        np.testing.assert_allclose(together[i], alone, atol=1e-9)


def test_eta_falls_and_never_rises_where_states_look_alike_and_does_without_the_penalty() -> None:
    rows = benchmark().monotonic(processes=20, iterations=10)["rows"]
    assert all(row["reached"] for row in rows), rows


def test_without_aliases_it_comes_to_the_optimum() -> None:
    # A hundredth of C is no promise, but big enough a step to get there.
    process = mdp.random_mdp(5, 4, 2)
    plan = tabular.monotonic_policy_iteration(process, 0.5, penalty=0.02, max_iterations=3000)
    assert -plan.history[-1] == pytest.approx(process.start @ tabular.value_iteration(process, 0.5).v, abs=1e-4)
    greedy = tabular.monotonic_policy_iteration(process, 0.5, penalty=0.0)
    assert -greedy.history[-1] == pytest.approx(process.start @ tabular.value_iteration(process, 0.5).v, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- soft planning


def test_soft_evaluation_is_a_contraction_with_a_known_fixed_point() -> None:
    process, pi, gamma, alpha = mdp.random_mdp(2, 5, 3), random_policy(3, 5, 3), 0.9, 0.7
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3)) * 10
    after = [tabular.soft_backup(process, q, pi, gamma, alpha) for q in (a, b)]
    assert np.max(np.abs(after[0] - after[1])) <= gamma * np.max(np.abs(a - b)) + 1e-12
    q = a
    for _ in range(400):
        q = tabular.soft_backup(process, q, pi, gamma, alpha)
    np.testing.assert_allclose(tabular.soft_evaluate(process, pi, gamma, alpha), q, atol=1e-10)


def test_soft_values_of_one_state_by_hand() -> None:
    # One decision, rewards 1 and 0: pi = (e, 1) / (e + 1) at alpha 1, V = log(e + 1).
    process = mdp.MDP(np.ones((1, 2, 1)), np.zeros((1, 2, 1)), np.array([[[1.0], [0.0]]]), np.ones((1, 2, 1)), np.ones(1))
    plan = tabular.soft_policy_iteration(process, 0.9)
    np.testing.assert_allclose(plan.policy, [[np.e / (np.e + 1), 1 / (np.e + 1)]], atol=1e-12)
    np.testing.assert_allclose(plan.v, [np.log(np.e + 1)], atol=1e-12)
    assert plan.history[0] == pytest.approx(0.5 + np.log(2))


def test_improvement_is_the_kl_projection() -> None:
    process, q, alpha = mdp.random_mdp(2, 4, 3), np.random.default_rng(0).normal(size=(4, 3)), 0.5
    log_p, v = tabular.boltzmann(process, q, alpha)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1.0)
    np.testing.assert_allclose(tabular.soft_value(q, np.exp(log_p), alpha), v, atol=1e-12)
    members = np.random.default_rng(1).dirichlet(np.ones(3), 7)
    members[0] = [1.0, 0.0, 0.0]
    chosen = tabular.onto(members)(log_p)
    for state in range(4):
        kls = [tabular.max_kl(m[None], np.exp(log_p[state])[None]) for m in members]
        np.testing.assert_array_equal(chosen[state], members[int(np.argmin(kls))])


def test_soft_policy_iteration_never_lowers_q_and_finds_the_limit() -> None:
    rows = benchmark().soft(processes=10)["rows"]
    assert all(row["reached"] for row in rows), rows


# ------------------------------------------------------------------------------------------------------------- solve


def test_solve_from_python_and_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = solve("q-value-iteration", two_cells(), gamma=0.5)
    assert found["value_of_start"] == pytest.approx(5.0) and found["policy"] == [[0.0, 1.0], [1.0, 0.0]]
    assert main(["solve", "value-iteration", "mdp:FrozenLake-v1", "--gamma", "0.95", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert abs(printed["value_of_start"] - 0.180472) < 5.1e-7 and abs(printed["policy_return"] - 0.7298) < 5.1e-5
    assert printed["iterations"] + 1 == len(printed["history"]) and np.shape(printed["policy"]) == np.shape(printed["q"]) == (16, 4)
    for method in tabular.PLANNERS:
        assert main(["solve", method, "mdp:maximisation-bias", "--gamma", "0.9", "--max-iterations", "300"]) == 0
        assert method in capsys.readouterr().out
    assert main(["solve", "monotonic-policy-iteration", "mdp:FrozenLake-v1", "--gamma", "0.9", "--penalty", "0"]) == 0
    assert "eta" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "value-iteratn", "mdp:Taxi-v4"], "did you mean 'value-iteration'"),
        (["solve", "value-iteration", "Taxi-v4"], "such as mdp:FrozenLake-v1"),
        (["solve", "value-iteration", "jax:CartPole-v1"], "such as mdp:FrozenLake-v1"),
        (["solve", "value-iteration", "mdp:FrozenLake-v1", "--env.num_envs", "4"], "num_envs is no option of the environment"),
        (["solve", "value-iteration", "mdp:FrozenLake-v1", "--env.seed", "4"], "seed is no option of the environment"),
        (["solve", "value-iteration", "mdp:CartPole-v1"], "no transition table"),
        (["solve", "value-iteration", "mdp:Taxi-v4", "--gamma", "2"], "from 0 to 1"),
        (["solve", "value-iteration", "mdp:Taxi-v4", "--gamma", "nan"], "not a finite number"),
        (["solve", "value-iteration", "mdp:Taxi-v4", "--penalty", "1"], "takes no penalty"),
        (["solve", "value-iteration", "mdp:Taxi-v4", "--max-iterations", "0"], "at least 1"),
        (["solve", "value-iteration"], "required"),
        (["train", "value-iteration", "mdp:Taxi-v4"], "flatirons solve value-iteration"),
        (["train", "tabular", "mdp:Taxi-v4", "--preset", "soft-policy-iteration"], "flatirons solve soft-policy-iteration"),
        (["train", "tabular", "jax:CartPole-v1"], "one whole number"),
        (["train", "tabular", "jax:Pendulum-v1"], "Discrete action space"),
        (["train", "tabular", "mdp:Taxi-v4", "--gamma", "1.5"], "gamma=1.5 makes no sense in tabular"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else []
    assert main([*arguments, *out]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- learners

TASK: Any = InGraph(mdp.random_mdp(0, 3, 2), 1, "random")
_update = jax.jit(tabular.update, static_argnums=1)


def one_row(obs: int, action: int, reward: float, next_obs: int, terminated: bool = False, truncated: bool = False) -> Transition:
    values = (jnp.int32(obs), jnp.int32(action), jnp.float32(reward), jnp.int32(next_obs), *map(jnp.bool_, (terminated, truncated, True)))
    return Transition(*(x[None, None] for x in values), (), ())


def learner(method: Any, values: Any, **settings: Any) -> tuple[Any, Any]:
    config = tabular.Config(method=method, gamma=0.9, learning_rate=0.1, **settings)
    state = tabular.init(config, TASK, jax.random.key(0))
    return config, state._replace(params={"values": jnp.asarray(values, jnp.float32)})


TABLE = np.array([[1.0, 2.0], [5.0, 3.0], [0.0, -1.0]])
OTHER = np.array([[0.5, 0.0], [7.0, 11.0], [2.0, 4.0]])


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (True, False), (False, True), (True, True)])
def test_one_update_by_hand(terminated: bool, truncated: bool) -> None:
    row = one_row(0, 1, 0.5, 1, terminated, truncated)
    config, state = learner("q-learning", TABLE[None])
    new, metrics = _update(config, TASK, state, row)
    y = 0.5 + (0.0 if terminated else 0.9 * 5.0)
    expected = TABLE.copy()
    expected[0, 1] += 0.1 * (y - 2.0)
    np.testing.assert_allclose(new.params["values"][0], expected, rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(0.5 * (y - 2.0) ** 2) and float(metrics["td_error"]) == pytest.approx(abs(y - 2.0))
    assert np.asarray(new.visits).sum() == 1 and int(new.visits[0, 0, 1]) == 1

    config, state = learner("td-0", TABLE[None, :, :1])
    new, _ = _update(config, TASK, state, row)
    y = 0.5 + (0.0 if terminated else 0.9 * 5.0)
    np.testing.assert_allclose(new.params["values"][0, :, 0], [1.0 + 0.1 * (y - 1.0), 5.0, 0.0], rtol=1e-6)


def test_double_q_learning_swaps_its_roles_at_random() -> None:
    config, state = learner("double-q-learning", np.stack([TABLE, OTHER]))
    seen = {0: 0, 1: 0}
    for seed in range(60):
        new, _ = _update(config, TASK, state._replace(key=jax.random.key(seed)), one_row(0, 1, 0.5, 1))
        changed = np.argwhere(np.asarray(new.params["values"]) != np.asarray(state.params["values"]))
        assert len(changed) == 1 and changed[0, 1:].tolist() == [0, 1]
        table = int(changed[0, 0])
        seen[table] += 1
        # TABLE selects action 0 in state 1, of which OTHER says 7; OTHER selects action 1, of which TABLE says 3.
        y = 0.5 + 0.9 * (7.0 if table == 0 else 3.0)
        before = (2.0, 0.0)[table]
        assert float(new.params["values"][table, 0, 1]) == pytest.approx(before + 0.1 * (y - before))
    assert min(seen.values()) > 15


def test_rows_of_a_trajectory_are_learned_from_in_turn() -> None:
    # The same row three times in one update equals three updates: the second sees what the first left.
    row = one_row(0, 1, 1.0, 0)
    config, state = learner("q-learning", TABLE[None], num_steps=3)
    thrice = jax.tree.map(lambda x: jnp.concatenate([x] * 3), row)
    together, _ = _update(config, TASK, state, thrice)
    for _ in range(3):
        state, _ = _update(config, TASK, state, row)
    np.testing.assert_allclose(together.params["values"], state.params["values"], rtol=1e-6)
    assert int(together.visits[0, 0, 1]) == 3


def test_alpha_falls_with_the_visits_of_the_entry() -> None:
    config, state = learner("q-learning", TABLE[None], learning_rate_decay=0.5)
    for n in (1, 2, 3, 4):
        before = float(state.params["values"][0, 2, 0])
        state, metrics = _update(config, TASK, state, one_row(2, 0, 3.0, 2, terminated=True))
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 / n**0.5)
        assert float(state.params["values"][0, 2, 0]) == pytest.approx(before + 0.1 / n**0.5 * (3.0 - before))
    state, metrics = _update(config, TASK, state, one_row(1, 0, 3.0, 2))
    assert float(metrics["learning_rate"]) == pytest.approx(0.1), "another entry has its own count"


def test_targets_take_legal_actions_only() -> None:
    values = np.zeros((2, 2, 10), np.float32)
    values[:, 0, :3] = [1.0, 2.0, 50.0]
    allowed = jnp.ones((2, 10), bool).at[0, 2].set(False)
    for method, tables in (("q-learning", 1), ("double-q-learning", 2)):
        config: Any = tabular.Config(method=method, gamma=1.0)
        for uniform in (0.0, 0.99):
            found = tabular.next_value(config, jnp.asarray(values[:tables]), allowed, 0, jnp.int32(0), jnp.float32(uniform))
            assert float(found) == 2.0


class Corridor(gym.Env):
    """Four steps of -1; only action 0 may be taken, and nothing else is ever worth anything."""

    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return 0, {"action_mask": np.array([1, 0, 0], np.int8)}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action == 0
        self.at += 1
        return self.at, -1.0, self.at == 4, False, {"action_mask": np.array([1, 0, 0], np.int8)}


@pytest.mark.parametrize("method", ["q-learning", "double-q-learning"])
def test_a_hosts_masks_are_known_of_successors_too(method: str, tmp_path: Path) -> None:
    run = fi.train("tabular", Corridor, out=tmp_path, quiet=True, method=method, total_steps=600, gamma=1.0, learning_rate=0.5)
    values = np.asarray(run.actor.values)
    np.testing.assert_allclose(values[:, :4, 0], np.tile([-4.0, -3.0, -2.0, -1.0], (len(values), 1)), atol=0.01)


def test_ties_are_broken_evenly_and_within_the_law() -> None:
    q = jnp.array([[1.0, 3.0, 3.0, 3.0, 0.0]])
    uniform = jnp.linspace(0.0, 1.0, 3000, endpoint=False)
    chosen = exploration.fair_greedy(uniform, jnp.broadcast_to(q, (3000, 5)))
    np.testing.assert_array_equal(np.bincount(chosen, minlength=5), [0, 1000, 1000, 1000, 0])
    legal = jnp.broadcast_to(jnp.array([[True, True, False, True, True]]), (3000, 5))
    chosen = exploration.fair_greedy(uniform, jnp.broadcast_to(q, (3000, 5)), legal)
    np.testing.assert_array_equal(np.bincount(chosen, minlength=5), [0, 1500, 0, 1500, 0])
    assert int(exploration.choose(jnp.float32(np.nextafter(np.float32(1), np.float32(0))), jnp.array([True, True, False]))) == 1
    many = jnp.broadcast_to(q, (30_000, 5))
    acted = np.asarray(exploration.fair_epsilon_greedy(jax.random.key(0), many, 0.5, jnp.broadcast_to(legal[:1], (30_000, 5))))
    shares = np.bincount(acted, minlength=5) / 30_000
    np.testing.assert_allclose(shares, [0.125, 0.375, 0.0, 0.375, 0.125], atol=0.015)


@functools.cache
def _trained(method: str, seeds: int, num_envs: int) -> tuple[np.ndarray, mdp.MDP, Any]:
    """Tables `[seeds, tables, S, columns]` after 30,000 decisions of random exploration on a process that ends now and then."""
    base = mdp.random_mdp(7, 4, 2)
    process = dataclasses.replace(base, terminated=np.broadcast_to(np.arange(4) == 3, base.probability.shape))
    task: Any = InGraph(process, num_envs, "ends")
    config: Any = tabular.Config(
        method=method, gamma=0.8, num_envs=num_envs, learning_rate=1.0, learning_rate_decay=0.7, epsilon_start=1.0, epsilon_end=1.0
    )

    def run(key: Any) -> Any:
        state = tabular.init(config, task, key)
        state = jax.lax.fori_loop(0, 30_000 // num_envs, lambda _, state: tabular.step(config, task, state)[0], state)
        return state.params["values"]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), seeds))), process, config


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("method", ["td-0", "q-learning", "double-q-learning"])
def test_learners_converge_to_what_planners_find(method: str, num_envs: int) -> None:
    values, process, config = _trained(method, 20, num_envs)
    exact = tabular.q_value_iteration(process, config.gamma).q
    if method == "td-0":
        exact = tabular.evaluate_policy(process, tabular.uniform(process), config.gamma)[:, None]
    # Without end in sight: far off where an end were overlooked or invented.
    error = values.mean(axis=1) - exact
    np.testing.assert_allclose(error.mean(axis=0), 0.0, atol=0.04)
    np.testing.assert_allclose(error, 0.0, atol=0.3)


def test_the_maximisation_bias_in_small() -> None:
    b = benchmark()
    for method, wanted in b.LEFT.items():
        share = 100.0 * b.lefts(method, 1500, 100).mean(axis=0)
        found = [share[at - 10 : at].mean() for at in (10, 50, 100)]
        np.testing.assert_allclose(found, wanted[:3], atol=4.0)


def test_two_thousand_seeds_in_one_program_equal_single_ones() -> None:
    task: Any = envs.make("mdp:CliffWalking-v1", 1)
    config: Any = tabular.Config(num_steps=5)

    def run(key: Any) -> Any:
        state = tabular.init(config, task, key)
        return jax.lax.scan(lambda state, _: (tabular.step(config, task, state)[0], None), state, None, length=6)[0].params["values"]

    keys = jax.random.split(jax.random.key(0), 2000)
    together = jax.jit(jax.vmap(run))(keys)
    single = jax.jit(run)
    assert len({np.asarray(x).tobytes() for x in together}) > 100
    for i in (0, 777, 1999):
        np.testing.assert_allclose(together[i], single(keys[i]), rtol=1e-6)


@pytest.mark.parametrize("method", ["td-0", "q-learning", "double-q-learning"])
def test_a_stopped_run_goes_on_bit_for_bit(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = "mdp:FrozenLake-v1"
    flags = ["--preset", method, "--total-steps", "3000", "--epsilon-steps", "1000", "--quiet"]
    assert main(["train", "tabular", task, *flags, "--out", str(tmp_path / "whole"), "--eval-every", "1000"]) == 0
    assert main(["train", "tabular", task, *flags, "--out", str(tmp_path / "cut"), "--stop-at", "1300"]) == 0
    assert main(["resume", str(tmp_path / "cut"), "--quiet"]) == 0
    module = systems.find("tabular")[0]
    assert module is tabular
    policies = [(tmp_path / name / "policy" / "policy.safetensors").read_bytes() for name in ("whole", "cut")]
    assert policies[0] == policies[1]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "cut"), "--episodes", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 50
    assert len((tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()) == 3


def test_it_learns_on_the_host_too(tmp_path: Path) -> None:
    import flatirons

    run = flatirons.train("tabular", "FrozenLake-v1", total_steps=600, num_envs=2, out=tmp_path / "host", quiet=True, env_options={})
    assert run.step == 600 and run.metrics[-1]["visited"] > 0.2
    assert run.policy(0) in range(4)


def test_presets_and_what_is_refused() -> None:
    assert systems.choose_preset(tabular, "mdp:Taxi-v4") == "q-learning" and systems.choose_preset(tabular, "mdp:random-walk") == "td-0"
    assert systems.choose_preset(tabular, "Taxi-v4") == "q-learning" and systems.choose_preset(tabular, "CartPole-v1") is None
    for settings, words in (
        ({"method": "sarsa"}, "choose td-0"),
        ({"num_steps": 0}, "at least 1"),
        ({"epsilon_end": 1.2}, "epsilon_end is 1.2"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
    ):
        with pytest.raises(FlatironsError, match=words):
            tabular.check(tabular.Config(**settings), TASK)
    vector = InGraph(mdp.random_mdp(0, 3, 2), 1)
    vector.spec = Spec(ArraySpec((2,), "int32", 0, 3), vector.spec.action)
    with pytest.raises(FlatironsError, match="one whole number"):
        tabular.check(tabular.Config(), vector)
