"""Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796):
one classifier learns tasks in turn.

    for task A, B, C, ... do
        theta <- argmin L_task(theta) + ½ lambda sum_i F_i (theta_i - theta*_i)²                       (equation 3)
        F <- F + the Fisher information of this task at theta,  theta* <- theta

The tasks are permutations of an image's pixels (figure 2), the first one being the images as they are.
What holds theta is `mode`:

    ewc       a penalty for every task before, whose sum is one penalty: centre and weight are added up
    online    one penalty at the newest theta, its F decayed: Schwarz et al. 2018, equation 9
    l2        F = 1: every parameter is held alike
    sgd       nothing
    joint     nothing, and the data of all tasks so far: what can be reached

The penalty is `core.fisher.anchored`, which wraps any system's loss the same way. See docs/ewc.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatirons.core import continual, optimisers, trees
from flatirons.core import fisher as information
from flatirons.nets.mlp import dense, dense_init, mlp_init
from flatirons.types import FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, config

SIDE, CLASSES = 28, 10
CHUNK = 100
"""Images in one pass for the Fisher information."""


STEPS = "gradient updates"
"""What `total_steps` counts."""
LATEST = ("task", "accuracy*", "average_accuracy", "total_score", "forgetting", "*_transfer")
"""Metrics that stand for a moment: a mean over a report's turns, which may lie in several tasks, would be no task's."""


@config
class Config:
    """Settings of EWC. The defaults are small; `ewc-mnist` is tuned for ten permutations, `ewc-paper` is the paper's."""

    total_steps: int = 5_000
    """Gradient updates in all, over all tasks."""
    num_envs: int = 1
    """Always 1: there are no environments."""
    num_tasks: int = 10
    """Tasks in the sequence, as many permutations."""
    task_steps: int = 500
    """Updates on each task."""
    turn_steps: int = 250
    """Updates between two reports, at which a run may stop; it must divide task_steps."""
    square: int = 28
    """Side of the square in the middle whose pixels are permuted; 28 is all of them (the paper's figure 2C: 8 and 26)."""
    mode: Literal["ewc", "online", "l2", "sgd", "joint"] = "ewc"
    """What holds the parameters: see the top of the file."""
    strength: float = 200.0
    """Lambda of equation 3."""
    decay: float = 1.0
    """What is left of F after another task, in mode online (gamma of Schwarz 2018)."""
    labels: Literal["observed", "sampled", "expected"] = "sampled"
    """Whose labels F is an average over: the data's, drawn from the model, or every class by its probability (ten passes)."""
    fisher_examples: int = 1_000
    """Training images that F is an average over, drawn with replacement; a multiple of 100."""
    learning_rate: float = 3e-3
    """Step size, at the start of a task where it falls."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """adam, begun anew with each task, or plain sgd as in the paper."""
    anneal_learning_rate: bool = True
    """Whether the step size falls to 0 over each task's updates (the paper's does not): a task is then left at its minimum, where F is the
    curvature, and the next one's last steps are too small to shake what the penalty holds."""
    batch_size: int = 128
    """Images in a minibatch, drawn with replacement."""
    hidden: tuple[int, ...] = (400, 400)
    """Widths of the hidden layers, of rectifiers."""
    eval_examples: int = 2_000
    """Test images behind the metrics; `flatirons eval` takes all."""


PRESETS = {
    "ewc-mnist": Preset(doc="Ten permuted MNIST tasks in a minute on one core: Adam, 500 updates each.", config={}, tasks=("data:mnist",)),
    "ewc-paper": Preset(
        doc="The paper's three tasks (figure 2A): plain SGD of 1e-3, two layers of 400, 20 passes over 60,000 images each, no dropout.",
        config={
            "total_steps": 28_500,
            "num_tasks": 3,
            "task_steps": 9_500,
            "turn_steps": 500,
            "optimiser": "sgd",
            "learning_rate": 1e-3,
            "anneal_learning_rate": False,
        },
    ),
}


class Data(NamedTuple):
    """Images uint8 `[n, 784]` and labels int32 `[n]`, for training and for testing."""

    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


class Actor(NamedTuple):
    """The classifier, the permutations int32 `[tasks, 784]`, and how many tasks it has begun (int32)."""

    params: Any
    permutations: Any
    begun: Any


class State(NamedTuple):
    """Everything a run is made of. `anchor` and `fisher` are theta* and F, F 0 before the first task's end; `scores` float32
    `[tasks, tasks]`: test accuracy on each (column) when one was finished (row); `untrained` `[tasks]`: that of the first parameters."""

    params: Any
    opt_state: Any
    anchor: Any
    fisher: Any
    permutations: Any
    data: Data
    scores: Any
    untrained: Any
    key: Any
    updates: Any


