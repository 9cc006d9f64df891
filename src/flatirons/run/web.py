"""`flatirons play RUN` for board games: a page in the browser, where a person plays against a run and sees what it thinks.

A small server of the standard library on this machine, one HTML file (`page.html`), and nothing from elsewhere. The games are kept here,
so that a page may be loaded again in mid-game; a request says which position it is about (`ply`), so that one from a page that is behind
changes nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import http.server
import ipaddress
import json
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flatirons import envs
from flatirons.envs import games, notation
from flatirons.run import boards, folder, players, train
from flatirons.run.doctor import display
from flatirons.run.job import on_device
from flatirons.systems import system_name
from flatirons.types import FlatironsError

PAGE = Path(__file__).with_name("page.html")
PORT = 8000
"""Tried first; where it is taken, any free one."""
SIMULATIONS = (0, 10, 50, 100, 200, 400, 800)
"""Simulations a move that can be chosen in the page, beside the run's own. 0 is the network alone, and all there is of a policy network."""
RULES = -1
"""Stands for the rules among what is being compiled."""
MAX_GAMES = 32
"""Games that are kept; the one longest untouched goes first."""
MAX_BODY = 65_536
SIDES = (0, 1, "both", "none")
"""What the person plays: first, second, both sides, or neither (the run plays itself)."""
MOVES_AHEAD, PLIES_AHEAD = 7, 8
"""Of how many moves the play that is expected after them is told, and how far."""
VARIED_PLIES = 8
"""In how many plies of an opening it may vary its moves, where it is asked to."""


