"""Running: the door, the run folder, evaluation, the Run. A stub system of one parameter keeps it fast; PPO and DQN run at the end."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs, systems
from flatirons.data import rollout
from flatirons.nets.mlp import mlp, mlp_init
from flatirons.run import checkpoint, evaluate, folder, handle, job, loop, metrics, report, train
from flatirons.run.progress import Progress, breakdown, duration
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Network, Policy, Preset, Spec, config

# --------------------------------------------------------------------------------------------------------- the stub system


@config
class Config:
    total_steps: int = 64
    num_envs: int = 2
    num_steps: int = 4
    learning_rate: float = 0.1
    clip: float | None = None
    widths: tuple[int, ...] = (3,)
    mode: Literal["noisy", "quiet"] = "noisy"
    poison_at: int = -1
    """Turn whose update makes the parameters NaN."""
    network: str | Network = "auto"


class State(NamedTuple):
    params: Any
    collector: Any
    key: Any
    updates: Any


def _init(config: Config, task: Any, key: Any) -> State:
    key, key_params, key_collect = jax.random.split(key, 3)
    params = jax.random.normal(key_params, config.widths)
    return State(params, rollout.start(task, (), key_collect), key, jnp.int32(0))


def _policy(config: Config, task: Any, actor: Any, *, greedy: bool) -> Policy:
    def act(key: Any, timestep: Any, carry: Any) -> Any:
        num_envs = timestep.first.shape[0]
        obs = jax.tree.leaves(timestep.obs)[0].reshape(num_envs, -1).astype(jnp.float32)
        if isinstance(task.spec.action, Box):
            return jnp.full((num_envs, len(task.spec.action.low)), 100.0) * actor[0], carry, ()
        if isinstance(task.spec.action, MultiDiscrete):
            return jnp.ones((num_envs, len(task.spec.action.nvec)), jnp.int32), carry, ()
        if greedy:
            return (obs.sum(axis=-1) + actor.sum() > 0).astype(jnp.int32), carry, ()
        return jax.random.randint(key, (num_envs,), 0, task.spec.action.n), carry, ()

    return Policy(lambda num_envs: (), act)


def _update(config: Config, task: Any, state: State, experience: Any) -> Any:
    key, noise = jax.random.split(state.key)
    change = config.learning_rate * jnp.mean(jnp.asarray(experience.reward)) + 0.01 * jax.random.normal(noise, state.params.shape)
    params = state.params + jnp.where(state.updates == config.poison_at, jnp.nan, change)
    return state._replace(params=params, key=key, updates=state.updates + 1), {"loss": jnp.mean(params**2), "turn": state.updates}


def _step(config: Config, task: Any, state: State, *, update: Any = _update) -> Any:
    collector, experience, episodes = rollout.rollout(config, task, _policy, state.params, state.collector, config.num_steps)
    state, found = update(config, task, state._replace(collector=collector), experience)
    return state, found | {"episodes": episodes}


def _check(config: Config, task: Any) -> None:
    if task.name == "refused":
        raise FlatironsError("the stub refuses this task; take another")


STUB: Any = types.ModuleType("somewhere.stub")
STUB.Config, STUB.State, STUB.PRESETS, STUB.init, STUB.policy, STUB.update, STUB.step, STUB.check = (
    Config, State, {"stub-fast": Preset("quick", {"learning_rate": 0.5}, tasks=("jax:Pendulum*",))}, _init, _policy, _update, _step, _check,
)  # fmt: skip
STUB.actor = lambda state: state.params
STUB.steps_per_turn = lambda config: config.num_envs * config.num_steps

CARTPOLE = "jax:CartPole-v1"


def go(tmp_path: Any, task: Any = CARTPOLE, name: str = "run", **settings: Any) -> fi.Run:
    return fi.train(STUB, task, **({"out": tmp_path / name, "quiet": True} | settings))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in jax.tree.leaves(tree)]


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# ----------------------------------------------------------------------------------------------------------------- the door


class Slots:
    __slots__ = ()


def test_what_total_steps_counts_has_one_name():
    """In messages by the system's own word; a picture is drawn without asking it."""
    said = {systems.system_name(module): systems.counted(module) for module in systems.SYSTEMS}
    assert {name: word for name, word in said.items() if word != "decisions"} == report.STEPS
    with pytest.raises(FlatironsError, match="is not a whole number of meta-iterations"):
        fi.train("maml", "meta:sinusoid", stop_at=2.5, quiet=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"system": "poo"}, "'ppo'"),
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' does not fit stub: give a finite number"),
        ({"learning_rate": math.nan}, "finite number"),
        ({"learning_rate": True}, "finite number"),
        ({"num_envs": 2.5}, "whole number"),
        ({"mode": "loud"}, "one of 'noisy', 'quiet'"),
        ({"widths": 3}, "widths=3"),
        ({"total_steps": 60}, "choose 56 or 64"),
        ({"total_steps": 4}, "choose 8"),
        ({"total_steps": 0}, "choose 8"),
        ({"stop_at": 9}, "stop_at=9 is not a whole number of turns of 8 decisions; choose 8 or 16"),
        ({"preset": "stub-fats"}, "did you mean 'stub-fast'"),
        ({"task": "jax:CartPool-v1"}, "CartPole-v1"),
        ({"keep": 0}, "keep=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 10**30}, "must be at most"),
        ({"seed": 1e30}, "must be at most"),
        ({"workers": 0}, "workers=0"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"eval_episodes": 2.5}, "eval_episodes=2.5"),
        ({"from_run": "nowhere"}, "no run folder nowhere"),
        ({"task": gymnasium.make("CartPole-v1"), "num_envs": 2}, "num_envs"),
        ({"num_envs": 0}, "num_envs=0 would make a turn of stub 0 decisions long; give at least 1"),
        ({"num_steps": 0}, "num_steps=0 would make a turn of stub 0 decisions long"),
        ({"num_steps": 0, "num_envs": 0}, "num_envs=0, num_steps=0 would make"),
        ({"system": "dqn", "train_every": 0}, "train_every=0 would make a turn of dqn 0 decisions long"),
        ({"env_options": {"seed": 3}}, "seed is no option of the environment, for the run sets it: give --seed"),
        ({"env_options": {"num_envs": 3}}, "give --num-envs"),
        ({"env_options": {"training": False}}, "training is no option of the environment"),
        ({"task": None}, "a NoneType is not a task"),
        ({"task": 5}, "a int is not a task"),
        ({"task": Slots()}, "a Slots is not a task"),
        ({"env_options": {"timeout_s": "abc"}}, "timeout_s is 'abc'"),
        (
            {"env_options": {"max_episode_steps": "abc"}},
            "max_episode_steps='abc' does not fit jax:CartPole-v1: give a whole number or none",
        ),
        ({"task": "CartPole-v1", "env_options": {"max_episode_steps": "abc"}}, "max_episode_steps='abc' does not fit CartPole-v1"),
        ({"task": "Pendulum-v1", "env_options": {"max_episode_steps": 0}}, "Pendulum-v1 does not take these options"),
        ({"eval_every": 8, "eval_env": "jax:MountainCar-v0"}, "jax:MountainCar-v0 has other observations than jax:CartPole-v1"),
        ({"task": "CartPole-v1", "seeds": 2, "eval_every": 8, "eval_env": "jax:MountainCar-v0"}, "has other observations than CartPole-v1"),
        ({"eval_every": 8, "eval_env": "jax:CartPool-v1"}, "CartPole-v1"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, settings, says):
    settings = {"system": STUB, "task": CARTPOLE, **settings}
    with pytest.raises(FlatironsError, match=r"^[^\n]*$") as caught:
        fi.train(settings.pop("system"), settings.pop("task"), out=tmp_path / "run", quiet=True, **settings)
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_atari_options_of_another_type_are_refused():
    pytest.importorskip("ale_py")
    for options, says in (
        ({"frameskip": "two"}, "frameskip='two' does not fit ALE/Pong-v5: give a whole number"),
        ({"sticky": "x"}, "a number"),
    ):
        with pytest.raises(FlatironsError, match=says):
            envs.make("ALE/Pong-v5", **options)


