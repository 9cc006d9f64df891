"""Between a policy's own actions in [-1, 1] and those of a Box."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import Array, Box, FlatironsError, MultiDiscrete, Task

LARGEST = 1e9
"""A bound beyond this stands for none: float32's largest number, 3.4e38, is what people write who may not write infinity, and 1e10 what
MuJoCo says of an actuator without limits."""
LEAST_WITHIN, WIDEST = 0.05, 50.0
"""The share of a Gaussian policy's first actions that should lie within the bounds, and how many deviations these may be apart."""


def demand_box(task: Task, system: str) -> Box:
    """The task's Box. Raises FlatironsError, naming systems that take them, where actions are of another kind or their bounds infinite."""
    box = task.spec.action
    if not isinstance(box, Box):
        others = "ppo or a3c" if isinstance(box, MultiDiscrete) else "dqn or ppo"
        raise FlatironsError(
            f"{system} needs a Box action space and {task.name} has {type(box).__name__}: use a system for it, such as {others}"
        )
    if not (np.abs([*box.low, *box.high]) <= LARGEST).all():
        raise FlatironsError(
            f"{system} scales its actions to the bounds of {task.name}, and these are infinite (or beyond {LARGEST:g}): give the "
            "environment's action_space finite ones, or use ppo"
        )
    return box


def far_from_gaussian(system: Any, config: Any, task: Task) -> tuple[str, ...]:
    """What to say before a run whose Gaussian policy begins with mean 0 and a deviation of exp(`initial_log_std`), or the system's
    `INITIAL_STD`, in the environment's own units, where hardly any of its first actions lie within the bounds, or they reach over little
    of what lies between them. Of others nothing."""
    box, log_std = task.spec.action, getattr(config, "initial_log_std", None)
    std = getattr(system, "INITIAL_STD", None) if log_std is None else math.exp(log_std)
    if not isinstance(box, Box) or std is None:
        return ()
    entry = missed_by_gaussian(box, std)
    if entry is None:
        return ()
    return (
        f"the policy's first actions are drawn around 0 with a deviation of {std:.3g} and cut to the bounds, and entry {entry} of "
        f"an action lies in [{box.low[entry]:g}, {box.high[entry]:g}]: it may never learn to leave a bound, or to reach the other. Scale "
        "the actions (gymnasium.wrappers.RescaleAction(env, -1, 1)), or use sac or ddpg, which do so themselves",
    )


def missed_by_gaussian(box: Box, std: float) -> int | None:
    """The first entry of an action of which a Gaussian of mean 0 hardly draws any within its bounds, or reaches over little of them."""
    for entry, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        within = 0.5 * (math.erf(high / std / math.sqrt(2.0)) - math.erf(low / std / math.sqrt(2.0)))
        if high > low and (within < LEAST_WITHIN or (high - low > WIDEST * std and max(-low, high) < LARGEST)):
            return entry
    return None


def _centre_and_reach(box: Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.asarray(box.low, np.float32), np.asarray(box.high, np.float32)
    return (low + high) / 2.0, (high - low) / 2.0


def to_box(box: Box, unit: Array) -> jax.Array:
    """Actions in [-1, 1] `[..., d]` as the environment takes them."""
    centre, reach = (jnp.expand_dims(x, tuple(range(jnp.ndim(unit) - 1))) for x in _centre_and_reach(box))
    return centre + reach * jnp.asarray(unit)


def to_unit(box: Box, action: Array) -> jax.Array:
    """The environment's actions `[..., d]` as those in [-1, 1]; an entry with low = high is 0."""
    centre, reach = (jnp.expand_dims(x, tuple(range(jnp.ndim(action) - 1))) for x in _centre_and_reach(box))
    return (jnp.asarray(action) - centre) / jnp.where(reach > 0.0, reach, 1.0)
