"""Environments that raise, lie, hang or die: one sentence that names the environment, the step and the action, and never a hang."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gs

import flatirons as fi
from flatirons import envs
from flatirons.data import rollout
from flatirons.envs import host, worker
from flatirons.types import FlatironsError

LIMIT_S = 1.0
HERE = Path(__file__).resolve().parent


class Faulty(gymnasium.Env):
    """Well until its third step, then `fault` happens."""

    observation_space = gs.Box(-1, 1, (3,), np.float32)
    action_space = gs.Discrete(2)
    fault = ""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.fault.startswith("reset") and self.steps:
            if self.fault == "reset raises":
                raise ValueError("broken\nreset")
            if self.fault == "reset leaves":
                sys.exit("enough")
            if self.fault == "reset nan":
                return np.full(3, np.nan, np.float32), {}
            return np.zeros(3, np.float32)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs: Any = np.zeros(3, np.float32)
        good = (obs, 1.0, False, False, {})
        if self.steps < 3:
            return good
        answers: dict[str, Any] = {
            "obs nan": (np.array([0, np.nan, 0], np.float32), *good[1:]),
            "obs inf": (np.array([0, 0, np.inf], np.float32), *good[1:]),
            "obs -inf": (np.array([-np.inf, 0, 0], np.float32), *good[1:]),
            "final nan": (np.array([0, 0, np.nan], np.float32), 1.0, True, False, {}),
            "obs shape": (np.zeros(2, np.float32), *good[1:]),
            "obs scalar": (np.float32(0), *good[1:]),
            "obs dtype": (np.zeros(3, np.int64), *good[1:]),
            "obs list": ([0.0, 0.0, 0.0], *good[1:]),
            "reward nan": (obs, float("nan"), False, False, {}),
            "reward inf": (obs, -float("inf"), False, False, {}),
            "reward huge": (obs, 1e300, False, False, {}),
            "reward array": (obs, np.ones(1), False, False, {}),
            "reward none": (obs, None, False, False, {}),
            "flag": (obs, 1.0, "no", False, {}),
            "flag int": (obs, 1.0, False, 0, {}),
            "old gym": (obs, 1.0, False, {}),
            "step none": None,
            "reset raises": (obs, 1.0, True, False, {}),
            "reset nan": (obs, 1.0, True, False, {}),
            "reset leaves": (obs, 1.0, True, False, {}),
            "reset signature": (obs, 1.0, True, False, {}),
        }
        if self.fault == "raises":
            raise RuntimeError("the wheel came off")
        if self.fault == "leaves":
            sys.exit(0)
        if self.fault == "hangs":
            time.sleep(1000)
        if self.fault == "exits":
            os._exit(9)
        return answers[self.fault]


def make_hanging() -> gymnasium.Env:
    env = Faulty()
    env.fault = "hangs"
    return env


def make_raising() -> gymnasium.Env:
    env = Faulty()
    env.fault = "raises"
    return env


def make_exiting() -> gymnasium.Env:
    env = Faulty()
    env.fault = "exits"
    return env


def make_leaving() -> gymnasium.Env:
    env = Faulty()
    env.fault = "leaves"
    return env


def make_nan() -> gymnasium.Env:
    env = Faulty()
    env.fault = "obs nan"
    return env


def make_nothing() -> gymnasium.Env:
    raise RuntimeError("no licence")


def make_hanging_at_close() -> gymnasium.Env:
    env = Faulty()
    env.close = lambda: time.sleep(1000)  # type: ignore[method-assign]
    return env


def make_failing_at_close() -> gymnasium.Env:
    def close() -> None:
        raise RuntimeError("close failed")

    env = Faulty()
    env.close = close  # type: ignore[method-assign]
    return env


PARENT: list[socket.socket] = []


def make_losing_the_parent() -> gymnasium.Env:
    """Its step closes the parent's end of the socket, and its close leaves a note there."""

    def step(action: Any) -> Any:
        PARENT.pop().close()
        return np.zeros(3, np.float32), 1.0, False, False, {}

    env = Faulty()
    env.step, env.close = step, PARENT.clear  # type: ignore[method-assign]
    return env


