# SPDX-License-Identifier: Apache-2.0
"""human-monitor-command: the language of `blk io` on a node of the daemon."""

from __future__ import annotations

import contextlib
import io
import shlex

from blocklayer.base.errors import InvalidArgument
from blocklayer.cli.failures import Failure
from blocklayer.cli.io_language import Quit, execute
from blocklayer.cli.io_session import Session, fault_node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.qmp.context import Context

HELP = """\
help -- show the commands
info block -- show the nodes
info block-jobs -- show the jobs
qemu-io NODE "COMMAND" -- run a command of blk io on a node
"""

_NOT_HERE = frozenset(
    {"open", "o", "close", "c", "quit", "q", "sleep", "abort", "sigraise", "wait_break"}
)
"""Commands of blk io about its own process or its only image, and those that wait for others."""


class HumanMonitor:
    """Runs the lines of all monitors, and knows what break points they have set."""

    def __init__(self) -> None:
        self._tags: dict[str, set[str]] = {}
        """By node."""

    def __call__(self, context: Context, line: str) -> str:
        """Run a line; what it prints."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            return f"{error}\r\n"
        try:
            if words[:1] == ["qemu-io"]:
                return self._run_io(context, [word for word in words[1:] if word != "-d"])
            return _run(context, words)
        except Failure as error:
            return f"Error: {error}\r\n"

    def _run_io(self, context: Context, words: list[str]) -> str:
        if len(words) != 2:
            raise Failure("qemu-io: give a node and a command")
        name, line = words
        if name not in context.graph:
            raise Failure(f"Cannot find device='{name}' nor node-name='{name}'")
        return _run_io(context, name, line, self._tags.setdefault(name, set()))

    def release(self, context: Context) -> None:
        """Let go on whoever waits at a break point: the daemon ends, and nobody else will."""
        for name, tags in self._tags.items():
            if tags and name in context.graph:
                with context.graph.open_disk(name, user="qemu-io") as disk:
                    node = fault_node(disk)
                while tags and node is not None:
                    with contextlib.suppress(InvalidArgument):
                        node.remove_break(tags.pop())


def _run(context: Context, words: list[str]) -> str:
    if not words:
        return ""
    if words[0] == "help":
        return HELP
    if words[:2] == ["info", "block"]:
        return "".join(_about_node(context, name) for name in context.graph.names)
    if words[:2] == ["info", "block-jobs"]:
        jobs = context.jobs.all()
        return (
            "".join(
                f"Type {job.type}, device {job.id}: Completed {job.current} of {job.total} bytes,"
                f" speed limit {job.speed} bytes/s\r\n"
                for job in jobs
            )
            or "No active jobs\r\n"
        )
    raise Failure(f"unknown command: '{words[0]}'")


def _about_node(context: Context, name: str) -> str:
    node = context.graph.find(name)
    mode = ", read-only" if node.read_only else ""
    return f"{name}: {node.filename} ({node.driver}{mode})\r\n"


def _run_io(context: Context, name: str, line: str, tags: set[str]) -> str:
    from blocklayer.cli.io import all_commands

    commands = {key: each for key, each in all_commands().items() if key not in _NOT_HERE}
    session = Session(commands)
    session.tags = tags
    node = context.graph.find(name)
    command = commands.get((line.split() or [""])[0])
    writes = command is not None and command.changes and not node.read_only
    # Commands run one at a time, and nothing else here prints: monitors use their descriptors.
    printed = io.StringIO()
    with (
        context.graph.open_disk(name, writable=writes, user="qemu-io") as disk,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        session.disk = disk
        try:
            execute(session, line)
            session.wait()
        except Quit:
            pass
        finally:
            session.disk = None
    return printed.getvalue().replace("\n", "\r\n")
