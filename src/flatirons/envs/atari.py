"""Atari through ale-py's own vector environment (C++ threads), with the standard preprocessing as documented options.

Nothing is applied twice: Gymnasium's `ALE/Pong-v5` has sticky actions and a frame skip of its own, and is not used. Reward clipping and
episodic life are done here, because ale-py's hide what a person wants to see: its clipping loses the raw score, and its episodic life
starts a new game at every lost life, so that nothing after the first life would ever be played.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from flatirons.envs.host import Anew, HostBatch, Leaves, Stepped, usable_cores
from flatirons.types import ArraySpec, Discrete, FlatironsError, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """Preprocessing of Atari games. The defaults are those of the Nature DQN (2015): no sticky actions, the game's actions."""

    frameskip: int = 4
    """Game frames per decision; the action is held."""
    maxpool: bool = True
    """Show the pixelwise maximum of the last two frames of a decision, against flicker."""
    height: int = 84
    """Rows of the picture."""
    width: int = 84
    """Columns of the picture."""
    stack: int = 4
    """Consecutive pictures in one observation, oldest first; before an episode's first picture they are zeros."""
    noop_max: int = 30
    """A game starts with 1 to that many decisions-long no-ops, drawn per game; 0 for none."""
    fire_reset: bool = True
    """Press FIRE at a game's start where the game waits for it (not after a lost life: the policy must learn that)."""
    episodic_life: bool = True
    """A lost life ends the learner's episode (terminated) while the game goes on. Off when evaluating."""
    reward_clip: bool = True
    """Clip rewards to -1 ... 1. Off when evaluating."""
    sticky: float = 0.0
    """Chance that the emulator repeats the last action in a frame; 0.25 is the protocol of Machado et al. (2018)."""
    full_action_set: bool = False
    """All 18 actions in place of those that the game uses."""
    max_frames: int = 108_000
    """A game is truncated after that many frames (108,000 = 30 minutes)."""
    threads: int = 0
    """C++ threads; 0 for one per usable core, at most one per game. The numbers do not depend on it."""


class AtariEngine:
    """ale-py's vector environment under a `HostBatch`, with life and reward handling of our own.

    `games` collects the raw score and the length in decisions of every finished game (whole and unclipped, whatever the learner sees).
    """

    legal = None
    reached = None
    anew: Sequence[Anew] = ()

    def __init__(self, game: str, num_envs: int, options: AtariOptions) -> None:
        from ale_py import AtariVectorEnv

        self._options = options
        self._env: Any = AtariVectorEnv(
            game,
            num_envs,
            num_threads=options.threads or min(usable_cores(), num_envs),
            max_num_frames_per_episode=options.max_frames,
            repeat_action_probability=options.sticky,
            full_action_space=options.full_action_set,
            autoreset_mode="SameStep",
            img_height=options.height,
            img_width=options.width,
            stack_num=options.stack,
            frameskip=options.frameskip,
            maxpool=options.maxpool,
            noop_max=options.noop_max,
            use_fire_reset=options.fire_reset,
            episodic_life=False,
            reward_clipping=False,
        )
        self.num_actions = int(self._env.single_action_space.n)
        self.games: list[tuple[float, int]] = []
        self._length = np.zeros(num_envs, np.int64)
        self._score = np.zeros(num_envs)
        self._lives = np.zeros(num_envs, np.int32)
        self._pictures = np.full(num_envs, options.stack)
        self._last: np.ndarray | None = None

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Start a game in all, each with its seed; new obs `[B, stack, height, width]`."""
        given = np.asarray([-1 if seed is None else seed for seed in seeds])
        obs, info = self._env.reset(seed=given)
        self._score[:] = 0
        self._length[:] = 0
        self._lives = np.array(info["lives"])
        # A game's own first stack is zeros and one picture already, so there is nothing to hide.
        self._pictures[:] = self._options.stack
        self._last = np.array(obs)
        return [self._last]

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B]`."""
        stack = self._options.stack
        shown, raw, over, cut, info = self._env.step(actions.astype(np.int32))
        obs, terminated, truncated = np.array(shown), np.array(over, np.bool_), np.array(cut, np.bool_)
        ended = terminated | truncated
        lives = np.array(info["lives"])
        self._score += raw
        self._length += 1
        # Pictures of the life before do not belong to this episode; replay, which stores each picture once, could not rebuild them.
        self._pictures = np.minimum(self._pictures + 1, stack)
        young = self._pictures < stack
        if young.any():
            for index in np.flatnonzero(young & ~ended).tolist():
                obs[index, : stack - self._pictures[index]] = 0
        final = obs
        if ended.any():
            final = obs.copy()
            final_obs = info["final_obs"]
            for index in np.flatnonzero(ended).tolist():
                final[index] = final_obs[index]
                final[index, : stack - self._pictures[index]] = 0
                self._pictures[index] = stack
                self.games.append((float(self._score[index]), int(self._length[index])))
            self._score[ended] = 0
            self._length[ended] = 0
        if self._options.episodic_life:
            lost = (lives < self._lives) & ~ended
            if lost.any():
                final = obs.copy() if final is obs else final
                terminated |= lost
                for index in np.flatnonzero(lost).tolist():
                    obs[index, : stack - 1] = 0
                    self._pictures[index] = 1
        self._lives = lives
        self._last = obs
        reward = np.asarray(raw, np.float64)
        if self._options.reward_clip:
            reward = np.clip(reward, -1.0, 1.0)
        return Stepped(reward, terminated, truncated, [final], [obs])

    def busy_with(self) -> int:
        """Always 0: the batch is stepped as one."""
        return 0

    def render(self) -> np.ndarray | None:
        """What the policy sees of game 0, three times enlarged, uint8 `[H, W, 3]` (the vector environment keeps no colour frames)."""
        if self._last is None:
            return None
        picture = self._last[0, -1].repeat(3, axis=0).repeat(3, axis=1)
        return np.repeat(picture[:, :, None], 3, axis=2)

    def close(self) -> None:
        """Stop the threads."""
        self._env.close()


