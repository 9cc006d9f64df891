"""An agent among food and poison, in-graph: the kind of 2-D world that Karpathy's ConvNetJS made popular and in which Gal and Ghahramani
2016 (section 5.3) set Thompson sampling against epsilon-greedy. World and dynamics are our own; sizes and rewards are of the same order.

Nine eyes look ahead; each sees the nearest thing within its reach and how far it is. Two wheels move the agent. It is paid for seeing no
wall, for going straight on where none is near, for food, and loses by poison.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import ArraySpec, Discrete, Key

WIDTH, HEIGHT = 700.0, 500.0
RADIUS = 10.0
"""Of the agent and of every item: they touch at twice that distance."""
REACH = 85.0
"""How far an eye sees."""
EYES = tuple(float(x) for x in 0.25 * (np.arange(9) - 4))
"""Directions, radians from straight ahead."""
WHEELS = np.array([[1.0, 1.0], [0.8, 1.0], [1.0, 0.8], [0.5, 0.0], [0.0, 0.5]], np.float32)
"""Speeds of the left and the right wheel, by action: straight on, two wide curves, two turns nearly on the spot."""


def _walls() -> np.ndarray:
    """Segments `[W, 2, 2]`: the outer walls, and two rooms that are open at one side."""

    def sides(x: float, y: float, width: float, height: float) -> list[list[tuple[float, float]]]:
        a, b, c, d = (x, y), (x + width, y), (x + width, y + height), (x, y + height)
        return [[a, b], [b, c], [c, d], [d, a]]

    left, right = sides(100.0, 100.0, 200.0, 300.0), sides(400.0, 100.0, 200.0, 300.0)
    return np.array([*sides(0.0, 0.0, WIDTH, HEIGHT), *left[:3], right[0], *right[2:]], np.float32)


WALLS = _walls()


class World(NamedTuple):
    """position `[2]`, angle `[]`, items `[M, 2]` (food first, then poison), there bool `[M]`: not eaten."""

    position: Any
    angle: Any
    items: Any
    there: Any


def crossing(start: Any, along: Any, walls: Any) -> jax.Array:
    """How far along `along [..., 2]` from `start [2]` each wall is met, `[..., W]` in lengths of `along`; infinite where it is not."""
    first, side = walls[:, 0], walls[:, 1] - walls[:, 0]
    offset = first - start[None]
    x, y = along[..., 0, None], along[..., 1, None]
    lead = (1,) * (along.ndim - 1)
    side_x, side_y = side[:, 0].reshape(*lead, -1), side[:, 1].reshape(*lead, -1)
    off_x, off_y = offset[:, 0].reshape(*lead, -1), offset[:, 1].reshape(*lead, -1)
    across = x * side_y - y * side_x
    parallel = jnp.abs(across) < 1e-9
    across = jnp.where(parallel, 1.0, across)
    far, where = (off_x * side_y - off_y * side_x) / across, (off_x * y - off_y * x) / across
    met = ~parallel & (far >= 0.0) & (where >= 0.0) & (where <= 1.0)
    return jnp.where(met, far, jnp.inf)


def sight(world: World, num_food: int) -> jax.Array:
    """What each eye sees: float32 `[9, 3]` for wall, food, poison. The nearest thing's column holds its distance over `REACH`; the others
    hold 1."""
    directions = world.angle + jnp.array(EYES)
    rays = jnp.stack([jnp.cos(directions), jnp.sin(directions)], axis=-1)
    wall = jnp.min(crossing(world.position, rays, jnp.asarray(WALLS)), axis=-1)
    offset = world.items - world.position[None]
    ahead = rays @ offset.T
    beside = jnp.sum(jnp.square(offset), axis=-1)[None] - jnp.square(ahead)
    into = jnp.sqrt(jnp.maximum(RADIUS**2 - beside, 0.0))
    seen = world.there[None] & (beside < RADIUS**2) & (ahead > 0.0)
    item = jnp.where(seen, jnp.maximum(ahead - into, 0.0), jnp.inf)
    distance = jnp.stack([wall, jnp.min(item[:, :num_food], axis=-1), jnp.min(item[:, num_food:], axis=-1)], axis=-1)
    nearest = distance == jnp.min(distance, axis=-1, keepdims=True)
    return jnp.where(nearest & (distance < REACH), distance / REACH, 1.0)


@dataclasses.dataclass(frozen=True)
class Forager:
    """`jax:Forager-v1`. A decision's reward: up to 1 for eyes that see no wall, 0.1 for going straight on in the open, 5 for food, -6 for
    poison. Nothing ends an episode but its time limit."""

    num_food: int = 15
    num_poison: int = 15
    regrowth: float = 0.01
    """Chance of an eaten item to grow again elsewhere, each decision."""
    max_episode_steps: int | None = 1000

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[27]`, nine eyes times (wall, food, poison), in [0, 1]."""
        return ArraySpec((3 * len(EYES),), low=0.0, high=1.0)

    @property
    def action_spec(self) -> Discrete:
        """The rows of `WHEELS`."""
        return Discrete(len(WHEELS))

    def init(self, key: Key) -> World:
        """Agent and items anywhere."""
        key_agent, key_angle, key_items = jax.random.split(key, 3)
        num_items = self.num_food + self.num_poison
        angle = jax.random.uniform(key_angle, (), minval=0.0, maxval=2.0 * np.pi)
        return World(self._anywhere(key_agent, ()), angle, self._anywhere(key_items, (num_items,)), jnp.ones(num_items, bool))

    def _anywhere(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        low = jnp.full((*shape, 2), 2.0 * RADIUS)
        span = jnp.broadcast_to(jnp.expand_dims(jnp.array([WIDTH, HEIGHT]), tuple(range(len(shape)))), (*shape, 2)) - 2.0 * low
        return low + span * jax.random.uniform(key, (*shape, 2))

    def step(self, key: Key, state: World, action: Any) -> tuple[World, jax.Array, jax.Array]:
        """Wheels turn, what is touched is eaten, some of what was eaten grows again. A move into a wall is not made; the turn is."""
        left, right = jnp.asarray(WHEELS)[action]
        angle = jnp.mod(state.angle + right - left, 2.0 * np.pi)
        move = 2.1 * (left + right) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        walls = jnp.asarray(WALLS)
        free = jnp.min(crossing(state.position, move, walls)) > 1.0
        position = jnp.where(free, state.position + move, state.position)
        toward = state.items - position[None]
        touched = state.there & (jnp.sum(jnp.square(toward), axis=-1) < (2.0 * RADIUS) ** 2)
        eaten = touched & (jnp.min(crossing(position, toward, walls), axis=-1) > 1.0)
        key_grow, key_where = jax.random.split(key)
        grown = ~state.there & (jax.random.uniform(key_grow, state.there.shape) < self.regrowth)
        items = jnp.where(grown[:, None], self._anywhere(key_where, state.there.shape), state.items)
        world = World(position, angle, items, (state.there & ~eaten) | grown)
        open_view = jnp.minimum(1.0, 2.0 * jnp.mean(sight(world, self.num_food)[:, 0]))
        straight = jnp.where((action == 0) & (open_view > 0.75), 0.1 * open_view, 0.0)
        food, poison = jnp.sum(eaten[: self.num_food]), jnp.sum(eaten[self.num_food :])
        return world, open_view + straight + 5.0 * food - 6.0 * poison, jnp.zeros((), bool)

    def observe(self, state: World) -> jax.Array:
        """All eyes, one after the other."""
        return sight(state, self.num_food).reshape(-1)

    def legal(self, state: World) -> tuple[()]:
        """All actions are."""
        del state
        return ()


ENVS: MappingProxyType[str, Any] = MappingProxyType({"Forager-v1": Forager()})
"""Environments by name, with their default options."""
