"""What a run is made of: the door that its settings come through, its record in config.json, and the layout of its State."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons import envs, studies, systems
from flatirons.envs import games, meta, own_data, spaces
from flatirons.envs.datasets import DataTask
from flatirons.envs.ingraph import InGraph
from flatirons.run import evaluate, folder, ranges
from flatirons.run.folder import read_record, write_record
from flatirons.systems import counted, system_name
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Network, Spec, Task, TimeStep


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is looked after; recorded in config.json, so that `resume` goes on the same way. Lengths in decisions."""

    eval_every: int | None = None
    eval_episodes: int = 20
    checkpoint_every: int | None = None
    keep: int = 3
    tensorboard: bool = False
    devices: int | str = 1


MOST_SEED = 2**31 - 1
"""A key holds 32 bits of its seed, so that a larger one would be the run of a smaller one; other seeds are counted up from one (of the
runs beside it, of evaluations, of moves)."""

SET_BY_THE_RUN = {
    "seed": "give --seed (seed=... in Python)",
    "num_envs": "give --num-envs (num_envs=... in Python)",
    "training": "leave it out (evaluations get raw rewards by themselves; --seed and --num-envs are what can be chosen)",
    "task": "name the task after the system",
}


@dataclasses.dataclass
class Job:
    """All that one run folder is trained from."""

    system: Any
    preset: str | None
    config: Any
    source: Any
    env_options: dict[str, Any]
    eval_source: Any
    seed: int
    seeds: int
    path: Path
    options: Options
    quiet: bool = False
    callbacks: Sequence[Any] = ()
    stop_at: int | None = None
    from_run: Path | None = None
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The system's name."""
        return system_name(self.system)

    def make(self, num_envs: int, *, seed: int, training: bool) -> Task:
        """The task of the run, or its evaluation twin. An environment that exists already is copied for its twin, so that evaluating never
        disturbs the training. Raises FlatironsError where it cannot be copied."""
        for name, instead in SET_BY_THE_RUN.items():
            if name in self.env_options:
                raise FlatironsError(f"{name} is no option of the environment, for the run sets it: {instead}")
        source = self.source if training or self.eval_source is None else self.eval_source
        if not training and self.eval_source is None and is_instance(source):
            try:
                source = copy.deepcopy(source)
            except Exception:
                raise FlatironsError(
                    "this environment cannot be copied for evaluations; pass a function that makes one, or another to evaluate on"
                ) from None
        return envs.make(source, num_envs, seed=seed, training=training, **self.env_options)


def evaluation_task(job: Job, episodes: int, seed: int, *, as_trained: bool = False) -> Task:
    """The evaluation twin, with as many environments as suit what it is: it may be in-graph where the training is not. `as_trained`, where
    no other environment was named to evaluate on: rewards and ends as training has them."""
    if is_instance(job.source if job.eval_source is None else job.eval_source):
        return job.make(1, seed=seed, training=False)
    training = as_trained and job.eval_source is None
    made = job.make(evaluate.envs_for(episodes, in_graph=False), seed=seed, training=training)
    wanted = evaluate.envs_for(episodes, in_graph=made.in_graph)
    if made.num_envs != wanted:
        made.close()
        made = job.make(wanted, seed=seed, training=training)
    if isinstance(made, DataTask) and job.eval_source is None:
        # Other rows in the file would be other test rows: some that were learned from.
        demand_same_data(job, made)
    return made


EVALUATION = "eval_"
"""What the settings of an evaluation begin with: they change nothing that is learned."""


