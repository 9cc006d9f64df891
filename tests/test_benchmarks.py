"""The benchmarks' result files and the arithmetic behind their verdicts. Nothing is timed or trained here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import figures, record, tables  # noqa: E402
from benchmarks.games import alphago, elo  # noqa: E402
from benchmarks.learning import pendulum_best, ppo_table1  # noqa: E402
from benchmarks.learning import run as learning  # noqa: E402
from benchmarks.learning.rows import ROWS  # noqa: E402
from benchmarks.learning.summary import bootstrap, held  # noqa: E402
from benchmarks.methods import ewc_dqn, ewc_permuted  # noqa: E402
from benchmarks.speed import (  # noqa: E402
    dqn_cartpole_sb3,
    num_envs,
    ppo_atari_sb3,
    ppo_cartpole_rejax,
    ppo_halfcheetah_sb3,
    trpo_sb3,
    versus,
)
from benchmarks.speed.dqn_pixels_sb3 import UPDATES  # noqa: E402
from benchmarks.speed.measure import measure  # noqa: E402
from flatirons import studies, systems  # noqa: E402
from flatirons.envs import make  # noqa: E402

HEADER = {"name", "command", "commit", "date", "machine", "versions"}
SPEED = HEADER | {
    "settings", "pairs", "ratio_median", "ratio_min", "ratio_max", "ours_compile_s", "peer_compile_s", "roof", "peer_name",
}  # fmt: skip
LEARNING = HEADER | {
    "system", "task", "total_steps", "seeds", "config", "returns", "means", "mean", "ci95", "reach", "aim", "reached", "seconds_per_seed",
}  # fmt: skip


def fake_measurement(python: Path, module: str, job: dict) -> dict:
    if module.endswith("roof"):
        return {"roof": {"matrix_product_gflops": 100.0, "environment_steps_per_second": 1e6}}
    speed = {"benchmarks.speed.ours": 300.0, "benchmarks.speed.peer_sb3": 100.0 if job["threads"] == 1 else 60.0}[module]
    return {"steps_per_second": speed + job["seed"], "compile_s": 1.5, "return_after": 20.0, "versions": {"python": "3"}}


def test_a_speed_result_has_the_agreed_fields_and_uses_the_peers_best_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(versus, "measurement", fake_measurement)
    args = argparse.Namespace(pairs=3, seconds=1.0, only="", out=tmp_path)
    settings = dqn_cartpole_sb3.SETTINGS["zoo"]
    versus.compare(
        "x", "benchmarks.speed.x", args, system="dqn", task="CartPole-v1", peer_task="CartPole-v1", settings=settings, sizes=(4, 2),
        peer_name="stable-baselines3", peer=(Path("python"), "benchmarks.speed.peer_sb3"), peer_threads=(None, 1),
    )  # fmt: skip
    result = json.loads((tmp_path / "x.json").read_text())
    assert result.keys() >= SPEED
    assert result["peer_threads"] == 1
    assert result["pairs"][1] == {"ours": 301.0, "peer": 101.0, "ratio": 301 / 101}
    assert (result["ratio_min"], result["ratio_median"], result["ratio_max"]) == (302 / 102, 301 / 101, 3.0)
    assert "`x`" in tables.speed([result])


def test_only_leaves_out_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(versus, "measurement", lambda *_: pytest.fail("nothing was to be measured"))
    args = argparse.Namespace(pairs=1, seconds=1.0, only="else", out=tmp_path)
    common = {"system": "ppo", "task": "t", "peer_task": "t", "settings": {}, "sizes": (1, 1), "peer_name": "p", "peer": (Path(), "m")}
    assert versus.compare("x", "m", args, **common) is None
    assert not list(tmp_path.iterdir())


def test_measure_counts_one_call_and_leaves_compiling_out(monkeypatch):
    now, calls = [0.0], []

    def turns(n: int) -> None:
        now[0] += 0.01 * n + (5.0 if not calls else 0.0)
        calls.append(n)

    monkeypatch.setattr("benchmarks.speed.measure.time.perf_counter", lambda: now[0])
    result = measure(turns, 32, seconds=2.0, started=0.0, warm_steps=100)
    assert calls[:2] == [1, 4]
    assert result["steps"] == calls[-1] * 32
    assert result["steps_per_second"] == pytest.approx(3200.0)
    assert result["compile_s"] == pytest.approx(5.0)
    assert 1.4 <= result["seconds"] <= 2.5


@pytest.mark.parametrize(
    ("system", "settings"),
    [("ppo", s) for m in (ppo_cartpole_rejax, ppo_halfcheetah_sb3) for s in m.SETTINGS.values()]
    + [("ppo", ppo_atari_sb3.SETTINGS), ("ppo", num_envs.SETTINGS)]
    + [("trpo", s) for _, _, s in trpo_sb3.SETTINGS.values()]
    + [("dqn", s) for s in dqn_cartpole_sb3.SETTINGS.values()],
)
def test_every_setting_of_a_comparison_is_a_field_of_ours(system, settings):
    config = systems.find(system)[0].Config
    assert settings.keys() <= {field.name for field in dataclasses.fields(config)}


def test_every_stage_of_alphago_can_begin():
    for system, _, settings in alphago.STAGES.values():
        module, known, _ = systems.find(system)
        preset = systems.choose_preset(module, alphago.TASK)
        config = module.Config(**(dict(module.PRESETS[preset].config) if preset else known) | settings)
        module.check(config, make(alphago.TASK, config.num_envs))


def test_every_result_of_a_method_or_game_is_told_of_its_presets_or_is_of_none():
    files = {path.stem for kind in ("games", "methods") for path in (ROOT / "benchmarks" / "results" / kind).glob("*.json")}
    assert files <= tables.TOLD.keys() | tables.NO_PRESETS, "say in benchmarks/tables.py which presets it is of"
    assert not tables.TOLD.keys() & tables.NO_PRESETS


def test_what_a_preset_is_expected_to_reach_is_of_its_own_settings():
    def row(task, mean, **config):
        return {
            "system": "dqn", "preset": "dqn-lunarlander", "task": task, "total_steps": 5, "config": config, "mean": mean,
            "means": [mean] * 2, "seeds": [0, 1], "ci95": [mean, mean], "seconds_per_seed": [3600.0],
        }  # fmt: skip

    recorded = json.loads(json.dumps(systems.dqn.PRESETS["dqn-lunarlander"].config)) | {"total_steps": 5}
    own, other = row("LunarLander-v3", 1.0, **recorded), row("LunarLander-v3", 2.0, **recorded | {"double": True})
    assert tables.other_settings(own) == {} and tables.other_settings(other) == {"double": True}
    told = json.loads(tables.measured([other, own]))["dqn-lunarlander"]
    assert told == {"expected": ["LunarLander-v3 at 5: 1 (2 seeds, 1 to 1)"], "hours": "1"}
    (line,) = json.loads(tables.measured([other]))["dqn-lunarlander"]["expected"]
    assert line == "LunarLander-v3, double True at 5: 2 (2 seeds, 2 to 2)"


def test_what_was_measured_of_methods_is_of_each_preset():
    told = {name: " ".join(entry["expected"]) for name, entry in json.loads((ROOT / tables.MEASURED).read_text()).items()}
    measured_too = {"ewc-dqn", "sgd-dqn", "maml-halfcheetah-direction", "maml-sinusoid-pretrained", "dqn-forager", "alphago-sl-othello"}
    assert measured_too <= told.keys()
    assert "below" not in told["maml-omniglot-laptop"] and "fine-tun" not in told["maml-sinusoid"] and "never" not in told["dqn-thompson"]


def test_what_was_measured_is_of_presets_there_are():
    presets = {
        name for module in (*systems.SYSTEMS, *studies.STUDIES) for name in (*module.PRESETS, systems.system_name(module))
    }  # or its defaults
    told = json.loads((ROOT / tables.MEASURED).read_text())
    assert {"ewc-mnist", "maml-sinusoid", "ppo-classic", "alphazero-othello"} <= told.keys() <= presets
    assert all(entry["expected"] for entry in told.values())


def test_flops_of_a_decision_by_hand():
    settings = {"hidden": [64, 64], "num_epochs": 20}
    forward = 2 * 2 * (4 * 64 + 64 * 64) + 2 * 64 * 3
    assert versus.flops_per_step("ppo", settings, 4, 2) == forward * 61


def test_flops_of_trpo_and_of_ppo_from_pixels_by_hand():
    settings = {"hidden": [64, 64], "cg_iterations": 10, "value_epochs": 5}
    tower = 2 * (4 * 64 + 64 * 64)
    pi, v = tower + 2 * 64 * 2, tower + 2 * 64
    assert versus.flops_per_step("trpo", settings, 4, 2) == (1 + 3 + 2 + 4 * 11) * pi + (2 + 3 * 5) * v
    forward, first = versus.forward_flops({"network": "nature"}, 0, 7)
    assert versus.flops_per_step("ppo", {"network": "nature", "num_epochs": 3}, 0, 6) == 3 * forward + 3 * (3 * forward - first)


def test_table_one_is_normalised_as_the_paper_says():
    rows = [{"episodes": 60, "episode_return": 1.0}, {"episodes": 0, "episode_return": None}]
    rows += [{"episodes": 50, "episode_return": 2.0}, {"episodes": 70, "episode_return": 5.0}]
    assert ppo_table1.last_episodes(rows) == pytest.approx((70 * 5 + 50 * 2) / 120)
    assert ppo_table1.last_episodes([{"episodes": 0, "episode_return": None}]) is None
    scores = {"none": {"a": [0.0, 10.0], "b": [-5.0, -3.0]}, "clip 0.2": {"a": [20.0, 15.0], "b": [-2.0, -1.0]}}
    found = ppo_table1.table(scores, {"a": 10.0, "b": -6.0})
    assert found["none"]["a"] == [-1.0, 0.0] and found["clip 0.2"] == {"a": [1.0, 0.5], "b": [pytest.approx(0.8), 1.0]}
    low, high = ppo_table1.interval(found["clip 0.2"], found["none"])
    assert 0 < low < high and ppo_table1.interval(found["clip 0.2"])[1] <= 1.0
    assert set(ppo_table1.SETTINGS) == set(ppo_table1.PAPER)
    for name, settings in ppo_table1.SETTINGS.items():
        systems.ppo.check(systems.ppo.Config(**{**systems.ppo.PRESETS["ppo-paper"].config, **settings}), make("jax:Pendulum-v1", 1)), name


def test_the_cost_of_environments_is_judged():
    rows = [{"num_envs": n, "steps_per_second": s, "program_bytes": b} for n, s, b in ((64, 10.0, 8), (256, 12.0, 20), (1024, 11.9, 80))]
    assert num_envs.verdict(rows) == {"speed_rises_or_stays": True, "memory_linear": True}
    rows[2] |= {"steps_per_second": 10.0, "program_bytes": 100}
    assert num_envs.verdict(rows) == {"speed_rises_or_stays": False, "memory_linear": False}


def test_ratings_by_hand():
    found = elo.ratings({("a", "b"): (75, 0, 25)}, "b")
    assert found["b"] == 0.0 and found["a"] == pytest.approx(400 * math.log10(75.5 / 25.5))
    chain = elo.ratings({("a", "b"): (60, 20, 20), ("c", "b"): (0, 0, 100)}, "b")  # each pair alone decides: no circle of matches
    assert chain["a"] == pytest.approx(400 * math.log10(70.5 / 30.5)) and chain["c"] == pytest.approx(400 * math.log10(0.5 / 100.5))
    low, high = elo.intervals({("a", "b"): (75, 0, 25)}, "b")["a"]
    assert low < found["a"] < high


def test_rules_of_the_bars():
    nine = [500.0] * 9 + [100.0]
    assert held("9 of 10", 475, nine, 0.0, 10)
    assert not held("10 of 10", 475, nine, 0.0, 10)
    assert not held("9 of 10", 475, [500.0] * 9, 0.0, 10), "a seed is missing"
    assert not held("9 of 10", 475, [500.0] * 17 + [0.0] * 3, 0.0, 10)
    assert held("every seed", 8, [8.0, 9.0, 8.5], 0.0, 3)
    assert not held("every seed", 8, [8.0, 9.0, 7.9], 99.0, 3)
    assert held("lower bound", 5, [0.0] * 5, 5.0, 5)
    with pytest.raises(ValueError, match="most of them"):
        held("most of them", 5, [6.0], 5.0, 1)


def test_bootstrap_is_repeatable_and_as_wide_as_theory():
    means = [float(i) for i in range(20)]
    low, high = bootstrap(means)
    assert (low, high) == bootstrap(means)
    deviation = (sum((x - 9.5) ** 2 for x in means) / 20 / 20) ** 0.5
    assert low == pytest.approx(9.5 - 1.96 * deviation, abs=0.2)
    assert high == pytest.approx(9.5 + 1.96 * deviation, abs=0.2)
    assert bootstrap([3.0]) == (3.0, 3.0)


def test_rows_name_what_exists_and_have_a_rule():
    for name, row in ROWS.items():
        systems.find(row.system)
        assert name.startswith(row.system)
        if row.reach is not None:
            assert held(row.reach_rule(), row.reach, [row.reach] * row.seeds, row.reach, row.seeds)
    assert ROWS["ppo-cartpole-host"].reach_rule() == "9 of 10"
    assert ROWS["ppo-halfcheetah"].reach_rule() == "every seed"
    assert ROWS["ppo-pendulum"].reach_rule() == "lower bound"


def test_a_learning_result_has_the_agreed_fields():
    config = {"preset": None, "env_options": {}, "config": {"gamma": 0.99}}
    seeds = [
        {"seed": i, "total_steps": 99_840, "commit": "c", "versions": {}, "returns": [500.0, 480.0], "training_return": 1.0, "seconds": 2.0}
        | {"config": config}
        for i in range(10)
    ]
    result = learning.collect(record.header("ppo-cartpole-host", "m"), ROWS["ppo-cartpole-host"], seeds)
    assert result.keys() >= LEARNING
    assert result["means"] == [490.0] * 10
    assert result["reached"] and not result["aim_reached"]
    json.dumps(result, allow_nan=False)
    assert "`ppo-cartpole-host`" in tables.learning([result])


def test_a_row_without_a_bar_and_its_curve(tmp_path):
    rows = [
        {"step": step, "episodes": step % 2, "episode_return": 3.0 if step % 2 else None, "q_value": step / 10} for step in range(1, 101)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = learning.curve(tmp_path, 100, points=4)
    assert [p["step"] for p in points] == [25, 50, 75, 100] and {p["episode_return"] for p in points} == {3.0}
    assert points[0]["q_value"] == pytest.approx(sum(range(1, 25)) / 24 / 10)
    assert learning.curve(tmp_path / "absent", 100) == []
    name = "dqn-minatar-breakout-no-replay"
    seed = {"total_steps": 100, "commit": "c", "versions": {}, "returns": [1.0], "training_return": 1.0, "seconds": 2.0}
    seeds = [seed | {"seed": i, "config": {"preset": None, "env_options": {}, "config": {}}} for i in range(3)]
    result = learning.collect(record.header(name, "m"), ROWS[name], seeds, {"0": points})
    assert result["reached"] is None and result["curves"]["0"] == points
    assert "**no**" not in tables.learning([result])


def test_flops_of_the_papers_networks():
    # By hand: Mnih 2015's layers, 4 x 84 x 84 in, 6 actions out.
    layers = [20 * 20 * 32 * 256, 9 * 9 * 64 * 512, 7 * 7 * 64 * 576, 3136 * 512, 512 * 6]
    forward, first = versus.forward_flops({"network": "nature"}, 0, 6)
    assert forward == 2 * sum(layers) and first == 2 * layers[0]
    settings = {"network": "nature", "batch_size": 32, "double": True}
    assert versus.update_flops(settings, 0, 6) == 32 * (5 * forward - first)
    assert versus.forward_flops({"hidden": [64, 64]}, 4, 2) == (2 * (4 * 64 + 64 * 64 + 64 * 2), 2 * 4 * 64)


def test_seed_lists_and_fingerprints():
    assert learning.seed_list("0-2,7") == [0, 1, 2, 7]
    row = ROWS["ppo-hopper"]
    assert learning.fingerprint(row, 20) == learning.fingerprint(row, 20)
    assert learning.fingerprint(row, 20) != learning.fingerprint(dataclasses.replace(row, budget=1), 20)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").rglob("*.json")), ids=lambda p: p.stem)
def test_committed_results_have_the_agreed_fields(path):
    result = json.loads(path.read_text())
    kinds = {
        "learning": LEARNING,
        "tabular": HEADER | {"settings", "rows", "reached", "seconds"},
    }
    others = {
        "startup": {"medians"},
        "num_envs": {"rows", "reached"},
        "accelerator": {"rows", "device"},
        "a3c_workers": {"throughput", "time_to_score"},
        "ppo_table1": {"rows", "scores", "reached"},
        "estimates": {"runs"},
        "pendulum_best": {"seeds", "returns", "means", "ci95"},
        "maml_sinusoid_torch": {"pairs", "ratio_median", "settings"},
        "dqn_replay_memory": {"frames", "replay_gb", "peak_gb", "above_replay_gb"},
        **{name: {"milliseconds", "milliseconds_at_roof", "ratio_to_roof"} for name in (*UPDATES, "sac_update_halfcheetah")},
    }
    if {"methods", "games"} & set(path.parts):
        assert result.keys() >= HEADER - {"versions"} and result.keys() & {"rows", "verdicts", "reached", "searches"}
    elif path.stem == "sac_and_sb3":  # two programs, each with versions of its own
        assert result.keys() >= HEADER - {"versions"} | {"settings", "seeds"}
        assert all(side.keys() >= {"at", "seconds", "versions"} for side in result["sides"].values())
    else:
        wanted = kinds.get(path.parent.name, HEADER | others[path.stem] if path.stem in others else SPEED)
        assert result.keys() >= wanted
    assert result["name"] == path.stem


def made_up_ewc():
    """Results of EWC's benchmarks, from made-up scores by hand."""
    rows = {"sgd": (0.9, 0.5, 0.9), "joint": (0.9, 0.9, 0.9), "ewc": (0.9, 0.8, 0.9), "online": (0.9, 0.81, 0.9), "l2": (0.9, 0.7, 0.8)}
    scores = {mode: {"0": [[a, None], [b, c]]} for mode, (a, b, c) in rows.items()}
    permuted = ewc_permuted.collect({}, scores, {})
    returns = {
        "sgd": [{"x": 0.0, "y": 9.0}], "ewc": [{"x": 3.0, "y": 12.0}], "l2": [{"x": 1.0, "y": 5.0}], "separate": [{"x": 4.0, "y": 10.0}],
    }  # fmt: skip
    # Two visits of each game, 10 decisions long; the row at 5 is none at a visit's end.
    lines = {
        "sgd": [(9.0, 9.0), (4.0, 1.0), (1.0, 9.0), (3.0, 2.0), (0.0, 9.0)],
        "ewc": [(0.0, 0.0), (4.0, 4.0), (3.0, 10.0), (4.0, 8.0), (3.0, 12.0)],
        "l2": [(0.0, 0.0)] + 4 * [(1.0, 5.0)], "separate": [(0.0, 0.0), (3.0, 2.0), (3.0, 9.0), (4.0, 9.0), (4.0, 10.0)],
    }  # fmt: skip
    steps = (5, 10, 20, 30, 40)
    evaluations = {
        mode: [[{"step": step, "x": x, "y": y} for step, (x, y) in zip(steps, rows, strict=True)]] for mode, rows in lines.items()
    }
    return permuted, ewc_dqn.collect({}, returns, {"evaluations": evaluations}, visit=10)


