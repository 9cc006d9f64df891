"""TRPO against its paper: conjugate gradient, Fisher products, the bound, the line search, the vine, all in known answers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.core import distributions, normalise, trust_region
from flatirons.data import onpolicy, vine
from flatirons.data import rollout as data
from flatirons.envs.ingraph import EnvState, InGraph
from flatirons.nets import actor_critic
from flatirons.systems import trpo
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Policy, Transition

SMALL: dict[str, Any] = {"num_envs": 4, "num_steps": 32, "value_minibatches": 4, "hidden": (16,), "total_steps": 10**6}


def _positive_definite(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * rng.uniform(0.5, 5.0, n)) @ q.T


def test_conjugate_gradient_is_exact_in_n_steps_along_conjugate_directions() -> None:
    n = 12
    a, b = _positive_definite(n, 0), np.random.default_rng(1).normal(size=n)
    with jax.enable_x64(True):
        solve = lambda k: trust_region.conjugate_gradient(lambda v: jnp.asarray(a) @ v, jnp.asarray(b), k, 0.0)  # noqa: E731
        points = np.stack([np.asarray(solve(k).x) for k in range(n + 1)])
        solution = solve(n)
    np.testing.assert_allclose(solution.x, np.linalg.solve(a, b), rtol=1e-9)
    assert float(solution.residual) < 1e-9
    directions = np.diff(points, axis=0)
    conjugate = directions @ a @ directions.T
    scale = np.sqrt(np.outer(np.diag(conjugate), np.diag(conjugate)))
    np.testing.assert_allclose(conjugate / scale, np.eye(n), atol=1e-8)


def test_conjugate_gradient_stops_at_its_tolerance_and_at_nothing_to_do() -> None:
    count = []

    def product(v: Any) -> Any:
        jax.debug.callback(lambda: count.append(1))
        return jax.tree.map(lambda x: 2.0 * x, v)

    b = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    found = trust_region.conjugate_gradient(product, b, 10)
    jax.effects_barrier()
    np.testing.assert_allclose(found.x["b"], 0.5)
    assert len(count) == 2, "one eigenvalue: one iteration, and A x"
    nothing = trust_region.conjugate_gradient(product, jax.tree.map(jnp.zeros_like, b), 10)
    assert all(bool((x == 0).all()) for x in jax.tree.leaves(nothing.x)) and float(nothing.residual) == 0.0


def _linear(kind: str) -> tuple[Any, Any]:
    """(params, params -> distribution) of a small network in float64, for 7 observations of 3 numbers."""
    rng = np.random.default_rng(3)
    obs = jnp.asarray(rng.normal(size=(7, 3)))
    legal = jnp.asarray(rng.integers(0, 2, (7, 4)) > 0).at[:, 0].set(True)
    params = {"w": jnp.asarray(rng.normal(size=(3, 5))), "v": jnp.asarray(rng.normal(size=(5, 4))), "s": jnp.asarray(rng.normal(size=2))}

    def of(p: Any) -> Any:
        out = jnp.tanh(obs @ p["w"]) @ p["v"]
        match kind:
            case "categorical":
                return distributions.Categorical(out)
            case "masked":
                return distributions.Categorical(distributions.mask_logits(out, legal))
            case "multi":
                return distributions.MultiCategorical((distributions.Categorical(out[:, :2]), distributions.Categorical(out[:, 2:])))
            case _:
                return distributions.Normal(out[:, :2], jnp.broadcast_to(p["s"][None], (7, 2)))

    return params, of


@pytest.mark.parametrize("kind", ["categorical", "masked", "multi", "normal"])
def test_the_fisher_product_is_the_explicit_matrix_times_the_vector(kind: str) -> None:
    with jax.enable_x64(True):
        params, of = _linear(kind)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        old = of(params)
        explicit = np.asarray(jax.jit(jax.hessian(lambda x: jnp.mean(old.kl(of(unravel(x))))))(flat))
        product = jax.jit(trust_region.fisher_vector_product(of, params))
        for seed in range(3):
            v = np.random.default_rng(seed).normal(size=flat.shape)
            found, _ = jax.flatten_util.ravel_pytree(product(unravel(jnp.asarray(v))))
            np.testing.assert_allclose(found, explicit @ v, rtol=1e-6, atol=1e-9)
    assert np.abs(explicit).max() > 1e-3


def test_the_largest_step_is_on_the_boundary() -> None:
    a = _positive_definite(5, 2)
    x = np.random.default_rng(0).normal(size=5)
    beta = float(trust_region.largest_step(jnp.asarray(x), jnp.asarray(a @ x), 0.01))
    assert 0.5 * (beta * x) @ a @ (beta * x) == pytest.approx(0.01, rel=1e-5)
    assert float(trust_region.largest_step(jnp.zeros(3), jnp.zeros(3), 0.01)) == 0.0


def test_backtracking_takes_the_first_good_step_or_gives_the_start_back_bit_for_bit() -> None:
    start, step = {"x": jnp.float32(0.1)}, {"x": jnp.float32(1.0)}
    below = lambda limit: lambda p: (p["x"] <= limit, {"x": p["x"]})  # noqa: E731
    found = trust_region.backtracking(below(0.5), start, step, 0.5, 10)
    assert bool(found.accepted) and int(found.refused) == 2
    np.testing.assert_allclose(found.params["x"], 0.35)
    np.testing.assert_allclose(found.metrics["x"], 0.35)
    failed = trust_region.backtracking(below(-1.0), start, step, 0.5, 10)
    assert not bool(failed.accepted) and int(failed.refused) == 10
    assert failed.params["x"] == start["x"] and failed.metrics["x"] == start["x"]


def _equal(a: Any, b: Any) -> bool:
    """Whether two sets of parameters have the same policy, bit for bit."""
    leaves = map(jax.tree.leaves, map(actor_critic.policy_params, (a, b)))
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


def test_the_margin_grows_as_float32_tells_the_kl_less_finely_until_no_step_is_taken() -> None:
    margins = np.array([float(trpo.kl_margin(delta)) for delta in (1e-2, 1e-6, 1e-7, 1e-10, 1e-14, 0.0)])
    np.testing.assert_allclose(margins, [1.05e-4, 5.8e-4, 1.6e-3, 4.8e-2, 1.0, 1.0], rtol=0.02)


def _collected(name: str, **settings: Any) -> tuple[Any, Any, Any]:
    config = trpo.Config(**SMALL | settings)
    task: Any = envs.make(name, config.num_envs)
    trpo.check(config, task)
    return config, task, trpo.init(config, task, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("jax:CartPole-v1", {"damping": 1e-3, "normalise_obs": True}),
        # Both kinds of action and both of sampling, in two programs of ten seconds' compiling each.
        ("jax:Pendulum-v1", {"vine_actions": 4, "vine_states": 16, "vine_steps": 10, "damping": 1e-2}),
    ],
    ids=["cartpole", "vine-pendulum"],
)
def test_every_step_keeps_the_bound_and_improves_in_float64(name: str, settings: dict[str, Any]) -> None:
    config, task, state = _collected(name, **settings)
    rolled = jax.jit(lambda s: data.rollout(config, task, trpo.policy, trpo.actor(s), s.collector, config.num_steps))
    seen: list[Any] = []

    def spying(c: Any, t: Any, params: Any, batch: Any) -> Any:
        if isinstance(batch.target, tuple):
            jax.debug.callback(lambda b: seen.append(b), batch)
        return trpo.loss(c, t, params, batch)

    update = jax.jit(lambda c, s, e: trpo.update(c, task, s, e, loss=spying))
    accepted, shares = 0, []
    # The last ones are bounds that a KL summed up from differences of logarithms would be too coarse for.
    for delta in (0.01, 0.01, 0.01, 0.01, 0.01, 1e-6, 1e-7):
        narrowed: Any = dataclasses.replace(config, delta=delta)
        collector, experience, _ = rolled(state)
        state = state._replace(collector=())
        seen.clear()
        after, metrics = update(narrowed, state, experience)
        jax.effects_barrier()
        with jax.enable_x64(True):
            double = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else np.asarray(x), tree)  # noqa: E731
            batch, old, new = double(seen[0]), double(state.params), double(after.params)
            pi = [trpo.distribution(config, task, p, batch.obs, batch.legal) for p in (old, new)]
            kl = float(jnp.mean(pi[0].kl(pi[1])))
            rise = float(trpo.loss(config, task, old, batch)[0] - trpo.loss(config, task, new, batch)[0])
        moved = any(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, map(actor_critic.policy_params, (old, new))), strict=True)
        )
        assert moved == bool(metrics["accepted"])
        assert kl <= delta
        assert rise > 0 or not moved
        assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-3)
        accepted += moved
        shares.append(kl / delta)
        state = after._replace(collector=collector)
    assert accepted >= 6 and max(shares[:5]) > 0.5 and min(shares[5:]) > 0.5, "steps go to the boundary"


def test_a_failed_search_keeps_the_old_policy_bit_for_bit_and_still_fits_the_values() -> None:
    config, task, state = _collected("jax:CartPole-v1")
    start = state.params

    def worse(c: Any, t: Any, params: Any, batch: Any) -> Any:
        total, metrics = trpo.loss(c, t, params, batch)
        # Away from where it is every parameter costs, more than any surrogate gives.
        apart = jax.tree.map(lambda p, s: jnp.sum(jnp.abs(p - s)), *map(actor_critic.policy_params, (params, start)))
        return total + 1e6 * sum(jax.tree.leaves(apart)), metrics

    after, metrics = jax.jit(lambda s: trpo.step(config, task, s, update=functools.partial(trpo.update, loss=worse)))(state)
    assert float(metrics["accepted"]) == 0.0 and float(metrics["backtracks"]) == config.backtrack_steps and float(metrics["kl"]) == 0.0
    assert _equal(start, after.params)
    assert not np.array_equal(start["value"]["w"], after.params["value"]["w"])


def test_the_natural_gradient_takes_the_whole_step() -> None:
    config, task, state = _collected("jax:CartPole-v1", line_search=False, delta=0.5, damping=1e-3)
    step = jax.jit(lambda s: trpo.step(config, task, s))
    for _ in range(3):
        state, metrics = step(state)
        assert float(metrics["accepted"]) == 1.0 and float(metrics["backtracks"]) == 0.0
    assert float(metrics["kl"]) > 0.1, "no bound held it"


def test_a_delta_that_falls_is_the_smaller_delta() -> None:
    """Three quarters on the way, a step is the one that a quarter of delta allows, bit for bit."""
    settings = SMALL | {"total_steps": 4 * SMALL["num_envs"] * SMALL["num_steps"]}
    config, task = trpo.Config(**settings, delta=0.02, anneal_delta=True), envs.make("jax:CartPole-v1", 4)
    state = trpo.init(config, task, jax.random.key(0))
    step = jax.jit(trpo.step, static_argnums=1)
    found, metrics = step(config, task, state._replace(updates=jnp.int32(3)))
    # At the start nothing has fallen yet.
    expected, _ = step(dataclasses.replace(config, delta=0.005), task, state)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert 0.0 < float(metrics["kl"]) <= 0.005


def test_the_expected_improvement_is_the_gradient_along_the_step() -> None:
    # For a tiny delta the surrogate is linear, and its rise is g . step = sqrt(2 delta g^T F^-1 g).
    config, task, state = _collected("jax:Pendulum-v1", delta=1e-5, damping=1e-2, cg_iterations=50)
    _, metrics = jax.jit(lambda s: trpo.step(config, task, s))(state)
    assert float(metrics["accepted"]) == 1.0
    assert float(metrics["improvement"]) == pytest.approx(float(metrics["expected_improvement"]), rel=0.05)
    assert float(metrics["cg_residual"]) < 1e-2


def test_q_in_place_of_the_advantage_leaves_the_gradient() -> None:
    """Equation 14 has Q where other texts have A: over all actions a state's V drops out of the gradient."""
    config, task, state = _collected("jax:CartPole-v1", vine_actions=2, vine_states=16, vine_steps=5)
    obs = jax.random.normal(jax.random.key(1), (16, 4))
    q = jax.random.normal(jax.random.key(2), (2, 16))
    v = 10.0 * jax.random.normal(jax.random.key(3), (1, 16))
    actions = jnp.broadcast_to(jnp.arange(2)[:, None], (2, 16))
    old = jax.jit(lambda params: jax.vmap(trpo.distribution(config, task, params, obs, ()).log_prob)(actions))(state.params)
    batches = [trpo.Batch(obs, (), actions, old, (), a, ()) for a in (q, q - v)]
    gradient = jax.jit(jax.grad(lambda p, b: trpo.loss(config, task, p, b)[0]))
    grads = [gradient(state.params, b) for b in batches]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Walk:
    """A counter: reward is the state plus noise times the action, the action is added; terminates at 3. Discrete or Box."""

    box: bool = False
    max_episode_steps: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        return ArraySpec((1,))

    @property
    def action_spec(self) -> Any:
        return Box((0.0,), (1.0,)) if self.box else Discrete(2)

    def init(self, key: Any) -> Any:
        return jnp.zeros(())

    def step(self, key: Any, state: Any, action: Any) -> Any:
        after = state + jnp.sum(action).astype(jnp.float32)
        return after, state + jax.random.normal(key), after >= 3.0

    def observe(self, state: Any) -> Any:
        return state[None]

    def legal(self, state: Any) -> Any:
        return ()


