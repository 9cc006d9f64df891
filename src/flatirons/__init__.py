"""Flatirons: landmark deep-RL systems in JAX, each from one command, each made to be combined with the others.

Nothing heavy is imported here: `fi.train` and the other names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatirons import systems as systems
    from flatirons.envs import make as make
    from flatirons.run.evaluate import evaluate as evaluate
    from flatirons.run.train import Run as Run
    from flatirons.run.train import StopTraining as StopTraining
    from flatirons.run.train import load as load
    from flatirons.run.train import resume as resume
    from flatirons.run.train import train as train
    from flatirons.types import FlatironsError as FlatironsError
    from flatirons.types import Network as Network

    __version__: str

_HOMES = {
    "train": "flatirons.run.train",
    "resume": "flatirons.run.train",
    "load": "flatirons.run.train",
    "Run": "flatirons.run.train",
    "StopTraining": "flatirons.run.train",
    "evaluate": "flatirons.run.evaluate",
    "make": "flatirons.envs",
    "FlatironsError": "flatirons.types",
    "Network": "flatirons.types",
}

__all__ = [
    "FlatironsError",
    "Network",
    "Run",
    "StopTraining",
    "__version__",
    "evaluate",
    "load",
    "make",
    "resume",
    "systems",
    "train",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("flatirons")
        except PackageNotFoundError:
            value = "0+unknown"
    elif name == "systems":
        value = import_module("flatirons.systems")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'flatirons' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
