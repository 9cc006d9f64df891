"""The maximisation-bias figure of docs/tabular.md, drawn from its result file: `python -m benchmarks.tabular.figure`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.record import RESULTS, ROOT
from benchmarks.tabular.run import LEFT, LEFT_AT

FIGURE = ROOT / "docs" / "figures" / "tabular_maximisation_bias.png"
COLOURS = {"q-learning": "#d55e00", "double-q-learning": "#0072b2"}


def draw(result: dict[str, Any], place: Path) -> Path:
    """Both curves, each point the mean of the last ten episodes, with the values to be reached as dots."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for method, curve in result["percent_left"].items():
        smooth = np.convolve(curve, np.full(10, 0.1), mode="valid")
        axes.plot(np.arange(10, len(curve) + 1), smooth, color=COLOURS[method], label=method)
        axes.plot(LEFT_AT, LEFT[method], "o", color=COLOURS[method], markerfacecolor="white")
    axes.axhline(5.0, color="grey", linestyle=":", label="optimal, at ε = 0.1")
    axes.set(xlabel="episode", ylabel="% of runs that go left", ylim=(0, 100), xlim=(0, len(next(iter(result["percent_left"].values())))))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULTS / "tabular" / "tabular-bias.json")
    parser.add_argument("--out", type=Path, default=FIGURE)
    args = parser.parse_args()
    print(draw(json.loads(args.result.read_text(encoding="utf-8")), args.out))


if __name__ == "__main__":
    main()
