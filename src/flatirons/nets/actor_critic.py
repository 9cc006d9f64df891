"""A policy and its value function: two torsos or a shared one, with a head each.

A Config here has `network`, `hidden`, `activation` and `initial_log_std`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core import distributions
from flatirons.nets.mlp import dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import Box, Discrete, Key, MultiDiscrete, Network, Task


def of(config: Any, task: Task) -> Network:
    """The torso that a Config asks for. Raises FlatironsError where it does not fit the observations."""
    return torso(config.network, task.spec.obs, config.hidden, config.activation, "orthogonal")


def _num_outputs(task: Task) -> int:
    match task.spec.action:
        case Discrete(n):
            return n
        case MultiDiscrete(nvec):
            return sum(nvec)
        case Box() as box:
            return len(box.low)


def init_params(config: Any, task: Task, key: Key, *, share_torso: bool = False) -> dict[str, Any]:
    """Orthogonal weights; the policy's head scaled by 0.01, the value's by 1. Keys: torso, policy (and log_std) for the policy; value and,
    unless shared, value_torso for the value function."""
    key_actor, key_critic, key_policy, key_value = jax.random.split(key, 4)
    net = of(config, task)
    actor = net.init(key_actor, task.spec.obs)
    width = num_outputs(net, actor, task.spec.obs)
    params = {
        "torso": actor,
        "policy": dense_init(key_policy, width, _num_outputs(task), scale=0.01),
        "value": dense_init(key_value, width, 1, scale=1.0),
    }
    if not share_torso:
        params["value_torso"] = net.init(key_critic, task.spec.obs)
    if isinstance(task.spec.action, Box):
        params["log_std"] = jnp.full(task.spec.action.shape, config.initial_log_std, jnp.float32)
    return params


def policy_params(params: dict[str, Any]) -> dict[str, Any]:
    """What `distribution` reads of them."""
    return {name: part for name, part in params.items() if name not in ("value", "value_torso")}


def distribution(config: Any, task: Task, params: Any, obs: Any, legal: Any) -> distributions.Distribution:
    """pi(. | s) for prepared `obs [..., *obs]`."""
    out = dense(params["policy"], of(config, task).apply(params["torso"], obs))
    match task.spec.action:
        case Discrete():
            return distributions.Categorical(distributions.mask_logits(out, legal))
        case MultiDiscrete(nvec):
            cuts = [sum(nvec[:i]) for i in range(1, len(nvec))]
            return distributions.MultiCategorical(tuple(distributions.Categorical(x) for x in jnp.split(out, cuts, axis=-1)))
        case Box():
            axes = tuple(range(out.ndim - 1))
            return distributions.Normal(out, jnp.broadcast_to(jnp.expand_dims(params["log_std"], axes), out.shape))


def value_params(params: dict[str, Any]) -> dict[str, Any]:
    """What only `value` reads of them."""
    return {name: part for name, part in params.items() if name in ("value", "value_torso")}


def value(config: Any, task: Task, params: Any, obs: Any) -> jax.Array:
    """V(s) for prepared `obs`, in units of the (scaled) return, `[...]`."""
    return dense(params["value"], of(config, task).apply(params.get("value_torso", params["torso"]), obs))[..., 0]
