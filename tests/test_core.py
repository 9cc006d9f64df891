"""Known answers for the mathematics: slow float64 loops, numeric integration, enumeration, steps computed by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatirons.core import exploration, losses, normalise, optimisers, returns, schedules, shuffle, trees
from flatirons.core.distributions import ILLEGAL, Categorical, MultiCategorical, Normal, mask_logits

# ---------------------------------------------------------------------------------------------------------------- returns


def _trajectory(seed: int, length: int, streams: int) -> dict[str, np.ndarray]:
    """Random rewards, values and ends; both flags at once and ends at the first step are frequent."""
    rng = np.random.default_rng(seed)
    rate = rng.choice([0.0, 0.1, 0.5, 1.0], size=2)
    data = {
        "reward": rng.normal(size=(length, streams)),
        "value": rng.normal(size=(length, streams)),
        "next_value": rng.normal(size=(length, streams)),
        "terminated": rng.random((length, streams)) < rate[0],
        "truncated": rng.random((length, streams)) < rate[1],
    }
    if seed % 3 == 0:
        data["truncated"][0] = True
    if seed % 5 == 0:
        data["terminated"][0] = data["truncated"][0] = True
    return data


# Few shapes, for each of them is compiled.
SHAPES = [(1, 1), (2, 2), (5, 3), (40, 1), (17, 2)]
# A loop that is not part of a compiled function is compiled at each call.
GAE, LAMBDA_RETURN, DISCOUNTED_SUM = jax.jit(returns.gae), jax.jit(returns.lambda_return), jax.jit(returns.discounted_sum)
SEGMENT_RETURN = jax.jit(returns.segment_return)
CASES = [(seed, *SHAPES[seed // 2 % len(SHAPES)]) for seed in range(12)]


def _slow_gae(d: dict[str, np.ndarray], gamma: float, lam: float) -> np.ndarray:
    """The definition: the sum of (gamma lambda)^k delta_{t+k} up to the end of the episode or of the trajectory."""
    out = np.zeros_like(d["reward"])
    length, streams = out.shape
    for b in range(streams):
        for t in range(length):
            weight = 1.0
            for k in range(t, length):
                successor = 0.0 if d["terminated"][k, b] else d["next_value"][k, b]
                out[t, b] += weight * (d["reward"][k, b] + gamma * successor - d["value"][k, b])
                if d["terminated"][k, b] or d["truncated"][k, b]:
                    break
                weight *= gamma * lam
    return out


def _slow_n_step(d: dict[str, np.ndarray], gamma: float, n: int) -> np.ndarray:
    out = np.zeros_like(d["reward"])
    length, streams = out.shape
    for b in range(streams):
        for t in range(length):
            for k in range(n):
                out[t, b] += gamma**k * d["reward"][t + k, b]
                over = d["terminated"][t + k, b] or d["truncated"][t + k, b]
                if over or k == n - 1 or t + k == length - 1:
                    if not d["terminated"][t + k, b]:
                        out[t, b] += gamma ** (k + 1) * d["next_value"][t + k, b]
                    break
    return out


def _in_float32(d: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: jnp.asarray(v, jnp.float32) if v.dtype == np.float64 else jnp.asarray(v) for k, v in d.items()}


@pytest.mark.parametrize(("seed", "length", "streams"), CASES)
def test_gae_and_lambda_return_are_the_definition(seed: int, length: int, streams: int) -> None:
    d = _trajectory(seed, length, streams)
    for gamma, lam in ((0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.0, 0.5)):
        expected = _slow_gae(d, gamma, lam)
        np.testing.assert_allclose(GAE(**_in_float32(d), gamma=gamma, gae_lambda=lam), expected, atol=1e-4)
        found = LAMBDA_RETURN(**_in_float32(d), gamma=gamma, lambda_=lam)
        np.testing.assert_allclose(found, expected + d["value"], atol=1e-4)


@pytest.mark.parametrize(("seed", "length", "streams"), CASES)
def test_t_step_estimator_is_gae_with_lambda_one(seed: int, length: int, streams: int) -> None:
    # Along one stream V(s') of a row that goes on is the V(s) of the next one; only then do the two coincide.
    d = _trajectory(seed, length, streams)
    ended = d["terminated"] | d["truncated"]
    d["next_value"][:-1] = np.where(ended[:-1], d["next_value"][:-1], d["value"][1:])
    expected = _slow_n_step(d, 0.97, length) - d["value"]
    np.testing.assert_allclose(GAE(**_in_float32(d), gamma=0.97, gae_lambda=1.0), expected, atol=1e-4)


@pytest.mark.parametrize(("seed", "length", "streams"), CASES)
def test_segment_return_is_the_n_step_return_of_its_length(seed: int, length: int, streams: int) -> None:
    d = _trajectory(seed, length, streams)
    arguments = {k: v for k, v in _in_float32(d).items() if k != "value"}
    np.testing.assert_allclose(SEGMENT_RETURN(**arguments, gamma=0.9), _slow_n_step(d, 0.9, length), atol=1e-4)


@pytest.mark.parametrize(("seed", "length", "streams"), CASES)
def test_discounted_sum_is_the_definition_and_carries_on(seed: int, length: int, streams: int) -> None:
    d = _trajectory(seed, length, streams)
    ended = d["terminated"] | d["truncated"]
    expected, carry = np.zeros_like(d["reward"]), np.full(streams, 0.5)
    for t in range(length):
        carry = d["reward"][t] + 0.9 * carry
        expected[t] = carry
        carry = np.where(ended[t], 0.0, carry)
    reward, start = jnp.asarray(d["reward"], jnp.float32), jnp.full(streams, 0.5)
    end, sums = DISCOUNTED_SUM(reward, jnp.asarray(ended), start, 0.9)
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    np.testing.assert_allclose(end, carry, atol=1e-4)
    cut = length // 2
    if cut:
        middle, early = DISCOUNTED_SUM(reward[:cut], jnp.asarray(ended[:cut]), start, 0.9)
        end, late = DISCOUNTED_SUM(reward[cut:], jnp.asarray(ended[cut:]), middle, 0.9)
        np.testing.assert_allclose(np.concatenate([early, late]), expected, atol=1e-4)
        np.testing.assert_allclose(end, carry, atol=1e-4)


def test_td_target_by_hand() -> None:
    found = returns.td_target(jnp.array([1.0, 1.0]), jnp.array([True, False]), jnp.array([10.0, 10.0]), 0.5)
    np.testing.assert_allclose(found, [1.0, 6.0])
    for flags in (jnp.array([True, False]), jnp.array([1.0, 0.0])):
        unknown = returns.td_target(jnp.array([1.0, 1.0]), flags, jnp.array([jnp.nan, 10.0]), 0.5)
        np.testing.assert_allclose(unknown, [1.0, 6.0], err_msg="what is said of a state without a successor does not count")


def test_returns_are_differentiable_and_batch_under_vmap() -> None:
    d = _in_float32(_trajectory(1, 6, 3))
    one = jax.vmap(lambda *xs: returns.gae(*xs, gamma=0.9, gae_lambda=0.8), in_axes=1, out_axes=1)
    np.testing.assert_allclose(one(*d.values()), returns.gae(**d, gamma=0.9, gae_lambda=0.8), atol=1e-6)
    slope = jax.grad(lambda r: returns.gae(**(d | {"reward": r}), gamma=0.9, gae_lambda=0.8)[0].sum())(d["reward"])
    assert (np.asarray(slope[0]) == 1.0).all()


# ----------------------------------------------------------------------------------------------------------------- losses


def test_huber_gradient_is_the_clipped_error() -> None:
    error = jnp.linspace(-3.0, 3.0, 61)  # holds 0 and both corners
    for delta in (0.5, 1.0, 2.0):
        slope = jax.vmap(jax.grad(lambda e, d=delta: losses.huber(e, d)))(error)
        np.testing.assert_allclose(slope, np.clip(error, -delta, delta), atol=1e-6)
        expected = np.where(np.abs(error) <= delta, 0.5 * error**2, delta * (np.abs(error) - 0.5 * delta))
        np.testing.assert_allclose(losses.huber(error, delta), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(losses.squared))(error), error, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # already good enough: no more push
        (0.5, 2.0, 1.0, 2.0),  # worse than before: the full gradient back
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -2.0),
        (0.9, -2.0, -1.8, -2.0),
    ],
)
def test_clipped_surrogate_cases(ratio: float, advantage: float, expected: float, slope: float) -> None:
    value, grad = jax.value_and_grad(losses.clipped_surrogate)(ratio, advantage, 0.2)
    np.testing.assert_allclose([value, grad], [expected, slope], rtol=1e-6)


def test_clipped_surrogate_never_exceeds_the_plain_one() -> None:
    ratio = jnp.exp(jax.random.normal(jax.random.key(0), (1000,)))
    advantage = jax.random.normal(jax.random.key(1), (1000,))
    assert (losses.clipped_surrogate(ratio, advantage, 0.2) <= ratio * advantage + 1e-6).all()


def test_clipped_value_by_hand() -> None:
    # Near the old value it is the plain loss; far beyond it, towards the target, the clipped one is larger and its gradient is gone.
    assert float(losses.clipped_value(0.1, 0.0, 1.0, 0.2)) == pytest.approx(0.5 * 0.9**2)
    assert float(losses.clipped_value(0.5, 0.0, 1.0, 0.2)) == pytest.approx(0.5 * 0.8**2)
    assert float(losses.clipped_value(-0.5, 0.0, 1.0, 0.2)) == pytest.approx(0.5 * 1.5**2)
    assert float(jax.grad(losses.clipped_value)(0.5, 0.0, 1.0, 0.2)) == 0.0


# ---------------------------------------------------------------------------------------------------------- distributions


def test_categorical_against_enumeration() -> None:
    logits, other = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32) * 2.0
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    q = np.exp(other.astype(np.float64)) / np.exp(other.astype(np.float64)).sum(-1, keepdims=True)
    pi = Categorical(jnp.asarray(logits))
    for a in range(5):
        np.testing.assert_allclose(pi.log_prob(jnp.full(4, a)), np.log(p[:, a]), atol=1e-5)
    np.testing.assert_allclose(pi.entropy(), -(p * np.log(p)).sum(-1), atol=1e-5)
    np.testing.assert_allclose(pi.kl(Categorical(jnp.asarray(other))), (p * np.log(p / q)).sum(-1), atol=1e-5)
    np.testing.assert_array_equal(pi.mode(), p.argmax(-1))
    np.testing.assert_allclose(pi.kl(pi), np.zeros(4), atol=1e-6)
    assert pi.mode().dtype == pi.sample(jax.random.key(0)).dtype == jnp.int32


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.3, 3.0])
def test_the_kl_of_near_distributions_is_right_to_its_own_size(size: float) -> None:
    """Against the definition in float64. Terms p (log p - log q) are as large as `size`, their sum as its square."""
    rng = np.random.default_rng(0)
    logits, move = rng.integers(-4, 5, (2, 200, 5)) * np.array([0.5, size / 4])[:, None, None]
    old, new = logits.astype(np.float32), (logits + move).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (old.astype(np.float64), new.astype(np.float64)))
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert float(jnp.mean(Categorical(old).kl(Categorical(new)))) == pytest.approx(expected, rel=1e-4 + 1e-7 / size)
    x = 2.0 * (old.astype(np.float64) - new)
    shift = (old.astype(np.float64) - new) ** 2 * np.exp(-2.0 * new)
    expected = (0.5 * (np.exp(x) - 1.0 - x + shift)).sum(-1).mean()
    assert float(jnp.mean(Normal(old, old).kl(Normal(new, new)))) == pytest.approx(expected, rel=1e-4 + 1e-7 / size)


def test_categorical_samples_at_its_probabilities() -> None:
    p = np.array([0.1, 0.2, 0.7])
    found = Categorical(jnp.broadcast_to(jnp.log(p)[None], (30_000, 3))).sample(jax.random.key(0))
    np.testing.assert_allclose(np.bincount(found, minlength=3) / 30_000, p, atol=0.012)


MASKS = [m for m in itertools.product([False, True], repeat=4) if any(m)]


@pytest.mark.parametrize("mask", MASKS)
def test_illegal_actions_have_probability_exactly_zero_and_no_gradient(mask: tuple[bool, ...]) -> None:
    legal = jnp.array(mask)
    logits = jnp.array([3.0, -50.0, 0.5, 80.0])
    other = jnp.array([0.1, 0.2, 0.3, 0.4])

    def masked(x: jax.Array) -> Categorical:
        return Categorical(mask_logits(x, legal))

    p = np.exp(np.stack([masked(logits).log_prob(jnp.int32(a)) for a in range(4)]))
    assert (p[~np.array(mask)] == 0.0).all() and p.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(masked(logits).entropy()) and float(masked(logits).entropy()) >= -1e-6
    first = int(np.argmax(mask))
    for f in (
        lambda x: masked(x).log_prob(jnp.int32(first)),
        lambda x: masked(x).entropy(),
        lambda x: masked(x).kl(masked(other)),
        lambda x: masked(other).kl(masked(x)),
    ):
        slope = np.asarray(jax.grad(f)(logits))
        assert np.isfinite(slope).all() and (slope[~np.array(mask)] == 0.0).all()
        if sum(mask) == 1:
            np.testing.assert_allclose(slope, np.zeros(4), atol=1e-6)
    drawn = np.asarray(Categorical(jnp.broadcast_to(mask_logits(logits, legal)[None], (500, 4))).sample(jax.random.key(0)))
    assert set(drawn) <= set(np.flatnonzero(mask)) and mask[int(masked(logits).mode())]


def test_masking_a_large_space() -> None:
    n = 4672
    legal = jnp.zeros(n, bool).at[jnp.array([7, 4000])].set(True)
    pi = Categorical(mask_logits(jax.random.normal(jax.random.key(0), (n,)) * 30.0, legal))
    p = np.asarray(jax.nn.softmax(pi.logits))
    assert (np.flatnonzero(p) == np.flatnonzero(legal)).all() or np.count_nonzero(p) == 1
    assert np.isfinite(pi.entropy())
    assert float(pi.log_prob(jnp.int32(0))) < 0.5 * ILLEGAL
    assert mask_logits(pi.logits, ()) is not None and (mask_logits(pi.logits, ()) == pi.logits).all()


def test_multi_categorical_against_enumeration() -> None:
    rng = np.random.default_rng(1)
    a, b, c, d = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (2, 3, 2, 3))
    pi, other = MultiCategorical((Categorical(a), Categorical(b))), MultiCategorical((Categorical(c), Categorical(d)))
    actions = jnp.array(list(itertools.product(range(2), range(3))))
    log_p = np.array([pi.log_prob(x) for x in actions], np.float64)
    log_q = np.array([other.log_prob(x) for x in actions], np.float64)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    assert float(pi.entropy()) == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-5)
    assert float(pi.kl(other)) == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), abs=1e-5)
    assert (np.asarray(pi.mode()) == np.asarray(actions[log_p.argmax()])).all()
    many = MultiCategorical(tuple(Categorical(jnp.broadcast_to(x[None], (20_000, len(x)))) for x in (a, b)))
    drawn = np.asarray(many.sample(jax.random.key(0)))
    assert drawn.shape == (20_000, 2)
    frequency = np.array([(drawn == np.asarray(x)).all(axis=1).mean() for x in actions])
    np.testing.assert_allclose(frequency, np.exp(log_p), atol=0.015)  # the entries are independent too


def test_normal_against_numeric_integration() -> None:
    pi, other = Normal(jnp.array([0.3]), jnp.array([-0.4])), Normal(jnp.array([-0.2]), jnp.array([0.2]))
    x = np.linspace(-12.0, 12.0, 200_001)
    log_p, log_q = (np.asarray(jax.vmap(d.log_prob)(jnp.asarray(x[:, None], jnp.float32)), np.float64) for d in (pi, other))
    assert np.trapezoid(np.exp(log_p), x) == pytest.approx(1.0, abs=1e-4)
    assert float(pi.entropy()) == pytest.approx(-np.trapezoid(np.exp(log_p) * log_p, x), abs=1e-4)
    assert float(pi.kl(other)) == pytest.approx(np.trapezoid(np.exp(log_p) * (log_p - log_q), x), abs=1e-4)
    assert float(pi.kl(pi)) == pytest.approx(0.0, abs=1e-6)


def test_normal_dimensions_add_up_and_samples_fit() -> None:
    mean, log_std = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.1, -1.0, 0.7])
    pi = Normal(mean, log_std)
    parts = [Normal(mean[i : i + 1], log_std[i : i + 1]) for i in range(3)]
    action = jnp.array([0.2, -2.1, 3.0])
    assert float(pi.log_prob(action)) == pytest.approx(sum(float(q.log_prob(action[i : i + 1])) for i, q in enumerate(parts)), rel=1e-5)
    assert float(pi.entropy()) == pytest.approx(sum(float(q.entropy()) for q in parts), rel=1e-5)
    drawn = np.asarray(
        Normal(jnp.broadcast_to(mean[None], (40_000, 3)), jnp.broadcast_to(log_std[None], (40_000, 3))).sample(jax.random.key(0))
    )
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(drawn.std(0), np.exp(log_std), rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=0.03)


# ------------------------------------------------------------------------------------------------------------ exploration


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies(epsilon: float) -> None:
    n = 40_000
    q = jnp.broadcast_to(jnp.array([[0.0, 5.0, 1.0, 9.0]]), (n, 4))
    drawn = exploration.epsilon_greedy(jax.random.key(0), q, epsilon)
    expected = np.full(4, epsilon / 4) + (1.0 - epsilon) * np.eye(4)[3]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, expected, atol=0.012)
    legal = jnp.broadcast_to(jnp.array([[True, True, True, False]]), (n, 4))
    drawn = exploration.epsilon_greedy(jax.random.key(1), q, epsilon, legal)
    expected = np.array([epsilon / 3] * 3 + [0.0]) + (1.0 - epsilon) * np.eye(4)[1]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, expected, atol=0.012)
    assert drawn.dtype == jnp.int32


def test_greedy_chooses_among_the_legal() -> None:
    q = jnp.array([[-5.0, -3.0, -4.0]])
    assert int(exploration.greedy(q)[0]) == 1
    assert int(exploration.greedy(q, jnp.array([[True, False, True]]))[0]) == 2


# ---------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("cuts", [(1,), (50,), (1, 2, 3, 60), (10, 99)])
def test_moments_equal_numpy_over_any_split(cuts: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).normal(loc=50.0, scale=3.0, size=(100, 2, 3)).astype(np.float32)
    moments = normalise.start((2, 3))
    for part in np.split(data, cuts):
        moments = normalise.observe(moments, jnp.asarray(part))
    assert float(moments.count) == 100
    np.testing.assert_allclose(moments.mean, data.astype(np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalise.variance(moments), data.astype(np.float64).var(0), rtol=1e-3)


def test_standardise_is_frozen_and_clips() -> None:
    moments = normalise.start((2,))
    x = jnp.array([[[1.0, -20.0]]])
    np.testing.assert_allclose(normalise.standardise(moments, x), [[[1.0, -10.0]]], rtol=1e-6)
    moments = normalise.observe(moments, jnp.array([[0.0, 10.0], [2.0, 30.0]]))
    np.testing.assert_allclose(normalise.standardise(moments, x), [[[0.0, -4.0]]], atol=1e-5)
    again = normalise.standardise(moments, x)
    np.testing.assert_array_equal(again, normalise.standardise(moments, x))
    np.testing.assert_allclose(normalise.rescale(normalise.Moments(2.0, 5.0, 8.0), jnp.array([4.0, -100.0])), [2.0, -10.0], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- optimisers


def _numpy_rmsprop(grads: list[np.ndarray], inside: bool, eps: float, decay: float = 0.95) -> list[np.ndarray]:
    """Graves 2013 equations 38 to 40 (inside), PyTorch's `RMSprop(centered=True)` (outside), in float64: no momentum."""
    n, m, out = 0.0, 0.0, []
    for g in grads:
        n = decay * n + (1 - decay) * g * g
        m = decay * m + (1 - decay) * g
        denominator = np.sqrt(n - m * m + eps) if inside else np.sqrt(n - m * m) + eps
        out.append(g / denominator)
    return out


