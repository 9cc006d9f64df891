"""Deep Q-networks (Mnih et al. 2015, "Human-level control through deep reinforcement learning"), Algorithm 1.

    for each step do
        with probability epsilon a random action, else argmax_a Q(s, a; theta)
        execute it, store (s, a, r, s') in D
        sample a minibatch from D; y = r, or r + gamma max_a' Q(s', a'; theta^-) where the episode goes on
        a gradient step on (y - Q(s, a; theta))^2, its error clipped to [-1, 1]
        every C updates theta^- <- theta

C is `target_every`, D the replay of `buffer_size`. See docs/dqn.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatirons.core import exploration, losses, optimisers, resources, returns, schedules, trees
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import torso
from flatirons.types import ArraySpec, Discrete, FlatironsError, Key, Metrics, Network, Policy, Preset, Task, TimeStep, Transition, config


@config
class Config:
    """Settings of DQN. The defaults are a general-purpose choice for small tasks; `dqn-nature` is the paper's."""

    total_steps: int = 500_000
    """Decisions in all, over all environments."""
    num_envs: int = 1
    """Environments side by side."""
    train_every: int = 4
    """Decisions (over all environments) between two trainings; num_envs must divide it."""
    gradient_steps: int = 1
    """Updates at each training."""
    batch_size: int = 64
    """Rows of a minibatch."""
    buffer_size: int = 100_000
    """Transitions in the replay; num_envs must divide it."""
    learning_starts: int = 1_000
    """Decisions before the first update."""
    learning_rate: float = 5e-4
    """Step size."""
    anneal_learning_rate: bool = False
    """Let the learning rate fall linearly to 0 at total_steps (not in the paper)."""
    gamma: float = 0.99
    """Discount."""
    n_step: int = 1
    """Steps of reward in a target before it bootstraps (not in the paper; Sutton and Barto 2018, section 7.1)."""
    target_every: int = 500
    """C, updates between two copies of theta into the target network (unless `tau` is set)."""
    tau: float | None = None
    """Instead of copies, move the target this fraction towards theta after every update (not in the paper; Lillicrap 2016)."""
    epsilon_start: float = 1.0
    """Exploration at the start."""
    epsilon_end: float = 0.05
    """Exploration after epsilon_steps."""
    epsilon_steps: int = 25_000
    """Decisions over which epsilon falls linearly."""
    eval_epsilon: float = 0.0
    """Exploration of the greedy policy (the paper's evaluation: 0.05)."""
    error: Literal["huber", "squared"] = "huber"
    """huber clips the error to [-1, 1] in the gradient, as the paper does; squared does not."""
    optimiser: Literal["adam", "rmsprop", "rmsprop-torch"] = "adam"
    """adam, rmsprop (the paper's: centred, momentum 0.95, epsilon inside the root), rmsprop-torch (epsilon outside)."""
    optimiser_eps: float = 1e-8
    """Epsilon of the optimiser (rmsprop: 0.01 in the paper)."""
    max_grad_norm: float | None = 10.0
    """Clip the gradient to this global norm (not in the paper); none switches it off."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, or from Python a Network of your own."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the MLP."""
    activation: Activation = "relu"
    """tanh or relu."""
    layer_norm: bool = False
    """Standardise each hidden dense layer before its activation, which keeps Q from diverging (not in the paper; Ba 2016)."""