def test_branches_return_what_follows_under_the_same_chance() -> None:
    task = InGraph(Walk(), 4)
    always = Policy(lambda n: (), lambda key, timestep, carry: (jnp.ones(timestep.obs.shape[0], jnp.int32), carry, ()))
    states = EnvState(jnp.array([0.0, 1.0, 2.0]), jnp.zeros(3, jnp.int32), jnp.zeros(3, bool))
    actions = jnp.array([[0, 0, 0], [1, 1, 1], [1, 1, 1]])
    value = lambda obs: 100.0 + obs[:, 0]  # noqa: E731
    q = np.asarray(vine.q_estimates(task, always, value, jax.random.key(0), states, actions, 2, 0.5))
    np.testing.assert_array_equal(q[1], q[2])
    # The first reward is the state's own; the second begins one further on where the action was 1. State 2 ends at once with it.
    np.testing.assert_allclose(q[1, :2] - q[0, :2], [0.5 * 1 + 0.25 * 1, 0.5 * 1 - 0.25 * 102.0], rtol=1e-5)
    noise = q[0] - [0 + 0.5 * 0 + 0.25 * 101, 1 + 0.5 * 1 + 0.25 * 102, 2 + 0.5 * 2]
    assert (np.abs(noise) < 6).all() and np.ptp(noise) > 1e-3
    # A branch of one decision with a state that ends: its reward alone.
    one = np.asarray(vine.q_estimates(task, always, value, jax.random.key(0), states, actions, 1, 0.5))
    assert one[0, 2] - one[1, 2] == pytest.approx(0.5 * 102.0, rel=1e-5)


