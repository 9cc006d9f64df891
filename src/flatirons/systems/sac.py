"""Soft Actor-Critic (Haarnoja, Zhou, Abbeel, Levine 2018, arXiv:1801.01290; and Haarnoja et al. 2018, arXiv:1812.05905), Algorithm 1.

    for each environment step do
        a ~ pi_phi(a | s); s' ~ p(s' | s, a); D <- D + (s, a, r, s')
    for each gradient step do
        psi <- psi - lambda grad J_V(psi)                  only with a value network, as in the first paper
        theta_i <- theta_i - lambda grad J_Q(theta_i)      for i in 1, 2
        phi <- phi - lambda grad J_pi(phi)                 every policy_delay-th, as the next
        alpha <- alpha - lambda grad J(alpha)              only with an automatic temperature, as in the second
        target <- tau online + (1 - tau) target

The two papers are one file: `value_network` and `automatic_temperature` say which. See docs/sac.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import bounds, exploration, losses, optimisers, returns, schedules, trees
from flatirons.core.distributions import TanhNormal
from flatirons.data import hindsight, offpolicy
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.nets import encoder
from flatirons.nets.critic import critic, critic_init
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
from flatirons.types import Box, FlatironsError, Key, Metrics, Network, Policy, Preset, Task, TimeStep, Transition, config


@config
class Config:
    """Settings of SAC. The defaults are those of the second paper; `sac-2018` is the first."""

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
    """Decisions at the start whose actions are uniformly random; none where a run goes on from another's parameters (--from)."""
    noise_correlation: float | None = None
    """Correlation of an action's noise with that of the decision before (the papers: none). Each action is distributed as before, also
    the uniformly random ones at the start; what changes is that noise lasts, and goes somewhere."""
    her_goals: int = 0
    """k: goals reached later in an episode for each one of its own, where goals are in the observation (HER; 4 in its paper). 0: none."""
    overlap: bool = False
    """Act with the parameters from before the last training, so that on a host the environment steps while the learner computes."""
    learning_rate: float = 3e-4
    """lambda, Adam's step size for all parts."""
    anneal_learning_rate: bool = False
    """Let it fall linearly to 0 at total_steps, so that the last policy is not one moment's of a restless one (not in the papers)."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Fraction by which the target moves towards the online network; 1 copies it."""
    target_every: int = 1
    """Updates between two moves of the target."""
    policy_delay: int = 1
    """Updates of the critics for each one of the policy and its temperature (not in the papers; REDQ and DroQ make 20)."""
    value_network: bool = False
    """Learn V(s) and bootstrap from its target, as the first paper does, instead of from the target critics."""
    automatic_temperature: bool = True
    """Learn alpha so that the entropy stays at its target (the second paper, section 5)."""
    temperature: float = 1.0
    """alpha, at the start or for good."""
    target_entropy: float | None = None
    """Entropy that alpha is tuned to, in nats, of actions scaled to [-1, 1]; none is minus their number."""
    reward_scale: float = 1.0
    """Factor of rewards in learning (the first paper's one hyper-parameter, 5 or 20); evaluations do not use it."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the policy's and the critics' layers; from an image alone the policy has the image stack's one layer instead."""
    activation: Activation = "relu"
    """tanh or relu."""
    layer_norm: bool = False
    """Standardise the critics' layers before their activation, which keeps Q from running away with many updates a decision (DroQ)."""
    standardise_pictures: bool = False
    """Bring each picture to mean 0 and deviation 1 first: on a plain background what moves is a small part of it (not in the paper)."""
    shared_encoder: bool = False
    """One torso below actor and critics, which the critics' error alone trains; each has `hidden` layers on top of it (DrQ; the paper: one
    each)."""
    shift_pixels: int = 0
    """Move the pictures of a minibatch at random by up to so many pixels each way (4 in DrQ; the paper: none)."""


WALKERS = {
    "total_steps": 100_000,
    "learning_starts": 5_000,
    "random_steps": 10_000,
    "learning_rate": 1e-3,
    "anneal_learning_rate": True,
    "batch_size": 128,
    "gradient_steps": 10,
    "policy_delay": 5,
    "hidden": (128, 128),
    "layer_norm": True,
}

FIRST_PAPER = {"value_network": True, "automatic_temperature": False, "reward_scale": 5.0, "policy_delay": 1}

