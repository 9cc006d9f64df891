"""Fill the tables of README.md and docs/ from benchmarks/results: every number there comes from a result file.

A page asks for a table with a pair of markers, and what stands between them is replaced:

    <!-- results:learning -->          all learning results          <!-- /results -->
    <!-- results:learning:ppo -->      those of one system           <!-- /results -->
    <!-- results:speed -->             all speed results             <!-- /results -->
    <!-- results:values:dqn -->        what policies expected of states, and what they got, those of one system   <!-- /results -->
    <!-- results:speed:ppo -->         those whose name begins so    <!-- /results -->
    <!-- results:updates:dqn -->       single updates against the roof, those whose name begins so   <!-- /results -->
    <!-- results:memory -->            what the largest replay takes   <!-- /results -->
    <!-- results:table1 -->            the PPO paper's Table 1 at our scale   <!-- /results -->
    <!-- results:sides -->             SAC's returns beside a peer's with the same settings   <!-- /results -->
    <!-- results:best:pendulum -->     rows beside the best decisions from the same starts   <!-- /results -->
    <!-- results:workers -->           A3C with one and with two actor-learners   <!-- /results -->
    <!-- results:environments -->      what more environments cost   <!-- /results -->
    <!-- results:accelerator -->       in-graph systems on an accelerator   <!-- /results -->
    <!-- results:checks:tabular -->    checks whose name begins so   <!-- /results -->
    <!-- results:games:alphazero -->    board games, those of a page (see GAMES)   <!-- /results -->

It also writes `src/flatirons/run/measured.json`, what `flatirons list SYSTEM` says a preset reaches, in how many hours.

`python -m benchmarks.tables` writes; `--check` only says (exit status 1) which page is behind its results.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.summary import bootstrap
from flatirons import studies, systems
from flatirons.systems import alphazero, system_name

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(
    r"(<!-- results:(?P<kind>learning|speed|checks|values|updates|memory|table1|sides|best|workers|environments|accelerator|games)"
    r"(?::(?P<name>[\w.-]+))? -->\n)"
    r".*?(<!-- /results -->)",
    re.DOTALL,
)
MEASURED = "src/flatirons/run/measured.json"
NOTHING = "Not measured yet.\n"


def load(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def number(value: Any) -> str:
    """A number as a table shows it: about three significant digits, thousands apart."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value) if value not in (None, "") else "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def yes(held: Any) -> str:
    """The last column of a table."""
    return "yes" if held else "**no**"


def seeds_of(result: dict[str, Any]) -> int:
    seeds = result.get("seeds", result.get("means", []))
    return seeds if isinstance(seeds, int) else len(seeds)


def minutes(seconds: Any) -> str:
    values = list(seconds.values()) if isinstance(seconds, dict) else seconds if isinstance(seconds, list) else [seconds]
    known = [v for v in values if isinstance(v, int | float)]
    return f"{sum(known) / len(known) / 60:.1f}" if known else "–"


def family(r: dict[str, Any]) -> str:
    """The system, one page of docs/, that a learning result belongs to."""
    return system_name(studies.find(r["system"])[0])


def preset_of(r: dict[str, Any]) -> str:
    """The preset of a learning result; of A3C also the mode, which decides whether its learners raced."""
    mode = r.get("config", {}).get("mode") if family(r) == "a3c" else None
    return f"`{r.get('preset') or r['system']}`" + (f", {mode}" if mode else "")


def learning(results: Sequence[dict[str, Any]]) -> str:
    """One row per benchmark: return of the final greedy policy, its interval over seeds, the bar, and the time a seed took."""
    head = [
        "benchmark",
        "task",
        "preset",
        "decisions",
        "seeds",
        "return (95 % interval)",
        "worst seed",
        "while training",
        "to reach",
        "aim",
        "reached",
        "min/seed",
    ]
    rows = []
    for r in results:
        low, high = r.get("ci95") or (None, None)
        span = f" ({number(low)} to {number(high)})" if low is not None else ""
        worst = number(min(r["means"])) if r.get("means") else "–"
        during = [x for x in r.get("training_returns") or () if x is not None]
        measured = [number(r["mean"]) + span, worst, number(sum(during) / len(during)) if during else "–"]
        reached = "–" if r.get("reach") is None else yes(r.get("reached"))
        bars = [number(r.get("reach")), number(r.get("aim")), reached]
        measured[0] += " (success)" if r.get("measure") == "success" else ""
        run = [f"`{r['name']}`", r["task"], preset_of(r), f"{r['total_steps']:,}", str(seeds_of(r))]
        rows.append([*run, *measured, *bars, minutes(r.get("seconds_per_seed"))])
    return table(head, rows) + provenance(results)


