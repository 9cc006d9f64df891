"""Model-Agnostic Meta-Learning (Finn, Abbeel, Levine 2017, arXiv:1703.03400), Algorithms 1 to 3, which are one here.

    while not done do
        sample batch of tasks T_i ~ p(T)
        for all T_i do
            sample K examples, or K trajectories with f_theta, D = {(x_1, a_1, ... x_H)}
            theta'_i <- theta - alpha grad_theta L_Ti(f_theta) on D, once or several times
            sample D'_i, trajectories with f_theta'_i
        theta <- theta - beta grad_theta sum_i L_Ti(f_theta'_i), using each D'_i, where the gradient goes through theta'_i

With H = 1 (examples and answers) this is Algorithm 2, with H > 1 (a policy that acts) Algorithm 3. A task T is
(L, q(x_1), q(x_{t+1} | x_t, a_t), H); `meta:` names distributions of them. See docs/maml.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatirons.core import distributions, optimisers, schedules, trees, trust_region
from flatirons.core.adapt import adapt
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.data.episodes import Batch, trajectories
from flatirons.envs import meta
from flatirons.nets import few_shot
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import (
    ArraySpec,
    Box,
    Discrete,
    Episodes,
    FlatironsError,
    Key,
    Metrics,
    Network,
    Policy,
    Preset,
    Task,
    TimeStep,
    config,
)

STEPS = "meta-iterations"
"""What `total_steps` counts."""


@config
class Config:
    """Settings of MAML. The defaults are the paper's for regression."""

    total_steps: int = 70_000
    """Meta-iterations: a step is one update of theta (line 10), not a decision."""
    num_envs: int = 25
    """Tasks in a meta-batch, side by side."""
    shots: int = 10
    """K: examples (of each class, where there are classes), or trajectories, in D."""
    queries: int = 10
    """As many in D', which the meta-update sees."""
    inner_steps: int = 1
    """Steps of adaptation. 0: none, theta learns all tasks at once (the pre-trained baseline)."""
    inner_rate: float = 0.01
    """alpha, the step size of adaptation."""
    first_order: bool = False
    """Leave out the second derivatives of the meta-gradient (section 5.2)."""
    meta_optimiser: Literal["adam", "trpo"] = "adam"
    """What line 10 is done with: Adam, or, where a policy acts, TRPO (section 5.3)."""
    learning_rate: float = 1e-3
    """beta, Adam's step size."""
    delta: float = 0.01
    """TRPO: bound on the mean KL divergence of the adapted policies before and after."""
    anneal_delta: bool = False
    """TRPO: let delta fall linearly to 0 at total_steps (not in the paper), so that the last steps cannot undo much."""
    cg_iterations: int = 10
    """TRPO: iterations of conjugate gradient."""
    damping: float = 1e-5
    """TRPO: added to the Fisher matrix's diagonal."""
    backtrack_ratio: float = 0.8
    """TRPO: factor by which the line search shrinks the step."""
    backtrack_steps: int = 15
    """TRPO: steps that the line search tries."""
    fisher_every: int = 1
    """TRPO: every how many rows of D' the Fisher matrix is made of."""
    fisher_first_order: bool = False
    """TRPO: leave the second derivatives out of the Fisher matrix alone, for less than half the cost. Gradient and constraint stay exact,
    the direction does not."""
    gamma: float = 0.99
    """Discount, where a policy acts."""
    gae_lambda: float = 1.0
    """Lambda of the advantages, where a policy acts; the value is a linear function fitted to each task's returns."""
    eval_steps: tuple[int, ...] = (0, 1, 5, 10)
    """Steps of adaptation after which a test task is scored; the score is that after the last."""
    eval_shots: int | None = None
    """K at test; none: as in training."""
    eval_queries: int = 100
    """Examples of a test task (of each class) that it is scored on."""
    eval_rate: float | None = None
    """alpha at test after the first step; none: inner_rate."""
    network: str | Network = "auto"
    """Torso: auto, mlp, omniglot-cnn, omniglot-mlp, any of the others' names, or from Python a Network of your own."""
    hidden: tuple[int, ...] = (40, 40)
    """Widths of the MLP."""
    activation: Activation = "relu"
    """tanh or relu."""
    init_scale: float = 1.0
    """Factor on the orthogonal weights at the start. The paper's regression starts near 0, from where adaptation stays stable longer."""
    filters: int = 64
    """Of each convolution of omniglot-cnn."""
    initial_log_std: float = 0.0
    """Log standard deviation of Box actions at the start, where a policy acts; it is learned and adapted."""


