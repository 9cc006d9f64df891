"""What a person shows of a new task, and asks of a run, brought to the form that a system takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flatirons.envs import meta
from flatirons.envs.spaces import all_finite
from flatirons.types import ArraySpec, Box, FlatironsError


def given(task: Any, shown: Any) -> Any:
    """A pair `obs [M, ...]`, answers `[M, ...]`, or, where a policy acts, one task as `draw` gives it.

    `task` is a distribution over tasks (`meta:`). Raises FlatironsError where what is shown is not of its shapes, or none of its tasks."""
    if task.env.loss == "return":
        like = jax.eval_shape(lambda key: task.env.draw(key, 1), jax.random.key(0))
        one = _one_task(like, shown)
        if isinstance(task.env, meta.Chosen):
            task.env.demand_task(one)
        return one
    if not isinstance(shown, (tuple, list)) or len(shown) != 2:
        raise FlatironsError(f"adapting in {task.name} takes a pair of arrays: examples [M, ...] and their answers [M, ...]")
    obs = asked(task.spec.obs, shown[0], "the examples")
    rows, action = len(jax.tree.leaves(obs)[0]), task.spec.action
    if isinstance(action, Box):
        return obs, _shaped(shown[1], (rows, *action.shape), np.float32, "the answers")
    answer = _shaped(shown[1], (rows,), np.int32, "the answers")
    if answer.min() < 0 or answer.max() >= action.n:
        raise FlatironsError(f"the answers run from {answer.min()} to {answer.max()}, and {task.name} has classes 0 to {action.n - 1}")
    return obs, answer


def _one_task(like: Any, shown: Any) -> Any:
    """One task in the shapes and dtypes of `like`, which has them for several (`[tasks, ...]`). Raises FlatironsError for another."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return _shaped(shown, like.shape[1:], like.dtype, "the task to adapt to")
    leaves, structure = jax.tree.flatten(like)
    try:
        parts = structure.flatten_up_to(shown)
    except (TypeError, ValueError):
        raise FlatironsError(f"the task to adapt to must be built as {jax.tree.unflatten(structure, ['...'] * len(leaves))}") from None
    paths = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(like))
    found = [
        _shaped(part, leaf.shape[1:], leaf.dtype, f"{path} of the task to adapt to")
        for path, part, leaf in zip(paths, parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def asked(spec: Any, obs: Any, name: str = "obs") -> Any:
    """A batch of raw observations `[M, ...]` in the dtypes of their spec. Raises FlatironsError where it is not as the spec says."""
    if isinstance(spec, ArraySpec):
        return _shaped(obs, (None, *spec.shape), np.dtype(spec.dtype), name, spec)
    if isinstance(spec, Mapping):
        if not isinstance(obs, Mapping) or set(obs) != set(spec):
            raise FlatironsError(f"{name} must be a dict with the keys {', '.join(map(str, spec))}")
        found: Any = {key: asked(part, obs[key], f"{name}[{key!r}]") for key, part in spec.items()}
    else:
        if not isinstance(obs, (tuple, list)) or len(obs) != len(spec):
            raise FlatironsError(f"{name} must be a tuple of {len(spec)} parts")
        found = tuple(asked(part, each, f"{name}[{i}]") for i, (part, each) in enumerate(zip(spec, obs, strict=True)))
    counts = sorted({len(leaf) for leaf in jax.tree.leaves(found)})
    if len(counts) > 1:
        raise FlatironsError(f"the parts of {name} have {' and '.join(map(str, counts))} rows: give as many of each")
    return found


def _shaped(value: Any, shape: tuple[int | None, ...], dtype: np.dtype | type, what: str, spec: ArraySpec | None = None) -> np.ndarray:
    dtype = np.dtype(dtype)
    try:
        raw = np.asarray(value)
        array = raw if raw.dtype.kind in "biuf" else raw.astype(dtype)
    except (TypeError, ValueError):
        raise FlatironsError(f"{what} cannot be read as {dtype} numbers") from None
    same = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not same or array.size == 0:
        words = ", ".join("M" if n is None else str(n) for n in shape)
        raise FlatironsError(f"{what} have shape {list(array.shape)}, and [{words}] is wanted")
    unfit = "have NaN or infinite numbers among them: leave those rows out"
    if array.dtype.kind == "f":
        demand_finite(array, what, unfit)
        if dtype.kind in "iu":
            demand_whole(array, dtype, what, spec)
    demand_range(array, dtype, what)
    return cast(array, dtype, what, unfit)


def cast(array: np.ndarray, dtype: np.dtype, what: str, unfit: str) -> np.ndarray:
    """The array in `dtype`. Raises FlatironsError for floats that are not finite in it."""
    if array.dtype == dtype:  # as most come, once for each decision: errstate would cost more than the copy
        found = array.copy()
    else:
        with np.errstate(over="ignore"):
            found = array.astype(dtype)
    demand_finite(found, what, unfit)
    return found


def demand_finite(array: np.ndarray, what: str, unfit: str) -> None:
    """Raises FlatironsError, that `what` is `unfit`, where a number is NaN or infinite."""
    if not all_finite(array):
        raise FlatironsError(f"{what} {unfit}")


def demand_range(array: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Raises FlatironsError for numbers that whole numbers of `dtype` would wrap around."""
    if dtype.kind in "iu" and not np.can_cast(array.dtype, dtype):
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise FlatironsError(f"{what} run from {array.min():g} to {array.max():g}, and {dtype} holds {limits.min} to {limits.max}")


def demand_whole(array: np.ndarray, dtype: np.dtype, what: str, spec: ArraySpec | None) -> None:
    """Raises FlatironsError for fractions that a cast would cut off, and for pictures of 0 to 1 where brightness goes further."""
    scaled = spec is not None and spec.high > 1 and len(spec.shape) > 1 and array.min() >= 0 and 0 < array.max() <= 1
    if scaled or (array != np.rint(array)).any():
        hint = f"multiply them by {spec.high:g} and round" if scaled and spec is not None else "round them"
        limits = "" if spec is None or not np.isfinite(spec.high) else f" from {spec.low:g} to {spec.high:g}"
        raise FlatironsError(f"{what} are {array.dtype} from {array.min():g} to {array.max():g}, and {dtype}{limits} is wanted: {hint}")
