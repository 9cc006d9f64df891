"""What the tabular methods must show, each part into a result file: `python -m benchmarks.tabular.run [PART ...]`

    exact       FrozenLake, Taxi and CliffWalking against a linear solve that reads Gymnasium's tables by itself
    bound       eta(new) <= L + C D_KL^max on 10,000 random pairs of policies
    monotonic   Algorithm 1 on 200 processes whose states look alike in pairs, at the right C and at C = 0
    soft        soft policy iteration on 200 processes: Q never falls, the limit is soft value iteration's
    bias        the maximisation bias, 10,000 runs of Q-learning and of Double Q-learning
    walk        TD(0) on the five-state random walk, 10,000 runs

The bars stand in this file; those of `soft` and `walk` (1e-10 relative, 0.005) were settled after a first look at rounding and noise. All
rows of a part are in its file, with what was asked and what was found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons.envs import mdp as mdps
from flatirons.systems import tabular

Row = dict[str, Any]

DISCOUNTS = (0.9, 0.95, 0.99, 0.999, 1.0)
# (V*(s0) to six digits, the greedy policy's return within the limit, the best possible): cross-checks, typed from a published table.
KNOWN = {
    "FrozenLake-v1": (
        (0.068891, 0.180472, 0.542026, 0.785533, 0.823529), (0.7298, 0.7298, 0.7402, 0.7402, 0.7402), 0.7442,
    ),
    "FrozenLake8x8-v1": (
        (0.006411, 0.048250, 0.414640, 0.892635, 1.0), (0.7386, 0.7386, 0.8630, 0.8857, 0.8857), 0.9132,
    ),
}  # fmt: skip
LEFT_AT = (10, 50, 100, 200, 300)
LEFT = {"q-learning": (69, 86, 50, 16, 12), "double-q-learning": (50, 15, 10, 9, 7)}
WALK_AT = (10, 25, 50, 100)
WALK = {0.05: (0.175, 0.110, 0.054, 0.037), 0.1: (0.128, 0.058, 0.051, 0.055), 0.15: (0.095, 0.058, 0.067, 0.070)}


def row(what: str, reach: str, measured: Any, reached: bool) -> Row:
    return {"what": what, "reach": reach, "measured": measured, "reached": bool(reached)}


def at_most(what: str, bar: float, measured: float) -> Row:
    return row(what, f"at most {bar:g}", float(measured), measured <= bar)


# ------------------------------------------------------------------------------------------------------------------- exact


def values_by_linear_solve(name: str, policy: np.ndarray, gamma: float) -> np.ndarray:
    """V of a policy `[S, A]`, from Gymnasium's own table and nothing of ours: (I - gamma P) V = r."""
    import gymnasium

    table: Any = gymnasium.make(name, disable_env_checker=True).unwrapped
    matrix, right = np.eye(len(table.P)), np.zeros(len(table.P))
    for state, actions in table.P.items():
        for action, outcomes in actions.items():
            for probability, successor, reward, terminated in outcomes:
                right[state] += policy[state, action] * probability * reward
                if not terminated:
                    matrix[state, successor] -= gamma * policy[state, action] * probability
    return np.linalg.solve(matrix, right)


