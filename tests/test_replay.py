"""Replay against a slow oracle: a Python list of all transitions there ever were."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.data import replay as memory
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Spec, Transition

STARTS = 24


def _spec(stack: int) -> Spec:
    eye = ArraySpec((stack, 2, 2), "uint8", 0, 255, stack=stack) if stack > 1 else ArraySpec((2, 2), "uint8", 0, 255)
    return Spec({"eye": eye, "arm": ArraySpec((1,))}, Discrete(100))


class Stream:
    """One stream of episodes. Every frame is unlike every other; what a stack holds at an episode's start may be repeats or not."""

    def __init__(self, rng: np.random.Generator, stack: int, lengths: tuple[int, int]) -> None:
        self.rng, self.stack, self.lengths = rng, stack, lengths
        self.frames_made = 0
        self.begin()

    def frame(self) -> np.ndarray:
        self.frames_made += 1
        return np.array([self.frames_made >> 8 * i & 255 for i in range(4)], np.uint8).reshape(2, 2)

    def begin(self) -> None:
        self.left = int(self.rng.integers(self.lengths[0], self.lengths[1] + 1))
        self.first = True
        self.arm = np.array([self.rng.normal()], np.float32)
        first = self.frame()
        repeats = self.rng.random() < 0.5
        self.window = [first if repeats else self.frame() for _ in range(self.stack)]

    def obs(self) -> dict[str, np.ndarray]:
        return {"eye": np.stack(self.window) if self.stack > 1 else self.window[0], "arm": self.arm}

    def step(self) -> dict[str, Any]:
        obs, first = self.obs(), self.first
        self.left -= 1
        self.window = [*self.window[1:], self.frame()]
        self.arm = np.array([self.rng.normal()], np.float32)
        flags = [(True, False), (False, True), (True, True)][self.rng.integers(3)] if self.left == 0 else (False, False)
        row = {
            "obs": obs,
            "action": np.int32(self.rng.integers(100)),
            "reward": np.float32(self.rng.normal()),
            "next_obs": self.obs(),
            "terminated": np.bool_(flags[0]),
            "truncated": np.bool_(flags[1]),
            "first": np.bool_(first),
        }
        self.first = False
        if self.left == 0:
            self.begin()
        return row


class Compiled(NamedTuple):
    spec: Spec
    create: Any
    add: Any
    read_all: Any


@functools.cache
def _compiled(stack: int, num_envs: int) -> Compiled:
    spec = _spec(stack)
    env, age = (x.reshape(-1) for x in np.meshgrid(np.arange(num_envs), np.arange(STARTS), indexing="ij"))

    def read_all(replay: memory.Replay) -> tuple[memory.Sample, jax.Array]:
        """Every transition that `sample` could draw: `draw` with its ages replaced by an enumeration."""
        draws = jnp.asarray(np.stack([age] if num_envs == 1 else [age, env]), jnp.uint32)
        with mock.patch.object(jax.random, "bits", return_value=draws):
            return memory.sample(replay, spec, jax.random.key(0), len(env)), replay.size

    return Compiled(
        spec,
        lambda: memory.create(spec, num_envs, STARTS * num_envs),
        jax.jit(lambda replay, experience: memory.add(replay, spec, experience), donate_argnums=0),
        jax.jit(read_all),
    )


def _experience(streams: list[Stream], num_steps: int, history: list[list[dict[str, Any]]]) -> Transition:
    rows = [[stream.step() for stream in streams] for _ in range(num_steps)]
    for turn in rows:
        for b, row in enumerate(turn):
            history[b].append(row)
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *[jax.tree.map(lambda *xs: np.stack(xs), *turn) for turn in rows])
    return Transition(**stacked, legal=(), extras=())


def _compare(compiled: Compiled, replay: memory.Replay, history: list[list[dict[str, Any]]]) -> np.ndarray:
    """All that can be sampled are the newest `size` transitions of each stream, in their order."""
    found, size = jax.device_get(compiled.read_all(replay))
    num_envs = len(history)
    for b in range(num_envs):
        assert 1 <= size[b] <= min(STARTS, len(history[b]))
        newest_first = history[b][: -1 - size[b] : -1]
        assert (found.discount == 1.0).all()
        for name, value in found._replace(discount=())._asdict().items():
            expected = jax.tree.map(lambda *xs: np.stack(xs), *[row.get(name, ()) for row in newest_first])
            got = jax.tree.map(lambda x, b=b: x[b * STARTS : b * STARTS + size[b]], value)
            jax.tree.map(np.testing.assert_array_equal, got, expected)
            if name in ("obs", "next_obs"):
                assert got["eye"].dtype == np.uint8
    return size


