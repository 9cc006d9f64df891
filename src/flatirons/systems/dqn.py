"""Deep Q-networks (Mnih et al. 2015, "Human-level control through deep reinforcement learning"), Algorithm 1.

    for each step do
        with probability epsilon a random action, else argmax_a Q(s, a; theta)
        execute it, store (s, a, r, s') in D
        sample a minibatch from D; y = r, or r + gamma max_a' Q(s', a'; theta^-) where the episode goes on
        a gradient step on (y - Q(s, a; theta))^2, its error clipped to [-1, 1]
        every C updates theta^- <- theta

C is `target_every`, D the replay of `buffer_size`. See docs/dqn.md. The family around it differs in a few lines, each a setting:

    C = 1                 no target network: Mnih et al. 2013, "Playing Atari with deep reinforcement learning"
    double                y = r + gamma Q(s', argmax_a' Q(s', a'; theta); theta^-): van Hasselt, Guez and Silver 2016, equation 4
    dueling               Q = V + A - mean A: Wang et al. 2016, equation 9
    prioritised           D is sampled by the last error: Schaul et al. 2016, Algorithm 1
    n_step                y sums n rewards before it bootstraps: Sutton and Barto 2018, section 7.1
    exploration           "thompson": the best action of a network drawn by dropout: Gal and Ghahramani 2016, section 5.3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from flatirons.core import bayes, exploration, losses, optimisers, returns, schedules, trees
from flatirons.core.distributions import mask_logits
from flatirons.data import offpolicy, priorities
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.nets.mlp import Activation, dense, dense_init
from flatirons.nets.torso import num_outputs, torso
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
    overlap: bool = False
    """Act with the parameters from before the last training, so that on a host the environment steps while the learner computes."""
    learning_rate: float = 5e-4
    """Step size."""
    anneal_learning_rate: bool = False
    """Let the learning rate fall linearly to 0 at total_steps (not in the paper)."""
    gamma: float = 0.99
    """Discount."""
    double: bool = False
    """Choose a' by theta and value it by theta^- (van Hasselt 2016, Double DQN)."""
    dueling: bool = False
    """Heads for V and A instead of one for Q (Wang 2016)."""
    shared_bias: bool = False
    """One bias for all actions in the last layer (van Hasselt 2016, the tuned Double DQN)."""
    prioritised: bool = False
    """Sample the replay in proportion to |error|^priority_exponent instead of uniformly (Schaul 2016)."""
    priority_exponent: float = 0.6
    """alpha of prioritised replay; 0 is uniform."""
    importance_exponent: float = 0.4
    """beta of prioritised replay at the start, rising linearly to 1 at total_steps."""
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
    exploration: Literal["epsilon-greedy", "thompson", "thompson-episode"] = "epsilon-greedy"
    """thompson: the best action of a Q-network drawn by dropout, anew for each decision; thompson-episode: for each episode. Both are
    random before learning_starts and have no epsilon after it."""
    dropout: float | None = None
    """Probability to drop each input of every weight layer, in learning and in Thompson sampling (Gal 2016: 0.1); none: no dropout."""
    error: Literal["huber", "squared"] = "huber"
    """huber clips the error to [-1, 1] in the gradient, as the paper does; squared does not."""
    optimiser: Literal["adam", "rmsprop", "rmsprop-torch"] = "adam"
    """adam, rmsprop (the paper's: centred, epsilon inside the root), rmsprop-torch (epsilon outside)."""
    optimiser_eps: float = 1e-8
    """Epsilon of the optimiser (rmsprop: 0.01 in the paper)."""
    max_grad_norm: float | None = 10.0
    """Clip the gradient to this global norm (not in the paper); none switches it off."""
    network: str | Network = "auto"
    """Torso: auto, mlp, nature, playing-atari, minatar, minatar-wide (256 units), or from Python a Network of your own."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the MLP."""
    activation: Activation = "relu"
    """tanh or relu."""
    layer_norm: bool = False
    """Standardise each hidden dense layer before its activation, which keeps Q from diverging (not in the paper; Ba 2016)."""


