"""A random order without sorting: XLA's sort on a CPU costs more than the gradient steps whose minibatches it would shuffle."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core.spread import spread
from flatirons.types import Key

ROUNDS = 4
SORT_UP_TO = 64
"""So few rows are sorted after all: it is cheap, and gives every order."""


def permutation(key: Key, n: int) -> jax.Array:
    """0 ... n-1 in a pseudo-random order, int32 `[n]`.

    Each round multiplies by a random odd number, adds a random one and folds the high half of the bits onto the low half: bijections of
    the k-bit numbers, and so is their product. Results at or past n are sent through again until they fall below it ("cycle walking"),
    which keeps it a bijection. Not every one of the n! orders can come out; each row's place, and which rows meet, are uniform to within
    what the tests can see.
    """
    if n <= SORT_UP_TO:
        return jax.random.permutation(key, n).astype(jnp.int32)
    bits = (n - 1).bit_length()
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    factors, terms = jax.random.bits(key, (2, ROUNDS), jnp.uint32)

    def mix(x: jax.Array) -> jax.Array:
        for i in range(ROUNDS):
            x = (x * (factors[i] | 1) + terms[i]) & mask
            x = x ^ (x >> half)
        return x

    def walk(x: jax.Array) -> jax.Array:
        return jnp.where(x >= n, mix(x), x)

    x = jax.lax.while_loop(lambda x: jnp.any(x >= n), walk, mix(jnp.arange(n, dtype=jnp.uint32)))
    return x.astype(jnp.int32)


def minibatches(key: Key, num_rows: int, num_epochs: int, num_minibatches: int) -> Any:
    """Rows of each of `num_epochs * num_minibatches` minibatches, int32 `[minibatches, rows]`, every epoch in an order of its own; None
    where a minibatch is all rows, whose order does not matter."""
    if num_minibatches == 1:
        return None
    orders = jax.vmap(lambda k: permutation(k, num_rows))(jax.random.split(key, num_epochs))
    return orders.reshape(num_epochs * num_minibatches, -1)


def taken(batch: Any, indices: Any) -> Any:
    """The rows of one of them, over the devices there are."""
    return batch if indices is None else spread(jax.tree.map(lambda x: x[indices], batch))
