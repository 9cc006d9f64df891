"""How long a compiled update from a replay takes: `python -m benchmarks.speed.update_time JSON` in our environment."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.record import versions
from benchmarks.speed.measure import answer
from flatirons import envs, systems
from flatirons.core import compiling
from flatirons.data import rollout


def main() -> None:
    """Measure what the JSON argument asks for: the mean over a stretch of updates, the best of three stretches."""
    job = json.loads(sys.argv[1])
    system = systems.find(job.get("system", "dqn"))[0]
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()}
    config = system.Config(**settings | {"learning_starts": settings["train_every"]})
    task: Any = envs.make(job["task"], config.num_envs, seed=0)
    state = jax.jit(system.init, static_argnums=1)(config, task, jax.random.key(0))
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    acting = system.actor(state)
    # As a run compiles it.
    chosen = compiling.options(system, acting, in_graph=False)
    update = jax.jit(system.update, static_argnums=1, donate_argnums=2, compiler_options=chosen)
    num_steps = config.train_every // config.num_envs
    collector, experience, _ = rollout.rollout(on_device, task, system.policy, acting, state.collector, num_steps)
    state = state._replace(collector=())

    def updates(n: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(n):
            state, metrics = update(on_device, task, state, experience)
            jax.block_until_ready(metrics)
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    updates(10)
    count = max(10, round(job["seconds"] / 3 / (updates(10) / 10)))
    best = min(updates(count) for _ in range(3))
    answer({"milliseconds": 1e3 * best / count, "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "ale-py"))})
    del collector
    task.close()


main()
