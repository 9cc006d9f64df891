"""Ten board games of two players in-graph, from pgx (`pip install 'flatirons[games]'`): the rules, and nothing of how to play well.

A position is a `GameState` of our own, so that who moves first is player 0 in every game (pgx draws it), results have one sign, and a
search tree stores no observations. `player`, `outcome` and `legal` are read from it without knowing the game.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.envs.ingraph import Env
from flatirons.types import ArraySpec, Discrete, FlatironsError, Key


class Facts(NamedTuple):
    """What is known of a game by name: the board's rows and columns, an upper bound of its plies, and its symmetries: "none",
    "mirror" (left and right), "half-turn", or "dihedral" (all eight of a square)."""

    rows: int
    cols: int
    longest: int
    symmetry: str


# Othello: 60 discs, and no two passes in a row but the last. Go: pgx stops at twice the board. Chess and shogi stop at 512 plies (as in
# AlphaZero's paper), the small ones at 256. Hex has a swap.
GAMES: Mapping[str, Facts] = MappingProxyType(
    {
        "tic_tac_toe": Facts(3, 3, 9, "dihedral"),
        "connect_four": Facts(6, 7, 42, "mirror"),
        "othello": Facts(8, 8, 122, "dihedral"),
        "hex": Facts(11, 11, 122, "half-turn"),
        "go_9x9": Facts(9, 9, 162, "dihedral"),
        "go_19x19": Facts(19, 19, 722, "dihedral"),
        "gardner_chess": Facts(5, 5, 256, "none"),
        "chess": Facts(8, 8, 512, "none"),
        "animal_shogi": Facts(4, 3, 256, "none"),
        "shogi": Facts(9, 9, 512, "none"),
    }
)
"""The games behind `pgx:NAME`; names are also taken with minus signs."""

RESIGN = -1
"""The action that gives a game up: the player who takes it loses."""


class GameState(NamedTuple):
    """A position. `player` int32: who is to move, 0 = who moved first. `legal` bool `[A]`, all True once the game has ended.
    `terminated` bool; `outcome` float32: player 0's result, 0 while the game goes on. `plies` int32 played so far. `inner`: pgx's own
    fields by name."""

    player: Any
    legal: Any
    terminated: Any
    outcome: Any
    plies: Any
    inner: Any


class Symmetries(NamedTuple):
    """The S ways in which a game may be turned, the first of which leaves it as it is. Cell i of the turned board is cell `board[s, i]`
    of the board (row by row), and action a there is `action[s, a]` here. `board [S, cells]`, `action [S, A]`, int32."""

    board: np.ndarray
    action: np.ndarray


@runtime_checkable
class BoardGame(Env, Protocol):
    """What game systems need of a game, yours too: an `Env` in which two players move in turn, whose `step` gives the reward of the player
    who MOVED, takes the action `RESIGN`, and leaves a game that has ended as it is."""

    @property
    def num_actions(self) -> int:
        """A: actions are 0 ... A-1."""
        ...

    @property
    def longest(self) -> int:
        """No game has more plies."""
        ...

    @property
    def symmetries(self) -> Symmetries:
        """At least the identity."""
        ...

    def player(self, state: Any) -> Any:
        """Who is to move, int32 `[]`: 0 = who moved first, 1 = the other."""
        ...

    def outcome(self, state: Any) -> Any:
        """Player 0's result once terminated, float32 `[]`: 1, 0 or -1; 0 while the game goes on."""
        ...


