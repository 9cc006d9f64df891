"""The curves behind two figures of docs/mc_dropout.md: `python -m benchmarks.methods.mc_dropout_figures [co2] [rotated-digit]`

co2             Mauna Loa: learned from the first 80 % of the weeks, extrapolated over the rest and as long again; mean and deviation
rotated-digit   a test digit 1 turned in twelve steps: 100 stochastic passes of its class probabilities
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons import envs
from flatirons.core import bayes
from flatirons.systems import mc_dropout


def row(what: str, reach: str, measured: Any, reached: bool) -> dict[str, Any]:
    return {"what": what, "reach": reach, "measured": measured, "reached": bool(reached)}


def fitted(preset: str, task: Any, seed: int = 0) -> tuple[Any, Any, float]:
    """(config, actor, seconds) of a preset on its task."""
    config: Any = mc_dropout.Config(**mc_dropout.PRESETS[preset].config)
    mc_dropout.check(config, task)
    outputs = getattr(task.spec.action, "n", 1)
    began = time.perf_counter()
    fit = jax.jit(lambda config, key: mc_dropout.fit(config, task, mc_dropout.rows_of(config, task), outputs, key))
    actor = jax.block_until_ready(fit(config, jax.random.key(seed)))
    return config, actor, time.perf_counter() - began


def co2() -> dict[str, Any]:
    task: Any = envs.make("data:co2")
    config, actor, seconds = fitted("mc-dropout-co2", task)
    learned, rest = (mc_dropout.rows_of(config, task, part) for part in ("train", "test"))
    first, last = float(learned.x[0, 0]), float(rest.x[-1, 0])
    end = last + (last - float(learned.x[-1, 0]))
    x = np.linspace(first, end, 900, dtype=np.float32)[:, None]
    found = mc_dropout.predict(config, actor, x, jax.random.key(1), 1_000)
    deviation = np.sqrt(np.asarray(found.variance)[:, 0])
    inside, ahead = x[:, 0] <= learned.x[-1, 0], x[:, 0] > last
    wider = float(deviation[ahead].mean() / deviation[inside].mean())
    quality = mc_dropout.score(config, task, actor, 1, 2)
    covered = mc_dropout.predict(config, actor, rest.x, jax.random.key(1), 1_000)
    within = float(np.mean(np.abs(rest.y - np.asarray(covered.mean)) <= 2 * np.sqrt(np.asarray(covered.variance))))
    rows = [
        row("CO₂: the deviation past the data over that within", "above 1.5", round(wider, 2), wider > 1.5),
        row("CO₂: share of the weeks extrapolated to that lie within two deviations", "–", round(within, 3), True),
    ]
    return {
        "seconds": round(seconds, 1), "quality": quality, "learned_until": float(learned.x[-1, 0]) + 1980.0, "data_until": last + 1980.0,
        "year": np.round(x[:, 0] + 1980.0, 3).tolist(), "mean": np.round(np.asarray(found.mean)[:, 0], 3).tolist(),
        "deviation": np.round(deviation, 3).tolist(),
        "data": [np.round(np.concatenate([r.x, r.y], axis=1) + np.array([1980.0, 0.0]), 3)[::4].tolist() for r in (learned, rest)],
        "rows": rows,
    }  # fmt: skip


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """A picture `[28, 28]` of bytes turned about its centre, by bilinear interpolation."""
    angle = np.deg2rad(degrees)
    y, x = (np.mgrid[:28, :28] - 13.5).reshape(2, -1)
    from_x, from_y = np.cos(angle) * x + np.sin(angle) * y + 13.5, -np.sin(angle) * x + np.cos(angle) * y + 13.5
    padded = np.pad(image.astype(np.float64), 2)
    from_x, from_y = np.clip(from_x, -1.5, 28.5) + 2, np.clip(from_y, -1.5, 28.5) + 2
    left, top = np.floor(from_x).astype(int), np.floor(from_y).astype(int)
    u, v = from_x - left, from_y - top
    corners = [(top, left, (1 - u) * (1 - v)), (top, left + 1, u * (1 - v)), (top + 1, left, (1 - u) * v), (top + 1, left + 1, u * v)]
    return np.rint(sum(padded[a, b] * w for a, b, w in corners)).astype(np.uint8).reshape(28, 28)


def rotated_digit() -> dict[str, Any]:
    task: Any = envs.make("data:mnist")
    config, actor, seconds = fitted("mc-dropout-mnist", task)
    quality = mc_dropout.score(config, task, actor, 1, 2)
    test = mc_dropout.rows_of(config, task, "test")
    ones = np.asarray(test.x, np.float32)[np.asarray(test.y) == 1]
    # The most ordinary one: the test set's first has a scratch beside it.
    digit = ones[np.argmin(np.square(ones - ones.mean(axis=0)).reshape(len(ones), -1).sum(axis=1))]
    angles = np.linspace(0.0, 90.0, 12)
    pictures = np.stack([turned(digit, a) for a in angles])
    draws = mc_dropout.draws(config, actor, pictures, jax.random.key(1), config.samples)
    p = np.asarray(jax.nn.softmax(draws, axis=-1))
    mean = np.exp(np.asarray(bayes.class_log_probs(draws)))
    entropy = -np.sum(mean * np.log(np.maximum(mean, 1e-12)), axis=1)
    upright, worst = float(entropy[0]), float(entropy.max())
    found, spread = round(quality["accuracy"], 4), f"{upright:.3f}, {worst:.3f}"
    rows = [
        row("digits: accuracy on the test digits", "at least 0.95", found, found >= 0.95),
        row("rotated 1: entropy of the prediction upright, and where it is largest", "ten times as large", spread, worst > 10 * upright),
    ]
    return {
        "seconds": round(seconds, 1), "quality": quality, "notes": list(task.notes), "angles": angles.round(2).tolist(),
        "probabilities": np.round(p, 4).tolist(), "entropy": entropy.round(4).tolist(), "pictures": pictures.tolist(), "rows": rows,
    }  # fmt: skip


PARTS = {"co2": co2, "rotated-digit": rotated_digit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods")
    args = parser.parse_args()
    for name in args.parts or PARTS:
        result = header(f"mc-dropout-{name}", "benchmarks.methods.mc_dropout_figures")
        found = PARTS[name]()
        result |= {"versions": versions(("flatirons", "jax", "jaxlib", "numpy"))} | found
        write(args.out / f"mc-dropout-{name}.json", result | {"reached": all(r["reached"] for r in found["rows"])})
        for r in found["rows"]:
            print(r, flush=True)


if __name__ == "__main__":
    main()
