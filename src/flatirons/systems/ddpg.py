"""Deep Deterministic Policy Gradient (Lillicrap et al. 2016, "Continuous control with deep reinforcement learning"), Algorithm 1.

    for episode = 1, M do
        initialise a random process N for exploration
        for t = 1, T do
            execute a_t = mu(s_t) + N_t, store (s_t, a_t, r_t, s_{t+1}) in R
            sample a minibatch from R; y = r + gamma Q'(s', mu'(s'))
            a gradient step on (y - Q(s, a))^2 for the critic, and along grad_a Q(s, a) at a = mu(s) grad mu(s) for the actor
            theta' <- tau theta + (1 - tau) theta', of both

See docs/ddpg.md. The three changes of TD3 (Fujimoto, van Hoof, Meger 2018, arXiv:1802.09477) are settings, off here and on in `td3`:

    twin                  y takes the smaller of two target critics: section 4.2
    policy_delay          the actor and the targets move every d-th update: section 5.2
    target_noise          y is for mu'(s') plus clipped noise: section 5.3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import bounds, exploration, optimisers, returns, schedules, trees
from flatirons.data import hindsight, offpolicy
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.nets import encoder
from flatirons.nets.critic import critic, critic_init, shrunk
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import Box, FlatironsError, Key, Metrics, Network, Policy, Preset, Task, TimeStep, Transition, config


@config
class Config:
    """Settings of DDPG. The defaults are today's common ones; `ddpg-paper` is the paper's."""

    total_steps: int = 1_000_000
    """Decisions in all, over all environments."""
    num_envs: int = 1
    """Environments side by side."""
    train_every: int = 1
    """Decisions (over all environments) between two trainings; num_envs must divide it."""
    gradient_steps: int = 1
    """Updates at each training; divided by train_every it is the update-to-data ratio."""
    batch_size: int = 256
    """Rows of a minibatch."""
    buffer_size: int = 1_000_000
    """Transitions in the replay; num_envs must divide it."""
    learning_starts: int = 10_000
    """Decisions before the first update."""
    random_steps: int = 10_000
    """Decisions at the start whose actions are uniformly random (not in the paper); none after --from."""
    her_goals: int = 0
    """k: goals reached later in an episode for each one of its own, where goals are in the observation (HER; 4 in its paper). 0: none."""
    overlap: bool = False
    """Act with the parameters from before the last training, so that on a host the environment steps while the learner computes."""
    learning_rate: float = 1e-3
    """Adam's step size for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic."""
    anneal_learning_rate: bool = False
    """Let both fall linearly to 0 at total_steps, so that the last policy is not one moment's of a restless one (not in the paper)."""
    critic_weight_decay: float = 0.0
    """L2: the critic's loss has this times half the squares of its weights (1e-2 in the paper)."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Fraction by which the targets move towards the online networks."""
    noise: Literal["gaussian", "ou"] = "gaussian"
    """Exploration: independent Gaussian, or the paper's Ornstein-Uhlenbeck process, which begins at 0 with every episode."""
    noise_std: float = 0.1
    """sigma of the noise, where actions are in [-1, 1]."""
    noise_theta: float = 0.15
    """theta of the Ornstein-Uhlenbeck process: the share of it that is forgotten in a step."""
    twin: bool = False
    """Two critics, the smaller of which gives the target (TD3)."""
    policy_delay: int = 1
    """Updates of the critic for one of the actor and the targets (TD3: 2)."""
    target_noise: float = 0.0
    """sigma of the noise on the target's action (TD3: 0.2)."""
    target_noise_clip: float = 0.5
    """Bound of that noise."""
    action_layer: int = 0
    """The critic's hidden layer that the action enters: 0 with the observation, 1 as in the paper."""
    last_layer_bound: float | None = None
    """Last layers begin uniform within this bound (3e-3 in the paper); none is ±1/sqrt(fan in) as elsewhere."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor's and the critic's layers; from an image alone the actor has the image stack's one layer instead."""
    activation: Activation = "relu"
    """tanh or relu."""
    layer_norm: bool = False
    """Standardise the critic's layers before their activation, which keeps Q from running away (not in the paper)."""
    standardise_pictures: bool = False
    """Bring each picture to mean 0 and deviation 1 first: on a plain background what moves is a small part of it (not in the paper)."""
    shared_encoder: bool = False
    """One torso below actor and critics, which the critics' error alone trains; each has `hidden` layers on top of it (DrQ; the paper: one
    each)."""
    shift_pixels: int = 0
    """Move the pictures of a minibatch at random by up to so many pixels each way (4 in DrQ; the paper: none)."""


