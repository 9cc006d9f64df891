"""Dropout as a Bayesian approximation (Gal and Ghahramani 2016, arXiv:1506.02142), for any network.

A network trained with dropout approximates the posterior of its weights by q: each row m of a weight matrix, all that leaves one input of a
layer, is there or not,

    q(w) = p N(m, sigma² I) + (1 - p) N(0, sigma² I)                                  p: the probability to KEEP it

and the dropout loss with weight decay is, but for a constant, KL(q || posterior). So a stochastic pass is a draw from that posterior, and
the mean and the variance of several are the prediction and how sure it is.

Masks here are scaled: what is kept is divided by p, so that the plain network is the mean over masks. A stored weight is then w = p m; the
paper and its course notes store m. `rate` is the probability to DROP, 1 - p, everywhere in this library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.types import Array, FlatironsError, Key, PyTree

# ------------------------------------------------------------------------------------------------------------ stochastic passes


GRAIN = 65_536
"""Rates that masks tell apart: half the random bits of a uniform number."""


def kept(key: Key, shape: tuple[int, ...], rate: float | Array) -> jax.Array:
    """Bool `shape`, False with probability `rate` in [0, 1 - 1/65,536], to the nearest 1/65,536."""
    threshold = jnp.round(jnp.asarray(rate, jnp.float32) * GRAIN).astype(jnp.uint32)
    return jax.random.bits(key, shape, jnp.uint16).astype(jnp.uint32) >= threshold


def dropout(key: Key, x: Array, rate: float | Array) -> jax.Array:
    """x with each number 0 with probability `rate` and divided by 1 - rate otherwise, any shape: before a layer, on its inputs (section 3).
    `rate` is a scalar that may be traced."""
    return jnp.where(kept(key, jnp.shape(x), rate), jnp.asarray(x) / (1.0 - rate), 0.0)


def is_weight(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of parameters multiplies inputs: an array of floats with two axes or more, whose second to last is the inputs'
    (`[in, out]`, a convolution's `[h, w, in, out]`). Vectors are biases, which are never dropped, nor is what is called "b", "bias" or
    "gain", of which a network may hold several in one array."""
    if path and isinstance(path[-1], jax.tree_util.DictKey) and path[-1].key in ("b", "bias", "gain"):
        return False
    return jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def drawn(key: Key, params: PyTree, rate: float | Array, *, where: Callable[[tuple[Any, ...], Any], bool] = is_weight) -> PyTree:
    """Parameters drawn from q: diag(z) W / (1 - rate), z ~ Bernoulli(1 - rate), for every leaf that `where(path, leaf)` says is a weight.

    To drop a row of weights is to drop that input of the layer, so the network itself is called as it is, and never knows. Of a
    convolution whole input channels are dropped. One draw is one function: every row of a batch passes through the same mask.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)

    def one(i: int, path: tuple[Any, ...], leaf: Any) -> Any:
        if not where(path, leaf):
            return leaf
        z = kept(jax.random.fold_in(key, i), (leaf.shape[-2], 1), rate)
        return jnp.where(jnp.expand_dims(z, tuple(range(leaf.ndim - 2))), leaf / (1.0 - rate), 0.0)

    return jax.tree.unflatten(structure, [one(i, path, leaf) for i, (path, leaf) in enumerate(leaves)])


def predictive(
    apply: Callable[[Any, Any], Any],
    params: PyTree,
    x: Any,
    key: Key,
    n: int,
    *,
    rate: float | Array,
    where: Callable[[tuple[Any, ...], Any], bool] = is_weight,
) -> Any:
    """`n` draws of `apply(params, x)`, a pytree of `[n, ...]`, each with weights drawn from q: MC dropout for any network that is a
    function of parameters. Give the rate that it was trained with. Raises FlatironsError where n < 1 or nothing in `params` is a weight.
    """
    demand_draws(n)
    demand_rate(rate)
    if not any(where(path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]):
        raise FlatironsError("no leaf of these parameters is a weight to drop; pass where=, which says so of a path and an array")

    def one(key: Key) -> Any:
        return apply(drawn(key, params, rate, where=where), x)

    # So many at once that none is left over: a remainder would be compiled apart.
    together = next(size for size in range(min(n, 32), 0, -1) if n % size == 0)
    return jax.lax.map(one, jax.random.split(key, n), batch_size=together)


def demand_rate(rate: float | Array, name: str = "rate") -> None:
    """Raises FlatironsError where a probability to drop is a number below 0, or so near to 1 that masks would keep nothing; what is traced
    is let pass."""
    if isinstance(rate, int | float) and not 0.0 <= rate <= 1.0 - 1.0 / GRAIN:
        raise FlatironsError(
            f"{name} is {rate}: it is the probability to drop an input, from 0 to 1 - 1/{GRAIN:,}, beyond which none is kept"
        )


def demand_draws(n: int, name: str = "n") -> None:
    """Raises FlatironsError where a number of stochastic passes is none."""
    if n < 1:
        raise FlatironsError(f"{name} is {n}: a prediction needs at least 1 stochastic pass; give 100, or 1,000 for its variance")


# -------------------------------------------------------------------------------------------------------- what the draws say


class Predictive(NamedTuple):
    """What T stochastic passes say: `mean` and `variance`, as the prediction."""

    mean: jax.Array
    variance: jax.Array


def moments(draws: Array, tau: float | Array | None = None) -> Predictive:
    """Mean and variance of `draws [T, ...]`: E[y] = 1/T sum_t f_t (equation 6), Var[y] = 1/tau + 1/T sum_t f_t² - E[y]² (section 4).

    `tau` is the precision of what is observed, in the units of the draws, so that 1/tau is the noise's variance; None leaves it out: the
    variance of the function alone."""
    draws = jnp.asarray(draws)
    return Predictive(jnp.mean(draws, axis=0), jnp.var(draws, axis=0) + (0.0 if tau is None else 1.0 / jnp.asarray(tau)))


def log_likelihood(draws: Array, y: Array, tau: float | Array) -> jax.Array:
    """log p(y | x) of each row, `[N]`, for `draws [T, N, D]` and `y [N, D]` (equation 8):

        logsumexp_t(-tau/2 |y - f_t|²) - log T - D/2 log 2 pi + D/2 log tau

    In the units of y; the logsumexp keeps what exp would send to 0."""
    num_draws, num_outputs = draws.shape[0], draws.shape[-1]
    distance = jnp.sum(jnp.square(jnp.asarray(draws) - jnp.asarray(y)[None]), axis=-1)
    total = jax.nn.logsumexp(-0.5 * tau * distance, axis=0) - math.log(num_draws)
    return total + 0.5 * num_outputs * (jnp.log(jnp.asarray(tau, jnp.float32)) - math.log(2.0 * math.pi))


def class_log_probs(logits: Array) -> jax.Array:
    """log of the mean over draws of softmax, `[N, classes]`, for `logits [T, N, classes]`: the predictive distribution of a classifier."""
    return jax.nn.logsumexp(jax.nn.log_softmax(jnp.asarray(logits), axis=-1), axis=0) - math.log(logits.shape[0])


# ---------------------------------------------------------------------------------------------------------------- the bound


def weight_decay(tau: float | Array, length_scale: float | Array, num_rows: int, keep: float | Array = 1.0) -> jax.Array:
    """lambda of lambda |W|² beside 1/N sum 1/2 |y - f(x)|², for stored weights W = keep M: l² / (2 N tau keep).

    The paper's equation 7 read from right to left: tau = keep l² / (2 N lambda) for a decay of lambda |M|²."""
    return jnp.asarray(length_scale) ** 2 / (2.0 * num_rows * tau * keep)


