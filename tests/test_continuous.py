"""DDPG and SAC by hand: densities, bounds, targets, and which gradient reaches which parameters. (The probes are in test_learning.py.)"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.core import bounds, exploration
from flatirons.core.distributions import Normal, TanhNormal
from flatirons.data.replay import Sample
from flatirons.envs import probes
from flatirons.envs.ingraph import InGraph
from flatirons.nets import mlp
from flatirons.systems import a3c, ddpg, ppo, sac
from flatirons.types import Box, FlatironsError, MultiDiscrete, TimeStep

SMALL: dict[str, Any] = {"hidden": (8, 6), "buffer_size": 16, "batch_size": 4, "learning_starts": 1, "random_steps": 0}
PENDULUM: Any = envs.make("jax:Pendulum-v1", 1)
ROWS = 5


def _rows(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Observations, actions in [-1, 1] and targets."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return jax.random.normal(keys[0], (ROWS, 3)), jax.random.uniform(keys[1], (ROWS, 1), minval=-1.0), jax.random.normal(keys[2], (ROWS,))


def _largest(tree: Any) -> float:
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


# ---------------------------------------------------------------------------------------------------------- densities


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-2.0, 0.5), (3.0, -2.0)])
def test_tanh_normal_density_against_numeric_integration(mean: float, log_std: float) -> None:
    """Over any interval of actions the density integrates to what the Gaussian gives to that interval before tanh."""
    pi = TanhNormal(jnp.full((1, 1), mean), jnp.full((1, 1), log_std))
    edges = np.tanh(mean + np.exp(log_std) * np.array([-1.5, -0.5, 0.0, 0.8, 1.5]))
    for low, high in itertools.pairwise(edges):
        # Gauss-Legendre in float64 nodes; the density is evaluated in float32.
        nodes, weights = np.polynomial.legendre.leggauss(60)
        actions = (low + high) / 2 + (high - low) / 2 * nodes
        density = np.exp(np.asarray(pi.log_prob(jnp.asarray(actions)[:, None]), np.float64))
        found = (high - low) / 2 * np.sum(weights * density)
        before = (np.arctanh(np.array([low, high])) - mean) / np.exp(log_std)
        expected = np.diff([0.5 * (1.0 + float(jax.scipy.special.erf(z / np.sqrt(2.0)))) for z in before])[0]
        assert found == pytest.approx(expected, abs=1e-5)


def test_tanh_normal_of_its_noise_is_its_own_density_and_stays_finite() -> None:
    noise = jax.random.normal(jax.random.key(0), (1000, 2))
    pi = TanhNormal(jnp.array([[0.3, -0.4]]), jnp.array([[-0.5, 0.2]]))
    action, log_pi = pi.at(noise)
    np.testing.assert_allclose(log_pi, pi.log_prob(action), atol=2e-3)
    # Where tanh rounds to 1 the density of the action itself is lost; that of the noise is not.
    for shift in (10.0, 50.0, -50.0):
        far = TanhNormal(jnp.array([shift]), jnp.array([0.0]))
        grad = jax.grad(lambda m: TanhNormal(m, jnp.zeros(1)).at(jnp.array([0.5]))[1])(jnp.array([shift]))
        _, log_pi = far.at(jnp.array([0.5]))
        exact = Normal(jnp.zeros(1), jnp.zeros(1)).log_prob(jnp.array([0.5])) + 2.0 * abs(shift + 0.5) - 2.0 * np.log(2.0)
        assert float(log_pi) == pytest.approx(float(exact), rel=1e-5) and np.isfinite(grad).all()


def test_entropy_of_a_wide_tanh_normal_is_at_most_that_of_uniform() -> None:
    """log 2 nats, the most that an action in (-1, 1) can have."""
    noise = jax.random.normal(jax.random.key(1), (200_000, 1))
    entropies = [-float(jnp.mean(TanhNormal(jnp.zeros((1, 1)), jnp.full((1, 1), s)).at(noise)[1])) for s in (-2.0, -1.0, -0.13, 0.5, 1.0)]
    assert max(entropies) < np.log(2.0) + 0.01 and entropies[0] < entropies[1] < entropies[2] > entropies[3] > entropies[4]


# ------------------------------------------------------------------------------------------------------------- bounds


def test_bounds_that_a_gaussian_does_not_come_near_are_named() -> None:
    def said(low: float, high: float, system: Any = ppo, **settings: Any) -> str:
        task = SimpleNamespace(spec=SimpleNamespace(action=Box((-1.0, low), (1.0, high))))
        return " ".join(bounds.far_from_gaussian(system, system.Config(**settings), cast(Any, task)))

    assert "entry 1 of an action lies in [5, 11]" in said(5, 11) and "deviation of 0.83" in said(5, 11, a3c)
    assert said(0.001, 1_000) and said(-100, 100) and said(-0.01, 0.01) and "deviation of 0.0498" in said(-0.6, 20.0, initial_log_std=-3.0)
    for fine in ((-1, 1), (-2, 2), (-0.4, 0.4), (0, 1), (-3, 3), (0, 10), (1, 1), (-np.inf, np.inf), (-3.4e38, 3.4e38)):
        assert not said(*fine), fine
    assert not said(5, 11, sac) and not said(5, 11, ddpg), "they scale their actions"


def test_actions_go_to_their_bounds_and_back() -> None:
    box = Box((-2.0, 0.0, 5.0), (2.0, 10.0, 5.0))
    np.testing.assert_allclose(bounds.to_box(box, jnp.array([[1.0, -1.0, 0.3], [0.0, 0.5, -1.0]])), [[2.0, 0.0, 5.0], [0.0, 7.5, 5.0]])
    unit = jax.random.uniform(jax.random.key(0), (50, 3), minval=-1.0).at[:, 2].set(0.0)
    np.testing.assert_allclose(bounds.to_unit(box, bounds.to_box(box, unit)), unit, atol=1e-6)


@pytest.mark.parametrize("module", [ddpg, sac])
def test_decisions_stay_within_bounds_random_and_greedy(module: Any) -> None:
    box = Box((-1.0, 2.0), (3.0, 2.5))
    task: Any = InGraph(probes.ConstantReward(action_spec=box), 500, "probe:x")
    config = module.Config(**SMALL | {"random_steps": 10, "buffer_size": 500, "train_every": 500, "num_envs": 500})
    state = module.init(config, task, jax.random.key(0))
    timestep = TimeStep(jnp.zeros((500, 1)), (), jnp.ones(500, bool), ())
    first = module.actor(state)
    later = first._replace(random=jnp.zeros((), bool))
    assert bool(first.random)
    for actor, greedy in ((first, False), (later, False), (later, True)):
        policy = module.policy(config, task, actor, greedy=greedy)
        action, _, _ = policy.act(jax.random.key(1), timestep, policy.reset(500))
        assert (action >= jnp.array([box.low])).all() and (action <= jnp.array([box.high])).all()
        spread = jnp.std(action, axis=0)
        if actor is first:  # uniform: deviation of a twelfth of the square of the width
            np.testing.assert_allclose(spread, np.array([4.0, 0.5]) / np.sqrt(12.0), rtol=0.1)
        if greedy:
            np.testing.assert_allclose(spread, 0.0, atol=1e-6)


@pytest.mark.parametrize("module", [ddpg, sac])
def test_other_actions_are_refused_in_a_sentence(module: Any) -> None:
    with pytest.raises(FlatironsError, match=r"needs a Box action space and jax:CartPole-v1 has Discrete: .* dqn or ppo"):
        module.check(module.Config(), envs.make("jax:CartPole-v1", 1))
    for box in (Box((-np.inf,), (1.0,)), Box((-3.4e38,), (3.4e38,)), Box((0.0,), (np.nan,))):
        task: Any = InGraph(probes.ConstantReward(action_spec=box), 1, "probe:x")
        with pytest.raises(FlatironsError, match="these are infinite"):
            module.check(module.Config(), task)
    task = InGraph(probes.ConstantReward(action_spec=MultiDiscrete((2, 3))), 1, "probe:x")
    with pytest.raises(FlatironsError, match=r"probe:x has MultiDiscrete: use a system for it, such as ppo or a3c$"):
        module.check(module.Config(), task)
    with pytest.raises(FlatironsError, match=r"buffer_size=16 is smaller than a batch: make it at least batch_size=17"):
        module.check(module.Config(**SMALL | {"batch_size": 17}), PENDULUM)


# --------------------------------------------------------------------------------------------------------------- DDPG


@pytest.mark.parametrize("module", [ddpg, sac])
@pytest.mark.parametrize(("gradient_steps", "words"), [(1, "gradient_steps=8 keep 1 update a"), (2, "gradient_steps=16 keep 2 updates a")])
def test_more_environments_are_told_what_keeps_the_updates_a_decision(module: Any, gradient_steps: int, words: str) -> None:
    task = envs.make("jax:Pendulum-v1", 8)
    config = module.Config(num_envs=8, gradient_steps=gradient_steps, buffer_size=1_000, batch_size=4)
    with pytest.raises(FlatironsError, match=f"num_envs=8 does not divide train_every=1: train_every=8 and {words} decision"):
        module.check(config, task)
    module.check(dataclasses.replace(config, train_every=8, gradient_steps=8 * gradient_steps), task)


def test_ddpg_actor_gradient_is_the_chain_rule() -> None:
    """Equation 6: the gradient of -Q(s, mu(s)) in theta^mu is -grad_a Q(s, a) at a = mu(s) times grad mu(s), to 1e-6."""
    config = ddpg.Config(**SMALL, action_layer=1)
    params = ddpg.init_params(config, PENDULUM, jax.random.key(0))
    obs, action, target = _rows()
    whole = jax.grad(lambda p: ddpg.loss(config, PENDULUM, p, ddpg.Batch(obs, action, target))[0])(params)["actor"]
    chosen, pull_back = jax.vjp(lambda p: ddpg.mu(config, PENDULUM, p, obs), params["actor"])
    slope = jax.grad(lambda a: jnp.mean(ddpg.q_values(config, PENDULUM, params["critics"], obs, a)[0]))(chosen)
    (by_hand,) = pull_back(-slope)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, by_hand)
    assert _largest(whole) > 1e-4


def test_ddpg_critic_gradient_and_decay_reach_the_critic_alone() -> None:
    obs, action, target = _rows()
    plain, decayed = ddpg.Config(**SMALL), ddpg.Config(**SMALL, critic_weight_decay=0.1)
    params = ddpg.init_params(plain, PENDULUM, jax.random.key(0))

    def grads(config: Any) -> Any:
        return jax.grad(lambda p: ddpg.loss(config, PENDULUM, p, ddpg.Batch(obs, action, target))[0])(params)

    a, b = grads(plain), grads(decayed)
    jax.tree.map(np.testing.assert_array_equal, a["actor"], b["actor"])
    jax.tree.map(
        lambda x, y, w: np.testing.assert_allclose(y - x, 0.1 * w if w.ndim > 1 else 0.0 * w, atol=1e-6), a["critics"], b["critics"],
        params["critics"],
    )  # fmt: skip
    squared = jax.grad(lambda c: jnp.mean((ddpg.q_values(plain, PENDULUM, c, obs, action)[0] - target) ** 2))(params["critics"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a["critics"], squared)


def test_ddpg_action_enters_the_layer_it_is_told() -> None:
    config = ddpg.Config(**SMALL | {"hidden": (8, 6)}, action_layer=1)
    critic = ddpg.init_params(config, PENDULUM, jax.random.key(0))["critics"][0]
    assert critic["torso"]["mlp"][0]["w"].shape == (3, 8) and critic["mlp"][0]["w"].shape == (8 + 1, 6)
    at_input = ddpg.init_params(ddpg.Config(**SMALL), PENDULUM, jax.random.key(0))["critics"][0]
    assert at_input["mlp"][0]["w"].shape == (3 + 1, 8) and at_input["mlp"][1]["w"].shape == (8, 6)


@pytest.mark.parametrize("module", [ddpg, sac])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_standardised_critics_do_not_feel_the_scale_of_their_weights(module: Any, layer_norm: bool) -> None:
    config = module.Config(**SMALL, layer_norm=layer_norm)
    critics = module.init_params(config, PENDULUM, jax.random.key(0))["critics"]
    larger = tuple(c | {"mlp": jax.tree.map(lambda x: 7.0 * x, c["mlp"])} for c in critics)
    obs, action, _ = _rows()
    before, after = (module.q_values(config, PENDULUM, c, obs, action)[0] for c in (critics, larger))
    assert bool(jnp.allclose(before, after, atol=2e-3)) == layer_norm


def test_ddpg_paper_preset_begins_near_zero() -> None:
    config = ddpg.Config(**ddpg.PRESETS["ddpg-paper"].config)
    params = ddpg.init_params(config, PENDULUM, jax.random.key(0))
    for layer in (params["actor"]["head"], params["critics"][0]["q"]):
        assert 2.8e-3 < _largest(layer) <= 3e-3 * (1 + 1e-6)
    assert params["critics"][0]["mlp"][0]["w"].shape == (401, 300)
    assert _largest(params["actor"]["torso"]) > 0.1


def test_ddpg_target_is_masked_smoothed_and_the_smaller_of_two() -> None:
    config = ddpg.Config(**SMALL, twin=True, target_noise=0.2, target_noise_clip=0.3)
    params = ddpg.init_params(config, PENDULUM, jax.random.key(3))
    obs, action, reward = _rows()
    ended = jnp.array([True, False, False, True, False])
    sampled = Sample(obs, action, reward, obs + 1.0, ended, jnp.full(ROWS, 0.9))
    noise = jnp.array([[0.1], [5.0], [-5.0], [0.0], [1.0]])
    y = ddpg.targets(config, PENDULUM, params, sampled, noise)
    shifted = jnp.clip(ddpg.mu(config, PENDULUM, params["actor"], obs + 1.0) + jnp.array([[0.02], [0.3], [-0.3], [0.0], [0.2]]), -1.0, 1.0)
    q1, q2 = ddpg.q_values(config, PENDULUM, params["critics"], obs + 1.0, shifted)
    np.testing.assert_allclose(y, reward + jnp.where(ended, 0.0, 0.9 * jnp.minimum(q1, q2)), rtol=1e-6)
    assert float(jnp.max(jnp.abs(q1 - q2))) > 1e-3


def test_td3_moves_its_actor_every_second_update() -> None:
    config = ddpg.Config(**SMALL, policy_delay=2)
    state = ddpg.init(config, PENDULUM, jax.random.key(0))
    step = jax.jit(functools.partial(ddpg.step, config, PENDULUM))
    actors = [state.params["actor"]]
    targets = [state.target]
    critics = [state.params["critics"]]
    for _ in range(4):
        state, _ = step(state)
        actors.append(state.params["actor"])
        targets.append(state.target)
        critics.append(state.params["critics"])
    moved = [_largest(jax.tree.map(jnp.subtract, a, b)) > 0.0 for a, b in zip(actors[1:], actors[:-1], strict=True)]
    followed = [_largest(jax.tree.map(jnp.subtract, a, b)) > 0.0 for a, b in zip(targets[1:], targets[:-1], strict=True)]
    learned = [_largest(jax.tree.map(jnp.subtract, a, b)) > 0.0 for a, b in zip(critics[1:], critics[:-1], strict=True)]
    assert moved == [False, True, False, True] and followed == moved and learned == [True] * 4


def test_ornstein_uhlenbeck_by_hand_and_begun_anew_with_every_episode() -> None:
    np.testing.assert_allclose(exploration.ornstein_uhlenbeck(jnp.array([1.0]), jnp.array([2.0]), 0.15, 0.2), [1.0 - 0.15 + 0.4])
    config = ddpg.Config(**SMALL, noise="ou", noise_std=0.2, noise_theta=0.15)
    state = ddpg.init(config, PENDULUM, jax.random.key(0))
    policy = ddpg.policy(config, PENDULUM, ddpg.actor(state), greedy=False)
    obs, before = jnp.zeros((2, 3)), jnp.array([[0.5], [0.5]])
    timestep = TimeStep(obs, (), jnp.array([True, False]), ())
    _, after, _ = policy.act(jax.random.key(1), timestep, before)
    normal = jax.random.normal(jax.random.split(jax.random.key(1))[1], (2, 1))
    np.testing.assert_allclose(after, jnp.array([[0.0], [0.5 * 0.85]]) + 0.2 * normal, rtol=1e-5)
    assert ddpg.policy(config, PENDULUM, ddpg.actor(state), greedy=True).reset(2) == ()


# ---------------------------------------------------------------------------------------------------------------- SAC


def _sac(**settings: Any) -> tuple[Any, Any, Any]:
    config = sac.Config(**SMALL | settings)
    params = sac.init_params(config, PENDULUM, jax.random.key(0))
    obs, action, target = _rows()
    return config, params, sac.Batch(obs, action, target, jax.random.normal(jax.random.key(9), (ROWS, 1)))


def _sac_grads(config: Any, params: Any, batch: Any) -> Any:
    return jax.grad(lambda p: sac.loss(config, PENDULUM, p, batch)[0])(params)


def test_sac_2018_losses_by_hand() -> None:
    """J_V (equation 5), J_Q (7) and J_pi with the smaller of two Q in both J_V and J_pi, halves of squares, at temperature 1."""
    config, params, batch = _sac(value_network=True, automatic_temperature=False)
    _, metrics = sac.loss(config, PENDULUM, params, batch)
    action, log_pi = sac.distribution(config, PENDULUM, params["actor"], batch.obs).at(batch.noise)
    smaller = jnp.minimum(*sac.q_values(config, PENDULUM, params["critics"], batch.obs, action))
    q1, q2 = sac.q_values(config, PENDULUM, params["critics"], batch.obs, batch.action)
    v = sac.value(config, PENDULUM, params["value"], batch.obs)
    by_hand = {
        "value_loss": jnp.mean(0.5 * (v - (smaller - log_pi)) ** 2),
        "critic_loss": jnp.mean(0.5 * (q1 - batch.target) ** 2) + jnp.mean(0.5 * (q2 - batch.target) ** 2),
        "actor_loss": jnp.mean(log_pi - smaller),
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], sum(by_hand.values()), rtol=1e-5)


def test_sac_each_loss_moves_its_own_parameters() -> None:
    config, params, batch = _sac(value_network=True)
    grads = _sac_grads(config, params, batch)
    obs, alpha = batch.obs, jnp.exp(params["log_temperature"])

    def smaller(critics: Any, actor: Any) -> tuple[Any, Any]:
        action, log_pi = sac.distribution(config, PENDULUM, actor, obs).at(batch.noise)
        return jnp.minimum(*sac.q_values(config, PENDULUM, critics, obs, action)), log_pi

    def j_pi(actor: Any) -> Any:
        q, log_pi = smaller(params["critics"], actor)
        return jnp.mean(alpha * log_pi - q)

    def j_q(critics: Any) -> Any:
        return sum(jnp.mean(0.5 * (q - batch.target) ** 2) for q in sac.q_values(config, PENDULUM, critics, obs, batch.action))

    def j_v(value: Any) -> Any:
        q, log_pi = smaller(params["critics"], params["actor"])
        return jnp.mean(0.5 * (sac.value(config, PENDULUM, value, obs) - (q - alpha * log_pi)) ** 2)

    for part, own in (("actor", j_pi), ("critics", j_q), ("value", j_v)):
        expected = jax.grad(own)(params[part])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads[part], expected)
        assert _largest(expected) > 1e-4


@pytest.mark.parametrize(("target_entropy", "rises"), [(5.0, True), (-50.0, False)])
def test_temperature_rises_where_there_is_too_little_entropy(target_entropy: float, rises: bool) -> None:
    config, params, batch = _sac(target_entropy=target_entropy)
    slope = float(_sac_grads(config, params, batch)["log_temperature"])
    assert (slope < 0.0) == rises and slope != 0.0
    fixed, params, batch = _sac(automatic_temperature=False, temperature=0.3)
    assert float(_sac_grads(fixed, params, batch)["log_temperature"]) == 0.0
    assert float(jnp.exp(params["log_temperature"])) == pytest.approx(0.3)


def test_sac_targets_by_hand() -> None:
    obs, action, reward = _rows()
    ended = jnp.array([True, False, False, True, False])
    sampled = Sample(obs, action, reward, obs + 1.0, ended, jnp.full(ROWS, 0.9))
    noise = jax.random.normal(jax.random.key(2), (ROWS, 1))
    config, params, _ = _sac(temperature=0.7)
    following, log_pi = sac.distribution(config, PENDULUM, params["actor"], obs + 1.0).at(noise)
    soft = jnp.minimum(*sac.q_values(config, PENDULUM, params["critics"], obs + 1.0, following)) - 0.7 * log_pi
    y = sac.targets(config, PENDULUM, params, params["critics"], sampled, noise)
    np.testing.assert_allclose(y, reward + jnp.where(ended, 0.0, 0.9 * soft), rtol=1e-5)
    first, params, _ = _sac(value_network=True, reward_scale=5.0)
    y = sac.targets(first, PENDULUM, params, params["value"], sampled, noise)
    v = sac.value(first, PENDULUM, params["value"], obs + 1.0)
    np.testing.assert_allclose(y, 5.0 * reward + jnp.where(ended, 0.0, 0.9 * v), rtol=1e-5)


def test_sac_2018_keeps_a_target_of_its_value_network_alone() -> None:
    for settings, part in (({"value_network": True}, "value"), ({}, "critics")):
        config = sac.Config(**SMALL | settings, tau=0.25)
        state = sac.init(config, PENDULUM, jax.random.key(0))
        assert jax.tree.structure(state.target) == jax.tree.structure(state.params[part])
        after, _ = jax.jit(functools.partial(sac.step, config, PENDULUM))(state)
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.target, after.params[part])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), after.target, expected)


def test_sac_a_value_network_is_told_what_to_pass_beside_it() -> None:
    with pytest.raises(FlatironsError, match=r"policy_delay=5 lets the policy rest .*: give policy_delay=1 too \(--policy-delay 1\)"):
        sac.check(sac.Config(**dict(sac.PRESETS["sac-hopper"].config) | {"value_network": True}), PENDULUM)


def test_sac_the_policy_rests_between_its_updates() -> None:
    config = sac.Config(**SMALL, policy_delay=3, learning_rate=1e-2)
    step, state = jax.jit(functools.partial(sac.step, config, PENDULUM)), sac.init(config, PENDULUM, jax.random.key(0))
    for updates in range(1, 7):
        after, metrics = step(state)
        for part in ("actor", "log_temperature", "critics"):
            moved = _largest(jax.tree.map(jnp.subtract, after.params[part], state.params[part]))
            if part == "critics" or updates % 3 == 0:
                # Adam's first step is the rate itself, also where the critics' Adam has made three.
                assert moved == pytest.approx(1e-2, rel=1e-2) if updates in (1, 3) and part != "critics" else moved > 0.0, (part, updates)
            else:
                assert moved == 0.0 and int(after.opt_state[part].count) == updates // 3, (part, updates)
        assert (float(metrics["entropy"]) == 0.0) == (updates % 3 > 0)
        state = after


def test_sac_what_is_told_of_a_policy_that_rests_is_of_the_updates_it_moves_in() -> None:
    config = sac.Config(**SMALL, policy_delay=2, gradient_steps=2, learning_rate=0.0)
    state = jax.jit(functools.partial(sac.init, config, PENDULUM))(jax.random.key(0))
    _, metrics = jax.jit(functools.partial(sac.step, config, PENDULUM))(state)
    noise = jax.random.normal(jax.random.key(1), (2_000, 1))
    pi = sac.distribution(config, PENDULUM, state.params["actor"], jnp.broadcast_to(jnp.array([[1.0, 0.0, 0.5]]), (2_000, 3)))
    entropy = -float(jnp.mean(pi.at(noise)[1]))
    # That of the second minibatch; the mean over both, one of which told nothing, would be half of it.
    assert float(metrics["entropy"]) == pytest.approx(entropy, abs=0.2) and entropy > 0.5


@pytest.mark.parametrize("module", [ddpg, sac])
def test_the_rate_falls_to_zero_where_it_is_told_to(module: Any) -> None:
    # Adam's first step is the rate itself, wherever a gradient is not tiny. (That a rate nobody let fall stays is in the tests of
    # policies that rest.)
    config = module.Config(**SMALL, total_steps=4, anneal_learning_rate=True, learning_rate=1e-2)
    step, state = jax.jit(functools.partial(module.step, config, PENDULUM)), module.init(config, PENDULUM, jax.random.key(0))
    for done, share in enumerate((1.0, 0.75, 0.5, 0.25, 0.0)):
        after, _ = step(state._replace(turns=jnp.int32(done)))
        for part, rate in (("actor", 1e-2), ("critics", config.critic_learning_rate if module is ddpg else 1e-2)):
            change = _largest(jax.tree.map(jnp.subtract, after.params[part], state.params[part]))
            assert change == pytest.approx(rate * share, rel=1e-2), (part, done)


def test_sac_noise_that_lasts_leaves_each_action_its_distribution() -> None:
    config = sac.Config(**SMALL, noise_correlation=0.8)
    state = sac.init(config, PENDULUM, jax.random.key(0))
    whole = sac.actor(state)
    assert state.collector.carry.shape == sac.policy(config, PENDULUM, whole, greedy=False).reset(1).shape == (1, 1)
    obs, first = jnp.zeros((3, 3)), jnp.arange(20_000)[:, None] % jnp.array([[20_000, 20_000, 10]]) == 0
    pi = sac.distribution(config, PENDULUM, whole.params, obs)

    @functools.partial(jax.jit, static_argnums=0)
    def noises(random: bool) -> Any:
        actor = whole._replace(random=jnp.array(random))
        acting = sac.policy(config, PENDULUM, actor, greedy=False)

        def one(carry: Any, x: Any) -> tuple[Any, Any]:
            action, carry, _ = acting.act(x[0], TimeStep(obs, (), x[1], ()), carry)
            unit = bounds.to_unit(PENDULUM.spec.action, action)
            z = jax.scipy.stats.norm.ppf((unit + 1.0) / 2.0) if random else (jnp.arctanh(unit) - pi.mean) / jnp.exp(pi.log_std)
            return carry, z[:, 0]

        return jax.lax.scan(one, acting.reset(3), (jax.random.split(jax.random.key(2), 20_000), first))[1]

    for random in (True, False):
        z = np.asarray(noises(random))
        np.testing.assert_allclose([z.mean(), z.std()], [0.0, 1.0], atol=0.05)
        np.testing.assert_allclose((z[5:, :2] * z[:-5, :2]).mean(), 0.8**5, atol=0.05)
        starts = np.arange(10, 20_000, 10)
        assert abs((z[starts, 2] * z[starts - 1, 2]).mean()) < 0.08, "an episode's noise is not the last one's"
    assert sac.policy(config, PENDULUM, whole, greedy=True).reset(2) == ()


def test_reward_scale_is_not_in_what_is_expected() -> None:
    config, params, batch = _sac(reward_scale=5.0)
    plain, *_ = _sac()
    timestep = TimeStep(batch.obs, (), jnp.ones(ROWS, bool), ())
    actor = sac.Actor(params["actor"], params["critics"], jnp.zeros((), bool))
    np.testing.assert_allclose(
        5.0 * sac.estimate(config, PENDULUM, actor, timestep), sac.estimate(plain, PENDULUM, actor, timestep), rtol=1e-6
    )


def test_shrunk_layers_keep_their_shape() -> None:
    from flatirons.nets.critic import shrunk

    layer = shrunk(mlp.dense_init(jax.random.key(0), 100, 50, init="fan_in"), 3e-3)
    assert layer["w"].shape == (100, 50) and 2.9e-3 < _largest(layer) <= 3e-3 * (1 + 1e-6)
