"""What every system must be: read from `systems.SYSTEMS`, so a new one is tested from the day it is listed."""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import pictures, rows

from flatirons import envs, systems
from flatirons.core import trees
from flatirons.run import cli
from flatirons.types import ArraySpec, Episodes, Preset, TimeStep

NAMES = ("Config", "State", "PRESETS", "check", "init", "actor", "policy", "loss", "update", "step", "steps_per_turn")

OFF_POLICY = {
    "num_envs": 2,
    "train_every": 8,
    "gradient_steps": 2,
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "random_steps": 12,
    "hidden": (8, 8),
}

ALPHAGO = {"num_envs": 4, "learning_rate": 1e-3, "blocks": 1, "channels": 16}
ALPHAGO_LEARNS = {"test_every": 2, "gradient_steps": 2, "batch_size": 8, "optimiser": "adam"}

# One small setting per system, on a task that it takes (a name, or a task that is data); a system that is not here fails
# test_every_system_is_tested.
SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (
        "jax:CartPole-v1",
        {"num_envs": 4, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden": (8,), "normalise_obs": True},
    ),
    # With so large a damping the step is the gradient's, and a pull moves each parameter its own way.
    "trpo": (
        "jax:CartPole-v1",
        {"num_envs": 4, "num_steps": 8, "value_minibatches": 2, "hidden": (8,), "normalise_obs": True, "damping": 1e3},
    ),
    "a3c": (
        "jax:CartPole-v1",
        {"num_envs": 4, "actor_learners": 2, "num_steps": 8, "hidden": (8,), "rmsprop_eps": 1e-5, "learning_rate": 1e-3},
    ),
    "reinforce": ("jax:CartPole-v1", {"num_envs": 4, "num_steps": 64, "hidden": (8,)}),
    "dqn": (
        "jax:CartPole-v1",
        {
            "num_envs": 2,
            "train_every": 8,
            "gradient_steps": 2,
            "batch_size": 8,
            "buffer_size": 64,
            "learning_starts": 16,
            "target_every": 3,
            "hidden": (8,),
        },
    ),
    "ddpg": ("jax:Pendulum-v1", OFF_POLICY | {"noise": "ou", "twin": True, "policy_delay": 2, "target_noise": 0.2, "action_layer": 1}),
    "sac": ("jax:Pendulum-v1", OFF_POLICY | {"noise_correlation": 0.9}),
    "mc_dropout": (rows(), {"num_envs": 1, "gradient_steps": 20, "batch_size": 8, "hidden": (8,), "total_steps": 200}),
    "alphago-sl": ("pgx:tic_tac_toe", ALPHAGO | {"num_steps": 2, "expert_moves": 8, "expert_simulations": 2} | ALPHAGO_LEARNS),
    "alphago-rl": ("pgx:tic_tac_toe", ALPHAGO | {"num_steps": 10, "pool_size": 2, "optimiser": "adam"}),
    "alphago-value": (
        "pgx:tic_tac_toe",
        ALPHAGO | {"num_steps": 10, "last_ply": 4, "buffer_size": 64, "learning_starts": 1} | ALPHAGO_LEARNS,
    ),
    # Its networks are handed over and stay; with a learning rate v goes on learning, by plain descent.
    "alphago": ("pgx:tic_tac_toe", ALPHAGO | {"num_steps": 10, "num_simulations": 3, "expand_after": 2, "learning_rate": 1e-4}),
    "alphazero": (
        "pgx:tic_tac_toe",
        {
            "num_envs": 4,
            "num_steps": 8,
            "num_simulations": 3,
            "blocks": 1,
            "channels": 16,
            "value_hidden": 8,
            "buffer_size": 128,
            "learning_starts": 8,
            "gradient_steps": 2,
            "batch_size": 8,
            "optimiser": "adam",
            "learning_rate": 1e-3,
        },
    ),
    # A step of 1e-4 and a pull of 1e4 in the test of other losses make one full step.
    "tabular": ("mdp:CliffWalking-v1", {"num_envs": 2, "num_steps": 8, "learning_rate": 1e-4, "epsilon_steps": 100}),
    "ewc": (
        pictures(),
        {"num_envs": 1, "num_tasks": 2, "task_steps": 8, "turn_steps": 4, "hidden": (8,), "batch_size": 8, "fisher_examples": 100},
    ),
    "maml": ("meta:sinusoid", {"num_envs": 4, "shots": 3, "queries": 3, "hidden": (8,)}),
}
# Systems whose steps are no decisions: what a turn counts is said at their `total_steps`.
COUNTS_UPDATES = {"maml"}
TURNS = 3
FROM_DATA = frozenset(name for name, (task, _) in SMALL.items() if not isinstance(task, str))
"""Systems that learn from data: they take no decisions, so they have no Collector and no episodes."""


