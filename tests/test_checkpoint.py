"""Checkpoints under faults: flipped bytes, kills, full disks, forged files. Each must be found, named, and cost at most one checkpoint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flatirons.core import resources as core_resources
from flatirons.run import arrays, checkpoint, resources
from flatirons.types import FlatironsError

CHUNK = 4096  # small enough that a few KiB behave as a replay of gigabytes


class Nested(NamedTuple):
    params: Any
    opt_state: Any
    replay: Any


def tree_of(step: int, rows: int = 2048) -> Nested:
    """Everything differs between steps, so that no chunk is shared."""
    rng = np.random.default_rng(step)
    return Nested(
        params={"w": rng.normal(size=(4, 3)).astype(np.float32), "b": np.full(3, step, np.float32)},
        opt_state=(np.asarray(step, np.int32), None),
        replay=rng.integers(0, 256, (rows, 8), dtype=np.uint8),
    )


def save(folder: Path, step: int, **options: Any) -> Path:
    return checkpoint.save(folder, tree_of(step), {"step": step}, step=step, chunk_bytes=CHUNK, **options)


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def reseal(path: Path, change: Any) -> None:
    """Rewrite a manifest with consistent hashes, as a forger would."""
    body = json.loads((path / "manifest.json").read_bytes())
    body.pop("sha256")
    change(body)
    rest = json.dumps(body)[1:].encode()
    first = b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n'
    (path / "manifest.json").write_bytes(first + rest)


def files_of(path: Path) -> list[Path]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    names = [path / name for name in manifest["files"]] + [path / "manifest.json"]
    return names + [path.parent / "chunks" / f"{digest}.safetensors" for digest in manifest["chunks"]]


# ------------------------------------------------------------------------------------------------------------------- round trip


def test_round_trip_of_every_kind_of_leaf(tmp_path: Path) -> None:
    tree = {
        "params": Nested({"w": jnp.arange(6.0).reshape(2, 3)}, (jnp.int32(7), None, ()), [np.array([True, False])]),
        "half": jnp.array([1.5, -0.0], jnp.bfloat16),
        "tiny": np.array([1, 2], ml_dtypes.float8_e4m3fn),
        "empty": np.zeros((0, 5), np.float32),
        "ints": [np.array([-1], t) for t in (np.int8, np.int16, np.int32, np.int64)],
        "uints": [np.array([1], t) for t in (np.uint8, np.uint16, np.uint32, np.uint64)],
        "floats": [np.array([1e-7], t) for t in (np.float16, np.float32, np.float64)],
        "complex": np.array([1 + 2j], np.complex64),
        "strided": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "scalar": np.float32(3.5),
        "python": (True, -(2**63), 0.1),
        "nothing": None,
    }
    keys = {"one": jax.random.key(3), "many": jax.random.split(jax.random.key(4), 5), "rbg": jax.random.key(1, impl="rbg")}
    meta = {"decisions": 2**40, "name": "π", "nested": {"list": [1, None, 0.1]}}
    path = checkpoint.save(tmp_path / "checkpoints", (tree, keys), meta, step=2**33)
    assert path == tmp_path / "checkpoints" / "step_008589934592"
    loaded = checkpoint.load_latest(tmp_path / "checkpoints", (tree, keys))
    assert loaded.path == path and loaded.meta == meta and loaded.warnings == []
    assert_equal(loaded.tree[0], tree)
    assert [type(leaf) for leaf in loaded.tree[0]["python"]] == [bool, int, float]
    assert isinstance(loaded.tree[0]["half"], jax.Array) and isinstance(loaded.tree[0]["empty"], np.ndarray)
    for name, key in keys.items():
        assert loaded.tree[1][name].dtype == key.dtype and loaded.tree[1][name].shape == key.shape
        assert jnp.array_equal(jax.random.key_data(loaded.tree[1][name]), jax.random.key_data(key))


def test_loads_into_shapes_as_arrays_that_can_be_donated(tmp_path: Path) -> None:
    tree = {"key": jax.random.key(0), "w": jnp.arange(5000.0)}
    checkpoint.save(tmp_path, tree, {}, step=1, chunk_bytes=CHUNK)
    loaded = checkpoint.load_latest(tmp_path, jax.eval_shape(lambda: tree)).tree
    assert isinstance(loaded["w"], jax.Array) and jnp.array_equal(loaded["w"], jnp.arange(5000.0))
    moved = jax.jit(lambda w: w + 1, donate_argnums=0)(loaded["w"])
    assert loaded["w"].is_deleted() and moved[0] == 1
    assert jax.random.uniform(loaded["key"]) == jax.random.uniform(tree["key"])


def test_the_arrays_are_plain_safetensors_that_others_read(tmp_path: Path) -> None:
    tree = tree_of(1)
    path = save(tmp_path, 1)
    others = safetensors.numpy.load_file(path / "state.safetensors")
    np.testing.assert_array_equal(others["params/w"], tree.params["w"])
    manifest = json.loads((path / "manifest.json").read_bytes())  # the whole file is one JSON object
    pieces = [
        safetensors.numpy.load_file(tmp_path / "chunks" / f"{digest}.safetensors") for digest in manifest["leaves"]["replay"]["chunks"]
    ]
    np.testing.assert_array_equal(np.concatenate([piece["chunk"] for piece in pieces]), tree.replay.reshape(-1))


def test_a_ring_buffer_rewrites_only_the_chunks_that_changed(tmp_path: Path) -> None:
    ring = np.random.default_rng(0).integers(0, 256, (5, 1 << 20, 8), dtype=np.uint8)  # 40 MiB; the first axis alone would be too coarse
    tree = {"replay": ring, "cursor": np.asarray(0)}
    checkpoint.save(tmp_path, tree, {}, step=1)
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "chunks").iterdir()}
    assert len(before) == 5
    ring[2, 1000:1100] ^= 1
    checkpoint.save(tmp_path, tree, {}, step=2)
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "chunks").iterdir()}
    assert len(after.keys() - before.keys()) == 1
    assert all(after[name] == before[name] for name in before)
    assert_equal(checkpoint.load_latest(tmp_path, tree).tree, tree)
    checkpoint.save(tmp_path, tree, {}, step=3, keep=2)
    assert len(list((tmp_path / "chunks").iterdir())) == 5, "the chunk that only step 1 named is deleted with it"


def test_keep_and_order(tmp_path: Path) -> None:
    for step in (5, 20, 100, 7):
        save(tmp_path, step, keep=3)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_000000000005", "step_000000000007", "step_000000000100"]
    save(tmp_path, 8, keep=1)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_000000000008"]
    assert {path.name for path in tmp_path.iterdir()} == {"chunks", "step_000000000008"}
    assert checkpoint.load_latest(tmp_path, tree_of(0)).meta == {"step": 8}
    assert checkpoint.list_checkpoints(tmp_path / "none") == []


def test_pruning_never_drops_an_intact_checkpoint_for_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.safetensors").unlink()
    save(tmp_path, 3, keep=2)
    assert [int(path.name[5:]) for path in checkpoint.list_checkpoints(tmp_path)] == [1, 3]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint.save(tmp_path, tree_of(2), {"again": True}, step=1, chunk_bytes=CHUNK)
    loaded = checkpoint.load_latest(tmp_path, tree_of(0))
    assert loaded.meta == {"again": True}
    assert_equal(loaded.tree, tree_of(2))
    assert len(checkpoint.list_checkpoints(tmp_path)) == 1


def test_killed_between_the_two_renames_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    os.rename(path, path.with_name(f"{path.name}.old"))
    loaded = checkpoint.load_latest(tmp_path, tree_of(0))
    assert_equal(loaded.tree, tree_of(1))
    assert len(checkpoint.list_checkpoints(tmp_path)) == 1
    save(tmp_path, 2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_000000000001", "step_000000000002"]


# ---------------------------------------------------------------------------------------------------------------------- damage


def test_every_flipped_byte_is_found_and_the_previous_checkpoint_used(tmp_path: Path) -> None:
    for step in (1, 2):
        newest = save(tmp_path, step, extra_files={"config.json": b'{"learning_rate": 3e-4}'})
    targets = files_of(newest)
    assert len(targets) == 4 + 4  # manifest, state, config, parity and four chunks
    rng = np.random.default_rng(0)
    for trial in range(200):
        target = targets[trial % len(targets)]
        good = target.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        target.write_bytes(bad)
        loaded = checkpoint.load_latest(tmp_path, tree_of(0))
        [warning] = loaded.warnings
        assert "hash mismatch" in warning and target.name in warning
        if target.parent.name == "chunks":
            assert loaded.meta == {"step": 2} and "made again from the other pieces" in warning
            assert_equal(loaded.tree, tree_of(2))
        elif target.name in ("parity", "config.json"):
            assert loaded.meta == {"step": 2} and "what was learned is whole without it" in warning
            assert_equal(loaded.tree, tree_of(2))
        else:
            assert loaded.meta == {"step": 1} and "using step_000000000001 instead" in warning
            with pytest.raises(FlatironsError, match="damaged"):
                checkpoint.load(newest, tree_of(0))
        target.write_bytes(good)
    loaded = checkpoint.load_latest(tmp_path, tree_of(0))
    assert loaded.warnings == [] and loaded.meta == {"step": 2}


def test_damage_in_a_chunk_that_all_share_is_mended_and_in_two_of_them_costs_the_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    tree = tree_of(2)
    for step in (2, 3):
        checkpoint.save(tmp_path, tree, {"step": step}, step=step, chunk_bytes=CHUNK)
    first, second = files_of(checkpoint.list_checkpoints(tmp_path)[-1])[-2:]
    first.unlink()
    loaded = checkpoint.load_latest(tmp_path, tree)
    assert loaded.meta == {"step": 3} and "is missing; it was made again" in loaded.warnings[0] and len(loaded.warnings) == 1
    assert_equal(loaded.tree, tree)
    bad = bytearray(second.read_bytes())
    bad[100] ^= 1
    second.write_bytes(bad)
    loaded = checkpoint.load_latest(tmp_path, tree)
    assert loaded.meta == {"step": 1} and len(loaded.warnings) == 2
    assert all("using step_000000000001 instead" in warning for warning in loaded.warnings)
    # The next save of the same content finds the bad chunks and writes them anew, which heals the older ones as well.
    checkpoint.save(tmp_path, tree, {"step": 4}, step=4, keep=4, chunk_bytes=CHUNK)
    for path in checkpoint.list_checkpoints(tmp_path):
        assert checkpoint.load(path, tree).warnings == []


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("fault", ["truncated", "empty", "deleted", "folder", "longer"])
def test_truncated_and_missing_files(tmp_path: Path, which: int, fault: str) -> None:
    save(tmp_path, 1)
    target = files_of(save(tmp_path, 2))[which]
    content = target.read_bytes()
    target.unlink()
    if fault == "folder":
        target.mkdir()
    elif fault != "deleted":
        target.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b" "}[fault])
    loaded = checkpoint.load_latest(tmp_path, tree_of(0))
    assert loaded.meta == {"step": 2 if target.name == "parity" else 1}
    assert target.name in loaded.warnings[0]


def test_what_is_saved_while_somebody_reads_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[Any] = []
    read = checkpoint._read_manifest

    def and_then_another_saves(path: Path) -> Any:
        manifest = read(path)
        if saves:
            saves.pop()()
        return manifest

    monkeypatch.setattr(checkpoint, "_read_manifest", and_then_another_saves)
    save(tmp_path, 1, keep=1)
    # Another step, which removes the one that is read, and the same step again.
    for step in (2, 2):
        saves.append(lambda step=step: save(tmp_path, step, keep=1))
        loaded = checkpoint.load_latest(tmp_path, tree_of(0))
        assert not saves and loaded.meta == {"step": 2} and loaded.warnings == []
    saves.append(lambda: checkpoint.save(tmp_path, tree_of(3), {"anew": 1}, step=2, chunk_bytes=CHUNK))
    assert checkpoint.load(tmp_path / "step_000000000002", tree_of(0)).meta == {"anew": 1} and not saves
    policy = checkpoint.save_policy(tmp_path / "policy", tree_of(1), {"step": 1})
    saves.append(lambda: checkpoint.save_policy(policy, tree_of(2), {"step": 2}))
    loaded = checkpoint.load_policy(policy, tree_of(0))
    assert not saves and loaded.meta == {"step": 2} and loaded.warnings == []
    assert_equal(loaded.tree, tree_of(2))


def test_a_policy_is_waited_for_between_its_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, old = tmp_path / "policy", tmp_path / "policy.old"
    checkpoint.save_policy(policy, tree_of(1), {"step": 1})
    os.rename(policy, old)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: checkpoint.save_policy(policy, tree_of(2), {"step": 2}))
    loaded = checkpoint.load_policy(policy, tree_of(0))
    assert loaded.meta == {"step": 2} and loaded.warnings == []


def test_none_intact_is_an_error_and_never_a_new_start(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(FlatironsError, match=r"No checkpoint .* intact .*step_000000000002/manifest.json is missing.*step_000000000001"):
        checkpoint.load_latest(tmp_path, tree_of(0))
    with pytest.raises(FlatironsError, match="no checkpoint"):
        checkpoint.load_latest(tmp_path / "elsewhere", tree_of(0))


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": np.zeros(3, np.float32), "b": np.zeros(2), "c": 1, "k": jax.random.key(0)}, {}, step=1)
    like = {"a": np.zeros(4, np.float32), "c": np.zeros((), np.int32), "d": np.zeros(1), "k": jax.random.key(0, impl="rbg")}
    with pytest.raises(FlatironsError) as caught:
        checkpoint.load_latest(tmp_path, like)
    text = str(caught.value)
    assert "missing in it: d;" in text and "unexpected in it: b;" in text
    assert "a is float32[3] instead of float32[4]" in text and "c is int[] instead of int32[]" in text and "k is key<fry>[]" in text


def test_a_piece_and_its_parity_damaged_cost_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / "parity").unlink()
    files_of(newest)[-1].unlink()
    loaded = checkpoint.load_latest(tmp_path, tree_of(0))
    assert loaded.meta == {"step": 1} and "is missing; using step_000000000001 instead" in loaded.warnings[0]


def test_extra_files_lie_beside_the_arrays_and_stay_there(tmp_path: Path) -> None:
    newest = save(tmp_path / "checkpoints", 1, extra_files={"config.json": b"one"})
    assert (newest / "config.json").read_bytes() == b"one"
    with pytest.raises(FlatironsError, match="cannot be called"):
        save(tmp_path / "checkpoints", 3, extra_files={"../config.json": b"one"})


# ----------------------------------------------------------------------------------------------------------------- refused at save


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_non_finite_weights_are_never_saved(tmp_path: Path, value: float, dtype: Any) -> None:
    good = {"params": {"w": np.ones(3, dtype)}, "replay": np.array([np.nan])}
    checkpoint.save(tmp_path, good, {}, step=1)  # NaN outside the weights is data
    bad = {"params": {"w": np.array([1, value, 1], dtype)}, "replay": np.array([np.nan])}
    with pytest.raises(FlatironsError, match=r"params/w holds 1 non-finite"):
        checkpoint.save(tmp_path, bad, {}, step=2)
    with pytest.raises(FlatironsError, match="never reaches saved weights"):
        checkpoint.save_policy(tmp_path / "policy", {"mean": np.array([value], dtype)}, {})
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_000000000001"]
    assert not (tmp_path / "policy").exists()
    assert_equal(checkpoint.load_latest(tmp_path, good).tree, good)


@pytest.mark.parametrize(
    ("tree", "meta", "said"),
    [
        ({"a": "text"}, {}, "a is a str"),
        ({"a": np.array([object()])}, {}, "dtype object"),
        ({"a": 2**64}, {}, "64 bits"),
        ({"a/b": 1, "a": {"b": 2}}, {}, "both called"),
        ({}, {"best": float("nan")}, "meta"),
        ({}, {"best": np.float32(1)}, "meta"),
    ],
)
def test_what_cannot_be_saved_is_said(tmp_path: Path, tree: Any, meta: Any, said: str) -> None:
    with pytest.raises(FlatironsError, match=said):
        checkpoint.save(tmp_path / "checkpoints", tree, meta, step=1)
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("write", range(1, 15))
def test_disk_full_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    save(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real, calls = os.write, []

    def full(descriptor: int, data: Any) -> int:
        calls.append(0)
        if len(calls) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(arrays.os, "write", full)
    with pytest.raises(FlatironsError, match=r"disk is full.*needs .*KiB.* are free at .*step_000000000001 is intact"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, "nothing lost, nothing left behind"
    assert checkpoint.load_latest(tmp_path, tree_of(0)).meta == {"step": 1}


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "disk_free", lambda path: 1000)
    monkeypatch.setattr(arrays, "write_file", None)
    with pytest.raises(FlatironsError, match=r"1000 B are free at .*nothing was saved before it, .* start again with --overwrite\.$"):
        save(tmp_path, 1)
    with pytest.raises(FlatironsError, match=r"disk is full.*free some space and try again\.$"):
        checkpoint.save_policy(tmp_path / "policy", tree_of(1), {})


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    process = run_python(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from flatirons.run import checkpoint
        from flatirons.types import FlatironsError
        folder = Path(sys.argv[1])
        checkpoint.save(folder, {"a": np.zeros(100, np.uint8)}, {}, step=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        for size in (2 << 20, 20 << 20):
            try:
                checkpoint.save(folder, {"a": np.arange(size, dtype=np.uint8)}, {}, step=2)
            except FlatironsError as error:
                print(error)
        """,
        str(tmp_path),
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("File too large") == 2 and out.count("step_000000000001 is intact") == 2
    assert {path.name for path in tmp_path.rglob("*")} == {"chunks", "step_000000000001", "manifest.json", "state.safetensors"}
    checkpoint.load_latest(tmp_path, {"a": np.zeros(100, np.uint8)})