def test_modes_of_games_in_turn_are_kept_while_their_settings_are_the_presets(tmp_path):
    study, path = ewc_dqn.ewc_dqn, tmp_path / "ewc_dqn.json"
    visits = {"visit_steps": ewc_dqn.VISIT, "total_steps": 6 * ewc_dqn.VISIT}
    settings = {mode: vars(study.Config(**study.PRESETS[name].config | visits)) for mode, name in ewc_dqn.MODES.items()}
    # One that came later stands at its default, and separate agents are held by nothing.
    del settings["l2"]["own_anchor"]
    settings["separate"]["strength"] = 7.0
    parts = {what: {mode: [1.0] for mode in settings} for what in ("returns", "evaluations", "seconds")}
    record.write(path, {"commit": "new", "kept": {"l2": "old"}, "settings": settings, **parts})
    assert [ewc_dqn.of_before(mode, path)["commit"] for mode in ("l2", "separate")] == ["old", "new"]
    assert ewc_dqn.of_before("l2", path)["returns"] == [1.0]
    settings["l2"]["learning_rate"] = 7.0
    record.write(path, {"commit": "new", "settings": settings, **parts})
    with pytest.raises(SystemExit, match=r"learning_rate of .* no longer the preset's; train it again"):
        ewc_dqn.of_before("l2", path)
    with pytest.raises(SystemExit, match="train it instead"):
        ewc_dqn.of_before("l2", tmp_path / "none.json")


