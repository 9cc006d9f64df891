"""Who can sit down to a game: a trained run, plain opponents, and other people's engines, each by a short name.

runs/first              a run folder; `runs/first?simulations=400`, and 0 for the bare network; any other setting of the run that leaves
                        its network as it is: `runs/first?simulations=100&play_max_considered=4`
random                  a legal move at random
minimax:5               to that depth; connect four by open lines, others by `envs.evaluation`
mcts:1000               UCT (c = 1.4) with that many random rollouts; `mcts:1000?c=2`
perfect                 connect four's solver (`pip install bitbully`)
gtp:COMMAND             an engine over GTP (Go); `gtp:gnugo?level=1`
uci:COMMAND             over UCI (chess; with Fairy-Stockfish shogi too); `uci:stockfish?nodes=1000&Skill Level=3`
usi:COMMAND             over USI (shogi)
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.core import resources, trees
from flatirons.envs import evaluation, notation
from flatirons.envs.games import RESIGN, Game, GameState
from flatirons.envs.ingraph import EnvState
from flatirons.plan import mcts, minimax, uct
from flatirons.run import engines, folder, train
from flatirons.run.job import acting_task, actor_like, make_config, on_device
from flatirons.types import FlatironsError, Key

# UCT keeps 12 bytes an edge; more games than fit are searched in parts.
_TREE_BYTES = 512_000_000
# A run's search keeps six words an edge (mctx's tree) and the position at each node: 100 MB for one game of chess at 800 simulations.
_EDGE_BYTES = 24
_SEARCH_BYTES = 2_000_000_000
# Trees that are kept are twice as large: two of them, one that is grown, and what is picked from one for it.
_KEPT_TREES = 8
_PLIES_ON = 4
"""Plies between two moves of the same player, passes counted, at most."""
MOST_SIMULATIONS = 1_000_000
MOST_LINES, LONGEST_LINE = 100, 20
"""How many of a position's moves are told with the play that is expected after them, and how many moves of it."""
_FAILURES_ON_END = 3
"""After so many an engine is not asked again in the same call: each that hangs costs its whole time-out."""


class Chosen(NamedTuple):
    """Moves int32 `[B]`, and by index what went wrong in a game whose player failed: such a game is void."""

    actions: np.ndarray
    faults: dict[int, str] = {}  # noqa: RUF012 - a NamedTuple's default, never written


class Player(Protocol):
    """One who plays many games at once."""

    name: str

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """A move in each position of a batch `[B]`, none of which has ended. `histories`: the actions that led there, for players that
        follow games rather than positions; where there are fewer than B, the positions after them only fill the batch up."""
        ...

    def close(self) -> None:
        """The games are over."""
        ...


class Thought(NamedTuple):
    """What a search thinks of ONE position: its move; visits int `[A]`, q `[A]` (for the player to move, 0 where unvisited), prior `[A]`;
    the search's value and the network's; and by move the play that is expected after it, the move itself first, where there is a tree."""

    action: int
    visits: np.ndarray
    q: np.ndarray
    prior: np.ndarray
    value: float
    network_value: float
    lines: Mapping[int, tuple[int, ...]] = {}

    def line(self, action: int) -> tuple[int, ...]:
        """The play that is expected from a move on, the move itself first."""
        return self.lines.get(action, (action,))


class Line(NamedTuple):
    """A state of the search tree: the actions that lead to it from the root, its visits, and its value for who is to move at the root."""

    actions: tuple[int, ...]
    visits: int
    value: float


class Thinker(Player, Protocol):
    """A player whose search can be looked at, with any number of simulations."""

    game: Game

    @property
    def simulations(self) -> int:
        """A move's, where nobody asks for another number."""
        ...

    @simulations.setter
    def simulations(self, simulations: int) -> None: ...

    def think(self, state: GameState, key: Key, simulations: int) -> Thought:
        """Search ONE position."""
        ...

    def lines(self, state: GameState, key: Key, simulations: int, most: int) -> tuple[Thought, list[Line]]:
        """Search ONE position, and name the `most` states of its tree that were visited most, the most visited first."""
        ...


def one(state: GameState) -> GameState:
    """ONE position as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], state)


# ---------------------------------------------------------------------------------------------------------- plain players


class Random:
    """A legal move, each with the same probability."""

    def __init__(self, game: Game) -> None:
        self.name, self.game = "random", game

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player."""
        legal = np.asarray(states.legal)
        return Chosen(_at_random(key, legal))

    def close(self) -> None:
        """See Player."""


