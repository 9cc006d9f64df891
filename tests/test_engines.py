"""GTP, UCI and USI: conformance, a few hundred random commands (10,000 in benchmarks/games/fuzz.py), and other people's engines at their
worst."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.games.fuzz import Uniform, fuzz_gtp, fuzz_uci
from flatirons.envs import games, notation
from flatirons.run import engines, players, thinking, uci
from flatirons.run import gtp as gtp_engine
from flatirons.run.gtp import Gtp
from flatirons.run.thinking import Limit
from flatirons.run.uci import Uci, centipawns
from flatirons.types import FlatironsError


def gtp(*lines: str, name: str = "go_9x9") -> list[str]:
    session = Gtp(Uniform(games.make(name)))
    return [session.answer(line) for line in lines]


# -------------------------------------------------------------------------------------------------------------------- GTP


def test_gtp_answers_as_the_standard_says() -> None:
    assert gtp("protocol_version", "7 name", "known_command play", "3 known_command nonsense") == [
        "= 2\n\n", "=7 Flatirons\n\n", "= true\n\n", "=3 false\n\n",
    ]  # fmt: skip
    assert gtp("", "  # a comment", "\t", "nonsense", "4 nonsense") == ["", "", "", "? unknown command\n\n", "?4 unknown command\n\n"]
    commands = gtp("list_commands")[0]
    for name in (
        "protocol_version", "name", "version", "known_command", "list_commands", "quit", "boardsize", "clear_board", "komi", "play",
        "genmove", "undo", "time_settings", "time_left", "final_score", "final_status_list", "fixed_handicap", "place_free_handicap",
        "set_free_handicap", "loadsgf", "reg_genmove", "showboard",
    ):  # fmt: skip
        assert name in commands.split("\n") or commands.startswith(f"= {name}")
    assert gtp("boardsize 9", "boardsize 19", "boardsize", "komi 6.5", "komi x") == [
        "=\n\n", "? unacceptable size\n\n", "? boardsize not an integer\n\n", "=\n\n", "? komi not a float\n\n",
    ]  # fmt: skip


class Expecting(Uniform):
    """It expects what comes first among the legal moves, and after that what comes first then."""

    def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
        thought, table = super().think(state, key, simulations), notation.Table(self.game, states=[state])
        line = [table.play(int(np.argmax(table.legal))) for _ in range(3)]
        return thought._replace(action=line[0], lines={line[0]: tuple(line)})


def test_gtp_tells_an_analysis_until_the_next_line() -> None:
    told: list[str] = []
    session = Gtp(Expecting(games.make("go_9x9"), pause=0.002), say=told.append)

    def analysed(command: str, searches: int) -> list[str]:
        told.clear()
        assert session.answer(command) == ""
        until = time.monotonic() + 20.0
        while len(told) < 1 + searches:
            assert time.monotonic() < until, told
            time.sleep(0.002)
        assert session.answer("") == "", "an empty line ends it"
        assert told[-1] == "\n" and told[0].startswith("=") and told[0].endswith("\n") and "".join(told).count("\n\n") == 1
        length = len(told)
        time.sleep(0.05)
        assert len(told) == length, "nothing is told after its end"
        return told[:-1]

    head, first, second, *_ = analysed("7 lz-analyze b 50", 3)
    row = "info move A9 visits 1 winrate 5000 prior 122 lcb 5000 order 0 pv A9 B9 C9"
    assert head == "=7\n" and first == f"{row}\n" and second.startswith(f"{row} info move B9 visits 1 ")
    assert session.table.actions == [] and session.answer("kata-analyze purple") == "? invalid color\n\n"
    # Of the other colour: it is asked as if this one had passed, and the game is as it was.
    _, first, *_ = analysed("kata-analyze w 100", 2)
    assert first.startswith("info move A9 visits 1 utility 0 winrate 0.5 prior 0.0121951 lcb 0.5 order 0 pv A9 B9 C9")
    assert session.table.actions == [] and "E5" not in first.split(" info ")[0]
    moved = session.answer("lz-genmove_analyze b 100")
    assert moved.startswith("=\ninfo move A9 ") and moved.endswith("\nplay A9\n\n") and session.table.words == ["A9"]
    analysed("lz-analyze", 1)
    assert session.answer("kata-genmove_analyze 100").endswith("play B9\n\n") and len(session.table.actions) == 2
    session.answer("lz-analyze 10")
    told.clear()
    assert session.answer("showboard").startswith("=\n") and told[-1] == "\n" and session.close() is False
    session.answer("play b pass"), session.answer("play w pass")
    assert session.answer("lz-analyze b 10") == "? the game has ended\n\n"


def test_gtp_ends_beside_a_search_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gtp_engine, "QUIT_S", 0.05)
    slow, heard, began = Growing(games.make("tic_tac_toe"), each=3.0), io.StringIO(), time.monotonic()
    assert gtp_engine.serve(slow, io.StringIO("name\nlz-analyze 10\nquit\n"), heard) and time.monotonic() - began < 2.0
    assert heard.getvalue() == "= Flatirons\n\n=\n\n=\n\n"


def test_gtp_plays_refuses_and_takes_back() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer("play b E5") == "=\n\n" and session.answer("play white e6") == "=\n\n"
    assert session.answer("play b E5").startswith("? illegal move") and session.answer("play purple E4") == "? invalid color\n\n"
    assert session.answer("play b I5").startswith("? illegal move") and len(session.table.actions) == 2
    assert "X" in session.answer("showboard") and session.answer("undo") == "=\n\n" and len(session.table.actions) == 1
    moved = session.answer("genmove w")
    assert moved.startswith("= ") and session.table.words[-1] == moved[2:].strip()
    # A side may move twice: the other passes.
    assert session.answer("play w A1") == "=\n\n" and session.table.words[-2:] == ["pass", "A1"]
    count = len(session.table.actions)
    assert session.answer("reg_genmove b").startswith("= ") and len(session.table.actions) == count
    # Taken back is what was said: the pass goes with the move it made room for.
    assert session.answer("undo") == "=\n\n" and len(session.table.actions) == count - 2
    for _ in range(count - 2):
        assert session.answer("undo") == "=\n\n"
    assert session.answer("undo") == "? cannot undo\n\n"
    assert session.answer("quit") == "=\n\n" and session.over


def test_gtp_ends_no_game_by_a_pass_that_nobody_said() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer("play b pass") == "=\n\n"
    refused = "? black has passed and it is white's turn: a second pass would end the game; undo, or play white's move\n\n"
    for line in ("play b E5", "genmove b", "reg_genmove b", "play b pass"):
        assert session.answer(line) == refused and session.table.words == ["pass"], line
    assert session.answer("play w E5") == "=\n\n" and session.answer("play b D5") == "=\n\n"


def test_gtp_scores_by_area() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer("final_score") == "= W+7.5\n\n"
    assert session.answer("komi 0") == "=\n\n" and session.answer("final_score") == "= 0\n\n"
    assert session.answer("play b E5") == "=\n\n" and session.answer("final_score") == "= B+81\n\n"
    assert session.answer("final_status_list alive") == "= E5\n\n" and session.answer("final_status_list dead") == "=\n\n"
    session.answer("play w pass")
    session.answer("play b pass")
    assert session.table.over and session.answer("genmove w") == "= pass\n\n"
    assert session.answer("play w A1") == "? the game has ended\n\n"


def test_gtp_superko_is_illegal() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    # White sends two stones (B1, A1), black takes them at C1, and by taking that one back white would repeat the board.
    for move in ("b A2", "w C2", "b B2", "w D1", "b J9", "w B1", "b J8", "w A1", "b C1"):
        assert session.answer(f"play {move}") == "=\n\n", move
    assert session.answer("play w B1") == "? illegal move: superko\n\n" and len(session.table.actions) == 9
    assert session.answer("play w pass") == "=\n\n"


def test_gtp_handicap_and_files(tmp_path: Path) -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer("fixed_handicap 4") == "= C3 G7 C7 G3\n\n" and session.table.turn == 1
    assert session.answer("fixed_handicap 2") == "? board not empty\n\n"
    # GTP 2, 4.1.1: the third stone stands in the upper left corner, after it the edges from the left, from below.
    nine = ["C3", "G7", "C7", "G3", "C5", "G5", "E3", "E7", "E5"]
    for asked, placed in (
        (2, nine[:2]),
        (3, nine[:3]),
        (5, [*nine[:4], "E5"]),
        (6, nine[:6]),
        (7, [*nine[:6], "E5"]),
        (8, nine[:8]),
        (9, nine),
    ):
        session.answer("clear_board")
        assert session.answer(f"fixed_handicap {asked}") == f"= {' '.join(placed)}\n\n"
    assert session.table.words[::2] == nine
    session.answer("clear_board")
    assert session.answer("fixed_handicap 10") == session.answer("fixed_handicap 1") == "? invalid number of stones\n\n"
    # An engine may place fewer than it is asked to, where it is the one that chooses.
    assert session.answer("place_free_handicap 1") == "? invalid number of stones\n\n"
    assert session.answer("boardsize ²") == session.answer("boardsize " + "9" * 5_000) == "? boardsize not an integer\n\n"
    assert session.answer("place_free_handicap") == session.answer("place_free_handicap ²") == "? handicap not an integer\n\n"
    assert session.answer("place_free_handicap 20") == f"= {' '.join(nine)}\n\n" and session.table.words[::2] == nine
    session.answer("clear_board")
    assert session.answer("place_free_handicap 3") == "= C3 G7 C7\n\n"
    session.answer("clear_board")
    assert session.answer("set_free_handicap A1 A1") == "? bad vertex list\n\n" and not session.table.actions
    for line in ("play b E5", "play w C3", "play b G7"):
        session.answer(line)
    place = tmp_path / "game.sgf"
    assert session.answer(f"printsgf {place}") == "=\n\n" and place.read_text().startswith("(;FF[4]")
    session.answer("clear_board")
    assert session.answer(f"loadsgf {place} 3") == "= black\n\n" and session.table.words == ["E5", "C3"]
    assert session.answer(f"loadsgf {tmp_path / 'none.sgf'}").startswith("? ")
    assert "B[ee]" in session.answer("printsgf")


def test_gtp_keeps_to_its_clock() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer("time_settings 60 0 0") == "=\n\n" and session._limit(0).seconds == pytest.approx(2.0)
    assert session.answer("time_settings 0 10 5") == "=\n\n" and session._limit(0).seconds == pytest.approx(1.8)
    assert session.answer("time_settings 0 1 0") == "=\n\n" and session._limit(0) == Limit()
    assert session.answer("time_left b 30 0") == "=\n\n" and session._limit(0).seconds == pytest.approx(1.0)
    assert session.answer("time_left b 30 2") == "=\n\n" and session._limit(0).seconds == pytest.approx(10.0)
    assert session.answer("time_left b -1 0") == "=\n\n" and 0 < (session._limit(0).seconds or 0) <= 0.01
    assert session.answer("time_settings x")[0] == session.answer("time_left b")[0] == "?"
    # Fewer stones than none are as good as nothing said of them.
    assert session.answer("time_left b 10 -1") == "=\n\n" and session._limit(0).seconds == pytest.approx(10 / 30)
    assert session.answer("genmove b").startswith("= ")


def test_gtp_counts_its_own_time_where_nobody_does() -> None:
    session = Gtp(Uniform(games.make("go_9x9"), pause=0.05))
    session.answer("time_settings 1 0 0")
    assert session.answer("reg_genmove b").startswith("= ") and session._limit(0).seconds == pytest.approx(1 / 30), "a move of no game"
    assert session.answer("genmove b").startswith("= ")
    left = (session._limit(0).seconds or 0) * 30
    assert 0 < left <= 0.95 and session._limit(1).seconds == pytest.approx(1 / 30)
    for _ in range(20):
        session.answer("genmove b")
    assert session._limit(0).seconds == 0.01
    session.answer("time_left w 30 0")
    assert session._limit(1).seconds == pytest.approx(1.0)
    # In a new game the clocks are set anew.
    session.answer("clear_board")
    assert session._limit(0).seconds == session._limit(1).seconds == pytest.approx(1 / 30)


def test_gtp_writes_the_games_own_komi_and_result() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))
    assert "KM[7.5]" in session.answer("printsgf") and "RE[?]" in session.answer("printsgf")
    for line in ("komi 100", "play b E5", "play w pass", "play b pass"):
        session.answer(line)
    written = session.answer("printsgf")
    assert "KM[100]" in written and "RE[W+19]" in written and session.answer("final_score") == "= W+19\n\n"


def test_gtp_takes_the_komi_of_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.sgf").write_text("(;FF[4]GM[1]SZ[9]KM[0.5];B[ee];W[ec];B[];W[])")
    (tmp_path / "b.sgf").write_text("(;FF[4]GM[1]SZ[9];B[ee])")
    session = Gtp(Uniform(games.make("go_9x9")))
    assert session.answer(f"loadsgf {tmp_path / 'a.sgf'}") == "= black\n\n" and session.answer("get_komi") == "= 0.5\n\n"
    assert session.answer("final_score") == "= W+0.5\n\n" and "0.5 counts in the final score alone" in capsys.readouterr().err
    session.answer(f"loadsgf {tmp_path / 'b.sgf'}")
    assert session.answer("get_komi") == "= 0.5\n\n", "a record that says nothing leaves it as it is"


def test_gtp_says_what_went_wrong_in_a_search() -> None:
    session = Gtp(Uniform(games.make("go_9x9")))

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    session.answer("play b E5")
    session.thinker.think = broken  # type: ignore[method-assign]
    assert session.answer("4 genmove b") == "?4 RuntimeError: out of memory\n\n"
    assert session.table.words == ["E5"], "nor has the other side passed"
    assert session.answer("name") == "= Flatirons\n\n"


def test_gtp_is_refused_for_chess() -> None:
    with pytest.raises(FlatironsError, match="use flatirons uci"):
        Gtp(Uniform(games.make("chess")))


# ------------------------------------------------------------------------------------------------------------- UCI and USI


class Session:
    """A UCI session whose lines can be waited for."""

    def __init__(self, name: str, *, usi: bool = False, pause: float = 0.0) -> None:
        self.heard: list[str] = []
        self.uci = Uci(Uniform(games.make(name), pause=pause), self.heard.append, usi=usi)

    def say(self, *lines: str) -> list[str]:
        """What comes at once."""
        before = len(self.heard)
        for line in lines:
            self.uci.hear(line)
        return self.heard[before:]

    def wait(self, word: str, seconds: float = 10.0) -> str:
        """The first line that begins so."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in list(self.heard):
                if line.split(" ")[0] == word:
                    return line
            time.sleep(0.002)
        raise AssertionError(f"no {word} in {self.heard}")