def test_output_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.probe_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FlatironsError, match="Cannot write to"):
        checkpoint.probe_writable(tmp_path / "file" / "run")
    with pytest.raises(FlatironsError, match="not saved"):
        save(tmp_path / "file" / "run", 1)

    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(FlatironsError, match="Read-only file system"):
        checkpoint.probe_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    with pytest.raises(FlatironsError, match="Read-only file system"):
        save(tmp_path / "new", 1)


# ----------------------------------------------------------------------------------------------------------------------- kills


def test_fifty_kills_at_random_moments_of_saving(tmp_path: Path) -> None:
    """A server forks a child per line it reads; the child saves in a tight loop and reports each finished step, until it is killed."""
    folder, done = tmp_path / "checkpoints", tmp_path / "done"
    server = run_python(
        """
        import os, sys, time
        from pathlib import Path
        from flatirons.run import checkpoint
        from test_checkpoint import CHUNK, tree_of
        folder, done = Path(sys.argv[1]), Path(sys.argv[2])
        began = time.monotonic()
        for step in range(3):
            checkpoint.save(folder.parent / "trial", tree_of(step), {}, step=step, chunk_bytes=CHUNK)
        print((time.monotonic() - began) / 3, flush=True)
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                step, policy = int(line), folder.parent / "policy"
                while True:
                    step += 1
                    # Each step twice, so that replacing one is interrupted as well.
                    for _ in range(2):
                        checkpoint.save(folder, tree_of(step), {"step": step}, step=step, keep=2, chunk_bytes=CHUNK)
                    checkpoint.save_policy(policy, tree_of(step), {"step": step})
                    with done.open("a") as file:
                        file.write(f"{step}\\n")
            print(child, flush=True)
            os.waitpid(child, 0)
            print("dead", flush=True)
        """,
        str(folder),
        str(tmp_path / "done"),
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        seconds = server.stdout.readline()
        assert seconds, server.communicate()[1]
        # Some children must live for a whole save, on a slow disk too.
        longest = max(0.08, 4.0 * float(seconds))
        save(folder, 0)
        checkpoint.save_policy(tmp_path / "policy", tree_of(0), {"step": 0})
        done.write_text("0\n")
        rng = np.random.default_rng(0)
        step, interrupted = 0, 0
        for _ in range(50):
            server.stdin.write(f"{step}\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            assert server.stdout.readline() == "dead\n"
            interrupted += any(path.suffix in (".tmp", ".old") for path in folder.rglob("*"))
            finished = int(done.read_text().split()[-1])
            loaded = checkpoint.load_latest(folder, tree_of(0))
            assert loaded.warnings == [] and loaded.meta["step"] >= finished
            assert_equal(loaded.tree, tree_of(loaded.meta["step"]))
            policy = checkpoint.load_policy(tmp_path / "policy", tree_of(0))
            assert policy.meta["step"] >= finished
            assert_equal(policy.tree, tree_of(policy.meta["step"]))
            step = loaded.meta["step"]
        assert step > 0 and interrupted > 0, "the kills must hit saves in progress"
        save(folder, step + 1)
        checkpoint.save_policy(tmp_path / "policy", tree_of(0), {})
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".old")]
    finally:
        server.stdin.close()
        server.kill()
        server.wait()
        server.stdout.close()
        if server.stderr:
            server.stderr.close()


