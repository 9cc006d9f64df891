"""SBX's SAC: `python -m benchmarks.speed.peer_sbx JSON` in the JAX peers' environment."""

from __future__ import annotations

import json
import sys
import time

from sbx import SAC
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure


def main() -> None:
    """Measure what the JSON argument asks for."""
    job = json.loads(sys.argv[1])
    settings = job["settings"]
    started = time.perf_counter()
    model = SAC(
        "MlpPolicy",
        make_vec_env(job["task"], 1, seed=job["seed"]),
        learning_rate=settings["learning_rate"],
        qf_learning_rate=settings["learning_rate"],
        buffer_size=settings["buffer_size"],
        learning_starts=settings["learning_starts"],
        batch_size=settings["batch_size"],
        tau=settings["tau"],
        gamma=settings["gamma"],
        train_freq=settings["train_every"],
        gradient_steps=settings["gradient_steps"],
        policy_kwargs={"net_arch": settings["hidden"]},
        seed=job["seed"],
    )

    def turns(n: int) -> None:
        model.learn(n * settings["train_every"], reset_num_timesteps=False)

    result = measure(turns, settings["train_every"], job["seconds"], started, settings["learning_starts"])
    returns = [float(info["r"]) for info in model.ep_info_buffer or ()]
    answer(
        result
        | {
            "return_after": sum(returns) / len(returns) if returns else None,
            "versions": versions(("sbx-rl", "jax", "jaxlib", "stable-baselines3", "gymnasium", "mujoco", "numpy")),
        }
    )


main()
