"""Going on: a run stopped and resumed equals the uninterrupted one, signals save first, and kill -9 never loses a run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from test_run import CARTPOLE, STUB, Lengths, assert_equal, go

import flatirons as fi
from flatirons import envs
from flatirons.run import checkpoint, cli, folder, handle, job, loop, report, train
from flatirons.types import FlatironsError

OFF_POLICY = {
    "num_envs": 2, "train_every": 8, "gradient_steps": 2, "batch_size": 4, "buffer_size": 64, "learning_starts": 16, "hidden": (8,),
    "total_steps": 320,
}  # fmt: skip
PENDULUM = "jax:Pendulum-v1"
# By preset or system: a task in-graph, and settings; half of total_steps is a whole number of turns.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": (CARTPOLE, {"num_envs": 2, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden": (8,), "total_steps": 320}),
    "dqn": (CARTPOLE, OFF_POLICY),
    # Noise and random actions that end in the second half, a policy that lags behind, decisions of the parameters before.
    "ddpg": (PENDULUM, OFF_POLICY | {"noise": "ou", "twin": True, "policy_delay": 2, "random_steps": 176}),
    "sac": (PENDULUM, OFF_POLICY | {"random_steps": 176, "overlap": True, "policy_delay": 3}),
    "a3c": (CARTPOLE, {"num_envs": 4, "actor_learners": 2, "num_steps": 8, "lstm": 4, "hidden": (8,), "total_steps": 320}),
    "async-sarsa": (
        CARTPOLE,
        {
            "num_envs": 4, "actor_learners": 2, "num_steps": 8, "network": "mlp", "hidden": (8,), "target_every": 96, "epsilon_steps": 200,
            "total_steps": 320,
        },
    ),
    "trpo": (
        PENDULUM,
        {
            "num_envs": 2, "num_steps": 8, "value_minibatches": 2, "hidden": (8,), "normalise_obs": True, "normalise_reward": True,
            "anneal_delta": True, "total_steps": 320,
        },
    ),
    "reinforce": (PENDULUM, {"num_envs": 2, "num_steps": 80, "hidden": (8,), "total_steps": 960}),
}  # fmt: skip


def same_rows(a: Any, b: Any) -> None:
    """The same reports, whatever the lengths of the stretches: the last one at the same step, the episodes the same in number."""
    assert a.metrics[-1]["step"] == b.metrics[-1]["step"]
    assert sum(row["episodes"] for row in a.metrics) == sum(row["episodes"] for row in b.metrics)


def left_at_half(whole, half, step):
    """A copy of a run's folder as a kill would have left it: the checkpoint at `step` its newest."""
    shutil.copytree(whole, half)
    (half / "summary.json").unlink()
    checkpoints = sorted((half / "checkpoints").glob("step_*"))
    assert len(checkpoints) > 1
    for each in checkpoints:
        if int(each.name.split("_")[-1]) > step:
            shutil.rmtree(each)