@dataclasses.dataclass(frozen=True)
class Game:
    """One of `GAMES`, as an `Env` of one stream.

    Observations are from the view of the player to move, `[rows, cols, planes]`: uint8 0 or 1, or float32 where pgx counts in them. An
    action that is not legal loses the game, as `RESIGN` does; whoever should be told instead asks `legal` first.
    """

    name: str

    @property
    def board(self) -> Facts:
        """Rows, columns, longest game, symmetry."""
        return GAMES[self.name]

    @property
    def num_actions(self) -> int:
        """A, as pgx counts them."""
        return int(_start(self.name).legal.shape[0])

    @property
    def longest(self) -> int:
        """No game has more plies."""
        return self.board.longest

    @property
    def obs_spec(self) -> ArraySpec:
        """`[rows, cols, planes]`."""
        shape, kind = _obs_shape(self.name)
        return ArraySpec(shape, "uint8", 0, 1) if kind == "bool" else ArraySpec(shape, "float32")

    @property
    def action_spec(self) -> Discrete:
        """pgx's own numbering."""
        return Discrete(self.num_actions)

    @property
    def max_episode_steps(self) -> int | None:
        """None: every one of these games ends by its rules."""
        return None

    @property
    def symmetries(self) -> Symmetries:
        """How the board may be turned."""
        return _symmetries(self.name)

    def init(self, key: Key) -> GameState:
        """The start; nothing is drawn."""
        del key
        return jax.tree.map(jnp.asarray, _start(self.name))

    def init_batch(self, key: Key, num_envs: int) -> GameState:
        """`num_envs` starts."""
        del key
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *x.shape)), _start(self.name))

    def step(self, key: Key, state: GameState, action: Any) -> tuple[GameState, jax.Array, jax.Array]:
        """(position, reward float32 of the player who moved, terminated). A game that has ended stays as it is, with reward 0."""
        del key  # no chance in these games
        action = jnp.asarray(action)
        full = self.pgx(state)
        with jax.numpy_rank_promotion("allow"):
            new = _pgx(self.name)._step(full.replace(_step_count=full._step_count + 1), jnp.maximum(action, 0), None)
            if self.name == "chess":
                x = chess_history(new._x)
                repeated = jnp.sum(jnp.all(x.hash_history == x.hash_history[0][None], axis=1)) >= 3
                new = new.replace(_x=x, terminated=new.terminated | repeated)
            elif self.name == "shogi":
                new = _without_pawn_mates(new)
            elif self.name == "animal_shogi":
                new = _with_repetitions(new)
        lost = (action < 0) | (action >= self.num_actions) | ~state.legal[jnp.clip(action, 0, self.num_actions - 1)]
        mover_lost = jnp.where(state.player == 0, jnp.float32(-1.0), jnp.float32(1.0))
        terminated = new.terminated | lost
        outcome = jnp.where(lost, mover_lost, jnp.where(terminated, new.rewards[0], 0.0)).astype(jnp.float32)
        after = GameState(
            player=new.current_player.astype(jnp.int32),
            legal=new.legal_action_mask | terminated,
            terminated=terminated,
            outcome=outcome,
            plies=state.plies + 1,
            inner=_own_fields(new),
        )
        gone = state.terminated | lost  # who resigns moves nothing
        stays = {field: state.terminated for field in GameState._fields} | {"player": gone, "inner": gone}
        after = GameState(
            *(
                jax.tree.map(lambda now, then, stay=stays[field]: jnp.where(stay, now, then).astype(now.dtype), now, then)
                for field, now, then in zip(GameState._fields, state, after, strict=True)
            )
        )
        reward = jnp.where(state.terminated, 0.0, jnp.where(state.player == 0, outcome, -outcome))
        return after, reward, after.terminated

    def observe(self, state: GameState) -> jax.Array:
        """What the player to move sees."""
        with jax.numpy_rank_promotion("allow"):
            full = self.pgx(state)
            obs = _pgx(self.name)._observe(full, full.current_player)
        return obs.astype(self.obs_spec.dtype)

    def legal(self, state: GameState) -> jax.Array:
        """Mask of the legal actions, bool `[A]`."""
        return state.legal

    def player(self, state: GameState) -> jax.Array:
        """Who is to move: 0 = who moved first."""
        return state.player

    def outcome(self, state: GameState) -> jax.Array:
        """Player 0's result."""
        return state.outcome

    def pgx(self, state: GameState) -> Any:
        """The position as pgx's own State (player ids are ours; its observation is blank), for its notations and pictures."""
        rewards = jnp.stack([state.outcome, -state.outcome])
        return jax.tree.map(jnp.asarray, _template(self.name)).replace(
            current_player=state.player, legal_action_mask=state.legal, terminated=state.terminated, rewards=rewards,
            _step_count=state.plies, **state.inner,
        )  # fmt: skip

    def from_pgx(self, full: Any) -> GameState:
        """The way back, for a position that pgx has read; who moves first in it is player 0 where pgx's own ids say so."""
        return GameState(full.current_player, full.legal_action_mask, full.terminated, full.rewards[0], full._step_count, _own_fields(full))


def task_name(name: str) -> str:
    """A task's name as everybody looks it up: of a board game with underscores (`pgx:connect-four` is `pgx:connect_four`)."""
    prefix, colon, game = name.partition(":")
    plain = game.replace("-", "_")
    return f"{prefix}{colon}{plain}" if prefix == "pgx" and plain in GAMES else name


