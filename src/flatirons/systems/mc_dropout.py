"""Dropout as a Bayesian approximation (Gal and Ghahramani 2016, arXiv:1506.02142): predictions that say how sure they are.

    repeat
        a minibatch of rows; for each row a mask z_i ~ Bernoulli(1 - rate) on the inputs of every layer
        a gradient step on 1/n sum 1/2 |y - f(x; z)|² + lambda sum |W|²,    lambda = l² / (2 N tau (1 - rate))      (equations 1 and 7)
    predict with T masks: the mean (6), the variance 1/tau + Var_t[f] (section 4), the likelihood log 1/T sum_t p(y | f_t) (8)

Dropout stays on to predict. What is learned from is a data set, `data:NAME`; there are no decisions, and steps count gradient updates.
Every function here is one of arrays, so that `vmap` over rows and over a Config's floats fits many splits and many
(rate, tau) at once: `studies/uci.py`. Thompson sampling, the paper's section 5.3, is a setting of `dqn`. See docs/mc_dropout.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import SequenceKey

from flatirons.core import bayes, losses, optimisers, schedules, trees
from flatirons.core.shuffle import permutation
from flatirons.nets.mlp import Activation, activate, dense, mlp_init
from flatirons.types import Discrete, Episodes, FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, config

STEPS = "gradient updates"
"""What `total_steps` counts."""


@config
class Config:
    """Settings of MC dropout. The defaults are those of the paper's regressions, with a step size that falls to 0."""

    total_steps: int = 8_000
    """Gradient updates in all (a data set takes no decisions)."""
    num_envs: int = 1
    """A data set is one stream: 1."""
    gradient_steps: int = 100
    """Updates in a turn."""
    split: int = 0
    """Which of the data set's splits into training and test rows, where it has several (UCI: 0 to 19)."""
    batch_size: int = 128
    """Rows of a minibatch; a data set that is smaller gives all its rows."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall linearly to 0 at total_steps (not in the paper, which takes ten times as many steps of 1e-3)."""
    dropout: float = 0.05
    """rate: probability to drop an input of a layer. The paper's p is the probability to keep it."""
    drop_inputs: bool = True
    """Drop the network's own inputs too, as the paper's UCI regressions do; False where there are few of them."""
    tau: float = 1.0
    """Precision of what is observed, in the units of y: 1/tau is the noise's variance. It sets the weight decay (regression only)."""
    length_scale: float = 1e-2
    """l, of the prior N(0, I / l²) over weights: small for functions that change quickly."""
    hidden: tuple[int, ...] = (50,)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    """tanh or relu."""
    samples: int = 1_000
    """T, stochastic passes of a prediction."""


PRESETS = {
    "mc-dropout-uci": Preset(
        doc="The paper's UCI regressions: one hidden layer of 50; choose rate and tau on validation rows (studies/uci.py).",
        config={},
        tasks=("data:uci-*",),
    ),
    "mc-dropout-co2": Preset(
        doc="The paper's Mauna Loa extrapolation, smaller: four layers of 128 rectifiers, dropout 0.1, the one input kept.",
        config={
            "total_steps": 20_000,
            "hidden": (128, 128, 128, 128),
            "learning_rate": 1e-3,
            "dropout": 0.1,
            "drop_inputs": False,
            "tau": 2.0,
        },
        tasks=("data:co2",),
    ),
    "mc-dropout-mnist": Preset(
        doc="Digits, for the paper's rotated one: two layers of 256 rectifiers, dropout 0.5 (the paper's network is LeNet).",
        config={"total_steps": 4_000, "hidden": (256, 256), "learning_rate": 1e-3, "dropout": 0.5, "drop_inputs": False, "samples": 100},
        tasks=("data:mnist",),
    ),
}


class Rows(NamedTuple):
    """Rows of a data set: x `[N, d]` float32 (or pictures of bytes `[N, h, w]`), y `[N, D]` float32, or int32 `[N]` where it is a class."""

    x: Any
    y: Any


class Scale(NamedTuple):
    """What the network's numbers are in: x and y less their means, over their deviations; and N, how many rows were learned from."""

    x_mean: Any
    x_std: Any
    y_mean: Any
    y_std: Any
    num_rows: Any


class Actor(NamedTuple):
    """What predicting needs."""

    params: Any
    scale: Scale


class State(NamedTuple):
    """Everything a run is made of. `updates` counts gradient steps (int32), `order` is the key of the epochs' orders; `collector` is `()`,
    for nothing is collected."""

    params: Any
    scale: Scale
    opt_state: Any
    collector: Any
    order: Any
    key: Any
    updates: Any


class Batch(NamedTuple):
    """A minibatch in the network's units; the key of its masks; lambda (1 - rate), what |W|² / (1 - rate) is multiplied by."""

    x: Any
    y: Any
    key: Any
    decay: Any


