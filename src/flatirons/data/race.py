"""Actor-learners that share parameters without a lock (Mnih 2016, section 4; after Recht 2011), in threads or in processes.

`Shared` is one block of memory with theta, the shared RMSProp's g, theta^- and the counter T. Whoever learns adds to theta in place, while
others read it and add to it; only the counter is taken in turns, so that T is exact. A system gives a *learner*: made from (config, task,
shared, key), its `learn(end)` acts and learns until T is `end`, and returns a `Report`.

A process is a fresh Python; nothing is forked or pickled. It is told as JSON what to make and shares a file without a name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flatirons.core import compiling
from flatirons.types import FlatironsError

CACHED = 1 << 17
"""Numbers added to theta at a time: few enough that g, theta and the step stay in the cache, and many, for threads hand the interpreter
over at each of NumPy's calls."""


class Report(NamedTuple):
    """What a learner did in a stretch: ended episodes (count, sum of returns, sum of lengths), updates, sums over them of each metric,
    seconds spent with each thing."""

    episodes: tuple[int, float, int]
    updates: int
    metrics: dict[str, float]
    seconds: dict[str, float]


class Learner(Protocol):
    """One actor-learner."""

    def learn(self, end: int) -> Report: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class _FileLock(contextlib.AbstractContextManager[None]):
    """The lock on a file that several processes have open."""

    def __init__(self, handle: int):
        import fcntl

        self._enter, self._leave = (functools.partial(fcntl.lockf, handle, how) for how in (fcntl.LOCK_EX, fcntl.LOCK_UN))

    def __enter__(self) -> None:
        self._enter()

    def __exit__(self, *_: object) -> None:
        self._leave()