def test_a_branch_that_meets_the_time_limit_goes_on_in_the_value() -> None:
    task = InGraph(Walk(max_episode_steps=5), 1)
    stay = Policy(lambda n: (), lambda key, timestep, carry: (jnp.zeros(timestep.obs.shape[0], jnp.int32), carry, ()))
    states = EnvState(jnp.array([1.0]), jnp.array([4], jnp.int32), jnp.zeros(1, bool))
    value = lambda obs: jnp.full(obs.shape[0], 40.0)  # noqa: E731
    keys = jax.random.key(0)
    cut = np.asarray(vine.q_estimates(task, stay, value, keys, states, jnp.zeros((2, 1), jnp.int32), 30, 0.5))
    assert (np.abs(cut - (1.0 + 0.5 * 40.0)) < 6).all()


@dataclasses.dataclass(frozen=True)
class Forbidding(Walk):
    """Action 1 is legal in state 0 alone, and elsewhere its reward is not a number."""

    def step(self, key: Any, state: Any, action: Any) -> Any:
        after, reward, ends = super().step(key, state, action)
        return after, jnp.where((state > 0) & (action == 1), jnp.nan, reward), ends

    def legal(self, state: Any) -> Any:
        return jnp.array([True, False]) | (state == 0)


def test_the_value_at_a_branch_end_is_in_the_rewards_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """With normalised rewards V is in deviations of the return. Action 1 ends the episode in state 2 and costs it the V that follows."""
    task = InGraph(Walk(max_episode_steps=6), 4)
    settings = {"num_envs": 4, "num_steps": 16, "vine_actions": 2, "vine_states": 64, "vine_steps": 1, "value_minibatches": 1}
    config = trpo.Config(**settings, hidden=(4,), gamma=0.9, value_epochs=1, normalise_reward=True)
    state = trpo.init(config, task, jax.random.key(0))
    state.params["value"] = jax.tree.map(jnp.zeros_like, state.params["value"]) | {"b": jnp.array([7.0])}
    # Something was seen before, so that the moments before this iteration and after it differ.
    before = normalise.observe(normalise.start(()), jnp.array([4.0, -2.0, 6.0, 0.0]))
    state = state._replace(normaliser=onpolicy.Normaliser((), before, jnp.arange(4.0)))
    found: list[Any] = []
    plain = vine.q_estimates

    def spying(task: Any, policy: Any, value: Any, key: Any, states: Any, *rest: Any) -> Any:
        q = plain(task, policy, value, key, states, *rest)
        found.extend((states.inner, q))
        return q

    def update(config: Any, task: Any, state: Any, experience: Any) -> Any:
        found.append(experience)
        return trpo.update(config, task, state, experience)

    @jax.jit
    def seen_in_a_turn(state: Any) -> tuple[Any, ...]:
        trpo.step(config, task, state, update=update)
        return tuple(found)

    monkeypatch.setattr(vine, "q_estimates", spying)
    experience, states, q = jax.tree.map(np.asarray, seen_in_a_turn(state))
    reward = experience.reward.astype(np.float64)
    running, sums = np.arange(4.0), [4.0, -2.0, 6.0, 0.0]
    for t, ended in enumerate(experience.terminated | experience.truncated):
        running = reward[t] + 0.9 * running
        sums.extend(running)
        running = running * ~ended
    deviation = np.std(sums)
    assert abs(deviation - 1.0) > 0.1 and abs(deviation - np.std(sums[:4])) > 0.1
    assert set(states.tolist()) == {0.0, 1.0, 2.0}
    np.testing.assert_allclose(q[0] - q[1], np.where(states == 2.0, 0.9 * 7.0 * deviation, 0.0), rtol=1e-4, atol=1e-4)