@pytest.fixture(scope="module", params=systems.SYSTEMS, ids=systems.system_name)
def system(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


class Compiled:
    """A system's `init` and donated `step` on its small task, compiled once for this file; `traces` counts how often `step` was traced."""

    def __init__(self, module: ModuleType) -> None:
        name, settings = SMALL[systems.system_name(module)]
        self.module, self.config = module, module.Config(**settings)
        self.task: Any = envs.make(name, settings["num_envs"]) if isinstance(name, str) else name
        self.traces = 0
        self.init = jax.jit(lambda config, key: module.init(config, self.task, key))

        def step(config: Any, state: Any) -> Any:
            self.traces += 1
            return module.step(config, self.task, state)

        self.step = jax.jit(step, donate_argnums=1)

    def run(self, config: Any, seed: int, turns: int = TURNS) -> tuple[Any, list[Any]]:
        state, metrics = self.init(config, jax.random.key(seed)), []
        for _ in range(turns):
            state, m = self.step(config, state)
            metrics.append(m)
        return state, metrics


@functools.cache
def _compiled(module: ModuleType) -> Compiled:
    return Compiled(module)


def _plain(tree: Any) -> list[np.ndarray]:
    """All leaves as NumPy arrays, keys as their data."""
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in jax.tree.leaves(tree)]


def test_every_system_is_tested() -> None:
    assert set(SMALL) == {systems.system_name(module) for module in systems.SYSTEMS}


def test_names(system: ModuleType) -> None:
    missing = [name for name in NAMES if name not in vars(system)]
    assert not missing
    fields = {f.name: f for f in dataclasses.fields(system.Config)}
    assert {"total_steps", "num_envs"} <= set(fields)
    assert {"key", "updates"} <= set(system.State._fields)
    assert "collector" in system.State._fields or systems.system_name(system) in FROM_DATA
    for name, preset in system.PRESETS.items():
        assert isinstance(preset, Preset) and preset.doc and set(preset.config) <= set(fields), name
        system.Config(**preset.config)
    for name, field in fields.items():
        if field.type in ("float", "float | None"):
            default = field.default
            assert default is None or type(default) is float, f"{name} is a leaf of the Config and must be a float"


def test_settings_and_the_runs_own_flags_share_one_namespace(system: ModuleType) -> None:
    flags = {f.name for f in dataclasses.fields(cli.RunFlags)}
    assert not flags & {f.name for f in dataclasses.fields(system.Config)}


def test_systems_and_presets_share_one_namespace() -> None:
    names = [systems.system_name(m) for m in systems.SYSTEMS] + [p for m in systems.SYSTEMS for p in m.PRESETS]
    assert len(names) == len(set(names))
    for module in systems.SYSTEMS:
        assert systems.find(systems.system_name(module)) == (module, {}, None)
        for preset in module.PRESETS:
            assert systems.find(preset) == (module, dict(module.PRESETS[preset].config), preset)


def test_variants_take_the_place_of_a_preset_on_their_tasks(system: ModuleType) -> None:
    for preset in system.PRESETS.values():
        if preset.variant_of:
            assert preset.tasks and not system.PRESETS[preset.variant_of].tasks
        else:
            assert not (preset.on_top and preset.tasks), "it would stand on itself"


