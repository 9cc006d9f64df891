"""Moves, positions and records as people write them: known texts, round trips, python-chess as witness, and bad input."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.envs import games, notation, records
from flatirons.types import FlatironsError


@functools.cache
def game(name: str) -> games.Game:
    return games.make(name)


def table(name: str, text: str = "") -> notation.Table:
    return notation.table(game(name), text)


KNOWN_MOVES = {
    "tic_tac_toe": (9, {"a1": 0, "c1": 2, "b2": 4, "a3": 6}),
    "connect_four": (7, {"1": 0, "4": 3, "7": 6}),
    "othello": (4, {"d3": 19, "c4": 26, "f5": 37, "e6": 44}),
    "hex": (121, {"a1": 0, "k1": 10, "a11": 110}),
    "go_9x9": (82, {"A9": 0, "J9": 8, "A1": 72, "E5": 40, "pass": 81}),
    "go_19x19": (362, {"D4": 15 * 19 + 3, "Q16": 3 * 19 + 15, "pass": 361}),
    "gardner_chess": (7, {}),
    "chess": (20, {}),
    "animal_shogi": (4, {}),
    "shogi": (30, {}),
}


@pytest.mark.parametrize("name", games.GAMES)
def test_the_first_moves_of_each_game(name: str) -> None:
    start = table(name)
    moves = notation.moves(start.game, start.board, start.legal)
    count, known = KNOWN_MOVES[name]
    assert len(moves) == count == start.legal.sum()
    assert known.items() <= moves.items()
    for text, action in moves.items():
        assert notation.parse_move(start.game, start.board, start.legal, text) == action
    assert notation.colours(name)[0] in notation.drawing(start.game, start.board)
    if notation.kinds(name):
        assert start.text() == notation.start_text(name)


def test_the_moves_that_chess_and_shogi_begin_with() -> None:
    def moves(name: str) -> set[str]:
        start = table(name)
        return set(notation.moves(start.game, start.board, start.legal))

    assert moves("chess") == {f"{c}2{c}{r}" for c in "abcdefgh" for r in "34"} | {"b1a3", "b1c3", "g1f3", "g1h3"}
    assert moves("gardner_chess") == {f"{c}2{c}3" for c in "abcde"} | {"b1a3", "b1c3"}
    assert moves("animal_shogi") == {"2c2b", "1d1c", "2d1c", "2d3c"}
    pawns = {f"{c}g{c}f" for c in "123456789"}
    rook = {"2h1h"} | {f"2h{c}h" for c in "34567"}
    others = {"1i1h", "9i9h", "7i7h", "7i6h", "3i3h", "3i4h", "6i7h", "6i6h", "6i5h", "4i5h", "4i4h", "4i3h", "5i6h", "5i5h", "5i4h"}
    assert moves("shogi") == pawns | rook | others


# ------------------------------------------------------------------------------------------------------------------ chess


def test_a_chess_game_from_first_move_to_mate() -> None:
    mate = table("chess", "e2e4 e7e5 f1c4 b8c6 d1h5 g8f6 h5f7")
    assert mate.over and mate.outcome == 1.0
    assert mate.text() == "r1bqkb1r/pppp1Qpp/2n2n2/4p3/2B1P3/8/PPPP1PPP/RNB1K1NR b KQkq - 0 4"
    text = records.write(mate.game, records.Record("chess", tuple(mate.actions), 1.0, ("Anne", 'B "Bob" C')))
    assert "1. e4 e5 2. Bc4 Nc6 3. Qh5 Nf6 4. Qxf7# 1-0" in text and '[White "Anne"]' in text
    (back,) = records.read(mate.game, text)
    assert back.actions == tuple(mate.actions) and back.result == 1.0 and back.players == ("Anne", 'B "Bob" C')
    with pytest.raises(FlatironsError, match="the game has ended"):
        mate.play("e8f7")
    mate.undo()
    assert not mate.over and mate.legal.sum() > 20


def test_castling_en_passant_and_promotion_in_words() -> None:
    t = table("chess", "e4 d5 e5 f5 exf6 d4 Nf3 d3 Bxd3 Nc6 O-O h5")
    assert t.words[4] == "e5f6" and t.words[10] == "e1g1" and t.board.castling == "kq"
    assert t.text() == "r1bqkbnr/ppp1p1p1/2n2P2/7p/8/3B1N2/PPPP1PPP/RNBQ1RK1 w kq h6 0 7"
    pawn = table("chess", "fen 8/P6k/8/8/8/8/8/K7 w - - 3 40")
    assert {"a7a8q", "a7a8r", "a7a8b", "a7a8n"} <= set(notation.moves(pawn.game, pawn.board, pawn.legal))
    legal = pawn.legal
    assert {notation.san(pawn.game, pawn.board, legal, int(a)) for a in np.flatnonzero(legal)} >= {"a8=Q", "a8=R", "a8=B", "a8=N"}
    pawn.play("a8=N")
    assert pawn.text() == "N7/7k/8/8/8/8/8/K7 b - - 0 40" and pawn.over  # a knight alone cannot win
    black = table("chess", "r3k2r/8/8/8/8/8/6pp/4K3 b kq - 0 1")
    assert {"g2g1q", "h2h1n", "e8g8", "e8c8"} <= set(notation.moves(black.game, black.board, black.legal))


def test_san_says_which_of_two_pieces() -> None:
    t = table("chess", "fen 8/2k5/8/R6R/8/8/8/K6R w - - 0 1")
    legal = t.legal
    words = {notation.san(t.game, t.board, legal, int(a)) for a in np.flatnonzero(legal)}
    assert {"Rad5", "Rhd5", "R1h3", "R5h3", "Rh8", "Rd1"} <= words and len(words) == legal.sum()
    for spelling in ("Ra5d5", "Rad5!", "a5d5", "Ra5-d5"):
        assert notation.parse_move(t.game, t.board, legal, spelling) == notation.parse_move(t.game, t.board, legal, "Rad5")


def test_python_chess_agrees() -> None:
    chess: Any = pytest.importorskip("chess", reason="python-chess, the second opinion, is not installed: pip install chess")
    rng = np.random.default_rng(0)
    for _ in range(2):
        ours, theirs = table("chess"), chess.Board()
        for _ply in range(70):
            known = notation.moves(ours.game, ours.board, ours.legal)
            assert set(known) == {move.uci() for move in theirs.legal_moves}
            word = str(rng.choice(sorted(known)))
            said = notation.san(ours.game, ours.board, ours.legal, known[word])
            assert said == theirs.san(chess.Move.from_uci(word)).rstrip("+#")
            ours.play(word)
            theirs.push_uci(word)
            # FEN's en passant is written after every double step, as in PGN's own standard.
            assert ours.text() == theirs.fen(en_passant="fen")
            assert ours.over == theirs.is_game_over(claim_draw=False) or theirs.is_repetition(3) or theirs.halfmove_clock >= 100
            if ours.over:
                break
        if not ours.over:
            again = notation.from_position_text(ours.game, ours.text())
            np.testing.assert_array_equal(again.legal, ours.state.legal)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # The start counts.
        ("", "g1f3 g8f6 f3g1 f6g8 g1f3 g8f6 f3g1 f6g8"),
        # A square that nobody can take on makes no other position; nor does one where taking would leave the king to the rook.
        ("", "e2e4 g8f6 g1f3 f6g8 f3g1 g8f6 g1f3 f6g8 f3g1"),
        ("8/8/8/8/k2p3R/8/4P3/4K1N1 w - - 0 1", "e2e4 a4a5 g1f3 a5a4 f3g1 a4a5 g1f3 a5a4 f3g1"),
        # One that somebody can take on does.
        (
            "rnbqkbnr/ppp1pppp/8/8/3p4/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1",
            "e2e4 g8f6 g1f3 f6g8 f3g1 g8f6 g1f3 f6g8 f3g1 g8f6",
        ),
    ],
)
def test_three_times_the_same_position_as_python_chess_counts(text: str, words: str) -> None:
    chess: Any = pytest.importorskip("chess", reason="python-chess, the second opinion, is not installed: pip install chess")
    ours, theirs = table("chess", text), chess.Board(*([text] if text else []))
    for word in words.split():
        assert not ours.over
        ours.play(word)
        theirs.push_uci(word)
        assert ours.over == theirs.is_repetition(3)
    assert ours.over and ours.outcome == 0.0


@pytest.mark.parametrize(
    ("text", "cycle"),
    [
        ("", "1d1c 3a3b 1c1d 3b3a"),
        ("", "2c2b 2a1b 2b2a+ 1b2a C*2c C*2b"),
        ("2c2b 1a2b", "1d1c 2a1a C*2a C*1d 1c1d 1a2a"),
        ("sfen gle/1c1/1C1/ELG w - 7", "3a3b 1d1c 3b3a 1c1d"),
    ],
)
def test_animal_shogi_is_drawn_by_a_third_occurrence(text: str, cycle: str) -> None:
    """Captures and drops in between or not, from the start or from a position of one's own."""
    here = table("animal_shogi", text)
    for word in 2 * cycle.split():
        assert not here.over
        here.play(word)
    assert here.over and here.outcome == 0.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8/8/8/8/8/8/8/8 w - - 0 1", "one king"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN w KQkq - 0 1", "row 8 has 7 squares"),
        ("rnbqkbnr/pppppppp/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "7 rows"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNX w KQkq - 0 1", "'X' is no piece"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR x KQkq - 0 1", "who is to move"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkz - 0 1", "'KQkz' says nothing of castling: rights are K, Q, k, q"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KKq - 0 1", "each at most once"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w GBgb - 0 1", "Chess960 is not played"),
        ("4k3/8/8/8/8/8/8/4K3 w K - 0 1", "king and rook at home"),
        ("4k3/8/8/8/8/8/8/4K2P w - - 0 1", "pawn"),
        ("4k3/8/8/8/8/8/4Q3/4K3 w - - 0 1", "could be taken"),
        ("4k3/8/8/8/8/8/8/4K3 w - e5 0 1", "passed"),
        ("4k3/8/8/8/8/8/8/4K3 w - - zero 1", "counts"),
        ("4k3/8/8/8/8/8/8/4K3 w - - 2147483648 1", "it counts 2147483648 moves, and 100_000 is the most"),
        ("4k3/8/8/8/8/8/8/4K3 w - - 0 100001", "it counts 100001 moves"),
    ],
)
def test_what_is_no_chess_position_is_refused(text: str, why: str) -> None:
    with pytest.raises(FlatironsError, match=why):
        table("chess", text)


