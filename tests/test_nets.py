"""Networks: the two forms of a convolution agree, every kind of observation finds its torso, weights start as they should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.nets import conv, mlp
from flatirons.nets.torso import torso
from flatirons.types import ArraySpec, FlatironsError, Network

PAPERS = {(layer.kernel, layer.stride) for stack in (conv.NATURE, conv.PLAYING_ATARI, conv.MINATAR) for layer in stack}
LAYERS = sorted(PAPERS | {(3, 2), (1, 1), (2, 3)})


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("channels", [2, conv.SHIFTS_FROM])
@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_matrix_form_is_the_convolution(kernel: int, stride: int, channels: int, planes: bool) -> None:
    size = (kernel + 2 * stride + 1, kernel + 4 * stride)  # the last rows and columns fit no kernel, or do
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, channels, *size) if planes else (3, *size, channels)), jnp.float32)
    w = rng.normal(size=(kernel, kernel, channels, 3)) / channels
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(rng.normal(size=3), jnp.float32)}
    shape = jax.eval_shape(lambda p, x: conv.conv(p, x, stride, planes=planes, form="native"), params, x).shape
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def run(form: Any) -> Any:
        def total(p: Any, x: Any) -> tuple[Any, Any]:
            y = conv.conv(p, x, stride, planes=planes, scale=0.5, form=form)
            return jnp.sum(y * weight), y

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x)

    (_, native), native_grads = run("native")
    (_, matrix), matrix_grads = run("matrix")
    assert matrix.shape == shape
    np.testing.assert_allclose(matrix, native, atol=2e-5)
    for a, b in zip(jax.tree.leaves(matrix_grads), jax.tree.leaves(native_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
    assert conv.output_shape((*size, 2), (conv.ConvLayer(3, kernel, stride),)) == shape[1:]


@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_planes_of_bytes_are_the_same_picture(kernel: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (2, 3, kernel + 2 * stride + 1, kernel + 3 * stride), np.uint8)
    params = conv.conv_init(jax.random.key(0), 3, conv.ConvLayer(5, kernel, stride))
    for form in ("matrix", "native"):
        y = conv.conv(params, planes, stride, planes=True, scale=1 / 255, form=form)
        expected = conv.conv(params, np.moveaxis(planes, 1, -1).astype(np.float32) / 255, stride, form="native")
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_convolutions_have_second_derivatives() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, conv.SHIFTS_FROM))
    params = conv.conv_init(jax.random.key(0), conv.SHIFTS_FROM, conv.ConvLayer(3, 3, 1))

    def hessian_product(form: Any) -> Any:
        def total(p: Any) -> Any:
            return jnp.sum(jnp.tanh(conv.conv(p, x, 1, form=form)) ** 2)

        return jax.jvp(jax.grad(total), (params,), (jax.tree.map(jnp.ones_like, params),))[1]["w"]

    np.testing.assert_allclose(hessian_product("matrix"), hessian_product("native"), rtol=1e-3, atol=1e-3)


def test_convolution_against_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    x, w, b = rng.normal(size=(7, 6, 2)), rng.normal(size=(3, 3, 2, 4)), rng.normal(size=4)
    expected = np.zeros((3, 2, 4))
    for i in range(3):
        for j in range(2):
            expected[i, j] = np.einsum("hwc,hwcf->f", x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3], w) + b
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    for form in ("matrix", "native", "auto"):
        np.testing.assert_allclose(conv.conv(params, jnp.asarray(x, jnp.float32), 2, form=form), expected, atol=1e-5)


def test_convolutions_agree_inside_a_scan_and_over_leading_axes() -> None:
    key = jax.random.key(0)
    params = conv.conv_init(key, 3, conv.ConvLayer(4, 3, 2))
    x = jax.random.normal(key, (5, 2, 9, 9, 3))

    def total(form: Any, params: Any) -> Any:
        return jax.lax.scan(lambda c, one: (c + jnp.sum(conv.conv(params, one, 2, form=form) ** 2), None), 0.0, x)[0]

    a, b = (jax.jit(jax.value_and_grad(lambda p, f=form: total(f, p)))(params) for form in ("matrix", "native"))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    np.testing.assert_allclose(a[1]["w"], b[1]["w"], rtol=1e-4, atol=1e-3)
    whole = conv.conv(params, x, 2)
    assert whole.shape == (5, 2, 4, 4, 4)
    np.testing.assert_allclose(whole[3], conv.conv(params, x[3], 2), atol=1e-5)
    # Weights of their own per row, as MAML has them.
    many = jax.vmap(lambda k: conv.conv_init(k, 3, conv.ConvLayer(4, 3, 2)))(jax.random.split(key, 5))
    apart = jax.vmap(lambda p, one: conv.conv(p, one, 2))(many, x)
    np.testing.assert_allclose(apart[2], conv.conv(jax.tree.map(lambda w: w[2], many), x[2], 2), atol=1e-5)


@pytest.mark.parametrize(("num_in", "num_out"), [(8, 5), (5, 8), (6, 6)])
def test_orthogonal_initialisation_is_orthogonal(num_in: int, num_out: int) -> None:
    layer = mlp.dense_init(jax.random.key(0), num_in, num_out, scale=2.0)
    w = np.asarray(layer["w"], np.float64)
    gram = w.T @ w if num_in >= num_out else w @ w.T
    np.testing.assert_allclose(gram, 4.0 * np.eye(min(num_in, num_out)), atol=1e-5)
    assert not np.any(layer["b"])
    kernel = conv.conv_init(jax.random.key(0), 3, conv.ConvLayer(7, 3, 1), scale=1.0)["w"].reshape(27, 7)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(7), atol=1e-5)


def test_fan_in_initialisation_keeps_its_bounds() -> None:
    for layer, bound in (
        (mlp.dense_init(jax.random.key(0), 100, 200, init="fan_in"), 0.1),
        (conv.conv_init(jax.random.key(0), 4, conv.ConvLayer(64, 5, 1), init="fan_in"), 0.1),
    ):
        for x in layer.values():
            assert 0.9 * bound < float(jnp.abs(x).max()) <= bound
        assert float(jnp.std(layer["w"])) == pytest.approx(bound / np.sqrt(3), rel=0.05)
        assert not np.array_equal(np.ravel(layer["w"])[: layer["b"].size], layer["b"])


def test_mlp_by_hand() -> None:
    params = ({"w": jnp.array([[1.0], [-2.0]]), "b": jnp.array([0.5])}, {"w": jnp.array([[3.0]]), "b": jnp.array([1.0])})
    np.testing.assert_allclose(mlp.mlp(params, jnp.array([[2.0, 0.0]]), "relu"), [[8.5]])
    np.testing.assert_allclose(mlp.mlp(params, jnp.array([[0.0, 2.0]]), "relu"), [[1.0]])
    np.testing.assert_allclose(mlp.mlp(params, jnp.array([2.0, 0.0]), "tanh"), np.tanh(3.0 * np.tanh([2.5]) + 1.0), rtol=1e-6)


OBS = {
    "box": (ArraySpec((4,)), 64),
    "matrix": (ArraySpec((3, 5)), 64),
    "discrete": (ArraySpec((), "int32", 0, 5), 64),
    "multi-discrete": (ArraySpec((3,), "int32", 0, 4), 64),
    "ram": (ArraySpec((128,), "uint8", 0, 255), 64),
    "minatar": (ArraySpec((10, 10, 4), "uint8", 0, 1), 128),
    "seaquest": (ArraySpec((10, 10, 10), "uint8", 0, 1), 128),
    "stack": (ArraySpec((4, 36, 40), "uint8", 0, 255, stack=4), 512),
    "rgb": (ArraySpec((40, 36, 3), "uint8", 0, 255), 512),
    "stacked-vector": (ArraySpec((4, 3), stack=4), 64),
    "dict": ({"x": ArraySpec((2,)), "goal": ArraySpec((), "int32", 0, 3)}, 64),
    "image-and-vector": ({"eye": ArraySpec((12, 12, 3), "uint8", 0, 255), "arm": {"q": ArraySpec((7,))}}, 64),
}


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _random_obs(spec: Any, lead: tuple[int, ...], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def one(s: ArraySpec) -> np.ndarray:
        if s.dtype == "float32":
            return rng.normal(size=(*lead, *s.shape)).astype(np.float32)
        return rng.integers(int(s.low), int(s.high) + 1, size=(*lead, *s.shape)).astype(s.dtype)

    return jax.tree.map(one, spec, is_leaf=_is_spec)


@pytest.mark.parametrize("name", OBS)
def test_torso_of_every_kind_of_observation(name: str) -> None:
    spec, features = OBS[name]
    net = torso("auto", spec, (32, 64), "tanh", "fan_in")
    params = net.init(jax.random.key(0), spec)
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    obs = _random_obs(spec, (3, 2))
    leaves, tree = jax.tree.flatten(obs)
    others = jax.tree.leaves(_random_obs(spec, (3, 2), seed=1))

    @jax.jit
    def views(params: Any, obs: Any) -> Any:
        changed = [jax.tree.unflatten(tree, [others[j] if j == i else x for j, x in enumerate(leaves)]) for i in range(len(leaves))]
        vmapped = jax.vmap(net.apply, in_axes=(None, 0))(params, obs)
        grads = jax.grad(lambda p: jnp.sum(net.apply(p, obs) ** 2))(params)
        one = net.apply(params, jax.tree.map(lambda x: x[1], obs))
        return net.apply(params, obs), one, vmapped, grads, [net.apply(params, c) for c in changed]

    out, one, vmapped, grads, changed = views(params, obs)
    assert out.shape == (3, 2, features) and out.dtype == jnp.float32 and np.isfinite(out).all()
    np.testing.assert_allclose(one, out[1], atol=1e-5)
    np.testing.assert_allclose(vmapped, out, atol=1e-5)
    # Every parameter is used, every array of the observation is seen.
    assert all(np.any(np.asarray(g) != 0.0) for g in jax.tree.leaves(grads))
    assert all(float(jnp.abs(other - out).max()) > 1e-4 for other in changed)


def test_pixels_are_scaled_and_frames_become_channels() -> None:
    spec = ArraySpec((4, 84, 84), "uint8", 0, 255, stack=4)
    net = torso("nature", spec, (64,), "relu", "fan_in")
    params = net.init(jax.random.key(0), spec)
    obs = _random_obs(spec, (2,))
    x = jnp.moveaxis(jnp.asarray(obs, jnp.float32) / 255.0, 1, -1)
    for p, layer in zip(params["images"][0], conv.NATURE, strict=True):
        x = jax.nn.relu(conv.conv(p, x, layer.stride, form="native"))
    expected = jax.nn.relu(mlp.dense(params["mlp"][0], x.reshape(2, -1)))
    assert x.shape == (2, 7, 7, 64)
    np.testing.assert_allclose(net.apply(params, obs), expected, atol=1e-5)


def test_discrete_observations_are_one_hot_from_their_lowest() -> None:
    spec = ArraySpec((), "int32", 2, 4)
    net = torso("auto", spec, (), "tanh", "orthogonal")
    params = net.init(jax.random.key(0), spec)
    np.testing.assert_array_equal(net.apply(params, np.array([2, 4], np.int32)), [[1, 0, 0], [0, 0, 1]])


def test_whole_numbers_of_a_wide_range_are_numbers_not_categories() -> None:
    # Gymnasium gives Box(dtype=int32) without bounds the whole range of int32: one-hot it would be 4 billion columns.
    spec = ArraySpec((2,), "int32", -(2.0**31), 2.0**31 - 1)
    net = torso("auto", spec, (8,), "tanh", "orthogonal")
    shapes = jax.eval_shape(lambda k: net.init(k, spec), jax.random.key(0))
    assert max(x.size for x in jax.tree.leaves(shapes)) < 10_000


def test_a_wide_network_is_the_same_stack_with_twice_the_units() -> None:
    spec = OBS["minatar"][0]
    assert isinstance(spec, ArraySpec)
    for name, width in (("minatar", 128), ("minatar-wide", 256)):
        net = torso(name, spec, (8,), "relu", "fan_in")
        params = jax.eval_shape(lambda key, net=net: net.init(key, spec), jax.random.key(0))
        assert [x["w"].shape for x in params["mlp"]] == [(1024, width)] and params["images"][0][0]["w"].shape == (3, 3, 4, 16)


def test_a_persons_own_network_is_passed_through() -> None:
    own = Network(lambda key, spec: {"w": jnp.ones(3)}, lambda params, obs: obs * params["w"][None])
    assert torso(own, ArraySpec((3,)), (64,), "tanh", "orthogonal") is own


def test_unknown_and_unfit_networks_are_refused_in_a_sentence() -> None:
    with pytest.raises(FlatironsError, match="network='nature' looks at images, and there is none"):
        torso("nature", ArraySpec((4,)), (8,), "relu", "fan_in")
    with pytest.raises(FlatironsError, match=r"unknown network 'natur'.*nature"):
        torso("natur", ArraySpec((4,)), (64,), "tanh", "orthogonal")
    small = ArraySpec((10, 10, 4), "uint8", 0, 1)
    with pytest.raises(FlatironsError, match="too small"):
        torso("nature", small, (64,), "tanh", "orthogonal").init(jax.random.key(0), small)
    flat = torso("mlp", small, (64,), "tanh", "orthogonal")
    assert flat.apply(flat.init(jax.random.key(0), small), _random_obs(small, (2,))).shape == (2, 64)


def test_standardised_layers_by_hand() -> None:
    x = np.random.default_rng(0).normal(3.0, 5.0, (4, 6)).astype(np.float32)
    found = np.asarray(mlp.standardise(jnp.asarray(x)))
    np.testing.assert_allclose(found, (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5), rtol=1e-4, atol=1e-5)
    params = mlp.mlp_init(jax.random.key(0), (6, 5, 3), init="fan_in")
    h = np.asarray(x)
    for layer in params:
        y = h @ np.asarray(layer["w"]) + np.asarray(layer["b"])
        h = np.maximum((y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5), 0)
    np.testing.assert_allclose(mlp.mlp(params, jnp.asarray(x), "relu", layer_norm=True), h, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rows", "features", "width"), [(32, 1024, 128), (20, 512, 8)])
def test_product_derivatives(rows: int, features: int, width: int) -> None:
    """The product's own rule, however it transposes, gives the plain one's derivatives: forward, reverse, twice, and under vmap."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (rows, features)), jax.random.normal(keys[1], (features, width)) / features**0.5
    direction = (jax.random.normal(keys[2], x.shape), w)

    def scalar(form: Any) -> Any:
        return lambda x, w: jnp.mean(jnp.sin(form(x, w)))

    def answers(form: Any) -> Any:
        grad = jax.grad(scalar(form), (0, 1))
        forward_twice = jax.jvp(grad, (x, w), direction)
        reverse_twice = jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(scalar(form))(x, w))))(x)
        batched = jax.vmap(grad)(jnp.stack([x, 2.0 * x]), jnp.stack([w, w]))
        return jax.jvp(scalar(form), (x, w), direction)[1], forward_twice, reverse_twice, batched

    for ours, plain in zip(jax.tree.leaves(answers(mlp.product)), jax.tree.leaves(answers(jnp.matmul)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-4, atol=2e-6)
