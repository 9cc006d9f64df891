"""A person's own data behind `data:FILE.csv` and `data:FILE.npz`: rows of numbers with a target, or pictures with labels.

Rows are split at random, the same way each time, as the UCI tables are: `splits` times into rows to learn from and `test_share` to test on,
of which a system's `split` chooses one. An .npz file may bring its own split: train_images, train_labels, test_images, test_labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flatirons.envs.datasets import DataTask
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, Spec

SUFFIXES = (".csv", ".npz")
"""What such a name ends in."""

OPTIONS = {"target": str | int | None, "classes": bool, "test_share": float, "splits": int}
"""Options of such a task, by their types."""

PICTURES = ("train_images", "train_labels", "test_images", "test_labels")
"""An .npz file's arrays where it has its own split."""


def is_file(name: str) -> bool:
    """Whether what stands behind `data:` is a file's name, not a set's."""
    return name.lower().endswith(SUFFIXES)


def located(task: Any) -> Any:
    """The task's name with its file's whole path, so that a run finds it from any folder; other tasks as they are."""
    if isinstance(task, str) and task.startswith("data:") and is_file(task):
        return f"data:{Path(task.removeprefix('data:')).expanduser().absolute()}"
    return task


def make(
    name: str, num_envs: int = 1, *, target: str | int | None = None, classes: bool = False, test_share: float = 0.1, splits: int = 20
) -> DataTask:
    """The file's rows as a task: arrays x `[n, ...]`, y `[n]` (float64, or int32 for classes), train and test int32 `[splits, ...]`.

    target: the column to be predicted, by its name or its number from 1 (default: the last). classes: its values are classes, as they are
    where they are words. Raises FlatironsError where the file is not there or is not such a file, with the row and column.
    """
    path = Path(name).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlatironsError(f"{path} cannot be read ({error.strerror}); data:FILE.csv and data:FILE.npz name files of yours") from None
    if not 0.0 < test_share < 1.0 or splits < 1:
        raise FlatironsError(f"test_share={test_share} must lie between 0 and 1, and splits={splits} be at least 1")
    sha256, called = hashlib.sha256(content).hexdigest(), f"data:{name}"
    columns: tuple[str, ...] = ()
    if path.suffix.lower() == ".csv":
        x, y, columns = _table(path, content, None if target is None else str(target), classes)
    else:
        arrays = _arrays(path, content)
        if target is not None:
            raise FlatironsError(f"{path} has no columns to choose target={target!r} from: its targets are the array y")
        if arrays.keys() >= set(PICTURES):
            return DataTask(called, num_envs, _pictures(path, arrays), {key: arrays[key] for key in PICTURES}, sha256)
        x, y = _rows(path, arrays)
    notes: tuple[str, ...] = ()
    labels: Any = ()
    if classes or y.dtype.kind in "US":
        labels, y = np.unique(y, return_inverse=True)
        notes = (f"{len(labels)} classes: {', '.join(map(str, labels[:10]))}{', ...' if len(labels) > 10 else ''}",)
        y, action = y.astype(np.int32), Discrete(len(labels))
    else:
        action = Box((-np.inf,), (np.inf,))
    held = max(1, round(test_share * len(x)))
    if len(x) - held < 2:
        raise FlatironsError(f"{path} has {len(x)} rows, of which {held} would be held out: too few to learn from")
    orders = [np.random.default_rng(i).permutation(len(x)).astype(np.int32) for i in range(splits)]
    parts = {"train": np.stack([order[held:] for order in orders]), "test": np.stack([order[:held] for order in orders])}
    shown = ArraySpec(x.shape[1:], "uint8", 0, 255) if x.dtype == np.uint8 else ArraySpec(x.shape[1:], "float32")
    words = tuple(map(str, labels))
    return DataTask(called, num_envs, Spec(shown, action), {"x": x, "y": y, **parts}, sha256, notes, columns=columns, labels=words)


def without_rows(name: str, num_envs: int, spec: Spec, split: int, columns: tuple[str, ...], labels: tuple[str, ...]) -> DataTask:
    """What `make` gave, but for what the file says: enough to lay out a network and to ask it, where the file is not at hand."""
    shown: Any = spec.obs
    x = np.zeros((2, *shown.shape), np.uint8 if shown.dtype == "uint8" else np.float64)
    y = np.zeros(2, np.int32 if isinstance(spec.action, Discrete) else np.float64)
    rows = np.zeros((split + 1, 1), np.int32)
    return DataTask(name, num_envs, spec, {"x": x, "y": y, "train": rows, "test": rows}, "", columns=columns, labels=labels)


def inputs(file: str, columns: tuple[str, ...] = ()) -> np.ndarray:
    """Rows of inputs `[M, ...]` to be asked about, of a .csv, .npy or .npz file (its array x). `columns`: what the inputs are called where
    the file has a line of names, or one column more: it is the target then, and left out, as are all columns that are not asked for.

    Raises FlatironsError where the file is not there or is not such a file, with the row and column."""
    path = Path(file).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlatironsError(f"{path} cannot be read ({error.strerror}); name a .csv, .npy or .npz file of inputs") from None
    kind = path.suffix.lower()
    if kind == ".csv":
        header, named, lines = _lines(path, content)
        if not lines:
            raise FlatironsError(f"{path} has no rows")
        wanted = list(columns or header)
        if not named and len(header) == len(wanted):
            header = wanted
        if missing := [column for column in wanted if column not in header]:
            raise FlatironsError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(header)}")
        places = [header.index(column) for column in wanted]
        return np.array([[_number(path, i, header[j], row[j]) for j in places] for i, row in lines], np.float64)
    if kind == ".npy":
        try:
            return np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError):
            raise FlatironsError(f"{path} is not an .npy file of a plain array; write it with numpy.save(path, x)") from None
    if kind == ".npz":
        arrays = _arrays(path, content)
        if "x" not in arrays:
            raise FlatironsError(f"{path} holds {', '.join(arrays) or 'nothing'}; the inputs must be called x")
        return arrays["x"][:, None] if arrays["x"].ndim == 1 else arrays["x"]
    raise FlatironsError(f"{path} is no file of inputs: name a .csv, .npy or .npz file")


