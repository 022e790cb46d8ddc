# SPDX-License-Identifier: Apache-2.0
"""Some threads that do what they are given, one thing after another.

What `concurrent.futures` has would do, but importing that takes as long as the interpreter's start:
it brings `logging` with it.
"""

from __future__ import annotations

import threading

from blocklayer.base.queues import SimpleQueue

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self


class Task:
    """Something that a thread does, or has done."""

    __slots__ = ("_arguments", "_cancelled", "_done", "_error", "_function", "_value")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self._cancelled = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()  # free as soon as it is done
        self._done.acquire()

    def run(self) -> None:
        """Do it, in the caller's thread; what it raises is for whoever wants the result."""
        try:
            if not self._cancelled:
                self._value = self._function(*self._arguments)
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    def result(self) -> Any:
        """Wait until it is done; what came of it. Raises what it has raised."""
        with self._done:
            pass
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """Nobody wants the result any more: it is not begun, if it has not been."""
        self._cancelled = True


class Crew:
    """Up to `threads` threads, started as they are needed; leaving its context ends them.

    The first `alone` things are done by whoever gives them to it, at once: where there is little to
    do, starting threads costs more than they save.
    """

    def __init__(self, threads: int, name: str, *, alone: int = 0) -> None:
        self._most = threads
        self._alone = alone
        self._name = name
        self._threads: list[threading.Thread] = []
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Task:
        """Have `function(*arguments)` called."""
        task = Task(function, arguments)
        if self._alone:
            self._alone -= 1
            task.run()
            task.result()  # what it raises is not for later
            return task
        if len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._tasks.put(task)
        return task

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