def test_uci_introduces_itself_and_plays() -> None:
    session = Session("chess")
    said = session.say("uci")
    assert said[0].startswith("id name Flatirons") and said[1].startswith("id author") and said[-1] == "uciok"
    assert all(line.startswith(("id ", "option name ", "uciok")) for line in said)
    assert session.say("isready")[-1] == "readyok"
    assert session.say("ucinewgame", "position startpos moves e2e4 e7e5") == []
    session.say("go nodes 8")
    best = session.wait("bestmove").split(" ")[1]
    assert best in notation.moves(session.uci.game, session.uci.table.board, session.uci.table.legal)
    info = session.wait("info")
    assert " nodes 8 " in info and " score cp 0 " in info and f" pv {best}" in info


def test_uci_tells_the_play_that_it_expects() -> None:
    session = Session("chess")
    session.uci.thinker = Expecting(games.make("chess"))
    session.say("position startpos moves e2e4", "go nodes 8")
    session.wait("bestmove")
    line = next(line for line in session.heard if line.startswith("info ")).partition(" pv ")[2].split(" ")
    assert len(line) == 3
    session.say(f"position startpos moves e2e4 {' '.join(line)}")
    assert len(session.uci.table.actions) == 4 and not any("error" in said for said in session.heard)


@pytest.mark.parametrize(("name", "bad", "answer"), [("chess", "fen 8/8/8/8/8/8/8/8 w - - 0 1", "(none)"), ("shogi", "sfen 9", "resign")])
def test_after_a_position_that_was_refused_there_is_no_move(name: str, bad: str, answer: str) -> None:
    session = Session(name, usi=name == "shogi")
    session.say("position startpos")
    said = session.say(f"position {bad}", "go nodes 4")
    assert "error" in said[0] and said[-1] == f"bestmove {answer}" and session.uci.thinking is None
    session.say("position startpos", "go nodes 4")
    assert session.wait("info") and session.uci.thinking is not None
    for again in ("usinewgame" if name == "shogi" else "ucinewgame", "position startpos"):
        session.say(f"position {bad}", again)
        assert not session.uci.refused


