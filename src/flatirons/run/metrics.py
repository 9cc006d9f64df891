"""From the metrics of turns to the rows of a report, and where those rows are written."""

from __future__ import annotations

import fnmatch
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.run import folder
from flatirons.types import Episodes, FlatironsError, Metrics

LAG = 8
"""Turns that a host lets pass before it reads a turn's metrics, which by then are there."""


def zeros(shapes: Metrics) -> Metrics:
    """The sum over no turns, for metrics of these `ShapeDtypeStruct`s: float32, but for `Episodes`, which keep their dtypes."""
    rest = {name: jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), leaf) for name, leaf in shapes.items() if name != "episodes"}
    if "episodes" in shapes:
        rest["episodes"] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes["episodes"])
    return rest


def add(total: Metrics, metrics: Metrics, levels: Sequence[str] = ()) -> Metrics:
    """One turn's metrics added to a sum made by `zeros`; those that `levels` name (patterns, a system's `LATEST`) take its place."""
    added = jax.tree.map(lambda t, m: t + jnp.asarray(m, t.dtype), total, metrics)
    return added | {name: jnp.asarray(metrics[name], total[name].dtype) for name in total if is_level(name, levels)}


def is_level(name: str, levels: Sequence[str]) -> bool:
    """Whether a report holds the last value of the metric of that name, and not its mean."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in levels)


class HostSum:
    """Sums of a host's metrics that hardly ever wait for the device; of those that `levels` name, the last.

    `pack` makes one array of an update's metrics, which costs one read a turn instead of one for each metric.
    """

    PACKED = "packed"

    def __init__(self, levels: Sequence[str] = ()) -> None:
        self._levels = levels
        self._names: list[str] = []
        self._waiting: list[Metrics] = []
        self._total: dict[str, Any] = {}
        self._newest: dict[str, Any] = {}
        self._count = 0

    def pack(self, metrics: Metrics) -> Metrics:
        """The metrics of an update (numbers, shape ()) as `{"packed": float32 [n]}`; called while it is traced."""
        self._names = sorted(metrics)
        return {self.PACKED: jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in self._names])} if metrics else {}

    def add(self, metrics: Metrics) -> None:
        """Take one turn's metrics."""
        self._count += 1
        self._waiting.append(metrics)
        if len(self._waiting) > 2 * LAG:
            self._sum(LAG)

    def _sum(self, turns: int) -> None:
        for metrics in self._waiting[:turns]:
            for name, value in metrics.items():
                if name == "episodes":
                    value = np.array([value.count, value.return_sum, value.length_sum], np.float64)
                self._newest[name] = value = np.asarray(value, np.float64)
                self._total[name] = self._total.get(name, 0.0) + value
        del self._waiting[:turns]

    def read(self) -> dict[str, Any]:
        """The row over every turn since the last read; waits for the device."""
        self._sum(len(self._waiting))
        total, newest = self._total, self._newest
        for found in (total, newest):
            if self.PACKED in found:
                found |= zip(self._names, found.pop(self.PACKED), strict=True)
        total |= {name: value for name, value in newest.items() if is_level(name, self._levels)}
        if "episodes" in total:
            total["episodes"] = Episodes(*total["episodes"])
        row = to_row(total, self._count, self._levels)
        self._total, self._newest, self._count = {}, {}, 0
        return row


def to_row(total: Metrics, turns: int, levels: Sequence[str] = ()) -> dict[str, Any]:
    """A report's row from sums over `turns` turns (host arrays, shape ()): means, or what is there already of those that `levels` name;
    and the episodes' count, mean return and length."""
    row: dict[str, Any] = {}
    episodes: Episodes | None = total.get("episodes")
    if episodes is not None:
        count = int(episodes.count)
        row["episodes"] = count
        row["episode_return"] = float(episodes.return_sum) / count if count else None
        row["episode_length"] = float(episodes.length_sum) / count if count else None
        if not isinstance(episodes.stuck, tuple) and int(episodes.stuck):
            row["stuck"] = int(episodes.stuck)
        if not isinstance(episodes.broken, tuple) and int(episodes.broken):
            row["broken"] = int(episodes.broken)
    row.update({name: float(value) / (1 if is_level(name, levels) else turns) for name, value in total.items() if name != "episodes"})
    return row


def first_not_finite(row: dict[str, Any]) -> str | None:
    """The name of a metric that tells of ruined parameters (a loss, a gradient norm, an entropy ...) and is NaN or infinite.

    Explained variances may be: they divide by a variance that can be 0.
    """
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value) and "explained" not in name:
            return name
    return None


class Log:
    """metrics.jsonl and evaluations.jsonl of one run folder, and TensorBoard when asked for."""

    def __init__(self, path: Path, *, tensorboard: bool):
        self.path = path
        self._writer: Any = None
        if tensorboard:
            self._writer = _tensorboard_writer(path / folder.TENSORBOARD)

    def report(self, row: dict[str, Any]) -> None:
        """Write a report's row."""
        folder.append_line(self.path / folder.METRICS, row)
        self._scalars(row, "train")

    def evaluation(self, row: dict[str, Any]) -> None:
        """Write an evaluation's row."""
        folder.append_line(self.path / folder.EVALUATIONS, row)
        self._scalars({name: row[name] for name in ("step", "mean", "std", "min", "max") if name in row}, "evaluation")

    def _scalars(self, row: dict[str, Any], group: str) -> None:
        if self._writer is not None:
            self._writer(row, group)

    def close(self) -> None:
        """Flush what is left."""
        if self._writer is not None:
            self._writer(None, "")


def demand_tensorboard() -> None:
    """Raise FlatironsError with the install line when TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise FlatironsError("TensorBoard is not installed; install it with: pip install 'flatirons[tensorboard]'")


def _tensorboard_writer(path: Path) -> Callable[[dict[str, Any] | None, str], None]:
    """A function that writes a row's numbers as TensorBoard scalars by step, and closes the file when given None."""
    demand_tensorboard()
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - generated by protobuf
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(path))

    def write(row: dict[str, Any] | None, group: str) -> None:
        if row is None:
            writer.close()
            return
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        writer.add_event(Event(step=int(row["step"]), wall_time=time.time(), summary=Summary(value=values)))

    return write