@pytest.mark.parametrize(("rights", "same"), [("kqKQ", "KQkq"), ("QK", "KQ"), ("HAha", "KQkq"), ("aH", "Kq")])
def test_castling_rights_in_any_order(rights: str, same: str) -> None:
    text = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w {} - 0 1"
    assert table("chess", text.format(rights)).text() == text.format(same)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1. e4 e5 2. Ke3 *", "game 1, move 3: 'Ke3' is not a legal move"),
        ('[FEN "nonsense"]\n\n1. e4 *', "game 1: 'nonsense' is no FEN"),
        ("1. e4 *\n\n1. e5 *", "game 2, move 1: 'e5'"),
        ('[Variant "Gardner"]\n\n1. a3 *', "is a game of Gardner"),
        ("", "holds no game"),
    ],
)
def test_bad_pgn_is_refused_with_the_move_at_fault(text: str, why: str) -> None:
    with pytest.raises(FlatironsError, match=why):
        records.read(game("chess"), text, "some.pgn")


def test_pgn_as_people_write_it() -> None:
    text = """%a comment
[Event "a \\"match\\""]
[Result "0-1"]

{before} 1.e4 e5 $1 (1... c5 2. Nf3 (2. c3 d5)) 2.Nf3!? Nc6 ; to the end of the line
3. Bb5 a6 4. Bxc6 dxc6 5. 0-0 Bg4?! 0-1

[Event "another"]

1. d4 *
"""
    first, second = records.read(game("chess"), text)
    assert len(first.actions) == 10 and first.result == -1.0 and len(second.actions) == 1 and second.result is None
    assert dict(first.facts)["Event"] == 'a "match"'
    passing = "1. e4 a6 2. e5 d5 3. exd6{}Nf6 *"
    (plain,), *others = (records.read(game("chess"), passing.format(how)) for how in (" ", " e.p. ", "e.p. ", " e.p.! "))
    assert len(plain.actions) == 6 and all(one.actions == plain.actions for (one,) in others)
    set_up = records.read(game("chess"), '[SetUp "1"]\n[FEN "4k3/8/8/8/8/8/4P3/4K3 b - - 0 9"]\n\n9... Kd7 10. e4 1/2-1/2\n')[0]
    assert set_up.start.endswith("b - - 0 9") and set_up.result == 0.0
    assert "9... Kd7 10. e4 1/2-1/2" in records.write(game("chess"), set_up)