def test_the_gap_closed_and_the_sums_of_scores_by_hand():
    permuted, games = made_up_ewc()
    assert permuted["modes"]["ewc"]["gap_closed"] == pytest.approx(0.75) and permuted["modes"]["joint"]["gap_closed"] == 1.0
    assert permuted["modes"]["ewc"]["forgetting"] == pytest.approx(0.1)
    assert permuted["verdicts"] == {
        "gap_closed_reached": False, "gap_closed_aim": False, "online_within_a_point": True, "ewc_above_l2": True,
    }  # fmt: skip
    assert [row["reached"] for row in permuted["rows"]] == [False, True, True]
    assert permuted["rows"][0]["measured"] == "75.0% (75.0% to 75.0%)" and permuted["rows"][2]["measured"].startswith(
        "85.0% / 75.0% / 70.0%"
    )
    assert games["sums"] == {"sgd": [0.9], "ewc": [1.75], "l2": [0.75], "separate": [2.0]}
    assert games["ewc_minus_sgd"] == pytest.approx(0.85)
    assert [row["measured"] for row in games["rows"]] == ["0.85 (0.85 to 0.85)", "1.75 / 0.75 / 0.90 / 2.00"]
    assert games["verdicts"] == {"above_sgd_reached": True, "above_l2_reached": True, "aim": False}