def test_an_instance_has_its_registered_name_and_a_whole_presets_turn(tmp_path):
    assert job.name_of_task(gymnasium.make("CartPole-v1")) == "CartPole-v1" and job.name_of_task(Lengths()) == "Lengths"
    assert job.name_of_task("pgx:go-9x9") == "pgx:go_9x9" and job.name_of_task("pgx:minatar-breakout") == "pgx:minatar-breakout"
    run = fi.train("ppo", gymnasium.make("Pendulum-v1"), out=tmp_path / "run", stop_at=1000, total_steps=2000, quiet=True)
    assert run.config.num_envs == 1 and run.config.num_steps == 1000 and "Pendulum-v1" in str(folder.default_path("ppo", "Pendulum-v1", 0))


def test_an_instance_is_enough_where_no_preset_says_how_many(tmp_path):
    own: dict[str, Any] = {"out": tmp_path / "run", "overwrite": True, "hidden": (4,), "quiet": True}
    ppo = fi.train("ppo", Lengths(), total_steps=2000, stop_at=1000, num_epochs=1, **own).config
    assert (ppo.num_envs, ppo.num_steps, ppo.num_minibatches) == (1, 1000, 8)
    a3c = fi.train("a3c", Lengths(), total_steps=20, **own).config
    assert (a3c.num_envs, a3c.actor_learners, a3c.num_steps) == (1, 1, 5)
    with pytest.raises(FlatironsError, match="actor_learners=2 is more than num_envs=1"):
        fi.train("a3c", Lengths(), total_steps=20, actor_learners=2, **own)


def test_system_check_is_asked_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "make", lambda *a, **k: types.SimpleNamespace(name="refused", notes=(), in_graph=True, close=lambda: None))
    with pytest.raises(FlatironsError, match="the stub refuses"):
        go(tmp_path)
    assert not (tmp_path / "run").exists()


def test_numbers_are_coerced_and_presets_chosen(tmp_path):
    run = go(tmp_path, total_steps=16.0, learning_rate=1, widths=[2, 2], clip=3)
    assert (run.config.total_steps, run.config.learning_rate, run.config.widths, run.config.clip) == (16, 1.0, (2, 2), 3.0)
    assert all(type(x) is t for x, t in ((run.config.total_steps, int), (run.config.learning_rate, float), (run.config.clip, float)))
    assert job.choose(STUB, None, "jax:Pendulum-v1")[1:] == ({"learning_rate": 0.5}, "stub-fast", None)
    assert job.choose(STUB, "stub-fast", CARTPOLE)[2] == "stub-fast"
    assert job.choose("ppo-paper", None, CARTPOLE)[2] == "ppo-paper"


def test_existing_folders(tmp_path, monkeypatch):
    go(tmp_path)
    with pytest.raises(FlatironsError, match="exists; resume it with `flatirons resume"):
        go(tmp_path)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    go(tmp_path, overwrite=True, total_steps=8)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in fi.load(tmp_path / "run", system=STUB).metrics] == [8]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(FlatironsError, match="not a run folder"):
        go(tmp_path, name="other", overwrite=True)
    monkeypatch.chdir(tmp_path)
    assert [str(go(tmp_path, out=None, total_steps=8).path) for _ in range(2)] == [
        f"runs/stub-jax-CartPole-v1-seed0{x}" for x in ("", "-2")
    ]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlatironsError, match="cannot be written"):
        go(tmp_path, out=tmp_path / "file" / "run")


def test_state_larger_than_memory_or_disk_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FlatironsError, match=r"memory .*[0-9,]+ bytes"):
        go(tmp_path, widths=(1 << 20, 1 << 20, 1 << 10))
    monkeypatch.setattr("flatirons.run.resources.disk_free", lambda path: 10)
    with pytest.raises(FlatironsError, match="disk"):
        go(tmp_path)
    assert not (tmp_path / "run").exists()


def test_import_is_light_and_names_are_found():
    code = "import sys, flatirons; print([m for m in ('jax', 'numpy', 'gymnasium') if m in sys.modules], flatirons.__version__)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("[]")
    assert all(hasattr(fi, name) for name in fi.__all__)
    with pytest.raises(AttributeError, match="trane"):
        fi.trane  # noqa: B018


# --------------------------------------------------------------------------------------------------------- the run folder


@pytest.mark.pictures
def test_what_a_run_leaves(tmp_path):
    run = go(tmp_path, total_steps=64, eval_every=32, eval_episodes=3, seed=5)
    recorded = json.loads((run.path / "config.json").read_text())
    assert {"system": "stub", "task": CARTPOLE, "seed": 5, "total_steps": 64}.items() <= recorded.items()
    assert recorded["versions"]["jax"] == jax.__version__ and recorded["config"]["learning_rate"] == 0.1
    rows = run.metrics
    assert rows[-1]["step"] == 64 and {"seconds", "steps_per_second", "episode_return", "episode_length", "episodes", "loss"} <= set(
        rows[-1]
    )
    assert [row["step"] for row in run.evaluations] == [32, 64] and len(run.evaluations[0]["returns"]) == 3
    for part in ("checkpoints", "policy", "policy_best", "curve.png", "summary.json"):
        assert (run.path / part).exists(), part
    assert json.loads((run.path / "summary.json").read_text())["finished"] is True
    assert {"compile", "training (in-graph)", "evaluation", "checkpoint"} <= set(run.timing)
    assert sum(run.timing.values()) == pytest.approx(json.loads((run.path / "summary.json").read_text())["seconds"], rel=0.01)
    assert not list(run.path.rglob("*.tmp"))


