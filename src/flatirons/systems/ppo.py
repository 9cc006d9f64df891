"""Proximal Policy Optimization (Schulman, Wolski, Dhariwal, Radford, Klimov 2017, arXiv:1707.06347), Algorithm 1.

    for iteration = 1, 2, ... do
        for actor = 1, ..., N do  run policy pi_old for T timesteps; compute advantages A_1 ... A_T
        optimise the surrogate L with respect to theta, with K epochs and minibatches of size M <= N T
        theta_old <- theta

N is `num_envs`, T `num_steps`, K `num_epochs`, M `num_envs * num_steps / num_minibatches`. See docs/ppo.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import chunks, exploration, losses, optimisers, schedules, trees
from flatirons.core.shuffle import minibatches, taken
from flatirons.data import onpolicy
from flatirons.data import rollout as data
from flatirons.data.onpolicy import Actor, Batch, Normaliser
from flatirons.nets import actor_critic, recurrent
from flatirons.nets.mlp import Activation
from flatirons.types import (
    Box,
    FlatironsError,
    Key,
    Metrics,
    Network,
    Policy,
    Preset,
    Task,
    TimeStep,
    Transition,
    config,
)


@config
class Config:
    """Settings of PPO. The defaults are a general-purpose choice; `ppo-paper` and `ppo-atari` are the paper's, the latter with its authors'
    normalised advantages and gradient clipping."""

    total_steps: int = 1_000_000
    """Decisions in all, over all environments."""
    num_envs: int = 8
    """N, environments side by side."""
    num_steps: int = 125
    """T, decisions of each environment per iteration."""
    num_epochs: int = 10
    """K, passes over the iteration's data."""
    num_minibatches: int = 8
    """Minibatches per epoch; must divide num_envs * num_steps."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall linearly to 0 at total_steps (the paper: on Atari only)."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimator (equation 11)."""
    objective: Literal["clip", "penalty", "bare"] = "clip"
    """What is maximised: the clipped surrogate (equation 7), the surrogate minus a KL penalty (8), or the bare surrogate (6)."""
    clip_eps: float = 0.2
    """Epsilon of the clipped surrogate (equation 7)."""
    anneal_clip_eps: bool = False
    """Let epsilon fall linearly to 0 as well (the paper: on Atari only)."""
    kl_coef: float = 1.0
    """beta, weight of the KL penalty (equation 8), at the start or for good."""
    kl_target: float | None = None
    """d_targ: after an iteration beta is halved where the KL is below d_targ / 1.5, doubled above 1.5 d_targ (section 4), and stays between
    1e-6 and 1e6 (not in the paper). none: fixed."""
    stop_kl: float | None = None
    """End an iteration's learning before the first step whose minibatch has a KL above this (not in the paper)."""
    value_coef: float = 0.5
    """c1, weight of half the squared value error (equation 9, which has no half: its c1 = 1 is 2 here)."""
    ent_coef: float = 0.0
    """c2, weight of the entropy bonus (equation 9)."""
    max_grad_norm: float | None = 0.5
    """Clip the gradient to this global norm (not in the paper); none switches it off."""
    normalise_advantage: bool = True
    """Advantages of each minibatch to mean 0, deviation 1 (not in the paper, but in its authors' code)."""
    clip_value: bool = False
    """Keep the value within clip_eps of the old one in its loss (not in the paper, but in its authors' code)."""
    normalise_obs: bool = False
    """Standardise observations by running moments kept in State (not in the paper)."""
    normalise_reward: bool = False
    """Divide rewards by the running deviation of the discounted return (not in the paper)."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the MLP."""
    activation: Activation = "tanh"
    """tanh or relu."""
    share_torso: bool = False
    """One torso for policy and value (the paper: on Atari), else two."""
    lstm: int = 0
    """Units of a memory on top of each torso; 0 for none (the paper). Minibatches are then of whole sequences."""
    memory_head: tuple[int, ...] = ()
    """Widths of layers between each memory and its head; none: the head reads the memory itself."""
    memory_skip: bool = False
    """What stands on a memory sees, beside it, what went into it last: the present need not be remembered first."""
    sequence_length: int | None = None
    """Decisions in a row that a memory's gradient goes back through; must divide num_steps. none: all num_steps of them."""
    initial_log_std: float = 0.0
    """Log standard deviation of Box actions at the start; it is learned, and does not depend on the observation."""
    noise_correlation: float | None = None
    """Correlation, in [0, 1), of the noise on Box actions with that of the decision before: it explores in one direction for longer, and
    each action's own distribution stays pi (not in the paper; Hollenstein 2024 has noise of other colours). none: independent noise."""