@pytest.mark.parametrize(("name", "inside"), [("rmsprop", True), ("rmsprop-torch", False)])
def test_rmsprop_steps_by_hand(name: str, inside: bool) -> None:
    grads = [np.array([0.5, -0.02, 3.0, 0.0]), np.array([-0.1, 0.04, 1.0, 0.2]), np.array([0.3, 0.3, -2.0, 0.1])]
    method = optimisers.optimiser(name, eps=0.01)
    state = method.init({"w": jnp.zeros(4)})
    for g, expected in zip(grads, _numpy_rmsprop(grads, inside, 0.01), strict=True):
        direction, state = method.update({"w": jnp.asarray(g, jnp.float32)}, state)
        np.testing.assert_allclose(direction["w"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop-torch"])
def test_gradients_that_do_not_change_give_numbers(name: str) -> None:
    # n - m² is 0 but for rounding, which puts it below for some of these.
    method, g = optimisers.optimiser(name, eps=1e-8), jnp.array([0.1, 0.3, 0.7, 1.1])
    _, directions = jax.lax.scan(lambda state, _: method.update(g, state)[::-1], method.init(g), length=400)
    assert np.isfinite(directions).all()


def test_the_place_of_epsilon_matters_as_the_papers_say() -> None:
    # One first step for g = 0.02: sqrt(0.05 g² - 0.0025 g² + 0.01) is 0.1, and sqrt(0.0475) g + 0.01 is 0.0144.
    inside, outside = (optimisers.optimiser(name, eps=0.01) for name in ("rmsprop", "rmsprop-torch"))
    g = jnp.array([0.02])
    a, b = (float(m.update(g, m.init(g))[0][0]) for m in (inside, outside))
    assert a == pytest.approx(0.02 / math.sqrt(0.0475 * 0.0004 + 0.01), rel=1e-5)
    assert b == pytest.approx(0.02 / (math.sqrt(0.0475 * 0.0004) + 0.01), rel=1e-4)
    assert 6.0 < b / a < 8.0


def test_adam_by_hand_and_against_optax() -> None:
    method, reference = optimisers.optimiser("adam", eps=1e-5), optax.adam(0.1, eps=1e-5)
    params = theirs = jnp.array([1.0, -2.0])
    state, their_state = method.init(params), reference.init(theirs)
    m = v = np.zeros(2)
    by_hand = np.array([1.0, -2.0])
    for t, g in enumerate([np.array([0.5, -0.01]), np.array([-0.2, 3.0])], start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        by_hand = by_hand - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-5)
        direction, state = method.update(jnp.asarray(g, jnp.float32), state)
        params = optimisers.descend(params, direction, 0.1)
        updates, their_state = reference.update(jnp.asarray(g, jnp.float32), their_state)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(params, by_hand, rtol=1e-5)
        np.testing.assert_allclose(params, theirs, rtol=1e-6)


def test_clip_by_global_norm() -> None:
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    norm = trees.global_norm(grads)
    assert float(norm) == pytest.approx(5.0)
    assert float(trees.global_norm(optimisers.clip_by_global_norm(grads, norm, 1.0))) == pytest.approx(1.0)
    np.testing.assert_allclose(optimisers.clip_by_global_norm(grads, norm, 1.0)["b"], [[0.8]], rtol=1e-6)
    np.testing.assert_array_equal(optimisers.clip_by_global_norm(grads, norm, 7.0)["a"], [3.0])  # never scaled up
    zero = {"a": jnp.zeros(1)}
    assert float(optimisers.clip_by_global_norm(zero, trees.global_norm(zero), 1.0)["a"][0]) == 0.0


# -------------------------------------------------------------------------------------------------------- schedules, trees


def test_linear_schedule_and_fraction() -> None:
    assert [float(schedules.linear(1.0, 0.1, p)) for p in (-1.0, 0.0, 0.5, 1.0, 7.0)] == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])
    assert float(schedules.fraction(jnp.int32(250), 1000)) == 0.25


