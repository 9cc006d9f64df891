"""Gymnasium's spaces and our specs, one into the other, and what makes an environment's answer into arrays of those specs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gs

from flatirons.types import ActionSpec, ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete

MASK = "action_mask"
"""Where Gymnasium's own environments (Taxi) and others keep the mask of legal actions, in `info`."""

_NARROW = {"float64": "float32", "float16": "float32", "int64": "int32", "uint64": "uint32"}


class StackedBox(gs.Box):
    """A Box whose axis 0 is a stack of consecutive frames, oldest first, so that a replay stores each frame once."""


def obs_spec(space: gymnasium.Space, key: str = "obs") -> Any:
    """The spec of observations from a Gymnasium space: an `ArraySpec`, or a dict or tuple of them for Dict and Tuple spaces.

    float64 becomes float32 and 64-bit integers 32-bit (one too large for that is a fault when it comes). Discrete observations are int32
    scalars counted from 0, whatever the space's start. A bound of a Box is the loosest of its elements. Raises FlatironsError for a space
    that is not made of fixed-size arrays, and for one without a single number.
    """
    spec = _obs_spec(space, key)
    if not any(math.prod(leaf.shape) for _, _, leaf, _ in leaves(space, key)):
        raise FlatironsError(f"the observation space {space} holds no numbers, so there is nothing to act on; let it hold at least one")
    return spec


def _obs_spec(space: gymnasium.Space, key: str) -> Any:
    if isinstance(space, gs.Box):
        dtype = _NARROW.get(space.dtype.name, space.dtype.name)
        low = float(np.min(space.low)) if space.low.size else -np.inf
        high = float(np.max(space.high)) if space.high.size else np.inf
        return ArraySpec(tuple(space.shape), dtype, low, high, stack=space.shape[0] if isinstance(space, StackedBox) else 1)
    if isinstance(space, gs.Discrete):
        return ArraySpec((), "int32", 0, int(space.n) - 1, start=_starts(space))
    if isinstance(space, gs.MultiDiscrete):
        return ArraySpec(tuple(space.nvec.shape), "int32", 0, int(space.nvec.max(initial=1)) - 1, start=_starts(space))
    if isinstance(space, gs.MultiBinary):
        return ArraySpec(tuple(space.shape), "int8", 0, 1)
    if isinstance(space, gs.Dict):
        return {name: _obs_spec(part, f"{key}[{name!r}]") for name, part in space.spaces.items()}
    if isinstance(space, gs.Tuple):
        return tuple(_obs_spec(part, f"{key}[{index}]") for index, part in enumerate(space.spaces))
    raise FlatironsError(
        f"the observation space {key} is a {type(space).__name__}, which has no fixed array shape; "
        "wrap the environment so that it gives Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple observations"
    )


def action_spec(space: gymnasium.Space) -> ActionSpec:
    """The spec of actions from a Gymnasium space. A Box of any shape becomes a flat vector, MultiBinary a MultiDiscrete of twos.

    Raises FlatironsError for other spaces (Dict, Tuple, integer Box), and for one without a dimension.
    """
    if isinstance(space, (gs.Box, gs.MultiDiscrete)) and not math.prod(space.shape):
        raise FlatironsError(f"the action space {space} has no dimensions, so there is nothing to choose; give it at least one")
    if isinstance(space, gs.Discrete):
        return Discrete(int(space.n), int(space.start))
    if isinstance(space, gs.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(bound.ravel().tolist()) for bound in _float32_bounds(space))
        return Box(low, high, _shape_if_other(space.shape))
    if isinstance(space, gs.MultiDiscrete):
        return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()), _starts(space), _shape_if_other(space.nvec.shape))
    if isinstance(space, gs.MultiBinary):
        return MultiDiscrete((2,) * int(np.prod(space.shape)), raw_shape=_shape_if_other(space.shape))
    raise FlatironsError(
        f"the action space {space} is not supported; wrap the environment so that it takes Discrete, MultiDiscrete, MultiBinary or "
        "floating-point Box actions"
    )


def _starts(space: gs.Discrete | gs.MultiDiscrete) -> tuple[int, ...]:
    """The `start` of a space, flat; `()` where it counts from 0."""
    starts = np.ravel(space.start).tolist()
    return tuple(starts) if any(starts) else ()


