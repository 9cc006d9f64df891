"""`flatirons gtp RUN`: a run as an engine over GTP version 2 (Go, and the other games of stones), for GoGui, Sabaki and the like.

Komi is what the rules have, 7.5: another is taken into the final score and the record, and the search does not know it. Superko
(positional) is illegal. A side may move twice: the other is taken to have passed, which is also how handicap stones are placed.

Boards that show an analysis (Sabaki, Lizzie) ask for it as of Leela Zero or of KataGo (`lz-analyze`, `kata-analyze`): searches that grow
until the next line comes.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import numpy as np

from flatirons.envs import notation, records
from flatirons.envs.games import GameState
from flatirons.run.players import Thinker, Thought
from flatirons.run.thinking import QUIT_S, Limit, Pace, Thinking, allot, ranked, room, think, warm_up
from flatirons.types import FlatironsError

NEWLINE = "\n"
MOST_TOLD = 40
"""Moves that an analysis tells of."""


class Refused(Exception):
    """An answer that begins with a question mark."""


def demand_game(name: str) -> None:
    """Raises FlatironsError for a game of another protocol."""
    if name in (*notation.CHESS, *notation.SHOGI):
        raise FlatironsError(f"GTP is for games of stones, and this is {name}; use flatirons {'uci' if name in notation.CHESS else 'usi'}")


class Gtp:
    """One session. `answer(line)` gives the text to print, "" for a line that needs none; `over` once `quit` was said. What an analysis
    finds between two lines goes to `say`, from its own thread."""

    def __init__(self, thinker: Thinker, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> None:
        game = thinker.game
        demand_game(game.name)
        self.thinker, self.game, self.seed = thinker, game, seed
        self._say, self._lock = say, threading.Lock()
        self.analysis: Thinking | None = None
        self._begin: Callable[[], Thinking] | None = None
        self._telling = False
        self.table = notation.Table(game)
        self.implied: set[int] = set()
        """The plies at which a side was taken to have passed."""
        self.komi = records.KOMI
        self.over = False
        self.pace = Pace()
        self.clocks: dict[int, tuple[float, int]] = {}
        """What `time_left` said last, by colour: seconds, and stones to be played in them."""
        self.used: dict[int, float] = {}
        """Seconds that its own moves took, by colour: the clock where nobody says `time_left`."""
        self.settings: tuple[float, float, int] | None = None
        self.is_go = game.name in notation.GO
        self.commands: dict[str, Callable[[list[str]], str]] = {
            "protocol_version": lambda _: "2", "name": lambda _: "Flatirons", "version": lambda _: version("flatirons"),
            "known_command": lambda words: "true" if words and words[0] in self.commands else "false",
            "list_commands": lambda _: "\n".join(self.commands), "quit": self._quit, "boardsize": self._boardsize,
            "query_boardsize": lambda _: str(game.board.rows), "clear_board": self._clear_board, "komi": self._komi,
            "get_komi": lambda _: f"{self.komi:g}", "play": self._play, "genmove": self._genmove, "reg_genmove": self._reg_genmove,
            "undo": self._undo, "showboard": lambda _: "\n" + notation.drawing(game, self.table.board), "final_score": self._final_score,
            "time_settings": self._time_settings, "time_left": self._time_left, "printsgf": self._printsgf, "loadsgf": self._loadsgf,
            "move_history": self._move_history, "flatirons-analyse": self._analyse,
            "lz-analyze": functools.partial(self._go_on_analysing, _as_leela),
            "kata-analyze": functools.partial(self._go_on_analysing, _as_katago),
            "lz-genmove_analyze": functools.partial(self._move_and_tell, _as_leela),
            "kata-genmove_analyze": functools.partial(self._move_and_tell, _as_katago),
        }  # fmt: skip
        if self.is_go:
            self.commands |= {
                "fixed_handicap": self._fixed_handicap, "place_free_handicap": self._place_free_handicap,
                "set_free_handicap": self._set_free_handicap, "final_status_list": self._final_status_list,
            }  # fmt: skip

    def answer(self, line: str) -> str:
        """The answer to one line, with its empty line behind it. An analysis says its own, which ends with the next line."""
        self._end_analysis()
        plain = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", line.replace("\t", " ")).partition("#")[0].strip()
        if not plain:
            return ""
        words = plain.split()
        number = words.pop(0) if notation.is_whole(words[0]) else ""
        if not words:
            return f"?{number} a number is no command\n\n"
        command = self.commands.get(words[0])
        if command is None:
            return f"?{number} unknown command\n\n"
        try:
            text = command(words[1:])
            said = f"={number}{'' if text.startswith(NEWLINE) else ' '}{text}".rstrip()
            if self._begin is None:
                return said + "\n\n"
            self._say(said + "\n")
            self._telling, begin, self._begin = True, self._begin, None
            self.analysis = begin()
            return ""
        except (Refused, FlatironsError) as error:
            return f"?{number} {' '.join(str(error).split())}\n\n"
        except Exception as error:
            # Nothing that goes wrong in a search ends the session.
            return f"?{number} {type(error).__name__}: {' '.join(str(error).split())}".rstrip() + "\n\n"

    # ------------------------------------------------------------------------------------------------------- the commands

    def _quit(self, words: list[str]) -> str:
        self.over = True
        return ""

    def close(self) -> bool:
        """The end of the session. Returns whether a search that nobody wants is still going on."""
        self._end_analysis()
        return self.analysis is not None and not self.analysis.join(QUIT_S)

    def _boardsize(self, words: list[str]) -> str:
        if not words or not notation.is_whole(words[0]):
            raise Refused("boardsize not an integer")
        if int(words[0]) != self.game.board.rows:
            raise Refused("unacceptable size")
        return self._clear_board([])

    def _clear_board(self, words: list[str]) -> str:
        self.table, self.implied = notation.Table(self.game), set()
        self.clocks, self.used = {}, {}
        return ""

    def _back_to(self, plies: int) -> None:
        """Take moves back until so many are left."""
        while len(self.table.actions) > plies:
            self.table.undo()
        self.implied = {ply for ply in self.implied if ply < plies}

    def _komi(self, words: list[str]) -> str:
        try:
            komi = float(words[0])
        except (IndexError, ValueError):
            raise Refused("komi not a float") from None
        if not abs(komi) < 1000:
            raise Refused("komi not a float")
        if komi != records.KOMI and self.is_go:
            print(f"flatirons: the search plays for komi {records.KOMI:g}; {komi:g} counts in the final score alone", file=sys.stderr)
        self.komi = komi
        return ""

    def _colour(self, words: list[str]) -> int:
        first, second = (
            (("b", "black"), ("w", "white")) if notation.colours(self.game.name)[0] != "white" else (("w", "white"), ("b", "black"))
        )
        said = words[0].lower() if words else ""
        if said in (*first, "x"):
            return 0
        if said in (*second, "o"):
            return 1
        raise Refused("invalid color")

    def _vertex(self, colour: int, word: str) -> None:
        """Play a move of a colour; the other is taken to have passed where it is not its turn. Nothing changes where it is not legal."""
        before = len(self.table.actions)
        try:
            self._turn_to(colour)
            self.table.play(word.lower() if word.lower() in ("pass", "swap") else word)
            if self.is_go and bool(self.table.state.inner["_x"].is_psk):
                raise Refused("illegal move: superko")
        except (FlatironsError, Refused) as error:
            self._back_to(before)
            raise Refused(f"illegal move: {error}" if not isinstance(error, Refused) else str(error)) from None

    def _turn_to(self, colour: int) -> None:
        if self.table.over:
            raise Refused("the game has ended")
        if self.table.turn == colour:
            return
        passing, names = self.game.num_actions - 1, notation.colours(self.game.name)
        if not (self.is_go or self.game.name == "othello") or not self.table.legal[passing]:
            raise Refused(f"it is {names[self.table.turn]}'s turn")
        if self.table.actions[-1:] == [passing]:
            mine, other = names[colour], names[1 - colour]
            raise Refused(f"{mine} has passed and it is {other}'s turn: a second pass would end the game; undo, or play {other}'s move")
        self.table.play(passing)
        self.implied.add(len(self.table.actions) - 1)
        if self.table.over:
            raise Refused("the game has ended")

    def _play(self, words: list[str]) -> str:
        colour = self._colour(words)
        if len(words) != 2:
            raise Refused("invalid color or coordinate")
        if words[1].lower() == "resign":
            return ""
        self._vertex(colour, words[1])
        return ""

    def _genmove(self, words: list[str]) -> str:
        return self._move(words, keep=True)[0]

    def _reg_genmove(self, words: list[str]) -> str:
        return self._move(words, keep=False)[0]

    def _move(self, words: list[str], *, keep: bool) -> tuple[str, tuple[GameState, Thought] | None]:
        """The move it chooses, and where it was thought of, and what."""
        colour = self._colour(words)
        before = len(self.table.actions)
        try:
            self._turn_to(colour)
        except Refused:
            self._back_to(before)
            if self.table.over and self.is_go:
                return "pass", None
            raise
        began = time.monotonic()
        try:
            state, seed = self.table.state, self.seed + len(self.table.actions)
            thought = think(self.thinker, state, seed, self._limit(colour), self.pace, after=self.analysis)
        except Exception:
            self._back_to(before)
            raise
        if keep:
            self.used[colour] = self.used.get(colour, 0.0) + time.monotonic() - began
        for action in ranked(thought, self.table.legal):
            self.table.play(action)
            if not (self.is_go and bool(self.table.state.inner["_x"].is_psk)):
                break
            self.table.undo()
        said = self.table.words[-1]
        if not keep:
            self._back_to(before)
        return said, (state, thought)

    def _undo(self, words: list[str]) -> str:
        if not self.table.actions:
            raise Refused("cannot undo")
        last = len(self.table.actions) - 1
        # A pass that nobody said goes with the move that it made room for.
        self._back_to(last - 1 if last - 1 in self.implied else last)
        return ""

    def _final_score(self, words: list[str]) -> str:
        if not self.is_go:
            if not self.table.over:
                raise Refused("cannot score: the game goes on")
            first, second = "BW" if notation.colours(self.game.name)[0] != "white" else "WB"
            return {1.0: f"{first}+", -1.0: f"{second}+"}.get(self.table.outcome, "0")
        score = records.area(self.table.board.cells, self.komi)
        return "0" if score == 0 else f"{'B' if score > 0 else 'W'}+{abs(score):g}"

    def _final_status_list(self, words: list[str]) -> str:
        status = words[0].lower() if words else ""
        if status not in ("alive", "dead", "seki"):
            raise Refused("invalid status")
        if status != "alive":
            return ""  # by these rules what stands at the end is alive
        now = self.table.board
        points = [int(r * now.cells.shape[1] + c) for r, c in zip(*np.nonzero(now.cells))]
        return "\n".join(notation.move_text(self.game, now, point) for point in points)

    def _printsgf(self, words: list[str]) -> str:
        result = self.table.outcome if self.table.over else None
        facts = (("KM", f"{self.komi:g}"),) if self.is_go else ()
        if not self.table.over:
            facts += (("RE", "?"),)
        elif self.is_go and not bool(self.table.state.inner["_x"].is_psk):
            facts += (("RE", self._final_score([])),)
        text = records.write(self.game, records.Record(self.game.name, tuple(self.table.actions), result, facts=facts))
        if words:
            try:
                Path(words[0]).write_text(text, encoding="utf-8")
            except OSError as error:
                raise Refused(f"cannot write file ({error.strerror})") from None
            return ""
        return text.strip()

    def _loadsgf(self, words: list[str]) -> str:
        if not words:
            raise Refused("missing filename")
        found = records.load(self.game, [Path(words[0])])[0]
        until = len(found.actions)
        if len(words) > 1:
            if not notation.is_whole(words[1]):
                raise Refused("move number not an integer")
            until = max(0, int(words[1]) - 1)
        self._clear_board([])
        said = dict(found.facts).get("KM")
        if self.is_go and said is not None:
            self._komi([said])
        for action in found.actions[:until]:
            self.table.play(action)
        return notation.colours(self.game.name)[self.table.turn]

    def _move_history(self, words: list[str]) -> str:
        names = notation.colours(self.game.name)
        return "\n".join(f"{names[ply % 2]} {word}" for ply, word in enumerate(self.table.words))

    def _analyse(self, words: list[str]) -> str:
        """The most visited moves here: visits, value for the player to move in [-1, 1], prior."""
        if self.table.over:
            raise Refused("the game has ended")
        now, legal = self.table.board, self.table.legal
        thought = think(self.thinker, self.table.state, self.seed, Limit(), self.pace, after=self.analysis)
        rows = [
            f"{notation.move_text(self.game, now, action)} visits {thought.visits[action]} value {thought.q[action]:+.3f} "
            f"prior {thought.prior[action]:.3f}"
            for action in ranked(thought, legal)[:10]
        ]
        return "\n".join([f"value {thought.value:+.3f} network {thought.network_value:+.3f}", *rows])

    # -- analyses, as Leela Zero and KataGo tell them: `lz-analyze [COLOUR] [INTERVAL]`

    def _go_on_analysing(self, style: Style, words: list[str]) -> str:
        before = len(self.table.actions)
        try:
            self._turn_to(self._whose(words))
            state = self.table.state
        finally:
            self._back_to(before)

        def report(thought: Thought, simulations: int, seconds: float) -> None:
            told = self._told(style, state, thought)
            with self._lock:
                if self._telling and told:
                    self._say(told + "\n")

        limit, earlier = Limit(endless=True), self.analysis
        self._begin = lambda: Thinking(self.thinker, state, self.seed + before, limit, self.pace, report, lambda _: None, earlier)
        return ""

    def _end_analysis(self) -> None:
        if self.analysis is not None:
            self.analysis.stop()
        with self._lock:
            if self._telling:
                self._say("\n")
            self._telling = False

    def _move_and_tell(self, style: Style, words: list[str]) -> str:
        said, thought = self._move(["x" if self._whose(words) == 0 else "o"], keep=True)
        told = "" if thought is None else self._told(style, *thought)
        return NEWLINE + (told + "\n" if told else "") + f"play {said}"

    def _whose(self, words: list[str]) -> int:
        """The colour that is named, or else whose turn it is; the interval after it is that of the searches' own ends."""
        named = [word for word in words[:1] if not word[:1].isdigit()]
        return self._colour(named) if named else self.table.turn

    def _told(self, style: Style, state: GameState, thought: Thought) -> str:
        order = [action for action in ranked(thought, np.asarray(state.legal)) if thought.visits[action]]
        parts = []
        for rank, action in enumerate(order[:MOST_TOLD]):
            line = notation.line_words(self.game, state, thought.line(action))
            parts.append(style(line, int(thought.visits[action]), 0.5 + 0.5 * float(thought.q[action]), float(thought.prior[action]), rank))
        return " ".join(parts)

    # -- handicap

    def _fixed_handicap(self, words: list[str]) -> str:
        if not words or not notation.is_whole(words[0]):
            raise Refused("handicap not an integer")
        size = self.game.board.rows
        near, far, middle = (2, size - 3, size // 2) if size < 13 else (3, size - 4, size // 2)
        # In the order of GTP 2, 4.1.1 (D4, Q16, D16, Q4 on 19x19): the controller puts its stones there without asking.
        corners = [(near, near), (far, far), (near, far), (far, near)]
        sides = [(near, middle), (far, middle), (middle, near), (middle, far)]
        count = int(words[0])
        if not 2 <= count <= 9:
            raise Refused("invalid number of stones")
        points = corners[: min(count, 4)]
        if count >= 6:
            points += sides[: 2 if count < 8 else 4]
        if count in (5, 7, 9):
            points.append((middle, middle))
        # Columns from the left, rows from the bottom.
        return self._set_free_handicap([f"{'ABCDEFGHJKLMNOPQRST'[col]}{row + 1}" for col, row in points])

    def _place_free_handicap(self, words: list[str]) -> str:
        # Fewer stones than asked for are allowed (GTP 2, 4.1.2), and the controller counts them; there are nine star points.
        many = bool(words) and notation.is_whole(words[0]) and int(words[0]) > 9
        return self._fixed_handicap(["9"] if many else words)

    def _set_free_handicap(self, words: list[str]) -> str:
        if self.table.actions:
            raise Refused("board not empty")
        if len(words) < 2 or len({word.lower() for word in words}) != len(words) or any(word.lower() == "pass" for word in words):
            raise Refused("bad vertex list")
        try:
            for word in words:
                self._vertex(0, word)
        except Refused:
            self._back_to(0)
            raise Refused("bad vertex list") from None
        return " ".join(words)

    # -- time

    def _time_settings(self, words: list[str]) -> str:
        try:
            main, period, stones = float(words[0]), float(words[1]), int(words[2])
        except (IndexError, ValueError):
            raise Refused("syntax error: time_settings MAIN BYO_YOMI STONES") from None
        if not (0 <= main < 1e9 and 0 <= period < 1e9 and 0 <= stones < 1e9):
            raise Refused("syntax error: time_settings MAIN BYO_YOMI STONES")
        # No time in a period with stones means no limit at all (GTP 2, 4.2).
        self.settings = None if (period > 0 and stones == 0) else (main, period, stones)
        self.clocks, self.used = {}, {}
        if self.settings is not None and not self.table.over:
            # The clock stands still yet. What is wrong with a search is said when a move is asked for.
            with contextlib.suppress(Exception):
                warm_up(self.thinker, self.table.state, self.seed, self.pace)
        return ""

    def _time_left(self, words: list[str]) -> str:
        colour = self._colour(words)
        try:
            seconds, stones = float(words[1]), int(words[2])
        except (IndexError, ValueError):
            raise Refused("syntax error: time_left COLOR TIME STONES") from None
        if not abs(seconds) < 1e9:
            raise Refused("syntax error: time_left COLOR TIME STONES")
        self.clocks[colour] = (seconds, stones)
        return ""

    def _limit(self, colour: int) -> Limit:
        """The player's own number of simulations, unless there is a clock."""
        if colour in self.clocks:
            seconds, stones = self.clocks[colour]
            return Limit(seconds=allot(max(0.0, seconds), moves=stones or None), room=room(seconds))
        if self.settings is not None:
            main, period, stones = self.settings
            left = main - self.used.get(colour, 0.0)
            return Limit(seconds=allot(left) if left > 0 else max(0.01, 0.9 * period / max(1, stones)), room=room(left))
        return Limit()


Style = Callable[[list[str], int, float, float, int], str]
"""How a move is told of: from the play that is expected, its visits, share of points, prior, and rank."""


def _as_leela(line: list[str], visits: int, points: float, prior: float, rank: int) -> str:
    in_ten_thousandths = f"winrate {round(1e4 * points)} prior {round(1e4 * prior)} lcb {round(1e4 * points)}"
    return f"info move {line[0]} visits {visits} {in_ten_thousandths} order {rank} pv {' '.join(line)}"


def _as_katago(line: list[str], visits: int, points: float, prior: float, rank: int) -> str:
    of_one = f"utility {2 * points - 1:.6g} winrate {points:.6g} prior {prior:.6g} lcb {points:.6g}"
    return f"info move {line[0]} visits {visits} {of_one} order {rank} pv {' '.join(line)}"


def serve(thinker: Thinker, inputs: TextIO, outputs: TextIO, seed: int = 0) -> bool:
    """Answer lines until `quit` or the end of the input. Returns whether a search that nobody wants is still going on, which cannot be
    ended and need not be waited for."""
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            outputs.write(text)
            outputs.flush()

    session = Gtp(thinker, seed, say)
    for line in inputs:
        if text := session.answer(line):
            say(text)
        if session.over:
            break
    return session.close()
