"""Elo against training time and against simulations, for a game that a benchmark has trained.

    python -m benchmarks.games.elo othello [--seed 0] [--games 100]     # after `two_hours train othello` or `connect_four train`

The training kept its policy about every five minutes; each of these plays, with 30 simulations a move, those next to it in time and a
search with 100 random rollouts, and the last also plays with other numbers of simulations (0 is the network's likeliest move). All ratings
are fitted at once (Bradley and Terry, one virtual draw a match, so that a lost match leaves no infinite rating); UCT of 1,000 rollouts is
at 0. Openings are four random plies, each played with both colours. Intervals are of 95 %, by drawing every match's games again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from benchmarks.games import pieces
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons import envs
from flatirons.plan import contest, uct
from flatirons.systems import alphazero

SIMULATIONS = 30
OTHERS = (0, 10, 100, 300)
"""Other numbers of simulations for the last policy."""
STRONG, WEAK = "mcts-1000", "mcts-100"
OPENING_PLIES = 4

Chooser = Callable[[Any, Any], Any]
"""`choose(states [B], key) -> actions [B]`."""
Results = dict[tuple[str, str], tuple[int, int, int]]
"""Wins, draws and losses of the first, by pair."""


@functools.partial(jax.jit, static_argnums=0)
def _step(game: Any, states: Any, actions: Any) -> Any:
    return jax.vmap(game.step, in_axes=(None, 0, 0))(jax.random.key(0), states, actions)[0]


def play(game: Any, first: Chooser, second: Chooser, key: Any, num_games: int) -> tuple[int, int, int]:
    """Wins, draws and losses of `first` over an even number of games, each opening with both colours."""
    key_open, key_play = jax.random.split(key)
    start = jax.vmap(game.init)(jax.random.split(key_open, num_games // 2))
    for i in range(OPENING_PLIES):
        start = _step(game, start, contest.random_move(game, jax.random.fold_in(key_open, i), start))
    found = []
    for side in (0, 1):
        states = start
        for ply in range(game.longest):
            if bool(np.asarray(states.terminated).all()):
                break
            mover = first if ply % 2 == side else second
            states = _step(game, states, jnp.asarray(mover(states, jax.random.fold_in(key_play, 2 * ply + side)), jnp.int32))
        found.append(np.asarray(states.outcome) * (1 if side == 0 else -1))
    results = np.concatenate(found)
    return int((results > 0).sum()), int((results == 0).sum()), int((results < 0).sum())


def ratings(results: Mapping[tuple[str, str], tuple[int, int, int]], anchor: str) -> dict[str, float]:
    """Elo by player, `anchor` at 0: the maximum of Bradley and Terry's likelihood, a draw half a win, by minorisation (Hunter 2004)."""
    names = sorted({name for pair in results for name in pair})
    index = {name: i for i, name in enumerate(names)}
    games, won = np.zeros((len(names), len(names))), np.zeros(len(names))
    for (a, b), (wins, draws, losses) in results.items():
        i, j = index[a], index[b]
        games[[i, j], [j, i]] += wins + draws + losses + 1
        won[i] += wins + 0.5 * (draws + 1)
        won[j] += losses + 0.5 * (draws + 1)
    strength = np.ones(len(names))
    for _ in range(20_000):
        before = strength
        strength = won / (games / (strength[:, None] + strength[None])).sum(axis=1)
        strength /= strength[index[anchor]]
        if np.allclose(strength, before, rtol=1e-9, atol=0):
            break
    return {name: 400 * math.log10(strength[i]) for name, i in index.items()}


def intervals(results: Results, anchor: str, draws: int = 200) -> dict[str, list[float]]:
    """95 % of each rating over `draws` sets of matches drawn with the frequencies that were seen."""
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        again = {pair: tuple(rng.multinomial(sum(row), np.asarray(row) / sum(row)).tolist()) for pair, row in results.items()}
        found.append(ratings(again, anchor))
    return {name: np.quantile([row[name] for row in found], [0.025, 0.975]).tolist() for name in found[0]}


def main() -> None:
    """Play, rate, write elo_GAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="connect_four, othello, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--games", type=int, default=100, help="games of a match, an even number")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folder is")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    path = args.runs / f"{args.game.replace('_', '-')}-seed{args.seed}"
    kept = sorted(pieces.snapshots(path).iterdir()) if pieces.snapshots(path).exists() else []
    head, run = header(f"elo_{args.game}", "benchmarks.games.elo"), fi.load(path)
    task: Any = envs.make(f"pgx:{args.game}", 1)
    game = task.env

    @functools.partial(jax.jit, static_argnums=3)
    def search(actor: Any, states: Any, key: Any, simulations: int) -> Any:
        return alphazero.analyse(run.config, task, actor, states, key, num_simulations=simulations).action

    rollouts = jax.jit(lambda states, key, simulations: uct.search(game, states, key, simulations, 1.4).action, static_argnums=2)

    def network(actor: Any, simulations: int) -> Chooser:
        return lambda states, key: search(actor, states, key, simulations)

    players: dict[str, Chooser] = {
        WEAK: lambda states, key: rollouts(states, key, 100),
        STRONG: lambda states, key: rollouts(states, key, 1000),
    }
    rows: dict[str, dict[str, Any]] = {WEAK: {}, STRONG: {}}
    for folder in [*kept, path]:
        one = fi.load(folder)
        name = f"{one.step} moves"
        players[name] = network(one.actor, SIMULATIONS)
        rows[name] = {"moves": one.step, "minutes": pieces.minutes_at(path, one.step), "simulations": SIMULATIONS}
    in_time = [name for name in rows if rows[name]]
    last = in_time[-1]
    for simulations in OTHERS:
        name = f"{simulations} simulations"
        players[name] = network(run.actor, simulations)
        rows[name] = {"moves": run.step, "minutes": rows[last]["minutes"], "simulations": simulations}
    by_strength = [f"{s} simulations" if s != SIMULATIONS else last for s in sorted((*OTHERS, SIMULATIONS))]
    pairs = {
        *itertools.pairwise(in_time), *zip(in_time, in_time[2:], strict=False), *itertools.pairwise(by_strength),
        *((name, WEAK) for name in (*in_time[::2], by_strength[0])), (last, STRONG), (by_strength[-2], STRONG), (WEAK, STRONG),
    }  # fmt: skip
    results: Results = {}
    for number, (a, b) in enumerate(sorted(pairs)):
        began = time.perf_counter()
        results[a, b] = play(game, players[a], players[b], jax.random.key(number), args.games)
        print(f"{a} against {b}: {results[a, b]}, {time.perf_counter() - began:.0f} s", flush=True)
    elo, around = ratings(results, STRONG), intervals(results, STRONG)
    found = head | {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "seed": args.seed, "anchor": STRONG,
        "rows": [{"name": name} | row | {"elo": elo[name], "ci95": around[name]} for name, row in rows.items()],
        "matches": [{"first": a, "second": b, "wins": w, "draws": d, "losses": lost} for (a, b), (w, d, lost) in results.items()],
    }  # fmt: skip
    write(args.out / f"elo_{args.game}.json", found)


if __name__ == "__main__":
    main()