@pytest.mark.parametrize(
    "text",
    [
        "1. e4 {good} 1. ... e5 2. Nf3 *",
        "1. e4 ... e5 2. Nf3 *",
        "1. e4 1… e5 2.Nf3 *",
        "1.e4 ...e5 2. … {thinks} 2 . Nf3 *",
        "1. e4 = e5 += 2. Nf3 +- N +/- -/+ -+ =+ ∞ *",
        '[Variant "From Position"]\n[FEN "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"]\n\n1. e4 e5 2. Nf3 *',
    ],
)
def test_pgn_of_other_programs(text: str) -> None:
    (found,) = records.read(game("chess"), text)
    assert found.actions == tuple(table("chess", "e2e4 e7e5 g1f3").actions) and found.result is None


def test_pgn_that_black_begins_and_an_old_draw() -> None:
    head = '[FEN "4k3/8/8/8/8/8/4P3/4K3 b - - 0 1"]\n\n'
    for text in (f"{head}1. ... Kd7 1/2", f'[Result "1/2"]\n{head}1... Kd7 *'):
        (found,) = records.read(game("chess"), text)
        assert len(found.actions) == 1 and found.result == 0.0
    with pytest.raises(FlatironsError, match="'--' is not a legal move"):
        records.read(game("chess"), "1. e4 -- 2. d4 *")