# ------------------------------------------------------------------------------------------------------------ the network


def is_class(y: Any) -> bool:
    """Whether rows are to be classified: their y are whole numbers."""
    return jnp.issubdtype(jnp.result_type(y), jnp.integer)


def network(config: Config, params: Any, x: Any, key: Key | None = None) -> jax.Array:
    """f(x; z) `[n, D]` for `x [n, d]`, in the network's units: with a key, a mask of its own for each row; without, the mean network."""
    masks = None
    if key is not None:
        # All layers' masks in one draw: the random numbers cost as much as the products.
        widths = [layer["w"].shape[0] if i > 0 or config.drop_inputs else 0 for i, layer in enumerate(params)]
        masks = jnp.split(bayes.kept(key, (x.shape[0], sum(widths)), config.dropout), np.cumsum(widths[:-1]), axis=-1)
    for i, layer in enumerate(params):
        if masks is not None and masks[i].size:
            x = jnp.where(masks[i], x / (1.0 - config.dropout), 0.0)
        x = dense(layer, x)
        if i < len(params) - 1:
            x = activate(config.activation, x)
    return jnp.asarray(x)


def _inputs(scale: Scale, x: Any) -> jax.Array:
    """x `[n, ...]` in the network's units, `[n, d]`."""
    return (jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1) - scale.x_mean[None]) / scale.x_std[None]


def dropped(config: Config, path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether the inputs of a leaf are dropped, of params or of an Actor: the first index in its path counts the layers."""
    layer = next(part.idx for part in path if isinstance(part, SequenceKey)) if bayes.is_weight(path, leaf) else 0
    return bayes.is_weight(path, leaf) and (config.drop_inputs or layer > 0)


def draws(config: Config, actor: Actor, x: Any, key: Key, n: int) -> jax.Array:
    """`n` stochastic passes for `x [N, ...]` as the data set has it: `[n, N, D]`, in the units of y (logits of classes).

    One draw is one function: all rows go through the same mask. Raises FlatironsError where n < 1."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return network(config, params, x) * actor.scale.y_std + actor.scale.y_mean

    inputs = _inputs(actor.scale, x)
    return bayes.predictive(apply, actor.params, inputs, key, n, rate=config.dropout, where=functools.partial(dropped, config))


def predict(config: Config, actor: Actor, x: Any, key: Key, n: int) -> bayes.Predictive:
    """Predictive mean and variance `[N, D]` for `x [N, d]`, in the units of y, the noise's 1/tau included (regression)."""
    return bayes.moments(draws(config, actor, x, key, n), config.tau)


class Regressed(NamedTuple):
    """Of each row `[N]`, in the units of y: the mean, its deviation (the noise's 1/tau included), and the deviation without the noise,
    which more data could lessen."""

    mean: jax.Array
    deviation: jax.Array
    model_deviation: jax.Array


class Classified(NamedTuple):
    """Of each row `[N]`: the class, its probability, the prediction's entropy, and the part of it that more data could lessen: the
    information that knowing the weights would bring, H[E p] - E[H p]. Both in nats."""

    predicted: jax.Array
    probability: jax.Array
    entropy: jax.Array
    information: jax.Array


def predictions(config: Config, task: Any, actor: Actor, x: Any, key: Key, n: int) -> Regressed | Classified:
    """What `n` stochastic passes say of each row of `x [N, ...]`."""
    drawn = draws(config, actor, x, key, n)
    if isinstance(task.spec.action, Discrete):
        log_probs = bayes.class_log_probs(drawn)
        each = jax.nn.log_softmax(drawn, axis=-1)
        entropy, inherent = (-jnp.sum(jnp.exp(p) * p, axis=-1) for p in (log_probs, each))
        information = jnp.maximum(entropy - jnp.mean(inherent, axis=0), 0.0)
        return Classified(jnp.argmax(log_probs, axis=-1), jnp.exp(jnp.max(log_probs, axis=-1)), entropy, information)
    mean, variance = (part[:, 0] for part in bayes.moments(drawn))
    return Regressed(mean, jnp.sqrt(variance + 1.0 / config.tau), jnp.sqrt(variance))


def quality(config: Config, actor: Actor, rows: Rows, key: Key, n: int) -> dict[str, jax.Array]:
    """Scores of `n` stochastic passes on rows, in the units of y: log_likelihood, and rmse or accuracy; of the mean network
    `plain_...`, and of a single pass `one_pass_rmse`."""
    drawn, plain = draws(config, actor, rows.x, key, n), draws(dropless(config), actor, rows.x, key, 1)[0]
    if is_class(rows.y):
        log_probs = bayes.class_log_probs(drawn)
        hits = [jnp.mean((jnp.argmax(p, axis=-1) == rows.y).astype(jnp.float32)) for p in (log_probs, plain)]
        found = jnp.take_along_axis(log_probs, jnp.asarray(rows.y)[:, None], axis=-1)
        return {"log_likelihood": jnp.mean(found), "accuracy": hits[0], "plain_accuracy": hits[1]}
    errors = [jnp.sqrt(jnp.mean(jnp.square(p - rows.y))) for p in (jnp.mean(drawn, axis=0), plain, drawn[0])]
    fit = jnp.mean(bayes.log_likelihood(drawn, rows.y, config.tau))
    return {"log_likelihood": fit, "rmse": errors[0], "plain_rmse": errors[1], "one_pass_rmse": errors[2]}


def dropless(config: Config) -> Any:
    """The same settings with nothing dropped."""
    return dataclasses.replace(cast(Any, config), dropout=0.0)


# ------------------------------------------------------------------------------------------------------------ the system


def steps_per_turn(config: Config) -> int:
    """Gradient updates in a turn."""
    return config.gradient_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    rows_of(config, task)
    if config.num_envs != 1:
        raise FlatironsError(f"num_envs={config.num_envs}: a data set is one stream, so leave it at 1")
    if min(config.gradient_steps, config.batch_size, *config.hidden, 1) < 1:
        raise FlatironsError("gradient_steps, batch_size and every width of hidden must be at least 1")
    bayes.demand_rate(config.dropout, "dropout")
    bayes.demand_draws(config.samples, "samples")
    if config.tau <= 0.0 or config.length_scale < 0.0:
        raise FlatironsError(f"tau={config.tau} must be above 0 and length_scale={config.length_scale} at least 0")


CO2_SHARE = 0.8
"""Of the weeks at Mauna Loa, the first that are learned from; what follows is to be extrapolated."""


def rows_of(config: Config, task: Any, part: str = "train") -> Rows:
    """The "train" or "test" rows of a `data:` task. Raises FlatironsError where it has none, or has no such split."""
    arrays = getattr(task, "arrays", {})
    match arrays:
        case {"x": x, "y": y, "train": splits}:
            if not 0 <= config.split < len(splits):
                raise FlatironsError(f"split={config.split}: {task.name} has splits 0 to {len(splits) - 1}")
            rows = arrays[part][config.split]
            return Rows(
                x[rows] if x.dtype == np.uint8 else x[rows].astype(np.float32),
                y[rows] if y.dtype == np.int32 else y[rows, None].astype(np.float32),
            )
        case {"year": year, "co2": co2}:
            cut = int(CO2_SHARE * len(year))
            rows = slice(None, cut) if part == "train" else slice(cut, None)
            # Years from near the middle: float32 has seven digits, and a week is the fifth of them.
            return Rows((year[rows, None] - 1980.0).astype(np.float32), co2[rows, None].astype(np.float32))
        case {"train_images": _}:
            return Rows(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int32))
    raise FlatironsError(f"mc_dropout learns from rows of x and y, and {task.name} has none: name a data set, such as data:uci-boston")


def scale_of(rows: Rows) -> Scale:
    """Mean 0 and deviation 1 over these rows, for each feature that varies; bytes of a picture in [0, 1]; classes stay as they are."""
    x = jnp.asarray(rows.x).reshape(rows.x.shape[0], -1)
    if x.dtype == jnp.uint8:
        x_mean, x_std = jnp.zeros(x.shape[-1]), jnp.full(x.shape[-1], 255.0)
    else:
        x_mean, x_std = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    y_mean, y_std = (jnp.zeros(()), jnp.ones(())) if is_class(rows.y) else (jnp.mean(rows.y), jnp.std(rows.y))
    return Scale(x_mean, jnp.where(x_std > 0.0, x_std, 1.0), y_mean, jnp.where(y_std > 0.0, y_std, 1.0), jnp.float32(x.shape[0]))


def start(config: Config, rows: Rows, num_outputs: int, key: Key) -> State:
    """A fresh network for these rows."""
    key_params, key_order, key = jax.random.split(key, 3)
    params = mlp_init(key_params, (math.prod(rows.x.shape[1:]), *config.hidden, num_outputs), init="fan_in")
    return State(params, scale_of(rows), _optimiser().init(params), (), key_order, key, jnp.int32(0))


def init(config: Config, task: Task, key: Key) -> State:
    """A fresh network for the task's training rows."""
    action: Any = task.spec.action
    return start(config, rows_of(config, task), action.n if isinstance(action, Discrete) else action.shape[0], key)