NATURE = {
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
}

MINATAR = {
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
}

FORAGER = {
    "total_steps": 200_000,
    "train_every": 1,
    "buffer_size": 30_000,
    "learning_starts": 3_000,
    "learning_rate": 1e-3,
    "gamma": 0.7,
    "hidden": (50, 50),
}

CLASSIC_TASKS = ("CartPole-v*", "jax:CartPole-v*", "Acrobot-v*", "jax:Acrobot-v*")
CLASSIC = {
    "total_steps": 50_000,
    "train_every": 250,
    "gradient_steps": 250,
    "batch_size": 64,
    "learning_rate": 5e-4,
    "anneal_learning_rate": True,
    "layer_norm": True,
    "epsilon_end": 0.04,
    "epsilon_steps": 8_000,
}

PRESETS = {
    "dqn-nature": Preset(
        doc="The Nature paper's settings (Extended Data Table 1): 1M-frame replay, RMSProp, C = 10,000 updates, epsilon to 0.1.",
        config=NATURE,
        tasks=("ALE/*",),
    ),
    "dqn-2013": Preset(
        doc="The first paper's (Mnih 2013): its smaller network, no target network (C = 1), squared error, an update a decision, RMSProp.",
        config={
            "total_steps": 2_500_000,
            "train_every": 1,
            "batch_size": 32,
            "buffer_size": 1_000_000,
            "learning_starts": 50_000,
            "learning_rate": 2.5e-4,
            "target_every": 1,
            "epsilon_end": 0.1,
            "epsilon_steps": 250_000,
            "eval_epsilon": 0.05,
            "error": "squared",
            "optimiser": "rmsprop",
            "optimiser_eps": 0.01,
            "max_grad_norm": None,
            "network": "playing-atari",
        },
    ),
    "double-dqn": Preset(
        doc="Double DQN with DQN's settings, on Atari the Nature paper's, as van Hasselt 2016 compares them.",
        config={"double": True},
        on_top=True,
    ),
    "double-dqn-tuned": Preset(
        doc="Double DQN as its authors tuned it: C = 30,000 updates, epsilon to 0.01 (0.001 in evaluation), one bias for all actions.",
        config=NATURE | {"double": True, "shared_bias": True, "target_every": 30_000, "epsilon_end": 0.01, "eval_epsilon": 0.001},
    ),
    "double-dqn-laptop": Preset(
        doc="Double DQN on Atari within hours on two cores: the 2013 network standardised, targets over 3 steps, Adam, annealed.",
        config={
            "total_steps": 1_000_000,
            "batch_size": 32,
            "buffer_size": 100_000,
            "learning_starts": 10_000,
            "learning_rate": 2e-4,
            "anneal_learning_rate": True,
            "double": True,
            "n_step": 3,
            "target_every": 500,
            "epsilon_end": 0.02,
            "epsilon_steps": 100_000,
            "eval_epsilon": 0.001,
            "optimiser_eps": 1.5e-4,
            "network": "playing-atari",
            "layer_norm": True,
        },
    ),
    "dqn-classic": Preset(
        doc="Tuned for CartPole; Acrobot too: targets over 3 steps, standardised layers, an update a decision in turns of 250, annealed.",
        config=CLASSIC | {"n_step": 3, "target_every": 125},
        tasks=CLASSIC_TASKS,
    ),
    "dqn-mountain-car": Preset(
        doc="Tuned for MountainCar: dqn-classic, longer, and exploring for 40,000 decisions, for nothing is earned before the flag.",
        config=CLASSIC | {"n_step": 3, "target_every": 125, "total_steps": 120_000, "epsilon_steps": 40_000},
        tasks=("MountainCar-v*", "jax:MountainCar-v*"),
    ),
    "dqn-2013-classic": Preset(
        doc="DQN of 2013 for short classic-control tasks: as dqn-classic, with targets of one step, no target network, squared error.",
        config=CLASSIC | {"target_every": 1, "error": "squared", "max_grad_norm": None},
        tasks=CLASSIC_TASKS,
        variant_of="dqn-2013",
    ),
    "dqn-lunarlander": Preset(
        doc="Tuned for LunarLander: layers standardised, an update a decision in turns of 100, rate annealed.",
        config={
            "total_steps": 300_000,
            "train_every": 100,
            "gradient_steps": 100,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "anneal_learning_rate": True,
            "target_every": 200,
            "layer_norm": True,
            "epsilon_end": 0.05,
            "epsilon_steps": 50_000,
        },
        tasks=("LunarLander-v*",),
    ),
    "dqn-minatar-adam": Preset(
        doc="As dqn-minatar with Adam at 2.5e-5, for games whose rare rewards give gradients that are small against RMSProp's 0.01.",
        config=MINATAR | {"learning_rate": 2.5e-5, "optimiser": "adam", "optimiser_eps": 1e-6},
        tasks=("pgx:minatar-freeway", "pgx:minatar-asterix"),
    ),
    "dqn-minatar": Preset(
        doc="The MinAtar authors' settings (Young and Tian 2019): centred RMSProp as PyTorch has it, one update per frame, epsilon 0.1.",
        config=MINATAR,
        tasks=("pgx:minatar-*",),
    ),
    "dqn-thompson": Preset(
        doc="Thompson sampling (Gal and Ghahramani 2016, section 5.3): dropout 0.1 before every layer, a stochastic pass for each action.",
        config=FORAGER | {"exploration": "thompson", "dropout": 0.1},
        tasks=("jax:Forager-v*",),
    ),
    "dqn-thompson-episode": Preset(
        doc="As dqn-thompson with one dropout mask for a whole episode, so that what is tried is tried to its end (not in the paper).",
        config=FORAGER | {"exploration": "thompson-episode", "dropout": 0.1},
    ),
    "dqn-forager": Preset(
        doc="What dqn-thompson is held against: no dropout, epsilon falling over 200,000 decisions, as in the demonstration it cites.",
        config=FORAGER | {"epsilon_steps": 200_000},
    ),
    "dqn-2013-minatar": Preset(
        doc="DQN of 2013 scaled to MinAtar: its authors' settings, clipped error included, without the target network (C = 1).",
        config=MINATAR | {"target_every": 1},
        tasks=("pgx:minatar-*",),
        variant_of="dqn-2013",
    ),
}


