"""A policy's decisions on a host, where the environments wait for each one.

A compiled call costs about 0.1 ms there, most of it waking the accelerator's or XLA's thread, which a network of two small layers does not
need. So a policy is traced once and cut in three: what depends on its random key alone is drawn for many decisions in one compiled call;
what depends on the parameters alone is computed when they change; the rest runs for each decision, in NumPy where the network is small and
all its operations are known here, else compiled as a whole. Numbers from NumPy and XLA agree up to the order of float32 sums.

Decision n of the stream `key` uses the randomness of place n % size in block n // size, whichever way it is made, so that a run that
resumes goes on with the same numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun

from flatirons.types import HostTask, Key, Policy, TimeStep

PolicyFunction = Callable[..., Policy]

MOST_FLOPS = 4_000_000
"""Up to this many floating-point operations a decision, NumPy's one thread beats a compiled call."""
MOST_OPERATIONS = 120
"""NumPy operations in a decision, of about 1 us each, up to which the same holds."""
BLOCK_BYTES = 1 << 18
"""Randomness drawn at once, at most 256 decisions."""


# ------------------------------------------------------------------------------------------------------------ in NumPy


def _dot_general(params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Callable[..., Any] | None:
    (left, right), (batch_left, batch_right) = params["dimension_numbers"]
    if batch_left or batch_right or len(shapes[1]) != 2 or tuple(right) != (0,) or tuple(left) != (len(shapes[0]) - 1,):
        return None
    return np.matmul


def _broadcast(params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Callable[..., Any]:
    shape, dims = params["shape"], params["broadcast_dimensions"]
    lined_up = [1] * len(shape)
    for size, dim in zip(shapes[0], dims, strict=True):
        lined_up[dim] = size
    if tuple(lined_up) == tuple(shape):
        return lambda x: np.reshape(x, lined_up)
    return lambda x: np.broadcast_to(np.reshape(x, lined_up), shape)


def _select(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0])


def _argmax(params: dict[str, Any]) -> Callable[..., Any]:
    (axis,), dtype = params["axes"], params["index_dtype"]
    return lambda x: x.argmax(axis).astype(dtype)


def _slice(start: Sequence[int], stop: Sequence[int], strides: Sequence[int] | None) -> Callable[..., Any]:
    where = tuple(slice(*each) for each in zip(start, stop, strides or [1] * len(start), strict=True))
    return lambda x: x[where]


def _split(sizes: Sequence[int], axis: int, shape: tuple[int, ...]) -> list[Callable[..., Any]]:
    """One slice for each part."""
    functions, begin = [], 0
    for size in sizes:
        start, stop = [0] * len(shape), list(shape)
        start[axis], stop[axis] = begin, begin + size
        functions.append(_slice(start, stop, None))
        begin += size
    return functions


def _reducer(name: str) -> Callable[[dict[str, Any], Any], Callable[..., Any]]:
    return lambda params, _: lambda x: getattr(x, name)(axis=tuple(params["axes"]))


def _plain(function: Callable[..., Any]) -> Callable[[dict[str, Any], Any], Callable[..., Any]]:
    return lambda params, shapes: function


def _divide(x: Any, y: Any) -> Any:
    """XLA's division: that of whole numbers goes towards zero."""
    if np.issubdtype(np.asarray(x).dtype, np.inexact):
        return np.true_divide(x, y)
    return np.where((x < 0) == (y < 0), 1, -1).astype(np.asarray(x).dtype) * (np.abs(x) // np.abs(y))


def _logistic(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


NUMPY: dict[str, Callable[[dict[str, Any], Sequence[tuple[int, ...]]], Callable[..., Any] | None]] = {
    "add": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "div": _plain(_divide),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "neg": _plain(np.negative),
    "abs": _plain(np.abs),
    "exp": _plain(np.exp),
    "log": _plain(np.log),
    "tanh": _plain(np.tanh),
    "sqrt": _plain(np.sqrt),
    "rsqrt": _plain(lambda x: 1.0 / np.sqrt(x)),
    "square": _plain(np.square),
    "log1p": _plain(np.log1p),
    "expm1": _plain(np.expm1),
    "sign": _plain(np.sign),
    "is_finite": _plain(np.isfinite),
    "floor": _plain(np.floor),
    "ceil": _plain(np.ceil),
    "rem": _plain(np.fmod),
    "pow": _plain(np.power),
    "logistic": _plain(_logistic),
    "integer_pow": lambda params, _: lambda x: np.power(x, params["y"]),
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "not": _plain(np.invert),
    "select_n": _plain(_select),
    "clamp": _plain(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    "stop_gradient": _plain(lambda x: x),
    "copy": _plain(lambda x: x),
    "convert_element_type": lambda params, _: lambda x: np.asarray(x, params["new_dtype"]),
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, _: None if params["dimensions"] is not None else lambda x: np.reshape(x, params["new_sizes"]),
    "squeeze": lambda params, _: lambda x: np.squeeze(x, tuple(params["dimensions"])),
    "expand_dims": lambda params, _: lambda x: np.expand_dims(x, tuple(params["dimensions"])),
    "transpose": lambda params, _: lambda x: np.transpose(x, params["permutation"]),
    "stack": lambda params, _: lambda *xs: np.stack(xs, params["axis"]),
    "concatenate": lambda params, _: lambda *xs: np.concatenate(xs, params["dimension"]),
    "slice": lambda params, _: _slice(params["start_indices"], params["limit_indices"], params["strides"]),
    "argmax": lambda params, _: _argmax(params),
    "reduce_sum": lambda params, _: lambda x: x.sum(axis=tuple(params["axes"]), dtype=x.dtype),
    "reduce_max": _reducer("max"),
    "reduce_min": _reducer("min"),
    "reduce_and": _reducer("all"),
    "reduce_or": _reducer("any"),
}
"""What each of JAX's primitives is in NumPy: `(params, shapes of the inputs) -> function`, or None where it has no such form."""

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "closed_call": "call_jaxpr"}


class _Unsupported(Exception):
    """The decision has an operation that NumPy is not known to do."""


# --------------------------------------------------------------------------------------------------- the cut in three parts

_KEY, _ACTOR, _SEEN = 1, 2, 4


Step = tuple[Callable[..., Any], tuple[int, ...], int]
"""A NumPy function, the slots of its inputs, the slot of its output."""


class _Program:
    """A traced decision cut by what each operation depends on: `drawn` (the key alone; equations with their slots, run by JAX), `settled`
    (parameters) and `each` (the rest). Raises _Unsupported."""

    def __init__(self, closed: Any, num_actor: int):
        """`closed` takes the key, `num_actor` arrays of the actor, and what is seen."""
        self.values: list[Any] = []
        self.drawn: list[tuple[Any, list[int], list[int]]] = []
        self.settled: list[Step] = []
        self.each: list[Step] = []
        self.flops = 0
        self._needs: list[int] = []
        self._avals: list[Any] = []
        avals = [var.aval for var in closed.jaxpr.invars]
        needs = [_KEY, *[_ACTOR] * num_actor, *[_SEEN] * (len(avals) - num_actor - 1)]
        inputs = [self._slot(need, aval) for need, aval in zip(needs, avals, strict=True)]
        self.actor_slots, self.seen_slots = inputs[1 : num_actor + 1], inputs[num_actor + 1 :]
        self.out_slots = self._take_in(closed, inputs)
        used = {slot for _, ins, _ in (*self.settled, *self.each) for slot in ins} | set(self.out_slots)
        self.noise_slots = sorted(slot for slot in used if self._needs[slot] == _KEY)
        self.read_actor_slots = used.intersection(self.actor_slots)
        if any(jnp.issubdtype(self._avals[slot].dtype, jax.dtypes.prng_key) for slot in self.noise_slots):
            raise _Unsupported("a random key together with what is seen")

    def _slot(self, need: int, aval: Any, value: Any = None) -> int:
        self._needs.append(need)
        self._avals.append(aval)
        self.values.append(value)
        return len(self.values) - 1

    def _constant(self, value: Any, aval: Any) -> int:
        return self._slot(0, aval, np.asarray(value, aval.dtype))

    def _take_in(self, closed: Any, inputs: Sequence[int]) -> list[int]:
        """Add the equations of a jaxpr whose inputs are in these slots; the slots of its outputs."""
        found: dict[Any, int] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        found |= {var: self._constant(value, var.aval) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)}

        def slot_of(atom: Any) -> int:
            return self._constant(atom.val, atom.aval) if isinstance(atom, Literal) else found[atom]

        for equation in closed.jaxpr.eqns:
            ins = [slot_of(atom) for atom in equation.invars]
            need = functools.reduce(int.__or__, (self._needs[slot] for slot in ins), 0)
            name = equation.primitive.name
            if need == _KEY:
                outs = [self._slot(_KEY, var.aval) for var in equation.outvars]
                self.drawn.append((equation, ins, outs))
            elif not need:
                made = jax.device_get(_bind(equation, [self.values[slot] for slot in ins]))
                outs = [self._constant(value, var.aval) for value, var in zip(made, equation.outvars, strict=True)]
            elif name in _CALLS:
                outs = self._take_in(equation.params[_CALLS[name]], ins)
            else:
                shapes = [self._avals[slot].shape for slot in ins]
                if name == "split":
                    functions: list[Any] = _split(equation.params["sizes"], equation.params["axis"], shapes[0])
                else:
                    functions = [NUMPY[name](equation.params, shapes) if name in NUMPY else None]
                if None in functions:
                    raise _Unsupported(name)
                if name == "dot_general":
                    self.flops += 2 * math.prod(shapes[0]) * shapes[1][-1]
                outs = [self._slot(need, var.aval) for var in equation.outvars]
                steps = self.settled if need == _ACTOR else self.each
                steps += [(function, tuple(ins), out) for function, out in zip(functions, outs, strict=True)]
            found |= zip(equation.outvars, outs, strict=True)
        return [slot_of(atom) for atom in closed.jaxpr.outvars]

    def check(self) -> None:
        """Run all of it on the values that are there, nothing drawn, and raise _Unsupported where NumPy gives another shape or dtype."""
        for slot in self.noise_slots:
            self.values[slot] = np.zeros(self._avals[slot].shape, self._avals[slot].dtype)
        with np.errstate(all="ignore"):
            for function, ins, out in self.each:
                made = self.values[out] = function(*[self.values[slot] for slot in ins])
                if (made.shape, made.dtype) != (self._avals[out].shape, self._avals[out].dtype):
                    raise _Unsupported(f"{function} gave {made.dtype}{made.shape} for {self._avals[out]}")

    def noise(self, key: Key) -> list[Any]:
        """The randomness of one decision, in the order of `noise_slots`; traced by JAX."""
        values: dict[int, Any] = {0: key}
        for equation, ins, outs in self.drawn:
            made = _bind(equation, [values.get(slot, self.values[slot]) for slot in ins])
            values.update(zip(outs, made, strict=True))
        return [values[slot] for slot in self.noise_slots]


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr in JAX."""
    name = equation.primitive.name
    if name in _CALLS:
        return list(jaxpr_as_fun(equation.params[_CALLS[name]])(*values))
    made = equation.primitive.bind(*values, **equation.params)
    return list(made) if equation.primitive.multiple_results else [made]


def _key_data(key: Key) -> list[Any]:
    return [jax.random.key_data(key)]


# ------------------------------------------------------------------------------------------------------------ deciding


class Decider:
    """`decide(timestep, carry) -> (action, carry, extras)` for one policy on one host task, all NumPy arrays `[B, ...]`.

    `set_actor` and `set_key` come first. `config` is fixed: its numbers are constants in what is compiled.
    """

    def __init__(self, policy: PolicyFunction, task: HostTask, config: Any, *, greedy: bool):
        self.greedy = greedy
        self._made_for = (policy, task, config)
        self._program: _Program | None = None
        self._actor: Any = None
        self._key: Any = None
        self.drawn = 0
        self._block_number = -1
        self._block: list[np.ndarray] = []
        self._block_size = 256
        self._draw: Callable[[Any, Any], list[Any]] | None = None
        self._compiled: Callable[..., Any] | None = None

    def serves(self, policy: PolicyFunction, config: Any) -> bool:
        """Whether this is the Decider of that policy and Config object."""
        return self._made_for[0] is policy and self._made_for[2] is config

    @property
    def how(self) -> str:
        """Where decisions are made, once one was: "NumPy" or "compiled"."""
        return "NumPy" if self._program is not None else "compiled"

    def set_actor(self, actor: Any) -> None:
        """Decide with these parameters from now on. Where NumPy decides they are copied: the arrays may be donated afterwards."""
        self._actor = actor
        if self._program is not None:
            self._settle(self._program)

    def set_key(self, key: Key, drawn: int = 0) -> None:
        """Use the randomness of this stream from decision number `drawn` on."""
        if key is not self._key:
            self._key, self._block_number = key, -1
        self.drawn = drawn

    def __call__(self, timestep: TimeStep, carry: Any) -> tuple[np.ndarray, Any, Any]:
        """One decision for the whole batch."""
        if self._draw is None:
            self._draw = self._trace(timestep, carry)
        number, place = divmod(self.drawn, self._block_size)
        if number != self._block_number:
            self._block = [np.asarray(x) for x in self._draw(self._key, np.uint32(number))]
            self._block_number = number
        self.drawn += 1
        if self._program is None:
            assert self._compiled is not None
            action, carry, extras = self._compiled(self._actor, self._block[0][place], timestep, carry)
            return np.asarray(action), carry, extras
        program = self._program
        values = program.values
        for slot, noise in zip(program.noise_slots, self._block, strict=True):
            values[slot] = noise[place]
        self._see(program, timestep, carry)
        with np.errstate(all="ignore"):
            for function, ins, out in program.each:
                values[out] = function(*[values[slot] for slot in ins])
        return jax.tree.unflatten(self._out_tree, [values[slot] for slot in program.out_slots])

    def _see(self, program: _Program, timestep: TimeStep, carry: Any) -> None:
        for slot, seen in zip(program.seen_slots, jax.tree.leaves((timestep, carry)), strict=True):
            program.values[slot] = seen

    def _settle(self, program: _Program) -> None:
        values = program.values
        for slot, leaf in zip(program.actor_slots, jax.tree.leaves(self._actor), strict=True):
            if slot in program.read_actor_slots:
                values[slot] = np.array(leaf)
        for function, ins, out in program.settled:
            values[out] = function(*[values[slot] for slot in ins])

    def _trace(self, timestep: TimeStep, carry: Any) -> Callable[[Any, Any], list[Any]]:
        """Choose where decisions are made; returns what draws a block of randomness."""
        policy, task, config = self._made_for

        def decide(key: Key, actor: Any, timestep: TimeStep, carry: Any) -> tuple[Any, Any, Any]:
            return policy(config, task, actor, greedy=self.greedy).act(key, timestep, carry)

        try:
            closed, shapes = jax.make_jaxpr(decide, return_shape=True)(jax.random.key(0), self._actor, timestep, carry)
            program = _Program(closed, len(jax.tree.leaves(self._actor)))
            if program.flops > MOST_FLOPS or len(program.each) > MOST_OPERATIONS:
                raise _Unsupported("a large network")
            self._out_tree = jax.tree.structure(shapes)
            self._settle(program)
            self._see(program, timestep, carry)
            program.check()
            self._program, noise = program, program.noise
        except _Unsupported:

            def with_data(actor: Any, data: Any, timestep: TimeStep, carry: Any) -> tuple[Any, Any, Any]:
                return decide(jax.random.wrap_key_data(data), actor, timestep, carry)

            self._compiled, noise = jax.jit(with_data), _key_data

        num_bytes = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.eval_shape(noise, jax.random.key(0)))
        self._block_size = size = int(np.clip(BLOCK_BYTES // max(1, num_bytes), 16, 256))

        def block(key: Key, number: Any) -> list[Any]:
            return jax.vmap(noise)(jax.random.split(jax.random.fold_in(key, number), size))

        return jax.jit(block)
