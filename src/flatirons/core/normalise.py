"""Running moments of a stream, kept in State, so that a checkpoint holds them and an actor carries them frozen."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.types import Array


class Moments(NamedTuple):
    """count `()`, mean and m2 (sum of squared deviations) of the shape of one sample."""

    count: Any
    mean: Any
    m2: Any


def start(shape: tuple[int, ...]) -> Moments:
    """Nothing seen: `standardise` then changes nothing but the clip."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def observe(moments: Moments, batch: Array) -> Moments:
    """Add `batch [n, *shape]` (Chan 1979: exact, whatever the order of the batches)."""
    n = float(batch.shape[0])
    mean = jnp.mean(batch, axis=0)
    m2 = jnp.sum(jnp.square(batch - jnp.expand_dims(mean, 0)), axis=0)
    total = moments.count + n
    delta = mean - moments.mean
    return Moments(total, moments.mean + delta * (n / total), moments.m2 + m2 + jnp.square(delta) * (moments.count * n / total))


def variance(moments: Moments) -> jax.Array:
    """Population variance; 1 before anything was seen."""
    return jnp.where(moments.count > 0, moments.m2 / jnp.maximum(moments.count, 1.0), 1.0)


def standardise(moments: Moments, x: Array, clip: float = 10.0) -> jax.Array:
    """(x - mean) / std, clipped to ±clip; `x [..., *shape]`."""
    axes = tuple(range(jnp.ndim(x) - jnp.ndim(moments.mean)))
    mean, scale = jnp.expand_dims(moments.mean, axes), jnp.expand_dims(jax.lax.rsqrt(variance(moments) + 1e-8), axes)
    return jnp.clip((x - mean) * scale, -clip, clip)


def rescale(moments: Moments, x: Array, clip: float = 10.0) -> jax.Array:
    """x / std without centring, clipped: for rewards, whose sign and zero have meaning. Scalar moments."""
    return jnp.clip(x * jax.lax.rsqrt(variance(moments) + 1e-8), -clip, clip)
