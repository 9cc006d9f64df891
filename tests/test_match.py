"""The plain opponents against brute force, and matches: colours, openings, Elo, records, void games, the command."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs
from flatirons.__main__ import main
from flatirons.core import resources
from flatirons.envs import evaluation, games, notation, records
from flatirons.plan import mcts, minimax, uct
from flatirons.run import analyse, folder, match, players
from flatirons.types import FlatironsError


@functools.cache
def game(name: str) -> games.Game:
    return games.make(name)


# -------------------------------------------------------------------------------------------------------------------- UCT


@functools.cache
def _grown() -> tuple[Any, Any]:
    """Three positions of tic-tac-toe (the start; X wins at c1; X must block at c1) and their trees of 200 simulations."""
    positions = ["", "a1 a2 b1 b2", "b2 a1 c3 b1"]
    states = [notation.table(game("tic_tac_toe"), text).state for text in positions]
    batch = jax.tree.map(lambda *xs: np.stack(xs), *states)
    return batch, jax.tree.map(np.asarray, uct.grow(game("tic_tac_toe"), batch, jax.random.key(0), 200))


def test_uct_wins_and_blocks_in_one_move() -> None:
    _, tree = _grown()
    assert tree.visits[1, 0].argmax() == 2 and tree.q[1, 0, 2] == 1.0
    assert tree.visits[2, 0].argmax() == 2


def test_uct_counts_every_simulation_once() -> None:
    batch, (child, visits, q) = _grown()
    assert visits[:, 0].sum(axis=1).tolist() == [200] * 3
    assert (visits[:, 0][~np.asarray(batch.legal)] == 0).all()
    for b in range(3):
        for node, action in zip(*np.nonzero(child[b] >= 0)):
            below = child[b, node, action]
            # The first visit of an edge grew the node and was finished by a rollout; every later one went on through it.
            assert visits[b, node, action] == 1 + visits[b, below].sum()
            through, rollout = -(visits[b, below] * q[b, below]).sum(), visits[b, node, action] * q[b, node, action]
            assert abs(abs(rollout - through) - 1) < 1e-3 or abs(rollout - through) < 1e-3
        grown = np.sort(child[b][child[b] >= 0])
        np.testing.assert_array_equal(grown, np.arange(1, len(grown) + 1))


def test_uct_chooses_as_its_formula_says() -> None:
    _, (_, visits, q) = _grown()
    # The bounds of all moves are kept level: whichever is highest is tried, and falls.
    n, mean = visits[0, 0].astype(float), q[0, 0].astype(float)
    bound = mean + 1.4 * np.sqrt(np.log(n.sum()) / n)
    assert bound.max() - bound.min() < 0.25 and (n > 0).all()


def test_uct_in_parts_is_uct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "_TREE_BYTES", 12 * 201 * 9 * 2)
    batch, _ = _grown()
    chosen = players.Mcts(game("tic_tac_toe"), 200).choose(batch, jax.random.key(0)).actions
    assert chosen.shape == (3,) and chosen[1] == 2
    with pytest.raises(FlatironsError, match="at least 1"):
        uct.search(game("tic_tac_toe"), batch, jax.random.key(0), 0)


# ---------------------------------------------------------------------------------------------------------------- minimax


def _slow_lines(cells: np.ndarray, who: int) -> int:
    total = 0
    for r in range(6):
        for c in range(7):
            for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if 0 <= r + 3 * dr < 6 and 0 <= c + 3 * dc < 7:
                    line = [int(cells[r + k * dr, c + k * dc]) * who for k in range(4)]
                    total += 0 if -1 in line else 10 ** sum(line)
    return total


def _slow_worth(cells: np.ndarray, depth: int) -> list[float]:
    """The definition, one stone at a time: 1 is to move."""
    worth = []
    for c in range(7):
        if cells[0, c]:
            worth.append(np.nan)
            continue
        after = cells.copy()
        r = int(np.max(np.flatnonzero(cells[:, c] == 0)))
        after[r, c] = 1
        lines = [
            [after[r + k * dr, c + k * dc] for k in range(-3, 4) if 0 <= r + k * dr < 6 and 0 <= c + k * dc < 7]
            for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1))
        ]
        won = any(all(x == 1 for x in line[i : i + 4]) for line in lines for i in range(len(line) - 3))
        if won:
            worth.append(np.inf)
        elif (after != 0).all():
            worth.append(0.0)
        elif depth == 1:
            worth.append(float(_slow_lines(after, 1) - _slow_lines(after, -1)))
        else:
            worth.append(-np.nanmax(_slow_worth(-after, depth - 1)))
    return worth


def test_connect_fours_minimax_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    for plies in (0, 7, 20, 34):
        cells = np.zeros((6, 7), np.int64)
        for ply in range(plies):
            c = int(rng.choice(np.flatnonzero(cells[0] == 0)))
            after = cells.copy()
            after[np.max(np.flatnonzero(cells[:, c] == 0)), c] = 1 if (plies - ply) % 2 == 0 else -1
            if not minimax.four(np.concatenate(minimax.bitboards(after[None]))).any():
                cells = after
        np.testing.assert_array_equal(minimax.connect_four(*minimax.bitboards(cells[None]), 3)[0], _slow_worth(cells, 3))


def test_alpha_beta_plays_tic_tac_toe_to_the_end() -> None:
    judge = evaluation.evaluation("tic_tac_toe")
    state = notation.table(game("tic_tac_toe"), "a1 b2").state
    worth = minimax.alpha_beta(game("tic_tac_toe"), judge, state, 9)
    assert np.nanmax(worth) == 0 and np.isnan(worth[0]) and np.isnan(worth[4])
    mate = minimax.alpha_beta(game("tic_tac_toe"), judge, notation.table(game("tic_tac_toe"), "a1 a2 b1 b2").state, 3)
    assert np.nanargmax(mate) == 2 and mate[2] == minimax.WON
    with pytest.raises(FlatironsError, match="at least 1"):
        minimax.alpha_beta(game("tic_tac_toe"), judge, state, 0)


def test_evaluations_are_zero_at_the_start_and_know_material() -> None:
    for name in ("chess", "othello", "hex"):
        assert float(evaluation.evaluation(name)(jax.tree.map(jax.numpy.asarray, notation.table(game(name)).state))) == 0.0
    state = notation.table(game("chess")).state
    board = np.where(state.inner["_x"].board == notation.QUEEN, 0, state.inner["_x"].board)
    state = state._replace(inner={"_x": state.inner["_x"]._replace(board=jax.numpy.asarray(board))})
    assert float(evaluation.evaluation("chess")(state)) == -9.0


# ---------------------------------------------------------------------------------------------------------------- matches


class Scripted:
    """Plays the lowest legal move; fails in some games."""

    def __init__(self, name: str, wrong: Sequence[int] = (), resigns: bool = False) -> None:
        self.name, self.wrong, self.resigns, self.seen = name, set(wrong), resigns, []

    def choose(self, states: Any, key: Any, histories: Sequence[Sequence[int]] = ()) -> players.Chosen:
        actions = np.argmax(np.asarray(states.legal), axis=1).astype(np.int32)
        self.seen += [tuple(history) for history in histories]
        if self.resigns:
            actions[:] = games.RESIGN
        return players.Chosen(actions, {i: "it died" for i, history in enumerate(histories) if history[0] in self.wrong})

    def close(self) -> None:
        pass


def test_each_opening_is_played_with_both_colours() -> None:
    found = match.play(game("connect_four"), Scripted("a"), Scripted("b"), 98)
    by_opening: dict[int, list[match.Played]] = {}
    for one in found.played:
        by_opening.setdefault(one.opening, []).append(one)
    assert len(by_opening) == 49 and all([one.first for one in pair] == [True, False] for pair in by_opening.values())
    assert {one.actions[:2] for one in found.played} == {(i, j) for i in range(7) for j in range(7)}
    # Two who play alike: what one wins with the one colour the other wins too.
    assert all(pair[0].result == -(pair[1].result or 0.0) and pair[0].actions == pair[1].actions for pair in by_opening.values())
    assert found.summary()["score"] == 0.5 and found.summary()["elo"] == 0.0
    for one in found.played[:4]:
        replayed = notation.Table(game("connect_four"))
        for action in one.actions:
            replayed.play(action)
        assert replayed.over and replayed.outcome == (one.result or 0.0) * (1 if one.first else -1)


def test_games_whose_player_fails_are_void_and_said(tmp_path: Path) -> None:
    found = match.play(game("connect_four"), Scripted("a"), Scripted("b", wrong=[0]), 98)
    void = [one for one in found.played if one.result is None]
    assert len(void) == 14 and all(one.fault == "b: it died" and one.actions[0] == 0 for one in void)
    summary = found.summary()
    assert summary["games"] == 84 and summary["void"] == 14 and summary["wins"] + summary["draws"] + summary["losses"] == 84
    place = match.save(found, game("connect_four"), tmp_path / "m", 1.0)
    back = records.load(game("connect_four"), [place / "games.sgf"])
    assert [one.actions for one in back] == [one.actions for one in found.played]
    assert [one.result is None for one in back] == [one.result is None for one in found.played]
    assert "void: b: it died" in (place / "games.sgf").read_text()
    saved = json.loads((place / "match.json").read_text())
    assert saved["void"] == 14 and len(saved["played"]) == 98 and saved["a"] == "a"


def test_a_match_stops_once_too_many_games_are_void(tmp_path: Path) -> None:
    # All of B's first moves fail: half of the games, so that the others are not played on.
    found = match.play(game("connect_four"), Scripted("a"), Scripted("b", wrong=range(7)), 98)
    assert found.stopped == "49 of 98 games are void, the last because b: it died"
    assert [one.fault for one in found.played] == [match.UNFINISHED, "b: it died"] * 49
    assert found.summary()["games"] == 0 and found.summary()["void"] == 98 and "98 are void" in match.in_words(found)
    # Those that were finished stay on record, also where few go on side by side.
    late = match.play(game("connect_four"), Scripted("a"), Scripted("b", wrong=[2]), 98, at_once=2)
    assert late.stopped == "4 games on end are void, the last because b: it died"
    assert [one.result is None for one in late.played] == [False] * 28 + [True] * 70
    assert {one.fault for one in late.played[32:]} == {match.NOT_BEGUN} and late.summary()["games"] == 28
    place = match.save(late, game("connect_four"), tmp_path / "m", 1.0)
    assert json.loads((place / "match.json").read_text())["stopped"] == late.stopped
    assert [one.actions for one in records.load(game("connect_four"), [place / "games.sgf"])] == [one.actions for one in late.played]


ENGINE = r"""
import pathlib, sys, time
asked = pathlib.Path(sys.argv[0]).with_suffix(".asked")
for line in sys.stdin:
    if line.startswith("genmove"):
        before = len(asked.read_text()) if asked.exists() else 0
        asked.write_text("x" * (before + 1))
        if before >= GOOD_FOR:
            FAIL
        print("= resign\n", flush=True)
    else:
        print("=\n", flush=True)