def test_uci_stops_when_it_is_told_to() -> None:
    session = Session("chess", pause=0.02)
    session.say("position startpos", "go infinite")
    time.sleep(0.2)
    assert not any(line.startswith("bestmove") for line in session.heard)
    session.say("stop")
    session.wait("bestmove", 0.5)
    session.say("stop", "stop")
    time.sleep(0.1)
    assert sum(line.startswith("bestmove") for line in session.heard) == 1


def test_uci_keeps_to_movetime() -> None:
    session = Session("chess", pause=0.02)
    session.say("position startpos")
    began = time.monotonic()
    session.say("go movetime 150")
    session.wait("bestmove")
    assert time.monotonic() - began < 2.0


class Growing(Uniform):
    """Each search takes so many seconds for each of its simulations; it says which there were, and when they ended."""

    def __init__(self, game: games.Game, each: float = 0.2) -> None:
        super().__init__(game)
        self.each = each
        self.asked: list[int] = []
        self.ended: list[int] = []

    def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
        self.asked.append(simulations)
        time.sleep(self.each * simulations)
        self.ended.append(simulations)
        return super().think(state, key, simulations)

    def wait(self, *asked: int) -> None:
        """Until these searches have begun."""
        until = time.monotonic() + 20.0
        while self.asked[: len(asked)] != list(asked):
            assert time.monotonic() < until, self.asked
            time.sleep(0.002)


