"""Environments outside JAX: any Gymnasium environment as a batch that resets itself, stepped in this process, in threads or in workers.

A `HostBatch` is the task that people and systems see: it checks actions, copies and checks what comes back, keeps `current`, and says
which environment failed. Under it an *engine* steps the environments. All engines give the same numbers: which one is chosen changes the
speed and nothing else.

Seeds: environment `i` of a task with seed `s` is reset with the i-th 32-bit word of `numpy.random.SeedSequence(s)`, halved (so that it fits
an int32). This depends neither on the number of environments nor on the engine. Later resets carry on each environment's own generator.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from flatirons.core.categories import is_category
from flatirons.envs import robotics, spaces
from flatirons.types import ArraySpec, FlatironsError, Outcome, Spec, TimeStep

Leaves = list[np.ndarray]
FLOAT32_LARGEST = float(np.finfo(np.float32).max)
SLOW_STEP_S = 300e-6
"""Environments slower than this to step are worth a process of their own: a round trip to a worker costs 50-100 us."""
START_LIMIT_S = 180.0
"""How long the making of an environment may take at least: a simulator that starts up is slower than any of its steps."""
REACHED = ("is_success", "success")
"""Where environments that pursue goals say in `info` whether the goal is reached: Gymnasium-Robotics' Fetch and Hands, and its mazes."""
CARTPOLE_VECTOR_FROM = 6
"""From this many environments on, Gymnasium's vector CartPole (about 40 us a batch) beats stepping them one by one (about 7 us each)."""