KL_COEFS = (1e-6, 1e6)
"""Where an adaptive beta stays: a target that the policy never comes near would double or halve it out of float32."""

PRESETS = {
    "ppo-paper": Preset(
        doc="The paper's continuous-control settings (Table 3): T 2048, 10 epochs, minibatch 64, no gradient clipping, no normalisation.",
        config={
            "num_envs": 1,
            "num_steps": 2048,
            "num_epochs": 10,
            "num_minibatches": 32,
            "anneal_learning_rate": False,
            "max_grad_norm": None,
            "normalise_advantage": False,
            "value_coef": 2.0,
            "total_steps": 2048 * 488,
        },
    ),
    "ppo-atari": Preset(
        doc="The paper's Atari settings (Table 5): 8 actors, T 128, 3 epochs, minibatch 256, learning rate and clip annealed, shared CNN; "
        "not in its table but in its authors' program, and on here: advantages normalised, gradient clipped to 0.5.",
        config={
            "total_steps": 10_000_384,
            "num_envs": 8,
            "num_steps": 128,
            "num_epochs": 3,
            "num_minibatches": 4,
            "learning_rate": 2.5e-4,
            "clip_eps": 0.1,
            "anneal_clip_eps": True,
            "value_coef": 2.0,
            "ent_coef": 0.01,
            "share_torso": True,
            "network": "nature",
        },
        tasks=("ALE/*",),
    ),
    "ppo-atari-laptop": Preset(
        doc="PPO on Atari within hours on a laptop: a million decisions, the smaller network, larger steps and many of them.",
        config={
            "total_steps": 1_000_448,
            "num_envs": 8,
            "num_steps": 128,
            "num_epochs": 8,
            "num_minibatches": 8,
            "learning_rate": 1e-3,
            "clip_eps": 0.1,
            "anneal_clip_eps": True,
            "value_coef": 0.5,
            "ent_coef": 0.01,
            "share_torso": True,
            "network": "playing-atari",
        },
    ),
    "ppo-classic": Preset(
        doc="Tuned for short classic-control tasks with discrete actions: many epochs over small batches, learning rate and clip annealed.",
        config={
            "total_steps": 100_000,
            "num_envs": 8,
            "num_steps": 25,
            "num_epochs": 20,
            "num_minibatches": 1,
            "learning_rate": 5e-4,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "anneal_clip_eps": True,
        },
        tasks=("CartPole-v*", "jax:CartPole-v*"),
    ),
    "ppo-mountain-car": Preset(
        doc="Tuned for MountainCar: long trajectories, observations and rewards normalised, for nothing is earned before the flag.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "num_steps": 250,
            "learning_rate": 1e-3,
            "gae_lambda": 0.98,
            "normalise_obs": True,
            "normalise_reward": True,
        },
        tasks=("MountainCar-v*", "jax:MountainCar-v*"),
    ),
    "ppo-mountain-car-continuous": Preset(
        doc="Tuned for MountainCarContinuous: as ppo-mountain-car, with noise that lasts, for without it the car never comes to the flag.",
        config={
            "total_steps": 300_000,
            "num_envs": 8,
            "num_steps": 250,
            "normalise_obs": True,
            "normalise_reward": True,
            "noise_correlation": 0.95,
        },
        tasks=("MountainCarContinuous-v*", "jax:MountainCarContinuous-v*"),
    ),
    "ppo-pendulum": Preset(
        doc="Tuned for Pendulum: a short horizon, a high learning rate, rewards normalised.",
        config={
            "total_steps": 100_000,
            "num_envs": 4,
            "num_steps": 250,
            "num_minibatches": 20,
            "learning_rate": 1e-3,
            "gamma": 0.95,
            "normalise_reward": True,
        },
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
    ),
    "ppo-lstm-classic": Preset(
        doc="With a memory, for short classic-control tasks with discrete actions whose velocities are hidden.",
        config={
            "total_steps": 100_000,
            "num_envs": 8,
            "num_steps": 50,
            "num_epochs": 10,
            "num_minibatches": 1,
            "learning_rate": 1e-3,
            "gamma": 0.98,
            "gae_lambda": 0.9,
            "anneal_clip_eps": True,
            "normalise_obs": True,
            "normalise_reward": True,
            "lstm": 64,
            "hidden": (64,),
        },
        tasks=("no-velocity:CartPole-v*", "no-velocity:jax:CartPole-v*"),
    ),
    "ppo-lstm-pendulum": Preset(
        doc="With one memory for policy and value and a layer of each that sees the present too, for Pendulum without its velocity.",
        config={
            "total_steps": 100_000,
            "num_envs": 8,
            "num_steps": 100,
            "num_epochs": 10,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "gamma": 0.97,
            "gae_lambda": 0.9,
            "clip_eps": 0.1,
            "normalise_reward": True,
            "share_torso": True,
            "lstm": 64,
            "hidden": (64,),
            "memory_head": (64,),
            "memory_skip": True,
            # Too narrow a first exploration, or one that changes its mind at every decision, finds the swing up too late.
            "initial_log_std": 0.4,
            "noise_correlation": 0.8,
        },
        tasks=("no-velocity:Pendulum-v*", "no-velocity:jax:Pendulum-v*"),
    ),
    "ppo-lunarlander": Preset(
        doc="Tuned for LunarLander: long collections, few epochs, a long horizon.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 16,
            "num_steps": 625,
            "num_epochs": 4,
            "num_minibatches": 100,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "ent_coef": 0.01,
        },
        tasks=("LunarLander-v*",),
    ),
    "ppo-halfcheetah": Preset(
        doc="Tuned for HalfCheetah: normalised, a wide network, a small initial deviation, against learning to run on its back.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "num_steps": 250,
            "num_minibatches": 20,
            "gamma": 0.98,
            "gae_lambda": 0.92,
            "normalise_obs": True,
            "normalise_reward": True,
            "hidden": (256, 256),
            "activation": "relu",
            "initial_log_std": -1.0,
        },
        tasks=("HalfCheetah-v*",),
    ),
    "ppo-mujoco": Preset(
        doc="For MuJoCo's other locomotion tasks: observations and rewards normalised, learning rate annealed.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "num_steps": 250,
            "num_minibatches": 25,
            "normalise_obs": True,
            "normalise_reward": True,
            "initial_log_std": -1.0,
        },
        tasks=tuple(
            f"{name}-v*" for name in ("Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid*", "Reacher", "Pusher", "Inverted*Pendulum")
        ),
    ),
}