def test_a_search_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinking.Pace, "expected", lambda self, simulations: 0.0)  # nobody foresees it
    session = Session("animal_shogi", usi=True)
    session.uci.thinker = slow = Growing(games.make("animal_shogi"), each=0.5)
    began = time.monotonic()
    session.say("position startpos", "go movetime 800")
    session.wait("bestmove")
    # The search of one simulation has ended by then, that of four goes on until two and a half seconds are over.
    assert 0.7 < time.monotonic() - began < 2.2
    began = time.monotonic()
    thinking.think(slow, notation.table(slow.game).state, 0, Limit(seconds=0.8), thinking.Pace())
    assert 0.7 < time.monotonic() - began < 2.2


def test_a_move_does_not_wait_for_a_search_that_nobody_wants() -> None:
    session = Session("animal_shogi", usi=True)
    session.uci.thinker = slow = Growing(games.make("animal_shogi"), each=0.15)
    session.say("position startpos", "go infinite")
    slow.wait(1, 4, 16)
    session.say("stop")
    session.heard.clear()
    began = time.monotonic()
    session.say("go movetime 300")
    session.wait("bestmove")
    # It answers from the smallest search; a larger one would have begun beside the one that goes on for 2.4 seconds.
    assert time.monotonic() - began < 1.5 and slow.ended == [1, 4, 1]
    assert session.uci.thinking is not None
    session.uci.thinking.join()
    assert slow.asked == [1, 4, 16, 1] and slow.ended == [1, 4, 1, 16], "who waits for the last waits for those before it too"


def test_stop_does_not_wait_for_a_first_search_that_is_large() -> None:
    session = Session("animal_shogi", usi=True)
    session.uci.thinker = slow = Growing(games.make("animal_shogi"), each=0.01)
    session.uci.pace.note(20, 0.2)
    session.uci.pace.note(20, 0.2)
    session.say("position startpos", "go nodes 400")
    slow.wait(400)
    began = time.monotonic()
    session.say("stop")
    session.wait("bestmove")
    assert time.monotonic() - began < 2.0 and slow.asked == [400, 20] and not slow.ended[1:], "an answer from a search that is quick"
    assert session.uci.thinking is not None
    session.uci.thinking.join()
    assert sum(line.startswith("bestmove") for line in session.heard) == 1


@pytest.mark.parametrize("between", [(), ("stop",), ("usinewgame", "position startpos")])
def test_each_go_has_one_answer_in_its_order(between: tuple[str, ...]) -> None:
    session = Session("animal_shogi", usi=True)
    session.uci.thinker = slow = Growing(games.make("animal_shogi"), each=0.005)
    session.uci.pace.note(1, 0.0)
    session.say("position startpos moves 2c2b 1a2b", "go nodes 300")
    slow.wait(300)
    first = {f"bestmove {word}" for word in notation.moves(slow.game, session.uci.table.board, session.uci.table.legal)}
    session.say(*between, "position startpos", "go nodes 2")
    session.wait("bestmove")
    assert session.uci.thinking is not None
    session.uci.thinking.join()
    time.sleep(0.4)
    answers = [line for line in session.heard if line.startswith("bestmove")]
    then = {f"bestmove {word}" for word in notation.moves(slow.game, session.uci.table.board, session.uci.table.legal)}
    assert len(answers) == 2 and answers[0] in first and answers[1] in then


def test_larger_searches_come_after_one_that_nobody_wants() -> None:
    session = Session("animal_shogi", usi=True)
    session.uci.thinker = slow = Growing(games.make("animal_shogi"), each=0.08)
    session.say("position startpos", "go infinite")
    slow.wait(1, 4, 16)
    session.say("stop", "go infinite")
    slow.wait(1, 4, 16, 1, 4)
    assert slow.ended == [1, 4, 1, 16]
    session.say("stop")
    assert session.uci.thinking is not None
    session.uci.thinking.join()


def test_an_endless_analysis_begins_no_search_that_ends_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinking, "LONGEST_S", 0.2)
    slow = Growing(games.make("animal_shogi"), each=0.02)
    pace, answers = thinking.Pace(), []
    # What it takes to compile one does not count.
    pace.note(1, 30.0)
    found = thinking.Thinking(
        slow, notation.table(slow.game).state, 0, Limit(endless=True), pace, lambda *_: None, lambda thought: answers.append(thought)
    )
    slow.wait(1, 4)
    time.sleep(0.3)
    assert slow.asked == slow.ended == [1, 4] and not found.answered
    found.stop()
    assert found.answered and len(answers) == 1


def test_uci_moves_whatever_the_clock_says() -> None:
    session = Session("chess")
    for clock in ("wtime 1000 btime 1000 movestogo -1", "wtime abc", f"movetime {'9' * 400}", "movetime 99999999999999999999"):
        session.heard.clear()
        session.say(f"go {clock}")
        if clock.endswith("99999999"):
            time.sleep(0.05)
            session.say("stop")
        session.wait("bestmove")
        assert any("error" in line for line in session.heard) == ("abc" in clock or len(clock) > 400), session.heard


def test_uci_outlives_a_fault_of_its_own() -> None:
    session = Session("chess")

    def broken(*_: Any) -> Any:
        raise RuntimeError("no\nboard")

    session.uci._show = broken  # type: ignore[method-assign]
    assert session.say("d", "isready") == ["info string error: RuntimeError: no board", "readyok"]


