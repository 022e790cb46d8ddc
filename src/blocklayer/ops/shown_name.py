# SPDX-License-Identifier: Apache-2.0
"""What an open image is called, so that opening that name opens the same disk."""

from __future__ import annotations

import os

from blocklayer.core.names import FilenameLike, parse_name
from blocklayer.core.node import Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

NOT_CONTENT = {
    *("read-only", "auto-read-only", "cache", "force-share", "node-name", "backing"),
    *("discard", "detect-zeroes", "locking", "aio", "aio-max-batch", "drop-cache"),
    *("x-check-cache-dropped", "latency-ns"),
}
"""Options that change how an image is opened, and not what its file holds."""


def shown_name(name: FilenameLike, node: Node) -> str:
    """The name of the file where that says everything, and the options where they say more."""
    if _is_export(parse_name(name)):
        return node.filename
    if not isinstance(name, dict) and not os.fspath(name).startswith(("file:", "json:")):
        return os.fspath(name)
    tree = {key: value for key, value in parse_name(name).items() if key not in NOT_CONTENT}
    if "filename" in tree and tree.get("driver") not in ("file", "host_device"):
        tree["file"] = tree.pop("filename")
    file = tree.get("file", tree)
    plain = isinstance(file, str) or (isinstance(file, dict) and _is_plain(file))
    if plain and (file is tree or not tree.keys() - {"driver", "file"}):
        return node.filename
    import json

    return "json:" + json.dumps({"driver": node.driver, **tree}, default=str)


def _is_export(tree: dict[str, Any]) -> bool:
    """Whether nothing but an export is meant: its node's name says where that is, as in QEMU."""
    file = tree.get("file", tree)
    is_nbd = isinstance(file, dict) and file.get("driver") == "nbd"
    return is_nbd and (file is tree or not tree.keys() - {"driver", "file"} - NOT_CONTENT)


def _is_plain(file: dict[str, Any]) -> bool:
    more = file.keys() - {"driver", "filename"} - NOT_CONTENT
    return "filename" in file and file.get("driver", "file") == "file" and not more
