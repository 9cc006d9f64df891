"""MC dropout as a system and as a study, on data made here; Thompson sampling in dqn; how sure any run's networks are."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from benchmarks.methods import thompson
from flatirons import envs
from flatirons.core import bayes
from flatirons.envs import datasets, forager
from flatirons.run import uncertainty as uncertainties
from flatirons.studies import uci
from flatirons.systems import alphago, alphazero, dqn, mc_dropout, tabular
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, MultiDiscrete, Spec, TimeStep

GIVEN = os.environ.get("FLATIRONS_DATA") or ""
needs_data = pytest.mark.skipif(not Path(GIVEN, "uci").is_dir(), reason="FLATIRONS_DATA names no folder with the data sets")
LINE = Spec(ArraySpec((1,)), Box((-np.inf,), (np.inf,)))


def line(noise: float = 0.0, num_rows: int = 64, num_splits: int = 2) -> Any:
    """y = 30 x + 100 + noise for x in ±1, with a quarter of the rows to test on."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (num_rows, 1))
    order = np.stack([rng.permutation(num_rows) for _ in range(num_splits)])
    arrays = {"x": x, "y": 30 * x[:, 0] + 100 + noise * rng.normal(size=num_rows), "train": order[:, : num_rows * 3 // 4]}
    return datasets.DataTask("data:line", 1, LINE, arrays | {"test": order[:, num_rows * 3 // 4 :]}, "0")


SMALL = {"hidden": (16,), "total_steps": 800, "gradient_steps": 100, "batch_size": 32, "drop_inputs": False, "samples": 200}


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Any, Any]:
    """(config, task, actor) after learning the line."""
    config, task = mc_dropout.Config(**SMALL, dropout=0.05, tau=0.25), line(noise=2.0)
    fit = jax.jit(lambda config, key: mc_dropout.fit(config, task, mc_dropout.rows_of(config, task), 1, key))
    return config, task, fit(config, jax.random.key(0))


def test_it_predicts_in_the_units_of_y(fitted: tuple[Any, Any, Any]) -> None:
    config, task, actor = fitted
    found = mc_dropout.score(config, task, actor, 1, 0)
    # The noise's deviation is 2: nothing predicts better, and log p at tau = 1/4 is at best -1/2 log(2 pi 4) - 1/2 = -2.11.
    assert 1.5 < found["rmse"] < 3.0
    assert found["mean"] == found["log_likelihood"] and -2.6 < found["mean"] < -1.9
    mean, variance = mc_dropout.predict(config, actor, np.array([[0.5]], np.float32), jax.random.key(0), 300)
    assert float(mean[0, 0]) == pytest.approx(115.0, abs=2.5)
    assert float(variance[0, 0]) > 1 / 0.25


def test_it_is_less_sure_where_it_has_seen_nothing(fitted: tuple[Any, Any, Any]) -> None:
    config, _, actor = fitted
    _, variance = mc_dropout.predict(config, actor, np.array([[0.0], [8.0]], np.float32), jax.random.key(0), 300)
    assert variance[1, 0] > 2 * variance[0, 0]


def test_each_row_of_a_minibatch_has_its_own_mask_and_the_mean_network_has_none(fitted: tuple[Any, Any, Any]) -> None:
    config, _, actor = fitted
    same = jnp.ones((6, 1))
    out = mc_dropout.network(dataclasses.replace(config, dropout=0.3), actor.params, same, jax.random.key(3))
    assert len(np.unique(np.asarray(out).round(5))) > 1
    assert len(np.unique(np.asarray(mc_dropout.network(config, actor.params, same)).round(5))) == 1


def test_inputs_are_dropped_where_asked() -> None:
    params = ({"w": jnp.eye(2), "b": jnp.zeros(2)},)
    out = mc_dropout.network(mc_dropout.Config(dropout=0.5), params, jnp.ones((500, 2)), jax.random.key(0))
    assert set(np.unique(out)) == {0.0, 2.0}
    kept = mc_dropout.network(mc_dropout.Config(dropout=0.5, drop_inputs=False), params, jnp.ones((500, 2)), jax.random.key(0))
    assert set(np.unique(kept)) == {1.0}


def test_the_loss_is_half_the_squared_error_and_the_tied_decay() -> None:
    """By hand: a network of one weight, rate 0.5, its input kept; then N, tau and the length-scale set lambda."""
    params = ({"w": jnp.full((1, 1), 3.0), "b": jnp.full(1, 1.0)},)
    config = mc_dropout.Config(dropout=0.5, drop_inputs=False)
    batch = mc_dropout.Batch(jnp.array([[1.0], [2.0]]), jnp.array([[5.0], [5.0]]), jax.random.key(0), 0.25)
    total, metrics = mc_dropout.loss(config, None, params, batch)  # type: ignore[arg-type]
    # errors -1 and 2: 1/2 (1 + 4) / 2; decay: |w|² / 1 + |b|²
    assert float(metrics["error"]) == pytest.approx(1.25)
    assert float(total) == pytest.approx(1.25 + 0.25 * (9.0 + 1.0))
    dropped = mc_dropout.loss(dataclasses.replace(config, drop_inputs=True), None, params, batch)[1]  # type: ignore[arg-type]
    assert float(dropped["weight_decay"]) == pytest.approx(0.25 * (9.0 / 0.5 + 1.0))


def test_tau_sets_the_weight_decay_in_the_networks_units() -> None:
    task = line()
    config = mc_dropout.Config(**SMALL, tau=0.01, length_scale=0.5)

    def spying(config: Any, task: Any, params: Any, batch: Any) -> Any:
        return mc_dropout.loss(config, task, params, batch)[0], {"decay": batch.decay}

    @jax.jit
    def decay(key: Any) -> Any:
        state = mc_dropout.init(config, task, key)
        rows = mc_dropout.Rows(jnp.zeros((1, 4, 1)), jnp.zeros((1, 4, 1)))
        return mc_dropout.update(config, task, state, rows, loss=spying)[1]["decay"]

    y = task.arrays["y"][task.arrays["train"][0]]
    assert float(decay(jax.random.key(0))) == pytest.approx(0.25 / (2 * 48 * 0.01 * y.var()), rel=1e-3)


def test_every_row_comes_once_in_an_epoch() -> None:
    config = mc_dropout.Config(gradient_steps=5, batch_size=32)
    key = jax.random.key(0)
    order = jax.jit(functools.partial(mc_dropout.minibatches, config, 80))
    seen = np.concatenate([np.asarray(order(key, u)).ravel() for u in range(0, 10, 5)])
    assert seen.shape == (320,)
    for epoch in seen.reshape(4, 80):
        assert sorted(epoch) == list(range(80))
    assert not np.array_equal(seen[:80], seen[80:160])
    np.testing.assert_array_equal(order(key, 5), order(key, 5))


def test_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120).astype(np.uint8)
    images = np.zeros((120, 3, 3), np.uint8)
    images[np.arange(120), labels, labels] = 255
    arrays = {"train_images": images[:90], "train_labels": labels[:90], "test_images": images[90:], "test_labels": labels[90:]}
    task: Any = datasets.DataTask("data:dots", 1, Spec(ArraySpec((3, 3), "uint8", 0, 255), Discrete(3)), arrays, "0")
    config = mc_dropout.Config(**(SMALL | {"total_steps": 200}), dropout=0.3)
    mc_dropout.check(config, task)
    actor = jax.jit(lambda key: mc_dropout.fit(config, task, mc_dropout.rows_of(config, task), 3, key))(jax.random.key(0))
    found = mc_dropout.score(config, task, actor, 1, 0)
    assert found["accuracy"] == 1.0 and -0.3 < found["log_likelihood"] < 0.0
    log_probs = bayes.class_log_probs(mc_dropout.draws(config, actor, np.zeros((1, 3, 3), np.uint8), jax.random.key(0), 100))
    assert float(jnp.max(jnp.exp(log_probs))) < 0.9, "nothing is in the picture"


# ----------------------------------------------------------------------------------------------------------------- the study


def test_the_study_chooses_on_held_out_rows_and_never_on_test_rows() -> None:
    task = line(noise=2.0, num_rows=120)
    config = mc_dropout.Config(**SMALL)
    settings: dict[str, Any] = dict(config=config, epochs=250, rates=(0.01, 0.4), taus=(0.25, 0.0001), samples=50)
    found = uci.study(task, **settings)
    # tau = 1/4 is the noise's; a deviation of 100 fits nothing.
    np.testing.assert_allclose(found.tau, 0.25)
    assert found.validation.shape == (2, 2, 2) and found.rmse.shape == (2,)
    best = found.validation.reshape(2, -1).argmax(axis=1)
    np.testing.assert_allclose(found.rate, np.array([0.01, 0.4], np.float32)[best // 2])
    assert (found.rmse < 8.0).all()
    arrays = dict(task.arrays)
    only_test = np.setdiff1d(arrays["test"][0], arrays["train"][0])
    arrays["y"] = np.where(np.isin(np.arange(120), only_test), arrays["y"] + 1e3, arrays["y"])
    other = uci.study(dataclasses.replace(task, arrays=arrays), **settings)
    np.testing.assert_array_equal(other.validation[0], found.validation[0])
    assert other.rate[0] == found.rate[0] and other.rmse[0] > 100


def test_the_study_judges_by_the_mean_of_some_networks() -> None:
    task = line(noise=2.0, num_rows=120)
    config = uci.updates(mc_dropout.Config(**SMALL), 60, 10)
    rows = mc_dropout.Rows(task.arrays["x"].astype(np.float32), task.arrays["y"][:, None].astype(np.float32))
    learn, held = (jax.tree.map(lambda x, part=part: x[None, part], rows) for part in (slice(60), slice(60, None)))
    key, each = jax.random.key(3), []
    for network in jax.random.split(key, 2):
        key_fit, key_score = jax.random.split(network)
        chosen = dataclasses.replace(config, dropout=0.1, tau=0.25)
        one, other = (jax.tree.map(lambda x: x[0], part) for part in (learn, held))
        fitted = mc_dropout.fit(chosen, cast(Any, None), one, 1, key_fit)
        each.append(float(mc_dropout.quality(chosen, fitted, other, key_score, 20)["log_likelihood"]))
    found = uci.search(config, (0.1,), (0.25,), 20, 2)(learn, held, key[None])
    assert found.shape == (1, 1, 1) and abs(each[0] - each[1]) > 1e-3
    np.testing.assert_allclose(found[0, 0, 0], np.mean(each), rtol=1e-4)


def test_the_study_refuses_what_has_no_splits_or_no_tau() -> None:
    with pytest.raises(FlatironsError, match="jax:CartPole-v1 has no splits"):
        uci.study(envs.make("jax:CartPole-v1"))
    classes = dataclasses.replace(line(), spec=Spec(ArraySpec((1,), "float32"), Discrete(2)))
    with pytest.raises(FlatironsError, match="the targets of data:line are classes, which have no precision tau"):
        uci.study(classes)


def test_batches_to_the_threshold() -> None:
    """120 decisions a batch, 25 of them before anything counts, and a window of a thousand since."""
    rewards = np.full(6_000, 0.4)
    assert thompson.batches_to_threshold(rewards) is None
    rewards[3_600:] = 1.6
    # 0.4 (1000 - n) + 1.6 n > 1050 from n = 542 decisions on.
    expected = pytest.approx((3_600 + 542 - 3_000) / 120)
    assert thompson.batches_to_threshold(rewards) == expected
    rewards[:3_000] = 9.0
    assert thompson.batches_to_threshold(rewards) == expected, "the burn-in does not count"
    assert thompson.batches_to_threshold(np.full(6_000, 1.6)) == pytest.approx(1_000 / 120)
    arm = {"batches": 125, "batches_to_threshold": [10.0, 20.0]}
    slow, fresh = arm | {"batches_to_threshold": [50.0, None]}, arm | {"batches_to_threshold": [None, None]}
    compared, control = (thompson.rows_of({"thompson": arm, "epsilon-greedy": slow, "untrained": u})[::2] for u in (fresh, arm))
    assert compared[0]["measured"] == "15.0, 0.200" and compared[1]["measured"] == "0 of 2" and compared[1]["reached"]
    assert control[1]["measured"] == "2 of 2" and not control[1]["reached"]


def test_standard_error() -> None:
    assert uci.standard_error(np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / np.sqrt(3))


# ------------------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_refused() -> None:
    task = line()
    for settings, words in (
        ({"dropout": 1.0}, r"dropout is 1\.0: it is the probability to drop"),
        ({"num_envs": 2}, "a data set is one stream"),
        ({"samples": 0}, "needs at least 1 stochastic pass"),
        ({"tau": 0.0}, "must be above 0"),
        ({"split": 2}, "has splits 0 to 1"),
        ({"batch_size": 0}, "must be at least 1"),
    ):
        with pytest.raises(FlatironsError, match=words):
            mc_dropout.check(mc_dropout.Config(**settings), task)
    with pytest.raises(FlatironsError, match="learns from rows of x and y, and jax:CartPole-v1 has none"):
        mc_dropout.check(mc_dropout.Config(), envs.make("jax:CartPole-v1"))


@needs_data
def test_a_run_of_it_like_any_other(tmp_path: Path) -> None:
    settings = SMALL | {"total_steps": 200}
    run = fi.train("mc_dropout", "data:uci-yacht", out=tmp_path / "run", quiet=True, eval_every=100, **settings)
    assert run.evaluate()["rmse"] < 15.0 and len(run.evaluations) == 2
    again = fi.load(tmp_path / "run")
    x = np.zeros(6, np.float32)
    assert again.policy(x).shape == (1,)
    sure = again.uncertainty(x, n=50)
    assert sure.actions.shape == (50, 1) and sure.action_std is not None and sure.action_std[0] > 0 and sure.value is None


# ---------------------------------------------------------------------------------------------------------- Thompson sampling

FORAGER: dict[str, Any] = {"learning_starts": 16, "buffer_size": 64, "batch_size": 8, "hidden": (16,)}


def _settings(**changed: Any) -> Any:
    return dqn.Config(**(dict(dqn.PRESETS["dqn-thompson"].config) | FORAGER | changed))


def test_thompson_draws_anew_for_each_decision_or_once_an_episode() -> None:
    task: Any = envs.make("jax:Forager-v1", 3)
    same = TimeStep(jnp.ones((3, 27)), (), jnp.zeros(3, bool), ())
    params = jax.jit(lambda key: dqn.init_params(_settings(), task, key))(jax.random.key(1))
    for exploration in ("thompson", "thompson-episode"):
        config = _settings(exploration=exploration, num_envs=3, train_every=3, buffer_size=66, dropout=0.5)
        acting = dqn.policy(config, task, dqn.Actor(params, jnp.float32(0.0)), greedy=False)
        act = jax.jit(acting.act)
        carry, seen = acting.reset(3), []
        for t in range(12):
            action, carry, _ = act(jax.random.key(t), same._replace(first=jnp.full(3, t == 0)), carry)
            seen.append(np.asarray(action))
        changes = (np.diff(np.stack(seen), axis=0) != 0).any()
        assert changes == (exploration == "thompson")
        if exploration == "thompson-episode":
            masks = [np.asarray(carry)]
            _, carry, _ = act(jax.random.key(99), same._replace(first=jnp.array([True, False, False])), carry)
            masks.append(np.asarray(carry))
            assert (masks[0][0] != masks[1][0]).any() and (masks[0][1:] == masks[1][1:]).all()
            assert len(np.unique(masks[0][:, 0])) == 3, "each environment has its own"


def test_thompson_is_random_until_it_learns_and_learns_with_dropout() -> None:
    config, task = _settings(exploration="thompson-episode"), envs.make("jax:CartPole-v1", 1)

    @jax.jit
    def run(key: Any) -> Any:
        state = dqn.init(config, task, key)
        state, metrics = jax.lax.scan(lambda s, _: dqn.step(config, task, s), state, None, length=20)
        acting = dqn.policy(config, task, dqn.actor(state), greedy=True)
        seen: Any = task.observe(state.collector.env)  # type: ignore[union-attr]
        greedy = [acting.act(jax.random.key(i), seen, acting.reset(1)) for i in (0, 1)]
        return metrics["epsilon"], state.updates, [action for action, *_ in greedy], [carry for _, carry, _ in greedy]

    rates, updates, actions, carries = run(jax.random.key(0))
    assert rates.tolist() == [1.0] * 15 + [0.0] * 5 and int(updates) == 5
    assert actions[0] == actions[1] and carries[0].shape == (1, 2)


def test_the_loss_of_dqn_has_the_mask_of_its_key() -> None:
    config, task = _settings(dropout=0.5), envs.make("jax:Forager-v1", 1)
    params = jax.jit(lambda key: dqn.init_params(config, task, key))(jax.random.key(0))
    batch = dqn.Batch(jnp.ones((4, 27)), jnp.zeros(4, jnp.int32), jnp.zeros(4), key=jax.random.key(1))
    plain = dataclasses.replace(config, dropout=None, exploration="epsilon-greedy")

    @jax.jit
    def found(params: Any, batch: Any) -> list[Any]:
        by_hand = dqn.loss(plain, task, bayes.drawn(batch.key, params, 0.5), batch)[0]
        return [by_hand, dqn.loss(config, task, params, batch)[0], dqn.loss(plain, task, params, batch)[0]]

    by_hand, dropped, whole = map(float, found(params, batch))
    assert dropped == pytest.approx(by_hand, rel=1e-6) and whole != pytest.approx(by_hand, rel=1e-3)


def test_thompson_without_dropout_is_refused() -> None:
    task = envs.make("jax:CartPole-v1")
    with pytest.raises(FlatironsError, match=r"there is none: give dropout=0\.1"):
        dqn.check(dqn.Config(exploration="thompson"), task)
    with pytest.raises(FlatironsError, match=r"there is none: give dropout=0\.1"):
        dqn.check(dqn.Config(exploration="thompson", dropout=0.0), task)
    with pytest.raises(FlatironsError, match=r"dropout is 1\.5"):
        dqn.check(dqn.Config(dropout=1.5), task)


# ----------------------------------------------------------------------------------------------------------------- any network


def test_any_run_says_how_sure_it_is(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"quiet": True, "num_envs": 2, "hidden": (8,)}
    q = fi.train("dqn", "jax:CartPole-v1", out=tmp_path / "q", total_steps=8, train_every=4, buffer_size=64, batch_size=8, **settings)
    sure = q.uncertainty([0.0, 0.0, 0.02, 0.0], n=40, rate=0.2)
    assert sure.values is not None and sure.values.shape == (40,) and sure.value_std is not None and sure.value_std > 0
    assert sure.action.shape == (2,) and sure.action.sum() == pytest.approx(1.0) and sure.action_std is None
    again = q.uncertainty([0.0, 0.0, 0.02, 0.0], n=40, rate=0.2)
    np.testing.assert_array_equal(sure.values, again.values)
    p = fi.train(
        "ppo", "jax:Pendulum-v1", out=tmp_path / "p", total_steps=16, num_steps=8, num_minibatches=1, normalise_obs=True, **settings
    )
    spread = p.uncertainty([1.0, 0.0, 0.5], n=30, rate=0.1)
    assert spread.actions.shape == (30, 1) and spread.action_std is not None and spread.action_std[0] > 0 and spread.value is None
    assert p.uncertainty([1.0, 0.0, 0.5], n=30, rate=0.0).action_std[0] == pytest.approx(0.0, abs=1e-6)  # type: ignore[index]
    for arguments, words in (
        ({"n": 0, "rate": 0.1}, "n is 0"),
        ({}, "trained without dropout, so say how much to drop"),
        ({"rate": -0.1}, r"rate is -0\.1"),
        ({"rate": 0.1, "parts": ("critics",)}, "no part 'critics'"),
    ):
        with pytest.raises(FlatironsError, match=words):
            q.uncertainty([0.0, 0.0, 0.0, 0.0], **arguments)


@pytest.mark.parametrize(
    ("spec", "chosen", "action", "actions"),
    [
        (Discrete(3, start=7), [0, 2], [0.5, 0.0, 0.5], [7, 9]),
        (MultiDiscrete((2, 3), (5, 0), (2, 1)), [[0, 2], [1, 2]], [0.5, 0.5, 0.0, 0.0, 1.0], [[[5], [2]], [[6], [2]]]),
        (Box((-1.0, 0.0), (1.0, 4.0), (2, 1)), [[9.0, 1.0], [0.0, 3.0]], [[0.5], [2.0]], [[[1.0], [1.0]], [[0.0], [3.0]]]),
    ],
)
def test_what_a_run_is_unsure_of_are_the_environments_own_actions(
    spec: Any, chosen: Any, action: Any, actions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainties, "_passes", lambda *_: {"action": np.array(chosen)})
    monkeypatch.setattr(uncertainties, "demand_weights", lambda *_: None)
    task: Any = SimpleNamespace(spec=Spec(ArraySpec((1,)), spec))
    found = uncertainties.uncertainty(None, None, task, {}, TimeStep((), (), (), ()), jax.random.key(0), 2, rate=0.1)
    np.testing.assert_allclose(found.action, action)
    np.testing.assert_array_equal(found.actions, actions)
    assert (found.action_std is None) == (not isinstance(spec, Box))


@pytest.fixture(scope="module")
def board() -> Any:
    """Tic-tac-toe for a batch of one."""
    return envs.make("pgx:tic_tac_toe", 1)


def _asked(system: Any, config: Any, board: Any, legal: tuple[int, ...], **arguments: Any) -> Any:
    """The uncertainty of a fresh network on a board with two stones, where these moves count as legal (of an empty board, which is all 0,
    a network without biases knows nothing)."""
    actor = system.actor(jax.jit(lambda key: system.init(config, board, key))(jax.random.key(0)))
    mask = np.isin(np.arange(9), legal)[None]
    stones = np.zeros((1, 3, 3, 2), bool)
    stones[0, 2, 0, 0] = stones[0, 2, 2, 1] = True
    timestep = TimeStep(stones, mask, np.array([True]), ())
    rate = uncertainties.rate_of(system, config, arguments.pop("rate", 0.5))
    return uncertainties.uncertainty(system, config, board, actor, timestep, jax.random.key(1), 32, rate=rate, **arguments)


def test_a_residual_network_says_how_sure_it_is(board: Any) -> None:
    config = alphazero.Config(blocks=1, channels=8, value_hidden=8, buffer_size=256 * 16, num_envs=1)
    sure = _asked(alphazero, config, board, (1, 4, 7))
    assert sure.action.shape == (9,) and sure.action.sum() == pytest.approx(1.0) and sure.value is None
    assert set(sure.actions) <= {1, 4, 7} and len(set(sure.actions)) > 1
    assert len(set(_asked(alphazero, config, board, (1, 4, 7), rate=0.0).actions)) == 1
    with pytest.raises(FlatironsError, match="this alphazero was trained without dropout, so say how much"):
        uncertainties.rate_of(alphazero, config, None)
    with pytest.raises(FlatironsError, match="resign_below of alphazero has no network whose inputs could be dropped; leave parts out"):
        _asked(alphazero, config, board, (1, 4, 7), parts=("resign_below",))


def test_of_alphagos_networks_the_one_that_moves_is_asked(board: Any) -> None:
    config = alphago.Config(blocks=1, channels=8)
    assert len(set(_asked(alphago, config, board, (0, 1, 2, 3), parts=("sl",)).actions)) > 1
    assert len(set(_asked(alphago, config, board, (0, 1, 2, 3), parts=("value",)).actions)) == 1, "its moves are p_sigma's"


def test_a_table_is_no_network() -> None:
    actor = tabular.Actor(np.zeros((1, 5, 2), np.float32), np.float32(0.1))
    with pytest.raises(FlatironsError, match="tabular has no network whose inputs could be dropped; ask a run of a system that has"):
        uncertainties.demand_weights(tabular, tabular.Config(), actor, ())


# ----------------------------------------------------------------------------------------------------------------- the forager


def _world(position: tuple[float, float], angle: float, item: tuple[float, float] = (350.0, 480.0)) -> forager.World:
    """An agent, one food at `item` and one poison far off."""
    return forager.World(jnp.array(position), jnp.float32(angle), jnp.array([item, (350.0, 20.0)]), jnp.array([True, True]))


ONE_OF_EACH = forager.Forager(num_food=1, num_poison=1, regrowth=0.0)


def test_eyes_see_the_nearest_thing_and_how_far_it_is() -> None:
    ahead = jax.jit(lambda world: forager.sight(world, 1)[4])
    # The food's rim is 30 away; the room's wall, 50 away, is behind it.
    np.testing.assert_allclose(ahead(_world((350.0, 250.0), 0.0, (390.0, 250.0))), [1.0, 30.0 / 85.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(ahead(_world((350.0, 250.0), 0.0)), [50.0 / 85.0, 1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(ahead(_world((350.0, 250.0), np.pi / 2)), 1.0)
    assert float(ahead(_world((350.0, 450.0), np.pi / 2, (350.0, 480.0)))[1]) == pytest.approx(20.0 / 85.0, rel=1e-4)


def test_food_poison_and_walls() -> None:
    step = jax.jit(functools.partial(ONE_OF_EACH.step, jax.random.key(0)))
    world, reward, ended = step(_world((350.0, 250.0), np.pi / 2, (350.0, 272.0)), jnp.int32(0))
    assert not bool(world.there[0]) and float(reward) == pytest.approx(6.1, abs=1e-4) and not bool(ended)
    np.testing.assert_allclose(world.position, [350.0, 254.2], rtol=1e-6)
    _, reward, _ = step(_world((350.0, 44.0), 3 * np.pi / 2, (30.0, 480.0)), jnp.int32(0))
    assert -6.0 < float(reward) < -4.8, "poison"
    stopped, _, _ = step(_world((2.0, 250.0), np.pi), jnp.int32(0))
    np.testing.assert_allclose(stopped.position, [2.0, 250.0])
    # Food behind the wall of a room, 12 away, is out of reach.
    behind, _, _ = step(_world((294.0, 250.0), 3 * np.pi / 2, (306.0, 250.0)), jnp.int32(0))
    assert bool(behind.there[0])
    turned, _, _ = step(_world((350.0, 250.0), 0.0), jnp.int32(3))
    assert float(turned.angle) == pytest.approx(2 * np.pi - 0.5, rel=1e-5)


def test_what_was_eaten_grows_again_elsewhere() -> None:
    world = _world((350.0, 250.0), 0.0)._replace(there=jnp.array([False, True]))
    grown, _, _ = dataclasses.replace(ONE_OF_EACH, regrowth=1.0).step(jax.random.key(0), world, jnp.int32(4))
    assert bool(grown.there[0]) and float(jnp.abs(grown.items[0] - world.items[0]).sum()) > 1.0
    np.testing.assert_array_equal(grown.items[1], world.items[1])


def test_the_forager_through_the_door() -> None:
    task: Any = envs.make("jax:Forager-v1", 2)
    env = task.reset(jax.random.key(0))
    step = jax.jit(task.step)
    for t in range(20):
        env, outcome = step(jax.random.key(t), env, jnp.array([t % 5, 0]))
    assert task.spec.action == Discrete(5) and outcome.next_obs.shape == (2, 27)
    assert float(outcome.next_obs.min()) >= 0.0 and float(outcome.next_obs.max()) <= 1.0
