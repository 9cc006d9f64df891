"""A system that needs no training, for the tests of the page: it plays the first legal move and finds every position worth 0.25."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flatirons import types


@types.config
class Config:
    num_simulations: int = 16


class Analysis(NamedTuple):
    action: Any
    visits: Any
    q: Any
    prior: Any
    value: Any
    network_value: Any
    legal: Any


def analyse(config: Any, task: Any, actor: Any, model: Any, key: Any, *, num_simulations: int) -> Analysis:
    legal = model.inner.legal
    first = jnp.argmax(legal, axis=1)
    prior = legal / legal.sum(axis=1, keepdims=True)
    visits = jnp.zeros(legal.shape, jnp.int32).at[jnp.arange(legal.shape[0]), first].set(num_simulations)
    value = jnp.full(legal.shape[:1], 0.25)
    return Analysis(first, visits, jnp.where(visits > 0, 0.25, 0.0), prior, value, value / 2, legal)