@pytest.mark.parametrize("name", ["double-dqn", "dqn-2013", "async-q", "async-sarsa", "async-nstep-q", "a3c-lstm", "a2c", "natural-pg"])
@pytest.mark.parametrize("task_name", ["jax:CartPole-v1", "jax:Acrobot-v1", "pgx:minatar-breakout"])
def test_a_method_runs_on_every_kind_of_task(name: str, task_name: str) -> None:
    module, method, _ = systems.find(name)
    _, _, settings = systems.preset_for(module, name, task_name)
    config = module.Config(**settings)
    module.check(config, envs.make(task_name, config.num_envs))
    if not any(preset.variant_of == name for preset in module.PRESETS.values()):
        own = systems.preset_for(module, None, task_name)[2]
        assert settings == {**own, **method}


def test_which_preset_a_task_gets() -> None:
    chosen = {
        (system, task): systems.preset_for(systems.find(system)[0], systems.find(system)[2], task)[:2]
        for system, task in (
            ("sac", "HalfCheetah-v5"), ("sac-2018", "HalfCheetah-v5"), ("sac-2018", "MyOwn-v0"), ("async-q", "CartPole-v1"),
            ("async-q", "ALE/Pong-v5"), ("dqn-2013", "pgx:minatar-asterix"), ("dqn-2013", "ALE/Pong-v5"), ("dqn", "MyOwn-v0"),
            ("ddpg", "pixels:Pendulum-v1"), ("ddpg", "pixels:HalfCheetah-v5"), ("sac", "pixels:Pendulum-v1"), ("sac-2018", "pixels:Ant-v5"),
            ("sac-2018", "Humanoid-v5"), ("sac", "envpool:HalfCheetah-v5"), ("sac", "envpool:FetchReach-v4"),
        )
    }  # fmt: skip
    assert list(chosen.values()) == [
        ("sac-halfcheetah", None), ("sac-2018", "sac-halfcheetah"), ("sac-2018", None), ("async-q-classic", None),
        ("async-q", "a3c-paper"), ("dqn-2013-minatar", None), ("dqn-2013", None), (None, None),
        ("ddpg-pixels-pendulum", None), ("ddpg-pixels", None), ("sac-pixels-pendulum", None), ("sac-2018", "sac-pixels"),
        ("sac-2018-humanoid", None), ("sac-halfcheetah", None), ("sac-her", None),
    ]  # fmt: skip
    assert systems.preset_for(systems.alphazero, None, "pgx:connect-four")[0] == "alphazero-connect-four"
    assert systems.preset_for(systems.alphazero, "alphago-zero", "pgx:go-9x9")[:2] == ("alphago-zero-laptop", "alphazero-go")
    nature = systems.preset_for(systems.dqn, "double-dqn", "ALE/Pong-v5")[2]
    assert nature == {**systems.dqn.PRESETS["dqn-nature"].config, "double": True}


def test_same_key_same_run_bit_for_bit(system: ModuleType) -> None:
    c = _compiled(system)
    (a, a_metrics), (b, b_metrics) = c.run(c.config, 7), c.run(c.config, 7)
    for x, y in zip(_plain((a, a_metrics)), _plain((b, b_metrics)), strict=True):
        np.testing.assert_array_equal(x, y)
    other, _ = c.run(c.config, 8)
    assert any(not np.array_equal(x, y) for x, y in zip(_plain(a), _plain(other), strict=True))


def test_state_is_arrays_finite_and_of_fixed_shape(system: ModuleType) -> None:
    c = _compiled(system)
    start = c.init(c.config, jax.random.key(0))
    before = jax.tree.map(lambda x: (x.shape, x.dtype), start)
    state, metrics = c.run(c.config, 0)
    assert all(isinstance(x, (jax.Array, np.ndarray, np.generic)) for x in jax.tree.leaves(state))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before, "a loop over turns needs a State that keeps its shape"
    for x in _plain((state, metrics)):
        assert not np.issubdtype(x.dtype, np.floating) or np.isfinite(x).all()
    assert int(state.updates) > 0


def test_metrics_are_scalars_by_name(system: ModuleType) -> None:
    c = _compiled(system)
    for metrics in c.run(c.config, 1)[1]:
        assert isinstance(metrics.get("episodes"), Episodes) or systems.system_name(system) in FROM_DATA
        assert all(isinstance(name, str) and jnp.shape(x) == () for name, x in metrics.items() if name != "episodes")


