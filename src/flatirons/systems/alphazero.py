"""AlphaZero (Silver et al. 2018, Science 362, arXiv:1712.01815) and AlphaGo Zero (Silver et al. 2017, Nature 550) as settings of it.

    repeat
        play: in every position s, search with (p, v) = f_theta(s), and move by the visits: a ~ pi(a | s) = N(s, a)^(1/tau) / sum
        when a game ends with z, store (s_t, pi_t, z_t) for each of its moves, z_t = +z or -z for the player who was to move
        theta <- theta - lambda grad l,   l = (z - v)^2 - pi^T log p + c |theta|^2
        AlphaGo Zero only: games are played by the best network so far, which the newest replaces where it wins 55 % of a match

Everything is in-graph: games, search and learning are one compiled program. See docs/alphazero.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import optimisers, resources, trees
from flatirons.data import offpolicy, positions
from flatirons.data import rollout as data
from flatirons.envs.games import RESIGN, BoardGame, demand_game
from flatirons.envs.ingraph import EnvState
from flatirons.nets.resnet import Norm, Shape, resnet, resnet_init
from flatirons.plan import contest, mcts, uct
from flatirons.types import ArraySpec, FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config


@config
class Config:
    """Settings of AlphaZero. The defaults are the paper's, for its machines; every game has a preset for one computer."""

    total_steps: int = 140_000_000 * 64
    """Moves of self-play in all, over all games; a multiple of num_envs times num_steps."""
    num_envs: int = 256
    """Games side by side."""
    num_steps: int = 8
    """Moves that each of them goes on by in a turn."""
    search: Literal["puct", "gumbel"] = "puct"
    """puct: the paper's. gumbel: sequential halving at the root, for few simulations (Danihelka et al. 2022)."""
    num_simulations: int = 800
    """Simulations of a search in self-play."""
    play_simulations: int = 0
    """Simulations of a search when it plays for good: in evaluations, and against people. 0: as many as in self-play."""
    c_init: float = 1.25
    """Weight of the prior in PUCT (of the later pseudocode; AlphaGo Zero's c_puct)."""
    c_base: float = 19652.0
    """Visits from which that weight grows."""
    dirichlet_alpha: float = 0.3
    """Noise at the root, Dir(alpha) over the legal moves: 0.3 in chess, 0.15 in shogi, 0.03 in Go (about 10 / legal moves)."""
    dirichlet_fraction: float = 0.25
    """epsilon, the share of that noise in the prior."""
    temperature: float = 1.0
    """tau, by which moves are drawn from the visits at the start of a game; with gumbel the scale of its noise."""
    temperature_plies: int = 30
    """Moves of a game, of both players, that are drawn so; later the most visited is played."""
    opening_plies: int = 0
    """Up to so many random moves begin a game of self-play, so that positions which good play avoids are learnt too; 0 as in the paper."""
    max_considered: int = 16
    """gumbel: moves considered at the root."""
    c_visit: float = 50.0
    """gumbel: visits that Q counts for, beside those it has."""
    c_scale: float = 0.1
    """gumbel: weight of Q, which lies in [-1, 1], in the policy that is learnt. More makes much of small differences between guesses."""
    play_c_scale: float = 1.0
    """gumbel: the same when it plays for good, with more simulations and nothing to be learnt from it."""
    play_max_considered: int = 0
    """gumbel: moves considered at the root when it plays for good; fewer are looked into further. 0: as many as in self-play."""
    blocks: int = 19
    """Residual blocks."""
    channels: int = 256
    """Filters of each convolution."""
    norm: Norm = "layer"
    """layer: each cell's features are standardised; none: blocks are only scaled."""
    policy_channels: int = 2
    """1x1 filters before the policy."""
    value_channels: int = 1
    """1x1 filters before the value."""
    value_hidden: int = 256
    """Rectifiers before the value."""
    buffer_size: int = 2**21
    """Positions in the replay; num_envs must divide it."""
    learning_starts: int = 2**15
    """Positions of finished games before the first update."""
    gradient_steps: int = 4
    """Updates in a turn."""
    batch_size: int = 4096
    """Positions of a minibatch."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd has momentum."""
    learning_rate: float = 0.2
    """lambda, at the start."""
    learning_rate_drops: tuple[float, ...] = (1 / 7, 3 / 7, 5 / 7)
    """Shares of the run after which it is divided by ten."""
    momentum: float = 0.9
    """Of sgd."""
    l2: float = 1e-4
    """c, the weight of the parameters' squares in the loss."""
    value_weight: float = 1.0
    """Weight of the value's error in the loss."""
    value_mix: float = 0.0
    """Share of the search's own value in the value's target; 0 learns from how games ended alone."""
    symmetries: bool = False
    """Turn or mirror each position at random as it is learnt from."""
    leaf_symmetries: bool = False
    """Turn or mirror each position at random as the search judges it (AlphaGo Zero)."""
    see_wins: bool = False
    """Try all moves of each position that the search judges, and find a win there by the rules instead of by the network; for games with
    few moves."""
    play_see_losses: bool = False
    """see_wins, when it plays for good: try all replies to all moves too, and leave out moves that lose at once; for games with very few
    moves."""
    play_keep_tree: bool = True
    """In matches and engines: what the search found below the position that came about is kept, and gone on from, as AlphaGo Zero
    does; in self-play a tree is grown anew for every move."""
    gate_every: int = 0
    """Turns between two matches of the newest network against the best; 0: the newest plays (AlphaZero)."""
    gate_games: int = 400
    """Games of such a match, an even number."""
    gate_threshold: float = 0.55
    """Share of points from which the newest becomes the best."""
    resign: bool = False
    """Give up hopeless games; the threshold is found by playing some of them on."""
    resign_false_positives: float = 0.05
    """Share of games played on that may have been given up by a player who did not lose."""
    resign_playing_on: float = 0.1
    """Share of games that are played on in any case, to measure it."""


