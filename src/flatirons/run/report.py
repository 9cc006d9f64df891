"""Learning curves: what runs wrote down, read back and drawn. Needs no display and no JAX; matplotlib is imported when drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flatirons.run import folder
from flatirons.run.progress import OWN_MEASURES
from flatirons.types import FlatironsError

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MEASURES = (*OWN_MEASURES, "episode_return", "loss")
"""What is drawn where no metric is named: the first of these that every run has numbers of. None has the first two and episodes as well."""
DECISIONS = "decisions, over all environments"
STEPS = {"maml": "meta-iterations", "ewc": "gradient updates", "mc_dropout": "gradient updates"}
"""What the steps of a system are where they are no decisions: its own `STEPS`, which cannot be asked without JAX."""
GAMES = ("alphazero", "alphago", "alphago-sl", "alphago-rl", "alphago-value")
"""Systems of which only evaluations are drawn: who made a game's last move in training says nothing about them."""
SCORES = {"alphago-value": "1 - error / the best constant's"}
"""What an evaluation's `mean` is where it is neither a return nor a share of points."""
GRID_POINTS = 200
RESAMPLES = 1000
SHORT = 0.9
"""A seed whose curve ends before this share of the longest one's is behind the others."""


class Curve(NamedTuple):
    """Points of one seed: `step` in what its system counts (decisions over all environments), `value`, and `weight` (its episodes)."""

    step: np.ndarray
    value: np.ndarray
    weight: np.ndarray


class Recorded(NamedTuple):
    """One run, or a group of runs that differ in their seed: a training and an evaluation curve per seed."""

    path: Path
    system: str
    task: str
    training: tuple[Curve, ...]
    evaluations: tuple[Curve, ...]


