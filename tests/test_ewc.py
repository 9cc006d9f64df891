"""EWC against its paper: the Fisher information in closed forms, the anchor's exact gradient, continual learning of digits, DQN in turn."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import pictures

import flatirons as fi
from flatirons import envs, studies, systems
from flatirons.core import continual, fisher
from flatirons.data import replay as memory
from flatirons.envs import datasets
from flatirons.run import checkpoint, job, metrics
from flatirons.studies import ewc_dqn
from flatirons.systems import dqn, ewc
from flatirons.types import FlatironsError, Network

# --------------------------------------------------------------------------------------------------------- the Fisher


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("chunk", [4, 64])
def test_a_linear_gaussian_model_has_its_closed_form(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x, y, w, sigma = rng.normal(size=(18, 3)), rng.normal(size=18), rng.normal(size=3), 0.7
    with jax.enable_x64(True):
        log_prob = lambda p, e: -0.5 * jnp.square((e[1] - e[0] @ p["w"]) / sigma)  # noqa: E731
        found = fisher.fisher_diagonal(log_prob, {"w": jnp.asarray(w)}, (jnp.asarray(x), jnp.asarray(y)), chunk=chunk)["w"]
        expected = fisher.fisher_diagonal(lambda p, x: x @ p["w"] / sigma, {"w": jnp.asarray(w)}, jnp.asarray(x), chunk=chunk)["w"]
    residual = y - x @ w
    np.testing.assert_allclose(found, np.mean((residual**2)[:, None] * x**2, axis=0) / sigma**4, rtol=1e-6)
    np.testing.assert_allclose(expected, np.mean(x**2, axis=0) / sigma**2, rtol=1e-6)
    of_the_mean = np.mean(residual[:, None] * x, axis=0) ** 2 / sigma**4
    assert (np.asarray(found) > 2 * of_the_mean).all(), "the mean of squares, not the square of the mean"


def _softmax_regression() -> tuple[Any, ...]:
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(40, 3)), rng.integers(0, 4, 40), rng.normal(size=(3, 4))
    scores = x @ w
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return x, y, w, p


def _of_a_linear_model(w: Any, x: Any, **settings: Any) -> Any:
    """Compiled as a whole, which is quicker than operation by operation."""
    found = jax.jit(lambda w: fisher.classifier_fisher(lambda w, x: x @ w, w, jnp.asarray(x), **settings))
    return found(jnp.asarray(w))


def test_softmax_regression_has_its_closed_forms_by_whose_labels() -> None:
    x, y, w, p = _softmax_regression()
    with jax.enable_x64(True):
        observed = _of_a_linear_model(w, x, chunk=16, labels="observed", observed=jnp.asarray(y))
        expected = _of_a_linear_model(w, x, chunk=16, labels="expected")
        sampled = _of_a_linear_model(w, np.tile(x, (500, 1)), chunk=1000, labels="sampled", key=jax.random.key(0))
    error = np.eye(4)[y] - p
    np.testing.assert_allclose(observed, np.einsum("ni,nc->ic", x**2, error**2) / 40, rtol=1e-6)
    np.testing.assert_allclose(expected, np.einsum("ni,nc->ic", x**2, p * (1 - p)) / 40, rtol=1e-6)
    np.testing.assert_allclose(sampled, expected, rtol=0.1)
    assert not np.allclose(observed, expected, rtol=0.1)


def test_at_the_minimum_of_a_model_that_is_right_it_is_the_hessian() -> None:
    # Each input has logits of its own, so that at the minimum the model's probabilities are the data's frequencies.
    counts = np.array([[4, 3, 1], [1, 5, 2], [2, 2, 4]])
    rows = [(i, c) for i in range(3) for c in range(3) for _ in range(counts[i, c])]
    x, y = np.eye(3)[[i for i, _ in rows]], np.array([c for _, c in rows])
    with jax.enable_x64(True):
        w = jnp.asarray(np.log(counts / counts.sum(axis=1, keepdims=True)))
        loss = lambda w: -jnp.mean(jax.nn.log_softmax(jnp.asarray(x) @ w)[jnp.arange(24), jnp.asarray(y)])  # noqa: E731
        slope, curvature = jax.jit(lambda w: (jax.grad(loss)(w), jax.hessian(loss)(w)))(w)
        assert float(jnp.abs(slope).max()) < 1e-12
        hessian = np.diag(np.asarray(curvature).reshape(9, 9)).reshape(3, 3)
        for labels in ("observed", "expected"):
            found = _of_a_linear_model(w, x, labels=labels, observed=jnp.asarray(y))
            np.testing.assert_allclose(found, hessian, rtol=1e-6)
            assert (np.asarray(found) >= 0).all()


def test_the_expected_fisher_of_a_network_is_its_gauss_newton_matrix() -> None:
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(6, 3)))
        params = {"a": jnp.asarray(rng.normal(size=(3, 5))), "b": jnp.asarray(rng.normal(size=(5, 4)))}
        network = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731

        @jax.jit
        def both(params: Any) -> tuple[Any, Any]:
            jacobian = jax.vmap(jax.jacrev(network), (None, 0))(params, x)
            p = jax.nn.softmax(network(params, x))
            curvature = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
            exact = jax.tree.map(lambda j: jnp.einsum("nc...,ncd,nd...->...", j, curvature, j) / 6, jacobian)
            return fisher.classifier_fisher(network, params, x, labels="expected"), exact

        found, exact = both(params)
    for name in params:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-6)


@pytest.mark.parametrize("labels", ["observed", "sampled", "expected"])
def test_the_quick_fisher_of_dense_layers_is_the_fisher(labels: Any) -> None:
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        layer = lambda a, b: {"w": jnp.asarray(rng.normal(size=(a, b))), "b": jnp.asarray(rng.normal(size=b))}  # noqa: E731
        params = {"torso": (layer(3, 6), layer(6, 5)), "head": layer(5, 4)}
        x, y, key = jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.integers(0, 4, 12)), jax.random.key(1)
        forms = (fisher.dense_classifier_fisher, fisher.classifier_fisher)
        quick, general = jax.jit(lambda params: [f(ewc.logits, params, x, labels=labels, observed=y, key=key) for f in forms])(params)
    for found, exact in zip(jax.tree.leaves(quick), jax.tree.leaves(general), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_a_fisher_without_what_it_needs_is_refused() -> None:
    f = functools.partial(fisher.classifier_fisher, lambda w, x: x @ w, jnp.ones((2, 2)))
    for call, said in (
        (lambda: fisher.fisher_diagonal(lambda p, x: p * x, jnp.float32(1.0), jnp.zeros(0)), "needs examples, and was given 0"),
        (lambda: f(jnp.ones((3, 2)), labels="observed"), "observed labels needs them"),
        (lambda: f(jnp.ones((3, 2)), labels="sampled"), "needs a random key"),
        (lambda: f(jnp.ones((3, 2)), labels="empirical"), r"labels='empirical' .* give 'observed' \(the data's: the empirical Fisher\)"),
        (lambda: fisher.dense_classifier_fisher(ewc.logits, {}, jnp.ones((3, 2)), labels="exact"), "labels='exact' does not say"),
    ):
        with pytest.raises(FlatironsError, match=said):
            call()


# --------------------------------------------------------------------------------------------------------- the anchor


def _trees(count: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [{"w": jnp.asarray(rng.normal(size=(3, 4))), "b": (jnp.asarray(rng.normal(size=4)),)} for _ in range(count)]


def test_the_anchored_gradient_is_lambda_f_times_the_distance() -> None:
    with jax.enable_x64(True):
        params, anchor, weight = _trees(3)
        information = jax.tree.map(jnp.square, weight)
        plain = lambda config, task, params, batch: (jnp.sum(jnp.sin(params["w"])) * batch, {"loss": batch})  # noqa: E731
        loss = fisher.anchored(plain, [anchor], [information], 3.0)
        (total, metrics), grads = jax.value_and_grad(loss, argnums=2, has_aux=True)(None, None, params, 2.0)
        without = jax.grad(plain, argnums=2, has_aux=True)(None, None, params, 2.0)[0]
        at_home = jax.grad(loss, argnums=2, has_aux=True)(None, None, anchor, 2.0)[0]
        bare = jax.grad(plain, argnums=2, has_aux=True)(None, None, anchor, 2.0)[0]
    pull = 3.0 * _flat(information) * (_flat(params) - _flat(anchor))
    np.testing.assert_allclose(_flat(grads) - _flat(without), pull, rtol=1e-6)
    np.testing.assert_array_equal(_flat(at_home), _flat(bare))
    by_hand = 1.5 * np.sum(_flat(information) * (_flat(params) - _flat(anchor)) ** 2)
    np.testing.assert_allclose(metrics["penalty"], by_hand, rtol=1e-6)
    assert float(metrics["penalty"]) > 0 and float(total) == pytest.approx(2.0 * np.sin(params["w"]).sum() + float(metrics["penalty"]))


def test_penalties_of_several_tasks_are_one_penalty() -> None:
    with jax.enable_x64(True):
        params, *anchors = _trees(5)
        informations = [jax.tree.map(lambda x: jnp.where(x > 0, x, 0.0), tree) for tree in _trees(4, seed=1)]
        separate = jax.grad(fisher.penalty)(params, anchors, informations)
        anchor, information = anchors[0], informations[0]
        for one, weight in zip(anchors[1:], informations[1:], strict=True):
            anchor, information = fisher.combined(anchor, information, one, weight)
        together = jax.grad(fisher.penalty)(params, [anchor], [information])
        apart = [float(fisher.penalty(p, anchors, informations) - fisher.penalty(p, [anchor], [information])) for p in (params, anchors[2])]
    np.testing.assert_allclose(_flat(together), _flat(separate), rtol=1e-6, atol=1e-12)
    assert apart[0] == pytest.approx(apart[1], rel=1e-6) and apart[0] > 0, "they differ by a constant"


def test_online_and_separate_agree_after_one_task_and_then_decay() -> None:
    start, first, second, new = _trees(4)
    zeros = jax.tree.map(jnp.zeros_like, start)
    one = fisher.decayed(zeros, first, new, 0.5)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(fisher.combined(zeros, zeros, first, new)), strict=True):
        np.testing.assert_array_equal(x, y)
    anchor, information = fisher.decayed(one[1], second, new, 0.5)
    np.testing.assert_array_equal(_flat(anchor), _flat(second))
    np.testing.assert_allclose(_flat(information), 1.5 * _flat(new), rtol=1e-6)


def test_l2_is_ewc_with_one_for_f() -> None:
    params, anchor = _trees(2)
    np.testing.assert_allclose(
        fisher.penalty(params, [anchor], [fisher.identity(params)]), 0.5 * np.sum((_flat(params) - _flat(anchor)) ** 2), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree | {"w": jnp.ones((3, 5))}, r"w has shape \[3, 5\] there and \[3, 4\] here"),
        (lambda tree: {"w": tree["w"]}, "it has no b/0"),
        (lambda tree: tree | {"c": jnp.ones(1)}, "it has c, which this one lacks"),
    ],
)
def test_an_anchor_of_another_network_is_refused(change: Any, said: str) -> None:
    (params,) = _trees(1)
    with pytest.raises(FlatironsError, match=f"the anchor is of another network: {said}"):
        fisher.penalty(params, [change(params)], [params])
    with pytest.raises(FlatironsError, match=f"the Fisher information is of another network: {said}"):
        fisher.penalty(params, [params], [change(params)])
    with pytest.raises(FlatironsError, match="1 anchors and 2 Fisher"):
        fisher.penalty(params, [params], [params, params])


def test_overlap_by_hand() -> None:
    a, b = {"x": jnp.array([1.0, 0.0, 3.0])}, {"x": jnp.array([0.0, 2.0, 0.0])}
    assert float(fisher.overlap(a, {"x": 5.0 * a["x"]})) == pytest.approx(1.0)
    assert float(fisher.overlap(a, b)) == 0.0
    assert float(fisher.overlap(a, {"x": jnp.array([1.0, 1.0, 0.0])})) == pytest.approx(np.sqrt(0.25 * 0.5), rel=1e-6)
    assert float(fisher.overlap(a, {"x": jnp.zeros(3)})) == 0.0


def test_noise_has_its_size_and_goes_where_it_is_said_to() -> None:
    information = {"x": jnp.concatenate([jnp.zeros(4000), jnp.full(4000, 1.0), jnp.full(4000, 3.0)])}
    params = jax.tree.map(jnp.zeros_like, information)
    added = {
        kind: np.asarray(fisher.disturbed(jax.random.key(0), params, information, 0.2, kind, damping=0.25)["x"]).reshape(3, 4000)
        for kind in ("uniform", "inverse_fisher", "null_space")
    }
    for kind, noise in added.items():
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(0.2, rel=0.05), kind
    assert (added["null_space"][1:] == 0).all() and (added["null_space"][0] != 0).all()
    np.testing.assert_allclose(added["uniform"].std(axis=1), 0.2, rtol=0.05)
    variances = added["inverse_fisher"].var(axis=1)
    # F over its mean (4/3) is 0, ¾ and 9/4, and 0.25 is added: variances as 4 : 1 : 0.4.
    np.testing.assert_allclose(variances / variances[1], [4.0, 1.0, 0.4], rtol=0.1)
    none = fisher.disturbed(jax.random.key(0), params, {"x": jnp.ones(12000)}, 0.2, "null_space")["x"]
    assert (np.asarray(none) == 0).all()


def test_transfer_and_forgetting_by_hand() -> None:
    scores = jnp.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.4], [0.5, 0.9, 0.6]])
    untrained = jnp.array([0.1, 0.1, 0.2])
    value = lambda f, *a: pytest.approx(float(f(*a)), abs=1e-6)  # noqa: E731
    assert value(continual.average, scores) == (0.5 + 0.9 + 0.6) / 3
    assert value(continual.backward_transfer, scores) == ((0.5 - 0.9) + (0.9 - 0.8)) / 2
    assert value(continual.forward_transfer, scores, untrained) == ((0.2 - 0.1) + (0.4 - 0.2)) / 2
    assert value(continual.forgetting, scores) == ((0.9 - 0.5) + (0.8 - 0.9)) / 2
    assert value(continual.average, scores, 2) == 0.75 and value(continual.backward_transfer, scores, 2) == 0.7 - 0.9
    assert value(continual.forgetting, scores, 2) == 0.9 - 0.7 and value(continual.forward_transfer, scores, untrained, 2) == 0.2 - 0.1
    assert value(continual.forgetting, scores, 1) == 0.0 and value(continual.backward_transfer, scores, 1) == 0.0


# --------------------------------------------------------------------------------------------------------- the system

SETTINGS: dict[str, Any] = {
    "num_tasks": 2, "task_steps": 150, "turn_steps": 75, "total_steps": 300, "hidden": (30,), "batch_size": 64, "fisher_examples": 200,
    "learning_rate": 2e-2, "anneal_learning_rate": False, "eval_examples": 500, "strength": 100.0, "labels": "expected",
}  # fmt: skip


@functools.cache
def _program() -> tuple[Any, Any]:
    """init and step, compiled once: data are in the State, so any of the same size will do, and lambda is a number like another."""
    task = pictures()
    ewc.check(ewc.Config(**SETTINGS), task)
    return jax.jit(lambda config, key: ewc.init(config, task, key)), jax.jit(lambda config, state: ewc.step(config, task, state))


@functools.cache
def _learned(held: bool, digits: bool = False) -> tuple[Any, list[Any], list[Any]]:
    """(Config, the States after each turn, the metrics), of MNIST's digits or of made-up pictures; not `held`: lambda is 0."""
    init, step = _program()
    config = ewc.Config(**(SETTINGS if held else SETTINGS | {"strength": 0.0}))
    state = init(config, jax.random.key(0))
    if digits:
        try:
            arrays = datasets.load("mnist")[0]
        except FlatironsError as missing:
            pytest.skip(str(missing))
        cut = {name: x[: 2000 if name.startswith("train") else 500] for name, x in arrays.items()}
        state = state._replace(data=ewc._data(SimpleNamespace(arrays=cut)))
    states, found = [state], []
    for _ in range(config.total_steps // config.turn_steps):
        state, metrics = step(config, states[-1])
        states.append(state)
        found.append(jax.device_get(metrics))
    return config, states, found


def test_ewc_remembers_digits_that_sgd_forgets() -> None:
    _, states, found = _learned(True, digits=True)
    _, _, plain = _learned(False, digits=True)
    assert plain[1]["accuracy_0"] > 0.8 and plain[3]["accuracy_1"] > 0.8
    assert found[3]["accuracy_0"] > plain[3]["accuracy_0"] + 0.15
    assert found[3]["accuracy_0"] > found[1]["accuracy_0"] - 0.06 and found[3]["accuracy_1"] > 0.75
    scores = np.asarray(states[-1].scores)
    assert found[3]["backward_transfer"] == pytest.approx(scores[1, 0] - scores[0, 0], abs=1e-6)
    assert plain[3]["forgetting"] > found[3]["forgetting"] and found[3]["total_score"] == pytest.approx(scores[1].sum())


def test_nothing_holds_until_the_first_task_ends() -> None:
    _, held, found = _learned(True)
    _, free, plain = _learned(False)
    assert found[0]["penalty"] == found[1]["penalty"] == 0.0 and found[2]["penalty"] > 0.0
    assert all(metrics["penalty"] == 0.0 for metrics in plain)
    np.testing.assert_allclose(found[1]["loss"], plain[1]["loss"], rtol=1e-5)
    assert not np.array_equal(_flat(held[4].params), _flat(free[4].params))


def test_a_report_has_no_mean_over_tasks_of_what_stands_for_a_moment() -> None:
    config, task = ewc.Config(**SETTINGS), pictures()
    found = jax.eval_shape(lambda key: ewc.step(config, task, ewc.init(config, task, key))[1], jax.random.key(0))
    means = {name for name in found if not metrics.is_level(name, systems.levels(ewc))}
    assert means == {"loss", "train_accuracy", "penalty", "grad_norm"}
    assert systems.levels(ewc_dqn) == ("game",) and systems.levels(dqn) == ()


def test_the_step_size_falls_to_nothing_over_each_task() -> None:
    _, states, _ = _learned(True)
    rows = ewc.Rows(jnp.zeros((75, 1), jnp.int32), jnp.zeros((75, 1), jnp.int32))
    slope = lambda config, task, params, batch: (sum(jnp.sum(x) for x in jax.tree.leaves(params)), {})  # noqa: E731
    for annealed, turn, steps in ((True, 0, 75 - 0.5 * 74 * 0.5), (True, 1, 0.5 * 0.5 * 76), (False, 1, 75)):
        config = ewc.Config(**{**SETTINGS, "mode": "sgd", "optimiser": "sgd", "learning_rate": 1e-3, "anneal_learning_rate": annealed})
        before = states[turn]._replace(opt_state=ewc._optimiser(config).init(states[turn].params))
        after, _ = ewc.update(config, pictures(), before, rows, loss=slope)
        np.testing.assert_allclose(_flat(before.params) - _flat(after.params), 1e-3 * steps, rtol=1e-3)


def test_joint_learning_sees_all_tasks_so_far() -> None:
    _, states, _ = _learned(True)
    seen = []

    def spy(config: Any, task: Any, state: Any, rows: Any) -> Any:
        seen.append(np.unique(rows.task))
        return state._replace(updates=state.updates + config.turn_steps), {}

    for mode, state, tasks in (("joint", states[2], [0, 1]), ("sgd", states[2], [1])):
        ewc.step(ewc.Config(**{**SETTINGS, "mode": mode}), pictures(), state, update=spy)
        np.testing.assert_array_equal(seen[-1], tasks)


def test_the_anchor_is_what_the_task_left_and_f_its_information() -> None:
    _, states, _ = _learned(True)
    before, left, after = states[1], states[2], states[3]
    assert not _flat(before.fisher).any() and not _flat(before.anchor).any()
    np.testing.assert_array_equal(_flat(left.anchor), _flat(left.params))
    np.testing.assert_array_equal(_flat(after.fisher), _flat(left.fisher))
    assert (_flat(left.fisher) >= 0).all() and _flat(left.fisher).any()
    settings = ewc.Config(**{**SETTINGS, "mode": "online", "decay": 0.5})
    anchor, decayed = ewc._consolidated(settings, states[4], 1, jax.random.key(2), jnp.bool_(True))
    np.testing.assert_array_equal(_flat(anchor), _flat(states[4].params))
    assert (_flat(decayed) >= 0.5 * _flat(states[4].fisher)).all() and (_flat(decayed) < _flat(states[4].fisher)).any()
    ewc_l2 = ewc._consolidated(ewc.Config(**{**SETTINGS, "mode": "l2"}), states[1], 0, jax.random.key(2), jnp.bool_(True))
    assert (_flat(ewc_l2[1]) == 1).all()
    held = ewc.overlaps(left.fisher, states[4].fisher)
    assert set(held) == {"layer 1", "layer 2", "all"} and all(0.0 < x <= 1.0 for x in held.values())


def test_the_first_task_is_the_pictures_and_only_the_square_is_permuted() -> None:
    config = ewc.Config(**{**SETTINGS, "num_tasks": 3, "square": 8})
    permutations = np.asarray(ewc._permutations(config, jax.random.key(3)))
    np.testing.assert_array_equal(permutations[0], np.arange(784))
    moved = (permutations != np.arange(784)[None]).reshape(3, 28, 28)
    assert (np.sort(permutations, axis=1) == np.arange(784)[None]).all()
    assert not moved[0].any() and moved[1].sum() > 50 and moved[2].sum() > 50
    moved[:, 10:18, 10:18] = False
    assert not moved.any()
    assert (permutations[1] != permutations[2]).any()


def test_parameters_that_matter_are_those_noise_hurts() -> None:
    _, states, _ = _learned(True)
    state = states[2]
    images = ewc.shown(state.data.images[:200], state.permutations[0])
    exact = jax.jit(lambda params: fisher.dense_classifier_fisher(ewc.logits, params, images, labels="expected"))(state.params)
    found = {
        kind: ewc.sensitivity(state.params, exact, state.permutations[0], state.data, [0.0, 0.3], kind, jax.random.key(0), draws=3)
        for kind in ("uniform", "null_space")
    }
    assert found["uniform"][0] == found["null_space"][0] > 0.9
    assert found["null_space"][1] > 0.9 > found["uniform"][1]


def _same(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_run_stops_resumes_and_is_scored(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(datasets, "load", lambda name, data_dir=None: (dict(pictures().arrays), (), "0" * 64))
    settings = SETTINGS | {"total_steps": 225}
    whole = fi.train("ewc", "data:mnist", out=tmp_path / "whole", quiet=True, eval_every=75, **settings)
    fi.train("ewc", "data:mnist", out=tmp_path / "half", quiet=True, eval_every=75, stop_at=150, **settings)
    resumed = fi.resume(tmp_path / "half", quiet=True)
    _same(whole._state, resumed._state)
    assert [row["mean"] for row in whole.evaluations] == [row["mean"] for row in resumed.evaluations]
    assert set(whole.evaluations[-1]) >= {"mean", "accuracy_0", "accuracy_1"} and "accuracy_1" not in whole.evaluations[0]
    loaded = fi.load(tmp_path / "half")
    assert loaded.evaluate()["mean"] == whole.evaluations[-1]["mean"]
    assert loaded.policy(pictures().arrays["test_images"][0]) in range(10)
    from flatirons.run import cli

    assert cli.run("eval", [str(tmp_path / "half"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy_0"] > 0.5
    more = checkpoint.load_latest(tmp_path / "half" / "checkpoints", jax.eval_shape(lambda: resumed._state)).tree
    np.testing.assert_array_equal(_flat(more.fisher), _flat(resumed._state.fisher))
    with pytest.raises(FlatironsError, match="there is no task to go on with"):
        fi.resume(tmp_path / "half", total_steps=375, quiet=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"turn_steps": 70}, "turn_steps=70 does not divide task_steps=150"),
        ({"fisher_examples": 60}, "fisher_examples is 60: give a multiple of 100"),
        ({"square": 29}, "square is 29"),
        ({"num_envs": 2}, "leave it at 1"),
        ({"strength": -1.0}, "strength=-1.0 must be at least 0"),
        ({"hidden": (16,), "batch_size": 0}, "must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(FlatironsError, match=said):
        ewc.check(ewc.Config(**{**SETTINGS, **settings}), pictures())


def test_it_needs_pictures() -> None:
    with pytest.raises(FlatironsError, match="ewc learns to classify images of 28 x 28, and jax:CartPole-v1 has none"):
        ewc.check(ewc.Config(), envs.make("jax:CartPole-v1"))


# --------------------------------------------------------------------------------------------------- DQN, games in turn

GAMES = "sequence:probe:action,probe:constant-reward"
SMALL: dict[str, Any] = {
    "num_envs": 2, "train_every": 4, "turn_steps": 16, "visit_steps": 32, "total_steps": 128, "batch_size": 8, "buffer_size": 128,
    "learning_starts": 8, "hidden": (8,), "target_every": 4, "fisher_batches": 3, "epsilon_steps": 20, "learning_rate": 1e-2,
}  # fmt: skip


@functools.cache
def _played(mode: str, turns: int = 5, **more: Any) -> tuple[Any, Any, list[Any], list[Any]]:
    """(Config, task, the States after each turn, the metrics)."""
    config = ewc_dqn.Config(**{**SMALL, **more, "mode": mode})
    task = envs.make(GAMES, config.num_envs)
    ewc_dqn.check(config, task)
    step = jax.jit(lambda config, state: ewc_dqn.step(config, task, state))
    states = [jax.jit(lambda config, key: ewc_dqn.init(config, task, key))(config, jax.random.key(0))]
    found = []
    for _ in range(turns):
        state, metrics = step(config, states[-1])
        states.append(state)
        found.append(jax.device_get(metrics))
    return config, task, states, found


def test_games_come_in_turn_each_with_its_own_replay_and_exploration() -> None:
    _, _, states, found = _played("ewc", task_gains=True)
    assert [m["game"] for m in found] == [0, 0, 1, 1, 0]
    sizes = [[int(game.replay.size.sum()) for game in state.games] for state in states]
    assert sizes == [[0, 0], [16, 0], [32, 0], [32, 16], [32, 32], [48, 32]]
    assert [[int(game.turns) for game in state.games] for state in states][-1] == [12, 8]
    assert [int(state.learners[0].updates) for state in states] == [0, 3, 7, 10, 14, 18], "each game waits for its learning_starts"
    assert [int(state.game) for state in states] == [0, 0, 0, 1, 1, 0]


def test_a_game_that_is_left_has_an_anchor_and_holds_the_others() -> None:
    config, _, states, found = _played("ewc", task_gains=True)
    left, other = states[2], states[4]
    assert not _flat(states[1].games[0].fisher).any()
    np.testing.assert_array_equal(_flat(left.games[0].anchor), _flat(left.learners[0].params))
    assert _flat(left.games[0].fisher).any() and not _flat(left.games[1].fisher).any()
    np.testing.assert_array_equal(_flat(other.games[0].fisher), _flat(left.games[0].fisher))
    assert [bool(m["penalty"] > 0) for m in found] == [False, False, True, True, True]
    anchors, informations = ewc_dqn._pull(config, other.games, 0)
    np.testing.assert_array_equal(_flat(anchors), _flat(other.games[1].anchor))
    np.testing.assert_array_equal(_flat(informations), _flat(other.games[1].fisher))
    no_pull = ewc_dqn._pull(ewc_dqn.Config(**{**SMALL, "mode": "sgd"}), other.games, 0)
    assert no_pull == ((), ())
    both, _ = ewc_dqn._pull(ewc_dqn.Config(**{**SMALL, "own_anchor": True}), other.games, 0)
    assert not np.array_equal(_flat(both), _flat(anchors))
    for leaving, ones in ((True, 1.0), (False, _flat(left.games[0].fisher))):
        settings = ewc_dqn.Config(**{**SMALL, "mode": "l2"})
        _, l2 = ewc_dqn._left(settings, settings, None, 0, other.learners[0], left.games[0], jnp.bool_(leaving))  # type: ignore[arg-type]
        assert (_flat(l2.fisher) == ones).all()


def test_without_a_penalty_it_is_dqn() -> None:
    config, task, states, _ = _played("separate")
    game = task.tasks[0]
    state = dqn.init(config, game, jax.random.fold_in(jax.random.key(0), 0))
    step = jax.jit(lambda config, state: dqn.step(config, game, state)[0])
    for _ in range(8):
        state = step(config, state)
    ours = states[2]
    for name in ("params", "target", "updates"):
        np.testing.assert_allclose(_flat(getattr(state, name)), _flat(getattr(ours.learners[0], name)), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(state.replay.reward, ours.games[0].replay.reward)
    np.testing.assert_array_equal(state.replay.action, ours.games[0].replay.action)


def test_separate_agents_share_nothing() -> None:
    _, _, states, _ = _played("separate")
    assert len(states[0].learners) == 2
    _same(states[2].learners[1], states[0].learners[1])
    _same(states[4].learners[0], states[2].learners[0])
    assert not np.array_equal(_flat(states[4].learners[1].params), _flat(states[0].learners[1].params))


@pytest.mark.parametrize("likelihood", ["gaussian", "softmax", "softmax-scaled"])
def test_f_of_the_q_network_is_its_closed_form(likelihood: Any) -> None:
    _, task, states, _ = _played("separate")
    config = ewc_dqn.Config(**{**SMALL, "likelihood": likelihood})
    game, replay, params = task.tasks[0], states[2].games[0].replay, states[2].learners[0].params
    key = jax.random.key(5)
    found = ewc_dqn.fisher(config, game, params, replay, key, 2)

    rows = [memory.sample(replay, game.spec, jax.random.fold_in(key, i), config.batch_size) for i in range(2)]
    several = [np.asarray(dqn.q_values(config, game, params, one.obs)) for one in rows]
    scale = np.sqrt(np.mean([q.var(axis=-1) for q in several])) if likelihood == "softmax-scaled" else 1.0

    @jax.jit
    def by_hand(params: Any, rows: Any) -> Any:
        slopes = jax.jacrev(lambda p: dqn.q_values(config, game, p, rows.obs) / scale)(params)
        p = jax.nn.softmax(dqn.q_values(config, game, params, rows.obs) / scale)
        m = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
        if likelihood == "gaussian":
            m = jax.vmap(lambda a: jnp.diag(jax.nn.one_hot(a, 2)))(rows.action)
        return jax.tree.map(lambda j: jnp.einsum("na...,nab,nb...->...", j, m, j) / 8, slopes)

    exact = np.mean([_flat(by_hand(params, one)) for one in rows], axis=0)
    np.testing.assert_allclose(_flat(found), exact, rtol=1e-4, atol=1e-9)


def test_gains_of_each_game_are_its_own() -> None:
    config, task, states, _ = _played("ewc", task_gains=True)
    for name, first in (("gain", 1.0), ("bias", 0.0)):
        start, left, end = (np.asarray(state.learners[0].params["torso"]["games"][0][name]) for state in (states[0], states[2], states[4]))
        assert start.shape == (2, 8) and (start == first).all()
        assert (left[0] != first).any() and (left[1] == first).all(), "one game's gains do not move while another is played"
        np.testing.assert_array_equal(end[0], left[0])
        assert (end[1] != first).any()
    params = states[4].learners[0].params
    layer, own = (jax.tree.map(np.asarray, x) for x in (params["torso"]["shared"]["mlp"][0], params["torso"]["games"][0]))
    for g, one in enumerate(task.tasks):
        obs = np.ones((3, *one.spec.obs.shape), np.float32)
        hidden = np.maximum(own["gain"][g] * (obs @ layer["w"] + layer["b"]) + own["bias"][g], 0.0)
        by_hand = hidden @ np.asarray(params["q"]["w"]) + np.asarray(params["q"]["b"])
        found = dqn.q_values(ewc_dqn._config_of(config, task, g), one, params, jnp.asarray(obs))
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)


def test_gains_run_through_convolutions_too() -> None:
    task = envs.make("sequence:pgx:minatar-breakout,pgx:minatar-space_invaders", 1)
    plain, gained = (ewc_dqn.Config(network="minatar", task_gains=on) for on in (False, True))
    one, key = task.tasks[0], jax.random.key(0)
    params = dqn.init_params(ewc_dqn._config_of(gained, task, 0), one, key)
    shapes = [own["gain"].shape for own in params["torso"]["games"]]
    assert sorted(shapes) == [(2, 16), (2, 128)]
    obs = jax.random.bernoulli(key, 0.3, (2, *one.spec.obs.shape))
    inner = params | {"torso": params["torso"]["shared"]}
    same = dqn.q_values(plain, one, inner, obs)
    np.testing.assert_allclose(dqn.q_values(ewc_dqn._config_of(gained, task, 0), one, params, obs), same, rtol=1e-6)
    own = params["torso"]["games"]
    silenced = params | {"torso": params["torso"] | {"games": jax.tree.map(lambda x: x.at[1].set(0.0), own)}}
    np.testing.assert_allclose(dqn.q_values(ewc_dqn._config_of(gained, task, 0), one, silenced, obs), same, rtol=1e-6)
    flat = jnp.broadcast_to(params["q"]["b"], same.shape)
    np.testing.assert_allclose(dqn.q_values(ewc_dqn._config_of(gained, task, 1), one, silenced, obs), flat, rtol=1e-6)


def test_a_network_without_layers_gets_no_gains() -> None:
    own = Network(lambda key, spec: {"scale": jnp.ones(1)}, lambda params, obs: params["scale"] * obs)
    config, task = ewc_dqn.Config(**{**SMALL, "task_gains": True, "network": own}), envs.make(GAMES, 2)
    with pytest.raises(FlatironsError, match="the network has none: leave it off"):
        ewc_dqn.init(config, task, jax.random.key(0))


def test_gated_units_stay_silent_in_their_game() -> None:
    _, _, states, _ = _played("ewc", task_gains=True, gated=0.5, hidden=(64,))
    start, end = (state.learners[0].params["torso"]["games"][0] for state in (states[0], states[4]))
    silent = np.asarray(start["gain"]) == 0
    assert (np.asarray(start["gain"])[~silent] == 1).all()
    assert (silent.mean(axis=1) > 0.3).all() and (silent.mean(axis=1) < 0.7).all()
    assert (silent[0] != silent[1]).any()
    for name in ("gain", "bias"):
        assert (np.asarray(end[name])[silent] == 0).all(), "no gradient opens a gate"
        assert (np.asarray(end[name])[~silent] != np.asarray(start[name])[~silent]).any()
    held = np.asarray(states[2].games[0].fisher["torso"]["shared"]["mlp"][0]["b"])
    assert (held[silent[0]] == 0).all() and held[~silent[0]].any(), "what is silent in a game is free in the others"


CLOSING: dict[str, Any] = {"task_gains": True, "hidden": (64,), "turn_steps": 32, "close_silent": True, "reopen_silent": True}


def test_units_that_are_silent_as_a_game_is_left_stay_silent_in_it() -> None:
    """Closing them changes none of the game's Q; afterwards nothing that is done to what F is blind to does, where before it would."""
    config, task, plain, _ = _played("ewc", turns=1, **CLOSING | {"close_silent": False, "reopen_silent": False})
    _, _, closed, _ = _played("ewc", turns=4, **CLOSING)
    chosen, game = ewc_dqn._config_of(config, task, 0), task.tasks[0]
    obs = memory.sample(plain[1].games[0].replay, game.spec, jax.random.key(0), 64).obs
    q = functools.partial(dqn.q_values, chosen, game, obs=obs)
    open_, shut = (states[1].learners[0].params for states in (plain, closed))
    np.testing.assert_allclose(q(shut), q(open_), rtol=1e-6, atol=1e-7)
    own = shut["torso"]["games"][0]
    silent = np.asarray(own["gain"][0]) == 0
    assert silent.any() and not silent.all() and (np.asarray(own["bias"][0])[silent] == 0).all()
    assert (np.asarray(own["gain"][1]) == 1).all(), "the other game's gates stay open"
    np.testing.assert_array_equal(np.asarray(closed[1].learners[0].target["torso"]["games"][0]["gain"][0]) == 0, silent)

    def spoken(params: Any) -> Any:
        """The parameters after another game has made the silent units speak."""
        layer = params["torso"]["shared"]["mlp"][0]
        louder = {"w": layer["w"], "b": layer["b"] + jnp.where(silent, 10.0, 0.0)}
        shared = params["torso"]["shared"] | {"mlp": [louder, *params["torso"]["shared"]["mlp"][1:]]}
        return params | {"torso": params["torso"] | {"shared": shared}}

    assert np.abs(np.asarray(q(spoken(open_)) - q(open_))).max() > 1e-2
    np.testing.assert_allclose(q(spoken(shut)), q(shut), rtol=1e-6, atol=1e-7)
    after = closed[2].learners[0].params["torso"]["games"][0]
    np.testing.assert_array_equal(np.asarray(after["gain"][0]), np.asarray(own["gain"][0]))


@pytest.mark.parametrize("mode", ["ewc", "sgd"])
def test_closed_units_are_begun_anew_for_the_next_game(mode: str) -> None:
    """Those closed in all games left so far: no game hears that, and the game that is entered learns with them."""
    config, task, states, _ = _played(mode, turns=4, **CLOSING)
    left, other, both = states[1].learners[0], states[2].learners[0], jnp.array([True, True])

    def q(params: Any, g: int) -> Any:
        obs = memory.sample(states[2].games[g].replay, task.tasks[g].spec, jax.random.key(0), 64).obs
        return dqn.q_values(ewc_dqn._config_of(config, task, g), task.tasks[g], params, obs)

    def gains(learner: Any) -> Any:
        return np.asarray(learner.params["torso"]["games"][-1]["gain"])

    closed = gains(left)[0] == 0
    assert closed.any() and not closed.all()
    entered = ewc_dqn._reopened(left, 1, jnp.array([True, False]), jax.random.key(1))
    np.testing.assert_array_equal(q(entered.params, 0), q(left.params, 0))
    before, after = (x.params["torso"]["shared"]["mlp"][-1]["w"] for x in (left, entered))
    assert (np.asarray(before != after).any(axis=0) == closed).all() and np.abs(after[:, closed]).max() <= after.shape[0] ** -0.5
    for params in (entered.params, entered.target):
        assert ((np.asarray(params["q"]["w"]) == 0).all(axis=1) == closed).all()
    again = ewc_dqn._reopened(other, 0, both, jax.random.key(1))
    reopened = (gains(other) == 0).all(axis=0)
    assert reopened.any() and (gains(again)[0][reopened] == 1).all() and (gains(again)[1][reopened] == 0).all()
    for g in (0, 1):
        np.testing.assert_allclose(q(again.params, g), q(other.params, g), rtol=1e-6, atol=1e-7)
    nothing_left = ewc_dqn._reopened(left, 1, jnp.array([False, False]), jax.random.key(1))
    np.testing.assert_array_equal(_flat(nothing_left.params), _flat(left.params))
    spoke = (gains(states[3].learners[0])[0] != 0) & reopened
    assert spoke.any() and np.asarray(states[3].learners[0].params["q"]["w"])[spoke].any(axis=1).all(), "what is begun anew learns"


def test_the_rate_falls_over_each_visit() -> None:
    rates, budgets = [], set()

    def seen(config: Any, task: Any, state: Any, experience: Any, **more: Any) -> Any:
        jax.debug.callback(lambda rate: rates.append(float(rate)), config.learning_rate)
        jax.debug.callback(lambda steps: budgets.add(int(steps)), config.total_steps)
        return dqn.update(config, task, state, experience, **more)

    config = ewc_dqn.Config(**{**SMALL, "mode": "sgd", "anneal_each_visit": True})
    task = envs.make(GAMES, config.num_envs)
    step = jax.jit(lambda config, state: ewc_dqn.step(config, task, state, update=seen)[0])
    state = ewc_dqn.init(config, task, jax.random.key(0))
    for _ in range(3):
        state = step(config, state)
    jax.effects_barrier()
    np.testing.assert_allclose(rates, [1e-2] * 4 + [5e-3] * 4 + [1e-2] * 4, rtol=1e-6)
    assert budgets == {config.total_steps // 2}, "DQN's own schedules run over a game's share of the decisions"


def test_f_of_all_actions_is_the_sum_over_them() -> None:
    _, task, states, _ = _played("separate")
    game, replay, params = task.tasks[0], states[2].games[0].replay, states[2].learners[0].params
    config, key = ewc_dqn.Config(**{**SMALL, "likelihood": "gaussian-all"}), jax.random.key(5)
    rows = memory.sample(replay, game.spec, jax.random.fold_in(key, 0), config.batch_size)
    slopes = jax.jit(jax.jacrev(lambda p: dqn.q_values(config, game, p, rows.obs)))(params)
    exact = jax.tree.map(lambda j: jnp.sum(jnp.square(j), axis=(0, 1)) / config.batch_size, slopes)
    np.testing.assert_allclose(_flat(ewc_dqn.fisher(config, game, params, replay, key, 1)), _flat(exact), rtol=1e-4, atol=1e-9)


def test_a_study_is_trained_resumed_and_scored_like_a_system(tmp_path: Any) -> None:
    settings = SMALL | {"total_steps": 96, "eval_every": 32, "eval_episodes": 4, "eval_reference": (1.0, 20.0)}
    whole = fi.train("ewc_dqn", GAMES, out=tmp_path / "whole", quiet=True, **settings)
    fi.train("ewc_dqn", GAMES, out=tmp_path / "half", quiet=True, stop_at=48, **settings)
    resumed = fi.resume(tmp_path / "half", quiet=True)
    assert resumed.step == 96
    _same(whole._state, resumed._state)
    assert [{**row, "seconds": 0} for row in whole.evaluations] == [{**row, "seconds": 0} for row in resumed.evaluations]
    last = whole.evaluations[-1]
    assert last["probe:constant-reward"] == 10.0 and last["mean"] == pytest.approx(max(last["probe:action"], -1.0) + 0.5)
    assert fi.load(tmp_path / "half").policy(np.zeros(1, np.float32)) in (0, 1)


def test_names_of_studies_are_found() -> None:
    assert studies.find("ewc-dqn") == (ewc_dqn, dict(ewc_dqn.PRESETS["ewc-dqn"].config), "ewc-dqn")
    assert studies.find("ewc_dqn")[0] is ewc_dqn and studies.find("dqn")[0] is dqn
    with pytest.raises(FlatironsError, match="did you mean 'sgd-dqn'"):
        studies.find("sgd-dqm")
    for preset in ewc_dqn.PRESETS.values():
        ewc_dqn.Config(**preset.config)


def test_a_sequence_has_one_shape() -> None:
    games = envs.make("sequence:pgx:minatar-breakout,pgx:minatar-seaquest", 2)
    assert [task.spec.obs.shape for task in games.tasks] == [(10, 10, 10)] * 2 and games.spec.action.n == 6
    both = (games.tasks[0], envs.make("pgx:minatar-breakout", 2))
    obs, own = jax.device_get(jax.jit(lambda key: [task.observe(task.reset(key)).obs for task in both])(jax.random.key(0)))
    np.testing.assert_array_equal(obs[..., :4], own)
    assert own.any() and not obs[..., 4:].any()
    assert games == envs.make("sequence:pgx:minatar-breakout,pgx:minatar-seaquest", 2) and games.resized(3).tasks[1].num_envs == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sequence:probe:action", "names 1 task; a sequence has at least two"),
        ("sequence:probe:action,probe:action", "names a task twice"),
        ("sequence:probe:action,probe:corridor", "probe:corridor has other observations than probe:action"),
        ("sequence:probe:action,CartPole-v1", "CartPole-v1 is stepped outside JAX"),
        ("sequence:probe:action,probe:acton", "did you mean"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused(name: str, said: str) -> None:
    with pytest.raises(FlatironsError, match=said):
        envs.make(name, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"turn_steps": 18}, "train_every=4 does not divide turn_steps=18"),
        ({"visit_steps": 40}, "turn_steps=16 does not divide visit_steps=40"),
        ({"fisher_batches": 0}, "at least 1 minibatch"),
        ({"strength": -1.0}, "would push parameters from their anchors"),
        ({"gated": 0.5}, "give task_gains too"),
        ({"close_silent": True}, "give task_gains too"),
        ({"reopen_silent": True}, "give close_silent too"),
        ({"eval_reference": (1.0,)}, "eval_reference has 1 returns for 2 games"),
        ({"eval_reference": (1.0, 0.0)}, "give numbers above 0"),
    ],
)
def test_a_sequence_of_games_that_cannot_be_learned_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(FlatironsError, match=said):
        ewc_dqn.check(ewc_dqn.Config(**{**SMALL, **settings}), envs.make(GAMES, 2))


def test_what_counts_as_one_may_be_another_at_an_evaluation() -> None:
    config: Any = ewc_dqn.Config(**SMALL)
    run: Any = SimpleNamespace(system=ewc_dqn, config=config, name="ewc-dqn")
    asked, actor = job.evaluation_config(run, {"eval_reference": [1]}), cast(Any, None)
    assert asked.eval_reference == (1.0,)
    with pytest.raises(FlatironsError, match="eval_reference has 1 returns for 2 games"):
        ewc_dqn.score(asked, envs.make(GAMES, 2), actor, 1, 0)


def test_one_game_is_no_sequence_and_a_sequence_is_no_game(tmp_path: Any) -> None:
    with pytest.raises(FlatironsError, match="ewc-dqn takes several games in turn and probe:action is one"):
        ewc_dqn.check(ewc_dqn.Config(**SMALL), envs.make("probe:action", 2))
    with pytest.raises(FlatironsError, match="is several tasks to be learned in turn, which ewc-dqn takes"):
        fi.train("ppo", GAMES, out=tmp_path / "x", quiet=True, total_steps=64, num_envs=2, num_steps=8, num_minibatches=2)
    assert not (tmp_path / "x").exists()
    with pytest.raises(FlatironsError, match="channels is 3, and minatar-breakout shows 4"):
        envs.make("pgx:minatar-breakout", 1, channels=3)
