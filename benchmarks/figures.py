"""The figures of docs/, drawn from the result files alone: `python -m benchmarks.figures`. Those without results stay as they are."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.record import RESULTS, ROOT
from benchmarks.tabular.run import LEFT, LEFT_AT

FIGURES = ROOT / "docs" / "figures"
ORANGE, BLUE, GREEN, PURPLE = "#d55e00", "#0072b2", "#009e73", "#cc79a7"


class Missing(Exception):
    """A result file that a figure needs is not there."""


def result(place: Path, name: str) -> dict[str, Any]:
    """A result file's content. Raises Missing."""
    path = place / f"{name}.json"
    if not path.exists():
        raise Missing(path.name)
    return json.loads(path.read_text(encoding="utf-8"))


def save(figure: Any, place: Path) -> None:
    """Without frames at the top and right, and without what would differ from one drawing to the next."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=130, metadata={"Software": None})
    plt.close(figure)


def band(axes: Any, curves: Sequence[Sequence[Mapping[str, Any]]], name: str, colour: str, label: str) -> None:
    """The mean over seeds of one column of their learning curves, and all of their span."""
    lines = np.array([[np.nan if point[name] is None else point[name] for point in curve] for curve in curves], float)
    steps = np.array([point["step"] for point in curves[0]]) / 1e6
    known = np.any(np.isfinite(lines), axis=0)
    steps, lines = steps[known], lines[:, known]
    axes.plot(steps, np.nanmean(lines, axis=0), color=colour, label=label)
    axes.fill_between(steps, np.nanmin(lines, axis=0), np.nanmax(lines, axis=0), color=colour, alpha=0.2, linewidth=0)


def maximisation_bias(results: Path, place: Path) -> None:
    """Sutton and Barto 2018, figure 6.5: each point the mean of the last ten episodes, with the values to be reached as dots."""
    found = result(results / "tabular", "tabular-bias")
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (method, curve), colour in zip(sorted(found["percent_left"].items()), (BLUE, ORANGE), strict=True):
        smooth = np.convolve(curve, np.full(10, 0.1), mode="valid")
        axes.plot(np.arange(10, len(curve) + 1), smooth, color=colour, label=method)
        axes.plot(LEFT_AT, LEFT[method], "o", color=colour, markerfacecolor="white")
    axes.axhline(5.0, color="grey", linestyle=":", label="optimal, at ε = 0.1")
    axes.set(xlabel="episode", ylabel="% of runs that go left", ylim=(0, 100), xlim=(0, len(next(iter(found["percent_left"].values())))))
    axes.legend(frameon=False)
    save(figure, place)


def overestimation(results: Path, place: Path) -> None:
    """van Hasselt 2016, figure 3: Q while learning, and as lines what the final policies got, discounted."""
    pairs = {
        "LunarLander-v3": ("dqn-lunarlander", "dqn-lunarlander-double"),
        "MinAtar Asterix": ("dqn-minatar-asterix", "dqn-minatar-asterix-double"),
    }
    found = {task: [result(results / "learning", row) for row in rows] for task, rows in pairs.items()}
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for axes, (task, both) in zip(panels, found.items(), strict=True):
        for row, colour, label in zip(both, (ORANGE, BLUE), ("DQN", "Double DQN"), strict=True):
            band(axes, list(row["curves"].values()), "q_value", colour, f"{label}: mean Q of the actions sampled")
            got = float(np.mean([v["discounted_return"] for v in row["values"]]))
            axes.axhline(got, color=colour, linestyle="--", label=f"{label}: what its final policy got")
        axes.set(title=task, xlabel="million decisions")
    panels[0].set_ylabel("discounted return")
    panels[1].legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, place)


def ablation(results: Path, place: Path) -> None:
    """The replay and the target network, with and without, on MinAtar Breakout."""
    rows = {
        "replay and target network (DQN 2015)": ("dqn-minatar-breakout", BLUE),
        "replay alone (DQN 2013)": ("dqn-2013-minatar-breakout", ORANGE),
        "target network alone": ("dqn-minatar-breakout-no-replay", GREEN),
        "neither": ("dqn-2013-minatar-breakout-no-replay", PURPLE),
    }
    found = {label: (result(results / "learning", name), colour) for label, (name, colour) in rows.items()}
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, (row, colour) in found.items():
        band(axes, list(row["curves"].values()), "episode_return", colour, label)
    axes.set(xlabel="million decisions", ylabel="return of training episodes (ε to 0.1)")
    axes.legend(frameon=False, fontsize=8)
    save(figure, place)


def held_out(results: Path, place: Path) -> None:
    """Mnih 2013, figure 2: the average return of training episodes (left), and of max Q over held-out states (right)."""
    found = result(results / "curves", "max_q")
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for (preset, points), colour in zip(found["curves"].items(), (ORANGE, BLUE, GREEN, PURPLE), strict=False):
        steps = [point["step"] / 1e6 for point in points]
        for axes, name in zip(panels, ("episode_return", "held_out_max_q"), strict=True):
            axes.plot(steps, [np.nan if point[name] is None else point[name] for point in points], color=colour, label=preset)
    panels[0].set(xlabel="million decisions", ylabel="return of training episodes")
    panels[1].set(xlabel="million decisions", ylabel=f"mean max Q over {found['states']} held-out states")
    panels[0].legend(frameon=False)
    save(figure, place)


def estimates(results: Path, place: Path) -> None:
    """Lillicrap 2016, figure 3: what the critic expected of each state of greedy episodes against the discounted return that came."""
    found = result(results / "curves", "estimates")
    across = 2 if len(found["runs"]) == 4 else min(3, len(found["runs"]))
    down = -(-len(found["runs"]) // across)
    figure, panels = plt.subplots(down, across, figsize=(4.2 * across, 3.8 * down), layout="constrained", squeeze=False)
    for axes in panels.flat[len(found["runs"]) :]:
        axes.axis("off")
    for axes, run in zip(panels.flat, found["runs"], strict=False):
        axes.scatter(run["return"], run["estimate"], s=3, color=BLUE, alpha=0.4, linewidths=0)
        ends = [min(run["return"] + run["estimate"]), max(run["return"] + run["estimate"])]
        axes.plot(ends, ends, color="grey", linestyle=":")
        axes.set_title(f"{run['title']}\n{run['steps']:,} decisions", fontsize=9)
        axes.set_xlabel("discounted return that came")
    for row in panels:
        row[0].set_ylabel("estimate")
    save(figure, place)


def co2(results: Path, place: Path) -> None:
    """Gal and Ghahramani 2016, figure 2: Mauna Loa, learned from to the left of the line; mean with one and two deviations."""
    found = result(results / "methods", "mc-dropout-co2")
    figure, axes = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
    year, mean, deviation = (np.array(found[name]) for name in ("year", "mean", "deviation"))
    for width in (2, 1):
        axes.fill_between(year, mean - width * deviation, mean + width * deviation, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(year, mean, color=BLUE, linewidth=1, label="predictive mean, one and two deviations")
    for rows, colour, label in zip(found["data"], ("black", ORANGE), ("learned from", "not learned from"), strict=True):
        axes.plot(*np.array(rows).T, color=colour, linewidth=0.8, label=label)
    axes.axvline(found["learned_until"], color="grey", linestyle=":")
    axes.set(xlabel="year", ylabel="CO₂ at Mauna Loa, parts per million")
    axes.legend(frameon=False, loc="upper left")
    save(figure, place)


def rotated_digit(results: Path, place: Path) -> None:
    """Gal and Ghahramani 2016, figure 4: class probabilities of stochastic passes for a digit that is turned."""
    found = result(results / "methods", "mc-dropout-rotated-digit")
    angles, p = np.array(found["angles"]), np.array(found["probabilities"])
    figure, (top, axes) = plt.subplots(2, 1, figsize=(7.6, 4.2), layout="constrained", height_ratios=[1, 4])
    top.imshow(np.concatenate([np.array(x) for x in found["pictures"]], axis=1), cmap="Greys")
    top.axis("off")
    likely = np.argsort(-p.mean(axis=0).max(axis=0))[:4]
    for digit, colour in zip(sorted(likely), (BLUE, ORANGE, GREEN, PURPLE)):
        shift = np.linspace(-1.5, 1.5, p.shape[0])
        axes.scatter((angles[None] + shift[:, None]).ravel(), p[:, :, digit].ravel(), s=4, color=colour, alpha=0.5, linewidths=0)
        axes.plot(angles, p[:, :, digit].mean(axis=0), color=colour, label=str(digit))
    axes.set(xlabel="degrees", ylabel="probability, 100 passes")
    axes.legend(frameon=False, title="digit")
    save(figure, place)


def thompson(results: Path, place: Path) -> None:
    """Gal and Ghahramani 2016, figure 6: mean reward against batches, on a logarithmic axis; the mean over seeds and their span."""
    found = result(results / "methods", "mc-dropout-thompson")
    figure, axes = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
    for (name, arm), colour in zip(found["arms"].items(), (BLUE, PURPLE, GREEN, ORANGE, "grey", "black")):
        curves = np.array(arm["mean_reward_of_25_batches"])[:, 1:]
        batches = 25 * (1 + np.arange(curves.shape[1]))
        axes.plot(batches, curves.mean(axis=0), color=colour, label=name)
        axes.fill_between(batches, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.axhline(found["settings"]["threshold"], color="grey", linestyle=":")
    axes.set(xscale="log", xlabel="batches of 120 decisions after the burn-in", ylabel="reward of a decision")
    axes.legend(frameon=False)
    save(figure, place)


def ewc_forgetting(results: Path, place: Path) -> None:
    """Kirkpatrick 2017, figure 2: accuracy on the first task while others are learned (left), and on all so far (right)."""
    found = result(results / "methods", "ewc_permuted")
    colours = {"joint": "grey", "ewc": BLUE, "online": GREEN, "l2": PURPLE, "sgd": ORANGE}
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for mode, colour in colours.items():
        runs = np.array([[[np.nan if x is None else x for x in row] for row in rows] for rows in found["scores"][mode].values()], float)
        tasks = np.arange(1, runs.shape[1] + 1)
        for axes, lines in zip(panels, (runs[:, :, 0], np.nanmean(runs, axis=2)), strict=True):
            axes.plot(tasks, lines.mean(axis=0), color=colour, label=mode)
            axes.fill_between(tasks, lines.min(axis=0), lines.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    panels[0].set(xlabel="tasks learned", ylabel="test accuracy", title="the first task")
    panels[1].set(xlabel="tasks learned", title="mean over the tasks learned")
    panels[0].legend(frameon=False)
    save(figure, place)


def ewc_games(results: Path, place: Path) -> None:
    """Kirkpatrick 2017, figure 3: the return of each game over the visits, a mean over seeds."""
    found = result(results / "methods", "ewc_dqn")
    colours = {"separate": "grey", "ewc": BLUE, "l2": PURPLE, "sgd": ORANGE}
    games = list(found["reference"])
    figure, panels = plt.subplots(1, len(games), figsize=(4.2 * len(games), 3.8), layout="constrained", squeeze=False)
    for axes, game in zip(panels[0], games, strict=True):
        for mode, colour in colours.items():
            runs = found["evaluations"][mode]
            lines = np.array([[point[game] for point in run] for run in runs], float)
            axes.plot([point["step"] / 1e6 for point in runs[0]], lines.mean(axis=0), color=colour, label=mode)
        axes.axhline(found["reference"][game], color="grey", linestyle=":")
        axes.set(title=game.removeprefix("pgx:minatar-"), xlabel="million decisions, of all games")
    panels[0][0].set_ylabel("return")
    panels[0][0].legend(frameon=False)
    save(figure, place)


def ppo_table1(results: Path, place: Path) -> None:
    """Schulman 2017, Table 1: the normalised score of each surrogate, ours with its interval, and the paper's."""
    rows = result(results / "curves", "ppo_table1")["rows"]
    at = np.arange(len(rows))
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    scores = np.array([row["score"] for row in rows])
    spans = np.abs(np.array([row["ci95"] for row in rows]).T - scores)
    axes.barh(at, scores, color=BLUE, alpha=0.7, xerr=spans, label="here: four tasks, 300,000 decisions, five seeds")
    axes.plot([row["paper"] for row in rows], at, "D", color=ORANGE, label="the paper: seven tasks, a million decisions")
    axes.set(yticks=at, yticklabels=[row["setting"] for row in rows], xlabel="average normalised score")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0))
    save(figure, place)