# ------------------------------------------------------------------------------------------------------------------ shogi


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("shogi", "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b P 1", "there are 19 pieces P"),
        ("shogi", "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSG1GSNL b - 1", "one king"),
        ("shogi", "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b K 1", "cannot be in hand"),
        ("animal_shogi", "gle/1c1/1C1/EL b - 1", "row 4 has 2"),
        ("animal_shogi", "gle/1c1/1C1/ELG b 2 1", "no list of pieces"),
        ("animal_shogi", "gle/1c1/1C1/ELG b - 2147483649", "it counts 2147483649 moves, and 100_000 is the most"),
        ("shogi", f"lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - {10**18 - 1}", "it counts 9+ moves"),
        ("shogi", f"lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b {'9' * 30}P 1", "9 pieces P in hand are more than"),
        ("gardner_chess", "4k/5/5/5/K4 w - - 9999999999 1", "it counts 9999999999 moves"),
        ("connect_four", "x/y", "not a legal move"),
    ],
)
def test_what_is_no_shogi_position_is_refused(name: str, text: str, why: str) -> None:
    with pytest.raises(FlatironsError, match=why):
        table(name, text)


def _mirrored(sfen: str) -> str:
    """The same position with the sides changed over."""
    placed, turn, hands, number = sfen.split()
    return f"{placed[::-1].swapcase()} {'w' if turn == 'b' else 'b'} {hands.swapcase()} {number}"


@pytest.mark.parametrize(
    ("text", "drop", "allowed"),
    [
        # The silver keeps the pawn, and the corner with it: mate. pgx alone takes the corner for a way out.
        ("6pg1/2G4Sk/9/6PL1/6l1p/9/2p6/7b1/3K5 b PN 1", "P*1c", False),
        # Without the silver the king takes the pawn; with the corner alone free he goes there.
        ("6pg1/2G5k/9/6PL1/6l1p/9/2p6/7b1/3K5 b PN 1", "P*1c", True),
        ("7g1/8k/6S2/7G1/9/9/9/9/3K5 b P 1", "P*1c", True),
    ],
)
def test_a_pawn_is_not_dropped_to_mate_beside_a_corner(text: str, drop: str, allowed: bool) -> None:
    found = table("shogi", text)
    assert (drop in notation.moves(found.game, found.board, found.legal)) == allowed
    other = table("shogi", _mirrored(text))
    assert other.legal.tolist() == found.legal.tolist()


