"""AlphaGo's four stages on Othello, its experts a search with 1,000 random rollouts: two hours on two cores, then the paper's lines.

    python -m benchmarks.games.alphago train [--minutes 10] [--seed 0]     # as often as it takes; kill it whenever you like
    python -m benchmarks.games.alphago test [--minutes 10] [--seed 0]      # likewise; the result file is whole when it says so

`train` goes through the stages, each from the run before it, and a value network on whole games beside them (which is to over-fit; its
minutes do not count as the pipeline's). `test` measures each line once and keeps it: top-1 of p_sigma and p_pi on all positions of
the games kept for testing; p_rho against p_sigma over 400 games, both drawing their moves; v_theta's error on all positions kept for
testing, on all learnt from, and on one position of each of 4,096 new games, the same for both value networks (the gap of the one that
learnt from whole games is that last error less its training's, for its own test positions come from a few games); the player against
itself with lambda = 0, lambda = 1 and p_rho as its prior, 400 games each with as many simulations, two random moves to begin with.
Intervals are of 95 %. The bars below were set beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons import envs
from flatirons.core import trees
from flatirons.run import checkpoint, folder
from flatirons.run.job import reopen, state_like
from flatirons.systems import alphago, alphago_rl, alphago_sl, alphago_value
from flatirons.systems.alphago import networks

TASK = "pgx:othello"
MINUTES = 120.0
GAMES = 400
PART = 50
"""Games of a match that are played in one go."""
NEW_GAMES, NEW_SEED = 4_096, 1_000
"""Games that no value network has learnt from or was watched on, and their seed: one position of each."""
RESAMPLES = 2_000
"""Resamplings of games that an interval over positions of whole games comes from."""
# What to reach, and what to aim at.
BARS = {
    "sl": (2.0, None),
    "rl": (0.80, None),
    "value": (0.80, None),
    "value_gap": (0.03, None),
    "lambda_0": (0.60, 0.95),
    "lambda_1": (0.60, 0.95),
}
WHOLE = {"whole_games": True, "total_steps": 7 * 128 * 66, "buffer_size": 2**17, "learning_starts": 45_000, "gradient_steps": 3_200}
"""As many positions and updates as the preset has, from a sixtieth of the games; all updates come when the positions are there."""
STAGES = {
    "sl": ("alphago-sl", None, {}),
    "rl": ("alphago-rl", "sl", {}),
    "value": ("alphago-value", "rl", {}),
    "player": ("alphago", "value", {}),
    "whole": ("alphago-value", "rl", WHOLE),
}
PIPELINE = ("sl", "rl", "value", "player")


def path_of(args: argparse.Namespace, stage: str) -> Path:
    return args.runs / f"alphago-othello-seed{args.seed}-{stage}"


def finished(path: Path) -> bool:
    return (path / folder.SUMMARY).exists() and folder.read_json(path / folder.SUMMARY)["finished"]


def train(args: argparse.Namespace) -> None:
    """Go on where the last piece stopped, for `minutes`."""
    began = time.perf_counter()

    def enough(run: Any, metrics: Any) -> bool:
        del run, metrics
        return time.perf_counter() - began < 60 * args.minutes

    for stage, (system, before, settings) in STAGES.items():
        path = path_of(args, stage)
        if finished(path):
            continue
        if (path / folder.CONFIG).exists():
            run = fi.resume(path, callbacks=[enough])
        else:
            source = None if before is None else path_of(args, before)
            run = fi.train(system, TASK, seed=args.seed, out=path, from_run=source, callbacks=[enough], **settings)
        print(f"{stage}: {run.step:_} steps, {run.metrics[-1]['seconds'] / 60:.1f} minutes in all", flush=True)
        if not enough(None, None):
            return


def state_of(path: Path) -> tuple[Any, Any, Any]:
    """(Config, task, State) of a run's newest checkpoint."""
    job = reopen(path, env=None, network=None, system=None)
    task = job.make(job.config.num_envs, seed=job.seed, training=True)
    return job.config, task, checkpoint.load_latest(path / folder.CHECKPOINTS, state_like(job, task)).tree


def interval(mean: float, variance: float, count: int) -> list[float]:
    width = 1.96 * math.sqrt(variance / count)
    return [float(mean - width), float(mean + width)]