def test_what_games_in_turn_forget_and_hand_on_by_hand():
    """Scores are returns over 4 and 10, clipped. A fresh network gets 2 / 10 in y, as the separate agents' row of x's first visit says."""
    found = made_up_ewc()[1]["transfer"]
    # sgd, [x, y] by visit: [1, 0.1], [0.25, 0.9], [0.75, 0.2], [0, 0.9]
    by_hand = {
        "sgd": (0.75, -0.75, -0.1, 1.0, -1.0),
        # ewc: [1, 0.4], [0.75, 1], [1, 0.8], [0.75, 1]
        "ewc": (0.25, -0.25, 0.2, 0.25, -0.25),
        "l2": (0.0, 0.0, 0.3, 0.0, 0.0),
        # separate: [0.75, 0.2], [0.75, 0.9], [1, 0.9], [1, 1]
        "separate": (0.0, 0.0, 0.0, 0.0, 0.25),
    }
    names = ("forgetting", "backward_transfer", "forward_transfer", "final_forgetting", "final_backward_transfer")
    for mode, values in by_hand.items():
        assert found[mode] == {name: pytest.approx([value], abs=1e-6) for name, value in zip(names, values, strict=True)}, mode
    assert made_up_ewc()[1]["transfer_means"]["sgd"]["final_forgetting"] == pytest.approx(1.0)