_SINUSOID = {"total_steps": 70_000, "num_envs": 25, "shots": 10, "queries": 10, "inner_rate": 0.01, "hidden": (40, 40), "init_scale": 0.05}
_OMNIGLOT: dict[str, Any] = {
    "total_steps": 60_000,
    "num_envs": 32,
    "shots": 1,
    "queries": 1,
    "inner_rate": 0.4,
    "network": "omniglot-cnn",
    "eval_steps": (0, 1, 3),
    # As in training, and in the authors' program: the network normalises by the pictures that are asked at once.
    "eval_queries": 1,
}
_ACTING: dict[str, Any] = {
    "total_steps": 500,
    "inner_rate": 0.1,
    "eval_rate": 0.05,
    "eval_steps": (0, 1, 2, 3),
    "meta_optimiser": "trpo",
    "fisher_every": 5,
    "fisher_first_order": True,
    "hidden": (100, 100),
    "shots": 20,
    "queries": 20,
}

PRESETS = {
    "maml-sinusoid": Preset(
        doc="The paper's regression (section 5.1), K = 10, with a smaller alpha, halved after the first step, that stays stable over ten.",
        config=_SINUSOID | {"inner_rate": 0.003, "eval_rate": 0.0015},
        tasks=("meta:sinusoid",),
    ),
    "maml-sinusoid-paper": Preset(
        doc="The same with the paper's alpha of 0.01, with which some tasks diverge after several steps.", config=_SINUSOID
    ),
    "maml-sinusoid-pretrained": Preset(
        doc="The paper's baseline for regression: one network for all tasks, fine-tuned at test.", config=_SINUSOID | {"inner_steps": 0}
    ),
    "maml-omniglot-laptop": Preset(
        doc="5-way 1-shot within an hour on two cores: 32 filters, 20,000 meta-iterations.",
        config=_OMNIGLOT | {"total_steps": 20_000, "filters": 32},
        tasks=("meta:omniglot",),
    ),
    "maml-omniglot-laptop-5shot": Preset(
        doc="5-way 5-shot within an hour on two cores: 32 filters, 16,000 meta-iterations of 16 tasks, characters mirrored and distorted.",
        config=_OMNIGLOT | {"total_steps": 16_000, "filters": 32, "num_envs": 16, "shots": 5, "queries": 5, "eval_queries": 5},
        env={"mirrored": True, "distorted_classes": 1.0, "distorted_pictures": 1.0},
    ),
    "maml-omniglot": Preset(doc="The paper's 5-way 1-shot Omniglot (section 5.2): 64 filters, 32 tasks.", config=_OMNIGLOT),
    "maml-omniglot-5shot": Preset(
        doc="The paper's 5-way 5-shot Omniglot.", config=_OMNIGLOT | {"shots": 5, "queries": 5, "eval_queries": 5}
    ),
    "maml-omniglot-20way": Preset(
        doc="The paper's 20-way 1-shot Omniglot: 16 tasks, five steps of 0.1.",
        config=_OMNIGLOT | {"num_envs": 16, "inner_steps": 5, "inner_rate": 0.1, "eval_steps": (0, 1, 5)},
        env={"ways": 20},
    ),
    "maml-omniglot-20way-5shot": Preset(
        doc="The paper's 20-way 5-shot Omniglot.",
        config=_OMNIGLOT
        | {"num_envs": 16, "inner_steps": 5, "inner_rate": 0.1, "eval_steps": (0, 1, 5), "shots": 5, "queries": 5, "eval_queries": 5},
        env={"ways": 20},
    ),
    "maml-omniglot-mlp": Preset(
        doc="The paper's network without convolutions, 5-way 1-shot.", config=_OMNIGLOT | {"network": "omniglot-mlp"}
    ),
    "maml-navigation": Preset(
        doc="The paper's point in the plane (section 5.3): 20 tasks, 20 trajectories each, 40 at test; 200 meta-iterations, "
        "and later steps shorter than the paper's.",
        config=_ACTING
        | {"total_steps": 200, "num_envs": 20, "fisher_first_order": False, "eval_shots": 40, "gae_lambda": 0.95, "eval_rate": 0.035},
        tasks=("meta:navigation",),
    ),
    "maml-halfcheetah-direction": Preset(
        doc="The paper's HalfCheetah forward or backward: 40 tasks, 20 trajectories of 200 steps.",
        config=_ACTING | {"num_envs": 40},
        tasks=("meta:halfcheetah-direction",),
    ),
    "maml-halfcheetah-velocity": Preset(
        doc="The paper's HalfCheetah at a pace: 40 tasks, 20 trajectories of 200 steps.",
        config=_ACTING | {"num_envs": 40},
        tasks=("meta:halfcheetah-velocity",),
    ),
}  # fmt: skip


