"""Real data behind `data:NAME`: found, checked against their SHA-256, and handed out as a task that holds arrays instead of an environment.

A file is looked for in `data_dir` (or `$FLATIRONS_DATA`), then in the cache (`$FLATIRONS_CACHE`, else `~/.cache/flatirons`), then fetched
from its public source into the cache. `data_files.json` lists every file with its source and hashes; a file with another hash is not used.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.client
import importlib.resources
import io
import json
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, Spec

TIMEOUT_S = 20.0
"""How long a source may stay silent before it counts as out of reach."""

UCI = {
    "uci-boston": "bostonHousing",
    "uci-concrete": "concrete",
    "uci-energy": "energy",
    "uci-wine": "wine-quality-red",
    "uci-yacht": "yacht",
}
"""The regression tables of Hernandez-Lobato and Adams 2015 with their 20 splits, by our name and by their folder's."""


class Missing(FlatironsError):
    """A listed file is nowhere, and its source cannot be reached. A file that is there and damaged is another error."""


@dataclasses.dataclass(eq=False)
class DataTask:
    """A data set as a task: what a system learns from where nothing is decided. Compared by identity, as every task.

    arrays: NumPy arrays by name. sha256: of the files they were read from, which a run records and a resumed run must find again. spec: obs
    is one input; action is `Discrete` (its classes) or `Box` (its targets). columns and labels: what the inputs of a row and the classes
    are called, where they have names.
    """

    name: str
    num_envs: int
    spec: Spec
    arrays: Mapping[str, np.ndarray]
    sha256: str
    notes: tuple[str, ...] = ()
    in_graph: bool = True
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def resized(self, num_envs: int) -> DataTask:
        """The same data for another number of streams."""
        return dataclasses.replace(self, num_envs=num_envs)

    def _no_environment(self) -> FlatironsError:
        return FlatironsError(f"{self.name} is data to learn from, in which nothing can act; `flatirons list` names systems for it")

    def reset(self, key: Any) -> Any:
        """Raises FlatironsError: there is no environment."""
        raise self._no_environment()

    def observe(self, env: Any) -> Any:
        """Raises FlatironsError: there is no environment."""
        raise self._no_environment()

    def step(self, key: Any, env: Any, action: Any) -> Any:
        """Raises FlatironsError: there is no environment."""
        raise self._no_environment()

    def close(self) -> None:
        """Nothing to close."""


# ------------------------------------------------------------------------------------------------------------------ files


@functools.cache
def _listed() -> dict[str, Any]:
    return json.loads((importlib.resources.files("flatirons.envs") / "data_files.json").read_text(encoding="utf-8"))


def cache_dir() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get("FLATIRONS_CACHE") or Path.home() / ".cache" / "flatirons")


def _aside(path: Path) -> str:
    """Move a damaged file of the cache out of the way, never somebody's own; what became of it, in words."""
    if not path.is_relative_to(cache_dir()):
        return "it was left where it is and is not used"
    kept = path.with_name(path.name + ".damaged")
    try:
        path.replace(kept)
    except OSError as error:
        return f"it cannot be moved aside ({error.strerror}) and is not used"
    return f"it was moved to {kept} and is not used"


