# SPDX-License-Identifier: Apache-2.0
"""Option strings as the field's tools write them: ``driver=qed,file.filename=a,,b.qed``."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TypeAlias

OptionTree: TypeAlias = "dict[str, Any]"
"""Options by name; a child node's options are a tree of their own."""

OPTIONS_DEPTH_MAX = 250
"""Levels of an option tree: deeper ones are an attempt to exhaust the stack."""


def split_options(text: str) -> list[tuple[str, str]]:
    """``a=1,b=x,,y`` as pairs; a doubled comma is a comma, a bare name means ``on``."""
    pairs = []
    for item in text.replace(",,", "\0").split(","):
        key, equals, value = item.replace("\0", ",").partition("=")
        if key:
            pairs.append((key, value if equals else "on"))
    return pairs


def nest(flat: OptionTree, *, depth: int = 0) -> OptionTree:
    """``{"file.filename": x}`` as ``{"file": {"filename": x}}``, at every depth."""
    tree: OptionTree = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        level = depth + len(path) + 1
        if level > OPTIONS_DEPTH_MAX:
            raise InvalidArgument(f"Options are nested deeper than {OPTIONS_DEPTH_MAX} levels")
        if isinstance(value, dict):
            value = nest(value, depth=level)
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise InvalidArgument(f"Cannot mix '{step}' as a value with '{key}'")
        _merge(branch, last, value, key)
    return tree


def _merge(branch: OptionTree, name: str, value: object, key: str) -> None:
    """Set an option that must not be there yet; trees become one."""
    known = branch.get(name)
    if isinstance(known, dict) and isinstance(value, dict):
        for inner, each in value.items():
            _merge(known, inner, each, f"{key}.{inner}")
    elif name in branch:
        raise InvalidArgument(f"Option '{key}' is given twice")
    else:
        branch[name] = value


def parse_number(value: object, name: str) -> int:
    """A whole number, as a number or as text. Raises `InvalidArgument`."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return value if isinstance(value, int) else int(value, 0)
        except ValueError:
            pass  # it is no number
    raise InvalidArgument(f"Parameter '{name}' expects a number")


def parse_bool(value: object, name: str) -> bool:
    """on/off, yes/no, true/false, y/n as QEMU takes them."""
    if isinstance(value, bool):
        return value
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise InvalidArgument(f"Parameter '{name}' expects 'on' or 'off'")
