"""Settings out of their range are refused by name; every default and every preset is within."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import flatirons as fi
from flatirons import systems
from flatirons.run import ranges
from flatirons.types import FlatironsError

FREE = {
    "ent_coef",
    "initial_log_std",
    "initial_value",
    "init_scale",
    "target_entropy",
    "beta",
    "expert_c",
    "play_c_scale",
    "value_weight",
}
"""Numbers for which no range is wrong everywhere."""


@pytest.mark.parametrize("module", systems.SYSTEMS, ids=systems.system_name)
def test_defaults_and_presets_are_within_and_every_number_is_thought_of(module: Any) -> None:
    name = systems.system_name(module)
    for preset in ({}, *(p.config for p in module.PRESETS.values())):
        ranges.demand(module.Config(**preset), name)
    floats = {f.name for f in dataclasses.fields(module.Config) if f.type in ("float", "float | None")}
    assert floats <= set(ranges.RANGES) | FREE


@pytest.mark.parametrize(
    ("system", "settings", "words"),
    [
        ("ppo", {"gamma": 1.5}, r"gamma=1.5 makes no sense in ppo: give a number from 0 to 1"),
        ("ppo", {"learning_rate": -1.0}, "learning_rate=-1 .* from 0 up"),
        ("ppo", {"clip_eps": 0.0}, "clip_eps=0 .* above 0"),
        ("ppo", {"noise_correlation": 1.0}, "noise_correlation=1 .* from 0 and below 1"),
        ("sac", {"noise_correlation": -0.1}, "noise_correlation=-0.1 .* from 0 and below 1"),
        ("ewc_dqn", {"gated": 1.0}, "gated=1 .* from 0 and below 1"),
        ("ppo", {"hidden": (64, 0)}, "hidden=.* has a layer of 0 units"),
        ("ppo", {"lstm": 8, "memory_head": (-1,)}, r"memory_head=\(-1,\) has a layer of -1 units.* as --memory-head 64 64"),
        ("a3c", {"value_coef": -1.0}, "value_coef=-1 .* from 0 up"),
        ("ppo", {"kl_coef": 3.0}, "kl_coef=3 weighs the KL penalty, and objective=clip has none: add objective=penalty"),
        ("sac", {"her_goals": -1}, "her_goals=-1 makes no sense in sac: give a number from 0 up"),
        ("ddpg", {"random_steps": -5}, "random_steps=-5 .* from 0 up"),
        ("dqn", {"learning_starts": -5}, "learning_starts=-5 .* from 0 up"),
        ("a3c", {"rmsprop_decay": 1.0}, "rmsprop_decay=1 .* from 0 and below 1"),
        ("a3c", {"rmsprop_eps": 0.0}, "rmsprop_eps=0 .* above 0"),
        ("async-q", {"epsilon_ends": (0.1, 1.5, 0.5)}, "epsilon_ends=1.5 .* from 0 to 1 for each"),
        ("trpo", {"backtrack_ratio": 1.0}, "backtrack_ratio=1 .* above 0 and below 1"),
    ],
)
def test_what_makes_no_sense_is_named_with_what_would(system: str, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(FlatironsError, match=words):
        fi.train(system, "jax:CartPole-v1", out=tmp_path / "run", quiet=True, **settings)
    assert not (tmp_path / "run").exists()
