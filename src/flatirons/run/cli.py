"""The commands behind `flatirons`. Flags of `train` come from the systems' Config dataclasses, with their docstrings as help.

Each command imports what it needs when it runs, so that `flatirons eval --help` answers without JAX.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

SIGINT_STATUS, USER_ERROR_STATUS = 130, 2


class UsageError(Exception):
    """A mistake on the command line, in one sentence. Becomes exit status 2."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one command with its arguments and return the exit status. Errors of the user's input are one sentence on stderr."""
    try:
        return COMMANDS[command](list(arguments)) or 0
    except UsageError as error:
        return _fail(str(error))
    except SystemExit as stop:  # --help, from argparse and tyro, or somebody's own sys.exit
        return _exit_status(stop.code)
    except BrokenPipeError:  # `flatirons list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        # train saves before it raises this; SIGTERM arrives as the same exception, with its own status.
        print(f"\nflatirons: {str(stop) or 'stopped'}", file=sys.stderr)
        return int(vars(stop).get("exit_status", SIGINT_STATUS))
    except Exception as error:
        known = sys.modules.get("flatirons.types")
        if known is not None and isinstance(error, known.FlatironsError):
            return _fail(str(error))
        raise


def _exit_status(code: Any) -> int:
    """The status of a SystemExit as Python itself has it: words are said, and are a failure."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _fail(sentence: str) -> int:
    sys.stdout.flush()
    print(f"flatirons: {sentence}", file=sys.stderr)
    return USER_ERROR_STATUS


# -------------------------------------------------------------------------------------------------- flags of small commands


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence with the nearest flag, or `otherwise` where no flag is near."""

    otherwise = ""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].lower()}{message[1:]}; `{self.prog} --help` shows what it takes.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Like parse_args, with the nearest match of an unknown flag."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UsageError(_unknown_flag(unknown[0], flags, self.prog, self.otherwise))
        return found


def _parser(command: str, description: str) -> _Parser:
    return _Parser(prog=f"flatirons {command}", description=description, allow_abbrev=False)


