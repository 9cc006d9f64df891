"""Games in words: moves, positions and boards as people and other programs write them.

| game | a move | a position |
|---|---|---|
| connect four | the column, `4` | moves, `444` |
| tic-tac-toe, Othello | column and row from the top, `c3` (`pass`) | moves, `f5 d6 c3` |
| hex | column and row from the top, `f6` (`swap`) | moves |
| Go | GTP: column without I and row from the bottom, `D4` (`pass`) | moves |
| chess, gardner chess | UCI, `e2e4`, `e7e8q`; SAN in records, `Nf3` | FEN |
| shogi, animal shogi | USI, `7g7f`, `P*5e`, `2b3a+` | SFEN |

A position may also be a start and moves: `startpos moves e2e4 e7e5`, `fen FEN moves …`, `sfen SFEN moves …`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.envs import games
from flatirons.envs.games import Game, GameState
from flatirons.types import FlatironsError

CHESS = ("chess", "gardner_chess")
SHOGI = ("shogi", "animal_shogi")
GO = ("go_9x9", "go_19x19")
_LETTERS = {
    "chess": ["P", "N", "B", "R", "Q", "K"],
    "gardner_chess": ["P", "N", "B", "R", "Q", "K"],
    "shogi": ["P", "L", "N", "S", "B", "R", "G", "K", "+P", "+L", "+N", "+S", "+B", "+R"],
    "animal_shogi": ["C", "E", "G", "L", "+C"],
}
_STARTS = {
    "chess": "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1",
    "gardner_chess": "rnbqk/ppppp/5/PPPPP/RNBQK w - - 0 1",
    "shogi": "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1",
    "animal_shogi": "gle/1c1/1C1/ELG b - 1",
}
_GTP_COLUMNS = "ABCDEFGHJKLMNOPQRST"
PAWN, KNIGHT, BISHOP, ROOK, QUEEN, KING = range(1, 7)
MOST_MOVES = 100_000
"""Of a FEN's and an SFEN's counts of moves."""


class Board(NamedTuple):
    """A position as one looks at it, from the side of who moves first.

    turn: 0 = who moves first. cells: int `[rows, cols]`, row 0 at the top; 0 empty, positive for the first player's stones and pieces,
    negative for the other's; pieces are numbered from 1 as in `kinds`. hands: int `[2, kinds]`, pieces in hand (shogi). castling and
    en_passant: as in FEN (chess). halfmove: plies since a capture or a pawn's move (chess). fullmove: as in FEN and SFEN.
    """

    turn: int
    cells: np.ndarray
    hands: np.ndarray
    castling: str = "-"
    en_passant: str = "-"
    halfmove: int = 0
    fullmove: int = 1


class Move(NamedTuple):
    """A move of pieces in absolute squares (row, col), row 0 at the top. origin: None for a drop. piece: what moves or is dropped.
    promotion: what it becomes, or 0."""

    origin: tuple[int, int] | None
    target: tuple[int, int]
    piece: int
    promotion: int = 0


def kinds(name: str) -> list[str]:
    """The letters of a game's pieces, in capitals; empty where there are only stones."""
    return _LETTERS.get(name, [])


def colours(name: str) -> tuple[str, str]:
    """What the two players are called, who moves first first."""
    return ("white", "black") if name in CHESS else ("black", "white") if name in (*GO, *SHOGI, "othello", "hex") else ("x", "o")


# ------------------------------------------------------------------------------------------------------------------ boards


def board(game: Game, state: GameState) -> Board:
    """The board of ONE position."""
    rows, cols, name = game.board.rows, game.board.cols, game.name
    turn, inner = int(state.player), state.inner
    x = inner.get("_x")
    sign = 1 if turn == 0 else -1
    none = np.zeros((2, 0), np.int64)
    match name:
        case "tic_tac_toe" | "connect_four":
            flat = np.asarray(x.board, np.int64)
            return Board(turn, np.where(flat < 0, 0, 1 - 2 * flat).reshape(rows, cols), none)
        case "othello" | "hex":
            return Board(turn, sign * np.sign(np.asarray(x.board, np.int64)).reshape(rows, cols), none)
        case "go_9x9" | "go_19x19":
            return Board(turn, np.sign(np.asarray(x.board, np.int64)).reshape(rows, cols), none)
        case "chess" | "gardner_chess":
            flat = np.asarray(x.board if name == "chess" else inner["_board"], np.int64).reshape(cols, rows)
            cells = sign * (flat.T[::-1] if turn == 0 else flat.T)
            halfmove = int(x.halfmove_count if name == "chess" else inner["_halfmove_count"])
            fullmove = int(x.fullmove_count if name == "chess" else inner["_fullmove_count"])
            if name != "chess":
                return Board(turn, cells, none, halfmove=halfmove, fullmove=fullmove)
            rights = np.asarray(x.castling_rights)[:: 1 if turn == 0 else -1]
            castling = "".join(letter for letter, has in zip("KQkq", (rights[0, 1], rights[0, 0], rights[1, 1], rights[1, 0])) if has)
            passed = "-" if int(x.en_passant) < 0 else _uci_square(rows, _from_bottom(int(x.en_passant), rows, turn))
            return Board(turn, cells, none, castling or "-", passed, halfmove, fullmove)
    shogi = name == "shogi"
    flat = np.asarray(x.board if shogi else inner["_board"], np.int64).reshape(cols, rows)
    half = len(_LETTERS[name])
    mine = np.where(flat < 0, 0, np.where(flat < half, flat + 1, -(flat - half + 1))).T[:, ::-1]  # files count from the right
    cells = mine if turn == 0 else -mine[::-1, ::-1]
    hands = np.asarray(x.hand if shogi else inner["_hand"], np.int64)[:: 1 if turn == 0 else -1]
    return Board(turn, cells, hands, fullmove=int(state.plies) + 1)


