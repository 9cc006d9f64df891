"""Decisions on a host: NumPy's are those of the compiled policy, their randomness repeats, and what NumPy cannot do is compiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gs

import flatirons as fi
from flatirons import envs
from flatirons.data import acting
from flatirons.data.acting import Decider
from flatirons.run import evaluate
from flatirons.systems import dqn, ppo
from flatirons.types import Policy, TimeStep


class _Spaces(gymnasium.Env):
    """An environment that only has spaces: observations are drawn from them."""

    def __init__(self, observation: gymnasium.Space, action: gymnasium.Space) -> None:
        self.observation_space, self.action_space = observation, action
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, False, False, {}


VECTOR = gs.Box(-1.0, 1.0, (5,), np.float32)
MIXED = gs.Dict({"place": gs.Discrete(4), "speed": gs.Box(-1.0, 1.0, (2,), np.float32), "flags": gs.MultiBinary(3)})
CASES = {
    "dqn": (dqn, {}, VECTOR, gs.Discrete(3)),
    "dqn-tanh-3-layers": (dqn, {"hidden": (32, 16, 8), "activation": "tanh"}, VECTOR, gs.Discrete(4)),
    "ppo-discrete": (ppo, {}, VECTOR, gs.Discrete(3)),
    "ppo-dict": (ppo, {}, MIXED, gs.Discrete(3)),
    "ppo-box-normalised": (ppo, {"normalise_obs": True}, VECTOR, gs.Box(-1.0, 1.0, (2,), np.float32)),
    "ppo-multidiscrete": (ppo, {}, VECTOR, gs.MultiDiscrete([2, 3])),
}


def _decider(case: str, num_envs: int, greedy: bool, monkeypatch: pytest.MonkeyPatch, *, compiled: bool) -> tuple[Decider, Any]:
    system, settings, observation, action = CASES[case]
    task: Any = envs.make(lambda: _Spaces(observation, action), num_envs)
    config = system.Config(num_envs=num_envs, **settings)
    state = system.init(config, task, jax.random.key(3))
    with monkeypatch.context() as patch:
        patch.setattr(acting, "MOST_FLOPS", -1 if compiled else acting.MOST_FLOPS)
        decider = Decider(system.policy, task, config, greedy=greedy)
        decider.set_actor(system.actor(state))
        decider.set_key(jax.random.key(7))
        decider(task.current, ())
    decider.set_key(jax.random.key(7))
    return decider, task


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_numpy_decides_as_the_compiled_policy_does(case: str, greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, task = _decider(case, 3, greedy, monkeypatch, compiled=False)
    slow, _ = _decider(case, 3, greedy, monkeypatch, compiled=True)
    assert (quick.how, slow.how) == ("NumPy", "compiled")
    # Else the two would draw their randomness in blocks of different sizes.
    assert quick._block_size == slow._block_size
    different = 0
    for _ in range(300):
        expected, ours = slow(task.current, ())[0], quick(task.current, ())[0]
        assert isinstance(ours, np.ndarray) and ours.dtype == expected.dtype and ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)
        different += int((ours != expected).any())
        _, _ = task.step(ours)
    task.close()
    assert different == 0 or ours.dtype == np.float32


def test_numbers_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision n is the same whether those before it were made here or in a run that ended."""
    whole, task = _decider("ppo-box-normalised", 2, False, monkeypatch, compiled=False)
    size = whole._block_size
    all_actions = [whole(task.current, ())[0] for _ in range(size + 5)]
    for at in (0, 3, size - 1, size, size + 2):
        again, _ = _decider("ppo-box-normalised", 2, False, monkeypatch, compiled=False)
        again.set_key(jax.random.key(7), at)
        np.testing.assert_array_equal(again(task.current, ())[0], all_actions[at])
        assert again.drawn == at + 1
    assert len({a.tobytes() for a in all_actions}) == len(all_actions)
    task.close()


def test_the_actors_arrays_may_be_donated_after_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    system, _, observation, action = CASES["dqn"]
    task: Any = envs.make(lambda: _Spaces(observation, action), 1)
    config = system.Config(epsilon_start=0.0)
    params = system.init(config, task, jax.random.key(0)).params
    decider = Decider(system.policy, task, config, greedy=False)
    decider.set_key(jax.random.key(0))
    decider.set_actor(dqn.Actor(params, jnp.float32(0.0)))
    first = decider(task.current, ())[0]
    decider.set_actor(dqn.Actor(params, jnp.float32(0.0)))
    negative = jax.jit(lambda p: jax.tree.map(jnp.negative, p), donate_argnums=0)(params)
    jax.block_until_ready(negative)
    assert decider(task.current, ())[0] == first
    decider.set_actor(dqn.Actor(jax.tree.map(lambda x: x * (x.ndim == 2), negative), jnp.float32(0.0)))
    task.close()


class _Counter(NamedTuple):
    """The parameters of a policy with memory."""

    weight: Any


def _remembering(config: Any, task: Any, actor: _Counter, *, greedy: bool) -> Policy:
    """Counts its decisions since the episode began, in its carry; its extras are the count times the weight."""

    def act(key: Any, timestep: TimeStep, carry: Any) -> tuple[Any, Any, Any]:
        carry = jnp.where(timestep.first, 0, carry) + 1
        return carry % 2, carry, {"scaled": carry * actor.weight}

    return Policy(lambda num_envs: jnp.zeros(num_envs, jnp.int32), act)


