"""EWC around DQN on three MinAtar games in turn, two visits of 300,000 decisions each: against no penalty, an L2 anchor, separate agents.

    python -m benchmarks.methods.ewc_dqn [--seeds 0-2] [--modes ewc,sgd] [--runs DIR]

Trains what is missing (a run that was cut goes on bit for bit, a finished one is kept), and writes the result once every seed of every mode
is there; several of these may run side by side on different --modes or --seeds. A game's score is its mean return over 100 greedy episodes
divided by the mean over seeds of the separate agents', clipped to 1; a run's is the sum over games. The settings were chosen on seeds from
100 on. The bars below were set before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.learning.run import seed_list
from benchmarks.learning.summary import bootstrap
from benchmarks.record import RESULTS, ROOT, header, versions, write

NAME = "ewc_dqn"
GAMES = ("pgx:minatar-breakout", "pgx:minatar-freeway", "pgx:minatar-space_invaders")
TASK = f"sequence:{','.join(GAMES)}"
REACH_ABOVE_SGD, AIM_OF_THREE = 0.5, 2.6
"""How far ewc's sum of scores must be above sgd's (lower end of the interval over seeds), and what it should come to."""
SEEDS = range(3)
VISIT = 300_000
EPISODES = 100
MODES: dict[str, str] = {"sgd": "sgd-dqn", "ewc": "ewc-dqn", "l2": "l2-dqn", "separate": "separate-dqn"}


def finished(mode: str, seed: int, home: Path, visit: int, more: Mapping[str, Any]) -> Any:
    """The run of one mode and seed, trained as far as it is not; evaluated on every game four times a visit."""
    folder = home / f"{mode}-{seed}"
    if (folder / "checkpoints").exists():
        return fi.resume(folder, quiet=True)
    return fi.train(
        MODES[mode], TASK, seed=seed, out=folder, overwrite=True, quiet=True, visit_steps=visit, total_steps=6 * visit,
        eval_every=visit // 4, eval_episodes=20, keep=1, **more,
    )  # fmt: skip


def curve(run: Any) -> list[dict[str, Any]]:
    """The evaluations of a run: the mean return of each game."""
    return [{name: row[name] for name in ("step", *GAMES)} for row in run.evaluations]


def scores(returns: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(each game's return that counts as 1: the separate agents' mean, {mode: the sum of clipped scores of each seed})."""
    reference = {game: statistics.fmean(one[game] for one in returns["separate"]) for game in returns["separate"][0]}
    sums = {
        mode: [sum(max(0.0, min(1.0, one[game] / reference[game])) for game in reference) for one in of] for mode, of in returns.items()
    }
    return reference, sums


def collect(head: dict[str, Any], returns: Mapping[str, Sequence[Mapping[str, float]]], more: dict[str, Any]) -> dict[str, Any]:
    """The result from the final mean returns by game of every mode and seed (in the same order)."""
    reference, sums = scores(returns)
    above = [a - b for a, b in zip(sums["ewc"], sums["sgd"], strict=True)]
    above_l2 = [a - b for a, b in zip(sums["ewc"], sums["l2"], strict=True)]
    verdicts = {
        "above_sgd_reached": bootstrap(above)[0] >= REACH_ABOVE_SGD,
        "above_l2_reached": statistics.fmean(above_l2) > 0.0,
        "aim": statistics.fmean(sums["ewc"]) >= AIM_OF_THREE,
    }
    low, high = bootstrap(above)
    means = {mode: statistics.fmean(of) for mode, of in sums.items()}
    rows = [
        {
            "what": f"sum of the games' scores (separate agents: 1 each), EWC minus no penalty (interval over {len(above)} seeds)",
            "reach": f"≥ {REACH_ABOVE_SGD} at its lower end",
            "measured": f"{statistics.fmean(above):.2f} ({low:.2f} to {high:.2f})",
            "reached": verdicts["above_sgd_reached"],
        },
        {
            "what": "sum of the games' scores: EWC / L2 / no penalty / separate",
            "reach": f"EWC above L2 (aim {AIM_OF_THREE})",
            "measured": " / ".join(f"{means[mode]:.2f}" for mode in ("ewc", "l2", "sgd", "separate")),
            "reached": verdicts["above_l2_reached"],
        },
    ]
    return head | more | {
        "returns": returns,
        "reference": reference,
        "sums": sums,
        "means": means,
        "ewc_minus_sgd": statistics.fmean(above),
        "ewc_minus_sgd_ci95": [low, high],
        "ewc_minus_l2": statistics.fmean(above_l2),
        "reach": REACH_ABOVE_SGD,
        "aim": AIM_OF_THREE,
        "rows": rows,
        "verdicts": verdicts,
    }  # fmt: skip


def main() -> None:
    """Train what is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(SEEDS), help="which seeds to train now, as 0,1 or 0-2")
    parser.add_argument("--modes", default=",".join(MODES), help="which modes to train now")
    parser.add_argument("--visit", type=int, default=VISIT, help="decisions of a visit, to try things out")
    parser.add_argument("--strength", type=float, default=None, help="another lambda, to try things out")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks" / NAME, help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods", help="folder of the result file")
    args = parser.parse_args()
    tried = {} if args.strength is None else {"strength": args.strength}
    if (args.visit != VISIT or tried) and args.runs == ROOT / "runs" / "benchmarks" / NAME:
        parser.error("another --visit or --strength needs --runs of its own, so that the benchmark's stay as they are")
    head = header(NAME, "benchmarks.methods.ewc_dqn")
    for seed in args.seeds:
        for mode in args.modes.split(","):
            began = time.perf_counter()
            run = finished(mode, seed, args.runs, args.visit, tried)
            last = {game: round(run.evaluations[-1][game], 2) for game in GAMES}
            print(f"{mode} seed {seed}: {last} ({time.perf_counter() - began:.0f} s)", flush=True)
    missing = [f"{mode}-{seed}" for mode in MODES for seed in SEEDS if not (args.runs / f"{mode}-{seed}" / "summary.json").exists()]
    if missing or args.visit != VISIT:
        print(f"no result: {', '.join(missing) or 'a visit of another length'}{' are missing' if missing else ''}")
        return
    runs = {mode: [finished(mode, seed, args.runs, VISIT, {}) for seed in SEEDS] for mode in MODES}
    returns = {mode: [{game: run.evaluate(EPISODES)[game] for game in GAMES} for run in of] for mode, of in runs.items()}
    more = {
        "versions": versions(["jax", "jaxlib", "numpy", "optax", "flatirons", "pgx"]),
        "task": TASK,
        "seeds": list(SEEDS),
        "episodes": EPISODES,
        "settings": {mode: {k: v for k, v in vars(of[0].config).items()} for mode, of in runs.items()},
        "seconds": {mode: [json.loads((run.path / "summary.json").read_text())["seconds"] for run in of] for mode, of in runs.items()},
        "evaluations": {mode: [curve(run) for run in of] for mode, of in runs.items()},
    }
    result = collect(head, returns, more)
    write(args.out / f"{NAME}.json", result)
    print(result["means"], result["verdicts"])


if __name__ == "__main__":
    main()
