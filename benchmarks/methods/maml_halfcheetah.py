"""MAML on HalfCheetah, forward or backward, at a tenth of the paper's budget: the return before and after one step.

`python -m benchmarks.methods.maml_halfcheetah [--seeds 1] [--steps 50]`: 50 meta-iterations of 40 tasks x (20 + 20) episodes of 200
decisions, 16 million in all. The bar: above 0 after one step, below 0 before it.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.methods.maml_common import arguments, at_least, at_most, header, over_seeds, save, scored, trained

TASKS = 40


def main() -> None:
    """Train, adapt, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    args = arguments(parser)
    began = header("maml_halfcheetah", "benchmarks.methods.maml_halfcheetah")
    task, seconds = "meta:halfcheetah-direction", []
    scores: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        run, spent = trained(args.runs, "maml-halfcheetah-direction", task, seed, total_steps=args.steps)
        seconds.append(spent)
        scores.append(scored(run, task, TASKS, 1_000 + seed))
        print(f"seed {seed}: {scores[-1]['return_after']} in {spent:.0f} s", flush=True)
    after = over_seeds(scores, "return_after")
    rows = [at_least("return after 1 step", 0.0, after["1"]), at_most("return before it", 0.0, after["0"])]
    save(
        args.out,
        "maml_halfcheetah",
        began,
        rows,
        seeds=args.seeds,
        total_steps=args.steps,
        decisions=args.steps * 40 * 40 * 200,
        return_after=after,
        scores=scores,
        seconds_per_seed=seconds,
    )


if __name__ == "__main__":
    main()