def test_positions_of_whole_games_are_told_apart_by_game():
    """Two games side by side on a board of five cells, of which the first ends after two plies and the second passes; then another turn."""

    def seen(mine, theirs):
        return np.stack([np.isin(np.arange(5), cells) for cells in (mine, theirs)], axis=-1)[None]

    rows = [
        (0, seen([1], [2])), (1, seen([1], [2])),
        # Cell 3 turns 2; cell 0 turns nothing.
        (0, seen([], [1, 2, 3])), (1, seen([2], [0, 1])),
        # The first has ended; the second passed, then took cell 3.
        (1, seen([0, 1], [2])), (1, seen([2], [0, 1, 3])),
        (2, seen([1], [2])), (2, seen([], [1, 2, 3])),
    ]  # fmt: skip
    obs = np.stack([row for _, row in rows])
    assert alphago.games_of(obs).tolist() == [game for game, _ in rows]
    with pytest.raises(ValueError, match="position 2 goes on from none"):
        alphago.games_of(obs[[0, 1, 5]])
    errors, games = np.array([1.0, 1.0, 1.0, 4.0]), np.array([0, 0, 0, 1])
    means = alphago.resampled(errors, games, np.random.default_rng(0))
    # Either game twice, or both: (3 + 4) / 4.
    assert set(np.round(means, 6)) == {1.0, 1.75, 4.0}


