"""Distributions over actions: sample, mode, log_prob, entropy, kl. Leading axes are a batch; the last axis is the distribution's own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.types import Array, Key

ILLEGAL = -1e9
"""Logit of an illegal action: its probability is exactly 0 in float32 and carries no gradient."""


def mask_logits(logits: Array, legal: Any) -> jax.Array:
    """Logits with illegal actions at `ILLEGAL`; `legal` is bool of the same shape (True = legal) or `()` for all legal."""
    return jnp.asarray(logits) if isinstance(legal, tuple) else jnp.where(legal, logits, ILLEGAL)


NEAR = 0.5


def _beyond_linear(x: jax.Array) -> jax.Array:
    """e^x - 1 - x for |x| < `NEAR`, by its series: near 0 it is x² / 2, which the difference itself drowns in rounding. Elsewhere another
    finite number, so that the branch not taken has a derivative too."""
    x = jnp.where(jnp.abs(x) < NEAR, x, 0.0)
    series = jnp.ones_like(x)
    for k in range(8, 2, -1):
        series = 1.0 + x / k * series
    return 0.5 * jnp.square(x) * series


class Categorical(NamedTuple):
    """Over 0 ... n-1, from unnormalised `logits [..., n]`."""

    logits: Any

    def sample(self, key: Key) -> jax.Array:
        """Actions int32 `[...]`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The likeliest action, the first of equals."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> jax.Array:
        """log pi(a), `[...]`."""
        # A one-hot product instead of a gather: its gradient is a product too, where a gather's is a scatter, slow on a CPU.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=self.logits.dtype)
        return jnp.sum(chosen * self.logits, axis=-1) - jax.nn.logsumexp(self.logits, axis=-1)

    def entropy(self) -> jax.Array:
        """In nats, `[...]`; illegal actions contribute nothing."""
        log_p = jax.nn.log_softmax(self.logits, axis=-1)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other: Categorical) -> jax.Array:
        """KL(self || other), `[...]`."""
        log_p, log_q = jax.nn.log_softmax(self.logits, axis=-1), jax.nn.log_softmax(other.logits, axis=-1)
        p, x = jnp.exp(log_p), log_q - log_p
        # As sums of p and of q are 1, p (e^x - 1 - x) in every term: none is negative, and near 0 none cancels another.
        return jnp.sum(jnp.where(jnp.abs(x) < NEAR, p * _beyond_linear(x), jnp.exp(log_q) - p - p * x), axis=-1)


class MultiCategorical(NamedTuple):
    """Independent categoricals, one for each entry of a MultiDiscrete action; `parts` is a tuple of `Categorical`."""

    parts: tuple[Categorical, ...]

    def sample(self, key: Key) -> jax.Array:
        """Actions int32 `[..., len(parts)]`."""
        return jnp.stack([p.sample(k) for p, k in zip(self.parts, jax.random.split(key, len(self.parts)), strict=True)], axis=-1)

    def mode(self) -> jax.Array:
        """The likeliest action."""
        return jnp.stack([p.mode() for p in self.parts], axis=-1)

    def log_prob(self, action: Array) -> jax.Array:
        """log pi(a), `[...]`."""
        return sum((p.log_prob(action[..., i]) for i, p in enumerate(self.parts)), start=jnp.zeros(()))

    def entropy(self) -> jax.Array:
        """In nats, `[...]`."""
        return sum((p.entropy() for p in self.parts), start=jnp.zeros(()))

    def kl(self, other: MultiCategorical) -> jax.Array:
        """KL(self || other), `[...]`."""
        return sum((p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)), start=jnp.zeros(()))


def multi_categorical(logits: Array, nvec: tuple[int, ...], legal: Any) -> MultiCategorical:
    """From the logits of all choices side by side, `[..., sum of nvec]`, and their mask, of the same shape or `()`."""
    cuts = [sum(nvec[:i]) for i in range(1, len(nvec))]
    return MultiCategorical(tuple(Categorical(x) for x in jnp.split(mask_logits(logits, legal), cuts, axis=-1)))


class Normal(NamedTuple):
    """A diagonal Gaussian: `mean [..., d]`, `log_std [..., d]` (its exponential is positive by construction)."""

    mean: Any
    log_std: Any

    def sample(self, key: Key) -> jax.Array:
        """Actions float32 `[..., d]`, unbounded: the task clips them."""
        return self.at(jax.random.normal(key, self.mean.shape))

    def at(self, noise: Array) -> jax.Array:
        """The actions `[..., d]` that standard normal `noise [..., d]` leads to."""
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        """The mean."""
        return self.mean

    def log_prob(self, action: Array) -> jax.Array:
        """Log density, summed over the last axis, `[...]`."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, `[...]`."""
        return jnp.sum(self.log_std + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)

    def kl(self, other: Normal) -> jax.Array:
        """KL(self || other), `[...]`."""
        x = 2.0 * (self.log_std - other.log_std)
        shift = jnp.square(self.mean - other.mean) * jnp.exp(-2.0 * other.log_std)
        spread = jnp.where(jnp.abs(x) < NEAR, _beyond_linear(x), jnp.exp(x) - 1.0 - x)
        return jnp.sum(0.5 * (spread + shift), axis=-1)


class TanhNormal(NamedTuple):
    """tanh of a diagonal Gaussian, on (-1, 1)^d (Haarnoja 2018, appendix C): `mean [..., d]` and `log_std [..., d]` are from before it."""

    mean: Any
    log_std: Any

    def at(self, noise: Array) -> tuple[jax.Array, jax.Array]:
        """The action that standard normal `noise [..., d]` leads to, and log pi of it `[...]`.

        Differentiable in mean and log_std, and exact where the action itself rounds to 1."""
        before = self.mean + jnp.exp(self.log_std) * noise
        gaussian = jnp.sum(-0.5 * jnp.square(noise) - self.log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)
        return jnp.tanh(before), gaussian - self._log_slope(before)

    @staticmethod
    def _log_slope(before: Array) -> jax.Array:
        # log(1 - tanh(u)^2) without the cancellation of that form.
        return jnp.sum(2.0 * (math.log(2.0) - before - jax.nn.softplus(-2.0 * before)), axis=-1)

    def sample(self, key: Key) -> jax.Array:
        """Actions float32 `[..., d]` in [-1, 1]."""
        return jnp.tanh(self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape))

    def mode(self) -> jax.Array:
        """tanh of the mean: the median of each entry, what is taken for the greedy action."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: Array) -> jax.Array:
        """Log density of actions `[..., d]` strictly inside (-1, 1), `[...]`; those on the edge count as 1e-6 from it."""
        before = jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))
        return Normal(self.mean, self.log_std).log_prob(before) - self._log_slope(before)


Distribution = Categorical | MultiCategorical | Normal
