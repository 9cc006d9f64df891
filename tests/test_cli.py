"""The command line: help without JAX, flags from the Config, one sentence for every mistake, and every command on a small run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatirons import systems
from flatirons.__main__ import COMMANDS, main
from flatirons.run import cli, doctor, listing, play, report
from flatirons.types import FlatironsError

TINY = ["--num-envs", "2", "--num-steps", "16", "--num-epochs", "1", "--num-minibatches", "1", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of PPO, trained from the command line."""
    out = tmp_path_factory.mktemp("runs") / "ppo"
    train = ["train", "ppo", "jax:CartPole-v1", "--total-steps", "6.4e2", "--seed", "3", "--out", str(out), "--eval-every", "320"]
    assert main([*train, "--eval-episodes", "2", *TINY]) == 0
    return out


def parsed(module: Any, *arguments: str, defaults: Any = None) -> tuple[cli.RunFlags, dict[str, Any]]:
    return cli.parse_train("flatirons train SYSTEM TASK", module, defaults or module.Config(), arguments)


def sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What a mistaken command says: exactly one line on stderr, nothing on stdout, status 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("flatirons: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


# ------------------------------------------------------------------------------------------------------------------- light


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["nonsense"], ["eval", "--nonsense"]])
def test_help_and_typos_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom flatirons.__main__ import main\nmain(sys.argv[1:])\n"
        "assert not {'jax', 'numpy', 'tyro', 'gymnasium'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert set(cli.COMMANDS) == set(COMMANDS)
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flatirons 0.")


# -------------------------------------------------------------------------------------------------------------- train flags


