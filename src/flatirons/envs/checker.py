"""`check(task)`: does an environment keep the rules that learning relies on? Every finding comes with a one-line fix.

A Gymnasium environment is walked through some episodes once (`Walk`); each entry of `CHECKS` then judges what was seen. In-graph
environments have a table of their own, `IN_GRAPH_CHECKS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium import spaces as gs

from flatirons.core.bounds import LARGEST, missed_by_gaussian
from flatirons.envs import spaces
from flatirons.types import ArraySpec, Box, FlatironsError, MultiDiscrete

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """What one check found. `fix` says in one line what to change; it is empty where all is well."""

    level: Level
    name: str
    message: str
    fix: str = ""


# What `make` takes beside the environment's options: how many, which episodes, and which of the twins.
_SET_BY_THE_CHECK = frozenset({"task", "num_envs", "seed", "training"})

# What a check returns: None for all well, or how bad it is and why.
Verdict = tuple[Level, str] | None


def check(
    task: Any,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_episodes: int = 8,
    max_steps: int = 600,
    budget_s: float = 20.0,
) -> list[Finding]:
    """Check an environment and return a finding per check, errors and warnings among them.

    task: any name that `make` knows, a `gymnasium.Env`, a factory of one, or an in-graph environment. options: the environment's own, for
    a name. num_episodes and max_steps (in all) bound the walk, budget_s its time in seconds. Raises FlatironsError for an unknown name and
    for an option that the environment does not have.
    """
    from flatirons.envs import make
    from flatirons.envs.ingraph import Env, InGraph

    given = dict(options or {})
    for name in _SET_BY_THE_CHECK.intersection(given):
        raise FlatironsError(f"{name} is no option of the environment, for the check sets it; leave it out")
    if given and not isinstance(task, str):
        raise FlatironsError(f"the option {next(iter(given))!r} is for named tasks; set it on the environment that you pass")
    if isinstance(task, str) and not _is_gymnasium_id(task):
        made: Any = make(task, 2, seed=seed, **given)
        if made.in_graph:
            return _check_in_graph(made.env, seed)
        try:
            return _check_host(made, seed, max_steps // 4)
        finally:
            made.close()
    if isinstance(task, InGraph):
        return _check_in_graph(task.env, seed)
    if isinstance(task, Env) and not isinstance(task, type):
        return _check_in_graph(task, seed)
    if isinstance(task, str):
        # Made through the door once, for its errors: unknown names, missing extras.
        make(task, 1, seed=seed, **given).close()
        own = {name: value for name, value in given.items() if name not in ("vectoriser", "timeout_s")}
        env: Any = gymnasium.make(task, disable_env_checker=True, **own)
    elif isinstance(task, gymnasium.Env):
        env = task
    elif callable(task):
        env = task()
        if isinstance(env, Env):
            return _check_in_graph(env, seed)
    else:
        env = task
    if not isinstance(env, gymnasium.Env):
        message = f"a {type(env).__name__} is not a gymnasium.Env and not an in-graph environment"
        return [
            Finding(
                "error", "type", message, "derive the class from gymnasium.Env (pip install gymnasium), or give it the in-graph methods"
            )
        ]
    walk = take_a_walk(env, seed, num_episodes, max_steps, budget_s)
    if env is not task:
        env.close()
    return [_judge(name, test, fix, walk) for name, test, fix in CHECKS]


def _is_gymnasium_id(task: str) -> bool:
    return not task.startswith(("jax:", "pgx:", "mdp:", "probe:", "envpool:", "ALE/", "pixels:", "discrete:", "no-velocity:"))


def _judge(name: str, test: Callable[[Any], Verdict], fix: str, subject: Any) -> Finding:
    verdict = test(subject)
    return Finding("ok", name, "") if verdict is None else Finding(verdict[0], name, verdict[1], fix)


# ------------------------------------------------------------------------------------------------------------- Gymnasium


class Seen(NamedTuple):
    """One answer of the environment: the action given (None for a reset), the raw result, and what became of things afterwards."""

    action: Any
    result: Any
    obs_rewritten: bool
    action_rewritten: bool


@dataclasses.dataclass
class Walk:
    """Everything that was seen of an environment, for the checks to judge."""

    env: gymnasium.Env
    space_problem: str = ""
    action_problem: str = ""
    seen: list[Seen] = dataclasses.field(default_factory=list)
    raised: str = ""
    same_start: bool | None = None
    same_walk: bool | None = None
    num_ended: int = 0
    longest: int = 0
    limit: int | None = None
    extremes: str = ""
    held: tuple[Any, Any] | None = None

    @property
    def resets(self) -> list[Any]:
        """The raw results of the resets."""
        return [seen.result for seen in self.seen if seen.action is None]

    @property
    def steps(self) -> list[Any]:
        """The raw results of the steps."""
        return [seen.result for seen in self.seen if seen.action is not None]

    @property
    def leaves(self) -> list[tuple[str, Any, ArraySpec, gymnasium.Space]]:
        """Every array of every observation with its key, spec and space; absent parts are None."""
        found = []
        parts = [] if self.space_problem else list(spaces.leaves(self.env.observation_space))
        for result in (*self.resets, *self.steps):
            obs = result[0] if isinstance(result, tuple) and result else result
            for path, get, spec, space in parts:
                try:
                    found.append((path, get(obs), spec, space))
                except Exception:
                    found.append((path, None, spec, space))
        return found


def take_a_walk(env: gymnasium.Env, seed: int, num_episodes: int, max_steps: int, budget_s: float) -> Walk:
    """Reset and step an environment with random actions and note everything. Never raises for what the environment does."""
    from flatirons.envs.host import time_limit

    walk = Walk(env, limit=time_limit(env))
    for part, problem in (("observation_space", "space_problem"), ("action_space", "action_problem")):
        try:
            (spaces.obs_spec if part == "observation_space" else spaces.action_spec)(getattr(env, part))
        except (FlatironsError, AttributeError) as error:
            setattr(walk, problem, str(error))
    if walk.action_problem:
        return walk
    deadline = time.monotonic() + budget_s
    try:
        first, second = _reset(walk, seed), _reset(walk, seed)
        walk.same_start = _same(first, second)
        start, length = _episode(walk, seed, min(50, max_steps // 4), deadline)
        walk.longest = length
        for episode in range(num_episodes):
            used = len(walk.steps)
            if used >= max_steps or time.monotonic() > deadline:
                break
            _, length = _episode(walk, seed + 1 + episode, max_steps - used, deadline)
            walk.longest = max(walk.longest, length)
        again, _ = _episode(walk, seed, len(start) - 1, deadline)
        count = min(len(start), len(again))
        walk.same_walk = all(_same(a, b) for a, b in zip(start[:count], again[:count], strict=True))
        _extremes(walk, seed)
    except (Exception, SystemExit) as error:
        after = len(walk.steps)
        walk.raised = f"{type(error).__name__} after {len(walk.resets)} resets and {after} steps: {' '.join(str(error).split())}"
    return walk


def _reset(walk: Walk, seed: int) -> Any:
    result = walk.env.reset(seed=seed)
    walk.seen.append(Seen(None, _copied(result), False, False))
    return walk.seen[-1].result


def _episode(walk: Walk, seed: int, max_steps: int, deadline: float) -> tuple[list[Any], int]:
    """One episode with actions drawn from the seed; returns the results, the reset's first, and the number of steps."""
    rng = np.random.default_rng(seed)
    results = [_reset(walk, seed)]
    for _ in range(max_steps):
        action = spaces.random_action(walk.env.action_space, results[-1], rng)
        results.append(_step(walk, action))
        result = results[-1]
        if not isinstance(result, tuple) or len(result) < 4 or time.monotonic() > deadline:
            break
        ended = bool(np.any(result[2])) or (len(result) > 4 and bool(np.any(result[3])))
        if ended:
            walk.num_ended += 1
            break
    return results, len(results) - 1


