"""What a person sees while a run goes: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY = 10.0
"""Seconds between plain lines when stdout is not a terminal."""
OWN_MEASURES = ("average_accuracy", "error")
"""What is shown of a system that learns from data and plays no episodes; its steps are gradient updates."""


def amount(number: float) -> str:
    """A count as people say it: 999, 12.3k, 4.56M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as 8s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A context manager: `with Progress(...) as progress: progress.update(step, row)`."""

    def __init__(self, title: str, *, total: int, start: int, quiet: bool):
        self.title, self.total, self.start, self.quiet = title, total, start, quiet
        self._bar: Any = None
        self._task: Any = None
        self._began = self._last_line = time.perf_counter()
        self._value: float | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}"),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.start, facts="compiling ...")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Show a report: `row` has steps_per_second and, when episodes ended, episode_return; without episodes one of OWN_MEASURES."""
        if self.quiet:
            return
        speed = row.get("steps_per_second") or 0.0
        own = next((name for name in OWN_MEASURES if name in row), None)
        if (value := row.get(own or "episode_return")) is not None:
            self._value = value
        shown = "-" if self._value is None else f"{self._value:.4g}"
        left = duration((self.total - step) / speed) if speed > 0 else "?"
        what = "return" if own is None else own.replace("_", " ")
        facts = f"{amount(step)}/{amount(self.total)} steps  {amount(speed)} steps/s  {what} {shown}  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts)
        elif time.perf_counter() - self._last_line >= LINE_EVERY or step >= self.total:
            self._last_line = time.perf_counter()
            print(f"{self.title}: {facts}", flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


def breakdown(timing: dict[str, float]) -> str:
    """Where the time went, in one line, the largest part first. `timing` is seconds by name."""
    whole = sum(timing.values())
    if whole <= 0:
        return "time: none"
    parts = sorted(((name, seconds) for name, seconds in timing.items() if seconds > 0.005 * whole), key=lambda part: -part[1])
    return f"time: {duration(whole)} = " + ", ".join(f"{name} {seconds:.1f}s ({100 * seconds / whole:.0f}%)" for name, seconds in parts)
