"""`flatirons uci RUN` and `flatirons usi RUN`: a run as an engine over UCI (chess, gardner chess) or USI (shogi, animal shogi), for any
graphical board.

Scores are centipawns by Elo's curve, 400 log10((1 + v) / (1 - v)) for a value v in (-1, 1). The line of play that is shown follows what was
visited most. `depth` is taken as the player's own number of simulations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import TextIO

import numpy as np

from flatirons.envs import notation
from flatirons.run.players import Thinker, Thought, simulations_range
from flatirons.run.thinking import PATIENCE_S, QUIT_S, Limit, Pace, Thinking, allot, ranked, room, warm_up
from flatirons.types import FlatironsError

_NUMBERS = ("wtime", "btime", "winc", "binc", "byoyomi", "movestogo", "depth", "nodes", "mate", "movetime")


def demand_game(name: str, *, usi: bool) -> None:
    """Raises FlatironsError for a game of another protocol."""
    wanted, other = (notation.SHOGI, "uci") if usi else (notation.CHESS, "usi")
    if name not in wanted:
        better = other if name in (*notation.CHESS, *notation.SHOGI) else "gtp"
        raise FlatironsError(f"{'USI' if usi else 'UCI'} is for {' and '.join(wanted)}, and this is {name}; use flatirons {better}")


class Uci:
    """One session in one of the two protocols. `hear(line)` acts on a line; what it has to say goes to `say`, also from other threads."""

    def __init__(self, thinker: Thinker, say: Callable[[str], None], *, usi: bool = False, seed: int = 0) -> None:
        game = thinker.game
        demand_game(game.name, usi=usi)
        self.thinker, self.game, self.usi, self.seed = thinker, game, usi, seed
        self._say, self._lock = say, threading.Lock()
        self.table = notation.Table(game)
        self.refused = False
        """Whether the last `position` was none, so that the board thinks of another than the one here."""
        self.over = False
        self.multipv, self.pace = 1, Pace()
        self.thinking: Thinking | None = None

    def say(self, line: str) -> None:
        """One line out, whole."""
        with self._lock:
            self._say(line)

    def hear(self, line: str) -> None:
        """Act on one line. Nothing that comes in can end the session but `quit`."""
        words = "".join(char if char.isprintable() else " " for char in line).split()
        if not words:
            return
        command, rest = words[0], words[1:]
        name = "usi" if self.usi else "uci"
        actions: dict[str, Callable[[list[str]], None]] = {
            name: self._introduce, "isready": self._ready, "setoption": self._setoption, f"{name}newgame": self._new_game,
            "position": self._position, "go": self._go, "stop": self._stop, "ponderhit": self._ponderhit, "quit": self._quit,
            "debug": lambda _: None, "register": lambda _: None, "gameover": self._stop, "d": self._show,
        }  # fmt: skip
        act = actions.get(command)
        if act is None:
            self.say(f"info string unknown command {command[:40]}")
            return
        try:
            act(rest)
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        kind = "" if isinstance(error, FlatironsError) else f"{type(error).__name__}: "
        self.say(f"info string error: {kind}{' '.join(str(error).split())}")

    # ------------------------------------------------------------------------------------------------------- the commands

    def _introduce(self, words: list[str]) -> None:
        prefix = "USI" if self.usi else "UCI"
        self.say(f"id name Flatirons {version('flatirons')} ({self.thinker.name})")
        self.say("id author the Flatirons authors")
        least, most = simulations_range(self.thinker)
        self.say(f"option name Simulations type spin default {self.thinker.simulations} min {least} max {most}")
        self.say("option name MultiPV type spin default 1 min 1 max 100")
        if self.game.name in ("gardner_chess", "animal_shogi"):
            variant = "gardner" if self.game.name == "gardner_chess" else "dobutsu"
            self.say(f"option name {prefix}_Variant type combo default {variant} var {variant}")
        self.say("usiok" if self.usi else "uciok")

    def _ready(self, words: list[str]) -> None:
        # While it thinks it is ready too; before, what takes long is done now: compiling the searches.
        if (self.thinking is None or self.thinking.answered) and not self.table.over:
            # What is wrong with a search is said when a move is asked for.
            with contextlib.suppress(Exception):
                warm_up(self.thinker, self.table.state, self.seed, self.pace)
        self.say("readyok")

    def _setoption(self, words: list[str]) -> None:
        text = " ".join(words)
        name, _, value = text.removeprefix("name").strip().partition(" value ")
        name, value = name.strip().lower().replace("_", ""), value.strip()
        if name in ("simulations", "multipv"):
            least, most = simulations_range(self.thinker) if name == "simulations" else (1, 100)
            if not notation.is_whole(value) or not least <= int(value) <= most:
                raise FlatironsError(f"{value!r} is no whole number from {least} to {most}, as {name} must be")
            if name == "multipv":
                self.multipv = int(value)
            else:
                self.thinker.simulations = int(value)
            return
        variants = {"gardner_chess": "gardner", "animal_shogi": "dobutsu"}
        if name in ("ucivariant", "usivariant"):
            if value.lower() != variants.get(self.game.name, self.game.name):
                raise FlatironsError(f"this network plays {self.game.name}, not {value}")
            return
        if name in ("hash", "threads", "ponder", "usihash", "usiponder", "ownbook", "uciownbook", "ucianalysemode", "ucichess960"):
            return  # what boards set without being asked
        raise FlatironsError(f"there is no option {name!r}")

    def _new_game(self, words: list[str]) -> None:
        self._settle()
        self.table, self.refused = notation.Table(self.game), False

    def _position(self, words: list[str]) -> None:
        self.refused = True
        self._put_up(words)
        self.refused = False

    def _put_up(self, words: list[str]) -> None:
        if not words:
            raise FlatironsError("position of what? write: position startpos moves …")
        told = words[2:] if words[:2] == ["startpos", "moves"] else None
        known = self.table.words
        if told is None or self.table.start or len(known) > len(told) or told[: len(known)] != known:
            self.table = notation.table(self.game, " ".join(words))
            return
        # Boards send the whole game with every move: what is known already need not be played again.
        longer = dataclasses.replace(
            self.table, states=list(self.table.states), actions=list(self.table.actions), words=list(self.table.words)
        )
        for number, word in enumerate(told[len(known) :], len(known) + 1):
            try:
                longer.play(word)
            except FlatironsError as error:
                raise FlatironsError(f"move {number} of the position: {error}") from None
        self.table = longer

    def _show(self, words: list[str]) -> None:
        for line in notation.drawing(self.game, self.table.board).splitlines():
            self.say(f"info string {line}")
        self.say(f"info string {'sfen' if self.usi else 'fen'} {self.table.text()}")

    def _go(self, words: list[str]) -> None:
        # Each `go` has one answer, in their order.
        self._settle()
        if "mate" in words:
            self.say("checkmate notimplemented" if self.usi else "info string there is no search for mates")
            if self.usi:
                return
        if self.refused:
            self.say("info string error: the last position was refused; a move for the one before would be for another board")
            self.say("bestmove resign" if self.usi else "bestmove (none)")
            return
        # Where a draw could be claimed and was not, the board asks for a move all the same.
        table, live = self.table, self.table.live
        if self.usi and live.terminated and not live.outcome:
            # A repetition: a board that asks all the same is not told that the game is given up.
            live = notation.begun_again(self.game, live)
        if live.terminated or not live.legal.any():
            self.say("bestmove resign" if self.usi else "bestmove (none)")
            return
        now, legal = table.board, np.asarray(live.legal)
        try:
            limit = self._limit(words, table.turn)
        except (FlatironsError, OverflowError) as error:
            # A board waits for a move whatever it said of the clock.
            self._complain(error)
            limit = Limit()
        only, ponder = self._searchmoves(words, now, legal), "ponder" in words

        def report(thought: Thought, simulations: int, seconds: float) -> None:
            order = [action for action in ranked(thought, legal) if not only or action in only]
            milliseconds = max(1, round(1000 * seconds))
            for rank, action in enumerate(order[: self.multipv], 1):
                value = float(thought.q[action]) if thought.visits[action] else thought.value
                several = f" multipv {rank}" if self.multipv > 1 else ""
                line = " ".join(notation.line_words(self.game, live, thought.line(action)))
                self.say(
                    f"info depth {max(1, simulations.bit_length() - 1)}{several} score cp {centipawns(value)} nodes {simulations} "
                    f"nps {1000 * simulations // milliseconds} time {milliseconds} pv {line}"
                )

        def answer(thought: Thought | Exception) -> None:
            if isinstance(thought, Exception):
                self._complain(thought)
                order = [action for action in range(len(legal)) if legal[action]]
            else:
                order = [action for action in ranked(thought, legal) if not only or action in only]
            self.say(f"bestmove {notation.move_text(self.game, now, order[0])}")

        self.thinking = Thinking(
            self.thinker, live, self.seed + len(table.actions), Limit(endless=True) if ponder else limit, self.pace, report, answer,
            self.thinking,
        )  # fmt: skip

    def _limit(self, words: list[str], turn: int) -> Limit:
        numbers: dict[str, int] = {}
        for name, value in itertools.pairwise(words):
            if name in _NUMBERS:
                try:
                    numbers[name] = int(value)
                except ValueError:
                    raise FlatironsError(f"{name} {value} is no number") from None
        if "infinite" in words:
            return Limit(endless=True)
        if "nodes" in numbers:
            return Limit(simulations=min(max(1, numbers["nodes"]), simulations_range(self.thinker)[1]))
        if "movetime" in numbers:
            return Limit(seconds=max(0.001, numbers["movetime"] / 1000))
        # White begins in chess, and black, which USI calls b, in shogi.
        mine = ("b" if turn == 0 else "w") if self.usi else ("w" if turn == 0 else "b")
        if f"{mine}time" in numbers or "byoyomi" in numbers:
            left, period = numbers.get(f"{mine}time", 0) / 1000, numbers.get("byoyomi", 0) / 1000
            seconds = allot(max(0.0, left), numbers.get(f"{mine}inc", 0) / 1000, numbers.get("movestogo") or None) if left > 0 else 0.0
            return Limit(seconds=max(0.01, seconds + 0.9 * period), room=room(left) + 0.9 * period)
        return Limit()

    def _searchmoves(self, words: list[str], now: notation.Board, legal: np.ndarray) -> set[int]:
        if "searchmoves" not in words:
            return set()
        known = notation.moves(self.game, now, legal)
        return {known[word] for word in words[words.index("searchmoves") + 1 :] if word in known}

    def _stop(self, words: list[str]) -> None:
        if self.thinking is not None:
            self.thinking.stop()
            if not self.thinking.answered:
                # Its first search has not ended, and may be a large one.
                late = threading.Timer(PATIENCE_S, self.thinking.settle)
                late.daemon = True
                late.start()

    def _settle(self) -> None:
        if self.thinking is not None:
            self.thinking.settle()

    def _ponderhit(self, words: list[str]) -> None:
        # What was thought so far is the answer: the opponent's time was ours.
        self._stop([])

    def _quit(self, words: list[str]) -> None:
        if self.thinking is not None:
            self.thinking.stop()
        self.over = True


def centipawns(value: float) -> int:
    """A value in [-1, 1] as centipawns, at most 2,000 or so."""
    v = max(-0.99999, min(0.99999, value))
    return round(400 * math.log10((1 + v) / (1 - v)))


def serve(thinker: Thinker, inputs: TextIO, outputs: TextIO, *, usi: bool = False, seed: int = 0) -> bool:
    """Answer lines until `quit` or the end of the input. Returns whether a search that nobody wants is still going on, which cannot be
    ended and need not be waited for."""

    def say(line: str) -> None:
        try:
            outputs.write(line + "\n")
            outputs.flush()
        except (OSError, ValueError):
            # Nobody listens any more: the loop below ends with the input.
            print("flatirons: the board has gone", file=sys.stderr)

    session = Uci(thinker, say, usi=usi, seed=seed)
    for line in inputs:
        session.hear(line)
        if session.over:
            break
    if session.thinking is not None:
        session.thinking.stop()
        return not session.thinking.join(QUIT_S)
    return False