def a3c_workers(results: Path, place: Path) -> None:
    """Mnih 2016, figure 4: the return of training episodes over the clock, with one and with two actor-learners."""
    found = result(results / "speed", "a3c_workers")
    methods = list(dict.fromkeys(run["method"] for run in found["time_to_score"]))
    if not methods:
        raise Missing("runs to a score in a3c_workers.json, which has throughput alone")
    figure, panels = plt.subplots(1, len(methods), figsize=(4.2 * len(methods), 3.6), layout="constrained", squeeze=False, sharey=True)
    for axes, method in zip(panels[0], methods, strict=True):
        for run in found["time_to_score"]:
            if run["method"] == method:
                for side, colour in (("one", ORANGE), ("two", BLUE)):
                    axes.plot([p[1] / 60 for p in run[side]["curve"]], [p[2] for p in run[side]["curve"]], color=colour)
        axes.axhline(found["score"], color="grey", linestyle=":")
        axes.set(title=method, xlabel="minutes")
    for side, colour in (("one actor-learner", ORANGE), ("two", BLUE)):
        panels[0][0].plot([], [], color=colour, label=side)
    panels[0][0].set_ylabel(f"mean return of 30 training episodes\n{found['score_task']}")
    panels[0][0].legend(frameon=False, fontsize=8)
    save(figure, place)


