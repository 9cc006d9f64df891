"""What AlphaGo's four stages share: its four networks, how they move, and how one stage hands them to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from flatirons.data import positions
from flatirons.envs.games import BoardGame
from flatirons.nets.mlp import dense
from flatirons.nets.resnet import Shape, policy_head, resnet_init, trunk, value_head
from flatirons.plan import mcts
from flatirons.types import ArraySpec, FlatironsError, Key, Task

POLICY_FILTERS = 8
"""1x1 filters before a policy."""
VALUE_FILTERS = 8
"""1x1 filters before a value."""
VALUE_HIDDEN = 64
"""Rectifiers before a value."""
TEST_POSITIONS = 512
"""Positions on which accuracies and errors are measured, each turn others."""


class Networks(NamedTuple):
    """Parameters of p_sigma (`sl`), p_pi (`rollout`), p_rho (`rl`) and v_theta (`value`); `()` where a stage has not come to them yet."""

    sl: Any
    rollout: Any
    rl: Any
    value: Any


class Sizes(Protocol):
    """What every stage's Config has of the networks."""

    @property
    def blocks(self) -> int: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102


def _shape(config: Sizes) -> Shape:
    return Shape(config.blocks, config.channels, "layer", POLICY_FILTERS, VALUE_FILTERS, VALUE_HIDDEN)


def _init(config: Sizes, game: BoardGame, key: Key, without: str) -> Any:
    whole = resnet_init(key, game.obs_spec, game.num_actions, _shape(config))
    return {name: part for name, part in whole.items() if name != without}


def policy_init(config: Sizes, game: BoardGame, key: Key) -> Any:
    """Parameters of a policy network."""
    return _init(config, game, key, "value")


def value_init(config: Sizes, game: BoardGame, key: Key) -> Any:
    """Parameters of a value network."""
    return _init(config, game, key, "policy")


def rollout_init(game: BoardGame) -> Any:
    """Parameters of the rollout policy: a linear softmax over the board as it is seen, at first even over all moves."""
    rows, cols, planes = game.obs_spec.shape
    return {"w": jnp.zeros((rows * cols * planes, game.num_actions)), "b": jnp.zeros(game.num_actions)}


def policy_logits(config: Sizes, game: BoardGame, params: Any, obs: Any) -> jax.Array:
    """Logits `[B, A]` of a policy network for `obs [B, *obs]`, illegal moves among them."""
    return policy_head(params, trunk(params, game.obs_spec, _shape(config), obs))


def values(config: Sizes, game: BoardGame, params: Any, obs: Any) -> jax.Array:
    """v `[B]` in [-1, 1] for the player to move."""
    return value_head(params, trunk(params, game.obs_spec, _shape(config), obs))


def rollout_logits(params: Any, obs: Any) -> jax.Array:
    """Logits `[B, A]` of the rollout policy."""
    return dense(params, obs.astype(jnp.float32).reshape(obs.shape[0], -1))


def draw(key: Key, logits: Any, legal: Any) -> jax.Array:
    """A legal move drawn from a policy, int32 `[B]`."""
    return jax.random.categorical(key, mcts.log_policy(logits, legal), axis=-1).astype(jnp.int32)


def likeliest(logits: Any, legal: Any) -> jax.Array:
    """The legal move that a policy thinks best, int32 `[B]`; of all of them where `legal` is `()`."""
    legal = jnp.ones(logits.shape, bool) if isinstance(legal, tuple) else legal
    return jnp.argmax(mcts.log_policy(logits, legal), axis=-1).astype(jnp.int32)


def chooser(game: BoardGame, logits_of: Callable[[Any], Any], *, greedy: bool) -> Callable[[Key, Any], jax.Array]:
    """A player `choose(key, states [B]) -> actions [B]` of `logits_of(obs [B])`: drawn, or the likeliest."""

    def choose(key: Key, states: Any) -> jax.Array:
        logits, legal = logits_of(jax.vmap(game.observe)(states)), jax.vmap(game.legal)(states)
        return likeliest(logits, legal) if greedy else draw(key, logits, legal)

    return choose


def play_out(game: BoardGame, choose: Callable[[Key, Any], Any], key: Key, states: Any, games: int = 1) -> jax.Array:
    """Play `states [B]` to their ends, each in so many games; z float32 `[B]`, the mean of +1 where the player to move in them won."""
    mover = jax.vmap(game.player)(states)

    def one_ply(c: tuple[Any, ...]) -> tuple[Any, ...]:
        ply, states, _ = c
        key_move, key_step = jax.random.split(jax.random.fold_in(key, ply))
        after, _, over = jax.vmap(game.step, in_axes=(None, 0, 0))(key_step, states, choose(key_move, states))
        return ply + 1, after, jnp.all(over)

    starts = jax.tree.map(lambda x: jnp.repeat(x, games, axis=0), states)
    _, ends, _ = jax.lax.while_loop(lambda c: (c[0] < game.longest) & ~c[2], one_ply, (jnp.int32(0), starts, jnp.array(False)))
    outcome = jnp.mean(jax.vmap(game.outcome)(ends).reshape(-1, games), axis=1)
    return jnp.where(mover == 0, outcome, -outcome)


def sides(game: BoardGame, key: Key, num: int) -> tuple[jax.Array, jax.Array]:
    """One of the game's symmetries for each of `num` positions, drawn at random: rows of `Symmetries`."""
    which = jax.random.randint(key, (num,), 0, len(game.symmetries.board))
    return jnp.asarray(game.symmetries.board)[which], jnp.asarray(game.symmetries.action)[which]


turned_obs = positions.turned_obs


# -------------------------------------------------------------------------------------------------------- games in a turn


class Played(NamedTuple):
    """Of a stretch `[T, B]` that begins with a new game in every stream. first_game bool `[T, B]`: rows of that game, where it ended in
    the stretch. z float32 `[T, B]`: its result for the player to move. finished bool `[B]`: it did. result float32 `[B]`: for player 0."""

    first_game: Any
    z: Any
    finished: Any
    result: Any


def played(player: Any, reward: Any, terminated: Any) -> Played:
    """The first game of each stream, from who was to move, the mover's reward and the ends, `[T, B]` each. What follows it is left out:
    of a second game only a short one could be whole, and short games are not like the others."""
    before = jnp.cumsum(terminated, axis=0) - terminated
    rows = before == 0
    finished = jnp.any(terminated, axis=0)
    result = jnp.sum(jnp.where(rows & terminated, jnp.where(player == 0, reward, -reward), 0.0), axis=0)
    z = jnp.where(player == 0, result[None], -result[None])
    return Played(rows & finished[None], z, finished, result)


# -------------------------------------------------------------------------------------------------------------- learning


def optimiser(name: str) -> optax.GradientTransformation:
    """sgd: plain, as in the paper; adam."""
    return optax.identity() if name == "sgd" else optax.scale_by_adam()


def halved(rate: Any, updates: Any, every: int) -> jax.Array:
    """A learning rate halved after every so many updates."""
    return rate * 0.5 ** (updates // every).astype(jnp.float32)


def demand_board(task: Task, system: str) -> None:
    """Raises FlatironsError where what is seen is no board."""
    spec = task.spec.obs
    if not isinstance(spec, ArraySpec) or len(spec.shape) != 3:
        raise FlatironsError(f"{system} needs observations [rows, cols, planes], and those of {task.name} are {spec}")


def demand_least(config: Any, **least: int) -> None:
    """Raises FlatironsError for a setting that is below its least value."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise FlatironsError(f"{name}={getattr(config, name)} must be at least {value}")