def exact() -> dict[str, Any]:
    solved = []
    problems = [(name, gamma) for name in KNOWN for gamma in DISCOUNTS] + [("Taxi-v4", 1.0), ("CliffWalking-v1", 1.0)]
    for name, gamma in problems:
        process = mdps.make(name)
        plan, by_q = tabular.value_iteration(process, gamma), tabular.q_value_iteration(process, gamma)
        value = values_by_linear_solve(name, plan.policy, gamma)
        # That the solve is of an optimal policy: no action promises more than its value.
        regret = np.max(tabular.best(process, tabular.lookahead(process, value, gamma)) - value)
        starts = process.start > 0
        limit = process.max_episode_steps
        solved.append(
            {
                "task": name, "gamma": gamma, "sweeps": plan.iterations, "value_of_start": float(process.start @ plan.v),
                "worst_start": float(plan.v[starts].min()), "best_start": float(plan.v[starts].max()),
                "value_error": float(np.max(np.abs(plan.v - value))), "q_error": float(np.max(np.abs(by_q.v - value))),
                "regret": float(regret),
                "policy_return": None if limit is None else tabular.finite_horizon(process, limit, plan.policy),
                "best_return": None if limit is None else tabular.finite_horizon(process, limit),
            }
        )  # fmt: skip
    known = {(name, gamma): (v, r, KNOWN[name][2]) for name in KNOWN for gamma, v, r in zip(DISCOUNTS, *KNOWN[name][:2], strict=True)}
    lakes = [(s, known[s["task"], s["gamma"]]) for s in solved if (s["task"], s["gamma"]) in known]
    taxi, cliff = solved[-2:]

    def off_by(field: str, column: int) -> float:
        return max(abs(s[field] - k[column]) for s, k in lakes)

    rows = [
        at_most("value iteration: largest |V − linear solve|, 12 problems", 1e-8, max(s["value_error"] for s in solved)),
        at_most("Q-value iteration: the same", 1e-8, max(s["q_error"] for s in solved)),
        at_most("largest gain any action promises over that solve", 1e-8, max(s["regret"] for s in solved)),
        at_most("FrozenLake: |V(s₀) − the six-digit table|, ten discounts", 5.1e-7, off_by("value_of_start", 0)),
        at_most("FrozenLake: |greedy return in the limit − the four-digit table|", 5.1e-5, off_by("policy_return", 1)),
        at_most("FrozenLake: |best possible return − the four-digit table|", 5.1e-5, off_by("best_return", 2)),
        at_most("Taxi: |mean optimal return over 300 starts − 7.93|", 1e-8, abs(taxi["value_of_start"] - 7.93)),
        row("Taxi: returns from", "3 to 15", f"{taxi['worst_start']:.6f} to {taxi['best_start']:.6f}",
            abs(taxi["worst_start"] - 3) < 1e-8 and abs(taxi["best_start"] - 15) < 1e-8),
        at_most("CliffWalking: |optimal return + 13|", 1e-8, abs(cliff["value_of_start"] + 13.0)),
    ]  # fmt: skip
    return {"settings": {"tolerance": 1e-10}, "solved": solved, "rows": rows}


# --------------------------------------------------------------------------------------------------- Algorithm 1 and its bound


def bound(pairs: int = 10_000) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    violations, without = 0, 0
    tightest, identity = 0.0, 0.0
    for i in range(pairs):
        num_states, num_actions = int(rng.integers(2, 9)), int(rng.integers(2, 6))
        process = mdps.random_mdp(i, num_states, num_actions, num_successors=int(rng.integers(1, num_states + 1)))
        gamma = float(rng.uniform(0.05, 0.99))
        old, other = (rng.dirichlet(np.full(num_actions, rng.choice([0.3, 1.0, 5.0])), num_states) for _ in range(2))
        old = 0.999 * old + 0.001 / num_actions
        step = float(10.0 ** rng.uniform(-4.0, 0.0)) if i % 2 else 1.0  # every other pair is close together
        new = (1.0 - step) * old + step * (0.999 * other + 0.001 / num_actions)
        cost, surrogate = tabular.eta(process, new, gamma), tabular.surrogate(process, old, new, gamma)
        penalty = tabular.penalty_coefficient(process, old, gamma) * tabular.max_kl(old, new)
        slack = 1e-10 * max(1.0, abs(cost))
        violations += cost > surrogate + penalty + slack
        without += cost > surrogate + slack
        tightest = max(tightest, (cost - surrogate) / max(penalty, 1e-300)) if penalty > 1e-9 else tightest
        advantages = tabular.advantage(process, old, gamma)
        by_identity = tabular.eta(process, old, gamma) + np.sum(tabular.visitation(process, new, gamma)[:, None] * new * advantages)
        identity = max(identity, abs(by_identity - cost) / max(1.0, abs(cost)))
    rows = [
        row(f"η(π̃) > L + C·D_KL^max, of {pairs:,} pairs", "0", int(violations), violations == 0),
        row("η(π̃) > L, the same without the penalty", "more than 0, or the test could not fail", int(without), without > 0),
        at_most("η(π̃) = η(π) + Σ ρ_π̃ π̃ A_π: largest error, relative above 1", 1e-10, identity),
    ]
    settings = {"pairs": pairs, "states": "2-8", "actions": "2-5", "gamma": "0.05-0.99"}
    return {"settings": settings, "largest_share_of_the_penalty_used": tightest, "rows": rows}


ALIAS = np.array([0, 0, 1, 1, 2, 2])