class Actor(NamedTuple):
    """What acting needs: the Q-network's parameters and the exploration rate of the moment."""

    params: Any
    epsilon: Any


class State(NamedTuple):
    """Everything a run is made of. `turns` and `updates` count trainings and gradient steps (int32); `behind` is the Actor of `overlap`."""

    params: Any
    target: Any
    opt_state: Any
    replay: memory.Replay
    epsilon: Any
    collector: data.Collector
    key: Any
    turns: Any
    updates: Any
    priorities: Any = ()
    behind: Any = ()


class Priorities(NamedTuple):
    """Of prioritised replay: a sum tree over transitions (place start * num_envs + environment), and the largest priority so far."""

    tree: Any
    largest: Any


# ------------------------------------------------------------------------------------------------------------ the network


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _torso(config: Config, task: Task) -> Network:
    return torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in", layer_norm=config.layer_norm)


def init_params(config: Config, task: Task, key: Key) -> Any:
    """Weights and biases uniform in ±1/sqrt(fan in)."""
    key_torso, key_head = jax.random.split(key)
    net = _torso(config, task)
    params = net.init(key_torso, task.spec.obs)
    width = num_outputs(net, params, task.spec.obs)
    assert isinstance(task.spec.action, Discrete)
    heads = {"q": dense_init(key_head, width, task.spec.action.n, init="fan_in")}
    if config.shared_bias:
        heads["q"]["b"] = heads["q"]["b"][:1]
    if config.dueling:
        heads["value"] = dense_init(jax.random.fold_in(key_head, 1), width, 1, init="fan_in")
    return {"torso": params} | heads


