# SPDX-License-Identifier: Apache-2.0
"""What disks do with discards and with writes of zeroes, and other words of QEMU's options."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.options import OptionTree

DISCARD_MODES = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
DETECT_ZEROES_MODES = ("off", "on", "unmap")

AIO_MODES = ("threads", "native", "io_uring")
"""Accepted, and without effect: how requests are made is chosen here."""

PREALLOCATION_MODES = ("off", "metadata", "falloc", "full")
"""All that there are; a driver may know fewer."""


def check_modes(discard: str, detect_zeroes: str) -> None:
    """Raise `InvalidArgument` for modes that do not exist, or not together."""
    if discard not in DISCARD_MODES.values():
        raise InvalidArgument(f"Invalid discard mode '{discard}': use 'ignore' or 'unmap'")
    if detect_zeroes not in DETECT_ZEROES_MODES:
        raise InvalidArgument(
            f"Invalid detect-zeroes mode '{detect_zeroes}': use 'off', 'on' or 'unmap'"
        )
    if detect_zeroes == "unmap" and discard != "unmap":
        raise InvalidArgument(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to"
            " unmap"
        )


def take_modes(options: OptionTree, discard: str, detect_zeroes: str) -> tuple[str, str]:
    """Take ``discard`` and ``detect-zeroes``; what is not there is as given.

    Raises `InvalidArgument` in QEMU's words.
    """
    if _is_there(options, "discard"):
        wanted = DISCARD_MODES.get(_word(options.pop("discard")))
        if wanted is None:
            raise InvalidArgument("Invalid discard option")
        discard = wanted
    if _is_there(options, "detect-zeroes"):
        detect_zeroes = _word(options.pop("detect-zeroes"))
        if detect_zeroes not in DETECT_ZEROES_MODES:
            raise InvalidArgument(f"invalid parameter value: {detect_zeroes}")
    check_modes(discard, detect_zeroes)
    return discard, detect_zeroes


def _is_there(options: OptionTree, name: str) -> bool:
    return name in options and not isinstance(options[name], dict)


def _word(value: object) -> str:
    """JSON may say true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