def _step(walk: Walk, action: Any) -> Any:
    before = np.array(action, copy=True)
    raw = walk.env.step(action)
    seen = _copied(raw)
    held = raw[0] if isinstance(raw, tuple) and raw else None
    previous = walk.held
    walk_seen = Seen(action, seen, previous is not None and not _same(*previous), not np.array_equal(before, np.asarray(action)))
    walk.seen.append(walk_seen)
    walk.held = None if held is None else (held, seen[0])
    return seen


def _extremes(walk: Walk, seed: int) -> None:
    """Step from a fresh start with the lowest and with the highest legal action."""
    spec = spaces.action_spec(walk.env.action_space)
    if isinstance(spec, Box):
        batches = [np.maximum(np.asarray([spec.low], np.float32), -1e6), np.minimum(np.asarray([spec.high], np.float32), 1e6)]
    elif isinstance(spec, MultiDiscrete):
        nvec = np.asarray([spec.nvec])
        batches = [np.zeros_like(nvec), nvec - 1]
    else:
        batches = [np.array([0]), np.array([spec.n - 1])]
    decode = spaces.decode_actions(walk.env.action_space)
    for end, batch in zip((0, -1), batches, strict=True):
        legal = spaces.legal_choices(walk.env.action_space, _reset(walk, seed))
        action = decode(batch if legal is None else np.array([part[end] for part in legal]).reshape(batch.shape))[0]
        try:
            _step(walk, action)
        except (Exception, SystemExit) as error:
            walk.extremes = f"the action {action!r} raised {type(error).__name__}: {' '.join(str(error).split())}"


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    if isinstance(value, list):
        return [_copied(part) for part in value]
    return value


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are alike; the info, free-form, is left out."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and a and isinstance(a[-1], dict) and len(a) in (2, 4, 5):
        a, b = a[:-1], b[:-1]
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    with contextlib.suppress(TypeError, ValueError):
        return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f"))
    return a is b