def test_memory_and_extras_pass_through_numpy() -> None:
    task: Any = envs.make("CartPole-v1", 2)
    decider = Decider(_remembering, task, None, greedy=False)
    decider.set_actor(_Counter(jnp.float32(0.5)))
    decider.set_key(jax.random.key(0))
    carry: Any = np.zeros(2, np.int32)
    timestep = task.current
    for n in range(1, 4):
        action, carry, extras = decider(timestep, carry)
        np.testing.assert_array_equal(carry, [n, n])
        np.testing.assert_array_equal(action, [n % 2, n % 2])
        np.testing.assert_allclose(extras["scaled"], [n / 2, n / 2])
        timestep = timestep._replace(first=np.zeros(2, bool))
    assert decider.how == "NumPy"
    task.close()


def test_convolutions_and_large_networks_are_compiled() -> None:
    for observation, settings in (
        (gs.Box(0, 255, (84, 84, 3), np.uint8), {"network": "nature"}),
        (VECTOR, {"hidden": (1600, 1600)}),
    ):
        task: Any = envs.make(lambda observation=observation: _Spaces(observation, gs.Discrete(3)), 1)
        config = dqn.Config(buffer_size=16, **settings)  # type: ignore[arg-type]
        state = dqn.init(config, task, jax.random.key(0))
        decider = Decider(dqn.policy, task, config, greedy=False)
        decider.set_actor(dqn.actor(state))
        decider.set_key(jax.random.key(0))
        action, _, _ = decider(task.current, ())
        assert decider.how == "compiled" and action.shape == (1,) and 0 <= action[0] < 3
        task.close()


@pytest.mark.parametrize("action", [gs.Discrete(3, start=5), gs.Box(-1.0, 1.0, (2, 3), np.float32)])
def test_a_runs_policy_speaks_the_environments_language(action: gymnasium.Space, tmp_path: Any) -> None:
    """Also after loading, where there is no environment to ask."""
    system = "ppo"
    env = _Ends(VECTOR, action)
    run = fi.train(system, env, total_steps=16, num_envs=1, num_steps=8, num_minibatches=2, out=tmp_path / "run", quiet=True)
    for found in (run, fi.load(tmp_path / "run")):
        assert action.contains(found.policy(VECTOR.sample()))


class _Ends(_Spaces):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 1.0, True, False, {}


def test_numpys_operations_are_xlas() -> None:
    """Every operation that NumPy takes over, on signed whole numbers too, in value and in dtype."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-7, 8, (3, 4)).astype(np.int32) for _ in range(2))
    y = np.where(y == 0, 2, y).astype(np.int32)
    u, v = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))

    def everything(u: Any, v: Any, x: Any, y: Any) -> list[Any]:
        whole = [x // y, x % y, jax.lax.div(x, y), jax.lax.rem(x, y), x.sum(0), x.max(1), x.min(), (x > y).any(0), (x == y).all(1)]
        whole += [jnp.where(x != y, x, -y), jnp.clip(x, -1, 2), jnp.abs(x), x**3, ~(x >= y) | (x <= 1) & (y < 3), jnp.sign(x), x.mean(0)]
        parts = [u / v, u**2, jnp.square(u), jnp.exp(u), jnp.log(v * v), jnp.log1p(v * v), jnp.expm1(u), jnp.tanh(u), jax.nn.sigmoid(u)]
        parts += [jnp.sqrt(u * u), jax.lax.rsqrt(v * v), jnp.floor(u), jnp.ceil(u), (v * v) ** u, u @ v.T, jax.nn.softmax(u)]
        parts += [jax.nn.log_softmax(u), jax.nn.logsumexp(v, axis=1), jax.nn.one_hot(x[0], 4), jnp.argmax(u, 1), u.var(1), u.min(0)]
        parts += [jnp.concatenate([u, v], 1), jnp.stack([u, v], 1), jnp.split(u, 2, 1)[1], u[:, 1:3], u.T, u[None, :, 0], u.reshape(-1)]
        return [
            *whole,
            *parts,
            jax.nn.relu(u),
            jnp.minimum(u, v),
            u.astype(jnp.int32),
            x.astype(jnp.float32),
            jnp.broadcast_to(u[:1], (5, 4)),
        ]

    program = acting._Program(jax.make_jaxpr(lambda key, *seen: everything(*seen))(jax.random.key(0), u, v, x, y), 0)
    for slot, value in zip(program.seen_slots, (u, v, x, y), strict=True):
        program.values[slot] = value
    program.check()
    for n, (slot, expected) in enumerate(zip(program.out_slots, jax.jit(everything)(u, v, x, y), strict=True)):
        found = program.values[slot]
        assert found.dtype == expected.dtype, n
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=str(n))


def test_evaluations_of_one_task_trace_the_policy_once() -> None:
    system, _, observation, action = CASES["dqn"]
    task: Any = envs.make(lambda: _Ends(observation, action), 2)
    config = system.Config(num_envs=2, train_every=2)
    traces = 0

    def policy(*arguments: Any, **keywords: Any) -> Policy:
        nonlocal traces
        traces += 1
        return system.policy(*arguments, **keywords)

    module: Any = SimpleNamespace(policy=policy, __name__="dqn")
    # A State is begun on a task of its own: beginning one lets go of what is kept on the task.
    actors = [system.actor(system.init(config, task, jax.random.key(seed))) for seed in range(3)]
    counts = []
    for seed, actor in enumerate(actors):
        evaluate.evaluate(module, config, task, actor, 2, seed)
        counts.append(traces)
    # One call an evaluation is for the policy's memory; the first one traces as well.
    assert np.diff(counts).tolist() == [1, 1]
    task.close()
