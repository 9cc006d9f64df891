"""DQN against its paper: targets and first steps by hand, when the target network moves, exploration, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.core import trees
from flatirons.data import replay as memory
from flatirons.envs import probes
from flatirons.envs.ingraph import InGraph
from flatirons.systems import dqn, find
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, Network, Spec, TimeStep, Transition

IDENTITY = Network(lambda key, spec: {}, lambda params, obs: jnp.asarray(obs))


@dataclasses.dataclass(frozen=True)
class Still:
    """Three numbers that never change, three actions."""

    max_episode_steps: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        return ArraySpec((3,))

    @property
    def action_spec(self) -> Discrete:
        return Discrete(3)

    def init(self, key: Any) -> Any:
        return jax.random.normal(key, (3,))

    def step(self, key: Any, state: Any, action: Any) -> Any:
        return state, action.astype(jnp.float32), jax.random.uniform(key) < 0.2

    def observe(self, state: Any) -> Any:
        return state

    def legal(self, state: Any) -> Any:
        return ()


TASK = InGraph(Still(), 1)
HAND: dict[str, Any] = {
    "network": IDENTITY, "num_envs": 1, "train_every": 1, "gradient_steps": 1, "batch_size": 4, "buffer_size": 8, "learning_starts": 0,
    "gamma": 0.9, "target_every": 1000, "learning_rate": 0.1, "max_grad_norm": None,
}  # fmt: skip
_update = jax.jit(dqn.update, static_argnums=1)


def _linear(seed: int) -> dict[str, Any]:
    w, b = jax.random.normal(jax.random.key(seed), (2, 3, 3))
    return {"torso": {}, "q": {"w": w, "b": b[0]}}


def _q(params: Any, obs: np.ndarray) -> np.ndarray:
    return obs @ np.asarray(params["q"]["w"], np.float64) + np.asarray(params["q"]["b"], np.float64)


def _state(config: dqn.Config) -> dqn.State:
    return dqn.init(config, TASK, jax.random.key(0))._replace(params=_linear(1), target=_linear(2))


def _row(terminated: bool = False, truncated: bool = False, reward: float = 0.7, seed: int = 0) -> Transition:
    obs, after = np.random.default_rng(seed).normal(size=(2, 1, 1, 3)).astype(np.float32)
    flags = [jnp.array([[x]]) for x in (terminated, truncated, True)]
    return Transition(jnp.asarray(obs), jnp.array([[1]]), jnp.array([[reward]]), jnp.asarray(after), *flags, (), ())


def _difference(a: Any, b: Any) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_targets_by_hand() -> None:
    config = dqn.Config(**HAND)
    obs, after = np.random.default_rng(0).normal(size=(2, 4, 3))
    reward, terminated = np.array([1.0, -2.0, 0.5, 3.0]), np.array([False, True, False, True])
    sampled = memory.Sample(
        jnp.asarray(obs, jnp.float32),
        jnp.zeros(4, jnp.int32),
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(after, jnp.float32),
        jnp.asarray(terminated),
        jnp.full(4, 0.9),
    )
    found = dqn.targets(config, TASK, _linear(1), _linear(2), sampled)
    np.testing.assert_allclose(found, reward + 0.9 * ~terminated * _q(_linear(2), after).max(1), rtol=1e-5)
    slope = jax.grad(lambda p: jnp.sum(dqn.targets(config, TASK, p, _linear(2), sampled)))(_linear(1))
    assert _difference(slope, jax.tree.map(jnp.zeros_like, slope)) == 0.0, "theta has no part in its own target"


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("optimiser", "eps", "error", "reward"),
    [("adam", 1e-3, "squared", 0.7), ("rmsprop", 0.01, "huber", 40.0), ("rmsprop-torch", 0.01, "huber", 0.7)],
)
def test_the_first_gradient_step_by_hand(optimiser: str, eps: float, error: str, reward: float, terminated: bool, truncated: bool) -> None:
    # The replay holds one transition, so the minibatch is that one, four times.
    config = dqn.Config(**HAND | {"optimiser": optimiser, "optimiser_eps": eps, "error": error})
    state, row = _state(config), _row(terminated, truncated, reward)
    new, metrics = _update(config, TASK, state, row)

    obs, after = np.asarray(row.obs[0, 0], np.float64), np.asarray(row.next_obs[0, 0], np.float64)
    y = reward + (0.0 if terminated else 0.9 * _q(state.target, after).max())
    miss = _q(state.params, obs)[1] - y
    slope = np.clip(miss, -1.0, 1.0) if error == "huber" else miss
    grads = {"w": np.outer(obs, np.eye(3)[1]) * slope, "b": np.eye(3)[1] * slope}
    second = {name: 0.05 * g**2 - (0.05 * g) ** 2 for name, g in grads.items()}
    divisor = {
        "adam": {name: np.abs(g) + eps for name, g in grads.items()},
        "rmsprop": {name: np.sqrt(n + eps) for name, n in second.items()},
        "rmsprop-torch": {name: np.sqrt(n) + eps for name, n in second.items()},
    }[optimiser]
    for name, g in grads.items():
        np.testing.assert_allclose(
            new.params["q"][name], np.asarray(state.params["q"][name]) - 0.1 * g / divisor[name], rtol=1e-4, atol=1e-5
        )
    assert _difference(new.target, state.target) == 0.0
    assert float(metrics["td_error"]) == pytest.approx(abs(miss), rel=1e-4)
    expected = 0.5 * miss**2 if error == "squared" or abs(miss) < 1 else abs(miss) - 0.5
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt(sum((g**2).sum() for g in grads.values())), rel=1e-4)


def test_gradient_clipping_is_of_the_global_norm() -> None:
    plain = dqn.Config(**HAND | {"optimiser": "rmsprop", "optimiser_eps": 100.0, "error": "squared"})  # a direction close to g / 10
    clipped = dataclasses.replace(plain, max_grad_norm=0.01)
    row = _row(True, False, 40.0)
    free, held = (_update(c, TASK, _state(c), row)[0].params for c in (plain, clipped))
    step = jax.tree.map(lambda a, b: a - b, held, _linear(1))
    assert float(trees.global_norm(step)) == pytest.approx(0.1 * 0.01 / 10.0, rel=0.05)
    assert float(trees.global_norm(jax.tree.map(lambda a, b: a - b, free, _linear(1)))) > 0.1


def test_the_target_network_moves_only_every_c_updates() -> None:
    config = dqn.Config(**HAND | {"target_every": 3})
    state = _state(config)
    for turn in range(1, 8):
        before = state
        state, _ = _update(config, TASK, state, _row(reward=float(turn), seed=turn))
        assert int(state.updates) == turn
        assert _difference(state.params, before.params) > 1e-3
        if turn % 3 == 0:
            assert _difference(state.target, state.params) == 0.0
        else:
            assert _difference(state.target, before.target) == 0.0
    several = dataclasses.replace(config, gradient_steps=4)
    state, _ = _update(several, TASK, _state(several), _row())
    assert int(state.updates) == 4 and _difference(state.target, _linear(2)) > 1e-3 and _difference(state.target, state.params) > 1e-4


def test_nothing_is_learned_before_learning_starts() -> None:
    config = dqn.Config(**HAND | {"learning_starts": 3, "gradient_steps": 2, "epsilon_steps": 4, "epsilon_end": 0.2})
    state = _state(config)
    assert float(state.epsilon) == 1.0
    for turn, epsilon in ((1, 0.8), (2, 0.6), (3, 0.4), (4, 0.2), (5, 0.2)):
        before = state
        state, metrics = _update(config, TASK, state, _row(seed=turn))
        assert (_difference(state.params, before.params) > 0.0) == (turn >= 3)
        assert int(state.updates) == 2 * max(0, turn - 2)
        assert int(state.replay.size[0]) == turn, "what is seen before is kept"
        assert float(state.epsilon) == pytest.approx(epsilon, abs=1e-6) and float(metrics["epsilon"]) == float(state.epsilon)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))


def test_epsilon_counts_decisions_over_all_environments() -> None:
    task = InGraph(Still(), 2)
    config = dqn.Config(**HAND | {"num_envs": 2, "train_every": 4, "epsilon_steps": 40, "epsilon_end": 0.0, "learning_starts": 1000})
    state = dqn.init(config, task, jax.random.key(0))
    state, _ = jax.jit(lambda s: dqn.step(config, task, s))(state)
    assert float(state.epsilon) == pytest.approx(0.9)
    assert dqn.steps_per_turn(config) == 4 == int(state.replay.size.sum())


def test_annealing_the_learning_rate() -> None:
    config = dqn.Config(**HAND | {"anneal_learning_rate": True, "total_steps": 4})
    for done, share in ((0, 1.0), (1, 0.75), (3, 0.25)):
        state = _state(config)._replace(turns=jnp.int32(done))
        new, _ = _update(config, TASK, state, _row())
        assert _difference(new.params["q"]["b"], state.params["q"]["b"]) == pytest.approx(0.1 * share, rel=1e-3)


def test_behaviour_and_evaluation_explore_as_told() -> None:
    n = 20_000
    config = dqn.Config(**HAND | {"eval_epsilon": 0.3})
    obs = jnp.ones((n, 3))
    best = int(np.argmax(_q(_linear(1), np.ones(3))))
    actor = dqn.Actor(_linear(1), jnp.float32(0.9))
    for greedy, epsilon in ((True, 0.3), (False, 0.9)):
        acting = dqn.policy(config, TASK, actor, greedy=greedy)
        drawn, carry, extras = acting.act(jax.random.key(0), TimeStep(obs, (), jnp.zeros(n, bool), ()), acting.reset(n))
        expected = np.full(3, epsilon / 3) + (1 - epsilon) * np.eye(3)[best]
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / n, expected, atol=0.015)
        assert carry == extras == ()
    legal = jnp.broadcast_to(jnp.arange(3)[None] != best, (n, 3))
    drawn = dqn.policy(config, TASK, actor, greedy=False).act(jax.random.key(1), TimeStep(obs, legal, jnp.zeros(n, bool), ()), ())[0]
    assert best not in np.unique(drawn)


def test_an_interrupted_host_run_ends_its_episodes() -> None:
    config = dqn.Config(**HAND)
    state, _ = _update(config, TASK, _state(config), _row())
    cut = dqn.interrupted(state)
    assert not state.replay.truncated.any() and np.asarray(cut.replay.truncated).sum() == 1
    assert cut.params is state.params and cut.collector is state.collector
    state, _ = _update(config, TASK, cut, _row(seed=5))
    np.testing.assert_array_equal(state.replay.size, [2])


# --------------------------------------------------------------------------------------------------------------- refusals


def _refusal(task: InGraph, **settings: Any) -> str:
    with pytest.raises(FlatironsError) as caught:
        dqn.check(dqn.Config(**settings), task)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Described:
    """A task of which only the description is read."""

    in_graph = True
    notes: tuple[str, ...] = ()

    def __init__(self, spec: Spec, num_envs: int = 1) -> None:
        self.name, self.spec, self.num_envs = "described", spec, num_envs


def test_a_box_of_actions_is_refused() -> None:
    message = _refusal(InGraph(probes.ENVS["continuous"], 1, "probe:continuous"))
    assert "Discrete" in message and "probe:continuous" in message and "Box" in message
    assert "Box" in _refusal(Described(Spec(ArraySpec((3,)), Box((0.0,), (1.0,)))))  # type: ignore[arg-type]


def test_a_replay_larger_than_memory_is_refused_with_its_bytes() -> None:
    spec = Spec(ArraySpec((4, 84, 84), "uint8", 0, 255, stack=4), Discrete(6))
    message = _refusal(Described(spec), buffer_size=1_000_000_000)  # type: ignore[arg-type]
    assert f"{memory.num_bytes(spec, 1, 1_000_000_000):,} bytes" in message
    assert "1,000,000,000 transitions" in message and "buffer_size" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_envs": 3, "train_every": 4}, "num_envs=3 does not divide train_every=4"),
        ({"num_envs": 3, "train_every": 4}, "train_every=12 and gradient_steps=3 keep 1 update every 4 decisions"),
        ({"num_envs": 8, "train_every": 250, "gradient_steps": 250}, "train_every=248 and gradient_steps=248 keep 1 update a decision"),
        ({"tau": 1.5}, "tau=1.5 would move the target beyond the online network"),
        ({"num_envs": 4, "buffer_size": 1002}, "buffer_size=1002"),
        ({"buffer_size": 2, "train_every": 4}, "buffer_size=2"),
        ({"batch_size": 0}, "at least 1"),
        ({"target_every": 0}, "at least 1"),
        ({"network": "cnn"}, "unknown network 'cnn'"),
    ],
)
def test_check_refuses_in_one_sentence(settings: dict[str, Any], words: str) -> None:
    assert words in _refusal(InGraph(Still(), settings.get("num_envs", 1)), **settings)


def test_a_budget_that_ends_before_learning_starts_is_said() -> None:
    (note,) = dqn.notes(dqn.Config(learning_starts=5_000, total_steps=5_000))
    assert note == "learning_starts=5_000 is not below total_steps=5_000: nothing will be learned"
    assert dqn.notes(dqn.Config()) == ()


def test_check_accepts_the_defaults_and_the_small_presets() -> None:
    for name in ("dqn-classic",):
        dqn.check(dqn.Config(**dqn.PRESETS[name].config), TASK)
    dqn.check(dqn.Config(), TASK)


def test_double_dqn_values_by_theta_minus_what_theta_chooses() -> None:
    obs, after = np.random.default_rng(0).normal(size=(2, 64, 3))
    sampled = memory.Sample(
        jnp.asarray(obs, jnp.float32), jnp.zeros(64, jnp.int32), jnp.ones(64), jnp.asarray(after, jnp.float32), jnp.zeros(64, bool),
        jnp.full(64, 0.9),
    )  # fmt: skip
    config = dqn.Config(**HAND | {"double": True})
    chosen = _q(_linear(1), after).argmax(1)
    expected = 1.0 + 0.9 * _q(_linear(2), after)[np.arange(64), chosen]
    np.testing.assert_allclose(dqn.targets(config, TASK, _linear(1), _linear(2), sampled), expected, rtol=1e-4)
    plain = dqn.targets(dataclasses.replace(config, double=False), TASK, _linear(1), _linear(2), sampled)
    assert (np.asarray(plain) >= expected - 1e-4).all() and (np.asarray(plain) > expected + 1e-3).any()
    slope = jax.grad(lambda p: jnp.sum(dqn.targets(config, TASK, p, _linear(2), sampled)))(_linear(1))
    assert _difference(slope, jax.tree.map(jnp.zeros_like, slope)) == 0.0, "theta chooses, and has no gradient from it"


def test_dueling_heads_by_hand() -> None:
    config = dqn.Config(**HAND | {"dueling": True})
    params = dqn.init_params(config, TASK, jax.random.key(0))
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    a = obs @ np.asarray(params["q"]["w"]) + np.asarray(params["q"]["b"])
    v = obs @ np.asarray(params["value"]["w"]) + np.asarray(params["value"]["b"])
    found = np.asarray(dqn.q_values(config, TASK, params, jnp.asarray(obs)))
    np.testing.assert_allclose(found, v + a - a.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean(1), v[:, 0], rtol=1e-4, atol=1e-5)


def test_a_bias_that_all_actions_share() -> None:
    config = dqn.Config(**HAND | {"shared_bias": True})
    params = dqn.init_params(config, TASK, jax.random.key(0))
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    by_hand = obs @ np.asarray(params["q"]["w"]) + float(params["q"]["b"][0])
    np.testing.assert_allclose(dqn.q_values(config, TASK, params, jnp.asarray(obs)), by_hand, rtol=1e-4, atol=1e-5)
    # Whatever action is learned from, all of them move with the bias.
    batch = dqn.Batch(jnp.asarray(obs), jnp.array([1, 1, 0, 0, 1]), jnp.asarray(by_hand[:, 0]) + 100.0)
    grads = jax.grad(lambda p: dqn.loss(config, TASK, p, batch)[0])(params)
    assert grads["q"]["b"].shape == (1,) and float(grads["q"]["b"][0]) == pytest.approx(-1.0, rel=1e-5), "five clipped errors, mean"
    assert find("double-dqn-tuned")[1]["shared_bias"]


def test_the_taylor_step_of_the_double_dqn_page() -> None:
    """One gradient step moves Q(s, a) by alpha (Y - Q) |grad Q|^2 to first order (van Hasselt 2016, equation 1)."""
    config = dqn.Config(**HAND | {"error": "squared"})
    params, obs = _linear(1), jnp.ones((1, 3))
    q = lambda p: dqn.q_values(config, TASK, p, obs)[0, 1]  # noqa: E731
    y, alpha = 5.0, 1e-4
    grads = jax.grad(lambda p: dqn.loss(config, TASK, p, dqn.Batch(obs, jnp.array([1]), jnp.array([y])))[0])(params)
    after = jax.tree.map(lambda p, g: p - alpha * g, params, grads)
    slope = jax.grad(q)(params)
    moved = float(q(after) - q(params))
    assert moved == pytest.approx(float(alpha * (y - q(params)) * sum(jnp.sum(g**2) for g in jax.tree.leaves(slope))), rel=1e-3)


def test_a_replay_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(FlatironsError, match="buffer_size=8 is smaller than a batch: make it at least batch_size=16"):
        dqn.check(dqn.Config(**HAND | {"batch_size": 16}), TASK)


def test_overlap_acts_one_training_behind() -> None:
    config = dqn.Config(**HAND | {"overlap": True})
    state = dqn.init(config, TASK, jax.random.key(0))
    assert _difference(state.behind.params, state.params) == 0.0
    step = jax.jit(lambda s: dqn.step(config, TASK, s))
    for _ in range(4):
        before = state
        state, _ = step(state)
        assert _difference(state.behind, dqn.actor(before)) == 0.0 and _difference(state.params, before.params) > 0.0


class Masked(Still):
    """Of three actions only the one that the clock in the state names is legal."""

    def init(self, key: Any) -> Any:
        return jnp.zeros(3)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        return state + 1.0, action.astype(jnp.float32), state[0] >= 5.0

    def legal(self, state: Any) -> Any:
        return jnp.arange(3) == state[0].astype(jnp.int32) % 3


@pytest.mark.parametrize("n_step", [1, 2])
def test_targets_take_legal_actions_only(n_step: int) -> None:
    task = InGraph(Masked(), 2)
    config = dqn.Config(**HAND | {"num_envs": 2, "train_every": 8, "buffer_size": 32, "learning_starts": 10_000, "n_step": n_step})
    state = dqn.init(config, task, jax.random.key(0))
    step = jax.jit(lambda s: dqn.step(config, task, s))
    for _ in range(3):
        state, _ = step(state)
    assert memory.num_bytes(task.spec, 2, 32, masked=True) == sum(x.nbytes for x in jax.tree.leaves(state.replay))
    newest = (int(state.replay.next) - 1) % 16
    starts = jnp.asarray([i for i in range(12) if i != newest])
    sampled = memory.read_at(state.replay, task.spec, starts, jnp.zeros(len(starts), jnp.int32), 0.9, n_step)
    clock = np.asarray(sampled.next_obs)[:, 0].astype(int)
    going_on = ~np.asarray(sampled.terminated)
    only = np.arange(3) == clock[:, None] % 3
    known = going_on & (np.asarray(sampled.next_legal).sum(1) == 1)
    assert known.sum() >= going_on.sum() - 1 and (np.asarray(sampled.next_legal)[known] == only[known]).all()
    found = np.asarray(dqn.targets(config, task, _linear(1), _linear(2), sampled))
    q = _q(_linear(2), np.asarray(sampled.next_obs))
    expected = np.asarray(sampled.reward) + np.asarray(sampled.discount) * (q * only).sum(1)
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4)
    actions = np.asarray(state.replay.action)[np.asarray(starts), 0]
    np.testing.assert_array_equal(actions, np.asarray(sampled.obs)[:, 0].astype(int) % 3)