# --------------------------------------------------------------------------------------------------------------------- policies


def test_policy_round_trip_and_interruption(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(FlatironsError, match="no policy"):
        checkpoint.load_policy(folder, tree_of(0))
    for step in (1, 2):
        assert checkpoint.save_policy(folder, tree_of(step), {"step": step}) == folder
    assert {path.name for path in tmp_path.rglob("*")} == {"policy", "policy.safetensors", "manifest.json"}
    loaded = checkpoint.load_policy(folder, tree_of(0))
    assert_equal(loaded.tree, tree_of(2))
    assert loaded.meta == {"step": 2}
    os.rename(folder, tmp_path / "policy.old")  # killed between the two renames
    loaded = checkpoint.load_policy(folder, tree_of(0))
    assert loaded.meta == {"step": 2} and "using policy.old instead" in loaded.warnings[0]
    checkpoint.save_policy(folder, tree_of(3), {"step": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    for target in list(folder.iterdir()):
        good = target.read_bytes()
        target.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(FlatironsError, match=f"damaged: hash mismatch in policy/{target.name}"):
            checkpoint.load_policy(folder, tree_of(0))
        target.write_bytes(good)


def test_a_policy_save_that_fails_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_policy(tmp_path / "policy", tree_of(1), {"step": 1})
    real = os.rename

    def refuse(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(FlatironsError, match=r"Input/output error.*policy is intact"):
        checkpoint.save_policy(tmp_path / "policy", tree_of(2), {"step": 2})
    assert checkpoint.load_policy(tmp_path / "policy", tree_of(0)).meta == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


# --------------------------------------------------------------------------------------------------------------------- forgery


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def forgeries(canary: Path) -> dict[str, bytes]:
    f32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "pickle": pickle.dumps(Bomb(canary)),
        "code": f"__import__('pathlib').Path({str(canary)!r}).touch()".encode(),
        "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
        "huge shape": with_header({"chunk": {**f32, "shape": [1 << 40]}}, b"1234"),
        "overlap": with_header({"chunk": f32, "b": f32}, b"1234"),
        "negative": with_header({"chunk": {**f32, "data_offsets": [-4, 0]}}, b"1234"),
        "deep": with_header(b"[" * 100_000),
        "wrong dtype": with_header({"chunk": f32}, b"1234"),
        "unknown dtype": with_header({"chunk": {**f32, "dtype": "PICKLE"}}, b"1234"),
    }


@pytest.mark.parametrize("name", forgeries(Path()))
def test_forged_files_are_refused_also_with_the_right_hashes(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    forged = forgeries(canary)[name]
    if name == "pickle":
        pickle.loads(forged)
        assert canary.exists(), "the bomb is live"
        canary.unlink()
    original = tmp_path / "original"
    save(original, 1)
    digest = hashlib.sha256(forged).hexdigest()
    for which in ("state.safetensors", "manifest.json", "chunk"):
        for sealed in (False, True):
            folder = tmp_path / f"{which}-{sealed}"
            shutil.copytree(original, folder)
            [path] = checkpoint.list_checkpoints(folder)
            target = files_of(path)[-1] if which == "chunk" else path / which
            old = target.stem
            target.write_bytes(forged)
            if sealed and which == "state.safetensors":
                reseal(path, lambda body: body["files"].update({"state.safetensors": {"size": len(forged), "sha256": digest}}))
            elif sealed and which == "chunk":
                target.rename(target.with_name(f"{digest}.safetensors"))

                def change(body: dict[str, Any], old: str = old) -> None:
                    body["chunks"][digest] = len(forged)
                    pieces = body["leaves"]["replay"]["chunks"]
                    body["leaves"]["replay"]["chunks"] = [digest if piece == old else piece for piece in pieces]

                reseal(path, change)
            elif sealed:
                rest = forged.partition(b"\n")[2] or forged
                target.write_bytes(b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest)
            if which == "chunk" and not sealed:
                assert_equal(checkpoint.load_latest(folder, tree_of(0)).tree, tree_of(1))
                continue
            with pytest.raises(FlatironsError, match="No checkpoint"):
                checkpoint.load_latest(folder, tree_of(0))
    assert not canary.exists()


def edit(*path: str, value: Any) -> Any:
    def change(body: dict[str, Any]) -> None:
        for part in path[:-1]:
            body = body[part]
        body[path[-1]] = value

    return change


RECORD = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}


@pytest.mark.parametrize(
    "change",
    [
        edit("files", "../secret", value=RECORD),
        edit("files", "/etc/passwd", value=RECORD),
        edit("files", "..", value=RECORD),
        edit("files", "a/b", value=RECORD),
        edit("arrays", value="../secret"),
        edit("chunks", "../../secret", value=6),
        edit("leaves", "replay", "chunks", value=["../../secret"]),
        edit("leaves", "replay", "chunks", value=[]),
        edit("leaves", "replay", "chunk_size", value=1 << 60),
        edit("leaves", "replay", "chunk_size", value=0),
        edit("leaves", "params/w", "kind", value="pickle"),
        edit("leaves", "params/w", value=[]),
        edit("files", "state.safetensors", "size", value=-1),
        edit("files", "state.safetensors", "size", value=1e9),
        edit("step", value=2),
        edit("step", value="1"),
        edit("meta", value=[]),
        edit("format", value="other"),
        lambda body: body.clear(),
    ],
)
def test_forged_manifests_are_refused(tmp_path: Path, change: Any) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "checkpoints" / "secret").parent.mkdir()
    (tmp_path / "checkpoints" / "secret").write_bytes(b"secret")
    reseal(save(tmp_path / "checkpoints", 1), change)
    with pytest.raises(FlatironsError, match=r"No checkpoint.*(malformed|not the piece|pieces of|does not hold|mismatch)"):
        checkpoint.load_latest(tmp_path / "checkpoints", tree_of(0))


def test_json_is_read_strictly_and_symlinks_are_not_followed(tmp_path: Path) -> None:
    for rest, said in (
        (b'"meta": NaN}', "NaN is not JSON"),
        (b'"meta": {}, "meta": {}}', "occurs twice"),
        (b'"meta": ' + b"[" * 100_000, ""),
    ):
        path = save(tmp_path, 1)
        (path / "manifest.json").write_bytes(b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest)
        with pytest.raises(FlatironsError, match=f"malformed .*{said}"):
            checkpoint.load_latest(tmp_path, tree_of(0))
    path = save(tmp_path, 1)
    os.rename(path / "state.safetensors", tmp_path / "elsewhere")
    (path / "state.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FlatironsError, match="not a plain file"):
        checkpoint.load_latest(tmp_path, tree_of(0))


def test_a_shape_that_only_the_manifest_claims_is_not_allocated(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    reseal(path, edit("leaves", "replay", "shape", value=[1 << 50, 8]))
    with pytest.raises(FlatironsError, match="mismatched: replay"):
        checkpoint.load_latest(tmp_path, tree_of(0))


def test_a_newer_format_asks_for_a_newer_flatirons(tmp_path: Path) -> None:
    reseal(save(tmp_path, 1), edit("version", value=2))
    with pytest.raises(FlatironsError, match="upgrade"):
        checkpoint.load_latest(tmp_path, tree_of(0))


# ------------------------------------------------------------------------------------------------------------------- resources


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_available_asks_the_machine_and_every_control_group(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert core_resources.memory_available(tmp_path) == 8000 * 1024
    write(tmp_path / "proc/self/cgroup", "0::/job/step\n")
    write(tmp_path / "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/job/step/memory.current", "5\n")
    assert core_resources.memory_available(tmp_path) == 8000 * 1024
    write(tmp_path / "sys/fs/cgroup/job/memory.max", "5000000\n")
    write(tmp_path / "sys/fs/cgroup/job/memory.current", "1000000\n")
    write(tmp_path / "sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 250000\n")
    assert core_resources.memory_available(tmp_path) == 4_250_000
    write(tmp_path / "proc/self/cgroup", "4:cpu,memory:/docker/abc\n")  # version 1, seen from inside a container
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n")
    assert core_resources.memory_available(tmp_path) == 2_000_000


def test_too_much_is_refused_with_both_numbers(tmp_path: Path) -> None:
    assert 0 < resources.memory_available() < 1 << 50
    resources.require_memory(1000, "a list")
    with pytest.raises(FlatironsError, match=r"memory for a replay buffer: it needs 1024.0 TiB \(1,125,899,906,842,624 bytes\)"):
        resources.require_memory(1 << 50, "a replay buffer")
    assert resources.disk_free(tmp_path / "not" / "yet") > 0
    resources.require_disk(1000, tmp_path, "a file")
    with pytest.raises(FlatironsError, match=r"disk for 3 checkpoints: it needs 1024\.0 TiB"):
        resources.require_disk(1 << 50, tmp_path, "3 checkpoints")
    assert resources.human_bytes(1536) == "1.5 KiB" and resources.human_bytes(3) == "3 B"
