"""From the returns of seeds to a verdict. Plain Python, so that a result file can be checked anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence


def bootstrap(means: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over seeds, by resampling seeds; the same for the same means."""
    draw = random.Random(seed)
    found = sorted(sum(draw.choices(means, k=len(means))) / len(means) for _ in range(resamples))
    return found[int(0.025 * resamples)], found[int(0.975 * resamples) - 1]


def held(rule: str, bar: float, means: Sequence[float], lower: float, wanted: int) -> bool:
    """Whether `means` hold the bar by the rule; never before all `wanted` seeds are in.

    Raises ValueError for a rule that is neither "lower bound", "every seed" nor "K of N".
    """
    if len(means) < wanted:
        return False
    if rule == "lower bound":
        return lower >= bar
    passed = sum(mean >= bar for mean in means)
    if rule == "every seed":
        return passed == len(means)
    need, middle, of = rule.partition(" of ")
    if not (middle and need.isdigit() and of.isdigit()):
        raise ValueError(f"unknown rule {rule!r}: give 'lower bound', 'every seed' or 'K of N'")
    # More seeds than N were run: the same share of them.
    return passed * int(of) >= int(need) * len(means)
