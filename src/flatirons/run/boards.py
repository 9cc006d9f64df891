"""What a position of a board game looks like: cells, hands, legal moves as squares, the ending in words. For drawing, in NumPy and Python.

Everything is told as the first player sees it, row by row from the top; cells are numbered so. Positions inside pgx are turned to the
player to move, and actions with them; this file turns them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Look:
    """How a game is drawn: `kind` names the drawing in the page, `sides` the two players, first player first."""

    title: str
    kind: str
    rows: int
    cols: int
    sides: tuple[str, str]


LOOKS: Mapping[str, Look] = {
    "tic_tac_toe": Look("Tic-tac-toe", "marks", 3, 3, ("Cross", "Nought")),
    "connect_four": Look("Connect four", "drop", 6, 7, ("Red", "Yellow")),
    "othello": Look("Othello", "discs", 8, 8, ("Black", "White")),
    "hex": Look("Hex", "hex", 11, 11, ("Red", "Blue")),
    "go_9x9": Look("Go 9×9", "go", 9, 9, ("Black", "White")),
    "go_19x19": Look("Go 19×19", "go", 19, 19, ("Black", "White")),
    "gardner_chess": Look("Gardner chess", "chess", 5, 5, ("White", "Black")),
    "chess": Look("Chess", "chess", 8, 8, ("White", "Black")),
    "animal_shogi": Look("Animal shogi", "animals", 4, 3, ("First", "Second")),
    "shogi": Look("Shogi", "shogi", 9, 9, ("Sente", "Gote")),
}


class Move(NamedTuple):
    """A legal move. `start` is the cell it leaves, or None; `drop` the piece put down from the hand; `promotes` the piece it becomes.
    `to` is None for a pass and a swap of sides."""

    action: int
    to: int | None
    start: int | None = None
    drop: str | None = None
    promotes: str | None = None
    text: str = ""


class Position(NamedTuple):
    """`cells` hold "" or a piece: "0" and "1" for stones of the players, letters for pieces (capitals are the first player's)."""

    cells: tuple[str, ...]
    player: int
    hands: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})


# ------------------------------------------------------------------------------------------------------------- the board

_CHESS = "PNBRQK"
_SHOGI = ("P", "L", "N", "S", "B", "R", "G", "K", "+P", "+L", "+N", "+S", "+B", "+R")
_ANIMALS = "CEGLH"
KOMI = 7.5
"""What pgx gives White in Go."""


def position(game: str, state: Any) -> Position:
    """The position in the state of one game (`envs.games.GameState`, NumPy leaves, no batch axis)."""
    look, turn = LOOKS[game], int(state.player)
    if look.kind in ("marks", "drop"):
        return Position(_stones(state.inner["_x"].board, 0, 1), turn)
    if look.kind == "go":
        return Position(_stones(np.sign(state.inner["_x"].board), 1, -1), turn)
    if look.kind in ("discs", "hex"):  # positive is whose turn it is
        mine = -1 if turn else 1
        return Position(_stones(np.sign(state.inner["_x"].board), mine, -mine), turn)
    cells = [""] * (look.rows * look.cols)
    if look.kind == "chess":
        board = state.inner["_x"].board if game == "chess" else state.inner["_board"]
        for square, piece in enumerate(np.asarray(board).tolist()):
            if piece:
                letter = _CHESS[abs(piece) - 1]
                cells[_chess_cell(square, look.rows, turn)] = letter if (piece > 0) == (turn == 0) else letter.lower()
        return Position(tuple(cells), turn)
    if look.kind == "animals":
        board, hand, letters = state.inner["_board"], state.inner["_hand"], tuple(_ANIMALS)
    else:
        board, hand, letters = state.inner["_x"].board, state.inner["_x"].hand, _SHOGI
    for square, piece in enumerate(np.asarray(board).tolist()):
        if piece >= 0:
            letter = letters[piece % len(letters)]
            cells[_shogi_cell(square, look, turn)] = letter if (piece < len(letters)) == (turn == 0) else letter.lower()
    hands = [{letters[i]: count for i, count in enumerate(side) if count} for side in np.asarray(hand).tolist()]
    return Position(tuple(cells), turn, (hands[turn], hands[1 - turn]))


def _stones(board: Any, first: int, second: int) -> tuple[str, ...]:
    return tuple({first: "0", second: "1"}.get(value, "") for value in np.asarray(board).tolist())


def _chess_cell(square: int, size: int, turn: int) -> int:
    file, rank = divmod(square, size)
    return (rank if turn else size - 1 - rank) * size + file


