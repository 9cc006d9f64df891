"""AlphaGo's third stage (Silver et al. 2016, Nature 529): who will win, judged at sight.

    repeat
        U ~ uniform{1, ...};  play a game: U - 1 moves by p_sigma, one at random from the legal ones, the others by p_rho
        keep ONE position of it, s_{U+1}, with the game's result z for the player to move
    Delta theta ~ d v_theta(s) / d theta (z - v_theta(s))      on the positions kept

Positions of one game are much alike and have one result: a network that learns from whole games learns the games by heart. See
docs/alphago.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from flatirons.core import optimisers, resources, trees
from flatirons.data import offpolicy
from flatirons.data import rollout as data
from flatirons.envs.games import BoardGame, demand_game
from flatirons.envs.ingraph import EnvState
from flatirons.plan import mcts
from flatirons.systems.alphago import networks
from flatirons.systems.alphago.networks import Networks
from flatirons.types import FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config

STARTS_FROM = ("alphago-rl",)
"""The stage whose run `--from` takes."""
EIGEN_PRODUCTS = True
"""Its products are faster by Eigen than by XLA's own choice on a CPU (`core.compiling`)."""


@config
class Config:
    """Settings of the third stage. The defaults are the paper's."""

    total_steps: int = 240_000 * 128 * 722
    """Moves in all, over all games; a multiple of num_envs * num_steps."""
    num_envs: int = 128
    """Games of a turn."""
    num_steps: int = 722
    """Plies of a turn. A game that is not over by then is left out (metric `unfinished`)."""
    last_ply: int = 450
    """U is drawn from 1 to this; a game that is over by then gives no position."""
    whole_games: bool = False
    """Keep every position of every game instead, all moves by p_rho: the way that over-fits."""
    buffer_size: int = 30_000_000
    """Positions kept to learn from; when it is full, the oldest go."""
    test_every: int = 10
    """The games of one stream in so many are kept for testing, up to buffer_size divided by this."""
    symmetries: bool = True
    """Turn or mirror each position at random as it is learnt from."""
    learning_starts: int = 100_000
    """Positions before the first update."""
    gradient_steps: int = 208
    """Updates in a turn."""
    batch_size: int = 32
    """Positions of a minibatch."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd is plain, as in the paper."""
    learning_rate: float = 0.003
    """alpha, at the start."""
    halve_every: int = 80_000_000
    """Updates after which it is halved, again and again."""
    weight_decay: float = 0.0
    """Share of the parameters that an update takes away, times the learning rate."""
    blocks: int = 6
    """Residual blocks; as in the stages before."""
    channels: int = 192
    """Filters of a convolution; as in the stages before."""