class EnvFault(Exception):
    """What an engine raises: environment `index` did something wrong, in the words of `message`. HostBatch adds name, step and action."""

    def __init__(self, index: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.index, self.message, self.details = index, message, details


class Lost(EnvFault):
    """The worker process of environment `index` died, or hung and was ended."""


class Anew(NamedTuple):
    """Environment `index` was made anew after a fault, for the `count`-th time of `most`. void: the environments whose episodes are cut by
    it, which are none where the fault came as an episode had ended."""

    index: int
    message: str
    details: str
    count: int
    most: int
    void: tuple[int, ...]


class Again(NamedTuple):
    """How environments are made anew after faults: `make(index)` gives one and its time limit (None: its own); `most`: how often each."""

    make: Callable[[int], tuple[gymnasium.Env, int | None]]
    most: int


class Stepped(NamedTuple):
    """One batch step of an engine: arrays `[B]` and lists of obs arrays `[B, ...]`. `final` is `obs` itself where no episode ended."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: Leaves
    obs: Leaves


class Bounds(NamedTuple):
    """The whole numbers of a leaf's space, each bound a number or an array of the leaf's shape, in the environment's own words.

    An observation of dtype `trusted` is not held to them: it is the leaf's own, in which nothing wraps around. None where all are, for a
    category too many has no place in a network's one-hot code or is another one's row of a table.
    """

    low: Any
    high: Any
    trusted: np.dtype | None


class Engine(Protocol):
    """What steps a batch of environments. Every array it gives out is new.

    `legal` is the mask bool `[B, n]` of the observations that it gave out last, or None where its environments have none. `reached`
    `[B]` is 1.0 or 0.0 as the last `info` of the newest episode that ended in each says that its goal was reached, NaN where it does not
    say; None where no environment is asked. It is rewritten in place, and only where an episode ends: looking at every step would cost.
    `anew` are the environments that the last step made anew."""

    @property
    def legal(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def reached(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def anew(self) -> Sequence[Anew]: ...  # noqa: D102
    def reset(self, seeds: Sequence[int | None]) -> Leaves: ...  # noqa: D102
    def step(self, actions: np.ndarray) -> Stepped: ...  # noqa: D102
    def busy_with(self) -> int: ...  # noqa: D102
    def render(self) -> np.ndarray | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """The seeds of a task's environments (see the top of this file)."""
    if seed < 0:
        raise FlatironsError(f"the seed is {seed}; seeds are whole numbers from 0 up")
    return [int(word) >> 1 for word in np.random.SeedSequence(seed).generate_state(num_envs)]


def seed_anew(seed: int, count: int) -> int:
    """The seed of the environment that takes the place of one with `seed`, the `count`-th time."""
    return int(np.random.SeedSequence((seed, count)).generate_state(1)[0]) >> 1


# ------------------------------------------------------------------------------------------------- one slice of environments


class Rows:
    """Some environments of a batch, stepped one after the other by whoever calls: the loop that all engines but the vector ones share.

    `first` is the batch index of the first one. `limits[i]` truncates environment i after that many steps (None: it does so itself).
    `legal` holds their masks after each call, where they name one at their reset (`info["action_mask"]`), else None; `reached` and `anew`
    are as an `Engine` has them. With `again` an environment at fault is closed and another takes its place, begun with a seed that its own
    and the count give; `restarts` are how often that was done to each. Its step then has the observation that was acted on for a successor,
    no reward, and is cut.
    """

    def __init__(
        self,
        envs: Sequence[gymnasium.Env],
        limits: Sequence[int | None],
        first: int = 0,
        again: Again | None = None,
        restarts: Sequence[int] | None = None,
    ) -> None:
        self.envs = list(envs)
        for env in self.envs:
            diverge_openly(env)
        self.first = first
        self.at = 0
        self._steps = [env.step for env in self.envs]
        self._limits = [sys.maxsize if limit is None else limit for limit in limits]
        self._elapsed = [0] * len(self.envs)
        space = self.envs[0].observation_space
        self._leaves = [
            (path, get, spec, spaces.offset(leaf), _kinds(spec), _limits(spec), _bounds(spec, leaf))
            for path, get, spec, leaf in spaces.leaves(space)
        ]
        _, _, spec, _, _, held, bounds = self._leaves[0]
        self._single = isinstance(space, gymnasium.spaces.Box) and held is None and (bounds is None or bounds.trusted is not None)
        self._shape, self._plain = spec.shape, _plain(spec)
        choices = spaces.choices(spaces.action_spec(self.envs[0].action_space))
        self._num_choices = sum(choices)
        self._parts = [0, *itertools.accumulate(choices)][:-1]
        self._masked: bool | None = None
        self.legal: np.ndarray | None = None
        self.reached = np.full(len(self.envs), np.nan)
        self.anew: list[Anew] = []
        self.restarts = [0] * len(self.envs) if restarts is None else list(restarts)
        self._again = again
        self._seeds = [0] * len(self.envs)
        self._before: Leaves = []

    def fresh(self) -> Leaves:
        """New arrays for the observations of these environments."""
        return [np.empty((len(self.envs), *spec.shape), spec.dtype) for _, _, spec, *_ in self._leaves]

    def reset(self, seeds: Sequence[int | None], out: Leaves) -> None:
        """Reset every environment, with its seed or carrying on its own generator, into rows `0 ... n-1` of `out`."""
        self.legal = self._no_masks()
        for row, seed in enumerate(seeds):
            self._seeds[row] = self._seeds[row] if seed is None else seed
            self._reset(row, seed, out)
        if not self._masked:
            self.legal = None
        if self._again is not None:
            self._before = [array.copy() for array in out]

    def _no_masks(self) -> np.ndarray:
        return np.empty((len(self.envs), self._num_choices), np.bool_)

    def step(
        self, actions: Sequence[Any], reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, out: Leaves
    ) -> list[tuple[int, Leaves]]:
        """Step every environment into the rows of the arrays; where an episode ended, `out` gets the start of the next.

        Returns `(row, final obs arrays)` of those that ended.
        """
        finals: list[tuple[int, Leaves]] = []
        if self._masked:
            self.legal = self._no_masks()
        if self._again is None:
            self._step_from(0, actions, reward, terminated, truncated, out, finals)
            return finals
        self.anew, row = [], 0
        while row < len(self.envs):
            try:
                self._step_from(row, actions, reward, terminated, truncated, out, finals)
                break
            except EnvFault as fault:
                row = self.at
                ended = bool(finals) and finals[-1][0] == row
                self._make_anew(row, fault, self._again, out, () if ended else (self.first + row,))
                if not ended:
                    finals.append((row, [array[row].copy() for array in self._before]))
                    reward[row], terminated[row], truncated[row], self.reached[row] = 0.0, False, True, np.nan
                row += 1
        self._before = [array.copy() for array in out]
        return finals

    def _make_anew(self, row: int, fault: EnvFault, again: Again, out: Leaves, void: tuple[int, ...]) -> None:
        """Put another environment in the place of one at fault, and begin its first episode. Raises the last fault where that was done too
        often already."""
        said, details = fault.message, fault.details
        while True:
            if self.restarts[row] >= again.most:
                raise EnvFault(fault.index, f"{fault.message} (made anew {again.most} times before)", fault.details)
            self.restarts[row] += 1
            with contextlib.suppress(Exception):
                self.envs[row].close()
            try:
                env, limit = again.make(self.first + row)
                diverge_openly(env)
                self.envs[row], self._steps[row], self._limits[row] = env, env.step, sys.maxsize if limit is None else limit
                self._reset(row, seed_anew(self._seeds[row], self.restarts[row]), out)
                break
            except FlatironsError:
                raise
            except EnvFault as later:
                fault = later
            except (Exception, SystemExit) as error:
                fault = EnvFault(self.first + row, f"it could not be made anew: {_said(error)}", traceback.format_exc())
        self.anew.append(Anew(self.first + row, said, details, self.restarts[row], again.most, void))

    def _step_from(
        self, begin: int, actions: Sequence[Any], reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, out: Leaves,
        finals: list[tuple[int, Leaves]],
    ) -> None:  # fmt: skip
        """Step the environments from row `begin` on; those whose episodes ended are added to `finals`."""
        elapsed, limits, single, masked, careful = self._elapsed, self._limits, self._single, self._masked, self._again is not None
        first_out, shape, plain = out[0], self._shape, self._plain
        row = begin
        try:
            for row, step in enumerate(self._steps[begin:], begin):
                self.at = row
                result = step(actions[row])
                if len(result) != 5:
                    raise EnvFault(self.first + row, _tuple_message("step", result, "(obs, reward, terminated, truncated, info)"))
                obs, value, over, cut, info = result
                if single and type(obs) is np.ndarray and obs.shape == shape and obs.dtype.char in plain:
                    first_out[row] = obs
                else:
                    self._put(row, obs, out)
                reward[row] = value if type(value) is float else self._number(row, value)
                if careful:
                    self._demand_finite(row, out, reward[row])
                count = elapsed[row] + 1
                elapsed[row] = count
                if over is not True and over is not False:
                    over = self._flag(row, "terminated", over)
                if cut is not True and cut is not False:
                    cut = self._flag(row, "truncated", cut)
                cut = cut or count >= limits[row]
                terminated[row] = over
                truncated[row] = cut
                if over or cut:
                    self.reached[row] = _reached(info)
                    finals.append((row, [array[row].copy() for array in out]))
                    self._reset(row, None, out)
                elif masked:
                    self._put_mask(row, info)
        except (EnvFault, FlatironsError):
            raise
        except (Exception, SystemExit) as error:
            raise EnvFault(self.first + row, f"step raised {_said(error)}", traceback.format_exc()) from error

    def _demand_finite(self, row: int, out: Leaves, reward: float) -> None:
        """What a batch as a whole is looked at for otherwise: who makes environments anew must know whose number it is at once."""
        for array, (path, *_) in zip(out, self._leaves, strict=True):
            if array.dtype.kind == "f" and not spaces.all_finite(array[row]):
                raise EnvFault(self.first + row, f"{path} holds numbers that are not finite")
        if not abs(reward) <= FLOAT32_LARGEST:
            raise EnvFault(self.first + row, f"the reward is {reward}, not a finite float32")

    def _reset(self, row: int, seed: int | None, out: Leaves) -> None:
        self.at = row
        self._elapsed[row] = 0
        try:
            result = self.envs[row].reset(seed=seed) if seed is not None else self.envs[row].reset()
        except FlatironsError:
            raise
        except (Exception, SystemExit) as error:
            raise EnvFault(self.first + row, f"reset raised {_said(error)}", traceback.format_exc()) from error
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise EnvFault(self.first + row, _tuple_message("reset", result, "(obs, info)"))
        self._put(row, result[0], out)
        if self._again is not None:
            self._demand_finite(row, out, 0.0)
        named = self._num_choices > 0 and spaces.MASK in result[1]
        if self._masked is None:
            self._masked = named
        if self._masked:
            self._put_mask(row, result[1])
        elif named:
            raise EnvFault(
                self.first + row, f"its reset gives info[{spaces.MASK!r}] and another environment's did not; give one always, or never"
            )

    def _put_mask(self, row: int, info: Any) -> None:
        mask = info.get(spaces.MASK) if isinstance(info, dict) else None
        if mask is None:
            raise EnvFault(self.first + row, f"info[{spaces.MASK!r}] is missing, and the first reset gave one; give one always, or never")
        # Of several choices Gymnasium's spaces take a tuple of masks.
        flags = np.hstack(mask) if isinstance(mask, tuple) else np.asarray(mask)
        if flags.shape != (self._num_choices,) or flags.dtype.kind not in "bui":
            raise EnvFault(
                self.first + row,
                f"info[{spaces.MASK!r}] is {flags.dtype}{list(flags.shape)}; return {self._num_choices} flags, bool or 0 and 1",
            )
        assert self.legal is not None
        self.legal[row] = flags
        if not np.logical_or.reduceat(self.legal[row], self._parts).all():
            raise EnvFault(
                self.first + row, f"info[{spaces.MASK!r}] leaves no legal action; a state without a legal action must end the episode"
            )

    def _put(self, row: int, obs: Any, out: Leaves) -> None:
        for array, (path, get, spec, shift, kinds, held, bounds) in zip(out, self._leaves, strict=True):
            try:
                value = get(obs)
            except (KeyError, IndexError, TypeError):
                raise EnvFault(
                    self.first + row, f"{path} is missing from the observation; return every part that the observation space names"
                ) from None
            if isinstance(value, (bool, int, float, np.generic)) and spec.shape == ():
                value = np.asarray(value)
            if not isinstance(value, np.ndarray):
                raise EnvFault(
                    self.first + row, f"{path} is a {type(value).__name__}; return a numpy array of the observation space's shape and dtype"
                )
            if value.shape != spec.shape:
                raise EnvFault(self.first + row, f"{path} has shape {value.shape} where the observation space says {spec.shape}")
            if value.dtype.kind not in kinds:
                raise EnvFault(self.first + row, f"{path} has dtype {value.dtype} where the observation space says {spec.dtype}")
            if bounds is not None and value.dtype != bounds.trusted:
                self._demand_inside(row, path, value, bounds)
            value = value if shift is None else value - shift
            if held is not None and value.size and not held.min <= value.min() <= value.max() <= held.max:
                raise EnvFault(
                    self.first + row,
                    f"{path} runs from {value.min()} to {value.max()}, and {spec.dtype}, in which it is kept, holds {held.min} to "
                    f"{held.max}; return floats, or scale it down",
                )
            array[row] = value

    def _demand_inside(self, row: int, path: str, value: np.ndarray, bounds: Bounds) -> None:
        low, high, _ = bounds
        # NumPy takes ten times as long to compare one number.
        if value.ndim == 0 and low <= int(value) <= high:
            return
        outside = np.asarray((value < low) | (value > high))
        if outside.any():
            at = tuple(np.argwhere(outside)[0].tolist())
            least, largest = (np.broadcast_to(bound, value.shape)[at] for bound in (low, high))
            raise EnvFault(
                self.first + row,
                f"{path}{list(at) if at else ''} holds {value[at]}, outside {least} ... {largest} of its space; mend the space or the "
                "observation",
            )

    def _number(self, row: int, value: Any) -> float:
        if _is_number(value):
            return float(value)
        what = f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise EnvFault(self.first + row, f"the reward is {what}; return one float")

    def _flag(self, row: int, name: str, value: Any) -> bool:
        if isinstance(value, np.bool_) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind == "b"):
            return bool(value)
        raise EnvFault(self.first + row, f"{name} is {value!r:.60}, a {type(value).__name__}; return True or False")

    def render(self) -> np.ndarray | None:
        """The frame of the first environment, uint8 `[H, W, 3]`, or None where it shows a window itself."""
        frame: Any = self.envs[0].render()
        return None if frame is None else np.array(frame, np.uint8)

    def close(self) -> None:
        """Close every environment; one that fails to close is let go."""
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_)) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiub"
    )


