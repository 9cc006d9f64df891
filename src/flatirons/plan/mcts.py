"""Monte Carlo tree search for games of two players, a batch of positions at a time, over mctx's tree (`flatirons[games]`).

One search serves AlphaZero, AlphaGo and plain UCT: how a leaf is judged (`evaluate`) and how an edge is chosen (`select`) are arguments.
What mctx's own policies have otherwise than the papers is put right here: Q is raw, 0 where nothing was tried (mctx rescales it between the
least and the most of each node); noise at the root falls on legal moves alone (theirs is spread over all, and mostly lost to the mask); and
no illegal move is ever chosen, at any depth (theirs masks the root).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flatirons.plan import uct
from flatirons.types import FlatironsError, Key

ILLEGAL = float(jnp.finfo(jnp.float32).min)
"""The log prior of an illegal move."""


class Rules(Protocol):
    """What the search asks of a game, one position at a time (`envs.games.BoardGame` has it). A game that has ended stays as it is."""

    def step(self, key: Key, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """(position, reward of the player who moved, terminated)."""
        ...

    def legal(self, state: Any) -> Any:
        """Bool `[A]`; all True once the game has ended."""
        ...

    def player(self, state: Any) -> Any:
        """Who is to move, int32."""
        ...


class Evaluation(NamedTuple):
    """A judgement of positions: `logits [B, A]` of a policy (illegal moves may have any), and `value [B]` in [-1, 1] for the player to
    move."""

    logits: Any
    value: Any


Evaluate = Callable[[Any, Key, Any], Evaluation]
"""`evaluate(params, key, states [B, ...]) -> Evaluation`."""
Tree = Any
"""mctx's `Tree`, `[B, nodes, ...]`: node 0 is the root, and `children_prior_logits` are log probabilities, `ILLEGAL` for illegal moves."""
Select = Callable[[Key, Tree, Any, Any], Any]
"""`select(key, tree, node, depth) -> action`, for one tree of the batch; `is_legal(tree, node)` is the mask that it must keep to."""


class Analysis(NamedTuple):
    """What a search found, `[B, ...]`. N, Q and P of the papers are `visits`, `q` and `prior`; W is `total`.

    action: int32 `[B]`, the move to play. visits: int32 `[B, A]`. q: float32 `[B, A]`, the mean value for the player to move, 0 where
    unvisited. prior: `[B, A]`, the network's own, without noise. value: `[B]`, the mean over the search, which counts the root's own
    judgement as one visit (of a Gumbel search: the mean of Q under its policy). network_value: `[B]`. legal: bool `[B, A]`. policy:
    `[B, A]`, the search's policy, which a network learns.
    """

    action: Any
    visits: Any
    q: Any
    prior: Any
    value: Any
    network_value: Any
    legal: Any
    policy: Any

    @property
    def total(self) -> Any:
        """W, the sum of values, `[B, A]`."""
        return self.visits * self.q


def demand_mctx() -> Any:
    """The module mctx. Raises FlatironsError, with the line that installs it, where it is missing."""
    try:
        import mctx
    except ModuleNotFoundError:
        raise FlatironsError("the tree search needs the package mctx; install it with: pip install 'flatirons[games]'") from None
    return mctx


# ------------------------------------------------------------------------------------------------------------- the parts


def log_policy(logits: Any, legal: Any) -> jax.Array:
    """Log probabilities over the legal moves, `ILLEGAL` elsewhere; `[..., A]`."""
    masked = jnp.where(legal, logits, ILLEGAL)
    return jnp.where(legal, jax.nn.log_softmax(masked, axis=-1), ILLEGAL)


def is_legal(tree: Tree, node: Any) -> jax.Array:
    """The legal moves at a node of one tree, bool `[A]`."""
    return tree.children_prior_logits[node] > 0.5 * ILLEGAL


UNTHINKABLE = -100.0
"""The logit of a legal move that nobody would make."""


