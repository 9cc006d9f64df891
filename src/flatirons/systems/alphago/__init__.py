"""AlphaGo (Silver et al. 2016, Nature 529): the player, a tree search that mixes what three stages before it learned.

    a = argmax Q(s, a) + c P(s, a) sqrt(sum_b N(s, b)) / (1 + N(s, a)),      P = p_sigma^beta
    a leaf s is worth V(s) = (1 - lambda) v_theta(s) + lambda z,             z: a game from s to its end by p_pi
    Q(s, a) is the mean V of the leaves below; the move played is the most visited

`alphago-sl` teaches p_sigma and p_pi, `alphago-rl` p_rho, `alphago-value` v_theta, each in a file of this folder; `--from RUN` hands all
of a stage's networks to the next. See docs/alphago.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from flatirons.core import optimisers, trees
from flatirons.data import rollout as data
from flatirons.envs.games import BoardGame, demand_game
from flatirons.envs.ingraph import EnvState
from flatirons.plan import contest, mcts, uct
from flatirons.systems.alphago import networks
from flatirons.systems.alphago.networks import Networks
from flatirons.types import FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config

STARTS_FROM = ("alphago-value",)
"""The stage whose run `--from` takes."""


@config
class Config:
    """Settings of the player. The defaults are the paper's."""

    total_steps: int = 2 * 722
    """Moves of the player against itself in all, over all games; a multiple of num_envs * num_steps."""
    num_envs: int = 2
    """Games of a turn."""
    num_steps: int = 722
    """Plies of a turn. A game that is not over by then is left out (metric `unfinished`)."""
    num_simulations: int = 1600
    """Simulations of a search (the paper searches for five seconds)."""
    mix: float = 0.5
    """lambda: 0 asks the value network alone, 1 rollouts alone."""
    rollouts: int = 1
    """Games to the end from each leaf, whose mean result is z. The paper plays one."""
    prior: Literal["sl", "rl"] = "sl"
    """Whose moves the search tries: p_sigma's, or p_rho's."""
    beta: float = 0.67
    """The prior is that policy to the power beta: its logits times beta, a softmax temperature of 1 / beta, flatter where beta is below 1.
    The paper writes p_sigma^beta and calls beta the temperature."""
    c_puct: float = 5.0
    """c, the weight of the prior."""
    expand_after: int = 40
    """n_thr: visits that end at a position before the search goes beyond it. 1: none but the first."""
    leaf_symmetries: bool = True
    """Turn or mirror each position at random as the networks judge it."""
    play_keep_tree: bool = True
    """In matches and engines: what the search found below the position that came about is kept, and gone on from."""
    temperature: float = 1.0
    """tau of the games against itself: at their start moves are drawn by N^(1/tau)."""
    temperature_plies: int = 30
    """Plies of that start."""
    learning_rate: float = 0.0
    """alpha of a step on v_theta after each turn, from one position of each of its games; 0: the networks stay as they were handed
    over, as in the paper."""
    blocks: int = 6
    """Residual blocks; as in the stages before."""
    channels: int = 192
    """Filters of a convolution; as in the stages before."""


