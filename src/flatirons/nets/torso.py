"""From any observation to a feature vector: the part of a network below its heads."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core.categories import is_category
from flatirons.nets import conv
from flatirons.nets.mlp import Activation, Init, mlp, mlp_init
from flatirons.types import ArraySpec, FlatironsError, Network

TORSOS = ("auto", "mlp", "nature", "playing-atari", "minatar", "minatar-wide")
_STACKS = {
    "nature": (conv.NATURE, 512),
    "playing-atari": (conv.PLAYING_ATARI, 256),
    "minatar": (conv.MINATAR, 128),
    "minatar-wide": (conv.MINATAR, 256),
}


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _image_stack(spec: ArraySpec, name: str) -> str | None:
    """The convolutional stack for this array, or None when it is to be flattened."""
    if name == "mlp" or len(spec.shape) != 3:
        return None
    if name in _STACKS:
        return name
    height = spec.shape[1] if spec.stack > 1 or spec.shape[0] < spec.shape[2] else spec.shape[0]
    return "nature" if height >= 36 else "minatar" if height >= 5 else None


def channels_last(spec: ArraySpec) -> bool:
    """Whether a picture is `[height, width, channels]`, or else `[planes, height, width]`."""
    return spec.stack == 1 and spec.shape[0] >= spec.shape[2]


def as_float(spec: ArraySpec, x: Any) -> jax.Array:
    """One array `[..., *shape]` as float32: integers in a named range one-hot or scaled to [0, 1] (uint8), images channels last."""
    x = jnp.asarray(x)
    if is_category(spec):
        x = jax.nn.one_hot(x.astype(jnp.int32) - int(spec.low), int(spec.high - spec.low) + 1)
        return x.reshape((*x.shape[: x.ndim - 1 - len(spec.shape)], -1))
    if len(spec.shape) == 3 and not channels_last(spec):
        x = jnp.moveaxis(x, -3, -1)
    scale = _scale(spec)
    # A product with 1 would cost a NumPy operation in every decision on a host.
    return x.astype(jnp.float32) if scale == 1.0 else x.astype(jnp.float32) * scale


def _scale(spec: ArraySpec) -> float:
    """What numbers are multiplied by: bytes of a picture lie in [0, 1] afterwards."""
    return 1.0 / 255.0 if spec.dtype == "uint8" and spec.high > 1 else 1.0


def num_features(spec: ArraySpec) -> int:
    """Length of `as_float` flattened."""
    count = math.prod(spec.shape)
    if is_category(spec):
        return count * (int(spec.high - spec.low) + 1)
    return count


def torso(
    network: str | Network, obs_spec: Any, hidden: tuple[int, ...], activation: Activation, init: Init, *, layer_norm: bool = False
) -> Network:
    """The torso of a Config's `network` for an observation: `init(key, obs_spec)`, `apply(params, obs [..., *obs]) -> [..., features]`.

    "auto" gives an image its paper's stack (10x10 MinAtar, else Nature) and everything else an MLP over the concatenated parts. A named
    stack is forced on images. `layer_norm` is for the dense layers. A `Network` of a person's own is returned as it is. Raises
    FlatironsError for an unknown name, and for a stack where there is no image.
    """
    if isinstance(network, Network):
        return network
    if network not in TORSOS:
        raise FlatironsError(f"unknown network {network!r}: choose one of {', '.join(TORSOS)}, or pass a flatirons Network from Python")
    leaves, _ = jax.tree.flatten(obs_spec, is_leaf=_is_spec)
    stacks = [_image_stack(spec, network) for spec in leaves]
    if network in _STACKS and not any(stacks):
        raise FlatironsError(f"network={network!r} looks at images, and there is none in this task's observations: choose auto or mlp")
    only_image = len(leaves) == 1 and stacks[0] is not None

    def init_params(key: Any, _: Any) -> Any:
        key_conv, key_mlp = jax.random.split(key)
        images, features = [], 0
        for spec, name, k in zip(leaves, stacks, jax.random.split(key_conv, len(leaves)), strict=True):
            if name is None:
                images.append(())
                features += num_features(spec)
                continue
            layers, _ = _STACKS[name]
            shape = spec.shape if channels_last(spec) else (spec.shape[1], spec.shape[2], spec.shape[0])
            out = conv.output_shape(shape, layers)
            if min(out) < 1:
                raise FlatironsError(f"an image of {shape} is too small for the {name!r} network: choose --network mlp or minatar")
            images.append(conv.stack_init(k, shape[2], layers, init=init))
            features += math.prod(out)
        widths = (_STACKS[stacks[0]][1],) if only_image and stacks[0] is not None else hidden
        return {"images": tuple(images), "mlp": mlp_init(key_mlp, (features, *widths), init=init)}

    def apply(params: Any, obs: Any) -> jax.Array:
        parts = []
        for spec, name, p, x in zip(leaves, stacks, params["images"], jax.tree.leaves(obs), strict=True):
            if name is not None:
                parts.append(conv.stack(p, x, _STACKS[name][0], planes=not channels_last(spec), scale=_scale(spec)))
                continue
            x = as_float(spec, x)
            parts.append(x if is_category(spec) else x.reshape((*x.shape[: x.ndim - len(spec.shape)], -1)))
        features = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return mlp(params["mlp"], features, "relu" if only_image else activation, layer_norm=layer_norm)

    return Network(init_params, apply)


def num_outputs(network: Network, params: Any, obs_spec: Any) -> int:
    """How many features a torso gives."""
    example = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), obs_spec, is_leaf=_is_spec)
    return jax.eval_shape(network.apply, params, example).shape[-1]