def test_uci_refuses_and_goes_on() -> None:
    session = Session("chess")
    assert "'a2a5' is not a legal move" in session.say("position startpos moves a2a5")[0]
    assert session.uci.table.actions == [], "an illegal move leaves the position as it was"
    assert "unknown command" in session.say("xyzzy")[0] and session.say("", "   ") == []
    assert "no FEN" in session.say("position fen nonsense/")[0] and "of what" in session.say("position")[0]
    assert "no whole number" in session.say("setoption name MultiPV value many")[0]
    assert "no whole number" in session.say("setoption name MultiPV value ²")[0]
    assert "no option" in session.say("setoption name Colour value blue")[0]
    assert session.say("setoption name MultiPV value 3", "setoption name UCI_Variant value chess", "setoption name Hash value 16") == []
    assert "plays chess" in session.say("setoption name UCI_Variant value atomic")[0]
    session.say("position startpos", "go nodes 4")
    session.wait("bestmove")
    assert {f"multipv {i}" for i in (1, 2, 3)} <= {
        line.split(" score")[0].split("depth ")[1].split(" ", 1)[1] for line in session.heard if " score" in line
    }
    session.heard.clear()
    session.say("go nodes 2 searchmoves b2b3")
    assert session.wait("bestmove") == "bestmove b2b3"


def test_uci_has_no_move_once_the_game_has_ended() -> None:
    session = Session("chess")
    session.say("position fen 7k/5Q2/6K1/8/8/8/8/8 b - - 0 1", "go")
    assert session.heard == ["bestmove (none)"]


def test_uci_plays_on_where_a_draw_could_be_claimed_and_was_not() -> None:
    session, there_and_back = Session("chess"), "g1f3 g8f6 f3g1 f6g8"
    session.say(f"position startpos moves {there_and_back} {there_and_back}")
    assert session.uci.table.over and session.uci.table.outcome == 0.0
    session.say("go nodes 2 searchmoves e2e4")
    assert session.wait("bestmove") == "bestmove e2e4"
    assert session.say(f"position startpos moves {there_and_back} {there_and_back} e2e4") == [] and not session.uci.table.over
    # The fifth occurrence ends the game by itself, as mate and bare kings do.
    said = session.say(f"position startpos moves {' '.join([there_and_back] * 4)} e2e4")
    said += session.say("position fen 7k/8/6K1/8/8/8/8/8 b - - 120 90", "go")
    assert "move 17 of the position: 'e2e4' cannot be played" in said[0] and said[1] == "bestmove (none)"
    assert session.say("position fen 7k/8/6K1/8/8/8/8/R7 b - - 149 90 moves h8g8") == []
    assert "cannot be played" in session.say("position fen 7k/8/6K1/8/8/8/8/R7 b - - 149 90 moves h8g8 a1a2")[0]


def test_uci_says_what_went_wrong_in_a_search() -> None:
    session = Session("chess")

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    session.uci.thinker.think = broken  # type: ignore[method-assign]
    session.say("go nodes 3")
    assert session.wait("bestmove") and any("out of memory" in line for line in session.heard)


def test_usi_speaks_shogi() -> None:
    session = Session("animal_shogi", usi=True)
    assert session.say("usi")[-1] == "usiok" and session.say("isready")[-1] == "readyok"
    session.say("usinewgame", "position startpos", "go btime 1000 wtime 1000 byoyomi 100")
    assert session.wait("bestmove").split(" ")[1] in notation.moves(session.uci.game, session.uci.table.board, session.uci.table.legal)
    assert "notimplemented" in session.say("go mate 100")[-1]
    with pytest.raises(FlatironsError, match="use flatirons uci"):
        Session("chess", usi=True)
    with pytest.raises(FlatironsError, match="use flatirons gtp"):
        Session("go_9x9")


def test_centipawns() -> None:
    assert centipawns(0.0) == 0 and centipawns(0.5) == -centipawns(-0.5) == 191 and 2000 < centipawns(1.0) < 2200


def test_random_commands_are_answered() -> None:
    assert fuzz_gtp("go_9x9", 250, 0)["answered"] > 50
    assert fuzz_uci("chess", 200, 0, usi=False)["searches"] > 10


def test_an_engine_in_a_process_of_its_own() -> None:
    lines = "name\nplay x 4\ngenmove o\nfinal_score\nm\udcfft\nquit\n"  # one byte of it is not UTF-8
    command = [sys.executable, "-m", "flatirons", "gtp", "mcts:20", "--game", "connect_four"]
    done = subprocess.run(command, input=lines, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=300)
    answers = done.stdout.split("\n\n")
    assert answers[4] == "? unknown command"
    assert done.returncode == 0 and answers[0] == "= Flatirons" and answers[2][2:] in "1234567" and answers[3].startswith("? cannot score")


def test_a_short_clock_is_answered_from_a_smaller_search() -> None:
    quick = Growing(games.make("connect_four"), each=0.0005)
    quick.simulations, pace = 400, thinking.Pace()
    state = notation.table(quick.game).state
    thinking.warm_up(quick, state, 0, pace)
    assert set(quick.asked) == {100, 400, 1} and pace.warm.keys() == {100, 1}
    for limit, sizes in (
        (Limit(seconds=0.02), [1]), (Limit(seconds=0.02, room=thinking.room(3.0)), [100]),
        (Limit(seconds=0.02, room=thinking.room(0.3)), [1]),
        (Limit(seconds=0.1), [100]), (Limit(), [400]),
    ):  # fmt: skip
        quick.asked.clear()
        thinking.think(quick, state, 0, limit, pace)
        assert quick.asked == sizes, limit
    session = Session("chess")
    assert session.uci._limit(["wtime", "3000"], 0) == Limit(seconds=0.1, room=pytest.approx(0.3))
    assert Session("shogi", usi=True).uci._limit(["btime", "0", "byoyomi", "1000"], 0) == Limit(seconds=0.9, room=0.9)