def q_values(config: Config, task: Task, params: Any, obs: Any) -> jax.Array:
    """Q(s, .; theta), `[..., actions]`. Dueling: V(s) + A(s, .) - mean_a A(s, a), where the head "q" gives A (Wang 2016, equation 9)."""
    features = _torso(config, task).apply(params["torso"], obs)
    q = dense(params["q"], features)
    if not config.dueling:
        return q
    return dense(params["value"], features) + q - jnp.mean(q, axis=-1, keepdims=True)


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
    if min(config.target_every, config.epsilon_steps, config.n_step) < 1:
        raise FlatironsError("target_every, epsilon_steps and n_step must be at least 1")
    offpolicy.check(config, task, priorities.num_bytes(config.buffer_size) if config.prioritised else 0)
    torso(config.network, task.spec.obs, config.hidden, config.activation, "fan_in")
    if config.exploration != "epsilon-greedy" and not config.dropout:
        raise FlatironsError(f"exploration={config.exploration} draws its Q-network by dropout, and there is none: give dropout=0.1")
    if config.dropout is not None:
        bayes.demand_rate(config.dropout, "dropout")


def init(config: Config, task: Task, key: Key) -> State:
    """Fresh parameters, twice, an empty replay and environments."""
    key_params, key_collect, key = jax.random.split(key, 3)
    params = init_params(config, task, key_params)
    epsilon = jnp.asarray(config.epsilon_start, jnp.float32)
    return State(
        params=params,
        target=jax.tree.map(jnp.copy, params),
        opt_state=_optimiser(config).init(params),
        replay=memory.create(task.spec, task.num_envs, config.buffer_size, masked=memory.has_masks(task)),
        epsilon=epsilon,
        collector=data.start(task, _masks(config, task.num_envs), key_collect),
        key=key,
        turns=jnp.int32(0),
        updates=jnp.int32(0),
        priorities=Priorities(priorities.create(config.buffer_size), jnp.float32(1.0)) if config.prioritised else (),
        behind=offpolicy.copied(Actor(params, epsilon)) if config.overlap else (),
    )


def estimate(config: Config, task: Task, actor: Actor, timestep: TimeStep) -> jax.Array:
    """max_a Q(s, a), `[B]`: what the policy expects of each state, for comparison with what it gets (van Hasselt 2016, section 4)."""
    return jnp.max(mask_logits(q_values(config, task, actor.params, timestep.obs), timestep.legal), axis=-1)


def warmed(state: State) -> State:
    """A State whose parameters came from another run: with `overlap`, too, its policy collects from the first decision on."""
    return state._replace(behind=offpolicy.copied(Actor(state.params, state.epsilon)) if state.behind else ())


def actor(state: State) -> Actor:
    """The acting part of a State."""
    return Actor(state.params, state.epsilon)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Epsilon-greedy on Q; greedy uses `eval_epsilon` and the network without dropout. Thompson sampling takes the best action of weights
    drawn by dropout, for each environment its own; with a mask per episode the carry is the key of each environment's, else `()`."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        if greedy or config.exploration == "epsilon-greedy":
            q = q_values(config, task, actor.params, timestep.obs)
            return exploration.epsilon_greedy(key, q, config.eval_epsilon if greedy else actor.epsilon, timestep.legal), carry, ()
        key, key_masks = jax.random.split(key)
        masks = jax.random.bits(key_masks, (timestep.first.shape[0], 2), jnp.uint32)
        if config.exploration == "thompson-episode":
            masks = carry = jnp.where(timestep.first[:, None], masks, carry)
        q = jax.vmap(functools.partial(_drawn_q_values, config, task, actor.params))(masks, timestep.obs)
        return exploration.epsilon_greedy(key, q, actor.epsilon, timestep.legal), carry, ()

    return Policy(functools.partial(_masks, config), act)


