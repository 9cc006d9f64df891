"""Ours against a peer in one run: A B A B A B, a fresh process for every measurement so that neither warms the other."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import OURS, RESULTS, ROOT, clean_environment, header, write
from benchmarks.speed.measure import MARK


def arguments(doc: str | None) -> argparse.Namespace:
    """--pairs, --seconds, --only, --out: the same for every speed benchmark."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long one measurement runs, about")
    parser.add_argument("--only", default="", help="only the settings whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the result files")
    return parser.parse_args()


def measurement(python: Path, module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Run one measurement in its own process, in an empty folder and with `environment` besides, and return what it answered. Exits with
    the process's own words where it failed."""
    if not python.exists():
        raise SystemExit(f"{python.relative_to(ROOT)} is missing: run `make install` (ours), `make peers` (the peers)")
    command = [str(python), "-m", module, json.dumps(job)]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(command, cwd=scratch, env=clean_environment(**environment), capture_output=True, text=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not answers:
        raise SystemExit(f"{module} failed with status {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(answers[-1].removeprefix(MARK))


CONVOLUTIONS = {
    # (height and width of the result, filters, inputs to each), then the width of the dense layer
    "nature": (((20, 32, 8 * 8 * 4), (9, 64, 4 * 4 * 32), (7, 64, 3 * 3 * 64)), 512),
    "playing-atari": (((20, 16, 8 * 8 * 4), (9, 32, 4 * 4 * 16)), 256),
    "minatar": (((8, 16, 3 * 3 * 4),), 128),
}
"""Layers of the papers' networks on their images (84 x 84 x 4; MinAtar Breakout's 10 x 10 x 4)."""


def forward_flops(settings: dict[str, Any], obs: int, actions: int) -> tuple[float, float]:
    """Floating-point operations of one row through the network, in all and in its first layer: 2mn a layer."""
    network = settings.get("network")
    if network is None:
        widths = [obs, *settings["hidden"], actions]
        layers = [2 * m * n for m, n in itertools.pairwise(widths)]
    else:
        convolutions, dense = CONVOLUTIONS[network]
        layers = [2 * size * size * filters * inputs for size, filters, inputs in convolutions]
        size, filters, _ = convolutions[-1]
        layers += [2 * size * size * filters * dense, 2 * dense * actions]
    return sum(layers), layers[0]


def update_flops(settings: dict[str, Any], obs: int, actions: int) -> float:
    """One DQN update: the row and its successor forward (Double DQN: the successor twice), the row backward at twice the cost, less the
    gradient of the input, which nobody needs."""
    forward, first = forward_flops(settings, obs, actions)
    return settings["batch_size"] * ((5 if settings.get("double") else 4) * forward - first)


def sac_update_flops(settings: dict[str, Any], obs: int, actions: int) -> float:
    """One SAC update of two critics: the policy forward at s' and s and back once, each target critic forward, each critic forward and back
    at the stored action, and at the policy's own action forward and back to that action alone."""

    def layers(sizes: list[int]) -> list[int]:
        return [2 * m * n for m, n in itertools.pairwise(sizes)]

    policy, critic = layers([obs, *settings["hidden"], 2 * actions]), layers([obs + actions, *settings["hidden"], 1])
    # A gradient in weights costs a forward pass, one in inputs another; the first layer needs none in the observation.
    policy_cost = 4 * sum(policy) - policy[0]
    to_action = sum(critic) - critic[0] + 2 * actions * settings["hidden"][0]
    critic_cost = sum(critic) + (3 * sum(critic) - critic[0]) + (sum(critic) + to_action)
    return settings["batch_size"] * (policy_cost + 2 * critic_cost)


def flops_per_step(system: str, settings: dict[str, Any], obs: int, actions: int) -> float:
    """Floating-point operations a decision costs in matrix products: what the roof divides by. Forward 2mn, backward twice that."""
    if system == "ppo" and "network" in settings:
        # One torso for both heads; acting, then the values of a row and of its successor, then the epochs.
        both, first = forward_flops(settings, obs, actions + 1)
        return 3 * both + (3 * both - first) * settings["num_epochs"]
    if system == "trpo":
        widths = [obs, *settings["hidden"]]
        tower = sum(2 * m * n for m, n in itertools.pairwise(widths))
        pi, v = tower + 2 * widths[-1] * actions, tower + 2 * widths[-1]
        # Acting, the gradient, a line search of one try; each product is a pass forward (weights and inputs) and one back (the same).
        step = pi + 3 * pi + 2 * pi + 4 * pi * (settings["cg_iterations"] + 1)
        return step + 2 * v + 3 * v * settings["value_epochs"]
    if system == "ppo":
        widths = [obs, *settings["hidden"]]
        tower = sum(2 * m * n for m, n in itertools.pairwise(widths))
        both = 2 * tower + 2 * widths[-1] * (actions + 1)
        return both + 3 * both * settings["num_epochs"]
    updates = settings["gradient_steps"] / settings["train_every"]
    if system == "sac":
        return (
            sum(2 * m * n for m, n in itertools.pairwise([obs, *settings["hidden"], 2 * actions]))
            + sac_update_flops(settings, obs, actions) * updates
        )
    return forward_flops(settings, obs, actions)[0] + update_flops(settings, obs, actions) * updates


def compare(
    name: str,
    module: str,
    args: argparse.Namespace,
    *,
    system: str,
    task: str,
    peer_task: str,
    settings: dict[str, Any],
    sizes: tuple[int, int],
    peer_name: str,
    peer: tuple[Path, str],
    peer_threads: tuple[int | None, ...] = (None,),
    notes: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """Measure, print and write `<out>/<name>.json`; None where `--only` leaves it out.

    `sizes` are (values of an observation, outputs of the policy or Q head). With more than one entry in `peer_threads` (None: the peer's
    default) each is tried once first and the pairs use the peer's best.
    """
    if args.only not in name:
        return None
    result = header(name, module)
    job = {"system": system, "task": task, "settings": settings, "seconds": args.seconds, "seed": 0, "threads": None}
    peer_job = job | {"task": peer_task}
    if result["machine"]["load_before"] > 0.5:
        print(f"{name}: load average {result['machine']['load_before']}: this machine is busy, its timings will be off", file=sys.stderr)

    roof_job = {"task": task, "num_envs": settings["num_envs"], "seconds": min(3.0, args.seconds)}
    roof = measurement(OURS, "benchmarks.speed.roof", roof_job)["roof"]
    flops = flops_per_step(system, settings, *sizes)
    roof["matrix_flops_per_step"] = flops
    roof["steps_per_second_at_roof"] = 1 / (flops / (roof["matrix_product_gflops"] * 1e9) + 1 / roof["environment_steps_per_second"])

    trials: dict[str, float] = {}
    if len(peer_threads) > 1:
        for threads in peer_threads:
            trials[str(threads or "default")] = measurement(*peer, peer_job | {"threads": threads})["steps_per_second"]
        peer_job["threads"] = max(peer_threads, key=lambda threads: trials[str(threads or "default")])

    ours_runs, peer_runs = [], []
    for index in range(args.pairs):
        ours_runs.append(measurement(OURS, "benchmarks.speed.ours", job | {"seed": index}))
        peer_runs.append(measurement(*peer, peer_job | {"seed": index}))
        a, b = ours_runs[-1]["steps_per_second"], peer_runs[-1]["steps_per_second"]
        print(f"{name}: pair {index + 1}: ours {a:,.0f} steps/s, {peer_name} {b:,.0f} steps/s, ratio {a / b:.2f}", flush=True)

    pairs = [
        {"ours": a["steps_per_second"], "peer": b["steps_per_second"], "ratio": a["steps_per_second"] / b["steps_per_second"]}
        for a, b in zip(ours_runs, peer_runs, strict=True)
    ]
    ratios = [pair["ratio"] for pair in pairs]
    result |= {
        "system": system,
        "task": task,
        "peer_name": peer_name,
        "peer_task": peer_task,
        "versions": {"ours": ours_runs[0]["versions"], "peer": peer_runs[0]["versions"]},
        "settings": settings,
        "notes": list(notes),
        "pairs": pairs,
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours_steps_per_second": statistics.median(pair["ours"] for pair in pairs),
        "peer_steps_per_second": statistics.median(pair["peer"] for pair in pairs),
        "ours_compile_s": statistics.median(run["compile_s"] for run in ours_runs),
        "peer_compile_s": statistics.median(run["compile_s"] for run in peer_runs),
        "ours_return_after": [run["return_after"] for run in ours_runs],
        "peer_return_after": [run["return_after"] for run in peer_runs],
        "peer_threads": peer_job["threads"] or "default",
        "peer_thread_trials": trials,
        "seconds_per_measurement": args.seconds,
        "roof": roof,
    }
    write(args.out / f"{name}.json", result)
    print(
        f"{name}: median ratio {result['ratio_median']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {args.out / f'{name}.json'}",
        flush=True,
    )
    return result


def update_against_roof(
    args: argparse.Namespace, name: str, module: str, system: str, task: str, settings: dict[str, Any], flops: float, gflops: float
) -> None:
    """One update's time beside the time that its matrix products (`flops`) take at the measured rate (`gflops`); one result file."""
    result = header(name, module)
    job = {"system": system, "task": task, "settings": settings, "seconds": args.seconds}
    answers = [measurement(OURS, "benchmarks.speed.update_time", job) for _ in range(args.pairs)]
    runs = [found["milliseconds"] for found in answers]
    at_roof, median = flops / (gflops * 1e6), statistics.median(runs)
    result |= {"versions": answers[0]["versions"], "task": task, "settings": settings}
    result |= {"milliseconds": runs, "milliseconds_median": median}
    result |= {"matrix_product_gflops": gflops, "milliseconds_at_roof": at_roof, "ratio_to_roof": median / at_roof}
    write(args.out / f"{name}.json", result)
    print(f"{name}: {median:.1f} ms an update, {at_roof:.1f} ms at the roof: {median / at_roof:.2f}", flush=True)
