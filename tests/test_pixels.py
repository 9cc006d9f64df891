"""Pictures of rendered tasks: stacks, repeats, limits, what is drawn, and what is refused."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import sys
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.data import replay as memory
from flatirons.envs import host, pixels
from flatirons.nets import encoder, pictures
from flatirons.run.job import SpecTask
from flatirons.systems import ddpg
from flatirons.types import ArraySpec, Box, FlatironsError, Spec, TimeStep

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
    by_egl = getattr(sys.modules.get("mujoco.egl"), "EGL_DISPLAY", None) is not None
    assert host.of_one_thread(task.engine.rows.envs[0]) == ("Cheetah" in name and not by_egl)
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


def test_any_thread_may_draw_through_egl() -> None:
    """The thread that made an environment draws in it first, as actor-learners' environments are made and reset before their threads."""
    if importlib.util.find_spec("mujoco") is None:  # imported here, it would choose how to draw before the task does
        pytest.skip("needs mujoco")
    try:
        task: Any = envs.make("pixels:InvertedPendulum-v5", 1, seed=0, size=32)
    except FlatironsError as error:
        if "MUJOCO_GL" not in str(error):
            raise
        pytest.skip("no way to draw without a display here")
    env = task.engine.rows.envs[0]
    if host.of_one_thread(env):
        pytest.skip("MuJoCo does not draw through EGL here")
    here = env.render()
    with concurrent.futures.ThreadPoolExecutor(1) as another:
        np.testing.assert_array_equal(another.submit(env.render).result(), here)
        np.testing.assert_array_equal(env.render(), here)
    task.close()


def test_where_mujoco_cannot_draw_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt would end the process."""
    make = pixels.factory("InvertedPendulum-v5", pixels.PixelOptions(), {})  # says how MuJoCo is to draw, before it is imported
    mujoco = pytest.importorskip("mujoco")
    tried = []

    def fails(*_: Any) -> None:
        tried.append(1)
        raise RuntimeError("no display")

    monkeypatch.setattr(pixels, "_CANNOT_DRAW", [])
    monkeypatch.setattr(mujoco, "Renderer", fails)
    for _ in range(2):
        with pytest.raises(FlatironsError, match=r"cannot draw here \(no display\): set MUJOCO_GL"):
            make()
    assert len(tried) == 1


SEEN = ArraySpec((2, 5, 4), "uint8", low=0, high=255, stack=2)


def test_pictures_are_moved_as_a_whole_and_repeat_their_edge() -> None:
    """Every moved picture is one of the nine cuts of the padded one, all of them occur, and what is no picture stays."""
    spec = {"seen": SEEN, "felt": ArraySpec((3,))}
    picture = np.arange(40, dtype=np.uint8).reshape(2, 5, 4)
    obs = {"seen": np.repeat(picture[None], 200, axis=0), "felt": np.ones((200, 3), np.float32)}
    moved = jax.jit(lambda key: pictures.shifted(key, spec, obs, 1))(jax.random.key(0))
    np.testing.assert_array_equal(moved["felt"], obs["felt"])
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    cuts = {padded[:, y : y + 5, x : x + 4].tobytes(): (y, x) for y in range(3) for x in range(3)}
    found = [cuts[np.asarray(each).tobytes()] for each in moved["seen"]]
    assert len(set(found)) == 9 and moved["seen"].dtype == np.uint8
    last = ArraySpec((4, 4, 3), "uint8", low=0, high=255)
    assert pictures.shifted(jax.random.key(1), last, np.zeros((2, 4, 4, 3), np.uint8), 2).shape == (2, 4, 4, 3)
    with pytest.raises(FlatironsError, match="there is none in this task's observations"):
        pictures.check(spec["felt"], 4)
    with pytest.raises(FlatironsError, match="must be at least 0"):
        pictures.check(spec, -1)


def test_a_shared_encoder_learns_from_the_critics_alone() -> None:
    task: Any = SpecTask("seen", 1, Spec(ArraySpec((3, 36, 36), "uint8", low=0, high=255, stack=3), Box((-1.0,), (1.0,)), 50), False)
    config: Any = ddpg.Config(
        network="playing-atari", hidden=(8,), shared_encoder=True, standardise_pictures=True, layer_norm=True, twin=True
    )
    ddpg.check(config, task)
    params = jax.jit(lambda key: ddpg.init_params(config, task, key))(jax.random.key(0))
    assert set(params) == {"actor", "critics", "encoder"}
    obs = jax.random.randint(jax.random.key(1), (6, 3, 36, 36), 0, 256).astype(jnp.uint8)
    batch = ddpg.Batch(obs, jnp.zeros((6, 1)), jnp.linspace(-1.0, 1.0, 6))

    def part(name: str) -> Any:
        return jax.jit(jax.grad(lambda p: ddpg.loss(config, task, p, batch)[1][name]))(params)

    of_actor, of_critics = part("actor_loss"), part("critic_loss")
    size = lambda tree: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(of_actor["encoder"]) == 0.0 < size(of_critics["encoder"])
    assert size(of_actor["critics"]) == 0.0 < size(of_actor["actor"])
    # What acts sees through the same encoder.
    action = ddpg.mu(config, task, params["actor"], encoder.seen(config, task, params, obs))
    acting = ddpg.policy(config, task, ddpg.Actor(params["actor"], (), jnp.bool_(False), params["encoder"]), greedy=True)
    timestep = TimeStep(obs, (), jnp.zeros(6, bool), ())
    np.testing.assert_allclose(acting.act(jax.random.key(0), timestep, ())[0], action, rtol=1e-5)
    with pytest.raises(FlatironsError, match="hidden=\\(\\) names none"):
        ddpg.check(dataclasses.replace(config, hidden=()), task)


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
