"""Host environments: one answer whatever steps them, true successors, every kind of space, and the door's errors."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gs

from flatirons import envs
from flatirons.envs import host, spaces
from flatirons.envs.ingraph import InGraph
from flatirons.envs.render import render_frame
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete


class Counter(gymnasium.Env):
    """Counts its steps into the observation, ends at `length`, and gives every kind of observation at once."""

    observation_space = gs.Dict(
        {
            "vector": gs.Box(-np.inf, np.inf, (2,), np.float64),
            "count": gs.Discrete(100, start=5),
            "inner": gs.Dict({"pair": gs.Tuple((gs.MultiDiscrete([4, 9]), gs.Box(0, 1, (1, 2), np.bool_)))}),
            "picture": gs.Box(0, 255, (2, 3), np.uint8),
            "bits": gs.MultiBinary(3),
        }
    )
    action_space: gymnasium.Space = gs.Discrete(3, start=-1)

    def __init__(self, length: int = 4) -> None:
        self.length = length
        self.steps = 0
        self.actions: list[Any] = []

    def _obs(self) -> dict[str, Any]:
        return {
            "picture": np.full((2, 3), self.steps, np.uint8),
            "vector": np.array([self.steps, self.np_random.normal()]),
            "count": 5 + self.steps,
            "inner": {"pair": (np.array([1, self.steps % 9]), np.array([[True, False]]))},
            "bits": np.array([0, 1, 1], np.int8),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        self.steps += 1
        return self._obs(), float(self.steps), self.steps >= self.length, False, {}


class Pursuing(Counter):
    """The goal is reached by the action 1; what it says of that in the middle of an episode nobody asks."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"is_success": np.bool_(action == 1)}


@pytest.mark.parametrize("name", host.REACHED)
def test_a_goal_that_is_reached_goes_by_two_names(name: str) -> None:
    assert host._reached({name: np.bool_(True)}) == 1.0 and host._reached({name: False}) == 0.0
    assert np.isnan(host._reached({name: "yes"})) and np.isnan(host._reached({})) and np.isnan(host._reached(None))


