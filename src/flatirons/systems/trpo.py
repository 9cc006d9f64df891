"""Trust Region Policy Optimization (Schulman, Levine, Moritz, Jordan, Abbeel 2015, arXiv:1502.05477), section 6.

    repeat
        collect states and actions by the single path or the vine procedure, with Monte Carlo estimates of their Q-values
        build the estimated objective L and the constraint mean KL(theta_old || theta) <= delta of equation 14
        g <- grad L;  solve F s = g by conjugate gradient, F only ever in products F v                         (appendix C)
        theta <- theta_old + beta s with beta = sqrt(2 delta / s^T F s), shrunk until L rises and the constraint holds

Without the last shrinking it is the natural policy gradient with a step of constant KL (`natural-pg`). See docs/trpo.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatirons.core import losses, normalise, optimisers, schedules, trees, trust_region
from flatirons.core.shuffle import minibatches, permutation, taken
from flatirons.data import onpolicy, vine
from flatirons.data import rollout as data
from flatirons.data.onpolicy import Actor, Batch, Normaliser
from flatirons.nets import actor_critic
from flatirons.nets.mlp import Activation
from flatirons.types import (
    Discrete,
    FlatironsError,
    InGraphTask,
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
    """Settings of TRPO. The defaults are a general-purpose choice; `trpo-paper` is the paper's, with its authors' damping and normalised
    advantages."""

    total_steps: int = 1_000_000
    """Decisions in all, over all environments."""
    num_envs: int = 8
    """Environments side by side."""
    num_steps: int = 250
    """Decisions of each environment per iteration."""
    delta: float = 0.01
    """Bound on the mean KL divergence of old and new policy (equation 14)."""
    anneal_delta: bool = False
    """Let delta fall linearly to 0 at total_steps (not in the paper), so that the last steps cannot undo much."""
    line_search: bool = True
    """Shrink the step until the objective improves and the constraint holds; without it the full step is taken (natural gradient)."""
    backtrack_ratio: float = 0.8
    """Factor by which the step shrinks."""
    backtrack_steps: int = 10
    """Steps tried before the old policy is kept."""
    cg_iterations: int = 10
    """Conjugate gradient iterations (appendix C: 10)."""
    cg_tolerance: float = 1e-10
    """Stop them once the squared residual has fallen to this fraction."""
    damping: float = 0.1
    """Added to the Fisher matrix's diagonal, in the products and so in s^T F s, too (not in the paper, but in its authors' code)."""
    fisher_every: int = 1
    """The Fisher matrix averages over every so-many-th decision of each environment (appendix C: 10)."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimator; 1 is the paper's Monte Carlo return, less the value function."""
    vine_actions: int = 0
    """Actions tried from each state of the vine procedure (section 5.2); 0 is the single path. For Discrete actions, all of them."""
    vine_states: int = 128
    """States of an iteration's trajectory that branches start from."""
    vine_steps: int = 50
    """Decisions of a branch; the value function stands for the rest."""
    learning_rate: float = 1e-3
    """Adam's step size for the value function; the policy's is set by delta."""
    value_epochs: int = 10
    """Passes of the value function over the iteration's data."""
    value_minibatches: int = 10
    """Its minibatches per pass; must divide num_envs * num_steps."""
    normalise_advantage: bool = True
    """Advantages of an iteration to mean 0, deviation 1 (not in the paper, but in its authors' code)."""
    normalise_obs: bool = False
    """Standardise observations by running moments kept in State (not in the paper)."""
    normalise_reward: bool = False
    """Divide rewards by the running deviation of the discounted return (not in the paper)."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the MLP."""
    activation: Activation = "tanh"
    """tanh or relu."""
    initial_log_std: float = 0.0
    """Log standard deviation of Box actions at the start; it is learned, and does not depend on the observation."""