@pytest.mark.parametrize("module", systems.SYSTEMS, ids=systems.system_name)
def test_every_field_is_a_documented_flag(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", systems.system_name(module), "--help"]) == 0
    shown = capsys.readouterr().out
    for name in [f.name for f in dataclasses.fields(module.Config)] + [f.name for f in dataclasses.fields(cli.RunFlags)]:
        flag = "--from" if name == "from_run" else "--" + name.replace("_", "-")
        assert f"{flag} " in shown or f"{flag}," in shown, flag
    docs = listing.field_docs(module.Config)
    assert all(docs.get(f.name) for f in dataclasses.fields(module.Config))
    assert {f.name for f in dataclasses.fields(module.Config)}.isdisjoint(f.name for f in dataclasses.fields(cli.RunFlags))


def test_help_shows_the_defaults_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dqn", "--preset", "dqn-nature", "--help"]) == 0
    assert "1_000_000" in capsys.readouterr().out


def test_flags_become_values_of_the_fields_types() -> None:
    from flatirons.systems import dqn, ppo

    arguments = ["--total-steps", "1e5", "--hidden", "32", "16", "--no-anneal-learning-rate", "--max-grad-norm", "none", "--gamma=0.5"]
    flags, chosen = parsed(ppo, *arguments, "--seed", "1_000", "--from", "runs/a", "--learning_rate", "2", "--overwrite")
    assert chosen == {
        "total_steps": 100_000, "hidden": (32, 16), "anneal_learning_rate": False, "max_grad_norm": None, "gamma": 0.5, "learning_rate": 2.0
    }  # fmt: skip
    assert type(chosen["total_steps"]) is int and type(chosen["learning_rate"]) is float
    assert (flags.seed, flags.from_run, flags.overwrite, flags.quiet, flags.out) == (1000, "runs/a", True, False, None)
    # A flag given with its default's own value still counts as given: it must win over any preset.
    assert parsed(ppo, "--gamma", str(ppo.Config().gamma))[1] == {"gamma": ppo.Config().gamma}
    assert parsed(dqn, "--error", "squared", "--network", "minatar")[1] == {"error": "squared", "network": "minatar"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--total-stps", "4"], "did you mean --total-steps?"),
        (["--totl_steps=4"], "did you mean --total-steps?"),
        (["--ovewrite"], "did you mean --overwrite?"),
        (["--total-steps", "1.5"], "'1.5' is not a whole number"),
        (["--gamma", "nan"], "'nan' is not a finite number"),
        (["--gamma", "big"], "'big' is not a number"),
        (["--max-grad-norm", "big"], "'big' is not a number"),
        (["--hidden", "1", "x"], "hidden"),
        (["--activation", "sine"], "tanh"),
        (["--seed"], "--seed"),
        (["--network"], "--network"),
    ],
)
def test_mistaken_flags_get_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in sentence(capsys, ["train", "ppo", "CartPole-v1", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "ppo"], "did you mean 'train'?"),
        (["train"], "a system and a task"),
        (["train", "ppo"], "needs a task"),
        (["train", "ppo", "CartPole-v1", "dqn"], "one argument too many"),
        (["train", "pppo", "CartPole-v1"], "did you mean 'ppo'?"),
        (["train", "ppo", "jax:CartPol-v1"], "CartPole-v1"),
        (["train", "ppo", "CartPole-v1", "--preset", "ppo-clasic"], "did you mean 'ppo-classic'?"),
        (["train", "ppo", "CartPole-v1", "--env.sticky"], "needs a value"),
        (["train", "ppo", "CartPole-v1", "--total-steps", "3"], "total_steps"),
        (["train", "dqn", "jax:Pendulum-v1"], "Discrete"),
        (["train", "PPO", "CartPole-v1"], "did you mean 'ppo'?"),
        (["train", "mc-dropout", "CartPole-v1"], "did you mean 'mc_dropout'?"),
        (["train", "ppo", "jax:Cartpole-v1"], "did you mean jax:CartPole-v1"),
        (["eval"], "RUN"),
        (["eval", "x", "--simulations", "4"], "there is no flag --simulations; `flatirons eval --help`"),
        (["resume", "x", "--num-envs", "4"], "there is no flag --num-envs; a resumed run keeps the settings"),
        (["resume", "x", "--devics", "2"], "did you mean --devices?"),
        (["eval", "no/such/run"], "does not exist"),
        (["eval", "x", "--episods", "3"], "did you mean --episodes?"),
        (["eval", "x", "--episodes", "1.5"], "'1.5' is not a whole number"),
        (["eval", "x", "--episodes", "0"], "at least 1"),
        (["eval", "x", "--seed", "99999999999999999999"], "is no seed; give a whole number from 0 to"),
        (["play", "x", "--seed", "1e30"], "is no seed"),
        (["play", "x", "--simulations", "900000000"], "must be from 0 to 1_000_000"),
        (["analyse", "x", "--seed", "-1"], "is no seed"),
        (["uci", "x", "--seed", "1e30"], "is no seed"),
        (["play", "no/such/run"], "does not exist"),
        (["plot", "no/such/run"], "does not exist"),
        (["resume", "no/such/run"], "does not exist"),
        (["list", "pppo"], "did you mean 'ppo'?"),
        (["list", "dqnn"], "did you mean 'dqn'?"),
        (["train", "ddqn", "CartPole-v1"], "did you mean 'dqn'?"),
        (["list", "qqqqqqqq"], "unknown system 'qqqqqqqq': `flatirons list`"),
        (["check", "CartPol-v1"], "CartPole-v1"),
        (["doctor", "now"], "one argument too many"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in sentence(capsys, arguments)
    assert not list(tmp_path.iterdir()), "a mistake left something behind"


def test_environment_options_are_read_as_values() -> None:
    options, rest = cli.split_env_options(["--env.sticky", "0.25", "--seed", "1", "--env.fire=true", "--env.the-name", "x", "--env.n=-3"])
    assert options == {"sticky": 0.25, "fire": True, "the_name": "x", "n": -3}
    assert rest == ["--seed", "1"]
    settings, rest = cli.split_settings(["--eval-steps", "0", "5", "runs/a", "--eval-shots=1", "--json"], "--eval-")
    assert settings == {"eval_steps": [0, 5], "eval_shots": 1} and rest == ["runs/a", "--json"]


def test_existing_folder_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    said = sentence(capsys, ["train", "ppo", "jax:CartPole-v1", "--total-steps", "32", "--out", str(run), *TINY])
    assert "--overwrite" in said and "resume" in said
    assert (run / "metrics.jsonl").read_bytes() == before


# ----------------------------------------------------------------------------------------------------------- other commands


def test_eval_prints_one_json_object(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import flatirons

    load = flatirons.load
    monkeypatch.setattr(flatirons, "load", lambda path, **more: print("something to say while loading") or load(path, **more))
    arguments = ["eval", str(run), "--episodes", "3", "--seed", "7"]
    assert main([*arguments, "--json"]) == 0
    first = capsys.readouterr().out
    result = json.loads(first)
    assert list(result) == ["system", "task", "episodes", "mean", "std", "min", "max", "returns", "lengths"]
    assert (result["system"], result["task"], result["episodes"]) == ("ppo", "jax:CartPole-v1", 3)
    assert result["mean"] == pytest.approx(np.mean(result["returns"])) and len(result["lengths"]) == 3
    assert main([*arguments, "--json"]) == 0
    assert capsys.readouterr().out == first, "the same seed gave other episodes"
    assert main(arguments) == 0
    assert f"{result['mean']:.2f}" in capsys.readouterr().out


def test_eval_of_the_best_policy(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import shutil

    best = json.loads((run / "policy_best" / "manifest.json").read_text())["meta"]["step"]
    assert main(["eval", str(run), "--best", "--episodes", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"the best policy, after {best:_} decisions: ppo on jax:CartPole-v1")
    never = shutil.copytree(run, tmp_path / "never")
    shutil.rmtree(never / "policy_best")
    assert "not evaluated while it trained" in sentence(capsys, ["eval", str(never), "--best"])


def test_eval_values_is_refused_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    import flatirons

    played = SimpleNamespace(system=systems.reinforce, evaluate=lambda **_: pytest.fail("it played first"))
    monkeypatch.setattr(flatirons, "load", lambda *_, **__: played)
    said = sentence(capsys, ["eval", str(record(tmp_path / "a", [1.0])), "--values"])
    assert "reinforce keeps no estimate" in said


@pytest.mark.parametrize(
    ("command", "example", "other", "better"),
    [("gtp", "go_9x9", "chess", "uci"), ("uci", "chess", "go-9x9", "gtp"), ("usi", "shogi", "pgx:chess", "uci")],
)
def test_an_engine_refuses_another_protocols_game_unloaded(
    command: str, example: str, other: str, better: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatirons.envs import games

    monkeypatch.setattr(games, "make", lambda name: pytest.fail(f"{name} was loaded"))
    assert f"use flatirons {better}" in sentence(capsys, [command, "mcts:5", "--game", other])
    assert f"as in --game {example}" in sentence(capsys, [command, "mcts:5"])
    assert main([command, "--help"]) == 0
    assert f"such as {example}," in capsys.readouterr().out


def test_a_run_without_its_config_is_a_run(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    lost = shutil.copytree(run, tmp_path / "lost")
    (lost / "config.json").unlink()
    assert main(["eval", str(lost), "--episodes", "1"]) == 0
    said = capsys.readouterr().err
    assert "config.json is missing" in said and "checksum" not in said
    assert json.loads((lost / "config.json").read_text()) == json.loads((run / "config.json").read_text())


def test_what_comes_next_leaves_out_what_cannot_be_played(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, env, in_graph, played in (
        ("lake", "mdp:FrozenLake-v1", True, False),
        ("pole", "jax:CartPole-v1", True, True),
        ("four", "pgx:connect_four", True, True),
        ("pool", "envpool:Ant-v5", False, False),
        ("host", "no-velocity:Pendulum-v1", False, True),
        ("own", None, False, False),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"env": env, "in_graph": in_graph}))
        cli._say_what_next(tmp_path / name)
        shown = capsys.readouterr().out
        assert ("flatirons play" in shown) == played and "flatirons eval" in shown and "flatirons plot" in shown, name


def test_a_damaged_config_is_mended_by_whatever_looks_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flatirons.run import folder

    record(tmp_path / "run", [1.0, 2.0])
    copy = tmp_path / "run" / "checkpoints" / "step_000000000200"
    copy.mkdir(parents=True)
    folder.write_record(copy, {"system": "ppo", "task": "jax:CartPole-v1", "env": "jax:CartPole-v1", "in_graph": True})
    for looks in (lambda: report.read(tmp_path / "run").task == "jax:CartPole-v1", lambda: cli._can_be_played(tmp_path / "run")):
        for damage in (lambda place: place.write_text("{"), Path.unlink):
            damage(tmp_path / "run" / "config.json")
            assert looks() and "was put back" in capsys.readouterr().err


def test_play_of_envpool_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"env": "envpool:Ant-v5", "system": "sac"}))
    with pytest.raises(
        FlatironsError, match="envpool:Ant-v5 cannot be drawn: the pictures of EnvPool's simulators are not read here; `flatirons eval`"
    ):
        play.play(tmp_path)


def test_eval_does_not_play_the_episodes_of_the_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for more in ([], ["--seed", "10003"], ["--seed", "0"]):
        assert main(["eval", str(run), "--episodes", "8", "--json", *more]) == 0
        shown.append(json.loads(capsys.readouterr().out)["returns"])
    assert shown[0] == shown[1] != shown[2]


def test_resume_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(run), "--total-steps", "704", "--quiet"]) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 704
    capsys.readouterr()