def _fewest(stack: int, replay: memory.Replay, lengths: tuple[int, int], largest_add: int) -> int:
    """What must be held once full: all, or as many as fit in the rows when every episode is as short as it may be."""
    num_rows = replay.frames["eye"].shape[0]
    rows_each = (lengths[0] + stack) / lengths[0]
    return min(STARTS, int((num_rows - 2 * stack - 2) / rows_each) - largest_add)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_all_that_can_be_sampled_is_what_was_stored(num_envs: int, stack: int) -> None:
    compiled = _compiled(stack, num_envs)
    for seed, lengths in enumerate([(1, 1), (1, 6), (3, 40), (1000, 1000)]):
        rng = np.random.default_rng(seed)
        streams = [Stream(np.random.default_rng([seed, b]), stack, lengths) for b in range(num_envs)]
        history: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
        replay = compiled.create()
        for turn in range(120):
            replay = compiled.add(replay, _experience(streams, int(rng.choice([1, 2, 5])), history))
            if turn < 20 or turn % 5 == 0:
                size = _compare(compiled, replay, history)
                if len(history[0]) > 2 * STARTS:
                    assert size.min() >= _fewest(stack, replay, lengths, 5)
        assert len(history[0]) > 8 * STARTS  # the write head went round several times


@pytest.mark.parametrize("stack", [1, 4])
def test_an_addition_as_long_as_the_replay(stack: int) -> None:
    # Rows that this very addition writes over must not be sampled; to refuse such an addition is as good.
    compiled = _compiled(stack, 1)
    for seed, lengths in enumerate([(1, 2), (1000, 1000)]):
        streams = [Stream(np.random.default_rng(seed), stack, lengths)]
        history: list[list[dict[str, Any]]] = [[]]
        replay = compiled.create()
        for _ in range(3):
            try:
                replay = compiled.add(replay, _experience(streams, STARTS, history))
            except FlatironsError:
                return
            _compare(compiled, replay, history)


@pytest.mark.parametrize("stack", [1, 4])
def test_interrupt_ends_the_running_episodes_as_truncated(stack: int) -> None:
    compiled = _compiled(stack, 3)
    cut = jax.jit(memory.interrupt)
    for seed, lengths in enumerate([(1, 1), (1, 3), (2, 9), (50, 60)]):
        rng = np.random.default_rng(seed)
        streams = [Stream(np.random.default_rng([seed, b]), stack, lengths) for b in range(3)]
        history: list[list[dict[str, Any]]] = [[] for _ in streams]
        replay = compiled.create()
        for turn in range(150):
            replay = compiled.add(replay, _experience(streams, int(rng.choice([1, 2])), history))
            if turn % 3 == 0:
                running = np.array([not (h[-1]["terminated"] or h[-1]["truncated"]) for h in history])
                before = np.asarray(replay.truncated)
                replay = cut(replay)
                last = (int(replay.next) - 1) % STARTS
                after = np.asarray(replay.truncated)
                np.testing.assert_array_equal(after[last], before[last] | running)
                assert (np.delete(after, last, axis=0) == np.delete(before, last, axis=0)).all()
                _compare(compiled, replay, history)
                for stream in streams:
                    stream.begin()
            if turn % 4 == 0:
                _compare(compiled, replay, history)


