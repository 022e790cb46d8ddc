# SPDX-License-Identifier: Apache-2.0
"""Commands about objects that options refer to by id."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from blocklayer.core import objects
from blocklayer.qmp.schema import monitor
from blocklayer.qmp.schema import objects as schema
from blocklayer.qmp.types import Family, QmpError

if TYPE_CHECKING:
    from blocklayer.qmp.context import Context

FAMILY = Family("Objects")

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


@FAMILY.command("object-add", schema.Objects)
def object_add(context: Context, arguments: Any) -> None:
    """Define an object, for options of nodes and of the NBD server to refer to."""
    add_object(arguments)


def add_object(definition: Any) -> None:
    """Define a declared object."""
    properties: dict[str, Any] = msgspec.to_builtins(definition)
    kind, name = properties.pop("qom-type"), properties.pop("id")
    if not _IDENTIFIER.fullmatch(name):
        raise QmpError("Parameter 'id' expects an identifier")
    if objects.find(name) is not None:
        raise QmpError(f"attempt to add duplicate property '{name}' to object (type 'container')")
    if isinstance(definition, schema.Secret):
        _check_secret(definition)
    objects.define(objects.UserObject(kind, name, properties))


def _check_secret(secret: schema.Secret) -> None:
    if secret.keyid is not None or secret.iv is not None:
        raise QmpError("Encrypted secrets are not supported")
    if secret.data is None and secret.file is None:
        raise QmpError("Either 'file' or 'data' must be provided")
    if secret.data is not None and secret.file is not None:
        raise QmpError("'file' and 'data' are mutually exclusive")


@FAMILY.command("object-del", monitor.ObjectDel)
def object_del(context: Context, arguments: monitor.ObjectDel) -> None:
    """Forget an object. What uses credentials or secrets already goes on."""
    if objects.find(arguments.id) is None:
        raise QmpError(f"object '{arguments.id}' not found")
    for entry in context.graph.named():
        if entry.settings.options.get("throttle-group") == arguments.id:
            raise QmpError(f"object '{arguments.id}' is in use, can not be deleted")
    objects.forget(arguments.id)