def test_what_a_decision_is_worth_is_what_the_simulator_gives_and_what_is_left():
    env = gymnasium.make("Pendulum-v1").unwrapped
    rng = np.random.default_rng(0)
    nothing = jnp.zeros((pendulum_best.ANGLES, pendulum_best.SPEEDS))
    for _ in range(20):
        angle, speed, torque = rng.uniform([-4.0, -8.0, -2.0], [4.0, 8.0, 2.0])
        env.reset(seed=0)
        env.state = np.array([angle, speed])
        _, reward, *_ = env.step(np.array([torque]))
        np.testing.assert_allclose(pendulum_best.worth(nothing, angle, speed, torque), reward, atol=1e-4)
    # Read between the grid's points, also across the seam at the bottom.
    angle, speed = np.meshgrid(np.linspace(-np.pi, np.pi, pendulum_best.ANGLES), np.linspace(-8, 8, pendulum_best.SPEEDS), indexing="ij")
    table = np.cos(angle) + speed
    for angle, speed in ((0.3, 1.0), (np.pi - 1e-4, -8.0), (np.pi + 1e-4, 8.0), (-7.0, 0.123)):
        assert abs(pendulum_best.read(table, *jnp.array([angle, speed])) - (np.cos(angle) + speed)) < 1e-4