class State(NamedTuple):
    """Everything a run is made of. `updates` counts meta-iterations (int32); `collector` is `()` in-graph, where each begins anew."""

    params: Any
    opt_state: Any
    collector: Any
    key: Any
    updates: Any


class Experience(NamedTuple):
    """What one meta-update learns from, `[tasks, ...]`: a Batch D (where a policy acts one for each inner step, `[tasks, steps, ...]`) and
    a Batch D'."""

    inner: Any
    outer: Any


# ------------------------------------------------------------------------------------------------------------ the function


def _net(config: Config, task: Task) -> Network:
    spec = task.spec.obs
    is_picture = isinstance(spec, ArraySpec) and len(spec.shape) == 3
    if config.network == "omniglot-cnn" or (config.network == "auto" and is_picture):
        return few_shot.cnn(spec, config.filters)
    if config.network == "omniglot-mlp":
        return few_shot.dense_normed(spec)
    return torso(config.network, spec, config.hidden, config.activation, "orthogonal")


def _kind(task: Task) -> str:
    return cast(Any, task).env.loss if task.in_graph else "return"  # on a host somebody acts


def _acts(task: Task) -> bool:
    """Whether H > 1."""
    return _kind(task) == "return"


def init_params(config: Config, task: Task, key: Key) -> dict[str, Any]:
    """Torso and head, and the log standard deviation where actions are drawn from a Gaussian."""
    key_torso, key_head = jax.random.split(key)
    net, action = _net(config, task), task.spec.action
    body = net.init(key_torso, task.spec.obs)
    outputs = action.n if isinstance(action, Discrete) else len(cast(Box, action).low)
    head = dense_init(key_head, num_outputs(net, body, task.spec.obs), outputs, scale=0.1 if _acts(task) else 1.0)
    params: dict[str, Any] = jax.tree.map(lambda x: config.init_scale * x, {"torso": body, "head": head})
    if _acts(task) and isinstance(action, Box):
        params["log_std"] = jnp.full(action.shape, config.initial_log_std, jnp.float32)
    return params