class Rows(NamedTuple):
    """Minibatches to come, int32 `[T, B]`: numbers of training images, and of the tasks they are shown in."""

    image: Any
    task: Any


class Batch(NamedTuple):
    """Images float32 `[B, 784]`, permuted, and their labels int32 `[B]`."""

    image: Any
    label: Any


# --------------------------------------------------------------------------------------------------------- tasks and network


def logits(params: Any, image: Any, layer: Callable[[Any, Any], jax.Array] = dense) -> jax.Array:
    """The network's, `[..., 10]`, for permuted images float32 `[..., 784]` in [0, 1]."""
    x = image
    for each in params["torso"]:
        x = jax.nn.relu(layer(each, x))
    return layer(params["head"], x)


def shown(images: Any, permutation: Any) -> jax.Array:
    """Images uint8 `[..., 784]` as a task shows them: permuted, float32 in [0, 1]."""
    return jnp.take(jnp.asarray(images), permutation, axis=-1).astype(jnp.float32) / 255.0


def _permutations(config: Config, key: Key) -> jax.Array:
    """int32 `[tasks, 784]`: of the pixels in the middle square, the first the identity."""
    edge = (SIDE - config.square) // 2
    pixels = jnp.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    middle = pixels[edge : edge + config.square, edge : edge + config.square].reshape(-1)

    def one(key: Key) -> jax.Array:
        return pixels.reshape(-1).at[middle].set(jax.random.permutation(key, middle))

    others = jax.vmap(one)(jax.random.split(key, config.num_tasks))
    return others.at[0].set(pixels.reshape(-1)).astype(jnp.int32)


def _data(task: Any) -> Data:
    """The task's arrays on the device, pictures as rows."""
    arrays = task.arrays
    images, test_images = (jnp.asarray(arrays[name]).reshape(-1, SIDE * SIDE) for name in ("train_images", "test_images"))
    return Data(images, jnp.asarray(arrays["train_labels"], jnp.int32), test_images, jnp.asarray(arrays["test_labels"], jnp.int32))


def accuracies(params: Any, permutations: Any, images: Any, labels: Any) -> jax.Array:
    """Share of images that are classified right under each permutation, `[tasks]`."""

    def one(permutation: Any) -> jax.Array:
        guess = jnp.argmax(logits(params, shown(images, permutation)), axis=-1)
        return jnp.mean((guess == labels).astype(jnp.float32))

    return jax.lax.map(one, permutations)


def task_fisher(config: Config, params: Any, data: Data, permutation: Any, key: Key, chunks: Any) -> Any:
    """F of one task at params: the mean over `chunks` (which may be traced) times 100 of its training images."""

    def add(i: Any, total: Any) -> Any:
        key_rows, key_labels = jax.random.split(jax.random.fold_in(key, i))
        rows = jax.random.randint(key_rows, (CHUNK,), 0, data.images.shape[0])
        images, observed = shown(data.images[rows], permutation), data.labels[rows]
        one = information.dense_classifier_fisher(logits, params, images, labels=config.labels, observed=observed, key=key_labels)
        return jax.tree.map(jnp.add, total, one)

    total = jax.lax.fori_loop(0, chunks, add, jax.tree.map(jnp.zeros_like, params))
    return jax.tree.map(lambda x: x / jnp.maximum(chunks, 1), total)


# ------------------------------------------------------------------------------------------------------------- the system


def steps_per_turn(config: Config) -> int:
    """Gradient updates between two reports."""
    return config.turn_steps


def check(config: Config, task: Any) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    if "train_images" not in getattr(task, "arrays", {}) or task.arrays["train_images"].shape[1:] != (SIDE, SIDE):
        raise FlatironsError(
            f"ewc learns to classify images of {SIDE} x {SIDE}, and {task.name} has none: give data:mnist, or data:FILE.npz"
        )
    if config.num_envs != 1:
        raise FlatironsError(f"num_envs is {config.num_envs}: ewc learns from data and has no environments, so leave it at 1")
    if min(config.num_tasks, config.task_steps, config.turn_steps, config.batch_size, config.eval_examples) < 1:
        raise FlatironsError("num_tasks, task_steps, turn_steps, batch_size and eval_examples must be at least 1")
    if config.task_steps % config.turn_steps:
        raise FlatironsError(f"turn_steps={config.turn_steps} does not divide task_steps={config.task_steps}: choose a divisor")
    if config.total_steps > config.num_tasks * config.task_steps:
        raise FlatironsError(
            f"total_steps={config.total_steps:_} is more than num_tasks * task_steps = {config.num_tasks * config.task_steps:_} updates: "
            "there is no task to go on with, so give a larger num_tasks"
        )
    if not 1 <= config.square <= SIDE:
        raise FlatironsError(f"square is {config.square}: give a side between 1 and {SIDE} pixels")
    if config.fisher_examples < 1 or config.fisher_examples % CHUNK:
        raise FlatironsError(f"fisher_examples is {config.fisher_examples}: give a multiple of {CHUNK}, at least {CHUNK}")
    if config.strength < 0.0 or not 0.0 <= config.decay <= 1.0:
        raise FlatironsError(f"strength={config.strength} must be at least 0 and decay={config.decay} between 0 and 1")