def seeing_wins(game: Rules, evaluate: Evaluate, *, replies: bool = False) -> Evaluate:
    """`evaluate`, but for positions in which the player to move can win with one move: those are worth 1, and that move is the policy.

    With `replies` also for those in which the opponent can win at once: moves that allow it are not thought of while there are others,
    and where there are none the position is worth -1. It tries all A moves of every position, with `replies` all A^2 pairs of moves, which
    suits games that have few and whose rules are cheap beside a network.
    """

    def judged(params: Any, key: Key, states: Any) -> Evaluation:
        found = evaluate(params, key, states)
        moves = jnp.arange(found.logits.shape[-1])
        each = jax.vmap(jax.vmap(game.step, in_axes=(None, None, 0)), in_axes=(None, 0, None))
        after, reward, terminated = each(key, states, moves)
        legal = jax.vmap(game.legal)(states)
        wins = terminated & (reward > 0) & legal
        some = jnp.any(wins, axis=-1)
        logits, value = found
        if replies:
            _, answer, over = jax.vmap(each, in_axes=(None, 0, None))(key, after, moves)
            answered = jnp.any(over & (answer > 0) & jax.vmap(jax.vmap(game.legal))(after), axis=-1) & ~terminated
            safe = legal & ~answered
            hope = jnp.any(safe, axis=-1)
            logits = jnp.where(hope[:, None] & ~safe, UNTHINKABLE, logits)
            value = jnp.where(jnp.any(legal, axis=-1) & ~hope, -1.0, value)
        logits = jnp.where(some[:, None], jnp.where(wins, 0.0, UNTHINKABLE), logits)
        return Evaluation(logits, jnp.where(some, 1.0, value))

    return judged


def puct(c_init: Any = 1.25, c_base: Any = 19652.0) -> Select:
    """AlphaZero's choice: argmax of Q(s, a) + C(s) P(s, a) sqrt(N(s)) / (1 + N(s, a)), C(s) = log((1 + N(s) + c_base) / c_base) + c_init.

    N(s) counts the visit that judged s itself, so that the prior alone decides the first choice; among equals the first move is taken.
    """

    def select(key: Key, tree: Tree, node: Any, depth: Any) -> jax.Array:
        del key, depth
        visits, parent = tree.children_visits[node], tree.node_visits[node].astype(jnp.float32)
        q = jnp.where(visits > 0, tree.qvalues(node), 0.0)
        prior = jnp.exp(tree.children_prior_logits[node])
        exploration = (jnp.log((1.0 + parent + c_base) / c_base) + c_init) * prior * jnp.sqrt(parent) / (1.0 + visits)
        return jnp.argmax(jnp.where(is_legal(tree, node), q + exploration, -jnp.inf)).astype(jnp.int32)

    return select


def with_dirichlet(key: Key, log_prior: Any, legal: Any, alpha: Any, fraction: Any) -> jax.Array:
    """P = (1 - fraction) p + fraction eta, eta ~ Dir(alpha) over the legal moves alone; logs, `[B, A]`."""
    # Gammas by their logarithms: with a small alpha most of them are 0 in float32.
    gammas = jax.random.loggamma(key, alpha, log_prior.shape, jnp.float32)
    eta = jax.nn.softmax(jnp.where(legal, gammas, -jnp.inf), axis=-1)
    mixed = (1.0 - fraction) * jnp.exp(log_prior) + fraction * eta
    return jnp.where(legal, jnp.log(jnp.maximum(mixed, jnp.finfo(jnp.float32).tiny)), ILLEGAL)


def choose(key: Key, visits: Any, temperature: Any) -> jax.Array:
    """A move with probability in proportion to N^(1 / temperature), int32 `[B]`; the most visited where the temperature (`[]` or `[B]`)
    is 0."""
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), visits.shape[:-1])
    logs = jnp.where(visits > 0, jnp.log(jnp.maximum(visits, 1).astype(jnp.float32)), -jnp.inf)
    drawn = jax.random.categorical(key, logs / jnp.maximum(temperature, 1e-3)[..., None], axis=-1)
    return jnp.where(temperature > 0.0, drawn, jnp.argmax(visits, axis=-1)).astype(jnp.int32)


# ------------------------------------------------------------------------------------------------------------ the search


def judge(game: Rules, evaluate: Evaluate, params: Any, key: Key, states: Any) -> tuple[Evaluation, jax.Array]:
    """An Evaluation of positions whose `logits` are log probabilities over the legal moves, and that mask `[B, A]`."""
    legal = jax.vmap(game.legal)(states)
    found = evaluate(params, key, states)
    return Evaluation(log_policy(found.logits, legal), found.value), legal


