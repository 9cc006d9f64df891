"""Rendered Gymnasium tasks as pictures: `pixels:Pendulum-v1`, `pixels:HalfCheetah-v5` (Lillicrap et al. 2016, section 7, "from pixels").

An observation is the last `stack` grey pictures `[stack, size, size]` uint8, one per decision, which lasts `repeat` steps. MuJoCo
is drawn with settings of our own: without shadows, reflections and multi-sampling a picture takes a CPU a millisecond instead of fifty.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from flatirons.envs import spaces
from flatirons.envs.host import quiet_mujoco, unwrap
from flatirons.types import FlatironsError


@dataclasses.dataclass(frozen=True)
class PixelOptions:
    """`--env.size` and so on."""

    size: int = 64
    """Height and width of a picture."""
    stack: int = 3
    """Pictures in an observation."""
    repeat: int = 3
    """Steps of the environment a decision lasts."""


class Pixels(gymnasium.Wrapper):
    """The wrapper; `env` has no time limit of its own."""

    def __init__(self, env: gymnasium.Env, options: PixelOptions) -> None:
        super().__init__(env)
        self._options = options
        self.frames_per_step = options.repeat
        self._frames: collections.deque[np.ndarray] = collections.deque(maxlen=options.stack)
        self._draw, self.of_one_thread = _mujoco_drawer(env.unwrapped, options.size) or (self._render, False)
        self.observation_space = spaces.StackedBox(0, 255, (options.stack, options.size, options.size), np.uint8)

    def _render(self) -> np.ndarray:
        return np.asarray(self.env.render())

    def _picture(self) -> np.ndarray:
        """Grey, uint8 `[size, size]`: Rec. 601 luma, as ALE has it; the mean over each cell where the picture was larger."""
        from PIL import Image

        size = self._options.size
        return np.asarray(Image.fromarray(self._draw()).convert("L").resize((size, size), Image.Resampling.BOX))

    def render(self) -> Any:
        """What is seen, in colour and before it is made smaller."""
        return self._draw()

    def _seen(self) -> np.ndarray:
        return np.stack(self._frames)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The first picture, `stack` times."""
        _, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._picture()] * self._options.stack)
        return self._seen(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """`repeat` steps with one action; their rewards' sum."""
        total, terminated, truncated, info = 0.0, False, False, {}
        for _ in range(self._options.repeat):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        self._frames.append(self._picture())
        return self._seen(), total, terminated, truncated, info


_CANNOT_DRAW: list[str] = []
"""Why MuJoCo cannot draw in this process, once that was found: how it draws is chosen when it is imported."""


def _mujoco_drawer(env: Any, size: int) -> tuple[Callable[[], np.ndarray], bool] | None:
    """What draws a Gymnasium MuJoCo environment, RGB uint8 `[size, size, 3]`, and whether one thread alone may; None for others."""
    model, data = getattr(env, "model", None), getattr(env, "data", None)
    # Gymnasium-Robotics puts the goal into the picture in its own `render`.
    if "mujoco" not in sys.modules or model is None or data is None or type(env).__module__.startswith("gymnasium_robotics"):
        return None
    mujoco: Any = sys.modules["mujoco"]
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
    model.vis.quality.numslices, model.vis.quality.numstacks = 12, 8
    # Where MuJoCo could not draw once, a second attempt ends the process.
    if _CANNOT_DRAW:
        raise FlatironsError(_CANNOT_DRAW[0])
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        _CANNOT_DRAW.append(f"MuJoCo cannot draw here ({said}): set MUJOCO_GL=egl (or osmesa) before Python starts")
        raise FlatironsError(_CANNOT_DRAW[0]) from None
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE):
        renderer.scene.flags[flag] = 0
    follows = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    let_go = _let_go()

    def draw() -> np.ndarray:
        # The environment may have made its data anew.
        renderer.update_scene(cast(Any, env).data, camera=follows)
        picture = renderer.render()
        if let_go is not None:
            let_go()
        return picture

    if let_go is not None:
        let_go()
    return draw, let_go is None


def _let_go() -> Callable[[], None] | None:
    """What takes OpenGL's context from this thread, so that any other may draw next: it stays with the one that drew last, and a second
    one's drawing fails. None where MuJoCo does not draw through EGL."""
    display = getattr(sys.modules.get("mujoco.egl"), "EGL_DISPLAY", None)
    if display is None:
        return None
    from OpenGL import EGL

    return lambda: EGL.eglMakeCurrent(display, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT)


def factory(name: str, options: PixelOptions, kwargs: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `pixels:name`. Raises FlatironsError where the task has no pictures or an option makes no sense."""
    if min(options.size, options.stack, options.repeat) < 1:
        raise FlatironsError("size, stack and repeat of pixels: must be at least 1")
    # MuJoCo chooses how to draw when it is imported, and without a display its first choice fails.
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

    def make() -> gymnasium.Env:
        spec = gymnasium.spec(name)
        of_mujoco = isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium.envs.mujoco")
        with quiet_mujoco(spec):
            env = gymnasium.make(name, disable_env_checker=True, **({} if of_mujoco else {"render_mode": "rgb_array"}), **kwargs)
        core, limit = unwrap(env)
        if not of_mujoco and "rgb_array" not in env.metadata.get("render_modes", ()):
            raise FlatironsError(f"pixels:{name} needs an environment that renders as rgb_array, and {name} does not")
        seen = Pixels(core, options)
        return seen if limit is None else TimeLimit(seen, -(-limit // options.repeat))

    return make
