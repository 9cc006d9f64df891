"""PPO on Gymnasium's HalfCheetah-v5, same settings: Flatirons against Stable-Baselines3.

`python -m benchmarks.speed.ppo_halfcheetah_sb3`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import PEER_TORCH
from benchmarks.speed.versus import arguments, compare

COMMON: dict[str, Any] = {
    "num_epochs": 10,
    "num_minibatches": 32,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "hidden": [64, 64],
    "activation": "tanh",
    "clip_value": False,
    "normalise_advantage": True,
    "anneal_learning_rate": False,
    "anneal_clip_eps": False,
}

SETTINGS = {
    "8x256": {"num_envs": 8, "num_steps": 256, "normalise_obs": True, "normalise_reward": True} | COMMON,
    "1x2048": {"num_envs": 1, "num_steps": 2048, "normalise_obs": False, "normalise_reward": False} | COMMON,
}

NOTES = (
    "Minibatches of 64 (2048 rows in 32). With 8 environments observations and rewards are normalised in both (SB3: VecNormalize).",
    "1 x 2048 is the paper's collection, not normalised. SB3: DummyVecEnv, the better of 1 and its default threads.",
)


def main() -> None:
    """Both settings, one result file each."""
    args = arguments(__doc__)
    for label, settings in SETTINGS.items():
        compare(
            f"ppo_halfcheetah_sb3_{label}",
            "benchmarks.speed.ppo_halfcheetah_sb3",
            args,
            system="ppo",
            task="HalfCheetah-v5",
            peer_task="HalfCheetah-v5",
            settings=settings,
            sizes=(17, 6),
            peer_name="stable-baselines3",
            peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
            peer_threads=(1, None),
            notes=NOTES,
        )


if __name__ == "__main__":
    main()
