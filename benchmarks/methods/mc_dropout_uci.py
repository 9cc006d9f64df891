"""The paper's table on five UCI data sets: `python -m benchmarks.methods.mc_dropout_uci [NAME ...]`

Gal and Ghahramani 2016, table 1: 20 given splits, one hidden layer of 50, rate and tau chosen on a fifth of each training split, RMSE and
log likelihood of the test rows with standard errors over splits. One result file for each data set, and one for all with the time. To
reach: the paper's rows; to aim at: those of the authors' own grid search (github.com/yaringal/DropoutUncertaintyExps). A row is held where
our mean, rounded as theirs, is as good.
"""

from __future__ import annotations

import os

# Two devices, a core each, among which the splits are dealt out: XLA's small products use one core inside a loop.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false")

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, header, versions, write

Bar = tuple[float, float]
# name: ((RMSE, log likelihood) of the paper, of the authors' grid search)
BARS: dict[str, tuple[Bar, Bar]] = {
    "boston": ((2.97, -2.46), (2.90, -2.40)),
    "concrete": ((5.23, -3.04), (4.82, -2.93)),
    "energy": ((1.66, -1.99), (0.54, -1.21)),
    "wine": ((0.62, -0.93), (0.62, -0.93)),
    "yacht": ((1.11, -1.55), (0.67, -1.25)),
}
EPOCHS, SEARCH_EPOCHS = 1_000, 500
REACH_SECONDS, AIM_SECONDS = 20 * 60.0, 6 * 60.0


def rows_of(name: str, found: Any) -> list[dict[str, Any]]:
    from flatirons.studies.uci import standard_error

    rows = []
    for what, values, i, sign in (("RMSE", found.rmse, 0, 1), ("log likelihood", found.log_likelihood, 1, -1)):
        reach, aim = (bars[i] for bars in BARS[name])
        mean = float(values.mean())
        ours = round(mean, 2)
        rows.append(
            {
                "what": f"{name}: {what}",
                "reach": f"{'at most' if sign > 0 else 'at least'} {reach} (aim {aim})",
                "measured": f"{mean:.3f} ± {standard_error(values):.3f}",
                "reached": sign * ours <= sign * reach,
                "aim_reached": sign * ours <= sign * aim,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(BARS), metavar="NAME", help=", ".join(BARS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "methods")
    args = parser.parse_args()
    import numpy as np

    from flatirons import envs
    from flatirons.studies import uci

    began, everything, spent = time.perf_counter(), [], {}
    opening = header("mc-dropout-uci", "benchmarks.methods.mc_dropout_uci")
    about = {"versions": versions(("flatirons", "jax", "jaxlib", "numpy"))}
    for name in args.names or list(BARS):
        since = time.perf_counter()
        task: Any = envs.make(f"data:uci-{name}")
        found = uci.study(task, epochs=args.epochs, search_epochs=min(SEARCH_EPOCHS, args.epochs), seed=args.seed)
        spent[name] = round(time.perf_counter() - since, 1)
        rows = rows_of(name, found)
        everything += rows
        settings = {
            "epochs": args.epochs,
            "seed": args.seed,
            "rates": uci.RATES,
            "taus": uci.TAUS[task.name],
            "test_samples": 10_000,
            "networks": uci.NETWORKS,
            "search_epochs": min(SEARCH_EPOCHS, args.epochs),
        }
        values = {key: np.round(np.asarray(x, np.float64), 5).tolist() for key, x in found._asdict().items()}
        path = args.out / "uci" / f"mc-dropout-uci-{name}.json"
        one = opening | {"name": f"mc-dropout-uci-{name}"} | about
        write(path, one | {"settings": settings, "data_sha256": task.sha256, "seconds": spent[name], "per_split": values, "rows": rows})
        for r in rows:
            print(f"{r['what']}: {r['measured']} (to reach: {r['reach']}) {'yes' if r['reached'] else 'NO'}", flush=True)
        print(f"{name}: {spent[name]} s", flush=True)
    seconds = time.perf_counter() - began
    if set(spent) == set(BARS):
        everything.append(
            {
                "what": "the five data sets, tuning and compiling included, seconds", "reach": "below 1,200 (aim 360)",
                "measured": round(seconds, 1), "reached": seconds < REACH_SECONDS, "aim_reached": seconds < AIM_SECONDS,
            }
        )  # fmt: skip
        write(
            args.out / "mc-dropout-uci.json",
            opening | about | {"seconds": spent, "rows": everything, "reached": all(r["reached"] for r in everything)},
        )
    print(f"all: {seconds:.0f} s")


if __name__ == "__main__":
    main()
