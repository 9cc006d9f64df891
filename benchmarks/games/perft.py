"""Perft: the positions that can be reached in n plies, counted with our rules and compared with the published numbers.

python -m benchmarks.games.perft            # chess to depth 4, two hard chess positions to 3, shogi to depth 3
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons.envs import games, notation

# chessprogramming.org, "Perft Results"; shogi: the counts that engines publish for the starting position.
KIWIPETE = "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1"
PROMOTIONS = "r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1"
PUBLISHED: dict[tuple[str, str], list[int]] = {
    ("chess", ""): [20, 400, 8_902, 197_281],
    ("chess", KIWIPETE): [48, 2_039, 97_862],
    ("chess", PROMOTIONS): [6, 264, 9_467],
    ("shogi", ""): [30, 900, 25_470],
}
WIDTH = 64


@functools.cache
def stepper(game: games.Game) -> Callable:
    key = jax.random.key(0)

    @jax.jit
    def step(states: Any, actions: Any) -> Any:
        return jax.vmap(game.step, (None, 0, 0))(key, states, actions)[0]

    return step


def successors(game: games.Game, states: Any, width: int) -> Iterator[Any]:
    """Batches of at most `width` positions after every legal move of every position in a batch `[B]`."""
    going = np.asarray(states.legal) & ~np.asarray(states.terminated)[:, None]
    rows, actions = np.nonzero(going)
    for i in range(0, len(rows), width):
        some, moves = rows[i : i + width], actions[i : i + width].astype(np.int32)
        if width == 1:
            after, _, _ = notation.stepper(game)(jax.tree.map(lambda x, row=some[0]: x[row], states), moves[0])
            yield jax.tree.map(lambda x: np.asarray(x)[None], after)
            continue
        padded, kept = np.resize(some, width), len(some)
        after = stepper(game)(jax.tree.map(lambda x, padded=padded: x[padded], states), jnp.asarray(np.resize(moves, width)))
        yield jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], after)


def perft(game: games.Game, position: str, depth: int, width: int = WIDTH) -> list[int]:
    """Positions after 1 … depth plies, with every path counted. The last ply is counted and not played."""
    state = notation.table(game, position).state
    level = [jax.tree.map(lambda x: np.asarray(x)[None], state)]
    counts = []
    for ply in range(depth):
        going = [np.asarray(states.legal)[~np.asarray(states.terminated)] for states in level]
        counts.append(int(sum(mask.sum() for mask in going)))
        if ply < depth - 1:
            level = [after for states in level for after in successors(game, states, width)]
    return counts


def main() -> int:
    """Every count that is published, as JSON; exit status 1 where one differs."""
    head, rows = header("perft", "benchmarks.games.perft"), []
    for (name, position), published in PUBLISHED.items():
        began = time.monotonic()
        ours = perft(games.make(name), position, len(published))
        rows.append({"game": name, "position": position, "ours": ours, "published": published, "equal": ours == published})
        print(json.dumps({**rows[-1], "seconds": round(time.monotonic() - began, 1)}), flush=True)
    write(RESULTS / "games" / "perft.json", {**head, "versions": versions(["flatirons", "jax", "pgx"]), "rows": rows})
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
