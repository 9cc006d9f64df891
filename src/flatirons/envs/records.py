"""Records of games: SGF for games of stones, PGN for chess and shogi (shogi's moves in USI, under a Variant tag).

Reading replays every move by the rules, so that a record which is not of the game is refused with the move at fault.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flatirons.envs import notation
from flatirons.envs.games import Game
from flatirons.types import FlatironsError

# FF[4]'s numbers; it has none for connect four and tic-tac-toe.
_GM = {"go_9x9": 1, "go_19x19": 1, "othello": 2, "hex": 11}
KOMI = 7.5
_RESULTS = {"1-0": 1.0, "0-1": -1.0, "1/2-1/2": 0.0, "1/2": 0.0, "*": None}
# What stands behind a move for how good it is and who is better: Informator's signs, and N and D for a novelty and a diagram. -- is none
# of them: so some write a move that was not made.
_GLYPH = re.compile(r"(?!--$)[!?+\-=/−∞±∓⩲⩱□]+|N|TN|D")
_VARIANTS = {"gardner_chess": "Gardner", "shogi": "Shogi", "animal_shogi": "Animal shogi"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One game. result: 1, 0 or -1 for who moves first, None where it is not known or the game is void. start: FEN or SFEN where it does
    not begin at the beginning. facts: more of it by name (event, date, ...)."""

    game: str
    actions: tuple[int, ...]
    result: float | None = None
    players: tuple[str, str] = ("?", "?")
    start: str = ""
    facts: tuple[tuple[str, str], ...] = ()


def suffix(name: str) -> str:
    """`.pgn` or `.sgf`."""
    return ".pgn" if name in (*notation.CHESS, *notation.SHOGI) else ".sgf"


def write(game: Game, record: Record) -> str:
    """The record as text. Raises FlatironsError where its moves are not legal."""
    return _write_pgn(game, record) if suffix(game.name) == ".pgn" else _write_sgf(game, record)


def read(game: Game, text: str, name: str = "the record") -> list[Record]:
    """All games in a text, SGF or PGN as the game has it. Only the main line is read.

    Raises FlatironsError, with the number of the game and of the move, where it is not a record of this game.
    """
    parse = _read_pgn if suffix(game.name) == ".pgn" else _read_sgf
    found = list(parse(game, text.lstrip("\ufeff"), name))
    if not found:
        raise FlatironsError(f"{name} holds no game of {game.name}: {'PGN' if suffix(game.name) == '.pgn' else 'SGF'} is expected")
    return found


def load(game: Game, paths: Iterable[Path]) -> list[Record]:
    """The games of some files. Raises FlatironsError as `read` does, and where a file cannot be read."""
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise FlatironsError(f"{path} cannot be read ({error.strerror})") from None
        found += read(game, text, str(path))
    return found


def _replayed(game: Game, start: str, words: Sequence[str], name: str, number: int) -> notation.Table:
    where = f"{name}, game {number}"
    try:
        table = notation.Table(game, start)
    except FlatironsError as error:
        raise FlatironsError(f"{where}: {error}") from None
    for ply, word in enumerate(words, 1):
        try:
            table.play(word)
        except FlatironsError as error:
            raise FlatironsError(f"{where}, move {ply}: {error}") from None
    return table


# ------------------------------------------------------------------------------------------------------------------- SGF


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("]", "\\]")