def _small(**config: Any) -> dict[str, Any]:
    """A laptop's settings, with `config` on top."""
    return {
        "total_steps": 1_024_000, "num_envs": 64, "num_steps": 16, "search": "gumbel", "num_simulations": 32, "play_simulations": 100,
        "temperature_plies": 15, "blocks": 3, "channels": 64, "policy_channels": 8, "value_channels": 8, "value_hidden": 64,
        "buffer_size": 2**17, "learning_starts": 8_192, "gradient_steps": 4, "batch_size": 512, "optimiser": "adam",
        "learning_rate": 1e-3, "learning_rate_drops": (0.7, 0.9),
    } | config  # fmt: skip


def _board(**config: Any) -> dict[str, Any]:
    """What Othello was tuned to and games of its size share, with `config` on top: many games, few simulations, many updates."""
    return _small(
        num_envs=128, num_steps=8, num_simulations=16, blocks=4, channels=48, gradient_steps=16, batch_size=256, learning_starts=4_096,
        value_mix=0.5, symmetries=True, opening_plies=4, play_max_considered=8,
    ) | config  # fmt: skip


PRESETS = {
    "alphazero-paper": Preset(
        doc="The paper's, with chess's noise and number of games: PUCT, 800 simulations, visits as targets; more than one computer does.",
        config={
            # 44 million games of chess, of about 100 moves of both players, and 700,000 updates on the way.
            "total_steps": 700_000 * 256 * 24, "num_envs": 256, "num_steps": 24, "gradient_steps": 1, "batch_size": 4_096,
            "search": "puct", "num_simulations": 800, "play_simulations": 0, "c_init": 1.25, "c_base": 19_652.0,
            "dirichlet_alpha": 0.3, "dirichlet_fraction": 0.25, "temperature": 1.0, "temperature_plies": 30, "opening_plies": 0,
            "blocks": 19, "channels": 256, "optimiser": "sgd", "momentum": 0.9, "l2": 1e-4, "learning_rate": 0.2,
            "learning_rate_drops": (1 / 7, 3 / 7, 5 / 7), "value_weight": 1.0, "value_mix": 0.0, "symmetries": False,
            "leaf_symmetries": False, "see_wins": False, "play_see_losses": False, "gate_every": 0, "resign": False,
        },
    ),
    "alphago-zero": Preset(
        doc="AlphaGo Zero: the best network plays and must be beaten by 55 %, symmetries in learning and in search, resignation.",
        config={
            "num_simulations": 1_600, "c_base": 1e9, "dirichlet_alpha": 0.03, "batch_size": 2_048, "learning_rate": 0.01,
            "learning_rate_drops": (4 / 7, 6 / 7), "symmetries": True, "leaf_symmetries": True, "gate_every": 250, "resign": True,
        },
    ),
    "alphago-zero-laptop": Preset(
        doc="AlphaGo Zero's loop, its gating, symmetries and resignation, with the numbers of the game's own preset.",
        config={"gate_every": 25, "gate_games": 100, "symmetries": True, "leaf_symmetries": True, "resign": True},
        tasks=("pgx:tic_tac_toe", "pgx:connect_four", "pgx:othello", "pgx:hex", "pgx:go_9x9"),
        variant_of="alphago-zero",
        on_top=True,
    ),
    "alphazero-tic-tac-toe": Preset(
        doc="Tic-tac-toe in a minute or two on a laptop.",
        config=_small(
            total_steps=409_600, num_envs=64, num_simulations=16, blocks=2, channels=32, buffer_size=2**14, learning_starts=1_024,
            batch_size=256, symmetries=True, temperature_plies=9,
        ),
        tasks=("pgx:tic_tac_toe",),
    ),
    "alphazero-connect-four": Preset(
        doc="Connect four in an hour and a half on one core of a laptop.",
        config=_small(
            total_steps=768_000, num_envs=128, num_steps=8, num_simulations=16, blocks=4, channels=48, gradient_steps=16, batch_size=256,
            value_mix=0.5, symmetries=True, opening_plies=4, see_wins=True, play_max_considered=4,
            play_see_losses=True,
        ),
        tasks=("pgx:connect_four",),
    ),
    "alphazero-othello": Preset(
        doc="Othello in 80 minutes on one core of a laptop.",
        config=_board(total_steps=409_600, play_simulations=300),
        tasks=("pgx:othello",),
    ),
    "alphazero-hex": Preset(
        doc="Hex in about an hour on one core of a laptop.", config=_board(total_steps=204_800), tasks=("pgx:hex",)
    ),
    "alphazero-go": Preset(
        doc="Go 9x9 in about an hour on one core of a laptop.",
        config=_board(total_steps=204_800, temperature_plies=20),
        tasks=("pgx:go_9x9",),
    ),
    "alphazero-go-19x19": Preset(
        doc="Go on the whole board: it trains, and needs more than a laptop to become good.",
        config=_small(num_envs=8, symmetries=True, temperature_plies=30, num_simulations=16, batch_size=128),
        tasks=("pgx:go_19x19",),
    ),
    "alphazero-small-chess": Preset(
        doc="Gardner's chess and animal shogi on a laptop.",
        config=_small(
            total_steps=204_800, num_steps=8, num_simulations=16, channels=48, buffer_size=2**15, learning_starts=4_096, gradient_steps=8,
            batch_size=256, value_mix=0.5, temperature_plies=20, opening_plies=4, play_max_considered=8,
        ),
        tasks=("pgx:gardner_chess", "pgx:animal_shogi"),
    ),
    "alphazero-chess": Preset(
        doc="Chess and shogi: they train, and need more than a laptop to become good.",
        config=_small(num_envs=8, buffer_size=2**13, learning_starts=2_048, batch_size=128, num_simulations=16, temperature_plies=30),
        tasks=("pgx:chess", "pgx:shogi"),
    ),
}  # fmt: skip


