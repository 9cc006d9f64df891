"""Where a setting's number makes sense, by the setting's name, which means the same in every system that has it.

What depends on the task or on other settings is said by each system's `check`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flatirons.types import FlatironsError


class Range(NamedTuple):
    """From `low` to `high`, the ends included unless open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, x: float) -> bool:
        """Whether x is in it."""
        return (x > self.low if self.open_low else x >= self.low) and (x < self.high if self.open_high else x <= self.high)

    def __str__(self) -> str:
        """In words that finish "give a number ..."."""
        low = f"above {self.low:g}" if self.open_low else f"from {self.low:g}"
        if math.isinf(self.high):
            return low if self.open_low else f"{low} up"
        return f"{low} and below {self.high:g}" if self.open_high else f"{low} to {self.high:g}"


SHARE = Range(0.0, 1.0)
DECAY = Range(0.0, 1.0, open_high=True)
POSITIVE = Range(0.0, open_low=True)
NOT_NEGATIVE = Range(0.0)

RANGES: Mapping[str, Range] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "gamma", "gae_lambda", "epsilon_start", "epsilon_end", "epsilon_ends", "eval_epsilon", "importance_exponent", "noise_theta",
                "decay", "dirichlet_fraction", "mix", "value_mix", "gate_threshold", "resign_false_positives", "resign_playing_on",
            ),
            SHARE,
        ),
        **dict.fromkeys(("rmsprop_decay", "momentum", "dropout", "noise_correlation", "gated"), DECAY),
        **dict.fromkeys(
            (
                "clip_eps", "delta", "kl_target", "stop_kl", "max_grad_norm", "length_scale", "dirichlet_alpha", "adam_eps", "rmsprop_eps",
                "tau", "reward_scale", "c_base",
            ),
            POSITIVE,
        ),
        **dict.fromkeys(
            (
                "learning_rate", "critic_learning_rate", "inner_rate", "eval_rate", "learning_rate_decay", "damping", "cg_tolerance",
                "critic_weight_decay", "weight_decay", "l2", "strength", "noise_std", "target_noise", "target_noise_clip", "optimiser_eps",
                "priority_exponent", "last_layer_bound", "temperature", "kl_coef", "c_puct", "c_init", "c_scale", "c_visit",
                "value_coef", "learning_starts", "random_steps", "her_goals",
            ),
            NOT_NEGATIVE,
        ),
        "backtrack_ratio": Range(0.0, 1.0, open_low=True, open_high=True),
    }
)  # fmt: skip
"""A setting that is not here may be any finite number (a target entropy, an initial log deviation)."""


def demand(config: Any, system: str) -> None:
    """Refuse numbers that are out of their range, and layers without a unit. Raises FlatironsError."""
    for field in dataclasses.fields(config):
        value, span = getattr(config, field.name), RANGES.get(field.name)
        if span is None or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if not span.holds(number):
                each = " for each" if isinstance(value, tuple) else ""
                raise FlatironsError(f"{field.name}={number:g} makes no sense in {system}: give a number {span}{each}")
    for name in ("hidden", "memory_head"):
        widths: tuple[int, ...] = getattr(config, name, ())
        if any(width < 1 for width in widths):
            option = f"--{name.replace('_', '-')} 64 64"
            raise FlatironsError(f"{name}={widths} has a layer of {min(widths)} units: give each at least 1, as {option}")
