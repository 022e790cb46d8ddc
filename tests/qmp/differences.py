"""Where our daemon answers otherwise than QEMU 7.2, and why."""

from __future__ import annotations

import re
from typing import NamedTuple


class Difference(NamedTuple):
    """A command, what both say (regular expressions), and the reason."""

    command: str
    ours: str
    theirs: str
    reason: str

    def covers(self, command: str, ours: str, theirs: str) -> bool:
        """Whether this is the difference between two answers."""
        return (
            re.fullmatch(self.command, command) is not None
            and re.fullmatch(self.ours, ours, re.DOTALL) is not None
            and re.fullmatch(self.theirs, theirs, re.DOTALL) is not None
        )


DIFFERENCES: tuple[Difference, ...] = ()