def _steps(walk: Walk) -> list[tuple[Any, ...]]:
    return [step for step in walk.steps if isinstance(step, tuple) and len(step) == 5]


def _observation_space(walk: Walk) -> Verdict:
    return ("error", walk.space_problem) if walk.space_problem else None


def _action_space(walk: Walk) -> Verdict:
    if walk.action_problem:
        return "error", walk.action_problem
    spec = spaces.action_spec(walk.env.action_space)
    if isinstance(spec, Box) and not (np.abs([*spec.low, *spec.high]) <= LARGEST).all():
        return "warning", f"the action space {walk.env.action_space} has infinite bounds, so actions cannot be scaled to it"
    return None


def _action_reach(walk: Walk) -> Verdict:
    if walk.action_problem or not isinstance(spec := spaces.action_spec(walk.env.action_space), Box):
        return None
    entry = missed_by_gaussian(spec, 1.0)
    if entry is None:
        return None
    return "warning", (
        f"entry {entry} of an action lies in [{spec.low[entry]:g}, {spec.high[entry]:g}], and the policies of ppo, trpo, a3c and reinforce "
        "draw their first actions around 0 with a deviation of about 1: they may never learn to leave a bound, or to reach the other"
    )


def _raised(walk: Walk) -> Verdict:
    return ("error", walk.raised) if walk.raised else None


def _reset_signature(walk: Walk) -> Verdict:
    for result in walk.resets:
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            found = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
            return "error", f"reset returned {found}, not (obs, info)"
    return None


def _step_signature(walk: Walk) -> Verdict:
    for result in walk.steps:
        if not isinstance(result, tuple) or len(result) != 5:
            found = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
            return "error", f"step returned {found}, not (obs, reward, terminated, truncated, info)"
        if not isinstance(result[4], dict):
            return "error", f"step returned a {type(result[4]).__name__} as info, not a dict"
    return None


