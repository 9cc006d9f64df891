"""Functions over pytrees of arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.types import Array, PyTree


def polyak(online: PyTree, target: PyTree, tau: float | Array) -> PyTree:
    """tau * online + (1 - tau) * target, leaf by leaf (DDPG paper, Algorithm 1)."""
    return jax.tree.map(lambda new, old: tau * new + (1.0 - tau) * old, online, target)


def select(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One tree or the other, by a scalar condition that may be traced."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def size(tree: PyTree) -> int:
    """Number of elements in all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves; leaves may be `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def all_finite(tree: PyTree) -> jax.Array:
    """True when no float leaf holds NaN or infinity."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, checks, jnp.array(True))


def global_norm(tree: PyTree) -> jax.Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(())))


def as_rows(tree: Any) -> Any:
    """Merge the two leading axes: `[T, B, ...]` to `[T * B, ...]`."""
    return jax.tree.map(lambda x: x.reshape((x.shape[0] * x.shape[1], *x.shape[2:])), tree)