PRESETS = {
    "alphago-othello": Preset(
        doc="Othello on a laptop: four rollouts a leaf, which are worth about as much as v_theta then.",
        config={
            "total_steps": 2 * 66, "num_steps": 66, "num_simulations": 64, "rollouts": 4, "c_puct": 1.5, "expand_after": 1,
            "temperature_plies": 8, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:othello",),
    ),
    "alphago-connect-four": Preset(
        doc="Connect four on a laptop.",
        config={
            "total_steps": 2 * 42, "num_steps": 42, "num_simulations": 64, "c_puct": 1.5, "expand_after": 1, "temperature_plies": 6,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:connect_four",),
    ),
    "alphago-hex": Preset(
        doc="Hex on a laptop.",
        config={
            "total_steps": 2 * 122, "num_steps": 122, "num_simulations": 64, "c_puct": 1.5, "expand_after": 1, "temperature_plies": 8,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:hex",),
    ),
    "alphago-go": Preset(
        doc="Go 9x9 on a laptop.",
        config={
            "total_steps": 2 * 162, "num_steps": 162, "num_simulations": 64, "c_puct": 1.5, "expand_after": 1, "temperature_plies": 10,
            "blocks": 2, "channels": 32,
        },
        tasks=("pgx:go_9x9",),
    ),
    "alphago-laptop": Preset(
        doc="Chess and shogi of both sizes on a laptop, to look at.",
        config={
            "total_steps": 2 * 512, "num_steps": 512, "num_simulations": 32, "c_puct": 1.5, "expand_after": 1, "leaf_symmetries": False,
            "temperature_plies": 10, "blocks": 2, "channels": 32,
        },
        tasks=("pgx:gardner_chess", "pgx:animal_shogi", "pgx:chess", "pgx:shogi"),
    ),
    "alphago-tic-tac-toe": Preset(
        doc="Tic-tac-toe in a minute.",
        config={
            "total_steps": 2 * 10, "num_steps": 10, "num_simulations": 50, "c_puct": 1.5, "expand_after": 1, "temperature_plies": 4,
            "blocks": 1, "channels": 16,
        },
        tasks=("pgx:tic_tac_toe",),
    ),
}  # fmt: skip


class State(NamedTuple):
    """Everything a run is made of. params: theta. networks: of the stages before, `value` empty. `turns` and `updates` count turns and
    gradient steps (int32)."""

    params: Any
    networks: Networks
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any


class Batch(NamedTuple):
    """Rows `[n, ...]`: a position, the game's result for the player to move in it, and 1, or 0 where there is none."""

    obs: Any
    z: Any
    weight: Any


def _game(task: Task) -> BoardGame:
    return cast(Any, task).env


# ------------------------------------------------------------------------------------------------------------- the search


def evaluator(config: Config, game: BoardGame) -> mcts.Evaluate:
    """The leaf's judgement, `evaluate(networks, key, states)`: log P, and (1 - lambda) v + lambda z for the player to move."""

    def evaluate(params: Networks, key: Key, states: Any) -> mcts.Evaluation:
        key_side, key_play = jax.random.split(key)
        obs = jax.vmap(game.observe)(states)
        board, action = networks.sides(game, key_side, len(obs))
        seen = networks.turned_obs(obs, board) if config.leaf_symmetries else obs
        logits = networks.policy_logits(config, game, params.sl if config.prior == "sl" else params.rl, seen)
        if config.leaf_symmetries:
            logits = jnp.take_along_axis(logits, jnp.argsort(action, axis=1), axis=1)
        nothing = lambda _: jnp.zeros(len(obs))  # noqa: E731
        # One that does not count costs nothing either.
        v = jax.lax.cond(config.mix < 1.0, lambda _: networks.values(config, game, params.value, seen), nothing, ())
        by_pi = networks.chooser(game, functools.partial(networks.rollout_logits, params.rollout), greedy=False)
        z = jax.lax.cond(config.mix > 0.0, lambda _: networks.play_out(game, by_pi, key_play, states, config.rollouts), nothing, ())
        return mcts.Evaluation(config.beta * logits, (1.0 - config.mix) * v + config.mix * z)

    return evaluate


def apv(c_puct: Any) -> mcts.Select:
    """AlphaGo's choice: argmax of Q + u, u = c P sqrt(sum_b N(b)) / (1 + N(a)) (Methods, "Search algorithm"). The visit that judged the
    node itself does not count. Where no edge has been tried all u are 0, and the likeliest move is taken."""

    def select(key: Key, tree: mcts.Tree, node: Any, depth: Any) -> jax.Array:
        del key, depth
        legal = mcts.is_legal(tree, node)
        visits = jnp.where(legal, tree.children_visits[node], 0)
        q = jnp.where(visits > 0, tree.qvalues(node), 0.0)
        u = c_puct * jnp.exp(tree.children_prior_logits[node]) * (jnp.sqrt(jnp.sum(visits)) + 1e-6) / (1.0 + visits)
        return jnp.argmax(jnp.where(legal, q + u, -jnp.inf)).astype(jnp.int32)

    return select


@dataclasses.dataclass(frozen=True)
class Patient:
    """A game with one more action, A: to stay. Nothing happens, and the same player is to move; the rules do not count it as legal.

    Staying lets several simulations end at one position, each with a rollout of its own, without the tree growing beyond it.
    """

    game: BoardGame

    def step(self, key: Key, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """(position, reward of the player who moved, terminated)."""
        stays = action == self.game.num_actions
        after, reward, terminated = self.game.step(key, state, jnp.minimum(action, self.game.num_actions - 1))
        return trees.select(stays, state, after), jnp.where(stays, 0.0, reward), terminated & ~stays

    def legal(self, state: Any) -> jax.Array:
        """Bool `[A + 1]`."""
        return jnp.append(self.game.legal(state), False)

    def player(self, state: Any) -> Any:
        """Who is to move."""
        return self.game.player(state)


def patient(select: mcts.Select, expand_after: int, stay: int) -> mcts.Select:
    """`select`, but below the root a node is stayed at until `expand_after` simulations have ended at it."""

    def choose(key: Key, tree: mcts.Tree, node: Any, depth: Any) -> jax.Array:
        stays = (node != 0) & (tree.node_visits[node] < expand_after)
        return jnp.where(stays, stay, select(key, tree, node, depth)).astype(jnp.int32)

    return choose


def search(
    config: Config, game: BoardGame, params: Networks, key: Key, states: Any, *, num_simulations: int, temperature: Any = 0.0
) -> mcts.Analysis:
    """Search from `states [B, ...]`; without simulations, what the networks (and a rollout) say at sight."""
    if num_simulations == 0:
        return mcts.look(game, evaluator(config, game), params, key, states)
    return grow(config, game, params, key, states, num_simulations=num_simulations, temperature=temperature)[0]


def grow(
    config: Config, game: BoardGame, params: Networks, key: Key, states: Any, *, num_simulations: int, temperature: Any = 0.0,
    before: mcts.Tree | None = None,
) -> tuple[mcts.Analysis, mcts.Tree]:  # fmt: skip
    """The same with the tree; `before` is the tree of an earlier move, from which it goes on."""
    evaluate, select, actions = evaluator(config, game), apv(config.c_puct), game.num_actions
    options = {"num_simulations": num_simulations, "temperature": temperature, "before": before}
    if config.expand_after == 1:
        return mcts.search(game, evaluate, params, key, states, select=select, **options)

    def judged(params: Networks, key: Key, states: Any) -> mcts.Evaluation:
        found = evaluate(params, key, states)
        return found._replace(logits=jnp.pad(found.logits, ((0, 0), (0, 1))))

    select = patient(select, config.expand_after, actions)
    found, tree = mcts.search(Patient(game), judged, params, key, states, select=select, **options)
    return found._replace(**{name: getattr(found, name)[:, :actions] for name in ("visits", "q", "prior", "legal", "policy")}), tree


# ------------------------------------------------------------------------------------------------------------- the system


def steps_per_turn(config: Config) -> int:
    """Moves in a turn, over all games."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    demand_game(task, "alphago")
    mcts.demand_mctx()
    networks.demand_board(task, "alphago")
    networks.demand_least(config, num_steps=1, num_simulations=1, rollouts=1, expand_after=1, blocks=1, channels=1)
    if not 0.0 <= config.mix <= 1.0:
        raise FlatironsError(f"mix={config.mix} must lie between 0 (the value network alone) and 1 (rollouts alone)")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh networks, which those of the run that `--from` names replace."""
    game = _game(task)
    key_params, key_sl, key_rl, key_collect, key = jax.random.split(key, 5)
    sl, rl = (networks.policy_init(config, game, k) for k in (key_sl, key_rl))
    return State(
        params=networks.value_init(config, game, key_params),
        networks=Networks(sl, networks.rollout_init(game), rl, ()),
        collector=data.start(task, (), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
    )


def handed(config: Config, state: State, name: str, actor: Networks) -> State:
    """A fresh State with the networks of the stages before."""
    del config, name
    return state._replace(params=actor.value, networks=actor._replace(value=()))


def actor(state: State) -> Networks:
    """All four networks."""
    return state.networks._replace(value=state.params)


def policy(config: Config, task: Task, actor: Networks, *, greedy: bool) -> Policy:
    """Searches and plays the most visited move; without greedy, at a game's start, one drawn by the visits.

    Where the position itself is not there (`timestep.model` is `()`), the prior's likeliest move.
    """
    game = _game(task)

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if not timestep.model:
            logits = networks.policy_logits(config, game, actor.sl if config.prior == "sl" else actor.rl, timestep.obs)
            return networks.likeliest(logits, timestep.legal), carry, ()
        states = timestep.model.inner
        temperature = 0.0 if greedy else jnp.where(timestep.model.steps < config.temperature_plies, config.temperature, 0.0)
        if greedy:
            # The same position is the same move: rollouts and sides are drawn from one key.
            key = jax.random.key(0)
        found = search(config, game, actor, key, states, num_simulations=config.num_simulations, temperature=temperature)
        extras = () if greedy else {"player": jax.vmap(game.player)(states), "value": found.value}
        return found.action, carry, extras

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """(z - v_theta(s))^2, the mean over the games."""
    v = networks.values(config, _game(task), params, batch.obs)
    total = jnp.sum(jnp.square(batch.z - v) * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)
    return total, {"loss": total}


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """How well the search foresaw the ends of a turn's games `[T, B]`, and a step of v_theta on one position of each."""
    found = networks.played(experience.extras["player"], experience.reward, experience.terminated)
    key, key_row = jax.random.split(state.key)
    chance = jnp.where(found.first_game, 0.0, -jnp.inf)
    row = jnp.argmax(chance + jax.random.gumbel(key_row, chance.shape), axis=0)
    stream = jnp.arange(config.num_envs)
    batch = Batch(experience.obs[row, stream], found.z[row, stream], found.finished.astype(jnp.float32))
    grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(state.params, batch)
    params = optimisers.descend(state.params, grads, config.learning_rate)
    missed = jnp.square(found.z - experience.extras["value"]) * found.first_game
    metrics |= {
        "search_mse": jnp.sum(missed) / jnp.maximum(jnp.sum(found.first_game), 1),
        "first_mover_points": 0.5 + 0.5 * jnp.sum(found.result * found.finished) / jnp.maximum(jnp.sum(found.finished), 1),
        "unfinished": 1.0 - jnp.mean(found.finished),
        "grad_norm": trees.global_norm(grads),
    }
    return state._replace(params=params, key=key, turns=state.turns + 1, updates=state.updates + 1), metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_envs` games of the player against itself, and a step on them."""
    key, key_start = jax.random.split(state.key)
    collector = data.start(task, (), key_start)
    collector, experience, episodes = data.rollout(config, task, policy, actor(state), collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=(), key=key), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


# --------------------------------------------------------------------------------------------------------- asked from outside


@functools.partial(jax.jit, static_argnums=(1, 5))
def _analyse(config: Config, game: BoardGame, params: Networks, states: Any, key: Key, num_simulations: int) -> mcts.Analysis:
    return search(config, game, params, key, states, num_simulations=num_simulations)


def analyse(config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int) -> mcts.Analysis:
    """What the search finds in positions `[B, ...]` (a batch of game states, or `TimeStep.model`); without simulations, the prior and the
    mixed value at sight."""
    return _analyse(config, _game(task), actor, model.inner if isinstance(model, EnvState) else model, key, num_simulations)


@functools.partial(jax.jit, static_argnums=(1, 5))
def _go_on(
    config: Config, game: BoardGame, params: Networks, states: Any, key: Key, num_simulations: int, before: mcts.Tree
) -> tuple[mcts.Analysis, mcts.Tree]:
    return grow(config, game, params, key, states, num_simulations=num_simulations, before=before)


def go_on(
    config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int, before: mcts.Tree | None = None
) -> tuple[mcts.Analysis, mcts.Tree]:
    """`analyse`, with one simulation at least, and the tree to hand over at the next move: what `before`, the tree of an earlier move with
    as many simulations, holds of positions `[B, ...]` is kept. None begins a game."""
    states, game = model.inner if isinstance(model, EnvState) else model, _game(task)
    if before is None:
        before = mcts.unsearched(states, game.num_actions + (config.expand_after > 1), num_simulations)
    return _go_on(config, game, actor, states, key, num_simulations, before)


@functools.partial(jax.jit, static_argnums=(1, 5))
def _analyse_tree(config: Config, game: BoardGame, params: Networks, states: Any, key: Key, num_simulations: int) -> Any:
    found, tree = grow(config, game, params, key, states, num_simulations=num_simulations)
    # Without the edges that stay: what is below a position hangs at its own node.
    return found, mcts.edges(tree, game.num_actions)


def analyse_tree(
    config: Config, task: Task, actor: Networks, model: Any, key: Key, *, num_simulations: int
) -> tuple[mcts.Analysis, uct.Tree]:
    """What `analyse` finds, and the tree it was found in; with one simulation at least."""
    states = model.inner if isinstance(model, EnvState) else model
    return _analyse_tree(config, _game(task), actor, states, key, num_simulations)


def player(config: Config, game: BoardGame, params: Networks) -> contest.Chooser:
    """`choose(key, states [B]) -> actions [B]` with `config.num_simulations`."""
    return lambda key, states: search(config, game, params, key, states, num_simulations=config.num_simulations).action


@functools.partial(jax.jit, static_argnums=(2, 5, 6))
def match(
    first: Config, second: Config, game: BoardGame, params: Networks, key: Key, num_games: int, opening_plies: int = 2
) -> contest.Score:
    """A match between two settings of the player over the same networks, of an even number of games."""
    return contest.compete(game, player(first, game, params), player(second, game, params), key, num_games, opening_plies=opening_plies)


def score(config: Config, task: Task, actor: Networks, episodes: int, seed: int) -> dict[str, Any]:
    """Shares of points in `episodes` games (rounded up to an even number) against the value network alone (`value_alone`, lambda = 0) and
    rollouts alone (`rollouts_alone`, lambda = 1), with as many simulations and two random moves to begin with; `mean` is the lesser."""
    num_games = episodes + episodes % 2
    found: dict[str, Any] = {}
    for name, mix, key in zip(("value_alone", "rollouts_alone"), (0.0, 1.0), jax.random.split(jax.random.key(seed)), strict=True):
        other = dataclasses.replace(cast(Any, config), mix=jnp.float32(mix))
        found[name] = float(match(config, other, _game(task), actor, key, num_games).points)
    return {"mean": min(found.values()), **found, "games": num_games}