class State(NamedTuple):
    """Everything a run is made of. `updates` counts iterations (int32); `kl_coef` is beta, `()` where nothing is penalised; `memory` is
    what the next trajectory begins with, `[num_envs, units]`, `()` without an LSTM."""

    params: Any
    opt_state: Any
    normaliser: Normaliser
    collector: data.Collector
    key: Any
    updates: Any
    kl_coef: Any = ()
    memory: Any = ()


distribution, value = actor_critic.distribution, actor_critic.value
prepare, steps_per_turn, interrupted = onpolicy.prepare, onpolicy.steps_per_turn, onpolicy.interrupted


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    onpolicy.check(config, steps_per_turn(config))
    if min(config.num_epochs, config.num_minibatches) < 1:
        raise FlatironsError("num_epochs and num_minibatches must be at least 1")
    if config.objective != "penalty" and config.kl_target is not None:
        raise FlatironsError(f"kl_target adapts the KL penalty, and objective={config.objective} has none: add objective=penalty")
    for name, number in (("kl_coef", config.kl_coef), ("kl_target", config.kl_target), ("stop_kl", config.stop_kl)):
        if number is not None and number <= 0.0:
            raise FlatironsError(f"{name}={number} must be above 0")
    if config.objective != "penalty" and config.kl_coef != Config.kl_coef:
        raise FlatironsError(
            f"kl_coef={config.kl_coef:g} weighs the KL penalty, and objective={config.objective} has none: add objective=penalty, or leave "
            "kl_coef out"
        )
    low, high = KL_COEFS
    if config.kl_target is not None and not low <= config.kl_coef <= high:
        raise FlatironsError(
            f"kl_coef={config.kl_coef:g} with a kl_target begins outside {low:g} to {high:g}, where beta stays: give one within"
        )
    rows = steps_per_turn(config)
    if config.noise_correlation is not None and not isinstance(task.spec.action, Box):
        raise FlatironsError(f"noise_correlation is of noise on Box actions, and {task.name} has {task.spec.action}: leave it out")
    if config.lstm < 0:
        raise FlatironsError(f"lstm={config.lstm} must be at least 0")
    length = config.num_steps if config.sequence_length is None else config.sequence_length
    of_memory = {"sequence_length": config.sequence_length, "memory_head": config.memory_head, "memory_skip": config.memory_skip}
    for name, given in of_memory.items():
        if given and not config.lstm:
            raise FlatironsError(f"{name}={given} is for a memory, and lstm=0 has none: add for instance lstm=64")
    if length < 1 or config.num_steps % length:
        near = max((d for d in range(1, length + 1) if config.num_steps % d == 0), default=config.num_steps)
        raise FlatironsError(f"sequence_length={length} must divide num_steps={config.num_steps}: choose a divisor, for instance {near}")
    sequences = rows // length
    if config.lstm and sequences % config.num_minibatches:
        near = max(d for d in range(1, config.num_minibatches) if sequences % d == 0)
        raise FlatironsError(
            f"num_minibatches={config.num_minibatches} would cut the sequences that a memory learns from: with lstm={config.lstm} a "
            f"minibatch is whole sequences, so it must divide num_envs * num_steps / sequence_length = {sequences}, for instance {near}"
        )
    if rows % config.num_minibatches:
        near = max(d for d in range(1, config.num_minibatches) if rows % d == 0)
        raise FlatironsError(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = {rows}: choose a divisor, for instance {near}"
        )
    if config.normalise_advantage and rows // config.num_minibatches < 2:
        raise FlatironsError("normalise_advantage needs minibatches of at least 2 rows: lower num_minibatches or switch it off")
    actor_critic.of(config, task)


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, optimiser, moments and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = actor_critic.init_params(config, task, key_params, share_torso=config.share_torso, lstm=config.lstm)
    collector = data.start(task, _carried(config, task, task.num_envs, greedy=False), key_collect)
    kl_coef = jnp.asarray(config.kl_coef, jnp.float32) if config.objective == "penalty" else ()
    opt_state, normaliser = _optimiser(config).init(params), onpolicy.start(config, task)
    return State(params, opt_state, normaliser, collector, key, jnp.int32(0), kl_coef, _blank(config, task.num_envs))


