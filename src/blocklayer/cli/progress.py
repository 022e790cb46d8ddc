# SPDX-License-Identifier: Apache-2.0
"""Progress and interruption of what takes long.

    on a terminal     a bar on stderr, as soon as something takes longer than a second
    -p                where output is no terminal, qemu-img's lines: ``    (12.34/100%)`` and a
                      carriage return, at every percent, on stdout
    --progress=json   an object a line on stderr, at most ten a second
    SIGUSR1           asks once

A first Ctrl-C cancels: the operation stops at its next step and removes what is half made. A second
one does not wait for that. Servers that are silent are not waited for, either: a thread gives them
up, so that whoever waits for one of them fails, and the operation unwinds.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType

from blocklayer.base.errors import BlocklayerError, Cancelled
from blocklayer.base.progress import CancelToken, Progress
from blocklayer.cli.failures import Failure, Interrupted
from blocklayer.cli.output import let_go
from blocklayer.cli.parsing import wants_json

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import signal
    from typing import Any, Self, TextIO

    from blocklayer.cli.parsing import Arguments
else:
    import _signal as signal  # what is around it imports enum, which costs more than a short map

PATIENCE_SECONDS = 1.0
"""What is done by then gets no bar."""

INTERVAL_SECONDS = 0.1
"""Between two objects for programs."""

COLUMNS_MIN = 5
"""On less, not even percents can be read."""

COLUMNS_OF_BAR = 70
"""On less, there is no bar, and room for what can be read."""

NARROW = "{percentage:3.0f}% {remaining} {rate_fmt} {desc}"

SILENT_SECONDS = 1.0
"""Servers that have owed an answer for so long do not hold up what is to stop."""

CLOSING_SECONDS = 10.0
"""How long that is looked after when the operation has ended, and images are being closed."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Display:
    """Shows nothing; the base of those that do."""

    def show(self, progress: Progress) -> None:
        """Called often."""

    def close(self, *, success: bool) -> None:
        """The operation has ended."""


