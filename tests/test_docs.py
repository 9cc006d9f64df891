"""The documents keep their word: README's Python runs, its commands parse, links lead somewhere, tables equal the results, examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
from small_data import pictures, rows

from flatirons import envs, studies, systems
from flatirons.__main__ import COMMANDS
from flatirons.run import cli, listing

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCK.findall(README) if language == "python"]
# Where a system does not take CartPole.
SMALL_TASKS: dict[str, Any] = {"tabular": "mdp:FrozenLake-v1", "ddpg": "jax:Pendulum-v1", "sac": "jax:Pendulum-v1", "ewc": pictures()}
SMALL_TASKS |= {"ewc_dqn": "sequence:probe:action,probe:constant-reward", "mc_dropout": rows(), "maml": "meta:sinusoid"}
SMALL_TASKS |= dict.fromkeys(("alphago-sl", "alphago-rl", "alphago-value", "alphago", "alphazero"), "pgx:tic_tac_toe")
STUDY_PAGES = {"ewc_dqn": ("ewc", "dqn")}
COMMAND_LINES = [
    line.partition("#")[0].strip()
    for page in PAGES
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8"))
    for line in block.splitlines()
    if line.startswith("flatirons ") and not language
]


def page_of(module: Any) -> str:
    """A system's page; the stages of one paper share theirs."""
    return f"docs/{systems.system_name(module).partition('-')[0]}.md"