PRESETS = {
    "trpo-paper": Preset(
        doc="The paper's locomotion settings (section 8.1): one layer of 50, 10 % of the rows in the Fisher matrix, Monte Carlo returns; "
        "not in the paper but in its authors' program, and on here: damping 0.1, advantages normalised.",
        config={
            "total_steps": 10_000_000,
            "num_envs": 50,
            "num_steps": 1_000,
            "fisher_every": 10,
            "gae_lambda": 1.0,
            "backtrack_ratio": 0.5,
            "hidden": (50,),
        },
    ),
    "trpo-vine": Preset(
        doc="The vine procedure, in-graph, here for two discrete actions (others: --vine-actions and a --total-steps that it names): 96 "
        "states, every action from each.",
        config={"total_steps": 200_000, "num_steps": 50, "vine_actions": 2, "vine_states": 96},
    ),
    "natural-pg": Preset(
        doc="Natural policy gradient with a step of constant KL (Kakade 2002; section 6): no line search.",
        config={"line_search": False},
        on_top=True,
    ),
    "trpo-classic": Preset(
        doc="Tuned for short classic-control tasks with discrete actions.",
        config={"total_steps": 100_000, "num_envs": 8, "num_steps": 125, "gae_lambda": 0.98, "damping": 1e-3, "anneal_delta": True},
        tasks=("CartPole-v*", "jax:CartPole-v*", "Acrobot-v*", "jax:Acrobot-v*"),
    ),
    "trpo-pendulum": Preset(
        doc="Tuned for Pendulum: a short horizon, rewards normalised, larger steps that shrink, a value function fitted for longer.",
        config={
            "total_steps": 100_000,
            "num_envs": 4,
            "num_steps": 500,
            "gamma": 0.95,
            "gae_lambda": 0.9,
            "delta": 0.05,
            "anneal_delta": True,
            "value_epochs": 20,
            "learning_rate": 3e-3,
            "normalise_reward": True,
            "initial_log_std": -0.5,
        },
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
    ),
    "trpo-mujoco": Preset(
        doc="For MuJoCo's locomotion tasks: observations normalised.",
        config={"total_steps": 1_000_000, "num_envs": 8, "num_steps": 250, "normalise_obs": True, "initial_log_std": -0.5},
        tasks=tuple(
            f"{name}-v*"
            for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid*", "Reacher", "Pusher", "Inverted*Pendulum")
        ),
    ),
}


class State(NamedTuple):
    """Everything a run is made of. `updates` counts iterations (int32); `opt_state` is the value function's."""

    params: Any
    opt_state: Any
    normaliser: Normaliser
    collector: data.Collector
    key: Any
    updates: Any


distribution, value = actor_critic.distribution, actor_critic.value
prepare, interrupted = onpolicy.prepare, onpolicy.interrupted


def steps_per_turn(config: Config) -> int:
    """Decisions in one iteration, those of the vine's branches counted."""
    return onpolicy.steps_per_turn(config) + config.vine_actions * config.vine_states * config.vine_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    onpolicy.check(config, steps_per_turn(config))
    rows = onpolicy.steps_per_turn(config)
    if min(config.value_epochs, config.value_minibatches, config.cg_iterations, config.backtrack_steps, config.fisher_every) < 1:
        raise FlatironsError("value_epochs, value_minibatches, cg_iterations, backtrack_steps and fisher_every must be at least 1")
    if rows % config.value_minibatches:
        near = max(d for d in range(1, config.value_minibatches) if rows % d == 0)
        raise FlatironsError(
            f"value_minibatches={config.value_minibatches} does not divide num_envs * num_steps = {rows}: choose a divisor, for "
            f"instance {near}"
        )
    if config.vine_actions:
        if not task.in_graph:
            raise FlatironsError(
                f"vine_actions={config.vine_actions}: the vine procedure tries several actions from one state, and the state of "
                f"{task.name} cannot be restored; take a task in-graph (`flatirons list`), or the single path (vine_actions=0)"
            )
        action = task.spec.action
        if isinstance(action, Discrete) and config.vine_actions != action.n:
            turn = steps_per_turn(dataclasses.replace(cast(Any, config), vine_actions=action.n))
            raise FlatironsError(
                f"vine_actions={config.vine_actions}: {task.name} has {action.n} actions, and the vine procedure tries all of "
                f"them: set vine_actions={action.n} and total_steps={max(1, round(config.total_steps / turn)) * turn}, whole iterations "
                f"of {turn} decisions"
            )
        if config.vine_actions < 2 or config.vine_steps < 1 or not 1 <= config.vine_states <= rows:
            raise FlatironsError(
                f"the vine procedure needs vine_actions of at least 2, vine_steps of at least 1, and vine_states between 1 and "
                f"num_envs * num_steps = {rows}"
            )
    actor_critic.of(config, task)


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, optimiser, moments and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = actor_critic.init_params(config, task, key_params)
    opt_state = _optimiser().init(actor_critic.value_params(params))
    return State(params, opt_state, onpolicy.start(config, task), data.start(task, (), key_collect), key, jnp.int32(0))