def _shogi_cell(square: int, look: Look, turn: int) -> int:
    """Squares run down the columns, from the right; the second player sees the board turned round."""
    square = look.rows * look.cols - 1 - square if turn else square
    column, row = divmod(square, look.rows)
    return row * look.cols + look.cols - 1 - column


# ------------------------------------------------------------------------------------------------------------- the moves


def moves(game: str, state: Any) -> list[Move]:
    """The legal moves, with their texts; none once the game is over."""
    if bool(state.terminated):
        return []
    look, now = LOOKS[game], position(game, state)
    actions = np.flatnonzero(state.legal).tolist()
    if look.kind in ("chess", "shogi", "animals"):
        return [_piece_move(game, look, state, now, action) for action in actions]
    return [_stone_move(game, look, now, action) for action in actions]


def _stone_move(game: str, look: Look, now: Position, action: int) -> Move:
    if game == "connect_four":
        rows = [row for row in range(look.rows) if not now.cells[row * look.cols + action]]
        return Move(action, rows[-1] * look.cols + action, text=str(action + 1))
    if action == len(now.cells):
        return Move(action, None, text="swap" if game == "hex" else "pass")
    return Move(action, action, text=name(look, action))


def _piece_move(game: str, look: Look, state: Any, now: Position, action: int) -> Move:
    if look.kind == "chess":
        start, plane = divmod(action, 73 if game == "chess" else 49)
        rise, run = _chess_step(plane, look.rows)
        file, rank = divmod(start, look.rows)
        a, b = (_chess_cell(square, look.rows, now.player) for square in (start, (file + run) * look.rows + rank + rise))
        piece, promotes = now.cells[a].upper(), None
        if piece == "P" and b // look.rows in (0, look.rows - 1):
            promotes = "Q" if plane >= 9 else "RBN"[plane // 3]
        return Move(action, b, a, promotes=promotes, text=name(look, a) + name(look, b) + (promotes or "").lower())
    if look.kind == "animals":
        direction, square = divmod(action, look.rows * look.cols)
        if direction >= 8:
            to, letter = _shogi_cell(square, look, now.player), _ANIMALS[direction - 8]
            return Move(action, to, drop=letter, text=f"{letter}*{name(look, to)}")
        across, down = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))[direction]
        a = _shogi_cell(square, look, now.player)
        b = _shogi_cell(square + across * look.rows + down, look, now.player)
        return Move(action, b, a, text=name(look, a) + name(look, b))
    direction, square = divmod(action, 81)
    to = _shogi_cell(square, look, now.player)
    if direction >= 20:
        letter = _SHOGI[direction - 20]
        return Move(action, to, drop=letter, text=f"{letter}*{name(look, to)}")
    # A move is known by where it ends and whence it comes: the first own piece that way is the one that moves.
    across, down = ((0, 1), (-1, 1), (1, 1), (-1, 0), (1, 0), (0, -1), (-1, -1), (1, -1), (-1, 2), (1, 2))[direction % 10]
    board = np.asarray(state.inner["_x"].board)
    column, row = square // 9 + across, square % 9 + down
    while not 0 <= board[column * 9 + row] < 14:
        column, row = column + across, row + down
    a = _shogi_cell(column * 9 + row, look, now.player)
    promotes = "+" + now.cells[a].upper() if direction >= 10 else None
    return Move(action, to, a, promotes=promotes, text=name(look, a) + name(look, to) + ("+" if promotes else ""))


def _chess_step(plane: int, size: int) -> tuple[int, int]:
    """(ranks, files) of an action's plane, as the player to move sees them: nine underpromotions, then rays, then knights."""
    if plane < 9:
        return 1, (0, 1, -1)[plane % 3]
    far, plane = size - 1, plane - 9
    back, forth = list(range(-far, 0)), list(range(1, far + 1))
    if plane < 8 * far:
        ray, step = divmod(plane, 2 * far)
        line = (back + forth)[step]
        if ray == 3:  # falling, from the upper left
            line = (forth[::-1] + back[::-1])[step]
            return line, (back + forth)[step]
        return ((line, 0), (0, line), (line, line))[ray]
    return ((-1, -2), (1, -2), (-2, -1), (2, -1), (-1, 2), (1, 2), (-2, 1), (2, 1))[plane - 8 * far]