def drawing(game: Game, position: Board) -> str:
    """The board as text, with the names of its rows and columns."""
    name, rows, cols = game.name, game.board.rows, game.board.cols
    letters = kinds(name)
    if name in SHOGI:
        heads, labels = [str(cols - c) for c in range(cols)], [chr(97 + r) for r in range(rows)]
    elif name == "connect_four":
        heads, labels = [str(c + 1) for c in range(cols)], [" "] * rows
    else:
        heads = list(_GTP_COLUMNS[:cols]) if name in GO else [chr(97 + c) for c in range(cols)]
        labels = [str(rows - r if name in (*CHESS, *GO) else r + 1) for r in range(rows)]
    width = 3 if name == "shogi" else 2
    side = max(map(len, labels))

    def mark(value: int) -> str:
        if value == 0:
            return "."
        if not letters:
            return "X" if value > 0 else "O"
        return letters[value - 1] if value > 0 else letters[-value - 1].lower()

    lines = [" " * side + "".join(head.rjust(width) for head in heads)]
    for r in range(rows):
        # Hex is a rhombus: each row stands half a cell to the right of the one above it.
        shift = " " * r if name == "hex" else ""
        lines.append(shift + labels[r].rjust(side) + "".join(mark(int(v)).rjust(width) for v in position.cells[r]))
    if position.hands.size:
        lines.append(f"in hand: {_hands(name, position.hands)}")
    lines.append(f"{colours(name)[position.turn]} to move")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------------- moves


def move_text(game: Game, position: Board, action: int, *, fairy: bool = False) -> str:
    """An action as text. `fairy`: shogi's in the letters that Fairy-Stockfish takes over UCI, `c3c4`, `P@e5`."""
    name, rows, cols = game.name, game.board.rows, game.board.cols
    match name:
        case "connect_four":
            return str(action + 1)
        case "tic_tac_toe" | "othello" | "hex":
            if action == rows * cols:
                return "swap" if name == "hex" else "pass"
            return f"{chr(97 + action % cols)}{action // cols + 1}"
        case "go_9x9" | "go_19x19":
            return "pass" if action == rows * cols else f"{_GTP_COLUMNS[action % cols]}{rows - action // cols}"
    move = decode(game, position, action)
    letters = _LETTERS[name]
    if name in CHESS or fairy:
        square = functools.partial(_uci_square, rows)
        promoted = "+" if name in SHOGI else letters[move.promotion - 1].lower()
        start = f"{letters[move.piece - 1]}@" if move.origin is None else square(move.origin)
    else:
        square = functools.partial(_usi_square, cols)
        promoted = "+"
        start = f"{letters[move.piece - 1]}*" if move.origin is None else square(move.origin)
    return start + square(move.target) + (promoted if move.promotion else "")


def moves(game: Game, position: Board, legal: Any, *, fairy: bool = False) -> dict[str, int]:
    """Every legal move by its text."""
    return {move_text(game, position, int(action), fairy=fairy): int(action) for action in np.flatnonzero(np.asarray(legal))}


def parse_move(game: Game, position: Board, legal: Any, text: str) -> int:
    """The action that a text names, in this game's notation (chess takes SAN too). Raises FlatironsError where it is not legal here."""
    known = moves(game, position, legal)
    wanted = text.strip()
    if wanted in known:
        return known[wanted]
    folded = {other.lower(): action for other, action in known.items()}
    for spelling in (wanted.lower(), f"{wanted.lower()}+" if game.name == "animal_shogi" else ""):
        if spelling in folded:
            return folded[spelling]
    if game.name in CHESS and (action := _from_san(game, position, legal, wanted)) is not None:
        return action
    few = ", ".join(list(known)[:8]) + (", …" if len(known) > 8 else "")
    near = difflib.get_close_matches(wanted, known, n=1)
    raise FlatironsError(
        f"{wanted!r} is not a legal move here for {colours(game.name)[position.turn]} in {game.name}; "
        + (f"did you mean {near[0]}? The board is unchanged" if near else f"legal are {few}; the board is unchanged")
    )