def monotonic(processes: int = 200, iterations: int = 30, gamma: float = 0.9) -> dict[str, Any]:
    falls = {}
    for name, penalty in (("right", None), ("none", 0.0)):
        steps, rises, rising, fell, largest = 0, 0, 0, 0, 0.0
        for i in range(processes):
            process = mdps.random_mdp(i, len(ALIAS), 3)
            first = np.random.default_rng(i).dirichlet(np.ones(3), 3)[ALIAS]
            plan = tabular.monotonic_policy_iteration(process, gamma, policy=first, alias=ALIAS, penalty=penalty, max_iterations=iterations)
            changes = np.diff(plan.history)
            rose = changes > 1e-12 * max(1.0, np.max(np.abs(plan.history)))
            steps, rises, largest = steps + len(changes), rises + int(rose.sum()), max(largest, float(changes.max(initial=0.0)))
            rising += bool(rose.any())
            fell += plan.history[-1] < plan.history[0] - 1e-6
        falls[name] = {
            "steps": steps,
            "rises": rises,
            "processes_where_eta_rose": rising,
            "processes_where_eta_fell": int(fell),
            "largest_rise": largest,
        }
    right, none = falls["right"], falls["none"]
    rows = [
        row(f"C = 2εγ/(1−γ)²: steps in which η rose, of {right['steps']:,}", "0", right["rises"], right["rises"] == 0),
        row(f"C = 2εγ/(1−γ)²: processes where η fell, of {processes}", f"{processes}", right["processes_where_eta_fell"],
            right["processes_where_eta_fell"] == processes),
        row(f"C = 0: steps in which η rose, of {none['steps']:,}", "more than 0", none["rises"], none["rises"] > 0),
    ]  # fmt: skip
    settings = {"processes": processes, "states": len(ALIAS), "seen as": 3, "actions": 3, "iterations": iterations, "gamma": gamma}
    return {"settings": settings, "found": falls, "rows": rows}


def soft(processes: int = 200) -> dict[str, Any]:
    fall, restricted_fall, apart, scaled = 0.0, 0.0, 0.0, 0.0
    for i in range(processes):
        rng = np.random.default_rng(i)
        process = mdps.random_mdp(i, int(rng.integers(2, 9)), 4)
        gamma, temperature = float(rng.uniform(0.1, 0.99)), float(10.0 ** rng.uniform(-2.0, 1.0))
        members = rng.dirichlet(np.ones(4), 12)
        fall = max(fall, largest_fall(process, gamma, temperature, np.exp))
        restricted_fall = max(restricted_fall, largest_fall(process, gamma, temperature, tabular.onto(members)))
        plan = tabular.soft_policy_iteration(process, gamma, temperature=temperature)
        limit = tabular.soft_value_iteration(process, gamma, temperature=temperature)
        apart = max(apart, float(np.max(np.abs(plan.q - limit.q))))
        k = 1.0 / temperature
        louder = mdps.MDP(process.probability, process.next_state, k * process.reward, process.terminated, process.start)
        scaled = max(scaled, float(np.max(np.abs(tabular.soft_policy_iteration(louder, gamma).policy - plan.policy))))
    rows = [
        at_most(f"largest fall of any Q(s, a) in an iteration, {processes} processes, Π = all", 1e-10, fall),
        at_most("the same, Π = 12 distributions", 1e-10, restricted_fall),
        at_most("largest |Q − soft value iteration's|", 1e-8, apart),
        at_most("rewards × k at α = 1 against α = 1/k: largest difference of the policies", 1e-8, scaled),
    ]
    return {"settings": {"processes": processes, "temperature": "0.01-10", "gamma": "0.1-0.99"}, "rows": rows}


def largest_fall(process: mdps.MDP, gamma: float, temperature: float, project: Callable[[np.ndarray], np.ndarray]) -> float:
    """The most that any entry of Q fell in 12 iterations of soft policy iteration, relative to the largest (above 1)."""
    pi = project(np.log(tabular.uniform(process)))
    q, fall = tabular.soft_evaluate(process, pi, gamma, temperature), 0.0
    for _ in range(12):
        pi = project(tabular.boltzmann(process, q, temperature)[0])
        previous, q = q, tabular.soft_evaluate(process, pi, gamma, temperature)
        fall = max(fall, float(np.max(previous - q) / max(1.0, np.max(np.abs(q)))))
    return fall


# ------------------------------------------------------------------------------------------------------------------ learners


def lefts(method: str, runs: int, episodes: int) -> np.ndarray:
    """Whether each episode of each run began by going left, bool `[runs, episodes]`: one compiled program for all runs."""
    import jax
    import jax.numpy as jnp

    from flatirons import envs
    from flatirons.data import rollout

    task: Any = envs.make("mdp:maximisation-bias", 1)
    config: Any = tabular.Config(**tabular.PRESETS[f"{method}-bias"].config)

    def one_run(key: Any) -> Any:
        def turn(state: Any, _: Any) -> Any:
            collector, seen, _ = rollout.rollout(config, task, tabular.policy, tabular.actor(state), state.collector, 1)
            state, _ = tabular.update(config, task, state._replace(collector=()), seen)
            return state._replace(collector=collector), jnp.where(seen.first[0, 0], seen.action[0, 0], -1).astype(jnp.int8)

        # An episode lasts two decisions at most.
        return jax.lax.scan(turn, tabular.init(config, task, key), None, length=2 * episodes)[1]

    first_actions = np.asarray(jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(0), runs)))
    return np.array([row[row >= 0][:episodes] == 1 for row in first_actions])


