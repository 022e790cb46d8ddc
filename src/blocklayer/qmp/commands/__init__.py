# SPDX-License-Identifier: Apache-2.0
"""The commands, one module a family. Functions translate; what is done is done elsewhere."""

from __future__ import annotations

from blocklayer.qmp.commands import (
    bitmaps,
    blockjobs,
    exports,
    misc,
    nodes,
    objects,
    queries,
    transaction,
)
from blocklayer.qmp.types import Command, Family

FAMILIES: tuple[Family, ...] = (
    misc.FAMILY,
    nodes.FAMILY,
    queries.FAMILY,
    blockjobs.FAMILY,
    bitmaps.FAMILY,
    transaction.FAMILY,
    exports.FAMILY,
    objects.FAMILY,
)


def all_commands() -> dict[str, Command]:
    """Commands by name."""
    return {command.name: command for family in FAMILIES for command in family.commands}