def apply(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """f_theta for `obs [M, ...]`: guesses `[M, n]`, logits `[M, n]`, or the means of actions `[M, n]`."""
    return dense(params["head"], _net(config, task).apply(params["torso"], obs))


def distribution(config: Config, task: Task, params: Any, obs: Any) -> Any:
    """pi(. | x) where a policy acts, for `obs [M, ...]`."""
    out = apply(config, task, params, obs)
    if isinstance(task.spec.action, Discrete):
        return distributions.Categorical(out)
    return distributions.Normal(out, jnp.broadcast_to(params["log_std"][None], out.shape))


def task_loss(config: Config, task: Task, params: Any, batch: Batch) -> jax.Array:
    """L_T(f_theta) on one task's Batch, a mean over its rows: equation 2, 3 or 4.

    Equation 4 is -E[sum of rewards]. Its estimate here is that of the likelihood ratio, -mean(pi / pi_drawn A): where pi is what drew the
    actions its gradient is the policy gradient, and its Hessian holds the outer product of scores that -mean(log pi A) lacks."""
    if _acts(task):
        log_prob = distribution(config, task, params, batch.obs).log_prob(batch.answer)
        gained = jnp.expm1(log_prob - batch.old_log_prob) * batch.advantage  # 0 where pi is the old one, and exact near it
        return -jnp.sum(batch.weight * gained) / jnp.sum(batch.weight)
    out = apply(config, task, params, batch.obs)
    if _kind(task) == "squared":
        return jnp.mean(jnp.sum(jnp.square(out - batch.answer), axis=-1))
    return -jnp.mean(distributions.Categorical(out).log_prob(batch.answer))


def adapted(config: Config, task: Task, params: Any, inner: Batch) -> Any:
    """theta'_i of one task (lines 5 to 7)."""
    loss = functools.partial(task_loss, config, task)
    if not _acts(task):
        return adapt(loss, params, inner, config.inner_steps, config.inner_rate, config.first_order)
    for step in range(config.inner_steps):
        params = adapt(loss, params, jax.tree.map(lambda x, i=step: x[i], inner), 1, config.inner_rate, config.first_order)
    return params


# ------------------------------------------------------------------------------------------------------------ the contract


def steps_per_turn(config: Config) -> int:
    """One meta-iteration."""
    del config
    return 1


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    env = vars(task).get("env")
    if not isinstance(env, meta.Distribution):
        known = ", ".join(f"meta:{name}" for name in meta.NAMES)
        raise FlatironsError(f"maml learns to learn from many tasks, and {task.name} is one: name a distribution of them ({known})")
    _demand_distribution(env, task)
    if min(config.num_envs, config.shots, config.queries, config.eval_queries, 1 if config.eval_shots is None else config.eval_shots) < 1:
        raise FlatironsError("num_envs, shots, queries, eval_shots and eval_queries must be at least 1")
    if config.inner_steps < 0 or not config.eval_steps or min(config.eval_steps) < 0:
        raise FlatironsError("inner_steps and eval_steps are numbers of steps, from 0 up, and eval_steps must name at least one")
    if config.meta_optimiser == "trpo" and env.loss != "return":
        raise FlatironsError(f"meta_optimiser=trpo improves policies, and nobody acts in {task.name}: choose adam")
    if isinstance(env, meta.Examples):
        env.demand(config.shots, config.queries)
        env.demand(config.eval_shots or config.shots, config.eval_queries)
    elif config.fisher_every < 1 or config.cg_iterations < 1 or config.backtrack_steps < 1:
        raise FlatironsError("fisher_every, cg_iterations and backtrack_steps must be at least 1")
    _net(config, task)


def _demand_distribution(env: Any, task: Task) -> None:
    """Raises FlatironsError where a distribution of a person's own is not what its `loss` says."""
    takes = {"squared": Box, "cross-entropy": Discrete, "return": (Box, Discrete)}
    if env.loss not in takes:
        raise FlatironsError(f"the loss of {task.name} is {env.loss!r}: let it be one of {', '.join(takes)}")
    if not isinstance(task.spec.action, takes[env.loss]):
        raise FlatironsError(f"the loss of {task.name} is {env.loss}, which does not fit its actions, {task.spec.action}")
    if env.loss != "return":
        if not isinstance(env, meta.Examples):
            raise FlatironsError(f"the loss of {task.name} is {env.loss}, of examples and answers: give it the methods examples and demand")
        return
    if not isinstance(task.spec.obs, ArraySpec) or len(task.spec.obs.shape) != 1 or task.spec.obs.dtype != "float32":
        raise FlatironsError(f"maml's value function is linear in a float vector, and {task.name} shows {task.spec.obs}: flatten it to one")
    if memory.has_masks(task):
        raise FlatironsError(
            f"{task.name} says which actions are legal, and maml does not look at that: take a system that does, such as ppo"
        )
    if task.in_graph and not isinstance(env, meta.Acted):
        raise FlatironsError(f"the loss of {task.name} is return, of a policy that acts: give it the method placed")
    if task.spec.max_episode_steps is None:
        raise FlatironsError(f"{task.name} has no max_episode_steps, and maml plays its episodes whole: say after how many steps they end")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters and optimiser."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    opt_state = optax.scale_by_adam().init(params) if config.meta_optimiser == "adam" else ()
    return State(params, opt_state, () if task.in_graph else data.start(task, (), key_collect), key, jnp.int32(0))


def actor(state: State) -> Any:
    """theta, from which one adapts."""
    return state.params


def policy(config: Config, task: Task, actor: Any, *, greedy: bool) -> Policy:
    """f_theta: the guess, the likeliest class, or an action drawn from pi (greedy: its mode). It has no memory."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if _kind(task) == "squared":
            return apply(config, task, actor, timestep.obs), carry, ()
        if not _acts(task):
            return jnp.argmax(apply(config, task, actor, timestep.obs), axis=-1).astype(jnp.int32), carry, ()
        pi = distribution(config, task, actor, timestep.obs)
        return pi.mode() if greedy else pi.sample(key), carry, ()

    return Policy(lambda num_envs: (), act)


def policies(config: Config, task: Task, actor: Any, *, greedy: bool) -> Policy:
    """A policy for each task, parameters `[tasks, ...]`, over streams that come task by task."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        num = jax.tree.leaves(actor)[0].shape[0]
        obs = jnp.asarray(timestep.obs)
        split = obs.reshape((num, -1, *obs.shape[1:]))
        pi = jax.vmap(functools.partial(distribution, config, task))(actor, split)
        action = pi.mode() if greedy else pi.sample(key)
        return action.reshape((obs.shape[0], *action.shape[2:])), carry, ()

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Experience) -> tuple[jax.Array, Metrics]:
    """The meta-objective of line 10: L_Ti(f_theta'_i) on D'_i, the mean over tasks (the paper's sum is that many times as large)."""

    def one(inner: Batch, outer: Batch) -> tuple[jax.Array, Metrics]:
        theta = adapted(config, task, params, inner)
        after = task_loss(config, task, theta, outer)
        if _acts(task):
            return after, {}
        metrics = {"loss_before": task_loss(config, task, params, inner)}
        if _kind(task) == "cross-entropy":
            right = jnp.argmax(apply(config, task, theta, outer.obs), axis=-1) == outer.answer
            metrics["accuracy"] = jnp.mean(right.astype(jnp.float32))
        return after, metrics

    losses, metrics = jax.vmap(one)(batch.inner, batch.outer)
    total = jnp.mean(losses)
    return total, jax.tree.map(jnp.mean, metrics) | {"loss": total}


