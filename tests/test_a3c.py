"""A3C and its family: returns and gradients by hand, stale copies, sarsa's next action, the shared memory, and the race."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import threading
import types
from typing import Any, cast

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatirons import envs, systems
from flatirons.core import returns
from flatirons.data import race
from flatirons.nets import recurrent
from flatirons.systems import a3c
from flatirons.types import FlatironsError, Transition

SMALL: dict[str, Any] = {"num_envs": 4, "actor_learners": 2, "num_steps": 3, "hidden": (8,), "total_steps": 1200, "learning_rate": 0.01}


def _task(name: str = "jax:CartPole-v1", num_envs: int = 4) -> Any:
    return envs.make(name, num_envs)


def test_segment_return_by_hand() -> None:
    reward, following = np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 30.0, 40.0])
    never = np.zeros(4, bool)
    np.testing.assert_allclose(returns.segment_return(reward, following, never, never, 0.5)[0], 1 + 1 + 0.75 + 0.5 + 40 / 16)
    ended = np.array([False, True, False, False])
    # A termination has no successor, a cut one has.
    np.testing.assert_allclose(returns.segment_return(reward, following, ended, never, 0.5), [2.0, 2.0, 3 + 0.5 * 24, 24.0])
    np.testing.assert_allclose(returns.segment_return(reward, following, never, ended, 0.5), [1 + 0.5 * 12, 12.0, 15.0, 24.0])


def _fresh(config: Any, task: Any, seed: int = 0) -> Any:
    return jax.jit(functools.partial(a3c.init, config, task))(jax.random.key(seed))


def _showing_step(config: Any, task: Any) -> Any:
    """A compiled step: the State after it, and the trajectory that its update was given."""

    def step(state: Any) -> Any:
        seen: list[Transition] = []

        def spying(config: Any, task: Any, state: Any, experience: Any) -> Any:
            seen.append(experience)
            return a3c.update(config, task, state, experience)

        return a3c.step(config, task, state, update=spying)[0], seen[0]

    return jax.jit(step)


def test_every_gradient_is_at_its_own_copy_and_applied_in_order() -> None:
    task, config = _task(), a3c.Config(**SMALL, anneal_learning_rate=False, rmsprop_eps=0.01)
    state, step = _fresh(config, task), _showing_step(config, task)
    params, copies = state.params, [state.params, state.params]
    square = jax.tree.map(jnp.zeros_like, params)
    one = dataclasses.replace(config, num_envs=2, actor_learners=1)
    gradient = jax.jit(lambda copy, rows: a3c.gradient(one, task, copy, (), rows, rows.action, jnp.ones((3, 2)))[0])
    for _ in range(3):
        state, seen = step(state)
        for i in (0, 1):
            grads = gradient(copies[i], jax.tree.map(lambda x, i=i: x[:, 2 * i : 2 * i + 2], seen))
            square = jax.tree.map(lambda g, d: 0.99 * g + 0.01 * d * d, square, grads)
            params = jax.tree.map(lambda p, g, d: p - 0.01 * d / jnp.sqrt(g + 0.01), params, square, grads)
            copies[i] = params
        for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    # The second copy is new, the first lacks the second's update.
    assert not np.allclose(state.copies["head"]["w"][0], state.params["head"]["w"])
    np.testing.assert_array_equal(state.copies["head"]["w"][1], state.params["head"]["w"])


def test_the_gradient_is_the_papers() -> None:
    """Algorithm S3 row by row, with the derivative of each term taken on its own."""
    task = _task(num_envs=1)
    config = a3c.Config(**SMALL | {"num_envs": 1, "actor_learners": 1, "num_steps": 4}, ent_coef=0.02, value_coef=0.5, gamma=0.9)
    state = _fresh(config, task, 3)
    _, r = _showing_step(config, task)(state)
    theta = state.params

    def pi(params: Any, t: int) -> jax.Array:
        return jax.nn.log_softmax(a3c._head(params, a3c._features(config, task, params, r.obs[t])))[0]

    def v(params: Any, t: int, obs: Any = None) -> jax.Array:
        return a3c.value(config, task, params, r.obs[t] if obs is None else obs)[0]

    total, expected = float(v(theta, 3, r.next_obs[3])), jax.tree.map(jnp.zeros_like, theta)
    for t in (3, 2, 1, 0):
        total = float(r.reward[t, 0]) + 0.9 * total
        advantage = total - float(v(theta, t))
        terms = [
            jax.grad(lambda p, t=t, a=advantage: -pi(p, t)[r.action[t, 0]] * a)(theta),
            jax.grad(lambda p, t=t: 0.02 * jnp.sum(jnp.exp(pi(p, t)) * pi(p, t)))(theta),
            jax.grad(lambda p, t=t, total=total: 0.5 * (total - v(p, t)) ** 2)(theta),
        ]
        expected = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), terms, expected)
    found, _ = jax.jit(lambda theta: a3c.gradient(config, task, theta, (), r, r.action, jnp.ones((4, 1))))(theta)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_sarsa_bootstraps_the_action_taken_next() -> None:
    config = a3c.Config(**SMALL | {"num_envs": 2, "actor_learners": 1}, method="sarsa", epsilon_ends=(1.0,), epsilon_shares=(1.0,))
    task = _task("jax:CartPole-v1", 2)
    state = _fresh(config, task, 1)
    turns: list[Transition] = []
    losses: list[Any] = []

    def spying_loss(config: Any, task: Any, params: Any, batch: Any) -> Any:
        jax.debug.callback(losses.append, batch)
        return a3c.loss(config, task, params, batch)

    def spying(config: Any, task: Any, state: Any, experience: Any) -> Any:
        jax.debug.callback(turns.append, experience)
        return a3c.update(config, task, state, experience, loss=spying_loss)

    target = state.target
    turn = jax.jit(lambda state: a3c.step(config, task, state, update=spying)[0])
    for _ in range(2):
        state = turn(state)
        jax.effects_barrier()
    np.testing.assert_array_equal(losses[0].weight[0], 0.0)  # nothing waited before the first turn
    np.testing.assert_array_equal(losses[0].weight[1:], 1.0)
    np.testing.assert_array_equal(losses[1].weight, 1.0)
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *turns)
    for t in range(2, 5):  # the second turn learns from rows 2, 3 and 4
        np.testing.assert_array_equal(losses[1].action[t - 2], rows.action[t])
        q = a3c._head(target, a3c._features(config, task, target, rows.next_obs[t]))
        taken = q[jnp.arange(2), rows.action[t + 1]]
        y = rows.reward[t] + config.gamma * jnp.where(rows.terminated[t], 0.0, taken)
        np.testing.assert_allclose(losses[1].target[t - 2], y, rtol=1e-5)


@pytest.mark.parametrize("method", ["q", "nstep-q"])
def test_q_targets_are_theta_minus_s(method: Any) -> None:
    task = _task()
    config = a3c.Config(**SMALL, method=method, target_every=10**6)
    state = _fresh(config, task)
    state = state._replace(target=jax.tree.map(lambda x: 2.0 * x, state.target))
    _, rows = _showing_step(config, task)(state)
    q = a3c._head(state.target, a3c._features(config, task, state.target, rows.next_obs))

    @jax.jit
    def targets(state: Any, next_legal: Any) -> jax.Array:
        masked = rows._replace(extras=rows.extras._replace(next_legal=next_legal))
        return a3c._targets(config, task, state.params, state.target, masked, rows.action)

    # Where the worse action alone is legal, no value comes from the other.
    worse = jax.nn.one_hot(jnp.argmin(q, axis=-1), 2) > 0
    for legal, value in ((jnp.ones_like(worse), jnp.max(q, axis=-1)), (worse, jnp.min(q, axis=-1))):
        found, value = targets(state, legal), jnp.where(rows.terminated, 0.0, value)
        if method == "q":
            np.testing.assert_allclose(found, rows.reward + 0.99 * value, rtol=1e-5)
        else:
            np.testing.assert_allclose(found[0], 1 + 0.99 + 0.99**2 + 0.99**3 * value[-1], rtol=1e-5)


def test_the_mask_of_a_next_state_is_the_next_rows_or_the_one_that_waits() -> None:
    legal = np.array([[[True, False]], [[False, True]], [[True, False]]])
    newest, flags = np.array([[False, True]]), np.zeros((3, 1), bool)
    task: Any = types.SimpleNamespace(in_graph=False, current=types.SimpleNamespace(legal=newest))
    rows = Transition((), (), (), (), flags, np.array([[False], [True], [False]]), flags, legal, a3c.Extras((), ()))
    found = a3c._with_next_legal(a3c.Config(method="q"), task, cast(Any, None), rows).extras.next_legal
    # After a cut the next row is another episode's.
    assert found.tolist() == [[[False, True]], [[True, True]], [[False, True]]]
    assert a3c._with_next_legal(a3c.Config(), task, cast(Any, None), rows) is rows


def test_theta_minus_is_taken_every_so_many_decisions() -> None:
    task, config = _task(), a3c.Config(**SMALL, method="q", target_every=24)
    state = _fresh(config, task)
    step = jax.jit(functools.partial(a3c.step, config, task))
    same = []
    for _ in range(4):  # 12 decisions a turn
        state, _ = step(state)
        same.append(np.array_equal(state.target["head"]["w"], state.params["head"]["w"]))
    assert same == [False, True, False, True]


def test_the_variance_of_continuous_actions_depends_on_the_state() -> None:
    task = _task("jax:Pendulum-v1")
    config = a3c.Config(**SMALL, share_torso=False)
    state = _fresh(config, task)
    params = state.params | {"head": jax.tree.map(lambda x: x + 0.5, state.params["head"])}
    pi = a3c._pi(task, a3c._head(params, a3c._features(config, task, params, jnp.array([[1.0, 0, 0], [0, 1.0, 5.0]]))), ())
    out = a3c._head(params, a3c._features(config, task, params, jnp.array([[1.0, 0, 0], [0, 1.0, 5.0]])))
    np.testing.assert_allclose(jnp.exp(2 * pi.log_std)[:, 0], jnp.log1p(jnp.exp(out[:, 1])), rtol=1e-4)
    assert abs(float(pi.log_std[0, 0] - pi.log_std[1, 0])) > 0.01


# ------------------------------------------------------------------------------------------------------------ the memory


def test_an_lstm_unrolled_is_its_steps_and_forgets_between_episodes() -> None:
    params = recurrent.lstm_init(jax.random.key(0), 3, 5)
    x = jax.random.normal(jax.random.key(1), (4, 2, 3))
    first = jnp.array([[True, False], [False, False], [False, True], [False, False]])
    memory = recurrent.Memory(*(jnp.full((2, 5), 0.3) for _ in range(2)))
    together = recurrent.unroll(params, memory, x, first)
    for t in range(4):
        memory = recurrent.lstm(params, recurrent.forget(memory, first[t]), x[t])
        np.testing.assert_allclose(together.h[t], memory.h, rtol=1e-5)
    fresh = recurrent.lstm(params, recurrent.blank(2, 5), x[2])
    np.testing.assert_allclose(together.h[2, 1], fresh.h[1], rtol=1e-5)
    # By hand: gates in the order input, forget, output, candidate.
    gates = np.concatenate([x[2], np.zeros((2, 5))], axis=1) @ np.asarray(params["w"]) + np.asarray(params["b"])
    i, _, o = (1 / (1 + np.exp(-gates[:, 5 * k : 5 * k + 5])) for k in range(3))
    np.testing.assert_allclose(fresh.h, o * np.tanh(i * np.tanh(gates[:, 15:])), rtol=1e-4)


def test_recurrent_learners_start_each_trajectory_with_the_memory_they_acted_with() -> None:
    task, config = _task(), a3c.Config(**SMALL, lstm=6, share_torso=False)
    state = _fresh(config, task)

    def showing(config: Any, task: Any, params: Any, batch: Any) -> Any:
        total, metrics = a3c.loss(config, task, params, batch)
        return total, metrics | {"memory": jnp.abs(batch.memory["torso"].h).max()}

    step = jax.jit(functools.partial(a3c.step, config, task, update=functools.partial(a3c.update, loss=showing)))
    remembered = []
    for _ in range(2):
        acted_from = jnp.abs(state.collector.carry["torso"].h).reshape(2, -1).max(axis=1).mean()
        state, metrics = step(state)
        remembered.append(float(metrics["memory"]))
        np.testing.assert_allclose(remembered[-1], acted_from, rtol=1e-6)
    assert remembered[0] == 0.0 < remembered[1], "the memory of the turn before"
    assert np.isfinite(float(metrics["loss"]))


# -------------------------------------------------------------------------------------------------------------- the race


def test_shared_rmsprop_is_the_papers_and_in_place() -> None:
    rng = np.random.default_rng(0)
    shared = race.Shared(100_000)
    shared.theta[:] = start = rng.normal(size=100_000).astype(np.float32)
    optimiser, params = optax.scale_by_rms(0.99, 0.1, eps_in_sqrt=True), jnp.asarray(start)
    memory, state = shared.theta, optimiser.init(jnp.asarray(start))
    for _ in range(3):
        gradient = rng.normal(size=100_000).astype(np.float32)
        shared.descend(gradient, 0.01, 0.99, 0.1)
        direction, state = optimiser.update(jnp.asarray(gradient), state)
        params = params - 0.01 * direction
    assert shared.theta is memory
    np.testing.assert_allclose(shared.theta, params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_the_counter_is_exact(apart: bool) -> None:
    # Locks on a file do not hold between threads, so that only one takes there.
    shared, taken = race.Shared(1, apart=apart), []

    def take() -> None:
        while (count := shared.claim(5, 10_003)) is not None:
            taken.append(count)

    threads = [threading.Thread(target=take) for _ in range(1 if apart else 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(0, 10_000, 5)) and shared.count == 10_000


RACE: dict[str, Any] = SMALL | {"num_envs": 2, "trajectories": 20}


def _raced(config: a3c.Config, task: Any, turns: int = 2) -> tuple[Any, Any]:
    a3c.check(config, task)
    state = jax.jit(a3c.init, static_argnums=(0, 1))(config, task, jax.random.key(0))
    metrics = {}
    for _ in range(turns):
        state, metrics = a3c.step(config, task, state)
    return state, metrics


@pytest.mark.parametrize("method", ["a3c", "sarsa", "nstep-q"])
def test_threads_race_and_count_exactly(method: Any) -> None:
    config, task = a3c.Config(**RACE, mode="threads", method=method, lstm=4 if method == "a3c" else 0), envs.make("CartPole-v1", 2)
    state, metrics = _raced(config, task)
    assert int(state.updates) == 40 and task.__dict__["race"].shared.count == 40 * 3 == 2 * a3c.steps_per_turn(config)
    assert metrics["episodes"].length_sum <= 120 and np.isfinite(metrics["loss"])
    fresh = _fresh(config, task)
    assert not np.allclose(state.params["head"]["w"], fresh.params["head"]["w"])
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(fresh)]
    task.close()


def test_processes_race(capfd: pytest.CaptureFixture[str]) -> None:
    config, task = a3c.Config(**RACE, mode="processes"), envs.make("CartPole-v1", 2)
    state, metrics = _raced(config, task, turns=1)
    assert int(state.updates) == 20 and np.isfinite(metrics["loss"])
    assert a3c.data.host_run(task).seconds["compile"] > 0.0, "theirs, which this process does not see"
    team = task.__dict__["race"].team
    team._children[0].kill()
    with pytest.raises(FlatironsError, match=r"actor-learner 0's process ended by signal 9.*resume"):
        a3c.step(config, task, state)
    team.close()
    task.close()


def test_a_copy_of_theta_is_not_written_by_others() -> None:
    config, task = a3c.Config(**RACE | {"num_envs": 1, "actor_learners": 1}), envs.make("CartPole-v1", 1)
    size = sum(x.size for x in jax.tree.leaves(a3c.init_params(config, task, jax.random.key(0))))
    shared = race.Shared(size)
    learner = a3c.ActorLearner(config, task, shared, jax.random.key(0))
    copy = jax.block_until_ready(learner._copies(shared.theta))
    shared.theta += 1.0
    assert all(float(jnp.abs(x).max()) == 0.0 for x in jax.tree.leaves(copy))
    task.close()


def test_an_error_in_one_learner_ends_the_race() -> None:
    class Breaks(gymnasium.Wrapper):
        def step(self, action: Any) -> Any:
            raise ValueError("the motor is off")

    config = a3c.Config(**RACE, mode="threads")
    task = envs.make(lambda: Breaks(gymnasium.make("CartPole-v1")), 2, vectoriser="serial")
    with pytest.raises(FlatironsError, match="the motor is off"):
        _raced(config, task, turns=1)
    task.close()


# --------------------------------------------------------------------------------------------------------------- presets


def test_each_task_has_one_preset_at_most() -> None:
    names = (
        "HalfCheetah-v5",
        "Hopper-v5",
        "InvertedDoublePendulum-v5",
        "HumanoidStandup-v5",
        "Pendulum-v1",
        "jax:Pendulum-v1",
        "CartPole-v1",
    )
    names += ("ALE/Pong-v5", "pgx:minatar-breakout", "jax:RandomMaze-v0")
    for name in names:
        own = {p: preset.tasks for p, preset in a3c.PRESETS.items() if not preset.variant_of}
        fitting = [p for p, tasks in own.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in tasks)]
        assert fitting == [systems.choose_preset(a3c, name)]
    assert {systems.choose_preset(a3c, name) for name in names[:4]} == {"a3c-continuous"}


def test_the_continuous_preset_suits_a_box_of_actions() -> None:
    config = a3c.Config(**a3c.PRESETS["a3c-continuous"].config)
    a3c.check(config, _task("jax:Pendulum-v1", config.num_envs))
    assert config.ent_coef == 1e-4 and not config.share_torso


def test_who_takes_turns_says_so() -> None:
    assert "16 actor-learners take turns" in (said := a3c.notes(a3c.Config(**a3c.PRESETS["a3c-paper"].config))[0])
    assert "15 updates old" in said and "--mode processes" in said and "outside JAX" in said
    assert a3c.notes(a3c.Config(**a3c.PRESETS["a2c"].config)) == ()
    assert "race" in a3c.notes(a3c.Config(mode="threads"))[0]


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "task", "words"),
    [
        ({"actor_learners": 8}, "jax:CartPole-v1", "actor_learners=8 is more than num_envs=4"),
        ({"actor_learners": 3}, "jax:CartPole-v1", "does not divide num_envs=4"),
        ({"mode": "threads"}, "jax:CartPole-v1", "tasks outside JAX"),
        ({"method": "q"}, "jax:Pendulum-v1", "needs a Discrete action space"),
        ({"method": "q", "epsilon_shares": (0.5, 0.5)}, "jax:CartPole-v1", "epsilon_ends has 3 entries"),
        ({"method": "q", "epsilon_shares": (0.5, 0.4, 0.3)}, "jax:CartPole-v1", "their sum 1"),
        ({"lstm": -1}, "jax:CartPole-v1", "lstm must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], task: str, words: str) -> None:
    with pytest.raises(FlatironsError, match=words):
        a3c.check(a3c.Config(**SMALL | settings), _task(task))


def test_processes_need_a_name() -> None:
    task = envs.make(lambda: gymnasium.make("CartPole-v1"), 4, vectoriser="serial")
    with pytest.raises(FlatironsError, match="use mode=threads"):
        a3c.check(a3c.Config(**SMALL, mode="processes"), task)
    task.close()
