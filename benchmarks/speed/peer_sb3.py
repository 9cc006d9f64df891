"""Stable-Baselines3's PPO and DQN: `python -m benchmarks.speed.peer_sb3 JSON` in the PyTorch peers' environment."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure


def ppo(settings: dict[str, Any], task: str, seed: int) -> PPO:
    """PPO on a DummyVecEnv, its MlpPolicy: two towers of the given widths, tanh."""
    env: Any = make_vec_env(task, settings["num_envs"], seed=seed)
    if settings["normalise_obs"] or settings["normalise_reward"]:
        env = VecNormalize(env, norm_obs=settings["normalise_obs"], norm_reward=settings["normalise_reward"], gamma=settings["gamma"])
    rows = settings["num_envs"] * settings["num_steps"]
    return PPO(
        "MlpPolicy",
        env,
        n_steps=settings["num_steps"],
        batch_size=rows // settings["num_minibatches"],
        n_epochs=settings["num_epochs"],
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_range=settings["clip_eps"],
        ent_coef=settings["ent_coef"],
        vf_coef=settings["value_coef"],
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs={"net_arch": {"pi": settings["hidden"], "vf": settings["hidden"]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=seed,
    )


def dqn(settings: dict[str, Any], task: str, seed: int) -> DQN:
    """DQN on one environment, its MlpPolicy, ReLU; epsilon constant."""
    return DQN(
        "MlpPolicy",
        make_vec_env(task, 1, seed=seed),
        learning_rate=settings["learning_rate"],
        buffer_size=settings["buffer_size"],
        learning_starts=settings["learning_starts"],
        batch_size=settings["batch_size"],
        gamma=settings["gamma"],
        train_freq=settings["train_every"],
        gradient_steps=settings["gradient_steps"],
        target_update_interval=settings["target_every"] * settings["train_every"] // settings["gradient_steps"],
        exploration_initial_eps=settings["epsilon_start"],
        exploration_final_eps=settings["epsilon_end"],
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs={"net_arch": settings["hidden"]},
        device="cpu",
        seed=seed,
    )


def main() -> None:
    """Measure what the JSON argument asks for."""
    job = json.loads(sys.argv[1])
    settings = job["settings"]
    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    if job["system"] == "ppo":
        model: PPO | DQN = ppo(settings, job["task"], job["seed"])
        steps_per_turn, warm_steps = settings["num_envs"] * settings["num_steps"], 0
    else:
        model = dqn(settings, job["task"], job["seed"])
        steps_per_turn, warm_steps = settings["train_every"], settings["learning_starts"]

    def turns(n: int) -> None:
        model.learn(n * steps_per_turn, reset_num_timesteps=False)

    result = measure(turns, steps_per_turn, job["seconds"], started, warm_steps)
    returns = [float(info["r"]) for info in model.ep_info_buffer or ()]
    answer(
        result
        | {
            "return_after": sum(returns) / len(returns) if returns else None,
            "threads": torch.get_num_threads(),
            "versions": versions(("torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")),
        }
    )


main()