MOST_TO_TRY = 256
"""Moves up to which `see_wins` is cheap beside a network."""


COPIES_OF_PARAMS = ("best",)
"""Fields of State that begin as the parameters: so they do after a warm start from a run that has none."""
EIGEN_PRODUCTS = True
"""Its products are faster by Eigen than by XLA's own choice on a CPU (`core.compiling`)."""


class Actor(NamedTuple):
    """What playing needs: the parameters of the network that plays, and the value below which it resigns in self-play."""

    params: Any
    resign_below: Any


class Resignation(NamedTuple):
    """`below`: the value below which games are given up. `false_positives`: the running share of games played on in which a player who
    did not lose had fallen below it."""

    below: Any
    false_positives: Any


class State(NamedTuple):
    """Everything a run is made of. `turns` and `updates` count turns and gradient steps (int32); `best` is the best network's parameters,
    or `()` where the newest plays."""

    params: Any
    best: Any
    opt_state: Any
    replay: positions.Positions
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any
    resignation: Resignation


# ------------------------------------------------------------------------------------------------------------ the network


def _game(task: Task) -> BoardGame:
    return cast(Any, task).env


def shape_of(config: Config) -> Shape:
    """The network's sizes."""
    return Shape(config.blocks, config.channels, config.norm, config.policy_channels, config.value_channels, config.value_hidden)


