"""DQN on CartPole, same settings: Flatirons on Gymnasium's task and in-graph, reported apart, against Stable-Baselines3.

`python -m benchmarks.speed.dqn_cartpole_sb3`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import PEER_TORCH
from benchmarks.speed.versus import arguments, compare

COMMON: dict[str, Any] = {
    "num_envs": 1,
    "gamma": 0.99,
    "buffer_size": 100_000,
    "max_grad_norm": 10.0,
    "epsilon_start": 0.05,
    "epsilon_end": 0.05,
    "activation": "relu",
}

SETTINGS = {
    # SB3's own defaults (a copy into the target every 10,000 decisions), with a smaller replay.
    "default": {
        "hidden": [64, 64],
        "learning_rate": 1e-4,
        "batch_size": 32,
        "train_every": 4,
        "gradient_steps": 1,
        "target_every": 2_500,
        "learning_starts": 100,
    }
    | COMMON,
    # The settings that solve CartPole in RL Zoo: 256 steps, then 128 updates.
    "zoo": {
        "hidden": [256, 256],
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "train_every": 256,
        "gradient_steps": 128,
        "target_every": 128,
        "learning_starts": 1_024,
    }
    | COMMON,
}

NOTES = (
    "Epsilon is constant at 0.05 in both, so that the cost of a step does not drift; the clock starts after learning_starts.",
    "target_every counts updates; SB3's interval counts decisions and is set to match. RL Zoo's interval of 10 amounts to one copy a turn, "
    "as here: SB3 copies while it collects, never between the updates of a turn.",
    "SB3: DummyVecEnv with one environment, the better of 1 and its default threads.",
)


def main() -> None:
    """Two settings, each on the host and in-graph: four result files."""
    args = arguments(__doc__)
    for label, settings in SETTINGS.items():
        for where, task in (("host", "CartPole-v1"), ("ingraph", "jax:CartPole-v1")):
            compare(
                f"dqn_cartpole_sb3_{label}_{where}",
                "benchmarks.speed.dqn_cartpole_sb3",
                args,
                system="dqn",
                task=task,
                peer_task="CartPole-v1",
                settings=settings,
                sizes=(4, 2),
                peer_name="stable-baselines3",
                peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
                peer_threads=(1, None),
                notes=NOTES,
            )


if __name__ == "__main__":
    main()