def _blank(config: Config, num_envs: int) -> Any:
    return actor_critic.blank(num_envs, config.lstm, share_torso=config.share_torso) if config.lstm else ()


def actor(state: State) -> Actor:
    """The acting part of a State: no value function."""
    return Actor(actor_critic.policy_params(state.params), state.normaliser.obs)


class Carry(NamedTuple):
    """What a policy whose noise is correlated takes from decision to decision: the LSTM's memory (`()` without one), and the last noise,
    standard normal `[B, d]`."""

    memory: Any
    noise: Any


def _carried(config: Config, task: Task, num_envs: int, *, greedy: bool) -> Any:
    """A policy's carry at an episode's start."""
    memory = recurrent.blank(num_envs, config.lstm) if config.lstm else ()
    if greedy or config.noise_correlation is None:
        return memory
    return Carry(memory, jnp.zeros((num_envs, *cast(Box, task.spec.action).shape)))


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi; greedy takes its mode. The carry is the LSTM's memory, `()` without one; a `Carry` where noise is correlated."""
    correlation = None if greedy else config.noise_correlation

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        obs = prepare(task, actor.obs, timestep.obs)
        memory: Any = carry.memory if correlation is not None else carry
        if config.lstm:
            memory, features = actor_critic.remembering(config, task, actor.params, obs, memory, timestep.first)
            pi: Any = actor_critic.pi(task, actor.params, features, timestep.legal)
        else:
            pi = distribution(config, task, actor.params, obs, timestep.legal)
        if correlation is None:
            return pi.mode() if greedy else pi.sample(key), memory, ()
        noise = exploration.correlated(carry.noise, jax.random.normal(key, carry.noise.shape), timestep.first, correlation)
        return pi.at(noise), Carry(memory, noise), ()

    return Policy(lambda num_envs: _carried(config, task, num_envs, greedy=greedy), act)