def precision(decay: float | Array, length_scale: float | Array, num_rows: int, keep: float | Array = 1.0) -> jax.Array:
    """tau of a network that was trained with a decay of lambda |W|²: the way back."""
    return jnp.asarray(length_scale) ** 2 / (2.0 * num_rows * decay * keep)


def mixture_kl(mean: Array, log_sigma: float | Array, keep: float | Array, length_scale: float | Array = 1.0) -> jax.Array:
    """KL(q || N(0, I / l²)) of q = p N(m, sigma² I) + (1 - p) N(0, sigma² I) for each vector m of `mean [..., K]`, `[...]`.

        K/2 (l² sigma² - log(l² sigma²) - 1) + p l²/2 |m|² - I(z; w)

    I is the information that a weight has about its mask z: at most the entropy of p, reached where the two parts do not overlap (the
    paper's approximation, appendix, proposition 1). It is an integral along m alone, summed here on a grid, so that the value is exact.
    sigma is given as its logarithm: the course's 1e-33 squares to 0 in float32, and log sigma² = -152 is what is meant.
    """
    mean, log_sigma = jnp.asarray(mean), jnp.asarray(log_sigma, jnp.float32)
    scale = jnp.asarray(length_scale, jnp.float32)
    squares = jnp.sum(jnp.square(mean), axis=-1)
    log_size = log_sigma + jnp.log(scale)
    spread = 0.5 * mean.shape[-1] * (jnp.exp(2.0 * log_size) - 2.0 * log_size - 1.0)
    apart = jnp.exp(jnp.minimum(0.5 * jnp.log(squares + 1e-30) - log_sigma, math.log(40.0)))
    return spread + 0.5 * keep * scale**2 * squares - _mask_information(apart, keep)