class Shared:
    """theta, square (g) and target (theta^-), float32 `[size]` each, and the counter T; `handle` is the file of a block that exists.

    `apart` says that other processes take from the counter too (not on Windows)."""

    def __init__(self, size: int, handle: int | None = None, *, apart: bool = False):
        room = -(-size // 16) * 16
        if handle is None:
            handle, path = tempfile.mkstemp(prefix="flatirons-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
            os.unlink(path)
            os.ftruncate(handle, 64 + 3 * 4 * room)
        self.handle, self.size = handle, size
        memory = mmap.mmap(handle, 64 + 3 * 4 * room)
        self._count = np.ndarray((1,), np.int64, memory)
        self.theta, self.square, self.target = (np.ndarray((size,), np.float32, memory, 64 + 4 * room * i) for i in range(3))
        self._lock: contextlib.AbstractContextManager[Any] = _FileLock(handle) if apart else threading.Lock()

    @property
    def count(self) -> int:
        """T."""
        return int(self._count[0])

    @count.setter
    def count(self, value: int) -> None:
        self._count[0] = value

    def claim(self, num: int, end: int) -> int | None:
        """Take the next `num` decisions: T from before them, or None where they would go beyond `end`."""
        with self._lock:
            before = self.count
            if before + num > end:
                return None
            self.count = before + num
            return before

    def descend(self, gradient: np.ndarray, learning_rate: float, decay: float, eps: float) -> None:
        """g <- decay g + (1 - decay) d^2, theta <- theta - learning_rate d / sqrt(g + eps), in place and without a lock (Mnih 2016,
        equations S2 and S3)."""
        step = np.empty(min(CACHED, self.size), np.float32)
        for begin in range(0, self.size, CACHED):
            where = slice(begin, min(begin + CACHED, self.size))
            d, g, theta = gradient[where], self.square[where], self.theta[where]
            s = step[: len(d)]
            np.multiply(d, d, out=s)
            s *= 1.0 - decay
            g *= decay
            g += s
            np.add(g, eps, out=s)
            # Another's write may be torn from this read, but no g was ever below 0.
            np.sqrt(s, out=s)
            np.divide(d, s, out=s)
            s *= learning_rate
            theta -= s


class Team(Protocol):
    """Learners that race."""

    def learn(self, end: int) -> list[Report]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Threads:
    """A learner in each thread of this process."""

    def __init__(self, learners: Sequence[Learner]):
        self._learners = list(learners)

    def learn(self, end: int) -> list[Report]:
        """All race until T is `end`. The first error of any is raised once all have stopped."""
        found: list[Any] = [None] * len(self._learners)

        def run(number: int) -> None:
            try:
                found[number] = self._learners[number].learn(end)
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=run, args=(i,), name=f"flatirons-learner-{i}", daemon=True) for i in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for report in found:
            if isinstance(report, BaseException):
                raise report
        return found

    def close(self) -> None:
        """Close every learner's environments."""
        for learner in self._learners:
            learner.close()


# A group's SIGINT or SIGTERM is the trainer's to answer; see envs.worker.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, lambda *_: None); "
    "import json, sys; a = json.loads(sys.argv[1]); sys.path[:] = a['path']; from flatirons.data.race import main; main(a)"
)
START_LIMIT_S = 300.0
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Processes:
    """A learner in each of several processes, which make it by `module.learner_from(about, shared)`."""

    def __init__(self, module: str, abouts: Sequence[dict[str, Any]], shared: Shared):
        """`abouts` are JSON, one for each process."""
        self._sockets: list[socket.socket] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._buffers = [b""] * len(abouts)
        self.close = weakref.finalize(self, _end, self._sockets, self._children)
        variables = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip(), "OMP_NUM_THREADS": "1"}
        variables |= compiling.cache_variables()
        path = [entry or os.getcwd() for entry in sys.path]
        try:
            for about in abouts:
                ours, theirs = socket.socketpair()
                words = {"path": path, "socket": theirs.fileno(), "memory": shared.handle, "size": shared.size, "module": module, **about}
                keep = (theirs.fileno(), shared.handle)
                self._children.append(subprocess.Popen([sys.executable, "-c", _START, json.dumps(words)], pass_fds=keep, env=variables))
                theirs.close()
                self._sockets.append(ours)
            for number in range(len(abouts)):
                self._answer(number, START_LIMIT_S)
        except BaseException:
            self.close()
            raise

    def learn(self, end: int) -> list[Report]:
        """All race until T is `end`. Raises FlatironsError where one failed or died."""
        for number, connection in enumerate(self._sockets):
            try:
                connection.sendall(json.dumps(end).encode() + b"\n")
            except OSError:
                self._gone(number)
        return [Report(**self._answer(number, None)) for number in range(len(self._sockets))]

    def _answer(self, number: int, limit_s: float | None) -> Any:
        connection = self._sockets[number]
        connection.settimeout(limit_s)
        while b"\n" not in self._buffers[number]:
            try:
                self._buffers[number] += connection.recv(1 << 16) or self._gone(number)
            except TimeoutError:
                raise FlatironsError(f"actor-learner {number} did not start within {limit_s:g} s; is the machine overloaded?") from None
            except OSError:
                self._gone(number)
        line, self._buffers[number] = self._buffers[number].split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise FlatironsError(f"actor-learner {number} stopped: {answer['error']}")
        return answer

    def _gone(self, number: int) -> bytes:
        child = self._children[number]
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
        status = child.returncode
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        memory = "; if the machine ran out of memory, take fewer actor-learners" if status == -signal.SIGKILL else ""
        raise FlatironsError(f"actor-learner {number}'s process ended {how}{memory}; `flatirons resume` goes on from the last checkpoint")


def _end(sockets: list[socket.socket], children: list[subprocess.Popen[bytes]]) -> None:
    for connection in sockets:
        with contextlib.suppress(OSError):
            connection.close()
    limit = time.monotonic() + 2.0
    for child in children:
        try:
            child.wait(max(0.01, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main(about: dict[str, Any]) -> None:
    """What a process does until its parent closes the socket."""
    connection = socket.socket(fileno=about["socket"])

    def say(answer: Any) -> None:
        connection.sendall(json.dumps(answer).encode() + b"\n")

    try:
        make: Callable[..., Learner] = importlib.import_module(about["module"]).learner_from
        learner = make(about, Shared(about["size"], about["memory"], apart=True))
        say({})
        for line in connection.makefile("rb"):
            compiled = compiling.seconds()
            report = learner.learn(json.loads(line))
            compiling.set_apart(report.seconds, compiling.seconds() - compiled)
            say(report._asdict())
        learner.close()
    except FlatironsError as error:
        say({"error": str(error)})
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise
