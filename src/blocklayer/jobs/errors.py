# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a command to a job, in the words that clients know."""

from __future__ import annotations

import os

from blocklayer.base.errors import BlocklayerError, InvalidArgument, IoError


class JobNotFound(BlocklayerError, eq=False):
    """There is no block job of that name."""

    qmp_class = "DeviceNotActive"


class WrongState(InvalidArgument, eq=False):
    """The job cannot do that now."""


class JobCancelled(Exception):
    """Inside a job's own thread: somebody has cancelled it."""


def job_error(error: BaseException) -> str:
    """An error as jobs report it: the system's words for failed I/O, the whole message else."""
    if isinstance(error, IoError):
        return os.strerror(error.code)
    if isinstance(error, BlocklayerError | OSError):
        return str(error)
    return f"internal error: {type(error).__name__}: {error}"
