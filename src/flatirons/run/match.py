"""`flatirons match A B`: games between two players, colours swapped, openings varied, Elo with its interval, records kept.

All games go on side by side, so that a search serves many of them at once. One referee, the rules of `envs.games`, ends and scores them.
A game whose player failed (an engine that died, hung, or moved illegally) is void: it counts for nobody, and is said. Once too many are,
the match stops: what was finished stays on record, and the rest is void too. Every game is on record as soon as it is finished, so that a
match that was killed goes on with those that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.envs import notation, records
from flatirons.envs.games import RESIGN, Game, GameState
from flatirons.run import folder
from flatirons.run.players import Player
from flatirons.types import FlatironsError, Key

AT_ONCE = 256
"""Games side by side."""
_OPENING_PLIES = {"tic_tac_toe": 1, "connect_four": 2, "hex": 1, "gardner_chess": 2, "animal_shogi": 2}
_MORE_PLIES = 4
"""How many plies beyond the usual ones openings may have so that no two are alike."""
_DRAWS = 32
_TOO_MANY = 3
"""Fewer void games than this never stop a match."""
UNFINISHED = "the match was stopped before the game ended"
NOT_BEGUN = "the match was stopped before the game began"
INTERRUPTED = "it was interrupted"
FINISHED = "finished.jsonl"
"""The games of a match that is not over, as they end; gone once every game has its result."""
_Z = 1.959964
"""The normal quantile of a 95 % interval."""


@dataclasses.dataclass(frozen=True)
class Played:
    """One game. result: 1, 0, -1 for player A, None where it is void. first: whether A moved first. actions: all of it, opening too."""

    opening: int
    first: bool
    result: float | None
    actions: tuple[int, ...]
    resigned: bool = False
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Match:
    """Games between A and B. stopped: why not all of them were played to an end; empty where they were, or failed each by itself."""

    game: str
    players: tuple[str, str]
    seed: int
    played: tuple[Played, ...]
    stopped: str = ""

    def summary(self) -> dict[str, Any]:
        """The last line of `flatirons match --json`: {"games", "wins", "draws", "losses", "score", "elo", "elo_low", "elo_high"} for A, and
        "distinct" where games were played more than once, "void" where there were such games. An Elo difference is null where it is
        without bound (all games won, or all lost), and everything but the counts where no game was finished."""
        results = [one.result for one in self.played if one.result is not None]
        wins, draws, losses = (sum(result == value for result in results) for value in (1.0, 0.0, -1.0))
        found: dict[str, Any] = {"games": len(results), "wins": wins, "draws": draws, "losses": losses}
        distinct = len({(one.first, one.actions) for one in self.played if one.result is not None})
        found |= elo(wins, draws, losses, distinct)
        void = len(self.played) - len(results)
        return found | ({"distinct": distinct} if distinct < len(results) else {}) | ({"void": void} if void else {})


def elo(wins: int, draws: int, losses: int, distinct: int | None = None) -> dict[str, float | None]:
    """{"score", "elo", "elo_low", "elo_high"}: the share of points, the Elo difference that expects it, and its 95 % interval (Wilson's
    for the score, which also holds where every game was won; a draw is half a win, which makes it a little too wide). distinct: how many
    of the games are no repetition of another, move for move: the interval's number of games, for a repetition says nothing new.

    elo = 400 log10(score / (1 - score)); None where it is infinite, or where there is no game.
    """
    games = wins + draws + losses
    if games == 0:
        return {"score": None, "elo": None, "elo_low": None, "elo_high": None}
    score = (wins + draws / 2) / games
    told = distinct or games
    centre = (score + _Z**2 / (2 * told)) / (1 + _Z**2 / told)
    half = _Z / (1 + _Z**2 / told) * math.sqrt(score * (1 - score) / told + _Z**2 / (4 * told**2))

    def difference(share: float) -> float | None:
        # Rounding may put the interval of a perfect score a hair inside.
        return None if share < 1e-12 or share > 1 - 1e-12 else 400.0 * math.log10(share / (1.0 - share))

    return {"score": score, "elo": difference(score), "elo_low": difference(centre - half), "elo_high": difference(centre + half)}


# ---------------------------------------------------------------------------------------------------------------- openings


def openings(game: Game, count: int, plies: int | None, seed: int) -> list[tuple[int, ...]]:
    """`count` openings of one length: connect four's 49 of two plies in order, else `plies` random legal moves, each to another
    position while there are enough. Where there are not, they begin again if the number of plies was given, and have more than the game's
    usual number if it was not.

    Raises FlatironsError where plies < 0, and where every game has ended by then.
    """
    usual = _OPENING_PLIES.get(game.name, 4)
    if plies is not None and plies < 0:
        raise FlatironsError(f"opening_plies is {plies}: give at least 0")
    best: list[tuple[int, ...]] = []
    for tried in [plies] if plies is not None else range(usual, usual + 1 + _MORE_PLIES):
        if game.name == "connect_four" and tried == 2:
            found = [(i // 7, i % 7) for i in range(min(count, 49))]
        else:
            found = _different(game, count, tried, np.random.default_rng(seed))
        best = max(best, found, key=len)
        if len(best) == count:
            break
    if not best:
        raise FlatironsError(f"{game.name} has no openings of {usual if plies is None else plies} plies; give fewer with --opening-plies")
    return [best[i % len(best)] for i in range(count)]


def _different(game: Game, count: int, plies: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Up to `count` random openings, no two of which lead to the same position."""
    found: dict[Any, tuple[int, ...]] = {}
    # Those that ended the game or are there already are drawn again, until hardly any others come.
    for _ in range(_DRAWS):
        known = len(found)
        for where, line in _random_lines(game, 2 * count, plies, rng):
            if len(found) < count:
                found.setdefault(where, line)
        if len(found) in (count, known):
            break
    return list(found.values())


