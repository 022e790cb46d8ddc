# SPDX-License-Identifier: Apache-2.0
"""Commands about the monitor and the daemon."""

from __future__ import annotations

from typing import Any

from blocklayer.qmp.chardev import KINDS
from blocklayer.qmp.context import QUIT, Context
from blocklayer.qmp.dispatch import version_info
from blocklayer.qmp.introspect import schema
from blocklayer.qmp.schema import monitor
from blocklayer.qmp.schema.events import EVENTS
from blocklayer.qmp.types import CommandNotFound, Family, Nothing

FAMILY = Family("Monitor and daemon")


@FAMILY.command("qmp_capabilities", monitor.Capabilities, before_negotiation=True)
def qmp_capabilities(context: Context, arguments: monitor.Capabilities) -> None:
    """Choose capabilities. Until then no other command is taken, and no events are sent."""
    raise AssertionError("negotiation is the session's")


@FAMILY.command("query-version", Nothing, monitor.VersionInfo)
def query_version(context: Context, arguments: Nothing) -> Any:
    """Tell the version of the protocol (that of QEMU with the same commands), and of blocklayer."""
    return version_info()


@FAMILY.command("query-commands", Nothing, list[monitor.CommandInfo])
def query_commands(context: Context, arguments: Nothing) -> Any:
    """List the commands."""
    return [{"name": name} for name in context.commands]


@FAMILY.command("query-qmp-schema", Nothing, monitor.Schema)
def query_qmp_schema(context: Context, arguments: Nothing) -> Any:
    """Tell every command, event and type, in the form of QEMU's SchemaInfo."""
    return schema(context.commands.values(), EVENTS)


@FAMILY.command("query-status", Nothing, monitor.StatusInfo)
def query_status(context: Context, arguments: Nothing) -> Any:
    """Tell whether the daemon runs, or is about to end."""
    ends = context.ending
    return monitor.StatusInfo(running=not ends, status="shutdown" if ends else "running")


@FAMILY.command("query-chardev", Nothing, list[monitor.ChardevInfo])
def query_chardev(context: Context, arguments: Nothing) -> Any:
    """List the character devices."""
    return context.chardevs()


@FAMILY.command("query-chardev-backends", Nothing, list[monitor.ChardevBackendInfo])
def query_chardev_backends(context: Context, arguments: Nothing) -> Any:
    """List the kinds of character devices that --chardev makes."""
    return [monitor.ChardevBackendInfo(name=kind) for kind in KINDS]


@FAMILY.command("human-monitor-command", monitor.HumanCommand, str)
def human_monitor_command(context: Context, arguments: monitor.HumanCommand) -> str:
    """Run a command for people; what it prints. `qemu-io NODE "COMMAND"` is there, and `help`."""
    if context.human is None:
        raise CommandNotFound("The command human-monitor-command has not been found")
    return context.human(context, arguments.command_line)


@FAMILY.command("quit")
def quit_(context: Context, arguments: Nothing) -> None:
    """End the daemon: jobs are cancelled, exports closed, images marked clean."""
    context.quit(QUIT)
