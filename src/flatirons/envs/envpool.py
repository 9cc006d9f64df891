"""EnvPool's tasks (an optional extra): a C++ thread pool behind the same door, `envpool:HalfCheetah-v5`.

EnvPool starts the next episode in the step *after* an end, and ignores that step's action. Here the environments that ended are reset at
once by `reset(env_id)`, so that no such row exists and `next_obs` is the true successor. EnvPool seeds its environments itself, from the
number it is made with: a seeded reset makes the pool anew. Its numbers therefore differ from Gymnasium's own for one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatirons.envs import robotics, spaces
from flatirons.envs.host import EnvFault, HostBatch, Leaves, Stepped, warnings_as
from flatirons.types import FlatironsError, Spec


class EnvPoolEngine:
    """A pool of `num_envs` environments, stepped together."""

    legal = None

    def __init__(self, task: str, num_envs: int, seed: int, options: dict[str, Any]) -> None:
        self._task, self._num_envs, self._options = task, num_envs, options
        self._env: Any = None
        self._seed: int | None = None
        self._open(seed)
        with warnings_as([]):
            self.obs_space, self.action_space = self._env.observation_space, self._env.action_space
        self._leaves = [(get, spec, spaces.offset(leaf)) for _, get, spec, leaf in spaces.leaves(self.obs_space)]
        self._decode = spaces.decode_actions(self.action_space)
        self._dtype = np.dtype(self.action_space.dtype)
        self._all = np.arange(num_envs, dtype=np.int32)

    @property
    def max_episode_steps(self) -> int | None:
        """The pool's time limit in decisions."""
        limit = getattr(self.settings, "max_episode_steps", None)
        return int(limit) if limit and limit < 2**31 - 1 else None

    @property
    def settings(self) -> Any:
        """What the pool was made with: the task's own settings and the options given."""
        return self._env.spec.config

    def _open(self, seed: int) -> None:
        import envpool

        self.close()
        try:
            with warnings_as([]):
                self._env = envpool.make_gymnasium(self._task, num_envs=self._num_envs, seed=seed, **self._options)
        except (TypeError, ValueError, AssertionError) as error:
            raise FlatironsError(f"envpool:{self._task} does not take these options: {' '.join(str(error).split())}") from None
        self._seed = seed

    def _read(self, obs: Any, info: Any) -> Leaves:
        # A pool answers in the order in which its threads finish.
        order = np.argsort(np.asarray(info["env_id"]), kind="stable")
        leaves = []
        for get, spec, shift in self._leaves:
            array = np.asarray(get(obs))[order]
            array = array.reshape((len(order), *spec.shape)) if shift is None else array.reshape((len(order), *spec.shape)) - shift
            leaves.append(array.astype(spec.dtype))
        return leaves

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Reset all; the pool is made anew with the first environment's seed where there is one."""
        if seeds[0] is not None:
            self._open(seeds[0])
        # Its wrapper builds float32 spaces from float64 bounds here, and says so.
        with warnings_as([]):
            obs, info = self._env.reset()
        return self._read(obs, info)

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B, ...]`."""
        batch = np.asarray(self._decode(actions), self._dtype)
        shown, reward, terminated, truncated, info = self._env.step(batch, self._all)
        order = np.argsort(np.asarray(info["env_id"]), kind="stable")
        final = self._read(shown, info)
        reward = np.asarray(reward, np.float64)[order]
        terminated, truncated = np.array(terminated, np.bool_)[order], np.array(truncated, np.bool_)[order]
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if not len(ended):
            return Stepped(reward, terminated, truncated, final, final)
        started, about = self._env.reset(ended)
        if len(about["env_id"]) != len(ended):
            raise EnvFault(int(ended[0]), f"EnvPool reset {len(about['env_id'])} environments where {len(ended)} were asked for")
        obs = [array.copy() for array in final]
        for array, part in zip(obs, self._read(started, about), strict=True):
            array[ended] = part
        return Stepped(reward, terminated, truncated, final, obs)

    def busy_with(self) -> int:
        """Always 0: the batch is stepped as one."""
        return 0

    def render(self) -> np.ndarray | None:
        """The frame of environment 0 where the pool was made with render_mode='rgb_array'."""
        frame = self._env.render()
        if frame is None:
            return None
        frame = np.asarray(frame, np.uint8)
        return frame[0].copy() if frame.ndim == 4 else frame.copy()

    def close(self) -> None:
        """Close the pool."""
        if self._env is not None:
            self._env.close()
            self._env = None


def make_envpool(task: str, num_envs: int, *, seed: int = 0, timeout_s: float | None = 60.0, **options: Any) -> HostBatch:
    """The task `envpool:<task>`; options are those of `envpool.make`. Raises FlatironsError for an unknown task or option."""
    import envpool

    from flatirons.envs import _nearest

    known = envpool.list_all_envs()
    if task not in known:
        raise FlatironsError(f"the task 'envpool:{task}' is unknown{_nearest(task, known) or '; envpool.list_all_envs() names them'}")
    engine = EnvPoolEngine(task, num_envs, seed, {key: value for key, value in options.items() if value is not None})
    rewarded = robotics.goal_reward(engine.settings)
    spec = Spec(spaces.obs_spec(engine.obs_space), spaces.action_spec(engine.action_space), engine.max_episode_steps, goal_reward=rewarded)
    notes = (f"vectoriser: envpool ({num_envs} environments in C++ threads)",)
    return HostBatch(f"envpool:{task}", engine, engine.obs_space, spec, num_envs, seed=seed, notes=notes, timeout_s=timeout_s)
