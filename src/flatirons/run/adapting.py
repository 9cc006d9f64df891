"""What a person shows of a new task, brought to the form that a system adapts to."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatirons.types import ArraySpec, Box, Discrete, FlatironsError


def given(task: Any, shown: Any) -> Any:
    """A pair of arrays `obs [M, ...]`, answers `[M, ...]`, or, where a policy acts, one task as an array.

    `task` is a distribution over tasks (`meta:`). Raises FlatironsError where what is shown is not of its shapes."""
    if task.env.loss == "return":
        like = jax.eval_shape(lambda key: task.env.draw(key, 1), jax.random.key(0))
        return _shaped(shown, like.shape[1:], np.float32, "the task to adapt to")
    if not isinstance(shown, (tuple, list)) or len(shown) != 2:
        raise FlatironsError(f"adapting in {task.name} takes a pair of arrays: examples [M, ...] and their answers [M, ...]")
    spec: ArraySpec = task.spec.obs
    obs = _shaped(shown[0], (None, *spec.shape), np.dtype(spec.dtype), "the examples")
    action: Discrete | Box = task.spec.action
    if isinstance(action, Box):
        return obs, _shaped(shown[1], (len(obs), *action.shape), np.float32, "the answers")
    answer = _shaped(shown[1], (len(obs),), np.int32, "the answers")
    if answer.min() < 0 or answer.max() >= action.n:
        raise FlatironsError(f"the answers run from {answer.min()} to {answer.max()}, and {task.name} has classes 0 to {action.n - 1}")
    return obs, answer


def _shaped(value: Any, shape: tuple[int | None, ...], dtype: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value).astype(dtype)
    except (TypeError, ValueError):
        raise FlatironsError(f"{what} cannot be read as {np.dtype(dtype)} numbers") from None
    same = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not same or array.size == 0:
        words = ", ".join("M" if n is None else str(n) for n in shape)
        raise FlatironsError(f"{what} have shape {list(array.shape)}, and [{words}] is wanted")
    return array
