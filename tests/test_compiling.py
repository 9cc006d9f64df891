"""What programs are told of a CPU."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.core import compiling
from flatirons.systems import maml, sac

SMALL, LARGE = ({"w": jax.ShapeDtypeStruct((compiling.ONE_THREAD_NUMBERS + more,), jnp.float32)} for more in (0, 1))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU alone")
def test_some_systems_take_eigens_products_and_a_small_network_on_a_host_one_thread() -> None:
    assert compiling.options(sac, LARGE, in_graph=False) == compiling.EIGEN
    for size in (SMALL, LARGE):
        assert compiling.options(sac, size, in_graph=True) == compiling.EIGEN and compiling.options(maml, size, in_graph=True) == {}
    for system in (sac, maml):
        assert compiling.options(system, SMALL, in_graph=False) == compiling.ONE_THREAD
    # Batches of products take three times as long with them.
    assert compiling.options(sac, LARGE, in_graph=True, seeds=2) == compiling.options(maml, LARGE, in_graph=True) == {}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU alone")
def test_with_them_a_product_is_another_program_and_the_same_number() -> None:
    x = jax.random.normal(jax.random.key(0), (64, 64))
    programs = [jax.jit(lambda x: x @ x, compiler_options=chosen).lower(x).compile() for chosen in ({}, compiling.eigen())]
    # Nothing of the kind is left; a JAX that takes no YNNPACK by itself has none before either.
    assert "ynn" not in programs[1].as_text()
    np.testing.assert_allclose(*(program(x) for program in programs), rtol=1e-5, atol=1e-4)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "EIGEN", {"xla_cpu_no_such_option": ""})
    compiling.eigen.cache_clear()
    try:
        assert compiling.eigen() == {} and compiling.options(sac, LARGE, in_graph=True) == {}
    finally:
        compiling.eigen.cache_clear()


def test_compiling_is_counted_apart_from_what_it_happened_in() -> None:
    parts = {"learning": 3.0, "inference": 2.0, "environment": 1.0}
    compiling.set_apart(parts, 4.0)
    assert parts == {"learning": 0.0, "inference": 1.0, "environment": 1.0, "compile": 4.0}
    compiling.set_apart(parts, 0.0)
    assert parts["compile"] == 4.0
    before = compiling.seconds()
    jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(7))
    assert compiling.seconds() > before


def test_another_process_shares_the_cache_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiling.cache_variables()
    assert found["JAX_COMPILATION_CACHE_DIR"] == jax.config.values["jax_compilation_cache_dir"]
    for name, text in found.items():
        monkeypatch.setenv(name, text)
    code = "import jax; v = jax.config.values; print([v[n] for n in sorted(v) if n.upper() in __import__('sys').argv[1:]])"
    done = subprocess.run([sys.executable, "-c", code, *found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([jax.config.values[name.lower()] for name in sorted(found)])
