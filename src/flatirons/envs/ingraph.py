"""Environments whose steps are JAX computations: the `Env` protocol (one stream) and `InGraph`, a batch of streams as a task.

`InGraph.step` is the innermost loop of training, so it spends one random draw a step on the reset of the whole batch, and that only
where an episode ended; everything else fuses.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flatirons.types import ActionSpec, Box, Discrete, FlatironsError, Key, MultiDiscrete, Outcome, PyTree, Spec, TimeStep


@runtime_checkable
class Env(Protocol):
    """One stream of a world, as pure functions. Implementations are frozen, hashable dataclasses whose fields are the world's parameters.

    `step` is never asked to go on from a terminated state. The time limit and the reset belong to `InGraph`.
    """

    @property
    def obs_spec(self) -> Any:
        """An `ArraySpec`, or a (nested) dict of them with the structure of the observation."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """What actions are; `Box` actions arrive clipped to their bounds."""
        ...

    @property
    def max_episode_steps(self) -> int | None:
        """Episodes are truncated after that many steps; None for never."""
        ...

    def init(self, key: Key) -> PyTree:
        """The state at an episode's start: a pytree of arrays."""
        ...

    def step(self, key: Key, state: PyTree, action: Any) -> tuple[PyTree, Any, Any]:
        """Return (state of the same shapes and dtypes, reward float32 `[]`, terminated bool `[]`)."""
        ...

    def observe(self, state: PyTree) -> PyTree:
        """Observation of a state, as `obs_spec` says."""
        ...

    def legal(self, state: PyTree) -> Any:
        """Mask of the legal actions, bool `[n]`, True = legal, or `()` where all are, always. For MultiDiscrete `[sum of nvec]`, the
        choices side by side. No state that an episode goes on from may have none."""
        ...


@runtime_checkable
class BatchInit(Protocol):
    """An optional faster path of an `Env`: the starts of a whole batch from one key, so that one random draw serves all of them."""

    def init_batch(self, key: Key, num_envs: int) -> PyTree:
        """States `[num_envs, ...]`, independent and each distributed as `init`'s."""
        ...


class EnvState(NamedTuple):
    """State of a batch: the environment's own `inner` `[B, ...]`, `steps` int32 `[B]` taken in the episode, `first` bool `[B]`."""

    inner: Any
    steps: Any
    first: Any


