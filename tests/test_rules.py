"""The rules: perft against the published counts, and random games beside other engines' rules (`referees.py`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.games.perft import KIWIPETE, PUBLISHED, perft
from flatirons.envs import games


@pytest.mark.parametrize(("position", "depth"), [("", 3), (KIWIPETE, 2)])
def test_perft_of_chess(position: str, depth: int) -> None:
    # One position at a time, by the step that is compiled for other tests too. Shogi's takes too long to compile here: see
    # benchmarks/games/perft.py.
    assert perft(games.make("chess"), position, depth, width=1) == PUBLISHED["chess", position][:depth]


def test_other_engines_agree() -> None:
    """In a process of their own: a fault in the memory of somebody's C++ would end the tests beside it."""
    home = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", str(home / "referees.py")]
    done = subprocess.run(command, cwd=home.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    if "passed" not in done.stdout:
        pytest.skip("neither OpenSpiel nor cshogi is installed: pip install 'flatirons[referees]'")
