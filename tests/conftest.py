"""Set before any test imports JAX: strict broadcasting, no display, one thread per process, a compile cache the tests share."""

from __future__ import annotations

import gc
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# On an accelerator too, numbers are compared in float32 (a CPU knows nothing else).
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
# Away from the cache of the person who runs the tests; subprocesses inherit it.
os.environ.setdefault("FLATIRONS_CACHE", str(Path(__file__).parent.parent / "build" / "test-cache"))

import jax
import pytest

import flatirons as fi
from flatirons.run.train import enable_compilation_cache

# Traces and programs are many small objects that live long: looking through them for garbage took 3 % of the suite.
gc.set_threshold(50_000, 20, 20)
# Both test processes compile the same programs, and many tests the same as others.
enable_compilation_cache()
jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_MAPPINGS = 30_000
"""Memory mappings after which compiled programs are let go: Linux gives a process 65,530, each program keeps some ten, and the whole suite
in one process died of it."""


@pytest.fixture(autouse=True, scope="module")
def few_mappings() -> Iterator[None]:
    """A module's programs are let go after it, where there have come to be many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


_quick = True


@pytest.fixture(autouse=True)
def quick_compiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiling is most of the suite's time, and without optimisation a program is ready in 60 % of it. People run optimised ones: so do
    the tests marked `optimised`, module fixtures, and whatever has a process of its own."""
    global _quick
    quick = "optimised" not in request.keywords
    if quick != _quick:
        # A program that was compiled the other way would be taken for the same.
        jax.clear_caches()
    _quick = quick
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: with a network some data sets would be others than without."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("the tests ask no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run spends half of its time on its picture and on waiting for the disk. Nobody pulls the plug here, for which alone files are
    waited for (a kill loses nothing that was written), and who looks at a run's picture is marked `pictures`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    if "pictures" not in request.keywords:
        monkeypatch.setattr(fi.Run, "plot", lambda self: None)