def _reached(info: Any) -> float:
    """1.0 or 0.0 as an `info` says that the goal is reached, NaN where it does not say."""
    said: Any = next((info[name] for name in REACHED if name in info), None) if isinstance(info, dict) else None
    return float(said > 0) if _is_number(said) else np.nan


def _kinds(spec: ArraySpec) -> str:
    """The numpy kinds that an environment may return for a spec."""
    return {"f": "f", "i": "iu", "u": "ui", "b": "b"}.get(np.dtype(spec.dtype).kind, "") + ("b" if spec.dtype == "int8" else "")


def _plain(spec: ArraySpec) -> str:
    """The characters of the dtypes that are copied as they come: any float's, and of whole numbers the spec's own, which cannot wrap."""
    dtype = np.dtype(spec.dtype)
    return np.typecodes["Float"] if dtype.kind == "f" else dtype.char


def _bounds(spec: ArraySpec, space: gymnasium.Space) -> Bounds | None:
    """What holds a leaf's whole numbers to its space; None for other leaves."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind not in "iu":
        return None
    if isinstance(space, gymnasium.spaces.Discrete):
        return Bounds(int(space.start), int(space.start) + int(space.n) - 1, None)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return Bounds(space.start, space.start + (space.nvec - 1), None)
    trusted = None if is_category(spec) else dtype
    if isinstance(space, gymnasium.spaces.Box) and space.low.size:
        return Bounds(int(space.low.min()), int(space.high.max()), trusted)
    return Bounds(0, 1, trusted)


def _limits(spec: ArraySpec) -> np.iinfo | None:
    """What the whole numbers of a spec may be, where those of its space go beyond and would wrap around; else None."""
    if np.dtype(spec.dtype).kind not in "iu":
        return None
    held = np.iinfo(spec.dtype)
    return held if spec.low < held.min or spec.high > held.max else None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tuple_message(method: str, result: Any, expected: str) -> str:
    if method == "step" and isinstance(result, tuple) and len(result) == 4:
        return f"step returned 4 values as old Gym did; return {expected} (terminated is a true end, truncated a time limit)"
    found = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
    return f"{method} returned {found}; return {expected}"


def _stepped(reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, finals: list[tuple[int, Leaves]], obs: Leaves) -> Stepped:
    """The step of a batch from its arrays and the final observations `(row, arrays)` of the episodes that ended."""
    if not finals:
        return Stepped(reward, terminated, truncated, obs, obs)
    final = [array.copy() for array in obs]
    for row, parts in finals:
        for array, part in zip(final, parts, strict=True):
            array[row] = part
    return Stepped(reward, terminated, truncated, final, obs)


# ------------------------------------------------------------------------------------------------------------- the engines


class SerialEngine:
    """All environments in this thread, one after the other."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._decode = spaces.decode_actions(rows.envs[0].action_space)

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Reset all, each with its seed; new obs arrays `[B, ...]`."""
        obs = self.rows.fresh()
        self.rows.reset(seeds, obs)
        return obs

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B, ...]`."""
        count = len(actions)
        obs = self.rows.fresh()
        reward, terminated, truncated = np.empty(count), np.empty(count, np.bool_), np.empty(count, np.bool_)
        finals = self.rows.step(self._decode(actions), reward, terminated, truncated, obs)
        return _stepped(reward, terminated, truncated, finals, obs)

    @property
    def legal(self) -> np.ndarray | None:
        """The masks, or None."""
        return self.rows.legal

    @property
    def reached(self) -> np.ndarray:
        """Whether goals were reached."""
        return self.rows.reached

    @property
    def anew(self) -> Sequence[Anew]:
        """The environments that the last step made anew."""
        return self.rows.anew

    def busy_with(self) -> int:
        """The environment that is being stepped."""
        return self.rows.at

    def render(self) -> np.ndarray | None:
        """The frame of environment 0."""
        return self.rows.render()

    def close(self) -> None:
        """Close all."""
        self.rows.close()


