"""Tabular methods on a finite MDP: planners that know its arrays, and TD(0), Q-learning and Double Q-learning, which only sample it.

Planners are plain functions in NumPy's float64, called as they are or by `flatirons solve`:

    value iteration            V_{k+1}(s) = max_a sum_s' P(s'|s,a) [r + gamma V_k(s')]
    Q-value iteration          Q_{k+1}(s,a) = sum_s' P(s'|s,a) [r + gamma max_a' Q_k(s',a')]
    monotonic policy iteration pi_{i+1} = argmin_pi L_{pi_i}(pi) + C D_KL^max(pi_i, pi)              (TRPO, Algorithm 1)
    soft policy iteration      pi_{i+1}(.|s) = argmin_{pi in Pi} KL(pi(.|s) || exp(Q^{pi_i}(s,.)/alpha) / Z)      (SAC, section 4)

The learners are a system, in-graph and one table per run, so that `vmap` trains thousands of them:

    for each decision do
        with probability epsilon a random action, else argmax_a Q(s, a), ties broken at random
        execute it, see r, s'
        y = r + gamma V(s')                                   TD(0), of the uniformly random policy
        y = r + gamma max_a' Q(s', a')                        Q-learning
        y = r + gamma Q_j(s', argmax_a' Q_i(s', a'))          Double Q-learning: i by a fair coin, j the other one
        Q_i(s, a) <- Q_i(s, a) + alpha (y - Q_i(s, a))

Nothing is worth anything after an episode's end. See docs/tabular.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.core import distributions, exploration, losses, optimisers, resources, returns, schedules, trees
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.envs.mdp import MDP
from flatirons.types import ArraySpec, Discrete, FlatironsError, Key, Metrics, Policy, Preset, Task, TimeStep, Transition, config

# ================================================================================================================== planners
#
# Arrays are float64: v [S], q [S, A], policy [S, A] whose rows sum to one. Illegal actions have probability 0.


class Plan(NamedTuple):
    """What a planner found. v `[S]`, q `[S, A]`, policy `[S, A]`; `history` is the worth of the start, E[V(s_0)], or eta (a cost), before
    the first iteration and after each. `iterations` counts them."""

    v: np.ndarray
    q: np.ndarray
    policy: np.ndarray
    history: tuple[float, ...]

    @property
    def iterations(self) -> int:
        """Iterations until it stopped."""
        return len(self.history) - 1


def lookahead(mdp: MDP, v: np.ndarray, gamma: float) -> np.ndarray:
    """Q(s, a) = sum_s' P(s'|s,a) [r(s,a,s') + gamma V(s')], `[S, A]`; where the episode ends there is no V(s')."""
    return mdp.expected_reward + gamma * np.sum(mdp.goes_on * v[mdp.next_state], axis=-1)


def best(mdp: MDP, q: np.ndarray) -> np.ndarray:
    """max_a Q(s, a) over the legal actions, `[S]`."""
    return np.where(mdp.allowed, q, -np.inf).max(axis=1)


def greedy(mdp: MDP, q: np.ndarray) -> np.ndarray:
    """The deterministic policy of the first legal action of largest value, `[S, A]`."""
    return np.eye(mdp.num_actions)[np.where(mdp.allowed, q, -np.inf).argmax(axis=1)]


def uniform(mdp: MDP) -> np.ndarray:
    """The policy that takes every legal action with equal chance, `[S, A]`."""
    return mdp.allowed / mdp.allowed.sum(axis=1, keepdims=True)


def value_iteration(mdp: MDP, gamma: float, *, tolerance: float = 1e-10, max_iterations: int = 100_000) -> Plan:
    """V_{k+1} = max_a lookahead(V_k), from V_0 = 0, until no V(s) can be further than `tolerance` from V*(s) (at gamma 1, where no such
    bound exists, until nothing moves). Raises FlatironsError where gamma is outside [0, 1] or it does not settle.
    """
    _demand_gamma(gamma)
    v, history = np.zeros(mdp.num_states), [0.0]
    for _ in range(max_iterations):
        q = lookahead(mdp, v, gamma)
        previous, v = v, best(mdp, q)
        history.append(float(mdp.start @ v))
        if _settled(previous, v, gamma, tolerance):
            return Plan(v, q, _greedy_that_ends(mdp, q, gamma), tuple(history))
    raise _unsettled("value iteration", max_iterations, gamma)


def q_value_iteration(mdp: MDP, gamma: float, *, tolerance: float = 1e-10, max_iterations: int = 100_000) -> Plan:
    """Q_{k+1} = lookahead(max_a' Q_k), from Q_0 = 0, until no Q(s, a) can be further than `tolerance` from Q*(s, a). Raises as
    `value_iteration` does.
    """
    _demand_gamma(gamma)
    q, history = np.zeros((mdp.num_states, mdp.num_actions)), [0.0]
    for _ in range(max_iterations):
        previous, q = q, lookahead(mdp, best(mdp, q), gamma)
        history.append(float(mdp.start @ best(mdp, q)))
        if _settled(previous, q, gamma, tolerance):
            return Plan(best(mdp, q), q, _greedy_that_ends(mdp, q, gamma), tuple(history))
    raise _unsettled("Q-value iteration", max_iterations, gamma)


def _settled(previous: np.ndarray, now: np.ndarray, gamma: float, tolerance: float) -> bool:
    """Whether `now` is within `tolerance` of the fixed point of a contraction by gamma: |x_k - x*| <= gamma / (1 - gamma) |x_k - x_{k-1}|.
    Asking for more than float64 resolves would never end, so a move of a few of its last digits is none."""
    change = np.max(np.abs(now - previous))
    last_digits = 4 * np.finfo(np.float64).eps * max(1.0, float(np.max(np.abs(now))))
    return bool(gamma * change <= max((1.0 - gamma) * tolerance, last_digits))


def _unsettled(method: str, iterations: int, gamma: float) -> FlatironsError:
    instead = "a gamma below 1 (here some policy may never end), a larger tolerance" if gamma == 1.0 else "a larger tolerance"
    return FlatironsError(f"{method} has not settled after {iterations:_} iterations; give {instead} or more iterations")


def _demand_gamma(gamma: float) -> None:
    if not 0.0 <= gamma <= 1.0:
        raise FlatironsError(f"gamma is {gamma}; give a discount from 0 to 1")


def _greedy_that_ends(mdp: MDP, q: np.ndarray, gamma: float) -> np.ndarray:
    """A greedy policy of Q*. At gamma 1 staying for ever can look as good as going on, so there ties are broken by what is best at a
    discount just below (Blackwell's optimality)."""
    if gamma < 1.0:
        return greedy(mdp, q)
    tied = q >= best(mdp, q)[:, None] - 1e-9
    return greedy(mdp, np.where(tied, value_iteration(mdp, 1.0 - 1e-4).q, -np.inf))


def evaluate_policy(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """V_pi, `[S]`, as the solution of (I - gamma P_pi) V = r_pi.

    Raises FlatironsError where it has none: gamma is 1 and the policy may go on for ever.
    """
    return _solve(_identity_less(mdp, policy, gamma), np.sum(policy * mdp.expected_reward, axis=1))


def visitation(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """rho_pi(s) = sum_t gamma^t P(s_t = s), `[S]`: the discounted visitation frequencies, unnormalised (TRPO, section 2)."""
    return _solve(_identity_less(mdp, policy, gamma).T, mdp.start)


def _identity_less(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    return np.eye(mdp.num_states) - gamma * np.einsum("sa,sat->st", policy, mdp.transition)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        found = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        found = np.full_like(right, np.inf)
    if not np.isfinite(found).all() or np.max(np.abs(found)) > 1e12 * max(1.0, float(np.max(np.abs(right)))):
        raise FlatironsError("this policy may go on for ever, so at gamma 1 it has no value; give a gamma below 1")
    return found


def finite_horizon(mdp: MDP, steps: int, policy: np.ndarray | None = None, gamma: float = 1.0) -> float:
    """The expected return of the first `steps` decisions under `policy`, or of the best there is, which may look at the clock (None)."""
    v = np.zeros(mdp.num_states)
    for _ in range(steps):
        q = lookahead(mdp, v, gamma)
        v = best(mdp, q) if policy is None else np.sum(policy * q, axis=1)
    return float(mdp.start @ v)


# ----------------------------------------------------------------- approximate policy iteration with guaranteed monotonic improvement
#
# As the paper has it, in costs: c = -r, and eta, the expected discounted cost, is to fall.


def eta(mdp: MDP, policy: np.ndarray, gamma: float) -> float:
    """eta(pi) = E[sum_t gamma^t c_t]."""
    return -float(mdp.start @ evaluate_policy(mdp, policy, gamma))


def advantage(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """A_pi(s, a) = Q_pi(s, a) - V_pi(s) in costs, `[S, A]`: negative where the action is better than the policy."""
    v = evaluate_policy(mdp, policy, gamma)
    return v[:, None] - lookahead(mdp, v, gamma)


def surrogate(mdp: MDP, policy: np.ndarray, new: np.ndarray, gamma: float) -> float:
    """L_pi(new) = eta(pi) + sum_s rho_pi(s) sum_a new(a|s) A_pi(s, a) (equation 3)."""
    rho = visitation(mdp, policy, gamma)
    return eta(mdp, policy, gamma) + float(np.sum(rho[:, None] * new * advantage(mdp, policy, gamma)))


def max_kl(policy: np.ndarray, new: np.ndarray) -> float:
    """D_KL^max(pi, new) = max_s KL(pi(.|s) || new(.|s)); infinite where `new` never does what pi may."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * (np.log(policy) - np.log(new)), 0.0)
    return float(terms.sum(axis=-1).max())


def penalty_coefficient(mdp: MDP, policy: np.ndarray, gamma: float) -> float:
    """C = 2 epsilon gamma / (1 - gamma)^2 with epsilon = max |A_pi(s, a)|, so that eta(new) <= L_pi(new) + C D_KL^max(pi, new)."""
    epsilon = np.max(np.abs(advantage(mdp, policy, gamma)), where=mdp.allowed, initial=0.0)
    return float(2.0 * epsilon * gamma / (1.0 - gamma) ** 2)


def monotonic_policy_iteration(
    mdp: MDP,
    gamma: float,
    *,
    policy: np.ndarray | None = None,
    alias: np.ndarray | None = None,
    penalty: float | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
) -> Plan:
    """TRPO's Algorithm 1: approximate policy iteration that never raises eta.

    policy: pi_0 `[S, A]` (uniform by default). alias: int `[S]`, what is seen of each state; states that look alike share one distribution,
    and pi_0 must be alike there. penalty: C, `penalty_coefficient` at each iteration by default; with 0 it is greedy, without any promise.
    Stops when an iteration promises to lower eta by less than `tolerance`, or after `max_iterations`: at the right C steps are very small.
    Raises FlatironsError where gamma is not below 1 or C is negative.
    """
    if not 0.0 <= gamma < 1.0:
        raise FlatironsError(f"gamma is {gamma}; the bound of Algorithm 1 needs a discount below 1")
    if penalty is not None and not penalty >= 0.0:
        raise FlatironsError(f"penalty is {penalty}; C is at least 0")
    pi = uniform(mdp) if policy is None else np.asarray(policy, np.float64)
    alias = np.arange(mdp.num_states) if alias is None else np.asarray(alias)
    shown, seen = np.unique(alias, return_index=True, return_inverse=True)[1:]
    if not np.allclose(pi, pi[shown][seen], atol=0.0) or (mdp.allowed != mdp.allowed[shown][seen]).any():
        raise FlatironsError("states that look alike must have the same legal actions and the same distribution in the first policy")
    history = [eta(mdp, pi, gamma)]
    for _ in range(max_iterations):
        advantages = advantage(mdp, pi, gamma)
        slope = np.zeros((len(shown), mdp.num_actions))  # dL/dpi(a|o): the sum over the states that look like o
        np.add.at(slope, seen, visitation(mdp, pi, gamma)[:, None] * advantages)
        c = penalty_coefficient(mdp, pi, gamma) if penalty is None else penalty
        new = trust_region_step(slope, pi[shown], c, mdp.allowed[shown])
        promised = -np.sum(slope * new) - (c * max_kl(pi[shown], new) if c > 0 else 0.0)
        if promised < tolerance:
            break
        pi = new[seen]
        history.append(eta(mdp, pi, gamma))
    v = evaluate_policy(mdp, pi, gamma)
    return Plan(v, lookahead(mdp, v, gamma), pi, tuple(history))


def trust_region_step(slope: np.ndarray, old: np.ndarray, penalty: float | np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """argmin_pi  sum_o slope(o) . pi(o) + C max_o KL(old(o) || pi(o)), rows `[..., O, A]`, C `[...]`.

    Of all rows within KL <= delta the best is pi(a) = old(a) / (1 + u(a)), normalised, with u = v (slope - its mean under old) for the
    v > 0 at which the KL is delta; the multiplier of the constraint is 1 / (v (1 + s)), s = E_old[u^2 / (1 + u)]. The rows' multipliers
    must add up to C: a search for delta, with one for v inside it. At C = 0 nothing holds it back from argmin.
    """
    if np.ndim(penalty) == 0 and penalty == 0:
        return np.eye(slope.shape[-1])[np.where(allowed, slope, np.inf).argmin(axis=-1)]
    supported = old > 0
    centred = np.where(supported, slope - np.sum(old * slope, axis=-1, keepdims=True), 0.0)
    steepest = -centred.min(axis=-1)
    flat = steepest <= 1e-300
    steepest = np.where(flat, 1.0, steepest)

    def at(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pi, KL, multiplier) at v = sigmoid(z) / steepest: every v at which all probabilities are positive."""
        v = 1.0 / ((1.0 + np.exp(-z)) * steepest)
        u = centred * v[..., None]
        s = np.sum(old * u * u / (1.0 + u), axis=-1)
        # In u, whose mean under old is 0, nothing cancels, however small the step.
        kl = np.sum(old * np.log1p(u), axis=-1) + np.log1p(s)
        return old / ((1.0 + u) * (1.0 + s)[..., None]), kl, np.where(flat, 0.0, 1.0 / (v * (1.0 + s)))

    def within(log_delta: np.ndarray) -> np.ndarray:
        """z of every row at which its KL is delta."""
        ends = np.full(steepest.shape, -45.0), np.full(steepest.shape, 30.0)
        return _crossing(lambda z: np.where(flat, z, np.log(np.maximum(at(z)[1], 1e-300)) - log_delta[..., None]), *ends)

    def scarcity(log_delta: np.ndarray) -> np.ndarray:
        """log C less the log of the sum of the multipliers, which fall as delta grows."""
        return np.log(c) - np.log(np.maximum(np.sum(at(within(log_delta))[2], axis=-1), 1e-300))

    c = np.broadcast_to(np.asarray(penalty, np.float64), steepest.shape[:-1])
    log_delta = _crossing(scarcity, np.full(c.shape, math.log(1e-36)), np.full(c.shape, math.log(30.0)))
    return np.where(flat[..., None], old, at(within(log_delta))[0])


def _crossing(rising: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where each of many rising functions crosses 0 between `low` and `high` (an end, where it does not), by Ridders' method: false
    position on the function times an exponential that makes it straight. The bracket at least halves in each round."""
    at_low, at_high = np.minimum(rising(low), -1e-300), np.maximum(rising(high), 1e-300)
    found = low
    for _ in range(40):
        middle = 0.5 * (low + high)
        at_middle = rising(middle)
        found = middle - (middle - low) * at_middle / np.sqrt(at_middle**2 - at_low * at_high)
        at_found = rising(found)
        if np.max(np.abs(at_found)) < 1e-13 or np.max(high - low) < 1e-14:
            break
        points, values = np.stack([middle, found]), np.stack([at_middle, at_found])
        for point, value in zip(points, values):
            below = (value < 0) & (point > low)
            low, at_low = np.where(below, point, low), np.where(below, value, at_low)
            above = (value >= 0) & (point < high)
            high, at_high = np.where(above, point, high), np.where(above, np.maximum(value, 1e-300), at_high)
    return found


# --------------------------------------------------------------------------------------------------------- soft policy iteration


def soft_evaluate(mdp: MDP, policy: np.ndarray, gamma: float, temperature: float) -> np.ndarray:
    """Q^pi, `[S, A]`, the fixed point of `soft_backup` (SAC, Lemma 1), by a linear solve for V^pi. Raises as `evaluate_policy` does."""
    right = np.sum(policy * mdp.expected_reward, axis=1) + temperature * _entropy(policy)
    return lookahead(mdp, _solve(_identity_less(mdp, policy, gamma), right), gamma)


def soft_backup(mdp: MDP, q: np.ndarray, policy: np.ndarray, gamma: float, temperature: float) -> np.ndarray:
    """T^pi Q = r + gamma E[V(s')], V(s) = E_pi[Q(s, a) - alpha log pi(a|s)] (SAC, equations 2 and 3), a contraction by gamma."""
    return lookahead(mdp, soft_value(q, policy, temperature), gamma)


def soft_value(q: np.ndarray, policy: np.ndarray, temperature: float) -> np.ndarray:
    """V(s) = E_pi[Q(s, a) - alpha log pi(a|s)], `[S]` (SAC, equation 3)."""
    return np.sum(policy * q, axis=1) + temperature * _entropy(policy)


def _entropy(policy: np.ndarray) -> np.ndarray:
    return -np.sum(policy * np.log(np.where(policy > 0, policy, 1.0)), axis=1)


def boltzmann(mdp: MDP, q: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(log of exp(Q/alpha) / Z over the legal actions `[S, A]`, alpha log Z `[S]`), the optimal soft value of Q."""
    scaled = np.where(mdp.allowed, q, -np.inf) / temperature
    top = scaled.max(axis=1, keepdims=True)
    log_z = top + np.log(np.sum(np.exp(scaled - top), axis=1, keepdims=True))
    return scaled - log_z, temperature * log_z[:, 0]


def onto(members: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The projection onto a Pi of finitely many distributions `members [N, A]`, any of which a state may use: in each state the one of
    least KL(member || p). Takes log p `[S, A]`, gives a policy `[S, A]`."""

    def project(log_p: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            cross = np.where(members > 0, members * log_p[:, None], 0.0).sum(axis=-1)
        return members[np.argmin(-_entropy(members) - cross, axis=1)]

    return project


def soft_policy_iteration(
    mdp: MDP,
    gamma: float,
    *,
    temperature: float = 1.0,
    project: Callable[[np.ndarray], np.ndarray] = np.exp,
    tolerance: float = 1e-10,
    max_iterations: int = 10_000,
) -> Plan:
    """SAC's soft policy iteration: evaluate Q^pi, then pi <- argmin_{pi' in Pi} KL(pi' || exp(Q^pi / alpha) / Z) (equation 4).

    project: the projection onto Pi, from log p `[S, A]` to a policy; the default, all policies, is `exp`; see `onto`. By Lemma 2 Q never
    falls; it stops when Q moves by less than `tolerance`. v, q and history are soft: they count alpha times the entropy as reward.
    Raises FlatironsError where the temperature is not above 0, and as `evaluate_policy` does.
    """
    _demand_gamma(gamma)
    if not temperature > 0.0:
        raise FlatironsError(f"temperature is {temperature}; alpha is above 0 (value iteration is its limit at 0)")
    pi = project(np.log(uniform(mdp), where=mdp.allowed, out=np.full(mdp.allowed.shape, -np.inf)))
    q = soft_evaluate(mdp, pi, gamma, temperature)
    history = [float(mdp.start @ soft_value(q, pi, temperature))]
    for _ in range(max_iterations):
        pi = project(boltzmann(mdp, q, temperature)[0])
        previous, q = q, soft_evaluate(mdp, pi, gamma, temperature)
        history.append(float(mdp.start @ soft_value(q, pi, temperature)))
        # A linear solve leaves some of float64's last digits in doubt.
        if np.max(np.abs(q - previous)) <= max(tolerance, 1e-12 * float(np.max(np.abs(q)))):
            return Plan(soft_value(q, pi, temperature), q, pi, tuple(history))
    raise _unsettled("soft policy iteration", max_iterations, 0.0)


def soft_value_iteration(
    mdp: MDP, gamma: float, *, temperature: float = 1.0, tolerance: float = 1e-10, max_iterations: int = 100_000
) -> Plan:
    """Q_{k+1} = lookahead(alpha log sum_a exp(Q_k / alpha)): what soft policy iteration over all policies converges to."""
    _demand_gamma(gamma)
    q, history = np.zeros((mdp.num_states, mdp.num_actions)), [0.0]
    for _ in range(max_iterations):
        previous, q = q, lookahead(mdp, boltzmann(mdp, q, temperature)[1], gamma)
        log_p, v = boltzmann(mdp, q, temperature)
        history.append(float(mdp.start @ v))
        if _settled(previous, q, gamma, tolerance):
            return Plan(v, q, np.exp(log_p), tuple(history))
    raise _unsettled("soft value iteration", max_iterations, gamma)


PLANNERS: Mapping[str, Callable[..., Plan]] = MappingProxyType(
    {
        "value-iteration": value_iteration,
        "q-value-iteration": q_value_iteration,
        "monotonic-policy-iteration": monotonic_policy_iteration,
        "soft-policy-iteration": soft_policy_iteration,
    }
)
"""The planners by the name that `flatirons solve` knows."""


# ================================================================================================================== learners


@config
class Config:
    """Settings of the tabular learners. The defaults are Sutton and Barto's customary ones."""

    method: Literal["td-0", "q-learning", "double-q-learning"] = "q-learning"
    """td-0 (values of the uniformly random policy), q-learning, or double-q-learning (two tables)."""
    total_steps: int = 100_000
    """Decisions in all, over all environments."""
    num_envs: int = 1
    """Environments side by side, which share the table."""
    num_steps: int = 1
    """Decisions of each environment between two updates of the table; then its rows are learned from one after the other."""
    learning_rate: float = 0.1
    """alpha."""
    learning_rate_decay: float = 0.0
    """omega: at the n-th visit of an entry of the table, alpha is divided by n^omega. Convergence is proven for 0.5 < omega <= 1."""
    gamma: float = 0.99
    """Discount."""
    epsilon_start: float = 0.1
    """Exploration at the start."""
    epsilon_end: float = 0.1
    """Exploration after epsilon_steps."""
    epsilon_steps: int = 1
    """Decisions over which epsilon goes linearly from start to end."""
    initial_value: float = 0.0
    """What every entry of the table is at first; higher than any return makes the greedy policy try everything."""


CONTROL = {
    "total_steps": 1_000_000,
    "learning_rate": 1.0,
    "learning_rate_decay": 0.6,
    "epsilon_start": 1.0,
    "epsilon_end": 0.1,
    "epsilon_steps": 500_000,
}

PRESETS = {
    "td-0": Preset(
        doc="TD(0) of the random policy (Sutton and Barto, section 6.1; Example 6.2's settings).",
        config={"method": "td-0", "total_steps": 1_000, "learning_rate": 0.1, "gamma": 1.0, "initial_value": 0.5},
        tasks=("mdp:random-walk",),
    ),
    "q-learning": Preset(
        doc="Q-learning (Watkins 1989): explores at random at first, alpha falls with the visits of each entry.",
        config=CONTROL | {"method": "q-learning"},
        tasks=("mdp:*", "FrozenLake*", "Taxi-v*", "CliffWalking*"),
    ),
    "double-q-learning": Preset(
        doc="Double Q-learning (van Hasselt 2010), with the same settings: two tables, each evaluates what the other selects.",
        config=CONTROL | {"method": "double-q-learning"},
    ),
    "q-learning-bias": Preset(
        doc="Q-learning with Sutton and Barto's settings of Figure 6.5, for the maximisation bias.",
        config={"method": "q-learning", "total_steps": 500, "gamma": 1.0},
    ),
    "double-q-learning-bias": Preset(
        doc="Double Q-learning with Sutton and Barto's settings of Figure 6.5, for the maximisation bias.",
        config={"method": "double-q-learning", "total_steps": 500, "gamma": 1.0},
    ),
}


class Actor(NamedTuple):
    """What acting needs: the tables float32 `[tables, S, columns]` and the exploration rate of the moment."""

    values: Any
    epsilon: Any


class State(NamedTuple):
    """Everything a run is made of. params: {"values": `[tables, S, columns]`}, two tables for Double Q-learning and one column for TD(0);
    visits int32 of the same shape; allowed bool `[S, A]`, the actions that were legal where a state was seen, or `()` where all always
    are; `updates` counts turns (int32)."""

    params: Any
    visits: Any
    allowed: Any
    epsilon: Any
    collector: data.Collector
    key: Any
    updates: Any


def _shape(config: Config, task: Task) -> tuple[int, int, int]:
    assert isinstance(task.spec.action, Discrete)
    states = int(task.spec.obs.high - task.spec.obs.low) + 1
    return 2 if config.method == "double-q-learning" else 1, states, 1 if config.method == "td-0" else task.spec.action.n


def _state_number(task: Task, obs: Any) -> jax.Array:
    return jnp.asarray(obs) - int(task.spec.obs.low)


def steps_per_turn(config: Config) -> int:
    """Decisions between two updates of the table."""
    return config.num_envs * config.num_steps


def check(config: Config, task: Task) -> None:
    """Refuse what cannot run. Raises FlatironsError."""
    obs = task.spec.obs
    if not isinstance(task.spec.action, Discrete):
        raise FlatironsError(
            f"tabular needs a Discrete action space and {task.name} has {type(task.spec.action).__name__}: use a system for it, such as ppo"
        )
    if not (isinstance(obs, ArraySpec) and obs.shape == () and obs.dtype == "int32" and math.isfinite(obs.high - obs.low)):
        raise FlatironsError(
            f"tabular needs an observation that is one whole number, the number of the state, and {task.name} has another kind: use dqn, "
            "or number its states"
        )
    if config.method not in ("td-0", "q-learning", "double-q-learning"):
        raise FlatironsError(f"method={config.method!r} is unknown; choose td-0, q-learning or double-q-learning")
    if min(config.num_envs, config.num_steps, config.epsilon_steps) < 1:
        raise FlatironsError("num_envs, num_steps and epsilon_steps must be at least 1")
    for name in ("gamma", "epsilon_start", "epsilon_end", "learning_rate", "learning_rate_decay"):
        value, most = getattr(config, name), math.inf if name.startswith("learning") else 1.0
        if not 0.0 <= value <= most:
            raise FlatironsError(f"{name} is {value}; give a number from 0 {'up' if most > 1.0 else 'to 1'}")
    resources.require_memory(8 * math.prod(_shape(config, task)), f"a table of {obs.high - obs.low + 1:,.0f} states")


def init(config: Config, task: Task, key: Key) -> State:
    """Tables of `initial_value`, never visited, and environments."""
    key_collect, key = jax.random.split(key)
    shape = _shape(config, task)
    return State(
        params={"values": jnp.full(shape, config.initial_value, jnp.float32)},
        visits=jnp.zeros(shape, jnp.int32),
        allowed=jnp.ones(shape[1:], bool) if config.method != "td-0" and memory.has_masks(task) else (),
        epsilon=jnp.asarray(config.epsilon_start, jnp.float32),
        collector=data.start(task, (), key_collect),
        key=key,
        updates=jnp.int32(0),
    )


def actor(state: State) -> Actor:
    """The acting part of a State."""
    return Actor(state.params["values"], state.epsilon)


def policy(config: Config, task: Task, actor: Actor, *, greedy: bool) -> Policy:
    """Epsilon-greedy on the mean of the tables, ties broken at random; greedy takes the first of equals. TD(0) acts as the policy that it
    evaluates: uniformly at random. There is no memory: carry and extras are `()`."""
    assert isinstance(task.spec.action, Discrete)
    num_actions = task.spec.action.n

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        q = jnp.mean(actor.values[:, _state_number(task, timestep.obs)], axis=0)
        if config.method == "td-0":
            q = jnp.zeros((*q.shape[:-1], num_actions))
        elif greedy:
            return exploration.greedy(q, timestep.legal), carry, ()
        return exploration.fair_epsilon_greedy(key, q, actor.epsilon, timestep.legal), carry, ()

    return Policy(lambda num_envs: (), act)


class Batch(NamedTuple):
    """Rows of any shape: the entries (table, state, column), int32, and their targets y."""

    table: Any
    state: Any
    column: Any
    target: Any


def loss(config: Config, task: Task, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the entries against y: a step of alpha against its gradient is the tabular update."""
    del config, task
    value = params["values"][batch.table, batch.state, batch.column]
    error = value - batch.target
    total = jnp.sum(losses.squared(error))
    return total, {"loss": total, "q_value": jnp.mean(value), "td_error": jnp.mean(jnp.abs(error))}


def next_value(config: Config, values: Any, allowed: Any, table: Any, state: Any, uniform: Any) -> jax.Array:
    """What y says the successor `state` int32 `[]` is worth, before discounting; the update is of `table`. `allowed` is a State's.
    `uniform` in [0, 1) breaks ties."""
    # Of a state that was never seen nothing is known, but all of its entries are equal still.
    legal = () if isinstance(allowed, tuple) else allowed[state]
    match config.method:
        case "td-0":
            return values[0, state, 0]
        case "q-learning":
            return jnp.max(distributions.mask_logits(values[0, state], legal))
        case "double-q-learning":
            selected = exploration.fair_greedy(uniform, values[table, state], legal)  # the table that is updated selects,
            return values[1 - table, state, selected]  # and the other one evaluates
        case _:
            raise ValueError(config.method)


def update(config: Config, task: Task, state: State, experience: Transition, *, loss: Callable = loss) -> tuple[State, Metrics]:
    """Learn from a trajectory `[T, B]`, one row after the other, each seeing the table that the row before it left."""
    rows = trees.as_rows(experience)
    num_rows = rows.reward.shape[0]
    key, key_rows = jax.random.split(state.key)
    draws = jax.random.uniform(key_rows, (num_rows, 2)) if config.method == "double-q-learning" else jnp.zeros((num_rows, 2))
    allowed = state.allowed if isinstance(state.allowed, tuple) else state.allowed.at[_state_number(task, rows.obs)].set(rows.legal)

    def one_row(c: tuple[Any, Any], x: tuple[Transition, Any]) -> tuple[tuple[Any, Any], Metrics]:
        (params, visits), (row, draw) = c, x
        table = (draw[0] < 0.5).astype(jnp.int32) if config.method == "double-q-learning" else 0
        following = next_value(config, params["values"], allowed, table, _state_number(task, row.next_obs), draw[1])
        y = returns.td_target(row.reward, row.terminated, following, config.gamma)
        batch = Batch(table, _state_number(task, row.obs), 0 if config.method == "td-0" else row.action, y)
        entry = (batch.table, batch.state, batch.column)
        visits = visits.at[entry].add(1)
        alpha = config.learning_rate / visits[entry].astype(jnp.float32) ** config.learning_rate_decay
        grads, metrics = jax.grad(functools.partial(loss, config, task), has_aux=True)(params, batch)
        return (optimisers.descend(params, grads, alpha), visits), metrics | {"learning_rate": alpha}

    (params, visits), metrics = jax.lax.scan(one_row, (state.params, state.visits), (rows, draws))
    updates = state.updates + 1
    progress = schedules.fraction(updates * steps_per_turn(config), config.epsilon_steps)
    epsilon = schedules.linear(config.epsilon_start, config.epsilon_end, progress)
    metrics = jax.tree.map(jnp.mean, metrics) | {"epsilon": epsilon, "visited": jnp.mean((visits > 0).astype(jnp.float32))}
    return State(params, visits, allowed, epsilon, state.collector, key, updates), metrics


def step(config: Config, task: Task, state: State, *, update: Callable = update) -> tuple[State, Metrics]:
    """One turn: `num_steps` decisions of every environment, then an update from each of them."""
    collector, experience, episodes = data.rollout(config, task, policy, actor(state), state.collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}