HINDSIGHT = {
    "total_steps": 20_000,
    "learning_starts": 1_000,
    "random_steps": 1_000,
    "learning_rate": 1e-3,
    "gamma": 0.95,
    "her_goals": 4,
}

# As `ddpg.SEEN`.
SEEN = {
    "network": "playing-atari",
    "batch_size": 64,
    "learning_starts": 1_000,
    "random_steps": 1_000,
    "gamma": 0.97,
    "tau": 0.02,
    "layer_norm": True,
    "standardise_pictures": True,
    "shared_encoder": True,
}

PRESETS = {
    "sac-2018": Preset(
        doc="The first paper: a value network with its target, temperature 1, rewards times 5 (its scale for all but Humanoid).",
        config=FIRST_PAPER,
        on_top=True,
    ),
    "sac-2018-humanoid": Preset(
        doc="As sac-2018, for Humanoid: rewards times 20, the paper's scale there.",
        config=FIRST_PAPER | {"reward_scale": 20.0},
        tasks=("Humanoid-v*",),
        variant_of="sac-2018",
        on_top=True,
    ),
    "sac-pendulum": Preset(
        doc="Tuned for Pendulum: learning begins at once and with larger steps.",
        config={"total_steps": 20_000, "learning_starts": 200, "random_steps": 200, "learning_rate": 1e-3, "buffer_size": 20_000},
        tasks=("Pendulum-v*", "jax:Pendulum-v*"),
    ),
    "sac-mountain-car": Preset(
        doc="Tuned for MountainCarContinuous: noise that lasts, for without it the car never comes to the flag.",
        config={"total_steps": 30_000, "learning_starts": 1_000, "random_steps": 1_000, "learning_rate": 1e-3, "noise_correlation": 0.95},
        tasks=("MountainCarContinuous-v*", "jax:MountainCarContinuous-v*"),
    ),
    "sac-halfcheetah": Preset(
        doc="Tuned for HalfCheetah on a laptop: learning begins early, with larger steps, smaller minibatches and a quicker target.",
        config={"learning_starts": 1_000, "random_steps": 5_000, "learning_rate": 1e-3, "batch_size": 128, "tau": 0.01},
        tasks=("HalfCheetah-v*",),
    ),
    "sac-hopper": Preset(
        doc="Tuned for Hopper: ten updates a decision of small standardised critics, two of the policy, REDQ's target entropy, annealed.",
        config=WALKERS | {"target_entropy": -1.0},
        tasks=("Hopper-v*",),
    ),
    "sac-walker2d": Preset(
        doc="As sac-hopper, for Walker2d: REDQ's target of entropy there.",
        config=WALKERS | {"target_entropy": -3.0},
        tasks=("Walker2d-v*",),
    ),
    "sac-inverted-pendulum": Preset(
        doc="Tuned for InvertedPendulum: learning begins early, with larger steps and smaller minibatches.",
        config={"total_steps": 25_000, "learning_starts": 1_000, "random_steps": 1_000, "learning_rate": 1e-3, "batch_size": 128},
        tasks=("Inverted*Pendulum-v*",),
    ),
    "sac-her": Preset(
        doc="For FetchReach: hindsight experience replay with four goals of the future for each one desired.",
        config=HINDSIGHT,
        tasks=("FetchReach-v*",),
    ),
    "sac-her-objects": Preset(
        doc="As sac-her, for Fetch's tasks with an object to move, which need a million decisions where reaching needs 20,000.",
        config=HINDSIGHT | {"total_steps": 1_000_000},
        # With their dense rewards another goal's reward is not known.
        tasks=("FetchPush-v*", "FetchSlide-v*", "FetchPickAndPlace-v*"),
    ),
    "sac-pixels-pendulum": Preset(
        doc="For Pendulum from what is seen alone: the smaller convolutional network, a replay that holds the whole run.",
        config=SEEN | {"total_steps": 20_000, "buffer_size": 20_000, "gamma": 0.9, "reward_scale": 0.1},
        tasks=("pixels:Pendulum-v*",),
    ),
    "sac-pixels": Preset(
        doc="As sac-pixels-pendulum, for other tasks that are seen: 100,000 decisions, whose pictures take 0.4 GB.",
        config=SEEN | {"total_steps": 100_000, "buffer_size": 100_000},
        tasks=("pixels:*",),
    ),
}


EIGEN_PRODUCTS = True
"""Its products are faster by Eigen than by XLA's own choice on a CPU (`core.compiling`)."""


