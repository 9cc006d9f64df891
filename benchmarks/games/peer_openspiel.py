"""Self-play of OpenSpiel's AlphaZero: `python -m benchmarks.games.peer_openspiel JSON` in the JAX peers' environment.

One of its actor processes, as `alpha_zero.actor` has it (its bots, its evaluator with the cache of 65,536 positions, its `_play_game`), for
so many seconds after the first game, which compiles.
"""

from __future__ import annotations

import json
import sys
import time

import pyspiel
from open_spiel.python.algorithms.alpha_zero import alpha_zero, evaluator

from benchmarks.record import versions
from benchmarks.speed.measure import answer


class Silent:
    """A logger that says nothing."""

    def print(self, *_: object) -> None:
        """Say nothing."""

    opt_print = print


def main() -> None:
    """Play, and count games and moves."""
    job = json.loads(sys.argv[1])
    game = pyspiel.load_game("connect_four")
    config = alpha_zero.Config(
        game="connect_four", path=".", learning_rate=1e-3, weight_decay=1e-4, decouple_weight_decay=False, train_batch_size=256,
        replay_buffer_size=2**16, replay_buffer_reuse=True, max_steps=0, checkpoint_freq=0, actors=1, evaluators=0, evaluation_window=1,
        eval_levels=1, uct_c=1.25, max_simulations=job["simulations"], policy_alpha=1.0, policy_epsilon=0.25, temperature=1.0,
        temperature_drop=15, nn_model="resnet", nn_width=job["channels"], nn_depth=job["blocks"],
        observation_shape=game.observation_tensor_shape(), output_size=game.num_distinct_actions(), verbose=False, quiet=True,
        nn_api_version=job["api"],
    )  # fmt: skip
    model = alpha_zero._init_model_from_config(config)
    judge = evaluator.AlphaZeroEvaluator(game, model)
    bots = [alpha_zero._init_bot(config, game, judge, False) for _ in range(2)]
    play = lambda number: alpha_zero._play_game(Silent(), number, game, bots, config.temperature, config.temperature_drop)  # noqa: E731
    play(0)
    games = moves = 0
    began = time.perf_counter()
    while time.perf_counter() - began < job["seconds"]:
        moves += len(play(games).states)
        games += 1
    seconds = time.perf_counter() - began
    cache = judge.cache_info()
    answer(
        {
            "games": games, "moves": moves, "seconds": seconds, "cache_hits": cache.hits, "cache_misses": cache.misses,
            "versions": versions(("jax", "jaxlib", "flax", "numpy", "open_spiel")),
        }
    )  # fmt: skip


main()