def _obs_type(walk: Walk) -> Verdict:
    for path, value, spec, _ in walk.leaves:
        if value is None:
            return "error", f"{path} is missing from an observation"
        if not isinstance(value, np.ndarray) and not (spec.shape == () and isinstance(value, (int, np.generic))):
            return "error", f"{path} is a {type(value).__name__}, not a numpy array"
    return None


def _obs_shape(walk: Walk) -> Verdict:
    for path, value, spec, _ in walk.leaves:
        if value is not None and np.shape(value) != spec.shape:
            return "error", f"{path} has shape {np.shape(value)}, the observation space says {spec.shape}"
    return None


def _obs_dtype(walk: Walk) -> Verdict:
    for path, value, _, space in walk.leaves:
        if not isinstance(value, np.ndarray) or value.dtype == space.dtype or space.dtype is None:
            continue
        wanted = np.dtype(space.dtype)
        if value.dtype.kind != wanted.kind and not {value.dtype.kind, wanted.kind} <= {"i", "u"}:
            return "error", f"{path} has dtype {value.dtype}, the observation space says {wanted}"
        return "warning", f"{path} has dtype {value.dtype}, the observation space says {wanted}"
    return None


def _obs_finite(walk: Walk) -> Verdict:
    for path, value, _, _ in walk.leaves:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            return "error", f"{path} holds {value[~np.isfinite(value)].ravel()[0]}"
    return None


def _obs_bounds(walk: Walk) -> Verdict:
    for path, value, spec, space in walk.leaves:
        if value is None or np.shape(value) != spec.shape or np.asarray(value).dtype.kind not in "fiu":
            continue
        if isinstance(space, gs.Box):
            low, high = space.low, space.high
        elif isinstance(space, (gs.Discrete, gs.MultiDiscrete)):
            low, high = np.asarray(space.start), np.asarray(space.start + (space.n if isinstance(space, gs.Discrete) else space.nvec) - 1)
        else:
            low, high = np.asarray(0), np.asarray(1)
        # A float32 bound may round to just inside the value.
        slack = 1e-6 * np.maximum(1.0, np.abs(np.asarray(value, np.float64)))
        outside = np.isfinite(value) & ((value < low - slack) | (value > high + slack))
        if np.any(outside):
            worst = np.asarray(value)[outside].ravel()[0]
            return "error", f"{path} holds {worst}, outside its bounds {np.min(low)} ... {np.max(high)}"
    return None


def _reward_scalar(walk: Walk) -> Verdict:
    for _, reward, *_ in _steps(walk):
        if isinstance(reward, np.ndarray) and reward.shape != ():
            return "error", f"the reward is an array of shape {reward.shape}"
        if not isinstance(reward, (int, float, np.number, np.bool_, np.ndarray)):
            return "error", f"the reward is a {type(reward).__name__}"
    return None


def _reward_finite(walk: Walk) -> Verdict:
    for _, reward, *_ in _steps(walk):
        with contextlib.suppress(TypeError, ValueError):
            if not np.isfinite(np.asarray(reward, np.float64)).all():
                return "error", f"the reward was {reward}"
    return None


def _flags(walk: Walk) -> Verdict:
    for _, _, terminated, truncated, _ in _steps(walk):
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if isinstance(value, (bool, np.bool_)):
                continue
            return "error", f"{name} is {value!r:.40}, a {type(value).__name__}"
    for _, _, terminated, truncated, _ in _steps(walk):
        if not (isinstance(terminated, bool) and isinstance(truncated, bool)):
            return "warning", "terminated or truncated is a numpy bool, which `is True` does not recognise"
    return None


def _obs_reused(walk: Walk) -> Verdict:
    return (
        ("warning", "a step wrote into the array that the step before had returned")
        if any(seen.obs_rewritten for seen in walk.seen)
        else None
    )


def _action_kept(walk: Walk) -> Verdict:
    return ("warning", "step wrote into the action that it was given") if any(seen.action_rewritten for seen in walk.seen) else None


def _seed(walk: Walk) -> Verdict:
    return ("error", "two resets with the same seed gave different observations") if walk.same_start is False else None


