"""Named pairs: a system with another, or around it, where one file about both says more than either. They have a system's names.

`STUDIES` and `find` are what the list and the command line read; `find` knows the systems too.
"""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

from flatirons import systems
from flatirons.studies import ewc_dqn
from flatirons.types import FlatironsError

STUDIES: tuple[ModuleType, ...] = (ewc_dqn,)


def find(name: str) -> tuple[ModuleType, dict[str, Any], str | None]:
    """(module, its settings, preset or None) of the name of a system, a study or a preset. Raises FlatironsError with the nearest name."""
    for module in STUDIES:
        if name in module.PRESETS:
            return module, dict(module.PRESETS[name].config), name
        if name == systems.system_name(module):
            return module, {}, None
    try:
        return systems.find(name)
    except FlatironsError:
        near = difflib.get_close_matches(name, [n for module in STUDIES for n in (systems.system_name(module), *module.PRESETS)], n=1)
        if not near:
            raise
        raise FlatironsError(f"unknown system {name!r}: did you mean {near[0]!r}? `flatirons list` names them all") from None