class Refusal(Exception):
    """A request that cannot be done: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Thought:
    """What was thought of one position. `prior`, `visits`, `q` are `[A]`, `value` is of the player to move."""

    simulations: int
    action: int
    prior: np.ndarray
    visits: np.ndarray
    q: np.ndarray
    value: float
    network_value: float
    lines: Mapping[int, Sequence[str]] = dataclasses.field(default_factory=dict)
    """By move, for the best few: the play that is expected from it on, in words."""


class Opponent:
    """A system with its actor, asked about one position at a time; compiled once for each number of simulations.

    `system` needs `analyse(config, task, actor, model, key, *, num_simulations)`; `task` is the in-graph task of a board game with one
    stream. It plays with the settings' `play_simulations`, or else `num_simulations`; where they have neither, as a policy network's, with
    0 alone. Raises FlatironsError for a system without `analyse`, simulations of a policy network, and a task that is no board game.
    """

    def __init__(
        self,
        system: Any,
        config: Any,
        task: Any,
        actor: Any,
        *,
        who: str = "it",
        label: str = "",
        simulations: int | None = None,
        seed: int = 0,
    ):
        if not hasattr(system, "analyse"):
            raise FlatironsError(
                f"{system_name(system)} has no search to play with: only the systems made for board games can be played against in the "
                "browser; `flatirons list` names them"
            )
        game = games.demand_game(task, "the page")
        if not isinstance(game, games.Game):
            raise FlatironsError(f"the page cannot draw {task.name}; it draws {', '.join(games.GAMES)}")
        self.game, self.look = game, boards.LOOKS[game.name]
        own = players.own_simulations(config)
        if own is None and simulations:
            raise FlatironsError(
                f"simulations is {simulations}, and {system_name(system)} is a policy network that plays without a search; leave them out"
            )
        self.simulations = (own or 0) if simulations is None else simulations
        self.choices = [0] if own is None else sorted({*SIMULATIONS, self.simulations})
        self.who, self.label = who, label
        self.ready: set[int] = set()
        self.preparing: set[int] = set()
        self.thinking: set[int] = set()
        self._system, self._config, self._task, self._actor = system, config, task, actor
        self._key = jax.random.key(seed)
        self._asked = 0
        self._locks = {choice: threading.Lock() for choice in self.choices}
        self._compiled: dict[int, Callable[..., Any]] = {}

    def think(self, state: Any, simulations: int) -> Thought:
        """What the network says of a position, and the search where there are `simulations`."""
        with self._locks[simulations]:
            self.thinking.add(simulations)
            if simulations not in self.ready:
                self.preparing.add(simulations)
            try:
                found, tree = self._analyse(state, simulations)
                self.ready.add(simulations)
            finally:
                self.preparing.discard(simulations)
                self.thinking.discard(simulations)
        legal = np.asarray(state.legal)
        visits = np.where(legal, np.asarray(found.visits)[0], 0)
        prior = np.where(legal, np.nan_to_num(np.asarray(found.prior, np.float64)[0]), 0.0)
        expected = {} if tree is None else players.expected_play(tree.child[0], tree.visits[0])
        lines = {
            action: notation.line_words(self.game, state, expected[action][:PLIES_AHEAD], as_records=True)
            for action in list(expected)[:MOVES_AHEAD]
        }
        return Thought(
            simulations, int(found.action[0]), prior, visits, np.nan_to_num(np.asarray(found.q, np.float64)[0]),
            float(found.value[0] if simulations else found.network_value[0]), float(found.network_value[0]), lines,
        )  # fmt: skip

    def _analyse(self, state: Any, simulations: int) -> tuple[Any, Any]:
        if simulations not in self._compiled:
            system, task = self._system, self._task

            def analyse(config: Any, actor: Any, model: Any, key: Any) -> tuple[Any, Any]:
                asked = (config, task, actor, model, key)
                if simulations and hasattr(system, "analyse_tree"):
                    return system.analyse_tree(*asked, num_simulations=simulations)
                return system.analyse(*asked, num_simulations=simulations), None

            self._compiled[simulations] = jax.jit(analyse)
        self._asked += 1
        model = task_state(state)
        key = jax.random.fold_in(self._key, self._asked)
        return jax.device_get(self._compiled[simulations](self._config, self._actor, model, key))

    def prepare(self) -> None:
        """Compile what the first moves need: the rules, the network, the search."""
        start = notation.table(self.game).state
        self.preparing.add(RULES)
        notation.stepper(self.game)(start, np.int32(np.flatnonzero(start.legal)[0]))
        self.preparing.discard(RULES)
        for simulations in sorted({0, self.simulations}):
            self.think(start, simulations)


def task_state(state: Any) -> Any:
    """One position as the state of a task with one stream, as `TimeStep.model` has it."""
    from flatirons.envs.ingraph import EnvState

    first = np.array([int(state.plies) == 0])
    return EnvState(jax.tree.map(lambda x: np.asarray(x)[None], state), np.asarray(state.plies, np.int32)[None], first)


def choose(thought: Thought, legal: np.ndarray, *, vary: bool, seed: int) -> int:
    """The move it plays. With `vary`, one of those that the search finds nearly as good: within 0.05 of the best value, and visited at
    least a third as often; in proportion to the visits."""
    action = thought.action if legal[thought.action] else int(np.flatnonzero(legal)[0])
    if not vary or not thought.visits.any():
        return action
    near = (thought.visits * 3 >= thought.visits[action]) & (thought.q >= thought.q[action] - 0.05) & legal
    weights = np.where(near, thought.visits, 0).astype(np.float64)
    return int(np.random.default_rng(seed).choice(weights.size, p=weights / weights.sum())) if weights.sum() else action


# ------------------------------------------------------------------------------------------------------------- one game


class Play:
    """One game: its positions, its moves, and what was thought of them. `position` is where it begins, as `notation.table` reads it."""

    def __init__(self, opponent: Opponent, side: Any, position: str = ""):
        self.id = secrets.token_urlsafe(9)
        self.side = side
        self.lock = threading.RLock()
        self.game = opponent.game
        begun = notation.table(self.game, position)
        self.start = begun.start
        self.states = begun.states[:1]
        self.moves: list[boards.Move] = []
        self.thoughts: dict[tuple[int, int], Thought] = {}
        """By (ply, simulations)."""
        self.played: dict[int, Thought] = {}
        """The thought behind each of the run's own moves, by ply."""
        self._legal: dict[int, list[boards.Move]] = {}
        for action in begun.actions:
            self.play(next(move for move in self.onward() if move.action == action))

    @property
    def ply(self) -> int:
        """Moves made."""
        return len(self.moves)

    @property
    def over(self) -> bool:
        """Whether the last position has ended."""
        return bool(self.states[-1].terminated)

    def legal(self, at: int) -> list[boards.Move]:
        """The legal moves of the position after `at` moves."""
        if at not in self._legal:
            self._legal[at] = boards.moves(self.game, self.states[at])
        return self._legal[at]

    def onward(self) -> list[boards.Move]:
        """The legal moves of the last position where a game is brought back, which may have gone on after a draw that nobody claimed."""
        return boards.moves(self.game, notation.going_on(self.game, self.states[-1])) if self.over else self.legal(self.ply)

    def play(self, move: boards.Move) -> None:
        """Make a move."""
        now = notation.going_on(self.game, self.states[-1])
        after = jax.device_get(notation.stepper(self.game)(now, np.int32(move.action))[0])
        self.states.append(after)
        self.moves.append(move._replace(text=boards.record_text(self.game, now, move, after)))

    def cut(self, to: int) -> None:
        """Go back to the position after `to` moves."""
        del self.states[to + 1 :], self.moves[to:]
        self._legal = {ply: moves for ply, moves in self._legal.items() if ply <= to}
        self.thoughts = {(ply, count): thought for (ply, count), thought in self.thoughts.items() if ply <= to}
        self.played = {ply: thought for ply, thought in self.played.items() if ply < to}

    def text(self, at: int) -> str:
        """The position after `at` moves in words that `position` of a new game takes: FEN or SFEN, elsewhere the moves."""
        if notation.kinds(self.game.name):
            return notation.position_text(self.game, self.states[at])
        return " ".join(move.text for move in self.moves[:at] if move.action != games.RESIGN)

    def before(self) -> int | None:
        """To which ply taking back goes: the person's turn before the last, or None where there is none."""
        for ply in range(self.ply - 1, -1, -1):
            if self.side not in (0, 1) or int(self.states[ply].player) == self.side:
                return ply
        return None

    def value(self, at: int) -> float | None:
        """What is known of a position, for the first player, in [-1, 1]: the result, the deepest search's value, or nothing."""
        state = self.states[at]
        if bool(state.terminated):
            return float(state.outcome)
        known = [thought for (ply, _), thought in self.thoughts.items() if ply == at]
        if not known:
            return None
        value = max(known, key=lambda thought: thought.simulations).value
        return round(-value if int(state.player) else value, 4)


