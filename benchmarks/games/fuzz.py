"""10,000 random commands, sense and nonsense, to each of the engines' protocols: each must be answered, and none may end the session.

    python -m benchmarks.games.fuzz --commands 10_000 --out benchmarks/results/games/fuzz.json

The player is a stand-in that thinks nothing: what is tried here are the protocols.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import header, write
from flatirons.envs import games, notation
from flatirons.envs.games import Game, GameState
from flatirons.run.gtp import Gtp
from flatirons.run.players import Chosen, Line, Thought
from flatirons.run.uci import Uci


class Uniform:
    """A player that thinks of every legal move alike, without any computation."""

    def __init__(self, game: Game, simulations: int = 4, pause: float = 0.0) -> None:
        self.name, self.game, self.simulations, self.pause = "uniform", game, simulations, pause

    def choose(self, states: GameState, key: Any, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        return Chosen(np.argmax(np.asarray(states.legal), axis=1).astype(np.int32))

    def think(self, state: GameState, key: Any, simulations: int) -> Thought:
        if self.pause:
            time.sleep(self.pause)
        legal = np.asarray(state.legal)
        visits = np.zeros(len(legal), np.int32)
        visits[np.flatnonzero(legal)[: max(1, simulations)]] = 1
        rng = np.random.default_rng(int(state.plies))
        return Thought(int(rng.choice(np.flatnonzero(legal))), visits, np.zeros(len(legal)), legal / legal.sum(), 0.0, 0.0)

    def lines(self, state: GameState, key: Any, simulations: int, most: int) -> tuple[Thought, list[Line]]:
        thought = self.think(state, key, simulations)
        return thought, [Line((int(action),), 1, 0.0) for action in np.flatnonzero(thought.visits)[:most]]

    def close(self) -> None:
        pass


WORDS = [
    "", "0", "-1", "1", "9", "19", "6.5", "nan", "inf", "1e999", "b", "w", "black", "WHITE", "purple", "A1", "Q16", "T19", "I5", "Z99",
    "pass", "resign", "e2e4", "7g7f", "P*5e", "e7e8q", "e9e9", "startpos", "moves", "fen", "sfen", "infinite", "nodes", "movetime", "depth",
    "wtime", "btime", "byoyomi", "ponder", "searchmoves", "name", "value", "MultiPV", "Simulations", "true", "\x00", "\t", "é", "#",
    "99999999999999999999", "rnbqk/ppppp/5/PPPPP/RNBQK w - - 0 1", "8/8/8 w", "(;GM[1])", "/", "x" * 300,
]  # fmt: skip


def gtp_line(rng: random.Random, session: Gtp) -> str:
    kind = rng.random()
    number = f"{rng.randrange(1000)} " if rng.random() < 0.3 else ""
    colour = rng.choice(["b", "w", "black", "white"])
    if kind < 0.25 and not session.table.over:
        words = list(notation.moves(session.game, session.table.board, session.table.legal))
        return f"{number}play {'bw'[session.table.turn]} {rng.choice(words)}"
    if kind < 0.35:
        return f"{number}genmove {colour}"
    if kind < 0.42:
        return f"{number}{rng.choice(['undo', 'showboard', 'final_score', 'clear_board', 'list_commands'])}"
    if kind < 0.8:
        # Never a file of this machine: a name that was drawn could be one.
        known = [name for name in session.commands if name not in ("quit", "printsgf", "loadsgf")]
        return f"{number}{rng.choice(known)} {' '.join(rng.choice(WORDS) for _ in range(rng.randrange(4)))}"
    return f"{number}{' '.join(rng.choice(WORDS) for _ in range(rng.randrange(5)))}"


def fuzz_gtp(name: str, commands: int, seed: int) -> dict[str, Any]:
    """Counts of answers; raises whatever the session raises."""
    told: list[str] = []
    rng, session = random.Random(seed), Gtp(Uniform(games.make(name)), say=told.append)
    counts = {"answered": 0, "refused": 0, "silent": 0, "analyses": 0}
    for _ in range(commands):
        line = gtp_line(rng, session)
        if told:
            text = session.answer("")
            analysis = "".join(told)
            told.clear()
            assert not text and analysis[0] == "=" and analysis.endswith("\n\n") and "\n\n" not in analysis[:-2], f"{analysis!r} was told"
            counts["analyses"] += 1
        text = session.answer(line)
        assert not session.over, f"{line!r} ended the session"
        if told:
            continue
        if not text:
            # GTP is silent to empty lines and comments, and to nothing else.
            assert not "".join(c for c in line.replace("\t", " ") if c >= " " and c != "\x7f").partition("#")[0].strip(), (
                f"{line!r} was not answered"
            )
            counts["silent"] += 1
            continue
        assert text[0] in "=?" and text.endswith("\n\n") and "\n\n" not in text[:-2], f"{line!r} was answered {text!r}"
        counts["answered" if text[0] == "=" else "refused"] += 1
    return {"protocol": "gtp", "game": name, "commands": commands, **counts}


def uci_line(rng: random.Random, session: Uci) -> str:
    kind, prefix = rng.random(), "usi" if session.usi else "uci"
    table = session.table
    legal = list(notation.moves(session.game, table.board, table.legal)) if not table.over else []
    if kind < 0.3 and legal and len(table.words) < 200:
        return " ".join(["position startpos moves", *table.words, rng.choice(legal)])
    if kind < 0.45:
        return rng.choice(
            ["go", "go nodes 3", "go movetime 1", "go infinite", "go wtime 1000 btime 1000 winc 10", "go ponder", "go depth 2"]
        )
    if kind < 0.55:
        return "stop"
    if kind < 0.65:
        return rng.choice([prefix, "isready", f"{prefix}newgame", "position startpos", "d", "ponderhit"])
    if kind < 0.85:
        command = rng.choice(["position", "go", "setoption", "debug", "register", "gameover", "position startpos moves", "position fen"])
        return f"{command} {' '.join(rng.choice(WORDS) for _ in range(rng.randrange(5)))}"
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(5)))


def fuzz_uci(name: str, commands: int, seed: int, *, usi: bool) -> dict[str, Any]:
    """The same for UCI and USI: each `go` has exactly one bestmove, each isready its readyok."""
    heard: list[str] = []
    rng, session = random.Random(seed), Uci(Uniform(games.make(name)), heard.append, usi=usi)
    begun = ready = 0
    for _ in range(commands):
        line = uci_line(rng, session)
        before = session.thinking
        session.hear(line)
        words = "".join(c if c.isprintable() else " " for c in line).split()
        begun += session.thinking is not before
        ready += words[:1] == ["isready"]
        if rng.random() < 0.2 and session.thinking is not None:
            session.thinking.stop()
        assert not session.over, f"{line!r} ended the session"
    if session.thinking is not None:
        session.thinking.stop()
        session.thinking.join()
    answers = [line for line in heard if line.startswith("bestmove")]
    of_ended = sum(line in ("bestmove (none)", "bestmove resign") for line in answers)
    assert len(answers) - of_ended == begun, f"{begun} searches and {len(answers) - of_ended} answers"
    assert sum(line == "readyok" for line in heard) == ready
    assert all("\n" not in line for line in heard)
    return {"protocol": "usi" if usi else "uci", "game": name, "commands": commands, "searches": begun, "lines": len(heard)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=lambda text: int(text), default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(argv)
    rows = []
    for run in (
        lambda: fuzz_gtp("go_9x9", chosen.commands, chosen.seed),
        lambda: fuzz_uci("gardner_chess", chosen.commands, chosen.seed, usi=False),
        lambda: fuzz_uci("animal_shogi", chosen.commands, chosen.seed, usi=True),
    ):
        began = time.monotonic()
        rows.append({**run(), "seconds": round(time.monotonic() - began, 1)})
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out is not None:
        write(chosen.out, {**header("fuzz", "benchmarks.games.fuzz"), "seed": chosen.seed, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
