"""Elastic weight consolidation around DQN, on games in turn (Kirkpatrick et al. 2017, arXiv:1612.00796, section "EWC allows continual
learning in a reinforcement learning context" and figure 3).

    for visit = 1, 2, ... do
        g <- the game whose turn it is, with its own replay, exploration and episodes
        for each step do  DQN's step, its loss with ½ lambda sum_k F_k (theta - theta*_k)² added, over the games k left so far but g
        F_g <- the Fisher information of Q on g's replay, units silent there closed in g, theta*_g <- theta
    (units closed in all games left so far are begun anew as g is entered)

The games are those of a `sequence:` task; which one is played is known to the learner. DQN is `systems/dqn.py` as it stands: its loss is
wrapped by `core.fisher.anchored`, and its State is put together from what all games share (`Learner`) and what each has (`Game`).
See docs/ewc.md, which says what likelihood defines F.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.core import fisher as information
from flatirons.core import trees
from flatirons.data import replay as memory
from flatirons.nets.mlp import dense_init
from flatirons.nets.torso import torso
from flatirons.systems import dqn
from flatirons.types import Discrete, FlatironsError, InGraphTask, Key, Metrics, Network, Policy, Preset, Task, TimeStep, config


@config
class Config(dqn.Config):
    """Settings of DQN, and those of the sequence and of what holds the parameters."""

    total_steps: int = 1_800_000
    """Decisions in all, over all games, visits and environments."""
    mode: Literal["ewc", "l2", "sgd", "separate"] = "ewc"
    """ewc, l2 (F = I), sgd (one network without any penalty), separate (a network of its own for each game, the upper bound)."""
    strength: float = 0.3
    """Lambda of equation 3; its unit is that of F, so that the paper's 400 is another's."""
    visit_steps: int = 300_000
    """Decisions of a visit: the games come in turn, again and again, for so long each."""
    turn_steps: int = 1_000
    """Decisions in a turn, at whose end a run may stop; train_every must divide it, and it must divide visit_steps."""
    likelihood: Literal["gaussian", "gaussian-all", "softmax", "softmax-scaled"] = "gaussian"
    """What F is the information of. gaussian: y ~ N(Q(s, a), 1) for the action taken, whose -log is DQN's squared error; gaussian-all: for
    every action, so that those a greedy policy seldom takes are held too; softmax: a ~ softmax(Q(s, .)); softmax-scaled: of Q in units of
    the game's own deviation over actions, so that a game whose actions differ little is held as firmly as one whose do much."""
    fisher_batches: int = 100
    """Minibatches of the replay that F is an average over (the paper: 100)."""
    anneal_each_visit: bool = False
    """Let the learning rate fall linearly to 0 over each visit (not in the paper): what is held is shaken by every step that is made."""
    own_anchor: bool = False
    """Hold a game that is visited again to its own anchor too."""
    task_gains: bool = False
    """Gains and biases of each game's own in every layer below Q's, as the paper has them."""
    gated: float = 0.0
    """Probability that a game's gain of a unit begins at 0, in the dense layers, where a rectifier then stays silent in that game (Masse
    2018, context-dependent gating; not in the paper). It needs task_gains."""
    close_silent: bool = False
    """As a game is left, set its own gains and biases of units that are silent in all states of F to 0 (not in the paper). Nothing changes
    there, and F is 0 of such a unit's weights: another game would be free to change them, and the unit to speak in this game too. It needs
    task_gains; mode sgd, too, then computes F."""
    reopen_silent: bool = False
    """As a game is entered, begin units of the last hidden layer anew that are closed in every game left so far (not in the paper): with
    fresh weights in, weights of 0 out, and a gain of 1 in this game. No game hears them, and F is 0 of them in each. What dies in one
    game is dead in the next otherwise. It needs close_silent."""
    eval_reference: tuple[float, ...] = ()
    """Each game's return that counts as 1 in the total score, where it is clipped; none: returns are added up as they are."""


LEAST_VARIANCE = 1e-8
"""Of Q over actions, that softmax-scaled divides by: a game in which nothing makes a difference is not held without bounds."""
CAP = 27_000
"""Decisions after which an episode is cut in `score` where a game has no time limit."""
LATEST = ("game",)
"""Metrics that stand for a moment: a mean over a report's turns, which may lie in several visits, would be no game's number."""