def _masks(config: Config, num_envs: int) -> Any:
    """The carry: a key (as its data, uint32 `[2]`) for the mask of each environment's episode, where there is one."""
    return jnp.zeros((num_envs, 2), jnp.uint32) if config.exploration == "thompson-episode" else ()


def _drawn_q_values(config: Config, task: Task, params: Any, mask: jax.Array, obs: Any) -> jax.Array:
    """Q(s, .) of one observation with weights drawn by the key `mask`: a stochastic forward pass, `[actions]`."""
    weights = bayes.drawn(jax.random.wrap_key_data(mask, impl="threefry2x32"), params, cast(float, config.dropout))
    return q_values(config, task, weights, jax.tree.map(lambda x: x[None], obs))[0]


class Batch(NamedTuple):
    """Rows `[n, ...]` with their targets y, the weights `[n]` of their errors (1 but for prioritised replay), and with dropout the key of
    the minibatch's mask."""

    obs: Any
    action: Any
    target: Any
    weight: Any = 1.0
    key: Any = ()


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The mean error of Q(s, a; theta) against y (Mnih 2015, equation 2); with dropout, of weights drawn once for the minibatch."""
    if config.dropout is not None:
        params = bayes.drawn(batch.key, params, config.dropout)
    q = q_values(config, task, params, batch.obs)
    chosen = jnp.sum(q * jax.nn.one_hot(batch.action, q.shape[-1]), axis=-1)
    error = chosen - batch.target
    total = jnp.mean(batch.weight * (losses.huber(error) if config.error == "huber" else losses.squared(error)))
    metrics = {"loss": total, "q_value": jnp.mean(chosen), "td_error": jnp.mean(jnp.abs(error))}
    return total, metrics | ({"errors": error} if config.prioritised else {})


def targets(config: Config, task: Task, params: Any, target: Any, sampled: memory.Sample) -> jax.Array:
    """y = r + gamma max_a' Q(s', a'; theta^-), `[n]`; only a termination has no successor. Double DQN chooses a' by `params`, theta.

    Over n steps r is their discounted sum, s' what follows them and gamma its n-th power."""
    next_q = mask_logits(q_values(config, task, target, sampled.next_obs), sampled.next_legal)
    if config.double:
        best = exploration.greedy(q_values(config, task, params, sampled.next_obs), sampled.next_legal)
        next_q = jnp.sum(next_q * jax.nn.one_hot(best, next_q.shape[-1]), axis=-1)
    else:
        next_q = jnp.max(next_q, axis=-1)
    return returns.td_target(sampled.reward, sampled.terminated, next_q, sampled.discount)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optimisers.optimiser(config.optimiser, eps=config.optimiser_eps)


