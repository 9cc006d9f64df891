"""Returns and advantages over one trajectory, time on axis 0; any further axes are streams side by side.

`terminated` and `truncated` come apart, as bool or 0/1. A termination has no successor value; a truncation has one, and ends the sum.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flatirons.types import Array


def td_target(reward: Array, terminated: Array, next_value: Array, gamma: float | Array) -> jax.Array:
    """One-step target y = r + gamma (1 - terminated) V(s'), all of one shape (Mnih 2015, Algorithm 1)."""
    # Chosen, not multiplied by 0: whatever is said of a state that has no successor, be it NaN, does not count.
    return jnp.asarray(reward) + gamma * jnp.where(jnp.asarray(terminated) > 0, 0.0, next_value)


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: float | Array,
    gae_lambda: float | Array,
) -> jax.Array:
    """Generalised advantage estimates, `[T, ...]` each (Schulman 2016, equation 16; PPO paper, equations 11 and 12).

    `next_value` is the value of the true successor, so that a truncated row bootstraps from where its episode was cut.
    """
    terminated = jnp.asarray(terminated, jnp.float32)
    ended = jnp.maximum(terminated, jnp.asarray(truncated, jnp.float32))
    delta = td_target(reward, terminated, next_value, gamma) - value
    decay = jnp.asarray(gamma * gae_lambda * (1.0 - ended))

    def backwards(carry: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        carry = row[0] + row[1] * carry
        return carry, carry

    return jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, decay), reverse=True, unroll=min(8, delta.shape[0]))[1]


def lambda_return(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: float | Array,
    lambda_: float | Array,
) -> jax.Array:
    """TD(lambda) returns `[T, ...]`: the advantages of `gae` plus the values. lambda = 1 is the T-step estimator with a bootstrap."""
    return jnp.asarray(value) + gae(reward, value, next_value, terminated, truncated, gamma, lambda_)


def segment_return(reward: Array, next_value: Array, terminated: Array, truncated: Array, gamma: float | Array) -> jax.Array:
    """Returns `[T, ...]` that run to the segment's last row, or to where an episode ends, and bootstrap there (Mnih 2016, Algorithm S3).

    `next_value` is the value of the true successor; it is read in the last row and where an episode was cut, nowhere else.
    """
    terminated = jnp.asarray(terminated, jnp.float32)
    bootstrap = td_target(reward, terminated, next_value, gamma)
    stop = jnp.maximum(terminated, jnp.asarray(truncated, jnp.float32)) > 0

    def backwards(later: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        total = jnp.where(row[0], row[1], row[2] + gamma * later)
        return total, total

    rows = (stop.at[-1].set(True), bootstrap, jnp.asarray(reward))
    return jax.lax.scan(backwards, jnp.zeros_like(bootstrap[0]), rows, reverse=True, unroll=min(8, stop.shape[0]))[1]


def discounted_sum(reward: Array, ended: Array, start: Array, gamma: float | Array) -> tuple[jax.Array, jax.Array]:
    """Running forward sums R_t = r_t + gamma R_{t-1}, restarted after each end: (the sum to carry on from, `[T, ...]`).

    This is the quantity whose deviation scales rewards (Engstrom 2020, "reward scaling").
    """

    def forwards(carry: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total = row[0] + gamma * carry
        return total * (1.0 - row[1]), total

    return jax.lax.scan(forwards, jnp.asarray(start), (jnp.asarray(reward), jnp.asarray(ended, jnp.float32)))