def loaded(path: Path) -> ModuleType:
    """A Python file outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_readme_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A tenth of the training that is shown: the calls are what is tested here, not the score.
    code = PYTHON[number].replace("total_steps=20_480", "total_steps=2_048")
    scope: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, f"README block {number}", "exec"), scope)
    assert list(tmp_path.glob("runs/*/policy"))


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 2 and len(COMMAND_LINES) >= 12


@pytest.mark.parametrize("line", sorted(set(COMMAND_LINES)))
def test_documented_commands_parse(line: str) -> None:
    command, *arguments = shlex.split(line)[1:]
    assert command in COMMANDS
    if command != "train":
        return
    name, *arguments = arguments
    module, _, _ = studies.find(name)
    task = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    if arguments == ["--help"]:
        return
    options, rest = cli.split_env_options(arguments)
    cli.parse_train("flatirons train", module, listing.settings(name, task, None)[1], rest)
    if task is not None and task.startswith("ALE/"):
        pytest.importorskip("ale_py")
        envs.make(task, 1, **options).close()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("module", (*systems.SYSTEMS, *studies.STUDIES), ids=systems.system_name)
def test_every_metric_is_explained(module: Any) -> None:
    names = STUDY_PAGES.get(systems.system_name(module))
    pages = [page_of(module)] if names is None else [f"docs/{name}.md" for name in names]
    page = "".join((ROOT / name).read_text(encoding="utf-8") for name in pages)
    config = module.Config()
    source = SMALL_TASKS.get(systems.system_name(module), "jax:CartPole-v1")
    task = envs.make(source, config.num_envs) if isinstance(source, str) else source
    shapes = jax.eval_shape(lambda key: module.step(config, task, module.init(config, task, key))[1], jax.random.key(0))
    assert "loss" in shapes
    explained = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    missing = [name for name in shapes if not any(f"`{name}`" in cell for cell in explained)]
    assert not missing, f"{page_of(module)} does not explain {missing}"


def test_every_system_and_page_is_in_the_readme() -> None:
    for module in systems.SYSTEMS:
        assert f"| `{systems.system_name(module)}` |" in README and page_of(module) in README


EXAMPLES = ("your_own_env", "your_own_network", "your_own_loss", "uncertainty_of_a_critic", "maml_around_ppo")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    loaded(ROOT / "examples" / f"{name}.py").main(1_024 if name != "your_own_network" else 2_048)
    assert capsys.readouterr().out.count("\n") >= 2


def test_ewc_around_ppo_keeps_the_task_that_ppo_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded(ROOT / "examples" / "ewc_around_ppo.py").main(16_384)
    learned, without, held = (found[name] for name in ("after the first", "after both, without EWC", "after both, with EWC"))
    assert capsys.readouterr().out.count("\n") == 3
    assert learned[0] > 8.5 and without[0] < learned[0] - 1.0
    assert held[0] > learned[0] - 0.5 and min(held[1], without[1]) > 9.0


# ------------------------------------------------------------------------------------------------------------------- tables


def test_tables_equal_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded(ROOT / "benchmarks" / "tables.py").main(["--check"]) == 0, capsys.readouterr().out + "run `make docs-tables`"


def test_tables_are_made_from_results() -> None:
    tables = loaded(ROOT / "benchmarks" / "tables.py")
    machine = {"cpu": "a processor", "cores": 2}
    learned: dict[str, Any] = {
        "name": "ppo-cartpole", "system": "ppo", "task": "CartPole-v1", "total_steps": 100_000, "seeds": [0, 1], "commit": "abcdef0123456",
        "date": "2026-01-02T03:04", "machine": machine, "means": [480.0, 500.0], "mean": 490.0, "ci95": [480.0, 500.0], "reach": 475,
        "aim": 500, "reached": True, "seconds_per_seed": {"0": 60, "1": 120},
    }  # fmt: skip
    pairs = [
        {"ours": 300.0, "peer": 100.0, "ratio": 3.0},
        {"ours": 200.0, "peer": 100.0, "ratio": 2.0},
        {"ours": 4e4, "peer": 1e4, "ratio": 4.0},
    ]
    timed: dict[str, Any] = {
        "name": "ppo_cartpole", "commit": "abcdef0123456", "date": "2026-01-02", "machine": machine, "settings": {"num_envs": 8},
        "pairs": pairs, "ratio_median": 3.0, "ratio_min": 2.0, "ratio_max": 4.0, "ours_compile_s": 3.21, "peer_compile_s": None,
    }  # fmt: skip
    page = "a\n<!-- results:learning:ppo -->\nold\n<!-- /results -->\nb\n<!-- results:speed -->\n<!-- /results -->\n"
    page += "<!-- results:learning:dqn -->\nold\n<!-- /results -->\n"
    made = tables.fill(page, [json.loads(json.dumps(learned))], [timed])
    assert "old" not in made and made.startswith("a\n<!-- results:learning:ppo -->\n|") and "\nb\n" in made
    assert "| `ppo-cartpole` | CartPole-v1 | `ppo` | 100,000 | 2 | 490.0 (480.0 to 500.0) | 480.0 | – | 475.0 | 500.0 | yes | 1.5 |" in made
    assert "| `ppo_cartpole` | num_envs 8 | 300.0 | 100.0 | 3.00× | 2.00 – 4.00 | 3.21 |" in made
    assert "a processor, 2 cores, commit abcdef0123" in made
    assert made.count("Not measured yet.") == 1
    assert tables.fill(made, [learned], [timed]) == made
    assert "**no**" in tables.fill(page, [learned | {"reached": False}], [])


def test_the_learners_mode_is_shown_and_what_q_expects_is_of_one_system() -> None:
    tables = loaded(ROOT / "benchmarks" / "tables.py")
    expected = {"value_estimate": 3.0, "discounted_return": 2.0, "overestimation": 1.0}
    row = {"task": "x", "total_steps": 10, "seeds": [0], "means": [1.0], "mean": 1.0, "machine": {}, "values": [expected]}
    made = tables.learning([row | {"name": "raced", "system": "a3c-classic", "config": {"mode": "threads"}}])
    assert "| x | `a3c-classic`, threads | 10 |" in made
    assert "| `ewc` |" in tables.learning([row | {"name": "held", "system": "ewc", "config": {"mode": "l2"}}])
    both = [row | {"name": "a", "system": "ddpg"}, row | {"name": "b", "system": "sac-her"}]
    made = tables.fill("<!-- results:values:sac -->\n<!-- /results -->", both, [])
    assert "| `b` | 1 | 3 | 2 | 1 | 1 – 1 |" in made and "`a`" not in made
    assert "Not measured yet." in tables.fill("<!-- results:values:dqn -->\n<!-- /results -->", both, [])


@pytest.mark.parametrize(("pairs", "verdict"), [(1, "–"), (2, "–"), (3, "yes")])
def test_few_pairs_have_no_verdict(pairs: int, verdict: str) -> None:
    tables = loaded(ROOT / "benchmarks" / "tables.py")
    row = {"method": "a3c", "mode": "threads", "pairs": [{"one": 10.0, "two": 15.0, "ratio": 1.5}] * pairs, "ratio_median": 1.5}
    head = {"throughput": [row | {"reach": 1.3, "reached": True}], "time_to_score": [], "machine": {}}
    made = tables.workers(head | {"command": "python -m benchmarks.speed.a3c_workers --pairs 1 --seconds 12"})
    assert f"| {pairs} of 12 s | 10.0 | 15.0 | 1.50× | 1.3× | {verdict} |" in made
    assert ("(median)" in made) == (pairs > 1)
    assert f"| {pairs} of 40 s |" in tables.workers(head | {"command": "python -m benchmarks.speed.a3c_workers"})