PRESETS = {
    "alphago-value-othello": Preset(
        doc="Othello on a laptop.",
        config={
            "total_steps": 400 * 128 * 66, "num_steps": 66, "last_ply": 58, "buffer_size": 2**16, "learning_starts": 4_096,
            "gradient_steps": 8, "batch_size": 256, "optimiser": "adam", "learning_rate": 5e-4, "halve_every": 800, "weight_decay": 0.01,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:othello",),
    ),
    "alphago-value-connect-four": Preset(
        doc="Connect four on a laptop.",
        config={
            "total_steps": 400 * 128 * 42, "num_steps": 42, "last_ply": 30, "buffer_size": 2**16,
            "learning_starts": 4_096, "gradient_steps": 8, "batch_size": 256, "optimiser": "adam", "learning_rate": 5e-4,
            "halve_every": 800, "weight_decay": 0.01, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:connect_four",),
    ),
    "alphago-value-hex": Preset(
        doc="Hex on a laptop.",
        config={
            "total_steps": 200 * 128 * 122, "num_steps": 122, "last_ply": 60, "buffer_size": 2**15,
            "learning_starts": 2_048, "gradient_steps": 8, "batch_size": 256, "optimiser": "adam", "learning_rate": 5e-4,
            "halve_every": 800, "weight_decay": 0.01, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:hex",),
    ),
    "alphago-value-go": Preset(
        doc="Go 9x9 on a laptop.",
        config={
            "total_steps": 200 * 128 * 162, "num_steps": 162, "last_ply": 100, "buffer_size": 2**15,
            "learning_starts": 2_048, "gradient_steps": 8, "batch_size": 256, "optimiser": "adam", "learning_rate": 5e-4,
            "halve_every": 800, "weight_decay": 0.01, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:go_9x9",),
    ),
    "alphago-value-laptop": Preset(
        doc="Chess and shogi of both sizes on a laptop, to look at.",
        config={
            "total_steps": 100 * 16 * 512, "num_envs": 16, "num_steps": 512, "last_ply": 60, "buffer_size": 2**12, "symmetries": False,
            "learning_starts": 256, "gradient_steps": 8, "batch_size": 256, "optimiser": "adam", "learning_rate": 5e-4,
            "halve_every": 800, "weight_decay": 0.01, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:gardner_chess", "pgx:animal_shogi", "pgx:chess", "pgx:shogi"),
    ),
    "alphago-value-tic-tac-toe": Preset(
        doc="Tic-tac-toe in a minute.",
        config={
            "total_steps": 100 * 128 * 10, "num_steps": 10, "last_ply": 7, "buffer_size": 2**14, "learning_starts": 512,
            "gradient_steps": 8, "batch_size": 64, "optimiser": "adam", "learning_rate": 1e-3, "halve_every": 400, "blocks": 1,
            "channels": 16,
        },
        tasks=("pgx:tic_tac_toe",),
    ),
}  # fmt: skip


class Examples(NamedTuple):
    """Positions and their results, a ring: obs `[N, *obs]`, z float32 `[N]` for the player to move, written int32: how many ever were."""

    obs: Any
    z: Any
    written: Any


class State(NamedTuple):
    """Everything a run is made of. params: theta. networks: of the stages before, `value` empty. `turns` and `updates` count turns and
    gradient steps (int32)."""

    params: Any
    opt_state: Any
    networks: Networks
    examples: Examples
    tests: Examples
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any


class Batch(NamedTuple):
    """Rows `[n, ...]`: a position, and the game's result for the player to move in it."""

    obs: Any
    z: Any


def _game(task: Task) -> BoardGame:
    return cast(Any, task).env


def steps_per_turn(config: Config) -> int:
    """Moves in a turn, over all games."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    game = demand_game(task, "alphago-value")
    networks.demand_board(task, "alphago-value")
    networks.demand_least(
        config, num_steps=1, last_ply=1, test_every=2, gradient_steps=1, batch_size=1, halve_every=1, blocks=1, channels=1
    )
    if config.num_envs < config.test_every:
        raise FlatironsError(f"num_envs={config.num_envs} streams of games leave none to test on; make test_every at most that")
    if config.last_ply >= config.num_steps:
        raise FlatironsError(f"last_ply={config.last_ply} is not before the end of a turn's {config.num_steps} plies; make num_steps more")
    most = config.num_envs * (config.num_steps if config.whole_games else 1)
    if config.buffer_size < most * config.test_every:
        raise FlatironsError(
            f"buffer_size={config.buffer_size} must be at least {most * config.test_every}: a turn's positions, times test_every"
        )
    resources.require_memory(trees.num_bytes(jax.eval_shape(lambda: _empty(game, config.buffer_size))), "the positions (buffer_size)")


def _empty(game: BoardGame, num: int) -> Examples:
    return Examples(jnp.zeros((num, *game.obs_spec.shape), game.obs_spec.dtype), jnp.zeros(num), jnp.int32(0))


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh networks, which those of the run that `--from` names replace but for theta."""
    game = _game(task)
    key_params, key_sl, key_rl, key_collect, key = jax.random.split(key, 5)
    params = networks.value_init(config, game, key_params)
    sl, rl = (networks.policy_init(config, game, k) for k in (key_sl, key_rl))
    return State(
        params=params,
        opt_state=networks.optimiser(config.optimiser).init(params),
        networks=Networks(sl, networks.rollout_init(game), rl, ()),
        examples=_empty(game, config.buffer_size),
        tests=_empty(game, config.buffer_size // config.test_every),
        collector=data.start(task, _reset(jnp.int32(0)), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
    )


def handed(config: Config, state: State, name: str, actor: Networks) -> State:
    """A fresh State with the policies of the stages before."""
    del config, name
    return state._replace(networks=actor._replace(value=()))


def actor(state: State) -> Networks:
    """All four networks."""
    return state.networks._replace(value=state.params)


class Ply(NamedTuple):
    """How far the games of a turn are, int32: all have the same U, so that one network moves at a time."""

    ply: Any
    u: Any


def _reset(u: Any) -> Ply:
    return Ply(jnp.int32(0), u)


def policy(config: Config, task: Task, actor: Networks, *, greedy: bool) -> Policy:
    """p_sigma's moves before the U-th, which is drawn from the legal ones, and p_rho's after it; greedy: p_rho's likeliest."""
    game = _game(task)
    logits_of = functools.partial(networks.policy_logits, config, game)

    def best(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        return networks.likeliest(logits_of(actor.rl, timestep.obs), timestep.legal), carry, ()

    def act(key: Key, timestep: TimeStep, carry: Ply) -> tuple[jax.Array, Any, Any]:
        by_rl = functools.partial(logits_of, actor.rl)
        if config.whole_games:
            logits = by_rl(timestep.obs)
        else:
            by_sl, evenly = functools.partial(logits_of, actor.sl), lambda obs: jnp.zeros((obs.shape[0], game.num_actions))
            logits = jax.lax.switch(1 + jnp.sign(carry.ply - (carry.u - 1)), (by_sl, evenly, by_rl), timestep.obs)
        keeps = jnp.full(timestep.first.shape, config.whole_games) | (carry.ply == carry.u)
        extras = {"player": jax.vmap(game.player)(timestep.model.inner), "keeps": keeps}
        return networks.draw(key, logits, timestep.legal), carry._replace(ply=carry.ply + 1), extras

    return Policy(lambda num_envs: (), best) if greedy else Policy(lambda num_envs: _reset(jnp.int32(config.last_ply)), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """(z - v_theta(s))^2, the mean."""
    total = jnp.mean(jnp.square(batch.z - networks.values(config, _game(task), params, batch.obs)))
    return total, {"loss": total}


def add(examples: Examples, obs: Any, z: Any, keeps: Any) -> Examples:
    """The positions `[n, ...]` where `keeps` says so, one after the other."""
    size = examples.z.shape[0]
    place = examples.written + jnp.cumsum(keeps, dtype=jnp.int32) - 1
    slot = jnp.where(keeps, place % size, size)
    return Examples(
        examples.obs.at[slot].set(obs, mode="drop"),
        examples.z.at[slot].set(z, mode="drop"),
        examples.written + jnp.sum(keeps, dtype=jnp.int32),
    )


def sample(examples: Examples, key: Key, num: int) -> Batch:
    """`num` positions, each with equal chance."""
    known = jnp.clip(examples.written, 1, examples.z.shape[0])
    where = jax.random.randint(key, (num,), 0, known)
    return Batch(examples.obs[where], examples.z[where])


def best_constant(examples: Examples) -> jax.Array:
    """The mean squared error of the constant that fits these positions best: the variance of z."""
    known = jnp.arange(examples.z.shape[0]) < examples.written
    count = jnp.maximum(jnp.sum(known), 1)
    mean = jnp.sum(jnp.where(known, examples.z, 0.0)) / count
    return jnp.sum(jnp.where(known, jnp.square(examples.z - mean), 0.0)) / count


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Keep a position of each game of a turn `[T, B]`, and take `gradient_steps` steps on those kept so far."""
    game, extras = _game(task), experience.extras
    found = networks.played(extras["player"], experience.reward, experience.terminated)
    keeps = found.first_game & extras["keeps"]
    streams = jnp.arange(config.num_envs)
    is_test = streams % config.test_every == config.test_every - 1
    obs, z = trees.as_rows(experience.obs), found.z.reshape(-1)
    examples = add(state.examples, obs, z, (keeps & ~is_test[None]).reshape(-1))
    tests = add(state.tests, obs, z, (keeps & is_test[None]).reshape(-1))
    key, key_draw, key_turn, key_test, key_train = jax.random.split(state.key, 5)
    rate = functools.partial(networks.halved, config.learning_rate, every=config.halve_every)

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, opt_state, updates = c
        batch = sample(examples, jax.random.fold_in(key_draw, i), config.batch_size)
        if config.symmetries:
            board, _ = networks.sides(game, jax.random.fold_in(key_turn, i), config.batch_size)
            batch = batch._replace(obs=networks.turned_obs(batch.obs, board))
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        direction, opt_state = networks.optimiser(config.optimiser).update(grads, opt_state)
        direction = jax.tree.map(lambda d, p: d + config.weight_decay * p, direction, params)
        params = optimisers.descend(params, direction, rate(updates=updates))
        return (params, opt_state, updates + 1), metrics | {"grad_norm": trees.global_norm(grads)}

    carry = (state.params, state.opt_state, state.updates)
    (params, opt_state, updates), metrics = offpolicy.gradient_steps(
        one_update, carry, config.gradient_steps, examples.written >= config.learning_starts
    )
    for name, kept, key_one in (("train", examples, key_train), ("test", tests, key_test)):
        batch = sample(kept, key_one, networks.TEST_POSITIONS)
        metrics[f"{name}_mse"] = jnp.mean(jnp.square(batch.z - networks.values(config, game, params, batch.obs)))
    metrics |= {
        "gap": metrics["test_mse"] - metrics["train_mse"],
        "constant_mse": best_constant(tests),
        "positions": examples.written.astype(jnp.float32),
        "unfinished": 1.0 - jnp.mean(found.finished),
        "learning_rate": rate(updates=updates),
    }
    return State(params, opt_state, state.networks, examples, tests, state.collector, key, state.turns + 1, updates), metrics


def _play(config: Config, task: Task, actor: Networks, key: Key) -> Any:
    """A turn's games: `data.rollout`'s triple."""
    key_u, key_start = jax.random.split(key)
    u = jax.random.randint(key_u, (), 1, config.last_ply + 1)
    collector = data.start(task, _reset(u), key_start)
    return data.rollout(config, task, policy, actor, collector, config.num_steps)


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_envs` games, a position of each, and a stretch of learning."""
    key, key_play = jax.random.split(state.key)
    collector, experience, episodes = _play(config, task, actor(state), key_play)
    state, metrics = update(config, task, state._replace(collector=(), key=key), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


# --------------------------------------------------------------------------------------------------------- asked from outside


def analyse(config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int) -> mcts.Analysis:
    """What p_rho and v_theta think in positions `[B, ...]` (a batch of game states, or `TimeStep.model`).

    Raises FlatironsError for num_simulations > 0.
    """
    if num_simulations:
        raise FlatironsError("these are networks without a search: give simulations=0, or go on to alphago with --from")
    game = _game(task)

    def evaluate(params: Networks, key: Key, states: Any) -> mcts.Evaluation:
        obs = jax.vmap(game.observe)(states)
        return mcts.Evaluation(networks.policy_logits(config, game, params.rl, obs), networks.values(config, game, params.value, obs))

    return mcts.look(game, evaluate, actor, key, model.inner if isinstance(model, EnvState) else model)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _score(config: Config, task: Task, actor: Networks, key: Key, turns: int) -> tuple[jax.Array, jax.Array]:
    game = _game(task)

    def one(key: Key) -> Any:
        _, experience, _ = _play(config, task, actor, key)
        found = networks.played(experience.extras["player"], experience.reward, experience.terminated)
        keeps = found.first_game & experience.extras["keeps"]
        v = networks.values(config, game, actor.value, trees.as_rows(experience.obs)).reshape(keeps.shape)
        error = jnp.sum(jnp.where(keeps, jnp.square(found.z - v), 0.0))
        z = jnp.where(keeps, found.z, 0.0)
        return jnp.stack([jnp.sum(keeps, dtype=jnp.float32), error, jnp.sum(z), jnp.sum(jnp.square(z))])

    count, error, total, squares = jnp.sum(jax.lax.map(one, jax.random.split(key, turns)), axis=0)
    return error / count, squares / count - jnp.square(total / count)


def score(config: Config, task: Task, actor: Networks, episodes: int, seed: int) -> dict[str, Any]:
    """1 - MSE / the best constant's, as `mean`, on positions of `episodes` new games (rounded up to whole turns); `mse` and
    `constant_mse`."""
    turns = -(-episodes // config.num_envs)
    error, constant = _score(config, task.resized(config.num_envs), actor, jax.random.key(seed), turns)  # type: ignore[union-attr]
    return {"mean": float(1.0 - error / constant), "mse": float(error), "constant_mse": float(constant), "games": turns * config.num_envs}