CURVES = {
    "ddpg": ("ddpg-pendulum", "ddpg-inverted-pendulum", "ddpg-halfcheetah"),
    "sac": ("sac-pendulum", "sac-inverted-pendulum", "sac-halfcheetah", "sac-hopper", "sac-fetch-reach"),
    "a3c": ("a3c-cartpole-threads", "async-nstep-q-classic-threads", "a3c-minatar-breakout", "a3c-pendulum"),
    "trpo": ("trpo-cartpole", "trpo-pendulum", "trpo-hopper", "trpo-halfcheetah"),
    "ppo": ("ppo-hopper", "ppo-walker2d", "ppo-pong"),
}
"""The rows of a page whose training is drawn."""


def learning_curves(page: str, results: Path, place: Path) -> None:
    """Return of training episodes, exploration and all, with the bar that the final greedy policy is held to; those rows that are there."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (results / "learning" / f"{row}.json" for row in CURVES[page])
        if path.exists()
    ]
    found = [row for row in found if row.get("curves")]
    if not found:
        raise Missing("the learning rows of " + page)
    figure, panels = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.2), layout="constrained", squeeze=False)
    for axes, row in zip(panels[0], found, strict=True):
        band(axes, list(row["curves"].values()), "episode_return", BLUE, f"mean of {len(row['curves'])} seeds, and their span")
        # FetchReach's bar is a share of successes, which is no return.
        if row.get("reach") is not None and row.get("measure") != "success":
            axes.axhline(row["reach"], color="grey", linestyle=":", label="to be reached")
        axes.set(title=f"{row['preset'] or row['system']}\n{row['task']}", xlabel="decisions, millions")
        axes.title.set_size(9)
    panels[0][0].set_ylabel("return of training episodes")
    panels[0][0].legend(frameon=False, fontsize=8)
    save(figure, place)


def pusher(results: Path, place: Path) -> None:
    """Lillicrap 2016's reason: the same arm with seven continuous joints, and with each cut in three for DQN."""
    figure, axes = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for row, colour, label in (("ddpg-pusher", BLUE, "DDPG, seven real numbers"), ("dqn-pusher-cut", ORANGE, "DQN, one of 2,187 actions")):
        band(axes, list(result(results / "learning", row)["curves"].values()), "episode_return", colour, label)
    axes.set(xlabel="decisions, millions", ylabel="return of training episodes, Pusher-v5")
    axes.legend(frameon=False, fontsize=8)
    save(figure, place)


