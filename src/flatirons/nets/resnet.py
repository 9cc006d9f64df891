"""A residual network over boards with a policy and a value head (AlphaGo Zero, Silver et al. 2017, Methods, "Neural network architecture").

Batch normalisation, which they have, judges a position by the company it is in; in self-play that company is other games at other stages.
Here each cell's features are standardised by themselves (layer normalisation) or not at all, so that a position's value is its own.

On a CPU the inner layout is [rows, cols, batch, channels]: a convolution is three matrix products, whose parts are shifted by whole planes.
See `nets/conv.py` for why not `lax.conv`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.nets.conv import SHIFTS_FROM
from flatirons.nets.mlp import dense, product, standardise
from flatirons.types import ArraySpec, Key

Norm = Literal["layer", "none"]


class Shape(NamedTuple):
    """`blocks` residual blocks of two 3x3 convolutions with `channels` filters, after one convolution; heads of `policy_channels` and
    `value_channels` 1x1 filters, and `value_hidden` rectifiers before the value."""

    blocks: int
    channels: int
    norm: Norm = "layer"
    policy_channels: int = 2
    value_channels: int = 1
    value_hidden: int = 256


def _weights(shape: Shape, spec: ArraySpec, num_actions: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Each weight's shape, and how far from 2 / fan-in its variance is: small at the ends of both heads, so that all moves are alike and
    every value near 0 at first."""
    rows, cols, planes = spec.shape
    inner = (3, 3, shape.channels, shape.channels)
    sizes: dict[str, tuple[tuple[int, ...], float]] = {"stem": ((3, 3, planes, shape.channels), 1.0)}
    for i in range(shape.blocks):
        sizes |= {f"first {i}": (inner, 1.0), f"second {i}": (inner, 1.0)}
    return sizes | {
        "policy conv": ((1, 1, shape.channels, shape.policy_channels), 1.0),
        "logits": ((rows * cols * shape.policy_channels, num_actions), 0.1),
        "value conv": ((1, 1, shape.channels, shape.value_channels), 1.0),
        "hidden": ((rows * cols * shape.value_channels, shape.value_hidden), 1.0),
        "out": ((shape.value_hidden, 1), 0.1),
    }


def resnet_init(key: Key, spec: ArraySpec, num_actions: int, shape: Shape) -> dict[str, Any]:
    """Parameters for observations `[rows, cols, planes]`: normal weights (He et al. 2015), biases 0. Each block begins as the identity (its
    last gain is 0)."""
    sizes = _weights(shape, spec, num_actions)
    # One draw for all of them, which compiles in a fraction of the time.
    drawn = jax.random.normal(key, (sum(math.prod(size) for size, _ in sizes.values()),))
    layers, at = {}, 0
    for name, (size, scale) in sizes.items():
        count = math.prod(size)
        weight = drawn[at : at + count].reshape(size) * (scale * (2.0 / math.prod(size[:-1])) ** 0.5)
        layers[name] = {"w": weight, "b": jnp.zeros(size[-1])}
        at += count

    def normed(name: str, gain: float) -> dict[str, jax.Array]:
        return layers[name] | {"gain": jnp.full(shape.channels, gain, jnp.float32)}

    return {
        "stem": normed("stem", 1.0),
        "blocks": tuple({"first": normed(f"first {i}", 1.0), "second": normed(f"second {i}", 0.0)} for i in range(shape.blocks)),
        "policy": {"conv": layers["policy conv"], "logits": layers["logits"]},
        "value": {"conv": layers["value conv"], "hidden": layers["hidden"], "out": layers["out"]},
    }


def resnet(params: Any, spec: ArraySpec, shape: Shape, obs: Any) -> tuple[jax.Array, jax.Array]:
    """`obs [..., rows, cols, planes]` to (logits `[..., A]`, value `[...]` in [-1, 1])."""
    x, lead = trunk(params, spec, shape, obs), jnp.shape(obs)[:-3]
    return policy_head(params, x).reshape(*lead, -1), value_head(params, x).reshape(lead)


