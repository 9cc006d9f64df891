"""What actor and critics look at: the observation as it is, or its pictures standardised, or its features by an encoder that they share.

A Config here has `network`, `hidden`, `activation`, `standardise_pictures`, `shared_encoder` and `shift_pixels`.
"""

from __future__ import annotations

from typing import Any

import jax

from flatirons.nets import pictures
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import ArraySpec, FlatironsError, Key, Network, Task


def check(config: Any, task: Task) -> None:
    """Raises FlatironsError where they cannot look at it so."""
    if config.shared_encoder and not config.hidden:
        raise FlatironsError("shared_encoder puts layers on top of the encoder, and hidden=() names none: give for instance hidden=(256,)")
    if config.standardise_pictures and not pictures.some(task.spec.obs):
        raise FlatironsError("standardise_pictures is for pictures, and there is none in this task's observations: leave it off")
    pictures.check(task.spec.obs, config.shift_pixels)


def own(config: Any, task: Task) -> tuple[str | Network, Any]:
    """The torso that actor and critics have of their own, and what it looks at: what `seen` gives."""
    if not config.shared_encoder:
        return config.network, _looked_at(config, task)
    net, spec = _shared(config, task)
    params = jax.eval_shape(lambda key: net.init(key, spec), jax.random.key(0))
    return "mlp", ArraySpec((num_outputs(net, params, spec),))


def _looked_at(config: Any, task: Task) -> Any:
    return pictures.standardised_spec(task.spec.obs) if config.standardise_pictures else task.spec.obs


def _shared(config: Any, task: Task) -> tuple[Network, Any]:
    spec = _looked_at(config, task)
    # Uniform in ±1/sqrt(fan in) a picture's differences would fade from layer to layer.
    return torso(config.network, spec, config.hidden[:1], config.activation, "orthogonal", layer_norm=True), spec


def init(config: Any, task: Task, key: Key) -> dict[str, Any]:
    """`{"encoder": parameters}`, or `{}` where none is shared."""
    if not config.shared_encoder:
        return {}
    net, spec = _shared(config, task)
    return {"encoder": net.init(key, spec)}


def seen(config: Any, task: Task, params: Any, obs: Any) -> Any:
    """What actor and critics look at, for `obs [..., *obs]` and parameters that have an `encoder` where one is shared: features `[..., n]`
    then."""
    if config.standardise_pictures:
        obs = pictures.standardised(task.spec.obs, obs)
    return _shared(config, task)[0].apply(params["encoder"], obs) if config.shared_encoder else obs


def shifted(config: Any, task: Task, key: Key, obs: Any, next_obs: Any) -> tuple[Any, Any]:
    """The pictures of a minibatch `[n, *obs]` and of its successors, each moved by up to `shift_pixels`."""
    keys = jax.random.split(key)
    spec, most = task.spec.obs, config.shift_pixels
    return pictures.shifted(keys[0], spec, obs, most), pictures.shifted(keys[1], spec, next_obs, most)
