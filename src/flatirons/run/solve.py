"""`flatirons solve`: a planner on a task whose transition probabilities are known, exact in float64. Nothing is trained or written."""

from __future__ import annotations

import difflib
import inspect
import time
from typing import Any

from flatirons import envs
from flatirons.envs.mdp import MDP
from flatirons.run.job import SET_BY_THE_RUN
from flatirons.systems import tabular
from flatirons.types import FlatironsError


def solve(method: str, task: Any, *, gamma: float = 0.99, env_options: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Run the planner `method`, one of `tabular.PLANNERS`, on `task`: a name such as "mdp:FrozenLake-v1", or an `MDP`.

    `options` are the planner's own (tolerance, max_iterations, penalty, temperature). Returns {"method", "task", "gamma", "iterations",
    "seconds", "value_of_start", "history", "v" `[S]`, "q" and "policy" `[S][A]`, "policy_value_of_start" by a linear solve, and where the
    task has a time limit "max_episode_steps" and the expected undiscounted returns within it, "policy_return" and "best_return"}.
    Raises FlatironsError for a planner that does not exist or does not take an option, and for a task that is no finite MDP.
    """
    if method not in tabular.PLANNERS:
        near = difflib.get_close_matches(method, tabular.PLANNERS, n=1, cutoff=0.4)
        raise FlatironsError(f"unknown planner {method!r}: {f'did you mean {near[0]!r}' if near else 'it is one of ' + _planners()}?")
    planner = tabular.PLANNERS[method]
    takes = inspect.signature(planner).parameters
    for name in options:
        if name not in takes:
            raise FlatironsError(f"{method} takes no {name}; leave it out")
    if options.get("max_iterations", 1) < 1 or not options.get("tolerance", 0.0) >= 0.0:
        raise FlatironsError("max_iterations must be at least 1, and tolerance at least 0")
    mdp = _mdp_of(task, env_options or {})
    began = time.perf_counter()
    plan = planner(mdp, gamma, **options)
    seconds = time.perf_counter() - began
    # The value of the start is the planner's own: soft for soft policy iteration, whose history says the same. Algorithm 1's is a cost.
    found: dict[str, Any] = {
        "method": method,
        "task": task if isinstance(task, str) else "an MDP",
        "gamma": gamma,
        "iterations": plan.iterations,
        "seconds": seconds,
        "value_of_start": float(mdp.start @ plan.v),
        "policy_value_of_start": float(mdp.start @ tabular.evaluate_policy(mdp, plan.policy, gamma)),
        "history": list(plan.history),
        "v": plan.v.tolist(),
        "q": [[value if ok else None for value, ok in zip(*row)] for row in zip(plan.q.tolist(), mdp.allowed, strict=True)],
        "policy": plan.policy.tolist(),
    }
    if mdp.max_episode_steps is not None:
        found["max_episode_steps"] = mdp.max_episode_steps
        found["policy_return"] = tabular.finite_horizon(mdp, mdp.max_episode_steps, plan.policy)
        found["best_return"] = tabular.finite_horizon(mdp, mdp.max_episode_steps)
    return found


def _planners() -> str:
    return ", ".join(tabular.PLANNERS)


def _mdp_of(task: Any, options: dict[str, Any]) -> MDP:
    if isinstance(task, MDP):
        return task
    if isinstance(task, str) and not task.startswith("mdp:"):
        raise FlatironsError(f"{task} does not tell its transition probabilities; solve a finite task, such as mdp:FrozenLake-v1")
    for name in SET_BY_THE_RUN.keys() & options.keys():
        raise FlatironsError(f"{name} is no option of the environment, for the planner sets it; leave it out")
    env = vars(envs.make(task, 1, **options)).get("env")
    if not isinstance(env, MDP):
        raise FlatironsError("this environment is no MDP; planners need one (flatirons.envs.mdp.MDP)")
    return env


def in_words(found: dict[str, Any]) -> str:
    """The lines that `flatirons solve` prints."""
    first, last = found["history"][0], found["history"][-1]
    count, what = found["iterations"], "eta, a cost" if found["method"] == "monotonic-policy-iteration" else "value of the start"
    lines = [
        f"{found['method']} on {found['task']}, gamma {found['gamma']:g}: {count:_} iterations in {found['seconds']:.2f} s",
        f"  {what:<28}{first:.9g} -> {last:.9g}",
        f"  {'its policy, discounted':<28}{found['policy_value_of_start']:.9g}, by a linear solve",
    ]
    if "policy_return" in found:
        within = f"its return in {found['max_episode_steps']} decisions"
        lines.append(f"  {within:<28}{found['policy_return']:.9g} (the best possible: {found['best_return']:.9g})")
    return "\n".join(lines)