MINATAR = dqn.MINATAR | {
    "total_steps": 1_800_000,
    "train_every": 4,
    "n_step": 3,
    "optimiser": "adam",
    "optimiser_eps": 1e-6,
    "learning_rate": 5e-4,
    "anneal_each_visit": True,
    "target_every": 500,
    "buffer_size": 100_000,
}
ONE_NETWORK = MINATAR | {
    "network": "minatar-wide",
    "task_gains": True,
    "likelihood": "softmax-scaled",
    "strength": 3.0,
    "close_silent": True,
    "reopen_silent": True,
}
"""Of all games: twice as wide as what one game has to itself."""

PRESETS = {
    "ewc-dqn": Preset(
        doc="MinAtar games in turn, 300,000 decisions a visit (two each of three games): DQN with Adam and three-step targets, and EWC.",
        config=ONE_NETWORK | {"mode": "ewc"},
        tasks=("sequence:pgx:minatar-*",),
    ),
    "l2-dqn": Preset(
        doc="As ewc-dqn with F = I: every parameter is held alike, those of silent units too, which therefore are not closed.",
        config=ONE_NETWORK | {"mode": "l2", "strength": 0.1, "close_silent": False, "reopen_silent": False},
    ),
    "sgd-dqn": Preset(doc="As ewc-dqn without a penalty: what forgets.", config=ONE_NETWORK | {"mode": "sgd"}),
    "separate-dqn": Preset(
        doc="As ewc-dqn with a network for each game, of MinAtar's width: what each game can reach.",
        config=MINATAR | {"mode": "separate"},
    ),
}


class Learner(NamedTuple):
    """What games share: DQN's parameters, target, optimiser, and its count of updates."""

    params: Any
    target: Any
    opt_state: Any
    updates: Any


class Game(NamedTuple):
    """What each game has: replay, exploration, running episodes, key, trainings so far; its anchor and F, both 0 until it was left."""

    replay: Any
    epsilon: Any
    collector: Any
    key: Any
    turns: Any
    priorities: Any
    behind: Any
    anchor: Any
    fisher: Any


class State(NamedTuple):
    """Everything a run is made of. `learners` has one, or one for each game (mode separate); `games` one for each; `turns` counts turns,
    `game` is the number of the game played last (int32)."""

    learners: tuple[Learner, ...]
    games: tuple[Game, ...]
    turns: Any
    game: Any


class Actor(NamedTuple):
    """The networks, each game's exploration, and the number of the game that is played (int32), after training the last one."""

    params: tuple[Any, ...]
    epsilon: tuple[Any, ...]
    game: Any


# --------------------------------------------------------------------------------------------------------------- the parts


def _config_of(config: Config, task: Task, game: Any) -> Config:
    """DQN's settings for one game: with `task_gains`, a network that game's own gains and biases run through."""
    if not config.task_gains:
        return config
    inner = torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in", layer_norm=config.layer_norm)
    num_games = len(_games(task))

    def init(key: Key, obs_spec: Any) -> Any:
        params = inner.init(key, obs_spec)
        layers = [layer for layer in jax.tree.leaves(params, is_leaf=_is_layer) if _is_layer(layer)]
        if not layers:
            raise FlatironsError(
                'task_gains is for layers {"w": ..., "b": ...}, and the network has none: leave it off, or name its parameters so'
            )
        keys = jax.random.split(jax.random.fold_in(key, 1), len(layers))
        gains = tuple(_own_gains(layer, num_games, config.gated, k) for layer, k in zip(layers, keys, strict=True))
        return {"shared": params, "games": gains}

    def apply(params: Any, obs: Any) -> jax.Array:
        own = iter(jax.tree.map(lambda x: x[game], params["games"]))
        return inner.apply(jax.tree.map(lambda x: _gained(x, next(own)) if _is_layer(x) else x, params["shared"], is_leaf=_is_layer), obs)

    return cast(Config, dataclasses.replace(cast(Any, config), network=Network(init, apply)))


def _is_layer(x: Any) -> bool:
    return isinstance(x, dict) and x.keys() == {"w", "b"}


