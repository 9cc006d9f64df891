"""PPO on Atari Pong with the paper's settings and the Nature network: Flatirons against Stable-Baselines3.

`python -m benchmarks.speed.ppo_atari_sb3`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import PEER_TORCH
from benchmarks.speed.versus import arguments, compare

SETTINGS: dict[str, Any] = {
    "num_envs": 8,
    "num_steps": 128,
    "num_epochs": 3,
    "num_minibatches": 4,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.1,
    "ent_coef": 0.01,
    "value_coef": 1.0,
    "max_grad_norm": 0.5,
    "clip_value": False,
    "normalise_obs": False,
    "normalise_reward": False,
    "normalise_advantage": True,
    "anneal_learning_rate": False,
    "anneal_clip_eps": False,
    "share_torso": True,
    "network": "nature",
}
"""The paper's Table 5, without what is annealed, so that a step's cost does not drift."""

NOTES = (
    "8 actors, T 128, 3 epochs of minibatches of 256; one Nature network with two heads in both.",
    "SB3: make_atari_env (its standard wrappers, DummyVecEnv) and VecFrameStack on PongNoFrameskip-v4, CnnPolicy, the better of 1 and its "
    "default threads. Ours: ALE's vector environment.",
)


def main() -> None:
    """One comparison, one result file."""
    args = arguments(__doc__)
    compare(
        "ppo_atari_sb3",
        "benchmarks.speed.ppo_atari_sb3",
        args,
        system="ppo",
        task="ALE/Pong-v5",
        peer_task="PongNoFrameskip-v4",
        settings=SETTINGS,
        sizes=(0, 6),
        peer_name="stable-baselines3",
        peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
        peer_threads=(1, None),
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
