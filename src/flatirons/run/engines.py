"""Other people's engines as players: programs that speak GTP, UCI or USI over their standard input and output.

An engine that is missing, dies, hangs or plays what is not legal is an `EngineError` that says so; a match records the game as void.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flatirons.envs import notation, records
from flatirons.envs.games import RESIGN, Game
from flatirons.types import FlatironsError

PLACES = ("/usr/games", "/usr/local/games", "/usr/local/bin")
"""Where Debian puts engines, beside what is on PATH."""
TIMEOUT_S = 60.0
MOST_SECONDS = 1_000_000
MOST_LINES = 2_000
"""Lines that wait to be read, and that are kept of one answer: an engine that talks on without an end fills no memory."""
MOST_GAMES = 512
"""Games whose position is kept: more than a match has side by side."""
MOST_CHARACTERS = 20_000
"""Of a line; a longer one comes in pieces."""


class EngineError(FlatironsError):
    """An engine died, hung or answered what cannot be."""


def locate(program: str) -> str:
    """Where a program is. Raises FlatironsError, with what would install it, where it is not."""
    found = shutil.which(program) or shutil.which(program, path=os.pathsep.join(PLACES))
    if found is None:
        hint = f"; on Debian: apt-get install {program}" if program in ("gnugo", "stockfish", "fairy-stockfish", "gnuchess") else ""
        raise FlatironsError(f"the engine {program!r} is not installed: it is neither on PATH nor in {', '.join(PLACES)}{hint}")
    return found


def words_of(command: str) -> list[str]:
    """A command's words as a shell takes them. Raises FlatironsError where a quote is left open."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise FlatironsError(f"the engine's command {command!r} is not understood ({error}); close its quotes") from None


class Program:
    """A running engine, line by line, with time-outs."""

    def __init__(self, command: str, timeout_s: float) -> None:
        words = words_of(command)
        if not words:
            raise FlatironsError("an engine's command is empty; write it after the colon, as in gtp:gnugo")
        self.command, self.timeout_s = command, timeout_s
        arguments = [locate(words[0]), *words[1:]]
        try:
            # Its own session: a person's Ctrl-C stops the match, which then ends its engines itself.
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
                encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise FlatironsError(f"the engine {command!r} cannot be started ({error.strerror})") from None
        self.lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        self.closing = False
        self.complaints: collections.deque[str] = collections.deque(maxlen=3)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._beside = threading.Thread(target=self._listen_beside, daemon=True)
        self._beside.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while line := self.process.stdout.readline(MOST_CHARACTERS):
                self._hand(line.rstrip("\r\n"))
        self._hand(None)

    def _hand(self, line: str | None) -> None:
        # Where nobody reads, the engine waits in its pipe.
        while not self.closing:
            with contextlib.suppress(queue.Full):
                self.lines.put(line, timeout=0.1)
                return

    def _listen_beside(self) -> None:
        # Always read, so that an engine that talks much is not held up; kept is what may say why it died.
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            while line := self.process.stderr.readline(MOST_CHARACTERS):
                if line.strip():
                    self.complaints.append(line.strip()[:200])

    def send(self, line: str) -> None:
        """Write one line. Raises EngineError where nobody reads it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise self.died(f"it was sent {line!r}") from None

    def read(self, deadline: float, what: str) -> str:
        """The next line. Raises EngineError where it does not come before `deadline` (time.monotonic), or never will."""
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                # It may have said much, and never this.
                raise queue.Empty
            line = self.lines.get(timeout=left)
        except queue.Empty:
            raise EngineError(f"the engine {self.command!r} hangs: no answer to {what!r} within {self.timeout_s:g} s") from None
        if line is None:
            self.lines.put_nowait(None)
            raise self.died(f"it was asked {what!r}")
        return line

    def discard(self) -> None:
        """Throw away what has come already: it answers nothing that is yet to be asked."""
        for _ in range(self.lines.qsize()):
            if self.lines.get_nowait() is None:
                self.lines.put_nowait(None)
                return

    def died(self, when: str) -> EngineError:
        """What to raise once it has gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        status = self.process.poll()
        # What it started may hold its stderr open.
        self._beside.join(1.0)
        said = f"; the last it said on stderr: {' / '.join(self.complaints)}" if self.complaints else ""
        return EngineError(f"the engine {self.command!r} died{'' if status is None else f' (exit status {status})'} when {when}{said}")

    def close(self, farewell: str = "quit") -> None:
        """Ask it to go, then make it."""
        self.closing = True
        with contextlib.suppress(OSError, ValueError, EngineError):
            self.send(farewell)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self._kill()
        self.process.wait()
        for stream, reader in ((self.process.stdin, None), (self.process.stdout, self._listener), (self.process.stderr, self._beside)):
            if reader is not None:
                reader.join(1.0)
            # A stream that is still read, as another session holds its other end open, would not close before that session ends.
            if stream is not None and (reader is None or not reader.is_alive()):
                with contextlib.suppress(OSError, ValueError):
                    stream.close()

    def _kill(self) -> None:
        """End it and what it has started: where a script starts the engine, ending the script alone leaves the engine behind."""
        if hasattr(os, "killpg"):
            # All are gone, or (macOS) none of those that are left can be reached.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()


