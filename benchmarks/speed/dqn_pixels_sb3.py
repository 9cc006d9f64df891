"""DQN from pixels, same settings, against Stable-Baselines3: Atari Pong with the Nature network, MinAtar Breakout with its authors'.

`python -m benchmarks.speed.dqn_pixels_sb3`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import OURS, PEER_TORCH
from benchmarks.speed.versus import arguments, compare, measurement, update_against_roof, update_flops

ATARI: dict[str, Any] = {
    "num_envs": 1,
    "train_every": 4,
    "gradient_steps": 1,
    "batch_size": 32,
    "buffer_size": 20_000,
    "learning_starts": 1_000,
    "learning_rate": 1e-4,
    "gamma": 0.99,
    "target_every": 250,
    "epsilon_start": 0.1,
    "epsilon_end": 0.1,
    "max_grad_norm": 10.0,
    "network": "nature",
}
"""RL Zoo's settings for Atari, with a replay that fits SB3's two copies of every stack into memory."""

MINATAR: dict[str, Any] = ATARI | {
    "train_every": 1,
    "buffer_size": 100_000,
    "learning_rate": 2.5e-4,
    "target_every": 1_000,
    "optimiser": "rmsprop-torch",
    "optimiser_eps": 0.01,
    "network": "minatar",
}
"""The settings of MinAtar's authors."""

UPDATES = {
    "dqn_update_nature": ATARI,
    "dqn_update_nature_double": ATARI | {"double": True},
    "dqn_update_playing_atari_double": ATARI | {"double": True, "network": "playing-atari"},
}
"""Single updates that are held against the roof."""

NOTES = (
    "Epsilon is constant at 0.1 in both, so that the cost of a step does not drift; the clock starts after learning_starts.",
    "SB3: one environment in a DummyVecEnv, the better of 1 and its default threads. Atari through its own standard wrappers "
    "(PongNoFrameskip-v4), MinAtar through the package of MinAtar's authors (all six actions) with channels moved first.",
    "Ours: ALE's vector environment; MinAtar in-graph (pgx).",
)


def main() -> None:
    """Two comparisons, and one update of three networks against the roof."""
    args = arguments(__doc__)
    rows = (
        ("dqn_pong_sb3", "ALE/Pong-v5", "PongNoFrameskip-v4", ATARI, (0, 6)),
        ("dqn_minatar_sb3", "pgx:minatar-breakout", "MinAtar/Breakout-v0", MINATAR, (0, 6)),
    )
    for name, task, peer_task, settings, sizes in rows:
        compare(
            name,
            "benchmarks.speed.dqn_pixels_sb3",
            args,
            system="dqn",
            task=task,
            peer_task=peer_task,
            settings=settings,
            sizes=sizes,
            peer_name="stable-baselines3",
            peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
            peer_threads=(1, None),
            notes=NOTES,
        )
    if any(args.only in name for name in UPDATES):
        roof = measurement(OURS, "benchmarks.speed.roof", {"task": "jax:CartPole-v1", "num_envs": 1, "seconds": 3.0})
        for name, settings in UPDATES.items():
            if args.only in name:
                flops, gflops = update_flops(settings, 0, 6), roof["roof"]["matrix_product_gflops"]
                update_against_roof(args, name, "benchmarks.speed.dqn_pixels_sb3", "dqn", "ALE/Pong-v5", settings, flops, gflops)


if __name__ == "__main__":
    main()
