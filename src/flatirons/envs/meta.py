"""Distributions over tasks, p(T), for learning to learn: `meta:NAME`.

A task is T = (L, q(x_1), q(x_{t+1} | x_t, a_t), H) (Finn et al. 2017, section 2.1): a loss, the first observation, the next one, and how
many there are. Here p(T) is an environment like any other, whose episodes each draw a task that the policy is not told; besides, it can be
asked for tasks (`draw`), and be held to them. With H = 1 it gives examples with their answers, with H > 1 it is acted in. What `draw`
returns is called `tasks`: arrays with a leading axis of one row a task.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.envs import datasets
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, HostTask, Key, Outcome, PyTree, TimeStep


class Rows(NamedTuple):
    """Examples of several tasks: obs `[tasks, rows, ...]` and answers, float32 `[tasks, rows, n]` or classes int32 `[tasks, rows]`."""

    obs: Any
    answer: Any


@runtime_checkable
class Distribution(Protocol):
    """p(T)."""

    loss: Literal["squared", "cross-entropy", "return"]
    """L: equation 2, 3 or 4 of the paper."""

    def draw(self, key: Key, num: int) -> PyTree:
        """`num` tasks."""
        ...


@runtime_checkable
class Examples(Protocol):
    """A distribution with H = 1."""

    def examples(self, key: Key, tasks: PyTree, shots: int, queries: int) -> tuple[Rows, Rows]:
        """For each task two sets that share no example: `shots` and `queries` of them, of each class where there are classes."""
        ...

    def demand(self, shots: int, queries: int) -> None:
        """Raises FlatironsError where a task has not as many examples."""
        ...


@runtime_checkable
class Acted(Protocol):
    """A distribution with H > 1, in-graph."""

    def placed(self, tasks: PyTree, state: PyTree) -> PyTree:
        """States `[B, ...]` at the start of an episode with `tasks`, one row each, in the place of their own."""
        ...


@runtime_checkable
class Chosen(Protocol):
    """A distribution some of whose numbers are no tasks, as where there are only a few."""

    def demand_task(self, task: PyTree) -> None:
        """Raises FlatironsError where `draw` never gives this one task."""
        ...


# --------------------------------------------------------------------------------------------------------------- H = 1


@dataclasses.dataclass(frozen=True)
class Sinusoid:
    """Regression of y = A sin(x - phi) (section 5.1): amplitude A in [0.1, 5], phase phi in [0, pi], x in [-5, 5], all uniform.

    As an environment: obs is x, the action a guess of y, the reward minus the squared error, and that is the episode."""

    loss = "squared"

    @property
    def max_episode_steps(self) -> int | None:
        """H."""
        return 1

    @property
    def obs_spec(self) -> ArraySpec:
        """X, float32 `[1]`."""
        return ArraySpec((1,), low=-5.0, high=5.0)

    @property
    def action_spec(self) -> Box:
        """A guess of y."""
        return Box((-math.inf,), (math.inf,))

    def draw(self, key: Key, num: int) -> dict[str, jax.Array]:
        """Amplitudes and phases, `[num]`."""
        u = jax.random.uniform(key, (2, num))
        return {"amplitude": 0.1 + 4.9 * u[0], "phase": math.pi * u[1]}

    def examples(self, key: Key, tasks: PyTree, shots: int, queries: int) -> tuple[Rows, Rows]:
        """X uniform in ±5, `[tasks, rows, 1]`."""
        amplitude, phase = tasks["amplitude"][:, None], tasks["phase"][:, None]
        x = jax.random.uniform(key, (amplitude.shape[0], shots + queries), minval=-5.0, maxval=5.0)
        x, y = x[..., None], (amplitude * jnp.sin(x - phase))[..., None]
        return Rows(x[:, :shots], y[:, :shots]), Rows(x[:, shots:], y[:, shots:])

    def demand(self, shots: int, queries: int) -> None:
        """There are as many as wanted."""

    def init(self, key: Key) -> dict[str, jax.Array]:
        """A task and one x."""
        key_task, key_x = jax.random.split(key)
        task = jax.tree.map(lambda v: v[0], self.draw(key_task, 1))
        return task | {"x": jax.random.uniform(key_x, (1,), minval=-5.0, maxval=5.0)}

    def step(self, key: Key, state: PyTree, action: Any) -> tuple[PyTree, jax.Array, jax.Array]:
        """Minus the squared error of the guess."""
        del key
        y = state["amplitude"] * jnp.sin(state["x"] - state["phase"])
        return state, -jnp.sum(jnp.square(action - y)), jnp.ones((), bool)

    def observe(self, state: PyTree) -> jax.Array:
        """X."""
        return state["x"]

    def legal(self, state: PyTree) -> tuple[()]:
        """All actions are."""
        del state
        return ()


MOST_DISTORTED = 5
"""Strength up to which pictures may be distorted: there by up to 50 degrees, to sizes of a half to one and a half."""


class Pictures:
    """Characters and their pictures, uint8 `[characters, pictures, height, width]`, 255 where there is ink; equal to itself alone. `sha256`
    is that of the files they were read from, "" where they come from none."""

    def __init__(self, images: np.ndarray, alphabets: tuple[str, ...], sha256: str = ""):
        self.images, self.alphabets, self.sha256 = images, alphabets, sha256


def _affine(key: Key, shape: tuple[int, ...], strength: float, side: int) -> tuple[jax.Array, jax.Array]:
    """`shape` linear maps `[..., 2, 2]` near the identity, and shifts `[..., 2]` in pixels. At strength 1: turns and shears by up to 10
    degrees, sizes of 0.9 to 1.1 in either direction, shifts of up to a fourteenth of the side (2 pixels of 28), each uniform."""
    u = strength * jax.random.uniform(key, (6, *shape), minval=-1.0, maxval=1.0)
    turn, shear = math.radians(10) * u[0], math.radians(10) * u[1]
    cos, sin, rows, cols = jnp.cos(turn), jnp.sin(turn), 1 + 0.1 * u[2], 1 + 0.1 * u[3]
    slant = jnp.tan(shear)
    # Turn times shear times size.
    first, second = (jnp.stack(pair, -1) for pair in ((rows * cos, cols * (cos * slant - sin)), (rows * sin, cols * (sin * slant + cos))))
    return jnp.stack([first, second], -2), side / 14 * jnp.moveaxis(u[4:], 0, -1)


def _resampled(images: jax.Array, linear: jax.Array, shift: jax.Array) -> jax.Array:
    """Pictures uint8 `[n, height, width]`, each read at `linear` times the place of its pixels around the middle, plus `shift`: bilinear,
    0 outside."""
    num, height, width = images.shape
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1))).astype(jnp.uint32)
    # A pixel and its three neighbours in one word: a gather costs by the element, and so there is one for four.
    corners = ((0, slice(None, -1), slice(None, -1)), (8, slice(None, -1), slice(1, None)),
               (16, slice(1, None), slice(None, -1)), (24, slice(1, None), slice(1, None)))  # fmt: skip
    words = functools.reduce(jnp.bitwise_or, [framed[:, rows, cols] << by for by, rows, cols in corners]).ravel()
    size = jnp.array([height, width], jnp.float32)
    middle = (size - 1.0) / 2.0
    centred = jnp.indices((height, width)).reshape(2, -1).astype(jnp.float32) - middle[:, None]
    places = jnp.clip(linear @ centred[None] + (middle[None] + shift + 1.0)[..., None], 0.0, size[None, :, None] + 1.0)
    corner = jnp.minimum(jnp.floor(places), size[None, :, None])
    down, right = jnp.moveaxis(places - corner, 1, 0)
    row, col = jnp.moveaxis(corner.astype(jnp.int32), 1, 0)
    index = (jnp.arange(num, dtype=jnp.int32)[:, None] * (height + 1) + row) * (width + 1) + col
    word = words.at[index].get(mode="promise_in_bounds")
    at = [((word >> by) & 255).astype(jnp.float32) for by, _, _ in corners]
    upper, lower = (1.0 - right) * at[0] + right * at[1], (1.0 - right) * at[2] + right * at[3]
    return jnp.rint((1.0 - down) * upper + down * lower).astype(jnp.uint8).reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """Which of `ways` characters is it (section 5.2)? A task is a choice of characters in an order of their own, each turned by a multiple
    of 90 degrees where `turned`: a turned character is another class (Santoro et al. 2016), and so is its mirror image where `mirrored`.
    Where `alike`, all characters of a task are turned and mirrored the same way, as those of a test are, so that none is told by that.

    `distorted_classes` and `distorted_pictures` are strengths of random affine maps (`_affine`) of the examples of a task: one map for
    all pictures of a class, which makes other characters, and one for each picture, which makes other hands.

    As an environment: obs is a picture, the action a class, the reward 1 where it is right, and that is the episode."""

    pictures: Pictures
    ways: int = 5
    turned: bool = True
    mirrored: bool = False
    alike: bool = False
    distorted_classes: float = 0.0
    distorted_pictures: float = 0.0

    loss = "cross-entropy"

    def __post_init__(self) -> None:
        if self.ways < 2:
            raise FlatironsError(f"ways={self.ways}: give at least 2 classes to tell apart")
        for name, strength in (("distorted_classes", self.distorted_classes), ("distorted_pictures", self.distorted_pictures)):
            if not 0 <= strength <= MOST_DISTORTED:
                raise FlatironsError(f"{name}={strength}: give a strength from 0 (none) to {MOST_DISTORTED}")
        if self.ways > self.most_ways:
            raise FlatironsError(
                f"ways={self.ways}, but there are only {self.most_ways} classes to draw from ({', '.join(self.pictures.alphabets)}): "
                f"give at most {self.most_ways}"
            )

    @property
    def num_classes(self) -> int:
        """Classes that tasks are made of."""
        return len(self.pictures.images) * (4 if self.turned else 1) * (2 if self.mirrored else 1)

    @property
    def most_ways(self) -> int:
        """Classes that one task can have."""
        return len(self.pictures.images) if self.alike else self.num_classes

    @property
    def max_episode_steps(self) -> int | None:
        """H."""
        return 1

    @property
    def obs_spec(self) -> ArraySpec:
        """A picture, uint8 `[height, width, 1]`."""
        return ArraySpec((*self.pictures.images.shape[2:], 1), "uint8", 0, 255)

    @property
    def action_spec(self) -> Discrete:
        """A class of the task."""
        return Discrete(self.ways)

    def draw(self, key: Key, num: int) -> jax.Array:
        """Different classes in any order, int32 `[num, ways]`."""
        if self.alike:
            key, key_way = jax.random.split(key)
            way = jax.random.randint(key_way, (num, 1), 0, self.num_classes // self.most_ways)
            return way * self.most_ways + jax.lax.top_k(jax.random.uniform(key, (num, self.most_ways)), self.ways)[1]
        return jax.lax.top_k(jax.random.uniform(key, (num, self.num_classes)), self.ways)[1]

    def _seen(self, classes: jax.Array, which: jax.Array) -> jax.Array:
        """Pictures number `which [..., n]` of `classes [...]`, `[..., n, height, width, 1]`."""
        images = jnp.asarray(self.pictures.images)
        found = images[classes[..., None] % len(images), which]
        if self.mirrored:
            found = jnp.where(jnp.expand_dims(classes >= self.num_classes // 2, (-1, -2, -3)), jnp.flip(found, -1), found)
        if self.turned:
            quarter = jnp.expand_dims(classes // len(images) % 4, (-1, -2, -3))
            across = jnp.swapaxes(found, -1, -2)
            odd = jnp.where(quarter == 1, jnp.flip(across, -2), jnp.flip(across, -1))
            found = jnp.where(quarter == 0, found, jnp.where(quarter == 2, jnp.flip(found, (-1, -2)), odd))
        return found[..., None]

    def examples(self, key: Key, tasks: PyTree, shots: int, queries: int) -> tuple[Rows, Rows]:
        """`shots` and `queries` pictures of each class by different hands: rows `[tasks, ways * shots]`, a class's next to one another."""
        num, available = tasks.shape[0], self.pictures.images.shape[1]
        key_distort = None
        if self.distorted_classes or self.distorted_pictures:
            key, key_distort = jax.random.split(key)
        order = jax.lax.top_k(jax.random.uniform(key, (num, self.ways, available)), shots + queries)[1]
        found = self._seen(tasks, order)
        if key_distort is not None:
            found = self._distorted(key_distort, found)

        def rows(part: jax.Array) -> Rows:
            answer = jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), part.shape[2])
            return Rows(part.reshape((num, -1, *part.shape[3:])), jnp.broadcast_to(answer[None], (num, answer.shape[0])))

        return rows(found[:, :, :shots]), rows(found[:, :, shots:])

    def _distorted(self, key: Key, found: jax.Array) -> jax.Array:
        """Pictures `[tasks, ways, n, height, width, 1]` through the maps of their class and their own, in one reading."""
        num, ways, pictures, *size, _ = found.shape
        of_class, of_picture = jax.random.split(key)
        one, by = _affine(of_class, (num, ways, 1), self.distorted_classes, size[0])
        own, own_by = _affine(of_picture, (num, ways, pictures), self.distorted_pictures, size[0])
        shift = jnp.einsum("twoij,twnj->twni", one, own_by) + by
        linear = jnp.einsum("twoij,twnjk->twnik", one, own)
        flat = _resampled(found.reshape(-1, *size), linear.reshape(-1, 2, 2), shift.reshape(-1, 2))
        return flat.reshape(found.shape)

    def demand(self, shots: int, queries: int) -> None:
        """Raises FlatironsError where a character has not as many pictures."""
        available = self.pictures.images.shape[1]
        if shots + queries > available:
            raise FlatironsError(
                f"{shots} shots and {queries} queries of a class are {shots + queries} pictures, and a character has {available}: ask for "
                "fewer"
            )

    def init(self, key: Key) -> dict[str, jax.Array]:
        """A task and one of its pictures."""
        key_task, key_class, key_picture = jax.random.split(key, 3)
        answer = jax.random.randint(key_class, (), 0, self.ways)
        which = jax.random.randint(key_picture, (1,), 0, self.pictures.images.shape[1])
        return {"picture": self._seen(self.draw(key_task, 1)[0][answer], which)[0], "answer": answer}

    def step(self, key: Key, state: PyTree, action: Any) -> tuple[PyTree, jax.Array, jax.Array]:
        """1 for the right class."""
        del key
        return state, (action == state["answer"]).astype(jnp.float32), jnp.ones((), bool)

    def observe(self, state: PyTree) -> jax.Array:
        """The picture."""
        return state["picture"]

    def legal(self, state: PyTree) -> tuple[()]:
        """All actions are."""
        del state
        return ()


