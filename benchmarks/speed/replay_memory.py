"""The memory of a DQN run with a replay of 1M Atari frames, the paper's: `python -m benchmarks.speed.replay_memory`.

A million frames are written, with updates on the way, and the process's memory is watched at its highest. A copy of the replay by an
addition or an update would show as twice the replay. Then one checkpoint is saved, which goes through a part of the replay at a time.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons import envs
from flatirons.data import replay as memory
from flatirons.run import checkpoint
from flatirons.systems import dqn
from flatirons.types import Transition

CHUNK = 500
"""Decisions written by one addition, most of them without an update, to fill the replay in seconds."""


def highest() -> float:
    """The largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def resident() -> float:
    """This process's memory now, GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def main() -> None:
    """Fill, update, save; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames in the replay")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the result file")
    args = parser.parse_args()
    result = header("dqn_replay_memory", "benchmarks.speed.replay_memory")
    task: Any = envs.make("ALE/Pong-v5", 1, seed=0)
    config = dqn.Config(**dqn.NATURE | {"buffer_size": args.frames, "learning_starts": CHUNK})
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    before = highest()
    state = jax.jit(dqn.init, static_argnums=1)(config, task, jax.random.key(0))._replace(collector=())
    replay_bytes = memory.num_bytes(task.spec, 1, args.frames)

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (CHUNK + 4, 84, 84), np.uint8)
    stacks = np.stack([pictures[k : k + CHUNK + 1] for k in range(4)], axis=1)[:, None]
    zeros = np.zeros((CHUNK, 1))
    last = zeros.astype(bool)
    last[-1] = True
    first = np.roll(last, 1, axis=0)
    experience = Transition(stacks[:-1], zeros.astype(np.int32), zeros.astype(np.float32), stacks[1:], last, ~last & False, first, (), ())
    add = jax.jit(lambda replay, x: memory.add(replay, task.spec, x), donate_argnums=0)
    update = jax.jit(dqn.update, static_argnums=1, donate_argnums=2)
    few = jax.tree.map(lambda x: x[-4:], experience)

    begin = time.perf_counter()
    samples = []
    for turn in range(-(-args.frames // CHUNK)):
        state = state._replace(replay=add(state.replay, experience))
        if turn % 200 == 199:
            state, metrics = update(on_device, task, state, few)
            jax.block_until_ready(metrics)
            samples.append(resident())
    updated = highest()
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        begin = time.perf_counter()
        checkpoint.save(scratch, state, {}, step=1)
        saved_in = time.perf_counter() - begin
    result |= {
        "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "ale-py")),
        "frames": args.frames,
        "replay_gb": replay_bytes / 1e9,
        "before_gb": before,
        "resident_gb": samples,
        "peak_gb": updated,
        "above_replay_gb": updated - before - replay_bytes / 1e9,
        "filled_in_s": seconds,
        "peak_with_checkpoint_gb": highest(),
        "checkpoint_s": saved_in,
    }
    write(args.out / "dqn_replay_memory.json", result)
    print({name: value for name, value in result.items() if name not in ("machine", "resident_gb")})
    task.close()


if __name__ == "__main__":
    main()