class InGraph:
    """`num_envs` streams of `env` as an `InGraphTask`: resets itself, truncates at `env.max_episode_steps`, clips `Box` actions.

    Two tasks with equal `env`, `num_envs` and `name` are equal, so a jitted function that takes one as a static argument is traced once.

    Raises `FlatironsError` where `num_envs` or the time limit is below 1 and, when traced, where `env` does not keep to its own specs.
    """

    in_graph: bool = True

    def __init__(self, env: Env, num_envs: int = 1, name: str | None = None, notes: tuple[str, ...] = ()):
        """Wrap `env`; `name` is its class's unless given, and `notes` are shown in the log."""
        if not isinstance(env, Env):
            raise FlatironsError(
                f"an in-graph environment needs init, step, observe, legal, obs_spec, action_spec and max_episode_steps: "
                f"{type(env).__name__} lacks some of them"
            )
        if num_envs < 1:
            raise FlatironsError(f"num_envs is {num_envs}: give at least 1")
        if env.max_episode_steps is not None and env.max_episode_steps < 1:
            raise FlatironsError(f"max_episode_steps is {env.max_episode_steps}: give at least 1, or None for no time limit")
        self.env = env
        self.num_envs = num_envs
        self.name = type(env).__name__ if name is None else name
        self.notes = notes
        self.spec = Spec(env.obs_spec, env.action_spec, env.max_episode_steps, goal_reward=getattr(env, "goal_reward", None))

    def __eq__(self, other: object) -> bool:
        """Equal where environment, number of streams and name are."""
        return isinstance(other, InGraph) and (self.env, self.num_envs, self.name) == (other.env, other.num_envs, other.name)

    def __hash__(self) -> int:
        """Hash of what `__eq__` compares."""
        return hash((self.env, self.num_envs, self.name))

    def resized(self, num_envs: int) -> InGraph:
        """The same world with another number of streams."""
        return InGraph(self.env, num_envs, self.name, self.notes)

    def reset(self, key: Key) -> EnvState:
        """Start every stream anew."""
        inner = self._starts(key)
        self._check_obs(jax.eval_shape(self._observe, inner))
        return EnvState(inner, jnp.zeros(self.num_envs, jnp.int32), jnp.ones(self.num_envs, bool))

    def observe(self, env: EnvState) -> TimeStep:
        """What a policy sees, `[B, ...]`. Its `model` is `env` itself: `step` goes on from it, for planning."""
        legal = jax.vmap(self.env.legal, axis_size=self.num_envs)(env.inner)
        return TimeStep(self._observe(env.inner), legal, env.first, env)

    def step(self, key: Key, env: EnvState, action: Any) -> tuple[EnvState, Outcome]:
        """Take one step in every stream and start the next episode where one ended.

        `action` is `[B]` for `Discrete`, `[B, n]` otherwise. In the Outcome, reward is float32 `[B]`, terminated and truncated are bool
        `[B]` and never both True, and next_obs `[B, ...]` is the true successor's, before the reset.
        Raises `FlatironsError` at tracing for an action of wrong shape or kind.
        """
        action = self._door(action)
        inner, reward, terminated = jax.vmap(self.env.step)(jax.random.split(key, self.num_envs), env.inner, action)
        self._check_step(env.inner, inner, reward, terminated)
        steps = env.steps + 1
        limit = self.env.max_episode_steps
        truncated = jnp.zeros_like(terminated) if limit is None else (steps >= limit) & ~terminated
        ended = terminated | truncated
        outcome = Outcome(reward, self._observe(inner), terminated, truncated)
        return EnvState(self._restart(key, ended, inner), jnp.where(ended, 0, steps), ended), outcome

    def close(self) -> None:
        """Nothing to close."""

    def _starts(self, key: Key) -> PyTree:
        if isinstance(self.env, BatchInit):
            return self.env.init_batch(key, self.num_envs)
        return jax.vmap(self.env.init)(jax.random.split(key, self.num_envs))

    def _restart(self, key: Key, ended: jax.Array, inner: PyTree) -> PyTree:
        def some_start() -> PyTree:
            # The streams' own keys are children 0 ... num_envs-1 of `key`; this is one more. Drawn in here, it is free when none ended.
            starts = self._starts(jax.random.fold_in(key, self.num_envs))
            return jax.tree.map(lambda start, now: jnp.where(_along(ended, now), start, now), starts, inner)

        # A branch inside a loop is nearly free on a CPU and saves the draw; a GPU would stop for it and ask the host.
        if jax.default_backend() == "cpu":
            return jax.lax.cond(jnp.any(ended), some_start, lambda: inner)
        return some_start()

    def _observe(self, inner: PyTree) -> PyTree:
        return jax.vmap(self.env.observe, axis_size=self.num_envs)(inner)

    def _door(self, action: Any) -> jax.Array:
        action = jnp.asarray(action)
        spec = self.env.action_spec
        match spec:
            case Box():
                shape, kind, words = spec.shape, jnp.floating, "float"
            case MultiDiscrete():
                shape, kind, words = (len(spec.nvec),), jnp.integer, "integer"
            case Discrete():
                shape, kind, words = (), jnp.integer, "integer"
        if action.shape != (self.num_envs, *shape) or not jnp.issubdtype(action.dtype, kind):
            raise FlatironsError(
                f"{self.name} takes {words} actions of shape {(self.num_envs, *shape)} for {spec}: it was given "
                f"{action.dtype} of shape {action.shape}"
            )
        if isinstance(spec, Box):
            low, high = (jnp.asarray(bound, jnp.float32)[None, :] for bound in (spec.low, spec.high))
            return jnp.clip(action.astype(jnp.float32), low, high)
        return action.astype(jnp.int32)

    def _check_obs(self, obs: PyTree) -> None:
        specs, spec_tree = jax.tree.flatten(self.env.obs_spec)
        arrays, tree = jax.tree.flatten(obs)
        if tree != spec_tree:
            raise FlatironsError(f"{self.name}: observe returns {tree} where obs_spec says {spec_tree}; make the two alike")
        for array, spec in zip(arrays, specs, strict=True):
            if array.shape[1:] != spec.shape or array.dtype != spec.dtype:
                raise FlatironsError(
                    f"{self.name}: observe returns {array.dtype}{list(array.shape[1:])} where obs_spec says "
                    f"{spec.dtype}{list(spec.shape)}; make the two alike"
                )

    def _check_step(self, before: PyTree, after: PyTree, reward: jax.Array, terminated: jax.Array) -> None:
        if jax.tree.structure(before) != jax.tree.structure(after):
            raise FlatironsError(
                f"{self.name}: step returns a state of structure {jax.tree.structure(after)} where init returns "
                f"{jax.tree.structure(before)}; return the same"
            )
        for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise FlatironsError(
                    f"{self.name}: step returns {new.dtype}{list(new.shape[1:])} for state{jax.tree_util.keystr(path)} where init returns "
                    f"{old.dtype}{list(old.shape[1:])}; return the same"
                )
        if reward.shape != (self.num_envs,) or reward.dtype != jnp.float32:
            raise FlatironsError(f"{self.name}: step returns a reward of {reward.dtype}{list(reward.shape[1:])}; return a float32 scalar")
        if terminated.shape != (self.num_envs,) or terminated.dtype != jnp.bool_:
            raise FlatironsError(
                f"{self.name}: step returns a terminated of {terminated.dtype}{list(terminated.shape[1:])}; return a bool scalar"
            )


def _along(mask: jax.Array, like: jax.Array) -> jax.Array:
    return jax.lax.broadcast_in_dim(mask, like.shape, (0,))