class Engine:
    """One engine for many games: it is told the moves of a game and asked for the next one. It starts when it is first asked, and again
    after it has failed."""

    def __init__(self, kind: str, command: str, game: Game, options: Mapping[str, str]) -> None:
        """kind: gtp, uci or usi. options: `timeout` in seconds, above 0; for UCI and USI `nodes`, `movetime` (ms) or `depth`, others are
        the engine's own; for GTP `level` of gnugo. Raises FlatironsError where the program is missing or cannot play this game."""
        self.kind, self.game, self.name = kind, game, f"{kind}:{command}"
        self.options = dict(options)
        timeout = self.options.pop("timeout", str(TIMEOUT_S))
        try:
            self.timeout_s = float(timeout)
        except ValueError:
            raise FlatironsError(f"timeout={timeout!r} is no number of seconds") from None
        if not 0 < self.timeout_s < MOST_SECONDS:
            raise FlatironsError(f"timeout={timeout!r} must be a number of seconds above 0 and below {MOST_SECONDS:_}")
        self.command = self._command(command)
        locate(words_of(self.command)[0])
        self.program: Program | None = None
        self.told: list[int] | None = None
        self.greeted = False
        self._known: dict[tuple[int, ...], tuple[notation.Table, list[str]]] = {}

    # -- what it plays

    def choose(self, actions: Sequence[int]) -> int:
        """Its move after these moves from the start; `RESIGN` where it gives up. Raises EngineError where it fails."""
        try:
            if self.program is None:
                self.program = Program(self.command, self.timeout_s)
                self.told = None
                self._greet()
                self.greeted = True
            table, words = self._after(actions)
            return self._gtp_move(table) if self.kind == "gtp" else self._uci_move(table, words)
        except FlatironsError as error:
            self.close()
            if self.greeted and not isinstance(error, EngineError):
                # It could play once, and its program has gone since: this game is void, and those before it stay.
                raise EngineError(str(error)) from None
            raise

    def _after(self, actions: Sequence[int]) -> tuple[notation.Table, list[str]]:
        """The game after these moves, and the moves as the engine is told them. It goes on from the longest beginning that is known: else
        every move of a game would play the whole game again."""
        known = next((cut for cut in range(len(actions), 0, -1) if tuple(actions[:cut]) in self._known), 0)
        table, fairy = self._known.pop(tuple(actions[:known])) if known else (notation.Table(self.game), [])
        for action in actions[known:]:
            if self._is_fairy:
                fairy.append(notation.move_text(self.game, table.board, action, fairy=True))
            table.play(action)
            # Nobody takes a move back here, and positions are large.
            del table.states[:-1]
        self._known[tuple(actions)] = table, fairy
        if len(self._known) > MOST_GAMES:
            del self._known[next(iter(self._known))]
        return table, fairy if self._is_fairy else table.words

    @property
    def _is_fairy(self) -> bool:
        """Whether it is told shogi's moves in Fairy-Stockfish's letters."""
        return self.kind == "uci" and self.game.name in notation.SHOGI

    def close(self) -> None:
        """End the program; it starts again when it is asked again."""
        if self.program is not None:
            self.program.close()
        self.program = None

    # -- GTP

    def _command(self, command: str) -> str:
        words = words_of(command)
        if not words:
            raise FlatironsError(f"{self.kind}: names no engine; write its command after the colon, as in {self.kind}:gnugo")
        if self.kind != "gtp":
            if self.game.name not in (*notation.CHESS, *notation.SHOGI):
                raise FlatironsError(f"{self.kind.upper()} is for chess and shogi, and the game is {self.game.name}; use gtp: for Go")
            if self.kind == "usi" and self.game.name == "chess":
                raise FlatironsError("USI is for shogi, and the game is chess; use uci:")
            return command
        # The game goes by area, by stones as they stand at the end, and no position comes back: the engine must know all three.
        if self.game.name not in notation.GO:
            raise FlatironsError(f"GTP is for Go, and the game is {self.game.name}; use uci: or usi: for chess and shogi")
        if Path(words[0]).name == "gnugo" and "--mode" not in words:
            rules = ["--mode", "gtp", "--chinese-rules", "--positional-superko", "--komi", f"{records.KOMI:g}", "--capture-all-dead"]
            level = ["--level", self.options.pop("level")] if "level" in self.options else []
            return shlex.join([*words, *rules, *level])
        return command

    def _greet(self) -> None:
        if self.kind == "gtp":
            if self.options:
                raise FlatironsError(f"{next(iter(self.options))!r} is no setting of a GTP engine; put its flags into the command")
            self._ask_gtp("protocol_version")
            self._ask_gtp(f"boardsize {self.game.board.rows}")
            self._ask_gtp(f"komi {records.KOMI:g}")
            return
        assert self.program is not None
        greeting = self._ask_uci(self.kind, f"{self.kind}ok")
        known = {line.split(" name ", 1)[1].split(" type ")[0].strip() for line in greeting if " name " in line}
        variant = {"gardner_chess": "gardner", "shogi": "shogi", "animal_shogi": "dobutsu"}.get(self.game.name)
        # Fairy-Stockfish names the option so in USI too.
        setting = next((name for name in ("USI_Variant", "UCI_Variant") if name in known), None)
        if variant is not None and setting is not None:
            self._set(setting, variant)
        elif variant is not None and not (self.kind == "usi" and variant == "shogi"):
            raise FlatironsError(f"the engine {self.command!r} does not play {self.game.name}; fairy-stockfish does")
        for name, value in self.options.items():
            if name in ("nodes", "movetime", "depth"):
                if not notation.is_whole(value):
                    raise FlatironsError(f"{name}={value!r} is no whole number")
                continue
            if known and name.lower() not in {other.lower() for other in known}:
                raise FlatironsError(f"the engine {self.command!r} has no option {name!r}; it has {', '.join(sorted(known)[:12])}, …")
            self._set(name, value)
        self.program.send("usinewgame" if self.kind == "usi" else "ucinewgame")
        self._ask_uci("isready", "readyok")

    def _set(self, name: str, value: str) -> None:
        assert self.program is not None
        self.program.send(f"setoption name {name} value {value}")

    def _ask_uci(self, command: str, word: str) -> list[str]:
        """What it says to `command`, up to the line that begins with `word`."""
        assert self.program is not None
        self.program.send(command)
        deadline, lines = time.monotonic() + self.timeout_s, collections.deque[str](maxlen=MOST_LINES)
        while True:
            line = self.program.read(deadline, command).strip()
            lines.append(line)
            if line.split()[:1] == [word]:
                return list(lines)

    def _ask_gtp(self, command: str) -> str:
        assert self.program is not None
        self.program.send(command)
        deadline, lines = time.monotonic() + self.timeout_s, []
        while len(lines) < MOST_LINES:
            line = self.program.read(deadline, command)
            if line.strip():
                lines.append(line)
            elif lines:
                break
        answer = "\n".join(lines)
        if answer[:1] != "=" or len(lines) >= MOST_LINES:
            raise EngineError(f"the engine {self.command!r} answered {answer[:1000]!r} to {command!r}")
        return answer.lstrip("=0123456789").strip()

    def _gtp_move(self, table: notation.Table) -> int:
        # What it has been told already need not be told again.
        words = [f"{'bw'[ply % 2]} {word}" for ply, word in enumerate(table.words)]
        if self.told is None or table.actions[: len(self.told)] != self.told:
            self._ask_gtp("clear_board")
            self.told = []
        for word in words[len(self.told) :]:
            self._ask_gtp(f"play {word}")
        self.told = list(table.actions)
        answer = self._ask_gtp(f"genmove {'bw'[table.turn]}").strip()
        if answer.lower() == "resign":
            self.told = None
            return RESIGN
        action = self._legal(table, answer, {})
        self.told = [*table.actions, action]
        return action

    # -- UCI and USI

    def _uci_move(self, table: notation.Table, words: Sequence[str]) -> int:
        assert self.program is not None
        self.program.send(f"position startpos{' moves ' if words else ''}{' '.join(words)}")
        limits = {name: self.options[name] for name in ("nodes", "movetime", "depth") if name in self.options} or {"movetime": "100"}
        if self.kind == "usi" and "movetime" in limits:
            limits = {"btime": "0", "wtime": "0", "byoyomi": limits["movetime"]}
        # An engine that answers twice has said its last move again, which may be legal here too.
        self.program.discard()
        answer = self._ask_uci(f"go {' '.join(f'{name} {value}' for name, value in limits.items())}", "bestmove")[-1].split()
        word = answer[1] if len(answer) > 1 else ""
        if word.lower() == "resign":
            return RESIGN
        if self.kind == "usi" and word.lower() == "win":
            raise EngineError(f"the engine {self.command!r} declared a win by its king's entering, which the rules here do not have")
        return self._legal(table, word, notation.moves(self.game, table.board, table.legal, fairy=True) if self._is_fairy else {})

    def _legal(self, table: notation.Table, word: str, known: Mapping[str, int]) -> int:
        if word in known:
            return known[word]
        if f"{word}+" in known:
            # Fairy-Stockfish may leave a chick on the last row as it is; by the rules of animal shogi it promotes there by itself.
            return known[f"{word}+"]
        try:
            return notation.parse_move(self.game, table.board, table.legal, word)
        except FlatironsError:
            raise EngineError(
                f"the engine {self.command!r} played {word!r}, which is not legal after {' '.join(table.words) or 'the start'}"
            ) from None


def choose_all(engine: Engine, histories: Sequence[Sequence[int]]) -> tuple[np.ndarray, dict[int, str]]:
    """(its move in each of some games int32, what went wrong by game)."""
    chosen, faults = np.full(len(histories), RESIGN, np.int32), {}
    for i, actions in enumerate(histories):
        try:
            chosen[i] = engine.choose(actions)
        except EngineError as error:
            faults[i] = str(error)
    return chosen, faults