class ThreadEngine:
    """The batch cut into one slice per thread, for simulators that let go of Python's lock while they compute (MuJoCo does)."""

    def __init__(self, rows: Sequence[Rows]) -> None:
        self.rows = list(rows)
        self._decode = spaces.decode_actions(self.rows[0].envs[0].action_space)
        self._slices = [slice(part.first, part.first + len(part.envs)) for part in self.rows]
        self._count = sum(len(part.envs) for part in self.rows)
        self._specs = [(array.shape[1:], array.dtype) for array in self.rows[0].fresh()]
        self._inboxes: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in self.rows[1:]]
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number, (part, inbox) in enumerate(zip(self.rows[1:], self._inboxes, strict=True), 1):
            # Daemons: an environment that hangs must not keep the interpreter from ending.
            threading.Thread(target=_serve, args=(number, part, inbox, self._outbox), name=f"flatirons-env-{number}", daemon=True).start()

    def _fresh(self) -> Leaves:
        return [np.empty((self._count, *shape), dtype) for shape, dtype in self._specs]

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Reset all, each with its seed; new obs arrays `[B, ...]`."""
        obs = self._fresh()
        for part, where in zip(self.rows, self._slices, strict=True):
            part.reset(seeds[where], [array[where] for array in obs])
        return obs

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B, ...]`."""
        obs = self._fresh()
        reward, terminated, truncated = np.empty(self._count), np.empty(self._count, np.bool_), np.empty(self._count, np.bool_)
        decoded = self._decode(actions)
        jobs = [(decoded[cut], reward[cut], terminated[cut], truncated[cut], [array[cut] for array in obs]) for cut in self._slices]
        for inbox, job in zip(self._inboxes, jobs[1:], strict=True):
            inbox.put(job)
        found: list[Any] = [None] * len(jobs)
        try:
            found[0] = self.rows[0].step(*jobs[0])
        except (EnvFault, FlatironsError) as error:
            found[0] = error
        for _ in self._inboxes:
            number, answer = self._outbox.get()
            found[number] = answer
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        finals = [(part.first + row, arrays) for part, rows in zip(self.rows, found, strict=True) for row, arrays in rows]
        return _stepped(reward, terminated, truncated, finals, obs)

    @property
    def legal(self) -> np.ndarray | None:
        """The masks, or None."""
        return all_masks([(part.first, part.legal) for part in self.rows])

    @property
    def reached(self) -> np.ndarray:
        """Whether goals were reached."""
        return np.concatenate([part.reached for part in self.rows])

    @property
    def anew(self) -> Sequence[Anew]:
        """The environments that the last step made anew."""
        return [one for part in self.rows for one in part.anew]

    def busy_with(self) -> int:
        """The environment that the first thread is stepping."""
        return self.rows[0].first + self.rows[0].at

    def render(self) -> np.ndarray | None:
        """The frame of environment 0."""
        return self.rows[0].render()

    def stop(self) -> None:
        """End the threads; the environments stay open."""
        for inbox in self._inboxes:
            inbox.put(None)

    def close(self) -> None:
        """End the threads and close all."""
        self.stop()
        for part in self.rows:
            part.close()


