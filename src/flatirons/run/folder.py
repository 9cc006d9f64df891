"""The run folder: where it lies, what it holds and how its files are written so that a crash never leaves half of one.

    config.json          everything needed to repeat the run: system, task, settings, seed, versions, commit, command line
    metrics.jsonl        one line a report
    evaluations.jsonl    one line an evaluation
    checkpoints/         the newest whole States
    policy/              the last policy            policy_best/  the policy of the best evaluation
    curve.png            the learning curve         summary.json  how the run stands and where its time went
    .lock                locked by the process that trains, whose number is in it

With several seeds each `seed_<n>/` is such a folder, and the folder around them holds config.json and a common curve.png.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from flatirons.types import FlatironsError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"
CURVE = "curve.png"
CHECKPOINTS = "checkpoints"
POLICY = "policy"
POLICY_BEST = "policy_best"
TENSORBOARD = "tensorboard"
_PROBE = ".writable.tmp"
LOCK = ".lock"
"""What a process that trains holds a lock on, and leaves behind: only the lock says that somebody trains, the number in it who."""


def slug(text: str) -> str:
    """A name as part of a folder's name: letters, digits, dots and dashes only."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "task"


def default_path(system: str, task: str, seed: int) -> Path:
    """`runs/<system>-<task>-seed<seed>`, with a counter behind it when that exists."""
    base = Path("runs") / f"{slug(system)}-{slug(task)}-seed{seed}"
    path, count = base, 2
    while path.exists():
        path, count = base.with_name(f"{base.name}-{count}"), count + 1
    return path


_ELSEWHERE = ", or choose another --out"
"""What else can be done about the folder of a run that is new. One that goes on has its place."""


class Unwritable(FlatironsError):
    """A run folder that may only be read."""

    def __init__(self, path: Path, error: OSError, otherwise: str):
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        super().__init__(f"the run folder {path} cannot be written ({error.strerror}); {advice}{otherwise}")


_TRAINED = "is being trained by another process{who}; stop it first"


@contextlib.contextmanager
def held(path: Path, otherwise: str = "", *, busy: str = _TRAINED) -> Iterator[None]:
    """Hold an existing run folder: while this lasts nobody else can. The operating system lets go of it when the process ends, however it
    does. Where files cannot be locked (Windows, some network file systems) nothing is held.

    Raises FlatironsError when it is held already, which `busy` says, and Unwritable when it cannot be written; `otherwise` ends their
    sentences.
    """
    try:
        file = open(path / LOCK, "a")  # noqa: SIM115 - its errors are not those of what is done while it is open
    except OSError as error:
        raise Unwritable(path, error, otherwise) from None
    with file:
        if not _lock(file):
            raise FlatironsError(f"{path} {busy.format(who=_holder(path))}{otherwise}")
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def _holder(path: Path) -> str:
    """The process that says it holds a folder, as ` (process 123)`; "" where it does not."""
    try:
        number = (path / LOCK).read_text()
    except OSError:
        return ""
    return f" (process {number})" if number.isdigit() else ""


