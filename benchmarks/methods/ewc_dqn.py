"""EWC around DQN on three MinAtar games in turn, two visits of 300,000 decisions each: against no penalty, an L2 anchor, separate agents.

    python -m benchmarks.methods.ewc_dqn [--seeds 0-2] [--modes ewc,sgd] [--runs DIR]

Trains what is missing (a run that was cut goes on bit for bit, a finished one is kept), and writes the result once every seed of every
mode is there; several of these may run side by side on different --modes or --seeds. The modes of --keep are not trained: their runs are
those of the result that is there, if its settings are still the presets'. A game's score is its mean return over 100 greedy episodes
divided by the mean over seeds of the separate agents', clipped to 1; a run's is the sum over games. The settings were chosen on seeds
from 100 on. The bars below were set before. Beside the sums stand forgetting, backward and forward transfer (`core.continual`) of the
same scores, from the evaluations at the ends of visits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flatirons as fi
from benchmarks.learning.run import seed_list
from benchmarks.learning.summary import bootstrap
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons.core import continual
from flatirons.studies import ewc_dqn

NAME = "ewc_dqn"
GAMES = ("pgx:minatar-breakout", "pgx:minatar-freeway", "pgx:minatar-space_invaders")
TASK = f"sequence:{','.join(GAMES)}"
REACH_ABOVE_SGD, AIM_OF_THREE = 0.5, 2.6
"""How far ewc's sum of scores must be above sgd's (lower end of the interval over seeds), and what it should come to."""
SEEDS = range(3)
VISIT = 300_000
EPISODES = 100
UNREAD = {"separate": ("strength", "likelihood"), "sgd": ("strength",)}
"""Settings that a mode does not read."""
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
    sums = {mode: [sum(_scores_of(one, reference)) for one in of] for mode, of in returns.items()}
    return reference, sums


def _scores_of(one: Mapping[str, float], reference: Mapping[str, float]) -> list[float]:
    """Each game's score, in [0, 1]."""
    return [max(0.0, min(1.0, one[game] / reference[game])) for game in reference]


def at_visit_ends(run: Sequence[Mapping[str, float]], reference: Mapping[str, float], visit: int) -> np.ndarray:
    """The games' scores `[visits, games]` in the evaluations of a run that were made as a visit ended."""
    by_step = {int(row["step"]): row for row in run}
    ends = range(visit, max(by_step) + 1, visit)
    return np.array([_scores_of(by_step[step], reference) for step in ends], np.float32)


def transfers(
    evaluations: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], reference: Mapping[str, float], visit: int
) -> dict[str, dict[str, list[float]]]:
    """{mode: {measure: of each seed}}. Forgetting, backward and forward transfer after the first round, in which each game is learned once
    as the measures have it; and `final_...`, forgetting and backward transfer of all games but the one just left, as the last visit ends.

    Fresh parameters' scores, which forward transfer is held against, are those of separate agents whose game has not been played yet.
    """
    num = len(reference)
    matrices = {mode: [at_visit_ends(run, reference, visit) for run in of] for mode, of in evaluations.items()}
    # An agent of its own has learned nothing while the game before its own is played.
    before = np.mean([np.diagonal(one[:num], offset=1) for one in matrices["separate"]], axis=0)
    untrained = np.concatenate([np.zeros(1, np.float32), before])

    def measures(one: np.ndarray) -> dict[str, Any]:
        first, others = one[:num], one[:, : num - 1]
        return {
            "forgetting": continual.forgetting(first),
            "backward_transfer": continual.backward_transfer(first),
            "forward_transfer": continual.forward_transfer(first, untrained),
            "final_forgetting": continual.forgetting(others),
            "final_backward_transfer": continual.backward_transfer(others),
        }

    found = {mode: [measures(one) for one in of] for mode, of in matrices.items()}
    return {mode: {name: [float(one[name]) for one in of] for name in of[0]} for mode, of in found.items()}


def collect(
    head: dict[str, Any], returns: Mapping[str, Sequence[Mapping[str, float]]], more: dict[str, Any], visit: int = VISIT
) -> dict[str, Any]:
    """The result from the final mean returns by game of every mode and seed (in the same order), and `more`, which has the evaluations,
    one at least at the end of every visit of so many decisions."""
    reference, sums = scores(returns)
    transfer = transfers(more["evaluations"], reference, visit)
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
        "transfer": transfer,
        "transfer_means": {mode: {name: statistics.fmean(x) for name, x in of.items()} for mode, of in transfer.items()},
        "ewc_minus_sgd": statistics.fmean(above),
        "ewc_minus_sgd_ci95": [low, high],
        "ewc_minus_l2": statistics.fmean(above_l2),
        "reach": REACH_ABOVE_SGD,
        "aim": AIM_OF_THREE,
        "rows": rows,
        "verdicts": verdicts,
    }  # fmt: skip


