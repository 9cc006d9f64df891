"""How a learner of several tasks in turn did, from one matrix `[rows, tasks]`: `scores[i, j]` is that on task j once task i was learned.

All functions take `learned`, how many tasks have been learned so far (it may be traced; none: all rows), and return a scalar. Rows and
columns past it do not count.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flatirons.types import Array


def _seen(scores: Array, learned: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(scores, the last row that counts `[tasks]`, numbers of the tasks `[tasks]`, how many are learned)."""
    scores = jnp.asarray(scores, jnp.float32)
    count = jnp.asarray(scores.shape[0] if learned is None else learned, jnp.int32)
    return scores, scores[jnp.maximum(count - 1, 0)], jnp.arange(scores.shape[1]), count


def _mean(x: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean of x where `counts`, 0 where nowhere."""
    return jnp.sum(jnp.where(counts, x, 0.0)) / jnp.maximum(jnp.sum(counts), 1)


def average(scores: Array, learned: Any = None) -> jax.Array:
    """Mean score over the tasks learned so far (Lopez-Paz and Ranzato 2017, equation 2)."""
    _, last, tasks, count = _seen(scores, learned)
    return _mean(last, tasks < count)


def backward_transfer(scores: Array, learned: Any = None) -> jax.Array:
    """Mean of what learning later tasks did to each earlier one, R[last, j] - R[j, j] (Lopez-Paz and Ranzato 2017, equation 3). Negative is
    forgetting."""
    scores, last, tasks, count = _seen(scores, learned)
    return _mean(last - jnp.diagonal(scores), tasks < count - 1)


def forward_transfer(scores: Array, untrained: Array, learned: Any = None) -> jax.Array:
    """Mean of what earlier tasks did for each later one before it began, R[j - 1, j] - untrained[j] (Lopez-Paz and Ranzato 2017, equation
    4). untrained `[tasks]`: the scores of fresh parameters."""
    scores, _, tasks, count = _seen(scores, learned)
    before = jnp.concatenate([jnp.zeros(1), jnp.diagonal(scores, offset=1)])
    return _mean(before - untrained, (tasks > 0) & (tasks < count))


def forgetting(scores: Array, learned: Any = None) -> jax.Array:
    """Mean of how far each earlier task fell from its best score so far, max_l R[l, j] - R[last, j] (Chaudhry et al. 2018, equation 3)."""
    scores, last, tasks, count = _seen(scores, learned)
    earlier = jnp.arange(scores.shape[0])[:, None] < count - 1
    best = jnp.max(jnp.where(earlier, scores, -jnp.inf), axis=0)
    return _mean(jnp.where(tasks < count - 1, best - last, 0.0), tasks < count - 1)