def update(config: Config, task: Task, state: State, experience: Experience, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Line 10."""
    objective = functools.partial(loss, config, task)
    if config.meta_optimiser == "trpo":
        delta: Any = config.delta
        if config.anneal_delta:
            delta = schedules.linear(delta, 0.0, schedules.fraction(state.updates, config.total_steps))
        params, metrics = _trust_region(config, task, state.params, experience, objective, delta)
        return state._replace(params=params, updates=state.updates + 1), metrics
    grads, metrics = jax.grad(objective, has_aux=True)(state.params, experience)
    direction, opt_state = optax.scale_by_adam().update(grads, state.opt_state)
    params = optimisers.descend(state.params, direction, config.learning_rate)
    metrics = metrics | {"grad_norm": trees.global_norm(grads)}
    return state._replace(params=params, opt_state=opt_state, updates=state.updates + 1), metrics


def _trust_region(config: Config, task: Task, theta: Any, experience: Experience, objective: Callable, delta: Any) -> tuple[Any, Metrics]:
    """A step that lowers the meta-objective while the adapted policies stay within delta of themselves."""

    def pi(params: Any, every: int = 1, first_order: bool = config.first_order) -> Any:
        seen = dataclasses.replace(cast(Any, config), first_order=first_order)

        def one(inner: Batch, obs: Any) -> Any:
            return distribution(config, task, adapted(seen, task, params, inner), obs)

        return jax.vmap(one)(experience.inner, experience.outer.obs[:, ::every])

    found, metrics = trust_region.constrained_step(
        lambda params: objective(params, experience),
        pi,
        functools.partial(pi, every=config.fisher_every, first_order=config.first_order or config.fisher_first_order),
        theta,
        weights=experience.outer.weight,
        fisher_weights=experience.outer.weight[:, :: config.fisher_every],
        delta=delta,
        damping=config.damping,
        cg_iterations=config.cg_iterations,
        backtrack_ratio=config.backtrack_ratio,
        backtrack_steps=config.backtrack_steps,
    )
    return found, metrics


# ------------------------------------------------------------------------------------------------------------ line 5 and line 8


@functools.partial(jax.jit, static_argnums=1)
def _step_each(config: Config, task: Task, params: Any, batch: Batch, rate: Any) -> Any:
    """One step of adaptation in every task, parameters and rows `[tasks, ...]`."""
    return jax.vmap(lambda p, b: adapt(functools.partial(task_loss, config, task), p, b, 1, rate))(params, batch)


def _copies(params: Any, num: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num, *x.shape)), params)


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One meta-iteration."""
    key, key_tasks, *keys = jax.random.split(state.key, config.inner_steps + 4)
    env: Any = cast(Any, task).env
    tasks = env.draw(key_tasks, config.num_envs)  # line 3
    state, collector = state._replace(key=key, collector=()), state.collector
    if not _acts(task):
        inner, outer = (Batch(*rows) for rows in env.examples(keys[0], tasks, config.shots, config.queries))  # lines 5 and 8
        state, metrics = update(config, task, state, Experience(inner, outer))
        rows = outer.answer.shape[0] * outer.answer.shape[1]
        reward = metrics.get("accuracy", -metrics["loss"])  # an episode is one example
        return state, metrics | {"episodes": Episodes(jnp.int32(rows), rows * reward, jnp.int32(rows))}
    params, inner, before = _copies(state.params, config.num_envs), [], None
    for i in range(config.inner_steps):
        sampled, collector = trajectories(config, task, policies, distribution, params, tasks, collector, keys[i], config.shots)  # line 5
        params = _step_each(config, task, params, sampled.batch, config.inner_rate)  # lines 6 and 7
        inner.append(sampled.batch)
        before = sampled.returns if before is None else before
    sampled, collector = trajectories(config, task, policies, distribution, params, tasks, collector, keys[-1], config.queries)  # line 8
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *inner) if inner else ()
    state, metrics = update(config, task, state, Experience(stacked, sampled.batch))
    episodes = Episodes(jnp.int32(sampled.returns.size), jnp.sum(sampled.returns), jnp.sum(sampled.lengths).astype(jnp.int32))
    metrics = metrics | {"return_before": jnp.mean(sampled.returns if before is None else before), "episodes": episodes}
    return state._replace(collector=collector), metrics