def _read(path: Path, hashes: list[str]) -> tuple[bytes | None, str]:
    """(a file's content, ""), or (None, what is wrong with it); (None, "") where there is none."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror})"
    if hashlib.sha256(content).hexdigest() in hashes:
        return content, ""
    return None, f"{path} has another SHA-256 than expected: {_aside(path)}"


def _keep(content: bytes, place: Path) -> None:
    """Put a fetched file in the cache, whole or not at all. Raises FlatironsError where that cannot be written."""
    scratch = place.with_name(place.name + ".tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(content)
        scratch.replace(place)
    except OSError as error:
        raise FlatironsError(
            f"{place} was fetched and cannot be written ({error.strerror}): let FLATIRONS_CACHE name a folder that can be"
        ) from None


def file(folder: str, name: str, data_dir: str | os.PathLike[str] | None = None) -> bytes:
    """The content of one listed file, such as `file("mnist", "t10k-images-idx3-ubyte.gz")`, checked. A damaged one that was passed over is
    named on stderr.

    Raises Missing where it is nowhere and its source cannot be reached (with the places to put it by hand), FlatironsError where its hash
    is another, where the connection breaks off, and where the cache cannot be written.
    """
    source, hashes = _listed()[folder]["source"], _listed()[folder]["files"][name]
    given = data_dir if data_dir is not None else os.environ.get("FLATIRONS_DATA")
    places = [home / folder / name for home in ([Path(given)] if given else []) + [cache_dir()]]
    by_hand = f"get that file and put it at {' or '.join(map(str, places))}"
    refused = []
    for place in places:
        content, wrong = _read(place, hashes)
        if content is not None:
            _warn(refused)
            return content
        refused += [wrong] if wrong else []
    try:
        with urllib.request.urlopen(source + name, timeout=TIMEOUT_S) as answer:
            content = _whole(answer, source + name, refused, by_hand)
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        told = "; ".join([*refused, f"{source}{name} cannot be reached ({reason})"])
        raise (FlatironsError if refused else Missing)(f"{told}; {by_hand}") from None
    if hashlib.sha256(content).hexdigest() not in hashes:
        kept = places[-1].with_name(name + ".damaged")
        _keep(content, kept)
        raise FlatironsError(
            f"what {source}{name} sent has another SHA-256 than expected: it was kept as {kept} and is not used; try again, or {by_hand}"
        )
    _keep(content, places[-1])
    _warn(refused)
    return content


def _whole(answer: Any, url: str, refused: list[str], by_hand: str) -> bytes:
    """What a source sends. Raises FlatironsError where it breaks off: not Missing, for the file is to be had."""
    try:
        return answer.read()
    except (OSError, http.client.HTTPException) as error:
        told = "; ".join([*refused, f"the connection broke off while {url} was fetched ({type(error).__name__})"])
        raise FlatironsError(f"{told}; try again, or {by_hand}") from None


def _warn(refused: list[str]) -> None:
    """Name on stderr what was passed over for a good file."""
    for wrong in refused:
        print(f"flatirons: WARNING: {wrong}; a good one is used in its place", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------------- sets


def _idx(content: bytes) -> np.ndarray:
    """An array in the IDX format of MNIST, uint8."""
    raw = gzip.decompress(content)
    axes = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _mnist(read: Callable[[str, str], bytes]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """train_images uint8 `[n, 28, 28]`, train_labels uint8 `[n]`, and the same as test_."""
    kinds = ("images-idx3", "labels-idx1")
    images, labels = (_idx(read("mnist", f"t10k-{kind}-ubyte.gz")) for kind in kinds)
    names = [f"train-{kind}-ubyte.gz" for kind in kinds]
    try:
        train_images, train_labels = (_idx(read("mnist", name)) for name in names)
    except Missing as error:
        # Only what is absent is done without: in place of a damaged file nobody is to learn from other digits unawares.
        cut = 8_000
        split = {"train_images": images[:cut], "train_labels": labels[:cut], "test_images": images[cut:], "test_labels": labels[cut:]}
        return split, (
            f"MNIST's 60,000 training digits ({' and '.join(names)}) are not here: 8,000 of its 10,000 test digits to learn from, 2,000 to "
            f"test on. {error}",
        )
    return {"train_images": train_images, "train_labels": train_labels, "test_images": images, "test_labels": labels}, ()


def _shrink(side: int, to: int) -> np.ndarray:
    """`[to, side]`: each row averages the stretch of `side / to` pixels that it stands for."""
    edges = np.linspace(0, side, to + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels[None] + 1) - np.maximum(edges[:-1, None], pixels[None])
    return np.clip(overlap, 0, None) * (to / side)


def _omniglot(read: Callable[[str, str], bytes]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """images uint8 `[characters, 20, 28, 28]` (ink 255), alphabet int32 `[characters]`; the alphabets' names in order are the notes."""
    from PIL import Image

    shrink = _shrink(105, 28)
    drawn: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for archive in _listed()["omniglot"]["files"]:
        with zipfile.ZipFile(io.BytesIO(read("omniglot", archive))) as box:
            for name in box.namelist():
                if name.endswith(".png"):
                    _, alphabet, character, picture = name.split("/")
                    # The two archives share alphabets: a picture that stands in both is one picture.
                    of_one = drawn.setdefault((alphabet, character), {})
                    if picture not in of_one:
                        ink = 255.0 * (1 - np.asarray(Image.open(io.BytesIO(box.read(name))), np.float64))
                        of_one[picture] = np.rint(shrink @ ink @ shrink.T).astype(np.uint8)
    alphabets = sorted({alphabet for alphabet, _ in drawn})
    characters = sorted(drawn)
    images = np.stack([np.stack([drawn[c][picture] for picture in sorted(drawn[c])]) for c in characters])
    return {"images": images, "alphabet": np.array([alphabets.index(a) for a, _ in characters], np.int32)}, tuple(alphabets)


