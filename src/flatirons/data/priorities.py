"""Proportional priorities in a sum tree (Schaul et al. 2016, "Prioritized experience replay", section 3.3 and appendix B.2.1), in-graph.

The tree is one array of 2 L numbers, L a power of two: node i has the children 2 i and 2 i + 1 and holds their sum, leaf j is node L + j,
node 1 the sum of all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flatirons.types import Key


def create(capacity: int) -> jax.Array:
    """A tree over at least `capacity` leaves, all 0; float32 `[2 L]`."""
    return jnp.zeros(2 << max(0, capacity - 1).bit_length())


def num_bytes(capacity: int) -> int:
    """Bytes that `create` takes."""
    return 4 * (2 << max(0, capacity - 1).bit_length())


def total(tree: jax.Array) -> jax.Array:
    """The sum of all leaves."""
    return tree[1]


def read(tree: jax.Array, leaf: jax.Array) -> jax.Array:
    """The leaves at these places."""
    return tree[tree.shape[0] // 2 + leaf]


def write(tree: jax.Array, leaf: jax.Array, value: jax.Array) -> jax.Array:
    """Set leaves `[n]` to values `[n]`; where a place occurs twice one of its values is taken. Sums are made anew from the leaves up."""
    node = tree.shape[0] // 2 + leaf
    tree = tree.at[node].set(value)
    for _ in range((tree.shape[0] // 2).bit_length() - 1):
        node = node // 2
        tree = tree.at[node].set(tree[2 * node] + tree[2 * node + 1])
    return tree


def find(tree: jax.Array, mass: jax.Array) -> jax.Array:
    """The leaves where the running sum of all leaves passes `mass` `[n]`, int32; uniform mass gives leaf j with probability p_j / total."""
    node = jnp.ones(mass.shape, jnp.int32)
    for _ in range((tree.shape[0] // 2).bit_length() - 1):
        left = tree[2 * node]
        # A right child of 0 is never entered, whatever rounding says.
        right = (mass >= left) & (tree[2 * node + 1] > 0.0)
        mass = jnp.where(right, mass - left, mass)
        node = 2 * node + right
    return node - tree.shape[0] // 2


def draw(tree: jax.Array, key: Key, num: int) -> jax.Array:
    """`num` leaves, one from each of `num` equal shares of the total mass, as in the paper; int32 `[num]`."""
    mass = (jnp.arange(num) + jax.random.uniform(key, (num,))) / num * total(tree)
    return find(tree, mass)
