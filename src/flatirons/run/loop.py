"""The loop that all systems share: turns in stretches of about half a second, which end early where an evaluation, a checkpoint or a
stop is due. A stretch's length never changes State.

In-graph one compiled program repeats `system.step` any number of times; on a host a Python loop calls it.
"""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from flatirons.core import compiling, trees
from flatirons.data import rollout
from flatirons.run import checkpoint, evaluate, folder, metrics
from flatirons.run.devices import Layout
from flatirons.run.handle import Run, save_policies
from flatirons.run.job import Job, init_function, on_device, seed_keys, slots, strong
from flatirons.run.progress import Progress, breakdown, duration
from flatirons.systems import counted, levels
from flatirons.types import FlatironsError, Metrics, Task

REPORT_EVERY = 0.5
"""Seconds between reports."""
CHECKPOINT_SECONDS = 60.0
"""Seconds between checkpoints when `checkpoint_every` does not say otherwise."""
EVALUATION_SEED = 1_000_000
"""Evaluations during a run with seed s use seed 1_000_000 + s each time, so that they differ by the policy alone."""


class StopTraining(Exception):
    """Raised by a callback to stop a run cleanly: a checkpoint is written and `train` returns."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after its checkpoint was written. `exit_status` is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signal_number: int, path: Path, saved: str = "each seed is saved"):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}, {saved}; go on with `flatirons resume {path}`")
        self.signal_number, self.exit_status = signal_number, 128 + signal_number


# --------------------------------------------------------------------------------------------------------------- the engines


class _Engine(Protocol):
    timing: dict[str, float]

    def advance(self, state: Any, max_turns: int) -> tuple[Any, int, list[dict[str, Any]]]: ...


class _InGraph:
    """`turns(config, state, n)`: one compiled loop over n turns, State donated. Stretches of about `REPORT_EVERY` seconds."""

    def __init__(self, job: Job, task: Task, config: Any, state: Any, timing: dict[str, float], layout: Layout):
        self.config, self.seeds, self.timing, self._layout, self._levels = config, job.seeds, timing, layout, levels(job.system)
        self._turn_seconds: float | None = None
        self._last = 0
        began = time.perf_counter()
        chosen = compiling.options(job.system, job.system.actor(state), in_graph=True, seeds=job.seeds)
        shared = layout.jit_options(in_graph=True)
        turns = jax.jit(turns_function(job.system, task, job.seeds), donate_argnums=1, compiler_options=chosen, **shared)
        with layout.context():
            self._turns = turns.lower(config, state, layout.everywhere(jnp.int32(1))).compile()
        timing["compile"] = timing.get("compile", 0.0) + time.perf_counter() - began

    def advance(self, state: Any, max_turns: int) -> tuple[Any, int, list[dict[str, Any]]]:
        wanted = 1 if self._turn_seconds is None else min(int(REPORT_EVERY / max(self._turn_seconds, 1e-9)), 10 * self._last)
        turns = max(1, min(wanted, max_turns))
        began = time.perf_counter()
        state, total = self._turns(self.config, state, self._layout.everywhere(jnp.int32(turns)))
        total = jax.device_get(total)
        spent = time.perf_counter() - began
        self._turn_seconds, self._last = spent / turns, turns
        self.timing["training (in-graph)"] = self.timing.get("training (in-graph)", 0.0) + spent
        if self.seeds == 1:
            return state, turns, [metrics.to_row(total, turns, self._levels)]
        return state, turns, [metrics.to_row(jax.tree.map(operator.itemgetter(i), total), turns, self._levels) for i in range(self.seeds)]


def turns_function(system: Any, task: Task, seeds: int = 1) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """`turns(config, state, n) -> (state, sums of the metrics over n turns)`, to be jitted; n may be traced. Of the metrics that the
    system's `LATEST` names, the last turn's.

    With seeds > 1 State and metrics have a leading axis `[seeds]`.
    """
    held = levels(system)

    def one(config: Any, state: Any) -> tuple[Any, Any]:
        state, found = system.step(config, task, state)
        return strong(state), found

    # Jitted within, so that the second use below finds the trace of the first.
    step = jax.jit(one if seeds == 1 else jax.vmap(one, in_axes=(None, 0)), inline=True)

    def turns(config: Any, state: Any, n: Any) -> tuple[Any, Any]:
        _, shapes = jax.eval_shape(step, config, state)

        def body(_: Any, c: tuple[Any, Any]) -> tuple[Any, Any]:
            state, found = step(config, c[0])
            return state, metrics.add(c[1], found, held)

        return jax.lax.fori_loop(0, n, body, (state, metrics.zeros(shapes)))

    return turns


class _Host:
    """A Python loop over `system.step` with one compiled update. Nothing in it waits for the device but acting itself."""

    def __init__(self, job: Job, task: Any, config: Any, state: Any, timing: dict[str, float], layout: Layout, stopped: Callable[[], bool]):
        self.system, self.config, self.task, self.timing, self._stopped = job.system, config, task, timing, stopped
        self._kept = rollout.host_run(task).seconds
        self._sum = metrics.HostSum(levels(job.system))

        def packed(config: Any, task: Task, state: Any, *experience: Any) -> tuple[Any, Metrics]:
            state, found = job.system.update(config, task, state, *experience)
            return state, self._sum.pack(found)

        chosen = compiling.options(job.system, job.system.actor(state), in_graph=False)
        shared = layout.jit_options(in_graph=False)
        update = jax.jit(packed, static_argnums=(1,), donate_argnums=(2,), compiler_options=chosen, **shared)
        self._learning = 0.0
        clock = time.perf_counter

        def timed_update(config: Any, task: Task, state: Any, *experience: Any) -> Any:
            began = clock()
            with layout.context():
                result = update(config, task, state, *layout.experience(experience))
            self._learning += clock() - began
            return result

        self._update = timed_update

    def advance(self, state: Any, max_turns: int) -> tuple[Any, int, list[dict[str, Any]]]:
        before, learning, compiled = dict(self._kept), self._learning, compiling.seconds()
        began, turns = time.perf_counter(), 0
        while turns < max_turns:
            state, found = self.system.step(self.config, self.task, state, update=self._update)
            self._sum.add(found)
            turns += 1
            if time.perf_counter() - began >= REPORT_EVERY or self._stopped():
                break
        row = self._sum.read()
        parts = {name: seconds - before.get(name, 0.0) for name, seconds in self._kept.items()}
        parts["learning"] += self._learning - learning
        compiling.set_apart(parts, compiling.seconds() - compiled)
        for name, seconds in parts.items():
            self.timing[name] = self.timing.get(name, 0.0) + seconds
        return state, turns, [row]


# --------------------------------------------------------------------------------------------------------------- signals


_STOPPING = b"\nflatirons: stopping after this turn, then saving; once more ends at once\n"


class Signals:
    """While entered in the main thread, the first SIGINT or SIGTERM is noted and, unless quiet, answered in a line on stderr; the second
    one ends the process at once."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.caught: int | None = None
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: Any) -> None:
        self.caught = number
        if not self._quiet:
            with contextlib.suppress(OSError):  # not print: the handler may have come into the middle of one
                os.write(2, _STOPPING)
        # The operating system's own action, which needs no Python: it works within a compiled loop as well.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


