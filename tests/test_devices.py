"""One run over several devices: the same numbers as on one, each device with its share; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flatirons as fi
from flatirons.types import FlatironsError

# Run in a process of its own, for the number of devices is settled when JAX starts.
SCRIPT = """
import json, os, shutil, sys
import jax, numpy as np
import flatirons as fi
from flatirons.run import loop

jax.config.update("jax_numpy_rank_promotion", "raise")
out, cases = sys.argv[1], json.loads(sys.argv[2])
flops, found = {}, {}

def worst_of(*actors):
    return max(float(np.max(np.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, actors), strict=True))

class Spying(loop._InGraph):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        analysis = self._turns.cost_analysis()
        flops[Spying.now] = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]

loop._InGraph = Spying
for name, (system, task, settings) in cases.items():
    actors = []
    for devices in (1, 4):
        Spying.now = f"{name}-{devices}"
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        half = settings["total_steps"] // 2
        run = fi.train(system, task, out=f"{out}/{Spying.now}", quiet=True, devices=devices, checkpoint_every=half, **settings)
        theirs = jax.tree.leaves((run._state.collector.env, getattr(run._state, "memory", ())))
        placed = [len(x.sharding.device_set) for x in theirs]
        shares = {x.sharding.shard_shape(x.shape)[0] for x in theirs}
        actors.append(jax.device_get(run.actor))
        found[Spying.now] = {"placed": placed, "shares": sorted(shares), "step": run.step}
    found[name] = worst_of(*actors)
# What several devices saved half way goes on on one.
os.remove(f"{out}/ppo-4/summary.json")
shutil.rmtree(f"{out}/ppo-4/checkpoints/step_{cases['ppo'][2]['total_steps']:012d}")
again = fi.resume(f"{out}/ppo-4", quiet=True, devices=1)
apart = worst_of(jax.device_get(again.actor), jax.device_get(fi.load(f"{out}/ppo-1").actor))
print(json.dumps({"found": found, "flops": flops, "again": again.step, "apart": apart, "all": len(jax.devices())}))
"""
SMALL: dict[str, Any] = {"num_envs": 8, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden": [64], "total_steps": 256}
CASES = {
    "ppo": ("ppo", "jax:CartPole-v1", SMALL | {"normalise_obs": True, "normalise_reward": True}),
    "host": ("ppo", "no-velocity:CartPole-v1", SMALL | {"lstm": 8}),
    "dqn": (
        "dqn",
        "jax:CartPole-v1",
        {
            "num_envs": 8, "train_every": 16, "gradient_steps": 2, "batch_size": 16, "buffer_size": 64, "learning_starts": 16,
            "hidden": [16], "total_steps": 128,
        },
    ),
}  # fmt: skip


def test_four_devices_find_what_one_finds(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1",
    }
    command = [sys.executable, "-W", "error", "-W", "ignore:Error reading persistent", "-c", SCRIPT, str(tmp_path), json.dumps(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    found, flops = result["found"], result["flops"]
    assert result["all"] == 4
    assert result["again"] == CASES["ppo"][2]["total_steps"] and result["apart"] < 1e-4
    for name in CASES:
        assert found[name] < 1e-4, f"{name}: parameters differ by {found[name]}"
        assert found[f"{name}-4"]["step"] == found[f"{name}-1"]["step"] == CASES[name][2]["total_steps"]
        assert set(found[f"{name}-4"]["placed"]) == {4} and found[f"{name}-4"]["shares"] == [2], "two environments on each device"
        assert found[f"{name}-1"]["shares"] == [8]
    # Not only acting but learning too is shared: a device does less than half of the work of one alone.
    assert flops["ppo-4"] < 0.5 * flops["ppo-1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 3}, r"devices=3, and there is 1 here \(cpu\); XLA_FLAGS=--xla_force_host_platform_device_count=3"),
        ({"devices": 0}, "devices=0 is not a number of devices"),
        ({"devices": "many"}, "devices='many' is not a number of devices"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FlatironsError, match=message):
        fi.train("ppo", "jax:CartPole-v1", out=tmp_path / "run", quiet=True, **arguments)
    assert not (tmp_path / "run").exists()


def test_environments_that_devices_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jax

    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 3)
    with pytest.raises(FlatironsError, match="num_envs=8 cannot be shared evenly by 3 devices: choose 6 or 9"):
        fi.train("ppo", "jax:CartPole-v1", out=tmp_path / "run", quiet=True, devices=3)
    with pytest.raises(FlatironsError, match="one seed at a time, and seeds=2"):
        fi.train("ppo", "jax:CartPole-v1", out=tmp_path / "run", quiet=True, devices=3, seeds=2, num_envs=9, total_steps=225)
    with pytest.raises(
        FlatironsError, match=r"devices=2 would change nothing: in a race \(mode=threads\).* take mode=turns, or leave devices"
    ):
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 2)
        fi.train("a3c", "CartPole-v1", out=tmp_path / "run", quiet=True, devices="all", mode="threads", trajectories=50)
    run = fi.train("ppo", "jax:CartPole-v1", out=tmp_path / "run", quiet=True, devices="1", total_steps=200)
    assert run.step == 200