def _parts(batch: int, each: int, most: int) -> list[np.ndarray]:
    """The games of a batch in parts of one size (one compilation), which need at most `most` bytes together where one needs `each`. The
    last game fills the last part up."""
    parts = -(-batch // max(1, most // each))
    size = -(-batch // parts)
    return [np.minimum(np.arange(part * size, (part + 1) * size), batch - 1) for part in range(parts)]


def _at_random(key: Key, mask: np.ndarray) -> np.ndarray:
    """In each row of a mask `[B, A]` one of its actions, int32 `[B]`."""
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key))).random(mask.shape)
    return np.argmax(np.where(mask, draw, -1.0), axis=1).astype(np.int32)


class Mcts:
    """UCT with random rollouts, `plan.uct`."""

    def __init__(self, game: Game, simulations: int, c: float = 1.4) -> None:
        self.name, self.game, self.simulations, self.c = f"mcts:{simulations}", game, simulations, c

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player."""
        batch = states.legal.shape[0]
        chosen = []
        for part, rows in enumerate(_parts(batch, 12 * (self.simulations + 1) * self.game.num_actions, _TREE_BYTES)):
            some = jax.tree.map(lambda x, rows=rows: x[rows], states)
            found = uct.search(self.game, some, jax.random.fold_in(key, part), self.simulations, self.c)
            chosen.append(np.asarray(found.action))
        return Chosen(np.concatenate(chosen)[:batch])

    def think(self, state: GameState, key: Key, simulations: int) -> Thought:
        """See Thinker; the prior is uniform, and there is no network."""
        if simulations == 0:
            nothing = np.zeros((1, self.game.num_actions))
            return self._thought(state, nothing - 1, nothing.astype(np.int32), nothing)
        return self._thought(state, *self._tree(state, key, simulations))

    def _tree(self, state: GameState, key: Key, simulations: int) -> uct.Tree:
        return jax.tree.map(lambda x: np.asarray(x)[0], uct.grow(self.game, one(state), key, simulations, self.c))

    def _thought(self, state: GameState, child: np.ndarray, visits: np.ndarray, q: np.ndarray) -> Thought:
        legal = np.asarray(state.legal)
        best = int(np.argmax(np.where(legal, visits[0] * 4.0 + q[0], -np.inf)))
        value = float(np.sum(visits[0] * q[0]) / max(1, visits[0].sum()))
        return Thought(best, visits[0], q[0], legal / legal.sum(), value, 0.0, expected_play(child, visits))

    def lines(self, state: GameState, key: Key, simulations: int, most: int) -> tuple[Thought, list[Line]]:
        """See Thinker."""
        if simulations == 0:
            return self.think(state, key, 0), []
        tree = self._tree(state, key, simulations)
        return self._thought(state, *tree), _most_visited(*tree, most)

    def close(self) -> None:
        """See Player."""


def _most_visited(child: np.ndarray, visits: np.ndarray, q: np.ndarray, most: int) -> list[Line]:
    """The `most` states of one tree that were visited most: child, visits, q are `[M, A]`, q for the player who moves at a node."""
    found: list[Line] = []
    # A state has no more visits than the one before it: the best of those whose parent is named is the best that is left.
    waiting: list[tuple[int, tuple[int, ...], float, int]] = []

    def below(node: int, path: tuple[int, ...]) -> None:
        for action in np.flatnonzero(visits[node]):
            value = float(q[node, action]) * (1 if len(path) % 2 == 0 else -1)
            waiting.append((-int(visits[node, action]), (*path, int(action)), value, int(child[node, action])))

    below(0, ())
    while waiting and len(found) < most:
        waiting.sort(key=lambda entry: (entry[0], entry[1]))
        count, path, value, node = waiting.pop(0)
        found.append(Line(path, -count, value))
        if node >= 0:
            below(node, path)
    return found


def expected_play(child: np.ndarray, visits: np.ndarray) -> dict[int, tuple[int, ...]]:
    """By move that was visited at the root of one tree, the play that is expected after it: each time what was visited most."""
    found = {}
    for first in np.argsort(-visits[0], kind="stable")[:MOST_LINES].tolist():
        if not visits[0, first]:
            break
        line, node = [first], int(child[0, first])
        while node >= 0 and len(line) < LONGEST_LINE and visits[node].any():
            line.append(int(np.argmax(visits[node])))
            node = int(child[node, line[-1]])
        found[first] = tuple(line)
    return found


class Minimax:
    """`plan.minimax`: one of the best moves, at random."""

    def __init__(self, game: Game, depth: int) -> None:
        self.name, self.game, self.depth = f"minimax:{depth}", game, depth

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player."""
        worth = self.worth(jax.device_get(states))
        return Chosen(_at_random(key, worth == np.nanmax(worth, axis=1, keepdims=True)))

    def worth(self, states: GameState) -> np.ndarray:
        """What each move is worth, float64 `[B, A]`, NaN where illegal."""
        rows = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(states.legal.shape[0])]
        if self.game.name == "connect_four":
            return minimax.connect_four(*minimax.bitboards(_boards(self.game, rows)), self.depth)
        judge = evaluation.evaluation(self.game.name)
        return np.stack([minimax.alpha_beta(self.game, judge, row, self.depth) for row in rows])

    def close(self) -> None:
        """See Player."""


