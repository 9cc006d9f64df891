"""REINFORCE (Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning"), section 5.

    play episodes by pi(a | s; theta)
    for each decision of an ended episode do
        R_t = r_t + gamma r_{t+1} + ... to the episode's end
        d theta += (R_t - b(s_t)) grad log pi(a_t | s_t; theta)
    theta <- theta + alpha d theta, averaged over episodes

The baseline b is a value function that learns R_t from the state (`baseline`), or 0. See docs/reinforce.md.

Every episode counts once, whole, in the turn in which it ends. Episodes still running at a turn's end wait in `State.running`: to leave
them out would favour the short ones, which end sooner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatirons.core import losses, optimisers, resources, schedules, trees
from flatirons.data import onpolicy, replay
from flatirons.data import rollout as data
from flatirons.nets import actor_critic, recurrent
from flatirons.nets.mlp import Activation
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, Key, Metrics, MultiDiscrete, Network, Policy, Preset, Task

from flatirons.types import TimeStep, Transition, config  # isort: skip


@config
class Config:
    """Settings of REINFORCE."""

    total_steps: int = 500_000
    """Decisions in all, over all environments."""
    num_envs: int = 8
    """Environments side by side."""
    num_steps: int = 250
    """Decisions of each environment between two updates."""
    learning_rate: float = 3e-3
    """Alpha."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall linearly to 0 at total_steps (not in the paper)."""
    gamma: float = 0.99
    """Discount."""
    discount_states: bool = False
    """Weigh decision t by gamma^t as well, which makes this the gradient of the discounted return from the start; few programs do."""
    baseline: bool = True
    """A value function as the baseline b (the paper: any number that does not depend on the action); off, b = 0."""
    value_coef: float = 1.0
    """Weight of half the baseline's squared error; its network is its own."""
    normalise_advantage: bool = False
    """R - b to mean 0, deviation 1 over a turn's decisions (not in the paper)."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus (not in the paper)."""
    optimiser: Literal["sgd", "adam"] = "adam"
    """sgd is the paper's plain step, adam scales it."""
    max_grad_norm: float | None = None
    """Clip the gradient to this global norm (not in the paper); none switches it off."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the MLP."""
    activation: Activation = "tanh"
    """tanh or relu."""
    lstm: int = 0
    """Units of a memory on top of each torso; 0 for none (the paper). Episodes are then gone through whole, from their first decision."""
    memory_head: tuple[int, ...] = ()
    """Widths of layers between each memory and its head; none: the head reads the memory itself."""
    memory_skip: bool = False
    """What stands on a memory sees, beside it, what went into it last: the present need not be remembered first."""
    initial_log_std: float = 0.0
    """Log standard deviation of Box actions at the start; it is learned, and does not depend on the observation."""


PRESETS = {
    "reinforce-no-baseline": Preset(
        doc="Without a baseline: the estimate of the course's first derivation.",
        config={"baseline": False},
    ),
    "reinforce-lstm": Preset(
        doc="With a memory of 64 units, for tasks that do not show all at once.",
        config={"lstm": 64, "hidden": (64,)},
    ),
    "reinforce-acrobot": Preset(
        doc="Tuned for Acrobot: whole episodes of 16 environments, standardised advantages, an entropy bonus.",
        config={
            "total_steps": 480_000,
            "num_envs": 16,
            "num_steps": 500,
            "learning_rate": 5e-3,
            "normalise_advantage": True,
            "ent_coef": 0.05,
        },
        tasks=("Acrobot-v*", "jax:Acrobot-v*"),
    ),
}


class Actor(NamedTuple):
    """What acting needs."""

    params: Any


class State(NamedTuple):
    """Everything a run is made of. `running` is each environment's last rows, `[max_episode_steps, B, ...]`; `updates` counts turns."""

    params: Any
    opt_state: Any
    running: Transition
    collector: data.Collector
    key: Any
    updates: Any


class Batch(NamedTuple):
    """Rows `[M, ...]`: R_t as `target`, (R_t - b) gamma^t as `advantage`, and the weight of each: 1 / ended episodes, or 0.

    For a policy with a memory they stay `[T, B, ...]`, and `first` marks where episodes begin; otherwise that is `()`."""

    obs: Any
    legal: Any
    action: Any
    target: Any
    advantage: Any
    weight: Any
    first: Any = ()


