"""Box actions as a Discrete choice."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs
from flatirons.envs.discrete import discretise
from flatirons.types import Discrete, FlatironsError


def test_actions_are_digits_of_the_number() -> None:
    env: Any = discretise(gymnasium.make("Pusher-v5"), 3)
    assert env.action_space.n == 3**7
    cut = env.env
    np.testing.assert_array_equal(cut.action(0), [-2.0] * 7)
    np.testing.assert_array_equal(cut.action(3**7 - 1), [2.0] * 7)
    np.testing.assert_array_equal(cut.action(1 * 3**6 + 2), [0.0, -2.0, -2.0, -2.0, -2.0, -2.0, 2.0])
    assert len({tuple(cut.action(a)) for a in range(3**7)}) == 3**7
    env.close()


def test_the_same_step_and_time_limit_as_the_box_task() -> None:
    plain, cut = gymnasium.make("Pendulum-v1"), discretise(gymnasium.make("Pendulum-v1"), 5)
    first, _ = plain.reset(seed=3)
    second, _ = cut.reset(seed=3)
    np.testing.assert_array_equal(first, second)
    ends = []
    for step in range(200):
        got = cut.step(step % 5)
        expected = plain.step(np.asarray([step % 5 - 2.0], np.float32))
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        ends.append(got[3])
    assert ends == [False] * 199 + [True]


def test_by_name_dqn_trains_on_it(tmp_path: Any) -> None:
    task: Any = envs.make("discrete:Pendulum-v1", 2, bins=7)
    assert task.spec.action == Discrete(7)
    task.close()
    run = fi.train(
        "dqn",
        "discrete:Pendulum-v1",
        out=tmp_path / "run",
        quiet=True,
        total_steps=256,
        num_envs=1,
        train_every=4,
        learning_starts=64,
        buffer_size=256,
        batch_size=16,
        target_every=16,
        env_options={"bins": 5},
    )
    assert np.isfinite(run.evaluate(episodes=1)["returns"][0])


@pytest.mark.parametrize(
    ("name", "bins", "words"),
    [
        ("discrete:Pusher-v5", 4, "16,384 actions, more than 10,000"),
        ("discrete:Pendulum-v1", 1, "from 2 up"),
        ("discrete:CartPole-v1", 3, "not a Box"),
        ("discrete:Pendulim-v1", 3, "did you mean Pendulum-v1"),
    ],
)
def test_what_cannot_be_cut_is_refused(name: str, bins: int, words: str) -> None:
    with pytest.raises(FlatironsError, match=words):
        envs.make(name, 1, bins=bins)
