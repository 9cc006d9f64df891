"""MAML on sinusoids: 5-shot error after 1, 5 and 10 steps on 600 test tasks, beside a network pre-trained on all tasks.

`python -m benchmarks.methods.maml_sinusoid [--seeds 3] [--steps 70000]`. The baseline is fine-tuned at the best of several step sizes,
chosen on the test tasks themselves, in its favour. The bars: Finn et al. 2017, Table 2 (0.67, 0.38, 0.35; pre-trained 2.41, 2.23, 2.19).
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.methods.maml_common import arguments, at_least, at_most, header, over_seeds, save, scored, trained

REACH = {"1": 0.67, "5": 0.38, "10": 0.35}
AIM = {"1": 0.5, "5": 0.3, "10": 0.25}
BASELINE_AT_LEAST = 2.0
RATES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.1)
TASKS = 600
TEST = {"eval_shots": 5, "eval_steps": (0, 1, 5, 10)}


def main() -> None:
    """Train both, score both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=70_000)
    args = arguments(parser)
    began = header("maml_sinusoid", "benchmarks.methods.maml_sinusoid")
    task, seconds = "meta:sinusoid", []
    scores: list[dict[str, Any]] = []
    ten_shot: list[dict[str, Any]] = []
    fine_tuned: dict[float, list[dict[str, Any]]] = {rate: [] for rate in RATES}
    for seed in range(args.seeds):
        run, spent = trained(args.runs, "maml-sinusoid", task, seed, total_steps=args.steps)
        seconds.append(spent)
        scores.append(scored(run, task, TASKS, 1_000 + seed, **TEST))
        ten_shot.append(scored(run, task, TASKS, 1_000 + seed, eval_steps=(0, 1, 5, 10)))
        run, _ = trained(args.runs, "maml-sinusoid-pretrained", task, seed, total_steps=args.steps)
        for rate in RATES:
            fine_tuned[rate].append(scored(run, task, TASKS, 1_000 + seed, inner_rate=rate, **TEST))
        print(f"seed {seed}: {scores[-1]['mse_after']} in {spent:.0f} s", flush=True)
    mse, ten = over_seeds(scores, "mse_after"), over_seeds(ten_shot, "mse_after")
    tuned = {rate: over_seeds(found, "mse_after") for rate, found in fine_tuned.items()}
    baseline = {steps: min(found[steps] for found in tuned.values()) for steps in mse}
    rows = []
    for steps, bar in REACH.items():
        rows.append(at_most(f"K = 5, squared error after {steps} of {TEST['eval_steps'][-1]} steps (aim {AIM[steps]:g})", bar, mse[steps]))
    rows += [at_least(f"the same, pre-trained and fine-tuned, after {steps}", BASELINE_AT_LEAST, baseline[steps]) for steps in REACH]
    rows += [at_most("K = 10 after 1 step: below K = 5's", mse["1"], ten["1"])]
    rows += [at_most("minutes for the training of one seed (aim 2)", 6.0, sum(seconds) / len(seconds) / 60)]
    save(
        args.out,
        "maml_sinusoid",
        began,
        rows,
        seeds=args.seeds,
        total_steps=args.steps,
        scores=scores,
        ten_shot=ten,
        fine_tuned={str(rate): found for rate, found in tuned.items()},
        seconds_per_seed=seconds,
    )


if __name__ == "__main__":
    main()