def _judged(config: Config, task: Task, params: Any, batch: Batch) -> tuple[Any, jax.Array]:
    """pi(. | s) and V(s) of each row of a batch; with a memory, of each row of its sequences."""
    if not config.lstm:
        return actor_critic.judged(config, task, params, batch.obs, batch.legal)
    obs, first = onpolicy.over_time((batch.obs, batch.first))
    _, features = actor_critic.unroll(config, task, params, obs, first, batch.memory)
    of_policy, of_value = onpolicy.over_time(features)
    return actor_critic.pi(task, params, of_policy, batch.legal), actor_critic.v(params, of_value)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """-L^{CLIP+VF+S} (equation 9), or with another `objective` in the place of L^CLIP, and its parts."""
    pi, v = _judged(config, task, params, batch)
    advantage = batch.advantage
    if config.normalise_advantage:
        advantage = _standardised(advantage)
    log_ratio = pi.log_prob(batch.action) - batch.old_log_prob
    ratio = jnp.exp(log_ratio)
    if config.objective == "clip":
        surrogate = jnp.mean(losses.clipped_surrogate(ratio, advantage, config.clip_eps))  # equation 7
    else:
        surrogate = jnp.mean(ratio * advantage)  # equation 6
    penalty = config.kl_coef * jnp.mean(batch.old.kl(pi)) if config.objective == "penalty" else 0.0  # equation 8
    if config.clip_value:
        value_loss = jnp.mean(losses.clipped_value(v, batch.old_value, batch.target, config.clip_eps))
    else:
        value_loss = jnp.mean(losses.squared(v - batch.target))
    entropy = jnp.mean(pi.entropy())
    total = -(surrogate - penalty) + config.value_coef * value_loss - config.ent_coef * entropy
    return total, {
        "loss": total,
        "surrogate": surrogate,
        "value_loss": value_loss,
        "entropy": entropy,
        # Never negative, and of low variance: KL(old || new) = E_old[r - 1 - log r].
        "approx_kl": jnp.mean(ratio - 1.0 - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1.0) > config.clip_eps).astype(jnp.float32)),
    }


def _standardised(advantage: jax.Array) -> jax.Array:
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def _gradients(config: Config, task: Task, params: Any, batch: Batch, loss: Callable) -> tuple[Any, Metrics]:
    """The gradient of the loss on a minibatch, and its metrics. Very many rows are gone through in parts, the advantages standardised
    before, over all of them."""
    in_parts = not config.lstm and len(batch.advantage) > chunks.ROWS
    if in_parts and config.normalise_advantage:
        batch = batch._replace(advantage=_standardised(batch.advantage))
        config = dataclasses.replace(cast(Any, config), normalise_advantage=False)
    grad = functools.partial(jax.grad(functools.partial(loss, config, task), has_aux=True), params)
    return chunks.mean_over_chunks(grad, batch) if in_parts else grad(batch)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.scale_by_adam(eps=config.adam_eps)


def _until_kl(one: Callable, start: Any, indices: Any, length: int, stop_kl: Any) -> tuple[Any, Metrics]:
    """`one` over the minibatches up to the first whose `approx_kl` is above `stop_kl`, whose step is not taken; the mean metrics of those
    looked at, and `steps_taken`, the share of all steps that were."""
    like = jax.eval_shape(lambda c: one(c, jax.tree.map(lambda x: x[0], indices))[1], start)

    def guarded(c: tuple[Any, Any], index: Any) -> tuple[tuple[Any, Any], tuple[Metrics, Any, Any]]:
        before, going = c
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(like))
        after, metrics = jax.lax.cond(going, lambda x: one(x, index), lambda x: (x, nothing), before)
        taken = going & (metrics["approx_kl"] <= stop_kl)
        return (trees.select(taken, after, before), taken), (metrics, going, taken)

    (end, _), (metrics, looked_at, steps) = jax.lax.scan(guarded, (start, jnp.bool_(True)), indices, length=length)
    count = jnp.sum(looked_at)
    return end, {name: jnp.sum(x) / count for name, x in metrics.items()} | {"steps_taken": jnp.mean(steps.astype(jnp.float32))}