def _own_gains(layer: Any, num_games: int, gated: Any, key: Key) -> Any:
    """Each game's gains and biases of a layer, `[games, out]`: 1, or where a dense layer's unit is gated 0, and 0."""
    shape = (num_games, *layer["b"].shape)
    is_dense = layer["w"].ndim == 2
    gain = jax.random.bernoulli(key, 1.0 - gated, shape).astype(jnp.float32) if is_dense else jnp.ones(shape)
    return {"gain": gain, "bias": jnp.zeros(shape)}


def _gained(layer: Any, own: Any) -> Any:
    """The layer g (W x + b) + c, for a game's own gain g and bias c of each output."""
    return {"w": layer["w"], "gain": own["gain"], "b": layer["b"] * own["gain"] + own["bias"]}


def _games(task: Any) -> tuple[InGraphTask, ...]:
    """The tasks of a sequence. Raises FlatironsError for another task."""
    tasks = getattr(task, "tasks", None)
    if not isinstance(tasks, tuple):
        raise FlatironsError(
            f"ewc-dqn takes several games in turn and {task.name} is one: give sequence:pgx:minatar-breakout,pgx:minatar-freeway"
        )
    return tasks


def _joined(learner: Learner, game: Game) -> dqn.State:
    return dqn.State(
        learner.params, learner.target, learner.opt_state, game.replay, game.epsilon, game.collector, game.key, game.turns,
        learner.updates, game.priorities, game.behind,
    )  # fmt: skip


def _parted(state: dqn.State, anchor: Any, fisher: Any) -> tuple[Learner, Game]:
    learner = Learner(state.params, state.target, state.opt_state, state.updates)
    game = Game(
        state.replay, state.epsilon, state.collector, state.key, state.turns, state.priorities, state.behind, anchor, fisher
    )  # fmt: skip
    return learner, game


def _pull(config: Config, games: tuple[Game, ...], now: int) -> tuple[Any, Any]:
    """Anchors and Fishers that hold the parameters while game `now` is played: those of the others in one, which pull as they all do."""
    held = [game for g, game in enumerate(games) if g != now or config.own_anchor]
    if config.mode in ("sgd", "separate") or not held:
        return (), ()
    anchor, fisher = held[0].anchor, held[0].fisher
    for game in held[1:]:
        anchor, fisher = information.combined(anchor, fisher, game.anchor, game.fisher)
    return (anchor,), (fisher,)