def test_reports_do_not_change_state(tmp_path, monkeypatch):
    """Bit for bit, whatever the lengths of the stretches between reports."""
    a = go(tmp_path, total_steps=256, name="a")
    b = go(tmp_path, total_steps=256, name="b", eval_every=24, eval_episodes=1, checkpoint_every=40)
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    c = go(tmp_path, total_steps=256, name="c")
    assert len(c.metrics) == 32 > len(a.metrics)
    assert_equal(a._state, b._state)
    assert_equal(a._state, c._state)
    # The reports say the same as well: the mean of the turns' numbers 0 ... 31, and the sums of their episodes.
    for run in (a, b, c):
        turns = np.diff([0, *(row["step"] for row in run.metrics)]) / 8
        assert sum(n * row["turn"] for n, row in zip(turns, run.metrics, strict=True)) == pytest.approx(sum(range(32)))
    assert len({sum(row["episodes"] for row in run.metrics) for run in (a, b, c)}) == 1


def test_host_metrics_are_the_same_sums(tmp_path):
    run = go(tmp_path, "CartPole-v1", total_steps=800)
    turns = np.diff([0, *(row["step"] for row in run.metrics)]) / 8
    assert sum(n * row["turn"] for n, row in zip(turns, run.metrics, strict=True)) == pytest.approx(sum(range(100)), rel=1e-5)
    assert {"environment", "inference", "learning", "compile"} <= set(run.timing)
    lengths = sum(row["episodes"] * (row["episode_length"] or 0) for row in run.metrics)
    assert 600 < lengths <= 800 and lengths == sum(row["episodes"] * (row["episode_return"] or 0) for row in run.metrics)


def test_host_sum_equals_plain_sum():
    rows = [
        {"loss": jnp.float32(i), "episodes": rollout.Episodes(np.int32(i % 2), np.float32(3.0 * (i % 2)), np.int32(i % 2))}
        for i in range(75)
    ]
    total = metrics.HostSum()
    for row in rows:
        total.add(row)
    found = total.read()
    assert found["loss"] == pytest.approx(37.0) and found["episodes"] == 37 and found["episode_return"] == 3.0
    total.add(rows[2])
    assert total.read() == {"episodes": 0, "episode_return": None, "episode_length": None, "loss": 2.0}