PRESETS = {
    "dqn-nature": Preset(
        doc="The Nature paper's settings (Extended Data Table 1): 1M-frame replay, RMSProp, C = 10,000 updates, epsilon to 0.1.",
        config={
            "total_steps": 50_000_000,
            "batch_size": 32,
            "buffer_size": 1_000_000,
            "learning_starts": 50_000,
            "learning_rate": 2.5e-4,
            "target_every": 10_000,
            "epsilon_end": 0.1,
            "epsilon_steps": 250_000,
            "eval_epsilon": 0.05,
            "optimiser": "rmsprop",
            "optimiser_eps": 0.01,
            "max_grad_norm": None,
            "network": "nature",
        },
        tasks=("ALE/*",),
    ),
    "dqn-classic": Preset(
        doc="Tuned for CartPole: targets over 3 steps, layers standardised, an update a decision in turns of 250, rate annealed.",
        config={
            "total_steps": 50_000,
            "train_every": 250,
            "gradient_steps": 250,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "anneal_learning_rate": True,
            "n_step": 3,
            "target_every": 125,
            "layer_norm": True,
            "epsilon_end": 0.04,
            "epsilon_steps": 8_000,
        },
        tasks=("CartPole-v*", "jax:CartPole-v*"),
    ),
    "dqn-minatar": Preset(
        doc="The MinAtar authors' settings (Young and Tian 2019): centred RMSProp as PyTorch has it, one update per frame, epsilon 0.1.",
        config={
            "total_steps": 1_000_000,
            "train_every": 1,
            "batch_size": 32,
            "learning_starts": 5_000,
            "learning_rate": 2.5e-4,
            "target_every": 1_000,
            "epsilon_end": 0.1,
            "epsilon_steps": 100_000,
            "optimiser": "rmsprop-torch",
            "optimiser_eps": 0.01,
            "max_grad_norm": None,
            "network": "minatar",
        },
        tasks=("pgx:minatar-*",),
    ),
}


class Actor(NamedTuple):
    """What acting needs: the Q-network's parameters and the exploration rate of the moment."""

    params: Any
    epsilon: Any


class State(NamedTuple):
    """Everything a run is made of. `turns` and `updates` count trainings and gradient steps (int32)."""

    params: Any
    target: Any
    opt_state: Any
    replay: memory.Replay
    epsilon: Any
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any


# ------------------------------------------------------------------------------------------------------------ the network


def _torso(config: Config, task: Task) -> Network:
    return torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in", layer_norm=config.layer_norm)


def init_params(config: Config, task: Task, key: Key) -> Any:
    """Weights and biases uniform in ±1/sqrt(fan in)."""
    key_torso, key_head = jax.random.split(key)
    net = _torso(config, task)
    example = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec))
    params = net.init(key_torso, task.spec.obs)
    width = jax.eval_shape(net.apply, params, example).shape[-1]
    assert isinstance(task.spec.action, Discrete)
    return {"torso": params, "q": dense_init(key_head, width, task.spec.action.n, init="fan_in")}


