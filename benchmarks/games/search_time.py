"""What a simulation costs beside the network's own time: `python -m benchmarks.games.search_time`

Connect four, ResNet 3x64, a batch of 64 positions a few moves into random games, 32 simulations. The network's own time is that of the same
33 judgements of 64 positions in one compiled loop. To reach: at most 30 % on top of it; aim: 10 %. Each is timed in turn, round by round;
the medians are compared. Leave the machine alone while it runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.record import RESULTS, header, versions, write
from flatirons.envs import games
from flatirons.plan import contest
from flatirons.systems import alphazero

REACH, AIM = 0.30, 0.10
BATCH, SIMULATIONS, PLIES = 64, 32, 6
GAME = games.make("connect_four")


def positions(key: Any) -> Any:
    """Positions after some random moves."""
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)), GAME.init(key))

    def one_ply(states: Any, key: Any) -> Any:
        return jax.vmap(GAME.step, in_axes=(None, 0, 0))(key, states, contest.random_move(GAME, key, states))[0], None

    return jax.lax.scan(one_ply, start, jax.random.split(key, PLIES))[0]


def network_alone(config: alphazero.Config, params: Any, obs: Any) -> Any:
    """As many judgements as a search asks for, each of them of what the last one left."""

    def judge(_: Any, c: Any) -> Any:
        obs, total = c
        logits, value = alphazero.network(config, GAME, params, obs)
        # Never so, which the compiler cannot know.
        return obs + (jnp.sum(logits) > 1e9).astype(obs.dtype), total + value

    return jax.lax.fori_loop(0, SIMULATIONS + 1, judge, (obs, jnp.zeros(BATCH)))[1]


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def main() -> None:
    """Time both searches and the network, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    head = header("search_time", "benchmarks.games.search_time")
    states, key = jax.jit(positions)(jax.random.key(0)), jax.random.key(1)
    calls: dict[str, Callable[[], Any]] = {}
    for kind in ("puct", "gumbel"):
        config = alphazero.Config(
            search=kind, blocks=3, channels=64, policy_channels=8, value_channels=8, value_hidden=64, num_envs=BATCH, buffer_size=2**14
        )
        params = alphazero.resnet_init(jax.random.key(0), GAME.obs_spec, GAME.num_actions, alphazero.shape_of(config))
        obs = jax.vmap(GAME.observe)(states)
        network = jax.jit(network_alone)
        search = jax.jit(
            lambda config, params, states, key: alphazero.search(
                config, GAME, params, key, states, num_simulations=SIMULATIONS, exploring=jnp.ones(BATCH, bool)
            )
        )
        calls |= {
            kind: lambda s=search, c=config, p=params: s(c, p, states, key),
            "network": lambda n=network, c=config, p=params, o=obs: n(c, p, o),
        }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(args.rounds + 1):
        for name, call in calls.items():
            spent = timed(call)
            if round_:  # the first one compiles
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {}
    for kind in ("puct", "gumbel"):
        overhead = medians[kind] / medians["network"] - 1.0
        rows[kind] = {
            "overhead": round(overhead, 4), "reached": overhead <= REACH, "aim_reached": overhead <= AIM,
            "microseconds_a_simulation": round(1e6 * medians[kind] / SIMULATIONS / BATCH, 2),
            "simulations_a_second": round(SIMULATIONS * BATCH / medians[kind]),
        }  # fmt: skip
        print(kind, rows[kind])
    found = head | {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "batch": BATCH, "simulations": SIMULATIONS, "rounds": args.rounds,
        "network": "ResNet 3x64", "network_microseconds": round(1e6 * medians["network"] / (SIMULATIONS + 1) / BATCH, 2),
        "reach": REACH, "aim": AIM, "searches": rows,
    }  # fmt: skip
    write(args.out / "search_time.json", found)


if __name__ == "__main__":
    main()
