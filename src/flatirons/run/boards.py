"""What a position of a board game looks like: cells, hands, legal moves as squares, the ending in words. For drawing.

Everything is told as the first player sees it; cells are numbered row by row from the top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flatirons.envs import notation
from flatirons.envs.games import Game, GameState


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
    "animal_shogi": Look("Animal shogi", "animals", 4, 3, ("Forest", "Sky")),
    "shogi": Look("Shogi", "shogi", 9, 9, ("Sente", "Gote")),
}
KOMI = 7.5
"""What pgx gives White in Go."""


class Move(NamedTuple):
    """A legal move. `start` is the cell it leaves, or None; `drop` the piece put down from the hand; `promotes` the piece it becomes.
    `to` is None for a pass and a swap of sides. `text` is the game's own notation."""

    action: int
    to: int | None
    start: int | None = None
    drop: str | None = None
    promotes: str | None = None
    text: str = ""


class Position(NamedTuple):
    """`cells` hold "" or a piece: "0" and "1" for stones of the players, letters for pieces (capitals are the first player's). `hands`
    count the pieces in hand of the first and the second player."""

    cells: tuple[str, ...]
    player: int
    hands: tuple[Mapping[str, int], Mapping[str, int]]


# ------------------------------------------------------------------------------------------------- positions and moves


def position(game: Game, state: GameState) -> Position:
    """The position in ONE state (NumPy leaves, no batch axis)."""
    board = notation.board(game, state)
    letters = notation.kinds(game.name)

    def piece(value: int) -> str:
        if not value:
            return ""
        if not letters:
            return "0" if value > 0 else "1"
        return letters[value - 1] if value > 0 else letters[-value - 1].lower()

    first, second = ({letters[i]: count for i, count in enumerate(hand) if count} for hand in board.hands.tolist())
    return Position(tuple(map(piece, board.cells.reshape(-1).tolist())), board.turn, (first, second))


def moves(game: Game, state: GameState) -> list[Move]:
    """The legal moves, with their texts; none once the game is over."""
    if bool(state.terminated):
        return []
    board = notation.board(game, state)
    found = [_move(game, board, action) for action in np.flatnonzero(state.legal).tolist()]
    if LOOKS[game.name].kind == "chess":
        return [move._replace(text=notation.san(game, board, state.legal, move.action)) for move in found]
    return found


def _move(game: Game, board: notation.Board, action: int) -> Move:
    look, text = LOOKS[game.name], notation.move_text(game, board, action)
    if look.kind == "drop":
        row = int((board.cells[:, action] == 0).sum()) - 1
        return Move(action, row * look.cols + action, text=text)
    letters = notation.kinds(game.name)
    if not letters:
        return Move(action, action if action < look.rows * look.cols else None, text=text)
    move = notation.decode(game, board, action)
    to = move.target[0] * look.cols + move.target[1]
    if move.origin is None:
        return Move(action, to, drop=letters[move.piece - 1], text=text)
    promotes = letters[move.promotion - 1] if move.promotion else None
    return Move(action, to, move.origin[0] * look.cols + move.origin[1], promotes=promotes, text=text)


def record_text(game: Game, before: GameState, move: Move, after: GameState) -> str:
    """A move as records write it: in chess, check and mate are marked."""
    if LOOKS[game.name].kind != "chess" or move.to is None:
        return move.text
    return notation.san(game, notation.board(game, before), before.legal, move.action, after)


def names(game: Game) -> list[str]:
    """What the cells are called, in the game's own notation."""
    look = LOOKS[game.name]
    rows, cols = range(look.rows), range(look.cols)
    if look.kind == "go":
        return [f"{'ABCDEFGHJKLMNOPQRST'[col]}{look.rows - row}" for row in rows for col in cols]
    if look.kind in ("shogi", "animals"):
        return [f"{look.cols - col}{chr(97 + row)}" for row in rows for col in cols]
    return [f"{chr(97 + col)}{look.rows - row if look.kind == 'chess' else row + 1}" for row in rows for col in cols]


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
        "+C": (_GOLD, ()),
    },
}
"""By kind of board and piece: (single steps, directions without an end) in which it takes, as (down, right) of the first player."""


def check(game: Game, now: Position) -> int | None:
    """The cell of the king of the player to move where it is attacked, else None."""
    look = LOOKS[game.name]
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


def line(game: Game, now: Position) -> tuple[int, ...]:
    """The cells that won: a row of three or four, a path from edge to edge; none elsewhere."""
    look = LOOKS[game.name]
    if look.kind == "hex":
        return _hex_path(look, now, "0") or _hex_path(look, now, "1")
    if look.kind not in ("marks", "drop"):
        return ()
    length = 3 if look.kind == "marks" else 4
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


def score(game: Game, state: GameState, now: Position) -> tuple[str, str]:
    """What is counted for each player while the game goes on: discs in Othello, prisoners in Go; else nothing."""
    kind = LOOKS[game.name].kind
    if kind == "discs":
        return str(now.cells.count("0")), str(now.cells.count("1"))
    if kind == "go":
        black, white = (f"{count} taken" if count else "" for count in np.asarray(state.inner["_x"].num_captured).tolist())
        return black, white
    return "", ""


def ending(game: Game, state: GameState) -> str:
    """Why a game that is over ended, in words."""
    look, now, outcome = LOOKS[game.name], position(game, state), float(state.outcome)
    match look.kind:
        case "marks" | "drop":
            return ("three in a row" if look.kind == "marks" else "four in a row") if outcome else "the board is full"
        case "hex":
            return "the edges are joined"
        case "discs":
            discs = sorted((now.cells.count("0"), now.cells.count("1")), reverse=True)
            return f"{discs[0]} discs to {discs[1]}"
        case "go":
            if bool(state.inner["_x"].is_psk):
                return "the whole board was repeated, which loses"
            black, white = area(look, now)
            count = f"{max(black, white + KOMI):g} points to {min(black, white + KOMI):g}"
            return count if int(state.inner["_x"].consecutive_pass_count) >= 2 else f"the game is too long; {count}"
        case "chess":
            return "checkmate" if outcome else _chess_draw(game, state, now)
        case "animals":
            if not outcome:
                return "too many moves" if int(state.plies) >= game.longest else "the position was repeated three times"
            return "the lion reached the far side" if "L" in now.cells[:3] or "l" in now.cells[-3:] else "the lion is caught"
    return "checkmate" if outcome else "too many moves"


def _chess_draw(game: Game, state: GameState, now: Position) -> str:
    if game.name == "chess":
        quiet, hashes = state.inner["_x"].halfmove_count, state.inner["_x"].hash_history
    else:
        quiet, hashes = state.inner["_halfmove_count"], state.inner["_hash_history"]
    rows = np.asarray(hashes)
    if int(quiet) >= 100:
        return "fifty moves without a capture or a pawn's move"
    if (rows == rows[0][None]).all(axis=1).sum() >= 3:
        return "the position was repeated three times"
    if int(state.plies) >= game.longest:
        return "too many moves"
    left = sorted(piece.upper() for piece in now.cells if piece)
    bare = len(left) <= 3 and not {"P", "R", "Q"} & set(left)
    return "nobody can checkmate any more" if bare or set(left) == {"B", "K"} else "stalemate"


def pieces(game: Game) -> dict[str, list[list[int]]]:
    """How each piece moves, for drawing it: [down, right, whether without an end] of the first player."""
    return {
        piece: [[down, right, 0] for down, right in steps] + [[down, right, 1] for down, right in rays]
        for piece, (steps, rays) in REACH.get(LOOKS[game.name].kind, {}).items()
    }