def init(config: Config, task: Any, key: Key) -> State:
    """Fresh parameters (uniform in ±1/sqrt(fan in)), permutations, and the data itself, so that it is no constant of the program."""
    key_torso, key_head, key_tasks, key = jax.random.split(key, 4)
    sizes = (SIDE * SIDE, *config.hidden)
    params = {
        "torso": mlp_init(key_torso, sizes, init="fan_in"),
        "head": dense_init(key_head, sizes[-1], CLASSES, init="fan_in"),
    }
    data = _data(task)
    permutations = _permutations(config, key_tasks)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return State(
        params=params,
        opt_state=_optimiser(config).init(params),
        anchor=zeros,
        fisher=zeros,
        permutations=permutations,
        data=data,
        scores=jnp.zeros((config.num_tasks, config.num_tasks)),
        untrained=_tested(config, params, permutations, data),
        key=key,
        updates=jnp.int32(0),
    )


def actor(state: State) -> Actor:
    """The acting part of a State: no data, no anchor."""
    return Actor(state.params, state.permutations, jnp.sum(jnp.any(state.scores > 0, axis=-1), axis=-1, dtype=jnp.int32))


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Names the digit in images uint8 `[B, 28, 28]` as they are (the first task); without `greedy` it draws from the softmax."""

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        images = jnp.asarray(timestep.obs)
        scores = logits(actor.params, shown(images.reshape(images.shape[0], -1), actor.permutations[0]))
        chosen = jnp.argmax(scores, axis=-1) if greedy else jax.random.categorical(key, scores)
        return chosen.astype(jnp.int32), carry, ()

    return Policy(lambda num_envs: (), act)


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """L_task: mean cross-entropy."""
    scores = logits(params, batch.image)
    total = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch.label))
    right = jnp.mean((jnp.argmax(scores, axis=-1) == batch.label).astype(jnp.float32))
    return total, {"loss": total, "train_accuracy": right}


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optimisers.optimiser("adam", eps=1e-8) if config.optimiser == "adam" else optax.identity()


def update(config: Config, task: Task, state: State, experience: Rows, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """A gradient step on each minibatch `[T, B]`, of the loss with the anchors around it (equation 3)."""
    held = config.mode in ("ewc", "online", "l2")
    anchored = information.anchored(loss, [state.anchor] * held, [state.fisher] * held, config.strength)

    def one_minibatch(c: tuple[Any, Any], inputs: tuple[Rows, jax.Array]) -> tuple[tuple[Any, Any], Metrics]:
        (params, opt_state), (rows, rate) = c, inputs
        pixels = jnp.take_along_axis(state.data.images[rows.image], state.permutations[rows.task], axis=-1)
        batch = Batch(pixels.astype(jnp.float32) / 255.0, state.data.labels[rows.image])
        grads, metrics = jax.grad(functools.partial(anchored, config, task), has_aux=True)(params, batch)
        direction, opt_state = _optimiser(config).update(grads, opt_state)
        return (optimisers.descend(params, direction, rate), opt_state), metrics | {"grad_norm": trees.global_norm(grads)}

    begun = state.updates % config.task_steps
    left = 1.0 - (begun + jnp.arange(config.turn_steps)) / config.task_steps
    rates = config.learning_rate * (left if config.anneal_learning_rate else jnp.ones_like(left))
    opt_state = trees.select(begun == 0, _optimiser(config).init(state.params), state.opt_state)
    (params, opt_state), metrics = jax.lax.scan(one_minibatch, (state.params, opt_state), (experience, rates))
    state = state._replace(params=params, opt_state=opt_state, updates=state.updates + config.turn_steps)
    return state, jax.tree.map(jnp.mean, metrics)


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `turn_steps` updates on the task whose turn it is; where it ends with them, its Fisher information and its scores."""
    now = state.updates // config.task_steps
    key, key_rows, key_tasks, key_fisher = jax.random.split(state.key, 4)
    shape = (config.turn_steps, config.batch_size)
    seen = jax.random.randint(key_tasks, shape, 0, now + 1) if config.mode == "joint" else jnp.full(shape, now)
    rows = Rows(jax.random.randint(key_rows, shape, 0, state.data.images.shape[0]), seen.astype(jnp.int32))
    state, metrics = update(config, task, state._replace(key=key), rows)

    leaves = state.updates % config.task_steps == 0
    anchor, fisher = _consolidated(config, state, now, key_fisher, leaves)
    tested = _tested(config, state.params, state.permutations, state.data)
    scores = state.scores.at[now].set(tested)
    state = state._replace(anchor=anchor, fisher=fisher, scores=scores)
    metrics = metrics | {
        "task": now.astype(jnp.float32),
        "accuracy": tested[now],
        "average_accuracy": continual.average(scores, now + 1),
        "total_score": jnp.sum(jnp.where(jnp.arange(config.num_tasks) <= now, tested, 0.0)),
        "forgetting": continual.forgetting(scores, now + 1),
        "backward_transfer": continual.backward_transfer(scores, now + 1),
        "forward_transfer": continual.forward_transfer(scores, state.untrained, now + 1),
    }
    return state, metrics | {f"accuracy_{j}": tested[j] for j in range(config.num_tasks)}


