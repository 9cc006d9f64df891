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


def _across(x: jax.Array) -> jax.Array:
    """x^T for `x [rows, in]`. Rows that lie a power of two apart share a set of the cache, which has eight places: eight rows at a time."""
    rows, features = x.shape
    if features % 512 or not 8 < rows <= 64:
        return x.T
    return jnp.concatenate([x[i : i + 8].T for i in range(0, rows, 8)], axis=1)


LARGE = 2**16
"""Weights from which a layer's input gradient is worth two small transpositions."""


@jax.custom_jvp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x W for `x [rows, in]`, with gradients that are quicker on a CPU; in value they are the plain ones.

    The gradient in W is x^T g, and XLA's CPU products take half as long again with a transposed left side as without, so that x is
    transposed before. The gradient in x is g W^T; where W is too large for the cache it is read in order as (W g^T)^T. Barriers keep XLA
    from merging the transpositions again. Forward and reverse differentiation of any order go through the rule below.
    """
    return x @ w


@product.defjvp
def _product_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    x_dot, w_dot = tangents
    barrier = jax.lax.optimization_barrier
    from_w = jax.lax.dot_general(barrier(_across(x)), w_dot, (((0,), (0,)), ((), ())))
    if w.size < LARGE or x.shape[0] > 64:
        return product(x, w), product(x_dot, w) + from_w
    from_x = jax.lax.dot_general(w, barrier(x_dot.T), (((0,), (0,)), ((), ())))
    return product(x, w), barrier(from_x).T + from_w


def dense(params: Any, x: Array) -> jax.Array:
    """x W + b for `x [..., in]`; where the layer has a "gain" `[out]`, gain (x W) + b."""
    on_cpu = jax.default_backend() == "cpu"
    y = product(jnp.asarray(x), params["w"]) if on_cpu and jnp.ndim(x) == 2 else x @ params["w"]
    axes = tuple(range(y.ndim - 1))
    y = y * jnp.expand_dims(params["gain"], axes) if "gain" in params else y
    return y + jnp.expand_dims(params["b"], axes)


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
