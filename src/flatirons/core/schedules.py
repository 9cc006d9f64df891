"""Numbers that change with progress."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flatirons.types import Array


def linear(start: float | Array, end: float | Array, progress: float | Array) -> jax.Array:
    """From `start` at progress 0 to `end` at progress 1, held there before and after."""
    return jnp.asarray(start + (end - start) * jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0))


def fraction(done: Array, total: int) -> jax.Array:
    """done / total as float32, for counters held as int32."""
    return jnp.asarray(done, jnp.float32) / float(total)