class Actor(NamedTuple):
    """What acting needs: the policy's parameters, and whether actions are still random. `critics` say what is expected of a state;
    `encoder` is below both where they share one, or else `()`."""

    params: Any
    critics: Any
    random: Any
    encoder: Any = ()


class State(NamedTuple):
    """Everything a run is made of. `turns` and `updates` count trainings and gradient steps (int32); `random`: whether actions
    still are; `behind` is the Actor of `overlap`.

    `params` has the keys actor, critics (a pair), log_temperature, value where there is a value network, and encoder where one is shared;
    `target` is the value network's or the critics'."""

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


LOG_STD = (-20.0, 2.0)
"""Bounds of the policy's log standard deviation, from the authors' code."""


def _torso(config: Config, task: Task) -> tuple[Network, Any]:
    """The policy's and the value function's, and what it looks at."""
    network, spec = encoder.own(config, task)
    return torso(network, spec, config.hidden, config.activation, "fan_in"), spec


def _box(task: Task) -> Box:
    return cast(Box, task.spec.action)


def init_params(config: Config, task: Task, key: Key) -> dict[str, Any]:
    """Weights and biases uniform in ±1/sqrt(fan in)."""
    keys = jax.random.split(key, 6)
    (net, spec), num_actions = _torso(config, task), len(_box(task).low)
    below = net.init(keys[0], spec)
    width = num_outputs(net, below, spec)

    def one_critic(key: Key) -> Any:
        return critic_init(key, *encoder.own(config, task), num_actions, config.hidden, activation=config.activation)

    params = {
        "actor": {"torso": below, "head": dense_init(keys[1], width, 2 * num_actions, init="fan_in")},
        "critics": (one_critic(keys[2]), one_critic(keys[3])),
        "log_temperature": jnp.log(jnp.asarray(config.temperature, jnp.float32)),
    }
    if config.value_network:
        params["value"] = {"torso": net.init(keys[4], spec), "head": dense_init(keys[5], width, 1, init="fan_in")}
    return params | encoder.init(config, task, jax.random.fold_in(key, 1))


def distribution(config: Config, task: Task, params: Any, obs: Any) -> TanhNormal:
    """pi_phi(. | s) over actions in [-1, 1], for what `encoder.seen` gives of a state and the policy's parameters."""
    mean, log_std = jnp.split(dense(params["head"], _torso(config, task)[0].apply(params["torso"], obs)), 2, axis=-1)
    return TanhNormal(mean, jnp.clip(log_std, *LOG_STD))


def q_values(config: Config, task: Task, critics: Any, obs: Any, action: Any) -> tuple[jax.Array, ...]:
    """Q_theta_i(s, a) for what `encoder.seen` gives of a state and actions in [-1, 1], `[...]` each."""
    settings = {"activation": config.activation, "layer_norm": config.layer_norm}
    return tuple(critic(p, *encoder.own(config, task), config.hidden, obs, action, **settings) for p in critics)


