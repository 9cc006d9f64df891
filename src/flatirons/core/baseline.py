"""A value function without a network: returns as a linear function of the observation and of time, fitted anew for each task."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flatirons.types import Array


def features(obs: Array, time: Array) -> jax.Array:
    """What the fit sees of rows `obs [..., n]` at steps `time [...]` of their episodes: `[..., 2 n + 4]`.

    The observation within ±10, its squares, t / 100, its square and cube, and 1 (Duan et al. 2016, arXiv:1604.06778, appendix)."""
    obs, t = jnp.clip(jnp.asarray(obs), -10.0, 10.0), jnp.asarray(time)[..., None] / 100.0
    return jnp.concatenate([obs, jnp.square(obs), t, jnp.square(t), t * jnp.square(t), jnp.ones_like(t)], axis=-1)


def linear_fit(inputs: Array, targets: Array, weights: Array, ridge: float = 1e-4) -> jax.Array:
    """Coefficients `[n]` of the ridge regression of `targets [M]` on `inputs [M, n]`, rows counting by `weights [M]` (0 for not at all).

    Columns are brought to mean square 1 before, so that float32 suffices and `ridge` is relative to them."""
    inputs = jnp.asarray(inputs)
    total = jnp.maximum(jnp.sum(weights), 1.0)
    scale = jnp.sqrt(weights @ jnp.square(inputs) / total)
    scaled = inputs / jnp.where(scale > 0, scale, 1.0)[None, :]
    weighted = scaled * jnp.asarray(weights)[:, None]
    gram = weighted.T @ scaled / total + ridge * jnp.eye(inputs.shape[1])
    solved = jax.scipy.linalg.solve(gram, weighted.T @ targets / total, assume_a="pos")
    return solved / jnp.where(scale > 0, scale, 1.0)