HINDSIGHT = {
    "total_steps": 20_000,
    "learning_starts": 1_000,
    "random_steps": 1_000,
    "gamma": 0.95,
    "her_goals": 4,
}

# A decision lasts three steps, so that gamma is smaller. One encoder that the critic trains, and pictures in which what moves is no longer
# a small part, are what makes 20,000 decisions enough; with an actor's rate of 1e-3 it ends at the bounds and stays there.
SEEN = {
    "network": "playing-atari",
    "batch_size": 64,
    "learning_starts": 1_000,
    "random_steps": 1_000,
    "learning_rate": 1e-4,
    "gamma": 0.97,
    "tau": 0.02,
    "noise_std": 0.3,
    "last_layer_bound": 3e-3,
    "layer_norm": True,
    "standardise_pictures": True,
    "shared_encoder": True,
}

PRESETS = {
    "ddpg-paper": Preset(
        doc="The paper's settings (section 7), no batch normalisation: 400-300, action in the second layer, OU noise, weight decay.",
        config={
            "total_steps": 2_500_000,
            "batch_size": 64,
            "learning_starts": 1_000,
            "random_steps": 0,
            "learning_rate": 1e-4,
            "critic_weight_decay": 1e-2,
            "tau": 1e-3,
            "noise": "ou",
            "noise_std": 0.2,
            "action_layer": 1,
            "last_layer_bound": 3e-3,
            "hidden": (400, 300),
        },
    ),
    "td3": Preset(
        doc="TD3 (Fujimoto 2018): twin critics, the actor every second update, noise on the target's action.",
        config={
            "learning_rate": 3e-4,
            "critic_learning_rate": 3e-4,
            "twin": True,
            "policy_delay": 2,
            "target_noise": 0.2,
        },
    ),
    "ddpg-halfcheetah": Preset(
        doc="Tuned for HalfCheetah within 100,000 decisions: two updates each of a standardised critic, a rate that falls to 0.",
        config={
            "total_steps": 100_000,
            "learning_starts": 5_000,
            "random_steps": 10_000,
            "batch_size": 128,
            "gradient_steps": 2,
            "layer_norm": True,
            "anneal_learning_rate": True,
        },
        tasks=("HalfCheetah-v*",),
    ),
    "ddpg-inverted-pendulum": Preset(
        doc="Tuned for InvertedPendulum: learning begins early, with smaller minibatches, the critic's layers standardised.",
        config={"total_steps": 100_000, "learning_starts": 1_000, "random_steps": 1_000, "batch_size": 128, "layer_norm": True},
        tasks=("Inverted*Pendulum-v*",),
    ),
    "ddpg-mountain-car": Preset(
        doc="Tuned for MountainCarContinuous: much noise that lasts, for without it the car never comes to the flag.",
        config={"total_steps": 30_000, "noise": "ou", "noise_std": 0.5},
        tasks=("MountainCarContinuous-v*", "jax:MountainCarContinuous-v*"),
    ),
    "ddpg-pendulum": Preset(
        doc="Tuned for Pendulum: learning begins at once.",
        config={"total_steps": 20_000, "learning_starts": 1_000, "random_steps": 1_000, "buffer_size": 20_000},
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
    ),
    "ddpg-her": Preset(
        doc="For FetchReach: hindsight experience replay with four goals of the future for each one desired.",
        config=HINDSIGHT,
        tasks=("FetchReach-v*",),
    ),
    "ddpg-her-objects": Preset(
        doc="As ddpg-her, for Fetch's tasks with an object to move, which need a million decisions where reaching needs 20,000.",
        config=HINDSIGHT | {"total_steps": 1_000_000},
        # With their dense rewards another goal's reward is not known.
        tasks=("FetchPush-v*", "FetchSlide-v*", "FetchPickAndPlace-v*"),
    ),
    "ddpg-pixels-pendulum": Preset(
        doc="For Pendulum from what is seen alone: the smaller convolutional network, a replay that holds the whole run.",
        config=SEEN | {"total_steps": 20_000, "buffer_size": 20_000, "gamma": 0.9},
        tasks=("pixels:Pendulum-v*",),
    ),
    "ddpg-pixels-inverted-pendulum": Preset(
        doc="For InvertedPendulum from what is seen alone: a decision each step, for the pole falls within ten; little noise, two critics.",
        config=SEEN
        | {"total_steps": 20_000, "buffer_size": 20_000, "gamma": 0.99, "noise_std": 0.1, "anneal_learning_rate": True, "twin": True},
        tasks=("pixels:InvertedPendulum-v*",),
        env={"repeat": 1},
    ),
    "ddpg-pixels": Preset(
        doc="As ddpg-pixels-pendulum, for other tasks that are seen: 100,000 decisions, whose pictures take 0.4 GB.",
        config=SEEN | {"total_steps": 100_000, "buffer_size": 100_000},
        tasks=("pixels:*",),
    ),
}


