"""MAML: the meta-gradient against finite differences, tasks and episodes by hand, the contract's rest, and what a person may get wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs
from flatirons.__main__ import main
from flatirons.core import baseline, trust_region
from flatirons.core.adapt import adapt
from flatirons.core.distributions import Normal
from flatirons.data import episodes
from flatirons.data.episodes import Batch
from flatirons.envs import datasets, meta
from flatirons.envs.ingraph import InGraph
from flatirons.nets import few_shot
from flatirons.run import adapting, listing
from flatirons.run.cli import split_settings
from flatirons.run.folder import read_json
from flatirons.systems import maml
from flatirons.types import ArraySpec, Discrete, FlatironsError, Transition

SMALL = {"hidden": (8,), "num_envs": 3, "shots": 4, "queries": 5}


def fake_pictures(characters: int = 6, size: int = 8) -> meta.Pictures:
    images = np.random.default_rng(0).integers(0, 256, (characters, 20, size, size)).astype(np.uint8)
    return meta.Pictures(images, ("Invented",))


# ----------------------------------------------------------------------------------------------------------- the inner loop


def test_adapt_on_a_parabola_is_known() -> None:
    loss = lambda theta, a: 0.5 * a * theta**2  # noqa: E731
    for steps in (0, 1, 2, 5):
        shrunk = (1.0 - 0.1 * 3.0) ** steps
        np.testing.assert_allclose(adapt(loss, jnp.float32(2.0), 3.0, steps, 0.1), 2.0 * shrunk, rtol=1e-6)
        for first_order, slope in ((False, shrunk), (True, 1.0)):
            after = functools.partial(adapt, loss, batch=3.0, steps=steps, learning_rate=0.1, first_order=first_order)
            np.testing.assert_allclose(jax.grad(after)(2.0), slope, rtol=1e-6)


def against_differences(config: Any, task: Any, params: Any, experience: Any) -> float:
    """The largest error of the meta-gradient against central differences, relative to its largest entry, in float64."""
    flat, shape = jax.flatten_util.ravel_pytree(params)
    objective = jax.jit(lambda x: maml.loss(config, task, shape(x), experience)[0])
    exact = np.asarray(jax.jit(jax.grad(objective))(flat))
    h = 1e-5
    differences = np.array([(objective(flat.at[i].add(h)) - objective(flat.at[i].add(-h))) / (2 * h) for i in range(flat.size)])
    return float(np.max(np.abs(exact - differences)) / np.max(np.abs(differences)))


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def test_the_meta_gradient_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        # tanh: a rectifier's corner has no derivative for the differences to find.
        config = maml.Config(**{**SMALL, "hidden": (4,)}, activation="tanh", inner_steps=3, inner_rate=0.1)
        task: Any = envs.make("meta:sinusoid", 3)
        params = double(maml.init_params(config, task, jax.random.key(0)))
        tasks = task.env.draw(jax.random.key(1), 3)
        inner, outer = (
            Batch(*(x.astype(jnp.float64) for x in rows))
            for rows in task.env.examples(jax.random.key(2), tasks, config.shots, config.queries)
        )
        experience = maml.Experience(inner, outer)
        assert against_differences(config, task, params, experience) < 1e-6
        first = dataclasses.replace(config, first_order=True)
        assert against_differences(first, task, params, experience) > 1e-2, "without second derivatives it is another gradient"


def test_the_meta_gradient_of_a_policy_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        config = maml.Config(num_envs=2, hidden=(3,), activation="tanh", inner_steps=2, inner_rate=0.1, meta_optimiser="trpo")
        task: Any = envs.make("meta:navigation", 2)
        params = double(maml.init_params(config, task, jax.random.key(0)))
        keys = iter(jax.random.split(jax.random.key(1), 20))

        def rows(*lead: int) -> Batch:
            obs, action = (jax.random.normal(next(keys), (*lead, 6, 2), jnp.float64) for _ in range(2))
            advantage, old, weight = (jax.random.normal(next(keys), (*lead, 6), jnp.float64) for _ in range(3))
            return Batch(obs, action, advantage, 0.1 * old - 2.0, jax.nn.sigmoid(weight))

        assert against_differences(config, task, params, maml.Experience(rows(2, 2), rows(2))) < 1e-6


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Three actions, one decision."""

    max_episode_steps: int | None = 1
    obs_spec = ArraySpec((1,))
    action_spec = Discrete(3)
    loss = "return"

    def draw(self, key: Any, num: int) -> Any:
        return jnp.zeros((num, 1))

    def placed(self, tasks: Any, state: Any) -> Any:
        return state

    def init(self, key: Any) -> Any:
        return jnp.zeros(1)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        return state, action.astype(jnp.float32), jnp.ones((), bool)

    def observe(self, state: Any) -> Any:
        return state

    def legal(self, state: Any) -> Any:
        return ()