def test_all_environments_enter_a_thinned_fisher_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are time-major: with as many environments as rows that are passed over, a stride would meet one environment alone."""
    for num_envs, num_steps, every in ((50, 40, 10), (4, 12, 4), (3, 20, 10), (8, 25, 3)):
        rows: Any = trpo.fisher_rows(trpo.Config(num_envs=num_envs, fisher_every=every), num_envs * num_steps)
        step, env = np.divmod(rows, num_envs)
        assert set(env.tolist()) == set(range(num_envs))
        assert all((np.diff(step[env == b]) == every).all() for b in range(num_envs)), "evenly over time in each"
        assert abs(len(rows) - num_envs * num_steps // every) <= num_envs
    assert trpo.fisher_rows(trpo.Config(num_envs=4), 128) is None
    config, task, state = _collected("jax:CartPole-v1", fisher_every=4)
    found: list[Any] = []
    plain = trust_region.fisher_vector_product

    def spying(of: Any, theta: Any) -> Any:
        found.append(of(theta).logits)
        return plain(of, theta)

    @jax.jit
    def used_and_all(state: Any) -> tuple[Any, Any]:
        _, experience, _ = data.rollout(config, task, trpo.policy, trpo.actor(state), state.collector, config.num_steps)
        trpo.update(config, task, state, experience)
        return found[0], trpo.distribution(config, task, state.params, experience.obs, ()).logits

    monkeypatch.setattr(trust_region, "fisher_vector_product", spying)
    used, logits = map(np.asarray, used_and_all(state))
    expected = [logits[t, b] for t in range(32) for b in range(4) if (t + b) % 4 == 0]
    np.testing.assert_allclose(used, expected, rtol=1e-5, atol=1e-6)


def test_what_an_illegal_action_would_have_brought_means_nothing() -> None:
    task = InGraph(Forbidding(max_episode_steps=6), 4)
    config = trpo.Config(num_envs=4, num_steps=16, vine_actions=2, vine_states=32, vine_steps=4, value_minibatches=4)
    state = trpo.init(config, task, jax.random.key(0))
    for _ in range(3):
        state, metrics = jax.jit(functools.partial(trpo.step, config, task))(state)
        assert np.isfinite(metrics["surrogate"]) and np.isfinite(metrics["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@dataclasses.dataclass(frozen=True)
class Choices(Walk):
    """Two choices at a time; of the second, 2 is never legal."""

    @property
    def action_spec(self) -> Any:
        return MultiDiscrete((2, 3))

    def legal(self, state: Any) -> Any:
        return jnp.array([True, True, True, True, False])


def test_of_several_choices_at_a_time_legal_ones_are_tried_and_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many actions as there are choices in all, 5, so that no shape can tell one for the other."""
    config = trpo.Config(num_envs=2, num_steps=4, vine_actions=5, vine_states=6, vine_steps=2, hidden=(4,))
    task, q = InGraph(Choices(), 2), np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    monkeypatch.setattr(vine, "q_estimates", lambda *_: jnp.asarray(q))

    @jax.jit
    def branches(key: Any) -> Any:
        state = trpo.init(config, task, key)
        of = lambda x: jnp.zeros((4, 2, *x.shape[1:]), x.dtype)  # noqa: E731
        env, seen = state.collector.env, task.observe(state.collector.env)
        experience = Transition(of(seen.obs), (), (), (), (), (), (), of(seen.legal).at[:].set(seen.legal), jax.tree.map(of, env))
        return trpo._vine(config, task, state, experience, key, 1.0)

    batch = branches(jax.random.key(0))
    assert batch.action.shape == (5, 6, 2) and int(batch.action[..., 1].max()) == 1
    centred = q - q.mean(axis=0)
    np.testing.assert_allclose(batch.advantage, centred / centred.std(), rtol=1e-4, atol=1e-5)