def make(name: str) -> Game:
    """The game called `name`, one of `GAMES`. Raises FlatironsError for an unknown one, and where pgx is not installed."""
    known = name.replace("-", "_")
    if known not in GAMES:
        near = difflib.get_close_matches(known, GAMES, n=1)
        raise FlatironsError(f"unknown game {name!r}: {f'did you mean {near[0]!r}? ' if near else ''}there are {', '.join(GAMES)}")
    _pgx(known)
    return Game(known)


def demand_game(task: Any, system: str) -> BoardGame:
    """The game of an in-graph task. Raises FlatironsError for a task that is none."""
    game = getattr(task, "env", None)
    if not task.in_graph or not isinstance(game, BoardGame):
        raise FlatironsError(f"{system} plays board games of two players, and {task.name} is none; try pgx:connect_four")
    limit = task.spec.max_episode_steps
    if limit is not None and limit < game.longest:
        raise FlatironsError(
            f"{task.name} is cut after {limit} moves and may have {game.longest}, and a game that is cut has no result: "
            "let max_episode_steps be None"
        )
    return game


# ---------------------------------------------------------------------------------------------------------------- inside

_COMMON = frozenset(
    {
        "current_player", "observation", "rewards", "terminated", "truncated", "legal_action_mask", "_step_count", "_player_order",
    }
)  # fmt: skip


def _own_fields(full: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(full).items() if name not in _COMMON}


@functools.cache
def _pgx(name: str) -> Any:
    try:
        # Importing pgx makes arrays; within someone's jit they would be tracers, and would outlive it.
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            return importlib.import_module("pgx").make(name)
    except ImportError as error:
        raise FlatironsError(f"pgx:{name} needs the package pgx: pip install 'flatirons[games]'") from error


def chess_history(x: Any) -> Any:
    """pgx's inner position of chess, with the newest row of its `hash_history` as the rules tell positions apart: a square that a pawn has
    passed counts only where a pawn may take there (FIDE's laws of chess, 9.2.3). pgx counts it always, and begins its history with a
    number that is not its own hash of the start; both let a draw by repetition come an occurrence late."""
    from pgx._src.games import chess as rules

    takers = jnp.stack([x.en_passant - 9, x.en_passant + 7])  # of the column to the left and to the right
    labels = jax.vmap(lambda start: rules.Action(from_=start, to=x.en_passant)._to_label())(takers)
    pawns = (takers >= 0) & (takers < 64) & (x.board[takers] == rules.PAWN)
    takes = (x.en_passant >= 0) & jnp.any(pawns & x.legal_action_mask[labels])
    key = rules._zobrist_hash(x._replace(en_passant=jnp.where(takes, x.en_passant, -1)))
    return x._replace(hash_history=x.hash_history.at[0].set(key))


def shogi_drops(x: Any) -> Any:
    """pgx's inner position of shogi, with the drop of a pawn that mates taken out of its legal moves wherever it does. pgx leaves it in
    beside a corner, where the king is on 2a or 1b (8i or 9h): the squares off the board stand in its tables as -1, which reads as the last
    square, and a king that goes there is looked for, and found unchecked, elsewhere."""
    from pgx._src.games import shogi as rules

    king = jnp.argmin(jnp.abs(x.board - rules.OPP_KING))
    seen = rules._set_cache(rules._flip(x._replace(board=x.board.at[king + 1].set(rules.PAWN))))
    at, pawn = 80 - king, 79 - king  # as the king's side counts them
    # Nothing moves to where it stands.
    around = jnp.where(rules.AROUND_IX[at] < 0, at, rules.AROUND_IX[at])
    escapes = jax.vmap(lambda to: rules._is_legal_move_wo_pro(at, to, seen))(around)
    takes = jax.vmap(lambda start: rules._is_legal_move_wo_pro(start, pawn, seen))(rules.CAN_MOVE_ANY[pawn])
    drop = 20 * 81 + king + 1
    legal = x.legal_action_mask[drop] & (jnp.any(escapes) | jnp.any(takes))
    return x._replace(legal_action_mask=x.legal_action_mask.at[drop].set(legal))


