# SPDX-License-Identifier: Apache-2.0
"""`blk io` on a terminal: a prompt, lines that are remembered, words that are completed.

Nothing of this is loaded where commands come from -c or from a pipe. Where readline is missing or
history cannot be kept, the prompt works without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from blocklayer.cli.io_language import Quit, execute
from blocklayer.cli.io_session import Session
from blocklayer.cli.output import complain

HISTORY_MAX = 1000
"""Lines in the history file: more than anybody goes back."""


def converse(session: Session, prompt: str) -> bool:
    """Run what is typed until somebody leaves; whether anything has failed."""
    failed = False
    with _readline(session):
        while True:
            reading = True
            try:
                text = input(prompt)
                reading = False
                for line in text.splitlines():  # several, if they were pasted
                    failed |= not execute(session, line)
                    session.print_finished()
            except KeyboardInterrupt:
                failed |= not reading
                _tell_interrupted(reading)
            except EOFError:
                print()
                break
            except Quit:
                break
    return failed


def _tell_interrupted(reading: bool) -> None:
    """A line is dropped without a word; a command that was stopped is told about."""
    print()
    if not reading:
        complain("interrupted")


# --- readline -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _readline(session: Session) -> Iterator[None]:
    """Lines are edited, completed, and remembered for the next session."""
    try:
        import readline
    except ImportError:
        yield
        return
    from blocklayer.cli.io_completion import Completer

    readline.set_completer(Completer(session))
    readline.set_completer_delims(" \t\n")
    emulated = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if emulated else "tab: complete")
    path = _history_path()
    known = 0
    if path:
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
        known = readline.get_current_history_length()
    try:
        yield
    finally:
        if path and (typed := readline.get_current_history_length() - known) > 0:
            with contextlib.suppress(OSError):
                _append_history(path, typed)


def _history_path() -> str:
    """Where the XDG base directory specification keeps such files; empty without a home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "blocklayer", "io_history") if os.path.isabs(state) else ""


def _append_history(path: str, typed: int) -> None:
    """Add the last `typed` lines: sessions side by side do not forget each other's."""
    import readline

    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    readline.set_history_length(HISTORY_MAX)
    if hasattr(readline, "append_history_file"):
        readline.append_history_file(typed, path)
    else:
        readline.write_history_file(path)