# ------------------------------------------------------------------------------------------------------ H > 1, in-graph


@dataclasses.dataclass(frozen=True)
class Navigation:
    """A point in the plane goes to a goal that it is not told (section 5.3): goals uniform in the unit square around its start.

    obs is its place. An action in [-1, 1]² moves it by a tenth of that. The reward is minus the distance to the goal, as in the authors'
    program and the paper's numbers, or with `squared` minus its square, as in the paper's text. It ends within 0.01 of the goal."""

    max_episode_steps: int | None = 100
    squared: bool = False

    loss = "return"

    @property
    def obs_spec(self) -> ArraySpec:
        """The place, float32 `[2]`."""
        return ArraySpec((2,))

    @property
    def action_spec(self) -> Box:
        """Velocity in tenths."""
        return Box((-1.0, -1.0), (1.0, 1.0))

    def draw(self, key: Key, num: int) -> jax.Array:
        """Goals `[num, 2]`."""
        return jax.random.uniform(key, (num, 2), minval=-0.5, maxval=0.5)

    def placed(self, tasks: PyTree, state: PyTree) -> PyTree:
        """The same places with other goals."""
        return state | {"goal": tasks}

    def init(self, key: Key) -> dict[str, jax.Array]:
        """A goal, and the origin."""
        return {"goal": self.draw(key, 1)[0], "place": jnp.zeros(2)}

    def init_batch(self, key: Key, num_envs: int) -> dict[str, jax.Array]:
        """`init` for `[num_envs, 2]` in one draw."""
        return {"goal": self.draw(key, num_envs), "place": jnp.zeros((num_envs, 2))}

    def step(self, key: Key, state: PyTree, action: Any) -> tuple[PyTree, jax.Array, jax.Array]:
        """Move, and pay the distance."""
        del key
        place = state["place"] + 0.1 * action
        away = place - state["goal"]
        square = jnp.sum(jnp.square(away))
        return state | {"place": place}, -square if self.squared else -jnp.sqrt(square), jnp.all(jnp.abs(away) < 0.01)

    def observe(self, state: PyTree) -> jax.Array:
        """The place."""
        return state["place"]

    def legal(self, state: PyTree) -> tuple[()]:
        """All actions are."""
        del state
        return ()


