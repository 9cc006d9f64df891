"""Finite Markov decision processes: the arrays, their checks, and the in-graph environment over them (`mdp:FrozenLake-v1`).

An `MDP` is what a planner reads (float64, exact) and, at once, an `Env` whose steps are drawn from those arrays in-graph, so that any
system can learn on the very process that was solved. Outcomes are listed as Gymnasium's toy-text tables list them: for every state and
action up to K outcomes, each with its probability, successor, reward, and whether the episode ends there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import ArraySpec, Discrete, FlatironsError, Key

SUM_SLACK = 1e-6
"""How far a row of probabilities may be from summing to one (float32 arrays are); within it, the row is divided by its sum."""


@dataclasses.dataclass(frozen=True, eq=False)
class MDP:
    """(S, A, P, r, rho_0) with S states, A actions and at most K outcomes for each pair of them.

    probability: float64 `[S, A, K]`, next_state: int32 `[S, A, K]`, reward: float64 `[S, A, K]`, terminated: bool `[S, A, K]`, True where
    the episode ends with that outcome, so that nothing is worth anything after it. start: float64 `[S]`, the distribution of the first
    state. legal_actions: bool `[S, A]`, or None where every action is legal everywhere. reward_std: float64 `[S, A, K]`, the deviation of
    Gaussian noise on the reward, or None. max_episode_steps: where the in-graph episodes are truncated (planners know no limit).

    Arrays are copied, brought to these types and made read-only. Two MDPs of equal arrays are equal. Raises FlatironsError, naming state
    and action, for shapes that do not agree, rows that do not sum to one, and numbers that cannot be.
    """

    probability: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    start: np.ndarray
    legal_actions: np.ndarray | None = None
    reward_std: np.ndarray | None = None
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.probability)
        if len(shape) != 3 or 0 in shape:
            raise FlatironsError(f"probability has shape {list(shape)}; give [states, actions, outcomes], at least one of each")
        if np.shape(self.start) != shape[:1]:
            raise FlatironsError(f"start has shape {list(np.shape(self.start))}; give one probability for each of the {shape[0]} states")
        kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
            "probability": (np.float64, shape), "next_state": (np.int64, shape), "reward": (np.float64, shape),
            "terminated": (np.bool_, shape), "start": (np.float64, shape[:1]), "legal_actions": (np.bool_, shape[:2]),
            "reward_std": (np.float64, shape),
        }  # fmt: skip
        for name, (dtype, wanted) in kinds.items():
            value = getattr(self, name)
            if value is None:
                continue
            array = np.array(value, dtype)
            if array.shape != wanted:
                raise FlatironsError(f"{name} has shape {list(array.shape)}, but probability {list(shape)}; give {list(wanted)}")
            if not np.isfinite(array).all():
                raise FlatironsError(f"{name} holds NaN or infinity at {_place(~np.isfinite(array))}; every entry must be a finite number")
            self._put(name, array)
        if self.legal_actions is not None:
            if not self.legal_actions.any(axis=1).all():
                raise FlatironsError(
                    f"state {int(np.argmin(self.legal_actions.any(axis=1)))} has no legal action; let an outcome that leads there terminate"
                )
            # What an illegal action would do is never asked; a row that stays where it is keeps every array proper.
            illegal = ~self.legal_actions
            self.probability[illegal] = np.eye(1, shape[2])
            self.next_state[illegal] = np.arange(shape[0])[:, None].repeat(shape[1], 1)[illegal][:, None]
            self.reward[illegal], self.terminated[illegal] = 0.0, False
        if (self.next_state < 0).any() or (self.next_state >= shape[0]).any():
            wrong = (self.next_state < 0) | (self.next_state >= shape[0])
            raise FlatironsError(
                f"next_state is {int(self.next_state[wrong][0])} at {_place(wrong)}; states are numbered 0 to {shape[0] - 1}"
            )
        if self.reward_std is not None and (self.reward_std < 0).any():
            raise FlatironsError(f"reward_std is negative at {_place(self.reward_std < 0)}; a deviation is at least 0")
        self._put("next_state", self.next_state.astype(np.int32))
        self._put("probability", _distributions(self.probability, "the outcomes of"))
        self._put("start", _distributions(self.start[None, None], "start:")[0, 0])
        for name in kinds:
            if getattr(self, name) is not None:
                getattr(self, name).setflags(write=False)

    def _put(self, name: str, array: np.ndarray) -> None:
        object.__setattr__(self, name, array)

    # ------------------------------------------------------------------------------------------------------ as a value

    @property
    def num_states(self) -> int:
        """S."""
        return self.probability.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.probability.shape[1]

    @functools.cached_property
    def allowed(self) -> np.ndarray:
        """Bool `[S, A]`: `legal_actions`, written out where it is None."""
        return np.ones(self.probability.shape[:2], bool) if self.legal_actions is None else self.legal_actions

    @functools.cached_property
    def expected_reward(self) -> np.ndarray:
        """r(s, a) = E[r | s, a], float64 `[S, A]`."""
        return np.sum(self.probability * self.reward, axis=-1)

    @functools.cached_property
    def goes_on(self) -> np.ndarray:
        """Probability of each outcome in which the episode goes on, float64 `[S, A, K]`."""
        return np.where(self.terminated, 0.0, self.probability)

    @functools.cached_property
    def transition(self) -> np.ndarray:
        """P(s' | s, a) of going on in s', float64 `[S, A, S]`: rows sum to one less the probability that the episode ends."""
        dense = np.zeros((self.num_states * self.num_actions, self.num_states))
        goes_on = self.goes_on.reshape(len(dense), -1)
        rows = np.arange(len(dense))[:, None].repeat(goes_on.shape[1], 1)
        np.add.at(dense, (rows, self.next_state.reshape(len(dense), -1)), goes_on)
        return dense.reshape(self.num_states, self.num_actions, self.num_states)

    @functools.cached_property
    def _digest(self) -> bytes:
        parts = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return hashlib.sha256(b"|".join(repr(p).encode() if p is None or np.ndim(p) == 0 else _bytes(p) for p in parts)).digest()

    def __eq__(self, other: object) -> bool:
        """Equal where every array is."""
        return isinstance(other, MDP) and self._digest == other._digest

    def __hash__(self) -> int:
        """Hash of the arrays."""
        return hash(self._digest)

    # ------------------------------------------------------------------------------------------------ as an environment

    @property
    def obs_spec(self) -> ArraySpec:
        """The state's number, int32 `[]`."""
        return ArraySpec((), "int32", 0, self.num_states - 1)

    @property
    def action_spec(self) -> Discrete:
        """0 ... A-1."""
        return Discrete(self.num_actions)

    def init(self, key: Key) -> jax.Array:
        """A state drawn from `start`."""
        return self.init_batch(key, 1)[0]

    def init_batch(self, key: Key, num_envs: int) -> jax.Array:
        """States int32 `[num_envs]` drawn from `start`, in one draw; none at all where there is one start."""
        states, cumulative = self._tables.starts
        if len(states) == 1:
            return jnp.full(num_envs, states[0], jnp.int32)
        return jnp.asarray(states)[jnp.searchsorted(cumulative, jax.random.uniform(key, (num_envs,)), side="right")]

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One outcome of (state, action), drawn by inverting its cumulative distribution."""
        tables, outcomes = self._tables, self.probability.shape[2]
        row = state * self.num_actions + action
        if outcomes > 1:
            uniform = jax.random.uniform(key)
            at = row * outcomes + jnp.sum(uniform >= jnp.asarray(tables.cumulative)[row], dtype=jnp.int32)
        else:
            at = row
        reward = jnp.asarray(tables.reward)[at]
        if tables.reward_std is not None:
            reward = reward + jnp.asarray(tables.reward_std)[at] * jax.random.normal(jax.random.fold_in(key, 1))
        return jnp.asarray(tables.next_state)[at], reward, jnp.asarray(tables.terminated)[at]

    def observe(self, state: jax.Array) -> jax.Array:
        """The state's number."""
        return state

    def legal(self, state: jax.Array) -> Any:
        """Bool `[A]`, or `()` where all actions are legal everywhere."""
        return () if self.legal_actions is None else jnp.asarray(self.legal_actions)[state]

    @functools.cached_property
    def _tables(self) -> _Tables:
        """What `step` and `init` look up, in the learner's 32 bits and flat."""
        std = self.reward_std if self.reward_std is not None and self.reward_std.any() else None
        starts = np.flatnonzero(self.start)
        return _Tables(
            _cumulative(self.probability).reshape(-1, self.probability.shape[2]),
            self.next_state.reshape(-1),
            self.reward.astype(np.float32).reshape(-1),
            self.terminated.reshape(-1),
            None if std is None else std.astype(np.float32).reshape(-1),
            (starts.astype(np.int32), _cumulative(self.start[starts])),
        )


class _Tables(NamedTuple):
    cumulative: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    reward_std: np.ndarray | None
    starts: tuple[np.ndarray, np.ndarray]


def _bytes(array: np.ndarray) -> bytes:
    return repr((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes()


def _cumulative(probability: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis in float32, above 1 from the last possible outcome on: rounding never draws an impossible one."""
    sums = np.cumsum(probability, axis=-1)
    later = np.cumsum(probability[..., ::-1], axis=-1)[..., ::-1] - probability
    return np.where(later > 0.0, np.minimum(sums, 1.0), 2.0).astype(np.float32)


def _place(wrong: np.ndarray) -> str:
    """The first place of a mask `[S]`, `[S, A]` or `[S, A, K]`, in words."""
    names = ("state", "action", "outcome")
    return ", ".join(f"{name} {index}" for name, index in zip(names, np.argwhere(wrong)[0]))


def _distributions(probability: np.ndarray, what: str) -> np.ndarray:
    """Rows `[S, A, K]` that sum to one exactly. Raises FlatironsError for those that do not within `SUM_SLACK`."""
    sums = probability.sum(axis=-1)
    negative, off = (probability < 0).any(axis=-1), np.abs(sums - 1.0) > SUM_SLACK
    for wrong, says, remedy in (
        (negative, lambda s, a: f"hold the negative probability {probability[s, a].min():.6g}", "probabilities are at least 0"),
        (off, lambda s, a: f"have probabilities that sum to {sums[s, a]:.9g}, not to 1", "give what is missing, or divide the row by it"),
    ):
        if wrong.any():
            state, action = (int(i) for i in np.argwhere(wrong)[0])
            where = what if what.endswith(":") else f"{what} state {state}, action {action}"
            more = f" (and {int(wrong.sum()) - 1} more rows)" if wrong.sum() > 1 else ""
            raise FlatironsError(f"{where} {says(state, action)}{more}; {remedy}")
    return probability / sums[..., None]


# ------------------------------------------------------------------------------------------------------------ where they come from


def from_arrays(
    transition: Any,
    reward: Any,
    *,
    start: Any = None,
    terminal: Any = None,
    legal_actions: Any = None,
    max_episode_steps: int | None = None,
) -> MDP:
    """An MDP from the textbook's arrays: `transition [S, A, S]`, rows summing to one; `reward` as `[S]`, `[S, A]` or `[S, A, S]`.

    terminal: bool `[S]`, states whose entry ends the episode (none by default). start: `[S]` (uniform over the others by default).
    Raises FlatironsError as `MDP` does.
    """
    p = np.asarray(transition, np.float64)
    if p.ndim != 3 or p.shape[0] != p.shape[2] or 0 in p.shape:
        raise FlatironsError(f"transition has shape {list(p.shape)}; give [states, actions, states]")
    states, actions, _ = p.shape
    ends = np.zeros(states, bool) if terminal is None else np.asarray(terminal, bool)
    r = np.asarray(reward, np.float64)
    if ends.shape != (states,) or r.shape not in ((states,), (states, actions), p.shape):
        raise FlatironsError(
            f"reward has shape {list(r.shape)} and terminal {list(ends.shape)}; for {states} states and {actions} actions give terminal "
            f"[{states}], and reward [{states}], [{states}, {actions}] or [{states}, {actions}, {states}]"
        )
    r = np.broadcast_to(r.reshape(r.shape + (1,) * (3 - r.ndim)), p.shape)
    if start is None:
        first = np.where(ends, 0.0, 1.0)
        start = first / max(first.sum(), 1.0)
    # Only the possible successors are kept, in order; a shorter row is filled up with impossible outcomes.
    width = max(1, int((p != 0).sum(axis=-1).max()))
    kept = np.argsort(p == 0, axis=-1, kind="stable")[..., :width]
    return MDP(
        np.take_along_axis(p, kept, -1), kept, np.take_along_axis(r, kept, -1), ends[kept], start,
        legal_actions=legal_actions, max_episode_steps=max_episode_steps,
    )  # fmt: skip


def from_table(
    table: Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]], start: Any, *, max_episode_steps: int | None = None
) -> MDP:
    """An MDP from a table as Gymnasium's toy-text environments keep it in `P`: state -> action -> [(probability, successor, reward,
    terminated), ...], with `start [S]`. Raises FlatironsError as `MDP` does, and where states or actions are not numbered from 0.
    """
    states = len(table)
    actions = len(table[0]) if 0 in table else 0
    for state in range(states):
        if state not in table or sorted(table[state]) != list(range(actions)):
            raise FlatironsError(f"the table has no full row of actions for state {state}; number states and actions from 0, without gaps")
    width = max(len(row) for each in table.values() for row in each.values())
    arrays = [np.zeros((states, actions, width), dtype) for dtype in (np.float64, np.int64, np.float64, np.bool_)]
    for state, each in table.items():
        for action, row in each.items():
            for k, outcome in enumerate(row):
                for array, value in zip(arrays, outcome, strict=True):
                    array[state, action, k] = value
    return MDP(*arrays, start=start, max_episode_steps=max_episode_steps)


def from_gymnasium(name: str, **options: Any) -> MDP:
    """The MDP of a Gymnasium environment that carries its transition table: FrozenLake, Taxi, CliffWalking, or one of your own with `P`
    and `initial_state_distrib`. `options` go to `gymnasium.make`.

    Raises FlatironsError where there is no such environment or it has no table.
    """
    import gymnasium

    try:
        env = gymnasium.make(name, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise FlatironsError(f"mdp:{name} cannot be made: {' '.join(str(error).split())}") from None
    except Exception as error:
        # A simulator has its own ways to fail on a value that makes no sense to it.
        if not options:
            raise
        raise FlatironsError(f"mdp:{name} does not take these options: {type(error).__name__}: {' '.join(str(error).split())}") from None
    inner: Any = env.unwrapped
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    limit = None if env.spec is None else env.spec.max_episode_steps
    env.close()
    if not isinstance(table, Mapping) or start is None:
        raise FlatironsError(
            f"{name} keeps no transition table (P and initial_state_distrib), so it is no finite MDP here; train on {name}"
        )
    return from_table(table, start, max_episode_steps=limit)


def random_walk() -> MDP:
    """Five states in a row, one action that goes left or right with equal chance, starting in the middle (Sutton and Barto, Example 6.2).

    Leaving to the right pays 1, to the left 0. The values are 1/6, 2/6, ..., 5/6.
    """
    state = np.arange(5)
    neighbour = np.stack([state - 1, state + 1], axis=-1)[:, None]
    outside = (neighbour < 0) | (neighbour > 4)
    half = np.full(neighbour.shape, 0.5)
    return MDP(half, np.clip(neighbour, 0, 4), 1.0 * (neighbour > 4), outside, np.eye(5)[2])


def maximisation_bias(num_actions: int = 10, mean: float = -0.1, std: float = 1.0) -> MDP:
    """Sutton and Barto, Example 6.7: from A (state 0) action 0 goes right and ends with 0; action 1 goes left, to B (state 1), for 0.

    In B each of `num_actions` actions ends with a reward from N(mean, std²), so left is worth `mean`, and looks better to a maximum over
    noisy estimates. In A two actions are legal.
    """
    if num_actions < 2 or not std >= 0.0:
        raise FlatironsError(f"num_actions={num_actions} and std={std}: give at least 2 actions and a deviation of at least 0")
    shape = (2, num_actions, 1)
    next_state, reward, deviation, ends = np.zeros(shape, int), np.zeros(shape), np.zeros(shape), np.ones(shape, bool)
    next_state[0, 1], ends[0, 1] = 1, False
    reward[1], deviation[1] = mean, std
    legal = np.ones(shape[:2], bool)
    legal[0, 2:] = False
    return MDP(np.ones(shape), next_state, reward, ends, np.eye(2)[0], legal_actions=legal, reward_std=deviation)


def random_mdp(seed: int, num_states: int, num_actions: int, *, num_successors: int | None = None) -> MDP:
    """A process without structure, for tests: Dirichlet(1) transitions to `num_successors` random states (all of them by default),
    standard normal rewards `[S, A]`, a Dirichlet(1) start. It never ends.
    """
    rng = np.random.default_rng(seed)
    width = num_successors or num_states
    pairs = (num_states, num_actions)
    successors = np.argsort(rng.random((*pairs, num_states)), axis=-1)[..., :width]
    probability = rng.dirichlet(np.ones(width), pairs)
    reward = np.broadcast_to(rng.normal(size=pairs)[..., None], probability.shape)
    return MDP(probability, successors, reward, np.zeros(probability.shape, bool), rng.dirichlet(np.ones(num_states)))


OWN: Mapping[str, Callable[..., MDP]] = MappingProxyType({"random-walk": random_walk, "maximisation-bias": maximisation_bias})
"""Processes of the textbooks behind `mdp:NAME`."""

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "Taxi-v4", "CliffWalking-v1", "CliffWalkingSlippery-v1")
"""Gymnasium's tasks with a table, behind `mdp:NAME`; any other id whose environment has one will do."""


def make(name: str, **options: Any) -> MDP:
    """The process behind `mdp:NAME`. `max_episode_steps` is an option of all of them; the others are those of the function in `OWN`, or
    Gymnasium's (`is_slippery`, `map_name`, ...). Raises FlatironsError for what is not there.
    """
    if name not in OWN:
        return from_gymnasium(name, **options)
    limit = options.pop("max_episode_steps", None)
    try:
        made = OWN[name](**options)
    except TypeError as error:
        raise FlatironsError(f"mdp:{name} does not take these options: {error}") from None
    return made if limit is None else dataclasses.replace(made, max_episode_steps=limit)