def _boards(game: Game, rows: Sequence[GameState]) -> np.ndarray:
    """Boards `[B, rows, cols]` from the side of the player to move: 1 = mine, -1 = theirs."""
    boards = [notation.board(game, row) for row in rows]
    return np.stack([board.cells * (1 if board.turn == 0 else -1) for board in boards])


class Perfect:
    """Connect four as it is solved: one of the moves that win soonest, or lose latest."""

    def __init__(self, game: Game) -> None:
        if game.name != "connect_four":
            raise FlatironsError(f"the perfect player knows connect four alone, and the game is {game.name}")
        self.name, self.game, self.solver = "perfect", game, solver()

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player."""
        states = jax.device_get(states)
        rows = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(states.legal.shape[0])]
        worth = np.stack([scores(self.solver, notation.board(self.game, row)) for row in rows])
        return Chosen(_at_random(key, worth == np.nanmax(worth, axis=1, keepdims=True)))

    def close(self) -> None:
        """See Player."""


@functools.cache
def solver() -> Any:
    """BitBully's solver, with its opening book where that is installed. Raises FlatironsError where it is not installed."""
    try:
        from bitbully import bitbully_core  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise FlatironsError("the perfect player needs the package bitbully, which is not installed: pip install bitbully") from None
    try:
        import bitbully_databases  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return bitbully_core.BitBullyCore()
    return bitbully_core.BitBullyCore(Path(bitbully_databases.BitBullyDatabases.get_database_path("default")))


def scores(solver: Any, board: notation.Board) -> np.ndarray:
    """What each column of a connect-four board is worth for the player to move, float64 `[7]`, NaN where it is full: positive = won, the
    higher the sooner; 0 = drawn; negative = lost."""
    from bitbully import bitbully_core  # pyright: ignore[reportMissingImports]

    core = bitbully_core.BoardCore()
    cells = np.where(board.cells == 0, 0, np.where(board.cells > 0, 1, 2))
    # Its boards are columns from the left, each from the bottom.
    if not core.setBoard(cells[::-1].T.tolist()):
        raise FlatironsError("bitbully does not take this board")
    found = np.asarray(solver.scoreMoves(core), np.float64)
    return np.where(board.cells[0] == 0, found, np.nan)


