"""MC dropout on the UCI regressions (Gal and Ghahramani 2016, table 1): 20 given splits, rate and tau chosen within each training split.

    for each split
        the last fifth of its training rows is held out; a few networks for every (rate, tau) of the grid learn from the rest
        the pair of best mean held-out log likelihood is chosen; the test rows are not looked at
        a new network with it learns from the whole training split; RMSE and log likelihood of the test rows

All splits and the whole grid are one program: `vmap` over splits, within it over rates, within it over tau. The n-th networks of one split
share their first weights and their random numbers, so that what is compared is rate and tau; those of different splits share nothing. With
several JAX devices (on a CPU: `XLA_FLAGS=--xla_force_host_platform_device_count=2`) the splits are dealt out among them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from flatirons.systems import mc_dropout
from flatirons.systems.mc_dropout import Rows
from flatirons.types import Discrete, FlatironsError, Key

RATES = (0.005, 0.01, 0.05, 0.1)
TAUS = {
    "data:uci-boston": (0.1, 0.15, 0.2),
    "data:uci-concrete": (0.025, 0.05, 0.075),
    "data:uci-energy": (0.25, 0.5, 0.75),
    "data:uci-wine": (2.5, 3.0, 3.5),
    "data:uci-yacht": (0.25, 0.5, 0.75),
}
"""The grids of the paper's authors (github.com/yaringal/DropoutUncertaintyExps)."""
SHARES = (1.5, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0)
"""The grid of another table: how often the noise's variance goes into that of y."""
HELD_OUT = 0.2
"""Share of each training split on which rate and tau are chosen."""
NETWORKS = 3
"""Networks over which a held-out log likelihood is averaged: of one, chance chooses among neighbours of the grid, and for the worse."""


class Found(NamedTuple):
    """One value per split, `[20]`: what was chosen, and how the test rows fared, in the units of y. `validation [20, rates, taus]` is the
    held-out log likelihood that it was chosen by."""

    rate: np.ndarray
    tau: np.ndarray
    rmse: np.ndarray
    log_likelihood: np.ndarray
    one_pass_rmse: np.ndarray
    plain_rmse: np.ndarray
    validation: np.ndarray


def over_splits(one: Callable[..., Any]) -> Callable[..., Any]:
    """`one(...)` for a leading axis of splits, compiled; dealt out over the devices there are."""
    devices = jax.device_count()
    many = jax.vmap(one)

    def run(*arguments: Any) -> Any:
        if devices == 1 or len(jax.tree.leaves(arguments)[0]) % devices:
            return many(*arguments)
        mesh = jax.make_mesh((devices,), ("splits",), axis_types=(AxisType.Auto,))
        axis = PartitionSpec("splits")
        return jax.shard_map(many, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False)(*arguments)

    # Most of the time is in products, which are not compiled here: LLVM's first level makes programs as fast in less than half the time.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {})


def updates(config: Any, num_rows: int, epochs: int) -> Any:
    """The Config whose `total_steps` are so many passes over `num_rows` rows, in whole turns."""
    wanted = epochs * num_rows / min(config.batch_size, num_rows)
    turns = max(1, round(wanted / config.gradient_steps))
    return dataclasses.replace(config, total_steps=turns * config.gradient_steps)


@functools.cache
def search(config: Any, rates: tuple[float, ...], taus: tuple[float, ...], samples: int, networks: int) -> Callable[..., Any]:
    """`(learn, held, keys) -> log likelihood of the held-out rows [splits, rates, taus]`, the mean over networks; Rows with a leading axis
    of splits."""

    def one(learn: Rows, held: Rows, key: Key) -> Any:
        return jnp.mean(jax.vmap(lambda key: over_the_grid(learn, held, key))(jax.random.split(key, networks)), axis=0)

    def over_the_grid(learn: Rows, held: Rows, key: Key) -> Any:
        key_fit, key_score = jax.random.split(key)

        def at(rate: Any, tau: Any) -> Any:
            chosen = dataclasses.replace(cast(Any, config), dropout=rate, tau=tau)
            fitted = mc_dropout.fit(chosen, cast(Any, None), learn, 1, key_fit)
            return mc_dropout.quality(chosen, fitted, held, key_score, samples)["log_likelihood"]

        return jax.vmap(lambda rate: jax.vmap(lambda tau: at(rate, tau))(jnp.array(taus)))(jnp.array(rates))

    return over_splits(one)


@functools.cache
def final(config: Any, samples: int) -> Callable[..., Any]:
    """`(rows, test, keys, rate, tau) -> scores of the test rows`, each `[splits]`."""

    def one(rows: Rows, test: Rows, key: Key, rate: Any, tau: Any) -> Any:
        key_fit, key_score = jax.random.split(key)
        chosen = dataclasses.replace(cast(Any, config), dropout=rate, tau=tau)
        return mc_dropout.quality(chosen, mc_dropout.fit(chosen, cast(Any, None), rows, 1, key_fit), test, key_score, samples)

    return over_splits(one)


def study(
    task: Any,
    *,
    config: Any = None,
    epochs: int = 400,
    rates: Sequence[float] = RATES,
    taus: Sequence[float] | None = None,
    samples: int = 10_000,
    networks: int = NETWORKS,
    search_epochs: int | None = None,
    seed: int = 0,
) -> Found:
    """The whole protocol on a `data:uci-...` task, or a table of one's own (`data:FILE.csv`). `config` gives all but rate, tau and length;
    `samples` is T for the test rows, and by so many `networks` each (rate, tau) is judged, after `search_epochs` passes (None: `epochs`).

    Raises FlatironsError for a task without splits, and for one of classes, which have no tau."""
    if "train" not in getattr(task, "arrays", {}):
        raise FlatironsError(f"{task.name} has no splits; give a table, or one of {', '.join(TAUS)}")
    if isinstance(task.spec.action, Discrete):
        raise FlatironsError(f"the targets of {task.name} are classes, which have no precision tau to choose; give a regression")
    if taus is None:
        taus = TAUS.get(task.name) or [share / float(np.var(task.arrays["y"])) for share in SHARES]
    config = mc_dropout.Config() if config is None else config
    x, y = task.arrays["x"].astype(np.float32), task.arrays["y"][:, None].astype(np.float32)
    train, test = task.arrays["train"], task.arrays["test"]
    cut = train.shape[1] - int(HELD_OUT * train.shape[1])
    keys, final_keys = (jax.random.split(k, len(train)) for k in jax.random.split(jax.random.key(seed)))

    def rows(which: np.ndarray) -> Rows:
        return Rows(x[which], y[which])

    searched = search(updates(config, cut, search_epochs or epochs), tuple(rates), tuple(taus), min(samples, 200), networks)(
        rows(train[:, :cut]), rows(train[:, cut:]), keys
    )
    validation = np.asarray(searched)
    best = validation.reshape(len(train), -1).argmax(axis=1)
    rate, tau = (np.array(values, np.float32)[i] for values, i in zip((rates, taus), np.divmod(best, len(taus)), strict=True))
    whole = updates(config, train.shape[1], epochs)
    found = jax.device_get(final(whole, samples)(rows(train), rows(test), final_keys, rate, tau))
    return Found(rate, tau, found["rmse"], found["log_likelihood"], found["one_pass_rmse"], found["plain_rmse"], validation)


def standard_error(values: np.ndarray) -> float:
    """Of the mean over splits."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


__all__ = ["RATES", "TAUS", "Found", "final", "over_splits", "search", "standard_error", "study", "updates"]
