"""Gymnasium-Robotics behind the same door: registered at first use, and kept working with MuJoCo 4."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

PREFIXES = ("Fetch", "HandReach", "HandManipulate", "Adroit", "AntMaze", "PointMaze", "FrankaKitchen")
"""How its ids begin."""


class _Mujoco:
    """The module with joint types as whole numbers. Release 4 gives a model's joint types as those, and its own names no longer equal them;
    Gymnasium-Robotics 1.4 compares the two."""

    def __init__(self, mujoco: Any) -> None:
        names = [name for name in dir(mujoco.mjtJoint) if name.startswith("mjJNT_")]
        self.mjtJoint = SimpleNamespace(**{name: int(getattr(mujoco.mjtJoint, name)) for name in names})
        self._mujoco = mujoco

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mujoco, name)


def register() -> None:
    """Register its environments with Gymnasium. Raises ModuleNotFoundError where it is not installed."""
    import gymnasium

    # Its import prints a notice about AdroitHand's rewards on every machine.
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    from gymnasium_robotics.utils import mujoco_utils

    gymnasium.register_envs(gymnasium_robotics)
    if not isinstance(mujoco_utils.mujoco, _Mujoco):
        mujoco_utils.mujoco = _Mujoco(mujoco_utils.mujoco)


def goal_reward(env: Any) -> Callable[[Any, Any], Any] | None:
    """`reward(achieved, desired)` on JAX arrays `[..., d]`, of an environment that pursues goals, or of EnvPool's settings of one: its own
    method `goal_reward`, or the threshold rule of Gymnasium-Robotics' sparse rewards (Fetch and HandReach); None where neither is known.

    HandManipulate has a `distance_threshold` too, but another rule: position and rotation each have their own, and one may be ignored."""
    own = getattr(env, "goal_reward", None)
    if callable(own):
        return own
    threshold = getattr(env, "distance_threshold", None)
    # EnvPool's hands all have a threshold of rotation, which reaching does not read.
    turned = getattr(env, "rotation_threshold", None) is not None and getattr(env, "hand_task", None) != "reach"
    if threshold is None or turned or getattr(env, "reward_type", None) != "sparse":
        return None

    def near(achieved: Any, desired: Any) -> Any:
        import jax.numpy as jnp

        return -(jnp.sqrt(jnp.sum(jnp.square(achieved - desired), axis=-1)) > float(threshold)).astype(jnp.float32)

    return near
