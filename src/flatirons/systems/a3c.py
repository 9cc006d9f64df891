"""Asynchronous methods for deep reinforcement learning (Mnih, Badia, Mirza, Graves, Lillicrap, Harley, Silver, Kavukcuoglu 2016,
arXiv:1602.01783), Algorithms 1, S2 and S3.

    each actor-learner, with shared theta, theta^- and counter T:
    repeat
        theta' <- theta
        act by pi(a | s; theta') for t_max steps or until the episode ends
        R <- 0 where it ended, else V(s; theta'); going backwards R <- r + gamma R
            d theta += grad log pi(a | s; theta') (R - V(s; theta')) + beta grad H(pi) - c grad (R - V)^2
        apply d theta to the shared theta, without a lock
    until T > T_max

t_max is `num_steps`; there are `actor_learners`, each with num_envs / actor_learners environments. See docs/a3c.md. The paper's other
methods learn Q instead and act epsilon-greedily (`method`), with theta^- <- theta every `target_every` decisions:

    q                     y = r + gamma max_a' Q(s', a'; theta^-)                          Algorithm 1
    sarsa                 y = r + gamma Q(s', a'; theta^-), a' the action taken next       section 4
    nstep-q               y = r_1 + ... + gamma^k max_a' Q(s_k, a'; theta^-)               Algorithm S2

They run in one of three ways (`mode`). In `turns` they learn one after the other: all act by the copies theta' they took after their last
update, then each differentiates at its own copy and applies the result, in a fixed order. So every gradient is actor_learners - 1 updates
old, as it is on average in a race, and a run can be repeated and resumed bit for bit. One actor-learner is A2C: its copy is theta itself.
In `threads` and `processes` they race, as in the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatirons import envs
from flatirons.core import compiling, distributions, exploration, optimisers, returns, schedules, trees
from flatirons.core.distributions import mask_logits
from flatirons.data import onpolicy, race, replay
from flatirons.data import rollout as data
from flatirons.nets import recurrent
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import (
    ArraySpec,
    Box,
    Discrete,
    Episodes,
    FlatironsError,
    HostTask,
    InGraphTask,
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
    """Settings of A3C and its family. The defaults are a general-purpose choice for small tasks; `a3c-paper` is the paper's."""

    total_steps: int = 500_000
    """T_max: decisions in all, over all workers."""
    num_envs: int = 8
    """Environments in all; actor_learners must divide it."""
    actor_learners: int = 8
    """Actor-learners, each with its copy theta' and, in the paper, one environment. 1 is A2C, synchronous."""
    method: Literal["a3c", "q", "sarsa", "nstep-q"] = "a3c"
    """What is learned: a policy and its value (a3c), or Q from one step (q, sarsa) or several (nstep-q)."""
    mode: Literal["turns", "threads", "processes"] = "turns"
    """How the actor-learners run: one after the other and repeatable, or in a race (tasks outside JAX)."""
    trajectories: int = 200
    """In a race: trajectories of all between two stops, where reports and checkpoints are made."""
    num_steps: int = 5
    """t_max: decisions of an environment between two updates of its worker."""
    learning_rate: float = 7e-4
    """Step size."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall linearly to 0 at total_steps, as in the paper."""
    gamma: float = 0.99
    """Discount."""
    value_coef: float = 0.5
    """Weight of the squared value error (not in the paper, where each has a gradient of its own)."""
    ent_coef: float = 0.01
    """Beta, weight of the entropy bonus (the paper: 0.01 on Atari, 1e-4 with continuous actions)."""
    rmsprop_decay: float = 0.99
    """Alpha of the shared RMSProp (equation S2)."""
    rmsprop_eps: float = 0.1
    """Epsilon inside its root (equation S3)."""
    max_grad_norm: float | None = None
    """Clip a worker's gradient to this global norm (not in the paper); none switches it off."""
    reward_scale: float = 1.0
    """Rewards are learned from times this (not in the paper, which clips those of games)."""
    target_every: int = 10_000
    """I_target: decisions between two copies of theta into theta^- (methods that learn Q)."""
    epsilon_ends: tuple[float, ...] = (0.1, 0.01, 0.5)
    """Where exploration ends: a worker draws one of them for each trajectory (methods that learn Q)."""
    epsilon_shares: tuple[float, ...] = (0.4, 0.3, 0.3)
    """With these chances."""
    epsilon_steps: int = 100_000
    """Decisions over which exploration falls from 1 to where it ends (the paper: 4M frames)."""
    eval_epsilon: float = 0.0
    """Exploration of the greedy policy where Q is learned."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the MLP."""
    activation: Activation = "relu"
    """tanh or relu."""
    share_torso: bool = True
    """One torso for policy and value (the paper: on Atari), else two (the paper: with continuous actions)."""
    lstm: int = 0
    """Units of a memory on top of the torso (the paper: 256); 0 for none."""


ATARI = {
    "total_steps": 80_000_000,
    "num_envs": 16,
    "actor_learners": 16,
    "network": "playing-atari",
    "epsilon_steps": 1_000_000,
}

