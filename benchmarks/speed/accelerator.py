"""In-graph systems on whatever device JAX finds, from a laptop's settings to an accelerator's: decisions a second, compile time, memory.

`python -m benchmarks.speed.accelerator [--seconds 4] [--only alphazero]`

Every setting has a process of its own. They compile side by side, two to a core, and are then timed one after another while the
rest wait. The program is the runner's, with its updates. Beside them stands the device's own float32 matrix product.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, header, versions, write
from benchmarks.speed.measure import MARK, answer, measure

PPO: dict[str, Any] = {"num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "hidden": [64, 64], "total_steps": 1 << 28}
SEARCH: dict[str, Any] = {"num_steps": 8, "num_simulations": 32, "learning_starts": 1, "gradient_steps": 8, "total_steps": 1 << 28}
MINATAR, BOARD = "pgx:minatar-breakout", {"num_envs": 1_024, "batch_size": 2_048, "buffer_size": 2**19}
SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    *(("ppo", "jax:CartPole-v1", PPO | {"num_envs": n}) for n in (64, 1_024, 16_384, 131_072)),
    *(("ppo", MINATAR, {"num_envs": n, "total_steps": 1 << 28}) for n in (64, 1_024, 8_192)),
    ("dqn", MINATAR, {"total_steps": 1 << 28}),
    ("a3c", MINATAR, {"num_envs": 1_024, "total_steps": 1 << 28}),
    ("sac", "jax:Pendulum-v1", {}),
    ("maml", "meta:sinusoid", {"num_envs": 1_024}),
    *(("alphazero", "pgx:connect_four", SEARCH | {"num_envs": n, "batch_size": 2 * n, "buffer_size": 2**18}) for n in (64, 512, 4_096)),
    *(("alphazero", f"pgx:{game}", SEARCH | BOARD) for game in ("othello", "gardner_chess", "go_9x9")),
]
"""(system, task, settings above the preset that the task has): each setting's `learning_starts` passes before the clock starts."""


def one(job: dict[str, Any]) -> None:
    """Compile one setting in this process, say so, wait for a line, measure."""
    started = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from flatirons import envs
    from flatirons.core import compiling
    from flatirons.run.job import choose, make_config, on_device
    from flatirons.run.loop import turns_function

    system, settings, preset = choose(job["system"], None, job["task"])
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()}
    config = make_config(system, settings | given)
    task: Any = envs.make(job["task"], config.num_envs)
    system.check(config, task)
    numbers = on_device(config)
    state = jax.jit(system.init, static_argnums=1)(numbers, task, jax.random.key(0))
    chosen = compiling.options(system, system.actor(state), in_graph=True)
    loop = jax.jit(turns_function(system, task), donate_argnums=1, compiler_options=chosen)
    compiled = loop.lower(numbers, state, jnp.int32(1)).compile()
    compiled_s = time.perf_counter() - started

    def turns(n: int) -> None:
        nonlocal state
        state, _ = compiled(numbers, state, jnp.int32(n))
        jax.block_until_ready(state)

    print("READY", flush=True)
    sys.stdin.readline()
    steps = system.steps_per_turn(config)
    warm = getattr(config, "learning_starts", 0) + 4 * steps
    found = measure(turns, steps, job["seconds"], time.perf_counter(), warm_steps=warm)
    memory = jax.devices()[0].memory_stats() or {}
    answer(
        {"steps_per_second": found["steps_per_second"], "seconds": found["seconds"], "start_s": compiled_s, "preset": preset}
        | {"num_envs": config.num_envs, "peak_bytes": memory.get("peak_bytes_in_use")}
    )


def device() -> None:
    """The device and its float32 matrix product, 4096 x 4096, on random numbers: as JAX multiplies by default, and in full precision."""
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, 4096, 4096))
    flops = {}
    for precision in ("default", "highest"):
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        jax.block_until_ready([product(a, b) for _ in range(3)])
        began, count = time.perf_counter(), 20
        jax.block_until_ready([product(a, b) for _ in range(count)])
        flops[f"matmul_{precision}_flops"] = 2 * 4096**3 * count / (time.perf_counter() - began)
    found = jax.devices()[0]
    answer(
        {"device": found.device_kind, "platform": found.platform}
        | flops
        | {"versions": versions(("jax", "jaxlib", "numpy", "pgx", "mctx"))}
    )


def answers(text: str) -> dict[str, Any] | None:
    """The last answer in a process's output; None where there is none."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1].removeprefix(MARK)) if lines else None


def main() -> None:
    """Measure, print and write accelerator.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long one measurement runs, about")
    parser.add_argument("--only", default="", help="only what has this in its system or task")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the result file")
    args = parser.parse_args()
    head = header("accelerator", "benchmarks.speed.accelerator")
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "benchmarks.speed.accelerator"]
    machine = answers(subprocess.run([*command, "device"], env=environment, capture_output=True, text=True, check=True).stdout)
    if machine is None:
        raise SystemExit("the device's own measurement gave no answer")
    print(machine, flush=True)
    head |= {"versions": {"ours": machine.pop("versions")}, "device": machine}
    jobs = [
        {"system": system, "task": task, "settings": settings, "seconds": args.seconds}
        for system, task, settings in SETTINGS
        if args.only in system or args.only in task
    ]
    rows, width = [], 2 * (os.cpu_count() or 1)
    for begin in range(0, len(jobs), width):
        with tempfile.TemporaryDirectory() as scratch:
            began: list[tuple[dict[str, Any], subprocess.Popen[str], Path]] = []
            for i, job in enumerate(jobs[begin : begin + width]):
                errors = Path(scratch) / str(i)
                process = subprocess.Popen(
                    [*command, json.dumps(job)],
                    env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors.open("w"), text=True,
                )  # fmt: skip
                began.append((job, process, errors))
            for _, process, _ in began:
                for line in process.stdout or ():
                    if line.startswith("READY"):
                        break
            for job, process, errors in began:
                out, _ = process.communicate("go\n")
                found = answers(out)
                if found is None:
                    found = {"failed": errors.read_text()[-600:]}
                rows.append(job | found)
                print(job["system"], job["task"], found, flush=True)
                write(args.out / "accelerator.json", head | {"rows": rows})


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] == "device":
        device()
    elif len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main()
