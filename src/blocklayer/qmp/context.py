# SPDX-License-Identifier: Apache-2.0
"""What commands act on: the nodes, jobs, exports and monitors of one daemon."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from blocklayer.qmp.events import Events

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.jobs.manager import Jobs
    from blocklayer.qmp.commands.exports import Exports
    from blocklayer.qmp.schema.monitor import ChardevInfo
    from blocklayer.qmp.types import Command

    Human = Callable[["Context", str], str]

QUIT = "host-qmp-quit"
SIGNAL = "host-signal"


class Context:
    """The state of a daemon. Commands run one at a time, whichever monitor they come from."""

    def __init__(
        self, graph: Graph, jobs: Jobs, exports: Exports, human: Human | None = None
    ) -> None:
        self.graph = graph
        self.jobs = jobs
        self.exports = exports
        self.events = Events()
        self.commands: dict[str, Command] = {}
        self.lock = threading.RLock()
        """Held while a command runs."""
        self.human = human
        """Runs a line of human-monitor-command; from above, where such a language is."""
        self.chardevs: Callable[[], list[ChardevInfo]] = list
        """Tells of the character devices."""
        self.write_thresholds: WeakKeyDictionary[Node, int] = WeakKeyDictionary()
        self.made: list[Node] = []
        """Nodes that the running command has made, for those to have who use them afterwards."""
        self.ending = False
        """Commands are not taken any more."""
        self.reason = SIGNAL
        self._ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    def quit(self, reason: str) -> None:
        """End the daemon, soon. Also safe in a signal handler, as its queue is."""
        self._ends.put(reason)

    def wait(self) -> None:
        """Wait for `quit`."""
        self.reason = self._ends.get()