def test_the_inner_loss_has_the_hessian_of_the_expected_return() -> None:
    config = maml.Config(hidden=())
    task: Any = InGraph(Bandit(), 1)
    reward = jnp.array([1.0, -2.0, 0.5])
    theta = jnp.array([0.3, -0.2, 0.1])

    def params(logits: Any) -> Any:
        return {"torso": {"images": ((),), "mlp": ()}, "head": {"w": jnp.zeros((1, 3)), "b": logits}}

    log_prob = jax.nn.log_softmax(theta)
    # All actions with their probabilities as weights: the estimate is the expectation.
    batch = Batch(jnp.zeros((3, 1)), jnp.arange(3), reward, log_prob, jnp.exp(log_prob))
    estimate = lambda logits: -maml.task_loss(config, task, params(logits), batch)  # noqa: E731
    expected = lambda logits: jax.nn.softmax(logits) @ reward  # noqa: E731
    for derivative in (jax.grad, jax.hessian):
        of_both = jax.jit(lambda x, d=derivative: (d(estimate)(x), d(expected)(x)))
        np.testing.assert_allclose(*of_both(theta), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- tasks, by hand


def test_sinusoids_are_the_papers() -> None:
    env = meta.Sinusoid()
    tasks = env.draw(jax.random.key(0), 2_000)
    for name, low, high in (("amplitude", 0.1, 5.0), ("phase", 0.0, math.pi)):
        values = np.asarray(tasks[name])
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
    inner, outer = env.examples(jax.random.key(1), tasks, 5, 7)
    assert inner.obs.shape == (2_000, 5, 1) and outer.answer.shape == (2_000, 7, 1)
    for rows in (inner, outer):
        y = tasks["amplitude"][:, None, None] * jnp.sin(rows.obs - tasks["phase"][:, None, None])
        np.testing.assert_allclose(rows.answer, y, atol=1e-5)
    assert not np.isin(np.asarray(inner.obs[0]), np.asarray(outer.obs[0])).any()
    state = {"amplitude": jnp.float32(2.0), "phase": jnp.float32(0.5), "x": jnp.array([1.0])}
    _, reward, ended = env.step(jax.random.key(0), state, jnp.array([0.25]))
    np.testing.assert_allclose(reward, -((0.25 - 2.0 * math.sin(0.5)) ** 2), rtol=1e-5)
    assert bool(ended)


def test_pictures_of_a_task_are_of_different_hands_and_turned() -> None:
    pictures = fake_pictures()
    env = meta.Glyphs(pictures, ways=5)
    assert env.num_classes == 24
    tasks = np.asarray(env.draw(jax.random.key(0), 50))
    assert all(len(set(row)) == 5 for row in tasks) and set(tasks.ravel()) == set(range(24))
    inner, outer = env.examples(jax.random.key(1), jnp.asarray(tasks), 2, 3)
    assert inner.obs.shape == (50, 10, 8, 8, 1) and inner.obs.dtype == jnp.uint8 and outer.obs.shape == (50, 15, 8, 8, 1)
    np.testing.assert_array_equal(inner.answer[0], np.repeat(np.arange(5), 2))
    for task, xs, ys, xq, yq in zip(tasks, *(np.asarray(part) for part in (*inner, *outer)), strict=True):
        seen = set()
        for x, y in (*zip(xs, ys, strict=True), *zip(xq, yq, strict=True)):
            character, quarter = task[y] % 6, task[y] // 6
            hands = [h for h in range(20) if np.array_equal(np.rot90(pictures.images[character, h], quarter), x[..., 0])]
            assert len(hands) == 1
            seen.add((int(y), hands[0]))
        assert len(seen) == 25, "no picture stands in both sets"
    plain = meta.Glyphs(pictures, ways=6, turned=False)
    assert plain.num_classes == 6


def test_mirror_images_are_classes_of_their_own() -> None:
    pictures = fake_pictures()
    env = meta.Glyphs(pictures, ways=5, mirrored=True)
    assert env.num_classes == 48 and meta.Glyphs(pictures, turned=False, mirrored=True).num_classes == 12
    seen = np.asarray(env._seen(jnp.arange(48), jnp.full((48, 1), 3)))[:, 0, ..., 0]
    for number, picture in enumerate(seen):
        drawn = pictures.images[number % 6, 3]
        np.testing.assert_array_equal(picture, np.rot90(drawn[:, ::-1] if number >= 24 else drawn, number // 6 % 4))


def test_characters_of_a_task_are_turned_alike_where_asked() -> None:
    pictures = meta.Pictures(np.zeros((6, 2, 4, 4), np.uint8), ("Invented",))
    env = meta.Glyphs(pictures, ways=5, mirrored=True, alike=True)
    drawn = np.asarray(env.draw(jax.random.key(0), 200))
    ways, characters = drawn // 6, drawn % 6
    assert (ways == ways[:, :1]).all() and set(ways.ravel()) == set(range(8))
    assert all(len(set(row)) == 5 for row in characters.tolist())
    mixed = np.asarray(dataclasses.replace(env, alike=False).draw(jax.random.key(0), 200)) // 6
    assert (mixed != mixed[:, :1]).any()
    with pytest.raises(FlatironsError, match="only 6 classes to draw from"):
        dataclasses.replace(env, ways=7)


def test_distorted_pictures_by_hand() -> None:
    images = jnp.asarray(fake_pictures(size=5).images[:1, 0])
    read = lambda linear, shift: np.asarray(meta._resampled(images, jnp.array(linear)[None], jnp.array(shift)[None]))[0]  # noqa: E731
    kept = np.asarray(images[0])
    np.testing.assert_array_equal(read([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), kept)
    moved = read([[1.0, 0.0], [0.0, 1.0]], [1.0, -2.0])
    np.testing.assert_array_equal(moved[:4, 2:], kept[1:, :3])
    assert not moved[4].any() and not moved[:, :2].any(), "nothing is outside"
    np.testing.assert_array_equal(read([[0.0, 1.0], [-1.0, 0.0]], [0.0, 0.0]), np.rot90(kept))
    slanted, by = np.array([[0.9, 0.3], [-0.2, 1.1]], np.float32), np.array([0.4, -0.7], np.float32)
    places = slanted @ (np.indices((5, 5)).reshape(2, -1) - 2.0) + 2.0 + by[:, None]
    low = np.floor(places).astype(int)
    expected = np.zeros(25)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = low + np.array(corner)[:, None]
        weight = np.prod(1.0 - np.abs(places - at), axis=0)
        expected += np.where(((at >= 0) & (at < 5)).all(axis=0), weight * kept[tuple(np.clip(at, 0, 4))], 0.0)
    assert np.abs(read(slanted, by).ravel() - expected).max() <= 0.501
    linear, shift = meta._affine(jax.random.key(0), (2_000,), 1.0, 28)
    turn, size = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])), np.hypot(linear[:, 0, 0], linear[:, 1, 0])
    for values, most in ((turn, 10.0), (size - 1.0, 0.1), (shift, 2.0)):
        assert 0.99 * most < np.abs(values).max() <= 1.0001 * most and abs(np.mean(values)) < 0.05 * most


def test_a_class_is_distorted_as_a_whole_and_a_picture_by_itself() -> None:
    images = np.broadcast_to(fake_pictures().images[:, :1], (6, 20, 8, 8))  # all hands write the same
    for classes, pictures, different in ((1.0, 0.0, 1), (0.0, 1.0, 20)):
        env = meta.Glyphs(meta.Pictures(images, ("Invented",)), 2, turned=False, distorted_classes=classes, distorted_pictures=pictures)
        tasks = jnp.array([[0, 1], [0, 1]])
        inner, outer = jax.jit(env.examples, static_argnums=(2, 3))(jax.random.key(0), tasks, 5, 15)
        assert inner.obs.dtype == jnp.uint8 and outer.obs.shape == (2, 30, 8, 8, 1)
        of_first = [np.concatenate([inner.obs[i, :5], outer.obs[i, :15]]) for i in range(2)]
        assert all(len(np.unique(drawn, axis=0)) == different for drawn in of_first)
        assert not np.array_equal(*of_first), "another task, another character"
    for wrong in ({"distorted_classes": -0.1}, {"distorted_pictures": 5.1}):
        with pytest.raises(FlatironsError, match=r"give a strength from 0 \(none\) to 5"):
            dataclasses.replace(env, **wrong)


def test_navigation_by_hand() -> None:
    env = meta.Navigation()
    state = {"goal": jnp.array([0.3, -0.4]), "place": jnp.zeros(2)}
    state, reward, ended = env.step(jax.random.key(0), state, jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(state["place"], [0.1, -0.05], rtol=1e-6)
    np.testing.assert_allclose(reward, -math.hypot(0.2, 0.35), rtol=1e-5)
    assert not bool(ended)
    _, reward, _ = meta.Navigation(squared=True).step(
        jax.random.key(0), {"goal": jnp.array([0.3, -0.4]), "place": jnp.zeros(2)}, jnp.zeros(2)
    )
    np.testing.assert_allclose(reward, -0.25, rtol=1e-6)
    _, _, ended = env.step(jax.random.key(0), {"goal": jnp.array([0.1, 0.0]), "place": jnp.zeros(2)}, jnp.array([0.95, 0.0]))
    assert bool(ended)


def always_right(config: Any, task: Any, actor: Any, *, greedy: bool) -> Any:
    """One fixed step to the right in every stream: it reaches the goal at 0.3 after three."""
    from flatirons.types import Policy

    return Policy(lambda n: (), lambda key, timestep, carry: (jnp.tile(jnp.array([1.0, 0.0]), (timestep.obs.shape[0], 1)), carry, ()))


def test_episodes_of_tasks_by_hand() -> None:
    config = maml.Config(hidden=(4,), gamma=0.9)
    task: Any = envs.make("meta:navigation", 2, max_episode_steps=5)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), maml.init_params(config, task, jax.random.key(0)))
    goals = jnp.array([[0.3, 0.0], [0.0, 0.4]])
    sampled, _ = episodes.trajectories(config, task, always_right, maml.distribution, params, goals, (), jax.random.key(1), 3)
    np.testing.assert_array_equal(sampled.lengths, [[3, 3, 3], [5, 5, 5]])
    np.testing.assert_allclose(sampled.returns[0], [-(0.2 + 0.1 + 0.0)] * 3, atol=1e-6)
    np.testing.assert_allclose(sampled.returns[1], [-sum(math.hypot(0.1 * t, 0.4) for t in range(1, 6))] * 3, rtol=1e-5)
    weight = np.asarray(sampled.batch.weight).reshape(2, 5, 3)
    np.testing.assert_array_equal(weight[0, :, 0], [1, 1, 1, 0, 0])
    assert weight[1].all()
    obs = np.asarray(sampled.batch.obs).reshape(2, 5, 3, 2)
    np.testing.assert_allclose(obs[1, :, 0, 0], [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_advantages_against_numpy() -> None:
    rng = np.random.default_rng(0)
    horizon, count, gamma, lam = 6, 40, 0.9, 0.8
    obs, reward = rng.normal(size=(horizon, count, 2)), rng.normal(size=(horizon, count))
    ended = np.zeros((horizon, count), bool)
    ended[-1] = True
    ended[2, :10] = True
    weight = (np.cumsum(ended, axis=0) - ended == 0).astype(float)
    rows = Transition(
        jnp.asarray(obs, jnp.float32), (), jnp.asarray(reward, jnp.float32), (), jnp.asarray(ended), jnp.zeros_like(ended), (), (), ()
    )
    found = jax.jit(episodes.advantages)(rows, jnp.asarray(weight, jnp.float32), gamma, lam)
    target, t = np.zeros((horizon + 1, count)), np.broadcast_to(np.arange(horizon)[:, None, None] / 100.0, (horizon, count, 1))
    for i in reversed(range(horizon)):
        target[i] = reward[i] + gamma * (1 - ended[i]) * target[i + 1]
    inputs = np.concatenate([obs, obs**2, t, t**2, t**3, np.ones_like(t)], axis=-1).reshape(-1, 8)
    kept = weight.ravel() > 0
    # A column of the fit counts by its size, as the ridge is relative to it.
    scale = np.sqrt(np.mean(inputs[kept] ** 2, axis=0))
    gram = (inputs[kept] / scale).T @ (inputs[kept] / scale) / kept.sum() + 1e-4 * np.eye(8)
    value = (inputs / scale) @ np.linalg.solve(gram, (inputs[kept] / scale).T @ target[:-1].ravel()[kept] / kept.sum())
    value = value.reshape(horizon, count)
    expected, carry = np.zeros((horizon, count)), np.zeros(count)
    for i in reversed(range(horizon)):
        following = value[i + 1] if i + 1 < horizon else 0.0
        delta = reward[i] + gamma * (1 - ended[i]) * following - value[i]
        carry = delta + gamma * lam * (1 - ended[i]) * carry
        expected[i] = carry
    of_kept = expected[weight > 0]
    expected = (expected - of_kept.mean()) / of_kept.std()
    np.testing.assert_allclose(np.asarray(found)[weight > 0], expected[weight > 0], rtol=2e-2, atol=2e-3)


def test_the_linear_fit_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    inputs, targets, weights = rng.normal(size=(50, 4)) * [1, 10, 0.1, 1], rng.normal(size=50), rng.integers(0, 2, 50).astype(float)
    inputs[:, 3] = 0.0
    found = np.asarray(jax.jit(baseline.linear_fit)(*(jnp.asarray(x, jnp.float32) for x in (inputs, targets, weights))))
    exact = np.linalg.lstsq(inputs[weights > 0], targets[weights > 0], rcond=None)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)


def test_rows_of_no_weight_are_not_in_the_fisher_matrix() -> None:
    x = jnp.arange(12.0).reshape(6, 2) / 10.0
    params = {"w": jnp.array([[0.5, -0.2], [0.1, 0.3]]), "s": jnp.array([0.1, -0.1])}

    def pi(rows: Any) -> Any:
        return lambda p: Normal(rows @ p["w"], jnp.broadcast_to(p["s"][None], rows.shape))

    v = jax.tree.map(lambda p: jnp.cos(p), params)
    weights = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    some = jax.jit(lambda p, v: trust_region.fisher_vector_product(pi(x), p, weights)(v))(params, v)
    kept = jax.jit(lambda p, v: trust_region.fisher_vector_product(pi(x[jnp.array([0, 2, 3])]), p)(v))(params, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), some, kept)


