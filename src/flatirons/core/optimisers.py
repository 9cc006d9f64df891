"""The papers' optimisers where Optax differs from them, and the learning rate as data.

An optimiser here is an `optax.GradientTransformation` that yields the *direction*; `descend` applies it with a learning rate that may be
traced, so that one compilation serves every learning rate and schedule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatirons.types import Array, PyTree


class CentredRmspropState(NamedTuple):
    """Running mean of gradients and of their squares."""

    mean: Any
    square: Any


def centred_rmsprop(decay: float, eps: float, *, eps_inside_root: bool) -> optax.GradientTransformation:
    """RMSProp divided by the *centred* second moment: direction = g / sqrt(n - m² + eps).

    n = decay n + (1-decay) g², m = decay m + (1-decay) g. `eps_inside_root=True` is Graves 2013 (equations 38-40), as Mnih 2015; False
    adds eps after the root, as PyTorch and so the MinAtar reference do. With eps = 0.01 the two differ by up to ten times in step size.

    Optax's `scale_by_stddev` is the same but for rounding: where gradients hardly change n - m² falls below 0, and with eps outside the
    root it gives NaN.

    There is no momentum. Mnih 2015 lists a "gradient momentum" of 0.95, but its authors' program uses that number for the mean m and sets
    the step anew each time; MinAtar's authors had a momentum once and took it out. It would make steps twenty times as large.
    """

    def init(params: PyTree) -> CentredRmspropState:
        return CentredRmspropState(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(grads: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        mean = jax.tree.map(lambda m, g: decay * m + (1.0 - decay) * g, state.mean, grads)
        square = jax.tree.map(lambda n, g: decay * n + (1.0 - decay) * jnp.square(g), state.square, grads)

        def scaled(g: jax.Array, n: jax.Array, m: jax.Array) -> jax.Array:
            centred = jnp.maximum(n - jnp.square(m), 0.0)
            return g * jax.lax.rsqrt(centred + eps) if eps_inside_root else g / (jnp.sqrt(centred) + eps)

        return jax.tree.map(scaled, grads, square, mean), CentredRmspropState(mean, square)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def optimiser(name: str, *, eps: float) -> optax.GradientTransformation:
    """A direction by name: "adam", "rmsprop" (Nature DQN's, eps inside the root), "rmsprop-torch" (MinAtar's, eps outside)."""
    match name:
        case "adam":
            return optax.scale_by_adam(eps=eps)
        case "rmsprop":
            return centred_rmsprop(0.95, eps, eps_inside_root=True)
        case "rmsprop-torch":
            return centred_rmsprop(0.95, eps, eps_inside_root=False)
        case _:
            raise ValueError(f"unknown optimiser {name!r}: choose adam, rmsprop or rmsprop-torch")


OPTIMISERS = ("adam", "rmsprop", "rmsprop-torch")


def clip_by_global_norm(grads: PyTree, norm: Array, max_norm: float | Array) -> PyTree:
    """Scale all gradients so that their global norm, given as `norm`, is at most `max_norm`."""
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def descend(params: PyTree, direction: PyTree, learning_rate: float | Array) -> PyTree:
    """params - learning_rate * direction."""
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
