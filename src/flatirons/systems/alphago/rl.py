"""AlphaGo's second stage (Silver et al. 2016, Nature 529): the policy that learns to win.

rho <- sigma;  pool <- {rho}
repeat
    play n games between p_rho and p_rho-, rho- drawn from the pool, each to its end with z
    Delta rho ~ 1/n sum_i sum_t d log p_rho(a_t | s_t) / d rho (z_t - v(s_t))        over p_rho's own moves
    now and then, add rho to the pool
v = 0 on the first pass through the stages, v_theta on the second. See docs/alphago.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from flatirons.core import optimisers, trees
from flatirons.data import rollout as data
from flatirons.envs.games import BoardGame, demand_game
from flatirons.envs.ingraph import EnvState
from flatirons.plan import contest, mcts
from flatirons.systems.alphago import networks
from flatirons.systems.alphago.networks import Networks
from flatirons.types import FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config

STARTS_FROM = ("alphago-sl", "alphago-value")
"""The stages whose run `--from` takes: the second one for a second pass."""
EIGEN_PRODUCTS = True
"""Its products are faster by Eigen than by XLA's own choice on a CPU (`core.compiling`)."""


@config
class Config:
    """Settings of the second stage. The defaults are the paper's."""

    total_steps: int = 10_000 * 128 * 722
    """Moves in all, over all games; a multiple of num_envs * num_steps."""
    num_envs: int = 128
    """n, games of a turn; p_rho moves first in half of them."""
    num_steps: int = 722
    """Plies of a turn, an even number. A game that is not over by then is left out (metric `unfinished`)."""
    pool_every: int = 500
    """Turns after which p_rho joins the pool of opponents."""
    pool_size: int = 21
    """Opponents in the pool; when it is full, the oldest goes."""
    baseline: bool = False
    """Take v(s) from z, as on the second pass; --from a run of alphago-value then."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd is plain, as in the paper."""
    learning_rate: float = 0.001
    """alpha; the paper does not give it."""
    max_grad_norm: float | None = None
    """Scale the gradient down to this norm; none: as it is."""
    blocks: int = 6
    """Residual blocks; as in the first stage."""
    channels: int = 192
    """Filters of a convolution; as in the first stage."""