@pytest.mark.parametrize("others", [True, False])
def test_nor_is_it_in_play(monkeypatch: pytest.MonkeyPatch, others: bool) -> None:
    found = table("shogi", "6pg1/2G4Sk/9/6PL1/6l1p/9/2p6/7b1/3K5 b PN 1")
    drop, king = 20 * 81 + 2, notation.parse_move(found.game, found.board, found.legal, "6i5i")
    said = jnp.where(others, found.legal, False).at[drop].set(True)
    # pgx's own step takes half a minute to compile; here it is one that leads to the same position.
    step = SimpleNamespace(_step=lambda full, action, key: full.replace(_x=full._x._replace(legal_action_mask=said)))
    monkeypatch.setattr(games, "_pgx", lambda name: step)
    after, _, ended = jax.jit(lambda state: found.game.step(jax.random.key(0), state, king))(found.state)
    assert bool(ended) != others and float(after.outcome) == (0.0 if others else -1.0)
    if others:
        np.testing.assert_array_equal(after.legal, found.legal)


def test_animal_shogi_in_words() -> None:
    t = table("animal_shogi", "2c2b 1a2b 3d2c")
    assert t.text() == "gl1/1e1/1E1/1LG w Cc 1".replace("w Cc 1", t.text().split(" ", 1)[1])
    assert t.board.hands.tolist() == [[1, 0, 0], [1, 0, 0]]
    drop = table("animal_shogi", "sfen gle/3/3/ELG b C 1")
    assert "C*2b" in notation.moves(drop.game, drop.board, drop.legal)
    promotes = table("animal_shogi", "sfen l2/2C/3/2L b - 1")
    promotes.play("1b1a")  # a chick that arrives becomes a hen, with the plus or without
    assert promotes.words == ["1b1a+"] and promotes.text().startswith("l1+C/")
    fairy = table("animal_shogi")
    assert set(notation.moves(fairy.game, fairy.board, fairy.legal, fairy=True)) == {"b2b3", "c1c2", "b1c2", "b1a2"}


# ------------------------------------------------------------------------------------------------------------------ stones


def test_positions_as_moves() -> None:
    assert table("connect_four", "4453").actions == table("connect_four", "startpos moves 4 4 5 3").actions == [3, 3, 4, 2]
    assert table("othello", "f5d6c3").words == ["f5", "d6", "c3"] and table("othello", "F5D6").words == ["f5", "d6"]
    swapped = table("hex", "a2 swap")
    assert swapped.board.cells[0, 1] == -1 and swapped.board.cells[1, 0] == 0 and swapped.turn == 0
    with pytest.raises(FlatironsError, match=r"move 2 of the position: '9' is not a legal move"):
        table("connect_four", "4 9")
    with pytest.raises(FlatironsError, match="after startpos"):
        table("connect_four", "startpos 4")
    with pytest.raises(FlatironsError, match="written as moves"):
        notation.from_position_text(game("hex"), "8/8 b")
    with pytest.raises(FlatironsError, match="no move to take back"):
        table("connect_four").undo()


def test_an_illegal_move_leaves_the_board_as_it_is() -> None:
    t = table("connect_four", "444444")
    before = t.board.cells.copy()
    with pytest.raises(FlatironsError, match=r"'4' is not a legal move here for x in connect_four.*unchanged"):
        t.play("4")
    with pytest.raises(FlatironsError, match="action 3 is not legal"):
        t.play(3)
    np.testing.assert_array_equal(t.board.cells, before)
    assert len(t.actions) == 6


@pytest.mark.parametrize(
    ("text", "result"), [("B+R", 1.0), ("b+3.5", 1.0), ("Black+2", 1.0), (" White + T", -1.0), ("Draw", 0.0), ("?", None), ("Bad", None)]
)
def test_results_in_sgf_are_spelt_in_many_ways(text: str, result: float | None) -> None:
    assert records._sgf_result(text, "B") == result


def test_a_game_of_hex_given_up_ends_there() -> None:
    one, other = "(;FF[4]GM[11]SZ[11];B[b3];W[resign])", "(;FF[4]GM[11]SZ[11]RE[?];B[b3];W[d4];B[Forfeit];W[e5])"
    first, second = records.read(game("hex"), one + other)
    assert len(first.actions) == 1 and len(second.actions) == 2
    assert (first.result, second.result) == ((-1.0, 1.0) if notation.colours("hex")[0] == "white" else (1.0, -1.0))


def test_a_lion_that_has_come_to_the_last_row_has_won() -> None:
    for text, outcome in (("lCL/3/1CG/Ee1 w g 72", 1.0), ("g2/2C/1GL/l2 b Eec 17", -1.0)):
        table = notation.Table(game("animal_shogi"), text)
        assert table.over and float(table.state.outcome) == outcome and table.text() == text
    assert not notation.Table(game("animal_shogi"), "l1e/2E/c1c/1LG b g 17").over


