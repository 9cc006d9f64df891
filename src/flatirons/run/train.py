"""`train`, `resume` and `load`: from what a person asked for to a run, in one program or over several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from flatirons import studies, systems
from flatirons.core import bounds
from flatirons.envs import own_data
from flatirons.run import checkpoint, folder, metrics, ranges, resources
from flatirons.run.devices import count, demand
from flatirons.run.handle import Run, save_policies
from flatirons.run.job import (
    Job,
    Options,
    acting_task,
    actor_like,
    check_options,
    choose,
    demand_divides,
    demand_same_data,
    demand_same_spaces,
    demand_whole,
    evaluation_task,
    is_instance,
    make_config,
    mend_records,
    name_of_task,
    owned,
    read_record,
    record_budget,
    record_of,
    reopen,
    slots,
    state_like,
    system_name,
    write_record,
    write_records,
)
from flatirons.run.listing import what_was_measured
from flatirons.run.loop import EVALUATION_SEED, Interrupted, Signals, StopTraining, drive, turns_function, write_summaries
from flatirons.systems import counted
from flatirons.types import FlatironsError, Network, Task

__all__ = ["Interrupted", "Run", "StopTraining", "load", "resume", "train", "turns_function"]

HOST_NOTE = (
    "this environment's inner state cannot be saved: on resume the running episodes are cut as truncated and left out of the statistics"
)

PROGRESS = frozenset(
    "collector key updates turns replay opt_state epsilon discounted priorities behind running last waiting memory copies".split()  # noqa: SIM905
)
"""Fields of a State, at any depth, that tell how far a run is and not what it learned: a warm start leaves them fresh."""


# ------------------------------------------------------------------------------------------------------------------ train


def train(
    system: Any,
    task: Any,
    *,
    seed: int = 0,
    seeds: int = 1,
    out: str | os.PathLike[str] | None = None,
    eval_every: int | None = None,
    eval_episodes: int = 20,
    checkpoint_every: int | None = None,
    keep: int = 3,
    from_run: str | os.PathLike[str] | None = None,
    stop_at: int | None = None,
    callbacks: Sequence[Any] = (),
    network: Network | None = None,
    env_options: Mapping[str, Any] | None = None,
    eval_env: Any = None,
    preset: str | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    workers: int = 1,
    devices: int | str = 1,
    overwrite: bool = False,
    **config: Any,
) -> Run:
    """Train a system on a task and return the run.

    `system` is a name ("ppo", or a preset's) or a system module. `task` is a name, a Gymnasium environment, a factory of them, or an
    in-graph `Env`. Lengths (`eval_every`, `checkpoint_every`, `stop_at`, `total_steps`) count decisions over all environments;
    `total_steps` and `stop_at` must be whole turns, evaluations and checkpoints fall on the first turn's end at or past their time.

    `seeds` > 1 trains seeds seed, seed + 1, ...: in one vmapped program in-graph, on a host in turn or in `workers` processes.
    `out` defaults to runs/<system>-<task>-seed<seed>. `from_run` starts from the parameters of another run of the same system.
    `devices` (a number, or "all" that this machine has) share the environments and every minibatch of one run.
    `callbacks` are functions `(run, metrics) -> bool | None`, or objects with such a method `on_iteration`, called at each report; one
    that returns False or raises `StopTraining` stops the run cleanly. `network` is a torso of your own, `eval_env` another task to evaluate
    on. `config` holds fields of the system's Config.

    Raises FlatironsError for every input that cannot work, before anything is written; `Interrupted` (a KeyboardInterrupt) after SIGINT
    or SIGTERM, once the checkpoint is written.
    """
    task = own_data.located(task)
    module, settings, preset, below = choose(system, preset, name_of_task(task))
    if network is not None:
        config = {**config, "network": network}
    notes = []
    if preset is not None:
        unknown = "" if preset in what_was_measured() else " (no benchmark has measured it)"
        notes.append(f"preset: {preset}" + (f" on top of {below}" if below else "") + unknown)
        from_preset = {name: value for name, value in module.PRESETS[preset].env.items() if name not in (env_options or {})}
        notes += [f"{name} is {value}, by the preset" for name, value in from_preset.items()]
        env_options = {**from_preset, **(env_options or {})}
    if is_instance(task) and "num_envs" not in config:
        settings |= _for_one_environment(module, settings, config)
        notes.append("one environment was passed, so num_envs is 1 (pass a function that makes one for more)")
    chosen = make_config(module, {**settings, **config})
    if hasattr(module, "located"):
        chosen = module.located(chosen)
    ranges.demand(chosen, system_name(module))
    shared = demand(devices)
    options = check_options(Options(eval_every, eval_episodes, checkpoint_every, keep, tensorboard, shared), seed, seeds, workers)
    demand_divides("total_steps", chosen.total_steps, chosen, module)
    if stop_at is not None:
        stop_at = demand_divides("stop_at", stop_at, chosen, module)
    path = Path(out) if out is not None else folder.default_path(preset or system_name(module), name_of_task(task), int(seed))
    if from_run is not None and path.absolute() in (Path(from_run).absolute(), *Path(from_run).absolute().parents):
        raise FlatironsError(f"the run would be written over {from_run}, which it is to start from; give another folder (--out)")
    job = Job(
        module, preset, chosen, task, dict(env_options or {}), eval_env, int(seed), int(seeds), path, options,
        quiet=quiet, callbacks=tuple(callbacks), stop_at=stop_at, from_run=None if from_run is None else Path(from_run),
    )  # fmt: skip
    enable_compilation_cache()
    if count(job) > 1:
        notes.append(f"{count(job)} devices, with {chosen.num_envs // count(job)} environments each")
    with contextlib.ExitStack() as holding, contextlib.ExitStack() as evaluating:
        # First, so that an environment which exists already is copied as it was passed.
        eval_task = evaluating.enter_context(_evaluation(job))
        made = job.make(chosen.num_envs, seed=job.seed, training=True)
        keep_task = False
        try:
            module.check(chosen, made)
            if eval_task is not None:
                demand_same_spaces(made, eval_task)
            if tensorboard:
                metrics.demand_tensorboard()
            notes += made.notes
            notes += module.notes(chosen) if hasattr(module, "notes") else ()
            notes += bounds.far_from_gaussian(module, chosen, made)
            if not made.in_graph:
                notes.append(HOST_NOTE)
            if seeds > 1 and not made.in_graph:
                if workers > 1:
                    _demand_repeatable(job)
                holding.enter_context(folder.created(path, overwrite=overwrite))
                write_record(path, record_of(job, made, vmapped=False))
                keep_task = is_instance(task)
                if not keep_task:
                    made.close()
                evaluating.close()
                folder.say(notes, quiet=quiet)
                return _train_each(job, workers=workers)
            like = state_like(job, made)
            _demand_room(job, like)
            if job.from_run is None and hasattr(module, "STARTS_FROM"):
                raise FlatironsError(
                    f"{job.name} goes on from a run of {' or '.join(module.STARTS_FROM)}; give --from RUN (from_run=... in Python)"
                )
            warm = None if job.from_run is None else _warm_start(job, made, like)
            holding.enter_context(folder.created(path, overwrite=overwrite))
            job.recorded = record_of(job, made, vmapped=seeds > 1)
            write_records(job)
            which = f"seed {job.seed}{f' ... {job.seed + job.seeds - 1}' if seeds > 1 else ''}"
            folder.say([f"{job.name} on {made.name}, {which} -> {path}"], quiet=quiet)
            folder.say([f"  {note}" for note in notes], quiet=quiet)
            return drive(job, made, None, {}, warm, eval_task)
        finally:
            if not is_instance(task) and not keep_task:
                made.close()


def _for_one_environment(module: Any, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset's settings, and the Config's own where it has none, become for one environment; what a person gave stays."""
    fields = dataclasses.fields(module.Config)
    usual: dict[str, Any] = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | dict(settings)
    changed = {"num_envs": 1}
    if "actor_learners" in usual:
        changed["actor_learners"] = 1
    elif "num_steps" in usual:
        # A turn as long as it would have been, which its minibatches divide.
        changed["num_steps"] = usual["num_steps"] * usual.get("num_envs", 1)
    return {name: value for name, value in changed.items() if name not in config}


@contextlib.contextmanager
def _evaluation(job: Job) -> Iterator[Task | None]:
    """The evaluation twin while a run lasts, or None where it is not evaluated."""
    if job.options.eval_every is None:
        yield None
        return
    made = evaluation_task(job, job.options.eval_episodes, EVALUATION_SEED + job.seed)
    try:
        yield made
    finally:
        if not is_instance(job.eval_source):
            made.close()


def resume(
    path: str | os.PathLike[str],
    *,
    total_steps: int | None = None,
    stop_at: int | None = None,
    callbacks: Sequence[Any] = (),
    env: Any = None,
    network: Network | None = None,
    system: Any = None,
    eval_env: Any = None,
    quiet: bool = False,
    workers: int = 1,
    devices: int | str | None = None,
) -> Run:
    """Go on with a run from its newest intact checkpoint, to its budget or to `total_steps`.

    In-graph the result equals the uninterrupted run bit for bit. On a host the environments start new episodes. `env`, `network`,
    `system` and `eval_env` must be passed again where the run was started with objects instead of names. `devices` replaces the run's own.
    Says so when the run is finished, for which its folder need not be writable; what its end could not write, of policy, summary and
    learning curve, is then written from the checkpoint.
    Raises FlatironsError when there is no run, no intact checkpoint, when an object is missing, or when another process trains the run.
    """
    demand_whole("workers", workers, 1)
    job = reopen(Path(path), env=env, network=network, system=system, eval_env=eval_env)
    job.quiet, job.callbacks = quiet, tuple(callbacks)
    if devices is not None:
        job.options = dataclasses.replace(job.options, devices=demand(devices))
    count(job)
    if total_steps is not None:
        job.config = dataclasses.replace(job.config, total_steps=make_config(job.system, {"total_steps": total_steps}).total_steps)
        demand_divides("total_steps", job.config.total_steps, job.config, job.system)
    if stop_at is not None:
        job.stop_at = stop_at = demand_divides("stop_at", stop_at, job.config, job.system)
    enable_compilation_cache()
    if job.seeds > 1 and not job.recorded["vmapped"]:
        if workers > 1:
            _demand_repeatable(job)
        with contextlib.ExitStack() as holding:
            _hold(holding, job.path)  # each seed that is not finished says it where it cannot be written
            record_budget(job)
            return _train_each(job, workers=workers)
    return _go_on(job, in_group=False)


def _hold(holding: contextlib.ExitStack, path: Path) -> folder.Unwritable | None:
    """Hold a run folder; what is wrong where it cannot be written, for a run that is finished needs nothing written."""
    try:
        holding.enter_context(folder.held(path))
    except folder.Unwritable as error:
        return error
    return None


def _go_on(job: Job, *, in_group: bool) -> Run:
    """Go on with one program from its newest intact checkpoint. In a group a seed that is at `stop_at` already is only loaded."""
    with contextlib.ExitStack() as holding, _evaluation(job) as eval_task:
        made: Any = job.make(job.config.num_envs, seed=job.seed, training=True)
        try:
            demand_same_data(job, made)
            job.system.check(job.config, made)
            if eval_task is not None:
                demand_same_spaces(made, eval_task)
            like = state_like(job, made)
            # Before the newest checkpoint is looked for: whoever trains here could write a newer one.
            unwritable = _hold(holding, job.path)
            if not checkpoint.list_checkpoints(job.path / folder.CHECKPOINTS):
                raise FlatironsError(f"{job.path} has no checkpoint, for nothing was saved yet; train again with --overwrite")
            loaded = checkpoint.load_latest(job.path / folder.CHECKPOINTS, like)
            for warning in loaded.warnings:
                folder.warn(warning)
            step = loaded.meta["step"]
            # A last evaluation that a signal gave up is still to be made.
            done = step >= job.config.total_steps and not loaded.meta.get("evaluation_owed", False)
            behind = job.stop_at is not None and job.stop_at <= step
            if done:
                said = (
                    f"{job.path} is finished: {step:_} of {job.config.total_steps:_} {counted(job.system)}; --total-steps N goes on to more"
                )
                folder.say([said], quiet=job.quiet)
            if done or (behind and in_group):
                if unwritable is None:
                    mend_records(job)
                    _complete(job, loaded)
                return load(job.path, env=job.source, network=vars(job.config).get("network"), system=job.system)
            if behind:
                raise FlatironsError(
                    f"stop_at={job.stop_at:_} lies behind the checkpoint at {step:_} {counted(job.system)}; choose a later one"
                )
            if unwritable is not None:
                raise unwritable
            record_budget(job)
            mend_records(job)
            notes = [f"resuming {job.name} on {made.name} at {step:_} of {job.config.total_steps:_} {counted(job.system)} in {job.path}"]
            state = jax.tree.map(owned, loaded.tree)
            if not made.in_graph:
                # Other episodes than the ones the run began with, yet the same ones for every resume from here.
                made.reset(int(np.random.SeedSequence([job.seed, step]).generate_state(1)[0]) >> 1)
                notes += ["new episodes begin; those that ran at the checkpoint are cut as truncated and left out of the statistics"]
                notes += [HOST_NOTE]
                if hasattr(job.system, "interrupted"):
                    state = job.system.interrupted(state)
            for slot in slots(job):
                folder.cut_after(slot / folder.METRICS, step)
                folder.cut_after(slot / folder.EVALUATIONS, step)
            folder.say(notes, quiet=job.quiet)
            return drive(job, made, state, loaded.meta, None, eval_task)
        finally:
            if not is_instance(job.source):
                made.close()


def _complete(job: Job, loaded: checkpoint.Loaded) -> None:
    """Write what is missing of a run that has got to its end, or to its stop: its last save, or what follows on that, was cut short."""
    like = job.system.actor(loaded.tree)
    if job.seeds > 1:
        like = jax.tree.map(lambda x: x[0], like)
    if any(_is_stale(slot, _policy_step(slot, like), loaded.meta["step"]) for slot in slots(job)):
        save_policies(job, loaded.tree, loaded.meta, folder.POLICY)
        said = f"the policy of {job.path} was missing, damaged or older than its checkpoint; it was written anew from that"
        folder.say([said], quiet=job.quiet)
    if any(_summary_step(slot) < loaded.meta["step"] for slot in slots(job)):
        write_summaries(job, {"seconds": 0.0, "timing": {}, "best": [None] * job.seeds, **loaded.meta})
    if not (job.path / folder.CURVE).exists():
        folder.tolerate(Run(job).plot, "drawing the learning curve")


def _is_stale(slot: Path, policy: int, newest: int) -> bool:
    """Whether a run's policy, of step `policy`, is not the one of its newest checkpoint for want of a whole save. The summary comes last:
    where it tells of that checkpoint a person has put an older policy there, the best one say."""
    return policy < 0 or (policy < newest and _summary_step(slot) < newest)


def _policy_step(slot: Path, like: Any) -> int:
    """The step of the last policy; -1 where none can be read as `like`."""
    try:
        return checkpoint.load_policy(slot / folder.POLICY, like).meta.get("step", 0)
    except FlatironsError:
        return -1


def _summary_step(slot: Path) -> int:
    """The step that a summary tells of; -1 where there is none."""
    try:
        step = folder.read_json(slot / folder.SUMMARY).get("step")
    except FlatironsError:
        return -1
    return step if isinstance(step, int) else -1


def load(path: str | os.PathLike[str], env: Any = None, network: Network | None = None, *, system: Any = None, best: bool = False) -> Run:
    """The run in a folder, with its last policy: for acting, evaluating and looking at. Nothing is trained.

    A damaged policy is replaced, loudly, by the newest intact checkpoint's; of one that is older than that, because a save was cut short,
    a warning tells, unless the run is being trained right now. `best` takes the policy of the best evaluation instead of the last one; its
    `save` would write that one as the last. Raises FlatironsError when no policy can be read, and for `best` where the run was never
    evaluated while it trained.
    """
    job = reopen(Path(path), env=env, network=network, system=system, acting_only=True)
    if job.seeds > 1:
        folder.warn_of_missing_seeds(job.path)
        return Run(job, runs=[load(seed_path, env, network, system=system, best=best) for seed_path in folder.seed_folders(job.path)])
    acting = acting_task(job)
    like = actor_like(job.system, job.config, acting)
    place = job.path / (folder.POLICY_BEST if best else folder.POLICY)
    if best and not place.exists() and not place.with_name(f"{place.name}.old").exists():
        raise FlatironsError(
            f"{job.path} has no best policy, for it was not evaluated while it trained; train with --eval-every N, or take its last policy"
        )
    try:
        loaded = checkpoint.load_policy(place, like)
        for warning in loaded.warnings:
            folder.warn(warning)
        actor = loaded.tree
        step = loaded.meta.get("step", 0)
        if not best:
            _warn_of_stale(job, step)
    except FlatironsError as error:
        if best:  # the newest checkpoint's is another policy
            raise
        actor, step = _actor_of_checkpoint(job, error)
    return Run(job, actor=jax.tree.map(owned, actor), step=step)


def _warn_of_stale(job: Job, step: int) -> None:
    whole = job.path.absolute().parent if job.recorded.get("part_of") else job.path
    newest = checkpoint.newest_step(whole / folder.CHECKPOINTS)
    # Whoever trains saves its checkpoint first, and the policy in a moment.
    if newest is not None and _is_stale(job.path, step, newest) and not folder.is_held(whole):
        folder.warn(
            f"the policy of {job.path} is of {step:_} {counted(job.system)} and its newest checkpoint of {newest:_}, for a save was cut "
            f"short; go on with `flatirons resume {whole}`"
        )


def _actor_of_checkpoint(job: Job, error: FlatironsError) -> tuple[Any, int]:
    source, part = job.path, job.recorded.get("part_of")
    whole = reopen(source.parent, env=job.source, network=None, system=job.system, config=job.config) if part else job
    if not (whole.path / folder.CHECKPOINTS).exists():
        raise error
    wrong = error.fault if isinstance(error, checkpoint.NoPolicy) else str(error).rstrip(".")
    folder.warn(f"{wrong}; taking the policy of the newest checkpoint instead")
    made = whole.make(whole.config.num_envs, seed=whole.seed, training=True)
    try:
        loaded = checkpoint.load_latest(whole.path / folder.CHECKPOINTS, state_like(whole, made))
    finally:
        if not is_instance(whole.source):
            made.close()
    for warning in loaded.warnings:
        folder.warn(warning)
    actor = job.system.actor(loaded.tree)
    if part:
        actor = jax.tree.map(lambda x: x[job.seed - whole.seed], actor)
    return actor, loaded.meta["step"]


# ------------------------------------------------------------------------------------------------------------ before a run


def enable_compilation_cache() -> None:
    """Keep compiled programs under ~/.cache/flatirons (or FLATIRONS_CACHE), unless JAX has a cache already or it cannot be written."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    root = os.environ.get("FLATIRONS_CACHE") or Path.home() / ".cache" / "flatirons"
    place = Path(root) / "xla"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _demand_room(job: Job, like: Any) -> None:
    size = sum(math.prod(leaf.shape) * _item_size(leaf.dtype) for leaf in jax.tree.leaves(like))
    resources.require_memory(size, f"the state of {job.name}{f' for {job.seeds} seeds' if job.seeds > 1 else ''}")
    # Large arrays are saved in pieces that checkpoints share, so one copy and what changes in between is what it takes.
    resources.require_disk(2 * size, job.path, f"the checkpoints of {job.name}")


def _item_size(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _warm_start(job: Job, made: Any, like: Any) -> Callable[[Any], Any]:
    """A function that puts what another run learned into a fresh State: every leaf but those of its progress.

    Raises FlatironsError where one does not fit."""
    path = Path(job.from_run or "")
    # A system of one's own is not found by its name.
    record = read_record(path) if path.is_dir() else {}
    same, part = record.get("system") == job.name, record.get("part_of")
    # A seed of several that were trained as one program has its State in theirs.
    whole = path.absolute().parent if part else path
    other = reopen(whole, env=job.source, network=vars(job.config).get("network"), system=job.system if same else None)
    if other.seeds > 1 and not part:
        raise FlatironsError(f"{path} holds several seeds; start from one of them, as in --from {path / f'seed_{other.seed}'}")
    before = getattr(job.system, "STARTS_FROM", ())
    if other.name not in (job.name, *before):
        takes = " or ".join((*before, job.name))
        raise FlatironsError(f"{path} was trained with {other.name}, so {job.name} cannot start from it; give a run of {takes}")
    if other.name != job.name:
        return _handed_on(job, dataclasses.replace(other, path=path), like)
    one = like if job.seeds == 1 else jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), like)
    wanted = _what_is_learned(one)
    if part:
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((other.seeds, *x.shape), x.dtype), wanted)

    def loaded_without(fields: dict[str, None]) -> checkpoint.Loaded:
        # Nor the progress, which may be of another number of environments, or of an environment that has changed since.
        return checkpoint.load_latest(
            other.path / folder.CHECKPOINTS,
            wanted._replace(**fields),
            leave=lambda name: not PROGRESS.isdisjoint(name.split("/")) or name.partition("/")[0] in fields,
        )

    copies: dict[str, None] = {}
    try:
        loaded = loaded_without(copies)
    except checkpoint.Misfit as error:
        copies = dict.fromkeys(name.partition("/")[0] for name in error.names)
        if not copies.keys() <= set(getattr(job.system, "COPIES_OF_PARAMS", ())):
            unlike = _what_does_not_fit(job, made, like, other.config)
            mend = f"use the same task and network{', and ' if unlike else ''}{', '.join(unlike)}"
            raise FlatironsError(f"the {', '.join(copies)} of {path} do not fit {job.name} with these settings; {mend}") from None
        loaded = loaded_without(copies)
    for warning in loaded.warnings:
        folder.warn(warning)
    learned_before = jax.tree.map(lambda x: x[record["seed"] - other.seed], loaded.tree) if part else loaded.tree
    taken: dict[str, list[Any]] = {}
    for name in like._fields:
        ours = jax.tree_util.tree_leaves_with_path(getattr(one, name))
        theirs = iter(jax.tree.leaves(getattr(learned_before, name)))
        if name not in PROGRESS and name not in copies and not _is_counter(ours):
            leaves = [None if _is_progress(where) else owned(next(theirs)) for where, _ in ours]
            if any(leaf is not None for leaf in leaves):
                taken[name] = leaves
    folder.say([f"warm start from {path}: {', '.join(taken)}"], quiet=job.quiet)

    def put(fresh: Any, leaf: Any) -> Any:
        if leaf is None:
            return fresh
        return jnp.copy(leaf) if job.seeds == 1 else jnp.stack([leaf] * job.seeds)

    def start(state: Any) -> Any:
        fields = {}
        for name, leaves in taken.items():
            fresh, layout = jax.tree.flatten(getattr(state, name))
            fields[name] = jax.tree.unflatten(layout, [put(f, leaf) for f, leaf in zip(fresh, leaves, strict=True)])
        for name in copies:
            if jax.tree.leaves(getattr(state, name)):
                fields[name] = jax.tree.map(jnp.copy, fields["params"])
        state = state._replace(**fields)
        if not hasattr(job.system, "warmed"):
            return state
        return job.system.warmed(state) if job.seeds == 1 else jax.vmap(job.system.warmed)(state)

    return start


def _what_does_not_fit(job: Job, made: Any, like: Any, theirs: Any) -> list[str]:
    """The settings of another run's Config that alone make other arrays of what is learned than `like`, as a person would give them."""

    def learned(state: Any) -> Any:
        return _what_is_learned(state)._replace(**dict.fromkeys(getattr(job.system, "COPIES_OF_PARAMS", ())))

    ours, found = learned(like), []
    for name, value in vars(theirs).items():
        if getattr(job.config, name, value) != value:
            config = dataclasses.replace(job.config, **{name: value})
            # A setting may not go with the others, or not be one to trace with: then it is not named.
            with contextlib.suppress(Exception):
                if learned(state_like(dataclasses.replace(job, config=config), made)) != ours:
                    found.append(f"{name}={value!r} (here {getattr(job.config, name)!r})")
    return found


def _handed_on(job: Job, other: Job, like: Any) -> Callable[[Any], Any]:
    """The same where the other run is of an earlier stage: `job.system.handed` knows what becomes of its actor.

    Raises FlatironsError where it does not fit."""
    if name_of_task(other.source) != name_of_task(job.source):
        raise FlatironsError(
            f"{other.path} was trained on {name_of_task(other.source)}, not on {name_of_task(job.source)}; give the same task"
        )
    # Its policy, not its State: what the stage learned from may be gone.
    parent = load(other.path, env=job.source, network=vars(job.config).get("network"))
    actor, whole = parent.actor, parent.config.total_steps
    if parent.step < whole:
        folder.warn(
            f"{other.path} stands at {parent.step:_} of {whole:_} decisions, and what it hands on has learned no more than that; to finish "
            f"it first: flatirons resume {other.path}"
        )

    def start(state: Any) -> Any:
        def one(state: Any) -> Any:
            return job.system.handed(job.config, state, other.name, actor)

        return one(state) if job.seeds == 1 else jax.vmap(one)(state)

    found = jax.eval_shape(start, like)
    if jax.tree.map(lambda x: (x.shape, x.dtype), found) != jax.tree.map(lambda x: (x.shape, x.dtype), like):
        raise FlatironsError(f"the networks of {other.path} do not fit {job.name} with these settings; use the same blocks and channels")
    folder.say([f"goes on from {other.path} ({other.name})"], quiet=job.quiet)
    return start


def _is_progress(where: Sequence[Any]) -> bool:
    """Whether the path of a leaf goes through a field of `PROGRESS`."""
    return any(isinstance(part, GetAttrKey) and part.name in PROGRESS for part in where)


def _what_is_learned(state: Any) -> Any:
    """A State without the leaves of its progress."""
    return jax.tree_util.tree_map_with_path(lambda where, leaf: None if _is_progress(where) else leaf, state)


def _is_counter(leaves: Sequence[tuple[Any, Any]]) -> bool:
    """Whether a field of State is one whole number."""
    return len(leaves) == 1 and leaves[0][0] == () and leaves[0][1].shape == () and jnp.issubdtype(leaves[0][1].dtype, jnp.integer)


# ------------------------------------------------------------------------------------------------------------ several seeds


def _demand_repeatable(job: Job) -> None:
    own = [
        what
        for what, is_own in (
            ("an environment of your own", not isinstance(job.source, str)),
            ("an evaluation environment of your own", job.eval_source is not None and not isinstance(job.eval_source, str)),
            ("a network of your own", isinstance(vars(job.config).get("network"), Network)),
            ("a system of your own", not any(job.system is known for known in (*systems.SYSTEMS, *studies.STUDIES))),
            ("callbacks", bool(job.callbacks)),
        )
        if is_own
    ]
    if own:
        raise FlatironsError(f"workers > 1 starts new processes, which cannot be given {' or '.join(own)}; leave workers at 1")


def _one_seed(job: Job, seed: int) -> Run:
    """Train, or go on with, one seed of a group on a host."""
    path = job.path / f"seed_{seed}"
    if checkpoint.list_checkpoints(path / folder.CHECKPOINTS):
        one = reopen(path, env=job.source, network=vars(job.config).get("network"), system=job.system, eval_env=job.eval_source)
        one.quiet, one.callbacks, one.stop_at = job.quiet, job.callbacks, job.stop_at
        one.config = dataclasses.replace(one.config, total_steps=job.config.total_steps)
        return _go_on(one, in_group=True)
    # A policy and a summary follow on a checkpoint.
    if any((path / name).exists() for name in (folder.POLICY, f"{folder.POLICY}.old", folder.SUMMARY)):
        raise FlatironsError(
            f"{path} was trained and its checkpoints are gone, so it cannot go on; take them from a copy of the folder, or remove {path}, "
            "and this seed is trained anew"
        )
    settings = {f.name: getattr(job.config, f.name) for f in dataclasses.fields(job.config)}
    return train(
        job.system, job.source, seed=seed, out=path, overwrite=True, stop_at=job.stop_at, callbacks=job.callbacks, quiet=job.quiet,
        env_options=job.env_options, eval_env=job.eval_source, preset=job.preset, from_run=job.from_run, **dataclasses.asdict(job.options),
        **settings,
    )  # fmt: skip


def _train_each(job: Job, *, workers: int) -> Run:
    """Every seed of a group on a host, in turn or in `workers` processes."""
    seeds = [job.seed + i for i in range(job.seeds)]
    if workers == 1:
        runs, failed = [], {}
        for seed in seeds:
            try:
                runs.append(_one_seed(job, seed))
            except KeyboardInterrupt as stop:
                # It is the group that goes on, with the seeds that were not reached.
                raise Interrupted(vars(stop).get("signal_number", signal.SIGINT), job.path) from None
            except FlatironsError as error:
                failed[seed] = str(error)
                folder.say([f"seed {seed} failed: {error}"], quiet=job.quiet)
        _demand_all(job, failed)
    else:
        _in_processes(job, seeds, workers)
        runs = [load(job.path / f"seed_{seed}") for seed in seeds]
    group = Run(job, runs=runs)
    folder.tolerate(group.plot, "drawing the learning curves")
    return group


# Its standard input ends when the trainer wants it to stop, and when the trainer is no more. It is read without a buffer, whose lock
# would be held as the process ends.
_WORKER = """
import json, os, signal, sys, threading
order = json.loads(sys.stdin.readline())
threading.Thread(target=lambda: (os.read(0, 1), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {order["core"]})
from flatirons.run.train import work
sys.exit(work(order))
"""


def work(order: Mapping[str, Any]) -> int:
    """What a worker process does: one seed of the group `order["group"]`. Returns the exit status."""
    enable_compilation_cache()
    try:
        job = reopen(Path(order["group"]), env=None, network=None, system=None)
        job.quiet, job.stop_at = True, order["stop_at"]
        job.config = dataclasses.replace(job.config, total_steps=order["total_steps"])
        _one_seed(job, order["seed"])
    except FlatironsError as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted as stop:
        return stop.exit_status
    return 0


def _in_processes(job: Job, seeds: Sequence[int], workers: int) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
    surroundings = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    waiting, running, failed = list(seeds), {}, {}
    free = list(range(workers))
    with Signals(quiet=job.quiet) as signals:
        while waiting or running:
            while waiting and free and signals.caught is None:
                seed, slot = waiting.pop(0), free.pop(0)
                order = {
                    "group": str(job.path), "seed": seed, "core": cores[slot % len(cores)],
                    "stop_at": job.stop_at, "total_steps": job.config.total_steps,
                }  # fmt: skip
                process = subprocess.Popen(
                    [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    env=surroundings, start_new_session=True,
                )  # fmt: skip
                assert process.stdin is not None
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                errors: list[str] = []
                reader = threading.Thread(target=lambda p=process, kept=errors: kept.extend(p.stderr or ()), daemon=True)
                reader.start()
                running[seed] = (process, slot, errors, reader)
            if signals.caught is not None:
                for process, *_ in running.values():
                    process.stdin.close()
                for process, *_ in running.values():
                    process.wait()
                raise Interrupted(signals.caught, job.path)
            for seed, (process, slot, errors, reader) in list(running.items()):
                if process.poll() is None:
                    continue
                reader.join()
                assert process.stderr is not None
                process.stderr.close()
                process.stdin.close()
                del running[seed]
                free.append(slot)
                if process.returncode:
                    failed[seed] = errors[-1].strip() if errors else f"it ended with status {process.returncode}"
                for line in errors[: -1 if process.returncode else None]:
                    print(f"seed {seed}: {line.rstrip()}", file=sys.stderr)
                how = f"failed: {failed[seed]}" if process.returncode else "done"
                folder.say([f"seed {seed}: {how}; {len(waiting) + len(running)} to go"], quiet=job.quiet)
            time.sleep(0.05)
    _demand_all(job, failed)


def _demand_all(job: Job, failed: Mapping[int, str]) -> None:
    if failed:
        seed, reason = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise FlatironsError(f"seed {seed}{more} failed: {reason}; the others are kept, and `flatirons resume {job.path}` tries again")