def bias(runs: int = 10_000, episodes: int = 300) -> dict[str, Any]:
    began, began_cpu = time.perf_counter(), time.process_time()
    curves = {method: 100.0 * lefts(method, runs, episodes).mean(axis=0) for method in LEFT}
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    rows, deviation = [], 0.0
    for method, wanted in LEFT.items():
        found = [float(curves[method][at - 10 : at].mean()) for at in LEFT_AT if at <= episodes]
        off = max(abs(f - w) for f, w in zip(found, wanted))
        deviation = max(deviation, off)
        shown = " / ".join(f"{f:.1f}" for f in found)
        rows.append(
            row(f"{method}: % left at episodes {'/'.join(map(str, LEFT_AT))}", f"{'/'.join(map(str, wanted))} ± 2", shown, off <= 2.0)
        )
    rows.append(row("both methods, compiling included, seconds", "below 10 (aim)", round(seconds, 2), seconds < 10.0))
    settings = {"runs": runs, "episodes": episodes, "epsilon": 0.1, "alpha": 0.1, "actions in B": 10, "mean of the last": 10}
    return {
        "settings": settings, "largest_deviation": deviation, "training_seconds": seconds, "training_cpu_seconds": cpu_seconds,
        "percent_left": {method: [round(float(x), 3) for x in curve] for method, curve in curves.items()}, "rows": rows,
    }  # fmt: skip


def walk(runs: int = 10_000, decisions: int = 3_000) -> dict[str, Any]:
    import dataclasses

    import jax
    import jax.numpy as jnp

    from flatirons import envs

    task: Any = envs.make("mdp:random-walk", 1)
    truth = jnp.arange(1, 6) / 6.0
    base: Any = tabular.Config(**tabular.PRESETS["td-0"].config)

    def one_run(config: Any, key: Any) -> Any:
        """RMS error after the episodes of WALK_AT, and how many episodes there were."""

        def turn(c: Any, _: Any) -> Any:
            state, kept, count = c
            state, metrics = tabular.step(config, task, state)
            after = count + metrics["episodes"].count
            error = jnp.sqrt(jnp.mean(jnp.square(state.params["values"][0, :, 0] - truth)))
            marks = jnp.array(WALK_AT)
            return (state, jnp.where((marks > count) & (marks <= after), error, kept), after), None

        start = (tabular.init(config, task, key), jnp.zeros(len(WALK_AT)), jnp.int32(0))
        _, kept, count = jax.lax.scan(turn, start, None, length=decisions)[0]
        return kept, count

    trained = jax.jit(jax.vmap(one_run, in_axes=(None, 0)))
    found, rows, fewest = {}, [], 10**9
    for alpha, wanted in WALK.items():
        kept, count = trained(dataclasses.replace(base, learning_rate=alpha), jax.random.split(jax.random.key(0), runs))
        fewest = min(fewest, int(jnp.min(count)))
        found[str(alpha)] = [float(x) for x in np.asarray(kept).mean(axis=0)]
        off = max(abs(f - w) for f, w in zip(found[str(alpha)], wanted, strict=True))
        shown = " / ".join(f"{f:.3f}" for f in found[str(alpha)])
        rows.append(
            row(f"TD(0), α = {alpha}: RMS error after {'/'.join(map(str, WALK_AT))} episodes",
                f"{'/'.join(f'{w:.3f}' for w in wanted)} ± 0.005", shown, off <= 0.005)
        )  # fmt: skip
    assert fewest >= max(WALK_AT), f"a run ended only {fewest} episodes"
    return {"settings": {"runs": runs, "decisions": decisions, "initial_value": 0.5}, "rms": found, "rows": rows}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "exact": exact, "bound": bound, "monotonic": monotonic, "soft": soft, "bias": bias, "walk": walk,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "tabular", help="folder of the result files")
    args = parser.parse_args()
    for name in args.parts or PARTS:
        result = header(f"tabular-{name}", "benchmarks.tabular.run")
        began = time.perf_counter()
        found = PARTS[name]()
        found["seconds"] = round(time.perf_counter() - began, 2)
        rows = found.pop("rows")
        result |= {"versions": versions(("flatirons", "jax", "jaxlib", "numpy", "gymnasium")), **found, "rows": rows}
        result["reached"] = all(r["reached"] for r in rows)
        write(args.out / f"tabular-{name}.json", result)
        for r in rows:
            print(
                f"{name}: {'reached' if r['reached'] else 'NOT REACHED'}: {r['what']}: {r['measured']} (to reach: {r['reach']})", flush=True
            )


if __name__ == "__main__":
    main()
