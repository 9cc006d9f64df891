"""The time of a TRPO iteration, same settings: Flatirons against sb3-contrib, on HalfCheetah and on CartPole.

`python -m benchmarks.speed.trpo_sb3`

An iteration is `num_envs` x `num_steps` decisions, a step of the policy and the epochs of the value function; steps per second times the
iteration's decisions are iterations per second, so that the ratio is that of the iterations' times.
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import PEER_TORCH
from benchmarks.speed.versus import arguments, compare

COMMON: dict[str, Any] = {
    "delta": 0.01,
    "cg_iterations": 15,
    "damping": 0.1,
    "fisher_every": 1,
    "backtrack_ratio": 0.8,
    "backtrack_steps": 10,
    "value_epochs": 10,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "normalise_advantage": True,
    "hidden": [64, 64],
}
"""sb3-contrib's defaults."""

SETTINGS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "halfcheetah_1x2048": ("HalfCheetah-v5", (17, 6), {"num_envs": 1, "num_steps": 2048, "value_minibatches": 16} | COMMON),
    "cartpole_8x256": ("CartPole-v1", (4, 2), {"num_envs": 8, "num_steps": 256, "value_minibatches": 16} | COMMON),
}

NOTES = (
    "The value function takes 10 epochs of minibatches of 128, conjugate gradient 15 iterations on all rows, both as sb3-contrib has them.",
    "sb3-contrib: DummyVecEnv, the better of 1 and its default threads.",
)


def main() -> None:
    """Each setting, one result file each."""
    args = arguments(__doc__)
    for label, (task, sizes, settings) in SETTINGS.items():
        compare(
            f"trpo_sb3_{label}",
            "benchmarks.speed.trpo_sb3",
            args,
            system="trpo",
            task=task,
            peer_task=task,
            settings=settings,
            sizes=sizes,
            peer_name="sb3-contrib",
            peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
            peer_threads=(1, None),
            notes=NOTES,
        )


if __name__ == "__main__":
    main()