EIGEN_PRODUCTS = True
"""Its products are faster by Eigen than by XLA's own choice on a CPU (`core.compiling`)."""


class Actor(NamedTuple):
    """What acting needs: mu's parameters, and whether actions are still random. `critics` say what is expected of a state; `encoder` is
    below both where they share one, or else `()`."""

    params: Any
    critics: Any
    random: Any
    encoder: Any = ()


class State(NamedTuple):
    """Everything a run is made of. `turns` and `updates` count trainings and gradient steps (int32); `random`: whether actions
    still are; `behind` is the Actor of `overlap`.

    `params` and `target` have the keys actor and critics (one, or a pair), and encoder where they share one."""

    params: Any
    target: Any
    opt_state: Any
    replay: memory.Replay
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any
    random: Any
    behind: Any = ()


# ----------------------------------------------------------------------------------------------------------- the networks


def _torso(config: Config, task: Task) -> tuple[Network, Any]:
    """The actor's, and what it looks at."""
    network, spec = encoder.own(config, task)
    return torso(network, spec, config.hidden, config.activation, "fan_in"), spec


def _box(task: Task) -> Box:
    return cast(Box, task.spec.action)


def init_params(config: Config, task: Task, key: Key) -> dict[str, Any]:
    """Weights and biases uniform in ±1/sqrt(fan in), the last layers within `last_layer_bound` (section 7)."""
    key_torso, key_head, *keys = jax.random.split(key, 4)
    (net, spec), num_actions = _torso(config, task), len(_box(task).low)
    below = net.init(key_torso, spec)
    head = dense_init(key_head, num_outputs(net, below, spec), num_actions, init="fan_in")
    critics = tuple(
        critic_init(
            k,
            *encoder.own(config, task),
            num_actions,
            config.hidden,
            action_layer=config.action_layer,
            activation=config.activation,
        )
        for k in keys[: 2 if config.twin else 1]
    )
    if config.last_layer_bound is not None:
        head = shrunk(head, config.last_layer_bound)
        critics = tuple(c | {"q": shrunk(c["q"], config.last_layer_bound)} for c in critics)
    return {"actor": {"torso": below, "head": head}, "critics": critics} | encoder.init(config, task, jax.random.fold_in(key, 1))