class AtariBatch(HostBatch):
    """A `HostBatch` of Atari games that also knows raw scores."""

    engine: AtariEngine

    def pop_games(self) -> list[tuple[float, int]]:
        """(raw score, decisions) of the whole games finished since the last call, in the order in which they ended."""
        games, self.engine.games = self.engine.games, []
        return games


def make_atari(
    task: str, num_envs: int, *, seed: int = 0, training: bool = True, timeout_s: float | None = 60.0, **options: Any
) -> AtariBatch:
    """The task `ALE/<Game>-v5` (or `ALE/<Game>`): obs uint8 `[B, stack, 84, 84]`, Discrete actions.

    options are the fields of `AtariOptions`. `training=False` turns reward clipping and episodic life off unless they are given.
    Raises FlatironsError for an unknown game or option.
    """
    from ale_py import roms

    from flatirons.envs import _nearest

    fields = [field.name for field in dataclasses.fields(AtariOptions)]
    # A recorder asks for frames; these games always have one.
    if options.pop("render_mode", None) == "human":
        raise FlatironsError(f"{task} opens no window; use render_mode='rgb_array' and write a video")
    for option in options:
        if option not in fields:
            raise FlatironsError(f"{task} has no option {option!r}{_nearest(option, fields)}; it has {', '.join(fields)}")
    twin = {} if training else {"episodic_life": False, "reward_clip": False}
    chosen = AtariOptions(**{**twin, **options})
    _check_options(task, chosen)
    games = {"".join(part.title() for part in rom.split("_")): rom for rom in roms.get_all_rom_ids()}
    name = task.removeprefix("ALE/").removesuffix("-v5")
    if name not in games:
        ids = [f"ALE/{game}-v5" for game in games]
        raise FlatironsError(f"the task {task!r} is unknown{_nearest(task, ids) or '; `flatirons list` names the games'}")
    engine = AtariEngine(games[name], num_envs, chosen)
    shape = (chosen.stack, chosen.height, chosen.width)
    spec = Spec(
        ArraySpec(shape, "uint8", 0, 255, stack=chosen.stack),
        Discrete(engine.num_actions),
        -(-chosen.max_frames // chosen.frameskip),
        chosen.frameskip,
    )
    said = ", ".join(f"{field}={getattr(chosen, field)}" for field in fields)
    notes = (f"vectoriser: ale-py ({engine._env.ale.get_num_envs()} games in C++ threads)", f"preprocessing: {said}")
    return AtariBatch(
        f"ALE/{name}-v5", engine, gymnasium.spaces.Box(0, 255, shape, np.uint8), spec, num_envs, seed=seed, notes=notes, timeout_s=timeout_s
    )


def _check_options(task: str, options: AtariOptions) -> None:
    for field in ("frameskip", "height", "width", "stack", "max_frames"):
        if getattr(options, field) < 1:
            raise FlatironsError(f"{field}={getattr(options, field)} for {task}; it is a whole number from 1 up")
    if not 0.0 <= options.sticky < 1.0:
        raise FlatironsError(f"sticky={options.sticky} for {task}; it is a probability, at least 0 and below 1")
    if options.noop_max < 0 or options.threads < 0:
        raise FlatironsError(f"noop_max and threads are whole numbers from 0 up; {task} was given {options.noop_max} and {options.threads}")
