"""Several in-graph worlds of one shape, to be learned in turn: `sequence:pgx:minatar-breakout,pgx:minatar-freeway`.

It is no world of its own: a system that knows what a sequence is takes its `tasks` one by one, and any other is told so.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any, NoReturn, cast

from flatirons.envs.ingraph import InGraph
from flatirons.types import FlatironsError, Key, Spec

MINATAR_CHANNELS = 10
"""MinAtar's games show 4 to 10 channels. In a sequence all are padded to the most there are, so that one network serves any of them."""


class Sequence:
    """`tasks` with equal specs, and their common `spec`. Two of equal tasks and name are equal."""

    in_graph: bool = True

    def __init__(self, tasks: Several[Any], name: str):
        """Raises FlatironsError for fewer than two tasks, for one named twice or not in-graph, and where their specs differ."""
        if len({task.name for task in tasks}) < len(tasks):
            raise FlatironsError(f"{name} names a task twice; name each once, for they come in turn again and again")
        if len(tasks) < 2:
            raise FlatironsError(f"{name} names {len(tasks)} task; a sequence has at least two, as in sequence:TASK,TASK")
        for task in tasks:
            if not task.in_graph:
                raise FlatironsError(f"{task.name} is stepped outside JAX, and a sequence is in-graph; name pgx: or jax: tasks")
            for what, ours, theirs in (
                ("observations", tasks[0].spec.obs, task.spec.obs),
                ("actions", tasks[0].spec.action, task.spec.action),
            ):
                if ours != theirs:
                    raise FlatironsError(
                        f"{task.name} has other {what} than {tasks[0].name}: {theirs} and {ours}; a sequence needs tasks of one shape"
                    )
        self.tasks = cast(tuple[InGraph, ...], tuple(tasks))
        self.name = name
        self.num_envs: int = tasks[0].num_envs
        self.spec: Spec = tasks[0].spec
        self.notes = tuple(dict.fromkeys(note for task in tasks for note in task.notes))

    def __eq__(self, other: object) -> bool:
        """Equal where the tasks and the name are."""
        return isinstance(other, Sequence) and (self.tasks, self.name) == (other.tasks, other.name)

    def __hash__(self) -> int:
        """Hash of what `__eq__` compares."""
        return hash((self.tasks, self.name))

    def resized(self, num_envs: int) -> Sequence:
        """The same worlds with another number of streams."""
        return Sequence([task.resized(num_envs) for task in self.tasks], self.name)

    def close(self) -> None:
        """Nothing to close."""

    def _refuse(self) -> NoReturn:
        raise FlatironsError(f"{self.name} is several tasks to be learned in turn, which ewc-dqn takes; give another system one of them")

    def reset(self, key: Key) -> NoReturn:
        """There is nothing to reset: raises FlatironsError."""
        self._refuse()

    def observe(self, env: Any) -> NoReturn:
        """As `reset`."""
        self._refuse()

    def step(self, key: Key, env: Any, action: Any) -> NoReturn:
        """As `reset`."""
        self._refuse()
