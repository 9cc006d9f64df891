"""The Fisher information of any model, and the anchor it makes of any loss: elastic weight consolidation (Kirkpatrick et al. 2017,
arXiv:1612.00796).

    log p(theta | D_A, D_B) = log p(D_B | theta) + log p(theta | D_A) - log p(D_B)                 (equation 2)
    log p(theta | D_A) ~ -½ lambda sum_i F_i (theta_i - theta*_i)²                                 (Laplace's approximation)
    L(theta) = L_B(theta) + ½ lambda sum_i F_i (theta_i - theta*_i)²                               (equation 3)

theta* is where task A ended, and F the diagonal of the Fisher information there: positive, made of first derivatives alone, and the Hessian
of the loss at the minimum of a model that is right. See docs/ewc.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from flatirons.types import Array, FlatironsError, Key, PyTree

Labels = Literal["observed", "sampled", "expected"]
"""Whose labels a Fisher information is an average over: the data's ("observed", the empirical Fisher), the model's own as drawn from it
("sampled"), or all that the model could give, each by its probability ("expected", the Fisher itself on these inputs)."""

Kind = Literal["uniform", "inverse_fisher", "null_space"]
"""Directions in which parameters are disturbed."""


# --------------------------------------------------------------------------------------------------------------- the Fisher


def fisher_diagonal(
    log_prob: Callable[[PyTree, Any], Any], params: PyTree, batch: PyTree, *, weight: Array | None = None, chunk: int = 32
) -> PyTree:
    """F_i = mean_n w_n (d log p(x_n | params) / d params_i)²: the mean of the squares of single examples, not the square of a mean.

    log_prob(params, example) -> scalar, for one example of `batch` (a pytree `[n, ...]`) without its axis. What the examples say is whose
    Fisher it is: with the labels of the data the empirical one, with labels drawn from the model the true one (`Labels`). weight float
    `[n]`: none is 1. chunk: examples whose gradients are held at once, so the memory is chunk times that of params.

    Returns a tree like params, never negative. Raises FlatironsError where batch is empty.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows < 1 or chunk < 1:
        raise FlatironsError(f"a Fisher information needs examples, and was given {rows} in chunks of {chunk}: give at least 1 of each")
    weights = jnp.ones(rows) if weight is None else jnp.asarray(weight)

    def squares(examples: Any, w: Array) -> PyTree:
        grads = jax.vmap(jax.grad(log_prob), (None, 0))(params, examples)
        return jax.tree.map(lambda g: jnp.tensordot(w, jnp.square(g), 1), grads)

    size = min(chunk, rows)
    whole = rows // size * size
    chunks, rest = (
        jax.tree.map(lambda x: x[:whole].reshape(rows // size, size, *x.shape[1:]), (batch, weights)),
        jax.tree.map(lambda x: x[whole:], (batch, weights)),
    )

    def add(total: PyTree, part: tuple[Any, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, squares(*part)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)
    if whole < rows:
        total, _ = add(total, rest)
    return jax.tree.map(lambda x: x / rows, total)


def _demand_labels(labels: str) -> None:
    """Raises FlatironsError for what is none of `Labels`."""
    if labels not in get_args(Labels):
        known = "'observed' (the data's: the empirical Fisher), 'sampled' (drawn from the model) or 'expected' (over all classes)"
        raise FlatironsError(f"labels={labels!r} does not say whose labels a Fisher information is an average over: give {known}")


def classifier_fisher(
    logits: Callable[[PyTree, Any], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    labels: Labels,
    observed: Array | None = None,
    key: Key | None = None,
    chunk: int = 32,
) -> PyTree:
    """The Fisher information of p(y | x, params) = softmax(logits(params, x)), averaged over inputs `[n, ...]`.

    logits(params, x) -> `[classes]` for one input. labels: whose they are (`Labels`): "observed" takes the int `[n]` in `observed`,
    "sampled" draws one for each input with `key`, "expected" goes through all classes. Raises FlatironsError for other labels, and where
    what they need is missing.
    """

    _demand_labels(labels)

    def log_prob(params: PyTree, example: tuple[Any, Array]) -> Array:
        x, y = example
        log_p = jax.nn.log_softmax(logits(params, x))
        return jnp.sum(log_p * jax.nn.one_hot(y, log_p.shape[-1], dtype=log_p.dtype))

    if labels == "observed":
        if observed is None:
            raise FlatironsError("a Fisher information over observed labels needs them: pass observed=..., or labels='sampled'")
        return fisher_diagonal(log_prob, params, (inputs, observed), chunk=chunk)
    all_logits = jax.lax.map(lambda x: logits(params, x), inputs, batch_size=chunk)
    if labels == "sampled":
        if key is None:
            raise FlatironsError("a Fisher information over sampled labels needs a random key: pass key=..., or labels='expected'")
        return fisher_diagonal(log_prob, params, (inputs, jax.random.categorical(key, all_logits)), chunk=chunk)
    rows, classes = all_logits.shape
    repeated = jax.tree.map(lambda x: jnp.repeat(x, classes, axis=0), inputs)
    every = jnp.tile(jnp.arange(classes), rows)
    # A mean over rows and classes, so that a weight of classes * p(y | x) makes it a mean over rows and a sum over classes.
    weight = classes * jax.nn.softmax(all_logits).reshape(-1)
    return fisher_diagonal(log_prob, params, (repeated, every), weight=weight, chunk=chunk)


@jax.custom_vjp
def squaring_dense(params: PyTree, x: Array) -> jax.Array:
    """x W + b for `x [n, in]`, whose derivative in W and b is the sum over rows of the SQUARES of the rows' own derivatives.

    A row's derivative in W is x_n g_n^T, so the squares sum to (x²)^T g²: a matrix product, without any row's gradient being made. What is
    handed down to x is the usual g W^T, so that a stack of these layers gives every layer's sum of squares in one backward pass.
    """
    return x @ params["w"] + jnp.expand_dims(params["b"], 0)


def _squaring_forward(params: PyTree, x: Array) -> tuple[jax.Array, tuple[PyTree, Array]]:
    return squaring_dense(params, x), (params, x)


def _squaring_backward(kept: tuple[PyTree, Array], g: Array) -> tuple[PyTree, jax.Array]:
    params, x = kept
    squares = jnp.square(g)
    return {"w": jnp.square(x).T @ squares, "b": jnp.sum(squares, axis=0)}, g @ params["w"].T


squaring_dense.defvjp(_squaring_forward, _squaring_backward)


def dense_classifier_fisher(
    logits: Callable[[PyTree, Array, Callable[[PyTree, Array], jax.Array]], jax.Array],
    params: PyTree,
    inputs: Array,
    *,
    labels: Labels,
    observed: Array | None = None,
    key: Key | None = None,
) -> PyTree:
    """`classifier_fisher` of a network whose parameters are all in dense layers, exactly, in one backward pass for each label.

    logits(params, inputs, dense) -> `[n, classes]`, built with the `dense(layer, x)` that it is given; each layer is used once.
    """

    _demand_labels(labels)

    def squares(y: Array, weight: Array) -> PyTree:
        def total(params: PyTree) -> jax.Array:
            log_p = jax.nn.log_softmax(logits(params, inputs, squaring_dense))
            # The root, for it is squared with the gradient.
            return jnp.sum(jnp.sqrt(weight) * jnp.sum(log_p * jax.nn.one_hot(y, log_p.shape[-1], dtype=log_p.dtype), axis=-1))

        return jax.tree.map(lambda x: x / inputs.shape[0], jax.grad(total)(params))

    if labels == "observed":
        if observed is None:
            raise FlatironsError("a Fisher information over observed labels needs them: pass observed=..., or labels='sampled'")
        return squares(observed, jnp.ones(inputs.shape[0]))
    scores = logits(params, inputs, squaring_dense)
    if labels == "sampled":
        if key is None:
            raise FlatironsError("a Fisher information over sampled labels needs a random key: pass key=..., or labels='expected'")
        return squares(jax.random.categorical(key, scores), jnp.ones(inputs.shape[0]))

    def add(total: PyTree, label: tuple[Array, Array]) -> tuple[PyTree, None]:
        y, p = label
        return jax.tree.map(jnp.add, total, squares(jnp.full(inputs.shape[0], y), p)), None

    every = jnp.arange(scores.shape[-1]), jax.nn.softmax(scores).T
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), every)[0]


# --------------------------------------------------------------------------------------------------------------- the anchor


def penalty(params: PyTree, anchors: Sequence[PyTree], fishers: Sequence[PyTree]) -> jax.Array:
    """½ sum_k sum_i F_ki (theta_i - theta*_ki)²: one anchor and one Fisher for each task before (equation 3). 0 where there are none.

    Its gradient is sum_k F_k (theta - theta*_k). Raises FlatironsError, while it is traced, for an anchor of another network.
    """
    if len(anchors) != len(fishers):
        raise FlatironsError(f"there are {len(anchors)} anchors and {len(fishers)} Fisher informations: give one of each for every task")
    total: Any = jnp.zeros(())
    for anchor, fisher in zip(anchors, fishers, strict=True):
        demand_alike(params, anchor, "the anchor")
        demand_alike(params, fisher, "the Fisher information")
        pulls = jax.tree.map(lambda p, a, f: jnp.sum(f * jnp.square(p - a)), params, anchor, fisher)
        total = total + 0.5 * sum(jax.tree.leaves(pulls))
    return total


def anchored(loss: Callable[..., Any], anchors: Sequence[PyTree], fishers: Sequence[PyTree], strength: float | Array) -> Callable[..., Any]:
    """Any system's loss with EWC around it: `loss(config, task, params, batch)` plus strength * `penalty` (equation 3; strength is lambda).

    The result is a loss of the same signature, to be given to any `update`. Its metrics have the weighted penalty as "penalty". Call it
    inside the compiled function with anchors, fishers and strength as that function's arguments: as constants each new value would compile
    anew.
    """

    def with_anchor(config: Any, task: Any, params: PyTree, batch: Any) -> tuple[Any, dict[str, Any]]:
        total, metrics = loss(config, task, params, batch)
        pull = strength * penalty(params, anchors, fishers)
        return total + pull, {**metrics, "penalty": pull}

    return with_anchor


def combined(anchor: PyTree, fisher: PyTree, params: PyTree, new: PyTree) -> tuple[PyTree, PyTree]:
    """(anchor, Fisher) that pull as two do: those given, and `params` with its Fisher `new`.

    A sum of squares is a square: F_a (x - a)² + F_b (x - b)² = F (x - c)² + const with F = F_a + F_b and c the mean of a and b weighted by
    them. The gradient of separate penalties, for any number of tasks, then costs the memory of one.
    """
    total = jax.tree.map(jnp.add, fisher, new)
    centre = jax.tree.map(lambda a, p, f, n: a + jnp.where(f > 0, n / jnp.where(f > 0, f, 1), 1) * (p - a), anchor, params, total, new)
    return centre, total


def decayed(fisher: PyTree, params: PyTree, new: PyTree, decay: float | Array) -> tuple[PyTree, PyTree]:
    """(anchor, Fisher) of online EWC: the newest parameters, and decay * fisher + new (Schwarz et al. 2018, equation 9; Huszár 2018)."""
    return params, jax.tree.map(lambda f, n: decay * f + n, fisher, new)


def identity(params: PyTree) -> PyTree:
    """F = I, which makes EWC a plain quadratic pull towards the anchor ("L2" in the paper's figure 2A)."""
    return jax.tree.map(jnp.ones_like, params)


def demand_alike(params: PyTree, other: PyTree, what: str) -> None:
    """Raises FlatironsError where `other` is not shaped as `params` is."""
    ours, theirs = (dict(jax.tree.leaves_with_path(tree)) for tree in (params, other))
    for path, leaf in ours.items():
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
        if path not in theirs:
            raise FlatironsError(f"{what} is of another network: it has no {name}; take it from parameters of this one")
        if jnp.shape(theirs[path]) != jnp.shape(leaf):
            raise FlatironsError(
                f"{what} is of another network: {name} has shape {list(jnp.shape(theirs[path]))} there and {list(jnp.shape(leaf))} here; "
                "take it from parameters of this one"
            )
    if len(theirs) > len(ours):
        extra = next(path for path in theirs if path not in ours)
        name = jax.tree_util.keystr(extra, simple=True, separator="/") or "an array"
        raise FlatironsError(f"{what} is of another network: it has {name}, which this one lacks; take it from parameters of this one")


# ------------------------------------------------------------------------------------------------------------- what it says


def overlap(a: PyTree, b: PyTree) -> jax.Array:
    """How far two tasks need the same parameters, 0 to 1: one minus the squared Fréchet distance of their Fishers, each scaled to trace 1.

    d²(A, B) = ½ tr(A + B - 2 (A B)^½), for diagonals 1 - sum_i sqrt(A_i B_i) (the paper's supplement, "Fisher overlap"). Give a layer's
    subtree for the overlap in that layer. 0 where either is 0 throughout.
    """
    traces = [sum(jnp.sum(x) for x in jax.tree.leaves(tree)) for tree in (a, b)]
    shared: Any = sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(jnp.sqrt(x) * jnp.sqrt(y)), a, b)))
    scale: Any = jnp.sqrt(traces[0]) * jnp.sqrt(traces[1])
    return jnp.where(scale > 0, shared / jnp.where(scale > 0, scale, 1), 0.0)