def network(config: Config, game: BoardGame, params: Any, obs: Any) -> tuple[jax.Array, jax.Array]:
    """f_theta: logits `[..., A]` and value `[...]` in [-1, 1] of `obs [..., *obs]`, for the player to move."""
    return resnet(params, game.obs_spec, shape_of(config), obs)


def _turns(game: BoardGame, key: Key, num: int) -> tuple[jax.Array, jax.Array]:
    """Rows of `Symmetries`, one for each of `num` positions, drawn at random."""
    which = jax.random.randint(key, (num,), 0, len(game.symmetries.board))
    return jnp.asarray(game.symmetries.board)[which], jnp.asarray(game.symmetries.action)[which]


def evaluator(config: Config, game: BoardGame) -> mcts.Evaluate:
    """The network as the search asks it, `evaluate(params, key, states)`."""

    def evaluate(params: Any, key: Key, states: Any) -> mcts.Evaluation:
        obs = jax.vmap(game.observe)(states)
        if not config.leaf_symmetries:
            return mcts.Evaluation(*network(config, game, params, obs))
        # p, v = d^-1(f_theta(d(s))), d drawn at random (AlphaGo Zero, Methods, "Expand and evaluate")
        board, action = _turns(game, key, len(obs))
        logits, value = network(config, game, params, positions.turned_obs(obs, board))
        return mcts.Evaluation(jnp.take_along_axis(logits, jnp.argsort(action, axis=1), axis=1), value)

    return evaluate


def search(
    config: Config, game: BoardGame, params: Any, key: Key, states: Any, *, num_simulations: int, exploring: Any = False
) -> mcts.Analysis:
    """Search from `states [B, ...]`; `exploring` is False, or bool `[B]`: with noise, and moves drawn where it says so."""
    return grow(config, game, params, key, states, num_simulations=num_simulations, exploring=exploring)[0]


def grow(
    config: Config, game: BoardGame, params: Any, key: Key, states: Any, *, num_simulations: int, exploring: Any = False,
    before: mcts.Tree | None = None,
) -> tuple[mcts.Analysis, mcts.Tree]:  # fmt: skip
    """The same with the tree, None where there are no simulations; `before` is the tree of the move before, from which it goes on."""
    explores = exploring is not False
    if num_simulations == 0:
        return mcts.look(game, evaluator(config, game), params, key, states), None
    found, tree = _searched(config, game, params, key, states, num_simulations, exploring, before)
    if config.see_wins and not explores:  # who asks for the network's own opinion is not told that of the rules
        own = mcts.look(game, evaluator(config, game), params, key, states)
        found = found._replace(prior=own.prior, network_value=own.network_value)
    return found, tree


