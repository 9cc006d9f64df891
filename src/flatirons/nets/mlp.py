"""Dense layers and multi-layer perceptrons. A layer is `{"w": [in, out], "b": [out]}`; an MLP is a tuple of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from flatirons.types import Array, Key

Init = Literal["orthogonal", "fan_in"]
Activation = Literal["tanh", "relu"]


def dense_init(key: Key, num_in: int, num_out: int, *, init: Init = "orthogonal", scale: float = 2.0**0.5) -> dict[str, jax.Array]:
    """One layer. "orthogonal": orthogonal weights times `scale`, zero bias. "fan_in": both uniform in ±1/sqrt(num_in), `scale` unused."""
    if init == "orthogonal":
        return {"w": jax.nn.initializers.orthogonal(scale)(key, (num_in, num_out), jnp.float32), "b": jnp.zeros(num_out)}
    key_w, key_b = jax.random.split(key)
    bound = num_in**-0.5
    return {
        "w": jax.random.uniform(key_w, (num_in, num_out), minval=-bound, maxval=bound),
        "b": jax.random.uniform(key_b, (num_out,), minval=-bound, maxval=bound),
    }


def dense(params: Any, x: Array) -> jax.Array:
    """x W + b for `x [..., in]`."""
    y = x @ params["w"]
    return y + jnp.expand_dims(params["b"], tuple(range(y.ndim - 1)))


def activate(name: Activation, x: Array) -> jax.Array:
    """tanh or rectifier."""
    return jnp.tanh(x) if name == "tanh" else jax.nn.relu(x)


def mlp_init(key: Key, sizes: Sequence[int], *, init: Init = "orthogonal", scale: float = 2.0**0.5) -> tuple[dict[str, jax.Array], ...]:
    """Layers sizes[0] -> sizes[1] -> ..."""
    keys = jax.random.split(key, max(1, len(sizes) - 1))
    return tuple(dense_init(k, a, b, init=init, scale=scale) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False))


def mlp(params: Any, x: Array, activation: Activation) -> jax.Array:
    """All layers, each followed by the activation."""
    for layer in params:
        x = activate(activation, dense(layer, x))
    return jnp.asarray(x)