def disturbed(key: Key, params: PyTree, fisher: PyTree, size: float | Array, kind: Kind, *, damping: float | Array = 1e-3) -> PyTree:
    """params plus Gaussian noise, to see which directions a task can do without (the paper's figure 3C).

    kind "uniform": the same variance for all; "inverse_fisher": variances 1 / (F_i / mean F + damping), the changes that EWC allows;
    "null_space": the same variance where F_i is 0, none elsewhere. The variances are scaled so that their root mean square over all
    parameters is `size`, whatever the kind. Where no F_i is 0 the null space is empty and nothing is added.
    """
    leaves, structure = jax.tree.flatten(fisher)
    count = sum(x.size for x in leaves)
    mean = sum(jnp.sum(x) for x in leaves) / count
    match kind:
        case "uniform":
            variances = [jnp.ones_like(x) for x in leaves]
        case "inverse_fisher":
            variances = [1.0 / (x / jnp.where(mean > 0, mean, 1) + damping) for x in leaves]
        case "null_space":
            variances = [(x == 0).astype(x.dtype) for x in leaves]
    total: Any = sum(jnp.sum(v) for v in variances)
    scale = size * jnp.sqrt(count / jnp.where(total > 0, total, 1))
    keys = jax.random.split(key, len(leaves))
    noise = [scale * jnp.sqrt(v) * jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, variances, strict=True)]
    return jax.tree.map(jnp.add, params, jax.tree.unflatten(structure, noise))