@pytest.mark.parametrize("system", SETTINGS)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, system):
    """2N in one go, against what was on the disk after N of them and N more from there: as if killed just before the end."""
    task, settings = SETTINGS[system]
    total = settings["total_steps"]
    whole = fi.train(system, task, out=tmp_path / "whole", checkpoint_every=total // 2, quiet=True, **settings)
    left_at_half(tmp_path / "whole", tmp_path / "half", total // 2)
    resumed = fi.resume(tmp_path / "half", quiet=True)
    assert resumed.step == whole.step == total
    assert_equal(whole._state, resumed._state)
    same_rows(whole, resumed)
    assert_equal(fi.load(tmp_path / "half").actor, fi.load(tmp_path / "whole").actor)


def test_vmapped_seeds_resume_as_a_whole(tmp_path):
    whole = go(tmp_path, name="whole", seeds=2, total_steps=128)
    half = go(tmp_path, name="half", seeds=2, total_steps=128, stop_at=64)
    with pytest.raises(FlatironsError, match="one seed of a run that was trained as one program; resume"):
        fi.resume(half.path / "seed_1", system=STUB)
    resumed = fi.resume(half.path, system=STUB, quiet=True)
    assert_equal(whole._state, resumed._state)
    for a, b in zip(whole.runs, resumed.runs, strict=True):
        assert_equal(a.actor, b.actor)
        same_rows(a, b)


def test_evaluations_go_on_as_if_nothing_happened(tmp_path):
    settings = {"total_steps": 128, "eval_every": 24, "eval_episodes": 2}
    whole = go(tmp_path, name="whole", **settings)
    half = go(tmp_path, name="half", stop_at=56, **settings)
    resumed = fi.resume(half.path, system=STUB, quiet=True)
    scores = [[(row["step"], row["returns"]) for row in run.evaluations] for run in (whole, resumed)]
    assert scores[0] == scores[1] and [step for step, _ in scores[0]] == [24, 48, 72, 96, 120, 128]
    summaries = [json.loads((run.path / "summary.json").read_text())["best"] for run in (whole, resumed)]
    assert summaries[0] == summaries[1] == max(row["mean"] for row in whole.evaluations)


@pytest.mark.parametrize("cut", [160, 320])
def test_a_signal_gives_up_an_evaluation_and_the_resume_makes_it(tmp_path, cut):
    """At once, not after its last episode; and what was evaluated in the end is what would have been."""
    reports, decisions = [], []

    class Interrupting(gymnasium.Wrapper):
        def step(self, action):
            decisions.extend([action] if reports else [])  # not while the door looks at the environment
            if len(decisions) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().step(action)

    def evaluating():
        return Interrupting(gymnasium.make("CartPole-v1"))

    def watch(run, row):
        reports.extend([row] if row["step"] == cut else [])

    settings = {**SETTINGS["ppo"][1], "eval_every": 160, "eval_episodes": 2, "quiet": True}
    with pytest.raises(loop.Interrupted):
        fi.train("ppo", "CartPole-v1", out=tmp_path / "cut", eval_env=evaluating, callbacks=[watch], **settings)
    run = fi.load(tmp_path / "cut")
    assert run.step == cut and [row["step"] for row in run.evaluations] == [160][: cut // 320] and len(decisions) < 2 * 8
    resumed = fi.resume(tmp_path / "cut", eval_env=evaluating, quiet=True)
    whole = fi.train("ppo", "CartPole-v1", out=tmp_path / "whole", eval_env=evaluating, **settings)
    assert [row["step"] for row in resumed.evaluations] == [row["step"] for row in whole.evaluations] == [160, 320]
    assert resumed.evaluations[0]["returns"] == whole.evaluations[0]["returns"]
    # On a host only what came before the cut is the same; at the end it is all.
    assert cut == 160 or resumed.evaluations[1]["returns"] == whole.evaluations[1]["returns"]


def test_the_best_policy_outlives_a_resume(tmp_path, monkeypatch):
    means = iter([5.0, 9.0, 7.0, 8.0])
    monkeypatch.setattr(loop.evaluate, "evaluate", lambda *a: {"episodes": 1, "std": 0.0, "min": 0.0, "max": 0.0, "mean": next(means)})
    run = go(tmp_path, total_steps=64, eval_every=16, stop_at=32)
    best = fi.load(run.path, system=STUB).actor
    fi.resume(run.path, system=STUB, quiet=True)
    assert json.loads((run.path / "summary.json").read_text())["best"] == 9.0
    assert_equal(checkpoint.load_policy(run.path / "policy_best", best).tree, best)


def test_a_run_of_another_version_names_it(tmp_path):
    run = go(tmp_path, total_steps=64, stop_at=32)
    record = json.loads((run.path / "config.json").read_text()) | {"versions": {"flatirons": "0.0.7"}, "git_commit": "c0ffee" * 6}
    job.write_record(run.path, {**record, "config": {**record["config"], "momentum": 0.9}})
    with pytest.raises(
        FlatironsError, match=r"trained by Flatirons 0\.0\.7 .*commit c0ffeec0ff\), whose .* had momentum, which this one has not"
    ):
        fi.resume(run.path, system=STUB)
    del record["options"]
    job.write_record(run.path, record)
    with pytest.raises(FlatironsError, match=r"lacks what this version reads: it was written by Flatirons 0\.0\.7"):
        fi.resume(run.path, system=STUB)


def test_lines_past_the_checkpoint_are_cut(tmp_path):
    run = go(tmp_path, total_steps=128, stop_at=64)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with open(run.path / name, "a") as file:
            file.write('{"step": 64, "kept": 1}\n{"step": 72, "mean": 1.0}\n{"step": 80, "me')
    resumed = fi.resume(run.path, system=STUB, quiet=True, stop_at=72)
    assert [row["step"] for row in resumed.metrics[-2:]] == [64, 72] and "loss" in resumed.metrics[-1]
    assert [row["step"] for row in resumed.evaluations] == [64]


def test_a_finished_run_says_so_and_can_be_extended(tmp_path, capsys):
    run = go(tmp_path, total_steps=64)
    again = fi.resume(run.path, system=STUB)
    assert "is finished: 64 of 64 decisions" in capsys.readouterr().out and again.step == 64
    assert fi.resume(run.path, system=STUB, total_steps=96, quiet=True).step == 96
    assert fi.load(run.path, system=STUB).config.total_steps == 96
    with pytest.raises(FlatironsError, match="total_steps=100 is not a whole number of turns"):
        fi.resume(run.path, system=STUB, total_steps=100)
    with pytest.raises(FlatironsError, match="stop_at=96 lies behind the checkpoint at 96"):
        fi.resume(run.path, system=STUB, total_steps=128, stop_at=96)


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path, capfd):
    run = go(tmp_path, total_steps=128, checkpoint_every=32, stop_at=64)
    newest = sorted((run.path / "checkpoints").glob("step_*"))[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 4
    newest.write_bytes(bytes(data))
    resumed = fi.resume(run.path, system=STUB, quiet=True)
    assert "WARNING" in (said := capfd.readouterr().err) and newest.parent.name in said
    assert_equal(resumed._state, go(tmp_path, name="whole", total_steps=128)._state)
    for file in (run.path / "checkpoints").glob("step_*/*"):
        file.write_bytes(b"nothing")
    with pytest.raises(FlatironsError):
        fi.resume(run.path, system=STUB)


def test_host_resume_says_what_is_lost_and_starts_new_episodes(tmp_path, capsys, monkeypatch):
    marked = []
    monkeypatch.setattr(STUB, "interrupted", lambda state: marked.append(int(state.updates)) or state, raising=False)
    run = go(tmp_path, "CartPole-v1", total_steps=800, stop_at=400, quiet=False)
    assert "environment's inner state cannot be saved" in capsys.readouterr().out and marked == []
    resumed = fi.resume(run.path, system=STUB)
    assert "left out of the statistics" in capsys.readouterr().out
    assert marked == [50] and resumed.step == 800
    # Two environments of CartPole: of the steps of each half only those of episodes that ended count.
    halves = [[row for row in resumed.metrics if low < row["step"] <= high] for low, high in ((0, 400), (400, 800))]
    for half in halves:
        assert 300 < sum(row["episodes"] * (row["episode_length"] or 0) for row in half) <= 400


def test_host_seeds_resume_each(tmp_path):
    group = go(tmp_path, "CartPole-v1", seeds=2, total_steps=64, stop_at=32)
    assert [run.step for run in group.runs] == [32, 32]
    assert [run.step for run in fi.resume(group.path, system=STUB, quiet=True).runs] == [64, 64]


def test_a_lost_seed_of_one_program_is_said_and_mended(tmp_path, capfd):
    group = go(tmp_path, seeds=3, total_steps=64, stop_at=32)
    (group.path / "seed_1" / "config.json").unlink()
    shutil.rmtree(group.path / "seed_2")
    assert [run.path.name for run in fi.load(group.path, system=STUB).runs] == ["seed_0"]
    assert f"seed_1, seed_2 of the 3 seeds of {group.path} are missing or not begun, and left out here" in capfd.readouterr().err
    assert report.read(group.path, "loss").path == group.path and "are missing or not begun" in capfd.readouterr().err
    assert [run.step for run in fi.resume(group.path, system=STUB, quiet=True).runs] == [64, 64, 64]
    said = capfd.readouterr().err
    assert all(f"seed_{i}/config.json was missing or damaged; it was written anew" in said for i in (1, 2)) and "seed_0/config" not in said
    assert [run.step for run in fi.load(group.path, system=STUB).runs] == [64, 64, 64] and capfd.readouterr().err == ""
    # A run that has ended is mended as well.
    shutil.rmtree(group.path / "seed_1")
    fi.resume(group.path, system=STUB, quiet=True)
    assert "seed_1/config.json was missing" in capfd.readouterr().err
    assert [run.step for run in fi.load(group.path, system=STUB).runs] == [64, 64, 64]


def test_nothing_of_a_seed_whose_config_is_gone_gets_into_the_next_run(tmp_path):
    group = go(tmp_path, seeds=2, total_steps=64)
    (group.path / "seed_1" / "config.json").unlink()
    fresh = go(tmp_path, seeds=2, total_steps=64, overwrite=True)
    assert [row["step"] for row in fresh.runs[1].metrics] == [row["step"] for row in fresh.runs[0].metrics]


def test_a_host_seed_that_cannot_go_on_is_kept_and_holds_no_other_back(tmp_path):
    group = go(tmp_path, "CartPole-v1", seeds=3, total_steps=64, stop_at=32)
    shutil.rmtree(group.path / "seed_1" / "checkpoints")
    before = (group.path / "seed_1" / "metrics.jsonl").read_bytes()
    with pytest.raises(FlatironsError, match=r"^seed 1 failed: .*seed_1 was trained and its checkpoints are gone.*the others are kept"):
        fi.resume(group.path, system=STUB, quiet=True)
    assert (group.path / "seed_1" / "metrics.jsonl").read_bytes() == before
    assert [fi.load(group.path / f"seed_{i}", system=STUB).step for i in range(3)] == [64, 32, 64]
    shutil.rmtree(group.path / "seed_1")
    assert [run.step for run in fi.resume(group.path, system=STUB, quiet=True).runs] == [64, 64, 64]


@pytest.mark.parametrize("damage", ["lost", "edited"])
def test_the_config_of_a_group_on_a_host_is_found_with_its_seeds(tmp_path, capfd, damage):
    group = go(tmp_path, "CartPole-v1", seeds=2, seed=3, total_steps=64, stop_at=32)
    config = group.path / "config.json"
    whole = json.loads(config.read_text())
    if damage == "lost":
        config.unlink()
    else:
        config.write_text(config.read_text().replace('"total_steps": ', '"total_steps": 6'))
    assert cli.existing_run(str(group.path)) == group.path
    assert [run.step for run in fi.resume(group.path, system=STUB, quiet=True).runs] == [64, 64]
    assert "the copy in the seeds was put back" in capfd.readouterr().err
    again = json.loads(config.read_text())
    assert all(again[name] == whole[name] for name in ("seed", "seeds", "vmapped", "config"))


def test_damaged_lines_of_metrics_are_said_as_they_are_dropped(tmp_path, capfd):
    run = go(tmp_path, total_steps=64, stop_at=32)
    place = run.path / "metrics.jsonl"
    lines = place.read_text().splitlines()
    place.write_text("\n".join([lines[0][:20], *lines[1:], '{"step": 9']))
    fi.resume(run.path, system=STUB, quiet=True)
    assert f"1 line of {place} cannot be read and is dropped" in capfd.readouterr().err
    assert [row["step"] for row in run.metrics][: len(lines)] == [*(json.loads(line)["step"] for line in lines[1:]), 40]


def test_host_seeds_that_are_there_already_are_passed_over(tmp_path):
    group = go(tmp_path, "CartPole-v1", seeds=2, total_steps=64, stop_at=32)
    fi.resume(group.path / "seed_0", system=STUB, quiet=True, stop_at=48)
    before = (group.path / "seed_0" / "metrics.jsonl").read_bytes()
    assert [run.step for run in fi.resume(group.path, system=STUB, quiet=True, stop_at=48).runs] == [48, 48]
    assert (group.path / "seed_0" / "metrics.jsonl").read_bytes() == before


def test_an_interrupted_group_names_itself_and_starts_its_later_seeds_warm(tmp_path, monkeypatch):
    first = go(tmp_path, "CartPole-v1", name="first", total_steps=64)
    monkeypatch.chdir(tmp_path)

    def interrupt(run: fi.Run, row: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        go(tmp_path, "CartPole-v1", name="group", seeds=2, total_steps=64, from_run="first", callbacks=[interrupt])
    assert str(caught.value).endswith(f"go on with `flatirons resume {tmp_path / 'group'}`") and vars(caught.value)["exit_status"] == 130
    assert not (tmp_path / "group" / "seed_1").exists()
    monkeypatch.chdir("/")
    fi.resume(tmp_path / "group", system=STUB, quiet=True)
    assert json.loads((tmp_path / "group" / "seed_1" / "config.json").read_text())["from_run"] == str(first.path)


def test_an_instance_is_evaluated_on_a_copy_after_a_resume_too(tmp_path):
    run = go(tmp_path, Lengths(), eval_every=32, eval_episodes=2, stop_at=32)
    assert fi.resume(run.path, env=Lengths(), system=STUB, quiet=True).step == 64
    assert len(fi.load(run.path, system=STUB).evaluations) == 2


# ----------------------------------------------------------------------------------------------------------------- signals


def test_environment_workers_leave_signals_to_the_trainer():
    task: Any = envs.make("CartPole-v1", 1, vectoriser="processes")
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            task.engine.workers[0].send_signal(number)
        time.sleep(0.1)
        outcome, _ = task.step(np.zeros(1, np.int32))
        assert outcome.reward[0] == 1.0
    finally:
        task.close()
    assert task.engine.workers[0].returncode == 0


def child(*arguments: str) -> subprocess.Popen[str]:
    """This file as a program: a tiny real run in a process of its own."""
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "MPLBACKEND": "Agg"}
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "it ended early")


def test_signals_save_and_exit_with_their_status(tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = child("train", str(tmp_path / "run"))
        wait_for(process, "report")
        process.send_signal(number)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == status, (out, errors)
        assert "decisions; go on with `flatirons resume" in errors and "Traceback" not in errors
    step = fi.load(tmp_path / "run", system=STUB).step
    assert step > 0
    resumed = fi.resume(tmp_path / "run", system=STUB, quiet=True, stop_at=step + 80)
    assert resumed.metrics[-1]["step"] == step + 80


def test_interruption_in_python_saves_and_restores_handlers(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(run: fi.Run, row: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as caught:
        go(tmp_path, total_steps=80, callbacks=[interrupt])
    assert vars(caught.value)["exit_status"] == 143 and (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert fi.load(tmp_path / "run", system=STUB).step == 8
    assert_equal(fi.resume(tmp_path / "run", system=STUB, quiet=True)._state, go(tmp_path, name="whole", total_steps=80)._state)


def test_second_signal_ends_at_once():
    signals = loop.Signals()
    with signals:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert signals.caught == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.optimised
def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    """Ten times in a row: kill the run wherever it is, resume it in a new process. The end equals the run that was left alone, compiled
    as those processes compile it: without optimisation CartPole's last bits are others."""
    rng = random.Random(0)
    path = tmp_path / "run"
    total, last = 8 * 100_000, -1
    for attempt in range(10):
        process = child("resume" if (path / "checkpoints").exists() else "train", str(path), str(total))
        wait_for(process, "report")
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        step = max(int(p.name[5:]) for p in (path / "checkpoints").glob("step_*") if p.name[5:].isdigit())
        assert step >= last, (attempt, step, last)
        last = step
    assert last > 0
    stop = last + 80
    resumed = fi.resume(path, system=STUB, quiet=True, stop_at=stop)
    whole = go(tmp_path, name="whole", total_steps=total, stop_at=stop)
    assert_equal(resumed._state, whole._state)
    steps = [row["step"] for row in resumed.metrics]
    assert steps == sorted(set(steps)) and steps[-1] == stop
    assert not list(path.rglob("*.tmp"))


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    path = tmp_path / "run"
    process = child("train", str(path))
    try:
        wait_for(process, "report")
        with pytest.raises(FlatironsError, match=r"is being trained by another process \(process [0-9]+\); stop it first$"):
            fi.resume(path, system=STUB, quiet=True, stop_at=8)
        with pytest.raises(
            FlatironsError, match=r"is being trained by another process \(process [0-9]+\); stop it first, or choose another --out$"
        ):
            go(tmp_path, overwrite=True)
        assert (path / "config.json").exists() and list((path / "checkpoints").iterdir()), "refused before anything was removed"
    finally:
        process.kill()
        process.communicate()
    # The kill has let go of it.
    step = fi.load(path, system=STUB).step
    assert fi.resume(path, system=STUB, quiet=True, stop_at=step + 80).step == step + 80


def test_a_folder_is_let_go_of_and_its_lock_is_no_strangers_file(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".lock").touch()
    with pytest.raises(ZeroDivisionError), folder.created(path):
        raise ZeroDivisionError
    for name in ("", "seed_0", "seed_1"):
        (path / name).mkdir(exist_ok=True)
        folder.write_record(path / name, RECORD)
    (path / "seed_1" / "notes.txt").touch()
    with folder.held(path / "seed_1"), pytest.raises(FlatironsError, match="seed_1 is being trained"), folder.created(path, overwrite=True):
        pass
    assert (path / "config.json").exists() and (path / "seed_0" / "config.json").exists()
    for _ in range(2):  # one run after another in one process
        with folder.created(path, overwrite=True), pytest.raises(FlatironsError, match="is being trained"), folder.held(path):
            pass
        assert {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} == {".lock", "seed_1/.lock", "seed_1/notes.txt"}
        assert not (path / "seed_0").exists()
        folder.write_record(path, RECORD)


RECORD = {"format": 1, "system": "stub"}


def test_one_seed_of_a_program_is_not_overwritten_alone(tmp_path):
    slot = tmp_path / "group" / "seed_1"
    slot.mkdir(parents=True)
    folder.write_record(slot, {**RECORD, "part_of": "group"})
    (slot / "metrics.jsonl").touch()
    for overwrite in (False, True):
        refused = pytest.raises(FlatironsError, match=f"cannot be replaced alone; name {slot.parent}, or choose another --out")
        with refused, folder.created(slot, overwrite=overwrite):
            pass
    assert files_in(slot) == {"config.json", "metrics.jsonl"}


def files_in(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def test_another_programs_config_makes_no_run_of_a_folder(tmp_path):
    mine = {"config.json", "policy/mine.txt", "checkpoints/mine.txt", "checkpoints/step_1/config.json"}
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"name": "my web project"}')
    with pytest.raises(FlatironsError, match="exists and is not a run folder"), folder.created(tmp_path, overwrite=True):
        pass
    assert files_in(tmp_path) == mine


@pytest.mark.parametrize("damage", [None, "", '{"name": "my web project"}'])
def test_overwriting_takes_what_a_run_wrote_and_nothing_else(tmp_path, damage):
    """A damaged config.json is known by its copy in a checkpoint."""
    written = {
        "metrics.jsonl", "summary.json.tmp", "curve.png", ".curve.tmp.png", ".writable.tmp", "policy/a", "policy.old/a",
        "policy_best.tmp/a", "tensorboard/a",
    }  # fmt: skip
    mine = {"policy_notes/a", "policy.txt", "notes.tmp", "tensorboard.md", "tensorboards/a", "seed_mine/config.json"}
    for name in written | mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "checkpoints" / "step_000000000008").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "checkpoints" / "step_000000000008"):
        folder.write_record(place, RECORD)
    if damage is not None:
        (tmp_path / "config.json").write_text(damage)
    with pytest.raises(FlatironsError, match="exists; resume it"), folder.created(tmp_path):
        pass
    with folder.created(tmp_path, overwrite=True):
        assert files_in(tmp_path) == mine | {".lock"}


def test_a_finished_run_needs_no_folder_that_can_be_written(tmp_path, monkeypatch, capsys):
    run, host = go(tmp_path, total_steps=8), go(tmp_path, "CartPole-v1", name="host", seeds=2, total_steps=8)
    monkeypatch.setattr(folder, "LOCK", "gone/.lock")
    assert fi.resume(run.path, system=STUB).step == 8 and "is finished: 8 of 8 decisions" in capsys.readouterr().out
    assert [one.step for one in fi.resume(host.path, system=STUB).runs] == [8, 8]
    with pytest.raises(FlatironsError, match=r"cannot be written \(No such file or directory\); make it writable$"):
        fi.resume(run.path, system=STUB, total_steps=16)


def policy_step(path: Path) -> int:
    return json.loads((path / "policy" / "manifest.json").read_text())["meta"]["step"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_a_run_could_not_write_at_its_end_is_written_by_a_resume(tmp_path, monkeypatch, capfd, seeds):
    drawn, path = [], tmp_path / "run"
    slots = [path] if seeds == 1 else [path / "seed_0", path / "seed_1"]

    def full(one: Any, state: Any, meta: dict[str, Any], name: str) -> None:
        if meta["step"] == 8:
            raise FlatironsError("the disk is full")
        handle.save_policies(one, state, meta, name)

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(loop, "save_policies", full)
        with pytest.raises(FlatironsError, match="the disk is full"):
            go(tmp_path, seeds=seeds, total_steps=8)
    assert fi.load(slots[-1], system=STUB).step == 0
    said = capfd.readouterr().err
    assert f"is of 0 decisions and its newest checkpoint of 8, for a save was cut short; go on with `flatirons resume {path}`" in said
    with folder.held(path):  # a run that trains saves it in a moment
        fi.load(slots[-1], system=STUB)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(train.Run, "plot", lambda run: drawn.append(run.path))
    fi.resume(path, system=STUB)
    said = capfd.readouterr()
    assert "is finished: 8 of 8" in said.out and "was missing, damaged or older than its checkpoint" in said.out and said.err == ""
    assert drawn == [path] and json.loads((path / "summary.json").read_text())["finished"] is True
    params = checkpoint.load_latest(path / "checkpoints", go(tmp_path, name="whole", seeds=seeds, total_steps=8)._state).tree.params
    for i, slot in enumerate(slots):
        assert json.loads((slot / "summary.json").read_text())["step"] == 8
        assert_equal(fi.load(slot, system=STUB).actor, params if seeds == 1 else params[i])
    # What a person put there afterwards stays, and a policy that is lost is written again.
    checkpoint.save_policy(slots[-1] / "policy", params if seeds == 1 else params[-1], {"step": 4})
    fi.resume(path, system=STUB, quiet=True)
    assert policy_step(slots[-1]) == 4 and capfd.readouterr().err == ""
    shutil.rmtree(slots[0] / "policy")
    fi.resume(path, system=STUB, quiet=True)
    assert policy_step(slots[0]) == 8
    arrays = slots[0] / "policy" / "policy.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    fi.resume(path, system=STUB)
    assert "was missing, damaged or older" in capfd.readouterr().out
    assert fi.load(slots[0], system=STUB).step == 8 and capfd.readouterr().err == ""


def test_a_run_that_could_save_nothing_is_trained_again(tmp_path, monkeypatch):
    for name, task, seeds in (("run", CARTPOLE, 1), ("group", "CartPole-v1", 2)):
        with monkeypatch.context() as full:
            full.setattr(checkpoint, "disk_free", lambda path: 10)
            with pytest.raises(FlatironsError, match="nothing was saved before it, free some space and start again with --overwrite"):
                go(tmp_path, task, name=name, seeds=seeds, total_steps=8)
    with pytest.raises(FlatironsError, match="exists, and nothing was saved in it yet; choose another --out or pass --overwrite"):
        go(tmp_path, total_steps=8)
    with pytest.raises(FlatironsError, match="has no checkpoint, for nothing was saved yet; train again with --overwrite"):
        fi.resume(tmp_path / "run", system=STUB)
    assert go(tmp_path, total_steps=8, overwrite=True).step == 8
    # Of seeds that are trained each by itself the folder around them goes on, also where none of them has saved anything.
    with pytest.raises(FlatironsError, match="exists; resume it with"):
        go(tmp_path, "CartPole-v1", name="group", seeds=2)
    assert [run.step for run in fi.resume(tmp_path / "group", system=STUB, quiet=True).runs] == [8, 8]


def test_lines_that_are_none_of_ours_are_passed_over(tmp_path):
    lines = tmp_path / "metrics.jsonl"
    lines.write_text('{"step": 8, "loss": NaN}\n{"step": "9"}\n{"loss": 1.0}\n3\n' + "[" * 100_000 + '\n{"step": 16}\n')
    assert [row["step"] for row in folder.read_lines(lines)] == [8, 16]
    folder.cut_after(lines, 8)
    assert lines.read_text() == '{"step": 8, "loss": null}\n'


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LOCK", "gone/.lock")  # the file system says no, to whoever asks
    with pytest.raises(FlatironsError, match=r"the run folder .* cannot be written \(No such file or directory\)"), folder.held(tmp_path):
        pass
    said = str(folder.Unwritable(tmp_path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ""))
    assert said.endswith("cannot be written (No space left on device); free some space")
    lines = tmp_path / "metrics.jsonl"
    lines.write_text('{"step": 8}\n{"step": 16}\n')

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(FlatironsError, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
        folder.cut_after(lines, 8)
    with pytest.raises(FlatironsError, match=r"summary\.json cannot be written .*; free some space, or make the folder writable"):
        folder.write_json(tmp_path / "summary.json", {})
    assert lines.read_text().count("\n") == 2 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_resume_needs_a_worker(tmp_path, workers):
    with pytest.raises(FlatironsError, match=f"workers={workers} must be a whole number, at least 1"):
        fi.resume(tmp_path, workers=workers)


def test_workers_train_seeds_side_by_side(tmp_path):
    settings = {**SETTINGS["ppo"][1], "total_steps": 32}
    group = fi.train("ppo", "CartPole-v1", seeds=2, workers=2, out=tmp_path / "group", stop_at=16, quiet=True, **settings)
    assert [run.step for run in group.runs] == [16, 16]
    group = fi.resume(tmp_path / "group", workers=2, quiet=True)
    assert [run.step for run in group.runs] == [32, 32]
    assert not np.array_equal(*(jax.tree.leaves(run.actor)[0] for run in group.runs))


def test_workers_end_with_who_started_them(tmp_path):
    """They would hold their seeds against whoever goes on with them."""
    group = tmp_path / "group"
    order = ["train", "ppo", "CartPole-v1", "--seeds", "2", "--workers", "2", "--out", str(group), "--total-steps", "1_600_000"]
    settings = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--hidden", "8", "--checkpoint-every", "16"]
    trainer = subprocess.Popen([sys.executable, "-m", "flatirons", *order, *settings, "--quiet"])
    seeds = [group / "seed_0", group / "seed_1"]
    until(lambda: all(list((seed / "checkpoints").glob("step_*[0-9]")) for seed in seeds), trainer)
    with pytest.raises(FlatironsError, match=rf"is being trained by another process \(process {trainer.pid}\); stop it first"):
        fi.resume(group, quiet=True)
    trainer.kill()
    trainer.wait()
    until(lambda: not any(folder.is_held(seed) for seed in seeds))
    steps = [checkpoint.newest_step(seed / "checkpoints") for seed in seeds]
    assert [run.step for run in fi.resume(group, quiet=True, stop_at=max(steps) + 16).runs] == [max(steps) + 16] * 2


def until(what: Any, alive: Any = None, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and (alive is None or alive.poll() is None)
        time.sleep(0.05)


def main(what: str, path: str, total: str = "800000") -> None:
    loop.REPORT_EVERY = 0.0
    train.Run.plot = lambda self: None

    def report(run: fi.Run, row: dict[str, Any]) -> None:
        print("report", row["step"], flush=True)
        time.sleep(0.002)

    callbacks = [report]
    try:
        if what == "train":
            fi.train(STUB, CARTPOLE, out=path, total_steps=int(total), checkpoint_every=8, callbacks=callbacks, quiet=True, overwrite=True)
        else:
            fi.resume(path, system=STUB, callbacks=callbacks, quiet=True)
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        sys.exit(vars(stop)["exit_status"])


if __name__ == "__main__":
    main(*sys.argv[1:])
