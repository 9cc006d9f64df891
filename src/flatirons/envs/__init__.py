"""The one door to environments: `make(task) -> Task`, in-graph or on the host, and `check(task) -> list[Finding]`.

Names: `CartPole-v1` (any Gymnasium id), `mymodule:My-v0` (one that a module registers, which is imported first), `ALE/Pong-v5` (Atari
through ale-py's vector environment), `envpool:HalfCheetah-v5`, `jax:CartPole-v1`, `pgx:minatar-breakout`, `pgx:connect_four` (a board
game), `mdp:FrozenLake-v1`, `probe:constant-reward` (these four prefixes are in-graph), `pixels:Pendulum-v1` (what is seen of it),
`discrete:Pusher-v5` (its Box of actions cut into a Discrete choice), `no-velocity:CartPole-v1` and `no-velocity:jax:CartPole-v1` (its
velocities hidden), `data:mnist` and `data:houses.csv` (data to learn from, without an environment; a file of one's own),
`sequence:TASK,TASK` (in-graph tasks to be learned in turn), `meta:navigation` (a distribution over tasks, to learn to learn from).
Simulators are imported when one is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import json
import numbers
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flatirons.types import FlatironsError, Task

if TYPE_CHECKING:
    from flatirons.envs.checker import Finding

__all__ = ["VECTORISERS", "Recipe", "check", "make", "names"]

VECTORISERS = ("auto", "serial", "threads", "processes", "gymnasium")
"""How a batch of Gymnasium environments may be stepped; `auto` chooses and says so in the task's notes."""

_PREFIXES = ("jax", "pgx", "mdp", "probe", "sequence", "data", "meta", "envpool", "pixels", "discrete", "no-velocity")
"""What stands before the colon in names of ours; anything else there is a module that registers what is behind it."""

_NEVER_ANEW = ("jax", "pgx", "mdp", "probe", "sequence", "data", "envpool")
"""Prefixes whose environments are no objects that could be made again one by one."""

_EXTRAS = {
    "ale_py": "atari",
    "mujoco": "mujoco",
    "imageio": "mujoco",
    "Box2D": "box2d",
    "box2d": "box2d",
    "pygame": "box2d",
    "pgx": "games",
    "pgx_minatar": "games",
    "mctx": "games",
    "envpool": "envpool",
    "gymnasium_robotics": "robotics",
}


def make(
    task: Any,
    num_envs: int = 1,
    *,
    seed: int = 0,
    training: bool = True,
    vectoriser: str = "auto",
    timeout_s: float | None = 60.0,
    restarts: int = 0,
    **options: Any,
) -> Task:
    """Make a task: a batch of `num_envs` environments that resets itself.

    task: a name (see the top of this file), a `gymnasium.Env` instance (num_envs must be 1), a factory `() -> gymnasium.Env`, or an
    in-graph environment (an object with `init`, `step`, `observe`, `legal` and its specs).
    seed: of a host task's first episodes; in-graph tasks take a key at `reset` instead.
    training: False makes the evaluation twin: raw rewards and whole games in Atari; time limits stay.
    vectoriser: one of `VECTORISERS`, for Gymnasium's environments.
    timeout_s: after how long a host environment that does not return is an error (its making has 180 s at least); None to wait for ever.
    restarts: how often each environment of Gymnasium's kind is made anew after a fault (it raised, its worker died or hung, it gave NaN)
    before that is an error. Its episode is cut, counts nowhere, and is said on stderr.
    options: the environment's own (Gymnasium's `make` arguments such as `render_mode`, the fields of `AtariOptions`, an in-graph
    environment's fields).

    Raises FlatironsError for an unknown name (with the nearest ones), a missing extra (with the line that installs it), an unknown option.
    """
    stepping = Stepping(vectoriser, timeout_s, restarts)
    made = _make(task, num_envs, seed=seed, training=training, stepping=stepping, **options)
    if not made.in_graph:
        made.recipe = Recipe(task, dict(training=training, **stepping._asdict(), **options), seed)  # type: ignore[union-attr]
    return made


