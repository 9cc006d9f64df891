"""Rejax's PPO, evaluation left out: `python -m benchmarks.speed.peer_rejax JSON` in the JAX peers' environment.

`train_iteration` is what `rejax.PPO.train` repeats between two evaluations; calling it in the same kind of loop leaves those out.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import rejax

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure


def main() -> None:
    """Measure what the JSON argument asks for."""
    job = json.loads(sys.argv[1])
    settings = job["settings"]
    started = time.perf_counter()
    algo = rejax.PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=settings["num_epochs"],
        num_minibatches=settings["num_minibatches"],
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_eps=settings["clip_eps"],
        ent_coef=settings["ent_coef"],
        vf_coef=settings["value_coef"],
        max_grad_norm=settings["max_grad_norm"],
    )
    state = jax.jit(algo.init_state)(jax.random.key(job["seed"]))
    loop = jax.jit(lambda ts, n: jax.lax.fori_loop(0, n, lambda _, s: algo.train_iteration(s), ts), donate_argnums=0)

    def turns(n: int) -> None:
        nonlocal state
        state = jax.block_until_ready(loop(state, n))

    result = measure(turns, settings["num_envs"] * settings["num_steps"], job["seconds"], started)
    _, returns = algo.eval_callback(algo, state, jax.random.key(job["seed"] + 1))
    answer(
        result
        | {"return_after": float(returns.mean()), "versions": versions(("jax", "jaxlib", "numpy", "rejax", "gymnax", "flax", "optax"))}
    )


main()
