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
