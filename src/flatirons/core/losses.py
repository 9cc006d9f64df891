"""Losses on arrays of one shape; the mean over a batch is the caller's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flatirons.types import Array


def huber(error: Array, delta: float = 1.0) -> jax.Array:
    """Squared error near zero, linear beyond `delta`: its gradient is the error clipped to ±delta (Mnih 2015, "error clipping")."""
    size = jnp.abs(error)
    inside = jnp.minimum(size, delta)
    return 0.5 * inside**2 + delta * (size - inside)


def squared(error: Array) -> jax.Array:
    """Half the squared error, so that its gradient is the error."""
    return 0.5 * jnp.square(error)


def clipped_surrogate(ratio: Array, advantage: Array, clip_eps: float | Array) -> jax.Array:
    """min(r A, clip(r, 1-eps, 1+eps) A): PPO's objective, to be maximised (PPO paper, equation 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps) * advantage)


def clipped_value(value: Array, old_value: Array, target: Array, clip_eps: float | Array) -> jax.Array:
    """Half the larger squared error of the value and of the value kept within clip_eps of the old one (an option, not in the paper)."""
    near = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(near - target))
