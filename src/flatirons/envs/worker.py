"""Environments in processes of their own, for simulators that are slow to step.

A worker is a fresh Python started with this file's `main`; nothing is forked and nothing pickled. It is told as JSON what to make, and
observations, rewards and actions pass through one piece of shared memory; a socket carries one line per step each way.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import itertools
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from flatirons.envs import spaces
from flatirons.envs.host import (
    START_LIMIT_S,
    Again,
    Anew,
    EnvFault,
    Leaves,
    Lost,
    Rows,
    Stepped,
    all_masks,
    quiet_mujoco,
    seed_anew,
    stripped,
)
from flatirons.types import Box, Discrete, FlatironsError, MultiDiscrete, Spec

# A group's SIGINT or SIGTERM is the trainer's to answer, from a worker's first moment: it saves, then closes the sockets. SIGTERM gets a
# handler, for "ignore" would be inherited by a simulator's own processes, which it could then not end.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, lambda *_: None); "
    "import json, sys; a = json.loads(sys.argv[1]); sys.path[:] = a['path']; from flatirons.envs.worker import main; main(a)"
)


class Shared:
    """The arrays that parent and workers see both: a row per environment, and per worker the row that it is stepping."""

    def __init__(
        self, handle: int | None, obs: Sequence[tuple[tuple[int, ...], str]], action: Any, num_envs: int, num_workers: int
    ) -> None:
        action_shape = () if isinstance(action, Discrete) else (len(action.nvec if isinstance(action, MultiDiscrete) else action.low),)
        action_dtype = "float32" if isinstance(action, Box) else "int32"
        parts: list[tuple[tuple[int, ...], str]] = [((num_envs, *shape), dtype) for shape, dtype in obs] * 2
        parts += [((num_envs,), "float64"), ((num_envs,), "bool"), ((num_envs,), "bool")]
        parts += [((num_envs, *action_shape), action_dtype), ((num_workers,), "int64"), ((num_envs, sum(spaces.choices(action))), "bool")]
        parts += [((num_envs,), "float64")]
        # 64-byte steps keep two workers from writing one cache line.
        sizes = [-(-max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize) // 64) * 64 for shape, dtype in parts]
        if handle is None:
            handle, path = tempfile.mkstemp(prefix="flatirons-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
            os.unlink(path)
            os.ftruncate(handle, sum(sizes))
        self.handle = handle
        memory = mmap.mmap(handle, sum(sizes))
        arrays, offset = [], 0
        for (shape, dtype), size in zip(parts, sizes, strict=True):
            arrays.append(np.ndarray(shape, dtype, memory, offset))
            offset += size
        count = len(obs)
        self.obs, self.final = arrays[:count], arrays[count : 2 * count]
        self.reward, self.terminated, self.truncated, self.action, self.at, self.legal, self.reached = arrays[2 * count :]


class ProcessEngine:
    """The batch cut into one slice per worker process.

    A worker that dies, or that does not answer within `timeout_s` (its stack is then written to stderr and it is killed), is an `EnvFault`
    of the environment it was stepping. With `restarts` another worker takes its place, in which all its environments begin anew.
    """

    def __init__(
        self,
        remote: dict[str, Any],
        strip: bool,
        obs_space: gymnasium.Space,
        spec: Spec,
        num_envs: int,
        num_workers: int,
        timeout_s: float | None,
        restarts: int = 0,
    ) -> None:
        obs = [(leaf.shape, leaf.dtype) for _, _, leaf, _ in spaces.leaves(obs_space)]
        self._timeout_s = timeout_s
        self.legal: np.ndarray | None = None
        self._shared = Shared(None, obs, spec.action, num_envs, num_workers)
        self.reached = self._shared.reached
        self.anew: list[Anew] = []
        self._remote, self._strip, self._most = remote, strip, restarts
        self._restarts, self._seeds = [0] * num_envs, [0] * num_envs
        self._before: Leaves = []
        self._edges = [int(edge) for edge in np.linspace(0, num_envs, num_workers + 1).astype(int)]
        self.workers: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._buffers = [b""] * num_workers
        # Runs at close, at garbage collection or at the interpreter's end, whichever comes first.
        handles = [self._shared.handle]
        self._end = weakref.finalize(self, _end, self._sockets, self.workers, handles)
        try:
            for number in range(num_workers):
                worker, ours = self._start(number)
                self.workers.append(worker)
                self._sockets.append(ours)
            if not restarts:
                os.close(handles.pop())
            for number in range(num_workers):
                self._answer(number, START_LIMIT_S)
        except EnvFault as fault:
            self.close()
            if fault.details:
                print(fault.details, file=sys.stderr, end="")
            raise FlatironsError(f"worker processes could not be started: {fault.message}") from None
        except BaseException:
            self.close()
            raise

    def _start(self, number: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A worker that makes its environments, and the socket it will say so on."""
        ours, theirs = socket.socketpair()
        first, end = self._edges[number : number + 2]
        about = {
            "path": [entry or os.getcwd() for entry in sys.path],
            "remote": self._remote,
            "strip": self._strip,
            "socket": theirs.fileno(),
            "memory": self._shared.handle,
            "first": first,
            "count": end - first,
            "number": number,
            "num_envs": self._edges[-1],
            "num_workers": len(self._edges) - 1,
            "most": self._most,
            "restarts": self._restarts[first:end],
        }
        variables = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        fds = (theirs.fileno(), self._shared.handle)
        worker = subprocess.Popen([sys.executable, "-c", _START, json.dumps(about)], pass_fds=fds, env=variables)
        theirs.close()
        return worker, ours

    def reset(self, seeds: Sequence[int | None]) -> Leaves:
        """Reset all, each with its seed; new obs arrays `[B, ...]`."""
        self._seeds = [old if new is None else new for old, new in zip(self._seeds, seeds, strict=True)]
        for number in range(len(self.workers)):
            part = list(seeds[self._edges[number] : self._edges[number + 1]])
            self._send(number, json.dumps({"reset": part}).encode())
        masked = [self._answer(number, self._timeout_s) == "masked" for number in range(len(self.workers))]
        slices = [self._shared.legal[a:b] for a, b in itertools.pairwise(self._edges)]
        parts = zip(self._edges[:-1], slices, masked, strict=True)
        self.legal = all_masks([(first, part if own else None) for first, part, own in parts])
        self._before = [array.copy() for array in self._shared.obs]
        return self._before

    def step(self, actions: np.ndarray) -> Stepped:
        """Step all with checked actions `[B, ...]`."""
        shared = self._shared
        shared.action[...] = actions
        self.anew = []
        gone: dict[int, Lost] = {}
        for number in range(len(self.workers)):
            try:
                self._send(number, b"step")
            except Lost as fault:
                gone[number] = fault
        ended = False
        for number in range(len(self.workers)):
            try:
                ended |= self._stepped(number, gone.get(number))
            except Lost as fault:
                self._replace(number, fault)
                ended = True
        if self.legal is not None:
            self.legal = shared.legal.copy()
        self._before = obs = [array.copy() for array in shared.obs]
        final = [array.copy() for array in shared.final] if ended else obs
        return Stepped(shared.reward.copy(), shared.terminated.copy(), shared.truncated.copy(), final, obs)

    def _stepped(self, number: int, gone: Lost | None) -> bool:
        """Whether an episode ended among a worker's environments in this step."""
        if gone is not None:
            raise gone
        answer = self._answer(number, self._timeout_s)
        if not isinstance(answer, list):
            return answer == "ended"
        for index, message, details, count, most, void in answer:
            self._restarts[index] = count
            self.anew.append(Anew(index, message, details, count, most, tuple(void)))
        return True

    def _replace(self, number: int, fault: EnvFault) -> None:
        """Put another worker in the place of one that was lost in a step: its environments begin anew, and their episodes are cut. Raises
        the last fault where its environment was made anew too often already."""
        said, index = fault.message, fault.index
        first, end = self._edges[number : number + 2]
        while True:
            if self._restarts[index] >= self._most:
                times = f" (made anew {self._most} times before)" if self._most else ""
                raise EnvFault(fault.index, f"{fault.message}{times}", fault.details)
            self._restarts[index] += 1
            self._sockets[number].close()
            self.workers[number].kill()
            self.workers[number].wait()
            self._buffers[number] = b""
            self.workers[number], self._sockets[number] = self._start(number)
            seeds = [seed_anew(seed, self._restarts[index]) for seed in self._seeds[first:end]]
            try:
                self._answer(number, START_LIMIT_S)
                self._send(number, json.dumps({"reset": seeds}).encode())
                self._answer(number, self._timeout_s)
                break
            except EnvFault as later:
                fault = later
        shared = self._shared
        for into, before in zip(shared.final, self._before, strict=True):
            into[first:end] = before[first:end]
        shared.reward[first:end], shared.terminated[first:end], shared.truncated[first:end] = 0.0, False, True
        shared.reached[first:end] = np.nan
        self.anew.append(Anew(index, said, "", self._restarts[index], self._most, tuple(range(first, end))))

    def busy_with(self) -> int:
        """The environment that the first worker is stepping."""
        return int(self._shared.at[0])

    def render(self) -> np.ndarray | None:
        """The frame of environment 0."""
        self._send(0, b"render")
        shape = self._answer(0, self._timeout_s)
        if not shape:
            return None
        size = int(np.prod(shape))
        while len(self._buffers[0]) < size:
            self._buffers[0] += self._sockets[0].recv(1 << 20) or self._gone(0)
        data, self._buffers[0] = self._buffers[0][:size], self._buffers[0][size:]
        return np.frombuffer(data, np.uint8).reshape(shape).copy()

    def close(self) -> None:
        """End the workers: asked first, killed after two seconds."""
        self._end()

    def _send(self, number: int, line: bytes) -> None:
        try:
            self._sockets[number].sendall(line + b"\n")
        except OSError:
            self._gone(number)

    def _answer(self, number: int, limit_s: float | None) -> Any:
        connection = self._sockets[number]
        while b"\n" not in self._buffers[number]:
            connection.settimeout(limit_s)
            try:
                self._buffers[number] += connection.recv(1 << 16) or self._gone(number)
            except TimeoutError:
                self._stuck(number, limit_s or 0.0)
            except OSError:
                self._gone(number)
        line, self._buffers[number] = self._buffers[number].split(b"\n", 1)
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise EnvFault(answer["index"], answer["message"], answer["details"])
        return answer

    def _gone(self, number: int) -> bytes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.workers[number].wait(1.0)
        status = self.workers[number].returncode
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        memory = "; if the machine ran out of memory, use fewer environments" if status == -signal.SIGKILL else ""
        raise Lost(int(self._shared.at[number]), f"its worker process ended {how}{memory}")

    def _stuck(self, number: int, limit_s: float) -> None:
        worker = self.workers[number]
        with contextlib.suppress(OSError, AttributeError):
            worker.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
        worker.kill()
        raise Lost(
            int(self._shared.at[number]),
            f"it has not returned for {limit_s:g} s and its worker was ended; its stack is above (a longer limit: timeout_s=...)",
        )