def fisher(config: Config, task: Task, params: Any, replay: memory.Replay, key: Key, batches: Any) -> Any:
    """F of the Q-network on one game: the mean over `batches` minibatches (which may be traced) of its replay.

    gaussian: y ~ N(Q(s, a), 1), E_y[(d log p(y | s, a) / d theta)²] = (dQ(s, a) / d theta)², with the expectation taken in closed form.
    gaussian-all: y ~ N(Q(s, .), I), sum_a (dQ(s, a) / d theta)².
    softmax: sum_a p(a | s) (d log p(a | s) / d theta)², p = softmax(Q(s, .)); softmax-scaled: p = softmax(Q(s, .) / T), where T² is the
    mean over the minibatches of Q's variance over actions.
    """

    assert isinstance(task.spec.action, Discrete)
    actions = task.spec.action.n

    def q(params: Any, obs: Any) -> jax.Array:
        return dqn.q_values(config, task, params, jax.tree.map(lambda x: x[None], obs))[0]

    def chosen(params: Any, example: tuple[Any, Any]) -> jax.Array:
        obs, action = example
        values = q(params, obs)
        return jnp.sum(values * jax.nn.one_hot(action, values.shape[-1]))

    def sampled(i: Any) -> memory.Sample:
        return memory.sample(replay, task.spec, jax.random.fold_in(key, i), config.batch_size)

    scale: Any = 1.0
    if config.likelihood == "softmax-scaled":
        variances = jax.lax.fori_loop(
            0, batches, lambda i, v: v + jnp.mean(jnp.var(dqn.q_values(config, task, params, sampled(i).obs), axis=-1)), jnp.float32(0.0)
        )
        scale = jnp.sqrt(jnp.maximum(variances / jnp.maximum(batches, 1), LEAST_VARIANCE))

    def add(i: Any, total: Any) -> Any:
        rows = sampled(i)
        if config.likelihood == "gaussian":
            one = information.fisher_diagonal(chosen, params, (rows.obs, rows.action))
        elif config.likelihood == "gaussian-all":
            several = jax.tree.map(lambda x: jnp.repeat(x, actions, axis=0), rows.obs), jnp.tile(jnp.arange(actions), config.batch_size)
            one = information.fisher_diagonal(chosen, params, several, weight=jnp.full(actions * config.batch_size, float(actions)))
        else:
            one = information.classifier_fisher(lambda *x: q(*x) / scale, params, rows.obs, labels="expected")
        return jax.tree.map(jnp.add, total, one)

    total = jax.lax.fori_loop(0, batches, add, jax.tree.map(jnp.zeros_like, params))
    return jax.tree.map(lambda x: x / jnp.maximum(batches, 1), total)


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions in a turn."""
    return config.turn_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    for game in _games(task):
        dqn.check(config, game)
    if config.turn_steps < 1 or config.turn_steps % config.train_every:
        raise FlatironsError(f"train_every={config.train_every} does not divide turn_steps={config.turn_steps}: make it a multiple")
    if config.visit_steps < 1 or config.visit_steps % config.turn_steps:
        raise FlatironsError(f"turn_steps={config.turn_steps} does not divide visit_steps={config.visit_steps}: make it a multiple")
    if config.fisher_batches < 1:
        raise FlatironsError(f"fisher_batches is {config.fisher_batches}: F is an average over at least 1 minibatch")
    if config.strength < 0.0:
        raise FlatironsError(f"strength={config.strength} would push parameters from their anchors: give 0 or more")
    if config.gated > 0.0 and not config.task_gains:
        raise FlatironsError("gated says which of each game's own gains begin at 0, and there are none: give task_gains too")
    if config.close_silent and not config.task_gains:
        raise FlatironsError("close_silent sets each game's own gains to 0, and there are none: give task_gains too")
    if config.reopen_silent and not config.close_silent:
        raise FlatironsError("reopen_silent begins closed units anew, and none are closed: give close_silent too")
    _demand_reference(config, task)


def notes(config: Config) -> tuple[str, ...]:
    """What the log says before a run."""
    return (f"mode {config.mode}; each game for {config.visit_steps:_} decisions, in turn",)


def init(config: Config, task: Task, key: Key) -> State:
    """A learner (one for each game in mode separate), and for every game an empty replay and environments."""
    learners, games = [], []
    for g, one in enumerate(_games(task)):
        fresh = dqn.init(_config_of(config, task, g), one, jax.random.fold_in(key, g))
        zeros = jax.tree.map(jnp.zeros_like, fresh.params) if config.mode in ("ewc", "l2") else ()
        learner, game = _parted(fresh, zeros, zeros)
        learners.append(learner)
        games.append(game)
    return State(tuple(learners if config.mode == "separate" else learners[:1]), tuple(games), jnp.int32(0), jnp.int32(0))


def actor(state: State) -> Actor:
    """The acting part of a State."""
    return Actor(tuple(one.params for one in state.learners), tuple(game.epsilon for game in state.games), state.game)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """DQN's policy in game `actor.game`; greedy uses `eval_epsilon`."""
    params, epsilon = (trees_at(part, actor.game) for part in (actor.params, actor.epsilon))
    return dqn.policy(_config_of(config, task, actor.game), task, dqn.Actor(params, epsilon), greedy=greedy)


def trees_at(several: tuple[Any, ...], index: Any) -> Any:
    """One of several like trees, by an index that may be traced; of one tree, that one."""
    if len(several) == 1:
        return several[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *several)


loss, update = dqn.loss, dqn.update


