"""Valid convolutions over `[..., height, width, channels]` (NHWC), and the papers' convolutional stacks.

On a CPU the weight gradient of `lax.conv` collapses inside `scan` and `fori_loop` (20 to 50 times slower than outside), and training loops
here live inside them. There a convolution is written as shifted views and ONE matrix product; with stride s the image is first folded
space-to-depth, so that the strided kernel becomes a dense one of ceil(k/s) squared. Values agree to 1e-6. Elsewhere the native one is used.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.nets.mlp import Init
from flatirons.types import Array, Key


class ConvLayer(NamedTuple):
    """num_out filters of kernel x kernel at a stride."""

    num_out: int
    kernel: int
    stride: int


NATURE = (ConvLayer(32, 8, 4), ConvLayer(64, 4, 2), ConvLayer(64, 3, 1))
"""Mnih 2015, Methods, "Model architecture"; followed by 512 rectifiers."""
PLAYING_ATARI = (ConvLayer(16, 8, 4), ConvLayer(32, 4, 2))
"""Mnih 2013, section 4.1; followed by 256 rectifiers."""
MINATAR = (ConvLayer(16, 3, 1),)
"""Young and Tian 2019; followed by 128 rectifiers."""


def conv_init(key: Key, num_in: int, layer: ConvLayer, *, init: Init = "orthogonal", scale: float = 2.0**0.5) -> dict[str, jax.Array]:
    """`{"w": [k, k, in, out], "b": [out]}`."""
    shape = (layer.kernel, layer.kernel, num_in, layer.num_out)
    fan_in = layer.kernel**2 * num_in
    if init == "orthogonal":
        flat = jax.nn.initializers.orthogonal(scale)(key, (fan_in, layer.num_out), jnp.float32)
        return {"w": flat.reshape(shape), "b": jnp.zeros(layer.num_out)}
    key_w, key_b = jax.random.split(key)
    bound = fan_in**-0.5
    return {
        "w": jax.random.uniform(key_w, shape, minval=-bound, maxval=bound),
        "b": jax.random.uniform(key_b, (layer.num_out,), minval=-bound, maxval=bound),
    }


def _as_matrix_product(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """The convolution as one product over gathered patches, `x [n, H, W, C]`, `w [k, k, C, F]`."""
    n, height, width, channels = x.shape
    kernel, _, _, filters = w.shape
    out_h, out_w = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    if stride > 1:
        taps = -(-kernel // stride)
        rows, cols = (out_h + taps - 1) * stride, (out_w + taps - 1) * stride
        x = jnp.pad(x, ((0, 0), (0, max(0, rows - height)), (0, max(0, cols - width)), (0, 0)))[:, :rows, :cols]
        x = x.reshape(n, rows // stride, stride, cols // stride, stride, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows // stride, cols // stride, stride * stride * channels)
        pad = taps * stride - kernel
        w = jnp.pad(w, ((0, pad), (0, pad), (0, 0), (0, 0)))
        w = w.reshape(taps, stride, taps, stride, channels, filters).transpose(0, 2, 1, 3, 4, 5)
        w = w.reshape(taps, taps, stride * stride * channels, filters)
        kernel = taps
    patches = [x[:, i : i + out_h, j : j + out_w] for i in range(kernel) for j in range(kernel)]
    gathered = jnp.concatenate(patches, axis=-1).reshape(n * out_h * out_w, -1)
    return (gathered @ w.reshape(-1, filters)).reshape(n, out_h, out_w, filters)


def _native(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv(params: Any, x: Array, stride: int, *, form: Literal["auto", "matrix", "native"] = "auto") -> jax.Array:
    """Convolution plus bias, `x [..., H, W, C]` to `[..., H', W', F]`. "auto" is the matrix form on a CPU and the native one elsewhere."""
    lead = x.shape[:-3]
    flat = jnp.asarray(x).reshape((-1, *x.shape[-3:]))
    use_matrix = form == "matrix" or (form == "auto" and jax.default_backend() == "cpu")
    y = (_as_matrix_product if use_matrix else _native)(flat, params["w"], stride)
    y = y + params["b"].reshape(1, 1, 1, -1)
    return y.reshape(lead + y.shape[1:])


def output_shape(shape: tuple[int, int, int], layers: tuple[ConvLayer, ...]) -> tuple[int, int, int]:
    """(H, W, C) after the layers."""
    height, width, channels = shape
    for layer in layers:
        height, width = (height - layer.kernel) // layer.stride + 1, (width - layer.kernel) // layer.stride + 1
        channels = layer.num_out
    return height, width, channels


def stack_init(key: Key, num_in: int, layers: tuple[ConvLayer, ...], *, init: Init) -> tuple[dict[str, jax.Array], ...]:
    """One set of parameters a layer."""
    channels = (num_in, *(layer.num_out for layer in layers))
    keys = jax.random.split(key, len(layers))
    return tuple(conv_init(k, c, layer, init=init) for k, c, layer in zip(keys, channels, layers, strict=False))


def stack(params: Any, x: Array, layers: tuple[ConvLayer, ...]) -> jax.Array:
    """The layers, each followed by a rectifier, flattened: `[..., H, W, C]` to `[..., features]`."""
    for p, layer in zip(params, layers, strict=True):
        x = jax.nn.relu(conv(p, x, layer.stride))
    return jnp.asarray(x).reshape((*x.shape[:-3], -1))