def _write_sgf(game: Game, record: Record) -> str:
    name, first = game.name, "B" if notation.colours(game.name)[0] == "black" else "W"
    second = "W" if first == "B" else "B"
    table = notation.Table(game, record.start)
    nodes = []
    for ply, action in enumerate(record.actions):
        who = first if table.turn == 0 else second
        now = table.board
        table.play(action)
        nodes.append(f";{who}[{_sgf_move(game, now, action)}]" + ("\n" if ply % 10 == 9 else ""))
    result = {1.0: f"{first}+", -1.0: f"{second}+", 0.0: "0", None: "Void"}[record.result]
    if record.result and name in notation.GO and table.over and table.board.cells.any():
        result += f"{abs(area(table.board.cells)):g}" if not bool(table.state.inner["_x"].is_psk) else "F"
    head = {
        "FF": "4", "CA": "UTF-8", "AP": "Flatirons", **({"GM": str(_GM[name])} if name in _GM else {}), "GN": name,
        "SZ": str(game.board.rows) if game.board.rows == game.board.cols else f"{game.board.cols}:{game.board.rows}",
        **({"KM": f"{KOMI:g}", "RU": "Chinese"} if name in notation.GO else {}),
        f"P{first}": record.players[0], f"P{second}": record.players[1], "RE": result, **dict(record.facts),
    }  # fmt: skip
    return "(;" + "".join(f"{key}[{_escaped(value)}]" for key, value in head.items()) + "\n" + "".join(nodes).rstrip() + ")\n"


def area(cells: np.ndarray, komi: float = KOMI) -> float:
    """Black's area less white's and the komi: stones, and empty points that reach one colour only."""
    rows, cols = cells.shape
    total, seen = float(np.sum(np.sign(cells))), cells != 0
    for start in zip(*np.nonzero(cells == 0)):
        if seen[start]:
            continue
        stack, points, borders = [start], 0, set()
        seen[start] = True
        while stack:
            row, col = stack.pop()
            points += 1
            for r, c in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
                if not (0 <= r < rows and 0 <= c < cols):
                    continue
                if cells[r, c]:
                    borders.add(int(np.sign(cells[r, c])))
                elif not seen[r, c]:
                    seen[r, c] = True
                    stack.append((r, c))
        if len(borders) == 1:
            total += points * borders.pop()
    return total - komi