def test_what_a_call_costs_is_not_what_a_simulation_costs() -> None:
    class Called(Growing):
        def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
            time.sleep(0.02)
            return super().think(state, key, simulations)

    quick, pace = Called(games.make("connect_four"), each=0.0004), thinking.Pace()
    quick.simulations = 100
    state = notation.table(quick.game).state
    thinking.warm_up(quick, state, 0, pace)
    quick.asked.clear()
    # 25 take 0.03 s and 100 take 0.06: both fit, where a hundred times what a call without simulations takes would not.
    thinking.think(quick, state, 0, Limit(seconds=0.2), pace)
    assert quick.asked == [25, 100] and pace.running(1_000) < 2.0


def test_a_session_ends_beside_a_search_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uci, "QUIT_S", 0.05)
    for each, busy in ((3.0, True), (0.001, False)):
        slow = Growing(games.make("animal_shogi"), each=each)
        lines = io.StringIO("position startpos\ngo nodes 1\nquit\n")
        began = time.monotonic()
        assert uci.serve(slow, lines, io.StringIO(), usi=True) == busy and time.monotonic() - began < 2.0


@pytest.mark.parametrize("name", ["animal_shogi", "shogi", "gardner_chess"])
def test_engines_play_on_where_only_the_number_of_moves_ended_a_game(name: str) -> None:
    session = Session(name, usi=name in notation.SHOGI)
    session.say("position startpos")
    table = session.uci.table
    # As after so many moves: pgx's own counter, where it has one, goes with ours.
    late = {key: np.full_like(value, table.game.longest - 1) for key, value in table.state.inner.items() if "step_count" in key}
    inner = {**table.state.inner, **late}
    if "_x" in inner and hasattr(inner["_x"], "step_count"):
        inner["_x"] = inner["_x"]._replace(step_count=np.int32(table.game.longest - 1))
    table.states[-1] = table.state._replace(plies=np.int32(table.game.longest - 1), inner=inner)
    table.play(int(np.argmax(table.legal)))
    assert table.over and not table.outcome and not table.live.terminated
    session.say("go nodes 1")
    assert session.wait("bestmove").split(" ")[1] not in ("resign", "(none)")
    table.play(int(np.argmax(table.live.legal)))
    assert not table.over and table.turn == 0


def test_a_late_move_number_does_not_end_a_game() -> None:
    for name in ("animal_shogi", "shogi"):
        start = notation.start_text(name).rpartition(" ")[0]
        assert notation.table(games.make(name), f"{start} 40").text().endswith(" 40")
        late = notation.table(games.make(name), f"{start} 600")
        late.play(int(np.argmax(late.legal)))
        assert not late.over


class Clocked(Uniform):
    """Each of its searches takes five seconds of a clock of its own."""

    now = 0.0

    def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
        self.now += 5.0
        return super().think(state, key, simulations)