def _repeat(walk: Walk) -> Verdict:
    if walk.same_start and walk.same_walk is False:
        return "error", "the same seed and actions gave another episode after other episodes had been played"
    return None


def _limit(walk: Walk) -> Verdict:
    if walk.limit is None and walk.num_ended == 0 and walk.longest > 0 and not walk.raised:
        return "warning", f"no time limit, and no episode ended within {walk.longest} random steps"
    return None


def _extreme_actions(walk: Walk) -> Verdict:
    return ("error", walk.extremes) if walk.extremes else None


CHECKS: tuple[tuple[str, Callable[[Walk], Verdict], str], ...] = (
    (
        "observation space",
        _observation_space,
        "set self.observation_space in __init__ to Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple",
    ),
    (
        "action space",
        _action_space,
        "set self.action_space in __init__ to Discrete, MultiDiscrete, MultiBinary or a Box with finite float bounds",
    ),
    ("action reach", _action_reach, "wrap it: gymnasium.wrappers.RescaleAction(env, -1, 1); sac and ddpg scale their actions themselves"),
    (
        "runs",
        _raised,
        "mend what raised; reset must take seed= and options= and work at any time, step must take every action of the space",
    ),
    ("reset signature", _reset_signature, "end reset with `return obs, {}`"),
    ("step signature", _step_signature, "end step with `return obs, reward, terminated, truncated, {}`"),
    ("obs type", _obs_type, "return `np.asarray(obs, self.observation_space.dtype)`, with every key of a Dict space"),
    ("obs shape", _obs_shape, "make the observation's shape and observation_space's shape the same"),
    ("obs dtype", _obs_dtype, "return `obs.astype(self.observation_space.dtype)`"),
    ("obs finite", _obs_finite, "find the division by zero or the overflow, or terminate the episode before it"),
    ("obs bounds", _obs_bounds, "widen low and high of the observation space, or clip the observation to them"),
    ("reward scalar", _reward_scalar, "return `float(reward)`"),
    ("reward finite", _reward_finite, "find the division by zero or the overflow in the reward"),
    ("flags", _flags, "return `bool(terminated)` and `bool(truncated)`"),
    ("obs copied", _obs_reused, "return `obs.copy()`, so that whoever keeps an observation keeps its numbers"),
    ("action kept", _action_kept, "work on `action.copy()`"),
    ("seed", _seed, "call `super().reset(seed=seed)` first in reset, and draw every random number from self.np_random"),
    ("no hidden state", _repeat, "set every variable of the episode in reset, and draw every random number from self.np_random"),
    ("time limit", _limit, "give max_episode_steps when registering, or wrap it: gymnasium.wrappers.TimeLimit(env, 1000)"),
    ("extreme actions", _extreme_actions, "accept every action that the action space contains, its bounds too"),
)
"""Name, judge and fix of every check of a Gymnasium environment."""


# ------------------------------------------------------------------------------------------------------------- host tasks


def _check_host(task: Any, seed: int, max_steps: int) -> list[Finding]:
    """The checks that a native vector environment (Atari, EnvPool) allows: it runs, keeps to its spec and repeats."""

    def walk() -> list[Any]:
        rng = np.random.default_rng(seed)
        found = [task.reset(seed)]
        for _ in range(max_steps):
            outcome, after = task.step(spaces.random_batch(task.spec.action, task.num_envs, rng))
            found.append((outcome, after.obs))
        return found

    try:
        first, second = walk(), walk()
    except FlatironsError as error:
        return [Finding("error", "runs", str(error), "see the simulator's own documentation")]
    same = all(
        np.array_equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )
    repeat = (
        Finding("ok", "seed", "")
        if same
        else Finding("error", "seed", "the same seed gave another walk", "report it to the simulator's makers")
    )
    return [Finding("ok", "runs", ""), repeat]


# ------------------------------------------------------------------------------------------------------------- in-graph


