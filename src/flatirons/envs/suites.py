"""Lists of tasks that papers report together, and Atari's published scores of random play and of a human tester.

The scores are those of Wang et al. 2016 ("Dueling network architectures", appendix) and of the papers since: undiscounted, after up to 30
no-op actions, episodes of at most 30 minutes. A human-normalised score is 0 for random play and 1 for the human.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from flatirons.types import FlatironsError


class Suite(NamedTuple):
    """Tasks that are reported together. `paper` holds a score of the paper's own agent per task where it gives one."""

    doc: str
    tasks: tuple[str, ...]
    paper: tuple[float, ...] = ()


ATARI_SCORES: dict[str, tuple[float, float]] = {
    "Alien": (227.8, 7127.7), "Amidar": (5.8, 1719.5), "Assault": (222.4, 742.0), "Asterix": (210.0, 8503.3),
    "Asteroids": (719.1, 47388.7), "Atlantis": (12850.0, 29028.1), "BankHeist": (14.2, 753.1), "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5), "Berzerk": (123.7, 2630.4), "Bowling": (23.1, 160.7), "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5), "Centipede": (2090.9, 12017.0), "ChopperCommand": (811.0, 7387.8), "CrazyClimber": (10780.5, 35829.4),
    "Defender": (2874.5, 18688.9), "DemonAttack": (152.1, 1971.0), "DoubleDunk": (-18.6, -16.4), "Enduro": (0.0, 860.5),
    "FishingDerby": (-91.7, -38.7), "Freeway": (0.0, 29.6), "Frostbite": (65.2, 4334.7), "Gopher": (257.6, 2412.5),
    "Gravitar": (173.0, 3351.4), "Hero": (1027.0, 30826.4), "IceHockey": (-11.2, 0.9), "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0), "Krull": (1598.0, 2665.5), "KungFuMaster": (258.5, 22736.3), "MontezumaRevenge": (0.0, 4753.3),
    "MsPacman": (307.3, 6951.6), "NameThisGame": (2292.3, 8049.0), "Phoenix": (761.4, 7242.6), "Pitfall": (-229.4, 6463.7),
    "Pong": (-20.7, 14.6), "PrivateEye": (24.9, 69571.3), "Qbert": (163.9, 13455.0), "Riverraid": (1338.5, 17118.0),
    "RoadRunner": (11.5, 7845.0), "Robotank": (2.2, 11.9), "Seaquest": (68.4, 42054.7), "Skiing": (-17098.1, -4336.9),
    "Solaris": (1236.3, 12326.7), "SpaceInvaders": (148.0, 1668.7), "StarGunner": (664.0, 10250.0), "Surround": (-10.0, 6.5),
    "Tennis": (-23.8, -8.3), "TimePilot": (3568.0, 5229.2), "Tutankham": (11.4, 167.6), "UpNDown": (533.4, 11693.2),
    "Venture": (0.0, 1187.5), "VideoPinball": (16256.9, 17667.9), "WizardOfWor": (563.5, 4756.5), "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}  # fmt: skip
"""Random play and the human tester, per game as ALE names it."""


def _ale(*games: str) -> tuple[str, ...]:
    return tuple(f"ALE/{game}-v5" for game in games)


SUITES = {
    "atari-7": Suite(
        "the seven games of the first DQN paper (Mnih et al. 2013, table 1), with its scores at epsilon 0.05 after 10M frames",
        _ale("BeamRider", "Breakout", "Enduro", "Pong", "Qbert", "Seaquest", "SpaceInvaders"),
        (4092.0, 168.0, 470.0, 20.0, 1952.0, 1705.0, 581.0),
    ),
    "atari-57": Suite("the 57 games with published scores of a human", _ale(*ATARI_SCORES)),
    "minatar": Suite(
        "MinAtar's five games (Young and Tian 2019), in-graph",
        tuple(f"pgx:minatar-{game}" for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")),
    ),
}


def find(name: str) -> Suite:
    """A suite by its name. Raises FlatironsError with the nearest one."""
    if name in SUITES:
        return SUITES[name]
    near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise FlatironsError(f"there is no suite {name!r}: {hint}There are {', '.join(SUITES)}")


def human_normalised(task: str, score: float) -> float | None:
    """(score - random) / (human - random) for an Atari task of ALE, else None."""
    scores = ATARI_SCORES.get(task.removeprefix("ALE/").removesuffix("-v5")) if task.startswith("ALE/") else None
    return None if scores is None else (score - scores[0]) / (scores[1] - scores[0])


def table(name: str) -> str:
    """The suite as a table in text: per task random play, the human and the paper's agent where they are known."""
    suite = find(name)
    papers: Sequence[float | None] = suite.paper or [None] * len(suite.tasks)
    lines = [f"{name}: {suite.doc}", ""]
    known = any(task.startswith("ALE/") for task in suite.tasks)
    width = max(map(len, suite.tasks))
    if known:
        lines.append(f"  {'task':<{width}}  {'random':>10}  {'human':>10}" + (f"  {'paper':>8}" if suite.paper else ""))
    for task, paper in zip(suite.tasks, papers, strict=True):
        scores = ATARI_SCORES.get(task.removeprefix("ALE/").removesuffix("-v5"))
        numbers = f"  {scores[0]:>10,.1f}  {scores[1]:>10,.1f}" if scores else ""
        lines.append(f"  {task:<{width}}{numbers}" + (f"  {paper:>8,.0f}" if paper is not None else ""))
    return "\n".join(lines)
