"""The natural gradient's parts (Schulman 2015, appendix C): conjugate gradient, Fisher-vector products, largest step, line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_vdot

from flatirons.types import Array, PyTree


def _plus(a: PyTree, scale: float | Array, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


class Solution(NamedTuple):
    """x with A x ~ b, A x itself, and |b - A x| / |b|, recomputed and not the recursion's."""

    x: Any
    product: Any
    residual: Any


def conjugate_gradient(product: Callable[[PyTree], PyTree], b: PyTree, num_iterations: int, tolerance: float | Array = 1e-10) -> Solution:
    """Solve A x = b for a symmetric positive definite A given as `product(v) = A v` (Hestenes and Stiefel 1952), from x = 0.

    `num_iterations` products at most: it stops once |r|² <= tolerance |b|². In exact arithmetic it is done after as many as A has
    different eigenvalues, and its directions are A-orthogonal. One product more gives A x and the true residual, neither of which
    `jax.scipy.sparse.linalg.cg` hands out."""
    square = jnp.asarray(tree_vdot(b, b))

    def unfinished(c: tuple[Any, ...]) -> jax.Array:
        i, _, _, _, rr = c
        return (i < num_iterations) & (rr > tolerance * square)

    def iterate(c: tuple[Any, ...]) -> tuple[Any, ...]:
        i, x, r, p, rr = c
        ap = product(p)
        alpha = rr / tree_vdot(p, ap)
        x, r = _plus(x, alpha, p), _plus(r, -alpha, ap)
        new = tree_vdot(r, r)
        return i + 1, x, r, _plus(r, new / rr, p), new

    zero = jax.tree.map(jnp.zeros_like, b)
    _, x, _, _, _ = jax.lax.while_loop(unfinished, iterate, (jnp.int32(0), zero, b, b, square))
    ax = product(x)
    off = _plus(b, jnp.asarray(-1.0, square.dtype), ax)
    return Solution(x, ax, jnp.sqrt(tree_vdot(off, off) / jnp.maximum(square, jnp.finfo(square.dtype).tiny)))


def fisher_vector_product(
    distribution: Callable[[PyTree], Any], params: PyTree, weights: Array | None = None
) -> Callable[[PyTree], PyTree]:
    """v -> F v, F the Fisher matrix of `distribution(params)` averaged over its leading axes: the Hessian of mean KL(old || new) at old.

    With `weights`, of the shape of those axes, the mean is the weighted one.

    F = J^T M J, where J is the derivative of the distribution's parameters (its leaves) in `params` and M the Hessian of the KL in those,
    which is small and known in closed form (appendix C.1). The network is linearised once, and a product is one pass forward and one back.
    """
    old, forward = jax.linearize(distribution, params)
    back = jax.linear_transpose(forward, params)
    fixed = jax.lax.stop_gradient(old)

    def slope(new: Any) -> Any:
        return jax.grad(lambda x: jnp.average(fixed.kl(x), weights=weights))(new)

    def product(v: PyTree) -> PyTree:
        (out,) = back(jax.jvp(slope, (old,), (forward(v),))[1])
        return out

    return product


def largest_step(direction: PyTree, product: PyTree, delta: float | Array) -> jax.Array:
    """beta with ½ (beta x)^T A (beta x) = delta, for x `direction` and A x `product`: sqrt(2 delta / x^T A x); 0 where x is 0."""
    curvature = jnp.asarray(tree_vdot(direction, product))
    return jnp.where(curvature > 0, jnp.sqrt(2.0 * delta / jnp.where(curvature > 0, curvature, 1.0)), 0.0)


class Searched(NamedTuple):
    """What a line search came to: the point (the start itself where no step was good), the metrics there, whether a step was good, and how
    many steps were refused (int32)."""

    params: Any
    metrics: Any
    accepted: Any
    refused: Any


def backtracking(
    good: Callable[[PyTree], tuple[Any, PyTree]], start: PyTree, step: PyTree, ratio: float | Array, num_steps: int
) -> Searched:
    """The first of start + step, start + ratio step, start + ratio² step, ... that is `good` (its answer: bool, metrics), of `num_steps`.

    Each is `start` plus a scaled step, never a step taken back, so that a failed search returns `start` bit for bit."""

    def at(i: Any) -> tuple[Any, PyTree, Any]:
        params = _plus(start, ratio ** jnp.asarray(i, jnp.float32), step)
        return (params, *good(params))

    def unfinished(c: tuple[Any, ...]) -> jax.Array:
        i, _, accepted, _ = c
        return ~accepted & (i < num_steps)

    def iterate(c: tuple[Any, ...]) -> tuple[Any, ...]:
        params, accepted, metrics = at(c[0])
        return c[0] + 1, params, accepted, metrics

    nothing = good(start)[1]
    i, params, accepted, metrics = jax.lax.while_loop(unfinished, iterate, (jnp.int32(0), start, jnp.zeros((), bool), nothing))
    choose = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
    return Searched(
        jax.tree.map(choose, params, start),
        jax.tree.map(choose, metrics, nothing),
        accepted,
        jnp.where(accepted, i - 1, i),
    )


def constrained_step(
    objective: Callable[[PyTree], tuple[Any, PyTree]],
    distribution: Callable[[PyTree], Any],
    thinned: Callable[[PyTree], Any],
    params: PyTree,
    *,
    weights: Array | None = None,
    fisher_weights: Array | None = None,
    delta: float | Array,
    damping: float | Array,
    cg_iterations: int,
    backtrack_ratio: float | Array,
    backtrack_steps: int,
) -> tuple[PyTree, dict[str, Any]]:
    """One step that lowers `objective(params) -> (scalar, metrics)` and keeps the mean KL(old || new) within `delta` (appendix C).

    `distribution(params)` is what the constraint is of and `thinned(params)` what the Fisher matrix is made of, on fewer rows if that is to
    be cheaper; their rows count by `weights` and `fisher_weights`. Returns the new parameters (bit for bit the old where no step of the
    line search is good) and the metrics there, with kl, improvement, accepted, backtracks and grad_norm."""
    (before, _), grads = jax.value_and_grad(objective, has_aux=True)(params)
    fisher = fisher_vector_product(thinned, params, fisher_weights)
    s = conjugate_gradient(lambda v: _plus(fisher(v), damping, v), jax.tree.map(jnp.negative, grads), cg_iterations)
    scale = largest_step(s.x, s.product, delta)
    old = distribution(params)

    def good(new: PyTree) -> tuple[Any, PyTree]:
        after, metrics = objective(new)
        kl = jnp.average(old.kl(distribution(new)), weights=weights)
        return (after < before) & (kl <= delta), metrics | {"kl": kl, "improvement": before - after}

    found = backtracking(good, params, jax.tree.map(lambda x: scale * x, s.x), backtrack_ratio, backtrack_steps)
    return found.params, found.metrics | {
        "accepted": found.accepted.astype(jnp.float32),
        "backtracks": found.refused.astype(jnp.float32),
        "grad_norm": jnp.sqrt(jnp.asarray(tree_vdot(grads, grads))),
    }
