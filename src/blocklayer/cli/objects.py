# SPDX-License-Identifier: Apache-2.0
"""--object: secrets, credentials and limits that options refer to by their ids.

An object that nobody refers to changes no result: definitions are checked and accepted, so that
command lines of other tools work. The daemon has the same table as declarations of its commands
(`qmp/schema/objects.py`), which need a package that is not everywhere.
"""

from __future__ import annotations

from blocklayer.base.units import INT64_MAX
from blocklayer.cli.failures import Failure
from blocklayer.core import objects
from blocklayer.core.throttle_limits import MEMBERS

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, NoReturn

STRING, BOOL, INTEGER = "string", "boolean", "integer"

_TLS: dict[str, Any] = {
    "endpoint": ("client", "server"),
    "dir": STRING,
    "verify-peer": BOOL,
    "priority": STRING,
}
_LOOP: dict[str, Any] = dict.fromkeys(
    ("aio-max-batch", "thread-pool-min", "thread-pool-max"), INTEGER
)
_RULE = {"match!": STRING, "policy!": ("deny", "allow"), "format": ("exact", "glob")}

KINDS: dict[str, dict[str, Any]] = {
    "authz-list": {"policy": ("deny", "allow"), "rules": [_RULE]},
    "authz-list-file": {"filename!": STRING, "refresh": BOOL},
    "authz-simple": {"identity!": STRING},
    "iothread": {
        **dict.fromkeys(("poll-max-ns", "poll-grow", "poll-shrink"), INTEGER),
        **_LOOP,
    },
    "main-loop": _LOOP,
    "secret": {
        "data": STRING,
        "file": STRING,
        "format": ("raw", "base64"),
        "keyid": STRING,
        "iv": STRING,
    },
    "throttle-group": {
        "limits": dict.fromkeys(MEMBERS, INTEGER),
        **{f"x-{name}": INTEGER for name in MEMBERS},
    },
    "tls-cipher-suites": {"priority": STRING},
    "tls-creds-anon": _TLS,
    "tls-creds-psk": {**_TLS, "username": STRING},
    "tls-creds-x509": {**_TLS, "sanity-check": BOOL, "passwordid": STRING},
}
"""What there is, and its members with their types: one of the above, words to choose from, members
again, a list of one type. A member with a ``!`` behind its name has to be there.
"""


def check_objects(definitions: list[str]) -> None:
    """Look at every definition and make it known. Raises `Failure` and `InvalidArgument`."""
    from blocklayer.cli.daemon_options import read_options

    for name in objects.names():  # of another command in this process
        objects.forget(name)
    for definition in definitions:
        properties, spelled = read_options(definition, "qom-type")
        kind = _kind(properties)
        declared = {"qom-type!": STRING, "id!": STRING, **KINDS[kind]}
        checked = _Visitor(spelled).struct(declared, properties, "")
        del checked["qom-type"]
        objects.add(kind, checked.pop("id"), checked)


def list_objects(definitions: list[str]) -> str | None:
    """What ``--object help`` and ``--object KIND,help`` tell; None if nobody asked."""
    for definition in definitions:
        kind, _, rest = definition.partition(",")
        if kind in ("help", "?"):
            return "\n".join(["List of user creatable objects:", *(f"  {kind}" for kind in KINDS)])
        if rest in ("help", "?") and kind in KINDS:
            names = sorted(name.rstrip("!") for name in KINDS[kind])
            return "\n".join([f"{kind} options:", *(f"  {name}=<value>" for name in names)])
    return None


def _kind(properties: dict[str, Any]) -> str:
    if "qom-type" not in properties:
        raise Failure("Parameter 'qom-type' is missing")
    kind = properties["qom-type"]
    if not isinstance(kind, str):
        _wrong_type("qom-type", STRING)
    if kind not in KINDS:
        raise Failure(f"Parameter 'qom-type' does not accept value '{kind}'")
    return kind


class _Visitor:
    """Checks the types of one definition, and makes values of texts if it is `spelled`."""

    def __init__(self, spelled: bool) -> None:
        self._spelled = spelled

    def struct(self, declared: dict[str, Any], value: Any, path: str) -> dict[str, Any]:
        """An object of these members."""
        if not isinstance(value, dict):
            _wrong_type(path, "object")
        found = {}
        for mark, kind in declared.items():
            name = mark.rstrip("!")
            if name in value:
                found[name] = self._value(kind, value[name], _joined(path, name))
            elif name != mark:
                raise Failure(f"Parameter '{_joined(path, name)}' is missing")
        for name in value:
            if name not in found:
                raise Failure(f"Parameter '{_joined(path, name)}' is unexpected")
        return found

    def _value(self, kind: Any, value: Any, path: str) -> Any:
        if isinstance(kind, dict):
            return self.struct(kind, value, path)
        if isinstance(kind, list):
            return self._list(kind[0], value, path)
        if kind == INTEGER:
            return self._integer(value, path)
        if kind == BOOL:
            return self._bool(value, path)
        if not isinstance(value, str):
            _wrong_type(path, STRING)
        if isinstance(kind, tuple) and value not in kind:
            name = path.rpartition(".")[2]
            raise Failure(f"Parameter '{name}' does not accept value '{value}'")
        return value

    def _list(self, kind: Any, value: Any, path: str) -> list[Any]:
        """A list, which options write with ``0``, ``1`` … for names of members."""
        if self._spelled and isinstance(value, dict) and all(map(_is_index, value)):
            for index in range(len(value)):
                if str(index) not in value:
                    raise Failure(f"Parameter '{path}.{index}' missing")
            pairs = [(f"{path}.{index}", value[str(index)]) for index in range(len(value))]
        elif not self._spelled and isinstance(value, list):
            pairs = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
        else:
            _wrong_type(path, "array")
        return [self._value(kind, each, name) for name, each in pairs]

    def _integer(self, value: Any, path: str) -> int:
        if self._spelled and isinstance(value, str):
            digits = value.removeprefix("-")
            try:
                if not (digits.isascii() and digits.isalnum() and len(digits) <= _DIGITS_MAX):
                    raise ValueError
                value = int(value, 0)
            except ValueError:
                raise Failure(f"Parameter '{path}' expects integer") from None
            if not -INT64_MAX - 1 <= value <= INT64_MAX:
                raise Failure(f"Parameter '{path}' expects integer")
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > INT64_MAX:
            _wrong_type(path, INTEGER)
        number: int = value
        return number

    def _bool(self, value: Any, path: str) -> bool:
        if self._spelled and isinstance(value, str):
            from blocklayer.base.options import parse_bool

            return parse_bool(value, path)
        if not isinstance(value, bool):
            _wrong_type(path, BOOL)
        return value


_DIGITS_MAX = 20


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wrong_type(path: str, expected: str) -> NoReturn:
    raise Failure(f"Invalid parameter type for '{path}', expected: {expected}")
