# SPDX-License-Identifier: Apache-2.0
"""`blk nbd --list`: what another server exports."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.parsing import Arguments

_FILE_OPTIONS = ("export-name", "description", "offset", "bitmap", "allocation-depth")
_EXPORT_OPTIONS = ("persistent", "fork", "pid-file", "tls-authz", "metrics")


def run_list(arguments: Arguments) -> int:
    """The command, with --list."""
    if arguments.names:
        raise Failure("List mode is incompatible with a file name")
    if any(key in arguments for key in _FILE_OPTIONS):
        raise Failure("List mode is incompatible with per-device settings")
    if any(key in arguments for key in _EXPORT_OPTIONS):
        raise Failure("List mode is incompatible with exporting settings")
    raise Failure("Listing other servers' exports is not supported in this version")