def test_one_trace_serves_every_learning_rate(system: ModuleType) -> None:
    c = _compiled(system)
    a, _ = c.run(c.config, 3)
    traces = c.traces
    floats = [f.name for f in dataclasses.fields(c.config) if f.type == "float"]
    changed = dataclasses.replace(c.config, **{name: 0.9 * getattr(c.config, name) for name in floats})
    b, _ = c.run(changed, 3)
    assert c.traces == traces == 1
    assert any(not np.array_equal(x, y) for x, y in zip(_plain(a.params), _plain(b.params), strict=True))


def test_the_actor_is_part_of_the_state_and_smaller(system: ModuleType) -> None:
    c = _compiled(system)
    state = c.init(c.config, jax.random.key(0))
    actor = system.actor(state)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(actor))
    size = sum(x.size for x in _plain(state))
    # AlphaGo's player is its four networks, and has hardly anything else.
    share = 1.0 if systems.system_name(system) == "alphago" else 0.7
    assert 0 < sum(x.size for x in _plain(actor)) < share * size
    several = jax.eval_shape(
        lambda keys: system.actor(jax.vmap(lambda key: system.init(c.config, c.task, key))(keys)), jax.random.split(jax.random.key(0), 3)
    )
    assert all(x.shape[0] == 3 for x in jax.tree.leaves(several)), "the actor of several seeds has their axis"


def test_the_greedy_policy_is_deterministic(system: ModuleType) -> None:
    c = _compiled(system)
    state, _ = c.run(c.config, 0)
    num = c.task.num_envs
    if systems.system_name(system) in FROM_DATA:
        zeros = jax.tree.map(lambda s: jnp.zeros((num, *s.shape), s.dtype), c.task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec))
        seen = TimeStep(zeros, (), jnp.ones(num, bool), ())
    else:
        seen = c.task.observe(c.task.reset(jax.random.key(2)))

    @jax.jit
    def act(actor: Any, key: Any, timestep: TimeStep) -> Any:
        policy = system.policy(c.config, c.task, actor, greedy=True)
        action, carry, _ = policy.act(key, timestep, policy.reset(num))
        assert jax.tree.structure(carry) == jax.tree.structure(policy.reset(num))
        return action

    timestep = TimeStep(seen.obs, seen.legal, seen.first, seen.model)
    actions = [np.asarray(act(system.actor(state), jax.random.key(seed), timestep)) for seed in (0, 1)]
    assert actions[0].shape[0] == num
    np.testing.assert_array_equal(*actions)


def _anchored(system: ModuleType, anchor: Any, strength: Any, names: tuple[str, ...] = ()) -> Any:
    """The system's loss plus a pull towards `anchor`, as EWC has it; the pull's size under `names` among the metrics."""

    def loss(config: Any, task: Any, params: Any, batch: Any) -> Any:
        total, aux = system.loss(config, task, params, batch)
        apart = jax.tree.map(lambda p, a: jnp.sum(jnp.square(p - a)), params, anchor)
        pull = strength * 0.5 * sum(jax.tree.leaves(apart))
        return total + pull, aux | {name: pull for name in names}

    return loss