def value(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """V_psi(s), `[...]`, for what `encoder.seen` gives of a state."""
    return dense(params["head"], _torso(config, task)[0].apply(params["torso"], obs))[..., 0]


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Decisions between two trainings."""
    return config.train_every


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    bounds.demand_box(task, "sac")
    if config.target_every < 1:
        raise FlatironsError(f"target_every={config.target_every} must be at least 1")
    if config.policy_delay < 1:
        raise FlatironsError(f"policy_delay={config.policy_delay} must be at least 1")
    if config.policy_delay > 1 and config.value_network:
        raise FlatironsError(
            f"policy_delay={config.policy_delay} lets the policy rest between updates, and the value network learns from its actions in "
            "every one: give policy_delay=1 too (--policy-delay 1), or leave out value_network"
        )
    if config.temperature <= 0.0:
        raise FlatironsError(f"temperature={config.temperature} must be above 0; for a policy without entropy use ddpg")
    offpolicy.check(config, task)
    if config.her_goals:
        hindsight.check(task)
    encoder.check(config, task)
    torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, a target equal to them, an empty replay and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    state = State(
        params=params,
        target=jax.tree.map(jnp.copy, params["value" if config.value_network else "critics"]),
        opt_state={part: _optimiser().init(x) for part, x in params.items()},
        replay=memory.create(task.spec, task.num_envs, config.buffer_size),
        collector=data.start(task, _last_noise(config, task, task.num_envs), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
        random=jnp.asarray(config.random_steps > 0),
    )
    # With `overlap` the first decisions are those of the parameters at the start.
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


def _last_noise(config: Config, task: Task, num_envs: int) -> Any:
    return () if config.noise_correlation is None else jnp.zeros((num_envs, len(_box(task).low)))


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Samples from pi; greedy takes tanh of the mean. Extras are `()`, and so is the carry but where noise lasts: then it is the last noise
    `[B, d]`."""
    correlation = None if greedy else config.noise_correlation

    def reset(num_envs: int) -> Any:
        return () if greedy else _last_noise(config, task, num_envs)

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        pi = distribution(config, task, actor.params, encoder.seen(config, task, {"encoder": actor.encoder}, timestep.obs))
        if greedy:
            return bounds.to_box(_box(task), pi.mode()), carry, ()
        if correlation is not None:
            noise = exploration.correlated(carry, jax.random.normal(key, carry.shape), timestep.first, correlation)
            # The distribution function makes uniform numbers of normal ones.
            anything = 2.0 * jax.scipy.special.ndtr(noise) - 1.0
            return bounds.to_box(_box(task), jnp.where(actor.random, anything, pi.at(noise)[0])), noise, ()
        key_random, key_sample = jax.random.split(key)
        anything = jax.random.uniform(key_random, pi.mean.shape, minval=-1.0, maxval=1.0)
        return bounds.to_box(_box(task), jnp.where(actor.random, anything, pi.sample(key_sample))), carry, ()

    return Policy(reset, act)


def estimate(config: Config, task: Task, actor: Actor, timestep: TimeStep) -> jax.Array:
    """min_i Q_i(s, a) of the greedy action, `[B]`, in the environment's own rewards; the entropy to come, which Q counts, is in it."""
    obs = encoder.seen(config, task, {"encoder": actor.encoder}, timestep.obs)
    mode = distribution(config, task, actor.params, obs).mode()
    return functools.reduce(jnp.minimum, q_values(config, task, actor.critics, obs, mode)) / config.reward_scale


class Batch(NamedTuple):
    """Rows `[n, ...]`: actions in [-1, 1], the targets y of their Q, and standard normal noise `[n, d]` for the policy's own actions.
    `moves`: whether the policy learns from it too, a scalar."""

    obs: Any
    action: Any
    target: Any
    noise: Any
    moves: Any = True


OF_POLICY = ("actor_loss", "temperature_loss", "entropy")
"""Metrics of the updates in which the policy moves."""


class _OfPolicy(NamedTuple):
    """What an update makes of the policy's own actions: the losses of policy and temperature, its entropy, and `[n]` log pi and Q."""

    actor_loss: Any
    temperature_loss: Any
    entropy: Any
    log_pi: Any
    q: Any


def _of_policy(config: Config, task: Task, batch: Batch, obs: Any, params: Any) -> _OfPolicy:
    """`obs` is what is seen of the batch's states, and no part of what the policy learns."""
    fixed = jax.lax.stop_gradient
    pi = distribution(config, task, params["actor"], obs)
    action, log_pi = pi.at(batch.noise)  # a = f_phi(epsilon; s)
    q = functools.reduce(jnp.minimum, q_values(config, task, fixed(params["critics"]), obs, action))
    actor_loss = jnp.mean(fixed(jnp.exp(params["log_temperature"])) * log_pi - q)  # 1812.05905, equation 7
    target_entropy = -float(len(_box(task).low)) if config.target_entropy is None else config.target_entropy
    # 1812.05905, equation 18, in log alpha as its authors' code has it
    temperature_loss = -params["log_temperature"] * fixed(jnp.mean(log_pi) + target_entropy)
    return _OfPolicy(actor_loss, temperature_loss, -jnp.mean(log_pi), log_pi, q)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """J_Q + J_pi (+ J_V, + J(alpha)). Each is held off the others' parameters, so that one gradient is the gradient of each."""
    fixed, obs = jax.lax.stop_gradient, encoder.seen(config, task, params, batch.obs)
    of_policy = functools.partial(_of_policy, config, task, batch, fixed(obs))
    if config.policy_delay == 1:
        mine = of_policy(params)
    else:
        # Where it rests nothing of it is computed.
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_policy, params))
        mine = jax.lax.cond(batch.moves, of_policy, lambda _: nothing, params)
    q = q_values(config, task, params["critics"], obs, batch.action)
    critic_loss = sum((jnp.mean(losses.squared(q_i - batch.target)) for q_i in q), start=jnp.zeros(()))  # 1801.01290, equation 7
    total = critic_loss + mine.actor_loss
    metrics = {"critic_loss": critic_loss, "actor_loss": mine.actor_loss, "q_value": jnp.mean(q[0]), "entropy": mine.entropy}
    alpha = fixed(jnp.exp(params["log_temperature"]))
    if config.value_network:
        v = value(config, task, params["value"], fixed(obs))
        value_loss = jnp.mean(losses.squared(v - fixed(mine.q - alpha * mine.log_pi)))  # 1801.01290, equation 5
        total, metrics["value_loss"] = total + value_loss, value_loss
    if config.automatic_temperature:
        total, metrics["temperature_loss"] = total + mine.temperature_loss, mine.temperature_loss
    return total, metrics | {"loss": total, "temperature": alpha}


