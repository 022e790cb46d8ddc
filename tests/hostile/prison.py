# SPDX-License-Identifier: Apache-2.0
"""Where hostile images are opened: a process each, with little memory and little time.

A server process has everything imported and forks a child for each call, which costs milliseconds.
A call names functions of `tests.hostile.verbs`; the child runs them one after the other, tells
about each when it begins and when it has ended, and dies when one of them takes too much.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MEMORY_MAX = 256 * 1024 * 1024
"""Bytes that one call may add to the process."""
ADDRESS_SPACE_MAX = 2 * 1024**3
"""The hard limit on top of that: threads reserve addresses that they never use."""
CPU_SECONDS_MAX = 2.0
"""Of one verb. Milliseconds are usual; this is what a busy machine may make of them."""
HANG_SECONDS = 60
"""Of one call, on the clock: it is stopped, and whoever called hears where it hung."""

DONE = "done"
REFUSED = "refused"
BROKEN = "broken"


@dataclass(frozen=True)
class Outcome:
    """How one verb ended: done, refused by an error of the package, or broken."""

    verb: str
    kind: str
    text: str = ""
    """The error's class and message, or the traceback."""
    value: Any = None
    seconds: float = 0.0


@dataclass
class Sentence:
    """All outcomes of one call."""

    outcomes: list[Outcome] = field(default_factory=list)
    memory: int = 0
    """Bytes that the process grew by at most."""

    def broken(self) -> list[str]:
        """What must not have happened, in words."""
        found = [f"{o.verb}: {o.text}" for o in self.outcomes if o.kind == BROKEN]
        found += [
            f"{o.verb}: took {o.seconds:.1f} s"
            for o in self.outcomes
            if o.seconds > CPU_SECONDS_MAX
        ]
        if self.memory > MEMORY_MAX:
            found.append(f"took {self.memory >> 20} MiB of memory")
        return found

    def of(self, verb: str) -> Outcome:
        """The outcome of one verb."""
        return next(outcome for outcome in self.outcomes if outcome.verb == verb)


@dataclass(frozen=True)
class Call:
    """Verbs to run on what is in a directory."""

    verbs: tuple[str, ...]
    directory: Path
    arguments: dict[str, Any]


class Prison:
    """The server, as tests hold it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.prison"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, directory: Path, *verbs: str, **arguments: Any) -> Sentence:
        """Run verbs on what is in `directory`, in a process of their own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, Call(verbs, directory, arguments))
        sentence = _receive(self._process.stdout)
        assert isinstance(sentence, Sentence)
        return sentence

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _send(stream: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> object:
    size = stream.read(8)
    return pickle.loads(stream.read(int.from_bytes(size, "little"))) if size else None


# --- the server -----------------------------------------------------------------------------------


def _serve() -> None:
    from tests.hostile.verbs import VERBS, warm_up

    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whoever prints must not disturb the answers
    warm_up()
    gc.freeze()  # so that children collect only what is theirs
    while isinstance(call := _receive(calls), Call):
        _send(answers, _execute(call, VERBS))


def _execute(call: Call, verbs: dict[str, Callable[..., object]]) -> Sentence:
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        _be_child(call, verbs, os.fdopen(write_end, "wb"))
    os.close(write_end)
    return _watch(child, read_end)


def _watch(child: int, read_end: int) -> Sentence:
    sentence = Sentence()
    running = "the start"
    with os.fdopen(read_end, "rb") as stream:
        while (message := _receive(stream)) is not None:
            if isinstance(message, Outcome):
                sentence.outcomes.append(message)
                running = "the end"
            elif isinstance(message, str):
                running = message
            elif isinstance(message, int):
                sentence.memory = message
    _, status = os.waitpid(child, 0)
    if status:
        how = signal.Signals(status & 0x7F).name if status & 0x7F else f"exit {status >> 8}"
        sentence.outcomes.append(Outcome(running, BROKEN, f"was ended by {how}"))
    return sentence


# --- the child ------------------------------------------------------------------------------------


def _be_child(call: Call, verbs: dict[str, Callable[..., object]], stream: IO[bytes]) -> None:
    try:
        _limit()
        before = _resident()
        with _nothing_left_behind() as left:
            for name in call.verbs:
                _send(stream, name)
                _send(stream, _try(name, verbs[name], call))
        if left:
            _send(stream, Outcome("the end", BROKEN, "\n".join(left)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _send(stream, max(0, peak - before))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def _limit() -> None:
    """Die of a hang, and run out of addresses before the machine runs out of memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HANG_SECONDS)
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_MAX,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def _try(name: str, verb: Callable[..., object], call: Call) -> Outcome:
    from blocklayer.base.errors import BlocklayerError

    started = time.process_time()
    value: object = None
    try:
        value = verb(call.directory, **call.arguments)
        kind, text = DONE, ""
    except BlocklayerError as error:
        kind, text = REFUSED, f"{type(error).__name__}: {error}"
    except BaseException:
        kind, text = BROKEN, traceback.format_exc()
    return Outcome(name, kind, text, value, time.process_time() - started)


@contextmanager
def _nothing_left_behind() -> Iterator[list[str]]:
    """Notes warnings, exceptions that nobody saw, descriptors and threads that are left."""
    left: list[str] = []
    sys.unraisablehook = lambda args: left.append(f"unraisable: {args.exc_value!r}")
    threading.excepthook = lambda args: left.append(f"in a thread: {args.exc_value!r}")
    warnings.simplefilter("error")
    descriptors = os.listdir("/proc/self/fd")
    threads = threading.active_count()
    yield left
    gc.collect()
    if len(os.listdir("/proc/self/fd")) > len(descriptors):
        left.append("descriptors are left open")
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            left.append(f"thread {thread.name} is left")
    _wait_for(lambda: threading.active_count() <= threads)
    if threading.active_count() > threads:
        left.append("threads are left")


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


if __name__ == "__main__":
    # Under its own name, as the callers know its classes.
    from tests.hostile import prison

    prison._serve()
