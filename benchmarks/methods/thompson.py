"""Thompson sampling against epsilon-greedy, batches to a reward: `python -m benchmarks.methods.thompson [--seeds 5] [--only NAME ...]`

The paper's experiment (Gal and Ghahramani 2016, section 5.3) in our own world of its kind, jax:Forager-v1: the same Q-network, replay and
optimiser for all; no learning for 25 batches of 120; then how many batches until the mean reward of 1,000 decisions since is above 1.05.
Epsilon falls over 200,000 decisions, as in the demonstration the paper starts from; two faster schedules stand beside it, which the
paper has not. Bars set before: a third of epsilon-greedy's batches to reach, a seventh to aim at.

The paper's reward is 1. In this world going straight in the open already pays nearly that: a network that never learns (arm "untrained",
whose epsilon falls over the burn-in) passes 1 in some seeds, and must not pass what is counted here.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons import envs
from flatirons.systems import dqn

BATCH, BURN_IN, WINDOW, THRESHOLD = 120, 25, 1_000, 1.05
# Preset, what is changed in it, batches that it runs.
ARMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "thompson": ("dqn-thompson", {}, 600),
    "thompson-episode": ("dqn-thompson-episode", {}, 300),
    "epsilon-greedy": ("dqn-forager", {}, 1_675),
    "epsilon-greedy-20k": ("dqn-forager", {"epsilon_steps": 20_000}, 300),
    "epsilon-greedy-5k": ("dqn-forager", {"epsilon_steps": 5_000}, 300),
    "untrained": ("dqn-forager", {"learning_rate": 0.0, "epsilon_end": 0.0, "epsilon_steps": BURN_IN * BATCH}, 300),
}


def rewards_of(preset: str, changed: dict[str, Any], batches: int, seeds: list[int]) -> tuple[np.ndarray, float]:
    """The reward of every decision, `[seeds, batches * BATCH]`, and the seconds it took, compiling included: one program for all seeds."""
    config: Any = dqn.Config(**(dict(dqn.PRESETS[preset].config) | changed))
    task: Any = envs.make("jax:Forager-v1", config.num_envs)

    def watched(config: Any, task: Any, state: Any, experience: Any) -> Any:
        state, metrics = dqn.update(config, task, state, experience)
        return state, metrics | {"reward": jnp.mean(experience.reward)}

    @functools.partial(jax.jit, donate_argnums=0)
    def some(state: Any) -> Any:
        def turn(state: Any, _: Any) -> Any:
            state, metrics = jax.vmap(lambda s: dqn.step(config, task, s, update=watched))(state)
            return state, metrics["reward"]

        return jax.lax.scan(turn, state, None, length=BATCH * BURN_IN)

    began = time.perf_counter()
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    state, parts = jax.jit(jax.vmap(lambda key: dqn.init(config, task, key)))(keys), []
    for _ in range(batches // BURN_IN):
        state, reward = some(state)
        parts.append(np.asarray(reward).T)
    return np.concatenate(parts, axis=1), round(time.perf_counter() - began, 1)


def batches_to_threshold(rewards: np.ndarray) -> float | None:
    """Batches after the burn-in until the mean of WINDOW rewards in a row since is above THRESHOLD; None where it never is."""
    since = rewards[BURN_IN * BATCH :]
    mean = np.convolve(since, np.full(WINDOW, 1.0 / WINDOW), mode="valid")
    passed = np.arange(WINDOW, len(since) + 1)[mean > THRESHOLD]
    return None if len(passed) == 0 else float(passed[0] / BATCH)


def rows_of(arms: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown, once both arms of the comparison have run. An arm that never passed counts as if it had at its end."""
    if not {"thompson", "epsilon-greedy"} <= set(arms):
        return []
    compared = {name: arm for name, arm in arms.items() if name != "untrained"}
    ends = {name: float(arm["batches"] - BURN_IN) for name, arm in compared.items()}
    mean = {name: float(np.mean([ends[name] if x is None else x for x in arm["batches_to_threshold"]])) for name, arm in compared.items()}
    rows = []
    for name in mean:
        share, gated = mean[name] / mean["epsilon-greedy"], name == "thompson"
        rows.append(
            {
                "what": f"{name}: mean batches to a reward of {THRESHOLD}, and their share of epsilon-greedy's",
                "reach": "at most 1/3 (aim 1/7)" if gated else "–",
                "measured": f"{mean[name]:.1f}, {share:.3f}",
                "reached": share <= 1 / 3 if gated else True,
            }
        )
    if "untrained" in arms:
        passed = [x for x in arms["untrained"]["batches_to_threshold"] if x is not None]
        every = len(arms["untrained"]["batches_to_threshold"])
        rows.append(
            {
                "what": f"a network that never learns: seeds that pass a reward of {THRESHOLD}",
                "reach": "none",
                "measured": f"{len(passed)} of {every}",
                "reached": not passed,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS / "methods")
    args = parser.parse_args()
    result = header("mc-dropout-thompson", "benchmarks.methods.thompson")
    seeds, place = list(range(args.seeds)), args.out / "mc-dropout-thompson.json"
    # Arms of an earlier call are kept, so that each may be run by itself.
    arms: dict[str, Any] = {} if set(args.only) == set(ARMS) or not place.exists() else json.loads(place.read_text())["arms"]
    for name in args.only:
        preset, changed, batches = ARMS[name]
        rewards, seconds = rewards_of(preset, changed, batches, seeds)
        passed = [batches_to_threshold(row) for row in rewards]
        curve = rewards[:, : rewards.shape[1] // 3_000 * 3_000].reshape(len(seeds), -1, 3_000).mean(axis=2)
        arms[name] = {
            "preset": preset, "changed": changed, "batches": batches, "batches_to_threshold": passed, "seconds": seconds,
            "mean_reward_of_25_batches": np.round(curve, 4).tolist(), "last": round(float(curve[:, -5:].mean()), 4),
        }  # fmt: skip
        print(f"{name}: batches {passed}, at the end {arms[name]['last']}, {seconds:.0f} s", flush=True)
        rows = rows_of(arms)
        about = {"batch": BATCH, "burn_in": BURN_IN, "window": WINDOW, "threshold": THRESHOLD, "seeds": seeds}
        found = {"arms": arms, "rows": rows, "reached": all(r["reached"] for r in rows) and bool(rows)}
        write(place, result | {"versions": versions(("flatirons", "jax", "jaxlib", "numpy")), "settings": about} | found)
    for r in rows_of(arms):
        print(r)


if __name__ == "__main__":
    main()
