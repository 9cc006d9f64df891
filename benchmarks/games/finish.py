"""Chess, shogi and Go 9x9 from end to end: train, kill -9, resume, and finish games over UCI, USI and GTP.

    python -m benchmarks.games.finish [--games chess shogi go_9x9]

A tiny network trains in a process of its own, which is killed in the middle and goes on from its checkpoint to its end. Then
`flatirons uci RUN` (usi, gtp) is started as an engine like any other and plays two games, one with each colour, against random play; each
must end by the rules, with no move refused. What is shown is that it works, not how well it plays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons.envs import games
from flatirons.run import folder, match, players

PROTOCOLS = {"chess": "uci", "shogi": "usi", "go_9x9": "gtp"}
TINY = {
    "num_envs": 4, "num_steps": 8, "total_steps": 20_480, "num_simulations": 4, "play_simulations": 4, "blocks": 1, "channels": 16,
    "buffer_size": 8_192, "learning_starts": 64, "gradient_steps": 2, "batch_size": 32,
}  # fmt: skip


def killed_and_resumed(game: str, path: Path, seconds: float) -> dict[str, Any]:
    """Train until the clock, `kill -9`, resume to the end: moves at both times."""
    flags = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    flatirons = [sys.executable, "-m", "flatirons"]
    command = [*flatirons, "train", "alphazero", f"pgx:{game}", "--out", str(path), "--checkpoint-every", "1024", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # The first checkpoint is of the start.
    while process.poll() is None and len(list((path / folder.CHECKPOINTS).glob("step_*"))) < 2:
        time.sleep(0.5)
    time.sleep(seconds if process.poll() is None else 0)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    summary = path / folder.SUMMARY
    finished = summary.exists() and folder.read_json(summary)["finished"]
    at = fi.load(path).step
    subprocess.run([*flatirons, "resume", str(path)], check=True, stdout=subprocess.DEVNULL)
    return {"killed_at": None if finished else at, "moves": fi.load(path).step}


def main() -> int:
    """Every game's row; exit status 1 where a game was not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--seconds", type=float, default=5.0, help="from the first checkpoint of its learning to the kill")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks" / "finish", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    head, rows = header("finish", "benchmarks.games.finish"), []
    for name in args.games:
        path, game, began = args.runs / name, games.make(name), time.monotonic()
        shutil.rmtree(path, ignore_errors=True)
        row: dict[str, Any] = {"game": name, "protocol": PROTOCOLS[name]} | killed_and_resumed(name, path, args.seconds)
        engine = players.player(f"{PROTOCOLS[name]}:{sys.executable} -m flatirons {PROTOCOLS[name]} {path}?timeout=600", game)
        other = players.player("random", game)
        try:
            found = match.play(game, engine, other, 2)
        finally:
            engine.close()
        row |= {"finished": sum(one.result is not None for one in found.played), "plies": [len(one.actions) for one in found.played]}
        row |= {"faults": [one.fault for one in found.played if one.fault], "seconds": round(time.monotonic() - began, 1)}
        row["works"] = row["finished"] == 2 and bool(row["killed_at"]) and row["moves"] == TINY["total_steps"]
        rows.append(row)
        print(row, flush=True)
    write(args.out / "finish.json", head | {"versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "config": TINY, "rows": rows})
    return 0 if all(row["works"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
