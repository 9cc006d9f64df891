"""PPO against its paper: the surrogate at theta_old, the loss by hand, bootstraps, normalisers, schedules, spaces, messages."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.core import exploration, losses
from flatirons.core.distributions import Categorical, mask_logits, multi_categorical
from flatirons.data import rollout as data
from flatirons.envs.ingraph import InGraph
from flatirons.nets import actor_critic, recurrent
from flatirons.nets.mlp import mlp
from flatirons.systems import ppo
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Network, TimeStep, Transition

ACTIONS = {"discrete": Discrete(3), "masked": Discrete(3), "multi": MultiDiscrete((2, 3)), "box": Box((-1.0, -1.0), (1.0, 2.0))}


@dataclasses.dataclass(frozen=True)
class World:
    """Random observations, rewards of observation and action, ends by chance; of any action space, with a Dict or an array to see."""

    actions: str = "discrete"
    dict_obs: bool = False
    max_episode_steps: int | None = 6

    @property
    def obs_spec(self) -> Any:
        return {"n": ArraySpec((), "int32", 0, 3), "x": ArraySpec((3,))} if self.dict_obs else ArraySpec((3,))

    @property
    def action_spec(self) -> Any:
        return ACTIONS[self.actions]

    def init(self, key: Any) -> Any:
        return 4.0 + 3.0 * jax.random.normal(key, (3,))

    def step(self, key: Any, state: Any, action: Any) -> Any:
        key_state, key_end = jax.random.split(key)
        return self.init(key_state), jnp.sum(action).astype(jnp.float32) + state[0], jax.random.uniform(key_end) < 0.15

    def observe(self, state: Any) -> Any:
        return {"n": jnp.int32(jnp.abs(state[0])) % 4, "x": state} if self.dict_obs else state

    def legal(self, state: Any) -> Any:
        return jnp.stack([jnp.array(True), state[0] > 4.0, jnp.array(False)]) if self.actions == "masked" else ()


KINDS: dict[str, tuple[World, dict[str, Any]]] = {
    "discrete": (World(), {"normalise_obs": True, "normalise_reward": True}),
    "masked": (World("masked"), {"share_torso": True, "clip_value": True, "ent_coef": 0.01}),
    "multi": (World("multi", dict_obs=True), {"normalise_obs": True}),
    "box": (World("box"), {"share_torso": True, "normalise_obs": True}),
}
SMALL = {"num_envs": 4, "num_steps": 16, "num_epochs": 1, "num_minibatches": 1, "hidden": (16,), "total_steps": 64 * 4}


@functools.cache
def _compiled(kind: str) -> tuple[ppo.Config, InGraph, Any, Any]:
    world, settings = KINDS[kind]
    config, task = ppo.Config(**SMALL | settings), InGraph(world, 4)

    def turn(state: ppo.State) -> Any:
        collector, experience, _ = data.rollout(config, task, ppo.policy, ppo.actor(state), state.collector, config.num_steps)
        new, metrics = ppo.update(config, task, state._replace(collector=collector), experience)
        return new, metrics, experience

    return config, task, jax.jit(lambda key: ppo.init(config, task, key)), jax.jit(turn)


@pytest.mark.parametrize("kind", KINDS)
def test_at_theta_old_the_ratio_is_one(kind: str) -> None:
    _, _, init, turn = _compiled(kind)
    state = init(jax.random.key(0))
    for _ in range(2):  # in the second turn the observation moments are at work
        state, metrics, experience = turn(state)
        assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)
        assert float(metrics["clip_fraction"]) == 0.0
        assert float(metrics["surrogate"]) == pytest.approx(0.0, abs=1e-5), "the mean of normalised advantages"
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    if kind == "masked":
        assert np.take_along_axis(np.asarray(experience.legal), np.asarray(experience.action)[..., None], -1).all()
        assert not np.asarray(experience.legal)[..., 2].any() and len(np.unique(experience.action)) == 2
    spec = ACTIONS[kind]
    assert experience.action.shape == (16, 4, *(() if isinstance(spec, Discrete) else (2,)))
    assert experience.action.dtype == (jnp.float32 if kind == "box" else jnp.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_pg_cpi_and_clip_are_one_at_theta_old(kind: str) -> None:
    config, task, init, turn = _compiled(kind)
    state = init(jax.random.key(1))
    state, _, experience = turn(state)
    plain = dataclasses.replace(config, value_coef=0.0, ent_coef=0.0, normalise_advantage=False)

    @jax.jit
    def gradients(params: Any, experience: Transition) -> Any:
        rows = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), experience)
        obs = ppo.prepare(task, state.normaliser.obs, rows.obs)
        advantage = jax.random.normal(jax.random.key(2), rows.reward.shape)

        def log_prob(p: Any) -> Any:
            return ppo.distribution(plain, task, p, obs, rows.legal).log_prob(rows.action)

        old = jax.lax.stop_gradient(log_prob(params))
        batch = ppo.Batch(obs, rows.legal, rows.action, old, advantage, advantage, advantage)
        pg = jax.grad(lambda p: jnp.mean(log_prob(p) * advantage))(params)
        cpi = jax.grad(lambda p: jnp.mean(jnp.exp(log_prob(p) - old) * advantage))(params)
        clip = jax.grad(lambda p: -ppo.loss(plain, task, p, batch)[0])(params)
        moved = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
        ratio = jnp.exp(log_prob(moved) - old)
        below = losses.clipped_surrogate(ratio, advantage, plain.clip_eps) - ratio * advantage
        return pg, cpi, clip, below, -ppo.loss(plain, task, moved, batch)[0], jnp.mean(ratio * advantage)

    pg, cpi, clip, below, clipped, unclipped = gradients(state.params, experience)
    assert any(float(jnp.abs(x).max()) > 1e-3 for x in jax.tree.leaves(pg))
    for a, b, c in zip(*map(jax.tree.leaves, (pg, cpi, clip)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
        np.testing.assert_allclose(c, a, atol=1e-6)
    assert (below <= 1e-5).all() and float(below.min()) < -1e-3
    assert float(clipped) < float(unclipped)


# ----------------------------------------------------------------------------------------------------------------- by hand

IDENTITY = Network(lambda key, spec: {}, lambda params, obs: jnp.asarray(obs))
HAND_TASK = InGraph(World(), 1)


def _hand_params(value_weights: tuple[float, ...] = (1.0, -1.0, 0.5)) -> dict[str, Any]:
    """Logits are obs @ I and V(s) = obs . weights + 0.25."""
    value = {"w": jnp.array(value_weights)[:, None], "b": jnp.array([0.25])}
    return {"torso": {}, "value_torso": {}, "policy": {"w": jnp.eye(3), "b": jnp.zeros(3)}, "value": value}


@pytest.mark.parametrize(("normalised", "clip_value"), [(False, False), (True, False), (False, True)])
def test_the_loss_of_three_rows_by_hand(normalised: bool, clip_value: bool) -> None:
    config = ppo.Config(
        network=IDENTITY, clip_eps=0.2, value_coef=0.7, ent_coef=0.03, normalise_advantage=normalised, clip_value=clip_value
    )
    obs = np.array([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0], [0.5, 0.5, -3.0]])
    action, advantage = np.array([2, 0, 1]), np.array([1.5, -2.0, 0.5])
    old_value, target = np.array([0.0, 2.0, -1.5]), np.array([1.0, 3.0, -2.0])
    p = np.exp(obs) / np.exp(obs).sum(1, keepdims=True)
    old = np.log(p[np.arange(3), action]) - np.log([1.5, 0.5, 1.05])  # so the ratios are 1.5, 0.5, 1.05

    a = (advantage - advantage.mean()) / advantage.std() if normalised else advantage
    ratio = np.array([1.5, 0.5, 1.05])
    surrogate = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    v = obs @ [1.0, -1.0, 0.5] + 0.25
    near = old_value + np.clip(v - old_value, -0.2, 0.2)
    square = np.maximum((v - target) ** 2, (near - target) ** 2) if clip_value else (v - target) ** 2
    entropy = -(p * np.log(p)).sum(1).mean()
    expected = -surrogate + 0.7 * 0.5 * square.mean() - 0.03 * entropy

    f = [jnp.asarray(x, jnp.float32) for x in (obs, old, old_value, advantage, target)]
    batch = ppo.Batch(f[0], (), jnp.asarray(action), f[1], f[2], f[3], f[4])
    total, metrics = ppo.loss(config, HAND_TASK, _hand_params(), batch)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["surrogate"]) == pytest.approx(surrogate, rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 3)
    assert float(metrics["approx_kl"]) == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-4)


def _hand_state(config: ppo.Config, params: Any) -> ppo.State:
    state = ppo.init(config, HAND_TASK, jax.random.key(0))
    return state._replace(params=params)


def _experience(reward: list[float], terminated: list[int], truncated: list[int]) -> Transition:
    n = len(reward)
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, n, 1, 3)).astype(np.float32)
    ends = [bool(a or b) for a, b in zip(terminated, truncated, strict=True)]
    for t in range(n - 1):
        if not ends[t]:
            after[t] = obs[t + 1]

    def column(x: np.ndarray) -> np.ndarray:
        return x.reshape(n, 1)

    return Transition(
        jnp.asarray(obs),
        jnp.asarray(column(np.arange(n) % 3), jnp.int32),
        jnp.asarray(column(np.array(reward, np.float32))),
        jnp.asarray(after),
        jnp.asarray(column(np.array(terminated, bool))),
        jnp.asarray(column(np.array(truncated, bool))),
        jnp.asarray(column(np.array([True, *ends[:-1]]))),
        (),
        (),
    )


def _telling(config: Any, task: Any, params: Any, batch: Any) -> Any:
    """PPO's loss, which says what its batch holds (of all rows, in their order when there is one minibatch)."""
    total, metrics = ppo.loss(config, task, params, batch)
    told = {f"advantage{i}": batch.advantage[i] for i in range(6)} | {f"target{i}": batch.target[i] for i in range(6)}
    return total, metrics | told | {"clip_eps": jnp.asarray(config.clip_eps)}