def actor(state: State) -> Actor:
    """The acting part of a State: no value function."""
    return Actor(actor_critic.policy_params(state.params), state.normaliser.obs)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi; greedy takes its mode. It has no memory; with the vine procedure its extras are the environment's states."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        pi = distribution(config, task, actor.params, prepare(task, actor.obs, timestep.obs), timestep.legal)
        return pi.mode() if greedy else pi.sample(key), carry, timestep.model if config.vine_actions else ()

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """L(theta_old) - L(theta), L the estimated objective of equation 14, plus the value function's squared error.

    The two have parameters of their own and are minimised one after the other: a batch with `advantage` `()` has no policy part, one with
    `target` `()` no value part. The policy part is 0 at theta_old and free of cancellation near it, as the line search needs it."""
    total, metrics = jnp.zeros(()), {}
    if not isinstance(batch.advantage, tuple):
        pi = distribution(config, task, params, batch.obs, batch.legal)
        if config.vine_actions:
            rise = _vine_objective(task, pi, batch)
        else:
            rise = jnp.mean(jnp.expm1(pi.log_prob(batch.action) - batch.old_log_prob) * batch.advantage)
        total, metrics = total - rise, metrics | {"surrogate": rise, "entropy": jnp.mean(pi.entropy())}
    if not isinstance(batch.target, tuple):
        value_loss = jnp.mean(losses.squared(value(config, task, params, batch.obs) - batch.target))
        total, metrics = total + value_loss, metrics | {"value_loss": value_loss}
    return total, metrics | {"loss": total}


def _vine_objective(task: Task, pi: Any, batch: Batch) -> jax.Array:
    """Section 5.2 for actions and their Q-values `[K, N]`: the sum over all actions of pi(a | s) Q (equation 15), or the self-normalised
    estimate (equation 16), each less its value at theta_old."""
    log_prob = jax.vmap(pi.log_prob)(batch.action)
    if isinstance(task.spec.action, Discrete):
        return jnp.mean(jnp.sum((jnp.exp(log_prob) - jnp.exp(batch.old_log_prob)) * batch.advantage, axis=0))
    ratio = jnp.exp(log_prob - batch.old_log_prob)
    # The mean of Q, which this is at theta_old, is 0 in every state.
    return jnp.mean(jnp.sum(ratio * batch.advantage, axis=0) / jnp.sum(ratio, axis=0))