steps_per_turn = onpolicy.steps_per_turn


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    onpolicy.check(config, steps_per_turn(config))
    if task.spec.max_episode_steps is None:
        raise FlatironsError(
            f"reinforce learns from whole episodes and {task.name} has no limit to their length: give one (--env.max_episode_steps=1000), "
            "or take a system that bootstraps, such as a3c"
        )
    if config.lstm < 0:
        raise FlatironsError(f"lstm={config.lstm} must be at least 0")
    for name, given in {"memory_head": config.memory_head, "memory_skip": config.memory_skip}.items():
        if given and not config.lstm:
            raise FlatironsError(f"{name}={given} is for a memory, and lstm=0 has none: add for instance lstm=64")
    actor_critic.of(config, task)
    # An update holds the rows of the running episodes, the same with the new trajectory behind them, and those that run after it.
    kept = trees.num_bytes(jax.eval_shape(lambda: _no_rows(task)))
    longest = task.spec.max_episode_steps
    resources.require_memory(
        3 * kept + kept // longest * config.num_steps,
        f"episodes of up to {longest:,} decisions in {config.num_envs} environments and the batch of them (max_episode_steps, num_envs)",
    )


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, optimiser and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = actor_critic.init_params(config, task, key_params, lstm=config.lstm)
    collector = data.start(task, _blank(config, task.num_envs), key_collect)
    return State(params, _optimiser(config).init(params), _no_rows(task), collector, key, jnp.int32(0))


def _no_rows(task: Task) -> Transition:
    """Rows of episodes that ended long ago, `[max_episode_steps, B, ...]`."""
    assert task.spec.max_episode_steps is not None
    shape = (task.spec.max_episode_steps, task.num_envs)
    obs = jax.tree.map(lambda s: jnp.zeros((*shape, *s.shape), s.dtype), task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec))
    match task.spec.action:
        case Discrete():
            action = jnp.zeros(shape, jnp.int32)
        case MultiDiscrete(nvec):
            action = jnp.zeros((*shape, len(nvec)), jnp.int32)
        case Box() as box:
            action = jnp.zeros((*shape, *box.shape))
    match task.spec.action:
        case Discrete(n) if replay.has_masks(task):
            legal: Any = jnp.ones((*shape, n), bool)
        case MultiDiscrete(nvec) if replay.has_masks(task):
            legal = jnp.ones((*shape, sum(nvec)), bool)
        case _:
            legal = ()
    never, always = jnp.zeros(shape, bool), jnp.ones(shape, bool)
    return Transition(obs, action, jnp.zeros(shape), obs, always, never, always, legal, ())


def actor(state: State) -> Actor:
    """The acting part of a State: no baseline."""
    return Actor(actor_critic.policy_params(state.params))


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi; greedy takes its mode. The carry is the LSTM's memory, `()` without one."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if config.lstm:
            carry, features = actor_critic.remembering(config, task, actor.params, timestep.obs, carry, timestep.first)
            pi = actor_critic.pi(task, actor.params, features, timestep.legal)
        else:
            pi = actor_critic.distribution(config, task, actor.params, timestep.obs, timestep.legal)
        return pi.mode() if greedy else pi.sample(key), carry, ()

    return Policy(lambda num_envs: _blank(config, num_envs), act)


def _blank(config: Config, num_envs: int) -> Any:
    return recurrent.blank(num_envs, config.lstm) if config.lstm else ()


def _judged(config: Config, task: Task, params: Any, rows: Transition | Batch) -> tuple[Any, jax.Array, Any]:
    """pi(. | s), b(s) and with a memory what is remembered after each row: `[T, B, ...]` then, any shape else."""
    if not config.lstm:
        return *actor_critic.judged(config, task, params, rows.obs, rows.legal), ()
    # What counts are episodes from their first decision on, so that the memory before the rows is nobody's.
    begin = actor_critic.blank(rows.first.shape[1], config.lstm, share_torso=False)
    memories, (of_policy, of_value) = actor_critic.unroll(config, task, params, rows.obs, rows.first, begin)
    return actor_critic.pi(task, params, of_policy, rows.legal), actor_critic.v(params, of_value), memories