def _told(metrics: Any, name: str) -> np.ndarray:
    return np.array([float(metrics[f"{name}{i}"]) for i in range(6)])


HAND: dict[str, Any] = {
    "network": IDENTITY, "num_envs": 1, "num_steps": 6, "num_epochs": 1, "num_minibatches": 1, "gamma": 0.9, "gae_lambda": 0.8,
    "total_steps": 24,
}  # fmt: skip
_update = jax.jit(ppo.update, static_argnums=1, static_argnames="loss")


def test_targets_bootstrap_at_truncation_and_not_at_termination() -> None:
    config = ppo.Config(**HAND)
    experience = _experience([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0])
    weights = np.array([1.0, -1.0, 0.5])
    v, w = (np.asarray(x, np.float64)[:, 0] @ weights + 0.25 for x in (experience.obs, experience.next_obs))
    r = np.asarray(experience.reward)[:, 0]
    delta = np.array([
        r[0] + 0.9 * w[0] - v[0],
        r[1] - v[1],  # terminated
        r[2] + 0.9 * w[2] - v[2],  # truncated: its successor counts
        r[3] + 0.9 * w[3] - v[3],
        r[4] - v[4],  # both: a termination
        r[5] + 0.9 * w[5] - v[5],
    ])  # fmt: skip
    advantage = delta + 0.72 * np.array([delta[1], 0, 0, delta[4], 0, 0])
    _, metrics = _update(config, HAND_TASK, _hand_state(config, _hand_params()), experience, loss=_telling)
    np.testing.assert_allclose(_told(metrics, "advantage"), advantage, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_told(metrics, "target"), advantage + v, rtol=1e-4, atol=1e-5)