def _vine(config: Config, task: InGraphTask, state: State, experience: Transition, key: Key, reward_scale: Any) -> Batch:
    """Branches from states of a trajectory `[T, B, ...]`: `obs [N, ...]`, actions, their log pi_old and their Q, less a state's mean, over
    their deviation, `[K, N]`. A branch adds up the environment's own rewards; those of V are divided by `reward_scale`."""
    key_states, key_actions, key_branches = jax.random.split(key, 3)
    chosen = permutation(key_states, onpolicy.steps_per_turn(config))[: config.vine_states]
    obs, legal, env = jax.tree.map(lambda x: x[chosen], trees.as_rows((experience.obs, experience.legal, experience.extras)))
    obs = prepare(task, state.normaliser.obs, obs)
    pi = distribution(config, task, state.params, obs, legal)
    shape = (config.vine_actions, config.vine_states)
    if isinstance(task.spec.action, Discrete):
        actions = jnp.broadcast_to(jnp.arange(config.vine_actions, dtype=jnp.int32)[:, None], shape)
    else:
        actions = jax.vmap(pi.sample)(jax.random.split(key_actions, config.vine_actions))
    following = policy(config, task, actor(state), greedy=False)
    values = lambda obs: reward_scale * value(config, task, state.params, prepare(task, state.normaliser.obs, obs))  # noqa: E731
    q = vine.q_estimates(task, following, values, key_branches, env, actions, config.vine_steps, config.gamma)
    # Where all actions are tried, one that is not legal was too, and means nothing; what was sampled is legal.
    all_tried = isinstance(task.spec.action, Discrete)
    possible = legal.T if all_tried and not isinstance(legal, tuple) else jnp.full(shape, True)
    q = jnp.where(possible, q - jnp.mean(q, axis=0, keepdims=True, where=possible), 0.0)
    return Batch(obs, legal, actions, jax.vmap(pi.log_prob)(actions), (), q / (jnp.std(q) + 1e-8), ())


def _reward_scale(normaliser: Normaliser) -> Any:
    """What `onpolicy.advantages` divided this iteration's rewards by."""
    return 1.0 if normaliser.reward == () else 1.0 / normalise.rescale(normaliser.reward, jnp.ones(()), clip=jnp.inf)