def _uci(folder: str) -> Callable[[Callable[[str, str], bytes]], tuple[dict[str, np.ndarray], tuple[str, ...]]]:
    def load(read: Callable[[str, str], bytes]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """x float64 `[n, features]`, y float64 `[n]`, train int32 `[20, n_train]`, test int32 `[20, n_test]`."""

        def numbers(name: str) -> np.ndarray:
            return np.atleast_1d(np.loadtxt(io.BytesIO(read(f"uci/{folder}", name))))

        table, features, target = numbers("data.txt"), numbers("index_features.txt"), numbers("index_target.txt")
        splits = int(numbers("n_splits.txt")[0])
        parts = {kind: np.stack([numbers(f"index_{kind}_{i}.txt") for i in range(splits)]).astype(np.int32) for kind in ("train", "test")}
        return {"x": table[:, features.astype(int)], "y": table[:, int(target[0])], **parts}, ()

    return load


def _co2(read: Callable[[str, str], bytes]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """year float64 `[n]` (fractions of a year) and co2 float64 `[n]` (parts per million), weekly at Mauna Loa from 1958 to 2001, gaps
    left out."""
    rows = [line.split(",") for line in read("co2", "co2.csv").decode().splitlines()[1:]]
    there = [(date, value) for date, value in rows if value.strip()]
    days = np.array([np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:8]}") for d, _ in there])
    return {"year": 1970.0 + days.astype("datetime64[D]").astype(np.float64) / 365.2425, "co2": np.array([float(v) for _, v in there])}, ()


@dataclasses.dataclass(frozen=True)
class _Set:
    folder: str
    load: Callable[[Callable[[str, str], bytes]], tuple[dict[str, np.ndarray], tuple[str, ...]]]
    spec: Callable[[Mapping[str, np.ndarray]], Spec]


def _pictures(classes: Callable[[Mapping[str, np.ndarray]], int]) -> Callable[[Mapping[str, np.ndarray]], Spec]:
    return lambda arrays: Spec(ArraySpec((28, 28), "uint8", 0, 255), Discrete(classes(arrays)))


def _table(features: str) -> Callable[[Mapping[str, np.ndarray]], Spec]:
    def spec(arrays: Mapping[str, np.ndarray]) -> Spec:
        x = arrays[features]
        return Spec(ArraySpec((x.shape[1] if x.ndim == 2 else 1,), "float32"), Box((-np.inf,), (np.inf,)))

    return spec


SETS: Mapping[str, _Set] = {
    "mnist": _Set("mnist", _mnist, _pictures(lambda arrays: 10)),
    "omniglot": _Set("omniglot", _omniglot, _pictures(lambda arrays: len(arrays["images"]))),
    **{name: _Set(f"uci/{folder}", _uci(folder), _table("x")) for name, folder in UCI.items()},
    "co2": _Set("co2", _co2, _table("year")),
}
"""What `data:` has."""


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[dict[str, np.ndarray], tuple[str, ...], str]:
    """(arrays, notes, SHA-256 of the files read) of the data set `name`, one of `SETS`.

    Raises FlatironsError where a file cannot be had or is damaged.
    """
    digest = hashlib.sha256()

    def read(folder: str, file_name: str) -> bytes:
        content = file(folder, file_name, data_dir)
        digest.update(f"{folder}/{file_name}:{hashlib.sha256(content).hexdigest()}".encode())
        return content

    arrays, notes = SETS[name].load(read)
    return arrays, notes, digest.hexdigest()


def make(name: str, num_envs: int = 1, *, data_dir: str | None = None) -> DataTask:
    """The data set `name` as a task. Raises FlatironsError as `load` does."""
    arrays, notes, sha256 = load(name, data_dir)
    return DataTask(f"data:{name}", num_envs, SETS[name].spec(arrays), arrays, sha256, notes)
