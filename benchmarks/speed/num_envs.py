"""What more environments cost in-graph: PPO on jax:CartPole-v1, from 64 to 16,384 side by side, steps per second and memory.

`python -m benchmarks.speed.num_envs`

Every number of environments is measured in processes of its own, which take turns: 64, 256, ..., 16,384, and again. The other settings
stay, so that a turn and its minibatches grow with the number.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import time
from typing import Any

from benchmarks.record import OURS, header, versions, write
from benchmarks.speed.measure import answer, measure

NUMS = (64, 256, 1024, 4096, 16384)
SETTINGS: dict[str, Any] = {"num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "hidden": [64, 64], "total_steps": 1 << 24}
TASK = "jax:CartPole-v1"


def one(job: dict[str, Any]) -> None:
    """Measure one number of environments, in this process."""
    import jax
    import jax.numpy as jnp

    from flatirons import envs
    from flatirons.core import compiling, trees
    from flatirons.run.loop import turns_function
    from flatirons.systems import ppo

    started = time.perf_counter()
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()}
    config = ppo.Config(num_envs=job["num_envs"], **settings)
    task: Any = envs.make(job["task"], config.num_envs)
    ppo.check(config, task)
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    state = jax.jit(ppo.init, static_argnums=1)(on_device, task, jax.random.key(job["seed"]))
    state_bytes = trees.num_bytes(
        jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)
    )
    chosen = compiling.options(ppo, ppo.actor(state), in_graph=True)
    compiled = jax.jit(turns_function(ppo, task), donate_argnums=1, compiler_options=chosen).lower(on_device, state, jnp.int32(1)).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def turns(n: int) -> None:
        nonlocal state
        state, _ = compiled(on_device, state, jnp.int32(n))
        jax.block_until_ready(state)

    result = measure(turns, ppo.steps_per_turn(config), job["seconds"], started)
    analysis: Any = compiled.memory_analysis()
    answer(
        result
        | {
            "state_bytes": state_bytes,
            "program_bytes": int(analysis.temp_size_in_bytes),
            "peak_above_start_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
            "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "optax")),
        }
    )


def verdict(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether the speed rises or stays (no number of environments is slower than 95 % of any smaller), and whether memory is linear: four
    times the environments take at most four times the program's memory, and a tenth."""
    speeds = [row["steps_per_second"] for row in rows]
    held = all(later >= 0.95 * max(speeds[: i + 1]) for i, later in enumerate(speeds[1:]))
    linear = all(b["program_bytes"] <= 1.1 * a["program_bytes"] * b["num_envs"] / a["num_envs"] for a, b in itertools.pairwise(rows))
    return {"speed_rises_or_stays": held, "memory_linear": linear}


def main() -> None:
    """Measure, print and write num_envs.json."""
    from benchmarks.speed.versus import arguments, measurement

    args = arguments(__doc__)
    result = header("num_envs", "benchmarks.speed.num_envs") | {"task": TASK, "settings": SETTINGS}
    found: dict[int, list[dict[str, Any]]] = {num: [] for num in NUMS}
    for seed in range(args.pairs):
        for num in NUMS:
            job = {"num_envs": num, "task": TASK, "settings": SETTINGS, "seconds": args.seconds, "seed": seed}
            found[num].append(measurement(OURS, "benchmarks.speed.num_envs", job))
            print(f"num_envs {num}: {found[num][-1]['steps_per_second']:,.0f} steps/s", flush=True)
    rows = []
    for num, runs in found.items():
        row: dict[str, Any] = {"num_envs": num, "runs": [run["steps_per_second"] for run in runs]}
        row["steps_per_second"] = statistics.median(row["runs"])
        row |= {name: runs[-1][name] for name in ("state_bytes", "program_bytes", "compile_s")}
        row["peak_above_start_bytes"] = max(run["peak_above_start_bytes"] for run in runs)
        rows.append(row)
    result |= {"versions": {"ours": found[NUMS[0]][0]["versions"]}, "rows": rows, "reached": verdict(rows)}
    write(args.out / "num_envs.json", result)
    print(f"num_envs: {result['reached']}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main()
