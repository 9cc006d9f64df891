"""Experience replay held as arrays in State, each frame stored once.

Per environment there are two rings. *Rows* hold frames: every observation of an episode in order, its true last one included (the
successor of a terminated or truncated step), so a next observation is the row after. An observation that is a stack of k frames is k
consecutive rows; an episode begins with all k frames of its first stack, so no stack ever crosses an episode. *Starts* hold, per
transition, action, reward, flags and the row of its observation. A transition leaves when the write head reaches any row of it.

All functions are in-graph with fixed shapes; donated to a compiled update, the arrays are written in place.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.core.spread import spread
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, HostTask, InGraphTask, Key, MultiDiscrete, Spec, Task, Transition


class Replay(NamedTuple):
    """frames: pytree of `[R, B, *frame]`; action `[S, B, ...]`; reward, terminated, truncated, row: `[S, B]`; legal bool `[S, B, n]`: the
    actions that were legal, or `()` where all always are.

    head int32 `[B]`: the row that holds the newest successor, written over when the episode goes on. next int32 `()`: the start to write
    next. size int32 `[B]`: transitions that can be sampled, the newest ones.
    """

    frames: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    row: Any
    head: Any
    next: Any
    size: Any
    legal: Any = ()


class Sample(NamedTuple):
    """A minibatch `[n, ...]`. `discount` is gamma to the number of steps from obs to next_obs, whose rewards are summed in `reward`.

    `next_legal` bool `[n, actions]`, or `()`; all true where it is not known (at a truncation, and for the newest transition)."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    discount: Any
    next_legal: Any = ()


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _specs(spec: Spec) -> list[ArraySpec]:
    return jax.tree.leaves(spec.obs, is_leaf=_is_spec)


def _stack(spec: Spec) -> int:
    return max(s.stack for s in _specs(spec))


def has_masks(task: Task) -> bool:
    """Whether a task says which actions are legal."""
    if not task.in_graph:
        return not isinstance(cast(HostTask, task).current.legal, tuple)
    in_graph = cast(InGraphTask, task)
    timestep = jax.eval_shape(lambda key: in_graph.observe(in_graph.reset(key)), jax.random.key(0))
    return not isinstance(timestep.legal, tuple)


def create(spec: Spec, num_envs: int, capacity: int, *, masked: bool = False) -> Replay:
    """An empty replay of `capacity` transitions in all (num_envs must divide it); `masked` keeps the legal actions (Discrete only).

    More rows than transitions are kept for the frames that begin and end episodes, an eighth, or a 64th where pictures are stacked and an
    eighth would be a gigabyte: where episodes are shorter than eight steps (64 stacks), a little less than `capacity` is held.
    """
    starts, stack = capacity // num_envs, _stack(spec)
    rows = starts + starts // (8 if stack == 1 else 64) + 2 * stack + 2

    def frames(s: ArraySpec) -> jax.Array:
        return jnp.zeros((rows, num_envs, *(s.shape[1:] if s.stack > 1 else s.shape)), s.dtype)

    match spec.action:
        case Discrete():
            action_shape, action_dtype = (), jnp.int32
        case MultiDiscrete(nvec):
            action_shape, action_dtype = (len(nvec),), jnp.int32
        case Box() as box:
            action_shape, action_dtype = box.shape, jnp.float32
    return Replay(
        frames=jax.tree.map(frames, spec.obs, is_leaf=_is_spec),
        action=jnp.zeros((starts, num_envs, *action_shape), action_dtype),
        reward=jnp.zeros((starts, num_envs)),
        terminated=jnp.zeros((starts, num_envs), bool),
        truncated=jnp.zeros((starts, num_envs), bool),
        row=jnp.zeros((starts, num_envs), jnp.int32),
        head=jnp.zeros(num_envs, jnp.int32),
        next=jnp.int32(0),
        size=jnp.zeros(num_envs, jnp.int32),
        legal=jnp.zeros((starts, num_envs, spec.action.n), bool) if masked and isinstance(spec.action, Discrete) else (),
    )


def num_bytes(spec: Spec, num_envs: int, capacity: int, *, masked: bool = False) -> int:
    """Bytes that `create` takes."""
    shapes = jax.eval_shape(lambda: create(spec, num_envs, capacity, masked=masked))
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(shapes))


