"""Named pairs: a system with another, or around it, where one file about both says more than either. They have a system's names.

`STUDIES` and `find` are what the list and the command line read; `find` knows the systems too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from flatirons import systems
from flatirons.studies import ewc_dqn

STUDIES: tuple[ModuleType, ...] = (ewc_dqn,)


def find(name: str) -> tuple[ModuleType, dict[str, Any], str | None]:
    """(module, its settings, preset or None) of the name of a system, a study or a preset. Raises FlatironsError with the nearest name."""
    return systems.find(name, (*systems.SYSTEMS, *STUDIES))
