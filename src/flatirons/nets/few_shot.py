"""The networks of few-shot classification (Vinyals et al. 2016; Finn et al. 2017, section 5.2), normalised by the batch at hand.

What a picture is taken for depends on the others that are asked with it: batch normalisation keeps no running moments here, as in the
paper. Convolutions are matrix products on a CPU, so that `jax.vmap` over tasks with weights of their own is a batch of products.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.nets import conv
from flatirons.nets.mlp import dense_init
from flatirons.types import ArraySpec, FlatironsError, Network

FEATURES = 64
"""Of the last layer of the dense network."""
WIDTHS = (256, 128, 64, FEATURES)
"""Hidden layers of the network without convolutions."""
MODULES = 4


def batch_norm(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Each channel (the last axis) to mean 0 and variance 1 over all other axes, plus a learned shift (Ioffe and Szegedy 2015)."""
    axes = tuple(range(x.ndim - 1))
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=axes, keepdims=True) + 1e-3)
    return scaled + jnp.expand_dims(shift, axes)


def _as_rows(spec: ArraySpec, obs: Any) -> jax.Array:
    """`[..., height, width, channels]` as `[N, height, width, channels]`, ink between 0 and 1."""
    x = jnp.asarray(obs).reshape((-1, *spec.shape)).astype(jnp.float32)
    return x * (1.0 / 255.0) if spec.dtype == "uint8" and spec.high > 1 else x


def _picture(spec: Any) -> ArraySpec:
    if not isinstance(spec, ArraySpec) or len(spec.shape) != 3:
        raise FlatironsError(f"a network for pictures was asked for, and the observation is {spec}: choose network=mlp")
    return spec


def _halved(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution at stride 2 to half the size, rounded up, zeros around: `x [n, height, width, C]`, `w [3, 3, C, F]`.

    On a CPU nine strided views side by side and one product. `nets.conv` folds strides into channels, which makes a 3 x 3 kernel one of
    4 x 4; here, with the batches of small pictures that tasks are, this one takes six tenths of its time."""
    n, height, width, channels = x.shape
    rows, cols = (height + 1) // 2, (width + 1) // 2
    pads = ((rows - 1) * 2 + 3 - height, (cols - 1) * 2 + 3 - width)
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    ends = 2 * rows - 1, 2 * cols - 1
    views = [jax.lax.slice(x, (0, i, j, 0), (n, i + ends[0], j + ends[1], channels), (1, 2, 2, 1)) for i in range(3) for j in range(3)]
    gathered = jnp.concatenate(views, axis=-1).reshape(n * rows * cols, -1)
    return (gathered @ w.reshape(-1, w.shape[-1])).reshape(n, rows, cols, -1)


def cnn(obs_spec: Any, filters: int) -> Network:
    """Four modules of 3 x 3 convolution at stride 2, batch normalisation and rectifier; the mean over what is left of the picture."""
    spec = _picture(obs_spec)

    def init(key: Any, _: Any) -> Any:
        layer = conv.ConvLayer(filters, 3, 2)
        channels = (spec.shape[2], *(filters,) * (MODULES - 1))
        return tuple(conv.conv_init(k, c, layer) for k, c in zip(jax.random.split(key, MODULES), channels, strict=True))

    def apply(params: Any, obs: Any) -> jax.Array:
        x = _as_rows(spec, obs)
        for layer in params:
            x = jax.nn.relu(batch_norm(_halved(x, layer["w"]), layer["b"]))
        return jnp.mean(x, axis=(1, 2)).reshape((*jnp.shape(obs)[: jnp.ndim(obs) - 3], filters))

    return Network(init, apply)


def dense_normed(obs_spec: Any) -> Network:
    """The network without convolutions: layers of 256, 128, 64 and 64, each with batch normalisation and a rectifier."""
    spec = _picture(obs_spec)

    def init(key: Any, _: Any) -> Any:
        sizes = (math.prod(spec.shape), *WIDTHS)
        return tuple(dense_init(k, a, b) for k, a, b in zip(jax.random.split(key, len(WIDTHS)), sizes[:-1], sizes[1:], strict=True))

    def apply(params: Any, obs: Any) -> jax.Array:
        x = _as_rows(spec, obs)
        x = x.reshape(x.shape[0], -1)
        for layer in params:
            x = jax.nn.relu(batch_norm(x @ layer["w"], layer["b"]))
        return x.reshape((*jnp.shape(obs)[: jnp.ndim(obs) - 3], FEATURES))

    return Network(init, apply)