def all_masks(parts: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """The masks of all slices `(first environment, masks or None)`, None where none has any. Raises EnvFault where they are at odds."""
    masks = [legal for _, legal in parts if legal is not None]
    if not masks:
        return None
    if len(masks) < len(parts):
        first = next(first for first, legal in parts if legal is None)
        raise EnvFault(first, f"info[{spaces.MASK!r}] is missing, and other environments give one; give one always, or never")
    return np.concatenate(masks)


def _serve(number: int, rows: Rows, inbox: queue.SimpleQueue[Any], outbox: queue.SimpleQueue[Any]) -> None:
    while (job := inbox.get()) is not None:
        try:
            outbox.put((number, rows.step(*job)))
        except Exception as error:
            outbox.put((number, error))


class CartPoleEngine:
    """Gymnasium's own vector CartPole, reset in the step that ends an episode and seeded one environment at a time.

    Gymnasium's class resets in the step *after* the end and ignores that step's action. Here its flags of ended episodes are cleared after
    every step and the ended columns drawn anew at once, each from its own generator as `CartPoleEnv.reset` draws: equal to stepping
    `CartPoleEnv` objects, bit for bit.
    """

    legal = None
    reached = None
    anew: Sequence[Anew] = ()

    def __init__(self, num_envs: int, max_episode_steps: int, sutton_barto_reward: bool = False) -> None:
        from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

        self._env: Any = CartPoleVectorEnv(num_envs, max_episode_steps=max_episode_steps, sutton_barto_reward=sutton_barto_reward)
        self._env.action_space = _AnyAction()
        self._random = [np.random.default_rng() for _ in range(num_envs)]

    def _draw(self, index: int) -> np.ndarray:
        return self._random[index].uniform(low=-0.05, high=0.05, size=(4,))

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Reset all, each with its seed; new obs arrays `[B, 4]`."""
        for index, seed in enumerate(seeds):
            if seed is not None:
                self._random[index] = np_random(seed)[0]
        self._env.reset()
        self._env.state = np.stack([self._draw(index) for index in range(len(seeds))], axis=1)
        return [self._env.state.T.astype(np.float32)]

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B]`."""
        env = self._env
        final, reward, terminated, truncated, _ = env.step(actions)
        obs, ended = final, env.prev_done
        if np.count_nonzero(ended):
            obs = final.copy()
            for index in ended.nonzero()[0].tolist():
                env.state[:, index] = start = self._draw(index)
                obs[index] = start
            env.steps[ended] = 0
            env.prev_done = np.zeros_like(ended)
        return Stepped(reward, terminated, truncated, [final], [obs])

    def busy_with(self) -> int:
        """Always 0: the batch is stepped as one."""
        return 0

    def render(self) -> np.ndarray | None:
        """Refused: a task that is drawn is stepped one environment at a time."""
        raise FlatironsError("this batch of CartPole cannot be drawn; make the task with render_mode='rgb_array'")

    def close(self) -> None:
        """Close the vector environment."""
        self._env.close()


class _AnyAction:
    """In place of the vector environment's action space: HostBatch has checked the actions, and a second check costs 5 us a step."""

    def contains(self, _: Any) -> bool:
        return True


# ------------------------------------------------------------------------------------------------------------- the task


class HostBatch:
    """A batch of host environments: a `HostTask`.

    `current` is the TimeStep to act on next; `step` returns the Outcome, whose `next_obs` is the true successor even where an episode
    ended, and the new TimeStep, which there holds the next episode's start with `first=True`. Arrays handed out are new and never rewritten
    (`next_obs` and the TimeStep's obs are the same arrays in a step in which no episode ended). Rewards and float observations are float32.

    Where the environments give `info["action_mask"]` at reset and after every step, it is the TimeStep's `legal`, else `legal` is `()`.

    Every fault of an environment (it raised, hung, gave NaN, infinity, a wrong shape or dtype) is a FlatironsError that names the
    environment's index, the step and its last action; after one the task refuses to go on. Where its engine makes environments anew the
    fault is said on stderr instead, and `void` has those whose episodes it cut in the last step.
    """

    in_graph = False
    recipe: Any = None

    def __init__(
        self,
        name: str,
        engine: Engine,
        obs_space: gymnasium.Space,
        spec: Spec,
        num_envs: int,
        *,
        seed: int = 0,
        notes: Sequence[str] = (),
        timeout_s: float | None = 60.0,
    ) -> None:
        self.name, self.num_envs, self.spec = name, num_envs, spec
        self.notes = tuple(notes)
        self.engine = engine
        self.timeout_s = timeout_s
        self.calls = 0
        """Odd while an environment has control: what the watchdog looks at."""
        self._space = obs_space
        self._single = not isinstance(obs_space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple))
        self._paths = [path for path, *_ in spaces.leaves(obs_space)]
        self._check_action = spaces.action_checker(spec.action)
        self._num_steps = 0
        self._last: np.ndarray | None = None
        self._failed = ""
        self.void: frozenset[int] = frozenset()
        self._void_log: list[tuple[int, int]] = []
        self.current: TimeStep
        if timeout_s is not None:
            WATCHDOG.watch(self)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> TimeStep:
        """Start an episode in every environment: seeded (see the top of the file), or carrying on each environment's generator."""
        self._refuse_if_failed()
        seeds = [None] * self.num_envs if seed is None else env_seeds(seed, self.num_envs)
        self._last = None
        self.calls += 1
        try:
            leaves = self.engine.reset(seeds)
            legal = self.engine.legal
        except EnvFault as fault:
            raise self._error(fault) from fault.__cause__
        except FlatironsError as error:
            self._failed = str(error)
            raise
        finally:
            self.calls += 1
        for path, array in zip(self._paths, leaves, strict=True):
            self._demand_finite(path, array)
        self._masked = legal is not None
        self.current = TimeStep(self._build(leaves), () if legal is None else legal, np.ones(self.num_envs, np.bool_), ())
        return self.current

    def step(self, action: Any) -> tuple[Outcome, TimeStep]:
        """Take one action in every environment: `action` int32 `[B]` or `[B, k]`, or float32 `[B, n]` (clipped to the bounds)."""
        if self._failed:
            self._refuse_if_failed()
        actions = self._check_action(action, self.num_envs)
        self._last = actions
        self.calls += 1
        try:
            reward, terminated, truncated, final, obs = self.engine.step(actions)
        except EnvFault as fault:
            raise self._error(fault) from fault.__cause__
        except FlatironsError as error:
            self._failed = str(error)
            raise
        finally:
            self.calls += 1
        if self.void or self.engine.anew:
            self._say_anew()
        if np.count_nonzero(np.abs(reward) <= FLOAT32_LARGEST) != self.num_envs:
            self._demand_float32(reward)
        for path, array in zip(self._paths, final, strict=True):
            if array.dtype.kind == "f" and not spaces.all_finite(array):
                self._demand_finite(path, array)
        first = terminated | truncated
        if final is obs or final[0] is obs[0]:
            next_obs = after = self._build(obs)
        else:
            for path, array in zip(self._paths, obs, strict=True):
                self._demand_finite(path, array)
            next_obs, after = self._build(final), self._build(obs)
        self._num_steps += 1
        self.current = TimeStep(after, self.engine.legal if self._masked else (), first, ())
        return Outcome(reward.astype(np.float32, copy=False), next_obs, terminated, truncated), self.current

    @property
    def num_steps(self) -> int:
        """Batch steps so far."""
        return self._num_steps

    def pop_void(self) -> list[tuple[int, int]]:
        """(batch step from 0 up, environment) of the episodes that faults cut since the last call."""
        found, self._void_log = self._void_log, []
        return found

    def _say_anew(self) -> None:
        self.void = frozenset(index for one in self.engine.anew for index in one.void)
        self._void_log += [(self._num_steps, index) for index in sorted(self.void)]
        for one in self.engine.anew:
            if one.details:
                print(one.details, file=sys.stderr, end="")
            others = f", with environments {', '.join(map(str, set(one.void) - {one.index}))}" if len(one.void) > 1 else ""
            print(
                f"flatirons: WARNING: {self.where(one.index)}: {one.message}; it was made anew{others} ({one.count} of {one.most} times)",
                file=sys.stderr,
            )

    @property
    def reached(self) -> np.ndarray | None:
        """Whether the goal was reached where an episode has ended, as `Engine` has it: for a look after the step that ends one."""
        return self.engine.reached

    def render(self) -> np.ndarray | None:
        """The frame of environment 0, uint8 `[H, W, 3]` (render_mode="rgb_array"), or None where a window shows it ("human")."""
        return self.engine.render()

    def close(self) -> None:
        """Close the environments; closing twice is fine."""
        WATCHDOG.forget(self)
        self._failed = self._failed or f"{self.name} is closed; make the task again"
        self.engine.close()

    def where(self, index: int) -> str:
        """The words that name an environment in an error: the task, the index, the step and the last action."""
        last = (
            "none since the reset" if self._last is None else np.array2string(self._last[index], precision=5, separator=", ", threshold=12)
        )
        return f"environment {index} of {self.name}, at step {self._num_steps} (last action {last})"

    def place(self) -> str:
        """The words that name the environment that has control."""
        return self.where(self.engine.busy_with())

    def _build(self, leaves: Leaves) -> Any:
        return leaves[0] if self._single else spaces.build(self._space, iter(leaves))

    def _error(self, fault: EnvFault) -> FlatironsError:
        if fault.details:
            print(fault.details, file=sys.stderr, end="")
        self._failed = f"{self.where(fault.index)}: {fault.message}"
        return FlatironsError(self._failed)

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise FlatironsError(f"{self.name} cannot go on after this: {self._failed}")

    def _demand_finite(self, path: str, array: np.ndarray) -> None:
        if not spaces.all_finite(array):
            at = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            inner = f"{path}{list(at[1:])}" if at[1:] else path
            raise self._error(
                EnvFault(at[0], f"{inner} is {array[at]}, not a finite number; mend the environment or end the episode before it")
            )

    def _demand_float32(self, reward: np.ndarray) -> None:
        bad = ~(np.abs(reward) <= FLOAT32_LARGEST)
        if bad.any():
            at = int(bad.argmax())
            raise self._error(EnvFault(at, f"the reward is {reward[at]}, not a finite float32; mend the environment's reward"))