def _random_lines(game: Game, count: int, plies: int, rng: np.random.Generator) -> list[tuple[Any, tuple[int, ...]]]:
    """(what tells its position from others, moves) of random openings; those that ended the game are left out."""
    states, lines = starts(game, count), np.zeros((count, plies), np.int32)
    for ply in range(plies):
        legal = np.asarray(states.legal)
        lines[:, ply] = np.argmax(np.where(legal, rng.random(legal.shape), -1.0), axis=1)
        states = stepper(game)(states, lines[:, ply])
    found = []
    for i in np.flatnonzero(~np.asarray(states.terminated)):
        board = notation.board(game, jax.tree.map(lambda x, i=i: x[i], states))
        found.append(((board.turn, board.cells.tobytes(), board.hands.tobytes()), tuple(map(int, lines[i]))))
    return found


# ---------------------------------------------------------------------------------------------------------------- the games


def starts(game: Game, count: int) -> GameState:
    """`count` starting positions, on the host."""
    return jax.device_get(game.init_batch(jax.random.key(0), count))


@functools.cache
def stepper(game: Game) -> Callable[[GameState, Any], GameState]:
    """A move in each position of a batch, compiled, the result on the host; a game that has ended stays as it is."""
    key = jax.random.key(0)
    step = jax.jit(lambda states, actions: jax.vmap(game.step, (None, 0, 0))(key, states, jnp.asarray(actions, jnp.int32))[0])
    # On the host, where picking some of the games compiles nothing.
    return lambda states, actions: jax.device_get(step(states, actions))


