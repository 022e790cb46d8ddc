# SPDX-License-Identifier: Apache-2.0
"""Objects that users define by id (`--object`, `object-add`), for options to refer to.

There is one table a process, as in QEMU: options name an object wherever they stand in a graph.
Properties have their types already (``cli/objects.py``, ``qmp/schema/objects.py``); what they refer
to is looked at here when an object is added, in QEMU's words.
"""

from __future__ import annotations

import errno
import os

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.modules import module_named
from blocklayer.base.record import Record, fresh
from blocklayer.base.units import INT64_MAX

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class UserObject(Record, frozen=True):
    """A definition: `kind` is QEMU's ``qom-type``."""

    kind: str
    name: str
    properties: dict[str, Any] = fresh(factory=dict)


_objects: dict[str, UserObject] = {}


def add(kind: str, name: str, properties: dict[str, Any]) -> None:
    """Make a new object known. Raises `InvalidArgument` for what cannot be used."""
    from blocklayer.core.node_names import is_well_formed

    if not is_well_formed(name):
        raise InvalidArgument("Parameter 'id' expects an identifier")
    if name in _objects:
        raise InvalidArgument(
            f"attempt to add duplicate property '{name}' to object (type 'container')"
        )
    if (check := _CHECKS.get(kind)) is not None:
        check(properties)
    define(UserObject(kind, name, properties))


def define(definition: UserObject) -> None:
    """Make an object known, in place of one that had its name."""
    _objects[definition.name] = definition


def find(name: str) -> UserObject | None:
    """The object called `name`."""
    return _objects.get(name)


def forget(name: str) -> None:
    """The object called `name` is no more."""
    _objects.pop(name, None)


def names() -> list[str]:
    """Of all objects."""
    return list(_objects)


# --- secrets --------------------------------------------------------------------------------------


def secret(name: object) -> str | None:
    """The text of a ``secret`` object, None if there is none of that name or it is unreadable."""
    definition = _objects.get(name) if isinstance(name, str) else None
    if definition is None or definition.kind != "secret":
        return None
    try:
        return _secret_bytes(definition.properties).decode()
    except (InvalidArgument, UnicodeDecodeError):
        return None


def _secret_bytes(properties: Mapping[str, Any]) -> bytes:
    """What a secret says. Raises `InvalidArgument`."""
    data = _stored_bytes(properties)
    if properties.get("format", "raw") == "base64":
        return _decoded(data)
    return data


def _stored_bytes(properties: Mapping[str, Any]) -> bytes:
    """What is in a secret's ``data`` or ``file``; the end of a line there is none of the secret."""
    if "data" in properties:
        return str(properties["data"]).encode("utf-8", "surrogateescape")
    path = properties["file"]
    what = "open"
    try:
        with open(path, "rb", buffering=0) as file:
            what = "read"
            return file.readall().rstrip(b"\n")
    except OSError as error:
        if error.errno == errno.EISDIR:  # Python looks for itself while it opens
            what = "read"
        how = "Failed to open" if what == "open" else "Error reading"
        reason = os.strerror(error.errno or 0)
        raise InvalidArgument(f"Unable to read {path}: {how} file “{path}”: {reason}") from None


def _decoded(text: bytes) -> bytes:
    """Of base 64; what does not fill three bytes at the end is lost, as in QEMU."""
    import binascii

    if text.translate(None, _BASE64):
        raise InvalidArgument("Base64 data contains invalid characters")
    text = text.replace(b"\n", b"")
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except binascii.Error:  # signs for nothing in the middle
        raise InvalidArgument("Base64 data contains invalid characters") from None


_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n"


def _check_secret(properties: Mapping[str, Any]) -> None:
    if "data" in properties and "file" in properties:
        raise InvalidArgument("'file' and 'data' are mutually exclusive")
    if "data" not in properties and "file" not in properties:
        raise InvalidArgument("Either 'file' or 'data' must be provided")
    _stored_bytes(properties)
    if "keyid" in properties:
        _check_key(properties)
        raise NotSupported("Encrypted secrets are not supported")
    _secret_bytes(properties)


def _check_key(properties: Mapping[str, Any]) -> None:
    """Complain first of what is wrong anyway about how a secret is encrypted."""
    found = _find_secret(properties["keyid"])
    if len(_secret_bytes(found.properties)) != _KEY_LENGTH:
        raise InvalidArgument(f"Key should be {_KEY_LENGTH} bytes in length")
    if "iv" not in properties:
        raise InvalidArgument("IV is required to decrypt secret")
    length = len(_decoded(properties["iv"].encode()))
    if length != _IV_LENGTH:
        raise InvalidArgument(f"IV should be {_IV_LENGTH} bytes in length not {length}")


def _find_secret(name: str) -> UserObject:
    found = _objects.get(name)
    if found is None:
        raise InvalidArgument(f"No secret with id '{name}'")
    if found.kind != "secret":
        raise InvalidArgument(f"Object with id '{name}' is not a secret")
    return found


_KEY_LENGTH, _IV_LENGTH = 32, 16  # AES-256

# --- credentials ----------------------------------------------------------------------------------


def tls_credentials(name: object) -> tuple[UserObject, str | None]:
    """The object that an option ``tls-creds`` names, and the password of its key, if it has one.

    Raises `InvalidArgument`. `nbd/tls.py` knows what its properties mean.
    """
    found = _objects.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument(f"No TLS credentials with id '{name}'")
    if not found.kind.startswith("tls-creds-"):
        raise InvalidArgument(f"Object with id '{name}' is not TLS credentials")
    return found, secret(found.properties.get("passwordid"))


def _password(properties: Mapping[str, Any]) -> str | None:
    name = properties.get("passwordid")
    if name is None:
        return None
    _find_secret(name)
    text = secret(name)
    if text is None:
        raise InvalidArgument(f"Data from secret {name} is not valid UTF-8")
    return text


def _check_x509(properties: Mapping[str, Any]) -> None:
    # A layer beside this one, found by name as drivers are.
    module_named("blocklayer.nbd.tls").check_certificates(properties, lambda: _password(properties))


def _check_shared_keys(properties: Mapping[str, Any]) -> None:
    module_named("blocklayer.nbd.tls").check_shared_keys(properties)


def _check_list_file(properties: Mapping[str, Any]) -> None:
    module_named("blocklayer.export.authorise").check_list_file(properties)


def _check_cipher_suites(properties: Mapping[str, Any]) -> None:
    if "priority" not in properties:
        raise InvalidArgument("'priority' property is not set")


# --- the others -----------------------------------------------------------------------------------


def _check_limits(properties: Mapping[str, Any]) -> None:
    from blocklayer.core import throttle_limits

    throttle_limits.of_group(properties)


def _check_loop(properties: Mapping[str, Any]) -> None:
    for name, value in properties.items():
        if value < 0:
            raise InvalidArgument(f"{name} value must be in range [0, {INT64_MAX}]")
    least, most = properties.get("thread-pool-min", 0), properties.get("thread-pool-max", 64)
    if not most or not least <= most < 2**31:
        raise InvalidArgument("bad thread-pool-min/thread-pool-max values")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "authz-list-file": _check_list_file,
    "iothread": _check_loop,
    "main-loop": _check_loop,
    "secret": _check_secret,
    "throttle-group": _check_limits,
    "tls-cipher-suites": _check_cipher_suites,
    "tls-creds-psk": _check_shared_keys,
    "tls-creds-x509": _check_x509,
}
