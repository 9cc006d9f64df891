"""`flatirons analyse RUN`: what a search thinks of a position as its tree grows, as in AlphaZero's figure: the states visited most, how
often, and their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flatirons.envs import notation
from flatirons.run.players import Thinker
from flatirons.types import FlatironsError


def analyse(thinker: Thinker, position: str, simulations: Sequence[int], *, most: int = 10, seed: int = 0) -> dict[str, Any]:
    """Search one position with each number of simulations (0: the bare network).

    Returns {"game", "player", "position", "to_move", "board", "searches": [{"simulations", "best", "value", "network_value", "states":
    [{"moves", "visits", "share", "value"}], "moves": [{"move", "visits", "value", "prior"}]}]}. Values are in [-1, 1] for the player to
    move here; share is of the simulations. Raises FlatironsError for a position that is none, and for one in which the game has ended.
    """
    game = thinker.game
    table = notation.table(game, position)
    live = table.live
    if live.terminated:
        raise FlatironsError(f"the game has ended in the position {position!r}; there is nothing to search")
    searches = []
    for count in simulations:
        thought, lines = thinker.lines(live, jax.random.key(seed), count, most)
        words = [notation.line_words(game, live, line.actions) for line in lines]
        moves = {action: text for text, action in notation.moves(game, table.board, np.asarray(live.legal)).items()}
        order = sorted(moves, key=lambda action: (-thought.visits[action], -thought.prior[action]))
        searches.append(
            {
                "simulations": count,
                "best": moves[thought.action],
                "value": thought.value,
                "network_value": thought.network_value,
                "states": [
                    {"moves": text, "visits": line.visits, "share": line.visits / max(1, count), "value": line.value}
                    for text, line in zip(words, lines, strict=True)
                ],
                "moves": [
                    {"move": moves[a], "visits": int(thought.visits[a]), "value": float(thought.q[a]), "prior": float(thought.prior[a])}
                    for a in order[:most]
                ],
            }
        )
    return {
        "game": game.name, "player": thinker.name, "position": table.text(), "to_move": notation.colours(game.name)[table.turn],
        "board": notation.drawing(game, table.board), "searches": searches,
    }  # fmt: skip


def in_words(found: dict[str, Any]) -> str:
    """The same for a person."""
    parts = [found["board"], ""]
    for search in found["searches"]:
        values = f"value {search['value']:+.3f}, network {search['network_value']:+.3f}"
        head = f"{search['simulations']} simulations: best {search['best']}, {values}"
        rows = [
            f"  {100 * state['share']:5.1f} %  {state['visits']:6d} visits  value {state['value']:+.3f}  {' '.join(state['moves'])}"
            for state in search["states"]
        ]
        if not search["states"]:
            rows = [f"  prior {move['prior']:.3f}  {move['move']}" for move in search["moves"]]
        parts += [head, *rows, ""]
    return "\n".join(parts).rstrip()