def _end(sockets: list[socket.socket], workers: list[subprocess.Popen[bytes]], handles: list[int]) -> None:
    for handle in handles:
        with contextlib.suppress(OSError):
            os.close(handle)
    for connection in sockets:
        with contextlib.suppress(OSError):
            connection.close()
    limit = time.monotonic() + 2.0
    for worker in workers:
        try:
            worker.wait(max(0.01, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def make_remote(remote: dict[str, Any], render: bool) -> gymnasium.Env:
    """An environment from its JSON description: a registered spec, an `id` with the module to `import` that registers it, or a factory as
    `module` and `name`."""
    if "options" in remote:
        options = {**remote["options"], **(remote["render"] if render else {})}
        if "id" in remote:
            importlib.import_module(remote["import"])
        registered = gymnasium.spec(remote["id"]) if "id" in remote else EnvSpec.from_json(remote["spec"])
        with quiet_mujoco(registered):
            return gymnasium.make(registered, disable_env_checker=True, **options)
    made: Any = importlib.import_module(remote["module"])
    for part in remote["name"].split("."):
        made = getattr(made, part)
    return made()


class _Noting(Rows):
    """Rows that write into the shared memory which environment they are at, for whoever finds the worker dead."""

    note: np.ndarray

    @property
    def at(self) -> int:
        return self._at

    @at.setter
    def at(self, row: int) -> None:
        self._at = row
        if hasattr(self, "note"):
            self.note[...] = self.first + row


def main(about: dict[str, Any]) -> None:
    """What a worker does until its parent closes the socket."""
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Where another worker's environment is at fault the parent closes all sockets, and this one may be about to answer.
    lost = contextlib.suppress(BrokenPipeError, ConnectionResetError)
    with socket.socket(fileno=about["socket"]) as connection, lost, contextlib.ExitStack() as at_end:
        _serve(connection, about, at_end)


def _serve(connection: socket.socket, about: dict[str, Any], at_end: contextlib.ExitStack) -> None:
    def say(answer: Any) -> None:
        connection.sendall(json.dumps(answer).encode() + b"\n")

    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            envs = [make_remote(about["remote"], about["first"] + index == 0) for index in range(about["count"])]
        remote, strip, most = about["remote"], about["strip"], about["most"]
        pairs = [stripped(env, strip) for env in envs]
        again = Again(lambda index: stripped(make_remote(remote, index == 0), strip), most) if most else None
        rows = _Noting([env for env, _ in pairs], [limit for _, limit in pairs], about["first"], again, about["restarts"])
        at_end.callback(rows.close)
        obs = [(leaf.shape, leaf.dtype) for _, _, leaf, _ in spaces.leaves(envs[0].observation_space)]
        action = spaces.action_spec(envs[0].action_space)
        shared = Shared(about["memory"], obs, action, about["num_envs"], about["num_workers"])
        rows.note = shared.at[about["number"] :][:1]
        rows.reached = shared.reached[about["first"] :][: about["count"]]
        decode = spaces.decode_actions(envs[0].action_space)
    except (Exception, SystemExit) as error:
        import traceback

        say({"index": about["first"], "message": f"{type(error).__name__}: {error}", "details": traceback.format_exc()})
        return
    say("ready")
    mine = slice(about["first"], about["first"] + about["count"])
    reward, terminated, truncated, actions = (array[mine] for array in (shared.reward, shared.terminated, shared.truncated, shared.action))
    out, final, legal = [array[mine] for array in shared.obs], [array[mine] for array in shared.final], shared.legal[mine]
    for line in connection.makefile("rb"):
        command = line.strip()
        try:
            if command == b"step":
                ended = rows.step(decode(actions), reward, terminated, truncated, out)
                for into, array in zip(final, out, strict=True):
                    into[...] = array
                for row, parts in ended:
                    for into, part in zip(final, parts, strict=True):
                        into[row] = part
                if rows.legal is not None:
                    legal[...] = rows.legal
                say([list(one) for one in rows.anew] if rows.anew else "ended" if ended else "")
            elif command == b"render":
                frame = rows.render()
                say(None if frame is None else list(frame.shape))
                if frame is not None:
                    connection.sendall(frame.tobytes())
            else:
                rows.reset(json.loads(command)["reset"], out)
                if rows.legal is not None:
                    legal[...] = rows.legal
                say("" if rows.legal is None else "masked")
        except EnvFault as fault:
            say({"index": fault.index, "message": fault.message, "details": fault.details})
        except Exception as error:
            say({"index": about["first"] + rows.at, "message": f"{type(error).__name__}: {error}", "details": ""})
