"""`flatirons predict RUN FILE`: what a trained network says of rows that it has never seen, and how sure it is (MC dropout)."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flatirons.core import bayes
from flatirons.run import adapting, uncertainty
from flatirons.run.job import on_device
from flatirons.types import ArraySpec, Discrete, FlatironsError

CHUNK = 1_024
"""Rows at once: a thousand passes of all of them are kept side by side."""
_PASSES = 100
"""Of a system that has no number of its own."""


def predictions(run: Any, task: Any, obs: Any, n: int | None, rate: float | None, seed: int) -> dict[str, np.ndarray]:
    """Columns `[M]` by name; see `Run.predictions`."""
    passes = n if n is not None else run.config.samples if "predictions" in vars(run.system) else _PASSES
    bayes.demand_draws(passes)
    spec = task.spec.obs
    if isinstance(spec, ArraySpec) and spec.shape == () and isinstance(obs, np.ndarray) and obs.shape[1:] == (1,):
        obs = obs[:, 0]  # a file's one column
    if "predictions" not in vars(run.system):
        rows = adapting.asked(spec, obs)
        count = len(jax.tree.leaves(rows)[0])
        found = [
            _columns(task, run.uncertainty(jax.tree.map(lambda part, i=i: part[i], rows), passes, rate=rate, seed=seed))
            for i in range(count)
        ]
        return {name: np.array([row[name] for row in found]) for name in found[0]}
    if rate is not None:
        raise FlatironsError(f"rate={rate}: {run.path} was trained with a rate of its own, {run.config.dropout}, and tau belongs to it")
    rows, key = adapting.asked(spec, obs), jax.random.key(seed)
    parts = []
    for begin in range(0, len(rows), CHUNK):
        part = rows[begin : begin + CHUNK]
        # As large as the others, so that it is not compiled anew.
        whole = part if len(rows) <= CHUNK else np.concatenate([part, np.repeat(part[:1], CHUNK - len(part), axis=0)])
        said = jax.device_get(_said(run.system, task, passes, on_device(run.config), run.actor, whole, key))
        parts.append({name: value[: len(part)] for name, value in said._asdict().items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _said(system: Any, task: Any, n: int, config: Any, actor: Any, rows: Any, key: Any) -> Any:
    return system.predictions(config, task, actor, rows, key, n)


def _columns(task: Any, found: uncertainty.Uncertainty) -> dict[str, float | int]:
    """One row of a policy's answers."""
    said: dict[str, float | int] = {}
    if isinstance(task.spec.action, Discrete):
        chosen = int(np.argmax(found.action))
        said |= {"action": chosen + task.spec.action.start, "share": float(found.action[chosen])}
    elif found.action_std is None:
        said |= {f"share_{i}": float(share) for i, share in enumerate(found.action)}
    else:
        for i, (mean, deviation) in enumerate(zip(np.ravel(found.action), np.ravel(found.action_std), strict=True)):
            said |= {f"action_{i}": float(mean), f"action_{i}_deviation": float(deviation)}
    if found.value is not None and found.value_std is not None:
        said |= {"value": found.value, "value_deviation": found.value_std}
    return said


def named(columns: Mapping[str, np.ndarray], labels: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The columns as plain lists. `labels`: the classes' names, in the place of their numbers."""
    return {name: [labels[i] for i in column] if name == "predicted" and labels else column.tolist() for name, column in columns.items()}


def table(columns: Mapping[str, np.ndarray], labels: Sequence[str] = ()) -> str:
    """The columns as a .csv file's text, with the number of each row before them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *columns])
    for number, row in enumerate(zip(*named(columns, labels).values(), strict=True), 1):
        writer.writerow([number, *(f"{value:.6g}" if isinstance(value, float) else value for value in row)])
    return text.getvalue()
