"""A network that remembers: the long short-term memory (Hochreiter and Schmidhuber 1997; with a forget gate, Gers 2000)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.nets.mlp import dense, dense_init
from flatirons.types import Array, Key


class Memory(NamedTuple):
    """What it carries from step to step: the output `h [B, units]` and the cell `c [B, units]`."""

    h: Any
    c: Any


def lstm_init(key: Key, num_in: int, units: int) -> dict[str, jax.Array]:
    """One dense layer from input and output to the four gates. The forget gate's bias is 1: it begins by remembering."""
    params = dense_init(key, num_in + units, 4 * units, scale=1.0)
    return params | {"b": params["b"].at[units : 2 * units].set(1.0)}


def blank(num_envs: int, units: int) -> Memory:
    """The memory at an episode's start."""
    return Memory(jnp.zeros((num_envs, units)), jnp.zeros((num_envs, units)))


def forget(memory: Memory, first: Array) -> Memory:
    """Blank where an episode begins (`first [..., B]`)."""
    return Memory(*(jnp.where(jnp.expand_dims(jnp.asarray(first), -1), 0.0, x) for x in memory))


def lstm(params: Any, memory: Memory, x: Array) -> Memory:
    """One step for `x [..., B, features]`; the output is the new `h`."""
    return _gated(memory, dense(params, jnp.concatenate([jnp.asarray(x), memory.h], axis=-1)))


def _gated(memory: Memory, gates: jax.Array) -> Memory:
    i, f, o, g = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * memory.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return Memory(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def unroll(params: Any, memory: Memory, x: Array, first: Array) -> Memory:
    """The memory after each of the steps `x [T, B, features]`, `[T, B, units]`, blank before those that begin an episode."""
    x = jnp.asarray(x)
    from_h = params["w"][x.shape[-1] :]
    # What does not wait for the memory is one product for all steps.
    from_x = dense({"w": params["w"][: x.shape[-1]], "b": params["b"]}, x)

    def one_step(memory: Memory, row: tuple[jax.Array, jax.Array]) -> tuple[Memory, Memory]:
        memory = forget(memory, row[1])
        memory = _gated(memory, row[0] + memory.h @ from_h)
        return memory, memory

    return jax.lax.scan(one_step, memory, (from_x, jnp.asarray(first)))[1]