def _curve(rows: Sequence[dict[str, Any]], metric: str, weight: str) -> Curve:
    # A stage that does not learn yet, for its experts play, has a loss of 0.
    kept = [row for row in rows if _is_finite(row.get(metric)) and not (metric == "loss" and row[metric] == row.get("grad_norm") == 0.0)]
    return Curve(
        np.array([row["step"] for row in kept], np.float64),
        np.array([row[metric] for row in kept], np.float64),
        np.array([max(float(row[weight] or 1), 1e-9) if _is_finite(row.get(weight)) else 1.0 for row in kept], np.float64),
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _of_seeds(path: Path) -> list[Path]:
    return folder.seed_folders(path) or [path]


def _system(path: Path) -> str:
    try:
        return str(folder.peek_record(_of_seeds(path)[0]).get("system", "?"))
    except FlatironsError:
        return "?"


def _measures(path: Path) -> set[str]:
    """Those of MEASURES that a run has numbers of."""
    rows = [row for each in _of_seeds(path) for row in folder.read_lines(each / folder.METRICS)]
    found = {name for name in MEASURES if any(isinstance(row.get(name), int | float) for row in rows)}
    if _system(path) in GAMES:
        found.discard("episode_return")
    # An evaluation's mean is a return where there are episodes.
    scored = found.isdisjoint(OWN_MEASURES) and any(folder.read_lines(each / folder.EVALUATIONS) for each in _of_seeds(path))
    return found | ({"episode_return"} if scored else set())


def measure(paths: Sequence[str | Path]) -> str:
    """The metric to draw of these runs where none is named: their return, or else what a system without episodes measures."""
    shared = set(MEASURES).intersection(*(_measures(Path(path)) for path in paths))
    return next((name for name in MEASURES if name in shared), "episode_return")


def read(path: str | Path, metric: str = "episode_return") -> Recorded:
    """Read a run folder, or a folder of seeds (`seed_0`, `seed_1`, ...).

    Raises FlatironsError when it is neither, or when nothing was recorded under `metric`.
    """
    path = Path(path)
    folders = _of_seeds(path)
    if not (folders[0] / folder.CONFIG).exists() and not (folders[0] / folder.CHECKPOINTS).is_dir():
        raise FlatironsError(f"{path} is not a run folder: it has no {folder.CONFIG}; give the folder named by --out when training.")
    config = folder.peek_record(folders[0])
    folder.warn_of_missing_seeds(path)
    rows = [folder.read_lines(each / folder.METRICS) for each in folders]
    training = tuple(curve for r in rows if len((curve := _curve(r, metric, "episodes")).step))
    if metric == "episode_return" and config.get("system") in GAMES:
        training = ()
    evaluations: tuple[Curve, ...] = ()
    if metric == "episode_return":
        scored = (_curve(folder.read_lines(each / folder.EVALUATIONS), "mean", "episodes") for each in folders)
        evaluations = tuple(curve for curve in scored if len(curve.step))
    if not training and not evaluations:
        known = sorted({name for r in rows for row in r[:50] for name, value in row.items() if isinstance(value, int | float)} - {"step"})
        recorded = (
            f"it has {', '.join(known)}; choose one with --metric" if known else "it has recorded nothing yet; let it run a little longer"
        )
        raise FlatironsError(f"{path} has no {metric!r} to draw; {recorded}.")
    return Recorded(path, str(config.get("system", "?")), str(config.get("task", "?")), training, evaluations)


def smooth(curve: Curve, window: int) -> np.ndarray:
    """Mean of the last `window` values, weighted by the episodes behind each. Shape `[N]` to `[N]`."""
    value = np.concatenate([[0.0], np.cumsum(curve.value * curve.weight)])
    weight = np.concatenate([[0.0], np.cumsum(curve.weight)])
    end = np.arange(1, len(curve.value) + 1)
    start = np.maximum(end - window, 0)
    return (value[end] - value[start]) / (weight[end] - weight[start])


def interval(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap 95 % interval of the mean over seeds: `[S, N]` to (low `[N]`, high `[N]`). The same values give the same interval."""
    picks = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    means = values[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def _on_common_steps(path: Path, curves: Sequence[Curve], values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Every seed's values at the same steps, over the range that all seeds reached: (`[N]`, `[S, N]`). It is said where one ends early."""
    first, last = max(c.step[0] for c in curves), min(c.step[-1] for c in curves)
    every = np.unique(np.concatenate([c.step for c in curves]))
    shared = every[(every >= first) & (every <= last)]
    if last < SHORT * every[-1]:
        folder.warn(f"the seeds of {path} came to {last:,.0f} to {every[-1]:,.0f} steps; their mean is drawn as far as all of them came")
    steps = shared if 0 < len(shared) <= GRID_POINTS else np.linspace(first, max(first, last), GRID_POINTS)
    return steps, np.stack([np.interp(steps, c.step, v) for c, v in zip(curves, values)])


def _labels(runs: Sequence[Recorded]) -> list[str]:
    """What tells the runs apart: the system, the task, or else the folder."""
    if len(runs) == 1:
        return [""]
    names = [r.system for r in runs] if len({r.task for r in runs}) == 1 else [f"{r.system} {r.task}" for r in runs]
    if len(set(names)) == len(runs):
        return names
    return [f"{name} ({run.path.name})" for name, run in zip(names, runs)]


def _thousands(steps: float, _position: int) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{unit}"
    return f"{steps:g}"


def draw(paths: Sequence[str | Path], out: str | Path, *, metric: str | None = None) -> Path:
    """Draw the learning curves of run folders, side by side, into `out` (png, svg or pdf) and return its path. Without a metric that is
    what `measure` says.

    A line is the mean over the seeds in a folder, its band the bootstrap 95 % interval of that mean; a single seed has no band but its
    unsmoothed values in the background. Dots are evaluations. Raises FlatironsError for what cannot be read or written.
    """
    if not paths:
        raise FlatironsError("there is no run to draw; give at least one run folder.")
    metric = measure(paths) if metric is None else metric
    runs = [read(path, metric) for path in paths]
    out = Path(out)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # never pyplot: no display, no global state
    if out.suffix.lstrip(".").lower() not in canvas.get_supported_filetypes():
        raise FlatironsError(f"cannot draw into {out}: end its name in .png, .svg or .pdf.")
    axes = figure.add_subplot()
    for run, label, colour in zip(runs, _labels(runs), (COLOURS * len(runs))[: len(runs)]):
        _draw_run(axes, run, label, colour)
    tasks, systems = sorted({r.task for r in runs}), sorted({r.system for r in runs})
    seeds = {max(len(r.training), len(r.evaluations)) for r in runs}
    count = f"{seeds.pop()} seeds" if len(seeds) == 1 else "several seeds"
    axes.set_title(f"{', '.join(systems)} on {', '.join(tasks)}" + ("" if count == "1 seeds" else f" ({count}, mean and 95 % interval)"))
    axes.set_xlabel(STEPS.get(systems[0], DECISIONS) if len(systems) == 1 else DECISIONS)
    told = {SCORES.get(name, "share of points" if name in GAMES else "return per episode") for name in systems}
    of_evaluations = told.pop() if len(told) == 1 else "return, or an evaluation's score"
    axes.set_ylabel(of_evaluations if metric == "episode_return" else metric.replace("_", " "))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")
    # Written beside and renamed: a reader never sees half a picture.
    partial = folder.partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial)
        partial.replace(out)
    except OSError as error:
        folder.remove_partial(partial)
        raise FlatironsError(f"cannot write {out}: {error.strerror or error}; choose another --out.") from error
    return out


def _draw_run(axes: Any, run: Recorded, label: str, colour: str) -> None:
    prefix = f"{label}: " if label else ""
    for curves, name, style in ((run.training, "training", "-"), (run.evaluations, "evaluation, greedy", "o--")):
        if not curves:
            continue
        values = [smooth(c, max(1, len(c.value) // 20)) if name == "training" else c.value for c in curves]
        steps, on_steps = _on_common_steps(run.path, curves, values)
        faint = 0.9 if name == "training" else 0.6
        if len(curves) == 1:
            steps, mean = curves[0].step, values[0]
            if name == "training":
                axes.plot(steps, curves[0].value, color=colour, alpha=0.2, linewidth=0.7)
        else:
            mean = on_steps.mean(axis=0)
            low, high = interval(on_steps)
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        if style == "-":
            axes.plot(steps, mean, color=colour, linewidth=1.8, alpha=faint, label=prefix + name)
        else:
            axes.plot(steps, mean, style, color=colour, linewidth=1, markersize=4, alpha=faint, label=prefix + name)
