"""Dropout as a Bayesian approximation: what core.bayes says against closed forms, Monte Carlo and the derivation itself."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.core import bayes, losses
from flatirons.nets import conv
from flatirons.nets.mlp import dense, mlp, mlp_init
from flatirons.types import FlatironsError


@pytest.mark.parametrize("rate", [0.0, 0.005, 0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    x = jnp.full((1000, 400), 2.0)
    y = np.asarray(jax.jit(bayes.dropout)(jax.random.key(0), x, rate))
    share = np.mean(y == 0.0)
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / y.size) + 1 / 65_536
    np.testing.assert_allclose(y[y != 0.0], 2.0 / (1.0 - rate), rtol=1e-6)
    np.testing.assert_allclose(y.mean(), 2.0, rtol=5e-3)


def test_dropping_a_row_of_weights_is_dropping_that_input() -> None:
    params = mlp_init(jax.random.key(0), (5, 7, 3), init="fan_in")
    x = jax.random.normal(jax.random.key(1), (4, 5))
    drawn = jax.jit(bayes.drawn)(jax.random.key(2), params, 0.5)
    by_hand = x
    for layer, masked in zip(params, drawn, strict=True):
        z = jnp.any(masked["w"] != 0.0, axis=1)
        assert bool(jnp.any(z)) and not bool(jnp.all(z)), "choose another key: the mask must be mixed"
        np.testing.assert_array_equal(masked["b"], layer["b"])
        by_hand = jnp.tanh(dense(layer, by_hand * z[None] / 0.5))
    np.testing.assert_allclose(mlp(drawn, x, "tanh"), by_hand, atol=1e-6)


def test_of_a_convolution_whole_input_channels_are_dropped() -> None:
    params = conv.conv_init(jax.random.key(0), 8, conv.ConvLayer(3, 3, 1))
    w = np.asarray(bayes.drawn(jax.random.key(1), params, 0.5)["w"])
    there = (w != 0.0).any(axis=(0, 1, 3))
    assert 0 < there.sum() < 8
    np.testing.assert_allclose(w[:, :, there], 2.0 * np.asarray(params["w"])[:, :, there], rtol=1e-6)


def test_the_predictive_variance_of_a_linear_gaussian_model() -> None:
    weight = jnp.array([[1.5], [-2.0], [0.5]])
    x, rate, tau = jnp.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), 0.3, 4.0
    draws = bayes.predictive(lambda p, x: x @ p, weight, x, jax.random.key(0), 40_000, rate=rate)
    mean, variance = bayes.moments(draws, tau)
    np.testing.assert_allclose(mean, x @ weight, rtol=0.02, atol=0.02)
    # Var[sum_i z_i x_i w_i / (1 - rate)] = rate / (1 - rate) sum_i x_i² w_i²
    np.testing.assert_allclose(variance, 1 / tau + rate / (1 - rate) * jnp.square(x) @ jnp.square(weight), rtol=0.02)
    assert bayes.moments(draws).variance[0, 0] == pytest.approx(float(variance[0, 0]) - 1 / tau, rel=1e-4)


def test_one_draw_is_one_function_and_draws_differ() -> None:
    params = mlp_init(jax.random.key(0), (3, 16, 1))
    x = jnp.ones((2, 3))
    passes = jax.jit(lambda key: bayes.predictive(lambda p, x: mlp(p, x, "tanh"), params, x, key, 64, rate=0.2))
    draws = passes(jax.random.key(1))
    np.testing.assert_allclose(draws[:, 0], draws[:, 1], rtol=1e-6)
    assert len(np.unique(np.asarray(draws[:, 0, 0]).round(5))) > 30
    np.testing.assert_array_equal(draws, passes(jax.random.key(1)))


def test_log_likelihood_is_the_log_of_the_mean_density_and_survives_far_rows() -> None:
    draws = np.random.default_rng(0).normal(size=(50, 4, 2))
    y, tau = np.random.default_rng(1).normal(size=(4, 2)), 3.0
    density = (tau / (2 * np.pi)) ** 1.0 * np.exp(-0.5 * tau * np.sum((draws - y[None]) ** 2, axis=-1))
    np.testing.assert_allclose(bayes.log_likelihood(draws, y, tau), np.log(density.mean(axis=0)), rtol=1e-5)
    far = bayes.log_likelihood(jnp.zeros((3, 1, 1)), jnp.full((1, 1), 100.0), 1.0)
    np.testing.assert_allclose(far, -5_000.0 - 0.5 * math.log(2 * math.pi), rtol=1e-6)


def test_log_likelihood_in_other_units() -> None:
    """tau is in the units of y: y in metres or in centimetres differ by the log of the unit alone."""
    draws, y = np.random.default_rng(0).normal(size=(50, 4, 1)), np.ones((4, 1))
    metres, centimetres = bayes.log_likelihood(draws, y, 2.0), bayes.log_likelihood(100 * draws, 100 * y, 2.0e-4)
    np.testing.assert_allclose(centimetres, metres - math.log(100.0), rtol=1e-5)


def test_a_classifiers_draws() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(bayes.class_log_probs(logits)), p.mean(axis=0), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- the bound


def _kl_by_monte_carlo(m: np.ndarray, sigma: float, keep: float, length_scale: float, n: int = 400_000) -> float:
    """E_q[log q - log p] in float64, from draws of q."""
    rng = np.random.default_rng(0)
    k = len(m)
    w = (rng.random(n) < keep)[:, None] * m + sigma * rng.normal(size=(n, k))

    def log_normal(x: np.ndarray, variance: float) -> np.ndarray:
        return -0.5 * np.sum(x**2, axis=-1) / variance - 0.5 * k * np.log(2 * np.pi * variance)

    parts = [np.log(keep) + log_normal(w - m, sigma**2)]
    if keep < 1:
        parts.append(np.log(1 - keep) + log_normal(w, sigma**2))
    return float(np.mean(np.logaddexp.reduce(parts, axis=0) - log_normal(w, length_scale**-2)))


@pytest.mark.parametrize(
    ("size", "keep", "length_scale"), [(1.0, 0.9, 1.0), (1.0, 0.5, 2.0), (0.15, 0.5, 1.0), (0.0, 0.7, 1.0), (0.8, 1.0, 0.5)]
)
def test_the_kl_of_the_mixture_is_monte_carlos(size: float, keep: float, length_scale: float) -> None:
    """Within 1 %, where the two parts are apart and where they overlap (|m| = 1.5 sigma), at sigma = 0.1."""
    m = np.array([0.6, -0.8]) * size
    found = float(bayes.mixture_kl(m, math.log(0.1), keep, length_scale))
    assert found == pytest.approx(_kl_by_monte_carlo(m, 0.1, keep, length_scale), rel=0.01)


def test_the_kl_at_the_courses_sigma() -> None:
    """sigma = 1e-33: K/2 (0 + 152 - 1) + p/2 |m|² - H(p), finite and with the gradient p m."""
    m, log_sigma, keep = jnp.array([0.3, -0.4, 1.2]), -33 * math.log(10.0), 0.8
    entropy = -(keep * math.log(keep) + (1 - keep) * math.log(1 - keep))
    expected = 1.5 * (-2 * log_sigma - 1) + 0.5 * keep * float(jnp.sum(m**2)) - entropy
    assert float(bayes.mixture_kl(m, log_sigma, keep)) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(jax.grad(lambda m: bayes.mixture_kl(m, log_sigma, keep))(m), keep * m, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda m: bayes.mixture_kl(m, log_sigma, keep))(jnp.zeros(3))).all()


def test_gains_and_biases_of_several_games_are_no_weights() -> None:
    """`[games, out]`: to drop a row would switch a game off."""
    own = {"gain": jnp.ones((3, 4)), "bias": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "w": jnp.ones((3, 4))}
    found = bayes.drawn(jax.random.key(0), {"games": (own,)}, 0.5)["games"][0]
    for name in ("gain", "bias", "b"):
        np.testing.assert_array_equal(found[name], own[name])
    assert (np.asarray(found["w"]) != 1.0).all()


def test_the_bounds_gradient_is_that_of_dropout_and_weight_decay() -> None:
    """(KL(q || prior) - sum_n log p(y_n | x_n, W_n)) / (N tau) and 1/N sum 1/2 |y - f|² + lambda sum |W|²: one gradient, same masks."""
    rate, tau, length_scale, num_rows = 0.2, 3.0, 0.7, 12
    params = mlp_init(jax.random.key(0), (3, 8, 1), init="fan_in")
    x, y = (jax.random.normal(jax.random.key(i), (num_rows, n)) for i, n in ((1, 3), (2, 1)))

    def passed(params: Any) -> jax.Array:
        out = x
        for i, layer in enumerate(params):
            out = dense(layer, bayes.dropout(jax.random.key(10 + i), out, rate))
            out = jnp.tanh(out) if i == 0 else out
        return out

    def bound(params: Any) -> jax.Array:
        log_likelihood = jnp.sum(bayes.log_likelihood(passed(params)[None], y, tau))
        return (bayes.kl(params, -76.0, rate, length_scale) - log_likelihood) / (num_rows * tau)

    def dropout_loss(params: Any) -> jax.Array:
        error = jnp.mean(jnp.sum(losses.squared(passed(params) - y), axis=-1))
        return error + bayes.weight_decay(tau, length_scale, num_rows) * bayes.decayed(params, rate)

    both = jax.jit(lambda params: (jax.grad(bound)(params), jax.grad(dropout_loss)(params)))(params)
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_precision_and_weight_decay_are_each_others_inverse() -> None:
    decay = bayes.weight_decay(0.15, 1e-2, 455, 0.95)
    assert float(decay) == pytest.approx(1e-4 / (2 * 455 * 0.15 * 0.95), rel=1e-6)
    assert float(bayes.precision(decay, 1e-2, 455, 0.95)) == pytest.approx(0.15, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_refused() -> None:
    params = mlp_init(jax.random.key(0), (3, 1))
    with pytest.raises(FlatironsError, match="n is 0: a prediction needs at least 1"):
        bayes.predictive(lambda p, x: x, params, jnp.ones(1), jax.random.key(0), 0, rate=0.1)
    with pytest.raises(FlatironsError, match=r"rate is 1.0: it is the probability to drop"):
        bayes.predictive(lambda p, x: x, params, jnp.ones(1), jax.random.key(0), 10, rate=1.0)
    for rate in (-0.1, 0.999_999, math.nan):
        with pytest.raises(FlatironsError, match=r"from 0 to 1 - 1/65,536, beyond which none is kept"):
            bayes.demand_rate(rate)
    bayes.demand_rate(1.0 - 1.0 / 65_536)
    assert bool(bayes.kept(jax.random.key(0), (1_000_000,), 1.0 - 1.0 / 65_536).any())
    with pytest.raises(FlatironsError, match="no leaf of these parameters is a weight"):
        bayes.predictive(lambda p, x: x, {"b": jnp.ones(3)}, jnp.ones(1), jax.random.key(0), 10, rate=0.1)