def test_vmap_over_seeds_and_configs_equals_single_runs_and_takes_another_loss(system: ModuleType) -> None:
    """Four runs in one program, for compiling is what takes the time: two must equal single ones, a foreign loss pulls two apart. Each
    starts from a State of its own seed, made singly."""
    c = _compiled(system)
    runs = [
        (dataclasses.replace(c.config, learning_rate=1e-3), 4, 0.0, 0.0),
        (dataclasses.replace(c.config, learning_rate=1e-2), 5, 0.0, 0.0),
        (c.config, 0, -3.0, 1e4),
        (c.config, 0, 3.0, 1e4),
    ]
    configs, seeds, anchors, strengths = zip(*runs, strict=True)
    together = jax.tree.map(lambda *xs: jnp.stack([jnp.float32(x) for x in xs]), *configs)

    def turns(config: Any, state: Any, where: Any, strength: Any) -> Any:
        anchor = jax.tree.map(lambda x: jnp.broadcast_to(where.astype(x.dtype), x.shape), state.params)
        update = functools.partial(system.update, loss=_anchored(system, anchor, strength))

        def turn(state: Any, _: None) -> Any:
            state, metrics = system.step(config, c.task, state, update=update)
            return state, (state, metrics)

        return jax.lax.scan(turn, state, None, length=TURNS)[1]

    starts = [c.init(config, jax.random.key(seed)) for config, seed in zip(configs, seeds, strict=True)]
    begin = jax.tree.map(lambda *xs: jnp.stack(xs), *starts)
    states, metrics = jax.jit(jax.vmap(turns))(together, begin, jnp.array(anchors), jnp.array(strengths))
    # Later turns drift apart: an order of sums is enough to choose another action.
    early = jax.tree.map(lambda x: x[:, 1], (states, metrics))
    for i in range(2):
        state, single = c.run(configs[i], seeds[i], turns=2)
        for x, y in zip(_plain(early), _plain((state, single[-1])), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-4)
    low, high = (np.concatenate([x[i, -1].ravel() for x in _plain(states.params)]) for i in (2, 3))
    assert (low < high).all(), "each parameter was pulled to its own anchor"


def test_another_loss_may_report_more(system: ModuleType) -> None:
    c = _compiled(system)
    state = c.init(c.config, jax.random.key(0))
    update = functools.partial(system.update, loss=_anchored(system, state.params, 1.0, ("pull",)))
    _, metrics = jax.eval_shape(lambda s: system.step(c.config, c.task, s, update=update), state)
    assert metrics["pull"].shape == ()


def test_steps_per_turn_counts_the_decisions(system: ModuleType) -> None:
    c = _compiled(system)
    state = c.init(c.config, jax.random.key(0))
    if systems.system_name(system) in COUNTS_UPDATES:
        assert int(c.step(c.config, state)[0].updates) == system.steps_per_turn(c.config)
        return
    seen = []

    def spying(config: Any, task: Any, state: Any, experience: Any) -> Any:
        # Data come as minibatches `[T, B]`, of which the first axis is counted.
        seen.append(experience.reward.shape if hasattr(experience, "reward") else (len(jax.tree.leaves(experience)[0]), c.task.num_envs))
        return system.update(config, task, state, experience)

    jax.eval_shape(lambda s: system.step(c.config, c.task, s, update=spying), state)
    assert sum(steps * streams for steps, streams in seen) == system.steps_per_turn(c.config)
    assert all(streams == c.task.num_envs for _, streams in seen)


def test_a_host_task_takes_the_same_turn_with_a_compiled_update(system: ModuleType) -> None:
    name, settings = SMALL[systems.system_name(system)]
    if not isinstance(name, str) or not name.startswith("jax:"):
        pytest.skip("its small task has no twin on the host")
    task: Any = envs.make(name.removeprefix("jax:"), settings["num_envs"], seed=0)
    config = system.Config(**settings)
    traces = 0

    def counted(config: Any, task: Any, state: Any, experience: Any) -> Any:
        nonlocal traces
        traces += 1
        return system.update(config, task, state, experience)

    update = jax.jit(counted, static_argnums=1, donate_argnums=2)
    state = jax.jit(system.init, static_argnums=1)(config, task, jax.random.key(0))
    count = 0
    for _ in range(4):
        state, metrics = system.step(config, task, state, update=update)
        count += int(metrics["episodes"].length_sum)
    task.close()
    assert traces == 1 and int(state.updates) > 0 and count <= 4 * system.steps_per_turn(config)
    assert all(isinstance(x, (jax.Array, np.ndarray, np.generic)) for x in jax.tree.leaves(state))
    assert bool(trees.all_finite(state.params))


def test_floats_and_only_floats_are_leaves_of_a_config(system: ModuleType) -> None:
    config = system.Config()
    leaves = len(jax.tree.leaves(config))
    floats = [f for f in dataclasses.fields(config) if f.type in ("float", "float | None") and getattr(config, f.name) is not None]
    assert leaves == len(floats) > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.learning_rate = 1.0