def _sgf_move(game: Game, now: notation.Board, action: int) -> str:
    if game.name in notation.GO:
        rows, cols = game.board.rows, game.board.cols
        return "" if action == rows * cols else chr(97 + action % cols) + chr(97 + action // cols)
    text = notation.move_text(game, now, action)
    return "swap-pieces" if text == "swap" else text


def _read_sgf(game: Game, text: str, name: str) -> Iterator[Record]:
    for number, nodes in enumerate(_sgf_games(text, name), 1):
        where = f"{name}, game {number}"
        head = {key: values[0] for node in nodes for key, values in node.items() if key not in ("B", "W")}
        if "GM" in head and head["GM"].strip() != str(_GM.get(game.name, "")):
            raise FlatironsError(
                f"{where} is no game of {game.name}: its GM is {head['GM']}, {game.name}'s is {_GM.get(game.name, 'none')}"
            )
        named = head.get("GN", game.name).strip().replace("-", "_")
        if "GM" not in head and named in notation.games.GAMES and named != game.name:
            raise FlatironsError(f"{where} is a game of {head['GN']}, not of {game.name}")
        size = head.get("SZ", "19" if game.name in notation.GO else "").split(":")[0]
        if size and size != str(game.board.cols):
            raise FlatironsError(f"{where} is played on a board of {head.get('SZ', '19')}, and {game.name} is on {game.board.cols}")
        if any(key in node for node in nodes for key in ("AB", "AW", "AE")):
            raise FlatironsError(f"{where} begins with stones on the board (handicap or set-up); only games from the start can be read")
        first = "B" if notation.colours(game.name)[0] == "black" else "W"
        table, given_up = notation.Table(game), None
        ply = 0
        for node in nodes:
            for key in ("B", "W"):
                if key not in node or given_up is not None:
                    continue
                ply += 1
                if game.name == "hex" and node[key][0].strip().lower() in ("resign", "forfeit"):
                    given_up = -1.0 if key == first else 1.0
                    continue
                word = _sgf_word(game, node[key][0])
                # By some rules it takes a third pass to end a game.
                if table.over and word == "pass":
                    continue
                # A pass that is forced is often left out.
                if (key == first) != (table.turn == 0) and not table.over and game.name == "othello" and table.legal[64]:
                    table.play(64)
                if (key == first) != (table.turn == 0) and not table.over:
                    raise FlatironsError(f"{where}, move {ply}: {key}[{node[key][0]}] is played out of turn")
                try:
                    table.play(word)
                except FlatironsError as error:
                    raise FlatironsError(f"{where}, move {ply}: {error}") from None
        players = head.get(f"P{first}", "?"), head.get("PW" if first == "B" else "PB", "?")
        facts = tuple((key, head[key]) for key in ("EV", "DT", "RO", "BR", "WR", "KM") if head.get(key))
        result = _sgf_result(head.get("RE", ""), first)
        yield Record(game.name, tuple(table.actions), given_up if result is None else result, players, "", facts)


def _sgf_word(game: Game, value: str) -> str:
    value = value.strip()
    if game.name in notation.GO:
        size = game.board.rows
        if value == "" or (value == "tt" and size <= 19):
            return "pass"
        if re.fullmatch(r"[a-s]{2}", value) is None:
            return value
        col, row = ord(value[0]) - 97, ord(value[1]) - 97
        return f"{'ABCDEFGHJKLMNOPQRST'[col]}{size - row}"
    return {"swap-pieces": "swap", "": "pass"}.get(value, value)


def _sgf_result(text: str, first: str) -> float | None:
    if won := re.match(r"\s*(b|w)(?:lack|hite)?\s*\+", text, re.IGNORECASE):
        return 1.0 if won[1].upper() == first else -1.0
    return 0.0 if text.strip().lower() in ("0", "draw", "jigo") else None


def _sgf_games(text: str, name: str) -> Iterator[list[dict[str, list[str]]]]:
    """The nodes of each game's main line, the first of every variation."""
    position, end = 0, len(text)

    def broken(why: str) -> FlatironsError:
        return FlatironsError(f"{name} is damaged SGF: {why} at character {position + 1}")

    while True:
        # What people write before a game and between two may have brackets too.
        begun = re.compile(r"\(\s*;").search(text, position)
        if begun is None:
            return
        position = begun.start()
        depth, closed_at = 0, -1  # once a variation has closed, its sisters are skipped
        nodes: list[dict[str, list[str]]] = []
        while position < end:
            char = text[position]
            if char == "(":
                depth += 1
                position += 1
            elif char == ")":
                closed_at = depth if closed_at < 0 else min(closed_at, depth)
                depth -= 1
                position += 1
                if depth == 0:
                    break
            elif char == ";":
                if closed_at < 0:
                    nodes.append({})
                position += 1
            elif (key := re.compile(r"[A-Za-z]+").match(text, position)) is not None:
                position = key.end()
                values = []
                while (gap := re.compile(r"\s*\[").match(text, position)) is not None:
                    position = gap.end()
                    value = ""
                    while position < end and text[position] != "]":
                        position += text[position] == "\\"
                        value += text[position : position + 1]
                        position += 1
                    if position >= end:
                        raise broken("a value has no end")
                    position += 1
                    values.append(value)
                if not values:
                    raise broken(f"{key[0]} has no value")
                if closed_at < 0:
                    if not nodes:
                        raise broken("a property stands before the first node")
                    nodes[-1]["".join(filter(str.isupper, key[0]))] = values
            elif char.isspace():
                position += 1
            else:
                raise broken(f"{char!r} means nothing")
        if depth:
            raise broken("a game has no end")
        if nodes:
            yield nodes


# ------------------------------------------------------------------------------------------------------------------- PGN


def _write_pgn(game: Game, record: Record) -> str:
    result = {1.0: "1-0", -1.0: "0-1", 0.0: "1/2-1/2", None: "*"}[record.result]
    facts = dict(record.facts)
    head = {
        "Event": "?", "Site": "?", "Date": "????.??.??", "Round": "?", "White": record.players[0], "Black": record.players[1],
        "Result": result,
    }  # fmt: skip
    if game.name in notation.SHOGI:
        # Sente, who moves first, is shogi's black; PGN gives whoever moves first the name White.
        head["White"], head["Black"] = record.players
    if game.name in _VARIANTS:
        head["Variant"] = _VARIANTS[game.name]
    if record.start:
        head |= {"SetUp": "1", "FEN": record.start}
    tags = "".join(f'[{key} "{_quoted(value)}"]\n' for key, value in {**head, **facts}.items())
    table = notation.Table(game, record.start)
    words = []
    number = table.board.fullmove if game.name in notation.CHESS else 1
    black_first = table.turn == 1
    for ply, action in enumerate(record.actions):
        now, legal = table.board, np.asarray(table.live.legal)
        table.play(action)
        word = notation.san(game, now, legal, action, table.state) if game.name in notation.CHESS else table.words[-1]
        if (ply + black_first) % 2 == 0:
            word = f"{number}. {word}"
        elif ply == 0:
            word = f"{number}... {word}"
        number += (ply + black_first) % 2
        words.append(word)
    lines, line = [], ""
    for word in " ".join([*words, result]).split(" "):
        if len(line) + len(word) + 1 > 79:
            lines.append(line)
            line = ""
        line += (" " if line else "") + word
    return f"{tags}\n" + "\n".join([*lines, line]) + "\n\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


_TAG = re.compile(r'\[\s*(\w+)\s+"((?:[^"\\]|\\.)*)"\s*\]')


def _read_pgn(game: Game, text: str, name: str) -> Iterator[Record]:
    for number, (tags, words, result) in enumerate(_pgn_games(text), 1):
        where = f"{name}, game {number}"
        variant, ours = tags.get("Variant", ""), _VARIANTS.get(game.name, "")
        if variant.lower() not in ((ours.lower(),) if ours else ("", "standard", "chess", "from position")) and (variant or not ours):
            raise FlatironsError(f"{where} is a game of {variant or 'chess'}, not of {game.name}")
        table = _replayed(game, tags.get("FEN", ""), words, name, number)
        score = _RESULTS.get(tags.get("Result", result))
        facts = tuple((key, tags[key]) for key in ("Event", "Site", "Date", "Round", "WhiteElo", "BlackElo") if key in tags)
        players = tags.get("White", "?"), tags.get("Black", "?")
        yield Record(game.name, tuple(table.actions), score, players, table.start, facts)


def _pgn_games(text: str) -> Iterator[tuple[dict[str, str], list[str], str]]:
    """(tags, moves of the main line, result) of each game."""
    text = re.sub(r"(?m)^%.*$", "", text)
    tags: dict[str, str] = {}
    words: list[str] = []
    position, depth = 0, 0
    token = re.compile(r"\{[^}]*\}?|;[^\n]*|\(|\)|\$\d+|\[|[^\s(){};\[]+|\s+")
    while position < len(text):
        tag = _TAG.match(text, position) if depth == 0 else None
        if tag is not None:
            if words:
                yield tags, words, "*"
                tags, words = {}, []
            tags[tag[1]] = re.sub(r"\\(.)", r"\1", tag[2])
            position = tag.end()
            continue
        found = token.match(text, position)
        if found is None:
            position += 1
            continue
        word, position = found[0], found.end()
        if word in "()":
            depth = max(0, depth + (1 if word == "(" else -1))
        elif depth or word.isspace() or word[0] in "{;$[" or _GLYPH.fullmatch(word) or word.rstrip("+#!?") == "e.p.":
            continue
        elif word in _RESULTS:
            yield tags, words, word
            tags, words = {}, []
        else:
            word = re.sub(r"^\d*[.…]+", "", word)  # 1.e4, 1...e5 and ...e5
            if word and not re.fullmatch(r"\d+", word):
                words.append(word)
    if words or tags:
        yield tags, words, "*"