def points(score: tuple[int, int, int]) -> dict[str, Any]:
    """What a match came to."""
    wins, draws, losses = score
    num = wins + draws + losses
    mean = (wins + 0.5 * draws) / num
    return {
        "games": num, "wins": wins, "draws": draws, "losses": losses, "points": mean,
        "ci95": interval(mean, (wins + 0.25 * draws) / num - mean**2, num),
    }  # fmt: skip


def in_chunks(function: Any, *columns: Any, size: int = 1024) -> np.ndarray:
    """`function` of rows, so many at a time, the last padded."""
    total, found = len(columns[0]), []
    for begin in range(0, total, size):
        rows = np.minimum(np.arange(begin, begin + size), total - 1)
        found.append(np.asarray(function(*(x[rows] for x in columns)))[: total - begin])
    return np.concatenate(found)


# -------------------------------------------------------------------------------------------------------------- the lines


def test_sl(args: argparse.Namespace) -> dict[str, Any]:
    """Top-1 of both policies, and the ratio's interval by resampling positions."""
    config, task, state = state_of(path_of(args, "sl"))
    game, examples, rng = task.env, jax.device_get(state.examples), np.random.default_rng(0)
    is_test = np.asarray(alphago_sl._is_test(config, state.examples))
    rows = np.arange(examples.action.shape[0])[:, None] < examples.known[None]

    @jax.jit
    def right(obs: Any, legal: Any, action: Any) -> Any:
        logits = networks.policy_logits(config, game, state.params["sl"], obs), networks.rollout_logits(state.params["rollout"], obs)
        return jnp.stack([networks.likeliest(x, legal) == action for x in logits], axis=1)

    found: dict[str, Any] = {}
    for name, streams in (("test", is_test), ("train", ~is_test)):
        kept = rows & streams[None]
        hits = in_chunks(right, examples.obs[kept], examples.legal[kept], examples.action[kept])
        shares = hits.mean(axis=0)
        found[name] = {"positions": len(hits), "sl": float(shares[0]), "rollout": float(shares[1])}
        if name == "test":
            for i, which in enumerate(("sl", "rollout")):
                found[f"{which}_ci95"] = interval(shares[i], shares[i] * (1 - shares[i]), len(hits))
            kinds = np.bincount(hits @ np.array([2, 1]), minlength=4) / len(hits)
            drawn = rng.multinomial(len(hits), kinds, size=10_000)
            ratios = (drawn[:, 2] + drawn[:, 3]) / (drawn[:, 1] + drawn[:, 3])
            found["ratio"], found["ratio_ci95"] = float(shares[0] / shares[1]), np.quantile(ratios, [0.025, 0.975]).tolist()
    chosen = examples.legal[rows & is_test[None]].sum(axis=1)
    return found | {"forced": float((chosen == 1).mean()), "chance": float((1 / chosen).mean())}


def test_rl(args: argparse.Namespace) -> dict[str, Any]:
    """p_rho against p_sigma."""
    run = fi.load(path_of(args, "rl"))
    drawn, greedy = alphago_rl._score(run.config, envs.make(TASK, 1).env, run.actor, jax.random.key(1_000), GAMES)
    return points(tuple(map(int, drawn))) | {"likeliest_moves": points(tuple(map(int, greedy)))}


def games_of(obs: np.ndarray) -> np.ndarray:
    """The number of the game `[n]` that each of the positions `obs [n, rows, cols, 2]` (the mover's stones, the other's) comes from.

    They are those of whole games of Othello as the stage keeps them: a turn's games side by side, ply after ply, always in the same order,
    without those that have ended. Raises ValueError where a position goes on from none.
    """
    mine, theirs = (np.asarray(obs[..., plane], bool).reshape(len(obs), -1) for plane in (0, 1))
    stones = (mine | theirs).sum(axis=1)
    fewest = stones.min()

    def follows(before: int, after: int) -> bool:
        # A move adds a stone and turns some of the other's; a pass does neither. Then the other is to move.
        kept = not (mine[before] & ~theirs[after]).any() and not (mine[after] & ~theirs[before]).any()
        return kept and stones[after] - stones[before] in (0, 1)

    game = np.full(len(obs), -1)
    under_way: list[int] = []
    at = num = 0
    while at < len(obs):
        if stones[at] == fewest:
            begun = int(np.argmax(np.append(stones[at:], -1) != fewest))
            game[at : at + begun] = np.arange(num, num + begun)
            under_way, at, num = list(range(at, at + begun)), at + begun, num + begun
            continue
        still = []
        for before in under_way:
            if at < len(obs) and follows(before, at):
                game[at] = game[before]
                still.append(at)
                at += 1
        if not still:
            raise ValueError(f"position {at} goes on from none before it: these are not whole games in the order they were played")
        under_way = still
    return game