# ------------------------------------------------------------------------------------------------------ H > 1, on a host


@dataclasses.dataclass(frozen=True)
class Cheetah:
    """MuJoCo's HalfCheetah sent forward or backward (`pace` False), or at a pace (section 5.3): tasks are -1 or 1, or a velocity in [0, 2].

    The reward is the velocity in that direction, or minus the distance from that pace; less 0.05 |action|², as in the authors' program."""

    pace: bool

    loss = "return"
    gymnasium_id = "HalfCheetah-v5"
    options = MappingProxyType({"ctrl_cost_weight": 0.0, "max_episode_steps": 200})
    """Without costs of control the environment's reward is the velocity itself."""

    def draw(self, key: Key, num: int) -> jax.Array:
        """Directions or velocities, float32 `[num]`."""
        if self.pace:
            return jax.random.uniform(key, (num,), maxval=2.0)
        return jnp.where(jax.random.bernoulli(key, shape=(num,)), 1.0, -1.0)

    def demand_task(self, task: PyTree) -> None:
        """Raises FlatironsError where a direction is neither. Any pace can be asked for."""
        if not self.pace and float(task) not in (-1.0, 1.0):
            raise FlatironsError(f"the direction to adapt to is {float(task):g}: give 1 (forward) or -1 (backward)")

    def reward(self, tasks: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
        """What is earned, float32 `[B]`."""
        going = -np.abs(velocity - tasks) if self.pace else tasks * velocity
        return (going - 0.05 * np.sum(np.square(np.clip(action, -1.0, 1.0)), axis=-1)).astype(np.float32)


class HostMeta:
    """A batch of host environments that each play a task of `env`, a distribution: a `HostTask` whose `place` holds them to tasks.

    Until then an environment draws another whenever an episode ends. `worlds` gives observations, and as reward what `env.reward` is of."""

    in_graph = False
    recipe: Any = None

    def __init__(self, name: str, env: Cheetah, worlds: HostTask, seed: int = 0) -> None:
        self.name, self.env, self.worlds = name, env, worlds
        self.num_envs, self.spec, self.notes = worlds.num_envs, worlds.spec, worlds.notes
        self._held = False
        self._drawn = 0
        self._key = jax.random.key(seed)
        self._tasks = self._some()
        self.current: TimeStep = worlds.current

    def _some(self) -> np.ndarray:
        self._drawn += 1
        return np.asarray(self.env.draw(jax.random.fold_in(self._key, self._drawn), self.num_envs))

    def place(self, tasks: Any) -> None:
        """Play `tasks`, one row for each environment, from the next step on. Call it between episodes. Raises FlatironsError where it is
        not one each."""
        tasks = np.array(tasks, np.float32)
        if tasks.shape != self._tasks.shape:
            raise FlatironsError(f"{self.name} has {self.num_envs} environments, which play a task each: tasks have shape {tasks.shape}")
        self._tasks, self._held = tasks, True

    def reset(self, seed: int | None = None) -> TimeStep:
        """Start an episode in every environment."""
        if seed is not None:
            self._key, self._drawn = jax.random.key(seed), 0
        if not self._held:
            self._tasks = self._some()
        self.current = self.worlds.reset(seed)
        return self.current

    def step(self, action: np.ndarray) -> tuple[Outcome, TimeStep]:
        """One action in every environment."""
        outcome, self.current = self.worlds.step(action)
        outcome = outcome._replace(reward=self.env.reward(self._tasks, np.asarray(outcome.reward), np.asarray(action)))
        ended = outcome.terminated | outcome.truncated
        if not self._held and ended.any():
            self._tasks = np.where(ended, self._some(), self._tasks)
        return outcome, self.current

    def close(self) -> None:
        """Close the environments."""
        self.worlds.close()


# ------------------------------------------------------------------------------------------------------------- the names

HOST: Mapping[str, Cheetah] = MappingProxyType({"halfcheetah-direction": Cheetah(pace=False), "halfcheetah-velocity": Cheetah(pace=True)})
NAMES = ("sinusoid", "omniglot", "navigation", *HOST)
"""What `meta:` has."""
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sinusoid": {},
        "omniglot": {
            "ways": int,
            "turned_tests": bool,
            "mirrored": bool,
            "alike": bool,
            "distorted_classes": float,
            "distorted_pictures": float,
            "data_dir": str | None,
        },
        "navigation": {"max_episode_steps": int, "squared": bool},
        **{name: {"max_episode_steps": int} for name in HOST},
    }
)
"""Their options and of which type they are."""
HELD_OUT = ("Greek", "Sanskrit")
"""Omniglot's alphabets that tests are made of."""


