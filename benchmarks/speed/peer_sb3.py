"""Stable-Baselines3's PPO, DQN and SAC, sb3-contrib's TRPO: `python -m benchmarks.speed.peer_sb3 JSON` in the PyTorch peers' venv."""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure


def ppo(settings: dict[str, Any], task: str, seed: int) -> PPO:
    """PPO on a DummyVecEnv, its MlpPolicy: two towers of the given widths, tanh; on Atari its CnnPolicy, one Nature network for both."""
    env: Any
    if settings.get("network") == "nature":
        gymnasium.register_envs(importlib.import_module("ale_py"))
        env, policy, arguments = VecFrameStack(make_atari_env(task, settings["num_envs"], seed=seed), 4), "CnnPolicy", {}
    else:
        env, policy = make_vec_env(task, settings["num_envs"], seed=seed), "MlpPolicy"
        arguments = {"net_arch": {"pi": settings["hidden"], "vf": settings["hidden"]}, "activation_fn": torch.nn.Tanh}
        if settings["normalise_obs"] or settings["normalise_reward"]:
            env = VecNormalize(env, norm_obs=settings["normalise_obs"], norm_reward=settings["normalise_reward"], gamma=settings["gamma"])
    rows = settings["num_envs"] * settings["num_steps"]
    return PPO(
        policy,
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
        policy_kwargs=arguments,
        device="cpu",
        seed=seed,
    )


def trpo(settings: dict[str, Any], task: str, seed: int) -> Any:
    """sb3-contrib's TRPO on a DummyVecEnv: two towers of the given widths, tanh."""
    from sb3_contrib import TRPO

    rows = settings["num_envs"] * settings["num_steps"]
    return TRPO(
        "MlpPolicy",
        make_vec_env(task, settings["num_envs"], seed=seed),
        learning_rate=settings["learning_rate"],
        n_steps=settings["num_steps"],
        batch_size=rows // settings["value_minibatches"],
        gamma=settings["gamma"],
        cg_max_steps=settings["cg_iterations"],
        cg_damping=settings["damping"],
        line_search_shrinking_factor=settings["backtrack_ratio"],
        line_search_max_iter=settings["backtrack_steps"],
        n_critic_updates=settings["value_epochs"],
        gae_lambda=settings["gae_lambda"],
        normalize_advantage=settings["normalise_advantage"],
        target_kl=settings["delta"],
        sub_sampling_factor=settings["fisher_every"],
        policy_kwargs={"net_arch": {"pi": settings["hidden"], "vf": settings["hidden"]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=seed,
    )


class MinAtarNetwork(BaseFeaturesExtractor):
    """The network of MinAtar's authors: 16 filters of 3 x 3, then 128 rectifiers."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, features_dim=128)
        self.conv = torch.nn.Conv2d(space.shape[0], 16, 3)
        self.dense = torch.nn.Linear(16 * (space.shape[1] - 2) * (space.shape[2] - 2), 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, channels, height, width]` to `[n, 128]`."""
        return torch.relu(self.dense(torch.relu(self.conv(x)).flatten(1)))


class MinAtarImage(gymnasium.ObservationWrapper):
    """The adapter: MinAtar's own environment with channels first and float32, which is what SB3's networks take."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        height, width, channels = env.observation_space.shape or (0, 0, 0)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (channels, height, width), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """`[height, width, channels]` bool to `[channels, height, width]` float32."""
        return np.moveaxis(np.asarray(observation, np.float32), -1, 0)


def task_and_network(settings: dict[str, Any], task: str, seed: int) -> tuple[Any, str, dict[str, Any]]:
    """(environments, policy class, its arguments) as an SB3 user would set them up for this task."""
    network = settings.get("network")
    if network == "nature":
        gymnasium.register_envs(importlib.import_module("ale_py"))
        # SB3's standard Atari wrappers: no-ops, frame skip 4 with the maximum, episodic life, FIRE, 84 x 84, clipped rewards; stacked here.
        return VecFrameStack(make_atari_env(task, 1, seed=seed), 4), "CnnPolicy", {}
    if network == "minatar":
        importlib.import_module("minatar.gym").register_envs()
        env = make_vec_env(task, 1, seed=seed, wrapper_class=MinAtarImage)
        torso = {"features_extractor_class": MinAtarNetwork, "normalize_images": False, "net_arch": []}
        return env, "CnnPolicy", torso
    return make_vec_env(task, 1, seed=seed), "MlpPolicy", {"net_arch": settings["hidden"]}


def dqn(settings: dict[str, Any], task: str, seed: int) -> DQN:
    """DQN on one environment, ReLU; epsilon constant."""
    env, policy, arguments = task_and_network(settings, task, seed)
    if settings.get("optimiser") == "rmsprop-torch":
        # Centred, as MinAtar's authors call it; ours has this built in.
        arguments["optimizer_class"] = torch.optim.RMSprop
        arguments["optimizer_kwargs"] = {"alpha": 0.95, "eps": settings["optimiser_eps"], "centered": True}
    return DQN(
        policy,
        env,
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
        policy_kwargs=arguments,
        device="cpu",
        seed=seed,
    )


def sac(settings: dict[str, Any], task: str, seed: int) -> SAC:
    """SAC on one environment, ReLU, automatic temperature."""
    return SAC(
        "MlpPolicy",
        make_vec_env(task, 1, seed=seed),
        learning_rate=settings["learning_rate"],
        buffer_size=settings["buffer_size"],
        learning_starts=settings["learning_starts"],
        batch_size=settings["batch_size"],
        tau=settings["tau"],
        gamma=settings["gamma"],
        train_freq=settings["train_every"],
        gradient_steps=settings["gradient_steps"],
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
    if job["system"] in ("ppo", "trpo"):
        model: Any = (ppo if job["system"] == "ppo" else trpo)(settings, job["task"], job["seed"])
        steps_per_turn, warm_steps = settings["num_envs"] * settings["num_steps"], 0
    else:
        model = (dqn if job["system"] == "dqn" else sac)(settings, job["task"], job["seed"])
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
            "versions": versions(("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "numpy", "ale-py", "minatar")),
        }
    )


main()