def test_thinking_answers_in_time_from_the_last_search(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, slow = thinking.Pace(), Clocked(games.make("connect_four"), simulations=4)
    monkeypatch.setattr(thinking, "time", SimpleNamespace(monotonic=lambda: slow.now))
    thinking.think(slow, notation.table(slow.game).state, 0, Limit(seconds=32.0), pace)
    assert slow.now == 30.0 and pace.seen == {1, 4, 16, 64, 256, 1024}
    assert thinking.allot(60) == pytest.approx(2.0) and thinking.allot(60, 2.0) == pytest.approx(3.6) and thinking.allot(1, moves=1) == 0.5


class Counted(Uniform):
    """Says how many simulations it was asked for."""

    def __init__(self, game: games.Game) -> None:
        super().__init__(game)
        self.asked: list[int] = []

    def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
        self.asked.append(simulations)
        return super().think(state, key, simulations)


def test_searches_are_compiled_before_the_clock_runs(caplog: pytest.LogCaptureFixture) -> None:
    go = Counted(games.make("go_9x9"))
    session = Gtp(go)
    session.answer("time_settings 0 1 0")
    assert go.asked == [], "no clock, nothing to hurry for"
    session.answer("time_settings 60 0 0")
    assert go.asked == [1, 1, 4] and session.pace.seen == {1, 4} and 1 in session.pace.warm
    talk = Session("animal_shogi", usi=True)
    talk.uci.thinker = shogi = Counted(games.make("animal_shogi"))
    assert talk.say("isready", "isready") == ["readyok", "readyok"] and shogi.asked == [1, 1, 4]
    assert talk.say("setoption name Simulations value 30", "isready")[-1] == "readyok" and shogi.asked[3:] == [7, 7, 28, 30]
    # The rules too: neither a first move nor a position that is set up compiles anything.
    notation.stepper.cache_clear()
    notation.compile_rules.cache_clear()
    assert talk.say("isready") == ["readyok"]
    caplog.clear()
    with jax.log_compiles():
        said = talk.say("position startpos moves 2d1c", f"position sfen {notation.start_text('animal_shogi')} moves 2d1c")
    assert said == [] and len(talk.uci.table.actions) == 1
    assert [text for text in caplog.messages if text.startswith("Compiling")] == []


class PolicyNetwork(Uniform):
    """Chooses the last legal move, and cannot search."""

    def __init__(self, game: games.Game) -> None:
        super().__init__(game, simulations=0)
        self.asked: list[int] = []

    def think(self, state: Any, key: Any, simulations: int) -> players.Thought:
        self.asked.append(simulations)
        if simulations:
            raise FlatironsError("a policy network plays without a search")
        legal = np.asarray(state.legal)
        nothing = np.zeros(len(legal))
        return players.Thought(int(np.flatnonzero(legal)[-1]), nothing.astype(np.int32), nothing, legal / legal.sum(), 0.0, 0.0)


def test_a_policy_network_moves_under_a_clock() -> None:
    network = PolicyNetwork(games.make("go_9x9"))
    session = Gtp(network)
    for settings in ("time_settings 60 0 0", "time_settings 0 10 5", "time_left w 30 0"):
        session.answer("clear_board")
        assert session.answer(settings) == "=\n\n" and session.answer("genmove w") == "= pass\n\n"
    assert set(network.asked) == {0}

    for name, usi, goes in (
        ("chess", False, ("movetime 50", "wtime 1000 btime 1000", "depth 3")),
        ("animal_shogi", True, ("btime 1000 wtime 1000 byoyomi 100",)),
    ):
        talk = Session(name, usi=usi)
        talk.uci.thinker = network = PolicyNetwork(games.make(name))
        assert "option name Simulations type spin default 0 min 0 max 1000000" in talk.say("usi" if usi else "uci")
        assert talk.say("isready") == ["readyok"]
        last = notation.move_text(talk.uci.game, talk.uci.table.board, int(np.flatnonzero(talk.uci.table.legal)[-1]))
        for go in goes:
            talk.heard.clear()
            talk.say("position startpos", f"go {go}")
            assert talk.wait("bestmove") == f"bestmove {last}" and not any("error" in line for line in talk.heard)
        talk.heard.clear()
        talk.say("go infinite")
        talk.wait("info")
        time.sleep(0.1)
        assert not any(line.startswith("bestmove") for line in talk.heard), "an endless analysis is answered when it is stopped"
        talk.say("stop")
        assert talk.wait("bestmove") == f"bestmove {last}" and set(network.asked) == {0}


# ----------------------------------------------------------------------------------------------------------- others' engines

GOOD = r"""
import sys
moves, n = ["E5", "D5", "E4", "pass"], 0
for line in sys.stdin:
    word = line.split()[0] if line.split() else ""
    if word == "genmove":
        print("= " + moves[n % 4] + "\n", flush=True); n += 1
    elif word == "quit":
        print("=\n", flush=True); break
    else:
        print("=\n", flush=True)
"""


def fake(tmp_path: Path, body: str) -> str:
    place = tmp_path / "engine.py"
    place.write_text(body)
    return f"{sys.executable} {place}"


def choose(command: str, timeout: str = "20", kind: str = "gtp", name: str = "go_9x9", moves: tuple[int, ...] = ()) -> int:
    engine = engines.Engine(kind, command, games.make(name), {"timeout": timeout})
    try:
        return engine.choose(moves)
    finally:
        engine.close()


USI = """
import sys
for line in sys.stdin:
    if line.startswith("usi\\n"):
        print("option name USI_Variant type string\\nusiok ", flush=True)
    elif line.startswith("isready"):
        print("readyok\\t", flush=True)
    elif line.startswith("go"):
        print("bestmove{}", flush=True)
"""


@pytest.mark.parametrize(
    ("answer", "action"), [("  2c2b", "2c2b"), ("\t2c2b", "2c2b"), (" 2C2B ponder x", "2c2b"), (" RESIGN", ""), (" win", None)]
)
def test_an_engine_over_usi_spells_as_it_likes(tmp_path: Path, answer: str, action: str | None) -> None:
    command, start = fake(tmp_path, USI.format(answer)), notation.table(games.make("animal_shogi"))
    if action is None:
        with pytest.raises(FlatironsError, match="declared a win"):
            choose(command, "5", "usi", "animal_shogi")
        return
    expected = notation.moves(start.game, start.board, start.legal)[action] if action else games.RESIGN
    assert choose(command, "5", "usi", "animal_shogi") == expected


def test_an_engine_over_usi_that_answers_twice_is_taken_at_its_first_word(tmp_path: Path) -> None:
    body = USI.replace("import sys", "import sys\nmoves = ['2c2b\\nbestmove 2c2b', '1d1c']").replace(
        '"bestmove{}"', '"bestmove " + moves.pop(0)'
    )
    engine, start = engines.Engine("usi", fake(tmp_path, body), games.make("animal_shogi"), {}), notation.table(games.make("animal_shogi"))
    known = notation.moves(start.game, start.board, start.legal)
    try:
        assert engine.choose([]) == known["2c2b"]
        assert engine.program is not None
        for _ in range(1_000):  # until its second word has come
            if engine.program.lines.qsize():
                break
            time.sleep(0.01)
        assert engine.choose([]) == known["1d1c"]
        # That it has gone is not thrown away.
        engine.program.lines.put(None)
        engine.program.discard()
        assert engine.program.lines.get_nowait() is None
    finally:
        engine.close()


def test_an_engine_over_gtp(tmp_path: Path) -> None:
    assert choose(fake(tmp_path, GOOD)) == 40
    assert choose(fake(tmp_path, GOOD.replace('"E5"', '"resign"'))) == games.RESIGN


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import sys; sys.exit(3)", r"died \(exit status 3\) when .*'protocol_version'$"),
        ("import sys; sys.exit('no weights in net.pb')", r"died \(exit status 1\) .*; the last it said on stderr: no weights in net\.pb"),
        (GOOD.replace('if word == "genmove":', 'if word == "genmove":\n        sys.exit(1)\n    if word == "-":'), "died"),
        ("import time; time.sleep(60)", "hangs: no answer to 'protocol_version' within 0.5 s"),
        (GOOD.replace('"E5"', '"Z9"'), "played 'Z9', which is not legal"),
        ('print("? no\\n", flush=True); input()', r"answered '\? no'"),
        # Talk without an end, in lines, in blank ones, and in one line.
        ("while True: print('and', flush=True)", "answered 'and"),
        ("while True: print(flush=True)  # sleep", "hangs: no answer to 'protocol_version' within 0.5 s"),
        ("while True: print('x' * 1000, end='', flush=True)", "answered 'xxx"),
    ],
)
def test_an_engine_that_fails_is_named(tmp_path: Path, body: str, why: str) -> None:
    timeout = "0.5" if "sleep" in body else "20"
    with pytest.raises(engines.EngineError, match=why):
        choose(fake(tmp_path, body), timeout)