class Stepping(NamedTuple):
    """How host environments are stepped, as `make` takes it."""

    vectoriser: str = "auto"
    timeout_s: float | None = 60.0
    restarts: int = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a host task was made from, so that another with environments of its own can be made: what was passed to `make`."""

    task: Any
    options: dict[str, Any]
    seed: int

    def make(self, num_envs: int, seed: int) -> Task:
        """Another of it. Raises FlatironsError where the task was one environment that exists already."""
        import gymnasium

        if isinstance(self.task, gymnasium.Env):
            raise FlatironsError("one environment instance was passed and more are needed; pass a function that makes a new one")
        return make(self.task, num_envs, seed=seed, **self.options)


def _make(task: Any, num_envs: int, *, seed: int, training: bool, stepping: Stepping, **options: Any) -> Task:
    vectoriser, timeout_s, restarts = stepping
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise FlatironsError(f"num_envs is {num_envs!r}; it is a whole number from 1 up")
    if vectoriser not in VECTORISERS:
        raise FlatironsError(
            f"the vectoriser {vectoriser!r} is unknown{_nearest(str(vectoriser), VECTORISERS)}; there are {', '.join(VECTORISERS)}"
        )
    if not _fits(float | None, timeout_s) or (timeout_s is not None and not timeout_s > 0):
        raise FlatironsError(f"timeout_s is {timeout_s!r}; it is a number of seconds above 0, or None to wait for ever")
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise FlatironsError(f"restarts is {restarts!r}; it is a whole number from 0 up")
    if not isinstance(task, str):
        return _from_object(task, num_envs, seed, stepping, options)
    prefix, colon, rest = task.partition(":")
    if restarts and (task.startswith("ALE/") or rest.startswith("jax:") or (colon and prefix in _NEVER_ANEW)):
        raise FlatironsError(f"{task} is stepped as one program, in which no environment is made anew; leave restarts at 0")
    if colon and prefix in ("jax", "pgx", "mdp", "probe"):
        if vectoriser != "auto":
            raise FlatironsError(f"{task} runs in-graph, where there is nothing to vectorise; leave the vectoriser at 'auto'")
        return _in_graph(task, prefix, rest, num_envs, options)
    if colon and prefix == "sequence":
        return _sequence(task, rest, num_envs, options)
    if colon and prefix == "data":
        return _data(task, rest, num_envs, options)
    if colon and prefix == "meta":
        return _meta(task, rest, num_envs, seed, training, stepping, options)
    if colon and prefix == "envpool":
        _import("envpool")
        from flatirons.envs.envpool import make_envpool

        return make_envpool(rest, num_envs, seed=seed, timeout_s=timeout_s, **options)
    if colon and prefix == "pixels":
        from flatirons.envs import pixels

        options.pop("render_mode", None)  # it is drawn anyway
        return _from_wrapped(task, rest, pixels, pixels.PixelOptions, num_envs, seed, stepping, options)
    if colon and prefix == "discrete":
        from flatirons.envs import discrete

        return _from_wrapped(task, rest, discrete, discrete.DiscreteOptions, num_envs, seed, stepping, options)
    if colon and prefix == "no-velocity":
        from flatirons.envs import no_velocity

        if rest.startswith("jax:"):
            if vectoriser != "auto":
                raise FlatironsError(f"{task} runs in-graph, where there is nothing to vectorise; leave the vectoriser at 'auto'")
            kept = no_velocity.positions(rest.removeprefix("jax:"))
            whole: Any = _in_graph(rest, "jax", rest.removeprefix("jax:"), num_envs, options)
            return type(whole)(no_velocity.InGraphSeen(whole.env, kept), num_envs, task)
        return _from_wrapped(task, rest, no_velocity, no_velocity.NoVelocityOptions, num_envs, seed, stepping, options)
    if task.startswith("ALE/"):
        _import("ale_py")
        from flatirons.envs.atari import AtariOptions, make_atari

        if vectoriser != "auto":
            raise FlatironsError(f"{task} is stepped by ale-py's own vector environment; leave the vectoriser at 'auto'")
        _demand_types(task, typing.get_type_hints(AtariOptions), options)
        return make_atari(task, num_envs, seed=seed, training=training, timeout_s=timeout_s, **options)
    return _from_gymnasium(task, num_envs, seed, stepping, options)


def check(task: Any, *, options: Mapping[str, Any] | None = None, **limits: Any) -> list[Finding]:
    """Check an environment: a name, a `gymnasium.Env`, a factory or an in-graph environment. `options` are those of the environment, as
    `make` takes them, and `limits` those of the walk. See `flatirons.envs.checker`."""
    from flatirons.envs import checker

    return checker.check(task, options=options, **limits)


def can_be_drawn(task: str, *, in_graph: bool) -> bool:
    """Whether there are pictures of a task that `make` knows by this name. Of a host's task only what runs somewhere else has none."""
    from flatirons.envs import minatar, render

    prefix, _, name = task.removeprefix("no-velocity:").partition(":")
    if not in_graph:
        return prefix not in ("data", "meta", "envpool")
    return name in minatar.NAMES if prefix == "pgx" else prefix == "jax" and name in render.STATE_SIZES