@pytest.mark.parametrize(("stack", "num_envs", "num_steps"), [(1, 1, 3), (4, 2, 3), (1, 2, 30)])
def test_targets_over_several_steps_stop_at_ends_and_at_the_newest(stack: int, num_envs: int, num_steps: int) -> None:
    """The sums, successors and discounts of n-step targets against a walk through the list of all transitions."""
    compiled, gamma = _compiled(stack, num_envs), 0.9
    read = jax.jit(functools.partial(memory.read_at, spec=compiled.spec, gamma=gamma, num_steps=num_steps))
    for seed, lengths in enumerate([(1, 1), (1, 6), (1000, 1000)]):
        rng = np.random.default_rng(seed)
        streams = [Stream(np.random.default_rng([seed, b]), stack, lengths) for b in range(num_envs)]
        history: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
        replay = compiled.create()
        for turn in range(60):
            replay = compiled.add(replay, _experience(streams, int(rng.choice([1, 2, 5])), history))
            if turn % 6:
                continue
            env = turn % num_envs
            ages = np.arange(STARTS)  # always as many, for one program
            found = jax.device_get(read(replay, start=(replay.next - 1 - ages) % STARTS, env=jnp.full(STARTS, env)))
            for age in range(int(replay.size[env])):
                walk, reward = history[env][len(history[env]) - 1 - age :][:num_steps], 0.0
                for steps, row in enumerate(walk):
                    reward += gamma**steps * row["reward"]
                    if row["terminated"] or row["truncated"]:
                        break
                np.testing.assert_allclose(found.reward[age], reward, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(found.discount[age], gamma ** (steps + 1), rtol=1e-5)
                assert found.terminated[age] == row["terminated"] and found.action[age] == walk[0]["action"]
                for part in ("eye", "arm"):
                    np.testing.assert_array_equal(found.obs[part][age], walk[0]["obs"][part])
                    np.testing.assert_array_equal(found.next_obs[part][age], row["next_obs"][part])


def test_interrupting_an_empty_replay_changes_nothing() -> None:
    compiled = _compiled(1, 1)
    jax.tree.map(np.testing.assert_array_equal, memory.interrupt(compiled.create()), compiled.create())


@pytest.mark.parametrize("stack", [1, 4])
def test_each_frame_is_stored_once(stack: int) -> None:
    spec = _spec(stack)
    stream, history = Stream(np.random.default_rng(0), stack, (3, 20)), [[]]
    replay = memory.create(spec, 1, 3000)
    experience = _experience([stream], 500, history)
    replay = jax.jit(lambda r, e: memory.add(r, spec, e))(replay, experience)
    ends = int((experience.terminated | experience.truncated).sum())
    begins = int(experience.first.sum())
    assert int(replay.head[0]) == 500 + ends + begins * (stack - 1)
    assert replay.frames["eye"].dtype == jnp.uint8 and replay.frames["eye"].shape[2:] == (2, 2)
    # A stacked observation costs little more than a frame, not `stack` frames.
    assert replay.frames["eye"].size < 1.2 * 3000 * 4


def test_size_in_bytes_is_said_before_anything_is_made() -> None:
    for spec in (_spec(4), Spec(ArraySpec((3,)), Box((-1.0, -1.0), (1.0, 1.0))), Spec(ArraySpec((3,)), MultiDiscrete((2, 3, 4)))):
        made = memory.create(spec, 2, 40)
        assert memory.num_bytes(spec, 2, 40) == sum(x.nbytes for x in jax.tree.leaves(made))
    assert made.action.shape == (20, 2, 3) and made.action.dtype == jnp.int32
    atari = Spec(ArraySpec((4, 84, 84), "uint8", 0, 255, stack=4), Discrete(6))
    assert 7056e6 < memory.num_bytes(atari, 1, 1_000_000) <= 7.2e9


def test_a_donated_replay_is_written_in_place() -> None:
    spec = Spec(ArraySpec((4, 16, 16), "uint8", 0, 255, stack=4), Discrete(4))
    add = jax.jit(lambda r, e: memory.add(r, spec, e), donate_argnums=0)
    zeros = np.zeros((1, 1))
    obs = np.zeros((1, 1, 4, 16, 16), np.uint8)
    flags = zeros.astype(bool)
    experience = Transition(obs, zeros.astype(np.int32), zeros.astype(np.float32), obs, flags, flags, ~flags, (), ())
    replay = memory.create(spec, 1, 50_000)
    compiled = add.lower(replay, experience).compile()
    frames = replay.frames
    where = frames.unsafe_buffer_pointer()
    replay = compiled(replay, experience)
    assert frames.is_deleted() and replay.frames.unsafe_buffer_pointer() == where
    assert compiled.memory_analysis().temp_size_in_bytes < memory.num_bytes(spec, 1, 50_000) / 10


def test_sampling_is_uniform() -> None:
    compiled = _compiled(1, 3)
    streams = [Stream(np.random.default_rng(b), 1, (5, 9)) for b in range(3)]
    history: list[list[dict[str, Any]]] = [[] for _ in streams]
    replay = compiled.create()
    for _ in range(10):
        replay = compiled.add(replay, _experience(streams, 2, history))
    drawn = jax.jit(lambda r, k: memory.sample(r, compiled.spec, k, 30_000))(replay, jax.random.key(0))
    known = {float(row["reward"]): (b, t) for b, h in enumerate(history) for t, row in enumerate(h)}
    counts = np.zeros((3, 20))
    for reward in np.asarray(drawn.reward):
        counts[known[float(reward)]] += 1
    chi_square = ((counts - 500.0) ** 2 / 500.0).sum()
    assert chi_square < 110.0, "59 degrees of freedom"
    # Rows belong together: the observation drawn is the one of that reward.
    for i in range(50):
        b, t = known[float(drawn.reward[i])]
        np.testing.assert_array_equal(drawn.obs["eye"][i], history[b][t]["obs"]["eye"])
