"""Overestimation: exact where the values are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gs

import flatirons as fi
from flatirons import envs
from flatirons.run import job, values
from flatirons.types import FlatironsError, Policy


class Rewards(gymnasium.Env):
    """Rewards 1, 2, 3 and then the end, or a time limit after two steps."""

    observation_space, action_space = gs.Box(0.0, 9.0, (1,), np.float32), gs.Discrete(2)

    def __init__(self, cut: bool) -> None:
        self.cut = cut

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == 3
        return np.full(1, self.t, np.float32), float(self.t), over, self.cut and self.t == 2, {}


def _system() -> Any:
    def policy(config: Any, task: Any, actor: Any, *, greedy: bool) -> Policy:
        return Policy(lambda n: (), lambda key, timestep, carry: (jnp.zeros(timestep.obs.shape[0], jnp.int32), carry, ()))

    return SimpleNamespace(policy=policy, estimate=lambda config, task, actor, timestep: actor + timestep.obs[:, 0])


def test_returns_of_all_states_and_the_bootstrap_at_a_truncation() -> None:
    config = SimpleNamespace(gamma=0.5)
    task: Any = envs.make(lambda: Rewards(False), 2)
    found = values.overestimation(_system(), config, task, jnp.float32(10.0), 0)
    # From the three states: 1 + 2/2 + 3/4, 2 + 3/2, 3; expected: 10, 11, 12.
    assert found == pytest.approx(
        {"value_estimate": 11.0, "discounted_return": (2.75 + 3.5 + 3.0) / 3, "overestimation": 11.0 - 9.25 / 3, "states": 6}
    )
    task = envs.make(lambda: Rewards(True), 1)
    found = values.overestimation(_system(), config, task, jnp.float32(10.0), 0)
    # From the two states: 1 + 2/2 + 12/4 and 2 + 12/2.
    assert found["discounted_return"] == pytest.approx((5.0 + 8.0) / 2) and found["states"] == 2


def test_a_cut_states_value_is_not_masked_by_the_state_before_it() -> None:
    task: Any = envs.make(lambda: Rewards(True), 1)
    asked = []

    def estimate(config: Any, task: Any, actor: Any, timestep: Any) -> Any:
        asked.append(timestep.legal)
        return timestep.obs[:, 0]

    step, mask = task.step, np.ones((1, 2), bool)
    task.step = lambda action: (lambda outcome, after: (outcome, after._replace(legal=mask)))(*step(action))
    reset = task.reset
    task.reset = lambda seed: reset(seed)._replace(legal=mask)
    values.overestimation(
        SimpleNamespace(policy=_system().policy, estimate=estimate), SimpleNamespace(gamma=0.5), task, jnp.float32(0.0), 0
    )
    assert len(asked) == 2 and asked[0].shape == (1, 2) and asked[1] == (), "traced for states with a mask, and for cut ones"


def test_in_graph_and_host_agree(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"total_steps": 64, "train_every": 8, "learning_starts": 16, "batch_size": 8, "hidden": (8,), "quiet": True}
    make, as_in_training = job.Job.make, []

    def making(self: Any, num_envs: int, *, seed: int, training: bool) -> Any:
        as_in_training.append(training)
        return make(self, num_envs, seed=seed, training=training)

    for name in ("CartPole-v1", "jax:CartPole-v1"):
        run = fi.train("dqn", name, out=tmp_path / name.replace(":", "-"), **settings)
        monkeypatch.setattr(job.Job, "make", making)
        found = run.overestimation(episodes=4)
        assert found["states"] >= 4 * 8 and found["overestimation"] == pytest.approx(found["value_estimate"] - found["discounted_return"])
        assert 4 < found["discounted_return"] < 100
        monkeypatch.setattr(job.Job, "make", make)
    assert len(as_in_training) > 1 and all(as_in_training), "Atari's rewards are clipped as those that Q was learned of"
    monkeypatch.delattr(run.system, "estimate")
    with pytest.raises(FlatironsError, match="dqn keeps no estimate"):
        run.overestimation()
