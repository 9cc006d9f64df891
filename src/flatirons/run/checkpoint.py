"""Checkpoints that never lose a run.

    checkpoints/step_000000012345/manifest.json      every file with size and SHA-256, every leaf, the meta; its first line is its own hash
                                  state.safetensors  the small leaves
                                  parity             the exclusive or of all its pieces, where it has any
    checkpoints/chunks/<sha256>.safetensors          pieces of the large leaves (replay), shared by the checkpoints that name them

A checkpoint is written beside its place, fsynced and renamed into it, so that a kill at any moment leaves the previous one. Large leaves
are cut at fixed places, whatever they hold, and every piece is a file named by the hash of its content: of a replay that grew by some rows
only the pieces with new rows are written. A byte that rots in a piece would damage every checkpoint that shares it, so each checkpoint has
a parity file, from which any one piece can be made again out of the others; the next `save` of the same content writes it anew. What is
damaged beyond that is passed over, and loading goes back to the newest intact checkpoint. Damage to what lies beside the arrays, the parity
or an extra file, is only said.

The hashes find accidents, not forgers. Against a forged folder stands that nothing here can run code: JSON and safetensors only, names that
cannot leave the folder, shapes that must equal the caller's. One process at a time may save into a folder, for each removes what
it does not know of as a leftover: half-written checkpoints, pieces that none of its own names. `run.folder.held` sees to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.run import arrays
from flatirons.run.arrays import Damage, FileRecord
from flatirons.run.resources import disk_free, human_bytes
from flatirons.types import FlatironsError, PyTree

CHUNK_BYTES = 8 << 20
"""Leaves above this size are cut into chunks of this size."""

_VERSION = 1
_FORMAT = "flatirons arrays"
_MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 1 << 28
_CHUNKS = "chunks"
_PARITY = "parity"
_STEP = re.compile(r"step_(\d{12,})(\.old)?")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOKS = 10
_BETWEEN_RENAMES = 0.05
"""Seconds in which whoever puts a new folder in the place of an old one has done so."""


class Loaded(NamedTuple):
    """A loaded tree. `warnings` says, a sentence each, which damaged checkpoints were passed over, and what was mended: show them."""

    tree: PyTree
    meta: dict[str, Any]
    path: Path
    warnings: list[str]


class NoPolicy(FlatironsError):
    """A policy that is missing or damaged; `fault` says so without what to do, for whoever knows of another."""

    def __init__(self, fault: str, advice: str):
        super().__init__(f"{fault}{advice}")
        self.fault = fault


class Misfit(FlatironsError):
    """A whole checkpoint that holds something else than what is asked for; `names` are the leaves that differ."""

    def __init__(self, path: Path, problems: Sequence[str], names: Sequence[str]):
        told = "; ".join(problems)
        super().__init__(f"{path} does not fit what it is to be loaded into ({told}): use the system, task and settings that saved it.")
        self.names = tuple(names)


class _Leaf(NamedTuple):
    """One leaf on the host. `kind` is array, key (typed PRNG key, `array` is its data) or the Python scalar's type: bool, int, float."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    impl: str
    array: np.ndarray


