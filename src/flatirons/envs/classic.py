"""Gymnasium's classic control in-graph: the same dynamics, step by step, to float32 rounding.

Every state is one float32 array. Gymnasium computes in float64; where a trajectory is chaotic (Acrobot) the two part after some
hundred steps of rounding, as any two float widths would.
"""

from __future__ import annotations

import dataclasses
import math
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.types import ArraySpec, Box, Discrete, Key


@dataclasses.dataclass(frozen=True)
class CartPole:
    """CartPole-v1: state and obs are (position m, velocity, angle rad, angular velocity); +1 for every step, the falling one too."""

    max_episode_steps: int | None = 500

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[4]`. Gymnasium bounds the two positions alone; one pair of bounds for all four must be open."""
        return ArraySpec((4,))

    @property
    def action_spec(self) -> Discrete:
        """0 pushes left, 1 right."""
        return Discrete(2)

    def init(self, key: Key) -> jax.Array:
        """Uniform in ±0.05."""
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """`init` for `[num_envs, 4]` in one draw."""
        return jax.random.uniform(key, (num_envs, 4), minval=-0.05, maxval=0.05)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Euler's step of 0.02 s under ±10 N; terminated beyond 2.4 m or 12 degrees."""
        del key
        x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
        gravity, half_length, pole_mass, total_mass, tau = 9.8, 0.5, 0.1, 1.1, 0.02
        force = jnp.where(action == 1, 10.0, -10.0)
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        push = (force + pole_mass * half_length * theta_dot**2 * sin) / total_mass
        theta_acc = (gravity * sin - cos * push) / (half_length * (4.0 / 3.0 - pole_mass * cos**2 / total_mass))
        x_acc = push - pole_mass * half_length * theta_acc * cos / total_mass
        x, theta = x + tau * x_dot, theta + tau * theta_dot
        new = jnp.stack([x, x_dot + tau * x_acc, theta, theta_dot + tau * theta_acc])
        terminated = (jnp.abs(x) > 2.4) | (jnp.abs(theta) > 12 * 2 * math.pi / 360)
        return new, jnp.ones((), jnp.float32), terminated

    def observe(self, state: jax.Array) -> jax.Array:
        """The state itself."""
        return state

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()


@dataclasses.dataclass(frozen=True)
class Acrobot:
    """Acrobot-v1 (the book's dynamics): state is (theta1, theta2, their velocities); -1 a step, 0 on the one that reaches the height."""

    max_episode_steps: int | None = 500

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[6]`: cos and sin of both angles, then both velocities (within 4π and 9π rad/s)."""
        return ArraySpec((6,), low=-9 * math.pi, high=9 * math.pi)

    @property
    def action_spec(self) -> Discrete:
        """Torque -1, 0 or 1 N m on the joint between the links."""
        return Discrete(3)

    def init(self, key: Key) -> jax.Array:
        """Uniform in ±0.1."""
        return jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """`init` for `[num_envs, 4]` in one draw."""
        return jax.random.uniform(key, (num_envs, 4), minval=-0.1, maxval=0.1)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One Runge-Kutta step of 0.2 s; terminated when the free end is a link's length above the pivot."""
        del key
        torque = action.astype(jnp.float32) - 1.0
        dt = 0.2

        def derivative(theta1, theta2, speed1, speed2):
            # Both links: mass 1, length 1, centre of mass at 0.5, moment of inertia 1; g = 9.8.
            cos2, sin2 = jnp.cos(theta2), jnp.sin(theta2)
            d1 = 3.5 + cos2
            d2 = 1.25 + 0.5 * cos2
            phi2 = 4.9 * jnp.sin(theta1 + theta2)
            phi1 = -0.5 * speed2**2 * sin2 - speed2 * speed1 * sin2 + 14.7 * jnp.sin(theta1) + phi2
            acc2 = (torque + d2 / d1 * phi1 - 0.5 * speed1**2 * sin2 - phi2) / (1.25 - d2**2 / d1)
            return speed1, speed2, -(d2 * acc2 + phi1) / d1, acc2

        start = (state[0], state[1], state[2], state[3])
        k1 = derivative(*start)
        k2 = derivative(*(s + dt / 2 * k for s, k in zip(start, k1, strict=True)))
        k3 = derivative(*(s + dt / 2 * k for s, k in zip(start, k2, strict=True)))
        k4 = derivative(*(s + dt * k for s, k in zip(start, k3, strict=True)))
        theta1, theta2, speed1, speed2 = (s + dt / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in zip(start, k1, k2, k3, k4, strict=True))
        theta1, theta2 = _wrap(theta1), _wrap(theta2)
        speed1, speed2 = jnp.clip(speed1, -4 * math.pi, 4 * math.pi), jnp.clip(speed2, -9 * math.pi, 9 * math.pi)
        terminated = -jnp.cos(theta1) - jnp.cos(theta1 + theta2) > 1.0
        return jnp.stack([theta1, theta2, speed1, speed2]), jnp.where(terminated, 0.0, -1.0), terminated

    def observe(self, state: jax.Array) -> jax.Array:
        """Cos and sin of both angles, then both velocities."""
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), jnp.cos(state[1]), jnp.sin(state[1]), state[2], state[3]])

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()