def add(replay: Replay, spec: Spec, experience: Transition) -> Replay:
    """Store a trajectory `[T, B, ...]` that goes on where the last one stopped.

    Raises FlatironsError when it could be longer than the replay.
    """
    stack = _stack(spec)
    num_rows = jax.tree.leaves(replay.frames)[0].shape[0]
    num_starts, num_envs = replay.row.shape
    num_steps = experience.reward.shape[0]
    if num_steps * (stack + 1) > num_rows - stack or num_steps > num_starts:
        raise FlatironsError(
            f"a trajectory of {num_steps} steps can overrun a replay of {num_starts} transitions an environment: make buffer_size larger, "
            f"at least {num_steps * (stack + 1) * num_envs}"
        )
    ended = (experience.terminated | experience.truncated).astype(jnp.int32)
    begun = experience.first.astype(jnp.int32) * (stack - 1)
    # Distance of each observation's row from the head: one row a step, one more for each last frame, stack - 1 for each beginning.
    after = jnp.cumsum(1 + ended + begun, axis=0)
    offset = after - 1 - ended
    advance = after[-1]
    rows = (jnp.expand_dims(replay.head, 0) + offset) % num_rows
    envs = jnp.broadcast_to(jnp.arange(num_envs)[None], (num_steps, num_envs))

    def write(s: ArraySpec, frames: jax.Array, obs: jax.Array, next_obs: jax.Array) -> jax.Array:
        if s.stack == 1:
            both = jnp.stack([jnp.asarray(obs), jnp.asarray(next_obs)]).astype(frames.dtype)
            at = jnp.stack([rows, (rows + 1) % num_rows])
        else:
            parts = [*(obs[:, :, k] for k in range(s.stack)), next_obs[:, :, -1]]
            both = jnp.stack([jnp.asarray(x) for x in parts]).astype(frames.dtype)
            at = jnp.stack([(rows + k - (s.stack - 1)) % num_rows for k in range(s.stack + 1)])
        return frames.at[at, jnp.broadcast_to(envs[None], at.shape)].set(both)

    frames = jax.tree.map(write, spec.obs, replay.frames, experience.obs, experience.next_obs, is_leaf=_is_spec)

    # The oldest transitions any of whose rows the head has come to, or would come to if their episode were cut now (`interrupt`). Fewer
    # than `reach` can go at once.
    reach = min(num_steps * (stack + 1), num_starts)
    candidate = (replay.next - jnp.expand_dims(replay.size, 0) + jnp.arange(reach)[:, None]) % num_starts
    row = jnp.take_along_axis(replay.row, candidate, axis=0)
    distance = (jnp.expand_dims(replay.head, 0) - row) % num_rows + jnp.expand_dims(advance, 0)
    lost = (jnp.arange(reach)[:, None] < jnp.expand_dims(replay.size, 0)) & (distance >= num_rows - stack)
    num_lost = jnp.sum(lost, axis=0, dtype=jnp.int32)
    size = jnp.minimum(replay.size - num_lost + num_steps, num_starts)
    # Adds 0, and makes what is written wait for what was read: otherwise XLA copies the whole array so that either can come first.
    rows += jnp.minimum(jnp.expand_dims(num_lost, 0), 0)

    starts = (replay.next + jnp.arange(num_steps)) % num_starts
    return Replay(
        frames=frames,
        action=replay.action.at[starts].set(experience.action),
        reward=replay.reward.at[starts].set(experience.reward.astype(jnp.float32)),
        terminated=replay.terminated.at[starts].set(experience.terminated),
        truncated=replay.truncated.at[starts].set(experience.truncated),
        row=replay.row.at[starts].set(rows),
        head=(replay.head + advance) % num_rows,
        next=(replay.next + num_steps) % num_starts,
        size=size,
        legal=() if isinstance(replay.legal, tuple) else replay.legal.at[starts].set(experience.legal),
    )