def sinusoid(results: Path, place: Path) -> None:
    """Finn 2017, figure 3: the error on 600 new sinusoids after steps of gradient descent on five points."""
    found = result(results / "methods", "maml_sinusoid")
    steps = sorted(map(int, found["scores"][0]["mse_after"]))
    figure, axes = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for score in found["scores"]:
        means, widths = ([score[what][str(n)] for n in steps] for what in ("mse_after", "ci95"))
        axes.errorbar(steps, means, yerr=widths, color=BLUE, capsize=2)
    axes.plot([], [], color=BLUE, label=f"MAML, {len(found['scores'])} seeds (95 % interval over tasks)")
    finite = {
        rate: [after[str(n)] for n in steps] for rate, after in found["fine_tuned"].items() if np.isfinite(list(after.values())).all()
    }
    rate = min(finite, key=lambda name: finite[name][-1])
    axes.plot(steps, finite[rate], color=ORANGE, marker="o", label=f"pre-trained on all tasks, its best rate ({rate})")
    axes.set(xlabel="gradient steps on five points", ylabel="mean squared error", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    save(figure, place)


RATED = {"connect_four": ("connect four", BLUE), "othello": ("Othello", ORANGE)}
"""Games whose ratings are drawn."""


def elo(results: Path, place: Path) -> None:
    """AlphaZero's Elo above UCT of 1,000 random rollouts: over training time, and over simulations a move."""
    found = {name: json.loads(path.read_text()) for name in RATED if (path := results / "games" / f"elo_{name}.json").exists()}
    if not found:
        raise Missing("elo_GAME.json")
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained", sharey=True)
    for name, rated in found.items():
        label, colour = RATED[name]
        rows = [row for row in rated["rows"] if "moves" in row]
        in_time = [row for row in rows if row["name"].endswith(" moves")]
        of_last = sorted((row for row in rows if row["moves"] == in_time[-1]["moves"]), key=lambda row: row["simulations"])
        for axes, chosen, column in ((panels[0], in_time, "minutes"), (panels[1], of_last, "simulations")):
            x, y = [row[column] for row in chosen], np.array([row["elo"] for row in chosen])
            low, high = np.array([row["ci95"] for row in chosen]).T
            axes.errorbar(x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], color=colour, marker="o", markersize=4, label=label)
    for axes in panels:
        axes.axhline(0, color="grey", linestyle=":")
    panels[0].set(xlabel="minutes of training on one core", ylabel="Elo above UCT with 1,000 rollouts")
    panels[0].legend(frameon=False, fontsize=8)
    ticks = (0, 10, 30, 100, 300)
    panels[1].set_xscale("symlog", linthresh=10)
    panels[1].set(xlabel="simulations a move (0: the network alone)", xlim=(-2, 450), xticks=ticks, xticklabels=map(str, ticks))
    save(figure, place)