FAULTS = [
    ("raises", "step raised RuntimeError: the wheel came off"),
    ("leaves", "step raised SystemExit: 0$"),
    ("obs nan", r"obs\[1\] is nan"),
    ("obs inf", r"obs\[2\] is inf"),
    ("obs -inf", r"obs\[0\] is -inf"),
    ("final nan", r"obs\[2\] is nan"),
    ("obs shape", r"obs has shape \(2,\) where the observation space says \(3,\)"),
    ("obs scalar", "obs is a float32; return a numpy array"),
    ("obs dtype", "obs has dtype int64 where the observation space says float32"),
    ("obs list", "obs is a list; return a numpy array"),
    ("reward nan", "reward is nan"),
    ("reward inf", "reward is -inf"),
    ("reward huge", r"reward is 1e\+300"),
    ("reward array", r"reward is an array of shape \(1,\); return one float"),
    ("reward none", "reward is a NoneType"),
    ("flag", "terminated is 'no', a str"),
    ("flag int", "truncated is 0, a int"),
    ("old gym", "4 values as old Gym did"),
    ("step none", "step raised TypeError|step returned"),
    ("reset raises", "reset raised ValueError: broken reset"),
    ("reset leaves", "reset raised SystemExit: enough"),
    ("reset nan", r"obs\[0\] is nan"),
    ("reset signature", r"reset returned a ndarray; return \(obs, info\)"),
]


def three_of(fault: str) -> list[Faulty]:
    made = [Faulty() for _ in range(3)]
    made[1].fault = fault
    for env in (made[0], made[2]):
        env.step = lambda action: (np.zeros(3, np.float32), 1.0, False, False, {})  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("vectoriser", ["serial", "threads"])
@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_fault_is_named(fault: str, words: str, vectoriser: str) -> None:
    made = iter(three_of(fault))
    task = envs.make(lambda: next(made), 3, vectoriser=vectoriser)
    for _ in range(2):
        task.step(np.array([0, 1, 0], np.int32))
    before = task.current
    with pytest.raises(FlatironsError, match=words) as caught:
        task.step(np.array([0, 1, 0], np.int32))
    text = str(caught.value)
    assert "environment 1 of Faulty" in text and "at step 2" in text and "last action 1" in text and "\n" not in text
    assert task.current is before, "a fault must not become the observation to act on"
    with pytest.raises(FlatironsError, match="cannot go on"):
        task.step(np.array([0, 1, 0], np.int32))
    task.close()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_float64_observation_beyond_float32_is_not_finite() -> None:
    env = Faulty()
    env.observation_space = gs.Box(-np.inf, np.inf, (3,), np.float64)
    env.step = lambda action: (np.array([0, 1e300, 0]), 1.0, False, False, {})  # type: ignore[method-assign]
    task = envs.make(env)
    with pytest.raises(FlatironsError, match=r"obs\[1\] is inf"):
        task.step(np.array([0]))


