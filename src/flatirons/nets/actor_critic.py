"""A policy and its value function: two torsos or a shared one, a memory on top of each where it is asked for, and a head each.

A Config here has `network`, `hidden`, `activation` and `initial_log_std`, and where there is a memory `memory_head` and `memory_skip`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.core import distributions
from flatirons.nets import recurrent
from flatirons.nets.mlp import dense, dense_init, mlp, mlp_init
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


def init_params(config: Any, task: Task, key: Key, *, share_torso: bool = False, lstm: int = 0) -> dict[str, Any]:
    """Orthogonal weights; the policy's head scaled by 0.01, the value's by 1. Keys: torso, policy (and log_std) for the policy; value and,
    unless shared, value_torso for the value function; with `lstm` units of memory also memory and, unless shared, value_memory, and where
    `memory_head` names layers on top of them head and value_head. With `memory_skip` what is above a memory sees what went into it, too."""
    key_actor, key_critic, key_policy, key_value = jax.random.split(key, 4)
    net = of(config, task)
    params: dict[str, Any] = {"torso": net.init(key_actor, task.spec.obs)}
    if not share_torso:
        params["value_torso"] = net.init(key_critic, task.spec.obs)
    width = num_outputs(net, params["torso"], task.spec.obs)
    if lstm:
        params["memory"] = recurrent.lstm_init(jax.random.fold_in(key_actor, 1), width, lstm)
        if not share_torso:
            params["value_memory"] = recurrent.lstm_init(jax.random.fold_in(key_critic, 1), width, lstm)
        width = lstm + width if config.memory_skip else lstm
        if config.memory_head:
            widths = (width, *config.memory_head)
            params["head"] = mlp_init(jax.random.fold_in(key_policy, 1), widths)
            params["value_head"] = mlp_init(jax.random.fold_in(key_value, 1), widths)
            width = widths[-1]
    params["policy"] = dense_init(key_policy, width, _num_outputs(task), scale=0.01)
    params["value"] = dense_init(key_value, width, 1, scale=1.0)
    if isinstance(task.spec.action, Box):
        params["log_std"] = jnp.full(task.spec.action.shape, config.initial_log_std, jnp.float32)
    return params


_OF_THE_VALUE = ("value", "value_torso", "value_memory", "value_head")


def policy_params(params: dict[str, Any]) -> dict[str, Any]:
    """What `distribution` reads of them."""
    return {name: part for name, part in params.items() if name not in _OF_THE_VALUE}


def value_params(params: dict[str, Any]) -> dict[str, Any]:
    """What only `value` reads of them."""
    return {name: part for name, part in params.items() if name in _OF_THE_VALUE}


def pi(task: Task, params: Any, features: jax.Array, legal: Any) -> distributions.Distribution:
    """pi(. | s) from the policy's features `[..., n]`."""
    out = dense(params["policy"], features)
    match task.spec.action:
        case Discrete():
            return distributions.Categorical(distributions.mask_logits(out, legal))
        case MultiDiscrete(nvec):
            return distributions.multi_categorical(out, nvec, legal)
        case Box():
            axes = tuple(range(out.ndim - 1))
            return distributions.Normal(out, jnp.broadcast_to(jnp.expand_dims(params["log_std"], axes), out.shape))


def v(params: Any, features: jax.Array) -> jax.Array:
    """V(s) from the value function's features `[..., n]`, in units of the (scaled) return, `[...]`."""
    return dense(params["value"], features)[..., 0]


def distribution(config: Any, task: Task, params: Any, obs: Any, legal: Any) -> distributions.Distribution:
    """pi(. | s) of a policy without a memory, for prepared `obs [..., *obs]`."""
    return pi(task, params, of(config, task).apply(params["torso"], obs), legal)


def value(config: Any, task: Task, params: Any, obs: Any) -> jax.Array:
    """V(s) of a value function without a memory, for prepared `obs`, `[...]`."""
    return v(params, of(config, task).apply(params.get("value_torso", params["torso"]), obs))


def judged(config: Any, task: Task, params: Any, obs: Any, legal: Any) -> tuple[distributions.Distribution, jax.Array]:
    """pi(. | s) and V(s), as `distribution` and `value` have them. A shared torso is gone through once, and its gradient, which the sum of
    both is, too."""
    net = of(config, task)
    features = net.apply(params["torso"], obs)
    of_value = net.apply(params["value_torso"], obs) if "value_torso" in params else features
    return pi(task, params, features, legal), v(params, of_value)


# ------------------------------------------------------------------------------------------------------------- with a memory


class Memories(NamedTuple):
    """What the policy and the value function remember, a `recurrent.Memory` each; the value's is `()` where they share a torso."""

    policy: Any
    value: Any


def blank(num_envs: int, units: int, *, share_torso: bool) -> Memories:
    """The memories at an episode's start, `[num_envs, units]`."""
    return Memories(recurrent.blank(num_envs, units), () if share_torso else recurrent.blank(num_envs, units))


def remembering(config: Any, task: Task, params: Any, obs: Any, memory: recurrent.Memory, first: Any) -> tuple[recurrent.Memory, jax.Array]:
    """The policy's memory after one step with prepared `obs [B, *obs]`, blank before it where an episode begins (`first [B]`), and what
    `pi` reads then."""
    x = of(config, task).apply(params["torso"], obs)
    memory = recurrent.lstm(params["memory"], recurrent.forget(memory, first), x)
    return memory, _above(config, params, "head", memory, x)


def unroll(config: Any, task: Task, params: Any, obs: Any, first: Any, start: Memories) -> tuple[Memories, tuple[jax.Array, jax.Array]]:
    """The memories after each step of prepared `obs [T, B, *obs]`, `[T, B, units]`, that began with `start` `[B, units]`, blank again at
    each `first [T, B]`; and what `pi` and `v` read then."""
    net = of(config, task)
    x = net.apply(params["torso"], obs)
    policy = recurrent.unroll(params["memory"], start.policy, x, first)
    of_policy = _above(config, params, "head", policy, x)
    if "value_torso" not in params:
        return Memories(policy, ()), (of_policy, _above(config, params, "value_head", policy, x))
    x = net.apply(params["value_torso"], obs)
    value = recurrent.unroll(params["value_memory"], start.value, x, first)
    return Memories(policy, value), (of_policy, _above(config, params, "value_head", value, x))


def _above(config: Any, params: Any, head: str, memory: recurrent.Memory, x: jax.Array) -> jax.Array:
    """What the layers `head` make of a memory and of the `x` that went into it last, `[..., n]`."""
    seen = jnp.concatenate([memory.h, x], axis=-1) if config.memory_skip else memory.h
    return mlp(params.get(head, ()), seen, config.activation)


def next_values(config: Any, task: Task, params: Any, next_obs: Any, after: Memories) -> jax.Array:
    """V of the true successors `next_obs [..., B, *obs]`, which belong to the same episodes: it goes on from the memories `after` the
    steps that led there, whether or not another episode begins then."""
    shared = "value_torso" not in params
    x = of(config, task).apply(params["torso" if shared else "value_torso"], next_obs)
    cells = params["memory" if shared else "value_memory"]
    following = recurrent.lstm(cells, after.policy if shared else after.value, x)
    return v(params, _above(config, params, "value_head", following, x))