# ------------------------------------------------------------------------------------------------------------------ networks


def test_the_convolutions_are_the_native_ones() -> None:
    spec = ArraySpec((13, 10, 1), "uint8", 0, 255)
    net = few_shot.cnn(spec, 5)
    params = jax.tree.map(lambda x: x + 0.1, net.init(jax.random.key(0), spec))
    obs = jax.random.randint(jax.random.key(1), (4, 13, 10, 1), 0, 256).astype(jnp.uint8)

    def native(params: Any, obs: Any) -> Any:
        x = obs.astype(jnp.float32) / 255.0
        for layer in params:
            x = jax.lax.conv_general_dilated(x, layer["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x - x.mean((0, 1, 2), keepdims=True)
            x = jax.nn.relu(x / jnp.sqrt((x**2).mean((0, 1, 2), keepdims=True) + 1e-3) + layer["b"].reshape(1, 1, 1, -1))
        return x.mean((1, 2))

    np.testing.assert_allclose(*jax.jit(lambda p, o: (net.apply(p, o), native(p, o)))(params, obs), rtol=1e-4, atol=1e-5)
    with pytest.raises(FlatironsError, match="choose network=mlp"):
        few_shot.cnn(ArraySpec((3,)), 5)


def test_pictures_are_told_apart() -> None:
    config = maml.Config(
        num_envs=4, shots=2, queries=2, inner_rate=0.4, network="omniglot-mlp", learning_rate=1e-2, eval_steps=(0, 1), eval_queries=4
    )
    task: Any = InGraph(meta.Glyphs(fake_pictures(size=6), ways=3), 4, "fake")
    # Each picture is its character with a little noise of its own, so that there is something to learn.
    task.env.pictures.images[:] = task.env.pictures.images[:, :1] // 2 + task.env.pictures.images // 2
    maml.check(config, task)

    def run(key: Any) -> Any:
        state = maml.init(config, task, key)
        return jax.lax.scan(lambda s, _: maml.step(config, task, s), state, None, length=100)

    state, metrics = jax.jit(run)(jax.random.key(0))
    assert float(metrics["accuracy"][-20:].mean()) > float(metrics["accuracy"][:5].mean())
    found = maml.score(config, task, maml.actor(state), 20, seed=0)
    assert found["accuracy_after"]["1"] > 0.6 > found["accuracy_after"]["0"] and found["mean"] == found["accuracy_after"]["1"]
    cnn = dataclasses.replace(config, network="omniglot-cnn", filters=4)
    shapes = jax.eval_shape(lambda key: maml.step(cnn, task, maml.init(cnn, task, key))[1], jax.random.key(0))
    assert shapes["accuracy"].shape == ()


# ---------------------------------------------------------------------------------------------------------------- the system


def test_without_inner_steps_theta_learns_all_tasks_at_once() -> None:
    config = maml.Config(**SMALL, inner_steps=0)
    task: Any = envs.make("meta:sinusoid", 3)
    params = maml.init_params(config, task, jax.random.key(0))
    inner, outer = (Batch(*rows) for rows in task.env.examples(jax.random.key(2), task.env.draw(jax.random.key(1), 3), 4, 5))
    loss, _ = maml.loss(config, task, params, maml.Experience(inner, outer))
    guesses = maml.apply(config, task, params, outer.obs.reshape(-1, 1))
    np.testing.assert_allclose(loss, jnp.mean(jnp.square(guesses - outer.answer.reshape(-1, 1))), rtol=1e-5)


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"total_steps": 3_000, "hidden": (20, 20), "num_envs": 10, "learning_rate": 3e-3, "eval_steps": (0, 1, 5)}
    return fi.train("maml", "meta:sinusoid", out=tmp_path_factory.mktemp("maml") / "run", quiet=True, **settings)


def test_a_step_of_adaptation_helps_after_training(sinusoid_run: Any) -> None:
    found = sinusoid_run.evaluate(episodes=60, seed=5)
    mse = found["mse_after"]
    assert mse["1"] < 0.8 * mse["0"] and mse["5"] < mse["1"] and found["mean"] == -mse["5"]
    assert found == sinusoid_run.evaluate(episodes=60, seed=5)


def test_adapting_to_a_new_task_is_one_call(sinusoid_run: Any, tmp_path: Path) -> None:
    x = np.linspace(-5, 5, 10, dtype=np.float32)[:, None]
    y = 3.0 * np.sin(x - 1.0)
    before = sinusoid_run.predict(x)
    run = sinusoid_run.adapt((x, y), steps=10, out=tmp_path / "adapted")
    np.testing.assert_array_equal(sinusoid_run.predict(x), before)
    error = np.mean((run.predict(x) - y) ** 2)
    assert error < 0.5 * np.mean((before - y) ** 2)
    for wrong, words in (
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a number from 0 up"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be"),
        ({"steps": 1.5}, "steps=1.5 must be a whole number"), ({"steps": 0}, "steps=0 must be"),
        ({"learning_rate": 1e30, "steps": 3}, r"became NaN or infinite after 3 steps of 1e\+30 and 1e\+30; give a smaller learning_rate"),
    ):  # fmt: skip
        with pytest.raises(FlatironsError, match=words):
            sinusoid_run.adapt((x, y), **wrong)
    run.save()
    again = fi.load(tmp_path / "adapted")
    np.testing.assert_array_equal(again.predict(x), run.predict(x))
    np.testing.assert_allclose(again.policy(x[3]), run.predict(x)[3], rtol=1e-4, atol=1e-5)