def test_rows_beside_the_best_there_is():
    best = {"name": "pendulum_best", "task": "Pendulum-v1", "seeds": [0, 1, 2], "means": [-1.0, -2.0, -3.0], "date": "2026-01-01"}
    best |= {"machine": {"cpu": "a", "cores": 1}, "commit": "abc"}
    row = {"name": "sac-pendulum", "task": "Pendulum-v1", "seeds": [1, 2, 9], "means": [-4.0, -5.0, -100.0], "reach": -160}
    other = row | {"name": "dqn-pendulum", "task": "discrete:Pendulum-v1"}
    text = tables.best(best, [row, other])
    assert "| `sac-pendulum` | 2 | -4.5 (-5 to -4) | -2.5 (-3 to -2) | 2 | -160.0 |" in text and "dqn" not in text


def test_figures_are_drawn_from_result_files_alone(tmp_path):
    """Every figure of the docs from made-up results of the shape the benchmarks write, and none where a file is absent."""
    curve = [{"step": step, "episode_return": None if step == 10 else 1.0, "q_value": 0.5} for step in (10, 20, 30)]
    row = {
        "curves": {"0": curve, "1": curve},
        "system": "x",
        "preset": None,
        "task": "y",
        "reach": 1.0,
        "values": [{"discounted_return": 2.0}] * 2,
    }
    for name in ROWS:
        record.write(tmp_path / "learning" / f"{name}.json", row)
    points = [{"step": 10, "held_out_max_q": 0.1, "episode_return": None}, {"step": 20, "held_out_max_q": 0.2, "episode_return": 1.0}]
    record.write(tmp_path / "curves" / "max_q.json", {"curves": {"dqn-minatar": points}, "states": 5})
    run = {"title": "x on y", "steps": 10, "estimate": [0.1, 0.2], "return": [0.0, 0.3]}
    record.write(tmp_path / "curves" / "estimates.json", {"runs": [run, run]})
    shown = [{"setting": s, "score": 0.5, "ci95": [0.2, 0.7], "paper": p} for s, p in ppo_table1.PAPER.items()]
    record.write(tmp_path / "curves" / "ppo_table1.json", {"rows": shown})
    side = {"curve": [[1000, 10.0, -20.0], [2000, 20.0, -19.0]]}
    raced = {
        "task": "x",
        "score_task": "y",
        "score": -17,
        "time_to_score": [{"method": m, "one": side, "two": side} for m in ("a3c", "async-q")],
    }
    record.write(tmp_path / "speed" / "a3c_workers.json", raced)
    lines = {"double-q-learning": [5.0] * 300, "q-learning": [50.0] * 300}
    record.write(tmp_path / "tabular" / "tabular-bias.json", {"percent_left": lines})
    for name, found in zip(("ewc_permuted", "ewc_dqn"), made_up_ewc(), strict=True):
        record.write(tmp_path / "methods" / f"{name}.json", found)
    curve = {"year": [1990, 1991], "mean": [350, 351], "deviation": [1, 2], "data": [[[1990, 350]], [[1991, 351]]], "learned_until": 1990.5}
    turned = {"angles": [0, 30], "probabilities": [[[0.1] * 10] * 2] * 3, "pictures": [[[0.0] * 4] * 4] * 2}
    arms = {"thompson": {"mean_reward_of_25_batches": [[0.1, 0.2, 0.3]] * 2}, "greedy": {"mean_reward_of_25_batches": [[0.1, 0.2]] * 2}}
    sampled = {"arms": arms, "settings": {"threshold": 1.0}}
    after = {"0": 3.0, "1": 1.0}
    adapted = {
        "scores": [{"mse_after": after, "ci95": {"0": 0.1, "1": 0.1}}],
        "fine_tuned": {"0.1": after, "1": {"0": 3.0, "1": float("nan")}},
    }
    record.write(tmp_path / "methods" / "maml_sinusoid.json", adapted)
    for name, found in (("co2", curve), ("rotated-digit", turned), ("thompson", sampled)):
        record.write(tmp_path / "methods" / f"mc-dropout-{name}.json", found)
    rated = [{"name": "mcts-100", "elo": -200.0, "ci95": [-250.0, -150.0]}] + [
        {"name": name, "moves": 20, "minutes": 5.0, "simulations": n, "elo": 10.0 * n, "ci95": [10.0 * n - 50, 10.0 * n + 50]}
        for name, n in (("20 moves", 30), ("0 simulations", 0), ("100 simulations", 100))
    ]
    record.write(tmp_path / "games" / "elo_othello.json", {"rows": rated})
    won = {"points": 0.6, "ci95": [0.55, 0.65]}
    record.write(tmp_path / "games" / "alphago.json", {"lines": {"lambda_0": won, "lambda_1": won}})
    for name, draw in figures.ALL.items():
        draw(tmp_path, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    with pytest.raises(figures.Missing, match="tabular-bias"):
        figures.maximisation_bias(tmp_path / "empty", tmp_path / "none.png")