class External:
    """An engine over GTP, UCI or USI."""

    def __init__(self, engine: engines.Engine) -> None:
        self.name, self.engine = engine.name, engine

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player."""
        if not histories:
            raise FlatironsError(f"{self.name} follows games, not positions; give their moves")
        actions, faults, on_end, last = np.full(len(histories), RESIGN, np.int32), {}, 0, ""
        for i, history in enumerate(histories):
            if on_end < _FAILURES_ON_END:
                chosen, wrong = engines.choose_all(self.engine, [history])
                actions[i], last = chosen[0], wrong.get(0, "")
                on_end = on_end + 1 if last else 0
            if last:
                faults[i] = last
        return Chosen(actions, faults)

    def close(self) -> None:
        """See Player."""
        self.engine.close()


# ---------------------------------------------------------------------------------------------------------------- a run


class Trained:
    """A run's newest policy, with its search."""

    def __init__(
        self, run: train.Run, game: Game, name: str, simulations: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        recorded = run._job.recorded["task"]
        if recorded != f"pgx:{game.name}":
            raise FlatironsError(f"{run.path} was trained on {recorded}, and the game is {game.name}; name a run that plays it")
        if "analyse" not in vars(run.system):
            raise FlatironsError(f"{run.path} is a run of {run._job.name}, whose policy has no search to play games with; train alphazero")
        self.name, self.game, self.run = name, game, run
        self._task = acting_task(run._job)
        config = _otherwise(run, self._task, settings) if settings else run.config
        own = own_simulations(config)
        self.searches, self._simulations = own is not None, own or 0
        if simulations is not None:
            self.simulations = simulations
        self._config, self._actor = on_device(config), run.actor
        self._keeps_trees = vars(config).get("play_keep_tree", False)
        # Of the last two batches, for in a match one half of the games has the move, then the other.
        self._trees: collections.deque[tuple[dict[tuple[int, ...], int], Any]] = collections.deque(maxlen=2)
        self._thoughts: dict[int, Any] | None = None

    @property
    def simulations(self) -> int:
        """See Thinker; 0 and nothing else where `searches` is False, as of a policy network."""
        return self._simulations

    @simulations.setter
    def simulations(self, simulations: int) -> None:
        if simulations and not self.searches:
            raise FlatironsError(
                f"{self.run.path} is a run of {self.run._job.name}, a policy network that plays without a search; leave the simulations out"
            )
        self._simulations = simulations

    def analyse(self, states: GameState, key: Key, simulations: int) -> Any:
        """The system's Analysis of a batch. Raises FlatironsError where its trees would not fit into memory."""
        return self._analysed(self.run.system.analyse, states, key, simulations)

    def _analysed(self, analyse: Any, states: GameState, key: Key, simulations: int) -> Any:
        batch = states.legal.shape[0]
        if (needed := batch * self._bytes(states, simulations)) > _SEARCH_BYTES:
            resources.require_memory(needed, f"a search with {simulations:_} simulations in {self.game.name} (give fewer)")
        model = EnvState(states, states.plies, states.plies == 0)
        return _analyse(analyse, self._task.resized(batch), simulations, self._config, self._actor, model, key)

    def choose(self, states: GameState, key: Key, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        """See Player. In games whose `histories` are given the search goes on from what it found there before, where there is memory."""
        batch = states.legal.shape[0]
        if histories and self._has_room(states, self.simulations):
            return Chosen(self._go_on(states, key, [tuple(history) for history in histories]))
        each = self._bytes(states, self.simulations)
        parts = _parts(batch, each, _SEARCH_BYTES)
        if len(parts) == 1:
            return Chosen(np.asarray(self.analyse(states, key, self.simulations).action, np.int32))
        chosen = []
        for part, rows in enumerate(parts):
            some = jax.tree.map(lambda x, rows=rows: x[rows], states)
            chosen.append(np.asarray(self.analyse(some, jax.random.fold_in(key, part), self.simulations).action, np.int32))
        return Chosen(np.concatenate(chosen)[:batch])

    def _bytes(self, states: GameState, simulations: int) -> int:
        """Of one game's tree."""
        return (simulations + 1) * (trees.num_bytes(states) // len(states.legal) + _EDGE_BYTES * self.game.num_actions)

    def _has_room(self, states: GameState, simulations: int) -> bool:
        """Whether trees are to be kept, and can be."""
        kept = _KEPT_TREES * len(states.legal) * self._bytes(states, simulations)
        return self._keeps_trees and simulations > 0 and kept <= _SEARCH_BYTES

    def _search_on(self, states: GameState, key: Key, simulations: int, before: Any) -> tuple[Any, Any]:
        task, model = self._task.resized(len(states.legal)), EnvState(states, states.plies, states.plies == 0)
        return self.run.system.go_on(self._config, task, self._actor, model, key, num_simulations=simulations, before=before)

    def _go_on(self, states: GameState, key: Key, histories: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Moves int32 `[B]` in games that have come to `histories`, from the trees of the moves before, where they are known."""
        batch, nodes, before = states.legal.shape[0], 2 * self.simulations + 1, None
        ago = range(1, _PLIES_ON + 1)
        for games, tree in self._trees:
            rows = [next((games[history[:-n]] for n in ago if history[:-n] in games), -1) for history in histories]
            # All games of a batch were in one of the two, or none was.
            if max(rows) >= 0 and tree.node_visits.shape[1] == nodes:
                before = _rows(tree, np.maximum(np.array(rows + [0] * (batch - len(rows)), np.int32), 0))
        found, tree = self._search_on(states, key, self.simulations, before)
        self._trees.append(({history: row for row, history in enumerate(histories)}, tree))
        return np.asarray(found.action, np.int32)

    def follow_a_game(self) -> None:
        """From now on `think` goes on from what a search of as many simulations found before, where the position came of it."""
        self._thoughts = {}

    def think(self, state: GameState, key: Key, simulations: int) -> Thought:
        """See Thinker."""
        return self._think(state, key, simulations, follow=self._thoughts is not None)[0]

    def _think(self, state: GameState, key: Key, simulations: int, *, follow: bool) -> tuple[Thought, uct.Tree]:
        """A Thought and the tree it was found in; that is but its root where there are no simulations, or a system without
        `analyse_tree`. follow: go on from the tree that was found last."""
        states = one(state)
        if follow and self._thoughts is not None and self._has_room(states, simulations):
            found, kept = self._search_on(states, key, simulations, self._thoughts.get(simulations))
            self._thoughts[simulations], tree = kept, _edges(kept, self.game.num_actions)
        elif simulations and "analyse_tree" in vars(self.run.system):
            found, tree = self._analysed(self.run.system.analyse_tree, states, key, simulations)
        else:
            found = self.analyse(states, key, simulations)
            tree = uct.Tree(np.full((1, 1, self.game.num_actions), -1), found.visits[:, None], found.q[:, None])
        found, tree = jax.tree.map(lambda x: np.asarray(x)[0], (found, tree))
        expected = expected_play(tree.child, tree.visits)
        values = float(found.value), float(found.network_value)
        return Thought(int(found.action), found.visits, found.q, found.prior, *values, expected), tree

    def lines(self, state: GameState, key: Key, simulations: int, most: int) -> tuple[Thought, list[Line]]:
        """See Thinker. Of a system without `analyse_tree` the states are those one move away."""
        thought, tree = self._think(state, key, simulations, follow=False)
        return thought, _most_visited(*tree, most)

    def close(self) -> None:
        """See Player."""


def _otherwise(run: train.Run, task: Any, settings: Mapping[str, str]) -> Any:
    """The run's Config with other settings, by name and as text. Raises FlatironsError for one that is none, that has a value of another
    type, that the system refuses, or that belongs to another network than the run's."""

    def value(text: str) -> Any:
        try:
            return json.loads(text.lower())
        except ValueError:
            return text

    system = run.system
    kept = {field.name: getattr(run.config, field.name) for field in dataclasses.fields(run.config)}
    # Whoever names the search's simulations means those that are played with.
    kept |= {"play_simulations": 0} if "num_simulations" in settings and "play_simulations" in kept else {}
    config = make_config(system, kept | {name: value(text) for name, text in settings.items()})
    if (own_simulations(config) or 0) > MOST_SIMULATIONS:
        raise FlatironsError(f"{own_simulations(config):_} simulations a move: give at most {MOST_SIMULATIONS:_}")
    system.check(system.to_act(config) if hasattr(system, "to_act") else config, task)
    shapes = [jax.tree.map(lambda x: x.shape, actor_like(system, c, task)) for c in (run.config, config)]
    if shapes[0] != shapes[1]:
        said = ", ".join(f"{name}={text}" for name, text in settings.items())
        raise FlatironsError(f"{said}: that is another network than the one {run.path} has trained; leave it out")
    return config


def own_simulations(config: Any) -> int | None:
    """Simulations a move that a run with these settings plays with, in evaluations and against people; None of a policy network, whose
    system has no search."""
    settings = vars(config)
    if "num_simulations" not in settings:
        return None
    return int(settings.get("play_simulations") or settings["num_simulations"] or 0)


def steps(one: Player) -> int | None:
    """How many decisions a run had been trained for when it sat down; None for whoever is no run."""
    return one.run.step if isinstance(one, Trained) else None


def simulations_range(thinker: Thinker) -> tuple[int, int]:
    """The least and the most simulations a move that may be asked of it. Only a run has something to say without any."""
    if isinstance(thinker, Trained):
        return 0, MOST_SIMULATIONS if thinker.searches else 0
    return min(1, thinker.simulations), MOST_SIMULATIONS


@jax.jit
def _rows(batch: Any, rows: Any) -> Any:
    return jax.tree.map(lambda x: x[rows], batch)


_edges = jax.jit(mcts.edges, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _analyse(analyse: Any, task: Any, simulations: int, config: Any, actor: Any, model: Any, key: Key) -> Any:
    return analyse(config, task, actor, model, key, num_simulations=simulations)


# ----------------------------------------------------------------------------------------------------------------- names


def player(spec: str, game: Game) -> Player:
    """The player that a name stands for (see the top of this file). Raises FlatironsError where there is no such player, or where it
    cannot play this game."""
    train.enable_compilation_cache()
    body, options = _options(spec)
    kind, colon, rest = body.partition(":")
    if colon and kind in ("gtp", "uci", "usi"):
        engine = External(engines.Engine(kind, rest, game, options))
        engine.name = spec
        return engine
    simulations = _whole(spec, options.pop("simulations"), 0, MOST_SIMULATIONS) if "simulations" in options else None
    made: Player
    if body == "random":
        made = Random(game)
    elif body == "perfect":
        made = Perfect(game)
    elif colon and kind == "minimax":
        made = Minimax(game, _whole(spec, rest, 1))
    elif colon and kind == "mcts":
        made = Mcts(game, _whole(spec, rest, 1, MOST_SIMULATIONS), _exploration(spec, options.pop("c", "1.4")))
    elif (Path(body) / folder.CONFIG).exists():
        made = _trained(spec, Path(body), game, simulations, options)
        simulations, options = None, {}
    else:
        raise _no_player(spec, body)
    if options or simulations is not None:
        raise FlatironsError(f"{spec!r} takes no {next(iter(options), 'simulations')!r}")
    made.name = spec
    return made


def _trained(spec: str, path: Path, game: Game, simulations: int | None, settings: Mapping[str, str]) -> Trained:
    run = train.load(path)
    if run.runs:
        raise FlatironsError(f"{path} holds {len(run.runs)} runs, one per seed; choose one, such as {run.runs[0].path}")
    return Trained(run, game, spec, simulations, settings)


def _no_player(spec: str, body: str) -> FlatironsError:
    missing = "has no run in it" if Path(body).is_dir() else "does not exist"
    return FlatironsError(
        f"there is no player {spec!r}, for {body} {missing}: give a run folder, random, minimax:DEPTH, mcts:SIMULATIONS, perfect, "
        "gtp:COMMAND, uci:COMMAND or usi:COMMAND"
    )


def game_of(spec: str) -> str | None:
    """The game that a player brings with it: a run's; None where it plays any. Raises FlatironsError where there is no such player."""
    path = Path(_options(spec)[0])
    if not (path / folder.CONFIG).exists():
        kind, colon, _ = str(path).partition(":")
        if str(path) not in ("random", "perfect") and not (colon and kind in ("minimax", "mcts", "gtp", "uci", "usi")):
            raise _no_player(spec, str(path))
        return None
    task = folder.peek_record(path).get("task")
    if not isinstance(task, str) or task.removeprefix("pgx:") not in notation.games.GAMES:
        raise FlatironsError(f"{path} was trained on {task}, which is no board game")
    return task.removeprefix("pgx:")


def thinker(spec: str, game: str | None) -> Any:
    """A Thinker by name, with its game, for engines and analyses: a run folder, or `mcts:N` where the game is given."""
    known = game_of(spec)
    if known is None and game is None:
        raise FlatironsError(f"{spec!r} is no run folder, so the game must be named, as in --game go_9x9")
    made = player(spec, notation.find(game or known or ""))
    if not isinstance(made, (Trained, Mcts)):
        raise FlatironsError(f"{spec!r} has no search to look at; give a run folder or mcts:SIMULATIONS")
    return made


def _options(spec: str) -> tuple[str, dict[str, str]]:
    body, mark, rest = spec.partition("?")
    pairs = [pair.partition("=") for pair in rest.split("&")] if mark else []
    for name, equals, _ in pairs:
        if not name or not equals:
            raise FlatironsError(f"{rest!r} of the player {spec!r} is not understood; write NAME?setting=value&setting=value")
    return body, {name: value for name, _, value in pairs}


def _exploration(spec: str, text: str) -> float:
    try:
        c = float(text)
    except ValueError:
        c = math.nan
    if not 0 <= c < math.inf:
        raise FlatironsError(f"c={text!r} of the player {spec!r} must be a number, at least 0")
    return c


def _whole(spec: str, text: str, least: int, most: int | None = None) -> int:
    if not notation.is_whole(text) or int(text) < least:
        raise FlatironsError(f"{text!r} of the player {spec!r} must be a whole number, at least {least}")
    if most is not None and int(text) > most:
        raise FlatironsError(f"{text!r} of the player {spec!r} must be a whole number, at most {most:_}")
    return int(text)
