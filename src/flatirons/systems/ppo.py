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
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import distributions, losses, normalise, optimisers, returns, schedules, trees
from flatirons.core.shuffle import permutation
from flatirons.data import rollout as data
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import (
    ArraySpec,
    Box,
    Discrete,
    FlatironsError,
    Key,
    Metrics,
    MultiDiscrete,
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
    """Settings of PPO. The defaults are a general-purpose choice; `ppo-paper` and `ppo-atari` are the paper's."""

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
    clip_eps: float = 0.2
    """Epsilon of the clipped surrogate (equation 7)."""
    anneal_clip_eps: bool = False
    """Let epsilon fall linearly to 0 as well (the paper: on Atari only)."""
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
    """Torso: auto, mlp, nature, playing-atari, minatar, or from Python a Network of your own."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the MLP."""
    activation: Activation = "tanh"
    """tanh or relu."""
    share_torso: bool = False
    """One torso for policy and value (the paper: on Atari), else two."""
    initial_log_std: float = 0.0
    """Log standard deviation of Box actions at the start; it is learned, and does not depend on the observation."""


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
        doc="The paper's Atari settings (Table 5): 8 actors, T 128, 3 epochs, minibatch 256, learning rate and clip annealed, shared CNN.",
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
    "ppo-pendulum": Preset(
        doc="Tuned for Pendulum: a short horizon and a high learning rate.",
        config={
            "total_steps": 100_000,
            "num_envs": 4,
            "num_steps": 250,
            "num_minibatches": 20,
            "learning_rate": 1e-3,
            "gamma": 0.9,
        },
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
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


class Normaliser(NamedTuple):
    """Running moments of observations (one per array) and of the discounted return; `()` where not asked for."""

    obs: Any
    reward: Any
    discounted: Any


class Actor(NamedTuple):
    """What acting needs: the policy's parameters and the frozen observation moments."""

    params: Any
    obs: Any


class State(NamedTuple):
    """Everything a run is made of. `updates` counts iterations (int32)."""

    params: Any
    opt_state: Any
    normaliser: Normaliser
    collector: data.Collector
    key: Any
    updates: Any


# ------------------------------------------------------------------------------------------------------------ the network


def _torso(config: Config, task: Task) -> Network:
    return torso(config.network, task.spec.obs, config.hidden, config.activation, "orthogonal")


def _num_outputs(task: Task) -> int:
    match task.spec.action:
        case Discrete(n):
            return n
        case MultiDiscrete(nvec):
            return sum(nvec)
        case Box() as box:
            return len(box.low)


def init_params(config: Config, task: Task, key: Key) -> Any:
    """Orthogonal weights; the policy's head scaled by 0.01, the value's by 1."""
    key_actor, key_critic, key_policy, key_value = jax.random.split(key, 4)
    net = _torso(config, task)
    actor = net.init(key_actor, task.spec.obs)
    width = num_outputs(net, actor, task.spec.obs)
    params = {
        "torso": actor,
        "policy": dense_init(key_policy, width, _num_outputs(task), scale=0.01),
        "value": dense_init(key_value, width, 1, scale=1.0),
    }
    if not config.share_torso:
        params["value_torso"] = net.init(key_critic, task.spec.obs)
    if isinstance(task.spec.action, Box):
        params["log_std"] = jnp.full(task.spec.action.shape, config.initial_log_std, jnp.float32)
    return params


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _is_number(spec: ArraySpec) -> bool:
    return spec.dtype == "float32"


def _specs(task: Task) -> list[ArraySpec]:
    return jax.tree.leaves(task.spec.obs, is_leaf=_is_spec)


def prepare(task: Task, moments: Any, obs: Any) -> Any:
    """Observations as the networks get them: float arrays standardised where there are moments, all else as it is."""
    if moments == ():
        return obs
    specs, shape = jax.tree.flatten(task.spec.obs, is_leaf=_is_spec)
    parts = [normalise.standardise(m, x) if _is_number(s) else x for s, m, x in zip(specs, moments, jax.tree.leaves(obs), strict=True)]
    return jax.tree.unflatten(shape, parts)


def distribution(config: Config, task: Task, params: Any, obs: Any, legal: Any) -> distributions.Distribution:
    """pi(. | s) for prepared `obs [..., *obs]`."""
    out = dense(params["policy"], _torso(config, task).apply(params["torso"], obs))
    match task.spec.action:
        case Discrete():
            return distributions.Categorical(distributions.mask_logits(out, legal))
        case MultiDiscrete(nvec):
            cuts = [sum(nvec[:i]) for i in range(1, len(nvec))]
            return distributions.MultiCategorical(tuple(distributions.Categorical(x) for x in jnp.split(out, cuts, axis=-1)))
        case Box():
            axes = tuple(range(out.ndim - 1))
            return distributions.Normal(out, jnp.broadcast_to(jnp.expand_dims(params["log_std"], axes), out.shape))


def value(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """V(s) for prepared `obs`, in units of the (scaled) return, `[...]`."""
    own = params["torso"] if config.share_torso else params["value_torso"]
    return dense(params["value"], _torso(config, task).apply(own, obs))[..., 0]


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions in one iteration: N T."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    if min(config.num_epochs, config.num_steps, config.num_envs, config.num_minibatches) < 1:
        raise FlatironsError("num_envs, num_steps, num_epochs and num_minibatches must be at least 1")
    rows = steps_per_turn(config)
    if config.total_steps < rows:
        raise FlatironsError(f"total_steps={config.total_steps} is less than one iteration, num_envs * num_steps = {rows}: raise it")
    if rows % config.num_minibatches:
        near = max(d for d in range(1, config.num_minibatches) if rows % d == 0)
        raise FlatironsError(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = {rows}: choose a divisor, for instance {near}"
        )
    if config.normalise_advantage and rows // config.num_minibatches < 2:
        raise FlatironsError("normalise_advantage needs minibatches of at least 2 rows: lower num_minibatches or switch it off")
    torso(config.network, task.spec.obs, config.hidden, config.activation, "orthogonal")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, optimiser, moments and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    normaliser = Normaliser(
        obs=tuple(normalise.start(s.shape) if _is_number(s) else () for s in _specs(task)) if config.normalise_obs else (),
        reward=normalise.start(()) if config.normalise_reward else (),
        discounted=jnp.zeros(task.num_envs) if config.normalise_reward else (),
    )
    return State(params, _optimiser(config).init(params), normaliser, data.start(task, (), key_collect), key, jnp.int32(0))


def actor(state: State) -> Actor:
    """The acting part of a State: no value function."""
    acting = {name: part for name, part in state.params.items() if name not in ("value", "value_torso")}
    return Actor(acting, state.normaliser.obs)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi; greedy takes its mode. It has no memory: carry and extras are `()`."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        pi = distribution(config, task, actor.params, prepare(task, actor.obs, timestep.obs), timestep.legal)
        return pi.mode() if greedy else pi.sample(key), carry, ()

    return Policy(lambda num_envs: (), act)


class Batch(NamedTuple):
    """Rows `[M, ...]`: prepared obs, and all that theta_old says of them."""

    obs: Any
    legal: Any
    action: Any
    old_log_prob: Any
    old_value: Any
    advantage: Any
    target: Any


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """-L^{CLIP+VF+S} (equation 9) and its parts."""
    pi = distribution(config, task, params, batch.obs, batch.legal)
    v = value(config, task, params, batch.obs)
    advantage = batch.advantage
    if config.normalise_advantage:
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    log_ratio = pi.log_prob(batch.action) - batch.old_log_prob
    ratio = jnp.exp(log_ratio)
    surrogate = jnp.mean(losses.clipped_surrogate(ratio, advantage, config.clip_eps))  # equation 7
    if config.clip_value:
        value_loss = jnp.mean(losses.clipped_value(v, batch.old_value, batch.target, config.clip_eps))
    else:
        value_loss = jnp.mean(losses.squared(v - batch.target))
    entropy = jnp.mean(pi.entropy())
    total = -surrogate + config.value_coef * value_loss - config.ent_coef * entropy
    return total, {
        "loss": total,
        "surrogate": surrogate,
        "value_loss": value_loss,
        "entropy": entropy,
        # Never negative, and of low variance: KL(old || new) = E_old[r - 1 - log r].
        "approx_kl": jnp.mean(ratio - 1.0 - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1.0) > config.clip_eps).astype(jnp.float32)),
    }


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.scale_by_adam(eps=config.adam_eps)


def _advantages(config: Config, task: Task, state: State, experience: Transition) -> tuple[Batch, Normaliser]:
    """theta_old's view of a trajectory `[T, B, ...]` as rows `[T B, ...]`, and the reward moments after it."""
    obs = prepare(task, state.normaliser.obs, experience.obs)
    old_value = value(config, task, state.params, obs)
    next_value = value(config, task, state.params, prepare(task, state.normaliser.obs, experience.next_obs))
    reward, normaliser = experience.reward, state.normaliser
    if config.normalise_reward:
        ended = experience.terminated | experience.truncated
        carry, sums = returns.discounted_sum(reward, ended, normaliser.discounted, config.gamma)
        normaliser = normaliser._replace(reward=normalise.observe(normaliser.reward, sums.reshape(-1)), discounted=carry)
        reward = normalise.rescale(normaliser.reward, reward)
    advantage = returns.gae(
        reward, old_value, next_value, experience.terminated, experience.truncated, config.gamma, config.gae_lambda
    )  # equations 11 and 12
    old_log_prob = distribution(config, task, state.params, obs, experience.legal).log_prob(experience.action)
    batch = Batch(obs, experience.legal, experience.action, old_log_prob, old_value, advantage, advantage + old_value)
    return trees.as_rows(batch), normaliser


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """K epochs of minibatch steps on one trajectory `[T, B, ...]`."""
    progress = schedules.fraction(state.updates, config.total_steps // steps_per_turn(config))
    remaining = 1.0 - jnp.clip(progress, 0.0, 1.0)
    learning_rate = config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)
    annealed: Any = dataclasses.replace(cast(Any, config), clip_eps=config.clip_eps * (remaining if config.anneal_clip_eps else 1.0))
    batch, normaliser = _advantages(config, task, state, experience)
    rows = batch.advantage.shape[0]

    def one_minibatch(c: tuple[Any, Any], indices: Any) -> tuple[tuple[Any, Any], Metrics]:
        params, opt_state = c
        minibatch = batch if config.num_minibatches == 1 else jax.tree.map(lambda x: x[indices], batch)
        grads, metrics = jax.grad(functools.partial(loss, annealed, task), has_aux=True)(params, minibatch)
        norm = trees.global_norm(grads)
        if config.max_grad_norm is not None:
            grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        return (optimisers.descend(params, direction, learning_rate), opt_state), metrics | {"grad_norm": norm}

    key, key_shuffle = jax.random.split(state.key)
    if config.num_minibatches == 1:
        indices = None  # every epoch is one step on all rows, and their order does not matter
    else:
        shuffle = jax.vmap(lambda k: permutation(k, rows))
        indices = shuffle(jax.random.split(key_shuffle, config.num_epochs)).reshape(config.num_epochs * config.num_minibatches, -1)
    (params, opt_state), metrics = jax.lax.scan(
        one_minibatch, (state.params, state.opt_state), indices, length=config.num_epochs * config.num_minibatches
    )
    metrics = jax.tree.map(jnp.mean, metrics)
    residual = jnp.var(batch.target - batch.old_value)
    metrics |= {
        "learning_rate": jnp.asarray(learning_rate),
        "explained_variance": 1.0 - residual / jnp.maximum(jnp.var(batch.target), 1e-8),
        "value": jnp.mean(batch.old_value),
    }
    if config.normalise_obs:
        # After learning, so that theta_old and theta see observations alike and the first ratio is 1.
        parts = zip(_specs(task), normaliser.obs, jax.tree.leaves(experience.obs), strict=True)
        seen = tuple(normalise.observe(m, jnp.asarray(x).reshape((-1, *s.shape))) if _is_number(s) else m for s, m, x in parts)
        normaliser = normaliser._replace(obs=seen)
    state = state._replace(params=params, opt_state=opt_state, normaliser=normaliser, key=key, updates=state.updates + 1)
    return state, metrics


def interrupted(state: State) -> State:
    """A State whose host environments were lost: the discounted sums of their episodes begin anew."""
    normaliser = state.normaliser
    return state._replace(normaliser=normaliser._replace(discounted=jax.tree.map(jnp.zeros_like, normaliser.discounted)))


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One iteration of Algorithm 1."""
    collector, experience, episodes = data.rollout(config, task, policy, actor(state), state.collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}
