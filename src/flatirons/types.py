"""The words every room of the house shares: specs, what flows between environment and learner, and the System contract.

Nothing here computes. A batch of environments has a leading axis `B` (num_envs), a trajectory has `[T, B, ...]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import jax

    Array = jax.Array | np.ndarray
    Key = jax.Array
else:
    # Not imported here, so that an environment's worker process starts without JAX.
    Array = Key = Any

PyTree = Any
Metrics = dict[str, Any]
"""Scalars by name. All are averaged over the turns of a report, except `metrics["episodes"]`, an `Episodes`, which is summed."""


class FlatironsError(Exception):
    """An error of the user's input or surroundings, said in one sentence that names what was wrong and what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """


# ---------------------------------------------------------------------------------------------------------------- specs


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of an observation, without the batch axis.

    `stack > 1` says that axis 0 is a stack of that many consecutive frames, oldest first, so that replay stores each frame once. `start` is
    what the environment itself calls the first value of each whole number, flat, where it does not count from 0 as this spec does.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -np.inf
    high: float = np.inf
    stack: int = 1
    start: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 ... n-1, int32, shape (). `start` is what the environment itself calls the first of them."""

    n: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of discrete actions, int32, shape (len(nvec),), each from 0 up.

    `start` is what the environment itself calls the first of each, `()` where that is 0; `raw_shape` the shape of its own actions where
    that is another.
    """

    nvec: tuple[int, ...]
    start: tuple[int, ...] = ()
    raw_shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Box:
    """Continuous actions, float32, shape (len(low),). A task clips what it is given to these bounds at its door.

    `raw_shape` is the shape of the environment's own actions where that is another.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    raw_shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return (len(self.low),)


ActionSpec = Discrete | MultiDiscrete | Box


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What a system must know of a task. `obs` is an `ArraySpec` or a (nested) dict of them; its pytree shape is that of obs.

    `frames_per_step` is how many frames of the game one decision lasts, where the task skips frames. `goal_reward(achieved, desired)`, on
    JAX arrays `[..., d]`, is the reward of a task that pursues goals, where it is known.
    """

    obs: Any
    action: ActionSpec
    max_episode_steps: int | None = None
    frames_per_step: int = 1
    goal_reward: Callable[[Any, Any], Any] | None = None


# ------------------------------------------------------------------------------------------------------------- the flow


class TimeStep(NamedTuple):
    """What a policy sees. Leading axis `[B]` everywhere.

    obs: pytree of `[B, ...]`. legal: bool `[B, n]`, True = legal, or `()` when every action is (MultiDiscrete: `[B, sum of nvec]`, the
    choices side by side; each needs a legal entry). first: bool `[B]`, True on the first step of an episode. model: the environment's own
    state in-graph (for planning), `()` on a host.
    """

    obs: Any
    legal: Any
    first: Any
    model: Any


class Outcome(NamedTuple):
    """What an action led to, `[B]`. `next_obs` is the true successor, taken before any reset."""

    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any


