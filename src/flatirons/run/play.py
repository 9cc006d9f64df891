"""`flatirons play`: a run's greedy policy to look at, in a window or as a video file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from flatirons import envs
from flatirons.run import folder, train
from flatirons.run.doctor import display, ffmpeg
from flatirons.types import FlatironsError, HostTask, InGraphTask, TimeStep

FRAMES_PER_SECOND = 30
SMALLEST_SIDE = 256
"""Frames smaller than this are enlarged by a whole factor, so that MinAtar's cells can be seen."""


class Screen(Protocol):
    """Where frames uint8 `[H, W, 3]` go. `show` returns False once the person has closed it."""

    def show(self, frame: np.ndarray) -> bool: ...  # noqa: D102
    def close(self) -> str: ...  # noqa: D102


def play(path: Path, *, video: str | None = None, episodes: int = 1, seed: int = 0, max_steps: int = 2000, best: bool = False) -> str:
    """Play greedy episodes of the run at `path` and say where to see them, with their returns.

    Without `video` a window opens where there is a display; elsewhere the video is `play.mp4` in the run folder. An episode is left after
    `max_steps` decisions. `best` plays the policy of the best evaluation. Raises FlatironsError where the task cannot be drawn, a package
    is missing, or no best policy was kept.
    """
    record = folder.peek_record(path)
    name = record.get("env")
    if not isinstance(name, str):
        raise FlatironsError(
            f"{path} was trained on an environment of your own ({record.get('own_env')}); play it from Python with run.policy."
        )
    if name.startswith("envpool:"):
        raise FlatironsError(
            f"{name} cannot be drawn: the pictures of EnvPool's simulators are not read here; `flatirons eval` scores its policy instead."
        )
    run = train.load(path, best=best)
    title = f"{record.get('system', '')} on {name}" + (f", its best policy, after {run.step:_} decisions" if best else "")
    if not display():  # renderers that draw with SDL look for one even off screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    screen: Screen | None = None

    def show(frame: np.ndarray) -> bool:
        nonlocal screen
        if screen is None:  # opened at the first frame: nothing is left behind by a task that cannot be drawn
            screen = _Window(title) if video is None and display() else _Video(Path(video) if video else path / "play.mp4")
        return screen.show(_enlarged(frame))

    returns = []
    try:
        for outcome in _episodes(run, name, dict(record.get("env_options") or {}), seed, episodes, max_steps, show):
            returns.append(outcome)
    finally:
        where = screen.close() if screen is not None else ""
    scores = ", ".join(f"{total:g}" + ("" if ended else f" (left after {max_steps} decisions)") for total, ended in returns)
    return f"{title}: return {scores or 'none, the window was closed'}{f'; {where}' if where else ''}"


def _episodes(
    run: train.Run, name: str, options: dict[str, Any], seed: int, episodes: int, max_steps: int, show: Callable[[np.ndarray], bool]
) -> Iterator[tuple[float, bool]]:
    """(undiscounted return, whether it ended by itself) of each episode; ends early when `show` returns False."""
    bare = name.removeprefix("no-velocity:")
    if bare.partition("/")[0] != "ALE" and bare.partition(":")[0] not in ("jax", "pgx", "mdp", "probe", "envpool"):
        options = {**options, "render_mode": "rgb_array"}
    task: Any = envs.make(name, 1, seed=seed, training=False, **options)
    try:
        world = _InGraphWorld(task, name, seed) if task.in_graph else _HostWorld(task)
        for _ in range(episodes):
            total, ended = 0.0, False
            if not show(world.frame()):
                return
            for _ in range(max_steps):
                seen = world.timestep
                obs, legal, first = jax.tree.map(np.asarray, (seen.obs, seen.legal, seen.first))
                reward, ended = world.step(run.act(TimeStep(obs, legal, first, ())))
                total += reward
                if ended:
                    break
                if not show(world.frame()):
                    return
            yield total, ended
            if not ended:
                world.reset()
    finally:
        task.close()


class _HostWorld:
    def __init__(self, task: HostTask) -> None:
        self.task = task
        self.timestep: TimeStep = task.reset()

    def reset(self) -> None:
        self.timestep = self.task.reset()

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        outcome, self.timestep = self.task.step(action)
        return float(outcome.reward[0]), bool(outcome.terminated[0] or outcome.truncated[0])

    def frame(self) -> np.ndarray:
        frame: Any = self.task.render()  # type: ignore[attr-defined]
        return _frame(frame, self.task.name)