def _searched(
    config: Config, game: BoardGame, params: Any, key: Key, states: Any, num_simulations: int, exploring: Any, before: mcts.Tree | None
) -> tuple[mcts.Analysis, mcts.Tree]:
    evaluate, explores = evaluator(config, game), exploring is not False
    if config.see_wins:
        evaluate = mcts.seeing_wins(game, evaluate, replies=config.play_see_losses and not explores)
    temperature = jnp.where(exploring, config.temperature, 0.0) if explores else 0.0
    if config.search == "gumbel":
        considered = config.max_considered if explores else config.play_max_considered or config.max_considered
        return mcts.gumbel_search(
            game, evaluate, params, key, states, num_simulations=num_simulations, scale=temperature, max_considered=considered,
            c_visit=config.c_visit, c_scale=config.c_scale if explores else config.play_c_scale, before=before,
        )  # fmt: skip
    noise = (config.dirichlet_alpha, config.dirichlet_fraction) if explores else None
    select = mcts.puct(config.c_init, config.c_base)
    return mcts.search(
        game, evaluate, params, key, states, num_simulations=num_simulations, select=select, noise=noise, temperature=temperature,
        before=before,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the system


def steps_per_turn(config: Config) -> int:
    """Moves in a turn, over all games."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    game = demand_game(task, "alphazero")
    mcts.demand_mctx()
    spec = task.spec.obs
    if not isinstance(spec, ArraySpec) or len(spec.shape) != 3:
        raise FlatironsError(f"alphazero needs observations [rows, cols, planes], and those of {task.name} are {spec}")
    heads = ("policy_channels", "value_channels", "value_hidden")
    for name in ("num_simulations", "max_considered", "num_steps", "gradient_steps", "batch_size", "blocks", "channels", *heads):
        if getattr(config, name) < 1:
            raise FlatironsError(f"{name}={getattr(config, name)} must be at least 1")
    for name in ("play_simulations", "play_max_considered", "gate_every", "temperature_plies"):
        if getattr(config, name) < 0:
            raise FlatironsError(f"{name}={getattr(config, name)} must not be negative")
    if (config.symmetries or config.leaf_symmetries) and len(game.symmetries.board) == 1:
        raise FlatironsError(f"{task.name} has no symmetries; leave out symmetries and leaf_symmetries")
    if config.see_wins and game.num_actions > MOST_TO_TRY:
        raise FlatironsError(f"see_wins tries all moves of every position, and {task.name} counts {game.num_actions}: leave it out")
    if config.play_see_losses and not config.see_wins:
        raise FlatironsError("play_see_losses goes with see_wins, which is off: switch it on, or leave both out")
    if config.play_see_losses and game.num_actions**2 > MOST_TO_TRY:
        raise FlatironsError(f"play_see_losses tries all pairs of moves, and {task.name} counts {game.num_actions} moves: leave it out")
    if config.opening_plies < 0:
        raise FlatironsError(f"opening_plies={config.opening_plies} must not be negative")
    if config.gate_every and (config.gate_games < 2 or config.gate_games % 2):
        raise FlatironsError(f"gate_games={config.gate_games} must be an even number: each side moves first in half of them")
    if config.gate_every:
        _demand_a_gate(config)
    positions.check(config.num_envs, config.buffer_size, config.num_steps, game.longest)
    # Of a game that still runs no position can be learned from.
    most = config.buffer_size - config.num_envs * game.longest
    if config.learning_starts > most:
        raise FlatironsError(
            f"learning_starts={config.learning_starts} may never be reached: of buffer_size={config.buffer_size} positions {most} are "
            f"surely of finished games ({config.num_envs} may run, of up to {game.longest} moves); make the buffer larger, or start earlier"
        )
    shapes = jax.eval_shape(lambda: positions.create(spec, game.num_actions, config.num_envs, config.buffer_size))
    resources.require_memory(trees.num_bytes(shapes), f"a replay of {config.buffer_size:,} positions (buffer_size)")


def _demand_a_gate(config: Config) -> None:
    """Raises FlatironsError where no match comes due once learning has begun."""
    turn = steps_per_turn(config)
    turns = config.total_steps // turn
    last = turns // config.gate_every * config.gate_every
    if last == 0 or last * turn < config.learning_starts:
        learning = f", of which learning begins after {config.learning_starts:_} positions" if last else ""
        raise FlatironsError(
            f"gate_every={config.gate_every}, and the run has {turns} turns of {turn:_} moves{learning}: no match would be held, and the "
            "network that plays would stay as it began; make it less, or 0 for no matches"
        )


def init(config: Config, task: Task, key: Key) -> State:
    """A fresh network, an empty replay, and games at their start."""
    game = _game(task)
    key_params, key_collect, key = jax.random.split(key, 3)
    params = resnet_init(key_params, game.obs_spec, game.num_actions, shape_of(config))
    return State(
        params=params,
        best=jax.tree.map(jnp.copy, params) if config.gate_every else (),
        opt_state=_optimiser(config).init(params),
        replay=positions.create(game.obs_spec, game.num_actions, config.num_envs, config.buffer_size),
        collector=data.start(task, _reset(config, config.num_envs), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
        resignation=Resignation(jnp.float32(-1.0), jnp.float32(0.0)),
    )


def actor(state: State) -> Actor:
    """The best network where there is gating, else the newest."""
    return Actor(state.params if isinstance(state.best, tuple) else state.best, state.resignation.below)


def _play_simulations(config: Config) -> int:
    return config.play_simulations or config.num_simulations


class Memory(NamedTuple):
    """What is remembered of a running game: how many random moves it begins with, int32 `[B]`; for resignation whether it is played on
    in any case, bool `[B]`, and the lowest that each player's value has been, float32 `[B, 2]`."""

    opening: Any
    plays_on: Any
    lowest: Any


def _reset(config: Config, num_envs: int) -> Any:
    resignation = (jnp.zeros(num_envs, bool), jnp.ones((num_envs, 2))) if config.resign else ((), ())
    return Memory(jnp.zeros(num_envs, jnp.int32) if config.opening_plies else (), *resignation)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Searches, and plays what the search says; greedy: without noise, the move it thinks best, and no resignation.

    The search's policy and value are the extras. Where the position itself is not there (`timestep.model` is `()`), the network alone
    decides.
    """
    game = _game(task)

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if not timestep.model:
            logits, _ = network(config, game, actor.params, timestep.obs)
            legal = jnp.ones(logits.shape, bool) if isinstance(timestep.legal, tuple) else timestep.legal
            return jnp.argmax(mcts.log_policy(logits, legal), axis=-1).astype(jnp.int32), carry, ()
        states = timestep.model.inner
        exploring = False if greedy else timestep.model.steps < config.temperature_plies
        simulations = _play_simulations(config) if greedy else config.num_simulations
        key_search, key_resign = jax.random.split(key)
        found = search(config, game, actor.params, key_search, states, num_simulations=simulations, exploring=exploring)
        if greedy:
            return found.action, carry, ()
        player = jax.vmap(game.player)(states)
        action, settled = found.action, jnp.ones(player.shape, bool)
        if config.opening_plies:
            key_length, key_move = jax.random.split(jax.random.fold_in(key, 0))
            length = jax.random.randint(key_length, player.shape, 0, config.opening_plies + 1)
            carry = carry._replace(opening=jnp.where(timestep.first, length, carry.opening))
            settled = timestep.model.steps >= carry.opening
            action = jnp.where(settled, action, contest.random_move(game, key_move, states))
        extras = {"policy": found.policy, "value": found.value, "player": player, "settled": settled}
        if not config.resign:
            return action, carry, extras
        plays_on = jax.random.uniform(key_resign, player.shape) < config.resign_playing_on
        plays_on = jnp.where(timestep.first, plays_on, carry.plays_on)
        lowest = jnp.where(timestep.first[:, None], 1.0, carry.lowest)
        # Both the root's value and its best child's must be hopeless.
        level = jnp.maximum(found.value, jnp.max(jnp.where(found.visits > 0, found.q, -1.0), axis=-1))
        # Where a random move follows nobody may resign, and nothing is learnt of resigning.
        mine = jax.nn.one_hot(player, 2, dtype=bool) & settled[:, None]
        lowest = jnp.where(mine, jnp.minimum(lowest, level[:, None]), lowest)
        action = jnp.where((level < actor.resign_below) & ~plays_on & settled, RESIGN, action)
        return action, Memory(carry.opening, plays_on, lowest), extras | {"plays_on": plays_on, "lowest": lowest}

    return Policy(functools.partial(_reset, config) if not greedy else lambda num_envs: (), act)


class Batch(NamedTuple):
    """Rows `[n, ...]`: what was seen, the legal moves, pi, and the target of v."""

    obs: Any
    legal: Any
    policy: Any
    value: Any


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """l = (z - v)^2 - pi^T log p + c |theta|^2 (equation 1), p over the legal moves."""
    logits, v = network(config, _game(task), params, batch.obs)
    log_p = mcts.log_policy(logits, batch.legal)
    value_loss = jnp.mean(jnp.square(batch.value - v))
    policy_loss = -jnp.mean(jnp.sum(jnp.where(batch.legal, batch.policy * log_p, 0.0), axis=-1))
    l2 = config.l2 * sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params)), start=jnp.zeros(()))
    total = config.value_weight * value_loss + policy_loss + l2
    pi = batch.policy
    entropy = -jnp.mean(jnp.sum(jnp.where(pi > 0, pi * jnp.log(jnp.maximum(pi, 1e-30)), 0.0), axis=-1))
    return total, {"loss": total, "value_loss": value_loss, "policy_loss": policy_loss, "l2": l2, "search_entropy": entropy}


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.trace(decay=cast(float, config.momentum)) if config.optimiser == "sgd" else optax.scale_by_adam()


def _learning_rate(config: Config, turns: Any) -> jax.Array:
    progress = turns.astype(jnp.float32) * (steps_per_turn(config) / config.total_steps)
    passed = sum((progress >= share for share in config.learning_rate_drops), start=jnp.zeros((), jnp.int32))
    return config.learning_rate * 0.1 ** passed.astype(jnp.float32)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Store a trajectory `[T, B, ...]`, give the games that ended in it their results, and take `gradient_steps` steps; then the match."""
    game, extras = _game(task), experience.extras
    result = jnp.where(extras["player"] == 0, experience.reward, -experience.reward)
    rows = positions.Rows(
        experience.obs, extras["policy"], experience.legal, extras["value"], extras["player"], experience.terminated, result,
        extras["settled"],
    )  # fmt: skip
    replay = positions.add(state.replay, rows, game.longest)
    turns = state.turns + 1
    known = jnp.sum(positions.counts(replay))
    key, key_draw, key_turn, key_gate = jax.random.split(state.key, 4)
    slots, streams = positions.draw(replay, key_draw, (config.gradient_steps, config.batch_size))
    rate = _learning_rate(config, state.turns)

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, opt_state, updates = c
        sampled = positions.read_at(replay, slots[i], streams[i])
        if config.symmetries:
            sampled = positions.turned(sampled, *_turns(game, jax.random.fold_in(key_turn, i), config.batch_size))
        # A random move that follows says nothing of the position: there the search's value alone counts.
        mix = jnp.where(sampled.settled, config.value_mix, 1.0)
        target = (1.0 - mix) * sampled.outcome + mix * sampled.value
        batch = Batch(sampled.obs, sampled.legal, sampled.policy, target)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        params = optimisers.descend(params, direction, rate)
        return (params, opt_state, updates + 1), metrics | {"grad_norm": trees.global_norm(grads)}

    carry = (state.params, state.opt_state, state.updates)
    (params, opt_state, updates), metrics = offpolicy.gradient_steps(
        one_update, carry, config.gradient_steps, known >= config.learning_starts
    )
    metrics |= {"positions": known.astype(jnp.float32), "learning_rate": rate}
    state = State(params, state.best, opt_state, replay, state.collector, key, turns, updates, state.resignation)
    if config.resign:
        state, found = _watch_resignation(config, state, experience, result)
        metrics |= found
    if config.gate_every:
        state, found = _gate(config, game, state, key_gate)
        metrics |= found
    return state, metrics


RESIGN_STEP = 0.01
"""By how much one game moves the threshold of resignation."""
RESIGN_HIGHEST = -0.5
"""Nobody with a better value gives up, however safe it would be."""


def _watch_resignation(config: Config, state: State, experience: Transition, result: Any) -> tuple[State, Metrics]:
    """Move the threshold so that in `resign_false_positives` of the games played on, a player who did not lose had fallen below it."""
    extras = experience.extras
    watched = (experience.terminated & extras["plays_on"]).astype(jnp.float32)
    of_players = jnp.stack([result, -result], axis=-1)
    wrong = jnp.any((extras["lowest"] < state.resignation.below) & (of_players >= 0.0), axis=-1)
    # The mean over time of this step is 0 where the share of wrong ones is what was asked for.
    move = RESIGN_STEP * jnp.sum(watched * (config.resign_false_positives - wrong))
    below = jnp.clip(state.resignation.below + move, -1.0, RESIGN_HIGHEST)
    kept = 0.99 ** jnp.sum(watched)
    share = jnp.sum(watched * wrong) / jnp.maximum(jnp.sum(watched), 1.0)
    resignation = Resignation(below, kept * state.resignation.false_positives + (1.0 - kept) * share)
    return state._replace(resignation=resignation), {"resign_below": below, "resign_false_positives": resignation.false_positives}


def _player(config: Config, game: BoardGame, params: Any, num_simulations: int) -> contest.Chooser:
    """The network with that many simulations, at its best."""
    return lambda key, states: search(config, game, params, key, states, num_simulations=num_simulations).action


def _gate(config: Config, game: BoardGame, state: State, key: Key) -> tuple[State, Metrics]:
    """Every `gate_every` turns a match: the newest network becomes the best where it gets `gate_threshold` of the points (AlphaGo Zero,
    Methods, "Evaluator")."""

    def match(_: Any) -> jax.Array:
        newest, best = (_player(config, game, params, config.num_simulations) for params in (state.params, state.best))
        return contest.compete(game, newest, best, key, config.gate_games, opening_plies=OPENING_PLIES).points

    due = (state.turns % config.gate_every == 0) & (state.updates > 0)
    points = jax.lax.cond(due, match, lambda _: jnp.float32(0.0), ())
    better = due & (points >= config.gate_threshold)
    best = trees.select(better, state.params, state.best)
    return state._replace(best=best), {"gates": due.astype(jnp.float32), "gate_points": points, "gates_passed": better.astype(jnp.float32)}


OPENING_PLIES = 2
"""Random moves at the start of a game of a match, without which all games between two who play alike would be one."""


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_steps` moves in every game, then a training (and a match, where one is due)."""
    collector, experience, episodes = data.rollout(config, task, policy, actor(state), state.collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


# --------------------------------------------------------------------------------------------------------- asked from outside


@functools.partial(jax.jit, static_argnums=(1, 5))
def _analyse(config: Config, game: BoardGame, params: Any, states: Any, key: Key, num_simulations: int) -> mcts.Analysis:
    return search(config, game, params, key, states, num_simulations=num_simulations)


def analyse(config: Config, task: Task, actor: Actor, model: Any, key: Key, *, num_simulations: int) -> mcts.Analysis:
    """What the search finds in positions `[B, ...]` (a batch of game states, or `TimeStep.model`); without simulations, what the network
    alone thinks."""
    states = model.inner if isinstance(model, EnvState) else model
    return _analyse(config, _game(task), actor.params, states, key, num_simulations)


@functools.partial(jax.jit, static_argnums=(1, 5))
def _go_on(
    config: Config, game: BoardGame, params: Any, states: Any, key: Key, num_simulations: int, before: mcts.Tree
) -> tuple[mcts.Analysis, mcts.Tree]:
    found, tree = grow(config, game, params, key, states, num_simulations=num_simulations, before=before)
    return found, tree.replace(extra_data=None)


def go_on(
    config: Config, task: Task, actor: Actor, model: Any, key: Key, *, num_simulations: int, before: mcts.Tree | None = None
) -> tuple[mcts.Analysis, mcts.Tree]:
    """`analyse`, with one simulation at least, and the tree to hand over at the next move: what `before`, the tree of an earlier move with
    as many simulations, holds of positions `[B, ...]` is kept. None begins a game."""
    states = model.inner if isinstance(model, EnvState) else model
    game = _game(task)
    before = mcts.unsearched(states, game.num_actions, num_simulations) if before is None else before
    return _go_on(config, game, actor.params, states, key, num_simulations, before)


@functools.partial(jax.jit, static_argnums=(1, 5))
def _analyse_tree(config: Config, game: BoardGame, params: Any, states: Any, key: Key, num_simulations: int) -> Any:
    found, tree = grow(config, game, params, key, states, num_simulations=num_simulations)
    return found, mcts.edges(tree, game.num_actions)


def analyse_tree(config: Config, task: Task, actor: Actor, model: Any, key: Key, *, num_simulations: int) -> tuple[mcts.Analysis, uct.Tree]:
    """What `analyse` finds, and the tree it was found in; with one simulation at least."""
    states = model.inner if isinstance(model, EnvState) else model
    return _analyse_tree(config, _game(task), actor.params, states, key, num_simulations)


SCORE_SIMULATIONS = 200
"""Simulations of the opponent in `score`."""


@functools.partial(jax.jit, static_argnums=(1, 4))
def _score(config: Config, game: BoardGame, params: Any, key: Key, num_games: int) -> tuple[contest.Score, contest.Score]:
    key_mcts, key_random = jax.random.split(key)
    player = _player(config, game, params, _play_simulations(config))
    uct_player = lambda key, states: uct.search(game, states, key, SCORE_SIMULATIONS).action  # noqa: E731
    random_player = functools.partial(contest.random_move, game)
    return tuple(
        contest.compete(game, player, other, key, num_games, opening_plies=OPENING_PLIES)
        for other, key in ((uct_player, key_mcts), (random_player, key_random))
    )  # type: ignore[return-value]


def score(config: Config, task: Task, actor: Actor, episodes: int, seed: int) -> dict[str, Any]:
    """Share of points in `episodes` games (rounded up to an even number) against UCT with 200 random rollouts, as `mean`, and against
    random play; both colours, two random moves to begin with."""
    num_games = episodes + episodes % 2
    against_mcts, against_random = _score(config, _game(task), actor.params, jax.random.key(seed), num_games)
    found = {"mean": float(against_mcts.points), "random": float(against_random.points)}
    return found | {name: int(count) for name, count in against_mcts._asdict().items()} | {"games": num_games}