def mu(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """mu(s) in [-1, 1], `[..., d]`, for what `encoder.seen` gives of a state and the actor's parameters."""
    return jnp.tanh(dense(params["head"], _torso(config, task)[0].apply(params["torso"], obs)))


def q_values(config: Config, task: Task, critics: Any, obs: Any, action: Any) -> tuple[jax.Array, ...]:
    """Q(s, a) of each critic for what `encoder.seen` gives of a state and actions in [-1, 1], `[...]` each."""
    sizes: dict[str, Any] = {"action_layer": config.action_layer, "activation": config.activation, "layer_norm": config.layer_norm}
    return tuple(critic(p, *encoder.own(config, task), config.hidden, obs, action, **sizes) for p in critics)


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions between two trainings."""
    return config.train_every


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    bounds.demand_box(task, "ddpg")
    if config.policy_delay < 1:
        raise FlatironsError(f"policy_delay={config.policy_delay} must be at least 1")
    if not 0 <= config.action_layer <= len(config.hidden):
        raise FlatironsError(f"action_layer={config.action_layer} must be from 0 to {len(config.hidden)}, the number of hidden layers")
    offpolicy.check(config, task)
    if config.her_goals:
        hindsight.check(task)
    encoder.check(config, task)
    torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, targets equal to them, an empty replay and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    carry = jnp.zeros((task.num_envs, len(_box(task).low))) if config.noise == "ou" else ()
    state = State(
        params=params,
        target=jax.tree.map(jnp.copy, params),
        opt_state={part: _optimiser().init(params[part]) for part in params},
        replay=memory.create(task.spec, task.num_envs, config.buffer_size),
        collector=data.start(task, carry, key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
        random=jnp.asarray(config.random_steps > 0),
    )
    return state._replace(behind=offpolicy.copied(_acting(state)) if config.overlap else ())


def actor(state: State) -> Actor:
    """The acting part of a State."""
    return Actor(state.params["actor"], state.params["critics"], state.random, state.params.get("encoder", ()))


def _acting(state: State) -> Actor:
    """What decisions are made with: to copy and hand over critics that they do not ask takes time."""
    return Actor(state.params["actor"], (), state.random, state.params.get("encoder", ()))


def warmed(state: State) -> State:
    """A State whose parameters came from another run: its policy collects from the first decision on, and nothing is random."""
    state = state._replace(random=jnp.zeros_like(state.random))
    return state._replace(behind=offpolicy.copied(_acting(state)) if state.behind else ())


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """mu(s) + N; greedy takes mu(s). The carry is the Ornstein-Uhlenbeck process `[B, d]`, or `()`."""
    remembers = config.noise == "ou" and not greedy

    def reset(num_envs: int) -> Any:
        return jnp.zeros((num_envs, len(_box(task).low))) if remembers else ()

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        action = mu(config, task, actor.params, encoder.seen(config, task, {"encoder": actor.encoder}, timestep.obs))
        if greedy:
            return bounds.to_box(_box(task), action), carry, ()
        key_random, key_noise = jax.random.split(key)
        anything = jax.random.uniform(key_random, action.shape, minval=-1.0, maxval=1.0)
        normal = jax.random.normal(key_noise, action.shape)
        noise = config.noise_std * normal
        if remembers:
            fresh = jnp.where(timestep.first[:, None], 0.0, carry)
            noise = carry = exploration.ornstein_uhlenbeck(fresh, normal, config.noise_theta, config.noise_std)
        action = jnp.where(actor.random, anything, jnp.clip(action + noise, -1.0, 1.0))
        return bounds.to_box(_box(task), action), carry, ()

    return Policy(reset, act)


def estimate(config: Config, task: Task, actor: Actor, timestep: TimeStep) -> jax.Array:
    """Q(s, mu(s)), `[B]`: what the policy expects of each state, for comparison with what it gets (figure 3)."""
    obs = encoder.seen(config, task, {"encoder": actor.encoder}, timestep.obs)
    return functools.reduce(jnp.minimum, q_values(config, task, actor.critics, obs, mu(config, task, actor.params, obs)))


class Batch(NamedTuple):
    """Rows `[n, ...]`: actions in [-1, 1] and the targets y of their Q. `moves`: whether the actor learns from them too, a scalar."""

    obs: Any
    action: Any
    target: Any
    moves: Any = True


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The critic's mean (y - Q(s, a))^2 and the actor's mean -Q(s, mu(s)) (equations 4 and 6).

    Each is held off the other's parameters, so that one gradient is the gradient of each; -Q's is the chain rule of equation 6."""
    obs = encoder.seen(config, task, params, batch.obs)
    q = q_values(config, task, params["critics"], obs, batch.action)
    critic_loss = sum((jnp.mean(jnp.square(q_i - batch.target)) for q_i in q), start=jnp.zeros(()))
    weights = [x for part in ("critics", "encoder") for x in jax.tree.leaves(params.get(part, ())) if x.ndim > 1]
    decay = config.critic_weight_decay * 0.5 * sum((jnp.sum(jnp.square(w)) for w in weights), start=jnp.zeros(()))

    def of_actor(params: Any) -> jax.Array:
        frozen, of_state = jax.lax.stop_gradient((params["critics"][:1], obs))
        return -jnp.mean(q_values(config, task, frozen, of_state, mu(config, task, params["actor"], of_state))[0])

    # Where the actor rests nothing of it is computed.
    delayed = config.policy_delay > 1
    actor_loss = jax.lax.cond(batch.moves, of_actor, lambda _: jnp.zeros(()), params) if delayed else of_actor(params)
    total = critic_loss + decay + actor_loss
    return total, {"loss": total, "critic_loss": critic_loss, "actor_loss": actor_loss, "q_value": jnp.mean(q[0])}


def targets(config: Config, task: Task, target: Any, sampled: memory.Sample, noise: Any) -> jax.Array:
    """y = r + gamma Q'(s', mu'(s')), `[n]`; only a termination has no successor. `noise [n, d]` is standard normal, for `target_noise`."""
    obs = encoder.seen(config, task, target, sampled.next_obs)
    action = mu(config, task, target["actor"], obs)
    shift = jnp.clip(config.target_noise * noise, -config.target_noise_clip, config.target_noise_clip)
    action = jnp.clip(action + shift, -1.0, 1.0)
    next_q = functools.reduce(jnp.minimum, q_values(config, task, target["critics"], obs, action))
    return returns.td_target(sampled.reward, sampled.terminated, next_q, sampled.discount)


def _optimiser() -> optax.GradientTransformation:
    return optax.scale_by_adam()


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Store a trajectory `[T, B, ...]`, then `gradient_steps` minibatch steps once `learning_starts` decisions are stored."""
    replay = memory.add(state.replay, task.spec, experience)
    turns = state.turns + 1
    key, key_draw, key_noise, key_goals = jax.random.split(state.key, 4)
    starts, envs = memory.draw(replay, key_draw, (config.gradient_steps, config.batch_size))
    noises = jax.random.normal(key_noise, (config.gradient_steps, config.batch_size, len(_box(task).low)))
    done = schedules.fraction(state.turns, config.total_steps // config.train_every)
    share = schedules.linear(1.0, 0.0, done) if config.anneal_learning_rate else 1.0
    rates = {"actor": config.learning_rate * share, "critics": config.critic_learning_rate * share}
    if config.shared_encoder:
        rates["encoder"] = rates["critics"]

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, target, opt_state, updates = c
        sampled = memory.read_at(replay, task.spec, starts[i], envs[i], config.gamma)
        if config.her_goals:
            key_i = jax.random.fold_in(key_goals, i)
            sampled = hindsight.relabelled(replay, task.spec, key_i, sampled, starts[i], envs[i], config.her_goals)
        if config.shift_pixels:
            here, there = encoder.shifted(config, task, jax.random.fold_in(key_noise, i), sampled.obs, sampled.next_obs)
            sampled = sampled._replace(obs=here, next_obs=there)
        updates = updates + 1
        moves = updates % config.policy_delay == 0
        batch = Batch(sampled.obs, bounds.to_unit(_box(task), sampled.action), targets(config, task, target, sampled, noises[i]), moves)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        after, opt_after = {}, {}
        for part, rate in rates.items():
            direction, opt_after[part] = _optimiser().update(grads[part], opt_state[part])
            after[part] = optimisers.descend(params[part], direction, rate)
        moved = trees.polyak(after, target, config.tau)
        if config.policy_delay > 1:
            after["actor"] = trees.select(moves, after["actor"], params["actor"])
            opt_after["actor"] = trees.select(moves, opt_after["actor"], opt_state["actor"])
            moved = trees.select(moves, moved, target)
            # So that its mean over all updates is that over those in which the actor moves.
            metrics |= {"actor_loss": config.policy_delay * metrics["actor_loss"]}
        return (after, moved, opt_after, updates), metrics | {"grad_norm": trees.global_norm(grads)}

    carry = (state.params, state.target, state.opt_state, state.updates)
    decisions = turns * config.train_every
    learning = decisions >= config.learning_starts
    (params, target, opt_state, updates), metrics = offpolicy.gradient_steps(one_update, carry, config.gradient_steps, learning)
    metrics |= {"replay_size": jnp.sum(replay.size).astype(jnp.float32)}
    random = state.random & (decisions < config.random_steps)
    state = State(params, target, opt_state, replay, state.collector, key, turns, updates, random, state.behind)
    return state, metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn of Algorithm 1: `train_every` decisions, then a training."""
    return offpolicy.turn(config, task, policy, _acting, state, update)


interrupted = offpolicy.interrupted
notes = offpolicy.notes