class _InGraphWorld:
    def __init__(self, task: InGraphTask, name: str, seed: int) -> None:
        self.task, self.name = task, name
        self.key = jax.random.key(seed)
        self._step = jax.jit(task.step)
        self.reset()

    def reset(self) -> None:
        self.key, key = jax.random.split(self.key)
        self.env = self.task.reset(key)

    @property
    def timestep(self) -> TimeStep:
        return self.task.observe(self.env)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        self.key, key = jax.random.split(self.key)
        self.env, outcome = self._step(key, self.env, action)
        return float(outcome.reward[0]), bool(outcome.terminated[0] | outcome.truncated[0])

    def frame(self) -> np.ndarray:
        from flatirons.envs import render

        return _frame(render.render_frame(self.name, jax.tree.map(lambda x: np.asarray(x)[0], self.env.inner)), self.name)


def _frame(frame: Any, name: str) -> np.ndarray:
    if frame is None:
        raise FlatironsError(f"{name} cannot be drawn; `flatirons eval` scores its policy instead.")
    return np.asarray(frame, np.uint8)


def _enlarged(frame: np.ndarray) -> np.ndarray:
    factor = max(1, -(-SMALLEST_SIDE // min(frame.shape[:2])))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return large[: large.shape[0] // 2 * 2, : large.shape[1] // 2 * 2]  # video codecs want even sides


class _Video:
    """An .mp4 through ffmpeg, or a .gif through pillow; where there is no ffmpeg an .mp4 becomes a .gif."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in (".mp4", ".gif"):
            raise FlatironsError(f"cannot write a video to {path}: end its name in .mp4 or .gif.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlatironsError(f"cannot write {path}: {error.strerror}; choose another --video.") from error
        self.path, self.note = path, ""
        self._ffmpeg: str | None = None
        self._encoder: subprocess.Popen[bytes] | None = None
        self._frames: list[np.ndarray] = []
        if path.suffix.lower() == ".mp4":
            self._ffmpeg = ffmpeg()
            if self._ffmpeg is None:
                self.path = path.with_suffix(".gif")
                self.note = " (a GIF, as there is no ffmpeg: pip install 'flatirons[video]')"

    def show(self, frame: np.ndarray) -> bool:
        if self._ffmpeg is None:
            self._frames.append(frame)
            return True
        if self._encoder is None:
            size = f"{frame.shape[1]}x{frame.shape[0]}"
            source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(FRAMES_PER_SECOND), "-i", "-"]
            target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(self.path)]
            self._encoder = subprocess.Popen([self._ffmpeg, "-y", "-loglevel", "quiet", *source, *target], stdin=subprocess.PIPE)
        assert self._encoder.stdin is not None
        try:
            self._encoder.stdin.write(frame.tobytes())
        except OSError:
            self._end()
        return True

    def _end(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None and encoder.stdin is not None:
            with contextlib.suppress(OSError):
                encoder.stdin.close()
            if encoder.wait():
                raise FlatironsError(f"ffmpeg could not write {self.path}; choose another --video, or a .gif.")

    def close(self) -> str:
        self._end()
        if self._frames:
            from PIL import Image

            first, *rest = map(Image.fromarray, self._frames)
            try:
                first.save(self.path, save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0)
            except OSError as error:
                raise FlatironsError(f"cannot write {self.path}: {error.strerror or error}; choose another --video.") from error
        return f"video: {self.path}{self.note}"


class _Window:
    """A window of pygame's. Closing it, Escape or Q ends the play."""

    def __init__(self, title: str) -> None:
        try:
            import pygame
        except ImportError:
            raise FlatironsError("a window needs pygame: pip install 'flatirons[video]', or pass --video FILE.") from None
        self._pygame, self._title, self._surface = pygame, title, None
        self._due = time.perf_counter()

    def show(self, frame: np.ndarray) -> bool:
        pygame = self._pygame
        if self._surface is None:
            pygame.display.init()
            try:
                self._surface = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
            except pygame.error as error:
                raise FlatironsError(f"no window could be opened ({error}); pass --video FILE.") from error
            pygame.display.set_caption(self._title)
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key in (pygame.K_ESCAPE, pygame.K_q)):
                return False
        self._surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._due = max(self._due + 1 / FRAMES_PER_SECOND, time.perf_counter())
        time.sleep(max(0.0, self._due - time.perf_counter()))
        return True

    def close(self) -> str:
        self._pygame.display.quit()
        return ""