def _shape_if_other(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The `raw_shape` of an action that is a vector to us."""
    return None if len(shape) == 1 else tuple(shape)


def _float32_bounds(space: gs.Box) -> tuple[np.ndarray, np.ndarray]:
    """The widest float32 bounds within a Box's own: the nearest to a float64 bound may lie outside, and the environment refuse it.

    The nearest all the same where they are infinite, or so close together that no float32 is between them."""
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    inner_low = np.where((low < space.low) & np.isfinite(low), np.nextafter(low, np.float32(np.inf)), low)
    inner_high = np.where((high > space.high) & np.isfinite(high), np.nextafter(high, np.float32(-np.inf)), high)
    some = inner_low <= inner_high
    return np.where(some, inner_low, low), np.where(some, inner_high, high)


def space_of(spec: Any) -> gymnasium.Space:
    """The Gymnasium space of an observation or action spec (the way back, for people's own wrappers and for tests)."""
    if isinstance(spec, dict):
        return gs.Dict({name: space_of(part) for name, part in spec.items()})
    if isinstance(spec, tuple):
        return gs.Tuple(tuple(space_of(part) for part in spec))
    if isinstance(spec, ArraySpec):
        dtype = np.dtype(spec.dtype)
        low, high = spec.low, spec.high
        if not np.issubdtype(dtype, np.floating):
            bounds = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            low, high = max(low, bounds[0]), min(high, bounds[1])
        return gs.Box(low, high, spec.shape, dtype.type)
    if isinstance(spec, Discrete):
        return gs.Discrete(spec.n, start=spec.start)
    if isinstance(spec, MultiDiscrete):
        shape = (len(spec.nvec),) if spec.raw_shape is None else spec.raw_shape
        starts = spec.start or (0,) * len(spec.nvec)
        return gs.MultiDiscrete(np.asarray(spec.nvec).reshape(shape), start=np.asarray(starts).reshape(shape))
    if isinstance(spec, Box):
        shape = spec.shape if spec.raw_shape is None else spec.raw_shape
        return gs.Box(np.asarray(spec.low, np.float32).reshape(shape), np.asarray(spec.high, np.float32).reshape(shape))
    raise FlatironsError(f"{spec!r} is not a spec of observations or actions")


def leaves(space: gymnasium.Space, key: str = "obs") -> Iterator[tuple[str, Callable[[Any], Any], ArraySpec, gymnasium.Space]]:
    """The arrays of an observation: for each its key as a person would write it, how to get it, its spec and its own space."""
    if isinstance(space, gs.Dict):
        items: Any = space.spaces.items()
    elif isinstance(space, gs.Tuple):
        items = enumerate(space.spaces)
    else:
        yield key, lambda obs: obs, _obs_spec(space, key), space
        return
    for name, part in items:
        for path, get, spec, leaf in leaves(part, f"{key}[{name!r}]"):
            yield path, lambda obs, name=name, get=get: get(obs[name]), spec, leaf


def build(space: gymnasium.Space, arrays: Iterator[Any]) -> Any:
    """An observation pytree in the shape of `space`, from arrays in the order of `leaves`."""
    if isinstance(space, gs.Dict):
        return {name: build(part, arrays) for name, part in space.spaces.items()}
    if isinstance(space, gs.Tuple):
        return tuple(build(part, arrays) for part in space.spaces)
    return next(arrays)


def offset(space: gymnasium.Space) -> Any:
    """What to take from an integer observation so that it counts from 0: the `start` of Discrete and MultiDiscrete spaces, else None."""
    if isinstance(space, (gs.Discrete, gs.MultiDiscrete)) and np.any(space.start):
        return space.start
    return None


def decode_actions(space: gymnasium.Space) -> Callable[[np.ndarray], Sequence[Any]]:
    """A function from a checked batch of our actions `[B, ...]` to one Gymnasium action per environment, start and shape given back."""
    if isinstance(space, gs.Discrete):
        start = int(space.start)
        if start == 0:
            return lambda batch: batch.tolist()
        return lambda batch: [action + start for action in batch.tolist()]
    if isinstance(space, gs.Box):
        shape, dtype = space.shape, space.dtype
        low, high = _float32_bounds(space)
        if (low < space.low).any() or (high > space.high).any():
            return lambda batch: list(np.clip(batch.astype(dtype).reshape((len(batch), *shape)), space.low, space.high))
        if len(shape) == 1:
            return lambda batch: list(batch.astype(dtype))
        return lambda batch: list(batch.astype(dtype).reshape((len(batch), *shape)))
    shape, dtype = space.shape or (), space.dtype
    start_array = space.start if isinstance(space, gs.MultiDiscrete) else 0
    return lambda batch: list((batch.reshape((len(batch), *shape)) + start_array).astype(dtype))


def raw_actions(spec: ActionSpec, actions: np.ndarray) -> np.ndarray:
    """A batch of our actions `[B, ...]` in the environment's own words, as one new array: start and shape given back, Box clipped."""
    if isinstance(spec, Discrete):
        return actions + spec.start
    if isinstance(spec, MultiDiscrete):
        raw = actions + np.asarray(spec.start or 0, actions.dtype)
    else:
        raw = np.clip(actions, np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32))
    return raw if spec.raw_shape is None else raw.reshape((len(raw), *spec.raw_shape))


def choices(spec: ActionSpec) -> tuple[int, ...]:
    """How many choices each number of an action has, which a mask names side by side; `()` for Box, which has no mask."""
    return (spec.n,) if isinstance(spec, Discrete) else spec.nvec if isinstance(spec, MultiDiscrete) else ()


def action_checker(spec: ActionSpec) -> Callable[[Any, int], np.ndarray]:
    """A function `(action, num_envs) -> a checked array [num_envs, ...]` (int32, or float32 clipped to the bounds).

    It raises FlatironsError for a wrong shape, an integer out of range or a number that is not finite.
    """
    if isinstance(spec, Discrete):
        n = spec.n

        def check_discrete(action: Any, num_envs: int) -> np.ndarray:
            array = np.asarray(action)
            if array.shape != (num_envs,) or array.dtype.kind not in "iu":
                raise FlatironsError(
                    f"the actions are {array.dtype}{list(array.shape)}; {num_envs} environments with Discrete({n}) take int32[{num_envs}]"
                )
            values = array.tolist()
            if min(values) < 0 or max(values) >= n:
                at = next(i for i, value in enumerate(values) if not 0 <= value < n)
                raise FlatironsError(
                    f"the action {values[at]} of environment {at} is outside 0 ... {n - 1}; the policy must choose a legal action"
                )
            return array

        return check_discrete
    if isinstance(spec, MultiDiscrete):
        nvec = np.asarray(spec.nvec)

        def check_multi(action: Any, num_envs: int) -> np.ndarray:
            array = np.asarray(action)
            if array.shape != (num_envs, len(nvec)) or array.dtype.kind not in "iu":
                raise FlatironsError(f"the actions are {array.dtype}{list(array.shape)}; this task takes int32[{num_envs}, {len(nvec)}]")
            if (array < 0).any() or (array >= nvec).any():
                at = int(np.argwhere((array < 0) | (array >= nvec))[0][0])
                raise FlatironsError(f"the action {array[at].tolist()} of environment {at} is outside 0 ... {(nvec - 1).tolist()}")
            return array

        return check_multi
    low, high = np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32)

    def check_box(action: Any, num_envs: int) -> np.ndarray:
        array = np.asarray(action, np.float32)
        if array.shape != (num_envs, *low.shape):
            raise FlatironsError(f"the actions have shape {list(array.shape)}; this task takes float32[{num_envs}, {len(low)}]")
        clipped = np.minimum(np.maximum(array, low), high)
        if not all_finite(clipped):
            at = int(np.argwhere(~np.isfinite(clipped))[0][0])
            raise FlatironsError(f"the action {array[at].tolist()} of environment {at} is not finite; the policy's network has diverged")
        return clipped

    return check_box


