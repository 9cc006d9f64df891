"""A mean over many rows, a part at a time: what lies between the layers of a network then stays in a CPU's caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core import spread

ROWS = 4096
"""Rows of one part."""


def mean_over_chunks(f: Callable[[Any], Any], rows: Any, *, size: int | None = None) -> Any:
    """The mean of `f(part)` over equal parts of `rows` `[n, ...]`, each of `size` (ROWS) rows; `f(rows)` where they do not divide, on an
    accelerator, and where the rows are cut over several devices. For an `f` that is itself a mean over its rows, it is `f(rows)`."""
    n, size = jax.tree.leaves(rows)[0].shape[0], size or ROWS
    if n <= size or n % size or jax.default_backend() != "cpu" or spread.is_active():
        return f(rows)
    parts = jax.tree.map(lambda x: x.reshape((n // size, size, *x.shape[1:])), rows)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, jax.tree.map(lambda x: x[0], parts)))
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, f(part)), None), zero, parts)
    return jax.tree.map(lambda x: x * (size / n), total)
