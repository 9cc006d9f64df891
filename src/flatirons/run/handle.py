"""A run in one's hand: `Run`, what `train`, `resume` and `load` return."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flatirons.core.categories import is_category
from flatirons.data.acting import Decider
from flatirons.envs import spaces
from flatirons.run import adapting, checkpoint, evaluate, folder, predicting, values
from flatirons.run import uncertainty as uncertainties
from flatirons.run.job import (
    Job,
    acting_task,
    demand_same_spaces,
    demand_whole,
    evaluation_config,
    evaluation_task,
    is_instance,
    on_device,
    slots,
    write_record,
)
from flatirons.run.uncertainty import Uncertainty
from flatirons.systems import system_name
from flatirons.types import ArraySpec, Discrete, FlatironsError, MultiDiscrete, TimeStep


class Run:
    """A training run: its folder, its policy, its numbers. `runs` holds one Run per seed where it was trained with several."""

    def __init__(self, job: Job, *, actor: Any = None, step: int = 0, runs: Sequence[Run] = ()):
        self.path: Path = job.path
        self.system: Any = job.system
        self.config: Any = job.config
        self.seed: int = job.seed
        self.step: int = step
        """Decisions trained."""
        self.runs: list[Run] = list(runs)
        self.timing: dict[str, float] = {}
        """Seconds by what they were spent on."""
        self._job = job
        self._actor = actor
        self._state: Any = None
        self._facts: dict[str, Any] = {}
        self._acting: Any = None
        self._deciders: dict[bool, Decider] = {}
        self._carry: Any = None
        self._key: Any = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {system_name(self.system)}, step={self.step})"

    @property
    def actor(self) -> Any:
        """What acting needs (the system's Actor). While the run trains it is valid until the next report only."""
        if self._job.seeds > 1:
            raise FlatironsError(f"{self.path} holds {self._job.seeds} seeds; take one of them with run.runs[i]")
        return self.system.actor(self._state) if self._state is not None else self._actor

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The reports, oldest first, as in metrics.jsonl; with several seeds, those of every seed one after the other."""
        return [row for path in self._folders() for row in folder.read_lines(path / folder.METRICS)]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations, as in evaluations.jsonl."""
        return [row for path in self._folders() for row in folder.read_lines(path / folder.EVALUATIONS)]

    def _folders(self) -> list[Path]:
        return [self.path] if self._job.seeds == 1 else folder.seed_folders(self.path)

    def policy(self, obs: Any, *, legal: Any = None, first: bool | None = None) -> Any:
        """The greedy action for ONE raw observation, as the environment takes it: an int, or an array for Box and MultiDiscrete actions.

        `legal` is the mask of legal actions where the task has one. Policies with memory need `first=True` at an episode's start
        (without it the first call starts one). Raises FlatironsError for an observation that is not the task's.
        """
        first = not self._deciders if first is None else first
        action = self.act(self._timestep(obs, legal, first=first))
        spec = self.acting_task.spec.action
        raw = spaces.raw_actions(spec, action)[0]
        return int(raw) if isinstance(spec, Discrete) else raw

    def act(self, timestep: TimeStep) -> np.ndarray:
        """The greedy action `[1, ...]` for a TimeStep of one environment, as a task gives the one and takes the other (from 0 up, flat)."""
        actor, acting, masked = self.actor, self.acting_task, not isinstance(timestep.legal, tuple)
        if not self._deciders:
            self._carry = self.system.policy(self.config, acting, actor, greedy=True).reset(1)
        if masked not in self._deciders:
            # One for each: what a Decider has traced is for a TimeStep of one layout.
            self._deciders[masked] = Decider(self.system.policy, acting, self.config, greedy=True)
            self._deciders[masked].set_key(jax.random.key(self.seed))
        decide = self._deciders[masked]
        decide.set_actor(actor)
        action, self._carry, _ = decide(timestep, self._carry)
        return action

    @property
    def acting_task(self) -> Any:
        """A task to act for, made once: its `spec`, and of data of one's own `columns` and `labels`."""
        if self._acting is None:
            self._acting = acting_task(self._job)
        return self._acting

    def _timestep(self, obs: Any, legal: Any, *, first: bool) -> TimeStep:
        """One raw observation as a batch of one."""
        spec = self.acting_task.spec
        mask: Any = () if legal is None else _one_mask(spec.action, legal)
        return TimeStep(_from_zero(spec.obs, _one_row(spec.obs, obs, "obs")), mask, np.array([first]), ())

    def uncertainty(
        self, obs: Any, n: int = 100, *, rate: float | None = None, parts: Sequence[str] = (), legal: Any = None, seed: int = 0
    ) -> Uncertainty:
        """How sure the networks are of ONE raw observation, from `n` stochastic passes (MC dropout): the greedy actions that they say, and
        the values where the system has an estimate of them, with means and deviations; see `flatirons.run.uncertainty.Uncertainty`.

        rate: the probability to drop an input of a layer, by default what the run was trained with. parts: the fields of the system's Actor
        whose weights are dropped, such as ("critics",) of sac or ("head",) of maml; all by default. A
        network that was never trained with dropout answers too,
        but its deviation says how much it leans on single units, and not what the data left open.
        A policy with a memory is asked as at an episode's start, its memory blank.
        Raises FlatironsError for n < 1, a rate that is missing or outside [0, 1 - 1/65,536], and an observation that is not the task's.
        """
        chosen = uncertainties.rate_of(self.system, self.config, rate)
        timestep, key = self._timestep(obs, legal, first=True), jax.random.key(seed)
        return uncertainties.uncertainty(
            self.system, on_device(self.config), self._acting, self.actor, timestep, key, n, rate=chosen, parts=tuple(parts)
        )

    def evaluate(
        self, episodes: int = 20, seed: int | None = None, *, env: Any = None, env_options: Mapping[str, Any] | None = None, **settings: Any
    ) -> Any:
        """Score the policy on episodes of its own; see `flatirons.run.evaluate.evaluate`. seed defaults to 10_000 + the run's seed.

        With several seeds: a list, one result per seed. `env` replaces the task of the run, `env_options` some of its options, and
        `settings` those of the Config that begin with eval_ (eval_shots=1 of maml), for this evaluation alone. An environment that was
        passed to `train` is copied, so that a callback may evaluate. Raises FlatironsError where it cannot be, and for settings and options
        that do not fit.
        """
        if self._job.seeds > 1:
            return [run.evaluate(episodes, seed, env=env, env_options=env_options, **settings) for run in self.runs]
        if episodes < 1:
            raise FlatironsError(f"episodes is {episodes}: give at least 1")
        job = self._job if env is None else dataclasses.replace(self._job, eval_source=env)
        source = job.eval_source if job.eval_source is not None else job.source
        if source is None:
            raise FlatironsError(f"{self.path} was trained on an environment of your own ({job.recorded['own_env']}); pass env=... again")
        config = evaluation_config(job, settings)
        if env_options:
            job = dataclasses.replace(job, env_options={**job.env_options, **env_options})
        chosen = 10_000 + self.seed if seed is None else seed
        task = evaluation_task(job, episodes, chosen)
        try:
            if env_options:
                demand_same_spaces(self.acting_task, task)
            if settings:
                self.system.check(config, task)
            return evaluate.evaluate(self.system, on_device(config), task, self.actor, episodes, chosen)
        finally:
            if not is_instance(job.eval_source):
                task.close()

    def adapt(
        self,
        given: Any,
        *,
        steps: int | None = None,
        learning_rate: float | None = None,
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
    ) -> Run:
        """This run's policy adapted to a new task: a Run with parameters of its own, to act with, to `predict`, to `save`.

        `given` is what the task shows: a pair of examples `obs [M, ...]` and answers `[M, ...]`, or, where a policy acts, the task itself
        (a goal, a direction), in which it then plays. `steps` and `learning_rate` are the Config's unless given. The folder is `out`, by
        default `adapted` in this run's; nothing is written before `save`. Raises FlatironsError for a system that does not adapt, for
        examples that are not the task's, and for a run of several seeds."""
        if "adapt_to" not in vars(self.system):
            raise FlatironsError(f"{system_name(self.system)} does not adapt to tasks; train maml for that")
        steps = max(1, self.config.inner_steps) if steps is None else steps
        demand_whole("steps", steps, 1)
        if learning_rate is not None and not (math.isfinite(learning_rate) and learning_rate >= 0.0):
            raise FlatironsError(f"learning_rate={learning_rate} must be a number from 0 up")
        later = self.config.inner_rate if self.config.eval_rate is None else self.config.eval_rate
        rates = (self.config.inner_rate, later) if learning_rate is None else (learning_rate, learning_rate)
        task = self._job.make(1, seed=seed, training=False)
        try:
            shown = adapting.given(task, given)
            actor = self.system.adapt_to(on_device(self.config), task, self.actor, shown, int(steps), rates, jax.random.key(seed))
        finally:
            task.close()
        if not all(np.isfinite(leaf).all() for leaf in jax.device_get(jax.tree.leaves(actor)) if leaf.dtype.kind == "f"):
            raise FlatironsError(
                f"the parameters became NaN or infinite after {steps} steps of {rates[0]:g} and {rates[1]:g}; give a smaller "
                "learning_rate, or fewer steps"
            )
        place = Path(out) if out is not None else self.path / "adapted"
        return Run(dataclasses.replace(self._job, path=place), actor=actor, step=self.step)

    def predict(self, obs: Any) -> np.ndarray:
        """The greedy actions for a batch of raw observations `[M, ...]`: what is guessed for each, the class of each. A network that
        normalises by the batch at hand (maml's for pictures) judges them together. Observations and actions as `policy` has them. Raises
        FlatironsError for observations that are not the task's."""
        task = self.acting_task
        rows = _from_zero(task.spec.obs, adapting.asked(task.spec.obs, obs))
        num = jax.tree.leaves(rows)[0].shape[0]
        acting = self.system.policy(self.config, task, self.actor, greedy=True)
        action, _, _ = acting.act(jax.random.key(self.seed), TimeStep(rows, (), np.ones(num, np.bool_), ()), acting.reset(num))
        return spaces.raw_actions(task.spec.action, np.asarray(action))

    def predictions(self, obs: Any, n: int | None = None, *, rate: float | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """What `n` stochastic passes (MC dropout) say of each of a batch of raw observations `[M, ...]`: columns `[M]` by name. One pass is
        one function for all rows.

        Of mc_dropout its own: `mean`, `deviation`, `model_deviation`, or `predicted`, `probability`, `entropy`, `information`, n its
        `samples` unless given. Of other systems, with n = 100 and the `rate` that `uncertainty` describes: `action` and `share`, what
        most passes choose and how many do, or each component's `action_0` and `action_0_deviation`; `value` and `value_deviation` where
        there is an estimate. Raises FlatironsError as `predict` and `uncertainty` do."""
        return predicting.predictions(self, self.acting_task, obs, n, rate, seed)

    def overestimation(self, episodes: int = 20, seed: int | None = None) -> dict[str, Any]:
        """What the policy expects of the states it visits against what it gets there, over `episodes` greedy episodes (at most as many as
        environments are made at once: 8 on a host), with rewards and ends as in training (Atari: clipped, and a life is an episode); see
        `flatirons.run.values.overestimation`. Raises FlatironsError for a system that
        keeps no such estimate, and for a run of several seeds."""
        if self._job.seeds > 1:
            raise FlatironsError(f"{self.path} holds {self._job.seeds} runs; ask one of run.runs")
        values.demand_estimate(self.system, self._job.name)
        chosen = 10_000 + self.seed if seed is None else seed
        task = evaluation_task(self._job, episodes, chosen, as_trained=True)
        try:
            return values.overestimation(self.system, on_device(self.config), task, self.actor, chosen)
        finally:
            if not is_instance(self._job.eval_source):
                task.close()

    def save(self) -> Path:
        """Write the policy, and the whole State where this Run trained it; returns the folder. `train` does so by itself."""
        if self.runs and self._state is None:
            for run in self.runs:
                run.save()
            return self.path
        meta = {"step": self.step, "system": system_name(self.system), "task": self._job.recorded["task"], "seed": self.seed}
        if self._state is None:
            if not (self.path / folder.CONFIG).exists():  # an adapted policy, in a folder of its own
                self.path.mkdir(parents=True, exist_ok=True)
                write_record(self.path, self._job.recorded)
            checkpoint.save_policy(self.path / folder.POLICY, self.actor, meta)
            return self.path
        found = {**meta, **self._facts}
        protected = {folder.CONFIG: folder.record_text(self._job.recorded).encode()}
        checkpoint.save(
            self.path / folder.CHECKPOINTS, self._state, found, step=self.step, keep=self._job.options.keep, extra_files=protected
        )
        save_policies(self._job, self._state, found, folder.POLICY)
        return self.path

    def plot(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Draw the learning curve into `out` (default: curve.png in the run folder) and return where it is."""
        from flatirons.run import report

        place = Path(out) if out is not None else self.path / folder.CURVE
        report.draw([self.path], place)
        return place

    def _settle(self) -> None:
        """After training: a Run per seed."""
        if self._job.seeds > 1:
            actor = self.system.actor(self._state)
            self.runs = [
                Run(
                    dataclasses.replace(self._job, path=slot, seed=self._job.seed + i, seeds=1),
                    actor=jax.tree.map(operator.itemgetter(i), actor),
                    step=self.step,
                )
                for i, slot in enumerate(slots(self._job))
            ]


def _one_mask(spec: Any, legal: Any) -> np.ndarray:
    """A mask of legal actions as a batch of one. Raises FlatironsError where it is of another length or leaves no choice."""
    mask = np.asarray(legal, np.bool_)
    nvec = spec.nvec if isinstance(spec, MultiDiscrete) else (spec.n,) if isinstance(spec, Discrete) else ()
    if mask.shape != (sum(nvec),):
        raise FlatironsError(f"legal has shape {list(mask.shape)} and the actions are {spec}: give {sum(nvec)} flags, or none")
    if not all(part.any() for part in np.split(mask, np.cumsum(nvec)[:-1])):
        raise FlatironsError(f"legal={mask.astype(int).tolist()} leaves no legal action; the episode should have ended before this")
    return mask[None]


_UNFIT = "has NaN or infinite numbers, and only finite ones are wanted"


def _one_row(spec: Any, obs: Any, name: str) -> Any:
    """One raw observation as a batch of one, in the spec's dtypes. Raises FlatironsError where it is not as the spec says."""
    if isinstance(spec, ArraySpec):
        dtype = np.dtype(spec.dtype)
        try:
            array = np.asarray(obs)
            if array.dtype.kind not in "biuf":
                array = array.astype(dtype)
        except (TypeError, ValueError):
            raise FlatironsError(f"{name} cannot be read as {spec.dtype}{list(spec.shape)}; pass one raw observation") from None
        if array.shape != spec.shape:
            raise FlatironsError(
                f"{name} has shape {list(array.shape)}, the task's is {list(spec.shape)}; pass one raw observation, no batch"
            )
        if dtype.kind in "iu" and array.dtype != dtype and array.size:
            # A cast would make black of a picture of 0 to 1, and nonsense of a NaN.
            if array.dtype.kind == "f":
                adapting.demand_finite(array, name, _UNFIT)
                adapting.demand_whole(array, dtype, f"{name}'s numbers", spec)
            adapting.demand_range(array, dtype, f"{name}'s numbers")
        return adapting.cast(array, dtype, name, _UNFIT)[None]
    if isinstance(spec, Mapping):
        if not isinstance(obs, Mapping) or set(obs) != set(spec):
            raise FlatironsError(f"{name} must be a dict with the keys {', '.join(map(str, spec))}")
        return {key: _one_row(part, obs[key], f"{name}[{key!r}]") for key, part in spec.items()}
    if not isinstance(obs, (tuple, list)) or len(obs) != len(spec):
        raise FlatironsError(f"{name} must be a tuple of {len(spec)} parts")
    return tuple(_one_row(part, each, f"{name}[{i}]") for i, (part, each) in enumerate(zip(spec, obs, strict=True)))


def _from_zero(spec: Any, rows: Any) -> Any:
    """Raw observations `[B, ...]` as a task hands them out: whole numbers count from 0, whatever the environment's own start.

    Raises FlatironsError for a state or a category that the task does not have."""

    def one(part: ArraySpec, array: np.ndarray) -> np.ndarray:
        if not part.start:
            if _is_choice(part):
                _demand_known(part, array, 0)
            return array
        start = np.reshape(part.start, part.shape)
        _demand_known(part, array, start)
        return (array - start).astype(array.dtype)

    return jax.tree.map(one, spec, rows, is_leaf=lambda x: isinstance(x, ArraySpec))


def _is_choice(part: ArraySpec) -> bool:
    """Whether whole numbers name what there is: categories, and the states of a table, which may be more than are given one-hot."""
    return is_category(part) or (part.dtype == "int32" and part.shape == () and math.isfinite(part.high - part.low))


def _demand_known(part: ArraySpec, array: np.ndarray, start: Any) -> None:
    """Raises FlatironsError where one of the raw numbers `[B, ...]` is below `start + low` or above `start + high`."""
    first, last = start + int(part.low), start + int(part.high)
    # NumPy takes ten times as long to compare one number.
    if array.size == 1 and first <= array.item() <= last:
        return
    outside = (array < first) | (array > last)
    if np.count_nonzero(outside):
        at = tuple(np.argwhere(outside)[0])
        least, most = (np.broadcast_to(bound, array.shape)[at] for bound in (first, last))
        raise FlatironsError(
            f"an observation holds {array[at]}, and the task's go from {least} to {most}: pass it as the environment gives it"
        )


def save_policies(job: Job, state: Any, meta: dict[str, Any], name: str) -> None:
    """Save the actor of a State, of each seed into its own folder."""
    actor = job.system.actor(state)
    for i, slot in enumerate(slots(job)):
        one = actor if job.seeds == 1 else jax.tree.map(operator.itemgetter(i), actor)
        checkpoint.save_policy(slot / name, one, {k: meta[k] for k in ("step", "system", "task")} | {"seed": job.seed + i})
