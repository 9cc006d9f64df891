"""What is done with the pictures of an observation before a network sees them: brought to one brightness and contrast; and before learning
moved at random by a few pixels (Kostrikov, Yarats and Fergus 2021, DrQ, arXiv:2004.13649)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.nets.torso import channels_last
from flatirons.types import ArraySpec, FlatironsError, Key


def is_picture(spec: ArraySpec) -> bool:
    """Whether this array of an observation is one: bytes `[planes, height, width]` or `[height, width, channels]`."""
    return spec.dtype == "uint8" and len(spec.shape) == 3


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def standardised_spec(obs_spec: Any) -> Any:
    """What `standardised` gives."""
    return jax.tree.map(
        lambda s: dataclasses.replace(s, dtype="float32", low=-jnp.inf, high=jnp.inf) if is_picture(s) else s, obs_spec, is_leaf=_is_spec
    )


def standardised(obs_spec: Any, obs: Any) -> Any:
    """Each picture of `obs [..., *obs]` as float32 of mean 0 and deviation 1 over all its numbers: on a plain background what moves is a
    small part of them, and would hardly be seen beside the rest."""

    def one(spec: ArraySpec, x: Any) -> Any:
        if not is_picture(spec):
            return x
        x = jnp.asarray(x).astype(jnp.float32) / 255.0
        x = x - jnp.mean(x, axis=(-3, -2, -1), keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(-3, -2, -1), keepdims=True) + 1e-4)

    return jax.tree.map(one, obs_spec, obs, is_leaf=_is_spec)


def some(obs_spec: Any) -> bool:
    """Whether there is a picture in an observation."""
    return any(is_picture(spec) for spec in jax.tree.leaves(obs_spec, is_leaf=_is_spec))


def check(obs_spec: Any, most: int) -> None:
    """Raises FlatironsError where pictures cannot be moved by up to `most` pixels."""
    if most < 0:
        raise FlatironsError(f"shift_pixels={most} must be at least 0")
    if most and not some(obs_spec):
        raise FlatironsError(f"shift_pixels={most} moves pictures, and there is none in this task's observations: set it to 0")


def shifted(key: Key, obs_spec: Any, obs: Any, most: int) -> Any:
    """Each picture of `obs [n, ...]` moved by -most to most pixels each way, its planes together; what comes in repeats the edge."""

    def one(spec: ArraySpec, x: Any, key: Key) -> Any:
        if not is_picture(spec):
            return x
        x = jnp.asarray(x)
        rows, columns = (1, 2) if channels_last(spec) else (2, 3)
        padding = [(most, most) if axis in (rows, columns) else (0, 0) for axis in range(x.ndim)]
        padded = jnp.pad(x, padding, mode="edge")
        offsets = jax.random.randint(key, (x.shape[0], 2), 0, 2 * most + 1)

        def cut(picture: jax.Array, offset: jax.Array) -> jax.Array:
            begin = [jnp.int32(0)] * 3
            begin[rows - 1], begin[columns - 1] = offset[0], offset[1]
            return jax.lax.dynamic_slice(picture, begin, x.shape[1:])

        return jax.vmap(cut)(padded, offsets)

    specs, structure = jax.tree.flatten(obs_spec, is_leaf=_is_spec)
    keys = jax.random.split(key, len(specs))
    return jax.tree.unflatten(structure, [one(*each) for each in zip(specs, jax.tree.leaves(obs), keys, strict=True)])