def _mask_information(apart: Array, keep: float | Array) -> jax.Array:
    """I(z; w) for w = z `apart` + N(0, 1), z ~ Bernoulli(keep): H(z) - E[H(z | w)], in nats; a trapezoid rule over ±10 deviations."""
    grid = jnp.linspace(-10.0, 10.0, 401)
    weight = jax.nn.softmax(-0.5 * jnp.square(grid))
    p = jnp.clip(jnp.asarray(keep, jnp.float32), 1e-7, 1.0 - 1e-7)
    prior = jnp.log(p) - jnp.log1p(-p)
    apart = jnp.asarray(apart)[..., None]
    noise = apart * jnp.expand_dims(grid, tuple(range(apart.ndim - 1)))

    def entropy(logit: jax.Array) -> jax.Array:
        """Of a coin with these log odds."""
        return jax.nn.softplus(-logit) * jax.nn.sigmoid(logit) + jax.nn.softplus(logit) * jax.nn.sigmoid(-logit)

    weight = jnp.expand_dims(weight, tuple(range(apart.ndim - 1)))
    left = [jnp.sum(weight * entropy(prior + sign * 0.5 * jnp.square(apart) + noise), axis=-1) for sign in (1.0, -1.0)]
    return entropy(prior) - p * left[0] - (1.0 - p) * left[1]


def kl(params: PyTree, log_sigma: float | Array, rate: float | Array, length_scale: float | Array = 1.0) -> jax.Array:
    """KL(q || prior) of a whole network of stored parameters: each row of a weight is dropped at `rate`, biases (and all that is no weight)
    never are."""

    def one(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if not is_weight(path, leaf):
            return mixture_kl(jnp.ravel(leaf), log_sigma, 1.0, length_scale)
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        return jnp.sum(mixture_kl(leaf / keep, log_sigma, keep, length_scale))

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, params)), start=jnp.zeros(()))


def decayed(params: PyTree, rate: float | Array) -> jax.Array:
    """The sum of |W|² / (1 - rate) over weights and |b|² over the rest: what `weight_decay` (at keep 1) multiplies for a whole network."""
    return sum(
        (
            jnp.sum(jnp.square(leaf)) / ((1.0 - jnp.asarray(rate)) if is_weight(path, leaf) else 1.0)
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        ),
        start=jnp.zeros(()),
    )


def with_dropout(
    loss: Callable[..., Any], key: Key, rate: float | Array, *, where: Callable[[tuple[Any, ...], Any], bool] = is_weight
) -> Callable[..., Any]:
    """A system's `loss(config, task, params, batch)` with weights drawn from q: pass it as `loss` to any system's `update`, and what it
    learns has dropout before the layers that `where` names, all by default. One draw serves all minibatches of that update.

    `key` and `rate` are best arguments of the compiled function around it, a new key each turn."""

    def dropped(config: Any, task: Any, params: Any, batch: Any) -> Any:
        return loss(config, task, drawn(key, params, rate, where=where), batch)

    return dropped