def _store(config: Config, task: Task, state: State, experience: Transition) -> tuple[memory.Replay, Any]:
    """The replay with a trajectory added; with priorities, the new transitions have the largest so far and the lost ones none."""
    replay = memory.add(state.replay, task.spec, experience)
    if not config.prioritised:
        return replay, ()
    num_starts, num_envs = replay.row.shape
    num_steps = experience.reward.shape[0]
    before = state.replay
    # As many of the oldest as one addition can push out, then the new ones, which may lie in the same places.
    reach = min(num_starts, 2 * num_steps * (max(s.stack for s in jax.tree.leaves(task.spec.obs, is_leaf=_is_spec)) + 1))
    age = jnp.expand_dims(replay.size, 0) + jnp.arange(reach)[:, None]
    old = (replay.next - 1 - age) % num_starts * num_envs + jnp.arange(num_envs)[None]
    new = (before.next + jnp.arange(num_steps)[:, None]) % num_starts * num_envs + jnp.arange(num_envs)[None]
    kept = jnp.where(age < num_starts, 0.0, priorities.read(state.priorities.tree, old))
    tree = priorities.write(state.priorities.tree, old.reshape(-1), kept.reshape(-1))
    tree = priorities.write(tree, new.reshape(-1), jnp.full(new.size, state.priorities.largest))
    return replay, Priorities(tree, state.priorities.largest)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Store a trajectory `[T, B, ...]`, then `gradient_steps` minibatch steps once `learning_starts` decisions are stored."""
    replay, ranked = _store(config, task, state, experience)
    turns = state.turns + 1
    decisions = turns * config.train_every
    done = jnp.clip(schedules.fraction(state.turns, config.total_steps // config.train_every), 0.0, 1.0)
    learning_rate = config.learning_rate * (1.0 - done if config.anneal_learning_rate else 1.0)
    beta = config.importance_exponent + (1.0 - config.importance_exponent) * done
    key, key_updates = jax.random.split(state.key)
    key_masks = jax.random.fold_in(key_updates, 1)
    num_envs = replay.row.shape[1]
    if config.prioritised:
        keys = jax.random.split(key_updates, config.gradient_steps)
    else:
        starts, envs = memory.draw(replay, key_updates, (config.gradient_steps, config.batch_size))

    def gradient(i: Any, params: Any, target: Any, ranked: Any) -> tuple[Any, Metrics, Any]:
        weight: Any = 1.0
        if config.prioritised:
            # P(i) = p_i / sum p; w_i = (N P(i))^-beta / max w (Algorithm 1, lines 9 and 10)
            place = priorities.draw(ranked.tree, keys[i], config.batch_size)
            share = priorities.read(ranked.tree, place) / priorities.total(ranked.tree)
            weight = (jnp.sum(replay.size) * jnp.maximum(share, 1e-12)) ** -beta
            weight = weight / jnp.max(weight)
            start, env = place // num_envs, place % num_envs
        else:
            start, env = starts[i], envs[i]
        sampled = memory.read_at(replay, task.spec, start, env, config.gamma, config.n_step)
        mask = () if config.dropout is None else jax.random.fold_in(key_masks, i)
        batch = Batch(sampled.obs, sampled.action, targets(config, task, params, target, sampled), weight, mask)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        if config.prioritised:
            # p_i = (|error| + 1e-6)^alpha (lines 11 and 12)
            priority = (jnp.abs(metrics.pop("errors")) + 1e-6) ** config.priority_exponent
            ranked = Priorities(priorities.write(ranked.tree, place, priority), jnp.maximum(ranked.largest, jnp.max(priority)))
        return grads, metrics, ranked

    def one_update(i: Any, c: tuple[Any, ...]) -> tuple[tuple[Any, ...], Metrics]:
        params, target, opt_state, updates, ranked = c
        grads, metrics, ranked = gradient(i, params, target, ranked)
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
        return (params, target, opt_state, updates, ranked), metrics | {"grad_norm": norm}

    carry = (state.params, state.target, state.opt_state, state.updates, ranked)
    carry, metrics = offpolicy.gradient_steps(one_update, carry, config.gradient_steps, decisions >= config.learning_starts)
    params, target, opt_state, updates, ranked = carry
    epsilon = schedules.linear(config.epsilon_start, config.epsilon_end, schedules.fraction(decisions, config.epsilon_steps))
    if config.exploration != "epsilon-greedy":
        epsilon = jnp.where(decisions < config.learning_starts, 1.0, 0.0)
    metrics |= {"epsilon": epsilon, "replay_size": jnp.sum(replay.size).astype(jnp.float32)}
    state = State(params, target, opt_state, replay, epsilon, state.collector, key, turns, updates, ranked, state.behind)
    return state, metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn of Algorithm 1: `train_every` decisions, then a training."""
    return offpolicy.turn(config, task, policy, actor, state, update)


interrupted = offpolicy.interrupted
notes = offpolicy.notes