def decode(game: Game, position: Board, action: int) -> Move:
    """An action of chess or shogi, in squares."""
    name, rows, cols, turn = game.name, game.board.rows, game.board.cols, position.turn
    if name in CHESS:
        origin, target, under = _chess_planes(rows)[action]
        start, end = _from_bottom(origin, rows, turn), _from_bottom(target, rows, turn)
        piece = abs(int(position.cells[start]))
        promotion = 0
        if piece == PAWN and target % rows == rows - 1:
            promotion = QUEEN if under < 0 else (ROOK, BISHOP, KNIGHT)[under]
        return Move(start, end, piece, promotion)
    squares = rows * cols
    across, where = divmod(action, squares)

    def seen(x: int, y: int) -> tuple[int, int]:
        row, col = y, cols - 1 - x
        return (row, col) if turn == 0 else (rows - 1 - row, cols - 1 - col)

    x, y = divmod(where, rows)
    if name == "animal_shogi":
        if across >= 8:
            return Move(None, seen(x, y), across - 8 + 1)
        dx, dy = _AROUND[across]
        piece = abs(int(position.cells[seen(x, y)]))
        return Move(seen(x, y), seen(x + dx, y + dy), piece, 5 if piece == 1 and y == 1 else 0)
    if across >= 20:
        return Move(None, seen(x, y), across - 20 + 1)
    dx, dy = _SHOGI_FROM[across % 10]
    sign = 1 if turn == 0 else -1
    fx, fy = x, y
    while True:
        fx, fy = fx + dx, fy + dy
        if not (0 <= fx < cols and 0 <= fy < rows):
            return Move(None, seen(x, y), 1)  # no piece of the mover's there: no legal action decodes to this
        if position.cells[seen(fx, fy)] * sign > 0 or across % 10 >= 8:
            break
    piece = abs(int(position.cells[seen(fx, fy)]))
    return Move(seen(fx, fy), seen(x, y), piece, piece + 8 if across >= 10 else 0)


_AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
# Where a piece comes from, for up, up left, up right, left, right, down, down left, down right, and the two of a knight.
_SHOGI_FROM = [(0, 1), (-1, 1), (1, 1), (-1, 0), (1, 0), (0, -1), (-1, -1), (1, -1), (-1, 2), (1, 2)]


