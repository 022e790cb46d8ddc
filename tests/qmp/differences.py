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


BUSY = r"GenericError: Node '\w+' is busy: block device is in use by block job: \w+"
BELOW = r"GenericError: Node '\w+' is busy: node is used as backing hd of '\w+'"

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "blockdev-del",
        BUSY,
        r"GenericError: Block device s is in use",
        "a backup of QEMU's does not say that it is in the way of its source",
    ),
    Difference(
        "block_resize",
        f"{BUSY}|{BELOW}",
        re.escape("GenericError: Device '(null)' is in use"),
        "QEMU prints the name of a device where there is none",
    ),
    Difference(
        "block_resize",
        r"GenericError: Invalid image size specified: .*",
        "GenericError: Invalid image size specified",
        "the words go on to say what is wrong with the size",
    ),
    Difference(
        "blockdev-add",
        "GenericError: Offset .* lies behind the end of .*",
        "GenericError: Offset .* cannot be greater than size of the containing file .*",
        "the words name the file",
    ),
    Difference(
        "blockdev-reopen",
        "{}",
        "GenericError: Block node is read-only",
        "QEMU leaves a file that it has made read-only with its image, so there is no way back",
    ),
    Difference(
        "block_resize",
        "{}",
        "GenericError: Image is read-only",
        "the same, one step later",
    ),
)
