# SPDX-License-Identifier: Apache-2.0
"""--trace: ``[enable=]PATTERN[,events=FILE][,file=FILE]``, as QEMU's tools take it.

A PATTERN of ``help`` or ``?`` asks for the names of the events that there are. One after ``-``
takes events out again that earlier ones ask for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from blocklayer.base.options import split_options
from blocklayer.cli.failures import Failure
from blocklayer.cli.output import warn
from blocklayer.core.events import Tracer, add_tracer, full_names, remove_tracer

_ASKS = ("help", "?")


def events_asked_for(specifications: list[str]) -> str | None:
    """The events that there are, one a line; None if nobody asks for them."""
    for specification in specifications:
        if any(pattern in _ASKS for pattern in _enabled(specification)):
            return "\n".join(full_names())
    return None


def _enabled(specification: str) -> list[str]:
    return [value for name, value in _pairs(specification) if name == "enable"]


@contextlib.contextmanager
def traced(specifications: list[str]) -> Iterator[None]:
    """Events that match are printed while the command runs: to stderr, or to the file given."""
    tracers: list[Tracer] = []
    with contextlib.ExitStack() as stack:
        for specification in specifications:
            patterns, filename = _parse(specification)
            stream = sys.stderr
            if filename is not None:
                stream = stack.enter_context(open(filename, "w", encoding="utf-8"))
            for place, pattern in patterns:
                _warn_of_unknown(pattern.removeprefix("-"), place)
                if pattern.startswith("-"):
                    for tracer in tracers:
                        tracer.but.append(pattern[1:])
                    continue
                tracer = Tracer(pattern, stream)
                tracers.append(tracer)
                add_tracer(tracer)
                stack.callback(remove_tracer, tracer)
        yield


def _warn_of_unknown(pattern: str, place: str) -> None:
    """A name that no event has; a pattern that none matches is not worth a word."""
    import fnmatch

    if "*" not in pattern and not fnmatch.filter(full_names(), pattern):
        warn(f"{place}trace event '{pattern}' does not exist")


def _parse(specification: str) -> tuple[list[tuple[str, str]], str | None]:
    """Patterns with where they stand, and the file to write to."""
    patterns: list[tuple[str, str]] = []
    filename = None
    for name, value in _pairs(specification):
        if name == "enable":
            patterns.append(("", value))
        elif name == "events":
            patterns += _read_patterns(value)
        elif name == "file":
            filename = value
        else:
            raise Failure(f"Invalid parameter '{name}'")
    return [(place, pattern) for place, pattern in patterns if pattern], filename


def _pairs(specification: str) -> list[tuple[str, str]]:
    first, _, rest = specification.partition(",")
    if "=" not in first:
        specification = f"enable={first},{rest}"
    return list(split_options(specification))


def _read_patterns(filename: str) -> list[tuple[str, str]]:
    """One pattern a line; # begins a comment."""
    try:
        with open(filename, encoding="utf-8") as file:
            lines = [
                (f"{filename}:{number}: ", line.strip()) for number, line in enumerate(file, 1)
            ]
    except ValueError as error:
        raise Failure(f"Could not read events from '{filename}': {error}") from None
    return [(place, line) for place, line in lines if line and not line.startswith("#")]
