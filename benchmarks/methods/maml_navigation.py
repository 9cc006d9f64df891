"""MAML in the plane: mean return after 0, 1, 2 and 3 steps on goals that it has not seen.

`python -m benchmarks.methods.maml_navigation [--seeds 3] [--steps 200]`. The bars: Finn et al. 2017, appendix (-40.41, -11.68,
-3.33, -3.23).
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.methods.maml_common import arguments, at_least, header, over_seeds, save, scored, trained

REACH = {"1": -12.0, "2": -3.5}
AIM = {"1": -11.7, "2": -3.3, "3": -3.2}
GOALS = 200


def main() -> None:
    """Train, adapt, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    args = arguments(parser)
    began = header("maml_navigation", "benchmarks.methods.maml_navigation")
    task, seconds = "meta:navigation", []
    scores: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        run, spent = trained(args.runs, "maml-navigation", task, seed, total_steps=args.steps)
        seconds.append(spent)
        scores.append(scored(run, task, GOALS, 1_000 + seed))
        print(f"seed {seed}: {scores[-1]['return_after']} in {spent:.0f} s", flush=True)
    after = over_seeds(scores, "return_after")
    rows = [
        at_least(f"return after {steps} steps (aim {AIM[steps]:g})", bar, after[steps], [score["return_after"][steps] for score in scores])
        for steps, bar in REACH.items()
    ]
    save(
        args.out,
        "maml_navigation",
        began,
        rows,
        seeds=args.seeds,
        total_steps=args.steps,
        return_after=after,
        scores=scores,
        seconds_per_seed=seconds,
    )


if __name__ == "__main__":
    main()