def test_host_sum_holds_the_last_value_of_a_level():
    total = metrics.HostSum(("task", "accuracy*"))
    for turn in range(3 * metrics.LAG):
        found = {"accuracy_0": turn / 4, "loss": float(turn)}
        total.add(total.pack({name: jnp.float32(value) for name, value in found.items()}) | {"task": turn // 5})
    assert total.read() == {"accuracy_0": (3 * metrics.LAG - 1) / 4, "loss": (3 * metrics.LAG - 1) / 2, "task": (3 * metrics.LAG - 1) // 5}
    total.add({"task": 7, "loss": 1.0})
    assert total.read() == {"task": 7.0, "loss": 1.0}


@pytest.mark.parametrize("task", [CARTPOLE, "CartPole-v1"])
def test_a_report_holds_the_last_turns_value_of_what_a_system_names_so(tmp_path, monkeypatch, task):
    monkeypatch.setattr(STUB, "LATEST", ("tur?",), raising=False)
    run = go(tmp_path, task, total_steps=800)
    assert len(run.metrics) < 100, "some rows are of several turns"
    assert [row["turn"] for row in run.metrics] == [row["step"] / 8 - 1 for row in run.metrics]


def test_every_seed_has_its_own_last_values(tmp_path, monkeypatch):
    monkeypatch.setattr(STUB, "LATEST", ("turn",), raising=False)
    for run in go(tmp_path, total_steps=80, seeds=2).runs:
        assert run.metrics[-1]["turn"] == 9.0


def test_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    for task in (CARTPOLE, "CartPole-v1"):
        name = task.replace(":", "-")
        with pytest.raises(FlatironsError, match=r"loss became NaN or infinite between \d+ and \d+ decisions") as caught:
            go(tmp_path, task, name, total_steps=256, checkpoint_every=64, poison_at=20)
        assert f"flatirons train stub {task} --from {tmp_path / name} --learning-rate X --out NEW" in str(caught.value)
        lower = go(tmp_path, task, f"{name}-lower", total_steps=64, from_run=tmp_path / name, learning_rate=0.01)
        assert np.isfinite(np.asarray(lower.actor)).all()
        state = fi.resume(tmp_path / name, system=STUB, quiet=True, stop_at=160)._state
        assert np.isfinite(np.asarray(state.params)).all()


# ------------------------------------------------------------------------------------------------------ evaluation and acting


@pytest.mark.parametrize("task", [CARTPOLE, "CartPole-v1"])
def test_evaluation_is_deterministic_and_complete(tmp_path, task):
    run = go(tmp_path, task)
    first, again, other = run.evaluate(11, seed=3), run.evaluate(11, seed=3), run.evaluate(11, seed=4)
    assert first == again and first["returns"] != other["returns"]
    assert set(first) == {"system", "task", "episodes", "mean", "std", "min", "max", "returns", "lengths"}
    assert len(first["returns"]) == first["episodes"] == 11 and first["returns"] == [float(n) for n in first["lengths"]]
    assert first["mean"] == np.mean(first["returns"]) and (first["min"], first["max"]) == (min(first["returns"]), max(first["returns"]))
    assert fi.load(run.path, system=STUB).evaluate(11, seed=3) == first
    with pytest.raises(FlatironsError, match="episodes is 0"):
        run.evaluate(0)


class Lengths(gymnasium.Env):
    """Episode k of environment i lasts as many steps as its seed says: a trap for scorers that favour short episodes."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, limit: int = 9):
        self.limit = limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.limit + 1))
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left <= 0, False, {}


def test_every_environment_gives_its_share_of_episodes():
    task = envs.make(Lengths, 4, training=False)
    returns = evaluate.evaluate(STUB, Config(), task, jnp.zeros(3), 10, 0)["returns"]
    alone = [evaluate.evaluate(STUB, Config(), envs.make(Lengths, 4, training=False), jnp.zeros(3), n, 0)["returns"] for n in (4,)]
    assert len(returns) == 10 and alone[0] == [returns[0], returns[3], returns[6], returns[8]]


class Said(Lengths):
    """Says of each step whether the goal is reached, which it is after an even number of steps; rewards do not tell."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.taken = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.taken += 1
        return *super().step(action)[:4], {"is_success": np.float32(self.taken % 2 == 0)}


def test_success_is_what_the_environment_says_in_an_episodes_last_step():
    result = evaluate.evaluate(STUB, Config(), envs.make(Said, 4, training=False), jnp.zeros(3), 12, 0)
    assert 0.0 < result["success"] < 1.0 and result["success"] == np.mean([length % 2 == 0 for length in result["lengths"]])


def test_endless_episodes_are_cut_and_said_so(monkeypatch, capfd):
    monkeypatch.setattr(evaluate, "EPISODE_CAP", 6)
    result = evaluate.evaluate(STUB, Config(), envs.make(lambda: Lengths(10_000), 2, training=False), jnp.zeros(3), 5, 0)
    assert result["lengths"] == [6] * 5
    assert "has no time limit, so 5 of 5 episodes were cut at 6 decisions" in capfd.readouterr().err


def test_scoring_that_makes_no_headway_ends(monkeypatch):
    task: Any = envs.make(lambda: Lengths(3), 2, training=False)
    step, taken = task.step, []

    def counted(action: Any) -> Any:
        taken.append(action)
        assert len(taken) < 1000, "it would have gone on for ever"
        return step(action)

    task.step = counted
    monkeypatch.setattr(evaluate, "EPISODE_CAP", 6)
    monkeypatch.setattr(evaluate.np, "flatnonzero", lambda x: np.zeros(0, int))
    with pytest.raises(FlatironsError, match="18 decisions on Lengths gave 0 of 3 episodes"):
        evaluate.evaluate(STUB, Config(), task, jnp.zeros(3), 3, 0)


def test_evaluation_has_as_many_environments_as_its_own_kind_takes(tmp_path):
    for task, twin, count in ((CARTPOLE, lambda: Lengths(), 8), (Lengths, None, 8), ("CartPole-v1", CARTPOLE, 20), (CARTPOLE, None, 20)):
        one = job.Job(STUB, None, Config(), task, {}, twin, 0, 1, tmp_path, job.Options())
        made = job.evaluation_task(one, 20, 0)
        assert made.num_envs == count
        made.close()


def test_numbers_that_a_cast_would_spoil_are_refused() -> None:
    """A picture of 0 to 1 where bytes are wanted, fractions, NaN, and what bytes cannot hold."""
    spec = ArraySpec((2, 3, 3), "uint8", low=0, high=255)
    picture = np.arange(18).reshape(2, 3, 3)
    for given in (picture, picture.astype(np.float64), picture.tolist(), np.zeros((2, 3, 3))):
        np.testing.assert_array_equal(handle._one_row(spec, given, "obs"), np.asarray(given, np.uint8)[None])
    for given, message in (
        (picture / 255, "multiply them by 255 and round"),
        (picture + 0.5, "round them"),
        (picture * np.nan, "NaN or infinite"),
        (picture * 100, "from 0 to 1700, and uint8 holds 0 to 255"),
        (picture - 1, "from -1 to 16, and uint8 holds"),
        (picture[0], r"has shape \[3, 3\]"),
    ):
        with pytest.raises(FlatironsError, match=message):
            handle._one_row(spec, given, "obs")


def asked_by(spec: Any) -> handle.Run:
    """A Run that can be asked whether an observation is one of `spec`; it has no policy."""
    run = object.__new__(handle.Run)
    run._acting, run._deciders, run.system, run.config = types.SimpleNamespace(spec=Spec(spec, Discrete(2))), {}, STUB, Config()
    return run


def batch_of_one(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {name: batch_of_one(part) for name, part in obs.items()}
    return tuple(batch_of_one(part) for part in obs) if isinstance(obs, tuple) else [obs]


UNBOUNDED, STATES, MANY = ArraySpec((2,)), ArraySpec((), "int32", 0, 47), ArraySpec((), "int32", 0, 99_999)
PARTS = (ArraySpec((), "int32", 0, 2), {"pair": ArraySpec((2,), "int32", 0, 4, start=(0, 3))})


@pytest.mark.parametrize(
    ("spec", "obs", "message"),
    [
        *((UNBOUNDED, [0.0, bad], "NaN or infinite") for bad in (math.nan, math.inf, -math.inf, 1e39)),
        (ArraySpec((2,), low=-1.0, high=1.0), np.array([0.0, np.nan], np.float32), "NaN or infinite"),
        (STATES, math.nan, "NaN or infinite"),
        (STATES, 48, "holds 48, and the task's go from 0 to 47"),
        (STATES, -1, "holds -1, and the task's go from 0 to 47"),
        (MANY, 100_000, "holds 100000, and the task's go from 0 to 99999"),
        (PARTS, (3, {"pair": [0, 3]}), "holds 3, and the task's go from 0 to 2"),
        (PARTS, (2, {"pair": [5, 3]}), "holds 5, and the task's go from 0 to 4"),
        (PARTS, (2, {"pair": [4, 2]}), "holds 2, and the task's go from 3 to 7"),
    ],
)
def test_what_no_observation_holds_is_refused_however_it_is_asked(spec: Any, obs: Any, message: str) -> None:
    run = asked_by(spec)
    for ask in (run.policy, lambda obs: run.predict(batch_of_one(obs)), lambda obs: run.uncertainty(obs, rate=0.1)):
        with pytest.raises(FlatironsError, match=message):
            ask(obs)


def test_what_an_observation_may_hold_is_taken() -> None:
    for spec, obs in (
        (UNBOUNDED, [-1e30, 1e30]),
        (STATES, 47),
        (MANY, 99_999),
        (ArraySpec((), "int32"), -7),
        (ArraySpec((2, 2, 1), "uint8", 0, 255), np.full((2, 2, 1), 255)),
    ):
        np.testing.assert_array_equal(asked_by(spec)._timestep(obs, None, first=True).obs, np.asarray([obs], spec.dtype))
    state, parts = asked_by(PARTS)._timestep((2, {"pair": [4, 7]}), None, first=True).obs
    assert state.tolist() == [2] and parts["pair"].tolist() == [[4, 4]]


def test_policy_takes_one_raw_observation(tmp_path):
    run = go(tmp_path)
    action = run.policy([0.1, 0.2, 0.3, 0.4])
    assert type(action) is int and action == run.policy(np.array([0.1, 0.2, 0.3, 0.4])) == fi.load(run.path, system=STUB).policy(
        [0.1, 0.2, 0.3, 0.4]
    )
    for obs, says in (([1.0], r"shape \[1\], the task's is \[4\]"), ("x", "cannot be read"), (np.zeros((1, 4)), "no batch")):
        with pytest.raises(FlatironsError, match=says):
            run.policy(obs)
    continuous = go(tmp_path, "Pendulum-v1", name="pendulum", total_steps=8, num_envs=1)
    action = continuous.policy(np.zeros(3))
    assert action.shape == (1,) and action.dtype == np.float32 and abs(action[0]) == 2.0
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    env.step(fi.load(continuous.path, system=STUB).policy(obs))


def test_specs_go_through_json():
    arrays = {"image": ArraySpec((4, 8, 8), "uint8", 0, 255, 4), "rest": (ArraySpec(()), ArraySpec((2,), low=-1.0))}
    many = MultiDiscrete((2, 3), start=(4, 0), raw_shape=(1, 2))
    for action in (Discrete(3), MultiDiscrete((2, 3)), many, Box((-1.0, -np.inf), (1.0, np.inf))):
        spec = Spec(arrays | {"count": ArraySpec((), "int32", 0, 3, start=(10,))}, action, 7)
        again = job.spec_from_json(json.loads(json.dumps(folder.strict(job.spec_to_json(spec)))))
        assert (again.obs, again.action, again.max_episode_steps) == (spec.obs, spec.action, spec.max_episode_steps)
    old = job.spec_to_json(Spec({"count": ArraySpec(())}, MultiDiscrete((2, 3)), 7))
    del old["obs"]["dict"]["count"]["array"]["start"], old["action"]["start"], old["action"]["raw_shape"]
    assert job.spec_from_json(old).action == MultiDiscrete((2, 3))


class Shifted(gymnasium.Env):
    """Shows 10 to 13, and takes numbers that begin elsewhere than at 0, in a shape of their own."""

    observation_space = gymnasium.spaces.Discrete(4, start=10)

    def __init__(self, action_space: gymnasium.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return 10, {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        return 13, 1.0, True, False, {}


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(2, start=5),
        gymnasium.spaces.MultiDiscrete([[3, 2]], start=[[5, 0]]),
        gymnasium.spaces.MultiBinary((2, 1)),
        gymnasium.spaces.Box(-0.1, 0.3, (1, 2), np.float64),
    ],
)
def test_a_policy_speaks_the_environments_own_numbers(tmp_path, space):
    run = go(tmp_path, Shifted(space), total_steps=8)
    policies = (run, fi.load(run.path, system=STUB))
    for policy in policies:
        assert policy.policy(13) in space and all(action in space for action in policy.predict([10, 13]))
        assert policy._timestep(13, None, first=True).obs.tolist() == [3]
        with pytest.raises(FlatironsError, match="an observation holds 3, and the task's go from 10 to 13: pass it as"):
            policy.policy(3)
    if not isinstance(space, gymnasium.spaces.Box):
        # With and without a mask in turn.
        num = sum(handle.spaces.choices(policies[0]._acting.spec.action))
        assert policies[0].policy(13, legal=[True] * num) in space and policies[0].policy(13) in space


# -------------------------------------------------------------------------------------------------------------- one's own


def test_own_environment_instance_and_factory(tmp_path, capsys):
    run = go(tmp_path, Lengths(), quiet=False, eval_every=32, eval_episodes=2)
    assert run.config.num_envs == 1 and "num_envs is 1" in capsys.readouterr().out
    assert json.loads((run.path / "config.json").read_text())["own_env"].endswith("Lengths")
    assert run.policy([0.0, 0.0]) == fi.load(run.path, system=STUB).policy([0.0, 0.0])
    with pytest.raises(FlatironsError, match=r"environment of your own \(.*Lengths\); pass env=... again"):
        fi.load(run.path, system=STUB).evaluate(2)
    with pytest.raises(FlatironsError, match="pass env="):
        fi.resume(run.path, system=STUB)
    assert len(fi.load(run.path, env=Lengths, system=STUB).evaluate(9)["returns"]) == 9
    factory = go(tmp_path, Lengths, name="factory", total_steps=64, stop_at=32)
    assert factory.config.num_envs == 2 and fi.resume(factory.path, env=Lengths, system=STUB, quiet=True).step == 64


class Counting(Lengths):
    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        return super().reset(seed=seed, options=options)


class Single(Lengths):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError


def test_evaluating_leaves_the_training_instance_alone(tmp_path):
    plain, watched = Counting(), Counting()
    go(tmp_path, plain, name="plain")
    go(tmp_path, watched, name="watched", callbacks=[lambda run, row: run.evaluate(2) and None])
    assert watched.resets == plain.resets
    run = go(tmp_path, Single(), name="single")
    with pytest.raises(FlatironsError, match="cannot be copied for evaluations"):
        run.evaluate(2)
    with pytest.raises(FlatironsError, match="cannot be copied for evaluations"):
        go(tmp_path, Single(), name="never", eval_every=8)
    assert not (tmp_path / "never").exists() and run.evaluate(2, env=Single())["episodes"] == 2


def test_own_system_must_be_passed_again(tmp_path):
    run = go(tmp_path, total_steps=8)
    with pytest.raises(FlatironsError, match="a system of your own; pass system="):
        fi.load(run.path)


def test_own_network(tmp_path):
    net = Network(
        init=lambda key, spec: mlp_init(key, (spec.shape[0], 5), init="orthogonal"),
        apply=lambda params, obs: mlp(params, jnp.asarray(obs), "tanh"),
    )
    small = {"total_steps": 64, "num_envs": 2, "num_steps": 8, "num_epochs": 1, "num_minibatches": 1, "quiet": True}
    run = fi.train("ppo", CARTPOLE, out=tmp_path / "own", network=net, **small)
    assert jax.tree.leaves(run._state.params["torso"])[0].shape in ((4, 5), (5,))
    with pytest.raises(FlatironsError, match="pass network="):
        fi.load(run.path)
    assert fi.load(run.path, network=net).policy([0.0] * 4) == run.policy([0.0] * 4)


# -------------------------------------------------------------------------------------------------- callbacks and progress


class Stopper:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_iteration(self, run: fi.Run, row: dict[str, Any]) -> bool:
        assert run.step == row["step"] and isinstance(run.policy([0.0] * 4), int)
        self.seen.append(run.step)
        return run.step < 40


def test_callbacks_see_and_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    stopper = Stopper()
    run = go(tmp_path, callbacks=[stopper], total_steps=80)
    assert stopper.seen == [8, 16, 24, 32, 40] and run.step == 40
    assert fi.resume(run.path, system=STUB, quiet=True).step == 80

    def stop(run: fi.Run, row: dict[str, Any]) -> None:
        raise fi.StopTraining

    assert go(tmp_path, name="raised", callbacks=[stop]).step == 8


def test_a_saved_run_keeps_what_it_has_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)

    def saved(run: fi.Run) -> dict[str, Any]:
        return checkpoint.load_latest(run.path / "checkpoints", run._state).meta

    found = []

    def save(run: fi.Run, row: dict[str, Any]) -> None:
        run.save()
        found.append(saved(run))

    run = go(tmp_path, callbacks=[save], total_steps=16, eval_every=8, eval_episodes=1)
    assert found[0]["step"] == 8 and found[0]["best"] == [None] and found[0]["seconds"] > 0 and "compile" in found[0]["timing"]
    assert found[1]["best"] == [run.evaluations[0]["mean"]]
    before = saved(run)
    run.save()
    assert saved(run)["best"] == before["best"] != [None] and saved(run)["seconds"] >= before["seconds"]


def test_the_first_checkpoint_comes_before_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_InGraph", lambda *a: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        go(tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "latest").exists() or list((tmp_path / "run" / "checkpoints").glob("step_*"))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_speaks_plainly_on_a_terminal_and_not_when_quiet(tmp_path, capsys, monkeypatch):
    go(tmp_path)
    said = capsys.readouterr()
    assert said.out == said.err == ""
    go(tmp_path, name="loud", quiet=False)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "64/64 steps" in said and "done: 64 decisions" in said and "compile" in said
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress("x", total=10, start=0, quiet=False) as progress:
        progress.update(5, {"steps_per_second": 5.0, "episode_return": 2.5})
    assert "5/10 steps  5 steps/s  return 2.5  1s left" in terminal.getvalue()
    with Progress("x", total=10, start=0, quiet=False) as progress:
        progress.update(5, {"steps_per_second": 5.0, "episodes": 0, "episode_return": None, "error": 0.25})
    assert "5/10 steps  5 steps/s  error 0.25  1s left" in terminal.getvalue()
    assert (duration(8), duration(185), duration(7620)) == ("8s", "3m05s", "2h07m")
    assert breakdown({"a": 3.0, "b": 1.0}) == "time: 4s = a 3.0s (75%), b 1.0s (25%)" and breakdown({}) == "time: none"


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = go(tmp_path, tensorboard=True, eval_every=64, eval_episodes=1)
    (events,) = (run.path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"evaluation/mean" in events.read_bytes()
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlatironsError, match=r"pip install 'flatirons\[tensorboard\]'"):
        go(tmp_path, name="missing", tensorboard=True)
    assert not (tmp_path / "missing").exists()


def test_a_full_disk_costs_a_log_line_not_the_run(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").mkdir()
    folder.append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert "could not be written" in capfd.readouterr().err
    folder.append_line(tmp_path / "metrics.jsonl", {"step": 2})
    assert capfd.readouterr().err == "", "said once a file"


def test_a_line_that_a_full_disk_cut_short_takes_no_other_with_it(tmp_path, capfd):
    resource = pytest.importorskip("resource")
    lines = tmp_path / "metrics.jsonl"
    # Long, so that what is said on stderr, which is a file here, stays below the limit.
    folder.append_line(lines, {"step": 1, "name": "x" * 100_000})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (lines.stat().st_size + 5, before[1]))
    try:
        folder.append_line(lines, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder.append_line(lines, {"step": 3})
    assert "could not be written (File too large)" in capfd.readouterr().err
    assert [row["step"] for row in folder.read_lines(lines)] == [1, 3] and lines.read_text().endswith('\n{"step": 3}\n')


def test_a_damaged_config_is_taken_from_the_checkpoint_and_said(tmp_path, capfd):
    run = go(tmp_path, total_steps=8)
    good = (run.path / "config.json").read_text()
    damaged = ["", "{", "[]", "{}", "null", '{"system": 3}', good.replace('"num_envs": 2', '"num_envs": 3')]
    flips = np.random.default_rng(0).integers(0, len(good), 20)
    damaged += [good[:i] + chr(ord(good[i]) ^ 1) + good[i + 1 :] for i in flips]
    for bad in damaged:
        (run.path / "config.json").write_text(bad)
        capfd.readouterr()
        assert fi.load(run.path, system=STUB).config == run.config
        assert "damaged or edited; the copy in the newest checkpoint was put back" in capfd.readouterr().err
        assert (run.path / "config.json").read_text() == good
    shutil.rmtree(run.path / "checkpoints")
    for bad in damaged:
        (run.path / "config.json").write_text(bad)
        with pytest.raises(FlatironsError, match=r"^[^\n]*$"):
            fi.load(run.path, system=STUB)
    with pytest.raises(FlatironsError, match="no run folder"):
        fi.load(tmp_path / "nothing")


def test_the_newest_good_copy_of_a_config_is_found(tmp_path, capfd, monkeypatch):
    newest_first = [tmp_path / "checkpoints" / f"step_{step:012d}" for step in (300, 200, 100)]
    for total, place in enumerate([tmp_path, *newest_first]):
        place.mkdir(parents=True, exist_ok=True)
        folder.write_record(place, {"total_steps": total})
    for place in (tmp_path, newest_first[0]):
        (place / "config.json").write_text((place / "config.json").read_text().replace('"total_steps": ', '"total_steps": 6'))
    edited = (tmp_path / "config.json").read_text()
    with monkeypatch.context() as full:
        full.setattr(folder.os, "replace", full_disk)
        assert folder.read_record(tmp_path)["total_steps"] == 2
        assert "edited; the copy in the newest checkpoint is used instead" in capfd.readouterr().err
        assert (tmp_path / "config.json").read_text() == edited and not list(tmp_path.glob("*.tmp"))
    assert folder.read_record(tmp_path)["total_steps"] == 2 and "was put back" in capfd.readouterr().err
    assert (tmp_path / "config.json").read_text() == (newest_first[1] / "config.json").read_text()
    assert folder.read_record(tmp_path)["total_steps"] == 2 and capfd.readouterr().err == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_librarys_commit_is_not_that_of_the_folder_one_works_in(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "mine")
    monkeypatch.chdir(tmp_path)
    found = folder.surroundings()
    assert found["own_git_commit"] == git("rev-parse", "HEAD") != found["git_commit"]


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_config_damaged_while_the_run_goes_on_reaches_no_checkpoint(tmp_path, capfd):
    """Nor one that was edited before it went on: every checkpoint that is kept would hold it in the end."""

    def edit(run: fi.Run, row: dict[str, Any]) -> None:
        place = run.path / "config.json"
        place.write_text(place.read_text().replace('"total_steps": ', '"total_steps": 6'))

    settings = {"total_steps": 32, "keep": 1, "checkpoint_every": 8}
    run = go(tmp_path, stop_at=16, callbacks=[edit], **settings)
    fi.resume(run.path, system=STUB, quiet=True)
    assert "was put back" in capfd.readouterr().err
    again = fi.load(run.path, system=STUB)
    assert (again.step, again.config) == (32, run.config) and capfd.readouterr().err == ""


def test_a_lost_config_is_put_back_and_said(tmp_path, capfd):
    run = go(tmp_path, total_steps=8)
    good = json.loads((run.path / "config.json").read_text())
    for again in (lambda: fi.load(run.path, system=STUB), lambda: fi.resume(run.path, system=STUB, total_steps=16, quiet=True)):
        (run.path / "config.json").unlink()
        capfd.readouterr()
        again()
        said = capfd.readouterr().err
        assert "config.json is missing; the copy in the newest checkpoint was put back" in said and "checksum" not in said
        assert json.loads((run.path / "config.json").read_text())["system"] == good["system"]
    (run.path / "config.json").unlink()
    for file in (run.path / "checkpoints").glob("*/config.json"):
        file.unlink()
    with pytest.raises(FlatironsError, match=r"config\.json is missing, and no checkpoint has a good copy"):
        fi.load(run.path, system=STUB)


def test_the_best_policy_can_be_loaded(tmp_path):
    run = go(tmp_path, total_steps=64, eval_every=8, eval_episodes=2)
    best = fi.load(run.path, system=STUB, best=True)
    means = {line["step"]: line["mean"] for line in run.evaluations}
    assert means[best.step] == max(means.values())
    with pytest.raises(FlatironsError, match="has no best policy, for it was not evaluated while it trained"):
        fi.load(go(tmp_path, name="never").path, system=STUB, best=True)


def test_a_key_press_is_answered_and_quiet_is_respected(capfd):
    for quiet in (False, True):
        with loop.Signals(quiet=quiet) as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.caught == signal.SIGINT
        assert ("stopping after this turn" in capfd.readouterr().err) != quiet


def test_a_damaged_policy_falls_back_loudly(tmp_path, capfd):
    run = go(tmp_path, total_steps=32)
    for file in (run.path / "policy").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    again = fi.load(run.path, system=STUB)
    said = capfd.readouterr().err
    assert "manifest.json; taking the policy of the newest checkpoint instead" in said and "use the policy of another" not in said
    assert_equal(again.actor, run.actor)


# ------------------------------------------------------------------------------------------------------------ several seeds


def test_seeds_in_one_program(tmp_path):
    group = go(tmp_path, seeds=3, seed=4, eval_every=64, eval_episodes=2)
    assert [run.path.name for run in group.runs] == ["seed_4", "seed_5", "seed_6"]
    for i, run in enumerate(group.runs):
        alone = go(tmp_path, seed=4 + i, name=f"alone{i}")
        np.testing.assert_allclose(run.actor, alone.actor, rtol=1e-5)
        assert run.metrics[-1]["episodes"] == alone.metrics[-1]["episodes"] and (run.path / "policy_best").exists()
        assert_equal(fi.load(run.path, system=STUB).actor, run.actor)
    assert [r["returns"] for r in fi.load(group.path, system=STUB).evaluate(2, seed=0)] == [
        r.evaluate(2, seed=0)["returns"] for r in group.runs
    ]
    with pytest.raises(FlatironsError, match="holds 3 seeds"):
        group.policy([0.0] * 4)


@pytest.mark.pictures
def test_seeds_on_a_host_in_turn(tmp_path):
    group = go(tmp_path, "CartPole-v1", seeds=2, total_steps=64)
    assert [run.path.name for run in group.runs] == ["seed_0", "seed_1"] and all(run.step == 64 for run in group.runs)
    assert (group.path / "config.json").exists() and (group.path / "curve.png").exists()
    assert not np.array_equal(group.runs[0].actor, group.runs[1].actor)
    with pytest.raises(FlatironsError, match="workers > 1 starts new processes, which cannot be given a system of your own"):
        go(tmp_path, "CartPole-v1", name="more", seeds=2, workers=2)


def test_warm_start(tmp_path):
    first = go(tmp_path, total_steps=64)
    second = go(tmp_path, name="second", total_steps=64, stop_at=8, learning_rate=0.0, from_run=first.path, seed=9)
    start = fi.resume(second.path, system=STUB, quiet=True, stop_at=16)
    assert np.abs(np.asarray(start._state.params) - np.asarray(first._state.params)).max() < 0.2
    assert start._state.updates == 2
    with pytest.raises(FlatironsError, match=r"params of .* do not fit .*, and widths=\(3,\) \(here \(7,\)\)$"):
        go(tmp_path, name="third", widths=(7,), from_run=first.path)
    with pytest.raises(FlatironsError, match=r"would be written over .*; give another folder"):
        go(tmp_path, name=first.path.name, from_run=first.path, overwrite=True)
    assert (first.path / folder.CHECKPOINTS).is_dir(), "it is still there"


@dataclasses.dataclass(frozen=True)
class Shown:
    """An environment that counts its steps where another of the same spaces does not."""

    counts: bool
    obs_spec: ArraySpec = ArraySpec((1,), "float32", -1.0, 1.0)
    action_spec: Discrete = Discrete(2)
    max_episode_steps: int | None = 5

    def init(self, key):
        return {"shown": jnp.float32(0.5), **({"n": jnp.int32(0)} if self.counts else {})}

    def step(self, key, state, action):
        return {name: x + 1 if name == "n" else x for name, x in state.items()}, jnp.float32(action), jnp.bool_(False)

    def observe(self, state):
        return state["shown"][None]

    def legal(self, state):
        return ()


def test_warm_start_on_an_environment_that_has_changed(tmp_path):
    first = fi.train(STUB, Shown(False), out=tmp_path / "first", total_steps=64, quiet=True)
    second = fi.train(STUB, Shown(True), out=tmp_path / "second", total_steps=8, learning_rate=0.0, from_run=first.path, seed=9, quiet=True)
    begun = checkpoint.load(second.path / "checkpoints" / "step_000000000000", second._state).tree
    assert_equal(begun.params, first._state.params)


def test_warm_start_from_one_seed_of_a_program(tmp_path):
    group = go(tmp_path, name="group", seeds=2, total_steps=16)
    one = go(tmp_path, total_steps=8, from_run=group.path / "seed_1")
    begun = checkpoint.load(one.path / "checkpoints" / "step_000000000000", one._state).tree
    assert_equal(begun.params, group.runs[1].actor)
    with pytest.raises(FlatironsError, match=r"group holds several seeds; start from one of them, as in --from .*group/seed_0$"):
        go(tmp_path, name="another", from_run=group.path)


def test_warm_start_takes_what_dqn_learned_and_not_its_progress(tmp_path):
    settings = {
        "num_envs": 2, "train_every": 8, "gradient_steps": 2, "batch_size": 4, "buffer_size": 64, "learning_starts": 16, "hidden": (8,),
        "total_steps": 320, "quiet": True,
    }  # fmt: skip
    first = fi.train("dqn", CARTPOLE, out=tmp_path / "first", epsilon_steps=100, **settings)
    second = fi.train("dqn", CARTPOLE, out=tmp_path / "second", stop_at=8, from_run=first.path, epsilon_steps=100, **settings)
    alone = fi.train("dqn", CARTPOLE, out=tmp_path / "alone", stop_at=8, epsilon_steps=100, **settings)
    assert_equal((second._state.params, second._state.target), (first._state.params, first._state.target))
    assert_equal((second._state.turns, second._state.epsilon), (alone._state.turns, alone._state.epsilon))
    assert first._state.epsilon < alone._state.epsilon


def test_warm_start_gives_every_a3c_learner_a_copy_of_what_was_learned(tmp_path):
    small: dict[str, Any] = {"num_envs": 4, "num_steps": 5, "hidden": (4,), "total_steps": 40, "quiet": True}
    still = small | {"learning_rate": 0.0}
    first = fi.train("a3c", CARTPOLE, out=tmp_path / "first", actor_learners=2, **small)
    more = fi.train("a3c", CARTPOLE, out=tmp_path / "more", actor_learners=4, seeds=2, from_run=first.path, **still)
    for x, copies in zip(leaves(first._state.params), leaves(more._state.copies), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(x, (2, 4, *x.shape)), copies)
    race = fi.train(
        "a3c", "CartPole-v1", out=tmp_path / "race", actor_learners=2, mode="threads", trajectories=2, from_run=first.path, **still
    )
    assert race._state.copies == ()
    back = fi.train("a3c", CARTPOLE, out=tmp_path / "back", actor_learners=1, from_run=race.path, **still)
    assert_equal(back._state.params, first._state.params)
    assert_equal(jax.tree.map(lambda x: x[0], back._state.copies), first._state.params)


@pytest.mark.parametrize("system", ["sac", "ddpg"])
def test_warm_start_collects_with_what_was_learned_and_not_at_random(tmp_path, system):
    small = {
        "train_every": 4, "batch_size": 4, "buffer_size": 64, "learning_starts": 64, "hidden": (4,), "random_steps": 48, "overlap": True,
        "total_steps": 80, "quiet": True,
    }  # fmt: skip
    first = fi.train(system, "jax:Pendulum-v1", out=tmp_path / "first", stop_at=4, **small)
    second = fi.train(system, "jax:Pendulum-v1", out=tmp_path / "second", stop_at=8, from_run=first.path, **small)
    assert bool(first._state.random) and not bool(second._state.random) and not bool(second._state.behind.random)
    actor, behind = first._state.params["actor"], first.system.warmed(second._state._replace(params=first._state.params)).behind
    assert_equal(behind.params, actor)


def test_warm_start_collects_with_what_dqn_learned_while_the_learner_computes(tmp_path):
    small = {"train_every": 4, "batch_size": 4, "buffer_size": 64, "hidden": (4,), "overlap": True, "total_steps": 80, "quiet": True}
    first = fi.train("dqn", CARTPOLE, out=tmp_path / "first", stop_at=4, learning_starts=64, **small)
    state = first._state._replace(params=jax.tree.map(lambda x: x + 1.0, first._state.params))
    assert_equal(first.system.warmed(state).behind.params, state.params)


def test_warm_start_keeps_ppos_moments_for_another_number_of_environments(tmp_path):
    small = {**PPO, "total_steps": 320, "quiet": True, "normalise_obs": True, "normalise_reward": True}
    first = fi.train("ppo", CARTPOLE, out=tmp_path / "first", **small)
    second = fi.train("ppo", CARTPOLE, out=tmp_path / "second", stop_at=64, from_run=first.path, **{**small, "num_envs": 4})
    seen = [
        [moments.count for moments in (jax.tree.leaves(s.obs, is_leaf=lambda x: hasattr(x, "m2"))[0], s.reward)]
        for s in (first._state.normaliser, second._state.normaliser)
    ]
    assert seen == [[320.0, 320.0], [384.0, 384.0]] and second._state.normaliser.discounted.shape == (4,)
    for change in ({"normalise_obs": False}, {"hidden": (9,)}):
        with pytest.raises(FlatironsError, match="do not fit ppo with these settings"):
            fi.train("ppo", CARTPOLE, out=tmp_path / "third", from_run=first.path, **{**small, **change})
    assert not (tmp_path / "third").exists()


# ------------------------------------------------------------------------------------------------------------ PPO and DQN

PPO = {"num_envs": 2, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden": (8,)}


@pytest.mark.parametrize("task", [CARTPOLE, "CartPole-v1"])
def test_ppo_runs_on_both_kinds_of_task(tmp_path, task):
    run = fi.train("ppo", task, out=tmp_path / "run", total_steps=320, quiet=True, **PPO)
    assert run.step == 320 and np.isfinite(run.metrics[-1]["loss"]) and run.evaluate(3)["min"] >= 8
    assert run.policy([0.0] * 4) == fi.load(run.path).policy([0.0] * 4)


def test_compilation_cache_is_silent_where_it_cannot_be(tmp_path, monkeypatch, capfd):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FLATIRONS_CACHE", str(tmp_path / "file"))
        train.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setenv("FLATIRONS_CACHE", str(tmp_path / "cache"))
        train.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert capfd.readouterr().err == ""


def test_cpu_count_is_recorded():
    assert folder.surroundings()["cpu_count"] == os.cpu_count()


@dataclasses.dataclass(frozen=True)
class _Trap:
    """Counts up to 3, where no action is legal although the episode goes on; two choices where `both`."""

    both: bool = False
    ends: bool = False
    max_episode_steps: int | None = 10

    @property
    def obs_spec(self) -> ArraySpec:
        return ArraySpec((1,))

    @property
    def action_spec(self) -> Any:
        return MultiDiscrete((2, 2)) if self.both else Discrete(2)

    def init(self, key: Any) -> Any:
        return jnp.zeros(())

    def step(self, key: Any, state: Any, action: Any) -> Any:
        return state + 1, jnp.float32(1.0), (state + 1 >= 3) & self.ends

    def observe(self, state: Any) -> Any:
        return state[None]

    def legal(self, state: Any) -> Any:
        one = jnp.stack([state < 3, jnp.array(False)])
        return jnp.concatenate([jnp.ones(2, bool), one]) if self.both else one


@dataclasses.dataclass(frozen=True)
class _Diverging:
    """An in-graph simulator whose observation or reward is NaN from its `after`-th step on, and whose episodes are longer."""

    after: int
    in_reward: bool = False
    max_episode_steps: int | None = 1_000

    @property
    def obs_spec(self) -> ArraySpec:
        return ArraySpec((1,))

    @property
    def action_spec(self) -> Any:
        return Box((-1.0,), (1.0,))

    def init(self, key: Any) -> Any:
        return jnp.zeros(())

    def step(self, key: Any, state: Any, action: Any) -> Any:
        state = state + 1
        return state, jnp.where(self.in_reward & (state >= self.after), jnp.nan, 1.0), jnp.zeros((), bool)

    def observe(self, state: Any) -> Any:
        return jnp.where((state >= self.after) & (not self.in_reward), jnp.nan, state / 1_000)[None]

    def legal(self, state: Any) -> tuple[()]:
        return ()


@pytest.mark.parametrize("in_reward", [False, True])
def test_an_in_graph_simulator_that_diverges_is_named_and_no_checkpoint_holds_it(in_reward: bool, tmp_path: Path) -> None:
    # The NaN comes before the first update, so that no loss can tell of it, and in the last row of a checkpoint's stretch.
    small: dict[str, Any] = {"num_envs": 1, "train_every": 4, "batch_size": 4, "buffer_size": 64, "learning_starts": 64, "hidden": (4,)}
    with pytest.raises(
        FlatironsError, match=r"_Diverging gave an observation or a reward that is NaN or infinite between decisions 8 and 12"
    ):
        fi.train("sac", _Diverging(12, in_reward), out=tmp_path / "run", total_steps=80, checkpoint_every=4, quiet=True, **small)
    assert fi.load(tmp_path / "run", env=_Diverging(12, in_reward)).step == 8
    if in_reward:
        return
    run = fi.train("sac", _Diverging(100, in_reward), out=tmp_path / "good", total_steps=80, quiet=True, **small)
    assert "broken" not in run.metrics[-1]


@pytest.mark.parametrize("both", [False, True])
def test_a_state_without_a_legal_action_is_an_error_that_names_it(both: bool, tmp_path: Path) -> None:
    small: dict[str, Any] = {"num_envs": 2, "num_steps": 5, "num_minibatches": 1, "hidden": (4,), "total_steps": 20, "quiet": True}
    with pytest.raises(FlatironsError, match="_Trap had no legal action in 4 decisions between 0 and 10"):
        fi.train("ppo", _Trap(both), out=tmp_path / "run", **small)
    run = fi.train("ppo", _Trap(both, ends=True), out=tmp_path / "good", **small)
    assert "stuck" not in run.metrics[-1]
    mask = [True, True, True, False] if both else [True, False]
    assert np.asarray(run.policy([1.0], legal=mask)).tolist() in ([0, 0], [1, 0], 0)
    with pytest.raises(FlatironsError, match="leaves no legal action; the episode should have ended"):
        run.policy([3.0], legal=[True, True, False, False] if both else [False, False])
    with pytest.raises(FlatironsError, match="legal has shape"):
        run.policy([3.0], legal=[True] * 3)
