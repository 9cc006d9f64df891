"""Pictures of rendered tasks: stacks, repeats, limits, what is drawn, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest

from flatirons import envs
from flatirons.data import replay as memory
from flatirons.envs import host
from flatirons.types import FlatironsError

pytest.importorskip("pygame")


@pytest.mark.parametrize("name", ["pixels:Pendulum-v1", "pixels:HalfCheetah-v5"])
def test_pictures_move_and_are_stacked_oldest_first(name: str) -> None:
    if "Cheetah" in name:
        pytest.importorskip("mujoco")
    try:
        task: Any = envs.make(name, 1, seed=0, size=32)
    except FlatironsError as error:
        if "MUJOCO_GL" not in str(error):
            raise
        pytest.skip("no way to draw without a display here")
    # A context of OpenGL's is current in one thread; another could not draw.
    assert host.of_one_thread(task.engine.rows.envs[0]) == ("Cheetah" in name)
    assert task.spec.obs.shape == (3, 32, 32) and task.spec.obs.stack == 3 and task.spec.obs.dtype == "uint8"
    first = task.current.obs[0]
    np.testing.assert_array_equal(first[0], first[2])
    before, seen = first, [first[2]]
    for _ in range(4):
        _, timestep = task.step(np.ones((1, len(task.spec.action.low)), np.float32))
        now = timestep.obs[0]
        np.testing.assert_array_equal(now[:2], before[1:])
        before = now
        seen.append(now[2])
    assert all((a != b).any() for a, b in itertools.pairwise(seen))
    task.close()


def test_a_decision_lasts_repeat_steps_of_the_environment() -> None:
    task: Any = envs.make("pixels:Pendulum-v1", 1, seed=7, repeat=4, stack=2)
    plain = gymnasium.make("Pendulum-v1").unwrapped
    plain.reset(seed=envs.host.env_seeds(7, 1)[0])
    assert task.spec.max_episode_steps == 50 and task.spec.frames_per_step == 4
    for turn in range(50):
        outcome, _ = task.step(np.array([[0.5]], np.float32))
        expected = sum(float(plain.step(np.array([0.5], np.float32))[1]) for _ in range(4))
        assert float(outcome.reward[0]) == pytest.approx(expected, rel=1e-5)
        assert bool(outcome.truncated[0]) == (turn == 49)


def test_the_steps_within_decisions_are_counted_as_frames() -> None:
    assert envs.make("pixels:Pendulum-v1", 1).spec.frames_per_step == 3
    assert envs.make("pixels:Pendulum-v1", 1, repeat=1).spec.frames_per_step == 1
    assert envs.make("discrete:Pendulum-v1", 1).spec.frames_per_step == envs.make("Pendulum-v1", 1).spec.frames_per_step == 1


def test_a_replay_stores_each_picture_once() -> None:
    spec = envs.make("pixels:Pendulum-v1", 1).spec
    assert memory.num_bytes(spec, 1, 10_000) < 1.2 * 10_000 * 64 * 64


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(FlatironsError, match="'pixels:Pendulim-v1' is unknown; did you mean Pendulum-v1"):
        envs.make("pixels:Pendulim-v1")
    with pytest.raises(FlatironsError, match="must be at least 1"):
        envs.make("pixels:Pendulum-v1", 1, stack=0)
    with pytest.raises(FlatironsError, match="size='large' does not fit"):
        envs.make("pixels:Pendulum-v1", 1, size="large")
