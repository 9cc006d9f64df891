"""What this machine could do at best, beside which a speed means something: `python -m benchmarks.speed.roof JSON` in our environment.

Matrix product in GFLOP/s, and the bare environment under random actions: ours as training steps it, and Gymnasium's own loop.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.measure import answer
from flatirons import envs
from flatirons.types import Discrete, HostTask, InGraphTask


def rate(work: Callable[[int], None], seconds: float) -> float:
    """Repetitions a second of `work(n)`, the best of three stretches (a roof is what is possible, so not the median)."""
    work(1)
    count, elapsed = 1, 0.0
    while elapsed < seconds / 10:
        begin = time.perf_counter()
        work(count)
        elapsed = time.perf_counter() - begin
        count *= 2
    count = max(1, int(count / 2 / elapsed * seconds / 3))
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        work(count)
        best = min(best, time.perf_counter() - begin)
    return count / best


def matrix_product(seconds: float, size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product under JAX, all cores."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)

    def work(n: int) -> None:
        for _ in range(n):
            product(a).block_until_ready()

    return rate(work, seconds) * 2 * size**3 / 1e9


def in_graph(task: InGraphTask, seconds: float) -> float:
    """Environment steps a second of a compiled loop with a fixed random table of actions and no policy."""
    if not isinstance(task.spec.action, Discrete):
        raise SystemExit("the in-graph roof is written for discrete actions")
    actions = jax.random.randint(jax.random.key(1), (1024, task.num_envs), 0, task.spec.action.n, dtype=jnp.int32)

    @functools.partial(jax.jit, donate_argnums=0)
    def loop(env: object, key: jax.Array, n: jax.Array) -> tuple[object, jax.Array]:
        def one(_: jax.Array, carry: tuple[object, jax.Array]) -> tuple[object, jax.Array]:
            env, total = carry
            keys = jax.random.split(key, 1024)

            def inner(env: object, x: tuple[jax.Array, jax.Array]) -> tuple[object, jax.Array]:
                env, outcome = task.step(x[0], env, x[1])
                return env, jnp.sum(outcome.reward)

            env, rewards = jax.lax.scan(inner, env, (keys, actions))
            return env, total + jnp.sum(rewards)

        return jax.lax.fori_loop(0, n, one, (env, jnp.float32(0)))

    env = jax.jit(task.reset)(jax.random.key(2))

    def work(n: int) -> None:
        nonlocal env
        env, total = loop(env, jax.random.key(3), jnp.int32(n))
        total.block_until_ready()

    return rate(work, seconds) * 1024 * task.num_envs


def on_host(task: HostTask, seconds: float) -> float:
    """Environment steps a second through our door, random actions drawn before."""
    random = np.random.default_rng(0)
    if isinstance(task.spec.action, Discrete):
        actions = random.integers(0, task.spec.action.n, (64, task.num_envs)).astype(np.int32)
    else:
        actions = random.uniform(-1, 1, (64, task.num_envs, len(task.spec.action.low))).astype(np.float32)  # type: ignore[union-attr]
    task.reset(0)

    def work(n: int) -> None:
        for i in range(n):
            task.step(actions[i % 64])

    return rate(work, seconds) * task.num_envs


def gymnasium_loop(task: str, seconds: float) -> float:
    """Environment steps a second of `gymnasium.make(task)` in the plainest loop."""
    env = gymnasium.make(task)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]

    def work(n: int) -> None:
        for i in range(n):
            _, _, terminated, truncated, _ = env.step(actions[i % 64])
            if terminated or truncated:
                env.reset()

    return rate(work, seconds)


def main() -> None:
    """Measure what the JSON argument asks for."""
    job = json.loads(sys.argv[1])
    result: dict[str, float] = {"matrix_product_gflops": matrix_product(job["seconds"])}
    task = envs.make(job["task"], job["num_envs"], seed=0)
    if task.in_graph:
        result["environment_steps_per_second"] = in_graph(task, job["seconds"])  # type: ignore[arg-type]
    else:
        result["environment_steps_per_second"] = on_host(task, job["seconds"])  # type: ignore[arg-type]
        if not job["task"].startswith("ALE/"):  # Gymnasium's own Atari gives raw frames, another environment.
            result["gymnasium_steps_per_second"] = gymnasium_loop(job["task"], job["seconds"])
    answer({"roof": result})


if __name__ == "__main__":
    main()