CLASSIC = ("CartPole-v*", "jax:CartPole-v*", "Acrobot-v*", "jax:Acrobot-v*")
CLASSIC_Q = {
    "num_envs": 8,
    "actor_learners": 2,
    "trajectories": 125,
    "epsilon_steps": 50_000,
    # With the paper's 0.5 for the last, one seed in ten ends with a policy that drifts off CartPole's track.
    "epsilon_ends": (0.1, 0.01, 0.8),
    "hidden": (128, 128),
}
CLASSIC_ONE_STEP = CLASSIC_Q | {"num_steps": 5, "trajectories": 500, "learning_rate": 1e-3, "target_every": 2_000}

PRESETS = {
    "a3c-paper": Preset(
        doc="The paper's Atari settings: 16 actor-learners, t_max 5, the 2013 network, beta 0.01, shared RMSProp, 320M frames.",
        config=ATARI,
        tasks=("ALE/*",),
    ),
    "a3c-lstm": Preset(
        doc="The paper's recurrent agent: 256 LSTM cells after the last layer.",
        config={"lstm": 256},
        on_top=True,
    ),
    "a3c-continuous": Preset(
        doc="For continuous actions: as in the paper's section 9 networks of their own for policy and value, entropy at 1e-4.",
        config={"share_torso": False, "ent_coef": 1e-4, "hidden": (200,), "num_envs": 16, "actor_learners": 16},
        tasks=tuple(
            f"{name}-v*"
            for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid*", "Reacher", "Pusher", "Inverted*Pendulum")
        ),
    ),
    "async-q": Preset(
        doc="Asynchronous one-step Q-learning (Algorithm 1); on Atari with the paper's settings.",
        config={"method": "q"},
        on_top=True,
    ),
    "async-sarsa": Preset(
        doc="Asynchronous one-step Sarsa (section 4); on Atari with the paper's settings.",
        config={"method": "sarsa"},
        on_top=True,
    ),
    "async-nstep-q": Preset(
        doc="Asynchronous n-step Q-learning (Algorithm S2); on Atari with the paper's settings.",
        config={"method": "nstep-q"},
        on_top=True,
    ),
    "a3c-classic": Preset(
        doc="Tuned for short classic-control tasks with discrete actions: two actor-learners, t_max 10, a high learning rate.",
        config={"num_envs": 2, "actor_learners": 2, "num_steps": 10, "learning_rate": 5e-3},
        tasks=("CartPole-v*", "jax:CartPole-v*"),
    ),
    "a3c-minatar": Preset(
        doc="For MinAtar's games: two actor-learners with four environments each.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "actor_learners": 2,
            "num_steps": 5,
            "learning_rate": 5e-3,
            "rmsprop_eps": 1e-5,
            "max_grad_norm": 0.5,
        },
        tasks=("pgx:minatar-*",),
    ),
    "a3c-pendulum": Preset(
        doc="For Pendulum: networks of their own for policy and value, a short horizon, small rewards, many small updates.",
        config={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "actor_learners": 2,
            "num_steps": 8,
            "learning_rate": 1e-3,
            "rmsprop_eps": 1e-5,
            "gamma": 0.9,
            "ent_coef": 1e-3,
            "share_torso": False,
            "reward_scale": 0.05,
            "hidden": (200,),
            "max_grad_norm": 0.5,
        },
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
    ),
    "a3c-maze": Preset(
        doc="For random mazes: long trajectories for a memory's sake, which `lstm` gives it.",
        config={
            "total_steps": 4_000_000,
            "num_envs": 32,
            "actor_learners": 2,
            "num_steps": 25,
            "learning_rate": 2e-3,
            "rmsprop_eps": 1e-5,
            "max_grad_norm": 0.5,
            "lstm": 64,
        },
        tasks=("jax:RandomMaze-v*",),
    ),
    "async-q-classic": Preset(
        doc="One-step Q-learning for short classic-control tasks: two actor-learners with four environments each, a last epsilon of 0.8.",
        config=CLASSIC_ONE_STEP | {"method": "q"},
        tasks=CLASSIC,
        variant_of="async-q",
    ),
    "async-sarsa-classic": Preset(
        doc="One-step Sarsa for short classic-control tasks: as async-q-classic.",
        config=CLASSIC_ONE_STEP | {"method": "sarsa"},
        tasks=CLASSIC,
        variant_of="async-sarsa",
    ),
    "async-nstep-q-classic": Preset(
        doc="n-step Q-learning for short classic-control tasks: as async-q-classic, with longer trajectories and larger steps.",
        config=CLASSIC_Q | {"method": "nstep-q", "num_steps": 20, "learning_rate": 1e-2, "target_every": 500},
        tasks=CLASSIC,
        variant_of="async-nstep-q",
    ),
    "a2c": Preset(
        doc="Synchronous: one worker with 16 environments, so that every gradient is new (A2C).",
        config={"num_envs": 16, "actor_learners": 1, "rmsprop_eps": 1e-5},
        on_top=True,
    ),
}


class Actor(NamedTuple):
    """What acting needs: theta without the value's part, and no exploration rate. The learners' own have both, `[learners, ...]`."""

    params: Any
    epsilon: Any