def draw(replay: Replay, key: Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Places (start, environment), int32 of `shape`, of transitions drawn with replacement: uniform over environments, then over each
    one's transitions. Drawing for many minibatches at once costs no more than for one."""
    num_starts, num_envs = replay.row.shape
    # The remainder of 32 random bits: a transition's chance is off by at most size / 2^32 of itself, and a loop of three draws is one.
    bits = jax.random.bits(key, (1 if num_envs == 1 else 2, *shape))
    env = (bits[1] % num_envs).astype(jnp.int32) if num_envs > 1 else jnp.zeros(shape, jnp.int32)
    age = (bits[0] % jnp.maximum(replay.size[env], 1).astype(jnp.uint32)).astype(jnp.int32)
    return (replay.next - 1 - age) % num_starts, env


def sample(replay: Replay, spec: Spec, key: Key, num: int) -> Sample:
    """`num` transitions, drawn as by `draw`; their `discount` is 1."""
    return read_at(replay, spec, *draw(replay, key, (num,)), 1.0)


def read_at(replay: Replay, spec: Spec, start: jax.Array, env: jax.Array, gamma: Any, num_steps: int = 1) -> Sample:
    """The transitions at these places `[n]`, over `num_steps` steps each: `reward` is r_0 + gamma r_1 + ..., `next_obs` what follows the
    last one. Fewer steps where the episode ends before, or where no more are stored yet."""
    num_rows = jax.tree.leaves(replay.frames)[0].shape[0]
    num_starts = replay.row.shape[0]
    row = replay.row[start, env]
    last = start
    if num_steps == 1:
        last_row, reward, terminated = row, replay.reward[start, env], replay.terminated[start, env]
        discount = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), reward.shape)
    else:
        ahead = jnp.arange(num_steps)[None]
        at, in_env = (start[:, None] + ahead) % num_starts, env[:, None]
        ended = replay.terminated[at, in_env] | replay.truncated[at, in_env]
        before = jnp.cumsum(ended, axis=1) - ended
        newer = (replay.next - 1 - start) % num_starts
        taken = (before == 0) & (ahead <= newer[:, None])
        powers = jnp.asarray(gamma, jnp.float32) ** ahead
        reward = jnp.sum(jnp.where(taken, powers * replay.reward[at, in_env], 0.0), axis=1)
        steps = jnp.sum(taken, axis=1, dtype=jnp.int32)
        last = (start + steps - 1) % num_starts
        last_row, terminated = replay.row[last, env], replay.terminated[last, env]
        discount = jnp.asarray(gamma, jnp.float32) ** steps

    def read(s: ArraySpec, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        if s.stack == 1:
            return frames[row, env], frames[(last_row + 1) % num_rows, env]

        def window(first: jax.Array, length: int) -> jax.Array:
            at = (first[:, None] + jnp.arange(length)[None]) % num_rows
            return frames[at, jnp.broadcast_to(env[:, None], at.shape)]

        if num_steps == 1:
            both = window(row + (1 - s.stack), s.stack + 1)
            return both[:, :-1], both[:, 1:]
        return window(row + (1 - s.stack), s.stack), window(last_row + (2 - s.stack), s.stack)

    pairs = jax.tree.map(read, spec.obs, replay.frames, is_leaf=_is_spec)
    obs = jax.tree.map(lambda _, pair: pair[0], spec.obs, pairs, is_leaf=_is_spec)
    next_obs = jax.tree.map(lambda _, pair: pair[1], spec.obs, pairs, is_leaf=_is_spec)
    next_legal: Any = ()
    if not isinstance(replay.legal, tuple):
        unknown = replay.truncated[last, env] | (last == (replay.next - 1) % num_starts)
        next_legal = replay.legal[(last + 1) % num_starts, env] | unknown[:, None]
    return spread(Sample(obs, replay.action[start, env], reward, next_obs, terminated, discount, next_legal))


def interrupt(replay: Replay) -> Replay:
    """Cut the running episodes as truncated: what is added next begins new ones, and the newest successors are kept."""
    num_rows = jax.tree.leaves(replay.frames)[0].shape[0]
    last = (replay.next - 1) % replay.row.shape[0]
    running = (replay.size > 0) & ~(replay.terminated[last] | replay.truncated[last])
    return replay._replace(
        truncated=replay.truncated.at[last].set(replay.truncated[last] | running),
        head=(replay.head + running.astype(jnp.int32)) % num_rows,
    )