def alphago_ablation(results: Path, place: Path) -> None:
    """Silver 2016, figure 4b at our size: the whole player's share of points against itself with parts taken away."""
    lines = result(results / "games", "alphago")["lines"]
    rows = {"lambda_0": "without rollouts (λ = 0)", "lambda_1": "without the value network (λ = 1)", "rl_prior": "with p_ρ as its prior"}
    known = [name for name in rows if name in lines]
    if not known:
        raise Missing("matches in alphago.json")
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.5 * len(known)), layout="constrained")
    shares = np.array([lines[name]["points"] for name in known])
    low, high = np.array([lines[name]["ci95"] for name in known]).T
    axes.barh([rows[name] for name in known], shares, xerr=[shares - low, high - shares], color=BLUE, height=0.6)
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.set(xlim=(0, 1), xlabel="share of points of the mixed search (λ = ½, p_σ) against it")
    axes.invert_yaxis()
    save(figure, place)


ALL = {
    "alphazero_elo": elo,
    "alphago_ablation": alphago_ablation,
    **{f"{page}_curves": functools.partial(learning_curves, page) for page in CURVES},
    "ddpg_pusher": pusher,
    "maml_sinusoid": sinusoid,
    "ppo_table1": ppo_table1,
    "a3c_workers": a3c_workers,
    "tabular_maximisation_bias": maximisation_bias,
    "dqn_overestimation": overestimation,
    "dqn_ablation": ablation,
    "dqn_held_out_max_q": held_out,
    "continuous_estimates": estimates,
    "mc_dropout_co2": co2,
    "mc_dropout_rotated_digit": rotated_digit,
    "mc_dropout_thompson": thompson,
    "ewc_forgetting": ewc_forgetting,
    "ewc_games": ewc_games,
}


def main() -> None:
    """Draw each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=FIGURES)
    args = parser.parse_args()
    for name, draw in ALL.items():
        try:
            draw(args.results, args.out / f"{name}.png")
            print(args.out / f"{name}.png")
        except Missing as missing:
            print(f"{name}: waits for {missing}")


if __name__ == "__main__":
    main()
