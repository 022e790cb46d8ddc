# SPDX-License-Identifier: Apache-2.0
"""A daemon put together: nodes, jobs, exports, character devices, monitors; its end in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from blocklayer.core.graph import Graph
from blocklayer.jobs.manager import Jobs
from blocklayer.qmp.channels import Channel
from blocklayer.qmp.chardev import AnyChardev, open_chardev
from blocklayer.qmp.commands import all_commands
from blocklayer.qmp.commands.exports import Exports
from blocklayer.qmp.commands.nodes import add_node
from blocklayer.qmp.commands.objects import add_object
from blocklayer.qmp.context import Context
from blocklayer.qmp.monitor import FLUSH_SECONDS, Monitor
from blocklayer.qmp.schema import exports as exports_schema
from blocklayer.qmp.schema import objects as objects_schema
from blocklayer.qmp.schema.blockdev import Blockdevs
from blocklayer.qmp.schema.monitor import ChardevInfo
from blocklayer.qmp.types import QmpError
from blocklayer.qmp.validate import convert

COMMAND_SECONDS = 30.0
"""For how long the command that is being carried out may delay the end."""


class Daemon:
    """What `blk daemon` runs. Options are taken as they come, one after the other."""

    def __init__(self, human: Callable[[Context, str], str] | None = None) -> None:
        graph, jobs = Graph(), Jobs()
        self.context = Context(graph, jobs, Exports(graph, self._export_deleted), human)
        self.context.commands = all_commands()
        self.context.chardevs = self._chardev_infos
        jobs.add_listener(self.context.events.emit)
        self._chardevs: dict[str, AnyChardev] = {}
        self._monitors: set[Monitor] = set()
        self._lock = threading.Lock()

    def _export_deleted(self, identity: str) -> None:
        self.context.events.emit("BLOCK_EXPORT_DELETED", {"id": identity})

    # --- options --------------------------------------------------------------------------------

    def add_blockdev(self, options: Any, *, spelled: bool) -> None:
        """`--blockdev`. `spelled`: scalars are strings, as everywhere here."""
        add_node(self.context, convert(options, Blockdevs, spelled=spelled))

    def add_export(self, options: Any, *, spelled: bool) -> None:
        """`--export`."""
        self.context.exports.add(convert(options, exports_schema.NbdExport, spelled=spelled))

    def start_nbd_server(self, options: Any, *, spelled: bool) -> None:
        """`--nbd-server`."""
        given = convert(options, exports_schema.NbdServerOptions, spelled=spelled)
        self.context.exports.start(
            given.addr, given.tls_creds, given.tls_authz, given.max_connections or 0
        )

    def add_object(self, options: Any, *, spelled: bool) -> None:
        """`--object`."""
        add_object(convert(options, objects_schema.Objects, spelled=spelled))

    def add_chardev(self, options: dict[str, str]) -> None:
        """`--chardev`."""
        label = options.get("id", "")
        if options.get("backend") == "stdio" and any(
            each.filename == "stdio" for each in self._chardevs.values()
        ):
            raise QmpError("cannot use stdio by multiple character devices")
        if label in self._chardevs:
            raise QmpError(f"Duplicate ID '{label}' for chardev")
        self._chardevs[label] = open_chardev(options)

    def add_monitor(self, chardev: str, *, pretty: bool) -> None:
        """`--monitor`."""
        device = self._chardevs.get(chardev)
        if device is None:
            raise QmpError(f'chardev "{chardev}" not found')
        if device.used:
            raise QmpError(f"Device '{chardev}' is in use")
        device.start(lambda channel: self._talk(channel, pretty))

    def _talk(self, channel: Channel, pretty: bool) -> None:
        monitor = Monitor(self.context, channel, pretty=pretty)
        with self._lock:
            self._monitors.add(monitor)
        try:
            monitor.run()
        finally:
            with self._lock:
                self._monitors.discard(monitor)

    def _chardev_infos(self) -> list[ChardevInfo]:
        return [
            ChardevInfo(label=each.label, filename=each.filename, frontend_open=each.used)
            for each in self._chardevs.values()
        ]

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Wait until somebody wants the daemon to end."""
        self.context.wait()

    def close(self) -> None:
        """End: jobs are cancelled, clients disconnected, images closed and marked clean.

        Raises the first error of closing an image.
        """
        context = self.context
        context.ending = True
        for device in self._chardevs.values():
            device.stop_listening()
        deadline = time.monotonic() + FLUSH_SECONDS
        with self._lock:
            monitors = list(self._monitors)
        for monitor in monitors:
            monitor.finish_answer(deadline)
        context.events.emit("SHUTDOWN", {"guest": False, "reason": context.reason})
        taken = context.lock.acquire(timeout=COMMAND_SECONDS)
        try:
            context.jobs.end_all()
            context.exports.close()
            context.graph.close()
        finally:
            if taken:
                context.lock.release()
            deadline = time.monotonic() + FLUSH_SECONDS
            for monitor in monitors:
                monitor.finish(deadline)
            for device in self._chardevs.values():
                device.close()