# ------------------------------------------------------------------------------------------------------------ what was learnt


_played = jax.jit(trajectories, static_argnums=(1, 2, 3, 8))
"""Compiled, for environments in-graph."""


def adapt_to(config: Config, task: Task, actor: Any, given: Any, steps: int, rates: tuple[Any, Any], key: Key) -> Any:
    """theta' for one new task, from theta: `steps` steps, the first of size `rates[0]`, the others of `rates[1]`.

    `given` is a pair of examples `obs [M, ...]` and answers `[M, ...]`, or, where a policy acts, one task as `draw` gives it (a goal, a
    direction), in which `shots` episodes are played before each step."""
    params = _copies(actor, 1)
    collector: Any = ()
    tasks = jax.tree.map(lambda x: jnp.asarray(x)[None], given) if _acts(task) else ()
    if _acts(task) and not task.in_graph:
        key, key_collect = jax.random.split(key)
        collector = data.start(task, (), key_collect)
    play, count = (_played if task.in_graph else trajectories), config.eval_shots or config.shots
    for i in range(steps):
        if _acts(task):
            key, key_run = jax.random.split(key)
            sampled, collector = play(config, task, policies, distribution, params, tasks, collector, key_run, count)
            batch = sampled.batch
        else:
            batch = Batch(*jax.tree.map(lambda x: jnp.asarray(x)[None], tuple(given)))
        params = _step_each(config, task, params, batch, rates[min(i, 1)])
    return jax.tree.map(lambda x: x[0], params)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _scores_of_examples(config: Config, task: Task, theta: Any, key: Key, num: int) -> jax.Array:
    """`num` test tasks after 0, 1, ... steps: the mean squared error or the accuracy on other examples, `[num, steps + 1]`."""
    key_tasks, key_examples = jax.random.split(key)
    env: Any = cast(Any, task).env
    shots, rate = config.eval_shots or config.shots, config.inner_rate if config.eval_rate is None else config.eval_rate
    inner, outer = env.examples(key_examples, env.draw(key_tasks, num), shots, config.eval_queries)

    def quality(params: Any, rows: Batch) -> jax.Array:
        if _kind(task) == "squared":
            return task_loss(config, task, params, rows)
        return jnp.mean((jnp.argmax(apply(config, task, params, rows.obs), axis=-1) == rows.answer).astype(jnp.float32))

    def one(inner: Batch, outer: Batch) -> jax.Array:
        loss = functools.partial(task_loss, config, task)

        def again(params: Any, alpha: Any) -> tuple[Any, jax.Array]:
            return adapt(loss, params, inner, 1, alpha), quality(params, outer)

        alphas = jnp.full(max(config.eval_steps) + 1, rate).at[0].set(config.inner_rate)
        return jax.lax.scan(again, theta, alphas)[1]

    return jax.vmap(one)(Batch(*inner), Batch(*outer))


