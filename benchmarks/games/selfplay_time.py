"""Self-play in connect four, games and simulations a second: Flatirons against OpenSpiel's AlphaZero.

`python -m benchmarks.games.selfplay_time [--pairs 3] [--seconds 20]`

Both with a ResNet 3x64 that has learnt nothing, 32 simulations a move, noise at the root and moves in proportion to visits for 15 plies.
Ours plays 64 games side by side in one process on all cores, as in training; OpenSpiel runs one of its actor processes a core, with one
thread each. Bars: ten times its simulations a second to reach, thirty to aim at.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.learning.run import ONE_THREAD
from benchmarks.record import OURS, PEER_JAX, RESULTS, header, versions, write
from benchmarks.speed.measure import answer, measure
from benchmarks.speed.versus import measurement

SETTINGS = {"blocks": 3, "channels": 64, "simulations": 32}
REACH, AIM = 10.0, 30.0


def ours(job: dict[str, Any]) -> None:
    """Self-play in this process."""
    import jax
    import jax.numpy as jnp

    from flatirons import envs
    from flatirons.run import metrics
    from flatirons.run.loop import turns_function
    from flatirons.systems import alphazero

    started = time.perf_counter()
    config: Any = alphazero.Config(
        blocks=job["blocks"], channels=job["channels"], num_simulations=job["simulations"], policy_channels=2, value_channels=1,
        value_hidden=job["channels"], num_envs=64, num_steps=16, buffer_size=2**14, temperature_plies=15, dirichlet_alpha=1.0,
        learning_starts=2**30, gradient_steps=1,
    )  # fmt: skip
    task: Any = envs.make("pgx:connect_four", config.num_envs)
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    state = jax.jit(alphazero.init, static_argnums=1)(on_device, task, jax.random.key(job["seed"]))
    compiled = jax.jit(turns_function(alphazero, task), donate_argnums=1).lower(on_device, state, jnp.int32(1)).compile()
    played = 0

    def turns(n: int) -> None:
        nonlocal state, played
        state, total = compiled(on_device, state, jnp.int32(n))
        played = metrics.to_row(jax.device_get(total), n)["episodes"]

    found = measure(turns, alphazero.steps_per_turn(config), job["seconds"], started)
    answer(found | {"games": played, "moves": found["steps"], "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "pgx", "mctx"))})


def of_openspiel(job: dict[str, Any]) -> dict[str, Any]:
    """Its actors, one a core, at the same time: what they did together."""
    cores = len(os.sched_getaffinity(0))
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        one = lambda _: measurement(PEER_JAX, "benchmarks.games.peer_openspiel", job, XLA_FLAGS=ONE_THREAD, OMP_NUM_THREADS="1")  # noqa: E731
        parts = list(pool.map(one, range(cores)))
    rate = lambda name: sum(part[name] / part["seconds"] for part in parts)  # noqa: E731
    return {"games_a_second": rate("games"), "moves_a_second": rate("moves"), "parts": parts}


def main() -> None:
    """Ours and theirs in turn, and the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long one measurement runs, about")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    head, pairs, known = header("selfplay_time", "benchmarks.games.selfplay_time"), [], {}
    trials = {api: of_openspiel(SETTINGS | {"api": api, "seconds": args.seconds / 2})["moves_a_second"] for api in ("nnx", "linen")}
    api = max(trials, key=lambda name: trials[name])
    for seed in range(args.pairs):
        mine = measurement(OURS, "benchmarks.games.selfplay_time", SETTINGS | {"seed": seed, "seconds": args.seconds})
        theirs = of_openspiel(SETTINGS | {"api": api, "seconds": args.seconds})
        known = {"ours": mine["versions"], "peer": theirs["parts"][0]["versions"]}
        moves = {"ours": mine["moves"] / mine["seconds"], "peer": theirs["moves_a_second"]}
        pairs.append(
            {
                "ours_games_a_second": mine["games"] / mine["seconds"], "peer_games_a_second": theirs["games_a_second"],
                "ours_simulations_a_second": moves["ours"] * SETTINGS["simulations"],
                "peer_simulations_a_second": moves["peer"] * SETTINGS["simulations"],
                "ratio": moves["ours"] / moves["peer"],
            }
        )  # fmt: skip
        print({name: round(value, 2) for name, value in pairs[-1].items()}, flush=True)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    found = head | {
        "versions": known, "settings": SETTINGS, "peer_network": api, "peer_network_trials": trials, "pairs": pairs,
        "ratio_median": ratio, "reach": REACH, "reached": ratio >= REACH, "aim": AIM, "aim_reached": ratio >= AIM,
    }  # fmt: skip
    write(args.out / "selfplay_time.json", found)
    print(f"{ratio:.1f} times the simulations a second")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        ours(json.loads(sys.argv[1]))
    else:
        main()
