"""One search after another on ONE position, each larger than the one before, until a limit or someone's `stop`.

A search is one compiled call and cannot be looked into while it runs. So thinking goes in growing searches: there is always a finished
one to answer from, and an answer never waits for the one that runs. Nor does the next position wait for one whose result nobody wants
any more: its first search runs beside that, and only the larger ones come after it.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable

import jax
import numpy as np

from flatirons.envs import notation
from flatirons.envs.games import GameState
from flatirons.run.players import Thinker, Thought, simulations_range

GROWTH = 4
MOST = 16_384
"""Simulations of the largest search of an endless analysis."""
LONGEST_S = 2.0
"""Seconds that the largest search of an endless analysis is expected to take at most, compiling apart: once nobody wants it any more it
holds up others, and on a machine of one core those wait for it."""


PATIENCE_S = 0.3
"""How long a board that says `stop` waits for a first search, and how long the search may take that answers in its place."""
QUIT_S = 0.5
"""How long a session waits at its end for a search to be over."""
SMALL = 16
"""Simulations that any clock has time for."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """When to answer: after exactly so many simulations, or after so many seconds, or (`endless`) when told to; else after the player's
    own number of simulations. room: how many seconds a first search may take beyond `seconds`, where a clock has them."""

    simulations: int | None = None
    seconds: float | None = None
    endless: bool = False
    room: float = 0.0


@dataclasses.dataclass
class Pace:
    """What searches took, so that one is not begun that cannot end in time. The first of its size is compiled, which takes longest."""

    warm: dict[int, float] = dataclasses.field(default_factory=dict)
    compiling: float = 0.0
    seen: set[int] = dataclasses.field(default_factory=set)

    def note(self, simulations: int, seconds: float) -> None:
        """A search took that long."""
        if simulations in self.seen:
            self.warm[simulations] = seconds
        else:
            self.seen.add(simulations)
            self.compiling = max(self.compiling, seconds)

    def expected(self, simulations: int) -> float:
        """Seconds that a search will take, as far as is known."""
        if simulations in self.warm:
            return self.warm[simulations]
        return self.running(simulations) + (0.0 if simulations in self.seen else self.compiling)

    def running(self, simulations: int) -> float:
        """The same without compiling it."""
        if simulations in self.warm:
            return self.warm[simulations]
        # By the largest: in a small one, or in none at all, what every call costs would count as the cost of a simulation. Searches in
        # other threads are noted meanwhile.
        most, seconds = max(tuple(self.warm.items()), default=(0, 0.0))
        return simulations * seconds / max(1, most)


class Thinking:
    """Thinking about a position in a thread of its own. `report` is called with (Thought, simulations, seconds) after each search, and
    `answer` once, with the last Thought, from whichever thread ends it."""

    def __init__(
        self,
        thinker: Thinker,
        state: GameState,
        seed: int,
        limit: Limit,
        pace: Pace,
        report: Callable[[Thought, int, float], None],
        answer: Callable[[Thought | Exception], None],
        after: Thinking | None = None,
    ) -> None:
        self._thinker, self._state, self._seed, self._limit, self._pace = thinker, state, seed, limit, pace
        self._report, self._answer = report, answer
        self._earlier = after._running() if after is not None else []
        self._began = time.monotonic()
        self._stop, self._lock, self._answered = threading.Event(), threading.RLock(), False
        self._last: Thought | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer now, from the last finished search; where there is none yet, as soon as there is."""
        self._stop.set()
        with self._lock:
            if self._last is not None:
                self._give(self._last)

    def settle(self) -> None:
        """Answer before this returns: from the last finished search, or, where the first has not ended, from another one that is quick (the
        least that can be asked where none is compiled)."""
        self.stop()
        if self._answered:
            return
        least = min(tuple(self._pace.seen), default=simulations_range(self._thinker)[0])
        quick = max((n for n, seconds in tuple(self._pace.warm.items()) if seconds <= PATIENCE_S), default=least)
        try:
            thought: Thought | Exception = self._thinker.think(self._state, jax.random.key(self._seed), quick)
        except Exception as error:
            thought = error
        with self._lock:
            if not self._answered and isinstance(thought, Thought):
                self._report(thought, quick, time.monotonic() - self._began)
            self._give(thought)

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the thread and those before it, which may be in the middle of searches whose results nobody wants any more. `seconds`:
        for each at the most. Returns whether all have ended."""
        for thread in self._running():
            thread.join(seconds)
        return not self._running()

    @property
    def answered(self) -> bool:
        """Whether `answer` has been called."""
        return self._answered

    def _give(self, thought: Thought | Exception) -> None:
        with self._lock:
            if not self._answered:
                self._answered = True
                self._answer(thought)

    def _running(self) -> list[threading.Thread]:
        return [thread for thread in (*self._earlier, self._thread) if thread.is_alive()]

    def _alone(self) -> bool:
        return not any(thread.is_alive() for thread in self._earlier)

    def _wait_for_earlier(self) -> None:
        # Who stops this in the meantime has the answer at once: the thread may be slower to notice.
        while not self._alone() and not self._stop.is_set():
            self._stop.wait(0.02)

    def _run(self) -> None:
        timer = None
        if self._limit.seconds is not None:
            # Of a search that takes longer than was foreseen the one before it is the answer.
            timer = threading.Timer(min(self._limit.seconds, threading.TIMEOUT_MAX), self.stop)
            timer.daemon = True
            timer.start()
        try:
            self._think()
        except Exception as error:
            self._give(error)
        finally:
            if timer is not None:
                timer.cancel()

    def _think(self) -> None:
        limit, own = self._limit, self._thinker.simulations
        # Without simulations there is nothing to deepen: a network says the same however long it is asked, and a policy network knows no
        # search at all.
        deepening = own > 0 and limit.simulations is None and (limit.endless or limit.seconds is not None)
        usual = max(1, own // GROWTH)
        simulations = self._first(usual) if deepening else limit.simulations if limit.simulations is not None else own
        while True:
            started, alone = time.monotonic(), self._alone()
            thought = self._thinker.think(self._state, jax.random.key(self._seed), simulations)
            now = time.monotonic()
            if alone:
                self._pace.note(simulations, now - started)
            with self._lock:
                if not self._answered:
                    self._last = thought
                    self._report(thought, simulations, now - self._began)
            simulations = simulations * GROWTH if simulations else usual
            if not deepening or simulations > MOST or (limit.endless and self._pace.running(simulations) > LONGEST_S):
                if limit.endless:
                    self._stop.wait()
                break
            if self._late(simulations):
                break
            self._wait_for_earlier()
            if self._stop.is_set() or self._late(simulations):
                break
        self._give(thought)

    def _first(self, usual: int) -> int:
        """The simulations of the first search, which cannot be cut short: fewer than usual where those are known to take too long, of a
        size that is compiled."""
        if self._limit.seconds is None or usual not in self._pace.warm:
            return usual
        most = max(self._limit.seconds, self._limit.room)
        warm = tuple(self._pace.warm.items())
        return max((n for n, seconds in warm if n <= usual and seconds <= most), default=min(n for n, _ in warm))

    def _late(self, simulations: int) -> bool:
        """Whether such a search would not end in time."""
        seconds = self._limit.seconds
        return seconds is not None and time.monotonic() - self._began + self._pace.expected(simulations) > seconds


def think(thinker: Thinker, state: GameState, seed: int, limit: Limit, pace: Pace, after: Thinking | None = None) -> Thought:
    """Think and wait for the answer; `after`: what may still be thinking. Raises what the search raised."""
    answers: queue.SimpleQueue[Thought | Exception] = queue.SimpleQueue()
    Thinking(thinker, state, seed, limit, pace, lambda *_: None, answers.put, after)
    found = answers.get()
    if isinstance(found, Exception):
        raise found
    return found


def warm_up(thinker: Thinker, state: GameState, seed: int, pace: Pace) -> None:
    """Compile the rules, and the searches that a move begins with, under a clock (the smallest and the next; where the smallest is large,
    the least that can be asked, for a clock that has no time for it) and without one, where they have not been yet, so that no player's
    time is spent on it. `state` must not have ended."""
    notation.compile_rules(thinker.game)
    own = thinker.simulations
    first = max(1, own // GROWTH) if own else 0
    least = simulations_range(thinker)[0] if first > SMALL else first
    for simulations in dict.fromkeys((first, first * GROWTH, own, least)):
        if simulations not in pace.seen:
            # The smallest again: how long it takes once it is compiled is what larger ones are judged by.
            for _ in range(2 if simulations in (first, least) else 1):
                think(thinker, state, seed, Limit(simulations=simulations), pace)


def room(left: float) -> float:
    """Seconds that a search which cannot be cut short may take of a clock with `left` seconds."""
    return 0.1 * max(0.0, left)


def allot(left: float, increment: float = 0.0, moves: int | None = None) -> float:
    """Seconds for one move of a clock with `left` seconds: an even share of the moves to go (30 where nobody knows), most of the increment,
    and never the whole."""
    share = left / (moves + 1 if moves and moves > 0 else 30) + 0.8 * increment
    return max(0.01, min(share, 0.5 * left if left > 0 else increment or 0.01))


def ranked(thought: Thought, legal: np.ndarray) -> list[int]:
    """Legal actions, best first: by visits, then by value, then by the prior."""
    order = np.lexsort((-thought.prior, -thought.q, -thought.visits))
    best = [int(action) for action in order if legal[action]]
    # The player's own choice stands first: Gumbel's need not be the most visited.
    return [thought.action, *(action for action in best if action != thought.action)] if legal[thought.action] else best
