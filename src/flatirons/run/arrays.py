"""Arrays in and out of safetensors files that are hashed on the way: written once and fsynced, believed only after the hash agrees.

Only bytes and numbers pass here: no pickle, no code, no file that is not a plain one of the size that was promised.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_DTYPES = {code: np.dtype(getattr(ml_dtypes, name, name)) for name, code in _CODES.items()}
_BLOCK = 1 << 24


class Damage(Exception):
    """A saved file is not what was saved. The text names the file and what is wrong with it."""


class FileRecord(NamedTuple):
    """What a manifest remembers of a file: its size in bytes and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


def storable(dtype: np.dtype) -> bool:
    """Whether arrays of this dtype have a place in a safetensors file."""
    return dtype.name in _CODES


def encode(arrays: Mapping[str, np.ndarray]) -> list[memoryview]:
    """The bytes of a safetensors file of `arrays` (C-contiguous, storable), as pieces to be written in order.

    The array pieces are views, not copies. Equal arrays give equal bytes.
    """
    # Widest items first keeps every array aligned to its item size, as readers that map the file expect.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, offset = {}, 0
    for name in names:
        array = arrays[name]
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": (offset, offset + array.nbytes)}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = memoryview(len(text).to_bytes(8, "little") + text)
    return [head, *(arrays[name].reshape(-1).view(np.uint8).data for name in names if arrays[name].size)]


def decode(data: bytes, called: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, writable and each with its own memory. `called` names the file in the `Damage` raised."""
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise Damage(f"{called} is not a safetensors file ({error})") from None
    arrays = {}
    for name, tensor in tensors:
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise Damage(f"{called} holds {name!r} with the unknown dtype {tensor['dtype']}")
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def record_of(pieces: Iterable[memoryview]) -> FileRecord:
    """Size and SHA-256 of a file of these pieces. Large pieces are hashed without holding the interpreter lock."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += piece.nbytes
    return FileRecord(size, digest.hexdigest())


def write_file(path: Path, pieces: Iterable[memoryview]) -> FileRecord:
    """Create `path` (it must not exist) of `pieces` and fsync it. Raises `OSError`; what was written by then stays."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            # In blocks, so that what is hashed is still in the processor's cache when it is written.
            for start in range(0, piece.nbytes, _BLOCK):
                block = piece[start : start + _BLOCK]
                digest.update(block)
                size += block.nbytes
                while block.nbytes:
                    block = block[os.write(descriptor, block) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(size, digest.hexdigest())


def read_file(path: Path, called: str, *, record: FileRecord | None = None, limit: int | None = None) -> bytes:
    """The bytes of a plain file, which must agree with `record` and be of `limit` bytes at most.

    The size is looked at before anything is read. Raises `Damage`, in which the file is named as `called`.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Damage(f"{called} is not a plain file")
        if record is not None and status.st_size != record.size:
            raise Damage(f"wrong size of {called} ({status.st_size:,} bytes instead of {record.size:,})")
        if limit is not None and status.st_size > limit:
            raise Damage(f"{called} is too large ({status.st_size:,} bytes)")
        with open(path, "rb") as file:
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise Damage(f"{called} is missing") from None
    except OSError as error:
        raise Damage(f"{called} cannot be read ({error.strerror})") from None
    if record is not None and (len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256):
        raise Damage(f"hash mismatch in {called}")
    return data


def agrees(path: Path, record: FileRecord) -> bool:
    """Whether a plain file at `path` has the recorded size and content."""
    try:
        if not size_agrees(path, record):
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
    except OSError:
        return False


def size_agrees(path: Path, record: FileRecord) -> bool:
    """Whether a plain file of the recorded size is at `path`: a quick look that reads nothing."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == record.size


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