def test_trees() -> None:
    a, b = {"x": jnp.array([1.0, 2.0]), "n": jnp.array(1.0)}, {"x": jnp.array([3.0, 6.0]), "n": jnp.array(5.0)}
    np.testing.assert_allclose(trees.polyak(a, b, 0.25)["x"], [2.5, 5.0])
    np.testing.assert_allclose(trees.polyak(a, b, 1.0)["x"], a["x"])
    assert float(trees.select(jnp.array(True), a, b)["n"]) == 1.0 and float(trees.select(jnp.array(False), a, b)["n"]) == 5.0
    assert trees.size(a) == 3 and trees.num_bytes(a) == 12
    assert trees.num_bytes({"i": jax.ShapeDtypeStruct((2, 3), jnp.uint8)}) == 6
    assert bool(trees.all_finite(a | {"k": jnp.arange(3)}))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not bool(trees.all_finite(a | {"bad": jnp.array([1.0, bad])}))
    rows = trees.as_rows({"x": jnp.arange(24).reshape(2, 3, 4), "none": ()})
    assert rows["x"].shape == (6, 4) and rows["none"] == ()
    np.testing.assert_array_equal(rows["x"][4], [16, 17, 18, 19])


# --------------------------------------------------------------------------------------------------------------- shuffling


@pytest.mark.parametrize("n", [1, 5, 64, 65, 200, 256, 1000])
def test_permutation_is_one_and_its_places_and_meetings_are_uniform(n: int) -> None:
    draws = 4000
    orders = np.asarray(jax.jit(jax.vmap(lambda k: shuffle.permutation(k, n)))(jax.random.split(jax.random.key(0), draws)))
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    if n < 5:
        return
    for place in (0, n // 2, n - 1):
        counts = np.bincount(orders[:, place], minlength=n)
        assert ((counts - draws / n) ** 2 / (draws / n)).sum() / (n - 1) < 1.5 + 4 / np.sqrt(n)
    places, half = np.argsort(orders, axis=1), n // 2
    expected = (half * (half - 1) + (n - half) * (n - half - 1)) / (n * (n - 1))
    for a, b in ((0, 1), (3, 4), (0, n // 2), (1, n - 1)):
        assert abs(np.mean((places[:, a] < half) == (places[:, b] < half)) - expected) < 0.04