def names() -> list[str]:
    """Every name that `make` knows here: our in-graph ones and Gymnasium's ids (Atari's where ale-py is installed)."""
    import gymnasium

    found = [f"{prefix}:{name}" for prefix, table in _tables().items() for name in table]
    with contextlib.suppress(ImportError):
        gymnasium.register_envs(importlib.import_module("ale_py"))
    return found + [name for name in gymnasium.registry if not name.startswith(("phys2d/", "tabular/", "GymV"))]


def _worlds() -> Mapping[str, Any]:
    """The worlds behind `jax:`."""
    from flatirons.envs import classic, forager, maze

    return {**classic.ENVS, **forager.ENVS, **maze.ENVS}


def _tables() -> Mapping[str, Any]:
    from flatirons.envs import datasets, games, mdp, meta, minatar, probes

    return {
        "jax": tuple(_worlds()),
        "pgx": (*minatar.NAMES, *games.GAMES),
        "mdp": (*mdp.TOY_TEXT, *mdp.OWN),
        "probe": tuple(probes.ENVS),
        "data": tuple(datasets.SETS),
        "meta": meta.NAMES,
    }


def _nearest(name: str, known: Any, prefix: str = "") -> str:
    """Words that offer the nearest names, each behind `prefix`, or nothing."""
    lower = {other.lower(): other for other in known}
    close = [f"{prefix}{lower[match]}" for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _unknown(task: str) -> FlatironsError:
    offer = _nearest(task, names()) or "; `flatirons list` names the tasks, and any Gymnasium id that is registered will do, or mymodule:ID"
    return FlatironsError(f"the task {task!r} is unknown{offer}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether `value` is of one of the plain types in `hint`; any value is of another type."""
    kinds = typing.get_args(hint) or (hint,)
    if not {int, float, bool, str, type(None)}.issuperset(kinds):
        return True
    whole, number = (isinstance(value, kind) and not isinstance(value, bool) for kind in (numbers.Integral, numbers.Real))
    plain = tuple(kind for kind in kinds if kind not in (int, float))
    return (
        isinstance(value, plain) or (int in kinds and whole) or (float in kinds and number) or (bool in kinds and whole and value in (0, 1))
    )


def _demand_types(task: str, hints: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises FlatironsError for an option of another type than its hint's. What has no hint is somebody else's to judge."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    for name, value in options.items():
        if not _fits(hints.get(name, object), value):
            hint = hints[name]
            raise FlatironsError(
                f"{name}={value!r} does not fit {task}: give {' or '.join(words[kind] for kind in typing.get_args(hint) or (hint,))}"
            )


def _missing(task: str, module: str) -> FlatironsError:
    extra = _EXTRAS.get(module.split(".")[0])
    line = f"pip install 'flatirons[{extra}]'" if extra else f"pip install {module.split('.')[0]}"
    return FlatironsError(f"{task} needs the package {module}, which is not installed; install it with: {line}")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing("this task", error.name or module) from None


def _behind_module(task: str, name: str) -> tuple[str | None, str]:
    """The module before the colon of `name`, which `task` is or wraps, and the id behind it, registered by now: the module is imported, as
    `gymnasium.make` does. None and `name` itself where there is no module."""
    import gymnasium

    module, colon, bare = name.partition(":")
    if not colon or module in _PREFIXES or not all(module.split(".")):
        return None, name
    _import_own(task, module)
    if bare not in gymnasium.registry:
        offer = _nearest(bare, gymnasium.registry, f"{module}:") or f"; the module {module} registers no {bare!r}"
        raise FlatironsError(f"the task {task!r} is unknown{offer}")
    return module, bare


def _import_own(task: str, module: str) -> None:
    """Import a module that registers environments. Raises FlatironsError where it is missing or its code fails."""
    top = module.partition(".")[0]
    # The command `flatirons` is started without the working directory on its path. Last, and only where nothing else has the module.
    if top not in sys.modules and "" not in sys.path and not sys.flags.safe_path and importlib.util.find_spec(top) is None:
        sys.path.append("")
    try:
        importlib.import_module(module)
    except FlatironsError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            if not f"{module}.".startswith(f"{error.name}."):
                raise _missing(task, error.name) from None
            ours = [name for name in names() if name.startswith(("data:", "meta:"))]
            offer = _nearest(module, _PREFIXES) or _nearest(task, ours) or "; put its folder on PYTHONPATH"
            raise FlatironsError(f"the task {task!r} names the module {error.name}, which is not installed{offer}") from None
        print(traceback.format_exc(), file=sys.stderr, end="")
        said = " ".join(str(error).split())
        raise FlatironsError(f"the module {module} of the task {task!r} cannot be imported: {type(error).__name__}: {said}") from error


def demand_extra(task: str) -> None:
    """Raises FlatironsError with the install line where the package behind a task is missing; makes nothing."""
    for prefix, module in (("ALE/", "ale_py"), ("pgx:", "pgx"), ("envpool:", "envpool")):
        if task.startswith(prefix):
            _import(module)


def _in_graph(task: str, prefix: str, name: str, num_envs: int, options: dict[str, Any]) -> Task:
    from flatirons.envs.ingraph import InGraph

    known = _tables()[prefix]
    if prefix == "mdp":
        return InGraph(_finite(task, name, known, options), num_envs, task)
    if prefix == "pgx" and (game := name.replace("-", "_")) in known:
        return _board_game(f"pgx:{game}", game, num_envs, options)
    if name not in known:
        offer = _nearest(name, known, f"{prefix}:")
        raise FlatironsError(f"the task {task!r} is unknown{offer or f'; {prefix}: has {chr(44).join(known)}'}")
    if prefix == "pgx":
        from flatirons.envs import minatar

        _demand_types(task, typing.get_type_hints(minatar.make), options)
        try:
            env: Any = minatar.make(name, **options)
        except TypeError as error:
            raise FlatironsError(f"{task} does not take these options: {error}") from None
        except ModuleNotFoundError as error:
            raise _missing(task, error.name or "pgx") from None
    else:
        from flatirons.envs import probes

        env = (_worlds() if prefix == "jax" else probes.ENVS)[name]
        if options:
            fields = [field.name for field in dataclasses.fields(env)]
            for option in options:
                if option not in fields:
                    raise FlatironsError(f"{task} has no option {option!r}{_nearest(option, fields)}; it has {', '.join(fields) or 'none'}")
            _demand_types(task, typing.get_type_hints(type(env)), options)
            env = dataclasses.replace(env, **options)
    return InGraph(env, num_envs, task)


def _board_game(task: str, name: str, num_envs: int, options: dict[str, Any]) -> Task:
    from flatirons.envs import games
    from flatirons.envs.ingraph import InGraph

    if options:
        raise FlatironsError(f"{task} has no option {next(iter(options))!r}; it has none")
    try:
        return InGraph(games.make(name), num_envs, task)
    except ModuleNotFoundError as error:
        raise _missing(task, error.name or "pgx") from None


def _data(task: str, name: str, num_envs: int, options: dict[str, Any]) -> Task:
    from flatirons.envs import datasets, own_data

    if own_data.is_file(name):
        for option in options:
            if option not in own_data.OPTIONS:
                raise FlatironsError(f"{task} has no option {option!r}; it has {', '.join(own_data.OPTIONS)}")
        _demand_types(task, own_data.OPTIONS, options)
        return own_data.make(name, num_envs, **options)
    if name not in datasets.SETS:
        offer = _nearest(name, datasets.SETS) or f"; data: has {', '.join(datasets.SETS)}, and files: data:FILE.csv, data:FILE.npz"
        raise FlatironsError(f"the task {task!r} is unknown{offer}")
    for option in options:
        if option != "data_dir":
            raise FlatironsError(f"{task} has no option {option!r}; it has data_dir")
    _demand_types(task, {"data_dir": str | None}, options)
    return datasets.make(name, num_envs, **options)


def _sequence(task: str, names: str, num_envs: int, options: dict[str, Any]) -> Task:
    from flatirons.envs import sequence

    made = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        padded = {"channels": sequence.MINATAR_CHANNELS} if name.startswith("pgx:minatar-") else {}
        made.append(make(name, num_envs, **{**padded, **options}))
    return sequence.Sequence(made, task)


def _meta(task: str, name: str, num_envs: int, seed: int, training: bool, stepping: Stepping, options: dict[str, Any]) -> Task:
    from flatirons.envs import meta
    from flatirons.envs.ingraph import InGraph

    if name not in meta.NAMES:
        raise FlatironsError(f"the task {task!r} is unknown{_nearest(name, meta.NAMES) or f'; meta: has {chr(44).join(meta.NAMES)}'}")
    known = meta.OPTIONS[name]
    for option in options:
        if option not in known:
            raise FlatironsError(f"{task} has no option {option!r}{_nearest(option, known)}; it has {', '.join(known) or 'none'}")
    _demand_types(task, known, options)
    if name in meta.HOST:
        env = meta.HOST[name]
        if stepping.restarts:
            raise FlatironsError(f"{task} sets each environment a task of its own, so none is made anew; leave restarts at 0")
        worlds: Any = _from_gymnasium(env.gymnasium_id, num_envs, seed, stepping, dict(env.options) | options)
        return meta.HostMeta(task, env, worlds, seed)
    if stepping.vectoriser != "auto":
        raise FlatironsError(f"{task} runs in-graph, where there is nothing to vectorise; leave the vectoriser at 'auto'")
    made, notes = meta.in_graph(name, training=training, **options)
    return InGraph(made, num_envs, task, notes)


def _finite(task: str, name: str, known: Any, options: dict[str, Any]) -> Any:
    import gymnasium

    from flatirons.envs import mdp

    _, name = _behind_module(task, name)
    if name not in known:
        # Any registered id may have a transition table, one of a person's own too.
        try:
            gymnasium.spec(name)
        except (gymnasium.error.Error, ModuleNotFoundError):
            offer = _nearest(name, known, "mdp:")
            raise FlatironsError(f"the task {task!r} is unknown{offer or f'; mdp: has {chr(44).join(known)}'}") from None
    hints = typing.get_type_hints(mdp.OWN[name]) if name in mdp.OWN else {}
    _demand_types(task, hints | {"max_episode_steps": int | None}, options)
    return mdp.make(name, **options)


def _from_object(task: Any, num_envs: int, seed: int, stepping: Stepping, options: dict[str, Any]) -> Task:
    from flatirons.envs.ingraph import Env, InGraph

    if options:
        raise FlatironsError(f"the option {next(iter(options))!r} is for named tasks; set it on the environment that you pass")
    if isinstance(task, Env) and not isinstance(task, type):
        return InGraph(task, num_envs, type(task).__name__)
    import gymnasium

    from flatirons.envs import host

    if isinstance(task, gymnasium.Env):
        if num_envs != 1:
            raise FlatironsError(
                f"one environment instance was given for num_envs={num_envs}; pass a factory, a function that makes a new one"
            )
        if stepping.vectoriser not in ("auto", "serial"):
            raise FlatironsError(
                f"one environment instance cannot be stepped by the vectoriser {stepping.vectoriser!r}; pass a factory, or leave it at "
                "'auto'"
            )
        if stepping.restarts:
            raise FlatironsError("one environment instance cannot be made anew; pass a factory, or leave restarts at 0")
        name = task.spec.id if task.spec is not None else type(task.unwrapped).__name__
        # Nothing is taken off an instance: it stays usable by the person who made it.
        stepping = stepping._replace(vectoriser="serial")
        return host.batch(name, host.Source(lambda _: task, None, False), 1, seed=seed, **stepping._asdict())
    if not callable(task):
        raise FlatironsError(
            f"a {type(task).__name__} is not a task; give a name, a gymnasium.Env, a function that makes one, or an in-graph environment"
        )
    with host.watched(lambda: "the task's factory, while it made the first environment", host.making_limit(stepping.timeout_s)):
        made: list[Any] = [task()]
    if isinstance(made[0], Env):
        return InGraph(made[0], num_envs, type(made[0]).__name__)
    if not isinstance(made[0], gymnasium.Env):
        raise FlatironsError(f"the factory returned a {type(made[0]).__name__}; it must return a gymnasium.Env or an in-graph environment")
    module, qualified = getattr(task, "__module__", None), getattr(task, "__qualname__", "")
    importable = module not in (None, "__main__") and qualified and "<" not in qualified
    remote = {"module": module, "name": qualified} if importable else None
    name = made[0].spec.id if made[0].spec is not None else type(made[0].unwrapped).__name__

    def again(_: bool) -> Any:
        return made.pop() if made else task()

    return host.batch(name, host.Source(again, remote, True), num_envs, seed=seed, **stepping._asdict())


def _from_gymnasium(task: str, num_envs: int, seed: int, stepping: Stepping, options: dict[str, Any]) -> Task:
    import gymnasium

    from flatirons.envs import host

    module, name = _behind_module(task, task)
    if module is not None and name.startswith("ALE/"):
        raise FlatironsError(f"the task {task!r} is Atari's; use {name!r}, whose preprocessing is set by options")
    atari = re.fullmatch(r"(?:ALE/)?([A-Z]\w*?)(?:NoFrameskip|Deterministic)-v\d+", name)
    if atari:
        raise FlatironsError(f"the task {task!r} is an old Atari name; use 'ALE/{atari[1]}-v5', whose preprocessing is set by options")
    notes: list[str] = []
    from_robotics = _register_robotics(task, name)
    try:
        with host.warnings_as(notes):
            spec = gymnasium.spec(name)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.Error):
        raise _unknown(task) from None
    _demand_types(task, {"max_episode_steps": int | None, "render_mode": str | None}, options)
    render = {"render_mode": options.pop("render_mode")} if options.get("render_mode") is not None else {}
    options.pop("render_mode", None)

    def one(first: bool) -> gymnasium.Env:
        extra = render if first else {}
        with _said_of(task, options), host.quiet_mujoco(spec):
            return gymnasium.make(name, disable_env_checker=True, **options, **extra)

    cartpole = None
    if spec.entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleEnv" and not render and not stepping.restarts:
        arguments = {"max_episode_steps": spec.max_episode_steps, **spec.kwargs, **options}
        if set(arguments) <= {"max_episode_steps", "sutton_barto_reward"} and (arguments["max_episode_steps"] or 0) > 0:
            cartpole = arguments
    made = host.batch(
        task,
        # A worker process would have Gymnasium-Robotics without what `register` mends.
        host.Source(one, None if from_robotics else _remote(spec, module, options, render), True),
        num_envs,
        seed=seed,
        cartpole=cartpole,
        **stepping._asdict(),
    )
    made.notes = (*made.notes, *(note for note in notes if note not in made.notes))
    return made


def _register_robotics(task: str, name: str) -> bool:
    """Whether `name`, which `task` names or wraps, is of Gymnasium-Robotics; its environments are registered then."""
    import gymnasium

    from flatirons.envs import host, robotics

    known = gymnasium.registry.get(name)
    ours = name.startswith(robotics.PREFIXES) if known is None else str(known.entry_point).startswith("gymnasium_robotics")
    if ours:
        try:
            with host.warnings_as([]):
                robotics.register()
        except ModuleNotFoundError as error:
            raise _missing(task, error.name or "gymnasium_robotics") from None
    return ours


def _from_wrapped(
    task: str,
    name: str,
    module: Any,
    options_type: Any,
    num_envs: int,
    seed: int,
    stepping: Stepping,
    options: dict[str, Any],
) -> Task:
    """A Gymnasium task that one of our modules wraps: its `options_type` takes the options it knows, Gymnasium's `make` the others."""
    import gymnasium

    from flatirons.envs import host

    _, name = _behind_module(task, name)
    _register_robotics(task, name)
    if name.startswith("envpool:"):
        raise FlatironsError(
            f"{task}: {task.partition(':')[0]}: wraps Gymnasium's tasks, and EnvPool's are steps in C++; leave one of them out"
        )
    if name not in gymnasium.registry:
        raise FlatironsError(f"the task {task!r} is unknown{_nearest(name, gymnasium.registry)}")
    _demand_types(task, {"max_episode_steps": int | None, **typing.get_type_hints(options_type)}, options)
    own = {field.name for field in dataclasses.fields(options_type)}
    chosen = options_type(**{key: value for key, value in options.items() if key in own})
    make_one = module.factory(name, chosen, {key: value for key, value in options.items() if key not in own})

    def one(_: bool) -> gymnasium.Env:
        with _said_of(task, options):
            return make_one()

    return host.batch(task, host.Source(one, None, True), num_envs, seed=seed, **stepping._asdict())


@contextlib.contextmanager
def _said_of(task: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Around the making of a Gymnasium task: what goes wrong is a FlatironsError that names what is missing, or the options."""
    import gymnasium

    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        module = _module_named_by(error)
        if module is None:
            raise FlatironsError(f"{task} cannot be made: {error}") from None
        raise _missing(task, module) from None
    except ModuleNotFoundError as error:
        raise _missing(task, error.name or "its simulator") from None
    except TypeError as error:
        raise FlatironsError(f"{task} does not take these options: {error}") from None
    except (gymnasium.error.Error, ImportError) as error:
        raise FlatironsError(f"{task} cannot be made: {' '.join(str(error).split())}") from None
    except Exception as error:
        # A simulator has its own ways to fail on a value that makes no sense to it.
        if not options or isinstance(error, FlatironsError):
            raise
        raise FlatironsError(f"{task} does not take these options: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _module_named_by(error: Exception) -> str | None:
    """The package that a simulator's own complaint is about."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return cause.name
    text = str(error).lower()
    return next((module for module in ("mujoco", "box2d", "pygame", "ale_py") if module.lower() in text), None)


def _remote(spec: Any, module: str | None, options: dict[str, Any], render: dict[str, Any]) -> dict[str, Any] | None:
    """What a worker process needs to make a registered environment, or None where its class or its options cannot be written down. Where
    `module` registers it, the worker imports that, so that the class may be any."""
    try:
        if module not in (None, "__main__"):
            registered = {"import": module, "id": spec.id}
        elif isinstance(spec.entry_point, str) and not spec.entry_point.startswith("__main__"):
            registered = {"spec": spec.to_json()}
        else:
            return None
        remote = {**registered, "options": options, "render": render}
        json.dumps(remote)
    except (TypeError, ValueError):
        return None
    return remote