def evaluation_config(job: Job, settings: Mapping[str, Any]) -> Any:
    """The run's Config with settings of an evaluation in other values. Raises FlatironsError for other settings, and values that do not
    fit."""
    hints = typing.get_type_hints(job.system.Config)
    names = [field.name for field in dataclasses.fields(job.config) if field.name.startswith(EVALUATION)]
    chosen = {}
    for name, value in settings.items():
        if name not in names:
            known = _near(name, names) if names else "it has none"
            raise FlatironsError(f"{name!r} is no setting of an evaluation of {job.name}; {known}")
        one_of_several = typing.get_origin(hints[name]) is tuple and not isinstance(value, (list, tuple))
        accepted, chosen[name] = fits(hints[name], (value,) if one_of_several else value)
        if not accepted:
            raise FlatironsError(f"{name}={value!r} does not fit {job.name}: give {_says(hints[name])}")
    config = dataclasses.replace(job.config, **chosen)
    if settings:
        ranges.demand(config, job.name)
    return config


def demand_same_spaces(made: Task, twin: Task) -> None:
    """Raises FlatironsError where a policy of `made` cannot act in `twin`."""
    for what, ours, theirs in (("observations", made.spec.obs, twin.spec.obs), ("actions", made.spec.action, twin.spec.action)):
        if ours != theirs:
            raise FlatironsError(
                f"the evaluation environment {twin.name} has other {what} than {made.name}: {theirs} where the run has {ours}; "
                "evaluate on one with the same spaces"
            )


# --------------------------------------------------------------------------------------------------------------- the door