def resampled(errors: np.ndarray, games: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean error in `RESAMPLES` resamplings of the games, with all their positions."""
    counts, sums = np.bincount(games).astype(np.float64), np.bincount(games, weights=errors)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, len(counts), len(counts))
        found[i] = sums[drawn].sum() / counts[drawn].sum()
    return found


def new_games(config: Any, task: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """(squared errors, z), each `[n]`, on one position of each of `NEW_GAMES` games of the networks before, whatever the stage learnt from.
    Both value networks are handed the same networks, so that these are the same positions."""
    one_each, twin = dataclasses.replace(config, whole_games=False), task.resized(config.num_envs)

    @jax.jit
    def play(actor: Any, key: Any) -> Any:
        _, experience, _ = alphago_value._play(one_each, twin, actor, key)
        found = networks.played(experience.extras["player"], experience.reward, experience.terminated)
        v = networks.values(config, task.env, actor.value, trees.as_rows(experience.obs)).reshape(found.z.shape)
        return found.first_game & experience.extras["keeps"], jnp.square(found.z - v), found.z

    errors, results = [], []
    for key in jax.random.split(jax.random.key(NEW_SEED), -(-NEW_GAMES // config.num_envs)):
        keeps, error, z = jax.device_get(play(alphago_value.actor(state), key))
        errors.append(error[keeps])
        results.append(z[keeps])
    return np.concatenate(errors), np.concatenate(results)


def test_value(args: argparse.Namespace, stage: str) -> dict[str, Any] | None:
    """Errors on all positions learnt from and kept for testing, and on new games; None before the stage has ended.

    The gap of `value` is that of its own test positions, one of a game, which its bar was set for. Of `whole` it is that of new games: its
    own test positions are those of 84 games, of which each has one result. Where a set is of whole games, games are resampled.
    """
    if not finished(path_of(args, stage)):
        print(f"{stage} has not been trained to its end; call train again", flush=True)
        return None
    config, task, state = state_of(path_of(args, stage))

    @jax.jit
    def error(obs: Any, z: Any) -> Any:
        return jnp.square(z - networks.values(config, task.env, state.params, obs))

    found: dict[str, Any] = {}
    variance: dict[str, float] = {}
    rng = np.random.default_rng(0)
    for name, examples in (("train", state.examples), ("test", state.tests)):
        num = min(int(examples.written), len(examples.z))
        obs, z = np.asarray(examples.obs)[:num], np.asarray(examples.z)[:num]
        errors = in_chunks(error, obs, z)
        found[name] = {"positions": num, "mse": float(errors.mean()), "constant_mse": float(z.var())}
        if config.whole_games:
            games = games_of(obs)
            means = resampled(errors, games, rng)
            variance[name] = float(means.var())
            found[name] |= {"games": int(games.max()) + 1, "ci95": np.quantile(means, [0.025, 0.975]).tolist()}
        else:
            variance[name] = float(errors.var() / num)
            found[name]["ci95"] = interval(errors.mean(), errors.var(), num)
    errors, z = new_games(config, task, state)
    variance["new_games"] = float(errors.var() / len(errors))
    found["new_games"] = {
        "games": NEW_GAMES, "positions": len(errors), "mse": float(errors.mean()), "constant_mse": float(z.var()),
        "ci95": interval(errors.mean(), errors.var(), len(errors)),
    }  # fmt: skip
    for name in ("test", "new_games"):
        gap = found[name]["mse"] - found["train"]["mse"]
        found[name] |= {"gap": gap, "gap_ci95": interval(gap, variance[name] + variance["train"], 1)}
    shown = found["new_games" if config.whole_games else "test"]
    found |= {name: shown[name] for name in ("constant_mse", "gap", "gap_ci95")}
    return found | {"share_of_constant": shown["mse"] / shown["constant_mse"]}


def test_match(args: argparse.Namespace, name: str, kept: dict[str, Any], enough: Any, keep: Any) -> dict[str, Any] | None:
    """The player against itself otherwise set, a part at a time."""
    run, game = fi.load(path_of(args, "player")), envs.make(TASK, 1).env
    other = {"lambda_0": {"mix": 0.0}, "lambda_1": {"mix": 1.0}, "rl_prior": {"prior": "rl"}}[name]
    parts = kept.setdefault(f"parts_{name}", [])
    while len(parts) * PART < GAMES and enough():
        key = jax.random.fold_in(jax.random.key(sorted(("lambda_0", "lambda_1", "rl_prior")).index(name)), len(parts))
        parts.append([int(x) for x in alphago.match(run.config, dataclasses.replace(run.config, **other), game, run.actor, key, PART)])
        print(name, parts[-1], flush=True)
        keep()
    if len(parts) * PART < GAMES:
        return None
    return points(tuple(np.sum(parts, axis=0).tolist())) | {"simulations": run.config.num_simulations}


def test(args: argparse.Namespace) -> None:
    """Every line that is missing, into the result file."""
    began, where = time.perf_counter(), args.out / "alphago.json"
    kept = args.runs / f"alphago-othello-seed{args.seed}-lines.json"
    lines: dict[str, Any] = folder.read_json(kept) if kept.exists() else {}
    for name in ("value", "whole_games"):
        # Lines of before the new games were the same for both are measured again.
        if name in lines and "gap" not in lines[name].get("new_games", {}):
            del lines[name]
    enough = lambda: time.perf_counter() - began < 60 * args.minutes  # noqa: E731
    keep = lambda: folder.write_json(kept, lines)  # noqa: E731
    against = functools.partial(test_match, args, kept=lines, enough=enough, keep=keep)
    measures: dict[str, Any] = {
        "sl": functools.partial(test_sl, args),
        "rl": functools.partial(test_rl, args),
        "value": functools.partial(test_value, args, "value"),
        "lambda_0": functools.partial(against, "lambda_0"),
        "lambda_1": functools.partial(against, "lambda_1"),
        "whole_games": functools.partial(test_value, args, "whole"),
        "rl_prior": functools.partial(against, "rl_prior"),
    }
    for name, measure in measures.items():
        if name in lines or not enough():
            continue
        found = measure()
        if found is not None:
            lines[name] = found
            keep()
            print(name, found, flush=True)
    minutes = {}
    for stage in STAGES:
        if (path_of(args, stage) / folder.CONFIG).exists():
            minutes[stage] = round(fi.load(path_of(args, stage)).metrics[-1]["seconds"] / 60, 1)
    reached = {
        "sl": lines["sl"]["ratio"] >= BARS["sl"][0] if "sl" in lines else None,
        "rl": lines["rl"]["points"] >= BARS["rl"][0] if "rl" in lines else None,
        "value": lines["value"]["share_of_constant"] <= BARS["value"][0] if "value" in lines else None,
        "value_gap": lines["value"]["gap"] <= BARS["value_gap"][0] if "value" in lines else None,
        **{name: lines[name]["points"] >= BARS[name][0] if name in lines else None for name in ("lambda_0", "lambda_1")},
    }
    total = sum(minutes.get(stage, math.inf) for stage in PIPELINE)
    result = header("alphago", "benchmarks.games.alphago") | {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "task": TASK, "seed": args.seed, "minutes": minutes,
        "minutes_of_the_pipeline": total if math.isfinite(total) else None, "minutes_allowed": MINUTES,
        "config": {stage: folder.read_json(path_of(args, stage) / folder.CONFIG)["config"] for stage in minutes},
        "lines": {name: line for name, line in lines.items() if not name.startswith("parts_")},
        "bars": {name: {"reach": reach, "aim": aim} for name, (reach, aim) in BARS.items()}, "reached": reached,
        "whole": set(measures) <= set(lines),
    }  # fmt: skip
    write(where, result)
    print(f"{where}: {'whole' if result['whole'] else 'in parts'}; reached {reached}, {total:.0f} minutes of {MINUTES:.0f}")


def main() -> None:
    """Train a piece, or test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "test"))
    parser.add_argument("--minutes", type=float, default=2 * MINUTES, help="length of this piece")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folders are")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    (train if args.what == "train" else test)(args)


if __name__ == "__main__":
    main()