def test_reward_scaling_by_hand() -> None:
    config = ppo.Config(**HAND | {"normalise_reward": True, "gae_lambda": 0.0})
    experience = _experience([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0])
    state = _hand_state(config, _hand_params((0.0, 0.0, 0.0)))
    running, sums = 0.0, []
    for turn in range(2):
        for r, ended in zip([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 1, 0, 0], strict=True):
            running = r + 0.9 * running
            sums.append(running)
            running *= 1 - ended
        new, metrics = _update(config, HAND_TASK, state, experience, loss=_telling)
        scaled = np.array([1.0, 2.0, 3.0, -1.0, 0.5, 4.0]) / np.std(sums)
        expected = scaled + 0.9 * 0.25 * np.array([1, 0, 1, 1, 1, 1])
        np.testing.assert_allclose(_told(metrics, "target"), expected, rtol=1e-4, err_msg=f"turn {turn}")
        assert float(new.normaliser.discounted[0]) == pytest.approx(running, rel=1e-5)
        state = new._replace(params=state.params)


def test_observation_moments_are_those_of_what_was_seen_and_frozen_in_the_actor() -> None:
    config, task, init, turn = _compiled("discrete")
    state = init(jax.random.key(3))
    seen = []
    for _ in range(2):
        state, _, experience = turn(state)
        seen.append(np.asarray(experience.obs, np.float64).reshape(-1, 3))
    everything = np.concatenate(seen)
    moments = ppo.actor(state).obs[0]
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.m2 / moments.count, everything.var(0), rtol=1e-3)
    assert set(ppo.actor(state).params) == {"torso", "policy"}, "no value function is needed to act"

    obs = experience.obs[0]
    standard = jnp.asarray((np.asarray(obs) - everything.mean(0)) / everything.std(0), jnp.float32)
    bare = dataclasses.replace(config, normalise_obs=False)
    step = TimeStep(obs, (), jnp.zeros(4, bool), ())
    greedy = ppo.policy(config, task, ppo.actor(state), greedy=True).act(jax.random.key(0), step, ())[0]
    pi = ppo.distribution(bare, task, state.params, standard, ())
    np.testing.assert_array_equal(greedy, pi.mode())
    np.testing.assert_array_equal(greedy, jnp.argmax(pi.logits, -1))


