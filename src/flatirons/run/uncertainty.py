"""How sure a trained network is: MC dropout (Gal and Ghahramani 2016) on the networks of any run, without touching the system."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from flatirons.core import bayes
from flatirons.envs import spaces
from flatirons.types import FlatironsError, Key, Task, TimeStep


class Uncertainty(NamedTuple):
    """What n stochastic passes say of one observation.

    actions `[n, ...]`: the greedy action of each pass, as `Run.policy` gives it. action and action_std: their mean and deviation; of
    Discrete actions the share of the passes that choose each (of MultiDiscrete ones for each number, side by side), and None. values
    `[n]`: what each pass expects of the state, None where the system has no `estimate`. value and value_std: their mean and deviation.
    """

    action: np.ndarray
    action_std: np.ndarray | None
    value: float | None
    value_std: float | None
    actions: np.ndarray
    values: np.ndarray | None


def _name(system: Any) -> str:
    return system.__name__.rpartition(".")[2]


def rate_of(system: Any, config: Any, rate: float | None) -> float:
    """The rate asked for, else the one that the run was trained with. Raises FlatironsError where there is neither."""
    chosen = getattr(config, "dropout", None) if rate is None else rate
    if chosen is None:
        raise FlatironsError(f"this {_name(system)} was trained without dropout, so say how much to drop: rate=0.1, for instance")
    bayes.demand_rate(chosen)
    return float(chosen)


def _where(system: Any, config: Any, parts: tuple[str, ...], path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of an Actor is a weight to drop: running moments are none, whatever their shape, and neither is a table. What a system
    drops by a rule of its own is its `dropped`'s to say."""
    part = getattr(path[0], "name", getattr(path[0], "key", None))
    if part == "obs" or (parts and part not in parts):
        return False
    if hasattr(system, "dropped"):
        return system.dropped(config, path, leaf)
    # A network's weights lie deeper than the Actor's own fields: an array that is such a field is looked up and multiplies nothing.
    return len(path) > 1 and bayes.is_weight(path, leaf)


def demand_weights(system: Any, config: Any, actor: Any, parts: tuple[str, ...]) -> None:
    """Raises FlatironsError where nothing in these parts of an Actor (in all of it where none is named) is a weight to drop."""
    leaves = jax.tree_util.tree_flatten_with_path(actor)[0]
    for chosen in ((), parts):
        if not any(_where(system, config, chosen, path, leaf) for path, leaf in leaves):
            whose = f"{', '.join(chosen)} of {_name(system)} has" if chosen else f"{_name(system)} has"
            instead = "leave parts out, or name another" if chosen else "ask a run of a system that has, such as dqn or alphazero"
            raise FlatironsError(f"{whose} no network whose inputs could be dropped; {instead}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _passes(
    system: Any, task: Task, n: int, parts: tuple[str, ...], config: Any, actor: Any, timestep: TimeStep, key: Key, rate: Any
) -> dict[str, Any]:
    key_act, key_masks = jax.random.split(key)

    def apply(actor: Any, timestep: TimeStep) -> dict[str, Any]:
        acting = system.policy(config, task, actor, greedy=True)
        found = {"action": acting.act(key_act, timestep, acting.reset(1))[0][0]}
        if hasattr(system, "estimate"):
            found["value"] = system.estimate(config, task, actor, timestep)[0]
        return found

    where = functools.partial(_where, system, config, parts)
    return bayes.predictive(apply, actor, timestep, key_masks, n, rate=rate, where=where)


def uncertainty(
    system: Any, config: Any, task: Task, actor: Any, timestep: TimeStep, key: Key, n: int, *, rate: float, parts: tuple[str, ...] = ()
) -> Uncertainty:
    """`n` stochastic passes of the greedy policy, and of the estimate, for a batch of one observation. `parts` names the fields of the
    Actor whose weights are dropped (all by default). Raises FlatironsError where n < 1, a part is unknown, or there is no weight in them.

    A board game's position is not in an observation: the policy's network answers without its search. A policy with a memory is asked with
    a blank one, whatever it has seen before.
    """
    bayes.demand_draws(n)
    # An Actor is a NamedTuple, or a dict of parameters by name.
    known = tuple(actor) if isinstance(actor, dict) else actor._fields
    for part in parts:
        if part not in known:
            raise FlatironsError(f"there is no part {part!r} of this policy to drop; it has {', '.join(known)}")
    demand_weights(system, config, actor, parts)
    if hasattr(config, "eval_epsilon"):
        config = dataclasses.replace(cast(Any, config), eval_epsilon=0.0)
    found = jax.device_get(_passes(system, task, n, parts, config, actor, timestep, key, rate))
    chosen, values = found["action"], found.get("value")
    actions = spaces.raw_actions(task.spec.action, chosen)
    nvec = spaces.choices(task.spec.action)
    if nvec:
        columns = zip(chosen.reshape(n, len(nvec)).T, nvec, strict=True)
        mean, std = np.concatenate([np.bincount(column, minlength=count) for column, count in columns]) / n, None
    else:
        mean, std = actions.mean(axis=0), actions.std(axis=0)
    value, value_std = (None, None) if values is None else (float(values.mean()), float(values.std()))
    return Uncertainty(mean, std, value, value_std, actions, values)
