"""One run over several devices of this machine: each has a share of the environments, and of every minibatch; parameters are on all.

The program is the one of a single device. What lies where is said here for the State, and for minibatches in `core.spread`; XLA's
partitioner does the rest, so that results differ by the order of float32 sums alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flatirons.core.spread import AXIS
from flatirons.data.replay import has_masks
from flatirons.run.job import Job, SpecTask, init_function, seed_keys
from flatirons.types import FlatironsError, Task


def demand(devices: Any) -> int | str:
    """`devices` as a whole number, or "all". Raises FlatironsError where it is neither."""
    text = str(devices).replace("_", "")
    if text == "all":
        return "all"
    if isinstance(devices, bool) or not text.isdigit() or int(text) < 1:
        raise FlatironsError(f"devices={devices!r} is not a number of devices: give a whole number from 1 up, or all")
    return int(text)


def count(job: Job) -> int:
    """How many devices a job runs on. Raises FlatironsError where there are not so many, or they cannot share its environments evenly."""
    here = jax.local_devices()
    asked = len(here) if job.options.devices == "all" else int(job.options.devices)
    if asked > len(here):
        hint = f"; XLA_FLAGS=--xla_force_host_platform_device_count={asked} cuts a CPU in as many" if here[0].platform == "cpu" else ""
        raise FlatironsError(
            f"devices={asked}, and there {'is 1' if len(here) == 1 else f'are {len(here)}'} here ({here[0].platform}){hint}"
        )
    if asked == 1:
        return 1
    if job.seeds > 1:
        raise FlatironsError(f"devices={asked} is for one seed at a time, and seeds={job.seeds}: leave one of the two at 1")
    why = job.system.undivided(job.config) if hasattr(job.system, "undivided") else ""
    if why:
        raise FlatironsError(f"devices={asked} would change nothing: {why}, or leave devices at 1")
    num_envs = job.config.num_envs
    if num_envs % asked:
        low = num_envs // asked * asked
        choices = " or ".join(str(n) for n in (low, low + asked) if n)
        raise FlatironsError(f"num_envs={num_envs} cannot be shared evenly by {asked} devices: choose {choices}")
    return asked


class Layout:
    """Where a run's arrays lie: on one device, or over the devices of a mesh."""

    def __init__(self, job: Job, task: Task):
        """Raises FlatironsError as `count` does."""
        self.devices = count(job)
        self.num_envs: int = job.config.num_envs
        self.mesh: Mesh | None = None
        self.state: Any = None
        if self.devices > 1:
            self.mesh = Mesh(jax.local_devices()[: self.devices], (AXIS,), axis_types=(AxisType.Auto,))
            self.state = self._of_state(job, task)

    def _of_state(self, job: Job, task: Any) -> Any:
        """A sharding for each leaf of the State. An axis that is so many times as long with so many times the environments is theirs."""
        share = self.num_envs // self.devices

        def shapes(num_envs: int) -> Any:
            resized: Any = task.resized(num_envs) if task.in_graph else SpecTask(task.name, num_envs, task.spec, has_masks(task))
            config = dataclasses.replace(job.config, num_envs=num_envs)
            return jax.eval_shape(init_function(job, resized), config, seed_keys(job))

        def one(whole: Any, part: Any) -> NamedSharding:
            longer = [i for i, (a, b) in enumerate(zip(whole.shape, part.shape, strict=True)) if a == b * self.devices]
            return self._along(longer[0] if longer else None)

        return jax.tree.map(one, shapes(self.num_envs), shapes(share))

    def _along(self, axis: int | None) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS))

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Programs that are traced within it spread their rows."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def placed(self, state: Any) -> Any:
        """A State where it belongs."""
        return state if self.mesh is None else jax.device_put(state, self.state)

    def everywhere(self, tree: Any) -> Any:
        """A tree whole on every device."""
        return tree if self.mesh is None else jax.device_put(tree, self._along(None))

    def experience(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a host's environments gave, `[T, B, ...]`, cut over B."""
        if self.mesh is None:
            return arguments
        whose = lambda x: 1 if x.ndim > 1 and x.shape[1] == self.num_envs else None  # noqa: E731
        return jax.device_put(arguments, jax.tree.map(lambda x: self._along(whose(x)), arguments))

    def jit_options(self, *, in_graph: bool) -> dict[str, Any]:
        """What `jax.jit` is told of a function that returns a State and metrics: a State that comes out lies as it went in."""
        if self.mesh is None:
            return {}
        state = self.state
        if not in_graph:
            # What acts stays out of a host's update.
            state = state._replace(**{name: () for name in ("collector", "behind") if name in state._fields})
        return {"out_shardings": (state, self._along(None))}