def _near(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    return f"did you mean {found[0]!r}?" if found else f"it has {', '.join(words)}"


def fits(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` may stand in a Config field of this type, and the value as that type: an integral float for an int, an int for a
    float, a list for a tuple. Texts are never numbers, and bools never ints."""
    if isinstance(value, np.generic):
        value = value.item()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    origin = typing.get_origin(hint)
    if hint is Any:
        return True, value
    if hint is type(None):
        return value is None, None
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            accepted, coerced = fits(part, value)
            if accepted:
                return True, coerced
        return False, value
    if origin is typing.Literal:
        return value in typing.get_args(hint), value
    if origin is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            return False, value
        kinds = [parts[0]] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else list(parts)
        if len(kinds) != len(value):
            return False, value
        found = [fits(kind, part) for kind, part in zip(kinds, value, strict=True)]
        return all(accepted for accepted, _ in found), tuple(part for _, part in found)
    if hint is float:
        return number and math.isfinite(value), float(value) if number else value
    if hint is int:
        whole = number and math.isfinite(value) and float(value).is_integer()
        return whole, int(value) if whole else value
    return isinstance(value, hint if isinstance(hint, type) else object), value


def _says(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_says(part) for part in typing.get_args(hint))
    names = {float: "a finite number", int: "a whole number", bool: "True or False", str: "a text", type(None): "None"}
    return names.get(hint) or (hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint))


def make_config(system: Any, settings: Mapping[str, Any]) -> Any:
    """A system's Config from settings by name, each brought to its field's type.

    Raises FlatironsError for a name that is no field (with the nearest one) and for a value of another type.
    """
    hints = typing.get_type_hints(system.Config)
    names = [field.name for field in dataclasses.fields(system.Config)]
    values = {}
    for name, value in settings.items():
        if name not in names:
            raise FlatironsError(f"{system_name(system)} has no setting {name!r}; {_near(name, names)}")
        accepted, values[name] = fits(hints[name], value)
        if not accepted:
            raise FlatironsError(f"{name}={value!r} does not fit {system_name(system)}: give {_says(hints[name])}")
    return system.Config(**values)


def demand_divides(name: str, steps: Any, config: Any, system: Any) -> int:
    """`steps` as an int. Raises FlatironsError, with the nearest that would do, where it is not a whole number of turns."""
    whole, steps = fits(int, steps)
    if not whole:
        raise FlatironsError(f"{name}={steps!r} is not a whole number of {counted(system)}")
    turn = system.steps_per_turn(config)
    if turn < 1:
        small = {f.name: 1 for f in dataclasses.fields(config) if type(value := getattr(config, f.name)) is int and value < 1}
        guilty = [
            name
            for name in small
            if system.steps_per_turn(dataclasses.replace(config, **{n: one for n, one in small.items() if n != name})) < 1
        ]
        said = ", ".join(f"{n}={getattr(config, n)}" for n in guilty or small)
        raise FlatironsError(f"{said} would make a turn of {system_name(system)} {turn} {counted(system)} long; give at least 1")
    if steps < 1 or steps % turn:
        low = steps // turn * turn
        choices = " or ".join(f"{n:_}" for n in (low, low + turn) if n > 0)
        raise FlatironsError(f"{name}={steps:_} is not a whole number of turns of {turn:_} {counted(system)}; choose {choices}")
    return steps


def name_of_task(source: Any) -> str:
    """What a task is called before it is made: its name or registered id, or the name of its class or factory. A board game has one name,
    however it was written."""
    if isinstance(source, str):
        return games.task_name(source)
    if is_instance(source):
        return source.spec.id if source.spec is not None else type(source.unwrapped).__qualname__
    return (source if hasattr(source, "__qualname__") else type(source)).__qualname__


def is_instance(source: Any) -> bool:
    """Whether the task is one Gymnasium environment that exists already (it cannot be made again)."""
    if isinstance(source, str) or (callable(source) and not hasattr(source, "step")):
        return False
    import gymnasium

    return isinstance(source, gymnasium.Env)


def choose(system: Any, preset: str | None, task_name: str) -> tuple[Any, dict[str, Any], str | None, str | None]:
    """(module, settings, preset, the preset below it) of what the person asked for."""
    if isinstance(system, str):
        module, _, named = studies.find(system)
        if named is not None and preset is not None and named != preset:
            raise FlatironsError(f"{system!r} is a preset itself; leave out preset={preset!r}, or name the system")
        preset = preset or named
    else:
        module = system
    if preset is not None and preset not in module.PRESETS:
        systems.demand_trainable(preset)
        known = list(module.PRESETS)
        raise FlatironsError(f"{system_name(module)} has no preset {preset!r}; {_near(preset, known) if known else 'it has none'}")
    preset, below, settings = systems.preset_for(module, preset, task_name)
    return module, settings, preset, below


def demand_whole(name: str, value: Any, least: int) -> None:
    """Raises FlatironsError for what is no whole number, and for one below `least`."""
    if value is None or not fits(int, value)[0] or value < least:
        raise FlatironsError(f"{name}={value!r} must be a whole number, at least {least}")


def check_options(options: Options, seed: int, seeds: int, workers: int) -> Options:
    """The options with integral floats as ints. Raises FlatironsError for a number that cannot be."""
    for name, value, least in (
        ("seed", seed, 0), ("seeds", seeds, 1), ("workers", workers, 1), ("keep", options.keep, 1), ("eval_every", options.eval_every, 1),
        ("eval_episodes", options.eval_episodes, 1), ("checkpoint_every", options.checkpoint_every, 1),
    ):  # fmt: skip
        if value is not None or not name.endswith("every"):
            demand_whole(name, value, least)
    if max(seed, seeds) > MOST_SEED:
        raise FlatironsError(f"seed={seed!r} and seeds={seeds!r} must be at most {MOST_SEED:_}")
    whole = {f.name: int(v) for f in dataclasses.fields(options) if isinstance(v := getattr(options, f.name), float)}
    return dataclasses.replace(options, **whole)


def demand_same_data(job: Job, made: Task) -> None:
    """Raises FlatironsError where a run that learns from data finds other files than it began with."""
    recorded = job.recorded.get("data_sha256")
    if recorded is None:
        return
    found = _data_sha256(job, made)
    if found is not None and found != recorded:
        where = ", ".join(str(path) for path in _own_files(job)[:3]) or made.name
        raise FlatironsError(
            f"the files of {where} are not those that {job.path} began with (SHA-256 {found[:12]}... where it recorded "
            f"{recorded[:12]}...); put the old ones back, or begin a new run"
        )


def _own_files(job: Job) -> tuple[Path, ...]:
    """The files that a system's settings name to learn from."""
    return job.system.files(job.config) if hasattr(job.system, "files") else ()


def _data_sha256(job: Job, made: Task) -> str | None:
    """The digest of the files that a task, or a system by its settings, reads; None where there are none."""
    match made:
        case DataTask():
            return made.sha256
        case InGraph(env=meta.Glyphs(pictures=pictures)):
            return pictures.sha256
        case _:
            each = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _own_files(job)]
            return hashlib.sha256("".join(each).encode()).hexdigest() if each else None


# ---------------------------------------------------------------------------------------------------------------- records


def record_of(job: Job, made: Task, *, vmapped: bool) -> dict[str, Any]:
    """What config.json says."""
    custom_network = isinstance(vars(job.config).get("network"), Network)
    settings = {f.name: getattr(job.config, f.name) for f in dataclasses.fields(job.config)}
    if custom_network:
        settings["network"] = None
    return {
        "format": 1,
        "system": job.name,
        "preset": job.preset,
        "task": made.name,
        "env": job.source if isinstance(job.source, str) else None,
        "own_env": None if isinstance(job.source, str) else folder.qualified_name(job.source),
        "own_network": folder.qualified_name(job.config.network.apply) if custom_network else None,
        "own_eval_env": None if job.eval_source is None or isinstance(job.eval_source, str) else folder.qualified_name(job.eval_source),
        "eval_env": job.eval_source if isinstance(job.eval_source, str) else None,
        "env_options": job.env_options,
        "in_graph": made.in_graph,
        "spec": spec_to_json(made.spec),
        "data_sha256": _data_sha256(job, made),
        "columns": made.columns if isinstance(made, DataTask) else (),
        "labels": made.labels if isinstance(made, DataTask) else (),
        "seed": job.seed,
        "seeds": job.seeds,
        "vmapped": vmapped,
        "total_steps": job.config.total_steps,
        "config": settings,
        "options": dataclasses.asdict(job.options),
        "from_run": None if job.from_run is None else str(job.from_run.absolute()),
        "group": folder.group_around(job.path, job.seed) if job.seeds == 1 else None,
        **folder.surroundings(),
    }


def slots(job: Job) -> list[Path]:
    """The folders that hold the metrics and policies: one per seed of a vmapped run."""
    return [job.path] if job.seeds == 1 else [job.path / f"seed_{job.seed + i}" for i in range(job.seeds)]


def write_records(job: Job) -> None:
    """Write config.json, and that of every seed of a vmapped run."""
    write_record(job.path, job.recorded)
    if job.seeds > 1:
        for i in range(job.seeds):
            _write_seeds_record(job, i)


def _write_seeds_record(job: Job, i: int) -> None:
    slot = slots(job)[i]
    slot.mkdir(exist_ok=True)
    write_record(slot, {**job.recorded, "seed": job.seed + i, "seeds": 1, "vmapped": False, "part_of": job.path.name})


def mend_records(job: Job) -> None:
    """Write the config.json of each seed of a vmapped run that has lost it, or has a damaged one, and say so."""
    for i, slot in enumerate(slots(job) if job.seeds > 1 else ()):
        if not folder.has_record(slot):
            _write_seeds_record(job, i)
            folder.warn(f"{slot / folder.CONFIG} was missing or damaged; it was written anew from that of {job.path}")


def record_budget(job: Job) -> None:
    """Write a changed `total_steps` into config.json."""
    if job.recorded["total_steps"] != job.config.total_steps:
        job.recorded["total_steps"] = job.recorded["config"]["total_steps"] = job.config.total_steps
        if job.recorded["vmapped"] or job.seeds == 1:
            write_records(job)
        else:
            write_record(job.path, job.recorded)


def reopen(path: Path, *, env: Any, network: Any, system: Any, eval_env: Any = None, config: Any = None, acting_only: bool = False) -> Job:
    """The job of a run folder."""
    if not path.is_dir():
        raise FlatironsError(f"there is no run folder {path}; give the --out of a training run")
    recorded = read_record(path)
    if recorded.get("part_of") and not acting_only:
        raise FlatironsError(f"{path} is one seed of a run that was trained as one program; resume {path.parent}")
    try:
        if system is None:
            try:
                system = studies.find(recorded["system"])[0]
            except FlatironsError:
                raise FlatironsError(
                    f"{path} was trained with {recorded['system']!r}, a system of your own; pass system=... again"
                ) from None
        elif isinstance(system, str):
            system = studies.find(system)[0]
        settings = dict(recorded["config"])
        unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(system.Config)})
        if unknown:
            raise FlatironsError(
                f"{path} was trained by {_written_by(recorded)}, whose {system_name(system)} had {', '.join(unknown)}, which this one has "
                "not; use that version for it, or train anew"
            )
        if recorded["own_network"] is not None and config is None:
            if network is None:
                raise FlatironsError(f"{path} was trained with a network of your own ({recorded['own_network']}); pass network=... again")
            settings["network"] = network
        config = config or make_config(system, settings)
        source = recorded["env"] if recorded["env"] is not None else env
        if source is None and (not acting_only or recorded["in_graph"]):
            raise FlatironsError(f"{path} was trained on an environment of your own ({recorded['own_env']}); pass env=... again")
        eval_source = recorded["eval_env"] or eval_env
        if eval_source is None and recorded["own_eval_env"] is not None and not acting_only:
            raise FlatironsError(
                f"{path} was evaluated on an environment of your own ({recorded['own_eval_env']}); pass eval_env=... again"
            )
        options = Options(**recorded["options"])
        return Job(
            system, recorded["preset"], config, source, dict(recorded["env_options"]), eval_source, recorded["seed"], recorded["seeds"],
            path, options, quiet=True, recorded=recorded, from_run=None if recorded["from_run"] is None else Path(recorded["from_run"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError):
        raise FlatironsError(
            f"{path / folder.CONFIG} lacks what this version reads: it was written by {_written_by(recorded)}; use that version for it, or "
            "train anew"
        ) from None


def _written_by(record: Mapping[str, Any]) -> str:
    """Which Flatirons wrote a record, in words."""
    versions, commit = record.get("versions"), record.get("git_commit")
    version = versions.get("flatirons") if isinstance(versions, dict) else None
    return f"Flatirons {version or 'of unknown version'}" + (f" (in a repository at commit {str(commit)[:10]})" if commit else "")


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A Spec as JSON, so that a policy can be used without its environment."""

    def obs(part: Any) -> Any:
        if isinstance(part, ArraySpec):
            return {"array": dataclasses.asdict(part)}
        if isinstance(part, Mapping):
            return {"dict": {name: obs(inner) for name, inner in part.items()}}
        return {"tuple": [obs(inner) for inner in part]}

    action = {"kind": type(spec.action).__name__, **dataclasses.asdict(spec.action)}
    return {"obs": obs(spec.obs), "action": action, "max_episode_steps": spec.max_episode_steps}


def spec_from_json(value: Mapping[str, Any]) -> Spec:
    """The way back; older records lack `start` and some a `raw_shape`. Raises KeyError, TypeError or ValueError for what is not a spec."""

    def bound(number: float | None, otherwise: float) -> float:
        return otherwise if number is None else number

    def obs(part: Mapping[str, Any]) -> Any:
        if "array" in part:
            a = part["array"]
            low, high = bound(a["low"], -np.inf), bound(a["high"], np.inf)
            return ArraySpec(tuple(a["shape"]), a["dtype"], low, high, a["stack"], tuple(a.get("start", ())))
        if "dict" in part:
            return {name: obs(inner) for name, inner in part["dict"].items()}
        return tuple(obs(inner) for inner in part["tuple"])

    action = dict(value["action"])
    kind = action.pop("kind")
    raw_shape = None if action.get("raw_shape") is None else tuple(action["raw_shape"])
    if kind == "Box":
        low, high = tuple(bound(x, -np.inf) for x in action["low"]), tuple(bound(x, np.inf) for x in action["high"])
        made: Any = Box(low, high, raw_shape)
    elif kind == "MultiDiscrete":
        made = MultiDiscrete(tuple(action["nvec"]), tuple(action.get("start", ())), raw_shape)
    else:
        made = Discrete(int(action["n"]), int(action["start"]))
    return Spec(obs(value["obs"]), made, value["max_episode_steps"])


@dataclasses.dataclass(frozen=True, eq=False)
class SpecTask:
    """A host task that only says what it is like: enough to lay out a State and to act. `masked` says whether it names legal actions."""

    name: str
    num_envs: int
    spec: Spec
    masked: bool = False
    notes: tuple[str, ...] = ()
    in_graph: bool = False

    @property
    def current(self) -> TimeStep:
        """Zeros of the right shapes."""
        zeros = jax.tree.map(
            lambda s: np.zeros((self.num_envs, *s.shape), s.dtype), self.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec)
        )
        legal = np.ones((self.num_envs, sum(spaces.choices(self.spec.action))), np.bool_) if self.masked else ()
        return TimeStep(zeros, legal, np.ones(self.num_envs, np.bool_), ())


def acting_task(job: Job) -> Any:
    """A task to act for, one observation at a time; no environment is made for a host's, and no table of one's own is read."""
    name = str(job.recorded["task"])
    of_ones_own = name.startswith("data:") and own_data.is_file(name) and "split" in vars(job.config)
    if job.recorded["in_graph"] and not of_ones_own:
        return job.make(job.config.num_envs, seed=job.seed, training=False)
    try:
        spec = spec_from_json(job.recorded["spec"])
        if of_ones_own:
            columns, labels = (tuple(job.recorded.get(key, ())) for key in ("columns", "labels"))
            return own_data.without_rows(name, job.config.num_envs, spec, vars(job.config)["split"], columns, labels)
        return SpecTask(name, job.config.num_envs, spec)
    except (KeyError, TypeError, ValueError):
        raise FlatironsError(
            f"{job.path / folder.CONFIG} is damaged: its spec cannot be read; take it from a copy of the run folder"
        ) from None


# ------------------------------------------------------------------------------------------------------------- its State


def seed_keys(job: Job) -> Any:
    """The key of the run, or keys `[seeds]`."""
    if job.seeds == 1:
        return jax.random.key(job.seed)
    return jnp.stack([jax.random.key(job.seed + i) for i in range(job.seeds)])


def init_function(job: Job, task: Task) -> Callable[[Any, Any], Any]:
    """`init(config, key) -> State`, over a leading axis of seeds where there are several; to be jitted."""

    def init(config: Any, key: Any) -> Any:
        return strong(job.system.init(config, task, key))

    return init if job.seeds == 1 else jax.vmap(init, in_axes=(None, 0))


def state_like(job: Job, task: Task) -> Any:
    """The State as `ShapeDtypeStruct`s, without computing anything."""
    return jax.eval_shape(init_function(job, task), job.config, seed_keys(job))


def actor_like(system: Any, config: Any, task: Any) -> Any:
    """The Actor as `ShapeDtypeStruct`s, without computing anything or reading what only training needs."""
    if hasattr(system, "to_act"):
        config = system.to_act(config)
    return jax.eval_shape(lambda config, key: system.actor(system.init(config, task, key)), config, jax.random.key(0))


def strong(tree: Any) -> Any:
    """Without weak types, so that a State from a step, a checkpoint and `init` are one type to the compiler."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, np.dtype(x.dtype)), tree
    )


def owned(leaf: Any) -> Any:
    """An array of JAX's own: memory that NumPy gave may neither be donated nor read later."""
    if isinstance(leaf, jax.Array):
        return leaf
    return jnp.array(leaf, copy=True)


def on_device(config: Any) -> Any:
    """The Config with its floats as float32 scalars on the device, sent there once."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
