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

LONG = {
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[alphago]",
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[alphago-rl]",
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[alphago-sl]",
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[alphago-value]",
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[ddpg]",
    "test_contract.py::test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss[reinforce]",
    "test_contract.py::test_a_host_task_takes_the_same_turn_with_a_compiled_update[ddpg]",
    "test_contract.py::test_a_host_task_takes_the_same_turn_with_a_compiled_update[trpo]",
    "test_memory_tasks.py::test_a_policy_with_a_memory_is_trained_saved_and_asked",
    "test_rules.py::test_other_engines_agree",
    "test_ewc.py::test_units_that_are_silent_as_a_game_is_left_stay_silent_in_it",
    "test_mcts.py::test_no_more_is_kept_than_there_is_room_for[puct]",
    "test_learning.py::test_values_are_found[one-step-sac-2018]",
    "test_learning.py::test_values_are_found[one-step-ddpg]",
    "test_learning.py::test_a_continuous_action_is_found[sac-2018]",
    "test_mc_dropout.py::test_the_study_judges_by_the_mean_of_some_networks",
    "test_hindsight.py::test_a_goal_reached_by_accident_teaches_to_reach_others[flatirons.systems.ddpg]",
    "test_ppo.py::test_shorter_sequences_begin_with_what_theta_old_remembered[box]",
    "test_ppo.py::test_a_memory_is_recomputed_as_it_was_acted_with[box]",
    "test_engines.py::test_engines_play_on_where_only_the_number_of_moves_ended_a_game[shogi]",
    "test_engines.py::test_after_a_position_that_was_refused_there_is_no_move[shogi-sfen 9-resign]",
    "test_resume.py::test_resumed_equals_uninterrupted_bit_for_bit[ddpg]",
    "test_resume.py::test_resumed_equals_uninterrupted_bit_for_bit[async-sarsa]",
    "test_run.py::test_warm_start_collects_with_what_was_learned_and_not_at_random[ddpg]",
    "test_run.py::test_warm_start_gives_every_a3c_learner_a_copy_of_what_was_learned",
    "test_tabular.py::test_learners_converge_to_what_planners_find[td-0-4]",
    "test_tabular.py::test_learners_converge_to_what_planners_find[q-learning-4]",
    "test_tabular.py::test_learners_converge_to_what_planners_find[double-q-learning-4]",
    "test_tabular.py::test_a_stopped_run_goes_on_bit_for_bit[td-0]",
    "test_tabular.py::test_a_stopped_run_goes_on_bit_for_bit[q-learning]",
    "test_nets.py::test_product_derivatives[20-512-8]",
    "test_envs_ingraph.py::test_minatar_equals_pgx[minatar-seaquest]",
    "test_games.py::test_every_game_keeps_to_its_own_specs[shogi]",
}
"""Tests that take long, five to twenty seconds each, and look at what another test looks at as well, of another system or game:
`make test-all` runs them, `make test` does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those of `LONG`."""
    for item in items:
        if f"{item.path.name}::{item.name}" in LONG:
            item.add_marker("long")


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
