"""AlphaGo's first stage (Silver et al. 2016, Nature 529): the policies that experts' moves teach.

    p_sigma(a | s), a convolutional network, and p_pi(a | s), a fast linear softmax for rollouts, both by
    Delta sigma ~ d log p_sigma(a | s) / d sigma      on positions s of experts' games and the moves a that they played

The experts are game records (SGF, PGN), or a search with random rollouts that plays games first. See docs/alphago.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.core import optimisers, resources, trees
from flatirons.data import offpolicy
from flatirons.data import rollout as data
from flatirons.envs import records
from flatirons.envs.games import BoardGame, Game, demand_game
from flatirons.envs.ingraph import EnvState
from flatirons.plan import contest, mcts, uct
from flatirons.systems.alphago import networks
from flatirons.systems.alphago.networks import Networks
from flatirons.types import FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config


@config
class Config:
    """Settings of the first stage. The defaults are the paper's, on game records."""

    total_steps: int = 340_000_000 * 16
    """Moves in all: those that the experts play, and then num_envs * num_steps for each turn of learning from them. Multiple of a turn."""
    num_envs: int = 16
    """Games that the experts play side by side."""
    num_steps: int = 1
    """Moves that each of them goes on by in a turn."""
    records: str = ""
    """A record file (.sgf, .pgn), or a folder of them, to learn from; empty: the search plays the games."""
    expert_moves: int = 2**17
    """Moves that the search plays before learning begins; a multiple of a turn."""
    expert_simulations: int = 1000
    """Simulations, a random rollout each, of every one of its moves."""
    expert_c: float = 1.4
    """UCT's constant in it."""
    test_every: int = 10
    """One stream of the search's games in so many, or one record in so many, is kept for testing."""
    symmetries: bool = True
    """Turn or mirror each position at random as it is learnt from."""
    gradient_steps: int = 1
    """Updates in a turn of learning."""
    batch_size: int = 16
    """m, positions of a minibatch."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd is plain, as in the paper."""
    learning_rate: float = 0.003
    """alpha, at the start."""
    halve_every: int = 80_000_000
    """Updates after which it is halved, again and again."""
    blocks: int = 6
    """Residual blocks of p_sigma, two convolutions each (the paper has 13 layers)."""
    channels: int = 192
    """k, filters of a convolution."""


PRESETS = {
    "alphago-sl-othello": Preset(
        doc="Othello on a laptop: the moves of MCTS with 1,000 random rollouts.",
        config={
            "total_steps": 64 * 900, "num_envs": 64, "expert_moves": 64 * 600, "gradient_steps": 16, "batch_size": 256,
            "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 1_200, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:othello",),
    ),
    "alphago-sl-connect-four": Preset(
        doc="Connect four on a laptop: the moves of MCTS with 1,000 random rollouts.",
        config={
            "total_steps": 64 * 700, "num_envs": 64, "expert_moves": 64 * 400, "gradient_steps": 16, "batch_size": 256,
            "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 1_200, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:connect_four",),
    ),
    "alphago-sl-hex": Preset(
        doc="Hex on a laptop: the moves of MCTS with 400 random rollouts.",
        config={
            "total_steps": 64 * 700, "num_envs": 64, "expert_moves": 64 * 400, "expert_simulations": 400, "gradient_steps": 16,
            "batch_size": 256, "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 1_200, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:hex",),
    ),
    "alphago-sl-go": Preset(
        doc="Go 9x9 on a laptop: the moves of MCTS with 200 random rollouts, or records.",
        config={
            "total_steps": 64 * 700, "num_envs": 64, "expert_moves": 64 * 400, "expert_simulations": 200, "gradient_steps": 16,
            "batch_size": 256, "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 1_200, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:go_9x9",),
    ),
    "alphago-sl-laptop": Preset(
        doc="Chess and shogi of both sizes on a laptop, to look at: the moves of MCTS with 100 random rollouts, or records.",
        config={
            "total_steps": 32 * 500, "num_envs": 32, "expert_moves": 32 * 200, "expert_simulations": 100, "symmetries": False,
            "gradient_steps": 8, "batch_size": 128, "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 1_200, "blocks": 2,
            "channels": 32,
        },
        tasks=("pgx:gardner_chess", "pgx:animal_shogi", "pgx:chess", "pgx:shogi"),
    ),
    "alphago-sl-tic-tac-toe": Preset(
        doc="Tic-tac-toe in a minute: all four stages, to look at.",
        config={
            "total_steps": 64 * 60, "num_envs": 64, "expert_moves": 64 * 30, "expert_simulations": 100, "gradient_steps": 16,
            "batch_size": 64, "optimiser": "adam", "learning_rate": 3e-3, "halve_every": 200, "blocks": 1, "channels": 16,
        },
        tasks=("pgx:tic_tac_toe",),
    ),
}  # fmt: skip