def grow(
    game: Rules, evaluate: Evaluate, params: Any, key: Key, states: Any, root: Evaluation, legal: Any, *, num_simulations: int,
    select: Select, root_select: Select | None = None, extra: Callable[[Tree], Any] | None = None, max_depth: int | None = None,
    before: Tree | None = None,
) -> Tree:  # fmt: skip
    """The tree after `num_simulations` simulations from `states [B, ...]`, whose judgement `root` and mask `legal` are given.

    Each simulation chooses edges by `select` (at the root by `root_select`, where that is another) down to a new one, plays it, judges the
    position it leads to, and adds that value to every edge on the way, its sign turned wherever the player changes. What follows an end
    counts for nothing. `extra` gives `tree.extra_data [B, ...]`, of the tree as it is before the first simulation.

    before: a tree of an earlier search. Where `states[b]` is one of its positions, what was found below that is kept, as many nodes as
    there are simulations, and the new ones go on from there.
    """
    mctx = demand_mctx()
    room = 1 if before is None else num_simulations + 1

    def loop(start: int, end: int, body: Any, begun: tuple[Key, Tree]) -> Any:
        key, fresh = begun
        # mctx gives simulation i the node i + 1: those before are for what was kept.
        tree = fresh if before is None else jax.vmap(functools.partial(kept, room=room))(before, fresh)
        tree = tree if extra is None else tree.replace(extra_data=extra(tree))
        return jax.lax.fori_loop(start + room - 1, end, body, (key, tree))

    def expand(params: Any, key: Key, action: Any, states: Any) -> tuple[Any, Any]:
        key_step, key_evaluate = jax.random.split(key)
        after, reward, terminated = jax.vmap(game.step, in_axes=(None, 0, 0))(key_step, states, action)
        judged, _ = judge(game, evaluate, params, key_evaluate, after)
        turned = jax.vmap(game.player)(after) != jax.vmap(game.player)(states)
        discount = jnp.where(terminated, 0.0, jnp.where(turned, -1.0, 1.0))
        value = jnp.where(terminated, 0.0, judged.value)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=judged.logits, value=value), after

    at_root = select if root_select is None else root_select
    return mctx.search(
        params,
        key,
        root=mctx.RootFnOutput(prior_logits=root.logits, value=root.value, embedding=states),
        recurrent_fn=expand,
        root_action_selection_fn=lambda key, tree, node: at_root(key, tree, node, 0),
        interior_action_selection_fn=select,
        num_simulations=room - 1 + num_simulations,
        max_depth=max_depth,
        invalid_actions=(~legal).astype(jnp.float32),
        loop_fn=loop,
    )


def unsearched(states: Any, num_actions: int, num_simulations: int) -> Tree:
    """For positions `[B, ...]` the tree of nobody's search, in the shape of one that went on from another with `num_simulations`."""
    mctx, nodes = demand_mctx(), 2 * num_simulations + 1
    embeddings = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], nodes, *x.shape[1:])), states)
    batch = jax.tree.leaves(states)[0].shape[0]
    whole, edge = functools.partial(jnp.zeros, (batch, nodes)), functools.partial(jnp.zeros, (batch, nodes, num_actions))
    return mctx.Tree(
        node_visits=whole(jnp.int32),
        raw_values=whole(),
        node_values=whole(),
        parents=whole(jnp.int32),
        action_from_parent=whole(jnp.int32),
        children_index=edge(jnp.int32),
        children_prior_logits=edge(),
        children_values=edge(),
        children_visits=edge(jnp.int32),
        children_rewards=edge(),
        children_discounts=edge(),
        embeddings=embeddings,
        root_invalid_actions=jnp.zeros((batch, num_actions)),
        extra_data=None,
    )