class Transition(NamedTuple):
    """The learner's row, `[T, B, ...]` in a trajectory. `first` marks the first step of an episode; `extras` is the policy's."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    first: Any
    legal: Any
    extras: Any


class Episodes(NamedTuple):
    """Sums over the episodes that ended: count, undiscounted returns, lengths in decisions. Added up, never averaged.

    `stuck` counts decisions in which no action was legal, `()` where a task has no masks; `broken` the numbers of observations and rewards
    that were NaN or infinite, `()` on a host, which refuses each at its door. One of either is an error."""

    count: Any
    return_sum: Any
    length_sum: Any
    stuck: Any = ()
    broken: Any = ()


class Policy(NamedTuple):
    """`reset(num_envs) -> carry`; `act(key, timestep, carry) -> (action [B, ...], carry, extras)`."""

    reset: Callable[[int], Any]
    act: Callable[[Key, TimeStep, Any], tuple[Any, Any, Any]]


class Network(NamedTuple):
    """A torso of a person's own: `init(key, obs_spec) -> params`, `apply(params, obs [..., *obs]) -> embedding [..., features]`.

    Params hold arrays only. `obs` comes as the environment gave it (a pytree for Dict observations), any leading axes.
    """

    init: Callable[[Key, Any], Any]
    apply: Callable[[Any, Any], Any]


# ------------------------------------------------------------------------------------------------------------- the door


class InGraphTask(Protocol):
    """A batch of environments whose steps are JAX computations. It resets itself: `step` returns the state of the next episode's start
    where one ended, and `Outcome.next_obs` of the state before that reset."""

    name: str
    num_envs: int
    spec: Spec
    in_graph: bool  # True
    notes: tuple[str, ...]

    def reset(self, key: Key) -> PyTree: ...  # noqa: D102
    def observe(self, env: PyTree) -> TimeStep: ...  # noqa: D102
    def step(self, key: Key, env: PyTree, action: Any) -> tuple[PyTree, Outcome]: ...  # noqa: D102
    def resized(self, num_envs: int) -> InGraphTask: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class HostTask(Protocol):
    """A batch of environments outside JAX (NumPy in, NumPy out), reset automatically. `current` is the TimeStep to act on next; arrays
    handed out are never written again. `recipe` makes others of it (`flatirons.envs.Recipe`), or is None."""

    name: str
    num_envs: int
    spec: Spec
    in_graph: bool  # False
    notes: tuple[str, ...]
    current: TimeStep
    recipe: Any

    def reset(self, seed: int | None = None) -> TimeStep: ...  # noqa: D102
    def step(self, action: np.ndarray) -> tuple[Outcome, TimeStep]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


Task = InGraphTask | HostTask


class System(Protocol):
    """A paper's method as a module with these names (no base class). See docs/design.md."""

    Config: type
    State: type
    PRESETS: Mapping[str, Preset]

    def check(self, config: Any, task: Task) -> None: ...  # noqa: D102
    def init(self, config: Any, task: Task, key: Key) -> Any: ...  # noqa: D102
    def actor(self, state: Any) -> Any: ...  # noqa: D102
    def policy(self, config: Any, task: Task, actor: Any, *, greedy: bool) -> Policy: ...  # noqa: D102
    def loss(self, config: Any, task: Task, params: Any, batch: Any) -> tuple[Any, Any]: ...  # noqa: D102
    def update(self, config: Any, task: Task, state: Any, experience: Any, *, loss: Callable = ...) -> tuple[Any, Metrics]: ...  # noqa: D102
    def step(self, config: Any, task: Task, state: Any, *, update: Callable = ...) -> tuple[Any, Metrics]: ...  # noqa: D102
    def steps_per_turn(self, config: Any) -> int: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named Config: a system's settings from a paper, or tuned for some tasks.

    `tasks` are glob patterns of the task names it is the automatic choice for: of its system, or with `variant_of` of the preset of that
    name, whose place it takes there. With `on_top` the config says only which method it is: it comes on top of the preset that the
    task gets by itself. `env` are options of the environment that it is meant with, where a person gives no others. What its benchmark
    measured is in `run/measured.json`.
    """

    doc: str
    config: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    variant_of: str = ""
    on_top: bool = False
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)


C = TypeVar("C")


def config(cls: type[C]) -> type[C]:
    """Make a class a frozen, keyword-only dataclass and a pytree: `float` (and `float | None`) fields are leaves, all others static.

    One trace then serves every learning rate, and `vmap` over a Config is a sweep; shapes depend on the static fields alone.
    """
    import jax

    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    floats = [f.name for f in dataclasses.fields(cast(Any, cls)) if str(getattr(f.type, "__name__", f.type)) in ("float", "float | None")]
    static = [f.name for f in dataclasses.fields(cast(Any, cls)) if f.name not in floats]
    jax.tree_util.register_dataclass(cls, data_fields=floats, meta_fields=static)
    return cls
