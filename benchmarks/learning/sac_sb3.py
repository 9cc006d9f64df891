"""One seed of Stable-Baselines3 for `sac_and_sb3`: `python -m benchmarks.learning.sac_sb3 JSON` in the PyTorch peers' environment."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from stable_baselines3 import SAC

from benchmarks.learning.score import greedy_returns
from benchmarks.record import versions, write


def main() -> None:
    """Train to each budget, score there."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    names = ("batch_size", "buffer_size", "learning_starts", "learning_rate", "gamma", "tau", "gradient_steps")
    settings = job["settings"]
    model = SAC(
        "MlpPolicy",
        job["task"],
        train_freq=settings["train_every"],
        policy_kwargs={"net_arch": settings["hidden"]},
        device="cpu",
        seed=job["seed"],
        **{name: settings[name] for name in names},
    )
    returns, begin = {}, time.perf_counter()
    for budget in job["budgets"]:
        model.learn(budget - model.num_timesteps, reset_num_timesteps=False)
        act = lambda obs: model.predict(obs, deterministic=True)[0]  # noqa: E731
        returns[str(budget)] = greedy_returns(job["task"], act, job["episodes"], 10_000 + job["seed"])
    write(
        Path(job["result"]),
        {
            "mark": job["mark"],
            "returns": returns,
            "seconds": time.perf_counter() - begin,
            "versions": versions(("stable-baselines3", "torch", "numpy", "gymnasium", "mujoco")),
        },
    )


main()