def test_a_meta_iteration_of_policies_stays_in_its_trust_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maml, "AT_ONCE", 1)
    config = maml.Config(
        num_envs=3,
        shots=4,
        queries=4,
        hidden=(8,),
        inner_rate=0.1,
        meta_optimiser="trpo",
        eval_steps=(0, 1),
        total_steps=10,
        fisher_every=2,
        anneal_delta=True,
    )
    task: Any = envs.make("meta:navigation", 3, max_episode_steps=10)
    maml.check(config, task)
    step = jax.jit(lambda state: maml.step(config, task, state))
    new, metrics = step(maml.init(config, task, jax.random.key(0)))
    assert float(metrics["accepted"]) == 1.0 and 0.0 < float(metrics["kl"]) <= 0.01 and float(metrics["improvement"]) > 0.0
    assert int(metrics["episodes"].count) == 12 and int(new.updates) == 1
    late = step(new._replace(updates=jnp.int32(9)))[1]
    assert 0.0 < float(late["kl"]) <= 0.001, "delta has fallen to a tenth"
    found = maml.score(config, task, maml.actor(new), 5, seed=1)
    assert set(found["return_after"]) == {"0", "1"} and found["mean"] == found["return_after"]["1"]
    goal = maml.adapt_to(config, task, maml.actor(new), np.array([0.3, 0.2], np.float32), 2, (0.1, 0.05), jax.random.key(0))
    assert jax.tree.map(jnp.shape, goal) == jax.tree.map(jnp.shape, new.params)