class Extras(NamedTuple):
    """What a decision leaves for its learner: the memory before it, and the exploration rate `[B]`; `()` where there is none. Where Q is
    learned and a task has masks, `next_legal` `[B, n]` is added after the rollout: the actions that are legal in the next state."""

    memory: Any
    epsilon: Any
    next_legal: Any = ()


class State(NamedTuple):
    """Everything a run is made of.

    `params` and `opt_state` are shared; `copies` are the workers' theta' `[learners, ...]`, `target` is theta^-. `last` is sarsa's last row
    of every environment `[1, B, ...]`, which waits for the action taken next, with `waiting` 1 once there is one. `updates` counts those
    of all workers (int32).
    """

    params: Any
    opt_state: Any
    copies: Any
    target: Any
    last: Any
    waiting: Any
    collector: data.Collector
    key: Any
    updates: Any


class Batch(NamedTuple):
    """One worker's trajectory `[T, B, ...]` with the returns R or targets y. `memory` `[B, units]` is from before it."""

    obs: Any
    legal: Any
    first: Any
    memory: Any
    action: Any
    target: Any
    weight: Any


# ----------------------------------------------------------------------------------------------------------- the networks


def _torso(config: Config, task: Task) -> Network:
    return torso(config.network, task.spec.obs, config.hidden, config.activation, "orthogonal")


def _torsos(config: Config) -> tuple[str, ...]:
    return ("torso",) if config.share_torso or config.method != "a3c" else ("torso", "value_torso")


def _num_policy_outputs(task: Task) -> int:
    match task.spec.action:
        case Discrete(n):
            return n
        case MultiDiscrete(nvec):
            return sum(nvec)
        case Box() as box:
            return 2 * len(box.low)  # mean and what the variance is made of


def init_params(config: Config, task: Task, key: Key) -> dict[str, Any]:
    """Orthogonal weights; the policy's head scaled by 0.01. Keys: torso, head; for a policy also value and, unless shared, value_torso;
    with an LSTM memory, one for each torso."""
    net, names = _torso(config, task), _torsos(config)
    keys = dict(zip((*names, "head", "value"), jax.random.split(key, len(names) + 2), strict=True))
    params: dict[str, Any] = {name: net.init(keys[name], task.spec.obs) for name in names}
    width = num_outputs(net, params["torso"], task.spec.obs)
    if config.lstm:
        params["memory"] = {name: recurrent.lstm_init(jax.random.fold_in(keys[name], 1), width, config.lstm) for name in names}
        width = config.lstm
    if config.method == "a3c":
        params["head"] = dense_init(keys["head"], width, _num_policy_outputs(task), scale=0.01)
        params["value"] = dense_init(keys["value"], width, 1, scale=1.0)
    else:
        assert isinstance(task.spec.action, Discrete)
        params["head"] = dense_init(keys["head"], width, task.spec.action.n, scale=1.0)
    return params


def _blank(config: Config, num_envs: int, torsos: tuple[str, ...] = ("torso",)) -> Any:
    """The memory of each torso at an episode's start; `()` without an LSTM."""
    return {name: recurrent.blank(num_envs, config.lstm) for name in torsos} if config.lstm else ()


def _features(config: Config, task: Task, params: Any, obs: Any) -> dict[str, jax.Array]:
    net = _torso(config, task)
    return {name: net.apply(params[name], obs) for name in _torsos(config) if name in params}