def trunk(params: Any, spec: ArraySpec, shape: Shape, obs: Any) -> jax.Array:
    """Features of `obs [..., rows, cols, planes]`, all leading axes merged into one, in the layout that the heads take."""
    rows, cols, planes = spec.shape
    x = jnp.asarray(obs).astype(jnp.float32).reshape(-1, rows, cols, planes)
    on_cpu = jax.default_backend() == "cpu"
    x = x.transpose(1, 2, 0, 3) if on_cpu else x
    conv = _conv_planes if on_cpu else _conv_native
    finish = functools.partial(_finish, shape.norm)
    x = jax.nn.relu(finish(params["stem"], conv(x, params["stem"]["w"])))
    for block in params["blocks"]:
        inner = jax.nn.relu(finish(block["first"], conv(x, block["first"]["w"])))
        x = jax.nn.relu(x + finish(block["second"], conv(inner, block["second"]["w"])))
    return x


def policy_head(params: Any, x: jax.Array) -> jax.Array:
    """Logits `[batch, A]` of a trunk's features."""
    return dense(params["policy"]["logits"], _head(params["policy"]["conv"], x, jax.default_backend() == "cpu"))


def value_head(params: Any, x: jax.Array) -> jax.Array:
    """Values `[batch]` in [-1, 1] of a trunk's features."""
    hidden = jax.nn.relu(dense(params["value"]["hidden"], _head(params["value"]["conv"], x, jax.default_backend() == "cpu")))
    return jnp.tanh(dense(params["value"]["out"], hidden)[:, 0])


def _along(vector: jax.Array) -> jax.Array:
    return vector.reshape(1, 1, 1, -1)


def _finish(norm: Norm, p: Any, x: jax.Array) -> jax.Array:
    """Normalise, scale and shift a convolution's result."""
    x = standardise(x) if norm == "layer" else x
    return x * _along(p["gain"]) + _along(p["b"])


def _head(p: Any, x: jax.Array, on_cpu: bool) -> jax.Array:
    """1x1 filters and a rectifier, flattened to `[batch, cells * filters]`."""
    x = jax.nn.relu(jnp.einsum("...c,cf->...f", x, p["w"][0, 0]) + _along(p["b"]))
    x = x.transpose(2, 0, 1, 3) if on_cpu else x
    return x.reshape(x.shape[0], -1)


def _shifted(part: jax.Array, down: int, right: int) -> jax.Array:
    """Cell (i, j) of the result is cell (i + down, j + right), 0 off the board; `[rows, cols, ...]`."""
    still = ((0, 0, 0),) * (part.ndim - 2)
    return jax.lax.pad(part, jnp.zeros((), part.dtype), ((-down, down, 0), (-right, right, 0), *still))


def _conv_planes(x: jax.Array, w: jax.Array) -> jax.Array:
    """3x3 with zeros around the board: `x [rows, cols, B, C]`, `w [3, 3, C, F]`. A cell and its neighbours left and right go through one
    product for each of the three rows of the kernel, and its results are shifted by whole rows and added up: on one core 1.7 times as fast
    as all nine taps in one product (with 64 channels). A few planes are gathered from all around instead."""
    rows, cols, batch, channels = x.shape
    if channels < SHIFTS_FROM:
        around = jnp.concatenate([_shifted(x, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)], axis=-1)
        return product(around.reshape(-1, 9 * channels), w.reshape(9 * channels, -1)).reshape(rows, cols, batch, -1)
    beside = jnp.concatenate([_shifted(x, 0, right) for right in (-1, 0, 1)], axis=-1).reshape(-1, 3 * channels)
    parts = [product(beside, w[i].reshape(3 * channels, -1)).reshape(rows, cols, batch, -1) for i in range(3)]
    return _shifted(parts[0], -1, 0) + parts[1] + _shifted(parts[2], 1, 0)


def _conv_native(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