@functools.cache
def _chess_planes(size: int) -> list[tuple[int, int, int]]:
    """(from, to, underpromotion) of each of pgx's actions, in the mover's squares: column * size + row, from the bottom left."""
    up, down = list(range(1, size)), list(range(-size + 1, 0))
    flat = [0] * (size - 1)
    drow = [*down, *up, *flat, *flat, *down, *up, *up[::-1], *down[::-1]]
    dcol = [*flat, *flat, *down, *up, *down, *up, *down, *up]
    drow += [-1, 1, -2, 2, -1, 1, -2, 2]
    dcol += [-2, -2, -1, -1, 2, 2, 1, 1]
    found = []
    for origin in range(size * size):
        col, row = divmod(origin, size)
        for plane in range(9 + len(drow)):
            dr, dc = (1, (0, 1, -1)[plane % 3]) if plane < 9 else (drow[plane - 9], dcol[plane - 9])
            r, c = row + dr, col + dc
            inside = 0 <= r < size and 0 <= c < size
            found.append((origin, c * size + r if inside else origin, plane // 3 if plane < 9 else -1))
    return found


def _from_bottom(square: int, size: int, turn: int) -> tuple[int, int]:
    col, row = divmod(square, size)
    return (size - 1 - row if turn == 0 else row), col


def _uci_square(rows: int, square: tuple[int, int]) -> str:
    return f"{chr(97 + square[1])}{rows - square[0]}"


def _usi_square(cols: int, square: tuple[int, int]) -> str:
    return f"{cols - square[1]}{chr(97 + square[0])}"


# ---------------------------------------------------------------------------------------------------------------------- SAN


def san(game: Game, position: Board, legal: Any, action: int, after: GameState | None = None) -> str:
    """A chess move in standard algebraic notation; with the position `after` it, check and mate are marked."""
    move = decode(game, position, action)
    assert move.origin is not None
    letters, square = _LETTERS[game.name], functools.partial(_uci_square, game.board.rows)
    if move.piece == KING and abs(move.target[1] - move.origin[1]) == 2:
        text = "O-O" if move.target[1] > move.origin[1] else "O-O-O"
    else:
        captures = position.cells[move.target] != 0 or (move.piece == PAWN and move.target[1] != move.origin[1])
        text = square(move.target)
        if captures:
            text = f"x{text}"
        if move.piece == PAWN:
            text = (square(move.origin)[0] if captures else "") + text
            text += f"={letters[move.promotion - 1]}" if move.promotion else ""
        else:
            others = [decode(game, position, int(a)) for a in np.flatnonzero(np.asarray(legal)) if int(a) != action]
            rivals = [o.origin for o in others if o.piece == move.piece and o.target == move.target and o.origin is not None]
            text = letters[move.piece - 1] + _which(move.origin, rivals, square) + text
    if after is not None:
        now = board(game, after)
        if attacked(now.cells, _king(now), 1 - now.turn):
            text += "#" if bool(after.terminated) and float(after.outcome) != 0 else "+"
    return text


def _which(origin: tuple[int, int], rivals: Sequence[tuple[int, int]], square: Callable[[tuple[int, int]], str]) -> str:
    if not rivals:
        return ""
    if all(other[1] != origin[1] for other in rivals):
        return square(origin)[0]
    if all(other[0] != origin[0] for other in rivals):
        return square(origin)[1:]
    return square(origin)


def _from_san(game: Game, position: Board, legal: Any, text: str) -> int | None:
    plain = re.sub(r"[+#!?]+$", "", text).replace("0-0-0", "O-O-O").replace("0-0", "O-O").replace("e.p.", "").strip()
    known = {san(game, position, legal, int(action)): int(action) for action in np.flatnonzero(np.asarray(legal))}
    if plain in known:
        return known[plain]
    # Spelled out more than needed (Ng1f3, e2-e4), or less (e8Q, Pe4, ed5).
    found = re.fullmatch(r"([PNBRQK]?)([a-h]?)([1-8]?)[x-]?([a-h][1-8])(?:=?([NBRQ]))?", plain)
    if found is None:
        return None
    piece, file, rank, target, promotion = found.groups()
    letters, rows = _LETTERS[game.name], game.board.rows
    fits = []
    for action in np.flatnonzero(np.asarray(legal)):
        move = decode(game, position, int(action))
        assert move.origin is not None
        start = _uci_square(rows, move.origin)
        if (
            (letters[move.piece - 1] == (piece or "P"))
            and _uci_square(rows, move.target) == target
            and file in ("", start[0])
            and rank in ("", start[1:])
            and (letters[move.promotion - 1] if move.promotion else None) == promotion
        ):
            fits.append(int(action))
    return fits[0] if len(fits) == 1 else None


def _king(position: Board) -> tuple[int, int]:
    """The king of the player to move."""
    row, col = np.argwhere(position.cells == (KING if position.turn == 0 else -KING))[0]
    return int(row), int(col)


def attacked(cells: np.ndarray, square: tuple[int, int], by: int) -> bool:
    """Whether a chess square is attacked by a player (0 = white)."""
    sign = 1 if by == 0 else -1
    rows, cols = cells.shape

    def at(row: int, col: int) -> int:
        return int(cells[row, col]) * sign if 0 <= row < rows and 0 <= col < cols else 0

    row, col = square
    if any(at(row + sign, col + d) == PAWN for d in (-1, 1)):
        return True
    if any(at(row + a, col + b) == KNIGHT for a, b in ((1, 2), (2, 1), (-1, 2), (-2, 1), (1, -2), (2, -1), (-1, -2), (-2, -1))):
        return True
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            if a == b == 0:
                continue
            if at(row + a, col + b) == KING:
                return True
            r, c = row + a, col + b
            while 0 <= r < rows and 0 <= c < cols and cells[r, c] == 0:
                r, c = r + a, c + b
            if at(r, c) in (QUEEN, ROOK if a == 0 or b == 0 else BISHOP):
                return True
    return False


# ---------------------------------------------------------------------------------------------------------- FEN and SFEN


def start_text(name: str) -> str:
    """The starting position in FEN or SFEN; empty for games whose positions are moves."""
    return _STARTS.get(name, "")


def position_text(game: Game, state: GameState) -> str:
    """FEN or SFEN of ONE position. Raises FlatironsError for a game that has none: there, a position is its moves (`Table.text`)."""
    name = game.name
    if name not in _LETTERS:
        raise FlatironsError(f"positions of {name} are written as moves; there is no FEN for it")
    position = board(game, state)
    letters = _LETTERS[name]
    lines = []
    for row in position.cells:
        line, empty = "", 0
        for value in map(int, row):
            if value == 0:
                empty += 1
                continue
            line += (str(empty) if empty else "") + (letters[value - 1] if value > 0 else letters[-value - 1].lower())
            empty = 0
        lines.append(line + (str(empty) if empty else ""))
    placed = "/".join(lines)
    if name in SHOGI:
        return f"{placed} {'bw'[position.turn]} {_hands(name, position.hands)} {position.fullmove}"
    return f"{placed} {'wb'[position.turn]} {position.castling} {position.en_passant} {position.halfmove} {position.fullmove}"


_HAND_ORDER = {"shogi": "RBGSNLP", "animal_shogi": "GEC"}


def _hands(name: str, hands: np.ndarray) -> str:
    text = ""
    for who in (0, 1):
        for letter in _HAND_ORDER[name]:
            count = int(hands[who][_LETTERS[name].index(letter)])
            if count:
                text += (str(count) if count > 1 else "") + (letter if who == 0 else letter.lower())
    return text or "-"


def from_position_text(game: Game, text: str) -> GameState:
    """The position of a FEN or SFEN. Raises FlatironsError where it is none, or one that cannot be."""
    name = game.name
    if name not in _LETTERS:
        raise FlatironsError(f"positions of {name} are written as moves, such as {' '.join(_EXAMPLES[name])!r}")
    fields = text.split()
    what = "SFEN" if name in SHOGI else "FEN"

    def wrong(why: str) -> FlatironsError:
        return FlatironsError(f"{text!r} is no {what} of {name}: {why}; the starting position is {_STARTS[name]!r}")

    if not 2 <= len(fields) <= (4 if name in SHOGI else 6):
        raise wrong(f"it has {len(fields)} fields")
    cells = _placed(game, fields[0], wrong)
    if fields[1] not in ("w", "b"):
        raise wrong(f"{fields[1]!r} is neither w nor b, who is to move")
    turn = "wb".index(fields[1]) if name in CHESS else "bw".index(fields[1])
    king = _LETTERS[name].index("L" if name == "animal_shogi" else "K") + 1
    if (np.sum(cells == king), np.sum(cells == -king)) != (1, 1):
        raise wrong("each side needs one king")
    rest = fields[2:]
    numbers = rest[1:] if name in SHOGI else rest[2:]
    if any(not is_whole(number) for number in numbers):
        raise wrong(f"{' '.join(numbers)!r} should be counts of moves")
    if many := [number for number in numbers if int(number) > MOST_MOVES]:
        raise wrong(f"it counts {many[0]} moves, and {MOST_MOVES:_} is the most")
    state = _chess_state(game, cells, turn, rest, wrong) if name in CHESS else _shogi_state(game, cells, turn, rest, wrong)
    state = jax.tree.map(np.asarray, state)
    now = board(game, state)
    legal = np.flatnonzero(state.legal) if not state.terminated else []
    if any(abs(int(cells[decode(game, now, int(action)).target])) == king for action in legal):
        raise wrong("the king of the side that has moved could be taken")
    return state


def is_whole(text: str) -> bool:
    """Whether `int` reads it as a whole number from 0 up; `str.isdigit` alone says so of superscripts and of more digits than int takes."""
    return text.isascii() and text.isdigit() and len(text) < 19


def _placed(game: Game, text: str, wrong: Callable[[str], FlatironsError]) -> np.ndarray:
    rows, cols, letters = game.board.rows, game.board.cols, _LETTERS[game.name]
    lines = text.split("/")
    if len(lines) != rows:
        raise wrong(f"the board has {len(lines)} rows, and needs {rows}")
    cells = np.zeros((rows, cols), np.int64)
    for r, line in enumerate(lines):
        c = 0
        for token in re.findall(r"\+?[A-Za-z]|\d|.", line):
            if is_whole(token):
                c += int(token)
                continue
            if token.upper() not in letters:
                raise wrong(f"{token!r} is no piece")
            if c >= cols:
                raise wrong(f"row {r + 1} is longer than {cols}")
            cells[r, c] = (letters.index(token.upper()) + 1) * (1 if token == token.upper() else -1)
            c += 1
        if c != cols:
            raise wrong(f"row {r + 1} has {c} squares, and needs {cols}")
    return cells


def _chess_state(game: Game, cells: np.ndarray, turn: int, rest: Sequence[str], wrong: Callable[[str], FlatironsError]) -> GameState:
    rows, name = game.board.rows, game.name
    castling, passed, halfmove, fullmove = [*rest, *("-", "-", "0", "1")[len(rest) :]]
    if np.any(np.abs(cells[[0, -1]]) == PAWN):
        raise wrong("a pawn stands on the first or last row")
    most = 2 * rows
    if max(np.sum(cells > 0), np.sum(cells < 0)) > most:
        raise wrong(f"a side has more than {most} pieces")
    seen = cells if turn == 0 else -cells[::-1]
    flat = np.asarray(seen[::-1].T.reshape(-1), np.int32)
    start = beginning(game)
    counts = np.int32(int(halfmove)), np.int32(max(1, int(fullmove)))
    with jax.numpy_rank_promotion("allow"):
        if name == "chess":
            # Chess960's programs name the rooks' columns instead; with king and rooks at home that says the same.
            castling = castling.translate(str.maketrans("HAha", "KQkq"))
            if castling != "-" and (set(castling) - set("KQkq") or len(set(castling)) < len(castling)):
                raise wrong(f"{rest[0]!r} says nothing of castling: rights are K, Q, k, q, each at most once, or -; Chess960 is not played")
            if any(
                cells[7 if letter.isupper() else 0, col] != (1 if letter.isupper() else -1) * piece
                for letter in castling.replace("-", "")
                for col, piece in ((4, KING), (7 if letter.upper() == "K" else 0, ROOK))
            ):
                raise wrong(f"castling {castling} needs king and rook at home")
            if passed != "-" and re.fullmatch(r"[a-h][36]", passed) is None:
                raise wrong(f"{passed!r} is no square that a pawn has passed")
            rights = np.array([["Q" in castling, "K" in castling], ["q" in castling, "k" in castling]])[:: 1 if turn == 0 else -1]
            square = -1
            if passed != "-":
                row = int(passed[1]) - 1
                square = (ord(passed[0]) - 97) * 8 + (row if turn == 0 else 7 - row)
            x = start.inner["_x"]._replace(
                color=np.int32(turn), board=flat, castling_rights=rights, en_passant=np.int32(square),
                halfmove_count=counts[0], fullmove_count=counts[1],
                hash_history=np.zeros_like(start.inner["_x"].hash_history), board_history=np.zeros_like(start.inner["_x"].board_history),
            )  # fmt: skip
            x, ended, rewards = _chess_set_up(x)
            return _begun(start, turn, x.legal_action_mask, ended, rewards[0], {"_x": x})
        if castling != "-" or passed != "-":
            raise wrong("this game has neither castling nor taking in passing: both fields are -")
        return _gardner_set_up(game, start, np.int32(turn), flat, counts)


# Each in one program: operations on their own are compiled one by one, in every process anew.


@jax.jit
def _chess_set_up(x: Any) -> tuple[Any, Any, Any]:
    """(the position with its legal moves, whether it has ended, both sides' rewards)."""
    from pgx._src.games import chess as rules

    x = rules._update_history(x)
    x = games.chess_history(x._replace(legal_action_mask=rules._legal_action_mask(x)))
    return x, rules.Game().is_terminal(x), rules.Game().rewards(x)


@functools.partial(jax.jit, static_argnums=0)
def _gardner_set_up(game: Game, start: GameState, turn: Any, flat: Any, counts: tuple[Any, Any]) -> GameState:
    from pgx import gardner_chess as small

    full = game.pgx(start._replace(player=turn))
    zeros = {name: jnp.zeros_like(getattr(full, name)) for name in ("_hash_history", "_board_history")}
    full = full.replace(_board=flat, _turn=turn, _halfmove_count=counts[0], _fullmove_count=counts[1], **zeros)
    full = full.replace(_possible_piece_positions=small._possible_piece_positions(full), _zobrist_hash=small._zobrist_hash(full))
    full = cast(Any, small._update_history(full))
    full = full.replace(legal_action_mask=small._legal_action_mask(full))
    return game.from_pgx(small._check_termination(full))


def _shogi_state(game: Game, cells: np.ndarray, turn: int, rest: Sequence[str], wrong: Callable[[str], FlatironsError]) -> GameState:
    name, letters = game.name, _LETTERS[game.name]
    held, number = [*rest, *("-", "1")[len(rest) :]]
    held_kinds = 7 if name == "shogi" else 3
    hands = np.zeros((2, held_kinds), np.int64)
    if held != "-":
        if re.fullmatch(r"(\d*[A-Za-z])+", held) is None:
            raise wrong(f"{held!r} is no list of pieces in hand")
        for count, letter in re.findall(r"(\d*)([A-Za-z])", held):
            if letter.upper() not in letters[:held_kinds]:
                raise wrong(f"{letter!r} cannot be in hand")
            if len(count) > 2:
                raise wrong(f"{count} pieces {letter} in hand are more than the game has")
            hands[int(letter.islower()), letters.index(letter.upper())] += int(count or 1)
    start = beginning(game)
    began = board(game, start)
    for k in range(held_kinds):
        # A promoted piece is one of its unpromoted kind.
        same = [k + 1] + ([k + 9] if name == "shogi" and k < 6 else [5] if name == "animal_shogi" and k == 0 else [])
        most, now = int(np.isin(np.abs(began.cells), same).sum()), int(np.isin(np.abs(cells), same).sum() + hands[:, k].sum())
        if now > most:
            raise wrong(f"there are {now} pieces {letters[k]}, and {most} in the game")
    seen = cells if turn == 0 else -cells[::-1, ::-1]
    flat = seen[:, ::-1].T.reshape(-1)
    half = len(letters)
    flat = np.asarray(np.where(flat == 0, -1, np.where(flat > 0, flat - 1, -flat - 1 + half)), np.int32)
    hand = np.asarray(hands[:: 1 if turn == 0 else -1], np.int32)
    with jax.numpy_rank_promotion("allow"):
        if name == "shogi":
            x = _shogi_moves(start.inner["_x"]._replace(color=np.int32(turn), board=flat, hand=hand))
            legal = np.asarray(x.legal_action_mask)
            lost = not legal.any()
            inner: dict[str, Any] = {"_x": x}
        else:
            from pgx import animal_shogi as small

            inner, legal = _animal_set_up(game, start, np.int32(turn), flat, hand)
            # A lion on the row where he wins has won as he came there.
            lost = not np.asarray(legal).any() or bool(np.any(flat.reshape(3, 4)[:, -1] == small.KING + half))
    begun = _begun(start, turn, legal, lost, (-1.0 if turn == 0 else 1.0) if lost else 0.0, inner)
    plies = max(0, int(number) - 1)
    # A late number would have pgx end the game at once.
    return begun._replace(plies=np.int32(plies if plies < game.longest // 2 else 0))


@functools.partial(jax.jit, static_argnums=0)
def _animal_set_up(game: Game, start: GameState, turn: Any, flat: Any, hand: Any) -> tuple[dict[str, Any], Any]:
    """(the inner fields of the position, its legal actions)."""
    from pgx import animal_shogi as small

    full: Any = game.pgx(start).replace(
        _turn=turn, _board=flat, _hand=hand,
        _board_history=(-jnp.ones_like(start.inner["_board_history"])).at[0].set(flat),
        _hand_history=jnp.zeros_like(start.inner["_hand_history"]).at[0].set(hand.reshape(-1)),
    )  # fmt: skip
    full = full.replace(_hash_history=jnp.zeros_like(full._hash_history).at[0].set(games.animal_key(full)))
    return {key: getattr(full, key) for key in start.inner}, small._legal_action_mask(full)


@jax.jit
def _shogi_moves(x: Any) -> Any:
    from pgx._src.games import shogi as rules

    return games.shogi_drops(x._replace(legal_action_mask=rules._legal_action_mask(x)))


def _begun(start: GameState, turn: int, legal: Any, ended: Any, outcome: Any, inner: dict[str, Any]) -> GameState:
    legal, ended = np.asarray(legal), np.asarray(ended)
    return GameState(np.int32(turn), legal | ended, ended, np.float32(outcome), np.zeros_like(start.plies), inner)


# -------------------------------------------------------------------------------------------------------------- the table

_EXAMPLES = {
    "tic_tac_toe": ("b2", "a1"), "connect_four": ("4", "4"), "othello": ("f5", "d6"), "hex": ("f6", "swap"), "go_9x9": ("E5", "pass"),
    "go_19x19": ("Q16", "D4"), "chess": ("e2e4", "e7e5"), "gardner_chess": ("e2e3", "a4a3"), "shogi": ("7g7f", "3c3d"),
    "animal_shogi": ("2c2b", "3a3b"),
}  # fmt: skip


@functools.cache
def beginning(game: Game) -> GameState:
    """The position that a game begins with, on the host; set up in one program, for operations on their own are compiled one by one."""
    return jax.device_get(jax.jit(game.init)(jax.random.key(0)))


@functools.cache
def stepper(game: Game) -> Callable[[GameState, Any], tuple[GameState, Any, Any]]:
    """`step` of ONE position, compiled."""
    key = jax.random.key(0)
    return jax.jit(lambda state, action: game.step(key, state, action))


@functools.cache
def compile_rules(game: Game) -> None:
    """Compile what playing a first move, and of chess and shogi setting up a position, would otherwise compile in a player's time."""
    start = Table(game).state
    stepper(game)(start, np.argmax(start.legal))
    if game.name in (*CHESS, *SHOGI):
        from_position_text(game, start_text(game.name))
    if game.name in CHESS:
        jax.block_until_ready(_beneath(game)(start))


def line_words(game: Game, state: GameState, actions: Sequence[int], *, as_records: bool = False) -> list[str]:
    """The texts of moves that follow each other from ONE position on, as far as they can be played. as_records: SAN, in chess."""
    words, as_san = [], as_records and game.name in CHESS
    for number, action in enumerate(actions, 1):
        if state.terminated or not state.legal[action]:
            break
        now = state
        if as_san or number < len(actions):
            state = jax.device_get(stepper(game)(now, np.int32(action))[0])
        here = board(game, now)
        words.append(san(game, here, now.legal, int(action), state) if as_san else move_text(game, here, int(action)))
    return words


def going_on(game: Game, state: GameState) -> GameState:
    """ONE position; where its game was ended by a draw that a player may claim and need not (FIDE's laws of chess, 9.2 and 9.3: the third
    occurrence, fifty moves), or by a number of moves that is pgx's and no rule of the game, as one that goes on. What nobody has to claim
    (9.6: the fifth occurrence, 75 moves) stays an end."""
    if not state.terminated or game.name not in (*CHESS, *SHOGI) or state.outcome:
        return state
    if state.plies >= game.longest:
        return begun_again(game, state)
    if game.name in SHOGI:
        return state
    if game.name == "chess":
        quiet, hashes = state.inner["_x"].halfmove_count, state.inner["_x"].hash_history
    else:
        quiet, hashes = state.inner["_halfmove_count"], state.inner["_hash_history"]
    occurrences = int(np.sum(np.all(np.asarray(hashes) == np.asarray(hashes)[:1], axis=1)))
    if occurrences >= 5 or int(quiet) >= 150 or (occurrences < 3 and int(quiet) < 100):
        return state
    legal, bare = jax.device_get(_beneath(game)(state))
    # Stalemate and bare kings are no matter of claims.
    return state if bare or not legal.any() else state._replace(legal=legal, terminated=np.bool_(False))


def begun_again(game: Game, state: GameState) -> GameState:
    """ONE position of chess or shogi as one that nothing came before. `state` itself where there is no going on from it."""
    text = position_text(game, state)
    try:
        again = from_position_text(game, f"{text.rpartition(' ')[0]} 1")
    except FlatironsError:
        return state
    return state if again.terminated else again


@functools.cache
def _beneath(game: Game) -> Callable[[GameState], tuple[Any, Any]]:
    """(legal moves, whether nobody can checkmate any more) of ONE position of chess, whether or not its game has ended; compiled."""

    def look(state: GameState) -> tuple[Any, Any]:
        with jax.numpy_rank_promotion("allow"):
            if game.name == "chess":
                from pgx._src.games import chess as rules

                x = state.inner["_x"]
                return x.legal_action_mask, rules.has_insufficient_pieces(x)
            from pgx import gardner_chess as small

            full = cast(Any, game.pgx(state))
            return small._legal_action_mask(full), small.has_insufficient_pieces(full)

    return jax.jit(look)


@dataclasses.dataclass
class Table:
    """One game in progress on the host, with all its positions: moves in, undo, texts out."""

    game: Game
    start: str = ""
    """FEN or SFEN where it does not begin at the beginning."""
    states: list[GameState] = dataclasses.field(default_factory=list)
    actions: list[int] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    """The moves as text."""

    def __post_init__(self) -> None:
        """Put up the board. Raises FlatironsError where `start` is no position."""
        if not self.states:
            self.states = [from_position_text(self.game, self.start) if self.start else beginning(self.game)]
        self.start = "" if self.start == start_text(self.game.name) else self.start

    @property
    def state(self) -> GameState:
        """The position now."""
        return self.states[-1]

    @property
    def board(self) -> Board:
        """Its board."""
        return board(self.game, self.state)

    @property
    def turn(self) -> int:
        """Who is to move, 0 = who moves first in the game (white in chess, whoever began)."""
        return int(self.state.player)

    @property
    def over(self) -> bool:
        """Whether the game has ended."""
        return bool(self.state.terminated)

    @property
    def outcome(self) -> float:
        """The first player's result, 0 while the game goes on."""
        return float(self.state.outcome)

    @property
    def legal(self) -> np.ndarray:
        """Mask of the legal actions, bool `[A]`; none once the game has ended."""
        return np.zeros(self.game.num_actions, bool) if self.over else np.asarray(self.state.legal)

    @property
    def live(self) -> GameState:
        """The position to play on from: `state`, or, where a draw ended the game that nobody need claim, the same as one that goes on."""
        return going_on(self.game, self.state)

    def play(self, move: int | str) -> int:
        """Play an action, or a move by its text; after a draw that nobody need claim too, for people and their boards play on there.
        Raises FlatironsError where it is not legal: the board is unchanged."""
        begun = self.live
        if begun.terminated:
            raise FlatironsError(f"{move!r} cannot be played: the game has ended")
        now, legal = self.board, np.asarray(begun.legal)
        if isinstance(move, str):
            move = parse_move(self.game, now, legal, move)
        elif not (0 <= move < self.game.num_actions and legal[move]):
            raise FlatironsError(f"action {move} is not legal here in {self.game.name}; the board is unchanged")
        word = move_text(self.game, now, int(move))
        state, _, _ = stepper(self.game)(begun, np.int32(move))
        self.states.append(jax.device_get(state))
        self.actions.append(int(move))
        self.words.append(word)
        return int(move)

    def undo(self) -> None:
        """Take the last move back. Raises FlatironsError where there is none."""
        if not self.actions:
            raise FlatironsError("there is no move to take back")
        for history in (self.states, self.actions, self.words):
            history.pop()

    def text(self) -> str:
        """The position as text that `table` reads: FEN or SFEN where the game has them, else its moves."""
        if self.game.name in _LETTERS:
            return position_text(self.game, self.state)
        return " ".join(self.words)


def table(game: Game, text: str = "") -> Table:
    """Read a position: FEN or SFEN, moves, or a start and moves (see the top of this file). Raises FlatironsError that names what is not
    a position, or the move that is not legal."""
    words = text.split()
    if words[:1] == ["position"]:
        words = words[1:]
    before, after = (words[: words.index("moves")], words[words.index("moves") + 1 :]) if "moves" in words else (words, [])
    if before[:1] == ["startpos"]:
        if before[1:]:
            raise FlatironsError(f"{' '.join(before[1:])!r} after startpos is not understood; write: startpos moves …")
        before = []
    elif before[:1] in (["fen"], ["sfen"]):
        before = before[1:]
    start = ""
    if before and game.name in _LETTERS and "/" in before[0]:
        start = " ".join(before)
    elif before:
        after = [*before, *after]
    made = Table(game, start)
    if len(after) == 1 and after[0] not in ("pass", "swap"):
        # 4453 and f5d6c3: moves without spaces.
        cut = {"connect_four": r"[1-7]", "othello": r"[a-h][1-8]|pass", "tic_tac_toe": r"[a-c][1-3]"}.get(game.name)
        if cut is not None and re.fullmatch(f"(?:{cut})+", after[0], re.IGNORECASE):
            after = re.findall(cut, after[0], re.IGNORECASE)
    for number, word in enumerate(after, 1):
        try:
            made.play(word)
        except FlatironsError as error:
            raise FlatironsError(f"move {number} of the position: {error}") from None
    return made


def find(name: str) -> Game:
    """The game by its name, with or without `pgx:`. Raises FlatironsError for an unknown one."""
    return games.make(name.removeprefix("pgx:"))