def _optimiser() -> optax.GradientTransformation:
    return optax.scale_by_adam()


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """One constrained step of the policy on a trajectory `[T, B, ...]`, then epochs of the value function."""
    key, key_vine, key_shuffle = jax.random.split(state.key, 3)
    obs, next_obs = (prepare(task, state.normaliser.obs, x) for x in (experience.obs, experience.next_obs))
    pi_old = distribution(config, task, state.params, obs, experience.legal)
    v = value(config, task, state.params, obs)
    next_v = onpolicy.next_values(lambda x: value(config, task, state.params, x), v, next_obs, experience.truncated)
    batch, normaliser = onpolicy.advantages(config, state.normaliser, experience, obs, pi_old, v, next_v)
    batch = onpolicy.rows(batch._replace(old=()))
    if config.normalise_advantage:
        centred = batch.advantage - jnp.mean(batch.advantage)
        batch = batch._replace(advantage=centred / (jnp.std(batch.advantage) + 1e-8))
    sampled = batch._replace(target=())
    if config.vine_actions:
        sampled = _vine(config, cast(InGraphTask, task), state, experience, key_vine, _reward_scale(normaliser))
    bound = config.delta
    if config.anneal_delta:
        bound = schedules.linear(bound, 0.0, schedules.fraction(state.updates, config.total_steps // steps_per_turn(config)))
    narrowed: Any = dataclasses.replace(cast(Any, config), delta=bound)
    theta, metrics = _policy_step(narrowed, task, state.params, sampled, functools.partial(loss, config, task))
    values, opt_state, fitted = _fit_values(config, state, batch, key_shuffle, functools.partial(loss, config, task))
    metrics = fitted | metrics | onpolicy.value_metrics(batch) | {"loss": metrics["loss"] + fitted["loss"]}
    normaliser = onpolicy.seen(config, task, normaliser, experience.obs)
    return State(theta | values, opt_state, normaliser, state.collector, key, state.updates + 1), metrics


def fisher_rows(config: Config, num_rows: int) -> np.ndarray | None:
    """Which of `num_rows` rows the Fisher matrix averages over, None for all: one in `fisher_every`.

    A trajectory's rows are time-major, so that a plain stride would meet the same few environments in every step; here the next ones take
    their turn with each step. The vine's rows are in a random order, where any will do."""
    if config.fisher_every == 1:
        return None
    step, env = np.divmod(np.arange(num_rows), config.num_envs)
    return np.flatnonzero((step + env) % config.fisher_every == 0)


def kl_margin(delta: Any) -> jax.Array:
    """The share of `delta` that a step keeps clear of, so that the KL, of which float32 has a rounded value, holds the bound exactly.

    A row's KL is a square: where it is delta, log pi_new - log pi_old is sqrt(2 delta), and is known to about a rounding of log pi. The
    quotient was at most 0.3 eps / sqrt(delta) in runs down to 1e-10; below 3e-13 the margin is all of delta, and no step is taken."""
    return jnp.minimum(1.0, 1e-4 + 4.0 * jnp.finfo(jnp.float32).eps / jnp.sqrt(jnp.maximum(delta, 1e-30)))


def _policy_step(config: Config, task: Task, params: Any, batch: Batch, loss: Callable) -> tuple[Any, Metrics]:
    """The constrained step: the policy's new parameters (bit for bit the old where the line search fails), and its metrics."""
    theta_old, values = actor_critic.policy_params(params), actor_critic.value_params(params)

    def objective(theta: Any) -> tuple[jax.Array, Metrics]:
        return loss(theta | values, batch)

    def pi(theta: Any, rows: Any = None) -> Any:
        obs, legal = taken((batch.obs, batch.legal), rows)
        return distribution(config, task, theta, obs, legal)

    (before, _), grads = jax.value_and_grad(objective, has_aux=True)(theta_old)
    g = jax.tree.map(jnp.negative, grads)
    rows = fisher_rows(config, jax.tree.leaves(batch.obs)[0].shape[0])
    fisher = trust_region.fisher_vector_product(functools.partial(pi, rows=rows), theta_old)
    damped = lambda v: jax.tree.map(lambda fv, x: fv + config.damping * x, fisher(v), v)  # noqa: E731
    s = trust_region.conjugate_gradient(damped, g, config.cg_iterations, config.cg_tolerance)
    beta = trust_region.largest_step(s.x, s.product, config.delta)
    full = jax.tree.map(lambda x: beta * x, s.x)
    pi_old = pi(theta_old)
    bound = config.delta * (1.0 - kl_margin(config.delta))

    def good(theta: Any) -> tuple[jax.Array, Metrics]:
        after, metrics = objective(theta)
        kl, improvement = jnp.mean(pi_old.kl(pi(theta))), before - after
        kept = (improvement > 0) & (kl <= bound) if config.line_search else jnp.isfinite(after)
        return kept, metrics | {"kl": kl, "improvement": improvement}

    tries = config.backtrack_steps if config.line_search else 1
    found = trust_region.backtracking(good, theta_old, full, config.backtrack_ratio, tries)
    return found.params, found.metrics | {
        "expected_improvement": optax.tree_utils.tree_vdot(g, full),
        "cg_residual": s.residual,
        "accepted": found.accepted.astype(jnp.float32),
        "backtracks": found.refused.astype(jnp.float32),
        "grad_norm": trees.global_norm(grads),
    }


def _fit_values(config: Config, state: State, batch: Batch, key: Key, loss: Callable) -> tuple[Any, Any, Metrics]:
    """Minibatch steps of the value function towards its targets: its parameters, the optimiser's state, mean metrics."""
    theta = actor_critic.policy_params(state.params)
    batch = batch._replace(advantage=())

    def one_minibatch(c: tuple[Any, Any], indices: Any) -> tuple[tuple[Any, Any], Metrics]:
        values, opt_state = c
        grads, metrics = jax.grad(lambda v: loss(theta | v, taken(batch, indices)), has_aux=True)(values)
        direction, opt_state = _optimiser().update(grads, opt_state)
        return (optimisers.descend(values, direction, config.learning_rate), opt_state), metrics

    num = config.value_epochs * config.value_minibatches
    indices = minibatches(key, onpolicy.steps_per_turn(config), config.value_epochs, config.value_minibatches)
    begin = (actor_critic.value_params(state.params), state.opt_state)
    (values, opt_state), metrics = jax.lax.scan(one_minibatch, begin, indices, length=num)
    return values, opt_state, jax.tree.map(jnp.mean, metrics)


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One iteration."""
    return onpolicy.turn(config, task, policy, actor, state, update)
