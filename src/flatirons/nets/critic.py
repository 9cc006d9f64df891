"""Q(s, a) for continuous actions: a torso for the observation, which the action joins at a layer of its own."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.nets.mlp import Activation, Init, dense, dense_init, mlp, mlp_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import Array, Key, Network


def critic_init(
    key: Key,
    network: str | Network,
    obs_spec: Any,
    num_actions: int,
    hidden: tuple[int, ...],
    *,
    action_layer: int = 0,
    activation: Activation = "relu",
    init: Init = "fan_in",
) -> dict[str, Any]:
    """Parameters of one critic; the action enters hidden layer number `action_layer`, counted from 0."""
    key_below, key_above, key_head = jax.random.split(key, 3)
    below = torso(network, obs_spec, hidden[:action_layer], activation, init)
    params = below.init(key_below, obs_spec)
    widths = (num_outputs(below, params, obs_spec) + num_actions, *hidden[action_layer:])
    return {"torso": params, "mlp": mlp_init(key_above, widths, init=init), "q": dense_init(key_head, widths[-1], 1, init=init)}


def critic(
    params: Any,
    network: str | Network,
    obs_spec: Any,
    hidden: tuple[int, ...],
    obs: Any,
    action: Array,
    *,
    action_layer: int = 0,
    activation: Activation = "relu",
    layer_norm: bool = False,
) -> jax.Array:
    """Q(s, a) `[...]` for `obs [..., *obs]` and `action [..., d]`; `layer_norm` standardises the dense layers before their activation."""
    below = torso(network, obs_spec, hidden[:action_layer], activation, "fan_in", layer_norm=layer_norm)
    both = jnp.concatenate([below.apply(params["torso"], obs), jnp.asarray(action)], axis=-1)
    return dense(params["q"], mlp(params["mlp"], both, activation, layer_norm=layer_norm))[..., 0]


def shrunk(layer: dict[str, jax.Array], bound: float) -> dict[str, jax.Array]:
    """A "fan_in" layer's parameters as uniform in ±bound (Lillicrap 2016, section 7: 3e-3 for the last layers)."""
    return jax.tree.map(lambda x: x * (bound * math.sqrt(layer["w"].shape[0])), layer)
