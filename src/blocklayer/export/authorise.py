# SPDX-License-Identifier: Apache-2.0
"""Who may connect, by the names in their certificates: QEMU's `authz-*` objects."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Mapping

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree, nest
from blocklayer.core import objects

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


def authoriser(name: str) -> Callable[[str], bool]:
    """What decides for the object `name`. Raises `InvalidArgument`."""
    definition = objects.find(name)
    if definition is None:
        raise InvalidArgument(f"Cannot find QAuthZ object ID {name}")
    make = _KINDS.get(definition.kind)
    if make is None:
        raise InvalidArgument(f"Object '{name}' is not a QAuthZ subclass")
    return make(definition.properties)


def _simple(properties: Mapping[str, Any]) -> Callable[[str], bool]:
    identity = properties.get("identity")
    if not isinstance(identity, str):
        raise InvalidArgument("The 'identity' property must be set")
    return lambda who: who == identity


def _list(properties: Mapping[str, Any]) -> Callable[[str], bool]:
    tree: OptionTree = nest(dict(properties))
    policy = tree.get("policy", "deny")
    if policy not in ("allow", "deny"):
        raise InvalidArgument(f"Parameter 'policy' does not accept value '{policy}'")
    rules = tree.get("rules", [])
    if isinstance(rules, dict) and all(key.isascii() and key.isdigit() for key in rules):
        rules = [rules[key] for key in sorted(rules, key=int)]
    if not isinstance(rules, list):
        raise InvalidArgument("Invalid parameter type for 'rules', expected: array")
    checked = [_rule(rule) for rule in rules]

    def decide(who: str) -> bool:
        for match, allows, exact in checked:
            if who == match if exact else fnmatch.fnmatchcase(who, match):
                return allows
        return bool(policy == "allow")

    return decide


def _rule(rule: object) -> tuple[str, bool, bool]:
    """(what to match, whether that allows, whether it is meant exactly)."""
    if not isinstance(rule, dict) or not isinstance(rule.get("match"), str):
        raise InvalidArgument("Parameter 'match' is missing")
    policy, shape = rule.get("policy"), rule.get("format", "exact")
    if policy not in ("allow", "deny"):
        raise InvalidArgument(f"Parameter 'policy' does not accept value '{policy}'")
    if shape not in ("exact", "glob"):
        raise InvalidArgument(f"Parameter 'format' does not accept value '{shape}'")
    return rule["match"], policy == "allow", shape == "exact"


def check_list_file(properties: Mapping[str, Any]) -> None:
    """Whether an `authz-list-file` object can be used now. Raises `InvalidArgument`."""
    _list_file(properties)


def _list_file(properties: Mapping[str, Any]) -> Callable[[str], bool]:
    """A list in a file, read again whenever the file has changed."""
    path = properties.get("filename")
    if not isinstance(path, str):
        raise InvalidArgument("filename not provided")

    def load() -> tuple[object, Callable[[str], bool]]:
        try:
            with open(path, encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                content = json.load(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidArgument(f"Unable to read '{path}': {reason}") from None
        if not isinstance(content, dict):
            raise InvalidArgument(f"File '{path}' must contain a JSON object")
        return (status.st_mtime_ns, status.st_ino), _list(content)

    state = [load()]

    def decide(who: str) -> bool:
        try:
            status = os.stat(path)
            if (status.st_mtime_ns, status.st_ino) != state[0][0]:
                state[0] = load()
        except (OSError, InvalidArgument):
            return False  # nobody knows who may: nobody may
        return state[0][1](who)

    return decide


_KINDS: dict[str, Callable[[Mapping[str, Any]], Callable[[str], bool]]] = {
    "authz-simple": _simple,
    "authz-list": _list,
    "authz-list-file": _list_file,
}
