"""How programs are compiled for a CPU where XLA's own choice is not the quickest, and how long compiling took."""

from __future__ import annotations

import functools
from typing import Any

import jax

from flatirons.types import PyTree

ONE_THREAD_NUMBERS = 100_000
"""A network of up to so many numbers learns in one thread on a host: handing small products to a second one costs more than it saves."""
ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Products and convolutions by Eigen and not by YNNPACK, which JAX 0.10 takes by itself. Measured in turns: an update of two layers of 256
takes .87 of the time, a turn of AlphaZero .85, of AlphaGo's policies and value .87 and .89; networks of pictures the same within 4 %, small
products in a loop up to 1.1, and batches of products (several seeds, MAML's tasks) up to 2.7."""


def options(system: Any, actor: PyTree, *, in_graph: bool, seeds: int = 1) -> dict[str, Any]:
    """`jax.jit`'s `compiler_options` for a program that trains a system with this Actor (arrays or their shapes). A system that is faster
    with `EIGEN` says so: `EIGEN_PRODUCTS = True`."""
    if jax.default_backend() != "cpu" or seeds > 1:
        return {}
    if not in_graph and sum(leaf.size for leaf in jax.tree.leaves(actor)) <= ONE_THREAD_NUMBERS:
        return ONE_THREAD
    return eigen() if getattr(system, "EIGEN_PRODUCTS", False) else {}


@functools.cache
def eigen() -> dict[str, Any]:
    """`EIGEN`, where XLA knows it."""
    try:
        jax.jit(lambda: 0, compiler_options=EIGEN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return EIGEN


def cache_variables() -> dict[str, str]:
    """The environment of a process that is to share this one's cache of compiled programs, where it has one."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")
    values = [jax.config.values[name] for name in names]
    return {name.upper(): str(value) for name, value in zip(names, values, strict=True)} if values[0] is not None else {}


_spent = [0.0]


@functools.cache
def _listen() -> None:
    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            _spent[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)


def seconds() -> float:
    """Seconds this process has spent tracing and compiling since it was first asked."""
    _listen()
    return _spent[0]


def set_apart(parts: dict[str, float], spent: float) -> None:
    """Of `parts`, the seconds that went to each thing, count `spent` as `compile`: that happens inside the first decision and update."""
    for name in ("learning", "inference"):
        inside = min(spent, parts.get(name, 0.0))
        if inside > 0:
            parts[name] -= inside
            parts["compile"] = parts.get("compile", 0.0) + inside
            spent -= inside
