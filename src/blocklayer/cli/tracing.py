# SPDX-License-Identifier: Apache-2.0
"""--trace: ``[enable=]PATTERN[,events=FILE][,file=FILE]``, as QEMU's tools take it.

A PATTERN of ``help`` or ``?`` asks for the names of the events that there are.
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
_WILD = {*"*?["}


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
    with contextlib.ExitStack() as stack:
        for specification in specifications:
            patterns, filename = _parse(specification)
            stream = sys.stderr
            if filename is not None:
                stream = stack.enter_context(open(filename, "w", encoding="utf-8"))
            for pattern in patterns:
                if not _WILD & {*pattern} and pattern not in full_names():
                    warn(f"trace event '{pattern}' does not exist")
                tracer = Tracer(pattern, stream)
                add_tracer(tracer)
                stack.callback(remove_tracer, tracer)
        yield


def _parse(specification: str) -> tuple[list[str], str | None]:
    """Patterns, and the file to write to."""
    patterns: list[str] = []
    filename = None
    for name, value in _pairs(specification):
        if name == "enable":
            patterns.append(value)
        elif name == "events":
            patterns += _read_patterns(value)
        elif name == "file":
            filename = value
        else:
            raise Failure(f"Invalid parameter '{name}'")
    return [pattern for pattern in patterns if pattern], filename


def _pairs(specification: str) -> list[tuple[str, str]]:
    first, _, rest = specification.partition(",")
    if "=" not in first:
        specification = f"enable={first},{rest}"
    return list(split_options(specification))


def _read_patterns(filename: str) -> list[str]:
    """One pattern a line; # begins a comment."""
    try:
        with open(filename, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except ValueError as error:
        raise Failure(f"Could not read events from '{filename}': {error}") from None
    return [line for line in lines if line and not line.startswith("#")]