@dataclasses.dataclass
class Traced:
    """What was seen of an in-graph environment: shapes from tracing, and a walk of 64 streams."""

    env: Any
    raised: str = ""
    state: Any = None
    next_state: Any = None
    obs: Any = None
    reward: Any = None
    terminated: Any = None
    walked: Any = None
    walked_again: Any = None
    hashable: bool = True


IN_GRAPH_STREAMS, IN_GRAPH_STEPS = 64, 200


def _trace(env: Any, seed: int) -> Traced:
    seen = Traced(env)
    try:
        hash(env)
    except TypeError:
        seen.hashable = False
    key = jax.random.key(seed)
    try:
        action = _sample(env.action_spec, key, ())
        seen.state = jax.eval_shape(env.init, key)
        seen.next_state, seen.reward, seen.terminated = jax.eval_shape(env.step, key, seen.state, action)
        seen.obs = jax.eval_shape(env.observe, seen.state)

        if any(test(seen) for _, test, _ in IN_GRAPH_CHECKS[:_NUM_SHAPE_CHECKS]):
            return seen

        def stream(key: Any) -> Any:
            def one(state: Any, key: Any) -> Any:
                act_key, step_key, new_key = jax.random.split(key, 3)
                after, reward, terminated = env.step(step_key, state, _sample(env.action_spec, act_key, ()))
                out = (env.observe(after), reward, terminated)
                return jax.tree.map(lambda new, old: jax.numpy.where(terminated, new, old), env.init(new_key), after), out

            start_key, walk_key = jax.random.split(key)
            state = env.init(start_key)
            first = env.observe(state)
            return first, jax.lax.scan(one, state, jax.random.split(walk_key, IN_GRAPH_STEPS))[1]

        walk = jax.jit(jax.vmap(stream))
        keys = jax.random.split(key, IN_GRAPH_STREAMS)
        seen.walked, seen.walked_again = jax.device_get(walk(keys)), jax.device_get(walk(keys))
    except Exception as error:
        seen.raised = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return seen


def _sample(spec: Any, key: Any, batch: tuple[int, ...]) -> Any:
    if isinstance(spec, Box):
        low = jax.numpy.maximum(jax.numpy.asarray(spec.low, jax.numpy.float32), -1e3)
        high = jax.numpy.minimum(jax.numpy.asarray(spec.high, jax.numpy.float32), 1e3)
        return low + (high - low) * jax.random.uniform(key, (*batch, len(spec.low)))
    if isinstance(spec, MultiDiscrete):
        return jax.random.randint(key, (*batch, len(spec.nvec)), 0, jax.numpy.asarray(spec.nvec))
    return jax.random.randint(key, batch, 0, spec.n)


def _avals(tree: Any) -> list[tuple[str, tuple[int, ...], str]]:
    return [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _traces(seen: Traced) -> Verdict:
    return ("error", seen.raised) if seen.raised else None


def _hashes(seen: Traced) -> Verdict:
    return None if seen.hashable else ("error", f"{type(seen.env).__name__} cannot be hashed, so every call would compile it anew")


def _state_kept(seen: Traced) -> Verdict:
    if seen.next_state is None or _avals(seen.state) == _avals(seen.next_state):
        return None
    before, after = _avals(seen.state), _avals(seen.next_state)
    different = next(((a, b) for a, b in zip(before, after, strict=False) if a != b), (before, after))
    return "error", f"step changes the state's shape or dtype: {different[0]} became {different[1]}"


def _obs_as_spec(seen: Traced) -> Verdict:
    if seen.obs is None:
        return None
    specs, spec_tree = jax.tree.flatten(seen.env.obs_spec)
    tree = jax.tree.structure(seen.obs)
    if spec_tree != tree:
        return "error", f"observe returns the tree {tree}, obs_spec is {spec_tree}"
    for (path, shape, dtype), spec in zip(_avals(seen.obs), specs, strict=True):
        if (shape, dtype) != (spec.shape, spec.dtype):
            return "error", f"obs{path} is {dtype}{list(shape)}, obs_spec says {spec.dtype}{list(spec.shape)}"
    return None


def _reward_as_float(seen: Traced) -> Verdict:
    reward = seen.reward
    if reward is None or (reward.shape == () and str(reward.dtype) == "float32"):
        return None
    return "error", f"the reward is {reward.dtype}{list(reward.shape)}, not a float32 scalar"


def _terminated_as_bool(seen: Traced) -> Verdict:
    flag = seen.terminated
    if flag is None or (flag.shape == () and str(flag.dtype) == "bool"):
        return None
    return "error", f"terminated is {flag.dtype}{list(flag.shape)}, not a bool scalar"


def _walk_leaves(seen: Traced) -> list[tuple[np.ndarray, ArraySpec]]:
    if seen.walked is None:
        return []
    first, (obs, _, _) = seen.walked
    specs = jax.tree.leaves(seen.env.obs_spec)
    return [(leaf, spec) for tree in (first, obs) for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=False)]


