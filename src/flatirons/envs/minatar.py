"""MinAtar's five games in-graph, from pgx (`pip install 'flatirons[games]'`; its MinAtar package is GPL-3, which is why it is an extra).

The published curves use all six actions, sticky actions of 0.1 and difficulty ramping: these are the defaults here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import ArraySpec, Discrete, FlatironsError, Key

_CHANNELS = MappingProxyType({"asterix": 4, "breakout": 4, "freeway": 7, "seaquest": 10, "space_invaders": 6})
_MINIMAL_ACTIONS = MappingProxyType({"asterix": 5, "breakout": 3, "freeway": 3, "seaquest": 6, "space_invaders": 4})

NAMES = tuple(f"minatar-{game}" for game in _CHANNELS)
"""The names behind `pgx:NAME`."""

# pgx carries these along, but a step follows from the rest of the state (no state here has terminated); each costs a copy per step.
_DERIVED = frozenset(
    {"current_player", "observation", "rewards", "terminated", "truncated", "legal_action_mask", "_step_count", "_terminal"}
)


@dataclasses.dataclass(frozen=True)
class MinAtar:
    """One of MinAtar's games. State: pgx's own fields by name, without what follows from them.

    `minimal_actions` keeps only the actions that do something in the game. `sticky` is the probability that the last action is
    played in place of the one given. Episodes are truncated after `max_episode_steps`, for pgx's Breakout has no end of its own. With
    `channels` the observation has so many, empty ones behind the game's own, so that one network serves several games.
    """

    game: str
    minimal_actions: bool = False
    sticky: float = 0.1
    max_episode_steps: int | None = 5000
    channels: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        """Uint8 `[10, 10, channels]`, 0 or 1."""
        return ArraySpec((10, 10, self.channels or _CHANNELS[self.game]), "uint8", 0, 1)

    @property
    def action_spec(self) -> Discrete:
        """Nothing, left, up, right, down, fire; the minimal set skips those without effect."""
        return Discrete(_MINIMAL_ACTIONS[self.game] if self.minimal_actions else 6)

    def init(self, key: Key) -> dict[str, jax.Array]:
        """The game's own start."""
        return _own_fields(_pgx(self.game, self.minimal_actions, self.sticky).init(key))

    def step(self, key: Key, state: Mapping[str, jax.Array], action: Any) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """The game's own step; all its chances come from `key`."""
        pgx_env = _pgx(self.game, self.minimal_actions, self.sticky)
        new = pgx_env.step(_full(self, state), action, key)
        return _own_fields(new), new.rewards[0], new.terminated

    def observe(self, state: Mapping[str, jax.Array]) -> jax.Array:
        """Channels as 0 and 1."""
        full = _full(self, state)
        own = _pgx(self.game, self.minimal_actions, self.sticky).observe(full).astype(jnp.uint8)
        return own if self.channels is None else jnp.pad(own, ((0, 0), (0, 0), (0, self.channels - own.shape[-1])))

    def legal(self, state: Mapping[str, jax.Array]) -> tuple[()]:
        """All actions are."""
        del state
        return ()


def make(
    name: str,
    *,
    minimal_actions: bool = False,
    sticky: float = 0.1,
    max_episode_steps: int | None = 5000,
    channels: int | None = None,
) -> MinAtar:
    """Make the game called `name`, one of `NAMES`.

    Raises `FlatironsError` for an unknown name, a probability outside [0, 1], fewer channels than the game has or where pgx is not
    installed.
    """
    if name not in NAMES:
        raise FlatironsError(f"unknown MinAtar game {name!r}: there are {', '.join(NAMES)}")
    if not 0.0 <= sticky <= 1.0:
        raise FlatironsError(f"sticky is {sticky}: give a probability, between 0 and 1")
    game = name.removeprefix("minatar-")
    if channels is not None and channels < _CHANNELS[game]:
        raise FlatironsError(f"channels is {channels}, and {name} shows {_CHANNELS[game]}: give at least as many (10 serve every game)")
    env = MinAtar(game, minimal_actions, float(sticky), max_episode_steps, channels)
    _pgx(env.game, env.minimal_actions, env.sticky)
    return env


@functools.cache
def _pgx(game: str, minimal_actions: bool, sticky: float) -> Any:
    try:
        # Importing pgx makes arrays; within someone's jit they would be tracers, and would outlive it.
        with jax.ensure_compile_time_eval():
            module = importlib.import_module(f"pgx_minatar.{game}")
            return vars(module)[f"MinAtar{game.title().replace('_', '')}"](
                use_minimal_action_set=minimal_actions, sticky_action_prob=sticky
            )
    except ImportError as error:
        raise FlatironsError(f"minatar-{game} needs pgx and pgx-minatar: pip install 'flatirons[games]'") from error


@functools.cache
def _template(game: str, minimal_actions: bool) -> Any:
    shapes = jax.eval_shape(_pgx(game, minimal_actions, 0.0).init, jax.random.key(0))
    return jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), shapes)


def _own_fields(pgx_state: Any) -> dict[str, jax.Array]:
    return {name: value for name, value in vars(pgx_state).items() if name not in _DERIVED}


def _full(env: MinAtar, state: Mapping[str, jax.Array]) -> Any:
    blank = _template(env.game, env.minimal_actions)
    return blank.replace(legal_action_mask=jnp.ones(blank.legal_action_mask.shape, bool), **state)