@dataclasses.dataclass(frozen=True)
class MountainCar:
    """MountainCar-v0: state and obs are (position, velocity); -1 a step until the position reaches 0.5."""

    max_episode_steps: int | None = 200

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[2]`: position in [-1.2, 0.6], velocity in ±0.07."""
        return ArraySpec((2,), low=-1.2, high=0.6)

    @property
    def action_spec(self) -> Discrete:
        """Accelerate left, not at all, right."""
        return Discrete(3)

    def init(self, key: Key) -> jax.Array:
        """At rest, position uniform in [-0.6, -0.4]."""
        return _parked(key, ())

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """`init` for `[num_envs, 2]` in one draw."""
        return _parked(key, (num_envs,))

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One step of the hill, stopped dead by the left wall."""
        del key
        push = (action.astype(jnp.float32) - 1.0) * 0.001
        position, velocity = _hill(state, push)
        return jnp.stack([position, velocity]), jnp.full((), -1.0, jnp.float32), (position >= 0.5) & (velocity >= 0.0)

    def observe(self, state: jax.Array) -> jax.Array:
        """The state itself."""
        return state

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()


@dataclasses.dataclass(frozen=True)
class MountainCarContinuous:
    """MountainCarContinuous-v0: as MountainCar with a force in [-1, 1]; 100 at position 0.45, less 0.1·action² a step.

    Gymnasium charges for the action before clipping it; here it comes clipped, as every task's does.
    """

    max_episode_steps: int | None = 999

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[2]`: position in [-1.2, 0.6], velocity in ±0.07."""
        return ArraySpec((2,), low=-1.2, high=0.6)

    @property
    def action_spec(self) -> Box:
        """One force."""
        return Box((-1.0,), (1.0,))

    def init(self, key: Key) -> jax.Array:
        """At rest, position uniform in [-0.6, -0.4]."""
        return _parked(key, ())

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """`init` for `[num_envs, 2]` in one draw."""
        return _parked(key, (num_envs,))

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One step of the hill, stopped dead by the left wall."""
        del key
        position, velocity = _hill(state, action[0] * 0.0015)
        terminated = (position >= 0.45) & (velocity >= 0.0)
        return jnp.stack([position, velocity]), jnp.where(terminated, 100.0, 0.0) - 0.1 * action[0] ** 2, terminated

    def observe(self, state: jax.Array) -> jax.Array:
        """The state itself."""
        return state

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Pendulum-v1: state is (angle from upright rad, velocity); the cost is angle² + 0.1·velocity² + 0.001·torque², never terminated."""

    max_episode_steps: int | None = 200
    gravity: float = 10.0

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[3]`: cos, sin, velocity (within 8 rad/s)."""
        return ArraySpec((3,), low=-8.0, high=8.0)

    @property
    def action_spec(self) -> Box:
        """One torque, N m."""
        return Box((-2.0,), (2.0,))

    def init(self, key: Key) -> jax.Array:
        """Angle uniform in ±π, velocity in ±1."""
        return _swinging(key, ())

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """`init` for `[num_envs, 2]` in one draw."""
        return _swinging(key, (num_envs,))

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Semi-implicit Euler's step of 0.05 s."""
        del key
        theta, speed, torque = state[0], state[1], action[0]
        cost = _wrap(theta) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = jnp.clip(speed + (1.5 * self.gravity * jnp.sin(theta) + 3.0 * torque) * 0.05, -8.0, 8.0)
        return jnp.stack([theta + speed * 0.05, speed]), -cost, jnp.zeros((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Cos and sin of the angle, velocity."""
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()


ENVS = MappingProxyType(
    {
        "CartPole-v1": CartPole(),
        "Acrobot-v1": Acrobot(),
        "MountainCar-v0": MountainCar(),
        "MountainCarContinuous-v0": MountainCarContinuous(),
        "Pendulum-v1": Pendulum(),
    }
)
"""The environments behind `jax:NAME`."""


def _wrap(angle: jax.Array) -> jax.Array:
    return angle - 2 * math.pi * jnp.floor((angle + math.pi) / (2 * math.pi))


def _hill(state: jax.Array, push: jax.Array) -> tuple[jax.Array, jax.Array]:
    velocity = jnp.clip(state[1] + push - 0.0025 * jnp.cos(3 * state[0]), -0.07, 0.07)
    position = jnp.clip(state[0] + velocity, -1.2, 0.6)
    at_wall = position <= -1.2
    return position, jnp.where(at_wall & (velocity < 0.0), 0.0, velocity)


def _parked(key: Key, batch: tuple[int, ...]) -> jax.Array:
    position = jax.random.uniform(key, (*batch, 1), minval=-0.6, maxval=-0.4)
    return jnp.concatenate([position, jnp.zeros_like(position)], axis=-1)


def _swinging(key: Key, batch: tuple[int, ...]) -> jax.Array:
    unit = jax.random.uniform(key, (*batch, 2), minval=-1.0, maxval=1.0)
    return jnp.stack([math.pi * unit[..., 0], unit[..., 1]], axis=-1)
