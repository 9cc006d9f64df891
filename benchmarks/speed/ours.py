"""Flatirons, driven as its runner drives it: `python -m benchmarks.speed.ours JSON` in our environment.

In-graph through the runner's own compiled loop over turns; on a host as its Python loop goes; metrics summed as it sums them. Left out is
what SB3 and Rejax are not asked for either: files, evaluation and checkpoints.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure
from flatirons import envs, systems
from flatirons.core import compiling
from flatirons.run import metrics
from flatirons.run.loop import turns_function
from flatirons.types import HostTask, Task


def in_graph(system: Any, config: Any, task: Task, key: jax.Array) -> tuple[Callable[[int], None], Callable[[], dict[str, Any]]]:
    """(turns, report): n turns in one compiled loop, and the runner's row over the last call."""
    state = jax.jit(system.init, static_argnums=1)(config, task, key)
    chosen = compiling.options(system, system.actor(state), in_graph=True)
    loop = jax.jit(turns_function(system, task), donate_argnums=1, compiler_options=chosen)
    compiled = loop.lower(config, state, jnp.int32(1)).compile()
    row: dict[str, Any] = {}

    def turns(n: int) -> None:
        nonlocal state, row
        state, total = compiled(config, state, jnp.int32(n))
        row = metrics.to_row(jax.device_get(total), n)
        jax.block_until_ready(state)

    return turns, lambda: row


def on_host(system: Any, config: Any, task: HostTask, key: jax.Array) -> tuple[Callable[[int], None], Callable[[], dict[str, Any]]]:
    """The same on a host task: `step` in Python around a compiled update, every metric summed and read once a call."""
    state = jax.jit(system.init, static_argnums=1)(config, task, key)
    sums = metrics.HostSum()

    def packed(config: Any, task: Task, state: Any, *experience: Any) -> tuple[Any, Any]:
        state, found = system.update(config, task, state, *experience)
        return state, sums.pack(found)

    chosen = compiling.options(system, system.actor(state), in_graph=False)
    update = jax.jit(packed, static_argnums=1, donate_argnums=2, compiler_options=chosen)
    row: dict[str, Any] = {}

    def turns(n: int) -> None:
        nonlocal state, row
        for _ in range(n):
            state, found = system.step(config, task, state, update=update)
            sums.add(found)
        row = sums.read()
        jax.block_until_ready(state)

    return turns, lambda: row


def main() -> None:
    """Measure what the JSON argument asks for."""
    job = json.loads(sys.argv[1])
    started = time.perf_counter()
    system, _, _ = systems.find(job["system"])
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()}
    config = system.Config(**settings)
    task: Any = envs.make(job["task"], config.num_envs, seed=job["seed"])
    system.check(config, task)
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    turns, report = (in_graph if task.in_graph else on_host)(system, on_device, task, jax.random.key(job["seed"]))
    warm_steps = settings.get("learning_starts", 0)
    result = measure(turns, system.steps_per_turn(config), job["seconds"], started, warm_steps)
    answer(
        result
        | {
            "return_after": report()["episode_return"],
            "notes": list(task.notes),
            "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "optax", "gymnasium", "mujoco")),
        }
    )
    task.close()


main()
