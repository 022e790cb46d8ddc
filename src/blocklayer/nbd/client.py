# SPDX-License-Identifier: Apache-2.0
"""A client: commands of any number of threads, over one connection or several.

Several connections are for servers that say that they are consistent (MULTI_CONN): what one has
written the others read, and a flush on one is a flush of them all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from blocklayer.base.errors import ProtocolError, RemoteError
from blocklayer.base.units import MiB
from blocklayer.nbd import client_waits, wire
from blocklayer.nbd.client_command import Command
from blocklayer.nbd.client_connect import Encryption
from blocklayer.nbd.client_handshake import Agreement, Wish
from blocklayer.nbd.client_lane import ATTEMPT_SECONDS, Lane, Settings
from blocklayer.nbd.client_waits import Waits
from blocklayer.nbd.uri import Location

WINDOW = 64
"""Commands that one call has in flight …"""
WINDOW_BYTES = 16 * MiB
"""… and bytes they may move: together they bound what a server has to keep for it."""

CONNECTIONS_MAX = 16


class Client:
    """An export in use."""

    def __init__(
        self,
        location: Location,
        *,
        encrypted: Encryption | None = None,
        wish: Wish | None = None,
        settings: Settings | None = None,
        connections: int = 1,
    ) -> None:
        wish, settings = wish or Wish(), settings or Settings()
        self._turn = 0
        self.survives_losses = settings.reconnect_delay > 0
        """Whether requests wait for another connection when one is lost."""
        self._waits = waits = Waits()
        self._lanes: list[Lane] = []
        client_waits.register(self)
        self._lanes.append(Lane(location, encrypted, wish, settings, waits))
        if not self.agreement.has(wire.FLAG_CAN_MULTI_CONN):
            return
        more = settings.replace(open_timeout=0, connect=ATTEMPT_SECONDS)
        try:
            for _ in range(1, connections):
                self._lanes.append(Lane(location, encrypted, wish, more, waits))
        except (RemoteError, ProtocolError):
            return  # a server may have a limit, and one connection is enough
        except BaseException:
            self.close()
            raise

    @property
    def agreement(self) -> Agreement:
        """What the server offers."""
        return self._lanes[0].agreement

    def losses(self) -> int:
        """Connections that the server, or the way to it, has ended, and that were replaced."""
        return sum(lane.losses for lane in self._lanes)

    def run(self, commands: Sequence[Command]) -> None:
        """Have all of `commands` answered; each has its own `error`.

        Raises `RemoteError`, `ProtocolError` where the server cannot be reached, or answers
        nonsense. Those that were answered have had their effect.
        """
        started: deque[Command] = deque()
        moving = next_one = 0
        try:
            while next_one < len(commands) or started:
                batch: list[Command] = []
                while next_one < len(commands) and len(started) + len(batch) < WINDOW:
                    size = _bytes_moved(commands[next_one])
                    if moving and moving + size > WINDOW_BYTES:
                        break
                    moving += size
                    batch.append(commands[next_one])
                    next_one += 1
                if batch:
                    started += batch
                    self._start(batch)
                self._lanes[started[0].lane].wait(started[0])
                moving -= _bytes_moved(started.popleft())
        except BaseException:
            for command in started:
                self._lanes[command.lane].abandon(command)
            raise

    def _start(self, batch: list[Command]) -> None:
        lanes = self._lanes
        if len(lanes) == 1:
            lanes[0].start(batch)
            return
        for command in batch:
            self._turn = command.lane = (self._turn + 1) % len(lanes)
        for number, lane in enumerate(lanes):
            share = [command for command in batch if command.lane == number]
            if share:
                lane.start(share)

    def interrupt(self, silent_for: float = 0) -> bool:
        """Give the server up if it has owed an answer for so many seconds; whether it was so.

        Whoever waits gets a `RemoteError`, as will whoever sends another command, and closing does
        not wait. Call it from any thread.
        """
        since = self._waits.trying_since()
        silence = 0.0 if since is None else time.monotonic() - since
        owed = since is not None
        for lane in list(self._lanes):
            quiet = lane.silence()
            owed, silence = owed or quiet > 0, max(silence, quiet)
        if not owed or silence < silent_for:
            return False
        self._waits.end()
        for lane in list(self._lanes):
            lane.interrupt()
        return True

    def close(self) -> None:
        """Say good-bye; commands in flight are lost."""
        for lane in self._lanes:
            lane.close()


def _bytes_moved(command: Command) -> int:
    """Bytes that the command or its reply carries."""
    return command.length if command.kind in (wire.CMD_READ, wire.CMD_WRITE) else 0
