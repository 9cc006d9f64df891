"""SAC on Gymnasium's HalfCheetah-v5, same settings: Flatirons against SBX and Stable-Baselines3, and one update against the roof.

`python -m benchmarks.speed.sac_halfcheetah`
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import OURS, PEER_JAX, PEER_TORCH
from benchmarks.speed.versus import arguments, compare, measurement, sac_update_flops, update_against_roof

COMMON: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "buffer_size": 1_000_000,
    "learning_starts": 1_000,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
    "hidden": [256, 256],
}
SETTINGS = {
    "1x1": COMMON | {"train_every": 1, "gradient_steps": 1},
    "50x50": COMMON | {"train_every": 50, "gradient_steps": 50},
}
"""An update a decision; and the same in bursts of fifty, as Spinning Up has it."""
OWN: dict[str, Any] = {"random_steps": 1_000, "overlap": True}
"""Ours alone: the peers' actions are random before learning starts, too. With overlap the environment steps while the learner computes."""

PEERS: dict[str, Any] = {
    "sbx": (("sbx", (PEER_JAX, "benchmarks.speed.peer_sbx")), (None,)),
    "sb3": (("stable-baselines3", (PEER_TORCH, "benchmarks.speed.peer_sb3")), (1, None)),
}
NOTES = (
    "One update a decision of 256 rows, two layers of 256, automatic temperature; the clock starts after learning_starts.",
    "SB3: the better of 1 and its default threads. SBX: its own jitted update, JAX's default threads.",
)


def main() -> None:
    """Four comparisons, and one update against the roof."""
    args = arguments(__doc__)
    module = "benchmarks.speed.sac_halfcheetah"
    for label, settings in SETTINGS.items():
        for peer, ((peer_name, where), threads) in PEERS.items():
            compare(
                f"sac_halfcheetah_{peer}_{label}",
                module,
                args,
                system="sac",
                task="HalfCheetah-v5",
                peer_task="HalfCheetah-v5",
                settings=settings | OWN,
                sizes=(17, 6),
                peer_name=peer_name,
                peer=where,
                peer_threads=threads,
                notes=NOTES,
            )
    name = "sac_update_halfcheetah"
    if args.only in name:
        roof = measurement(OURS, "benchmarks.speed.roof", {"task": "jax:CartPole-v1", "num_envs": 1, "seconds": 3.0})
        settings = SETTINGS["1x1"] | {"random_steps": 0}
        flops, gflops = sac_update_flops(settings, 17, 6), roof["roof"]["matrix_product_gflops"]
        update_against_roof(args, name, module, "sac", "HalfCheetah-v5", settings, flops, gflops)


if __name__ == "__main__":
    main()