def animal_key(full: Any) -> jax.Array:
    """A position of animal shogi, pgx's State, as two words that no other has, uint32 `[2]`: four bits a cell, two for how many of a kind
    are in hand, two for the side to move."""
    cells, held = (full._board + 1).astype(jnp.uint32), full._hand.reshape(-1).astype(jnp.uint32)
    fours, twos = jnp.arange(0, 32, 4, dtype=jnp.uint32), jnp.arange(16, 28, 2, dtype=jnp.uint32)
    side = (full._turn + 1).astype(jnp.uint32) << 28
    return jnp.stack([jnp.sum(cells[:8] << fours), jnp.sum(cells[8:] << fours[:4]) + jnp.sum(held << twos) + side]).astype(jnp.uint32)


def _with_repetitions(full: Any) -> Any:
    """pgx's State of animal shogi after a move, drawn where its position occurs for the third time. pgx's own hash goes astray with every
    capture and drop (it takes a captured piece from the wrong square, and counts hands otherwise than it uncounts them), so that a game
    with one in between went on to the fifth."""
    from pgx import animal_shogi as rules

    key = animal_key(full)
    history = full._hash_history.at[full._step_count].set(key)
    before = jnp.sum(jnp.all(history == key[None], axis=1)).astype(jnp.int32) - 1
    # Whose lion stands on the farthest row, or who left no move, has won; the board is seen by the other.
    won = ~jnp.any(full.legal_action_mask) | jnp.any(full._board[jnp.array([3, 7, 11])] == rules.KING + 5)
    return full.replace(
        _hash_history=history,
        _rep_history=full._rep_history.at[0].set(before),
        terminated=won | (before >= 2) | (full._step_count >= rules.MAX_TERMINATION_STEPS),
        rewards=jnp.where(won, jnp.ones(2).at[full.current_player].set(-1.0), jnp.zeros(2)),
    )


def _without_pawn_mates(full: Any) -> Any:
    """pgx's State of shogi with `shogi_drops`; who has no other move has lost."""
    from pgx._src.games import shogi as rules

    x, judge = shogi_drops(full._x), rules.Game()
    return full.replace(
        _x=x, legal_action_mask=x.legal_action_mask, terminated=judge.is_terminal(x), rewards=judge.rewards(x)[full._player_order]
    )


@functools.cache
def _template(name: str) -> Any:
    """pgx's start with player 0 to move, as NumPy arrays, without an observation."""
    env = _pgx(name)

    def start_of(key: Any) -> Any:
        full = env._init(key)
        if name == "animal_shogi":
            return full.replace(_hash_history=full._hash_history.at[0].set(animal_key(full)))
        return full.replace(_x=chess_history(full._x)) if name == "chess" else full

    # Compiled by hand: under somebody's trace nothing else is eager, and operation by operation animal shogi takes 11 seconds.
    with jax.numpy_rank_promotion("allow"):
        begin = jax.jit(start_of).lower(np.zeros(2, np.uint32)).compile()
    start = jax.tree.map(np.asarray, begin(np.zeros(2, np.uint32)))
    start = start.replace(current_player=np.int32(0), observation=np.zeros((), np.bool_))
    return start.replace(_player_order=np.array([0, 1], np.int32)) if "_player_order" in vars(start) else start


@functools.cache
def _start(name: str) -> GameState:
    full = _template(name)
    return GameState(
        np.int32(0), full.legal_action_mask, np.bool_(False), np.float32(0.0), np.int32(0), jax.tree.map(np.asarray, _own_fields(full))
    )


@functools.cache
def _obs_shape(name: str) -> tuple[tuple[int, ...], str]:
    with jax.numpy_rank_promotion("allow"):
        env = _pgx(name)
        shape = jax.eval_shape(lambda full: env._observe(full, full.current_player), jax.tree.map(jnp.asarray, _template(name)))
    return tuple(shape.shape), str(shape.dtype)


@functools.cache
def _symmetries(name: str) -> Symmetries:
    rows, cols, _, kind = GAMES[name]
    num_actions = int(_start(name).legal.shape[0])
    cells = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    match kind:
        case "dihedral":
            turned = [np.rot90(one, k) for one in (cells, cells[:, ::-1]) for k in range(4)]
        case "half-turn":
            turned = [cells, cells[::-1, ::-1]]
        case "mirror":
            turned = [cells, cells[:, ::-1]]
        case _:
            turned = [cells]
    board = np.stack([one.reshape(-1) for one in turned])
    action = np.broadcast_to(np.arange(num_actions, dtype=np.int32), (len(turned), num_actions)).copy()
    if kind == "mirror":
        action[1] = action[1][::-1]  # columns
    elif kind != "none":
        action[:, : rows * cols] = board  # cells; passing and swapping stay
    return Symmetries(board, action)