def q_values(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """Q(s, .; theta), `[..., actions]`."""
    return dense(params["q"], _torso(config, task).apply(params["torso"], obs))


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions between two trainings."""
    return config.train_every


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    if not isinstance(task.spec.action, Discrete):
        raise FlatironsError(
            f"dqn needs a Discrete action space and {task.name} has {type(task.spec.action).__name__}: use a system for it, such as ppo"
        )
    if min(config.num_envs, config.train_every, config.gradient_steps, config.batch_size, config.target_every, config.epsilon_steps) < 1:
        raise FlatironsError("num_envs, train_every, gradient_steps, batch_size, target_every and epsilon_steps must be at least 1")
    if config.train_every % config.num_envs:
        raise FlatironsError(f"num_envs={config.num_envs} does not divide train_every={config.train_every}: make it a multiple")
    stack = max(s.stack for s in jax.tree.leaves(task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec)))
    if config.buffer_size % config.num_envs or config.buffer_size < config.train_every * (stack + 1):
        raise FlatironsError(
            f"buffer_size={config.buffer_size} must be a multiple of num_envs={config.num_envs} and at least "
            f"{config.train_every * (stack + 1)}, the most rows that train_every={config.train_every} decisions can fill"
        )
    needed = memory.num_bytes(task.spec, config.num_envs, config.buffer_size)
    resources.require_memory(needed, f"a replay of {config.buffer_size:,} transitions (buffer_size)")
    torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, twice, an empty replay and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    return State(
        params=params,
        target=jax.tree.map(jnp.copy, params),
        opt_state=_optimiser(config).init(params),
        replay=memory.create(task.spec, task.num_envs, config.buffer_size),
        epsilon=jnp.asarray(config.epsilon_start, jnp.float32),
        collector=data.start(task, (), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
    )


def actor(state: State) -> Actor:
    """The acting part of a State."""
    return Actor(state.params, state.epsilon)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Epsilon-greedy on Q; greedy uses `eval_epsilon`. It has no memory: carry and extras are `()`."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        q = q_values(config, task, actor.params, timestep.obs)
        return exploration.epsilon_greedy(key, q, config.eval_epsilon if greedy else actor.epsilon, timestep.legal), carry, ()

    return Policy(lambda num_envs: (), act)


class Batch(NamedTuple):
    """Rows `[n, ...]` with their targets y in them."""

    obs: Any
    action: Any
    target: Any


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The mean error of Q(s, a; theta) against y (Mnih 2015, equation 2)."""
    q = q_values(config, task, params, batch.obs)
    chosen = jnp.sum(q * jax.nn.one_hot(batch.action, q.shape[-1]), axis=-1)
    error = chosen - batch.target
    total = jnp.mean(losses.huber(error) if config.error == "huber" else losses.squared(error))
    return total, {"loss": total, "q_value": jnp.mean(chosen), "td_error": jnp.mean(jnp.abs(error))}


def targets(config: Config, task: Task, params: Any, target: Any, sampled: memory.Sample) -> jax.Array:
    """y = r + gamma max_a' Q(s', a'; theta^-), `[n]`; only a termination has no successor. `params` is for the variants.

    Over n steps r is their discounted sum, s' what follows them and gamma its n-th power."""
    del params
    next_q = jnp.max(q_values(config, task, target, sampled.next_obs), axis=-1)
    return returns.td_target(sampled.reward, sampled.terminated, next_q, sampled.discount)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optimisers.optimiser(config.optimiser, eps=config.optimiser_eps)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Store a trajectory `[T, B, ...]`, then `gradient_steps` minibatch steps once `learning_starts` decisions are stored."""
    replay = memory.add(state.replay, task.spec, experience)
    turns = state.turns + 1
    decisions = turns * config.train_every
    learning_rate = config.learning_rate * (
        1.0 - jnp.clip(schedules.fraction(state.turns, config.total_steps // config.train_every), 0.0, 1.0)
        if config.anneal_learning_rate
        else 1.0
    )
    key, key_updates = jax.random.split(state.key)
    starts, envs = memory.draw(replay, key_updates, (config.gradient_steps, config.batch_size))

    def gradient(i: Any, params: Any, target: Any) -> tuple[Any, Metrics]:
        sampled = memory.read_at(replay, task.spec, starts[i], envs[i], config.gamma, config.n_step)
        batch = Batch(sampled.obs, sampled.action, targets(config, task, params, target, sampled))
        return jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[Any, ...]:
        params, target, opt_state, updates, sums = c
        grads, metrics = gradient(i, params, target)
        norm = trees.global_norm(grads)
        if config.max_grad_norm is not None:
            grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        params = optimisers.descend(params, direction, learning_rate)
        updates = updates + 1
        if config.tau is None:
            target = trees.select(updates % config.target_every == 0, params, target)
        else:
            target = trees.polyak(params, target, config.tau)
        return params, target, opt_state, updates, jax.tree.map(jnp.add, sums, metrics | {"grad_norm": norm})

    _, reported = jax.eval_shape(gradient, 0, state.params, state.target)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(reported) | {"grad_norm": jnp.zeros(())})
    # A loop of none before learning starts: under vmap it costs a masked pass over the parameters, where a cond would run both branches.
    num_updates = jnp.where(decisions >= config.learning_starts, config.gradient_steps, 0)
    params, target, opt_state, updates, sums = jax.lax.fori_loop(
        0, num_updates, one_update, (state.params, state.target, state.opt_state, state.updates, zeros)
    )
    epsilon = schedules.linear(config.epsilon_start, config.epsilon_end, schedules.fraction(decisions, config.epsilon_steps))
    metrics = {name: total / config.gradient_steps for name, total in sums.items()}
    metrics |= {"epsilon": epsilon, "replay_size": jnp.sum(replay.size).astype(jnp.float32)}
    state = State(params, target, opt_state, replay, epsilon, state.collector, key, turns, updates)
    return state, metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn of Algorithm 1: `train_every` decisions, then a training."""
    collector, experience, episodes = data.rollout(
        config, task, policy, actor(state), state.collector, config.train_every // config.num_envs
    )
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


def interrupted(state: State) -> State:
    """A State whose host environments were lost: the running episodes end as truncated in the replay."""
    return state._replace(replay=memory.interrupt(state.replay))
