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


@jax.custom_jvp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x W for `x [rows, in]`, with a weight gradient that is quicker on a CPU.

    That gradient is x^T g, and XLA's CPU products take half as long again with a transposed left side as without. So the rule below gives
    the derivative in W from x already transposed, behind a barrier that keeps the two from being merged; in value it is the plain one.
    Forward and reverse differentiation of any order go through it.
    """
    return x @ w


@product.defjvp
def _product_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    x_dot, w_dot = tangents
    transposed = jax.lax.optimization_barrier(x.T)
    return product(x, w), product(x_dot, w) + jax.lax.dot_general(transposed, w_dot, (((0,), (0,)), ((), ())))


def dense(params: Any, x: Array) -> jax.Array:
    """x W + b for `x [..., in]`."""
    on_cpu = jax.default_backend() == "cpu"
    y = product(jnp.asarray(x), params["w"]) if on_cpu and jnp.ndim(x) == 2 else x @ params["w"]
    return y + jnp.expand_dims(params["b"], tuple(range(y.ndim - 1)))


def activate(name: Activation, x: Array) -> jax.Array:
    """tanh or rectifier."""
    return jnp.tanh(x) if name == "tanh" else jax.nn.relu(x)


def mlp_init(key: Key, sizes: Sequence[int], *, init: Init = "orthogonal", scale: float = 2.0**0.5) -> tuple[dict[str, jax.Array], ...]:
    """Layers sizes[0] -> sizes[1] -> ..."""
    keys = jax.random.split(key, max(1, len(sizes) - 1))
    return tuple(dense_init(k, a, b, init=init, scale=scale) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False))


def standardise(x: jax.Array) -> jax.Array:
    """Each row to mean 0 and variance 1 over its features: layer normalisation (Ba, Kiros and Hinton 2016, equation 3) without the learned
    gain and shift, which the next layer has."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


def mlp(params: Any, x: Array, activation: Activation, *, layer_norm: bool = False) -> jax.Array:
    """All layers, each followed by the activation; with `layer_norm`, standardised before it."""
    for layer in params:
        y = dense(layer, x)
        x = activate(activation, standardise(y) if layer_norm else y)
    return jnp.asarray(x)
