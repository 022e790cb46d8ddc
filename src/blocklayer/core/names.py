# SPDX-License-Identifier: Apache-2.0
"""What users and headers call images (paths, URIs, `json:` …), and the options that they mean."""

from __future__ import annotations

import os

from blocklayer.base.errors import InvalidArgument, OpenError
from blocklayer.base.options import OptionTree, nest
from blocklayer.core import drivers

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

FilenameLike: TypeAlias = "str | os.PathLike[str] | OptionTree"


def parse_name(name: FilenameLike) -> OptionTree:
    """The option tree of a path, `json:{…}`, `file:` or other name."""
    if isinstance(name, dict):
        return nest(name)
    text = os.fspath(name)
    if isinstance(text, bytes):
        raise InvalidArgument(f"Invalid file name {text!r}: use os.fsdecode for names in bytes")
    if text.startswith("json:"):
        return _parse_json_name(text)
    if text.startswith("file:"):
        return {"file": {"driver": "file", "filename": text[5:]}}
    if text in ("null-co://", "null-aio://") or text.startswith("null-co://"):
        return {"driver": "raw", "file": {"driver": text.partition(":")[0]}}
    protocol = drivers.of_scheme(text) if isinstance(name, str) else None
    if protocol is not None:
        return {"file": {"driver": protocol, "filename": text}}
    prefix = text.partition(":")[0]
    if isinstance(name, str) and prefix != text and len(prefix) > 1 and _is_protocol(prefix):
        raise OpenError(
            f"Unknown protocol '{prefix}' (write 'file:{text}' for a file of this name)", text
        )
    if not text:
        raise InvalidArgument("The file name is empty")
    return {"file": {"driver": "file", "filename": text}}


def _is_protocol(prefix: str) -> bool:
    """Whether the text before a colon could be a protocol's name, and not part of a file's."""
    return (
        prefix[0].isalpha() and prefix.isascii() and all(c.isalnum() or c in "+-._" for c in prefix)
    )


def _parse_json_name(text: str) -> OptionTree:
    import json

    try:
        options = json.loads(text[5:])
    except (ValueError, RecursionError) as error:
        raise OpenError(f"Could not parse the JSON options: {error}", text) from None
    if not isinstance(options, dict):
        raise OpenError("Invalid JSON object given", text)
    try:
        return nest(options)
    except InvalidArgument as error:
        raise OpenError(str(error), text) from None


def path_of(name: FilenameLike) -> str:
    """The path of a name that stands for a file, which may not exist yet."""
    tree = parse_name(name)
    file = tree.get("file")
    if tree.keys() != {"file"} or not isinstance(file, dict) or file.get("driver") != "file":
        raise InvalidArgument(f"'{name}' is not the name of a file")
    path: str = file["filename"]
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"Invalid file name {path!r}: {error.reason}") from None
    if b"\0" in encoded or not encoded:
        raise InvalidArgument(f"Invalid file name {path!r}")
    return path


def is_export(name: FilenameLike) -> bool:
    """Whether a name means storage of a server: it has its size, and is no file to be made."""
    return isinstance(name, str) and drivers.of_scheme(name) is not None


def backing_path(overlay: str, backing: str) -> str:
    """A backing file's name as seen from here: relative names start at the overlay's folder."""
    if os.path.isabs(backing) or backing.startswith(("json:", "file:")) or "://" in backing:
        return backing
    if drivers.of_scheme(backing):
        return backing
    if overlay.startswith("json:"):
        raise OpenError("Cannot use relative paths with a json: overlay name", overlay)
    return os.path.join(os.path.dirname(overlay), backing)


def name_of_tree(options: OptionTree) -> str:
    """A name for error messages about an option tree."""
    while isinstance(options.get("file"), dict):
        options = options["file"]
    if options.get("filename"):
        return str(options["filename"])
    import json

    return "json:" + json.dumps(options, default=str)