def kept(before: Tree, fresh: Tree, *, room: int) -> Tree:
    """`fresh`, ONE tree that is but its root, with what `before` holds at and below the same position: `room` nodes at most, the oldest.
    `fresh` itself where `before` has not been there."""
    nodes = before.node_visits.shape[0]
    equal = [
        jnp.all(there == here[:1], axis=tuple(range(1, there.ndim)))
        for there, here in zip(jax.tree.leaves(before.embeddings), jax.tree.leaves(fresh.embeddings), strict=True)
    ]
    same = functools.reduce(jnp.logical_and, equal, before.node_visits > 0)
    root = jnp.argmax(same)
    # A node comes after its parent.
    is_below = lambda n, below: below.at[n].set((n == root) | ((before.parents[n] >= 0) & below[before.parents[n]]))  # noqa: E731
    below = jax.lax.fori_loop(0, nodes, is_below, jnp.zeros(nodes, jnp.bool_))
    place = jnp.where(below & (jnp.cumsum(below) <= room), jnp.cumsum(below) - 1, -1)
    source = jnp.nonzero(place >= 0, size=room, fill_value=0)[0]
    used = (jnp.arange(room) < jnp.sum(place >= 0)) & jnp.any(same)

    def moved(new: jax.Array, old: jax.Array) -> jax.Array:
        return new.at[:room].set(jnp.where(used.reshape(room, *(1,) * (old.ndim - 1)), old, new[:room]))

    child = before.children_index[source]
    index = jnp.where(child >= 0, place[child], -1)
    return fresh.replace(
        **{
            name: jax.tree.map(lambda new, old: moved(new, old[source]), getattr(fresh, name), getattr(before, name))
            for name in (
                "node_visits", "raw_values", "node_values", "action_from_parent", "children_prior_logits", "children_values",
                "children_rewards", "children_discounts", "embeddings",
            )
        },
        parents=moved(fresh.parents, jnp.where(source == root, -1, place[before.parents[source]])),
        children_index=moved(fresh.children_index, index),
        # What found no room is as if it had not been tried.
        children_visits=moved(fresh.children_visits, jnp.where(index >= 0, before.children_visits[source], 0)),
    )  # fmt: skip


def read(tree: Tree, root: Evaluation, legal: Any, action: Any, policy: Any) -> Analysis:
    """An Analysis of a tree's root."""
    summary = tree.summary()
    visits = tree.children_visits[:, 0]
    q = jnp.where(visits > 0, summary.qvalues, 0.0)
    return Analysis(action, visits, q, jnp.exp(root.logits), summary.value, root.value, legal, policy)


def look(game: Rules, evaluate: Evaluate, params: Any, key: Key, states: Any) -> Analysis:
    """No search at all: the policy's likeliest move and the value as they are judged."""
    root, legal = judge(game, evaluate, params, key, states)
    prior, none = jnp.exp(root.logits), jnp.zeros(legal.shape)
    action = jnp.argmax(root.logits, axis=-1).astype(jnp.int32)
    return Analysis(action, none.astype(jnp.int32), none, prior, root.value, root.value, legal, prior)


def search(
    game: Rules, evaluate: Evaluate, params: Any, key: Key, states: Any, *, num_simulations: int, select: Select | None = None,
    noise: tuple[Any, Any] | None = None, temperature: Any = 0.0, max_depth: int | None = None, before: Tree | None = None,
) -> tuple[Analysis, Tree]:  # fmt: skip
    """AlphaZero's search (Silver et al. 2018): `select` is PUCT, the policy is the shares of visits, the move is drawn from it at a
    `temperature`.

    noise: (alpha, fraction) of the Dirichlet noise at the root, or None. Raises FlatironsError where mctx is not installed.
    """
    key_root, key_noise, key_grow, key_choose = jax.random.split(key, 4)
    root, legal = judge(game, evaluate, params, key_root, states)
    begun = root if noise is None else root._replace(logits=with_dirichlet(key_noise, root.logits, legal, *noise))
    tree = grow(
        game,
        evaluate,
        params,
        key_grow,
        states,
        begun,
        legal,
        num_simulations=num_simulations,
        select=select or puct(),
        max_depth=max_depth,
        before=before,
    )
    visits = tree.children_visits[:, 0]
    policy = visits / jnp.sum(visits, axis=-1, keepdims=True).astype(jnp.float32)
    return read(tree, root, legal, choose(key_choose, visits, temperature), policy), tree