@pytest.mark.parametrize("wrapped", ["InvertedPendulum-v5", "discrete:InvertedPendulum-v5"])
def test_a_simulator_that_diverges_is_named(wrapped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo's own answer is to start anew within the step, which nothing tells from a transition."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo notes it in a file where it runs
    task: Any = envs.make(wrapped, 1, seed=0)
    action = np.zeros(1, np.int32) if wrapped.startswith("discrete:") else np.zeros((1, 1), np.float32)
    task.step(action)
    task.engine.rows.envs[0].unwrapped.data.qvel[0] = np.nan
    with pytest.raises(FlatironsError, match=rf"environment 0 of {wrapped}, at step 1 .* obs\[\d\] is nan, not a finite number"):
        task.step(action)
    task.close()


class Large(gymnasium.Env):
    """An int64 that is too large for an int32 from its third step on; where it is Discrete it has a start of its own."""

    action_space = gs.Discrete(2)

    def __init__(self, discrete: bool = False) -> None:
        self.discrete, self.steps = discrete, 0
        self.observation_space = gs.Discrete(2**40, start=-5) if discrete else gs.Box(0, 2**40, (1,), np.int64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return (-5 if self.discrete else np.zeros(1, np.int64)), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        value = 2**31 - 3 + self.steps
        return (value - 5 if self.discrete else np.array([value])), 0.0, False, False, {}


@pytest.mark.parametrize("discrete", [False, True])
def test_whole_numbers_do_not_wrap_around(discrete: bool) -> None:
    task = envs.make(lambda: Large(discrete), 1)
    for value in (2**31 - 2, 2**31 - 1):
        assert task.step(np.array([0]))[0].next_obs.ravel().tolist() == [value]
    with pytest.raises(
        FlatironsError, match=r"environment 0 of .*obs runs from 2147483648 to 2147483648, and int32.*holds -2147483648 to 21"
    ):
        task.step(np.array([0]))


class Whole(gymnasium.Env):
    """Gives one observation always."""

    action_space = gs.Discrete(2)

    def __init__(self, space: gymnasium.Space, obs: Any) -> None:
        self.observation_space, self.obs = space, obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.obs, {}

    def step(self, action: Any) -> Any:
        return self.obs, 0.0, False, False, {}


@pytest.mark.parametrize("vectoriser", ["serial", "threads"])
@pytest.mark.parametrize(
    ("space", "good", "bad", "words"),
    [
        (gs.Box(0, 255, (3,), np.uint8), np.array([0, 255, 7]), np.array([0, 300, -1]), r"obs\[1\] holds 300, outside 0 \.\.\. 255"),
        (gs.Box(0, 255, (2, 1), np.uint8), np.zeros((2, 1), int), np.array([[0], [-1]]), r"obs\[1, 0\] holds -1, outside 0 \.\.\. 255"),
        (gs.Box(-9, 3000, (1,), np.int64), np.array([3000]), np.array([2**32]), r"obs\[0\] holds 4294967296, outside -9 \.\.\. 3000"),
        (gs.Discrete(5), 4, 5, r"obs holds 5, outside 0 \.\.\. 4 of its space; mend the space or the observation"),
        (gs.Discrete(5, start=3), np.int64(7), np.int64(2), r"obs holds 2, outside 3 \.\.\. 7"),
        (gs.Discrete(5000), 4999, -1, r"obs holds -1, outside 0 \.\.\. 4999"),
        (gs.MultiDiscrete([3, 4], start=[0, 1]), np.array([2, 4]), np.array([3, 4]), r"obs\[0\] holds 3, outside 0 \.\.\. 2"),
        (gs.MultiBinary(2), np.array([True, False]), np.array([0, 2]), r"obs\[1\] holds 2, outside 0 \.\.\. 1"),
        (gs.Box(0, 4, (2,), np.int32), np.array([4, 0], np.int32), np.array([5, 0], np.int32), r"obs\[0\] holds 5, outside 0 \.\.\. 4"),
        (gs.Dict({"a": gs.Discrete(2)}), {"a": 1}, {"a": 2}, r"obs\['a'\] holds 2, outside 0 \.\.\. 1"),
    ],
)
def test_whole_numbers_keep_to_their_space(space: gymnasium.Space, good: Any, bad: Any, words: str, vectoriser: str) -> None:
    made = [Whole(space, good) for _ in range(2)]
    remaining = iter(made)
    task = envs.make(lambda: next(remaining), 2, vectoriser=vectoriser)
    task.step(np.array([0, 0]))
    made[1].obs = bad
    with pytest.raises(FlatironsError, match=rf"environment 1 of Whole, at step 1 .*: {words}"):
        task.step(np.array([0, 0]))
    task.close()


@pytest.mark.parametrize("of_a_dict", [False, True])
def test_pictures_of_their_own_dtype_are_not_measured(of_a_dict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.Rows, "_demand_inside", lambda *_: pytest.fail("measured"))
    space, picture = gs.Box(0, 255, (2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    task: Any = envs.make(Whole(gs.Dict({"seen": space}), {"seen": picture}) if of_a_dict else Whole(space, picture))
    after = task.step(np.array([0]))[1]
    np.testing.assert_array_equal((after.obs["seen"] if of_a_dict else after.obs)[0], picture)


def test_an_environment_that_leaves_while_it_is_made_or_measured_is_named() -> None:
    with pytest.raises(FlatironsError, match="Own cannot be made: its making raised SystemExit: 0"):
        host.batch("Own", host.Source(lambda _: sys.exit(0), None, False), 1)

    def leaving() -> gymnasium.Env:
        env = make_leaving()
        env.steps = 2  # type: ignore[attr-defined]
        return env

    with pytest.raises(FlatironsError, match="environment 0 of Faulty failed while its speed was measured, after 0 steps: SystemExit: 0"):
        envs.make(leaving, 2)


def test_large_but_finite_numbers_pass() -> None:
    env = Faulty()
    env.step = lambda action: (np.full(3, 3e38, np.float32), 3e38, False, False, {})  # type: ignore[method-assign]
    outcome, _ = envs.make(env).step(np.array([0]))
    assert outcome.reward[0] == np.float32(3e38) and (outcome.next_obs == np.float32(3e38)).all()


def test_the_key_of_a_dict_observation_is_named() -> None:
    class Nested(Faulty):
        observation_space: gymnasium.Space = gs.Dict({"arm": gs.Dict({"angle": gs.Box(-1, 1, (2,), np.float32)}), "hand": gs.Discrete(2)})
        value: Any = 0.0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return {"arm": {"angle": np.zeros(2, np.float32)}, "hand": 1}, {}

        def step(self, action: Any) -> Any:
            arm = {"angle": np.array([0, self.value], np.float32)} if self.value is not None else {}
            return {"arm": arm, "hand": 1}, 1.0, False, False, {}

    for value, words in ((np.nan, r"obs\['arm'\]\['angle'\]\[1\] is nan"), (None, r"obs\['arm'\]\['angle'\] is missing")):
        env = Nested()
        env.value = value
        with pytest.raises(FlatironsError, match=words):
            envs.make(env).step(np.array([0]))


@pytest.mark.parametrize("vectoriser", ["serial", "threads"])
def test_a_hanging_environment_is_interrupted(vectoriser: str, capfd: pytest.CaptureFixture[str]) -> None:
    made = iter(three_of("hangs"))
    task = envs.make(lambda: next(made), 3, vectoriser=vectoriser, timeout_s=LIMIT_S)
    for _ in range(2):
        task.step(np.array([0, 1, 0], np.int32))
    start = time.monotonic()
    with pytest.raises(FlatironsError, match=r"of Faulty, at step 2 .*has not returned for 1 s"):
        task.step(np.array([0, 1, 0], np.int32))
    assert LIMIT_S * 0.8 < time.monotonic() - start < LIMIT_S + 4
    assert "test_env_faults.py" in capfd.readouterr().err, "the stack that shows where it waits"
    task.close()


def test_a_loop_that_never_returns_to_python_ends_the_process() -> None:
    script = """
import ctypes, numpy as np
from flatirons import envs
from flatirons.envs import host
from test_env_faults import Faulty
host.Watchdog.GRACE_S = 0.5
class Stuck(Faulty):
    def step(self, action):
        ctypes.CDLL(None).pthread_mutex_lock(mutex); ctypes.CDLL(None).pthread_mutex_lock(mutex)
mutex = ctypes.create_string_buffer(64)
envs.make(Stuck(), timeout_s=0.5).step(np.array([0]))
"""
    variables = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}{os.pathsep}{HERE}"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "environment 0 of Stuck" in done.stderr and "the process ends" in done.stderr and "File" in done.stderr


def test_a_slow_but_living_environment_is_left_alone() -> None:
    env = Faulty()

    def step(action: Any) -> Any:
        time.sleep(0.3)
        return np.zeros(3, np.float32), 1.0, False, False, {}

    env.step = step  # type: ignore[method-assign]
    task = envs.make(env, timeout_s=0.6)
    for _ in range(4):
        task.step(np.array([0]))
    task.close()


def test_an_environment_that_hangs_while_its_speed_is_measured_is_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FlatironsError, match=r"environment 0 of Faulty, while its speed was measured, after 2 steps: .* returned for 1 s"):
        envs.make(make_hanging, 2, timeout_s=LIMIT_S)
    assert "in step" in capfd.readouterr().err
    slow = Faulty()
    slow.step = lambda action: (time.sleep(0.3), (np.zeros(3, np.float32), 1.0, False, False, {}))[1]  # type: ignore[method-assign]
    assert host._step_time("Faulty", slow, 0.6) >= 0.3, "the limit is of one step, not of all"


def test_an_environment_that_hangs_while_threads_are_tried_is_interrupted() -> None:
    one, other = three_of("hangs"), three_of("hangs")
    threads, _ = host._threads(one, [None] * 3, 2, None)
    serial = host.SerialEngine(host.Rows(other, [None] * 3))
    with pytest.raises(FlatironsError, match=r"environment . of Faulty, while threads were tried: it has not returned for 1 s"):
        host._faster("Faulty", threads, serial, Faulty.action_space, 3, LIMIT_S)
    threads.stop()


@pytest.mark.parametrize("by_name", [False, True])
def test_an_environment_that_hangs_while_it_is_made_is_interrupted(by_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "START_LIMIT_S", LIMIT_S)
    place = "an environment of Own, while it was made" if by_name else "the task's factory, while it made the first environment"
    with pytest.raises(FlatironsError, match=f"{place}: it has not returned for 1 s"):
        if by_name:
            host.batch("Own", host.Source(lambda _: time.sleep(1000), None, False), 1, timeout_s=0.5)  # type: ignore[arg-type, return-value]
        else:
            envs.make(lambda: time.sleep(1000), timeout_s=0.5)
    assert host.making_limit(None) is None and host.making_limit(60.0) == 60.0


@pytest.mark.parametrize("vectoriser", ["auto", "processes"])
def test_the_environment_that_workers_replace_may_fail_to_close_but_not_hang(vectoriser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = host.SerialEngine(host.Rows([Faulty(), Faulty()], [None, None]))
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    monkeypatch.setattr(host, "_step_time", lambda *_: 1.0)
    monkeypatch.setattr(host, "_processes", lambda *_: (workers, "in the place of workers"))
    task = envs.make(make_failing_at_close, 2, vectoriser=vectoriser)
    assert task.engine is workers
    task.close()
    start = time.monotonic()
    with pytest.raises(FlatironsError, match="an environment of Faulty, while it was closed: it has not returned for 1 s"):
        envs.make(make_hanging_at_close, 2, vectoriser=vectoriser, timeout_s=LIMIT_S)
    assert time.monotonic() - start < LIMIT_S + 4


@pytest.mark.parametrize("early", [False, True])
def test_a_worker_whose_parent_has_gone_ends_quietly(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all others' do where one worker's environment is at fault: each would add a traceback of its own."""
    monkeypatch.setattr(worker.faulthandler, "register", lambda *_, **__: None)
    ours, theirs = socket.socketpair()
    shared = worker.Shared(None, [((3,), "float32")], envs.make(Faulty).spec.action, 1, 1)
    counts = {"first": 0, "count": 1, "number": 0, "num_envs": 1, "num_workers": 1, "most": 0, "restarts": [0]}
    remote = {"module": __name__, "name": "make_losing_the_parent"}
    PARENT[:] = [ours, ours]
    if early:
        ours.close()
    else:
        ours.sendall(b"step\n")
    worker.main({"remote": remote, "strip": True, "socket": theirs.detach(), "memory": shared.handle, **counts})
    assert not PARENT, "its environments are closed"
    os.close(shared.handle)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (make_raising, "step raised RuntimeError: the wheel came off"),
        (make_leaving, "step raised SystemExit: 0"),
        (make_nan, r"obs\[1\] is nan"),
        (make_exiting, "worker process ended with status 9"),
        (make_hanging, "has not returned for 1 s and its worker was ended"),
    ],
)
def test_faults_in_workers(factory: Any, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 1)
    task = envs.make(factory, 3, vectoriser="processes", timeout_s=LIMIT_S if factory is make_hanging else 60.0)
    for _ in range(2):
        task.step(np.array([1, 0, 0], np.int32))
    with pytest.raises(FlatironsError, match=words) as caught:
        task.step(np.array([1, 0, 0], np.int32))
    assert "environment 0 of Faulty, at step 2 (last action 1)" in str(caught.value)
    if factory is make_hanging:
        assert "in step" in capfd.readouterr().err
    task.close()
    assert all(worker.poll() is not None for worker in task.engine.workers)


def test_a_killed_worker_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    task = envs.make(make_raising, 4, vectoriser="processes")
    task.step(np.zeros(4, np.int32))
    last = task.engine.workers[-1]
    os.kill(last.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(FlatironsError, match=r"environment \d of Faulty, at step 1 .*ended by signal 9; if the machine ran out of memory"):
        task.step(np.zeros(4, np.int32))
    assert time.monotonic() - start < 5
    task.close()


# ------------------------------------------------------------------------------------------------- environments made anew


class Counting(gymnasium.Env):
    """Its observation is (generator's word at reset, steps since); in its third step `fault` happens; a whole episode has four."""

    observation_space = gs.Box(0, 1e9, (2,), np.float64)
    action_space = gs.Discrete(2)
    fault = "raises"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.fault == "reset" and getattr(self, "steps", 0):
            raise ValueError("broken reset")
        self.steps, self.word = 0, float(self.np_random.integers(1000))
        return self._obs(), {}

    def _obs(self) -> np.ndarray:
        return np.array([self.word, self.steps])

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 3:
            match self.fault:
                case "raises":
                    raise RuntimeError("the wheel came off")
                case "exits":
                    os._exit(9)
                case "hangs":
                    time.sleep(1000)
                case "nan":
                    return np.array([np.nan, 0.0]), 1.0, False, False, {}
                case "reward":
                    return self._obs(), np.inf, False, False, {}
        return self._obs(), 1.0, self.steps == 4, False, {}


def make_counting() -> gymnasium.Env:
    return Counting()


def make_counting_exits() -> gymnasium.Env:
    env = Counting()
    env.fault = "exits"
    return env


def make_counting_hangs() -> gymnasium.Env:
    env = Counting()
    env.fault = "hangs"
    return env


def sound() -> gymnasium.Env:
    env = Counting()
    env.fault = ""
    return env


def word(seed: int) -> float:
    return float(np.random.default_rng(seed).integers(1000))


@pytest.mark.parametrize("vectoriser", ["serial", "threads"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "step raised RuntimeError: the wheel came off"),
        ("nan", "obs holds numbers that are not finite"),
        ("reward", "reward is inf"),
    ],
)
def test_an_environment_at_fault_is_made_anew(vectoriser: str, fault: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    bad = Counting()
    bad.fault = fault
    made = iter([sound(), bad, sound(), sound()])
    task: Any = envs.make(lambda: next(made), 3, seed=5, vectoriser=vectoriser, restarts=1)
    seeds, act = host.env_seeds(5, 3), np.zeros(3, np.int32)
    task.step(act)
    task.step(act)
    outcome, timestep = task.step(act)
    # It is cut at the observation that was acted on, and begins anew with a seed of its own; the others go on.
    assert outcome.truncated.tolist() == [False, True, False] == timestep.first.tolist() and not outcome.terminated.any()
    assert outcome.reward.tolist() == [1.0, 0.0, 1.0] and task.void == {1}
    np.testing.assert_array_equal(outcome.next_obs, [[word(seeds[0]), 3], [word(seeds[1]), 2], [word(seeds[2]), 3]])
    np.testing.assert_array_equal(timestep.obs, [[word(seeds[0]), 3], [word(host.seed_anew(seeds[1], 1)), 0], [word(seeds[2]), 3]])
    said = capfd.readouterr().err
    assert f"WARNING: environment 1 of Counting, at step 2 (last action 0): {words}" in said.replace("the reward", "reward")
    assert "it was made anew (1 of 1 times)" in said
    outcome, timestep = task.step(act)
    assert outcome.terminated.tolist() == [True, False, True] and task.void == frozenset() and timestep.obs[1, 1] == 1
    assert task.pop_void() == [(2, 1)] and task.pop_void() == []
    task.close()


def test_only_so_often_is_an_environment_made_anew() -> None:
    task = envs.make(make_counting, 2, vectoriser="serial", restarts=2)
    for _ in range(8):
        task.step(np.zeros(2, np.int32))
    with pytest.raises(FlatironsError, match=r"environment 0 of Counting.*the wheel came off \(made anew 2 times before\)"):
        task.step(np.zeros(2, np.int32))
    made = iter([Counting()])
    task = envs.make(lambda: next(made), 1, restarts=3)
    for _ in range(2):
        task.step(np.zeros(1, np.int32))
    with pytest.raises(FlatironsError, match=r"could not be made anew: StopIteration \(made anew 3 times before\)"):
        task.step(np.zeros(1, np.int32))


def test_a_fault_after_the_end_of_an_episode_cuts_none() -> None:
    bad = Counting()
    bad.fault = "reset"
    made = iter([bad, sound()])
    task: Any = envs.make(lambda: next(made), 1, restarts=1)
    for _ in range(4):
        outcome, timestep = task.step(np.zeros(1, np.int32))
    assert outcome.terminated.tolist() == [True] and outcome.reward.tolist() == [1.0] and outcome.next_obs[0, 1] == 4
    assert task.void == frozenset() and timestep.first.tolist() == [True] and timestep.obs[0, 1] == 0


@pytest.mark.parametrize(
    ("factory", "words"),
    [(make_counting, "the wheel came off"), (make_counting_exits, "ended with status 9"), (make_counting_hangs, "not returned for 1 s")],
)
def test_workers_begin_anew(factory: Any, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    task: Any = envs.make(
        factory, 2, seed=5, vectoriser="processes", restarts=1, timeout_s=LIMIT_S if factory is make_counting_hangs else 60.0
    )
    seeds, act = host.env_seeds(5, 2), np.zeros(2, np.int32)
    before = [worker.pid for worker in task.engine.workers]
    task.step(act)
    task.step(act)
    outcome, timestep = task.step(act)
    assert outcome.truncated.all() and not outcome.terminated.any() and outcome.reward.tolist() == [0.0, 0.0] and task.void == {0, 1}
    np.testing.assert_array_equal(outcome.next_obs, [[word(seed), 2] for seed in seeds])
    np.testing.assert_array_equal(timestep.obs, [[word(host.seed_anew(seed, 1)), 0] for seed in seeds])
    assert capfd.readouterr().err.count(words) >= 2
    others = [worker.pid for worker in task.engine.workers]
    assert (set(before) & set(others) == set()) == (factory is not make_counting)
    for _ in range(2):
        outcome, _ = task.step(act)
    assert outcome.reward.tolist() == [1.0, 1.0] and task.void == frozenset()
    with pytest.raises(FlatironsError, match=rf"environment 0 of Counting.*{words}.* \(made anew 1 times before\)"):
        task.step(act)
    task.close()
    assert all(worker.poll() is not None for worker in task.engine.workers)


def test_a_worker_that_was_killed_takes_its_environments_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    task: Any = envs.make(sound, 4, vectoriser="processes", restarts=1)
    task.step(np.zeros(4, np.int32))
    os.kill(task.engine.workers[1].pid, signal.SIGKILL)
    task.engine.workers[1].wait()
    outcome, _ = task.step(np.zeros(4, np.int32))
    assert outcome.truncated.tolist() == [False, False, True, True] and task.void == {2, 3} and outcome.reward.tolist() == [1, 1, 0, 0]
    assert "it was made anew, with environments " in capfd.readouterr().err
    for _ in range(3):
        outcome, _ = task.step(np.zeros(4, np.int32))
    assert not task.void
    task.close()


def test_void_episodes_count_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made: list[Counting] = []

    def one_in_three() -> gymnasium.Env:
        made.append(Counting())
        made[-1].fault = "raises" if len(made) % 3 == 1 else ""
        return made[-1]

    task: Any = envs.make(one_in_three, 1, restarts=5)
    run = rollout.host_run(task)
    rows = [(task.step(np.zeros(1, np.int32))[0]) for _ in range(11)]

    def part(begin: int, end: int) -> Any:
        reward, _, terminated, truncated = (np.stack(xs) for xs in zip(*rows[begin:end], strict=True))
        return SimpleNamespace(reward=reward, terminated=terminated, truncated=truncated)

    # Three steps of a void episode, then two whole ones of four; looked at in pieces.
    found = [run.count_episodes(part(begin, end)) for begin, end in ((0, 2), (2, 7), (7, 11))]
    assert [(int(each.count), float(each.return_sum)) for each in found] == [(0, 0.0), (1, 4.0), (1, 4.0)]
    made.clear()
    trained = fi.train(
        "ppo", one_in_three, num_envs=1, num_steps=16, num_minibatches=2, total_steps=32, env_options={"restarts": 5}, out=tmp_path / "run",
        quiet=True,
    )  # fmt: skip
    made.clear()
    scored = trained.evaluate(3)
    assert scored["returns"] == [4.0, 4.0, 4.0] and scored["lengths"] == [4, 4, 4]
    assert "was made anew" in capfd.readouterr().err


def test_what_cannot_be_made_anew_says_so() -> None:
    for task, words in (
        ("jax:CartPole-v1", "stepped as one program"),
        ("no-velocity:jax:CartPole-v1", "as one program"),
        (sound(), "pass a factory"),
    ):
        with pytest.raises(FlatironsError, match=words):
            envs.make(task, restarts=1)
    with pytest.raises(FlatironsError, match="restarts is -1; it is a whole number"):
        envs.make("CartPole-v1", restarts=-1)
    task: Any = envs.make("CartPole-v1", 8, vectoriser="auto", restarts=1)
    assert isinstance(task.engine, host.SerialEngine)


def test_a_worker_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 1)
    calls = iter([Faulty()])

    def once() -> gymnasium.Env:
        return next(calls)

    once.__qualname__, once.__module__ = "make_nothing", make_nothing.__module__
    with pytest.raises(FlatironsError, match="worker processes could not be started: RuntimeError: no licence"):
        envs.make(once, 2, vectoriser="processes")


def test_workers_end_with_their_parent() -> None:
    script = """
import os, signal
from flatirons import envs
from test_env_faults import make_nan
task = envs.make(make_nan, 2, vectoriser="processes")
print(*[worker.pid for worker in task.engine.workers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    variables = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}{os.pathsep}{HERE}"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in re.findall(r"\d+", done.stdout)]
    assert len(pids) >= 1, done.stderr
    limit = time.monotonic() + 20
    while time.monotonic() < limit and any(_alive(pid) for pid in pids):
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
