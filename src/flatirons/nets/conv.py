"""Valid convolutions over `[..., height, width, channels]` (NHWC), and the papers' convolutional stacks.

On a CPU the weight gradient of `lax.conv` collapses inside `scan` and `fori_loop` (20 to 50 times slower than outside), and training loops
here live inside them. There a convolution is ONE matrix product with shifted views before or shifted sums after it; with stride s the image
is first folded space-to-depth, so that the strided kernel becomes a dense one of ceil(k/s) squared. Values agree to 1e-6. Elsewhere the
native one is used.
"""

from __future__ import annotations

import functools
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


def _fold_kernel(w: jax.Array, stride: int, *, planes: bool) -> jax.Array:
    """The kernel of the folded image: `[k, k, C, F]` to `[taps, taps, stride * stride * C, F]`, its channels in the order of the fold."""
    kernel, _, channels, filters = w.shape
    taps = -(-kernel // stride)
    pad = taps * stride - kernel
    w = jnp.pad(w, ((0, pad), (0, pad), (0, 0), (0, 0))).reshape(taps, stride, taps, stride, channels, filters)
    w = w.transpose(0, 2, 4, 1, 3, 5) if planes else w.transpose(0, 2, 1, 3, 4, 5)
    return w.reshape(taps, taps, stride * stride * channels, filters)


def _fit(x: jax.Array, rows: int, cols: int, axis: int) -> jax.Array:
    """Cut or fill with zeros to rows x cols, at `axis` and the one after."""
    widths = [(0, 0)] * x.ndim
    widths[axis], widths[axis + 1] = (0, max(0, rows - x.shape[axis])), (0, max(0, cols - x.shape[axis + 1]))
    x = jnp.pad(x, widths)
    return jax.lax.slice_in_dim(jax.lax.slice_in_dim(x, 0, rows, axis=axis), 0, cols, axis=axis + 1)


def _fold(x: jax.Array, stride: int, size: tuple[int, int], *, planes: bool) -> jax.Array:
    """Space to depth: `[n, H, W, C]` (or, as `planes`, `[n, C, H, W]`) to `[n, *size, stride * stride * C]`."""
    rows, cols = size
    if not planes:
        x = _fit(x, rows * stride, cols * stride, 1).reshape(x.shape[0], rows, stride, cols, stride, -1)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, cols, -1)
    n, channels = x.shape[:2]
    x = _fit(x, rows * stride, cols * stride, 2).reshape(n, channels, rows, stride, cols, stride)
    word = {2: jnp.uint16, 4: jnp.uint32}.get(stride)
    if x.dtype != jnp.uint8 or word is None:
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(n, rows, cols, -1)
    # The bytes of a block's row move as one word, which is seven times as fast.
    words = jax.lax.bitcast_convert_type(x, word).transpose(0, 2, 4, 1, 3)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(n, rows, cols, -1)


def _patches(x: jax.Array, w: jax.Array) -> jax.Array:
    """Stride 1: shifted views side by side, then ONE product. `x [n, H, W, C]`, `w [k, k, C, F]`."""
    n, height, width, _ = x.shape
    kernel, _, _, filters = w.shape
    out_h, out_w = height - kernel + 1, width - kernel + 1
    views = [x[:, i : i + out_h, j : j + out_w] for i in range(kernel) for j in range(kernel)]
    gathered = jnp.concatenate(views, axis=-1).reshape(n * out_h * out_w, -1)
    return (gathered @ w.reshape(-1, filters)).reshape(n, out_h, out_w, filters)


def _shifts(x: jax.Array, w: jax.Array) -> jax.Array:
    """Stride 1: every pixel through all taps in ONE product, then the sum of its shifted parts. Nothing is copied before the product."""
    n, height, width, channels = x.shape
    kernel, _, _, filters = w.shape
    pixels, reach = n * height * width, (kernel - 1) * (width + 1)
    product = x.reshape(pixels, channels) @ w.transpose(2, 0, 1, 3).reshape(channels, -1)
    # Pixel p of the result is the sum over taps (i, j) of part (i, j) at p + i * width + j. The gradient of a split is one concatenation.
    parts = jax.lax.split(product, [filters] * kernel**2, axis=1)
    offsets = [i * width + j for i in range(kernel) for j in range(kernel)]
    total = functools.reduce(jnp.add, (part[at : pixels - reach + at] for part, at in zip(parts, offsets, strict=True)))
    whole = jnp.pad(total, ((0, reach), (0, 0))).reshape(n, height, width, filters)
    return whole[:, : height - kernel + 1, : width - kernel + 1]


SHIFTS_FROM = 16
"""Input channels from which the sum of shifted products is faster than one product over patches."""


def _as_matrix_product(x: jax.Array, w: jax.Array, stride: int, *, planes: bool = False, scale: float = 1.0) -> jax.Array:
    """The convolution as one matrix product, `x [n, H, W, C]` (or planes `[n, C, H, W]`), `w [k, k, C, F]`."""
    height, width = x.shape[2:] if planes else x.shape[1:3]
    kernel = w.shape[0]
    if stride > 1 or planes:
        taps = -(-kernel // stride)
        size = (height - kernel) // stride + taps, (width - kernel) // stride + taps
        x = _fold(x, stride, size, planes=planes)
        w = _fold_kernel(w, stride, planes=planes)
    x = x.astype(jnp.float32)
    x = x if scale == 1.0 else x * scale
    return (_shifts if x.shape[-1] >= SHIFTS_FROM else _patches)(x, w)


def _native(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv(
    params: Any, x: Array, stride: int, *, planes: bool = False, scale: float = 1.0, form: Literal["auto", "matrix", "native"] = "auto"
) -> jax.Array:
    """Convolution plus bias, `x [..., H, W, C]` (or planes `[..., C, H, W]`) times `scale` to `[..., H', W', F]`; where the layer has a
    "gain" `[F]`, the convolution times it plus bias.

    "auto" is the matrix form on a CPU and the native one elsewhere."""
    lead = x.shape[:-3]
    flat = jnp.asarray(x).reshape((-1, *x.shape[-3:]))
    if form == "matrix" or (form == "auto" and jax.default_backend() == "cpu"):
        y = _as_matrix_product(flat, params["w"], stride, planes=planes, scale=scale)
    else:
        flat = (jnp.moveaxis(flat, 1, -1) if planes else flat).astype(jnp.float32)
        y = _native(flat * scale, params["w"], stride)
    y = y * params["gain"].reshape(1, 1, 1, -1) if "gain" in params else y
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


def stack(params: Any, x: Array, layers: tuple[ConvLayer, ...], *, planes: bool = False, scale: float = 1.0) -> jax.Array:
    """The layers, each followed by a rectifier, flattened: `[..., H, W, C]` (or planes `[..., C, H, W]`) to `[..., features]`."""
    for p, layer in zip(params, layers, strict=True):
        x = jax.nn.relu(conv(p, x, layer.stride, planes=planes, scale=scale))
        planes, scale = False, 1.0
    return jnp.asarray(x).reshape((*x.shape[:-3], -1))
