"""The same greedy episodes for a policy of any library: Gymnasium and NumPy alone, so that peers' environments run it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium


def greedy_returns(task: str, act: Callable[[Any], Any], episodes: int, seed: int) -> list[float]:
    """Undiscounted returns of `episodes` episodes, the first reset with `seed`; `act(obs)` gives one action."""
    env, returns = gymnasium.make(task), []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return returns