# ------------------------------------------------------------------------------------------------------------- the watchdog


class Watched(Protocol):
    """What the watchdog looks at: `calls` is odd while an environment has control, `place` says in words which one."""

    timeout_s: float | None
    calls: int

    def place(self) -> str: ...  # noqa: D102


class Watchdog:
    """One thread that notices when an environment keeps control for longer than its task's `timeout_s`.

    It then writes the stacks of all threads to stderr and interrupts the main thread with a FlatironsError by a signal. If the environment
    never returns to Python (a loop in C), or was stepped outside the main thread, the process ends with status 3 after a grace of 5 s.
    Time is counted in the watchdog's own heartbeats, so a process that was suspended is not taken for one that hangs.
    """

    GRACE_S = 5.0

    def __init__(self) -> None:
        self._tasks: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._seen: weakref.WeakKeyDictionary[Watched, tuple[int, float]] = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._verdict: tuple[Watched, int, str] | None = None
        self._lock = threading.Lock()

    def watch(self, task: Watched) -> None:
        """Look after a task until it is closed or forgotten. Call from the main thread for the signal to work."""
        with self._lock:
            self._tasks.add(task)
            in_main = threading.current_thread() is threading.main_thread()
            if in_main and hasattr(signal, "SIGURG") and signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, signal.SIG_IGN, None):
                signal.signal(signal.SIGURG, self._interrupt)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="flatirons-watchdog", daemon=True)
                self._thread.start()

    def forget(self, task: Watched) -> None:
        """Stop looking after a task."""
        with self._lock:
            self._tasks.discard(task)

    def _interrupt(self, *_: Any) -> None:
        verdict, self._verdict = self._verdict, None
        if verdict is not None and verdict[0].calls == verdict[1]:
            raise FlatironsError(verdict[2])

    def _run(self) -> None:
        while True:
            with self._lock:
                tasks = list(self._tasks)
            beat = min([1.0, *(task.timeout_s / 8 for task in tasks if task.timeout_s)])
            for task in tasks:
                calls, held = self._seen.get(task, (0, 0.0))
                held = held + beat if calls == task.calls and calls % 2 else 0.0
                self._seen[task] = (task.calls, held)
                if task.timeout_s is not None and held >= task.timeout_s:
                    self._expire(task)
            del tasks
            task = None
            time.sleep(beat)

    def _expire(self, task: Watched) -> None:
        calls = task.calls
        message = (
            f"{task.place()}: it has not returned for {task.timeout_s:g} s; the stacks above show where it waits "
            "(a longer limit: timeout_s=...)"
        )
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        if hasattr(signal, "SIGURG") and signal.getsignal(signal.SIGURG) == self._interrupt:
            self._verdict = (task, calls, message)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
        waited = 0.0
        while waited < self.GRACE_S:
            time.sleep(0.05)
            waited += 0.05
            if task.calls != calls:
                return
        print(f"flatirons: {message}; it does not return to Python, so the process ends", file=sys.__stderr__ or sys.stderr, flush=True)
        os._exit(3)


WATCHDOG = Watchdog()


class Trial:
    """The use of an environment before its task exists: what the watchdog looks at meanwhile."""

    def __init__(self, place: Callable[[], str], timeout_s: float | None) -> None:
        self._place, self.timeout_s = place, timeout_s
        self.calls = 1

    def place(self) -> str:
        """The words that name the environment and what is done with it."""
        return self._place()

    def call_again(self) -> None:
        """The environment has returned and is called again, so that its time starts anew."""
        self.calls += 2


@contextlib.contextmanager
def watched(place: Callable[[], str], timeout_s: float | None) -> Iterator[Trial]:
    """Hold every call of an environment in the block to `timeout_s` (None: no limit); `place` names it in the error."""
    trial = Trial(place, timeout_s)
    if timeout_s is not None:
        WATCHDOG.watch(trial)
    try:
        yield trial
    finally:
        trial.calls += 1
        WATCHDOG.forget(trial)


# ------------------------------------------------------------------------------------------------------------- making one


class Source(NamedTuple):
    """How to make one environment again and again: `make(first)` (the first one is the one that renders).

    `remote` is what a worker process needs to do the same (JSON), or None where it cannot.
    """

    make: Callable[[bool], gymnasium.Env]
    remote: dict[str, Any] | None
    unwrap: bool


