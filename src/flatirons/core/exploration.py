"""How to act otherwise than the estimate says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core.distributions import mask_logits
from flatirons.types import Array, Key


def greedy(q_values: Array, legal: Any = ()) -> jax.Array:
    """The legal action of largest value, int32 `[...]`, from `q_values [..., n]`."""
    return jnp.argmax(mask_logits(q_values, legal), axis=-1).astype(jnp.int32)


def epsilon_greedy(key: Key, q_values: Array, epsilon: float | Array, legal: Any = ()) -> jax.Array:
    """With probability `epsilon` a uniformly random legal action, else the greedy one; int32 `[...]` (Mnih 2015, Algorithm 1)."""
    key_coin, key_action = jax.random.split(key)
    best = greedy(q_values, legal)
    if isinstance(legal, tuple):
        other = jax.random.randint(key_action, best.shape, 0, q_values.shape[-1], jnp.int32)
    else:
        other = jax.random.categorical(key_action, mask_logits(jnp.zeros(q_values.shape), legal)).astype(jnp.int32)
    return jnp.where(jax.random.uniform(key_coin, best.shape) < epsilon, other, best)


def choose(uniform: Array, among: Array) -> jax.Array:
    """One of the True entries of `among [..., n]`, int32 `[...]`, each with equal chance: where `uniform [...]` in [0, 1) falls."""
    among = jnp.asarray(among)
    rank = jnp.cumsum(among, axis=-1, dtype=jnp.int32)
    wanted = jnp.floor(jnp.asarray(uniform) * rank[..., -1]).astype(jnp.int32)
    # In float32 the product may round up to the count itself, hence the minimum.
    return jnp.argmax(rank > jnp.minimum(wanted, rank[..., -1] - 1)[..., None], axis=-1).astype(jnp.int32)


def _largest(q_values: Array, legal: Any) -> jax.Array:
    q_values = mask_logits(q_values, legal)
    return q_values == jnp.max(q_values, axis=-1, keepdims=True)


def fair_greedy(uniform: Array, q_values: Array, legal: Any = ()) -> jax.Array:
    """A legal action of largest value, int32 `[...]`, ties broken at random by `uniform [...]` in [0, 1)."""
    return choose(uniform, _largest(q_values, legal))


def fair_epsilon_greedy(key: Key, q_values: Array, epsilon: float | Array, legal: Any = ()) -> jax.Array:
    """As `epsilon_greedy`, with ties broken at random: what a table needs, whose values are all alike at first."""
    coin, uniform = jax.random.uniform(key, (2, *q_values.shape[:-1]))
    anything = jnp.ones(q_values.shape, bool) if isinstance(legal, tuple) else legal
    return choose(uniform, jnp.where((coin < epsilon)[..., None], anything, _largest(q_values, legal)))


def ornstein_uhlenbeck(noise: Array, normal: Array, theta: float | Array, sigma: float | Array) -> jax.Array:
    """Noise that remembers, one time step later: x + theta (0 - x) + sigma N, all of one shape (Lillicrap 2016, section 7)."""
    return jnp.asarray(noise) - theta * jnp.asarray(noise) + sigma * normal


def correlated(noise: Array, normal: Array, first: Array, correlation: float | Array) -> jax.Array:
    """Standard normal noise `[..., B, d]` whose correlation with the last `noise` is `correlation`: an Ornstein-Uhlenbeck process that is
    stationary from the start, `normal` itself where an episode begins (`first [..., B]`)."""
    going_on = ornstein_uhlenbeck(noise, normal, 1.0 - correlation, jnp.sqrt(1.0 - jnp.square(correlation)))
    return jnp.where(jnp.asarray(first)[..., None], normal, going_on)