def of_before(mode: str, path: Path) -> dict[str, Any]:
    """One mode's part of a result that was written before: its returns, evaluations, settings and seconds, and the commit they are of.
    Raises SystemExit where there is none, or its settings are no longer the preset's."""
    if not path.exists():
        raise SystemExit(f"--keep {mode}: there is no {path}; train it instead")
    found = json.loads(path.read_text())
    preset = ewc_dqn.PRESETS[MODES[mode]].config | {"visit_steps": VISIT, "total_steps": 6 * VISIT}
    now, plain = (json.loads(json.dumps(vars(ewc_dqn.Config(**settings)))) for settings in (preset, {}))
    stored = found["settings"][mode]
    # A setting that came since stands at its default.
    other = [name for name, value in now.items() if stored.get(name, plain[name]) != value and name not in UNREAD.get(mode, ())]
    if other:
        raise SystemExit(f"--keep {mode}: {', '.join(other)} of {path} are no longer the preset's; train it again")
    part = {what: found[what][mode] for what in ("returns", "evaluations", "settings", "seconds")}
    return part | {"commit": found.get("kept", {}).get(mode, found["commit"])}


def main() -> None:
    """Train what is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(SEEDS), help="which seeds to train now, as 0,1 or 0-2")
    parser.add_argument("--modes", default=",".join(MODES), help="which modes to train now")
    parser.add_argument("--keep", default="", help="modes to take from the result that is there")
    parser.add_argument("--visit", type=int, default=VISIT, help="decisions of a visit, to try things out")
    parser.add_argument("--strength", type=float, default=None, help="another lambda, to try things out")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks" / NAME, help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods", help="folder of the result file")
    args = parser.parse_args()
    tried = {} if args.strength is None else {"strength": args.strength}
    if (args.visit != VISIT or tried) and args.runs == ROOT / "runs" / "benchmarks" / NAME:
        parser.error("another --visit or --strength needs --runs of its own, so that the benchmark's stay as they are")
    head = header(NAME, "benchmarks.methods.ewc_dqn")
    named = [mode for mode in args.keep.split(",") if mode]
    if unknown := [mode for mode in (*named, *args.modes.split(",")) if mode not in MODES]:
        parser.error(f"there is no mode {', '.join(unknown)}: they are {', '.join(MODES)}")
    kept = {mode: of_before(mode, args.out / f"{NAME}.json") for mode in named}
    for seed in args.seeds:
        for mode in args.modes.split(","):
            if mode in kept:
                continue
            began = time.perf_counter()
            run = finished(mode, seed, args.runs, args.visit, tried)
            last = {game: round(run.evaluations[-1][game], 2) for game in GAMES}
            print(f"{mode} seed {seed}: {last} ({time.perf_counter() - began:.0f} s)", flush=True)
    missing = [
        f"{mode}-{seed}"
        for mode in MODES
        if mode not in kept
        for seed in SEEDS
        if not (args.runs / f"{mode}-{seed}" / "summary.json").exists()
    ]
    if missing or args.visit != VISIT:
        print(f"no result: {', '.join(missing) or 'a visit of another length'}{' are missing' if missing else ''}")
        return
    runs = {mode: [finished(mode, seed, args.runs, VISIT, {}) for seed in SEEDS] for mode in MODES if mode not in kept}
    returns = {mode: [{game: run.evaluate(EPISODES)[game] for game in GAMES} for run in of] for mode, of in runs.items()}
    returns |= {mode: before["returns"] for mode, before in kept.items()}
    more = {
        "versions": versions(["jax", "jaxlib", "numpy", "optax", "flatirons", "pgx"]),
        "task": TASK,
        "seeds": list(SEEDS),
        "episodes": EPISODES,
        "settings": {mode: {k: v for k, v in vars(of[0].config).items()} for mode, of in runs.items()},
        "seconds": {mode: [json.loads((run.path / "summary.json").read_text())["seconds"] for run in of] for mode, of in runs.items()},
        "evaluations": {mode: [curve(run) for run in of] for mode, of in runs.items()},
        "kept": {mode: before["commit"] for mode, before in kept.items()},
    }
    for what in ("settings", "seconds", "evaluations"):
        more[what] |= {mode: before[what] for mode, before in kept.items()}
    # In the order of MODES, whichever were trained now.
    returns = {mode: returns[mode] for mode in MODES}
    result = collect(head, returns, more)
    write(args.out / f"{NAME}.json", result)
    rounded = {mode: {name: round(x, 3) for name, x in of.items()} for mode, of in result["transfer_means"].items()}
    print(result["means"], rounded, result["verdicts"])


if __name__ == "__main__":
    main()