RESIGNATION = boards.Move(games.RESIGN, None, text="resigns")


class Table:
    """All games with one opponent, and what can be asked of them. Every answer is plain data for JSON; raises Refusal."""

    def __init__(self, opponent: Opponent):
        self.opponent = opponent
        self._games: collections.OrderedDict[str, Play] = collections.OrderedDict()
        self._lock = threading.Lock()

    def info(self) -> dict[str, Any]:
        """What is played, against whom, and with which choices."""
        who, look = self.opponent, self.opponent.look
        return {
            "title": look.title,
            "kind": look.kind,
            "rows": look.rows,
            "cols": look.cols,
            "sides": look.sides,
            "names": boards.names(who.game),
            "pieces": boards.pieces(who.game),
            "who": who.who,
            "label": who.label,
            "choices": who.choices,
            "simulations": who.simulations,
            "ready": sorted(who.ready),
            "preparing": sorted(who.preparing),
        }

    def new(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new game: `side` is what the person plays, `position` where it begins (FEN, SFEN, moves). `moves` (actions) are made first, so
        that a page can bring back its game."""
        position = body.get("position", "")
        if not isinstance(position, str):
            raise Refusal(400, f"position is {position!r}: give a text, such as a FEN or moves.")
        play = Play(self.opponent, _side(body), position)
        actions = body.get("moves", [])
        if not isinstance(actions, list) or len(actions) > self.opponent.game.longest + 1:
            raise Refusal(400, "moves is a list of actions; leave it out for a game from the start.")
        for number, action in enumerate(actions, 1):
            gives_up = action == games.RESIGN and number == len(actions) and not play.over
            play.play(RESIGNATION if gives_up else self._legal(play, {"action": action}, brought_back=True))
        with self._lock:
            self._games[play.id] = play
            while len(self._games) > MAX_GAMES:
                self._games.popitem(last=False)
        return self._view(play)

    def state(self, body: dict[str, Any]) -> dict[str, Any]:
        """A game as it stands; with `at`, the position after so many moves."""
        play = self._play(body)
        with play.lock:
            at = play.ply if body.get("at") is None else _whole(body, "at", 0, play.ply)
            return self._view(play, at)

    def move(self, body: dict[str, Any]) -> dict[str, Any]:
        """The person's move, by `action` or by its text in `move`."""
        play = self._current(body)
        with play.lock:
            self._same(play, body)
            play.play(self._legal(play, body))
            return self._view(play)

    def resign(self, body: dict[str, Any]) -> dict[str, Any]:
        """The player to move gives up."""
        play = self._current(body)
        with play.lock:
            self._same(play, body)
            if play.over:
                raise Refusal(400, "the game is over; take back or begin a new one.")
            play.play(RESIGNATION)
            return self._view(play)

    def engine(self, body: dict[str, Any]) -> dict[str, Any]:
        """The run's move for whoever is to move."""
        play = self._current(body)
        at, thought, state = self._thought(play, {**body, "at": None})
        with play.lock:
            self._same(play, body, state)
            vary = body.get("vary") is True and at < VARIED_PLIES
            action = choose(thought, np.asarray(state.legal), vary=vary, seed=secrets.randbits(32))
            play.played[at] = thought
            play.play(next(move for move in play.legal(at) if move.action == action))
            return self._view(play)

    def undo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Take back to the person's turn before the last, or to the position after `to` moves."""
        play = self._current(body)
        with play.lock:
            self._same(play, body)
            to = play.before() if body.get("to") is None else _whole(body, "to", 0, play.ply)
            if to is None:
                raise Refusal(400, "there is no move of yours to take back.")
            play.cut(to)
            return self._view(play)

    def side(self, body: dict[str, Any]) -> dict[str, Any]:
        """The person changes sides in mid-game."""
        play = self._play(body)
        with play.lock:
            play.side = _side(body)
            return self._view(play)

    def hint(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the run would play here."""
        play = self._current(body)
        at, thought, state = self._thought(play, {**body, "at": None})
        with play.lock:
            self._same(play, body, state)
            action = choose(thought, np.asarray(state.legal), vary=False, seed=0)
            best = next(move for move in play.legal(at) if move.action == action)
            return {"at": at, "move": _move(best), "thought": self._told(play, at, thought), "values": self._values(play)}

    def analysis(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the run thinks of the position after `at` moves (default: the last)."""
        play = self._play(body)
        at, thought, state = self._thought(play, body)
        with play.lock:
            if at > play.ply or play.states[at] is not state:
                raise Refusal(409, "that position was taken back.")
            return {"at": at, "thought": self._told(play, at, thought), "values": self._values(play)}

    # ------------------------------------------------------------------------------------------------------------

    def _play(self, body: dict[str, Any]) -> Play:
        with self._lock:
            play = self._games.get(str(body.get("game")))
            if play is None:
                raise Refusal(404, "this game is not known here any more; begin a new one.")
            self._games.move_to_end(play.id)
            return play

    def _current(self, body: dict[str, Any]) -> Play:
        play = self._play(body)
        self._same(play, body)
        return play

    def _same(self, play: Play, body: dict[str, Any], state: Any = None) -> None:
        """The request is about the last position; `state` is the one that was thought of, as others may have been played meanwhile."""
        if _whole(body, "ply", 0, None) != play.ply or (state is not None and play.states[-1] is not state):
            raise Refusal(409, f"the game has gone on elsewhere: {play.ply} moves were made, and this request was about {body['ply']}.")

    def _legal(self, play: Play, body: dict[str, Any], *, brought_back: bool = False) -> boards.Move:
        legal, asked = play.onward() if brought_back else play.legal(play.ply), body.get("action", body.get("move"))
        if not legal:
            raise Refusal(400, "the game is over; take back or begin a new one.")
        if "action" in body:
            if isinstance(asked, bool) or not isinstance(asked, int):
                raise Refusal(400, f"action is {asked!r}: give a whole number.")
            if 0 <= asked < self.opponent.game.num_actions:
                found = [move for move in legal if move.action == asked]
                if found:
                    return found[0]
                if not notation.kinds(self.opponent.game.name):
                    asked = notation.move_text(self.opponent.game, notation.board(self.opponent.game, play.states[-1]), asked)
        elif isinstance(asked, str):
            state = play.states[-1]
            board = notation.board(self.opponent.game, state)
            action = notation.parse_move(self.opponent.game, board, state.legal, asked[:20])  # raises FlatironsError, which names it
            return next(move for move in legal if move.action == action)
        examples = ", ".join(move.text for move in legal[:3])
        raise Refusal(400, f"{asked!r} is not a legal move here; {len(legal)} are, such as {examples}. The board is unchanged.")

    def _thought(self, play: Play, body: dict[str, Any]) -> tuple[int, Thought, Any]:
        with play.lock:
            at = play.ply if body.get("at") is None else _whole(body, "at", 0, play.ply)
            state = play.states[at]
        simulations = body.get("simulations", self.opponent.simulations)
        if type(simulations) is not int or simulations not in self.opponent.choices:
            raise Refusal(400, f"simulations is {simulations!r}: choose one of {', '.join(map(str, self.opponent.choices))}.")
        if bool(state.terminated):
            raise Refusal(400, "the game is over; take back or begin a new one.")
        thought = play.thoughts.get((at, simulations))
        if thought is None:
            thought = self.opponent.think(state, simulations)
            with play.lock:
                if play.ply >= at and play.states[at] is state:
                    play.thoughts[at, simulations] = thought
        return at, thought, state

    def _values(self, play: Play) -> list[float | None]:
        return [play.value(at) for at in range(play.ply + 1)]

    def _told(self, play: Play, at: int, thought: Thought) -> dict[str, Any]:
        texts = {move.action: move for move in play.legal(at)}
        sign = -1 if int(play.states[at].player) else 1
        rows = [
            {
                **_move(move),
                "prior": round(float(thought.prior[action]), 5),
                "visits": int(thought.visits[action]),
                "value": round(float(thought.q[action]), 4) if thought.visits[action] else None,
                "line": list(thought.lines.get(action, ())),
            }
            for action, move in texts.items()
        ]
        rows.sort(key=lambda row: (-row["visits"], -row["prior"]))
        return {
            "at": at,
            "player": int(play.states[at].player),
            "simulations": thought.simulations,
            "value": round(sign * thought.value, 4),
            "network_value": round(sign * thought.network_value, 4),
            "moves": rows,
        }

    def _view(self, play: Play, at: int | None = None) -> dict[str, Any]:
        at = play.ply if at is None else at
        last = max((ply for ply in play.played if ply < at), default=None)
        return {
            "game": play.id,
            "side": play.side,
            "start": play.start,
            "text": play.text(at),
            "ply": play.ply,
            "moves": [{**_move(move), "player": int(play.states[ply].player)} for ply, move in enumerate(play.moves)],
            "values": self._values(play),
            "over": play.over,
            "position": self._position(play, at),
            "thought": None if last is None else self._told(play, last, play.played[last]),
        }

    def _position(self, play: Play, at: int) -> dict[str, Any]:
        who, state = self.opponent, play.states[at]
        now = boards.position(who.game, state)
        over = bool(state.terminated)
        resigned = at > 0 and play.moves[at - 1].action == games.RESIGN
        return {
            "at": at,
            "player": now.player,
            "cells": now.cells,
            "hands": now.hands,
            "legal": [_move(move) for move in play.legal(at)],
            "last": _move(play.moves[at - 1]) if at else None,
            "check": boards.check(who.game, now),
            "line": boards.line(who.game, now) if over else (),
            "score": boards.score(who.game, state, now),
            "over": over,
            "outcome": float(state.outcome) if over else None,
            "ending": ("resignation" if resigned else boards.ending(who.game, state)) if over else "",
        }


def _move(move: boards.Move) -> dict[str, Any]:
    return {name: value for name, value in move._asdict().items() if value is not None}


def _side(body: dict[str, Any]) -> Any:
    side = body.get("side", 0)
    if isinstance(side, bool) or side not in SIDES:
        raise Refusal(400, f"side is {side!r}: choose 0 (first), 1 (second), both or none.")
    return side


def _whole(body: dict[str, Any], name: str, low: int, high: int | None) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"from {low} up" if high is None else f"from {low} to {high}"
        raise Refusal(400, f"{name} is {value!r}: give a whole number {bounds}.")
    return value


# ------------------------------------------------------------------------------------------------------------ the server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "flatirons"
    sys_version = ""
    timeout = 300
    server: Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # silent
        pass

    def _get(self) -> tuple[str, bytes]:
        path = self.path.partition("?")[0]
        if path == "/":
            return "text/html; charset=utf-8", PAGE.read_bytes()
        if path == "/api/info":
            return _json(self.server.table.info())
        raise Refusal(404, f"there is no {path} here.")

    def _post(self) -> tuple[str, bytes]:
        table = self.server.table
        answers = {
            "/api/new": table.new, "/api/state": table.state, "/api/move": table.move, "/api/resign": table.resign,
            "/api/engine": table.engine, "/api/undo": table.undo, "/api/side": table.side, "/api/hint": table.hint,
            "/api/analysis": table.analysis,
        }  # fmt: skip
        body = self._body()
        if self.path not in answers:
            raise Refusal(404, f"there is no {self.path} here.")
        return _json(answers[self.path](body))

    def _body(self) -> dict[str, Any]:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True  # what follows on it cannot be told apart from a body that was not read
            raise Refusal(411 if length < 0 else 413, f"send a body of known length, at most {MAX_BODY} bytes.")
        data = self.rfile.read(length)
        # Another site's page can send a form here, but no JSON without our leave.
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "send application/json.")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Refusal(400, "the body is not JSON.") from None
        if not isinstance(body, dict):
            raise Refusal(400, "the body is not a JSON object.")
        return body

    def _answer(self, work: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._demand_host()
            status, (kind, data) = 200, work()
        except Refusal as refusal:
            status, (kind, data) = refusal.status, _json({"error": str(refusal)})
        except FlatironsError as error:
            status, (kind, data) = 400, _json({"error": str(error)})
        except (ConnectionError, TimeoutError):
            return
        except Exception as error:
            print(f"flatirons: {self.path}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            status, (kind, data) = 500, _json({"error": f"something went wrong ({type(error).__name__}); the terminal says more."})
        try:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(data))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("Content-Security-Policy", _POLICY),
            ):
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _demand_host(self) -> None:
        """A name that somebody else's server points at this machine must not be let in (DNS rebinding); addresses may."""
        host = self.headers.get("Host", "").rpartition("@")[2]
        host = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if host in ("localhost", socket.gethostname()):
            return
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise Refusal(403, f"{host or 'no host'} is not a name of this machine; use its address.") from None


_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _json(data: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(data, allow_nan=False).encode()


class Server(http.server.ThreadingHTTPServer):
    """The page and its answers, on `host` and `port` (0: any free one). Raises FlatironsError where it cannot listen there."""

    daemon_threads = True

    def __init__(self, opponent: Opponent, *, host: str = "127.0.0.1", port: int | None = None):
        self.table = Table(opponent)
        for chosen in (PORT, 0) if port is None else (port,):
            try:
                super().__init__((host, chosen), _Handler)
                return
            except (OSError, OverflowError) as error:
                if chosen == 0 or port is not None:
                    why = getattr(error, "strerror", None) or str(error)
                    raise FlatironsError(f"cannot listen on {host}, port {chosen} ({why}); choose another --port or --host.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"


def is_game(path: Path) -> bool:
    """Whether the run at `path` is of a board game."""
    name = folder.peek_record(path).get("env")
    return isinstance(name, str) and name.startswith("pgx:") and name.removeprefix("pgx:").replace("-", "_") in games.GAMES


def opponent(path: Path, *, simulations: int | None = None, seed: int = 0) -> Opponent:
    """The run at `path` to play against. Raises FlatironsError where it cannot be."""
    run = train.load(path)
    record = folder.peek_record(path)
    task = envs.make(record["env"], 1, **dict(record.get("env_options") or {}))
    who = str(record.get("preset") or record["system"])
    label = f"{who} after {run.step:,} decisions, {path}"
    return Opponent(run.system, on_device(run.config), task, run.actor, who=who, label=label, simulations=simulations, seed=seed)


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    simulations: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> bool:
    """Serve the page for the run at `path` until Ctrl-C, and open it where there is a display. Returns whether a thread of its own is still
    computing: Python cannot end such a thread, and aborts where it ends itself beside one."""
    train.enable_compilation_cache()
    who = opponent(path, simulations=simulations, seed=seed)
    with Server(who, host=host, port=port) as server:
        try:
            say(f"{who.look.title} against {who.label}: {server.url} (Ctrl-C stops)")
            threading.Thread(target=who.prepare, daemon=True).start()
            if browser and display():
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("")
        return bool(who.thinking or who.preparing)