"""


def _failing(place: Path, good_for: int, fail: str) -> tuple[str, Path]:
    """(the command of an engine that resigns so many games and then fails, the file with one letter for each move it was asked for)."""
    engine = place / f"engine{good_for}.py"
    engine.write_text(ENGINE.replace("GOOD_FOR", str(good_for)).replace("FAIL", fail))
    return f"{sys.executable} {engine}", engine.with_suffix(".asked")


def test_an_engine_that_hangs_is_not_waited_for_in_every_game(tmp_path: Path) -> None:
    command, asked = _failing(tmp_path, 0, "time.sleep(60)")
    hanging, other = players.player(f"gtp:{command}?timeout=3", game("go_9x9")), players.player("random", game("go_9x9"))
    try:
        found = match.play(game("go_9x9"), hanging, other, 20)
    finally:
        hanging.close()
    assert 1 <= len(asked.read_text()) <= 3 and "10 of 20 games are void" in found.stopped and "hangs" in found.stopped
    assert found.summary()["void"] == 20 and sum("hangs" in one.fault for one in found.played) == 10


def test_an_engine_that_dies_midway_leaves_the_finished_games_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, asked = _failing(tmp_path, 5, "sys.exit(7)")
    options = ["--game", "go_9x9", "--games", "20", "--at-once", "4", "--out", "m"]
    assert main(["match", f"gtp:{command}", "random", *options]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    # Games 1 to 4 were lost, and one of the next four; its three others failed, and twelve were not begun.
    assert found["losses"] == found["games"] == 5 and found["void"] == 15 and len(asked.read_text()) == 8
    assert "flatirons: the match was stopped: 3 of 4 games are void" in said.err and "on record in m" in said.err
    assert "games void by that: 12" in said.err and "2 games are void: gtp:" in said.err and "exit status 7" in said.err
    saved = json.loads(Path("m/match.json").read_text())
    assert [one["result"] for one in saved["played"]].count(-1.0) == 5 and len(saved["played"]) == 20 and "3 of 4" in saved["stopped"]
    assert len(records.load(game("go_9x9"), [Path("m/games.sgf")])) == 20


def test_an_engine_whose_program_goes_away_voids_its_games_alone(tmp_path: Path) -> None:
    _failing(tmp_path, 2, "pathlib.Path(sys.argv[0]).with_suffix('').unlink(); sys.exit(7)")
    program = tmp_path / "engine2"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/engine2.py\n")
    program.chmod(0o755)
    engine, other = players.player(f"gtp:{program}", game("go_9x9")), players.player("random", game("go_9x9"))
    try:
        found = match.play(game("go_9x9"), engine, other, 8, at_once=2)
    finally:
        engine.close()
    faults = [one.fault for one in found.played]
    assert faults[:2] == ["", ""] and "exit status 7" in faults[2] and "is not installed" in faults[3], faults


class Stopping(Scripted):
    """Plays on until it has been asked so many times, and then raises."""

    def __init__(self, name: str, good_for: int, raised: BaseException) -> None:
        super().__init__(name)
        self.left, self.raised = good_for, raised

    def choose(self, states: Any, key: Any, histories: Sequence[Sequence[int]] = ()) -> players.Chosen:
        self.left -= 1
        if self.left < 0:
            raise self.raised
        return super().choose(states, key, histories)


def test_what_was_finished_outlives_an_interruption_and_a_fault(tmp_path: Path) -> None:
    for raised, why in ((KeyboardInterrupt(), match.INTERRUPTED), (MemoryError("too little"), "MemoryError: too little")):
        # Two games side by side end within nine plies, of which B is asked in each.
        found = match.play(game("tic_tac_toe"), Scripted("a"), Stopping("b", 12, raised), 18, at_once=2)
        finished = [one for one in found.played if one.result is not None]
        assert found.stopped == why and 2 <= len(finished) < 18 and len(found.played) == 18
        assert {one.fault for one in found.played} == {"", match.UNFINISHED, match.NOT_BEGUN}
        place = match.save(found, game("tic_tac_toe"), tmp_path / why[:3], 1.0)
        assert json.loads((place / "match.json").read_text())["games"] == len(finished)
    # Where nothing was finished a fault is what it is, and an interruption is of a match without a game.
    with pytest.raises(MemoryError):
        match.play(game("tic_tac_toe"), Scripted("a"), Stopping("b", 0, MemoryError()), 2)
    assert match.play(game("tic_tac_toe"), Scripted("a"), Stopping("b", 0, KeyboardInterrupt()), 2).summary()["games"] == 0


def test_a_match_that_was_cut_short_plays_only_the_rest(tmp_path: Path) -> None:
    whole = match.play(game("tic_tac_toe"), Scripted("a"), Scripted("b"), 18, at_once=4)
    what = {"game": "tic_tac_toe", "games": 18, "steps": [None, 7]}
    assert match.kept(tmp_path, what) == []
    # As a killed process leaves it: games as they ended, the last line cut.
    match.play(
        game("tic_tac_toe"),
        Scripted("a"),
        Stopping("b", 12, KeyboardInterrupt()),
        18,
        at_once=4,
        finished=lambda one: match.keep(tmp_path, one),
    )
    with open(tmp_path / match.FINISHED, "a") as file:
        file.write('{"opening": 3, "fir')
    known = match.kept(tmp_path, what)
    assert 2 <= len(known) < 18 and all(one.result is not None for one in known)
    counts: list[int] = []
    a = Scripted("a")
    found = match.play(game("tic_tac_toe"), a, Scripted("b"), 18, at_once=4, known=known, progress=lambda done, _: counts.append(done))
    assert found == whole and counts[0] == len(known) and counts[-1] == 18
    # Each of the games that were left has at most nine plies, five of them A's.
    assert 0 < len(a.seen) <= 5 * (18 - len(known))
    with pytest.raises(FlatironsError, match="games was 18 there and is 20 now; give the same"):
        match.kept(tmp_path, what | {"games": 20})
    with pytest.raises(FlatironsError, match="does not begin with opening 0"):
        match.play(game("tic_tac_toe"), Scripted("a"), Scripted("b"), 18, known=[match.Played(0, True, 1.0, ())])
    match.save(found, game("tic_tac_toe"), tmp_path, 1.0)
    assert not (tmp_path / match.FINISHED).exists()
    (tmp_path / match.FINISHED).write_text(json.dumps(what) + '\n{"opening": 1}\n')
    with pytest.raises(FlatironsError, match="a line is no game; begin again"):
        match.kept(tmp_path, what)


def test_a_match_without_a_finished_game_goes_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["match", "random", "random", "--game", "tic_tac_toe", "--games", "2", "--out", str(tmp_path / "m")]
    what = {"game": "tic_tac_toe", "a": "random", "b": "random", "steps": [None, None], "games": 2, "opening_plies": None, "seed": 0}
    (tmp_path / "m").mkdir()
    assert match.kept(tmp_path / "m", what) == []
    found = match.play(game("tic_tac_toe"), Scripted("a"), Stopping("b", 0, KeyboardInterrupt()), 2)
    match.save(found, game("tic_tac_toe"), tmp_path / "m", 1.0)
    assert main(command) == 2 and "cut short after 0 games; give --resume" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--resume"]) == 2 and "seed was 0 there" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0 and json.loads(capsys.readouterr().out.splitlines()[-1])["games"] == 2
    # One that was killed before its first game ended has nothing to lose.
    (tmp_path / "m" / "match.json").unlink()
    match.kept(tmp_path / "m", what)
    assert main([*command, "--seed", "1"]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_saves_when_it_is_stopped(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before, choose, asked = signal.getsignal(signal.SIGTERM), players.Random.choose, []
    # What is started in a shell's background inherits that it is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)

    def choosing(self: Any, *arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 40:
            os.kill(os.getpid(), number)
        return choose(self, *arguments)

    monkeypatch.setattr(players.Random, "choose", choosing)
    options = ["--game", "tic_tac_toe", "--games", "18", "--at-once", "2", "--out", "m"]
    try:
        assert main(["match", "random", "random", *options]) == status and signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGINT, inherited)
    said = capsys.readouterr()
    found, saved = json.loads(said.out.splitlines()[-1]), json.loads(Path("m/match.json").read_text())
    assert 0 < found["games"] == saved["games"] < 18 and saved["stopped"] == match.INTERRUPTED
    assert "the match was stopped: it was interrupted" in said.err and "on record in m, and --out m --resume plays the rest" in said.err
    command = ["match", "random", "random", *options]
    assert main(command) == 2 and f"cut short after {found['games']} games; give --resume" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--resume"]) == 2 and "seed was 0 there and is 1 now" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert f"{found['games']} of 18 games were finished before" in said and json.loads(said.splitlines()[-1])["games"] == 18
    assert main([*command, "--resume"]) == 2 and "holds a match already" in capsys.readouterr().err
    assert main(["match", "random", "random", "--game", "tic_tac_toe", "--resume"]) == 2 and "name it with --out" in capsys.readouterr().err


def test_the_result_is_said_where_it_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise FlatironsError("m cannot be written (No space left on device)")

    monkeypatch.setattr(match, "save", full)
    assert main(["match", "random", "random", "--game", "tic_tac_toe", "--games", "2", "--out", str(tmp_path / "m")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["games"] == 2 and "No space left" in said.err and "records:" not in said.out


@pytest.mark.parametrize("c", ["nan", "inf", "-1", "one"])
def test_uct_explores_by_a_number(c: str) -> None:
    with pytest.raises(FlatironsError, match=f"c='{c}' of the player .* must be a number, at least 0"):
        players.player(f"mcts:5?c={c}", game("tic_tac_toe"))


@pytest.mark.parametrize("at_once", [-2, 0, 1])
def test_games_go_on_in_pairs(at_once: int) -> None:
    with pytest.raises(FlatironsError, match=f"at_once is {at_once}: .* at least 2"):
        match.play(game("tic_tac_toe"), Scripted("a"), Scripted("b"), 2, at_once=at_once)


def test_two_matches_at_once_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [match.default_place("tic_tac_toe", "a", "b") for _ in range(2)]
    assert [str(place) for place in places] == ["matches/tic-tac-toe-a-b", "matches/tic-tac-toe-a-b-2"]
    place = tmp_path / "m"
    place.mkdir()
    for overwrite in (False, True):
        refused = pytest.raises(FlatironsError, match="is in use by another process, a match or a run; wait for it")
        with folder.held(place), refused, match.held_place(place, overwrite=overwrite):
            pass
    found = match.Match("tic_tac_toe", ("a", "b"), 0, (match.Played(0, True, 0.0, (0, 1)),))
    with match.held_place(place, overwrite=False):
        assert folder.is_held(place)
        match.save(found, game("tic_tac_toe"), place, 1.0)
    assert not folder.is_held(place) and {entry.suffix for entry in place.iterdir()} == {"", ".json", records.suffix("tic_tac_toe")}
    with pytest.raises(FlatironsError, match="holds a match already"), match.held_place(place, overwrite=False):
        pass


def test_records_are_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = match.Match("tic_tac_toe", ("a", "b"), 0, (match.Played(0, True, 0.0, (0, 1)),))
    match.save(found, game("tic_tac_toe"), tmp_path, 1.0)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder.os, "fsync", full)
    again = match.Match("tic_tac_toe", ("a", "b"), 0, (match.Played(0, True, 0.0, (4, 5)),))
    with pytest.raises(FlatironsError, match=r"games\.\w+ cannot be written \(No space left on device\)"):
        match.save(again, game("tic_tac_toe"), tmp_path, 1.0)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_resigning_loses() -> None:
    found = match.play(game("connect_four"), Scripted("a", resigns=True), Scripted("b"), 14)
    assert found.summary()["losses"] == 14 and all(one.resigned for one in found.played)


def test_elo() -> None:
    even = match.elo(50, 0, 50)
    assert even["score"] == 0.5 and even["elo"] == 0 and even["elo_low"] == pytest.approx(-(even["elo_high"] or 0))
    assert match.elo(75, 0, 25)["elo"] == pytest.approx(190.85, abs=0.01) and match.elo(50, 50, 0)["elo"] == match.elo(75, 0, 25)["elo"]
    # Wilson's interval of 75 of 100, by hand: 0.6569 to 0.8245.
    interval = match.elo(75, 0, 25)
    assert interval["elo_low"] == pytest.approx(112.9, abs=0.2) and interval["elo_high"] == pytest.approx(268.8, abs=0.2)
    assert match.elo(10, 0, 0)["elo"] is None and (match.elo(10, 0, 0)["elo_low"] or 0) > 100 and match.elo(10, 0, 0)["elo_high"] is None
    assert match.elo(0, 0, 10)["elo"] is None and match.elo(0, 0, 0)["score"] is None


def test_a_game_that_is_repeated_counts_once_in_the_interval() -> None:
    twice = [match.Played(i % 2, i % 4 < 2, float(i % 4 < 3), (i % 2, 3)) for i in range(8)]
    found = match.Match("connect_four", ("a", "b"), 0, tuple(twice))
    assert found.summary() == {"games": 8, "wins": 6, "draws": 2, "losses": 0, **match.elo(6, 2, 0, 4), "distinct": 4}
    once = match.Match("connect_four", ("a", "b"), 0, tuple(twice[:4])).summary()
    assert [found.summary()[name] for name in ("score", "elo_low", "elo_high")] == [once[name] for name in ("score", "elo_low", "elo_high")]
    assert "(4 different games)" in match.in_words(found) and "distinct" not in once


def test_openings_are_legal_different_and_seeded() -> None:
    hexes = match.openings(game("tic_tac_toe"), 40, 3, seed=0)
    assert len(set(hexes)) == 40 and hexes == match.openings(game("tic_tac_toe"), 40, 3, seed=0) != match.openings(
        game("tic_tac_toe"), 40, 3, 1
    )
    for line in hexes:
        table = notation.Table(game("tic_tac_toe"))
        for action in line:
            table.play(action)
    assert len(match.openings(game("tic_tac_toe"), 20, 1, 0)) == 20, "nine openings serve twenty pairs"
    # Without a number of plies they are as many as it takes: two lines to one position are one opening.
    more = match.openings(game("connect_four"), 60, None, 0)
    assert {len(line) for line in more} == {3}
    assert len({notation.table(game("connect_four"), " ".join(str(a + 1) for a in line)).board.cells.tobytes() for line in more}) == 60
    with pytest.raises(FlatironsError, match="even number"):
        match.play(game("tic_tac_toe"), Scripted("a"), Scripted("b"), 3)
    with pytest.raises(FlatironsError, match="no openings of 9 plies"):
        match.openings(game("tic_tac_toe"), 2, 9, 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["match", "minimax:3", "random", "--game", "pgx:connect_four", "--games", "14"]
    assert main([*command, "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert list(found) == ["games", "wins", "draws", "losses", "score", "elo", "elo_low", "elo_high"] and out.count("\n") == 1
    assert found["wins"] >= 13 and found["games"] == 14
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert "minimax:3 against random" in said[-3] and said[-2].startswith("records: matches/") and json.loads(said[-1]) == found
    assert len(list((tmp_path / "matches").iterdir())) == 2
    (tmp_path / "file").write_text("")
    taken = str(next((tmp_path / "matches").iterdir()))
    assert main([*command, "--games", "2", "--out", taken, "--overwrite"]) == 0 and capsys.readouterr()
    for bad, why in (
        ([*command, "--out", taken], "holds a match already; choose another --out, or give --overwrite"),
        ([*command, "--out", "file/match"], "cannot be written"),
        (["match", "random", "random"], "the game must be named"),
        (["match", "random", "nobody", "--game", "connect_four"], "there is no player 'nobody'"),
        (["match", "nobody", "random"], "nobody does not exist"),
        (["gtp", "nobody"], "nobody does not exist"),
        (["analyse", "nobody"], "nobody does not exist"),
        (["analyse", "matches", "--game", "connect_four"], "matches has no run in it"),
        (["gtp", "mcts:20"], "the game must be named"),
        (["match", "random", "minimax:x", "--game", "connect_four"], "whole number"),
        (["match", "random", "mcts:900000000", "--game", "connect_four"], "at most 1_000_000"),
        (["match", "random", "random", "--game", "connect_four", "--at-once", "0"], "at_once is 0"),
        (["match", "random", "random", "--game", "connect_four", "--seed", "-1"], "-1 is no seed"),
        (["analyse", "mcts:10", "--game", "go_9x9", "--simulations", "10,900000000"], "must be from 0 to 1_000_000"),
        (["gtp", "mcts:10", "--game", "go_9x9", "--simulations", "900000000"], "must be from 1 to 1_000_000"),
        (["match", "random", "random?simulations=3", "--game", "connect_four"], "takes no 'simulations'"),
        (["match", "random", "random", "--game", "conect_four"], "did you mean 'connect_four'"),
        (["match", "perfect", "random", "--game", "othello"], "knows connect four alone"),
        (["analyse", "random", "--game", "connect_four"], "no search to look at"),
        (["uci", "mcts:20", "--game", "connect_four"], "use flatirons gtp"),
    ):
        assert main(bad) == 2 and why in capsys.readouterr().err


def test_the_perfect_player_is_perfect() -> None:
    pytest.importorskip("bitbully", reason="the perfect player is not installed: pip install bitbully")
    perfect = players.Perfect(game("connect_four"))
    np.testing.assert_array_equal(players.scores(perfect.solver, notation.table(game("connect_four")).board), [-2, -1, 0, 1, 0, -1, -2])
    full = players.scores(perfect.solver, notation.table(game("connect_four"), "444444").board)
    assert np.isnan(full[3]) and not np.isnan(full[[0, 1, 2, 4, 5, 6]]).any()
    wins = notation.table(game("connect_four"), "121212")
    assert perfect.choose(players.one(wins.state), jax.random.key(0)).actions.tolist() == [0]


def test_an_analysis_grows(capsys: pytest.CaptureFixture[str]) -> None:
    thinker = players.Mcts(game("tic_tac_toe"), 10)
    found = analyse.analyse(thinker, "a1 a2 b1", [0, 10, 100], most=6)
    assert [search["simulations"] for search in found["searches"]] == [0, 10, 100] and found["to_move"] == "o"
    largest = found["searches"][-1]
    assert largest["best"] == "c1" and largest["states"][0]["moves"] == ["c1"] and largest["states"][0]["share"] > 0.2
    visits = [state["visits"] for state in largest["states"]]
    assert visits == sorted(visits, reverse=True) and any(len(state["moves"]) == 2 for state in largest["states"])
    assert "c1" in analyse.in_words(found)
    with pytest.raises(FlatironsError, match="the game has ended"):
        analyse.analyse(thinker, "a1 a2 b1 b2 c1", [10])


# ------------------------------------------------------------------------------------------------------------------ a run


def test_a_run_sits_down_to_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in of a run: its system thinks most of the last legal move."""

    def thinks(config: Any, task: Any, actor: Any, model: Any, key: Any, *, num_simulations: int) -> Any:
        legal = model.inner.legal
        visits = jax.numpy.where(legal, jax.numpy.arange(legal.shape[1])[None], 0) * num_simulations
        zeros = jax.numpy.zeros(legal.shape)
        action = jax.numpy.argmax(jax.numpy.where(legal, jax.numpy.arange(legal.shape[1])[None], -1), axis=1)
        ones = jax.numpy.ones(legal.shape[0]) * actor
        return mcts.Analysis(action, visits, zeros, zeros, ones, ones, legal, zeros)

    def run(task: str, system: Any) -> Any:
        job = SimpleNamespace(recorded={"task": task}, name="some-system")
        return SimpleNamespace(path=Path("runs/x"), system=system, _job=job, config=SimpleNamespace(num_simulations=7), actor=0.5)

    monkeypatch.setattr(players, "acting_task", lambda _: envs.make("pgx:tic_tac_toe", 2))
    monkeypatch.setattr(players, "on_device", lambda _: 0.0)
    one = players.Trained(run("pgx:tic_tac_toe", SimpleNamespace(analyse=thinks)), game("tic_tac_toe"), "runs/x")
    state = notation.table(game("tic_tac_toe"), "c3 a1").state
    thought, lines = one.lines(state, jax.random.key(0), 3, 2)
    assert thought.action == 7 and thought.value == 0.5 and thought.visits[7] == 21 and [line.actions for line in lines] == [(7,), (6,)]
    assert one.simulations == 7 and one.choose(players.one(state), jax.random.key(0)).actions.tolist() == [7]
    assert players.simulations_range(one) == (0, players.MOST_SIMULATIONS)
    # More games than memory has room for are searched in parts: here one after another.
    sizes: list[int] = []
    whole = one.analyse
    monkeypatch.setattr(one, "analyse", lambda states, *rest: (sizes.append(len(states.player)), whole(states, *rest))[1])
    three = jax.tree.map(lambda x: np.stack([x] * 3), state)
    with monkeypatch.context() as less:
        less.setattr(players, "_SEARCH_BYTES", 1)
        assert one.choose(three, jax.random.key(0)).actions.tolist() == [7, 7, 7] and sizes == [1, 1, 1]
    with monkeypatch.context() as less:
        less.setattr(players, "_SEARCH_BYTES", 1)
        less.setattr(resources, "memory_available", lambda: 10)
        with pytest.raises(FlatironsError, match=r"Not enough memory for a search with 3 simulations in tic_tac_toe \(give fewer\)"):
            whole(players.one(state), jax.random.key(0), 3)
    edges = 800 * 4672 * players._EDGE_BYTES  # chess
    assert 10 < len(players._parts(128, edges, players._SEARCH_BYTES)[0]) < 32
    # A policy network: its settings name no simulations.
    network = run("pgx:tic_tac_toe", SimpleNamespace(analyse=thinks))
    network.config = SimpleNamespace(learning_rate=0.1)
    bare = players.Trained(network, game("tic_tac_toe"), "runs/x", 0)
    assert bare.simulations == 0 and players.simulations_range(bare) == (0, 0)
    assert bare.choose(players.one(state), jax.random.key(0)).actions.tolist() == [7]
    with pytest.raises(FlatironsError, match="a policy network that plays without a search"):
        bare.simulations = 10
    with pytest.raises(FlatironsError, match="a policy network that plays without a search"):
        players.Trained(network, game("tic_tac_toe"), "runs/x", 10)
    network.config = SimpleNamespace(num_simulations=7, play_simulations=20)
    assert players.Trained(network, game("tic_tac_toe"), "runs/x").simulations == 20
    with pytest.raises(FlatironsError, match=r"runs/x was trained on pgx:hex, and the game is tic_tac_toe"):
        players.Trained(run("pgx:hex", SimpleNamespace(analyse=thinks)), game("tic_tac_toe"), "runs/x")
    with pytest.raises(FlatironsError, match="a run of some-system, whose policy has no search"):
        players.Trained(run("pgx:tic_tac_toe", SimpleNamespace()), game("tic_tac_toe"), "runs/x")