def _scores_of_acting(config: Config, task: Task, theta: Any, key: Key, num: int) -> np.ndarray:
    """`num` test tasks after 0, 1, ... steps, each on episodes of its own: the mean return, `[num, steps + 1]`."""
    key_tasks, key_collect, *keys = jax.random.split(key, max(config.eval_steps) + 3)
    collector = () if task.in_graph else data.start(task, (), key_collect)
    tasks, params, scores = cast(Any, task).env.draw(key_tasks, num), _copies(theta, num), []
    play, count = (_played if task.in_graph else trajectories), config.eval_shots or config.shots
    for i, key_run in enumerate(keys):
        sampled, collector = play(config, task, policies, distribution, params, tasks, collector, key_run, count)
        scores.append(np.asarray(jnp.mean(sampled.returns, axis=1)))
        rate = config.inner_rate if i == 0 or config.eval_rate is None else config.eval_rate
        params = _step_each(config, task, params, sampled.batch, rate)
    return np.stack(scores, axis=1)


AT_ONCE = 20
"""Test tasks that are scored side by side (on a host as many as it has environments)."""


def score(config: Config, task: Task, actor: Any, episodes: int, seed: int) -> dict[str, Any]:
    """`episodes` test tasks, each adapted from theta, after each of `eval_steps`.

    Returns `mse_after`, `accuracy_after` or `return_after`: means over the tasks by number of steps; `ci95`, half the width of their 95 %
    intervals; `mean` and `std` after the last (an error counts negative), and all that as flat `metrics`."""
    at_once = AT_ONCE if task.in_graph else task.num_envs
    one = _scores_of_acting if _acts(task) else _scores_of_examples
    if not task.in_graph:
        cast(Any, task).reset(seed)
    keys = jax.random.split(jax.random.key(seed), -(-episodes // at_once))
    scores = np.concatenate([np.asarray(one(config, task, actor, key, at_once), np.float64) for key in keys])[:episodes]
    name = {"squared": "mse_after", "cross-entropy": "accuracy_after", "return": "return_after"}[_kind(task)]
    after = {str(n): float(np.mean(scores[:, n])) for n in config.eval_steps}
    ci95 = {str(n): float(1.96 * np.std(scores[:, n]) / np.sqrt(episodes)) for n in config.eval_steps}
    last = (-1.0 if name == "mse_after" else 1.0) * scores[:, config.eval_steps[-1]]
    flat = {"mean": float(np.mean(last))} | {f"{name}_{n}": value for n, value in after.items()}
    return {"mean": flat["mean"], "std": float(np.std(last)), name: after, "ci95": ci95, "metrics": flat}