class Reusing(gymnasium.Env):
    """Writes every observation into one buffer, aligned so that nothing but a copy can protect it."""

    observation_space = gs.Box(-1e9, 1e9, (16,), np.float32)
    action_space = gs.Box(np.array([[-1.0, 0.0]], np.float32), np.array([[1.0, 5.0]], np.float32))

    def __init__(self) -> None:
        self.buffer = np.zeros(16, np.float32)
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.buffer[:] = 0
        return self.buffer, {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(action)
        self.buffer += 1
        return self.buffer, np.float32(1), np.bool_(self.buffer[0] >= 3), False, {}


class Slow(Counter):
    """A millisecond a step: worth a process."""

    def step(self, action: Any) -> Any:
        time.sleep(0.001)
        return super().step(action)


class Masked(gymnasium.Env):
    """Counts to 3; only the action that is the count is legal, and of several choices the first of each besides. It refuses others."""

    observation_space = gs.Box(0.0, 10.0, (1,), np.float32)

    def __init__(self, action_space: gymnasium.Space | None = None, *, wrong: Any = None, late: bool = False) -> None:
        self.action_space = gs.Discrete(4) if action_space is None else action_space
        self.wrong, self.late = wrong, late
        self.steps = 0

    def _info(self) -> dict[str, Any]:
        if self.late and self.steps:
            return {}
        if self.wrong is not None and self.steps:
            return {"action_mask": self.wrong}
        flags = np.arange(4) == self.steps
        if isinstance(self.action_space, gs.MultiDiscrete):
            return {"action_mask": (np.array([1, 0], np.int8), flags.astype(np.int8))}
        return {"action_mask": flags.astype(np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), self._info()

    def step(self, action: Any) -> Any:
        assert np.all(np.asarray(action).reshape(-1)[-1] == self.steps), "an illegal action"
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, self.steps >= 3, False, self._info()


def make_slow() -> gymnasium.Env:
    return Slow()


def by_hand(name: str, num_envs: int, seed: int, actions: np.ndarray) -> list[tuple[Any, ...]]:
    """What Gymnasium itself answers, one environment at a time: (reward, next_obs, terminated, truncated, obs) per step."""
    made = [gymnasium.make(name) for _ in range(num_envs)]
    for env, env_seed in zip(made, host.env_seeds(seed, num_envs), strict=True):
        env.reset(seed=env_seed)
    answers = []
    for row in actions:
        found = []
        for env, action in zip(made, row, strict=True):
            obs, reward, terminated, truncated, _ = env.step(action)
            after = env.reset()[0] if terminated or truncated else obs
            found.append((reward, obs, terminated, truncated, after))
        answers.append(tuple(np.array(part) for part in zip(*found, strict=True)))
    for env in made:
        env.close()
    return answers


@pytest.mark.parametrize("vectoriser", ["auto", "serial", "threads", "processes", "gymnasium"])
def test_cartpole_equals_gymnasium_bit_for_bit(vectoriser: str) -> None:
    actions = np.random.default_rng(0).integers(0, 2, (120, 6))
    task = envs.make("CartPole-v1", 6, seed=3, vectoriser=vectoriser, max_episode_steps=25)
    expected = by_hand_limited(actions)
    ended = both = 0
    for row, (reward, next_obs, terminated, truncated, obs) in zip(actions, expected, strict=True):
        outcome, after = task.step(row.astype(np.int32))
        np.testing.assert_array_equal(outcome.reward, reward.astype(np.float32))
        np.testing.assert_array_equal(outcome.next_obs, next_obs)
        np.testing.assert_array_equal(outcome.terminated, terminated)
        np.testing.assert_array_equal(outcome.truncated, truncated)
        np.testing.assert_array_equal(after.obs, obs)
        np.testing.assert_array_equal(after.first, terminated | truncated)
        assert outcome.reward.dtype == np.float32 and after.obs.dtype == np.float32 and after.first.dtype == np.bool_
        assert after.legal == () and after.model == () and task.current is after
        ended += int(after.first.sum())
        both += int(truncated.sum())
    assert ended > 20 and both > 0
    assert task.notes[0].startswith("vectoriser: ")
    task.close()
    task.close()


def by_hand_limited(actions: np.ndarray) -> list[tuple[Any, ...]]:
    gymnasium.register("Short-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=25)
    try:
        return by_hand("Short-v0", 6, 3, actions)
    finally:
        del gymnasium.registry["Short-v0"]


@pytest.mark.parametrize("name", ["Pendulum-v1", "HalfCheetah-v5"])
def test_box_actions_equal_gymnasium(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = gymnasium.spec(name).make().action_space.shape
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4, *shape)).astype(np.float32)
    for vectoriser in ("serial", "threads"):
        task = envs.make(name, 4, seed=1, vectoriser=vectoriser)
        for row, (reward, next_obs, *_) in zip(actions, by_hand(name, 4, 1, actions), strict=True):
            outcome, _ = task.step(row)
            np.testing.assert_array_equal(outcome.reward, reward.astype(np.float32))
            np.testing.assert_array_equal(outcome.next_obs, next_obs.astype(np.float32))
        task.close()


def test_seeds_do_not_depend_on_the_number_of_environments() -> None:
    assert host.env_seeds(7, 2) == host.env_seeds(7, 5)[:2]
    assert len(set(host.env_seeds(7, 100))) == 100 and host.env_seeds(7, 3) != host.env_seeds(8, 3)
    few, many = envs.make("CartPole-v1", 2, seed=7, vectoriser="serial"), envs.make("CartPole-v1", 8, seed=7, vectoriser="gymnasium")
    np.testing.assert_array_equal(few.current.obs, many.current.obs[:2])
    start = few.current.obs
    again = few.reset()
    assert not np.array_equal(start, again.obs) and again.first.all()
    np.testing.assert_array_equal(few.reset(7).obs, start)
    with pytest.raises(FlatironsError, match="seed is -1"):
        few.reset(-1)


@pytest.mark.parametrize("vectoriser", ["serial", "threads", "processes"])
def test_every_space_and_the_true_last_observation(vectoriser: str) -> None:
    task = envs.make(Counter, 3, vectoriser=vectoriser)
    assert task.spec.obs["vector"] == ArraySpec((2,), "float32")
    assert task.spec.obs["count"] == ArraySpec((), "int32", 0, 99, start=(5,))
    assert task.spec.obs["inner"]["pair"] == (ArraySpec((2,), "int32", 0, 8), ArraySpec((1, 2), "bool", 0, 1))
    assert task.spec.obs["bits"] == ArraySpec((3,), "int8", 0, 1) and task.spec.action == Discrete(3, start=-1)
    assert jax.tree.structure(task.spec.obs) == jax.tree.structure(task.current.obs)
    for step in range(1, 9):
        outcome, after = task.step(np.array([0, 1, 2], np.int32))
        inside = (step - 1) % 4 + 1
        assert outcome.next_obs["count"].tolist() == [inside] * 3 and outcome.next_obs["count"].dtype == np.int32
        assert outcome.next_obs["vector"][:, 0].tolist() == [inside] * 3 and outcome.next_obs["vector"].dtype == np.float32
        assert outcome.next_obs["inner"]["pair"][0].tolist() == [[1, inside]] * 3
        assert outcome.next_obs["inner"]["pair"][1].dtype == np.bool_ and outcome.next_obs["picture"].dtype == np.uint8
        assert outcome.terminated.tolist() == [inside == 4] * 3 and not outcome.truncated.any()
        assert after.obs["count"].tolist() == [inside % 4] * 3
        for array, spec in zip(jax.tree.leaves(after.obs), jax.tree.leaves(task.spec.obs), strict=True):
            assert array.shape == (3, *spec.shape) and array.dtype == spec.dtype
    if vectoriser == "serial":
        assert [env.actions[0] for env in task.engine.rows.envs] == [-1, 0, 1]
    task.close()


def test_a_reused_buffer_does_not_change_what_was_handed_out() -> None:
    task = envs.make(Reusing, 2, vectoriser="serial")
    first = task.current.obs
    kept = [task.step(np.zeros((2, 2), np.float32)) for _ in range(4)]
    assert (first == 0).all()
    assert [outcome.next_obs[0, 0] for outcome, _ in kept] == [1, 2, 3, 1]
    assert [after.obs[0, 0] for _, after in kept] == [1, 2, 0, 1]
    later = [np.asarray(jax.jit(lambda x: x + 0)(outcome.next_obs)) for outcome, _ in kept]
    task.step(np.zeros((2, 2), np.float32))
    assert [float(array[0, 0]) for array in later] == [1, 2, 3, 1]


def test_box_actions_are_clipped_and_shaped() -> None:
    task = envs.make(Reusing, 2, vectoriser="serial")
    assert task.spec.action == Box((-1.0, 0.0), (1.0, 5.0), raw_shape=(1, 2))
    given = np.array([[-9, 9], [0.5, -3]], np.float32)
    task.step(given)
    seen = [env.actions[0] for env in task.engine.rows.envs]
    np.testing.assert_array_equal(seen, [[[-1, 5]], [[0.5, 0]]])
    assert given[0, 0] == -9


def test_float64_bounds_are_not_overstepped() -> None:
    """0.3 in float32 is 0.30000001, which a Box of float64 refuses; and 0.1 to 0.1 has no float32 within it."""
    space = gs.Box(np.array([-0.1, 0.1, -np.inf]), np.array([0.3, 0.1, 1e308]), dtype=np.float64)
    spec = spaces.action_spec(space)
    assert isinstance(spec, Box) and spec.low[2] == -np.inf and spec.high[2] == np.inf
    check, decode = spaces.action_checker(spec), spaces.decode_actions(space)
    for end in (-9.0, 9.0):
        (action,) = decode(check(np.full((1, 3), end, np.float32), 1))
        assert action in space and action.dtype == np.float64
        np.testing.assert_allclose(action, np.clip(end, space.low, space.high), rtol=1e-6)
    square = gs.Box(-0.1, 0.3, (1, 2), np.float64)
    raw = spaces.raw_actions(spaces.action_spec(square), np.array([[-9, 9]], np.float32))[0]
    assert raw in square and raw.astype(np.float64) in square


def test_multi_discrete_actions() -> None:
    space = gs.MultiDiscrete([3, 2], start=[1, 0])
    assert spaces.action_spec(space) == MultiDiscrete((3, 2), start=(1, 0))
    decoded = spaces.decode_actions(space)(np.array([[0, 1], [2, 0]], np.int32))
    assert [action.tolist() for action in decoded] == [[1, 1], [3, 0]] and all(action in space for action in decoded)
    assert spaces.action_spec(gs.MultiBinary(2)) == MultiDiscrete((2, 2))
    for raw in (space, gs.MultiDiscrete([[3, 2]], start=[[1, 0]]), gs.MultiBinary((1, 2)), gs.Discrete(3, start=7)):
        batch = np.array([2], np.int32) if isinstance(raw, gs.Discrete) else np.array([[1, 1]], np.int32)
        assert spaces.raw_actions(spaces.action_spec(raw), batch)[0] in raw
    for spec in (Discrete(4), MultiDiscrete((2, 3)), MultiDiscrete((2, 3), (0, 4), (2, 1)), Box((0.0,), (1.0,))):
        assert spaces.action_spec(spaces.space_of(spec)) == spec
    nested = {"a": ArraySpec((2,), "float32"), "b": (ArraySpec((3,), "uint8", 0, 255), ArraySpec((1,), "bool", 0, 1))}
    assert spaces.obs_spec(spaces.space_of(nested)) == nested


@pytest.mark.parametrize("bad", [gs.Text(5), gs.Graph(gs.Discrete(2), None), gs.Dict({"a": gs.Sequence(gs.Discrete(2))})])
def test_spaces_without_a_shape_are_refused(bad: gymnasium.Space) -> None:
    with pytest.raises(FlatironsError, match="no fixed array shape"):
        spaces.obs_spec(bad)


@pytest.mark.parametrize(
    "empty", [gs.Dict({}), gs.Tuple(()), gs.Box(-1, 1, (0,)), gs.Dict({"a": gs.Box(0, 1, (3, 0))}), gs.MultiDiscrete([])]
)
def test_spaces_without_numbers_are_refused(empty: gymnasium.Space) -> None:
    env = Counter()
    env.observation_space = empty
    with pytest.raises(FlatironsError, match=r"the observation space .* holds no numbers, so there is nothing to act on") as caught:
        envs.make(env)
    assert "\n" not in str(caught.value)
    some = gs.Dict({"none": gs.Box(0, 1, (0,)), "one": gs.Discrete(2)})
    assert spaces.obs_spec(some)["one"] == ArraySpec((), "int32", 0, 1)


@pytest.mark.parametrize("empty", [gs.Box(-1, 1, (0,)), gs.Box(-1, 1, (2, 0)), gs.MultiDiscrete([])])
def test_actions_without_dimensions_are_refused(empty: gymnasium.Space) -> None:
    env = Counter()
    env.action_space = empty
    with pytest.raises(FlatironsError, match=r"the action space .* has no dimensions, so there is nothing to choose; give it at least one"):
        envs.make(env)


def test_bad_actions_are_refused() -> None:
    task = envs.make("CartPole-v1", 2)
    for bad, words in (
        (np.array([0, 2], np.int32), "action 2 of environment 1 is outside 0 ... 1"),
        (np.array([0], np.int32), r"take int32\[2\]"),
        (np.array([0.0, 1.0]), "float64"),
    ):
        with pytest.raises(FlatironsError, match=words):
            task.step(bad)
    task.step(np.array([0, 1], np.int32))
    box = envs.make("Pendulum-v1", 2)
    with pytest.raises(FlatironsError, match=r"action .* of environment 1 is not finite"):
        box.step(np.array([[0], [np.nan]], np.float32))
    with pytest.raises(FlatironsError, match=r"float32\[2, 1\]"):
        box.step(np.zeros((2, 2), np.float32))


def test_time_limits_stay_with_the_evaluation_twin() -> None:
    task = envs.make("Pendulum-v1", 1, training=False)
    assert task.spec.max_episode_steps == 200
    truncated = [bool(task.step(np.zeros((1, 1), np.float32))[0].truncated[0]) for _ in range(201)]
    assert truncated.index(True) == 199 and sum(truncated) == 1


def test_slow_environments_get_processes_and_fast_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    slow = envs.make(make_slow, 2)
    assert "processes (2 workers" in slow.notes[0] and "steps in" in slow.notes[0]
    slow.step(np.zeros(2, np.int32))
    slow.close()
    alone = envs.make(make_slow, 1)
    assert "serial" in alone.notes[0]
    local = envs.make(lambda: Slow(), 2)
    assert "serial" in local.notes[0] and "cannot be made again" in local.notes[0]
    assert "gymnasium (CartPoleVectorEnv" in envs.make("CartPole-v1", 8).notes[0]
    assert "serial" in envs.make("CartPole-v1", 2).notes[0]
    with pytest.raises(FlatironsError, match="not importable"):
        envs.make(lambda: Counter(), 2, vectoriser="processes")


@pytest.mark.parametrize("vectoriser", ["serial", "threads", "processes"])
def test_whether_a_goal_was_reached_is_kept_of_an_episodes_last_step(vectoriser: str) -> None:
    task: Any = envs.make(Pursuing, 3, vectoriser=vectoriser)
    for action in ([0, 2, 0], [2, 0, 0], [0, 2, 0], [2, 0, 2], [0, 2, 0]):
        task.step(np.array(action))
    np.testing.assert_array_equal(task.reached, [1.0, 0.0, 1.0])
    task.close()
    silent: Any = envs.make(Counter, 2, vectoriser=vectoriser)
    for _ in range(4):
        silent.step(np.zeros(2, int))
    assert np.isnan(silent.reached).all()
    silent.close()


class OfMujoco(gymnasium.Env):
    """Looks like one of Gymnasium's MuJoCo environments; only the thread that made it can step it."""

    observation_space = gs.Box(-1, 1, (3,), np.float32)
    action_space = gs.Box(-1, 1, (2,), np.float32)
    of_one_thread = False

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        if threading.get_ident() != self.thread:
            raise RuntimeError("current in another thread")
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("of_one_thread", [True, False])
def test_what_cannot_be_stepped_in_threads_is_not(of_one_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    monkeypatch.setattr(OfMujoco, "__module__", "gymnasium.envs.mujoco.test")
    monkeypatch.setattr(OfMujoco, "of_one_thread", of_one_thread)
    monkeypatch.setattr(host, "_threads", lambda *args, threads=host._threads: tried.append(1) or threads(*args))
    # Where nothing says so, the trial of threads fails and is no reason to take them.
    task = envs.make(lambda: OfMujoco(), 4)
    assert "serial" in task.notes[0] and bool(tried) != of_one_thread
    task.step(np.zeros((4, 2), np.float32))
    if of_one_thread:
        with pytest.raises(FlatironsError, match="draws in the one thread that made it, so threads cannot step it"):
            envs.make(lambda: OfMujoco(), 4, vectoriser="threads")


def test_the_measurement_leaves_no_trace() -> None:
    auto, plain = envs.make("Acrobot-v1", 3, seed=5), envs.make("Acrobot-v1", 3, seed=5, vectoriser="serial")
    for _ in range(5):
        a, b = auto.step(np.zeros(3, np.int32)), plain.step(np.zeros(3, np.int32))
        np.testing.assert_array_equal(a[0].next_obs, b[0].next_obs)


def test_instances_factories_and_in_graph_objects() -> None:
    instance = Counter()
    task = envs.make(instance)
    task.step(np.zeros(1, np.int32))
    assert instance.actions == [-1] and task.name == "Counter"
    wrapped = gymnasium.make("CartPole-v1")
    task = envs.make(wrapped)
    assert task.spec.max_episode_steps == 500 and task.engine.rows.envs[0] is wrapped
    with pytest.raises(FlatironsError, match="pass a factory"):
        envs.make(instance, 2)
    with pytest.raises(FlatironsError, match="returned a int"):
        envs.make(lambda: 3)
    with pytest.raises(FlatironsError, match="a float is not a task"):
        envs.make(3.0)
    with pytest.raises(FlatironsError, match="for named tasks"):
        envs.make(instance, length=3)
    named = envs.make("jax:CartPole-v1", 3, max_episode_steps=7)
    assert isinstance(named, InGraph) and named.spec.max_episode_steps == 7 and named.num_envs == 3 and named.name == "jax:CartPole-v1"
    assert envs.make(named.env, 2).in_graph and envs.make("probe:constant-reward", 2).in_graph


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(task="CartPol-v1"), "did you mean CartPole-v1"),
        (dict(task="jax:cartpole-v1"), "did you mean jax:CartPole-v1"),
        (dict(task="probe:constant-rewrd"), "did you mean probe:constant-reward"),
        (dict(task="ALE/Brekout-v5"), "did you mean ALE/Breakout-v5"),
        (dict(task="PongNoFrameskip-v4"), "ALE/Pong-v5"),
        (dict(task="HalfCheetah-v9"), "HalfCheetah-v5"),
        (dict(task="HalfCheetah-v3"), "cannot be made"),
        (dict(task="zzzzzz"), "flatirons list"),
        (dict(task="CartPole-v1", num_envs=0), "num_envs is 0"),
        (dict(task="CartPole-v1", vectoriser="seriel"), "did you mean serial"),
        (dict(task="CartPole-v1", timeout_s=-1.0), "timeout_s"),
        (dict(task="CartPole-v1", gravty=3), "does not take these options"),
        (dict(task="Pendulum-v1", vectoriser="gymnasium"), "no vector environment"),
        (dict(task="jax:CartPole-v1", gravty=3), "has no option 'gravty'"),
        (dict(task="jax:CartPole-v1", vectoriser="serial"), "nothing to vectorise"),
        (dict(task="ALE/Pong-v5", frame_skip=3), "did you mean frameskip"),
        (dict(task="ALE/Pong-v5", sticky=1.5), "probability"),
    ],
)
def test_the_door_names_what_is_wrong(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(FlatironsError, match=words) as caught:
        envs.make(**arguments)
    assert "\n" not in str(caught.value)


OWN = """
import gymnasium, numpy as np

class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, gain=1.0):
        self.gain = gain
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), self.gain, False, False, {}

gymnasium.register("test/Own-v0", lambda **options: Own(**options), max_episode_steps=5)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory that registers an environment, nowhere on the path, as for the command `flatirons`."""
    (tmp_path / "ownworld.py").write_text(OWN)
    (tmp_path / "ownneeds.py").write_text("import no_such_simulator")
    (tmp_path / "ownbroken.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "ownworld"
    sys.modules.pop("ownworld", None)
    gymnasium.registry.pop("test/Own-v0", None)


def test_a_module_before_the_colon_registers_its_environments(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 1)
    name = f"{own_module}:test/Own-v0"
    action = np.zeros((2, 1), np.float32)
    for vectoriser in ("serial", "processes"):
        task: Any = envs.make(name, 2, vectoriser=vectoriser, gain=3.0)
        assert task.name == task.recipe.task == name and task.spec.max_episode_steps == 5
        assert task.step(action)[0].reward.tolist() == [3, 3]
        task.close()
    cut: Any = envs.make(f"discrete:{name}", 2)
    assert cut.name == f"discrete:{name}" and cut.spec.action == Discrete(3)
    assert all(finding.level != "error" for finding in envs.check(name))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("ownword:My-v0", r"names the module ownword, which is not installed; put its folder on PYTHONPATH"),
        ("uci:yacht", r"names the module uci, which is not installed; did you mean data:uci-yacht"),
        ("ownworld.inner:My-v0", r"names the module ownworld.inner, which is not installed"),
        ("pixel:My-v0", r"names the module pixel, which is not installed; did you mean pixels\?"),
        ("ownneeds:My-v0", r"ownneeds:My-v0 needs the package no_such_simulator, .* pip install no_such_simulator"),
        ("ownbroken:My-v0", r"the module ownbroken of the task 'ownbroken:My-v0' cannot be imported: SystemExit: 0"),
        ("ownworld:test/Ow-v0", r"is unknown; did you mean ownworld:test/Own-v0"),
        ("discrete:ownworld:zzz", r"'discrete:ownworld:zzz' is unknown; the module ownworld registers no 'zzz'"),
        ("mdp:ownworld:zzz", r"'mdp:ownworld:zzz' is unknown; the module ownworld registers no 'zzz'"),
        ("discrete:jax:Pendulum-v1", r"'discrete:jax:Pendulum-v1' is unknown"),
        (":My-v0", r"':My-v0' is unknown"),
    ],
)
def test_what_is_wrong_with_a_module_is_named(own_module: str, task: str, words: str) -> None:
    with pytest.raises(FlatironsError, match=words) as caught:
        envs.make(task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "module", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("LunarLander-v3", "Box2D", "box2d"),
        ("envpool:Pong-v5", "envpool", "envpool"),
    ],
)
def test_a_missing_extra_is_said_with_its_line(task: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d") or name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FlatironsError, match="pip install 'flatirons\\[" + extra + "\\]'"):
        envs.make(task)


def test_render_gives_frames_of_environment_0() -> None:
    for vectoriser in ("serial", "processes"):
        task = envs.make("CartPole-v1", 2, render_mode="rgb_array", vectoriser=vectoriser)
        frame = task.render()
        assert frame.shape == (400, 600, 3) and frame.dtype == np.uint8 and frame.std() > 0
        task.step(np.zeros(2, np.int32))
        assert task.render().shape == frame.shape
        task.close()


def test_in_graph_worlds_are_drawn() -> None:
    state = np.array([0.5, 0, 0.1, 0], np.float32)
    frame = render_frame("jax:CartPole-v1", state)
    assert frame.shape == (400, 600, 3) and not np.array_equal(frame, render_frame("jax:CartPole-v1", -state))
    assert render_frame("jax:Pendulum-v1", np.array([1, 0], np.float32)).std() > 0
    assert render_frame("probe:constant-reward", state) is None
    from flatirons.envs import render

    obs = np.zeros((10, 10, 4), bool)
    obs[2, 3, 1] = True
    cells = render._cells(obs)
    assert cells.shape == (320, 320, 3) and tuple(cells[2 * 32 + 5, 3 * 32 + 5]) == tuple(render._COLOURS[1]) and not cells[5, 5].any()


# ------------------------------------------------------------------------------------------------------------- Atari


def test_atari_lives_final_frames_and_clipping() -> None:
    pytest.importorskip("ale_py")
    task = envs.make("ALE/Breakout-v5", 2, seed=1, threads=1)
    assert task.spec.obs == ArraySpec((4, 84, 84), "uint8", 0, 255, stack=4) and task.spec.action == Discrete(4)
    assert any("sticky=0.0" in note for note in task.notes)
    before, lives, games, kept = task.current, 0, [], []
    rng = np.random.default_rng(0)
    for _ in range(260):
        outcome, after = task.step(rng.integers(0, 4, 2))
        # The successor is what was acted on, one picture older: also where a life or the game ended.
        np.testing.assert_array_equal(outcome.next_obs[:, :3], before.obs[:, 1:])
        for index in np.flatnonzero(after.first):
            assert not after.obs[index, :3].any() and after.obs[index, 3].any() and outcome.terminated[index]
            lives += 1
        for index in np.flatnonzero(~after.first):
            np.testing.assert_array_equal(after.obs[index], outcome.next_obs[index])
        assert set(outcome.reward.tolist()) <= {-1.0, 0.0, 1.0}
        kept.append((after.obs, after.obs.copy()))
        games += [score for score, _ in task.pop_games()]
        before = after
    assert all(np.array_equal(shown, copied) for shown, copied in kept)
    assert len(games) >= 2 and 5 * len(games) <= lives < 5 * len(games) + 10
    task.close()


def test_atari_evaluation_twin_plays_whole_games() -> None:
    pytest.importorskip("ale_py")
    task = envs.make("ALE/Breakout", 2, seed=1, training=False, threads=1)
    rng = np.random.default_rng(0)
    ended, total, last = 0, 0.0, 0.0
    games: list[float] = []
    for _ in range(300):
        outcome, after = task.step(rng.integers(0, 4, 2))
        ended += int(after.first.sum())
        total += float(outcome.reward.sum())
        games += [score for score, _ in task.pop_games()]
        if after.first.all():
            last = total
    assert ended == len(games) >= 2 and sum(games) <= total and last <= total
    task.close()


def test_atari_starts_differ_and_repeat() -> None:
    pytest.importorskip("ale_py")

    def play(seed: int, **options: Any) -> list[np.ndarray]:
        task = envs.make("ALE/Pong-v5", 3, seed=seed, threads=1, **options)
        found = [task.current.obs, *(task.step(np.full(3, 2 + step % 2))[1].obs for step in range(30))]
        task.close()
        return found

    first, again = play(0), play(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not (np.array_equal(first[-1][0], first[-1][1]) and np.array_equal(first[-1][0], first[-1][2])), "no-op starts"
    same = play(0, noop_max=0)
    assert all(np.array_equal(obs[0], obs[1]) for obs in same), "without no-ops and sticky actions the games are one"
    sticky = play(0, noop_max=0, sticky=0.25)
    assert not all(np.array_equal(obs[0], obs[1]) for obs in sticky)


# ------------------------------------------------------------------------------------------------------------- EnvPool


def test_envpool_resets_in_the_step_that_ends() -> None:
    pytest.importorskip("envpool")
    task, twin = envs.make("envpool:CartPole-v1", 4, seed=1), envs.make("envpool:CartPole-v1", 4, seed=1)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(100):
        action = rng.integers(0, 2, 4)
        outcome, after = task.step(action)
        np.testing.assert_array_equal(outcome.next_obs, twin.step(action)[0].next_obs)
        assert (outcome.reward == 1).all(), "no row of a reset"
        for index in np.flatnonzero(after.first):
            ended += 1
            assert np.abs(after.obs[index]).max() <= 0.05
            assert abs(outcome.next_obs[index, 2]) > 0.2 or abs(outcome.next_obs[index, 0]) > 2.4
    assert ended > 4
    with pytest.raises(FlatironsError, match="did you mean envpool:CartPole-v1"):
        envs.make("envpool:CartPol-v1")


class Pool(NamedTuple):
    """Settings of a pool, as EnvPool's."""

    max_num_players: int = 1
    max_episode_steps: int = 100
    batch_size: int = 0
    frame_skip: int = 1


class AtariPool(NamedTuple):
    """The same of an Atari game."""

    max_num_players: int = 1
    episodic_life: bool = False
    repeat_action_probability: float = 0.0


class Buttons:
    """As much of a pool as is looked at before it is refused."""

    observation_space = gs.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gs.Box(np.finfo(np.float64).tiny, np.finfo(np.float64).max, (3,), np.float64)
    closed = 0

    def close(self) -> None:
        Buttons.closed += 1


def test_what_envpool_cannot_do_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in of the package, which is large and seldom installed."""

    def make_spec(task: str) -> Any:
        if task == "Coinrun-v0":
            raise ImportError("it needs the Qt 5 runtime")
        return SimpleNamespace(config={"Go9x9-v1": Pool(max_num_players=2), "Pong-v5": AtariPool()}.get(task, Pool()))

    def make_gymnasium(task: str, **options: Any) -> Any:
        if task == "Sudoku-v0":
            raise RuntimeError("failed to open the database")
        assert task == "Basic-v1"
        return Buttons()

    names = ["Go9x9-v1", "Pong-v5", "Hopper-v5", "Coinrun-v0", "Sudoku-v0", "Basic-v1"]
    pool = ModuleType("envpool")
    vars(pool).update(list_all_envs=lambda: names, make_spec=make_spec, make_gymnasium=make_gymnasium)
    monkeypatch.setitem(sys.modules, "envpool", pool)
    for task, options, says in [
        ("Hoper-v5", {}, "'envpool:Hoper-v5' is unknown; did you mean envpool:Hopper-v5"),
        ("Go9x9-v1", {}, "for 2 players, and here one policy acts"),
        ("Pong-v5", {}, "is Atari, which is `ALE/Pong-v5` here"),
        ("Coinrun-v0", {}, "envpool:Coinrun-v0 cannot be made: it needs the Qt 5 runtime"),
        ("Sudoku-v0", {"frame_skip": 2}, "envpool:Sudoku-v0 cannot be made with frame_skip=2: failed to open the database"),
        ("Hopper-v5", {"batch_size": 2}, "the whole pool is stepped at once"),
        ("Hopper-v5", {"from_pixels": True}, "`pixels:Hopper-v5` draws"),
        ("Hopper-v5", {"frame_skp": 2}, "takes no option 'frame_skp'; did you mean frame_skip"),
        ("Hopper-v5", {"max_episode_steps": 0}, "max_episode_steps is 0; it is a whole number of decisions from 1 up"),
        ("Hopper-v5", {"max_episode_steps": "abc"}, "max_episode_steps is 'abc'"),
        ("Basic-v1", {}, "give --env.use_combined_action true"),
    ]:
        with pytest.raises(FlatironsError, match=re.escape(says)):
            envs.make(f"envpool:{task}", 2, **options)
    assert Buttons.closed == 1
    with pytest.raises(FlatironsError, match="discrete: wraps Gymnasium's tasks"):
        envs.make("discrete:envpool:Hopper-v5", 2)


@pytest.mark.parametrize("vectoriser", ["serial", "threads", "auto"])
def test_the_mask_in_info_is_what_is_legal(vectoriser: str) -> None:
    task: Any = envs.make(lambda: Masked(), 3, vectoriser=vectoriser)
    counts = [0, 1, 2, 0, 1]
    for count, following in zip(counts, [*counts[1:], 2], strict=True):
        before = task.current.legal
        np.testing.assert_array_equal(before, np.tile(np.arange(4) == count, (3, 1)))
        _, after = task.step(np.full(3, count, np.int32))
        assert after is task.current and after.legal.dtype == np.bool_
        np.testing.assert_array_equal(after.legal, np.tile(np.arange(4) == following, (3, 1)))
        np.testing.assert_array_equal(before[0], np.arange(4) == count, "what was handed out is not written again")
    assert task.reset(0).legal[0].tolist() == [True, False, False, False]
    task.close()


def test_masks_of_several_choices_and_of_workers() -> None:
    task: Any = envs.make(lambda: Masked(gs.MultiDiscrete([2, 4])), 1)
    assert task.current.legal.tolist() == [[True, False, True, False, False, False]]
    assert task.step(np.array([[0, 0]], np.int32))[1].legal.tolist() == [[True, False, False, True, False, False]]
    task.close()
    alone, workers = (envs.make("Taxi-v4", 2, seed=3, vectoriser=vectoriser) for vectoriser in ("serial", "processes"))
    for action in (None, 0, 2):
        if action is not None:
            for taxi in (alone, workers):
                taxi.step(np.full(2, action, np.int32))
        np.testing.assert_array_equal(alone.current.legal, workers.current.legal)
    assert alone.current.legal.shape == (2, 6) and not alone.current.legal.all()
    alone.close()
    workers.close()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Masked(wrong=np.zeros(4, np.int8)), r"environment 0 .* leaves no legal action; a state without .* must end the episode"),
        (lambda: Masked(wrong=np.ones(3, bool)), r"is bool\[3\]; return 4 flags"),
        (lambda: Masked(wrong=np.ones(4)), r"is float64\[4\]; return 4 flags"),
        (lambda: Masked(late=True), "is missing, and the first reset gave one; give one always, or never"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(made: Any, message: str) -> None:
    task: Any = envs.make(made, 1)
    with pytest.raises(FlatironsError, match=message):
        task.step(np.zeros(1, np.int32))
    task.close()