def unwrap(env: gymnasium.Env) -> tuple[gymnasium.Env, int | None]:
    """The environment without Gymnasium's TimeLimit, OrderEnforcing and PassiveEnvChecker, where it has no others, and the limit.

    `(env, None)` where there are others: it then keeps all of them.
    """
    core, limit = env, None
    while type(core) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        if type(core) is TimeLimit:
            limit = min(limit or sys.maxsize, core._max_episode_steps)
        core = core.env  # type: ignore[attr-defined]
    return (env, None) if isinstance(core, gymnasium.Wrapper) else (core, limit)


def time_limit(env: gymnasium.Env) -> int | None:
    """The time limit of an environment in steps: the shortest of its TimeLimits, or None."""
    limit = None
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            limit = min(limit or sys.maxsize, layer._max_episode_steps)
        layer = layer.env
    return limit


def frames_per_step(env: gymnasium.Env) -> int:
    """How many steps of the simulator one step of an environment lasts, where a wrapper says so (`pixels:` repeats actions); else 1."""
    return env.get_wrapper_attr("frames_per_step") if env.has_wrapper_attr("frames_per_step") else 1


def of_one_thread(env: gymnasium.Env) -> bool:
    """Whether an environment may be stepped by the thread that made it alone, as a wrapper says that draws with OpenGL in its steps."""
    return env.has_wrapper_attr("of_one_thread") and env.get_wrapper_attr("of_one_thread")