def _seen_by_theta_old(config: Config, task: Task, state: State, experience: Transition) -> tuple[Batch, Normaliser, Any]:
    """A trajectory `[T, B, ...]` as rows to learn from, or with a memory as sequences; the reward moments, and what is remembered after
    it: theta_old acted on it, so that the memories that it unrolls here are the ones it acted with."""
    old = state.params
    obs, next_obs = (prepare(task, state.normaliser.obs, x) for x in (experience.obs, experience.next_obs))
    memories: Any = ()
    if config.lstm:
        memories, (of_policy, of_value) = actor_critic.unroll(config, task, old, obs, experience.first, state.memory)
        pi, v = actor_critic.pi(task, old, of_policy, experience.legal), actor_critic.v(old, of_value)
        # Where an episode was cut, too, its successor is valued with what was remembered of that episode.
        next_v = actor_critic.next_values(config, task, old, next_obs, memories)
    else:
        pi, v = actor_critic.judged(config, task, old, obs, experience.legal)
        next_v = onpolicy.next_values(lambda x: value(config, task, old, x), v, next_obs, experience.truncated)
    batch, normaliser = onpolicy.advantages(config, state.normaliser, experience, obs, pi, v, next_v)
    if config.objective != "penalty":
        batch = batch._replace(old=())
    if not config.lstm:
        return onpolicy.rows(batch), normaliser, ()
    last = jax.tree.map(lambda x: x[-1], memories)
    return onpolicy.sequences(batch, experience.first, state.memory, memories, config.sequence_length), normaliser, last


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """K epochs of minibatch steps on one trajectory `[T, B, ...]`."""
    progress = schedules.fraction(state.updates, config.total_steps // steps_per_turn(config))
    remaining = 1.0 - jnp.clip(progress, 0.0, 1.0)
    learning_rate = config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)
    annealed: Any = dataclasses.replace(cast(Any, config), clip_eps=config.clip_eps * (remaining if config.anneal_clip_eps else 1.0))
    penalised = config.objective == "penalty"
    if penalised:
        annealed = dataclasses.replace(annealed, kl_coef=state.kl_coef)
    batch, normaliser, memory = _seen_by_theta_old(config, task, state, experience)  # equations 11 and 12
    rows = batch.advantage.shape[0]

    def one_minibatch(c: tuple[Any, Any], indices: Any) -> tuple[tuple[Any, Any], Metrics]:
        params, opt_state = c
        grads, metrics = _gradients(annealed, task, params, taken(batch, indices), loss)
        norm = trees.global_norm(grads)
        if config.max_grad_norm is not None:
            grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        return (optimisers.descend(params, direction, learning_rate), opt_state), metrics | {"grad_norm": norm}

    key, key_shuffle = jax.random.split(state.key)
    indices = minibatches(key_shuffle, rows, config.num_epochs, config.num_minibatches)
    start, length = (state.params, state.opt_state), config.num_epochs * config.num_minibatches
    if config.stop_kl is None:
        (params, opt_state), metrics = jax.lax.scan(one_minibatch, start, indices, length=length)
        metrics = jax.tree.map(jnp.mean, metrics)
    else:
        (params, opt_state), metrics = _until_kl(one_minibatch, start, indices, length, config.stop_kl)
    if penalised:
        metrics |= {"kl_coef": state.kl_coef}
        if config.kl_target is not None:
            kl = jnp.mean(batch.old.kl(_judged(config, task, params, batch)[0]))
            factor = jnp.where(kl < config.kl_target / 1.5, 0.5, jnp.where(kl > config.kl_target * 1.5, 2.0, 1.0))  # section 4
            state, metrics = state._replace(kl_coef=jnp.clip(state.kl_coef * factor, *KL_COEFS)), metrics | {"kl": kl}
    metrics = metrics | onpolicy.value_metrics(batch) | {"learning_rate": jnp.asarray(learning_rate)}
    normaliser = onpolicy.seen(config, task, normaliser, experience.obs)
    state = state._replace(params=params, opt_state=opt_state, normaliser=normaliser, key=key, updates=state.updates + 1, memory=memory)
    return state, metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One iteration of Algorithm 1."""
    return onpolicy.turn(config, task, policy, actor, state, update)