def _next_value(config: Config, task: Task, params: Any, next_obs: Any, memories: Any) -> jax.Array:
    """b of the true successors."""
    if config.lstm:
        return actor_critic.next_values(config, task, params, next_obs, memories)
    return actor_critic.value(config, task, params, next_obs)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """What minus d theta is the gradient of, and the baseline's error: sums over each episode, averaged over episodes."""
    pi, b, _ = _judged(config, task, params, batch)
    objective = jnp.sum(batch.weight * pi.log_prob(batch.action) * batch.advantage)
    entropy = jnp.sum(batch.weight * pi.entropy())
    total = -objective - config.ent_coef * entropy
    rows = jnp.maximum(jnp.sum(batch.weight), 1e-8)
    metrics = {"policy_loss": -objective, "entropy": entropy / rows}
    if config.baseline:
        # A mean over decisions: the baseline should be right in each, however long its episode was.
        value_loss = jnp.sum(batch.weight * losses.squared(b - batch.target)) / rows
        total = total + config.value_coef * value_loss
        metrics |= {"value_loss": value_loss, "value": jnp.sum(batch.weight * b) / rows}
    return total, {"loss": total} | metrics


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.identity() if config.optimiser == "sgd" else optax.scale_by_adam()


def whole_episodes(config: Config, task: Task, params: Any, rows: Transition, num_new: int) -> Batch:
    """The rows `[T, B, ...]` as a Batch in which those of episodes that ended within the last `num_new` count."""
    ended = rows.terminated | rows.truncated
    after = b = jnp.zeros(rows.reward.shape)
    if config.baseline:
        _, b, memories = _judged(config, task, params, rows)
        # What a cut episode would still have brought; without a value function nobody can say.
        after = jnp.where(rows.truncated & ~rows.terminated, _next_value(config, task, params, rows.next_obs, memories), 0.0)
    is_new = jnp.arange(ended.shape[0])[:, None] >= ended.shape[0] - num_new

    def backwards(c: Any, row: Any) -> Any:
        later, counts = c
        end, new, reward, bootstrap = row
        total = reward + config.gamma * jnp.where(end, bootstrap, later)
        counts = jnp.where(end, new, counts)
        return (total, counts), (total, counts)

    begin = (jnp.zeros(ended.shape[1]), jnp.zeros(ended.shape[1], bool))
    is_new = jnp.broadcast_to(is_new, ended.shape)
    _, (target, counts) = jax.lax.scan(backwards, begin, (ended, is_new, rows.reward, after), reverse=True)
    episodes = jnp.maximum(jnp.sum(ended & is_new), 1)
    advantage = jax.lax.stop_gradient(target - b)
    if config.normalise_advantage:
        # Where no episode ended nothing counts, and nothing has no mean.
        some = counts | ~jnp.any(counts)
        mean = jnp.mean(advantage, where=some)
        advantage = (advantage - mean) / (jnp.std(advantage, where=some) + 1e-8)
    if config.discount_states:

        def forwards(power: Any, first: Any) -> Any:
            power = jnp.where(first, 1.0, config.gamma * power)
            return power, power

        advantage = advantage * jax.lax.scan(forwards, jnp.ones(ended.shape[1]), rows.first)[1]
    weight = counts / episodes
    batch = Batch(rows.obs, rows.legal, rows.action, jax.lax.stop_gradient(target), advantage, weight)
    return batch._replace(first=rows.first) if config.lstm else trees.as_rows(batch)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """One step on the episodes that ended within a trajectory `[T, B, ...]`; none where no episode did."""
    done = jnp.clip(schedules.fraction(state.updates, config.total_steps // steps_per_turn(config)), 0.0, 1.0)
    learning_rate = config.learning_rate * (1.0 - done if config.anneal_learning_rate else 1.0)
    rows: Transition = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.asarray(b, a.dtype)]), state.running, experience)
    batch = whole_episodes(config, task, state.params, rows, config.num_steps)
    grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(state.params, batch)
    norm = trees.global_norm(grads)
    if config.max_grad_norm is not None:
        grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
    direction, opt_state = _optimiser(config).update(grads, state.opt_state)
    params = optimisers.descend(state.params, direction, learning_rate)
    some = jnp.any(experience.terminated | experience.truncated)
    params, opt_state = trees.select(some, (params, opt_state), (state.params, state.opt_state))
    running = jax.tree.map(lambda x, old: x[x.shape[0] - old.shape[0] :], rows, state.running)
    metrics |= {"grad_norm": norm, "learning_rate": jnp.asarray(learning_rate)}
    return State(params, opt_state, running, state.collector, state.key, state.updates + 1), metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """`num_steps` decisions of every environment, and an update."""
    return onpolicy.turn(config, task, policy, actor, state, update)


def interrupted(state: State) -> State:
    """A State whose host environments were lost: what was running has ended without counting."""
    last = state.running.terminated.shape[0] - 1
    return state._replace(running=state.running._replace(terminated=state.running.terminated.at[last].set(True)))
