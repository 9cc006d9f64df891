"""`check`: each way of being wrong is found under its name, with a fix; what is right is let alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gs

from flatirons import envs
from flatirons.envs import checker
from flatirons.types import ArraySpec, Discrete, FlatironsError


class Masked(gymnasium.Env):
    """It takes what its mask allows and nothing else: of two numbers of an action, one in the middle and one at an end."""

    observation_space = gs.Box(-1, 1, (3,), np.float32)
    action_space = gs.MultiDiscrete([3, 2], start=[1, -1])
    mask = np.array([0, 1, 0, 0, 1], np.int8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {"action_mask": self.mask.copy()}

    def step(self, action: Any) -> Any:
        assert list(action) == [2, 0], f"{action} is illegal"
        self.steps += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self.steps == 5, False, {"action_mask": self.mask.copy()}


def test_extreme_actions_are_legal_ones() -> None:
    assert not [finding for finding in envs.check(Masked) if finding.level == "error"]


class Sound(gymnasium.Env):
    """Five random steps; every observation a new array. `wrong` chooses one fault."""

    observation_space: gymnasium.Space = gs.Box(-1, 1, (3,), np.float32)
    action_space: gymnasium.Space = gs.Discrete(2)

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.steps = self.total = 0
        self.buffer = np.zeros(3, np.float32)
        self.other = np.random.default_rng()
        if wrong == "unbounded actions":
            self.action_space = gs.Box(-3.4e38, 3.4e38, (1,), np.float32)
        if wrong == "far actions":
            self.action_space = gs.Box(np.float32([-1, 5]), np.float32([1, 11]), (2,), np.float32)
        if wrong in ("low actions", "action rewritten"):
            self.action_space = gs.Box(-1, 1, (1,), np.float32)
        if wrong == "odd actions":
            self.action_space = gs.Dict({"a": gs.Discrete(2)})
        if wrong == "odd observations":
            self.observation_space = gs.Text(4)
        if wrong == "missing key":
            self.observation_space = gs.Dict({"a": gs.Box(-1, 1, (3,), np.float32), "b": gs.Discrete(2)})

    def _obs(self) -> Any:
        random = self.other if self.wrong in ("seed ignored", "dynamics unseeded") else self.np_random
        if self.wrong == "dynamics unseeded" and self.steps == 0:
            random = self.np_random
        obs: Any = random.uniform(-1, 1, 3).astype(np.float32)
        match self.wrong:
            case "hidden state":
                obs[0] = np.tanh(self.total / 100) if self.steps else 0
            case "obs shape":
                obs = obs[:2]
            case "obs float64":
                obs = obs.astype(np.float64)
            case "obs int":
                obs = obs.astype(np.int64)
            case "obs list":
                obs = obs.tolist()
            case "obs bounds":
                obs = obs + 3
            case "obs nan":
                obs[1] = np.nan if self.steps == 3 else 0
            case "obs inf":
                obs[1] = np.inf if self.steps == 3 else 0
            case "buffer":
                self.buffer[:] = obs
                obs = self.buffer
            case "missing key":
                obs = {"a": obs}
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.wrong == "second episode" and self.total > 20:
            raise RuntimeError("no more episodes")
        self.steps = 0
        obs = self._obs()
        return obs if self.wrong == "old reset" else (obs, {})

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.total += 1
        over: Any = self.steps >= 5 and self.wrong != "endless"
        reward: Any = 1.0
        if self.wrong == "raises":
            raise ZeroDivisionError("oops")
        if self.wrong == "low actions" and action[0] == -1:
            raise ValueError("cannot go back")
        if self.wrong == "action rewritten":
            action[:] = 0
        match self.wrong:
            case "reward array":
                reward = np.ones(1)
            case "reward text":
                reward = "1"
            case "reward nan":
                reward = float("nan")
            case "reward inf":
                reward = np.float32(np.inf)
            case "numpy flag":
                over = np.bool_(over)
            case "int flag":
                over = int(over)
        if self.wrong == "old step":
            return self._obs(), reward, over, {}
        if self.wrong == "no info":
            return self._obs(), reward, over, False, None
        return self._obs(), reward, over, False, {}


CASES = [
    ("odd observations", "observation space", "error", "Text"),
    ("odd actions", "action space", "error", "Dict"),
    ("unbounded actions", "action space", "warning", "infinite bounds"),
    ("far actions", "action reach", "warning", r"entry 1 of an action lies in \[5, 11\]"),
    ("raises", "runs", "error", "ZeroDivisionError after"),
    ("second episode", "runs", "error", "no more episodes"),
    ("old reset", "reset signature", "error", "a ndarray"),
    ("old step", "step signature", "error", "4 values"),
    ("no info", "step signature", "error", "NoneType as info"),
    ("obs list", "obs type", "error", "a list"),
    ("missing key", "obs type", "error", r"obs\['b'\] is missing"),
    ("obs shape", "obs shape", "error", r"\(2,\)"),
    ("obs float64", "obs dtype", "warning", "float64"),
    ("obs int", "obs dtype", "error", "int64"),
    ("obs nan", "obs finite", "error", "nan"),
    ("obs inf", "obs finite", "error", "inf"),
    ("obs bounds", "obs bounds", "error", "outside its bounds"),
    ("reward array", "reward scalar", "error", r"shape \(1,\)"),
    ("reward text", "reward scalar", "error", "a str"),
    ("reward nan", "reward finite", "error", "nan"),
    ("reward inf", "reward finite", "error", "inf"),
    ("int flag", "flags", "error", "a int"),
    ("numpy flag", "flags", "warning", "numpy bool"),
    ("buffer", "obs copied", "warning", "wrote into the array"),
    ("action rewritten", "action kept", "warning", "wrote into the action"),
    ("seed ignored", "seed", "error", "different observations"),
    ("hidden state", "no hidden state", "error", "another episode"),
    ("dynamics unseeded", "no hidden state", "error", "another episode"),
    ("endless", "time limit", "warning", "no episode ended"),
    ("low actions", "extreme actions", "error", "cannot go back"),
]


def bad(findings: list[checker.Finding]) -> dict[str, checker.Finding]:
    return {finding.name: finding for finding in findings if finding.level != "ok"}


@pytest.mark.parametrize(("wrong", "name", "level", "words"), CASES)
def test_each_fault_is_found_under_its_name(wrong: str, name: str, level: str, words: str) -> None:
    found = bad(envs.check(Sound(wrong)))
    assert name in found, found
    assert found[name].level == level and found[name].fix and "\n" not in found[name].fix
    import re

    assert re.search(words, found[name].message), found[name].message
    # One fault may show in what follows from it, not everywhere.
    assert len(found) <= 2, found


def test_a_sound_environment_is_let_alone() -> None:
    for task in (
        Sound(),
        Sound,
        lambda: Sound(),
        gymnasium.wrappers.TimeLimit(Sound("endless"), 9),
        "CartPole-v1",
        "Blackjack-v1",
        "FrozenLake-v1",
    ):
        assert not bad(envs.check(task))
    assert len(envs.check(Sound())) == len(checker.CHECKS) and {name for _, name, *_ in CASES} == {name for name, *_ in checker.CHECKS}


def test_a_hidden_state_is_told_from_an_ignored_seed() -> None:
    assert "seed" not in bad(envs.check(Sound("hidden state"))) and "no hidden state" not in bad(envs.check(Sound("seed ignored")))


def test_what_is_no_environment() -> None:
    assert bad(envs.check(3))["type"].fix
    with pytest.raises(FlatironsError, match="did you mean CartPole"):
        envs.check("CartPol-v1")


@dataclasses.dataclass(frozen=True)
class World:
    """A walk on a line, in-graph; `wrong` chooses one fault."""

    wrong: str = ""
    max_episode_steps: int | None = 10

    @property
    def obs_spec(self) -> Any:
        return ArraySpec((1,), "float32", -100, 100)

    @property
    def action_spec(self) -> Discrete:
        return Discrete(2)

    def init(self, key: Any) -> Any:
        return jax.random.uniform(key, ())

    def step(self, key: Any, state: Any, action: Any) -> Any:
        after = state + action - 0.5
        reward, over = after, jnp.abs(after) > 3
        match self.wrong:
            case "python if":
                after = after if after > 0 else -after
            case "state dtype":
                after = jnp.int32(after)
            case "reward shape":
                reward = reward[None]
            case "terminated":
                over = jnp.float32(over)
            case "nan":
                after = jnp.log(after)
            case "endless":
                over = jnp.bool_(False)
        return after, reward, over

    def observe(self, state: Any) -> Any:
        if self.wrong == "obs shape":
            return state
        if self.wrong == "bounds":
            return state[None] + 1000
        if self.wrong == "host random":
            return state[None] + jax.experimental.io_callback(lambda: np.float32(np.random.random()), jax.ShapeDtypeStruct((), jnp.float32))
        return state[None]

    def legal(self, state: Any) -> Any:
        return ()


IN_GRAPH_CASES = [
    ("python if", "traces"),
    ("state dtype", "state kept"),
    ("obs shape", "obs as spec"),
    ("reward shape", "reward"),
    ("terminated", "terminated"),
    ("nan", "finite"),
    ("bounds", "obs bounds"),
    ("endless", "time limit"),
]


@pytest.mark.parametrize(("wrong", "name"), IN_GRAPH_CASES)
def test_in_graph_faults(wrong: str, name: str) -> None:
    found = bad(envs.check(World(wrong, None if wrong == "endless" else 10)))
    assert name in found and found[name].fix, found


def test_in_graph_worlds_that_are_sound() -> None:
    assert not bad(envs.check(World()))
    assert not bad(envs.check("probe:constant-reward"))
    assert len(envs.check(World())) == len(checker.IN_GRAPH_CHECKS)


def test_an_in_graph_world_must_hash() -> None:
    class List(World):
        __hash__ = None  # type: ignore[assignment]

    assert "hashable" in bad(envs.check(List()))


def test_host_randomness_in_graph_is_not_deterministic() -> None:
    assert "deterministic" in bad(envs.check(World("host random")))


def test_options_of_the_environment_are_passed_on() -> None:
    # A pendulum ends by its limit alone, so the walk sees the limit that was asked for.
    assert not bad(checker.check("Pendulum-v1", options={"max_episode_steps": 10}, max_steps=80))
    assert not bad(checker.check("jax:CartPole-v1", options={"max_episode_steps": 10}))
    with pytest.raises(FlatironsError, match="nonsense"):
        checker.check("Pendulum-v1", options={"nonsense": 1})
    with pytest.raises(FlatironsError, match="seed is no option of the environment"):
        checker.check("Pendulum-v1", options={"seed": 1})
    with pytest.raises(FlatironsError, match="is for named tasks"):
        checker.check(Sound, options={"wrong": "x"})


def test_native_vector_environments() -> None:
    pytest.importorskip("ale_py")
    findings = checker.check("ALE/Pong-v5", max_steps=40)
    assert [finding.name for finding in findings] == ["runs", "seed"] and not bad(findings)
