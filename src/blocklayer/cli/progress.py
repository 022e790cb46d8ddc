# SPDX-License-Identifier: Apache-2.0
"""Progress and interruption of what takes long.

On a terminal a bar appears on stderr as soon as something takes longer than a second. With -p, and
where output is not a terminal, stdout gets what programs read: ``    (12.34/100%)`` and a carriage
return, at every percent. SIGUSR1 asks once.

A first Ctrl-C cancels: the operation stops at its next step and removes what is half made. A second
one does not wait for that.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from blocklayer.base.errors import Cancelled
from blocklayer.base.progress import CancelToken, Progress
from blocklayer.cli.failures import Interrupted

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, Self

    from blocklayer.cli.parsing import Arguments

PATIENCE_SECONDS = 1.0
"""What is done by then gets no bar."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Running:
    """Around one operation: hand `report` and `cancel` to it."""

    def __init__(self, arguments: Arguments) -> None:
        quiet = "quiet" in arguments
        asked = "progress" in arguments and not quiet
        on_terminal = sys.stderr.isatty()
        self._lines = asked and not (on_terminal and sys.stdout.isatty())
        self._bar_allowed = on_terminal and not quiet and not self._lines
        self._bar_stays = asked
        self._bar: Any = None
        self._printed = -1.0
        self._started = time.monotonic()
        self._signal = 0
        self._report_once = False
        self._handlers: dict[int, Any] = {}
        self.cancel = CancelToken()

    # --- progress -------------------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Called by the operation, often."""
        if self._report_once:
            self._report_once = False
            print(f"    ({progress.fraction * 100:.2f}/100%)", file=sys.stderr, flush=True)
        if self._lines:
            self._print_line(progress.fraction * 100)
        elif self._bar is not None:
            self._bar.update(progress.done - self._bar.n)
        elif self._bar_allowed and time.monotonic() - self._started > PATIENCE_SECONDS:
            self._make_bar(progress)

    def _print_line(self, percent: float) -> None:
        if percent >= self._printed + 1 or (percent == 100 and self._printed != 100):
            self._printed = percent
            print(f"    ({percent:.2f}/100%)", end="\r", flush=True)

    def _make_bar(self, progress: Progress) -> None:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # it would be a thread that outlives the command
        self._bar = tqdm(
            desc=progress.operation,
            total=progress.total,
            initial=progress.done,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            leave=self._bar_stays,
            dynamic_ncols=True,
        )
        self._bar.start_t = time.time() - (time.monotonic() - self._started)
        self._bar.initial = 0  # the rate is that of the whole operation, not since the bar is there

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
        if self.cancel.cancelled:
            raise KeyboardInterrupt
        self._signal = number
        self.cancel.cancel()

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
        if self._bar is not None:
            self._bar.close()
        if self._lines:
            print(flush=True)
        if isinstance(error, Cancelled | KeyboardInterrupt) and self._signal:
            raise Interrupted(self._signal) from error