def play(
    game: Game, a: Player, b: Player, games: int, *, seed: int = 0, opening_plies: int | None = None, at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] | None = None, known: Sequence[Played] = (), finished: Callable[[Played], None] | None = None,
) -> Match:  # fmt: skip
    """Play `games` games: each opening twice, A and B each moving first once. `progress` is called with (finished, games), `finished` with
    each game that has a result as it ends. `known`: games with a result of the same match, which are not played again; those that are left
    are played side by side anew, so that with chance in their moves they become other games than they would have been.

    The match stops where three games or more, and half of those that go on side by side, are void, and after three or more on end of which
    none that began together was finished: the remaining games are void then too. So it does at a KeyboardInterrupt, and where a player
    raises something once games were finished. Raises FlatironsError where games is odd or below 2, where at_once is
    below 2 and where a known game does not begin with its opening, and what a player raised before.
    """
    if games < 2 or games % 2:
        raise FlatironsError(f"games is {games}: each opening is played with both colours, so give an even number from 2 up")
    if at_once < 2:
        raise FlatironsError(f"at_once is {at_once}: each opening is played with both colours side by side, so give at least 2")
    lines = openings(game, games // 2, opening_plies, seed)
    pairs = [(number, line, first) for number, line in enumerate(lines) for first in (True, False)]
    before = _by_pair(known, lines)
    left = [pair for pair in pairs if (pair[0], pair[2]) not in before]
    played = list(before.values())
    key = jax.random.key(seed)
    size = at_once - at_once % 2
    stopped, in_vain = "", 0
    for begin in range(0, len(left), size):
        done = len(played)
        found, stopped, error = _side_by_side(
            game, a, b, left[begin : begin + size], jax.random.fold_in(key, len(before) + begin),
            lambda count, done=done: progress(done + count, games) if progress is not None else None,
            finished if finished is not None else lambda _: None,
        )  # fmt: skip
        played += found
        if error is not None and all(one.result is None for one in played):
            raise error
        # Few games side by side can all be void without being too many: an engine that has died for good is noticed here.
        in_vain = 0 if any(one.result is not None for one in found) else in_vain + len(found)
        if not stopped and in_vain >= _TOO_MANY:
            stopped = f"{in_vain} games on end are void, the last because {found[-1].fault}"
        if stopped:
            break
    all_of_them = {(one.opening, one.first): one for one in played}
    played = [all_of_them.get((number, first), Played(number, first, None, (), fault=NOT_BEGUN)) for number, _, first in pairs]
    cut = any(one.fault in (UNFINISHED, NOT_BEGUN) for one in played)
    return Match(game.name, (a.name, b.name), seed, tuple(played), stopped if cut else "")


def _by_pair(known: Sequence[Played], lines: Sequence[tuple[int, ...]]) -> dict[tuple[int, bool], Played]:
    """Games by (number of the opening, whether A moved first). Raises FlatironsError where one does not begin with its opening."""
    for one in known:
        if not 0 <= one.opening < len(lines) or one.actions[: len(lines[one.opening])] != lines[one.opening]:
            raise FlatironsError(
                f"a finished game does not begin with opening {one.opening} of this match; give --overwrite to begin again"
            )
    return {(one.opening, one.first): one for one in known}


def _side_by_side(
    game: Game, a: Player, b: Player, pairs: Sequence[tuple[int, tuple[int, ...], bool]], key: Key, progress: Callable[[int], None],
    finished: Callable[[Played], None],
) -> tuple[list[Played], str, Exception | None]:  # fmt: skip
    """(the games, why they were stopped or "", what was raised). `pairs` are (number of the opening, opening, whether A moves first)."""
    count = len(pairs)
    states = starts(game, count)
    histories: list[list[int]] = [[] for _ in pairs]
    a_first = np.array([first for _, _, first in pairs])
    faults: dict[int, str] = {}
    resigned: set[int] = set()
    step = stepper(game)
    for ply in range(len(pairs[0][1])):
        actions = np.array([line[ply] for _, line, _ in pairs], np.int32)
        states = step(states, actions)
        for history, action in zip(histories, actions, strict=True):
            history.append(int(action))
    turn, stopped, error = 0, "", None
    told: set[int] = set()

    def ended(i: int) -> Played:
        number, _, first = pairs[i]
        result = None if i in faults else float(np.asarray(states.outcome)[i]) * (1.0 if first else -1.0) + 0.0
        return Played(number, bool(first), result, tuple(histories[i]), i in resigned, faults.get(i, ""))

    try:
        while True:
            terminated = np.asarray(states.terminated)
            over = terminated | np.isin(np.arange(count), list(faults))
            for i in sorted(set(np.flatnonzero(terminated).tolist()) - told - set(faults)):
                told.add(i)
                finished(ended(i))
            progress(int(over.sum()))
            if over.all() or stopped:
                break
            # Both halves are asked in every ply: A moves in the games that it began while B moves in the others.
            a_moves = a_first == (np.asarray(states.player) == 0)
            actions = np.zeros(count, np.int32)
            for who, (one, mask) in enumerate(((a, a_moves), (b, ~a_moves))):
                asked = np.flatnonzero(mask & ~over)
                if len(asked):
                    chosen = _ask(one, states, asked, int(mask.sum()), jax.random.fold_in(key, 2 * turn + who), histories)
                    actions[asked] = chosen[0]
                    faults |= {int(asked[i]): f"{one.name}: {why}" for i, why in chosen[1].items()}
            if len(faults) >= max(_TOO_MANY, count // 2):
                stopped = f"{len(faults)} of {count} games are void, the last because {list(faults.values())[-1]}"
            turn += 1
            for i in np.flatnonzero(~over):
                if i in faults:
                    continue
                if actions[i] == RESIGN:
                    resigned.add(int(i))
                else:
                    histories[i].append(int(actions[i]))
            # Where a game is void its action is not looked at: it stays where it was.
            states = step(states, np.where(np.isin(np.arange(count), list(faults)) | over, 0, actions))
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except Exception as raised:
        stopped, error = f"{type(raised).__name__}: {raised}", raised
    # What came in the middle of a ply may have left a game with a move that was not made: it is not over.
    over = np.asarray(states.terminated)
    faults = {int(i): UNFINISHED for i in np.flatnonzero(~over)} | faults
    return [ended(i) for i in range(count)], stopped, error


def _ask(
    one: Player, states: GameState, asked: np.ndarray, most: int, key: Key, histories: Sequence[Sequence[int]]
) -> tuple[np.ndarray, dict[int, str]]:
    """Its moves in the games `asked`. Batches have one of two sizes, so that a search is compiled at most twice."""
    few = -(-most // 4)
    size = few if len(asked) <= few else most
    rows = np.concatenate([asked, np.full(size - len(asked), asked[0])])
    actions, wrong = one.choose(jax.tree.map(lambda x: x[rows], states), key, [histories[i] for i in asked])
    return np.asarray(actions)[: len(asked)], wrong


# ----------------------------------------------------------------------------------------------------------------- records


def save(match: Match, game: Game, place: Path, seconds: float) -> Path:
    """Write every game's record and match.json into the folder `place`; returns it. Raises FlatironsError where it cannot be written."""
    date = datetime.now(UTC).strftime("%Y.%m.%d")
    texts = []
    for number, one in enumerate(match.played, 1):
        names = match.players if one.first else (match.players[1], match.players[0])
        result = None if one.result is None else one.result * (1.0 if one.first else -1.0)
        # Each kind of record has its own words.
        facts = (("Event", "flatirons match"), ("Date", date), ("Round", str(number)), ("Opening", str(one.opening)))
        ends = (("Termination", f"void: {one.fault}" if one.fault else "resignation"),) if one.fault or one.resigned else ()
        if records.suffix(game.name) == ".sgf":
            facts, ends = (
                (("EV", "flatirons match"), ("DT", date.replace(".", "-")), ("RO", str(number))),
                (("GC", f"void: {one.fault}" if one.fault else "resignation"),) if ends else (),
            )
        texts.append(records.write(game, records.Record(game.name, one.actions, result, names, "", (*facts, *ends))))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlatironsError(f"{place} cannot be written ({error.strerror}); choose another --out") from None
    folder.write_whole(place / f"games{records.suffix(game.name)}", "".join(texts))
    facts_of = [{"opening": one.opening, "a_first": one.first, "result": one.result, "plies": len(one.actions), "fault": one.fault or None}
                for one in match.played]  # fmt: skip
    folder.write_json(
        place / "match.json",
        {
            "game": match.game, "a": match.players[0], "b": match.players[1], "seed": match.seed, **match.summary(), "seconds": seconds,
            "stopped": match.stopped or None, "played": facts_of, **folder.surroundings(),
        },
    )  # fmt: skip
    if all(one.result is not None for one in match.played):
        (place / FINISHED).unlink(missing_ok=True)
    return place


def keep(place: Path, one: Played) -> None:
    """Put a game that was finished on record in the folder `place`, beside those before it."""
    folder.append_line(place / FINISHED, dataclasses.asdict(one))


def kept(place: Path, what: Mapping[str, Any], *, resume: bool = True) -> list[Played]:
    """The finished games of a match that was cut short in the folder `place`; none, and their record begun, where there is none. `what`:
    all that makes it the same match (players, game, seed ...). Raises FlatironsError where the games there are of another."""
    path = place / FINISHED
    lines = _json_lines(path)
    if not lines or (len(lines) == 1 and not resume):
        folder.write_whole(path, json.dumps(folder.strict(what)) + "\n")
        return []
    for name, value in what.items():
        if lines[0].get(name) != value:
            said = f"{name} was {lines[0].get(name)} there and is {value} now"
            raise FlatironsError(f"{path} holds games of another match: {said}; give the same, another --out, or --overwrite")
    try:
        return [
            Played(line["opening"], line["first"], float(line["result"]), tuple(map(int, line["actions"])), line["resigned"])
            for line in lines[1:]
        ]
    except (KeyError, TypeError, ValueError):
        raise FlatironsError(f"{path} is damaged: a line is no game; begin again with --overwrite, or choose another --out") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Its objects; a last line that was cut short is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            if isinstance(line := json.loads(text), dict):
                found.append(line)
    return found


@contextlib.contextmanager
def held_place(place: Path, *, overwrite: bool, resume: bool = False) -> Iterator[None]:
    """See before a match that its records can be written into the folder `place`, which is made, and hold it while this lasts.

    Raises FlatironsError where they cannot be written, where somebody else is to write into it, and where another match's are there and
    neither `overwrite` is given nor, for a match that was cut short, `resume`."""
    _demand_free(place, overwrite=overwrite, resume=resume)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise FlatironsError(f"{place} cannot be written ({error.strerror}); choose another --out") from None
    with folder.held(place, ", or choose another --out", busy="is in use by another process, a match or a run; wait for it"):
        # Once more: another match may have ended here since.
        _demand_free(place, overwrite=overwrite, resume=resume)
        if overwrite:
            (place / FINISHED).unlink(missing_ok=True)
        yield


def _demand_free(place: Path, *, overwrite: bool, resume: bool) -> None:
    if overwrite:
        return
    unfinished, ended = (place / FINISHED).exists(), (place / "match.json").exists()
    if unfinished and resume:
        return
    games = max(len(_json_lines(place / FINISHED)) - 1, 0)
    if games or (unfinished and ended):
        raise FlatironsError(
            f"{place} holds a match that was cut short after {games} games; give --resume to play the rest, or --overwrite"
        )
    if ended:
        raise FlatironsError(f"{place} holds a match already; choose another --out, or give --overwrite")


def default_place(game: str, a: str, b: str) -> Path:
    """`matches/GAME-A-B`, with a counter behind it when that exists. It is made, so that a match begun at the same time gets another."""
    base = Path("matches") / folder.slug(f"{game}-{a}-{b}")[:120]
    place, count = base, 2
    while True:
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            place, count = base.with_name(f"{base.name}-{count}"), count + 1
        except OSError:  # `held_place` says it
            return place
        else:
            return place


def in_words(match: Match) -> str:
    """One line for a person."""
    found = match.summary()
    name = match.players[0]
    if not found["games"]:
        return f"{name}: no game was finished, {found['void']} are void"
    low, middle, high = (
        ("+∞" if found["score"] > 0.5 else "-∞") if value is None else f"{value:+.0f}"
        for value in (found["elo_low"], found["elo"], found["elo_high"])
    )
    void = f", {found['void']} void" if "void" in found else ""
    void += f" ({found['distinct']} different games)" if "distinct" in found else ""
    return (
        f"{name} against {match.players[1]} in {match.game}: {found['wins']} won, {found['draws']} drawn, {found['losses']} lost{void}; "
        f"score {100 * found['score']:.1f} %, Elo {middle} (95 %: {low} to {high})"
    )


def line(match: Match) -> str:
    """The last line of `--json`."""
    return json.dumps(folder.strict(match.summary()))