def speed(results: Sequence[dict[str, Any]]) -> str:
    """One row per comparison: steps per second of both, the median ratio of alternating pairs, and the spread."""
    head = ["benchmark", "setting", "ours, steps/s", "peer, steps/s", "ratio (median)", "from – to", "compile, s"]
    rows = []
    for r in results:
        for setting, part in flat(r):
            pairs = part["pairs"]
            middle = sorted(pairs, key=lambda p: p["ratio"])[len(pairs) // 2]
            spread = f"{part['ratio_min']:.2f} – {part['ratio_max']:.2f}"
            cells = [
                number(middle["ours"]),
                number(middle["peer"]),
                f"{part['ratio_median']:.2f}×",
                spread,
                number(part.get("ours_compile_s")),
            ]
            rows.append([f"`{r['name']}`", setting, *cells])
    return (table(head, rows) if rows else "") + provenance(results)


def checks(results: Sequence[dict[str, Any]]) -> str:
    """One row for each thing that was to be shown: what, what was asked, what was found."""
    head = ["benchmark", "what", "to reach", "measured", "reached"]
    rows = []
    for r in results:
        for part in r["rows"]:
            found = part["measured"]
            shown = found if isinstance(found, str) else f"{found:,}" if isinstance(found, int) else f"{found:,.4g}"
            rows.append([f"`{r['name']}`", part["what"], part["reach"], shown, yes(part["reached"])])
    return table(head, rows) + provenance(results)


def _tictactoe(r: dict[str, Any]) -> list[list[str]]:
    bar = f"{r['reach']['losses']} lost, {r['reach']['seconds'] / 60:.0f} minutes"
    seconds, losses = ([seed[name] for seed in r["seeds"]] for name in ("seconds", "losses"))
    found = f"{', '.join(map(str, losses))} lost after {min(seconds):.0f} to {max(seconds):.0f} s ({len(losses)} seeds)"
    return [["tic-tac-toe: lines of play lost, all replies, both sides", bar, found, yes(r["reached"])]]


def _connect_four(r: dict[str, Any]) -> list[list[str]]:
    head = f"connect four, seed {r['seed']}, {r['minutes']:.0f} minutes, {r['moves']:,} moves; {r['simulations']} simulations a move: "
    return [
        [
            f"{head}{name}",
            f"{part['reach']:.0%}" if "reach" in part else "–",
            f"{part['points']:.1%} ({part['wins']} won, {part['draws']} drawn, {part['losses']} lost)",
            yes(part["reached"]) if "reach" in part else "–",
        ]
        for name, part in r["matches"].items()
    ]


def _search_time(r: dict[str, Any]) -> list[list[str]]:
    what = f"{r['network']}, batch {r['batch']}, {r['simulations']} simulations: time on top of the network's own"
    return [
        [
            f"{kind} search, {what}",
            f"{r['reach']:.0%}",
            f"{part['overhead']:.1%} ({part['microseconds_a_simulation']:.0f} µs a simulation)",
            yes(part["reached"]),
        ]
        for kind, part in r["searches"].items()
    ]


def _selfplay_time(r: dict[str, Any]) -> list[list[str]]:
    middle = sorted(r["pairs"], key=lambda pair: pair["ratio"])[len(r["pairs"]) // 2]
    shown = f"{middle['ours_simulations_a_second']:,.0f} and {middle['peer_simulations_a_second']:,.0f}, {r['ratio_median']:.1f}×"
    what = "self-play, connect four: simulations a second, ours and OpenSpiel's AlphaZero"
    return [[what, f"{r['reach']:.0f}×", shown, yes(r["reached"])]]


def _honest(r: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"`{row['a']}` against `{row['b']}`, {row['games']} games",
            "–",
            f"{row['score']:.1%} (Elo {row['elo_low']:+.0f} to {row['elo_high']:+.0f})",
            "–",
        ]
        for row in r["rows"]
    ]


def _fuzz(r: dict[str, Any]) -> list[list[str]]:
    return [[f"{row['protocol']}, {row['game']}: random commands", "all answered", f"{row['commands']:,}", "yes"] for row in r["rows"]]


def _finish(r: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{row['game']}: killed, resumed, two games over {row['protocol'].upper()}",
            "finished",
            f"killed at {row['killed_at']:,} moves, went on to {row['moves']:,}; games of {' and '.join(map(str, row['plies']))} plies",
            yes(row["works"]),
        ]
        for row in r["rows"]
    ]


def _perft(r: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"perft, {row['game']}{', ' + row['position'] if row['position'] else ''}, depth {len(row['published'])}",
            f"{row['published'][-1]:,}",
            f"{row['ours'][-1]:,}",
            yes(row["equal"]),
        ]
        for row in r["rows"]
    ]


