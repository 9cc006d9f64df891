"""Pictures of in-graph environments: classic control through Gymnasium's own renderers, MinAtar as coloured cells."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np

from flatirons.types import FlatironsError

_COLOURS = np.array(
    [
        [86, 180, 233],
        [230, 159, 0],
        [0, 158, 115],
        [213, 94, 0],
        [204, 121, 167],
        [240, 228, 66],
        [0, 114, 178],
        [255, 255, 255],
        [148, 103, 189],
        [140, 86, 75],
    ],
    np.uint8,
)
CELL = 32


def render_frame(task_name: str, inner: Any) -> np.ndarray | None:
    """The picture, uint8 `[H, W, 3]`, of one stream of an in-graph task; `inner` is its state without the batch axis.

    None where the task has no picture. Raises FlatironsError where a package that draws it is missing.
    """
    prefix, _, name = task_name.removeprefix("no-velocity:").partition(":")
    if prefix == "pgx":
        from flatirons.envs import minatar

        return _cells(np.asarray(minatar.make(name).observe(inner))) if name in minatar.NAMES else None
    if prefix != "jax" or name not in STATE_SIZES:
        return None
    viewer = _viewer(name)
    viewer.state = np.asarray(inner, np.float64)[: STATE_SIZES[name]]
    if name == "Pendulum-v1":
        viewer.last_u = None
    try:
        return np.array(viewer.render(), np.uint8)
    except gymnasium.error.DependencyNotInstalled:
        raise FlatironsError(f"drawing {task_name} needs pygame, which is not installed; install it with: pip install pygame") from None


STATE_SIZES = {"CartPole-v1": 4, "Acrobot-v1": 4, "MountainCar-v0": 2, "MountainCarContinuous-v0": 2, "Pendulum-v1": 2}


@functools.lru_cache(maxsize=2)
def _viewer(name: str) -> Any:
    viewer: Any = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True).unwrapped
    viewer.reset(seed=0)
    return viewer


def _cells(obs: np.ndarray) -> np.ndarray:
    """Each cell in the colour of its last lit channel, black where none is."""
    if obs.ndim != 3:
        return np.zeros((CELL, CELL, 3), np.uint8)
    picture = np.zeros((*obs.shape[:2], 3), np.uint8)
    for channel in range(obs.shape[2]):
        picture[obs[:, :, channel].astype(bool)] = _COLOURS[channel % len(_COLOURS)]
    large = picture.repeat(CELL, axis=0).repeat(CELL, axis=1)
    large[::CELL] = large[:, ::CELL] = 30
    return large