class Examples(NamedTuple):
    """What experts did: obs `[R, B, *obs]`, legal bool `[R, B, A]`, action int32 `[R, B]`; of stream b the first `known[b]` rows."""

    obs: Any
    legal: Any
    action: Any
    known: Any


class State(NamedTuple):
    """Everything a run is made of. params: `{"sl", "rollout"}`. `turns` and `updates` count turns and gradient steps (int32)."""

    params: Any
    opt_state: Any
    examples: Examples
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any


class Batch(NamedTuple):
    """Rows `[n, ...]`: what was seen, the legal moves, and the expert's."""

    obs: Any
    legal: Any
    action: Any


def _game(task: Task) -> BoardGame:
    return cast(Any, task).env


# ----------------------------------------------------------------------------------------------------------- the experts


def _record_files(where: str) -> list[Path]:
    path = Path(where)
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".sgf", ".pgn") and not p.is_dir()) if path.is_dir() else [path]
    if not found:
        raise FlatironsError(f"{path} holds no .sgf or .pgn file; give a record file or a folder of them as records")
    return found


def located(config: Config) -> Config:
    """The settings with the records' whole path, so that a run finds them from any folder."""
    return dataclasses.replace(cast(Any, config), records=str(Path(config.records).absolute())) if config.records else config


def files(config: Config) -> tuple[Path, ...]:
    """The record files to learn from, in their order; none where a search plays the games. Raises FlatironsError for one that is gone."""
    found = _record_files(config.records) if config.records else []
    gone = next((path for path in found if not path.is_file()), None)
    if gone is not None:
        raise FlatironsError(f"the records {gone} cannot be read (there is no such file); give a record file or a folder")
    return tuple(found)


def read_records(where: str, game: BoardGame) -> np.ndarray:
    """The moves of all games, int32 `[games, plies of the longest]`, -1 after an end.

    Raises FlatironsError, with the game and the move, for a record that is not of the game.
    """
    if not isinstance(game, Game):
        raise FlatironsError("records can be read for pgx:NAME games alone; leave records out, and a search plays the games")
    files = _record_files(where)
    try:
        stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    except OSError as error:
        raise FlatironsError(f"the records {error.filename} cannot be read ({error.strerror}); give a record file or a folder") from None
    return _read(game, stamps)


@functools.lru_cache(maxsize=2)
def _read(game: Game, stamps: tuple[tuple[str, int, int], ...]) -> np.ndarray:
    # Within someone's jit the rules' own compiled steps would be tracers.
    with jax.ensure_compile_time_eval():
        found = records.load(game, [Path(name) for name, _, _ in stamps])
    begun = next((i for i, one in enumerate(found, 1) if one.start), None)
    if begun is not None:
        raise FlatironsError(f"record {begun} of {len(found)} begins with a position set up; only games from the start can be learnt from")
    played = [one.actions for one in found if one.actions]  # abandoned before the first move, a game has nothing to teach
    if not played:
        raise FlatironsError(f"none of {len(found)} recorded games has a move; give records of games that were played")
    moves = np.full((len(played), max(map(len, played))), -1, np.int32)
    for row, actions in zip(moves, played, strict=True):
        row[: len(actions)] = actions
    return moves