def test_annealing_reaches_zero() -> None:
    config = ppo.Config(**HAND | {"learning_rate": 0.1, "anneal_clip_eps": True})  # four turns in all
    experience = _experience([1.0] * 6, [0] * 6, [0] * 6)
    start = _hand_state(config, _hand_params())
    for done, share in ((0, 1.0), (1, 0.75), (2, 0.5), (4, 0.0), (9, 0.0)):
        new, metrics = _update(config, HAND_TASK, start._replace(updates=jnp.int32(done)), experience, loss=_telling)
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 * share)
        assert float(metrics["clip_eps"]) == pytest.approx(0.2 * share)
        moved = float(jnp.abs(new.params["value"]["b"] - start.params["value"]["b"])[0])
        assert moved == pytest.approx(0.1 * share, rel=1e-2), "Adam's first step is the learning rate"
        assert int(new.updates) == done + 1
    constant = dataclasses.replace(config, anneal_learning_rate=False, anneal_clip_eps=False)
    _, metrics = _update(constant, HAND_TASK, start._replace(updates=jnp.int32(3)), experience, loss=_telling)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1) and float(metrics["clip_eps"]) == pytest.approx(0.2)


def test_every_row_is_used_once_an_epoch() -> None:
    config = ppo.Config(**HAND | {"num_epochs": 3, "num_minibatches": 3, "learning_rate": 0.0, "normalise_advantage": False})
    experience = _experience([1.0, 10.0, 100.0, 1e3, 1e4, 1e5], [1] * 6, [0] * 6)

    def total(config: Any, task: Any, params: Any, batch: Any) -> Any:
        aux = ppo.loss(config, task, params, batch)[1]
        return 0.0 * jnp.sum(params["value"]["b"]), aux | {"mean_target": jnp.mean(batch.target), "square": jnp.mean(batch.target**2)}

    _, metrics = _update(config, HAND_TASK, _hand_state(config, _hand_params()), experience, loss=total)
    assert float(metrics["mean_target"]) == pytest.approx(111111 / 6, rel=1e-5)
    assert float(metrics["square"]) == pytest.approx(sum(10.0 ** (2 * i) for i in range(6)) / 6, rel=1e-4)


def test_parameters_of_every_layout() -> None:
    for kind in KINDS:
        config, _, init, _ = _compiled(kind)
        params = init(jax.random.key(0)).params
        assert ("value_torso" in params) == (not config.share_torso)
        assert ("log_std" in params) == (kind == "box")
        outputs = {"discrete": 3, "masked": 3, "multi": 5, "box": 2}[kind]
        assert params["policy"]["w"].shape == (16, outputs) and params["value"]["w"].shape == (16, 1)
        assert float(jnp.abs(params["policy"]["w"]).max()) <= 0.01, "the first policy is close to uniform"


def test_greedy_is_the_mode_and_sampling_follows_pi() -> None:
    config, _, _, _ = _compiled("discrete")
    config = dataclasses.replace(config, network=IDENTITY, normalise_obs=False)
    obs = jnp.broadcast_to(jnp.log(jnp.array([[0.2, 0.5, 0.3]])), (20_000, 3))
    actor = ppo.Actor(_hand_params(), ())
    step = TimeStep(obs, (), jnp.zeros(20_000, bool), ())
    drawn, carry, extras = ppo.policy(config, HAND_TASK, actor, greedy=False).act(jax.random.key(0), step, ())
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, [0.2, 0.5, 0.3], atol=0.015)
    assert carry == extras == ()
    assert (ppo.policy(config, HAND_TASK, actor, greedy=True).act(jax.random.key(0), step, ())[0] == 1).all()


