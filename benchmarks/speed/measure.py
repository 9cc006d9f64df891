"""One speed measurement inside one process, ours or a peer's. Standard library only: every environment imports it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

MARK = "RESULT "


def measure(turns: Callable[[int], None], steps_per_turn: int, seconds: float, started: float, warm_steps: int = 0) -> dict[str, Any]:
    """Time one call of `turns(n)`, which does n turns and returns when they are finished, with n such that it takes about `seconds`.

    `started` is `time.perf_counter()` before anything was built. `compile_s` is the time from there to the end of the first turn, less one
    turn as it costs later: building, tracing and compiling. `warm_steps` more decisions pass untimed before the clock starts.
    """
    clock = time.perf_counter
    turns(1)
    first = clock() - started
    if warm_steps:
        turns(-(-warm_steps // steps_per_turn))
    count = 1
    while True:
        begin = clock()
        turns(count)
        elapsed = clock() - begin
        if elapsed >= 0.7 * seconds:
            break
        # At most tenfold at a time: a short stretch is dominated by what comes once a call.
        count = max(count + 1, round(count * min(10.0, seconds / elapsed)))
    steps = count * steps_per_turn
    return {
        "steps": steps,
        "seconds": elapsed,
        "steps_per_second": steps / elapsed,
        "compile_s": max(0.0, first - elapsed / count),
    }


def answer(result: dict[str, Any]) -> None:
    """Hand the result to the process that asked for it: the last line that starts with the mark counts."""
    print(MARK + json.dumps(result), flush=True)
