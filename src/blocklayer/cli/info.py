# SPDX-License-Identifier: Apache-2.0
"""`blk info`: what an image is."""

from __future__ import annotations

from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    UNTRUSTED,
    Arguments,
    Command,
    one_image,
    trust_argument,
    wants_json,
)

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Reach
    from blocklayer.ops.info import ImageInfo

COMMAND = Command(
    "info",
    "FILE",
    "Tell what an image is: format, sizes, backing file, whether it was closed properly.",
    (
        FORMAT,
        OUTPUT,
        Option("--backing-chain", "", "tell about everything it is backed by, too"),
        Option("--limits", "", "tell how requests should look, and how zeroing is done"),
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "The image alone is opened, not what it is backed by, unless --backing-chain is given."
    ),
    examples=(
        ("info disk.qed", "What is it?"),
        ("info --output=json --backing-chain top.qed", "Everything, for a program."),
        ("info -U disk.qed", "While a virtual machine uses it."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.info import info, info_chain

    name, format_name = one_image(arguments)
    as_json = wants_json(arguments)
    force_share = "force-share" in arguments
    whole_chain, limits = "backing-chain" in arguments, "limits" in arguments
    trust = trust_argument(arguments)
    if whole_chain:
        images = info_chain(name, format=format_name, force_share=force_share, trust=trust)
    else:
        images = [info(name, format=format_name, force_share=force_share, trust=trust)]
    if as_json:
        members = [_members(image, limits=limits) for image in images]
        print_json(members if whole_chain else members[0])
    else:
        print("\n\n".join(describe(image, limits=limits) for image in images))
    return 0


def _members(image: ImageInfo, *, limits: bool) -> dict[str, Any]:
    return image.as_dict() | ({"limits": image.limits} if limits else {})


def describe(image: ImageInfo, *, limits: bool = False) -> str:
    """The lines for people."""
    from blocklayer.base.units import format_size

    size = image.actual_size
    lines = [
        f"image: {image.filename}",
        f"file format: {image.format}",
        f"virtual size: {format_size(image.virtual_size)} ({image.virtual_size} bytes)",
        f"disk size: {'unavailable' if size is None else format_size(size)}",
    ]
    if image.cluster_size is not None:
        lines.append(f"cluster_size: {image.cluster_size}")
    if image.dirty_flag:
        lines.append("cleanly shut down: no")
    if image.backing_filename is not None and image.reaches is None:
        lines.append(f"backing file: {image.backing_filename}{_actual_path(image)}")
        if image.backing_format is not None:
            lines.append(f"backing file format: {image.backing_format}")
    if image.reaches is not None:
        lines += _describe_reaches(image.reaches)
    if limits:
        lines.append("Block limits:")
        lines += [f"    {key.replace('-', ' ')}: {value}" for key, value in image.limits.items()]
    return "\n".join(lines)


def _describe_reaches(reaches: list[Reach]) -> list[str]:
    """What an image asks for that is not trusted: its names may hold anything."""
    from blocklayer.core.trust import printable

    lines = ["asks for:" if reaches else "asks for: nothing"]
    for reach in reaches:
        where = f" (actual path: {printable(reach.path)})" if reach.path is not None else ""
        lines.append(f"    {reach.what}: {printable(reach.name)}{where}")
        if reach.refused is not None:
            lines.append(f"        refused: {reach.refused}")
        else:
            lines.append("        allowed by its name; links are followed when it is opened")
    return lines


def _actual_path(image: ImageInfo) -> str:
    """Where the backing file is, unless its name says so."""
    full = image.full_backing_filename
    if full is None:
        return " (cannot determine actual path)"
    return "" if full == image.backing_filename else f" (actual path: {full})"
