"""`flatirons list`: the systems, their presets and settings, and the tasks, read from the modules themselves."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Preset, Spec, TimeStep

WIDTH = 110


def field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, by the field's name, on one line."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        docs |= field_docs(base) if dataclasses.is_dataclass(base) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    previous = None
    for statement in body.body if isinstance(body, ast.ClassDef) else []:
        value = statement.value.value if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) else None
        if isinstance(value, str) and isinstance(previous, ast.AnnAssign) and isinstance(previous.target, ast.Name):
            docs[previous.target.id] = " ".join(value.split())
        previous = statement
    return docs


def settings(name: str, task: str | None, preset: str | None) -> tuple[str | None, Any]:
    """The preset that `train(name, task, preset=preset)` uses (None for plain defaults) and its Config.

    Raises FlatironsError for an unknown system or preset.
    """
    from flatirons import studies, systems

    module, overrides, chosen = studies.find(name)
    if preset is not None:
        if preset not in module.PRESETS:
            systems.demand_trainable(preset)
            near = get_close_matches(preset, module.PRESETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(module.PRESETS) or 'none'}."
            raise FlatironsError(f"{systems.system_name(module)} has no preset {preset!r}; {hint}")
        chosen, overrides = preset, dict(module.PRESETS[preset].config)
    if task is not None:
        chosen, _, overrides = systems.preset_for(module, chosen, task)
    return chosen, module.Config(**overrides)


def what_was_measured() -> dict[str, dict[str, Any]]:
    """What the benchmarks of a preset found, by its name: `expected`, lines, and `hours` of a seed on one core. Not all have any."""
    return json.loads((Path(__file__).parent / "measured.json").read_text(encoding="utf-8"))


def title(module: Any) -> str:
    """The first sentence of a module, on one line, with its full stop; that of an abbreviation such as "et al. 2016" ends none."""
    paragraph = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)(?<!\bal\.)\s+(?=[A-Z])", paragraph, maxsplit=1)[0]


def actions(module: Any) -> list[str]:
    """The kinds of action a system accepts, with a vector or a whole number as observation, found by asking its `check`."""
    kinds = {"Discrete": Discrete(2), "MultiDiscrete": MultiDiscrete((2, 2)), "Box": Box((-1.0,), (1.0,))}
    return [kind for kind, action in kinds.items() if any(_accepts(module, Spec(obs, action, 100)) for obs in _OBSERVATIONS)]


_OBSERVATIONS = (ArraySpec((4,)), ArraySpec((), "int32", 0, 3))


def _accepts(module: Any, spec: Spec) -> bool:
    config = module.Config()
    # No more of a task than checks look at: its numbers, and that it has no masks.
    task = SimpleNamespace(name="a task", num_envs=config.num_envs, spec=spec, in_graph=True, notes=())
    task.reset, task.observe = lambda key: (), lambda state: TimeStep((), (), (), ())
    try:
        module.check(config, task)
    except FlatironsError:
        return False
    return True


def _takes(kinds: Sequence[str], module: Any) -> str:
    """What a system takes: kinds of action, or where it takes no environment alone, names of tasks; of board games every one."""
    from flatirons.envs import games

    if kinds:
        return f"actions: {', '.join(kinds)}"
    named = list(dict.fromkeys(pattern for preset in module.PRESETS.values() for pattern in preset.tasks))
    boards = [f"pgx:{game}" for game in games.GAMES]
    if any(name.startswith("data:") for name in named):
        named.append("data:FILE of your own")
    return f"takes: {', '.join(boards if named and set(named) <= set(boards) else named)}"


def _for(preset: Preset, kinds: Sequence[str]) -> str:
    """Which tasks a preset is for, in words, in a system that takes these kinds of action."""
    every = "any task" if kinds else "any task that the system takes"
    if preset.variant_of:
        return f"{', '.join(preset.tasks)}, when {preset.variant_of} is asked for"
    if preset.on_top:
        return f"{every}, when asked for, on top of the task's own preset"
    return ", ".join(preset.tasks) or f"{every}, when asked for"


def everything() -> str:
    """Every system with its presets and the tasks each is for, then every family of tasks."""
    from flatirons import studies, systems

    lines = ["systems (flatirons list SYSTEM says more)"]
    for module in (*systems.SYSTEMS, *studies.STUDIES):
        said = textwrap.wrap(title(module), WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4, break_on_hyphens=False)
        kinds = actions(module)
        lines += ["", f"  {systems.system_name(module)}", *said, f"    {_takes(kinds, module)}"]
        width = max(map(len, module.PRESETS), default=0)
        for preset, known in module.PRESETS.items():
            lines.append(f"    {preset:<{width}}  {_for(known, kinds)}")
    lines += ["", "A preset can stand in the place of a system: `flatirons train PRESET TASK`.", ""]
    lines += ["planners (flatirons solve PLANNER TASK), for tasks mdp:NAME", "", *(f"  {name}" for name in systems.tabular.PLANNERS)]
    lines += ["", "tasks", ""]
    for family, what in tasks().items():
        lines += textwrap.wrap(f"{family:<20}{what}", WIDTH, initial_indent="  ", subsequent_indent=" " * 22, break_on_hyphens=False)
    return "\n".join(lines)


def tasks() -> dict[str, str]:
    """Families of task names, and what each holds."""
    from flatirons.envs import classic, datasets, discrete, forager, games, maze, mdp, meta, minatar, no_velocity, pixels, probes, robotics

    stack, repeat, bins = pixels.PixelOptions.stack, pixels.PixelOptions.repeat, discrete.DiscreteOptions.bins
    beginnings = ", ".join(f"{name}..." for name in robotics.PREFIXES)
    return {
        "NAME-vN": "any Gymnasium id, such as CartPole-v1; HalfCheetah-v5 needs flatirons[mujoco], LunarLander-v3 flatirons[box2d]",
        "MODULE:NAME-vN": "an id that a module of your own or of a package registers; it is imported first, such as mymodule:My-v0",
        "ALE/GAME-v5": "Atari through ALE's vector environment, such as ALE/Pong-v5; needs flatirons[atari]",
        "jax:NAME": "in-graph: " + ", ".join(_without_prefix((*classic.ENVS, *forager.ENVS, *maze.ENVS))),
        "pgx:NAME": "in-graph: " + ", ".join((*games.GAMES, *_without_prefix(minatar.NAMES))) + "; needs flatirons[games]",
        "mdp:NAME": "finite, in-graph, its transition probabilities known: " + ", ".join((*mdp.TOY_TEXT, *mdp.OWN)),
        "sequence:A,B,...": "in-graph tasks of one shape to be learned in turn, such as sequence:pgx:minatar-breakout,pgx:minatar-freeway",
        "FetchReach-v4": f"and others of Gymnasium-Robotics: {beginnings}; needs flatirons[robotics]",
        "envpool:NAME": "EnvPool's tasks, such as envpool:HalfCheetah-v5; needs flatirons[envpool]",
        "pixels:NAME": f"the last {stack} pictures of a Gymnasium task, each action taken {repeat} times, such as pixels:Pendulum-v1",
        "discrete:NAME": f"a Gymnasium task, each dimension of its Box of actions cut into {bins} values, such as discrete:Pusher-v5",
        "no-velocity:TASK": "a task, in-graph or not, whose velocities are hidden: " + ", ".join(no_velocity.POSITIONS),
        "meta:NAME": "distributions over tasks, to learn to learn from: " + ", ".join(meta.NAMES),
        "data:NAME": "data to learn from, without an environment: " + ", ".join((*datasets.SETS, "FILE.csv, FILE.npz (your own)")),
        "probe:NAME": "tiny environments with known answers: " + ", ".join(_without_prefix(probes.ENVS)),
    }


def _without_prefix(names: Any) -> list[str]:
    return [str(name).split(":", 1)[-1] for name in names]


def _measurement(entry: dict[str, Any]) -> list[str]:
    """What a preset's benchmark found, in lines."""
    reached = entry.get("expected", ["not measured yet"])
    lines = [f"    {label:<9} {line}" for label, line in zip(["expected", *[""] * len(reached)], reached, strict=False)]
    return [*lines, f"    hours     {entry.get('hours', 'not measured yet')}, a seed on one core"]


