"""Adaptation as a function of functions: MAML's inner loop (Finn, Abbeel, Levine 2017, arXiv:1703.03400) around any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from flatirons.types import Array, PyTree


def adapt(
    loss: Callable[[PyTree, Any], Any], params: PyTree, batch: Any, steps: int, learning_rate: float | Array, first_order: bool = False
) -> PyTree:
    """theta' = theta - alpha grad L(theta), `steps` times on one batch (equation 1; Algorithm 2, lines 6 and 7).

    `loss(params, batch)` is a scalar, of any network and any method; `learning_rate` is alpha. The result has the structure of `params`,
    which stay as they are, and can be differentiated in all that went in: in `params` it is a function whose derivative holds the
    Hessian of the loss, I - alpha H for one step. With `first_order` the inner gradients count as constants and that derivative is I
    (section 5.2). `jax.vmap` over batches adapts to many tasks at once.
    """

    def once(params: PyTree) -> PyTree:
        grads = jax.grad(loss)(params, batch)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)

    if steps < 1:
        return params
    # The first step stands outside the loop: under `vmap` over tasks its parameters are still those of all, and their layers' products
    # with the rows of all tasks are one product.
    params = once(params)
    if steps == 1:
        return params
    return jax.lax.scan(lambda p, _: (once(p), None), params, None, length=steps - 1)[0]