def name(look: Look, cell: int) -> str:
    """A cell's name as players of the game write it."""
    row, column = divmod(cell, look.cols)
    if look.kind == "shogi":
        return f"{look.cols - column}{'abcdefghi'[row]}"
    if look.kind == "go":
        return f"{'ABCDEFGHJKLMNOPQRST'[column]}{look.rows - row}"
    upwards = look.kind in ("chess", "animals", "marks")
    return f"{'abcdefghijk'[column]}{look.rows - row if upwards else row + 1}"


# ----------------------------------------------------------------------------------------------------- how pieces move

_ORTHOGONAL = ((-1, 0), (0, -1), (0, 1), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_ALL = _ORTHOGONAL + _DIAGONAL
_GOLD = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, 0))
_KNIGHT = tuple((a * i, b * j) for a in (-1, 1) for b in (-1, 1) for i, j in ((1, 2), (2, 1)))

_Reach = Mapping[str, tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]]
REACH: Mapping[str, _Reach] = {
    "chess": {
        "P": (((-1, -1), (-1, 1)), ()),
        "N": (_KNIGHT, ()),
        "B": ((), _DIAGONAL),
        "R": ((), _ORTHOGONAL),
        "Q": ((), _ALL),
        "K": (_ALL, ()),
    },
    "shogi": {
        "P": (((-1, 0),), ()),
        "L": ((), ((-1, 0),)),
        "N": (((-2, -1), (-2, 1)), ()),
        "S": (((-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 1)), ()),
        "G": (_GOLD, ()),
        "K": (_ALL, ()),
        "B": ((), _DIAGONAL),
        "R": ((), _ORTHOGONAL),
        **{piece: (_GOLD, ()) for piece in ("+P", "+L", "+N", "+S")},
        "+B": (_ORTHOGONAL, _DIAGONAL),
        "+R": (_DIAGONAL, _ORTHOGONAL),
    },
    "animals": {
        "C": (((-1, 0),), ()),
        "E": (_DIAGONAL, ()),
        "G": (_ORTHOGONAL, ()),
        "L": (_ALL, ()),
        "H": (_GOLD, ()),
    },
}
"""By kind of board and piece: (single steps, directions without an end) in which it takes, as (down, right) of the first player."""


def check(look: Look, now: Position) -> int | None:
    """The cell of the king of the player to move where it is attacked, else None."""
    if look.kind not in REACH:
        return None
    king = "L" if look.kind == "animals" else "K"
    king = king.lower() if now.player else king
    if king not in now.cells:
        return None
    place = now.cells.index(king)
    for cell, piece in enumerate(now.cells):
        if piece and piece.islower() != bool(now.player) and place in _reached(look, now, cell):
            return place
    return None


def _reached(look: Look, now: Position, cell: int) -> Iterator[int]:
    piece = now.cells[cell]
    steps, rays = REACH[look.kind][piece.upper()]
    sign = -1 if piece.islower() else 1
    row, column = divmod(cell, look.cols)
    for directions, far in ((steps, 1), (rays, max(look.rows, look.cols))):
        for down, right in directions:
            for k in range(1, far + 1):
                r, c = row + sign * k * down, column + sign * k * right
                if not (0 <= r < look.rows and 0 <= c < look.cols):
                    break
                yield r * look.cols + c
                if now.cells[r * look.cols + c]:
                    break


# ------------------------------------------------------------------------------------------------------------ the ending


def line(game: str, now: Position) -> tuple[int, ...]:
    """The cells that won: a row of three or four, a path from edge to edge; none elsewhere."""
    look = LOOKS[game]
    if game == "hex":
        return _hex_path(look, now, "0") or _hex_path(look, now, "1")
    if game not in ("tic_tac_toe", "connect_four"):
        return ()
    length = 3 if game == "tic_tac_toe" else 4
    found: set[int] = set()
    for row in range(look.rows):
        for column in range(look.cols):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                ends = row + (length - 1) * down, column + (length - 1) * right
                if not (0 <= ends[0] < look.rows and 0 <= ends[1] < look.cols):
                    continue
                cells = [(row + k * down) * look.cols + column + k * right for k in range(length)]
                if now.cells[cells[0]] and len({now.cells[cell] for cell in cells}) == 1:
                    found.update(cells)
    return tuple(sorted(found))


