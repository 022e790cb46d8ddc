# SPDX-License-Identifier: Apache-2.0
"""An error as a JSON object: what programs branch on, beside the words for people."""

from __future__ import annotations

import errno

from blocklayer.base.errors import BlocklayerError, IoError
from blocklayer.cli.failures import Failure, Interrupted, UsageError

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def error_object(error: BaseException, message: str, hint: str, exit_code: int) -> dict[str, Any]:
    """``{"error": {…}}``.

    class      the kind of error, as the library calls it
    code       name of the system's error that is nearest to the cause: ENOSPC
    message    what people are told
    exit-code  what the command exits with

    And where they are known: file, operation, offset, length (bytes), signal, and hint: what state
    things are in, or what to do.
    """
    causes = list(_causes(error))
    members: dict[str, Any] = {
        "class": _kind(error, causes),
        "code": _code(error, causes),
        "message": message,
        **_place(causes),
        **_signal(error),
    }
    if hint:
        members["hint"] = hint
    members["exit-code"] = exit_code
    return {"error": members}


def _causes(error: BaseException | None) -> Iterator[BlocklayerError | OSError]:
    """The errors of library and system that have led to this one, itself first.

    A command that words an error anew hides the one it stems from; that is still what it is about.
    """
    for each in _chain(error):
        if isinstance(each, BlocklayerError | OSError):
            yield each


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it stems from; an error may be its own cause."""
    seen: list[BaseException] = []
    while error is not None and not any(error is each for each in seen):
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _kind(error: BaseException, causes: list[BlocklayerError | OSError]) -> str:
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return "Interrupted"
    if isinstance(error, UsageError) or not causes:
        return "UsageError" if isinstance(error, UsageError) else type(error).__name__
    return "OSError" if isinstance(causes[0], OSError) else type(causes[0]).__name__


def _code(error: BaseException, causes: list[BlocklayerError | OSError]) -> str:
    """The system's own error, if there is one at the bottom of it."""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return "EINTR"
    if isinstance(error, UsageError) or not causes:
        return "EINVAL"
    from_system = [cause for cause in causes if isinstance(cause, IoError | OSError)]
    number = (from_system or causes)[0].errno or errno.EIO
    return errno.errorcode.get(number, str(number))


def _place(causes: list[BlocklayerError | OSError]) -> dict[str, Any]:
    """The file, and where in it, as far as the errors know."""
    place: dict[str, Any] = {}
    for cause in causes:
        filename = getattr(cause, "filename", None)
        if isinstance(filename, bytes | str) and filename:
            text = filename if isinstance(filename, str) else filename.decode(errors="replace")
            place.setdefault("file", text)
        if isinstance(cause, IoError):
            place.setdefault("operation", cause.operation)
            if cause.offset >= 0:
                place.setdefault("offset", cause.offset)
            if cause.length >= 0:
                place.setdefault("length", cause.length)
    return place


def _signal(error: BaseException) -> dict[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return {"signal": "SIGINT"}
    if isinstance(error, Interrupted):
        import signal

        return {"signal": signal.Signals(error.exit_code - 128).name}
    return {}


def all_notes(error: BaseException | None) -> list[str]:
    """The notes on an error, and on those it stems from."""
    notes: list[str] = []
    for each in _chain(error):
        notes += [note for note in getattr(each, "__notes__", ()) if note not in notes]
        if _is_final(each):
            break
    return notes


def _is_final(error: BaseException) -> bool:
    """Errors of other kinds tell nothing of the state of images, nor does what lies behind."""
    return not isinstance(error, Failure | BlocklayerError)
