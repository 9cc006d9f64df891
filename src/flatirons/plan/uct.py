"""Monte-Carlo tree search with random rollouts: UCT of Kocsis and Szepesvári 2006, one rollout a simulation, many games at once.

What AlphaZero's searches are measured against. It knows nothing of a game but its rules, and stores no positions: each simulation is
played from the root, by the tree and then at random, and adds one node. The games of a batch do not wait for each other. A
simulation's result runs down its path in step with the next simulation, one edge a ply, always just before that edge is read, so that
every choice sees all earlier results, as if simulations came one by one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flatirons.types import FlatironsError, Key


class Rules(Protocol):
    """What the search needs of a game of two players who move in turn (a pass is a move). Implementations are hashable."""

    @property
    def num_actions(self) -> int:
        """A."""
        ...

    @property
    def longest(self) -> int:
        """No game has more plies."""
        ...

    def step(self, key: Key, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """(state, reward float32 `[]` of the player who moved, terminated bool `[]`)."""
        ...

    def legal(self, state: Any) -> Any:
        """bool `[A]`."""
        ...


class Counted(NamedTuple):
    """What the root's moves came to: action int32 `[B]` (most visits, then the better mean), visits int32 `[B, A]`, q float32 `[B, A]`
    (mean result in [-1, 1] for the player to move; 0 where unvisited)."""

    action: Any
    visits: Any
    q: Any


class _Walk(NamedTuple):
    tick: Any
    state: Any  # [B, ...] where the simulation under way stands
    node: Any  # [B] its node in the tree, -1 in the rollout
    depth: Any  # [B] its plies so far
    path: Any  # [B, D] its edges, node * A + action
    length: Any  # [B] how many of them there are
    over: Any  # [B] bool: it has ended and waits for the one before it to be counted
    value: Any  # [B] its result for the player to move at the root
    last_path: Any  # [B, D], [B], [B]: the simulation before it, which is being counted
    last_length: Any
    last_value: Any
    counted: Any  # [B] edges of it that are
    ended: Any  # [B] simulations that have ended
    used: Any  # [B] nodes in the tree
    child: Any  # [B * M * A] the node an edge leads to, -1: none yet
    stats: Any  # [B * M * A, 2] an edge's visits and its sum of results for the player who moves there


class Tree(NamedTuple):
    """A whole tree of M = num_simulations + 1 nodes, node 0 the root: child int32 `[B, M, A]`, the node that an edge leads to (-1: none, as
    behind a move that ends the game); visits int32 and q float32 `[B, M, A]`, for the player who moves there."""

    child: Any
    visits: Any
    q: Any


@functools.partial(jax.jit, static_argnums=(0, 3))
def search(game: Rules, states: Any, key: Key, num_simulations: int, c: float = 1.4) -> Counted:
    """Search every position of a batch (none of them ended) with `num_simulations` simulations each; see `grow`."""
    tree = grow(game, states, key, num_simulations, c)
    visits, q = tree.visits[:, 0], tree.q[:, 0]
    action = jnp.argmax(visits * 4.0 + q, axis=1)  # q is within [-1, 1]: it decides between equal visits only
    return Counted(action.astype(jnp.int32), visits, q)


@functools.partial(jax.jit, static_argnums=(0, 3))
def grow(game: Rules, states: Any, key: Key, num_simulations: int, c: float = 1.4) -> Tree:
    """The tree of each position of a batch, none of them ended, after `num_simulations` simulations.

    A move is chosen by Q + c sqrt(ln N / n), untried ones first, at random. Results are 1, 0, -1. Memory: 12 bytes for each of
    B * (num_simulations + 1) * A edges. Raises FlatironsError where num_simulations < 1.
    """
    if num_simulations < 1:
        raise FlatironsError(f"num_simulations is {num_simulations}: give at least 1")
    batch = jax.tree.leaves(states)[0].shape[0]
    actions, nodes = game.num_actions, num_simulations + 1
    deepest = min(num_simulations, game.longest)
    games = jnp.arange(batch)
    first_edge = games * (nodes * actions)
    along = jnp.arange(deepest)

    def choose(walk: _Walk) -> Any:
        """An untried move where there is one (in a rollout every move counts as untried), else UCT's."""
        legal = jax.vmap(game.legal)(walk.state)
        rows = first_edge + jnp.maximum(walk.node, 0) * actions
        edges = rows[:, None] + jnp.arange(actions)[None, :]
        visits, total = walk.stats[edges, 0], walk.stats[edges, 1]
        untried = legal & ((visits == 0) | (walk.node < 0)[:, None])
        count = jnp.cumsum(untried, axis=1)
        draw = jax.random.uniform(jax.random.fold_in(key, walk.tick), (batch,))
        rank = jnp.floor(draw * count[:, -1]).astype(jnp.int32)
        at_random = jnp.argmax(count > rank[:, None], axis=1)
        known = jnp.maximum(visits, 1.0)
        bonus = jnp.sqrt(jnp.log(jnp.maximum(jnp.sum(visits, axis=1), 1.0))[:, None] / known)
        by_tree = jnp.argmax(jnp.where(legal, total / known + c * bonus, -jnp.inf), axis=1)
        return jnp.where(count[:, -1] > 0, at_random, by_tree).astype(jnp.int32)

    def one_ply(walk: _Walk) -> _Walk:
        # Count one edge of the simulation before. Its player is the root's at even plies.
        counting = walk.counted < walk.last_length
        edge = jnp.take_along_axis(walk.last_path, jnp.minimum(walk.counted, deepest - 1)[:, None], axis=1)[:, 0]
        result = jnp.where(walk.counted % 2 == 0, walk.last_value, -walk.last_value)
        nowhere = batch * nodes * actions + games  # past the end, where nothing is written
        stats = walk.stats.at[jnp.where(counting, first_edge + edge, nowhere)].add(
            jnp.stack([jnp.ones_like(result), result], axis=1), mode="drop", unique_indices=True
        )
        walk = walk._replace(stats=stats, counted=walk.counted + counting)

        # Play one ply.
        going = (walk.ended < num_simulations) & ~walk.over
        action = choose(walk)
        new, reward, terminated = jax.vmap(game.step, (None, 0, 0))(key, walk.state, action)
        terminated &= going
        value = jnp.where(terminated, jnp.where(walk.depth % 2 == 0, reward, -reward), walk.value)

        # In the tree: remember the edge, follow it, and grow where there is no node yet.
        inside = going & (walk.node >= 0)
        edge = walk.node * actions + action
        path = jnp.where(inside[:, None] & (along[None, :] == walk.depth[:, None]), edge[:, None], walk.path)
        below = walk.child[first_edge + jnp.maximum(edge, 0)]
        grows = inside & (below < 0) & ~terminated
        child = walk.child.at[jnp.where(grows, first_edge + edge, nowhere)].set(walk.used, mode="drop", unique_indices=True)
        walk = walk._replace(
            tick=walk.tick + 1,
            node=jnp.where(inside, below, walk.node),
            depth=walk.depth + going,
            path=path,
            length=walk.length + inside,
            over=walk.over | terminated,
            value=value,
            used=walk.used + grows,
            child=child,
        )

        # Hand it over to be counted, and begin the next one at the root.
        over = walk.over & (walk.counted >= walk.last_length)
        state = jax.tree.map(
            lambda root, now, then: jnp.where(_along(over, now), root, jnp.where(_along(going, now), then, now)), states, walk.state, new
        )
        return walk._replace(
            state=state,
            node=jnp.where(over, 0, walk.node),
            depth=jnp.where(over, 0, walk.depth),
            length=jnp.where(over, 0, walk.length),
            over=walk.over & ~over,
            last_path=jnp.where(over[:, None], walk.path, walk.last_path),
            last_length=jnp.where(over, walk.length, walk.last_length),
            last_value=jnp.where(over, walk.value, walk.last_value),
            counted=jnp.where(over, 0, walk.counted),
            ended=walk.ended + over,
        )

    def unfinished(walk: _Walk) -> Any:
        return jnp.any((walk.ended < num_simulations) | (walk.counted < walk.last_length))

    zero, path = jnp.zeros(batch, jnp.int32), jnp.zeros((batch, deepest), jnp.int32)
    start = _Walk(
        tick=jnp.int32(0), state=states, node=zero, depth=zero, path=path, length=zero, over=jnp.zeros(batch, bool),
        value=jnp.zeros(batch), last_path=path, last_length=zero, last_value=jnp.zeros(batch), counted=zero, ended=zero, used=zero + 1,
        child=jnp.full(batch * nodes * actions, -1, jnp.int32), stats=jnp.zeros((batch * nodes * actions, 2)),
    )  # fmt: skip
    grown = jax.lax.while_loop(unfinished, one_ply, start)
    stats = grown.stats.reshape(batch, nodes, actions, 2)
    visits = stats[..., 0]
    return Tree(grown.child.reshape(batch, nodes, actions), visits.astype(jnp.int32), stats[..., 1] / jnp.maximum(visits, 1.0))


def _along(mask: jax.Array, like: jax.Array) -> jax.Array:
    return jax.lax.broadcast_in_dim(mask, like.shape, (0,))