class Lines(Display):
    """What programs know from qemu-img, at every percent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._operation = ""
        self._printed = -1.0

    def show(self, progress: Progress) -> None:
        """A line, if there is something new to tell."""
        if progress.operation != self._operation:
            self._operation = progress.operation
            self._printed = -1.0
        percent = progress.fraction * 100
        if percent >= self._printed + 1 or (percent == 100 and self._printed != 100):
            self._printed = percent
            print(f"    ({percent:.2f}/100%)", end="\r", file=self._stream, flush=True)

    def close(self, *, success: bool) -> None:
        """What follows begins a line of its own."""
        print(file=self._stream, flush=True)


class Objects(Display):
    """A JSON object a line on stderr.

    Each stage of the work has a first one, when nothing is done, and if it succeeds a last one,
    when everything is.
    """

    def __init__(self) -> None:
        self._last: Progress | None = None
        self._told: Progress | None = None
        self._started = self._when = 0.0

    def show(self, progress: Progress) -> None:
        """An object, if the last one is long ago."""
        now = time.monotonic()
        if self._last is None or progress.operation != self._last.operation:
            self._end_stage()
            self._started = now
            self._tell(progress.replace(done=0, zero=0, skipped=0), now)
        elif now - self._when >= INTERVAL_SECONDS:
            self._tell(progress, now)
        self._last = progress

    def _end_stage(self) -> None:
        """What was not told yet of the stage; what it did not have to look at, it skipped."""
        last = self._last
        if last is not None:
            rest = last.total - last.done
            last = last.replace(done=last.total, skipped=last.skipped + rest)
            if last != self._told or not last.total:
                self._tell(last, time.monotonic())

    def _tell(self, progress: Progress, now: float) -> None:
        self._told, self._when = progress, now
        print_object(progress, now - self._started)

    def close(self, *, success: bool) -> None:
        """The last object."""
        if success:
            self._end_stage()


def print_object(progress: Progress, seconds: float) -> None:
    """One line for programs; docs/programs.md tells what the members mean."""
    import json

    rate = int((progress.done - progress.skipped) / seconds) if seconds > 0 else 0
    left = (progress.total - progress.done) / rate if rate else None
    members = {
        "operation": progress.operation,
        "done": progress.done,
        "total": progress.total,
        "zero": progress.zero,
        "skipped": progress.skipped,
        "rate": rate,
        "seconds": round(seconds, 3),
        "left": None if left is None else round(left, 3),
    }
    print(json.dumps(members), file=sys.stderr, flush=True)


class Bar(Display):
    """For people; it stays on the screen if it was asked for."""

    def __init__(self, stays: bool) -> None:
        self._stays = stays
        self._bar: Any = None
        self._operation = ""
        self._started = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Update the bar, or make one once that is worth it."""
        if progress.operation != self._operation:
            self._remove()
            self._operation = progress.operation
            self._started = time.monotonic()
        if self._bar is not None:
            self._bar.initial = progress.skipped  # of what the rate is not
            self._bar.update(progress.done - self._bar.n)
        elif time.monotonic() - self._started > PATIENCE_SECONDS:
            self._make(progress)

    def _make(self, progress: Progress) -> None:
        from tqdm import tqdm

        columns = _columns()
        if columns < COLUMNS_MIN:
            return
        tqdm.monitor_interval = 0  # it would be a thread that outlives the command
        self._bar = tqdm(
            desc=progress.operation,
            total=progress.total,
            initial=progress.done,
            unit="iB",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            leave=self._stays,
            dynamic_ncols=True,
            delay=1e-9,  # nothing is shown before it knows when the operation has begun
            bar_format=None if columns >= COLUMNS_OF_BAR else NARROW,
        )
        self._bar.start_t = time.time() - (time.monotonic() - self._started)
        # The rate is that of the whole operation, not since the bar is there.
        self._bar.initial = progress.skipped
        self._bar.refresh()

    def _remove(self) -> None:
        """Off the screen, unless it was asked for."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self, *, success: bool) -> None:
        """Leave the bar, or a clean line."""
        self._remove()


def _columns() -> int:
    """How wide the terminal is; some do not tell, and most of those are as wide as ever."""
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


def _display(arguments: Arguments, *, result: bool, listing: bool) -> Display:
    """What is asked for, and what suits the streams."""
    keep_clean = wants_json(arguments) or result or listing
    asked = "progress" in arguments
    style = arguments.last("progress")
    if style not in ("", "json"):
        raise Failure(f"--progress takes 'json', or no value at all, and not '{style}'")
    if "quiet" in arguments:
        return Display()
    if style == "json":
        return Objects()
    terminals = sys.stderr.isatty(), sys.stdout.isatty()
    if asked and not all(terminals):
        return Lines(sys.stderr if keep_clean else sys.stdout)
    if terminals[0] and not (listing and terminals[1]):
        return Bar(stays=asked)
    return Display()


class Running:
    """Around one operation: hand `report` and `cancel` to it.

    result   stdout is for what the command finds out
    listing  and is written to meanwhile
    at_once  the operation does not ask whether it is cancelled, but takes back what is half made
    """

    def __init__(
        self,
        arguments: Arguments,
        *,
        result: bool = False,
        listing: bool = False,
        at_once: bool = False,
    ) -> None:
        self._display = _display(arguments, result=result, listing=listing)
        self._as_object = arguments.last("progress") == "json"
        self._started = time.monotonic()
        self._at_once = at_once
        self._signal = 0
        self._report_once = False
        self._hurry = self._gave_up = self._giving_up = False
        self._ended_at = 0.0
        self._handlers: dict[int, Any] = {}
        self.cancel = CancelToken()

    # --- progress -------------------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Called by the operation, often."""
        try:
            if self._report_once:
                self._report_once = False
                self._answer(progress)
            self._display.show(progress)
        except OSError as error:
            # What was asked for is the work, not the news of it. Who reads stdout through a pipe,
            # and goes away, ends programs.
            if isinstance(error, BrokenPipeError) and isinstance(self._display, Lines):
                raise
            let_go(sys.stdout if isinstance(self._display, Lines) else sys.stderr)
            self._display = Display()

    def _answer(self, progress: Progress) -> None:
        if self._as_object:
            print_object(progress, time.monotonic() - self._started)
        else:
            print(f"    ({progress.fraction * 100:.2f}/100%)", file=sys.stderr, flush=True)

    # --- interruption ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._handle(number, self._stop)
            self._handle(signal.SIGUSR1, self._ask)
        return self

    def _handle(self, number: int, handler: Any) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            self._handlers[number] = signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            self._hurry = True
            raise KeyboardInterrupt
        self._signal = number
        self.cancel.cancel()
        # Nothing here may wait for a lock: the thread that holds it may be this one.
        _thread.start_new_thread(self._give_up_silent_servers, ())
        if self._at_once:
            raise KeyboardInterrupt

    def _give_up_silent_servers(self) -> None:
        """Until the operation has ended, and its images are closed."""
        patience = time.monotonic() + SILENT_SECONDS
        while not self._ended_at or time.monotonic() < self._ended_at + CLOSING_SECONDS:
            time.sleep(INTERVAL_SECONDS)
            waits = sys.modules.get("blocklayer.nbd.client_waits")
            if waits is None:
                continue
            if self._hurry or time.monotonic() >= patience:
                # The operation may end because of this before it returns.
                self._giving_up = True
                self._gave_up |= waits.interrupt_silent(0 if self._hurry else SILENT_SECONDS)
                self._giving_up = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._report_once = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._ended_at = time.monotonic()
        with suppress(OSError):
            self._display.close(success=error is None)
        if self._signal and self._is_interruption(error):
            interrupted = Interrupted(self._signal)
            for note in getattr(error, "__notes__", ()):
                interrupted.add_note(note)
            raise interrupted from None

    def _is_interruption(self, error: BaseException | None) -> bool:
        """Whether that is how an operation ends which was stopped."""
        if isinstance(error, BlocklayerError | Failure) and (self._gave_up or self._giving_up):
            return True
        return isinstance(error, Cancelled | KeyboardInterrupt)