def random_action(space: gymnasium.Space, about: Any, rng: np.random.Generator) -> Any:
    """A random action in Gymnasium's form, from a generator of our own so that the environment's stays as it is; a legal one where `about`,
    what a reset or step returned, ends in an `info` with a mask. A mask that is of no use is for the task itself to name."""
    actions, legal = random_batch(action_spec(space), 1, rng), legal_choices(space, about)
    if legal is not None:
        actions = np.array([rng.choice(part) for part in legal]).reshape(actions.shape)
    return decode_actions(space)(actions)[0]


def legal_choices(space: gymnasium.Space, about: Any) -> list[np.ndarray] | None:
    """For each number of an action its legal choices, where `about` names some of each in a mask."""
    counts, info = choices(action_spec(space)), about[-1] if isinstance(about, tuple) and about else None
    if not counts or not isinstance(info, dict) or MASK not in info:
        return None
    mask = np.hstack(info[MASK])
    parts = np.split(mask, np.cumsum(counts)[:-1]) if mask.shape == (sum(counts),) else []
    return [np.flatnonzero(part) for part in parts] if parts and all(part.any() for part in parts) else None


def random_batch(spec: ActionSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` uniformly random actions as tasks take them, a Box's within a thousand of 0."""
    if isinstance(spec, Discrete):
        return rng.integers(0, spec.n, count)
    if isinstance(spec, MultiDiscrete):
        return rng.integers(0, np.asarray(spec.nvec), (count, len(spec.nvec)))
    low = np.maximum(np.asarray(spec.low, np.float32), -1e3)
    high = np.minimum(np.asarray(spec.high, np.float32), 1e3)
    return rng.uniform(low, high, (count, len(low))).astype(np.float32)


def all_finite(array: np.ndarray) -> bool:
    """Whether every number of an array is finite. (Counting is four times as fast as `.all()` for small arrays.)"""
    return array.dtype.kind != "f" or np.count_nonzero(np.isfinite(array)) == array.size