def test_the_play_that_is_expected_follows_the_visits() -> None:
    # Three nodes of three actions: 1 was visited most, then 2; behind 1 the game goes on with 0, and then ends.
    child = np.array([[-1, 1, 2], [-1, -1, -1], [-1, -1, -1]])
    visits = np.array([[0, 5, 3], [4, 0, 0], [0, 0, 0]])
    assert players.expected_play(child, visits) == {1: (1, 0), 2: (2,)}
    assert players.expected_play(child[:1], np.zeros((1, 3), int)) == {}
    thought = players.Thought(1, visits[0], visits[0] / 10, visits[0] / 8, 0.0, 0.0, {1: (1, 0)})
    assert thought.line(1) == (1, 0) and thought.line(2) == (2,)


def test_a_search_by_rollouts_tells_the_play_it_expects() -> None:
    # a1 and b1 are x's: whoever o plays, c1 wins, and o has to be there.
    state = notation.table(game("tic_tac_toe"), "a1 b2 b1").state
    found = players.Mcts(game("tic_tac_toe"), 400).think(state, jax.random.key(0), 400)
    assert notation.line_words(game("tic_tac_toe"), state, found.line(found.action))[:2] == ["c1", "a3"], (
        "o blocks, and x must block b2 and c1"
    )
    assert all(len(line) >= 2 for line in found.lines.values())