@contextlib.contextmanager
def warnings_as(notes: list[str]) -> Iterator[None]:
    """Gymnasium's warnings become notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        _, said, text = " ".join(str(warning.message).split()).replace("\x1b[0m", "").partition("WARN: ")
        if said and text not in notes:
            notes.append(text)


def diverge_openly(env: gymnasium.Env) -> None:
    """Let MuJoCo give NaN where its simulation diverges, which is then a fault that is named.

    By itself it resets its state within the step, and the transition to that start is learned from. Other trajectories stay the same.
    """
    mujoco: Any = sys.modules.get("mujoco")
    model: Any = getattr(env.unwrapped, "model", None)
    if mujoco is not None and isinstance(model, mujoco.MjModel):
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET


@contextlib.contextmanager
def quiet_mujoco(registered: Any) -> Iterator[None]:
    """Keep MuJoCo's compiler from announcing, for Gymnasium's own models, what its next release will drop (to stderr and to a file).

    Warnings of the simulation, such as an unstable state, come later and are not touched.
    """
    if not str(registered.entry_point).startswith("gymnasium.envs.mujoco"):
        yield
        return
    import mujoco

    set_handler: Any = getattr(mujoco, "set_mju_user_warning", lambda _: None)
    set_handler(lambda _: None)
    try:
        yield
    finally:
        set_handler(None)


def batch(
    name: str,
    source: Source,
    num_envs: int,
    *,
    seed: int = 0,
    vectoriser: str = "auto",
    timeout_s: float | None = 60.0,
    restarts: int = 0,
    cartpole: dict[str, Any] | None = None,
) -> HostBatch:
    """A HostBatch of `num_envs` environments from a source, with the engine that `vectoriser` names or the one that suits them.

    `restarts`: how often each is made anew after a fault. `cartpole` holds the arguments of `CartPoleEngine` where it may be used. Raises
    FlatironsError where a named vectoriser cannot serve.
    """
    again = Again(lambda index: stripped(source.make(index == 0), source.unwrap), restarts) if restarts else None
    notes: list[str] = []
    if vectoriser == "gymnasium" and cartpole is None:
        raise FlatironsError(f"Gymnasium has no vector environment of {name} whose episodes can be ended exactly; use vectoriser='auto'")
    with warnings_as(notes):
        first = _made(name, source, True, timeout_s)
    limit = time_limit(first)
    rewarded = robotics.goal_reward(first.unwrapped)
    obs_spec, action_spec = spaces.obs_spec(first.observation_space), spaces.action_spec(first.action_space)
    spec = Spec(obs_spec, action_spec, limit, frames_per_step(first), goal_reward=rewarded)
    obs_space = first.observation_space
    made: list[gymnasium.Env] = [first]

    def rest() -> tuple[list[gymnasium.Env], list[int | None]]:
        with warnings_as(notes):
            made.extend(_made(name, source, False, timeout_s) for _ in range(num_envs - len(made)))
        for index, env in enumerate(made[1:], 1):
            if env.observation_space != obs_space or env.action_space != first.action_space:
                raise FlatironsError(
                    f"environment {index} of {name} has other spaces than environment 0; all environments of a batch must be alike"
                )
        pairs = [stripped(env, source.unwrap) for env in made]
        return [env for env, _ in pairs], [limit for _, limit in pairs]

    cores = usable_cores()
    try:
        if vectoriser == "gymnasium" or (vectoriser == "auto" and cartpole is not None and num_envs >= CARTPOLE_VECTOR_FROM):
            engine: Engine = CartPoleEngine(num_envs, **(cartpole or {}))
            _close(name, made.pop(), timeout_s)
            note = (
                f"vectoriser: gymnasium (CartPoleVectorEnv, {num_envs} environments in one array, reset in the step that ends an episode)"
            )
        elif vectoriser == "processes":
            _close(name, made.pop(), timeout_s)
            engine, note = _processes(name, source, spec, obs_space, num_envs, cores, timeout_s, restarts)
        elif vectoriser == "threads":
            if of_one_thread(first):
                raise FlatironsError(f"{name} draws in the one thread that made it, so threads cannot step it; use vectoriser='auto'")
            engine, note = _threads(*rest(), cores, again)
        elif num_envs == 1 or vectoriser == "serial":
            engine = SerialEngine(Rows(*rest(), again=again))
            note = f"vectoriser: serial (one process, {num_envs} environment{'s' if num_envs > 1 else ''})"
        else:
            try:
                step_s = _step_time(name, first, timeout_s)
            except FlatironsError as fault:
                if again is None:
                    raise
                print(f"flatirons: WARNING: {fault}; it was made anew", file=sys.stderr)
                with contextlib.suppress(Exception):
                    _close(name, made.pop(), timeout_s)
                made.append(_made(name, source, True, timeout_s))
                step_s = 0.0
            speed = f"{name} steps in {step_s * 1e6:.3g} us" if step_s else f"the speed of {name} could not be measured"
            if step_s > SLOW_STEP_S and cores > 1 and source.remote is not None:
                _close(name, made.pop(), timeout_s)
                engine, note = _processes(name, source, spec, obs_space, num_envs, cores, timeout_s, restarts)
                note += f": {speed}"
            else:
                envs, limits = rest()
                engine = SerialEngine(Rows(envs, limits, again=again))
                note = f"vectoriser: serial (one process, {num_envs} environments): {speed}"
                of_mujoco = type(first.unwrapped).__module__.startswith("gymnasium.envs.mujoco")
                if num_envs >= 4 and cores > 1 and of_mujoco and not of_one_thread(first):
                    threads, threads_note = _threads(envs, limits, cores, again)
                    ratio = _faster(name, threads, engine, first.action_space, num_envs, timeout_s)
                    if ratio > 1.1:
                        engine, note = threads, f"{threads_note}: {ratio:.2g} times as fast as one thread here"
                    else:
                        threads.stop()
                if step_s > SLOW_STEP_S and cores > 1 and source.remote is None:
                    note += " (slow enough for processes, but this environment cannot be made again in another process)"
    except BaseException:
        for env in made:
            with contextlib.suppress(Exception):
                _close(name, env, timeout_s)
        raise
    # A worker that hangs is noticed and ended by the engine itself.
    limit_s = timeout_s if isinstance(engine, (SerialEngine, ThreadEngine, CartPoleEngine)) else None
    return HostBatch(name, engine, obs_space, spec, num_envs, seed=seed, notes=(note, *notes), timeout_s=limit_s)


def stripped(env: gymnasium.Env, strip: bool) -> tuple[gymnasium.Env, int | None]:
    """An environment as it is stepped, and the time limit that is then ours to keep: without its wrappers where `strip`."""
    return unwrap(env) if strip else (env, None)


def making_limit(timeout_s: float | None) -> float | None:
    """How long the making of one environment may take, where its calls may take `timeout_s`."""
    return None if timeout_s is None else max(timeout_s, START_LIMIT_S)


def _made(name: str, source: Source, first: bool, timeout_s: float | None) -> gymnasium.Env:
    try:
        with watched(lambda: f"an environment of {name}, while it was made", making_limit(timeout_s)):
            return source.make(first)
    except SystemExit as stop:
        raise FlatironsError(f"{name} cannot be made: its making raised {_said(stop)}") from stop


def _close(name: str, env: gymnasium.Env, timeout_s: float | None) -> None:
    """Close an environment that the task does without; one that fails to close is let go, one that hangs is named."""
    try:
        with watched(lambda: f"an environment of {name}, while it was closed", timeout_s):
            env.close()
    except FlatironsError:
        raise
    except Exception:
        pass


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(envs: Sequence[gymnasium.Env], limits: Sequence[int | None], cores: int, again: Again | None) -> tuple[ThreadEngine, str]:
    count = max(1, min(cores, len(envs)))
    edges = np.linspace(0, len(envs), count + 1).astype(int)
    rows = [Rows(envs[a:b], limits[a:b], int(a), again) for a, b in itertools.pairwise(edges)]
    return ThreadEngine(rows), f"vectoriser: threads ({count} threads, {len(envs)} environments)"


def _processes(
    name: str, source: Source, spec: Spec, obs_space: gymnasium.Space, num_envs: int, cores: int, timeout_s: float | None, restarts: int
) -> tuple[Engine, str]:
    from flatirons.envs.worker import ProcessEngine

    if source.remote is None:
        raise FlatironsError(
            f"{name} cannot be made in another process (its class or factory is not importable from a module); "
            "move it into a module of its own, or use vectoriser='serial'"
        )
    count = max(1, min(cores, num_envs))
    engine = ProcessEngine(source.remote, source.unwrap, obs_space, spec, num_envs, count, timeout_s, restarts)
    return engine, f"vectoriser: processes ({count} workers, {num_envs} environments)"


def _step_time(name: str, env: gymnasium.Env, timeout_s: float | None, budget_s: float = 0.02) -> float:
    """Seconds that one step takes with random actions, resets apart: the median over about 20 ms (at least three steps)."""
    space = env.action_space
    rng = np.random.default_rng(0)
    times: list[float] = []
    begun = time.perf_counter()
    try:
        with watched(lambda: f"environment 0 of {name}, while its speed was measured, after {len(times)} steps", timeout_s) as trial:
            about: Any = env.reset(seed=0)
            while len(times) < 3 or time.perf_counter() - begun < budget_s:
                action = spaces.random_action(space, about, rng)
                trial.call_again()
                start = time.perf_counter()
                about = result = env.step(action)
                times.append(time.perf_counter() - start)
                if len(result) == 5 and (result[2] or result[3]):
                    trial.call_again()
                    about = env.reset()
    except FlatironsError:
        raise
    except (Exception, SystemExit) as error:
        print(traceback.format_exc(), file=sys.stderr, end="")
        raise FlatironsError(
            f"environment 0 of {name} failed while its speed was measured, after {len(times)} steps: {_said(error)}"
        ) from error
    # Others on the machine make some steps slow, never fast; the first steps warm up.
    return float(np.median(times))


def _faster(
    name: str,
    a: Engine,
    b: Engine,
    action_space: gymnasium.Space,
    num_envs: int,
    timeout_s: float | None,
    rounds: int = 3,
    round_s: float = 0.005,
) -> float:
    """How many times as fast engine `a` steps as engine `b`, in turn, by the best round of each (about 30 ms in all); 0 where an
    environment fails meanwhile, which is no reason to choose `a`."""
    rng = np.random.default_rng(0)
    spec = spaces.action_spec(action_space)
    best = {id(a): np.inf, id(b): np.inf}
    engine = a
    try:
        with watched(lambda: f"environment {engine.busy_with()} of {name}, while threads were tried", timeout_s) as trial:
            a.reset(env_seeds(0, num_envs))
            for engine in [a, b] * rounds:
                start, count = time.perf_counter(), 0
                while count < 2 or time.perf_counter() - start < round_s:
                    trial.call_again()
                    engine.step(spaces.random_batch(spec, num_envs, rng))
                    count += 1
                best[id(engine)] = min(best[id(engine)], (time.perf_counter() - start) / count)
    except EnvFault:
        return 0.0
    return best[id(b)] / best[id(a)]