def in_graph(name: str, *, training: bool, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """The distribution of that name and notes on it. `training` False asks for what was held out, where something was."""
    if name == "omniglot":
        return _glyphs(training, **options)
    return (Sinusoid() if name == "sinusoid" else Navigation(**options)), ()


def _glyphs(
    training: bool, *, ways: int = 5, turned_tests: bool = False, data_dir: str | None = None, **more: Any
) -> tuple[Glyphs, tuple[str, ...]]:
    """Omniglot's tasks. `more` is what adds to the characters to learn from: a test has them as they are, each one class, unless
    `turned_tests`."""
    splits = _omniglot(data_dir)
    made = {
        True: Glyphs(splits[True][0], 2, **more),
        False: Glyphs(splits[False][0], 2, turned=bool(turned_tests)),
    }
    available = {kind: glyphs.most_ways for kind, glyphs in made.items()}
    if ways > min(available.values()):
        # At once, and not when the first evaluation makes the other split.
        raise FlatironsError(
            f"ways={ways}, but there are only {available[True]} classes to train on and {available[False]} to test on "
            f"({', '.join(splits[False][0].alphabets)}): give at most {min(available.values())}"
        )
    return dataclasses.replace(made[training], ways=ways), splits[training][1]


@functools.cache
def _omniglot(data_dir: str | None) -> dict[bool, tuple[Pictures, tuple[str, ...]]]:
    """The characters to train on (True) and those held out, each with a note."""
    arrays, names, sha256 = datasets.load("omniglot", data_dir)
    of_training = ~np.isin(arrays["alphabet"], [names.index(name) for name in HELD_OUT])
    splits = {}
    for training, chosen in ((True, of_training), (False, ~of_training)):
        alphabets = tuple(name for name in names if (name not in HELD_OUT) == training)
        note = f"Omniglot: {int(chosen.sum())} characters of {', '.join(alphabets)} (files {sha256[:12]})"
        splits[training] = Pictures(np.ascontiguousarray(arrays["images"][chosen]), alphabets, sha256), (note,)
    return splits