class Kept(NamedTuple):
    """A tree's stand-in."""

    node_visits: np.ndarray
    game: np.ndarray


def test_a_run_goes_on_from_its_last_tree_of_the_same_game(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games are known by their moves: a match asks for one half of them, then for the other, and for fewer as games end."""
    seen: list[list[int] | None] = []

    def go_on(config: Any, task: Any, actor: Any, model: Any, key: Any, *, num_simulations: int, before: Kept | None) -> Any:
        batch = len(model.inner.player)
        seen.append(None if before is None else np.asarray(before.game).tolist())
        nodes, none, one = np.ones((batch, 2 * num_simulations + 1), np.int32), np.zeros((batch, 9)), np.zeros(batch)
        found = mcts.Analysis(one.astype(np.int32), none, none, none, one, one, none > 0, none)
        return found, Kept(nodes, 10 * len(seen) + np.arange(batch))

    run = SimpleNamespace(
        path=Path("runs/x"), system=SimpleNamespace(analyse=None, go_on=go_on), actor=0.5,
        _job=SimpleNamespace(recorded={"task": "pgx:tic_tac_toe"}, name="some-system"),
        config=SimpleNamespace(num_simulations=7, play_keep_tree=True),
    )  # fmt: skip
    monkeypatch.setattr(players, "acting_task", lambda _: envs.make("pgx:tic_tac_toe", 2))
    monkeypatch.setattr(players, "on_device", lambda _: 0.0)
    bare = uct.Tree(*(np.zeros((1, 1, 9), np.int32) for _ in range(3)))
    monkeypatch.setattr(players, "_edges", lambda tree, num_actions: bare)
    one = players.Trained(cast(Any, run), game("tic_tac_toe"), "runs/x")
    states = jax.tree.map(lambda x: np.stack([x] * 3), game("tic_tac_toe").init(jax.random.key(0)))

    def ask(*histories: tuple[int, ...]) -> list[int] | None:
        one.choose(states, jax.random.key(0), histories)
        return seen[-1]

    assert ask((0,), (1,), (2,)) is None and ask((3, 4), (5, 6)) is None
    assert ask((0, 8, 7), (2, 8, 7)) == [10, 12, 10], "the batch is filled up by any"
    assert ask((5, 6, 0, 1), (3, 4, 0, 1)) == [21, 20, 20]
    assert ask((2, 8, 7, 1, 3), (9,)) == [31, 30, 30], "a game of which nothing is known has any tree, which its position is not in"
    assert (
        ask(
            (8, 8, 8),
        )
        is None
    )
    one.simulations = 9
    assert ask((2, 8, 7, 1, 3, 5, 0)) is None, "another number of simulations"
    count = len(seen)
    monkeypatch.setattr(players.Trained, "analyse", lambda *_: SimpleNamespace(action=np.zeros(3, np.int32)))
    one.choose(states, jax.random.key(0))
    with monkeypatch.context() as less:
        less.setattr(players, "_SEARCH_BYTES", 1_000)
        one.choose(states, jax.random.key(0), [(0,)] * 3)
    assert len(seen) == count, "no games, and no memory"
    # An engine follows one game, by searches of several sizes; who looks at positions does not.
    state = game("tic_tac_toe").init(jax.random.key(0))
    analysed: list[int] = []
    nothing = go_on(None, None, None, SimpleNamespace(inner=players.one(state)), None, num_simulations=1, before=None)[0]
    monkeypatch.setattr(players.Trained, "analyse", lambda self, states, key, simulations: (analysed.append(simulations), nothing)[1])
    seen.clear()
    one.think(state, jax.random.key(0), 5)
    assert analysed == [5] and seen == []
    one.follow_a_game()
    for simulations in (5, 20, 5, 0):
        one.think(state, jax.random.key(0), simulations)
    assert analysed == [5, 0] and seen == [None, None, [10]]


def test_a_run_may_play_with_other_settings(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "num_envs": 4,
        "num_steps": 8,
        "num_simulations": 2,
        "play_simulations": 4,
        "blocks": 1,
        "channels": 8,
        "value_hidden": 4,
    }
    fi.train(
        "alphazero", "pgx:tic_tac_toe", out=tmp_path / "run", quiet=True, total_steps=32, buffer_size=128, learning_starts=8,
        gradient_steps=1, batch_size=8, **small,
    )  # fmt: skip
    ttt, spec = game("tic_tac_toe"), f"{tmp_path / 'run'}"
    made = players.player(f"{spec}?see_wins=True&play_see_losses=true&c_scale=0.5&search=puct&simulations=3", ttt)
    assert isinstance(made, players.Trained) and made.simulations == 3
    typed = players.player(f"{spec}?num_simulations=3", ttt)
    both = players.player(f"{spec}?num_simulations=3&play_simulations=5", ttt)
    assert isinstance(typed, players.Trained) and isinstance(both, players.Trained) and (typed.simulations, both.simulations) == (3, 5)
    config = made._config
    assert (config.see_wins, config.play_see_losses, config.search, float(config.c_scale)) == (True, True, "puct", 0.5)
    # One move wins: it is seen with the rules alone, whatever the network thinks.
    winning = notation.table(ttt, "a1 a3 b1 b3").state
    (move,) = made.choose(players.one(winning), jax.random.key(0)).actions
    _, reward, over = ttt.step(jax.random.key(0), jax.tree.map(jax.numpy.asarray, winning), move)
    assert bool(over) and float(reward) == 1.0
    seen, bare = (made.think(winning, jax.random.key(0), simulations) for simulations in (3, 0))
    assert seen.value == pytest.approx(1.0) and bare.network_value < 0.9 and seen.network_value == pytest.approx(bare.network_value)
    np.testing.assert_allclose(seen.prior, bare.prior, rtol=1e-5)
    for settings, why in (
        ("blocks=2", "that is another network than the one"), ("chanels=8", "did you mean 'channels'"), ("c_scale=much", "a finite number"),
        ("play_see_losses=true&see_wins=false", "goes with see_wins"), ("simulations=-1", "whole number"),
        ("num_simulations=2000000", "at most 1_000_000"),
    ):  # fmt: skip
        with pytest.raises(FlatironsError, match=why):
            players.player(f"{spec}?{settings}", ttt)