def _mistakes(r: dict[str, Any]) -> list[list[str]]:
    """Each set against minimax of depth 5 on the same positions, where it was measured too."""
    bars = {(row["phase"], row["difficulty"]): row["percent"] for row in r["rows"] if row["player"] == "minimax:5"}
    rows = []
    for row in r["rows"]:
        bar = bars.get((row["phase"], row["difficulty"])) if row["player"] != "minimax:5" else None
        what = f"connect four, mistakes of `{row['player']}`: {row['phase']}, {row['difficulty']} ({row['positions']} positions)"
        verdict = "–" if bar is None else yes(row["percent"] < bar or row["percent"] == bar == 0)
        rows.append([what, "–" if bar is None else f"below {bar:.1f}%" if bar else "0.0%", f"{row['percent']:.1f}%", verdict])
    return rows


def _two_hours(r: dict[str, Any]) -> list[list[str]]:
    rows = []
    for opponent, row in r["matches"].items():
        what = (
            f"{r['game']}, seed {r['seed']}, {r['minutes']:.0f} minutes, {r['moves']:,} moves; {r['simulations']} simulations: {opponent}"
        )
        score = "none finished" if row["score"] is None else f"{row['score']:.1%}"
        found = f"{score} ({row['wins']} won, {row['draws']} drawn, {row['losses']} lost)"
        rows.append([what, *((f"{row['reach']:.0%}", found, yes(row["reached"])) if "reach" in row else ("–", found, "–"))])
    return rows


def share(part: dict[str, Any]) -> str:
    """A match's share of points with its interval."""
    low, high = part["ci95"]
    return f"{part['points']:.1%} ({low:.1%} to {high:.1%})"


