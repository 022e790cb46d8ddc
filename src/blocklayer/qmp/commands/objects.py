# SPDX-License-Identifier: Apache-2.0
"""Commands about objects that options refer to by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from blocklayer.core import objects
from blocklayer.qmp.schema import monitor
from blocklayer.qmp.schema import objects as schema
from blocklayer.qmp.types import Family, QmpError

if TYPE_CHECKING:
    from blocklayer.qmp.context import Context

FAMILY = Family("Objects")


@FAMILY.command("object-add", schema.Objects)
def object_add(context: Context, arguments: Any) -> None:
    """Define an object, for options of nodes and of the NBD server to refer to."""
    add_object(arguments)


def add_object(definition: Any) -> None:
    """Define a declared object."""
    properties: dict[str, Any] = msgspec.to_builtins(definition)
    objects.add(properties.pop("qom-type"), properties.pop("id"), properties)


@FAMILY.command("object-del", monitor.ObjectDel)
def object_del(context: Context, arguments: monitor.ObjectDel) -> None:
    """Forget an object. What uses credentials or secrets already goes on."""
    if objects.find(arguments.id) is None:
        raise QmpError(f"object '{arguments.id}' not found")
    for entry in context.graph.named():
        if entry.settings.options.get("throttle-group") == arguments.id:
            raise QmpError(f"object '{arguments.id}' is in use, can not be deleted")
    objects.forget(arguments.id)