def test_noise_that_lasts_leaves_each_action_its_distribution() -> None:
    by_hand = exploration.correlated(jnp.array([[1.0], [1.0]]), jnp.array([[2.0], [2.0]]), jnp.array([False, True]), 0.8)
    np.testing.assert_allclose(by_hand, [[0.8 + 0.6 * 2.0], [2.0]], rtol=1e-6)
    task = InGraph(World("box"), 4)
    config = ppo.Config(**SMALL, noise_correlation=0.8)
    state = ppo.init(config, task, jax.random.key(0))
    params = state.params | {"log_std": jnp.array([-1.0, 0.5])}
    acting = ppo.policy(config, task, ppo.Actor(params, ()), greedy=False)
    obs = jax.random.normal(jax.random.key(1), (4, 3))
    pi = ppo.distribution(config, task, params, obs, ())

    def one(carry: Any, x: Any) -> tuple[Any, Any]:
        action, carry, _ = acting.act(x[0], TimeStep(obs, (), x[1], ()), carry)
        return carry, (action - pi.mean) / jnp.exp(pi.log_std)

    first = jnp.arange(20_000)[:, None] % jnp.array([[20_000, 20_000, 20_000, 10]]) == 0
    _, z = jax.lax.scan(one, acting.reset(4), (jax.random.split(jax.random.key(2), 20_000), first))
    np.testing.assert_allclose([z[:, :3].mean(), z[:, :3].std()], [0.0, 1.0], atol=0.05)
    np.testing.assert_allclose((z[5:, :3] * z[:-5, :3]).mean(), 0.8**5, atol=0.03)
    begun = z[10::10, 3]
    np.testing.assert_allclose([(begun * z[9:-1:10, 3]).mean(), begun.std()], [0.0, 1.0], atol=0.07)
    assert ppo.policy(config, task, ppo.Actor(params, ()), greedy=True).reset(4) == ()
    with pytest.raises(FlatironsError, match=r"noise_correlation is of noise on Box actions, and .* has Discrete"):
        ppo.check(config, InGraph(World(), 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_minibatches": 7}, "num_minibatches=7 does not divide.*1000.*5"),
        ({"num_epochs": 0}, "at least 1"),
        ({"num_envs": 1, "num_steps": 8, "num_minibatches": 8}, "normalise_advantage needs minibatches of at least 2"),
        ({"network": "resnet"}, "unknown network 'resnet'"),
    ],
)
def test_check_refuses_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    config = ppo.Config(**settings)
    with pytest.raises(FlatironsError, match=message):
        ppo.check(config, InGraph(World(), config.num_envs))


def test_check_accepts_the_defaults_and_the_presets_alike() -> None:
    for preset in ppo.PRESETS.values():
        if preset.config.get("network") not in ("nature", "playing-atari"):
            config = ppo.Config(**preset.config)
            ppo.check(config, InGraph(World("box"), config.num_envs))
    ppo.check(ppo.Config(), InGraph(World(), 8))


# ----------------------------------------------------------------------------------------------- the paper's other objectives


def _hand_rows() -> tuple[Any, Any, Any]:
    """Three rows of a batch of Discrete actions, their old logits and the new policy's parameters' logits (the observations)."""
    rng = np.random.default_rng(4)
    obs, old_logits = rng.normal(size=(2, 3, 3))
    return obs, old_logits, np.array([2, 0, 1])


@pytest.mark.parametrize("objective", ["penalty", "bare"])
def test_bare_and_penalised_surrogate_by_hand(objective: str) -> None:
    obs, old_logits, action = _hand_rows()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (old_logits, obs))
    advantage = np.array([1.5, -2.0, 0.5])
    ratio = (q / p)[np.arange(3), action]
    kl = (p * np.log(p / q)).sum(1).mean()
    expected = -((ratio * advantage).mean() - (0.7 * kl if objective == "penalty" else 0.0))
    config = ppo.Config(network=IDENTITY, objective=objective, kl_coef=0.7, value_coef=0.0, normalise_advantage=False)
    old_log_prob = np.log(p)[np.arange(3), action]
    f = [jnp.asarray(x, jnp.float32) for x in (obs, old_log_prob, advantage)]
    old = Categorical(jnp.asarray(np.log(p), jnp.float32))
    total, metrics = ppo.loss(config, HAND_TASK, _hand_params(), ppo.Batch(f[0], (), jnp.asarray(action), f[1], f[2], f[2], f[2], old))
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["surrogate"]) == pytest.approx((ratio * advantage).mean(), rel=1e-5)


@pytest.mark.parametrize(("target", "factor"), [(1e6, 0.5), (1e-12, 2.0), (None, 1.0)])
def test_beta_follows_the_kl(target: float | None, factor: float) -> None:
    config = ppo.Config(**HAND | {"objective": "penalty", "kl_coef": 3.0, "kl_target": target, "num_epochs": 4})
    experience = _experience([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 0, 1, 0], [0] * 6)
    state, metrics = _update(config, HAND_TASK, _hand_state(config, _hand_params()), experience)
    assert float(metrics["kl_coef"]) == 3.0
    assert float(state.kl_coef) == pytest.approx(3.0 * factor)
    if target is not None:
        assert float(metrics["kl"]) > 1e-6
        # Within the band beta stays as it is.
        near = dataclasses.replace(config, kl_target=float(metrics["kl"]) * 1.2)
        same, _ = _update(near, HAND_TASK, _hand_state(near, _hand_params()), experience)
        assert float(same.kl_coef) == 3.0
        # However often it is missed, beta stays a number that a loss can be weighed with.
        edge = ppo.KL_COEFS[1 if factor > 1.0 else 0]
        at_the_edge = _hand_state(config, _hand_params())._replace(kl_coef=jnp.float32(edge))
        assert float(_update(config, HAND_TASK, at_the_edge, experience)[0].kl_coef) == np.float32(edge)