def _step(config: Config, params: Any, memory: Any, features: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
    """Features `[..., B, n]` of one step with the memory, and the memory after it."""
    if not config.lstm:
        return features, memory
    after = {name: recurrent.lstm(params["memory"][name], memory[name], x) for name, x in features.items()}
    return {name: m.h for name, m in after.items()}, after


def _unroll(config: Config, task: Task, params: Any, obs: Any, first: Any, memory: Any) -> tuple[dict[str, jax.Array], Any]:
    """Features `[T, B, n]` of a trajectory that began with `memory [B, units]`, and the memories after each step."""
    features = _features(config, task, params, obs)
    if not config.lstm:
        return features, ()
    memories = {name: recurrent.unroll(params["memory"][name], memory[name], x, first) for name, x in features.items()}
    return {name: m.h for name, m in memories.items()}, memories


def _head(params: Any, features: dict[str, jax.Array]) -> jax.Array:
    """What pi is made of, or Q(s, .), `[..., outputs]`."""
    return dense(params["head"], features["torso"])


def _pi(task: Task, out: jax.Array, legal: Any) -> distributions.Distribution:
    """pi(. | s)."""
    match task.spec.action:
        case Discrete():
            return distributions.Categorical(mask_logits(out, legal))
        case MultiDiscrete(nvec):
            return distributions.multi_categorical(out, nvec, legal)
        case Box():
            # sigma^2 = log(1 + exp(.)) (section 9, continuous action control)
            mean, before = jnp.split(out, 2, axis=-1)
            return distributions.Normal(mean, 0.5 * jnp.log(jax.nn.softplus(before) + 1e-6))


def _v(params: Any, features: dict[str, jax.Array]) -> jax.Array:
    """V(s), `[...]`."""
    return dense(params["value"], features.get("value_torso", features["torso"]))[..., 0]


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions in one turn: t_max of every environment; in a race those between two stops."""
    if config.mode == "turns":
        return config.num_envs * config.num_steps
    return config.trajectories * _per_trajectory(config)


def _per_trajectory(config: Config) -> int:
    # At least one environment each: where there are fewer, it is `check` that says so.
    return max(1, config.num_envs // config.actor_learners) * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    onpolicy.check(config, steps_per_turn(config))
    if config.actor_learners < 1:
        raise FlatironsError("actor_learners must be at least 1")
    if config.actor_learners > config.num_envs:
        raise FlatironsError(
            f"actor_learners={config.actor_learners} is more than num_envs={config.num_envs}, and each needs an environment of its own: "
            f"set num_envs={config.actor_learners} or more"
        )
    if config.num_envs % config.actor_learners:
        near = max(d for d in range(1, config.actor_learners) if config.num_envs % d == 0)
        raise FlatironsError(
            f"actor_learners={config.actor_learners} does not divide num_envs={config.num_envs}: choose a divisor, for instance {near}"
        )
    if config.mode != "turns":
        if task.in_graph:
            raise FlatironsError(
                f"mode={config.mode} is for tasks outside JAX, and {task.name} is a part of the compiled program: use mode=turns, whose "
                "gradients are as old as in a race"
            )
        if config.trajectories < 1:
            raise FlatironsError("trajectories must be at least 1")
        if config.mode == "processes":
            _recipe(task)
            if isinstance(config.network, Network):
                raise FlatironsError("a network of your own cannot be sent to other processes: use mode=threads")
    if config.method != "a3c":
        if not isinstance(task.spec.action, Discrete):
            raise FlatironsError(
                f"method={config.method} needs a Discrete action space and {task.name} has {type(task.spec.action).__name__}: "
                "use method=a3c, which takes any"
            )
        if min(config.target_every, config.epsilon_steps) < 1:
            raise FlatironsError("target_every and epsilon_steps must be at least 1")
        if not config.epsilon_ends or len(config.epsilon_ends) != len(config.epsilon_shares):
            raise FlatironsError(
                f"epsilon_ends has {len(config.epsilon_ends)} entries and epsilon_shares {len(config.epsilon_shares)}: give as many "
                "chances as rates"
            )
        if min(config.epsilon_shares) < 0 or abs(sum(config.epsilon_shares) - 1.0) > 1e-6:
            raise FlatironsError(f"epsilon_shares={config.epsilon_shares} are chances: none below 0, and their sum 1")
    if config.lstm < 0:
        raise FlatironsError("lstm must be at least 0")
    _torso(config, task)


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, optimiser and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    return State(
        params=params,
        opt_state=_optimiser(config).init(params),
        copies=jax.tree.map(lambda x: jnp.broadcast_to(x, (config.actor_learners, *x.shape)), params) if config.mode == "turns" else (),
        target=jax.tree.map(jnp.copy, params) if config.method != "a3c" else (),
        last=_no_row(config, task) if config.method == "sarsa" else (),
        waiting=jnp.float32(0.0),
        collector=data.start(task, _blank(config, task.num_envs, _torsos(config)), key_collect),
        key=key,
        updates=jnp.int32(0),
    )


def warmed(state: State) -> State:
    """A State whose parameters came from another run: however many learners that had, these begin with copies of theirs."""
    if not state.copies:
        return state
    return state._replace(copies=jax.tree.map(lambda x, copies: jnp.broadcast_to(x, copies.shape), state.params, state.copies))


def _no_row(config: Config, task: Task) -> Transition:
    """A row `[1, B, ...]` of zeros, to be replaced."""
    num, action = task.num_envs, task.spec.action
    assert isinstance(action, Discrete)
    obs = jax.tree.map(lambda s: jnp.zeros((1, num, *s.shape), s.dtype), task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec))
    number, flag = jnp.zeros((1, num)), jnp.zeros((1, num), bool)
    legal = jnp.zeros((1, num, action.n), bool) if replay.has_masks(task) else ()
    memory = jax.tree.map(lambda x: x[None], _blank(config, num, _torsos(config)))
    return Transition(obs, number.astype(jnp.int32), number, obs, flag, flag, flag, legal, Extras(memory, number, legal))


def actor(state: State) -> Actor:
    """The acting part of a State: the shared theta, no value function."""
    params = {name: part for name, part in state.params.items() if name not in ("value", "value_torso")}
    if "memory" in params:
        params["memory"] = {"torso": params["memory"]["torso"]}
    return Actor(params, ())


def value(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """V(s; theta), where Q is learned max_a Q, of `obs [B, *obs]` at an episode's start, `[B]`."""
    num = jax.tree.leaves(obs)[0].shape[0]
    features, _ = _step(config, params, _blank(config, num, _torsos(config)), _features(config, task, params, obs))
    return _v(params, features) if config.method == "a3c" else jnp.max(_head(params, features), axis=-1)


def _decide(config: Config, task: Task, params: Any, timestep: TimeStep, memory: Any) -> tuple[jax.Array, Any]:
    """What the head says `[B, outputs]`, and the memory after it."""
    if config.lstm:
        memory = {name: recurrent.forget(m, timestep.first) for name, m in memory.items()}
    features, memory = _step(config, params, memory, _features(config, task, params, timestep.obs))
    return _head(params, features), memory


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi, greedy takes its mode; where Q is learned, epsilon-greedy with `eval_epsilon`. The carry is the LSTM's memory."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        out, carry = _decide(config, task, actor.params, timestep, carry)
        if config.method != "a3c":
            return exploration.epsilon_greedy(key, out, config.eval_epsilon, timestep.legal), carry, ()
        pi = _pi(task, out, timestep.legal)
        return pi.mode() if greedy else pi.sample(key), carry, ()

    return Policy(lambda num_envs: _blank(config, num_envs), act)


def workers_policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """The workers' policies, each in its own environments, which lie together: theta' and epsilon `[learners, ...]`."""
    assert not greedy
    apart = functools.partial(jax.tree.map, lambda x: x.reshape((config.actor_learners, -1, *x.shape[1:])))
    together = functools.partial(jax.tree.map, lambda x: x.reshape((-1, *x.shape[2:])))

    def act(key: Key, timestep: TimeStep, memory: Any) -> tuple[jax.Array, Any, Any]:
        seen = TimeStep(timestep.obs, (), timestep.first, ())
        decide = functools.partial(_decide, config, task)
        if config.actor_learners == 1:
            out, after = decide(jax.tree.map(lambda x: x[0], actor.params), seen, memory)
        else:
            out, after = together(jax.vmap(decide)(actor.params, apart(seen), apart(memory)))
        if config.method == "a3c":
            return _pi(task, out, timestep.legal).sample(key), after, Extras(memory, ())
        epsilon = jnp.repeat(actor.epsilon, task.num_envs // config.actor_learners)
        return exploration.epsilon_greedy(key, out, epsilon, timestep.legal), after, Extras(memory, epsilon)

    return Policy(lambda num_envs: _blank(config, num_envs, _torsos(config)), act)


# ----------------------------------------------------------------------------------------------------------- the learning


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """What a worker's d theta is the gradient of, summed over t_max and averaged over its environments, and its parts."""
    features, _ = _unroll(config, task, params, batch.obs, batch.first, batch.memory)
    out = _head(params, features)

    def accumulated(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(x, axis=0))

    if config.method != "a3c":
        chosen = jnp.sum(out * jax.nn.one_hot(batch.action, out.shape[-1]), axis=-1)
        error = batch.weight * (chosen - batch.target)
        total = accumulated(jnp.square(error))
        return total, {"loss": total, "q_value": jnp.mean(chosen), "td_error": jnp.mean(jnp.abs(error))}
    pi, v = _pi(task, out, batch.legal), _v(params, features)
    advantage = jax.lax.stop_gradient(batch.target - v)
    policy_loss = accumulated(-pi.log_prob(batch.action) * advantage)
    value_loss = accumulated(jnp.square(batch.target - v))
    entropy = pi.entropy()
    total = policy_loss - config.ent_coef * accumulated(entropy) + config.value_coef * value_loss
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": jnp.mean(entropy), "value": jnp.mean(v)}
    return total, {"loss": total} | metrics


def _targets(config: Config, task: Task, params: Any, target: Any, rows: Transition, next_action: Any) -> jax.Array:
    """R or y `[T, B]` of one worker's rows: its values are theta' = `params`' or theta^- = `target`'s, of the true successors."""
    values_of = params if config.method == "a3c" else target
    reward = config.reward_scale * rows.reward

    def next_out(obs: Any, memory: Any) -> Any:
        features, _ = _step(config, values_of, memory, _features(config, task, values_of, obs))
        return _v(values_of, features) if config.method == "a3c" else _head(values_of, features)

    memory = _start(rows)
    memories = _unroll(config, task, values_of, rows.obs, rows.first, memory)[1] if config.lstm else ()
    next_legal = rows.extras.next_legal
    if config.method in ("q", "sarsa"):
        q = next_out(rows.next_obs, memories)
        following = jnp.max(mask_logits(q, next_legal), axis=-1)
        if config.method == "sarsa":
            taken = jnp.sum(q * jax.nn.one_hot(next_action, q.shape[-1]), axis=-1)
            # After a cut nothing was taken, and no mask is known: what would have been taken, on average.
            epsilon = rows.extras.epsilon
            expected = epsilon * jnp.mean(q, axis=-1) + (1.0 - epsilon) * following
            following = jnp.where(rows.truncated, expected, taken)
        return returns.td_target(reward, rows.terminated, following, config.gamma)

    def bootstrap(obs: Any, memory: Any, next_legal: Any) -> jax.Array:
        out = next_out(obs, memory)
        return out if config.method == "a3c" else jnp.max(mask_logits(out, next_legal), axis=-1)

    final = jax.tree.map(lambda x: x[-1], (rows.next_obs, memories, next_legal))
    only_last = jnp.zeros(reward.shape).at[-1].set(bootstrap(*final))
    # Rarely is an episode cut within; only then are all successors valued.
    every = (rows.next_obs, memories, next_legal)
    following = jax.lax.cond(jnp.any(rows.truncated[:-1]), lambda: bootstrap(*every), lambda: only_last)
    return returns.segment_return(reward, following, rows.terminated, rows.truncated, config.gamma)


def _with_next_legal(config: Config, task: Task, collector: data.Collector, rows: Transition) -> Transition:
    """A trajectory `[T, B, ...]` with the mask of each row's next state, all true after a cut, whose state's mask nobody asked for."""
    if config.method == "a3c" or isinstance(rows.legal, tuple):
        return rows
    xp: Any = jnp if task.in_graph else np
    newest = cast(InGraphTask, task).observe(collector.env).legal if task.in_graph else cast(HostTask, task).current.legal
    next_legal = xp.concatenate([rows.legal[1:], newest[None]]) | (rows.terminated | rows.truncated)[..., None]
    return rows._replace(extras=rows.extras._replace(next_legal=next_legal))


def _start(rows: Transition) -> Any:
    """The memory that a trajectory began with."""
    return jax.tree.map(lambda x: x[0], rows.extras.memory)


def gradient(
    config: Config, task: Task, params: Any, target: Any, rows: Transition, next_action: Any, weight: Any, *, loss: Callable = loss
) -> tuple[Any, Metrics]:
    """d theta at theta' = `params` from one worker's rows `[T, B, ...]`, and its metrics. `next_action` `[T, B]` is sarsa's; rows with a
    `weight` `[T, B]` of 0 do not count where Q is learned."""
    y = jax.lax.stop_gradient(_targets(config, task, params, target, rows, next_action))
    batch = Batch(rows.obs, rows.legal, rows.first, _start(rows), rows.action, y, weight)
    grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
    norm = trees.global_norm(grads)
    if config.max_grad_norm is not None:
        grads = optimisers.clip_by_global_norm(grads, norm, config.max_grad_norm)
    return grads, metrics | {"grad_norm": norm}


def _optimiser(config: Config) -> optax.GradientTransformation:
    """g = alpha g + (1 - alpha) d theta^2; d theta / sqrt(g + eps) (equations S2 and S3)."""
    return optax.scale_by_rms(config.rmsprop_decay, config.rmsprop_eps, eps_in_sqrt=True)


def _progress(config: Config, updates: Any) -> jax.Array:
    """T / T_max before the update number `updates`."""
    return jnp.clip(schedules.fraction(updates, config.total_steps // _per_trajectory(config)), 0.0, 1.0)


def _decisions(config: Config, updates: Any) -> jax.Array:
    """T, float32: the decisions behind so many updates of all workers."""
    return jnp.asarray(updates, jnp.float32) * float(_per_trajectory(config))


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Every worker in turn applies the gradient of its part of a trajectory `[T, B, ...]` and takes a new copy of theta."""
    apart = functools.partial(jax.tree.map, lambda x: jnp.moveaxis(x.reshape((x.shape[0], config.actor_learners, -1, *x.shape[2:])), 1, 0))
    learning_rate = config.learning_rate * (1.0 - _progress(config, state.updates) if config.anneal_learning_rate else 1.0)
    rows, last, waiting = experience, state.last, state.waiting
    weight = jnp.ones(experience.reward.shape)
    if config.method == "sarsa":
        # One row later, every row's next action is there.
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b[:-1]]), last, experience)
        last, waiting = jax.tree.map(lambda x: x[-1:], experience), jnp.ones_like(waiting)
        weight = weight.at[0].set(state.waiting)

    def one_worker(c: tuple[Any, Any], its: tuple[Any, ...]) -> tuple[tuple[Any, Any], tuple[Any, Metrics]]:
        params, opt_state = c
        copy, *mine = its
        grads, metrics = gradient(config, task, copy, state.target, *mine, loss=loss)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        params = optimisers.descend(params, direction, learning_rate)
        return (params, opt_state), (params, metrics)

    begin = (state.params, state.opt_state)
    (params, opt_state), (copies, metrics) = jax.lax.scan(one_worker, begin, (state.copies, *apart((rows, experience.action, weight))))
    metrics = jax.tree.map(jnp.mean, metrics) | {"learning_rate": jnp.asarray(learning_rate)}
    updates, target = state.updates + config.actor_learners, state.target
    if config.method != "a3c":
        passed = [jnp.floor(_decisions(config, n) / config.target_every) for n in (state.updates, updates)]
        target = trees.select(passed[0] < passed[1], params, target)
        metrics |= {"epsilon": jnp.mean(experience.extras.epsilon)}
    return State(params, opt_state, copies, target, last, waiting, state.collector, state.key, updates), metrics


def exploration_rates(config: Config, key: Key, updates: Any, num: int) -> Any:
    """Exploration rates `[num]`, each on its way from 1 to a randomly drawn end; `()` for a policy of its own."""
    if config.method != "a3c":
        ends = jax.random.choice(key, jnp.asarray(config.epsilon_ends), (num,), p=jnp.asarray(config.epsilon_shares))
        return schedules.linear(1.0, ends, _decisions(config, updates) / config.epsilon_steps)
    return ()


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """A trajectory and an update of every actor-learner; in a race `trajectories` of whoever is first (`update` is not asked)."""
    if config.mode != "turns":
        return _race(config, cast(HostTask, task), state)
    key, key_epsilon = jax.random.split(state.key)
    acting = Actor(state.copies, exploration_rates(config, key_epsilon, state.updates, config.actor_learners))
    collector, experience, episodes = data.rollout(config, task, workers_policy, acting, state.collector, config.num_steps)
    experience = _with_next_legal(config, task, collector, experience)
    state, metrics = update(config, task, state._replace(collector=(), key=key), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


def interrupted(state: State) -> State:
    """A State whose host environments were lost: no row waits for its next action."""
    return state._replace(waiting=jnp.zeros_like(state.waiting))


# --------------------------------------------------------------------------------------------------------------- the race


INITIAL_STD = 0.83
"""The deviation of Box actions at the start, sqrt(softplus(0))."""


def notes(config: Config) -> tuple[str, ...]:
    """What a person should know before the start."""
    if config.mode == "turns":
        if config.actor_learners == 1:
            return ()
        return (
            f"{config.actor_learners} actor-learners take turns in a fixed order, each gradient {config.actor_learners - 1} updates old: "
            "a run repeats where its task does; --mode processes (or threads) races them on tasks outside JAX",
        )
    return (
        f"{config.mode} race: no run can be repeated; a resumed one goes on from the same parameters, with new episodes and another order",
    )


def undivided(config: Config) -> str:
    """Why several devices cannot share a turn and what to do, "" where they can."""
    return "" if config.mode == "turns" else f"in a race (mode={config.mode}) each actor-learner computes by itself; take mode=turns"


def _recipe(task: Task) -> dict[str, Any]:
    """The task as JSON. Raises FlatironsError where it is no name."""
    recipe = cast(HostTask, task).recipe
    if recipe is None or not isinstance(recipe.task, str):
        raise FlatironsError(f"mode=processes makes {task.name} again by its name, and an object was passed: use mode=threads")
    return {"task": recipe.task, "options": recipe.options}


class ActorLearner:
    """One actor-learner of a race: Algorithm S3 (S2, 1) with environments, theta' and gradient of its own."""

    def __init__(self, config: Config, task: HostTask, shared: race.Shared, key: Key):
        """`config` has one actor-learner and plain numbers; `task` its environments."""
        self.config, self.task, self.shared, self._key = config, task, shared, key
        layout = jax.eval_shape(functools.partial(init_params, config, task), key)
        shapes, self._structure = jax.tree.flatten(layout)
        self._shapes = [leaf.shape for leaf in shapes]
        self._edges = np.cumsum([0, *(math.prod(shape) for shape in self._shapes)]).tolist()
        self._collector = data.start(task, _blank(config, task.num_envs, _torsos(config)), key)
        self._last: Transition | None = None
        self._names: list[str] = []

        def packed(copies: Any, target: Any, rows: Transition, next_action: Any) -> jax.Array:
            params, target = jax.tree.map(lambda x: x[0], (copies, target))
            grads, metrics = gradient(config, task, params, target, rows, next_action, jnp.ones(rows.reward.shape))
            self._names = sorted(metrics)
            return jnp.concatenate([*(g.reshape(-1) for g in jax.tree.leaves(grads)), jnp.stack([metrics[n] for n in self._names])])

        self._gradient = jax.jit(packed, compiler_options=compiling.ONE_THREAD if jax.default_backend() == "cpu" else {})
        # One array in and one call: Python that threads would queue for is a tenth of what handing over every layer takes.
        self._copies = jax.jit(self._apart)

    def _apart(self, flat: jax.Array) -> Any:
        """A copy of shared numbers, at one moment or nearly so, as the parameters of one worker, `[1, ...]` each."""
        leaves = [flat[a:b].reshape((1, *s)) for a, b, s in zip(self._edges, self._edges[1:], self._shapes, strict=False)]
        return jax.tree.unflatten(self._structure, leaves)

    def learn(self, end: int) -> race.Report:
        """Race until T is `end`."""
        config, shared, kept = self.config, self.shared, data.host_run(self.task)
        num, learns_q = steps_per_turn(config), config.method != "a3c"
        before, clock, learning = dict(kept.seconds), time.perf_counter, 0.0
        episodes, updates, sums = np.zeros(3), 0, np.zeros(0)
        target, epsilons = None, []
        while (count := shared.claim(num, end)) is not None:
            # The copy reads theta where it lies: before it is done this learner goes no further.
            copies = jax.block_until_ready(self._copies(shared.theta))  # theta' <- theta
            epsilon: Any = ()
            if learns_q:
                self._key, key = jax.random.split(self._key)
                epsilon = np.asarray(exploration_rates(config, key, count // num, 1))
                epsilons.append(float(epsilon[0]))
            acting = Actor(copies, epsilon)
            self._collector, rows, ended = data.rollout(config, self.task, workers_policy, acting, self._collector, config.num_steps)
            rows = _with_next_legal(config, self.task, self._collector, rows)
            episodes += [int(ended.count), float(ended.return_sum), int(ended.length_sum)]
            began, next_action = clock(), rows.action
            if config.method == "sarsa":
                newest, last = rows, self._last
                self._last = jax.tree.map(lambda x: x[-1:], newest)
                if last is None:
                    continue
                rows = jax.tree.map(lambda a, b: np.concatenate([a, b[:-1]]), last, newest)
            if learns_q:
                target = jax.block_until_ready(self._copies(shared.target))
            found = np.asarray(self._gradient(copies, target, rows, next_action))  # d theta
            rate = config.learning_rate * (1.0 - count / config.total_steps if config.anneal_learning_rate else 1.0)
            shared.descend(found[: shared.size], rate, config.rmsprop_decay, config.rmsprop_eps)
            if learns_q and count // config.target_every < (count + num) // config.target_every:
                shared.target[:] = shared.theta  # theta^- <- theta
            learning += clock() - began
            updates, sums = updates + 1, found[shared.size :] + (sums if updates else 0.0)
        seconds = {name: kept.seconds[name] - before[name] for name in before}
        seconds["learning"] += learning
        named = {name: float(total) for name, total in zip(self._names, sums, strict=False)}
        if epsilons:
            named["epsilon"] = sum(epsilons) / len(epsilons) * updates
        return race.Report((int(episodes[0]), float(episodes[1]), int(episodes[2])), updates, named, seconds)

    def close(self) -> None:
        """Close its environments."""
        self.task.close()


def learner_from(about: dict[str, Any], shared: race.Shared) -> ActorLearner:
    """The ActorLearner of a process, from JSON."""
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in about["config"].items()}
    config = Config(**settings)
    task = envs.make(about["task"], config.num_envs, seed=about["seed"], **about["options"])
    return ActorLearner(config, cast(HostTask, task), shared, jax.random.key(about["seed"]))


class _Race(NamedTuple):
    shared: race.Shared
    team: race.Team


def _racing(config: Config, task: HostTask, state: State) -> _Race:
    """The actor-learners of a task, made at its first turn and kept with it."""
    kept = task.__dict__.get("race")
    if kept is not None:
        return kept
    num = config.actor_learners
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(cast(Any, config))}
    own |= {name: float(value) for name, value in own.items() if isinstance(value, (jax.Array, np.ndarray, np.generic))}
    own |= {"num_envs": config.num_envs // num, "actor_learners": 1, "mode": "turns"}
    shared = race.Shared(trees.size(state.params), apart=config.mode == "processes")
    # Other episodes for every start, the same ones for every start from here.
    seeds = [int(x) >> 1 for x in np.random.SeedSequence([task.recipe.seed, int(state.updates)]).generate_state(num)]
    if config.mode == "processes":
        team: race.Team = race.Processes(__name__, [{**_recipe(task), "config": own, "seed": seed} for seed in seeds], shared)
    else:
        tasks = [cast(HostTask, task.recipe.make(own["num_envs"], seed)) for seed in seeds]
        mine = Config(**own)
        team = race.Threads([ActorLearner(mine, t, shared, jax.random.key(seed)) for t, seed in zip(tasks, seeds, strict=True)])
        weakref.finalize(task, team.close)
    kept = task.__dict__["race"] = _Race(shared, team)
    return kept


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def _like(tree: Any, flat: np.ndarray) -> Any:
    """`flat` copied, as a tree of that shape."""
    leaves, structure = jax.tree.flatten(tree)
    edges = np.cumsum([0, *(leaf.size for leaf in leaves)]).tolist()
    parts = [jnp.array(flat[a:b].reshape(leaf.shape)) for a, b, leaf in zip(edges, edges[1:], leaves, strict=False)]
    return jax.tree.unflatten(structure, parts)


def _race(config: Config, task: HostTask, state: State) -> tuple[State, Metrics]:
    """`trajectories` of all actor-learners in a race, from the State and back to it."""
    shared, team = _racing(config, task, state)
    kept = data.host_run(task).seconds
    shared.theta[:], shared.square[:] = _flat(state.params), _flat(state.opt_state)
    if config.method != "a3c":
        shared.target[:] = _flat(state.target)
    shared.count = int(state.updates) * _per_trajectory(config)
    reports = team.learn(shared.count + steps_per_turn(config))
    for report in reports:
        for name, spent in report.seconds.items():
            kept[name] = kept.get(name, 0.0) + spent / len(reports)
    total = max(1, sum(report.updates for report in reports))
    metrics: Metrics = {name: sum(r.metrics.get(name, 0.0) for r in reports) / total for name in {n for r in reports for n in r.metrics}}
    if config.anneal_learning_rate:
        metrics["learning_rate"] = float(config.learning_rate) * max(0.0, 1.0 - shared.count / config.total_steps)
    else:
        metrics["learning_rate"] = float(config.learning_rate)
    count, return_sum, length_sum = (sum(part) for part in zip(*(r.episodes for r in reports), strict=True))
    state = state._replace(
        params=_like(state.params, shared.theta),
        opt_state=_like(state.opt_state, shared.square),
        target=_like(state.target, shared.target) if config.method != "a3c" else (),
        updates=state.updates + config.trajectories,
    )
    return state, metrics | {"episodes": Episodes(np.int32(count), np.float32(return_sum), np.int32(length_sum))}