def _tested(config: Config, params: Any, permutations: Any, data: Data) -> jax.Array:
    """Accuracy on each task of the first `eval_examples` test images."""
    return accuracies(params, permutations, data.test_images[: config.eval_examples], data.test_labels[: config.eval_examples])


def _consolidated(config: Config, state: State, now: Any, key: Key, leaves: Any) -> tuple[Any, Any]:
    """theta* and F as the task is left; as they were where it is not left."""
    params, anchor, fisher = state.params, state.anchor, state.fisher
    if config.mode in ("sgd", "joint"):
        return anchor, fisher
    if config.mode == "l2":
        new = information.identity(params)
    else:
        # A loop of no chunks where no task is left: under vmap a branch would run each time.
        chunks = jnp.where(leaves, config.fisher_examples // CHUNK, 0)
        new = task_fisher(config, params, state.data, state.permutations[now], key, chunks)
    if config.mode == "online":
        after = information.decayed(fisher, params, new, config.decay)
    else:
        after = information.combined(anchor, fisher, params, new)
    return trees.select(leaves, after, (anchor, fisher))


def score(config: Config, task: Any, actor: Actor, episodes: int, seed: int) -> dict[str, Any]:
    """Accuracy on all test images under every permutation begun, "accuracy_0" and so on, and their "mean". Nothing is drawn, so that
    `episodes` and `seed` change nothing."""
    data = _data(task)
    tested, begun = jax.jit(accuracies), max(1, int(actor.begun))
    each = [float(tested(actor.params, actor.permutations[j : j + 1], data.test_images, data.test_labels)[0]) for j in range(begun)]
    return {"mean": sum(each) / begun, **{f"accuracy_{j}": x for j, x in enumerate(each)}}


# ------------------------------------------------------------------------------------------------------------- analyses


def overlaps(a: Any, b: Any) -> dict[str, float]:
    """Overlap of two Fisher informations of the network in each layer, from the first on (figure 2C), and in "all"."""
    layers: Sequence[Any] = [*zip(a["torso"], b["torso"], strict=True), (a["head"], b["head"])]
    each = {f"layer {i + 1}": float(information.overlap(x, y)) for i, (x, y) in enumerate(layers)}
    return each | {"all": float(information.overlap(a, b))}


def sensitivity(
    params: Any, fisher: Any, permutation: Any, data: Data, sizes: Sequence[float], kind: information.Kind, key: Key, draws: int = 10
) -> list[float]:
    """Test accuracy on one task with noise of each size on the parameters (`core.fisher.disturbed`), the mean over `draws` (figure 3C)."""
    tested = data.test_images, data.test_labels
    each = [[_noisy_accuracy(kind, params, fisher, permutation, tested, size, k) for k in jax.random.split(key, draws)] for size in sizes]
    return [float(jnp.mean(jnp.stack(accuracy))) for accuracy in each]


@functools.partial(jax.jit, static_argnums=0)
def _noisy_accuracy(
    kind: information.Kind, params: Any, fisher: Any, permutation: Any, tested: tuple[Any, Any], size: Any, key: Key
) -> jax.Array:
    return accuracies(information.disturbed(key, params, fisher, size, kind), permutation[None], *tested)[0]