def edges(tree: Tree, num_actions: int) -> uct.Tree:
    """What there is to see of a tree: nodes, visits and Q of its edges, for the first `num_actions` actions."""
    q = tree.children_rewards + tree.children_discounts * tree.children_values
    visited = tree.children_visits > 0
    # The tree goes on behind an end, where nothing is.
    child = jnp.where(visited & (tree.children_discounts == 0.0), -1, tree.children_index)
    return uct.Tree(child[..., :num_actions], tree.children_visits[..., :num_actions], jnp.where(visited, q, 0.0)[..., :num_actions])


class Halving(NamedTuple):
    """What the root's choice of a Gumbel search goes by, `[B, A]`: the noise, and the visits there were before it began."""

    root_gumbel: Any
    visits: Any


def gumbel_search(
    game: Rules, evaluate: Evaluate, params: Any, key: Key, states: Any, *, num_simulations: int, scale: Any = 1.0,
    max_considered: int = 16, c_visit: Any = 50.0, c_scale: Any = 1.0, max_depth: int | None = None, before: Tree | None = None,
) -> tuple[Analysis, Tree]:  # fmt: skip
    """The search of "Policy improvement by planning with Gumbel" (Danihelka et al. 2022), good with few simulations.

    At the root `max_considered` moves are drawn without replacement, by their log priors plus Gumbel noise times `scale` (`[]` or `[B]`;
    0: none), and sequential halving divides the simulations among them. Below, visits follow the improved policy (section 5), which is
    softmax(log p + sigma(Q)), sigma(q) = (c_visit + max N) c_scale q (equation 8); Q of a move not visited is the mixed value of appendix
    D. Q is raw, in [-1, 1]: the paper's lies in [0, 1], so that its c_scale of 1 is 0.5 here.
    """
    mctx = demand_mctx()
    key_root, key_gumbel, key_grow = jax.random.split(key, 3)
    root, legal = judge(game, evaluate, params, key_root, states)
    noise = jnp.broadcast_to(scale, legal.shape[:1])[:, None] * jax.random.gumbel(key_gumbel, legal.shape, jnp.float32)
    sigma = functools.partial(mctx.qtransform_completed_by_mix_value, value_scale=c_scale, maxvisit_init=c_visit, rescale_values=False)
    considered = min(max_considered, legal.shape[-1])

    def at_root(key: Key, tree: Tree, node: Any, depth: Any) -> Any:
        del depth
        # Halving divides the new simulations, whatever was known before; Q is of all.
        return mctx.gumbel_muzero_root_action_selection(
            key,
            # The root's row alone, which is all that is read of it: to change the whole would be a copy at every edge.
            tree.replace(children_visits=(tree.children_visits[node] - tree.extra_data.visits)[None]),
            node,
            num_simulations=num_simulations,
            max_num_considered_actions=considered,
            qtransform=lambda _, node: sigma(tree, node),
        )

    # An illegal move scores 0 in it and the best legal one more, as legal scores sum to 1 / (1 + N).
    select = functools.partial(mctx.gumbel_muzero_interior_action_selection, qtransform=sigma)
    tree = grow(
        game, evaluate, params, key_grow, states, root, legal, num_simulations=num_simulations, select=select, root_select=at_root,
        extra=lambda tree: Halving(noise, tree.children_visits[:, 0]), max_depth=max_depth, before=before,
    )  # fmt: skip
    visits = tree.children_visits[:, 0] - tree.extra_data.visits
    improved = root.logits + jax.vmap(sigma, in_axes=(0, None))(tree, 0)
    last = legal & (visits == jnp.max(visits, axis=-1, keepdims=True))
    action = jnp.argmax(jnp.where(last, noise + improved, -jnp.inf), axis=-1).astype(jnp.int32)
    policy = jax.nn.softmax(jnp.where(legal, improved, -jnp.inf), axis=-1)
    found = read(tree, root, legal, action, policy)
    # Halving tries every move it considers; their plain mean would be the value of playing like that.
    tried = found.visits > 0
    weights = jnp.where(tried, policy, 0.0) + jnp.where(tried, jnp.finfo(jnp.float32).tiny, 0.0)
    return found._replace(value=jnp.sum(weights * found.q, axis=-1) / jnp.sum(weights, axis=-1)), tree