PRESETS = {
    "alphago-rl-othello": Preset(
        doc="Othello on a laptop.",
        config={
            "total_steps": 1_600 * 64 * 66, "num_envs": 64, "num_steps": 66, "pool_every": 80, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:othello",),
    ),
    "alphago-rl-connect-four": Preset(
        doc="Connect four on a laptop.",
        config={
            "total_steps": 400 * 64 * 42, "num_envs": 64, "num_steps": 42, "pool_every": 20, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:connect_four",),
    ),
    "alphago-rl-hex": Preset(
        doc="Hex on a laptop.",
        config={
            "total_steps": 200 * 64 * 122, "num_envs": 64, "num_steps": 122, "pool_every": 10, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:hex",),
    ),
    "alphago-rl-go": Preset(
        doc="Go 9x9 on a laptop.",
        config={
            "total_steps": 200 * 32 * 162, "num_envs": 32, "num_steps": 162, "pool_every": 10, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:go_9x9",),
    ),
    "alphago-rl-laptop": Preset(
        doc="Chess and shogi of both sizes on a laptop, to look at.",
        config={
            "total_steps": 100 * 8 * 512, "num_envs": 8, "num_steps": 512, "pool_every": 10, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:gardner_chess", "pgx:animal_shogi", "pgx:chess", "pgx:shogi"),
    ),
    "alphago-rl-tic-tac-toe": Preset(
        doc="Tic-tac-toe in a minute.",
        config={
            "total_steps": 100 * 64 * 10, "num_envs": 64, "num_steps": 10, "pool_every": 10, "optimiser": "adam", "learning_rate": 1e-3,
            "blocks": 1, "channels": 16,
        },
        tasks=("pgx:tic_tac_toe",),
    ),
}  # fmt: skip


class State(NamedTuple):
    """Everything a run is made of. params: rho. pool: opponents `[P, ...]`, of which `in_pool` (int32) have ever joined. networks: of the
    stages before, `rl` empty. `turns` and `updates` count turns and gradient steps (int32)."""

    params: Any
    opt_state: Any
    pool: Any
    in_pool: Any
    networks: Networks
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any


class Duel(NamedTuple):
    """Who plays in training: p_rho, and the opponent of this turn."""

    rl: Any
    opponent: Any


class Batch(NamedTuple):
    """Moves of p_rho, `[T / 2, B, ...]`. advantage: z - v. weight: 1, or 0 where it is none of a finished first game. games: n."""

    obs: Any
    legal: Any
    action: Any
    advantage: Any
    weight: Any
    games: Any


def _game(task: Task) -> BoardGame:
    return cast(Any, task).env


def steps_per_turn(config: Config) -> int:
    """Moves in a turn, over all games."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    demand_game(task, "alphago-rl")
    networks.demand_board(task, "alphago-rl")
    networks.demand_least(config, num_envs=2, num_steps=2, pool_every=1, pool_size=1, blocks=1, channels=1)
    for name in ("num_envs", "num_steps"):
        if getattr(config, name) % 2:
            raise FlatironsError(
                f"{name}={getattr(config, name)} must be even: each side moves first in half of the games, and at every second ply"
            )


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh networks, which those of the run that `--from` names replace."""
    game = _game(task)
    key_params, key_value, key_collect, key = jax.random.split(key, 4)
    params = networks.policy_init(config, game, key_params)
    value = networks.value_init(config, game, key_value) if config.baseline else ()
    return State(
        params=params,
        opt_state=networks.optimiser(config.optimiser).init(params),
        pool=_filled(config, params),
        in_pool=jnp.int32(1),
        networks=Networks(jax.tree.map(jnp.copy, params), networks.rollout_init(game), (), value),
        collector=data.start(task, jnp.int32(0), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
    )


def _filled(config: Config, params: Any) -> Any:
    return jax.tree.map(lambda x: jnp.repeat(x[None], config.pool_size, axis=0), params)


def handed(config: Config, state: State, name: str, actor: Networks) -> State:
    """A fresh State with what the run of another stage learned: rho = sigma, and the pool holds nobody else.

    Raises FlatironsError where there is a baseline and no value network.
    """
    if config.baseline and name != "alphago-value":
        raise FlatironsError("baseline needs a value network: give --from a run of alphago-value, or leave baseline out")
    value = actor.value if config.baseline else ()
    return state._replace(
        params=actor.sl, pool=_filled(config, actor.sl), networks=Networks(jax.tree.map(jnp.copy, actor.sl), actor.rollout, (), value)
    )


def actor(state: State) -> Networks:
    """p_rho, and the networks of the stages before."""
    return state.networks._replace(rl=state.params)


def policy(config: Config, task: Task, actor: Any, *, greedy: bool) -> Policy:
    """Moves are drawn from p_rho; greedy: its likeliest. A `Duel` is played in step from the games' start: p_rho has the first move in
    the first half of the games, and the opponent in the others."""
    game = _game(task)
    logits_of = functools.partial(networks.policy_logits, config, game)

    def alone(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        logits = logits_of(actor.rl, timestep.obs)
        move = networks.likeliest(logits, timestep.legal) if greedy else networks.draw(key, logits, timestep.legal)
        return move, carry, ()

    def duel(key: Key, timestep: TimeStep, ply: Any) -> tuple[jax.Array, Any, Any]:
        half = timestep.obs.shape[0] // 2
        first, second = timestep.obs[:half], timestep.obs[half:]
        even = ply % 2 == 0
        ours, theirs = logits_of(actor.rl, jnp.where(even, first, second)), logits_of(actor.opponent, jnp.where(even, second, first))
        logits = jnp.concatenate([jnp.where(even, ours, theirs), jnp.where(even, theirs, ours)])
        return networks.draw(key, logits, timestep.legal), ply + 1, {"player": jax.vmap(game.player)(timestep.model.inner)}

    return Policy(lambda num_envs: jnp.int32(0), duel) if isinstance(actor, Duel) else Policy(lambda num_envs: (), alone)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """-1/n sum_i sum_t log p_rho(a_t | s_t) (z_t - v(s_t)): its gradient is REINFORCE's, turned round."""
    rows: Batch = trees.as_rows(batch._replace(games=()))
    log_p = mcts.log_policy(networks.policy_logits(config, _game(task), params, rows.obs), rows.legal)
    chosen = jnp.take_along_axis(log_p, rows.action[:, None], axis=1)[:, 0]
    total = -jnp.sum(jnp.where(rows.weight > 0, chosen * rows.advantage * rows.weight, 0.0)) / batch.games
    entropy = -jnp.sum(jnp.where(rows.legal, jnp.exp(log_p) * log_p, 0.0), axis=-1)
    return total, {"loss": total, "entropy": jnp.sum(entropy * rows.weight) / jnp.maximum(jnp.sum(rows.weight), 1.0)}


def own_moves(x: Any) -> jax.Array:
    """Of rows `[T, B, ...]` those of p_rho, `[T / 2, B, ...]`: the even plies in the first half of the games, the odd ones in the rest."""
    half = x.shape[1] // 2
    return jnp.concatenate([x[0::2, :half], x[1::2, half:]], axis=1)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """One step of REINFORCE on the games of a turn `[T, B]`; then, when it is time, p_rho joins the pool."""
    game = _game(task)
    found = networks.played(experience.extras["player"], experience.reward, experience.terminated)
    obs, z, weight = (own_moves(x) for x in (experience.obs, found.z, found.first_game.astype(jnp.float32)))
    v = jnp.zeros(z.shape)
    if config.baseline:
        v = networks.values(config, game, state.networks.value, trees.as_rows(obs)).reshape(z.shape)
    games = jnp.sum(found.finished, dtype=jnp.float32)
    batch = Batch(obs, own_moves(experience.legal), own_moves(experience.action), z - v, weight, jnp.maximum(games, 1.0))
    grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(state.params, batch)
    norm = trees.global_norm(grads)
    if config.max_grad_norm is not None:
        grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
    direction, opt_state = networks.optimiser(config.optimiser).update(grads, state.opt_state)
    params = optimisers.descend(state.params, direction, config.learning_rate)

    turns = state.turns + 1
    joins = turns % config.pool_every == 0
    seat = state.in_pool % config.pool_size
    pool = jax.tree.map(lambda seats, now: seats.at[seat].set(jnp.where(joins, now, seats[seat])), state.pool, params)

    half = z.shape[1] // 2
    won = jnp.where(found.finished, found.result * jnp.where(jnp.arange(z.shape[1]) < half, 1.0, -1.0), 0.0)
    counted = jnp.maximum(jnp.sum(weight), 1.0)
    metrics |= {
        "grad_norm": norm,
        "points": 0.5 + 0.5 * jnp.sum(won) / jnp.maximum(games, 1.0),
        "unfinished": 1.0 - jnp.mean(found.finished),
        "in_pool": jnp.minimum(state.in_pool, config.pool_size).astype(jnp.float32),
        "advantage_square": jnp.sum(jnp.square(z - v) * weight) / counted,
    }
    state = state._replace(
        params=params, opt_state=opt_state, pool=pool, in_pool=state.in_pool + joins, turns=turns, updates=state.updates + 1
    )
    return state, metrics


def opponent(config: Config, state: State, key: Key) -> Any:
    """One of the pool, each with equal chance."""
    seat = jax.random.randint(key, (), 0, jnp.minimum(state.in_pool, config.pool_size))
    return jax.tree.map(lambda x: x[seat], state.pool)


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_envs` games against one opponent of the pool, and a step on them."""
    key, key_opponent, key_start = jax.random.split(state.key, 3)
    duel = Duel(state.params, opponent(config, state, key_opponent))
    collector = data.start(task, jnp.int32(0), key_start)
    collector, experience, episodes = data.rollout(config, task, policy, duel, collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=(), key=key), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


# --------------------------------------------------------------------------------------------------------- asked from outside


def analyse(config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int) -> mcts.Analysis:
    """What p_rho thinks in positions `[B, ...]` (a batch of game states, or `TimeStep.model`); it knows no values: they are 0.

    Raises FlatironsError for num_simulations > 0.
    """
    if num_simulations:
        raise FlatironsError(
            "a policy network plays without a search: give simulations=0, or go on to alphago-value and alphago with --from"
        )
    game = _game(task)

    def evaluate(params: Any, key: Key, states: Any) -> mcts.Evaluation:
        logits = networks.policy_logits(config, game, params, jax.vmap(game.observe)(states))
        return mcts.Evaluation(logits, jnp.zeros(logits.shape[0]))

    return mcts.look(game, evaluate, actor.rl, key, model.inner if isinstance(model, EnvState) else model)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _score(config: Config, game: BoardGame, actor: Networks, key: Key, num_games: int) -> tuple[contest.Score, contest.Score]:
    found = []
    for greedy, opening, k in zip((False, True), (0, 2), jax.random.split(key), strict=True):
        rl, sl = (
            networks.chooser(game, functools.partial(networks.policy_logits, config, game, params), greedy=greedy)
            for params in (actor.rl, actor.sl)
        )
        found.append(contest.compete(game, rl, sl, k, num_games, opening_plies=opening))
    return tuple(found)  # type: ignore[return-value]


def score(config: Config, task: Task, actor: Networks, episodes: int, seed: int) -> dict[str, Any]:
    """Share of points of p_rho against p_sigma in `episodes` games (rounded up to an even number), both drawing their moves, as `mean`; and
    with the likeliest moves of both after two random ones, as `greedy`."""
    num_games = episodes + episodes % 2
    drawn, greedy = _score(config, _game(task), actor, jax.random.key(seed), num_games)
    found = {"mean": float(drawn.points), "greedy": float(greedy.points), "games": num_games}
    return found | {name: int(count) for name, count in drawn._asdict().items()}
