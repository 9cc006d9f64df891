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
from flatirons.envs.host import Anew, EnvFault, HostBatch, Leaves, Stepped, warnings_as
from flatirons.types import FlatironsError, Spec

MOST_WORDS = 400
"""Characters of an error of EnvPool's that are repeated; some list a whole signature."""
ATARI = ("episodic_life", "repeat_action_probability")
"""Settings that EnvPool's Atari has and no other of its families."""


class EnvPoolEngine:
    """A pool of `num_envs` environments, stepped together."""

    legal = None
    reached = None
    anew: Sequence[Anew] = ()

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
        except Exception as error:
            # Whatever a package raises that was not built for this: a library or a file that is missing, an option of a wrong type.
            given = ", ".join(f"{key}={value!r}" for key, value in self._options.items())
            why = " ".join(str(error).split()) or type(error).__name__
            raise FlatironsError(f"envpool:{self._task} cannot be made{f' with {given}' if given else ''}: {why[:MOST_WORDS]}") from None
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
        if len(reward) != self._num_envs:
            raise EnvFault(0, f"EnvPool answered with {len(reward)} rewards for {self._num_envs} environments")
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
        near = _nearest(task, known, "envpool:") or "; envpool.list_all_envs() names them"
        raise FlatironsError(f"the task 'envpool:{task}' is unknown{near}")
    options = {key: value for key, value in options.items() if value is not None}
    _demand_usable(task, options)
    engine = EnvPoolEngine(task, num_envs, seed, options)
    try:
        _demand_bounds(task, engine)
    except FlatironsError:
        engine.close()
        raise
    rewarded = robotics.goal_reward(engine.settings)
    spec = Spec(spaces.obs_spec(engine.obs_space), spaces.action_spec(engine.action_space), engine.max_episode_steps, goal_reward=rewarded)
    notes = (f"vectoriser: envpool ({num_envs} environments in C++ threads)",)
    return HostBatch(f"envpool:{task}", engine, engine.obs_space, spec, num_envs, seed=seed, notes=notes, timeout_s=timeout_s)


def _demand_usable(task: str, options: dict[str, Any]) -> None:
    """Refuse what would not work, or not as it seems to. Raises FlatironsError."""
    import envpool

    from flatirons.envs import _nearest

    try:
        with warnings_as([]):
            settings = envpool.make_spec(task).config
    except Exception as error:
        raise FlatironsError(f"envpool:{task} cannot be made: {' '.join(str(error).split())[:MOST_WORDS]}") from None
    if settings.max_num_players > 1:
        raise FlatironsError(
            f"envpool:{task} is for {settings.max_num_players} players, and here one policy acts; board games of two are `pgx:NAME` "
            "(`flatirons list`)"
        )
    if all(name in settings._fields for name in ATARI):
        raise FlatironsError(
            f"envpool:{task} is Atari, which is `ALE/{task}` here: its lives, pictures and presets are the papers', and it is in C++ too"
        )
    if "batch_size" in options:
        raise FlatironsError("batch_size: the whole pool is stepped at once; leave it out")
    if options.get("from_pixels"):
        raise FlatironsError(f"from_pixels: EnvPool's pictures are not read here; `pixels:{task}` draws Gymnasium's task of that name")
    taken = {*settings._fields, "render_mode", "from_pixels", "render_width", "render_height", "render_camera_id"}
    for name in options:
        if name not in taken:
            raise FlatironsError(f"envpool:{task} takes no option {name!r}{_nearest(name, taken)}")
    limit = options.get("max_episode_steps", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise FlatironsError(f"max_episode_steps is {limit!r}; it is a whole number of decisions from 1 up")


def _demand_bounds(task: str, engine: EnvPoolEngine) -> None:
    """Refuse a Box of buttons: EnvPool gives VizDoom's the least and the largest number there is as bounds, and 0, which releases a
    button, is below them."""
    low = np.asarray(getattr(engine.action_space, "low", 0.0))
    if low.dtype.kind == "f" and ((low > 0.0) & (low < 1e-30)).any():
        raise FlatironsError(f"envpool:{task} has buttons for actions; give --env.use_combined_action true, which makes them Discrete")
