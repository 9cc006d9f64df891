"""PPO on Gymnasium's CartPole-v1, same settings: Flatirons against Stable-Baselines3. `python -m benchmarks.speed.ppo_cartpole_sb3`"""

from __future__ import annotations

from benchmarks.record import PEER_TORCH
from benchmarks.speed.ppo_cartpole_rejax import SETTINGS
from benchmarks.speed.versus import arguments, compare

NOTES = (
    "SB3 steps its DummyVecEnv (what make_vec_env gives), with the Monitor that counts returns; the better of 1 and its default threads.",
    "No value clipping in either.",
)


def main() -> None:
    """8 environments x 32 steps x 20 epochs of one minibatch of 256."""
    compare(
        "ppo_cartpole_sb3",
        "benchmarks.speed.ppo_cartpole_sb3",
        arguments(__doc__),
        system="ppo",
        task="CartPole-v1",
        peer_task="CartPole-v1",
        settings=SETTINGS["8x32x20"] | {"clip_value": False, "ent_coef": 0.0},
        sizes=(4, 2),
        peer_name="stable-baselines3",
        peer=(PEER_TORCH, "benchmarks.speed.peer_sb3"),
        peer_threads=(1, None),
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