def is_held(path: Path) -> bool:
    """Whether a process holds a folder right now, this one too. Where files cannot be locked, nobody does."""
    try:
        with open(path / LOCK) as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: IO[str]) -> bool:
    """Whether nobody else has locked it. It stays locked while it is open, where it can be locked at all."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


@contextlib.contextmanager
def created(path: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Make a new run folder and hold it. A folder that holds a run is replaced only when `overwrite`, and one that holds anything else
    never is.

    Raises FlatironsError when the folder exists, is held by another process or cannot be written.
    """
    _demand_replaceable(path, overwrite=overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(path, error, _ELSEWHERE) from None
    with held(path, _ELSEWHERE):
        # Once more: another process may have begun and ended a run here since.
        _demand_replaceable(path, overwrite=overwrite)
        if _is_run(path):
            _remove_run(path)
        try:
            probe = path / _PROBE
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise Unwritable(path, error, _ELSEWHERE) from None
        yield


def _demand_replaceable(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    is_run = _is_run(path)
    empty = path.is_dir() and all(entry.name == LOCK for entry in path.iterdir())
    record = _readable(path / CONFIG)
    if is_run and record.get("part_of"):
        raise FlatironsError(
            f"{path} is one seed of a run that was trained as one program, so it cannot be replaced alone; name {path.parent}, or choose "
            "another --out"
        )
    if is_run and not overwrite:
        # Of seeds that are trained each by itself the folder around them has no checkpoint, and goes on all the same.
        apart = record.get("seeds", 1) != 1 and not record.get("vmapped")
        if apart or any(entry.suffix != ".tmp" for entry in (path / CHECKPOINTS).glob("step_*")):
            raise FlatironsError(
                f"the run folder {path} exists; resume it with `flatirons resume {path}`, choose another --out or pass --overwrite"
            )
        raise FlatironsError(f"the run folder {path} exists, and nothing was saved in it yet; choose another --out or pass --overwrite")
    if not is_run and not empty:
        raise FlatironsError(f"{path} exists and is not a run folder, so it will not be written to; choose another --out")


def _is_run(path: Path) -> bool:
    """Whether a folder has a run's record, whole or edited, in its place or in a checkpoint: other programs have a config.json too."""
    return any({"format", "system", "sha256"} <= _readable(file).keys() for file in (path / CONFIG, *_copies(path)))


def _remove_run(path: Path) -> None:
    """Remove what a run writes, by name; files a person put beside it stay, and so does the lock, which whoever removes it holds.

    Raises FlatironsError, with everything still there, when another process holds one of its seeds."""
    with contextlib.ExitStack() as seeds:
        # Also one whose config.json is gone: its metrics would be taken for the new run's.
        found = [seed for seed in _seeds_at(path) if seed.is_dir()]
        for seed in found:
            seeds.enter_context(held(seed, _ELSEWHERE))
        for seed in found:
            _remove_run(seed)
            if all(entry.name == LOCK for entry in seed.iterdir()):
                (seed / LOCK).unlink()
                seed.rmdir()
        _remove_written(path)


def _remove_written(path: Path) -> None:
    import shutil

    policies = [name + part for name in (POLICY, POLICY_BEST) for part in ("", ".old", ".tmp")]
    files = [name + part for name in (METRICS, EVALUATIONS, SUMMARY, CONFIG) for part in ("", ".tmp")]
    # What tells that this is a run goes last, so that one who is interrupted can begin again.
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == CONFIG):
        if entry.is_dir() and entry.name in (CHECKPOINTS, TENSORBOARD, *policies):
            shutil.rmtree(entry)
        elif entry.name in (CURVE, partial(entry.with_name(CURVE)).name, _PROBE, *files):
            entry.unlink()


# ------------------------------------------------------------------------------------------------------------------ json


def strict(value: Any) -> Any:
    """A value as strict JSON: NumPy numbers become Python's, tuples lists, and what is not finite null."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return strict(value.item() if value.ndim == 0 else value.tolist())


def _json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(strict(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises FlatironsError where it cannot be written."""
    write_whole(path, _json_text(value))


def write_whole(path: Path, text: str) -> None:
    """A temporary file, synced, renamed over the old one. Raises FlatironsError, and leaves the old one as it is, where it cannot be
    written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remove_partial(temporary)
        raise FlatironsError(f"{path} cannot be written ({error.strerror}); free some space, or make the folder writable") from None


def remove_partial(path: Path) -> None:
    """Remove what could be written only in part: it takes the space that there is too little of."""
    with contextlib.suppress(OSError):
        path.unlink()


def partial(path: Path) -> Path:
    """Where a picture is written before it is renamed to `path`: hidden, and of the same kind."""
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FlatironsError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlatironsError(f"{path} is missing; {path.parent} is not a whole run folder") from None
    except (OSError, ValueError, RecursionError):
        raise FlatironsError(f"{path} is damaged and cannot be read; take it from a copy of the run folder") from None
    if not isinstance(value, dict):
        raise FlatironsError(f"{path} is damaged: it holds no JSON object; take it from a copy of the run folder")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; a last line that a crash cut short is left out, and so is what has no whole number as its `step`."""
    return [line for line in _lines(path) if line is not None]


def _lines(path: Path) -> list[dict[str, Any] | None]:
    """The lines of a .jsonl file, None for one that cannot be read."""
    if not path.exists():
        return []
    lines: list[dict[str, Any] | None] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        lines.append(line if isinstance(line, dict) and isinstance(line.get("step"), int) else None)
    return lines


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of a .jsonl file whose `step` lies past `step`: a resumed run writes them again. Raises FlatironsError, and leaves the
    file as it is, where it cannot be written."""
    if not path.exists():
        return
    lines = _lines(path)
    if damaged := lines[:-1].count(None):
        warn(f"{damaged} line{'s' * (damaged > 1)} of {path} cannot be read and {'are' if damaged > 1 else 'is'} dropped")
    kept = [line for line in lines if line is not None and line["step"] <= step]
    write_whole(path, "".join(json.dumps(strict(line), allow_nan=False) + "\n" for line in kept))


_CUT: set[Path] = set()
"""The .jsonl files of which it was said that a line could not be written."""


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to a .jsonl file. A full disk costs the line, never the run: it is said on stderr, once a file."""
    rest = (json.dumps(strict(line), allow_nan=False) + "\n").encode()
    try:
        # Unbuffered, so that nothing is left to be written once it has failed.
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                # The next line would be glued to half of this one, and lost with it.
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        if path not in _CUT:
            _CUT.add(path)
            print(f"flatirons: lines of {path} could not be written ({error.strerror}); those are lost, the run goes on", file=sys.stderr)


# --------------------------------------------------------------------------------------------------------------- records


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _body(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "sha256"}


def record_text(record: Mapping[str, Any]) -> str:
    """A run's config.json, with its own SHA-256 in it."""
    body = strict(_body(record))
    return _json_text({**body, "sha256": _digest(body)})


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a run's config.json. Raises FlatironsError where it cannot be written."""
    write_whole(path / CONFIG, record_text(record))


def read_record(path: Path) -> dict[str, Any]:
    """A run's config.json. When it was lost, damaged or edited, the copy in the newest checkpoint that has a good one is put back in its
    place, and that is said: what is left there would be taken for the run's own.

    Raises FlatironsError when there is no good copy either.
    """
    place, found = path / CONFIG, (path / CONFIG).exists()
    if not found and not (path / CHECKPOINTS).is_dir() and not seed_folders(path):
        return read_json(place)
    if _is_verified(record := _readable(place)):
        return record
    record, whose = next((copy for file in _copies(path) if _is_verified(copy := _readable(file))), None), "newest checkpoint"
    if record is None:
        record, whose = _record_of_group(path), "seeds"
    if record is None:
        wrong = "damaged" if found else "missing"
        raise FlatironsError(f"{place} is {wrong}, and no checkpoint has a good copy; take it from a copy of the run folder")
    wrong = "does not match its own checksum: damaged or edited" if found else "is missing"
    try:
        write_record(path, record)
        warn(f"{place} {wrong}; the copy in the {whose} was put back")
    except FlatironsError:  # a folder that may only be read
        warn(f"{place} {wrong}; the copy in the {whose} is used instead")
    return record


def _record_of_group(path: Path) -> dict[str, Any] | None:
    """What the config.json of seeds that were trained each by itself said, from one of theirs; None where none has it."""
    for seed in seed_folders(path):
        for file in (seed / CONFIG, *_copies(seed)):
            record = _readable(file)
            if _is_verified(record) and record.get("group"):
                return {**_body(record), **record["group"], "vmapped": False, "group": None}
    return None


def group_around(path: Path, seed: int) -> dict[str, int] | None:
    """`seed` and `seeds` of the run that the folder of one seed is part of, where each of them is trained by itself; else None."""
    around = _readable(path.absolute().parent / CONFIG)
    first, seeds = around.get("seed", 0), around.get("seeds", 1)
    is_part = path.name == f"seed_{seed}" and seeds > 1 and not around.get("vmapped") and first <= seed < first + seeds
    return {"seed": first, "seeds": seeds} if is_part and _is_verified(around) else None


def has_record(path: Path) -> bool:
    """Whether a folder has a config.json that matches its own checksum."""
    return _is_verified(_readable(path / CONFIG))


def peek_record(path: Path) -> dict[str, Any]:
    """A run's config.json where only a name is wanted of it, to show or to choose by: an edited one will do where there is no good one.
    Raises FlatironsError when none can be read."""
    try:
        return read_record(path)
    except FlatironsError:
        return read_json(path / CONFIG)


def _copies(path: Path) -> list[Path]:
    """The copies of a run's config.json in its checkpoints, the newest first."""
    return sorted((path / CHECKPOINTS).glob(f"step_*/{CONFIG}"), reverse=True)


def _readable(path: Path) -> dict[str, Any]:
    """A JSON object, an empty one where none can be read."""
    try:
        return read_json(path)
    except FlatironsError:
        return {}


def _is_verified(record: Mapping[str, Any]) -> bool:
    return record.get("sha256") == _digest(_body(record))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str, at: Path | None = None) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False, cwd=at)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def surroundings() -> dict[str, Any]:
    """Versions, the library's commit and that of the folder one works in, machine, command line and time, for config.json."""
    # The library's own, where it is a checkout; it may as well lie in somebody's virtual environment, within another repository.
    here = Path(__file__).resolve().parent
    commit = _git("rev-parse", "HEAD", at=here) if _git("ls-files", "--error-unmatch", Path(__file__).name, at=here) is not None else None
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("flatirons", "jax", "jaxlib", "numpy", "optax", "gymnasium")},
        },
        "git_commit": commit,
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no", at=here)) if commit else None,
        "own_git_commit": _git("rev-parse", "HEAD"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def qualified_name(value: Any) -> str:
    """`module.name` of a function, a class, or of an object's class: how a person's own environment or network is recorded."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _seeds_at(path: Path) -> list[Path]:
    """What is called `seed_<n>` in a folder, by n."""
    return sorted((p for p in path.glob("seed_*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))


def seed_folders(path: Path) -> list[Path]:
    """The `seed_<n>` run folders in a group, by seed. A config.json that was lost may have a copy in the checkpoints."""
    return [p for p in _seeds_at(path) if (p / CONFIG).exists() or (p / CHECKPOINTS).is_dir()]


def warn_of_missing_seeds(path: Path) -> None:
    """Say which seeds of a group are not there: what is told of the others could be taken for all of them."""
    record = _readable(path / CONFIG)
    first, seeds = record.get("seed", 0), record.get("seeds", 1)
    there = {p.name for p in seed_folders(path)}
    missing = [name for name in (f"seed_{first + i}" for i in range(seeds)) if name not in there] if seeds > 1 else []
    if missing:
        ones = "is" if len(missing) == 1 else "are"
        warn(f"{', '.join(missing)} of the {seeds} seeds of {path} {ones} missing or not begun, and left out here")


def tolerate(do: Callable[[], Any], what: str) -> None:
    """Run something a training run can live without; a failure is said on stderr in one line."""
    try:
        do()
    except Exception as error:
        kind = "" if isinstance(error, FlatironsError) else f"{type(error).__name__}: "
        print(f"flatirons: {what} did not work: {kind}{error}", file=sys.stderr)


def say(lines: Iterable[str], *, quiet: bool) -> None:
    """Print lines for the person who runs this, unless quiet."""
    if not quiet:
        for line in lines:
            print(line, flush=True)


def warn(text: str) -> None:
    """Say on stderr what a person must not miss, also when quiet."""
    print(f"flatirons: WARNING: {text}", file=sys.stderr, flush=True)