def _unfold(game: BoardGame, moves: np.ndarray) -> Examples:
    """The positions of recorded games, a stream for each."""
    key = jax.random.key(0)
    starts = jax.vmap(game.init)(jax.random.split(key, len(moves)))

    def one_ply(states: Any, action: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        seen = jax.vmap(game.observe)(states), jax.vmap(game.legal)(states)
        after, _, ended = jax.vmap(game.step, in_axes=(None, 0, 0))(key, states, jnp.maximum(action, 0))
        return after, (*seen, ended)

    found: Any = jax.lax.scan(one_ply, starts, jnp.asarray(moves.T))
    obs, legal, ended = found[1]
    # What people played on after a draw that they did not claim is beyond the end here: ply t is known where none before it ended the game.
    going = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]]) == 0
    known = jnp.sum(going & (moves.T >= 0), axis=0).astype(jnp.int32)
    return Examples(obs, legal, jnp.asarray(moves.T), known)


def _empty(config: Config, game: BoardGame) -> Examples:
    lead = (config.expert_moves // config.num_envs, config.num_envs)
    spec = game.obs_spec
    return Examples(
        jnp.zeros((*lead, *spec.shape), spec.dtype), jnp.zeros((*lead, game.num_actions), bool), jnp.zeros(lead, jnp.int32),
        jnp.zeros(config.num_envs, jnp.int32),
    )  # fmt: skip


def _complete(config: Config, examples: Examples) -> Any:
    return jnp.array(True) if config.records else examples.known[0] >= examples.action.shape[0]


def _is_test(config: Config, examples: Examples) -> jax.Array:
    """Which streams are kept for testing, bool `[B]`: whole games, so that no position of a game learnt from is among them."""
    return jnp.arange(len(examples.known)) % config.test_every == config.test_every - 1


def sample(examples: Examples, key: Key, num: int, streams: Any) -> Batch:
    """`num` positions drawn evenly from those of some streams (bool `[B]`)."""
    counts = jnp.where(streams, examples.known, 0)
    upto = jnp.cumsum(counts)
    number = jax.random.randint(key, (num,), 0, jnp.maximum(upto[-1], 1))
    stream = jnp.minimum(jnp.searchsorted(upto, number, side="right"), len(upto) - 1)
    row = jnp.clip(number - (upto - counts)[stream], 0, examples.action.shape[0] - 1)
    return Batch(*(x[row, stream] for x in (examples.obs, examples.legal, examples.action)))


# ------------------------------------------------------------------------------------------------------------- the system


def steps_per_turn(config: Config) -> int:
    """Moves in a turn; one of learning counts as many."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    game = demand_game(task, "alphago-sl")
    networks.demand_board(task, "alphago-sl")
    networks.demand_least(
        config, num_steps=1, expert_simulations=1, test_every=2, gradient_steps=1, batch_size=1, halve_every=1, blocks=1, channels=1
    )
    if config.records:
        num = read_records(config.records, game).shape[0]
        if num < config.test_every:
            raise FlatironsError(
                f"{config.records} holds {num} games with a move, none of which test_every={config.test_every} would keep; make it less"
            )
        shapes = jax.eval_shape(lambda: _unfold(game, read_records(config.records, game)))
    else:
        turn = steps_per_turn(config)
        if config.expert_moves < turn or config.expert_moves % turn:
            raise FlatironsError(f"expert_moves={config.expert_moves} must be a multiple of a turn's {turn} moves")
        if config.expert_moves >= config.total_steps:
            raise FlatironsError(
                f"expert_moves={config.expert_moves} leaves nothing of total_steps={config.total_steps} to learn in; make it less"
            )
        if config.num_envs < config.test_every:
            raise FlatironsError(f"num_envs={config.num_envs} streams of games leave none to test on; make test_every at most that")
        shapes = jax.eval_shape(lambda: _empty(config, game))
    resources.require_memory(trees.num_bytes(shapes), "the experts' positions")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh policies; the positions of the records, or none yet."""
    game = _game(task)
    key_params, key_collect, key = jax.random.split(key, 3)
    params = {"sl": networks.policy_init(config, game, key_params), "rollout": networks.rollout_init(game)}
    return State(
        params=params,
        opt_state=networks.optimiser(config.optimiser).init(params),
        examples=_unfold(game, read_records(config.records, game)) if config.records else _empty(config, game),
        collector=data.start(task, (), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
    )


def actor(state: State) -> Networks:
    """p_sigma and p_pi."""
    return Networks(state.params["sl"], state.params["rollout"], (), ())


def to_act(config: Config) -> Config:
    """Settings of the same networks that read no records: only learning needs them, and whoever plays need not have them any more."""
    if not config.records:
        return config
    turn = config.test_every  # what `check` asks of a search's games, which there will be none of
    return dataclasses.replace(cast(Any, config), records="", num_envs=turn, num_steps=1, expert_moves=turn, total_steps=2 * turn)


def policy(config: Config, task: Task, actor: Networks, *, greedy: bool) -> Policy:
    """greedy: p_sigma's likeliest move. Otherwise the expert's, found by its search."""
    game = _game(task)

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if not greedy:
            states = timestep.model.inner
            return uct.search(game, states, key, config.expert_simulations, config.expert_c).action, carry, ()
        logits = networks.policy_logits(config, game, actor.sl, timestep.obs)
        return networks.likeliest(logits, timestep.legal), carry, ()

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """-log p_sigma(a | s) - log p_pi(a | s), over the legal moves; the two share no parameters."""
    game = _game(task)
    found = {
        "sl": networks.policy_logits(config, game, params["sl"], batch.obs),
        "rollout": networks.rollout_logits(params["rollout"], batch.obs),
    }
    metrics = {}
    for name, logits in found.items():
        log_p = jnp.take_along_axis(mcts.log_policy(logits, batch.legal), batch.action[:, None], axis=1)
        metrics[f"{name}_loss"] = -jnp.mean(log_p)
    total = metrics["sl_loss"] + metrics["rollout_loss"]
    return total, metrics | {"loss": total}


def accuracy(config: Config, task: Task, params: Any, batch: Batch) -> dict[str, jax.Array]:
    """Top-1: the share of positions in which the likeliest move is the expert's, of both policies; and of a draw from the legal moves."""
    game = _game(task)
    found = {
        "sl": networks.policy_logits(config, game, params["sl"], batch.obs),
        "rollout": networks.rollout_logits(params["rollout"], batch.obs),
    }
    right = {name: jnp.mean(networks.likeliest(logits, batch.legal) == batch.action) for name, logits in found.items()}
    return right | {"chance": jnp.mean(1.0 / jnp.sum(batch.legal, axis=-1))}


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """While the experts play, keep their moves `[T, B]`; once all are there, take `gradient_steps` steps instead."""
    game, examples = _game(task), state.examples
    learns = _complete(config, examples)
    if not config.records:
        # Where all are there the write lies past the end, and is dropped.
        rows = examples.known[0] + jnp.arange(config.num_steps)
        examples = Examples(
            obs=examples.obs.at[rows].set(experience.obs, mode="drop"),
            legal=examples.legal.at[rows].set(experience.legal, mode="drop"),
            action=examples.action.at[rows].set(experience.action, mode="drop"),
            known=jnp.minimum(examples.known + config.num_steps, examples.action.shape[0]),
        )
    key, key_draw, key_turn, key_test, key_train = jax.random.split(state.key, 5)
    test = _is_test(config, examples)
    rate = functools.partial(networks.halved, config.learning_rate, every=config.halve_every)

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, opt_state, updates = c
        batch = sample(examples, jax.random.fold_in(key_draw, i), config.batch_size, ~test)
        if config.symmetries:
            board, action = networks.sides(game, jax.random.fold_in(key_turn, i), config.batch_size)
            # Action a of the turned board is action[n, a] here, so that the expert's is where that is what was played.
            played = jnp.argmax(action == batch.action[:, None], axis=1)
            batch = Batch(networks.turned_obs(batch.obs, board), jnp.take_along_axis(batch.legal, action, axis=1), played)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        direction, opt_state = networks.optimiser(config.optimiser).update(grads, opt_state)
        params = optimisers.descend(params, direction, rate(updates=updates))
        return (params, opt_state, updates + 1), metrics | {"grad_norm": trees.global_norm(grads)}

    carry = (state.params, state.opt_state, state.updates)
    (params, opt_state, updates), metrics = offpolicy.gradient_steps(one_update, carry, config.gradient_steps, learns)

    def measure(_: Any) -> Metrics:
        found = {}
        for name, key, streams in (("test", key_test, test), ("train", key_train, ~test)):
            right = accuracy(config, task, params, sample(examples, key, networks.TEST_POSITIONS, streams))
            found |= {f"{which}_{name}_accuracy": share for which, share in right.items() if which != "chance" or name == "test"}
        return found

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, ()))
    metrics |= jax.lax.cond(learns, measure, lambda _: nothing, ())
    metrics |= {"learning_rate": rate(updates=updates), "expert_positions": jnp.sum(examples.known).astype(jnp.float32)}
    return State(params, opt_state, examples, state.collector, key, state.turns + 1, updates), metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_steps` moves of the experts in every game, or, once all are there, a stretch of learning."""

    def play(collector: data.Collector) -> Any:
        return data.rollout(config, task, policy, actor(state), collector, config.num_steps)

    _, *like = jax.eval_shape(play, state.collector)

    def rest(collector: data.Collector) -> Any:
        return collector, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    collector, experience, episodes = jax.lax.cond(_complete(config, state.examples), rest, play, state.collector)
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


# --------------------------------------------------------------------------------------------------------- asked from outside


def analyse(config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int) -> mcts.Analysis:
    """What p_sigma thinks in positions `[B, ...]` (a batch of game states, or `TimeStep.model`); it knows no values: they are 0.

    Raises FlatironsError for num_simulations > 0.
    """
    if num_simulations:
        raise FlatironsError("a policy network plays without a search: give simulations=0, or go on to alphago with --from")
    game = _game(task)

    def evaluate(params: Any, key: Key, states: Any) -> mcts.Evaluation:
        logits = networks.policy_logits(config, game, params, jax.vmap(game.observe)(states))
        return mcts.Evaluation(logits, jnp.zeros(logits.shape[0]))

    return mcts.look(game, evaluate, actor.sl, key, model.inner if isinstance(model, EnvState) else model)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _score(config: Config, game: BoardGame, actor: Networks, key: Key, num_games: int) -> tuple[contest.Score, contest.Score]:
    players = (
        networks.chooser(game, functools.partial(networks.policy_logits, config, game, actor.sl), greedy=True),
        networks.chooser(game, functools.partial(networks.rollout_logits, actor.rollout), greedy=True),
    )
    by_chance = functools.partial(contest.random_move, game)
    return tuple(  # type: ignore[return-value]
        contest.compete(game, player, by_chance, key, num_games, opening_plies=2)
        for player, key in zip(players, jax.random.split(key), strict=True)
    )


def score(config: Config, task: Task, actor: Networks, episodes: int, seed: int) -> dict[str, Any]:
    """Share of points of p_sigma's likeliest moves against random play in `episodes` games (rounded up to an even number), as `mean`;
    and of p_pi's, as `rollout`. How well the two copy the experts is among the metrics."""
    num_games = episodes + episodes % 2
    sl, rollout = _score(config, _game(task), actor, jax.random.key(seed), num_games)
    return {"mean": float(sl.points), "rollout": float(rollout.points), "games": num_games}
