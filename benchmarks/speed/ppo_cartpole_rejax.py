"""PPO on CartPole, both wholly in-graph, identical settings, evaluation off: Flatirons against Rejax.

`python -m benchmarks.speed.ppo_cartpole_rejax`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import PEER_JAX
from benchmarks.speed.versus import arguments, compare

COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "clip_eps": 0.2,
    "ent_coef": 0.01,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "hidden": [64, 64],
    "activation": "tanh",
    "clip_value": True,
    "normalise_advantage": True,
    "normalise_obs": False,
    "normalise_reward": False,
    "anneal_learning_rate": False,
    "anneal_clip_eps": False,
}

SETTINGS = {
    "8x32x20": {"num_envs": 8, "num_steps": 32, "num_epochs": 20, "num_minibatches": 1} | COMMON,
    "64x64x4": {"num_envs": 64, "num_steps": 64, "num_epochs": 4, "num_minibatches": 4} | COMMON,
}

NOTES = (
    "Separate actor and critic, the value clipped, in both. Rejax clips gradients element by element, ours by their global norm.",
    "Ours bootstraps at the time limit (one more value per row); Rejax takes the limit for a terminal state.",
    "Rejax's train_iteration is called in a compiled loop as its train() does between evaluations, State donated in both.",
)


def main() -> None:
    """Both settings, one result file each."""
    args = arguments(__doc__)
    for label, settings in SETTINGS.items():
        compare(
            f"ppo_cartpole_rejax_{label}",
            "benchmarks.speed.ppo_cartpole_rejax",
            args,
            system="ppo",
            task="jax:CartPole-v1",
            peer_task="CartPole-v1",
            settings=settings,
            sizes=(4, 2),
            peer_name="rejax",
            peer=(PEER_JAX, "benchmarks.speed.peer_rejax"),
            notes=NOTES,
        )


if __name__ == "__main__":
    main()