def test_gardners_chess_has_no_castling() -> None:
    with pytest.raises(FlatironsError, match="neither castling nor taking in passing"):
        notation.Table(game("gardner_chess"), "rnbqk/ppppp/5/PPPPP/RNBQK w KQkq - 0 1")


def test_sgf_of_go_as_people_write_it() -> None:
    text = r"""(;GM[1]FF[4]SZ[9]KM[7.5]PB[Black \] player]PW[White]RE[W+3.5]
;B[ee]C[the \] middle];W[gc](;B[cg];W[];B[tt])(;B[aa];W[bb](;B[cc])))
(;GM[1]SZ[9]RE[0];B[aa])"""
    first, second = records.read(game("go_9x9"), text)
    assert first.players == ("Black ] player", "White") and first.result == -1.0 and second.result == 0.0
    assert first.actions == (40, 2 * 9 + 6, 6 * 9 + 2, 81, 81)
    assert "B[ee]" in records.write(game("go_9x9"), first)
    # A third pass, by rules that ask for it.
    (ended,) = records.read(game("go_9x9"), "(;GM[1]SZ[9];B[ee];W[];B[];W[tt])")
    assert ended.actions == (40, 81, 81)
    with pytest.raises(FlatironsError, match=r"move 4: .* the game has ended"):
        records.read(game("go_9x9"), "(;GM[1]SZ[9];B[ee];W[];B[];W[aa])")


def test_sgf_in_the_middle_of_a_letter() -> None:
    text = "From: me (at home)\n\n(;GM[1]SZ[9];B[ee])\n-- me (still)\n( ;GM[1]SZ[9];B[aa])"
    assert [one.actions for one in records.read(game("go_9x9"), text)] == [(40,), (0,)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(;GM[1]SZ[9];B[ee];W[ee])", r"game 1, move 2: 'E5' is not a legal move"),
        ("(;GM[1]SZ[9];B[ee];B[dd])", r"move 2: B\[dd\] is played out of turn"),
        ("(;GM[1]SZ[19];B[ee])", "board of 19"),
        ("(;GM[2]SZ[8];B[f5])", "no game of go_9x9: its GM is 2"),
        ("(;GM[1]SZ[9]HA[2]AB[aa][bb];W[ee])", "stones on the board"),
        ("(;GM[1]SZ[9];B[ee]", "no end"),
        ("(;GM[1]SZ[9];B[ee", "no end"),
        ("(;GM[1]SZ[9];B;W[dd])", "has no value"),
        ("(;GM[1]SZ[9];B[zz])", "'zz' is not a legal move"),
        ("(;GM[1]SZ[9]é;B[ee])", "damaged SGF: 'é' means nothing at character 13"),
        ("no sgf at all", "holds no game"),
    ],
)
def test_bad_sgf_is_refused(text: str, why: str) -> None:
    with pytest.raises(FlatironsError, match=why):
        records.read(game("go_9x9"), text, "some.sgf")


@pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four", "othello", "hex"])
def test_records_come_back(name: str) -> None:
    rng, t = np.random.default_rng(3), table(name)
    for _ in range(20):
        if not t.over:
            t.play(int(rng.choice(np.flatnonzero(t.legal))))
    record = records.Record(name, tuple(t.actions), t.outcome if t.over else None, ("a", "b"))
    (back,) = records.read(t.game, records.write(t.game, record))
    assert (back.actions, back.result, back.players) == (record.actions, record.result, record.players)
    with pytest.raises(FlatironsError, match=r"is a game of|no game of"):
        records.read(game("connect_four" if name != "connect_four" else "tic_tac_toe"), records.write(t.game, record))


def test_area_counts_stones_and_what_they_enclose() -> None:
    cells = np.zeros((9, 9), np.int64)
    assert records.area(cells) == -7.5
    cells[:, 4], cells[:, 5] = 1, -1
    assert records.area(cells) == 9 * 5 - 9 * 4 - 7.5
    cells[0, 0] = -1  # the left side now borders on both
    assert records.area(cells) == 9 - 9 * 4 - 1 - 7.5


def test_a_missing_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(FlatironsError, match=r"none\.sgf cannot be read"):
        records.load(game("go_9x9"), [tmp_path / "none.sgf"])