def test_steps_of_branches_are_counted() -> None:
    config = trpo.Config(num_envs=4, num_steps=32, vine_actions=2, vine_states=16, vine_steps=10)
    assert trpo.steps_per_turn(config) == 4 * 32 + 2 * 16 * 10
    assert trpo.steps_per_turn(trpo.Config(num_envs=4, num_steps=32)) == onpolicy.steps_per_turn(config) == 128


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("CartPole-v1", {"vine_actions": 2}, "cannot be restored"),
        ("jax:CartPole-v1", {"vine_actions": 3}, r"set vine_actions=2 and total_steps=995456, whole iterations of 12928 decisions"),
        ("jax:Pendulum-v1", {"vine_actions": 1}, "at least 2"),
        ("jax:CartPole-v1", {"vine_actions": 2, "vine_states": 129}, "vine_states"),
        ("jax:CartPole-v1", {"value_minibatches": 7}, "choose a divisor, for instance 4"),
        ("jax:CartPole-v1", {"total_steps": 100, "vine_actions": 0}, "raise it"),
        ("jax:CartPole-v1", {"cg_iterations": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_named(name: str, settings: dict[str, Any], words: str) -> None:
    config = trpo.Config(**SMALL | settings)
    task: Any = envs.make(name, config.num_envs)
    with pytest.raises(FlatironsError, match=words):
        trpo.check(config, task)
    task.close()