def _ablations(r: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, row in r["rows"].items():
        head = f"connect four, {r['minutes']:g} minutes of a core, seed {', '.join(map(str, r['seeds']))}, {name}: against "
        rows += [[head + opponent, "–", share(row[opponent]), "–"] for opponent in ("minimax-5", "preset") if opponent in row]
    return rows


def _alphago(r: dict[str, Any]) -> list[list[str]]:
    shown = {
        "sl": lambda line: f"{line['ratio']:.2f}× ({line['test']['sl']:.1%} and {line['test']['rollout']:.1%})",
        "rl": share,
        "value": lambda line: f"{line['share_of_constant']:.0%} ({line['test']['mse']:.3f} of {line['constant_mse']:.3f})",
        "value_gap": lambda line: f"{line['gap']:.3f} ({line['gap_ci95'][0]:.3f} to {line['gap_ci95'][1]:.3f})",
        "lambda_0": share,
        "lambda_1": share,
        "whole_games": lambda line: f"gap {line['gap']:.3f}",
        "rl_prior": share,
    }
    what = {
        "sl": "p_σ's top-1 accuracy over p_π's",
        "rl": "p_ρ against p_σ, 400 games",
        "value": "v_θ's error, share of the best constant's",
        "value_gap": "v_θ's error: test less training",
        "lambda_0": "λ = 0.5 against λ = 0",
        "lambda_1": "λ = 0.5 against λ = 1",
        "whole_games": "v_θ learnt from whole games: test less training",
        "rl_prior": "p_σ as the prior against p_ρ",
    }
    rows = []
    for name, words in what.items():
        line = r["lines"].get("value" if name == "value_gap" else name)
        if line is None:
            continue
        bar, sign = r["bars"].get(name, {}).get("reach"), "at most" if name in ("value", "value_gap") else "at least"
        rows.append([words, f"{sign} {bar:g}" if bar else "–", shown[name](line), yes(r["reached"][name]) if bar else "–"])
    return rows


GAMES = {
    "alphazero": {
        "tictactoe": _tictactoe, "connect_four": _connect_four, "mistakes": _mistakes, "ablations": _ablations,
        **{f"two_hours_{game}": _two_hours for game in ("othello", "gardner_chess", "animal_shogi", "go_9x9")},
        "search_time": _search_time, "selfplay_time": _selfplay_time,
    },
    "alphago": {"alphago": _alphago},
    "games": {"honest": _honest, "fuzz": _fuzz, "perft": _perft, "finish": _finish},
}  # fmt: skip
"""The result files of a page, and how each becomes rows."""


def games(results: Sequence[dict[str, Any]], page: str) -> str:
    """One row for each thing that a page on board games shows."""
    shown = [r for name in GAMES[page] for r in results if r["name"] == name]
    rows = [row for r in shown for row in GAMES[page][r["name"]](r)]
    return table(["what", "to reach", "measured", "reached"], rows) + provenance(shown) if rows else ""


def flat(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The comparisons in a result file: its own pairs, or those of each named setting under `settings` or `results`."""
    if result.get("pairs"):
        return [(settings_words(result.get("settings")), result)]
    for key in ("results", "settings", "rows"):
        parts = result.get(key)
        named = parts.items() if isinstance(parts, dict) else [(p.get("name", ""), p) for p in parts or [] if isinstance(p, dict)]
        found = [(str(name), part) for name, part in named if isinstance(part, dict) and part.get("pairs")]
        if found:
            return found
    return []


def settings_words(settings: Any) -> str:
    if isinstance(settings, str):
        return settings
    known = settings if isinstance(settings, dict) else {}
    # Ours alone, so it is told whatever else has no room.
    words = ["overlap"] if known.get("overlap") else []
    words += [f"{k} {v}" for k, v in known.items() if isinstance(v, int | float | str) and k != "overlap"]
    while len(", ".join(words)) > 90:
        words.pop()
    return ", ".join(words) or "–"


def provenance(results: Sequence[dict[str, Any]]) -> str:
    """Where and when: machine, commit and dates of the rows above."""
    machines = sorted({f"{r['machine'].get('cpu', '?')}, {r['machine'].get('cores', '?')} cores" for r in results if r.get("machine")})
    commits = sorted({str(r["commit"])[:10] for r in results if r.get("commit")})
    days = sorted({str(r["date"])[:10] for r in results if r.get("date")})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "?"
    where = f"{when} on {'; '.join(machines) or '?'}, commit {', '.join(commits) or '?'}"
    return f"\nMeasured {where}. Commands, seeds and versions: `benchmarks/results`.\n"


def table1(r: dict[str, Any]) -> str:
    """The PPO paper's Table 1: the normalised score of each surrogate, its interval over seeds, task by task, and the paper's."""
    tasks = [task.rpartition("-v")[0] for task in r["tasks"]]
    rows = [
        [
            row["setting"],
            f"{row['score']:.2f} ({row['ci95'][0]:.2f} to {row['ci95'][1]:.2f})",
            *(f"{row['by_task'][task]:.2f}" for task in r["tasks"]),
            f"{row['paper']:.2f}",
        ]
        for row in r["rows"]
    ]
    text = table(["surrogate", "score (95 % interval)", *tasks, "the paper"], rows)
    if r["reached"]:
        low, high = r["reached"]["difference_ci95"]
        above = "above 0" if r["reached"]["reached"] else "**not above 0**"
        text += f"\nClip 0.2 less no clipping or penalty: {low:.2f} to {high:.2f}, {above}."
        text += f" {r['budget']:,} decisions, {len(r['seeds'])} seeds.\n"
    return text + provenance([r])


def best(r: dict[str, Any], learned: Sequence[dict[str, Any]]) -> str:
    """Each learning row of the task beside what the best decisions collect from the same starts, over the seeds that both have."""
    head = ["benchmark", "seeds", "measured", "the best there is, from the same starts", "left open", "bar"]
    rows = []
    for row in learned:
        reached, there_is = (dict(zip(x["seeds"], x["means"], strict=True)) for x in (row, r))
        seeds = sorted(reached.keys() & there_is.keys())
        if row["task"] != r["task"] or not seeds:
            continue
        own, top = ([means[seed] for seed in seeds] for means in (reached, there_is))
        shown = [f"{number(sum(xs) / len(xs))} ({number(low)} to {number(high)})" for xs in (own, top) for low, high in [bootstrap(xs)]]
        left = sum(b - a for a, b in zip(own, top, strict=True)) / len(seeds)
        rows.append([f"`{row['name']}`", str(len(seeds)), *shown, number(left), number(row["reach"])])
    return table(head, rows) + provenance([r])


def sides(r: dict[str, Any]) -> str:
    """Mean returns of each side at each budget, with their intervals over seeds, and whether ours are below: by the intervals, apart."""
    budgets = list(r["sides"]["ours"]["at"])
    rows = []
    for side, found in r["sides"].items():
        cells = [f"{x['mean']:,.0f} ({x['ci95'][0]:,.0f} to {x['ci95'][1]:,.0f})" for x in (found["at"][budget] for budget in budgets)]
        rows.append([side, str(len(found["at"][budgets[0]]["means"])), *cells])
    ours, theirs = (found["at"] for found in r["sides"].values())
    below = [budget for budget in budgets if ours[budget]["ci95"][1] < theirs[budget]["ci95"][0]]
    text = table(["side", "seeds", *(f"after {int(budget):,} decisions" for budget in budgets)], rows)
    return text + f"\n{'**Ours are below**' if below else 'By these intervals ours are not below'}.\n" + provenance([r])


FEWEST_PAIRS = 3
"""Fewer pairs than this are shown without a verdict: their median is no more than one reading."""
WORKERS_SECONDS = 40.0
"""How long a run of `benchmarks.speed.a3c_workers` is where its command does not say."""


def seconds_of_pairs(r: dict[str, Any]) -> float:
    """How long each run of a3c_workers.json measured: its own field, else what its command says."""
    said = re.search(r"--seconds[ =]([\d._]+)", r["command"])
    return float(r.get("seconds") or (said[1] if said else WORKERS_SECONDS))


def seconds_to(side: dict[str, Any], score: float) -> float | None:
    """When the mean of the last training episodes first was at least the score, in a run of a3c_workers.json."""
    return next((seconds for _, seconds, mean in side["curve"] if mean >= score), None)


def workers(r: dict[str, Any]) -> str:
    """A3C's speed-up: decisions per second, then the time to the reference score."""
    most = max(len(row["pairs"]) for row in r["throughput"])
    head = [
        "method",
        "mode",
        "environments a learner",
        "pairs",
        "one, steps/s",
        "two, steps/s",
        "ratio" if most == 1 else "ratio (median)",
        "to reach",
        "reached",
    ]
    rows = []
    for row in r["throughput"]:
        pairs = row["pairs"]
        middle = sorted(pairs, key=lambda p: p["ratio"])[len(pairs) // 2]
        measured = [
            f"{len(pairs)} of {seconds_of_pairs(r):g} s",
            number(middle["one"]),
            number(middle["two"]),
            f"{row['ratio_median']:.2f}×",
        ]
        bar = f"{row['reach']}×" if "reach" in row else "–"
        verdict = yes(row["reached"]) if "reach" in row and len(pairs) >= FEWEST_PAIRS else "–"
        rows.append([row["method"], row["mode"], str(row.get("envs", 1)), *measured, bar, verdict])
    text = table(head, rows)
    if r["time_to_score"]:
        head = ["method", "seed", f"{r['score_task']}, up to", "one, minutes", "two", "speed-up", "the paper, two threads"]
        rows = []
        for run, share in itertools.product(r["time_to_score"], (2 / 3, 1.0)):
            one, two = (seconds_to(run[side], share * r["score"]) for side in ("one", "two"))
            times = ["not reached" if t is None else f"{t / 60:.1f}" for t in (one, two)]
            speed_up = "–" if one is None or two is None else f"{one / two:.2f}×"
            rows.append([run["method"], str(run["seed"]), f"{share * r['score']:g}", *times, speed_up, f"{run['paper']}×"])
        text += "\n" + table(head, rows)
    return text + provenance([r])


def environments(r: dict[str, Any]) -> str:
    """What more environments cost in-graph."""
    head = ["environments", "steps/s", "the program's memory, MB", "State, MB", "compile, s"]
    rows = [
        [
            f"{row['num_envs']:,}",
            number(row["steps_per_second"]),
            f"{row['program_bytes'] / 1e6:.1f}",
            f"{row['state_bytes'] / 1e6:.2f}",
            f"{row['compile_s']:.1f}",
        ]
        for row in r["rows"]
    ]
    return table(head, rows) + provenance([r])


def accelerator(r: dict[str, Any]) -> str:
    """In-graph systems on an accelerator."""
    head = ["system", "task", "environments", "steps/s", "to the first turn, s", "memory, GB"]
    rows = [
        [
            f"`{row['system']}`",
            f"`{row['task']}`",
            f"{row['num_envs']:,}",
            number(row["steps_per_second"]),
            f"{row['start_s']:.0f}",
            number(None if row["peak_bytes"] is None else row["peak_bytes"] / 1e9),
        ]
        for row in r["rows"]
    ]
    d = r["device"]
    products = ", ".join(f"{d[f'matmul_{name}_flops'] / 1e12:.1f} TFLOP/s ({name})" for name in ("default", "highest"))
    return (
        table(head, rows)
        + f"\n{d['device']}, float32 matrix products at {products}. JAX {r['versions']['ours']['jax']}.\n"
        + provenance([r])
    )


PAGES_OWN = {"table1": table1, "sides": sides, "workers": workers, "environments": environments, "accelerator": accelerator}
PAGES_OWN_RESULT = {
    "table1": "ppo_table1",
    "sides": "sac_and_sb3",
    "workers": "a3c_workers",
    "environments": "num_envs",
    "accelerator": "accelerator",
}
"""Tables of one result file each, by kind: how they are made, and the file."""


def fill(
    text: str,
    learned: Sequence[dict[str, Any]],
    timed: Sequence[dict[str, Any]],
    checked: Sequence[dict[str, Any]] = (),
    curved: Sequence[dict[str, Any]] = (),
    played: Sequence[dict[str, Any]] = (),
) -> str:
    """The page `text` with every marked table made anew."""

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if match["kind"] == "learning":
            chosen = [r for r in learned if name is None or name == family(r)]
            body = learning(chosen) if chosen else NOTHING
        elif match["kind"] == "values":
            held = [r for r in learned if r.get("values") and all(r["values"])]
            body = values([r for r in held if name is None or name == family(r)]) or NOTHING
        elif match["kind"] == "updates":
            body = updates([r for r in timed if "milliseconds_at_roof" in r and (name is None or r["name"].startswith(name))]) or NOTHING
        elif match["kind"] == "memory":
            body = memory([r for r in timed if "replay_gb" in r]) or NOTHING
        elif match["kind"] == "best":
            own = [r for r in curved if r["name"] == f"{name}_best"]
            body = best(own[0], learned) if own else NOTHING
        elif match["kind"] in PAGES_OWN:
            own = [r for r in (*timed, *curved) if r["name"] == PAGES_OWN_RESULT[match["kind"]]]
            body = PAGES_OWN[match["kind"]](own[0]) if own else NOTHING
        elif match["kind"] == "games":
            body = games(played, match["name"]) or NOTHING
        elif match["kind"] == "checks":
            chosen = [r for r in checked if name is None or r["name"].startswith(name)]
            body = checks(chosen) if chosen else NOTHING
        else:
            chosen = [r for r in timed if flat(r) and (name is None or r["name"].startswith(name))]
            body = speed(chosen) if chosen else NOTHING
        return f"{match[1]}{body}{match[4]}"

    return MARKED.sub(made, text)


def values(results: Sequence[dict[str, Any]]) -> str:
    """One row per benchmark: what the final policies expected of the states they visited, what they got, and the difference with its spread
    over seeds (the smallest and the largest)."""
    head = ["benchmark", "seeds", "expected: mean Q of the greedy action", "got: mean discounted return", "overestimation", "from – to"]
    rows = []
    for r in results:
        expected, got, over = ([v[name] for v in r["values"]] for name in ("value_estimate", "discounted_return", "overestimation"))
        means = [number(sum(xs) / len(xs)) for xs in (expected, got, over)]
        rows.append([f"`{r['name']}`", str(len(over)), *means, f"{number(min(over))} – {number(max(over))}"])
    return table(head, rows) + provenance(results) if rows else ""


def updates(results: Sequence[dict[str, Any]]) -> str:
    """One row per network: the time of an update, and what its matrix products alone would take at the measured rate."""
    head = ["benchmark", "ms an update", "ms at the roof", "ratio"]
    rows = [
        [f"`{r['name']}`", number(r["milliseconds_median"]), number(r["milliseconds_at_roof"]), f"{r['ratio_to_roof']:.2f}×"]
        for r in results
    ]
    return table(head, rows) + provenance(results) if rows else ""


def memory(results: Sequence[dict[str, Any]]) -> str:
    """What a replay takes, and the most that the process around it took."""
    head = [
        "benchmark",
        "frames",
        "replay, GB",
        "process at its highest, GB",
        "above the replay and the start, GB",
        "with a checkpoint, GB",
    ]
    rows = [
        [
            f"`{r['name']}`",
            f"{r['frames']:,}",
            *(f"{r[name]:.2f}" for name in ("replay_gb", "peak_gb", "above_replay_gb", "peak_with_checkpoint_gb")),
        ]
        for r in results
    ]
    return table(head, rows) + provenance(results) if rows else ""


def _shares(r: dict[str, Any]) -> dict[str, float]:
    """A game's result file: the whole player's share of points, by opponent, where a game was finished."""
    found = {name: row.get("points", row.get("score")) for name, row in r["matches"].items() if ", " not in name}
    return {name: share for name, share in found.items() if share is not None}


Told = dict[str, tuple[list[str], list[float]]]
"""By preset: lines on what it reached, and the seconds of its seeds on one core, where they are known."""


def other_settings(r: dict[str, Any]) -> dict[str, Any]:
    """A learning result: what it set otherwise than its preset does on that task, but for the length. A setting that came since stood at
    its default."""
    module = studies.find(r["system"])[0]
    preset = systems.preset_for(module, r.get("preset"), r["task"])[2]
    now, plain = (json.loads(json.dumps(vars(module.Config(**settings)), default=str)) for settings in (preset, {}))
    was = {name: r.get("config", {}).get(name, plain[name]) for name in now if name != "total_steps"}
    return {name: value for name, value in was.items() if value != now[name]}


def _learned(results: Sequence[dict[str, Any]]) -> Told:
    """Of learning results of one preset those with its own settings; where there is none, all, with what they set otherwise."""
    others = [other_settings(r) for r in results]
    lines, seconds = [], []
    for r, other in zip(results, others, strict=True):
        if other and not all(others):
            continue
        low, high = r["ci95"]
        what = "success " if r.get("measure") == "success" else ""
        changed = "".join(f", {name} {value}" for name, value in other.items())
        seeds = f"{seeds_of(r)} seed{'s' if seeds_of(r) > 1 else ''}, {number(low)} to {number(high)}"
        lines.append(f"{r['task']}{changed} at {r['total_steps']:,}: {what}{number(r['mean'])} ({seeds})")
        seconds.append(statistics.fmean(r["seconds_per_seed"]))
    return {results[0]["preset"] or results[0]["system"]: (lines, seconds)}


def _tictactoe_told(r: dict[str, Any]) -> Told:
    lost, seconds = sum(seed["losses"] for seed in r["seeds"]), [seed["seconds"] for seed in r["seeds"]]
    line = f"tic-tac-toe: {lost} lines of play lost of all, as both sides ({len(seconds)} seeds)"
    return {r["preset"]: ([line], [statistics.fmean(seconds)])}


def _matches_told(r: dict[str, Any]) -> Told:
    game = r.get("game", r["name"])
    won = ", ".join(f"{share:.0%} against {name}" for name, share in _shares(r).items())
    line = f"{game} at {r['moves']:,}, {r['simulations']} simulations: {won} (1 seed)"
    return {str(systems.choose_preset(alphazero, f"pgx:{game}")): ([line], [60 * r["minutes"]])}


def _alphago_told(r: dict[str, Any]) -> Told:
    game, found = r["task"].removeprefix("pgx:"), r["lines"]
    said = {
        "sl": f"{found['sl']['test']['sl']:.1%} of the experts' moves in games held out, p_π {found['sl']['test']['rollout']:.1%}",
        "rl": f"{share(found['rl'])} of the points against p_σ",
        "value": f"error {found['value']['test']['mse']:.3f} in games held out, the best constant's {found['value']['constant_mse']:.3f}",
        "player": f"{share(found['lambda_0'])} of the points against v_θ alone, {share(found['lambda_1'])} against rollouts alone",
    }
    stages = {"sl": "alphago-sl", "rl": "alphago-rl", "value": "alphago-value", "player": "alphago"}
    presets = {stage: str(systems.choose_preset(systems.find(name)[0], r["task"])) for stage, name in stages.items()}
    return {preset: ([f"{game}: {said[stage]} (1 seed)"], [60 * r["minutes"][stage]]) for stage, preset in presets.items()}


def _rows_told(preset: str, words: Mapping[str, str]) -> Callable[[dict[str, Any]], Told]:
    """Of a method's result the rows named, in these words, and the seconds of a seed, where the file has them."""

    def told(r: dict[str, Any]) -> Told:
        rows = {row["what"].split(" (aim")[0]: row["measured"] for row in r["rows"]}
        seconds = r.get("seconds_per_seed", r.get("seconds", []))
        seconds = seconds.get("maml", []) if isinstance(seconds, dict) else seconds
        seconds = seconds if isinstance(seconds, list) else [seconds]
        return {preset: ([f"{said}: {number(rows[what])}" for what, said in words.items()], [statistics.fmean(seconds)] if seconds else [])}

    return told


def _as_they_are(*rows: str) -> dict[str, str]:
    return {row: row for row in rows}


def _sinusoid_told(r: dict[str, Any]) -> Told:
    error, tuned = "K = 5, squared error after {} of 10 steps", "the same, pre-trained and fine-tuned, after {}"
    own = _as_they_are(*(error.format(steps) for steps in (1, 5, 10)))
    own |= {"K = 10 after 1 step: below K = 5's": "K = 10, squared error after 1 step"}
    baseline = {tuned.format(steps): f"{error.format(steps)} of fine-tuning, at the best rate" for steps in (1, 5, 10)}
    lines = _rows_told("maml-sinusoid-pretrained", baseline)(r)["maml-sinusoid-pretrained"][0]
    return _rows_told("maml-sinusoid", own)(r) | {"maml-sinusoid-pretrained": (lines, [])}


def _thompson_told(r: dict[str, Any]) -> Told:
    measured = {row["what"].partition(":")[0]: str(row["measured"]).partition(",")[0] for row in r["rows"]}
    settings = r["settings"]
    words = f"batches of {settings['batch']} to a mean reward of {settings['threshold']}, {seeds_of(settings)} seeds"
    return {arm["preset"]: ([f"{words}: {measured[name]}"], []) for name, arm in r["arms"].items() if not arm["changed"]}


def _permuted_told(r: dict[str, Any]) -> Told:
    mode = r["modes"]["ewc"]
    low, high = mode["accuracy_ci95"]
    lines = [f"mean accuracy after all ten tasks: {mode['accuracy']:.1%} ({seeds_of(r)} seeds, {low:.1%} to {high:.1%})"]
    lines.append(f"share of the gap between forgetting and joint learning that is closed: {mode['gap_closed']:.1%}")
    return {"ewc-mnist": (lines, [statistics.fmean(r["seconds"]["ewc"])])}


def _games_in_turn_told(r: dict[str, Any]) -> Told:
    scored = f"{len(r['reference'])} MinAtar games in turn: sum of their scores, 1 each for a separate agent's, "
    return {
        f"{mode}-dqn": (
            [f"{scored}{number(r['means'][mode])} ({len(sums)} seeds, {number(min(sums))} to {number(max(sums))})"],
            [statistics.fmean(r["seconds"][mode])],
        )
        for mode, sums in r["sums"].items()
    }


_UCI = [f"{data}: {what}" for data in ("boston", "concrete", "energy", "wine", "yacht") for what in ("RMSE", "log likelihood")]
TOLD: dict[str, Callable[[dict[str, Any]], Told]] = {
    "tictactoe": _tictactoe_told,
    "connect_four": _matches_told,
    **{f"two_hours_{game}": _matches_told for game in ("othello", "gardner_chess", "animal_shogi", "go_9x9")},
    "alphago": _alphago_told,
    "ewc_permuted": _permuted_told,
    "ewc_dqn": _games_in_turn_told,
    "maml_halfcheetah": _rows_told(
        "maml-halfcheetah-direction", {"return before it": "return before any step", **_as_they_are("return after 1 step")}
    ),
    "maml_navigation": _rows_told(
        "maml-navigation", {"return after 1 steps": "return after 1 step", **_as_they_are("return after 2 steps")}
    ),
    "maml_omniglot_5way_1shot": _rows_told("maml-omniglot-laptop", _as_they_are("5-way 1-shot accuracy after 3 steps")),
    "maml_omniglot_5way_5shot": _rows_told("maml-omniglot-laptop-5shot", _as_they_are("5-way 5-shot accuracy after 3 steps")),
    "maml_sinusoid": _sinusoid_told,
    "mc-dropout-co2": _rows_told(
        "mc-dropout-co2",
        _as_they_are(
            "CO₂: the deviation past the data over that within",
            "CO₂: share of the weeks extrapolated to that lie within two deviations",
        ),
    ),
    "mc-dropout-rotated-digit": _rows_told(
        "mc-dropout-mnist",
        {
            "digits: accuracy on the test digits": "accuracy on the test digits",
            "rotated 1: entropy of the prediction upright, and where it is largest": "entropy of a 1 upright, and at its largest",
        },
    ),
    "mc-dropout-thompson": _thompson_told,
    "mc-dropout-uci": _rows_told("mc-dropout-uci", {row: f"{row}, rate and tau tuned on every split" for row in _UCI}),
}
"""What `flatirons list` says of a result file of games/ or methods/, by preset."""
NO_PRESETS = frozenset(
    {
        "ablations", "elo_connect_four", "elo_othello", "finish", "fuzz", "honest", "mistakes", "perft", "search_time", "selfplay_time",
    }
)  # fmt: skip
"""The result files there that are not of what a preset reaches: of a part of the program, of settings, or of runs that another file has."""


def measured(learned: Sequence[dict[str, Any]], played: Sequence[dict[str, Any]] = (), checked: Sequence[dict[str, Any]] = ()) -> str:
    """measured.json: per preset what it reached with its own settings, and the hours of a seed on one core, a range where rows differ."""
    by_preset: dict[str, list[dict[str, Any]]] = {}
    for r in learned:
        by_preset.setdefault(r["preset"] or r["system"], []).append(r)
    told = [_learned(results) for results in by_preset.values()]
    told += [TOLD[r["name"]](r) for r in (*played, *checked) if r["name"] in TOLD]
    found: dict[str, dict[str, Any]] = {}
    for preset, (lines, seconds) in (each for one in told for each in one.items()):
        entry = found.setdefault(preset, {"expected": [], "hours": []})
        entry["expected"] += lines
        entry["hours"] += [each / 3600 for each in seconds]
    for entry in found.values():
        if hours := entry.pop("hours"):
            ends = [f"{end:.1g}" for end in (min(hours), max(hours))]
            entry["hours"] = ends[0] if ends[0] == ends[1] else " to ".join(ends)
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def main(arguments: Sequence[str]) -> int:
    kinds = ("learning", "speed", "curves", "games", "tabular", "methods")
    learned, timed, curved, played, *checks = (load(ROOT / "benchmarks/results" / kind) for kind in kinds)
    checked = [result for kind in checks for result in kind]
    behind = []
    for page in [ROOT / MEASURED, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = page.read_text(encoding="utf-8") if page.exists() else ""
        new = measured(learned, played, checked) if page == ROOT / MEASURED else fill(old, learned, timed, checked, curved, played)
        if new != old:
            behind.append(str(page.relative_to(ROOT)))
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
    if behind:
        print(("behind its results: " if "--check" in arguments else "written: ") + ", ".join(behind))
    return 1 if behind and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