def test_a_heavy_penalty_keeps_the_policy_nearer() -> None:
    experience = _experience([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 0, 1, 0], [0] * 6)
    kls = []
    for beta in (1e-3, 100.0):
        config = ppo.Config(**HAND | {"objective": "penalty", "kl_coef": beta, "kl_target": 1.0, "num_epochs": 50, "learning_rate": 0.02})
        kls.append(float(_update(config, HAND_TASK, _hand_state(config, _hand_params()), experience)[1]["kl"]))
    assert kls[1] < 0.1 * kls[0]


def test_learning_stops_before_the_kl_passes() -> None:
    experience = _experience([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [0, 1, 0, 0, 1, 0], [0] * 6)
    base = HAND | {"num_epochs": 30, "learning_rate": 0.02, "objective": "bare"}
    free = ppo.Config(**base)
    far, _ = _update(free, HAND_TASK, _hand_state(free, _hand_params()), experience)
    never = ppo.Config(**base, stop_kl=1e6)
    same, metrics = _update(never, HAND_TASK, _hand_state(never, _hand_params()), experience)
    for a, b in zip(jax.tree.leaves(far.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(metrics["steps_taken"]) == 1.0
    stopped = ppo.Config(**base, stop_kl=0.01)
    end, metrics = _update(stopped, HAND_TASK, _hand_state(stopped, _hand_params()), experience)
    taken = round(30 * float(metrics["steps_taken"]))
    assert 1 < taken < 29
    # The same as so many epochs without the stop, one minibatch an epoch.
    short = ppo.Config(**base | {"num_epochs": taken})
    expected, _ = _update(short, HAND_TASK, _hand_state(short, _hand_params()), experience)
    for a, b in zip(jax.tree.leaves(end.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_settings_of_the_penalty_that_make_no_sense() -> None:
    with pytest.raises(FlatironsError, match="objective=clip has none: add objective=penalty"):
        ppo.check(ppo.Config(kl_target=0.01), HAND_TASK)
    for name in ("kl_coef", "stop_kl"):
        with pytest.raises(FlatironsError, match=rf"{name}=0\.0 must be above 0"):
            ppo.check(ppo.Config(objective="penalty", **{name: 0.0}), HAND_TASK)
    with pytest.raises(FlatironsError, match=r"kl_coef=1e\+07 with a kl_target begins outside 1e-06 to 1e\+06"):
        ppo.check(ppo.Config(objective="penalty", kl_target=0.01, kl_coef=1e7), HAND_TASK)


# ------------------------------------------------------------------------------------------------------------ with a memory

LSTM: dict[str, Any] = {"lstm": 6, "hidden": (5,), "num_envs": 4, "num_steps": 16, "num_epochs": 1, "total_steps": 256}


@functools.cache
def _remembering(kind: str) -> tuple[ppo.Config, InGraph, Any, Any]:
    """Two minibatches of two environments each; a task whose episodes end and are cut within a rollout."""
    shared = kind == "masked"
    config = ppo.Config(
        **LSTM, num_minibatches=2, share_torso=shared, normalise_obs=not shared, learning_rate=0.01,
        memory_head=() if shared else (3,), memory_skip=shared,
    )  # fmt: skip
    task: Any = InGraph(World(kind, max_episode_steps=5), 4)

    def turn(state: ppo.State) -> Any:
        told: dict[str, Any] = {}

        def telling(config: Any, task: Any, params: Any, batch: Any) -> Any:
            told.setdefault("shape", batch.advantage.shape)
            return ppo.loss(config, task, params, batch)

        collector, experience, _ = data.rollout(config, task, ppo.policy, ppo.actor(state), state.collector, config.num_steps)
        new, metrics = ppo.update(config, task, state, experience, loss=telling)
        batch, _, _ = ppo._seen_by_theta_old(config, task, state, experience)
        assert told["shape"] == (2, 16), "whole sequences of two environments"
        return new._replace(collector=collector), metrics, experience, batch

    return config, task, jax.jit(lambda key: ppo.init(config, task, key)), jax.jit(turn)


@pytest.mark.parametrize("kind", ["masked", "box"])
def test_a_memory_is_recomputed_as_it_was_acted_with(kind: str) -> None:
    config, task, init, turn = _remembering(kind)
    state = init(jax.random.key(0))

    @jax.jit
    def one_step(actor: Any, carry: Any, obs: Any, first: Any, legal: Any, action: Any) -> Any:
        carry, features = actor_critic.remembering(config, task, actor.params, ppo.prepare(task, actor.obs, obs), carry, first)
        return carry, actor_critic.pi(task, actor.params, features, legal).log_prob(action)

    for _ in range(3):
        before = state
        state, _, experience, batch = turn(state)
        # Step by step, as the environments saw it, from the memory at the rollout's start.
        actor, carry = ppo.actor(before), before.collector.carry
        for t in range(16):
            legal = () if isinstance(experience.legal, tuple) else experience.legal[t]
            carry, log_prob = one_step(actor, carry, experience.obs[t], experience.first[t], legal, experience.action[t])
            np.testing.assert_allclose(batch.old_log_prob[:, t], log_prob, rtol=1e-4, atol=1e-5)
        for there, here in ((state.collector.carry, carry), (state.memory.policy, carry)):
            np.testing.assert_allclose(there.h, here.h, atol=1e-5)
            np.testing.assert_allclose(there.c, here.c, atol=1e-5)
    assert float(jnp.abs(before.collector.carry.h).max()) > 0.01 and bool(experience.first[1:].any())


def test_after_a_cut_the_successor_is_valued_with_the_memory_from_before_the_reset() -> None:
    config, task, init, turn = _remembering("box")
    state = init(jax.random.key(1))
    state = turn(state)[0]
    before = state
    _, _, experience, batch = turn(state)
    obs, next_obs = (ppo.prepare(task, before.normaliser.obs, x) for x in (experience.obs, experience.next_obs))
    params, memory, value = before.params, before.memory.value, np.zeros((17, 4))
    net = actor_critic.of(config, task)
    v, w = np.zeros((16, 4)), np.zeros((16, 4))
    for t in range(16):
        memory = recurrent.lstm(
            params["value_memory"], recurrent.forget(memory, experience.first[t]), net.apply(params["value_torso"], obs[t])
        )
        v[t] = actor_critic.v(params, mlp(params["value_head"], memory.h, "tanh"))
        following = recurrent.lstm(params["value_memory"], memory, net.apply(params["value_torso"], next_obs[t]))
        w[t] = actor_critic.v(params, mlp(params["value_head"], following.h, "tanh"))
    cut, ended = np.asarray(experience.truncated), np.asarray(experience.terminated)
    assert cut[:-1].any() and ended[:-1].any()
    delta = np.asarray(experience.reward) + config.gamma * w * ~ended - v
    for t in reversed(range(16)):
        value[t] = delta[t] + config.gamma * config.gae_lambda * value[t + 1] * ~(cut[t] | ended[t])
    np.testing.assert_allclose(batch.advantage.T, value[:16], rtol=1e-3, atol=1e-4)


def test_with_a_memory_the_first_ratio_is_one_and_minibatches_are_whole_environments() -> None:
    _, task, init, turn = _remembering("masked")
    state = init(jax.random.key(2))
    _, metrics, _, batch = turn(state)
    assert batch.obs.shape == (4, 16, 3) and batch.first.shape == (4, 16) and batch.memory.policy.h.shape == (4, 6)
    assert batch.memory.value == (), "a shared torso has one memory"
    assert float(metrics["clip_fraction"]) < 0.3, "the second minibatch of two has moved a little"
    one = ppo.Config(**LSTM, num_minibatches=1, share_torso=True, memory_skip=True)
    _, rows = jax.eval_shape(lambda s: ppo.step(one, task, s), state)
    assert rows["approx_kl"].shape == ()
    total, metrics = ppo.loss(one, task, state.params, batch)
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6) and float(metrics["clip_fraction"]) == 0.0
    assert np.isfinite(total)


def test_what_came_before_an_episode_has_no_gradient_and_what_came_before_within_it_has() -> None:
    config, task, init, turn = _remembering("masked")
    state = init(jax.random.key(3))
    _, _, _, batch = turn(state)

    def later(obs: Any) -> Any:
        return jnp.sum(ppo._judged(config, task, state.params, batch._replace(obs=obs))[1][:, 8])

    gradient = np.abs(np.asarray(jax.grad(later)(batch.obs))).sum(-1)
    first = np.asarray(batch.first)
    for env in range(4):
        begin = max([0, *np.flatnonzero(first[env, :9]).tolist()])
        assert (gradient[env, :begin] == 0).all() and (gradient[env, begin:9] > 0).all() and (gradient[env, 9:] == 0).all()


@pytest.mark.parametrize("kind", ["masked", "box"])
def test_shorter_sequences_begin_with_what_theta_old_remembered(kind: str) -> None:
    config, task, init, turn = _remembering(kind)
    state = turn(init(jax.random.key(4)))[0]
    _, _, experience, whole = turn(state)
    cut: Any = dataclasses.replace(cast(Any, config), sequence_length=4, num_minibatches=8)
    batch, _, _ = ppo._seen_by_theta_old(cut, task, state, experience)
    assert batch.first.shape == (16, 4) and batch.memory.policy.h.shape == (16, 6)
    # An environment's four sequences lie next to one another, in order.
    for one, other in ((batch.advantage, whole.advantage), (batch.action, whole.action), (batch.old_log_prob, whole.old_log_prob)):
        np.testing.assert_allclose(one, np.asarray(other).reshape(one.shape), rtol=1e-5, atol=1e-5)
    for params in (state.params, jax.tree.map(lambda x: 1.01 * x, state.params)):
        pi, v = ppo._judged(cut, task, params, batch)
        pi_whole, v_whole = ppo._judged(config, task, params, whole)
        same = np.allclose(v, np.asarray(v_whole).reshape(16, 4), atol=1e-5)
        assert same == (params is state.params), "another theta goes on from theta_old's memory"
        if same:
            log_prob = np.asarray(pi_whole.log_prob(whole.action)).reshape(16, 4)
            np.testing.assert_allclose(pi.log_prob(batch.action), log_prob, atol=1e-5)
    _, metrics = jax.jit(lambda s: ppo.update(cut, task, s, experience))(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))


def test_a_minibatch_that_cuts_sequences_is_refused() -> None:
    config = ppo.Config(num_envs=8, num_steps=32, num_minibatches=16, lstm=4, total_steps=2560)
    with pytest.raises(FlatironsError, match=r"num_minibatches=16 would cut the sequences.*sequence_length = 8, for instance 8"):
        ppo.check(config, InGraph(World(), 8))
    ppo.check(dataclasses.replace(cast(Any, config), sequence_length=16), InGraph(World(), 8))
    for settings, message in (
        ({"lstm": 4, "sequence_length": 12}, r"sequence_length=12 must divide num_steps=32.* for instance 8"),
        ({"lstm": 4, "sequence_length": 0}, r"sequence_length=0 must divide num_steps=32.* for instance 32"),
        ({"sequence_length": 16}, r"sequence_length=16 is for a memory, and lstm=0 has none"),
        ({"memory_head": (8,)}, r"memory_head=\(8,\) is for a memory, and lstm=0 has none"),
        ({"memory_skip": True}, r"memory_skip=True is for a memory, and lstm=0 has none"),
    ):
        with pytest.raises(FlatironsError, match=message):
            ppo.check(ppo.Config(num_steps=32, **settings), InGraph(World(), 8))
    with pytest.raises(FlatironsError, match="lstm=-1"):
        ppo.check(ppo.Config(lstm=-1), InGraph(World(), 8))


# ------------------------------------------------------------------------------------------------------------------ masks


def test_illegal_actions_are_no_part_of_entropy_and_kl() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(2, 5, 4)).astype(np.float32)
    legal = np.array([True, False, True, True])
    small = [Categorical(jnp.asarray(x[:, legal])) for x in (old, new)]
    masked = [Categorical(mask_logits(x, jnp.asarray(legal)[None])) for x in (old, new)]
    np.testing.assert_allclose(masked[1].entropy(), small[1].entropy(), rtol=1e-5)
    np.testing.assert_allclose(masked[0].kl(masked[1]), small[0].kl(small[1]), rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(masked[0].kl(Categorical(mask_logits(x, jnp.asarray(legal)[None])))))(jnp.asarray(new))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[:, 1] == 0).all()


def test_several_choices_have_masks_of_their_own() -> None:
    legal = jnp.array([[True, False, False, True, True]])
    pi = multi_categorical(jnp.zeros((1, 5)), (2, 3), legal)
    np.testing.assert_allclose(pi.entropy(), np.log(1) + np.log(2), rtol=1e-6)
    drawn = jax.vmap(pi.sample)(jax.random.split(jax.random.key(0), 200))[:, 0]
    assert set(map(tuple, np.asarray(drawn).tolist())) == {(0, 1), (0, 2)}
