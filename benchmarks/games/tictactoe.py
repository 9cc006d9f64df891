"""AlphaZero on tic-tac-toe, against every line of play: `python -m benchmarks.games.tictactoe [--seeds 0,1,2]`

Each seed is trained with the game's preset and nothing else. Then its policy (greedy, with the search that it plays with) plays both sides
against every sequence of legal replies; so do, for comparison, the search that it learnt with and its network alone. To reach: no line
lost, trained within 5 minutes, for every seed; aim: within 1 minute.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons import envs
from flatirons.envs import games
from flatirons.systems import alphazero

REACH = {"losses": 0, "seconds": 300.0}
AIM_SECONDS = 60.0
GAME = games.make("tic_tac_toe")


def moved(states: Any, actions: np.ndarray) -> Any:
    """Each position after its move; the batch is filled up to a power of two, so that few programs are compiled."""
    after, _, _ = _step(*_filled(states, actions))
    return jax.tree.map(lambda x: np.asarray(x)[: len(actions)], after)


@jax.jit
def _step(states: Any, actions: Any) -> Any:
    return jax.vmap(GAME.step, in_axes=(None, 0, 0))(jax.random.key(0), states, actions)


def _filled(states: Any, actions: np.ndarray) -> tuple[Any, np.ndarray]:
    size = 1 << max(4, math.ceil(math.log2(len(actions))))
    fill = lambda x: np.concatenate([x, np.broadcast_to(x[:1], (size - len(x), *x.shape[1:]))])  # noqa: E731
    return jax.tree.map(fill, states), fill(actions)


def exhaustive(run: Any, side: int, num_simulations: int) -> dict[str, int]:
    """Lines of play won, drawn and lost by the policy as `side` (0 moves first), over all replies; equal positions are judged once."""
    task = envs.make("pgx:tic_tac_toe", 1)
    states = jax.tree.map(lambda x: np.asarray(x)[None], GAME.init(jax.random.key(0)))
    lines = np.ones(1, np.int64)
    found = {"wins": 0, "draws": 0, "losses": 0, "positions": 0}
    for ply in range(10):
        over = states.terminated
        results = states.outcome * (1 if side == 0 else -1)
        for name, value in (("wins", 1), ("draws", 0), ("losses", -1)):
            found[name] += int(lines[over & (results == value)].sum())
        states, lines = jax.tree.map(lambda x, going=~over: x[going], states), lines[~over]
        if not len(lines):
            break
        if ply % 2 == side:
            filled, _ = _filled(states, np.zeros(len(lines), np.int32))
            analysis = alphazero.analyse(
                run.config, task, run.actor, jax.tree.map(jnp.asarray, filled), jax.random.key(0), num_simulations=num_simulations
            )
            rows, actions = np.arange(len(lines)), np.asarray(analysis.action)[: len(lines)]
            found["positions"] += len(lines)
        else:
            rows, actions = np.nonzero(states.legal)
        states, lines = moved(jax.tree.map(lambda x, rows=rows: x[rows], states), actions.astype(np.int32)), lines[rows]
        _, first, which = np.unique(states.inner["_x"].board, axis=0, return_index=True, return_inverse=True)
        lines = np.bincount(which.reshape(-1), weights=lines).astype(np.int64)
        states = jax.tree.map(lambda x, first=first: x[first], states)
    return found


def one_seed(seed: int, runs: Path) -> dict[str, Any]:
    """Train, then play every line as both sides, with each of the searches."""
    began = time.perf_counter()
    run = fi.train("alphazero", "pgx:tic_tac_toe", seed=seed, out=runs / f"tictactoe-seed{seed}", overwrite=True, quiet=True)
    seconds = time.perf_counter() - began
    simulations = run.config.play_simulations
    found = {
        f"{name}, {number} simulations": exhaustive(run, side, number)
        for number in (simulations, run.config.num_simulations, 0)
        for side, name in ((0, "first"), (1, "second"))
    }
    losses = sum(part["losses"] for name, part in found.items() if f" {simulations} " in name)
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "compile_s": round(run.timing.get("compile", 0.0), 1),
        "losses": losses,
        "lines": found,
    }


def main() -> None:
    """Train and test each seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="which seeds")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    head = header("tictactoe", "benchmarks.games.tictactoe")
    seeds = [one_seed(int(seed), args.runs) for seed in args.seeds.split(",")]
    for row in seeds:
        print(row)
    reached = all(row["losses"] <= REACH["losses"] and row["seconds"] <= REACH["seconds"] for row in seeds)
    aimed = reached and all(row["seconds"] <= AIM_SECONDS for row in seeds)
    found = head | {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "preset": "alphazero-tic-tac-toe",
        "reach": REACH, "reached": reached, "aim_seconds": AIM_SECONDS, "aim_reached": aimed, "seeds": seeds,
    }  # fmt: skip
    write(args.out / "tictactoe.json", found)
    print({"reached": reached, "aim_reached": aimed})


if __name__ == "__main__":
    main()