def test_play_writes_a_video(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["play", str(run), "--video", str(tmp_path / "a.gif"), "--max-steps", "5", "--best"]) == 0
    said = capsys.readouterr().out
    assert "ppo on jax:CartPole-v1, its best policy, after" in said and "a.gif" in said
    assert (tmp_path / "a.gif").read_bytes()[:3] == b"GIF"
    if doctor.ffmpeg():
        assert main(["play", str(run), "--max-steps", "5"]) == 0
        assert (run / "play.mp4").read_bytes()[4:8] == b"ftyp"
    capsys.readouterr()
    assert "end its name in" in sentence(capsys, ["play", str(run), "--video", str(tmp_path / "a.avi")])


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for module in systems.SYSTEMS:
        assert systems.system_name(module) in shown
        assert all(preset in shown for preset in module.PRESETS)
        assert main(["list", systems.system_name(module)]) == 0
        one = capsys.readouterr().out
        assert all(f.name in one for f in dataclasses.fields(module.Config))
        assert one.count("expected") >= len(module.PRESETS) and one.count("hours") >= len(module.PRESETS)
    assert all(f"  {family} " in shown for family in listing.tasks())
    prefixes = [word.removesuffix("NAME") for word in listing.tasks() if word.endswith(":NAME")]
    assert {"jax:", "pgx:", "mdp:", "probe:", "data:", "meta:", "envpool:", "pixels:", "discrete:"} <= set(prefixes)
    assert all(task in shown for task in ("ALE/", "no-velocity:", "sequence:", "minatar-breakout"))
    assert all(task in shown for task in ("Fetch", "HandManipulate", "AntMaze", "navigation", "mnist"))