def _hex_path(look: Look, now: Position, stone: str) -> tuple[int, ...]:
    """A shortest chain of the first player from top to bottom, of the second from left to right."""
    size = look.rows
    along = (lambda cell: cell // size) if stone == "0" else (lambda cell: cell % size)
    came: dict[int, int | None] = {cell: None for cell in range(size**2) if now.cells[cell] == stone and along(cell) == 0}
    queue = list(came)
    for cell in queue:
        if along(cell) == size - 1:
            path: list[int] = []
            step: int | None = cell
            while step is not None:
                path.append(step)
                step = came[step]
            return tuple(path)
        row, column = divmod(cell, size)
        for down, right in ((0, -1), (0, 1), (-1, 0), (1, 0), (1, -1), (-1, 1)):
            r, c = row + down, column + right
            if 0 <= r < size and 0 <= c < size and now.cells[r * size + c] == stone and r * size + c not in came:
                came[r * size + c] = cell
                queue.append(r * size + c)
    return ()


def area(look: Look, now: Position) -> tuple[int, int]:
    """Go's points on the board, stones and empty places that reach one colour alone, of Black and White."""
    points = [sum(cell == side for cell in now.cells) for side in "01"]
    seen: set[int] = set()
    for start, stone in enumerate(now.cells):
        if stone or start in seen:
            continue
        region, borders, queue = {start}, set(), [start]
        for cell in queue:
            row, column = divmod(cell, look.cols)
            for down, right in _ORTHOGONAL:
                r, c = row + down, column + right
                if 0 <= r < look.rows and 0 <= c < look.cols:
                    other = r * look.cols + c
                    if now.cells[other]:
                        borders.add(now.cells[other])
                    elif other not in region:
                        region.add(other)
                        queue.append(other)
        seen |= region
        if len(borders) == 1:
            points[int(borders.pop())] += len(region)
    return points[0], points[1]


def score(game: str, state: Any, now: Position) -> tuple[str, str]:
    """What is counted for each player while the game goes on: discs in Othello, prisoners in Go; else nothing."""
    if game == "othello":
        return str(now.cells.count("0")), str(now.cells.count("1"))
    if game.startswith("go"):
        taken = np.asarray(state.inner["_x"].num_captured).tolist()
        return tuple(f"{count} taken" if count else "" for count in taken)  # type: ignore[return-value]
    return "", ""


def ending(game: str, state: Any) -> str:
    """Why a game that is over ended, in words."""
    look, now, outcome = LOOKS[game], position(game, state), float(state.outcome)
    if game == "tic_tac_toe":
        return "three in a row" if outcome else "the board is full"
    if game == "connect_four":
        return "four in a row" if outcome else "the board is full"
    if game == "hex":
        return "the edges are joined"
    if game == "othello":
        discs = sorted((now.cells.count("0"), now.cells.count("1")), reverse=True)
        return f"{discs[0]} discs to {discs[1]}"
    if game.startswith("go"):
        if bool(state.inner["_x"].is_psk):
            return "the position was repeated"
        black, white = area(look, now)
        count = f"{max(black, white + KOMI):g} points to {min(black, white + KOMI):g}"
        return count if int(state.inner["_x"].consecutive_pass_count) >= 2 else f"the game is too long; {count}"
    if look.kind == "chess":
        return _chess_ending(game, state, now, outcome)
    if game == "animal_shogi":
        if not outcome:
            return "too many moves" if int(state.plies) >= 256 else "the position was repeated three times"
        return "the lion reached the far side" if "L" in now.cells[:3] or "l" in now.cells[-3:] else "the lion is caught"
    return "checkmate" if outcome else "too many moves"


def _chess_ending(game: str, state: Any, now: Position, outcome: float) -> str:
    if outcome:
        return "checkmate"
    if game == "chess":
        quiet, hashes, limit = state.inner["_x"].halfmove_count, state.inner["_x"].hash_history, 512
    else:
        quiet, hashes, limit = state.inner["_halfmove_count"], state.inner["_hash_history"], 256
    pieces = sorted(piece.upper() for piece in now.cells if piece)
    rows = np.asarray(hashes)
    if int(quiet) >= 100:
        return "fifty moves without a capture or a pawn's move"
    if len(pieces) <= 3 and not {"P", "R", "Q"} & set(pieces):
        return "nobody can checkmate"
    if (rows == rows[0][None]).all(axis=1).sum() >= 3:
        return "the position was repeated three times"
    if int(state.plies) >= limit:
        return "too many moves"
    return "nobody can checkmate" if set(pieces) == {"B", "K"} else "stalemate"


def pieces(look: Look) -> dict[str, list[list[int]]]:
    """How each piece moves, for drawing it: [down, right, whether without an end] of the first player."""
    return {
        piece: [[down, right, 0] for down, right in steps] + [[down, right, 1] for down, right in rays]
        for piece, (steps, rays) in REACH.get(look.kind, {}).items()
    }
