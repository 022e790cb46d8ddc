# SPDX-License-Identifier: Apache-2.0
"""`blk io --output=json`: an object a line for each command, on stdout, as soon as it is done."""

from __future__ import annotations

import contextlib
import io
import json
import sys

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli.error_report import error_object
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.io_language import (
    NO_MEMORY,
    Call,
    Failed,
    Misused,
    Quit,
    Refused,
    Unknown,
    Unusable,
    perform,
)
from blocklayer.cli.output import as_unicode

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.cli.io_session import Session

_OF_COMMANDS = (Refused, Failed, Misused, Unknown, Unusable)


class ForPrograms:
    """Runs lines, and tells what became of them."""

    prompt = ""

    def __init__(self) -> None:
        self._count = 0
        self._output = sys.stdout

    def execute(self, session: Session, line: str) -> bool:
        """Run one line; whether it succeeded. Raises `Quit`."""
        words = line.split()
        if not words:
            return True
        self._count += 1
        call = Call(words, for_programs=True)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                perform(session, call)
        except Quit:
            self.tell(call, [])
            raise
        except BrokenPipeError:
            raise
        except (*_OF_COMMANDS, Failure, BlocklayerError, OSError, MemoryError) as error:
            call.error = error
            self.tell(call, printed.getvalue().splitlines())
            return False
        if not call.is_later:
            self.tell(call, printed.getvalue().splitlines())
        return True

    def tell(self, call: Call, lines: list[str]) -> None:
        """What became of a command; `lines` are what people would see beside its numbers."""
        members: dict[str, Any] = {
            "command": call.words[0],
            "arguments": call.words[1:],
            "ok": call.error is None,
            **call.members,
        }
        if call.error is not None:
            members |= _told(call.error, call, lines)
        if lines:
            members["text"] = lines
        print(json.dumps(as_unicode(members)), file=self._output, flush=True)

    def end(self, failed: int) -> None:
        """Raises `Failure` if commands have failed."""
        if failed:
            raise Failure(f"{failed} of {self._count} commands failed")


def _told(error: Exception, call: Call, lines: list[str]) -> dict[str, Any]:
    """The error as in other commands; what it says is taken from `lines`."""
    message, *more = _words_for(error, call).split("\n")
    if message in lines:
        lines.remove(message)
    members = error_object(_as_of_a_command(error, message), message, "\n".join(more), 1)
    del members["error"]["exit-code"]
    return members


def _words_for(error: Exception, call: Call) -> str:
    if isinstance(error, Misused):
        return f"{error}" if error.args else f"wrong arguments for {call.words[0]}"
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _as_of_a_command(error: Exception, message: str) -> BaseException:
    """An error of a command line would be told so; requests that fail have a cause that tells."""
    if isinstance(error, (Misused, Unknown, Unusable)):
        return UsageError(message)
    if not isinstance(error, (*_OF_COMMANDS, MemoryError)):
        return error
    shown = Failure(message)
    shown.__cause__ = error.__cause__ or error.__context__
    return shown