def test_halfcheetahs_are_rewarded_for_their_own_task(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    task: Any = envs.make("meta:halfcheetah-direction", 2, seed=0, max_episode_steps=4)
    task.place([1.0, -1.0])
    task.reset(3)
    action = np.full((2, 6), 2.0, np.float32)
    outcome, _ = task.step(action)
    cost = 0.05 * 6.0  # actions count as they are clipped
    task.place([-1.0, 1.0])
    task.reset(3)
    other, _ = task.step(action)
    np.testing.assert_allclose(outcome.reward + cost, -(other.reward + cost), rtol=1e-5)
    assert np.abs(outcome.reward + cost).min() > 1e-3
    with pytest.raises(FlatironsError, match="a task each"):
        task.place([1.0])
    task.close()
    cheetah = meta.HOST["halfcheetah-velocity"]
    np.testing.assert_allclose(cheetah.reward(np.array([1.5]), np.array([1.0]), np.zeros((1, 6))), [-0.5])
    settings = {"num_envs": 2, "shots": 2, "queries": 1, "hidden": (8,), "total_steps": 2, "eval_steps": (0, 1), "eval_shots": 1}
    run = fi.train(
        "maml-halfcheetah-direction",
        "meta:halfcheetah-direction",
        out=tmp_path / "run",
        env_options={"max_episode_steps": 5},
        quiet=True,
        **settings,
    )
    assert run.step == 2 and run.metrics[-1]["episodes"] == 2 and "return_before" in run.metrics[-1]
    found = run.evaluate(episodes=3, seed=0)
    assert set(found["return_after"]) == {"0", "1"}
    assert run.adapt(1.0, steps=1).policy(np.zeros(17)).shape == (6,)


# -------------------------------------------------------------------------------------------------------------------- Omniglot


def test_omniglot_holds_two_alphabets_out() -> None:
    try:
        datasets.load("omniglot")
    except FlatironsError as error:
        pytest.skip(str(error))
    train, test = (envs.make("meta:omniglot", 1, training=training) for training in (True, False))
    train_env, test_env = (cast_env.env for cast_env in (train, test))  # type: ignore[union-attr]
    assert set(test_env.pictures.alphabets) == set(meta.HELD_OUT) and not set(train_env.pictures.alphabets) & set(meta.HELD_OUT)
    assert test_env.num_classes == len(test_env.pictures.images) == 66 and train_env.num_classes == 4 * len(train_env.pictures.images)
    assert train_env.pictures.images.shape[1:] == (20, 28, 28)
    with pytest.raises(FlatironsError, match="66 to test on"):
        envs.make("meta:omniglot", 1, training=False, ways=67)


def invented(files: str = "0" * 64) -> dict[bool, tuple[meta.Pictures, tuple[str, ...]]]:
    """Six characters to train on, and to test on, where Omniglot's would be."""
    learned, tested = (meta.Pictures(fake_pictures(size=6).images, ("Invented",), files) for _ in range(2))
    return {True: (learned, ()), False: (tested, ())}


def test_more_ways_than_a_test_has_are_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_omniglot", lambda *_: invented())
    with pytest.raises(FlatironsError, match=r"ways=7, .* only 24 classes to train on and 6 to test on \(Invented\): give at most 6"):
        fi.train("maml", "meta:omniglot", out=tmp_path / "run", env_options={"ways": 7}, quiet=True)
    assert not (tmp_path / "run").exists()


def test_only_what_is_learned_from_is_distorted_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_omniglot", lambda *_: invented())
    options = {"mirrored": True, "distorted_classes": 1, "distorted_pictures": 0.5}
    learned, tested = (envs.make("meta:omniglot", 1, training=training, **options).env for training in (True, False))  # type: ignore[union-attr]
    assert learned == meta.Glyphs(learned.pictures, 5, mirrored=True, distorted_classes=1, distorted_pictures=0.5)
    assert tested == meta.Glyphs(tested.pictures, 5, turned=False) and (learned.num_classes, tested.num_classes) == (48, 6)
    turned = envs.make("meta:omniglot", 1, training=False, ways=24, turned_tests=True, **options).env  # type: ignore[union-attr]
    assert turned == meta.Glyphs(turned.pictures, 24) and turned.num_classes == 24


def test_a_preset_sets_what_its_task_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_omniglot", lambda *_: invented())
    with pytest.raises(FlatironsError, match="ways=20, but"):
        fi.train("maml-omniglot-20way", "meta:omniglot", out=tmp_path / "run", quiet=True)
    settings = {"num_envs": 2, "inner_steps": 1, "network": "mlp", "hidden": (4,), "total_steps": 1}
    run = fi.train("maml-omniglot-20way", "meta:omniglot", out=tmp_path / "run", env_options={"ways": 3}, quiet=True, **settings)
    assert read_json(run.path / "config.json")["env_options"] == {"ways": 3}, "what a person gives comes first"
    assert "env       ways 20" in listing.system("maml")


def test_other_pictures_than_a_run_began_with_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = "0" * 64
    monkeypatch.setattr(meta, "_omniglot", lambda *_: invented(files))
    settings = {"num_envs": 2, "shots": 1, "queries": 1, "network": "mlp", "hidden": (4,), "eval_queries": 1, "total_steps": 2}
    run = fi.train("maml", "meta:omniglot", out=tmp_path / "run", env_options={"ways": 2}, stop_at=1, quiet=True, **settings)
    assert run.step == 1
    files = "1" * 64
    with pytest.raises(FlatironsError, match="are not those that"):
        fi.resume(tmp_path / "run", quiet=True)
    files = "0" * 64
    again = fi.resume(tmp_path / "run", quiet=True)
    assert again.step == 2
    with pytest.raises(FlatironsError, match="has other actions than"):
        again.evaluate(20, env_options={"ways": 3})
    with pytest.raises(FlatironsError, match="has no option 'turned'"):
        again.evaluate(20, env_options={"turned": True})


# ------------------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_run_is_refused(sinusoid_run: Any) -> None:
    with pytest.raises(FlatironsError, match="ways=25, but there are only 24 classes"):
        meta.Glyphs(fake_pictures(), ways=25)
    with pytest.raises(FlatironsError, match="at least 2 classes"):
        meta.Glyphs(fake_pictures(), ways=1)
    glyphs: Any = InGraph(meta.Glyphs(fake_pictures(size=12), ways=3), 2)
    with pytest.raises(FlatironsError, match="a character has 20"):
        maml.check(maml.Config(num_envs=2, shots=15, queries=6), glyphs)
    with pytest.raises(FlatironsError, match="a character has 20"):
        maml.check(maml.Config(num_envs=2, shots=1, queries=1, eval_queries=20), glyphs)
    with pytest.raises(FlatironsError, match="name a distribution"):
        fi.train("maml", "jax:CartPole-v1", quiet=True)
    with pytest.raises(FlatironsError, match="choose adam"):
        fi.train("maml", "meta:sinusoid", meta_optimiser="trpo", quiet=True)
    with pytest.raises(FlatironsError, match="at least 1"):
        fi.train("maml", "meta:sinusoid", shots=0, quiet=True)
    with pytest.raises(FlatironsError, match="from 0 up"):
        fi.train("maml", "meta:sinusoid", eval_steps=(), quiet=True)
    with pytest.raises(FlatironsError, match="did you mean sinusoid"):
        envs.make("meta:sinusoids")
    with pytest.raises(FlatironsError, match="has no option 'way'"):
        envs.make("meta:omniglot", way=3)
    x = np.zeros((3, 1), np.float32)
    with pytest.raises(FlatironsError, match="a pair of arrays"):
        sinusoid_run.adapt(x)
    with pytest.raises(FlatironsError, match=r"have shape \[4, 1\], and \[3, 1\]"):
        sinusoid_run.adapt((x, np.zeros((4, 1))))
    with pytest.raises(FlatironsError, match="steps=0"):
        sinusoid_run.adapt((x, x), steps=0)
    with pytest.raises(FlatironsError, match="the answers have NaN"):
        sinusoid_run.adapt((x, x + np.nan))
    with pytest.raises(FlatironsError, match=r"obs have shape \[3, 2\], and \[M, 1\] is wanted"):
        sinusoid_run.predict(np.zeros((3, 2)))
    with pytest.raises(FlatironsError, match="there is no part 'critics' of this policy to drop; it has head, torso"):
        sinusoid_run.uncertainty(x[0], 3, rate=0.1, parts=("critics",))
    assert sinusoid_run.uncertainty(x[0], 3, rate=0.5, parts=("head",)).actions.shape == (3, 1)


def test_pictures_that_a_cast_would_blacken_are_refused() -> None:
    task: Any = InGraph(meta.Glyphs(fake_pictures(size=6), ways=2), 1, "fake")
    whole, classes = np.full((2, 6, 6, 1), 200, np.int64), np.array([0, 1])
    obs, answer = adapting.given(task, (whole.astype(np.float64), classes.astype(np.float32)))
    assert obs.dtype == np.uint8 and (obs == 200).all() and answer.dtype == np.int32
    for pictures, answers, said in (
        (whole / 255, classes, r"float64 from 0.784314 to 0.784314, and uint8 from 0 to 255 is wanted: multiply them by 255 and round"),
        ((whole > 0).astype(np.float32), classes, "multiply them by 255 and round"),
        (whole + 0.5, classes, "round them"),
        (whole * np.nan, classes, "NaN or infinite"),
        (whole + 100, classes, "run from 300 to 300, and uint8 holds 0 to 255"),
        (whole, classes + 0.5, "round them"),
        (whole, classes + 1, "has classes 0 to 1"),
    ):
        with pytest.raises(FlatironsError, match=said):
            adapting.given(task, (pictures, answers))


def test_a_direction_that_is_none_is_refused() -> None:
    direction, velocity = (SimpleNamespace(name=name, env=env) for name, env in meta.HOST.items())
    for wrong in (5.0, 0.0, -0.5):
        with pytest.raises(FlatironsError, match=rf"the direction to adapt to is {wrong:g}: give 1 \(forward\) or -1 \(backward\)"):
            adapting.given(direction, wrong)
    assert [float(adapting.given(direction, way)) for way in (-1, 1.0)] == [-1.0, 1.0]
    assert adapting.given(velocity, 5.0) == 5.0, "faster than any in training, and a pace all the same"


def test_distributions_of_ones_own_are_checked() -> None:
    class Misspelt(Bandit):
        loss = "retrun"

    class Answered(Bandit):
        loss = "cross-entropy"

    class Guessed(Bandit):
        loss = "squared"

    class Seen(Bandit):
        obs_spec = ArraySpec((4, 4, 3), "uint8", 0, 255)

    class Ruled(Bandit):
        def legal(self, state: Any) -> Any:
            return jnp.array([True, True, False])

    config = maml.Config()
    for env, said in (
        (Bandit(max_episode_steps=None), "a bandit has no max_episode_steps, and maml plays its episodes whole"),
        (Misspelt(), "the loss of a bandit is 'retrun': let it be one of squared, cross-entropy, return"),
        (Answered(), "give it the methods examples and demand"),
        (Guessed(), "does not fit its actions, Discrete"),
        (Seen(), "linear in a float vector, and a bandit shows"),
        (Ruled(), "says which actions are legal, and maml does not look at that"),
    ):
        with pytest.raises(FlatironsError, match=said):
            maml.check(config, InGraph(env, 1, "a bandit"))
    maml.check(config, InGraph(Bandit(), 1))


def test_a_task_may_be_made_of_several_parts() -> None:
    class Aimed(Bandit):
        def draw(self, key: Any, num: int) -> Any:
            return {"goal": jnp.zeros((num, 2)), "lap": jnp.zeros(num, jnp.int32)}

    task: Any = InGraph(Aimed(), 1, "aimed")
    found = adapting.given(task, {"goal": [0.3, -0.2], "lap": 2})
    assert found["goal"].dtype == np.float32 and found["lap"].dtype == np.int32 and found["lap"] == 2
    for shown, said in (
        ({"goal": [0.3, -0.2]}, r"must be built as \{'goal': '...', 'lap': '...'\}"),
        ({"goal": [0.3], "lap": 2}, r"goal of the task to adapt to have shape \[1\], and \[2\] is wanted"),
        ({"goal": [0.3, -0.2], "lap": 2.5}, "lap of the task to adapt to are float64"),
    ):
        with pytest.raises(FlatironsError, match=said):
            adapting.given(task, shown)
    config = maml.Config(hidden=(4,), shots=16, total_steps=1)
    params = maml.init_params(config, task, jax.random.key(0))
    adapted = maml.adapt_to(config, task, params, found, 1, (0.1, 0.1), jax.random.key(1))
    assert (np.asarray(adapted["head"]["b"]) != np.asarray(params["head"]["b"])).any()


def test_an_evaluation_may_have_settings_of_its_own(sinusoid_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = sinusoid_run.evaluate(60, 5, eval_shots=1, eval_steps=2)["mse_after"]
    assert set(asked) == {"2"} and asked["2"] > sinusoid_run.evaluate(60, 5)["mse_after"]["1"]
    assert sinusoid_run.config.eval_shots is None and sinusoid_run.config.eval_steps == (0, 1, 5)
    given = ["eval", str(sinusoid_run.path), "--episodes", "60", "--seed", "5", "--json", "--eval-shots", "1", "--eval-steps=2"]
    assert main(given) == 0 and json.loads(capsys.readouterr().out)["mse_after"] == asked
    assert split_settings(["run", "--eval-steps", "0", "2", "--json"], "--eval-") == ({"eval_steps": [0, 2]}, ["run", "--json"])
    for wrong, said in (
        ({"eval_shot": 1}, "'eval_shot' is no setting of an evaluation of maml; did you mean 'eval_shots'"),
        ({"hidden": (3,)}, "'hidden' is no setting of an evaluation"),
        ({"eval_shots": "five"}, "eval_shots='five' does not fit maml"),
        ({"eval_shots": 0}, "at least 1"),
    ):
        with pytest.raises(FlatironsError, match=said):
            sinusoid_run.evaluate(20, 1, **wrong)