def _finite(seen: Traced) -> Verdict:
    for leaf, _ in _walk_leaves(seen):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            return "error", f"an observation held {leaf[~np.isfinite(leaf)].ravel()[0]}"
    if seen.walked is not None and not np.isfinite(seen.walked[1][1]).all():
        return "error", "a reward was not finite"
    return None


def _bounds(seen: Traced) -> Verdict:
    for leaf, spec in _walk_leaves(seen):
        if leaf.dtype.kind not in "fiu":
            continue
        numbers = leaf[np.isfinite(leaf)]
        slack = 1e-5 * np.maximum(1.0, np.abs(numbers.astype(np.float64)))
        outside = (numbers < spec.low - slack) | (numbers > spec.high + slack)
        if outside.any():
            return "error", f"an observation held {numbers[outside][0]}, outside {spec.low} ... {spec.high}"
    return None


def _deterministic(seen: Traced) -> Verdict:
    if seen.walked is None:
        return None
    same = all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(jax.tree.leaves(seen.walked), jax.tree.leaves(seen.walked_again), strict=True)
    )
    return None if same else ("error", "the same keys gave another walk")


def _in_graph_limit(seen: Traced) -> Verdict:
    if seen.walked is None or seen.env.max_episode_steps is not None or np.any(seen.walked[1][2]):
        return None
    return "warning", f"no time limit, and no episode ended within {IN_GRAPH_STEPS} random steps of {IN_GRAPH_STREAMS} streams"


IN_GRAPH_CHECKS: tuple[tuple[str, Callable[[Traced], Verdict], str], ...] = (
    ("traces", _traces, "write init, step and observe with jax.numpy, jax.lax.cond and jnp.where in place of Python's if"),
    ("hashable", _hashes, "make the class a `@dataclasses.dataclass(frozen=True)` whose fields are numbers, strings and tuples"),
    ("state kept", _state_kept, "return from step a state of exactly init's tree, shapes and dtypes (`.astype(...)`, `jnp.float32(...)`)"),
    ("obs as spec", _obs_as_spec, "make what observe returns and obs_spec the same"),
    ("reward", _reward_as_float, "return `jnp.float32(reward)` of shape ()"),
    ("terminated", _terminated_as_bool, "return a comparison, or `jnp.bool_(terminated)`, of shape ()"),
    ("finite", _finite, "find the division by zero or the overflow, or terminate the episode before it"),
    ("obs bounds", _bounds, "widen low and high of obs_spec, or clip the observation to them"),
    ("deterministic", _deterministic, "draw every random number from the key that is given, nothing from numpy or io_callback"),
    ("time limit", _in_graph_limit, "give max_episode_steps"),
)
"""Name, judge and fix of every check of an in-graph environment."""


_NUM_SHAPE_CHECKS = 6
"""The checks before "finite" need no walk, and where one of them fails there is none."""


def _check_in_graph(env: Any, seed: int) -> list[Finding]:
    seen = _trace(env, seed)
    return [_judge(name, test, fix, seen) for name, test, fix in IN_GRAPH_CHECKS]