def test_list_says_which_tasks_a_preset_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in ("alphago-value", "ewc", "dqn"):
        assert main(["list", name]) == 0
        shown[name] = capsys.readouterr().out
    assert "pgx:go_9x9, pgx:go_19x19," in shown["alphago-value"]
    assert "any task that the system takes, when asked for" in shown["ewc"] and "any task, when asked for" not in shown["ewc"]
    assert "any task, when asked for" in shown["dqn"]


def test_actions_of_a_system() -> None:
    from flatirons.systems import dqn, ppo

    assert listing.actions(dqn) == ["Discrete"]
    assert "Box" in listing.actions(ppo)


def test_check_fails_for_a_bad_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["check", "jax:CartPole-v1"]) == 0
    assert "0 errors" in capsys.readouterr().out
    from types import SimpleNamespace

    from flatirons import envs

    bad = [SimpleNamespace(level="error", name="reward finite", message="reward is nan.", fix="return a number.")]
    monkeypatch.setattr(envs, "check", lambda task, **options: bad)
    assert main(["check", "jax:CartPole-v1"]) == 1
    assert "Fix: return a number." in capsys.readouterr().out


def test_check_sets_the_options_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "jax:CartPole-v1", "--env.max_episode_steps", "30"]) == 0
    assert "0 errors" in capsys.readouterr().out
    assert "did you mean max_episode_steps" in sentence(capsys, ["check", "jax:CartPole-v1", "--env.max_episode_step", "30"])
    for name in ("seed", "training", "num_envs"):
        assert f"{name} is no option of the environment" in sentence(capsys, ["check", "CartPole-v1", f"--env.{name}", "1"])
    for name in ("max_steps", "nonsense"):
        assert "CartPole-v1 does not take these options" in sentence(capsys, ["check", "CartPole-v1", f"--env.{name}", "1"])