def actor(state: State) -> Actor:
    """The predicting part of a State."""
    return Actor(state.params, state.scale)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Predicts: greedy by the mean network, else by one stochastic pass. An action is y `[B, D]` in its own units, or a class `[B]`."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        out = draws(dropless(config) if greedy else config, actor, timestep.obs, key, 1)[0]
        return (jnp.argmax(out, axis=-1).astype(jnp.int32) if isinstance(task.spec.action, Discrete) else out), carry, ()

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """1/n sum E(y, f(x; z)) + lambda sum |W|² (equation 1), E half the squared error, or the cross-entropy of classes."""
    out = network(config, params, batch.x, batch.key)
    if is_class(batch.y):
        error = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, batch.y))
    else:
        error = jnp.mean(jnp.sum(losses.squared(out - batch.y), axis=-1))
    decay = batch.decay * sum(
        bayes.decayed(layer, config.dropout if i > 0 or config.drop_inputs else 0.0) for i, layer in enumerate(params)
    )
    return error + decay, {"loss": error + decay, "error": error, "weight_decay": decay}


def _optimiser() -> optax.GradientTransformation:
    return optax.scale_by_adam()


def update(config: Config, task: Task, state: State, experience: Rows, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """A gradient step on each of the minibatches `[gradient_steps, n, ...]`."""
    scale, num_rows = state.scale, state.scale.num_rows
    tau = 1.0 if is_class(experience.y) else config.tau * jnp.square(scale.y_std)  # of y in the network's units
    decay = bayes.weight_decay(tau, config.length_scale, num_rows)
    key, key_masks = jax.random.split(state.key)

    def one_update(c: tuple[Any, ...], row: tuple[Any, Any, Any]) -> tuple[tuple[Any, ...], Metrics]:
        params, opt_state, updates = c
        x, y, key = row
        batch = Batch(_inputs(scale, x), y if is_class(y) else (y - scale.y_mean) / scale.y_std, key, decay)
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        direction, opt_state = _optimiser().update(grads, opt_state)
        done = schedules.fraction(updates, config.total_steps) if config.anneal_learning_rate else 0.0
        params = optimisers.descend(params, direction, config.learning_rate * (1.0 - done))
        return (params, opt_state, updates + 1), metrics | {"grad_norm": trees.global_norm(grads)}

    keys = jax.random.split(key_masks, experience.x.shape[0])
    carry = (state.params, state.opt_state, state.updates)
    (params, opt_state, updates), metrics = jax.lax.scan(one_update, carry, (*experience, keys))
    state = state._replace(params=params, opt_state=opt_state, key=key, updates=updates)
    return state, jax.tree.map(jnp.mean, metrics)


def minibatches(config: Config, num_rows: int, key: Key, updates: Any) -> jax.Array:
    """Which rows each of the next `gradient_steps` minibatches has, `[gradient_steps, n]`: one epoch after the other, each in an order of
    its own; a minibatch may reach into the next."""
    size = min(config.batch_size, num_rows)
    count = config.gradient_steps * size
    # Minibatch and epoch begin together every `period` updates; so counted, no product leaves int32.
    period, epochs_a_period = (n // math.gcd(num_rows, size) for n in (num_rows, size))
    begin = (updates % period) * size
    first = (updates // period) * epochs_a_period + begin // num_rows
    num_epochs = -(-count // num_rows) + 1
    orders = jax.vmap(lambda i: permutation(jax.random.fold_in(key, first + i), num_rows))(jnp.arange(num_epochs))
    place = begin % num_rows + jnp.arange(count)
    return orders.reshape(-1)[place].reshape(config.gradient_steps, size)


def turn(config: Config, task: Task, rows: Rows, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """`gradient_steps` updates on minibatches of `rows`."""
    order = minibatches(config, rows.x.shape[0], state.order, state.updates)
    return update(config, task, state, Rows(jnp.asarray(rows.x)[order], jnp.asarray(rows.y)[order]))


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn on the task's training rows."""
    state, metrics = turn(config, task, rows_of(config, task), state, update=update)
    return state, metrics | {"episodes": Episodes(jnp.int32(0), jnp.float32(0.0), jnp.int32(0))}


def fit(config: Config, task: Task, rows: Rows, num_outputs: int, key: Key) -> Actor:
    """The network after `total_steps` updates on `rows`, as one program: to be jitted, and vmapped over rows and floats of the Config."""
    turns = config.total_steps // config.gradient_steps
    state = start(config, rows, num_outputs, key)
    return actor(jax.lax.scan(lambda s, _: (turn(config, task, rows, s)[0], None), state, None, length=turns)[0])


def score(config: Config, task: Task, actor: Actor, episodes: int, seed: int) -> dict[str, Any]:
    """Scores on the task's test rows with `samples` stochastic passes: "mean" is the log likelihood; `episodes` has no meaning here."""
    del episodes
    found = jax.jit(quality, static_argnums=4)(config, actor, rows_of(config, task, "test"), jax.random.key(seed), config.samples)
    found = {name: float(x) for name, x in found.items()}
    return {"mean": found["log_likelihood"], **found}