def _lines(path: Path, content: bytes) -> tuple[list[str], bool, list[tuple[int, list[str]]]]:
    """(the columns' names, whether the file says them, (number, cells) of each row) of a .csv file parted by commas, semicolons or tabs."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FlatironsError(f"{path} is not a text file in UTF-8; save it as one") from None
    first = text.partition("\n")[0]
    parted = max(",;\t", key=first.count)
    lines = [(i, [cell.strip() for cell in row]) for i, row in enumerate(csv.reader(io.StringIO(text), delimiter=parted), 1) if any(row)]
    if not lines:
        raise FlatironsError(f"{path} is empty")
    width = len(lines[0][1])
    header = [str(column) for column in range(1, width + 1)]
    named = not any(_is_number(cell) for cell in lines[0][1])
    if named:
        header = lines.pop(0)[1]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise FlatironsError(f"{path} has several columns called {twice[0]!r}; give each a name of its own")
    for i, row in lines:
        if len(row) != width:
            raise FlatironsError(f"row {i} of {path} has {len(row)} columns, where the first has {width}")
    return header, named, lines


def _table(path: Path, content: bytes, target: str | None, classes: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(x float64 `[n, d]`, y `[n]`: float64, or words, what the columns of x are called) of a .csv file."""
    header, _, lines = _lines(path, content)
    width = len(header)
    if width < 2:
        raise FlatironsError(f"{path} has one column, where the inputs and the target take two at least, parted by commas")
    at = _column(path, header, target)
    # One number among words is a misprint, unless they are said to be classes.
    words = bool(lines) and not (all if classes else any)(_is_number(row[at]) for _, row in lines)
    x = np.array([[_number(path, i, header[j], row[j]) for j in range(width) if j != at] for i, row in lines], np.float64)
    y = [row[at] if words else _number(path, i, header[at], row[at]) for i, row in lines]
    if words and any(not word for word in y):
        raise FlatironsError(f"the column {header[at]!r} of {path}, the target, has rows without a value; fill or drop them")
    return x.reshape(len(lines), width - 1), np.array(y), tuple(name for j, name in enumerate(header) if j != at)


def _column(path: Path, header: list[str], target: str | None) -> int:
    """The target's place."""
    if target is None:
        return len(header) - 1
    if target in header:
        return header.index(target)
    if target.isdecimal() and 1 <= int(target) <= len(header):
        return int(target) - 1
    raise FlatironsError(f"{path} has no column {target!r}; target is one of {', '.join(header)}, or a number from 1 to {len(header)}")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _number(path: Path, row: int, column: str, cell: str) -> float:
    if not _is_number(cell):
        said = f"{cell!r}" if cell else "nothing"
        raise FlatironsError(
            f"row {row} of {path} has {said} in the column {column!r}, where a number must be: fill or drop what is missing, and write "
            "words as numbers, a column of 0 and 1 for each"
        )
    return float(cell)


def _arrays(path: Path, content: bytes) -> Mapping[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise FlatironsError(f"{path} is not an .npz file of plain arrays; write it with numpy.savez(path, x=..., y=...)") from None


def _rows(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of an .npz file."""
    if not arrays.keys() >= {"x", "y"}:
        raise FlatironsError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it needs x and y, one row for each example, or {', '.join(PICTURES)}"
        )
    x, y = arrays["x"], arrays["y"]
    x = x[:, None] if x.ndim == 1 else x
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or x.dtype.kind not in "fiub" or y.dtype.kind not in "fiubUS":
        raise FlatironsError(
            f"x {x.dtype}{list(x.shape)} and y {y.dtype}{list(y.shape)} of {path} do not fit: x has numbers [n, ...], y has one value a row"
        )
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FlatironsError(
                f"{name} of {path} has {np.count_nonzero(~np.isfinite(array))} numbers that are not finite; fill or drop them"
            )
    return x if x.dtype == np.uint8 and x.ndim > 2 else x.astype(np.float64), y if y.dtype.kind in "US" else y.astype(np.float64)


def _pictures(path: Path, arrays: Mapping[str, np.ndarray]) -> Spec:
    """The spec of pictures with their own split."""
    images, labels, test_images, test_labels = (arrays[name] for name in PICTURES)
    fits = images.shape[1:] == test_images.shape[1:] and images.ndim > 1 and images.dtype == test_images.dtype == np.uint8
    counted = labels.shape == images.shape[:1] and test_labels.shape == test_images.shape[:1] and min(len(labels), len(test_labels)) > 0
    if not fits or not counted or labels.dtype.kind not in "iu" or test_labels.dtype.kind not in "iu":
        raise FlatironsError(
            f"{', '.join(PICTURES)} of {path} do not fit: pictures are uint8 [n, ...] of one shape, labels whole numbers [n]"
        )
    if min(labels.min(), test_labels.min()) < 0 or test_labels.max() > labels.max():
        raise FlatironsError(f"the labels of {path} must be counted from 0, and test_labels have none that train_labels lack")
    return Spec(ArraySpec(images.shape[1:], "uint8", 0, 255), Discrete(int(labels.max()) + 1))