@pytest.mark.parametrize("asked", ["usi", "isready", "go btime 0 wtime 0 byoyomi 100"])
def test_an_engine_over_usi_that_dies_is_told_by_what_it_was_asked(tmp_path: Path, asked: str) -> None:
    word = asked.split()[0]
    body = USI.replace("in sys.stdin:", f"in sys.stdin:\n    if line.split()[0] == {word!r}: sys.exit(3)")
    with pytest.raises(engines.EngineError, match=rf"died \(exit status 3\) when it was asked '{asked}'$"):
        choose(fake(tmp_path, body), "20", "usi", "animal_shogi")


def test_an_engine_that_talks_on_is_not_waited_for(tmp_path: Path) -> None:
    program = engines.Program(fake(tmp_path, "while True: print('info', flush=True)"), 0.5)
    try:
        with pytest.raises(engines.EngineError, match=r"hangs: no answer to 'bestmove' within 0\.5 s"):
            deadline = time.monotonic() + 0.5
            while True:
                program.read(deadline, "bestmove")
        time.sleep(0.5)
        assert program.lines.qsize() <= engines.MOST_LINES
    finally:
        program.close()
    assert not program._listener.is_alive()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups here")
@pytest.mark.parametrize("leader", ["", "exit\n"])
def test_an_engine_behind_a_script_is_ended_with_it(tmp_path: Path, leader: str) -> None:
    # The engine does not listen; the script waits for it, or leaves it behind.
    script = tmp_path / "engine.sh"
    script.write_text(f"#!/bin/sh\nsleep 20 &\necho $! > {tmp_path}/pid\necho ready\n{leader or 'wait'}\n")
    script.chmod(0o755)
    program = engines.Program(str(script), 20.0)
    assert program.read(time.monotonic() + 20, "anything") == "ready"
    began = time.monotonic()
    program.close()
    assert time.monotonic() - began < 8.0
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises((ProcessLookupError, FileNotFoundError)):
        for _ in range(200):  # until whoever inherits it has buried it
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                raise ProcessLookupError
            time.sleep(0.01)


def test_engines_that_cannot_be() -> None:
    go, chess = games.make("go_9x9"), games.make("chess")
    with pytest.raises(FlatironsError, match="'no-such-engine' is not installed"):
        players.player("gtp:no-such-engine", go)
    with pytest.raises(FlatironsError, match="GTP is for Go, and the game is chess"):
        players.player("gtp:python3", chess)
    with pytest.raises(FlatironsError, match="USI is for shogi, and the game is chess; use uci:"):
        players.player("usi:python3", chess)
    with pytest.raises(FlatironsError, match="UCI is for chess and shogi, and the game is go_9x9"):  # before the engine is waited for
        players.player("uci:cat", go)
    with pytest.raises(FlatironsError, match="'gnugo --level \"1' is not understood"):
        players.player('gtp:gnugo --level "1', go)
    with pytest.raises(FlatironsError, match="names no engine"):
        players.player("uci:", chess)
    with pytest.raises(FlatironsError, match="no number of seconds"):
        players.player("uci:python3?timeout=long", chess)
    for seconds in ("inf", "nan", "-1", "0"):
        with pytest.raises(FlatironsError, match="above 0 and below 1_000_000"):
            players.player(f"uci:python3?timeout={seconds}", chess)


def test_the_engines_of_debian_play(tmp_path: Path) -> None:
    found = {}
    for name, kind, game, options in (
        ("gnugo", "gtp", "go_9x9", {"level": "1"}), ("stockfish", "uci", "chess", {"nodes": "100", "Skill Level": "1"}),
        ("fairy-stockfish", "uci", "gardner_chess", {"nodes": "100"}), ("fairy-stockfish", "uci", "animal_shogi", {"nodes": "100"}),
        ("fairy-stockfish", "usi", "shogi", {"depth": "2"}), ("fairy-stockfish", "uci", "shogi", {"nodes": "100"}),
    ):  # fmt: skip
        try:
            engine = engines.Engine(kind, name, games.make(game), options)
        except FlatironsError as error:
            assert "is not installed" in str(error)
            continue
        start = notation.table(engine.game)
        action = engine.choose([])
        assert start.legal[action]
        engine.close()
        found[name, kind, game] = action
    if not found:
        pytest.skip("none of gnugo, stockfish and fairy-stockfish is installed")
    assert np.isfinite(list(found.values())).all()


def test_a_move_does_not_play_the_whole_game_again(monkeypatch: pytest.MonkeyPatch) -> None:
    game = games.make("animal_shogi")
    engine, played, play = engines.Engine("uci", sys.executable, game, {}), [], notation.Table.play
    monkeypatch.setattr(notation.Table, "play", lambda table, move: played.append(move) or play(table, move))
    rng, games_of = np.random.default_rng(0), [[], []]
    for _ in range(12):
        for actions in games_of:  # side by side
            table, words = engine._after(actions)
            again = notation.Table(game)
            for action in actions:
                play(again, action)
            assert table.words == again.words and len(words) == len(actions) and table.text() == again.text()
            actions.append(int(rng.choice(np.flatnonzero(table.legal))))
    assert len(played) == 2 * 11
    # Another game that begins in the same way, and one that was put aside.
    assert engine._after(games_of[0][:5])[0].actions == games_of[0][:5] and len(played) == 2 * 11 + 5
    assert engine._after(games_of[0])[0].actions == games_of[0]


def test_a_chick_on_the_last_row_promotes_whatever_the_engine_says() -> None:
    game = games.make("animal_shogi")
    moves = "2c2b 1a2b C*3c 2b1a 2d1c C*2d 1d2d 3a3b 3d2c 3b3c 2d1d C*3a C*3b 3c2c 1c2c E*1c"
    table = notation.table(game, f"startpos moves {moves}")
    known = notation.moves(game, table.board, table.legal, fairy=True)
    engine = engines.Engine("uci", sys.executable, game, {})
    assert engine._legal(table, "a3a4", known) == engine._legal(table, "a3a4+", known) == known["a3a4+"]
    with pytest.raises(engines.EngineError, match="not legal after 2c2b"):
        engine._legal(table, "a3a2", known)
