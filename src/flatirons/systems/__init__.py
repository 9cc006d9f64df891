"""One file per paper family. `SYSTEMS` is what the list, the command line and the contract test read."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from flatirons.envs import games
from flatirons.systems import a3c, alphago, alphazero, ddpg, dqn, ewc, maml, mc_dropout, ppo, reinforce, sac, tabular, trpo
from flatirons.systems.alphago import rl as alphago_rl
from flatirons.systems.alphago import sl as alphago_sl
from flatirons.systems.alphago import value as alphago_value
from flatirons.types import FlatironsError

SYSTEMS: tuple[ModuleType, ...] = (
    ppo, trpo, a3c, reinforce, dqn, ddpg, sac, alphago_sl, alphago_rl, alphago_value, alphago, alphazero, tabular, maml, ewc, mc_dropout,
)  # fmt: skip


def system_name(module: ModuleType) -> str:
    """The name of a system: its file's; of one within a folder here the folder's and its own (`alphago-sl`)."""
    name = module.__name__
    return name.removeprefix(f"{__name__}.").replace(".", "-") if name.startswith(f"{__name__}.") else name.rpartition(".")[2]


def counted(module: ModuleType) -> str:
    """What its steps are: its `STEPS`, or decisions."""
    return vars(module).get("STEPS", "decisions")


def levels(module: ModuleType) -> tuple[str, ...]:
    """Patterns of its metrics of which a report holds the last turn's value and no mean over turns: its `LATEST`, or none."""
    return vars(module).get("LATEST", ())


def find(name: str, modules: Sequence[ModuleType] = SYSTEMS) -> tuple[ModuleType, dict[str, Any], str | None]:
    """(module, its settings, preset or None) of a system's or a preset's name, among `modules`. Raises FlatironsError with the nearest
    name."""
    demand_trainable(name)
    names = []
    for module in modules:
        if name == system_name(module):
            return module, {}, None
        if name in module.PRESETS:
            return module, dict(module.PRESETS[name].config), name
        names += [system_name(module), *module.PRESETS]
    # PPO and mc-dropout are ppo and mc_dropout to most people, and far apart letter by letter.
    plain = {known.lower().replace("_", "-"): known for known in reversed(names)}
    near = [plain[match] for match in difflib.get_close_matches(name.lower().replace("_", "-"), plain, n=1, cutoff=0.4)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise FlatironsError(f"unknown system {name!r}: {hint}`flatirons list` names them all")


def demand_trainable(name: str | None) -> None:
    """Raises FlatironsError, with the command to give instead, where a planner is asked to train."""
    if name in tabular.PLANNERS:
        raise FlatironsError(f"{name} plans on a model and takes no decisions to train on; call `flatirons solve {name} mdp:...`")


def choose_preset(module: ModuleType, task_name: str, variant_of: str = "") -> str | None:
    """The preset tuned for this task, if there is one: the first whose `tasks` patterns match. With `variant_of`, of that preset's.

    EnvPool's task of a name is Gymnasium's of that name."""
    task_name = games.task_name(task_name)
    twin = task_name.removeprefix("envpool:")
    for name, preset in module.PRESETS.items():
        if preset.variant_of == variant_of and any(fnmatch.fnmatchcase(twin, pattern) for pattern in preset.tasks):
            return name
    return None


def preset_for(module: ModuleType, preset: str | None, task_name: str) -> tuple[str | None, str | None, dict[str, Any]]:
    """(preset, the one below it, settings) for a task, of the preset named or, where that is None, the task's own.

    A preset with variants gives way to the one for the task; one that is `on_top` has the task's own preset below it."""
    chosen = choose_preset(module, task_name, preset or "") or preset
    if chosen is None:
        return None, None, {}
    known = module.PRESETS[chosen]
    below = choose_preset(module, task_name) if known.on_top else None
    return chosen, below, {**(module.PRESETS[below].config if below else {}), **known.config}