def _unknown_flag(token: str, flags: Sequence[str], prog: str, otherwise: str = "") -> str:
    if not token.startswith("-"):
        return f"{token!r} is one argument too many; `{prog} --help` shows what it takes."
    flag = token.split("=")[0]
    near = get_close_matches(flag.replace("_", "-"), flags, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"{otherwise}`{prog} --help` lists the flags."
    return f"there is no flag {flag}; {hint}"


def integer(text: str) -> int:
    """A whole number: 100000, 100_000 or 1e5. Raises ValueError with a sentence otherwise."""
    try:
        return int(text)
    except ValueError:
        pass
    value = number(text)
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def number(text: str) -> float:
    """A finite number. Raises ValueError with a sentence otherwise."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _whole(text: str) -> int:
    try:
        return integer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _finite(text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seed(text: str) -> int:
    """A seed, for argparse."""
    seed = _whole(text)
    from flatirons.run.job import MOST_SEED

    if not 0 <= seed <= MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is no seed; give a whole number from 0 to {MOST_SEED:_}")
    return seed


def _demand_simulations(simulations: int, least: int) -> None:
    from flatirons.run.players import MOST_SIMULATIONS

    if not least <= simulations <= MOST_SIMULATIONS:
        raise UsageError(f"--simulations is {simulations:_}; it must be from {least} to {MOST_SIMULATIONS:_}.")


# ------------------------------------------------------------------------------------------------------------------ train


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Flags of `train` that every system has. Lengths are in decisions, counted over all environments."""

    seed: int = 0
    """Seed of the first run."""
    seeds: int = 1
    """Number of runs, with seeds seed, seed+1, ...: in one program for in-graph tasks, in turn for others."""
    out: str | None = None
    """Run folder; none: runs/SYSTEM-TASK-seedSEED."""
    eval_every: int | None = None
    """Evaluate the greedy policy this often, on an environment of its own; the best policy is kept beside the last."""
    eval_episodes: int = 20
    """Episodes of each evaluation."""
    checkpoint_every: int | None = None
    """Save a checkpoint this often; none: about every minute, and at the end."""
    keep: int = 3
    """Checkpoints kept, newest first."""
    from_run: str | None = None
    """Start from the parameters of this run folder."""
    stop_at: int | None = None
    """Stop cleanly here, to go on later with `flatirons resume`."""
    preset: str | None = None
    """Named settings that replace the defaults shown here; none: the system's choice for the task."""
    workers: int = 1
    """Processes for several seeds of a task outside JAX."""
    devices: str = "1"
    """Devices that share the environments and every minibatch of a run: a number, or all."""
    tensorboard: bool = False
    """Write TensorBoard events too (pip install 'flatirons[tensorboard]')."""
    quiet: bool = False
    """No progress."""
    overwrite: bool = False
    """Delete a run folder that stands at --out."""


# The flag where it cannot be the field's own name: `from` is a word of Python's.
_FLAG_OF = {"from_run": "from"}


def train(arguments: list[str]) -> int:
    """`flatirons train SYSTEM TASK [flags]`."""
    names = []
    while arguments and not arguments[0].startswith("-"):
        names.append(arguments.pop(0))
    wants_help = any(a in ("-h", "--help") for a in arguments)
    if len(names) < 2 and not (wants_help and names):
        if wants_help:
            print(_TRAIN_HELP, end="")
            return 0
        missing = "a system and a task" if not names else "a task"
        raise UsageError(f"train needs {missing} first, as in `flatirons train ppo CartPole-v1 --seed 0`; `flatirons list` has them all.")
    if len(names) > 2:
        raise UsageError(f"{names[2]!r} is one argument too many; train takes one system and one task, then flags.")

    import flatirons
    from flatirons import studies

    name, task = names[0], names[1] if len(names) > 1 else None
    module, _, _ = studies.find(name)
    env_options, rest = split_env_options(arguments)
    given_preset = _value_of("preset", rest)
    from flatirons.run import listing

    _, defaults = listing.settings(name, task, given_preset)
    flags, chosen = parse_train(f"flatirons train {name} {task or 'TASK'}", module, defaults, rest)
    finished = flatirons.train(name, task, **dataclasses.asdict(flags), env_options=env_options or None, **chosen)
    if not flags.quiet:
        _say_what_next(finished.path)
    return 0


def _say_what_next(path: Path) -> None:
    seeds = seeds_in(path)
    one = seeds[0] if seeds else path
    played = [("play", one)] if _can_be_played(one) else []
    for command, run in (("eval", path), *played, ("plot", path)):
        print(f"  flatirons {command} {run}")


def _can_be_played(path: Path) -> bool:
    """Whether `play` has something to show of a run: a board game, or a task that is drawn."""
    from flatirons.envs import can_be_drawn
    from flatirons.run import folder, web

    record = folder.peek_record(path)
    name = record.get("env")
    return web.is_game(path) or (isinstance(name, str) and can_be_drawn(name, in_graph=bool(record.get("in_graph"))))


def split_env_options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--env.KEY VALUE` and `--env.KEY=VALUE` out of the arguments: (options, the rest). Raises UsageError for a missing value.

    A value is a number, true, false or none where it reads as one, and a string otherwise.
    """
    options: dict[str, Any] = {}
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        if not token.startswith("--env."):
            rest.append(token)
            continue
        key, equals, text = token.removeprefix("--env.").partition("=")
        if not equals:
            if position == len(arguments) or arguments[position].startswith("--"):
                raise UsageError(f"--env.{key} needs a value, as in `--env.{key} 4`.")
            text = arguments[position]
            position += 1
        key = key.replace("-", "_")  # as the settings' flags are written
        if not key.isidentifier():
            raise UsageError(f"--env.{key} is not an environment option; write --env.NAME VALUE.")
        options[key] = _plain_value(text)
    return options, rest


def split_settings(arguments: Sequence[str], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Take the flags that begin with `prefix`, each with its values up to the next flag, out of the arguments: (settings, the rest).

    One value is itself, several are a list; they are read as `split_env_options` does. Raises UsageError for a missing value.
    """
    settings: dict[str, Any] = {}
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        if not token.startswith(prefix):
            rest.append(token)
            continue
        flag, equals, text = token.partition("=")
        values = [text] if equals else []
        while not equals and position < len(arguments) and not arguments[position].startswith("--"):
            if values and isinstance(_plain_value(arguments[position]), str):
                break  # several values are numbers; a word behind them is the run
            values.append(arguments[position])
            position += 1
        if not values:
            raise UsageError(f"{flag} needs a value, as in `{flag} 4`.")
        found = [_plain_value(value) for value in values]
        settings[flag[2:].replace("-", "_")] = found[0] if len(found) == 1 else found
    return settings, rest


def _plain_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return number(text)
    return text


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for position, token in enumerate(arguments):
        if token == f"--{flag}" and position + 1 < len(arguments):
            return arguments[position + 1]
        if token.startswith(f"--{flag}="):
            return token.partition("=")[2]
    return None


def parse_train(prog: str, module: Any, defaults: Any, arguments: Sequence[str]) -> tuple[RunFlags, dict[str, Any]]:
    """Parse the flags of `train` into (RunFlags, the Config fields that were given).

    `defaults` is the Config whose values the help shows. `--help` prints and raises SystemExit(0); every mistake is a UsageError.
    """
    run_fields, config_fields = dataclasses.fields(RunFlags), [field for field, _ in flag_fields(module.Config)]
    flag_of = {f.name: "--" + _FLAG_OF.get(f.name, f.name).replace("_", "-") for f in (*run_fields, *config_fields)}
    field_of = {flag: field for field, flag in flag_of.items()}
    field_of |= {"--no-" + f[2:]: field for f, field in field_of.items()}
    given = []
    for token in arguments:
        if not token.startswith("--"):
            continue
        flag = token.split("=")[0].replace("_", "-")
        if flag not in field_of and flag != "--help":
            raise UsageError(_unknown_flag(token, list(flag_of.values()), prog))
        given.append(field_of.get(flag))

    from flatirons.run.listing import title

    flags_class = _flags_class("run", RunFlags, RunFlags(), flag_of, pairs=False)
    system = module.__name__.rsplit(".", 1)[-1]
    config_class = _flags_class(system, module.Config, defaults, flag_of, pairs=True)
    command_line = dataclasses.make_dataclass("CommandLine", [("run", flags_class), (system, config_class)])
    parsed = _parse_with_tyro(command_line, prog, title(module), [_as_none(t) for t in arguments])
    flags = RunFlags(**{f.name: getattr(parsed.run, f.name) for f in run_fields})
    return flags, {f.name: getattr(getattr(parsed, system), f.name) for f in config_fields if f.name in given}


def flag_fields(config_class: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a Config that can be given on a command line, each with its type (a Network of one's own is left to Python)."""
    hints = typing.get_type_hints(config_class)
    found = [(field, _command_line_type(hints[field.name])) for field in dataclasses.fields(config_class)]
    return [(field, kind) for field, kind in found if kind is not None]


def _command_line_type(hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if hint in (bool, int, float, str) or origin in (typing.Literal, tuple):
        return hint
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is type(None) or _command_line_type(kind) is not None]
        return None if all(kind is type(None) for kind in kinds) else typing.Union[tuple(kinds)]  # noqa: UP007 - built at run time
    return None


def _flags_class(name: str, source: type, defaults: Any, flag_of: Mapping[str, str], *, pairs: bool) -> Any:
    """A dataclass for tyro with the fields of `source`, their docstrings as help and the values of `defaults`."""
    import tyro

    from flatirons.run.listing import field_docs

    docs = field_docs(source)
    fields = []
    for field, kind in flag_fields(source):
        argument = tyro.conf.arg(name=flag_of[field.name][2:], help=docs.get(field.name, ""))
        if kind is bool and not pairs:
            kind = tyro.conf.FlagCreatePairsOff[bool]
        default = getattr(defaults, field.name)
        if kind is float and isinstance(default, int):
            default = float(default)
        fields.append((field.name, typing.Annotated[kind, argument], dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = ""
    return made


def _as_none(token: str) -> str:
    return "None" if token.lower() == "none" else token


def _registry() -> Any:
    """How tyro reads numbers: 100_000 and 1e5 are whole numbers, nan and inf are not numbers."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: Any) -> Any:
        readers: dict[Any, tuple[str, Callable[[str], Any]]] = {int: ("INT", integer), float: ("FLOAT", number), str: ("TEXT", str)}
        optional = {frozenset((kind, type(None))): kind for kind in readers}
        members = frozenset(typing.get_args(info.type))
        may_be_none = members in optional
        kind = optional.get(members, info.type)
        if kind not in readers or info.type is str:
            return None
        metavar, read = readers[kind]
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{metavar}|none" if may_be_none else metavar,
            instance_from_str=lambda words: None if may_be_none and words[0] == "None" else read(words[0]),
            is_instance=lambda value: (value is None and may_be_none) or isinstance(value, (int, float, str)),
            str_from_instance=lambda value: ["none" if value is None else _readable(value)],
        )

    return registry


def _readable(value: float | str) -> str:
    return f"{value:_}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _parse_with_tyro(command_line: Any, prog: str, description: str, arguments: Sequence[str]) -> Any:
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                command_line,
                prog=prog,
                description=description,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_first_sentence(printed.getvalue())}; `{prog} --help` shows every flag.") from None


def _first_sentence(box: str) -> str:
    """What tyro's error box says between its title and the next rule, on one line. Where the output is not UTF-8 the title is no rule."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    body: list[str] = []
    for line in lines[1:]:
        if line.strip("─╭╮╰╯├┤|+- "):
            body.append(line)
        elif body:
            break
    text = " ".join(body).strip().rstrip(".")
    return text[:1].lower() + text[1:] if text else "these flags cannot be read"


_TRAIN_HELP = """usage: flatirons train SYSTEM TASK [flags]

Train a system on a task. The flags are those of the run (--seed, --out, --eval-every, ...) and the settings of the system.

  flatirons train SYSTEM --help          every flag of a system, with its default
  flatirons train SYSTEM TASK --help     the same, with the defaults of the preset chosen for that task
  flatirons list                         systems, tasks and presets
  --env.NAME VALUE                       an option of the environment
"""


# ------------------------------------------------------------------------------------------------------- the other commands


def resume(arguments: list[str]) -> int:
    """`flatirons resume RUN [--total-steps N] [--stop-at N]`."""
    parser = _parser("resume", "Go on with a run from its newest intact checkpoint.")
    parser.otherwise = "a resumed run keeps the settings and the environment it began with, and "
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--total-steps", type=_whole, metavar="INT", help="train to this many decisions instead of the recorded budget")
    parser.add_argument("--stop-at", type=_whole, metavar="INT", help="stop cleanly here, to be resumed again")
    parser.add_argument("--workers", type=_whole, default=1, metavar="INT", help="processes for several seeds of a task outside JAX")
    parser.add_argument("--devices", metavar="TEXT", help="devices to share the run's environments, a number or all (default: as it began)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    chosen = parser.parse(arguments)
    import flatirons

    finished = flatirons.resume(
        existing_run(chosen.run),
        total_steps=chosen.total_steps,
        stop_at=chosen.stop_at,
        quiet=chosen.quiet,
        workers=chosen.workers,
        devices=chosen.devices,
    )
    if not chosen.quiet:
        _say_what_next(finished.path)
    return 0


def evaluate(arguments: list[str]) -> int:
    """`flatirons eval RUN [--episodes N] [--seed S] [--best] [--values] [--json] [--eval-NAME VALUE ...] [--env.NAME VALUE]`."""
    parser = _parser(
        "eval",
        "Score a run's policy, acting greedily, on an environment of its own. A setting that begins with eval-, such as --eval-shots 1 of "
        "maml, and --env.NAME VALUE, an option of the environment, count for this evaluation alone.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--episodes", type=_whole, default=20, metavar="INT", help="episodes (default: 20)")
    parser.add_argument("--seed", type=_seed, metavar="INT", help="seed of the evaluation (default: 10_000 + the run's seed)")
    parser.add_argument(
        "--values", action="store_true", help="also what the policy expects of states against what it gets (dqn, ddpg, sac)"
    )
    parser.add_argument("--best", action="store_true", help="the policy of the best evaluation while it trained, instead of the last one")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    env_options, rest = split_env_options(arguments)
    settings, rest = split_settings(rest, "--eval-")
    chosen = parser.parse(rest)
    if chosen.values and (settings or env_options):
        raise UsageError("--values is of the evaluation as it was in training; leave out --eval-... and --env. with it.")
    if chosen.episodes < 1:
        raise UsageError(f"--episodes is {chosen.episodes}; it must be at least 1.")
    path = existing_run(chosen.run)
    seeds = seeds_in(path)
    if seeds and chosen.json:
        raise UsageError(f"{path} holds {len(seeds)} runs, one per seed, and --json is for one; choose one, such as {seeds[0]}.")
    import flatirons
    from flatirons.run import folder as run_folder
    from flatirons.run import values
    from flatirons.systems import system_name

    run_folder.warn_of_missing_seeds(path)
    for folder in seeds or [path]:
        with contextlib.redirect_stdout(sys.stderr):  # whatever loading has to say must not mix with the result
            loaded = flatirons.load(folder, best=chosen.best)
            if chosen.values:
                # Before any episode is played, which may take long.
                values.demand_estimate(loaded.system, system_name(loaded.system))
            result = loaded.evaluate(episodes=chosen.episodes, seed=chosen.seed, env_options=env_options, **settings)
            if chosen.values:
                result |= loaded.overestimation(chosen.episodes, chosen.seed)
        if chosen.json:
            print(json.dumps(result))
        else:
            which = f"the best policy, after {loaded.step:_} decisions: " if chosen.best else ""
            print((f"{folder.name}: " if seeds else "") + which + _in_words(result))
    return 0


def _in_words(result: Mapping[str, Any]) -> str:
    what = f"{result['system']} on {result['task']}: "
    if "returns" not in result:
        numbers = result.get("metrics") or {name: value for name, value in result.items() if isinstance(value, float)}
        return what + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    length = sum(result["lengths"]) / len(result["lengths"])
    spread = f"{result['mean']:.2f} ± {result['std']:.2f} (min {result['min']:.2f}, max {result['max']:.2f})"
    words = f"{what}return {spread} over {result['episodes']} episodes of {length:.0f} decisions on average"
    if "success" in result:
        words += f"; the goal reached in {result['success']:.0%} of them"
    from flatirons.envs.suites import human_normalised

    if (share := human_normalised(result["task"], result["mean"])) is not None:
        words += f"; {share:.1%} of the way from random play to the human tester"
    if "overestimation" in result:
        words += f"; expected {result['value_estimate']:.4g} of a state, got {result['discounted_return']:.4g} (discounted)"
    return words


def existing_run(path: str) -> Path:
    """The run folder `path`. Raises UsageError with the nearest one where there is none."""

    def is_run(place: Path) -> bool:
        # A run whose config.json was lost has another in its checkpoints, and a group of seeds one in theirs.
        return (place / "config.json").is_file() or (place / "checkpoints").is_dir() or bool(seeds_in(place))

    folder = Path(path)
    if is_run(folder):
        return folder
    siblings = [str(p) for p in folder.parent.glob("*") if is_run(p)] if folder.parent.is_dir() else []
    near = get_close_matches(str(folder), siblings, n=1)
    hint = f"did you mean {near[0]}?" if near else "give the --out of a training run."
    raise UsageError(f"{path} {'is no run folder' if folder.exists() else 'does not exist'}; {hint}")


def seeds_in(folder: Path) -> list[Path]:
    """The runs of a folder trained with several seeds, by seed; none of a single run."""
    from flatirons.run.folder import seed_folders

    return seed_folders(folder)


def predict(arguments: list[str]) -> int:
    """`flatirons predict RUN FILE [--out FILE] [--passes N] [--rate R] [--seed S] [--json]`."""
    parser = _parser(
        "predict",
        "Say what a run makes of each row of a file, and how sure it is, by stochastic passes of its network (MC dropout): numbers or "
        "classes of mc_dropout, actions and values of a policy.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("file", metavar="FILE", help="the inputs: .csv with the columns that were learned from, .npy, or .npz with x")
    parser.add_argument("--out", metavar="FILE", help="a .csv file to write (default: print it)")
    parser.add_argument("--passes", type=_whole, metavar="INT", help="stochastic passes (default: mc_dropout's samples, else 100)")
    parser.add_argument("--rate", type=_finite, metavar="FLOAT", help="what to drop of a network that was trained without dropout")
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="of the passes (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object of columns and nothing else")
    chosen = parser.parse(arguments)
    if chosen.out and chosen.json:
        raise UsageError("--json prints and --out writes; leave one of them out.")
    path = existing_run(chosen.run)
    if seeds := seeds_in(path):
        raise UsageError(f"{path} holds {len(seeds)} runs, one per seed; choose one, such as {seeds[0]}.")
    import flatirons
    from flatirons.envs import own_data
    from flatirons.run import folder, predicting

    with contextlib.redirect_stdout(sys.stderr):
        loaded = flatirons.load(path)
        task = loaded.acting_task
        inputs = own_data.inputs(chosen.file, vars(task).get("columns", ()))
        found = loaded.predictions(inputs, chosen.passes, rate=chosen.rate, seed=chosen.seed)
    labels = vars(task).get("labels", ())
    if chosen.json:
        print(json.dumps(predicting.named(found, labels)))
    elif chosen.out:
        folder.write_whole(Path(chosen.out), predicting.table(found, labels))
        print(f"{len(inputs)} rows: {', '.join(found)} -> {chosen.out}")
    else:
        print(predicting.table(found, labels), end="")
    return 0


def solve(arguments: list[str]) -> int:
    """`flatirons solve METHOD TASK [--gamma G] [--json]`."""
    parser = _parser("solve", "Plan on a finite task whose transition probabilities are known, in float64. Nothing is trained or written.")
    parser.add_argument("method", metavar="METHOD", help="a planner; `flatirons list` names them")
    parser.add_argument("task", metavar="TASK", help="such as mdp:FrozenLake-v1; --env.NAME VALUE sets an option")
    parser.add_argument("--gamma", type=_finite, default=0.99, metavar="FLOAT", help="discount (default: 0.99)")
    parser.add_argument("--tolerance", type=_finite, metavar="FLOAT", help="how near to the answer it must come (default: 1e-10)")
    parser.add_argument("--max-iterations", type=_whole, metavar="INT", help="when to give up (monotonic-policy-iteration: to stop; 100)")
    parser.add_argument(
        "--penalty", type=_finite, metavar="FLOAT", help="C of monotonic-policy-iteration (default: the one with the promise)"
    )
    parser.add_argument("--temperature", type=_finite, metavar="FLOAT", help="alpha of soft-policy-iteration (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else: values, policy, history")
    env_options, rest = split_env_options(arguments)
    chosen = parser.parse(rest)
    from flatirons.run import solve as planning

    names = ("tolerance", "max_iterations", "penalty", "temperature")
    options = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    found = planning.solve(chosen.method, chosen.task, gamma=chosen.gamma, env_options=env_options, **options)
    print(json.dumps(found) if chosen.json else planning.in_words(found))
    return 0


def play(arguments: list[str]) -> int:
    """`flatirons play RUN [--seed S] [--video FILE] [--episodes N] [--best]`; of a board game `[--port P] [--no-browser] ...`."""
    parser = _parser("play", "Watch a run's policy, in a window or as a video file; of a board game, play against it in the browser.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="seed of the episodes, or of the search (default: 0)")
    video = parser.add_argument_group("what is watched")
    video.add_argument("--video", metavar="FILE", help="write a video (.mp4 or .gif) instead of opening a window")
    video.add_argument("--episodes", type=_whole, default=1, metavar="INT", help="episodes (default: 1)")
    video.add_argument("--max-steps", type=_whole, default=2000, metavar="INT", help="decisions shown per episode (default: 2000)")
    video.add_argument("--best", action="store_true", help="the policy of the best evaluation while it trained, instead of the last one")
    page = parser.add_argument_group("board games")
    page.add_argument(
        "--port", type=_whole, metavar="INT", help="port of the page; 0 for any free one (default: 8000, or any if it is taken)"
    )
    page.add_argument(
        "--host", metavar="ADDRESS", help="address to listen on; 0.0.0.0 lets others on your network play (default: 127.0.0.1)"
    )
    page.add_argument("--no-browser", action="store_true", help="print the page's address and open nothing")
    page.add_argument("--simulations", type=_whole, metavar="INT", help="simulations a move to begin with (default: the run's own)")
    chosen = parser.parse(arguments)
    if chosen.episodes < 1 or chosen.max_steps < 1:
        raise UsageError("--episodes and --max-steps must be at least 1.")
    if chosen.simulations is not None:
        _demand_simulations(chosen.simulations, 0)
    folder = existing_run(chosen.run)
    if seeds := seeds_in(folder):
        raise UsageError(f"{folder} holds {len(seeds)} runs, one per seed; choose one, such as {seeds[0]}.")
    from flatirons.run import web

    if web.is_game(folder):
        if chosen.video or chosen.best:
            raise UsageError(f"a board game is played in the browser; leave out {'--video' if chosen.video else '--best'}.")
        computing = web.serve(
            folder, host=chosen.host or "127.0.0.1", port=chosen.port, browser=not chosen.no_browser, simulations=chosen.simulations,
            seed=chosen.seed,
        )  # fmt: skip
        if computing:
            sys.stdout.flush()
            os._exit(0)
        return 0
    if chosen.port is not None or chosen.host or chosen.no_browser or chosen.simulations is not None:
        raise UsageError(f"--port, --host, --no-browser and --simulations are for board games; {folder} is of another task.")
    from flatirons.run import play as player

    said = player.play(folder, video=chosen.video, episodes=chosen.episodes, seed=chosen.seed, max_steps=chosen.max_steps, best=chosen.best)
    print(said)
    return 0


def plot(arguments: list[str]) -> int:
    """`flatirons plot RUN [RUN ...] --out FILE`."""
    parser = _parser("plot", "Draw learning curves: mean and 95 % interval over the seeds of each run folder, several runs side by side.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder, of one seed or of several")
    parser.add_argument("--out", metavar="FILE", help="picture to write (default: RUN/curve.png, or curves.png for several runs)")
    parser.add_argument(
        "--metric", metavar="NAME", help="what to draw, a name from metrics.jsonl (default: episode_return, or the run's accuracy or error)"
    )
    chosen = parser.parse(arguments)
    for path in chosen.runs:
        existing_run(path)
    from flatirons.run import report

    default = Path(chosen.runs[0]) / "curve.png" if len(chosen.runs) == 1 else Path("curves.png")
    print(report.draw(chosen.runs, chosen.out or default, metric=chosen.metric))
    return 0


def listing(arguments: list[str]) -> int:
    """`flatirons list [SYSTEM]`."""
    parser = _parser("list", "List systems, tasks and presets; with a system, its presets, what to expect of them, and its settings.")
    parser.add_argument("system", metavar="SYSTEM", nargs="?", help="a system or a preset")
    chosen = parser.parse(arguments)
    from flatirons.run import listing as lists

    print(lists.system(chosen.system) if chosen.system else lists.everything())
    return 0


def check(arguments: list[str]) -> int:
    """`flatirons check TASK [--env.NAME VALUE]`; exit status 1 when an error was found."""
    parser = _parser("check", "Check an environment and print each finding, with a fix. Exit status 1 when there is an error.")
    parser.add_argument("task", metavar="TASK", help="such as CartPole-v1, jax:CartPole-v1, ALE/Pong-v5; --env.NAME VALUE sets an option")
    options, rest = split_env_options(arguments)
    chosen = parser.parse(rest)
    from flatirons import envs

    found = envs.check(chosen.task, options=options)
    for finding in found:
        fix = f" Fix: {finding.fix}" if finding.fix and finding.level != "ok" else ""
        print(f"{finding.level:<8} {finding.name}" + (f": {finding.message}" if finding.message else "") + fix)
    errors, warnings = (sum(f.level == level for f in found) for level in ("error", "warning"))
    print(f"{chosen.task}: {len(found)} checks, {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return 1 if errors else 0


def doctor(arguments: list[str]) -> int:
    """`flatirons doctor`."""
    _parser("doctor", "Say what this machine and installation can do, with the line that installs what is missing.").parse(arguments)
    from flatirons.run import doctor as diagnosis

    for line in diagnosis.lines():
        print(line, flush=True)
    return 0


def suite(arguments: list[str]) -> int:
    """`flatirons suite [NAME]`."""
    parser = _parser("suite", "Tasks that papers report together, with published scores; without a name, the suites there are.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as atari-7")
    chosen = parser.parse(arguments)
    from flatirons.envs import demand_extra, suites

    if chosen.name is None:
        print("\n".join(f"{name:<10} {known.doc} ({len(known.tasks)} tasks)" for name, known in suites.SUITES.items()))
        return 0
    known = suites.find(chosen.name)
    demand_extra(known.tasks[0])
    print(suites.table(chosen.name))
    print(f"\ntrain on each of them, for instance:\n  flatirons train dqn {known.tasks[0]} --out runs/{chosen.name}/0")
    return 0


def match(arguments: list[str]) -> int:
    """`flatirons match A B [--game GAME] [--games N] [--json]`; exit status 1 when a game is void, also where too many are and it stops;
    130 or 143 where a signal stopped it, once what was finished is saved."""
    parser = _parser(
        "match",
        "Play games between two players, colours swapped and openings varied, and say the Elo difference. A player is a run folder "
        "(RUN?simulations=N), random, minimax:DEPTH, mcts:SIMULATIONS, perfect, gtp:COMMAND, uci:COMMAND or usi:COMMAND.",
    )
    parser.add_argument("a", metavar="A", help="the player that is scored")
    parser.add_argument("b", metavar="B", help="its opponent")
    parser.add_argument("--game", metavar="GAME", help="such as pgx:connect_four (default: that of a run folder)")
    parser.add_argument("--games", type=_whole, default=100, metavar="INT", help="games, half of them begun by A (default: 100)")
    parser.add_argument("--opening-plies", type=_whole, metavar="INT", help="random plies each game begins with (default: by the game)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="of openings and players (default: 0)")
    parser.add_argument("--at-once", type=_whole, default=256, metavar="INT", help="games side by side (default: 256)")
    parser.add_argument("--out", metavar="FOLDER", help="where the records go (default: matches/GAME-A-B)")
    parser.add_argument("--overwrite", action="store_true", help="put them in the place of another match's in --out")
    parser.add_argument("--resume", action="store_true", help="go on with the match in --out: its finished games are not played again")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    chosen = parser.parse(arguments)
    from collections import Counter
    from time import monotonic

    from flatirons.envs import notation
    from flatirons.run import match as matches
    from flatirons.run import players

    if chosen.resume and (chosen.overwrite or not chosen.out):
        raise UsageError("--resume goes on with the match in a folder: name it with --out, and leave out --overwrite.")
    named = {known for spec in (chosen.a, chosen.b) if (known := players.game_of(spec)) is not None}
    if chosen.game is None and not named:
        raise UsageError("neither player is a run folder, so the game must be named, as in --game pgx:connect_four.")
    game = notation.find(chosen.game or sorted(named)[0])
    a, b = (players.player(spec, game) for spec in (chosen.a, chosen.b))
    place = Path(chosen.out) if chosen.out else matches.default_place(game.name, chosen.a, chosen.b)
    began, shown = monotonic(), [-1]

    def progress(done: int, games: int) -> None:
        if not chosen.json and done != shown[0] and sys.stderr.isatty():
            shown[0] = done
            print(f"\r{done} of {games} games, {monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)

    unsaved: Exception | None = None
    with matches.held_place(place, overwrite=chosen.overwrite, resume=chosen.resume):
        what = {"game": game.name, "a": chosen.a, "b": chosen.b, "steps": [players.steps(a), players.steps(b)]}
        what |= {name: getattr(chosen, name) for name in ("games", "opening_plies", "seed")}
        known = matches.kept(place, what, resume=chosen.resume)
        if known and not chosen.json:
            print(f"{len(known)} of {chosen.games} games were finished before; the others begin anew")
        with _terminated_as_interrupted() as status:
            try:
                found = matches.play(
                    game,
                    a,
                    b,
                    chosen.games,
                    seed=chosen.seed,
                    opening_plies=chosen.opening_plies,
                    at_once=chosen.at_once,
                    progress=progress,
                    known=known,
                    finished=lambda one: matches.keep(place, one),
                )
            finally:
                a.close()
                b.close()
        try:
            matches.save(found, game, place, monotonic() - began)
        except Exception as error:
            # Its result is said all the same.
            unsaved = error
    faults = Counter(one.fault for one in found.played if one.fault)
    if found.stopped:
        cut = sum(faults.pop(fault, 0) for fault in (matches.UNFINISHED, matches.NOT_BEGUN))
        print(f"flatirons: the match was stopped: {found.stopped}", file=sys.stderr)
        kept = f"; what was finished is on record in {place}, and --out {place} --resume plays the rest" if unsaved is None else ""
        print(f"flatirons: games void by that: {cut}{kept}", file=sys.stderr)
    told = faults.most_common(3)
    for fault, count in told:
        print(f"flatirons: {'a game is' if count == 1 else f'{count} games are'} void: {fault}", file=sys.stderr)
    if untold := faults.total() - sum(count for _, count in told):
        print(f"flatirons: void for other reasons: {untold}, which match.json tells", file=sys.stderr)
    if not chosen.json:
        where = f"\nrecords: {place}" if unsaved is None else ""
        print(("\n" if shown[0] >= 0 and sys.stderr.isatty() else "") + f"{matches.in_words(found)}{where}")
    print(matches.line(found))
    if unsaved is not None:
        raise unsaved
    if found.stopped == matches.INTERRUPTED:
        return status[0]
    return 1 if faults or found.stopped else 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[list[int]]:
    """While this lasts SIGTERM raises KeyboardInterrupt, as SIGINT does. Yields a list with the exit status of what came."""
    status = [SIGINT_STATUS]

    def interrupt(number: int, _frame: Any) -> NoReturn:
        status[0] = 128 + number
        stop = KeyboardInterrupt()
        vars(stop)["exit_status"] = status[0]
        raise stop

    if threading.current_thread() is not threading.main_thread():
        yield status
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield status
    finally:
        signal.signal(signal.SIGTERM, before)


def _engine(command: str, arguments: list[str]) -> int:
    """`flatirons gtp|uci|usi RUN [--simulations N]`."""
    described, example = {
        "gtp": ("GTP (Go and other games of stones)", "go_9x9"),
        "uci": ("UCI (chess, gardner chess)", "chess"),
        "usi": ("USI (shogi, animal shogi)", "shogi"),
    }[command]
    parser = _parser(command, f"Play a run as an engine over {described} on standard input and output, for a graphical board.")
    parser.add_argument("run", metavar="RUN", help="run folder, or mcts:SIMULATIONS with --game")
    parser.add_argument("--game", metavar="GAME", help=f"such as {example}, where RUN is no run folder")
    parser.add_argument("--simulations", type=_whole, metavar="INT", help="simulations a move without a clock (default: the run's)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="of the search (default: 0)")
    chosen = parser.parse(arguments)
    from flatirons.envs import games
    from flatirons.run import gtp as gtp_engine
    from flatirons.run import players
    from flatirons.run import uci as uci_engine

    if isinstance(sys.stdin, io.TextIOWrapper):
        # A byte that is not UTF-8 is in no word that means anything, and must not end the session.
        sys.stdin.reconfigure(errors="replace")
    # What a board reads is the protocol alone: anything else that is printed goes to stderr.
    spoken = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        game = chosen.game or players.game_of(chosen.run)
        if game is None:
            raise UsageError(f"{chosen.run!r} is no run folder, so the game must be named, as in --game {example}.")
        # Asked before the game is loaded, which takes long for some.
        name = games.task_name(f"pgx:{game.removeprefix('pgx:')}").removeprefix("pgx:")
        if command == "gtp":
            gtp_engine.demand_game(name)
        elif name in games.GAMES:
            uci_engine.demand_game(name, usi=command == "usi")
        thinker = players.thinker(chosen.run, game)
        if chosen.simulations is not None:
            _demand_simulations(chosen.simulations, 1)
            thinker.simulations = chosen.simulations
        if isinstance(thinker, players.Trained):
            thinker.follow_a_game()
        if command == "gtp":
            busy = gtp_engine.serve(thinker, sys.stdin, spoken, chosen.seed)
        else:
            busy = uci_engine.serve(thinker, sys.stdin, spoken, usi=command == "usi", seed=chosen.seed)
        if busy:
            # Python waits for a thread that computes, or aborts beside it.
            sys.stderr.flush()
            os._exit(0)
    return 0


def analyse(arguments: list[str]) -> int:
    """`flatirons analyse RUN --position TEXT [--simulations 10,100,1000] [--json]`."""
    parser = _parser("analyse", "Search one position and show the states visited most as the tree grows, with their values.")
    parser.add_argument("run", metavar="RUN", help="run folder, or mcts:SIMULATIONS with --game")
    parser.add_argument(
        "--position", default="", metavar="TEXT", help="FEN, SFEN or moves, as in '444' or 'startpos moves e2e4' (default: start)"
    )
    parser.add_argument(
        "--simulations", default="10,100,1000", metavar="LIST", help="numbers of simulations; 0: network only (10,100,1000)"
    )
    parser.add_argument("--game", metavar="GAME", help="such as chess, where RUN is no run folder")
    parser.add_argument("--top", type=_whole, default=10, metavar="INT", help="states shown of each search (default: 10)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="of the search (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    chosen = parser.parse(arguments)
    try:
        counts = [integer(part) for part in chosen.simulations.split(",")]
    except ValueError as error:
        raise UsageError(f"--simulations {chosen.simulations}: {error}; write whole numbers with commas between.") from None
    if chosen.top < 1:
        raise UsageError(f"--top is {chosen.top}; it must be at least 1.")
    for count in counts:
        _demand_simulations(count, 0)
    from flatirons.run import analyse as analysis
    from flatirons.run import players

    found = analysis.analyse(players.thinker(chosen.run, chosen.game), chosen.position, counts, most=chosen.top, seed=chosen.seed)
    print(json.dumps(found) if chosen.json else analysis.in_words(found))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "predict": predict,
    "solve": solve,
    "play": play,
    "plot": plot,
    "list": listing,
    "suite": suite,
    "check": check,
    "doctor": doctor,
    "match": match,
    "gtp": functools.partial(_engine, "gtp"),
    "uci": functools.partial(_engine, "uci"),
    "usi": functools.partial(_engine, "usi"),
    "analyse": analyse,
}