# --------------------------------------------------------------------------------------------------------------- the loop


def _is_due(every: int | None, before: int, now: int) -> bool:
    return every is not None and before // every < now // every


def drive(job: Job, task: Task, state: Any, meta: dict[str, Any], warm: Callable[[Any], Any] | None, eval_task: Task | None = None) -> Run:
    """Train from `state` (None: from the start) to the end, the stop or a signal; `meta` is the checkpoint's. `eval_task` is the
    evaluation twin, where the options ask for evaluations; both tasks stay their owner's to close."""
    system, options = job.system, job.options
    turn = system.steps_per_turn(job.config)
    step: int = meta.get("step", 0)
    before_seconds: float = meta.get("seconds", 0.0)
    timing: dict[str, float] = dict(meta.get("timing", {}))
    best: list[float | None] = list(meta.get("best", [None] * job.seeds))
    # Whether an evaluation of this State is still to be made: a signal gave up the last one.
    owed = bool(meta.get("evaluation_owed", False))
    end = job.config.total_steps if job.stop_at is None else min(job.stop_at, job.config.total_steps)
    layout = Layout(job, task)
    config = layout.everywhere(on_device(job.config))
    run = Run(job, step=step)
    logs = [metrics.Log(slot, tensorboard=options.tensorboard) for slot in slots(job)]
    began = time.perf_counter()
    accounted = sum(timing.values())
    finite = jax.jit(trees.all_finite)

    def clocked(name: str, since: float) -> None:
        timing[name] = timing.get(name, 0.0) + time.perf_counter() - since

    def stopped() -> bool:
        return signals.caught is not None

    def seconds() -> float:
        return before_seconds + time.perf_counter() - began

    def facts() -> dict[str, Any]:
        spent = seconds()
        kept = {**timing, "other": timing.get("other", 0.0) + max(0.0, spent - before_seconds - (sum(timing.values()) - accounted))}
        return {"seconds": spent, "timing": kept, "best": list(best), "evaluation_owed": owed}

    def save() -> None:
        since = time.perf_counter()
        found = {"step": step, "system": job.name, "task": task.name, "seed": job.seed, **facts()}
        # Not the file, which somebody may have damaged or edited meanwhile.
        protected = {folder.CONFIG: folder.record_text(job.recorded).encode()}
        checkpoint.save(job.path / folder.CHECKPOINTS, state, found, step=step, keep=options.keep, extra_files=protected)
        save_policies(job, state, found, folder.POLICY)
        clocked("checkpoint", since)

    def evaluate_now() -> None:
        nonlocal owed
        since, owed = time.perf_counter(), True
        assert eval_task is not None
        for i, log in enumerate(logs):
            actor = system.actor(state)
            if job.seeds > 1:
                actor = jax.tree.map(operator.itemgetter(i), actor)
            seed = EVALUATION_SEED + job.seed + i
            try:
                result = evaluate.evaluate(system, config, eval_task, actor, options.eval_episodes, seed, stopped)
            except evaluate.Stopped:
                break
            line = {"step": step, "seconds": seconds(), **{k: v for k, v in result.items() if k not in ("system", "task")}}
            log.evaluation(line)
            spread = f" ± {result['std']:.3g}" if "std" in result else ""
            progress.say(f"  evaluation at {step:_}: {result['mean']:.4g}{spread} over {result['episodes']} episodes")
            if best[i] is None or result["mean"] > best[i]:  # type: ignore[operator]
                best[i] = result["mean"]
                meta = {"step": step, "system": job.name, "task": task.name, "seed": job.seed + i, "mean": result["mean"]}
                checkpoint.save_policy(slots(job)[i] / folder.POLICY_BEST, actor, meta)
        else:
            owed = False
        clocked("evaluation", since)

    title = f"{job.name} {task.name}"
    stopped_by_callback = False
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals(quiet=job.quiet))
        progress = stack.enter_context(Progress(title, total=job.config.total_steps, start=step, quiet=job.quiet))
        for log in logs:
            stack.callback(log.close)
        if state is None:
            since = time.perf_counter()
            # `init` runs once, so its compiler is told to hurry: half the time for PPO on CartPole.
            hurry = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
            state = jax.jit(init_function(job, task), compiler_options=hurry)(config, seed_keys(job))
            if warm is not None:
                state = warm(state)
            jax.block_until_ready(state)
            clocked("compile", since)
        state = layout.placed(state)
        if step == 0:
            # So that a run killed in its first minute, which compiling may well take, resumes instead of failing.
            save()
        engine: _Engine = (
            _InGraph(job, task, config, state, timing, layout)
            if task.in_graph
            else _Host(job, task, config, state, timing, layout, stopped)
        )
        last_saved, last_saved_step = time.perf_counter(), step
        if owed and eval_task is not None:
            evaluate_now()
            save()
        while step < end and not stopped() and not stopped_by_callback:
            due = [end, *((step // every + 1) * every for every in (options.eval_every, options.checkpoint_every) if every)]
            max_turns = max(1, -(-(min(due) - step) // turn))
            stretch = time.perf_counter()
            state, turns, rows = engine.advance(state, max_turns)
            spent = time.perf_counter() - stretch
            before, step = step, step + turns * turn
            stuck = sum(row.get("stuck", 0) for row in rows)
            if stuck:
                raise FlatironsError(
                    f"{task.name} had no legal action in {stuck} decision{'s' * (stuck > 1)} between {before:_} and {step:_}: its mask was "
                    "False throughout; a state without a legal action must end the episode"
                )
            broken = sum(row.get("broken", 0) for row in rows)
            if broken:
                raise FlatironsError(
                    f"{task.name} gave an observation or a reward that is NaN or infinite between decisions {before:_} and {step:_} "
                    f"({broken:_} number{'s' * (broken > 1)}); the checkpoints before it are good: mend the environment, or end the "
                    "episode before it"
                )
            ruined = next((name for row in rows if (name := metrics.first_not_finite(row))), None)
            if ruined is None and not bool(finite(system.actor(state))):
                ruined = "the policy's parameters"
            if ruined is not None:
                raise FlatironsError(
                    f"{ruined} became NaN or infinite between {before:_} and {step:_} {counted(job.system)} of {job.path}; the "
                    f"checkpoints before it are good: {_start_lower(job)}, or clip the gradient and the rewards"
                )
            frames = {"frames": step * task.spec.frames_per_step} if task.spec.frames_per_step > 1 else {}
            rows = [
                {"step": step, **frames, "seconds": round(seconds(), 4), "steps_per_second": round(turns * turn / spent, 1), **row}
                for row in rows
            ]
            for log, row in zip(logs, rows, strict=True):
                log.report(row)
            shown = rows[0] if len(rows) == 1 else _mean_row(rows)
            progress.update(step, shown)
            run._state, run.step, run._facts = state, step, facts()
            run.timing = run._facts["timing"]
            stopped_by_callback = _call(job.callbacks, run, shown)
            if _is_due(options.eval_every, before, step) or (options.eval_every is not None and step >= job.config.total_steps):
                evaluate_now()
            by_clock = options.checkpoint_every is None and time.perf_counter() - last_saved >= CHECKPOINT_SECONDS
            if by_clock or _is_due(options.checkpoint_every, before, step):
                save()
                last_saved, last_saved_step = time.perf_counter(), step
        if step > last_saved_step:
            save()
        run._state, run.step = state, step
        whole = seconds()
        timing["other"] = timing.get("other", 0.0) + max(0.0, whole - before_seconds - (sum(timing.values()) - accounted))
        run.timing, run._facts = timing, {"seconds": whole, "timing": timing, "best": best, "evaluation_owed": owed}
        finished = write_summaries(job, {"step": step, **run._facts})
        run._settle()
        if signals.caught is not None:
            raise Interrupted(signals.caught, job.path, f"saved at {step:_} {counted(job.system)}")
        folder.tolerate(run.plot, "drawing the learning curve")
        if finished:
            progress.say(f"done: {step:_} {counted(job.system)} in {duration(whole)}; {breakdown(timing)}")
        else:
            progress.say(
                f"stopped at {step:_} of {job.config.total_steps:_} {counted(job.system)}; go on with: flatirons resume {job.path}"
            )
    return run


def write_summaries(job: Job, meta: Mapping[str, Any]) -> bool:
    """Write how a run stands, by the meta of its checkpoint, for each seed of it as well; returns whether it is finished."""
    finished = meta["step"] >= job.config.total_steps
    summary = {"step": meta["step"], "finished": finished, **{name: meta[name] for name in ("seconds", "timing", "best")}}
    for i, slot in enumerate(slots(job)):
        folder.write_json(slot / folder.SUMMARY, {**summary, "best": summary["best"][i]})
    if job.seeds > 1:
        folder.write_json(job.path / folder.SUMMARY, summary)
    return finished


def _start_lower(job: Job) -> str:
    """How to go on from what a run has learned with a lower learning rate, in words: `resume` keeps the settings."""
    if job.seeds > 1:  # a warm start takes a run of one seed
        return "train again with a lower learning rate"
    if not isinstance(job.source, str):
        return f"start from their parameters at a lower learning rate, train(..., from_run={str(job.path)!r}, learning_rate=..., out=...)"
    command = f"flatirons train {job.preset or job.name} {job.source} --from {job.path} --learning-rate X --out NEW"
    return f"start from their parameters at a lower learning rate X, `{command}` with the run's other flags"


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, of what each seed has."""
    row = {}
    for name in rows[0]:
        values = [r[name] for r in rows if r[name] is not None]
        row[name] = sum(values) / len(values) if values else None
    return {**row, "step": rows[0]["step"]}


def _call(callbacks: Sequence[Any], run: Run, row: dict[str, Any]) -> bool:
    """Call them all; whether one asked to stop."""
    stop = False
    for callback in callbacks:
        function = callback.on_iteration if hasattr(callback, "on_iteration") else callback
        try:
            stop |= function(run, row) is False
        except StopTraining:
            stop = True
    return stop