def test_a_title_is_a_whole_sentence() -> None:
    from flatirons import studies

    for module in (*systems.SYSTEMS, *studies.STUDIES):
        said = listing.title(module)
        assert said.endswith(".") and said.count("(") == said.count(")") and "\n" not in said, said
    assert listing.title(systems.a3c).endswith("Algorithms 1, S2 and S3.") and "et al. 2016" in listing.title(systems.ddpg)


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "games", ("no-such-package",))
    unwritable = tmp_path / "file"
    unwritable.write_text("")
    monkeypatch.setenv("FLATIRONS_CACHE", str(unwritable / "cache"))
    monkeypatch.setattr(doctor, "_jax", lambda: iter(["devices     skipped"]))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'flatirons[games]'" in shown
    assert "cannot be written" in shown


# -------------------------------------------------------------------------------------------------------------------- curves


def record(folder: Path, returns: list[float | None], system: str = "ppo", evaluations: int = 0) -> Path:
    """A run folder with these training returns, one per 100 decisions."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"system": system, "task": "CartPole-v1"}))
    rows = [{"step": 100 * (i + 1), "episode_return": r, "episodes": 0 if r is None else 2, "loss": 0.5} for i, r in enumerate(returns)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [{"step": 100 * (i + 1), "mean": 1.0 + i} for i in range(evaluations)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return folder


def test_smoothing_weighs_by_episodes() -> None:
    curve = report.Curve(np.arange(3.0), np.array([1.0, 4.0, 10.0]), np.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(report.smooth(curve, 2), [1.0, 3.0, 6.0])
    np.testing.assert_allclose(report.smooth(curve, 1), curve.value)


def test_interval_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(size=(8, 5))
    low, high = report.interval(values)
    assert (low < values.mean(axis=0)).all() and (values.mean(axis=0) < high).all()
    np.testing.assert_array_equal(report.interval(values)[0], low)
    # The mean of eight standard normals has a deviation of 0.35: 95 % is about 1.4 wide.
    assert 0.7 < float((high - low).mean()) < 2.0


def test_seeds_are_drawn_together_on_common_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "g" / "seed_0", [1.0, 2.0, 3.0, 4.0])
    record(tmp_path / "g" / "seed_1", [None, 3.0, None, 5.0, 6.0])
    run = report.read(tmp_path / "g")
    assert [len(c.step) for c in run.training] == [4, 3]
    steps, values = report._on_common_steps(tmp_path, run.training, [c.value for c in run.training])
    np.testing.assert_allclose(steps, [200, 300, 400])
    np.testing.assert_allclose(values, [[2, 3, 4], [3, 4, 5]])
    assert "came to 400 to 500 steps; their mean is drawn as far as all of them came" in capsys.readouterr().err


def test_of_games_evaluations_alone_are_drawn(tmp_path: Path) -> None:
    assert set(report.GAMES) == {systems.system_name(module) for module in systems.SYSTEMS if hasattr(module, "analyse")}
    path = record(tmp_path / "a", [0.5, 0.6], evaluations=2, system="alphazero")
    run = report.read(path)
    assert not run.training and len(run.evaluations) == 1 and report.measure([path]) == "episode_return"
    rows = path / "metrics.jsonl"
    rows.write_text("".join(json.dumps(json.loads(line) | {"loss": 1.0}) + "\n" for line in rows.read_text().splitlines()))
    (path / "evaluations.jsonl").unlink()
    assert report.measure([path]) == "loss" and len(report.read(path, "loss").training) == 1


def test_plot_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = record(tmp_path / "a", [None, 1.0, 2.0], evaluations=2)
    for seed in range(3):
        record(tmp_path / "b" / f"seed_{seed}", [seed + 1.0, seed + 2.0], system="dqn")
    record(tmp_path / "b" / "extra", [1.0])
    (tmp_path / "b" / "config.json").write_text(json.dumps({"system": "dqn", "task": "CartPole-v1"}))
    out = tmp_path / "new" / "curves.png"
    assert main(["plot", str(a), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in out.parent.iterdir()] == ["curves.png"]
    assert main(["plot", str(a)]) == 0 and (a / "curve.png").exists()
    assert main(["plot", str(a), "--metric", "loss", "--out", str(tmp_path / "loss.svg")]) == 0
    capsys.readouterr()
    assert "it has" in sentence(capsys, ["plot", str(a), "--metric", "los"])
    assert ".png" in sentence(capsys, ["plot", str(a), "--out", str(tmp_path / "x.foo")])


def learned_from_data(folder: Path, measure: str) -> Path:
    """A run folder of a system that plays no episodes."""
    record(folder, [None, None], system="mc_dropout")
    rows = [{"step": step, "episodes": 0, "episode_return": None, measure: 1.0 / step, "loss": 2.0} for step in (100, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluations.jsonl").write_text(json.dumps({"step": 200, "mean": 0.5}) + "\n")
    return folder


def test_a_run_without_episodes_is_drawn_by_its_own_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = learned_from_data(tmp_path / "a", "error"), learned_from_data(tmp_path / "b", "average_accuracy")
    plays = record(tmp_path / "plays", [1.0, 2.0])
    assert [report.measure([path]) for path in (a, b, plays)] == ["error", "average_accuracy", "episode_return"]
    assert report.measure([a, b]) == report.measure([a, plays]) == "loss"
    assert main(["plot", str(a)]) == 0 and (a / "curve.png").exists()
    capsys.readouterr()
    assert "it has episodes, error, loss; choose one with --metric" in sentence(capsys, ["plot", str(a), "--metric", "los"])


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    run = record(tmp_path / "a", [1.0, 2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "episode_ret')
    assert len(report.read(run).training[0].step) == 2


def test_lines_that_are_none_of_ours_are_not_drawn(tmp_path: Path) -> None:
    run = record(tmp_path / "a", [1.0, 2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": "300", "episode_return": 1.0}\n{"step": 400, "episode_return": 3.0, "episodes": "two"}\n')
    curve = report.read(run).training[0]
    assert (list(curve.step), list(curve.weight)) == ([100.0, 200.0, 400.0], [2.0, 2.0, 1.0])


def test_a_picture_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    run = record(tmp_path / "a", [1.0, 2.0])
    before = sorted(run.iterdir())
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FlatironsError, match=r"cannot write .*curve\.png: No space left on device"):
        report.draw([run], run / "curve.png")
    assert sorted(run.iterdir()) == before


def test_a_run_without_anything_to_draw_says_so(tmp_path: Path) -> None:
    with pytest.raises(FlatironsError, match="nothing yet"):
        report.draw([record(tmp_path / "a", [])], tmp_path / "a.png")
    with pytest.raises(FlatironsError, match="not a run folder"):
        report.draw([tmp_path / "b"], tmp_path / "a.png")


# ------------------------------------------------------------------------------------------------------- what others print


@pytest.mark.parametrize(("code", "status", "said"), [(None, 0, ""), (0, 0, ""), (5, 5, ""), ("no licence", 1, "no licence\n")])
def test_somebodys_exit_is_answered_as_python_does(
    code: Any, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", lambda arguments: sys.exit(code))
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Value error ─────────────╮\n│ Error parsing --seed: 'abc' │\n│ is not a number           │\n├───────────╮\n│ more │\n",
        " Value error \n ----------- \n  Error parsing --seed: 'abc'\n  is not a number  \n  -------\n  Argument helptext:\n",
        "+- Value error -+\n| Error parsing --seed: 'abc' |\n| is not a number |\n+-----+\n| more |\n",
    ],
)
def test_an_error_box_of_any_letters_is_read(box: str) -> None:
    assert cli._first_sentence(box) == "error parsing --seed: 'abc' is not a number"


def test_a_mistake_is_one_sentence_where_output_is_ascii() -> None:
    import os

    code = (
        "import dataclasses\nfrom flatirons.run import cli\n"
        "Flags = dataclasses.make_dataclass('Flags', [('total_steps', int, dataclasses.field(default=3))])\n"
        "try:\n    cli._parse_with_tyro(Flags, 'flatirons train', '', ['--total-steps', 'abc'])\n"
        "except cli.UsageError as error:\n    print(error)"
    )
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.stdout.startswith("error parsing --total-steps: 'abc' is not a"), done
    assert "--- " not in done.stdout and done.stdout.rstrip().endswith("`flatirons train --help` shows every flag.")
