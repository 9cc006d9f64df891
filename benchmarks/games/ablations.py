"""What gating, symmetries and noise are worth to AlphaZero on connect four, a quarter of an hour of training each.

    python -m benchmarks.games.ablations [--minutes 15] [--seeds 0,1] [--only NAME ...]

Every variant is the game's preset with one thing changed, and trains until its own clock (compiling included) passes so many minutes;
called again it goes on from `--runs`. `total_steps` is near what a core plays in that time, so that the learning rate falls as in a whole
run. Then each plays, with 100 simulations, all 49 openings of two plies in both colours against minimax
of depth 5 and against the preset as it is, of the same seed. Intervals are of 95 %, over the games.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax

import flatirons as fi
from benchmarks.games.alphago import points
from benchmarks.games.connect_four import SIMULATIONS, looking_ahead, match, network
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons.run import folder

MOVES = {"total_steps": 122_880}
VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    # A match every 8,192 moves, thirteen or so in all; fewer and the games would be the untrained network's for long.
    "with gating": {"gate_every": 8, "gate_games": 40},
    "without symmetries": {"symmetries": False},
    "without noise": {"temperature_plies": 0},
    "puct": {"search": "puct", "dirichlet_alpha": 1.0},
    "puct without noise": {"search": "puct", "dirichlet_fraction": 0.0},
}


def trained(name: str, seed: int, minutes: float, runs: Path) -> Any:
    """The variant's run, trained for so long by its own clock."""
    path = runs / f"{name.replace(' ', '-')}-seed{seed}"
    enough = lambda run, metrics: metrics["seconds"] < 60 * minutes  # noqa: E731
    if (path / folder.CONFIG).exists():
        return fi.resume(path, callbacks=[enough], quiet=True)
    return fi.train("alphazero", "pgx:connect_four", seed=seed, out=path, callbacks=[enough], quiet=True, **MOVES | VARIANTS[name])


def over_seeds(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Matches of several seeds as one, and each seed's share of points."""
    wins, draws, losses = (sum(part[what] for part in parts) for what in ("wins", "draws", "losses"))
    return points((wins, draws, losses)) | {"seeds": [part["points"] for part in parts]}


def main() -> None:
    """Train all, play, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", default="0,1", help="which seeds")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="train these now, and leave the matches")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "benchmarks" / "connect-four-ablations", help="where the run folders go"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    head, seeds, rows = header("ablations", "benchmarks.games.ablations"), [int(seed) for seed in args.seeds.split(",")], {}
    runs: dict[str, list[Any]] = {}
    for name in args.only:
        runs[name] = []
        for seed in seeds:
            began = time.perf_counter()
            runs[name].append(trained(name, seed, args.minutes, args.runs))
            print(f"{name}, seed {seed}: {runs[name][-1].step:_} moves, {time.perf_counter() - began:.0f} s", flush=True)
    if len(runs) < len(VARIANTS):
        return
    for name in VARIANTS:
        key = jax.random.key(0)
        against = [match(network(run, SIMULATIONS), looking_ahead(5), key) for run in runs[name]]
        pairs = zip(runs[name], runs["preset"], strict=True)
        beside = [match(network(run, SIMULATIONS), network(base, SIMULATIONS), key) for run, base in pairs] if name != "preset" else []
        rows[name] = {"changed": VARIANTS[name], "moves": [run.step for run in runs[name]], "minimax-5": over_seeds(against)}
        rows[name] |= {"preset": over_seeds(beside)} if beside else {}
        print(name, {what: row["points"] for what, row in rows[name].items() if isinstance(row, dict) and "points" in row}, flush=True)
    found = {"versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "minutes": args.minutes, "simulations": SIMULATIONS}
    write(args.out / "ablations.json", head | found | {"seeds": seeds, "rows": rows})


if __name__ == "__main__":
    main()
