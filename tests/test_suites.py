"""Suites: their tasks exist, their scores normalise, and the command says so."""

from __future__ import annotations

import pytest

from flatirons import envs
from flatirons.__main__ import main
from flatirons.envs import suites
from flatirons.types import FlatironsError


def test_the_games_of_a_suite_are_ales_games() -> None:
    from ale_py import roms

    known = {"".join(part.title() for part in rom.split("_")) for rom in roms.get_all_rom_ids()}
    assert set(suites.ATARI_SCORES) <= known and len(suites.ATARI_SCORES) == 57
    for suite in suites.SUITES.values():
        assert len(suite.paper) in (0, len(suite.tasks)) and len(set(suite.tasks)) == len(suite.tasks)
    assert set(suites.SUITES["minatar"].tasks) <= set(envs.names())
    assert envs.make(suites.SUITES["atari-7"].tasks[3], 1).spec.obs.shape == (4, 84, 84)


def test_human_normalised_scores() -> None:
    assert suites.human_normalised("ALE/Pong-v5", -20.7) == 0.0 and suites.human_normalised("ALE/Pong-v5", 14.6) == 1.0
    assert suites.human_normalised("ALE/Breakout-v5", 401.2) == pytest.approx((401.2 - 1.7) / 28.8)
    assert suites.human_normalised("CartPole-v1", 500.0) is None and suites.human_normalised("ALE/Adventure-v5", 1.0) is None


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite"]) == 0 and "atari-7" in capsys.readouterr().out
    assert main(["suite", "atari-7"]) == 0
    out = capsys.readouterr().out
    assert "ALE/SpaceInvaders-v5" in out and "1,668.7" in out and "581" in out and "flatirons train dqn ALE/BeamRider-v5" in out
    assert main(["suite", "minatar"]) == 0 and "pgx:minatar-freeway" in capsys.readouterr().out
    assert main(["suite", "atari7"]) == 2 and "did you mean atari-7?" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    with pytest.raises(FlatironsError, match=r"flatirons\[atari\]"):
        envs.demand_extra("ALE/Pong-v5")
