# SPDX-License-Identifier: Apache-2.0
"""--object: secrets, credentials and limits that options refer to by their ids.

An object that nobody refers to changes no result: definitions are checked and accepted, so that
command lines of other tools work.
"""

from __future__ import annotations

import re

from blocklayer.base.options import split_options
from blocklayer.cli.failures import Failure
from blocklayer.core.objects import UserObject, define

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

_TLS = ("endpoint", "dir", "verify-peer", "priority")
_SECRET = ("format", "keyid", "iv")

KINDS: dict[str, tuple[str, ...]] = {
    "authz-list": ("policy", "rules"),
    "authz-list-file": ("filename", "refresh"),
    "authz-simple": ("identity",),
    "iothread": ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"),
    "main-loop": ("aio-max-batch", "thread-pool-min", "thread-pool-max"),
    "pr-manager-helper": ("path",),
    "secret": ("data", "file", *_SECRET),
    "secret_keyring": ("serial", *_SECRET),
    "throttle-group": ("limits", "x-*"),
    "tls-cipher-suites": ("priority",),
    "tls-creds-anon": _TLS,
    "tls-creds-psk": (*_TLS, "username"),
    "tls-creds-x509": (*_TLS, "sanity-check", "passwordid"),
}
"""Properties of each kind; ``limits`` also stands for ``limits.bps-total``, ``x-*`` for any."""

FORMATS = ("raw", "base64")


def check_objects(definitions: list[str]) -> None:
    """Look at every definition and make it known. Raises `Failure`."""
    known: set[str] = set()
    for definition in definitions:
        properties = _properties(definition)
        kind = properties.get("qom-type")
        name = _check(properties)
        if name in known:
            raise Failure(f"attempt to add duplicate property '{name}' to object")
        known.add(name)
        define(UserObject(str(kind), name, properties))


def list_objects(definitions: list[str]) -> str | None:
    """What ``--object help`` and ``--object KIND,help`` tell; None if nobody asked."""
    for definition in definitions:
        kind, _, rest = definition.partition(",")
        if kind in ("help", "?"):
            return "\n".join(["List of user creatable objects:", *(f"  {kind}" for kind in KINDS)])
        if rest in ("help", "?") and kind in KINDS:
            names = sorted(KINDS[kind])
            return "\n".join([f"{kind} options:", *(f"  {name}=<value>" for name in names)])
    return None


def _properties(definition: str) -> dict[str, Any]:
    """Of a definition as options, or in JSON."""
    if definition.startswith("{"):
        import json

        try:
            properties: dict[str, Any] = json.loads(definition)
        except ValueError as error:
            raise Failure(f"JSON parse error, {error}") from None
        return properties
    first, _, rest = definition.partition(",")
    if first and "=" not in first:
        definition = f"qom-type={first},{rest}"
    return dict(split_options(definition))


def _check(properties: dict[str, Any]) -> str:
    """The id of a definition that is right."""
    kind = properties.pop("qom-type", None)
    if kind is None:
        raise Failure("Parameter 'qom-type' is missing")
    if kind not in KINDS:
        raise Failure(f"Parameter 'qom-type' does not accept value '{kind}'")
    name = properties.pop("id", None)
    if name is None:
        raise Failure("Parameter 'id' is missing")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", str(name)):
        raise Failure("Parameter 'id' expects an identifier")
    for each in properties:
        if not _is_property(kind, each):
            raise Failure(f"Parameter '{each}' is unexpected")
    if kind.startswith("secret"):
        _check_secret(kind, properties)
    return str(name)


def _is_property(kind: str, name: str) -> bool:
    names = KINDS[kind]
    return name.partition(".")[0] in names or (name.startswith("x-") and "x-*" in names)


def _check_secret(kind: str, properties: dict[str, Any]) -> None:
    if properties.get("format", "raw") not in FORMATS:
        raise Failure(f"Parameter 'format' does not accept value '{properties['format']}'")
    if kind == "secret" and "data" not in properties and "file" not in properties:
        raise Failure("Either 'file' or 'data' must be provided")
    if "data" in properties and "file" in properties:
        raise Failure("'file' and 'data' are mutually exclusive")