def step(config: Config, task: Task, state: State, *, update: Callable = update, loss: Callable = loss) -> tuple[State, Metrics]:
    """One turn: `turn_steps` decisions in the game whose turn it is; where its visit ends with them, its anchor and F."""
    tasks = _games(task)
    turns_per_visit = config.visit_steps // config.turn_steps
    now = state.turns // turns_per_visit % len(tasks)
    if config.anneal_each_visit:
        left = 1.0 - (state.turns % turns_per_visit) / turns_per_visit
        config = cast(Config, dataclasses.replace(cast(Any, config), learning_rate=config.learning_rate * left))
    arriving, leaving = state.turns % turns_per_visit == 0, (state.turns + 1) % turns_per_visit == 0
    learners, games, found = list(state.learners), list(state.games), []
    for g, one in enumerate(tasks):
        # One loop for each game, of no trainings where it is not its turn: a branch would copy every replay it hands through.
        trainings = jnp.where(now == g, config.turn_steps // config.train_every, 0)
        mine = g if config.mode == "separate" else 0
        # A game's schedules run over its own share of the decisions.
        chosen = dataclasses.replace(cast(Any, _config_of(config, task, g)), total_steps=config.total_steps // len(tasks))
        anchored = information.anchored(loss, *_pull(config, tuple(games), g), config.strength)
        training = functools.partial(dqn.step, chosen, one, update=functools.partial(update, loss=anchored))
        begun = _begun(learners[mine], arriving & (now == g))
        if config.reopen_silent:
            left = jnp.arange(len(tasks)) < state.turns // turns_per_visit
            begun = trees.select(arriving & (now == g), _reopened(begun, g, left, jax.random.fold_in(games[g].key, state.turns)), begun)
        inner, metrics = _repeat(training, _joined(begun, games[g]), trainings)
        learners[mine], games[g] = _parted(inner, games[g].anchor, games[g].fisher)
        found.append(metrics)
        if config.mode in ("ewc", "l2") or config.close_silent:
            learners[mine], games[g] = _left(config, chosen, one, g, learners[mine], games[g], leaving & (now == g))
    total = jax.tree.map(lambda *xs: sum(xs[1:], start=xs[0]), *found)
    episodes = total.pop("episodes")
    means = {name: x / (config.turn_steps // config.train_every) for name, x in total.items()}
    state = State(tuple(learners), tuple(games), state.turns + 1, now)
    return state, means | {"game": now.astype(jnp.float32), "episodes": episodes}


def _begun(learner: Learner, arriving: Any) -> Learner:
    """The learner with an optimiser begun anew (all zeros) where a visit begins: the last game's momentum is not to push in this one."""
    return learner._replace(opt_state=trees.select(arriving, jax.tree.map(jnp.zeros_like, learner.opt_state), learner.opt_state))


def _reopened(learner: Learner, g: int, left: Any, key: Key) -> Learner:
    """The learner with units begun anew in game g that are closed in all games left so far (bool `[games]`): in the layer below Q's."""
    own = learner.params["torso"]["games"][-1]
    free = jnp.any(left) & jnp.all((own["gain"] == 0.0) | ~left[:, None], axis=0)

    def reopen(params: Any) -> Any:
        shared, structure = jax.tree.flatten(params["torso"]["shared"], is_leaf=_is_layer)
        last = max(i for i, x in enumerate(shared) if _is_layer(x))
        heads = {name: x for name, x in params.items() if name != "torso"}
        if any(x["w"].shape[0] != shared[last]["w"].shape[-1] for x in heads.values()):
            raise FlatironsError("reopen_silent is for networks whose last layer is the one below Q, and this has another: leave it off")
        fresh = dense_init(key, *shared[last]["w"].shape, init="fan_in")
        shared[last] = jax.tree.map(lambda new, old: jnp.where(free, new, old), fresh, shared[last])
        *below, own = params["torso"]["games"]
        own = {name: x.at[g].set(jnp.where(free, 1.0 if name == "gain" else 0.0, x[g])) for name, x in own.items()}
        heads = {name: x | {"w": jnp.where(free[:, None], 0.0, x["w"])} for name, x in heads.items()}
        return heads | {"torso": {"shared": jax.tree.unflatten(structure, shared), "games": (*below, own)}}

    return learner._replace(params=reopen(learner.params), target=reopen(learner.target))


def _repeat(step: Callable[[Any], tuple[Any, Metrics]], state: dqn.State, times: Any) -> tuple[dqn.State, Metrics]:
    """`step` so many times (traced): the State and the sums of its metrics."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, state)[1])

    def body(_: Any, c: tuple[dqn.State, Metrics]) -> tuple[dqn.State, Metrics]:
        state, metrics = step(c[0])
        return state, jax.tree.map(lambda total, x: total + jnp.asarray(x, total.dtype), c[1], metrics)

    return jax.lax.fori_loop(0, times, body, (state, zeros))


def _left(config: Config, chosen: Config, one: Task, g: int, learner: Learner, game: Game, leaving: Any) -> tuple[Learner, Game]:
    """The learner as it leaves game g, and the game with theta* and F; both as they were where it is not left."""
    key, key_fisher = jax.random.split(game.key)
    params, target = learner.params, learner.target
    new = information.identity(params)
    if config.mode == "ewc" or config.close_silent:
        found = fisher(chosen, one, params, game.replay, key_fisher, jnp.where(leaving, config.fisher_batches, 0))
        if config.close_silent:
            params, target = (_closed(x, found, g) for x in (params, target))
        new = found if config.mode == "ewc" else new
    params, target, key = trees.select(leaving, (params, target, key), (learner.params, learner.target, game.key))
    if config.mode in ("ewc", "l2"):
        anchor, new = trees.select(leaving, (params, new), (game.anchor, game.fisher))
        game = game._replace(anchor=anchor, fisher=new)
    return learner._replace(params=params, target=target), game._replace(key=key)


def _closed(params: Any, fisher: Any, g: int) -> Any:
    """Parameters in which game g's own gains and biases are 0 of the units whose own bias has no Fisher information: the silent ones."""

    def close(own: Any, information: Any) -> Any:
        speaks = information["bias"][g] > 0.0
        return {name: x.at[g].set(jnp.where(speaks, x[g], 0.0)) for name, x in own.items()}

    layers = zip(params["torso"]["games"], fisher["torso"]["games"], strict=True)
    return params | {"torso": params["torso"] | {"games": tuple(close(*layer) for layer in layers)}}


# ------------------------------------------------------------------------------------------------------------- its score


def _demand_reference(config: Config, task: Task) -> None:
    """Raises FlatironsError where eval_reference does not fit the games: an evaluation may be given another than `check` saw."""
    reference, num = config.eval_reference, len(_games(task))
    if reference and len(reference) != num:
        raise FlatironsError(f"eval_reference has {len(reference)} returns for {num} games: give one for each")
    if any(value <= 0.0 for value in reference):
        raise FlatironsError("eval_reference divides the returns: give numbers above 0")


def score(config: Config, task: Task, actor: Actor, episodes: int, seed: int) -> dict[str, Any]:
    """Greedy episodes of every game, `episodes` of each. "mean" is the total score: the sum over games of mean return / eval_reference,
    clipped to 1 (the paper's figure 3), or of the mean returns where there is none; each game's mean return stands under its name."""
    _demand_reference(config, task)
    tasks = _games(task)
    means = []
    for g, one in enumerate(tasks):
        several, cap = one.resized(min(episodes, 256)), one.spec.max_episode_steps or CAP
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), g), -(-episodes // several.num_envs))
        rounds = [_returns(several, cap, g, config, actor, task, key) for key in keys]
        means.append(float(np.mean(np.concatenate([np.asarray(x, np.float64) for x in rounds])[:episodes])))
    parts = [min(m / r, 1.0) for m, r in zip(means, config.eval_reference, strict=True)] if config.eval_reference else means
    return {"mean": float(sum(parts)), **{one.name: mean for one, mean in zip(tasks, means, strict=True)}}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5))
def _returns(one: InGraphTask, cap: int, game: int, config: Config, actor: Actor, task: Task, key: Key) -> jax.Array:
    """The undiscounted return of the first greedy episode of each environment, `[B]`."""
    params, epsilon = (trees_at(part, game) for part in (actor.params, actor.epsilon))
    acting = dqn.policy(_config_of(config, task, game), one, dqn.Actor(params, epsilon), greedy=True)
    key, key_reset = jax.random.split(key)
    start = (jnp.int32(0), key, one.reset(key_reset), jnp.zeros(one.num_envs), jnp.zeros(one.num_envs, bool))

    def play(c: tuple[Any, ...]) -> tuple[Any, ...]:
        t, key, env, returns, done = c
        key, key_act, key_env = jax.random.split(key, 3)
        seen: TimeStep = one.observe(env)
        action, _, _ = acting.act(key_act, seen, ())
        env, outcome = one.step(key_env, env, action)
        return t + 1, key, env, returns + jnp.where(done, 0.0, outcome.reward), done | outcome.terminated | outcome.truncated

    return jax.lax.while_loop(lambda c: (c[0] < cap) & ~jnp.all(c[-1]), play, start)[3]