class _LeafRecord(NamedTuple):
    """A leaf as the manifest describes it: `chunks` are the hashes of its pieces in order, of `chunk_size` items each but the last."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    impl: str
    chunk_size: int
    chunks: tuple[str, ...]


class _Manifest(NamedTuple):
    step: int | None
    meta: dict[str, Any]
    arrays: str
    files: dict[str, FileRecord]
    chunks: dict[str, FileRecord]
    leaves: dict[str, _LeafRecord]


class _Chunk(NamedTuple):
    record: FileRecord
    pieces: list[memoryview]


def is_weight(name: str) -> bool:
    """Whether a leaf's tree path (`params/torso/0/w`) lies in parameters or in an optimiser's state."""
    return any(part.endswith("params") or part.startswith("opt_state") for part in name.split("/"))


# ------------------------------------------------------------------------------------------------------------------ checkpoints


def save(
    folder: Path | str,
    tree: PyTree,
    meta: Mapping[str, Any],
    *,
    step: int,
    keep: int = 3,
    finite: Callable[[str], bool] | None = is_weight,
    extra_files: Mapping[str, bytes] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Path:
    """Write `folder/step_<step>` and then delete all but the newest `keep` checkpoints; returns its path.

    `tree`: any pytree of JAX or NumPy arrays (bfloat16 too), typed PRNG keys, Python bool/int/float and None. NumPy leaves must not be
    written to meanwhile. `meta`: what JSON can hold; it comes back as JSON gives it. `finite` names, by tree path, the float leaves in
    which NaN and inf are refused. `extra_files` (the run's config.json) are put beside them, by name.
    A checkpoint of the same step is replaced.

    Raises `FlatironsError` (leaf of another type, non-finite number, disk full, folder not writable); what was saved before is then intact.
    """
    folder = Path(folder)
    if step < 0 or keep < 1 or chunk_bytes < 1:
        raise FlatironsError(f"A checkpoint needs step >= 0, keep >= 1 and chunk_bytes >= 1, not {step}, {keep} and {chunk_bytes}.")
    what = f"The checkpoint of step {step}"
    leaves = _leaves(tree, finite, what)
    meta_text = _json(meta, what)
    files = _extra_files(extra_files or {}, what)
    final = folder / f"step_{step:012d}"
    temporary = folder / f"{final.name}.tmp"
    added: list[Path] = []
    needed = 0
    try:
        (folder / _CHUNKS).mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        small, cut, chunks = _cut(leaves, chunk_bytes)
        absent = _absent(folder / _CHUNKS, chunks)
        needed = sum(leaf.array.nbytes for leaf in small.values()) + sum(chunk.record.size for chunk in absent.values())
        if needed > disk_free(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for digest, chunk in absent.items():
            path = folder / _CHUNKS / f"{digest}.safetensors"
            if not path.exists():
                added.append(path)
            _write_chunk(path, chunk, what)
        arrays.sync_folder(folder / _CHUNKS)
        records = {digest: chunk.record for digest, chunk in chunks.items()}
        if chunks:
            files[_PARITY] = _parity([chunk.pieces for chunk in chunks.values()]).tobytes()
        _write_folder(temporary, "state.safetensors", small, cut, records, files, meta_text, step)
        _put_in_place(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not final.exists():
            for path in added:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_saved(what, folder, error, needed, _previous(folder), "start again with --overwrite") from error
        raise
    _prune(folder, final, keep)
    return final


def _nothing(name: str) -> bool:
    del name
    return False


def load_latest(folder: Path | str, like: PyTree, *, leave: Callable[[str], bool] = _nothing) -> Loaded:
    """Load the newest intact checkpoint of `folder` into the structure of `like`; of what it holds besides, `leave(name)` says whether it
    may be left where it is.

    `like` has arrays or `jax.ShapeDtypeStruct` as leaves, of the shapes and dtypes expected; leaves come back as NumPy arrays where `like`
    has NumPy arrays, as Python numbers where it has those, and as fresh JAX arrays otherwise. Every file is verified. A damaged checkpoint
    is passed over with a warning; damage is never a reason to start anew.

    Raises `FlatironsError` when there is no checkpoint and when none is intact; `Misfit` when the newest intact one does not fit `like`:
    the sentence then lists what is missing, unexpected and mismatched.
    """
    folder = Path(folder)
    return _newest(folder, lambda path: _load(path, like, leave))


def load(path: Path | str, like: PyTree) -> Loaded:
    """Load this one checkpoint (`.../step_<step>`), as `load_latest` does. Raises `FlatironsError` when it is damaged, with no fallback."""
    path = Path(path)
    try:
        return _settled(path, lambda path: _load(path, like))
    except Damage as damage:
        raise FlatironsError(f"The checkpoint {path} is damaged: {damage}; use another one.") from None


def list_checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints of `folder`, oldest step first, unverified. Empty where there is no folder."""
    candidates = _candidates(Path(folder))
    finished = {path.name for path in candidates}
    return [path for path in reversed(candidates) if path.suffix != ".old" or path.stem not in finished]


def newest_step(folder: Path | str) -> int | None:
    """The step of the newest checkpoint of `folder`, unverified; None where there is none."""
    return max((_step_of(path) for path in _candidates(Path(folder))), default=None)


# ----------------------------------------------------------------------------------------------------------------------- policy


def save_policy(
    folder: Path | str, tree: PyTree, meta: Mapping[str, Any], *, finite: Callable[[str], bool] | None = lambda name: True
) -> Path:
    """Replace `folder` as a whole by one that holds `tree` (policy.safetensors) and `meta` (manifest.json); returns `folder`.

    A kill at any moment leaves either the old policy or the new one loadable. NaN and inf are refused in every float leaf unless `finite`
    (see `save`) says otherwise. Raises `FlatironsError` as `save` does.
    """
    folder = Path(folder)
    what = f"The policy {folder.name}/"
    leaves = _leaves(tree, finite, what)
    meta_text = _json(meta, what)
    temporary, old = folder.with_name(f"{folder.name}.tmp"), folder.with_name(f"{folder.name}.old")
    needed = sum(leaf.array.nbytes for leaf in leaves.values())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists() and old.exists():
            os.rename(old, folder)
        if needed > disk_free(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_folder(temporary, "policy.safetensors", leaves, {}, {}, {}, meta_text, None)
        _put_in_place(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _not_saved(what, folder.parent, error, needed, folder if folder.exists() else None, "try again") from error
        raise
    return folder


def load_policy(folder: Path | str, like: PyTree) -> Loaded:
    """Load what `save_policy` wrote into the structure of `like` (see `load_latest`), verified.

    Where a save was interrupted between two renames, the policy before it is found and a warning says so. Raises `FlatironsError`.
    """
    return _policy(Path(folder), lambda path: _load(path, like))


# ---------------------------------------------------------------------------------------------------------------------- surroundings


def probe_writable(folder: Path | str) -> None:
    """Make `folder` where it does not exist, and write, fsync, rename and delete a file in it: what saving will do, tried before a run.

    Raises `FlatironsError` when any of it fails.
    """
    folder = Path(folder)
    first, second = folder / ".probe.tmp", folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first.unlink(missing_ok=True)
        arrays.write_file(first, [memoryview(b"probe")])
        os.rename(first, second)
        arrays.sync_folder(folder)
        second.unlink()
    except OSError as error:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink()
        raise FlatironsError(f"Cannot write to {folder}: {error.strerror}; choose another output folder.") from error


# --------------------------------------------------------------------------------------------------------------- tree -> leaves


def _named(tree: PyTree) -> tuple[dict[str, Any], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves: dict[str, Any] = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in leaves:
            raise FlatironsError(f"Two leaves of the tree are both called {name!r}; rename a dict key that holds a slash.")
        leaves[name] = leaf
    return leaves, structure


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(tree: PyTree, finite: Callable[[str], bool] | None, what: str) -> dict[str, _Leaf]:
    leaves = {name: _to_host(name, leaf, what) for name, leaf in _named(tree)[0].items()}
    for name, leaf in leaves.items():
        if finite is not None and jnp.issubdtype(leaf.array.dtype, jnp.inexact) and finite(name):
            bad = leaf.array.size - np.count_nonzero(np.isfinite(leaf.array))
            if bad:
                raise FlatironsError(
                    f"{what} was not saved, because {name} holds {bad} non-finite numbers (NaN or inf) of {leaf.array.size}, and a "
                    "non-finite number never reaches saved weights; what was saved before is kept: start from it at a lower learning rate, "
                    "`flatirons train SYSTEM TASK --from RUN --learning-rate X --out NEW`."
                )
    return leaves


def _to_host(name: str, leaf: Any, what: str) -> _Leaf:
    if _is_key(leaf):
        return _Leaf("key", str(leaf.dtype), leaf.shape, str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)))
    for kind in (bool, int, float):
        if type(leaf) is kind:
            try:
                return _Leaf(kind.__name__, kind.__name__, (), "", np.asarray(leaf, {bool: "bool", int: "int64", float: "float64"}[kind]))
            except OverflowError:
                raise FlatironsError(f"{what} was not saved, because {name} = {leaf} needs over 64 bits; put it into meta.") from None
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise FlatironsError(
            f"{what} was not saved, because {name} is a {type(leaf).__name__} and only arrays and numbers can be saved; put it into meta."
        )
    array = np.asarray(leaf)
    # A small NumPy array may be written to by another thread while it is saved; a large one is too dear to copy and is checked instead.
    if isinstance(leaf, np.ndarray) and array.nbytes <= CHUNK_BYTES:
        array = array.copy()
    array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    if not arrays.storable(array.dtype):
        raise FlatironsError(f"{what} was not saved, because {name} has the dtype {array.dtype}, which safetensors does not hold; cast it.")
    return _Leaf("array", array.dtype.name, array.shape, "", array)


def _cut(leaves: dict[str, _Leaf], chunk_bytes: int) -> tuple[dict[str, _Leaf], dict[str, _LeafRecord], dict[str, _Chunk]]:
    """The small leaves, the records of the large ones, and the chunks of the large ones by hash."""
    small = {name: leaf for name, leaf in leaves.items() if leaf.kind != "array" or leaf.array.nbytes <= chunk_bytes}
    large = {name: leaf for name, leaf in leaves.items() if name not in small}
    parts: list[np.ndarray] = []
    spans = {}
    for name, leaf in large.items():
        # Cut in memory order and not along the first axis, so that [seeds, capacity, ...] is cut as finely as [capacity, ...].
        flat, size = leaf.array.reshape(-1), max(1, chunk_bytes // leaf.array.dtype.itemsize)
        start = len(parts)
        parts += [flat[i : i + size] for i in range(0, flat.size, size)]
        spans[name] = (start, len(parts), size)
    encoded = [arrays.encode({"chunk": part}) for part in parts]
    records = _parallel(arrays.record_of, encoded)
    cut = {
        name: _LeafRecord(leaf.kind, leaf.dtype, leaf.shape, leaf.impl, size, tuple(record.sha256 for record in records[start:stop]))
        for (name, leaf), (start, stop, size) in zip(large.items(), spans.values())
    }
    return small, cut, {record.sha256: _Chunk(record, pieces) for record, pieces in zip(records, encoded)}


def _parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Map over items in threads: hashing and file access release the interpreter lock."""
    items = list(items)
    workers = min(4, os.cpu_count() or 1, len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


# ---------------------------------------------------------------------------------------------------------------------- writing


def _json(meta: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlatironsError(f"{what} was not saved, because its meta is not JSON ({error}); use strings and finite numbers.") from None


def _extra_files(extra_files: Mapping[str, bytes], what: str) -> dict[str, bytes]:
    for name in extra_files:
        if not _SAFE_NAME.fullmatch(name) or name in (_MANIFEST, _PARITY, "state.safetensors"):
            raise FlatironsError(f"{what} was not saved, because an extra file cannot be called {name!r}; use letters, digits and dots.")
    return dict(extra_files)


def _absent(store: Path, chunks: dict[str, _Chunk]) -> dict[str, _Chunk]:
    """The chunks that are not in the store, or are there damaged. A good chunk is never written again."""
    there = _parallel(lambda item: arrays.agrees(store / f"{item[0]}.safetensors", item[1].record), chunks.items())
    return {digest: chunk for (digest, chunk), good in zip(chunks.items(), there) if not good}


def _parity(contents: Iterable[Iterable[bytes | memoryview]]) -> np.ndarray:
    """The exclusive or of files given as pieces, uint8, as long as the longest of them."""
    total = np.zeros(0, np.uint8)
    for pieces in contents:
        start = 0
        for piece in pieces:
            part = np.frombuffer(piece, np.uint8)
            if start + part.size > total.size:
                total = np.concatenate([total, np.zeros(start + part.size - total.size, np.uint8)])
            total[start : start + part.size] ^= part
            start += part.size
    return total


def _write_chunk(path: Path, chunk: _Chunk, what: str) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        if arrays.write_file(temporary, chunk.pieces) != chunk.record:
            raise FlatironsError(f"{what} was not saved, because an array changed while it was being saved; pass a copy.")
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_folder(
    folder: Path,
    arrays_name: str,
    small: dict[str, _Leaf],
    cut: dict[str, _LeafRecord],
    chunks: dict[str, FileRecord],
    extra: dict[str, bytes],
    meta_text: str,
    step: int | None,
) -> None:
    folder.mkdir()
    files = {arrays_name: arrays.write_file(folder / arrays_name, arrays.encode({name: leaf.array for name, leaf in small.items()}))}
    for name, content in extra.items():
        files[name] = arrays.write_file(folder / name, [memoryview(content)])
    leaves = {name: _LeafRecord(leaf.kind, leaf.dtype, leaf.shape, leaf.impl, 0, ()) for name, leaf in small.items()} | cut
    body = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": step,
        "meta": json.loads(meta_text),
        "arrays": arrays_name,
        "files": {name: record._asdict() for name, record in files.items()},
        "chunks": {digest: record.size for digest, record in chunks.items()},
        "leaves": {name: record._asdict() for name, record in leaves.items()},
    }
    # The file is one JSON object whose first line holds the hash of all that follows it.
    rest = json.dumps(body, indent=1, allow_nan=False)[2:].encode() + b"\n"
    arrays.write_file(folder / _MANIFEST, [memoryview(_first_line(rest)), memoryview(rest)])
    arrays.sync_folder(folder)


def _first_line(rest: bytes) -> bytes:
    return b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n'


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a finished folder into its place. The one that was there stays beside it as `.old`, where loading looks, until then."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    arrays.sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove what an interrupted save left, and put back what it had renamed away."""
    for path in folder.glob("step_*.tmp"):
        shutil.rmtree(path)
    for path in folder.glob("step_*.old"):
        final = path.with_suffix("")
        if final.exists():
            shutil.rmtree(path)
        else:
            os.rename(path, final)
    for path in (folder / _CHUNKS).glob("*.tmp"):
        path.unlink()


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Delete all but `keep` checkpoints, then the chunks that none of them names. `newest` was just written and stays in any case.

    Damaged ones go first, then those of later steps, which a run that went back to an older checkpoint has left behind.
    """

    def worth(path: Path) -> tuple[bool, bool, int]:
        return _looks_whole(path), _step_of(path) < _step_of(newest), _step_of(path)

    others = sorted((path for path in list_checkpoints(folder) if path != newest), key=worth, reverse=True)
    for path in others[keep - 1 :]:
        # Renamed first, so that a kill in between leaves no half checkpoint under a good name.
        leaving = path.with_name(f"{path.name}.tmp")
        try:
            os.rename(path, leaving)
        except OSError:
            continue
        shutil.rmtree(leaving, ignore_errors=True)
    try:
        named = {digest for path in [newest, *others[: keep - 1]] for digest in _read_manifest(path).chunks}
    except (Damage, FlatironsError):
        return  # Which chunks it names is unknown, so none is deleted until it has gone.
    for path in (folder / _CHUNKS).glob("*.safetensors"):
        if path.stem not in named:
            with contextlib.suppress(OSError):  # the checkpoint is in place; what cannot be deleted now is tried again at the next save
                path.unlink()


def _looks_whole(path: Path) -> bool:
    try:
        manifest = _read_manifest(path)
    except (Damage, FlatironsError):
        return False
    return all(arrays.size_agrees(path / name, record) for name, record in manifest.files.items()) and all(
        arrays.size_agrees(_chunk_path(path, digest), record) for digest, record in manifest.chunks.items()
    )


def _previous(folder: Path) -> Path | None:
    existing = list_checkpoints(folder)
    return existing[-1] if existing else None


def _not_saved(what: str, folder: Path, error: OSError, needed: int, previous: Path | None, anew: str) -> FlatironsError:
    """`anew` says what to do where there is none to go on from."""
    kept = f"{previous.name} is intact" if previous else "nothing was saved before it"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return FlatironsError(
            f"{what} was not saved, because the disk is full or a limit is reached ({error.strerror}): it needs {human_bytes(needed)} and "
            f"{human_bytes(disk_free(folder))} are free at {folder}; {kept}, free some space and "
            f"{'go on from it' if previous else anew}."
        )
    otherwise = "" if previous else f" and {anew}"
    return FlatironsError(f"{what} was not saved to {folder}: {error.strerror or error}; {kept}, make the folder writable{otherwise}.")


# ---------------------------------------------------------------------------------------------------------------------- reading


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _candidates(folder: Path) -> list[Path]:
    """Every folder that may hold a finished checkpoint, best first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_step_of(path), path.suffix != ".old"), reverse=True)


def _settled(path: Path, read: Callable[[Path], Loaded]) -> Loaded:
    """`read(path)`, again where somebody put another folder in its place meanwhile: half of the one and half of the other look damaged.

    Raises Damage that lies in one folder alone."""
    for _ in range(_LOOKS):
        before = _stamp(path)
        try:
            return read(path)
        except Damage:
            if before is None and path.with_name(f"{path.name}.old").exists():
                time.sleep(_BETWEEN_RENAMES)
            if _stamp(path) == before:
                raise
    return read(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells the folder at `path` from another that was or will be there."""
    try:
        status = os.stat(path / _MANIFEST)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _newest(folder: Path, read: Callable[[Path], Loaded]) -> Loaded:
    passed: dict[Path, str] = {}
    # Listed anew each time: one that was pruned while it was read has left a newer one.
    while (path := next((path for path in _candidates(folder) if path not in passed), None)) is not None:
        try:
            loaded = _settled(path, read)
        except Damage as damage:
            passed[path] = str(damage)
            continue
        damages = [damage for other, damage in passed.items() if other.exists()]
        return loaded._replace(warnings=[*(f"{damage}; using {path.name} instead" for damage in damages), *loaded.warnings])
    if damages := list(passed.values()):
        raise FlatironsError(
            f"No checkpoint in {folder} is intact ({'; '.join(damages)}): put back a copy of the folder, or start a new run in another one."
        )
    raise FlatironsError(f"There is no checkpoint in {folder}: name the folder of a run that has saved one.")


def _policy(folder: Path, read: Callable[[Path], Loaded]) -> Loaded:
    old = folder.with_name(f"{folder.name}.old")
    # Looked for twice, for the new one may come into its place while the old one goes.
    if not folder.name.endswith(".old") and not any(place.exists() for place in (folder, old, folder)):
        raise NoPolicy(f"There is no policy in {folder}", ": name the policy folder of a run that has saved one.")
    try:
        return _settled(folder, read)
    except Damage as damage:
        if not old.exists():
            raise NoPolicy(f"The policy in {folder} is damaged: {damage}", "; use the policy of another run or checkpoint.") from None
        try:
            return read(old)._replace(warnings=[f"{damage}; using {old.name} instead"])
        except Damage as second:
            raise NoPolicy(f"The policy in {folder} is damaged ({damage}; {second})", "; use that of another run.") from None


def _chunk_path(checkpoint: Path, digest: str) -> Path:
    return checkpoint.parent / _CHUNKS / f"{digest}.safetensors"


def _load(path: Path, like: PyTree, leave: Callable[[str], bool] = _nothing) -> Loaded:
    manifest = _read_manifest(path)
    wanted, structure = _named(like)
    _check_fit(path, {name: record for name, record in manifest.leaves.items() if name in wanted or not leave(name)}, wanted)
    data = arrays.read_file(path / manifest.arrays, f"{path.name}/{manifest.arrays}", record=manifest.files[manifest.arrays])
    small = arrays.decode(data, f"{path.name}/{manifest.arrays}")
    if small.keys() != {name for name, record in manifest.leaves.items() if not record.chunks}:
        raise Damage(f"{path.name}/{manifest.arrays} does not hold the leaves that its manifest names")
    leaves = []
    repaired: list[str] = []
    for name, leaf in wanted.items():
        record = manifest.leaves[name]
        array = _join(path, name, record, manifest, repaired) if record.chunks else small.pop(name)
        leaves.append(_restore(array, record, leaf, f"{path.name}/{manifest.arrays}: {name}"))
    warnings = [*_unneeded(path, manifest), *sorted(set(repaired))]
    return Loaded(jax.tree_util.tree_unflatten(structure, leaves), manifest.meta, path, warnings)


def _unneeded(path: Path, manifest: _Manifest) -> list[str]:
    """What is wrong with the files beside the arrays. The arrays are whole without them, so it costs nothing that was learned."""
    damages = []
    for name, record in manifest.files.items():
        if name != manifest.arrays:
            try:
                arrays.read_file(path / name, f"{path.name}/{name}", record=record)
            except Damage as damage:
                damages.append(f"{damage}; what was learned is whole without it, and the next checkpoint has it anew")
    return damages


def _signature(leaf: Any) -> tuple[str, str, tuple[int, ...]]:
    """Kind, dtype and shape of a leaf of `like`."""
    if _is_key(leaf):
        return "key", str(leaf.dtype), tuple(leaf.shape)
    if type(leaf) in (bool, int, float):
        return type(leaf).__name__, type(leaf).__name__, ()
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        return "array", np.dtype(leaf.dtype).newbyteorder("=").name, tuple(leaf.shape)
    raise FlatironsError(f"A checkpoint is loaded into arrays, jax.ShapeDtypeStruct or numbers, not into a {type(leaf).__name__}.")


def _check_fit(path: Path, saved: dict[str, _LeafRecord], wanted: dict[str, Any]) -> None:
    problems = []
    if missing := [name for name in wanted if name not in saved]:
        problems.append(f"missing in it: {', '.join(missing)}")
    if unexpected := [name for name in saved if name not in wanted]:
        problems.append(f"unexpected in it: {', '.join(unexpected)}")
    mismatched = {}
    for name, leaf in wanted.items():
        if name in saved:
            expected, found = _signature(leaf), tuple(saved[name][:3])
            if expected != found:
                mismatched[name] = f"{name} is {found[1]}{list(found[2])} instead of {expected[1]}{list(expected[2])}"
    if mismatched:
        problems.append(f"mismatched: {', '.join(mismatched.values())}")
    if problems:
        raise Misfit(path, problems, [*missing, *unexpected, *mismatched])


def _made_again(path: Path, manifest: _Manifest, digest: str) -> bytes | None:
    """A damaged piece from the parity file and all other pieces, or None where that is not possible."""
    try:
        others = [path / _PARITY, *(_chunk_path(path, other) for other in manifest.chunks if other != digest)]
        content = _parity([file.read_bytes()] for file in others)[: manifest.chunks[digest].size].tobytes()
    except OSError:
        return None
    return content if arrays.record_of([memoryview(content)]) == manifest.chunks[digest] else None


def _join(path: Path, name: str, record: _LeafRecord, manifest: _Manifest, repaired: list[str]) -> np.ndarray:
    """A leaf from its pieces; what was wrong with one that had to be made again is added to `repaired`."""
    chunks = manifest.chunks
    # `like` agreed with this shape and dtype, so the memory asked for is what the caller expects.
    whole = np.empty(record.shape, jnp.dtype(record.dtype))
    flat = whole.reshape(-1)
    starts = range(0, flat.size, record.chunk_size)

    def fill(item: tuple[int, str]) -> None:
        start, digest = item
        called = f"{_CHUNKS}/{digest}.safetensors (part of {name} in {path.name})"
        try:
            content: bytes | None = arrays.read_file(_chunk_path(path, digest), called, record=chunks[digest])
        except Damage as damage:
            content = _made_again(path, manifest, digest)
            if content is None:
                raise
            repaired.append(f"{damage}; it was made again from the other pieces")
        piece = arrays.decode(content, called).get("chunk")
        place = flat[start : start + record.chunk_size]
        if piece is None or piece.dtype != place.dtype or piece.shape != place.shape:
            raise Damage(f"{called} is not the piece that the manifest describes")
        place[:] = piece

    if len(starts) != len(record.chunks):
        raise Damage(f"{path.name}/{_MANIFEST} names {len(record.chunks)} pieces of {name} instead of {len(starts)}")
    _parallel(fill, zip(starts, record.chunks))
    return whole


def _restore(array: np.ndarray, record: _LeafRecord, like: Any, called: str) -> Any:
    if record.kind == "key":
        try:
            key = jax.random.wrap_key_data(jnp.array(array), impl=record.impl)
        except (ValueError, TypeError) as error:
            raise Damage(f"{called} is not a PRNG key ({error})") from None
        if key.shape != record.shape or key.dtype != like.dtype:
            raise Damage(f"{called} is not the PRNG key that the manifest describes")
        return key
    stored = {"bool": "bool", "int": "int64", "float": "float64"}.get(record.kind, record.dtype)
    if array.dtype.name != stored or array.shape != record.shape:
        raise Damage(f"{called} is {array.dtype.name}{list(array.shape)} and not what the manifest describes")
    if record.kind != "array":
        return array.item()
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    # A copy that JAX owns: the memory of a NumPy array could not be donated.
    return jnp.array(array, copy=True)


# -------------------------------------------------------------------------------------------------------------------- manifest


def _read_manifest(path: Path) -> _Manifest:
    called = f"{path.name}/{_MANIFEST}"
    data = arrays.read_file(path / _MANIFEST, called, limit=_MANIFEST_LIMIT)
    first, _, rest = data.partition(b"\n")
    if first + b"\n" != _first_line(rest):
        raise Damage(f"hash mismatch in {called}")
    try:
        body = json.loads(b"{" + rest, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
        _expect(isinstance(body, dict) and body.get("format") == _FORMAT, "it has another format")
        version = body.get("version")
        _expect(type(version) is int, "it has no version")
        if isinstance(version, int) and version > _VERSION:
            raise FlatironsError(f"{path / _MANIFEST} is of version {version} and this Flatirons reads {_VERSION}: upgrade it.")
        manifest = _parse(body)
        name = _STEP.fullmatch(path.name)
        _expect(manifest.step is None or (name is not None and int(name[1]) == manifest.step), f"it is of step {manifest.step}")
        return manifest
    except (ValueError, RecursionError) as error:
        raise Damage(f"{called} is malformed ({error})") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    _expect(len(result) == len(pairs), "a name occurs twice")
    return result


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _parse(body: dict[str, Any]) -> _Manifest:
    fields = {"step", "meta", "arrays", "files", "chunks", "leaves"}
    _expect(fields <= body.keys(), f"it lacks {', '.join(sorted(fields - body.keys()))}")
    step, meta, main = body["step"], body["meta"], body["arrays"]
    _expect(step is None or type(step) is int, "step is not a number")
    for field in ("meta", "files", "chunks", "leaves"):
        _expect(isinstance(body[field], dict), f"{field} is not an object")
    files, chunks, leaves = {}, {}, {}
    for name, record in body["files"].items():
        _expect(bool(_SAFE_NAME.fullmatch(name)), f"the file name {name!r} is not allowed")
        _expect(isinstance(record, dict) and record.keys() == {"size", "sha256"}, f"the record of {name} is not one of size and hash")
        files[name] = _file_record(record["size"], record["sha256"])
    _expect(isinstance(main, str) and main in files, "the arrays file is not among the files")
    for digest, size in body["chunks"].items():
        chunks[digest] = _file_record(size, digest)
    for name, record in body["leaves"].items():
        _expect(isinstance(record, dict) and record.keys() == set(_LeafRecord._fields), f"the record of leaf {name} has other fields")
        leaf = _LeafRecord(**record)
        _expect(all(isinstance(text, str) for text in (leaf.kind, leaf.dtype, leaf.impl)), f"leaf {name} has no kind or dtype")
        _expect(leaf.kind in ("array", "key", "bool", "int", "float"), f"leaf {name} has an unknown kind")
        _expect(isinstance(leaf.shape, list) and all(type(n) is int and n >= 0 for n in leaf.shape), f"leaf {name} has no shape")
        known = isinstance(leaf.chunks, list) and all(isinstance(digest, str) and digest in chunks for digest in leaf.chunks)
        _expect(known, f"leaf {name} names an unknown chunk")
        _expect(type(leaf.chunk_size) is int and leaf.chunk_size >= (1 if leaf.chunks else 0), f"leaf {name} has no chunk size")
        _expect(not leaf.chunks or leaf.kind == "array", f"leaf {name} is cut but not an array")
        leaves[name] = leaf._replace(shape=tuple(leaf.shape), chunks=tuple(leaf.chunks))
    return _Manifest(step, meta, main, files, chunks, leaves)


def _file_record(size: Any, digest: Any) -> FileRecord:
    _expect(type(size) is int and size >= 0, "a file has no size")
    _expect(isinstance(digest, str) and bool(_SHA256.fullmatch(digest)), "a file has no SHA-256")
    return FileRecord(size, digest)