def system(name: str) -> str:
    """One system: its presets with what their benchmark measured, and every setting with its default.

    Raises FlatironsError for an unknown name.
    """
    from flatirons import studies, systems

    module, overrides, chosen = studies.find(name)
    config = module.Config(**overrides)
    measured = what_was_measured()
    said = textwrap.wrap(f"{systems.system_name(module)}: {title(module)}", WIDTH, break_on_hyphens=False)
    kinds = actions(module)
    lines = [*said, _takes(kinds, module), "", "presets"]
    for preset, known in module.PRESETS.items():
        lines += ["", f"  {preset}: {known.doc}", f"    for       {_for(known, kinds)}"]
        lines += [f"    env       {option} {_shown(value)}" for option, value in known.env.items()]
        lines += _measurement(measured.get(preset, {}))
    if (own := systems.system_name(module)) in measured:
        lines += ["", "  none of them: the settings below as they are", *_measurement(measured[own])]
    lines += ["", f"settings{f' of {chosen}' if chosen else ''}, each a flag of `flatirons train {name}`", ""]
    docs = field_docs(module.Config)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    name_width, value_width = (max(len(str(x)) for x in column) for column in (values, [_shown(v) for v in values.values()]))
    for field, value in values.items():
        head = f"{field:<{name_width}}  {_shown(value):<{value_width}}  "
        lines += textwrap.wrap(head + docs.get(field, ""), WIDTH, initial_indent="  ", subsequent_indent=" " * (2 + len(head)))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if value is None:
        return "none"
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