def targets(config: Config, task: Task, params: Any, target: Any, sampled: memory.Sample, noise: Any) -> jax.Array:
    """y = r + gamma V(s'), `[n]`; only a termination has no successor. V is the target value network's, or
    min_i Q_i(s', a') - alpha log pi(a' | s') of the target critics with a' from pi by `noise [n, d]`."""
    obs = encoder.seen(config, task, params, sampled.next_obs)
    if config.value_network:
        next_value = value(config, task, target, obs)  # 1801.01290, equation 8
    else:
        action, log_pi = distribution(config, task, params["actor"], obs).at(noise)
        q = functools.reduce(jnp.minimum, q_values(config, task, target, obs, action))
        next_value = q - jnp.exp(params["log_temperature"]) * log_pi  # 1812.05905, equation 3
    return returns.td_target(config.reward_scale * sampled.reward, sampled.terminated, next_value, sampled.discount)


def _optimiser() -> optax.GradientTransformation:
    return optax.scale_by_adam()


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Store a trajectory `[T, B, ...]`, then `gradient_steps` minibatch steps once `learning_starts` decisions are stored."""
    replay = memory.add(state.replay, task.spec, experience)
    turns = state.turns + 1
    done = schedules.fraction(state.turns, config.total_steps // config.train_every)
    learning_rate = config.learning_rate * (schedules.linear(1.0, 0.0, done) if config.anneal_learning_rate else 1.0)
    key, key_draw, key_noise, key_goals = jax.random.split(state.key, 4)
    starts, envs = memory.draw(replay, key_draw, (config.gradient_steps, config.batch_size))
    noises = jax.random.normal(key_noise, (config.gradient_steps, 2, config.batch_size, len(_box(task).low)))

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, target, opt_state, updates = c
        sampled = memory.read_at(replay, task.spec, starts[i], envs[i], config.gamma)
        if config.her_goals:
            key_i = jax.random.fold_in(key_goals, i)
            sampled = hindsight.relabelled(replay, task.spec, key_i, sampled, starts[i], envs[i], config.her_goals)
        if config.shift_pixels:
            here, there = encoder.shifted(config, task, jax.random.fold_in(key_noise, i), sampled.obs, sampled.next_obs)
            sampled = sampled._replace(obs=here, next_obs=there)
        y = targets(config, task, params, target, sampled, noises[i, 0])
        updates = updates + 1
        moves = updates % config.policy_delay == 0
        batch = Batch(sampled.obs, bounds.to_unit(_box(task), sampled.action), y, noises[i, 1], moves)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        before, params, opt_state = (params, opt_state), dict(params), dict(opt_state)
        for part, grad in grads.items():
            direction, opt_state[part] = _optimiser().update(grad, opt_state[part])
            params[part] = optimisers.descend(params[part], direction, learning_rate)
        if config.policy_delay > 1:
            for part in ("actor", "log_temperature"):
                params[part] = trees.select(moves, params[part], before[0][part])
                opt_state[part] = trees.select(moves, opt_state[part], before[1][part])
            # So that their mean over all updates is that over those in which it moves.
            metrics |= {name: config.policy_delay * metrics[name] for name in OF_POLICY if name in metrics}
        moved = trees.polyak(params["value" if config.value_network else "critics"], target, config.tau)
        target = moved if config.target_every == 1 else trees.select(updates % config.target_every == 0, moved, target)
        return (params, target, opt_state, updates), metrics | {"grad_norm": trees.global_norm(grads)}

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
